"""Reading a bundle's JSON: whatever is wrong in it is named, by file and field, before any work.

A check is a pair: whether a value is right, and what it must be, in words.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any


Check = tuple[Callable[[Any], bool], str]
SHOWN_LENGTH = 80  # of a wrong value in a message
AGAIN = "fetch it or write it again"


def read_json(path: str | os.PathLike, bundle: str, remedy: str = AGAIN) -> dict:
    """The object in one of a bundle's JSON files.

    Args:
        path: of the file, here.
        bundle: folder or name that the file belongs to, for the message.
        remedy: what to do about a damaged one, for the message.

    Raises:
        ValueError: no JSON, or no object.
        OSError: the file cannot be read.
    """
    file = os.path.basename(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # no JSON or no UTF-8; or nested too deeply to be read
        raise ValueError(f"`{file}` of {bundle} is damaged, it is no JSON; {remedy}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"`{file}` of {bundle} is damaged, it holds {shown(content)}; {remedy}.")
    return content


def check_fields(
    content: Mapping, checks: Mapping[str, Check], where: str, required: Sequence[str] = (), remedy: str = AGAIN
) -> None:
    """Refuse the first field that is missing or is not what it must be.

    Args:
        where: what the fields stand in, for the message.
        required: fields that must be there; others may be left out.
    """
    for field in required:
        if field not in content:
            raise ValueError(f"`{field}` is missing from {where}; {remedy}.")
    for field, (right, wanted) in checks.items():
        if field in content and not right(content[field]):
            raise ValueError(f"`{field}` in {where} must be {wanted}, got {shown(content[field])}; {remedy}.")


def shown(value: Any) -> str:
    """A wrong value, as far as it fits into a line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."


def is_integer(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float, high: float) -> bool:
    # An integer may be beyond any float, and then is beyond `high` as well.
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and low <= value <= high and isfinite(value)


def integer(low: int, high: int) -> Check:
    return lambda value: is_integer(value, low, high), f"an integer from {low} to {high}"


def number(low: float, high: float) -> Check:
    return lambda value: is_number(value, low, high), f"a number from {low:g} to {high:g}"


def optional(check: Check) -> Check:
    right, wanted = check
    return lambda value: value is None or right(value), f"{wanted}, or null"


def items(check: Check, length: int | None = None) -> Check:
    """A list, or a tuple, of what `check` takes."""
    right, wanted = check

    def all_right(value: Any) -> bool:
        listed = isinstance(value, (list, tuple)) and length in (None, len(value))
        return listed and all(right(item) for item in value)

    return all_right, f"a list{f' of {length}' if length else ''}, each {wanted}"


def map_of(check: Check) -> Check:
    """An object whose every field is what `check` takes, or null."""
    right, wanted = check
    return (
        lambda value: isinstance(value, dict) and all(item is None or right(item) for item in value.values()),
        f"an object of fields, each {wanted}",
    )


def one_of(*choices: Any) -> Check:
    # By type as well: 1 is no flag, though it equals True.
    right = {(type(choice), choice) for choice in choices}
    hashable = (str, int, bool, type(None))
    return (
        lambda value: isinstance(value, hashable) and (type(value), value) in right,
        f"one of {', '.join(map(repr, choices))}",
    )


def either(first: Check, second: Check) -> Check:
    return lambda value: first[0](value) or second[0](value), f"{first[1]}; or {second[1]}"


FLAG: Check = (lambda value: isinstance(value, bool), "true or false")
TEXT: Check = (lambda value: isinstance(value, str), "a text")
OBJECT: Check = (lambda value: isinstance(value, dict), "an object of fields")
