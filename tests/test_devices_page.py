"""conversion/DEVICES.md is true: each target's lines run on a materialised size, its numbers are the measured ones.

The library of a target that is missing skips its test. ExecuTorch, AOTInductor and LiteRT take minutes.

    pytest -m "slow or not slow" tests/test_devices_page.py
"""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from modeling_lingene import cli


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from devices import PAGE, RESULTS, TARGETS, lines, missing, render  # noqa: E402


TEXT = PAGE.read_text(encoding="utf-8")
SLOW = ("ExecuTorch", "AOTInductor", "LiteRT")


@pytest.fixture(scope="module")
def size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's own command writes of a bundle that is released."""
    folder = tmp_path_factory.mktemp("page")
    command = shlex.split(re.search(r"`lingene (materialise [^`]+)`", TEXT)[1])
    bundle = str(ROOT / "hub_cards" / "lingene-fashion-mnist")
    words = [{"BUNDLE": bundle, "size": str(folder / "size")}.get(word, word) for word in command]
    assert cli.main([*words, "--num-components", "1"]) == 0
    return folder


@pytest.mark.parametrize(
    "target", [pytest.param(target, marks=[pytest.mark.slow] if target in SLOW else []) for target in TARGETS]
)
@torch.no_grad()
def test_the_lines_of_every_target_run_on_a_materialised_size(size, tmp_path, monkeypatch, target):
    """They are meant to be pasted; nothing of this package is in them."""
    if missing(target):
        pytest.skip(f"needs {TARGETS[target][0]} of pip install {missing(target)}")
    (tmp_path / "size").symlink_to(size / "size")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    begin, of_target = lines()
    assert "lingene" not in begin + of_target[target]
    exec(begin, names)
    exec(of_target[target], names)
    if target == "Core ML":  # Linux has no runtime of it
        assert (tmp_path / "model.mlpackage" / "Manifest.json").is_file() and "run" not in names
        return
    for _ in range(2):
        values = torch.randn_like(names["images"])
        found, expected = torch.as_tensor(names["run"](values)), names["model"](values)
        assert found.shape == expected.shape and (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_table_is_rendered_from_the_measured_file():
    """A number typed by hand would mislead whoever chooses by it."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert results["targets"].keys() == TARGETS.keys() and render(TEXT, results) == TEXT
    for row in results["targets"].values():
        assert row.get("relative_difference", 0) < 1e-4
