"""Laws of what runs on devices: their own runtimes give the logits of the size, and one JSON tells how to feed them.

Against numpy's recomposition, transformers' and PIL's own results; every parameter changed by noise. Where a runtime
is missing its tests are skipped; `pip install executorch openvino`, and `-m "slow or not slow"` runs all families.

    pytest tests/conversion/test_devices.py
"""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from converting import relative
from exports import FORMATS as PLAIN_FORMATS
from exports import LABELS, MEAN, SHAPE, STD, made, picture
from pruning_helpers import mixed_config, network
from transformers import AutoModel, AutoModelForImageClassification, BitImageProcessorPil

import helpers
from helpers import read
from modeling_lingene import LinGeneModel, cli
from modeling_lingene.conversion import export as module
from modeling_lingene.conversion.devices import preprocessing
from modeling_lingene.conversion.export import FORMATS, export, load_code
from modeling_lingene.measuring.metrics import height_and_width
from test_writing import error_with_limit


SIZE = {"depth": 2, "width_ratio": "1/2", "num_components": 2}
DEVICES = {"executorch": ["float32"], "openvino": ["float32", "float16"]}
LIMITS = {"float32": 1e-5, "float16": 5e-3}
REGISTERS = {"family": "dinov2_with_registers", "num_register_tokens": 2}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The bundle that most tests export; read only."""
    return made(tmp_path_factory.mktemp("origin") / "bundle", **SHAPE)


def needed(to: str) -> None:
    """Skips where a runtime is missing."""
    pytest.importorskip(to, reason=f'needs {to} of `pip install "modeling_lingene[{to}]"`')


def loaded(folder: Path):
    """Images to outputs as a stranger would, by what `export.json` says alone."""
    report = read(folder / "export.json")
    names = {}
    exec(load_code(report, folder), names)
    if report["format"] == "openvino":
        compiled = names["model"]
        return lambda values: torch.from_numpy(compiled({"pixel_values": values.numpy()})[report["output"]].copy())
    method = names["model"]
    return lambda values: torch.cat([method.execute([image])[0].clone() for image in values.split(1)])


def test_every_format_is_tested_here_or_in_exporting():
    """A row that is added to the table without a test would be a promise."""
    assert {*PLAIN_FORMATS, *DEVICES} == FORMATS.keys()
    assert all(list(FORMATS[to].weights) == weights for to, weights in DEVICES.items())


@pytest.mark.parametrize("to", DEVICES)
@torch.no_grad()
def test_a_device_file_gives_the_logits_of_the_size_that_was_asked_for(origin, tmp_path, to):
    """As numpy recomposes it, for one image and for five, in the file's own runtime."""
    needed(to)
    report = export(origin.folder, tmp_path / "out", to, **SIZE)
    assert report["size"] == SIZE and report["output"] == "logits"
    model, reference = loaded(tmp_path / "out"), helpers.reference_vit(origin.model, *SIZE.values())
    for batch in (1, 5):
        values = helpers.images(batch, seed=batch)
        assert relative(model(values), reference(values).logits) < 1e-5
    told = read(tmp_path / "out" / "preprocessing.json")
    assert told["class_names"] == list(LABELS.values()) and told["mean"] == MEAN and told["std"] == STD
    assert told["input"]["shape"] == [1 if to == "executorch" else None, 3, 16, 16]
    if to == "executorch":  # or the file would be right, and slow
        assert report["backend"] == "XNNPACK" and not {"mm", "bmm", "addmm"} & report["outside_backend"].keys()


CASES = [(to, weights) for to, kinds in DEVICES.items() for weights in kinds]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"family": "dinov2"}, REGISTERS], ids=["vit", "dinov2", "registers"])
@pytest.mark.parametrize("to, weights", CASES)
@torch.no_grad()
def test_every_family_in_every_device_format_and_weights(tmp_path, fields, to, weights):
    """Against stock models; where a family interpolates OpenVINO takes images of other sizes, ExecuTorch its own."""
    needed(to)
    folder = made(tmp_path / "bundle", depth=2, num_components=2, **fields).folder
    export(folder, tmp_path / "out", to, weights=weights, **SIZE)
    stock = AutoModelForImageClassification.from_pretrained(folder, **SIZE).eval()
    model = loaded(tmp_path / "out")
    sizes = [(16, 16), *([(8, 12), (24, 16)] if fields and to == "openvino" else [])]
    for batch, (height, width) in enumerate(sizes, start=2):
        values = helpers.images(batch, height, width)
        found = model(values)
        assert found.dtype == torch.float32 and relative(found, stock(values).logits) < LIMITS[weights]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"family": "dinov3_vit", "num_register_tokens": 2}], ids=["vit", "dinov3"])
