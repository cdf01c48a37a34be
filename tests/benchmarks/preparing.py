"""What a table's rows stand on: the parts of a set of images, the teacher, networks trained alone, their accuracy."""

import dataclasses
from pathlib import Path

import torch
from scales import Scale
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from modeling_lingene.extras import require
from modeling_lingene.folders import write_json
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages, load_images, split_off
from modeling_lingene.images.loaders import Layout, training_images
from modeling_lingene.progress import quiet_loading
from modeling_lingene.training.loop import Phase, TrainingLoop
from modeling_lingene.training.processes import make_accelerator
from modeling_lingene.training.recipes import Recipe
from modeling_lingene.training.teachers import load_teacher


def write_parts(data: str, scale: Scale, folder: Path) -> None:
    """The parts of the protocol as a set of their own."""
    train, test = load_images(data, "train"), load_images(data, "test")
    rest, validation = split_off(train, scale.images[1] / len(train), seed=0)
    if scale.images[0] < len(rest):
        _, rest = split_off(rest, scale.images[0] / len(rest), seed=1)
    write_set({"train": rest, "validation": validation, "test": test}, folder)


def write_set(parts: dict[str, LabelledImages], folder: Path) -> None:
    """Parts as a set of parquet files, by name: encoded pictures, as they are; and how many of each."""
    datasets, train = require("datasets"), parts["train"]
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(name) for name in train.class_names])}
    )
    for part, images in parts.items():
        rows = {"image": [images.images[index] for index in range(len(images))], "label": images.labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{part}-0.parquet"))
    write_json(folder / "parts.json", {part: len(images) for part, images in parts.items()} | {"set": train.name})


def fit_plain(model, recipe: Recipe, out: Path, identity: dict, image_size: int) -> list[dict]:
    """One network in the same loop, saved with its preprocessing; the history."""
    images, processor = load_images(recipe.data, "train"), image_processor(image_size)
    accelerator = make_accelerator(recipe.training)
    source = training_images(images, processor, recipe.augmentation, accelerator.device)

    def forward(model, batch, generator):
        return recipe.objective.of_batch(model(batch["pixel_values"]).logits, batch)

    taught = load_teacher(recipe.teacher, source) if recipe.teacher else None
    loop = TrainingLoop(
        model, source, recipe.training, out, identity=identity, teacher=taught, accelerator=accelerator
    )
    history = loop.fit([Phase(out.name, lambda name: True, forward)])
    model.save_pretrained(out / "model")
    processor.save_pretrained(out / "model")
    return history


def accuracy_of(folder: Path, images, batch: int = 500, **size) -> float:
    with quiet_loading():
        model = AutoModelForImageClassification.from_pretrained(folder, **size).to(images.device).eval()
    right = 0
    with torch.no_grad():
        for part in images.in_order(Layout(batch)):
            right += int((model(part["pixel_values"]).logits.argmax(-1) == part["labels"]).sum())
    return right / len(images)


def make_teacher(data: str, scale: Scale, folder: Path) -> None:
    """A small residual network, trained on the labels alone."""
    if (folder / "results.json").is_file():
        return
    torch.manual_seed(0)
    names = load_images(data, "train").class_names
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    model = ResNetForImageClassification(ResNetConfig(layer_type="basic", **scale.teacher, **labels))
    training = dataclasses.replace(scale.training, epochs=scale.teacher_epochs)
    recipe = Recipe(data=data, training=training, augmentation=scale.augmentation)
    history = fit_plain(model, recipe, folder, {"teacher": scale.teacher}, scale.image_size)
    device = make_accelerator(scale.training).device
    images = training_images(load_images(data, "test"), image_processor(scale.image_size), Augmentation(), device)
    accuracy = accuracy_of(folder / "model", images)
    write_json(folder / "results.json", {"test": accuracy, "seconds": sum(row["seconds"] for row in history)})
