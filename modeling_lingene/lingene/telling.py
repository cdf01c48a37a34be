"""How the command line speaks: flags in place of Python's arguments, and no word to a reader that has gone."""

import argparse
import contextlib
import logging
import os
import re
import select
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import IO


# What a message may call it -> what the command's own argument may be called.
OTHER_NAMES = {"repo_id": ("repo",), "bundle": ("model", "bundles", "source"), "model": ("bundle",)}
OTHER_NAMES |= {"depth": ("depths",), "width_ratio": ("widths",), "num_components": ("components",)}


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """How each option of a command is typed, by the name of the Python argument: `--max-macs`, `BUNDLE`."""
    flags = {}
    for action in parser._actions:
        flags.setdefault(action.dest, (action.option_strings or [str(action.metavar or action.dest)])[0])
    for flag in list(flags.values()):  # a message may call it by its own words, too
        flags.setdefault(flag.lstrip("-").replace("-", "_"), flag)
    for name, others in OTHER_NAMES.items():
        known = [flags[other] for other in others if other in flags]
        if known:
            flags.setdefault(name, known[0])
    return flags


def in_flags(message: str, flags: dict[str, str]) -> str:
    """A message that names Python's arguments, `depth` or depth=6, in the words of a command line.

    Args:
        flags: as `flags_of` gives them; other names stay as they are.
    """

    def named(found: re.Match) -> str:
        return f"`{flags[found[1]]}`" if found[1] in flags else found[0]

    def given(found: re.Match) -> str:
        flag, name, value = found.groups()
        if flag or not flags.get(name, "").startswith("--"):  # `--model-args depth=6` is typed so
            return found[0]
        return flags[name] if value == "True" else f"{flags[name]} {value}"

    return re.sub(r"(--[\w-]+ )?(?<![\w./`=-])(\w+)='?([\w./-]*\w)'?", given, re.sub(r"`(\w+)`", named, message))


def speak_in_flags(parser: argparse.ArgumentParser) -> None:
    """Puts the help of every option of a command, which may come from a docstring, in the words of its flags."""
    flags = flags_of(parser)
    for action in parser._actions:
        if action.help and action.help is not argparse.SUPPRESS:
            action.help = in_flags(action.help, flags)


class Parser(argparse.ArgumentParser):
    """A command line; what is wrong with one is a line that names the flag, without all the others."""

    def error(self, message: str) -> None:
        said = re.sub(r"^argument ([^:]+): ", r"`\1` ", message)
        self.exit(2, f"{self.prog}: {said}; {self.prog} --help says more.\n")


@contextlib.contextmanager
def warnings_in_lines(flags: dict[str, str]) -> Iterator[None]:
    """Warnings are a line each, in the words of a command line: who typed it does not look for them in the code.

    Those of Python, and what is logged, which Python's last resort writes.
    """
    usual, last = warnings.formatwarning, logging.lastResort

    def line(message: Warning | str, category: type[Warning], *rest, **more) -> str:
        return (
            f"{in_flags(str(message), flags)}\n"
            if category is UserWarning
            else usual(message, category, *rest, **more)
        )

    formatter = logging.Formatter()
    formatter.formatMessage = lambda record: in_flags(record.message, flags)
    own, warnings.formatwarning = last.formatter, line
    last.setFormatter(formatter)
    try:
        yield
    finally:
        warnings.formatwarning = usual
        last.setFormatter(own)


def unread(streams: Iterable[IO]) -> list[IO]:
    """Those of some streams that are pipes whose reader has gone, as of `| head`."""
    return [stream for stream in streams if _reader_is_gone(stream)]


def _reader_is_gone(stream: IO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # no file, or a closed one
        return False


def silence(streams: Iterable[IO]) -> None:
    """What is still to be printed there goes nowhere; or Python would fail once more when it ends."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def standard_streams() -> list[IO]:
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
