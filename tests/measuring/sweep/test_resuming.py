"""Laws of a sweep that was interrupted, or divided among processes: the same rows, and nothing measured twice."""

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweeping import (
    GRID,
    NAME,
    OLD,
    ORDER,
    PIXEL_BYTES,
    PROGRESS,
    assert_shown,
    forget,
    messages,
    pictures,
    share_right,
    size_of,
    weights_id,
)

import helpers
from helpers import edit, files, read
from modeling_lingene import LinGeneConfig, folders
from modeling_lingene.measuring import metrics, sweep


@pytest.fixture
def halves(monkeypatch) -> dict:
    """Twelve images in two parts of two batches: with three sizes 6 evaluations of 2 passes, in `ORDER` twice."""
    monkeypatch.setattr(sweep, "HELD_BYTES", 6 * PIXEL_BYTES)
    return {"images": pictures(12), "batch_size": 4, **GRID}


STOPS = [(1, KeyboardInterrupt), (2, MemoryError), (3, KeyboardInterrupt), (6, RuntimeError), (7, OSError)]

STOPS += [(8, KeyboardInterrupt), (12, MemoryError)]


@pytest.mark.parametrize("stop_at, error", STOPS, ids=str)
def test_an_interrupted_sweep_goes_on_with_what_is_missing(folder, halves, through, work, error, stop_at):
    """At any pass of any size and part: nothing that was finished is done again, and the rows are the same."""
    folders.write_sizes(folder, OLD)
    before = files(folder)
    work.stop_at, work.error = stop_at, error
    with pytest.raises(error):
        sweep.sweep(folder, **halves)
    finished = (stop_at - 1) // 2
    assert files(folder).keys() - before.keys() == ({PROGRESS} if finished else set())
    assert before.items() <= files(folder).items()
    forget(work)
    assert sweep.sweep(folder, **halves) == through
    assert work.loads == (ORDER * 2)[finished:] and work.passes == 2 * (6 - finished)
    assert not (folder / PROGRESS).exists()
    assert read(folder / "sizes.json") == {"weights_id": weights_id(folder), "sizes": OLD + through}


@pytest.mark.parametrize("write", [1, 2, 4, 6, 7])
def test_an_interruption_while_a_result_is_written_loses_that_one_at_most(
    folder, halves, through, work, monkeypatch, write
):
    """Six times the progress is written, then `sizes.json`; after that nothing has to be evaluated again."""
    counted, real = itertools.count(1), sweep.write_json

    def writing(path, content):
        if next(counted) == write:
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "write_json", writing)
        with pytest.raises(KeyboardInterrupt):
            sweep.sweep(folder, **halves)
    assert not (folder / "sizes.json").exists()
    forget(work)
    assert sweep.sweep(folder, **halves) == through
    assert work.loads == (ORDER * 2)[write - 1 :]
    assert not (folder / PROGRESS).exists() and (folder / "sizes.json").exists()


def test_a_sweep_may_be_interrupted_again_and_again(folder, halves, through, work, caplog):
    """Passes add up to those of one sweep when each stop falls between two sizes; every continuation says so."""
    passes = 0
    for _ in range(6):
        forget(work)
        work.stop_at = 3  # the first pass of the second size that is left
        try:
            rows = sweep.sweep(folder, **halves)
        except KeyboardInterrupt:
            passes += work.passes - 1
    assert rows == through and passes + work.passes == 12
    assert len(messages(caplog, PROGRESS)) == 5


