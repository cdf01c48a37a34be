"""The way of labelled images into tensors: the preprocessing beside a bundle, and batches decoded as they come.

Every picture is made upright and scaled by its own mode before a processor sees it (decoding.py).

    processor = image_processor(8)
    pixel_values, labels = to_tensors(test, processor)      # (360, 3, 8, 8), (360,)
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.utils import IMAGE_PROCESSOR_NAME

from ..extras import require
from .data import LabelledImages


UNREADABLE_LIMIT = 0.01


def size_field(said: dict) -> str:
    """Which of an image processor's fields says how large the pictures are that it makes."""
    return "crop_size" if said.get("do_center_crop") else "size"


def made_size(said: dict) -> tuple[int, int] | None:
    """(h, w) of the pictures that an image processor makes, by its fields; None where they do not say, or it leaves
    pictures as large as they are.
    """
    if not (said.get("do_resize", True) or said.get("do_center_crop")):
        return None
    size = said.get(size_field(said)) or {}
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return (size["height"], size["width"]) if size.get("height") else None


def normalisation(said: dict[str, Any], channels: int = 3) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, on pixels of 0..1, by an image processor's fields.

    Of one that does not normalise, or scales pixels otherwise, what does the same: (x - mean) / std.
    """
    scale = 255 * (said.get("rescale_factor") or 1 / 255) if said.get("do_rescale", True) else 255.0
    mean, std = (said["image_mean"], said["image_std"]) if said.get("do_normalize") else (0.0, 1.0)
    listed = ([one] * channels if isinstance(one, (int, float)) else one for one in (mean, std))
    return tuple([value / scale for value in one] for one in listed)


def first_height(images: LabelledImages) -> int:
    """Of the first picture that decodes, upright, pixels.

    Raises:
        ValueError: none does.
    """
    problem = ""
    for place in range(len(images)):
        picture, problem = images.decoded(place)
        if picture is not None:
            return picture.height
    raise ValueError(f"`data` must be images that decode; of the {len(images)} of {images.name} none does: {problem}.")


def check_patches(said: dict, patch: tuple[int, int], whose: str) -> None:
    """Refuse preprocessing whose pictures no patch fits into.

    Args:
        said: an image processor's fields.
        patch: (h, w), pixels.
        whose: the preprocessing, for the message, such as "`model` NAME: its preprocessing".

    Raises:
        ValueError: they are smaller than a patch.
    """
    size = made_size(said)
    if size is not None and (size[0] < patch[0] or size[1] < patch[1]):
        raise ValueError(
            f"{whose} makes images of {size[0]}x{size[1]}, smaller than a patch of {patch[0]}x{patch[1]}; set "
            f"`{size_field(said)}` in its {IMAGE_PROCESSOR_NAME} to at least that."
        )


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


def makes_grey(processor: Any) -> bool:
    """Whether a processor, bound to fewer steps by `partial` or not, is for one channel."""
    mean = getattr(getattr(processor, "func", processor), "image_mean", None)
    return isinstance(mean, (list, tuple)) and len(mean) == 1


def processed(processor: Any, pictures: list) -> torch.Tensor:
    """RGB pictures as (b, c, h, w), grey ones where the processor is for one channel.

    Raises:
        ValueError: the processor makes pictures of several shapes.
    """
    if makes_grey(processor):
        pictures = [picture.convert("L") for picture in pictures]
    try:
        return processor(pictures, return_tensors="pt")["pixel_values"]
    except (ValueError, RuntimeError) as error:  # in the processor's words, of whatever kind it is
        failed = error
    check_one_shape(processor([picture], return_tensors="pt")["pixel_values"] for picture in pictures)
    raise failed


def check_one_shape(parts: Iterable[torch.Tensor]) -> None:
    """Refuse pictures, (..., h, w), that are no batch because their shapes differ."""
    shapes = sorted({tuple(part.shape[-2:]) for part in parts})
    if len(shapes) > 1:
        told = " and ".join(f"{height}x{width}" for height, width in (shapes[0], shapes[-1]))
        raise ValueError(
            f"`data`: the preprocessing makes pictures of several shapes, such as {told}, which are no batch; set "
            f"`do_center_crop` to true and `crop_size` in the {IMAGE_PROCESSOR_NAME} beside the model."
        )


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
