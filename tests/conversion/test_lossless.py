"""Laws of conversion: what a bundle can express comes through exactly, its components are what numpy solves for.

Against transformers' own models, every parameter changed by noise, LayerNorms, biases and LayerScales too.

    pytest tests/conversion/test_lossless.py
"""

import copy
import json

import numpy
import pytest
import torch
from converting import CLASSIFIERS, MLP, SHAPE, pixels, relative, source
from numpy.polynomial import chebyshev
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
    ViTMSNConfig,
    ViTMSNModel,
)

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel
from modeling_lingene.conversion.closed_form import check_condition, condition, solve
from modeling_lingene.conversion.convert import convert
from modeling_lingene.folders import read_processor
from modeling_lingene.images.batches import batches
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.measuring.evaluation import evaluate_model
from modeling_lingene.measuring.features import class_and_patches, load_encoder


DECODER = dict(decoder_num_hidden_layers=1, decoder_hidden_size=24, decoder_num_attention_heads=2)
DECODER |= dict(decoder_intermediate_size=24)
HEADLESS = {
    "vit with pooler": (ViTModel, ViTConfig(**MLP)),
    "vit, tanh gelu": (ViTModel, ViTConfig(**MLP, hidden_act="gelu_pytorch_tanh")),
    "mae": (ViTMAEForPreTraining, ViTMAEConfig(**MLP, **DECODER)),
    "msn": (ViTMSNModel, ViTMSNConfig(**MLP)),
    "dinov2": (Dinov2Model, Dinov2Config(**SHAPE, mlp_ratio=2, layerscale_value=0.3)),
    "dinov2 without mask token": (Dinov2Model, Dinov2Config(**SHAPE, mlp_ratio=2, use_mask_token=False)),
    "dinov2 as backbone": (Dinov2Backbone, Dinov2Config(**SHAPE, out_features=["stage2"], apply_layernorm=False)),
    "dinov2 with registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**SHAPE, mlp_ratio=2, layerscale_value=0.3, num_register_tokens=2),
    ),
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig(**MLP, layerscale_value=0.3, num_register_tokens=2, rope_theta=50.0)),
    "dinov3 with biases of keys": (DINOv3ViTModel, DINOv3ViTConfig(**MLP, num_register_tokens=1, key_bias=True)),
    "dinov3 as backbone": (
        DINOv3ViTBackbone,
        DINOv3ViTConfig(**MLP, num_register_tokens=1, query_bias=False, value_bias=False, apply_layernorm=False),
    ),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
@torch.no_grad()
def test_a_classifier_comes_through_to_the_same_logits(tmp_path, kind):
    """Stock model -> bundle -> stock model: equal to 1e-5 relative, labels and preprocessing kept."""
    model_class, config = CLASSIFIERS[kind]
    config = copy.deepcopy(config)  # that other tests take, too
    config.id2label = {index: f"thing {index}" for index in range(7)}
    model, folder = source(tmp_path, model_class, config)
    report = convert(str(folder), tmp_path / "bundle")
    values = pixels(config)
    expected = model(values).logits
    back = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle")
    own = ViTForImageClassification if "dinov2" not in kind else model_class
    assert type(back) is own and back.config.id2label == config.id2label
    assert relative(back.eval()(values).logits, expected) < 1e-5
    constrained = LinGeneForImageClassification.from_pretrained(tmp_path / "bundle", constrained=True).eval()
    assert relative(constrained(values).logits, expected) < 1e-5
    assert report["relative_logit_error"] < 1e-5 and report["condition"] == pytest.approx(2**0.5)
    assert json.loads((tmp_path / "bundle" / "conversion.json").read_text()) == report


@pytest.mark.parametrize("kind", HEADLESS)
@torch.no_grad()
def test_an_encoder_comes_through_token_by_token(tmp_path, kind):
    """Without a classifier all normed tokens are the outcome; what is left out is named, with its reason."""
    model_class, config = HEADLESS[kind]
    model, folder = source(tmp_path, model_class, config)
    report = convert(str(folder), tmp_path / "bundle")
    back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    if "dino" in kind:
        assert back.config.model_type == config.model_type and back.config.layerscale_value == 1
        assert back.config.apply_layernorm == config.apply_layernorm
        model = AutoModel.from_pretrained(folder).eval()  # of a backbone the encoder
    else:
        assert type(back) is ViTModel and back.pooler is None
    values = pixels(config)
    if kind == "mae":
        model.vit.config.mask_ratio = 0.0
        found = model.vit(values)
        order = torch.argsort(found.ids_restore * 0 + found.ids_restore, dim=1)
        tokens = torch.gather(back(values).last_hidden_state[:, 1:], 1, order[..., None].expand(-1, -1, 48))
        expected = found.last_hidden_state
        assert relative(tokens, expected[:, 1:]) < 1e-5
        assert relative(back(values).last_hidden_state[:, 0], expected[:, 0]) < 1e-5
        assert all(key.startswith("decoder.") for key in report["left_out"]) and len(report["left_out"]) > 10
        for encoder in (
            load_encoder(tmp_path / "source", config),
            back,
        ):  # as they are measured, and asked as teachers
            token, patches = class_and_patches(encoder, values)
            assert relative(token, expected[:, 0]) < 1e-5
            assert relative(patches, back(values).last_hidden_state[:, 1:]) < 1e-5
    else:
        assert relative(back(values).last_hidden_state, model(values).last_hidden_state) < 1e-5
        extra = {"pooler.dense.weight", "pooler.dense.bias"} if type(model) is ViTModel else set()
        assert report["left_out"].keys() == extra


