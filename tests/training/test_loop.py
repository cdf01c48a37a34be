"""Laws of the training loop: a run that stops anywhere goes on as if it had not; a checkpoint is complete or absent.

The loop does not care what it trains, so that most tests train one linear layer; resuming is tried on a real bundle.

    pytest tests/training/test_loop.py
"""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional

import helpers
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.loaders import Layout
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.decomposition import phases as phases_of
from modeling_lingene.training.loop import (
    Interrupted,
    Phase,
    TrainingLoop,
    TrainingSettings,
    decayed_groups,
    warmup_cosine,
)


IMAGES = helpers.source(14)
EPOCHS, STEPS = 3, 3  # of a phase, of an epoch (4 + 4 + 4 images; two wait for another epoch's order)


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{"epochs": EPOCHS, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu", **changes})


def linear(seed: int = 0) -> nn.Module:
    """The least that can train."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, helpers.TINY["num_labels"]))


def cross_entropy(model, batch, generator):
    return functional.cross_entropy(model(batch["pixel_values"]), batch["labels"])


def phases(forward=cross_entropy, count: int = 1) -> list[Phase]:
    return [Phase(f"phase {index}", lambda name: True, forward) for index in range(count)]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, torch.Tensor]:
    """Weights after three epochs of one phase of the linear model, without a folder."""
    torch.set_num_threads(1)
    model = linear()
    TrainingLoop(model, IMAGES, settings()).fit(phases())
    assert not same(weights(model), weights(linear()))
    return weights(model)


class Stopwatch:
    """Counts the steps of phases, and raises in the one it is set to."""

    def __init__(self, stop_at: int | None = None):
        self.stop_at, self.steps = stop_at, 0

    def watch(self, phase: Phase) -> Phase:
        def forward(*arguments):
            if self.steps == self.stop_at:
                raise KeyboardInterrupt
            self.steps += 1
            return phase.forward(*arguments)

        return dataclasses.replace(phase, forward=forward)


def train_bundle(folder: Path | None, stop_at: int | None = None) -> tuple[dict[str, torch.Tensor], int]:
    """Three phases of a new tiny bundle; its weights, and the steps of this call."""
    torch.manual_seed(0)
    model = helpers.LinGeneForImageClassification(helpers.tiny_config(num_components=4))
    stopwatch = Stopwatch(stop_at)
    totals = DecompositionSettings("incremental", totals=(1, 2, 4), depths=(3, 4))
    watched = [stopwatch.watch(phase) for phase in phases_of(model, totals)]
    moved = helpers.source(14, Augmentation(crop_padding=1))
    loop = TrainingLoop(model, moved, settings(), folder, identity={"totals": [1, 2, 4]})
    if stop_at is None:
        loop.fit(watched)
    else:
        with pytest.raises(KeyboardInterrupt):
            loop.fit(watched)
    return weights(model), stopwatch.steps


@pytest.fixture(scope="module")
def whole_bundle() -> tuple[dict[str, torch.Tensor], int]:
    torch.set_num_threads(1)
    return train_bundle(None)


# Phases start at the steps 0, 9 and 18. A stop within an epoch loses that epoch's steps, one after it none.
@pytest.mark.parametrize(
    "stops, steps_left",
    [
        ([1], 27),
        ([4], 24),
        ([9], 18),
        ([13], 15),
        ([18], 9),
        ([26], 3),
        ([5, 7, 10], 9),
    ],
)
def test_a_resumed_run_ends_bitwise_as_an_uninterrupted_one(whole_bundle, tmp_path, stops, steps_left):
    """Weights, optimiser, schedule, order, augmentation and the depths drawn: one forgotten state and bits differ."""
    for stop in stops:
        train_bundle(tmp_path, stop)
    resumed, steps = train_bundle(tmp_path)
    assert (steps, whole_bundle[1]) == (steps_left, 27)  # what was done is not done again
    assert same(resumed, whole_bundle[0])


def test_the_same_loop_goes_on_after_it_was_interrupted(uninterrupted, tmp_path):
    """In a notebook nobody builds a new one; what the stopped phase had prepared must not be saved and loaded too."""
    stopwatch, model = Stopwatch(5), linear()
    loop = TrainingLoop(model, IMAGES, settings(), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        loop.fit([stopwatch.watch(phase) for phase in phases()])
    loop.fit(phases())
    assert same(weights(model), uninterrupted)


def test_a_run_that_is_repeated_takes_no_step_and_gives_its_weights(whole_bundle, tmp_path):
    """A recipe that stops after training, while it measures, calls the loop again."""
    first, _ = train_bundle(tmp_path)
    again, steps = train_bundle(tmp_path)
    assert steps == 0 and same(first, whole_bundle[0]) and same(again, first)


def test_a_resumed_run_does_not_depend_on_the_global_random_state(whole_bundle, tmp_path):
    """Another process has drawn other numbers before: order, augmentation and sizes come from the seed alone."""
    train_bundle(tmp_path, 13)
    shutil.copytree(tmp_path, copy := tmp_path / "copy")
    torch.manual_seed(1234)
    numpy.random.seed(5)
    torch.rand(7)
    assert same(train_bundle(copy)[0], whole_bundle[0])


def complete(folder: Path) -> bool:
    """Whether every checkpoint has its state and reads as one of a run that can go on."""
    states = [json.loads((path / "state.json").read_text()) for path in (folder / "checkpoints").glob("*")]
    names = [f"{state['phase']:03d}-{state['step']:09d}" for state in states]
    files = [{file.name for file in path.iterdir()} for path in (folder / "checkpoints").glob("*")]
    return sorted(names) == kept(folder) and all(files) and len({frozenset(names) for names in files}) <= 1


class Crash(Exception):
    """Not an error that anything may catch."""


def crash_in(owner: type | object, name: str, monkeypatch: pytest.MonkeyPatch, at: int, after: bool, chosen) -> None:
    """Makes the `at`-th chosen call of `owner.name` raise, before it has done anything or after it is done."""
    original, calls = getattr(owner, name), []

    def crashing(*arguments, **keywords):
        if not chosen(*arguments):
            return original(*arguments, **keywords)
        calls.append(arguments)
        if len(calls) == at and not after:
            raise Crash
        result = original(*arguments, **keywords)
        if len(calls) == at:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, crashing)


def half_saved(accelerator, folder):
    """What a process killed in `save_state` leaves: a folder with the first file, cut short."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "model.safetensors").write_bytes(b"\x10\0\0")
    raise Crash


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("where", ["in save_state", "before state.json", "before the rename", "after the rename"])
def test_a_crash_while_saving_leaves_complete_checkpoints_and_the_run_goes_on(
    uninterrupted, tmp_path, monkeypatch, where, at
):
    """At the first checkpoint and when older ones are dropped; the newest complete one must carry the run."""
    with monkeypatch.context() as patched:
        if where == "in save_state":
            original, calls = Accelerator.save_state, []

            def save_state(accelerator, folder):
                calls.append(folder)
                return half_saved(accelerator, folder) if len(calls) == at else original(accelerator, folder)

            patched.setattr(Accelerator, "save_state", save_state)
        elif where == "before state.json":
            crash_in(Path, "write_text", patched, at, False, lambda path, *_: path.name == "state.json")
        else:
            chosen = lambda path, target: Path(target).parent.name == "checkpoints"  # noqa: E731
            crash_in(Path, "rename", patched, at, where == "after the rename", chosen)
        with pytest.raises(Crash):
            TrainingLoop(linear(), IMAGES, settings(), tmp_path).fit(phases())
    assert complete(tmp_path)
    assert len(kept(tmp_path)) == (at if where == "after the rename" else at - 1)
    model = linear()
    TrainingLoop(model, IMAGES, settings(), tmp_path).fit(phases())
    assert same(weights(model), uninterrupted)
    assert complete(tmp_path) and kept(tmp_path)[-2:] == ["000-000000006", "000-000000009"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]


def test_a_crash_while_dropping_an_old_checkpoint_does_not_stop_the_next_run(uninterrupted, tmp_path, monkeypatch):
    """The half-deleted one is the oldest; it is never read, and goes with the next save."""
    with monkeypatch.context() as patched:

        def rmtree(path, ignore_errors=False):
            if ignore_errors:
                return original(path, ignore_errors)
            (Path(path) / "state.json").unlink()
            raise Crash

        original = shutil.rmtree
        patched.setattr(shutil, "rmtree", rmtree)
        with pytest.raises(Crash):
            TrainingLoop(linear(), IMAGES, settings(), tmp_path).fit(phases(count=2))
    assert kept(tmp_path) == ["000-000000003", "000-000000006", "000-000000009"]
    model = linear()
    TrainingLoop(model, IMAGES, settings(), tmp_path).fit(phases())
    assert same(weights(model), uninterrupted)


@pytest.mark.parametrize("foreign", [".hidden", "000-00001 (copy)", "notes"])
def test_what_is_not_ours_among_the_checkpoints_is_passed_over_and_left_alone(uninterrupted, tmp_path, foreign):
    """File browsers and notebooks put folders everywhere; they are no checkpoints, and none of ours goes for them."""
    (tmp_path / "checkpoints" / foreign).mkdir(parents=True)
    model = linear()
    for _ in range(2):
        TrainingLoop(model, IMAGES, settings(), tmp_path).fit(phases())
        assert same(weights(model), uninterrupted)
    assert set(path.name for path in (tmp_path / "checkpoints").iterdir()) == {
        foreign,
        "000-000000006",
        "000-000000009",
    }


def test_leftovers_of_staging_are_cleaned_and_never_become_part_of_a_checkpoint(tmp_path):
    """Also those of a run that was killed in its first save, when there was no checkpoint yet."""
    (tmp_path / ".checkpoint.partial").mkdir()
    (tmp_path / ".checkpoint.partial" / "optimizer_9.bin").write_bytes(b"of another run")
    TrainingLoop(linear(), IMAGES, settings(epochs=1), tmp_path).fit(phases())
    assert kept(tmp_path) == ["000-000000003"]
    assert not list(tmp_path.rglob("optimizer_9.bin")) and not (tmp_path / ".checkpoint.partial").exists()


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    """One to go on from, one in case the last was written by a machine that is failing."""
    seen = []
    TrainingLoop(linear(), IMAGES, settings(), tmp_path).fit(
        phases(lambda *inputs: seen.append(kept(tmp_path)) or cross_entropy(*inputs), count=2)
    )
    assert seen[::STEPS] == [
        [],
        ["000-000000003"],
        ["000-000000003", "000-000000006"],
        ["000-000000006", "000-000000009"],
        ["000-000000009", "001-000000003"],
        ["001-000000003", "001-000000006"],
    ]
    assert kept(tmp_path) == ["001-000000006", "001-000000009"]


def test_no_folder_means_no_file(tmp_path, monkeypatch):
    """A loop in a notebook leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    TrainingLoop(linear(), IMAGES, settings(epochs=1)).fit(phases())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes, identity, named",
    [
        ({"epochs": 5}, {"recipe": "one"}, "epochs"),
        ({"learning_rate": 1e-3}, {"recipe": "one"}, "learning_rate"),
        ({"seed": 1}, {"recipe": "one"}, "seed"),
        ({}, {"recipe": "two"}, "recipe"),
        ({}, {"recipe": "one", "totals": [1, 2]}, "totals"),
        ({}, {}, "recipe"),
    ],
)
def test_another_run_is_refused_and_what_differs_is_named(tmp_path, changes, identity, named):
    """Going on with other settings would give weights that no settings describe."""
    TrainingLoop(linear(), IMAGES, settings(), tmp_path, identity={"recipe": "one"}).fit(phases())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model = linear(1)
    with pytest.raises(ValueError, match=rf"`out` .* {named}\b"):
        TrainingLoop(model, IMAGES, settings(**changes), tmp_path, identity=identity).fit(phases())
    assert same(weights(model), weights(linear(1)))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_identity_is_compared_as_it_is_stored(uninterrupted, tmp_path):
    """Tuples become lists and integer keys become strings in JSON; that is not another run."""
    identity = {"totals": (1, 2), "rows": {3: [0, 1, 2]}}
    TrainingLoop(linear(), IMAGES, settings(), tmp_path, identity=identity).fit(phases())
    model = linear()
    TrainingLoop(model, IMAGES, settings(), tmp_path, identity=identity).fit(phases())
    assert same(weights(model), uninterrupted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoints_before(
    uninterrupted, tmp_path, monkeypatch, bad
):
    """Weights that are NaN must not be saved over good ones, and the message says which knob to turn."""
    calls = []

    def forward(*inputs):
        calls.append(None)
        return cross_entropy(*inputs) * (bad if len(calls) == STEPS + 2 else 1.0)

    with pytest.raises(ValueError, match=r"(nan|inf).*`learning_rate` 0\.01"):
        TrainingLoop(linear(), IMAGES, settings(), tmp_path).fit(phases(forward))
    assert kept(tmp_path) == ["000-000000003"]
    model = linear()
    TrainingLoop(model, IMAGES, settings(), tmp_path).fit(phases())  # as if the fault had been elsewhere
    assert same(weights(model), uninterrupted)


@pytest.mark.parametrize("steps, warmup", [(40, 0.1), (40, 0.25), (7, 0.1), (1, 0.1), (12, 0.0), (12, 1.0)])
def test_the_learning_rate_rises_linearly_and_falls_along_half_a_cosine(steps, warmup):
    """Against numpy: a ramp joined to a sampled half wave."""
    rising = max(1, int(numpy.rint(warmup * steps)))
    ramp = numpy.linspace(0, 1, rising + 1)[1:]
    wave = 0.5 + 0.5 * numpy.cos(numpy.linspace(0, numpy.pi, max(1, steps - rising) + 1))
    expected = numpy.concatenate([ramp, wave])[: steps + 1]
    got = [warmup_cosine(step, steps, warmup) for step in range(len(expected))]
    numpy.testing.assert_allclose(got, expected, atol=1e-12)


def test_every_step_of_a_phase_takes_the_next_learning_rate_and_the_next_phase_starts_again(monkeypatch):
    """The schedule spans the phase, not the epoch."""
    rates, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *inputs: rates.append([group["lr"] for group in self.param_groups]) or step(self, *inputs),
    )
    TrainingLoop(linear(), IMAGES, settings(warmup=0.2)).fit(phases(count=2))
    expected = [[1e-2 * warmup_cosine(index, EPOCHS * STEPS, 0.2)] * 2 for index in range(EPOCHS * STEPS)]
    numpy.testing.assert_allclose(rates, expected * 2, atol=1e-15)


def test_weight_decay_falls_on_matrices_alone():
    """Gains pulled to zero would silence layers; tokens, positions and biases are no maps. All parameters, by name."""
    model = helpers.tiny_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = decayed_groups(model, settings(weight_decay=0.3))
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    linears = ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.fc1", "mlp.fc2")
    matrices = {f"components.{n}.{part}.weight" for n in range(5) for part in linears}
    matrices |= {"embeddings.patch_embeddings.weight", "classifier.weight"}
    assert {names[id(parameter)] for parameter in decayed["params"]} == matrices
    assert {names[id(parameter)] for parameter in others["params"]} == set(names.values()) - matrices
    assert {"embeddings.cls_token", "embeddings.position_embeddings", "layernorm.weight", "layernorm.bias"} <= (
        set(names.values()) - matrices
    )


def test_parameters_named_by_a_phase_have_their_own_rate_and_no_decay():
    """Gates are no weights: at a rate of almost nothing they stay where they are, whatever the rest does."""
    model, before = linear(), linear()
    *_, own = decayed_groups(model, settings(weight_decay=0.3), {"weight": 0.5})
    assert own["params"] == [model[1].weight] and (own["weight_decay"], own["peak"]) == (0.0, 0.5)
    still = dataclasses.replace(phases()[0], rates={"weight": 1e-12})
    TrainingLoop(model, IMAGES, settings(weight_decay=0.3)).fit([still])
    torch.testing.assert_close(model[1].weight, before[1].weight, rtol=0, atol=1e-9)
    assert (model[1].bias - before[1].bias).abs().max() > 1e-3


def test_frozen_parameters_are_in_no_group():
    """Decay moves a parameter without a gradient too."""
    model = helpers.tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("components.3.", "layernorm.")))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [names[id(parameter)] for group in decayed_groups(model, settings()) for parameter in group["params"]]
    assert sorted(grouped) == sorted(n for n in names.values() if n.startswith(("components.3.", "layernorm.")))


def test_a_phase_trains_what_it_chooses_and_nothing_else():
    """What an earlier phase has trained is frozen in the next, and what it froze is thawed."""
    model = linear()
    before = weights(model)
    TrainingLoop(model, IMAGES, settings(weight_decay=0.5)).fit(
        [Phase("bias", lambda name: name.endswith("bias"), cross_entropy)]
    )
    middle = weights(model)
    assert torch.equal(middle["1.weight"], before["1.weight"]) and not torch.equal(middle["1.bias"], before["1.bias"])
    TrainingLoop(model, IMAGES, settings(weight_decay=0.5)).fit(
        [Phase("weight", lambda name: name.endswith("weight"), cross_entropy)]
    )
    after = weights(model)
    assert torch.equal(after["1.bias"], middle["1.bias"]) and not torch.equal(after["1.weight"], middle["1.weight"])


def test_gradients_are_clipped_to_the_norm_asked_for(monkeypatch):
    """A loss a million times as large must give no larger gradient to the optimiser."""
    norms, step = [], torch.optim.AdamW.step

    def recording(self, *inputs):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return step(self, *inputs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    TrainingLoop(linear(), IMAGES, settings(epochs=1, max_grad_norm=0.25)).fit(
        phases(lambda *inputs: 1e6 * cross_entropy(*inputs))
    )
    assert norms == pytest.approx([0.25] * STEPS, rel=1e-4)


def orders(seed: int) -> tuple[list[list[int]], list[float]]:
    """The images of each epoch of two phases in their order, and what the generator of draws gives in each step."""
    seen = []

    def forward(model, batch, generator):
        seen.append((batch["index"].tolist(), torch.rand((), generator=generator).item()))
        return model(batch["pixel_values"]).square().mean()

    TrainingLoop(linear(), IMAGES, settings(seed=seed)).fit(phases(forward, count=2))
    epochs = [seen[start : start + STEPS] for start in range(0, len(seen), STEPS)]
    return [[index for indices, _ in epoch for index in indices] for epoch in epochs], [x for _, x in seen]


@pytest.mark.parametrize("seed", [0, 1, 123_456_789, 2**31 - 1, -1])
def test_order_and_draws_are_a_function_of_the_seed_and_differ_between_epochs(seed):
    """No image twice in an epoch, in an order of its own; seeds that people use: dates, large ones."""
    (first, draws), (again, same_draws), (other, other_draws) = orders(seed), orders(seed), orders(seed + 1)
    assert first == again and draws == same_draws
    assert all(len(set(order)) == len(order) == STEPS * 4 for order in first)
    assert {index for order in first for index in order} == set(range(14))  # none is left out for good
    assert len({tuple(order) for order in first + other}) == 2 * len(first) == 4 * EPOCHS
    assert len(set(draws + other_draws)) == 2 * len(draws)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"epochs": -3},
        {"epochs": 2.0},
        {"epochs": "3"},
        {"epochs": True},
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"learning_rate": 0.0},
        {"learning_rate": -1e-3},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"max_grad_norm": 0},
        {"weight_decay": -0.1},
        {"warmup": -0.1},
        {"warmup": 1.5},
        {"seed": 0.5},
        {"precision": "fp64"},
        {"device": "tpu"},
    ],
    ids=lambda changes: " ".join(f"{name}={value!r}" for name, value in changes.items()),
)
def test_settings_that_cannot_be_met_are_refused_by_name(changes):
    """Before a model is built and an epoch spent; the value that came is in the message."""
    (name, value), *_ = changes.items()
    with pytest.raises(ValueError, match=rf"`{name}`.*{value}"):
        TrainingSettings(**changes)


def test_an_unknown_setting_is_an_error():
    """A misspelt keyword must not pass for the default."""
    with pytest.raises(TypeError, match="learning_rte"):
        TrainingSettings(learning_rte=1e-3)


def test_a_step_of_more_images_than_there_are_is_refused():
    """An epoch of no step would divide by zero at its end."""
    with pytest.raises(ValueError, match="`batch_size` 15 makes 15 images a step, and there are 14"):
        TrainingLoop(linear(), IMAGES, settings(batch_size=15))


def train_varied(folder: Path | None, signals: tuple[int, ...] = (), **changes) -> tuple[dict, list[dict], int]:
    """Two phases of a tiny bundle with dropout, crop, accumulation and averaging; asked to stop in those steps."""
    torch.manual_seed(0)
    model = helpers.LinGeneForImageClassification(helpers.tiny_config(num_components=2, hidden_dropout_prob=0.2))
    todo = phases_of(model, DecompositionSettings("incremental", totals=(1, 2)))
    varied = settings(**{"batch_size": 2, "accumulation": 2, "ema": 0.5, "evaluate_every": 1, **changes})
    images = helpers.source(14, Augmentation(crop_padding=2, flip=True))
    loop = TrainingLoop(model, images, varied, folder, held_out=helpers.source(9, seed=1))
    take, steps = loop._step, []

    def step(run, parts):
        if len(steps) in signals:
            os.kill(os.getpid(), signal.SIGINT)
        steps.append(None)
        return take(run, parts)

    loop._step = step
    if signals:
        with pytest.raises(Interrupted):
            loop.fit(todo)
    else:
        loop.fit(todo)
    return weights(model), loop.history, len(steps)


@pytest.fixture(scope="module")
def whole_varied() -> tuple[dict, list[dict], int]:
    torch.set_num_threads(1)
    return train_varied(None)


@pytest.mark.parametrize("stops", [[0], [1], [4], [8], [9], [13], [2, 3, 6]])
def test_a_run_asked_to_stop_after_any_step_goes_on_bit_by_bit(whole_varied, tmp_path, stops):
    """Within an epoch too: dropout, order, crops, accumulated parts, averages and the losses of the history."""
    before = signal.getsignal(signal.SIGINT)
    done = 0
    for stop in stops:
        done += train_varied(tmp_path, (stop,))[2]
        assert done == sum(stops[: stops.index(stop) + 1]) + stops.index(stop) + 1  # the step is finished, no other
        assert signal.getsignal(signal.SIGINT) is before
    resumed, history, steps = train_varied(tmp_path)
    assert done + steps == whole_varied[2] == 18
    assert same(resumed, whole_varied[0])
    for row, twin in zip(history, whole_varied[1], strict=True):
        named = ("phase", "epoch", "loss", "accuracy", "learning_rate")
        assert [row[name] for name in named] == [twin[name] for name in named]


@pytest.mark.parametrize(
    "every, names", [(1, ["001-000000008", "001-000000009"]), (4, ["001-000000008", "001-000000009"])]
)
def test_checkpoints_may_come_every_few_steps_and_do_not_change_the_run(whole_varied, tmp_path, every, names):
    """An epoch of a large set is a day; a phase's end is kept in any case."""
    trained, *_ = train_varied(tmp_path, checkpoint_every=every)
    assert same(trained, whole_varied[0]) and kept(tmp_path) == names


def test_a_damaged_newest_checkpoint_is_passed_over_aloud_and_the_run_ends_the_same(whole_varied, tmp_path):
    """A disk that loses bits, a copy that was cut: the one before carries the run."""
    train_varied(tmp_path, (5,), checkpoint_every=1)
    weights_file = tmp_path / "checkpoints" / "000-000000006" / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    with pytest.warns(UserWarning, match="000-000000006 is damaged .model.safetensors.*the one before"):
        resumed, _, steps = train_varied(tmp_path, checkpoint_every=1)
    assert steps == 18 - 5 and same(resumed, whole_varied[0])


def test_the_average_is_the_result_and_what_is_evaluated(tmp_path):
    """Against the recursion written out: m = d m + (1 - d) w after every step, from the first weights seen."""
    model, seen = linear(), []
    loop = TrainingLoop(model, IMAGES, settings(ema=0.75, epochs=1))
    take = loop._step

    def step(run, parts):
        loss = take(run, parts)
        seen.append(weights(run.model))
        return loss

    loop._step = step
    loop.fit(phases())
    expected = seen[0]
    for later in seen[1:]:
        expected = {name: 0.75 * mean + 0.25 * later[name] for name, mean in expected.items()}
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in weights(model).items())
    assert not same(weights(model), seen[-1])


