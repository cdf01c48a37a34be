"""Laws of elastic training over depth, width and components: which networks a step draws, what it minimises, at what
cost, and that what was trained is what is saved, loaded and measured.

References: counting; stock ViTs whose weights are summed, and cut by whole heads, here; losses, clipping and AdamW
written out in float64. As a script this file is one process of a run on two.

    pytest tests/training/test_elastic.py
"""

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification
from modeling_lingene.images import data
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.data import LabelledImages, image_processor
from modeling_lingene.images.loaders import Layout
from modeling_lingene.measuring import metrics, sweep
from modeling_lingene.saving_lingene import bundle_weights_id
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import DecompositionSettings, grid_of
from modeling_lingene.training.decomposition import phases as phases_of
from modeling_lingene.training.elastic import SAMPLINGS, Grid, drawn_networks
from modeling_lingene.training.loop import TrainingLoop, TrainingSettings
from modeling_lingene.training.losses import Objective


pytestmark = pytest.mark.usefixtures("frozen_heap")


TESTS = str(Path(__file__).parents[1])
DEPTH, DEPTHS, COMPONENTS = 6, (3, 4), 5
QUARTERS = ("1/4", "1/2", "3/4")
DRAWS = 4000
IMAGES = helpers.source(12)
PLAIN = (image_processor(16), Augmentation())
PATCHES = "embeddings.patch_embeddings.weight"
ROUNDING = "key.bias"  # softmax does not see it: its gradient is rounding, and Adam makes full steps of it

# What each dimension of a bundle's tensor counts; None is not cut, biases have the first one.
AXES = {
    "embeddings.cls_token": (None, None, "channels"),
    "embeddings.position_embeddings": (None, None, "channels"),
    "embeddings.patch_embeddings": ("channels",),
    "layernorm": ("channels",),
    "norm1": ("channels",),
    "norm2": ("channels",),
    "attention.query": ("heads", "channels"),
    "attention.key": ("heads", "channels"),
    "attention.value": ("heads", "channels"),
    "attention.output": ("channels", "heads"),
    "mlp.fc1": ("units", "channels"),
    "mlp.fc2": ("channels", "units"),
    "classifier": (None, "channels"),
}


def elastic(**fields) -> DecompositionSettings:
    return DecompositionSettings("elastic", **fields)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


# The reference: one network of a bundle.


def kept_places(config: LinGeneConfig, ratio: Fraction, trailing: bool) -> dict[str, list[int]]:
    """The channels, the rows of whole heads and the MLP units of a width: the first of each, or the last."""

    def some(count: int) -> list[int]:
        kept = count * ratio
        assert kept.denominator == 1
        return list(range(count))[-int(kept) :] if trailing else list(range(count))[: int(kept)]

    rows = torch.arange(config.hidden_size).view(config.num_attention_heads, -1)
    heads = rows[some(config.num_attention_heads)].flatten().tolist()
    return {"channels": some(config.hidden_size), "heads": heads, "units": some(config.intermediate_size)}


def written_out(
    parameters: dict[str, torch.Tensor],
    config: LinGeneConfig,
    pixel_values: torch.Tensor,
    depth: int = DEPTH,
    num_components: int = COMPONENTS,
    width_ratio: str = "1",
    trailing: bool = False,
) -> torch.Tensor:
    """Logits of one network in float64: layers summed from the bundle's parameters (LinDec, Eq. 1), cut, and put into
    a stock ViT; differentiable in the parameters.
    """
    ratio = Fraction(width_ratio)
    places = kept_places(config, ratio, trailing)
    shape = {"hidden_size": "channels", "intermediate_size": "units"}
    fields = {name: len(places[axis]) for name, axis in shape.items()}
    fields |= {"num_attention_heads": int(config.num_attention_heads * ratio), "num_hidden_layers": depth}
    same = "image_size patch_size layer_norm_eps num_labels".split()
    with torch.device("meta"):  # its own weights are not used
        vit = ViTForImageClassification(ViTConfig(**fields, **{name: getattr(config, name) for name in same})).eval()
    table = torch.from_numpy(helpers.numpy_table(config, depth, num_components))
    own = {stock: part for part, stock in helpers.STOCK_PARTS.items()}
    tensors = {}
    for key in vit.state_dict():
        part, _, kind = key.removeprefix("vit.").replace(".projection", "").rpartition(".")
        if part.startswith("layers."):
            _, layer, part = part.split(".", 2)
            part = own[part]
            parts = [parameters[f"components.{n}.{part}.{kind}"].double() for n in range(num_components)]
            tensor = torch.einsum("n,n...->...", table[int(layer)], torch.stack(parts))
            if part.startswith("norm") and kind == "weight":
                tensor = tensor + config.gain_offset
        else:
            tensor = parameters[f"{part}.{kind}"].double()
        for dim, axis in enumerate(AXES.get(part) or AXES[f"{part}.{kind}"]):
            if axis and dim < tensor.dim():
                tensor = tensor.index_select(dim, torch.tensor(places[axis]))
        tensors[key] = tensor
    return functional_call(vit, tensors, (pixel_values.double(),)).logits


