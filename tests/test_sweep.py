"""Laws of `lingene sweep`, `lingene profile` and latency budgets: every number is what a user gets, none is lost.

The references are an argmax loop over models loaded one by one, torch's FLOP counter on a real forward pass, and plain
tables written here. Times are made up, but for one profile: whatever is asserted of a time is who it belongs to.

    pytest tests/test_sweep.py
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification, ViTForImageClassification

import helpers


pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

from modeling_lingene import (  # noqa: E402
    LinGeneConfig,
    LinGeneForImageClassification,
    LinGeneModel,
    cli,
    data,
    hub,
    metrics,
    plots,
    sweep,
)
from modeling_lingene.budget_lingene import choose_size, device_name  # noqa: E402
from modeling_lingene.data import EncodedImages, LabelledImages, image_processor  # noqa: E402
from test_hub import assert_table_shows, edit, files, number, read, table  # noqa: E402


STORED = {"depth": None, "num_components": None, "reference_depth": 6, "reference_components": 5}
GRID = {"depths": (2, 3, 6), "widths": ("1/2",), "components": (5,)}
ORDER = [(6, "1/2", 5), (3, "1/2", 5), (2, "1/2", 5)]  # largest first
PIXEL_BYTES = 4 * 3 * 16 * 16  # of one decoded image
PROGRESS = "sweep.json"
HERE, OTHER, GPU = device_name(), "Another processor (8 threads)", "A fast GPU"


def made_up_time(model, pixel_values=None, min_run_time=0.5, threads=None, batch_size=1) -> dict:
    """In place of a measured latency: it follows from the shape and dtype of the model alone."""
    weight = next(model.parameters())
    median = sum(p.numel() for p in model.parameters()) * weight.element_size() / 3e5 * (1 + (batch_size - 1) / 3)
    return {"median": median, "iqr": median / 7, "batch_size": batch_size, "threads": threads}


@functools.cache
def counted_macs(depth: int, width: int, pixels: int) -> int:
    """Of the shapes of these tests, once each."""
    config = helpers.tiny_config(num_labels=7 if pixels == 16 else 10, image_size=pixels)
    return metrics.count_macs(config.vit_config(config.size(depth, Fraction(width, 48))))


@pytest.fixture(autouse=True)
def cheap(monkeypatch) -> None:
    """No clock, no counter and no pictures, for tests that are not about them."""
    monkeypatch.setattr(sweep, "latency_ms", made_up_time)
    monkeypatch.setattr(
        sweep, "count_macs", lambda vit: counted_macs(vit.num_hidden_layers, vit.hidden_size, vit.image_size)
    )
    for name in ("plot_sizes", "plot_heat"):
        monkeypatch.setattr(sweep, name, lambda *_: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A bundle of trained depths 3 and 6 and widths 1/2 and 1 with preprocessing, nothing measured; read only."""
    folder = tmp_path_factory.mktemp("source") / "bundle"
    helpers.bundle(folder, helpers.tiny_config(trained_depths=[6, 3], **STORED))
    image_processor(16).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(source, tmp_path) -> Path:
    """A copy of it that a test may write to."""
    return Path(shutil.copytree(source, tmp_path / "bundle"))


@functools.cache
def pictures(count: int, seed: int = 0) -> LabelledImages:
    """Noise; two thirds of the labels are what the full size, recomposed by numpy, says, so that sizes differ."""
    made = helpers.pictures(count, seed=seed)
    with torch.no_grad():
        said = helpers.reference_vit(helpers.tiny_model(), 6)(as_pixels(made.images)).logits.argmax(-1).tolist()
    labels = [label if index % 3 == 0 else said[index] for index, label in enumerate(made.labels)]
    return dataclasses.replace(made, labels=labels)


def as_pixels(images: Sequence) -> torch.Tensor:
    """(n, 3, h, w) in -1..1, by numpy."""
    pixels = numpy.stack([numpy.asarray(image, dtype=numpy.float32) for image in images])
    return torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2)


class Watched(Sequence):
    """Images that count how often each is decoded; those at `broken` do not decode."""

    def __init__(self, images: Sequence, broken: Sequence[int] = ()):
        self.images, self.broken, self.decoded = images, broken, Counter()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        self.decoded[index] += 1
        if index in self.broken:
            raise OSError("cannot identify image file")
        return self.images[index]


def watched(count: int, broken: Sequence[int] = ()) -> LabelledImages:
    images = pictures(count)
    return dataclasses.replace(images, images=Watched(images.images, broken))


def share_right(folder: Path, images: LabelledImages, *size, leave: Sequence[int] = ()) -> float:
    """Accuracy of one size, by a loop over the images."""
    with torch.no_grad():
        logits = load(folder, *size)(as_pixels(images.images)).logits.tolist()
    right = total = 0
    for index, (values, label) in enumerate(zip(logits, images.labels)):
        if index not in leave:
            right, total = right + (values.index(max(values)) == label), total + 1
    return round(right / total, 6)


def load(folder: Path, depth: int, width_ratio: str, num_components: int, **keywords) -> ViTForImageClassification:
    asked = {"depth": depth, "width_ratio": width_ratio, "num_components": num_components, "allow_untrained": True}
    return AutoModelForImageClassification.from_pretrained(folder, **asked, **keywords).eval()


def size_of(row: dict) -> tuple:
    return row["depth"], row["width_ratio"], row["num_components"]


def weights_id(folder: Path) -> str:
    return read(folder / "config.json")["weights_id"]


def messages(caplog, fragment: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if fragment in record.getMessage()]


@pytest.fixture
def work(monkeypatch) -> SimpleNamespace:
    """What is done: sizes in the order they are loaded, forward passes on images; `stop_at` interrupts one of them."""
    done = SimpleNamespace(loads=[], passes=0, stop_at=None, error=KeyboardInterrupt)
    load, forward = AutoModelForImageClassification.from_pretrained, ViTForImageClassification.forward

    def loading(name, **asked):
        done.loads.append((asked["depth"], asked["width_ratio"], asked["num_components"]))
        return load(name, **asked)

    def passing(self, pixel_values, **keywords):
        if not pixel_values.is_meta:  # counting MACs takes no image
            done.passes += 1
            if done.passes == done.stop_at:
                raise done.error
        return forward(self, pixel_values, **keywords)

    monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", loading)
    monkeypatch.setattr(ViTForImageClassification, "forward", passing)
    return done


def forget(work: SimpleNamespace) -> None:
    work.loads, work.passes, work.stop_at = [], 0, None


# -- a sweep


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> SimpleNamespace:
    """A sweep of the default grid over 42 images, with pictures."""
    folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("whole") / "bundle"))
    images = watched(42)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sweep, "latency_ms", made_up_time)
        rows = sweep.sweep(folder, images, batch_size=16)
    return SimpleNamespace(folder=folder, images=images, rows=rows)


