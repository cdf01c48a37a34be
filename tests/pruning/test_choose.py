"""Laws of the finish: costs in closed form, and the one threshold that meets a target.

pytest tests/pruning/test_choose.py
"""

import pruning_helpers as made
import pytest
import torch
from transformers import AutoModelForImageClassification, SwinConfig

from modeling_lingene.lingene_pruned import MIXERS
from modeling_lingene.lingene_swin import LinGenePrunedSwinConfig
from modeling_lingene.lingene_vit import LinGeneViTConfig
from modeling_lingene.measuring.metrics import count_macs, count_parameters
from modeling_lingene.pruning.choose import Worths, check_target, choose
from modeling_lingene.pruning.costs import KINDS, LayerCosts, costs_of
from modeling_lingene.pruning.importance import efficiencies


SWIN_MIXED = dict(mixers=["conv3", "attention", "none", "conv1"], intermediate_sizes=[48, 8, 40, 17])
# DeiT-B as the authors have released it pruned (SPViT's repository), 224 pixels, 1000 classes.
RELEASED = dict(
    mixers=["conv1"] * 3 + ["conv3"] * 2 + ["attention"] * 7,
    intermediate_sizes=[1118, 489, 1050, 1345, 1336, 1326, 1431, 1564, 1606, 1702, 1290, 190],
)


@pytest.mark.parametrize(
    "fields",
    [{}, {"folded": True}, {"qkv_bias": False}, {"image_size": [16, 24]}, {"patch_size": 2, "num_channels": 1}],
    ids=str,
)
@pytest.mark.parametrize("family", made.FAMILIES)
def test_the_closed_form_is_what_torch_counts(family, fields):
    """To the last product and parameter, for every mixer, or a target would be met on paper only. A Swin's maps are
    not of whole windows, and of images that patches do not divide.
    """
    if family == "vit":
        config = made.mixed_config(**fields)
    else:
        images = {"image_size": [27, 21]} if "image_size" in fields else {}
        config = made.swin_config(**{**fields, **images, **SWIN_MIXED})
    model = AutoModelForImageClassification.from_config(config)
    counted = {"macs": count_macs(config), "params": count_parameters(model)}
    for kind in KINDS:
        assert costs_of(config, kind).total(config.mixers, config.intermediate_sizes) == counted[kind]


def test_the_released_network_costs_what_its_authors_say():
    """8.39 G as they count, with 2 d (n + 1) for a layer's norms and without the class token's MLP; 41.58 M."""
    config = LinGeneViTConfig(**RELEASED, num_labels=1000)
    macs = costs_of(config).total(**{"mixers": config.mixers, "units": config.intermediate_sizes})
    assert macs == count_macs(config) and round(macs / 1e9, 2) == 8.41
    assert round((macs - 2 * 768 * sum(config.intermediate_sizes) + 12 * 2 * 768 * 197) / 1e9, 2) == 8.39
    params = costs_of(config, "params").total(config.mixers, config.intermediate_sizes)
    assert round(params / 1e6, 2) == 41.58
    with torch.device("meta"):
        assert count_parameters(AutoModelForImageClassification.from_config(config)) == params


def test_swin_tiny_costs_what_its_authors_say():
    """4.5 G and 28.3 M (Liu et al., Table 1); and what transformers' own model has."""
    config = LinGenePrunedSwinConfig(num_labels=1000)
    dense = {"mixers": config.mixers, "units": config.intermediate_sizes}
    macs, params = (costs_of(config, kind).total(**dense) for kind in KINDS)
    assert (round(macs / 1e9, 1), round(params / 1e6, 1)) == (4.5, 28.3)
    assert macs == count_macs(SwinConfig(num_labels=1000))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.15, 0.5, 0.95])
def test_a_swin_meets_its_target_and_may_lose_all_attention(kind, share):
    """Its layers cost by their stage; it has no class token to which attention alone could bring the patches."""
    config = LinGenePrunedSwinConfig(num_labels=1000)
    costs, generator = costs_of(config, kind), torch.Generator().manual_seed(0)
    units = [torch.randn(size, generator=generator) for size in config.intermediate_sizes]
    mixers = torch.randn(12, 3, generator=generator)
    target = share * costs.total(config.mixers, config.intermediate_sizes)
    chosen = choose(Worths(mixers, units), costs, target)
    assert 0.99 * target <= chosen.cost <= target and all(size % 8 == 0 for size in chosen.sizes)
    assert chosen.cost == costs.total(chosen.mixers, chosen.sizes)
    without = choose(Worths(mixers - torch.tensor([0.0, 0.0, 99.0]), units), costs, min(share, 0.5) * target / share)
    assert "attention" not in without.mixers
    assert set(without.mixers) & {"conv1", "conv3"}


def test_the_least_of_a_swin_has_no_attention():
    """And is named as such."""
    config = LinGenePrunedSwinConfig()
    costs = costs_of(config)
    with pytest.raises(ValueError, match="from (0.0[0-9]+) on, with attention in no layer and 8 MLP units in each"):
        check_target(costs, config.intermediate_sizes, 1.0)


