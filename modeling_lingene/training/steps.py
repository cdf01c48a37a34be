"""How a run takes its steps: settings, what the optimiser decays, the learning rate of a step."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..recompose_lingene import POSITION_BIAS


UNSUITED_RATE = 2e-3  # of a loop that was given none; runs take what suits their start (warm_start.py)
TINY, HUGE = 1e-12, 1e12
RANGES = {"learning_rate": (TINY, HUGE), "max_grad_norm": (TINY, HUGE), "weight_decay": (0, HUGE), "warmup": (0, 1)}
RANGES |= {"ema": (0, 0.999999)}
COUNTS = {"epochs": 1, "batch_size": 1, "accumulation": 1, "seed": None, "checkpoint_every": 0}
COUNTS |= {"keep_checkpoints": 1, "evaluate_every": 0}
CHOICES = {"device": ("auto", "cpu"), "precision": ("no", "fp16", "bf16")}
HARMLESS = {"checkpoint_every", "keep_checkpoints", "tracker"}  # may differ when a run is resumed


@dataclass(frozen=True)
class TrainingSettings:
    """How a run goes; the same for every phase.

    Args:
        epochs: of a phase.
        batch_size: images per process and forward pass.
        accumulation: forward passes per optimiser step.
        learning_rate: peak of the cosine, AdamW; -1 is the start's: new weights 0.256 / channels, of a Swin 0.032 /
            channels of the first stage; a trained network that was converted 0.0001, without labels 0.00003.
        weight_decay: on matrices only.
        warmup: fraction of a phase's steps.
        max_grad_norm: gradients are clipped to it.
        ema: decay of an exponential moving average of the weights, which then is the result; 0 for none.
        seed: of everything random.
        precision: Accelerate's `mixed_precision`: no, fp16, bf16.
        device: cpu or auto (the GPU where there is one).
        compile: run the model through `torch.compile`.
        activation_checkpointing: recompute activations in the backward pass: less memory, more time.
        checkpoint_every: optimiser steps; 0 is once per epoch.
        keep_checkpoints: how many of the newest stay.
        evaluate_every: epochs; 0 only at the end of a phase.
        tracker: any tracker of Accelerate by name (tensorboard, wandb, ...), or none.
    """

    epochs: int = 60
    batch_size: int = 128
    accumulation: int = 1
    learning_rate: float = -1.0
    weight_decay: float = 0.05
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    ema: float = 0.0
    seed: int = 0
    precision: str = "no"
    device: str = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    evaluate_every: int = 1
    tracker: str = "none"

    def __post_init__(self):
        for name, low in COUNTS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
                wanted = "an integer" if low is None else f"an integer of at least {low}"
                raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")
        for name, (low, high) in RANGES.items():
            if not low <= (self.rate if name == "learning_rate" else getattr(self, name)) <= high:
                raise ValueError(f"`{name}` must be from {low:g} to {high:g}, got {getattr(self, name)!r}.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")

    @property
    def rate(self) -> float:
        """The learning rate, also where none was asked for."""
        return UNSUITED_RATE if self.learning_rate == -1 else self.learning_rate

    def identity(self, processes: int = 1) -> dict:
        """What must agree for a run to be the same run: images of a step instead of how they are divided."""
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in HARMLESS}
        fields["learning_rate"] = self.rate
        fields["images_per_step"] = fields.pop("batch_size") * fields.pop("accumulation") * processes
        return fields


def decayed_groups(
    model: nn.Module, settings: TrainingSettings, rates: Mapping[str, float] | None = None
) -> list[dict]:
    """The trainable parameters for AdamW: weight decay on matrices, chosen by name, none on gains, biases, tokens.

    Args:
        rates: see `Phase`; groups with a rate of their own carry it as `peak`.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = [
        {"params": [named.pop(name) for name in list(named) if name.endswith(end)], "weight_decay": 0.0, "peak": rate}
        for end, rate in (rates or {}).items()
    ]
    matrices = {name for name in named if name.endswith("weight") and "norm" not in name and POSITION_BIAS not in name}
    decayed = [p for name, p in named.items() if name in matrices]
    others = [p for name, p in named.items() if name not in matrices]
    return [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
        *own,
    ]


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Learning rate factor of a step: linear to 1 over the first `warmup` of the steps, then a half cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
