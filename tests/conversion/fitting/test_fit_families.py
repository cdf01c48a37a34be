"""Laws of fitting in every family: what layers are turned by changes none of them.

Against stock models of transformers, every parameter changed; the best turns by numpy.

    pytest tests/conversion/fitting/test_fit_families.py
"""

import numpy
import pytest
import torch
import transformers
from packaging import version

from modeling_lingene.conversion.alignment import _in_planes, _planes
from modeling_lingene.conversion.calibrated import Calibration, stock_of
from modeling_lingene.conversion.convert import bundle_config
from modeling_lingene.conversion.from_transformers import read_transformers
from modeling_lingene.conversion.sources import class_outputs
from modeling_lingene.vit_lingene import turned
from test_families import PLAIN, far, pixels, saved, stock


GATED = {"dinov2": {"use_swiglu_ffn": True}, "dinov3_vit": {"use_gated_mlp": True, "hidden_act": "silu"}}


@pytest.mark.parametrize("family, fields", [*((family, {}) for family in PLAIN), *GATED.items()])
@torch.no_grad()
def test_layers_that_are_aligned_are_the_layers_that_they_were(tmp_path, family, fields):
    """Heads turned out of the planes of rotary positions, or a family's scales lost, would be another network."""
    if fields and version.parse(transformers.__version__) < version.parse("5.18"):
        pytest.skip("before transformers 5.18 a gate and its units are one map in DINOv2, which calibration refuses")
    model, values = stock(family, **fields), pixels(batch=4)
    source = read_transformers(str(saved(model, tmp_path / "source")))
    calibration = Calibration(source, values, "cpu", 0)
    stacks, _, _ = calibration._fit(bundle_config(source, 2, {}), "aligned", 4)
    weights = {f"{part}.weight": stack.weights[..., :-1] for part, stack in stacks.items()}
    weights |= {f"{part}.bias": stack.weights[..., -1] for part, stack in stacks.items()}
    query = torch.stack(source.layers("attention.query.weight"))
    gain = torch.stack(source.layers("norm1.weight"))[:, None]
    assert far(weights["attention.query.weight"], query * gain) > 0.1
    found, expected = class_outputs(stock_of(source, weights), values), class_outputs(model, values)
    assert far(found, expected) < 1e-4


def test_the_best_turn_in_each_plane_is_the_best_of_all_angles():
    """Of random agreements; a plane of which nothing is known stays, and turns go with those of any position."""
    agreement = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    agreement[2, [1, 5]] = 0
    turns, gains = _in_planes(agreement), _planes(agreement).abs()
    angles = numpy.linspace(0, 2 * numpy.pi, 20001)
    for place, plane in numpy.ndindex(3, 4):
        pair = agreement[place][[plane, plane + 4]][:, [plane, plane + 4]].numpy()
        said = numpy.cos(angles) * (pair[0, 0] + pair[1, 1]) + numpy.sin(angles) * (pair[1, 0] - pair[0, 1])
        own = turns[place][[plane, plane + 4]][:, [plane, plane + 4]].numpy()
        assert float((own * pair).sum()) == pytest.approx(said.max(), abs=1e-6)
        assert float(gains[place, plane]) == pytest.approx(said.max(), abs=1e-6)
    torch.testing.assert_close(turns[2][[1, 5]][:, [1, 5]], torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(turns @ turns.mT, torch.eye(8, dtype=torch.float64).expand(3, 8, 8))
    angle = torch.tensor([0.1, -0.7, 2.0, 5.0], dtype=torch.float64).tile(2)
    heads = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, behind = turned(heads @ turns[0].T, angle.cos(), angle.sin()), turned(heads, angle.cos(), angle.sin())
    torch.testing.assert_close(before, behind @ turns[0].T)
