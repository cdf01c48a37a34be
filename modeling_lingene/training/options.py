"""Command-line flags of training commands, generated from the settings' dataclasses and their docstrings.

The words are the fields' names with dashes; what is not given stays as the recipe has it.
"""

import argparse
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, get_type_hints

from lingene.options import depths, integers, words
from lingene.telling import speak_in_flags

from ..images.augmentation import AUGMENTATIONS, Augmentation
from .decomposition import DecompositionSettings
from .losses import Objective
from .named import METHODS, RECIPES, as_published
from .record import flag_of
from .settings import ModelSettings, Recipe
from .steps import TrainingSettings


GROUPS = {
    "model": ModelSettings,
    "decomposition": DecompositionSettings,
    "training": TrainingSettings,
    "objective": Objective,
    "augmentation": Augmentation,
}
LISTS = {
    tuple[int, ...]: {"type": integers, "metavar": "N,N"},
    tuple[int | str, ...]: {"type": depths, "metavar": "N,N"},
    tuple[str, ...]: {"type": words, "metavar": "A,B"},
}


def add_recipe_options(command: argparse.ArgumentParser) -> None:
    """`--recipe`, `--data`, `--out`, `--resume`, and a flag for every field of every setting."""
    command.usage = "lingene decompose --data DATA --out DIR [options]\n       lingene decompose --resume DIR"
    text = "start from a named run; flags change parts of it; --help after it shows its values"
    named = command.add_argument("--recipe", action=_Recipe, choices=RECIPES, help=text)
    command.add_argument(
        "--method", choices=METHODS, help="the training scheme of a paper by name; flags change parts of it"
    )
    command.add_argument("--data", help="digits, a folder of images, parquet files, a name on the Hub")
    command.add_argument("--out", type=Path, help="folder of the run")
    add_resume_option(command)
    command.add_argument("--augment", choices=AUGMENTATIONS, help="augmentation by name; the flags below change parts")
    named.flags = {"": add_fields(command, Recipe, skip={"data", *GROUPS})}
    for name, settings in GROUPS.items():
        named.flags[name] = add_fields(command.add_argument_group(name), settings)


class _Recipe(argparse.Action):
    """Takes a recipe's name, and lets a help page that is asked for after it show the recipe's values.

    `flags`, set when all of them are there: by group, "" for the recipe's own, what `add_fields` gave.
    """

    flags: dict[str, dict[str, argparse.Action]]

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, name: str, *_) -> None:
        namespace.recipe = name
        for group, actions in self.flags.items():
            settings = getattr(RECIPES[name], group) if group else RECIPES[name]
            texts = described(type(settings))
            for field, action in actions.items():
                action.help = _text(texts[field], getattr(settings, field), name)
        speak_in_flags(parser)


def add_resume_option(command: argparse.ArgumentParser) -> None:
    """`--resume DIR`; without DIR it is that of `--out`."""
    text = "go on with the run in DIR (default: in `out`) by its own settings, or read a finished one back"
    command.add_argument("--resume", nargs="?", type=Path, const=True, default=False, metavar="DIR", help=text)


def asked_recipe(arguments: argparse.Namespace, stored: Recipe | None = None) -> Recipe:
    """The recipe that the flags describe.

    Args:
        stored: of the run to go on with; flags are changes of it.

    Raises:
        ValueError: neither `recipe` nor `data`, or whatever a setting refuses.
    """
    if arguments.recipe is None and arguments.data is None and stored is None:
        raise ValueError("`data` says what to train on: give --data, or a --recipe that names it.")
    recipe = RECIPES[arguments.recipe] if arguments.recipe else stored or Recipe(data=arguments.data)
    if arguments.method is not None:
        recipe = as_published(recipe, arguments.method)
    own = given(arguments, ModelSettings).keys() - {"num_components", "dropout"}
    if arguments.init and own:
        raise ValueError(f"`{min(own)}` is the bundle's that `init` names; leave one of them out.")
    if arguments.init and arguments.num_components is None:  # not the recipe's
        arguments.num_components = 0
    if arguments.augment is not None:
        recipe = dataclasses.replace(recipe, augmentation=Augmentation(**AUGMENTATIONS[arguments.augment]))
    changed = {name: dataclasses.replace(getattr(recipe, name), **given(arguments, GROUPS[name])) for name in GROUPS}
    return dataclasses.replace(recipe, **changed, **given(arguments, Recipe))


def given(arguments: argparse.Namespace, settings: type) -> dict[str, Any]:
    """The fields of some settings that were asked for."""
    names = [field.name for field in dataclasses.fields(settings) if field.name not in GROUPS]
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}


def add_fields(
    group: Any, settings: type, base: Any = None, skip: set[str] = frozenset(), told: dict[str, str] | None = None
) -> dict[str, argparse.Action]:
    """A flag for every field of some settings, by field.

    Args:
        base: whose values stand where nothing is given; default the defaults of the fields.
        told: texts of some fields in place of their own.
    """
    types, texts, added = get_type_hints(settings), described(settings) | (told or {}), {}
    for field in dataclasses.fields(settings):
        if field.name not in skip:
            kind = types[field.name]
            if kind is bool:
                read = {"action": argparse.BooleanOptionalAction}
            elif kind in LISTS:
                read = LISTS[kind]
            else:
                read = {"type": kind, "metavar": kind.__name__.upper()}
            text = _text(texts[field.name], getattr(base, field.name, field.default))
            added[field.name] = group.add_argument(flag_of(field), dest=field.name, help=text, **read)
    return added


def _text(text: str, value: Any, whose: str = "default") -> str:
    """A help text with the value that stands where none is given; argparse formats what it prints."""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return (text + (f" ({whose}: {shown})" if shown not in ("", None) else "")).replace("%", "%%")


def described(settings: type) -> dict[str, str]:
    """The text of every field in the `Args:` of a docstring; `a, b: text` describes both."""
    lines = inspect.cleandoc(settings.__doc__ or "").split("Args:", 1)[1].split("Raises:")[0]
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", lines, re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}
