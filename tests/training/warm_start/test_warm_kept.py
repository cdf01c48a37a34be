"""Laws of what a bundle says of itself, in a warm start: preprocessing, coefficients, depths, precision and shape.

Through real training, against numpy's recomposition of what was trained and transformers' own image processors.

    pytest tests/training/warm_start/test_warm_kept.py
"""

import json

import numpy
import pytest
import torch
from transformers import ViTImageProcessorPil
from warm import (
    BICUBIC,
    FITTED,
    MATRIX,
    MEAN,
    NOTHING,
    ROWS,
    STD,
    begun,
    logits,
    loop_of,
    pictures,
    recipe,
    stock,
    stored,
    trained,
)

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification
from modeling_lingene.images.loaders import Layout
from modeling_lingene.training import recipes


pytest.importorskip("matplotlib")


@pytest.mark.parametrize("image_size", [16, [16, 24]])
def test_the_bundles_preprocessing_is_what_is_trained_with_and_what_is_saved(tmp_path, monkeypatch, image_size):
    """Size, mean, standard deviation and interpolation, of pictures of another shape; against transformers' own."""
    init = begun(tmp_path / "init", image_size=image_size, patch_size=[4, 8] if image_size != 16 else 4)
    own = ViTImageProcessorPil.from_pretrained(init)
    loop = loop_of(monkeypatch, recipe(init), tmp_path / "caught")
    for source, split in ((loop.images, "train"), (loop.held_out, "validation")):
        (batch,) = source.in_order(Layout(28))
        expected = own([picture.convert("RGB") for picture in pictures(split).images], return_tensors="pt")
        assert torch.allclose(batch["pixel_values"], expected["pixel_values"], atol=1e-5)
    bundle = trained(tmp_path / "out", init)
    for folder in (bundle, tmp_path / "out" / "best"):
        saved = ViTImageProcessorPil.from_pretrained(folder)
        for field in ("size", "image_mean", "image_std", "resample", "rescale_factor"):
            assert getattr(saved, field) == getattr(own, field), field
    assert (list(saved.image_mean), saved.resample) == (MEAN, BICUBIC)
    config, side = LinGeneConfig.from_pretrained(bundle), image_size if isinstance(image_size, list) else [16, 16]
    assert config.image_size == image_size and [saved.size["height"], saved.size["width"]] == side


@pytest.mark.parametrize("varied", [{}, {"color_jitter": 1e-9}], ids=["in memory", "one by one"])
def test_a_bundle_of_one_channel_is_trained_on_grey_pictures(tmp_path, monkeypatch, varied):
    """Those of Pillow's mode L, normalised as the bundle says; kept in memory or decoded one by one, and trained."""
    init = begun(tmp_path / "init", num_channels=1)
    path = init / "preprocessor_config.json"
    said = json.loads(path.read_text()) | {"image_mean": MEAN[:1], "image_std": STD[:1], "do_convert_rgb": False}
    path.write_text(json.dumps(said))
    asked = recipe(init, workers=0, **varied)
    loop = loop_of(monkeypatch, asked, tmp_path / "caught")
    for source, split in ((loop.images, "train"), (loop.held_out, "validation")):
        (batch,) = source.in_order(Layout(28))
        shown = [picture.convert("L").resize((16, 16), BICUBIC) for picture in pictures(split).images]
        grey = torch.tensor(numpy.stack([numpy.asarray(one) for one in shown]))[:, None] / 255
        assert torch.allclose(batch["pixel_values"], (grey - MEAN[0]) / STD[0], atol=1e-5)
    ((batch, *_), *_) = loop.images.batches("seed", Layout(8))
    assert batch["pixel_values"].shape == (8, 1, 16, 16)
    recipes.decompose(asked, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "bundle" / "preprocessor_config.json").read_text())
    assert (saved["image_mean"], saved["image_std"], saved["do_convert_rgb"]) == (MEAN[:1], STD[:1], False)


@pytest.mark.parametrize(
    "channels, said",
    [(1, "`image_mean` in its preprocessor_config.json is of 3 channels, and its patches are of 1"), (4, "takes 4")],
)
def test_channels_that_pictures_cannot_have_are_refused_before_data_is_read(tmp_path, monkeypatch, channels, said):
    """In the words of the file that says otherwise."""
    init = begun(tmp_path / "init", num_channels=channels)
    monkeypatch.setattr(recipes, "training_images", None)
    with pytest.raises(ValueError, match=said):
        recipes.decompose(recipe(init), tmp_path / "out")


