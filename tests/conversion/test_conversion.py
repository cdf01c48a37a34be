"""Laws of conversion: whatever a bundle can express comes through exactly, everything else is refused by name.

Against transformers' and timm's own models, every parameter changed by noise, LayerNorms, biases and LayerScales too.

    pytest tests/conversion/test_conversion.py
"""

import copy
import json
import time

import numpy
import pytest
import torch
from numpy.polynomial import chebyshev
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
    ViTMSNModel,
)

import helpers
from lingene.options import arguments
from modeling_lingene import LinGeneForImageClassification, LinGeneModel, cli
from modeling_lingene.conversion.closed_form import check_condition, condition, solve
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from modeling_lingene.folders import read_processor
from modeling_lingene.images.data import LabelledImages, batches
from modeling_lingene.loading_lingene import stock_model
from modeling_lingene.measuring.evaluation import evaluate_model


SHAPE = dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=6, image_size=16, patch_size=4)
MLP = {**SHAPE, "intermediate_size": 96}
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
}
CLASSIFIERS = {
    "vit": (ViTForImageClassification, ViTConfig(**MLP, num_labels=7)),
    "vit without biases": (ViTForImageClassification, ViTConfig(**MLP, num_labels=7, qkv_bias=False)),
    "vit, rectangles": (
        ViTForImageClassification,
        ViTConfig(**{**MLP, "image_size": [16, 24], "patch_size": [4, 8]}, num_labels=7),
    ),
    "vit, one channel": (ViTForImageClassification, ViTConfig(**MLP, num_labels=7, num_channels=1)),
    "msn": (ViTMSNForImageClassification, ViTMSNConfig(**MLP, num_labels=7)),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config(**SHAPE, num_labels=7, layerscale_value=0.3)),
    "dinov2 with registers": (
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersConfig(**SHAPE, num_labels=7, layerscale_value=0.3),
    ),
}
# Of deit3 and DINOv2 with LayerScale; deit3 adds no position to the class token, nor does DINOv2 with registers.
TIMM = ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch14_dinov2"]
TIMM += ["vit_small_patch14_reg4_dinov2"]


