"""Labelled images from wherever they lie, and their way into tensors.

One string, `data`, names a set everywhere in this package (`--data` on the command line): `digits` (the 1,797
handwritten digits inside scikit-learn, no download), a folder of images, parquet files, or a dataset on the Hub.
Nothing is decoded before it is asked for.

    test = load_images("digits", "test")
    processor = image_processor(8)
    pixel_values, labels = to_tensors(test, processor)      # (360, 3, 8, 8), (360,)
"""

import dataclasses
import glob
import importlib
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers.utils import CONFIG_NAME

from ..found import out_of_reach, wrong_kind
from .class_folders import SPLIT_ALIASES, WHOLE, ImageFiles, class_files, split_folders
from .decoding import upright_rgb


IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
HELD_OUT, HELD_SHARE = "held-out", 0.2  # a part of a set that has none to measure on, drawn by seed; of its images
STAND_INS = {"test": "validation", "validation": "test"}
UNREADABLE_LIMIT = 0.01
UNLABELLED = ["image"]  # the class of every picture without a label
EXTRAS = dict.fromkeys(("matplotlib", "pytorch_grad_cam"), "analysis")
EXTRAS |= dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export")
EXTRAS |= {name: name for name in ("executorch", "openvino")}
EXTRAS |= {"gradio": "app"}
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
    if os.path.isdir(path):  # not path.is_dir(), which raises where a long list of files is no legal name
        files = sorted(str(file) for file in path.glob("*.parquet"))
        if files:
            return _parquet(data, files, path.resolve().name, split, labelled)
        return _image_folder(data, path, split)
    if os.path.isfile(path) or data.endswith(".parquet") or any(character in data for character in ",*?["):
        files = _parquet_files(data)
        return _parquet(data, files, Path(files[0]).resolve().parent.name, split, labelled)
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


def made_size(said: dict) -> tuple[int, int] | None:
    """(h, w) of the pictures that an image processor makes, by its fields; None where they do not say."""
    size = (said.get("crop_size") if said.get("do_center_crop") else said.get("size")) or {}
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return (size["height"], size["width"]) if size.get("height") else None


def image_processor(image_size: int | tuple[int, int], num_channels: int = 3) -> Any:
    """The preprocessing that is saved beside a bundle: RGB, resize to (h, w), rescale to 0..1, then (x - 0.5) / 0.5.

    The PIL variant is asked for by name, so that a number measured here does not depend on whether torchvision is
    installed. It is saved under the neutral type `ViTImageProcessor`: `AutoImageProcessor` and
    `pipeline("image-classification")` load it with torchvision where there is one (pixels then differ by at most one
    grey level after resizing) and with PIL where there is none.

    Args:
        image_size: pixels, h = w; or (h, w).
        num_channels: 3, or 1: grey pictures, which `processed` makes. transformers' pipelines make RGB of every
            picture, so that none of its processors can give them one channel.

    Raises:
        ValueError: a size that is no positive integer.
    """
    require("PIL", "Pillow")
    from transformers import ViTImageProcessorPil

    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise ValueError(f"`image_size` must be a positive number of pixels or (height, width); got {image_size}.")
    half = [0.5] * num_channels
    return ViTImageProcessorPil(
        size={"height": height, "width": width}, image_mean=half, image_std=half, do_convert_rgb=num_channels == 3
    )


def processed(processor: Any, pictures: list) -> torch.Tensor:
    """RGB pictures as (b, c, h, w), grey ones where the processor is for one channel."""
    mean = getattr(processor, "image_mean", None)  # of one that is bound to fewer steps, none
    if isinstance(mean, (list, tuple)) and len(mean) == 1:
        pictures = [picture.convert("L") for picture in pictures]
    return processor(pictures, return_tensors="pt")["pixel_values"]


