"""Laws of elastic training: what was trained at a width is what is saved and loaded there.

pytest tests/training/elastic/test_elastic_widths.py
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from elastic_nets import ISOLATED, QUARTERS, constrained, read, weights, written_out
from transformers import AutoModelForImageClassification

import helpers
from modeling_lingene import LinGeneConfig


def close(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Rounding of float32; logits here are of size one."""
    assert expected.std() > 0.1
    return torch.allclose(logits.double(), expected.double(), atol=1e-4)


SIZES = [("1/2", 6, 5), ("3/4", 4, 5), ("1/2", 3, 2)]


def every_way(isolating: SimpleNamespace, again: Path, width: str, depth: int, count: int) -> dict:
    """Logits of one size from wherever it can be had; `again` is a folder for the constrained model of it."""
    size, pixels = {"depth": depth, "width_ratio": width, "num_components": count}, helpers.images(4)
    model, folder = isolating.model, isolating.folder
    part = constrained(folder, **size)
    part.save_pretrained(again)
    of = {
        "materialised": model.materialise(**size),
        "loaded": AutoModelForImageClassification.from_pretrained(folder, **size),
        "constrained": part,
        "constrained, materialised": part.materialise(),
        "saved again": AutoModelForImageClassification.from_pretrained(again),
        "saved again, constrained": constrained(again),
        "of the whole loaded": constrained(folder).materialise(**size),
    }
    with torch.no_grad():
        logits = {name: one.eval()(pixels).logits for name, one in of.items()}
        logits["forward"] = model(pixels, **size).logits
    return logits


@pytest.mark.parametrize("width, depth, count", SIZES)
def test_widths_between_are_the_trailing_ones_wherever_they_come_from(isolating, tmp_path, width, depth, count):
    """Trained as the last channels, heads and units; one way that gives the first ones gives another network."""
    pixels = helpers.images(4)
    expected = written_out(isolating.parameters, isolating.model.config, pixels, depth, count, width, trailing=True)
    leading = written_out(isolating.parameters, isolating.model.config, pixels, depth, count, width)
    assert not torch.allclose(expected, leading, atol=0.1)
    for name, logits in every_way(isolating, tmp_path / "again", width, depth, count).items():
        assert close(logits, expected), name


@pytest.mark.parametrize("width", ["1/4", "1"])
def test_the_smallest_and_the_full_width_are_the_leading_ones(isolating, tmp_path, width):
    """That is the point of it: the smallest keeps channels that fewer others train."""
    expected = helpers.reference_vit(isolating.model, 4, width, 3)(helpers.images(4)).logits
    for name, logits in every_way(isolating, tmp_path / "again", width, 4, 3).items():
        assert close(logits, expected), name


@pytest.mark.parametrize(
    "fields, width",
    [
        ({"trained_width_ratios": ["1/2", "3/4", "1"], "isolated_activation": True}, "1/4"),
        ({"trained_width_ratios": ["1"], "isolated_activation": True}, "1/2"),
        ({"trained_width_ratios": ["1/4", "1/2", "1"], "isolated_activation": False}, "1/2"),
    ],
    ids=["below the smallest", "no width trained", "off"],
)
def test_widths_that_do_not_lie_between_are_leading(tmp_path, fields, width):
    """Also untrained ones, which are taken as an initialisation."""
    model, pixels = helpers.tiny_model(helpers.tiny_config(**fields)), helpers.images(4)
    expected = helpers.reference_vit(model, 6, width)(pixels).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, width_ratio=width, allow_untrained=True)
    with torch.no_grad():
        assert close(model(pixels, width_ratio=width).logits, expected)
        assert close(loaded.eval()(pixels).logits, expected)
        assert close(model.materialise(width_ratio=width).eval()(pixels).logits, expected)


@pytest.mark.parametrize("flag", [True, False])
def test_a_configuration_keeps_whether_its_widths_are_isolated(tmp_path, flag):
    """Forgotten on the way to disk, every width between would come back as another network."""
    config = helpers.tiny_config(**{**ISOLATED, "isolated_activation": flag})
    config.save_pretrained(tmp_path)
    assert read(tmp_path / "config.json")["isolated_activation"] is flag
    assert LinGeneConfig.from_pretrained(tmp_path).isolated_activation is flag
    assert LinGeneConfig.from_dict(config.to_dict()).isolated_activation is flag
    assert [config.size(width_ratio=width).trailing for width in ISOLATED["trained_width_ratios"]] == [
        False,
        flag,
        flag,
        False,
    ]


@pytest.mark.parametrize("width", ["1/4", "1/2", "3/4"])
def test_a_bundle_cut_to_one_isolated_width_knows_that_width_alone(isolating, tmp_path, width):
    """Narrower ones do not lie in it: they were other channels, and must be refused; and what is left is all of it."""
    sized = isolating.model.config.sized(isolating.model.config.size(width_ratio=width))
    assert (sized.isolated_activation, sized.trained_width_ratios) == (False, ["1"])
    constrained(isolating.folder, width_ratio=width).save_pretrained(tmp_path)
    again = LinGeneConfig.from_pretrained(tmp_path)
    assert (again.isolated_activation, again.trained_width_ratios) == (False, ["1"])
    for narrower in {"1/2": ["1/2"], "3/4": ["1/3", "2/3"]}.get(width, []):
        with pytest.raises(ValueError, match=f"`width_ratio` {narrower} was never trained"):
            AutoModelForImageClassification.from_pretrained(tmp_path, width_ratio=narrower)


def test_a_bundle_cut_in_depth_alone_stays_isolated(isolating, tmp_path):
    """All its widths are still there."""
    constrained(isolating.folder, depth=4, num_components=3).save_pretrained(tmp_path)
    expected = written_out(isolating.parameters, isolating.model.config, helpers.images(4), 4, 3, "1/2", trailing=True)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, width_ratio="1/2").eval()
    with torch.no_grad():
        assert close(loaded(helpers.images(4)).logits, expected)


def test_an_untrained_width_between_is_the_trailing_one_and_is_recorded_as_untrained(tmp_path):
    """As it would be if it were trained next; cut out and saved, it must not pass for a trained one."""
    config = helpers.tiny_config(**{**ISOLATED, "trained_width_ratios": ["1/4", "3/4", "1"]})
    model, pixels = helpers.tiny_model(config), helpers.images(4)
    model.save_pretrained(tmp_path / "whole")
    part = constrained(tmp_path / "whole", width_ratio="1/2", allow_untrained=True)
    with torch.no_grad():
        assert close(
            part(pixels).logits, written_out(weights(model), config, pixels, width_ratio="1/2", trailing=True)
        )
    part.save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match="`width_ratio` 1 was never trained"):
        AutoModelForImageClassification.from_pretrained(tmp_path / "part")


def test_nested_widths_lie_in_wider_ones(tmp_path):
    """Off, the default: a bundle cut to 3/4 still holds the 1/4 and 1/2 that were trained, as 1/3 and 2/3 of it."""
    model, pixels = helpers.tiny_model(helpers.tiny_config(trained_width_ratios=[*QUARTERS, "1"])), helpers.images(4)
    model.save_pretrained(tmp_path / "whole")
    constrained(tmp_path / "whole", width_ratio="3/4").save_pretrained(tmp_path / "part")
    assert LinGeneConfig.from_pretrained(tmp_path / "part").trained_width_ratios == ["1/3", "2/3", "1"]
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "part", width_ratio="2/3").eval()
    with torch.no_grad():
        assert close(loaded(pixels).logits, helpers.reference_vit(model, 6, "1/2")(pixels).logits)
