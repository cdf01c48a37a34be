"""Folders of images: which files belong to which split, and to which class, a folder each; what is left out is named.
Of parquet files the names say which split they belong to.

FOLDER/cat/1.png                    undivided: every split is the whole
FOLDER/train/cat/a/1.png            divided; images may lie deeper than their class
FOLDER/holdout/cat/1.png
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


# What a split's folder, or the start of a parquet file's name, may be called, in any case.
SPLIT_ALIASES = {"train": "train", "test": "test", "holdout": "test"}
SPLIT_ALIASES |= dict.fromkeys(("validation", "val", "valid", "dev", "eval"), "validation")
WHOLE = "whole"  # the split of a set that is not divided: a result must show that it is not on a held-out part
CLUTTER = {".git", ".ipynb_checkpoints", "__MACOSX", "__pycache__", ".Trash", ".Trashes"}  # never a class
SHOWN = 5  # of what was left out


class ImageFiles(Sequence):
    """Image files, opened when indexed."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.paths[index]) as picture:
            picture.load()
            return picture

    def path(self, index: int) -> str:
        return self.paths[index]


def split_folders(folder: Path) -> dict[str, Path]:
    """{split: subfolder}, or {`whole`: folder} where the folder is not divided.

    Raises:
        ValueError: two subfolders are the same split by their names.
    """
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in CLUTTER]
    named: dict[str, list[Path]] = {}
    for path in subfolders:
        if path.name.lower() in SPLIT_ALIASES:
            named.setdefault(SPLIT_ALIASES[path.name.lower()], []).append(path)
    inside = [path for paths in named.values() for path in paths]
    # A class may be called `train` too (the vehicle): it holds images, where a split holds class folders.
    divided = any(path.is_dir() for part in inside for path in part.iterdir()) or len(inside) == len(subfolders)
    if not (named and divided):
        return {WHOLE: folder}
    for split, paths in named.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise ValueError(f"`data` {folder} has {names}, all of them the {split} split; keep one, or merge them.")
    strangers = [f"{path.name}/" for path in subfolders if path not in inside]
    _warn_of(folder, strangers, f"is no split: splits are called {', '.join(SPLIT_ALIASES)}")
    return {split: paths[0] for split, paths in named.items()}


def split_files(data: str, files: Sequence[str]) -> dict[str, list[str]]:
    """{split: files}, by how their names start, or {`whole`: files} where none starts with a split's.

    Args:
        data: that names the files, for the message.

    Raises:
        ValueError: some do and others do not.
    """
    parts: dict[str, list[str]] = {}
    for file in files:
        match = re.match(rf"({'|'.join(SPLIT_ALIASES)})[-_.]", Path(file).name, re.IGNORECASE)
        parts.setdefault(SPLIT_ALIASES[match[1].lower()] if match else WHOLE, []).append(file)
    if WHOLE in parts and len(parts) > 1:
        raise ValueError(
            f"`data` must be files that all start with a split's name (train-, test-, validation-) or none that does; "
            f"in {data!r} {Path(parts[WHOLE][0]).name} does not and others do. Rename it or leave it out."
        )
    return parts


def class_files(folder: Path, extensions: set[str]) -> dict[str, list[str]]:
    """Image files by class, the name of the first folder below; of links too. Warns of every file it leaves out.

    Args:
        folder: of one split.
        extensions: of image files, with the dot.
    """
    classes: dict[str, list[str]] = {}
    strangers, loose, empty = [], [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir():
            loose.append(entry.name)
        elif entry.name in CLUTTER:
            strangers.append(f"{entry.name}/")
        else:
            files, others = _divided(_files(entry.path, set()), extensions)
            strangers += [os.path.relpath(path, folder) for path in others]
            if files:
                classes[entry.name] = files
            else:
                empty.append(f"{entry.name}/")
    _warn_of(folder, strangers, "is no image")
    _warn_of(folder, loose, "lies outside of any class folder")
    _warn_of(folder, empty, "holds no image and is no class here")
    return classes


def picture_files(folder: Path, extensions: set[str]) -> list[str]:
    """Every image file in a folder or deeper, of links too, sorted. Warns of every file it leaves out.

    Args:
        folder: of one split.
        extensions: of image files, with the dot.
    """
    files: list[str] = []
    strangers = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name in CLUTTER:
            strangers.append(f"{entry.name}/")
        else:
            images, others = _divided(_files(entry.path, set()) if entry.is_dir() else iter([entry.path]), extensions)
            files += images
            strangers += [os.path.relpath(path, folder) for path in others]
    _warn_of(folder, strangers, "is no image")
    return files


def warn_of_loose(folder: Path) -> None:
    """Warns of files that lie beside the folders of the splits."""
    loose = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    _warn_of(folder, loose, "lies outside of any split")


def _divided(paths: Iterator[str], extensions: set[str]) -> tuple[list[str], list[str]]:
    images, others = [], []
    for path in paths:
        (images if os.path.splitext(path)[1].lower() in extensions else others).append(path)
    return sorted(images), sorted(others)


def _files(folder: str, above: set[str]) -> Iterator[str]:
    """Every file below a folder; links are followed, but not in a circle."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files(entry.path, above | {real})
        else:
            yield entry.path


def _warn_of(folder: Path, names: list[str], why: str) -> None:
    if names:
        shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        warnings.warn(f"{len(names)} left out of {folder}: {shown} ({why}).", stacklevel=2)
