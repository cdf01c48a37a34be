"""What a training run says of itself beside its bundle: `training.json`, from which the card tells how it was made.

No path of this machine stands in it: sets, bundles and teachers that lie in folders go by their folders' names.
"""

import dataclasses
import os
import platform
import shlex
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers

import modeling_lingene

from ..folders import is_bundle, read_config, read_conversion, read_training
from ..found import public_name
from .settings import Recipe


VERSIONS = {"modeling_lingene": modeling_lingene, "torch": torch, "transformers": transformers}
VERSIONS |= {"accelerate": accelerate}


def training_facts(
    recipe: Recipe, history: list[dict], dataset: str, images: int, hardware: str, processes: int
) -> dict[str, Any]:
    """What `training.json` says of a run, but for the identity of the weights.

    Args:
        recipe: of the run.
        history: a row per epoch, as `TrainingLoop.fit` returns it.
        dataset: name of the set, no path.
        images: that it trained on; of a stream those of an epoch.
        hardware: name of a process's device.
        processes: of the run.
    """
    return run_facts(history, dataset, images, hardware, processes, seed=recipe.training.seed) | {
        "command": command_of(recipe, dataset),
        "objective": recipe.objective.kind,
        "init": public_name(recipe.init),
        "teacher": public_name(recipe.teacher),
        "base_model": base_model_of(recipe.init),
    }


def run_facts(
    history: list[dict], dataset: str, images: int, hardware: str, processes: int, seed: int
) -> dict[str, Any]:
    """Of what any training says, the part that is not about its model; arguments as for `training_facts`."""
    return {
        "dataset": dataset,
        "images": images,
        "epochs": len(history),
        "seed": seed,
        "hardware": hardware,
        "processes": processes,
        "seconds": round(sum(row["seconds"] for row in history), 1),
        "versions": {"python": platform.python_version()}
        | {name: package.__version__ for name, package in VERSIONS.items()},
    }


def command_of(recipe: Recipe, dataset: str) -> str:
    """The `lingene decompose` that runs a recipe, with every setting that is not the default."""
    names = {"data": dataset, "init": public_name(recipe.init), "teacher": public_name(recipe.teacher)}
    words = ["lingene", "decompose", "--out", "RUN"]
    words += changed_words(recipe, names)
    for settings in (value for value in vars(recipe).values() if dataclasses.is_dataclass(value)):
        shape = recipe.init and settings is recipe.model  # is the bundle's
        words += changed_words(settings, only=("num_components", "dropout") if shape else None)
    return shlex.join(words)


def changed_words(
    settings: Any, names: dict[str, Any] | None = None, only: tuple[str, ...] | None = None, base: Any = None
) -> list[str]:
    """The flags of all settings that are not the default.

    Args:
        names: what some fields are called in public.
        only: the fields that count; default all.
        base: what the command takes where a flag is not given; default the defaults of the fields.
    """
    words = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        usual = getattr(base, field.name, field.default)
        if not dataclasses.is_dataclass(value) and value != usual and (only is None or field.name in only):
            words += flag_words(field, (names or {}).get(field.name, value))
    return words


def flag_of(field: dataclasses.Field) -> str:
    """`learning_rate` -> `--learning-rate`."""
    return "--" + field.metadata.get("flag", field.name).replace("_", "-")


def flag_words(field: dataclasses.Field, value: Any) -> list[str]:
    """`--learning-rate 0.002`, as a command line takes it."""
    flag = flag_of(field)
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    shown = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return [f"{flag}={shown}"] if shown.startswith("-") or not shown else [flag, shown]


def base_model_of(init: str) -> str | None:
    """The model on the Hub that a warm start comes from, over bundles of this machine; None where there is none."""
    folder = Path(os.path.expanduser(init))
    if not init or not folder.is_dir():
        return init or None
    if not is_bundle(folder):
        return None
    trained = read_training(folder, read_config(folder).weights_id)
    if trained is not None:
        return trained["base_model"]
    converted = read_conversion(folder)
    source = public_name(converted["source"]) if converted is not None else None
    return source if source and "/" in source else None
