"""Laws of export: where the file is not the model, or cannot be written whole, there is no folder.

pytest tests/conversion/exporting/test_exports_refused.py
"""

import errno
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from exports import FORMATS, LEAST, lingene, made, needed
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification

import helpers
from helpers import ROWS, files, read
from lingene import telling
from lingene.main import options_of
from modeling_lingene import folders
from modeling_lingene.conversion import export as module
from modeling_lingene.conversion import to_timm
from modeling_lingene.conversion.export import export
from test_writing import error_with_limit


@pytest.mark.parametrize("weights, tolerance, there", [("float32", 1e-12, True), ("float16", 1e-7, False)])
def test_above_the_tolerance_there_is_no_folder(origin, tmp_path, weights, tolerance, there):
    """Nor a hidden one; an empty folder that somebody made stays empty."""
    needed("onnx")
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(RuntimeError, match=f"the tolerance is {tolerance:g}; nothing was written"):
        export(origin.folder, out, "onnx", weights=weights, tolerance=tolerance, **LEAST)
    assert list(tmp_path.rglob("*")) == ([out] if there else [])


def test_a_file_that_gives_no_numbers_is_not_written(tmp_path):
    """Activations beyond float16: the float32 model is fine, the file would answer `nan` to every image."""
    needed("onnx")
    model = helpers.tiny_model(helpers.tiny_config(depth=1, num_components=1))
    with torch.no_grad():
        for component in model.components:
            component.mlp.fc2.weight.mul_(3e6)
    model.save_pretrained(tmp_path / "bundle")
    with pytest.raises(RuntimeError, match="nothing was written"):
        export(tmp_path / "bundle", tmp_path / "out", "onnx", weights="float16")


def test_a_head_that_is_still_zero_is_exported(tmp_path):
    """Many heads begin so; nothing differs from nothing."""
    model = helpers.tiny_model()
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.zero_()
    model.save_pretrained(tmp_path / "bundle")
    assert export(tmp_path / "bundle", tmp_path / "out")["largest_difference"] == 0