def test_a_classifier_comes_along_where_no_class_is_named(tmp_path):
    """Not every writer says which class a checkpoint is of; its head was left out, as if nobody had asked for it."""
    model, folder = source(tmp_path, *CLASSIFIERS["vit"])
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    convert(str(folder), tmp_path / "bundle")
    values = pixels(model.config)
    with torch.no_grad():
        found = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()(values).logits
        assert relative(found, model(values).logits) < 1e-5


def test_classes_that_are_not_numbered_like_outputs_are_refused(tmp_path):
    """Pipelines and exports looked for a class 1 that had no name."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"])
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(3 * int(index)): name for index, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`id2label` of .* must number its 7 classes from 0 on.* numbers 0, 3, 6"):
        convert(str(folder), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_preprocessing_that_is_assumed_is_told(tmp_path, caplog):
    """The mean and deviation of 0.5 came without a word, and are not those of every backbone."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"])
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    convert(str(folder), tmp_path / "bundle")
    assert any("has no preprocessing" in text and "deviation 0.5" in text for text in caplog.messages)


def test_the_encoder_alone_may_be_asked_for(tmp_path):
    """The classifier is then named among what was left out."""
    _, folder = source(tmp_path, *CLASSIFIERS["dinov2"])
    report = convert(str(folder), tmp_path / "bundle", headless=True)
    assert {"classifier.weight", "classifier.bias"} == report["left_out"].keys()
    assert LinGeneModel.from_pretrained(tmp_path / "bundle").config.num_hidden_layers == 6


def test_preprocessing_comes_along(tmp_path):
    """Or every accuracy measured later would be of other pixels."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"])
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    convert(str(folder), tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle" / "preprocessor_config.json").read_text())["image_mean"] == [0.1, 0.2, 0.3]


def test_a_one_channel_source_without_preprocessing_gets_one_of_one_channel(tmp_path):
    """It got one that makes three; grey pictures then reach the bundle as they would the source."""
    image = pytest.importorskip("PIL.Image")
    model, folder = source(tmp_path, *CLASSIFIERS["vit, one channel"])
    convert(str(folder), tmp_path / "bundle")
    rgb = numpy.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=numpy.uint8)
    pictures = [image.fromarray(one) for one in rgb]
    grey = torch.tensor(numpy.stack([numpy.asarray(one.convert("L")) for one in pictures]))[:, None] / 127.5 - 1
    with torch.no_grad():
        expected = model(grey).logits
    images = LabelledImages(pictures, expected.argmax(1).tolist(), list("abcdefg"), "made", "test")
    (batch,) = batches(images, read_processor(tmp_path / "bundle"), 8)
    torch.testing.assert_close(batch["pixel_values"], grey, rtol=0, atol=1e-5)
    assert evaluate_model(tmp_path / "bundle", {}, images)["accuracy"] == 1


def test_the_tiny_bundle_of_the_other_tests_converts_too(tmp_path):
    """A size of a bundle, written as a plain model, is a source like any other."""
    bundle = helpers.bundle(tmp_path / "tiny")
    AutoModelForImageClassification.from_pretrained(bundle, depth=4).save_pretrained(tmp_path / "plain")
    assert convert(str(tmp_path / "plain"), tmp_path / "bundle")["depth"] == 4
    assert LinGeneConfig.from_pretrained(tmp_path / "bundle").trained_components == [4]  # its first ones are no model


def test_fewer_layers_are_selected(tmp_path):
    """The depth map of a converted bundle: rows of the kept layers, no other layer."""
    model, folder = source(tmp_path, *CLASSIFIERS["vit"])
    convert(str(folder), tmp_path / "bundle")
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle", depth=3)
    for layer, kept in enumerate((0, 2, 4)):
        own = small.vit.layers[layer].mlp.fc1.weight
        assert torch.allclose(own, model.vit.layers[kept].mlp.fc1.weight, atol=1e-6)


def test_half_precision_is_solved_in_double_and_stored_in_single(tmp_path):
    """Components in half precision would lose what the layers had."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"], dtype=torch.bfloat16)
    report = convert(str(folder), tmp_path / "bundle")
    assert report["relative_logit_error"] < 1e-5
    assert load_file(tmp_path / "bundle" / "shared.safetensors")["layernorm.weight"].dtype == torch.float32


