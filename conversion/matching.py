"""Components fitted to what arrives, not to what should: the inputs of the approximated network itself (ours).

    min over A and a of  sum_l tr(G_l E[(W_l x - W'_l y)(W_l x - W'_l y)^T]),   W'_l = sum_n a(l, n) A_n

x enters layer l of the source, y layer l of the approximation, on the same images. An error made below is so met by
the layers above. y changes with every pass; moments are averaged over passes, or the layers would overshoot together.
The pass whose answers are nearest to the source's is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from .calibration import class_outputs_of, distance
from .fitting import ITERATIONS, fit_coefficients, fit_components
from .moments import Stack, damped, paired_moments


PASSES = 16
MIXING = 0.5  # of a pass's moments with those before
DAMPING = 0.3  # of the mean diagonal, towards the source's own weights


def match(
    stacks: Mapping[str, Stack],
    components: dict[str, torch.Tensor],
    table: torch.Tensor,
    build: Callable[[Mapping[str, torch.Tensor]], nn.Module],
    head: bool,
    pixel_values: torch.Tensor,
    passes: int = PASSES,
    progress: Callable[[], None] = lambda: None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Improve components and coefficients on the images, pass by pass.

    Args:
        stacks: of the source, by part.
        components: by part (n, o, i), a start.
        table: (l, n), a start.
        build: a stock ViT from linear maps by part, (l, o, i).
        head: whether it has a classifier.
        pixel_values: calibration images.
        progress: called once per pass.

    Returns:
        Components and coefficients of the best pass, the start included.
    """
    depth = len(table)
    source = build({part: stack.weights for part, stack in stacks.items()})
    expected = class_outputs_of(source, pixel_values)
    best, found = (float("inf"), components, table), None
    for number in range(passes + 1):
        model = build({part: torch.einsum("ln,noi->loi", table, own) for part, own in components.items()})
        far = distance(class_outputs_of(model, pixel_values), expected, head)
        if far < best[0]:
            best = (far, components, table)
        if number == passes:
            break
        seen = paired_moments(source, model, pixel_values, depth)
        found = seen if found is None else _mixed(found, seen)
        arriving = {part: _arriving(stack, *found[part]) for part, stack in stacks.items()}
        metrics = {part: stack.metric("matched") for part, stack in arriving.items()}
        table = fit_coefficients(arriving, components, metrics)
        components = {
            part: fit_components(stack, table, metrics[part], components[part], ITERATIONS["round"])
            for part, stack in arriving.items()
        }
        progress()
    return best[1:]


def _mixed(before: Mapping, now: Mapping) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {
        part: tuple((1 - MIXING) * one + MIXING * other for one, other in zip(before[part], pair))
        for part, pair in now.items()
    }


def _arriving(stack: Stack, cross: torch.Tensor, own: torch.Tensor) -> Stack:
    """The map that makes of what arrives what the source makes of its inputs: W E[x y^T] E[y y^T]^-1, damped to W."""
    held = damped(own, DAMPING) - own
    # Cholesky: batched LU with set_num_threads may fail or hang on CPUs (PyTorch issue 142815).
    factor = torch.linalg.cholesky(own + held)
    weights = torch.cholesky_solve((stack.weights @ (cross + held)).mT, factor).mT
    return replace(stack, weights=weights, inputs=own)
