"""Laws of pruning a sorted bundle: its channels were turned, and what is made of it says so and brings them back.

pytest tests/pruning/test_prune_turned.py
"""

import json
from dataclasses import replace

import pytest
import torch
from prune_runs import SETTINGS, TRAINING, small_vit

import helpers
from modeling_lingene.bundle_lingene import READOUT_FILE
from modeling_lingene.conversion.convert import convert
from modeling_lingene.pruning.card import sent_files
from modeling_lingene.pruning.prune import prune
from modeling_lingene.readout import TURNED, is_turned, known_readout


pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_what_is_pruned_of_a_sorted_bundle_keeps_the_readout_and_says_that_it_is_turned(tmp_path):
    """Its tokens were compared channel by channel with others."""
    small_vit(tmp_path / "vit")
    (tmp_path / "photos").mkdir()
    for index, picture in enumerate(helpers.pictures(8, size=8).images):
        picture.save(tmp_path / "photos" / f"{index}.png")
    convert(str(tmp_path / "vit"), tmp_path / "bundle", calibrate=tmp_path / "photos", sort=True)
    prune(tmp_path / "bundle", tmp_path / "out", replace(SETTINGS, tune=False), TRAINING)
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert is_turned(config) and config["model_type"] == "lingene_vit"
    for found, expected in zip(known_readout(tmp_path / "out" / "model"), known_readout(tmp_path / "bundle")):
        torch.testing.assert_close(found, expected)
    assert TURNED in (tmp_path / "out" / "model" / "README.md").read_text()
    assert READOUT_FILE in sent_files(tmp_path / "out" / "model")
    (tmp_path / "out" / "model" / READOUT_FILE).unlink()
    with pytest.raises(ValueError, match="channels that were turned"):
        known_readout(tmp_path / "out" / "model")
