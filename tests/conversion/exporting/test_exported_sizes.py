"""Laws of the size of images: what is exported takes what the preprocessing beside it makes, and says so.

Of families whose preprocessing, and not their configuration, decides how large images are. Against the models loaded
directly, and torch's counter of what they do.

    pytest tests/conversion/exporting/test_exported_sizes.py
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from converting import relative
from exports import FORMATS, loaded, made, needed, picture, session
from pruning_helpers import network, swin_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForImageClassification

import helpers
from helpers import read
from modeling_lingene import LinGeneModel
from modeling_lingene.conversion import devices
from modeling_lingene.conversion.devices import preprocessing
from modeling_lingene.conversion.export import export
from modeling_lingene.images.batches import image_processor, made_size
from modeling_lingene.measuring.evaluation import evaluate_model
from modeling_lingene.measuring.exported import evaluate_exported


SIDES = {"dinov2, fewer": 8, "dinov2, more": 24, "swin": 32, "pruned swin": 48}  # 16 by the configurations, 24 x 28


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Of each, a folder whose preprocessing makes images of another size than its configuration says; read only."""
    found = {kind: tmp_path_factory.mktemp("sizes") / kind for kind in SIDES}
    for kind, side in SIDES.items():
        if kind.startswith("dinov2"):
            made(found[kind], family="dinov2", depth=2, num_components=2)
        else:
            (helpers.tiny_swin(num_labels=7) if kind == "swin" else network(swin_config())).save_pretrained(
                found[kind]
            )
        image_processor(side).save_pretrained(found[kind])
    return found


def stock(folder: Path):
    return AutoModelForImageClassification.from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def products(folder: Path, side: int) -> int:
    """Multiply-accumulates of one image of so many pixels a side."""
    model = stock(folder)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("kind", SIDES)
@torch.no_grad()
def test_a_file_takes_what_the_preprocessing_makes_and_tells_what_that_costs(folders, tmp_path, kind, to):
    """It was traced at the size of the configuration, and its MACs told at that of the preprocessing."""
    needed(to)
    if to == "timm" and kind != "swin":
        return  # nothing pruned, and no such head
    side = SIDES[kind]
    report = export(folders[kind], tmp_path / "out", to)
    values = image_processor(side)([picture()] * 2, return_tensors="pt")["pixel_values"]
    assert values.shape[2:] == (side, side)
    assert relative(loaded(tmp_path / "out")(values), stock(folders[kind])(values).logits) < 1e-5
    assert report["macs"] == products(folders[kind], side)
    if to == "timm":
        assert read(tmp_path / "out" / "export.json")["arguments"]["img_size"] == side
    if to == "onnx":
        opened, given, _ = session(tmp_path / "out")
        assert given.shape[2:] == ([side, side] if "swin" in kind else ["height", "width"])
        told = json.loads(opened.get_modelmeta().custom_metadata_map["preprocessing"])
        assert told["input"]["shape"] == [None, 3, side, side]
        assert (told["resize"]["height"], told["resize"]["width"]) == (side, side)


def test_the_macs_of_timms_dinov2_are_of_the_one_size_that_it_has(tmp_path):
    """timm interpolates positions by averages, stock DINOv2 does not."""
    needed("timm")
    folder = made(tmp_path / "bundle", LinGeneModel, family="dinov2", depth=2, num_components=2).folder
    image_processor(8).save_pretrained(folder)
    report = export(folder, tmp_path / "out", "timm")
    assert report["arguments"]["img_size"] == 16
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))
    assert report["macs"] == counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", SIDES)
def test_the_exported_file_is_measured_on_its_own_pictures(folders, tmp_path, kind):
    """onnxruntime refused them in its own words; and the same MACs stand in both rows."""
    needed("onnx")
    export(folders[kind], tmp_path / "out", "onnx")
    images = helpers.pictures(14)
    row = evaluate_exported(tmp_path / "out", images, relabel=True)
    own = evaluate_model(folders[kind], {}, images, device="cpu", relabel=True)
    assert (row["accuracy"], row["macs"], row["images"]) == (own["accuracy"], own["macs"], 14)
    assert own["macs"] == products(folders[kind], SIDES[kind])


class Traced(Exception):
    """Once the size of the example is known."""


@pytest.mark.parametrize("kind", SIDES)
def test_what_is_prepared_for_devices_is_of_that_size_too(folders, tmp_path, monkeypatch, kind):
    """Their runtimes are large: what they are given is looked at, before they have it."""
    side, seen = SIDES[kind], []

    def traced(model, inputs, **_):
        seen.append(inputs[0].shape)
        raise Traced

    monkeypatch.setattr(torch.export, "export", traced)
    library = SimpleNamespace(Runtime=SimpleNamespace(get=lambda: None), convert_model=None)
    monkeypatch.setattr(devices, "require", lambda *_: library)
    monkeypatch.setattr("modeling_lingene.conversion.export.require", lambda *_: None)
    for to in ("executorch", "openvino"):
        with pytest.raises(Traced):
            export(folders[kind], tmp_path / to, to)
    assert seen[0] == (1, 3, side, side)
    assert "dinov2" in kind or seen[1] == (2, 3, side, side)
    told = preprocessing(stock(folders[kind]), image_processor(side), 1)
    assert told["input"]["shape"] == [1, 3, side, side] and told["resize"]["height"] == side


@pytest.mark.parametrize("to", ["onnx", "program"])
def test_a_graph_that_its_own_preprocessing_does_not_fit_is_refused(tmp_path, to):
    """A ViT takes the images of its configuration alone."""
    folder = made(tmp_path / "bundle", depth=1, num_components=1).folder
    image_processor(32).save_pretrained(folder)
    with pytest.raises(ValueError, match="`bundle` .* makes images of 32x32, and its model takes 16x16 alone; set"):
        export(folder, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_a_file_of_before_is_refused_by_its_size(folders, tmp_path):
    """And not in onnxruntime's words."""
    needed("onnx")
    export(folders["swin"], tmp_path / "out", "onnx")
    image_processor(16).save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="`model` .* takes images of 32x32, and its preprocessing makes 16x16"):
        evaluate_exported(tmp_path / "out", helpers.pictures(14), relabel=True)


def test_pictures_that_are_not_resized_are_of_no_one_size():
    """What `size` says is not done then."""
    said = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 8, "width": 8}}
    assert made_size(said | {"do_resize": True}) == (32, 32)
    assert made_size(said | {"do_resize": False}) is None
    assert made_size(said | {"do_resize": False, "do_center_crop": True}) == (8, 8)
