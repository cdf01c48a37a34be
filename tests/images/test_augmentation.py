"""Laws of how training images are varied: what each part may do to an image, and where it takes its chance from.

References: numpy, PIL, and the definitions of mixup, CutMix and random erasing.

    pytest tests/images/test_augmentation.py
"""

import pickle
import random
from itertools import product

import numpy
import pytest
import torch
from accelerate.utils import set_seed
from PIL import Image

from modeling_lingene.images.augmentation import AUGMENTATIONS, Augmentation, eraser, mixer, picture_transform, shift


pytest.importorskip("timm")
pytest.importorskip("torchvision")


def byte_images(*shape: int) -> torch.Tensor:
    """Seeded noise without black, so that what moves in is seen."""
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_states() -> bytes:
    """Of torch, numpy and Python."""
    return pickle.dumps((torch.get_rng_state().numpy(), numpy.random.get_state(), random.getstate()))


@pytest.fixture(autouse=True)
def fixed_chance():
    """The parts of timm and torchvision draw from the global states: every test from the same ones."""
    set_seed(0)


def windows(image: numpy.ndarray, padding: int) -> list[numpy.ndarray]:
    """All that cropping one image (c, h, w) by padding can give, row by row."""
    height, width = image.shape[1:]
    padded = numpy.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    offsets = product(range(2 * padding + 1), repeat=2)
    return [padded[:, down : down + height, right : right + width] for down, right in offsets]


@pytest.mark.parametrize("shape", [(400, 3, 8, 8), (400, 1, 5, 9), (400, 2, 7, 4)])
def test_shift_moves_each_image_by_up_to_one_pixel_with_black_moving_in(shape):
    """Against numpy: pad, then cut; every channel alike, all nine moves about equally often, rows not for columns."""
    images = byte_images(*shape)
    before = images.clone()
    moved = shift(images, 1, generator())
    assert moved.shape == images.shape and torch.equal(images, before)
    counts = numpy.zeros(9, int)
    for image, result in zip(images.numpy(), moved.numpy()):
        moves = [move for move, window in enumerate(windows(image, 1)) if (window == result).all()]
        assert len(moves) == 1
        counts[moves[0]] += 1
    assert counts.sum() == 400 and abs(counts - 400 / 9).max() < 5 * (400 / 9 * 8 / 9) ** 0.5


