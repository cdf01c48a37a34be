"""Laws of fitting fewer components than layers: dense solves and exact symmetries.

Against numpy's dense solvers.

    pytest tests/conversion/fitting/test_fit_solving.py
"""

import itertools

import numpy
import pytest
import torch
from fits import (
    DEPTH,
    HEADS,
    layers_of,
    logits,
    maps_of,
    measured,
    normal,
    relative,
    stock,
    weights_of,
    with_layers,
)

import helpers
from modeling_lingene.conversion import fitting
from modeling_lingene.conversion.alignment import _assigned, _exchanged, align
from modeling_lingene.conversion.fitting import (
    FITS,
    ROUNDS,
    fit_block,
    fit_coefficients,
    fit_components,
    fold_norms,
    order_components,
)
from modeling_lingene.conversion.moments import (
    GRADIENT_DAMPING,
    INPUT_DAMPING,
    TRACE_POWER,
    Stack,
)


# Five layers of two small maps, from three components.
SIZES = {"attention.query": (4, 7), "mlp.fc1": (6, 5)}


def small_stacks(layers=5):
    stacks = {}
    for seed, (part, (rows, columns)) in enumerate(SIZES.items()):
        inputs, gradients = normal(layers, columns, 9, seed=seed), normal(layers, rows, 9, seed=10 + seed)
        gradients = gradients * torch.logspace(-1, 1, layers, dtype=torch.float64).view(-1, 1, 1)
        weights = normal(layers, rows, columns, seed=20 + seed)
        stacks[part] = Stack(weights, inputs @ inputs.mT / 9, gradients @ gradients.mT / 9)
    return stacks


def numpy_metric(stack, fit):
    """C and G of every layer, whole matrices."""
    inputs, gradients = stack.inputs.numpy(), stack.gradients.numpy()
    eye = numpy.eye(len(gradients[0]))
    c = [one + INPUT_DAMPING[fit] * one.diagonal().mean() * numpy.eye(len(one)) for one in inputs]
    if fit == "activations":
        return c, [eye for _ in gradients]
    if fit == "weighted":
        return c, [numpy.trace(one) * eye for one in gradients]
    damped = [one + GRADIENT_DAMPING * one.diagonal().mean() * eye for one in gradients]
    return c, [one * numpy.trace(whole) ** (TRACE_POWER - 1) for one, whole in zip(damped, gradients)]


def objective(stacks, components, table, fit):
    """sum_l tr(G_l D_l C_l D_l^T), layer by layer in numpy."""
    total = 0.0
    for part, stack in stacks.items():
        for layer, (c, g) in enumerate(zip(*numpy_metric(stack, fit))):
            made = sum(float(a) * one.numpy() for a, one in zip(table[layer], components[part]))
            off = stack.weights[layer].numpy() - made
            total += numpy.trace(g @ off @ c @ off.T)
    return total


