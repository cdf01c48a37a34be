"""The Vision Transformer as pure functions of (hidden states, weights): embeddings, one pre-norm block, attention.

Weights come in as a dictionary of tensors named as in a bundle, so the same block serves every depth and width. The
network is that of `transformers.ViTModel`: pre-norm blocks, final LayerNorm, class token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass(frozen=True)
class BlockSettings:
    """What a block needs beside its weights; dropout probabilities are 0 outside training."""

    head_size: int
    layer_norm_eps: float
    activation: Callable
    hidden_dropout: float
    attention_dropout: float
    attend: Callable  # one of transformers' attention functions
    module: nn.Module  # the model they are called for: they read `training`, `is_causal` and `config` from it


def eager_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=1.0, **kwargs):
    """Attention written out, for `output_attentions`; signature and results as transformers' attention functions.

    Args:
        query, key, value: (b, h, t, head size).

    Returns:
        (b, t, h, head size) and the attention weights (b, h, t, t).
    """
    scores = query @ key.transpose(-1, -2) * scaling
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def attention_function(implementation: str | None) -> Callable:
    """transformers' attention function of that name (sdpa, flash_attention_2, ...), ours for eager."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation or "eager", eager_attention)


def linear(hidden: torch.Tensor, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return functional.linear(hidden, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def layer_norm(hidden: torch.Tensor, weights: Mapping[str, torch.Tensor], name: str, eps: float) -> torch.Tensor:
    gain = weights[f"{name}.weight"]
    return functional.layer_norm(hidden, gain.shape, gain, weights[f"{name}.bias"], eps)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: BlockSettings):
    """Multi-head attention of projected tokens, 3 x (b, t, d) -> (b, t, d), and the attention weights or None."""
    batch, tokens, _ = query.shape
    heads = (part.view(batch, tokens, -1, settings.head_size).transpose(1, 2) for part in (query, key, value))
    mixed, probabilities = settings.attend(
        settings.module,
        *heads,
        None,
        dropout=settings.attention_dropout,
        scaling=settings.head_size**-0.5,
        is_causal=False,
    )
    return mixed.reshape(batch, tokens, -1), probabilities


def attention(hidden: torch.Tensor, weights: Mapping[str, torch.Tensor], settings: BlockSettings):
    """Multi-head self-attention (b, t, d) -> (b, t, d), and the attention weights or None."""
    projected = (linear(hidden, weights, f"attention.{name}") for name in ("query", "key", "value"))
    mixed, probabilities = attend(*projected, settings)
    return linear(mixed, weights, "attention.output"), probabilities


def block(hidden: torch.Tensor, weights: Mapping[str, torch.Tensor], settings: BlockSettings):
    """One pre-norm encoder block.

    Args:
        hidden: (b, t, d).
        weights: the tensors of one layer, named as in `LinGeneConfig.component_shapes`.

    Returns:
        (b, t, d), and the attention weights (b, h, t, t) where the attention function returns them, else None.
    """
    normed = layer_norm(hidden, weights, "norm1", settings.layer_norm_eps)
    mixed, probabilities = attention(normed, weights, settings)
    hidden = hidden + functional.dropout(mixed, settings.hidden_dropout)
    normed = layer_norm(hidden, weights, "norm2", settings.layer_norm_eps)
    units = settings.activation(linear(normed, weights, "mlp.fc1"))
    return hidden + functional.dropout(linear(units, weights, "mlp.fc2"), settings.hidden_dropout), probabilities


def interpolated_positions(positions: torch.Tensor, grid: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
    """Position embeddings at another number of patches, bicubic as in transformers' ViT; the class token's stays.

    Args:
        positions: (1, 1 + grid[0] * grid[1], d).

    Returns:
        (1, 1 + target[0] * target[1], d).
    """
    class_position, patches = positions[:, :1], positions[:, 1:]
    size = patches.shape[-1]
    patches = patches.reshape(1, *grid, size).permute(0, 3, 1, 2)
    patches = functional.interpolate(patches, size=target, mode="bicubic", align_corners=False)
    return torch.cat((class_position, patches.permute(0, 2, 3, 1).reshape(1, -1, size)), dim=1)


def embed(
    pixel_values: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    image_size: tuple[int, int],
    interpolate_pos_encoding: bool = False,
) -> torch.Tensor:
    """Patches, class token and positions.

    Args:
        pixel_values: (b, channels, height, width).
        weights: the `embeddings.*` tensors of a bundle.
        image_size: (height, width) that the position embeddings are for.
        interpolate_pos_encoding: accept images of another size.

    Returns:
        (b, t, d).

    Raises:
        ValueError: another number of channels, or another image size without interpolation.
    """
    kernel = weights["embeddings.patch_embeddings.weight"]
    size, patch = tuple(pixel_values.shape[-2:]), kernel.shape[-2:]
    if pixel_values.shape[1] != kernel.shape[1]:
        raise ValueError(f"`pixel_values` must have {kernel.shape[1]} channels, got {pixel_values.shape[1]}.")
    if not interpolate_pos_encoding and size != image_size:
        raise ValueError(
            f"`pixel_values` must be images of {image_size[0]}x{image_size[1]}, got {size[0]}x{size[1]}; resize them, "
            "or pass interpolate_pos_encoding=True."
        )
    patches = functional.conv2d(pixel_values, kernel, weights["embeddings.patch_embeddings.bias"], stride=patch)
    hidden = patches.flatten(2).transpose(1, 2)
    class_token = weights["embeddings.cls_token"].expand(hidden.shape[0], -1, -1)
    positions = weights["embeddings.position_embeddings"]
    if interpolate_pos_encoding and size != image_size:
        grid, target = ([pixels // step for pixels, step in zip(sizes, patch)] for sizes in (image_size, size))
        positions = interpolated_positions(positions, tuple(grid), tuple(target))
    return torch.cat((class_token, hidden), dim=1) + positions
