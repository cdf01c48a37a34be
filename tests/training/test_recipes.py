"""Laws of the named runs: what the quickstart says about its sizes is what scikit-learn and closed forms say.

One quickstart of one epoch per phase serves all tests but the slow one, which runs the real thing.

    pytest tests/training/test_recipes.py
"""

import argparse
import dataclasses
import json
import shlex
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForImageClassification, pipeline

import helpers
from modeling_lingene.folders import bundle_weights_id, check_folder, write_training
from modeling_lingene.images import data
from modeling_lingene.images.data import load_images, open_parts
from modeling_lingene.measuring import drawing
from modeling_lingene.measuring.sweep import sweep_data
from modeling_lingene.training import recipes
from modeling_lingene.training.loop import TrainingLoop
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.options import add_recipe_options, asked_recipe
from modeling_lingene.training.recipes import RECIPES, quickstart
from modeling_lingene.training.record import base_model_of, command_of, training_facts


sklearn_datasets = pytest.importorskip("sklearn.datasets")
pytest.importorskip("matplotlib")

TOTALS, DEPTHS = RECIPES["digits"].decomposition.totals, RECIPES["digits"].decomposition.depths
CLASSES, TOKENS, HIDDEN, MLP = 10, 5, 64, 128  # of the quickstart's model: four patches and the class token


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished quickstart, read only: its folder and the rows it returned."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("quickstart") / "out"
    return SimpleNamespace(out=out, bundle=out / "bundle", rows=quickstart(out, epochs=1))


@pytest.fixture
def unfinished(run: SimpleNamespace, tmp_path: Path) -> Path:
    """The run as it is when it is stopped between its last checkpoint and its bundle."""
    out = tmp_path / "out"
    shutil.copytree(run.out / "checkpoints", out / "checkpoints")
    return out


