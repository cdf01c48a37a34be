"""A basis of the residual stream in which narrow slices keep most of it, exact at full width (ours).

The idea is SliceGPT's (Ashkboos et al., arXiv 2401.15024): a norm without gain commutes with rotations, so that the
stream may be turned to its principal axes and the last of them left out. Here LayerNorm stays LayerNorm, and all
widths are cut from one basis. Both follow from the rotation's rows: it keeps the vector of ones, and with it what
LayerNorm takes away, the mean; and the leading axes lie where the channels between two widths have sum zero, so that
what a slice keeps of them has mean zero too. Only the weakest axes, one fewer than blocks, are differences between
the means of blocks.

Before that LayerNorms are folded into what reads them, and whatever writes to the stream writes with mean zero, which
no LayerNorm sees.

Notation: d channels, k blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import nn

from ..configuration_base_lingene import BundleConfig
from ..recompose_lingene import BLOCK_NORMS
from .calibration import class_outputs_of
from .fitting import fold_norms, followers
from .moments import hooked
from .sources import Source, changed


WRITERS = ("attention.output", "mlp.fc2")


def check_widths(config: BundleConfig, widths: Sequence[str | float], sort: bool = True) -> list[Fraction]:
    """Widths at which slices will be cut, ascending, full width left out; every legal one where none is asked for.

    Raises:
        ValueError: a width that does not leave whole heads and MLP units; widths that nothing is sorted for.
    """
    if widths and not sort:
        raise ValueError("`widths` are what channels, heads and units are sorted for: give --sort as well.")
    legal = config.legal_width_ratios
    asked = {config.read_ratio(width, "widths") for width in widths}
    for ratio in sorted(asked):
        if ratio not in legal:
            heads, units = config.indivisible(ratio)
            raise ValueError(
                f"`widths` must leave whole heads and {config.unit_words}, and {ratio} of {heads} heads and "
                f"{units} units does not; use of {', '.join(map(str, legal))}."
            )
    return sorted((asked or set(legal)) - {Fraction(1)})


def zero_sum_axes(blocks: Sequence[int]) -> torch.Tensor:
    """An orthonormal basis of d channels in blocks: (d, d) float64, axes in columns.

    Returns:
        First those that lie within a block and have sum zero (cosines), block by block; then the k - 1 differences
        between the means of blocks; last the vector of ones.
    """
    size, columns = sum(blocks), []
    for block, start in zip(blocks, torch.tensor([0, *blocks]).cumsum(0).tolist()):
        places = (torch.arange(block, dtype=torch.float64) + 0.5) * torch.pi / block
        waves = torch.cos(places[:, None] * torch.arange(1, block)) * (2 / block) ** 0.5
        columns.append(torch.zeros(size, block - 1, dtype=torch.float64))
        columns[-1][start : start + block] = waves
    sizes = torch.tensor(blocks, dtype=torch.float64)
    means = torch.block_diag(*(torch.full((block, 1), block**-0.5, dtype=torch.float64) for block in blocks))
    ones = (sizes / size).sqrt()  # the vector of ones by blocks
    turned, _ = torch.linalg.qr(torch.cat((ones[:, None], torch.eye(len(blocks), dtype=torch.float64)), dim=1))
    return torch.cat((*columns, means @ turned[:, 1:], means @ ones[:, None]), dim=1)


def rotation(moments: torch.Tensor, blocks: Sequence[int]) -> torch.Tensor:
    """What turns the principal axes of the stream to the axes of the blocks, the strongest first: (d, d) orthogonal.

    Args:
        moments: (d, d) float64, of states whose mean over channels is zero.
        blocks: channels between two widths, from the narrowest on.
    """
    size = len(moments)
    ones = torch.full((size, 1), size**-0.5, dtype=torch.float64)
    centred = moments - ones @ (ones.T @ moments)
    centred = centred - (centred @ ones) @ ones.T
    _, axes = torch.linalg.eigh(centred - centred.trace() * ones @ ones.T)  # ascending: the ones are its first
    return zero_sum_axes(blocks) @ torch.cat((axes[:, 1:].flip(1), ones), dim=1).T


def stream_moments(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Second moments of the centred states that enter the LayerNorms, (d, d) float64, each LayerNorm's of trace 1."""
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    size, device = norms[0].weight.numel(), norms[0].weight.device
    sums = [torch.zeros(size, size, device=device) for _ in norms]

    def remember(part: str, place: int) -> Callable:
        def hook(module: nn.LayerNorm, inputs: tuple, output: torch.Tensor) -> None:
            state = inputs[0].float()
            state = (state - state.mean(-1, keepdim=True)).flatten(0, -2)
            sums[place].addmm_(state.T, state)

        return hook

    with hooked({"norm": norms}, remember):
        class_outputs_of(model, pixel_values)
    return sum((one / one.trace()).double().cpu() for one in sums)


