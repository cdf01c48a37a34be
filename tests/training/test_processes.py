"""Laws of runs on several processes, with gloo on a CPU: what is learned does not depend on how a step is divided.

Runs are those of `train_tiny.py`: a tiny bundle, a dozen steps of eight images, crop, flip and mixing. Its processes
are forks; torchrun itself starts those of the last test.

    pytest tests/training/test_processes.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import modeling_lingene
from modeling_lingene.training.processes import make_accelerator
from modeling_lingene.training.steps import TrainingSettings


pytest.importorskip("torchvision")  # mixes the images

TESTS = str(Path(__file__).parents[1])
SCRIPT = Path(__file__).parent / "train_tiny.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# The package that this process has, wherever it was imported from.
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join((TESTS, str(Path(modeling_lingene.__file__).parents[1])))
ALL_STEPS = 12  # of a run that goes through
# Softmax does not see what is added to all scores of a query: the gradient of a key's bias is rounding, and Adam
# makes full steps of it.
ROUNDING = "key.bias"


def launch(home: Path, **groups: tuple[int, dict[str, dict]]) -> dict[str, SimpleNamespace]:
    """Each group's runs by name, as train_tiny.py takes them, one after the other in as many processes.

    A run whose name begins with that of another one, then a blank, goes on in its folder.
    """
    asked = []
    for group, (processes, runs) in groups.items():
        cases = [{"out": str(home / group / name.split()[0]), **options} for name, options in runs.items()]
        for case in cases:
            Path(case["out"]).mkdir(parents=True, exist_ok=True)
        asked.append({"processes": processes, "cases": cases, "out": str(home / group)})
    command = [sys.executable, str(SCRIPT), json.dumps(asked)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    said = {group: [(home / f"{group}.{name}").read_text() for name in ("stdout", "stderr")] for group in groups}
    assert done.returncode == 0, (done.stderr[-3000:], {group: errors[-3000:] for group, (_, errors) in said.items()})
    found = {}
    for group, (out, errors) in said.items():
        ends = [line.split() for line in out.splitlines() if line.startswith(("done", "stopped"))]
        ends = [(end, name, int(steps)) for end, name, steps in ends]
        found[group] = SimpleNamespace(folder=home / group, said=ends, stderr=errors)
    return found


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "weights.safetensors")


def difference(one: dict, other: dict) -> float:
    """Norm of the difference over norm of the components that started at zero: rounding, as Adam enlarges it."""
    assert one.keys() == other.keys()
    new = [name for name in one if name.startswith(("components.1.", "components.2.", "components.3."))]
    new = [name for name in new if not name.endswith(ROUNDING)]
    squares = [[(one[name] - other[name]).square().sum(), one[name].square().sum()] for name in new]
    apart, moved = torch.tensor(squares).sum(0).sqrt().tolist()
    assert moved > 1
    return apart / moved


def alike(one: Path, other: Path) -> bool:
    """Bit by bit."""
    weights_of_one, weights_of_other = weights(one), weights(other)
    return all(torch.equal(weights_of_one[name], weights_of_other[name]) for name in weights_of_one)


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> dict[str, SimpleNamespace]:
    """What one process learns and two do; some of the two are asked to stop and go on."""
    whole, half = {"mixup": 0.8}, {"batch_size": 4, "mixup": 0.8}
    one = {
        "mixed": whole,
        "accumulated": {**half, "accumulation": 2},
        "dinov2": {**whole, "family": "dinov2"},
        "features": {"features": True},
        "uneven": {**whole, "held_out": 9},
    }
    two = {
        "mixed": half,
        "stopped": {**half, "stop_at": 4},
        "stopped again": half,
        "dinov2": {**half, "family": "dinov2"},
        "features": {"batch_size": 4, "features": True},
    }
    return launch(tmp_path_factory.mktemp("learned"), one=(1, one), two=(2, two))


@pytest.fixture(scope="module")
def one(learned) -> Path:
    """The folder of what one process learns, by the name of the run."""
    return learned["one"].folder


@pytest.fixture(scope="module")
def two(learned) -> SimpleNamespace:
    return learned["two"]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> SimpleNamespace:
    half = {"batch_size": 4, "mixup": 0.8, "fsdp": True}
    runs = {"sharded": half, "parted": {**half, "stop_at": 9}, "parted again": half}
    runs["uneven"] = {**half, "held_out": 9}
    return launch(tmp_path_factory.mktemp("sharded"), sharded=(2, runs))["sharded"]


def test_two_processes_learn_what_one_does_with_their_batches_together(one, two):
    """Order, crops, flips, mixing partners and the mean of the gradients; the steps moved weights by far more."""
    assert difference(weights(one / "mixed"), weights(two.folder / "mixed")) < 0.01
    rows, twins = (json.loads((folder / "mixed" / "history.json").read_text()) for folder in (one, two.folder))
    assert [row["accuracy"] for row in rows] == [row["accuracy"] for row in twins]
    for row, twin in zip(rows, twins, strict=True):
        assert row["loss"] == pytest.approx(twin["loss"], abs=1e-4)


def test_accumulated_parts_learn_what_one_batch_does(one):
    """The same law within one process."""
    assert difference(weights(one / "mixed"), weights(one / "accumulated")) < 0.01


def test_a_mask_token_that_nothing_reads_stops_nobody(one, two):
    """Processes wait for the gradients of every parameter that they know of; a family's may lie idle."""
    alone, both = weights(one / "dinov2"), weights(two.folder / "dinov2")
    assert difference(alone, both) < 0.01
    assert torch.allclose(alone["classifier.patch_weight"], both["classifier.patch_weight"], atol=1e-3)


