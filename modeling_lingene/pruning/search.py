"""The search: a trained network whose layers may become convolutions or nothing, and whose MLP units may close.

SPViT, He et al., arXiv 2111.11802: one path of weights for all operations, gates, and the loss
CE + weight * (cost - target)^2, here with costs as shares of the dense network's, so that one weight serves all sizes:
the published ones, for squares of GMACs, are about 25 (DeiT-B), 63 (S) and 34 (Ti) in this unit.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from ..lingene_pruned import KERNELS, MLP, Attention, Bottleneck, PrunedClassifier, off_grid, on_grid
from ..training.loop import Phase
from ..training.losses import Objective
from ..vit_lingene import BlockSettings
from .choose import Worths
from .costs import Costs
from .gates import START, decided, drawn, expected, shares
from .mixing import POSITIONS, mixed_kernel, written_bottleneck


GATES = ".gates"  # how the names of their parameters end
TEMPERATURES = {"vit": 0.01, "swin": 100.0}  # alpha of P = softmax over the heads of mixing / alpha, as published


class SearchedMixer(nn.Module):
    """Attention with three gates, and the convolutions that its weights make.

    Args:
        attention: of the dense network; becomes part of this.
        head_size: channels of one of its heads.
        temperature: alpha of P = softmax over the heads of mixing / alpha.
    """

    def __init__(self, attention: Attention, head_size: int, temperature: float):
        super().__init__()
        weight, self.temperature = attention.value.weight, temperature
        self.attention = attention
        self.mixing = nn.Parameter(weight.new_ones(len(weight) // head_size, POSITIONS))
        self.gates = nn.Parameter(weight.new_full((len(KERNELS) + 1,), START))
        self.norms = nn.ModuleDict({mixer: nn.BatchNorm2d(head_size).to(weight) for mixer in KERNELS})

    @property
    def head_shares(self) -> torch.Tensor:
        """P (h, 9)."""
        return torch.softmax(self.mixing / self.temperature, dim=0)

    def forward(self, hidden: torch.Tensor, settings: BlockSettings, grid: tuple[int, int]):
        """(b, t, d) -> (b, t, d), and the attention weights or None."""
        gates = drawn(self.gates) if self.training else decided(self.gates)
        conv1, conv3, attention = shares(gates)
        mixed, probabilities = self.attention(hidden, settings, grid)
        patches, head_shares = on_grid(hidden, grid), self.head_shares
        convolved = conv1 * self.convolved(patches, head_shares, "conv1")
        convolved = convolved + conv3 * self.convolved(patches, head_shares, "conv3")
        return attention * mixed + off_grid(convolved, hidden), probabilities

    def convolved(self, patches: torch.Tensor, head_shares: torch.Tensor, mixer: str) -> torch.Tensor:
        """Patches (b, d, height, width) through one of the bottlenecks."""
        kernel = KERNELS[mixer]
        down, bias, up = mixed_kernel(self.attention, head_shares, kernel)
        narrow = functional.conv2d(patches, down, bias, padding=kernel // 2)
        narrow = functional.relu(self.norms[mixer](narrow))
        return functional.conv2d(narrow, up[:, :, None, None], self.attention.output.bias)


class SearchedMLP(nn.Module):
    """An MLP with a gate on every unit; the last bias stays whatever closes."""

    def __init__(self, mlp: MLP):
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2
        self.gates = nn.Parameter(mlp.fc1.weight.new_full((len(mlp.fc1.weight),), START))

    def forward(self, hidden: torch.Tensor, settings: BlockSettings) -> torch.Tensor:
        gates = drawn(self.gates) if self.training else decided(self.gates)
        return self.fc2(settings.activation(self.fc1(hidden)) * gates)


def make_searched(network: PrunedClassifier, temperature: float = 0.0) -> None:
    """Give every layer of a dense network gates; in place. All open, which they are, its function is what it was.

    Args:
        temperature: see `SearchedMixer`; 0 is the published one of `TEMPERATURES`.
    """
    temperature = temperature or TEMPERATURES[network.config.family]
    for layer in network.layers:
        layer.mixer = SearchedMixer(layer.mixer, network.config.head_size, temperature)
        layer.mlp = SearchedMLP(layer.mlp)


def take_search(network: PrunedClassifier) -> tuple[Worths, list[dict[str, Bottleneck]]]:
    """Take the gates out again: what they found, and per layer the bottlenecks that would replace its attention."""
    mixers = torch.stack([layer.mixer.gates.detach().float().cpu() for layer in network.layers])
    worths = Worths(mixers, [layer.mlp.gates.detach().float().cpu() for layer in network.layers])
    bottlenecks = []
    for layer in network.layers:
        searched, mlp = layer.mixer, MLP(layer.mlp.fc1.in_features, len(layer.mlp.gates))
        made = {
            mixer: written_bottleneck(searched.attention, searched.head_shares, norm, mixer)
            for mixer, norm in searched.norms.items()
        }
        bottlenecks.append(made)
        mlp.fc1, mlp.fc2 = layer.mlp.fc1, layer.mlp.fc2
        layer.mixer, layer.mlp = searched.attention, mlp
    return worths, bottlenecks


def expected_cost(network: PrunedClassifier, costs: Costs) -> torch.Tensor:
    """What the gates as they are decide the network to cost, with gradients to them (SPViT)."""
    mixers = expected(torch.stack([layer.mixer.gates for layer in network.layers]), ordered=True)
    units = sum(one.unit * expected(layer.mlp.gates).sum() for one, layer in zip(costs.layers, network.layers))
    increments = mixers.new_tensor([one.increments for one in costs.layers])
    return costs.fixed + (mixers * increments).sum() + units


def search_phase(
    network: PrunedClassifier,
    costs: Costs,
    target: float,
    objective: Objective,
    cost_weight: float,
    gate_learning_rate: float,
) -> Phase:
    """The one phase of the search.

    Args:
        network: with gates; its cost is that of all of them open.
        target: of `costs`.
        cost_weight: of the squared difference, in shares of the dense network's cost.
        gate_learning_rate: peak, for the gates, which do not decay.
    """
    dense = costs.total(network.config.mixers, network.config.intermediate_sizes)
    distance = partial(_distance, network, costs, target, dense)
    forward = partial(_forward, objective, distance, cost_weight)
    return Phase("search", lambda name: True, forward, rates={GATES: gate_learning_rate})


def _distance(network: nn.Module, costs: Costs, target: float, dense: float) -> torch.Tensor:
    """From the target, as a share of the dense cost."""
    return (expected_cost(network, costs) - target) / dense


def _forward(
    objective: Objective,
    distance: Callable[[], torch.Tensor],
    cost_weight: float,
    model: Callable,
    batch: dict,
    generator: torch.Generator,
) -> torch.Tensor:
    logits = model(batch["pixel_values"]).logits
    return objective.of_batch(logits, batch) + cost_weight * distance().square()
