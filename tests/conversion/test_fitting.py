"""Laws of fitting fewer components than layers: moments, exact symmetries, dense solves, and reports that hold.

Against autograd image by image, numpy's dense solvers and stock transformers models whose every parameter was changed.

    pytest tests/conversion/test_fitting.py
"""

import copy
import itertools
import json
import shlex

import numpy
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTModel

import helpers
from helpers import STOCK_PARTS
from modeling_lingene import cli, kept
from modeling_lingene.conversion import fitting
from modeling_lingene.conversion.alignment import _assigned, _exchanged, align
from modeling_lingene.conversion.calibration import calibration_images, choose_rows
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.fitting import (
    FITS,
    LEARNED,
    ROUNDS,
    fit_block,
    fit_coefficients,
    fit_components,
    fold_norms,
    order_components,
)
from modeling_lingene.conversion.matching import DAMPING, _arriving, match
from modeling_lingene.conversion.moments import (
    GRADIENT_DAMPING,
    INPUT_DAMPING,
    TRACE_POWER,
    Stack,
    linear_maps,
    moments,
    paired_moments,
    stacks_of,
)
from modeling_lingene.conversion.report import LEARNING_RATES, advice, count_legend, count_table, learning_rate
from modeling_lingene.images.data import image_processor
from modeling_lingene.training import options


pytestmark = pytest.mark.usefixtures("frozen_heap")

SHAPE = dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=6, intermediate_size=96)
SHAPE |= dict(image_size=16, patch_size=4)
HEADS, DEPTH, COUNT = 4, 6, 40
LINEAR_PARTS = [part for part in STOCK_PARTS if not part.startswith("norm")]


def stock(model_class=ViTForImageClassification, seed=0, noise=0.08, **fields):
    """A stock ViT, every parameter moved away from its initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        labels = {"num_labels": 7} if model_class is ViTForImageClassification else {}
        model = model_class(ViTConfig(**{**SHAPE, **fields}, **labels))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model.eval().requires_grad_(False)


def layers_of(model):
    """Every block tensor by the bundle's name, (l, ...) float64."""
    weights = {}
    for ours, theirs in STOCK_PARTS.items():
        modules = [layer.get_submodule(theirs) for layer in getattr(model, "vit", model).layers]
        for kind in ("weight", "bias"):
            if getattr(modules[0], kind) is not None:
                weights[f"{ours}.{kind}"] = torch.stack(
                    [getattr(module, kind).detach().double() for module in modules]
                )
    return weights


def with_layers(model, weights):
    """The model with other linear maps and biases, and LayerNorms of blocks that only normalise."""
    fields = {**model.config.to_dict(), "qkv_bias": True}
    other = type(model)(ViTConfig.from_dict(fields)).to(model.dtype).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict(), strict=model.config.qkv_bias)
    neutral = {"weight": 1.0, "bias": 0.0}
    for ours, theirs in STOCK_PARTS.items():
        for index, layer in enumerate(getattr(other, "vit", other).layers):
            for kind in neutral:
                target = getattr(layer.get_submodule(theirs), kind)
                if ours.startswith("norm"):
                    target.fill_(neutral[kind])
                else:
                    target.copy_(weights[f"{ours}.{kind}"][index])
    return other


def weights_of(maps):
    """Matrices with their bias as the last column, by part, as tensors by name."""
    return {f"{part}.weight": whole[..., :-1] for part, whole in maps.items()} | {
        f"{part}.bias": whole[..., -1] for part, whole in maps.items()
    }


def maps_of(model):
    """The six linear maps with their bias as the last column, (l, o, i + 1) numpy."""
    weights = layers_of(model)
    whole = {}
    for part in LINEAR_PARTS:
        matrix = weights[f"{part}.weight"].numpy()
        bias = weights.get(f"{part}.bias", torch.zeros(matrix.shape[:2])).numpy()
        whole[part] = numpy.concatenate((matrix, bias[..., None]), axis=-1)
    return whole


