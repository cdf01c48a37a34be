"""One elastic bundle, every depth and width, against the same sizes trained separately.

    python tests/benchmarks/elastic.py --data FOLDER --work DIR [--rows "scratch 3 1/4;elastic"] [--scale fashion]
    python tests/benchmarks/elastic.py --data FOLDER --work DIR --collect FILE.json

A row that is done in DIR is not run again, one that was stopped goes on. Scale, teacher and recipe are those of
`decomposition.py`. `scratch D R` is a stock ViT of that size, trained alone for as many epochs as the largest. Every
other row trains one bundle for `COST` times the forward and backward passes of the largest; how many epochs that are
follows from what a step draws. Accuracy is of stock models through `from_pretrained`.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path

import torch
import transformers
from decomposition import SCALES, Scale, accuracy_of, fit_plain, held_out, make_teacher
from transformers import ViTForImageClassification

from modeling_lingene.configuration_lingene import LinGeneConfig
from modeling_lingene.folders import write_json
from modeling_lingene.images.data import load_images
from modeling_lingene.measuring.metrics import count_macs, device_name
from modeling_lingene.modeling_lingene import LinGeneForImageClassification
from modeling_lingene.training.decomposition import DecompositionSettings, phases
from modeling_lingene.training.loop import make_accelerator
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.recipes import Recipe, decompose


COST = 2.5  # of the largest network's training alone
GRIDS = {
    "fashion": {"depths": (3, 4, 6), "widths": ("1/4", "1/2", "3/4", "1"), "epochs": 12, "image_size": 28},
    "tiny": {"depths": (6, 9, 12), "widths": ("1/3", "1/2", "2/3", "1"), "epochs": 60, "image_size": 32},
}
# What each row changes; `cost` in trainings of the largest network alone.
ROWS = {
    "not trained for it": {"schedule": "simultaneous", "depths": (), "widths": (), "cost": 1.0},
    "elastic": {"full_share": 0.5},
    "elastic, share 0.3": {"full_share": 0.3},
    "elastic, sandwich": {"sampling": "sandwich"},
    "elastic, scala": {"sampling": "scala"},
    "elastic, isolated": {"isolated_activation": True, "full_share": 0.5},
    "elastic, warm start": {"init": "not-trained-for-it", "cost": 1.5, "full_share": 0.5},
    "elastic, warm start, share 0.3": {"init": "not-trained-for-it", "cost": 1.5, "full_share": 0.3},
    "elastic, warm start, prefixes": {"init": "not-trained-for-it", "cost": 1.5, "full_share": 0.3, "totals": ()},
    "scala": {"sampling": "scala", "depths": (), "full_first": 0.1},
}


def sizes_of(scale: str) -> list[tuple[int, str]]:
    return [(depth, width) for depth in GRIDS[scale]["depths"] for width in GRIDS[scale]["widths"]]


def recipe_of(data: str, scale: Scale, teacher: Path, epochs: int) -> Recipe:
    return Recipe(
        data=data,
        model=scale.model,
        training=dataclasses.replace(scale.training, epochs=epochs),
        augmentation=scale.augmentation,
        objective=Objective("soft"),
        teacher=str(teacher),
    )


def run_scratch(depth: int, width: str, recipe: Recipe, out: Path) -> list[dict]:
    """A stock ViT of one size, alone; the history."""
    torch.manual_seed(recipe.training.seed)
    config = recipe.model.config(load_images(recipe.data, "train"), recipe.decomposition)
    config = config.vit_config(config.size(depth, width))
    return fit_plain(ViTForImageClassification(config), recipe, out, recipe.identity() | {"size": [depth, width]})


def elastic_recipe(name: str, data: str, scale: str, work: Path) -> Recipe:
    """A row's recipe, with as many epochs as its share of the cost pays for."""
    changes, grid = dict(ROWS[name]), GRIDS[scale]
    cost, init = changes.pop("cost", COST), changes.pop("init", "")
    asked = {"depths": grid["depths"][:-1], "widths": grid["widths"][:-1], "totals": (SCALES[scale].model.depth,)}
    settings = DecompositionSettings(**{"schedule": "elastic", **asked, **changes})
    recipe = recipe_of(data, SCALES[scale], work / "teacher" / "model", 1)
    recipe = dataclasses.replace(recipe, decomposition=settings, init=str(work / init / "bundle") if init else "")
    epochs = cost * grid["epochs"] / step_cost(recipe, grid["image_size"])
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, epochs=round(epochs)))


