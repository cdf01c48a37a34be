"""What a pruning says of itself beside its model: `training.json`, as a training of a bundle does."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..folders import write_json
from ..found import public_name
from ..identity_lingene import file_sha256
from ..saving_lingene import TRAINING_FILE
from ..training.losses import Objective
from ..training.record import base_model_of, changed_words, run_facts
from ..training.steps import TrainingSettings


TRAINING = TrainingSettings(epochs=30, learning_rate=5e-4)  # default of search and tuning


def pruning_facts(
    model: str,
    settings: Any,
    training: TrainingSettings,
    others: Sequence[Any],
    history: list[dict],
    dataset: str,
    images: int,
    machine: tuple[str, int],
) -> dict[str, Any]:
    """What `training.json` says, but for the identity of the weights.

    Args:
        model: what was pruned, by folder or name.
        settings, training, others: of the run; `others` are objective and augmentation.
        history: a row per epoch of all of its trainings.
        dataset, images: name and number of what it trained on.
        machine: name of a process's device, and the number of processes.
    """
    teacher = settings.teacher if settings.teacher != "dense" else model
    names = {"data": dataset, "teacher": public_name(settings.teacher) or ""}
    words = ["lingene", "prune", public_name(model), "--out", "RUN", *changed_words(settings, names)]
    words += changed_words(training, base=TRAINING) + [word for one in others for word in changed_words(one)]
    return run_facts(history, dataset, images, *machine, seed=training.seed) | {
        "command": shlex.join(words),
        "objective": Objective().kind,
        "init": public_name(model),
        "teacher": public_name(teacher),
        "base_model": base_model_of(model),
    }


def write_pruning(folder: Path, facts: dict[str, Any]) -> None:
    """Into the folder of the model, tied to its weights by the hash of their files."""
    digests = {path.name: file_sha256(path) for path in sorted(folder.glob("model*.safetensors"))}
    write_json(folder / TRAINING_FILE, {**facts, "weights_id": " ".join(digests.values())})
