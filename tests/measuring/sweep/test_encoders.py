"""Laws of sweeps and evaluations without a classifier: rows are what a user finds who loads that size.

k-NN and agreement by numpy's loops, the probe by scikit-learn, costs from the loaded model itself.

    pytest tests/measuring/sweep/test_encoders.py
"""

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from encoding import ORDER, TEST, TRAIN, close, cosines, tokens, unit, without
from sweeping import HERE, RUN, STORED, as_pixels, made_up_time, messages, size_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, ViTConfig, ViTModel

import helpers
from helpers import files, read, table
from modeling_lingene import LinGeneModel
from modeling_lingene.images.batches import image_processor
from modeling_lingene.measuring import metrics, profiling, sweep
from modeling_lingene.measuring.evaluation import evaluate_data, evaluate_model


pytestmark = pytest.mark.usefixtures("untimed")


def knn(folder: Path, *size) -> float:
    """Weighted votes of the 20 nearest, by loops."""
    queries, voters = (unit(tokens(folder, images, *size)[:, 0]) for images in (TEST, TRAIN))
    right = 0
    for query, label in zip(queries, TEST.labels):
        near = sorted(zip(voters @ query, TRAIN.labels), reverse=True)[:20]
        votes = [sum(math.exp(s / 0.07) for s, other in near if other == name) for name in range(3)]
        right += votes.index(max(votes)) == label
    return right / len(queries)


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
        both = (unit(tokens(whole.folder, TEST, *size)) * unit(expected)[..., : int(48 * Fraction(size[1]))]).sum(-1)
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
    column = {"knn": "k-NN", "cosine": "cosine"}[metric]
    assert [line[column][:5] for line in shown] == sorted(
        [f"{100 * row['knn']:.1f} "[:5] if metric == "knn" else f"{row['cosine']:.3f}" for row in rows], reverse=True
    )
    told = lingene("evaluate", folder, "--data", where, "--max-macs", max(row["macs"] for row in rows), "--quiet")
    assert told.code == 0 and len(table(told.out)) == 1 and ("the full size" in told.out) == (metric == "cosine")


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


def test_an_encoder_is_timed_as_what_a_user_loads(bundle, monkeypatch, caplog):
    """A profile of it has no head, and no word about one."""
    timed = []
    monkeypatch.setattr(
        profiling, "latency_ms", lambda model, **how: timed.append(model) or made_up_time(model, **how)
    )
    rows = profiling.profile(bundle, depths=(3,), widths=("1",), components=(5,))
    assert len(rows) == 1 and {type(model) for model in timed} == {ViTModel} and messages(caplog, "classifier") == []


def test_a_plain_encoder_is_timed_as_what_it_is(tmp_path, monkeypatch):
    """With a classifier that nobody trained the time would be another model's."""
    timed = []
    monkeypatch.setattr(
        profiling, "latency_ms", lambda model, **how: timed.append(model) or made_up_time(model, **how)
    )
    shape = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4)
    ViTModel(ViTConfig(**shape, intermediate_size=64)).save_pretrained(tmp_path / "vit")
    (row,) = profiling.profile(tmp_path / "vit")
    assert {type(model) for model in timed} == {ViTModel} and all(model.pooler is None for model in timed)
    assert row["depth"] == 2


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

    for module in (metrics, profiling):
        monkeypatch.setattr(module, "latency_ms", time)
    (row,) = sweep.sweep(tmp_path / "bundle", TEST, metric="cosine", widths=("1",), components=(5,))
    alone = evaluate_model(tmp_path / "bundle", {}, TEST, metric="cosine")
    profiling.profile(tmp_path / "bundle")
    assert timed == [(16, 16)] * 4
    encoder = AutoModel.from_pretrained(tmp_path / "bundle", attn_implementation="eager").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(as_pixels(TEST.images[:1]))
    assert row["macs"] == alone["macs"] == counter.get_total_flops() // 2
