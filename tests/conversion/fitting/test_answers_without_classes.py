"""Laws of fits where answers are no probabilities of classes, or do not depend on some layer's outputs at all.

A stock ViT of noise with a single output, or with a block that writes nothing; a flat folder of pictures.

    pytest tests/conversion/fitting/test_answers_without_classes.py
"""

import copy

import numpy
import pytest
import torch
from fits import DEPTH, in_two, logits, relative, stock
from PIL import Image
from transformers import AutoModelForImageClassification

from modeling_lingene import card, kept
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from modeling_lingene.conversion.fitting import FITS
from modeling_lingene.conversion.moments import GRADIENT_DAMPING, INPUT_DAMPING, TRACE_POWER, Stack
from modeling_lingene.conversion.report import count_table
from modeling_lingene.folders import read_conversion


@pytest.fixture(scope="module")
def values(photos):
    """The pictures by Pillow and numpy alone, -1 to 1; (images, 3, 16, 16)."""
    arrays = [numpy.asarray(Image.open(path), dtype=numpy.float32) for path in sorted(photos.glob("*.png"))]
    return torch.from_numpy(numpy.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


def with_outputs(model, count, problem_type=None):
    """The same network with a head of so many outputs."""
    model = copy.deepcopy(model)
    model.classifier = torch.nn.Linear(48, count).requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    model.classifier.weight.copy_(torch.randn(count, 48, generator=generator) / 5)
    model.config.num_labels, model.config.problem_type = count, problem_type
    return model.eval()


@pytest.fixture(
    scope="module",
    params=[(1, None), (1, "regression"), (3, "regression"), (3, "multi_label_classification")],
    ids=str,
)
def regression(request, tmp_path_factory):
    """A network whose outputs name no classes, and its folder."""
    model, folder = with_outputs(stock(), *request.param), tmp_path_factory.mktemp("regression") / "vit"
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("fit", [fit for fit in FITS if fit != "weights"])
def test_outputs_that_name_no_classes_are_fitted_and_judged_by_their_errors(tmp_path, regression, photos, values, fit):
    """The probability of one class is always 1: its gradients are zero, and any bundle agreed with its source."""
    model, folder = regression
    report = convert(str(folder), tmp_path / "bundle", num_components=3, calibrate=str(photos), fit=fit, rounds=2)
    values = in_two(values)[1]
    row, expected = report["calibration"]["rows"][-1], logits(model, values)
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
    error = relative(logits(small, values), expected)
    assert row["relative_logit_error"] == pytest.approx(error, rel=1e-3) and 0 < error < 2
    assert not {"agreement", "divergence", "cosine"} & row.keys()
    assert not kept.is_model(report) and report["advice"] is not None  # 8 pictures judge
    report["calibration"]["measured_images"] = kept.LEAST_IMAGES
    assert kept.is_model(report) == (error <= kept.GOOD)
    assert f"pictures left out of its fit: {error:.2g}" in kept.kept(report)
    assert count_table(report["calibration"]["rows"], "logit").count("\n") == 4
    assert read_conversion(tmp_path / "bundle") is not None
    (shown,) = card.pictures(tmp_path / "bundle", [], report)
    assert kept.kept(report) in shown[0]


def test_layers_are_chosen_by_the_errors_of_such_outputs(tmp_path, regression, photos, values):
    """Of equal distances the first candidate was taken, whatever it said."""
    model, folder = regression
    report = convert(str(folder), tmp_path / "bundle", calibrate=str(photos), depths=[3], sort=True)
    expected, rows = logits(model, values), list(range(DEPTH))
    while len(rows) > 3:  # the greedy rule, written out
        missed = {}
        for left_out in rows:
            small = copy.deepcopy(model)
            small.vit.layers = torch.nn.ModuleList(model.vit.layers[row] for row in rows if row != left_out)
            missed[left_out] = relative(logits(small, values), expected)
        rows.remove(min(missed, key=missed.get))
    assert report["calibration"]["depth_rows"] == {3: rows}
    told = export(tmp_path / "bundle", tmp_path / "plain", "transformers", data=str(photos))
    assert "agreement" not in told and told["relative_difference"] < 1e-5


@pytest.mark.parametrize("fit", [fit for fit in FITS if fit != "weights"])
def test_a_block_that_writes_nothing_is_fitted_with_the_others(tmp_path, photos, values, fit):
    """Nothing depends on what its first maps give; their gradients are zero."""
    model = with_outputs(stock(), 5)
    for part in (model.vit.layers[2].attention.o_proj, model.vit.layers[2].mlp.fc2):
        part.weight.zero_(), part.bias.zero_()
    model.save_pretrained(tmp_path / "vit")
    values = in_two(values)[1]
    report = convert(str(tmp_path / "vit"), tmp_path / "bundle", num_components=4, calibrate=str(photos), fit=fit)
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
    error = relative(logits(small, values), logits(model, values))
    assert report["calibration"]["rows"][-1]["relative_logit_error"] == pytest.approx(error, rel=1e-3)
    assert error < 1


@pytest.mark.parametrize("fit", [fit for fit in FITS if fit != "weights"])
def test_a_head_of_zeros_is_fitted_as_if_all_outputs_counted_alike(tmp_path, photos, fit):
    """Before its training: nothing depends on any layer."""
    model = with_outputs(stock(), 5)
    model.classifier.weight.zero_(), model.classifier.bias.zero_()
    model.save_pretrained(tmp_path / "vit")
    report = convert(str(tmp_path / "vit"), tmp_path / "bundle", num_components=4, calibrate=str(photos), fit=fit)
    (*_, row) = report["calibration"]["rows"]
    assert 0 < row["activation_residual"] < 1 and row["relative_logit_error"] == 0


@pytest.mark.parametrize("fit", [fit for fit in FITS if fit != "weights"])
def test_a_metric_is_definite_and_of_layers_that_matter_what_it_was(fit):
    """By numpy; a layer on which nothing depends counts for a small share of the others."""
    generator = torch.Generator().manual_seed(1)
    moments = [torch.randn(3, 9, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    inputs, gradients = (one.mT @ one for one in moments)
    alike = Stack(torch.zeros(3, 5, 5), inputs, gradients).metric(fit)
    idle = gradients.clone()
    idle[1] = 0
    found = Stack(torch.zeros(3, 5, 5), inputs, idle).metric(fit)
    for layer in (0, 2):
        assert all(torch.equal(one[layer], other[layer]) for one, other in zip(found, alike))
    for own in (*found, *Stack(torch.zeros(3, 5, 5), inputs, torch.zeros_like(gradients)).metric(fit)):
        assert (numpy.linalg.eigvalsh(own.numpy()) > 0).all()
    if fit not in ("activations", "weighted"):
        trace = gradients[0].trace().item()
        expected = gradients[0].numpy() + GRADIENT_DAMPING * trace / 5 * numpy.eye(5)
        numpy.testing.assert_allclose(found[1][0], expected / trace ** (1 - TRACE_POWER), rtol=1e-12)
        assert numpy.trace(found[1][1].numpy()) < 0.1 * numpy.trace(found[1][0].numpy())
    mean = inputs[0].diagonal().mean().item()
    numpy.testing.assert_allclose(found[0][0], inputs[0].numpy() + INPUT_DAMPING[fit] * mean * numpy.eye(5))