def once(count: int) -> dict[int, int]:
    """Every image decoded once for the whole sweep, and four of them once more to tell the set from another one."""
    return {index: 1 + (index in (0, count // 3, count // 2, count - 1)) for index in range(count)}


def test_the_default_grid_is_what_was_trained_with_components_doubling_up_to_all(whole):
    """Every size once, largest first."""
    grid = itertools.product((6, 3), ("1", "1/2"), (5, 4, 2, 1))
    assert [size_of(row) for row in whole.rows] == list(grid)


def test_every_row_is_what_a_user_gets_who_loads_that_size(whole):
    """Accuracy by a loop over the images, costs from the model itself, what is downloaded from its components."""
    images = pictures(42)
    for row in whole.rows:
        size = size_of(row)
        model = load(whole.folder, *size, attn_implementation="eager")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(as_pixels(images.images[:1]))
        depth, width, count = size
        constrained = LinGeneForImageClassification.from_pretrained(
            whole.folder, constrained=True, depth=depth, width_ratio=width, num_components=count
        )
        assert row == {
            "depth": depth,
            "width_ratio": width,
            "num_components": count,
            "params": sum(parameter.numel() for parameter in model.parameters()),
            "stored_params": sum(parameter.numel() for parameter in constrained.parameters()),
            "macs": counter.get_total_flops() / 2,
            "accuracy": share_right(whole.folder, images, *size),
            "split": "train",
            "dataset": "made",
            "latency_ms": round(made_up_time(model)["median"], 4),
            "device": HERE,
        }
    assert len({row["accuracy"] for row in whole.rows}) > 8  # otherwise a mix-up of sizes would not show


def test_images_are_decoded_once_for_all_sizes(whole):
    """Decoding costs more than a small model."""
    assert whole.images.images.decoded == once(42)


def test_sizes_json_holds_the_rows_tied_to_the_weights_and_nothing_else_is_left(whole, source):
    """The file that loading by budget and cards read."""
    assert read(whole.folder / "sizes.json") == {"weights_id": weights_id(source), "sizes": whole.rows}
    assert files(whole.folder).keys() - files(source).keys() == {"sizes.json", "sizes.png", "sizes_heat.png"}


@pytest.mark.parametrize("limit", [2.1e6, 1.5e6, 1e6, 4e5])
def test_what_was_swept_can_be_loaded_by_budget(whole, limit):
    """The most accurate row within it, of equals the one of fewest MACs, then parameters."""
    loaded = AutoModelForImageClassification.from_pretrained(whole.folder, max_macs=limit)
    within = [row for row in whole.rows if row["macs"] <= limit]
    best = sorted(within, key=lambda row: (-row["accuracy"], row["macs"], row["params"]))[0]
    with torch.no_grad():
        pixels = helpers.images()
        assert torch.equal(loaded(pixels).logits, load(whole.folder, *size_of(best))(pixels).logits)


@pytest.mark.parametrize("name", ["sizes.png", "sizes_heat.png"])
def test_the_pictures_of_a_sweep_open(whole, name):
    """Drawn after the numbers are safe."""
    from PIL import Image

    with Image.open(whole.folder / name) as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 200
        assert len(picture.convert("L").getcolors()) > 10


def test_a_grid_may_be_given_in_any_order_and_spelling(folder):
    """Sizes named twice are measured once."""
    rows = sweep.sweep(folder, pictures(4), depths=(2, 6, 2), widths=("0.5", "1/2"), components=(1, 3))
    assert [size_of(row) for row in rows] == [(6, "1/2", 3), (6, "1/2", 1), (2, "1/2", 3), (2, "1/2", 1)]


@pytest.mark.parametrize(
    "given, grid",
    [
        ({"depths": (2,)}, ((2,), ("1", "1/2"), (5, 4, 2, 1))),
        ({"widths": ("1",)}, ((6, 3), ("1",), (5, 4, 2, 1))),
        ({"components": (3,)}, ((6, 3), ("1", "1/2"), (3,))),
    ],
    ids=str,
)
def test_what_is_not_given_of_a_grid_is_the_default(folder, given, grid):
    """Axis by axis."""
    assert [size_of(row) for row in sweep.sweep(folder, pictures(2), **given)] == list(itertools.product(*grid))


def test_untrained_widths_are_measured_where_that_is_asked_for(folder):
    """As an initialisation for training they have an accuracy too."""
    (row,) = sweep.sweep(
        folder, pictures(20), depths=(3,), widths=("3/4",), components=(5,), allow_untrained=True, latency=False
    )
    assert size_of(row) == (3, "3/4", 5) and "latency_ms" not in row and "device" not in row
    assert row["accuracy"] == share_right(folder, pictures(20), 3, "3/4", 5)


def test_out_takes_the_files_and_the_bundle_stays_as_it_was(folder, tmp_path, source):
    """A bundle on a read-only disk can be measured too."""
    rows = sweep.sweep(folder, pictures(4), out=tmp_path / "deep" / "out", **GRID)
    assert read(tmp_path / "deep" / "out" / "sizes.json") == {"weights_id": weights_id(source), "sizes": rows}
    assert files(folder) == files(source)


@pytest.mark.parametrize("window, parts", [(2, 6), (5, 3), (11, 2)])
def test_a_set_that_does_not_fit_is_evaluated_part_by_part_to_the_same_rows(
    folder, through, monkeypatch, work, window, parts
):
    """Every image is still decoded once, and every size loaded once a part."""
    monkeypatch.setattr(sweep, "HELD_BYTES", window * PIXEL_BYTES + PIXEL_BYTES // 2)
    images = watched(12)
    assert sweep.sweep(folder, images, batch_size=4, **GRID) == through
    assert images.images.decoded == once(12)
    assert work.loads == ORDER * parts


@pytest.mark.parametrize("window", [1000, 100])
def test_images_that_do_not_decode_are_left_out_with_a_warning(folder, monkeypatch, window):
    """One damaged file must not cost the other numbers; two of two hundred are within the limit of `data`."""
    monkeypatch.setattr(sweep, "HELD_BYTES", window * PIXEL_BYTES)
    images = watched(200, broken=(30, 140))
    with pytest.warns(UserWarning, match="do not decode: .* left out") as caught:
        rows = sweep.sweep(folder, images, **GRID)
    assert "image 30" in str(caught[0].message)
    assert images.images.decoded == once(200)
    assert rows[0]["accuracy"] == share_right(folder, pictures(200), *ORDER[0], leave=(30, 140))


@pytest.mark.parametrize("broken, window", [((140,), 75), ((30, 31), 100)], ids=str)
def test_the_limit_of_unreadable_images_is_that_of_the_set(folder, monkeypatch, broken, window):
    """What one part takes, several must take: at most one in a hundred of all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sweep.sweep(folder, watched(200, broken), out=folder.parent / "out", **GRID)
        monkeypatch.setattr(sweep, "HELD_BYTES", window * PIXEL_BYTES)
        assert sweep.sweep(folder, watched(200, broken), **GRID) == expected


class Files(EncodedImages):
    """Images that came from files."""

    def __init__(self, images: Sequence):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.images[index]

    def path(self, index: int) -> str:
        return f"class/{index}.png"


@pytest.mark.parametrize("kind, named", [(Files, "class/140.png"), (list, "image 140")], ids=["files", "places"])
def test_a_sweep_names_unreadable_images_as_evaluation_does(folder, monkeypatch, kind, named):
    """`Remove or repair the files` needs to say which."""
    monkeypatch.setattr(sweep, "HELD_BYTES", 100 * PIXEL_BYTES)
    images = watched(200, broken=(140,))
    images = dataclasses.replace(images, images=kind(images.images)) if kind is Files else images
    with pytest.warns(UserWarning) as caught:
        sweep.sweep(folder, images, **GRID)
    assert any(named in str(warning.message) for warning in caught)


# -- interrupted


@pytest.fixture
def halves(monkeypatch) -> dict:
    """Twelve images in two parts of two batches: with three sizes 6 evaluations of 2 passes, in `ORDER` twice."""
    monkeypatch.setattr(sweep, "HELD_BYTES", 6 * PIXEL_BYTES)
    return {"images": pictures(12), "batch_size": 4, **GRID}


@pytest.fixture(scope="module")
def through(source, tmp_path_factory) -> list[dict]:
    """The rows of the sweep that was not interrupted, of one part."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sweep, "latency_ms", made_up_time)
        return sweep.sweep(source, pictures(12), batch_size=4, out=tmp_path_factory.mktemp("through"), **GRID)


OLD = [
    {
        "depth": 1,
        "width_ratio": "1",
        "num_components": 5,
        "params": 9,
        "stored_params": 9,
        "macs": 9,
        "accuracy": 0.5,
        "split": "train",
        "dataset": "made",
    }
]


STOPS = [(1, KeyboardInterrupt), (2, MemoryError), (3, KeyboardInterrupt), (6, RuntimeError), (7, OSError)]
STOPS += [(8, KeyboardInterrupt), (12, MemoryError)]


@pytest.mark.parametrize("stop_at, error", STOPS, ids=str)
def test_an_interrupted_sweep_goes_on_with_what_is_missing(folder, halves, through, work, error, stop_at):
    """At any pass of any size and part: nothing that was finished is done again, and the rows are the same."""
    hub.write_sizes(folder, OLD)
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
        patched.setattr(sweep, "latency_ms", timing)
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


@pytest.fixture
def left(folder, halves, work) -> Path:
    """A progress file as an interruption in the second part leaves it, but for numbers that no sweep would find: were
    they used, the rows would tell.
    """
    about = sweep.what_is_swept(weights_id(folder), halves["images"])
    forget(work)
    one = {"right": -100, "images": 6, "parts": 1, "params": 9, "latency_ms": 9.0, "device": HERE}
    names = [f"depth {depth}, width ratio {width}, {count} components" for depth, width, count in ORDER]
    hub.write_json(folder / PROGRESS, {"about": about, "found": dict.fromkeys(names, one)})
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


NAME = "depth 6, width ratio 1/2, 5 components"


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


# -- merging


def swept(folder: Path, caplog, old: list[dict]) -> tuple[list[dict], list[dict]]:
    """The rows of a sweep of three sizes, and those in the file, where `old` stood in it before."""
    hub.write_sizes(folder, old)
    caplog.clear()
    rows = sweep.sweep(folder, pictures(12), latency=False, **GRID)
    return rows, read(folder / "sizes.json")["sizes"]


PROFILES = [{"device": GPU, "latency_ms": 1.5, "iqr_ms": 0.1, "images_per_second": 9.0, "batch_size": 64}]
AGAIN = OLD[0] | {"depth": 3, "width_ratio": "1/2", "latency_ms": 77.0, "device": OTHER}


def test_rows_of_other_sizes_on_the_same_images_stay_as_they_are(folder, caplog):
    """Sweeps of two grids add up, and nothing is warned of."""
    old = [OLD[0] | {"latency_ms": 3.0, "device": OTHER, "profiles": PROFILES}, AGAIN]
    rows, merged = swept(folder, caplog, old)
    assert sorted(merged, key=size_of) == sorted([old[0], *rows], key=size_of)
    assert messages(caplog, "replaced") == []


@pytest.mark.parametrize("change", [{"dataset": "unmade"}, {"split": "test"}], ids=str)
def test_rows_on_other_images_are_replaced_with_a_warning(folder, caplog, change):
    """Accuracies on two sets do not compare; the sizes that are gone are counted."""
    same = OLD[0] | {"depth": 4}
    rows, merged = swept(folder, caplog, [OLD[0] | change, same, OLD[0] | change | {"depth": 5}])
    assert sorted(merged, key=size_of) == sorted([same, *rows], key=size_of)
    (told,) = messages(caplog, "replaced")
    assert told.startswith("2 sizes") and "other images" in told


@pytest.mark.parametrize("change", [{}, {"dataset": "unmade"}], ids=["same images", "other images"])
def test_profiles_of_a_size_that_is_measured_again_stay(folder, caplog, change):
    """They are of its speed, which the images have no part in; its own numbers are the new ones."""
    rows, merged = swept(folder, caplog, [AGAIN | {"profiles": PROFILES} | change])
    (again,) = [row for row in rows if size_of(row) == size_of(AGAIN)]
    assert "profiles" not in again and again["accuracy"] == share_right(folder, pictures(12), *size_of(AGAIN))
    assert [row for row in merged if "profiles" in row] == [again | {"profiles": PROFILES}]
    assert len(merged) == 3


def test_sweeps_of_two_grids_add_up_in_out_too(folder, tmp_path):
    """For a bundle on the Hub there is no other place."""
    for depth in (3, 6):
        sweep.sweep(folder, pictures(4), out=tmp_path / "out", depths=(depth,), widths=("1",), components=(5,))
    assert {row["depth"] for row in read(tmp_path / "out" / "sizes.json")["sizes"]} == {3, 6}


# -- two processes


def assert_shown(rows: list[dict], text: str) -> None:
    """Every row in the table of a text, the most accurate first; of equals the one of fewest MACs, then parameters."""
    rows = sorted(rows, key=lambda row: (-row["accuracy"], row["macs"], row["stored_params"]))
    assert_table_shows(rows, [{"latency": "-"} | line for line in table(text)])


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A bundle for the digits, of 8 pixels and 10 classes; read only."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits") / "bundle"
    config = helpers.tiny_config(num_labels=10, image_size=8, trained_depths=[3, 6], **STORED)
    helpers.tiny_model(config, noise=0.2).save_pretrained(folder)
    image_processor(8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two(digits, tmp_path_factory) -> SimpleNamespace:
    """The rows of one process, and a sweep of two that goes on with a progress in which one size is given 1 right
    answer: the 1437 images of `train` do not divide by two.
    """
    images, grid = data.load_images("digits", "train"), {"depths": (3, 6), "components": (2, 5)}
    alone = sweep.sweep(digits, images, latency=False, out=tmp_path_factory.mktemp("alone"), **grid)
    folder = Path(shutil.copytree(digits, tmp_path_factory.mktemp("two") / "bundle"))
    about = sweep.what_is_swept(weights_id(folder), images, processes=2)
    known = {"right": 1, "images": 1437, "parts": 1, "params": alone[0]["params"]}
    hub.write_json(folder / PROGRESS, {"about": about, "found": {"depth 6, width ratio 1, 5 components": known}})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "modeling_lingene.cli", "sweep", str(folder), "--data", "digits", "--split", "train"]
    command += ["--device", "cpu", "--depths", "3,6", "--components", "2,5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(folder=folder, alone=alone, done=done)


def test_two_processes_find_what_one_does_and_go_on_with_what_was_found(two):
    """Shares of the images add up; no latency, which one process would measure while another computes."""
    known, *others = read(two.folder / "sizes.json")["sizes"]
    assert known == two.alone[0] | {"accuracy": round(1 / 1437, 6)}
    assert others == two.alone[1:] and "latency_ms" not in others[0]
    assert len({row["accuracy"] for row in two.alone}) > 4
    assert not (two.folder / PROGRESS).exists() and (two.folder / "sizes_heat.png").exists()


def test_of_two_processes_the_main_one_alone_prints(two):
    """One table, one bar."""
    assert_shown(read(two.folder / "sizes.json")["sizes"], two.done.stdout)
    assert two.done.stdout.count("| depth") == 1 and two.done.stderr.count("measuring:   0%") == 1


# -- profiles


MEASURED = [
    OLD[0] | {"depth": depth, "width_ratio": width, "num_components": count, "accuracy": accuracy}
    for depth, width, count, accuracy in [(6, "1", 5, 0.9), (6, "1", 2, 0.8), (3, "1/2", 5, 0.5)]
]


@pytest.fixture
def measured(folder) -> Path:
    """The bundle with three measured sizes, two of them of one shape."""
    hub.write_sizes(folder, MEASURED)
    return folder


def made_up_profile(folder: Path, row: dict, batch: int = 64, dtype: torch.dtype = torch.float32) -> dict:
    """What a profile of that size has to say, from a model that is loaded here."""
    model = load(folder, *size_of(row), dtype=dtype)
    one, many = made_up_time(model), made_up_time(model, batch_size=batch)
    return {
        "device": HERE,
        "latency_ms": round(one["median"], 4),
        "iqr_ms": round(one["iqr"], 4),
        "images_per_second": round(batch / many["median"] * 1000, 1),
        "batch_size": batch,
    }


def test_a_profile_is_of_every_measured_size_and_joins_its_row(measured, tmp_path, work):
    """The file keeps its rows; each shape is timed once, for components change nothing of a loaded model."""
    rows = sweep.profile(measured, batch_size=8, out=tmp_path / "deep" / "profile.json")
    assert work.loads == [(6, "1", 5), (3, "1/2", 5)]
    profiles = [made_up_profile(measured, row, batch=8) for row in MEASURED]
    names = ("depth", "width_ratio", "num_components")
    assert rows == [dict(zip(names, size_of(row))) | profile for row, profile in zip(MEASURED, profiles)]
    assert read(measured / "sizes.json") == {
        "weights_id": weights_id(measured),
        "sizes": [row | {"profiles": [profile]} for row, profile in zip(MEASURED, profiles)],
    }
    assert read(tmp_path / "deep" / "profile.json") == {"weights_id": weights_id(measured), "profiles": rows}


def test_a_profile_replaces_that_of_the_same_device_and_keeps_those_of_others(measured):
    """By its label; sizes that were not asked for keep all of theirs."""
    stale = PROFILES[0] | {"device": HERE, "latency_ms": 99.0}
    hub.write_sizes(measured, [row | {"profiles": [stale, *PROFILES]} for row in MEASURED])
    sweep.profile(measured, depths=(3,))
    first, second, third = read(measured / "sizes.json")["sizes"]
    assert first == MEASURED[0] | {"profiles": [stale, *PROFILES]} and second["profiles"] == first["profiles"]
    fresh = made_up_profile(measured, MEASURED[2])
    assert sorted(third.pop("profiles"), key=str) == sorted([fresh, *PROFILES], key=str)
    assert third == MEASURED[2]


@pytest.mark.parametrize(
    "asked, label, dtype",
    [
        ({}, HERE, torch.float32),
        ({"dtype": "bfloat16"}, f"{HERE}, bfloat16", torch.bfloat16),
        ({"compiled": True}, f"{HERE}, compiled", torch.float32),
        ({"dtype": "float16", "compiled": True}, f"{HERE}, float16, compiled", torch.float16),
        ({"threads": 3, "device": "cpu"}, device_name("cpu", 3), torch.float32),
    ],
    ids=str,
)
def test_the_label_of_a_profile_says_how_the_model_ran(measured, monkeypatch, asked, label, dtype):
    """Latencies of another dtype, compiled, or on more threads are not those of the usual model."""
    compiled, timed = [], []

    def timing(model, threads=None, **keywords):
        timed.append((model, threads))
        return made_up_time(model, **keywords)

    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    monkeypatch.setattr(sweep, "latency_ms", timing)
    rows = sweep.profile(measured, **asked)
    assert {row["device"] for row in rows} == {label}
    assert {next(model.parameters()).dtype for model, _ in timed} == {dtype}
    assert {threads for _, threads in timed} == {asked.get("threads")}
    assert len(compiled) == 2 * asked.get("compiled", False) and not any(model.training for model, _ in timed)
    assert rows[0]["latency_ms"] == made_up_profile(measured, MEASURED[0], dtype=dtype)["latency_ms"]
    sweep.profile(measured)
    labels = [profile["device"] for profile in read(measured / "sizes.json")["sizes"][0]["profiles"]]
    assert sorted(labels) == sorted({label, HERE})


def test_without_measured_sizes_a_profile_warns_and_leaves_the_bundle_alone(folder, source, tmp_path, caplog):
    """A latency needs an accuracy beside it to be chosen by; the numbers are the caller's all the same."""
    rows = sweep.profile(folder, out=tmp_path / "profile.json")
    assert [size_of(row) for row in rows] == list(itertools.product((6, 3), ("1", "1/2"), (5, 4, 2, 1)))
    assert read(tmp_path / "profile.json")["profiles"] == rows
    (told,) = messages(caplog, "no measured sizes")
    assert str(folder) in told and "sweep" in told
    assert files(folder) == files(source)


WRONG_PROFILES = {
    "a dtype": ({"dtype": "int8"}, ["`dtype`", "float32, bfloat16, float16", "'int8'"]),
    "no batch": ({"batch_size": 0}, ["`batch_size`", "at least 1", "got 0"]),
    "no threads": ({"threads": 0}, ["`threads`", "at least 1", "got 0"]),
    "negative threads": ({"threads": -1}, ["`threads`", "at least 1", "got -1"]),
    "no such device": ({"device": "abacus"}, ["`device`", "abacus"]),
    "sizes": (
        {"depths": (0, 3), "widths": ("1/3", "1/2"), "components": (6, 7)},
        ["`depth` must", "got 0", "`width_ratio` must", "1/3 of 4 heads", "`num_components` 6", "`num_components` 7"],
    ),
}


@pytest.mark.parametrize("case", WRONG_PROFILES.values(), ids=WRONG_PROFILES)
def test_a_profile_that_cannot_be_taken_is_refused_before_a_model_is_loaded(measured, tmp_path, lingene, work, case):
    """All that is wrong in one line, and no file."""
    asked, fragments = case
    before = files(tmp_path)
    with pytest.raises(ValueError) as caught:
        sweep.profile(measured, out=tmp_path / "out.json", **asked)
    told = lingene("profile", measured, "--out", tmp_path / "out.json", *options(asked))
    assert told.code == 2 and told.errors == [f"lingene profile: {caught.value}"]
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert work.loads == [] and files(tmp_path) == before


def test_a_profile_leaves_sizes_json_tied_to_its_weights(measured):
    """A configuration without `weights_id` loads, and is swept: the index names the weights."""
    edit(measured / "config.json", lambda config: config.pop("weights_id"))
    sweep.profile(measured)
    assert AutoModelForImageClassification.from_pretrained(measured, max_macs=10).config.num_hidden_layers == 6


# -- budgets of latency


# Per device, the milliseconds of each size: (depth, width ratio, components), the most accurate first.
TIMES = {
    HERE: {(6, "1", 5): 9.0, (6, "1/2", 5): 7.0, (3, "1", 5): 4.0, (3, "1/2", 5): 3.0},
    OTHER: {(6, "1/2", 5): 1.0, (3, "1", 5): 0.5, (2, "1", 5): 0.1},
    GPU: {(6, "1", 5): 0.9, (3, "1", 5): 2.0},
}
SIZES = [(6, "1", 5), (6, "1/2", 5), (3, "1", 5), (3, "1/2", 5), (2, "1", 5), (1, "1", 5)]
OWN = {(6, "1", 5): HERE, (6, "1/2", 5): OTHER, (3, "1/2", 5): HERE, (2, "1", 5): OTHER}  # measured with the row


def timed_rows(devices: Sequence[str] = tuple(TIMES)) -> list[dict]:
    """Every size, the least accurate first; its latencies on these devices, one of its own and the rest profiles."""
    rows = []
    for place, size in enumerate(SIZES):
        depth, width, count = size
        row = OLD[0] | {"depth": depth, "width_ratio": width, "num_components": count, "accuracy": 0.9 - place / 10}
        times = {device: TIMES[device][size] for device in devices if size in TIMES[device]}
        if OWN.get(size) in times:
            row |= {"latency_ms": times.pop(OWN[size]), "device": OWN[size]}
        if times:
            row["profiles"] = [PROFILES[0] | {"device": device, "latency_ms": ms} for device, ms in times.items()]
        rows.append(row)
    return rows[::-1]


@pytest.fixture(scope="module")
def timed(source, tmp_path_factory) -> Path:
    """The bundle with latencies of three devices; read only."""
    folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("timed") / "bundle"))
    hub.write_sizes(folder, timed_rows())
    return folder


@pytest.fixture(params=["auto", "class"])
def loader(request):
    """The two ways in: they hand keywords over differently."""
    ways = {"auto": AutoModelForImageClassification, "class": LinGeneForImageClassification}
    return ways[request.param].from_pretrained


@pytest.mark.parametrize(
    "device, limit",
    [(None, 1e9), (None, 9), (None, 8.9), (None, 6.9), (None, 3), (OTHER, 1), (OTHER, 0.4), (GPU, 0.9), (GPU, 50)],
)
def test_a_latency_budget_takes_the_latencies_of_one_device(loader, timed, caplog, device, limit):
    """This one's unless another is named, of rows and profiles alike; one line says which size, why and whose time."""
    keywords = {"max_latency_ms": limit} | ({"latency_device": device} if device else {})
    within = [size for size, milliseconds in TIMES[device or HERE].items() if milliseconds <= limit]
    loaded = loader(timed, **keywords)
    best = min(within, key=SIZES.index)
    assert (loaded.source_size.depth, str(loaded.source_size.width_ratio)) == best[:2]
    assert (loaded.config.num_hidden_layers, loaded.config.hidden_size) == (best[0], 48 * Fraction(best[1]))
    (told,) = messages(caplog, "the most accurate")
    assert told == (
        f"{timed}: depth {best[0]}, width ratio {best[1]}, {best[2]} components: the most accurate "
        f"({90 - 10 * SIZES.index(best)}.0 %) of {len(within)} measured sizes within `max_latency_ms` {limit:g}, "
        f"with latency_ms {TIMES[device or HERE][best]:g} on {device or HERE}."
    )


NAN, INF = float("nan"), float("inf")
REFUSED = {
    "nothing fits": (
        {"max_latency_ms": 2},
        ["`max_latency_ms` 2: no measured size fits", "depth 3, width ratio 1/2, 5 components", "latency_ms 3"],
    ),
    "nothing fits on the other": (
        {"max_latency_ms": 0.01, "latency_device": OTHER},
        ["no measured size fits", "depth 2, width ratio 1, 5 components", "latency_ms 0.1"],
    ),
    "of two budgets one": (
        {"max_latency_ms": 100, "max_macs": 1},
        ["`max_macs` 1 and `max_latency_ms` 100", "no measured size fits", "macs 9"],
    ),
    "a device unheard of": (
        {"max_latency_ms": 5, "latency_device": "Abacus"},
        ["latencies of Abacus", HERE, OTHER, GPU, "lingene profile"],
    ),
    "a device without a budget": ({"latency_device": OTHER}, ["`latency_device`", "`max_latency_ms`"]),
    "a device with another budget": ({"latency_device": GPU, "max_macs": 9}, ["`latency_device`", "`max_latency_ms`"]),
    "a budget and a depth": ({"max_latency_ms": 5, "depth": 3}, ["`max_latency_ms`", "`depth`"]),
    "a budget and a width": (
        {"max_latency_ms": 5, "latency_device": GPU, "width_ratio": "1/2"},
        ["`max_latency_ms`", "`width_ratio`"],
    ),
    "a budget and components": ({"max_macs": 5, "num_components": 2}, ["`max_macs`", "`num_components`"]),
    **{
        f"{name} {limit!r}": ({name: limit}, [f"`{name}` must be a positive number", repr(limit)])
        for name in ("max_latency_ms", "max_macs", "max_params")
        for limit in (0, -1.5, -INF, NAN, True, False, "5")
    },
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_budget_that_says_nothing_or_cannot_be_met_is_refused(loader, timed, case):
    """Nothing is guessed: a size that is too slow by a little fails where the budget came from."""
    keywords, fragments = case
    with pytest.raises(ValueError) as caught:
        loader(timed, **keywords)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


@pytest.mark.parametrize("devices, known", [((OTHER,), [OTHER]), ((GPU, OTHER), [GPU, OTHER]), ((), [])], ids=str)
def test_latencies_of_other_devices_are_refused_and_it_is_said_what_to_do(loader, folder, devices, known):
    """Milliseconds of a fast machine bound nothing on a slow one."""
    hub.write_sizes(folder, timed_rows(devices))
    with pytest.raises(ValueError) as caught:
        loader(folder, max_latency_ms=1e9)
    told = str(caught.value)
    assert f"latencies of {HERE}" in told and "`lingene profile BUNDLE`" in told and "\n" not in told
    assert ("never measured" in told) == (not known) and ("latency_device=NAME" in told) == bool(known)
    assert f"measured on {', '.join(known)}:" in told if known else OTHER not in told


def test_a_profile_of_this_device_makes_a_latency_budget_work(loader, folder):
    """The way out that the message names."""
    hub.write_sizes(folder, timed_rows([OTHER]))
    times = {size_of(row): row["latency_ms"] for row in sweep.profile(folder)}
    limit = sorted(times.values())[3]
    best = min((size for size, milliseconds in times.items() if milliseconds <= limit), key=SIZES.index)
    loaded = loader(folder, max_latency_ms=limit)
    assert (loaded.source_size.depth, str(loaded.source_size.width_ratio), 5) == best


@pytest.mark.parametrize("keywords", [{"max_latency_ms": 5}, {"max_latency_ms": 5, "latency_device": OTHER}], ids=str)
def test_latencies_measured_on_other_weights_are_refused(loader, timed, tmp_path, keywords):
    """The times might hold; the accuracies beside them do not."""
    folder = Path(shutil.copytree(timed, tmp_path / "bundle"))
    edit(folder / "sizes.json", lambda sizes: sizes.update(weights_id="0" * 64))
    with pytest.raises(ValueError, match=r"`sizes\.json`.*`weights_id` differs"):
        loader(folder, **keywords)


@pytest.mark.parametrize(
    "devices, limit, best, whose",
    [
        (tuple(TIMES), 1.9, (6, "1", 5), GPU),
        (tuple(TIMES), 5, (6, "1", 5), GPU),
        ((HERE, OTHER), 5, (3, "1", 5), HERE),  # the GPU was never measured
    ],
    ids=str,
)
def test_on_a_machine_with_a_gpu_its_latencies_come_first(monkeypatch, devices, limit, best, whose):
    """A model is run where it is fastest, as every command does by default."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: GPU)
    config = helpers.tiny_config(**STORED)
    size, why = choose_size(timed_rows(devices), config, {"max_latency_ms": limit})
    assert size == config.size(*best) and why.endswith(f" on {whose}.")


def test_on_a_machine_with_a_gpu_both_its_devices_are_named_where_neither_was_measured(monkeypatch):
    """And a device that is named is the only one looked at."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "A slow GPU")
    config = helpers.tiny_config(**STORED)
    with pytest.raises(ValueError, match=re.escape(f"latencies of A slow GPU or {HERE}, and")):
        choose_size(timed_rows([OTHER]), config, {"max_latency_ms": 5})
    assert choose_size(timed_rows(), config, {"max_latency_ms": 0.4}, OTHER)[0] == config.size(2, "1", 5)


@pytest.mark.parametrize(
    "damage",
    [{"profiles": [{}]}, {"profiles": None}, {"profiles": [3]}, {"latency_ms": "fast", "device": HERE}],
    ids=str,
)
def test_damaged_latencies_are_refused_by_name(loader, folder, damage):
    """The file is written by a program and edited by hand; its other columns are checked."""
    hub.write_sizes(folder, [row | damage for row in timed_rows()])
    with pytest.raises(ValueError, match=r"`sizes\.json`.*damaged"):
        loader(folder, max_latency_ms=5)


# -- wrong input, and the command line


BAR = re.compile(r"\d%\|.*\|")  # of tqdm


@pytest.fixture
def lingene(capfd, monkeypatch):
    """Runs a command, with `pictures(12)` for `--data made`; its status and outputs without progress bars."""
    read_images = data.load_images
    monkeypatch.setattr(
        data, "load_images", lambda name, split: pictures(12) if name == "made" else read_images(name, split)
    )

    def run(*arguments) -> SimpleNamespace:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        errors = [line for line in re.split(r"[\r\n]+", captured.err) if line.strip() and not BAR.search(line)]
        return SimpleNamespace(code=code, out=captured.out, errors=errors)

    return run


def options(asked: dict) -> list[str]:
    """Keywords as they are written on the command line."""
    words = []
    for name, value in asked.items():
        if value is not False:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", *([text] if value is not True else [])]
    return words


def change_weights(folder: Path) -> None:
    tensors = load_file(folder / "component-01.safetensors")
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first] + 1}, folder / "component-01.safetensors")


