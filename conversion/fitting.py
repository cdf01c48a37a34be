"""Fewer components than layers, fitted in the metric in which a layer's error reaches the logits (ours).

    min over A and a of  sum_l tr(G_l D_l C_l D_l^T),   D_l = W_l - sum_n a(l, n) A_n

C_l second moment of a layer's inputs with a constant 1 appended, so that biases are fitted along; G_l second moment of
the gradients at its outputs (the Kronecker-factored curvature of Martens and Grosse, arXiv 1503.05671). LayerNorms
are folded into what follows them first, which changes nothing.

Notation: l layers, n components, o outputs, i inputs of one linear map plus 1.
"""

from collections.abc import Callable, Iterable, Mapping

import torch

from .alignment import align
from .moments import Stack


# From the plainest to the one that does most: least squares on weights; in the inputs' metric; that weighed by the
# gradients' trace; Kronecker-factored with learned coefficients; that with the layers aligned (alignment.py); the last
# matched to the inputs that arrive in the approximated network (matching.py).
FITS = ("weights", "activations", "weighted", "kronecker", "aligned", "matched")
# Of the fits whose coefficients are learned: rounds of coefficients and components in turn. Passes follow the last.
ROUNDS = {"kronecker": 20, "aligned": 20, "matched": 10}
ORDERED_ROUNDS = 3  # the first ones, that look for the best of all orders of units
ITERATIONS = {"once": 100, "round": 5}  # of conjugate gradients
TOLERANCE = 1e-4  # of the residual
FOLLOWERS = {"norm1": ("attention.query", "attention.key", "attention.value"), "norm2": ("mlp.gate", "mlp.fc1")}


