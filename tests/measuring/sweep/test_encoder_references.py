"""Laws of measures without a classifier: what a metric needs of the images, and which reference a cosine has.

Against cosines by numpy of what both models give, each as its own users load it.

    pytest tests/measuring/sweep/test_encoder_references.py
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy
import pytest
import torch
from encoding import GRID, TEST, TRAIN, cosines, tokens
from safetensors.torch import load_file, save_file
from sweeping import as_pixels
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from helpers import files
from modeling_lingene.images.batches import image_processor
from modeling_lingene.measuring import encoders, evaluation, sweep, yardsticks
from modeling_lingene.measuring.evaluation import evaluate_model


pytestmark = pytest.mark.usefixtures("untimed")


PICTURES = dataclasses.replace(TEST, labels=[0] * 15, class_names=["image"])


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
    "a probe of one class": (
        {"metric": "knn,probe", "train": dataclasses.replace(TRAIN, labels=[1] * 24)},
        ["`metric` probe needs at least two classes in the train part"],
    ),
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
        monkeypatch.setattr(module, "load_model" if module is evaluation else "load_size", None)
    with pytest.raises(ValueError) as caught:
        measure(bundle, **{"images": TEST} | asked)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert "\n" not in str(caught.value) and files(bundle) == before


@pytest.mark.parametrize("measure", [sweep.sweep, lambda name, images, **how: evaluate_model(name, {}, images, **how)])
def test_a_probe_without_scikit_learn_is_refused_before_a_size_is_loaded(bundle, monkeypatch, measure):
    """With the extra that brings it."""
    for module in (encoders, evaluation):
        monkeypatch.setattr(module, "load_model" if module is evaluation else "load_size", None)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r'scikit-learn is needed here: pip install "modeling_lingene\[train\]"'):
        measure(bundle, TEST, train=TRAIN, metric="knn,probe")


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
    [
        ({"hidden_size": 96}, ["96 channels", "48", "knn"]),
        ({"patch_size": 8}, ["as many patches", "it gives 4 of an image, and the model 16"]),
    ],
    ids=str,
)
def test_a_reference_that_does_not_compare_is_refused(bundle, tmp_path, monkeypatch, change, said):
    """By what its configuration says of channels and patches, before its weights are read."""
    monkeypatch.setattr(yardsticks, "load_encoder", None)
    shape = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=4)
    ViTModel(ViTConfig(**{**shape, **change}, intermediate_size=64)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="`reference`") as caught:
        sweep.sweep(bundle, TEST, reference=str(tmp_path / "vit"), **GRID)
    assert [fragment for fragment in said if fragment not in str(caught.value)] == []
    assert not (bundle / "sizes.json").exists()


@pytest.mark.parametrize("size, fits", [(24, False), (32, True)])
def test_a_reference_is_held_against_the_pictures_that_its_own_preprocessing_makes(bundle, tmp_path, size, fits):
    """A DINOv2 made for 16 pixels takes others; of patches of eight, four by four are in 32 pixels."""
    shape = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8)
    Dinov2Model(Dinov2Config(**shape)).save_pretrained(tmp_path / "dino")
    image_processor(size).save_pretrained(tmp_path / "dino")
    asked = {"reference": str(tmp_path / "dino"), "depths": (3,), "widths": ("1",), "components": (5,)}
    if fits:
        assert sweep.sweep(bundle, TEST, **asked)
        return
    with pytest.raises(ValueError, match="it gives 9 of an image, and the model 16"):
        sweep.sweep(bundle, TEST, **asked)


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


def test_an_encoder_that_lacks_tensors_is_refused(other, tmp_path):
    """transformers puts random numbers in their place, and a number would be measured of them."""
    shutil.copytree(other, tmp_path / "vit")
    held = load_file(other / "model.safetensors")
    del held["layernorm.bias"]
    save_file(held, tmp_path / "vit" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="vit has no trained layernorm.bias: give"):
        evaluate_model(tmp_path / "vit", {}, TEST, train=TRAIN, metric="knn")
