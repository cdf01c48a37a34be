"""Layers brought closer to each other by what changes no function: orders of heads and units, rotations within heads.

Scores see queries and keys of a head only through their products, so that both may be turned alike; values and the
output projection likewise; MLP units may be reordered, and where gates let them through, not an activation, change
their sign. Where positions turn queries and keys too, in planes of two
channels by different angles, only turns in these planes leave the products as they are. Each layer is turned towards
what the components make of it (orthogonal Procrustes per head or plane, the assignment problem for heads and units),
in the metric of the fit.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch.nn import functional

from ..extras import require
from .moments import Stack


Metrics = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def align(
    stacks: Mapping[str, Stack],
    targets: Mapping[str, torch.Tensor],
    metrics: Metrics,
    heads: int,
    best_order: bool = True,
    rotary: bool = False,
) -> dict[str, Stack]:
    """The same functions, every layer as close to its target as its symmetries let it.

    Args:
        stacks: the linear maps of every layer.
        targets: by part (l, o, i), what the components give.
        metrics: by part C and G, of `Stack.metric`.
        heads: of every layer.
        best_order: the best of all orders of MLP units, whose time grows with their cube; otherwise the order they
            have, improved by exchanges of two.
        rotary: whether positions turn queries and keys.

    Returns:
        New stacks; weights and moments turned.
    """
    layers = range(len(stacks["mlp.fc1"].weights))
    scores, values, units, signs = (
        torch.stack(parts)
        for parts in zip(*(_turns(stacks, targets, metrics, heads, layer, best_order, rotary) for layer in layers))
    )
    turned = dict(stacks)
    for part, turn in (("attention.query", scores), ("attention.key", scores), ("attention.value", values)):
        stack = stacks[part]
        turned[part] = replace(stack, weights=turn @ stack.weights, gradients=turn @ stack.gradients @ turn.mT)
    stack, whole = stacks["attention.output"], _with_constant(values)
    turned["attention.output"] = replace(
        stack, weights=stack.weights @ whole.mT, inputs=whole @ stack.inputs @ whole.mT
    )
    if (units == torch.arange(units.shape[1], device=units.device)).all() and (signs > 0).all():
        return turned
    behind, columns = stacks["mlp.fc2"], functional.pad(units, (0, 1), value=units.shape[1])
    factors = functional.pad(signs, (0, 1), value=1.0)  # the constant 1 stays
    turned["mlp.fc2"] = replace(
        behind,
        weights=behind.weights.take_along_dim(columns[:, None], 2) * factors[:, None],
        inputs=_reordered(behind.inputs, columns, factors),
    )
    for part, factors in (("mlp.gate", torch.ones_like(signs)), ("mlp.fc1", signs)):
        if part in stacks:
            before = stacks[part]
            turned[part] = replace(
                before,
                weights=before.weights.take_along_dim(units[:, :, None], 1) * factors[:, :, None],
                gradients=_reordered(before.gradients, units, factors),
            )
    return turned


def _reordered(moments: torch.Tensor, order: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """(l, i, i) in the order (l, i), rows and columns, with signs (l, i)."""
    moments = moments.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None], 2)
    return moments * signs[:, :, None] * signs[:, None]


def _with_constant(turn: torch.Tensor) -> torch.Tensor:
    """(l, i - 1, i - 1) -> (l, i, i): the constant 1 stays."""
    layers, size = turn.shape[:2]
    whole = turn.new_zeros(layers, size + 1, size + 1)
    whole[:, :size, :size], whole[:, size, size] = turn, 1.0
    return whole


def _turns(
    stacks: Mapping[str, Stack],
    targets: Mapping[str, torch.Tensor],
    metrics: Metrics,
    heads: int,
    layer: int,
    best_order: bool,
    rotary: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of one layer: what turns queries and keys, what turns values, (d, d) each; order, signs of the units, (m,)."""

    def before(part: str) -> torch.Tensor:
        """T C W^T: how much each output of the target agrees with each of the layer's, (o, o)."""
        inputs, gradients = (moments[layer] for moments in metrics[part])
        return gradients.diagonal().mean() * targets[part][layer] @ inputs @ stacks[part].weights[layer].T

    def behind(part: str) -> torch.Tensor:
        """T^T G W: the same of the inputs, (i - 1, i - 1); the bias has no part in it."""
        inputs, gradients = (moments[layer] for moments in metrics[part])
        scale = inputs.diagonal()[:-1].mean()
        return scale * targets[part][layer][:, :-1].T @ gradients @ stacks[part].weights[layer][:, :-1]

    score = _by_head(before("attention.query") + before("attention.key"), heads)
    value = _by_head(before("attention.value") + behind("attention.output"), heads)
    of_scores = _planes(score).abs().sum(-1) if rotary else torch.linalg.matrix_norm(score, "nuc")
    order = _assigned(of_scores + torch.linalg.matrix_norm(value, "nuc"))
    signed, gated = before("mlp.fc1") + behind("mlp.fc2"), "mlp.gate" in stacks
    units = (_assigned if best_order else _exchanged)(before("mlp.gate") + signed.abs() if gated else signed)
    negative = (
        signed.take_along_dim(units[:, None], 1)[:, 0] < 0 if gated else torch.zeros_like(units, dtype=torch.bool)
    )
    return _rotation(score, order, rotary), _rotation(value, order), units, 1.0 - 2.0 * negative.to(signed)


