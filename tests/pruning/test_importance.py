"""Laws of the training-free start: each worth against what it claims to be, computed the long way.

pytest tests/pruning/test_importance.py
"""

from typing import NamedTuple

import numpy
import pruning_helpers as made
import pytest
import torch
from torch.nn import functional

import helpers
from modeling_lingene.lingene_pruned import MIXERS, Bottleneck, PrunedClassifier, on_grid
from modeling_lingene.pruning.choose import Choice, choose
from modeling_lingene.pruning.costs import costs_of
from modeling_lingene.pruning.importance import fitted_bottlenecks, importance, mixer_losses, unit_losses
from modeling_lingene.pruning.write import write_network


BATCHES = [helpers.images(5, seed=1), helpers.images(3, seed=2)]


class Made(NamedTuple):
    """A dense network of four layers, images for it, and the bottlenecks fitted to them."""

    network: PrunedClassifier
    batches: list[torch.Tensor]
    bottlenecks: list[dict[str, Bottleneck]]


@pytest.fixture(scope="module", params=made.FAMILIES)
def each(request):
    network = made.network(made.dense(request.param))
    network.classifier.weight.data.mul_(6)  # means over all tokens of noise are hardly apart
    batches = [made.pixels(network.config, count, seed=count) for count in (5, 3)]
    return Made(network, batches, fitted_bottlenecks(network, batches))


def log_softmax(model, batches=BATCHES) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.cat(batches)).logits.double().log_softmax(-1)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_mixers_loss_is_how_far_the_written_network_is_from_the_dense_one(each, layer, place):
    """KL over all images of the very network that would be written with this one change."""
    network, batches, bottlenecks = each
    mixers = tuple(MIXERS[place] if index == layer else "attention" for index in range(4))
    units = tuple(tuple(range(size)) for size in network.config.intermediate_sizes)
    written = write_network(network, Choice(mixers, units, 0), bottlenecks)
    dense, changed = log_softmax(network, batches), log_softmax(written, batches)
    expected = (dense.exp() * (dense - changed)).sum(-1).mean()
    found = mixer_losses(network, bottlenecks, batches)[layer]
    assert found[3] == 0 and found[place] == pytest.approx(float(expected), rel=1e-3) and expected > 1e-4


def test_a_units_loss_is_half_the_mean_squared_derivative_by_its_gate():
    """Image by image, gates multiplied in by hand, the same labels."""
    network = made.network(made.dense_config(layers=3))
    found, labels, generator = unit_losses(network, BATCHES, seed=3), [], torch.Generator().manual_seed(3)
    for batch in BATCHES:
        with torch.no_grad():
            labels.append(torch.multinomial(network(batch).logits.softmax(-1), 1, generator=generator)[:, 0])
    expected = [torch.zeros(96, dtype=torch.float64) for _ in range(3)]
    for image, label in zip(torch.cat(BATCHES), torch.cat(labels)):
        gates = [torch.ones(96, requires_grad=True) for _ in range(3)]
        whole = {f"layers.{index}.mlp.fc2.weight": gate for index, gate in enumerate(gates)}
        weights = {name: network.get_parameter(name).detach() * gate for name, gate in whole.items()}
        logits = torch.func.functional_call(network, weights, image[None]).logits
        loss = functional.cross_entropy(logits, label[None])
        for total, gradient in zip(expected, torch.autograd.grad(loss, gates)):
            total += gradient.double() ** 2 / 16
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-9)
    assert not [parameter for parameter in network.parameters() if parameter.grad is not None]


def test_a_fitted_bottleneck_is_the_least_squares_fit_to_what_attention_adds(each):
    """Against numpy, on the same features; BatchNorm has the statistics of the images."""
    network, batches, bottlenecks = each
    seen, grid = [], made.grids(network.config)[1]
    handle = network.layers[1].mixer.register_forward_hook(lambda module, given, out: seen.append((given[0], out[0])))
    with torch.no_grad():
        network(torch.cat(batches))
    handle.remove()
    hidden, target = seen[0]
    target = on_grid(target, grid).flatten(2).transpose(1, 2)
    for one in bottlenecks[1].values():
        narrow = one.reduce(on_grid(hidden, grid))
        per_batch = [part.mean((0, 2, 3)) for part in narrow.split([5, 3])]
        torch.testing.assert_close(one.norm.running_mean, sum(per_batch) / 2, rtol=1e-4, atol=1e-5)
        features = functional.relu(one.norm(narrow)).flatten(2).transpose(1, 2).flatten(0, 1).detach().double().numpy()
        features = numpy.concatenate([features, numpy.ones((len(features), 1))], axis=1)
        wanted = target.flatten(0, 1).detach().double().numpy()
        best = numpy.square(features @ numpy.linalg.lstsq(features, wanted, rcond=None)[0] - wanted).mean()
        with torch.no_grad():
            own = on_grid(one(hidden, network.settings(), grid)[0], grid).flatten(2).transpose(1, 2)
            own = own.flatten(0, 1).double().numpy()
        assert best <= numpy.square(own - wanted).mean() < 1.05 * best < numpy.square(wanted).mean()


def test_what_is_chosen_answers_more_like_the_dense_network_than_what_is_not():
    """The worths turned around are the control."""
    network = made.network(made.dense_config(layers=4), seed=3)
    costs = costs_of(network.config)
    worths, bottlenecks = importance(network, BATCHES, costs)
    target = 0.7 * costs.total(network.config.mixers, network.config.intermediate_sizes)
    turned = type(worths)(-worths.mixers, [-units for units in worths.units])
    dense, moved = log_softmax(network), []
    for one in (worths, turned):
        changed = log_softmax(write_network(network, choose(one, costs, target), bottlenecks))
        moved.append(float((dense.exp() * (dense - changed)).sum(-1).mean()))
    assert moved[0] < 0.5 * moved[1]
