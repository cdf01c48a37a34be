"""The bundle that most runs go on from, and what is left out of every run: files of pictures, latency and plots."""

from pathlib import Path

import pytest
import torch
from warm import begun, pictures

from modeling_lingene.images import data
from modeling_lingene.measuring import metrics
from modeling_lingene.training import recipes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a run takes a third of a second."""
    monkeypatch.setattr(data, "load_images", lambda _, split: pictures(split))
    monkeypatch.setattr(metrics, "latency_ms", lambda *_, **__: {"median": 1.0, "iqr": 0.1})
    for plot in ("plot_sizes", "plot_heat", "plot_history"):
        monkeypatch.setattr(recipes, plot, lambda *_, **__: None)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that most runs go on from; read only."""
    torch.set_num_threads(1)
    return begun(tmp_path_factory.mktemp("init") / "bundle")
