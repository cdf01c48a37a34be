"""Pictures without labels, from wherever they lie: for learning from features, comparing encoders, calibrating.

pictures = load_pictures("photos")          # every picture in the folder and below it, in one class
pictures = load_pictures("digits", "test")  # a labelled set, its labels ignored
"""

import dataclasses
import os
from pathlib import Path

from ..extras import require
from .class_folders import WHOLE, ImageFiles, picture_files, split_folders, warn_of_loose
from .data import HELD_OUT, UNLABELLED, LabelledImages, NoSplit, choose_split, held_out, load_images


def load_pictures(data: str, split: str = "train", others: bool = False) -> LabelledImages:
    """Opens the pictures of one split of the set that `data` names; labels are neither needed nor read.

    Args:
        data: a folder of pictures, in it or deeper, undivided (then every split is the whole) or below `train/` and
            `test/` as for `load_images`; or anything else that `load_images` takes, without its column of labels too.
        split: as for `load_images`.
        others: where there is no such split take another one: for pictures that are only looked at.

    Returns:
        The pictures, not yet decoded, every label 0, the one class called `image`.

    Raises:
        ValueError: `data` cannot be found or read, has no pictures or no such split.
        ImportError: an optional package is missing; the message says what to install.
    """
    if others:
        try:
            return load_pictures(data, split)
        except NoSplit as error:
            return load_pictures(data, error.available[0])
    if split == HELD_OUT:
        return held_out(load_pictures(data, "train"))[1]
    folder = Path(data).expanduser()
    if os.path.isdir(folder) and not any(folder.glob("*.parquet")):
        return _picture_folder(data, folder, split)
    images = load_images(data, split, labelled=False)
    return dataclasses.replace(images, labels=[0] * len(images), class_names=list(UNLABELLED))


def _picture_folder(data: str, folder: Path, split: str) -> LabelledImages:
    """Every picture below the folder of one split; see `class_folders.py`."""
    extensions = set(require("PIL.Image", "Pillow").registered_extensions())
    parts = split_folders(folder)
    chosen = choose_split(data, split, list(parts))
    if chosen != WHOLE:
        warn_of_loose(folder)
    files = picture_files(parts[chosen], extensions)
    if not files:
        raise ValueError(f"`data` must be a folder with pictures in it or deeper; found none in {parts[chosen]}.")
    return LabelledImages(ImageFiles(files), [0] * len(files), list(UNLABELLED), folder.resolve().name, chosen)
