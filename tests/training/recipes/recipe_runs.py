"""What the tests of recipes share: a recipe of seconds, and how they look at a run."""

import json
from pathlib import Path

import pytest

from modeling_lingene.training import recipes
from modeling_lingene.training.loop import TrainingLoop


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def forbidden(*_, **__):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(TrainingLoop, name, forbidden)


def tiny_recipe(data: Path, **changes) -> recipes.Recipe:
    settings = recipes.TrainingSettings(epochs=1, batch_size=8, device="cpu")
    model = recipes.ModelSettings(24, 2, intermediate_size=24, patch_size=8, depth=3)
    return recipes.Recipe(**{"data": str(data), "model": model, "training": settings, **changes})
