"""Files of a bundle against the hashes that were taken when they were saved.

pytest tests/test_verifying.py
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import helpers
from modeling_lingene import LinGeneForImageClassification, folders
from saved import index_of, load, logits


def made_before(folder: Path) -> Path:
    """The bundle as it was saved before settings and hashes of files stood in the index."""
    index = index_of(folder)
    digests = index["metadata"].pop("files")
    del index["metadata"]["settings"]
    old = hashlib.sha256("".join(digests[name] for name in sorted(digests)).encode()).hexdigest()
    index["metadata"]["weights_id"] = old
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "weights_id": old}))
    return folder


def test_a_bundle_made_before_loads_and_is_verified_as_a_whole(tmp_path):
    """It has one hash for all files; a changed setting is not noticed, for nothing in it says what it was."""
    model = helpers.tiny_model()
    model.save_pretrained(tmp_path / "bundle")
    folder = made_before(tmp_path / "bundle")
    assert torch.equal(logits(load(folder, verify=True, constrained=True)), logits(model))
    assert folders.bundle_weights_id(folder) == index_of(folder)["metadata"]["weights_id"]
    helpers.flip_a_bit(folder / "component-04.safetensors")
    load(folder, num_components=1)
    with pytest.raises(ValueError, match="`weights_id` of .* is not that of its files"):
        load(folder, num_components=1, verify=True)


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize("constrained", [False, True])
def test_verifying_notices_a_flipped_bit_in_what_is_read(tmp_path, auto, constrained):
    """584 of 620 flipped bits loaded without a word; what is not read need not be right."""
    folder = helpers.bundle(tmp_path / "bundle")
    read = load if auto else LinGeneForImageClassification.from_pretrained
    read(folder, verify=True, constrained=constrained)
    helpers.flip_a_bit(folder / "component-02.safetensors")
    read(folder, num_components=2, verify=True, constrained=constrained)
    read(folder, num_components=3, constrained=constrained)
    with pytest.raises(ValueError, match="`component-02.safetensors` of .* was changed or damaged"):
        read(folder, num_components=3, verify=True, constrained=constrained)


def test_what_has_no_hashes_cannot_be_verified(tmp_path):
    """Saying nothing would be taken for a check."""
    folder = helpers.bundle(tmp_path / "bundle")
    index, config = index_of(folder), json.loads((folder / "config.json").read_text())
    index["metadata"], config["weights_id"] = {"total_size": 1}, None
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    load(folder)
    with pytest.raises(ValueError, match="without hashes"):
        load(folder, verify=True)


@pytest.mark.parametrize("change", ["another hash", "another setting", "a file less"])
def test_an_index_whose_parts_are_not_those_of_its_identity_is_refused(tmp_path, change):
    """A hash that was adapted to a changed file would make the check say that all is well."""
    folder = helpers.bundle(tmp_path / "bundle")
    index = index_of(folder)
    if change == "another hash":
        index["metadata"]["files"]["component-00.safetensors"] = "0" * 64
    elif change == "another setting":
        index["metadata"]["settings"]["degree_weight"] = 0.5
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "degree_weight": 0.5}))
    else:
        del index["metadata"]["files"]["component-00.safetensors"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="`weights_id` in .* is not that of its files and settings"):
        load(folder)
