"""Bundles of isolated widths, and runs on coloured images or none."""

from types import SimpleNamespace

import pytest
from elastic_nets import ISOLATED, weights

import helpers


@pytest.fixture(scope="module")
def isolating(tmp_path_factory) -> SimpleNamespace:
    """A bundle of isolated activation: in memory, its parameters, its folder; read only."""
    model = helpers.tiny_model(helpers.tiny_config(**ISOLATED))
    folder = tmp_path_factory.mktemp("isolated") / "bundle"
    model.save_pretrained(folder)
    return SimpleNamespace(model=model, parameters=weights(model), folder=folder)
