"""Laws of the forward pass: at every size a bundle answers as the stock ViT whose weights numpy recomposed.

pytest tests/modeling/test_forward_pass.py
"""

import pytest
import torch
from modeling_helpers import BUNDLES, distance
from transformers import ViTForImageClassification

from helpers import images, labels, reference_vit, tiny_config, tiny_model
from modeling_lingene import LinGeneForImageClassification, LinGeneModel


SIZES = [(6, "1", 5), (3, "1", 5), (6, "1", 2), (6, "1/2", 5), (2, "3/4", 1), (9, "1/4", 4), (12, "1", 3)]


def sizes_of(config):
    return [size for size in SIZES if size[0] <= 6 or config.depth_map == "resample"]


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
