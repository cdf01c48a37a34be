"""One size out of a bundle: constrained, within a budget, at another image size, and read no further than it needs.

pytest tests/loading/test_loaded_parts.py
"""

import logging
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from loads import ROWS, SMALLER, VARIANTS, asked, headless, logits, row, write_sizes
from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ViTModel,
)

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel, bundle_lingene


# -- constrained


def test_constrained_loading_slices_the_components_and_keeps_no_others(bundle, model, load):
    """Components are the parameters: those beyond the size asked for must not be trained or saved."""
    small = load(bundle, constrained=True, **asked(4, "1/2", 3))
    assert type(small) is LinGeneForImageClassification
    assert len(small.components) == 3
    state, big = small.state_dict(), model.state_dict()
    for key, shape in {
        "components.2.attention.query.weight": (24, 24),
        "components.2.mlp.fc1.weight": (48, 24),
        "components.0.norm1.bias": (24,),
        "embeddings.position_embeddings": (1, 17, 24),
        "embeddings.patch_embeddings.weight": (24, 3, 4, 4),
        "classifier.weight": (7, 24),
        "classifier.bias": (7,),
    }.items():
        assert tuple(state[key].shape) == shape
        assert torch.equal(state[key], big[key][tuple(slice(length) for length in shape)])
    torch.testing.assert_close(logits(small), logits(model, **asked(4, "1/2", 3)), rtol=0, atol=1e-4)


def test_a_constrained_model_saves_as_a_smaller_bundle(bundle, load, tmp_path):
    """DESIGN 4: sliced fields, fewer components, reference depth kept, ratios above 1 dropped, nothing measured."""
    folder = tmp_path / "measured"
    shutil.copytree(bundle, folder)
    write_sizes(folder, [])
    small = load(folder, constrained=True, **asked(4, "1/2", 3))
    small.save_pretrained(tmp_path / "small")
    config = LinGeneConfig.from_pretrained(tmp_path / "small")
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (24, 2, 48)
    assert (config.reference_components, config.reference_depth, config.depth) == (3, 6, 4)
    assert config.trained_width_ratios == ["1"]
    assert config.num_components is None and config.width_ratio is None
    assert not (tmp_path / "small" / "sizes.json").exists()
    assert not (tmp_path / "small" / "component-03.safetensors").exists()
    for constrained in (False, True):
        again = load(tmp_path / "small", constrained=constrained)
        torch.testing.assert_close(logits(again), logits(small), rtol=0, atol=1e-4)


@pytest.mark.parametrize("fields", [{}, *list(VARIANTS.values())[:6]], ids=["default", *list(VARIANTS)[:6]])
def test_sizes_of_a_smaller_bundle_are_sizes_of_the_big_one(tmp_path, fields):
    """Half of the half is the quarter; fewer components of fewer are the first ones."""
    helpers.bundle(tmp_path / "big", helpers.tiny_config(trained_width_ratios=["1/4", "1/2", "1"], **fields))
    load = AutoModelForImageClassification.from_pretrained
    load(tmp_path / "big", constrained=True, **asked(4, "1/2", 3)).save_pretrained(tmp_path / "small")
    assert LinGeneConfig.from_pretrained(tmp_path / "small").trained_width_ratios == ["1/2", "1"]
    for inner, outer in (
        ({}, asked(4, "1/2", 3)),
        (asked(3, "1/2", 2), asked(3, "1/4", 2)),
        (asked(6, 1, 3), asked(6, "1/2", 3)),
    ):
        found, expected = logits(load(tmp_path / "small", **inner)), logits(load(tmp_path / "big", **outer))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_none_leaves_the_size_that_is_stored(bundle, load, tmp_path):
    """Programs hand on options nobody has set as None; both ways in must take that the same way."""
    load(bundle, constrained=True, depth=4).save_pretrained(tmp_path / "small")
    assert load(tmp_path / "small").config.num_hidden_layers == 4
    assert load(tmp_path / "small", **asked(None, None, None)).config.num_hidden_layers == 4


def test_a_headless_bundle_loads_as_automodel_and_with_a_new_head(model, tmp_path, caplog):
    """LinGeneModel saves no classifier; asking for one must say that it is new."""
    twin = headless(model)
    twin.save_pretrained(tmp_path / "headless")
    size = asked(4, "1/2", 3)
    with torch.no_grad():
        expected = twin(helpers.images(), **size).last_hidden_state
        vit = AutoModel.from_pretrained(tmp_path / "headless", **size)
        torch.testing.assert_close(vit(helpers.images()).last_hidden_state, expected, rtol=0, atol=1e-4)
    assert type(vit) is ViTModel and vit.pooler is None
    same = LinGeneModel.from_pretrained(tmp_path / "headless", constrained=True)
    assert type(same) is LinGeneModel and set(same.state_dict()) == set(twin.state_dict())
    caplog.clear()
    with_head = AutoModelForImageClassification.from_pretrained(tmp_path / "headless", **size)
    assert "classifier" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(with_head.vit(helpers.images()).last_hidden_state, expected, rtol=0, atol=1e-4)


