"""Laws of the flags of training commands: one per setting, shown with the text of its docstring and its default.

The docstrings are read a second time here, line by line; what is printed is compared with that and with the recipes.

    pytest tests/training/options/test_options.py
"""

import argparse
import dataclasses
import inspect
import re
import shlex

import pytest
from asking import FIELDS, FLAGS, OTHERS, SINGLE

from lingene.telling import flags_of, in_flags
from modeling_lingene import cli
from modeling_lingene.images.augmentation import AUGMENTATIONS
from modeling_lingene.training.named import ABOUT, RECIPES
from modeling_lingene.training.options import GROUPS, add_recipe_options, asked_recipe, described
from modeling_lingene.training.recipes import Recipe


def actions() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser()
    add_recipe_options(parser)
    return {action.dest: action for action in parser._actions}


def titles() -> dict[str, str]:
    """{flag's name: title of the group it stands in}."""
    parser = argparse.ArgumentParser()
    add_recipe_options(parser)
    return {action.dest: group.title for group in parser._action_groups for action in group._group_actions}


def texts(settings: type) -> dict[str, str]:
    """The same as `described`, read line by line: what is indented once more goes on."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(settings.__doc__).partition("\nArgs:\n")[2].splitlines():
        if not line.strip():
            break
        if line[:4] == "    " and line[4] != " ":
            head, text = line[4:].split(": ", 1)
            names = head.split(", ")
        else:
            text = line.strip()
        found |= {name: f"{found.get(name, '')} {text}".strip() for name in names}
    return found


def test_the_groups_are_the_settings_of_a_recipe():
    """A setting that no flag reaches could only be changed in Python."""
    assert {field.name: field.type for field in dataclasses.fields(Recipe) if field.name in GROUPS} == GROUPS
    assert {field.name for field in dataclasses.fields(Recipe)} == GROUPS.keys() | SINGLE.keys()
    for group, settings in GROUPS.items():
        assert {field.name for field in dataclasses.fields(settings)} == OTHERS[group].keys()


def test_no_two_settings_have_one_name():
    """They share one command line, and one flat identity."""
    others = ["recipe", "method", "out", "resume", "augment", "command", "quiet"]
    names = [*SINGLE, *(name for _, name in FIELDS), *others]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("settings", [*GROUPS.values(), Recipe], ids=lambda settings: settings.__name__)
def test_every_field_has_a_text_of_its_own(settings):
    """Read a second time line by line; a field without one would break the command, a run of two would mislead."""
    told = described(settings)
    expected = {field.name for field in dataclasses.fields(settings) if field.name not in GROUPS}
    assert told.keys() == expected and told == texts(settings)
    for text in told.values():
        assert text == " ".join(text.split()) and text.endswith(".")


@pytest.mark.parametrize("settings", [*GROUPS.values(), Recipe], ids=lambda settings: settings.__name__)
def test_the_texts_are_the_same_where_python_strips_the_docstring(settings):
    """From 3.13 on the compiler removes the indentation that a docstring's lines share."""
    stripped = type(settings.__name__, (), {"__doc__": inspect.cleandoc(settings.__doc__)})
    assert described(stripped) == texts(settings)


@pytest.mark.parametrize("group, name", [*FIELDS, *((None, name) for name in SINGLE if name != "data")])
def test_every_setting_has_its_flag_with_its_text_and_default_in_its_group(group, name):
    """The field's name with dashes; what the docstring says is what `--help` says."""
    settings, action = GROUPS.get(group, Recipe), actions()[name]
    flag, default = (
        FLAGS.get(name, name).replace("_", "-"),
        {field.name: field.default for field in dataclasses.fields(settings)}[name],
    )
    assert action.option_strings == [f"--{flag}", *([f"--no-{flag}"] if isinstance(default, bool) else [])]
    shown = ",".join(str(part) for part in default) if isinstance(default, tuple) else str(default)
    suffix = f" (default: {shown})" if shown else ""
    assert action.help.replace("%%", "%") == texts(settings)[name] + suffix
    assert action.default is None and not action.required
    assert titles()[name] == (group or "options")


