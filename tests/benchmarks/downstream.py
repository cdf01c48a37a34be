"""Sizes of an elastic bundle tuned on other images with Trainer, against the same sizes from scratch.

    python tests/benchmarks/downstream.py BUNDLE --data cifar10=FOLDER --data flowers=FOLDER --work DIR [--rows NAMES]
    python tests/benchmarks/downstream.py BUNDLE --work DIR --collect FILE.json

Starts: `scratch`, a stock ViT of that size; `free`, the size that `from_pretrained` gives; `constrained`, the size as
components, which `constrained=True` gives. Each for all epochs and for a tenth of them, with a cosine of that length.
What was tuned is saved and loaded again before it is measured. A row that is done in DIR is not run again.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import transformers
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, ViTForImageClassification

from modeling_lingene import LinGeneConfig, LinGeneForImageClassification
from modeling_lingene.folders import write_json
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.data import image_processor, load_images, to_tensors
from modeling_lingene.measuring.metrics import accuracy, device_name
from modeling_lingene.progress import quiet_loading


SIZES = ((6, "1"), (4, "1/2"), (3, "1/4"))
STARTS = {"scratch": 2e-3, "free": 1e-3, "constrained": 1e-3}  # learning rates
EPOCHS = {"cifar10": 10, "flowers": 30}
AUGMENTATION = Augmentation(crop_padding=2, flip=True)


class Pixels(Dataset):
    """Decoded once, one byte per value."""

    def __init__(self, data: str, split: str, size: int):
        self.images = load_images(data, split)
        self.processor = image_processor(size)
        pixels, self.labels = to_tensors(
            self.images, lambda images, **kw: self.processor(images, do_rescale=False, do_normalize=False, **kw)
        )
        self.pixels = pixels.to(torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, places: list[int], varied: bool) -> dict[str, torch.Tensor]:
        index = torch.tensor(places)
        pixels = self.pixels[index]
        if varied:
            seed = int(torch.randint(2**31, ()))
            pixels = AUGMENTATION.on_batch(pixels, torch.Generator().manual_seed(seed))
        return {"pixel_values": (pixels.float() / 255 - 0.5) / 0.5, "labels": self.labels[index]}


def model_of(start: str, bundle: str, size: tuple[int, str], names: list[str]):
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if start == "scratch":
        config = LinGeneConfig.from_pretrained(bundle, **labels)
        return ViTForImageClassification(config.vit_config(config.size(*size)))
    asked = {"depth": size[0], "width_ratio": size[1], "constrained": start == "constrained"}
    return AutoModelForImageClassification.from_pretrained(
        bundle, **asked, **labels, ignore_mismatched_sizes=True, dtype=torch.float32
    )


def run_row(name: str, bundle: str, data: dict[str, str], work: Path) -> None:
    out = work / name.replace("/", "-").replace(" ", "-")
    if (out / "row.json").is_file():
        return
    images, depth, width, start, share = name.split()
    epochs = EPOCHS[images] * int(share) // 100
    train, test = (Pixels(data[images], split, 28) for split in ("train", "test"))
    torch.manual_seed(0)
    with quiet_loading():
        model = model_of(start, bundle, (int(depth), width), train.images.class_names)
    arguments = TrainingArguments(
        str(out / "trainer"),
        num_train_epochs=epochs,
        per_device_train_batch_size=128,
        learning_rate=STARTS[start],
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, epochs * len(train) // 128 // 20),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=train, data_collator=lambda places: train.batch(places, True))
    done = trainer.train()
    trainer.save_model(str(out / "model"))
    kind = LinGeneForImageClassification if start == "constrained" else AutoModelForImageClassification
    with quiet_loading():
        again = kind.from_pretrained(out / "model", **({"constrained": True} if start == "constrained" else {}))
    held = (test.batch(list(places), False) for places in torch.arange(len(test)).split(500))
    right, count = accuracy(again, [{**b} for b in held])
    shutil.rmtree(out / "model")
    row = {
        "images": images,
        "depth": int(depth),
        "width_ratio": width,
        "start": start,
        "epochs": epochs,
        "trained_parameters": sum(p.numel() for p in again.parameters()),
        "accuracy": right,
        "standard_error": (right * (1 - right) / count) ** 0.5,
        "training_seconds": round(done.metrics["train_runtime"], 1),
        "hardware": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(out / "row.json", row)
    print(name, f"{100 * right:.1f}", flush=True)


def names_of() -> list[str]:
    sizes = [f"{depth} {width}" for depth, width in SIZES]
    return [f"{i} {size} {start} {share}" for share in (10, 100) for i in EPOCHS for size in sizes for start in STARTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--data", action="append", default=[], help="NAME=FOLDER, of cifar10 and flowers")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--rows", help="separated by semicolons; default all")
    parser.add_argument("--collect", type=Path, help="write the rows that are done into this file, run nothing")
    arguments = parser.parse_args()
    if arguments.collect:
        paths = [arguments.work / name.replace("/", "-").replace(" ", "-") / "row.json" for name in names_of()]
        rows = [json.loads(path.read_text()) for path in paths if path.is_file()]
        command = "python tests/benchmarks/downstream.py BUNDLE --data NAME=FOLDER --work DIR"
        return write_json(arguments.collect, {"command": command, "rows": rows})
    data = dict(pair.split("=", 1) for pair in arguments.data)
    for name in arguments.rows.split(";") if arguments.rows else names_of():
        run_row(name, arguments.bundle, data, arguments.work)


if __name__ == "__main__":
    main()
