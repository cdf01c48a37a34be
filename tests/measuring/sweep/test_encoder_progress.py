"""Laws of sweeps without a classifier that go on, are divided, or add to a file: no row mixes what does not compare.

Against the rows of one sweep in one process that nothing interrupted.

    pytest tests/measuring/sweep/test_encoder_progress.py
"""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from encoding import GRID, ORDER, TEST, TRAIN, close, without
from sweeping import OLD, PROGRESS, STORED, made_up_time, messages, size_of
from transformers import ViTConfig, ViTModel

import helpers
from helpers import edit, read
from modeling_lingene import LinGeneModel, folders
from modeling_lingene.images.batches import image_processor
from modeling_lingene.measuring import encoders, features, metrics, sweep, yardsticks


pytestmark = pytest.mark.usefixtures("untimed")


@pytest.fixture
def stopping(monkeypatch) -> SimpleNamespace:
    """Counts the sizes that are loaded, and interrupts the one at `stop_at` while it is timed."""
    state, load = SimpleNamespace(loads=[], stop_at=None), encoders.load_size

    def loading(bundle, size, *arguments, **keywords):
        state.loads.append((size.depth, str(size.width_ratio), size.num_components))
        return load(bundle, size, *arguments, **keywords)

    def timing(*arguments, **keywords):
        if len(state.loads) == state.stop_at:
            raise KeyboardInterrupt
        return made_up_time(*arguments, **keywords)

    monkeypatch.setattr(encoders, "load_size", loading)
    monkeypatch.setattr(metrics, "latency_ms", timing)
    return state


HOW = {"metric": "knn,cosine", "train": TRAIN, "batch_size": 4, **GRID}


def interrupted(bundle: Path, stopping: SimpleNamespace, at: int, **how) -> None:
    stopping.stop_at = at
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(bundle, TEST, **HOW | how)
    stopping.loads, stopping.stop_at = [], None


def test_an_interrupted_sweep_goes_on_with_the_sizes_that_are_missing(bundle, whole, stopping, caplog):
    """What was finished is not measured again, and the rows are the same."""
    interrupted(bundle, stopping, 3)
    assert (bundle / PROGRESS).exists() and not (bundle / "sizes.json").exists()
    rows = sweep.sweep(bundle, TEST, **HOW)
    assert stopping.loads == ORDER[2:] and "2 sizes were begun" in messages(caplog, PROGRESS)[0]
    assert rows == close([without(row, "probe") for row in whole.rows])
    assert not (bundle / PROGRESS).exists()


