"""Small networks with weights of their own, and bottlenecks written out position by position as a reference."""

import torch
from torch.nn import functional

from modeling_lingene.lingene_pruned import Attention
from modeling_lingene.lingene_vit import LinGeneViTConfig, LinGeneViTForImageClassification


SHAPE = dict(hidden_size=48, num_attention_heads=4, image_size=16, patch_size=4, num_labels=7, layer_norm_eps=1e-6)
MIXED = dict(mixers=["conv3", "attention", "none", "conv1", "attention"], intermediate_sizes=[96, 8, 40, 96, 17])


def mixed_config(**fields) -> LinGeneViTConfig:
    """Five layers, all four mixers, MLPs of five sizes."""
    return LinGeneViTConfig(**{**SHAPE, **MIXED, **fields})


def dense_config(layers: int = 4, units: int = 96, **fields) -> LinGeneViTConfig:
    return LinGeneViTConfig(
        **{**SHAPE, "mixers": ["attention"] * layers, "intermediate_sizes": [units] * layers, **fields}
    )


def network(config: LinGeneViTConfig, seed: int = 0, dtype=torch.float32) -> LinGeneViTForImageClassification:
    """In evaluation mode, every parameter and every BatchNorm statistic changed by seeded noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LinGeneViTForImageClassification(config).to(dtype).eval()
        shake(model)
    return model


@torch.no_grad()
def shake(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.3, 3)


def by_position(patches: torch.Tensor, attention: Attention, shares: torch.Tensor, norm, positions) -> torch.Tensor:
    """A bottleneck as SPViT writes it, one kernel position and one head after the other; none of the package's code.

    Args:
        patches: (b, d, height, width).
        shares: P (h, 9).
        positions: (p, row, column) of the kernel's, from 0.
    """
    heads, (_, d, height, width) = len(shares), patches.shape
    size = d // heads
    narrow, up = 0, 0
    padded = functional.pad(patches, (1, 1, 1, 1))
    for p, row, column in positions:
        down = sum(shares[j, p] * attention.value.weight[j * size : (j + 1) * size] for j in range(heads))
        bias = sum(shares[j, p] * attention.value.bias[j * size : (j + 1) * size] for j in range(heads))
        up = up + sum(shares[j, p] * attention.output.weight[:, j * size : (j + 1) * size] for j in range(heads))
        seen = padded[:, :, row : row + height, column : column + width]
        narrow = narrow + torch.einsum("sd,bdyx->bsyx", down, seen) + bias[None, :, None, None]
    mean, spread = norm.running_mean, torch.sqrt(norm.running_var + norm.eps)
    normed = (narrow - mean[:, None, None]) / spread[:, None, None]
    normed = normed * norm.weight[:, None, None] + norm.bias[:, None, None]
    return torch.einsum("ds,bsyx->bdyx", up, normed.clamp(min=0)) + attention.output.bias[:, None, None]
