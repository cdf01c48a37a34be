"""Laws of sorting for widths to come: exact at full width, slices with mean zero, the strongest axes first.

Against numpy's eigenvectors and stock transformers models whose every parameter was changed.

    pytest tests/conversion/test_sorting.py
"""

import numpy
import pytest
import torch
from converting import relative
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersForImageClassification,
    DINOv3ViTModel,
    ViTModel,
)
from turning import stock

import helpers
from modeling_lingene.bundle_lingene import READOUT_FILE
from modeling_lingene.conversion.convert import convert, open_source
from modeling_lingene.conversion.ordering import order_layers, sort_width
from modeling_lingene.conversion.rotation import rotated, rotation, stream_moments, zero_sum_axes


BLOCKS = [12, 24, 12]


def spread(size, seed=0):
    """Second moments with principal axes of every strength, (d, d) float64."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(size, 3 * size, generator=generator, dtype=torch.float64)
    whole = torch.logspace(1, -2, size, dtype=torch.float64)[torch.randperm(size, generator=generator), None] * whole
    whole = whole - whole.mean(0)
    return whole @ whole.T


@pytest.mark.parametrize("blocks", [[48], BLOCKS, [8] * 6, [1, 2, 3]])
def test_axes_of_blocks_are_orthonormal_and_have_sum_zero(blocks):
    """All but the differences of means and the ones themselves: within one block each, and nothing for its mean."""
    axes = zero_sum_axes(blocks).numpy()
    size, inner = sum(blocks), sum(blocks) - len(blocks)
    numpy.testing.assert_allclose(axes.T @ axes, numpy.eye(size), atol=1e-12)
    numpy.testing.assert_allclose(abs(axes[:, -1]), size**-0.5)
    parts = numpy.split(axes, numpy.cumsum(blocks)[:-1])
    for part in parts:
        numpy.testing.assert_allclose(part[:, :inner].sum(0), 0, atol=1e-12)
        numpy.testing.assert_allclose(part[:, inner:] - part[:1, inner:], 0, atol=1e-12)  # means alone
    alive = numpy.array([numpy.abs(part[:, :inner]).max(0) > 0 for part in parts])
    assert (alive.sum(0) == 1).all() and (
        alive.argmax(0) == numpy.repeat(range(len(blocks)), numpy.array(blocks) - 1)
    ).all()


def test_a_rotation_is_orthogonal_and_takes_the_strongest_axes_to_the_first_block():
    """By numpy's eigenvectors: what is strongest lies in the narrowest slice, the next in the next; sums are zero."""
    moments = spread(48)
    turn = rotation(moments, BLOCKS).numpy()
    numpy.testing.assert_allclose(turn @ turn.T, numpy.eye(48), atol=1e-12)
    numpy.testing.assert_allclose(turn @ numpy.ones(48), numpy.ones(48), atol=1e-12)
    values, axes = numpy.linalg.eigh(moments.numpy())
    moved = turn @ axes[:, values.argsort()[::-1]]  # the weakest is the vector of ones
    for first, last, channels in ((0, 11, slice(0, 12)), (11, 34, slice(12, 36)), (34, 45, slice(36, 48))):
        numpy.testing.assert_allclose((moved[channels, first:last] ** 2).sum(0), 1, atol=1e-9)
        numpy.testing.assert_allclose(moved[channels, first:last].sum(0), 0, atol=1e-9)


