"""Laws of runs on a user's own pictures: which images train, choose and are measured; what a run resumes or refuses.

Pictures of noise in two folders; a model of three layers.

    pytest tests/training/recipes/test_recipes.py
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
from recipe_runs import forbid, read, tiny_recipe
from transformers import AutoModelForImageClassification

import helpers
from modeling_lingene.folders import check_folder, read_processor
from modeling_lingene.images import data
from modeling_lingene.images.data import load_images, open_parts
from modeling_lingene.measuring import sweep
from modeling_lingene.measuring.sweep import sweep_data
from modeling_lingene.pruning.prune import prune
from modeling_lingene.pruning.settings import PruneSettings
from modeling_lingene.training import recipes
from modeling_lingene.training.loop import TrainingLoop
from modeling_lingene.training.named import RECIPES


@pytest.mark.parametrize("schedule", ["incremental", pytest.param("simultaneous", marks=pytest.mark.slow), "elastic"])
def test_every_schedule_gives_a_bundle_with_every_prefix_measured_at_every_trained_depth(folders, tmp_path, schedule):
    """From a folder of pictures to a folder that can be pushed, the class names with it."""
    chosen = recipes.DecompositionSettings(schedule, totals=(1, 3), depths=(2,))
    rows = recipes.decompose(tiny_recipe(folders, decomposition=chosen), tmp_path / "out")
    sizes = [(row["depth"], row["num_components"]) for row in rows]
    assert sizes == [(2, 1), (2, 3), (3, 1), (3, 3)]
    results = read(tmp_path / "out" / "results.json")
    assert results["sizes"] == rows == read(tmp_path / "out" / "bundle" / "sizes.json")["sizes"]
    history = read(tmp_path / "out" / "history.json")["epochs"]
    assert len(history) == (2 if schedule == "incremental" else 1) and all("accuracy" in row for row in history)
    assert results["run"]["processes"] == 1
    for name in ("bundle", "best"):
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / name, depth=2)
        assert model.config.id2label == {index: f"class {index}" for index in range(7)}
    config = check_folder(tmp_path / "out" / "bundle")
    assert config.trained_depths == [2, 3] and config.trained_components == [1, 3]


def parts_of_a_run(monkeypatch, tmp_path, **changes) -> tuple[dict, dict]:
    """Which pictures a run trains on, chooses by and is measured on; and what there was."""
    made = {
        "train": helpers.pictures(40),
        "test": helpers.pictures(14, seed=1),
        "validation": helpers.pictures(21, seed=2),
    }
    own, seen = changes.pop("own_validation", False), {}

    def load(data, split):
        split = "test" if split == "validation" and not own else split
        return dataclasses.replace(made[split], split=split)

    def fit(loop, phases):
        seen["train"], seen["validation"] = loop.images.images, loop.held_out and loop.held_out.images
        return [{"phase": "none", "epoch": 1, "loss": 1.0, "seconds": 1.0}]

    def measure(bundle, batches, sizes, **_):
        seen["test"] = batches.images
        return []

    monkeypatch.setattr(data, "load_images", load)
    monkeypatch.setattr(TrainingLoop, "fit", fit)
    monkeypatch.setattr(recipes, "measure_sizes", measure)
    for name in ("write_card", "plot_sizes", "plot_heat", "plot_history", "write_sizes"):
        monkeypatch.setattr(recipes, name, lambda *_, **__: None)
    recipes.decompose(tiny_recipe(Path("made"), **changes), tmp_path / "out")
    return {
        part: images and [images.images[i].tobytes() for i in range(len(images))] for part, images in seen.items()
    }, made


def test_the_best_state_is_chosen_on_training_images_that_are_held_out_and_the_test_part_is_measured_alone(
    monkeypatch, tmp_path
):
    """Chosen on the part that is reported, the best of many states is better than it is."""
    seen, made = parts_of_a_run(monkeypatch, tmp_path)
    whole = [picture.tobytes() for picture in made["train"].images]
    assert sorted(seen["train"] + seen["validation"]) == sorted(whole) and len(seen["validation"]) == 4
    assert seen["test"] == [picture.tobytes() for picture in made["test"].images]


def test_a_validation_part_that_the_set_has_is_used_as_it_is(monkeypatch, tmp_path):
    """Then all of `train` trains."""
    seen, made = parts_of_a_run(monkeypatch, tmp_path, own_validation=True)
    assert seen == {part: [picture.tobytes() for picture in images.images] for part, images in made.items()}


def test_without_a_validation_part_nothing_is_chosen(monkeypatch, tmp_path):
    """`best/` would have to come from the test part."""
    seen, made = parts_of_a_run(monkeypatch, tmp_path, validation_share=0.0)
    assert seen["validation"] is None and len(seen["train"]) == 40


def test_runs_of_other_seeds_hold_the_same_images_out(monkeypatch, tmp_path):
    """Else a run that starts from another one's bundle would choose by images which that one has learned."""
    runs = []
    for seed in (0, 1):
        settings = recipes.TrainingSettings(epochs=1, batch_size=8, device="cpu", seed=seed)
        runs.append(parts_of_a_run(monkeypatch, tmp_path / str(seed), training=settings)[0]["validation"])
    assert runs[0] == runs[1] != parts_of_a_run(monkeypatch, tmp_path / "2", validation_seed=1)[0]["validation"]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_cannot_be_is_refused_before_anything_is_read(share):
    with pytest.raises(ValueError, match="`validation_share` must be from 0 to below 1"):
        recipes.Recipe("made", validation_share=share)


