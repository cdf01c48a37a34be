"""Laws of sorting for widths to come: exact at full width, slices with mean zero, the strongest axes first.

Against numpy's eigenvectors and stock transformers models whose every parameter was changed.

    pytest tests/conversion/test_sorting.py
"""

from dataclasses import replace
from shutil import copyfile

import numpy
import pytest
import torch
from converting import relative
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import helpers
from modeling_lingene import LinGeneModel
from modeling_lingene.bundle_lingene import READOUT_FILE
from modeling_lingene.conversion.convert import convert, open_source
from modeling_lingene.conversion.export import export
from modeling_lingene.conversion.ordering import order_layers, sort_width
from modeling_lingene.conversion.rotation import rotated, rotation, stream_moments, zero_sum_axes
from modeling_lingene.folders import publish_model, read_processor
from modeling_lingene.images.batches import batches, image_processor
from modeling_lingene.images.pictures import load_pictures
from modeling_lingene.measuring.evaluation import evaluate_model
from modeling_lingene.measuring.sweep import sweep
from modeling_lingene.readout import brought_back, read_readout, write_readout
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.recipes import Recipe, decompose
from modeling_lingene.training.steps import TrainingSettings


SHAPE = dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=6, intermediate_size=96)
SHAPE |= dict(image_size=16, patch_size=4)
BLOCKS, COUNT = [12, 24, 12], 40


