"""README.md is true: its numbers come from the measured files, its code and its commands run."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from modeling_lingene import LinGeneConfig
from modeling_lingene.cli import build_parser
from modeling_lingene.training.options import asked_recipe


README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A folder in which `lingene quickstart` has run, with one epoch a phase: accuracy does not matter here."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from modeling_lingene.training.recipes import quickstart

    folder = tmp_path_factory.mktemp("readme")
    quickstart(folder / "lingene-quickstart", epochs=1)
    (folder / "hub_cards").symlink_to(README.parent / "hub_cards")
    return folder


def test_tables_are_rendered_from_the_measured_files():
    """A number typed by hand, or left from an older measurement, would mislead whoever chooses by it."""
    sys.path.insert(0, str(README.parent / "tests" / "benchmarks"))
    from render_readme import NOTES, NOTES_FILE, render

    assert render(TEXT) == TEXT
    notes = NOTES_FILE.read_text(encoding="utf-8")
    assert render(notes, NOTES, {}) == notes  # sentences, too


def test_what_is_said_of_the_released_bundle_is_in_its_sizes():
    """The first numbers that a reader sees."""
    folder = README.parent / "hub_cards" / "lingene-fashion-mnist"
    rows = json.loads((folder / "sizes.json").read_text())["sizes"]
    accuracy = {(row["depth"], row["width_ratio"], row["num_components"]): row["accuracy"] for row in rows}
    least, most = accuracy[3, "1/4", 1], accuracy[6, "1", 6]
    assert len(rows) == 48 and f"from {100 * least:.1f} % (3 layers, a quarter of the width, 1 component" in TEXT
    assert f"to {100 * most:.1f} % (6 layers, 6 components)" in TEXT
    assert least == min(accuracy.values()) and most == max(accuracy.values())
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 1e6 and "under 1 MB" in TEXT


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, quickstart, monkeypatch):
    """The first thing a newcomer does is to paste them, beside what quickstart wrote."""
    monkeypatch.chdir(quickstart)
    names = {}
    exec(code, names)
    for value in names.values():
        if hasattr(value, "config"):
            assert value.config.model_type in ("vit", "lingene")


def test_commands_parse():
    """Every `lingene ...` in README must be one that the program takes, with sizes that its network has."""
    commands = re.findall(r"`(lingene [^`]+)`", TEXT) + re.findall(r"&& (lingene .*)", TEXT)
    assert len(commands) > 5
    commands += [
        line.partition("#")[0] for line in "".join(blocks("bash")).splitlines() if line.startswith("lingene ")
    ]
    for command in commands:
        words = shlex.split(command)[1:]
        if "--help" not in words:
            arguments = build_parser(words[0]).parse_args(words)
            if words[0] == "decompose" and arguments.data and not arguments.init:
                recipe = asked_recipe(arguments)
                recipe.decomposition.check(LinGeneConfig(**recipe.model.shape(recipe.decomposition)))


def test_ci_runs_the_test_command_of_the_readme():
    """`.ci/run` takes the line from README; it must find exactly one there, and quickstart's beside it."""
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len([line for line in commands if re.match(r"pip install .*&& pytest", line)]) == 1
    assert len([line for line in commands if re.match(r"pip install .*&& lingene quickstart$", line)]) == 1