def close(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Rounding of float32; logits here are of size one."""
    assert expected.std() > 0.1
    return torch.allclose(logits.double(), expected.double(), atol=1e-4)


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
    steps = [drawn_networks(grid, sampling, full_share, 0.0, generator, 0.0) for _ in range(draws)]
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
        return [drawn_networks(grid, sampling, 0.5, 0.1, seeded(seed), done) for seed in range(40)]

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


# What a step of the loop does with them.


def run_loop(
    model: LinGeneForImageClassification,
    decomposition: DecompositionSettings,
    objective: Objective | None = None,
    teacher=None,
    layout: Layout | None = None,
    **training,
) -> SimpleNamespace:
    """Train, and keep per step: its parts, the networks of each, gradients before and after clipping, weights after
    it, and for every backward pass how many `no_sync` it was in, and whether FSDP2, whose `no_sync` do not nest, would
    exchange gradients in it; `entered` counts the `no_sync` of the whole run.
    """
    (phase,) = phases_of(model, decomposition, objective)
    settings = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0.0, "device": "cpu", **training}
    loop = TrainingLoop(model, IMAGES, TrainingSettings(**settings), teacher=teacher)
    if layout is not None:
        loop.layout, loop.steps_per_epoch = layout, IMAGES.steps(layout)
    steps, inside, entered, exchanging = [], [], [], [True]
    accelerator, take = loop.accelerator, loop._step
    no_sync, backward, clip = accelerator.no_sync, accelerator.backward, accelerator.clip_grad_norm_

    def draw(generator, done):
        networks = phase.draw(generator, done)
        steps[-1].networks.append(networks)
        return networks

    def step(run, parts):
        steps.append(SimpleNamespace(parts=[dict(part) for part in parts], networks=[], alone=[], fsdp=[]))
        loss = take(run, parts)
        steps[-1].loss, steps[-1].weights = float(loss), weights(model)
        return loss

    @contextlib.contextmanager
    def watched(prepared):
        entered.append(prepared)
        inside.append(prepared)
        exchanging[0] = False
        with no_sync(prepared):
            yield
        inside.pop()
        exchanging[0] = True

    def back(loss):
        steps[-1].alone.append(len(inside))
        steps[-1].fsdp.append(exchanging[0])
        backward(loss)

    def gradients() -> dict[str, torch.Tensor]:
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    def clipped(parameters, limit):
        steps[-1].gradients = gradients()
        clip(parameters, limit)
        steps[-1].clipped = gradients()

    loop._step, accelerator.no_sync, accelerator.backward = step, watched, back
    accelerator.clip_grad_norm_ = clipped
    history = loop.fit([dataclasses.replace(phase, draw=draw)])
    model.eval()
    return SimpleNamespace(steps=steps, entered=len(entered), history=history)


def teacher_logits(batch: dict) -> torch.Tensor:
    """A teacher that is no network: two pixels of every channel, and their sum, as seven classes."""
    corner = batch["pixel_values"][:, :, 0, :2].flatten(1)
    return 2 * torch.cat((corner, corner.sum(1, keepdim=True)), dim=1)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.exp().sum(-1).log() - logits[torch.arange(len(labels)), labels]).mean()


def kl(larger: torch.Tensor, smaller: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(larger || smaller), no gradient to the larger one."""
    p, q = (logits.div(temperature).softmax(-1) for logits in (larger.detach().double(), smaller))
    return (p * (p.log() - q.log())).sum(-1).mean() * temperature**2


def loss_of(parameters: dict, config: LinGeneConfig, networks: list[dict], batch: dict, teacher, objective: Objective):
    """The sum over the networks of a step: each learns from the labels and from the next larger one."""
    total, larger = 0.0, None
    for network in networks:
        ratio = network.get("width_ratio", "1")
        shape = network["depth"], network["num_components"], ratio, isolated(config, ratio)
        logits = written_out(parameters, config, batch["pixel_values"], *shape)
        hard = cross_entropy(logits, batch["labels"])
        if larger is not None:
            total = total + hard + kl(larger, logits, objective.temperature)
        elif teacher is None:
            total = total + hard
        elif objective.distillation == "hard":
            total = total + hard / 2 + cross_entropy(logits, teacher(batch).argmax(-1)) / 2
        else:
            total = total + hard + kl(teacher(batch), logits, objective.temperature)
        larger = logits
    return total


def isolated(config: LinGeneConfig, ratio: str) -> bool:
    """Whether a width of the isolated activation is the trailing one, by the definition."""
    smallest = min(map(Fraction, config.trained_width_ratios))
    return config.isolated_activation and smallest < Fraction(ratio) < 1


STEPS = [
    ({"sampling": "scala", "widths": QUARTERS, "depths": DEPTHS}, {}, None, Objective()),
    (
        {"sampling": "scala", "widths": QUARTERS, "depths": DEPTHS, "isolated_activation": True},
        {"batch_size": 2, "accumulation": 2},
        teacher_logits,
        Objective(temperature=2.0),
    ),
    (
        {"sampling": "sandwich", "widths": QUARTERS, "isolated_activation": True},
        {"activation_checkpointing": True},
        teacher_logits,
        Objective("hard", temperature=3.0),
    ),
    ({"sampling": "sandwich", "depths": DEPTHS}, {"batch_size": 2, "accumulation": 2}, teacher_logits, Objective()),
    ({"sampling": "one", "widths": QUARTERS, "depths": DEPTHS, "full_share": 0.2}, {}, teacher_logits, Objective()),
]


class WrittenAdamW:
    """Clipping and AdamW in float64, decay on matrices; parameters without a gradient stay."""

    def __init__(self, start: dict[str, torch.Tensor], limit: float, decay: float):
        self.values, self.limit, self.decay = {name: value.double() for name, value in start.items()}, limit, decay
        self.moments = {name: (torch.zeros_like(value),) * 2 for name, value in self.values.items()}
        self.taken: Counter = Counter()

    def step(self, gradients: dict[str, torch.Tensor], rate: float) -> dict[str, torch.Tensor]:
        """The gradients as they are clipped."""
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        assert norm > self.limit  # or nothing would be clipped
        clipped = {name: gradient * self.limit / norm for name, gradient in gradients.items()}
        for name, gradient in clipped.items():
            self.taken[name] += 1
            first, second = self.moments[name]
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            self.moments[name] = first, second
            mean, square = first / (1 - 0.9 ** self.taken[name]), second / (1 - 0.999 ** self.taken[name])
            decayed = self.decay if name.endswith("weight") and "norm" not in name else 0.0
            value = self.values[name] * (1 - rate * decayed)
            self.values[name] = value - rate * mean / (square.sqrt() + 1e-8)
        return clipped


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest distance of two tensors of a name, relative to the norm."""
    names = [name for name in other if not name.endswith(ROUNDING)]
    return max(float((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-6)) for name in names)


def changes(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: after[name].double() - value.double() for name, value in before.items()}


@pytest.mark.parametrize(
    "fields, training, teacher, objective", STEPS, ids=[f"{case[0]['sampling']}-{n}" for n, case in enumerate(STEPS)]
)
def test_a_step_adds_up_the_gradients_of_its_networks_clips_them_and_takes_one_step(
    fields, training, teacher, objective
):
    """Against loss, clipping and AdamW written out in float64, for three steps: a network that is forgotten, or a
    larger one that learns from a smaller, would show.
    """
    flag = fields.get("isolated_activation", False)
    config = helpers.tiny_config(trained_width_ratios=[*QUARTERS, "1"], isolated_activation=flag)
    model = helpers.tiny_model(config)
    start = weights(model)
    optimizer = WrittenAdamW(start, limit=0.5, decay=0.5)
    run = run_loop(model, elastic(**fields), objective, teacher, max_grad_norm=0.5, weight_decay=0.5, **training)
    assert len(run.steps) == 3 and any(len(step.networks[0]) > 1 for step in run.steps) != (
        fields["sampling"] == "one"
    )
    for step, factor in zip(run.steps, (1.0, 1.0, 0.5)):  # warm-up, and a half cosine over the two that are left
        leaves = {name: value.clone().requires_grad_() for name, value in optimizer.values.items()}
        parts = zip(step.parts, step.networks)
        losses = [loss_of(leaves, config, networks, batch, teacher, objective) for batch, networks in parts]
        loss = sum(losses) / len(losses)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradients = {name: one for name, one in zip(leaves, found) if one is not None}
        assert step.loss == pytest.approx(loss.item(), rel=1e-3)
        assert step.gradients.keys() == gradients.keys()
        assert apart(step.gradients, gradients) < 1e-2
        assert apart(step.clipped, optimizer.step(gradients, factor * 1e-2)) < 1e-2
        assert apart(changes(step.weights, start), changes(optimizer.values, start)) < 2e-2
    assert run.history[0]["loss"] == pytest.approx(sum(step.loss for step in run.steps) / 3)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_process_and_every_part_of_a_step_trains_the_same_networks(sampling):
    """Processes that disagree would wait for each other's gradients for ever; steps differ from one another."""
    settings = elastic(sampling=sampling, widths=QUARTERS, depths=DEPTHS)
    layouts = [Layout(1, accumulation=2, processes=2, process=process) for process in (0, 1)]
    one, other = (run_loop(helpers.tiny_model(), settings, layout=layout, accumulation=2).steps for layout in layouts)
    assert all(first == second for first, second in (step.networks for step in one))
    assert [step.networks for step in one] == [step.networks for step in other]
    assert len(one) == 3 and len({str(step.networks) for step in one}) > 1
    assert not any(torch.equal(step.gradients[PATCHES], twin.gradients[PATCHES]) for step, twin in zip(one, other))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("sampling, networks", [("one", 1), ("sandwich", 3), ("scala", 4)])
def test_gradients_are_synchronised_in_the_last_backward_pass_of_a_step_alone(sampling, networks, accumulation):
    """Once a network would cost several processes as many exchanges: networks - 1 go without, in every part."""
    settings = elastic(sampling=sampling, widths=QUARTERS)
    run = run_loop(helpers.tiny_model(), settings, batch_size=4 // accumulation, accumulation=accumulation)
    passes = networks * accumulation
    assert all(list(map(bool, step.alone)) == [True] * (passes - 1) + [False] for step in run.steps)
    if accumulation == 1:  # otherwise Accelerate enters some of its own
        assert run.entered == len(run.steps) * (networks - 1)


@pytest.mark.parametrize("sampling", ["sandwich", "scala"])
def test_sharded_gradients_are_synchronised_in_the_last_backward_pass_of_a_step_alone(sampling):
    """The same law where leaving a `no_sync` ends all that it lies in."""
    settings = elastic(sampling=sampling, widths=QUARTERS)
    run = run_loop(helpers.tiny_model(), settings, batch_size=2, accumulation=2)
    assert all(step.fsdp == [False] * (len(step.fsdp) - 1) + [True] for step in run.steps)


@pytest.mark.parametrize("first, alone", [(0.0, 0), (0.5, 3), (0.4, 3), (1.0, 6)])
def test_a_run_begins_with_the_full_network_alone_for_the_share_that_is_asked(first, alone):
    """Of the steps of all epochs, not of one."""
    settings = elastic(sampling="scala", widths=QUARTERS, full_first=first)
    steps = run_loop(helpers.tiny_model(), settings, epochs=2).steps
    assert [len(step.networks[0]) for step in steps] == [1] * alone + [4] * (6 - alone)
    assert all(step.networks[0][0] == {"depth": 6, "num_components": 5} for step in steps)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_networks_of_a_step_cost_what_stock_networks_of_their_sizes_cost(sampling):
    """Counted by torch: a slice that was computed in full and masked would save nothing. Summing the layers from the
    components is all that comes on top.
    """
    config = helpers.tiny_config(attn_implementation="eager")  # whose products torch counts on every device
    model = helpers.tiny_model(config)
    settings = elastic(sampling=sampling, widths=QUARTERS, depths=DEPTHS, full_share=0.3)
    (phase,) = phases_of(model, settings)
    generator, batch, seen = seeded(), 48, {}
    inputs = {"pixel_values": helpers.images(batch), "labels": helpers.labels(batch)}
    for _ in range({"one": 10, "sandwich": 4, "scala": 3}[sampling]):
        one_step = dict(inputs)
        for network in phase.draw(generator, 0.0):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                phase.forward(model, one_step, generator, **network)
            size = config.size(**network)
            macs, ratio = batch * metrics.count_macs(config.vit_config(size)), size.width_ratio
            d, m = 48 * ratio, 96 * ratio
            summing = size.depth * size.num_components * (4 * d * (d + 1) + 2 * d * m + m + d + 4 * d)
            assert counter.get_total_flops() == 2 * (macs + summing)
            assert macs <= counter.get_total_flops() / 2 <= 1.15 * macs
            seen[size.depth, ratio] = macs
    assert len(set(seen.values())) == len(seen) >= 5


# Isolated activation, in every way from components to logits.


ISOLATED = {"trained_width_ratios": ["1/4", "1/2", "3/4", "1"], "isolated_activation": True}
SIZES = [("1/2", 6, 5), ("3/4", 4, 5), ("1/2", 3, 2)]


@pytest.fixture(scope="module")
def isolating(tmp_path_factory) -> SimpleNamespace:
    """A bundle of isolated activation: in memory, its parameters, its folder; read only."""
    model = helpers.tiny_model(helpers.tiny_config(**ISOLATED))
    folder = tmp_path_factory.mktemp("isolated") / "bundle"
    model.save_pretrained(folder)
    return SimpleNamespace(model=model, parameters=weights(model), folder=folder)


def constrained(folder: Path, **keywords) -> LinGeneForImageClassification:
    return LinGeneForImageClassification.from_pretrained(folder, constrained=True, **keywords).eval()


def every_way(isolating: SimpleNamespace, again: Path, width: str, depth: int, count: int) -> dict:
    """Logits of one size from wherever it can be had; `again` is a folder for the constrained model of it."""
    size, pixels = {"depth": depth, "width_ratio": width, "num_components": count}, helpers.images(4)
    model, folder = isolating.model, isolating.folder
    part = constrained(folder, **size)
    part.save_pretrained(again)
    of = {
        "materialised": model.materialise(**size),
        "loaded": AutoModelForImageClassification.from_pretrained(folder, **size),
        "constrained": part,
        "constrained, materialised": part.materialise(),
        "saved again": AutoModelForImageClassification.from_pretrained(again),
        "saved again, constrained": constrained(again),
        "of the whole loaded": constrained(folder).materialise(**size),
    }
    with torch.no_grad():
        logits = {name: one.eval()(pixels).logits for name, one in of.items()}
        logits["forward"] = model(pixels, **size).logits
    return logits


@pytest.mark.parametrize("width, depth, count", SIZES)
def test_widths_between_are_the_trailing_ones_wherever_they_come_from(isolating, tmp_path, width, depth, count):
    """Trained as the last channels, heads and units; one way that gives the first ones gives another network."""
    pixels = helpers.images(4)
    expected = written_out(isolating.parameters, isolating.model.config, pixels, depth, count, width, trailing=True)
    leading = written_out(isolating.parameters, isolating.model.config, pixels, depth, count, width)
    assert not torch.allclose(expected, leading, atol=0.1)
    for name, logits in every_way(isolating, tmp_path / "again", width, depth, count).items():
        assert close(logits, expected), name


@pytest.mark.parametrize("width", ["1/4", "1"])
def test_the_smallest_and_the_full_width_are_the_leading_ones(isolating, tmp_path, width):
    """That is the point of it: the smallest keeps channels that fewer others train."""
    expected = helpers.reference_vit(isolating.model, 4, width, 3)(helpers.images(4)).logits
    for name, logits in every_way(isolating, tmp_path / "again", width, 4, 3).items():
        assert close(logits, expected), name


@pytest.mark.parametrize(
    "fields, width",
    [
        ({"trained_width_ratios": ["1/2", "3/4", "1"], "isolated_activation": True}, "1/4"),
        ({"trained_width_ratios": ["1"], "isolated_activation": True}, "1/2"),
        ({"trained_width_ratios": ["1/4", "1/2", "1"], "isolated_activation": False}, "1/2"),
    ],
    ids=["below the smallest", "no width trained", "off"],
)
def test_widths_that_do_not_lie_between_are_leading(tmp_path, fields, width):
    """Also untrained ones, which are taken as an initialisation."""
    model, pixels = helpers.tiny_model(helpers.tiny_config(**fields)), helpers.images(4)
    expected = helpers.reference_vit(model, 6, width)(pixels).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, width_ratio=width, allow_untrained=True)
    with torch.no_grad():
        assert close(model(pixels, width_ratio=width).logits, expected)
        assert close(loaded.eval()(pixels).logits, expected)
        assert close(model.materialise(width_ratio=width).eval()(pixels).logits, expected)


@pytest.mark.parametrize("flag", [True, False])
def test_a_configuration_keeps_whether_its_widths_are_isolated(tmp_path, flag):
    """Forgotten on the way to disk, every width between would come back as another network."""
    config = helpers.tiny_config(**{**ISOLATED, "isolated_activation": flag})
    config.save_pretrained(tmp_path)
    assert read(tmp_path / "config.json")["isolated_activation"] is flag
    assert LinGeneConfig.from_pretrained(tmp_path).isolated_activation is flag
    assert LinGeneConfig.from_dict(config.to_dict()).isolated_activation is flag
    assert [config.size(width_ratio=width).trailing for width in ISOLATED["trained_width_ratios"]] == [
        False,
        flag,
        flag,
        False,
    ]


@pytest.mark.parametrize("width", ["1/4", "1/2", "3/4"])
def test_a_bundle_cut_to_one_isolated_width_knows_that_width_alone(isolating, tmp_path, width):
    """Narrower ones do not lie in it: they were other channels, and must be refused; and what is left is all of it."""
    sized = isolating.model.config.sized(isolating.model.config.size(width_ratio=width))
    assert (sized.isolated_activation, sized.trained_width_ratios) == (False, ["1"])
    constrained(isolating.folder, width_ratio=width).save_pretrained(tmp_path)
    again = LinGeneConfig.from_pretrained(tmp_path)
    assert (again.isolated_activation, again.trained_width_ratios) == (False, ["1"])
    for narrower in {"1/2": ["1/2"], "3/4": ["1/3", "2/3"]}.get(width, []):
        with pytest.raises(ValueError, match=f"`width_ratio` {narrower} was never trained"):
            AutoModelForImageClassification.from_pretrained(tmp_path, width_ratio=narrower)


def test_a_bundle_cut_in_depth_alone_stays_isolated(isolating, tmp_path):
    """All its widths are still there."""
    constrained(isolating.folder, depth=4, num_components=3).save_pretrained(tmp_path)
    expected = written_out(isolating.parameters, isolating.model.config, helpers.images(4), 4, 3, "1/2", trailing=True)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, width_ratio="1/2").eval()
    with torch.no_grad():
        assert close(loaded(helpers.images(4)).logits, expected)


