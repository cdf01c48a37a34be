"""Laws of teachers without labels: frozen encoders that give their last tokens, behind their own preprocessing.

What a teacher must give is computed by the stock model from the same pixels.

    pytest tests/training/test_feature_teachers.py
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BeitConfig,
    BeitModel,
    ChineseCLIPVisionConfig,
    ChineseCLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SwinConfig,
    SwinModel,
    Swinv2Config,
    Swinv2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

import helpers
from modeling_lingene import LinGeneModel
from modeling_lingene.images.batches import image_processor
from modeling_lingene.training.encoders import Encoder, Preprocessing, bundle_encoder, load_encoder


NORMALISED = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
STUDENT = Preprocessing(image_processor(16), torch.device("cpu"))  # four by four patches of four pixels
PATCH = (4, 4)
SHAPE = dict(hidden_size=16, num_attention_heads=2, num_hidden_layers=2)
VIT = dict(**SHAPE, intermediate_size=32)
DINO = dict(**SHAPE, mlp_ratio=2)


def noisy(make: Callable[[], nn.Module]) -> nn.Module:
    """The same at every call, every parameter changed, so that no initial value passes for it."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def saved(folder: Path, make: Callable[[], nn.Module], size: int, **fields) -> str:
    noisy(make).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": size, "width": size}, **{**NORMALISED, **fields}).save_pretrained(folder)
    return str(folder)


