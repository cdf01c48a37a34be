"""What the processes of a run share: Accelerate, one decision for all, a model sharded whole, requests to stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ..images.loaders import Layout
from .steps import TrainingSettings


def make_accelerator(settings: TrainingSettings, out: str | Path | None = None) -> Accelerator:
    """Accelerate's object for these settings; launched by torchrun or `accelerate launch`, one per process.

    Raises:
        ValueError: a tracker that is not installed or not known.
    """
    tracker = None if settings.tracker == "none" or out is None else settings.tracker
    if tracker is not None:
        check_tracker(tracker)
    return Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulation,
        log_with=tracker,
        project_dir=None if out is None else str(out),
        kwargs_handlers=[DistributedDataParallelKwargs()],
    )


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
