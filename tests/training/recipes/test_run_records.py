"""What a run says of itself: how it was trained, in the bundle, in `best/`, on the card and as a command.

pytest tests/training/recipes/test_run_records.py
"""

import argparse
import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from recipe_runs import read, tiny_recipe

from modeling_lingene.folders import bundle_weights_id, write_training
from modeling_lingene.training import recipes
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.named import RECIPES, as_published
from modeling_lingene.training.options import add_recipe_options, asked_recipe
from modeling_lingene.training.record import base_model_of, command_of, training_facts


def test_a_bundle_says_how_it_was_trained_and_its_card_shows_it(run):
    """Whoever gets the folder alone can repeat the run; the numbers are those of its history."""
    facts, history = read(run.bundle / "training.json"), read(run.out / "history.json")["epochs"]
    assert facts["weights_id"] == bundle_weights_id(run.bundle)
    assert (facts["dataset"], facts["images"], facts["epochs"]) == ("digits", 1437 - 144, len(history))
    assert facts["seconds"] == pytest.approx(sum(row["seconds"] for row in history), abs=0.1)
    assert facts["hardware"] == read(run.out / "results.json")["run"]["hardware"]
    assert facts["versions"]["torch"] == torch.__version__ and facts["base_model"] is None
    card = (run.bundle / "README.md").read_text()
    assert f"`{facts['command']}`" in card and "| seed | " in card and "1,293 pictures with labels" in card


def test_the_best_state_says_how_far_it_was_trained(run):
    """`best/` may be all that is left of a run that was stopped, and is a bundle like the result."""
    facts, history = read(run.out / "best" / "training.json"), read(run.out / "history.json")["epochs"]
    assert facts["weights_id"] == bundle_weights_id(run.out / "best")
    accuracies = [row.get("accuracy", 0) for row in history]
    assert facts["epochs"] == accuracies.index(max(accuracies)) + 1
    whole = read(run.bundle / "training.json")
    assert {**whole, "epochs": 0, "seconds": 0, "weights_id": ""} == {
        **facts,
        "epochs": 0,
        "seconds": 0,
        "weights_id": "",
    }


def test_the_bundle_has_the_pictures_that_its_card_shows(run):
    """The picture lay beside the bundle, and the card of a run that took an hour showed none."""
    card = (run.bundle / "README.md").read_text()
    for picture in ("sizes.png", "sizes_heat.png"):
        assert f"]({picture})" in card and (run.bundle / picture).read_bytes()[:4] == b"\x89PNG"


def test_the_recorded_command_is_the_run():
    """Pasted, it asks for the very recipe; a setting that it forgot would make another bundle."""
    masked = RECIPES["digits"]
    masked = dataclasses.replace(masked, init="org/base", teacher="org/teacher", model=recipes.ModelSettings())
    masked = dataclasses.replace(masked, objective=Objective(kind="features", mask_share=0.5), validation_share=0.25)
    published = [as_published(recipe, "scala") for recipe in RECIPES.values()]
    for recipe in [*RECIPES.values(), *published, masked]:
        words = shlex.split(command_of(recipe, recipe.data))
        assert words[:2] == ["lingene", "decompose"]
        parser = argparse.ArgumentParser()
        add_recipe_options(parser)
        assert asked_recipe(parser.parse_args(words[2:])) == recipe


def test_names_in_the_record_of_a_run_are_no_paths(tmp_path, bundle):
    """It is published: a folder goes by its name, the Hub's model that a chain of bundles began with by its own."""
    start = Path(shutil.copytree(bundle, tmp_path / "start"))
    recipe = dataclasses.replace(tiny_recipe(tmp_path), init=str(start), teacher=str(start))
    told = json.dumps(training_facts(recipe, [{"seconds": 1.0}], "set", 5, "a machine", 1))
    assert str(tmp_path) not in told and "--init start" in told
    timm = dataclasses.replace(recipe, teacher=f"timm:local-dir:{tmp_path / 'regnet'}")
    told = json.dumps(training_facts(timm, [{"seconds": 1.0}], "set", 5, "a machine", 1))
    assert str(tmp_path) not in told and "--teacher timm:local-dir:regnet" in told
    assert base_model_of(str(start)) is None and base_model_of("org/base") == "org/base" and base_model_of("") is None
    report = {"source": "org/vit", "fit": "exact", "depth": 6, "num_components": 5, "relative_logit_error": 0.0}
    (start / "conversion.json").write_text(json.dumps(report))
    assert base_model_of(str(start)) == "org/vit"
    (start / "conversion.json").write_text(json.dumps(report | {"source": f"timm:local-dir:{start}"}))
    assert base_model_of(str(start)) is None
    write_training(start, training_facts(recipe, [{"seconds": 1.0}], "set", 5, "a machine", 1) | {"base_model": "a/b"})
    assert base_model_of(str(start)) == "a/b"
