"""Laws of the quickstart: what it says about its sizes is what scikit-learn and closed forms say, and how it goes on.

One quickstart of one epoch per phase serves all tests but the slow one, which runs the real thing.

    pytest tests/training/recipes/test_quickstart.py
"""

import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from accelerate import Accelerator
from recipe_runs import forbid, read
from transformers import AutoModelForImageClassification, pipeline

import helpers
from modeling_lingene.folders import bundle_weights_id
from modeling_lingene.measuring import drawing
from modeling_lingene.training import recipes
from modeling_lingene.training.loop import TrainingLoop
from modeling_lingene.training.named import RECIPES
from modeling_lingene.training.recipes import quickstart
from modeling_lingene.writing_lingene import partial_name


sklearn_datasets = pytest.importorskip("sklearn.datasets")
pytest.importorskip("matplotlib")

TOTALS = RECIPES["digits"].decomposition.totals
DEPTHS = (*RECIPES["digits"].decomposition.depths, RECIPES["digits"].model.depth)
CLASSES, TOKENS, HIDDEN, MLP = 10, 5, 64, 128  # of the quickstart's model: four patches and the class token


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    asked = {"data": "digits", "totals": list(TOTALS), "depths": list(DEPTHS[:-1]), "networks": 4}
    assert results["identity"].items() >= asked.items() and results["run"]["seconds"] > 0
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


def test_a_run_that_was_killed_while_it_wrote_goes_on(run, unfinished, unmeasured, monkeypatch):
    """What it was writing stays, under a hidden name: a bundle, a file, the question whether one can be written, a
    picture as an earlier version drew it. Nobody but the run's own writers has use for it."""
    for name in ("bundle", "best"):
        left = unfinished / partial_name(unfinished / name)
        left.mkdir()
        (left / "config.json").write_text("cut sh")
    for name in ("results.json", "history.json", "sizes.png", "."):
        (unfinished / partial_name(unfinished / name)).write_text("cut sh")
    (unfinished / ".sizes.png.1.tmp").write_text("cut sh")
    forbid(monkeypatch, "_run_epoch")
    assert quickstart(unfinished, epochs=1) == run.rows
    assert bundle_weights_id(unfinished / "bundle") == bundle_weights_id(run.bundle)


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
        (".notes.txt.0123abcd.1.0123abcd.partial", "mine"),
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