def test_an_untrained_width_between_is_the_trailing_one_and_is_recorded_as_untrained(tmp_path):
    """As it would be if it were trained next; cut out and saved, it must not pass for a trained one."""
    config = helpers.tiny_config(**{**ISOLATED, "trained_width_ratios": ["1/4", "3/4", "1"]})
    model, pixels = helpers.tiny_model(config), helpers.images(4)
    model.save_pretrained(tmp_path / "whole")
    part = constrained(tmp_path / "whole", width_ratio="1/2", allow_untrained=True)
    with torch.no_grad():
        assert close(
            part(pixels).logits, written_out(weights(model), config, pixels, width_ratio="1/2", trailing=True)
        )
    part.save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match="`width_ratio` 1 was never trained"):
        AutoModelForImageClassification.from_pretrained(tmp_path / "part")


def test_nested_widths_lie_in_wider_ones(tmp_path):
    """Off, the default: a bundle cut to 3/4 still holds the 1/4 and 1/2 that were trained, as 1/3 and 2/3 of it."""
    model, pixels = helpers.tiny_model(helpers.tiny_config(trained_width_ratios=[*QUARTERS, "1"])), helpers.images(4)
    model.save_pretrained(tmp_path / "whole")
    constrained(tmp_path / "whole", width_ratio="3/4").save_pretrained(tmp_path / "part")
    assert LinGeneConfig.from_pretrained(tmp_path / "part").trained_width_ratios == ["1/3", "2/3", "1"]
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "part", width_ratio="2/3").eval()
    with torch.no_grad():
        assert close(loaded(pixels).logits, helpers.reference_vit(model, 6, "1/2")(pixels).logits)


