"""The Swin Transformer as pure functions of (hidden states, weights): patches, a block of windows, merging of patches.

Weights come in as a dictionary of tensors named as in a bundle. The network is that of `transformers.SwinModel`
(Liu et al., ICCV 2021): attention within windows that every other layer shifts, with a bias per head for every way
between two patches. Tokens lie row by row, and there is no class token.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch.nn import functional

from .recompose_lingene import POSITION_BIAS
from .vit_lingene import BlockSettings, attention, branch, layer_norm, with_mlp


PATCH_NORM_EPS = 1e-5  # of the norms outside blocks, whatever the blocks' is
APART = -100.0  # added to the scores of patches that a shifted window brings together from opposite borders


def embed_patches(
    pixel_values: torch.Tensor, weights: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Normed patches (b, t, d) of images (b, channels, height, width), padded to whole patches; and their grid.

    Raises:
        ValueError: another number of channels.
    """
    kernel = weights["embeddings.patch_embeddings.weight"]
    if pixel_values.shape[1] != kernel.shape[1]:
        raise ValueError(f"`pixel_values` must have {kernel.shape[1]} channels, got {pixel_values.shape[1]}.")
    height, width = kernel.shape[-2:]
    missing = -pixel_values.shape[-1] % width, -pixel_values.shape[-2] % height
    if any(missing):
        pixel_values = functional.pad(pixel_values, (0, missing[0], 0, missing[1]))
    bias = weights["embeddings.patch_embeddings.bias"]
    patches = functional.conv2d(pixel_values, kernel, bias, stride=(height, width))
    hidden = layer_norm(patches.flatten(2).transpose(1, 2), weights, "embeddings.norm", PATCH_NORM_EPS)
    return hidden, (patches.shape[-2], patches.shape[-1])


def swin_block(
    hidden: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    settings: BlockSettings,
    grid: tuple[int, int],
    window: int,
    shift: int,
):
    """One block: attention within windows, then the MLP; both before a residual connection.

    Args:
        hidden: (b, t, d), t = grid[0] * grid[1].
        weights: the tensors of one layer, named as in `LinGeneSwinConfig.block_shapes`.
        window, shift: in patches, see `shift_of`; a grid that windows do not divide is padded with zeros.

    Returns:
        (b, t, d), and the attention weights (b * windows, h, window^2, window^2) where the attention function returns
        them, else None.
    """
    normed = layer_norm(hidden, weights, "norm1", settings.layer_norm_eps)
    table = weights[f"{POSITION_BIAS}.weight"]
    own = partial(attention, weights=weights, settings=settings)
    mixed, probabilities = within_windows(normed, grid, window, shift, table, own)
    return with_mlp(hidden + branch(mixed, settings), weights, settings), probabilities


def within_windows(
    normed: torch.Tensor, grid: tuple[int, int], window: int, shift: int, table: torch.Tensor, attend: Callable
):
    """Attention within windows, (b, t, d) -> (b, t, d), and what `attend` returns beside.

    Args:
        grid, window, shift: as for `swin_block`.
        table: of relative positions, ((2 window - 1)^2, h).
        attend: (tokens (b * windows, window^2, d), bias=(b * windows or 1, h, window^2, window^2)) -> tokens and more.
    """
    batch, _, size = normed.shape
    normed = normed.view(batch, *grid, size)
    below, beside = -grid[0] % window, -grid[1] % window
    if below or beside:
        normed = functional.pad(normed, (0, 0, 0, beside, 0, below))
    rows, columns = grid[0] + below, grid[1] + beside
    bias = position_bias(table, window)
    if shift:
        normed = normed.roll((-shift, -shift), dims=(1, 2))
        apart = shifted_mask(rows, columns, window, shift, normed.device).to(normed.dtype)
        bias = (bias + apart.unsqueeze(1)).repeat(batch, 1, 1, 1)
    mixed, probabilities = attend(in_windows(normed, window), bias=bias)
    mixed = from_windows(mixed, window, rows, columns)
    if shift:
        mixed = mixed.roll((shift, shift), dims=(1, 2))
    return mixed[:, : grid[0], : grid[1]].reshape(batch, -1, size), probabilities


