"""Interpolated positions as plain products, so that one exported graph takes images of every size.

Stock models skip interpolation at their own image size, a branch that a graph fixes for good, and antialiasing reads
sizes that exporters take for constants. A bicubic resize is a product with one matrix per axis; here these are
computed within the graph, by torch's formulas (`aten/src/ATen/native/UpSample.h`, and `_upsample_bicubic2d_aa`).
Positions that turn queries and keys need none of this: they are computed for every image as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from ..families_lingene import FAMILIES, Family


INTERPOLATE = "interpolate_pos_encoding"  # of stock embeddings


def cubic(distance: torch.Tensor, a: float) -> torch.Tensor:
    """Keys' kernel, zero from a distance of 2 on; `a` is its slope at 1."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resize_matrix(old: int, new: int, antialias: bool) -> torch.Tensor:
    """What takes `old` values along an axis to `new` ones, (new, old) float32, as `interpolate(mode="bicubic")`."""
    ratio = old / torch.full((1, 1), new, dtype=torch.float32)
    centre = (torch.arange(new, dtype=torch.float32)[:, None] + 0.5) * ratio
    places = torch.arange(old, dtype=torch.float32)[None, :]
    if antialias:
        weights = cubic((places + 0.5 - centre) / ratio.clamp(min=1), -0.5)
        return weights / weights.sum(1, keepdim=True)
    below = (centre - 0.5).floor()
    weights = torch.zeros_like(centre * places)
    for step in range(-1, 3):  # four neighbours; beyond the border stands the outermost value
        taken = (below + step).clamp(0, old - 1) == places
        weights = weights + cubic(centre - 0.5 - below - step, -0.75) * taken
    return weights


def positions_at(
    embeddings: nn.Module, antialias: bool, hidden: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """(1, 1 + patches, d) for images of height x width pixels; in place of a stock `interpolate_pos_encoding`."""
    positions, patch = embeddings.position_embeddings, embeddings.patch_embeddings.projection.kernel_size
    side = round((positions.shape[1] - 1) ** 0.5)
    patches = positions[:, 1:].float().reshape(side, -1)
    down, across = (
        resize_matrix(side, pixels // step, antialias).to(patches.device)
        for pixels, step in zip((height, width), patch)
    )
    patches = across @ (down @ patches).reshape(height // patch[0], side, -1)
    patches = patches.reshape(1, (height // patch[0]) * (width // patch[1]), -1)
    return torch.cat((positions[:, :1], patches.to(positions.dtype)), dim=1)


def family_of(model: nn.Module) -> Family:
    """The family of a stock model, or of one that was pruned."""
    return FAMILIES[getattr(model.config, "family", model.config.model_type)]


@contextmanager
def any_size(model: nn.Module) -> Iterator[None]:
    """Inside, a stock model whose family interpolates does so by products; and windows attend by plain products, since
    exporters take the number of windows for a constant in fused attention.
    """
    family = family_of(model)
    if family.stages:
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            yield
        finally:
            model.set_attn_implementation(before)
        return
    if not family.traces_any_size or family.rotates:
        yield
        return
    embeddings = _having(model, INTERPOLATE)
    with _replaced(embeddings, INTERPOLATE, partial(positions_at, embeddings, family.antialias)):
        yield


@contextmanager
def one_size(model: nn.Module, size: tuple[int, int]) -> Iterator[None]:
    """Inside, a stock model whose family interpolates has the positions of images of (height, width) pixels, so that a
    graph that takes no others need not make them for each.
    """
    family = family_of(model)
    if not family.traces_any_size:
        yield
        return
    if family.rotates:
        holder, name = _having(model, "rope_embeddings").rope_embeddings, "forward"
        positions = holder(torch.zeros(1, model.config.num_channels, *size, dtype=model.dtype, device=model.device))
    else:
        holder, name = _having(model, INTERPOLATE), INTERPOLATE
        down, across = (pixels // step for pixels, step in zip(size, holder.patch_embeddings.projection.kernel_size))
        with torch.no_grad():
            hidden = holder.position_embeddings.new_empty(1, 1 + down * across, model.config.hidden_size)
            positions = holder.interpolate_pos_encoding(hidden, *size).clone()
    with _replaced(holder, name, lambda *_: positions):
        yield


def _having(model: nn.Module, name: str) -> nn.Module:
    return next(module for module in model.modules() if hasattr(module, name))


@contextmanager
def _replaced(module: nn.Module, name: str, function: Callable) -> Iterator[None]:
    setattr(module, name, function)
    try:
        yield
    finally:
        delattr(module, name)
