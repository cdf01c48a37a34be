"""The Vision Transformer as pure functions of (hidden states, weights): embeddings, one pre-norm block, attention.

Weights come in as a dictionary of tensors named as in a bundle, so the same block serves every depth and width. The
network is that of `transformers.ViTModel`: pre-norm blocks, final LayerNorm, class token; what the families differ in
is asked for by argument, or by the tensors that are there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .families_lingene import QKV


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
    drop_path: float = 0.0  # probability that a branch is left out, per image
    turns: tuple[torch.Tensor, torch.Tensor] | None = None  # of queries and keys, see `rotary_turns`


def eager_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=1.0, **kwargs):
    """Attention written out, for `output_attentions`; signature and results as transformers' attention functions.

    Args:
        query, key, value: (b, h, t, head size).
        attention_mask: added to the scores, (b or 1, h or 1, t, t); or None.

    Returns:
        (b, t, h, head size) and the attention weights (b, h, t, t).
    """
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
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


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    settings: BlockSettings,
    bias: torch.Tensor | None = None,
):
    """Multi-head attention of projected tokens, (b, t, d) and twice (b, s, d) -> (b, t, d), and the attention weights
    or None.

    Args:
        bias: added to the scores, (b or 1, h or 1, t, s).
    """
    batch, tokens, _ = query.shape
    query, key, value = (part.unflatten(2, (-1, settings.head_size)).transpose(1, 2) for part in (query, key, value))
    if settings.turns is not None:
        query, key = (turned(part, *settings.turns) for part in (query, key))
    mixed, probabilities = settings.attend(
        settings.module,
        query,
        key,
        value,
        bias,
        dropout=settings.attention_dropout,
        scaling=settings.head_size**-0.5,
        is_causal=False,
    )
    return mixed.reshape(batch, tokens, -1), probabilities


def turned(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Queries or keys (b, h, t, e), the two channels of every pair, e / 2 apart, turned by an angle of the token's
    place; cosines and sines are (t, e).
    """
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-second, first), dim=-1) * sines


