"""The model that was saved, and the ways to load it."""

import pytest
from loads import LOADERS

import helpers
from modeling_lingene import LinGeneForImageClassification


@pytest.fixture(scope="module")
def model() -> LinGeneForImageClassification:
    """What the session's bundle was saved from."""
    return helpers.tiny_model()


@pytest.fixture(params=LOADERS)
def load(request):
    """The two ways in: they hand the size over differently."""
    return LOADERS[request.param]
