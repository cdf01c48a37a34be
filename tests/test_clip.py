"""Laws of the pictures' tower of CLIP as a bundle: from whole models and towers alone, sized, trained without labels.

What every family promises is in test_families.py; here is what this one has that the others have not.

    pytest tests/test_clip.py
"""

import json
import shutil

import numpy
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from modeling_lingene.measuring.features import class_and_patches
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.losses import Objective


TOWER = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4)
TOWER |= dict(image_size=16, patch_size=4, projection_dim=24)
TEXT = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=49408)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A CLIP of both towers with every parameter drawn anew, and its folder with preprocessing; read only."""
    model = CLIPModel(CLIPConfig(vision_config=TOWER, text_config=TEXT, projection_dim=24)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1) * 0.5)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def bundle(whole, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    convert(str(whole[1]), out)
    return out


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
def test_the_tower_of_a_whole_model_and_one_by_itself_are_one_bundle(whole, bundle, tmp_path):
    """What is left out is named: the other tower, and the projection, which takes what the bundle gives."""
    model, folder = whole
    CLIPVisionModelWithProjection.from_pretrained(folder).save_pretrained(tmp_path / "projected")
    CLIPVisionModel.from_pretrained(folder).save_pretrained(tmp_path / "tower")
    for name in ("projected", "tower"):
        convert(str(tmp_path / name), tmp_path / f"{name} bundle")
        for file in bundle.glob("*.safetensors"):
            found, expected = load_file(tmp_path / f"{name} bundle" / file.name), load_file(file)
            assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    report = json.loads((bundle / "conversion.json").read_text())
    reasons = set(report["left_out"].values())
    assert len(report["left_out"]) == sum(not name.startswith("vision_model.") for name, _ in model.named_parameters())
    assert any("text tower" in why for why in reasons) and any("pooled class token" in why for why in reasons)
    tower = AutoModel.from_pretrained(bundle).eval()
    assert type(tower) is CLIPVisionModel
    projected = model.visual_projection(tower(pixels()).pooler_output)
    assert far(projected, model.get_image_features(pixels()).pooler_output) < 1e-5


@torch.no_grad()
def test_a_width_is_the_leading_part_of_every_tensor(whole, bundle):
    """Class token and positions are stored with fewer dimensions than a bundle has."""
    config = type(whole[0].config.vision_config)(**{**TOWER, "hidden_size": 24, "intermediate_size": 48})
    config.num_attention_heads = 2
    small, full = CLIPVisionModel(config).eval(), whole[0].vision_model.state_dict()
    small.load_state_dict({name: full[name][tuple(map(slice, one.shape))] for name, one in small.state_dict().items()})
    expected, size = small(pixels()), {"width_ratio": "1/2", "allow_untrained": True}
    constrained = LinGeneModel.from_pretrained(bundle, constrained=True, allow_untrained=True).eval()
    for found in (
        AutoModel.from_pretrained(bundle, **size).eval()(pixels()),
        constrained(pixels(), width_ratio="1/2"),
    ):
        assert far(found.last_hidden_state, expected.last_hidden_state) < 1e-5
        assert far(found.pooler_output, expected.pooler_output) < 1e-5


@torch.no_grad()
def test_features_are_normed_though_the_tower_gives_them_before(whole, bundle):
    """By numpy; for neighbours, probes, cosines, and for what a student learns from."""
    tower = AutoModel.from_pretrained(bundle).eval()
    tokens = tower(pixels()).last_hidden_state.double().numpy()
    norm = whole[0].vision_model.post_layernorm
    centred = tokens - tokens.mean(-1, keepdims=True)
    expected = centred / numpy.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    expected = expected * norm.weight.double().numpy() + norm.bias.double().numpy()
    found = class_and_patches(tower, pixels())
    assert numpy.allclose(found[0], expected[:, 0], atol=1e-4) and numpy.allclose(found[1], expected[:, 1:], atol=1e-4)
    constrained = LinGeneModel.from_pretrained(bundle, constrained=True).eval()
    given = constrained.normed(constrained(pixels()).last_hidden_state, constrained.config.size())
    assert numpy.allclose(given, expected, atol=1e-4)


def test_it_learns_its_sizes_without_labels(bundle, photos, tmp_path):
    """From itself: at a rate of next to nothing the full size stays what it was."""
    recipe = recipes.Recipe(
        data=str(photos),
        init=str(bundle),
        training=recipes.TrainingSettings(epochs=1, batch_size=8, device="cpu", learning_rate=1e-9),
        decomposition=DecompositionSettings(totals=(4,), depths=(2,), widths=("1/2",)),
        objective=Objective(kind="features"),
        workers=0,
    )
    rows = {(row["depth"], row["width_ratio"]): row for row in recipes.decompose(recipe, tmp_path / "run")}
    assert rows[4, "1"]["cosine"] > 0.9999 and rows[4, "1"]["patch_cosine"] > 0.9999
    assert rows[4, "1"]["feature_loss"] == min(row["feature_loss"] for row in rows.values())
    small = AutoModel.from_pretrained(tmp_path / "run" / "bundle", depth=2, width_ratio="1/2")
    assert type(small) is CLIPVisionModel and small.config.hidden_size == 24


def test_fewer_components_are_fitted_on_pictures(whole, photos, tmp_path):
    """The report compares the pooled class token."""
    report = convert(
        str(whole[1]), tmp_path / "bundle", num_components=3, calibrate=str(photos), fit="aligned", rounds=2
    )
    rows = report["calibration"]["rows"]
    assert rows[0]["cosine"] < rows[-1]["cosine"] <= 1 and rows[-1]["patch_cosine"] > rows[0]["patch_cosine"]
    found, tower = AutoModel.from_pretrained(tmp_path / "bundle").eval(), whole[0].vision_model
    assert type(found) is CLIPVisionModel
    assert far(found(pixels()).pooler_output, tower(pixels()).pooler_output) < 1


def test_exports_say_what_the_tower_says(bundle, tmp_path):
    """A torch program and ONNX are verified as they are written."""
    for kind in ("transformers", "program", "onnx"):
        report = export(bundle, tmp_path / kind, to=kind, depth=2)
        assert report["relative_difference"] <= report["tolerance"]


def test_configurations_of_the_first_files_are_read(whole, tmp_path):
    """They name every setting of text generation in the pictures' tower; dropout of hidden states is refused."""
    folder = shutil.copytree(whole[1], tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    old = {"max_length": 20, "num_beams": 1, "temperature": 1.0, "top_k": 50, "length_penalty": 1.0, "dropout": 0.0}
    config["vision_config"] |= old | {"torchscript": False, "torch_dtype": None, "use_bfloat16": False}
    (folder / "config.json").write_text(json.dumps(config))
    convert(str(folder), tmp_path / "bundle")
    config["vision_config"]["dropout"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`dropout` 0.1"):
        convert(str(folder), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_the_family_has_not_is_refused(whole, bundle, photos, tmp_path):
    """By name, with the way out, before anything is trained or written."""
    none = "`family` clip_vision_model has no classifier.*AutoModel.*--objective features"
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
    with pytest.raises(ValueError, match="`sort` turns the stream.*clip_vision_model"):
        convert(str(whole[1]), tmp_path / "sorted", calibrate=str(photos), sort=True)
    with pytest.raises(ValueError, match="`to` timm.*clip_vision_model"):
        export(bundle, tmp_path / "timm", to="timm")
    with pytest.raises(ValueError, match="`qkv_bias` of the family clip_vision_model is True, got False"):
        LinGeneConfig(family="clip_vision_model", qkv_bias=False)
    assert not (tmp_path / "sorted").exists() and not (tmp_path / "timm").exists()
