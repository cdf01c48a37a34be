"""Laws of elastic training over depth, width and components: which networks a step draws. By counting.

pytest tests/training/elastic/test_elastic_draws.py
"""

import math
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from itertools import product

import pytest
import torch
from elastic_nets import COMPONENTS, DEPTH, DEPTHS, QUARTERS, elastic, seeded

import helpers
from modeling_lingene.training.decomposition import DecompositionSettings, grid_of
from modeling_lingene.training.decomposition import phases as phases_of
from modeling_lingene.training.elastic import SAMPLINGS, Grid, drawn_networks
from modeling_lingene.training.recipes import Recipe, decompose
from modeling_lingene.training.steps import TrainingSettings


DRAWS = 4000


# Which networks a step draws.


def drawn(
    sampling: str,
    widths: Iterable[str] = QUARTERS,
    depths: tuple[int, ...] = DEPTHS,
    prefixes: bool = True,
    full_share: float = 0.5,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[list[tuple]]:
    """The networks of so many steps, as (depth, width, count). Where the second is drawn as the full one, it is not
    trained again; it stands here all the same.
    """
    grid = Grid(DEPTH, depths, tuple(map(Fraction, widths)), COMPONENTS, prefixes)
    generator = seeded(seed)
    steps = [drawn_networks(grid, sampling, full_share, 0.0, 1, generator, 0.0) for _ in range(draws)]
    steps = [[(one["depth"], one.get("width_ratio", "1"), one["num_components"]) for one in step] for step in steps]
    longest = max(map(len, steps))
    assert all(len(step) >= longest - 1 and (DEPTH, "1", COMPONENTS) not in step[1:] for step in steps)
    return [step if len(step) == longest else [step[0], step[0], *step[1:]] for step in steps]


def halved(full, smaller: Iterable, share: float = 0.5) -> dict:
    """Probabilities where the full one has a share of its own and the others divide what is left."""
    smaller = list(smaller)
    return {full: share, **{one: (1 - share) / len(smaller) for one in smaller}} if smaller else {full: 1.0}


def uniform(values: Iterable) -> dict:
    values = list(values)
    return dict.fromkeys(values, 1 / len(values))


def together(*independent: dict) -> dict:
    """Probabilities of combinations."""
    return {keys: math.prod(map(dict.__getitem__, independent, keys)) for keys in product(*independent)}


def assert_frequencies(seen: Iterable, shares: dict) -> None:
    """Within five standard deviations, and nothing else."""
    counts = Counter(seen)
    total = sum(counts.values())
    assert counts.keys() <= {key for key, share in shares.items() if share} and total >= DRAWS
    for key, share in shares.items():
        assert abs(counts[key] - share * total) <= 5 * (total * share * (1 - share)) ** 0.5, (key, counts[key], share)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.0, 1.0])
@pytest.mark.parametrize(
    "widths, depths, prefixes",
    [(QUARTERS, DEPTHS, True), (QUARTERS, (), False), ((), DEPTHS, True), (("1/2",), DEPTHS, False), ((), (), True)],
)
def test_one_draws_depth_width_and_count_each_by_itself(widths, depths, prefixes, share):
    """Counted together: were one drawn with the help of another, some combinations would be rare."""
    networks = drawn("one", widths, depths, prefixes, share)
    assert {len(step) for step in networks} == {1}
    axes = [(DEPTH, depths), ("1", widths), (COMPONENTS, range(1, COMPONENTS) if prefixes else ())]
    expected = together(*(halved(full, smaller, share) for full, smaller in axes))
    assert_frequencies((network for (network,) in networks), expected)


