"""Bundles to go on from, short runs, and what they leave, read by others: what the tests of warm starts share."""

import dataclasses
import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTForImageClassification

import helpers
from modeling_lingene import LinGeneForImageClassification
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.loop import TrainingLoop


MEAN, STD, BICUBIC = [0.2, 0.4, 0.6], [0.3, 0.5, 0.7], 3
NOTHING = 1e-12  # a learning rate that moves no float32 weight of usual size
MATRIX = numpy.random.default_rng(0).normal(size=(6, 5)).tolist()
ROWS = {2: [1, 4], 3: [0, 3, 5]}  # not those that are evenly spaced
FITTED = dict(basis="learned", coefficient_matrix=MATRIX, depth_map="select", depth_rows=ROWS)


def pictures(split: str, labels: list[int] | None = None) -> LabelledImages:
    """Patches of colour, no square and not of the bundle's size, in the seven classes in turn: 28 and 14."""
    from PIL import Image

    generator, count = (
        numpy.random.default_rng(("train", "test", "validation").index(split)),
        28 if split == "train" else 14,
    )
    patches = generator.integers(0, 256, (count, 3, 4, 3), dtype=numpy.uint8)
    names = [f"class {index}" for index in range(7)]
    shown = [Image.fromarray(patch).resize((20, 12)) for patch in patches]
    return LabelledImages(shown, labels or [index % 7 for index in range(count)], names, "made", split)


def begun(
    folder: Path, model_class=LinGeneForImageClassification, dtype=torch.float32, word: str = "class", **fields
) -> Path:
    """A bundle with classes and preprocessing of its own."""
    labels = {index: f"{word} {index}" for index in range(fields.pop("num_labels", 7))}
    config = helpers.tiny_config(num_labels=len(labels), **fields)
    config.id2label, config.label2id = labels, {label: index for index, label in labels.items()}
    helpers.tiny_model(config, seed=2, model_class=model_class).to(dtype).save_pretrained(folder)
    processor = image_processor(config.image_size if isinstance(config.image_size, int) else tuple(config.image_size))
    processor.image_mean, processor.image_std, processor.resample = MEAN, STD, BICUBIC
    processor.save_pretrained(folder)
    return folder


def recipe(init: Path, schedule: str = "simultaneous", **changes) -> recipes.Recipe:
    """One epoch of three steps; keywords are the fields of any setting."""
    groups = {
        "training": recipes.TrainingSettings(epochs=1, batch_size=8, device="cpu", learning_rate=1e-2),
        "decomposition": DecompositionSettings(schedule),
        "model": recipes.ModelSettings(),
        "augmentation": recipes.Augmentation(),
    }
    for name, settings in groups.items():
        own = {field.name for field in dataclasses.fields(settings)} & changes.keys()
        groups[name] = dataclasses.replace(settings, **{field: changes.pop(field) for field in own})
    return recipes.Recipe(data="made", init=str(init), **groups, **changes)


def trained(out: Path, init: Path, schedule: str = "simultaneous", **changes) -> Path:
    """The bundle that a run gives."""
    recipes.decompose(recipe(init, schedule, **changes), out)
    return out / "bundle"


class Caught(Exception):
    """Carries the loop out of a run that was to begin."""


def loop_of(monkeypatch: pytest.MonkeyPatch, asked: recipes.Recipe, out: Path) -> TrainingLoop:
    """What a recipe would train, before the first step."""

    def fit(loop, _):
        raise Caught(loop)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "fit", fit)
        with pytest.raises(Caught) as caught:
            recipes.decompose(asked, out)
    return caught.value.args[0]


def stored(bundle: Path) -> dict[str, torch.Tensor]:
    """All tensors of a bundle's files."""
    return {key: tensor for file in bundle.glob("*.safetensors") for key, tensor in load_file(file).items()}


def stock(bundle: Path, **size) -> ViTForImageClassification:
    return AutoModelForImageClassification.from_pretrained(bundle, **size).eval()


@torch.no_grad()
def logits(bundle: Path, **size) -> torch.Tensor:
    """Of three images, by the stock model of a size."""
    model = stock(bundle, **size)
    side = model.config.image_size
    return model(helpers.images(3, *([side] if isinstance(side, int) else side))).logits


def history(out: Path) -> list[dict]:
    """A row per epoch, without what a clock says."""
    rows = json.loads((out / "history.json").read_text(encoding="utf-8"))["epochs"]
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]