@pytest.mark.parametrize("depth", [12, 24])
def test_deep_models_lose_nothing(tmp_path, depth):
    """With the paper's coefficients the error at 12 layers is 0.6, and 24 cannot be solved at all."""
    config = ViTConfig(**{**MLP, "num_hidden_layers": depth}, num_labels=7)
    _, folder = source(tmp_path, ViTForImageClassification, config)
    report = convert(str(folder), tmp_path / "bundle", degree_weight=1.0)
    assert report["relative_logit_error"] < 1e-5
    with pytest.raises(ValueError, match="condition number.*preset stable"):
        convert(str(folder), tmp_path / "paper", preset="paper")
    assert not (tmp_path / "paper").exists()


def test_components_are_what_numpy_solves_for(tmp_path):
    """A = a^-1 W with numpy's Chebyshev polynomials at its Chebyshev points; and least squares with fewer."""
    model, folder = source(tmp_path, *CLASSIFIERS["vit"])
    stock = load_file(folder / "model.safetensors")
    layers = numpy.stack(
        [stock[f"vit.encoder.layer.{layer}.intermediate.dense.weight"].double().numpy() for layer in range(6)]
    )
    for count in (6, 3):
        convert(str(folder), tmp_path / f"{count}", num_components=count)
        table = chebyshev.chebvander(chebyshev.chebpts1(6), count - 1)
        expected = numpy.linalg.lstsq(table, layers.reshape(6, -1), rcond=None)[0].reshape(count, *layers.shape[1:])
        for index in range(count):
            file = load_file(tmp_path / f"{count}" / f"component-0{index}.safetensors")
            found = file[f"components.{index}.mlp.fc1.weight"].numpy()
            numpy.testing.assert_allclose(found, expected[index], rtol=1e-5, atol=1e-6)


def test_components_of_gains_are_of_what_the_gains_have_above_the_offset(tmp_path):
    """A bundle adds the offset to what it recomposes, in least squares too; biases and other weights have none."""
    model, folder = source(tmp_path, *CLASSIFIERS["vit"])
    basis = {"nodes": "roots", "start_degree": 0, "depth_map": "select"}
    layers = model.vit.layers
    table = chebyshev.chebvander(chebyshev.chebpts1(6), 2)
    for preset, offset in (("stable", 0.0), ("paper", 1.0)):
        convert(str(folder), tmp_path / preset, num_components=3, preset=preset, **basis)
        assert LinGeneModel.config_class.from_pretrained(tmp_path / preset).gain_offset == offset
        for kind, above in (("weight", offset), ("bias", 0.0)):
            gains = torch.stack([getattr(layer.layernorm_before, kind) for layer in layers]).detach().numpy() - above
            expected = numpy.linalg.lstsq(table, gains, rcond=None)[0]
            for index, row in enumerate(expected):
                file = load_file(tmp_path / preset / f"component-0{index}.safetensors")
                found = file[f"components.{index}.norm1.{kind}"].numpy()
                numpy.testing.assert_allclose(found, row, rtol=1e-5, atol=1e-6)


def test_the_condition_number_is_numpys():
    """Singular means infinite, not an exception."""
    table = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert condition(table) == pytest.approx(numpy.linalg.cond(table.numpy()))
    assert condition(torch.zeros(3, 3, dtype=torch.float64)) == float("inf")


@pytest.mark.parametrize("number, refused", [(99.0, False), (101.0, True)])
def test_coefficients_are_solved_up_to_a_condition_number_of_a_hundred(number, refused):
    """Rounding of float32, 6e-8, comes back that much larger: up to there layers lose less than 1e-5."""
    cosine = (number**2 - 1) / (number**2 + 1)  # of two columns of length 1, which have this condition number
    table = torch.tensor([[1.0, cosine], [0.0, (1 - cosine**2) ** 0.5]], dtype=torch.float64)
    assert numpy.linalg.cond(table.numpy()) == pytest.approx(number)
    config = helpers.tiny_config(depth=2, num_components=2, basis="learned", coefficient_matrix=table.tolist())
    if refused:
        with pytest.raises(ValueError, match="condition number 101 .*at most 100"):
            check_condition(config)
        return
    check_condition(config)
    layers = list(torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)))
    components = torch.stack(solve(layers, table, torch.float32)).double()
    assert relative(table @ components, torch.stack(layers)) < 1e-5


@pytest.mark.parametrize("fields", [{"start_degree": 1}, {"basis": "fourier"}])
def test_singular_bases_are_refused(tmp_path, fields):
    """Chebyshev polynomials from degree 1 on their own roots, and Fourier's: no component solves for them."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"])
    with pytest.raises(ValueError, match="condition number"):
        convert(str(folder), tmp_path / "bundle", **fields)
