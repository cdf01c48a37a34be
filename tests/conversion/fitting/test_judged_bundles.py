"""Laws of what a conversion says of its bundle: whether it is a model, in which numbers, and what to do next.

pytest tests/conversion/fitting/test_judged_bundles.py
"""

import shlex

import numpy
import pytest

from modeling_lingene import cli, kept
from modeling_lingene.conversion.fitting import FITS
from modeling_lingene.conversion.report import LEARNING_RATES, advice, learning_rate
from modeling_lingene.training import options


def test_the_learning_rate_goes_from_that_of_a_good_start_to_that_of_a_bad_one():
    """The two that were measured, constant beyond them, and never down as the error rises."""
    (low, least), (high, most) = LEARNING_RATES
    assert low < high and least < most
    assert {learning_rate(error) for error in (0.0, 0.5 * low, low)} == {least}
    assert {learning_rate(error) for error in (high, 2 * high, 30.0)} == {most}
    rates = [learning_rate(error) for error in numpy.linspace(0, 2 * high, 201)]
    assert rates == sorted(rates) and len(set(rates)) > 4
    assert learning_rate((low + high) / 2) == pytest.approx((least * most) ** 0.5, rel=0.2)


def told(compared: str = "logit", error: float = 0.3, **row) -> dict:
    """A conversion's report, with a row of calibration images where one is given."""
    report = {"compared": compared, "relative_logit_error": error, "fit": "matched"}
    rows = [{"relative_logit_error": error, **row}]
    return report | ({"calibration": {"rows": rows, "measured_images": 256}} if row else {})


@pytest.mark.parametrize(
    "measured, fit, unknown",
    [
        ({"measured_images": 128, "left_out": True}, "matched", ""),
        ({"measured_images": 32, "left_out": True}, "matched", ""),
        ({"measured_images": 31, "left_out": True}, "matched", "31 pictures"),
        ({"measured_images": 128, "left_out": False}, "matched", "no pictures"),
        ({"measured_images": 1, "left_out": False}, "exact", ""),
        ({"measured_images": 256}, "matched", ""),  # as reports were before
    ],
)
def test_enough_pictures_judge_that_the_fit_did_not_see(measured, fit, unknown):
    """Else nobody knows whether a bundle that looks like a model is one; far from its source it is none by any."""
    report = told("class token", cosine=0.99, cosine_p5=0.98) | {"fit": fit}
    report["calibration"] |= measured
    said = f"Whether this bundle is a model is not known: {unknown} that its fit did not see judge it"
    assert kept.is_model(report) is not bool(unknown)
    assert kept.verdict(report).startswith(said) if unknown else not kept.verdict(report)
    report["calibration"]["rows"][-1]["cosine"] = 0.5
    assert kept.verdict(report) == kept.START and advice(report, "x", "y")["statement"].startswith(kept.START)


@pytest.mark.parametrize(
    "report, model",
    [
        (told(error=0.05), True),
        (told(error=0.06), False),
        (told(error=0.06, agreement=0.977, divergence=0.004), True),  # 6 % of the logits, and nearly every class
        (told(error=0.04, agreement=0.94, divergence=0.004), False),
        (told(error=0.04, agreement=0.99, divergence=0.2), False),
        (told("class token", error=0.2, cosine=0.985, cosine_p5=0.96), True),
        (told("class token", error=0.2, cosine=0.985, cosine_p5=0.6), False),
        (told("class token", error=0.04, cosine=0.9, cosine_p5=0.8), False),
    ],
)
def test_a_bundle_is_judged_by_what_it_says_of_pictures(report, model):
    """`not a model: its logits are off by 6 %` stood beside 97.7 % of the same classes; the sentence has the numbers
    by which it was judged.
    """
    given = advice(report, "google/vit", "bundle")
    assert (given is None) is kept.is_model(report) is model
    row = kept.last_row(report)
    numbers = [f"{100 * row['agreement']:.1f} %"] if row and "agreement" in row else []
    numbers += [f"{row['cosine']:.3f}"] if row and "cosine" in row else []
    numbers += ["0.05"] if row is None and model else []
    assert all(number in kept.kept(report) for number in numbers)
    assert given is None or given["statement"].endswith(kept.kept(report))
    older = {key: value for key, value in report.items() if key != "compared"}  # which said no more
    assert kept.kept(older) == kept.kept(report)


@pytest.mark.parametrize("fit", [*FITS, "exact"])
def test_every_fit_has_a_word_for_people(fit):
    """`fit: matched` says nothing to who has not read the code."""
    assert len(kept.FIT_WORDS[fit].split()) > 3 and kept.fitted({"fit": fit}) == f"{fit}: {kept.FIT_WORDS[fit]}"


def test_advice_is_a_command_that_the_command_line_takes():
    """For what is a start, not a model."""
    given = advice(told(), "google/vit", "bundle")
    program, *words = shlex.split(given["command"])
    arguments = cli.build_parser("decompose").parse_args(words)
    assert program == "lingene" and arguments.command == "decompose"
    assert (str(arguments.init), arguments.teacher, arguments.data) == ("bundle", "google/vit", "DATA")
    assert arguments.learning_rate == given["learning_rate"] == learning_rate(0.3)
    assert "not a model" in given["statement"]
    headless = advice(told("class token"), "facebook/dinov2-small", "bundle")
    recipes = [
        options.asked_recipe(cli.build_parser("decompose").parse_args(shlex.split(one["command"])[1:]))
        for one in (given, headless)
    ]
    assert [recipe.objective.kind for recipe in recipes] == ["labels", "features"]
    assert recipes[1].objective.feature_heads == "identity"  # what is measured by the cosine with its teacher
    turned = advice({**told("class token"), "turned": True}, "facebook/dinov2-small", "bundle")
    assert "--feature-heads" not in turned["command"] + given["command"]
    assert recipes[1].teacher == "facebook/dinov2-small"
    assert recipes[1].training.learning_rate == headless["learning_rate"] < recipes[0].training.learning_rate
