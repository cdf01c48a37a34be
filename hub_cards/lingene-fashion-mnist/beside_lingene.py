"""Files that may lie beside a model, or may not: found, known to be absent, or nobody can say, which is no absence."""

import os
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError


try:
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
except ImportError:  # a version that keeps no lists of files
    get_cached_repo_tree = None

COMMIT = re.compile("[0-9a-f]{40}")
ASKED = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class NobodyKnows(ValueError):
    """Whether a file is there: it is not in the cache, and the Hub does not answer."""


def file_beside(name: str | os.PathLike, file: str, **hub) -> str | None:
    """The place here of a file that a model may do without; fetched where it is not here yet.

    Args:
        name: folder or name on the Hub.
        file: its name there.
        hub: what `cached_file` takes: revision, token, ...

    Returns:
        None where it is known that there is none: the folder is here, the Hub says so, or it said so before.

    Raises:
        NobodyKnows: see there.
        ValueError: the Hub answers, and refuses.
    """
    if os.path.isdir(name):
        path = os.path.join(name, hub.get("subfolder") or "", file)
        return path if os.path.isfile(path) else None
    pinned = COMMIT.fullmatch(hub.get("revision") or "") and not hub.get("force_download")
    if pinned and _said_before(str(name), file, hub):  # a commit stays what it is
        return None
    try:
        return hf_hub_download(str(name), file, **{key: hub[key] for key in ASKED if hub.get(key)})
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError, too
        if _said_before(str(name), file, hub):
            return None
        raise NobodyKnows(
            f"`{file}` of {name} is not in the cache, and the Hub cannot be asked whether there is one: "
            f"{_first_line(error)} Ask again while the Hub is within reach, once."
        ) from None
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"`{file}` of {name} cannot be read: {_first_line(error)}") from None


def _said_before(name: str, file: str, hub: Mapping[str, Any]) -> bool:
    """Whether the cache holds that the Hub has no such file: an earlier answer, or the list of all files."""
    path = "/".join(part for part in (hub.get("subfolder"), file) if part)
    where = {key: hub[key] for key in ("cache_dir", "revision") if hub.get(key)}
    if try_to_load_from_cache(name, path, **where) is _CACHED_NO_EXIST:
        return True
    if get_cached_repo_tree is None:
        return False
    try:
        return path not in {one.path for one in get_cached_repo_tree(name, **where)}
    except CachedRepoTreeNotFoundError:
        return False


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
