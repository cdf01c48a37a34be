"""Laws of going on without the command: `lingene decompose --resume RUN` reads what RUN was asked for.

pytest tests/training/test_asked.py
"""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

import helpers
from modeling_lingene import cli
from modeling_lingene.images.augmentation import AUGMENTATIONS, Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.pruning import prune
from modeling_lingene.training import recipes
from modeling_lingene.training.asked import RUN_FILE, asked_of, keep_asked
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.loop import TrainingLoop
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.named import RECIPES
from modeling_lingene.training.settings import ModelSettings, Recipe
from modeling_lingene.training.steps import TrainingSettings


pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

RECIPE = Recipe(
    "digits",
    ModelSettings(16, 2, intermediate_size=32, depth=2),
    TrainingSettings(epochs=2, device="cpu", batch_size=256, learning_rate=1.5e-3),
    DecompositionSettings("incremental", totals=(1, 2)),
    Augmentation(**AUGMENTATIONS["shift"]),
)
LINE = "decompose --data digits --hidden-size 16 --num-attention-heads 2 --intermediate-size 32 --depth 2 --epochs 2"
LINE += " --device cpu --batch-size 256 --learning-rate 0.0015 --schedule incremental --totals 1,2 --augment shift"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, frozen_heap):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stopped(monkeypatch) -> Path:
    """A run that was interrupted in its second epoch, by its command."""
    ended = TrainingLoop._end_epoch

    def stop(loop, run, epoch, bar):
        ended(loop, run, epoch, bar)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_end_epoch", stop)
        assert cli.main([*LINE.split(), "--out", "run", "--quiet"]) == 130
    return Path("run")


@pytest.mark.parametrize(
    "recipe", [*RECIPES.values(), RECIPE, Recipe("x", init="b", objective=Objective(kind="features"))]
)
def test_what_is_kept_is_read_back_as_it_was(tmp_path, recipe):
    """JSON has no tuples and no classes, and a recipe that is only alike is another run."""
    keep_asked(tmp_path, {}, recipe=recipe, size={"depth": 3})
    assert asked_of(tmp_path, recipe=Recipe) == {"recipe": recipe, "size": {"depth": 3}}


@pytest.mark.parametrize("line", ["--resume run", "--resume --out run", "--resume run --out run"])
def test_the_folder_alone_is_the_run_that_was_asked_for(tmp_path, monkeypatch, line):
    """In whichever way it is given."""
    calls = []
    monkeypatch.setattr(recipes, "decompose", lambda *inputs, **named: calls.append((inputs, named)) or [])
    keep_asked(Path("run"), {}, recipe=RECIPE)
    assert cli.main(["decompose", *line.split(), "--quiet"]) == 0
    assert calls == [((RECIPE, Path("run")), {"resume": True})]


def test_the_folder_alone_goes_on_with_the_run_to_the_same_end(stopped, capsys):
    """The whole command again, with thirteen flags, was asked for; what comes out is what it would have given."""
    begun = [path.name for path in (stopped / "checkpoints").iterdir()]
    assert begun and cli.main(["decompose", "--resume", "run", "--quiet"]) == 0
    assert "| depth |" in capsys.readouterr().out
    recipes.decompose(RECIPE, "whole")
    went_on, whole = (json.loads(Path(run, "history.json").read_text())["epochs"] for run in ("run", "whole"))
    assert [row["loss"] for row in went_on] == [row["loss"] for row in whole] and len(whole) == 4