@pytest.mark.parametrize("prefixes", [True, False])
@pytest.mark.parametrize(
    "widths, depths, between",
    [
        (QUARTERS, (), ["1/2", "3/4"]),
        (QUARTERS, DEPTHS, ["1/2", "3/4", "1"]),
        (("1/6", "1/3", "1/2", "5/6"), DEPTHS, ["1/3", "1/2", "5/6", "1"]),
        (("1/2",), DEPTHS, ["1"]),
    ],
    ids=["quarters", "quarters and depths", "sixths and depths", "half and depths"],
)
def test_sandwich_trains_the_full_one_a_middle_width_and_the_smallest(widths, depths, between, prefixes):
    """The middle width and the depths of both are uniform, and independent of each other; with depths the full width
    is one of the middle, or it would be trained at the full depth only.
    """
    networks = drawn("sandwich", widths, depths, prefixes)
    assert {step[0] for step in networks} == {(DEPTH, "1", COMPONENTS)} and {len(step) for step in networks} == {3}
    layers, counts = uniform((DEPTH, *depths)), halved(COMPONENTS, range(1, COMPONENTS) if prefixes else ())
    assert_frequencies((step[1] for step in networks), together(layers, uniform(between), counts))
    assert_frequencies((step[2] for step in networks), together(layers, {widths[0]: 1.0}, counts))
    assert_frequencies(((step[1][0], step[2][0]) for step in networks), together(layers, layers))


@pytest.mark.parametrize("prefixes", [True, False])
def test_sandwich_with_one_width_and_no_depths_trains_two_networks(prefixes):
    """There is nothing between."""
    networks = drawn("sandwich", ("1/2",), (), prefixes)
    counts = halved(COMPONENTS, range(1, COMPONENTS) if prefixes else ())
    assert {step[0] for step in networks} == {(DEPTH, "1", COMPONENTS)} and {len(step) for step in networks} == {2}
    assert_frequencies((step[1] for step in networks), together({DEPTH: 1.0}, {"1/2": 1.0}, counts))


@pytest.mark.parametrize("prefixes", [True, False])
def test_sandwich_without_widths_trains_the_full_one_and_one_of_fewer_components(prefixes):
    """At any depth; where no prefixes are asked for, at all components."""
    networks = drawn("sandwich", (), prefixes=prefixes)
    assert {step[0] for step in networks} == {(DEPTH, "1", COMPONENTS)} and {len(step) for step in networks} == {2}
    counts = uniform(range(1, COMPONENTS) if prefixes else [COMPONENTS])
    expected = together(uniform((DEPTH, *DEPTHS)), {"1": 1.0}, counts)
    assert_frequencies((step[1] for step in networks), expected)


# The smallest s, and the others on both sides of (s + 1) / 2. In floats (1/9 + 1) / 2 is above 5/9.
HALVES = [
    (QUARTERS, ["3/4"], ["1/2"]),
    (("1/8", "1/4", "3/8", "1/2", "5/8", "3/4", "7/8"), ["5/8", "3/4", "7/8"], ["1/4", "3/8", "1/2"]),
    (("1/9", "1/3", "5/9", "7/9"), ["5/9", "7/9"], ["1/3"]),
    (("1/2", "3/4"), ["3/4"], []),
    (("1/4", "3/8"), [], ["3/8"]),
    (("1/2",), [], []),
]


@pytest.mark.parametrize("depths", [(), DEPTHS], ids=["full depth", "depths"])
@pytest.mark.parametrize("widths, upper, lower", HALVES, ids=lambda value: ",".join(value))
def test_scala_trains_the_full_one_one_width_of_each_half_and_the_smallest(widths, upper, lower, depths):
    """Scala's stable sampling; the released code crashes where a half is empty. With depths the full width is one of
    the upper half, or it would be trained at the full depth only. Depths and counts stay independent.
    """
    networks = drawn("scala", widths, depths)
    upper = [*upper, "1"] if depths else upper
    positions = [half for half in (upper, lower, widths[:1]) if half]
    assert {len(step) for step in networks} == {1 + len(positions)}
    layers, counts = uniform((DEPTH, *depths)), halved(COMPONENTS, range(1, COMPONENTS))
    assert {step[0] for step in networks} == {(DEPTH, "1", COMPONENTS)}
    for place, half in enumerate(positions, start=1):
        assert_frequencies((step[place] for step in networks), together(layers, uniform(half), counts))
    for step in networks:
        ratios = [Fraction(width) for _, width, _ in step]
        assert ratios == sorted(ratios, reverse=True) and len(set(ratios[1:])) == len(ratios) - 1


