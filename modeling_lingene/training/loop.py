"""The one Accelerate loop: phases, mixed precision, accumulation, averaging, evaluation, checkpoints, resuming.

What is trained in it - which components, at which sizes, with which loss - is a `Phase`; see `decomposition.py`.
Everything random is a function of (seed, phase, epoch, step, process), so a run that stops after any step goes on
bit by bit as if it had not stopped (on one kind of machine, with as many processes).
"""

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..images.loaders import Layout, MemoryImages, PictureImages, derived_seed
from ..progress import Bar, duration, progress_bar, redraws, tell
from .checkpoints import Checkpoints
from .losses import FIRST, TEACHER
from .processes import decided_on_main, layout, make_accelerator, shard_at_root, stop_requests
from .steps import TrainingSettings, decayed_groups, warmup_cosine
from .validation import ACCURACY, Metric


EMA_FILE = "ema.safetensors"
LOG_STEPS = 20  # between two looks at the loss: each makes the host wait for the device
SHOWN_SECONDS = 2.0  # an evaluation that takes longer has a bar
STOP_STEPS = 8  # between two agreements of several processes on whether to stop


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own optimiser and schedule.

    Args:
        name: for the progress bar and the history.
        trainable: chooses the parameters that train, by name; all others are frozen.
        forward: (model, batch, generator, **network) -> loss; draws sizes from the generator, the same on every
            process. The batch has pixel_values (b, c, h, w), labels, index, `first`, the place of its first image in
            the whole step, and, with a teacher, its answer as `teacher`: logits (b, classes), or tokens (b, t, d).
        draw: (generator, done) -> the networks of a step, each as keywords for `forward`; `done` is the share of the
            phase that is over. They go forward and backward one after the other, so that memory is that of the
            largest, and their gradients add up to one optimiser step. Default: one network, without keywords.
        size: keywords with which the model is evaluated.
        sampled: whether a step may leave trainable parameters out.
        during: (bare model) -> context in which the phase runs, such as holding what is frozen.
        rates: how names of parameters end -> their own peak learning rate; these do not decay.
    """

    name: str
    trainable: Callable[[str], bool]
    forward: Callable[[nn.Module, dict, torch.Generator], torch.Tensor]
    size: dict = field(default_factory=dict)
    sampled: bool = False
    draw: Callable[[torch.Generator, float], list[dict]] = lambda generator, done: [{}]
    during: Callable[[nn.Module], contextlib.AbstractContextManager] = contextlib.nullcontext
    rates: Mapping[str, float] = field(default_factory=dict)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and has: its checkpoint is written."""


@dataclass
class _Progress:
    """Where a phase is: what a checkpoint stores beside weights and optimiser."""

    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0


