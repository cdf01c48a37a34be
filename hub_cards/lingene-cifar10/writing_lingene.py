"""What is unfinished on a disk, and what kept it from being finished.

A save is on its way in `.NAME.HOST.PROCESS.XXXXXXXX.partial`, which is gone when it ends, however it ends. A process
that is killed leaves its own; the next save of the same place removes it.
"""

import errno
import functools
import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


PARTIAL = r"\.([0-9a-f]{8})\.(\d{1,10})\.[0-9a-f]{8}\.partial"  # host, process
DAY = 24 * 3600  # seconds; no save takes as long
# The system's numbers of errors, and ways out.
CLOSED = dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions or choose another folder")
CLOSED[errno.ENOTDIR] = CLOSED[errno.EEXIST] = "a file is in the way; move it or choose another folder"
FULL = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space there or choose another folder")
FULL[errno.EFBIG] = "raise the limit (`ulimit -f`) or choose a file system that takes larger files"


def partial_name(place: Path) -> str:
    """A new name for what is on its way to a place: hidden, and saying which process of which host is at work."""
    return f".{_full(place).name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial"


def clear_abandoned(place: Path) -> None:
    """Remove, beside a place and within it, what savers left there that were killed.

    Those of this host that run are left alone; of processes of other hosts nothing is known, and what they have not
    touched for a day is removed.
    """
    place = _full(place)
    # A bundle that is saved into something unfinished has a name of its own around that one's.
    ours = re.compile(rf"\.+{re.escape(place.name)}(?:{PARTIAL.replace('(', '(?:')})*{PARTIAL}")
    for folder in (place.parent, place):
        with suppress(OSError):  # nothing to list there
            for path in [path for path in folder.iterdir() if path.name.endswith(".partial")]:
                found = ours.fullmatch(path.name)
                if found and _is_abandoned(path, found[1], int(found[2])):
                    _remove(path)


def _full(place: Path) -> Path:
    return Path(os.path.abspath(place))  # `.` has no name


@functools.cache
def _host() -> str:
    """Eight digits for the machine, its start and the container: whose process numbers ours is one of."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        started = str(uuid.getnode())
    return hashlib.sha256(f"{platform.node()} {started}".encode()).hexdigest()[:8]


def _is_abandoned(path: Path, host: str, process: int) -> bool:
    if host == _host():
        return not _runs(process)
    touched = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
    return time.time() - touched > DAY


def _runs(process: int) -> bool:
    if os.name != "posix":
        return True  # asking with signal 0 would end it there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # another user's
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(place: str | os.PathLike) -> Iterator[None]:
    """Tell of a full disk or a closed folder, whichever library met it, as an OSError with the place and a way out."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        number = _failed_write(error, _full(Path(place)))
        if number is None:
            raise
        way = FULL.get(number) or CLOSED.get(number) or "look for room on the disk or choose another folder"
        raise OSError(number, f"{place} cannot be written: {os.strerror(number)}; {way}") from error


def _failed_write(error: Exception, place: Path) -> int | None:
    """The system's number of what has gone wrong in writing a place; None for any other error."""
    if isinstance(error, OSError):
        closed = error.errno in CLOSED and _is_on_the_way(error.filename, place)
        return error.errno if closed or error.errno in FULL else None
    if isinstance(error, SafetensorError):  # which serializes to write, and knows the number in words only
        found = re.search(r"serializ.*\(os error (\d+)\)", str(error))
        return int(found[1]) if found else None
    # What torch's own writer meets it tells without a number, or as a surprise about its place in the file.
    return errno.EIO if re.search("PytorchStreamWriter failed|unexpected pos", str(error)) else None


def _is_on_the_way(path: str | bytes | int | None, place: Path) -> bool:
    """Whether a path is the place, above or within it, or what becomes it: others are closed to readers."""
    if not isinstance(path, (str, bytes)):
        return False
    full = _full(Path(os.fsdecode(path)))
    within = (f"{place}{os.sep}", str(place.parent / f".{place.name}."))
    return full in (place, *place.parents) or str(full).startswith(within)
