"""Labelled images from wherever they lie.

One string, `data`, names a set everywhere in this package (`--data` on the command line): `digits` (the 1,797
handwritten digits inside scikit-learn, no download), a folder of images, parquet files, or a dataset on the Hub.
Nothing is decoded before it is asked for.

    test = load_images("digits", "test")
"""

import dataclasses
import glob
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers.utils import CONFIG_NAME

from ..extras import require
from ..found import out_of_reach, wrong_kind
from .class_folders import SPLIT_ALIASES, WHOLE, ImageFiles, class_files, split_files, split_folders
from .decoding import upright_rgb


IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
HELD_OUT, HELD_SHARE = "held-out", 0.2  # a part of a set that has none to measure on, drawn by seed; of its images
STAND_INS = {"test": "validation", "validation": "test"}
UNLABELLED = ["image"]  # the class of every picture without a label
EXPECTED = "`data` must be `digits`, a folder of images, parquet files or the name of a dataset on the Hub"


@dataclass(frozen=True)
class LabelledImages:
    """Images with integer labels.

    Args:
        images: PIL images, or anything that gives them by index; decoding happens there, one image at a time.
        labels: one class index per image.
        class_names: the name of every class index.
        name: what the set is called in tables and cards; no path.
        split: what was loaded: the split asked for, its stand-in (`validation` for `test` and the reverse), or `whole`
            where the set is not divided.
    """

    images: Sequence
    labels: list[int]
    class_names: list[str]
    name: str
    split: str

    def __len__(self) -> int:
        return len(self.labels)

    def decoded(self, index: int) -> tuple[Any, str]:
        """The RGB picture at `index` and "", or None and which file it is and why it does not decode."""
        try:
            return upright_rgb(self.images[index]), ""
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            path = self.images.path(index) if hasattr(self.images, "path") else None
            return None, f"{path or f'image {index}'} ({error})"


class _Chosen(Sequence):
    """Some images of a sequence, in another order."""

    def __init__(self, images: Sequence, places: list[int]):
        self._images, self._places = images, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        return self._images[self._places[index]]

    def path(self, index: int) -> str | None:
        """Where the image came from, if the set says."""
        return self._images.path(self._places[index]) if hasattr(self._images, "path") else None


def picked(images: LabelledImages, places: Sequence[int]) -> LabelledImages:
    """The images at these places, in their order."""
    chosen = list(places)
    labels = [images.labels[place] for place in chosen]
    return dataclasses.replace(images, images=_Chosen(images.images, chosen), labels=labels)


