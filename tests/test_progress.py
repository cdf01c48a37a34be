"""Laws of progress bars: in place on a terminal, few whole lines in a file, nothing where none is wanted.

pytest tests/test_progress.py
"""

import io
import re
import sys

import pytest
import tqdm.std
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from modeling_lingene import progress
from modeling_lingene.progress import no_bars, progress_bar


class Stream(io.StringIO):
    """What stands in for stderr: a file, or a terminal."""

    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def drawn(monkeypatch: pytest.MonkeyPatch, terminal: bool, steps: int = 97, **options) -> str:
    """What a bar writes whose steps take a second each, by a clock of its own."""
    stream, now = Stream(terminal), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    with progress_bar(total=steps, desc="training", unit="step", **options) as bar:
        for _ in range(steps):
            now[0] += 1
            bar.update()
    return stream.getvalue()


def test_in_a_file_a_bar_is_a_whole_line_every_few_seconds(monkeypatch):
    """Log files of batch systems: a line per step buries whatever else is said, one without an end is not shown."""
    said = drawn(monkeypatch, terminal=False)
    assert said.endswith("\n") and "\r" not in said and "\x1b" not in said and said.isascii()
    counts = [int(re.fullmatch(r"training: +\d+%\|.*\| (\d+)/97 \[.*\]", line)[1]) for line in said.splitlines()]
    assert counts == [*range(0, 97, int(progress.FILE_SECONDS)), 97]


def test_two_bars_at_once_in_a_file_are_lines_too(monkeypatch):
    """On a terminal the second one moves the cursor down and up again."""
    stream = Stream(terminal=False)
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in progress_bar(range(2), desc="outer"):
        for _ in progress_bar(range(2), desc="inner"):
            pass
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6 and all(re.match(r"(outer|inner): +\d+%\|", line) for line in lines)


def test_on_a_terminal_a_bar_stays_in_its_line(monkeypatch):
    """Redrawn at every step of a second, as tqdm does."""
    said = drawn(monkeypatch, terminal=True)
    assert said.count("\n") == 1 and said.endswith("\n") and said.count("\r") >= 97


def test_a_bar_in_a_notebook_is_left_to_tqdm(monkeypatch):
    """There stderr is no terminal, and the bar a widget that goes over itself."""
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    assert drawn(monkeypatch, terminal=False).count("\r") >= 97


@pytest.mark.parametrize("terminal", [True, False])
def test_no_bar_is_no_output(monkeypatch, terminal):
    """Of a process that is not the main one, or where none is wanted; afterwards they are back."""
    assert drawn(monkeypatch, terminal, shown=False) == ""
    with pytest.raises(KeyError), no_bars():
        assert drawn(monkeypatch, terminal) == ""
        raise KeyError
    assert drawn(monkeypatch, terminal) != ""


@pytest.mark.parametrize("on", [True, False])
def test_without_bars_those_of_the_libraries_are_off_too_and_then_as_they_were(on):
    """Whoever has turned them off for good must not find them on again."""
    datasets = pytest.importorskip("datasets")

    def states() -> tuple[bool, bool, bool]:
        datasets_on = not datasets.are_progress_bars_disabled()
        return logging.is_progress_bar_enabled(), not are_progress_bars_disabled(), datasets_on

    switches = {
        True: (logging.enable_progress_bar, enable_progress_bars, datasets.enable_progress_bars),
        False: (logging.disable_progress_bar, disable_progress_bars, datasets.disable_progress_bars),
    }
    before = states()
    try:
        for switch in switches[on]:
            switch()
        with no_bars():
            assert states() == (False, False, False)
        assert states() == (on, on, on)
    finally:
        for switch in [switches[was][place] for place, was in enumerate(before)]:
            switch()


def test_without_bars_datasets_need_not_be_installed(monkeypatch):
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with no_bars():
        assert not logging.is_progress_bar_enabled()
