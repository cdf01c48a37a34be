"""A cached teacher asks once for every picture and then answers as the teacher does, or refuses pictures that vary.

In any order, for any part of a step.

    pytest tests/training/teachers/test_cached_teachers.py
"""

import shutil
from types import SimpleNamespace

import pytest
import torch
from teacher_models import CLASSES, IMAGES, LAYOUT, answers, cached_teacher, load

import helpers
from modeling_lingene.images.augmentation import AUGMENTATIONS, Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.images.loaders import Layout, MemoryImages, PictureImages
from modeling_lingene.training import recipes
from modeling_lingene.training.teacher_cache import check_cache
from modeling_lingene.training.teachers import Teacher


class Counted:
    """A teacher that notes how many pictures it was asked for."""

    def __init__(self, teacher: Teacher):
        self.teacher, self.asked = teacher, 0

    def __call__(self, batch: dict) -> torch.Tensor:
        self.asked += len(batch["pixel_values"])
        return self.teacher(batch)


LAYOUTS = [Layout(4), Layout(3, accumulation=2), Layout(2, 2, processes=3, process=1), Layout(14)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.images} images")
@pytest.mark.parametrize("kind", ["memory", "pictures"])
def test_a_cached_teacher_gives_every_batch_what_the_teacher_gives(tmp_path, kind, layout):
    """In any order, for any part of a step; and every picture is asked for once."""
    images = IMAGES if kind == "memory" else PictureImages(IMAGES.images, image_processor(16), Augmentation())
    teacher = load("transformers", tmp_path / "teacher", images)
    counted = Counted(teacher)
    cached, seen = cached_teacher(counted, images, tmp_path), 0
    for epoch in range(3):
        for parts in images.batches(f"0 0 {epoch}", layout):
            for batch in parts:
                got = cached(batch)
                assert got.shape == (len(batch["index"]), CLASSES)
                assert torch.allclose(got, teacher(batch), atol=1e-5)
                seen += len(got)
    assert seen >= 3 * layout.batch_size and counted.asked == len(images) == 14
    distances = torch.cdist(answers(cached, images), answers(cached, images))
    assert (distances + torch.eye(14)).min() > 1e-3  # no two pictures have one answer


@pytest.mark.parametrize("source", [MemoryImages, PictureImages])
def test_a_cached_teacher_does_not_mistake_pictures_where_one_does_not_decode(tmp_path, source):
    """Those after it keep their own answers."""
    made = helpers.pictures(101)
    whole = MemoryImages(made, image_processor(16), Augmentation())
    teacher = load("transformers", tmp_path / "teacher", whole)
    expected = {tuple(batch["pixel_values"].flatten()[:8].tolist()): teacher(batch)[0] for batch in ones(whole)}
    broken = LabelledImages([*made.images], made.labels, made.class_names, "made", "train")
    broken.images[5] = "no picture"
    with pytest.warns(UserWarning, match="do not decode"):
        images = source(broken, image_processor(16), Augmentation())
        cached = cached_teacher(teacher, images, tmp_path)
    seen = [
        (cached(batch)[0], expected[tuple(batch["pixel_values"].flatten()[:8].tolist())]) for batch in ones(images)
    ]
    assert len(seen) == 100 and len(expected) == 101
    assert all(torch.allclose(got, wanted, atol=1e-5) for got, wanted in seen)


def ones(images: MemoryImages | PictureImages):
    """Picture by picture, without those that do not decode."""
    for batch in images.in_order(LAYOUT):
        for row in range(len(batch["index"])):
            yield {key: value[row : row + 1] for key, value in batch.items()}


VARIED = [
    {"crop_padding": 1},
    {"flip": True},
    {"erasing": 0.1},
    {"mixup": 0.1},
    {"cutmix": 1.0},
    AUGMENTATIONS["mixed"],
]
VARIED += [{"resized_crop": True}, {"rand_augment": "rand-m9"}, {"color_jitter": 0.3}]


@pytest.mark.parametrize("fields", VARIED, ids=str)
def test_images_that_vary_are_refused_before_the_teacher_is_loaded(tmp_path, fields):
    """Its answers would be to other pictures."""
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    asked = recipes.Recipe(
        data="digits",
        teacher=str(tmp_path / "nobody"),
        cache_teacher=True,
        augmentation=Augmentation(**fields),
        training=recipes.TrainingSettings(device="cpu", learning_rate=1e-3),
    )
    with pytest.raises(ValueError, match="`cache_teacher` needs images that are the same in every epoch"):
        recipes.decompose(asked, tmp_path / "run")


def test_answers_that_are_too_many_are_refused_and_so_is_a_stream(tmp_path):
    """By their bytes: 14 pictures of 7 classes, 4 bytes a number."""
    with pytest.raises(ValueError, match="`cache_gb` 1e-07 is too little: the teacher's answers to 14 pictures take"):
        check_cache(tmp_path, 14, (7,), 1e-7, Augmentation())
    check_cache(tmp_path, 14, (7,), 4e-7, Augmentation())
    with pytest.raises(ValueError, match="`cache_teacher` needs images that can be counted; leave `streaming` out"):
        recipes.Recipe(data="digits", teacher="vit", cache_teacher=True, streaming=True)


def test_answers_that_were_interrupted_need_no_room_again(tmp_path, monkeypatch):
    """A disk of their size is full when most of them are there; what is yet to be written takes none of it."""
    there = tmp_path / "teacher" / "train.partial"
    there.parent.mkdir()
    there.write_bytes(b"1" * 4 * 14 * 7 * 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    check_cache(tmp_path, 14, (700,), 1, Augmentation())
    with pytest.raises(ValueError, match="`cache_teacher` needs room"):
        check_cache(tmp_path, 140, (700,), 1, Augmentation())
    with open(there, "wb") as file:
        file.truncate(4 * 14 * 7 * 100)  # nothing of it written
    with pytest.raises(ValueError, match="`cache_teacher` needs room"):
        check_cache(tmp_path, 14, (700,), 1, Augmentation())