@pytest.mark.parametrize("fit", FITS[1:])
def test_components_solve_the_normal_equations(monkeypatch, fit):
    """Of one big dense matrix of Kronecker products: conjugate gradients, a preconditioner and einsums against it."""
    monkeypatch.setattr(fitting, "TOLERANCE", 1e-12)
    table = normal(5, 3, seed=5)
    for stack in small_stacks().values():
        c, g = numpy_metric(stack, fit)
        a, shape = table.numpy(), stack.weights.shape[1:]
        normal_matrix, wanted = 0.0, 0.0
        for layer in range(5):
            matrix = numpy.kron(g[layer], c[layer])
            normal_matrix = normal_matrix + numpy.kron(numpy.outer(a[layer], a[layer]), matrix)
            wanted = wanted + numpy.kron(a[layer], (g[layer] @ stack.weights[layer].numpy() @ c[layer]).ravel())
        expected = numpy.linalg.solve(normal_matrix, wanted).reshape(3, *shape)
        found = fit_components(stack, table, stack.metric(fit), iterations=1000)
        numpy.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)
        plain = torch.einsum("nl,loi->noi", torch.linalg.pinv(table), stack.weights)
        assert relative(plain, found) > 0.01  # least squares on the weights alone is another solution
        elsewhere = fit_components(stack, table, stack.metric(fit), normal(3, *shape, seed=6), iterations=1000)
        numpy.testing.assert_allclose(elsewhere, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("fit", FITS[1:])
def test_fitted_components_are_a_minimum(fit):
    """Nothing near them is better, and neither are those of least squares; with the tolerance that is used."""
    stacks, table = small_stacks(), normal(5, 3, seed=5)
    fitted = {part: fit_components(stack, table, stack.metric(fit)) for part, stack in stacks.items()}
    least = objective(stacks, fitted, table, fit)
    plain = {part: torch.einsum("nl,loi->noi", torch.linalg.pinv(table), one.weights) for part, one in stacks.items()}
    assert objective(stacks, plain, table, fit) > 1.001 * least
    for seed in range(10):
        moved = {part: own + 0.01 * normal(*own.shape, seed=seed) for part, own in fitted.items()}
        assert objective(stacks, moved, table, fit) > least


@pytest.mark.parametrize("fit", list(ROUNDS))
def test_coefficients_are_dense_least_squares_layer_by_layer(fit):
    """One row per layer for all maps of the block: numpy's lstsq on everything whitened and laid end to end."""
    stacks = small_stacks()
    components = {part: normal(3, *shape, seed=30) for part, shape in SIZES.items()}
    found = fit_coefficients(stacks, components, {part: stack.metric(fit) for part, stack in stacks.items()})
    for layer in range(5):
        columns, target = [], []
        for part, stack in stacks.items():
            c, g = (numpy.linalg.cholesky(moments[layer]) for moments in numpy_metric(stack, fit))
            columns.append([(g.T @ one.numpy() @ c).ravel() for one in components[part]])
            target.append((g.T @ stack.weights[layer].numpy() @ c).ravel())
        expected = numpy.linalg.lstsq(numpy.concatenate(columns, axis=1).T, numpy.concatenate(target))[0]
        numpy.testing.assert_allclose(found[layer], expected, rtol=1e-6, atol=1e-7)


def test_ordered_components_give_the_same_layers_from_the_best_prefixes():
    """Every prefix leaves what a truncated SVD over depth leaves, in the mean metric: none can do better."""
    stacks, table = small_stacks(), normal(5, 3, seed=5) * torch.tensor([0.1, 1.0, 3.0])
    components = {part: normal(3, *shape, seed=30) for part, shape in SIZES.items()}
    metrics = {part: stack.metric("kronecker") for part, stack in stacks.items()}
    layers = {part: torch.einsum("ln,noi->loi", table, own) for part, own in components.items()}
    turned, found = order_components(components, table, metrics)
    for part in SIZES:
        torch.testing.assert_close(torch.einsum("ln,noi->loi", found, turned[part]), layers[part])

    def whitened(own):
        """(l, everything): what the mean metric makes of layers."""
        rows = []
        for part, stack in stacks.items():
            c, g = (numpy.linalg.cholesky(numpy.mean(moments, axis=0)) for moments in numpy_metric(stack, "kronecker"))
            rows.append([(g.T @ one.numpy() @ c).ravel() for one in own[part]])
        return numpy.concatenate(rows, axis=1)

    def left(table, components, count):
        prefix = {part: torch.einsum("ln,noi->loi", table[:, :count], components[part][:count]) for part in SIZES}
        return numpy.linalg.norm(whitened(layers) - whitened(prefix))

    singular = numpy.linalg.svd(whitened(layers), compute_uv=False)
    for count in range(1, 4):
        assert left(found, turned, count) == pytest.approx(numpy.sqrt((singular[count:] ** 2).sum()), abs=1e-8)
        assert left(found, turned, count) <= left(table, components, count) + 1e-8
    assert left(found, turned, 1) < 0.5 * left(table, components, 1)
    energy = [numpy.linalg.norm(found[:, n]) * numpy.linalg.norm(whitened(turned)[n]) for n in range(3)]
    numpy.testing.assert_allclose(energy, singular[:3])


def orthogonal(size, seed):
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def disguised(layer, seed):
    """One folded layer under random symmetries: heads reordered, each turned, twice; MLP units reordered."""
    generator = torch.Generator().manual_seed(seed)
    heads, units = torch.randperm(HEADS, generator=generator), torch.randperm(96, generator=generator)
    size, layer = 48 // HEADS, dict(layer)
    for inside, behind in (("query key", ""), ("value", "output")):
        turns = [orthogonal(size, 100 * seed + 10 * len(inside) + head) for head in range(HEADS)]
        for part in inside.split():
            for kind in ("weight", "bias"):
                blocks = layer[f"attention.{part}.{kind}"].split(size)
                layer[f"attention.{part}.{kind}"] = torch.cat([turns[i] @ blocks[heads[i]] for i in range(HEADS)])
        if behind:
            blocks = layer[f"attention.{behind}.weight"].split(size, dim=1)
            turned = [blocks[heads[i]] @ turns[i].T for i in range(HEADS)]
            layer[f"attention.{behind}.weight"] = torch.cat(turned, dim=1)
    layer["mlp.fc1.weight"], layer["mlp.fc1.bias"] = layer["mlp.fc1.weight"][units], layer["mlp.fc1.bias"][units]
    layer["mlp.fc2.weight"] = layer["mlp.fc2.weight"][:, units]
    return layer


def metrics_of(stacks, fit="aligned"):
    return {part: stack.metric(fit) for part, stack in stacks.items()}


def test_aligning_changes_no_function_and_takes_the_moments_along():
    """Logits of the turned layers are the source's; moments measured anew on them are the turned ones."""
    source, values = stock().double(), helpers.images(16).double()
    model = with_layers(source, fold_norms(layers_of(source)))
    stacks = measured(model, values)
    targets = {part: normal(*stack.weights.shape, seed=7) for part, stack in stacks.items()}
    turned = align(stacks, targets, metrics_of(stacks), HEADS)
    other = with_layers(model, weights_of({part: stack.weights for part, stack in turned.items()}))
    assert relative(logits(other, values), logits(source, values)) < 1e-9
    anew = measured(other, values)
    assert list(turned) == list(anew)
    for part in turned:
        assert relative(turned[part].weights, stacks[part].weights) > 0.1
        assert relative(turned[part].inputs, anew[part].inputs) < 1e-8, part
        assert relative(turned[part].gradients, anew[part].gradients) < 1e-8, part
    assert relative(turned["mlp.fc2"].inputs, stacks["mlp.fc2"].inputs) > 0.1
    assert relative(turned["mlp.fc1"].gradients, stacks["mlp.fc1"].gradients) > 0.1


@pytest.fixture(scope="module")
def one_layer():
    """A folded layer on its own, by name, and the stock ViT that it was taken from; float64."""
    model = stock().double()
    return model, {name: tensor[2] for name, tensor in fold_norms(layers_of(model)).items()}


@pytest.fixture(scope="module")
def source_in_disguise(one_layer):
    """A stock ViT whose layers are one layer under six random symmetries, its stacks, and images."""
    (model, layer), values = one_layer, helpers.images(32).double()
    hidden = [disguised(layer, seed) for seed in range(DEPTH)]
    model = with_layers(model, {name: torch.stack([one[name] for one in hidden]) for name in layer})
    return model, measured(model, values), values


def test_aligning_undoes_any_symmetry(one_layer, source_in_disguise):
    """Six disguises of one layer become that layer again: orders of heads and units and rotations, all at once."""
    model, stacks, values = source_in_disguise
    same = with_layers(model, {name: tensor.expand(DEPTH, *tensor.shape) for name, tensor in one_layer[1].items()})
    assert relative(logits(model, values), logits(same, values)) < 1e-9
    targets = {part: torch.from_numpy(whole) for part, whole in maps_of(same).items()}
    turned = align(stacks, targets, metrics_of(stacks), HEADS)
    for part, target in targets.items():
        assert relative(stacks[part].weights, target) > 0.1
        assert relative(turned[part].weights, target) < 1e-8, part


@pytest.mark.parametrize("seed", range(3))
def test_exchanges_of_two_end_where_none_gains(seed):
    """An order of all units, better than before; the best one stays as it is."""
    gains = normal(9, 9, seed=seed)
    order = _exchanged(gains)
    assert sorted(order.tolist()) == list(range(9))
    found = gains[:, order]
    for one, other in itertools.combinations(range(9), 2):
        apart = found[one, one] + found[other, other]
        assert found[one, other] + found[other, one] <= apart + 1e-5, (one, other)
    assert found.trace() > gains.trace()
    best = gains[:, _assigned(gains)]
    assert best.trace() >= found.trace() and _exchanged(best).tolist() == list(range(9))


def test_aligned_layers_are_nearest_in_the_metric_of_the_fit():
    """No other order of units is nearer to the target, nor a head turned a little on; parts count by their metric.

    The agreement that is maximised is exact where gradients before, and inputs behind, are alike in all directions.
    """
    sizes = dict.fromkeys(("attention.query", "attention.key", "attention.value", "attention.output"), (4, 5))
    sizes |= {"mlp.fc1": (5, 5), "mlp.fc2": (4, 6)}
    scales, metrics = dict(zip(sizes, (0.3, 3.0, 0.3, 3.0, 3.0, 0.3))), {}
    for seed, (part, (rows, columns)) in enumerate(sizes.items()):
        size = columns if part not in ("attention.output", "mlp.fc2") else rows
        whole = normal(1, size, size, seed=seed) * torch.logspace(-1, 1, size, dtype=torch.float64)
        alike = scales[part] * torch.eye(rows + columns - size, dtype=torch.float64)[None]
        metrics[part] = (whole @ whole.mT, alike) if size == columns else (alike, whole @ whole.mT)
    stacks = {part: Stack(normal(1, *sizes[part], seed=30 + i), *metrics[part]) for i, part in enumerate(sizes)}
    targets = {part: normal(1, *shape, seed=60 + i) for i, (part, shape) in enumerate(sizes.items())}
    found = {part: stack.weights[0] for part, stack in align(stacks, targets, metrics, 2).items()}

    def far(**changed):
        """sum tr(G D C D^T), with the parts named `query` and so on in place of those found."""
        total = 0.0
        for part, (c, g) in metrics.items():
            off = changed.get(part.rpartition(".")[2], found[part]) - targets[part][0]
            total += float((g[0] @ off @ c[0] @ off.T).trace())
        return total

    least = far() * (1 + 1e-9)
    query, key, value, output, fc1, fc2 = found.values()
    others = list(itertools.permutations(range(5)))[1:]
    assert all(least < far(fc1=fc1[list(order)], fc2=fc2[:, [*order, 5]]) for order in others)
    for head, angle in itertools.product((0, 1), (-0.01, 0.01)):
        turn = torch.eye(5, dtype=torch.float64)
        first, second = 2 * head, 2 * head + 1
        turn[first, first] = turn[second, second] = numpy.cos(angle)
        turn[first, second], turn[second, first] = -numpy.sin(angle), numpy.sin(angle)
        assert least < far(query=turn[:4, :4] @ query, key=turn[:4, :4] @ key)
        assert least < far(value=turn[:4, :4] @ value, output=output @ turn.T)


def fitted_logits(model, stacks, table, fit, values, rounds=None):
    """Logits of what a fit makes of a stock ViT without gains."""
    _, components, found = fit_block(stacks, table, fit, HEADS, rounds)
    maps = {part: torch.einsum("ln,noi->loi", found, own) for part, own in components.items()}
    return logits(with_layers(model, weights_of(maps)), values)


def test_alignment_finds_much_of_what_layers_share(source_in_disguise):
    """What aligning is for: layers that differ by symmetries alone are one layer, and one component."""
    model, stacks, values = source_in_disguise
    expected, table = logits(model, values), torch.ones(DEPTH, 1)
    aligned, plain = (fitted_logits(model, stacks, table, fit, values) for fit in ("aligned", "kronecker"))
    assert relative(aligned, expected) < 0.4 * relative(plain, expected)
    assert relative(plain, expected) > 0.1


@pytest.mark.parametrize("fit", list(ROUNDS))
def test_one_component_is_enough_for_one_layer_in_disguise(source_in_disguise, fit):
    """Aligned to any one of them the layers are equal, and no fit loses anything; by least squares it would."""
    model, stacks, values = source_in_disguise
    targets = {part: stack.weights[3:4].expand_as(stack.weights) for part, stack in stacks.items()}
    turned = align(stacks, targets, metrics_of(stacks), HEADS)
    found = fitted_logits(model, turned, torch.ones(DEPTH, 1), fit, values, 3)
    assert relative(found, logits(model, values)) < 1e-7


def test_rounds_never_raise_the_objective_of_fixed_layers():
    """Coefficients, then components, each the best for the other; and every round is counted."""
    stacks, seen = small_stacks(), []
    values = []
    for rounds in (1, 2, 4, 8, 16):
        seen.clear()
        _, components, table = fit_block(stacks, normal(5, 3, seed=5), "kronecker", 1, rounds, lambda: seen.append(1))
        values.append(objective(stacks, components, table, "kronecker"))
        assert len(seen) == rounds
    assert all(later <= before * (1 + 1e-6) for before, later in zip(values, values[1:]))
    assert values[-1] < 0.99 * values[0]
