"""Laws of teachers: frozen classifiers that see the student's batch through their own preprocessing, whatever it is.

What a teacher must answer is computed from the raw pictures, by the stock model behind its own stock processor.

    pytest tests/training/teachers/test_teachers.py
"""

import numpy
import pytest
import torch
from teacher_models import (
    CLASSES,
    IMAGES,
    LAYOUT,
    NORMALISED,
    answers,
    by_hand,
    cached_teacher,
    load,
    resized,
    saved,
    square,
    tiny_timm,
    vit,
)
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

import helpers
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.teachers import Teacher, load_teacher


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
    taught = (cached_teacher(teacher, IMAGES, tmp_path) if cached else teacher)(batch)
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