class Classifier(nn.Module):
    """A linear layer with transformers' face, for evaluation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 16 * 16, 7)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.linear(pixel_values.flatten(1)))


def test_the_history_has_a_row_per_epoch_and_the_best_state_is_given_with_its_accuracy():
    """Against counting by hand in the moment that the best is given."""
    model, held_out, given = Classifier(), helpers.source(20, seed=1), []

    def count(state):
        (batch,) = held_out.in_order(Layout(20))
        logits = functional.linear(batch["pixel_values"].flatten(1), state["linear.weight"], state["linear.bias"])
        given.append((logits.argmax(-1) == batch["labels"]).float().mean().item())

    def forward(model, batch, generator):
        return functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])

    loop = TrainingLoop(model, IMAGES, settings(epochs=8), held_out=held_out, on_best=count)
    history = loop.fit(phases(forward, count=2))
    assert [(row["phase"], row["epoch"]) for row in history] == [
        (f"phase {p}", e + 1) for p in (0, 1) for e in range(8)
    ]
    accuracies = [row["accuracy"] for row in history]
    records = [a for i, a in enumerate(accuracies) if a > max(accuracies[:i], default=-1)]
    assert given == pytest.approx(records) and loop.best == max(accuracies)
    assert all(row["images_per_second"] > 0 and row["learning_rate"] >= 0 for row in history)


def test_the_loss_of_the_history_is_the_mean_over_the_steps_of_the_epoch():
    """Not the last one's."""
    losses = []

    def forward(model, batch, generator):
        loss = cross_entropy(model, batch, generator)
        losses.append(loss.item())
        return loss

    history = TrainingLoop(linear(), IMAGES, settings()).fit(phases(forward))
    means = [sum(losses[start : start + STEPS]) / STEPS for start in range(0, len(losses), STEPS)]
    assert [row["loss"] for row in history] == pytest.approx(means)


