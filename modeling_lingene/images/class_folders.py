"""Folders of images, one folder per class: which files belong to which class and split; what is left out is named.

FOLDER/cat/1.png                    undivided: every split is the whole
FOLDER/train/cat/a/1.png            divided; images may lie deeper than their class
FOLDER/holdout/cat/1.png
"""

import os
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
    """Every image file at any depth of a folder, of links too. Warns of every file it leaves out.

    Args:
        extensions: of image files, with the dot.
    """
    files, others = _divided(_files(str(folder), set()), extensions)
    clutter = [path for path in files if CLUTTER & set(Path(os.path.relpath(path, folder)).parts)]
    _warn_of(folder, [os.path.relpath(path, folder) for path in sorted([*others, *clutter])], "is no picture")
    return sorted(set(files) - set(clutter))


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
