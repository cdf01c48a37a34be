"""Laws of conversion: what a bundle cannot express is refused by its name, and nothing is written.

pytest tests/conversion/test_conversions_refused.py
"""

import json
import time

import pytest
import torch
from converting import CLASSIFIERS, MLP, pixels, source
from safetensors.torch import load_file, save_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from modeling_lingene.conversion.convert import convert


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
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


@pytest.mark.parametrize("option", ["proj_bias", "mlp_bias"])
def test_dinov3_of_other_blocks_is_refused(tmp_path, option):
    """Zero is a bias that a trained one would not keep."""
    DINOv3ViTModel(DINOv3ViTConfig(**MLP, num_register_tokens=1, **{option: False})).save_pretrained(
        tmp_path / "source"
    )
    with pytest.raises(ValueError, match=f"`{option}` False of .* cannot be expressed by a bundle"):
        convert(str(tmp_path / "source"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("part", ["q_proj", "v_proj"])
def test_biases_that_a_dinov3_should_have_are_missed(tmp_path, part):
    """transformers fills them with zeros, so that no comparison shows it."""
    DINOv3ViTModel(DINOv3ViTConfig(**MLP, num_register_tokens=1)).save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    state = {key: tensor for key, tensor in load_file(file).items() if not key.endswith(f"{part}.bias")}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks `blocks\.0\.attention\.(query|value)\.bias`"):
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
        ("vit_base_patch16_siglip_224", "attn_pool.*attention pooling"),
        ("vit_small_patch16_18x2_224", "blocks.0"),
        ("vit_base_r50_s16_224", "patch_embed"),
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