def _by_head(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """(h e, h e) -> (h, h, e, e)."""
    return matrix.unflatten(0, (heads, -1)).unflatten(2, (heads, -1)).transpose(1, 2)


def _assigned(gains: torch.Tensor) -> torch.Tensor:
    """For every target the one of the layer's that it gets, all different, the sum of gains greatest."""
    optimize = require("scipy.optimize", "scikit-learn")
    _, columns = optimize.linear_sum_assignment(gains.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).to(gains.device)


def _exchanged(gains: torch.Tensor) -> torch.Tensor:
    """For every target the one of the layer's that it gets: from the order as it is, pairs change places until no pair
    gains by it. What is far from its place stays there: this keeps an order that is nearly the best.
    """
    places = torch.arange(len(gains), device=gains.device)
    order, gains = places, gains.clone()
    least = 1e-6 * gains.abs().mean()
    while True:
        own = gains.diagonal()
        gain, other = (gains + gains.T - own[:, None] - own).max(1)
        changed = (gain > least) & (other[other] == places)
        if not changed.any():
            return order
        places_now = torch.where(changed, other, places)
        order, gains = order[places_now], gains[:, places_now]


def _planes(agreement: torch.Tensor) -> torch.Tensor:
    """What the agreement within heads, (..., e, e), says of a turn in each plane of channels i and i + e / 2: complex
    (..., e / 2), whose angle is the best turn's and whose length is what it gains.
    """
    up, down = agreement.chunk(2, dim=-2)
    (first, across), (back, second) = (half.chunk(2, dim=-1) for half in (up, down))
    first, across, back, second = (part.diagonal(dim1=-2, dim2=-1) for part in (first, across, back, second))
    return torch.complex(first + second, back - across)


def _in_planes(agreement: torch.Tensor) -> torch.Tensor:
    """The best turns in these planes; (..., e, e) orthogonal."""
    angles = _planes(agreement).angle()
    cosines, sines = angles.cos().diag_embed(), angles.sin().diag_embed()
    return torch.cat((torch.cat((cosines, -sines), dim=-1), torch.cat((sines, cosines), dim=-1)), dim=-2)


def _rotation(agreement: torch.Tensor, order: torch.Tensor, rotary: bool = False) -> torch.Tensor:
    """The heads in a new order, each rotated best; (d, d) orthogonal."""
    heads, size = agreement.shape[0], agreement.shape[-1]
    places = torch.arange(heads, device=agreement.device)
    whole = agreement.new_zeros(heads, size, heads, size)
    if rotary:
        whole[places, :, order] = _in_planes(agreement[places, order])
    else:
        left, _, right = torch.linalg.svd(agreement[places, order])
        whole[places, :, order] = left @ right
    return whole.reshape(heads * size, heads * size)