def changed(model, seed=0, noise=0.05):
    """Every parameter moved away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return model.eval()


def pixels(config, batch=3):
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, config.num_channels, height, width, generator=generator)


def source(tmp_path, model_class, config, dtype=None):
    model = changed(model_class(config))
    folder = tmp_path / "source"
    (model if dtype is None else model.to(dtype)).save_pretrained(folder)
    return model.float(), folder


def relative(one, other):
    return float((one - other).norm() / other.norm())


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
    if "dinov2" in kind:
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
    else:
        assert relative(back(values).last_hidden_state, model(values).last_hidden_state) < 1e-5
        extra = {"pooler.dense.weight", "pooler.dense.bias"} if type(model) is ViTModel else set()
        assert report["left_out"].keys() == extra


def timm_source(tmp_path, name, file="weights.safetensors", **options):
    """A timm model at a small image size, and the file of its weights; the name alone says another size."""
    timm = pytest.importorskip("timm")
    patch = 14 if "patch14" in name else 16
    model = changed(timm.create_model(name, img_size=3 * patch, **options))
    path = tmp_path / file
    if file.endswith(".safetensors"):
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return model, path, torch.randn(3, 3, 3 * patch, 3 * patch, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_a_timm_model_comes_through(tmp_path, name):
    """LayerScale folded, no position for the class token expressed, the image size taken from the positions."""
    model, path, values = timm_source(tmp_path, name, num_classes=0 if "dinov2" in name else 7)
    report = convert(f"timm:{name}", tmp_path / "bundle", weights=str(path))
    if "dinov2" in name:
        back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
        assert type(back) is (Dinov2WithRegistersModel if "reg4" in name else Dinov2Model)
        assert relative(back(values).last_hidden_state, model.forward_features(values)) < 1e-5
        assert relative(back(values).pooler_output, model(values)) < 1e-5
    else:
        back = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
        assert relative(back(values).logits, model(values)) < 1e-5
    assert report["relative_logit_error"] < 1e-5
    mean = json.loads((tmp_path / "bundle" / "preprocessor_config.json").read_text())["image_mean"]
    assert mean == pytest.approx(list(model.pretrained_cfg["mean"]))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("positions", ["of patches", "of all tokens"])
@torch.no_grad()
def test_a_timm_classifier_on_the_class_token_is_half_of_a_head(tmp_path, name, positions):
    """DINOv2's head in transformers reads the patches too: by nothing. Positions of registers are part of them."""
    timm = pytest.importorskip("timm")
    from modeling_lingene.conversion import from_timm

    options = {"num_classes": 7, "img_size": 42, "no_embed_class": positions == "of patches"}
    model = changed(timm.create_model(name, **options))
    tensors = model.state_dict()
    config = from_timm._vit_config(model, ())
    outside = from_timm._outside(tensors, model, config)
    shapes = config.shared_shapes() | config.head_shapes()
    assert {key: tuple(tensor.shape) for key, tensor in outside.items()} == shapes
    layers = {
        part: [from_timm._block(tensors, model.embed_dim, part, layer) for layer in range(12)]
        for part in config.component_shapes()
    }
    back = stock_model(outside, layers, config.stock_config(config.size()), True, dtype=torch.float32).eval()
    values = torch.randn(3, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    assert relative(back(values).logits, model(values)) < 1e-5


@torch.no_grad()
def test_a_network_within_a_training_state_is_found_by_its_prefix(tmp_path):
    """DINO and MoCo v3 publish two networks in one file, with their optimisers; none of it is taken by guess."""
    model, _, values = timm_source(tmp_path, "vit_tiny_patch16_224", num_classes=0)
    other = changed(type(model)(img_size=48, embed_dim=192, num_heads=3, num_classes=0), seed=3)
    state = {
        "state_dict": {
            **{f"module.base_encoder.{key}": value for key, value in model.state_dict().items()},
            **{f"module.momentum_encoder.{key}": value for key, value in other.state_dict().items()},
        },
        "epoch": 300,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    }
    torch.save(state, tmp_path / "moco.pth.tar")
    given = {"weights": str(tmp_path / "moco.pth.tar")}
    with pytest.raises(ValueError, match="several networks.*state_dict.module.base_encoder..*--prefix"):
        convert("timm:vit_tiny_patch16_224", tmp_path / "bundle", **given)
    with pytest.raises(ValueError, match="`prefix` 'base' leads to no network"):
        convert("timm:vit_tiny_patch16_224", tmp_path / "bundle", prefix="base", **given)
    prefix = "state_dict.module.base_encoder."
    report = convert("timm:vit_tiny_patch16_224", tmp_path / "bundle", prefix=prefix, **given)
    back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    assert relative(back(values).last_hidden_state, model.forward_features(values)) < 1e-5
    assert "optimizer.state.0.exp_avg" in report["left_out"]


@torch.no_grad()
def test_deit_iii_in_its_published_names(tmp_path):
    """`gamma_1` is what timm calls `ls1.gamma`."""
    model, _, values = timm_source(tmp_path, "deit3_small_patch16_224", num_classes=7)
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in model.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "deit3.pth")
    convert("timm:deit3_small_patch16_224", tmp_path / "bundle", weights=str(tmp_path / "deit3.pth"))
    back = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
    assert relative(back(values).logits, model(values)) < 1e-5


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


def other_shape(tmp_path, **arguments):
    """A network of timm of another shape than its name says, changed, as a file."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return model


@pytest.mark.parametrize(
    "arguments", [{"depth": 6}, {"depth": 14}, {"embed_dim": 96}, {"depth": 3, "embed_dim": 128, "num_heads": 2}]
)
def test_weights_of_another_shape_than_timms_name_come_in_with_model_args(tmp_path, capsys, arguments):
    """Our own export writes such files; the error says what to give, and with that it is the same function."""
    model = other_shape(tmp_path, **arguments)
    line = ["convert", "timm:vit_tiny_patch16_224", "--weights", str(tmp_path / "weights.safetensors")]
    line += ["--out", str(tmp_path / "bundle"), "--quiet"]
    assert cli.main(line) == 2 and not (tmp_path / "bundle").exists()
    said = capsys.readouterr().err.splitlines()[-1]
    asked = {name: value for name, value in arguments.items() if name != "num_heads"}
    assert f"say so with --model-args {','.join(f'{name}={value}' for name, value in asked.items())}" in said
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    assert cli.main([*line, "--model-args", given]) == 0
    found = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
    values = helpers.images(3, 32)
    with torch.no_grad():
        assert torch.allclose(found(values).logits, model(values), atol=1e-4)


def test_what_is_exported_to_timm_is_converted_again_by_the_arguments_that_the_export_writes(tmp_path):
    """Round the circle, by `export.json` alone."""
    pytest.importorskip("timm")
    config = helpers.tiny_config(layer_norm_eps=1e-6)
    bundle = helpers.bundle(tmp_path / "bundle", config)
    report = export(bundle, tmp_path / "timm", "timm", depth=4, width_ratio="1/2")
    text = ",".join(f"{name}={value}" for name, value in report["arguments"].items() if name != "num_classes")
    convert(
        f"timm:{report['name']}",
        tmp_path / "again",
        weights=str(tmp_path / "timm" / "model.safetensors"),
        model_args=arguments(text),
    )
    values = helpers.images(3)
    with torch.no_grad():
        found = AutoModelForImageClassification.from_pretrained(tmp_path / "again").eval()(values).logits
        expected = helpers.reference_vit(helpers.tiny_model(config), 4, "1/2")(values).logits
    assert torch.allclose(found, expected, atol=1e-4)


def test_model_args_belong_to_the_weights_of_a_file(tmp_path):
    """Of a name alone the weights are those of the name."""
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="`model_args` describes the network of a file"):
        convert("timm:vit_tiny_patch16_224", tmp_path / "out", model_args={"depth": 6})
    with pytest.raises(ValueError, match="`model_args` belong to timm:NAME"):
        convert(str(tmp_path), tmp_path / "out", model_args={"depth": 6})


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


@pytest.mark.parametrize("fields", [{"start_degree": 1}, {"basis": "fourier"}])
def test_singular_bases_are_refused(tmp_path, fields):
    """Chebyshev polynomials from degree 1 on their own roots, and Fourier's: no component solves for them."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"])
    with pytest.raises(ValueError, match="condition number"):
        convert(str(folder), tmp_path / "bundle", **fields)