def stock(model_class=ViTForImageClassification, seed=0, noise=0.08, **fields):
    """A stock model, every parameter moved away from its initial value."""
    config_class, own = {
        Dinov2Model: (Dinov2Config, {"mlp_ratio": 2}),
        Dinov2WithRegistersForImageClassification: (Dinov2WithRegistersConfig, {"mlp_ratio": 2, "num_labels": 7}),
        DINOv3ViTModel: (DINOv3ViTConfig, {"num_register_tokens": 2}),
    }.get(model_class, (ViTConfig, {"num_labels": 7}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**{**SHAPE, **own, **fields}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model.eval().requires_grad_(False)


def spread(size, seed=0):
    """Second moments with principal axes of every strength, (d, d) float64."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(size, 3 * size, generator=generator, dtype=torch.float64)
    whole = torch.logspace(1, -2, size, dtype=torch.float64)[torch.randperm(size, generator=generator), None] * whole
    whole = whole - whole.mean(0)
    return whole @ whole.T


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A flat folder of pictures without labels."""
    folder = tmp_path_factory.mktemp("photos")
    for index, picture in enumerate(helpers.pictures(COUNT).images):
        picture.save(folder / f"{index:03}.png")
    return folder


@pytest.mark.parametrize("blocks", [[48], BLOCKS, [8] * 6, [1, 2, 3]])
def test_axes_of_blocks_are_orthonormal_and_have_sum_zero(blocks):
    """All but the differences of means and the ones themselves: within one block each, and nothing for its mean."""
    axes = zero_sum_axes(blocks).numpy()
    size, inner = sum(blocks), sum(blocks) - len(blocks)
    numpy.testing.assert_allclose(axes.T @ axes, numpy.eye(size), atol=1e-12)
    numpy.testing.assert_allclose(abs(axes[:, -1]), size**-0.5)
    parts = numpy.split(axes, numpy.cumsum(blocks)[:-1])
    for part in parts:
        numpy.testing.assert_allclose(part[:, :inner].sum(0), 0, atol=1e-12)
        numpy.testing.assert_allclose(part[:, inner:] - part[:1, inner:], 0, atol=1e-12)  # means alone
    alive = numpy.array([numpy.abs(part[:, :inner]).max(0) > 0 for part in parts])
    assert (alive.sum(0) == 1).all() and (
        alive.argmax(0) == numpy.repeat(range(len(blocks)), numpy.array(blocks) - 1)
    ).all()


def test_a_rotation_is_orthogonal_and_takes_the_strongest_axes_to_the_first_block():
    """By numpy's eigenvectors: what is strongest lies in the narrowest slice, the next in the next; sums are zero."""
    moments = spread(48)
    turn = rotation(moments, BLOCKS).numpy()
    numpy.testing.assert_allclose(turn @ turn.T, numpy.eye(48), atol=1e-12)
    numpy.testing.assert_allclose(turn @ numpy.ones(48), numpy.ones(48), atol=1e-12)
    values, axes = numpy.linalg.eigh(moments.numpy())
    moved = turn @ axes[:, values.argsort()[::-1]]  # the weakest is the vector of ones
    for first, last, channels in ((0, 11, slice(0, 12)), (11, 34, slice(12, 36)), (34, 45, slice(36, 48))):
        numpy.testing.assert_allclose((moved[channels, first:last] ** 2).sum(0), 1, atol=1e-9)
        numpy.testing.assert_allclose(moved[channels, first:last].sum(0), 0, atol=1e-9)


def test_layer_norm_commutes_with_the_rotation():
    """Of any states: the mean is kept, and the variance. With another rotation it would not."""
    turn, states = rotation(spread(48), BLOCKS), torch.randn(5, 48, dtype=torch.float64) + 3
    found = functional.layer_norm(states @ turn.T, (48,))
    torch.testing.assert_close(found, functional.layer_norm(states, (48,)) @ turn.T)
    other = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64))[0]
    assert (
        relative(functional.layer_norm(states @ other.T, (48,)), functional.layer_norm(states, (48,)) @ other.T) > 0.1
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"qkv_bias": False},
        {"model_class": ViTModel},
        {"model_class": Dinov2Model},
        {"model_class": DINOv3ViTModel},  # norms' biases give its keys biases, which turn
        {"model_class": Dinov2WithRegistersForImageClassification},  # its head reads the patches' mean as well
    ],
)
@torch.no_grad()
def test_sorting_changes_nothing_at_full_width(tmp_path, photos, given):
    """Relative error of logits, and of all tokens brought back by the readout, at most 1e-5; LayerScale included."""
    model, values = stock(**given), helpers.images(6)
    model.save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "bundle", calibrate=str(photos), sort=True, widths=["1/2", "3/4"])
    if hasattr(model, "classifier"):
        found = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle")(values).logits
        assert relative(found, model(values).logits) < 1e-5
    tokens = AutoModel.from_pretrained(tmp_path / "bundle")(values).last_hidden_state
    encoder = model.base_model if hasattr(model, "classifier") else model
    expected, readout = encoder(values).last_hidden_state, load_file(tmp_path / "bundle" / READOUT_FILE)
    assert relative(tokens @ readout["weight"].T + readout["bias"], expected) < 1e-5
    assert relative(tokens, expected) > 0.1


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A source, the same turned for two widths, and the images that it was turned on."""
    folder, values = tmp_path_factory.mktemp("source"), helpers.images(32)
    stock().save_pretrained(folder)
    source = open_source(str(folder))
    return source, rotated(source, values, [helpers.Fraction(1, 4), helpers.Fraction(3, 4)], "cpu"), values


def test_slices_of_the_stream_have_mean_zero_but_for_the_weakest_axes(turned):
    """What is left of the means of the blocks is just the energy of as many axes as there are blocks but one.

    And the slices keep what the strongest axes hold.
    """
    source, other, values = turned
    before, after = (stream_moments(one.stock(), values).numpy() for one in (source, other))
    energies = numpy.linalg.eigvalsh(before)[::-1]  # the last is that of the ones, nothing
    means = sum(after[a:b, a:b].sum() / (b - a) for a, b in ((0, 12), (12, 36), (36, 48)))
    assert means == pytest.approx(energies[45:47].sum(), rel=1e-3)
    for width, axes in ((12, 11), (36, 34)):
        assert after[:width, :width].trace() >= energies[:axes].sum() * (1 - 1e-5)
        assert after[:width, :width].trace() > before[:width, :width].trace()


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


def by_variance(model, values):
    """The sort that a permutation allows: channels in the order of their variance, all layers together."""
    order = stream_moments(model, values).diagonal().argsort(descending=True)
    for name, parameter in model.named_parameters():
        *_, part, kind = name.split(".")
        dim = {"position_embeddings": 2, "cls_token": 2}.get(kind, 0)
        if (
            part == "classifier"
            or kind == "weight"
            and part in ("q_proj", "k_proj", "v_proj", "query", "key", "value", "fc1")
        ):
            dim = 1
        if (
            kind == "bias"
            and parameter is not None
            and part in ("classifier", "query", "key", "value", "q_proj", "k_proj", "v_proj", "fc1")
        ):
            continue
        parameter.copy_(parameter.index_select(dim, order))
    return model


@torch.no_grad()
def test_slices_of_a_turned_stream_are_nearer_than_those_of_sorted_channels(tmp_path, photos):
    """A stream that is mostly in a few directions, none of them a channel's: a permutation cannot find them."""
    model = stock()
    few = torch.linalg.qr(torch.randn(48, 14, generator=torch.Generator().manual_seed(1)))[0]
    keep = few @ few.T + 0.1 * torch.eye(48)
    embeddings = model.vit.embeddings
    for tensor in (embeddings.cls_token, embeddings.position_embeddings):
        tensor.copy_(tensor @ keep)
    writers = [embeddings.patch_embeddings.projection]
    for module in (module for module in model.vit.layers.modules() if isinstance(module, torch.nn.Linear)):
        writers += [module] if module.weight.shape[0] == 48 else []
    maps = [module for module in model.vit.layers.modules() if isinstance(module, torch.nn.Linear)]
    for module in (writers[0], *maps[3::6], *maps[5::6]):
        module.weight.copy_(torch.einsum("de,e...->d...", keep, module.weight))
        module.bias.copy_(keep @ module.bias)
    values = torch.cat([helpers.images(16), helpers.images(16, seed=1)])
    expected = model(values).logits
    model.save_pretrained(tmp_path / "source")
    by_variance(model, values).save_pretrained(tmp_path / "permuted")
    assert relative(model(values).logits, expected) < 1e-5
    asked = {"calibrate": str(photos), "sort": True, "widths": ["1/2"]}
    convert(str(tmp_path / "source"), tmp_path / "turned", **asked)
    convert(str(tmp_path / "permuted"), tmp_path / "plain")
    half, far = {"width_ratio": "1/2", "allow_untrained": True}, {}
    for name in ("turned", "plain"):
        found = AutoModelForImageClassification.from_pretrained(tmp_path / name, **half)(values).logits
        far[name] = relative(found, expected)
    assert far["turned"] < 0.8 * far["plain"]