@pytest.fixture
def unmeasured(run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring, which takes most of the time, answers at once."""
    monkeypatch.setattr(recipes, "measure_sizes", lambda *_, **__: run.rows)


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def forbidden(*_, **__):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(TrainingLoop, name, forbidden)


def held_out() -> tuple[torch.Tensor, numpy.ndarray]:
    """The 360 test digits, straight from scikit-learn: pixel_values (360, 3, 8, 8) and targets."""
    from sklearn.model_selection import train_test_split

    digits = sklearn_datasets.load_digits()
    _, images, _, targets = train_test_split(
        digits.images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    grey = (images * 255 / 16).round() / 255  # the eight bits of an image file
    return torch.tensor(2 * grey - 1, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1), targets


def test_the_folder_holds_the_bundle_the_numbers_and_the_plot_and_nothing_half_written(run):
    """The names of the command line's documentation; a leftover of staging would be pushed or shown."""
    numbers = {"history.json", "history.png", "results.json", "run.json", "sizes.png"}
    assert {path.name for path in run.out.iterdir()} == {"best", "bundle", "checkpoints", *numbers}
    files = {path.name for path in run.bundle.iterdir()}
    weights = {"shared.safetensors"} | {f"component-{n:02d}.safetensors" for n in range(TOTALS[-1])}
    assert weights | {"config.json", "sizes.json", "README.md", "preprocessor_config.json"} <= files
    assert {file for file in files if file.endswith(".safetensors")} == weights
    assert not [path for path in run.out.rglob("*") if "partial" in path.name]


def test_there_is_a_row_for_every_size_and_it_is_the_same_everywhere(run):
    """Returned, in sizes.json, in results.json: three places, one measurement, tied to these weights."""
    sizes, results = read(run.bundle / "sizes.json"), read(run.out / "results.json")
    assert run.rows == sizes["sizes"] == results["sizes"]
    asked = [(row["depth"], row["width_ratio"], row["num_components"]) for row in run.rows]
    assert sorted(asked) == sorted(product(DEPTHS, ["1"], TOTALS)) and len(asked) == 12
    index = read(run.bundle / "model.safetensors.index.json")
    assert sizes["weights_id"] == index["metadata"]["weights_id"] == bundle_weights_id(run.bundle)
    assert {(row["split"], row["dataset"]) for row in run.rows} == {("test", "digits")}
    assert all(row["latency_ms"] > 0 and row["device"].endswith("(1 thread)") for row in run.rows)


def test_results_say_which_run_it_was(run):
    """Without them a second call could not know that it is the same run."""
    results = read(run.out / "results.json")
    assert results["identity"].items() >= {"data": "digits", "totals": list(TOTALS), "depths": list(DEPTHS)}.items()
    assert (results["identity"]["epochs"], results["identity"]["seed"]) == (1, 0)


def test_each_accuracy_is_that_of_the_materialised_model_on_scikit_learns_digits(run):
    """Recounted without our data, preprocessing, batches or metrics: 360 images, one answer each."""
    pixel_values, targets = held_out()
    for row in run.rows:
        size = {"depth": row["depth"], "num_components": row["num_components"]}
        model = AutoModelForImageClassification.from_pretrained(run.bundle, **size).eval()
        with torch.no_grad():
            answers = model(pixel_values).logits.argmax(-1).numpy()
        assert row["accuracy"] == round((answers == targets).mean().item(), 6), size
    assert len({row["accuracy"] for row in run.rows}) > 3  # a row is not another row's


def test_parameters_and_macs_are_the_closed_forms(run):
    """Counted by hand for the stock ViT of each size; the download counts each component once."""
    block = 4 * (HIDDEN * HIDDEN + HIDDEN) + 2 * HIDDEN * MLP + MLP + HIDDEN + 4 * HIDDEN
    patches = 3 * 4 * 4 * HIDDEN
    shared = patches + HIDDEN + HIDDEN + TOKENS * HIDDEN + 2 * HIDDEN + HIDDEN * CLASSES + CLASSES
    layer = 4 * TOKENS * HIDDEN**2 + 2 * TOKENS**2 * HIDDEN + 2 * TOKENS * HIDDEN * MLP
    for row in run.rows:
        assert row["params"] == shared + row["depth"] * block
        assert row["stored_params"] == shared + row["num_components"] * block
        assert row["macs"] == (TOKENS - 1) * patches + row["depth"] * layer + HIDDEN * CLASSES


def test_the_plot_is_an_image(run):
    """The user's first sight of a result; an empty canvas has one colour."""
    image = pytest.importorskip("PIL.Image").open(run.out / "sizes.png")
    image.load()
    assert (
        image.format == "PNG"
        and min(image.size) > 300 * drawing.DPI / helpers.DPI
        and len(image.convert("RGB").getcolors(2**24)) > 10
    )


def test_a_digit_goes_through_the_bundle_with_a_stock_pipeline(run):
    """Labels and preprocessing are saved with it: what a user does next needs nothing of ours."""
    from PIL import Image

    grey = (sklearn_datasets.load_digits().images[0] * 255 / 16).round().astype("uint8")
    model = AutoModelForImageClassification.from_pretrained(run.bundle, depth=3)
    answers = pipeline("image-classification", model=model, image_processor=str(run.bundle), top_k=10)(
        Image.fromarray(grey).convert("RGB")
    )
    assert sorted(answer["label"] for answer in answers) == [str(digit) for digit in range(10)]


def test_a_finished_run_is_read_back_without_training(run, monkeypatch):
    """Running the command again shows the table at once, and changes no file."""
    before = contents(run.out)
    forbid(monkeypatch, "fit")
    assert quickstart(run.out, epochs=1) == run.rows
    assert contents(run.out) == before


def test_a_run_stopped_while_measuring_goes_on_without_a_step(run, unfinished, unmeasured, monkeypatch):
    """The weights are those of the run that was not stopped."""
    forbid(monkeypatch, "_run_epoch")
    assert quickstart(unfinished, epochs=1) == run.rows
    assert bundle_weights_id(unfinished / "bundle") == bundle_weights_id(run.bundle)
    assert read(unfinished / "results.json") == read(run.out / "results.json")


@pytest.mark.parametrize("written", [pytest.param([], marks=pytest.mark.slow), ["model.safetensors"]])
def test_a_run_stopped_in_its_first_save_goes_on(run, unmeasured, tmp_path, monkeypatch, written):
    """The folder then holds a part of a checkpoint and nothing else; it must not pass for somebody else's."""

    def save_state(accelerator, folder):
        Path(folder).mkdir(parents=True)
        for name in written:
            (Path(folder) / name).write_bytes(b"cut short")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Accelerator, "save_state", save_state)
        with pytest.raises(KeyboardInterrupt):
            quickstart(tmp_path / "out", epochs=1)
    quickstart(tmp_path / "out", epochs=1)
    assert bundle_weights_id(tmp_path / "out" / "bundle") == bundle_weights_id(run.bundle)