def test_layer_norm_commutes_with_the_rotation():
    """Of any states: the mean is kept, and the variance. With another rotation it would not."""
    turn, states = rotation(spread(48), BLOCKS), torch.randn(5, 48, dtype=torch.float64) + 3
    found = functional.layer_norm(states @ turn.T, (48,))
    torch.testing.assert_close(found, functional.layer_norm(states, (48,)) @ turn.T)
    other = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64))[0]
    assert (
        relative(functional.layer_norm(states @ other.T, (48,)), functional.layer_norm(states, (48,)) @ other.T) > 0.1
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"qkv_bias": False},
        {"model_class": ViTModel},
        {"model_class": Dinov2Model},
        {"model_class": DINOv3ViTModel},  # norms' biases give its keys biases, which turn
        {"model_class": Dinov2WithRegistersForImageClassification},  # its head reads the patches' mean as well
    ],
)
@torch.no_grad()
def test_sorting_changes_nothing_at_full_width(tmp_path, photos, given):
    """Relative error of logits, and of all tokens brought back by the readout, at most 1e-5; LayerScale included."""
    model, values = stock(**given), helpers.images(6)
    model.save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "bundle", calibrate=str(photos), sort=True, widths=["1/2", "3/4"])
    if hasattr(model, "classifier"):
        found = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle")(values).logits
        assert relative(found, model(values).logits) < 1e-5
    tokens = AutoModel.from_pretrained(tmp_path / "bundle")(values).last_hidden_state
    encoder = model.base_model if hasattr(model, "classifier") else model
    expected, readout = encoder(values).last_hidden_state, load_file(tmp_path / "bundle" / READOUT_FILE)
    assert relative(tokens @ readout["weight"].T + readout["bias"], expected) < 1e-5
    assert relative(tokens, expected) > 0.1


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A source, the same turned for two widths, and the images that it was turned on."""
    folder, values = tmp_path_factory.mktemp("source"), helpers.images(32)
    stock().save_pretrained(folder)
    source = open_source(str(folder))
    return source, rotated(source, values, [helpers.Fraction(1, 4), helpers.Fraction(3, 4)], "cpu"), values


def test_slices_of_the_stream_have_mean_zero_but_for_the_weakest_axes(turned):
    """What is left of the means of the blocks is just the energy of as many axes as there are blocks but one.

    And the slices keep what the strongest axes hold.
    """
    source, other, values = turned
    before, after = (stream_moments(one.stock(), values).numpy() for one in (source, other))
    energies = numpy.linalg.eigvalsh(before)[::-1]  # the last is that of the ones, nothing
    means = sum(after[a:b, a:b].sum() / (b - a) for a, b in ((0, 12), (12, 36), (36, 48)))
    assert means == pytest.approx(energies[45:47].sum(), rel=1e-3)
    for width, axes in ((12, 11), (36, 34)):
        assert after[:width, :width].trace() >= energies[:axes].sum() * (1 - 1e-5)
        assert after[:width, :width].trace() > before[:width, :width].trace()


def by_variance(model, values):
    """The sort that a permutation allows: channels in the order of their variance, all layers together."""
    order = stream_moments(model, values).diagonal().argsort(descending=True)
    for name, parameter in model.named_parameters():
        *_, part, kind = name.split(".")
        dim = {"position_embeddings": 2, "cls_token": 2}.get(kind, 0)
        if (
            part == "classifier"
            or kind == "weight"
            and part in ("q_proj", "k_proj", "v_proj", "query", "key", "value", "fc1")
        ):
            dim = 1
        if (
            kind == "bias"
            and parameter is not None
            and part in ("classifier", "query", "key", "value", "q_proj", "k_proj", "v_proj", "fc1")
        ):
            continue
        parameter.copy_(parameter.index_select(dim, order))
    return model


@torch.no_grad()
def test_slices_of_a_turned_stream_are_nearer_than_those_of_sorted_channels(tmp_path, photos):
    """A stream that is mostly in a few directions, none of them a channel's: a permutation cannot find them."""
    model = stock()
    few = torch.linalg.qr(torch.randn(48, 14, generator=torch.Generator().manual_seed(1)))[0]
    keep = few @ few.T + 0.1 * torch.eye(48)
    embeddings = model.vit.embeddings
    for tensor in (embeddings.cls_token, embeddings.position_embeddings):
        tensor.copy_(tensor @ keep)
    writers = [embeddings.patch_embeddings.projection]
    for module in (module for module in model.vit.layers.modules() if isinstance(module, torch.nn.Linear)):
        writers += [module] if module.weight.shape[0] == 48 else []
    maps = [module for module in model.vit.layers.modules() if isinstance(module, torch.nn.Linear)]
    for module in (writers[0], *maps[3::6], *maps[5::6]):
        module.weight.copy_(torch.einsum("de,e...->d...", keep, module.weight))
        module.bias.copy_(keep @ module.bias)
    values = torch.cat([helpers.images(16), helpers.images(16, seed=1)])
    expected = model(values).logits
    model.save_pretrained(tmp_path / "source")
    by_variance(model, values).save_pretrained(tmp_path / "permuted")
    assert relative(model(values).logits, expected) < 1e-5
    asked = {"calibrate": str(photos), "sort": True, "widths": ["1/2"]}
    convert(str(tmp_path / "source"), tmp_path / "turned", **asked)
    convert(str(tmp_path / "permuted"), tmp_path / "plain")
    half, far = {"width_ratio": "1/2", "allow_untrained": True}, {}
    for name in ("turned", "plain"):
        found = AutoModelForImageClassification.from_pretrained(tmp_path / name, **half)(values).logits
        far[name] = relative(found, expected)
    assert far["turned"] < 0.8 * far["plain"]


