"""Laws of teachers: frozen classifiers that see the student's batch through their own preprocessing, whatever it is.

What a teacher must answer is computed from the raw pictures, by the stock model behind its own stock processor.

    pytest tests/training/test_teachers.py
"""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

import helpers
from modeling_lingene.images.augmentation import AUGMENTATIONS, Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.images.loaders import Layout, MemoryImages, PictureImages
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.teachers import CachedTeacher, Teacher, load_teacher


CLASSES = helpers.TINY["num_labels"]
NORMALISED = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
IMAGES = helpers.source(14)
LAYOUT = Layout(4)


def vit(size: int = 16, model_class: type = ViTForImageClassification, **fields) -> nn.Module:
    """A stock model of noise whose answers depend on the picture."""
    sizes = dict(hidden_size=16, num_attention_heads=2, intermediate_size=32, num_hidden_layers=1, num_labels=CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(ViTConfig(**{**sizes, "image_size": size, "patch_size": size // 4, **fields})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def square(size: int, **fields) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": size, "width": size}, **fields)


def saved(folder: Path, model: nn.Module | None = None, processor: Any = None) -> str:
    """Both in one folder, as people publish them."""
    (model or vit()).save_pretrained(folder)
    (processor or square(16, **NORMALISED)).save_pretrained(folder)
    return str(folder)


def by_hand(folder: str, images: LabelledImages) -> torch.Tensor:
    """What the stock model in that folder says about the raw pictures, through its own processor."""
    model, processor = ViTForImageClassification.from_pretrained(folder), ViTImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        return model(processor(list(images.images), return_tensors="pt")["pixel_values"]).logits


def answers(teacher, images: MemoryImages | PictureImages) -> torch.Tensor:
    """To every image as it is, in order."""
    return torch.cat([teacher(batch) for batch in images.in_order(LAYOUT)])


def resized(images: LabelledImages, size: int) -> torch.Tensor:
    """The raw pictures at another size by Pillow, in floating point, and normalised: (n, 3, size, size)."""
    from PIL import Image

    raw = numpy.stack([numpy.asarray(picture, dtype=numpy.float32) / 255 for picture in images.images])
    planes = [Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC) for plane in planes_of(raw)]
    pixels = numpy.stack(planes).reshape(len(raw), 3, size, size)
    mean, std = (numpy.reshape(NORMALISED[key], (3, 1, 1)) for key in ("image_mean", "image_std"))
    return torch.from_numpy((pixels - mean) / std).float()


def planes_of(raw: numpy.ndarray) -> numpy.ndarray:
    """(n, h, w, 3) -> (3 n, h, w)."""
    return numpy.ascontiguousarray(numpy.moveaxis(raw, -1, 1)).reshape(-1, *raw.shape[1:3])


def test_a_transformers_teacher_answers_as_behind_its_own_processor(tmp_path):
    """Another mean and another deviation than the student's; of one size, so that only floats round."""
    name = saved(tmp_path / "teacher")
    expected = by_hand(name, IMAGES.images)
    got = answers(load_teacher(name, IMAGES), IMAGES)
    assert got.dtype == torch.float32 and torch.allclose(got, expected, atol=1e-5)
    square(16, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(name)  # the student's
    assert (by_hand(name, IMAGES.images) - expected).abs().mean() > 0.05


@pytest.mark.parametrize("size", [8, 20, 32])
def test_a_teacher_of_another_image_size_sees_the_pictures_resized_to_it(tmp_path, size):
    """Larger and smaller, against Pillow in floating point; its own processor differs by rounding to bytes."""
    name = saved(tmp_path / "teacher", vit(size), square(size, resample=3, **NORMALISED))
    got = answers(load_teacher(name, IMAGES), IMAGES)
    with torch.no_grad():
        expected = vit(size)(resized(IMAGES.images, size)).logits
    assert torch.allclose(got, expected, atol=1e-4)
    own = by_hand(name, IMAGES.images)
    assert (got - own).abs().mean() < 0.1 * own.std(0).mean()


def test_a_teacher_that_says_only_the_shorter_edge_gets_that_size_too(tmp_path):
    """As ResNet's, ConvNeXt's and many other processors do; on square pictures it is the same size."""
    edge = ViTImageProcessorPil(size={"shortest_edge": 20}, resample=3, **NORMALISED)
    name = saved(tmp_path / "teacher", vit(20), edge)
    with torch.no_grad():
        expected = vit(20)(resized(IMAGES.images, 20)).logits
    assert torch.allclose(answers(load_teacher(name, IMAGES), IMAGES), expected, atol=1e-4)


def test_a_teacher_that_crops_gets_the_size_after_cropping(tmp_path):
    """Its model takes 20 pixels and no 24."""
    pytest.importorskip("torchvision")
    from transformers import DeiTImageProcessor

    sizes = dict(size={"height": 24, "width": 24}, crop_size={"height": 20, "width": 20}, resample=3)
    name = saved(tmp_path / "teacher", vit(20), DeiTImageProcessor(do_center_crop=True, **sizes, **NORMALISED))
    with torch.no_grad():
        expected = vit(20)(resized(IMAGES.images, 20)).logits
    assert torch.allclose(answers(load_teacher(name, IMAGES), IMAGES), expected, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"do_normalize": False},
        {"do_normalize": False, **NORMALISED},
        {"do_rescale": False, "image_mean": [120.0, 130.0, 140.0], "image_std": [50.0, 60.0, 70.0]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    ],
    ids=str,
)
def test_preprocessing_of_another_kind_is_followed_or_refused_and_never_ignored(tmp_path, fields):
    """A teacher that sees pictures of another scale than it was trained on teaches noise, and nothing shows it."""
    name = saved(tmp_path / "teacher", processor=square(16, **fields))
    try:
        teacher = load_teacher(name, IMAGES)
    except ValueError as error:
        assert "`teacher`" in str(error)
    else:
        assert torch.allclose(answers(teacher, IMAGES), by_hand(name, IMAGES.images), atol=1e-4)


def test_channels_in_another_order_are_followed_or_refused(tmp_path):
    """MobileViT's processors give blue first, and name neither mean nor deviation."""
    pytest.importorskip("torchvision")
    from transformers import MobileViTImageProcessor

    sizes = dict(size={"height": 16, "width": 16}, do_center_crop=False, do_flip_channel_order=True)
    name = saved(tmp_path / "teacher", processor=MobileViTImageProcessor(**sizes))
    try:
        teacher = load_teacher(name, IMAGES)
    except ValueError as error:
        assert "`teacher`" in str(error)
    else:
        raw = torch.stack([torch.tensor(numpy.array(picture)) for picture in IMAGES.images.images])
        blue_first = raw.permute(0, 3, 1, 2).flip(1).float() / 255
        with torch.no_grad():
            expected = vit()(blue_first).logits
        assert torch.allclose(answers(teacher, IMAGES), expected, atol=1e-4)


def test_a_teacher_sees_the_mixed_batch_that_the_student_sees(tmp_path):
    """Its answer to a mixed picture is what is distilled; the batch itself stays as it is."""
    pytest.importorskip("torchvision")
    mixed = helpers.source(14, Augmentation(flip=True, mixup=0.8))
    name = saved(tmp_path / "teacher")
    teacher, model = load_teacher(name, mixed), ViTForImageClassification.from_pretrained(name)
    ((batch,), *_) = mixed.batches("0 0 0", LAYOUT)
    pixels = batch["pixel_values"].clone()
    got = teacher(batch)
    mean, std = (torch.tensor(NORMALISED[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        expected = model((pixels * 0.5 + 0.5 - mean) / std).logits
    assert torch.allclose(got, expected, atol=1e-5) and torch.equal(batch["pixel_values"], pixels)
    assert not torch.allclose(got, by_hand(name, IMAGES.images)[batch["index"]], atol=1e-2)


def tiny_timm(folder: Path, size: int, **model_fields) -> tuple[str, nn.Module]:
    """A timm model with a mean and deviation of its own, saved as timm does; its name here."""
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    shape = dict(img_size=size, patch_size=size // 4, embed_dim=16, depth=1, num_heads=2)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **shape, **{"num_classes": CLASSES, **model_fields}).eval()
    model.pretrained_cfg |= {"mean": NORMALISED["image_mean"], "std": NORMALISED["image_std"]}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_for_hf(model, str(folder), model_args=shape)
    return f"timm:local-dir:{folder}", model


@pytest.mark.parametrize("size", [16, 20])
def test_a_timm_teacher_answers_as_behind_the_preprocessing_of_its_configuration(tmp_path, size):
    """Weights, mean, deviation and size all come from the folder; where sizes are equal, only floats round."""
    name, model = tiny_timm(tmp_path / "teacher", size)
    with torch.no_grad():
        expected = model(resized(IMAGES.images, size))
    got = answers(load_teacher(name, IMAGES), IMAGES)
    assert got.dtype == torch.float32 and torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("config", [helpers.tiny_config(), helpers.tiny_config(image_size=20, patch_size=5)])
def test_a_bundle_of_ours_is_a_teacher(tmp_path, config):
    """At full size, against the ViT that numpy recomposes."""
    bundle = helpers.bundle(tmp_path / "bundle", config)
    square(config.image_size, resample=3, **NORMALISED).save_pretrained(bundle)
    reference = helpers.reference_vit(helpers.tiny_model(config), depth=6)
    with torch.no_grad():
        expected = reference(resized(IMAGES.images, config.image_size)).logits
    assert torch.allclose(answers(load_teacher(str(bundle), IMAGES), IMAGES), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_teacher_stored_in_half_precision_answers(tmp_path, dtype):
    """Many published ones are; the student's batch comes in single precision."""
    torch.manual_seed(0)
    config = ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES)
    model = ConvNextForImageClassification(config).eval().to(dtype)
    got = answers(load_teacher(saved(tmp_path / "teacher", model), IMAGES), IMAGES)
    with torch.no_grad():
        expected = model.float()(resized(IMAGES.images, 16)).logits
    assert got.dtype == torch.float32 and torch.allclose(got, expected, atol=0.02)


def load(kind: str, folder: Path, images: MemoryImages = IMAGES) -> Teacher:
    """A teacher of each kind, with dropout where it is a transformers model."""
    if kind == "timm":
        return load_teacher(tiny_timm(folder, 16, proj_drop_rate=0.5)[0], images)
    if kind == "bundle":
        image_processor(16).save_pretrained(helpers.bundle(folder, helpers.tiny_config(hidden_dropout_prob=0.5)))
        return load_teacher(str(folder), images)
    return load_teacher(saved(folder, vit(hidden_dropout_prob=0.5)), images)


@pytest.mark.parametrize("kind", ["transformers", "timm", "bundle"])
def test_a_teacher_is_frozen_and_in_evaluation_mode(tmp_path, kind):
    """With dropout it would answer anew every time; a parameter that asks for gradients costs memory."""
    teacher = load(kind, tmp_path / "teacher")
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    assert torch.equal(answers(teacher, IMAGES), answers(teacher, IMAGES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.model.state_dict().items())


def test_a_model_given_in_training_mode_is_put_into_evaluation_mode():
    """Whoever builds a teacher from a model of his own has just trained it."""
    model = vit(hidden_dropout_prob=0.5).train()
    teacher = Teacher(model, None, [0.5] * 3, [0.5] * 3, IMAGES, "mine")
    assert torch.equal(answers(teacher, IMAGES), answers(teacher, IMAGES))
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("distillation", ["soft", "hard"])
@pytest.mark.parametrize("cached", [False, True])
def test_answers_carry_no_gradient_and_the_loss_that_uses_them_has_one(tmp_path, cached, distillation):
    """The student's gradient is what plain numbers in their place give; autograd takes no tensor of inference mode."""
    teacher = load("transformers", tmp_path / "teacher")
    batch = next(IMAGES.in_order(LAYOUT))
    taught = (CachedTeacher(teacher, IMAGES, LAYOUT) if cached else teacher)(batch)
    assert not taught.requires_grad and not taught.is_inference()
    objective, student = Objective(distillation, temperature=2.0), torch.zeros(4, CLASSES, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(student, batch["labels"], taught), student)
    plain = torch.tensor(taught.tolist())
    (expected,) = torch.autograd.grad(objective(student, batch["labels"], plain), student)
    (alone,) = torch.autograd.grad(objective(student, batch["labels"]), student)
    assert torch.equal(gradient, expected) and not torch.allclose(gradient, alone)
    weight = torch.ones(4, CLASSES, requires_grad=True)
    (weight * taught).sum().backward()  # needs the answers themselves in the backward pass
    assert torch.equal(weight.grad, taught)


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_another_number_of_classes_is_refused_with_both(tmp_path, kind):
    """The most usual mistake: a teacher of ImageNet for another set."""
    if kind == "timm":
        name, _ = tiny_timm(tmp_path / "teacher", 16, num_classes=10)
    else:
        name = saved(tmp_path / "teacher", vit(num_labels=10))
    with pytest.raises(ValueError, match=r"`teacher` .* 10 classes.* made has 7"):
        load_teacher(name, IMAGES)


def named(folder: Path, classes: list[str]) -> str:
    return saved(folder, vit(id2label=dict(enumerate(classes)), label2id={name: i for i, name in enumerate(classes)}))


def test_a_teachers_logits_are_those_of_the_images_classes_found_by_name(tmp_path):
    """By its own order they would stand for other classes, and nothing would show it; capitals make no other class."""
    classes = [f"class {index}" for index in range(CLASSES)]
    orders = ([*classes[1:], classes[0]], [name.upper() for name in reversed(classes)], ["more", *classes])
    for number, order in enumerate(orders):
        plain = [name.lower() for name in order]
        name = saved(
            tmp_path / str(number),
            vit(
                num_labels=len(order),
                id2label=dict(enumerate(order)),
                label2id={one: i for i, one in enumerate(order)},
            ),
        )
        expected = by_hand(name, IMAGES.images)[:, [plain.index(one) for one in classes]]
        assert torch.allclose(answers(load_teacher(name, IMAGES), IMAGES), expected, atol=1e-5)


def test_a_teacher_of_other_classes_is_refused_unless_relabelled(tmp_path):
    """As many outputs are no sign that they mean the same."""
    name = named(tmp_path / "teacher", [f"thing {index}" for index in range(CLASSES)])
    with pytest.raises(ValueError, match=r"`teacher` .* knows other classes \(thing 0.*made has \(class 0.*--relabel"):
        load_teacher(name, IMAGES)
    got = answers(load_teacher(name, IMAGES, relabel=True), IMAGES)
    assert torch.allclose(got, by_hand(name, IMAGES.images), atol=1e-5)


@pytest.mark.parametrize(
    "classes", [[f"Class {index}" for index in range(CLASSES)], [f"LABEL_{index}" for index in range(CLASSES)]]
)
def test_the_same_order_and_names_that_say_nothing_are_accepted(tmp_path, classes):
    """transformers' own names of nameless classes are no other order."""
    name = named(tmp_path / "teacher", classes)
    assert torch.allclose(answers(load_teacher(name, IMAGES), IMAGES), by_hand(name, IMAGES.images), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["/absent/teacher", "./absent", "", "timm:no_such_model", "timm:", "timm:local-dir:/absent/teacher"]
)
def test_a_teacher_that_is_not_there_is_refused_by_name(name):
    """One line, before anything is trained."""
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="`teacher`") as error:
        load_teacher(name, IMAGES)
    assert name in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "error", [AssertionError(), RuntimeError(""), OSError("no route\nto host"), ValueError("bad")]
)
def test_what_timm_raises_is_one_line_also_where_it_says_nothing(monkeypatch, error):
    """A bare `assert` has no message."""
    timm = pytest.importorskip("timm")

    def create_model(*_, **__):
        raise error

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ValueError, match="`teacher` timm:any cannot be loaded") as told:
        load_teacher("timm:any", IMAGES)
    assert len(str(told.value).splitlines()) == 1


def damage(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    if how == "weights of another shape":
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    if how == "cut config":
        (folder / "config.json").write_text("{")
    if how == "no weights":
        weights.unlink()
    if how == "no processor":
        (folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize(
    "how", ["cut weights", "weights of another shape", "cut config", "no weights", "no processor"]
)
def test_a_damaged_teacher_is_refused_by_name(tmp_path, how):
    """A download that was cut off, or a folder with half of what it needs, must not end in a traceback."""
    name = saved(tmp_path / "teacher")
    damage(Path(name), how)
    with pytest.raises(ValueError, match="`teacher`"):
        load_teacher(name, IMAGES)


def test_a_model_without_a_trained_head_is_no_teacher(tmp_path):
    """transformers gives a backbone a head of random numbers, and only prints so."""
    name = saved(tmp_path / "teacher", vit(model_class=ViTModel))
    with pytest.raises(ValueError, match="`teacher`"):
        load_teacher(name, IMAGES)


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
    cached, seen = CachedTeacher(counted, images, layout), 0
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
        cached = CachedTeacher(teacher, images, LAYOUT)
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


@pytest.mark.parametrize(
    "fields",
    [{"crop_padding": 1}, {"flip": True}, {"erasing": 0.1}, {"mixup": 0.1}, {"cutmix": 1.0}, AUGMENTATIONS["mixed"]],
    ids=str,
)
def test_a_cached_teacher_refuses_images_that_vary_and_asks_for_none(fields):
    """Its answers would be to other pictures; said before the set is run through."""
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")

    def never(batch):
        raise AssertionError("was asked")

    with pytest.raises(ValueError, match="`cache_teacher`"):
        CachedTeacher(never, helpers.source(14, Augmentation(**fields)), LAYOUT)


@pytest.mark.parametrize("fields", [{"resized_crop": True}, {"rand_augment": "rand-m9"}, {"color_jitter": 0.3}])
def test_a_cached_teacher_refuses_pictures_that_vary_one_by_one(fields):
    """The source that decodes anew gives `in_order` without variation: what it looks like must not deceive."""
    pytest.importorskip("timm")
    images = PictureImages(helpers.pictures(14), image_processor(16), Augmentation(**fields))
    with pytest.raises(ValueError, match="`cache_teacher`"):
        CachedTeacher(lambda batch: batch["labels"], images, LAYOUT)
