"""A trained ViT as a bundle of fewer components: every fit, untrained and healed for an epoch, against other starts.

    python tests/benchmarks/conversion.py --data FOLDER --work DIR [--rows "4 aligned;4 random"]
    python tests/benchmarks/conversion.py --data FOLDER --work DIR --collect FILE.json

A row is a number of components and a start: one of the converter's fits, `random` components, or `layers`: as many of
the source's layers as components, chosen on the same images. Healing is `lingene decompose`, the source as teacher.
Rows that are done in DIR are not run again. A part of the training images is held out by seed, `validation`, by which
the default fit is chosen; what is shown is of `test`, with its binomial standard error.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch
import transformers
from preparing import accuracy_of, fit_plain, write_set
from transformers import ViTForImageClassification

from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.fitting import FITS, ROUNDS
from modeling_lingene.conversion.matching import PASSES
from modeling_lingene.conversion.report import learning_rate
from modeling_lingene.folders import publish_model, write_json
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import load_images, split_off
from modeling_lingene.images.loaders import training_images
from modeling_lingene.measuring.metrics import device_name
from modeling_lingene.modeling_lingene import LinGeneForImageClassification
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.recipes import ModelSettings, Recipe, decompose
from modeling_lingene.training.steps import TrainingSettings


DEPTH, COUNTS, EPOCHS, HELD = 8, (2, 4, 6), (1,), 5000  # images for validation
MODEL = ModelSettings(64, 4, intermediate_size=128, patch_size=7, depth=DEPTH, degree_weight=0.0)
TRAINING = TrainingSettings(epochs=15, batch_size=128, learning_rate=2e-3, device="cpu", evaluate_every=0)
VARIED = Augmentation(crop_padding=2, flip=True)
STARTS = (*FITS, "random", "layers")


def make_source(data: str, folder: Path) -> None:
    """A stock ViT, trained on the labels alone."""
    if (folder / "row.json").is_file():
        return
    torch.manual_seed(0)
    recipe = Recipe(data=data, model=MODEL, training=TRAINING, augmentation=VARIED)
    config = MODEL.config(load_images(data, "train"), DecompositionSettings("simultaneous"))
    model = ViTForImageClassification(config.stock_config(config.size()))
    history = fit_plain(model, recipe, folder, recipe.identity(), config.image_size)
    accuracy = accuracy_of(folder / "model", held_out(data, "test"))
    seconds = round(sum(row["seconds"] for row in history), 1)
    write_json(folder / "row.json", {"accuracy": accuracy, "epochs": TRAINING.epochs, "training_seconds": seconds})


def parted(data: str, folder: Path) -> str:
    """The set with a validation part."""
    if not (folder / "parts.json").is_file():
        train = load_images(data, "train")
        rest, validation = split_off(train, HELD / len(train), seed=0)
        write_set({"train": rest, "validation": validation, "test": load_images(data, "test")}, folder)
    return str(folder)


def held_out(data: str, part: str) -> object:
    images = load_images(data, part)
    return training_images(images, image_processor(images.images[0].size[1]), Augmentation(), torch.device("cpu"))


def start_of(start: str, count: int, data: str, source: Path, work: Path) -> tuple[Path | None, float]:
    """The bundle that a row begins with, and the learning rate of its healing."""
    bundle = work / "starts" / f"{count}-{start}"
    if start == "random":
        return None, TRAINING.learning_rate
    if start == "layers":
        report = _converted(source, work / "starts" / "exact", calibrate=data, depths=[6, 4, 2])
        rows = report["calibration"]["depth_rows"]
        if not bundle.exists():
            whole = work / "starts" / "exact"
            model = LinGeneForImageClassification.from_pretrained(whole, depth=count)
            publish_model(model, whole, work / "starts" / f"{count}-plain")
            report = convert(str(work / "starts" / f"{count}-plain"), bundle)
            write_json(bundle / "kept.json", {"rows": rows[str(count)] if str(count) in rows else rows[count]})
        return bundle, learning_rate(1.0)
    calibrate = {} if start == "weights" else {"calibrate": data}
    report = _converted(source, bundle, num_components=count, fit=start, **calibrate)
    rows = report.get("calibration", {}).get("rows")
    return bundle, learning_rate(rows[-1]["relative_logit_error"] if rows else report["relative_logit_error"])


def _converted(source: Path, bundle: Path, **options) -> dict:
    if not bundle.exists():
        convert(str(source), bundle, device="cpu", **options)
    return json.loads((bundle / "conversion.json").read_text())


def run_row(name: str, data: str, work: Path) -> None:
    count, start = name.split()
    out = work / name.replace(" ", "-")
    if (out / "row.json").is_file():
        return
    source = work / "source" / "model"
    bundle, rate = start_of(start, int(count), data, source, work)
    images = {part: held_out(data, part) for part in ("validation", "test")}
    row = {"num_components": int(count), "start": start, "learning_rate": rate, "validation": {}, "test": {}}

    def measure(stage: str, folder: Path) -> None:
        for part, pictures in images.items():
            row[part][stage] = accuracy_of(folder, pictures)

    if bundle:
        measure("untrained", bundle)
    for epochs in EPOCHS:
        recipe = Recipe(
            data=data,
            model=dataclasses.replace(MODEL, num_components=int(count)) if bundle is None else ModelSettings(),
            training=dataclasses.replace(TRAINING, epochs=epochs, learning_rate=rate),
            decomposition=DecompositionSettings("simultaneous", totals=(int(count),)),
            augmentation=VARIED,
            init=str(bundle or ""),
            teacher=str(source),
        )
        decompose(recipe, out / f"{epochs}")
        measure(f"{epochs} epochs", out / f"{epochs}" / "bundle")
        history = json.loads((out / f"{epochs}" / "history.json").read_text())["epochs"]
        row[f"{epochs} epochs, seconds"] = round(sum(entry["seconds"] for entry in history), 1)
    row["standard_error"] = max((p * (1 - p) / len(images["test"])) ** 0.5 for p in row["test"].values())
    row["hardware"] = device_name()
    row["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_json(out / "row.json", row)
    print(name, row, flush=True)


def collect(work: Path, file: Path) -> None:
    rows = [json.loads(path.read_text()) for path in sorted(work.glob("[0-9]*-*/row.json"))]
    rows.sort(key=lambda row: (row["num_components"], STARTS.index(row["start"])))
    source = json.loads((work / "source" / "row.json").read_text())
    command = "python tests/benchmarks/conversion.py --data DATA --work DIR"
    for row in rows:
        row["command"] = f"{command} --rows '{row['num_components']} {row['start']}'"
    fit = {"rounds": ROUNDS["matched"], "passes": PASSES}
    parts = json.loads((work / "data" / "parts.json").read_text())
    write_json(file, {"command": command, "images": parts, "depth": DEPTH, "source": source, "fit": fit, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--rows", help="such as `4 aligned`, separated by semicolons; default all")
    parser.add_argument("--collect", type=Path, help="write the rows that are done into this file, run nothing")
    arguments = parser.parse_args()
    if arguments.collect:
        return collect(arguments.work, arguments.collect)
    data = parted(arguments.data, arguments.work / "data")
    make_source(data, arguments.work / "source")
    names = [f"{count} {start}" for count in COUNTS for start in STARTS]
    for name in arguments.rows.split(";") if arguments.rows else names:
        run_row(name, data, arguments.work)


if __name__ == "__main__":
    main()