def drop_head(folder: Path) -> None:
    config = LinGeneConfig.from_pretrained(folder)
    helpers.tiny_model(config, model_class=LinGeneModel).save_pretrained(folder)


def make_plain(folder: Path) -> None:
    vit = load(folder, 3, "1", 5)
    shutil.rmtree(folder)
    vit.save_pretrained(folder)


def stale_sizes(folder: Path) -> None:
    hub.write_json(folder / "sizes.json", {"weights_id": "0" * 64, "sizes": OLD})


# Keywords, what is done to the bundle before, and what the one line must say.
WRONG = {
    "sizes of all three kinds": (
        {"depths": (0, 3, -1), "widths": ("1/3", "1/2", "3/2"), "components": (0, 6, 2, 9)},
        None,
        [
            "`depth` must be an integer of at least 1, got 0",
            "`depth` must be an integer of at least 1, got -1",
            "1/3 of 4 heads",
            "3/2",
            "`num_components` must be an integer of at least 1, got 0",
            "`num_components` 6 is more than the 5 stored",
            "`num_components` 9 is more than the 5 stored",
        ],
    ),
    "depths": ({"depths": (0, -2)}, None, ["`depth`", "got 0", "got -2"]),
    "widths in words": ({"widths": ("half", "1/0")}, None, ["`width_ratio`", "'half'", "'1/0'"]),
    "untrained widths": (
        {"widths": ("3/4", "1", "1/4")},
        None,
        ["`widths` 1/4, 3/4 were never trained", "1/2, 1", "untrained"],
    ),
    "illegal ones although untrained ones are allowed": (
        {"widths": ("1/3", "1/4"), "allow_untrained": True},
        None,
        ["`width_ratio`", "1/3 of 4 heads"],
    ),
    "batches of nothing": ({"batch_size": 0}, None, ["`batch_size`", "at least 1", "got 0"]),
    "negative batches": ({"batch_size": -3}, None, ["`batch_size`", "at least 1", "got -3"]),
    "no such device": ({"device": "abacus"}, None, ["`device` abacus"]),
    "no classifier": ({}, drop_head, ["`bundle`", "no classifier"]),
    "a plain model": ({}, make_plain, ["`bundle`"]),
    "weights changed on disk": ({}, change_weights, ["`weights_id`", "save the bundle again"]),
    "a file of weights missing": (
        {},
        lambda folder: (folder / "component-02.safetensors").unlink(),
        ["lacks component-02.safetensors"],
    ),
    "sizes of other weights": ({}, stale_sizes, ["`sizes.json`", "other weights", "`weights_id`"]),
    "no preprocessing": (
        {},
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        ["preprocessor_config.json"],
    ),
    "a folder that is not there": ({}, shutil.rmtree, ["`bundle`"]),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_input_of_a_sweep_is_told_in_one_line_before_anything_is_written(
    lingene, folder, tmp_path, work, caplog, case
):
    """All that is wrong with a grid at once: a sweep that fails after an hour costs the hour."""
    asked, damage, fragments = case
    if damage:
        damage(folder)
        forget(work)
    before = files(tmp_path)
    with pytest.raises((ValueError, OSError)) as caught:
        sweep.sweep(folder, pictures(12), **asked)
    told = lingene("sweep", folder, "--data", "made", *options(asked))
    assert (told.code, told.out) == (2, "")
    assert told.errors == [f"lingene sweep: {' '.join(str(caught.value).split())}"]
    assert [fragment for fragment in fragments if fragment not in told.errors[0]] == []
    assert work.loads == [] and files(tmp_path) == before


def test_labels_outside_of_the_classes_are_refused(lingene, folder, tmp_path):
    """They would all count as wrong; the digits have three classes more than the bundle."""
    pytest.importorskip("sklearn")
    before = files(tmp_path)
    told = lingene("sweep", folder, "--data", "digits")
    assert told.code == 2 and len(told.errors) == 1 and told.out == ""
    assert told.errors[0].startswith("lingene sweep: `num_labels`") and "9 is outside 0..6" in told.errors[0]
    assert files(tmp_path) == before


def test_a_name_on_the_hub_needs_a_place_for_the_results(lingene, tmp_path, monkeypatch):
    """There is no folder to write to, and a new one of that name would look like the bundle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "read_config", lambda name: helpers.tiny_config(**STORED))
    with pytest.raises(ValueError, match="`out`.*org/name is a name on the Hub"):
        sweep.sweep("org/name", pictures(12))
    told = lingene("sweep", "org/name", "--data", "made")
    assert told.code == 2 and len(told.errors) == 1 and "`out`" in told.errors[0]
    assert files(tmp_path) == {}


def test_a_set_without_images_is_refused(folder):
    """The message for it is there, and is not reached."""
    with pytest.raises(ValueError, match="at least one image"):
        sweep.sweep(folder, dataclasses.replace(pictures(12), images=[], labels=[]), **GRID)


def test_a_bundle_without_trained_widths_is_refused_and_nothing_is_written(tmp_path):
    """Or measured at full width; but not half of each."""
    folder = helpers.bundle(tmp_path / "bundle", helpers.tiny_config(trained_width_ratios=[], **STORED))
    image_processor(16).save_pretrained(folder)
    before = files(folder)
    with pytest.raises(ValueError):
        sweep.sweep(folder, pictures(12))
    assert files(folder) == before


@pytest.mark.parametrize("asked", [{}, {"out": "out", "latency": False}, {"components": (1, 3)}], ids=str)
def test_the_command_prints_every_size_and_where_the_files_are(lingene, folder, tmp_path, asked):
    """The same numbers as in the file, the most accurate first."""
    where = tmp_path / asked["out"] if "out" in asked else folder
    words = options({"widths": ("1/2",), "components": asked.get("components", (5,))})
    words += ["--out", where] * ("out" in asked) + ["--no-latency"] * ("latency" in asked)
    told = lingene("sweep", folder, "--data", "made", "--depths", "2,3", *words)
    assert (told.code, told.errors) == (0, [])
    rows = read(where / "sizes.json")["sizes"]
    assert sorted({row["depth"] for row in rows}) == [2, 3] and len(rows) == 2 * len(asked.get("components", (5,)))
    assert ("latency" in told.out) == ("latency" not in asked) == ("latency_ms" in rows[0])
    assert_shown(rows, told.out)
    assert f"numbers  {where / 'sizes.json'}\n" in told.out
    assert f"plots    {where / 'sizes.png'}, {where / 'sizes_heat.png'}\n" in told.out


def test_an_interrupted_sweep_exits_130_and_the_same_command_goes_on(lingene, folder, work):
    """What a shell expects of a program that was stopped with Ctrl-C."""
    command = ("sweep", folder, "--data", "made", *options(GRID | {"batch_size": 12}))
    work.stop_at = 3
    told = lingene(*command)
    assert (told.code, told.out) == (130, "")
    assert told.errors[-1] == "lingene sweep: interrupted. Run the same command again to go on."
    assert (folder / PROGRESS).exists() and not (folder / "sizes.json").exists()
    forget(work)
    told = lingene(*command)
    assert told.code == 0 and work.loads == ORDER[2:] and len(table(told.out)) == 3
    assert not (folder / PROGRESS).exists()


def test_the_profile_command_prints_each_shape_once_and_where_it_was_written(lingene, measured):
    """Fastest first; sizes that differ in components alone are as fast."""
    told = lingene("profile", measured, "--batch-size", 4, "--threads", 2)
    assert (told.code, told.errors) == (0, [])
    profiles = [row["profiles"][0] for row in read(measured / "sizes.json")["sizes"]]
    shown = table(told.out)
    assert [(line["depth"], line["width"]) for line in shown] == [("3", "1/2"), ("6", "1")]
    for line, profile in zip(shown, [profiles[2], profiles[0]]):
        assert number(line["latency"]) == pytest.approx(profile["latency_ms"], rel=5.1e-3)
        assert number(line["spread (IQR)"]) == pytest.approx(profile["iqr_ms"], rel=5.1e-2)
        assert number(line["images/s"]) == pytest.approx(profile["images_per_second"], rel=5.1e-4)
    assert f"one image, and 4 at once, on {device_name('cpu', 2)}\n" in told.out
    assert f"numbers  {measured / 'sizes.json'}\n" in told.out


def test_a_profile_is_measured(lingene, folder, tmp_path, monkeypatch):
    """The one test with a clock: without measured sizes, on the command line, in bfloat16."""
    monkeypatch.setattr(sweep, "latency_ms", metrics.latency_ms)
    asked = {"depths": (1,), "widths": ("1/4",), "components": (1, 2), "dtype": "bfloat16", "batch_size": 2}
    told = lingene("profile", folder, *options(asked), "--out", tmp_path / "profile.json")
    assert (told.code, told.errors) == (0, [])
    one, two = read(tmp_path / "profile.json")["profiles"]
    assert [size_of(one), size_of(two)] == [(1, "1/4", 2), (1, "1/4", 1)]
    assert one | {"num_components": 1} == two and one["device"] == f"{HERE}, bfloat16"
    assert all(math.isfinite(one[key]) and one[key] > 0 for key in ("latency_ms", "images_per_second"))
    assert not (folder / "sizes.json").exists() and "sizes.json" not in told.out
    (line,) = table(told.out)
    assert number(line["latency"]) == pytest.approx(one["latency_ms"], rel=5.1e-3)


@pytest.mark.parametrize(
    "words, size",
    [(["--max-latency-ms", 7], (6, "1/2")), (["--max-latency-ms", 0.5, "--latency-device", OTHER], (3, "1"))],
    ids=str,
)
def test_materialise_takes_a_latency_budget_and_whose_it_is(lingene, timed, tmp_path, words, size):
    """The same words with dashes."""
    told = lingene("materialise", timed, *words, "--out", tmp_path / "vit")
    assert (told.code, told.errors) == (0, [])
    config = read(tmp_path / "vit" / "config.json")
    assert (config["num_hidden_layers"], config["hidden_size"]) == (size[0], 48 * Fraction(size[1]))


@pytest.mark.parametrize("words", [["--latency-device", OTHER], ["--max-latency-ms", "nan"], ["--max-macs", "-1"]])
def test_a_wrong_budget_on_the_command_line_is_one_line(lingene, timed, tmp_path, words):
    """Status 2, and no model."""
    told = lingene("materialise", timed, *words, "--out", tmp_path / "vit")
    assert told.code == 2 and len(told.errors) == 1 and "`max_" in told.errors[0]
    assert list(tmp_path.iterdir()) == []


# -- the heat map


def heat_rows() -> list[dict]:
    """Three depths, two widths, four counts, with gaps."""
    names = itertools.product((3, 4, 12), ("1/2", "1"), (1, 2, 4, 6))
    rows = [
        {"depth": d, "width_ratio": w, "num_components": k, "accuracy": (d + k) / 20 + (w == "1") / 10}
        for d, w, k in names
    ]
    return [row for index, row in enumerate(rows) if index not in (0, 13, 18)]


@pytest.fixture
def figures(monkeypatch) -> list:
    """Figures, kept instead of written."""
    kept = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: kept.append(figure))
    return kept


@pytest.mark.parametrize("rows", [heat_rows(), heat_rows()[:1], heat_rows()[::-3]], ids=["all", "one", "some"])
def test_every_size_is_a_number_at_its_place_in_the_heat_map(figures, tmp_path, rows):
    """Read back from the figure by its axes; sizes that were not measured stay empty."""
    plots.plot_heat(rows, tmp_path / "x.png", "title")
    (figure,) = figures
    drawn, first = {}, figure.axes[0]
    depths = dict(zip(first.get_yticks(), [tick.get_text() for tick in first.get_yticklabels()]))
    for panel in figure.axes[:-1]:  # the last is the bar of colours
        assert panel is first or panel.get_shared_y_axes().joined(panel, first)
        counts = dict(zip(panel.get_xticks(), [tick.get_text() for tick in panel.get_xticklabels()]))
        for text in panel.texts:
            x, y = text.get_position()
            size = (int(depths[y]), panel.get_title().removeprefix("width "), int(counts[x]))
            assert size not in drawn
            drawn[size] = text.get_text()
            (image,) = panel.get_images()
            assert image.get_array()[y][x] == pytest.approx(float(text.get_text()), abs=0.0501)
    assert sum(len(panel.texts) for panel in figure.axes) == len(rows)
    assert drawn == {size_of(row): f"{100 * row['accuracy']:.1f}" for row in rows}
    pictures = [image.get_array() for panel in figure.axes for image in panel.get_images()]
    empty = sum(int(numpy.ma.getmaskarray(picture).sum()) for picture in pictures)
    grid = math.prod(len({row[key] for row in rows}) for key in ("depth", "width_ratio", "num_components"))
    assert empty == grid - len(rows)


def test_the_heat_map_is_a_png_that_replaces_an_old_one(tmp_path):
    """Folders are made, and nothing else is left."""
    from PIL import Image

    for rows in (heat_rows(), [row | {"accuracy": 0.0} for row in heat_rows()]):
        plots.plot_heat(rows, tmp_path / "new" / "heat.png")
        with Image.open(tmp_path / "new" / "heat.png") as picture:
            picture.load()
            assert picture.format == "PNG"
        assert os.listdir(tmp_path / "new") == ["heat.png"]


def test_a_heat_map_of_nothing_is_refused(tmp_path):
    """An empty picture would look like a result."""
    with pytest.raises(ValueError, match="`rows` must hold at least one size"):
        plots.plot_heat([], tmp_path / "heat.png")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_without_matplotlib_keeps_its_numbers(folder, monkeypatch):
    """They took the time; the message names what to install."""
    monkeypatch.setattr(sweep, "plot_sizes", plots.plot_sizes)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"modeling_lingene\[analysis\]"):
        sweep.sweep(folder, pictures(4), **GRID)
    assert len(json.loads((folder / "sizes.json").read_text())["sizes"]) == 3 and not (folder / PROGRESS).exists()
