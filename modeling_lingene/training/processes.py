"""What the processes of a run share: Accelerate, one decision for all, a model sharded whole, requests to stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ..images.loaders import Layout
from .steps import TrainingSettings


OURS = "made_by_modeling_lingene"  # on Accelerate's state: no other Accelerator of this process was there before


def make_accelerator(settings: TrainingSettings, out: str | Path | None = None) -> Accelerator:
    """Accelerate's object for these settings; launched by torchrun or `accelerate launch`, one per process.

    Raises:
        ValueError: a tracker that is not installed or not known; another device or precision than this process has.
    """
    tracker = None if settings.tracker == "none" or out is None else settings.tracker
    if tracker is not None:
        check_tracker(tracker)
    _make_way(settings)
    fresh = not is_initialized()
    accelerator = Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulation,
        log_with=tracker,
        project_dir=None if out is None else str(out),
        kwargs_handlers=[DistributedDataParallelKwargs()],
    )
    if fresh:
        setattr(accelerator.state, OURS, True)
    return accelerator


def _make_way(settings: TrainingSettings) -> None:
    """Let go of a device or a precision of an earlier run that is not asked for now: Accelerate keeps one of either
    for a process, and takes the earlier device without a word. What others made is theirs, and a group of processes
    stays where it is.

    Raises:
        ValueError: what the process has is another one, and stays.
    """
    if not PartialState._shared_state:  # none yet; to ask by making one would choose its device
        return
    cpu = settings.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    held = PartialState().device.type
    moved = held != "cpu" if cpu else held == "cpu" and torch.accelerator.is_available()
    precision = AcceleratorState().mixed_precision if is_initialized() else settings.precision
    if not moved and precision == settings.precision:
        return
    if not (is_initialized() and hasattr(AcceleratorState(), OURS)) or (moved and torch.distributed.is_initialized()):
        raise ValueError(
            f"`device` {settings.device} and `precision` {settings.precision} are not what this process has: an "
            f"Accelerator was made in it for {held} and {precision}, and others may use it. Start a new process, or "
            "ask for the same."
        )
    AcceleratorState._reset_state(reset_partial_state=moved)


def decided_on_main(accelerator: Accelerator, decide: Callable[[], Any]) -> Any:
    """What the main process finds, on every process; where it refuses, the others end without a word of their own."""
    told = [None, None]
    if accelerator.is_main_process:
        try:
            told = [decide(), None]
        except (ValueError, OSError) as error:
            told = [None, error]
    found, error = broadcast_object_list(told)
    if error is not None:
        raise error if accelerator.is_main_process else SystemExit(2)
    return found


def check_tracker(name: str) -> None:
    """Refuse a tracker that Accelerate does not know or cannot use here."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = [str(getattr(kind, "value", kind)) for kind in LOGGER_TYPE_TO_CLASS]
    if name not in known:
        raise ValueError(f"`tracker` must be one of none, {', '.join(sorted(known))}, got {name!r}.")
    if name not in [str(getattr(kind, "value", kind)) for kind in get_available_trackers()]:
        raise ValueError(f"`tracker` {name} is not installed: pip install {name}, or use tracker none.")


def layout(accelerator: Accelerator, settings: TrainingSettings) -> Layout:
    """This process's part of a step."""
    return Layout(settings.batch_size, settings.accumulation, accelerator.num_processes, accelerator.process_index)


def shard_at_root(model: nn.Module, accelerator: Accelerator) -> None:
    """FSDP2 with one unit, the whole model: its parts are read, not called, so that units of their own stay sharded.

    Accelerate would give embeddings and final norm units of their own, whatever the wrapping policy; a model that is
    sharded already it takes as it is.
    """
    if not isinstance(model, FSDPModule):
        plugin = accelerator.state.fsdp_plugin
        fully_shard(
            model.to(accelerator.device),
            reshard_after_forward=plugin.reshard_after_forward,
            mp_policy=plugin.mixed_precision_policy or MixedPrecisionPolicy(),
            offload_policy=plugin.cpu_offload,
        )


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event; a second one ends the process as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