# Whole runs.


def coloured(split: str) -> LabelledImages:
    """Noise over a colour for each of the seven classes."""
    from PIL import Image

    made = helpers.pictures(28, seed=split == "test")
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255), (0, 0, 0)]
    mixed = [
        Image.blend(picture, Image.new("RGB", picture.size, colours[label]), 0.15)
        for picture, label in zip(made.images, made.labels)
    ]
    return dataclasses.replace(made, images=mixed, split=split)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures from memory; latency and plots are left out."""
    monkeypatch.setattr(data, "load_images", lambda _, split: coloured(split))
    monkeypatch.setattr(sweep, "latency_ms", lambda *_, **__: {"median": 1.0})
    for plot in ("plot_sizes", "plot_history"):
        monkeypatch.setattr(recipes, plot, lambda *_, **__: None)


def tiny_recipe(decomposition: DecompositionSettings, init: Path | str = "", **training) -> recipes.Recipe:
    """Three layers of 24 channels and 4 heads, an epoch of three steps."""
    settings = {"epochs": 1, "batch_size": 8, "device": "cpu", "learning_rate": 1e-2, **training}
    model = recipes.ModelSettings(24, 4, intermediate_size=24, patch_size=8, depth=3, dropout=0.1)
    if init:  # whose shape it is then; these have heads of another number
        model = recipes.ModelSettings(num_attention_heads=3)
    return recipes.Recipe("made", model, recipes.TrainingSettings(**settings), decomposition, init=str(init))


@pytest.mark.parametrize(
    "sampling, widths, depths, totals, isolation",
    [
        ("one", ("0.5",), (2,), (1, 3), False),
        ("sandwich", ("1/2", "1/4"), (2,), (3,), False),
        ("scala", ("3/4", "1/4", "1/2"), (), (1, 3), True),
    ],
    ids=SAMPLINGS,
)
def test_a_run_records_its_sizes_and_measures_every_one_of_them(
    quick, tmp_path, sampling, widths, depths, totals, isolation
):
    """Depths x widths x totals, each the network that was trained: accuracy is recounted, cost written out."""
    chosen = elastic(sampling=sampling, widths=widths, depths=depths, totals=totals, isolated_activation=isolation)
    rows = recipes.decompose(tiny_recipe(chosen, epochs=6), tmp_path / "out")
    bundle = tmp_path / "out" / "bundle"
    trained = [width for width in QUARTERS if Fraction(width) in map(Fraction, widths)] + ["1"]
    asked = [(row["depth"], row["width_ratio"], row["num_components"]) for row in rows]
    assert asked == list(product((*depths, 3), trained, totals))
    assert read(bundle / "sizes.json")["sizes"] == rows == read(tmp_path / "out" / "results.json")["sizes"]
    config = LinGeneConfig.from_pretrained(bundle)
    assert (config.trained_width_ratios, config.trained_depths) == (trained, [*depths, 3])
    assert config.isolated_activation is isolation
    held = helpers.MemoryImages(coloured("test"), *PLAIN)
    (batch,) = held.in_order(Layout(28))
    parameters = weights(constrained(bundle))
    for row, (depth, width, count) in zip(rows, asked):
        trailing = isolated(config, width)
        logits = written_out(parameters, config, batch["pixel_values"], depth, count, width, trailing)
        assert row["accuracy"] == round((logits.argmax(-1) == batch["labels"]).double().mean().item(), 6), row
        d, patches = int(24 * Fraction(width)), 4
        layer = 4 * d * (d + 1) + 2 * d * d + 2 * d + 4 * d
        assert row["params"] == depth * layer + (3 * 8 * 8 + 1) * d + (1 + patches + 1) * d + 2 * d + 7 * (d + 1)
        tokens = patches + 1
        products = 4 * tokens * d * d + 2 * tokens * tokens * d + 2 * tokens * d * d
        assert row["macs"] == patches * 3 * 8 * 8 * d + depth * products + 7 * d
    assert len({row["accuracy"] for row in rows}) > 2  # or any row could be any other
    for name, width in product(("bundle", "best"), set(QUARTERS) - set(trained)):
        with pytest.raises(ValueError, match=f"`width_ratio` {width} was never trained"):
            AutoModelForImageClassification.from_pretrained(tmp_path / "out" / name, width_ratio=width)


@pytest.mark.parametrize("isolation", [False, True], ids=["nested", "isolated"])
def test_a_run_that_goes_on_from_a_bundle_records_its_own_sizes(quick, monkeypatch, isolating, tmp_path, isolation):
    """What the bundle was trained at before is no longer true, nor is which channels its widths have."""
    monkeypatch.setattr(recipes, "measure_sizes", first_size(recipes.measure_sizes))
    chosen = elastic(totals=(5,), depths=(2, 4), widths=("1/2", "3/4"), isolated_activation=isolation)
    recipes.decompose(tiny_recipe(chosen, isolating.folder), tmp_path)
    config = LinGeneConfig.from_pretrained(tmp_path / "bundle")
    assert (config.trained_depths, config.trained_width_ratios) == ([2, 4, 6], ["1/2", "3/4", "1"])
    assert [config.size(width_ratio=width).trailing for width in ("1/2", "3/4", "1")] == [False, isolation, False]


def first_size(measure):
    """Measuring the first size alone."""
    return lambda bundle, batches, sizes, **keywords: measure(bundle, batches, sizes[:1], **keywords)


# Two epochs of three steps of two parts; the full network trains alone in the first two steps.
@pytest.mark.parametrize("stop, every", [(4, 0), (2, 1)], ids=["loses a step", "as others join"])
def test_a_stopped_run_ends_bitwise_as_one_that_went_through(quick, monkeypatch, tmp_path, stop, every):
    """Sizes, dropout, order and the share that is over come from the seed and the step alone; a draw from the global
    state, or a share counted from where the run went on, would change some bit.
    """
    monkeypatch.setattr(recipes, "measure_sizes", first_size(recipes.measure_sizes))
    chosen = elastic(sampling="scala", widths=QUARTERS, depths=(2,), full_first=0.3, isolated_activation=True)
    recipe = tiny_recipe(chosen, epochs=2, batch_size=4, accumulation=2, checkpoint_every=every)
    take, taken = TrainingLoop._step, []

    def step(loop, run, parts):
        if len(taken) == stop and len(parts) == 2:
            raise KeyboardInterrupt
        taken.append(run.progress.step)
        return take(loop, run, parts)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            recipes.decompose(recipe, tmp_path / "stopped")
    assert taken == list(range(stop)) and not (tmp_path / "stopped" / "bundle").exists()
    torch.manual_seed(99)  # as in another process
    for name in ("stopped", "whole"):
        recipes.decompose(recipe, tmp_path / name)
    one, other = (tmp_path / name / "bundle" for name in ("stopped", "whole"))
    assert bundle_weights_id(one) == bundle_weights_id(other)
    assert LinGeneConfig.from_pretrained(one).to_dict() == LinGeneConfig.from_pretrained(other).to_dict()
    one, other = (read(tmp_path / name / "history.json")["epochs"] for name in ("stopped", "whole"))
    assert [row["loss"] for row in one] == [row["loss"] for row in other]


def test_a_run_depends_on_all_that_is_resumed(quick, monkeypatch, tmp_path):
    """Or the law before would hold of a run that leaves it out."""
    monkeypatch.setattr(recipes, "measure_sizes", first_size(recipes.measure_sizes))
    ends = []
    for fields, dropout in (({}, 0.1), ({"full_first": 0.9}, 0.1), ({"depths": ()}, 0.1), ({}, 0.0)):
        recipe = tiny_recipe(elastic(**{"sampling": "scala", "widths": QUARTERS, "depths": (2,), **fields}))
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=dropout))
        recipes.decompose(recipe, tmp_path / str(len(ends)))
        ends.append(bundle_weights_id(tmp_path / str(len(ends)) / "bundle"))
    assert len(set(ends)) == 4


# Two processes.


def train_part(out: str, batch_size: int = 2, accumulation: int = 1, **fields) -> None:
    """This process's part of a run of six steps of eight images; the main one writes OUT/weights.safetensors, every
    one which networks it drew and in which backward passes gradients were exchanged.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LinGeneForImageClassification(helpers.tiny_config(num_components=4))
    (phase,) = phases_of(model, elastic(**fields))
    training = {"epochs": 2, "batch_size": batch_size, "accumulation": accumulation, "learning_rate": 1e-2}
    loop = TrainingLoop(model, helpers.source(26), TrainingSettings(**training, device="cpu"))
    networks, exchanged, take, backward = [], [], loop._step, loop.accelerator.backward

    def draw(generator, done):
        networks.append(phase.draw(generator, done))
        return networks[-1]

    def step(run, parts):
        def back(loss):
            exchanged[-1].append(getattr(run.model, "require_backward_grad_sync", None))
            backward(loss)

        exchanged.append([])
        loop.accelerator.backward = back
        return take(run, parts)

    loop._step = step
    loop.fit([dataclasses.replace(phase, draw=draw)])
    state = {name: tensor.contiguous() for name, tensor in loop.full_state().items()}
    if loop.is_main:
        save_file(state, Path(out) / "weights.safetensors")
    rank = loop.accelerator.process_index
    (Path(out) / f"{rank}.json").write_text(json.dumps({"networks": networks, "exchanged": exchanged}))


