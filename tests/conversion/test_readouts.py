"""Laws of channels that were turned: what brings tokens back goes with them, and nobody compares those that lost it.

Against numpy and stock transformers models whose every parameter was changed.

    pytest tests/conversion/test_readouts.py
"""

from dataclasses import replace
from shutil import copyfile

import numpy
import pytest
import torch
from converting import relative
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    Dinov2Model,
    ViTForImageClassification,
)
from turning import stock

import helpers
from modeling_lingene import LinGeneModel
from modeling_lingene.bundle_lingene import READOUT_FILE
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from modeling_lingene.folders import publish_model, read_processor
from modeling_lingene.images.batches import batches, image_processor
from modeling_lingene.images.pictures import load_pictures
from modeling_lingene.measuring.evaluation import evaluate_model
from modeling_lingene.measuring.sweep import sweep
from modeling_lingene.readout import brought_back, known_readout, read_readout, write_readout
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.recipes import Recipe, decompose
from modeling_lingene.training.steps import TrainingSettings


@torch.no_grad()
def test_turned_channels_are_compared_and_trained_as_the_sources(tmp_path, photos):
    """With the source as reference, and with the bundle itself, named or not: every token through the readout, what a
    narrow size lacks zero. Training goes on in the same channels, and keeps what brings them back.
    """
    stock(Dinov2Model).save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "bundle", calibrate=str(photos), sort=True, widths=["3/4"])
    pictures, found = load_pictures(str(photos)), {}
    for name, reference in (("source", "source"), ("bundle", "bundle"), ("own", None)):
        reference = None if reference is None else str(tmp_path / reference)
        options = dict(metric="cosine", reference=reference, latency=False, allow_untrained=True)
        rows = sweep(tmp_path / "bundle", pictures, widths=["3/4", "1"], device="cpu", **options, out=tmp_path / name)
        found[name] = {row["width_ratio"]: row for row in rows if row["num_components"] == 6}
        assert found[name]["1"]["cosine"] == pytest.approx(1, abs=1e-5)
        assert found[name]["1"]["patch_cosine"] == pytest.approx(1, abs=1e-5)
    readout = load_file(tmp_path / "bundle" / READOUT_FILE)
    seen = torch.cat([batch["pixel_values"] for batch in batches(pictures, read_processor(tmp_path / "bundle"), 8)])
    narrow = AutoModel.from_pretrained(tmp_path / "bundle", width_ratio="3/4", allow_untrained=True)
    publish_model(narrow, tmp_path / "bundle", tmp_path / "plain")
    weight, bias = (tensor.numpy() for tensor in read_readout(tmp_path / "plain"))
    assert (weight == readout["weight"].numpy()[:, :36]).all() and (bias == readout["bias"].numpy()).all()
    own = narrow(seen).last_hidden_state[:, 0].numpy() @ weight.T + bias
    expected = AutoModel.from_pretrained(tmp_path / "source")(seen).last_hidden_state[:, 0].numpy()
    cosine = (own * expected).sum(1) / numpy.linalg.norm(own, axis=1) / numpy.linalg.norm(expected, axis=1)
    for rows in found.values():  # one measure, whoever is named
        assert rows["3/4"]["cosine"] == pytest.approx(cosine.mean(), abs=1e-5)
    assert 0.1 < cosine.mean() < 0.999
    options = dict(metric="cosine", reference=str(tmp_path / "source"), device="cpu")
    row = evaluate_model(str(tmp_path / "plain"), {}, pictures, **options)
    assert row["cosine"] == pytest.approx(cosine.mean(), abs=1e-5)
    recipe = Recipe(
        data=str(photos),
        init=str(tmp_path / "bundle"),
        training=TrainingSettings(epochs=1, batch_size=16, device="cpu"),
        decomposition=DecompositionSettings("simultaneous", totals=(6,)),
        objective=Objective(kind="features"),
        validation_share=0.2,
    )
    turned = replace(
        recipe, teacher=str(tmp_path / "source"), objective=replace(recipe.objective, feature_heads="identity")
    )
    with pytest.raises(ValueError, match="`feature_heads` identity compares channel by channel.*use linear heads"):
        decompose(turned, tmp_path / "refused")
    with torch.enable_grad():
        decompose(recipe, tmp_path / "run")
    for folder in ("bundle", "best"):
        kept = load_file(tmp_path / "run" / folder / READOUT_FILE)
        assert kept.keys() == readout.keys() and all(torch.equal(kept[key], readout[key]) for key in kept)


