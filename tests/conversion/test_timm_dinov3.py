"""Laws of timm's DINOv3: it comes in as transformers' and goes out again, or is refused by name.

Against timm's models, every parameter changed.

    pytest tests/conversion/test_timm_dinov3.py
"""

import pytest
import torch
from converting import changed, relative, timm_source
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, DINOv3ViTModel

import helpers
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from test_families import far, pixels, saved, stock


SHAPE = dict(embed_dim=48, depth=2, num_heads=4, num_reg_tokens=2, patch_size=4, img_size=16)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"])
@torch.no_grad()
def test_it_comes_through_at_every_image_size(tmp_path, name):
    """With biases of queries and values or without; its LayerScales folded."""
    model, path, values = timm_source(tmp_path, name)
    report = convert(f"timm:{name}", tmp_path / "bundle", weights=str(path))
    back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    assert type(back) is DINOv3ViTModel and report["relative_logit_error"] < 1e-5
    wide = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(2))
    for one in (values, wide):
        assert relative(back(one).last_hidden_state, model.forward_features(one)) < 1e-5
    assert back.config.pos_embed_rescale is None and back.config.image_size == 256  # of the name


@torch.no_grad()
def test_other_periods_and_training_settings_come_along(tmp_path):
    """What no weight shows."""
    timm = pytest.importorskip("timm")
    arguments = {**SHAPE, "rope_temperature": 30.0, "rope_rescale_coords": 2.0}
    model = changed(timm.create_model("vit_small_patch16_dinov3_qkvb", **arguments))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    given = {"weights": str(tmp_path / "weights.safetensors"), "model_args": arguments}
    convert("timm:vit_small_patch16_dinov3_qkvb", tmp_path / "bundle", **given)
    back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    assert (back.config.rope_theta, back.config.pos_embed_rescale) == (30.0, 2.0)
    values = helpers.images(3, 16)
    assert relative(back(values).last_hidden_state, model.forward_features(values)) < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("eva02_tiny_patch14_224", {}, "`rope` of .* is RotaryEmbeddingCat"),
        ("vit_small_patch16_dinov3", {"swiglu_mlp": True}, r"`blocks.0.mlp` of .* is GluMlp"),
        ("vit_small_plus_patch16_dinov3", {"scale_mlp": True}, r"`blocks.0.mlp.norm` of .* is LayerNorm .*in the MLP"),
        ("vit_small_patch16_dinov3", {"rope_grid_offset": 0.5}, "`rope.grid_offset` of .* an offset of places"),
        ("vit_small_patch16_dinov3", {"rope_rotate_half": False}, "`rope.rotate_half` of .* neighbouring channels"),
        ("vit_small_patch16_dinov3", {"use_abs_pos_emb": True}, "`use_abs_pos_emb` of .* added beside rotary ones"),
        ("vit_small_patch16_dinov3", {"img_size": 18}, "`img_size` of .* no images of 18x18, no multiple of .* 4x4"),
        ("vit_small_patch16_dinov3", {"dynamic_img_pad": True}, "`dynamic_img_pad` of .* padded"),
        ("vit_small_patch16_dinov3", {"qk_norm": True}, "`blocks.0.attn.q_norm` of .* is LayerNorm"),
    ],
)
def test_what_transformers_dinov3_is_not_is_refused_by_name(tmp_path, name, options, named):
    """Before weights are compared; nothing is written."""
    timm = pytest.importorskip("timm")
    arguments = {**SHAPE, **options}
    model = timm.create_model(name, **{**arguments, "depth": 1})
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    given = {"weights": str(tmp_path / "weights.safetensors"), "model_args": {**arguments, "depth": 1}}
    with pytest.raises(ValueError, match=named):
        convert(f"timm:{name}", tmp_path / "bundle", **given)
    assert not (tmp_path / "bundle").exists()


