"""README.md and its pages are true: numbers come from the measured files, code and commands run, links lead on."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from modeling_lingene import LinGeneConfig
from modeling_lingene.cli import build_parser
from modeling_lingene.training.options import asked_recipe


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
PAGES = ["README.md", "hub_cards/README.md", "modeling_lingene/training/README.md", "conversion/README.md"]
PAGES += ["modeling_lingene/analysis/README.md", "modeling_lingene/pruning/README.md"]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A folder in which `lingene quickstart` has run, with one epoch a phase: accuracy does not matter here."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from modeling_lingene.training.recipes import quickstart

    folder = tmp_path_factory.mktemp("readme")
    quickstart(folder / "lingene-quickstart", epochs=1)
    (folder / "hub_cards").symlink_to(ROOT / "hub_cards")
    return folder


def test_tables_and_sentences_are_rendered_from_the_measured_files():
    """A number typed by hand, or left from an older measurement, would mislead whoever chooses by it."""
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    from render_readme import PAGES as RENDERED
    from render_readme import render

    assert set(PAGES) <= set(RENDERED)
    for name, parts in RENDERED.items():
        assert render(page(name), parts) == page(name), name


def test_the_picture_says_what_was_measured():
    """It is drawn by a script; here its words are compared, since fonts differ between machines."""
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    from idea import PICTURE, captions

    drawn = re.findall(r"<text[^>]*>(.*?)</text>", PICTURE.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = [re.sub(r"<[^>]+>", "", line).strip() for line in drawn]
    for caption in captions():
        for line in caption.splitlines():
            assert line in words
    assert f"({PICTURE.relative_to(ROOT)})" in TEXT


def test_the_method_says_which_figures_of_the_papers_are_there_and_which_are_not():
    """Whoever comes from a paper looks for its figures; those named are drawn by what is named."""
    from modeling_lingene.pruning.card import PICTURE as LAYERS
    from modeling_lingene.training import recipes
    from modeling_lingene.training.named import RECIPES

    method = " ".join(TEXT.partition("## Method")[2].split())
    there, _, absent = method.partition("Not there: ")
    for said in (
        "LinDec, Fig. 2: `lingene analyse trend MODEL --out DIR`",
        "LinDec, Fig. 4a: `sizes.png`",
        f"SPViT: `{LAYERS}`",
    ):
        assert said in there
    assert "sizes.png" in recipes.OURS and "Fig. 2" in (ROOT / "modeling_lingene/analysis/trend.py").read_text()
    assert "ImageNet" in absent and "never run here" in absent and "`--recipe paper_imagenet`" in absent
    assert "paper_imagenet" in RECIPES


def test_readme_is_short():
    """What does not fit belongs to a page beside what it describes."""
    assert len(TEXT.splitlines()) < 150


@pytest.mark.parametrize("name", [*PAGES, "tests/benchmarks/README.md"])
def test_links_lead_to_files(name):
    """A moved page leaves readers nowhere."""
    links = re.findall(r"\]\(([^)#\s]+)\)", page(name))
    for link in links:
        assert "://" in link or (ROOT / name).parent.joinpath(link).exists(), link


def test_what_is_said_of_the_released_bundle_is_in_its_sizes():
    """The first numbers that a reader sees."""
    said = " ".join(TEXT.split())
    folder = ROOT / "hub_cards" / "lingene-fashion-mnist"
    rows = json.loads((folder / "sizes.json").read_text())["sizes"]
    accuracy = {(row["depth"], row["width_ratio"], row["num_components"]): row["accuracy"] for row in rows}
    least, most = accuracy[3, "1/4", 1], accuracy[4, "1", 4]
    assert len(rows) == 48 and f"from {100 * least:.1f} % (3 layers, a quarter of the width, 1 component" in said
    assert f"to {100 * most:.1f} % (4 layers, 4 components)" in said
    assert least == min(accuracy.values()) and most == max(accuracy.values())
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 1e6 and "under 1 MB" in said


@pytest.mark.parametrize("code", [code for name in PAGES for code in blocks("python", page(name))])
def test_python_blocks_run(code, quickstart, monkeypatch):
    """The first thing a newcomer does is to paste them, beside what quickstart wrote."""
    monkeypatch.chdir(quickstart)
    names = {}
    exec(code, names)
    for value in names.values():
        if hasattr(value, "config"):
            assert value.config.model_type in ("vit", "lingene")


@pytest.mark.parametrize("name", PAGES)
def test_commands_parse(name):
    """Every `lingene ...` of a page must be one that the program takes, with sizes that its network has."""
    text = page(name)
    commands = re.findall(r"`(lingene [^`]+)`", text) + re.findall(r"&& (lingene .*)", text)
    lines = "".join(blocks("bash", text)).splitlines()
    commands += [line.partition("#")[0] for line in lines if line.startswith("lingene ")]
    assert len(commands) > 3
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