def test_a_teacher_is_asked_for_every_batch_and_its_logits_reach_the_phase():
    """It sees what the student sees."""
    asked = []

    def teacher(batch):
        asked.append(batch["index"])
        return batch["pixel_values"].mean((1, 2, 3))[:, None].expand(-1, 7)

    def forward(model, batch, generator):
        assert torch.equal(batch["teacher"], teacher(batch))
        return cross_entropy(model, batch, generator)

    TrainingLoop(linear(), IMAGES, settings(epochs=1), teacher=teacher).fit(phases(forward))
    assert len(asked) == 2 * STEPS


@pytest.mark.parametrize(
    "changes", [pytest.param({"compile": True}, marks=pytest.mark.slow), {"activation_checkpointing": True}]
)
def test_options_that_change_the_work_do_not_change_what_is_learned(whole_bundle, changes):
    """Compiled, or with activations recomputed: the same steps up to rounding."""
    torch.manual_seed(0)
    model = helpers.LinGeneForImageClassification(helpers.tiny_config(num_components=4))
    todo = phases_of(model, DecompositionSettings("incremental", totals=(1, 2, 4)))
    images = helpers.source(14)
    TrainingLoop(model, images, settings(epochs=1, **changes)).fit(todo)
    torch.manual_seed(0)
    plain = helpers.LinGeneForImageClassification(helpers.tiny_config(num_components=4))
    TrainingLoop(plain, images, settings(epochs=1)).fit(
        phases_of(plain, DecompositionSettings("incremental", totals=(1, 2, 4)))
    )
    one, other = weights(model), weights(plain)
    names = [name for name in one if not name.endswith("key.bias")]  # its gradient is rounding alone
    apart = sum((one[name] - other[name]).square().sum() for name in names).sqrt()
    assert apart < 1e-3 * sum(one[name].square().sum() for name in names).sqrt()


