"""Components fitted to what arrives, not to what should: the inputs of the approximated network itself (ours).

    min over A and a of  sum_l tr(G_l E[(W_l x - W'_l y)(W_l x - W'_l y)^T]),   W'_l = sum_n a(l, n) A_n

x enters layer l of the source, y layer l of the approximation, on the same images. An error made below is so met by
the layers above. y changes with every pass; moments are averaged over passes and begin with x for y, or the layers
would overshoot together. They still swing, so that what is judged is the mean of the components, and of the
coefficients, over the passes, late ones counting more (after Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992);
each pass begins with the components of the one before, or means would mix different bases. The mean whose answers are
nearest to the source's is kept.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from .calibration import class_outputs_of, distance
from .fitting import ITERATIONS, fit_coefficients, fit_components
from .moments import GIVEN, Stack, damped, linear_maps, paired_moments


PASSES = 11
PATIENCE, GAIN = 4, 0.01  # no more passes after so many without an answer that is nearer by this share
MIXING = 0.3  # of a pass, its moments and what is fitted to them, with those before
DAMPING = 0.3  # of the mean diagonal, towards the source's own weights
ROWS = 4  # tokens of a pass for every input of the widest map
JUDGED = 64  # images on which passes are compared, the first ones


def match(
    stacks: Mapping[str, Stack],
    components: dict[str, torch.Tensor],
    table: torch.Tensor,
    build: Callable[[Mapping[str, torch.Tensor]], nn.Module],
    classes: bool,
    pixel_values: torch.Tensor,
    passes: int = PASSES,
    progress: Callable[[], None] = lambda: None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Improve components and coefficients on the images, pass by pass, as long as the answers come nearer.

    Args:
        stacks: of the source, by part.
        components: by part (n, o, i), a start.
        table: (l, n), a start.
        build: a stock ViT from linear maps by part, (l, o, i).
        classes: whether it gives scores of classes, see `names_classes`.
        pixel_values: calibration images; of many, each pass takes its moments from others.
        passes: at most.
        progress: called once per pass.

    Returns:
        Components and coefficients, means over passes, of the pass at which they were best; the start included.
    """
    depth, (source, model) = len(table), (build({part: own.weights for part, own in stacks.items()}) for _ in range(2))
    judged = pixel_values[:JUDGED]
    expected = class_outputs_of(source, judged)
    widest, tokens = stacks["mlp.fc2"].inputs.shape[-1], float(stacks["mlp.fc2"].inputs[0, -1, -1])
    share = min(len(pixel_values), math.ceil(ROWS * widest / tokens))
    mean = (components, table)
    best, nearer = (float("inf"), *mean), 0
    found = {part: (stack.weights @ stack.inputs, stack.inputs) for part, stack in stacks.items()}
    for number in range(passes + 1):
        put(model, _layers(*mean))
        far = distance(class_outputs_of(model, judged), expected, classes)
        nearer = number if far < (1 - GAIN) * best[0] else nearer
        if far < best[0]:
            best = (far, *mean)
        if number == passes or number - nearer >= PATIENCE:
            break
        put(model, _layers(components, table))
        order = torch.arange(len(pixel_values)).roll(-number * share)
        seen = paired_moments(source, model, pixel_values[order[:share]], depth)
        for part, (cross, own) in seen.items():
            given = cross if part in GIVEN else stacks[part].weights @ cross
            found[part] = tuple(torch.lerp(before, now, MIXING) for before, now in zip(found[part], (given, own)))
        components, table = _fitted(
            {part: _arriving(stack, *found[part]) for part, stack in stacks.items()}, components
        )
        counts = max(MIXING, 1 / (number + 1))
        mean = (
            {part: torch.lerp(before, components[part], counts) for part, before in mean[0].items()},
            torch.lerp(mean[1], table, counts),
        )
        progress()
    return best[1:]


def _layers(components: Mapping[str, torch.Tensor], table: torch.Tensor) -> dict[str, torch.Tensor]:
    """By part (l, o, i)."""
    return {part: torch.einsum("ln,noi->loi", table, own) for part, own in components.items()}


def _fitted(
    stacks: Mapping[str, Stack], components: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One round: coefficients for the components, then components for the coefficients."""
    metrics = {part: stack.metric("matched") for part, stack in stacks.items()}
    table = fit_coefficients(stacks, components, metrics)
    return {
        part: fit_components(stack, table, metrics[part], components[part], ITERATIONS["round"])
        for part, stack in stacks.items()
    }, table


@torch.no_grad()
def put(model: nn.Module, maps: Mapping[str, torch.Tensor]) -> None:
    """Linear maps, (l, o, i) with their biases, into a stock ViT."""
    for part, modules in linear_maps(model, len(maps["mlp.fc2"])).items():
        for module, whole in zip(modules, maps[part]):
            module.weight.copy_(whole[:, :-1]), module.bias.copy_(whole[:, -1])


def _arriving(stack: Stack, given: torch.Tensor, own: torch.Tensor) -> Stack:
    """The map that makes of what arrives what the source gives: E[W x y^T] E[y y^T]^-1, damped to W."""
    held = damped(own, DAMPING) - own
    # Cholesky: batched LU with set_num_threads may fail or hang on CPUs (PyTorch issue 142815).
    factor = torch.linalg.cholesky(own + held)
    weights = torch.cholesky_solve((given + stack.weights @ held).mT, factor).mT
    return replace(stack, weights=weights, inputs=own)
