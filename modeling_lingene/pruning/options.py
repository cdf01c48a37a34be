"""The flags of `lingene prune`, from the settings' dataclasses."""

import argparse
import dataclasses
from typing import Any

from ..images.augmentation import AUGMENTATIONS, Augmentation
from ..training.loop import TrainingSettings
from ..training.losses import Objective
from ..training.options import add_fields, given
from .prune import PruneSettings


TRAINING = TrainingSettings(epochs=30, learning_rate=5e-4)  # what was trained needs less
GROUPS = {"training": TrainingSettings, "objective": Objective, "augmentation": Augmentation}


def add_prune_options(command: argparse.ArgumentParser) -> None:
    """A flag for every field of every setting."""
    command.add_argument("--resume", action="store_true", help="go on with the run in `out`, or read it back")
    command.add_argument("--augment", choices=AUGMENTATIONS, help="augmentation by name; flags below change parts")
    add_fields(command, PruneSettings)
    for name, settings in GROUPS.items():
        add_fields(command.add_argument_group(name), settings)
    command.set_defaults(epochs=TRAINING.epochs, learning_rate=TRAINING.learning_rate)


def asked_pruning(flags: dict[str, Any]) -> dict[str, Any]:
    """Settings, training, objective and augmentation that the flags describe, as keywords of `prune`.

    Raises:
        ValueError: no `data`, or whatever a setting refuses.
    """
    arguments = argparse.Namespace(**flags)
    if not arguments.data:
        raise ValueError("`data` says what to train and measure on: give --data.")
    augmentation = Augmentation(**AUGMENTATIONS[arguments.augment or "none"])
    return {
        "settings": PruneSettings(**given(arguments, PruneSettings)),
        "training": TrainingSettings(**given(arguments, TrainingSettings)),
        "objective": Objective(**given(arguments, Objective)),
        "augmentation": dataclasses.replace(augmentation, **given(arguments, Augmentation)),
    }