def rotated(source: Source, pixel_values: torch.Tensor, widths: Sequence[Fraction], device: str) -> Source:
    """The same function with its channels turned so that the widths' slices keep most of the stream.

    Args:
        source: any checkpoint.
        pixel_values: calibration images, (images, channels, h, w).
        widths: below 1, ascending.
        device: where images pass.

    Returns:
        A source without gains and biases in LayerNorms, whose classifier reads them. `readout` makes of its tokens
        what the source gives.
    """
    size = source.config.hidden_size
    edges = [0, *(int(ratio * size) for ratio in widths), size]
    blocks = [end - start for start, end in zip(edges, edges[1:])]
    turn = rotation(stream_moments(source.stock().to(device), pixel_values), blocks)
    weights = fold_norms(
        {name: torch.stack(source.layers(name)).double() for name in source.config.component_shapes()}
    )
    centred = turn - turn.mean(1, keepdim=True)  # of what is projected to mean zero; the rotation keeps that
    for part in followers(weights):
        weights[f"{part}.weight"] = weights[f"{part}.weight"] @ turn.T
    for part in WRITERS:
        weights[f"{part}.weight"] = centred @ weights[f"{part}.weight"]
        weights[f"{part}.bias"] = weights[f"{part}.bias"] @ centred.T
    ones = torch.ones(source.depth, size, dtype=torch.float64)
    weights |= {f"{norm}.{kind}": ones * (kind == "weight") for norm in BLOCK_NORMS for kind in ("weight", "bias")}
    outside, readout = turned_outside(source.outside, turn, centred)
    return replace(
        source,
        config=changed(source.config, qkv_bias=True),
        outside=outside,
        block=lambda name, layer: weights[name][layer],
        readout=readout,
    )


def turned_outside(
    outside: Mapping[str, torch.Tensor], turn: torch.Tensor, centred: torch.Tensor
) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The tensors outside the blocks in the new basis, and what makes of the final norm's output what it was.

    Args:
        turn: (d, d).
        centred: the same after the projection to mean zero, for what writes to the stream.

    Returns:
        The tensors, float64; and (d, d) and (d,), a matrix and a bias for tokens of the new basis.
    """
    wide = {key: tensor.double() for key, tensor in outside.items()}
    gain, shift = wide["layernorm.weight"], wide["layernorm.bias"]
    readout = gain[:, None] * turn.T, shift
    turned = {"layernorm.weight": torch.ones_like(gain), "layernorm.bias": torch.zeros_like(shift)}
    for key, tensor in wide.items():
        if key == "embeddings.patch_embeddings.weight":
            turned[key] = torch.einsum("de,e...->d...", centred, tensor)
        elif key.startswith("embeddings."):
            turned[key] = tensor @ centred.T
        elif key in ("classifier.weight", "classifier.patch_weight"):  # of what the final norm gives, both
            turned[key] = tensor @ readout[0]
            turned["classifier.bias"] = turned.get("classifier.bias", wide["classifier.bias"]) + tensor @ shift
    return turned, readout
