"""Laws of the package's structure, read from the syntax trees: who may import whom, and what travels to the Hub.

transformers copies the files of a model one by one, finding them by a regular expression on their text, and demands
every other import of the user's machine.
"""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

import modeling_lingene
from lingene.commands import COMMANDS


PACKAGE = Path(modeling_lingene.__file__).parent
CONVERSION = Path(importlib.import_module("modeling_lingene.conversion").__file__).parent
PROGRAM = Path(importlib.util.find_spec("lingene").origin).parent  # a package of its own, in the package's folder
# Every module by its dotted name in the package; conversion/ lies elsewhere in a checkout.
MODULES = {
    ".".join(path.relative_to(folder).with_suffix("").parts): path
    for folder in (PACKAGE, CONVERSION.parent)
    for path in sorted(folder.rglob("*.py"))
    if path.stem != "__init__" and path.parent != PROGRAM and (folder == PACKAGE or path.parent == CONVERSION)
}
TRAVELLING = [name for name in MODULES if name.endswith("_lingene")]  # with every bundle
PRUNED = (
    "lingene_pruned",
    "lingene_vit",
    "lingene_swin",
)  # travel with what `lingene prune` writes, some of them along
# From what everything stands on to what stands on everything; a line is a floor, its modules in their order.
FLOORS = """
writing_lingene recompose_lingene reading_lingene families_lingene beside_lingene  translating_lingene
    configuration_base_lingene
    configuration_lingene configuration_swin_lingene vit_lingene budget_lingene identity_lingene
    bundle_lingene components_lingene swin_lingene  saving_lingene
    loading_lingene  modeling_base_lingene  modeling_lingene modeling_swin_lingene lingene_pruned
    lingene_vit lingene_swin
kinds extras  found  readout  folders progress
images.decoding images.class_folders  images.data  images.contents  images.batches  images.augmentation images.classes
    images.pictures
    images.loaders  images.streams
measuring.tables measuring.grids measuring.drawing measuring.features measuring.judging  measuring.plots
    measuring.merging  measuring.curves  measuring.metrics
    measuring.yardsticks  measuring.encoders measuring.exported  measuring.evaluation  measuring.profiling
    measuring.sweep
markdown citations readme kept  card  hub  zoo
conversion.sources conversion.any_size  conversion.moments
    conversion.calibration conversion.alignment conversion.closed_form conversion.from_transformers
    conversion.timm_swin  conversion.timm_vit  conversion.timm_dinov3
    conversion.from_timm conversion.fitting conversion.report conversion.ordering
    conversion.matching conversion.rotation conversion.graphs conversion.onnx_files
    conversion.devices
    conversion.calibrated conversion.timm_words
    conversion.to_timm
    conversion.export conversion.convert
training.losses training.checkpoints training.teachers training.validation training.steps  training.processes
    training.loop training.elastic
    training.features training.encoders  training.decomposition training.teacher_cache  training.settings
    training.warm_start training.record training.named  training.asked training.summary
    training.unlabelled  training.recipes  training.options
analysis.figures  analysis.trend analysis.coefficients analysis.similarity analysis.components
app.cache  app.sizes  app.looking  app.views  app.page
pruning.settings  pruning.picture  pruning.costs pruning.gates pruning.mixing pruning.card pruning.compare
    pruning.record  pruning.choose  pruning.search pruning.importance pruning.write
    pruning.prepare  pruning.report  pruning.prune  pruning.options
commands.asked commands.shown
    commands.training commands.making commands.measuring commands.analysis commands.publishing
cli
"""
# Two spaces or a new line: a step up; modules that one space parts do not know each other.
STEPS = [step.split() for step in re.split(r"\n\s*|  +", FLOORS.strip())]
RANKS = {name: rank for rank, step in enumerate(STEPS) for name in step}
ON_THE_HUB = {"torch", "transformers", "safetensors", "huggingface_hub", "numpy"}  # the last: transformers needs it
AT_HOME = {"matplotlib", "sklearn", "datasets", "PIL", "torchvision", "timm", "accelerate", "torchmetrics", "pandas"}
AT_HOME |= {"scipy", "onnx", "onnxruntime", "onnxscript", "gradio", "tensorboard", "pytorch_grad_cam", "tqdm"}
AT_HOME |= {"executorch", "openvino"}


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