def test_half_precision_is_solved_in_double_and_stored_in_single(tmp_path):
    """Components in half precision would lose what the layers had."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"], dtype=torch.bfloat16)
    report = convert(str(folder), tmp_path / "bundle")
    assert report["relative_logit_error"] < 1e-5
    assert load_file(tmp_path / "bundle" / "shared.safetensors")["layernorm.weight"].dtype == torch.float32


def test_fewer_layers_are_selected(tmp_path):
    """The depth map of a converted bundle: rows of the kept layers, no other layer."""
    model, folder = source(tmp_path, *CLASSIFIERS["vit"])
    convert(str(folder), tmp_path / "bundle")
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle", depth=3)
    for layer, kept in enumerate((0, 2, 4)):
        own = small.vit.layers[layer].mlp.fc1.weight
        assert torch.allclose(own, model.vit.layers[kept].mlp.fc1.weight, atol=1e-6)


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


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "deit"}, "distillation token"),
        ({"model_type": "dinov3_vit"}, "rotary positions"),
        ({"model_type": "beit"}, "relative positions"),
        ({"model_type": "resnet"}, "`model_type` 'resnet'"),
        ({"qk_norm": True}, "`qk_norm`"),
        ({"pruned_heads": {"0": [1]}}, "`pruned_heads`"),
        ({"auto_map": {"AutoModel": "a.B"}}, "`auto_map`"),
        ({"hidden_act": "swish_of_mine"}, "`hidden_act`"),
    ],
)
def test_options_that_are_not_on_the_list_are_refused_by_name_at_once(tmp_path, changes, named):
    """Before any weight is read."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"])
    edit(folder, **changes)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=named):
        convert(str(folder), tmp_path / "bundle")
    assert time.monotonic() - begun < 5 and not (tmp_path / "bundle").exists()


def test_dinov2_with_swiglu_is_refused(tmp_path):
    """Its giant."""
    config = Dinov2Config(**SHAPE, use_swiglu_ffn=True)
    Dinov2Model(config).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="`use_swiglu_ffn` True.*SwiGLU"):
        convert(str(tmp_path / "source"), tmp_path / "bundle")