def test_scala_draws_its_halves_independently():
    """One draw for both would never train some pairs together."""
    widths, upper, lower = HALVES[1]
    networks = drawn("scala", widths, ())
    pairs = ((step[1][1], step[2][1]) for step in networks)
    assert_frequencies(pairs, together(uniform(upper), uniform(lower)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_full_network_trains_alone_in_the_first_share_of_a_run(sampling):
    """Scala: 10 of 100 epochs; from the step on that lies at the share, the others join."""
    grid = Grid(DEPTH, DEPTHS, tuple(map(Fraction, QUARTERS)), COMPONENTS, True)
    full = {"depth": DEPTH, "num_components": COMPONENTS}

    def networks(done: float) -> list[list[dict]]:
        return [drawn_networks(grid, sampling, 0.5, 0.1, 1, seeded(seed), done) for seed in range(40)]

    for done in (0.0, 0.05, 0.0999):
        assert networks(done) == [[full]] * 40
    for done in (0.1, 0.5, 0.99):
        assert any(network != full for step in networks(done) for network in step)
        assert max(len(step) for step in networks(done)) == {"one": 1, "sandwich": 3, "scala": 4}[sampling]


@pytest.mark.parametrize(
    "sampling, totals, counts",
    [
        *((sampling, (1, 5), {1, 2, 3, 4, 5}) for sampling in SAMPLINGS),
        *((sampling, (5,), {5}) for sampling in SAMPLINGS),
        ("one", (), {1, 2, 3, 4, 5}),
        ("sandwich", (), {1, 2, 3, 4, 5}),
        ("scala", (), {5}),  # as published
    ],
)
def test_no_prefixes_are_trained_when_the_only_total_is_all(sampling, totals, counts):
    """Depth and width alone; otherwise every number of components, also those that are not measured."""
    settings = elastic(sampling=sampling, totals=totals, depths=DEPTHS, widths=("1/2",))
    model = helpers.tiny_model()
    (phase,) = phases_of(model, settings)
    generator = seeded()
    networks = [network for _ in range(300) for network in phase.draw(generator, 0.5)]
    assert {network["num_components"] for network in networks} == counts
    assert {network["depth"] for network in networks} == {6, 3, 4}
    assert {network.get("width_ratio") for network in networks} == {None, "1/2"}


@pytest.mark.parametrize(
    "fields, share", [({}, 0.5), ({"widths": QUARTERS}, 0.3), ({"widths": QUARTERS, "full_share": 0.0}, 0.0)]
)
def test_full_sizes_are_drawn_less_often_by_default_where_widths_are_trained(fields, share):
    """0.3 in place of 0.5; a share that is given, 0 too, is taken as it is."""
    (phase,) = phases_of(helpers.tiny_model(), elastic(depths=DEPTHS, **fields))
    generator = seeded()
    networks = [network for _ in range(DRAWS) for network in phase.draw(generator, 0.5)]
    seen = ((one["depth"], one.get("width_ratio", "1"), one["num_components"] == COMPONENTS) for one in networks)
    widths = halved("1", fields.get("widths", ()), share)
    assert_frequencies(seen, together(halved(DEPTH, DEPTHS, share), widths, halved(True, [False], share)))


def test_widths_may_be_written_in_any_way_and_order():
    """0.5 is 1/2, and the full width is no other one: what is trained and what is recorded must agree."""
    settings = elastic(widths=("0.75", "1", "1/2", "0.5", "2/8"))
    assert grid_of(settings, helpers.tiny_config()).widths == (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))
    assert settings.trained_widths(4) == ["1/4", "1/2", "3/4", "1"]
    assert elastic().trained_widths(4) == ["1"]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_sizes_are_drawn_from_the_generator_that_is_given(sampling):
    """Resuming is bitwise equal, and processes agree, only if nothing comes from the global random state."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    once = drawn(sampling, draws=50)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert drawn(sampling, draws=50) == once != drawn(sampling, draws=50, seed=1)


@pytest.mark.parametrize("name", ["full_first", "full_share"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_shares_outside_of_0_to_1_are_refused_by_name(name, value):
    """As soon as they are given."""
    with pytest.raises(ValueError, match=f"`{name}` must be from 0 to 1, got {value}"):
        elastic(**{name: value})
    assert getattr(elastic(**{name: 1}), name) == 1 and getattr(elastic(**{name: 0}), name) == 0


def test_the_full_depth_is_no_smaller_one_to_draw():
    """Listed among the depths it would be drawn beside its own share, more often than asked for."""
    config = helpers.tiny_config()
    assert grid_of(elastic(depths=(3, DEPTH, 4)), config).depths == (3, 4)


@pytest.mark.parametrize("networks", [2, 5])
def test_networks_that_share_a_step_are_drawn_as_if_alone_each_with_a_part_of_its_own(networks):
    """As many steps of one network, in the same frequencies; which images are whose, the step says."""
    grid, generator = Grid(DEPTH, DEPTHS, tuple(map(Fraction, QUARTERS)), COMPONENTS, True), seeded()
    steps = [drawn_networks(grid, "one", 0.5, 0.0, networks, generator, 0.0) for _ in range(DRAWS)]
    assert all([one["part"] for one in step] == [(place, networks) for place in range(networks)] for step in steps)
    for place in (0, networks - 1):
        assert_frequencies((step[place]["depth"] for step in steps), halved(DEPTH, DEPTHS))
        assert_frequencies((step[place].get("width_ratio", "1") for step in steps), halved("1", QUARTERS))
    assert drawn_networks(grid, "one", 0.5, 0.1, networks, generator, 0.05) == [grid.full]  # the full one alone


@pytest.mark.parametrize(
    "fields, batch_size, networks",
    [
        ({}, 128, 4),
        ({}, 3, 3),
        ({"networks": 1}, 128, 1),
        ({"networks": 6}, 8, 6),
        ({"sampling": "sandwich"}, 128, 1),
        ({"schedule": "incremental"}, 128, 1),
        ({"schedule": "simultaneous"}, 128, 1),
    ],
)
def test_networks_share_a_step_by_default_as_many_as_its_batch_can_have(fields, batch_size, networks):
    """Four, or one for each image; what is asked for is taken as it is."""
    settings = DecompositionSettings(**{"schedule": "elastic", **fields})
    assert settings.suited(batch_size).networks == networks
    if batch_size == 128:
        (phase, *_) = phases_of(helpers.tiny_model(), settings)
        assert {one.get("part", (0, 1))[1] for one in phase.draw(seeded(), 0.0)} == {networks}


def test_what_cannot_share_a_step_is_refused_by_name(tmp_path):
    """Before any work; a network without an image would have no loss."""
    for value in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"`networks` must be an integer of at least 1, got {value}"):
            elastic(networks=value)
    told = "`networks` 2 share a step of the schedule elastic with the sampling one, not of"
    for fields in ({"sampling": "scala", "widths": QUARTERS}, {"schedule": "simultaneous"}):
        with pytest.raises(ValueError, match=told):
            DecompositionSettings(**{"schedule": "elastic", "networks": 2, **fields}).check(helpers.tiny_config())
    recipe = Recipe("digits", training=TrainingSettings(batch_size=8), decomposition=elastic(networks=9))
    with pytest.raises(ValueError, match="`networks` 9 share the images of a batch, and `batch_size` is 8"):
        decompose(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