class TrainingLoop:
    """Trains a model through phases.

    Args:
        model: in memory, gives `.logits` or whatever the phases' forward expects; its parameters change in place.
        images: source of batches; see `loaders.py`.
        settings: see there.
        out: folder for `checkpoints/` and `log/`; None keeps nothing.
        identity: what a checkpoint must agree on to be resumed from, beside the settings.
        held_out: images to evaluate on; None does not.
        metric: what they are asked; default the accuracy.
        teacher: batch -> its answer, for every forward pass; see `teachers.py` and `encoders.py`.
        on_best: called on the main process with the full state dict when an evaluation was the best so far.
        on_begin: called on the main process before the first step, when nothing is left to refuse.
        accelerator: default one made for the settings.
    """

    def __init__(
        self,
        model: nn.Module,
        images: MemoryImages | PictureImages,
        settings: TrainingSettings,
        out: str | Path | None = None,
        *,
        identity: dict | None = None,
        held_out: MemoryImages | PictureImages | None = None,
        metric: Metric = ACCURACY,
        teacher: Callable[[dict], torch.Tensor] | None = None,
        on_best: Callable[[dict], None] | None = None,
        on_begin: Callable[[], None] = lambda: None,
        accelerator: Accelerator | None = None,
    ):
        self.model, self.images, self.settings = model, images, settings
        self.held_out, self.metric, self.teacher = held_out, metric, teacher
        self.on_best, self.on_begin = on_best, on_begin
        self.accelerator = accelerator or make_accelerator(settings, out)
        self.layout = layout(self.accelerator, settings)
        self.steps_per_epoch = images.steps(self.layout)
        identity = {**settings.identity(self.accelerator.num_processes), **(identity or {})}
        self.checkpoints = None if out is None else Checkpoints(out, identity, settings.keep_checkpoints)
        self.history: list[dict] = []  # a row per epoch
        self.best: float | None = None
        self.looks = 0  # at the losses, until the time that the run takes has been told

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def fit(self, phases: list[Phase]) -> list[dict]:
        """Run all phases, going on from the newest checkpoint of this run where there is one.

        Returns:
            A row per epoch: phase, epoch, loss, learning_rate, images_per_second and, where evaluated, the metric.

        Raises:
            ValueError: the folder holds a run with other settings or has no room, or the loss is not finite.
            Interrupted: a signal asked to stop; the state is saved.
        """
        state = self._resume()
        if self.is_main:
            self.on_begin()
        if self.settings.activation_checkpointing:
            encoder = getattr(self.model, "encoder", self.model)
            enable = getattr(encoder, "activation_checkpointing_enable", None)  # its name from transformers 5.23 on
            (enable or encoder.gradient_checkpointing_enable)()
        if self.settings.tracker != "none" and self.checkpoints is not None:
            self.accelerator.init_trackers("log")
        per_phase = self.settings.epochs * self.steps_per_epoch
        done = 0 if state is None else state["phase"] * per_phase + state["step"]
        total, shown = len(phases) * per_phase, self.is_main
        bar = progress_bar(total=total, initial=done, unit="step", desc="training", shown=shown)
        with bar, stop_requests() as stop:
            for index, phase in enumerate(phases):
                if state is None or index >= state["phase"]:
                    self._run_phase(index, phase, state if state and state["phase"] == index else None, bar, stop)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return self.history

    def full_state(self) -> dict[str, torch.Tensor]:
        """The model's state dict, gathered where it is sharded; called on every process."""
        return self.accelerator.get_state_dict(self.model, unwrap=False)

    def _resume(self) -> dict | None:
        """The state to go on from, the same on every process."""
        if self.checkpoints is None:
            return None

        def find() -> dict | None:
            self.checkpoints.clear_staging()
            self.checkpoints.check_room(4 * 4 * sum(parameter.numel() for parameter in self.model.parameters()))
            return self.checkpoints.newest()

        state = decided_on_main(self.accelerator, find)
        if state is not None:
            self.history, self.best = state["history"], state["best"]
        return state

    def _run_phase(self, index: int, phase: Phase, state: dict | None, bar: Bar, stop: threading.Event) -> None:
        settings, accelerator = self.settings, self.accelerator
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(phase.trainable(name))
        # Prepared anew in every phase: what is trainable has changed, and with it the optimiser.
        accelerator.free_memory()  # what a phase that was interrupted had prepared
        accelerator.ddp_handler.find_unused_parameters = phase.sampled
        if accelerator.is_fsdp2:
            shard_at_root(self.model, accelerator)
        groups = decayed_groups(self.model, settings, phase.rates)
        peaks = [group.pop("peak", settings.rate) for group in groups]
        optimizer = torch.optim.AdamW(groups, settings.rate, fused=True)
        parameters = [list(group["params"]) for group in optimizer.param_groups]
        model, optimizer = accelerator.prepare(self.model, optimizer)
        if accelerator.is_fsdp2:  # Accelerate has found sharded parameters again by address: empty shards share one
            for group, own in zip(optimizer.param_groups, parameters):
                group["params"] = own
        average = None
        if settings.ema and accelerator.is_fsdp2:
            raise ValueError("`ema` averages whole weights, and FSDP2 divides them; use one of the two.")
        if settings.ema:
            average = AveragedModel(accelerator.unwrap_model(model), multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        progress = _Progress()
        if state is not None:
            accelerator.load_state(state["folder"])
            progress = _Progress(**{key.name: state[key.name] for key in dataclasses.fields(_Progress)})
            if average is not None:
                average.load_state_dict(load_file(f"{state['folder']}/{EMA_FILE}"))
        run = _Run(index, phase, model, optimizer, peaks, average, progress)
        bar.set_description(phase.name, refresh=False)
        with phase.during(accelerator.unwrap_model(model)):
            run.forward = _compiled(model) if settings.compile else model
            for epoch in range(progress.step // self.steps_per_epoch, settings.epochs):
                self._run_epoch(run, epoch, bar, stop)
        if average is not None:
            with torch.no_grad():
                for parameter, mean in zip(accelerator.unwrap_model(model).parameters(), average.parameters()):
                    parameter.copy_(mean)
        accelerator.free_memory(model, optimizer)

    def _run_epoch(self, run: "_Run", epoch: int, bar: Bar, stop: threading.Event) -> None:
        progress, first = run.progress, run.progress.step - epoch * self.steps_per_epoch
        if first == 0:
            progress.loss_sum, progress.loss_steps, progress.seconds = 0.0, 0, 0.0
        started, waiting = time.perf_counter(), []
        last_epoch, seed = epoch + 1 == self.settings.epochs, f"{self.settings.seed} {run.index} {epoch}"
        for parts in self.images.batches(seed, self.layout, first):
            waiting.append(self._step(run, parts))
            progress.step += 1
            bar.update()
            ended = progress.step % self.steps_per_epoch == 0
            every = self.settings.checkpoint_every
            saving = ended if every == 0 else progress.step % every == 0 or (ended and last_epoch)
            stopping = self._stop_wanted(stop, saving or progress.step % STOP_STEPS == 0)
            if len(waiting) == LOG_STEPS or ended or saving or stopping:
                self._take_losses(run, waiting, started, bar)
                started = time.perf_counter()
            if ended:
                self._end_epoch(run, epoch, bar)
                started = time.perf_counter()
            if self.checkpoints is not None and (saving or stopping):
                self._save(run)
            if stopping:
                raise Interrupted(f"stopped after step {progress.step} of {run.phase.name}")

    def _step(self, run: "_Run", parts: list[dict]) -> torch.Tensor:
        """One optimiser step; the loss, on the device."""
        settings, accelerator, step = self.settings, self.accelerator, run.progress.step
        steps = settings.epochs * self.steps_per_epoch
        for group, peak in zip(run.optimizer.param_groups, run.peaks):
            group["lr"] = peak * warmup_cosine(step, steps, settings.warmup)
        run.model.train()
        total = torch.zeros((), device=accelerator.device)
        for number, (batch, share) in enumerate(zip(parts, self.layout.parts(), strict=True)):
            batch[FIRST] = share.start
            with accelerator.accumulate(run.model):
                draws = torch.Generator().manual_seed(derived_seed(settings.seed, "draws", run.index, step))
                if self.teacher is not None:
                    with accelerator.autocast():
                        batch[TEACHER] = self.teacher(batch)
                set_seed(derived_seed(settings.seed, "noise", run.index, step, number, self.layout.process))
                *others, last = run.phase.draw(draws, step / steps)
                for network in (*others, last):
                    # Gradients meet those of the other processes once, before the step; `accumulate` may hold already.
                    alone = network is not last and accelerator.sync_gradients
                    with accelerator.no_sync(run.model) if alone else contextlib.nullcontext():
                        with accelerator.autocast():
                            loss = run.phase.forward(run.forward, batch, draws, **network)
                        accelerator.backward(loss)
                    total += loss.detach()
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(run.model.parameters(), settings.max_grad_norm)
                run.optimizer.step()
                run.optimizer.zero_grad()
        if run.average is not None:
            run.average.update_parameters(accelerator.unwrap_model(run.model))
        return total / len(parts)

    def _take_losses(self, run: "_Run", waiting: list[torch.Tensor], started: float, bar: Bar) -> None:
        """Fetch the losses of the last steps, check and log them."""
        losses = self.accelerator.reduce(torch.stack(waiting), reduction="mean").tolist()
        seconds, progress = time.perf_counter() - started, run.progress
        if not all(map(math.isfinite, losses)):
            kept = "The checkpoints before are kept." if self.checkpoints else ""
            raise ValueError(
                f"The loss of {run.phase.name} is {next(x for x in losses if not math.isfinite(x))} near step "
                f"{progress.step}; `learning_rate` {self.settings.rate:g} may be too high. {kept}"
            )
        for loss in losses:  # one by one: the same sum wherever the run was stopped
            progress.loss_sum += loss
        progress.loss_steps += len(losses)
        progress.seconds += seconds
        rate = len(losses) * self.layout.images / seconds
        shown = {"loss": f"{losses[-1]:.3f}", "img/s": f"{rate:.0f}"}
        if self.history and self.metric.name in self.history[-1]:
            shown[self.metric.name] = self.metric.shown.format(self.history[-1][self.metric.name])
        bar.set_postfix(shown, refresh=False)
        self._log({"loss": sum(losses) / len(losses), "images_per_second": rate, "learning_rate": run.rate}, run)
        self._tell_time(seconds / len(losses), bar)
        waiting.clear()

    def _tell_time(self, step_seconds: float, bar: Bar) -> None:
        """How long the run will take, once: by its second look at the losses, or its only one in an epoch.

        Args:
            step_seconds: of a step; the first ones are slower than the rest.
        """
        self.looks += 1
        if self.looks == min(2, math.ceil(self.steps_per_epoch / LOG_STEPS)):
            left = bar.total - bar.n
            time_left = f"about {duration(left * step_seconds)} for {left} steps more, evaluation not counted"
            tell(time_left, shown=self.is_main)

    def _end_epoch(self, run: "_Run", epoch: int, bar: Bar) -> None:
        progress, every = run.progress, self.settings.evaluate_every
        row = {
            "phase": run.phase.name,
            "epoch": epoch + 1,
            "loss": progress.loss_sum / progress.loss_steps,
            "learning_rate": run.rate,
            "images_per_second": round(self.steps_per_epoch * self.layout.images / progress.seconds, 1),
            "seconds": round(progress.seconds, 3),
        }
        self.history.append(row)  # which `on_best` reads
        last = epoch + 1 == self.settings.epochs
        if self.held_out is not None and (last or (every and (epoch + 1) % every == 0)):
            model = run.average.module if run.average is not None else run.model
            value = row[self.metric.name] = self._evaluate(model, run.phase.size)
            self._log({self.metric.name: value}, run)
            if self.metric.better(value, self.best):
                self.best = value
                if self.on_best is not None:
                    self._give_best(run)
        if not redraws():
            self._tell_epoch(row)

    def _tell_epoch(self, row: dict) -> None:
        told = [f"loss {row['loss']:.4g}", f"{row['images_per_second']:.4g} images/s"]
        if self.metric.name in row:
            told.insert(1, f"{self.metric.name.replace('_', ' ')} {self.metric.shown.format(row[self.metric.name])}")
        tell(f"{row['phase']}, epoch {row['epoch']} of {self.settings.epochs}: {', '.join(told)}", shown=self.is_main)

    def _give_best(self, run: "_Run") -> None:
        if run.average is not None:
            state = run.average.module.state_dict()
        else:
            state = self.accelerator.get_state_dict(run.model)
        if self.is_main:
            self.on_best(state)
        self.accelerator.wait_for_everyone()

    def evaluate(self, **size) -> float:
        """The metric of one size of the model as it is after `fit`; called on every process."""
        return self._evaluate(self.model, size)

    def _evaluate(self, model: nn.Module, size: dict) -> float:
        """The metric of a size on the held-out images, divided among the processes."""
        model.eval()
        counted = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        shown = {"unit": "image", "desc": "evaluating", "shown": self.is_main, "leave": False, "delay": SHOWN_SECONDS}
        with torch.no_grad(), progress_bar(total=len(self.held_out), **shown) as bar:
            for batch, counts in self._held_out_batches():
                with self.accelerator.autocast():
                    found = self.metric.count(model, batch, size)
                if counts:
                    counted += found
                    bar.update(len(batch["pixel_values"]) * self.accelerator.num_processes)
        total, images = self.accelerator.reduce(counted, reduction="sum").tolist()
        return total / images

    def _held_out_batches(self) -> Iterator[tuple[dict, bool]]:
        """This process's held-out batches, and whether each counts. Every forward pass is one of all processes where
        weights are sharded or buffers sent round: who has fewer batches goes on with one that does not count."""
        largest_share = math.ceil(len(self.held_out) / self.layout.processes)
        lacking, batch = math.ceil(largest_share / self.layout.batch_size), None
        for batch in self.held_out.in_order(self.layout):
            lacking -= 1
            yield batch, True
        if lacking == 0 or self.layout.processes == 1:
            return
        if batch is None:  # nothing of its own that decodes
            batch = next(self.held_out.in_order(Layout(1)))
        for _ in range(lacking):
            yield batch, False

    def _save(self, run: "_Run") -> None:
        def write(folder: Path) -> None:
            self.accelerator.save_state(str(folder))
            if run.average is not None and self.is_main:
                save_file(run.average.state_dict(), folder / EMA_FILE)

        state = {**dataclasses.asdict(run.progress), "history": self.history, "best": self.best}
        step = state.pop("step")
        try:
            self.checkpoints.save(run.index, step, state, write, self.is_main, self.accelerator.wait_for_everyone)
        except OSError as error:
            raise OSError(
                f"A checkpoint cannot be written to {self.checkpoints.folder}: {error}. Those before it are kept; "
                "make room and resume."
            ) from error

    def _stop_wanted(self, stop: threading.Event, agreeing: bool) -> bool:
        """Whether to stop after this step; several processes agree on it, and only now and then."""
        if self.accelerator.num_processes == 1:
            return stop.is_set()
        if not agreeing:
            return False
        asked = torch.tensor(int(stop.is_set()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum").item())

    def _log(self, values: dict[str, float], run: "_Run") -> None:
        if self.settings.tracker != "none" and self.checkpoints is not None:
            step = run.index * self.settings.epochs * self.steps_per_epoch + run.progress.step
            self.accelerator.log(values, step=step)


@dataclass
class _Run:
    """A phase that is running: what was prepared for it."""

    index: int
    phase: Phase
    model: nn.Module
    optimizer: Any
    peaks: list[float]  # learning rates, by group
    average: AveragedModel | None
    progress: _Progress
    forward: Callable | None = None

    @property
    def rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]


def _compiled(model: nn.Module) -> Callable:
    """Compiled once per size that is drawn: torch stops after eight by default."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    return torch.compile(model)
