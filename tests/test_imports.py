"""What importing the package costs, measured in one process: transformers alone takes seconds.

pytest tests/test_imports.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import modeling_lingene
from test_hub import ROWS
from test_structure import AT_HOME


PROGRAM = """
import json, sys
OPTIONAL = ("sklearn", "matplotlib", "datasets")
for name in OPTIONAL:
    sys.modules[name] = None
import huggingface_hub, safetensors.torch, torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedModel, initialization
from transformers import ViTConfig, ViTForImageClassification, ViTModel

known, found = set(sys.modules), {}
import modeling_lingene
found["package"] = sorted({name.partition(".")[0] for name in set(sys.modules) - known})

from modeling_lingene import cli
for wanted in (None, "info", "evaluate"):
    cli.build_parser(wanted)
found["command line"] = sorted(sys.modules)

import modeling_lingene.hub, modeling_lingene.images.data, modeling_lingene.measuring.metrics
from modeling_lingene.measuring.plots import plot_sizes
found["optional"] = [name for name in OPTIONAL if sys.modules[name] is not None]
del sys.modules["matplotlib"]
plot_sizes(json.loads(sys.argv[1]), sys.argv[2])
found["plotting"] = [name for name in sys.modules if name.startswith("matplotlib")]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Names of modules after each step, in a process in which optional packages cannot be imported until it plots."""
    picture = tmp_path_factory.mktemp("imports") / "sizes.png"
    environment = {**os.environ, "PYTHONPATH": str(Path(modeling_lingene.__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, json.dumps(ROWS), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(picture=picture, after=json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy(loaded):
    """Beyond what transformers' own ViT loads: a command that prints a table must not wait for plotting libraries."""
    brought = set(loaded.after["package"])
    assert "modeling_lingene" in brought and not brought & AT_HOME


def test_importing_the_command_line_imports_no_optional_package(loaded):
    """`lingene info` must work, and start fast, where scikit-learn, matplotlib and datasets are not installed."""
    assert "modeling_lingene.cli" in loaded.after["command line"] and loaded.after["optional"] == []


def test_commands_that_do_not_train_do_not_load_the_options(loaded):
    """They bring the whole of training with them; `lingene info` must start fast."""
    training = {"modeling_lingene.training.options", "modeling_lingene.training.loop"}
    assert not training & set(loaded.after["command line"])


def test_plotting_touches_no_backend_and_no_global_state(loaded):
    """A notebook's backend and open figures are the user's; importing costs no matplotlib."""
    assert "matplotlib.figure" in loaded.after["plotting"] and "matplotlib.pyplot" not in loaded.after["plotting"]
    assert loaded.picture.read_bytes().startswith(b"\x89PNG")
