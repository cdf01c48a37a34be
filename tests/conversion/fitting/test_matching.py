"""Laws of matching: what a pass takes its moments from, where it begins, and that no pass is for the worse.

pytest tests/conversion/fitting/test_matching.py
"""

import numpy
import pytest
import torch
from fits import (
    DEPTH,
    HEADS,
    divergence,
    layers_of,
    logits,
    measured,
    normal,
    relative,
    stock,
    weights_of,
    with_layers,
)

import helpers
from modeling_lingene.conversion import matching
from modeling_lingene.conversion.fitting import ITERATIONS, fit_block, fit_coefficients, fit_components, fold_norms
from modeling_lingene.conversion.matching import DAMPING, _arriving, match
from modeling_lingene.conversion.moments import Stack


def made(maps):
    return with_layers(SOURCE, weights_of(maps))


SOURCE = with_layers(stock(), fold_norms(layers_of(stock())))


@pytest.fixture(scope="module")
def begun():
    """Stacks of the source on 16 images, components of two and coefficients as a start, and the images."""
    values = helpers.images(16)
    stacks = measured(SOURCE, values)
    _, components, table = fit_block(stacks, normal(DEPTH, 2), "kronecker", HEADS, 3)
    return stacks, components, table, values


def test_matching_keeps_the_best_pass(begun):
    """No pass has to be nearer than the one before; what is given back is, and without a pass it is the start."""
    stacks, *start, values = begun
    expected, far, seen = logits(SOURCE, values), [], []
    for passes in range(0, 13, 2):
        seen.clear()
        components, table = match(stacks, *start, made, True, values, passes, lambda: seen.append(1))
        maps = {part: torch.einsum("ln,noi->loi", table, own) for part, own in components.items()}
        far.append(divergence(logits(made(maps), values), expected))
        assert len(seen) == passes
        assert passes or torch.equal(table, start[1])
    assert all(later <= before + 1e-6 for before, later in zip(far, far[1:])) and far[-1] < 0.9 * far[0]


def test_what_arrives_is_solved_with_threads_that_were_set():
    """Batched LU of torch fails or hangs on CPUs after `set_num_threads`; the system is definite, and large enough."""
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    weights, x = torch.randn(2, 5, 200, generator=generator), torch.randn(2, 300, 200, generator=generator)
    y = x + 0.5 * torch.randn(2, 300, 200, generator=generator)
    cross, own = x.mT @ y / 300, y.mT @ y / 300
    torch.set_num_threads(2)
    try:
        found = _arriving(Stack(weights, own, own), weights @ cross, own).weights.double().numpy()
    finally:
        torch.set_num_threads(before)
    for layer in range(2):
        plain, mixed, inputs = (tensor[layer].double().numpy() for tensor in (weights, cross, own))
        held = DAMPING * numpy.trace(inputs) / 200 * numpy.eye(200)
        expected = numpy.linalg.solve((inputs + held).T, (plain @ (mixed + held)).T).T
        assert numpy.abs(found[layer] - expected).max() < 1e-4


def test_a_pass_that_mixes_nothing_in_is_one_more_round(begun, monkeypatch):
    """Moments begin with the source's own, under which what arrives is what should: the fit goes on where it was."""
    stacks, components, table, values = begun
    metrics = {part: stack.metric("matched") for part, stack in stacks.items()}
    expected = fit_coefficients(stacks, components, metrics)
    whole = {
        part: fit_components(stack, expected, metrics[part], components[part], ITERATIONS["round"])
        for part, stack in stacks.items()
    }
    falling = iter((2.0, 1.0))
    monkeypatch.setattr(matching, "MIXING", 0.0)
    monkeypatch.setattr(matching, "distance", lambda *_: next(falling))
    found, coefficients = match(stacks, components, table, made, True, values, 1)
    assert relative(coefficients, expected) < 1e-4 < relative(table, expected)
    assert all(relative(found[part], whole[part]) < 1e-3 for part in whole)


def test_passes_take_other_images_in_turn_and_are_compared_on_the_same(begun, monkeypatch):
    """Of 70 images every pass takes as many as the widest map needs, those that follow, and all come round."""
    stacks, components, table, _ = begun
    values, taken, judged = helpers.images(70), [], []
    paired, outputs = matching.paired_moments, matching.class_outputs_of

    def pairs(model, other, some, depth):
        taken.append([next(i for i, one in enumerate(values) if torch.equal(one, image)) for image in some])
        return paired(model, other, some, depth)

    def outputs_of(model, some):
        judged.append(some)
        return outputs(model, some)

    monkeypatch.setattr(matching, "paired_moments", pairs)
    monkeypatch.setattr(matching, "class_outputs_of", outputs_of)
    match(stacks, components, table, made, True, values, 4)
    share = numpy.ceil(matching.ROWS * 97 / 17)  # MLP units and the constant; tokens of an image
    assert {len(one) for one in taken} == {share} and share < 70
    assert sum(taken, []) == [index % 70 for index in range(int(4 * share))]
    assert len(judged) == 6 and all(torch.equal(some, values[: matching.JUDGED]) for some in judged)


def test_what_is_given_back_is_the_mean_over_passes(begun, monkeypatch):
    """Of all passes alike, and of later ones a fixed share: passes swing, and what they swing around is nearer."""
    stacks, components, table, values = begun
    fitted, one_round, far = [], matching._fitted, iter(range(9, 0, -1))

    def remembered(*given):
        fitted.append(one_round(*given))
        return fitted[-1]

    monkeypatch.setattr(matching, "_fitted", remembered)
    monkeypatch.setattr(matching, "distance", lambda *_: float(next(far)))
    found, coefficients = match(stacks, components, table, made, True, values, 6)
    counts = numpy.array([1.0])
    for number in range(2, 7):
        share = max(0.3, 1 / number)
        counts = numpy.append(counts * (1 - share), share)
    assert relative(coefficients, sum(count * table for count, (_, table) in zip(counts, fitted))) < 1e-5
    for part, own in found.items():
        assert relative(own, sum(count * parts[part] for count, (parts, _) in zip(counts, fitted))) < 1e-5
        assert relative(own, fitted[-1][0][part]) > 1e-3
