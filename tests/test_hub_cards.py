"""Laws of the released bundles in `hub_cards/`: each folder is a Hub repository as it would be pushed today.

pytest tests/test_hub_cards.py
"""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import modeling_lingene
from modeling_lingene import folders, hub


CARDS = Path(__file__).parents[1] / "hub_cards"
FOLDERS = sorted(path.parent for path in CARDS.glob("*/config.json"))
AGAIN = "run `python tests/benchmarks/release.py FOLDER`"


def test_there_is_a_released_bundle():
    """The README loads it; without one the next tests would test nothing."""
    assert "lingene-fashion-mnist" in [folder.name for folder in FOLDERS]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_released_folder_is_complete_and_its_numbers_belong_to_its_weights(folder):
    """Digests, sizes, no pickle, nothing of any size that git should not hold."""
    folders.check_folder(folder)
    assert hub.Bundle(folder, folders.read_config(folder)).measured()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".py", ".safetensors", ".png"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_code_and_card_are_those_of_today(folder):
    """Whoever loads it without the package gets the code in the folder; an old copy would hide a fix."""
    package = Path(modeling_lingene.__file__).parent
    travelling = {path.name: path.read_text() for path in package.glob("*_lingene.py")}
    assert {path.name: path.read_text() for path in folder.glob("*.py")} == travelling, AGAIN
    card = (folder / "README.md").read_text()
    repo = next(line for line in card.splitlines() if line.startswith("# "))[2:]
    assert card == hub.render_card(folder, repo) + "\n", AGAIN


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_measured_size_loads_and_answers_differently(folder):
    """A size that is in the table must be one that a user gets."""
    torch.manual_seed(0)
    processor, seen = AutoImageProcessor.from_pretrained(folder), []
    assert processor.size["height"] == folders.read_config(folder).image_size
    for row in hub.Bundle(folder, folders.read_config(folder)).measured():
        size = {key: row[key] for key in ("depth", "width_ratio", "num_components")}
        vit = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32, **size).eval()
        assert sum(parameter.numel() for parameter in vit.parameters()) == row["params"]
        with torch.no_grad():
            pixels = torch.linspace(-1, 1, 3 * processor.size["height"] ** 2).view(1, 3, processor.size["height"], -1)
            seen.append(tuple(vit(pixels).logits.flatten().tolist()))
    assert len(set(seen)) == len(seen) and sys.modules["modeling_lingene"] is modeling_lingene
