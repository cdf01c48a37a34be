"""One size out of a bundle: the types of its numbers, stored and asked for.

pytest tests/loading/test_loaded_dtypes.py
"""

from pathlib import Path

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import helpers
from modeling_lingene import LinGeneForImageClassification


# -- what stock loading takes


@pytest.fixture(scope="module")
def bf16_bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bf16") / "bundle"
    helpers.tiny_model().to(torch.bfloat16).save_pretrained(folder)
    return folder


def recomposed_by_numpy(folder: Path, name: str) -> numpy.ndarray:
    """sum_n T_n(x_l) A_n of the six layers in float64, by numpy's Chebyshev polynomials: (6, ...)."""
    nodes = -numpy.cos(numpy.pi * (2 * numpy.arange(1, 7) - 1) / 12)
    table = numpy.polynomial.chebyshev.chebvander(nodes, 4)
    parts = []
    for n in range(5):
        with safe_open(folder / f"component-{n:02d}.safetensors", "pt") as file:
            parts.append(file.get_tensor(f"components.{n}.{name}").double().numpy())
    return numpy.einsum("ln,n...->l...", table, numpy.stack(parts))


NAMES = {
    "attention.query.weight": "attention.attention.query.weight",
    "mlp.fc1.weight": "intermediate.dense.weight",
    "mlp.fc2.bias": "output.dense.bias",
    "norm2.weight": "layernorm_after.weight",
}


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16", "float64"])
def test_weights_are_combined_wide_and_rounded_once(bundle, bf16_bundle, load, tmp_path, stored, wanted):
    """A sum or a coefficient rounded to bfloat16 on the way is wrong in the third digit of every weight."""
    folder = {"float32": bundle, "bfloat16": bf16_bundle}[stored]
    dtype = getattr(torch, wanted)
    vit = load(folder, dtype=dtype)
    assert {parameter.dtype for parameter in vit.parameters()} == {dtype}
    vit.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for name, stock in NAMES.items():
        expected = torch.tensor(recomposed_by_numpy(folder, name))
        found = torch.stack([saved[f"vit.encoder.layer.{layer}.{stock}"] for layer in range(6)]).double()
        rounding = max(torch.finfo(dtype).eps / 2, 1e-6)
        torch.testing.assert_close(found, expected, rtol=1.01 * rounding, atol=1e-6)


@pytest.mark.parametrize("keywords", [{"dtype": "auto"}, {"torch_dtype": "auto"}], ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_dtype_auto_is_the_dtype_stored(bundle, bf16_bundle, load, keywords, constrained):
    """What transformers does by default; here it is asked for."""
    for folder, dtype in ((bundle, torch.float32), (bf16_bundle, torch.bfloat16)):
        loaded = load(folder, constrained=constrained, **keywords)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert loaded.config.dtype == dtype


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_weights_are_in_full_precision_unless_asked_otherwise(load, tmp_path, stored, constrained):
    """Half-size files are for the download: what is trained in float16 is soon not a number."""
    helpers.tiny_model().to(stored).save_pretrained(tmp_path / "bundle")
    for keywords in ({}, {"dtype": None}):
        loaded = load(tmp_path / "bundle", constrained=constrained, **keywords)
        full = torch.float64 if stored == torch.float64 else torch.float32
        assert {parameter.dtype for parameter in loaded.parameters()} == {full} and loaded.config.dtype == full
    asked = load(tmp_path / "bundle", constrained=constrained, dtype=torch.float16)  # also where it is what is stored
    assert {parameter.dtype for parameter in asked.parameters()} == {torch.float16}


def test_a_half_size_bundle_is_used_as_any_model(load, tmp_path):
    """A head put in by hand and dynamic quantisation failed on mixed dtypes."""
    helpers.tiny_model().half().save_pretrained(tmp_path / "bundle")
    vit = load(tmp_path / "bundle", depth=3)
    vit.classifier = torch.nn.Linear(vit.config.hidden_size, 4)
    assert vit(helpers.images()).logits.shape == (3, 4)
    plain = load(tmp_path / "bundle", depth=3)
    quantised = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, dtype=torch.qint8)
    expected = plain(helpers.images()).logits
    assert (quantised(helpers.images()).logits - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize("dtype", ["float17", "int8", torch.int32, 16])
def test_what_is_no_dtype_is_refused(bundle, dtype):
    """By our class; Auto classes read it into the configuration before."""
    with pytest.raises(ValueError, match="`dtype` must be a floating dtype"):
        LinGeneForImageClassification.from_pretrained(bundle, dtype=dtype)


@pytest.mark.parametrize("keywords", [{"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_dtype_is_taken_as_a_name_and_under_its_old_name(bundle, load, keywords, constrained):
    """Both are common in code that exists."""
    loaded = load(bundle, constrained=constrained, **keywords)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