def weighed(gradients: torch.Tensor, tensors: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """G_l X_l C_l for every layer; G (l, o, o), or (l, 1, 1) for a factor."""
    right = tensors @ inputs
    return gradients * right if gradients.shape[-1] == 1 else gradients @ right


def followers(weights: Mapping[str, torch.Tensor], norms: Iterable[str] = FOLLOWERS) -> list[str]:
    """The linear maps that read what LayerNorms give; not every block has a gate."""
    return [part for norm in norms for part in FOLLOWERS[norm] if f"{part}.weight" in weights]


def fold_norms(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gains and biases of LayerNorms into the maps behind them: W diag(g), b + W b_norm. Exact.

    Args:
        weights: block tensors by name, (l, ...) float64.

    Returns:
        The linear maps alone, each with a bias.
    """
    folded = {name: tensor for name, tensor in weights.items() if not name.startswith("norm")}
    for norm in FOLLOWERS:
        for part in followers(weights, [norm]):
            matrix = weights[f"{part}.weight"]
            bias = (matrix @ weights[f"{norm}.bias"].unsqueeze(-1)).squeeze(-1)
            folded[f"{part}.weight"] = matrix * weights[f"{norm}.weight"].unsqueeze(1)
            folded[f"{part}.bias"] = bias + weights.get(f"{part}.bias", 0.0)
    return folded


def fit_components(
    stack: Stack,
    table: torch.Tensor,
    metric: tuple[torch.Tensor, torch.Tensor],
    start: torch.Tensor | None = None,
    iterations: int = ITERATIONS["once"],
) -> torch.Tensor:
    """The components that are best for given coefficients, by conjugate gradients with the mean metric before them.

    Args:
        table: (l, n).
        metric: of `Stack.metric`.
        start: (n, o, i); default least squares on the weights.

    Returns:
        (n, o, i).
    """
    inputs, gradients = metric

    def apply(components: torch.Tensor) -> torch.Tensor:
        layers = torch.einsum("ln,noi->loi", table, components)
        return torch.einsum("ln,loi->noi", table, weighed(gradients, layers, inputs))

    inner = torch.linalg.pinv(table.T @ table)
    right, left = torch.linalg.inv(inputs.mean(0)), torch.linalg.inv(gradients.mean(0))

    def precondition(residual: torch.Tensor) -> torch.Tensor:
        scaled = left * (residual @ right) if left.numel() == 1 else left @ residual @ right
        return torch.einsum("mn,noi->moi", inner, scaled)

    components = start
    if components is None:
        components = torch.einsum("nl,loi->noi", torch.linalg.pinv(table), stack.weights)
    left_over = stack.weights - torch.einsum("ln,noi->loi", table, components)
    residual = torch.einsum("ln,loi->noi", table, weighed(gradients, left_over, inputs))
    return components + conjugate_gradients(apply, precondition, residual, iterations)


def conjugate_gradients(
    apply: Callable, precondition: Callable, wanted: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Solve apply(x) = wanted for a symmetric positive definite map, from zero."""
    solution, residual = torch.zeros_like(wanted), wanted.clone()
    direction = precondition(residual)
    energy = (residual * direction).sum()
    for _ in range(iterations):
        if residual.norm() <= TOLERANCE * wanted.norm():
            break
        image = apply(direction)
        step = energy / (direction * image).sum()
        solution += step * direction
        residual -= step * image
        better = precondition(residual)
        before, energy = energy, (residual * better).sum()
        direction = better + (energy / before) * direction
    return solution


def fit_coefficients(
    stacks: Mapping[str, Stack],
    components: Mapping[str, torch.Tensor],
    metrics: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """The coefficients that are best for given components, one matrix for the whole block: per layer an n x n system.

    Returns:
        (l, n).
    """
    depth, count = len(stacks["mlp.fc1"].weights), len(components["mlp.fc1"])
    first = components["mlp.fc1"]
    gram, wanted = first.new_zeros(depth, count, count), first.new_zeros(depth, count)
    for part, stack in stacks.items():
        inputs, gradients = metrics[part]
        own = components[part].flatten(1)
        for layer in range(depth):
            image = weighed(gradients[layer], components[part], inputs[layer]).flatten(1)
            gram[layer] += image @ own.T
            wanted[layer] += image @ stack.weights[layer].flatten()
    ridge = 1e-9 * gram.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
    ridge = ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, wanted)


def order_components(
    components: dict[str, torch.Tensor], table: torch.Tensor, metrics: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The same layers from components in the order of what they carry, so that a prefix is worth most.

    A rotation within their span: principal axes in the mean metric. Learned coefficients follow.
    """
    gram = 0.0
    for part, own in components.items():
        inputs, gradients = (moments.mean(0, keepdim=True) for moments in metrics[part])
        gram = gram + torch.einsum("moi,noi->mn", weighed(gradients, own, inputs), own)
    orthogonal, upper = torch.linalg.qr(table)
    _, axes = torch.linalg.eigh(upper @ gram @ upper.T)
    axes = axes.flip(1)
    turned = {part: torch.einsum("nm,moi->noi", axes.T @ upper, own) for part, own in components.items()}
    return turned, orthogonal @ axes


def fit_block(
    stacks: Mapping[str, Stack],
    table: torch.Tensor,
    fit: str,
    heads: int,
    rounds: int | None = None,
    progress: Callable[[], None] = lambda: None,
    rotary: bool = False,
) -> tuple[dict[str, Stack], dict[str, torch.Tensor], torch.Tensor]:
    """Components of every linear map, and the coefficients: those given, or learned ones.

    Args:
        stacks: by part of the block.
        table: (l, n).
        fit: one of FITS but `weights`; of `matched` all but the last step.
        heads: of every layer.
        rounds: of coefficients and components in turn, where they are learned; default ROUNDS.
        progress: called once per round.
        rotary: whether positions turn queries and keys, see `align`.

    Returns:
        The stacks (turned, where they are aligned), the components by part (n, o, i), and (l, n).
    """
    table = table.to(stacks["mlp.fc1"].weights)
    metrics = {part: stack.metric(fit) for part, stack in stacks.items()}
    iterations = ITERATIONS["round" if fit in ROUNDS else "once"]
    components = {
        part: fit_components(stack, table, metrics[part], iterations=iterations) for part, stack in stacks.items()
    }
    progress()
    if fit not in ROUNDS:
        return dict(stacks), components, table
    for number in range((rounds or ROUNDS[fit]) - 1):
        if fit != "kronecker":
            targets = {part: torch.einsum("ln,noi->loi", table, own) for part, own in components.items()}
            stacks = align(stacks, targets, metrics, heads, number < ORDERED_ROUNDS, rotary)
            metrics = {part: stack.metric(fit) for part, stack in stacks.items()}
        table = fit_coefficients(stacks, components, metrics)
        for part, stack in stacks.items():
            components[part] = fit_components(stack, table, metrics[part], components[part], ITERATIONS["round"])
        progress()
    return dict(stacks), *order_components(components, table, metrics)