@pytest.mark.parametrize("to", DEVICES)
@torch.no_grad()
def test_without_a_classifier_a_device_file_gives_the_normed_tokens(tmp_path, to, fields):
    """Those of the stock model, all of them and not the class token alone; no class is named."""
    needed(to)
    headless = made(tmp_path / "bundle", LinGeneModel, **SHAPE, **fields)
    export(headless.folder, tmp_path / "out", to, **SIZE)
    stock = AutoModel.from_pretrained(headless.folder, **SIZE).eval()
    model = loaded(tmp_path / "out")
    sizes = [(16, 16), *([(8, 12), (24, 16)] if fields and to == "openvino" else [])]
    for batch, (height, width) in enumerate(sizes, start=2):
        values = helpers.images(batch, height, width)
        assert relative(model(values), stock(values).last_hidden_state) < 1e-5
    told = read(tmp_path / "out" / "preprocessing.json")
    assert told["output"] == "last_hidden_state" and told["class_names"] == []


@pytest.mark.slow
@pytest.mark.parametrize("to", DEVICES)
@torch.no_grad()
def test_a_pruned_model_goes_to_devices_too(tmp_path, to):
    """Convolutions in place of attention, MLPs of other widths."""
    needed(to)
    model = network(mixed_config()).eval()
    model.save_pretrained(tmp_path / "pruned")
    export(tmp_path / "pruned", tmp_path / "out", to)
    height, width = height_and_width(model.config)
    values = helpers.images(3, height, width)
    assert relative(loaded(tmp_path / "out")(values), model(values).logits) < 1e-5


def fed(picture, told: dict) -> numpy.ndarray:
    """(3, h, w) of a picture by `preprocessing.json` alone, with PIL and numpy, as a program on a device would."""
    from PIL import Image

    picture = picture.convert(told["channel_order"])
    if told["resize"]:
        resampling = Image.Resampling[told["resize"]["interpolation"].upper()]
        width, height = picture.size
        edge = told["resize"].get("shortest_edge")
        if edge:
            scale = edge / min(width, height)
            width, height = int(width * scale), int(height * scale)
        else:
            width, height = told["resize"]["width"], told["resize"]["height"]
        picture = picture.resize((width, height), resampling)
    if told["center_crop"]:
        down, across = told["center_crop"]["height"], told["center_crop"]["width"]
        left, top = (picture.width - across) // 2, (picture.height - down) // 2
        picture = picture.crop((left, top, left + across, top + down))
    pixels = numpy.asarray(picture, dtype=numpy.float64)
    pixels = pixels * (1 if told["rescale"] is None else told["rescale"])
    if told["mean"]:
        pixels = (pixels - told["mean"]) / told["std"]
    return pixels.transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["squashed", "cropped", "as it is"])
def test_the_json_alone_feeds_a_picture_as_transformers_does(origin, kind):
    """A program on a phone has no transformers; a step that is guessed is an image that the model never saw."""
    processor = origin.processor
    if kind != "squashed":
        steps = {"do_resize": kind == "cropped", "do_normalize": kind == "cropped"}
        size = {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}, "resample": 3}
        processor = BitImageProcessorPil(**size, **steps, image_mean=MEAN, image_std=STD)
    told = preprocessing(origin.model.materialise(1), processor, 1)
    expected = processor(picture(), return_tensors="np")["pixel_values"][0]
    assert (told["center_crop"] is None) == (kind == "squashed") and (told["mean"] is None) == (kind == "as it is")
    assert numpy.abs(fed(picture(), told) - expected).max() < 1e-5


def test_a_bundle_without_preprocessing_has_none_in_the_json(origin):
    """Nothing is invented; what goes in and what comes out is of the model."""
    told = preprocessing(origin.model.materialise(1), None, None)
    assert not told.keys() & {"resize", "center_crop", "rescale", "mean", "std"}
    assert told["input"]["shape"] == [None, 3, 16, 16] and len(told["class_names"]) == 7


@pytest.mark.parametrize("to", DEVICES)
def test_a_missing_runtime_is_named_before_any_work(bundle, tmp_path, monkeypatch, capsys, to):
    """Reading and tracing a large model first would waste minutes; one line says what to install."""
    monkeypatch.setitem(sys.modules, to, None)
    monkeypatch.setattr(module, "_sized", lambda *given: pytest.fail("the bundle was read"))
    with pytest.raises(ImportError, match=rf'^{to} is needed here: pip install "modeling_lingene\[{to}\]"$'):
        export(bundle, tmp_path / "out", to)
    assert cli.main(["export", str(bundle), "--to", to, "--out", str(tmp_path / "out")]) != 0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and f'pip install "modeling_lingene[{to}]"' in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["openvino"])
def test_a_device_export_without_room_leaves_nothing(origin, tmp_path, to):
    """The library's own exception is of another kind and names no folder."""
    needed(to)
    found = error_with_limit(20_000, lambda: export(origin.folder, tmp_path / "out", to, depth=1, num_components=1))
    assert (found["kind"], found["errno"]) == ("OSError", errno.EFBIG)
    assert list(tmp_path.iterdir()) == []
