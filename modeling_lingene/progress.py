"""Progress bars: redrawn in place on a terminal, a line every few seconds in a file, none where none is wanted."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO

from tqdm.auto import tqdm as Bar
from transformers.utils import logging


FILE_SECONDS = 5.0  # between two lines in a file
WANTED = ContextVar("progress bars are wanted", default=True)


def progress_bar(items: Iterable | None = None, *, shown: bool = True, **options) -> Bar:
    """A bar on stderr.

    Args:
        items: to iterate over; without them call `update`.
        shown: whether this process shows it; one of several should.
        options: of tqdm: desc, total, unit, initial.
    """
    if not _redraws(sys.stderr):
        options |= {"file": _Lines(sys.stderr), "mininterval": FILE_SECONDS, "ascii": True}
    return Bar(items, disable=not (shown and WANTED.get()), **options)


def _redraws(file: IO) -> bool:
    """Whether a bar can go over itself there: on a terminal, or as a widget in a notebook."""
    return file.isatty() or "ipykernel.zmqshell" in sys.modules


def tell(line: str, *, shown: bool = True) -> None:
    """A line on stderr, above whatever bar is there; none with `--quiet`.

    Args:
        shown: whether this process tells it; one of several should.
    """
    if shown and WANTED.get():
        Bar.write(line, file=sys.stderr)


def redraws() -> bool:
    """Whether bars go over themselves, and say all there is to say of an epoch until the next."""
    return _redraws(sys.stderr)


def duration(seconds: float) -> str:
    """`95 s`, `31 min`, `5.2 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class _Lines:
    """A file in which every state of a bar is a line of its own."""

    def __init__(self, file: IO):
        self.file = file

    def write(self, text: str) -> None:
        if text.startswith("\r") and text.strip():  # anything else moves the cursor of a terminal
            self.file.write(text.strip() + "\n")

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def no_bars() -> Iterator[None]:
    """Without bars: ours, and those of transformers, huggingface_hub and datasets."""
    token = WANTED.set(False)
    try:
        with quiet_loading(), _quiet_datasets():
            yield
    finally:
        WANTED.reset(token)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' bar per loaded model and huggingface_hub's per file, which would bury a table."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    try:
        import datasets
    except ImportError:  # an extra; who has not installed it sees no bar of it
        yield
        return
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
