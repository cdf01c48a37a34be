"""Command-line flags of training commands, generated from the settings' dataclasses and their docstrings.

The words are the fields' names with dashes; what is not given stays as the recipe has it.
"""

import argparse
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, get_type_hints

from ..images.augmentation import AUGMENTATIONS, Augmentation
from .decomposition import DecompositionSettings
from .loop import TrainingSettings
from .losses import Objective
from .recipes import METHODS, RECIPES, as_published
from .record import flag_of
from .settings import ModelSettings, Recipe


GROUPS = {
    "model": ModelSettings,
    "decomposition": DecompositionSettings,
    "training": TrainingSettings,
    "objective": Objective,
    "augmentation": Augmentation,
}


def add_recipe_options(command: argparse.ArgumentParser) -> None:
    """`--recipe`, `--data`, `--out`, `--resume`, and a flag for every field of every setting."""
    command.usage = "lingene decompose --data DATA --out DIR [--resume] [options]"
    command.add_argument("--recipe", choices=RECIPES, help="start from a named run; flags change parts of it")
    command.add_argument(
        "--method", choices=METHODS, help="the training scheme of a paper by name; flags change parts of it"
    )
    command.add_argument("--data", help="digits, a folder of images, parquet files, a name on the Hub")
    command.add_argument("--out", type=Path, required=True, help="folder of the run")
    command.add_argument(
        "--resume", action="store_true", help="go on with the run in `out`, or read a finished one back"
    )
    command.add_argument("--augment", choices=AUGMENTATIONS, help="augmentation by name; the flags below change parts")
    add_fields(command, Recipe, skip={"data", *GROUPS})
    for name, settings in GROUPS.items():
        add_fields(command.add_argument_group(name), settings)


def asked_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the flags describe.

    Raises:
        ValueError: neither `recipe` nor `data`, or whatever a setting refuses.
    """
    if arguments.recipe is None and arguments.data is None:
        raise ValueError("`data` says what to train on: give --data, or a --recipe that names it.")
    recipe = RECIPES[arguments.recipe] if arguments.recipe else Recipe(data=arguments.data)
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


def add_fields(group: Any, settings: type, skip: set[str] = frozenset()) -> None:
    """A flag for every field of some settings."""
    types, texts = get_type_hints(settings), described(settings)
    for field in dataclasses.fields(settings):
        if field.name not in skip:
            flag = flag_of(field)
            default = field.default
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            text = texts[field.name] + (f" (default: {shown})" if shown not in ("", None) else "")
            text = text.replace("%", "%%")
            if types[field.name] is bool:
                group.add_argument(flag, dest=field.name, action=argparse.BooleanOptionalAction, help=text)
            elif types[field.name] == tuple[int, ...]:
                group.add_argument(flag, dest=field.name, type=integers, metavar="N,N", help=text)
            elif types[field.name] == tuple[int | str, ...]:
                group.add_argument(flag, dest=field.name, type=depths, metavar="N,N", help=text)
            elif types[field.name] == tuple[str, ...]:
                group.add_argument(flag, dest=field.name, type=words, metavar="A,B", help=text)
            else:
                kind = types[field.name]
                group.add_argument(flag, dest=field.name, type=kind, metavar=kind.__name__.upper(), help=text)


def described(settings: type) -> dict[str, str]:
    """The text of every field in the `Args:` of a docstring; `a, b: text` describes both."""
    lines = inspect.cleandoc(settings.__doc__ or "").split("Args:", 1)[1].split("Raises:")[0]
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", lines, re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def words(text: str) -> tuple[str, ...]:
    """`1/4,1/2` -> ("1/4", "1/2"); nothing is none."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def depths(text: str) -> tuple[int | str, ...]:
    """`3,6` -> (3, 6); where several stages are decomposed, `2-4,2-6` -> ("2-4", "2-6")."""
    return tuple(map(depth, words(text)))


def depth(text: str) -> int | str:
    """`6` -> 6; where several stages are decomposed, `2-6` -> "2-6"."""
    return int(text) if text.isdecimal() else text


def integers(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4); nothing is none."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be integers with commas between, such as 1,2,4; got {text!r}"
        ) from None
