"""Laws of runs without labels: what cannot be had is refused, by its name, before a picture is decoded.

pytest tests/training/test_unlabelled_refused.py
"""

import json
import shutil

import pytest
import torch
from transformers import BitImageProcessorPil, ViTImageProcessorPil
from transformers.image_utils import SizeDict
from unlabelled_runs import larger, recipe

import helpers
from modeling_lingene.readout import write_readout
from modeling_lingene.training import recipes
from modeling_lingene.training.losses import Objective


@pytest.mark.filterwarnings("ignore:1 left out")
@pytest.mark.parametrize(
    "metric, data, taught, word",
    [
        ("nothing", "divided", False, "`metric` must be one or more of .*'nothing'"),
        ("accuracy", "divided", False, "`metric` accuracy needs a classifier"),
        ("cosine", "divided", True, "`metric` cosine compares channel by channel"),
        ("knn", "photos", False, "`metric` knn needs labels"),
        ("probe", "undivided", False, "`metric` probe needs a test part"),
    ],
)
def test_a_metric_that_the_run_cannot_have_is_refused_before_it_begins(
    tmp_path, monkeypatch, classes, photos, init, metric, data, taught, word
):
    """After hours it would be too late."""
    monkeypatch.setattr(recipes, "start_without_labels", None)
    folder = {"divided": classes, "undivided": classes / "train", "photos": photos}[data]
    with pytest.raises(ValueError, match=word):
        recipes.decompose(recipe(folder, init, metric=metric, teacher=str(init) if taught else ""), tmp_path)


def test_turned_channels_are_not_sent_to_heads_that_refuse_them(tmp_path, photos, init):
    """`convert --sort` and another teacher: identity heads, the way out of others, would be refused at once."""
    turned = shutil.copytree(init, tmp_path / "turned")
    write_readout(turned, (torch.eye(48), torch.zeros(48)))
    asked = recipe(photos, turned, metric="cosine", teacher=str(init))
    with pytest.raises(ValueError, match="use knn, or leave `teacher` out, for the channels of `init` were turned"):
        recipes.decompose(asked, tmp_path / "out")


def test_a_classifier_is_measured_by_its_accuracy():
    """Whatever else is asked for."""
    with pytest.raises(ValueError, match="`metric` knn is for `objective` features"):
        recipes.Recipe("digits", metric="knn")


@pytest.mark.filterwarnings("ignore:1 left out")
@pytest.mark.parametrize(
    "changes, word",
    [
        ({"cache_teacher": True, "cache_gb": 1e-6}, "`cache_gb` 1e-06 is too little: .* 40 pictures take 131 kB"),
        ({"cache_teacher": True, "flip": True}, "`cache_teacher` needs images that are the same"),
        ({"mask_share": 0.3}, "`mask_share` .* family has none"),
        ({"widths": ("1/3",)}, "`widths`"),
        (
            {"batch_size": 37},
            "`batch_size` 37 makes 37 images a step, and there are 36 to train on; use a smaller one",
        ),
    ],
)
def test_what_a_run_cannot_have_is_refused_before_a_picture_is_decoded(
    tmp_path, monkeypatch, photos, init, changes, word
):
    """A set may take minutes to decode."""

    def never(*_):
        raise AssertionError("was decoded")

    monkeypatch.setattr("modeling_lingene.training.unlabelled.training_images", never)
    with pytest.raises(ValueError, match=word):
        recipes.decompose(recipe(photos, init, **changes), tmp_path)


@pytest.mark.filterwarnings("ignore:1 left out")
@pytest.mark.parametrize("key", ["size", "crop_size"])
def test_a_bundle_whose_family_takes_any_size_is_told_what_makes_its_pictures_fit_a_teacher(tmp_path, photos, key):
    """`image_size` is of new networks; with the field that is named, set as it says, the run goes through."""
    config = helpers.tiny_config(family="dinov2", depth=4, num_components=4)
    init = helpers.bundle(tmp_path / "init", config)
    processor = ViTImageProcessorPil() if key == "size" else BitImageProcessorPil(size={"shortest_edge": 16})
    setattr(processor, key, SizeDict(height=16, width=16))
    processor.save_pretrained(init)
    asked = {"teacher": larger(tmp_path), "epochs": 1}
    with pytest.raises(ValueError, match="6x6 patches .* the student 4x4 of 16x16") as told:
        recipes.decompose(recipe(photos, init, **asked), tmp_path / "out")
    way = f"the student sees 24x24 pixels (`{key}` in preprocessor_config.json of `init`), or the teacher 20x20 ("
    assert way in str(told.value)
    said = json.loads((init / "preprocessor_config.json").read_text(encoding="utf-8"))
    (init / "preprocessor_config.json").write_text(json.dumps(said | {key: {"height": 24, "width": 24}}))
    assert recipes.decompose(recipe(photos, init, **asked), tmp_path / "out")


@pytest.mark.filterwarnings("ignore:1 left out")
def test_a_bundle_with_positions_for_one_size_is_told_the_teachers_alone(tmp_path, photos, init):
    """A ViT's pictures are of the size that it was made for, whatever its preprocessing says."""
    asked = {"teacher": larger(tmp_path), "epochs": 1}
    with pytest.raises(ValueError, match="6x6 patches") as told:
        recipes.decompose(recipe(photos, init, **asked), tmp_path / "out")
    assert "They fit where the teacher sees 20x20 (`teacher_size` 20)." in str(told.value)
    assert recipes.decompose(recipe(photos, init, **asked, teacher_size=20), tmp_path / "out")


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"mask_share": 0.3}, "`mask_share` .* family has none"),
        ({"feature_heads": "identity"}, "`feature_heads` identity .* the teacher has 16 channels, the student 48"),
    ],
)
def test_what_heads_and_masks_need_is_known_before_teacher_and_pictures(
    tmp_path, monkeypatch, photos, init, changes, word
):
    """A teacher may be gigabytes to download; its configuration says how wide it is."""
    for name in ("load_encoder", "load_pictures"):
        monkeypatch.setattr(f"modeling_lingene.training.unlabelled.{name}", None)
    with pytest.raises(ValueError, match=word):
        recipes.decompose(recipe(photos, init, teacher=larger(tmp_path), **changes), tmp_path / "out")


@pytest.mark.parametrize(
    "changes, word",
    [
        ({}, "`objective` features needs a `teacher`, or `init`"),
        ({"init": "x", "streaming": True}, "`streaming` is for labelled images"),
        ({"init": "x", "validation_share": 0.0}, "`validation_share` must be above 0 with `objective` features"),
        ({"init": "x", "teacher_size": 16}, "`teacher_size` 16 is what a `teacher`"),
        ({"init": "x", "teacher": "y", "teacher_size": -1}, "`teacher_size` -1"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(changes, word):
    """As it is made."""
    with pytest.raises(ValueError, match=word):
        recipes.Recipe("photos", objective=Objective(kind="features"), **changes)


def test_a_folder_without_pictures_is_refused(tmp_path, init):
    """With its name."""
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="`data` must be a folder .*pictures"):
        recipes.decompose(recipe(tmp_path / "photos", init), tmp_path / "out")
