"""`lingene sweep` and `lingene profile`: what they print and draw, and what wrong input gets."""

import dataclasses
import itertools
import json
import math
import os
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
from safetensors.torch import load_file, save_file
from sweeping import (
    GRID,
    HERE,
    OLD,
    ORDER,
    OTHER,
    PROGRESS,
    STORED,
    assert_shown,
    forget,
    load,
    options,
    pictures,
    size_of,
)

import helpers
from helpers import files, number, read, table, told_by
from lingene import telling
from lingene.main import options_of
from modeling_lingene import LinGeneConfig, LinGeneModel, folders, hub
from modeling_lingene.budget_lingene import device_name
from modeling_lingene.images.batches import image_processor
from modeling_lingene.measuring import metrics, plots, profiling, sweep
from modeling_lingene.measuring.evaluation import evaluate_model


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
    folders.write_json(folder / "sizes.json", {"weights_id": "0" * 64, "sizes": OLD})


# Keywords, what is done to the bundle before, and what the one line must say.
WRONG = {
    "sizes of all three kinds": (
        {"depths": (0, 3, -1), "widths": ("1/3", "1/2", "3/2"), "components": (0, 6, 2, 9)},
        None,
        [
            "`depths` must be an integer of at least 1, got 0",
            "`depths` must be an integer of at least 1, got -1",
            "1/3 of 4 heads",
            "3/2",
            "`components` must be an integer of at least 1, got 0",
            "`components` 6 is more than the 5 stored",
            "`components` 9 is more than the 5 stored",
        ],
    ),
    "depths": ({"depths": (0, -2)}, None, ["`depths`", "got 0", "got -2"]),
    "widths in words": ({"widths": ("half", "1/0")}, None, ["`widths`", "'half'", "'1/0'"]),
    "untrained widths": (
        {"widths": ("3/4", "1", "1/4")},
        None,
        ["`widths` 1/4, 3/4 were never trained", "1/2, 1", "untrained"],
    ),
    "illegal ones although untrained ones are allowed": (
        {"widths": ("1/3", "1/4"), "allow_untrained": True},
        None,
        ["`widths`", "1/3 of 4 heads"],
    ),
    "batches of nothing": ({"batch_size": 0}, None, ["`batch_size`", "at least 1", "got 0"]),
    "negative batches": ({"batch_size": -3}, None, ["`batch_size`", "at least 1", "got -3"]),
    "no such device": ({"device": "abacus"}, None, ["`device` abacus"]),
    "no classifier": ({"metric": "accuracy"}, drop_head, ["`metric` accuracy", "no classifier", "knn, probe, cosine"]),
    "an unknown metric": ({"metric": "knn,luck"}, None, ["`metric`", "accuracy, knn, probe, cosine", "'luck'"]),
    "a reference of an accuracy": ({"reference": "somebody"}, None, ["`reference`", "`metric` is accuracy"]),
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
    said = " ".join(str(caught.value).split())
    assert told.errors == [f"lingene sweep: {telling.in_flags(said, telling.flags_of(options_of('sweep')))}"]
    assert [fragment for fragment in fragments if fragment not in said] == []
    assert work.loads == [] and files(tmp_path) == before


def test_labels_outside_of_the_classes_are_refused(lingene, folder, tmp_path):
    """They would all count as wrong; the digits have three classes more than the bundle."""
    pytest.importorskip("sklearn")
    before = files(tmp_path)
    told = lingene("sweep", folder, "--data", "digits")
    assert told.code == 2 and len(told.errors) == 1 and told.out == ""
    assert told.errors[0].startswith("lingene sweep: `num_labels`") and "9 is outside 0..6" in told.errors[0]
    assert files(tmp_path) == before


def test_classes_are_compared_by_name_and_found_in_any_order(lingene, folder, tmp_path):
    """Ten clothes measured as flowers give the accuracy of chance and look like a result."""
    fields = read(folder / "config.json")
    fields["id2label"] = {str(n): f"class {n}" for n in range(7)}
    fields["label2id"] = {f"class {n}": n for n in range(7)}
    folders.write_json(folder / "config.json", fields)
    images, size = pictures(12), {"depth": 6}
    others = dataclasses.replace(images, class_names=[f"thing {n}" for n in range(7)])
    turned = dataclasses.replace(
        images,
        class_names=images.class_names[1:] + images.class_names[:1],
        labels=[(label - 1) % 7 for label in images.labels],
    )
    for run in (
        lambda made, **way: sweep.sweep(folder, made, depths=(6,), components=(5,), out=tmp_path / "out", **way)[0],
        lambda made, **way: evaluate_model(folder, size, made, **way),
    ):
        with pytest.raises(ValueError, match=r"has no class thing 0.* of made; it knows class 0.*--relabel"):
            run(others)
        known = run(images)["accuracy"]
        assert run(turned)["accuracy"] == run(others, relabel=True)["accuracy"] == known
        assert run(turned, relabel=True)["accuracy"] != known
    assert not (tmp_path / "out" / "sweep.json").exists()


def test_a_name_on_the_hub_needs_a_place_for_the_results(lingene, tmp_path, monkeypatch):
    """There is no folder to write to, and a new one of that name would look like the bundle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "read_config", lambda name: helpers.tiny_config(**STORED))
    with pytest.raises(ValueError, match="`out`.*org/name is a name on the Hub"):
        sweep.sweep("org/name", pictures(12))
    told = lingene("sweep", "org/name", "--data", "made")
    assert told.code == 2 and len(told.errors) == 1 and "`--out`" in told.errors[0]
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


@pytest.mark.parametrize("again", ["the same command", "its folder"])
@pytest.mark.parametrize("out", [None, "results"])
def test_an_interrupted_sweep_exits_130_and_goes_on_by_the_same_command_or_its_folder(
    lingene, folder, work, tmp_path, monkeypatch, out, again
):
    """What a shell expects of a program that was stopped with Ctrl-C; and a grid is long to type again."""
    where = tmp_path / out if out else folder
    command = ["sweep", folder, "--data", "made", *options(GRID | {"batch_size": 12})]
    command += ["--out", where] if out else []
    work.stop_at = 3
    told = lingene(*command)
    assert (told.code, told.out) == (130, "")
    assert told.errors[-1] == f"lingene sweep: interrupted. lingene sweep --resume {where} goes on."
    assert (where / PROGRESS).exists() and not (where / "sizes.json").exists()
    forget(work)
    told = lingene(*command if again == "the same command" else ["sweep", "--resume", where])
    assert told.code == 0 and work.loads == ORDER[2:] and len(table(told.out)) == 3
    assert (where / "sizes.json").exists() and not (where / PROGRESS).exists()


def test_sweep_and_profile_render_the_card_of_the_folder_again_where_it_has_one(lingene, folder, tmp_path):
    """A card that tells other numbers than the file beside it is worse than none."""
    command = ["sweep", folder, "--data", "made", *options(GRID)]
    assert "card " not in lingene(*command).out and not (folder / "README.md").exists()
    hub.write_card(folder, "org/name")
    pages = [(folder / "README.md").read_text()]
    for words in (
        ["sweep", folder, "--data", "made", "--depths", 1],
        ["profile", folder, "--batch-size", 2, "--threads", 2],
    ):
        told = lingene(*words)
        assert told.code == 0 and f"card     {folder / 'README.md'}\n" in told.out
        pages.append((folder / "README.md").read_text())
        assert told_by(pages[-1]) == told_by(hub.render_card(folder, "org/name"))
    assert "All 4 measured sizes" not in pages[0] and "measured sizes</summary>" in pages[1]
    told = lingene(*command, "--out", tmp_path / "results")
    assert told.code == 0 and "card " not in told.out and (folder / "README.md").read_text() == pages[-1]


def test_a_sweep_that_is_gone_on_with_refuses_other_flags_and_a_folder_without_one(lingene, folder, work):
    """They would be left out without a word."""
    assert lingene("sweep", "--resume", folder).code == 2
    work.stop_at = 1
    assert lingene("sweep", folder, "--data", "made", *options(GRID)).code == 130
    forget(work)
    for words, named in ((["--depths", "2"], "`--depths`"), (["--data", "other"], "`--data`")):
        told = lingene("sweep", "--resume", folder, *words)
        assert told.code == 2 and len(told.errors) == 1 and named in told.errors[0]
    assert lingene("sweep").code == 2 and lingene("sweep", folder).code == 2


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
    monkeypatch.setattr(profiling, "latency_ms", metrics.latency_ms)
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
    assert told.code == 2 and len(told.errors) == 1 and "`--max-" in told.errors[0]
    assert list(tmp_path.iterdir()) == []


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
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.append(figure))
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
