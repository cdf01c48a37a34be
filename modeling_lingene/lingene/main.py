"""Parses a command line and calls what it names, nothing more.

A command is imported when it is known: `--help`, `--version` and a typo do not wait for torch.
"""

import argparse
import contextlib
import errno
import os
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from .commands import COMMANDS, KEPT, RESUMED, UNKEPT
from .options import named
from .telling import (
    Parser,
    flags_of,
    in_flags,
    silence,
    speak_in_flags,
    standard_streams,
    unread,
    warnings_in_lines,
)


PACKAGE = "modeling_lingene"
NAMES = {"bundle", "model", "source", "init", "reference"}  # options that may be names on the Hub
UNREAD, INTERRUPTED = 128 + 13, 128 + 2  # SIGPIPE, SIGINT
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}  # of a write, which does not say its file


class _Version(argparse.Action):
    """Looks the version up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_) -> None:
        print(PACKAGE, version(PACKAGE))
        parser.exit()


def build_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, with the options of the one that is wanted: those of training import much."""
    parser = Parser(prog="lingene", description="One bundle, Vision Transformers of many sizes.")
    told = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "help": "show program's version number and exit"}
    parser.add_argument("--version", action=_Version, nargs=0, **told)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, chosen in COMMANDS.items():
        own = commands.add_parser(name, help=chosen.help, description=chosen.help[0].upper() + chosen.help[1:] + ".")
        for add in chosen.options if name == wanted else ():
            add(own)
        speak_in_flags(own)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command: 0 on success, 2 for wrong input, 1 for what failed on the way, 130 when interrupted, 141 when
    nobody reads on (`| head`), of which nothing is said: so shells report any program that a closed pipe ends.

    Whatever is wrong is one line on stderr that says what to do.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        try:
            return _run(argv)
        finally:  # of `--help` too, which ends by an exit
            for stream in standard_streams():
                stream.flush()
    except KeyboardInterrupt:  # before the command itself began: of imports, which take seconds
        _say_interrupted("lingene: interrupted.")
        return INTERRUPTED
    except BrokenPipeError as error:
        gone = unread(standard_streams())
        silence(gone)
        return UNREAD if gone else _fail(argv[0], error.strerror, 2)


def _run(argv: list[str]) -> int:
    parser = build_parser(next((word for word in argv if not word.startswith("-")), None))
    parsed, unknown = parser.parse_known_args(argv)
    options = vars(parsed)
    name, quiet = options.pop("command"), options.pop("quiet", False)
    if unknown:
        parser.prog += f" {name}"
        parser.error(f"`{shlex.join(unknown)}` is none of its options")
    resumed = options.get("resume") is not True and options.get("resume")
    place = options.get("out") or resumed or options.get("bundle")
    from safetensors import SafetensorError

    try:
        with _bars(quiet), warnings_in_lines(flags_of(options_of(name))):
            _check_names(options)
            named(COMMANDS[name].run)(**options)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        return _fail(name, _told(error, place), 2)
    except RuntimeError as error:
        return _fail(name, str(error), 1)
    except KeyboardInterrupt:
        _say_interrupted(f"lingene {name}: interrupted. {_then(name, place)}")
        return INTERRUPTED
    return 0


def _say_interrupted(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes the main one
        print(f"\n{line}", file=sys.stderr)


def _then(name: str, place: object) -> str:
    """What to do after a command was interrupted that writes to a place."""
    said = COMMANDS[name].resume
    if said == RESUMED and not any(Path(str(place), file).is_file() for file in KEPT):
        said = UNKEPT
    flag = "" if name == "sweep" else ", with --resume"  # which goes on by itself
    return said.format(name=name, place=shlex.quote(str(place)), flag=flag)


def _bars(quiet: bool) -> contextlib.AbstractContextManager:
    return named(f"{PACKAGE}.progress:no_bars")() if quiet else contextlib.nullcontext()


def _check_names(options: dict[str, object]) -> None:
    """Refuse names that are no folders while the Hub is out of reach, before anything waits for it."""
    for argument in NAMES & options.keys():
        if isinstance(options[argument], str):
            named(f"{PACKAGE}.found:check_within_reach")(argument, options[argument])


def _fail(name: str, message: str, status: int) -> int:
    told = in_flags(" ".join(message.split()), flags_of(options_of(name))) if name in COMMANDS else message
    print(f"lingene {name}: {told}", file=sys.stderr)
    return status


def options_of(name: str) -> argparse.ArgumentParser:
    """The options of one command by themselves."""
    parser = argparse.ArgumentParser(add_help=False)
    for add in COMMANDS[name].options:
        add(parser)
    return parser


def _told(error: Exception, place: Path | str | None) -> str:
    """What is wrong, with the file that it is wrong with.

    Args:
        place: where the command writes: a disk that is full does not say what could not be written.
    """
    if isinstance(error, OSError) and error.strerror:
        files = [str(file) for file in (error.filename, error.filename2) if file is not None]
        if files or (error.errno in DISK and error.strerror == os.strerror(error.errno)):
            return f"{' -> '.join(files) or place}: {error.strerror}"
        return error.strerror  # of `writing`, with the place
    if isinstance(error, ImportError):
        return named(f"{PACKAGE}.extras:lacking")(error) or str(error)
    return str(error)
