"""One quickstart of an epoch per phase, which most tests read, and a folder of pictures for runs of their own."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import helpers
from modeling_lingene.training.recipes import quickstart


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished quickstart, read only: its folder and the rows it returned."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("quickstart") / "out"
    return SimpleNamespace(out=out, bundle=out / "bundle", rows=quickstart(out, epochs=1))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Pictures of noise in train/ and test/, a subfolder per class."""
    pytest.importorskip("datasets")
    for split, count, seed in (("train", 28, 0), ("test", 14, 1)):
        made = helpers.pictures(count, seed=seed)
        for index, (picture, label) in enumerate(zip(made.images, made.labels)):
            path = tmp_path / "data" / split / made.class_names[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return tmp_path / "data"
