"""Runs without labels, for tests."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTModel

from modeling_lingene.budget_lingene import TIMING
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.losses import Objective


def recipe(data: Path, init: Path | str = "", schedule: str = "elastic", **changes) -> recipes.Recipe:
    """Two epochs of four steps; keywords are the fields of any setting."""
    groups = {
        "training": recipes.TrainingSettings(epochs=2, batch_size=9, device="cpu", learning_rate=1e-3),
        "decomposition": DecompositionSettings(schedule, totals=(2, 4), depths=(2,)),
        "model": recipes.ModelSettings(),
        "augmentation": Augmentation(),
        "objective": Objective(kind="features"),
    }
    for name, settings in groups.items():
        own = {field.name for field in dataclasses.fields(settings)} & changes.keys()
        groups[name] = dataclasses.replace(settings, **{field: changes.pop(field) for field in own})
    return recipes.Recipe(data=str(data), init=str(init), workers=0, **groups, **changes)


def trained(out: Path, *asked, **changes) -> list[dict]:
    """The rows of a run, without what a clock says."""
    with pytest.warns(UserWarning, match="1 left out of .*notes.txt"):
        rows = recipes.decompose(recipe(*asked, **changes), out)
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def history(out: Path) -> list[dict]:
    rows = json.loads((out / "history.json").read_text(encoding="utf-8"))["epochs"]
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def stored(bundle: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in bundle.glob("*.safetensors") for key, tensor in load_file(file).items()}


def larger(tmp_path: Path) -> str:
    """A teacher of six by six patches, where the student has four by four of four pixels."""
    config = ViTConfig(
        image_size=30, patch_size=5, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16
    )
    ViTModel(config).save_pretrained(tmp_path / "teacher")
    image_processor(30).save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")
