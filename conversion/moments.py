"""What passes through the linear maps of a ViT on a few hundred images: second moments of inputs and of gradients.

Labels for the gradients are drawn from the model's own answers, as Fisher information wants them; without classes
random directions of what the model gives, its class token or its outputs, stand in for them. The two moments of a map
are the Kronecker-factored curvature of Martens and Grosse (arXiv 1503.05671).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ..configuration_lingene import LinGeneConfig
from ..families_lingene import image_token, stock_class
from ..recompose_lingene import block_linears


# Shares of the mean diagonal, and the power of a layer's trace that counts. With few components errors are large, and
# a metric that is true for small ones only has to be blunted. Chosen on training images of one ViT of eight layers.
INPUT_DAMPING = {"activations": 0.1, "weighted": 0.1, "kronecker": 0.03, "aligned": 0.03, "matched": 0.03}
GRADIENT_DAMPING = 2.0
LEAST_TRACE = 1e-6  # of the layers' mean: where nothing depends on what a layer gives, any error is as good
TRACE_POWER = 0.25
# The same inputs: one moment.
SHARED = {"attention.key": "attention.query", "attention.value": "attention.query", "mlp.gate": "mlp.fc1"}
GIVEN = ("mlp.fc2",)  # maps that give less than they take
PANEL = 512  # columns of a symmetric product at once; what lies above the panel is not computed
BATCH = {"cpu": 8, "cuda": 64}  # images at once: what passes between two layers stays in the cache of a core


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
        gradients, trace = self._regular_gradients()
        if fit == "activations":
            return inputs, torch.ones_like(trace)
        if fit == "weighted":
            return inputs, trace
        return inputs, damped(gradients, GRADIENT_DAMPING) / trace ** (1 - TRACE_POWER)

    def _regular_gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """G, and its traces (l, 1, 1), none of which is zero: of a layer on whose outputs nothing depends, since what
        follows writes nothing, it is a small share of the identity.
        """
        trace = self.gradients.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
        least = LEAST_TRACE * trace.mean()
        least = torch.where(least > 0, least, torch.ones_like(least))
        lacking = (least - trace).clamp(min=0)
        if not lacking.any():
            return self.gradients, trace
        size = self.gradients.shape[-1]
        eye = torch.eye(size, dtype=trace.dtype, device=trace.device)
        return self.gradients + lacking / size * eye, trace + lacking


def damped(moments: torch.Tensor, share: float) -> torch.Tensor:
    """(l, i, i) plus a share of its mean diagonal."""
    mean = moments.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
    return moments + share * mean * torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)


def linear_maps(model: nn.Module, depth: int) -> dict[str, list[nn.Linear]]:
    """The linear maps of every block of a stock ViT, by part, in the order of the layers.

    Queries, keys and values go by their names, which families have in different orders; what follows them does not.
    """
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    parts = block_linears(any(name.endswith(".gate_proj") for name, _ in named))
    found = {part: [] for part in parts}
    for layer in range(depth):
        block = named[len(parts) * layer : len(parts) * (layer + 1)]
        block[:3] = sorted(block[:3], key=lambda pair: "qkv".index(pair[0].rpartition(".")[2][0]))
        for part, (_, module) in zip(parts, block):
            found[part].append(module)
    return found


def check_looked_into(config: LinGeneConfig) -> None:
    """Whether the linear maps of this network can be looked into one by one.

    Raises:
        ValueError: gated MLPs of a transformers that has a gate and its units as one map.
    """
    if not config.gated_mlp:
        return
    with torch.device("meta"):
        model = stock_class(config.family, "encoder")(config.stock_config(config.size()))
    if any(name.endswith(".weights_in") for name, _ in model.named_modules()):
        raise ValueError(
            "`calibrate` looks into gated MLPs of DINOv2 with transformers 5.18 or newer alone, before which a gate "
            "and its units are one map there: upgrade it (pip install -U transformers)."
        )


def add_symmetric(total: torch.Tensor, rows: torch.Tensor) -> None:
    """total += rows^T rows, on and below the diagonal; (i, i) and (r, i)."""
    for start in range(0, len(total), PANEL):
        total[start:, start : start + PANEL].addmm_(rows[:, start:].T, rows[:, start : start + PANEL])


def mirrored(totals: list[torch.Tensor], count: int) -> torch.Tensor:
    """What `add_symmetric` added up, whole and divided by a count: (l, i, i)."""
    whole = torch.stack(totals).tril_().div_(count)
    return whole.add_(whole.tril(-1).mT)


def extended(states: torch.Tensor) -> torch.Tensor:
    """(b, t, i) -> (b t, i + 1) with the constant 1."""
    return functional.pad(states.detach().flatten(0, -2), (0, 1), value=1.0)


@torch.enable_grad()
def moments(
    model: nn.Module,
    classes: bool,
    pixel_values: torch.Tensor,
    depth: int,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Second moments around every linear map, means over images and tokens.

    Args:
        model: a stock ViT in evaluation mode; every parameter frozen.
        classes: whether it gives scores of classes, see `names_classes`.
        pixel_values: (images, channels, h, w).
        batch_size: images at once; default by the device.

    Returns:
        By part inputs (l, i, i) with the constant 1 appended, one tensor for the maps that have the same inputs, and
        output gradients (l, o, o); the dtype of the model.
    """
    maps, like = linear_maps(model, depth), next(model.parameters())
    device = like.device
    entering = {part: _zeros(modules, "in_features", 1) for part, modules in maps.items() if part not in SHARED}
    leaving = {part: _zeros(modules, "out_features", 0) for part, modules in maps.items()}

    def remember(part: str, layer: int) -> Callable:
        def hook(module: nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
            if part in entering:
                add_symmetric(entering[part][layer], extended(inputs[0]))
            output.register_hook(lambda gradient: add_symmetric(leaving[part][layer], gradient.flatten(0, -2)))

        return hook

    generator, seen = torch.Generator().manual_seed(seed), 0
    with hooked(maps, remember):
        for values in pixel_values.split(batch_size or BATCH[device.type]):
            values = values.to(device).requires_grad_()
            output = model(pixel_values=values)
            if classes:
                drawn = torch.multinomial(output.logits.detach().softmax(-1).cpu(), 1, generator=generator)
                loss = functional.cross_entropy(output.logits, drawn[:, 0].to(device), reduction="sum")
            else:
                answer = output.logits if hasattr(output, "logits") else image_token(model.config, output)
                loss = (answer * torch.randn(answer.shape, generator=generator).to(device)).sum()
            torch.autograd.grad(loss, values)
            seen += len(values)
            progress(len(values))
    inputs = {part: mirrored(totals, seen) for part, totals in entering.items()}
    return {part: (inputs[SHARED.get(part, part)], mirrored(totals, seen)) for part, totals in leaving.items()}


def _zeros(modules: list[nn.Linear], side: str, more: int) -> list[torch.Tensor]:
    """A square of zeros per module."""
    sizes = [getattr(module, side) + more for module in modules]
    return [module.weight.new_zeros(size, size) for module, size in zip(modules, sizes)]


@contextmanager
def hooked(maps: Mapping[str, list[nn.Linear]], make: Callable[[str, int], Callable]) -> Iterator[None]:
    """Forward hooks on linear maps, made by part and layer; taken away at the end whatever happens."""
    hooks = [
        module.register_forward_hook(make(part, layer))
        for part, modules in maps.items()
        for layer, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def paired_moments(
    model: nn.Module, approximation: nn.Module, pixel_values: torch.Tensor, depth: int, batch_size: int | None = None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """How what a model's linear maps take, or give, goes with the inputs of an approximation's, on the same images.

    Args:
        model, approximation: stock ViTs of one shape in evaluation mode.
        pixel_values: (images, channels, h, w).
        batch_size: images at once; default by the device.

    Returns:
        By part E[t y^T] and E[y y^T], (l, t, i) and (l, i, i): y the inputs of the approximation's map and t those of
        the model's, constant 1 appended, one tensor for maps that have the same inputs; for `mlp.fc2` t is what the
        model's map gives, which is narrower.
    """
    theirs, ours = (
        {part: modules for part, modules in linear_maps(one, depth).items() if part not in SHARED}
        for one in (model, approximation)
    )
    own = {part: _zeros(modules, "in_features", 1) for part, modules in ours.items()}
    cross, seen = {part: [0.0] * depth for part in ours}, {}

    def keep(part: str, layer: int) -> Callable:
        def hook(module: nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
            seen[part, layer] = output.flatten(0, -2) if part in GIVEN else extended(inputs[0])

        return hook

    def add(part: str, layer: int) -> Callable:
        def hook(module: nn.Linear, inputs: tuple, output: torch.Tensor) -> None:
            arriving = extended(inputs[0])
            cross[part][layer] = cross[part][layer] + seen.pop((part, layer)).T @ arriving
            add_symmetric(own[part][layer], arriving)

        return hook

    device = next(model.parameters()).device
    with hooked(theirs, keep), hooked(ours, add):
        for values in pixel_values.split(batch_size or BATCH[device.type]):
            values = values.to(device)
            model(pixel_values=values)
            approximation(pixel_values=values)
    count = len(pixel_values)
    found = {part: (torch.stack(cross[part]) / count, mirrored(own[part], count)) for part in own}
    return {part: found[SHARED.get(part, part)] for part in linear_maps(model, depth)}


def stacks_of(weights: Mapping[str, torch.Tensor], found: Mapping[str, tuple[torch.Tensor, torch.Tensor]]):
    """Weights with their moments, by part."""
    joined = {}
    for part, (inputs, gradients) in found.items():
        matrix = weights[f"{part}.weight"]
        bias = weights.get(f"{part}.bias", matrix.new_zeros(matrix.shape[:2]))
        whole = torch.cat((matrix, bias.unsqueeze(-1)), dim=-1)
        joined[part] = Stack(whole.to(inputs), inputs, gradients)
    return joined
