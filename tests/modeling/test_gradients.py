"""Laws of the backward pass: gradients are the stock ViT's through the coefficients, checkpointed or not.

pytest tests/modeling/test_gradients.py
"""

import numpy
import pytest
import torch
from modeling_helpers import BUNDLES, RESAMPLED, assert_same_gradients, distance, gradients, set_checkpointing

from helpers import STOCK_PARTS, images, labels, numpy_table, reference_vit, residual_scale, tiny_config, tiny_model
from modeling_lingene import LinGeneForImageClassification, components_lingene
from modeling_lingene import modeling_lingene as modeling


def test_several_sizes_in_one_step_add_their_gradients():
    """Elastic training runs several sizes from the same parameters before one backward pass."""
    model, pixels, targets = tiny_model(tiny_config(**RESAMPLED)), images(), labels()
    steps = [dict(depth=d, width_ratio=r, num_components=n) for d, r, n in [(6, "1", 5), (3, "1/2", 4), (9, "3/4", 2)]]
    sum(model(pixels, labels=targets, **size).loss for size in steps).backward()
    together = gradients(model)
    model.zero_grad()
    apart = []
    for size in steps:
        model(pixels, labels=targets, **size).loss.backward()
        apart.append(gradients(model))
        model.zero_grad()
    total = {name: sum(g[name] for g in apart if name in g) for name in apart[0]}
    assert_same_gradients(together, total)
    assert distance(together["classifier.weight"], apart[0]["classifier.weight"]) > 1e-3


def chain_rule(model, vit, depth, num_components):
    """Gradients of a bundle from those of a stock ViT: dL/dA_n = sum_l a(l, n) dL/dW_l, slices padded with zeros."""
    table = numpy_table(model.config, depth, num_components)
    stock = {name: parameter.grad.double() for name, parameter in vit.named_parameters()}
    expected = {}
    for name, parameter in model.named_parameters():
        key = name.replace("patch_embeddings", "patch_embeddings.projection")
        if name.startswith("components."):
            _, n, part = name.split(".", 2)
            part, _, kind = part.rpartition(".")
            if int(n) >= num_components:
                continue
            layers = [stock[f"vit.layers.{layer}.{STOCK_PARTS[part]}.{kind}"] for layer in range(depth)]
            scale = residual_scale(model.config, part, depth)
            part = torch.from_numpy(numpy.einsum("l,l...->...", table[:, int(n)] * scale, numpy.stack(layers)))
        else:
            part = stock[key] if key.startswith("classifier.") else stock[f"vit.{key}"]
        padded = torch.zeros(parameter.shape, dtype=torch.float64)
        padded[tuple(slice(size) for size in part.shape)] = part
        expected[name] = padded.to(parameter.dtype)
    return expected


@pytest.mark.parametrize("name", ["stable", "paper", "scaled", "chosen", "learned"])
@pytest.mark.parametrize("size", [(6, "1", 5), (4, "1/2", 4), (9, "1", 2)])
def test_gradients_are_those_of_the_stock_vit_through_the_coefficients(name, size):
    """What training changes: the stock ViT's gradients, summed over layers by numpy; unused components get none."""
    depth, ratio, count = size
    model = tiny_model(tiny_config(**{**BUNDLES[name], "reference_depth": 9 if name == "chosen" else 6}))
    vit = reference_vit(model, depth, ratio, count)
    vit(images(), labels=labels()).loss.backward()
    loss = model(images(), labels=labels(), depth=depth, width_ratio=ratio, num_components=count).loss
    loss.backward()
    assert_same_gradients(gradients(model), chain_rule(model, vit, depth, count), tolerance=1e-4)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activation_checkpointing_changes_no_gradient(attention, use_reentrant, monkeypatch):
    """The recomputation must see the same weights and drop the same activations, or gradients are silently wrong."""
    config = tiny_config(
        hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, attn_implementation=attention, **RESAMPLED
    )
    model, calls = tiny_model(config).train(), []
    block = modeling.run_block
    monkeypatch.setattr(modeling, "run_block", lambda *arguments: calls.append(1) or block(*arguments))

    def step():
        torch.manual_seed(0)
        model.zero_grad()
        for size in ({}, {"depth": 7, "width_ratio": "1/2", "num_components": 3}):
            model(images(), labels=labels(), **size).loss.backward()
        return gradients(model)

    plain = step()
    assert len(calls) == 6 + 7
    calls.clear()
    set_checkpointing(model, use_reentrant)
    checkpointed = step()
    assert len(calls) == 2 * (6 + 7)  # every block once forward and once again in the backward pass
    assert_same_gradients(checkpointed, plain)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_reaches_what_is_not_frozen(use_reentrant):
    """Incremental training: only the newest component has gradients, and no activation before the blocks has any."""
    model = tiny_model().train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("components.4."))
    model(images(), labels=labels()).loss.backward()
    plain = gradients(model)
    model.zero_grad()
    set_checkpointing(model, use_reentrant)
    model(images(), labels=labels()).loss.backward()
    assert {name.split(".")[1] for name in plain} == {"4"} and len(plain) == 16
    assert_same_gradients(gradients(model), plain)


def test_checkpointing_costs_no_second_pass_in_evaluation(monkeypatch):
    """Evaluating between steps of a checkpointed training must not slow down, nor change results."""
    model, pixels = tiny_model(), images()
    expected = model(pixels).logits
    set_checkpointing(model)
    monkeypatch.setattr(components_lingene.Checkpointed, "forward", None)
    assert torch.equal(model(pixels).logits, expected)


def test_hidden_states_and_attentions_come_through_checkpointing():
    """Distillation from hidden states must work in a checkpointed training too."""
    model = tiny_model(tiny_config(attn_implementation="eager")).train()
    wanted = {"output_hidden_states": True, "output_attentions": True}
    plain = model(images(), **wanted)
    set_checkpointing(model)
    checkpointed = model(images(), **wanted)
    for name in ("hidden_states", "attentions"):
        assert len(plain[name]) == len(checkpointed[name])
        assert all(distance(*pair) < 1e-5 for pair in zip(plain[name], checkpointed[name]))


def test_one_batch_can_be_learned_by_heart():
    """Gradients reach everything in the right direction: three sizes of one bundle fit the same images."""
    torch.manual_seed(0)
    model = LinGeneForImageClassification(tiny_config(depth=2, num_components=2, depth_map="resample"))
    pixels, targets = images(8), labels(8)
    sizes = [{}, {"num_components": 1}, {"width_ratio": "1/2", "depth": 3}]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(model(pixels, labels=targets, **size).loss for size in sizes).backward()
        optimizer.step()
    with torch.no_grad():
        for size in sizes:
            output = model(pixels, labels=targets, **size)
            assert output.loss < 0.1 and torch.equal(output.logits.argmax(dim=-1), targets)