def test_a_run_in_the_worker_path_trains_the_same_kind_of_bundle(folders, tmp_path):
    """RandAugment needs pictures; everything after it is the same."""
    pytest.importorskip("timm")
    varied = recipes.Augmentation(rand_augment="rand-m9-mstd0.5-inc1", resized_crop=True, mixup=0.8, erasing=0.5)
    rows = recipes.decompose(tiny_recipe(folders, augmentation=varied, workers=0), tmp_path / "out")
    assert [row["num_components"] for row in rows] == [1, 2, 3]


def test_a_run_is_resumed_only_when_asked_and_a_finished_one_is_read_back(folders, tmp_path, monkeypatch):
    """Without it, somebody else's run would go on under this one's name."""
    recipe = tiny_recipe(folders)
    rows = recipes.decompose(recipe, tmp_path / "out", resume=False)
    with pytest.raises(ValueError, match="`out` .* is not empty; `resume`"):
        recipes.decompose(recipe, tmp_path / "out", resume=False)
    forbid(monkeypatch, "fit")
    assert recipes.decompose(recipe, tmp_path / "out") == rows
    with pytest.raises(ValueError, match=r"`out` .* patch_size \(8 there, 4 asked\)"):
        other = dataclasses.replace(recipe.model, patch_size=4)
        recipes.decompose(dataclasses.replace(recipe, model=other), tmp_path / "out")


@pytest.mark.parametrize("divided", [False, True])
def test_a_set_without_a_test_part_is_measured_on_a_fifth_that_was_never_trained_on(folders, tmp_path, divided):
    """Most people have one folder of classes, or `train/` alone; sweeps find the same fifth, and no other images."""
    data = str(folders / "train")
    if divided:
        shutil.copytree(data, tmp_path / "set" / "train")
        data = str(tmp_path / "set")
    with pytest.warns(UserWarning, match=r"has no test part: \d+ of its images, drawn by seed, are held out"):
        rows = recipes.decompose(tiny_recipe(data), tmp_path / "out")
    assert {row["split"] for row in rows} == {"held-out"}
    with pytest.warns(UserWarning, match="has no test part"):
        train, validation, test = open_parts(data, 0.1, 0)
    whole = load_images(data, "train")
    paths = [{images.images.path(place) for place in range(len(images))} for images in (train, validation, test)]
    assert sum(map(len, paths)) == len(set().union(*paths)) == len(whole)
    assert len(test) == round(len(whole) / 5) and test.class_names == whole.class_names
    bundle = tmp_path / "out" / "bundle"
    counts = sorted({row["num_components"] for row in rows})
    swept = sweep_data(bundle, data, "held-out", components=counts, latency=False)
    size = ("depth", "width_ratio", "num_components")
    found = {tuple(row[key] for key in size): row["accuracy"] for row in swept}
    assert found == {tuple(row[key] for key in size): row["accuracy"] for row in rows}
    with pytest.raises(ValueError, match="held-out"):
        sweep_data(bundle, data, "test", latency=False)


def test_a_set_of_a_single_class_is_called_that(folders, tmp_path):
    """A folder too deep, mostly; a classifier of one class would always be right."""
    (name,) = sorted(path.name for path in (folders / "train").iterdir())[:1]
    shutil.copytree(folders / "train" / name, tmp_path / "set" / name)
    with pytest.raises(ValueError, match=f"`data` set has a single class, '{name}'.*two or more classes"):
        recipes.decompose(tiny_recipe(tmp_path / "set"), tmp_path / "out")
    assert not (tmp_path / "out" / "bundle").exists()