def test_the_message_after_an_interruption_is_a_command_that_goes_on(stopped, capsys):
    """It is there to be pasted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "_trained", _interrupted)
        assert cli.main(["decompose", "--resume", "run", "--quiet"]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "lingene decompose: interrupted. lingene decompose --resume run goes on."
    words = shlex.split(said.partition("interrupted. ")[2].removesuffix(" goes on."))
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "decompose", lambda *inputs, **named: calls.append((inputs, named)) or [])
        assert cli.main(words[1:]) == 0
    assert calls == [((recipes.suited(RECIPE), Path("run")), {"resume": True})]


def _interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_finished_run_is_read_back_by_its_folder_alone(stopped, capsys):
    """`finished` is no failure of a script that resumes."""
    for _ in range(2):
        capsys.readouterr()
        assert cli.main(["decompose", "--resume", "run", "--quiet"]) == 0
        assert "| depth |" in capsys.readouterr().out


def test_a_refusal_says_which_flags_to_repeat(stopped, capsys):
    """With the values that are there; what is no flag, and what is equal, is not among them."""
    line = (
        LINE.replace("--epochs 2", "--epochs 3").replace("--totals 1,2", "--totals 2").replace(" --augment shift", "")
    )
    assert cli.main([*line.split(), "--out", "run", "--resume"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "epochs (2 there, 3 asked)" in said and "lingene decompose --resume run goes on with its settings" in said
    words = shlex.split(said.partition("or repeat ")[2].removesuffix("."))
    assert sorted(words[::2]) == ["--crop-padding", "--epochs", "--totals"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "_trained", _interrupted)  # that is, it is let go on
        assert cli.main([*line.split(), *words, "--out", "run", "--resume"]) == 130


def test_flags_beside_the_folder_change_what_may_change_and_are_refused_otherwise(stopped, monkeypatch, capsys):
    """How often a checkpoint is written is nobody's result; the learning rate is."""
    assert cli.main(["decompose", "--resume", "run", "--learning-rate", "1"]) == 2
    assert "learning_rate (0.0015 there, 1.0 asked)" in capsys.readouterr().err
    calls = []
    monkeypatch.setattr(recipes, "decompose", lambda recipe, out, resume: calls.append(recipe) or [])
    assert cli.main(["decompose", "--resume", "run", "--checkpoint-every", "5"]) == 0
    training = dataclasses.replace(RECIPE.training, checkpoint_every=5)
    assert calls == [dataclasses.replace(recipes.suited(RECIPE), training=training)]


def test_a_run_that_was_killed_before_its_first_checkpoint_leaves_the_folder_free(stopped, monkeypatch):
    """What it was asked for is no work that could be lost."""
    for path in stopped.iterdir():
        if path.name != RUN_FILE:
            path.rename(Path("gone-" + path.name))
    monkeypatch.setattr(recipes, "_trained", _interrupted)
    other = LINE.replace("--epochs 2", "--epochs 3").split()
    assert cli.main([*other, "--out", "run"]) == 130
    assert cli.main(["decompose", "--resume", "run"]) == 130
    assert cli.main([*other, "--out", "run", "--resume"]) == 2


@pytest.mark.parametrize("text", [None, "", "{}", '{"asked": {"recipe": {"data": "digits", "colour": "red"}}}'])
@pytest.mark.parametrize("command", ["decompose", "prune"])
def test_a_folder_without_settings_is_refused_with_the_way_out(capsys, text, command):
    """A run of before, or of a later version: its whole command still goes on."""
    Path("run").mkdir()
    if text is not None:
        Path("run", RUN_FILE).write_text(text)
    assert cli.main([command, "--resume", "run"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert RUN_FILE in said and said.endswith("repeat the whole command that began it.")


def test_a_pruning_goes_on_by_its_folder_alone(capsys, monkeypatch):
    """Model, size, target, tuning and augmentation are in it."""
    config = helpers.tiny_config(
        image_size=8,
        patch_size=2,
        num_labels=10,
        id2label={index: str(index) for index in range(10)},
        label2id={str(index): index for index in range(10)},
    )
    helpers.bundle("bundle", config)
    image_processor(8).save_pretrained("bundle")
    line = "prune bundle --depth 3 --data digits --target-macs 0.5 --search none --calibration-images 16 --epochs 1"
    line += " --device cpu --batch-size 256 --augment shift --no-compare --out run --quiet"
    with monkeypatch.context() as patch:
        patch.setattr(prune, "_tuned", _interrupted)
        assert cli.main(line.split()) == 130
    assert (
        capsys.readouterr().err.splitlines()[-1] == "lingene prune: interrupted. lingene prune --resume run goes on."
    )
    assert cli.main(["prune", "--resume", "run", "--target-macs", "0.7", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "target_macs (0.5 there, 0.7 asked)" in said and "or repeat --target-macs 0.5." in said
    calls, real = [], prune.prune
    monkeypatch.setattr(
        prune, "prune", lambda *inputs, **named: calls.append((inputs, named)) or real(*inputs, **named)
    )
    for _ in range(2):  # the second reads it back
        assert cli.main(["prune", "--resume", "run", "--quiet"]) == 0
        assert " pruned |" in capsys.readouterr().out
    (inputs, named) = calls[0]
    assert inputs == ("bundle", Path("run")) and named["size"] == {"depth": 3} and named["resume"] is True
    assert named["settings"] == prune.PruneSettings("digits", 0.5, search="none", calibration_images=16, compare=False)
    assert named["training"].epochs == 1 and named["training"].learning_rate == 5e-4
    assert named["augmentation"] == Augmentation(**AUGMENTATIONS["shift"])
