"""Laws of elastic training: what a step minimises, and at what cost.

Losses, clipping and AdamW written out in float64. As a script this file is one process of a run on two.

    pytest tests/training/elastic/test_elastic_steps.py
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from elastic_nets import DEPTHS, QUARTERS, elastic, isolated, read, seeded, weights, written_out
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification
from modeling_lingene.images.loaders import Layout
from modeling_lingene.measuring import metrics
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.decomposition import phases as phases_of
from modeling_lingene.training.elastic import SAMPLINGS, network_loss, on_its_part
from modeling_lingene.training.loop import TrainingLoop
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.steps import TrainingSettings


TESTS = str(Path(__file__).parents[2])


IMAGES = helpers.source(12)


PATCHES = "embeddings.patch_embeddings.weight"


ROUNDING = "key.bias"  # softmax does not see it: its gradient is rounding, and Adam makes full steps of it


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
    """The sum over the networks of a step: each learns from the labels and from the next larger one; of networks with
    a part of the images each by itself, as much as it has of them."""
    total, larger = 0.0, None
    if "part" in networks[0]:
        for place, network in enumerate(networks):
            own = {key: values[place :: len(networks)] for key, values in batch.items()}
            alone = {key: value for key, value in network.items() if key != "part"}
            share = len(own["labels"]) / len(batch["labels"])
            total = total + share * loss_of(parameters, config, [alone], own, teacher, objective)
        return total
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
    (
        {"sampling": "one", "widths": QUARTERS, "depths": DEPTHS, "full_share": 0.2, "networks": 3},
        {},
        teacher_logits,
        Objective(),
    ),
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
    several = fields["sampling"] != "one" or "networks" in fields
    assert len(run.steps) == 3 and any(len(step.networks[0]) > 1 for step in run.steps) == several
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


@pytest.mark.parametrize("batch_size, accumulation, processes", [(6, 2, 1), (6, 1, 2), (4, 1, 3), (5, 2, 1)])
def test_networks_share_the_images_of_a_step_however_these_are_divided(batch_size, accumulation, processes):
    """Also where a part is no multiple of the networks: counted anew in each, the second network of two parts of six
    had other images than of one of twelve."""
    config = helpers.tiny_config(trained_width_ratios=[*QUARTERS, "1"])
    settings = elastic(sampling="one", widths=QUARTERS, depths=DEPTHS, full_share=0.2, networks=4)

    def gradients(layout: Layout) -> dict[str, torch.Tensor]:
        asked = {"batch_size": layout.batch_size, "accumulation": layout.accumulation}
        (step, *_) = run_loop(helpers.tiny_model(config), settings, layout=layout, **asked).steps
        return step.gradients

    parts = [Layout(batch_size, accumulation, processes, process) for process in range(processes)]
    found = [gradients(layout) for layout in parts]
    mean = {name: sum(one[name] for one in found) / processes for name in found[0]}
    assert apart(mean, gradients(Layout(batch_size * accumulation * processes))) < 1e-3


def test_a_network_without_an_image_of_a_batch_adds_nothing():
    """Where pictures of a batch do not decode, there may be fewer than networks: a mean of none is no number."""
    model, images = helpers.tiny_model(), helpers.images(2)
    batch = {"pixel_values": images, "labels": torch.tensor([0, 1])}
    loss = on_its_part(functools.partial(network_loss, Objective()))
    losses = [loss(model, batch, torch.Generator(), part=(place, 3)) for place in range(3)]
    assert losses[2] == 0 and losses[2].requires_grad
    each = [cross_entropy(model(images[place, None]).logits, batch["labels"][place, None]) for place in (0, 1)]
    torch.testing.assert_close(torch.stack(losses[:2]), torch.stack(each) / 2)


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
            macs, ratio = batch * metrics.count_macs(config.stock_config(size)), size.width_ratio
            d, m = 48 * ratio, 96 * ratio
            summing = size.depth * size.num_components * (4 * d * (d + 1) + 2 * d * m + m + d + 4 * d)
            assert counter.get_total_flops() == 2 * (macs + summing)
            assert macs <= counter.get_total_flops() / 2 <= 1.15 * macs
            seen[size.depth, ratio] = macs
    assert len(set(seen.values())) == len(seen) >= 5


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


if __name__ == "__main__":
    train_part(**json.loads(sys.argv[1]))
