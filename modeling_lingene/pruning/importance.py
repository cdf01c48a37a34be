"""What attention, convolutions and MLP units are worth, without training: from a few hundred unlabelled images.

Both in nats of one image, and so on one scale. A mixer: how far the answers move, KL(dense || changed), where it takes
attention's place in its layer alone, measured. An MLP unit: the same to second order, half the mean square of the
loss's derivative by a gate on the unit, with labels drawn from the answers (Fisher; Theis et al., arXiv 1801.05787).
Convolutions start from the mean over the heads, as the search does, their second one fitted to what attention adds.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from ..lingene_pruned import MIXERS, Bottleneck, PrunedClassifier, on_grid
from ..progress import progress_bar
from ..training.losses import divergence
from .choose import Worths
from .costs import Costs, LayerCosts
from .mixing import POSITIONS, written_bottleneck


RIDGE = 1e-3  # of the mean diagonal


def importance(
    dense: PrunedClassifier, batches: Sequence[torch.Tensor], costs: Costs, seed: int = 0
) -> tuple[Worths, list[dict[str, Bottleneck]]]:
    """Worths per cost, and per layer the bottlenecks that would replace its attention.

    Args:
        dense: in evaluation mode.
        batches: of pixel values (b, channels, height, width), where the network is.
        costs: what worths are divided by.
        seed: of the labels.
    """
    bottlenecks = fitted_bottlenecks(dense, batches)
    moved = mixer_losses(dense, bottlenecks, batches)
    mixers = [efficiencies(losses, one) for losses, one in zip(moved, costs.layers)]
    units = [worth / one.unit for worth, one in zip(unit_losses(dense, batches, seed), costs.layers)]
    return Worths(torch.tensor(mixers, dtype=torch.float64), units), bottlenecks


@torch.no_grad()
def fitted_bottlenecks(dense: PrunedClassifier, batches: Sequence[torch.Tensor]) -> list[dict[str, Bottleneck]]:
    """Per layer both bottlenecks: BatchNorm's statistics, then the second convolution, from what the layers see."""
    size, made = dense.config.head_size, []
    for layer in dense.layers:
        weight = layer.mixer.value.weight
        heads = len(weight) // size
        shares = weight.new_full((heads, POSITIONS), 1 / heads)
        norm = nn.BatchNorm2d(size, momentum=None).to(weight)  # the mean over all batches
        made.append({mixer: written_bottleneck(layer.mixer, shares, norm, mixer) for mixer in MIXERS[1:3]})
    for one in (one for both in made for one in both.values()):
        one.norm.momentum = None
    _watch(dense, batches, lambda layer, patches, target: [_normed(one, patches) for one in made[layer].values()])
    for one in (one for both in made for one in both.values()):
        one.norm.eval().momentum = 0.1
    sums = [{mixer: None for mixer in both} for both in made]

    def add(layer: int, patches: torch.Tensor, target: torch.Tensor) -> None:
        for mixer, one in made[layer].items():
            values = functional.relu(one.norm(one.reduce(patches))).flatten(2).transpose(1, 2).flatten(0, 1).double()
            values = functional.pad(values, (0, 1), value=1.0)
            products = torch.stack([values.T @ values]), (values.T @ target.flatten(0, 1).double())[None]
            before = sums[layer][mixer]
            sums[layer][mixer] = products if before is None else tuple(a + b for a, b in zip(before, products))

    _watch(dense, batches, add)
    for both, own in zip(made, sums):
        for mixer, one in both.items():
            gram, cross = (part[0] for part in own[mixer])
            ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            solved = torch.linalg.solve(gram + ridge, cross)
            one.expand.weight.copy_(solved[:-1].T[:, :, None, None])
            one.expand.bias.copy_(solved[-1])
    return made


def _normed(one: Bottleneck, patches: torch.Tensor) -> None:
    one.norm.train()(one.reduce(patches))