OTHERS = {
    "another metric": {"metric": "knn"},
    "one metric more": {"metric": "knn,cosine,probe"},
    "another that decides": {"metric": "cosine,knn"},
    "another train part": {"train": dataclasses.replace(TRAIN, labels=TRAIN.labels[1:] + TRAIN.labels[:1])},
    "another reference": {"reference": "other"},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_progress_by_other_measures_is_not_mixed_with_these(bundle, other, tmp_path, stopping, change):
    """The numbers are those of a sweep that begins anew."""
    change = {key: str(other) if value == "other" else value for key, value in change.items()}
    interrupted(bundle, stopping, 3)
    rows = sweep.sweep(bundle, TEST, **HOW | change)
    assert stopping.loads == ORDER
    assert rows == close(sweep.sweep(bundle, TEST, out=tmp_path / "anew", **HOW | change))


def test_sizes_that_differ_in_components_alone_are_timed_once(bundle, monkeypatch):
    """As where there is a classifier."""
    times = itertools.count(1)
    monkeypatch.setattr(metrics, "latency_ms", lambda *_, **__: {"median": float(next(times)), "iqr": 0.0})
    rows = sweep.sweep(bundle, TEST, **HOW | {"metric": "knn"})
    shapes = [(row["depth"], row["width_ratio"], row["latency_ms"]) for row in rows]
    assert len(rows) == 2 * len(set(shapes)) == 8 and {time for *_, time in shapes} == {1.0, 2.0, 3.0, 4.0}


def test_progress_of_an_accuracy_is_not_taken_for_another_metric(bundle, stopping):
    """Nor what is damaged."""
    interrupted(bundle, stopping, 3)
    edit(bundle / PROGRESS, lambda progress: progress["found"].update({"depth 3": {"params": 3, "measures": {}}}))
    sweep.sweep(bundle, TEST, **HOW)
    assert stopping.loads == ORDER


@pytest.mark.parametrize("room", [0, 3 * 16 * 16 * 4 * 4 * 2])
def test_a_set_that_does_not_fit_gives_the_same_rows(bundle, whole, monkeypatch, room):
    """Decoded, and asked of the reference, anew for every size."""
    monkeypatch.setattr(features.Kept.__init__, "__defaults__", (room,))
    rows = sweep.sweep(bundle, TEST, **HOW | {"metric": "knn,probe,cosine"})
    assert rows == close(whole.rows)


def test_several_processes_share_the_sizes(bundle, whole, monkeypatch):
    """Together they find what one does; at the last round one of three has nothing to do."""
    found = {}
    for index in range(3):
        monkeypatch.setattr(encoders, "gather_object", lambda own: own)  # as if the others found nothing
        config = folders.read_config(bundle)
        sets = yardsticks.Sets(("knn",), TEST, TRAIN)
        stick = yardsticks.yardstick(bundle, 48, sets, image_processor(16), 4)
        sizes = [config.size(*size) for size in ORDER]
        own = encoders.measured_by(stick, bundle, sizes, head=False, latency=False, process=(index, 3), progress=False)
        assert len(own) == (3, 3, 2)[index] and not found.keys() & own.keys()
        found |= own
    assert [found[str(size)]["measures"]["knn"] for size in sizes] == [row["knn"] for row in whole.rows]


def test_another_metric_on_the_same_images_is_added_and_decides(bundle, caplog):
    """To the sizes that have both; those that lack it would not compare and are replaced, which is said."""
    sweep.sweep(bundle, TEST, **HOW | {"metric": "knn"})
    before = {size_of(row): row for row in read(bundle / "sizes.json")["sizes"]}
    caplog.clear()
    rows = sweep.sweep(bundle, TEST, **HOW | {"metric": "cosine", "depths": (6,)})
    after = read(bundle / "sizes.json")["sizes"]
    assert rows == [without(row, "knn") for row in after]
    for row in after:
        known = before[size_of(row)]
        assert (row["knn"], row["standard_errors"]["knn"]) == (known["knn"], known["standard_errors"]["knn"])
    (told,) = messages(caplog, "are replaced")
    assert told.startswith("4 sizes") and "not by cosine" in told
    caplog.clear()
    sweep.sweep(bundle, TEST, **HOW | {"metric": "knn", "depths": (6,), "components": (2,)})
    again = read(bundle / "sizes.json")["sizes"]
    assert {row["metric"] for row in again} == {"knn"} and messages(caplog, "are replaced") == []
    keep = [{key: value for key, value in row.items() if key != "metric"} for row in after]
    assert sorted(([{k: v for k, v in row.items() if k != "metric"} for row in again]), key=size_of) == sorted(
        keep, key=size_of
    )


def test_rows_against_another_reference_do_not_stay(bundle, other, caplog):
    """Their cosines are other numbers."""
    sweep.sweep(bundle, TEST, **HOW | {"metric": "cosine"})
    sweep.sweep(bundle, TEST, **HOW | {"metric": "cosine", "reference": str(other), "depths": (6,)})
    rows = read(bundle / "sizes.json")["sizes"]
    assert {row["reference"] for row in rows} == {"vit"} and len(rows) == 4
    assert messages(caplog, "are replaced")[0].startswith("4 sizes")


def test_rows_against_another_reference_of_the_same_name_do_not_stay(bundle, other, tmp_path, caplog):
    """Folders of runs are all called `bundle`."""
    shutil.copytree(other, tmp_path / "elsewhere" / other.name)
    config = json.loads((other / "config.json").read_text())
    torch.manual_seed(7)
    ViTModel(ViTConfig(**config), add_pooling_layer=False).save_pretrained(tmp_path / "elsewhere" / other.name)
    asked, found = HOW | {"metric": "cosine", "depths": (6,)}, []
    for folder in (other, tmp_path / "elsewhere" / other.name):
        sweep.sweep(bundle, TEST, **asked | {"reference": str(folder)})
        sweep.sweep(bundle, TEST, **asked | {"reference": str(folder), "depths": (4,), "allow_untrained": True})
        found.append(read(bundle / "sizes.json")["sizes"])
    sweep.sweep(bundle, TEST, **asked | {"reference": str(other)})
    assert {row["depth"] for row in read(bundle / "sizes.json")["sizes"]} == {6}  # that of depth 4 was elsewhere's
    sweep.sweep(bundle, TEST, **asked | {"metric": "knn,cosine", "reference": str(other)})
    sweep.sweep(bundle, TEST, **HOW | {"depths": (4,), "allow_untrained": True, "reference": str(folder)})
    for row in read(bundle / "sizes.json")["sizes"]:  # k-NN stays, of whom it was nearest to does not
        assert "knn" in row and ("cosine" in row["standard_errors"]) == ("cosine" in row) == (row["depth"] == 4)
    first, second = ({size_of(row) for row in rows} for rows in found)
    assert first == second and {row["reference"] for rows in found for row in rows} == {other.name}
    assert not {row["cosine"] for row in found[0]} & {row["cosine"] for row in found[1]}
    assert messages(caplog, "are replaced")


def test_a_row_of_another_set_brings_no_measures(bundle):
    """A k-NN of other images beside this cosine would look like one of these."""
    held = {"knn": 0.5, "cosine": 0.5, "reference": "whoever"}
    for metric in ("cosine", "knn"):
        folders.write_sizes(bundle, [OLD[0] | held | {"depth": 6, "metric": "knn", "dataset": "elsewhere"}])
        (row,) = sweep.sweep(bundle, TEST, metric=metric, train=TRAIN, depths=(6,), widths=("1",), components=(5,))
        assert read(bundle / "sizes.json")["sizes"] == [row]


@pytest.mark.slow
def test_two_processes_of_a_command_find_what_one_does(tmp_path):
    """Each takes half of the sizes, and all images; the main one alone prints."""
    config = helpers.tiny_config(image_size=8, patch_size=2, trained_depths=[6, 3], **STORED)
    helpers.tiny_model(config, model_class=LinGeneModel).save_pretrained(tmp_path / "bundle")
    image_processor(8).save_pretrained(tmp_path / "bundle")
    found = {}
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += ["-m", "modeling_lingene.cli", "sweep", str(tmp_path / "bundle"), "--data", "digits"]
        command += ["--metric", "knn,cosine", "--device", "cpu", "--components", "5", "--no-latency"]
        command += ["--out", str(tmp_path / str(processes))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0 and done.stdout.count("| depth") == 1, done.stderr[-3000:]
        found[processes] = read(tmp_path / str(processes) / "sizes.json")["sizes"]
    assert found[2] == close(found[1]) and len(found[1]) == 4
