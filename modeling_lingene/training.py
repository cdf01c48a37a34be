"""The one Accelerate loop: epochs of one phase, progress, checkpoints that are complete or absent, resuming.

What is trained in it - which components, at which sizes, with which loss - is a `Phase`; see `decomposition.py`.
Order, augmentation and the sizes drawn depend on (seed, phase, epoch) alone, so a run that is resumed at the end of an
epoch goes on as if it had not stopped.
"""

import dataclasses
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm


KEPT_CHECKPOINTS = 2
STATE_FILE, STAGING = "state.json", ".checkpoint.partial"
CHECKPOINT = re.compile(r"\d{3}-\d{5}")
TINY, HUGE = 1e-12, 1e12
RANGES = {"learning_rate": (TINY, HUGE), "max_grad_norm": (TINY, HUGE), "weight_decay": (0, HUGE), "warmup": (0, 1)}


@dataclass(frozen=True)
class TrainingSettings:
    """How a run goes; the same for every phase.

    Args:
        epochs: of a phase.
        batch_size: images per process.
        learning_rate: peak of the cosine, AdamW.
        weight_decay: on matrices only.
        warmup: fraction of a phase's steps.
        max_grad_norm: gradients are clipped to it.
        seed: of order, augmentation and sizes.
        precision: Accelerate's `mixed_precision`: no, fp16, bf16.
        device: cpu or auto (the GPU where there is one).
    """

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: str = "no"
    device: str = "auto"

    def __post_init__(self):
        for name, low in (("epochs", 1), ("batch_size", 1), ("seed", None)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
                wanted = "an integer" if low is None else f"an integer of at least {low}"
                raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")
        for name, allowed in RANGES.items():
            low, high = allowed
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"`{name}` must be from {low:g} to {high:g}, got {getattr(self, name)!r}.")
        for name, choices in (("device", ("auto", "cpu")), ("precision", ("no", "fp16", "bf16"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own optimiser and schedule.

    Args:
        name: for the progress bar.
        trainable: chooses the parameters that train, by name; all others are frozen.
        forward: (model, pixel_values, labels, generator) -> loss; may draw sizes from the generator.
    """

    name: str
    trainable: Callable[[str], bool]
    forward: Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


class TrainingLoop:
    """Trains a model through phases, with a checkpoint after every epoch.

    Args:
        model: in memory; its parameters are changed in place.
        images: pixel_values (n, c, h, w) float32 and labels (n,) int64.
        settings: see there.
        folder: for checkpoints: `folder/checkpoints/`, staging beside it; None keeps none.
        identity: what a checkpoint must agree on to be resumed from, beside the settings.
        augment: (pixel_values, generator) -> pixel_values, on whole batches.
    """

    def __init__(
        self,
        model: nn.Module,
        images: tuple[torch.Tensor, torch.Tensor],
        settings: TrainingSettings,
        folder: Path | None = None,
        identity: dict | None = None,
        augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    ):
        if len(images[0]) == 0:
            raise ValueError("`images` must hold at least one image; got none.")
        self.model, self.images, self.settings, self.augment = model, images, settings, augment
        self.accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.precision)
        self.checkpoints = None if folder is None else Path(folder) / "checkpoints"
        self.identity = json.loads(json.dumps({**dataclasses.asdict(settings), **(identity or {})}))

    @property
    def _staging(self) -> Path:
        return self.checkpoints.parent / STAGING

    def fit(self, phases: list[Phase]) -> None:
        """Run all phases, going on from the newest checkpoint of this run where there is one.

        Raises:
            ValueError: the folder holds checkpoints of a run with other settings, or the loss is not finite.
        """
        state = self._newest()
        total = len(phases) * self.settings.epochs
        done = 0 if state is None else state["phase"] * self.settings.epochs + state["epoch"]
        quiet = not self.accelerator.is_main_process
        with tqdm(total=total, initial=done, unit="epoch", desc="training", disable=quiet) as bar:
            for index, phase in enumerate(phases):
                if state is not None and index < state["phase"]:
                    continue
                self._run_phase(index, phase, state if state and state["phase"] == index else None, bar)

    def _run_phase(self, index: int, phase: Phase, state: dict | None, bar: tqdm) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(phase.trainable(name))
        generator = torch.Generator()
        loader = DataLoader(TensorDataset(*self.images), self.settings.batch_size, shuffle=True, generator=generator)
        optimizer = torch.optim.AdamW(decayed_groups(self.model, self.settings), self.settings.learning_rate)
        steps = self.settings.epochs * len(loader)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, self.settings.warmup))
        # Prepared anew in every phase: what is trainable has changed, and with it the optimiser.
        self.accelerator.free_memory()  # what a phase that was interrupted had prepared
        prepared = self.accelerator.prepare(self.model, optimizer, loader, scheduler)
        if state is not None:
            self.accelerator.load_state(str(state["folder"]))
        bar.set_description(phase.name)
        for epoch in range(state["epoch"] if state else 0, self.settings.epochs):
            generator.manual_seed(self._seed("order", index, epoch))
            draws = torch.Generator().manual_seed(self._seed("draws", index, epoch))
            loss = self._run_epoch(prepared, phase, draws)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            if self.checkpoints is not None:
                self._save(index, epoch + 1)
        self.accelerator.free_memory(*prepared)

    def _run_epoch(self, prepared: tuple, phase: Phase, draws: torch.Generator) -> float:
        """One epoch; the mean loss."""
        (model, optimizer, loader, scheduler), accelerator = prepared, self.accelerator
        model.train()
        total = torch.zeros((), device=accelerator.device)
        for pixel_values, labels in loader:
            if self.augment is not None:
                pixel_values = self.augment(pixel_values, draws)
            with accelerator.autocast():
                loss = phase.forward(model, pixel_values, labels, draws)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), self.settings.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            total += loss.detach()
        mean = total.item() / len(loader)
        if not math.isfinite(mean):
            raise ValueError(
                f"The loss of {phase.name} is {mean}; `learning_rate` {self.settings.learning_rate} may be too high. "
                "The checkpoints before this epoch are kept."
            )
        return mean

    def _save(self, phase: int, epoch: int) -> None:
        """A complete checkpoint or none: written beside, renamed into place, then the oldest removed."""
        self.accelerator.save_state(str(self._staging))
        if self.accelerator.is_main_process:
            state = {"phase": phase, "epoch": epoch, "identity": self.identity}
            (self._staging / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")
            target = self.checkpoints / f"{phase:03d}-{epoch:05d}"
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            self._staging.rename(target)
            for old in self._complete()[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _complete(self) -> list[Path]:
        """This loop's checkpoints, oldest first; whatever else lies there is not ours."""
        if self.checkpoints is None or not self.checkpoints.is_dir():
            return []
        return sorted(path for path in self.checkpoints.iterdir() if CHECKPOINT.fullmatch(path.name))

    def _newest(self) -> dict | None:
        """The newest checkpoint's phase, epoch and folder; a run with other settings is refused."""
        if self.checkpoints is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
        for folder in reversed(self._complete()):
            if not (folder / STATE_FILE).is_file():
                continue  # on its way out when the run stopped, or copied in part
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            check_identity(self.checkpoints.parent, state["identity"], self.identity)
            return {**state, "folder": folder}
        return None

    def _seed(self, use: str, phase: int, epoch: int) -> int:
        """A seed of its own for every use in every epoch of every phase, the same on every machine."""
        return random.Random(f"{self.settings.seed} {use} {phase} {epoch}").getrandbits(63)


def check_identity(folder: Path, stored: dict, asked: dict) -> None:
    """Refuse to go on with, or read back, a run of other settings; names what differs."""
    differing = sorted(key for key in stored.keys() | asked.keys() if stored.get(key) != asked.get(key))
    if differing:
        raise ValueError(
            f"`out` {folder} holds another run, differing in {', '.join(differing)}; choose another folder, or delete "
            "this one."
        )


def decayed_groups(model: nn.Module, settings: TrainingSettings) -> list[dict]:
    """The trainable parameters for AdamW: weight decay on matrices, chosen by name, none on gains, biases, tokens."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [p for name, p in named if name.endswith("weight") and "norm" not in name]
    others = [p for name, p in named if not (name.endswith("weight") and "norm" not in name)]
    return [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]


def warmup_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Learning rate factor by step: linear to 1 over the first `warmup` of the steps, then a half cosine to 0."""
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor
