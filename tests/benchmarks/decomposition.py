"""Schedules, presets, bases against a dense ViT: the same images, epochs, teacher and recipe for every row.

    python tests/benchmarks/decomposition.py --data FOLDER --work DIR [--rows dense,incremental] [--scale fashion]
    python tests/benchmarks/decomposition.py --data FOLDER --work DIR --collect FILE.json

A row that is done in DIR is not run again, one that was stopped goes on. `--scale fashion` is for CPUs and images of
28 x 28, `--scale tiny` for a GPU and images of 32 x 32. Accuracy is of every prefix of the components, at the trained
depth and at depths that were never trained, through `from_pretrained`; its standard error is the binomial one.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch
import transformers
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTForImageClassification,
)

from modeling_lingene.folders import write_json
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.data import image_processor, load_images
from modeling_lingene.images.loaders import Layout, training_images
from modeling_lingene.measuring.metrics import count_macs, device_name
from modeling_lingene.progress import quiet_loading
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.loop import Phase, TrainingLoop, TrainingSettings, make_accelerator
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.recipes import ModelSettings, Recipe, decompose
from modeling_lingene.training.teachers import load_teacher


@dataclasses.dataclass(frozen=True)
class Scale:
    """What a machine can do in minutes."""

    model: ModelSettings
    training: TrainingSettings
    augmentation: Augmentation
    totals: tuple[int, ...]
    depths: tuple[int, ...]  # measured, never trained
    teacher: dict
    teacher_epochs: int


SCALES = {
    "fashion": Scale(
        ModelSettings(64, 4, intermediate_size=128, patch_size=7, depth=6, degree_weight=0.0),
        TrainingSettings(epochs=3, batch_size=128, learning_rate=2e-3, device="cpu", evaluate_every=0),
        Augmentation(crop_padding=2, flip=True),
        totals=(1, 2, 4, 6),
        depths=(3, 4),
        teacher={"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2]},
        teacher_epochs=8,
    ),
    "tiny": Scale(
        ModelSettings(192, 6, patch_size=4, depth=12, degree_weight=0.0),
        TrainingSettings(epochs=60, batch_size=512, learning_rate=1e-3, precision="bf16", evaluate_every=0),
        Augmentation(crop_padding=4, flip=True, erasing=0.25, mixup=0.8, cutmix=1.0),
        totals=(1, 2, 4, 8, 12),
        depths=(6, 9),
        teacher={"embedding_size": 64, "hidden_sizes": [128, 256, 512], "depths": [2, 2, 2]},
        teacher_epochs=100,
    ),
}
# Epochs are in units of the whole incremental run; two networks a step cost two.
ROWS = {
    "dense": {},
    "incremental": {"schedule": "incremental"},
    "incremental, paper": {"schedule": "incremental", "preset": "paper"},
    "incremental, random start": {"schedule": "incremental", "new_components": "random"},
    "incremental, outside frozen": {"schedule": "incremental", "freeze_outside": True},
    "simultaneous": {"schedule": "simultaneous"},
    "simultaneous, paper": {"schedule": "simultaneous", "preset": "paper"},
    "simultaneous, paper, fourier": {"schedule": "simultaneous", "preset": "paper", "basis": "fourier"},
    "simultaneous, paper, taylor": {"schedule": "simultaneous", "preset": "paper", "basis": "taylor"},
    "simultaneous, paper, legendre": {"schedule": "simultaneous", "preset": "paper", "basis": "legendre"},
    "elastic": {"schedule": "elastic"},
    "elastic, half the epochs": {"schedule": "elastic", "epochs": 0.5},
    "elastic, paper": {"schedule": "elastic", "preset": "paper"},
    "elastic, degree weight 1": {"schedule": "elastic", "degree_weight": 1.0},
    "elastic, degree weight 1, half the epochs": {"schedule": "elastic", "degree_weight": 1.0, "epochs": 0.5},
    "elastic, degree weight 1, depths drawn": {"schedule": "elastic", "degree_weight": 1.0, "depths": True},
    "elastic, degree weight 2": {"schedule": "elastic", "degree_weight": 2.0},
    "elastic, paper, degree weight 1": {"schedule": "elastic", "preset": "paper", "degree_weight": 1.0},
    "elastic, degree weight 1, seed 1": {"schedule": "elastic", "degree_weight": 1.0, "seed": 1},
    "incremental, degree weight 1": {"schedule": "incremental", "degree_weight": 1.0},
    "incremental, seed 1": {"schedule": "incremental", "seed": 1},
    "elastic, sandwich": {"schedule": "elastic", "sampling": "sandwich", "epochs": 0.5},
}


def recipe_of(name: str, data: str, scale: Scale, teacher: Path) -> Recipe:
    changes = dict(ROWS[name])
    if changes.get("depths"):
        changes["depths"] = scale.depths
    share, seed = changes.pop("epochs", 1), changes.pop("seed", scale.training.seed)
    phases = 1 if changes.get("schedule") == "incremental" else len(scale.totals)
    training = dataclasses.replace(scale.training, epochs=round(share * phases * scale.training.epochs), seed=seed)
    fields = {field.name for field in dataclasses.fields(ModelSettings)}
    model = dataclasses.replace(scale.model, **{key: value for key, value in changes.items() if key in fields})
    steps = {key: value for key, value in changes.items() if key not in fields}
    return Recipe(
        data=data,
        model=model,
        training=training,
        decomposition=DecompositionSettings(totals=scale.totals, **steps),
        augmentation=scale.augmentation,
        objective=Objective("soft"),
        teacher=str(teacher),
    )


def fit_plain(model, recipe: Recipe, out: Path, identity: dict) -> list[dict]:
    """A stock model in the same loop, saved with its preprocessing; the history."""
    train = load_images(recipe.data, "train")
    processor = image_processor(train.images[0].size[1])
    accelerator = make_accelerator(recipe.training)
    source = training_images(train, processor, recipe.augmentation, accelerator.device)

    def forward(model, batch, generator):
        return recipe.objective(model(batch["pixel_values"]).logits, batch["labels"], batch.get("teacher_logits"))

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


def held_out(data: str, device) -> object:
    test = load_images(data, "test")
    return training_images(test, image_processor(test.images[0].size[1]), Augmentation(), device)


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
    history = fit_plain(model, recipe, folder, {"teacher": scale.teacher})
    accuracy = accuracy_of(folder / "model", held_out(data, model.device))
    write_json(folder / "results.json", {"accuracy": accuracy, "seconds": sum(row["seconds"] for row in history)})


def run_row(name: str, data: str, scale: Scale, work: Path) -> None:
    out = work / name.replace(",", "").replace(" ", "-")
    if (out / "row.json").is_file():
        return
    recipe = recipe_of(name, data, scale, work / "teacher" / "model")
    if name == "dense":
        torch.manual_seed(recipe.training.seed)
        config = recipe.model.config(load_images(data, "train"), recipe.decomposition)
        config = config.vit_config(config.size())
        history = fit_plain(ViTForImageClassification(config), recipe, out, recipe.identity())
        sizes = {"model": {}}
    else:
        decompose(recipe, out)
        history = json.loads((out / "history.json").read_text())["epochs"]
        config = AutoModelForImageClassification.from_pretrained(out / "bundle").config
        sizes = {f"{k}": {"num_components": k} for k in scale.totals}
        sizes |= {f"{k} at {d} layers": {"num_components": k, "depth": d} for d in scale.depths for k in scale.totals}
    images = held_out(data, make_accelerator(recipe.training).device)
    folder = out / ("model" if name == "dense" else "bundle")
    accuracies = {label: accuracy_of(folder, images, **size) for label, size in sizes.items()}
    count = len(images)
    networks = 2 if recipe.decomposition.sampling == "sandwich" else 1
    seen = len(load_images(data, "train")) * len(history)
    row = {
        "row": name,
        "settings": recipe.identity(),
        "accuracy": accuracies,
        "standard_error": {label: (p * (1 - p) / count) ** 0.5 for label, p in accuracies.items()},
        "epochs": len(history),
        "training_seconds": round(sum(entry["seconds"] for entry in history), 1),
        "training_macs": 3 * mean_macs(config, recipe.decomposition.depths) * networks * seen
        + teacher_macs(work, config) * seen,
        "hardware": device_name(images.device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(out / "row.json", row)
    print(name, {label: f"{100 * p:.1f}" for label, p in accuracies.items()}, flush=True)


def mean_macs(config, depths: tuple[int, ...]) -> int:
    """Of a forward pass of one network: with depths, the full one half of the time."""
    full = count_macs(config)
    others = [count_macs(type(config)(**{**config.to_dict(), "num_hidden_layers": depth})) for depth in depths]
    return (full + sum(others) // len(others)) // 2 if others else full


def teacher_macs(work: Path, config) -> int:
    """Of one forward pass of the teacher."""
    model = AutoModelForImageClassification.from_pretrained(work / "teacher" / "model").eval()
    pixels = torch.zeros(1, 3, config.image_size, config.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional.softmax(model(pixels).logits, dim=-1)
    return counter.get_total_flops() // 2


def collect(work: Path, scale: str, file: Path) -> None:
    rows = [json.loads(path.read_text()) for path in sorted(work.glob("*/row.json"))]
    for row in rows:  # not the folders of one machine
        row["settings"] |= {"data": Path(row["settings"]["data"]).name, "teacher": "teacher"}
    rows.sort(key=lambda row: list(ROWS).index(row["row"]))
    teacher = json.loads((work / "teacher" / "results.json").read_text())
    command = f"python tests/benchmarks/decomposition.py --data DATA --work DIR --scale {scale}"
    write_json(file, {"command": command, "scale": scale, "teacher": teacher, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--scale", choices=SCALES, default="fashion")
    parser.add_argument("--rows", help="separated by semicolons; default all")
    parser.add_argument("--collect", type=Path, help="write the rows that are done into this file, run nothing")
    arguments = parser.parse_args()
    if arguments.collect:
        return collect(arguments.work, arguments.scale, arguments.collect)
    scale = SCALES[arguments.scale]
    make_teacher(arguments.data, scale, arguments.work / "teacher")
    for name in arguments.rows.split(";") if arguments.rows else ROWS:
        run_row(name, arguments.data, scale, arguments.work)


if __name__ == "__main__":
    main()