@pytest.mark.slow  # a third of a minute on one core
def test_two_processes_learn_what_one_does_and_exchange_gradients_once_a_step(tmp_path):
    """Components and channels that the last network of a step leaves out have gradients of the others: they too must
    be exchanged, and no network's of its own.
    """
    fields = {"sampling": "scala", "widths": QUARTERS, "depths": DEPTHS, "full_first": 0.2}
    alone, two = tmp_path / "alone", tmp_path / "two"
    alone.mkdir()
    two.mkdir()
    train_part(str(alone), batch_size=8, **fields)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    command += [json.dumps({"out": str(two), "accumulation": 2, **fields})]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": TESTS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (load_file(folder / "weights.safetensors") for folder in (alone, two))
    assert one.keys() == other.keys()
    torch.manual_seed(0)
    start = weights(LinGeneForImageClassification(helpers.tiny_config(num_components=4)))
    assert apart(changes(other, start), changes(one, start)) < 0.005
    first, second = (read(two / f"{rank}.json") for rank in (0, 1))
    assert first == second
    assert first["networks"][::2] == first["networks"][1::2] == read(alone / "0.json")["networks"]
    lengths = [len(networks) for networks in first["networks"][::2]]
    assert lengths == [1, 1, 4, 4, 4, 4]
    assert first["exchanged"] == [[False] * (2 * length - 1) + [True] for length in lengths]


