"""Stock models, every parameter changed, that the tests of turned channels share."""

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
)


SHAPE = dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=6, intermediate_size=96)
SHAPE |= dict(image_size=16, patch_size=4)


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
