"""Laws of the constrained models; references: stock ViTs whose weights numpy recomposed, the chain rule by numpy."""

import copy
import io
import pickle

import numpy
import pytest
import torch
from transformers import ViTForImageClassification, ViTModel

from helpers import STOCK_PARTS, images, labels, numpy_table, reference_vit, residual_scale, tiny_config, tiny_model
from modeling_lingene import LinGeneForImageClassification, LinGeneModel, components_lingene
from modeling_lingene import modeling_lingene as modeling


RESAMPLED = {"depth_map": "resample"}
MATRIX = numpy.random.default_rng(0).normal(size=(6, 5)).tolist()
BUNDLES = {
    "stable": RESAMPLED,
    "paper": {"preset": "paper"},
    "legendre": {"basis": "legendre", "nodes": "uniform", "degree_weight": 1.0, **RESAMPLED},
    "taylor": {"basis": "taylor", "start_degree": 1, "gain_offset": 1.0, **RESAMPLED},
    "fourier": {"basis": "fourier", "nodes": "uniform", **RESAMPLED},
    "learned": {"basis": "learned", "coefficient_matrix": MATRIX, "gain_offset": 1.0, **RESAMPLED},
    "scaled": {"scale_residual": True, "qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-3, **RESAMPLED},
    "selected": {"depth_map": "select"},
    "chosen": {"depth_map": "select", "depth_rows": {2: [0, 5], 3: [0, 4, 5], 4: [0, 2, 3, 5]}},
    "oblong": {"image_size": [8, 20], "patch_size": [4, 5], **RESAMPLED},
}
SIZES = [(6, "1", 5), (3, "1", 5), (6, "1", 2), (6, "1/2", 5), (2, "3/4", 1), (9, "1/4", 4), (12, "1", 3)]


def sizes_of(config):
    return [size for size in SIZES if size[0] <= 6 or config.depth_map == "resample"]


def distance(one, other):
    return (one - other).abs().max().item()


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(ours, expected, tolerance=1e-5):
    """Same parameters, and each gradient within a relative tolerance; none of them zero, but for the bias of the keys.

    That bias shifts all scores of a query alike and the softmax does not see it: its gradient is rounding.
    """
    assert ours.keys() == expected.keys() and ours
    for name, gradient in expected.items():
        largest = gradient.abs().max().item()
        assert largest < 1e-6 if name.endswith("key.bias") else largest > 1e-5, name
        assert distance(ours[name], gradient) <= tolerance * max(largest, 1e-2), name


@pytest.mark.parametrize("name", BUNDLES)
def test_constrained_and_materialised_logits_are_those_of_the_stock_vit_by_numpy(name):
    """The main law: every size of every kind of bundle is the stock ViT whose weights are the sums of Eq. 1."""
    config = tiny_config(**BUNDLES[name])
    model, seen = tiny_model(config), []
    height, width = (8, 20) if name == "oblong" else (16, 16)
    pixels = images(2, height, width)
    for depth, ratio, count in sizes_of(config):
        with torch.no_grad():
            ours = model(pixels, depth=depth, width_ratio=ratio, num_components=count).logits
            expected = reference_vit(model, depth, ratio, count)(pixels).logits
            vit = model.materialise(depth, ratio, count)
            assert distance(ours, expected) < 1e-4, (depth, ratio, count)
            assert distance(ours, vit(pixels).logits) < 1e-4
        assert type(vit) is ViTForImageClassification and vit.config.num_hidden_layers == depth
        assert all(distance(ours, other) > 1e-2 for other in seen)
        seen.append(ours)


def test_the_size_of_the_configuration_is_the_default():
    """A bundle loaded at a size runs at that size, and a call may still ask for another."""
    model, pixels = tiny_model(), images()
    small = tiny_model(tiny_config(reference_depth=6, reference_components=5, depth=3, width_ratio=0.5))
    small.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(small(pixels).logits, model(pixels, depth=3, width_ratio="1/2").logits)
        assert torch.equal(small(pixels, depth=6, width_ratio=1).logits, model(pixels).logits)
        assert small.materialise().config.num_hidden_layers == 3


@pytest.mark.parametrize(
    "name, wrong",
    [("depth", {"depth": 0}), ("width_ratio", {"width_ratio": "1/3"}), ("num_components", {"num_components": 6})],
)
def test_a_size_the_bundle_does_not_have_is_refused(name, wrong):
    """In a call and in materialising alike."""
    model = tiny_model()
    with pytest.raises(ValueError, match=f"`{name}`"):
        model(images(), **wrong)
    with pytest.raises(ValueError, match=f"`{name}`"):
        model.materialise(**wrong)


def test_missing_images_are_named():
    """A forgotten argument is no AttributeError of None."""
    with pytest.raises(ValueError, match="`pixel_values`"):
        tiny_model()(labels=labels())


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


def set_checkpointing(model, use_reentrant=False):
    """Activation checkpointing on, under the name that this version of transformers prefers."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})


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


def test_dropout_acts_in_training_only_and_as_in_the_stock_model():
    """Embeddings, attention weights and both branches are dropped; with one seed the same numbers as in stock."""
    dropout = dict(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3, attn_implementation="eager")
    model, pixels = tiny_model(tiny_config(**dropout)), images()
    vit = model.materialise()
    assert distance(model(pixels).logits, vit(pixels).logits) < 1e-5
    outputs = []
    for network in (model, vit):
        torch.manual_seed(0)
        outputs.append(network.train()(pixels).logits)
    assert distance(*outputs) < 1e-5 and distance(outputs[0], model.eval()(pixels).logits) > 0.1


@pytest.mark.parametrize("model_class", [LinGeneForImageClassification, LinGeneModel])
@pytest.mark.parametrize("size", [{}, {"depth": 3, "width_ratio": "1/2", "num_components": 2}])
def test_eager_attention_returns_the_weights_that_stock_returns(model_class, size):
    """Attention maps are read from a bundle as from a ViT; the fused kernel gives the same logits."""
    model, pixels = tiny_model(model_class=model_class), images()
    with torch.no_grad():
        fused = model(pixels, **size)[0]
        model.set_attn_implementation("eager")
        output = model(pixels, output_attentions=True, **size)
        expected = model.materialise(**size)(pixels, output_attentions=True).attentions
    assert distance(fused, output[0]) < 1e-5
    heads, depth = (4, 6) if not size else (2, 3)
    assert len(output.attentions) == len(expected) == depth
    for ours, stock in zip(output.attentions, expected):
        assert ours.shape == (3, heads, 17, 17) and distance(ours, stock) < 1e-5
    assert model(pixels, **size).attentions is None
    model.config.output_attentions = True
    assert len(model(pixels, **size).attentions) == depth
    assert model(pixels, output_attentions=False, **size).attentions is None


@pytest.mark.parametrize("model_class", [LinGeneForImageClassification, LinGeneModel])
@pytest.mark.parametrize("size", [{}, {"depth": 3, "width_ratio": "1/2"}])
def test_hidden_states_are_those_that_stock_returns(model_class, size):
    """Embeddings first, then one per block, before the final LayerNorm; asked for by argument or configuration."""
    model, pixels = tiny_model(model_class=model_class), images()
    with torch.no_grad():
        ours = model(pixels, output_hidden_states=True, **size).hidden_states
        stock = model.materialise(**size)(pixels, output_hidden_states=True).hidden_states
        assert len(ours) == len(stock) == size.get("depth", 6) + 1
        assert all(distance(one, other) < 1e-5 for one, other in zip(ours, stock))
        assert model(pixels, **size).hidden_states is None
        model.config.output_hidden_states = True
        assert len(model(pixels, **size).hidden_states) == len(stock)
        assert model(pixels, output_hidden_states=False, **size).hidden_states is None


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


@pytest.mark.parametrize("size", [(24, 24), (8, 32)])
def test_images_of_another_size_are_interpolated_as_in_stock(size):
    """At full width and in a slice of the position embeddings."""
    model, pixels = tiny_model(), images(2, *size)
    for ratio in ("1", "1/2"):
        with torch.no_grad():
            ours = model(pixels, width_ratio=ratio, interpolate_pos_encoding=True).logits
            stock = model.materialise(width_ratio=ratio)(pixels, interpolate_pos_encoding=True).logits
        assert distance(ours, stock) < 1e-5
    with pytest.raises(ValueError, match="`pixel_values`"):
        model(pixels)


FLOAT_TARGETS = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)).round()


@pytest.mark.parametrize(
    "fields, targets",
    [
        ({}, labels()),
        ({"problem_type": "single_label_classification"}, labels()),
        ({}, FLOAT_TARGETS),
        ({"problem_type": "multi_label_classification"}, FLOAT_TARGETS),
        ({"problem_type": "regression"}, FLOAT_TARGETS),
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0])),
    ],
)
def test_the_loss_is_that_of_stock_for_every_problem_type(fields, targets):
    """Given or inferred from the labels, as in ViTForImageClassification."""
    model = tiny_model(tiny_config(**fields))
    vit = reference_vit(model, 6)
    ours, stock = model(images(), labels=targets), vit(images(), labels=targets)
    assert ours.loss.item() == pytest.approx(stock.loss.item(), rel=1e-5)
    assert model.config.problem_type == vit.config.problem_type


def test_a_model_without_labels_returns_the_class_token():
    """`num_labels=0` is how features are asked for in transformers."""
    model = tiny_model(tiny_config(num_labels=0))
    with torch.no_grad():
        logits = model(images(), width_ratio="1/2").logits
        assert distance(logits, model.materialise(width_ratio="1/2")(images()).logits) < 1e-5
    assert logits.shape == (3, 24) and not any(key.startswith("classifier") for key in model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_gives_the_materialised_models_logits(dtype):
    """Layers are recomposed in at least float32 and then cast, so both forms hold the same weights."""
    model = tiny_model().to(dtype)
    vit = model.materialise(depth=3)
    assert vit.dtype == dtype
    with torch.no_grad():
        ours, stock = model(images(), depth=3).logits, vit(images()).logits  # images stay float32, as in stock
    assert ours.dtype == stock.dtype == dtype
    assert distance(ours, stock) < (1e-12 if dtype == torch.float64 else 0.02)


def test_autocast_gives_the_materialised_models_logits():
    """Autocast must reach the blocks and leave the recomposed weights alone."""
    model, pixels = tiny_model(), images()
    size = model.config.size()
    vit = model.materialise()
    with torch.no_grad():
        plain, weights = model(pixels).logits, model.recomposed(size)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours, stock, cast = model(pixels).logits, vit(pixels).logits, model.recomposed(size)
    assert ours.dtype == torch.bfloat16 and distance(ours, stock) < 0.02 and distance(ours, plain) > 0
    for name, weight in weights.items():
        assert cast[name].dtype == torch.float32 and torch.equal(cast[name], weight)


def test_shapes_can_be_asked_of_a_model_without_memory():
    """Tools count operations and plan devices on the meta device, where a stock ViT runs as well."""
    with torch.device("meta"):
        model = LinGeneForImageClassification(tiny_config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    logits = model(images().to("meta"), depth=3, width_ratio="1/2", num_components=2).logits
    assert logits.device.type == "meta" and logits.shape == (3, 7)


@pytest.mark.parametrize("model_class", [LinGeneForImageClassification, LinGeneModel])
def test_a_tuple_holds_what_the_dictionary_holds(model_class):
    """`return_dict=False`, by argument or configuration, in the order of the fields and without the absent ones."""
    model = tiny_model(model_class=model_class)
    arguments = {"output_hidden_states": True}
    if model_class is LinGeneForImageClassification:
        arguments["labels"] = labels()
    as_dict = model(images(), **arguments)
    by_argument = model(images(), return_dict=False, **arguments)
    model.config.return_dict = False
    by_configuration = model(images(), **arguments)
    expected = ["loss", "logits"] if "labels" in arguments else ["last_hidden_state"]
    assert list(as_dict) == [*expected, "hidden_states"]
    for result in (by_argument, by_configuration):
        assert type(result) is tuple and len(result) == len(as_dict)
        assert torch.equal(result[0], as_dict[0]) and torch.equal(result[-1][-1], as_dict["hidden_states"][-1])


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


@pytest.mark.parametrize("size", [{}, {"depth": 2, "width_ratio": "1/2", "num_components": 3}])
def test_a_materialised_model_has_weights_of_its_own(size):
    """It takes the weights as they are in memory, and afterwards neither model sees what happens to the other."""
    model, pixels = tiny_model(), images()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        before = model(pixels, **size).logits
        vit = model.materialise(**size)
        assert distance(vit(pixels).logits, before) < 1e-5
        for parameter in vit.parameters():
            parameter.add_(1.0)
        assert torch.equal(model(pixels, **size).logits, before)
        changed = vit(pixels).logits
        for parameter in model.parameters():
            parameter.add_(1.0)
        assert torch.equal(vit(pixels).logits, changed)
    tensors = vit.state_dict().values()
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() for tensor in tensors)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in vit.parameters())


@pytest.mark.parametrize("size", [{}, {"depth": 2, "width_ratio": "1/2", "num_components": 3}])
def test_a_materialised_model_saves_as_a_plain_vit(size, tmp_path):
    """What comes out is stock: it needs no code of ours to load, and no two of its tensors share memory."""
    vit = tiny_model().materialise(**size)
    vit.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert "lingene" not in (tmp_path / "config.json").read_text().lower()
    again = ViTForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.eval()(images()).logits, vit(images()).logits)


def test_a_materialised_model_keeps_mode_labels_and_settings():
    """A ViT taken out in the middle of training goes on as its bundle was."""
    names = {number: f"class {number}" for number in range(7)}
    model = tiny_model(tiny_config(id2label=names, attn_implementation="eager", hidden_dropout_prob=0.1))
    model.name_or_path = "org/bundle"
    assert not model.materialise().training
    vit = model.train().materialise(depth=2)
    assert vit.training and all(module.training for module in vit.modules())
    assert vit.config.id2label == names and vit.config.hidden_dropout_prob == 0.1
    assert vit.config._attn_implementation == "eager"
    assert vit.name_or_path == "org/bundle (depth 2, width ratio 1, 5 components)" and vit.config.name_or_path == ""


@pytest.mark.parametrize("size", [{}, {"depth": 3, "width_ratio": "1/2", "num_components": 2}])
def test_the_headless_model_is_a_stock_vit_without_pooler(size):
    """The twin for features; its hidden states are those under the classifier of the other class."""
    model, pixels = tiny_model(model_class=LinGeneModel), images()
    vit = model.materialise(**size)
    assert type(vit) is ViTModel and vit.pooler is None
    with torch.no_grad():
        ours, stock = model(pixels, **size), vit(pixels)
        assert ours.last_hidden_state.shape == (3, 17, 24 if size else 48)
        assert distance(ours.last_hidden_state, stock.last_hidden_state) < 1e-5 and ours.pooler_output is None
        classifying = LinGeneForImageClassification(model.config).eval()
        missing = classifying.load_state_dict(model.state_dict(), strict=False)
        assert missing.missing_keys == ["classifier.weight", "classifier.bias"] and not missing.unexpected_keys
        expected = ours.last_hidden_state[:, 0] @ classifying.classifier.weight[:, : ours[0].shape[-1]].T
        assert distance(classifying(pixels, **size).logits, expected) < 1e-5


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


@pytest.mark.parametrize(
    "wanted",
    [
        {"target_modules": ["query", "value"]},
        {"target_modules": ["mlp.fc1"]},
        {"target_parameters": ["query.weight"]},
        {"target_modules": ["classifier"]},
        {"target_modules": ["patch_embeddings"]},
        {"target_modules": "all-linear"},
    ],
)
def test_adapters_on_a_constrained_model_are_refused_with_the_way_out(wanted):
    """An adapter on components trains (sum c A)(sum c B), not what its name says: refused before or in the first call.

    The modules of a bundle are read, never called, so that adapters on the others would be without effect.
    """
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"materialise\(\)"):
        peft.get_peft_model(tiny_model(), peft.LoraConfig(**wanted))(images())


def test_adding_an_adapter_is_refused_with_the_way_out():
    """transformers' own way to adapters."""
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"materialise\(\)"):
        tiny_model().add_adapter(peft.LoraConfig(target_modules=["query", "value"]))


def test_lora_trains_on_a_materialised_model():
    """The way out works: only adapters train, and merging them gives a plain ViT that computes the same."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    vit = tiny_model().materialise(depth=2, width_ratio="1/2")
    frozen = vit.state_dict()["vit.layers.0.attention.q_proj.weight"].clone()
    model = peft.get_peft_model(vit, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2 and all("lora_" in name for name in trained)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(pixel_values=images(), labels=labels()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    with torch.no_grad():
        expected = model(pixel_values=images()).logits
        merged = model.merge_and_unload()
        assert type(merged) is ViTForImageClassification and distance(merged(images()).logits, expected) < 1e-5
    assert distance(merged.state_dict()["vit.layers.0.attention.q_proj.weight"], frozen) > 1e-3