@torch.no_grad()
def test_every_layer_puts_its_own_heads_and_units_first(tmp_path):
    """One that is made to do most, another in every layer; the function stays."""
    model, values = stock(), helpers.images(16)
    maps = [module for module in model.vit.layers.modules() if isinstance(module, torch.nn.Linear)]
    for layer in range(6):
        maps[6 * layer + 5].weight[:, 10 + layer] *= 40
        maps[6 * layer + 3].weight[:, 12 * (layer % 4) : 12 * (layer % 4) + 12] *= 20
    model.save_pretrained(tmp_path)
    source = open_source(str(tmp_path))
    found = order_layers(source, values, "cpu")
    for layer in range(6):
        before, after = (one.block("mlp.fc1.bias", layer) for one in (source, found))
        assert after[0] == before[10 + layer] and sorted(after.tolist()) == sorted(before.tolist())
        before, after = (one.block("attention.query.bias", layer) for one in (source, found))
        assert torch.equal(after[:12], before[12 * (layer % 4) :][:12])
    assert relative(found.stock()(values).logits, model(values).logits) < 1e-5


@torch.no_grad()
def test_with_fewer_components_one_order_holds_for_all_layers():
    """A head and a unit made to do most in every layer lead in the components; trained widths stay as they are."""
    model = helpers.tiny_model(helpers.tiny_config(trained_width_ratios=["1"]))
    for component in model.components:
        component.mlp.fc2.weight[:, 61] *= 40
        component.attention.output.weight[:, 24:36] *= 20
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    values = helpers.images(16)
    expected = model(values).logits
    sort_width(model, values)
    after = dict(model.named_parameters())
    assert (model(values).logits - expected).abs().max() < 1e-3
    assert after["components.1.mlp.fc1.bias"][0] == before["components.1.mlp.fc1.bias"][61]
    name = "components.2.attention.query.bias"
    assert torch.equal(after[name][:12], before[name][24:36])
    with pytest.raises(ValueError, match="1/2.*were trained as they are"):
        model.config.trained_width_ratios = ["1/2", "1"]
        sort_width(model, values)


@torch.no_grad()
def test_sorting_does_not_change_what_a_fit_finds(tmp_path, photos):
    """The metric turns with the channels: fewer components are the same model up to rounding; slices differ."""
    stock().save_pretrained(tmp_path / "source")
    asked, values = {"num_components": 3, "calibrate": str(photos), "fit": "weighted"}, helpers.images(6)
    for name, sort in (("plain", False), ("sorted", True)):
        convert(str(tmp_path / "source"), tmp_path / name, **asked, sort=sort)

    def logits(name, **size):
        return AutoModelForImageClassification.from_pretrained(tmp_path / name, **size)(values).logits

    assert relative(logits("sorted"), logits("plain")) < 1e-2
    half = {"width_ratio": "1/2", "allow_untrained": True}
    assert relative(logits("sorted", **half), logits("plain", **half)) > 0.05


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sort": True, "calibrate": None}, "`sort` needs images.*--calibrate"),
        ({"widths": ["1/2"]}, "`widths`.*--sort"),
        ({"sort": True, "widths": ["1/3"]}, "`widths`.*1/3.*use of 1/4, 1/2, 3/4, 1"),
        ({"sort": True, "widths": ["half"]}, "`widths`.*'half'"),
        ({"sort": True, "widths": ["3/2"]}, "`widths`.*3/2"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(tmp_path, photos, given, named):
    """Before an image is read."""
    stock().save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=named):
        convert(str(tmp_path / "source"), tmp_path / "bundle", **{"calibrate": str(photos), **given})
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