def test_a_few_texts_word_by_word():
    """Of one line, of several, of two fields at once, and the last before `Raises`."""
    told = {name: action.help for name, action in actions().items()}
    assert told["patch_size"] == "pixels. (default: 4)"
    assert told["totals"] == (
        "components after each phase of the incremental schedule; also the prefixes that are measured. Empty: "
        "doubling up to all, with the sampling `scala` all alone. With all alone, no prefixes are drawn."
    )
    assert told["mixup"] == told["cutmix"] and told["mixup"].startswith("alpha of the Beta distribution; 0 for none")
    assert told["label_smoothing"] == "of the cross-entropy with the labels. (default: 0.0)"


def test_help_prints_the_groups_and_every_flag(capsys):
    """A percent sign in a docstring must not break it either: argparse formats what it prints."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["decompose", "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and printed.startswith("usage: lingene decompose --data DATA --out DIR")
    headings = re.findall(r"^(\w+):$", printed, re.MULTILINE)
    assert headings == ["options", "model", "decomposition", "training", "objective", "augmentation"]
    sections = dict(zip(headings, re.split(r"^\w+:$", printed, flags=re.MULTILINE)[1:]))
    for group, name in FIELDS:
        flag = FLAGS.get(name, name).replace("_", "-")
        assert re.search(rf"^  --{flag}[ ,\n]", sections[group], re.MULTILINE)
    for name in ("recipe", "data", "out", "resume", "augment", "teacher", "cache-teacher", "workers"):
        assert re.search(rf"^  --{name}[ ,\n]", sections["options"], re.MULTILINE)
    assert all(name in printed for name in (*RECIPES, *AUGMENTATIONS))


@dataclasses.dataclass(frozen=True)
class Shares:
    """Something.

    Args:
        share: 50 % (100%) of all, %(prog)s.
    """

    share: float = 0.5


def test_a_percent_sign_in_a_text_is_printed_as_it_is(monkeypatch, capsys):
    """`50 %` in a docstring is a conversion to argparse's formatting."""
    monkeypatch.setitem(GROUPS, "objective", Shares)
    with pytest.raises(SystemExit):
        cli.main(["decompose", "--help"])
    assert "50 % (100%) of all, %(prog)s. (default: 0.5)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_after_a_recipe_shows_its_values_and_help_alone_the_defaults(capsys, recipe):
    """What a flag changes is seen before it is changed; the page said 192 channels where the recipe has 64."""
    pages = []
    for line in (["--recipe", recipe], []):
        with pytest.raises(SystemExit):
            cli.main(["decompose", *line, "--help"])
        pages.append("".join(capsys.readouterr().out.split()))  # lines break at hyphens, too
    parser = argparse.ArgumentParser()
    add_recipe_options(parser)
    flags = flags_of(parser)
    for settings in (RECIPES[recipe], *(getattr(RECIPES[recipe], group) for group in GROUPS)):
        for name, value in vars(settings).items():
            if name not in ("data", *GROUPS) and value not in ("", ()):
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                text = in_flags(f"{described(type(settings))[name]} ({recipe}: {shown})", flags)
                assert "".join(text.split()) in pages[0], name
    assert f"({recipe}:" not in pages[1] and "tostage.(default:192)" in pages[1]


def test_recipes_are_listed_with_what_they_train_and_each_as_a_command_that_is_it(capsys):
    """The command is parsed again: it must be the recipe, setting by setting."""
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"\| +fashion_mnist_sizes \|.* 1/4, 1/2, 3/4, 1 \|", listed)
    assert re.search(r"\| +digits \| +digits \| +6 \| +64 \| +4 \| +elastic \| +1, 2, 4, 6 \|", listed)
    assert ABOUT.keys() == RECIPES.keys() and all(f"{name}: {about}" in listed for name, about in ABOUT.items())
    for name, recipe in RECIPES.items():
        assert cli.main(["recipes", name]) == 0
        told = capsys.readouterr().out
        words = shlex.split(told.splitlines()[-1])
        assert ABOUT[name] in told and asked_recipe(cli.build_parser("decompose").parse_args(words[1:])) == recipe
    assert cli.main(["recipes", "gruel"]) == 2
    assert "digits" in capsys.readouterr().err
