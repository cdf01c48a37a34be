"""What the package brings into a process, in one new one for all tests: importing transformers alone takes seconds.

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
from helpers import ROWS
from test_structure import AT_HOME


PROGRAM = """
import json, os, sys, time
OPTIONAL = ("sklearn", "matplotlib", "datasets")
for name in OPTIONAL:
    sys.modules[name] = None
import huggingface_hub, safetensors.torch, torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedModel, initialization
from transformers import ViTConfig, ViTForImageClassification, ViTModel

known, found = set(sys.modules), {}
import modeling_lingene
found["package"] = sorted({name.partition(".")[0] for name in set(sys.modules) - known})

from modeling_lingene import bundle_lingene
parts = [torch.empty(3072, 768) for _ in range(12)]
for tensor in parts:
    for row in tensor:
        row.zero_()
if os.path.isdir("/proc/self/task"):
    before = len(os.listdir("/proc/self/task"))
    layers, pieces = bundle_lingene.combining(parts, torch.ones(12, 12, dtype=torch.float64), torch.float32)
    assert all(finite for _, finite in bundle_lingene.in_threads([("name", piece) for piece in pieces]))
    for _ in range(100):  # one that has ended may be seen for a moment
        found["more threads"] = len(os.listdir("/proc/self/task")) - before
        time.sleep(0.02 if found["more threads"] else 0)
del parts

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
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "PYTHONPATH": str(Path(modeling_lingene.__file__).parents[1])}
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


def test_no_operation_of_a_load_is_divided_among_threads(loaded):
    """Each of thousands would wait for its slowest thread: with one busy process beside it, a load took seconds.

    A process whose operations were all small enough to stay on one thread never starts those that torch divides work
    among; the threads that combine pieces are gone when the load is done.
    """
    if "more threads" not in loaded.after:
        pytest.skip("needs /proc to count threads")
    assert loaded.after["more threads"] == 0