def in_windows(tokens: torch.Tensor, window: int) -> torch.Tensor:
    """(b, height, width, d) -> (b * windows, window^2, d), windows row by row."""
    batch, height, width, size = tokens.shape
    tokens = tokens.view(batch, height // window, window, width // window, window, size)
    return tokens.transpose(2, 3).reshape(-1, window * window, size)


def from_windows(windows: torch.Tensor, window: int, height: int, width: int) -> torch.Tensor:
    """Back from `in_windows`."""
    size = windows.shape[-1]
    tokens = windows.view(-1, height // window, width // window, window, window, size)
    return tokens.transpose(2, 3).reshape(-1, height, width, size)


def shift_of(layer: int, grid: tuple[int, int], window: int) -> int:
    """By how many patches the windows of a layer, counted from 0 in its stage, are shifted: every other one's by half
    of their side, and none where one takes the whole side of the grid.

    Raises:
        ValueError: a grid smaller than a window, for which the table of positions has no reading.
    """
    if min(grid) < window:
        raise ValueError(
            f"`pixel_values` must give every stage at least one window of {window}x{window} patches, got a grid of "
            f"{grid[0]}x{grid[1]}: use larger images."
        )
    return window // 2 if layer % 2 and min(grid) > window else 0


def position_bias(table: torch.Tensor, window: int) -> torch.Tensor:
    """The bias of every pair of patches of a window: table ((2 w - 1)^2, h) -> (1, h, w^2, w^2)."""
    places = relative_places(window, table.device)
    return table[places].view(window * window, window * window, -1).permute(2, 0, 1).unsqueeze(0)


def relative_places(window: int, device: torch.device) -> torch.Tensor:
    """Row of the table for every pair of patches, (window^4,): (dy + w - 1) (2 w - 1) + dx + w - 1."""
    y, x = torch.meshgrid(2 * [torch.arange(window, device=device)], indexing="ij")
    y, x = y.flatten(), x.flatten()
    down, across = (side[:, None] - side[None, :] + window - 1 for side in (y, x))
    return (down * (2 * window - 1) + across).flatten()


def shifted_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> torch.Tensor:
    """What is added to the scores within each shifted window, (windows, window^2, window^2).

    0 between patches that are neighbours in the image, `APART` between those that the shift brought from opposite
    borders.
    """
    regions = []
    for side in (height, width):
        place = torch.arange(side, device=device)
        regions.append((place >= side - window).long() + (place >= side - shift).long())
    region = (regions[0][:, None] * 3 + regions[1][None, :]).view(1, height, width, 1)
    windows = in_windows(region, window).squeeze(-1)
    return torch.where(windows[:, :, None] == windows[:, None, :], 0.0, APART)


def merge(
    hidden: torch.Tensor, weights: Mapping[str, torch.Tensor], stage: str, grid: tuple[int, int]
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Every four patches side by side become one of twice the channels, (b, t, d) -> (b, t / 4, 2 d); and their grid.

    Args:
        weights: `stageN.downsample.norm.weight`, `.bias` (4, d) and `.reduction.weight` (2 d, 4, d).
        stage: `stageN`.
        grid: an odd side is padded with zeros.
    """
    batch, _, size = hidden.shape
    hidden = hidden.view(batch, *grid, size)
    if grid[0] % 2 or grid[1] % 2:
        hidden = functional.pad(hidden, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
    parts = [hidden[:, row::2, column::2] for column in range(2) for row in range(2)]
    merged = torch.cat(parts, dim=-1)
    after = (merged.shape[1], merged.shape[2])
    gain, shift = (weights[f"{stage}.downsample.norm.{kind}"].flatten() for kind in ("weight", "bias"))
    merged = functional.layer_norm(merged.view(batch, -1, 4 * size), gain.shape, gain, shift, PATCH_NORM_EPS)
    return functional.linear(merged, weights[f"{stage}.downsample.reduction.weight"].flatten(1)), after
