"""Pictures without labels, from wherever they lie.

FOLDER/1.png, FOLDER/a/b/2.png      any folder of pictures
FOLDER/train/..., FOLDER/test/...   its splits, where it is divided
"""

import dataclasses
import os
from pathlib import Path

from .class_folders import ImageFiles, picture_files, split_folders
from .data import LabelledImages, choose_split, load_images, require


ONE_CLASS = ["image"]


def load_pictures(data: str, split: str = "train") -> LabelledImages:
    """The pictures of a set, all of one class; labels are not needed, and not read where they are.

    Args:
        data: a folder of pictures at any depth; or whatever `load_images` takes.
        split: of a set that is divided; as for `load_images`.

    Returns:
        The pictures, not yet decoded, with label 0. What is left out of a folder is counted and named in a warning.

    Raises:
        ValueError: `data` cannot be found or read, holds no picture or no such split.
    """
    path = Path(data).expanduser()
    if not os.path.isdir(path) or any(path.glob("*.parquet")):
        images = load_images(data, split)
        return dataclasses.replace(images, labels=[0] * len(images), class_names=list(ONE_CLASS))
    extensions = set(require("PIL.Image", "Pillow").registered_extensions())
    parts = split_folders(path)
    chosen = choose_split(data, split, list(parts))
    files = picture_files(parts[chosen], extensions)
    if not files:
        raise ValueError(f"`data` must be a folder of pictures; found none in {str(parts[chosen])!r}.")
    return LabelledImages(ImageFiles(files), [0] * len(files), list(ONE_CLASS), path.resolve().name, chosen)