def test_tensorboard_gets_loss_and_learning_rate(tmp_path):
    """Where people look while a run goes."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    TrainingLoop(linear(), IMAGES, settings(tracker="tensorboard"), tmp_path).fit(phases())
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert {"loss", "learning_rate", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [3, 6, 9]


@pytest.mark.parametrize("name", ["tensorbord", "wandb"])
def test_a_tracker_that_is_unknown_or_not_installed_is_refused_before_training(tmp_path, name):
    """After hours nobody wants to learn that nothing was logged."""
    if name == "wandb" and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(ValueError, match=f"`tracker`.*{name}"):
        TrainingLoop(linear(), IMAGES, settings(tracker=name), tmp_path)


def test_a_disk_that_fills_up_keeps_the_checkpoints_before_and_says_where(tmp_path, monkeypatch):
    """The error of the operating system alone names neither folder nor way out."""
    original, calls = Accelerator.save_state, []

    def save_state(accelerator, folder):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return original(accelerator, folder)

    monkeypatch.setattr(Accelerator, "save_state", save_state)
    with pytest.raises(OSError, match="cannot be written to .*No space left.*are kept"):
        TrainingLoop(linear(), IMAGES, settings(), tmp_path).fit(phases())
    assert kept(tmp_path) == ["000-000000003"]


def test_noise_is_a_function_of_the_seed_and_the_step():
    """Dropout drawn from whatever state the process is in could not be resumed bit by bit."""

    def trained(state: int, **changes) -> dict[str, torch.Tensor]:
        model = nn.Sequential(nn.Dropout(0.5), *linear())
        torch.manual_seed(state)
        TrainingLoop(model, IMAGES, settings(epochs=1, **changes)).fit(phases())
        return weights(model)

    assert same(trained(1), trained(2))
    assert not same(trained(1), trained(1, seed=5))