def step_cost(recipe: Recipe, image_size: int, steps: int = 4000) -> float:
    """MACs of a step, on average over what it draws, in units of the full network's."""
    model, settings = recipe.model, recipe.decomposition
    config = LinGeneConfig(**model.shape(), image_size=image_size, patch_size=model.patch_size)
    (phase,) = phases(LinGeneForImageClassification(config), settings)

    @functools.cache
    def macs(depth: int, width: str) -> int:
        return count_macs(config.vit_config(config.size(depth, width)))

    generator = torch.Generator().manual_seed(0)
    if settings.schedule != "elastic":
        return 1.0
    drawn = [network for step in range(steps) for network in phase.draw(generator, step / steps)]
    total = sum(macs(network["depth"], network.get("width_ratio", "1")) for network in drawn)
    return total / steps / macs(model.depth, "1")


def run_row(name: str, data: str, scale: str, work: Path) -> None:
    out = work / name.replace("/", "-").replace(",", "").replace(" ", "-")
    if (out / "row.json").is_file():
        return
    images = held_out(data, make_accelerator(SCALES[scale].training).device)
    if name.startswith("scratch"):
        _, depth, width = name.split()
        recipe = recipe_of(data, SCALES[scale], work / "teacher" / "model", GRIDS[scale]["epochs"])
        history = run_scratch(int(depth), width, recipe, out)
        accuracies = {f"{depth} {width}": accuracy_of(out / "model", images)}
        settings, cost = {}, None
    else:
        recipe = elastic_recipe(name, data, scale, work)
        decompose(recipe, out)
        history = json.loads((out / "history.json").read_text())["epochs"]
        accuracies = {
            f"{depth} {width}": accuracy_of(
                out / "bundle", images, depth=depth, width_ratio=width, allow_untrained=True
            )
            for depth, width in sizes_of(scale)
        }
        settings, cost = ROWS[name], step_cost(recipe, GRIDS[scale]["image_size"])
    count = len(images)
    row = {
        "row": name,
        "settings": settings,
        "accuracy": accuracies,
        "standard_error": {label: (p * (1 - p) / count) ** 0.5 for label, p in accuracies.items()},
        "epochs": len(history),
        "cost": cost
        and round(
            cost * len(history) / GRIDS[scale]["epochs"], 3
        ),  # of forward and backward passes, in those of the largest alone
        "training_seconds": round(sum(entry["seconds"] for entry in history), 1),
        "hardware": device_name(images.device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(out / "row.json", row)
    print(name, {label: f"{100 * p:.1f}" for label, p in accuracies.items()}, flush=True)


def collect(work: Path, scale: str, file: Path) -> None:
    names = [*(f"scratch {depth} {width}" for depth, width in sizes_of(scale)), *ROWS]
    rows = [json.loads(path.read_text()) for path in work.glob("*/row.json")]
    rows = sorted((row for row in rows if row["row"] in names), key=lambda row: names.index(row["row"]))
    for row in rows:  # the first ones were written without it
        row.setdefault("cost", None)
    command = f"python tests/benchmarks/elastic.py --data DATA --work DIR --scale {scale}"
    write_json(file, {"command": command, "scale": scale, **GRIDS[scale], "rows": rows})


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
    make_teacher(arguments.data, SCALES[arguments.scale], arguments.work / "teacher")
    scratch = [f"scratch {depth} {width}" for depth, width in sizes_of(arguments.scale)]
    for name in arguments.rows.split(";") if arguments.rows else [*scratch, *ROWS]:
        run_row(name, arguments.data, arguments.scale, arguments.work)


if __name__ == "__main__":
    main()