def to_tensors(images: LabelledImages, processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Decodes and preprocesses a whole set once, for sets that fit in memory (12 * h * w bytes per image).

    Args:
        images: n images.
        processor: a transformers image processor, such as `image_processor` gives.

    Returns:
        pixel_values (n, 3, h, w), float32 or what the processor gives, and labels (n,) int64; without the images that
        do not decode.

    Raises:
        ValueError: more than 1 % of the images do not decode.
    """
    labels = torch.empty(len(images), dtype=torch.int64)
    pixel_values, done = torch.empty(0), 0
    for batch in batches(images, processor, batch_size=256):
        if done == 0:  # one allocation: collecting chunks and joining them would need the memory twice
            first = batch["pixel_values"]
            pixel_values = torch.empty(len(images), *first.shape[1:], dtype=first.dtype)
        end = done + len(batch["labels"])
        pixel_values[done:end], labels[done:end] = batch["pixel_values"], batch["labels"]
        done = end
    return pixel_values[:done], labels[:done]


def batches(images: LabelledImages, processor: Any, batch_size: int) -> "Batches":
    """The set in order, decoded and preprocessed batch by batch, for sets that do not fit in memory.

    Args:
        images: n images.
        processor: a transformers image processor, such as `image_processor` gives.
        batch_size: images per batch; the last one may be smaller.

    Returns:
        An iterable that can be run through again and has a length; gives dicts with
        pixel_values (b, 3, h, w) float32 and labels (b,) int64.

    Raises:
        ValueError: `batch_size` below 1; while iterating: more than 1 % of the images do not decode.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")
    return Batches(images, processor, batch_size)


@dataclass
class Batches:
    """What `batches` returns. Images that do not decode are left out, counted and named, in one warning."""

    images: LabelledImages
    processor: Any
    batch_size: int
    unreadable: dict[int, str] = field(default_factory=dict)
    warned: bool = False

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self.some(range(len(self.images)))

    def some(self, places: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of the images at these places alone; what does not decode is counted against all."""
        for start in range(0, len(places), self.batch_size):
            pictures, labels = [], []
            for index in places[start : start + self.batch_size]:
                picture = self._decode(index)
                if picture is not None:
                    pictures.append(picture)
                    labels.append(self.images.labels[index])
            if pictures:
                pixel_values = processed(self.processor, pictures)
                yield {"pixel_values": pixel_values, "labels": torch.tensor(labels)}
        if self.unreadable and not self.warned:
            self.warned = True
            warnings.warn(f"{self._describe()} They are left out.", stacklevel=2)

    def _decode(self, index: int) -> Any:
        """The RGB image at `index`, or None after noting why not."""
        picture, problem = self.images.decoded(index)
        if picture is None:
            self.unreadable[index] = problem
            if len(self.unreadable) > UNREADABLE_LIMIT * len(self.images):
                raise ValueError(
                    f"`data` must be images that decode, all but {UNREADABLE_LIMIT:.0%} of them; "
                    f"{self._describe()} Remove or repair the files."
                )
        return picture

    def _describe(self) -> str:
        problems = list(self.unreadable.values())
        shown = ", ".join(problems[:5]) + (", ..." if len(problems) > 5 else "")
        of = f"{len(self.images)} images of {self.images.name} ({self.images.split})"
        return f"{len(problems)} of the {of} do not decode: {shown}."


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


def require(module: str, package: str | None = None) -> Any:
    """Imports an optional package, or says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = EXTRAS.get(module.partition(".")[0], "train")
        raise ImportError(f'{package or module} is needed here: pip install "modeling_lingene[{extra}]"') from error


def _digits(split: str) -> LabelledImages:
    sklearn_datasets = require("sklearn.datasets", "scikit-learn")
    from PIL import Image
    from sklearn.model_selection import train_test_split

    chosen = choose_split("digits", split, ["train", "test"])
    digits = sklearn_datasets.load_digits()
    grey = (digits.images * 255 / 16).round().astype("uint8")  # (1797, 8, 8), from 0..16
    parts = train_test_split(range(len(grey)), test_size=360, stratify=digits.target, random_state=0)
    rows = parts[["train", "test"].index(chosen)]
    return LabelledImages(
        images=[Image.fromarray(grey[row]).convert("RGB") for row in rows],
        labels=[int(digits.target[row]) for row in rows],
        class_names=[str(name) for name in digits.target_names],
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


def _parquet_files(data: str) -> list[str]:
    """The files that a comma-separated list of paths and globs names."""
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


def _parquet(data: str, files: list[str], name: str, split: str, labelled: bool) -> LabelledImages:
    datasets = require("datasets")
    parts: dict[str, list[str]] = {}
    for file in files:
        match = re.match(rf"({'|'.join(SPLIT_ALIASES)})[-_.]", Path(file).name)
        parts.setdefault(SPLIT_ALIASES[match[1]] if match else WHOLE, []).append(file)
    if WHOLE in parts and len(parts) > 1:
        raise ValueError(
            f"`data` must be files that all start with a split's name (train-, test-, validation-) or none that does; "
            f"in {data!r} {Path(parts[WHOLE][0]).name} does not and others do. Rename it or leave it out."
        )
    chosen = choose_split(data, split, list(parts))
    try:
        dataset = datasets.load_dataset("parquet", data_files={chosen: parts[chosen]}, split=chosen)
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:  # damaged inside, damaged at the end
        raise ValueError(
            f"`data` must be readable parquet files; got {data!r}: {error.__cause__ or error} Write them again."
        ) from error
    return _from_dataset(data, dataset, name, chosen, labelled)


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
