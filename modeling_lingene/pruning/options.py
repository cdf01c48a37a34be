"""The flags of `lingene prune`, from the settings' dataclasses."""

import argparse
import dataclasses
from typing import Any

from ..images.augmentation import AUGMENTATIONS, Augmentation
from ..training.losses import Objective
from ..training.options import add_fields, add_resume_option, given
from ..training.steps import TrainingSettings
from .record import TRAINING
from .settings import PruneSettings


GROUPS = {"training": TrainingSettings, "objective": Objective, "augmentation": Augmentation}


KINDS = {"settings": PruneSettings, **GROUPS}
BASE = {"training": TRAINING, "objective": Objective(), "augmentation": Augmentation()}
WITHOUT_LABELS = {"kind", "feature_heads", "mask_share"}  # fields of an objective that a pruning has not
TOLD = {"learning_rate": "peak of the cosine, AdamW"}  # no start has a rate of its own here


def add_prune_options(command: argparse.ArgumentParser) -> None:
    """A flag for every field of every setting."""
    command.usage = "lingene prune MODEL --target-macs 0.5 --data DATA --out DIR [options]\n"
    command.usage += "       lingene prune --resume DIR"
    add_resume_option(command)
    command.add_argument("--augment", choices=AUGMENTATIONS, help="augmentation by name; flags below change parts")
    add_fields(command, PruneSettings)
    for name, settings in GROUPS.items():
        add_fields(command.add_argument_group(name), settings, BASE[name], WITHOUT_LABELS, TOLD)


def asked_pruning(flags: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Settings, training, objective and augmentation that the flags describe, as keywords of `prune`.

    Args:
        stored: those of the run to go on with, of which flags are changes; nothing for a new one.

    Raises:
        ValueError: no `data`, or whatever a setting refuses.
    """
    arguments = argparse.Namespace(**flags)
    if not (arguments.data or stored):
        raise ValueError("`data` says what to train and measure on: give --data.")
    base = BASE | {name: stored[name] for name in KINDS if name in stored}
    if arguments.augment:
        base["augmentation"] = Augmentation(**AUGMENTATIONS[arguments.augment])
    asked = {name: dataclasses.replace(base[name], **given(arguments, GROUPS[name])) for name in GROUPS}
    own = given(arguments, PruneSettings)
    settings = dataclasses.replace(base["settings"], **own) if stored else PruneSettings(**own)
    return {"settings": settings, **asked}