def split_off(images: LabelledImages, share: float, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """A part of the images, drawn by seed, held out of the rest: every class gives its share, to one image.

    Args:
        images: n images.
        share: of the part, above 0 and below 1.
        seed: the same seed draws the same part wherever it runs.

    Returns:
        The rest (n - m images) and the part (m = round(share n) images, `split` validation), both in the set's order.

    Raises:
        ValueError: a share outside (0, 1), or one that leaves the part or the rest without an image.
    """
    count = round(share * len(images)) if 0 < share < 1 else 0
    if not 0 < count < len(images):
        raise ValueError(
            f"`validation_share` must be above 0 and below 1 and hold out at least one of the {len(images)} images of "
            f"{images.name}; got {share!r}."
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    by_class = order[torch.tensor(images.labels)[order].argsort(stable=True)]  # classes in turn, shuffled within
    held = set(by_class[torch.arange(count) * len(images) // count].tolist())
    places = [[i for i in range(len(images)) if (i in held) == part] for part in (False, True)]
    rest, part = (picked(images, chosen) for chosen in places)
    return rest, dataclasses.replace(part, split="validation")


def held_out(images: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """What a set without a test part is trained on, and what it is measured on: the same images wherever that runs.

    Args:
        images: of the training part, or of a set that is not divided.

    Returns:
        The rest (`split` train) and the part (`split` held-out, a fifth of every class).

    Raises:
        ValueError: too few images.
    """
    try:
        rest, part = split_off(images, HELD_SHARE)
    except ValueError:
        raise ValueError(
            f"`data` {images.name} has no test part and {len(images)} images, too few to hold some out: add images, "
            "or a folder `test/` beside `train/`."
        ) from None
    return dataclasses.replace(rest, split="train"), dataclasses.replace(part, split=HELD_OUT)


def open_parts(data: str, share: float, seed: int) -> tuple[LabelledImages, LabelledImages | None, LabelledImages]:
    """The parts of a set that a classifier is trained with: what it learns from, what chooses its best state, what it
    is measured on at the end.

    Where the set has no part for the end, a fifth of it is held out (`held_out`), and a warning says so.

    Args:
        data: as for `load_images`.
        share, seed: of the second part, as for `split_off`, where the set has none of its own; None with a share of 0.

    Raises:
        ValueError: as `load_images`; too few images; a single class.
    """
    train, test, validation = load_images(data, "train"), None, None
    check_classes(train)
    with suppress(NoSplit):
        test, validation = load_images(data, "test"), load_images(data, "validation")
    if test is None or test.split == WHOLE:
        train, test, validation = *held_out(train), None
        warnings.warn(
            f"{train.name} has no test part: {len(test)} of its images, drawn by seed, are held out to measure on "
            f"(`split` {HELD_OUT}), {len(train)} are trained on.",
            stacklevel=2,
        )
    elif validation.split == test.split:  # one stands in for the other
        validation = None
    if validation is None and share:
        train, validation = split_off(train, share, seed)
    return train, validation, test


def check_classes(images: LabelledImages) -> None:
    """Refuse images of a single class, from which no classifier can learn, and of which none can be wrong.

    Raises:
        ValueError: says which class it is, and what a folder should look like.
    """
    if len(images.class_names) == 1:
        raise ValueError(
            f"`data` {images.name} has a single class, {images.class_names[0]!r}: a folder of images holds one "
            "subfolder for each of two or more classes, directly or below `train/` and `test/`."
        )


def load_images(data: str, split: str = "test", labelled: bool = True) -> LabelledImages:
    """Finds the set that `data` names and opens one split of it.

    Args:
        data: one of
            `digits`: 1,437 training and 360 test images, a stratified split that never changes;
            a folder with one subfolder per class, images in it or deeper, either directly (then every split is the
            whole, and the result's `split` is `whole`) or below `train/` and `test/` or `holdout/`, `validation/`,
            `val/`, `valid/`, `dev/` or `eval/`; or a folder of parquet files;
            parquet files, comma-separated or as a glob, with columns `image` (or `img`) and `label` (or `labels`,
            `fine_label`); files that start with a split's name (`train-00000-of-00002.parquet`) belong to that
            split, and where none does, every split is the whole;
            anything else: the name of a dataset on the Hub.
        split: `train`, `test`, `validation`, or another split that the set has. `validation` stands in for `test`
            where there is no `test`, and the reverse. `held-out` is the fifth of the training part, or of a set that
            is not divided, that training without a test part leaves out.
        labelled: False: files and datasets need no column of labels, and every label is 0.

    Returns:
        The images, not yet decoded, with labels and class names.

    Raises:
        ValueError: `data` cannot be found or read, has no images, no labels or no such split.
        ImportError: an optional package is missing; the message says what to install.
    """
    if split == HELD_OUT:
        return held_out(load_images(data, "train", labelled))[1]
    if data == "digits":
        return _digits(split)
    path = Path(data).expanduser()
    files = parquet_files(data)
    if files:
        return _parquet(data, files, split, labelled)
    if os.path.isdir(path):
        return _image_folder(data, path, split)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data) or data.startswith("."):
        raise ValueError(f"{EXPECTED}; there is no file or folder {data!r} here.")
    return _from_hub(data, split, labelled)


def check_labels(images: LabelledImages, num_labels: int) -> None:
    """Checks that a classifier of `num_labels` classes can learn or predict every label.

    Raises:
        ValueError: a label is outside 0..num_labels-1; a single class.
    """
    check_classes(images)
    outside = sorted({label for label in images.labels if not 0 <= label < num_labels})
    if outside:
        raise ValueError(
            f"`num_labels` must cover the labels of {images.name} ({images.split}), got {num_labels}: label "
            f"{outside[-1]} is outside 0..{num_labels - 1}. Use a model with one output for each of the set's "
            f"{len(images.class_names)} classes."
        )


class EncodedImages(Sequence):
    """An image column of a `datasets.Dataset`, decoded one at a time, when indexed.

    Args:
        column: a dataset with the one column `name`, whose feature is `Image(decode=False)`.
        name: of that column.
    """

    def __init__(self, column: Any, name: str):
        self._column, self._name = column, name

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int) -> Any:
        from datasets import Image

        return Image().decode_example(self._column[index][self._name])

    def path(self, index: int) -> str | None:
        """Where the image came from, if the set says."""
        return (self._column[index][self._name] or {}).get("path")


@cache
def _all_digits() -> tuple[Any, Any, dict[str, list[int]]]:
    """(1797, 8, 8) uint8, their labels, and the places of each part; a command opens several parts of them."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = (digits.images * 255 / 16).round().astype("uint8")  # from 0..16
    train, test = train_test_split(range(len(grey)), test_size=360, stratify=digits.target, random_state=0)
    return grey, digits.target, {"train": train, "test": test}


def _digits(split: str) -> LabelledImages:
    require("sklearn.datasets", "scikit-learn")
    from PIL import Image

    grey, labels, parts = _all_digits()

    chosen = choose_split("digits", split, list(parts))
    return LabelledImages(
        images=[Image.fromarray(grey[place]).convert("RGB") for place in parts[chosen]],
        labels=[int(labels[place]) for place in parts[chosen]],
        class_names=[str(digit) for digit in range(10)],
        name="digits",
        split=chosen,
    )


def _image_folder(data: str, folder: Path, split: str) -> LabelledImages:
    """One subfolder per class; see `class_folders.py`."""
    extensions = set(require("PIL.Image", "Pillow").registered_extensions())
    parts = {part: class_files(path, extensions) for part, path in split_folders(folder).items()}
    parts = {part: classes for part, classes in parts.items() if classes}
    if not parts:
        if (folder / CONFIG_NAME).is_file():
            raise wrong_kind("data", data, "a folder of images", way="")
        raise ValueError(
            f"`data` must be a folder with one subfolder of images per class, directly or below `train/` and `test/`; "
            f"found no image in a subfolder of {data!r}. Put the images of each class into a subfolder with its name."
        )
    chosen = choose_split(data, split, list(parts))
    # Class indices count the classes of the whole set, where one split lacks some too.
    names = sorted({name for classes in parts.values() for name in classes})
    paths, labels = [], []
    for label, name in enumerate(names):
        files = parts[chosen].get(name, [])
        paths += files
        labels += [label] * len(files)
    return LabelledImages(ImageFiles(paths), labels, names, folder.resolve().name, chosen)


def parquet_files(data: str) -> list[str]:
    """The parquet files in a folder, or those that a comma-separated list of paths and globs names; none where `data`
    is a folder of something else, or the name of a set.

    Raises:
        ValueError: a part of the list is nobody's path, or other files than parquet.
    """
    path = Path(data).expanduser()
    if os.path.isdir(path):  # not path.is_dir(), which raises where a long list of files is no legal name
        return sorted(str(file) for file in path.glob("*.parquet"))
    if not (os.path.isfile(path) or data.endswith(".parquet") or any(character in data for character in ",*?[")):
        return []
    files: list[str] = []
    for part in (part.strip() for part in data.split(",")):
        path = str(Path(part).expanduser())
        found = [path] if Path(path).is_file() else sorted(glob.glob(path, recursive=True))
        if not found:
            raise ValueError(f"{EXPECTED}; got {data!r}, and no file matches {part!r}.")
        files += found
    strangers = [file for file in files if not file.endswith(".parquet")]
    if strangers:
        raise ValueError(f"{EXPECTED}; {strangers[0]!r} is not a parquet file. Name `*.parquet` files or a folder.")
    return files


def files_name(data: str, files: list[str]) -> str:
    """What a set of parquet files is called: the folder that was named, or else that of the first file."""
    folder = Path(data).expanduser()
    return (folder.resolve() if os.path.isdir(folder) else Path(files[0]).resolve().parent).name


def _parquet(data: str, files: list[str], split: str, labelled: bool) -> LabelledImages:
    datasets, parts = require("datasets"), split_files(data, files)
    chosen = choose_split(data, split, list(parts))
    try:
        dataset = datasets.load_dataset("parquet", data_files={chosen: parts[chosen]}, split=chosen)
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:  # damaged inside, damaged at the end
        raise ValueError(
            f"`data` must be readable parquet files; got {data!r}: {error.__cause__ or error} Write them again."
        ) from error
    return _from_dataset(data, dataset, files_name(data, files), chosen, labelled)


def _from_hub(data: str, split: str, labelled: bool) -> LabelledImages:
    datasets = require("datasets")
    check_set_within_reach(data, datasets)
    try:
        chosen = choose_split(data, split, datasets.get_dataset_split_names(data))
        dataset = datasets.load_dataset(data, split=chosen)
    except (OSError, RuntimeError) as error:  # not there, not reachable, or a script
        raise ValueError(f"{EXPECTED}; there is no file or folder {data!r} here, and the Hub says: {error}") from error
    return _from_dataset(data, dataset, data, chosen, labelled)


def check_set_within_reach(data: str, datasets: ModuleType) -> None:
    """Refuse the name of a dataset where the Hub cannot be asked, at once; see `found.check_within_reach`.

    Args:
        datasets: the library, which has a cache of its own.
    """
    why = out_of_reach(data, "dataset", Path(datasets.config.HF_DATASETS_CACHE) / data.replace("/", "___"))
    if why:
        raise ValueError(f"{EXPECTED}; there is no file or folder {data!r} here, and the Hub cannot be asked: {why}.")


class NoSplit(ValueError):
    """A set has no such split.

    Args:
        data, split: as for `load_images`.
        available: the splits that it has.
    """

    def __init__(self, data: str, split: str, available: list[str]):
        self.available = available
        super().__init__(
            f"`data` {data!r} has no {split!r} part, only {', '.join(available)}: give `split` {available[0]}, or "
            f"{HELD_OUT}, a fifth of the training images that is drawn by seed. Parts are folders, or files whose "
            f"names start with, one of {', '.join(SPLIT_ALIASES)}."
        )


def choose_split(data: str, split: str, available: list[str]) -> str:
    """The split to read: the one asked for, its stand-in, or the whole of a set that is not divided."""
    if available == [WHOLE]:
        return WHOLE
    asked = SPLIT_ALIASES.get(split, split)
    for candidate in (split, asked, STAND_INS.get(asked)):
        if candidate in available:
            return candidate
    raise NoSplit(data, split, available)


def _from_dataset(data: str, dataset: Any, name: str, split: str, labelled: bool) -> LabelledImages:
    """A `datasets.Dataset` as images: finds the column of images and, labelled, that of labels; decodes nothing."""
    from datasets import Image

    if len(dataset) == 0:
        raise ValueError(f"`data` must hold images; split {split!r} of {data!r} is empty.")
    image_column = _column(data, dataset, "image", IMAGE_COLUMNS)
    labels, names = _labels(data, dataset, split) if labelled else ([0] * len(dataset), UNLABELLED)
    encoded = dataset.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    return LabelledImages(EncodedImages(encoded, image_column), labels, list(names), name, split)


def _labels(data: str, dataset: Any, split: str) -> tuple[list[int], list[str]]:
    """The class index of every image, and the classes' names."""
    label_column = _column(data, dataset, "label", LABEL_COLUMNS)
    labels = dataset.select_columns([label_column]).with_format("arrow")[:][label_column].to_pylist()
    wrong = [label for label in labels if not isinstance(label, int) or label < 0]
    if wrong:
        raise ValueError(
            f"`data` must have integer labels from 0; {len(wrong)} of the {len(labels)} labels of {data!r} "
            f"({split}) are not, the first is {wrong[0]!r}. Choose a labelled split, or number text labels with "
            f"`dataset.class_encode_column({label_column!r})`."
        )
    names = getattr(dataset.features[label_column], "names", None) or [str(i) for i in range(max(labels) + 1)]
    return labels, names


def _column(data: str, dataset: Any, what: str, names: tuple[str, ...]) -> str:
    for name in names:
        if name in dataset.column_names:
            return name
    raise ValueError(
        f"`data` must have a column of {what}s called {' or '.join(names)}; {data!r} has "
        f"{', '.join(dataset.column_names)}. Rename the column."
    )
