"""Laws of a sweep: its rows are what a user gets who loads that size; images are decoded once; rows add up.

pytest tests/measuring/sweep
"""

import dataclasses
import itertools
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sweeping import (
    GRID,
    HERE,
    OLD,
    ORDER,
    OTHER,
    PIXEL_BYTES,
    PROFILES,
    as_pixels,
    counted,
    load,
    made_up_run,
    made_up_time,
    made_up_timing,
    messages,
    once,
    pictures,
    share_right,
    size_of,
    swept,
    watched,
    weights_id,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification

import helpers
from helpers import files, read
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, folders
from modeling_lingene.images.contents import pictures_id
from modeling_lingene.images.data import EncodedImages
from modeling_lingene.measuring import drawing, metrics, sweep
from modeling_lingene.measuring.grids import grid_sizes
from modeling_lingene.measuring.merging import merged


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> SimpleNamespace:
    """A sweep of the default grid over 42 images, with pictures."""
    folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("whole") / "bundle"))
    images = watched(42)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics, "latency_ms", made_up_time)
        patched.setattr(metrics, "timing_run", made_up_run)
        rows = sweep.sweep(folder, images, batch_size=16)
    return SimpleNamespace(folder=folder, images=images, rows=rows)


def test_the_default_grid_is_what_was_trained_with_components_doubling_up_to_all(whole):
    """Every size once, largest first."""
    grid = itertools.product((6, 3), ("1", "1/2"), (5, 4, 2, 1))
    assert [size_of(row) for row in whole.rows] == list(grid)


@pytest.mark.parametrize("trained, counts", [(None, [5, 4, 2, 1]), ([5], [5]), ([1, 3, 5], [5, 3, 1]), ([], [5])])
def test_the_default_grid_has_the_numbers_of_components_that_were_trained(trained, counts):
    """Where it is recorded: a lossless conversion's first components are no model to measure."""
    sizes = grid_sizes(helpers.tiny_config(trained_components=trained), (6,), ("1",), ())
    assert [size.num_components for size in sizes] == counts


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
            "pictures_id": pictures_id(images),
            **counted(share_right(whole.folder, images, *size), 42),
            **made_up_timing(model),
        }
    assert len({row["accuracy"] for row in whole.rows}) > 8  # otherwise a mix-up of sizes would not show


def test_sizes_that_differ_in_components_alone_are_timed_once(folder, monkeypatch):
    """They are the same network, among which the noise of a clock would choose; another shape has its own time."""
    times = itertools.count(1)
    monkeypatch.setattr(metrics, "latency_ms", lambda *_, **__: {"median": float(next(times)), "iqr": 0.0})
    rows = sweep.sweep(folder, pictures(2), depths=(6, 3), components=(5, 2))
    told = {}
    for row in rows:
        told.setdefault((row["depth"], row["width_ratio"]), []).append(row["latency_ms"])
    assert list(told.values()) == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]


def test_images_are_decoded_once_for_all_sizes(whole):
    """Decoding costs more than a small model."""
    assert whole.images.images.decoded == once(42)


def test_sizes_json_holds_the_rows_tied_to_the_weights_and_nothing_else_is_left(whole, source):
    """The file that loading by budget and cards read."""
    assert read(whole.folder / "sizes.json") == {"weights_id": weights_id(source), "sizes": whole.rows}
    assert files(whole.folder).keys() - files(source).keys() == {"sizes.json", "sizes.png", "sizes_heat.png"}


@pytest.mark.parametrize("limit", [2.1e6, 1.5e6, 1e6, 4e5])
def test_what_was_swept_can_be_loaded_by_budget(whole, limit):
    """Of the rows within a standard error of the most accurate one the one of fewest MACs, parameters, download."""
    loaded = AutoModelForImageClassification.from_pretrained(whole.folder, max_macs=limit)
    within = [row for row in whole.rows if row["macs"] <= limit]
    top = max(within, key=lambda row: (row["accuracy"], -row["macs"], -row["params"], -row["stored_params"]))
    least = top["accuracy"] - top["standard_errors"]["accuracy"]
    near = [row for row in within if row["accuracy"] >= least]
    best = min(near, key=lambda row: (row["macs"], row["params"], row["stored_params"]))
    with torch.no_grad():
        pixels = helpers.images()
        assert torch.equal(loaded(pixels).logits, load(whole.folder, *size_of(best))(pixels).logits)