def test_shift_draws_from_its_generator_alone():
    """Resuming repeats an epoch's moves; another epoch has others."""
    images, before = torch.randn(64, 3, 8, 8), random_states()
    first, again, other = (shift(images, 1, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert random_states() == before


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flip_turns_about_half_of_the_images_left_to_right(dtype):
    """Each image on its own; not top to bottom, and not the batch as a whole."""
    images = byte_images(400, 3, 5, 7).to(dtype)
    before = images.clone()
    result = Augmentation(flip=True).on_batch(images, generator())
    assert result.dtype == dtype and torch.equal(images, before)
    turned = (result.numpy() == images.numpy()[..., ::-1]).all((1, 2, 3))
    kept = (result.numpy() == images.numpy()).all((1, 2, 3))
    assert (turned != kept).all() and abs(turned.sum() - 200) < 5 * (400 / 4) ** 0.5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_together_reach_every_window_of_an_image_and_of_its_mirror(dtype):
    """The two are drawn apart: 25 moves by two sides, each about as often as the others."""
    images = byte_images(2000, 1, 4, 6).to(dtype)
    result = Augmentation(crop_padding=2, flip=True).on_batch(images, generator())
    counts = numpy.zeros(50, int)
    for image, changed in zip(images.numpy(), result.numpy()):
        possible = windows(image, 2) + [window[..., ::-1] for window in windows(image, 2)]
        found = [number for number, window in enumerate(possible) if (window == changed).all()]
        assert len(found) == 1
        counts[found[0]] += 1
    assert abs(counts - 40).max() < 5 * 40**0.5


def test_crop_and_flip_draw_from_the_generator_alone():
    """The numbers that dropout draws must not depend on how images are varied."""
    images, light = byte_images(64, 3, 8, 8), Augmentation(crop_padding=4, flip=True)
    before = random_states()
    first = light.on_batch(images, generator(3))
    assert random_states() == before
    torch.rand(5)
    assert torch.equal(light.on_batch(images, generator(3)), first)
    assert not torch.equal(light.on_batch(images, generator(4)), first)


def test_without_crop_and_flip_a_batch_is_left_as_it_is():
    """The other parts act elsewhere."""
    images = byte_images(8, 3, 8, 8)
    others = Augmentation(resized_crop=True, rand_augment="rand-m9", color_jitter=0.3, erasing=1, mixup=1, cutmix=1)
    for augmentation in (Augmentation(), others):
        assert torch.equal(augmentation.on_batch(images, generator()), images)


CLASSES = 12


def mixed_batch(mix, batch: int = 8) -> tuple[numpy.ndarray, ...]:
    """Noise images of different classes, and what mixing makes of them: images, labels, mixed images, their labels."""
    images = torch.randn(batch, 3, 10, 14, generator=generator(1))
    labels = torch.arange(2, 2 + batch)
    mixed_images, mixed_labels = mix(images.clone(), labels.clone())
    assert mixed_images.shape == images.shape and mixed_images.dtype == images.dtype
    assert mixed_labels.shape == (batch, CLASSES) and mixed_labels.dtype == images.dtype
    return images.numpy(), labels.numpy(), mixed_images.numpy(), mixed_labels.numpy()


def partners(labels: numpy.ndarray, mixed_labels: numpy.ndarray) -> tuple[list[int], list[float]]:
    """For each image the other one in its labels, by position, and the share of its own class."""
    others = []
    for own, row in zip(labels, mixed_labels):
        (other,) = set(row.nonzero()[0].tolist()) - {own.item()}
        others.append(labels.tolist().index(other))
    return others, [row[own].item() for own, row in zip(labels, mixed_labels)]


def test_mixup_adds_another_image_in_the_shares_that_its_labels_say():
    """Its definition; a label that says 0.7 of an image that is there with 0.3 still trains."""
    mix = mixer(Augmentation(mixup=0.8), CLASSES)
    for _ in range(20):
        images, labels, mixed_images, mixed_labels = mixed_batch(mix)
        others, own = partners(labels, mixed_labels)
        own = numpy.array(own)[:, None, None, None]
        numpy.testing.assert_allclose(mixed_images, own * images + (1 - own) * images[others], atol=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 0.8, 8.0])
def test_alpha_is_that_of_the_beta_distribution(alpha):
    """The mean of x (1 - x) under Beta(a, a) is a / (4 a + 2): small alphas leave images almost unmixed."""
    mix = mixer(Augmentation(mixup=alpha), CLASSES)
    images, labels = torch.zeros(2, 3, 2, 2), torch.tensor([0, 1])
    shares = numpy.array([mix(images, labels)[1][0, 0].item() for _ in range(400)])
    assert (shares * (1 - shares)).mean() == pytest.approx(alpha / (4 * alpha + 2), abs=0.02)


def test_cutmix_puts_a_rectangle_of_another_image_in_and_its_area_into_the_labels():
    """Counted pixel by pixel; the rectangle may be cut off at the border, and the label must know."""
    mix, areas = mixer(Augmentation(cutmix=1.0), CLASSES), []
    for _ in range(40):
        images, labels, mixed_images, mixed_labels = mixed_batch(mix)
        areas.append(replaced := (mixed_images != images).any(1)[0].mean())
        if replaced == 0:  # a rectangle of no pixel
            assert (mixed_labels == numpy.eye(CLASSES)[labels]).all()
            continue
        others, own = partners(labels, mixed_labels)
        for image, other, share, result in zip(images, others, own, mixed_images):
            inside = (result != image).all(0)
            assert (inside == numpy.outer(inside.any(1), inside.any(0))).all()
            assert (result == numpy.where(inside, images[other], image)).all()
            assert share == pytest.approx(1 - inside.mean(), abs=1e-6)
    assert len(set(areas)) > 20 and min(areas) < 0.2 and max(areas) > 0.6


@pytest.mark.parametrize("mixing", [0.3, 1.0])
def test_mixup_and_cutmix_take_turns_in_the_share_of_batches_asked_for(mixing):
    """DeiT's recipe has both; a mean of two independent coins over 400 batches, within five deviations."""
    mix = mixer(Augmentation(mixup=1.0, cutmix=1.0, mixing=mixing), CLASSES)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for _ in range(400):
        images, labels, mixed_images, mixed_labels = mixed_batch(mix, batch=4)
        numpy.testing.assert_allclose(mixed_labels.sum(-1), 1, atol=1e-6)
        if (mixed_labels == numpy.eye(CLASSES)[labels]).all():
            assert (mixed_images == images).all()
            kinds["none"] += 1
        else:
            kinds["cutmix" if numpy.isin(mixed_images, images).all() else "mixup"] += 1
    spread = 5 * (400 * mixing / 2 * (1 - mixing / 2)) ** 0.5
    assert abs(kinds["mixup"] - 200 * mixing) < spread and abs(kinds["cutmix"] - 200 * mixing) < spread
    assert mixing < 1 or kinds["none"] < 40  # rectangles of no pixel


def test_one_image_alone_is_not_mixed_and_its_label_has_the_shape_of_the_others():
    """The last part of a set where some pictures do not decode."""
    images, labels, mixed_images, mixed_labels = mixed_batch(mixer(Augmentation(mixup=1.0), CLASSES), batch=1)
    assert (mixed_images == images).all() and (mixed_labels == numpy.eye(CLASSES)[labels]).all()


@pytest.mark.parametrize("augmentation", [{}, {"mixing": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "mixing": 0.0}])
def test_where_nothing_is_mixed_there_is_no_mixer(augmentation):
    """Labels then stay class indices, which every loss takes."""
    assert mixer(Augmentation(**augmentation), CLASSES) is None


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erasing_puts_noise_into_a_rectangle_of_the_share_of_images_asked_for(probability):
    """2 % to a third of the area, through all channels, of the unit variance that a normalised image has."""
    images = torch.full((400, 3, 24, 32), 9.0)
    result = eraser(Augmentation(erasing=probability), "cpu")(images.clone()).numpy()
    inside = (result != 9).any(1)
    erased = inside.any((1, 2))
    assert abs(erased.mean() - probability) <= 5 * (probability * (1 - probability) / 400) ** 0.5 + 0.005
    for mask, image in zip(inside[erased], result[erased]):
        assert (mask == numpy.outer(mask.any(1), mask.any(0))).all()
        assert (image != 9).any(0).sum() == (image != 9).all(0).sum()
    areas = inside[erased].mean((1, 2))
    assert 0.01 < areas.min() < 0.05 and 0.3 < areas.max() < 0.36
    noise = result[numpy.repeat(inside[:, None], 3, 1)]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_without_erasing_there_is_no_eraser():
    """It would seed the global states in every batch."""
    assert eraser(Augmentation(), "cpu") is None


def slopes(width: int, height: int) -> Image.Image:
    """A picture that says where it was cut: red is the column and green the row, each from 0 to 255."""
    red = numpy.broadcast_to(numpy.linspace(0, 255, width), (height, width))
    green = numpy.broadcast_to(numpy.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(numpy.stack([red, green, red * 0], -1).round().astype("uint8"))


PER_PICTURE = {
    "resized_crop": {"resized_crop": True},
    "rand_augment": {"rand_augment": "rand-m9-mstd0.5-inc1"},
    "color_jitter": {"color_jitter": 0.3},
    "all": {"resized_crop": True, "rand_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.3},
}


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (20, 12)], ids=str)
@pytest.mark.parametrize("parts", PER_PICTURE.values(), ids=PER_PICTURE)
def test_a_picture_of_any_shape_becomes_bytes_of_the_models_size(parts, size):
    """Height before width, and bytes: on the device they are a quarter of floats."""
    transform = picture_transform(Augmentation(**parts), size)
    for picture in (slopes(40, 30), slopes(9, 50), slopes(*size), slopes(*size[::-1])):
        pixels = transform(picture)
        assert pixels.shape == (3, *size) and pixels.dtype == torch.uint8 and pixels.max() > 64


@pytest.mark.parametrize("asked", ["rand-m10-inc1-n20", "rand-m0-n20", "augmix-m10", "v0"])
def test_no_magnitude_of_timm_ends_a_training(asked):
    """The greatest one posterises to no bits, which Pillow refuses: runs of the DeiT recipe met it sooner or later."""
    pytest.importorskip("timm")
    transform, picture = picture_transform(Augmentation(rand_augment=asked), (12, 20)), slopes(40, 30)
    set_seed(0)
    assert {transform(picture).shape for _ in range(60)} == {(3, 12, 20)}


@pytest.mark.parametrize("parts", PER_PICTURE.values(), ids=PER_PICTURE)
def test_what_is_drawn_for_a_picture_is_a_function_of_the_global_states(parts):
    """Seeding them is how a worker process gives each picture the same chance wherever it is decoded."""
    transform, picture = picture_transform(Augmentation(**parts), (12, 20)), slopes(40, 30)

    def drawn(seed: int) -> torch.Tensor:
        set_seed(seed)
        return torch.stack([transform(picture) for _ in range(8)])

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (20, 12)], ids=str)
def test_without_resized_crop_the_whole_picture_is_resized(size):
    """RandAugment of no operation: against PIL's resizing, with nothing cut off and no side changed for the other."""
    transform = picture_transform(Augmentation(rand_augment="rand-m9-n0"), size)
    for picture in (slopes(40, 30), slopes(9, 50)):
        expected = numpy.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        numpy.testing.assert_array_equal(transform(picture).numpy(), expected)


