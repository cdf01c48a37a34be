"""What passes through the linear maps of a ViT on a few hundred images: second moments of inputs and of gradients.

Labels for the gradients are drawn from the model's own answers, as Fisher information wants them; without a classifier
random directions of the class token stand in for them. The two moments of a map are the Kronecker-factored curvature
of Martens and Grosse (arXiv 1503.05671).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ..recompose_lingene import BLOCK_LINEARS


# Shares of the mean diagonal, and the power of a layer's trace that counts. With few components errors are large, and
# a metric that is true for small ones only has to be blunted. Chosen on training images of one ViT of eight layers.
INPUT_DAMPING = {"activations": 0.1, "weighted": 0.1, "kronecker": 0.03, "aligned": 0.03, "matched": 0.03}
GRADIENT_DAMPING = 2.0
TRACE_POWER = 0.25


@dataclass
class Stack:
    """One linear map of every layer with the moments around it.

    Args:
        weights: (l, o, i), the bias as the last column.
        inputs: (l, i, i), C_l.
        gradients: (l, o, o), G_l.
    """

    weights: torch.Tensor
    inputs: torch.Tensor
    gradients: torch.Tensor

    def metric(self, fit: str) -> tuple[torch.Tensor, torch.Tensor]:
        """C and G as a fit sees them; G a factor per layer where it is not a matrix."""
        inputs = damped(self.inputs, INPUT_DAMPING[fit])
        trace = self.gradients.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
        if fit == "activations":
            return inputs, torch.ones_like(trace)
        if fit == "weighted":
            return inputs, trace
        return inputs, damped(self.gradients, GRADIENT_DAMPING) / trace ** (1 - TRACE_POWER)


def damped(moments: torch.Tensor, share: float) -> torch.Tensor:
    """(l, i, i) plus a share of its mean diagonal."""
    mean = moments.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
    return moments + share * mean * torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)


def linear_maps(model: nn.Module, depth: int) -> dict[str, list[nn.Linear]]:
    """The six linear maps of every block of a stock ViT, by part, in the order of the layers."""
    found = [module for module in model.modules() if isinstance(module, nn.Linear)][: 6 * depth]
    return {part: found[index::6] for index, part in enumerate(BLOCK_LINEARS)}


@torch.enable_grad()
def moments(
    model: nn.Module,
    head: bool,
    pixel_values: torch.Tensor,
    depth: int,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Second moments around every linear map, means over images and tokens.

    Args:
        model: a stock ViT in evaluation mode; every parameter frozen.
        pixel_values: (images, channels, h, w).

    Returns:
        By part inputs (l, i, i) with the constant 1 appended, and output gradients (l, o, o); float32.
    """
    maps = linear_maps(model, depth)
    device = next(model.parameters()).device
    sums = {part: ([0.0] * depth, [0.0] * depth) for part in maps}
    seen = 0

    def remember(part: str, layer: int) -> Callable:
        def hook(module: nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
            entered = functional.pad(inputs[0].detach().flatten(0, -2), (0, 1), value=1.0)
            sums[part][0][layer] = sums[part][0][layer] + entered.T @ entered

            def back(gradient: torch.Tensor) -> None:
                flat = gradient.flatten(0, -2)
                sums[part][1][layer] = sums[part][1][layer] + flat.T @ flat

            output.register_hook(back)

        return hook

    hooks = [
        module.register_forward_hook(remember(part, layer))
        for part, modules in maps.items()
        for layer, module in enumerate(modules)
    ]
    generator = torch.Generator().manual_seed(seed)
    try:
        for values in pixel_values.split(batch_size):
            values = values.to(device).requires_grad_()
            output = model(pixel_values=values)
            if head:
                drawn = torch.multinomial(output.logits.detach().softmax(-1).cpu(), 1, generator=generator)
                loss = functional.cross_entropy(output.logits, drawn[:, 0].to(device), reduction="sum")
            else:
                token = output.last_hidden_state[:, 0]
                loss = (token * torch.randn(token.shape, generator=generator).to(device)).sum()
            torch.autograd.grad(loss, values)
            seen += len(values)
            progress(len(values))
    finally:
        for hook in hooks:
            hook.remove()
    return {part: tuple(torch.stack(parts) / seen for parts in pair) for part, pair in sums.items()}


@torch.no_grad()
def paired_moments(
    model: nn.Module, approximation: nn.Module, pixel_values: torch.Tensor, depth: int, batch_size: int = 32
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """How the inputs of a model's linear maps go with those of an approximation's, on the same images.

    Args:
        model, approximation: stock ViTs of one shape in evaluation mode.
        pixel_values: (images, channels, h, w).

    Returns:
        By part E[x y^T] and E[y y^T], x of the model and y of the approximation, (l, i, i) each, constant 1 appended.
    """
    entered: tuple[dict, dict] = ({}, {})

    def remember(which: int, place: tuple[str, int]) -> Callable:
        def hook(module: nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
            entered[which][place] = functional.pad(inputs[0].flatten(0, -2), (0, 1), value=1.0)

        return hook

    hooks = [
        module.register_forward_hook(remember(which, (part, layer)))
        for which, one in enumerate((model, approximation))
        for part, modules in linear_maps(one, depth).items()
        for layer, module in enumerate(modules)
    ]
    device, sums = next(model.parameters()).device, {}
    try:
        for values in pixel_values.split(batch_size):
            model(pixel_values=values.to(device)), approximation(pixel_values=values.to(device))
            for place, x in entered[0].items():
                y = entered[1][place]
                cross, own = sums.get(place, (0.0, 0.0))
                sums[place] = (cross + x.T @ y, own + y.T @ y)
    finally:
        for hook in hooks:
            hook.remove()
    count = len(pixel_values)
    return {
        part: tuple(torch.stack([sums[part, layer][kind] for layer in range(depth)]) / count for kind in (0, 1))
        for part in BLOCK_LINEARS
    }


def stacks_of(weights: Mapping[str, torch.Tensor], found: Mapping[str, tuple[torch.Tensor, torch.Tensor]]):
    """Weights with their moments, by part."""
    joined = {}
    for part, (inputs, gradients) in found.items():
        matrix = weights[f"{part}.weight"]
        bias = weights.get(f"{part}.bias", matrix.new_zeros(matrix.shape[:2]))
        whole = torch.cat((matrix, bias.unsqueeze(-1)), dim=-1)
        joined[part] = Stack(whole.to(inputs), inputs, gradients)
    return joined
