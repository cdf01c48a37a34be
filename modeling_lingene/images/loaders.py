"""Training batches: the same images in the same order, varied in the same way, however often a run stops.

Everything random is a function of (seed, phase, epoch, step): nothing has to be stored to resume, and any number of
processes and accumulated parts sees the images of one optimiser step as one process with the whole batch would.

Two sources with one face: `MemoryImages` decodes once and augments on the device; `PictureImages` decodes and augments
in worker processes, for sets that do not fit, and for augmentation that needs one picture at a time.
"""

import functools
import random
import warnings
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset

from .augmentation import Augmentation, eraser, mixer, picture_transform
from .batches import UNREADABLE_LIMIT, makes_grey, processed, to_tensors
from .data import LabelledImages


MEMORY_BYTES = 1 << 32  # of decoded pixels, one byte each


def derived_seed(*keys: int | str) -> int:
    """A 32-bit seed of its own for every use, the same on every machine."""
    return random.Random(" ".join(map(str, keys))).getrandbits(32)


@dataclass(frozen=True)
class Layout:
    """Who computes which part of an optimiser step.

    Args:
        batch_size: images of one forward pass of one process.
        accumulation: forward passes of one process per step.
        processes: of the run.
        process: this one, from 0.
    """

    batch_size: int
    accumulation: int = 1
    processes: int = 1
    process: int = 0

    @property
    def images(self) -> int:
        """Of one optimiser step, all processes together."""
        return self.batch_size * self.accumulation * self.processes

    def steps(self, count: int) -> int:
        """Optimiser steps of an epoch of so many images; those that do not fill one wait for another epoch's order.

        Raises:
            ValueError: one step needs more images than there are.
        """
        if self.images > count:
            raise ValueError(
                f"`batch_size` {self.batch_size} makes {self.images} images a step, and there are {count} to train "
                "on; use a smaller one."
            )
        return count // self.images

    def parts(self) -> list[slice]:
        """This process's shares of a step's images, one per forward pass."""
        starts = [(part * self.processes + self.process) * self.batch_size for part in range(self.accumulation)]
        return [slice(start, start + self.batch_size) for start in starts]


