"""Laws of sweeps and evaluations without a classifier: rows are what a user finds who loads that size."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from sweeping import HERE, OLD, PROGRESS, RUN, Watched, as_pixels, made_up_run, made_up_time, messages, size_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, ViTConfig, ViTModel

import helpers
from helpers import edit, files, read, table
from modeling_lingene import LinGeneModel, folders
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.measuring import encoders, evaluation, features, metrics, profiling, sweep, yardsticks
from modeling_lingene.measuring.evaluation import evaluate_data, evaluate_model


STORED = {"depth": None, "num_components": None, "reference_depth": 6, "reference_components": 5}
GRID = {"depths": (6, 3), "components": (5, 2)}
ORDER = [(depth, width, count) for depth in (6, 3) for width in ("1", "1/2") for count in (5, 2)]


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """No clock."""
    for module in (encoders, metrics):
        monkeypatch.setattr(module, "latency_ms", made_up_time)
        monkeypatch.setattr(module, "timing_run", made_up_run)
    monkeypatch.setattr(sweep, "count_macs", metrics.count_macs)


def photos(count: int, seed: int, split: str) -> LabelledImages:
    """Pictures of three classes, told by their brightness, but for noise."""
    made = helpers.pictures(count, seed=seed)
    labels = [index % 3 for index in range(count)]
    images = [one.point(lambda value, add=label: value // 3 + 25 * add) for one, label in zip(made.images, labels)]
    return LabelledImages(images, labels, ["dark", "grey", "light"], "photos", split)


TEST, TRAIN = photos(15, 1, "test"), photos(24, 2, "train")
PICTURES = dataclasses.replace(TEST, labels=[0] * 15, class_names=["image"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """An encoder bundle of trained depths 3 and 6 and widths 1/2 and 1; read only."""
    folder = tmp_path_factory.mktemp("encoder") / "bundle"
    config = helpers.tiny_config(trained_depths=[6, 3], **STORED)
    helpers.tiny_model(config, model_class=LinGeneModel).save_pretrained(folder)
    image_processor(16).save_pretrained(folder)
    return folder


@pytest.fixture
def bundle(encoder, tmp_path) -> Path:
    return Path(shutil.copytree(encoder, tmp_path / "bundle"))


def tokens(folder: Path, images: LabelledImages, *size) -> numpy.ndarray:
    """(n, t, d) of a size as users load it."""
    named = dict(zip(("depth", "width_ratio", "num_components"), size))
    model = AutoModel.from_pretrained(folder, allow_untrained=True, **named).eval()
    with torch.no_grad():
        return model(as_pixels(images.images)).last_hidden_state.double().numpy()


def unit(values: numpy.ndarray) -> numpy.ndarray:
    return values / numpy.linalg.norm(values, axis=-1, keepdims=True)


def knn(folder: Path, *size) -> float:
    """Weighted votes of the 20 nearest, by loops."""
    queries, voters = (unit(tokens(folder, images, *size)[:, 0]) for images in (TEST, TRAIN))
    right = 0
    for query, label in zip(queries, TEST.labels):
        near = sorted(zip(voters @ query, TRAIN.labels), reverse=True)[:20]
        votes = [sum(math.exp(s / 0.07) for s, other in near if other == name) for name in range(3)]
        right += votes.index(max(votes)) == label
    return right / len(queries)


def cosines(found: numpy.ndarray, expected: numpy.ndarray) -> dict[str, float]:
    both = (unit(found) * unit(expected[..., : found.shape[-1]])).sum(-1)
    columns = {"cosine": both[:, 0], "patch_cosine": both[:, 1:].mean(1)}
    fields = {}
    for name, values in columns.items():
        fields |= {name: values.mean(), f"{name}_p5": numpy.percentile(values, 5)}
    return fields


def without(row: dict, metric: str) -> dict:
    """A row that was not measured by a metric."""
    errors = {name: error for name, error in row["standard_errors"].items() if name != metric}
    return {key: value for key, value in row.items() if key != metric} | {"standard_errors": errors}


def close(rows: list[dict]) -> list:
    """Rows to compare with: how floats add up depends on where in memory they lie, which the last digit may show."""
    return [
        {key: pytest.approx(value, abs=3e-6) if "cosine" in key else value for key, value in row.items()}
        for row in rows
    ]


@pytest.fixture(scope="module")
def whole(encoder, tmp_path_factory) -> SimpleNamespace:
    """A sweep of all four measures that a classifier does not need, and how often each image was decoded."""
    folder = Path(shutil.copytree(encoder, tmp_path_factory.mktemp("whole") / "bundle"))
    images = dataclasses.replace(TEST, images=Watched(TEST.images))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoders, "latency_ms", made_up_time)
        patched.setattr(encoders, "timing_run", made_up_run)
        rows = sweep.sweep(folder, images, metric="knn,probe,cosine", train=TRAIN, batch_size=4, **GRID)
    return SimpleNamespace(folder=folder, rows=rows, decoded=images.images.decoded)


def test_every_row_is_what_a_user_finds_who_loads_that_size(whole):
    """k-NN and agreement by numpy, costs from the model itself; what is downloaded is without a head."""
    expected = tokens(whole.folder, TEST)
    assert [size_of(row) for row in whole.rows] == ORDER
    for row in whole.rows:
        size = size_of(row)
        model = AutoModel.from_pretrained(
            whole.folder, depth=size[0], width_ratio=size[1], num_components=size[2], attn_implementation="eager"
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(as_pixels(TEST.images[:1]))
        named = dict(zip(("depth", "width_ratio", "num_components"), size))
        constrained = LinGeneModel.from_pretrained(whole.folder, constrained=True, **named)
        assert row["params"] == sum(parameter.numel() for parameter in model.parameters())
        assert row["stored_params"] == sum(parameter.numel() for parameter in constrained.parameters())
        assert row["macs"] == counter.get_total_flops() / 2
        assert (row["metric"], row["knn"]) == ("knn", round(knn(whole.folder, *size), 6))
        agreed = cosines(tokens(whole.folder, TEST, *size), expected)
        assert {name: row[name] for name in agreed} == pytest.approx(agreed, abs=2e-6)
        assert (row["reference"], row["split"], row["dataset"]) == ("the full size", "test", "photos")
        assert (row["device"], "accuracy" in row, row["images"]) == (HERE, False, 15)
        assert {name: row[name] for name in RUN} == RUN and row["iqr_ms"] > 0
        errors = {name: math.sqrt(row[name] * (1 - row[name]) / 15) for name in ("knn", "probe")}
        both = (unit(tokens(whole.folder, TEST, *size)) * unit(expected[..., : int(48 * Fraction(size[1]))])).sum(-1)
        errors["cosine"] = both[:, 0].std(ddof=1) / math.sqrt(15)
        assert row["standard_errors"] == pytest.approx(errors, abs=2e-6)
    assert len({row["knn"] for row in whole.rows}) > 3 and len({row["cosine"] for row in whole.rows}) == len(ORDER)


def test_the_full_size_agrees_with_itself_and_no_other_does(whole):
    """A law of any weights."""
    first, *others = whole.rows
    assert {first[name] for name in ("cosine", "cosine_p5", "patch_cosine", "patch_cosine_p5")} == {1.0}
    assert all(row["cosine"] < 0.99 and row["patch_cosine"] < 0.99 for row in others)


def test_the_probe_of_a_row_is_scikit_learns(whole):
    """On the class tokens of both parts."""
    linear = pytest.importorskip("sklearn.linear_model")
    from sklearn.preprocessing import StandardScaler

    for row in whole.rows[1::3]:
        known, asked = (tokens(whole.folder, images, *size_of(row))[:, 0] for images in (TRAIN, TEST))
        scaler = StandardScaler().fit(known)
        probe = linear.LogisticRegression(max_iter=1000).fit(scaler.transform(known), TRAIN.labels)
        assert row["probe"] == round(probe.score(scaler.transform(asked), TEST.labels), 6)


def test_images_are_decoded_once_for_all_sizes_and_the_reference(whole):
    """And four of them once more, to tell the set from another one."""
    assert whole.decoded == {index: 1 + (index in (0, 5, 7, 14)) for index in range(15)}


def test_what_was_swept_can_be_loaded_by_budget_and_is_tied_to_the_weights(whole, encoder):
    """The file holds the rows; the budget goes by k-NN."""
    stored = read(whole.folder / "sizes.json")
    assert stored == {"weights_id": read(encoder / "config.json")["weights_id"], "sizes": whole.rows}
    assert files(whole.folder).keys() - files(encoder).keys() == {"sizes.json", "sizes.png", "sizes_heat.png"}
    limit = sorted(row["macs"] for row in whole.rows)[4]
    within = [row for row in whole.rows if row["macs"] <= limit]
    best = sorted(within, key=lambda row: (-row["knn"], row["macs"], row["params"]))[0]
    assert AutoModel.from_pretrained(whole.folder, max_macs=limit).source_size.depth == best["depth"]


@pytest.mark.parametrize(
    "given, metric",
    [({}, "cosine"), ({"train": TRAIN}, "knn"), ({"train": TRAIN, "metric": "probe"}, "probe")],
    ids=("pictures", "labels", "asked"),
)
def test_without_a_classifier_the_default_is_what_the_images_allow(bundle, given, metric):
    """One metric, and nothing in the row that was not asked for."""
    (row,) = sweep.sweep(bundle, TEST, depths=(3,), widths=("1",), components=(5,), latency=False, **given)
    held = [name for name in ("accuracy", "knn", "probe", "cosine") if name in row]
    assert (row["metric"], held) == (metric, [metric]) and ("reference" in row) == (metric == "cosine")


@pytest.mark.parametrize("metric, split", [("knn", "test"), ("cosine", "whole")])
def test_a_command_measures_labelled_digits_by_knn_and_a_folder_of_pictures_by_the_cosine(
    lingene, tmp_path, metric, split
):
    """From the words of a shell to the table; loose pictures and deeper ones are one set."""
    pytest.importorskip("sklearn")
    folder, where = tmp_path / "bundle", "digits"
    config = helpers.tiny_config(image_size=8, trained_depths=[6, 3], **STORED)
    helpers.tiny_model(config, model_class=LinGeneModel).save_pretrained(folder)
    image_processor(8).save_pretrained(folder)
    if metric == "cosine":
        where = tmp_path / "pictures"
        (where / "deeper").mkdir(parents=True)
        for index, picture in enumerate(helpers.pictures(9, 8).images):
            picture.save(where / ("deeper" if index % 2 else ".") / f"{index}.png")
    told = lingene("sweep", folder, "--data", where, "--widths", "1", "--components", "5", "--quiet")
    assert told.code == 0
    rows = read(folder / "sizes.json")["sizes"]
    assert [(row["metric"], row["split"], row["depth"]) for row in rows] == [(metric, split, 6), (metric, split, 3)]
    shown = table(told.out)
    column = {"knn": "k-NN", "cosine": "class cosine"}[metric]
    assert [line[column][:5] for line in shown] == sorted(
        [f"{100 * row['knn']:.1f} "[:5] if metric == "knn" else f"{row['cosine']:.3f}" for row in rows], reverse=True
    )
    told = lingene("evaluate", folder, "--data", where, "--max-macs", max(row["macs"] for row in rows), "--quiet")
    assert told.code == 0 and len(table(told.out)) == 1 and ("the full size" in told.out) == (metric == "cosine")


def test_of_an_undivided_set_a_fifth_is_held_out(tmp_path):
    """Every picture would find itself; the row says that what was measured is no part of its own."""
    for index, (picture, label) in enumerate(zip(TRAIN.images, TRAIN.labels)):
        (tmp_path / TRAIN.class_names[label]).mkdir(exist_ok=True)
        picture.save(tmp_path / TRAIN.class_names[label] / f"{index}.png")
    sets = yardsticks.open_sets(str(tmp_path), "test", None, classifier=False)
    assert (sets.metrics, sets.images.split, len(sets.images), len(sets.train)) == (("knn",), "held-out", 5, 19)
    assert yardsticks.open_sets(str(tmp_path), "test", None, classifier=True).metrics == ("accuracy",)
    sets = yardsticks.open_sets(str(tmp_path), "test", "cosine", classifier=False)
    assert (sets.metrics, len(sets.images), sets.train, sets.images.class_names) == (("cosine",), 24, None, ["image"])


REFUSED = {
    "accuracy": ({"metric": "accuracy"}, ["`metric` accuracy", "no classifier", "knn, probe, cosine"]),
    "k-NN without labels": ({"images": PICTURES, "train": TRAIN}, ["`metric` knn needs labels", "photos", "cosine"]),
    "a probe without labels": ({"images": PICTURES, "metric": "probe"}, ["`metric` probe needs labels"]),
    "k-NN without a train part": ({"metric": "cosine,knn"}, ["`metric` knn needs `train`"]),
    "k-NN on the train part": ({"images": TRAIN, "train": TRAIN}, ["`split` train", "find itself"]),
    "other classes": (
        {"train": dataclasses.replace(TRAIN, class_names=["light", "grey", "dark"])},
        ["`train` must have the classes of photos"],
    ),
    "no images": ({"images": dataclasses.replace(TEST, images=[], labels=[])}, ["`data`", "at least one image"]),
    "a metric unheard of": ({"metric": "luck"}, ["`metric`", "'luck'", "accuracy, knn, probe, cosine"]),
    "no metric": ({"metric": ""}, ["`metric`", "''"]),
    "a reference of k-NN": ({"train": TRAIN, "reference": "x"}, ["`reference`", "`metric` is knn"]),
    "a reference that is not there": (
        {"reference": "./nowhere"},
        ["`reference` must be", "there is no folder ./nowhere"],
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("measure", [sweep.sweep, lambda name, images, **how: evaluate_model(name, {}, images, **how)])
def test_what_cannot_be_measured_is_refused_before_a_size_is_loaded(bundle, monkeypatch, measure, case):
    """In one sentence with the way out; nothing is written."""
    asked, fragments = case
    before = files(bundle)
    for module in (encoders, evaluation):
        monkeypatch.setattr(module, "load_encoder" if module is evaluation else "load_size", None)
    with pytest.raises(ValueError) as caught:
        measure(bundle, **{"images": TEST} | asked)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert "\n" not in str(caught.value) and files(bundle) == before


@pytest.mark.parametrize("metric", ["knn", "probe", "knn,cosine", "accuracy"])
def test_a_metric_of_labels_on_a_folder_without_is_refused_on_the_command_line(lingene, bundle, tmp_path, metric):
    """And so is one of the two parts where there is one only."""
    (tmp_path / "flat").mkdir()
    PICTURES.images[0].save(tmp_path / "flat" / "1.png")
    told = lingene("evaluate", bundle, "--data", tmp_path / "flat", "--metric", metric, "--quiet")
    assert told.code == 2 and told.out == "" and len([line for line in told.errors if "lingene" in line]) == 1
    assert metric == "accuracy" or "needs labels" in told.errors[-1] and "--metric cosine" in told.errors[-1]
    (tmp_path / "set" / "test" / "a").mkdir(parents=True), (tmp_path / "set" / "test" / "b").mkdir()
    for name in "ab":
        PICTURES.images[0].save(tmp_path / "set" / "test" / name / "1.png")
    if metric == "knn":
        told = lingene("evaluate", bundle, "--data", tmp_path / "set", "--quiet")
        assert told.code == 2 and "`--metric` knn needs a train part" in told.errors[-1]


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A stock encoder of the bundle's width with a pooler, and preprocessing that halves the values."""
    folder = tmp_path_factory.mktemp("other") / "vit"
    torch.manual_seed(5)
    shape = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4)
    model = ViTModel(ViTConfig(**shape, intermediate_size=64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    processor = image_processor(16)
    processor.image_std = [1.0] * 3
    processor.save_pretrained(folder)
    return folder


def tokens_of_other(folder: Path) -> numpy.ndarray:
    with torch.no_grad():
        model = ViTModel.from_pretrained(folder).eval()
        return model(as_pixels(TEST.images) / 2).last_hidden_state.double().numpy()


def test_another_reference_sees_its_own_preprocessing(bundle, other):
    """And is named in the row; the bundle's own size sees the bundle's."""
    grid = {"depths": (3,), "widths": ("1/2",), "components": (5,)}
    (row,) = sweep.sweep(bundle, TEST, reference=str(other), batch_size=4, **grid)
    agreed = cosines(tokens(bundle, TEST, 3, "1/2", 5), tokens_of_other(other))
    assert {name: row[name] for name in agreed} == pytest.approx(agreed, abs=2e-6)
    assert row["reference"] == "vit" and abs(row["cosine"]) < 0.9


@pytest.mark.parametrize(
    "change, said",
    [({"hidden_size": 96}, ["96 channels", "48", "knn"]), ({"patch_size": 8}, ["as many patches", "4", "16"])],
    ids=str,
)
def test_a_reference_that_does_not_compare_is_refused(bundle, tmp_path, change, said):
    """By width before work, by patches at the first batch."""
    shape = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=4)
    ViTModel(ViTConfig(**{**shape, **change}, intermediate_size=64)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="`reference`") as caught:
        sweep.sweep(bundle, TEST, reference=str(tmp_path / "vit"), **GRID)
    assert [fragment for fragment in said if fragment not in str(caught.value)] == []
    assert not (bundle / "sizes.json").exists()


def test_a_plain_encoder_is_evaluated_too(other, encoder):
    """Without its pooler; by the cosine against a reference that is named, because it has no full size."""
    row = evaluate_model(other, {}, TEST, train=TRAIN, metric="knn,cosine", reference=str(encoder))
    with torch.no_grad():
        model = ViTModel.from_pretrained(other, add_pooling_layer=False)
    assert row["params"] == row["stored_params"] == sum(parameter.numel() for parameter in model.parameters())
    agreed = cosines(tokens_of_other(other), tokens(encoder, TEST))
    assert {name: row[name] for name in agreed} == pytest.approx(agreed, abs=2e-6)
    assert (row["metric"], row["num_components"], row["reference"]) == ("knn", None, "bundle")
    with pytest.raises(ValueError, match="`reference` is missing"):
        evaluate_model(other, {}, TEST, metric="cosine")
    with pytest.raises(ValueError, match="`metric` accuracy needs a classifier"):
        evaluate_model(other, {}, TEST, metric="accuracy")


def test_a_classifier_may_be_measured_by_more_than_accuracy(source, tmp_path):
    """Accuracy decides where it comes first, and is what it is alone; k-NN asks the encoder below the head."""
    images = dataclasses.replace(TEST, class_names=[str(i) for i in range(7)])
    grid = {"depths": (3,), "components": (5,), "latency": False}
    train = dataclasses.replace(TRAIN, class_names=images.class_names)
    alone = sweep.sweep(source, images, out=tmp_path / "alone", **grid)
    both = sweep.sweep(source, images, out=tmp_path / "both", metric="accuracy,knn", train=train, **grid)
    assert [without(row, "knn") for row in both] == alone
    assert [row["knn"] for row in both] == [round(knn(source, *size_of(row)), 6) for row in both]
    first = sweep.sweep(source, images, out=tmp_path / "knn", metric="knn,accuracy", train=train, **grid)
    assert [row["metric"] for row in first] == ["knn", "knn"]
    assert [row["accuracy"] for row in first] == [row["accuracy"] for row in alone]


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
    monkeypatch.setattr(encoders, "latency_ms", timing)
    return state


HOW = {"metric": "knn,cosine", "train": TRAIN, "batch_size": 4, **GRID}


def interrupted(bundle: Path, stopping: SimpleNamespace, at: int, **how) -> None:
    stopping.stop_at = at
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(bundle, TEST, **HOW | how)
    stopping.loads, stopping.stop_at = [], None


def test_an_interrupted_sweep_goes_on_with_the_sizes_that_are_missing(bundle, whole, stopping, caplog):
    """What was finished is not measured again, and the rows are the same."""
    interrupted(bundle, stopping, 4)
    assert (bundle / PROGRESS).exists() and not (bundle / "sizes.json").exists()
    rows = sweep.sweep(bundle, TEST, **HOW)
    assert stopping.loads == ORDER[3:] and "3 sizes were begun" in messages(caplog, PROGRESS)[0]
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
    interrupted(bundle, stopping, 4)
    rows = sweep.sweep(bundle, TEST, **HOW | change)
    assert stopping.loads == ORDER
    assert rows == close(sweep.sweep(bundle, TEST, out=tmp_path / "anew", **HOW | change))


def test_progress_of_an_accuracy_is_not_taken_for_another_metric(bundle, stopping):
    """Nor what is damaged."""
    interrupted(bundle, stopping, 4)
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


def test_a_row_of_another_set_brings_no_measures(bundle):
    """A k-NN of other images beside this cosine would look like one of these."""
    held = {"knn": 0.5, "cosine": 0.5, "reference": "whoever"}
    for metric in ("cosine", "knn"):
        folders.write_sizes(bundle, [OLD[0] | held | {"depth": 6, "metric": "knn", "dataset": "elsewhere"}])
        (row,) = sweep.sweep(bundle, TEST, metric=metric, train=TRAIN, depths=(6,), widths=("1",), components=(5,))
        assert read(bundle / "sizes.json")["sizes"] == [row]


def test_an_encoder_is_timed_as_what_a_user_loads(bundle, monkeypatch, caplog):
    """A profile of it has no head, and no word about one."""
    timed = []
    monkeypatch.setattr(
        profiling, "latency_ms", lambda model, **how: timed.append(model) or made_up_time(model, **how)
    )
    rows = profiling.profile(bundle, depths=(3,), widths=("1",), components=(5,))
    assert len(rows) == 1 and {type(model) for model in timed} == {ViTModel} and messages(caplog, "classifier") == []


def test_sizes_of_an_encoder_can_be_measured_after_training(bundle, whole):
    """The way of whoever has a bundle and held-out batches at hand."""
    held = sweep.batches(TEST, image_processor(16), 4)
    rows = sweep.measure_sizes(bundle, held, ORDER, metric="knn,probe,cosine", train=TRAIN, progress=False)
    assert rows == close(whole.rows)
    (row,) = sweep.measure_sizes(bundle, held, ORDER[:1], progress=False)
    assert (row["metric"], row["cosine"]) == ("cosine", 1.0)


def test_what_evaluate_says_of_a_size_is_the_row_of_a_sweep(whole):
    """One way to a number."""
    for row in (whole.rows[0], whole.rows[5]):
        size = dict(zip(("depth", "width_ratio", "num_components"), size_of(row)))
        found = evaluate_model(whole.folder, size, TEST, 4, metric="knn,probe,cosine", train=TRAIN)
        assert [found] == close([row])
    assert json.loads(json.dumps(row)) == row


def test_evaluate_takes_the_metric_that_the_images_allow(bundle, tmp_path):
    """As a sweep does."""
    pytest.importorskip("sklearn")
    (tmp_path / "flat").mkdir()
    for index, picture in enumerate(TEST.images):
        picture.save(tmp_path / "flat" / f"{index}.png")
    row = evaluate_data(bundle, {"depth": 3}, str(tmp_path / "flat"), "test")
    assert (row["metric"], row["split"], row["dataset"]) == ("cosine", "whole", "flat")


def test_where_a_family_takes_any_image_size_macs_and_time_are_those_of_the_pictures_it_is_given(
    tmp_path, monkeypatch
):
    """Of the size that its preprocessing makes, in every row: positions may be kept for more."""
    config, timed = helpers.tiny_config(family="dinov2", image_size=32), []
    helpers.tiny_model(config, model_class=LinGeneModel).save_pretrained(tmp_path / "bundle")
    image_processor(16).save_pretrained(tmp_path / "bundle")

    def time(model, image_size=None, **_):
        timed.append(image_size)
        return {"median": 1.0, "iqr": 0.1}

    for module in (encoders, metrics, profiling):
        monkeypatch.setattr(module, "latency_ms", time)
    (row,) = sweep.sweep(tmp_path / "bundle", TEST, metric="cosine", widths=("1",), components=(5,))
    alone = evaluate_model(tmp_path / "bundle", {}, TEST, metric="cosine")
    profiling.profile(tmp_path / "bundle")
    assert timed == [(16, 16)] * 4
    encoder = AutoModel.from_pretrained(tmp_path / "bundle", attn_implementation="eager").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(as_pixels(TEST.images[:1]))
    assert row["macs"] == alone["macs"] == counter.get_total_flops() // 2


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
