"""Training states on disk: complete or absent, the newest undamaged one found again, the last few kept.

OUT/checkpoints/002-000000350/       phase 2 after 350 steps: what Accelerate saves, and state.json with its digests
OUT/.checkpoint.partial/           one that is being written
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..folders import check_writable
from ..identity_lingene import file_sha256
from ..images.contents import sampled
from ..images.data import LabelledImages
from ..measuring.tables import bytes_shown
from ..writing_lingene import writing


CONTENT = "_content"  # ends the names of what tells models from others of the same name
PICTURES, COMPARED = f"pictures{CONTENT}", 64  # of every set so many
NAMED, WEIGHTS = (CONFIG_NAME, IMAGE_PROCESSOR_NAME), (".safetensors", ".bin")  # of a model in a folder
STATE_FILE, STAGING = "state.json", ".checkpoint.partial"
CHECKPOINT = re.compile(r"\d{3}-\d{9}")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        out: folder of the run.
        identity: what a checkpoint must agree on to be resumed from, as JSON takes it.
        keep: how many of the newest stay.
    """

    def __init__(self, out: str | Path, identity: dict, keep: int = 2):
        self.out, self.keep = Path(out), keep
        self.folder, self.staging = self.out / "checkpoints", self.out / STAGING
        self.identity = json.loads(json.dumps(identity))

    def check_room(self, needed: int) -> None:
        """Refuse, before training, a folder that cannot be written to or a disk without room.

        Args:
            needed: bytes of one checkpoint.

        Raises:
            ValueError: see above.
        """
        check_writable(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        free, wanted = shutil.disk_usage(self.out).free, needed * (self.keep + 2 - len(self.complete()))
        if free < wanted:
            raise ValueError(
                f"`out` {self.out} has {bytes_shown(free)} free; {self.keep} checkpoints, the next one and the "
                f"bundle take {bytes_shown(wanted)}; make room or choose another folder."
            )

    def save(self, phase: int, step: int, state: dict, write: Callable[[Path], None], main: bool, wait: Callable):
        """One checkpoint, written beside and renamed into place; then the oldest removed.

        Args:
            phase, step: where the run is.
            state: goes into state.json.
            write: writes the large files into a folder; called on every process.
            main: whether this is the main process, which alone touches names.
            wait: returns when every process has called it.
        """
        with writing(self.out):
            write(self.staging)
        wait()
        if main:
            files = [path for path in sorted(self.staging.rglob("*")) if path.is_file()]
            digests = {path.relative_to(self.staging).as_posix(): file_sha256(path) for path in files}
            content = {"phase": phase, "step": step, "identity": self.identity, **state, "files": digests}
            content["digest"] = _digest(content)
            (self.staging / STATE_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
            target = self.folder / f"{phase:03d}-{step:09d}"
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            self.staging.rename(target)
            ours = self.complete()
            done = ours.index(target) + 1  # what lies after it was damaged, or this step would not be new
            for old in ours[done:] + ours[: max(0, done - self.keep)]:
                shutil.rmtree(old)
        wait()

    def complete(self) -> list[Path]:
        """This run's checkpoints, oldest first; whatever else lies there is not ours."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if CHECKPOINT.fullmatch(path.name))

    def newest(self) -> dict | None:
        """The state of the newest checkpoint that is whole, with its `folder`; a damaged one is passed over, aloud.

        Raises:
            ValueError: it belongs to a run with other settings.
        """
        for folder in reversed(self.complete()):
            try:
                state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
                whole = state.pop("digest") == _digest(state)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                whole = False
            damaged = [STATE_FILE]
            if whole:
                check_identity(self.out, state["identity"], self.identity)
                damaged = [name for name, digest in state["files"].items() if not _is_whole(folder / name, digest)]
            if not damaged:
                return {**state, "folder": str(folder)}
            warnings.warn(
                f"The checkpoint {folder} is damaged ({', '.join(damaged)}); going on from the one before.",
                stacklevel=2,
            )
        return None

    def clear_staging(self) -> None:
        """Remove what a killed run left half written."""
        shutil.rmtree(self.staging, ignore_errors=True)


def contents(**folders: str | os.PathLike) -> dict[str, str]:
    """What tells models in folders from others of the same name, as `NAME_content` of a run's identity: a hash of the
    configuration, preprocessing and weights of each. What is no folder, such as a name on the Hub, has none.
    """
    found = {}
    for name, folder in folders.items():
        folder = Path(os.path.expanduser(folder))
        if folder.name and folder.is_dir():
            files = [file for file in sorted(folder.iterdir()) if file.name in NAMED or file.suffix in WEIGHTS]
            state = {file.name: file_sha256(file) for file in files}
            found[f"{name}{CONTENT}"] = _digest(state)
    return found


def contents_of_pictures(*sets: LabelledImages | None) -> dict[str, str]:
    """What tells sets of images from others in the same place, as `pictures_content` of a run's identity: their
    labels, and some pictures of each, spread evenly.
    """
    told = hashlib.sha256()
    for images in filter(None, sets):
        told.update(json.dumps([images.class_names, images.labels]).encode())
        for one in sampled(images, {place * len(images) // COMPARED for place in range(COMPARED)}):
            told.update(one)
    return {PICTURES: told.hexdigest()}


def _digest(state: dict) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return file_sha256(path) == digest
    except OSError:
        return False


def check_identity(folder: Path, stored: dict, asked: dict) -> None:
    """Refuse to go on with, or read back, a run of other settings; names what differs."""
    names = stored.keys() | asked.keys()
    if PICTURES not in stored:  # of a run that was begun before this was kept
        names -= {PICTURES}
    differing = sorted(key for key in names if stored.get(key) != asked.get(key))
    if differing:
        told = ", ".join(f"{key} ({stored.get(key)!r} there, {asked.get(key)!r} asked)" for key in differing)
        raise ValueError(
            f"`out` {folder} holds another run, differing in {told}; choose another folder, or delete this one."
        )