@pytest.mark.parametrize("model_class", [Dinov2Model, ViTForImageClassification])
@torch.no_grad()
def test_a_size_that_lost_what_brings_its_tokens_back_is_compared_with_nobody(tmp_path, photos, model_class, caplog):
    """A stock class saves no readout. Its tokens would have a cosine near 0 with the source's, and be learned one by
    one: both are refused, and the file alone mends it. What compares no channels goes on."""
    source, bundle, lost = (tmp_path / name for name in ("source", "bundle", "lost"))
    stock(model_class).save_pretrained(source)
    image_processor(16).save_pretrained(source)
    convert(str(source), bundle, calibrate=str(photos), sort=True, widths=["3/4"])
    constrained = LinGeneModel.from_pretrained(bundle, constrained=True)
    for loaded in (constrained.materialise(), AutoModel.from_pretrained(bundle)):
        assert loaded.config.materialised_from["turned"] is True
        loaded.save_pretrained(lost)
    image_processor(16).save_pretrained(lost)
    pictures, asked = load_pictures(str(photos)), {"metric": "cosine", "device": "cpu"}
    for name, reference in ((lost, source), (source, lost), (lost, bundle)):
        with pytest.raises(ValueError, match=f"{lost} has channels that were turned .*lacks `{READOUT_FILE}`"):
            evaluate_model(str(name), {}, pictures, **asked, reference=str(reference))
    recipe = Recipe(
        data=str(photos),
        init=str(bundle),
        teacher=str(lost),
        training=TrainingSettings(epochs=1, batch_size=16, device="cpu"),
        objective=Objective(kind="features", feature_heads="identity"),
    )
    with pytest.raises(ValueError, match="channels that were turned .*lingene materialise"):
        decompose(recipe, tmp_path / "run")
    convert(str(lost), tmp_path / "again")
    assert LinGeneModel.config_class.from_pretrained(tmp_path / "again").turned
    with pytest.raises(ValueError, match=f"again has channels that were turned .*lacks `{READOUT_FILE}`"):
        sweep(tmp_path / "again", pictures, metric="cosine", reference=str(source), latency=False)
    itself = replace(recipe, init=str(tmp_path / "again"), teacher="", objective=Objective(kind="features"))
    with torch.enable_grad():
        rows = decompose(
            replace(itself, validation_share=0.2), tmp_path / "itself"
        )  # its own channels, whatever they are
    assert max(row["cosine"] for row in rows) > 0.9
    export(bundle, tmp_path / "plain", "transformers")  # of a classifier, too: its tokens are turned
    assert (tmp_path / "plain" / READOUT_FILE).read_bytes() == (bundle / READOUT_FILE).read_bytes()
    export(lost, tmp_path / "program", "program")
    assert f"{lost} lacks {READOUT_FILE}" in caplog.text
    copyfile(bundle / READOUT_FILE, lost / READOUT_FILE)
    row = evaluate_model(str(lost), {}, pictures, **asked, reference=str(source))
    assert row["cosine"] == pytest.approx(1, abs=1e-5)


def test_channels_as_they_were_are_not_told_as_turned(tmp_path):
    """Of a bundle, and of a size that is saved plain."""
    stock(Dinov2Model).save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "bundle")
    loaded = AutoModel.from_pretrained(tmp_path / "bundle")
    assert "turned" not in loaded.config.materialised_from
    assert not LinGeneModel.config_class.from_pretrained(tmp_path / "bundle").turned


@torch.no_grad()
def test_what_brings_tokens_back_goes_where_they_go(tmp_path, photos):
    """With a bundle that is loaded as components and saved, a size that is exported, and one that is converted and
    turned once more.
    """
    source = stock(Dinov2Model)
    source.save_pretrained(tmp_path / "source")
    asked = {"calibrate": str(photos), "sort": True}
    convert(str(tmp_path / "source"), tmp_path / "bundle", **asked, widths=["3/4"])
    values, files = helpers.images(3), tmp_path / "bundle" / READOUT_FILE
    whole, smaller = (
        LinGeneModel.from_pretrained(tmp_path / "bundle", constrained=True, allow_untrained=True, **size)
        for size in ({}, {"width_ratio": "3/4"})
    )
    whole.config.trained_width_ratios, smaller.config.trained_width_ratios = ["3/4", "1"], ["1"]
    whole.save_pretrained(tmp_path / "again")
    smaller.save_pretrained(tmp_path / "smaller")
    assert (tmp_path / "again" / READOUT_FILE).read_bytes() == files.read_bytes()
    export(tmp_path / "again", tmp_path / "plain", "transformers", width_ratio="3/4")
    export(tmp_path / "again", tmp_path / "program", "program", width_ratio="3/4")
    convert(str(tmp_path / "plain"), tmp_path / "converted")
    convert(str(tmp_path / "plain"), tmp_path / "turned", **asked)
    narrow = AutoModel.from_pretrained(tmp_path / "plain").eval()(values).last_hidden_state
    expected = brought_back((narrow, narrow), read_readout(tmp_path / "bundle"))[0]
    program = torch.export.load(tmp_path / "program" / "model.pt2").module()(values)
    found = {"program": program}
    for name in ("smaller", "plain", "converted", "turned"):
        found[name] = AutoModel.from_pretrained(tmp_path / name).eval()(values).last_hidden_state
    for name, tokens in found.items():
        back = brought_back((tokens, tokens), read_readout(tmp_path / name))[0]
        assert back.shape == expected.shape and relative(back, expected) < 1e-5, name
    assert relative(found["turned"], found["plain"]) > 0.1
    full = AutoModel.from_pretrained(tmp_path / "again")(values).last_hidden_state
    back = brought_back((full, full), read_readout(tmp_path / "again"))[0]
    assert relative(back, source(values).last_hidden_state) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("is_turned", [True, False])
