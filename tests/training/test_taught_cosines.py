"""Laws of the cosines at the end of a run without labels: of the pixels and the tokens that training compared.

Against the stock model, asked for the same squashed pictures; these are no squares, so that a crop would show.

    pytest tests/training/test_taught_cosines.py
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModel,
    BitImageProcessorPil,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    ViTImageProcessorPil,
)

import helpers
from modeling_lingene.conversion.convert import convert
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import split_off
from modeling_lingene.images.pictures import load_pictures
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.losses import Objective


pytest.importorskip("matplotlib")
NORMALISED = dict(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
SHAPE = dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four pictures of 40 x 64 pixels that differ from edge to edge."""
    folder, generator = tmp_path_factory.mktemp("photos"), numpy.random.default_rng(0)
    for number in range(24):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 8, 3), dtype=numpy.uint8))
        coarse.resize((64, 40), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def saved(folder: Path, make: Callable[[], nn.Module], processor) -> nn.Module:
    """The model of a folder, every parameter changed."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A DINOv2 whose preprocessing keeps the shape of a picture and cuts its middle out, as the released ones do."""
    cropping = BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, do_center_crop=True, **NORMALISED
    )
    folder = tmp_path_factory.mktemp("dino") / "dino"
    config = Dinov2Config(**SHAPE, mlp_ratio=2, image_size=28, patch_size=7)
    return folder, saved(folder, lambda: Dinov2Model(config), cropping)


@pytest.fixture(scope="module")
def converted(dino, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "bundle"
    convert(str(dino[0]), folder)
    return folder


def rows_of(out: Path, data: Path, init: Path | str = "", **changes) -> list[dict]:
    """Of a run that leaves its weights as they are, where it has some."""
    training = recipes.TrainingSettings(epochs=1, batch_size=8, device="cpu", learning_rate=1e-12)
    recipe = recipes.Recipe(
        data=str(data),
        init=str(init),
        workers=0,
        training=training,
        decomposition=DecompositionSettings("elastic", totals=(2,), networks=1),
        objective=Objective(kind="features", feature_heads=changes.pop("feature_heads", "linear")),
    )
    return recipes.decompose(dataclasses.replace(recipe, **changes), out)


def held_out(data: Path, size: int, mean: list[float], std: list[float]) -> torch.Tensor:
    """The pictures held out, squashed by Pillow: (n, 3, size, size)."""
    held = split_off(load_pictures(str(data), "train"), recipes.Recipe(data="").validation_share, 0)[1]
    squashed = [
        held.images[n].convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for n in range(len(held))
    ]
    pixels = torch.tensor(numpy.stack(squashed)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def mean_cosines(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Of class tokens and of patches; both (n, t, d)."""
    cosines = torch.cosine_similarity(found, expected, dim=-1)
    return float(cosines[:, 0].mean()), float(cosines[:, 1:].mean())


@pytest.mark.parametrize("named", [False, True], ids=["itself", "the model that it was converted from"])
def test_what_has_not_changed_is_what_it_learned_from(tmp_path, photos, dino, converted, named):
    """A bundle of a DINOv2 keeps its crop, and training squashes whole pictures, for student and teacher alike."""
    taught = {"teacher": str(dino[0]), "feature_heads": "identity"} if named else {}
    (row,) = rows_of(tmp_path / "run", photos, converted, **taught)
    assert row["cosine"] > 0.9999 and row["patch_cosine"] > 0.9999
    assert row["reference"] == (dino[0] if named else converted).name


def test_a_teacher_of_another_normalisation_is_asked_as_training_asks_it(tmp_path, photos, dino):
    """A student of its own, far from it: the cosine is that with the stock model on the same squashed pictures."""
    folder, stock = dino
    config = helpers.tiny_config(family="dinov2", depth=2, num_components=2, image_size=28, patch_size=7)
    init = helpers.bundle(tmp_path / "init", config)
    image_processor(28).save_pretrained(init)
    (row,) = rows_of(tmp_path / "run", photos, init, teacher=str(folder), feature_heads="identity")
    student = AutoModel.from_pretrained(tmp_path / "run" / "bundle").eval()
    with torch.no_grad():
        found = student(held_out(photos, 28, [0.5] * 3, [0.5] * 3)).last_hidden_state
        expected = stock(held_out(photos, 28, NORMALISED["image_mean"], NORMALISED["image_std"])).last_hidden_state
    cosine, patches = mean_cosines(found, expected)
    assert (row["cosine"], row["patch_cosine"]) == (pytest.approx(cosine, abs=1e-3), pytest.approx(patches, abs=1e-3))


def test_a_teacher_with_a_token_of_another_kind_is_compared_by_class_token_and_patches(tmp_path, photos):
    """DeiT's distillation token stands between them, which training leaves out; the measure at the end counted it as a
    patch and refused, after all of the training and again at every resuming."""
    config = DeiTConfig(**SHAPE, intermediate_size=96, image_size=16, patch_size=4)
    own = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    stock = saved(tmp_path / "deit", lambda: DeiTModel(config), own)
    init = helpers.bundle(tmp_path / "init", helpers.tiny_config(depth=2, num_components=2))
    image_processor(16).save_pretrained(init)
    asked = {"teacher": str(tmp_path / "deit"), "feature_heads": "identity"}
    (row,) = rows_of(tmp_path / "run", photos, init, **asked)
    student = AutoModel.from_pretrained(tmp_path / "run" / "bundle").eval()
    with torch.no_grad():
        pixels = held_out(photos, 16, [0.5] * 3, [0.5] * 3)
        expected = stock(pixels).last_hidden_state
        found = student(pixels).last_hidden_state
    cosine, patches = mean_cosines(found, torch.cat((expected[:, :1], expected[:, 2:]), dim=1))
    assert expected.shape[1] == found.shape[1] + 1
    assert (row["cosine"], row["patch_cosine"]) == (pytest.approx(cosine, abs=1e-3), pytest.approx(patches, abs=1e-3))
