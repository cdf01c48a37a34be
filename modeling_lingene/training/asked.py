"""What a run was asked for, kept in its folder: it goes on without its command, and says how another one differs.

OUT/run.json: `identity`, what makes the run another one than its neighbour, and `asked`, all of its settings.
"""

import dataclasses
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

from ..folders import write_json
from .checkpoints import CONTENT, check_identity
from .record import flag_words


RUN_FILE = "run.json"


def keep_asked(out: Path, identity: dict, **asked: Any) -> None:
    """Write them; settings are dataclasses, the rest is as JSON takes it."""
    content = {name: dataclasses.asdict(one) if dataclasses.is_dataclass(one) else one for name, one in asked.items()}
    write_json(out / RUN_FILE, {"identity": identity, "asked": content})


def asked_of(out: Path, **kinds: type) -> dict[str, Any]:
    """What the run in a folder was asked for.

    Args:
        kinds: the dataclasses of those that are settings, by name.

    Raises:
        ValueError: the folder keeps none, or those of another command or version.
    """
    again = "repeat the whole command that began it"
    if not (out / RUN_FILE).is_file():
        raise ValueError(f"`resume` {out} holds no {RUN_FILE}, the settings of a run to go on with: {again}.")
    try:
        asked = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))["asked"]
        return asked | {name: _settings(kind, asked[name]) for name, kind in kinds.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"`{RUN_FILE}` of {out} is of no such run ({error!r}): {again}.") from None


def check_asked(out: Path, identity: dict, command: str, kinds: Iterable[type]) -> None:
    """Refuse to go on with a run of other settings; a folder without any is let pass.

    Args:
        identity: of the run that is asked for.
        command: that began the one that is there.
        kinds: the dataclasses whose fields are flags of that command.

    Raises:
        ValueError: names what differs, the flags that would not, and the command that needs none.
    """
    if not (out / RUN_FILE).is_file():
        return
    try:
        stored = dict(json.loads((out / RUN_FILE).read_text(encoding="utf-8"))["identity"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"`{RUN_FILE}` in `out` {out} is not of a run of {command}; choose another folder.") from None
    try:
        check_identity(out, stored, identity)
    except ValueError as error:
        differing = {name: value for name, value in stored.items() if name not in identity or value != identity[name]}
        flags = shlex.join(_words(differing, kinds))
        if any(name.endswith(CONTENT) for name in differing):  # which no flag brings back
            raise
        way = f"{command} --resume {shlex.quote(str(out))}"
        raise ValueError(
            f"{error} {way} goes on with its settings{f'; or repeat {flags}' if flags else ''}."
        ) from None


def _words(values: dict[str, Any], kinds: Iterable[type]) -> list[str]:
    """The flags of those values that have one."""
    fields = [field for kind in kinds for field in dataclasses.fields(kind) if field.name in values]
    return [word for field in fields for word in flag_words(field, values[field.name])]


def _settings(kind: type, content: dict) -> Any:
    """Settings as they were before JSON, which has no tuples."""
    types = get_type_hints(kind)
    values = {}
    for name, value in content.items():
        inner = dataclasses.is_dataclass(types[name])
        values[name] = _settings(types[name], value) if inner else tuple(value) if isinstance(value, list) else value
    return kind(**values)
