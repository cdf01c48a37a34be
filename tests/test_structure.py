"""Laws of the package's structure, read from the syntax trees: who may import whom, and what travels to the Hub.

transformers copies the files of a model one by one, finding them by a regular expression on their text, and demands
every other import of the user's machine.
"""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

import modeling_lingene


PACKAGE = Path(modeling_lingene.__file__).parent
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}
CONVERSION = Path(importlib.import_module("modeling_lingene.conversion").__file__).parent
TRAVELLING = [name for name in MODULES if name.endswith("_lingene")]
RANKS = {
    "recompose": 0,
    "configuration": 1,
    "vit": 2,
    "budget": 2,
    "bundle": 3,
    "saving": 4,
    "components": 4,
    "loading": 5,
    "modeling": 6,
    "data": 7,
    "losses": 7,
    "metrics": 8,
    "augmentation": 8,
    "checkpoints": 8,
    "loaders": 9,
    "streams": 10,
    "teachers": 10,
    "training": 10,
    "elastic": 11,
    "decomposition": 12,
    "plots": 11,
    "hub": 11,
    "sweep": 12,
    "warm_start": 13,
    "recipes": 14,
    "options": 15,
    "conversion": 15,  # the folder
    "cli": 16,
}
ON_THE_HUB = {"torch", "transformers", "safetensors", "huggingface_hub"}
AT_HOME = {"matplotlib", "sklearn", "datasets", "PIL", "torchvision", "timm", "accelerate", "torchmetrics", "pandas"}
AT_HOME |= {"scipy", "onnx", "onnxruntime", "onnxscript", "gradio", "tensorboard", "pytorch_grad_cam", "tqdm"}


def rank(name):
    return RANKS[name.removesuffix("_lingene")]


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def absolute_imports(nodes):
    """Top-level names of the packages that some statements import by an absolute name."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def imported_modules(nodes):
    """Modules of this package that some statements import, by relative or absolute name."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("modeling_lingene"):
            names |= {node.module.partition(".")[2]} - {""} or {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("modeling_lingene.")
            }
    return {name.partition(".")[0] for name in names}


def test_every_module_has_a_rank():
    """A module without one would escape the next law."""
    assert {name.removesuffix("_lingene") for name in MODULES} <= RANKS.keys()
    assert len(TRAVELLING) >= 6


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_lower_ranks_only(name):
    """No cycles, and pure functions never depend on what calls them; imports inside functions count too."""
    for other in imported_modules(ast.walk(tree(MODULES[name]))):
        assert other in {*MODULES, "conversion"}, (
            f"{name} imports {other} from the package itself, or a module that does not exist"
        )
        assert rank(other) < rank(name), f"{name} imports {other}"


@pytest.mark.parametrize("path", sorted(CONVERSION.glob("*.py")), ids=lambda path: path.stem)
def test_conversion_imports_lower_ranks_only(path):
    """It stands beside the recipes: what it shares with them lies below both."""
    nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
    for node in nodes:
        if node.level == 2:
            assert node.module in MODULES and rank(node.module) < RANKS["conversion"] - 1, ast.unparse(node)
        elif node.level == 1:
            assert (CONVERSION / f"{node.module}.py").is_file(), ast.unparse(node)
        else:
            assert not node.module.startswith("modeling_lingene"), ast.unparse(node)


@pytest.mark.parametrize("name", TRAVELLING)
def test_travelling_files_import_little(name):
    """Each import anywhere in them is demanded of whoever loads a bundle with `trust_remote_code`."""
    path = MODULES[name]
    found = absolute_imports(ast.walk(tree(path)))
    assert found - set(sys.stdlib_module_names) <= ON_THE_HUB
    assert set(get_imports(path)) - set(sys.stdlib_module_names) <= ON_THE_HUB
    assert "modeling_lingene" not in found


@pytest.mark.parametrize("name", TRAVELLING)
def test_travelling_files_import_each_other_in_the_form_that_is_found(name):
    """Only `from .name import X` is copied; an example of it in a docstring counts as an import."""
    relative = [node for node in ast.walk(tree(MODULES[name])) if isinstance(node, ast.ImportFrom) and node.level]
    for node in relative:
        assert node.level == 1 and node.module in TRAVELLING, f"line {node.lineno}: {ast.unparse(node)}"
    assert set(get_relative_imports(MODULES[name])) == {node.module for node in relative}


def test_the_travelling_files_are_those_that_get_copied():
    """From the file with the models transformers must reach every other one, and nothing that stays at home."""
    found = {Path(path).stem for path in get_relative_import_files(MODULES["modeling_lingene"])}
    assert found == set(TRAVELLING) - {"modeling_lingene"}


def test_only_plots_imports_matplotlib():
    """Everything else works without it, and on machines without a display."""
    users = {name for name, path in MODULES.items() if "matplotlib" in absolute_imports(ast.walk(tree(path)))}
    assert users <= {"plots"}


def test_what_the_package_imports_needs_no_extras():
    """Module-level imports of everything that `import modeling_lingene` runs: the core requirements only."""
    reached, todo = set(), imported_modules(tree(PACKAGE / "__init__.py").body)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo |= imported_modules(tree(MODULES[name]).body)
    assert {"modeling_lingene", "recompose_lingene"} <= reached
    for name in reached:
        found = absolute_imports(tree(MODULES[name]).body)
        assert found - set(sys.stdlib_module_names) - {"modeling_lingene"} <= ON_THE_HUB, name


def test_importing_the_package_loads_nothing_heavy():
    """Beyond what transformers' own ViT loads: a command that prints a table must not wait for plotting libraries."""
    program = """
import sys
import huggingface_hub, safetensors.torch, torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedModel, initialization
from transformers import ViTConfig, ViTForImageClassification, ViTModel
before = set(sys.modules)
import modeling_lingene
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    loaded = set(run.stdout.split())
    assert "modeling_lingene" in loaded and not loaded & AT_HOME