def test_an_interruption_while_a_size_is_timed_leaves_it_to_be_measured(folder, halves, through, monkeypatch, work):
    """The latency is part of the row."""

    def timing(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(metrics, "latency_ms", timing)
        sweep.sweep(folder, **halves)
    forget(work)
    assert sweep.sweep(folder, **halves) == through
    assert work.loads == ORDER * 2


def test_another_grid_takes_from_the_interrupted_one_what_they_share(folder, halves, work):
    """Who stops a sweep because it takes too long asks for fewer sizes next."""
    work.stop_at = 7  # the second part's first
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(folder, **halves)
    forget(work)
    (row,) = sweep.sweep(folder, **halves | {"depths": (3,)})
    assert work.loads == ORDER[1:2] and not (folder / PROGRESS).exists()
    assert row["accuracy"] == share_right(folder, pictures(12), *ORDER[1])
    assert [size_of(row) for row in read(folder / "sizes.json")["sizes"]] == ORDER[1:2]


def interrupt(folder: Path, work: SimpleNamespace, halves: dict, stop_at: int = 9, **keywords) -> Path:
    """Leaves the progress of the first `(stop_at - 1) // 2` evaluations behind, whose path is returned."""
    work.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(folder, **halves | keywords)
    forget(work)
    return folder / PROGRESS


def test_progress_is_used_for_what_it_says(folder, halves, left, work):
    """Otherwise the tests below would not fail either: three sizes have one more part to go."""
    rows = sweep.sweep(folder, **halves)
    assert work.loads == ORDER and all(row["accuracy"] < -7 and row["latency_ms"] == 9.0 for row in rows)


OTHERS = {
    "weights": {"weights_id": "0" * 64},
    "images": {"images": "0" * 64},
    "other processes": {"processes": 2},
    "other parts": {"held": 1},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_progress_on_other_weights_or_images_is_not_used(folder, halves, left, through, work, change):
    """It would be mixed with what is measured now."""
    edit(left, lambda progress: progress["about"].update(change))
    assert sweep.sweep(folder, **halves) == through
    assert work.loads == ORDER * 2 and not left.exists()


def test_progress_on_the_weights_before_a_save_is_not_used(folder, halves, work):
    """A bundle that was trained further keeps its folder."""
    path = interrupt(folder, work, halves)
    config = LinGeneConfig.from_pretrained(folder)
    helpers.tiny_model(config, seed=1).save_pretrained(folder)
    assert path.exists()
    rows = sweep.sweep(folder, **halves)
    assert work.loads == ORDER * 2
    assert [row["accuracy"] for row in rows] == [share_right(folder, pictures(12), *size) for size in ORDER]


DAMAGED = {
    "empty": b"",
    "cut off": b'{"about": {"weights_id": ',
    "not text": b"\xff\xfe\x00",
    "null": b"null",
    "a list": b"[]",
    "a word": b'"found"',
    "no sizes": None,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_progress_is_not_used(folder, halves, left, through, work, content):
    """A sweep that cannot go on begins again."""
    if content is None:
        edit(left, lambda progress: progress.pop("found"))
    else:
        left.write_bytes(content)
    assert sweep.sweep(folder, **halves) == through
    assert work.loads == ORDER * 2 and not left.exists()


@pytest.mark.parametrize("found", [[1], {NAME: 3}, {NAME: {}}, {NAME: {"right": 1}}], ids=str)
def test_progress_of_a_wrong_structure_is_not_used(folder, halves, left, through, found):
    """As damaged as a file that is no JSON."""
    edit(left, lambda progress: progress.update(found=found))
    assert sweep.sweep(folder, **halves) == through


@pytest.mark.parametrize("window", [3, 12])
def test_progress_in_parts_of_another_size_is_not_taken_for_these(folder, halves, through, work, monkeypatch, window):
    """Parts follow from the images held at a time and the number of processes."""
    interrupt(folder, work, halves)
    monkeypatch.setattr(sweep, "HELD_BYTES", window * PIXEL_BYTES)
    assert [row["accuracy"] for row in sweep.sweep(folder, **halves)] == [row["accuracy"] for row in through]


def test_progress_on_other_images_of_the_same_name_is_not_used(folder, halves, work):
    """`a/val` and `b/val`, or a set whose labels were corrected meanwhile."""
    interrupt(folder, work, halves)
    others = dataclasses.replace(pictures(12), labels=[(label + 1) % 7 for label in pictures(12).labels])
    rows = sweep.sweep(folder, **halves | {"images": others})
    assert [row["accuracy"] for row in rows] == [share_right(folder, others, *size) for size in ORDER]


def test_latencies_that_an_interrupted_sweep_did_not_take_are_taken(folder, halves, through, work):
    """Interrupted with `--no-latency`, called again without: the rows have what was asked for."""
    interrupt(folder, work, halves, stop_at=11, latency=False)
    assert sweep.sweep(folder, **halves) == through


@pytest.mark.slow
def test_two_processes_find_what_one_does_and_go_on_with_what_was_found(two):
    """Shares of the images add up; no latency, which one process would measure while another computes."""
    known, *others = read(two.folder / "sizes.json")["sizes"]
    errors = {"accuracy": round(math.sqrt(1436) / 1437**1.5, 6)}  # sqrt(p (1 - p) / n)
    assert known == two.alone[0] | {"accuracy": round(1 / 1437, 6), "standard_errors": errors}
    assert others == two.alone[1:] and "latency_ms" not in others[0]
    assert len({row["accuracy"] for row in two.alone}) > 4
    assert not (two.folder / PROGRESS).exists() and (two.folder / "sizes_heat.png").exists()


@pytest.mark.slow
def test_of_two_processes_the_main_one_alone_prints(two):
    """One table, one bar."""
    assert_shown(read(two.folder / "sizes.json")["sizes"], two.done.stdout)
    assert two.done.stdout.count("| depth") == 1 and two.done.stderr.count("measuring:   0%") == 1