def test_fewer_images_than_a_step_takes_are_refused_before_one_is_decoded(folders, tmp_path, monkeypatch):
    """Decoding may take minutes."""

    def never(*_):
        raise AssertionError("was decoded")

    monkeypatch.setattr(recipes, "training_images", never)
    recipe = tiny_recipe(folders)
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, batch_size=999))
    with pytest.raises(ValueError, match="`batch_size` 999 makes 999 images a step, and there are .* use a smaller"):
        recipes.decompose(recipe, tmp_path / "out")


def test_what_draws_at_its_end_asks_for_matplotlib_before_it_begins(folders, tmp_path, monkeypatch, run):
    """`pip install "modeling_lingene[train]"` does not bring it, and a run of hours would end without its results."""
    forbid(monkeypatch, "fit")
    monkeypatch.setattr(sweep, "measured", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    recipe = tiny_recipe(folders)
    commands = {
        "decompose": lambda: recipes.decompose(recipe, tmp_path / "out"),
        "quickstart": lambda: recipes.quickstart(tmp_path / "out"),
        "sweep": lambda: sweep.sweep_data(run.bundle, "digits", "test", out=tmp_path / "out"),
        "prune": lambda: prune(run.bundle, tmp_path / "out", PruneSettings(data="digits", target_macs=0.5)),
    }
    for command in commands.values():
        with pytest.raises(
            ImportError, match=r'matplotlib is needed here: pip install "modeling_lingene\[analysis\]"'
        ):
            command()
    assert not (tmp_path / "out").exists()
    with pytest.raises(AssertionError, match="fit was called"):
        recipes.train(recipe, tmp_path / "out")  # which draws nothing


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """A hundred pictures and four to train on, of which the first is none, and seven for the test."""
    pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("cut")
    for split, count in (("train", 104), ("test", 7)):
        made = helpers.pictures(count)
        for index, (picture, label) in enumerate(zip(made.images, made.labels)):
            path = folder / split / made.class_names[label] / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    (folder / "train" / "class 0" / "000.png").write_bytes(b"cut short")
    return folder


@pytest.mark.parametrize("told_by", ["the pictures", "image_size", "init"])
def test_an_unreadable_picture_may_be_the_first(cut, tmp_path, told_by):
    """Up to one in a hundred is left out, whichever it is; a size that is told needs no picture."""
    model, asked = tiny_recipe(cut).model, {"validation_share": 0.0}
    if told_by == "image_size":
        asked["model"] = dataclasses.replace(model, image_size=24)
    if told_by == "init":
        config = helpers.tiny_config(image_size=8, id2label={index: f"class {index}" for index in range(7)})
        asked["init"] = str(helpers.bundle(tmp_path / "init", config))
    with pytest.warns(UserWarning, match="1 of the 104 images of cut. .train. do not decode"):
        recipes.train(tiny_recipe(cut, **asked), tmp_path / "out")
    size = {"the pictures": 16, "image_size": 24, "init": 8}[told_by]
    assert check_folder(tmp_path / "out" / "bundle").image_size == size
    assert dict(read_processor(tmp_path / "out" / "bundle").size) == {"height": size, "width": size}


def test_without_a_size_some_picture_has_to_decode(tmp_path):
    """Told with one that does not, before anything is made of them."""
    for index in range(16):
        (tmp_path / "data" / str(index % 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / str(index % 2) / f"{index}.png").write_bytes(b"cut short")
    said = "`data` must be images that decode; of the 12 of data none does: .*png"
    with pytest.warns(UserWarning, match="no test part"), pytest.raises(ValueError, match=said):
        recipes.train(tiny_recipe(tmp_path / "data"), tmp_path / "out")


def test_every_recipe_describes_a_model_and_a_schedule_that_fit_together():
    """Also those that nobody can run here: a misprint would show after the download of a million images."""
    for recipe in RECIPES.values():
        made = helpers.pictures(7, recipe.model.image_size or 8)
        config = recipe.model.config(made, recipe.decomposition)
        assert recipe.decomposition.prefixes(config.reference_components)[-1] == config.reference_components
        assert config.coefficients(config.size()).isfinite().all()
