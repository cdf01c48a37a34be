"""Laws of the released bundles in `hub_cards/`: each folder is a Hub repository as it would be pushed today.

pytest tests/test_hub_cards.py
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import modeling_lingene
from helpers import code_of
from modeling_lingene import cli, folders, hub, readme, zoo


CARDS = Path(__file__).parents[1] / "hub_cards"
ALL = sorted(path.parent for path in CARDS.glob("*/config.json"))
FOLDERS = [folder for folder in ALL if any(folder.glob("*.safetensors"))]
NUMBERS = [folder for folder in ALL if folder not in FOLDERS]  # too large for git: how to make the weights is told
NOTES = {  # what a card says that no program knows
    "lingene-cifar10": "JPEG re-encoding",
    "lingene-vit-small-14": "python tests/benchmarks/backbone.py --data IMAGENETTE --work DIR --rows",
}
LICENSES = {"lingene-vit-small-14": "mit"}
AGAIN = "run `python tests/benchmarks/release.py FOLDER`"
STRANGER = r"""
import json, os, re, sys
import torch
import transformers
from safetensors.torch import load_file

sys.modules["modeling_lingene"] = None  # as on a machine without the package
for folder in map(str, sys.argv[1:]):
    recorded = json.load(open(f"{folder}/predictions.json"))
    pixels = load_file(f"{os.path.basename(folder)}.safetensors")["pixel_values"]
    found = {"outputs": [], "of the card": []}
    card = open(f"{folder}/README.md").read()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    auto_class = re.search(r"import (\w+)", blocks[0])[1]
    for size in recorded["sizes"]:
        asked = {name: size[name] for name in ("depth", "width_ratio", "num_components")}
        model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True, **asked)
        with torch.no_grad():
            output = model(pixels.to(model.dtype))
        values = output.logits if hasattr(output, "logits") else output.last_hidden_state[:, 0]
        found["outputs"].append(values.float().tolist())
    for block in blocks:
        names = {}
        exec(re.sub(r'from_pretrained\(\s*"[^"]*"', f"from_pretrained({folder!r}", block), names)
        found["of the card"].append(type(names["model"]).__module__)
    print(json.dumps(found), flush=True)