# What is refused.


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_, **__):
        raise AssertionError("data was read")

    monkeypatch.setattr(data, "load_images", forbidden)


CONTRADICTIONS = [
    ({"schedule": "incremental", "widths": ("1/2",)}, "`widths` .* elastic, and `schedule` is incremental"),
    ({"schedule": "simultaneous", "widths": ("1/2",)}, "`widths` .* elastic, and `schedule` is simultaneous"),
    ({"sampling": "scala"}, "`sampling` scala .* `widths`"),
    ({"sampling": "scala", "depths": (2,)}, "`sampling` scala .* `widths`"),
    ({"isolated_activation": True}, "`isolated_activation` True .* `widths`"),
    ({"widths": ("half",)}, "`width_ratio` must be a number .*'half'"),
    ({"widths": ("0",)}, "`width_ratio` must leave whole heads"),
    ({"widths": ("5/4",)}, "`width_ratio` must leave whole heads"),
    ({"depths": (4,)}, "`depth` 4 is above"),
    ({"widths": ("1/2",), "totals": (1, 2)}, r"`totals` must increase and end at the 3 components, got \[1, 2\]"),
]


@pytest.mark.parametrize(
    "fields, message", CONTRADICTIONS, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_what_contradicts_itself_is_refused_before_data_is_read(no_data, tmp_path, fields, message):
    """A download may take hours; nothing is written either."""
    with pytest.raises(ValueError, match=message):
        recipes.decompose(tiny_recipe(DecompositionSettings(**fields)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_size_that_is_illegal_is_told_at_once(no_data, tmp_path):
    """A list is corrected once, not once per entry; the legal ones are not blamed."""
    chosen = elastic(widths=("1/3", "1/2", "2/5", "1/8"), depths=(2, 7, 9))
    with pytest.raises(ValueError) as caught:
        recipes.decompose(tiny_recipe(chosen), tmp_path)
    message = str(caught.value)
    assert all(f"`depth` {depth} is above" in message for depth in (7, 9))
    assert all(f"{width} of 4 heads is" in message for width in ("1/3", "2/5", "1/8"))
    assert "1/2 of 4" not in message and "`depth` 2" not in message
    assert message.count("use one of 1/4, 1/2, 3/4, 1.") == 3


@pytest.mark.parametrize("width, legal", [("1/4", True), ("1/3", False)])
def test_widths_must_be_legal_for_the_bundle_that_a_run_goes_on_from(no_data, isolating, tmp_path, width, legal):
    """It has four heads, and the model settings, which count no longer, three."""
    recipe = tiny_recipe(elastic(widths=(width,)), isolating.folder)
    error, message = (AssertionError, "data was read") if legal else (ValueError, f"{width} of 4 heads")
    with pytest.raises(error, match=message):
        recipes.decompose(recipe, tmp_path / "out")


@pytest.mark.parametrize("name", ["full_first", "full_share"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_shares_outside_of_0_to_1_are_refused_by_name(name, value):
    """As soon as they are given."""
    with pytest.raises(ValueError, match=f"`{name}` must be from 0 to 1, got {value}"):
        elastic(**{name: value})
    assert getattr(elastic(**{name: 1}), name) == 1 and getattr(elastic(**{name: 0}), name) == 0


if __name__ == "__main__":
    train_part(**json.loads(sys.argv[1]))


def test_the_full_depth_is_no_smaller_one_to_draw():
    """Listed among the depths it would be drawn beside its own share, more often than asked for."""
    config = helpers.tiny_config()
    assert grid_of(elastic(depths=(3, DEPTH, 4)), config).depths == (3, 4)
