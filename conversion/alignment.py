"""Layers brought closer to each other by what changes no function: orders of heads and units, rotations within heads.

Scores see queries and keys of a head only through their products, so that both may be turned alike; values and the
output projection likewise; MLP units may be reordered. Each layer is turned towards what the components make of it
(orthogonal Procrustes per head, the assignment problem for heads and units), in the metric of the fit.
"""

from collections.abc import Mapping

import torch

from ..images.data import require
from .moments import Stack


Metrics = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def align(
    stacks: Mapping[str, Stack], targets: Mapping[str, torch.Tensor], metrics: Metrics, heads: int
) -> dict[str, Stack]:
    """The same functions, every layer as close to its target as its symmetries let it.

    Args:
        stacks: the six linear maps of every layer.
        targets: by part (l, o, i), what the components give.
        metrics: by part C and G, of `Stack.metric`.
        heads: of every layer.

    Returns:
        New stacks; weights and moments turned.
    """
    layers = range(len(stacks["mlp.fc1"].weights))
    scores, values, units = (
        torch.stack(parts) for parts in zip(*(_turns(stacks, targets, metrics, heads, layer) for layer in layers))
    )
    turned = {}
    for part, turn in (
        ("attention.query", scores),
        ("attention.key", scores),
        ("attention.value", values),
        ("mlp.fc1", units),
    ):
        stack = stacks[part]
        turned[part] = Stack(turn @ stack.weights, stack.inputs, turn @ stack.gradients @ turn.mT)
    for part, turn in (("attention.output", values), ("mlp.fc2", units)):
        stack, whole = stacks[part], _with_constant(turn)
        turned[part] = Stack(stack.weights @ whole.mT, whole @ stack.inputs @ whole.mT, stack.gradients)
    return {part: turned[part] for part in stacks}


def _with_constant(turn: torch.Tensor) -> torch.Tensor:
    """(l, i - 1, i - 1) -> (l, i, i): the constant 1 stays."""
    layers, size = turn.shape[:2]
    whole = turn.new_zeros(layers, size + 1, size + 1)
    whole[:, :size, :size], whole[:, size, size] = turn, 1.0
    return whole


def _turns(
    stacks: Mapping[str, Stack], targets: Mapping[str, torch.Tensor], metrics: Metrics, heads: int, layer: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of one layer: what turns queries and keys, what turns values, the order of the units; (d, d), (d, d), (m, m)."""

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
    order = _assigned(torch.linalg.matrix_norm(score, "nuc") + torch.linalg.matrix_norm(value, "nuc"))
    agreement = before("mlp.fc1") + behind("mlp.fc2")
    units = torch.eye(len(agreement), dtype=agreement.dtype, device=agreement.device)[_assigned(agreement)]
    return _rotation(score, order), _rotation(value, order), units


def _by_head(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """(h e, h e) -> (h, h, e, e)."""
    return matrix.unflatten(0, (heads, -1)).unflatten(2, (heads, -1)).transpose(1, 2)


def _assigned(gains: torch.Tensor) -> torch.Tensor:
    """For every target the one of the layer's that it gets, all different, the sum of gains greatest."""
    optimize = require("scipy.optimize", "scikit-learn")
    _, columns = optimize.linear_sum_assignment(gains.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).to(gains.device)


def _rotation(agreement: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The heads in a new order, each rotated best; (d, d) orthogonal."""
    heads, size = agreement.shape[0], agreement.shape[-1]
    places = torch.arange(heads, device=agreement.device)
    left, _, right = torch.linalg.svd(agreement[places, order])
    whole = agreement.new_zeros(heads, size, heads, size)
    whole[places, :, order] = left @ right
    return whole.reshape(heads * size, heads * size)
