"""Laws of the search: its gates, its convolutions against the paper's sums, what is written out of it.

pytest tests/pruning/test_search.py
"""

import copy

import pruning_helpers as made
import pytest
import torch

from modeling_lingene.lingene_pruned import on_grid
from modeling_lingene.pruning.costs import costs_of
from modeling_lingene.pruning.gates import decided, drawn, expected, shares
from modeling_lingene.pruning.search import expected_cost, make_searched, search_phase, take_search
from modeling_lingene.training.losses import Objective


ALL = [(3 * row + column, row, column) for row in range(3) for column in range(3)]
TRANSPOSED = [(3 * column + row, row, column) for row in range(3) for column in range(3)]
CENTRE = [(4, 1, 1)]
families = pytest.mark.parametrize("family", made.FAMILIES)


def searched(family: str = "vit", dtype=torch.float64, seed: int = 0):
    """A dense network with gates, head shares that differ from position to position, and BatchNorms that have seen
    something.
    """
    network = made.network(made.dense(family), seed, dtype)
    make_searched(network, temperature=1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        for layer in network.layers:
            layer.mixer.mixing.data.normal_()
            made.shake(layer.mixer.norms)
    return network.eval()


def set_gates(network, conv1: bool, conv3: bool, attention: bool, units: bool = True) -> None:
    with torch.no_grad():
        for layer in network.layers:
            layer.mixer.gates.copy_(torch.tensor([1.0 if one else -1.0 for one in (conv1, conv3, attention)]))
            layer.mlp.gates.fill_(1.0 if units else -1.0)


def by_position(network, seen, mixer: str, positions) -> list[torch.Tensor]:
    """The paper's sums over the whole map of every layer."""
    mixers = [layer.mixer for layer in network.layers]
    return [
        made.by_position(on_grid(hidden, grid), m.attention, m.head_shares, m.norms[mixer], positions)
        for m, (hidden, grid) in zip(mixers, seen, strict=True)
    ]


def seen_by(network, dtype=torch.float64) -> list[tuple]:
    """Tokens and grid for every layer."""
    return list(zip(made.tokens(network.config, dtype), made.grids(network.config), strict=True))


@families
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("mixer, positions", [("conv3", ALL), ("conv1", CENTRE)])
@torch.no_grad()
def test_the_search_branch_the_written_module_and_the_papers_sum_agree(family, dtype, tolerance, mixer, positions):
    """What is fine-tuned must be what was searched; head shares and statistics are asymmetric, so that no two
    positions can be exchanged. Of a Swin all three see the whole map, over the borders of windows.
    """
    network = searched(family, dtype)
    set_gates(network, True, mixer == "conv3", False)
    seen, settings = seen_by(network, dtype), network.settings()
    branches = [layer.mixer(hidden, settings, grid)[0] for layer, (hidden, grid) in zip(network.layers, seen)]
    sums = by_position(network, seen, mixer, positions)
    _, bottlenecks = take_search(network)
    for branch, (hidden, grid), expected_sum, both in zip(branches, seen, sums, bottlenecks, strict=True):
        written, _ = both[mixer].eval()(hidden, settings, grid)
        assert (branch - written).abs().max() < tolerance * branch.abs().max()
        assert (on_grid(written, grid) - expected_sum).abs().max() < tolerance * branch.abs().max()
        others = hidden.shape[1] - grid[0] * grid[1]
        assert others == (family == "vit") and not written[:, :others].any()
        assert written[:, others:].abs().mean() > 0.01


@families
@torch.no_grad()
def test_a_transposed_kernel_is_another_function(family):
    """Or the law above would pass whatever the order of the positions."""
    network = searched(family)
    seen, settings = seen_by(network), network.settings()
    turned = by_position(network, seen, "conv3", TRANSPOSED)
    _, bottlenecks = take_search(network)
    for both, (hidden, grid), other in zip(bottlenecks, seen, turned, strict=True):
        written, _ = both["conv3"].eval()(hidden, settings, grid)
        assert (on_grid(written, grid) - other).abs().max() > 1e-2 * written.abs().max()


@families
@pytest.mark.parametrize("training", [False, True])
def test_all_gates_open_is_the_dense_network_to_the_last_bit(family, training):
    """The search starts from what was trained."""
    network = made.network(made.dense(family))
    dense, pixels = copy.deepcopy(network), made.pixels(network.config, 2)
    make_searched(network)
    with torch.no_grad():
        for layer in network.layers:
            layer.mixer.gates.fill_(50.0)
            layer.mlp.gates.fill_(50.0)
        assert torch.equal(network.train(training)(pixels).logits, dense.train(training)(pixels).logits)


@families
def test_all_gates_closed_is_the_identity(family):
    """A layer without operation adds nothing, in the search as in what is written; the last bias of an MLP stays."""
    network = searched(family)
    set_gates(network, False, False, False, units=False)
    with torch.no_grad():
        for layer, (hidden, grid) in zip(network.layers, seen_by(network), strict=True):
            out, _ = layer(hidden, network.settings(), grid)
            assert torch.equal(out, hidden + layer.mlp.fc2.bias)
            layer.mlp.fc2.bias.zero_()
            assert torch.equal(layer(hidden, network.settings(), grid)[0], hidden)


def test_head_shares_are_as_soft_as_published():
    """DeiT's temperature makes a choice of a difference of 0.1, Swin's a mean over the heads."""
    for family, least in (("vit", 0.99), ("swin", None)):
        network = made.network(made.dense(family))
        make_searched(network)
        mixer = network.layers[0].mixer
        with torch.no_grad():
            mixer.mixing[0] += 0.1
            shares = mixer.head_shares
        assert shares[0].min() > least if least else (shares * len(shares) - 1).abs().max() < 0.002
        torch.testing.assert_close(shares.sum(0), torch.ones(9))


def test_a_gate_is_drawn_with_its_probability_and_the_gradient_of_the_relaxed_draw():
    """Values are 0 and 1 exactly: a layer that is nearly closed would not be the one that is written."""
    torch.manual_seed(0)
    logits = torch.tensor([-2.0, 0.0, 1.5]).repeat(20_000, 1).requires_grad_()
    values = drawn(logits)
    assert set(values.flatten().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(values.mean(0), torch.sigmoid(logits[0]), atol=0.015, rtol=0)
    torch.manual_seed(0)
    noise = torch.rand_like(logits)
    values.sum().backward()
    relaxed = torch.sigmoid(torch.log(noise) - torch.log1p(-noise) + logits.detach())
    torch.testing.assert_close(logits.grad, relaxed * (1 - relaxed), atol=1e-4, rtol=0)
    assert decided(torch.tensor([-0.1, 0.1])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "gates, opened, learning",
    [
        ((0, 0, 0), None, [0]),
        ((0, 1, 1), None, [0]),  # an operation is open on top of those before it only
        ((1, 0, 1), 0, [0, 1]),
        ((1, 1, 0), 1, [1, 2]),
        ((1, 1, 1), 2, [2]),
    ],
)
def test_operations_are_ordered_and_what_lies_below_is_not_blamed(gates, opened, learning):
    """The published ordering with its detached gates; by hand."""
    values = torch.tensor(gates, dtype=torch.float32, requires_grad=True)
    found = shares(values)
    assert [share.item() for share in found] == [float(index == opened) for index in range(3)]
    outputs = torch.tensor([2.0, 3.0, 5.0])  # of the three operations
    (torch.stack(found) * outputs).sum().backward()
    assert [index for index in range(3) if values.grad[index]] == learning
    if gates == (1, 1, 1):
        assert values.grad[2] == 2.0  # what attention adds over the 3x3 convolution


@families
def test_the_expected_cost_is_that_of_the_decided_gates_with_gradients_towards_fewer(family):
    """Counted of what would be written, not of one draw; a Swin's layers cost by their stage."""
    network = searched(family, torch.float32)
    costs = costs_of(network.config)
    states = [((1, 1, 1), "attention"), ((1, 1, -1), "conv3"), ((1, -1, 1), "conv1"), ((-1, 1, 1), "none")]
    with torch.no_grad():
        for layer, (gates, _) in zip(network.layers, states):
            layer.mixer.gates.copy_(torch.tensor(gates))
            layer.mlp.gates.fill_(-1.0)
            layer.mlp.gates[:40] = 1.0
    cost = expected_cost(network, costs)
    assert float(cost) == pytest.approx(costs.total([mixer for _, mixer in states], [40] * 4), rel=1e-6)
    cost.backward()
    for layer in network.layers:
        assert (layer.mixer.gates.grad > 0).all() and (layer.mlp.gates.grad > 0).all()
    slope = torch.sigmoid(torch.sigmoid(torch.tensor(1.0)) - 0.5)
    slope = slope * (1 - slope) * torch.sigmoid(torch.tensor(1.0)) * (1 - torch.sigmoid(torch.tensor(1.0)))
    assert float(network.layers[0].mlp.gates.grad[0]) == pytest.approx(float(slope) * costs.layers[0].unit, rel=1e-5)
    assert expected(torch.tensor([-1.0, 1.0, 1.0]), ordered=True).tolist() == [0.0, 0.0, 0.0]


@families
def test_the_search_closes_gates_until_its_cost_is_the_target(family):
    """With the loss of the phase alone, on noise: nothing else holds gates open."""
    torch.manual_seed(0)
    network = made.network(made.dense(family)).train()
    make_searched(network)
    costs = costs_of(network.config)
    dense = costs.total(network.config.mixers, network.config.intermediate_sizes)
    phase = search_phase(network, costs, 0.5 * dense, Objective(), 30.0, 0.05)
    optimizer = torch.optim.Adam([p for n, p in network.named_parameters() if n.endswith(".gates")], 0.05)
    batch = {"pixel_values": made.pixels(network.config, 8), "labels": torch.arange(8) % 7}
    torch.manual_seed(0)
    for _ in range(80):
        optimizer.zero_grad()
        phase.forward(network, batch, None).backward()
        optimizer.step()
    assert 0.3 < float(expected_cost(network, costs)) / dense < 0.7


@families
def test_taking_the_search_out_gives_the_dense_modules_back(family):
    """What keeps its attention and its units is written from the very weights that were searched with."""
    network = searched(family, torch.float32)
    set_gates(network, True, True, True)
    pixels = made.pixels(network.config, 2)
    with torch.no_grad():
        before = network(pixels).logits
        worths, bottlenecks = take_search(network)
        assert torch.equal(network(pixels).logits, before)
    assert (
        worths.mixers.shape == (4, 3) and [len(units) for units in worths.units] == network.config.intermediate_sizes
    )
    assert [sorted(both) for both in bottlenecks] == [["conv1", "conv3"]] * 4
    assert network.state_dict().keys() == made.network(made.dense(family)).state_dict().keys()