def worths(seed: int, layers: int = 12, units: int = 768) -> Worths:
    generator = torch.Generator().manual_seed(seed)
    return Worths(
        torch.randn(layers, 3, generator=generator), [torch.randn(units, generator=generator) for _ in range(layers)]
    )


def small(layers: int = 12, units: int = 768) -> LinGeneViTConfig:
    """DeiT-Ti."""
    heads = dict(hidden_size=192, num_attention_heads=3)
    return LinGeneViTConfig(**heads, mixers=["attention"] * layers, intermediate_sizes=[units] * layers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_target_is_met_within_a_percent_and_never_exceeded(kind, share, seed):
    """Sizes stay multiples of 8, and the class token reads patches somewhere."""
    config = small()
    costs = costs_of(config, kind)
    target = share * costs.total(config.mixers, config.intermediate_sizes)
    chosen = choose(worths(seed), costs, target)
    assert 0.99 * target <= chosen.cost <= target
    assert chosen.cost == costs.total(chosen.mixers, chosen.sizes)
    assert all(size % 8 == 0 and size >= 8 for size in chosen.sizes)
    last = max(layer for layer, mixer in enumerate(chosen.mixers) if mixer == "attention")
    assert set(chosen.mixers[last + 1 :]) <= {"none"}


def test_the_units_that_stay_are_the_best_and_operations_open_in_order():
    """By hand: a first gate that is closed closes the layer, whatever the others are worth."""
    mixers = torch.tensor([[9.0, 9.0, 9.0], [-9.0, 9.0, 9.0], [9.0, -9.0, 9.0], [9.0, 9.0, -9.0], [9.0, 9.0, 9.0]])
    found = worths(0, 5, 32)
    config = small(5, 32)
    costs = costs_of(config)
    expected = ("attention", "none", "conv1", "conv3", "attention")
    sizes = [sum(int(worth > 0) for worth in units) for units in found.units]
    target = costs.total(expected, [8 * round(size / 8) for size in sizes])
    chosen = choose(Worths(mixers, found.units), costs, target)
    assert chosen.mixers == expected
    for units, kept in zip(found.units, chosen.units):
        closed = set(range(32)) - set(kept)
        assert min(units[list(kept)]) > max(units[list(closed)], default=torch.tensor(-99.0))


def test_a_convolution_after_the_last_attention_is_left_out():
    """The class token never sees what it does."""
    mixers = torch.tensor([[5.0, 5.0, 5.0], [4.0, 4.0, -4.0], [3.0, -3.0, -3.0]])
    config = small(3, 16)
    costs = costs_of(config)
    chosen = choose(Worths(mixers, [torch.arange(16.0) + 9] * 3), costs, costs.total(MIXERS[3:0:-1], [16] * 3) - 1)
    assert chosen.mixers == ("attention", "none", "none") and chosen.sizes == (16, 16, 16)


@pytest.mark.parametrize("units", [3, 12, 19])
def test_sizes_that_are_no_multiples_of_8_can_be_kept_whole(units):
    """A dense network need not have them."""
    config = small(3, units)
    costs, dense = costs_of(config), costs_of(config).total(config.mixers, config.intermediate_sizes)
    chosen = choose(worths(0, 3, units), costs, dense - 1)
    assert max(chosen.sizes) == units and 0 < chosen.cost < dense


@pytest.mark.parametrize("share", [1.0, 1.5, 0.01, 0.0, -1.0, float("nan")])
def test_a_target_that_cannot_be_met_is_refused_with_the_least_that_can(share):
    """Nobody should have to guess it."""
    config = small()
    costs = costs_of(config)
    dense = costs.total(config.mixers, config.intermediate_sizes)
    with pytest.raises(ValueError, match="below 1, and from (0.[0-9]+) on") as refused:
        check_target(costs, config.intermediate_sizes, share * dense)
    least = float(str(refused.value).split("from ")[1].split()[0])
    assert choose(worths(0), costs, least * dense).mixers.count("attention") == 1


def test_too_few_heads_are_refused():
    """A 3x3 convolution to half of the channels costs more than attention."""
    config = LinGeneViTConfig(hidden_size=768, num_attention_heads=2)
    with pytest.raises(ValueError, match="`model` has so few heads"):
        check_target(costs_of(config), config.intermediate_sizes, 1.0)


def test_a_mixer_that_is_no_bargain_is_passed_over():
    """By hand: the upper hull of what is saved over what it costs."""
    costs = LayerCosts({"none": 0, "conv1": 1, "conv3": 2, "attention": 4}, 1)
    assert efficiencies([6.0, 3.0, 1.0, 0.0], costs) == [3.0, 2.0, 0.5]  # each worth less than the one before
    assert efficiencies([6.0, 7.0, 1.0, 0.0], costs) == [2.5, 2.5, 0.5]  # conv1 harms
    assert efficiencies([4.0, 9.0, 5.0, 0.0], costs) == [1.0, 1.0, 1.0]  # no convolution is any good
    assert efficiencies([4.0, 0.0, 0.0, 0.0], costs) == [4.0, 0.0, 0.0]
