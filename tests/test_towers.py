"""Laws of the pictures' towers of CLIP and SigLIP as bundles: from whole models, sized, trained without labels.

What every family promises is in test_families.py; here is what these have that the others have not: a norm before the
blocks and tokens before theirs, a layer that pools by attention in place of a class token.

    pytest tests/test_towers.py
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    BitImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from modeling_lingene.conversion.moments import linear_maps
from modeling_lingene.measuring.evaluation import evaluate_model
from modeling_lingene.measuring.exported import evaluate_exported
from modeling_lingene.measuring.features import class_and_patches
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.features import tokens_of
from modeling_lingene.training.losses import Objective


TOWER = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4)
TOWER |= dict(image_size=16, patch_size=4, projection_dim=24)
TEXT = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=49408)
KINDS = {
    "clip": (CLIPModel, CLIPConfig, CLIPVisionModel),
    "siglip": (SiglipModel, SiglipConfig, SiglipVisionModel),
}


@dataclass(frozen=True)
class Whole:
    """A model of both towers, where it lies with its preprocessing, and the bundle made of it; read only."""

    kind: str
    model: CLIPModel | SiglipModel
    folder: Path
    bundle: Path

    @property
    def tower(self):
        return self.model.vision_model

    @property
    def family(self) -> str:
        return f"{self.kind}_vision_model"


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory) -> Whole:
    """Every parameter drawn anew."""
    kind, _, _ = KINDS[request.param]
    model = helpers.drawn(kind(KINDS[request.param][1](vision_config=TOWER, text_config=TEXT, projection_dim=24)))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder / "source")
    BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        folder / "source"
    )
    convert(str(folder / "source"), folder / "bundle")
    return Whole(request.param, model, folder / "source", folder / "bundle")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, picture in enumerate(helpers.pictures(24).images):
        picture.save(folder / f"{number}.png")
    return folder


def pixels(batch=3):
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_that_was_made_with_dropout_of_attention_is_taken_with_it(tmp_path, kind):
    """Under the family's own name of it, which the configuration of a bundle has another one for."""
    config = AutoConfig.for_model(f"{kind}_vision_model", **TOWER, attention_dropout=0.1)
    model = helpers.drawn(KINDS[kind][2](config))
    model.save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "bundle")
    assert LinGeneConfig.from_pretrained(tmp_path / "bundle").attention_probs_dropout_prob == 0.1
    back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    assert back.config.attention_dropout == 0.1
    assert far(back(pixels()).pooler_output, model(pixels()).pooler_output) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("kind", [CLIPForImageClassification, SiglipForImageClassification])