def test_a_real_deit_with_its_distillation_token_is_refused(tmp_path):
    """As transformers saves it."""
    config = DeiTConfig(**MLP, num_labels=7)
    DeiTForImageClassification(config).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="distillation token"):
        convert(str(tmp_path / "source"), tmp_path / "bundle")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("vit.encoder.layer.2.output.dense.bias"), "blocks.2.mlp.fc2.bias"),
        (lambda state: state.update({"vit.encoder.layer.0.gate": torch.ones(1)}), "encoder.layer.0.gate"),
        (lambda state: state.update({"vit.layernorm.weight": torch.ones(7)}), "layernorm.weight"),
        (lambda state: state["vit.embeddings.cls_token"].fill_(float("nan")), "not finite"),
        (lambda state: state.update({"layernorm.weight": torch.ones(48)}), "twice"),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, change, named):
    """None missing, none left over, none of another shape, none broken: by name."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"])
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=named):
        convert(str(folder), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("deit_tiny_distilled_patch16_224", "VisionTransformerDistilled"),
        ("vit_base_patch16_clip_224", "norm_pre.*a norm before the blocks"),
        ("vit_medium_patch16_reg4_gap_256", "`norm`.*after pooling"),
        ("vit_giant_patch14_dinov2", "mlp"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
        ("vit_base_patch16_siglip_224", "attn_pool.*attention pooling"),
        ("vit_small_patch16_18x2_224", "blocks.0"),
        ("vit_base_r50_s16_224", "patch_embed"),
        ("beit_base_patch16_224", "Beit"),
        ("vit_base_patch16_gap_224", "class token|global_pool|fc_norm"),
        ("resnet18", "ResNet"),
        ("no_such_model", "cannot be built"),
    ],
)
def test_timm_models_that_cannot_be_expressed_are_refused_by_name(tmp_path, name, named):
    """The module or option, in the words people use for it; before weights are looked for."""
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=named):
        convert(f"timm:{name}", tmp_path / "bundle", weights="not-there.safetensors")


def test_a_classifier_on_the_mean_of_tokens_is_refused(tmp_path):
    """Of a model whose modules are all known: only an option differs."""
    timm = pytest.importorskip("timm")
    from modeling_lingene.conversion.from_timm import check_model

    model = timm.create_model("vit_tiny_patch16_224", global_pool="avg", fc_norm=False)
    with pytest.raises(ValueError, match="`global_pool`.*'avg' pooling in a classifier"):
        check_model("it", model, head_matters=True)
    check_model("it", model, head_matters=False)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"patch_embed.proj.weight": torch.zeros(192, 3, 16, 16)}, "lacks"),
        ({"something": torch.zeros(3)}, "holds no `patch_embed.proj.weight`"),
        ({"a": print}, "more than tensors"),
    ],
)
def test_files_that_are_no_state_dict_of_it_are_refused(tmp_path, content, named):
    """Also those whose reading would run code."""
    pytest.importorskip("timm")
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=named):
        convert("timm:vit_tiny_patch16_224", tmp_path / "bundle", weights=str(tmp_path / "file.pth"))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    """Absent, cut off, or nothing of the kind."""
    pytest.importorskip("timm")
    (tmp_path / "a.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "a.pth").write_bytes(b"nothing")
    for file in ("a.safetensors", "a.pth", "absent.pth"):
        with pytest.raises(ValueError, match="`weights`"):
            convert("timm:vit_tiny_patch16_224", tmp_path / "bundle", weights=str(tmp_path / file))


def test_places_and_counts_that_cannot_be_are_refused(tmp_path):
    """Before the source is read."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="`out`"):
        convert(str(folder), tmp_path / "full")
    for count in (0, 7, 1.5):
        with pytest.raises(ValueError, match="`num_components`"):
            convert(str(folder), tmp_path / "bundle", num_components=count)
    with pytest.raises(ValueError, match="`weights`, `prefix` and `model_args`"):
        convert(str(folder), tmp_path / "bundle", weights="x")
    with pytest.raises(ValueError, match="`source`"):
        convert(str(tmp_path / "absent"), tmp_path / "bundle")


def test_a_conversion_that_loses_what_it_should_not_leaves_nothing(tmp_path, monkeypatch):
    """An option that no list knows would show in the logits only."""
    _, folder = source(tmp_path, *CLASSIFIERS["vit"])
    from modeling_lingene.conversion import convert as module

    monkeypatch.setattr(module, "LOSSLESS", 1e-12)
    with pytest.raises(RuntimeError, match="nothing was written"):
        convert(str(folder), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_without_finite_logits_is_no_lossless_bundle(tmp_path):
    """Its weights are finite, its scores are not: what compares with nothing must not pass for equal."""
    model, folder = source(tmp_path, *CLASSIFIERS["vit"])
    with torch.no_grad():
        for projection in (model.vit.layers[0].attention.q_proj, model.vit.layers[0].attention.k_proj):
            projection.weight.mul_(1e21)
    model.save_pretrained(folder)
    assert model(pixels(model.config)).logits.isnan().any()
    with pytest.raises(RuntimeError, match="nothing was written"):
        convert(str(folder), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_tiny_bundle_of_the_other_tests_converts_too(tmp_path):
    """A size of a bundle, written as a plain model, is a source like any other."""
    bundle = helpers.bundle(tmp_path / "tiny")
    AutoModelForImageClassification.from_pretrained(bundle, depth=4).save_pretrained(tmp_path / "plain")
    assert convert(str(tmp_path / "plain"), tmp_path / "bundle")["depth"] == 4


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
