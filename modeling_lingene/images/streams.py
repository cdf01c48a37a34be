"""Training images that are read as they come: sets that do not fit on the disk, or are not worth downloading first.

    source = open_stream("ILSVRC/imagenet-1k", processor, augmentation, epoch_images=1_281_167)

By `datasets`: each process reads its own shards (or, where they do not divide, its own images), shuffled in a buffer.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from ..extras import require
from ..found import is_path
from .augmentation import Augmentation
from .class_folders import split_files
from .data import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    EncodedImages,
    LabelledImages,
    check_set_within_reach,
    choose_split,
    files_name,
    parquet_files,
)
from .loaders import Layout, PictureImages, PictureMaker, collate, derived_seed


BUFFER = 10_000  # images among which the next one is drawn
HEAD = 100  # images among which one must decode


class StreamedImages(PictureImages):
    """Training images from a stream; what `MemoryImages` and `PictureImages` are, but for an index.

    A resumed epoch reads again, and drops, what was read before it stopped.

    Args:
        stream: a `datasets.IterableDataset`; its pictures not decoded.
        columns: of picture and label.
        first: one of its pictures with its label, and the class names, as labelled images.
        epoch_images: what counts as an epoch.
    """

    def __init__(
        self,
        stream: Any,
        columns: tuple[str, str],
        first: LabelledImages,
        epoch_images: int,
        processor: Any,
        augmentation: Augmentation,
        device: Any = "cpu",
        workers: int = 0,
    ):
        super().__init__(first, processor, augmentation, device, workers)
        self.stream, self.columns, self.epoch_images = stream, columns, epoch_images

    def __len__(self) -> int:
        return self.epoch_images

    def batches(self, seed: str, layout: Layout, first: int = 0) -> Iterator[list[dict[str, torch.Tensor]]]:
        """As `MemoryImages.batches`, without `index`."""
        parts = layout.accumulation
        pictures = _Stream(self, seed, layout)
        # One more worker than shards would have nothing to read.
        workers = min(self.workers, pictures.mine().num_shards)
        loader = DataLoader(
            pictures,
            batch_size=layout.batch_size,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )
        loaded = itertools.islice(loader, first * parts, None)
        for step in range(first, self.steps(layout)):
            made = []
            for number in range(parts):
                part = self._made(next(loaded), derived_seed(seed, "augment", step, layout.process, number), seed)
                del part["index"]  # here a seed, to erase by
                made.append(part)
            yield made

    def in_order(self, layout: Layout) -> Iterator[dict[str, torch.Tensor]]:
        raise ValueError("`cache_teacher` needs images that can be counted; leave `streaming` out.")


class _Stream(IterableDataset):
    """One process's pictures without end, shuffled anew in every pass, each varied from a seed of its own."""

    def __init__(self, source: StreamedImages, seed: str, layout: Layout):
        self.stream, self.columns, self.seed, self.layout = source.stream, source.columns, seed, layout
        self.num_labels = source.num_labels
        self.make = PictureMaker.of(source.processor, source.augmentation)

    def mine(self, number: int = 0) -> Any:
        """This process's part of a pass."""
        split = require("datasets.distributed", "datasets").split_dataset_by_node
        shuffled = self.stream.shuffle(seed=derived_seed(self.seed, "order", number), buffer_size=BUFFER)
        return split(shuffled, rank=self.layout.process, world_size=self.layout.processes)

    def __iter__(self) -> Iterator[tuple]:
        worker = torch.utils.data.get_worker_info()
        place = (self.layout.process, worker.id if worker else 0)
        seen = itertools.count()
        for number in itertools.count():
            empty = True
            for row in self.mine(number):  # of this worker: datasets divides the shards among them
                empty = False
                yield self._picture(row, next(seen), place)
            if empty:
                raise ValueError("`data` has fewer images than processes that read it.")

    def _picture(self, row: dict, index: int, place: tuple[int, int]) -> tuple:
        label = self.columns[1]
        if row[label] is None or not 0 <= row[label] < self.num_labels:
            raise ValueError(
                f"`data` must have labels from 0 to {self.num_labels - 1}; a picture of the stream has {row[label]}."
            )
        one = _labelled(row, self.columns, [], "", "")
        seed = derived_seed(self.seed, "picture", *place, index)
        pixels, problem = self.make(one, 0, seed)
        return pixels, row[label], seed, problem


def open_stream(
    data: str,
    processor_of: Any,
    augmentation: Augmentation,
    epoch_images: int = 0,
    device: Any = "cpu",
    workers: int = 0,
) -> StreamedImages:
    """The training split of a set on the Hub, or of parquet files, as a stream.

    Args:
        data: a name on the Hub, or parquet files as `load_images` takes them, of which those for training are read.
        processor_of: (one of its pictures, labelled) -> image processor.
        epoch_images: images of an epoch; 0 asks the set.

    Raises:
        ValueError: it cannot be found, lacks a column, class names or a length, or begins with pictures that do not
            decode.
    """
    datasets = require("datasets")
    files, name, split = parquet_files(data), Path(data).expanduser().name, "train"
    if files:
        parts, name = split_files(data, files), files_name(data, files)
        split = choose_split(data, split, list(parts))
    elif not (is_path(data) or os.path.exists(Path(data).expanduser())):
        check_set_within_reach(data, datasets)
    try:
        if files:
            stream = datasets.load_dataset("parquet", data_files={split: parts[split]}, split=split, streaming=True)
        else:
            stream = datasets.load_dataset(data, split="train", streaming=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"`data` {data} cannot be streamed: {str(error).splitlines()[0]}") from None
    columns = tuple(_column(stream, names) for names in (IMAGE_COLUMNS, LABEL_COLUMNS))
    names = getattr(stream.features[columns[1]], "names", None)
    if names is None:
        raise ValueError(f"`data` {data} has no class names in its label column, which a stream needs; load it whole.")
    known = (stream.info.splits or {}).get("train")
    count = epoch_images or getattr(known, "num_examples", 0) or 0
    if not count:
        raise ValueError(f"`epoch_images` is needed: {data} does not say how many images it has.")
    encoded = stream.select_columns(list(columns)).cast_column(columns[0], datasets.Image(decode=False))
    heads = (_labelled(row, columns, names, name, split) for row in itertools.islice(encoded, HEAD))
    first = next((one for one in heads if one.decoded(0)[0] is not None), None)
    if first is None:
        raise ValueError(f"`data` must be images that decode; none of the first {HEAD} of {data} does.")
    return StreamedImages(encoded, columns, first, count, processor_of(first), augmentation, device, workers)


def _labelled(row: dict, columns: tuple[str, str], names: list[str], name: str, split: str) -> LabelledImages:
    """One row, its picture not decoded; arguments as of `StreamedImages` and `LabelledImages`."""
    picture, label = columns
    return LabelledImages(EncodedImages([{picture: row[picture]}], picture), [row[label]], names, name, split)


def _column(stream: Any, names: tuple[str, ...]) -> str:
    for name in names:
        if name in stream.features:
            return name
    raise ValueError(f"`data` must have a column called {' or '.join(names)}; it has {', '.join(stream.features)}.")