def test_a_classifier_on_a_tower_is_left_out_only_where_that_is_said(tmp_path, kind, labels):
    """No bundle of these families has one, of any number of classes."""
    model = helpers.drawn(kind(kind.config_class(vision_config=TOWER, text_config=TEXT, num_labels=labels)))
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=f"`headless`: .*source is a {kind.__name__}, and .* give --headless"):
        convert(str(tmp_path / "source"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    convert(str(tmp_path / "source"), tmp_path / "bundle", headless=True)
    back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    assert far(back(pixels()).pooler_output, model.vision_model(pixels()).pooler_output) < 1e-5


@torch.no_grad()
def test_the_tower_of_a_whole_model_and_one_by_itself_are_one_bundle(whole, tmp_path):
    """What is left out is named: the other tower, and a projection, which takes what the bundle gives."""
    alone = [KINDS[whole.kind][2], *([CLIPVisionModelWithProjection] if whole.kind == "clip" else [])]
    for number, kind in enumerate(alone):
        kind.from_pretrained(whole.folder).save_pretrained(tmp_path / f"{number}")
        convert(str(tmp_path / f"{number}"), tmp_path / f"{number} bundle")
        for file in whole.bundle.glob("*.safetensors"):
            found, expected = load_file(tmp_path / f"{number} bundle" / file.name), load_file(file)
            assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    left_out = json.loads((whole.bundle / "conversion.json").read_text())["left_out"]
    assert left_out.keys() == {
        name for name in load_file(whole.folder / "model.safetensors") if not name.startswith("vision_model.")
    }
    assert any("text tower" in why for why in left_out.values())
    tower = AutoModel.from_pretrained(whole.bundle).eval()
    assert type(tower) is KINDS[whole.kind][2]
    pooled, expected = tower(pixels()).pooler_output, whole.model.get_image_features(pixels()).pooler_output
    if whole.kind == "clip":
        pooled = whole.model.visual_projection(pooled)
        assert "pooled class token" in left_out["visual_projection.weight"]
    assert far(pooled, expected) < 1e-5


@torch.no_grad()
def test_a_width_is_the_leading_part_of_every_tensor(whole):
    """Tokens and positions are stored with fewer dimensions than a bundle has; queries, keys and values of the layer
    that pools as one, each of which is sliced by itself."""
    halves = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 2}
    small = KINDS[whole.kind][2](type(whole.tower.config)(**{**TOWER, **halves})).eval()
    full, leading = whole.tower.state_dict(), {}
    for name, one in small.state_dict().items():
        parts = 3 if "in_proj" in name else 1
        shape = (one.shape[0] // parts, *one.shape[1:])
        leading[name] = torch.cat([part[tuple(map(slice, shape))] for part in full[name].chunk(parts)])
    small.load_state_dict(leading)
    expected, size = small(pixels()), {"width_ratio": "1/2", "allow_untrained": True}
    constrained = LinGeneModel.from_pretrained(whole.bundle, constrained=True, allow_untrained=True).eval()
    stock = AutoModel.from_pretrained(whole.bundle, **size).eval()
    for found in (stock(pixels()), constrained(pixels(), width_ratio="1/2")):
        assert far(found.last_hidden_state, expected.last_hidden_state) < 1e-5
        assert far(found.pooler_output, expected.pooler_output) < 1e-5


@torch.no_grad()
def test_features_are_normed_and_what_is_pooled_stands_for_the_image(whole):
    """For neighbours, probes, cosines, and for what a student learns from; norms by numpy."""
    tower = AutoModel.from_pretrained(whole.bundle).eval()
    output = tower(pixels())
    tokens, norm = output.last_hidden_state.double().numpy(), whole.tower.post_layernorm
    if whole.kind == "clip":
        centred = tokens - tokens.mean(-1, keepdims=True)
        tokens = centred / numpy.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        tokens = (tokens * norm.weight.double().numpy() + norm.bias.double().numpy())[:, 1:]
    found = class_and_patches(tower, pixels())
    assert found[1].shape == (3, 16, 48)
    constrained = LinGeneModel.from_pretrained(whole.bundle, constrained=True).eval()
    given = tokens_of(constrained, pixels(), constrained.config.size(), 16)
    for image, patches in (found, (given[:, 0], given[:, 1:]), class_and_patches(constrained, pixels())):
        assert numpy.allclose(image, output.pooler_output, atol=1e-4) and numpy.allclose(patches, tokens, atol=1e-4)


def test_a_whole_model_is_measured_and_compared_with_by_its_tower(whole, tmp_path):
    """As a reference, and as what is measured."""
    rows = [
        evaluate_model(name, {}, helpers.pictures(8), metric="cosine", reference=str(whole.folder), device="cpu")
        for name in (whole.bundle, whole.folder)
    ]
    for row in rows:
        assert row["cosine"] > 0.9999 and row["patch_cosine"] > 0.9999 and row["depth"] == 4
    assert rows[0]["params"] == rows[1]["params"] == sum(one.numel() for one in whole.tower.parameters())


def test_it_learns_its_sizes_without_labels(whole, photos, tmp_path):
    """From itself, and from the whole model by name: at a rate of next to nothing the full size stays what it was."""
    for teacher in ("", str(whole.folder)):
        recipe = recipes.Recipe(
            data=str(photos),
            init=str(whole.bundle),
            teacher=teacher,
            training=recipes.TrainingSettings(epochs=1, batch_size=8, device="cpu", learning_rate=1e-9),
            decomposition=DecompositionSettings(totals=(4,), depths=(2,), widths=("1/2",)),
            objective=Objective(kind="features"),
            workers=0,
        )
        out = tmp_path / f"run {bool(teacher)}"
        rows = {(row["depth"], row["width_ratio"]): row for row in recipes.decompose(recipe, out)}
        assert rows[4, "1"]["feature_loss"] == min(row["feature_loss"] for row in rows.values())
        assert teacher or min(rows[4, "1"][name] for name in ("cosine", "patch_cosine")) > 0.9999
        small = AutoModel.from_pretrained(out / "bundle", depth=2, width_ratio="1/2")
        assert type(small) is KINDS[whole.kind][2] and small.config.hidden_size == 24


def test_fewer_components_are_fitted_on_pictures(whole, photos, tmp_path):
    """The report compares what stands for the image."""
    report = convert(
        str(whole.folder), tmp_path / "bundle", num_components=3, calibrate=str(photos), fit="aligned", rounds=2
    )
    rows = report["calibration"]["rows"]
    assert rows[0]["cosine"] < rows[-1]["cosine"] <= 1 and rows[-1]["patch_cosine"] > rows[0]["patch_cosine"]
    found = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    assert type(found) is KINDS[whole.kind][2]
    assert far(found(pixels()).pooler_output, whole.tower(pixels()).pooler_output) < 1


@pytest.mark.parametrize("fit", ["matched", "kronecker"])
def test_linear_maps_go_by_their_names(whole, photos, tmp_path, fit):
    """Queries, keys and values come in another order than a ViT's: a network of its own maps is itself, and the
    default fit, which corrects by what arrives, is no worse than the one that it begins with."""
    copy = AutoModel.from_pretrained(whole.bundle).eval()
    maps = linear_maps(copy, 4)
    names = {id(module): name.rpartition(".")[2] for name, module in copy.named_modules()}
    for part, name in {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}.items():
        assert [names[id(one)] for one in maps[f"attention.{part}"]] == [name] * 4
    asked = {"num_components": 2, "calibrate": str(photos), "rounds": 2}
    errors = {}
    for one in ("aligned", fit):
        report = convert(str(whole.folder), tmp_path / one, **asked, fit=one)
        errors[one] = report["calibration"]["rows"][-1]["relative_logit_error"]
    assert fit != "matched" or errors[fit] < 1.02 * errors["aligned"]


def test_a_tower_without_its_pooling_layer_is_compared_with_by_the_mean_of_its_tokens(tmp_path):
    """PaliGemma's, for one; it is no bundle, whose family has the layer."""
    helpers.drawn(SiglipVisionModel(SiglipVisionConfig(**TOWER, vision_use_head=False))).save_pretrained(
        tmp_path / "a"
    )
    BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        tmp_path / "a"
    )
    row = evaluate_model(
        str(tmp_path / "a"), {}, helpers.pictures(8), metric="cosine", reference=str(tmp_path / "a"), device="cpu"
    )
    assert row["cosine"] > 0.9999
    with pytest.raises(ValueError, match="`vision_use_head` False.*attention pooling"):
        convert(str(tmp_path / "a"), tmp_path / "bundle")


def test_exports_say_what_the_tower_says(whole, tmp_path):
    """A torch program and ONNX are verified as they are written; what stands for the image comes first, tokens normed,
    so that the file is measured as the bundle is."""
    for kind in ("transformers", "program", "onnx"):
        report = export(whole.bundle, tmp_path / kind, to=kind, depth=2)
        assert report["relative_difference"] <= report["tolerance"]
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    (found,) = session.run(["tokens"], {"pixel_values": pixels().numpy()})
    small = AutoModel.from_pretrained(whole.bundle, depth=2).eval()
    with torch.no_grad():
        image, patches = class_and_patches(small, pixels())
    assert numpy.allclose(found[:, 0], image, atol=1e-4) and numpy.allclose(found[:, 1:], patches, atol=1e-4)
    small.save_pretrained(tmp_path / "small")
    row = evaluate_exported(tmp_path / "onnx", helpers.pictures(8), metric="cosine", reference=str(tmp_path / "small"))
    assert row["cosine"] > 0.9999 and row["patch_cosine"] > 0.9999


def test_configurations_of_the_first_files_are_read(whole, tmp_path):
    """They name every setting of text generation in the pictures' tower; dropout of hidden states is refused."""
    folder = shutil.copytree(whole.folder, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    old = {"max_length": 20, "num_beams": 1, "temperature": 1.0, "top_k": 50, "length_penalty": 1.0, "dropout": 0.0}
    config["vision_config"] |= old | {"torchscript": False, "torch_dtype": None, "use_bfloat16": False}
    config["vision_config"] |= {"tie_word_embeddings": True, "_attn_implementation_autoset": True}
    (folder / "config.json").write_text(json.dumps(config))
    convert(str(folder), tmp_path / "bundle")
    config["vision_config"]["dropout"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`dropout` 0.1"):
        convert(str(folder), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_the_family_has_not_is_refused(whole, photos, tmp_path):
    """By name, with the way out, before anything is trained or written."""
    none, bundle = f"`family` {whole.family} has no classifier.*AutoModel.*--objective features", whole.bundle
    for load in (
        lambda: AutoModelForImageClassification.from_pretrained(bundle),
        lambda: LinGeneForImageClassification.from_pretrained(bundle, constrained=True),
        lambda: recipes.decompose(
            recipes.Recipe(data=str(photos), init=str(bundle), training=recipes.TrainingSettings(device="cpu")),
            tmp_path / "run",
        ),
    ):
        with pytest.raises(ValueError, match=none):
            load()
    with pytest.raises(ValueError, match=f"`sort` turns the stream.*{whole.family}"):
        convert(str(whole.folder), tmp_path / "sorted", calibrate=str(photos), sort=True)
    with pytest.raises(ValueError, match=f"`to` timm.*{whole.family}"):
        export(bundle, tmp_path / "timm", to="timm")
    with pytest.raises(ValueError, match="`image_size` of the family.*must be square; got 16x32"):
        AutoModel.from_pretrained(bundle, image_size=(16, 32))
    with pytest.raises(ValueError, match=f"`qkv_bias` of the family {whole.family} is True, got False"):
        LinGeneConfig(family=whole.family, qkv_bias=False)
    assert not (tmp_path / "sorted").exists() and not (tmp_path / "timm").exists()
