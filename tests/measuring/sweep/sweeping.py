"""Plain functions behind the tests of sweeps, profiles and budgets."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy
import torch
from transformers import AutoModelForImageClassification, ViTForImageClassification

import helpers
from helpers import assert_table_shows, read, table
from modeling_lingene import folders
from modeling_lingene.budget_lingene import device_name
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.measuring import metrics, sweep


STORED = {"depth": None, "num_components": None, "reference_depth": 6, "reference_components": 5}

GRID = {"depths": (2, 3, 6), "widths": ("1/2",), "components": (5,)}

ORDER = [(6, "1/2", 5), (3, "1/2", 5), (2, "1/2", 5)]  # largest first

PIXEL_BYTES = 4 * 3 * 16 * 16  # of one decoded image

PROGRESS = "sweep.json"

HERE, OTHER, GPU = device_name(), "Another processor (8 threads)", "A fast GPU"


def made_up_time(model, pixel_values=None, min_run_time=0.5, threads=None, batch_size=1, image_size=None) -> dict:
    """In place of a measured latency: it follows from the shape and dtype of the model alone."""
    weight = next(model.parameters())
    median = sum(p.numel() for p in model.parameters()) * weight.element_size() / 3e5 * (1 + (batch_size - 1) / 3)
    return {"median": median, "iqr": median / 7, "batch_size": batch_size, "threads": threads}


RUN = {"timed": "2026-01-02 03:04:05 UTC", "timed_with": "torch, float32, load 0.1 of 2 cores"}


def made_up_run(dtype: str = "float32") -> dict[str, str]:
    """In place of the moment at which latencies are measured."""
    return RUN


def made_up_timing(model) -> dict:
    """What a row has to say of the latency of a model."""
    found = made_up_time(model)
    return {"latency_ms": round(found["median"], 4), "iqr_ms": round(found["iqr"], 4), "device": HERE, **RUN}


def counted(right: float, images: int) -> dict:
    """What a row has to say of so many right answers out of so many."""
    right = round(right * images) / images
    error = round(math.sqrt(right * (1 - right) / images), 6)
    return {"images": images, "standard_errors": {"accuracy": error}}


@functools.cache
def counted_macs(depth: int, width: int, pixels: int) -> int:
    """Of the shapes of these tests, once each."""
    config = helpers.tiny_config(num_labels=7 if pixels == 16 else 10, image_size=pixels)
    return metrics.count_macs(config.stock_config(config.size(depth, Fraction(width, 48))))


@functools.cache
def pictures(count: int, seed: int = 0) -> LabelledImages:
    """Noise; two thirds of the labels are what the full size, recomposed by numpy, says, so that sizes differ."""
    made = helpers.pictures(count, seed=seed)
    with torch.no_grad():
        said = helpers.reference_vit(helpers.tiny_model(), 6)(as_pixels(made.images)).logits.argmax(-1).tolist()
    labels = [label if index % 3 == 0 else said[index] for index, label in enumerate(made.labels)]
    return dataclasses.replace(made, labels=labels)


def as_pixels(images: Sequence) -> torch.Tensor:
    """(n, 3, h, w) in -1..1, by numpy."""
    pixels = numpy.stack([numpy.asarray(image, dtype=numpy.float32) for image in images])
    return torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2)


class Watched(Sequence):
    """Images that count how often each is decoded; those at `broken` do not decode."""

    def __init__(self, images: Sequence, broken: Sequence[int] = ()):
        self.images, self.broken, self.decoded = images, broken, Counter()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        self.decoded[index] += 1
        if index in self.broken:
            raise OSError("cannot identify image file")
        return self.images[index]


def watched(count: int, broken: Sequence[int] = ()) -> LabelledImages:
    images = pictures(count)
    return dataclasses.replace(images, images=Watched(images.images, broken))


def share_right(folder: Path, images: LabelledImages, *size, leave: Sequence[int] = ()) -> float:
    """Accuracy of one size, by a loop over the images."""
    with torch.no_grad():
        logits = load(folder, *size)(as_pixels(images.images)).logits.tolist()
    right = total = 0
    for index, (values, label) in enumerate(zip(logits, images.labels)):
        if index not in leave:
            right, total = right + (values.index(max(values)) == label), total + 1
    return round(right / total, 6)


def load(folder: Path, depth: int, width_ratio: str, num_components: int, **keywords) -> ViTForImageClassification:
    asked = {"depth": depth, "width_ratio": width_ratio, "num_components": num_components, "allow_untrained": True}
    return AutoModelForImageClassification.from_pretrained(folder, **asked, **keywords).eval()


def size_of(row: dict) -> tuple:
    return row["depth"], row["width_ratio"], row["num_components"]


def weights_id(folder: Path) -> str:
    return read(folder / "config.json")["weights_id"]


def messages(caplog, fragment: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if fragment in record.getMessage()]


def forget(work: SimpleNamespace) -> None:
    work.loads, work.passes, work.stop_at = [], 0, None


def once(count: int) -> dict[int, int]:
    """Every image decoded once for the whole sweep, and four of them once more to tell the set from another one."""
    return {index: 1 + (index in (0, count // 3, count // 2, count - 1)) for index in range(count)}


OLD = [
    {
        "depth": 1,
        "width_ratio": "1",
        "num_components": 5,
        "params": 9,
        "stored_params": 9,
        "macs": 9,
        "accuracy": 0.5,
        "split": "train",
        "dataset": "made",
    }
]

NAME = "depth 6, width ratio 1/2, 5 components"


def swept(folder: Path, caplog, old: list[dict]) -> tuple[list[dict], list[dict]]:
    """The rows of a sweep of three sizes, and those in the file, where `old` stood in it before."""
    folders.write_sizes(folder, old)
    caplog.clear()
    rows = sweep.sweep(folder, pictures(12), latency=False, **GRID)
    return rows, read(folder / "sizes.json")["sizes"]


PROFILES = [{"device": GPU, "latency_ms": 1.5, "iqr_ms": 0.1, "images_per_second": 9.0, "batch_size": 64}]


def assert_shown(rows: list[dict], text: str) -> None:
    """Every row in the table of a text, the most accurate first; of equals the one of fewest MACs, then parameters."""
    rows = sorted(rows, key=lambda row: (-row["accuracy"], row["macs"], row["stored_params"]))
    assert_table_shows(rows, [{"latency": "-"} | line for line in table(text)])


MEASURED = [
    OLD[0] | {"depth": depth, "width_ratio": width, "num_components": count, "accuracy": accuracy}
    for depth, width, count, accuracy in [(6, "1", 5, 0.9), (6, "1", 2, 0.8), (3, "1/2", 5, 0.5)]
]

# Per device, the milliseconds of each size: (depth, width ratio, components), the most accurate first.
TIMES = {
    HERE: {(6, "1", 5): 9.0, (6, "1/2", 5): 7.0, (3, "1", 5): 4.0, (3, "1/2", 5): 3.0},
    OTHER: {(6, "1/2", 5): 1.0, (3, "1", 5): 0.5, (2, "1", 5): 0.1},
    GPU: {(6, "1", 5): 0.9, (3, "1", 5): 2.0},
}

SIZES = [(6, "1", 5), (6, "1/2", 5), (3, "1", 5), (3, "1/2", 5), (2, "1", 5), (1, "1", 5)]

OWN = {(6, "1", 5): HERE, (6, "1/2", 5): OTHER, (3, "1/2", 5): HERE, (2, "1", 5): OTHER}  # measured with the row


def timed_rows(devices: Sequence[str] = tuple(TIMES)) -> list[dict]:
    """Every size, the least accurate first; its latencies on these devices, one of its own and the rest profiles."""
    rows = []
    for place, size in enumerate(SIZES):
        depth, width, count = size
        row = OLD[0] | {"depth": depth, "width_ratio": width, "num_components": count, "accuracy": 0.9 - place / 10}
        times = {device: TIMES[device][size] for device in devices if size in TIMES[device]}
        if OWN.get(size) in times:
            row |= {"latency_ms": times.pop(OWN[size]), "device": OWN[size]}
        if times:
            row["profiles"] = [PROFILES[0] | {"device": device, "latency_ms": ms} for device, ms in times.items()]
        rows.append(row)
    return rows[::-1]


def options(asked: dict) -> list[str]:
    """Keywords as they are written on the command line."""
    words = []
    for name, value in asked.items():
        if value is not False:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", *([text] if value is not True else [])]
    return words
