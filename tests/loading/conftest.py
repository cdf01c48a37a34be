"""The model that was saved, the ways to load it, and a copy that may be damaged."""

import shutil
from pathlib import Path

import pytest
from loads import LOADERS

import helpers
from modeling_lingene import LinGeneForImageClassification, bundle_lingene


@pytest.fixture(scope="module")
def model() -> LinGeneForImageClassification:
    """What the session's bundle was saved from."""
    return helpers.tiny_model()


@pytest.fixture(params=LOADERS)
def load(request):
    """The two ways in: they hand the size over differently."""
    return LOADERS[request.param]


@pytest.fixture
def opens(monkeypatch) -> list[str]:
    """Names of the files of weights that were opened."""
    names = []

    def watched(path, framework):
        names.append(Path(path).name)
        return bundle_lingene_safe_open(path, framework=framework)

    bundle_lingene_safe_open = bundle_lingene.safe_open
    monkeypatch.setattr(bundle_lingene, "safe_open", watched)
    return names


@pytest.fixture
def folder(bundle, tmp_path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))