def rotary_turns(
    grid: tuple[int, int], before: int, head_size: int, theta: float, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary positions of DINOv3: cosines and sines of the angles that a token's queries and keys are turned by.

    A patch's place is that of its centre, both sides of the image going from -1 to 1, so that images of any size and
    shape have positions of one range; a quarter of a head's channels turns by height and one by width, in steps of
    theta ** (4 i / head size), and the other half with them. Tokens before the patches are not turned.

    Args:
        grid: patches down and across.
        before: tokens before the patches.
        theta: the longest period, as `rope_theta` of `DINOv3ViTConfig`.
        like: gives dtype and device; angles are computed in float32.

    Returns:
        Twice (before + patches, head size).
    """
    sides = [(torch.arange(side, dtype=torch.float32, device=like.device) + 0.5) / side * 2 - 1 for side in grid]
    places = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)
    steps = theta ** -(torch.arange(head_size // 4, dtype=torch.float32, device=like.device) * 4 / head_size)
    angles = (2 * math.pi * places[:, :, None] * steps).flatten(1).tile(2)
    angles = functional.pad(angles, (0, 0, before, 0))
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def attention(
    hidden: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    settings: BlockSettings,
    bias: torch.Tensor | None = None,
):
    """Multi-head self-attention (b, t, d) -> (b, t, d), and the attention weights or None; `bias` as for `attend`."""
    projected = (linear(hidden, weights, f"attention.{name}") for name in QKV)
    mixed, probabilities = attend(*projected, settings, bias)
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
    return with_mlp(hidden + branch(mixed, settings), weights, settings), probabilities


def with_mlp(hidden: torch.Tensor, weights: Mapping[str, torch.Tensor], settings: BlockSettings) -> torch.Tensor:
    """The second branch of a block added to the residual stream (b, t, d).

    With a gate (SwiGLU where the activation is SiLU; Shazeer, arXiv 2002.05202) it decides how much of a unit passes.
    """
    normed = layer_norm(hidden, weights, "norm2", settings.layer_norm_eps)
    units = linear(normed, weights, "mlp.fc1")
    if "mlp.gate.weight" in weights:
        units = settings.activation(linear(normed, weights, "mlp.gate")) * units
    else:
        units = settings.activation(units)
    return hidden + branch(linear(units, weights, "mlp.fc2"), settings)


def branch(added: torch.Tensor, settings: BlockSettings) -> torch.Tensor:
    """What a branch adds to the residual stream (b, t, d), after dropout and stochastic depth."""
    added = functional.dropout(added, settings.hidden_dropout)
    if settings.drop_path == 0:
        return added
    kept = (
        torch.rand((added.shape[0], 1, 1), dtype=added.dtype, device=added.device).add(1 - settings.drop_path).floor()
    )
    return added / (1 - settings.drop_path) * kept


def attention_pool(hidden: torch.Tensor, weights: Mapping[str, torch.Tensor], settings: BlockSettings) -> torch.Tensor:
    """What a learned token sees of the tokens, (b, t, d) -> (b, d): attention, and an MLP beside what it gives.

    Args:
        weights: `embeddings.probe`, and `pooler.*` named as a block's with one norm.
    """
    own = {key.removeprefix("pooler."): tensor for key, tensor in weights.items() if key.startswith("pooler.")}
    probe = weights["embeddings.probe"].expand(len(hidden), -1, -1)
    projected = (linear(one, own, f"attention.{name}") for one, name in zip((probe, hidden, hidden), QKV))
    seen = linear(attend(*projected, settings)[0], own, "attention.output")
    units = settings.activation(linear(layer_norm(seen, own, "norm", settings.layer_norm_eps), own, "mlp.fc1"))
    return (seen + linear(units, own, "mlp.fc2"))[:, 0]


def interpolated_positions(
    positions: torch.Tensor, grid: tuple[int, int], target: tuple[int, int], antialias: bool = False
) -> torch.Tensor:
    """Position embeddings at another number of patches, bicubic as in transformers; a class token's stays.

    Args:
        positions: (1, 1 + grid[0] * grid[1], d); without a class token one less.
        antialias: whether fewer positions are averages of more.

    Returns:
        (1, 1 + target[0] * target[1], d), or one less, computed in at least float32.
    """
    before = positions.shape[1] - grid[0] * grid[1]
    class_position, patches = positions[:, :before], positions[:, before:]
    size, wide = patches.shape[-1], torch.promote_types(patches.dtype, torch.float32)
    patches = patches.to(wide).reshape(1, *grid, size).permute(0, 3, 1, 2)
    patches = functional.interpolate(patches, size=target, mode="bicubic", align_corners=False, antialias=antialias)
    patches = patches.permute(0, 2, 3, 1).reshape(1, -1, size).to(positions.dtype)
    return torch.cat((class_position, patches), dim=1)


def embed(
    pixel_values: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    image_size: tuple[int, int],
    interpolate: bool = False,
    antialias: bool = False,
    masked: torch.Tensor | None = None,
    layer_norm_eps: float = 1e-12,
) -> torch.Tensor:
    """Patches; positions, a class token, register tokens and a LayerNorm where there are any.

    Args:
        pixel_values: (b, channels, height, width).
        weights: the `embeddings.*` tensors of a bundle.
        image_size: (height, width) that the position embeddings are for.
        interpolate: accept images of another size.
        antialias: see `interpolated_positions`.
        masked: (b, patches) bool; the mask token stands in for these.
        layer_norm_eps: of that LayerNorm.

    Returns:
        (b, t, d).

    Raises:
        ValueError: another number of channels, images smaller than a patch, another image size without interpolation;
            masked patches where there is no mask token.
    """
    kernel = weights["embeddings.patch_embeddings.weight"]
    size, patch = tuple(pixel_values.shape[-2:]), tuple(kernel.shape[-2:])
    check_pixels(pixel_values, kernel, image_size, interpolate)
    patches = functional.conv2d(pixel_values, kernel, weights.get("embeddings.patch_embeddings.bias"), stride=patch)
    hidden = patches.flatten(2).transpose(1, 2)
    if masked is not None:
        hidden = with_masked(hidden, weights.get("embeddings.mask_token"), masked)
    positions = weights.get("embeddings.position_embeddings")
    grid, target = (tuple(pixels // step for pixels, step in zip(sizes, patch)) for sizes in (image_size, size))
    if positions is not None and grid != target:
        positions = interpolated_positions(positions, grid, target, antialias)
    if "embeddings.cls_token" in weights:
        hidden = torch.cat((weights["embeddings.cls_token"].expand(hidden.shape[0], -1, -1), hidden), dim=1)
    if positions is not None:
        hidden = hidden + positions
    registers = weights.get("embeddings.register_tokens")
    if registers is not None:
        hidden = torch.cat((hidden[:, :1], registers.expand(hidden.shape[0], -1, -1), hidden[:, 1:]), dim=1)
    if "embeddings.norm.weight" in weights:
        hidden = layer_norm(hidden, weights, "embeddings.norm", layer_norm_eps)
    return hidden


def check_pixels(
    pixel_values: torch.Tensor, kernel: torch.Tensor, image_size: tuple[int, int], interpolate: bool
) -> None:
    """Refuse images that these patches and positions are not for; arguments and errors as for `embed`."""
    size, patch = tuple(pixel_values.shape[-2:]), kernel.shape[-2:]
    if pixel_values.shape[1] != kernel.shape[1]:
        raise ValueError(f"`pixel_values` must have {kernel.shape[1]} channels, got {pixel_values.shape[1]}.")
    if not interpolate and size != image_size:
        raise ValueError(
            f"`pixel_values` must be images of {image_size[0]}x{image_size[1]}, got {size[0]}x{size[1]}; resize them, "
            "or pass interpolate_pos_encoding=True."
        )
    if size[0] < patch[0] or size[1] < patch[1]:
        raise ValueError(
            f"`pixel_values` must be images of at least one patch, {patch[0]}x{patch[1]}, got {size[0]}x{size[1]}; "
            "resize them."
        )


def with_masked(patches: torch.Tensor, token: torch.Tensor | None, masked: torch.Tensor) -> torch.Tensor:
    """Patches (b, patches, d) with the mask token (1, 1, d) in place of those masked, (b, patches) bool."""
    if token is None:
        raise ValueError("`bool_masked_pos` needs a mask token, and models of this family have none; leave it out.")
    if masked.shape != patches.shape[:2]:
        raise ValueError(
            f"`bool_masked_pos` must be of shape {tuple(patches.shape[:2])}, images and patches, got "
            f"{tuple(masked.shape)}."
        )
    return torch.where(masked.bool().unsqueeze(-1), token.to(patches.dtype), patches)