@torch.no_grad()
def test_every_layer_puts_its_own_heads_and_units_first(tmp_path):
    """One that is made to do most, another in every layer; the function stays."""
    model, values = stock(), helpers.images(16)
    maps = [module for module in model.vit.layers.modules() if isinstance(module, torch.nn.Linear)]
    for layer in range(6):
        maps[6 * layer + 5].weight[:, 10 + layer] *= 40
        maps[6 * layer + 3].weight[:, 12 * (layer % 4) : 12 * (layer % 4) + 12] *= 20
    model.save_pretrained(tmp_path)
    source = open_source(str(tmp_path))
    found = order_layers(source, values, "cpu")
    for layer in range(6):
        before, after = (one.block("mlp.fc1.bias", layer) for one in (source, found))
        assert after[0] == before[10 + layer] and sorted(after.tolist()) == sorted(before.tolist())
        before, after = (one.block("attention.query.bias", layer) for one in (source, found))
        assert torch.equal(after[:12], before[12 * (layer % 4) :][:12])
    assert relative(found.stock()(values).logits, model(values).logits) < 1e-5


@torch.no_grad()
def test_with_fewer_components_one_order_holds_for_all_layers():
    """A head and a unit made to do most in every layer lead in the components; trained widths stay as they are."""
    model = helpers.tiny_model(helpers.tiny_config(trained_width_ratios=["1"]))
    for component in model.components:
        component.mlp.fc2.weight[:, 61] *= 40
        component.attention.output.weight[:, 24:36] *= 20
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    values = helpers.images(16)
    expected = model(values).logits
    sort_width(model, values)
    after = dict(model.named_parameters())
    assert (model(values).logits - expected).abs().max() < 1e-3
    assert after["components.1.mlp.fc1.bias"][0] == before["components.1.mlp.fc1.bias"][61]
    name = "components.2.attention.query.bias"
    assert torch.equal(after[name][:12], before[name][24:36])
    with pytest.raises(ValueError, match="1/2.*were trained as they are"):
        model.config.trained_width_ratios = ["1/2", "1"]
        sort_width(model, values)


@torch.no_grad()
def test_sorting_does_not_change_what_a_fit_finds(tmp_path, photos):
    """The metric turns with the channels: fewer components are the same model up to rounding; slices differ."""
    stock().save_pretrained(tmp_path / "source")
    asked, values = {"num_components": 3, "calibrate": str(photos), "fit": "weighted"}, helpers.images(6)
    for name, sort in (("plain", False), ("sorted", True)):
        convert(str(tmp_path / "source"), tmp_path / name, **asked, sort=sort)

    def logits(name, **size):
        return AutoModelForImageClassification.from_pretrained(tmp_path / name, **size)(values).logits

    assert relative(logits("sorted"), logits("plain")) < 1e-2
    half = {"width_ratio": "1/2", "allow_untrained": True}
    assert relative(logits("sorted", **half), logits("plain", **half)) > 0.05


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sort": True, "calibrate": None}, "`sort` needs images.*--calibrate"),
        ({"widths": ["1/2"]}, "`widths`.*--sort"),
        ({"sort": True, "widths": ["1/3"]}, "`widths`.*1/3.*use of 1/4, 1/2, 3/4, 1"),
        ({"sort": True, "widths": ["half"]}, "`widths`.*'half'"),
        ({"sort": True, "widths": ["3/2"]}, "`widths`.*3/2"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(tmp_path, photos, given, named):
    """Before an image is read."""
    stock().save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=named):
        convert(str(tmp_path / "source"), tmp_path / "bundle", **{"calibrate": str(photos), **given})
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
