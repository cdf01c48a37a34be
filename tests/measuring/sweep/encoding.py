"""Photos, and by numpy what encoders make of them: what tests of sweeps without a classifier share."""

from pathlib import Path

import numpy
import pytest
import torch
from sweeping import as_pixels
from transformers import AutoModel

import helpers
from modeling_lingene.images.data import LabelledImages


GRID = {"depths": (6, 3), "components": (5, 2)}
ORDER = [(depth, width, count) for depth in (6, 3) for width in ("1", "1/2") for count in (5, 2)]


def photos(count: int, seed: int, split: str) -> LabelledImages:
    """Pictures of three classes, told by their brightness, but for noise."""
    made = helpers.pictures(count, seed=seed)
    labels = [index % 3 for index in range(count)]
    images = [one.point(lambda value, add=label: value // 3 + 25 * add) for one, label in zip(made.images, labels)]
    return LabelledImages(images, labels, ["dark", "grey", "light"], "photos", split)


TEST, TRAIN = photos(15, 1, "test"), photos(24, 2, "train")


def tokens(folder: Path, images: LabelledImages, *size) -> numpy.ndarray:
    """(n, t, d) of a size as users load it."""
    named = dict(zip(("depth", "width_ratio", "num_components"), size))
    model = AutoModel.from_pretrained(folder, allow_untrained=True, **named).eval()
    with torch.no_grad():
        return model(as_pixels(images.images)).last_hidden_state.double().numpy()


def unit(values: numpy.ndarray) -> numpy.ndarray:
    return values / numpy.linalg.norm(values, axis=-1, keepdims=True)


def cosines(found: numpy.ndarray, expected: numpy.ndarray) -> dict[str, float]:
    """What a narrow size lacks counts as zero."""
    both = (unit(found) * unit(expected)[..., : found.shape[-1]]).sum(-1)
    columns = {"cosine": both[:, 0], "patch_cosine": both[:, 1:].mean(1)}
    fields = {}
    for name, values in columns.items():
        fields |= {name: values.mean(), f"{name}_p5": numpy.percentile(values, 5)}
    return fields


def without(row: dict, metric: str) -> dict:
    """A row that was not measured by a metric."""
    errors = {name: error for name, error in row["standard_errors"].items() if name != metric}
    return {key: value for key, value in row.items() if key != metric} | {"standard_errors": errors}


def close(rows: list[dict]) -> list:
    """Rows to compare with: how floats add up depends on where in memory they lie, which the last digit may show."""
    return [
        {key: pytest.approx(value, abs=3e-6) if "cosine" in key else value for key, value in row.items()}
        for row in rows
    ]
