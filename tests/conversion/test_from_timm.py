"""Laws of conversion from timm: its models come through, also from training states, old names and other shapes.

pytest tests/conversion/test_from_timm.py
"""

import json

import pytest
import torch
from converting import changed, relative, timm_source
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersModel,
)

import helpers
from lingene.options import arguments
from modeling_lingene import cli
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from modeling_lingene.loading_lingene import stock_model


# Of deit3 and DINOv2 with LayerScale; deit3 adds no position to the class token, nor does DINOv2 with registers.
TIMM = ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2"]
TIMM += [pytest.param("vit_small_patch14_dinov2", marks=pytest.mark.slow)]


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
    from modeling_lingene.conversion import timm_vit

    options = {"num_classes": 7, "img_size": 42, "no_embed_class": positions == "of patches"}
    model = changed(timm.create_model(name, **options))
    tensors = model.state_dict()
    config = timm_vit.vit_config(model)
    outside = timm_vit.vit_outside(tensors, model, config)
    shapes = config.shared_shapes() | config.head_shapes()
    assert {key: tuple(tensor.shape) for key, tensor in outside.items()} == shapes
    layers = {
        part: [timm_vit.vit_layer(tensors, model.embed_dim, part, layer) for layer in range(12)]
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


SWIN = "swin_tiny_patch4_window7_224"
# Windows that do not divide a grid of patches are padded, and of a side that one takes whole nothing is shifted: timm
# does both in a way of its own.
SWINS = [
    ({"img_size": 32, "window_size": 4}, None),
    ({"img_size": (64, 96), "window_size": 4}, None),
    ({"img_size": 36, "window_size": 4}, r"`img_size` of .* windows of 4x4 that are shifted over the 9x9 patches"),
    ({"img_size": 40, "window_size": 4}, r"`img_size` of .* shifted over the 10x10 patches of stage 1"),
    ({"img_size": 32, "window_size": 3}, r"`img_size` of .* windows of 3x3 .* 8x8 patches of stage 1"),
    ({"img_size": (32, 64), "window_size": 4}, r"`img_size` of .* shifted over the 4x8 patches of stage 2"),
    ({"img_size": (64, 32), "window_size": 4}, r"`img_size` of .* shifted over the 8x4 patches of stage 2"),
    ({"img_size": 32, "window_size": 4, "always_partition": True}, r"`img_size` of .* 4x4 patches of stage 2"),
    ({"img_size": 32, "window_size": 4, "patch_size": (4, 2)}, "`patch_size` of .* patches that are not square"),
    ({"img_size": 32, "window_size": 4, "head_dim": 4}, "`head_dim` of .* heads of a size of their own"),
]


@pytest.mark.parametrize("arguments, refused", SWINS, ids=str)
@torch.no_grad()
def test_a_swin_of_fewer_components_is_timms_function_or_refused(tmp_path, monkeypatch, arguments, refused):
    """All layers of the decomposed stage are alike, so that one component loses nothing; what is no bundle's function
    was converted without a word, since a fit may have errors. Where no list knows it, the answers tell.
    """
    timm = pytest.importorskip("timm")
    from modeling_lingene.conversion import timm_swin

    arguments = {"embed_dim": 16, "depths": (2, 4), "num_heads": (2, 4), **arguments}
    model = changed(timm.create_model(SWIN, num_classes=5, **arguments), noise=0.2)
    first, *others = model.layers[1].blocks
    for block in others:
        for mine, theirs in zip(block.parameters(), first.parameters()):
            mine.copy_(theirs)
    path = tmp_path / "weights.safetensors"
    save_file({key: tensor for key, tensor in model.state_dict().items() if "attn_mask" not in key}, path)

    def converted(folder):
        convert(f"timm:{SWIN}", tmp_path / folder, weights=str(path), model_args=arguments, num_components=1)

    if refused is None:
        converted("bundle")
        height, width = model.patch_embed.img_size
        values = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))
        back = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
        assert relative(back(values).logits, model(values)) < 1e-5
        return
    with pytest.raises(ValueError, match=refused):
        converted("bundle")
    if "img_size" in refused:
        monkeypatch.setattr(timm_swin, "_check_shifts", lambda *_: None)
        with pytest.raises(RuntimeError, match="The bundle's logits differ from those of .* nothing should be lost"):
            converted("bundle")
    assert not (tmp_path / "bundle").exists()