def test_the_main_process_alone_prints_and_writes(two):
    """One bar, one result; a second one would tear the first."""
    ends = [name for end, name, _ in two.said if end == "done"]
    assert len(ends) == len(set(ends)) == 4
    assert (two.folder / "mixed" / "best.txt").read_text().split()[0] == "0"
    assert two.stderr.count("training:   0%") == 4  # what goes on begins later


def test_two_processes_that_are_asked_to_stop_go_on_bit_by_bit(two):
    """They agree on the step, write one checkpoint together, and end with the weights of the run that went through."""
    stops = [steps for end, name, steps in two.said if (end, name) == ("stopped", "stopped")]
    (rest,) = [steps for end, name, steps in two.said if (end, name) == ("done", "stopped")]
    assert len(stops) == 2 and stops[0] == stops[1] and stops[0] + rest == ALL_STEPS and 0 < rest < ALL_STEPS
    assert alike(two.folder / "mixed", two.folder / "stopped")


@pytest.mark.slow
def test_sharded_at_the_root_two_processes_learn_the_same_and_go_on_bit_by_bit(one, sharded):
    """FSDP2: parts of the model are read, not called, so that only the root may be a unit. Some tensors have fewer
    rows than there are processes: their optimiser state must come back too."""
    assert difference(weights(one / "mixed"), weights(sharded.folder / "sharded")) < 0.01
    stops = [steps for end, name, steps in sharded.said if (end, name) == ("stopped", "parted")]
    assert len(stops) == 2 and max(stops) < ALL_STEPS
    assert alike(sharded.folder / "sharded", sharded.folder / "parted")


@pytest.mark.slow
def test_sharded_processes_with_unequal_numbers_of_held_out_batches_end_together(one, sharded):
    """Nine held out, in batches of four: two for one process and one for the other, and every forward pass gathers the
    weights from both. Every picture counts once."""
    rows, twins = (json.loads((run / "uneven" / "history.json").read_text()) for run in (one, sharded.folder))
    assert [row["accuracy"] for row in rows] == [row["accuracy"] for row in twins]
    assert all(9 * row["accuracy"] == pytest.approx(round(9 * row["accuracy"])) for row in rows)


@pytest.fixture
def fresh():
    """A process that Accelerate knows nothing of, and afterwards again."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def asked(**changes) -> TrainingSettings:
    return TrainingSettings(**{"device": "cpu", **changes})


def test_a_run_has_the_precision_and_the_device_that_it_asks_for_whatever_ran_before(fresh, monkeypatch):
    """In one process, as in a notebook: Accelerate keeps both."""
    for precision in ("no", "bf16", "no"):
        assert make_accelerator(asked(precision=precision)).mixed_precision == precision
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert PartialState()._cpu
    made = make_accelerator(asked(device="auto"))
    assert not PartialState()._cpu and made.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"device": "auto"}], ids=str)
def test_an_accelerator_of_somebody_else_is_left_as_it_is(fresh, monkeypatch, changes):
    """It may be in use; the same settings share it."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    theirs = Accelerator(cpu=True)
    assert make_accelerator(asked()).device == theirs.device
    with pytest.raises(
        ValueError, match="`device` .* and `precision` .* for cpu and no.* Start a new process, or ask"
    ):
        make_accelerator(asked(**changes))
    assert (theirs.device.type, theirs.mixed_precision) == ("cpu", "no")


def test_a_group_of_processes_keeps_its_device_and_changes_its_precision(fresh, monkeypatch):
    """Another device would be another group."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    make_accelerator(asked())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="`device` auto"):
        make_accelerator(asked(device="auto"))
    held = PartialState._shared_state.copy()
    assert make_accelerator(asked(precision="bf16")).mixed_precision == "bf16" and PartialState._shared_state == held


def check_without_labels(one: Path, two: Path) -> None:
    """Teacher, heads, and the masks, which are an image's own wherever it is; the held-out loss is one mean."""
    alone, both = weights(one), weights(two)
    assert difference(alone, both) < 0.01
    torch.testing.assert_close(
        alone["heads.masked.linear.weight"], both["heads.masked.linear.weight"], atol=1e-3, rtol=0
    )
    rows, twins = (json.loads((folder / "history.json").read_text()) for folder in (one, two))
    for row, twin in zip(rows, twins, strict=True):
        for name in ("loss", "feature_loss"):  # rounding, which a later phase at this rate enlarges
            assert row[name] == pytest.approx(twin[name], rel=1e-5 if row["epoch"] == 1 and row is rows[0] else 2e-3)


def test_without_labels_two_processes_learn_what_one_does(one, two):
    check_without_labels(one / "features", two.folder / "features")


@pytest.mark.slow
def test_the_elastic_schedule_on_two_processes(tmp_path):
    """Every process draws the same number of components, and what a step leaves out has gradients to reduce."""
    elastic = {"schedule": "elastic", "batch_size": 8}
    one = {"labels": elastic, "features": {**elastic, "features": True}}
    two = {name: {**options, "batch_size": 4} for name, options in one.items()}
    launch(tmp_path, one=(1, one), two=(2, two))
    alone, both = (weights(tmp_path / name / "labels") for name in ("one", "two"))
    assert all(torch.allclose(alone[name], both[name], atol=2e-3) for name in alone if not name.endswith(ROUNDING))
    check_without_labels(tmp_path / "one" / "features", tmp_path / "two" / "features")


@pytest.mark.slow
def test_what_the_main_process_refuses_is_told_once_and_ends_all(tmp_path):
    """The others would wait for ever, or repeat the line."""
    (tmp_path / "notes.txt").write_text("mine")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += "-m modeling_lingene.cli decompose --data digits --device cpu --out".split() + [str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.count("lingene decompose: `--out`") == 1 and "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
