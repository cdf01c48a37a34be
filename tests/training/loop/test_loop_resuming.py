"""Laws of the training loop: a run that stops anywhere goes on as if it had not; a checkpoint is complete or absent.

The loop does not care what it trains, so that most tests train one linear layer; resuming is tried on a real bundle.

    pytest tests/training/loop/test_loop_resuming.py
"""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy
import pytest
import torch
from accelerate import Accelerator
from looping import IMAGES, STEPS, Stopwatch, cross_entropy, linear, phases, same, settings, train_bundle, weights

import helpers
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.decomposition import phases as phases_of
from modeling_lingene.training.loop import Interrupted, TrainingLoop


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