@pytest.mark.parametrize(
    "said, size",
    [
        ({"size": {"height": 24, "width": 16}}, (24, 16)),
        ({"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True}, (16, 16)),
    ],
)
def test_a_family_that_takes_any_size_trains_on_the_pictures_that_its_preprocessing_makes(
    tmp_path, monkeypatch, said, size
):
    """A DINOv2 holds positions for 518 pixels and is used at 224: at 518 a step would cost five times as much."""
    init = begun(tmp_path / "init", family="dinov2", image_size=32, intermediate_size=48)
    path = init / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    loop = loop_of(monkeypatch, recipe(init), tmp_path / "caught")
    (batch,) = loop.images.in_order(Layout(28))
    assert tuple(batch["pixel_values"].shape[-2:]) == size
    assert dict(loop.images.processor.size) == {"height": size[0], "width": size[1]}
    assert list(loop.images.processor.image_mean) == MEAN


@pytest.mark.parametrize("said", [{"do_normalize": False}, {"rescale_factor": 1 / 127.5}], ids=str)
def test_pictures_are_normalised_as_the_bundle_does(tmp_path, monkeypatch, said):
    """Or not at all: a mean in a file that does not use it is not that of the pictures."""
    init = begun(tmp_path / "init")
    path = init / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    own = ViTImageProcessorPil.from_pretrained(init)
    loop = loop_of(monkeypatch, recipe(init), tmp_path / "caught")
    batch = next(iter(loop.images.in_order(Layout(28))))
    shown = [loop.images.images.images[index].convert("RGB") for index in batch["index"].tolist()]
    expected = own(shown, return_tensors="pt")["pixel_values"]
    assert (batch["pixel_values"] - expected).abs().max() < 1e-5


def test_a_bundle_without_preprocessing_takes_the_usual_one_at_its_own_size(tmp_path, monkeypatch, bundle):
    """Saved from memory it has none; the size is not that of the pictures."""
    loop = loop_of(monkeypatch, recipe(bundle), tmp_path / "caught")
    processor = loop.images.processor
    assert dict(processor.size) == {"height": 16, "width": 16} and list(processor.image_mean) == [0.5] * 3
    assert torch.equal(loop.model.classifier.weight, helpers.tiny_model().classifier.weight)


def test_learned_coefficients_and_chosen_layers_survive_training_and_saving(tmp_path):
    """Recomposed by numpy from the trained components and the table of the start: any other gives other logits."""
    init = begun(tmp_path / "init", **FITTED)
    result = trained(tmp_path / "out", init, "elastic", depths=(2, 3), learning_rate=1e-3)
    config = LinGeneConfig.from_pretrained(result)
    assert (config.basis, config.depth_map) == ("learned", "select")
    assert config.coefficient_matrix == MATRIX and config.depth_rows == ROWS
    model = LinGeneForImageClassification.from_pretrained(result, constrained=True).eval()
    for depth, count in ((6, 5), (3, 5), (2, 4), (4, 2)):
        reference, size = helpers.reference_vit(model, depth, "1", count), {"depth": depth, "num_components": count}
        with torch.no_grad():
            expected = reference(helpers.images()).logits
        assert torch.allclose(logits(result, **size), expected, atol=1e-4)
        assert (logits(init, **size) - expected).abs().max() > 1e-3  # it was trained


def test_learned_coefficients_are_cut_with_the_components(tmp_path):
    """Columns of the matrix are components."""
    init = begun(tmp_path / "init", **FITTED)
    result = trained(tmp_path / "out", init, num_components=3, learning_rate=NOTHING)
    assert LinGeneConfig.from_pretrained(result).coefficient_matrix == [row[:3] for row in MATRIX]
    assert torch.allclose(logits(result, depth=3), logits(init, depth=3, num_components=3), atol=1e-5)


def test_the_sizes_that_were_trained_are_written_down(tmp_path, init):
    """A warm start trains the full width alone: what the bundle said of narrower ones no longer holds."""
    before = LinGeneConfig.from_pretrained(init)
    assert before.trained_width_ratios == ["1/2", "1"] and before.trained_depths == [6]
    after = LinGeneConfig.from_pretrained(trained(tmp_path / "out", init, depths=(4, 2)))
    assert after.trained_components == [1, 2, 4, after.reference_components] != before.trained_components
    assert after.trained_width_ratios == ["1"] and after.trained_depths == [2, 4, 6]
    with pytest.raises(ValueError, match="`width_ratio` 1/2 was never trained"):
        stock(tmp_path / "out" / "bundle", width_ratio="1/2")


def test_a_bundle_of_fewer_layers_is_trained_at_the_depth_that_is_written_down(tmp_path, monkeypatch, init):
    """Saved from a constrained model of three layers of six: three are evaluated, measured and said to be trained."""
    LinGeneForImageClassification.from_pretrained(init, constrained=True, depth=3).save_pretrained(tmp_path / "three")
    forward, depths = LinGeneForImageClassification.forward, set()

    def watched(model, *inputs, depth=None, **named):
        depths.add(depth or model.config.num_hidden_layers)
        return forward(model, *inputs, depth=depth, **named)

    monkeypatch.setattr(LinGeneForImageClassification, "forward", watched)
    result = trained(tmp_path / "out", tmp_path / "three")
    assert sorted(depths) == LinGeneConfig.from_pretrained(result).trained_depths


def test_a_bundle_in_half_precision_goes_on_in_single(tmp_path):
    """Steps of training are lost in bfloat16's eight bits."""
    init = begun(tmp_path / "init", dtype=torch.bfloat16)
    result = trained(tmp_path / "out", init, learning_rate=NOTHING)
    for key, tensor in stored(result).items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, stored(init)[key].float(), rtol=0, atol=1e-8)


def test_dropout_is_the_runs(tmp_path, monkeypatch, init):
    """The only setting of the model, with the number of components, that a warm start takes."""
    loop = loop_of(monkeypatch, recipe(init, dropout=0.25, hidden_size=96, depth=2), tmp_path / "caught")
    assert loop.model.config.hidden_dropout_prob == 0.25
    assert (loop.model.config.hidden_size, loop.model.config.num_hidden_layers) == (48, 6)