SAVES = {
    "transformers": (ViTForImageClassification, "save_pretrained"),
    "timm": (to_timm, "save_file"),
    "onnx": (torch.onnx, "export"),
    "program": (module, "keep_processor"),  # the program itself is written by no function of a library
}


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_without_room_is_told_in_one_line_and_leaves_nothing(origin, tmp_path, to):
    """The libraries' own exceptions name no folder, and torch's writer of programs ends the whole process."""
    needed(to)
    found = error_with_limit(20_000, lambda: export(origin.folder, tmp_path / "out", to, **LEAST))
    assert (found["kind"], found["errno"]) == ("OSError", errno.EFBIG)
    assert found["text"].startswith(f"[Errno {errno.EFBIG}] {tmp_path / 'out'} cannot be written: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("last", [False, True], ids=["after the weights", "after the report"])
@pytest.mark.parametrize("to", FORMATS)
def test_an_interrupted_export_leaves_nothing(origin, tmp_path, monkeypatch, to, last):
    """Ctrl-C once files are there: what is left would look like a model."""
    needed(to)
    owner, name = (module, "write_json") if last else SAVES[to]
    save = getattr(owner, name)

    def interrupted(*inputs, **named):
        save(*inputs, **named)
        assert any(path.is_file() for path in tmp_path.rglob("*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(origin.folder, tmp_path / "out", to, **LEAST)
    assert list(tmp_path.iterdir()) == []


# What is given beside the bundle B, the plain model P and the new folder O, and the name that the message must have.
WRONG = {
    "a format of another name": ("B O tflite", {}, "`to`"),
    "weights of another name": ("B O onnx", {"weights": "int4"}, "`weights`"),
    "half precision for timm": ("B O timm", {"weights": "float16"}, "`weights`"),
    "eight bits for transformers": ("B O transformers", {"weights": "int8"}, "`weights`"),
    "eight bits for a program": ("B O program", {"weights": "int8"}, "`weights`"),
    "half precision for executorch": ("B O executorch", {"weights": "float16"}, "`weights`"),
    "eight bits for openvino": ("B O openvino", {"weights": "int8"}, "`weights`"),
    "no tolerance": ("B O transformers", {"tolerance": 0}, "`tolerance`"),
    "a negative tolerance": ("B O transformers", {"tolerance": -1e-3}, "`tolerance`"),
    "a tolerance that is no number": ("B O transformers", {"tolerance": math.nan}, "`tolerance`"),
    "a folder that holds something": ("B P transformers", {}, "`out`"),
    "a file": ("B P/config.json transformers", {}, "`out`"),
    "a size of a plain model": ("P O transformers", {"depth": 1}, "`depth`"),
    "no bundle": ("/absent/bundle O transformers", {}, "`bundle`"),
    "too many layers of selected ones": ("B O timm", {"depth": 7}, "`depth`"),
    "no layers": ("B O onnx", {"depth": 0}, "`depth`"),
    "too many components": ("B O program", {"num_components": 6}, "`num_components`"),
    "half a head": ("B O transformers", {"width_ratio": "1/3"}, "`width_ratio`"),
    "a width that was never trained": ("B O transformers", {"width_ratio": "1/4"}, "`width_ratio`"),
    "a budget without measured sizes": ("B O transformers", {"max_macs": 1e9}, "`max_macs`"),
    "a size and a budget": ("B O transformers", {"max_macs": 1e9, "depth": 2}, "`max_macs`"),
}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A plain model that is no bundle."""
    helpers.tiny_model().materialise(1).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def placed(words: str, origin: SimpleNamespace, plain: Path, out: Path) -> list[str]:
    places = {"B": origin.folder, "P": plain, "O": out}
    return [re.sub(r"^[BPO](?=/|$)", lambda match: str(places[match[0]]), word) for word in words.split()]


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named_and_nothing_is_written(origin, plain, tmp_path, capsys, case):
    """In Python a ValueError, on the command line status 2 and one line; before anything is written."""
    words, given, named = WRONG[case]
    bundle, out, to = placed(words, origin, plain, tmp_path / "out")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=named):
        export(bundle, out, to, **given)
    flags = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}={value}",)]
    code, printed, errors = lingene(capsys, "export", bundle, "--out", out, "--to", to, *flags)
    assert (code, printed, len(errors)) == (2, "", 1)
    assert errors[0].startswith("lingene export: ")
    assert telling.in_flags(named, telling.flags_of(options_of("export"))) in errors[0]
    assert files(tmp_path) == before and {path.name for path in tmp_path.iterdir()} == {"plain"}


@pytest.mark.parametrize("lacking", ["classifier.weight", "vit.layernorm.bias"])
def test_a_plain_model_that_lacks_tensors_is_refused(plain, tmp_path, lacking):
    """transformers puts random numbers in their place, and says so in a warning alone."""
    held = load_file(plain / "model.safetensors")
    save_file({key: held[key] for key in held if key != lacking}, plain / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{plain} has no trained {re.escape(lacking)}: give"):
        export(plain, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"plain"}


def test_a_budget_chooses_the_size(tmp_path):
    """The most accurate measured one within it, as in `from_pretrained`."""
    made(tmp_path / "bundle")
    folders.write_sizes(tmp_path / "bundle", ROWS)
    report = export(tmp_path / "bundle", tmp_path / "out", max_macs=5e6)
    assert report["size"] == {"depth": 1, "width_ratio": "1", "num_components": 5}
    assert read(tmp_path / "out" / "config.json")["num_hidden_layers"] == 1


def test_a_width_that_was_never_trained_may_be_insisted_on(origin, tmp_path):
    """As an initialisation."""
    report = export(origin.folder, tmp_path / "out", width_ratio="1/4", allow_untrained=True, **LEAST)
    assert report["size"]["width_ratio"] == "1/4" and read(tmp_path / "out" / "config.json")["hidden_size"] == 12


def test_an_activation_that_timm_does_not_have_is_refused(tmp_path):
    """Another one in its place would be nearly right."""
    needed("timm")
    helpers.bundle(tmp_path / "bundle", helpers.tiny_config(hidden_act="gelu_new"))
    with pytest.raises(ValueError, match="`hidden_act` gelu_new"):
        export(tmp_path / "bundle", tmp_path / "out", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