@pytest.mark.parametrize("name", ["sizes.png", "sizes_heat.png"])
def test_the_pictures_of_a_sweep_open(whole, name):
    """Drawn after the numbers are safe."""
    from PIL import Image

    with Image.open(whole.folder / name) as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 200 * drawing.DPI / helpers.DPI
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


AGAIN = OLD[0] | {"depth": 3, "width_ratio": "1/2", "latency_ms": 77.0, "device": OTHER}


def test_rows_of_other_sizes_on_the_same_images_stay_as_they_are(folder, caplog):
    """Sweeps of two grids add up, and nothing is warned of."""
    old = [OLD[0] | {"latency_ms": 3.0, "device": OTHER, "profiles": PROFILES}, AGAIN]
    rows, merged = swept(folder, caplog, old)
    assert sorted(merged, key=size_of) == sorted([old[0], *rows], key=size_of)
    assert messages(caplog, "replaced") == []


@pytest.mark.parametrize("change, kept", [({}, 1), ({"split": "test"}, 0)], ids=["same images", "other images"])
def test_the_pictures_show_all_sizes_of_the_file(folder, caplog, monkeypatch, change, kept):
    """Their captions on the card count those; a sweep of one size more leaves the others where they are."""
    drawn = []
    for name in ("plot_sizes", "plot_heat"):
        plot = getattr(sweep, name)
        monkeypatch.setattr(sweep, name, lambda rows, *given, plot=plot: drawn.append(rows) or plot(rows, *given))
    rows, merged = swept(folder, caplog, [OLD[0] | {"depth": 4} | change])
    assert len(merged) == len(rows) + kept
    assert [sorted(map(size_of, shown)) for shown in drawn] == 2 * [sorted(map(size_of, merged))]


@pytest.mark.parametrize(
    "change", [{"dataset": "unmade"}, {"split": "test"}, {"images": 3}, {"pictures_id": "others"}], ids=str
)
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


def test_rows_of_other_weights_in_out_are_not_taken_over(folder, tmp_path):
    """A folder of results may hold those of the bundle before it was trained on."""
    folders.write_json(tmp_path / "out" / "sizes.json", {"weights_id": "0" * 64, "sizes": [OLD[0] | {"depth": 2}]})
    rows = sweep.sweep(folder, pictures(4), out=tmp_path / "out", depths=(3,), widths=("1",), components=(5,))
    assert read(tmp_path / "out" / "sizes.json")["sizes"] == rows


def test_a_process_evaluates_all_of_its_images_where_parts_and_processes_do_not_divide_them(folder, monkeypatch):
    """Of five images the first of two processes has three, in parts of two: rounding down loses the last."""
    config = LinGeneConfig.from_pretrained(folder)
    monkeypatch.setattr(sweep, "HELD_BYTES", 2 * 4 * 3 * 16 * 16)
    monkeypatch.setattr(sweep, "reduce", lambda counts, reduction: counts)  # as if alone
    held = sweep.batches(pictures(5), sweep.read_processor(folder), 4)
    found = sweep.measured(folder, held, [config.size(3)], latency=False, process=(0, 2), progress=False)
    assert [(one["images"], one["parts"]) for one in found.values()] == [(3, 2)]


def test_a_latency_taken_with_a_row_replaces_older_profiles_of_that_device_alone():
    """Two latencies of one device would contradict each other; those of other devices are as good as ever."""
    old = OLD[0] | {"profiles": [PROFILES[0] | {"device": HERE}, *PROFILES]}
    new = OLD[0] | {"latency_ms": 7.0, "device": HERE}
    assert merged([old], [new]) == [new | {"profiles": PROFILES}]