@torch.no_grad()
def test_a_classifier_is_refused_or_left_out(tmp_path):
    """The family has none in transformers."""
    model, path, values = timm_source(tmp_path, "vit_small_patch16_dinov3", num_classes=5, depth=1)
    given = {"weights": str(path), "model_args": {"depth": 1}}
    with pytest.raises(ValueError, match="`num_classes` of .* a classifier, which the family has not .*--headless"):
        convert("timm:vit_small_patch16_dinov3", tmp_path / "bundle", **given)
    report = convert("timm:vit_small_patch16_dinov3", tmp_path / "bundle", headless=True, **given)
    back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    assert relative(back(values).last_hidden_state, model.forward_features(values)) < 1e-5
    assert report["left_out"].keys() == {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"])
def test_weights_of_the_other_name_are_told_by_their_biases(tmp_path, name):
    """Each of the two has a name with biases and one without."""
    _, path, _ = timm_source(tmp_path, name, depth=1)
    other = name.removesuffix("_qkvb") if name.endswith("_qkvb") else f"{name}_qkvb"
    has = name.endswith("_qkvb")
    told = f"qkv_bias {has} in place of {not has}.*--model-args qkv_bias={has}"
    with pytest.raises(ValueError, match=told):
        convert(f"timm:{other}", tmp_path / "bundle", weights=str(path), model_args={"depth": 1})
    given = {"depth": 1, "qkv_bias": has}
    assert convert(f"timm:{other}", tmp_path / "bundle", weights=str(path), model_args=given)


@torch.no_grad()
def test_without_registers_it_comes_and_goes(tmp_path):
    """timm has no tensor for none."""
    timm = pytest.importorskip("timm")
    arguments = {**SHAPE, "num_reg_tokens": 0}
    model = changed(timm.create_model("vit_small_patch16_dinov3_qkvb", **arguments))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    given = {"weights": str(tmp_path / "weights.safetensors"), "model_args": arguments}
    convert("timm:vit_small_patch16_dinov3_qkvb", tmp_path / "bundle", **given)
    export(tmp_path / "bundle", tmp_path / "out", "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    values = helpers.images(3, 16)
    expected = model.forward_features(values)
    assert relative(again.forward_features(values), expected) < 1e-5
    back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    assert relative(back(values).last_hidden_state, expected) < 1e-5


@torch.no_grad()
def test_positions_move_in_training_after_an_export_as_before(tmp_path):
    """Or tuning in timm would be without what the family trains with."""
    timm = pytest.importorskip("timm")
    moves = {"pos_embed_shift": 0.1, "pos_embed_jitter": 1.2, "pos_embed_rescale": 2.0}
    convert(str(saved(stock("dinov3_vit", num_hidden_layers=1, **moves), tmp_path / "source")), tmp_path / "bundle")
    export(tmp_path / "bundle", tmp_path / "out", "timm")
    rope = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).rope
    assert [rope.shift_coords, rope.jitter_coords, rope.rescale_coords] == list(moves.values())


@pytest.mark.parametrize("family", ["dinov2_with_registers", "dinov3_vit"])
def test_images_that_timm_does_not_take_are_refused_by_an_export(tmp_path, family):
    """Transformers cuts their margins; timm asks for whole patches."""
    pytest.importorskip("timm")
    convert(str(saved(stock(family, num_hidden_layers=1, image_size=45), tmp_path / "source")), tmp_path / "bundle")
    with pytest.raises(ValueError, match="`to` timm: .* takes images of 45x45, no multiple of its patches of 7x7"):
        export(tmp_path / "bundle", tmp_path / "out", "timm")
    assert not (tmp_path / "out").exists()


def test_a_plain_model_that_timm_cannot_express_is_named_as_it_was_given(tmp_path):
    """Not by the folder that it is written into first."""
    pytest.importorskip("timm")
    source = saved(stock("dinov3_vit", num_hidden_layers=1, proj_bias=False), tmp_path / "source")
    with pytest.raises(ValueError, match=f"`proj_bias` False of {source}: no bias"):
        export(source, tmp_path / "out", "timm")


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@torch.no_grad()
def test_an_export_is_timms_model_and_comes_back(tmp_path, eps):
    """Images of any size; with the epsilon of timm's name a folder that timm loads by itself."""
    timm = pytest.importorskip("timm")
    model = stock("dinov3_vit", num_hidden_layers=2, layer_norm_eps=eps)
    convert(str(saved(model, tmp_path / "source")), tmp_path / "bundle")
    report = export(tmp_path / "bundle", tmp_path / "out", "timm")
    assert report["relative_difference"] < 1e-5 and "dinov3" in report["name"]
    if eps != 1e-5:
        assert "norm_layer=norm" in report["load"]
        return
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    for size in ((42, 42), (28, 63)):
        assert far(again.forward_features(pixels(size)), model(pixels(size)).last_hidden_state) < 1e-5
    convert(f"timm:local-dir:{tmp_path / 'out'}", tmp_path / "back")
    back = AutoModel.from_pretrained(tmp_path / "back").eval()
    assert far(back(pixels((28, 35))).last_hidden_state, model(pixels((28, 35))).last_hidden_state) < 1e-5


def test_biases_of_keys_and_other_activations_cannot_be_exported(tmp_path):
    """Sorting folds biases of norms into keys; timm has no place for them."""
    pytest.importorskip("timm")
    (tmp_path / "pictures").mkdir()
    for index in range(8):
        Image.effect_noise((42, 42), 60 + index).convert("RGB").save(tmp_path / "pictures" / f"{index}.png")
    source = str(saved(stock("dinov3_vit", num_hidden_layers=2), tmp_path / "source"))
    convert(source, tmp_path / "sorted", calibrate=str(tmp_path / "pictures"), sort=True, images=8)
    with pytest.raises(ValueError, match="`to` timm: the keys of this bundle have biases"):
        export(tmp_path / "sorted", tmp_path / "out", "timm")
    other = str(saved(stock("dinov3_vit", num_hidden_layers=2, hidden_act="relu"), tmp_path / "other"))
    convert(other, tmp_path / "bundle")
    with pytest.raises(ValueError, match="`hidden_act` relu"):
        export(tmp_path / "bundle", tmp_path / "out", "timm")
    assert not (tmp_path / "out").exists()