def test_resized_crop_shows_8_to_100_percent_of_the_picture_within_its_aspect():
    """Read from the coordinates that the picture holds; resizing to a third of the sides costs their ends."""
    transform, picture = picture_transform(Augmentation(resized_crop=True), (32, 32)), slopes(100, 100)
    views = torch.stack([transform(picture) for _ in range(300)])[:, :2].flatten(2).numpy().astype(float)
    width, height = (views.max(-1) - views.min(-1)).T / 255 * 32 / 31  # from the first pixel's centre to the last's
    area, aspect = width * height, width / height
    assert 0.06 < area.min() < 0.11 and 0.9 < area.max() < 1.1 and area.mean() == pytest.approx(0.54, abs=0.06)
    assert 0.7 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.43
    assert (views[:, 0].min(-1) > 64).any() and (views[:, 1].min(-1) > 64).any()  # not from the corner alone


def brightness(augmentation: Augmentation, count: int = 200) -> numpy.ndarray:
    """Of one grey, varied: contrast and saturation have nothing to change there."""
    transform, grey = picture_transform(augmentation, (4, 4)), Image.new("RGB", (4, 4), (100, 100, 100))
    pixels = torch.stack([transform(grey) for _ in range(count)]).flatten(1)
    assert (pixels.amax(1) - pixels.amin(1) <= 1).all()
    return pixels[:, 0].numpy()


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_colour_jitter_changes_the_brightness_by_up_to_its_strength(strength):
    """Evenly from 1 - s to 1 + s."""
    levels = brightness(Augmentation(color_jitter=strength))
    lowest, highest = 100 * (1 - strength), 100 * (1 + strength)
    assert lowest - 3 <= levels.min() < lowest + 0.2 * 100 * strength
    assert highest + 3 >= levels.max() > highest - 0.2 * 100 * strength


