"""Bundles to export, and every format's own loader: what the tests of export share."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    ViTModel,
)

import helpers
from helpers import read
from modeling_lingene import LinGeneForImageClassification, cli
from modeling_lingene.conversion.export import load_code
from modeling_lingene.images.batches import image_processor


LABELS = {index: f"thing {index}" for index in range(7)}


MEAN, STD = [0.2, 0.4, 0.6], [0.3, 0.5, 0.7]


FULL = {"depth": 4, "width_ratio": "1", "num_components": 3}


SMALL = {"depth": 2, "width_ratio": "1/2", "num_components": 2}


SHAPE = {"depth": 4, "num_components": 3}  # of the bundles that most tests share


LEAST = {"depth": 1, "num_components": 1}  # where only the failure matters


FORMATS = ("transformers", "timm", "onnx", "program")  # those of devices have test_devices.py


PACKAGES = {"timm": ["timm"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}


def needed(to: str) -> None:
    """Skips where a format's library is missing."""
    for package in PACKAGES.get(to, []):
        pytest.importorskip(package)


def made(folder: Path, model_class=LinGeneForImageClassification, **fields) -> SimpleNamespace:
    """A bundle with classes and preprocessing of its own, and the model in memory."""
    config = helpers.tiny_config(**fields)
    config.id2label, config.label2id = LABELS, {label: index for index, label in LABELS.items()}
    model = helpers.tiny_model(config, model_class=model_class)
    model.save_pretrained(folder)
    size = config.image_size
    processor = image_processor(size if isinstance(size, int) else tuple(size))
    processor.image_mean, processor.image_std = MEAN, STD
    processor.save_pretrained(folder)
    return SimpleNamespace(folder=folder, model=model, processor=processor)


def session(folder: Path):
    """An ONNX folder in onnxruntime, and its one input and output."""
    runtime = pytest.importorskip("onnxruntime")
    opened = runtime.InferenceSession(str(folder / read(folder / "export.json")["file"]))
    (given,), (got,) = opened.get_inputs(), opened.get_outputs()
    return opened, given, got


def loaded(folder: Path, head: bool = True) -> Callable[[torch.Tensor], torch.Tensor]:
    """Images to logits, or to tokens, by the format's own loader, called as `export.json` says."""
    report = read(folder / "export.json")
    if report["format"] == "transformers":
        if head:
            model = AutoModelForImageClassification.from_pretrained(folder).eval()
            return lambda values: model(values).logits
        encoder = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
        return lambda values: encoder(values).last_hidden_state
    if report["format"] == "onnx":
        opened, given, got = session(folder)
        return lambda values: torch.from_numpy(opened.run([got.name], {given.name: values.numpy()})[0])
    names = {}
    exec(load_code(report, folder), names)
    if report["format"] == "program":
        return names["model"]
    timm_model = names["model"].eval()
    return timm_model if head else timm_model.forward_features


def lingene(capsys: pytest.CaptureFixture, *arguments) -> tuple[int, str, list[str]]:
    """Status, stdout, and the lines on stderr that are no progress bar's, of one command."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    lines = [line for line in re.split(r"[\r\n]+", said.err) if line.strip() and not re.search(r"\d%\|.*\|", line)]
    return code, said.out, lines


def picture():
    """No square, and larger than what the bundle takes."""
    from PIL import Image

    return Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=numpy.uint8))
