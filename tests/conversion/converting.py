"""Stock models of transformers and timm, every parameter changed, as files: what the tests of conversion share."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)


SHAPE = dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=6, image_size=16, patch_size=4)
MLP = {**SHAPE, "intermediate_size": 96}
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
    """A changed stock model in float32, and the folder that it was saved into, in another dtype if asked."""
    model = changed(model_class(config))
    folder = tmp_path / "source"
    (model if dtype is None else model.to(dtype)).save_pretrained(folder)
    return model.float(), folder


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


def relative(one, other):
    return float((one - other).norm() / other.norm())
