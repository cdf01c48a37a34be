"""Laws of export and calibration where a family takes images of any size: at sizes that are not the grid's.

Against torch's own interpolation, stock models, timm and onnxruntime; every parameter changed.

    pytest tests/conversion/test_any_size.py
"""

import json

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModel, BitImageProcessor, ViTImageProcessor

from modeling_lingene.conversion.any_size import any_size, one_size, resize_matrix
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from modeling_lingene.families_lingene import FAMILIES, stock_class
from test_families import DINO, DINOV2, IMAGE_SIZES, far, pixels, saved, stock


TIMM_EPS = dict(layer_norm_eps=1e-6)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """By family and kind: the stock model and the bundle made of it; read only."""
    folder, made = tmp_path_factory.mktemp("sizes"), {}

    def give(family: str, kind: str = "encoder"):
        if (family, kind) not in made:
            layers = 2 if kind == "classifier" else 4  # which are traced, for seconds
            place = folder / f"{family}-{kind}"
            model = stock(family, kind, num_hidden_layers=layers, **TIMM_EPS)
            processor = BitImageProcessor(size={"shortest_edge": 35}, crop_size={"height": 28, "width": 28})
            processor.save_pretrained(saved(model, place / "source"))
            convert(str(place / "source"), place / "bundle")
            made[family, kind] = (model, place / "bundle")
        return made[family, kind]

    return give


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("old, new", [(6, 6), (6, 4), (6, 17), (37, 16), (37, 9), (3, 1), (1, 5), (10, 7)])
def test_a_resize_is_a_product(old, new, antialias):
    """Torch's kernels, borders and averages, to the rounding of float32."""
    values = torch.randn(1, 1, old, old + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = functional.interpolate(values, size=(new, new + 2), mode="bicubic", antialias=antialias)[0, 0]
    down, across = resize_matrix(old, new, antialias).double(), resize_matrix(old + 1, new + 2, antialias).double()
    assert (down @ values[0, 0] @ across.T - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", DINOV2)
@torch.no_grad()
def test_the_model_is_itself_afterwards(family):
    """An export must not change what it exports, nor leave its way of interpolating behind."""
    model = stock(family)
    own = model.embeddings.interpolate_pos_encoding
    with any_size(model):
        inside = model(pixels((28, 35))).last_hidden_state
        assert model.embeddings.interpolate_pos_encoding != own
    assert model.embeddings.interpolate_pos_encoding == own
    assert far(inside, model(pixels((28, 35))).last_hidden_state) < 1e-5


@pytest.mark.parametrize("family", DINO)
@torch.no_grad()
def test_a_graph_of_one_size_holds_its_positions(family):
    """It would make the same ones for every image, by operators that runtimes on devices have no fast way for."""
    model, values = stock(family), pixels((28, 35))
    expected = model(values).last_hidden_state

    def made(program: torch.export.ExportedProgram) -> list[str]:
        words = ("upsample", "aten.cos", "aten.sin")
        return [str(node.target) for node in program.graph.nodes if any(word in str(node.target) for word in words)]

    with one_size(model, (28, 35)):
        program = torch.export.export(model, (values,))
    assert far(program.module()(values).last_hidden_state, expected) < 1e-6
    assert not made(program) and made(torch.export.export(model, (values,)))
    assert far(model(values).last_hidden_state, expected) == 0


@pytest.mark.parametrize(
    "family, to, kind",
    [
        ("dinov2", "onnx", "classifier"),
        ("dinov2", "transformers", "encoder"),
        ("dinov3_vit", "onnx", "encoder"),
        pytest.param("dinov3_vit", "program", "encoder", marks=pytest.mark.slow),
        pytest.param("dinov2_with_registers", "program", "classifier", marks=pytest.mark.slow),
        pytest.param("dinov2", "program", "encoder", marks=pytest.mark.slow),
        pytest.param("dinov2_with_registers", "onnx", "encoder", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_an_exported_model_takes_images_of_every_size(tmp_path, bundles, family, to, kind):
    """One file for all: other sizes, other shapes, the grid's own, and other batches."""
    model, bundle = bundles(family, kind)
    report = export(bundle, tmp_path / "out", to)
    assert report["family"] == family and report["relative_difference"] < 1e-5
    if to == "onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])

        def loaded(values):
            return torch.from_numpy(session.run(None, {"pixel_values": values.numpy()})[0])
    elif to == "program":
        loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    else:
        plain = stock_class(family, kind).from_pretrained(tmp_path / "out").eval()

        def loaded(values):
            return plain(values).last_hidden_state

    for batch, size in enumerate(IMAGE_SIZES, start=1):
        output = model(pixels(size, batch))
        expected = output.last_hidden_state if kind == "encoder" else output.logits
        assert far(loaded(pixels(size, batch)), expected) < 1e-5, size
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["crop_size"]["height"] == 28


@pytest.mark.parametrize("to", ["onnx", "program", "timm"])
@torch.no_grad()
def test_patches_that_are_no_squares_are_exported_too(tmp_path, to):
    """Images of any size, by the comparison that every export makes."""
    pytest.importorskip({"onnx": "onnxruntime", "program": "torch", "timm": "timm"}[to])
    model = stock("dinov3_vit", num_hidden_layers=1, patch_size=[7, 14])
    convert(str(saved(model, tmp_path / "source")), tmp_path / "bundle")
    assert export(tmp_path / "bundle", tmp_path / "out", to)["relative_difference"] < 1e-5


@pytest.mark.parametrize("family", DINOV2)
@torch.no_grad()
def test_timm_gets_its_own_dinov2_and_gives_it_back(tmp_path, bundles, family):
    """Where timm resizes positions as transformers does, with registers, it takes images of any size as well."""
    timm = pytest.importorskip("timm")
    model, bundle = bundles(family)
    report = export(bundle, tmp_path / "out", "timm")
    assert "dinov2" in report["name"] and report["arguments"]["dynamic_img_size"] == FAMILIES[family].antialias
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    for size in IMAGE_SIZES if FAMILIES[family].antialias else [(42, 42)]:
        size = tuple(7 * (side // 7) for side in size)  # timm takes whole patches only
        assert far(again.forward_features(pixels(size)), model(pixels(size)).last_hidden_state) < 1e-5, size
    convert(f"timm:local-dir:{tmp_path / 'out'}", tmp_path / "back")
    back = AutoModel.from_pretrained(tmp_path / "back").eval()
    assert type(back) is stock_class(family, "encoder")
    assert far(back(pixels((28, 35))).last_hidden_state, model(pixels((28, 35))).last_hidden_state) < 1e-5


@pytest.mark.parametrize("family", DINOV2)
def test_a_head_that_timm_has_not_is_refused(tmp_path, bundles, family):
    """It reads the mean of the patches beside the class token."""
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="`classifier` of family dinov2.*mean of the patches.*another format"):
        export(bundles(family, "classifier")[1], tmp_path / "out", "timm")
    assert not (tmp_path / "out").exists()


def picture_folder(folder):
    folder.mkdir()
    draw = numpy.random.default_rng(0)
    for index in range(20):
        Image.fromarray(draw.integers(0, 255, (40, 60, 3), dtype="uint8")).save(folder / f"{index}.png")
    return str(folder)


@pytest.mark.parametrize("family", DINOV2)
def test_calibration_sees_images_as_the_processor_makes_them(tmp_path, bundles, family):
    """28 pixels on a grid for 42: fewer components are fitted there, and it is a better start than weights alone."""
    pytest.importorskip("matplotlib")
    source, errors = bundles(family)[1].parent / "source", {}
    data = picture_folder(tmp_path / "pictures")
    for fit in ("weights", "activations"):
        out = tmp_path / fit
        report = convert(str(source), out, num_components=3, calibrate=data, fit=fit, depths=[3])
        errors[fit] = report["calibration"]["rows"][-1]["relative_logit_error"]
        assert report["calibration"]["images"] == 16 and report["calibration"]["measured_images"] == 4
        assert len(report["calibration"]["depth_rows"][3]) == 3
        assert type(AutoModel.from_pretrained(out, depth=3)) is stock_class(family, "encoder")
        assert load_file(out / "shared.safetensors")["embeddings.position_embeddings"].shape == (1, 37, 48)
    assert errors["activations"] < errors["weights"]


@pytest.mark.parametrize(
    ("family", "size", "named"),
    [
        ("dinov2", 5, "`calibrate`.*5x5, smaller than a patch of 7x7.*`size`"),
        ("vit", 28, "`calibrate`.*28x28, and its positions are for 42x42; a vit takes no others"),
    ],
)
def test_images_that_the_source_does_not_take_are_refused(tmp_path, family, size, named):
    """At once, not in the words of a convolution after everything was loaded."""
    pytest.importorskip("matplotlib")
    folder = saved(stock(family), tmp_path / "source")
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    with pytest.raises(ValueError, match=named):
        convert(str(folder), tmp_path / "bundle", num_components=2, calibrate=picture_folder(tmp_path / "pictures"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("place", ["within a batch", "in the next batch"])
def test_calibration_on_pictures_that_keep_their_shapes_is_refused_by_what_makes_one(tmp_path, place):
    """Whatever the processor says where it cannot stack them; pictures of one shape, square or not, are taken."""
    uncropped = BitImageProcessor(size={"shortest_edge": 28}, do_center_crop=False)
    uncropped.save_pretrained(saved(stock("dinov2"), tmp_path / "source"))
    (tmp_path / "alike").mkdir(), (tmp_path / "other").mkdir()
    count = 6 if place == "within a batch" else 65  # 64 make a batch
    last = int(torch.randperm(count, generator=torch.Generator().manual_seed(0))[-1])
    pixels = numpy.random.default_rng(0).integers(0, 256, (count, 35, 42, 3), dtype=numpy.uint8)
    for index, values in enumerate(pixels):
        picture = Image.fromarray(values)
        picture.save(tmp_path / "alike" / f"{index:02}.png")
        (picture.rotate(90, expand=True) if index == last else picture).save(tmp_path / "other" / f"{index:02}.png")
    asked = {"num_components": 2, "fit": "activations"}
    with pytest.raises(ValueError, match="`calibrate`: .* several shapes, such as 28x33 and 33x28.*`do_center_crop`"):
        convert(tmp_path / "source", tmp_path / "bundle", calibrate=str(tmp_path / "other"), **asked)
    assert not (tmp_path / "bundle").exists()
    convert(tmp_path / "source", tmp_path / "bundle", calibrate=tmp_path / "alike", **asked)
    assert json.loads((tmp_path / "bundle" / "conversion.json").read_text())["source"] == "source"