def entering(model, values):
    """What enters every linear map, a constant 1 appended: by part a list over the layers of (b t, i + 1) numpy."""
    found, hooks = {part: [None] * DEPTH for part in LINEAR_PARTS}, []
    for part in LINEAR_PARTS:
        for index, layer in enumerate(getattr(model, "vit", model).layers):

            def hook(module, inputs, part=part, index=index):
                flat = inputs[0].reshape(-1, inputs[0].shape[-1]).double().numpy()
                found[part][index] = numpy.concatenate((flat, numpy.ones((len(flat), 1))), axis=1)

            hooks.append(layer.get_submodule(STOCK_PARTS[part]).register_forward_pre_hook(hook))
    with torch.no_grad():
        model(values)
    for hook in hooks:
        hook.remove()
    return found


def gradients_at(model, value, loss_of):
    """Gradients of one image's loss at the outputs of every linear map: (part, layer) -> (t, o) numpy."""
    outputs, hooks = {}, []
    for part in LINEAR_PARTS:
        for index, layer in enumerate(getattr(model, "vit", model).layers):

            def hook(module, inputs, output, place=(part, index)):
                outputs[place] = output

            hooks.append(layer.get_submodule(STOCK_PARTS[part]).register_forward_hook(hook))
    loss = loss_of(model(value[None].clone().requires_grad_()))
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(loss, list(outputs.values()))
    return {place: gradient[0].numpy() for place, gradient in zip(outputs, gradients)}


def relative(one, other):
    return float(((one - other).norm() / other.norm()).detach())


def logits(model, values):
    with torch.no_grad():
        return model(values).logits


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("model_class", [ViTForImageClassification, ViTModel])
def test_linear_maps_are_those_of_the_blocks_in_the_order_of_the_layers(model_class):
    """They are found by position among all linear maps; the classifier's or pooler's must not be among them."""
    model = stock(model_class)
    found = linear_maps(model, DEPTH)
    assert list(found) == LINEAR_PARTS
    for part, modules in found.items():
        expected = [layer.get_submodule(STOCK_PARTS[part]) for layer in getattr(model, "vit", model).layers]
        assert len(modules) == DEPTH and all(one is other for one, other in zip(modules, expected)), part


@pytest.mark.parametrize("head", [True, False])
def test_input_moments_are_those_of_what_enters(head):
    """By numpy: the sum of x x^T over images and tokens, per image, with the constant 1 that makes room for biases."""
    model, values = stock(ViTForImageClassification if head else ViTModel), helpers.images(9)
    found = moments(model, head, values, DEPTH, batch_size=4)
    for part, inputs in entering(model, values).items():
        for layer, x in enumerate(inputs):
            numpy.testing.assert_allclose(found[part][0][layer], x.T @ x / 9, rtol=1e-4, atol=1e-3)
            assert found[part][0][layer][-1, -1] == 17  # tokens


@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_moments_are_autograds_image_by_image(seed):
    """For labels drawn from the model's own answers: of true labels, or the likeliest, it would be another metric."""
    model, values = stock().double(), helpers.images(5).double()
    chances = logits(model, values).softmax(-1)
    drawn = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    assert not torch.equal(drawn, chances.argmax(-1))
    found = moments(model, True, values, DEPTH, seed=seed)
    sums = {}
    for value, label in zip(values, drawn):
        each = gradients_at(model, value, lambda output, label=label: -output.logits.log_softmax(-1)[0, label])
        for place, gradient in each.items():
            sums[place] = sums.get(place, 0) + gradient.T @ gradient / 5
    for (part, layer), expected in sums.items():
        assert numpy.abs(expected).max() > 0
        numpy.testing.assert_allclose(
            found[part][1][layer], expected, rtol=1e-8, atol=1e-10 * numpy.abs(expected).max()
        )


def test_without_a_classifier_gradients_are_of_random_directions_of_the_class_token():
    """An encoder has no answers to draw from; only the class token is its outcome."""
    model, values = stock(ViTModel).double(), helpers.images(5).double()
    found = moments(model, False, values, DEPTH, seed=3)
    directions = torch.randn(5, 48, generator=torch.Generator().manual_seed(3))
    sums = {}
    for value, direction in zip(values, directions):
        each = gradients_at(
            model, value, lambda output, direction=direction: (output.last_hidden_state[0, 0] * direction).sum()
        )
        for place, gradient in each.items():
            sums[place] = sums.get(place, 0) + gradient.T @ gradient / 5
    for (part, layer), expected in sums.items():
        numpy.testing.assert_allclose(
            found[part][1][layer], expected, rtol=1e-8, atol=1e-10 * numpy.abs(expected).max()
        )


