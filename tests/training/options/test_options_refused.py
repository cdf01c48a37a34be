"""Laws of training commands that cannot run, or are interrupted: nothing is loaded, and in which words it is said.

Against lists of wrong values written down here; a refusal names the field or the flag, and often the way out.

    pytest tests/training/options/test_options_refused.py
"""

import re
from pathlib import Path

import pytest
from asking import asked, options

import helpers
from lingene import main
from modeling_lingene import cli
from modeling_lingene.training import recipes


@pytest.mark.parametrize("line", ["", "--resume", "--epochs 3", "--teacher x"])
def test_neither_recipe_nor_data_is_refused_and_says_what_to_give(line, tmp_path, monkeypatch, capsys):
    """In one line, status 2, and no folder is made."""
    with pytest.raises(ValueError, match="`data`.*--data.*--recipe"):
        asked(line)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["decompose", "--out", "out", *line.split()]) == 2
    printed, named = capsys.readouterr(), "resume" if "resume" in line else "data"
    assert printed.out == "" and re.fullmatch(rf"lingene decompose: `--{named}` [^\n]*\n", printed.err)
    assert list(tmp_path.iterdir()) == []


BAD = [
    "epochs 0",
    "batch-size 0",
    "accumulation -1",
    "learning-rate 0",
    "learning-rate nan",
    "learning-rate inf",
    "weight-decay -1",
    "warmup 1.5",
    "max-grad-norm 0",
    "ema 1",
    "precision fp64",
    "device tpu",
    "checkpoint-every -1",
    "keep-checkpoints 0",
    "evaluate-every -1",
    "schedule fast",
    "totals 4,2,1",
    "totals 1,1",
    "totals 0,1",
    "sampling two",
    "full-share 1.1",
    "full-share nan",
    "new-components one",
    "distillation medium",
    "temperature 0",
    "temperature nan",
    "label-smoothing 1",
    "crop-padding -1",
    "color-jitter -0.1",
    "erasing 2",
    "mixup nan",
    "cutmix -1",
    "mixing 1.01",
]
BAD_MODELS = [
    "hidden-size 0",
    "hidden-size -48",
    "num-attention-heads 0",
    "intermediate-size -1",
    "image-size -16",
    "patch-size 0",
    "patch-size -4",
    "depth 0",
    "num-components -1",
    "preset papery",
    "basis cosine",
    "nodes random",
    "start-degree -2",
    "degree-weight nan",
    "depth-map nearest",
    "dropout 1.5",
    "dropout -0.1",
    "dropout nan",
]


def value_of(line: str) -> str:
    """How a message shows it: without the quotes or the brackets of its type."""
    return line.split()[1].replace(",", ", ")


@pytest.mark.parametrize("line", BAD)
@pytest.mark.parametrize("base", ["--recipe digits", "--data faces"])
def test_a_value_that_cannot_be_is_refused_with_the_name_of_its_field(base, line):
    """Before anything is loaded."""
    field = line.split()[0].replace("-", "_")
    with pytest.raises(ValueError, match=rf"`{field}`.*{re.escape(value_of(line).rstrip('.0'))}"):
        asked(f"{base} --{line}")


@pytest.mark.parametrize("line", BAD_MODELS)
def test_a_network_that_cannot_be_is_refused_with_the_name_of_its_field(line):
    """At the latest when the images say the size and the classes; not by the shape of some tensor."""
    field = line.split()[0].replace("-", "_")
    with pytest.raises(ValueError, match=rf"`{field}`"):
        recipe = asked(f"--data faces --{line}")
        recipe.model.config(helpers.pictures(7), recipe.decomposition)


def test_workers_below_zero_are_refused_by_name():
    """The loader would say `num_workers`, hours later or never."""
    with pytest.raises(ValueError, match="`workers`"):
        asked("--data faces --workers -1")


@pytest.mark.parametrize("flag", ["--totals", "--depths"])
@pytest.mark.parametrize("text", ["1,x", "1.5", "1,,2", "1,", "[1,2]", "1;2", "one"])
def test_a_list_that_is_none_is_an_error_of_the_command_line_that_shows_it(capsys, flag, text):
    """Status 2 from argparse; the last line names the option, what came, and how it should look."""
    with pytest.raises(SystemExit) as stop:
        options(f"--data faces {flag} {text}")
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and flag in last and repr(text) in last and "1,2,4" in last


@pytest.mark.parametrize(
    "line", ["--epochs 1.5", "--warmup x", "--augment all", "--recipe cifar", "--flip yes", "--deptj 3", "--batch 8,9"]
)
def test_a_flag_that_cannot_be_parsed_is_status_2(capsys, line):
    """As everywhere in this command line."""
    with pytest.raises(SystemExit) as stop:
        options(f"--data faces {line}")
    assert stop.value.code == 2
    assert re.search(rf"{line.split()[0][2:]}|yes", capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("line", ["--data faces", "--data faces --resume", "--data faces --resume a --out b"])
def test_the_folder_must_be_named_and_be_one(capsys, line):
    """A run writes gigabytes: not into whatever folder one stands in."""
    assert cli.main(["decompose", *line.split()]) == 2
    assert "`--out`" in capsys.readouterr().err and not Path("a").exists()


def test_an_interruption_while_a_command_is_imported_is_a_line(monkeypatch, capsys):
    """Not a traceback: torch takes seconds, and nothing was done yet."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "build_parser", interrupted)
    assert cli.main(["decompose", "--data", "digits", "--out", "out"]) == 130
    assert capsys.readouterr() == ("", "\nlingene: interrupted.\n")


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("line", ["", "--resume"])
def test_an_interrupted_command_says_how_to_go_on(monkeypatch, tmp_path, capsys, line, begun):
    """`--resume` is a flag and that sentence too; one must not overwrite the other. A run that has not kept its
    settings yet, as while it reads pictures, cannot go on by its folder alone."""
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()

    def interrupted(*_, **__):
        if begun:
            Path("out", "run.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "decompose", interrupted)
    assert cli.main(["decompose", "--out", "out", "--data", "faces", *line.split()]) == 130
    told = capsys.readouterr().err.strip()
    whole = "Nothing to go on by was written yet: give the whole command again, with --resume."
    then = "lingene decompose --resume out goes on." if begun else whole
    assert told == f"lingene decompose: interrupted. {then}"


@pytest.mark.parametrize("command", ["decompose", "prune"])
@pytest.mark.parametrize("wrong", ["bogus", "rand-m9-x1", "augmix-foo3"])
def test_an_augmentation_that_timm_does_not_know_is_refused_before_any_work(tmp_path, capsys, command, wrong):
    """By timm's own reading of it, an assertion there; nothing is read or written."""
    for package in ("timm", "matplotlib", "sklearn"):
        pytest.importorskip(package)
    line = [command, "--data", "digits", "--out", str(tmp_path / "out"), "--rand-augment", wrong, "--device", "cpu"]
    line += ["--target-macs", "0.5", str(tmp_path / "vit")] if command == "prune" else []
    if command == "prune":
        (tmp_path / "vit").mkdir()
        (tmp_path / "vit" / "config.json").write_text("{}")
    assert cli.main(line) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"lingene {command}: `--rand-augment` must be .*rand-m9-mstd0.5-inc1; got '{wrong}': .*\n", said
    )
    assert not (tmp_path / "out").exists()
