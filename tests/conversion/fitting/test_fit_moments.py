"""Laws of fitting fewer components than layers: moments are those of what enters and of the gradients.

Against autograd image by image, in stock transformers models whose every parameter was changed.

    pytest tests/conversion/fitting/test_fit_moments.py
"""

import numpy
import pytest
import torch
from fits import DEPTH, LINEAR_PARTS, entering, layers_of, logits, maps_of, relative, stock, with_layers
from transformers import ViTForImageClassification, ViTModel

import helpers
from helpers import STOCK_PARTS
from modeling_lingene.conversion.fitting import (
    fold_norms,
)
from modeling_lingene.conversion.moments import (
    linear_maps,
    moments,
    paired_moments,
)


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
    found = paired_moments(model, other, values, DEPTH, size)
    inputs, arriving, maps = entering(model, values), entering(other, values), maps_of(model)
    assert list(found) == LINEAR_PARTS
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