@pytest.mark.parametrize("head", [True, False])
def test_moments_do_not_depend_on_the_batch_size(head):
    """Sums over images, one stream of draws: memory may decide how many images go through at once."""
    model, values = stock(ViTForImageClassification if head else ViTModel).double(), helpers.images(11).double()
    seen = []
    whole = moments(model, head, values, DEPTH, batch_size=11)
    for size in (1, 4):
        for part, pair in moments(model, head, values, DEPTH, batch_size=size, progress=seen.append).items():
            for one, other in zip(pair, whole[part]):
                assert relative(one, other) < 1e-10
    assert seen == [1] * 11 + [4, 4, 3]
    other = moments(model, head, values, DEPTH, seed=1)
    assert relative(other["mlp.fc1"][1], whole["mlp.fc1"][1]) > 1e-3


def test_no_hooks_are_left_behind():
    """Not after an interruption either: the model goes on to be used."""
    model, values = stock(), helpers.images(3)
    moments(model, True, values, DEPTH)
    assert not any(module._forward_hooks for module in model.modules())

    def interrupt(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moments(model, True, values, DEPTH, progress=interrupt)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("size", [3, 11])
def test_paired_moments_are_those_of_what_enters_both_networks(size):
    """By numpy, image by image in the same order: which side is which decides what is fitted to what."""
    model, other, values = stock().double(), stock(seed=1).double(), helpers.images(11).double()
    found, answers = paired_moments(model, other, values, DEPTH, size)
    inputs, arriving, maps = entering(model, values), entering(other, values), maps_of(model)
    assert list(found) == LINEAR_PARTS
    assert relative(answers, logits(other, values)) < 1e-6
    for part in LINEAR_PARTS:
        for layer, (x, y) in enumerate(zip(inputs[part], arriving[part])):
            x = x @ maps[part][layer].T if part == "mlp.fc2" else x  # what the map gives
            numpy.testing.assert_allclose(found[part][0][layer], x.T @ y / 11, rtol=1e-9, atol=1e-9)
            numpy.testing.assert_allclose(found[part][1][layer], y.T @ y / 11, rtol=1e-9, atol=1e-9)
    assert not any(module._forward_hooks for one in (model, other) for module in one.modules())


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_folding_layer_norms_changes_no_logit(qkv_bias):
    """Gains into the columns, biases into biases, also where queries had none; what is left only normalises."""
    model, values = stock(qkv_bias=qkv_bias), helpers.images(8)
    folded = fold_norms(layers_of(model))
    assert sorted(folded) == sorted(f"{part}.{kind}" for part in LINEAR_PARTS for kind in ("weight", "bias"))
    assert relative(logits(with_layers(model, folded), values), logits(model, values)) < 1e-5
    unfolded = {**folded, **{f"{part}.bias": torch.zeros(DEPTH, 48) for part in LINEAR_PARTS[:3]}}
    assert relative(logits(with_layers(model, unfolded), values), logits(model, values)) > 1e-3


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


@pytest.mark.parametrize("fit", LEARNED)
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


def measured(model, values):
    """Stacks of a stock ViT without gains."""
    return stacks_of(layers_of(model), moments(model, True, values, DEPTH))


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


def fitted_logits(model, stacks, table, fit, values, rounds):
    """Logits of what a fit makes of a stock ViT without gains."""
    _, components, found = fit_block(stacks, table, fit, HEADS, rounds)
    maps = {part: torch.einsum("ln,noi->loi", found, own) for part, own in components.items()}
    return logits(with_layers(model, weights_of(maps)), values)


def test_alignment_finds_much_of_what_layers_share(source_in_disguise):
    """What aligning is for: layers that differ by symmetries alone are one layer, and one component."""
    model, stacks, values = source_in_disguise
    expected, table = logits(model, values), torch.ones(DEPTH, 1)
    aligned, plain = (fitted_logits(model, stacks, table, fit, values, ROUNDS) for fit in ("aligned", "kronecker"))
    assert relative(aligned, expected) < 0.4 * relative(plain, expected)
    assert relative(plain, expected) > 0.1


@pytest.mark.parametrize("fit", LEARNED)
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


def test_matching_keeps_the_best_pass():
    """No pass has to be nearer than the one before; what is given back is, and without a pass it is the start."""
    model, values = stock(), helpers.images(16)
    model = with_layers(model, fold_norms(layers_of(model)))
    stacks, expected = measured(model, values), logits(model, values)
    _, *start = fit_block(stacks, normal(DEPTH, 2), "kronecker", HEADS, 3)

    def made(maps):
        return with_layers(model, weights_of(maps))

    far, seen = [], []
    for passes in range(0, 13, 2):
        seen.clear()
        components, table = match(stacks, *start, made, True, values, passes, lambda: seen.append(1))
        maps = {part: torch.einsum("ln,noi->loi", table, own) for part, own in components.items()}
        far.append(divergence(logits(made(maps), values), expected))
        assert len(seen) == passes
        assert passes or torch.equal(table, start[1])
    assert all(later <= before + 1e-6 for before, later in zip(far, far[1:])) and far[-1] < 0.9 * far[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A flat folder of pictures without labels, as one has them."""
    folder = tmp_path_factory.mktemp("photos")
    for index, picture in enumerate(helpers.pictures(COUNT).images):
        picture.save(folder / f"{index:03}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A stock classifier and the folder that it is saved in."""
    model, folder = stock(), tmp_path_factory.mktemp("source") / "vit"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def kept_layers(tmp_path_factory, source, photos):
    """A bundle that loses nothing, with layers chosen for two depths: folder and report."""
    folder = tmp_path_factory.mktemp("exact") / "bundle"
    return folder, convert(str(source[1]), folder, calibrate=str(photos), depths=[4, 2])


def pixels(folder):
    """The pictures by Pillow and numpy alone, -1 to 1; (images, 3, 16, 16)."""
    arrays = [numpy.asarray(Image.open(path), dtype=numpy.float32) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(numpy.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


def divergence(found, expected):
    """KL(expected || found) of classes, mean over images, by numpy in float64."""
    p, q = (numpy.exp(one.double().numpy()) for one in (expected, found))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return float((p * numpy.log(p / q)).sum(1).mean())


def written(folder):
    return json.loads((folder / "config.json").read_text())


def test_calibration_images_are_a_seeded_choice_of_the_folder(photos):
    """Pixels as users preprocess them, none twice, no more than there are; labels are not needed but may be there."""
    processor, everything = image_processor(16), pixels(photos)
    found = calibration_images(str(photos), processor, 7, seed=1)
    assert found.shape == (7, 3, 16, 16)
    farthest = (found[:, None] - everything).abs().flatten(2).amax(2)
    assert farthest.min(1).values.max() < 1e-5 and len(set(farthest.argmin(1).tolist())) == 7
    assert torch.equal(calibration_images(str(photos), processor, 7, seed=1), found)
    assert not torch.equal(calibration_images(str(photos), processor, 7, seed=2), found)
    assert len(calibration_images(str(photos), processor, 1000)) == COUNT
    assert calibration_images("digits", processor, 5).shape == (5, 3, 16, 16)


def test_one_broken_image_in_a_hundred_is_left_out(tmp_path):
    """And said; two are too many."""
    for index, picture in enumerate(helpers.pictures(119).images):
        picture.save(tmp_path / f"{index:03}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="broken|1 of the 120"):
        assert len(calibration_images(str(tmp_path), image_processor(16), 1000)) == 119
    (tmp_path / "broken too.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="2 of the 121 images"):
        calibration_images(str(tmp_path), image_processor(16), 1000)


@pytest.mark.parametrize("fit", ["weights", "kronecker"])
def test_the_report_is_what_a_user_measures(tmp_path, source, photos, fit):
    """Every row recomputed from the loaded models: outcomes by transformers, residuals of layers by numpy."""
    model, folder = source
    report = convert(str(folder), tmp_path / "bundle", num_components=3, calibrate=str(photos), fit=fit, rounds=3)
    calibration, values = report["calibration"], pixels(photos)
    assert (calibration["images"], calibration["measured_images"]) == (COUNT, COUNT)
    assert [row["num_components"] for row in calibration["rows"]] == [1, 2, 3]
    expected = logits(AutoModelForImageClassification.from_pretrained(folder).eval(), values)
    assert len(expected.argmax(-1).unique()) > 1
    whole = model if fit == "weights" else with_layers(model, fold_norms(layers_of(model)))
    inputs, maps = entering(whole, values), maps_of(whole)
    for row in calibration["rows"]:
        small = AutoModelForImageClassification.from_pretrained(
            tmp_path / "bundle", num_components=row["num_components"]
        )
        found, made = logits(small.eval(), values), maps_of(small)
        assert type(small) is ViTForImageClassification
        assert row["relative_logit_error"] == pytest.approx(relative(found, expected), rel=1e-3)
        assert row["divergence"] == pytest.approx(divergence(found, expected), rel=1e-3, abs=1e-6)
        agreement = (found.argmax(-1) == expected.argmax(-1)).double().mean().item()
        assert row["agreement"] == pytest.approx(agreement, abs=1.01 / COUNT)
        squares = {}
        for part in LINEAR_PARTS:
            off = [maps[part][layer] - made[part][layer] for layer in range(DEPTH)]
            squares[part] = numpy.array(
                [
                    [sum(((x @ w.T) ** 2).sum() for x, w in zip(inputs[part], ws)) for ws in (off, maps[part])],
                    [sum((w**2).sum() for w in ws) for ws in (off, maps[part])],
                ]
            )
            ratios = numpy.sqrt(squares[part][:, 0] / squares[part][:, 1])
            shown = [row["parts"][part][kind] for kind in ("activations", "weights")]
            numpy.testing.assert_allclose(shown, ratios, rtol=1e-3)
        total = sum(squares.values())
        ratios = numpy.sqrt(total[:, 0] / total[:, 1])
        numpy.testing.assert_allclose([row["activation_residual"], row["weight_residual"]], ratios, rtol=1e-3)
    assert report["fit"] == fit and report["num_components"] == 3 and report["depth"] == DEPTH
    assert json.loads((tmp_path / "bundle" / "conversion.json").read_text()) == report


def test_a_fitted_bundle_is_a_bundle_like_any_other(tmp_path, source, photos):
    """Learned coefficients, gains of 1, the last fit by default: written, drawn, and the same from every side."""
    model, folder = source
    report = convert(str(folder), tmp_path / "bundle", num_components=2, calibrate=str(photos), rounds=3)
    rows, config = report["calibration"]["rows"], written(tmp_path / "bundle")
    assert report["fit"] == FITS[-1] and [row["num_components"] for row in rows] == [1, 2]
    assert config["basis"] == "learned" and config["gain_offset"] == 1.0 and config["degree_weight"] == 0.0
    matrix = numpy.array(config["coefficient_matrix"])
    assert matrix.shape == (DEPTH, 2)
    numpy.testing.assert_allclose(matrix.T @ matrix, numpy.eye(2), atol=1e-5)
    assert report["condition"] == pytest.approx(1.0, abs=1e-4)
    values = pixels(photos)
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
    for layer in small.vit.layers:
        for part in ("norm1", "norm2"):
            norm = layer.get_submodule(STOCK_PARTS[part])
            assert (norm.weight == 1).all() and (norm.bias == 0).all()
    found, expected = logits(small, values), logits(model, values)
    assert rows[-1]["relative_logit_error"] == pytest.approx(relative(found, expected), rel=1e-3)
    agreement = (found.argmax(-1) == expected.argmax(-1)).double().mean().item()
    assert rows[-1]["agreement"] == pytest.approx(agreement, abs=1.01 / COUNT)
    constrained = helpers.LinGeneForImageClassification.from_pretrained(tmp_path / "bundle", constrained=True).eval()
    assert relative(logits(constrained, values), found) < 1e-5
    with Image.open(tmp_path / "bundle" / "conversion.png") as figure:
        assert figure.format == "PNG" and min(figure.size) > 100


def test_matched_is_nearer_to_the_source_than_aligned(tmp_path, source, photos):
    """On the images that it was done on, as the bundle on disk gives its answers."""
    found = {}
    for fit in ("aligned", "matched"):
        given = {"num_components": 3, "calibrate": str(photos), "fit": fit, "rounds": 3}
        found[fit] = convert(str(source[1]), tmp_path / fit, **given)["calibration"]["rows"][-1]
    assert found["matched"]["divergence"] < 0.9 * found["aligned"]["divergence"]


@pytest.mark.parametrize("fit", ["activations", "weighted"])
def test_fits_with_given_coefficients_keep_the_basis(tmp_path, photos, fit):
    """Also of a source without biases of queries, which folding brings in."""
    stock(qkv_bias=False).save_pretrained(tmp_path / "source")
    report = convert(str(tmp_path / "source"), tmp_path / "bundle", num_components=4, calibrate=str(photos), fit=fit)
    config = written(tmp_path / "bundle")
    assert config["basis"] == "chebyshev" and config["coefficient_matrix"] is None
    assert config["gain_offset"] == 1.0 and config["qkv_bias"] is True
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
    error = relative(logits(small, pixels(photos)), logits(stock(qkv_bias=False), pixels(photos)))
    assert report["calibration"]["rows"][-1]["relative_logit_error"] == pytest.approx(error, rel=1e-3)


def test_the_same_seed_gives_the_same_bundle(tmp_path, source, photos):
    """Images, labels drawn and solvers: nothing else is random; another seed is another bundle."""
    seeds = {"one": 0, "two": 0, "other": 1}
    for name, seed in seeds.items():
        given = {"num_components": 2, "calibrate": str(photos), "images": 20, "fit": "aligned", "rounds": 2}
        convert(str(source[1]), tmp_path / name, seed=seed, **given)
    files = {name: (tmp_path / name / "component-00.safetensors").read_bytes() for name in seeds}
    assert files["one"] == files["two"] != files["other"]


def test_without_a_classifier_a_fit_is_measured_on_the_class_token(tmp_path, photos):
    """No agreement then; the rest as with one, layers chosen for a depth included."""
    model = stock(ViTModel)
    model.save_pretrained(tmp_path / "source")
    given = {"num_components": 3, "calibrate": str(photos), "fit": "aligned", "rounds": 2, "depths": [3]}
    report = convert(str(tmp_path / "source"), tmp_path / "bundle", **given)
    rows, values = report["calibration"]["rows"], pixels(photos)
    assert all("agreement" not in row and "divergence" not in row for row in rows)
    small = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    found, expected = (one(values).last_hidden_state[:, 0] for one in (small, model))
    assert rows[-1]["relative_logit_error"] == pytest.approx(relative(found, expected), rel=1e-3)
    cosines = torch.nn.functional.cosine_similarity(found.double(), expected.double(), dim=-1).detach().numpy()
    assert rows[-1]["cosine"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert rows[-1]["cosine_p5"] == pytest.approx(numpy.percentile(cosines, 5), abs=1e-5)
    assert rows[0]["cosine"] < rows[-1]["cosine"] and report["compared"] == "class token"
    drawn = count_table(rows).splitlines()
    assert len(drawn) == 5 and all(word not in drawn[0] for word in ("agreement", "KL", "logits"))
    said = {part.partition(":")[0] for part in count_legend(rows).split("; ")}
    assert said == {"layers", "class token", "cosine"} and report["checked_on"] == "calibration images"
    assert "cosine" in drawn[0] and f"{rows[-1]['cosine']:.3g}" in drawn[-1]
    kept = report["calibration"]["depth_rows"][3]
    assert kept == sorted(set(kept)) and len(kept) == 3
    shallow = AutoModel.from_pretrained(tmp_path / "bundle", depth=3)
    for layer, row in zip(shallow.layers, kept):
        torch.testing.assert_close(layer.mlp.fc1.weight, small.layers[row].mlp.fc1.weight)


def test_as_many_components_as_layers_lose_nothing_on_the_images_either(kept_layers):
    """The last row of a lossless bundle: no error, every class the same, no residual, nothing to advise."""
    folder, report = kept_layers
    rows = report["calibration"]["rows"]
    assert report["fit"] == "exact" and report["advice"] is None
    assert [row["num_components"] for row in rows] == list(range(1, DEPTH + 1))
    last = rows[-1]
    assert last["agreement"] == 1.0 and last["relative_logit_error"] < 1e-4 and abs(last["divergence"]) < 1e-6
    assert last["activation_residual"] < 1e-4 and last["weight_residual"] < 1e-4
    assert rows[0]["activation_residual"] > 0.1
    assert len(count_table(rows).splitlines()) == DEPTH + 2


def test_layers_kept_are_those_least_missed_one_by_one(source, photos, kept_layers):
    """Against the source itself with layers taken out, every candidate of every step."""
    (model, _), (folder, report), values = source, kept_layers, pixels(photos)
    expected, kept, chosen = logits(model, values), list(range(DEPTH)), {}
    while len(kept) > 2:  # the greedy rule, written out
        candidates = [[row for row in kept if row != left_out] for left_out in kept]
        missed = []
        for rows in candidates:
            small = copy.deepcopy(model)
            small.vit.layers = torch.nn.ModuleList(model.vit.layers[row] for row in rows)
            missed.append(divergence(logits(small, values), expected))
        kept = candidates[int(numpy.argmin(missed))]
        chosen[len(kept)] = kept
        assert min(missed) > 0 and max(missed) > 1.01 * min(missed)
    bundle = helpers.LinGeneForImageClassification.from_pretrained(folder, constrained=True).eval()
    before = dict(bundle.config.depth_rows)
    assert choose_rows(bundle, True, values, expected, [5, 3]) == {depth: chosen[depth] for depth in (5, 3)}
    assert bundle.config.depth_rows == before
    found = report["calibration"]["depth_rows"]
    assert found == {depth: chosen[depth] for depth in (4, 2)}
    assert written(folder)["depth_rows"] == {str(depth): rows for depth, rows in found.items()}


def test_a_smaller_depth_loads_the_layers_chosen(source, kept_layers):
    """Exactly those of the source, in their order; the other depths and the whole as before."""
    (model, _), (folder, report) = source, kept_layers
    chosen = {**report["calibration"]["depth_rows"], 3: [0, 2, 4], DEPTH: range(DEPTH)}
    assert chosen[4] != [0, 1, 3, 4]  # or nothing would be shown
    for depth, rows in chosen.items():
        small = AutoModelForImageClassification.from_pretrained(folder, depth=depth)
        assert len(small.vit.layers) == depth
        for layer, row in zip(small.vit.layers, rows):
            own, theirs = layer.state_dict(), model.vit.layers[row].state_dict()
            for key in theirs:
                torch.testing.assert_close(own[key], theirs[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"fit": "svd"}, "`fit` must be one of"),
        ({"fit": "aligned", "num_components": None}, "`fit` 'aligned' is for fewer components"),
        ({"fit": "aligned", "calibrate": None}, "`fit` needs images.*--calibrate"),
        ({"depths": [3], "calibrate": None}, "`depths` needs images.*--calibrate"),
        ({"depths": [DEPTH]}, "`depths` must be from 1 to below the 6 layers, got 6"),
        ({"depths": [3, 0]}, "`depths`.*got 0"),
        ({"depths": [2.5]}, "`depths`.*got 2.5"),
        ({"depths": [3], "preset": "paper"}, "`depths`.*'resample'"),
        ({"images": 0}, "`images`.*got 0"),
        ({"rounds": 0}, "`rounds`.*got 0"),
        ({"device": "abacus"}, "`device` abacus"),
        ({"calibrate": "EMPTY"}, "`calibrate`"),
        ({"calibrate": "BROKEN"}, "`calibrate`.*1 of the 21 images.*do not decode"),
        ({"calibrate": "ABSENT/NOT/THERE"}, "`calibrate`"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(tmp_path, monkeypatch, source, photos, given, named):
    """Before an hour is spent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    for index, picture in enumerate(helpers.pictures(20).images):
        picture.save(tmp_path / "BROKEN" / f"{index}.png")
    (tmp_path / "BROKEN" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=named):
        convert(str(source[1]), tmp_path / "bundle", **{"num_components": 3, "calibrate": str(photos), **given})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BROKEN", "EMPTY"]


@pytest.mark.parametrize("given", [{"images": 1.5}, {"rounds": 1.5}, {"images": "many"}, {"depths": [True]}])
def test_counts_that_are_no_integers_are_refused(tmp_path, source, photos, given):
    """By name, as `num_components` is."""
    with pytest.raises(ValueError, match=f"`{next(iter(given))}`"):
        convert(str(source[1]), tmp_path / "bundle", **{"num_components": 3, "calibrate": str(photos), **given})


def test_least_squares_without_images_says_that_it_is_the_poorest(tmp_path, source, caplog):
    """Whoever has images should give them; and a bundle of it advises training."""
    report = convert(str(source[1]), tmp_path / "bundle", num_components=3)
    assert "poorest" in caplog.text and "--calibrate" in caplog.text
    assert report["fit"] == "weights" and "calibration" not in report
    assert not (tmp_path / "bundle" / "conversion.png").exists()
    assert report["advice"]["learning_rate"] == learning_rate(report["relative_logit_error"])


def test_the_learning_rate_goes_from_that_of_a_good_start_to_that_of_a_bad_one():
    """The two that were measured, constant beyond them, and never down as the error rises."""
    (low, least), (high, most) = LEARNING_RATES
    assert low < high and least < most
    assert {learning_rate(error) for error in (0.0, 0.5 * low, low)} == {least}
    assert {learning_rate(error) for error in (high, 2 * high, 30.0)} == {most}
    rates = [learning_rate(error) for error in numpy.linspace(0, 2 * high, 201)]
    assert rates == sorted(rates) and len(set(rates)) > 4
    assert learning_rate((low + high) / 2) == pytest.approx((least * most) ** 0.5, rel=0.2)


def told(compared: str = "logit", error: float = 0.3, **row) -> dict:
    """A conversion's report, with a row of calibration images where one is given."""
    report = {"compared": compared, "relative_logit_error": error, "fit": "matched"}
    rows = [{"relative_logit_error": error, **row}]
    return report | ({"calibration": {"rows": rows, "measured_images": 256}} if row else {})


@pytest.mark.parametrize(
    "report, model",
    [
        (told(error=0.05), True),
        (told(error=0.06), False),
        (told(error=0.06, agreement=0.977, divergence=0.004), True),  # 6 % of the logits, and nearly every class
        (told(error=0.04, agreement=0.94, divergence=0.004), False),
        (told(error=0.04, agreement=0.99, divergence=0.2), False),
        (told("class token", error=0.2, cosine=0.985, cosine_p5=0.96), True),
        (told("class token", error=0.2, cosine=0.985, cosine_p5=0.6), False),
        (told("class token", error=0.04, cosine=0.9, cosine_p5=0.8), False),
    ],
)
def test_a_bundle_is_judged_by_what_it_says_of_pictures(report, model):
    """`not a model: its logits are off by 6 %` stood beside 97.7 % of the same classes; the sentence has the numbers
    by which it was judged.
    """
    given = advice(report, "google/vit", "bundle")
    assert (given is None) is kept.is_model(report) is model
    row = kept.last_row(report)
    numbers = [f"{100 * row['agreement']:.1f} %"] if row and "agreement" in row else []
    numbers += [f"{row['cosine']:.3f}"] if row and "cosine" in row else []
    numbers += ["0.05"] if row is None and model else []
    assert all(number in kept.kept(report) for number in numbers)
    assert given is None or given["statement"].endswith(kept.kept(report))


@pytest.mark.parametrize("fit", [*FITS, "exact"])
def test_every_fit_has_a_word_for_people(fit):
    """`fit: matched` says nothing to who has not read the code."""
    assert len(kept.FIT_WORDS[fit].split()) > 3 and kept.fitted({"fit": fit}) == f"{fit}: {kept.FIT_WORDS[fit]}"


def test_advice_is_a_command_that_the_command_line_takes():
    """For what is a start, not a model."""
    given = advice(told(), "google/vit", "bundle")
    program, *words = shlex.split(given["command"])
    arguments = cli.build_parser("decompose").parse_args(words)
    assert program == "lingene" and arguments.command == "decompose"
    assert (str(arguments.init), arguments.teacher, arguments.data) == ("bundle", "google/vit", "DATA")
    assert arguments.learning_rate == given["learning_rate"] == learning_rate(0.3)
    assert "not a model" in given["statement"]
    headless = advice(told("class token"), "facebook/dinov2-small", "bundle")
    recipes = [
        options.asked_recipe(cli.build_parser("decompose").parse_args(shlex.split(one["command"])[1:]))
        for one in (given, headless)
    ]
    assert [recipe.objective.kind for recipe in recipes] == ["labels", "features"]
    assert recipes[1].teacher == "facebook/dinov2-small"


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