def imported_modules(nodes, inside=""):
    """Dotted names of this package's modules that some statements import, by relative or absolute name.

    Args:
        inside: the folder that the statements stand in, as a dotted name; "" is the package itself.
    """
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            package = f"modeling_lingene.{inside}".rstrip(".")
            whole = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found = [whole, *(f"{whole}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            continue
        found = [name.removeprefix("modeling_lingene.") for name in found if name.startswith("modeling_lingene.")]
        known = [name for name in found if name in MODULES]
        assert known or not found, f"{ast.unparse(node)} imports from the package itself, or what does not exist"
        names |= set(known)
    return names


def imports_of(name, statements=ast.walk):
    return imported_modules(statements(tree(MODULES[name])), name.rpartition(".")[0])


def test_every_module_has_a_rank():
    """A module without one would escape the next law, and a rank without a module is of a file that is gone."""
    assert MODULES.keys() == RANKS.keys()
    assert len(TRAVELLING) >= 6


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_lower_ranks_only(name):
    """No cycles, and pure functions never depend on what calls them; imports inside functions count too."""
    for other in imports_of(name):
        assert RANKS[other] < RANKS[name], f"{name} imports {other}"


def test_rooms_know_the_floors_below_them_only():
    """Images are read without measuring, sizes measured without training; training knows no conversion."""
    rooms = {"images": set(), "measuring": {"images"}, "training": {"images", "measuring"}}
    rooms["conversion"] = {"images", "measuring"}
    rooms["analysis"] = rooms["app"] = {"images", "measuring"}
    rooms["pruning"] = {"images", "measuring", "training", "conversion"}
    for name in MODULES:
        room = name.rpartition(".")[0]
        known = {other.rpartition(".")[0] for other in imports_of(name)} - {room, ""}
        everywhere = name == "cli" or room == "commands"
        assert everywhere or known <= rooms.get(room, {"measuring"}), f"{name} imports from {known}"
    assert {name.rpartition(".")[0] for name in MODULES} == {"", "commands", *rooms}


def test_an_import_is_found_in_every_form():
    """What the laws above rest on, by hand."""
    forms = {"from .tables import readable": "measuring.tables", "from ..hub import push": "hub"}
    forms |= {"from modeling_lingene.measuring import sweep": "measuring.sweep"}
    forms |= {"import modeling_lingene.images.data": "images.data", "from .. import hub": "hub", "import os": None}
    for statement, module in forms.items():
        assert imported_modules(ast.parse(statement).body, "measuring") == ({module} if module else set()), statement
    assert imported_modules(ast.parse("from .images.data import load_images").body) == {"images.data"}
    with pytest.raises(AssertionError, match="does not exist"):
        imported_modules(ast.parse("from .metrics import accuracy").body)


@pytest.mark.parametrize("name", [*TRAVELLING, *PRUNED])
def test_travelling_files_import_little(name):
    """Each import anywhere in them is demanded of whoever loads a bundle with `trust_remote_code`."""
    path = MODULES[name]
    found = absolute_imports(ast.walk(tree(path)))
    assert found - set(sys.stdlib_module_names) <= ON_THE_HUB
    assert set(get_imports(path)) - set(sys.stdlib_module_names) <= ON_THE_HUB
    assert "modeling_lingene" not in found


@pytest.mark.parametrize("name", [*TRAVELLING, *PRUNED])
def test_travelling_files_import_each_other_in_the_form_that_is_found(name):
    """Only `from .name import X` is copied; an example of it in a docstring counts as an import."""
    relative = [node for node in ast.walk(tree(MODULES[name])) if isinstance(node, ast.ImportFrom) and node.level]
    for node in relative:
        assert node.level == 1 and node.module in (*TRAVELLING, *PRUNED), f"line {node.lineno}: {ast.unparse(node)}"
    assert set(get_relative_imports(MODULES[name])) == {node.module for node in relative}


def test_the_travelling_files_are_those_that_get_copied():
    """From the files with the models transformers must reach every other one, and nothing that stays at home."""
    kinds = ("modeling_lingene", "modeling_swin_lingene")
    reached = {name: {Path(path).stem for path in get_relative_import_files(MODULES[name])} for name in kinds}
    assert set.union(*reached.values()) | set(kinds) == set(TRAVELLING)
    assert not any("swin" in name for name in reached["modeling_lingene"])  # a plain ViT takes no other network along
    pruned = {name: {Path(path).stem for path in get_relative_import_files(MODULES[name])} for name in PRUNED}
    assert all(names < {*TRAVELLING, PRUNED[0]} for names in pruned.values())
    assert not any("swin" in name for name in pruned["lingene_vit"])


def test_the_command_line_imports_the_standard_library_alone():
    """`lingene --help`, `--version` and a typo cost a tenth of a second, not the eight that torch takes."""
    for path in PROGRAM.glob("*.py"):
        assert absolute_imports(tree(path).body) <= set(sys.stdlib_module_names), path.name
        assert absolute_imports(ast.walk(tree(path))) <= {*sys.stdlib_module_names, "safetensors"}, path.name
    assert len(list(PROGRAM.glob("*.py"))) == 6


def test_every_command_names_a_function_of_the_package_and_none_is_left_over():
    """A name in quotes is found by no linter."""
    places = {tuple(command.run.split(":")) for command in COMMANDS.values()}
    prefix = "modeling_lingene."
    rooms = {name: tree(path) for name, path in MODULES.items() if name.startswith("commands.")}
    found = {(prefix + name, node.name) for name, room in rooms.items() for node in room.body if hasattr(node, "name")}
    helping = {f"{prefix}commands.{name}" for name in ("asked", "shown")}
    found = {(module, name) for module, name in found if module not in helping}
    assert {(module, name) for module, name in found if not name.startswith("_")} == places


def test_only_what_draws_imports_matplotlib():
    """Everything else works without it, and on machines without a display."""
    users = {name for name, path in MODULES.items() if "matplotlib" in absolute_imports(ast.walk(tree(path)))}
    assert users == {"measuring.drawing", "measuring.plots"}


def test_only_progress_imports_tqdm():
    """A bar that is made elsewhere would fill a file with a line per step, and not know of `--quiet`."""
    users = {name for name, path in MODULES.items() if "tqdm" in absolute_imports(ast.walk(tree(path)))}
    assert users == {"progress"}


def test_what_the_package_imports_needs_no_extras():
    """Module-level imports of everything that `import modeling_lingene` runs: the core requirements only."""
    reached, todo = set(), imported_modules(tree(PACKAGE / "__init__.py").body)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo |= imports_of(name, lambda module: module.body)
    assert {"modeling_lingene", "recompose_lingene"} <= reached
    for name in reached:
        found = absolute_imports(tree(MODULES[name]).body)
        assert found - set(sys.stdlib_module_names) - {"modeling_lingene"} <= ON_THE_HUB, name