class _Source:
    """What both sources share: order, seeds, and what happens to a batch on the device.

    Args:
        images: n labelled images; `num_labels` classes.
        processor: a transformers image processor: size, mean and standard deviation.
        augmentation: which parts are on.
        device: where batches go.
    """

    def __init__(self, images: LabelledImages, processor: Any, augmentation: Augmentation, device: Any = "cpu"):
        self.images, self.processor, self.augmentation = images, processor, augmentation
        self.num_labels, self.device = len(images.class_names), torch.device(device)
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1)
            for values in (processor.image_mean, processor.image_std)
        )
        self._mix, self._erase = mixer(augmentation, self.num_labels), eraser(augmentation, self.device)

    def __len__(self) -> int:
        return len(self.images)

    def order(self, seed: str) -> torch.Tensor:
        """The permutation of one epoch."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(derived_seed(seed, "order")))

    def steps(self, layout: Layout) -> int:
        """Optimiser steps of an epoch; errors as for `Layout.steps`."""
        return layout.steps(len(self))

    def _finish(self, pixels: torch.Tensor, labels: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        """uint8 (b, c, h, w) on the device -> augmented, normalised, mixed."""
        pixels = self.augmentation.on_batch(pixels, torch.Generator().manual_seed(seed))
        values = (pixels.float() / 255 - self.mean) / self.std
        if self._erase:
            set_seed(derived_seed(seed, "erase"))
            values = self._erase(values)
        return self._mixed(values, labels, seed)

    def _mixed(self, values: torch.Tensor, labels: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        if self._mix:
            set_seed(derived_seed(seed, "mix"))
            values, labels = self._mix(values, labels)
        return {"pixel_values": values, "labels": labels}


class MemoryImages(_Source):
    """Decoded once, kept as bytes on the device, augmented there: small images, at the speed of the device.

    A step's whole batch is made on every process, which takes its parts: with mixing too, the number of processes does
    not change what is learned.
    """

    def __init__(self, images: LabelledImages, processor: Any, augmentation: Augmentation, device: Any = "cpu"):
        super().__init__(images, processor, augmentation, device)
        if augmentation.one_by_one:
            raise ValueError("`resized_crop`, `rand_augment` and `color_jitter` need pictures, not tensors in memory.")
        resize = functools.partial(processor, do_rescale=False, do_normalize=False)
        pixels, labels = to_tensors(images, resize)
        self.pixels, self.labels = pixels.to(torch.uint8).to(self.device), labels.to(self.device)

    def __len__(self) -> int:
        return len(self.labels)  # without what did not decode

    def batches(self, seed: str, layout: Layout, first: int = 0) -> Iterator[list[dict[str, torch.Tensor]]]:
        """The steps of one epoch from number `first` on: per step the parts of this process.

        Args:
            seed: of run, phase and epoch.

        Returns:
            Dicts with pixel_values (b, c, h, w), labels (b,) or, mixed, (b, c), and index (b,) of the images.
        """
        order = self.order(seed)
        for step in range(first, self.steps(layout)):
            index = order[step * layout.images : (step + 1) * layout.images].to(self.device)
            whole = self._finish(self.pixels[index], self.labels[index], derived_seed(seed, "augment", step))
            whole["index"] = index
            yield [{key: value[part] for key, value in whole.items()} for part in layout.parts()]

    def in_order(self, layout: Layout, without: Container[int] = ()) -> Iterator[dict[str, torch.Tensor]]:
        """Every image of this process's share once, as it is: for evaluation, and for a teacher's logits.

        Args:
            without: places of images that are left out.
        """
        mine = [index for index in range(layout.process, len(self), layout.processes) if index not in without]
        for index in torch.tensor(mine, device=self.device).split(layout.batch_size) if mine else ():
            values = (self.pixels[index].float() / 255 - self.mean) / self.std
            yield {"pixel_values": values, "labels": self.labels[index], "index": index}


class PictureImages(_Source):
    """Decoded and augmented in worker processes, picture by picture, each from a seed of its own.

    Mixing takes its partners from the same part of a step: with it, the number of processes changes which images meet.

    Args:
        workers: processes that decode; 0 decodes in this one.
    """

    def __init__(
        self,
        images: LabelledImages,
        processor: Any,
        augmentation: Augmentation,
        device: Any = "cpu",
        workers: int = 0,
    ):
        super().__init__(images, processor, augmentation, device)
        self.workers, self._unreadable = workers, {}
        self._varied = _Pictures(images, PictureMaker.of(processor, augmentation))
        self._plain = _Pictures(images, PictureMaker.of(processor, Augmentation()))

    def batches(self, seed: str, layout: Layout, first: int = 0) -> Iterator[list[dict[str, torch.Tensor]]]:
        """As `MemoryImages.batches`; a resumed epoch decodes nothing that was seen before."""
        order, steps, parts = self.order(seed).tolist(), range(first, self.steps(layout)), layout.parts()
        wholes = (order[step * layout.images : (step + 1) * layout.images] for step in steps)
        shares = (whole[part] for whole in wholes for part in parts)
        picks = ([(index, derived_seed(seed, "picture", index)) for index in share] for share in shares)
        loaded = iter(self._load(self._varied, picks))
        for step in steps:
            seeds = [derived_seed(seed, "augment", step, layout.process, number) for number in range(len(parts))]
            yield [self._made(next(loaded), part_seed, seed) for part_seed in seeds]

    def _made(self, loaded: tuple, seed: int, epoch_seed: str) -> dict[str, torch.Tensor]:
        """What is left to do on the device: erasing, picture by picture, and mixing."""
        pixels, labels, index = self._readable(loaded)
        if len(index) == 0:
            raise ValueError("`batch_size` must be larger: no image of a batch decodes.")
        values = (pixels.float() / 255 - self.mean) / self.std
        if self._erase:
            for value, number in zip(values, index.tolist()):
                set_seed(derived_seed(epoch_seed, "erase", number))
                self._erase(value)
        return {**self._mixed(values, labels, seed), "index": index}

    def in_order(self, layout: Layout, without: Container[int] = ()) -> Iterator[dict[str, torch.Tensor]]:
        """As `MemoryImages.in_order`."""
        mine = [index for index in range(layout.process, len(self), layout.processes) if index not in without]
        starts = range(0, len(mine), layout.batch_size)
        picks = ([(index, 0) for index in mine[start : start + layout.batch_size]] for start in starts)
        for loaded in self._load(self._plain, picks):
            pixels, labels, index = self._readable(loaded)
            if len(index) == 0:
                continue
            yield {"pixel_values": (pixels.float() / 255 - self.mean) / self.std, "labels": labels, "index": index}

    def _load(self, pictures: Dataset, picks: Iterable[list[tuple[int, int]]]) -> DataLoader:
        return DataLoader(
            pictures,
            batch_sampler=picks,
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # the loader's own draw must not touch the global state
        )

    def _readable(self, loaded: tuple) -> list[torch.Tensor]:
        """Pixels, labels and indices on the device; what did not decode is counted, and refused above a share."""
        *tensors, unreadable = loaded
        known = len(self._unreadable)
        self._unreadable |= unreadable
        shown = ", ".join(list(self._unreadable.values())[:5])
        said = f"{len(self._unreadable)} of the {len(self)} images of {self.images.name} do not decode: {shown}."
        if len(self._unreadable) > UNREADABLE_LIMIT * len(self):
            raise ValueError(f"`data` must be images that decode, all but {UNREADABLE_LIMIT:.0%}; {said}")
        if known == 0 and unreadable:
            warnings.warn(f"{said} They are left out.", stacklevel=2)
        return [tensor.to(self.device, non_blocking=True) for tensor in tensors]


@dataclass(frozen=True)
class PictureMaker:
    """One picture as (c, h, w) uint8, varied from a seed of its own: whoever decodes it, it comes out the same."""

    resize: Callable
    vary: Callable | None
    augmentation: Augmentation

    @classmethod
    def of(cls, processor: Any, augmentation: Augmentation) -> "PictureMaker":
        resize = functools.partial(processor, do_rescale=False, do_normalize=False)
        size, grey = (processor.size["height"], processor.size["width"]), makes_grey(processor)
        vary = picture_transform(augmentation, size, grey) if augmentation.one_by_one else None
        return cls(resize, vary, augmentation)

    def __call__(self, images: LabelledImages, index: int, seed: int) -> tuple[torch.Tensor | None, str]:
        """The picture at `index` and "", or None and why it does not decode."""
        picture, problem = images.decoded(index)
        if picture is None:
            return None, problem
        if self.vary is None:
            pixels = processed(self.resize, [picture])[0].to(torch.uint8)
        else:
            set_seed(seed)
            pixels = self.vary(picture)
        return self.augmentation.on_batch(pixels[None], torch.Generator().manual_seed(derived_seed(seed)))[0], ""


class _Pictures(Dataset):
    """(index, seed) -> picture, label, index, and why where it does not decode."""

    def __init__(self, images: LabelledImages, make: PictureMaker):
        self.images, self.make = images, make

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, pick: tuple[int, int]) -> tuple[torch.Tensor | None, int, int, str]:
        pixels, problem = self.make(self.images, *pick)
        return pixels, self.images.labels[pick[0]], pick[0], problem


def collate(items: list[tuple]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[int, str]]:
    good = [item for item in items if item[0] is not None]
    pixels = torch.stack([pixels for pixels, *_ in good]) if good else torch.empty(0)
    labels, index = (torch.tensor([item[place] for item in good], dtype=torch.int64) for place in (1, 2))
    return pixels, labels, index, {item[2]: item[3] for item in items if item[0] is None}


def training_images(
    images: LabelledImages, processor: Any, augmentation: Augmentation, device: Any = "cpu", workers: int = 0
) -> MemoryImages | PictureImages:
    """The source that is fast for this set: in memory where it fits and nothing needs single pictures."""
    needed = len(images) * 3 * processor.size["height"] * processor.size["width"]
    if augmentation.one_by_one or needed > MEMORY_BYTES:
        return PictureImages(images, processor, augmentation, device, workers)
    return MemoryImages(images, processor, augmentation, device)
