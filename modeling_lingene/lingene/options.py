"""The words of the command line: how commands say their options, and the options that several share.

The standard library alone: a help page, a version and a typo must not wait for torch.
"""

import argparse
import ast
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


Options = Callable[[Any], object]  # adds an option or a group of them to a parser


def named(place: str) -> Callable:
    """What `module:name` names; imports the module."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def option(*names: str, **settings) -> Options:
    """In the words of `argparse.ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **settings)


def group(title: str, default: str, *options: Options) -> Options:
    """Options under a heading of their own."""

    def add(parser: argparse.ArgumentParser) -> None:
        section = parser.add_argument_group(title, f"default: {default}")
        for one in options:
            one(section)

    return add


def made_by(place: str) -> Options:
    """Options that a function of the package adds, such as those made from its settings."""
    return lambda parser: named(place)(parser)


def words(text: str) -> tuple[str, ...]:
    """`1/4,1/2` -> ("1/4", "1/2"); nothing is none."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def integers(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4); nothing is none."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be integers with commas between, such as 1,2,4; got {text!r}"
        ) from None


def arguments(text: str) -> dict[str, Any]:
    """`depth=6,qkv_bias=False` -> {"depth": 6, "qkv_bias": False}; what is no value of Python is a word."""
    found = {}
    for part in re.split(r",(?=\w+=)", text):
        name, sign, value = part.partition("=")
        if not (sign and name.isidentifier()):
            raise argparse.ArgumentTypeError(f"must be NAME=VALUE with commas between, such as depth=6; got {part!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def depths(text: str) -> tuple[int | str, ...]:
    """`3,6` -> (3, 6); where several stages are decomposed, `2-4,2-6` -> ("2-4", "2-6")."""
    try:
        return tuple(map(layers, words(text)))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be numbers of layers with commas between, such as 1,2,4, or 2-4,2-6 of several stages; got {text!r}"
        ) from None


def layers(text: str) -> int | str:
    """`6` -> 6; where several stages are decomposed, `2-6` -> "2-6"."""
    if re.fullmatch(r"-?\d+", text, re.ASCII):
        return int(text)
    if not re.fullmatch(r"\d+(-\d+)+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a number of layers, of several stages as in 2-6; got {text!r}")
    return text


def grid(default: str) -> Options:
    """Depths, widths and numbers of components."""
    return group(
        "grid",
        default,
        option("--depths", type=depths, default=(), metavar="N,N", help="numbers of layers"),
        option("--widths", type=words, default=(), metavar="A,B", help="ratios such as 1/4,1/2,1"),
        option("--components", type=integers, default=(), metavar="N,N", help="numbers of components"),
    )


BUNDLE = option("bundle", metavar="BUNDLE", help="folder or name on the Hub")
BUNDLE_FOLDER = option("bundle", metavar="BUNDLE", type=Path, help="folder")
REVISION = option("--revision", help="on the Hub (default: main)")
OUT = option("--out", type=Path, required=True, help="new or empty folder for the result")
OUT_FILE = option("--out", type=Path, help="JSON file for the numbers")
IMAGES = "digits, a folder of images, parquet files, a name on the Hub"
DATA = option("--data", required=True, help=IMAGES)
SPLIT = option(
    "--split", default="test", help="or held-out: what training on a set without one holds out (default: test)"
)
BATCH_SIZE = option("--batch-size", type=int, default=64, help="images at once (default: %(default)s)")
DEVICE = option("--device", help="default: the GPU if there is one, else the CPU")
METRIC = option(
    "--metric",
    help="accuracy, knn, probe or cosine; of several, with commas, the first decides (default: accuracy with a "
    "classifier; without one knn with labels, cosine without)",
)
RELABEL = option(
    "--relabel",
    action="store_true",
    help="for accuracy, take class i of the data for output i, although their names differ",
)
REFERENCE = option("--reference", metavar="MODEL", help="of the cosine: an encoder (default: the bundle's full size)")
SEED = option("--seed", type=int, default=0, help="default: %(default)s")
LICENSE = option(
    "--license", help="by its name on the Hub, such as apache-2.0 (default: that of the card that is there)"
)
QUIET = option("--quiet", action="store_true", help="no progress bars, nothing but the result")
SIZE = group(
    "size",
    "all that is stored",
    option("--depth", type=layers, metavar="N", help="number of layers; of several decomposed stages as in 2-6"),
    option("--width-ratio", help="fraction of the width, such as 1/2"),
    option("--num-components", type=int, help="number of components combined"),
    option("--allow-untrained", action="store_true", help="accept a width that was never trained"),
    option(
        "--max-params",
        type=float,
        help="or a budget: the best measured size within it, or a cheaper one that is as good as it can be told",
    ),
    option("--max-macs", type=float, help="multiply-accumulates of one image, such as 2e9"),
    option("--max-latency-ms", type=float, help="milliseconds of one image, as measured"),
    option("--latency-device", help="by its name in sizes.json (default: this machine's)"),
)
BASIS = group(
    "basis",
    "the preset stable",
    option("--preset", help="stable or paper"),
    option("--basis", help="chebyshev, legendre, taylor or fourier"),
    option("--nodes", help="roots or uniform"),
    option("--start-degree", type=int, help="of the first component"),
    option("--degree-weight", type=float, help="w divides the coefficients of degree g by (g + 1)^w"),
)
AGAIN = "Run the same command again to go on."
