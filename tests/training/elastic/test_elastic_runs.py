"""Laws of elastic training: runs record and measure what they trained, go on, and refuse what contradicts itself.

pytest tests/training/elastic/test_elastic_runs.py
"""

import dataclasses
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
import torch
from elastic_nets import QUARTERS, constrained, elastic, isolated, read, weights, written_out
from transformers import AutoModelForImageClassification

import helpers
from modeling_lingene import LinGeneConfig
from modeling_lingene.folders import bundle_weights_id
from modeling_lingene.images import data
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.images.loaders import Layout
from modeling_lingene.measuring import metrics
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.elastic import SAMPLINGS
from modeling_lingene.training.loop import TrainingLoop


PLAIN = (image_processor(16), Augmentation())


# Whole runs.


def coloured(split: str) -> LabelledImages:
    """Noise over a colour for each of the seven classes."""
    from PIL import Image

    made = helpers.pictures(28, seed=split == "test")
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255), (0, 0, 0)]
    mixed = [
        Image.blend(picture, Image.new("RGB", picture.size, colours[label]), 0.15)
        for picture, label in zip(made.images, made.labels)
    ]
    return dataclasses.replace(made, images=mixed, split=split)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures from memory; latency and plots are left out."""
    monkeypatch.setattr(data, "load_images", lambda _, split: coloured(split))
    monkeypatch.setattr(metrics, "latency_ms", lambda *_, **__: {"median": 1.0, "iqr": 0.1})
    for plot in ("plot_sizes", "plot_heat", "plot_history"):
        monkeypatch.setattr(recipes, plot, lambda *_, **__: None)


def tiny_recipe(decomposition: DecompositionSettings, init: Path | str = "", **training) -> recipes.Recipe:
    """Three layers of 24 channels and 4 heads, an epoch of three steps."""
    settings = {"epochs": 1, "batch_size": 8, "device": "cpu", "learning_rate": 1e-2, **training}
    model = recipes.ModelSettings(24, 4, intermediate_size=24, patch_size=8, depth=3, dropout=0.1)
    if init:  # whose shape it is then; these have heads of another number
        model = recipes.ModelSettings(num_attention_heads=3)
    return recipes.Recipe("made", model, recipes.TrainingSettings(**settings), decomposition, init=str(init))


@pytest.mark.parametrize(
    "sampling, widths, depths, totals, isolation",
    [
        ("one", ("0.5",), (2,), (1, 3), False),
        ("sandwich", ("1/2", "1/4"), (2,), (3,), False),
        ("scala", ("3/4", "1/4", "1/2"), (), (1, 3), True),
    ],
    ids=SAMPLINGS,
)
def test_a_run_records_its_sizes_and_measures_every_one_of_them(
    quick, tmp_path, sampling, widths, depths, totals, isolation
):
    """Depths x widths x totals, each the network that was trained: accuracy is recounted, cost written out."""
    chosen = elastic(sampling=sampling, widths=widths, depths=depths, totals=totals, isolated_activation=isolation)
    rows = recipes.decompose(tiny_recipe(chosen, epochs=6), tmp_path / "out")
    bundle = tmp_path / "out" / "bundle"
    trained = [width for width in QUARTERS if Fraction(width) in map(Fraction, widths)] + ["1"]
    asked = [(row["depth"], row["width_ratio"], row["num_components"]) for row in rows]
    assert asked == list(product((*depths, 3), trained, totals))
    assert read(bundle / "sizes.json")["sizes"] == rows == read(tmp_path / "out" / "results.json")["sizes"]
    config = LinGeneConfig.from_pretrained(bundle)
    assert (config.trained_width_ratios, config.trained_depths) == (trained, [*depths, 3])
    assert config.isolated_activation is isolation
    held = helpers.MemoryImages(coloured("test"), *PLAIN)
    (batch,) = held.in_order(Layout(28))
    parameters = weights(constrained(bundle))
    for row, (depth, width, count) in zip(rows, asked):
        trailing = isolated(config, width)
        logits = written_out(parameters, config, batch["pixel_values"], depth, count, width, trailing)
        assert row["accuracy"] == round((logits.argmax(-1) == batch["labels"]).double().mean().item(), 6), row
        d, patches = int(24 * Fraction(width)), 4
        layer = 4 * d * (d + 1) + 2 * d * d + 2 * d + 4 * d
        assert row["params"] == depth * layer + (3 * 8 * 8 + 1) * d + (1 + patches + 1) * d + 2 * d + 7 * (d + 1)
        tokens = patches + 1
        products = 4 * tokens * d * d + 2 * tokens * tokens * d + 2 * tokens * d * d
        assert row["macs"] == patches * 3 * 8 * 8 * d + depth * products + 7 * d
    assert len({row["accuracy"] for row in rows}) > 2  # or any row could be any other
    for name, width in product(("bundle", "best"), set(QUARTERS) - set(trained)):
        with pytest.raises(ValueError, match=f"`width_ratio` {width} was never trained"):
            AutoModelForImageClassification.from_pretrained(tmp_path / "out" / name, width_ratio=width)


@pytest.mark.parametrize("isolation", [False, True], ids=["nested", "isolated"])
def test_a_run_that_goes_on_from_a_bundle_records_its_own_sizes(quick, monkeypatch, isolating, tmp_path, isolation):
    """What the bundle was trained at before is no longer true, nor is which channels its widths have."""
    monkeypatch.setattr(recipes, "measure_sizes", first_size(recipes.measure_sizes))
    chosen = elastic(totals=(5,), depths=(2, 4), widths=("1/2", "3/4"), isolated_activation=isolation)
    recipes.decompose(tiny_recipe(chosen, isolating.folder), tmp_path)
    config = LinGeneConfig.from_pretrained(tmp_path / "bundle")
    assert (config.trained_depths, config.trained_width_ratios) == ([2, 4, 6], ["1/2", "3/4", "1"])
    assert [config.size(width_ratio=width).trailing for width in ("1/2", "3/4", "1")] == [False, isolation, False]


def first_size(measure):
    """Measuring the first size alone."""
    return lambda bundle, batches, sizes, **keywords: measure(bundle, batches, sizes[:1], **keywords)


# Two epochs of three steps of two parts; the full network trains alone in the first two steps.
@pytest.mark.parametrize("stop, every", [(4, 0), (2, 1)], ids=["loses a step", "as others join"])
def test_a_stopped_run_ends_bitwise_as_one_that_went_through(quick, monkeypatch, tmp_path, stop, every):
    """Sizes, dropout, order and the share that is over come from the seed and the step alone; a draw from the global
    state, or a share counted from where the run went on, would change some bit.
    """
    monkeypatch.setattr(recipes, "measure_sizes", first_size(recipes.measure_sizes))
    chosen = elastic(sampling="scala", widths=QUARTERS, depths=(2,), full_first=0.3, isolated_activation=True)
    recipe = tiny_recipe(chosen, epochs=2, batch_size=4, accumulation=2, checkpoint_every=every)
    take, taken = TrainingLoop._step, []

    def step(loop, run, parts):
        if len(taken) == stop and len(parts) == 2:
            raise KeyboardInterrupt
        taken.append(run.progress.step)
        return take(loop, run, parts)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            recipes.decompose(recipe, tmp_path / "stopped")
    assert taken == list(range(stop)) and not (tmp_path / "stopped" / "bundle").exists()
    torch.manual_seed(99)  # as in another process
    for name in ("stopped", "whole"):
        recipes.decompose(recipe, tmp_path / name)
    one, other = (tmp_path / name / "bundle" for name in ("stopped", "whole"))
    assert bundle_weights_id(one) == bundle_weights_id(other)
    assert LinGeneConfig.from_pretrained(one).to_dict() == LinGeneConfig.from_pretrained(other).to_dict()
    one, other = (read(tmp_path / name / "history.json")["epochs"] for name in ("stopped", "whole"))
    assert [row["loss"] for row in one] == [row["loss"] for row in other]


def test_a_run_depends_on_all_that_is_resumed(quick, monkeypatch, tmp_path):
    """Or the law before would hold of a run that leaves it out."""
    monkeypatch.setattr(recipes, "measure_sizes", first_size(recipes.measure_sizes))
    ends = []
    for fields, dropout in (({}, 0.1), ({"full_first": 0.9}, 0.1), ({"depths": ()}, 0.1), ({}, 0.0)):
        recipe = tiny_recipe(elastic(**{"sampling": "scala", "widths": QUARTERS, "depths": (2,), **fields}))
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=dropout))
        recipes.decompose(recipe, tmp_path / str(len(ends)))
        ends.append(bundle_weights_id(tmp_path / str(len(ends)) / "bundle"))
    assert len(set(ends)) == 4


# What is refused.


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_, **__):
        raise AssertionError("data was read")

    monkeypatch.setattr(data, "load_images", forbidden)


CONTRADICTIONS = [
    ({"schedule": "incremental", "widths": ("1/2",)}, "`widths` .* elastic, and `schedule` is incremental"),
    ({"schedule": "simultaneous", "widths": ("1/2",)}, "`widths` .* elastic, and `schedule` is simultaneous"),
    ({"sampling": "scala"}, "`sampling` scala .* `widths`"),
    ({"sampling": "scala", "depths": (2,)}, "`sampling` scala .* `widths`"),
    ({"isolated_activation": True}, "`isolated_activation` True .* `widths`"),
    ({"widths": ("half",)}, "`widths` must be a number .*'half'"),
    ({"widths": ("0",)}, "`widths` must leave whole heads"),
    ({"widths": ("5/4",)}, "`widths` must leave whole heads"),
    ({"depths": (4,)}, "`depths` 4 is above"),
    ({"widths": ("1/2",), "totals": (1, 2)}, r"`totals` must increase and end at the 3 components, got \[1, 2\]"),
]


@pytest.mark.parametrize(
    "fields, message", CONTRADICTIONS, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_what_contradicts_itself_is_refused_before_data_is_read(no_data, tmp_path, fields, message):
    """A download may take hours; nothing is written either."""
    with pytest.raises(ValueError, match=message):
        recipes.decompose(tiny_recipe(DecompositionSettings(**fields)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_size_that_is_illegal_is_told_at_once(no_data, tmp_path):
    """A list is corrected once, not once per entry; the legal ones are not blamed."""
    chosen = elastic(widths=("1/3", "1/2", "2/5", "1/8"), depths=(2, 7, 9))
    with pytest.raises(ValueError) as caught:
        recipes.decompose(tiny_recipe(chosen), tmp_path)
    message = str(caught.value)
    assert all(f"`depths` {depth} is above" in message for depth in (7, 9))
    assert all(f"{width} of 4 heads is" in message for width in ("1/3", "2/5", "1/8"))
    assert "1/2 of 4" not in message and "`depths` 2" not in message
    assert message.count("use one of 1/4, 1/2, 3/4, 1.") == 3


@pytest.mark.parametrize("width, legal", [("1/4", True), ("1/3", False)])
def test_widths_must_be_legal_for_the_bundle_that_a_run_goes_on_from(no_data, isolating, tmp_path, width, legal):
    """It has four heads, and the model settings, which count no longer, three."""
    recipe = tiny_recipe(elastic(widths=(width,)), isolating.folder)
    error, message = (AssertionError, "data was read") if legal else (ValueError, f"{width} of 4 heads")
    with pytest.raises(error, match=message):
        recipes.decompose(recipe, tmp_path / "out")