def seen(size: int, own: dict = NORMALISED) -> tuple[dict, torch.Tensor]:
    """A batch as the student gets it, and the pixels that the teacher's own preprocessing makes of it."""
    values = helpers.images(3)
    pixels = values * 0.5 + 0.5
    if size != 16:
        pixels = nn.functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(own[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    return {"pixel_values": values}, (pixels - mean) / std


MODELS = {
    "vit": (lambda: ViTModel(ViTConfig(image_size=16, patch_size=4, **VIT)), 16, 1),
    "vit of another size": (lambda: ViTModel(ViTConfig(image_size=20, patch_size=5, **VIT)), 20, 1),
    "classifier": (lambda: ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **VIT)), 16, 1),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(image_size=28, patch_size=4, **DINO)), 16, 1),
    "registers": (
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(image_size=16, patch_size=4, num_register_tokens=3, **DINO)
        ),
        16,
        4,
    ),
    "dinov3": (
        lambda: DINOv3ViTModel(DINOv3ViTConfig(image_size=64, patch_size=4, num_register_tokens=3, **DINO)),
        16,
        4,
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_transformers_encoder_gives_its_final_tokens_without_registers(tmp_path, kind):
    """Class token first, then as many patches as the student has; DINOv2 at another size than it was made for."""
    make, size, prefix = MODELS[kind]
    name = saved(tmp_path / "teacher", make, size)
    teacher = load_encoder(name, STUDENT, PATCH)
    batch, pixels = seen(size)
    model = noisy(make)
    with torch.no_grad():
        tokens = getattr(model, "vit", model)(pixels).last_hidden_state
    expected = torch.cat((tokens[:, :1], tokens[:, prefix:]), 1)
    got = teacher(batch)
    assert got.shape == (3, 17, 16) and teacher.shape == (17, 16) and teacher.width == 16
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert not got.requires_grad and not any(parameter.requires_grad for parameter in teacher.model.parameters())


def timm_folder(folder: Path, kind: str = "vit_tiny_patch16_224", **fields) -> tuple[str, nn.Module]:
    timm = pytest.importorskip("timm")
    shape = dict(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, **fields)
    model = noisy(lambda: timm.create_model(kind, **shape, num_classes=5))
    model.pretrained_cfg |= {"mean": NORMALISED["image_mean"], "std": NORMALISED["image_std"]}
    timm.models.save_for_hf(model, str(folder), model_args=shape)
    return f"timm:local-dir:{folder}", model


@pytest.mark.parametrize("registers", [0, 4])
def test_a_timm_encoder_gives_its_final_tokens_without_registers(tmp_path, registers):
    """Its classifier is left out."""
    name, model = timm_folder(tmp_path / "teacher", reg_tokens=registers)
    batch, pixels = seen(16)
    with torch.no_grad():
        tokens = model.forward_features(pixels)
    expected = torch.cat((tokens[:, :1], tokens[:, 1 + registers :]), 1)
    torch.testing.assert_close(load_encoder(name, STUDENT, PATCH)(batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_class", [None, LinGeneModel])
def test_a_bundle_is_a_teacher_at_full_size_behind_the_students_pixels(tmp_path, model_class):
    """With or without a classifier, from all of its components; its own preprocessing has no part in it."""
    config = helpers.tiny_config()
    helpers.tiny_model(config, **({"model_class": model_class} if model_class else {})).save_pretrained(tmp_path)
    vit = helpers.reference_vit(helpers.tiny_model(config), 6).vit if model_class is None else None
    with torch.no_grad():
        if vit is None:
            vit = helpers.tiny_model(config, model_class=LinGeneModel).materialise()
        expected = vit(helpers.images()).last_hidden_state
    teacher = bundle_encoder(str(tmp_path), STUDENT, PATCH)
    torch.testing.assert_close(teacher({"pixel_values": helpers.images()}), expected, atol=1e-4, rtol=1e-4)


def test_a_teacher_with_another_grid_is_refused_and_told_which_sizes_fit(tmp_path):
    """Both ways out are right: the student's size that is named fits, and the teacher's."""

    def make() -> ViTModel:
        return ViTModel(ViTConfig(image_size=30, patch_size=5, **VIT))

    name = saved(tmp_path / "teacher", make, 30)
    with pytest.raises(ValueError) as told:
        load_encoder(name, STUDENT, PATCH)
    message = str(told.value)
    assert message.startswith("`teacher`") and "6x6 patches of its 30x30 pixels" in message
    assert "the student 4x4 of 16x16" in message
    assert "24x24 pixels (`image_size`)" in message and "20x20 (`teacher_size` 20)" in message
    with pytest.raises(ValueError, match=r"0x0 patches .* They fit where the teacher sees 20x20 \("):
        load_encoder(name, STUDENT, PATCH, 4)
    load_encoder(name, Preprocessing(image_processor(24), torch.device("cpu")), PATCH)
    batch, pixels = seen(20)
    with torch.no_grad():
        expected = noisy(make)(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(load_encoder(name, STUDENT, PATCH, 20)(batch), expected, atol=1e-4, rtol=1e-4)


def test_a_timm_teacher_takes_the_size_that_it_is_told(tmp_path):
    """timm resamples its positions as it loads them."""
    name, _ = timm_folder(tmp_path / "teacher")
    larger = Preprocessing(image_processor(24), torch.device("cpu"))
    with pytest.raises(ValueError, match="24x24 \\(`teacher_size` 24\\)"):
        load_encoder(name, larger, PATCH)
    got = load_encoder(name, larger, PATCH, 24)({"pixel_values": helpers.images(height=24)})
    assert got.shape == (3, 37, 16)


def test_a_model_without_class_token_and_patches_is_refused(tmp_path):
    """A convolutional network, and a ViT that has registers in place of its class token."""

    def make() -> ConvNextModel:
        return ConvNextModel(ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]))

    with pytest.raises(ValueError, match="`teacher` .* class token and .*patches"):
        load_encoder(saved(tmp_path / "convnext", make, 16), STUDENT, PATCH)
    name, _ = timm_folder(tmp_path / "gap", class_token=False, reg_tokens=2, global_pool="avg")
    with pytest.raises(ValueError, match="`teacher` .* no ViT with a class token and patches"):
        load_encoder(name, STUDENT, PATCH)


SWIN = dict(embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2, image_size=32, patch_size=4)
WITHOUT = {
    "swin": (lambda: SwinModel(SwinConfig(**SWIN)), "is no ViT with a class token and patches; use one that is"),
    "swin v2": (
        lambda: Swinv2Model(Swinv2Config(**SWIN)),
        r"takes no pictures of 32x32 pixels: it gives \(1, 16, 16\), no class token and 64 patches",
    ),
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_transformers_encoder_without_class_token_is_told_no_size_that_fits(tmp_path, kind):
    """Its first patches lie in another grid than the student's, and no size would make a token of each."""
    make, message = WITHOUT[kind]
    name = saved(tmp_path / "teacher", make, 32)
    for size in (0, 16):
        with pytest.raises(ValueError, match="`teacher` ") as told:
            load_encoder(name, STUDENT, PATCH, size)
        assert "teacher_size" not in str(told.value) and "image_size" not in str(told.value)
        assert size or re.search(message, str(told.value))


def beit(mean_pooling: bool) -> BeitModel:
    return BeitModel(BeitConfig(image_size=16, patch_size=4, use_mean_pooling=mean_pooling, **VIT))


def chinese_clip() -> ChineseCLIPVisionModel:
    return ChineseCLIPVisionModel(ChineseCLIPVisionConfig(image_size=16, patch_size=4, **VIT))


UNNORMED = "`teacher` .* norms no tokens but their mean, or none at all.*; use an encoder whose last LayerNorm"


@pytest.mark.parametrize("make", [partial(beit, True), chinese_clip], ids=["mean alone", "class token alone"])
def test_a_transformers_encoder_whose_last_tokens_are_not_normed_is_no_teacher(tmp_path, make):
    """It gives the stream itself, the sum of all layers, whose length no LayerNorm has set: what its last layer
    gives."""
    model, last = noisy(make), []
    layers = next(part for part in model.modules() if isinstance(part, nn.ModuleList))
    layers[-1].register_forward_hook(lambda layer, asked, output: last.append(output))
    with torch.no_grad():
        tokens = model(seen(16)[1]).last_hidden_state
    assert torch.equal(tokens, last[0] if torch.is_tensor(last[0]) else last[0][0])
    with pytest.raises(ValueError, match=UNNORMED):
        load_encoder(saved(tmp_path / "teacher", make, 16), STUDENT, PATCH)


def test_the_same_encoder_with_a_last_norm_teaches(tmp_path):
    """A BEiT, which transformers makes with either."""
    make = partial(beit, False)
    batch, pixels = seen(16)
    with torch.no_grad():
        expected = noisy(make)(pixels).last_hidden_state
    teacher = load_encoder(saved(tmp_path / "teacher", make, 16), STUDENT, PATCH)
    torch.testing.assert_close(teacher(batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["vit_tiny_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224"])
def test_a_timm_encoder_that_norms_the_mean_alone_is_no_teacher(tmp_path, kind):
    """timm's `fc_norm` stands behind the mean of the tokens, in place of the norm before it. With that norm, which
    timm makes for the pooling by class token, the same encoder teaches."""
    averaged, model = timm_folder(tmp_path / "averaged", kind, global_pool="avg")
    assert isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.LayerNorm)
    with pytest.raises(ValueError, match=UNNORMED):
        load_encoder(averaged, STUDENT, PATCH)
    name, model = timm_folder(tmp_path / "teacher", kind, global_pool="token")
    batch, pixels = seen(16)
    with torch.no_grad():
        expected = model.forward_features(pixels)
    torch.testing.assert_close(load_encoder(name, STUDENT, PATCH)(batch), expected, atol=1e-4, rtol=1e-4)


def test_a_size_that_a_teacher_cannot_take_is_refused_in_one_line():
    """Before training: a probe of one black picture finds it."""

    class Fixed(nn.Module):
        config = ViTConfig(image_size=16, patch_size=4)

        def forward(self, pixel_values):
            raise RuntimeError("no such\nsize")

    with pytest.raises(ValueError, match="`teacher` mine takes no pictures of 16x16 pixels: no such size"):
        Encoder(Fixed(), None, [0.5] * 3, [0.5] * 3, STUDENT, "mine", PATCH)


@pytest.mark.parametrize("name", ["/absent/teacher", "timm:no_such_model", "timm:local-dir:/absent"])
def test_an_encoder_that_is_not_there_is_refused_by_name(name):
    """In one line."""
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="`teacher`") as error:
        load_encoder(name, STUDENT, PATCH)
    assert name in str(error.value) and len(str(error.value).splitlines()) == 1