# -- only what is needed is read


class WatchedSlice:
    def __init__(self, inner, key: str, log: dict):
        self.inner, self.key, self.log = inner, key, log

    def get_shape(self):
        return self.inner.get_shape()

    def __getitem__(self, index):
        part = self.inner[index]
        self.log[self.key] += part.numel()
        return part


@pytest.fixture
def reads(monkeypatch) -> dict[str, Counter]:
    """Files opened, and numbers read of each key; anything but slices cannot be read through it."""
    logs = {"files": Counter(), "keys": Counter()}

    class WatchedFile:
        def __init__(self, path, framework):
            self.inner = safe_open(path, framework=framework)
            logs["files"][Path(path).name] += 1

        def __enter__(self):
            self.inner.__enter__()
            return self

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

        def get_slice(self, key):
            return WatchedSlice(self.inner.get_slice(key), key, logs["keys"])

    monkeypatch.setattr(bundle_lingene, "safe_open", WatchedFile)
    return logs


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("size", [(4, "1/2", 3), (6, 1, 2), (2, "1/2", 5)], ids=str)
def test_only_the_asked_components_and_only_slices_of_the_width_are_read(bundle, model, reads, constrained, size):
    """A quarter of a large bundle must cost a quarter of the reading, whatever the depth."""
    LinGeneForImageClassification.from_pretrained(bundle, constrained=constrained, **asked(*size))
    assert set(reads["files"]) == {"shared.safetensors", *(f"component-{n:02d}.safetensors" for n in range(size[2]))}
    small = LinGeneForImageClassification(helpers.tiny_config().sized(helpers.tiny_config().size(*size)))
    assert reads["keys"] == {key: tensor.numel() for key, tensor in small.state_dict().items()}