def _watch(dense: PrunedClassifier, batches: Sequence[torch.Tensor], see) -> None:
    """Calls `see` with every layer's number, its normed patches (b, d, h, w) and attention's output for them."""

    def hook(layer: int):
        def watched(module: nn.Module, given: tuple, output: tuple) -> None:
            patches = on_grid(given[0], given[2])
            see(layer, patches, on_grid(output[0], given[2]).flatten(2).transpose(1, 2))

        return watched

    handles = [layer.mixer.register_forward_hook(hook(index)) for index, layer in enumerate(dense.layers)]
    try:
        for batch in batches:
            dense(batch)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def mixer_losses(
    dense: PrunedClassifier,
    bottlenecks: Sequence[Mapping[str, Bottleneck]],
    batches: Sequence[torch.Tensor],
) -> list[list[float]]:
    """Per layer KL(dense || changed) with each of `MIXERS` in place of its attention; 0 for attention itself."""
    moved = [[0.0] * len(MIXERS) for _ in dense.layers]
    settings, images = dense.settings(), sum(map(len, batches))
    for batch in progress_bar(batches, desc="mixers", unit="batch"):
        answer, (before, grid) = dense(batch).logits, dense.embed(batch)
        for index, layer in enumerate(dense.layers):
            before, grid = dense.entered(index, before, grid)
            normed = layer.norm1(before)
            for place, mixer in enumerate(MIXERS[:-1]):
                hidden = before
                if mixer != "none":
                    hidden = before + bottlenecks[index][mixer](normed, settings, grid)[0]
                hidden = hidden + layer.mlp(layer.norm2(hidden), settings)
                logits = _answered(dense, index + 1, hidden, grid)
                moved[index][place] += float(divergence(logits, answer)) * len(batch) / images
            before, _ = layer(before, settings, grid)
    return moved


def _answered(dense: PrunedClassifier, start: int, hidden: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Logits (b, classes) from what the layer before `start` gives, (b, t, d)."""
    settings = dense.settings()
    for index in range(start, len(dense.layers)):
        hidden, grid = dense.entered(index, hidden, grid)
        hidden, _ = dense.layers[index](hidden, settings, grid)
    return dense.classifier(dense.head_input(dense.layernorm(hidden)))


def unit_losses(dense: PrunedClassifier, batches: Sequence[torch.Tensor], seed: int = 0) -> list[torch.Tensor]:
    """Per layer and MLP unit (m,) half the mean squared derivative of the loss by a gate on the unit."""
    found = [torch.zeros(size, dtype=torch.float64) for size in dense.config.intermediate_sizes]
    generator, images = torch.Generator().manual_seed(seed), sum(map(len, batches))
    gates: list[torch.Tensor] = []

    def gated(module: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        gates.append(given[0].new_ones(len(given[0]), 1, given[0].shape[-1], requires_grad=True))
        return (given[0] * gates[-1],)

    handles = [layer.mlp.fc2.register_forward_pre_hook(gated) for layer in dense.layers]
    try:
        for batch in batches:
            gates.clear()
            with torch.enable_grad():
                logits = dense(batch).logits.float()
                labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
                loss = functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")
            for worth, gradient in zip(found, torch.autograd.grad(loss, gates)):
                worth += gradient[:, 0].double().square().sum(0).cpu() / (2 * images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def efficiencies(losses: Sequence[float], costs: LayerCosts) -> list[float]:
    """What each gate of a layer saves per cost, never rising: steps that pay only together are taken together.

    The upper hull of what the mixers save over their costs; a mixer below it shares the slope that passes over it.

    Args:
        losses: of none, conv1, conv3, attention.
        costs: of the layer.
    """
    places, slopes, start = list(costs.mixers.values()), [], 0
    while start < len(losses) - 1:
        rates = [
            (losses[start] - losses[end]) / (places[end] - places[start]) for end in range(start + 1, len(losses))
        ]
        best = max(range(len(rates)), key=lambda index: (rates[index], index))
        slopes += [rates[best]] * (best + 1)
        start += best + 1
    return slopes
