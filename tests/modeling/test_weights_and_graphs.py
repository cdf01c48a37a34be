"""Laws of a constrained model as a module: first weights, keys, copies of it, and the graphs that torch makes of it.

pytest tests/modeling/test_weights_and_graphs.py
"""

import copy
import io
import pickle

import pytest
import torch
from modeling_helpers import MATRIX, assert_same_gradients, distance, gradients

from helpers import images, labels, tiny_config, tiny_model
from modeling_lingene import LinGeneForImageClassification, LinGeneModel


INITIAL = {
    "stable": {},
    "weighted": {"degree_weight": 1.0},
    "paper": {"preset": "paper"},
    "taylor": {"basis": "taylor", "nodes": "uniform"},
    "learned": {"basis": "learned", "coefficient_matrix": MATRIX, "gain_offset": 1.0},
    "folded": {"gain_offset": 1.0},
}


@pytest.mark.parametrize("name", INITIAL)
def test_a_new_model_recomposes_to_a_newly_initialised_vit(name):
    """Without scaling, layers of random components come out 2.3 times too large and LayerNorm gains go negative."""
    torch.manual_seed(0)
    config = tiny_config(**INITIAL[name])
    model = LinGeneForImageClassification(config)
    weights = model.recomposed(config.size())
    with torch.no_grad():
        for part, tensor in weights.items():
            if tensor.dim() == 3:
                assert tensor.square().mean().sqrt().item() == pytest.approx(config.initializer_range, rel=0.05), part
                assert abs(tensor.mean().item()) < 0.001
            else:
                expected = 1.0 if part.startswith("norm") and part.endswith("weight") else 0.0
                assert distance(tensor, torch.tensor(expected)) < 1e-6, part
        assert model.embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.1)
        assert model.embeddings.cls_token.std().item() == pytest.approx(0.02, rel=0.4)
        assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert (model.layernorm.weight == 1).all() and (model.layernorm.bias == 0).all()
        assert (model.classifier.bias == 0).all()
    assert len({tensor.sum().item() for n, tensor in model.named_parameters() if n.endswith("query.weight")}) == 5


@pytest.mark.parametrize("preset, constant, offset", [("stable", 1.0, 0.0), ("paper", 0.0, 1.0)])
def test_the_gain_of_one_is_in_the_constant_component_or_in_the_offset(preset, constant, offset):
    """Start degree 0 has a constant component, which carries the gain; without one it is added outside the sum."""
    config = tiny_config(preset=preset)
    model = LinGeneForImageClassification(config)
    assert config.gain_offset == offset
    for n, component in enumerate(model.components):
        assert (component.norm1.weight == (constant if n == 0 else 0)).all()
        assert (component.norm2.weight == (constant if n == 0 else 0)).all()


LINEARS = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.fc1", "mlp.fc2"]


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_the_keys_are_those_of_the_format(qkv_bias):
    """Every bundle ever saved has these keys, and nothing is stored that can be computed."""
    outside = ["cls_token", "position_embeddings", "patch_embeddings.weight", "patch_embeddings.bias"]
    keys = {f"embeddings.{name}" for name in outside} | {"layernorm.weight", "layernorm.bias"}
    for n in range(5):
        keys |= {
            f"components.{n}.{part}.{kind}" for part in [*LINEARS, "norm1", "norm2"] for kind in ("weight", "bias")
        }
    if not qkv_bias:
        keys = {key for key in keys if not key.endswith(("query.bias", "key.bias", "value.bias"))}
    config = tiny_config(qkv_bias=qkv_bias)
    headless, model = LinGeneModel(config), LinGeneForImageClassification(config)
    assert set(headless.state_dict()) == keys
    assert set(model.state_dict()) == keys | {"classifier.weight", "classifier.bias"}
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()} and not list(model.buffers())
    shapes = {name: tuple(tensor.shape) for name, tensor in headless.state_dict().items()}
    assert shapes["components.4.mlp.fc1.weight"] == (96, 48) and shapes["components.4.mlp.fc2.weight"] == (48, 96)
    assert shapes["embeddings.position_embeddings"] == (1, 17, 48)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_equal_and_independent(duplicate):
    """Trainers copy models for averaging, and worker processes get them pickled."""
    model, pixels = tiny_model(), images()
    other = duplicate(model)
    with torch.no_grad():
        expected = model(pixels, depth=2).logits
        assert torch.equal(other(pixels, depth=2).logits, expected)
        for parameter in other.parameters():
            parameter.add_(1.0)
        assert torch.equal(model(pixels, depth=2).logits, expected)
        assert distance(other(pixels, depth=2).logits, expected) > 1e-2


def test_the_model_compiles_as_one_graph_at_every_size():
    """Recomposing in the forward pass must not break the graph; logits and gradients stay."""
    torch._dynamo.reset()
    model = tiny_model(tiny_config(depth=2, num_components=2))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in ({}, {"depth": 1, "width_ratio": "1/2", "num_components": 1}):
        results = []
        for network in (model, compiled):
            model.zero_grad()
            output = network(images(), labels=labels(), **size)
            output.loss.backward()
            results.append((output.logits, gradients(model)))
        assert distance(results[0][0], results[1][0]) < 1e-5
        assert_same_gradients(results[1][1], results[0][1])
    torch._dynamo.reset()


def test_an_exported_program_is_the_model():
    """A size can be handed to a runtime without Python; the batch stays free."""
    model, size = tiny_model(tiny_config(depth=3)), {"depth": 2, "width_ratio": "1/2", "num_components": 2}
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    shapes = {"pixel_values": batch, **dict.fromkeys(size)}
    program = torch.export.export(model, (images(),), size, dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    with torch.no_grad():
        for pixels in (images(), images(5, seed=1)):
            assert distance(loaded(pixels, **size).logits, model(pixels, **size).logits) < 1e-5