def test_colour_jitter_acts_beside_rand_augment_too():
    """The recipe `deit` names both; timm leaves the jitter out where RandAugment is on, unless it is told not to."""
    assert numpy.ptp(brightness(Augmentation(color_jitter=0.4, rand_augment="rand-m9-n0"))) > 50


@pytest.mark.parametrize(
    "parts, varies, one_by_one, mixes",
    [
        ({}, False, False, False),
        ({"crop_padding": 1}, True, False, False),
        ({"flip": True}, True, False, False),
        ({"erasing": 0.1}, True, False, False),
        ({"resized_crop": True}, True, True, False),
        ({"rand_augment": "rand-m9"}, True, True, False),
        ({"color_jitter": 0.1}, True, True, False),
        ({"mixup": 0.8}, True, False, True),
        ({"cutmix": 1.0}, True, False, True),
        ({"mixup": 0.8, "cutmix": 1.0, "mixing": 0.5}, True, False, True),
        ({"mixup": 0.8, "cutmix": 1.0, "mixing": 0.0}, False, False, False),
        ({"mixing": 0.5}, False, False, False),
    ],
    ids=str,
)
def test_each_part_says_what_it_needs(parts, varies, one_by_one, mixes):
    """A teacher's logits are kept where nothing varies: one part forgotten, and it answers for other images."""
    augmentation = Augmentation(**parts)
    assert (augmentation.varies, augmentation.one_by_one, augmentation.mixes) == (varies, one_by_one, mixes)


@pytest.mark.parametrize(
    "name, varies, one_by_one, mixes",
    [
        ("none", False, False, False),
        ("shift", True, False, False),
        ("light", True, False, False),
        ("mixed", True, False, True),
        ("deit", True, True, True),
    ],
)
def test_the_named_augmentations_are_valid_and_what_their_names_say(name, varies, one_by_one, mixes):
    """Names of the command line; none is without a row here."""
    augmentation = Augmentation(**AUGMENTATIONS[name])
    assert (augmentation.varies, augmentation.one_by_one, augmentation.mixes) == (varies, one_by_one, mixes)
    assert len(AUGMENTATIONS) == 5 and Augmentation(**AUGMENTATIONS["none"]) == Augmentation()
    if one_by_one:
        assert picture_transform(augmentation, (16, 16))(slopes(40, 30)).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "field, value",
    [
        ("crop_padding", -1),
        ("crop_padding", 1.0),
        ("crop_padding", True),
        ("crop_padding", "4"),
        ("color_jitter", -0.1),
        ("color_jitter", 10.5),
        ("erasing", -0.1),
        ("erasing", 1.1),
        ("erasing", float("nan")),
        ("mixup", -0.8),
        ("mixup", 11.0),
        ("mixup", float("inf")),
        ("cutmix", -1.0),
        ("cutmix", float("nan")),
        ("mixing", -0.5),
        ("mixing", 1.5),
    ],
)
def test_a_number_outside_of_its_range_is_refused_by_name(field, value):
    """Before an epoch is spent; the value that came is in the message."""
    with pytest.raises(ValueError, match=f"`{field}`.*{value!r}"):
        Augmentation(**{field: value})