@pytest.mark.parametrize("changes, named", [({"seed": 1}, "seed"), ({"epochs": 2}, "epochs")])
def test_other_settings_are_refused_in_a_folder_that_is_finished_or_begun(run, unfinished, changes, named):
    """Numbers of one run beside the weights of another would both look right."""
    for out in (run.out, unfinished):
        before = contents(out)
        with pytest.raises(ValueError, match=rf"`out` .*another.*{named}"):
            quickstart(out, **{"epochs": 1, **changes})
        assert contents(out) == before


@pytest.mark.parametrize(
    "name, content",
    [
        ("notes.txt", "mine"),
        ("results.json", "{}"),
        ("results.json", "[]"),
        ("results.json", "cut sh"),
        ("bundle/config.json", "mine"),
        ("sizes.png", "mine"),
        ("", "mine"),
    ],
)
def test_a_place_that_holds_something_else_is_refused_and_left_alone(tmp_path, monkeypatch, name, content):
    """Before the first step; a bundle that no checkpoint goes with is somebody's, and `out` itself may be a file."""
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(content)
    before = contents(tmp_path)
    forbid(monkeypatch, "fit")
    with pytest.raises(ValueError, match="`out`"):
        quickstart(out, epochs=1)
    assert contents(tmp_path) == before


def test_an_empty_folder_is_taken(tmp_path, monkeypatch):
    """Somebody made it first; a run into no folder at all is the one that other tests read."""
    forbid(monkeypatch, "fit")
    with pytest.raises(AssertionError, match="fit was called"):
        quickstart(tmp_path, epochs=1)


def test_training_uses_one_thread_and_gives_the_others_back(tmp_path, monkeypatch):
    """On a busy machine, threads that wait for each other made steps of this size fifty times slower."""
    seen = []

    def fit(*_):
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLoop, "fit", fit)
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        quickstart(tmp_path / "out")
    assert (seen, torch.get_num_threads()) == ([1], 2)


@pytest.mark.slow
def test_the_whole_quickstart_reaches_95_percent_at_every_depth(tmp_path):
    """What the README promises of the first command that anybody runs, with room for another machine's rounding."""
    rows = quickstart(tmp_path / "out")
    best = {depth: max(row["accuracy"] for row in rows if row["depth"] == depth) for depth in DEPTHS}
    assert min(best.values()) >= 0.95, best


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Pictures of noise in train/ and test/, a subfolder per class."""
    pytest.importorskip("datasets")
    for split, count, seed in (("train", 28, 0), ("test", 14, 1)):
        made = helpers.pictures(count, seed=seed)
        for index, (picture, label) in enumerate(zip(made.images, made.labels)):
            path = tmp_path / "data" / split / made.class_names[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return tmp_path / "data"


def tiny_recipe(data: Path, **changes) -> recipes.Recipe:
    settings = recipes.TrainingSettings(epochs=1, batch_size=8, device="cpu")
    model = recipes.ModelSettings(24, 2, intermediate_size=24, patch_size=8, depth=3)
    return recipes.Recipe(**{"data": str(data), "model": model, "training": settings, **changes})


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
    masked = recipes.RECIPES["digits"]
    masked = dataclasses.replace(masked, init="org/base", teacher="org/teacher", model=recipes.ModelSettings())
    masked = dataclasses.replace(masked, objective=Objective(kind="features", mask_share=0.5), validation_share=0.25)
    published = [recipes.as_published(recipe, "scala") for recipe in recipes.RECIPES.values()]
    for recipe in [*recipes.RECIPES.values(), *published, masked]:
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
    assert base_model_of(str(start)) is None and base_model_of("org/base") == "org/base" and base_model_of("") is None
    report = {"source": "org/vit", "fit": "exact", "depth": 6, "num_components": 5, "relative_logit_error": 0.0}
    (start / "conversion.json").write_text(json.dumps(report))
    assert base_model_of(str(start)) == "org/vit"
    write_training(start, training_facts(recipe, [{"seconds": 1.0}], "set", 5, "a machine", 1) | {"base_model": "a/b"})
    assert base_model_of(str(start)) == "a/b"


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
    assert check_folder(tmp_path / "out" / "bundle").trained_depths == [2, 3]


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


def test_every_recipe_describes_a_model_and_a_schedule_that_fit_together():
    """Also those that nobody can run here: a misprint would show after the download of a million images."""
    for recipe in RECIPES.values():
        made = helpers.pictures(7, recipe.model.image_size or 8)
        config = recipe.model.config(made, recipe.decomposition)
        assert recipe.decomposition.prefixes(config.reference_components)[-1] == config.reference_components
        assert config.coefficients(config.size()).isfinite().all()
