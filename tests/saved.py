"""Saved bundles, as the tests of saving look at them."""

import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification

import helpers


INDEX = "model.safetensors.index.json"
WEIGHTS = ["shared.safetensors", *(f"component-{n:02d}.safetensors" for n in range(5))]
CODE = sorted(helpers.code_of())


def logits(model, **size) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(helpers.images().to(model.dtype), **size).logits


def load(folder, **keywords):
    return AutoModelForImageClassification.from_pretrained(folder, **keywords)


def index_of(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write_sizes(folder: Path):
    sizes = {"weights_id": index_of(folder)["metadata"]["weights_id"], "sizes": []}
    (folder / "sizes.json").write_text(json.dumps(sizes))


def changed(model, part: str = "", by: float = 0.5):
    """The model with noise on the parameters whose name contains `part`."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return model