def test_files_that_a_size_does_not_need_may_be_missing_or_broken(bundle, model, tmp_path):
    """The proof by absence: no code can read what is not there."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    (folder / "component-03.safetensors").unlink()
    (folder / "component-04.safetensors").write_bytes(b"not a file of weights")
    for constrained in (False, True):
        loaded = LinGeneForImageClassification.from_pretrained(folder, num_components=3, constrained=constrained)
        torch.testing.assert_close(logits(loaded), logits(model, num_components=3), rtol=0, atol=1e-4)


def test_automodel_does_not_read_the_head(bundle, reads):
    """It has none to give it to."""
    AutoModel.from_pretrained(bundle, num_components=1)
    assert not [key for key in reads["keys"] if key.startswith("classifier")]


# -- depths never measured, budgets


@pytest.mark.parametrize("constrained", [False, True])
def test_only_a_depth_neither_trained_nor_measured_warns_and_once(load, tmp_path, caplog, constrained):
    """A depth nobody has tried may be worthless; a warning at every load would not be read."""
    folder = helpers.bundle(tmp_path / "bundle", helpers.tiny_config(trained_depths=[3, 4], depth_map="resample"))
    write_sizes(folder, [row(5, "1", 5, 900, 90, 0.5)])
    for depth, warnings in ((6, 0), (3, 0), (4, 0), (5, 0), (2, 1), (12, 1)):
        caplog.clear()
        load(folder, depth=depth, constrained=constrained)
        records = [record for record in caplog.records if "measure" in record.getMessage()]
        assert len(records) == warnings, f"depth {depth}"
        assert all(record.levelno == logging.WARNING and str(depth) in record.getMessage() for record in records)


@pytest.mark.parametrize("trained, warned", [(None, []), ([5], [1, 2, 4]), ([1, 2, 5], [4]), ([], [1, 2, 4])])
@pytest.mark.parametrize("constrained", [False, True])
def test_only_components_neither_trained_nor_measured_warn(load, tmp_path, caplog, constrained, trained, warned):
    """The first of a lossless conversion's are no model; of bundles of before it is not recorded. All that is stored
    passes, as the full depth does."""
    folder = helpers.bundle(tmp_path / "bundle", helpers.tiny_config(trained_components=trained))
    write_sizes(folder, [row(6, "1", 3, 900, 90, 0.5)])
    for count in range(1, 6):
        caplog.clear()
        load(folder, num_components=count, constrained=constrained)
        found = [text for text in caplog.messages if text.startswith(f"Number of components {count} of {folder} was ")]
        assert len(found) == (count in warned), f"{count} components"
        assert all("neither trained (" in text and text.endswith("before relying on it.") for text in found)
    load(folder, num_components=4, allow_untrained=True, constrained=constrained)
    assert len([text for text in caplog.messages if "of components 4" in text]) == 0


BUDGETS = [
    ({"max_params": 1e9}, (6, "1", 4)),
    ({"max_params": 1000}, (6, "1", 5)),
    ({"max_params": 999}, (3, "1", 5)),  # of two equally accurate ones the one with fewer MACs, though more parameters
    ({"max_params": 649}, (5, "1/2", 5)),
    ({"max_macs": 650}, (3, "1", 5)),
    ({"max_macs": 100}, (3, "1/2", 2)),
    ({"max_latency_ms": 1000}, (6, "1", 5)),  # the most accurate one was never timed
    ({"max_latency_ms": 7.5}, (4, "1", 4)),
    ({"max_params": 690, "max_macs": 690}, (5, "1/2", 5)),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """The tiny bundle with sizes measured, its configuration without a size asked for."""
    stored = {"depth": None, "num_components": None, "reference_depth": 6, "reference_components": 5}
    folder = helpers.bundle(tmp_path_factory.mktemp("measured") / "bundle", helpers.tiny_config(**stored))
    write_sizes(folder, ROWS[::-1])
    return folder


@pytest.mark.parametrize("budget, size", BUDGETS, ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_a_budget_takes_the_most_accurate_measured_size_within_it(
    measured, model, load, caplog, budget, size, constrained
):
    """Also on the boundary; of equals the one with fewest MACs; one line says which, and why."""
    loaded = load(measured, constrained=constrained, **budget)
    assert loaded.config.num_hidden_layers == size[0]
    assert loaded.config.hidden_size == 48 * Fraction(size[1])
    torch.testing.assert_close(logits(loaded), logits(model, **asked(*size)), rtol=0, atol=1e-4)
    (said,) = [record.getMessage() for record in caplog.records if "measured" in record.getMessage()]
    (chosen,) = [row for row in ROWS if size == (row["depth"], row["width_ratio"], row["num_components"])]
    assert f"depth {size[0]}, width ratio {size[1]}, {size[2]} components" in said and "\n" not in said
    assert all(f"`{name}`" in said for name in budget) and f"{100 * chosen['accuracy']:.1f} %" in said


def test_a_budget_works_where_the_stored_configuration_names_a_size(bundle, load, tmp_path):
    """`LinGeneConfig(depth=6, num_components=5)`, and every smaller bundle, stores a size that nobody asked for."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    write_sizes(folder, ROWS)
    assert LinGeneConfig.from_pretrained(folder).depth == 6
    assert load(folder, max_params=300).config.num_hidden_layers == 5
    load(bundle, constrained=True, depth=4).save_pretrained(tmp_path / "small")
    write_sizes(tmp_path / "small", ROWS)
    assert load(tmp_path / "small", max_params=300).config.num_hidden_layers == 5


@pytest.mark.parametrize("size", [(24, 24), (16, 28), (8, 8)], ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_another_image_size_interpolates_the_positions(bundle, load, constrained, size):
    """Asking for it contradicted the stored positions' shape; the reference is transformers' own interpolation."""
    pixels = helpers.images(height=size[0], width=size[1])
    loaded = load(bundle, image_size=size, constrained=constrained, **SMALLER)
    expected = load(bundle, **SMALLER).eval()(pixels, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(loaded.eval()(pixels).logits, expected, rtol=0, atol=1e-5)
    assert tuple(loaded.config.image_size) == size


def test_a_constrained_model_of_another_image_size_saves_as_a_bundle_of_it(bundle, tmp_path):
    """Its positions have been interpolated: what is saved says so."""
    model = LinGeneForImageClassification.from_pretrained(bundle, image_size=24, constrained=True)
    model.save_pretrained(tmp_path / "bundle")
    pixels = helpers.images(height=24)
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle")
    torch.testing.assert_close(again.eval()(pixels).logits, model.eval()(pixels).logits, rtol=0, atol=1e-5)


def test_a_budget_is_of_the_image_size_that_was_measured(measured, load):
    """MACs and accuracy in sizes.json hold for no other."""
    with pytest.raises(ValueError, match="do not give `image_size` as well"):
        load(measured, max_macs=1e12, image_size=24)
