"""Small networks with weights of their own, and bottlenecks written out position by position as a reference."""

import torch
from torch.nn import functional

import helpers
from modeling_lingene.kinds import PRUNED
from modeling_lingene.lingene_pruned import Attention, PrunedClassifier, PrunedConfig
from modeling_lingene.lingene_swin import LinGenePrunedSwinConfig
from modeling_lingene.lingene_vit import LinGeneViTConfig


SHAPE = dict(hidden_size=48, num_attention_heads=4, image_size=16, patch_size=4, num_labels=7, layer_norm_eps=1e-6)
SWIN_SHAPE = dict(image_size=[24, 28], patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[3, 6], window_size=4)
SWIN_SHAPE |= dict(num_labels=7, layer_norm_eps=1e-6)
SWIN_DENSE = dict(mixers=["attention"] * 4, intermediate_sizes=[48, 48, 96, 96])
FAMILIES = ("vit", "swin")
MIXED = dict(mixers=["conv3", "attention", "none", "conv1", "attention"], intermediate_sizes=[96, 8, 40, 96, 17])


def mixed_config(**fields) -> LinGeneViTConfig:
    """Five layers, all four mixers, MLPs of five sizes."""
    return LinGeneViTConfig(**{**SHAPE, **MIXED, **fields})


def dense_config(layers: int = 4, units: int = 96, **fields) -> LinGeneViTConfig:
    return LinGeneViTConfig(
        **{**SHAPE, "mixers": ["attention"] * layers, "intermediate_sizes": [units] * layers, **fields}
    )


def swin_config(**fields) -> LinGenePrunedSwinConfig:
    """Two stages of two layers, shifted windows among them; their maps, 12 x 14 and 6 x 7, are of no whole windows."""
    return LinGenePrunedSwinConfig(**{**SWIN_SHAPE, **SWIN_DENSE, **fields})


def dense(family: str) -> PrunedConfig:
    """Four layers of attention."""
    return {"vit": dense_config, "swin": swin_config}[family]()


def grids(config: PrunedConfig) -> list[tuple[int, int]]:
    """Patches down and across that every layer sees."""
    if config.family == "vit":
        return [config.patch_grid] * len(config.mixers)
    return [(12, 14)] * 2 + [(6, 7)] * 2


def tokens(config: PrunedConfig, dtype=torch.float64, seed: int = 5) -> list[torch.Tensor]:
    """For every layer three images' tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(3, shape.tokens, shape.width, generator=generator, dtype=torch.float64).to(dtype)
        for shape in config.shapes
    ]


def pixels(config: PrunedConfig, count: int = 3, seed: int = 0) -> torch.Tensor:
    """Images of the size that it wants."""
    height, width = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
    return helpers.images(count, height, width, seed=seed)


def network(config: PrunedConfig, seed: int = 0, dtype=torch.float32) -> PrunedClassifier:
    """In evaluation mode, every parameter and every BatchNorm statistic changed by seeded noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PRUNED[config.family].classifier(config).to(dtype).eval()
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