def test_a_width_of_trailing_channels_is_brought_back_and_compared_by_those(tmp_path, photos, is_turned):
    """Scala's widths between the smallest and the full one; by numpy, from the bundle's own tensors. What is written
    with such a size, or saved of it, knows its columns; the smallest width has the leading ones.
    """
    config = helpers.tiny_config(isolated_activation=True, trained_width_ratios=["1/4", "1/2", "1"])
    whole, folder = helpers.tiny_model(config, model_class=LinGeneModel, noise=0.3), tmp_path / "bundle"
    whole.save_pretrained(folder)
    image_processor(16).save_pretrained(folder)
    generator = torch.Generator().manual_seed(2)
    readout = torch.randn(48, 48, generator=generator) / 7, torch.randn(48, generator=generator)
    if is_turned:
        write_readout(folder, readout)
    weight, bias = (part.numpy() for part in readout) if is_turned else (numpy.eye(48, dtype="f"), numpy.zeros(48))
    pictures = load_pictures(str(photos))
    seen = torch.cat([batch["pixel_values"] for batch in batches(pictures, read_processor(folder), 8)])
    full = whole(seen).last_hidden_state[:, 0].numpy() @ weight.T + bias
    options = dict(metric="cosine", latency=False, widths=["1/4", "1/2", "1"], components=(5,), device="cpu")
    rows = {row["width_ratio"]: row for row in sweep(folder, pictures, **options)}
    for width, columns in (("1/4", slice(12)), ("1/2", slice(24, 48)), ("1", slice(48))):
        model = AutoModel.from_pretrained(folder, width_ratio=width).eval()
        assert torch.equal(model.embeddings.cls_token, whole.embeddings.cls_token[..., columns])
        own = model(seen).last_hidden_state[:, 0].numpy()
        back = own @ weight[:, columns].T + bias
        cosine = (back * full).sum(1) / numpy.linalg.norm(back, axis=1) / numpy.linalg.norm(full, axis=1)
        assert rows[width]["cosine"] == pytest.approx(cosine.mean(), abs=1e-5)
        publish_model(model, folder, tmp_path / width / "plain")
        export(folder, tmp_path / width / "exported", "transformers", width_ratio=width)
        smaller = LinGeneModel.from_pretrained(folder, width_ratio=width, constrained=True)
        smaller.save_pretrained(tmp_path / width / "smaller")
        for name in ("plain", "exported", "smaller"):
            known = read_readout(tmp_path / width / name)
            assert (known is not None) == is_turned
            if is_turned:
                assert (known[0].numpy() == weight[:, columns]).all() and (known[1].numpy() == bias).all()
                (found, _) = brought_back((torch.from_numpy(own),) * 2, known)
                numpy.testing.assert_allclose(found.numpy(), back, atol=1e-5)


@pytest.mark.parametrize(
    "held, said",
    [
        (b"no tensors", "`readout.safetensors` of .* is damaged"),
        ({"weight": torch.eye(3)}, "`readout.safetensors` of .* is damaged"),
        ({"weight": torch.eye(3), "bias": torch.zeros(4)}, "`readout.safetensors` of .* has a weight of"),
    ],
)
def test_a_damaged_readout_is_named(tmp_path, held, said):
    """By its file; without the file there is nothing to bring back."""
    assert read_readout(tmp_path) is None
    file = tmp_path / READOUT_FILE
    file.write_bytes(held) if isinstance(held, bytes) else save_file(held, file)
    with pytest.raises(ValueError, match=said):
        read_readout(tmp_path)


@torch.no_grad()
def test_what_was_exported_for_timm_is_brought_back_too(tmp_path, photos):
    """By the name that timm loads it by; a network of timm's own has nothing beside it."""
    timm = pytest.importorskip("timm")
    model = stock(Dinov2Model)
    model.save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "bundle", calibrate=str(photos), sort=True, widths=["1/2"])
    export(tmp_path / "bundle", tmp_path / "timm", "timm")
    name = f"timm:local-dir:{tmp_path / 'timm'}"
    weight, bias = known_readout(name)
    tokens = timm.create_model(name.removeprefix("timm:"), pretrained=True).eval().forward_features(helpers.images(3))
    assert relative(tokens @ weight.T + bias, model(helpers.images(3)).last_hidden_state) < 1e-4
    convert(name, tmp_path / "again")
    assert LinGeneModel.config_class.from_pretrained(tmp_path / "again").turned
    torch.testing.assert_close(read_readout(tmp_path / "again"), (weight, bias))
    assert read_readout("timm:vit_tiny_patch16_224") is None and known_readout("timm:vit_tiny_patch16_224") is None