"""


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


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
def test_one_network_has_one_latency(folder):
    """Sizes that differ in components alone are the same network: noise between them would choose one of them."""
    timed: dict[tuple, set[float]] = {}
    for row in json.loads((folder / "sizes.json").read_text())["sizes"]:
        network = tuple(row.get(key) for key in ("depth", "width_ratio", "device", "timed"))
        timed.setdefault(network, set()).add(row["latency_ms"])
    assert {network: sorted(found) for network, found in timed.items() if len(found) > 1} == {}, AGAIN


@pytest.mark.parametrize("folder", NUMBERS, ids=lambda folder: folder.name)
def test_a_folder_without_weights_holds_numbers_pictures_and_what_makes_it(folder):
    """Of one training: sizes and record name the same weights."""
    rows, config = hub.Bundle(folder, folders.read_config(folder)).measured(), folders.read_config(folder)
    assert {row["width_ratio"] for row in rows} == {"1", *map(str, config.trained_width_ratios)} and len(rows) == 16
    assert folders.read_training(folder, config.weights_id)["epochs"] > 0
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".png"}


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
def test_its_code_and_card_are_those_of_today(folder):
    """Whoever loads it without the package gets the code in the folder; an old copy would hide a fix."""
    travelling = {name: path.read_text() for name, path in code_of().items()} if folder in FOLDERS else {}
    assert {path.name: path.read_text() for path in folder.glob("*.py")} == travelling, AGAIN
    card = (folder / "README.md").read_text()
    repo = next(line for line in card.splitlines() if line.startswith("# "))[2:]
    page = readme.parsed(card, folder.name)
    assert readme.merged(page, hub.render_card(folder, repo)) == card, AGAIN
    license, _, note = page.written().partition("\n")
    assert license == f"license: {LICENSES.get(folder.name, 'apache-2.0')}" and (folder.name in NOTES) == bool(note), (
        AGAIN
    )
    assert NOTES.get(folder.name, "") in " ".join(note.split())


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


def test_a_stranger_gets_the_recorded_predictions_and_runs_the_cards_code(tmp_path):
    """By path, in a process without the package, two sizes of each folder on real pictures: what stock transformers
    said of them on the day of the release, and every block of the card as pasted.
    """
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for folder in FOLDERS:  # here, since image processors import torchvision, for seconds
        recorded = json.loads((folder / folders.PREDICTIONS_FILE).read_text())
        pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in recorded["pictures"]]
        pixels = AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
        save_file({"pixel_values": pixels["pixel_values"]}, tmp_path / f"{folder.name}.safetensors")
    command = [sys.executable, "-c", STRANGER, *map(str, FOLDERS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(told) == len(FOLDERS)
    for folder, found in zip(FOLDERS, told):
        recorded = json.loads((folder / folders.PREDICTIONS_FILE).read_text())
        assert recorded["weights_id"] == folders.read_config(folder).weights_id, AGAIN
        expected = [torch.tensor(size["outputs"]) for size in recorded["sizes"]]
        assert len(expected) == 2 and not torch.allclose(*expected, atol=0.1)
        for values, wanted in zip(found["outputs"], expected):
            assert torch.allclose(torch.tensor(values), wanted, rtol=1e-3, atol=1e-3)
        assert len(found["of the card"]) in (1, 2, 3)
        assert all(module.startswith("transformers.models.") for module in found["of the card"])


def test_the_zoo_lists_every_folder_with_what_it_is_for(capsys, tmp_path):
    """From the folders' files; the same numbers as JSON."""
    assert cli.main(["zoo", "--out", str(tmp_path / "zoo.json")]) == 0
    shown, bundles = capsys.readouterr().out, json.loads((tmp_path / "zoo.json").read_text())["bundles"]
    assert [facts["name"] for facts in bundles] == [f"{zoo.OWNER}/{folder.name}" for folder in ALL]
    assert [facts["name"].partition("/")[2] for facts in bundles if facts["folder"] is None] == [
        folder.name for folder in NUMBERS
    ]
    for facts, folder in zip((facts for facts in bundles if facts["folder"]), FOLDERS):
        rows = json.loads((folder / "sizes.json").read_text())["sizes"]
        assert facts["folder"] == str(folder) and facts["sizes"] == len(rows)
        files = [(folder / name).stat().st_size for name in ("shared.safetensors", "component-00.safetensors")]
        least, most = (pick(row["num_components"] for row in rows) for pick in (min, max))
        assert facts["download"] == pytest.approx([files[0] + count * files[1] for count in (least, most)], rel=0.1)
        worth = [row[facts["metric"]] for row in rows]
        assert facts["best"][facts["metric"]] == max(worth) and f'from_pretrained("{folder}", trust' in shown
        (line,) = [line for line in shown.splitlines() if line.startswith("|") and f" {folder.name} " in line]
        assert f" {len(rows)} " in line
    first = next(line for line in shown.splitlines() if "lingene-fashion-mnist |" in line)
    assert "10 classes" in first and "170 k to 3.72 M" in first and "88.8 % |   75.0 %" in first


def test_without_weights_the_zoo_names_the_repositories_and_one_without_sizes_is_listed(tmp_path, capsys, monkeypatch):
    """An installed wheel has the numbers alone; a new folder need not be measured to be found."""
    for name in ("config.json", "sizes.json", "model.safetensors.index.json"):
        (tmp_path / "first").mkdir(exist_ok=True)
        shutil.copyfile(FOLDERS[0] / name, tmp_path / "first" / name)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    (tmp_path / "second" / "sizes.json").unlink()
    monkeypatch.setattr(zoo, "home", lambda: tmp_path)
    assert cli.main(["zoo"]) == 0
    shown = capsys.readouterr().out
    assert shown.count('from_pretrained("modeling-lingene/') == 2 and re.search(r"second \|.*\| +- \|", shown)
    assert [facts["folder"] for facts in zoo.released()] == [None, None]
    (tmp_path / "first" / "config.json").unlink()
    (tmp_path / "second" / "config.json").unlink()
    assert cli.main(["zoo"]) == 2 and "hub_cards" in capsys.readouterr().err
