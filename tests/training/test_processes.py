"""Laws of runs on several processes, with gloo on a CPU: what is learned does not depend on how a step is divided.

Each case is `train_tiny.py` under torchrun: a tiny bundle, a dozen steps of eight images, crop, flip and mixing.

    pytest tests/training/test_processes.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


pytest.importorskip("torchvision")  # mixes the images

TESTS = str(Path(__file__).parents[1])
SCRIPT = Path(__file__).parent / "train_tiny.py"
# Softmax does not see what is added to all scores of a query: the gradient of a key's bias is rounding, and Adam
# makes full steps of it.
ROUNDING = "key.bias"


def launch(out: Path, processes: int, **options) -> subprocess.CompletedProcess:
    """One run; `options` as train_tiny.py takes them."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), json.dumps({"out": str(out), **options})]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": TESTS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


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


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    launch(out, 1, mixup=0.8)
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("two")
    return out, launch(out, 2, batch_size=4, mixup=0.8)


def test_two_processes_learn_what_one_does_with_their_batches_together(alone, two):
    """Order, crops, flips, mixing partners and the mean of the gradients; the steps moved weights by far more."""
    assert difference(weights(alone), weights(two[0])) < 0.01
    one, other = (json.loads((out / "history.json").read_text()) for out in (alone, two[0]))
    assert [row["accuracy"] for row in one] == [row["accuracy"] for row in other]
    for row, twin in zip(one, other):
        assert row["loss"] == pytest.approx(twin["loss"], abs=1e-4)


def test_accumulated_parts_learn_what_one_batch_does(alone, tmp_path):
    """The same law within one process."""
    launch(tmp_path, 1, batch_size=4, accumulation=2, mixup=0.8)
    assert difference(weights(alone), weights(tmp_path)) < 0.01


def test_a_mask_token_that_nothing_reads_stops_nobody(tmp_path):
    """Processes wait for the gradients of every parameter that they know of; a family's may lie idle."""
    for processes in (1, 2):
        launch(tmp_path / str(processes), processes, batch_size=8 // processes, mixup=0.8, family="dinov2")
    one, other = (weights(tmp_path / count) for count in ("1", "2"))
    assert difference(one, other) < 0.01
    assert torch.allclose(one["classifier.patch_weight"], other["classifier.patch_weight"], atol=1e-3)


def test_the_main_process_alone_prints_and_writes(two):
    """One bar, one result; a second one would tear the first."""
    out, done = two
    assert done.stdout.count("done") == 1
    assert (out / "best.txt").read_text().split()[0] == "0"
    assert done.stderr.count("training:   0%") == 1


def test_two_processes_that_are_asked_to_stop_go_on_bit_by_bit(two, tmp_path):
    """They agree on the step, write one checkpoint together, and end with the weights of the run that went through."""
    stopped = launch(tmp_path, 2, batch_size=4, mixup=0.8, stop_at=4)
    assert stopped.stdout.count("stopped") == 2 and not (tmp_path / "weights.safetensors").exists()
    resumed = launch(tmp_path, 2, batch_size=4, mixup=0.8)
    steps = int(resumed.stdout.split("done")[1].split()[0])
    assert 0 < steps < 12
    one, other = weights(two[0]), weights(tmp_path)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_sharded_at_the_root_two_processes_learn_the_same_and_go_on_bit_by_bit(alone, tmp_path):
    """FSDP2: parts of the model are read, not called, so that only the root may be a unit. Some tensors have fewer
    rows than there are processes: their optimiser state must come back too."""
    through, parted = tmp_path / "through", tmp_path / "parted"
    launch(through, 2, batch_size=4, mixup=0.8, fsdp=True)
    assert difference(weights(alone), weights(through)) < 0.01
    launch(parted, 2, batch_size=4, mixup=0.8, fsdp=True, stop_at=9)
    assert not (parted / "weights.safetensors").exists()
    launch(parted, 2, batch_size=4, mixup=0.8, fsdp=True)
    one, other = weights(through), weights(parted)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("schedule", ["incremental", pytest.param("elastic", marks=pytest.mark.slow)])
def test_without_labels_two_processes_learn_what_one_does(tmp_path, schedule):
    """Teacher, heads, and the masks, which are an image's own wherever it is; the held-out loss is one mean."""
    launch(tmp_path / "one", 1, schedule=schedule, features=True)
    launch(tmp_path / "two", 2, schedule=schedule, features=True, batch_size=4)
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert difference(one, other) < 0.01
    torch.testing.assert_close(
        one["heads.masked.linear.weight"], other["heads.masked.linear.weight"], atol=1e-3, rtol=0
    )
    rows, twins = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two"))
    for row, twin in zip(rows, twins):
        for name in ("loss", "feature_loss"):  # rounding, which a later phase at this rate enlarges
            assert row[name] == pytest.approx(twin[name], rel=1e-5 if row["epoch"] == 1 and row is rows[0] else 2e-3)


@pytest.mark.slow
def test_steps_that_leave_components_out_reduce_their_gradients_on_two_processes(tmp_path):
    """The elastic schedule draws the same number of components on every process."""
    launch(tmp_path / "one", 1, schedule="elastic")
    launch(tmp_path / "two", 2, schedule="elastic", batch_size=4)
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], other[name], atol=2e-3) for name in one if not name.endswith(ROUNDING))


def test_what_the_main_process_refuses_is_told_once_and_ends_all(tmp_path):
    """The others would wait for ever, or repeat the line."""
    (tmp_path / "notes.txt").write_text("mine")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [
        "-m",
        "modeling_lingene.cli",
        "decompose",
        "--data",
        "digits",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": TESTS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.count("lingene decompose: `out`") == 1 and "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
