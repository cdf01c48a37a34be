"""Linear layers, phases and crashes: what the tests of the training loop share."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import helpers
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.decomposition import phases as phases_of
from modeling_lingene.training.loop import Phase, TrainingLoop
from modeling_lingene.training.steps import TrainingSettings


IMAGES = helpers.source(14)


EPOCHS, STEPS = 3, 3  # of a phase, of an epoch (4 + 4 + 4 images; two wait for another epoch's order)


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{"epochs": EPOCHS, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu", **changes})


def linear(seed: int = 0) -> nn.Module:
    """The least that can train."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, helpers.TINY["num_labels"]))


def cross_entropy(model, batch, generator):
    return functional.cross_entropy(model(batch["pixel_values"]), batch["labels"])


def phases(forward=cross_entropy, count: int = 1) -> list[Phase]:
    return [Phase(f"phase {index}", lambda name: True, forward) for index in range(count)]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Stopwatch:
    """Counts the steps of phases, and raises in the one it is set to."""

    def __init__(self, stop_at: int | None = None):
        self.stop_at, self.steps = stop_at, 0

    def watch(self, phase: Phase) -> Phase:
        def forward(*arguments):
            if self.steps == self.stop_at:
                raise KeyboardInterrupt
            self.steps += 1
            return phase.forward(*arguments)

        return dataclasses.replace(phase, forward=forward)


def train_bundle(folder: Path | None, stop_at: int | None = None) -> tuple[dict[str, torch.Tensor], int]:
    """Three phases of a new tiny bundle; its weights, and the steps of this call."""
    torch.manual_seed(0)
    model = helpers.LinGeneForImageClassification(helpers.tiny_config(num_components=4))
    stopwatch = Stopwatch(stop_at)
    totals = DecompositionSettings("incremental", totals=(1, 2, 4), depths=(3, 4))
    watched = [stopwatch.watch(phase) for phase in phases_of(model, totals)]
    moved = helpers.source(14, Augmentation(crop_padding=1))
    loop = TrainingLoop(model, moved, settings(), folder, identity={"totals": [1, 2, 4]})
    if stop_at is None:
        loop.fit(watched)
    else:
        with pytest.raises(KeyboardInterrupt):
            loop.fit(watched)
    return weights(model), stopwatch.steps
