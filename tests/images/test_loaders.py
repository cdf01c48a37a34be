"""Laws of training batches: the same images, varied in the same way, however a run is divided or interrupted.

References: transformers' image processor, and the batches of one process that never stops.

    pytest tests/images/test_loaders.py
"""

import dataclasses
import pickle
import random
import warnings
from collections.abc import Iterable

import numpy
import pytest
import torch
from accelerate.utils import set_seed
from transformers import ViTImageProcessorPil

import helpers
from modeling_lingene.images import loaders
from modeling_lingene.images.augmentation import AUGMENTATIONS, Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.images.loaders import Layout, MemoryImages, PictureImages, derived_seed, training_images


pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # two workers, one core

COUNT = 26  # three steps of eight; two wait for another epoch's order
SOURCES = [MemoryImages, PictureImages]
MIXED, DEIT = (Augmentation(**AUGMENTATIONS[name]) for name in ("mixed", "deit"))
VARIED = Augmentation(resized_crop=True, rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.3)
HEAVY = [(MemoryImages, MIXED), (PictureImages, MIXED), (PictureImages, DEIT)]
UNEVEN = ViTImageProcessorPil(  # no channel like another
    size={"height": 12, "width": 20}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
)


def made(kind: type, augmentation: Augmentation | None = None, images: LabelledImages | None = None, **options):
    """A source of the pictures of noise, 16 pixels square."""
    images, augmentation = images or helpers.pictures(COUNT), augmentation or Augmentation()
    return kind(images, image_processor(16), augmentation, **options)


def joined(batches: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    batches = list(batches)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def epoch(source: MemoryImages | PictureImages, layout: Layout, seed: str = "0 0 0", first: int = 0) -> list[dict]:
    """Per step what all processes see, in the order of one that has the whole batch: its parts go round the table."""
    processes = [
        list(source.batches(seed, dataclasses.replace(layout, process=process), first))
        for process in range(layout.processes)
    ]
    return [joined(part for parts in zip(*step) for part in parts) for step in zip(*processes)]


def same(one: list[dict], other: list[dict]) -> bool:
    """Bitwise, with the same keys, shapes and types."""
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(one, other)
    )


def random_states() -> bytes:
    """Of torch, numpy and Python."""
    return pickle.dumps((torch.get_rng_state().numpy(), numpy.random.get_state(), random.getstate()))


def test_a_derived_seed_never_changes():
    """The number was computed apart, by random.Random("0 1 order"): with another one, old runs could not go on."""
    assert derived_seed("0 1", "order") == derived_seed(0, 1, "order") == 2412181315


def test_every_use_has_a_seed_of_its_own():
    """Runs, epochs, steps and uses; all of 32 bits, which is what numpy takes."""
    uses = [("order",)] + [("augment", step) for step in range(30)] + [("picture", index) for index in range(30)]
    uses += [("augment", step, process, 0) for step in range(30) for process in range(2)]
    keys = [
        (f"{seed} {phase} {epoch}", *use) for seed in (0, 1) for phase in (0, 1) for epoch in (0, 1) for use in uses
    ]
    seeds = [derived_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and 0 <= min(seeds) and 2**31 < max(seeds) < 2**32


@pytest.mark.parametrize(
    "batch_size, accumulation, processes", [(1, 1, 1), (8, 1, 1), (4, 2, 1), (4, 1, 2), (3, 4, 5)]
)
def test_the_parts_of_all_processes_are_a_step_exactly_once(batch_size, accumulation, processes):
    """Each is as large as was asked; the first parts of all processes come before the second ones."""
    layouts = [Layout(batch_size, accumulation, processes, process) for process in range(processes)]
    images = batch_size * accumulation * processes
    shares = [[list(range(images))[part] for part in layout.parts()] for layout in layouts]
    assert {layout.images for layout in layouts} == {images} and {len(share) for share in shares} == {accumulation}
    assert [index for parts in zip(*shares) for part in parts for index in part] == list(range(images))
    assert {len(part) for share in shares for part in share} == {batch_size}


@pytest.mark.parametrize("layout", [Layout(4, 1, 2), Layout(4, 2), Layout(2, 2, 2), Layout(1, 1, 8)], ids=str)
@pytest.mark.parametrize("name", ["none", "light", "mixed"])
def test_processes_and_accumulation_share_the_batches_of_one_process(name, layout):
    """Bitwise, with crop, flip, erasing and mixing: who computes a part must not change what is learned."""
    source = made(MemoryImages, Augmentation(**AUGMENTATIONS[name]))
    whole = epoch(source, Layout(8))
    assert len(whole) == 3 and {len(step["index"]) for step in whole} == {8}
    assert same(epoch(source, layout), whole)


PARTS = {
    "none": {},
    "resized_crop": {"resized_crop": True},
    "rand_augment": {"rand_augment": "rand-m9-mstd0.5-inc1"},
    "color_jitter": {"color_jitter": 0.3},
    "crop_padding": {"crop_padding": 2},
    "flip": {"flip": True},
    "erasing": {"erasing": 0.5},
}


@pytest.mark.parametrize("layout", [Layout(4, 1, 2), Layout(4, 2)], ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_how_a_picture_is_varied_does_not_depend_on_who_decodes_it(part, layout):
    """All that is done to one picture is a function of epoch and picture; mixing alone needs a partner at hand."""
    source = made(PictureImages, Augmentation(**PARTS[part]))
    assert same(epoch(source, layout), epoch(source, Layout(8)))


@pytest.mark.parametrize("kind, augmentation", HEAVY)
@pytest.mark.parametrize("layout", [Layout(8), Layout(2, 2, 2)], ids=str)
def test_an_epoch_resumed_at_a_step_gives_what_was_left_of_it(kind, augmentation, layout):
    """Bitwise: a step's chance is its own, and not what the steps before left over."""
    whole = epoch(made(kind, augmentation), layout)
    for first in range(4):
        assert same(epoch(made(kind, augmentation), layout, first=first), whole[first:])


class Watched(list):
    """Pictures that note which of them were asked for."""

    def __init__(self, pictures: list):
        super().__init__(pictures)
        self.asked: list[int] = []

    def __getitem__(self, index: int):
        self.asked.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("process", [0, 1])
def test_a_resumed_epoch_decodes_its_own_pictures_and_no_others(process):
    """Neither those of the steps before nor those of another process: decoding is what takes the time."""
    images = helpers.pictures(COUNT)
    images = dataclasses.replace(images, images=(watched := Watched(images.images)))
    source = made(PictureImages, VARIED, images)
    steps = list(source.batches("0 0 0", Layout(2, 2, 2, process), first=1))
    given = [index for parts in steps for part in parts for index in part["index"].tolist()]
    assert len(given) == 8 and watched.asked == given


@pytest.mark.parametrize("kind", SOURCES)
def test_unvaried_pixels_are_those_of_the_image_processor(kind):
    """Training and evaluation see the same numbers: against the processor itself, resized to another shape."""
    images = helpers.pictures(COUNT)
    expected = UNEVEN(images.images, return_tensors="pt")["pixel_values"]
    source = kind(images, UNEVEN, Augmentation())
    for given in (joined(epoch(source, Layout(4, 2))), joined(source.in_order(Layout(8)))):
        assert given["pixel_values"].dtype == torch.float32 and given["pixel_values"].shape[1:] == (3, 12, 20)
        torch.testing.assert_close(given["pixel_values"], expected[given["index"]], rtol=0, atol=1e-5)
        assert given["labels"].tolist() == [images.labels[index] for index in given["index"]]
        assert given["labels"].dtype == torch.int64


@pytest.mark.parametrize("kind", SOURCES)
def test_what_moves_in_is_black_and_not_grey(kind):
    """Images are cropped before they are normalised; zero after it is the mean colour."""
    images = helpers.pictures(COUNT)
    given = joined(epoch(kind(images, UNEVEN, Augmentation(crop_padding=3)), Layout(8)))["pixel_values"]
    black = -torch.tensor(UNEVEN.image_mean) / torch.tensor(UNEVEN.image_std)
    lightest = given.amin((2, 3))[(given[:, :, 0] == given[:, :, 0, :1]).all((1, 2))]  # of images moved down
    assert len(lightest) > 5
    torch.testing.assert_close(lightest, black.expand_as(lightest))
    inside = given[:, :, 6, 10]  # further from the border than any move
    assert (inside > black).all()


@pytest.mark.parametrize("kind", SOURCES)
def test_no_image_comes_twice_in_an_epoch(kind):
    """In an order of the seed's own; where steps divide the set, every image comes."""
    source = made(kind)
    for layout in (Layout(8), Layout(3, 2, 2), Layout(13)):
        orders = [joined(epoch(source, layout, seed))["index"].tolist() for seed in ("0 0 0", "0 0 1", "0 1 0")]
        assert {len(order) for order in orders} == {COUNT - COUNT % layout.images}
        assert all(len(set(order)) == len(order) and set(order) <= set(range(COUNT)) for order in orders)
        assert len({tuple(order) for order in orders}) == 3 and orders[0] != sorted(orders[0])


@pytest.mark.parametrize("kind, augmentation", [(MemoryImages, MIXED), (PictureImages, VARIED)])
def test_epochs_vary_the_same_image_otherwise(kind, augmentation):
    """Else a long training learns one crop of each picture by heart."""
    source = made(kind, augmentation)
    first, other = (joined(epoch(source, Layout(8), seed)) for seed in ("0 0 0", "0 0 1"))
    again = {index: values for index, values in zip(other["index"].tolist(), other["pixel_values"])}
    common = [number for number, index in enumerate(first["index"].tolist()) if index in again]
    differ = [not torch.equal(first["pixel_values"][n], again[first["index"][n].item()]) for n in common]
    assert len(differ) > 20 and sum(differ) > 0.9 * len(differ)


@pytest.mark.parametrize("kind", SOURCES)
def test_steps_of_an_epoch_flip_other_places_of_the_batch(kind):
    """A seed without the step would flip the same ones for ever."""
    plain = joined(made(kind).in_order(Layout(COUNT)))["pixel_values"]
    steps = epoch(made(kind, Augmentation(flip=True)), Layout(8))
    flipped = [(step["pixel_values"] != plain[step["index"]]).flatten(1).any(1).tolist() for step in steps]
    assert len(set(map(tuple, flipped))) == len(steps) == 3


@pytest.mark.parametrize("kind, augmentation", [(PictureImages, Augmentation()), *HEAVY])
def test_in_order_gives_every_image_once_over_all_processes_and_unvaried(kind, augmentation):
    """Whatever training does to them: an accuracy is that of the images, each counted once."""
    plain = joined(made(MemoryImages).in_order(Layout(COUNT)))
    assert plain["index"].tolist() == list(range(COUNT))
    shares = [list(made(kind, augmentation).in_order(Layout(4, 1, 3, process))) for process in range(3)]
    assert [[len(batch["index"]) for batch in share] for share in shares] == [[4, 4, 1], [4, 4, 1], [4, 4]]
    given = joined(batch for share in shares for batch in share)
    order = given["index"].argsort()
    assert same([{key: value[order] for key, value in given.items()}], [plain])


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_do_not_vary_are_those_in_memory(workers):
    """Two sources, one face: a set that grows beyond the memory must not learn otherwise. Bitwise."""
    memory, pictures = made(MemoryImages), made(PictureImages, workers=workers)
    assert len(memory) == len(pictures) == COUNT
    for layout in (Layout(8), Layout(4, 2)):
        assert same(epoch(pictures, layout), epoch(memory, layout))
    assert same(list(pictures.in_order(Layout(8))), list(memory.in_order(Layout(8))))


def test_batches_do_not_depend_on_the_number_of_workers():
    """Bitwise, with all that one recipe does to pictures and batches."""
    here, there = (made(PictureImages, DEIT, workers=workers) for workers in (0, 2))
    for first in (0, 1):
        assert same(epoch(there, Layout(4, 2), first=first), epoch(here, Layout(4, 2), first=first))


def test_pictures_can_be_sent_to_worker_processes():
    """Where workers are not forked (macOS, Windows, Python from 3.14 on) what they decode with travels as bytes."""
    source = made(PictureImages, VARIED)
    arrived = pickle.loads(pickle.dumps(source))
    assert same(epoch(arrived, Layout(8)), epoch(source, Layout(8)))


def test_flips_are_drawn_apart_from_mixing():
    """One seed for the generator and for the global states gives both the same numbers: mixed where flipped."""
    source = made(MemoryImages, Augmentation(flip=True, mixup=1.0, mixing=0.5))
    plain = joined(made(MemoryImages).in_order(Layout(COUNT)))["pixel_values"]
    flipped, unmixed = 0, 0
    for number in range(60):
        for step in epoch(source, Layout(8), f"0 0 {number}"):
            if step["labels"].max(-1).values.eq(1).all():
                unmixed += 1
                flipped += torch.equal(step["pixel_values"][0], plain[step["index"][0]].flip(-1))
    assert abs(unmixed - 90) < 5 * (180 / 4) ** 0.5
    assert abs(flipped - unmixed / 2) < 5 * (unmixed / 4) ** 0.5


class CutShort(list):
    """Pictures of which some do not decode."""

    def __init__(self, pictures: list, bad: Iterable[int]):
        super().__init__(pictures)
        self.bad = set(bad)

    def __getitem__(self, index: int):
        if index in self.bad:
            raise OSError("cut short")
        return super().__getitem__(index)


def cut_short(count: int, bad: Iterable[int]) -> LabelledImages:
    images = helpers.pictures(count)
    return dataclasses.replace(images, images=CutShort(images.images, bad))


def messages(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in caught if "decode" in str(warning.message)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_does_not_decode_is_left_out_counted_and_named_once(workers):
    """A long training must not end for one file; the others keep their labels, and epochs do not repeat it."""
    images = cut_short(102, [77])
    source = made(PictureImages, Augmentation(resized_crop=True), images, workers=workers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given = joined(epoch(source, Layout(17)))
        list(source.batches("0 0 1", Layout(17)))
        ordered = joined(source.in_order(Layout(17)))
    said = "1 of the 102 images of made do not decode: image 77 (cut short). They are left out."
    assert messages(caught) == [said]
    for batch in (given, ordered):
        assert sorted(batch["index"].tolist()) == [index for index in range(102) if index != 77]
        assert batch["labels"].tolist() == [images.labels[index] for index in batch["index"]]
        assert len(batch["pixel_values"]) == 101


def test_in_memory_a_picture_that_does_not_decode_is_left_out_counted_and_named():
    """The source is shorter by it, so that an epoch counts its steps right."""
    with pytest.warns(UserWarning, match=r"1 of the 200 images of made .* image 117 \(cut short\)"):
        source = made(MemoryImages, images=cut_short(200, [117]))
    rest = [index for index in range(200) if index != 117]
    given = joined(source.in_order(Layout(20)))
    assert len(source) == 199 and source.steps(Layout(20)) == 9
    assert given["labels"].tolist() == [index % helpers.TINY["num_labels"] for index in rest]
    whole = joined(made(MemoryImages, images=helpers.pictures(200)).in_order(Layout(20)))
    assert torch.equal(given["pixel_values"], whole["pixel_values"][rest])


@pytest.mark.filterwarnings("ignore:.*do not decode:UserWarning")
@pytest.mark.parametrize("way", ["batches", "in_order"])
@pytest.mark.parametrize("kind", SOURCES)
def test_one_percent_may_be_unreadable_and_more_is_refused(kind, way):
    """That many is no accident but the wrong folder; it is counted over all batches, not in each."""

    def run(bad: list[int]) -> int:
        source = made(kind, images=cut_short(200, bad))
        given = source.in_order(Layout(20)) if way == "in_order" else epoch(source, Layout(20))
        return len(joined(given)["index"])

    assert run([3, 150]) == (180 if (kind, way) == (MemoryImages, "batches") else 198)
    with pytest.raises(ValueError, match=r"`data` .* 1%.* 3 of the 200 images .*image \d+ \(cut short\)"):
        run([3, 77, 150])


@pytest.mark.filterwarnings("ignore:.*do not decode:UserWarning")
@pytest.mark.parametrize("kind", SOURCES)
def test_an_unreadable_picture_may_be_the_only_one_of_the_last_batch(kind):
    """One of 101 is below the limit wherever it lies."""
    source = made(kind, images=cut_short(101, [100]))
    assert joined(source.in_order(Layout(50)))["labels"].tolist() == [index % 7 for index in range(100)]


CALM = [
    (MemoryImages, Augmentation(), 0),
    (MemoryImages, Augmentation(crop_padding=2, flip=True), 0),
    (PictureImages, Augmentation(), 0),
    (PictureImages, Augmentation(), 2),
    (PictureImages, Augmentation(crop_padding=2, flip=True), 0),
    (PictureImages, VARIED, 2),
]


@pytest.mark.parametrize("kind, augmentation, workers", CALM)
def test_the_global_random_state_is_left_alone(kind, augmentation, workers):
    """What a user draws beside training must not depend on which source feeds it."""
    before = random_states()
    source = made(kind, augmentation, **({"workers": workers} if workers else {}))
    epoch(source, Layout(8))
    list(source.in_order(Layout(8)))
    assert random_states() == before


@pytest.mark.parametrize("kind, augmentation", HEAVY)
def test_in_order_leaves_the_global_random_state_alone_whatever_training_does(kind, augmentation):
    """An evaluation between two epochs must not change the second."""
    source = made(kind, augmentation)
    before = random_states()
    list(source.in_order(Layout(8)))
    assert random_states() == before


@pytest.mark.parametrize("kind, augmentation", HEAVY)
def test_batches_do_not_depend_on_the_global_random_state(kind, augmentation):
    """Dropout draws from it between two batches, and a resumed run begins with another one."""
    source = made(kind, augmentation)
    first = epoch(source, Layout(8))
    again = []
    for (part,) in source.batches("0 0 0", Layout(8)):
        again.append(part)
        set_seed(len(again))
    assert same(first, again)


@pytest.mark.parametrize("kind", SOURCES)
def test_an_epoch_has_whole_steps_alone_and_a_step_beyond_the_set_is_refused(kind):
    """Of no step, it would never end or divide by zero; the message names what was asked and what there is."""
    source = made(kind)
    layouts = [Layout(1), Layout(8), Layout(2, 2, 2), Layout(13), Layout(13, 1, 2)]
    assert [source.steps(layout) for layout in layouts] == [26, 3, 3, 2, 1]
    for layout in (Layout(27), Layout(9, 3), Layout(14, 1, 2), Layout(4, 2, 4)):
        with pytest.raises(ValueError, match=f"`batch_size` {layout.batch_size} .* {layout.images} .* {COUNT}"):
            source.steps(layout)
        with pytest.raises(ValueError, match="`batch_size`"):
            next(source.batches("0 0 0", layout))


@pytest.mark.parametrize("part", [{"resized_crop": True}, {"rand_augment": "rand-m9"}, {"color_jitter": 0.3}], ids=str)
def test_what_needs_pictures_is_refused_in_memory(part):
    """It would be left out in silence; the message names the parts."""
    with pytest.raises(ValueError, match=f"`{next(iter(part))}`"):
        made(MemoryImages, Augmentation(**part))


@pytest.mark.parametrize("augmentation", [Augmentation(), MIXED, VARIED], ids=["none", "mixed", "varied"])
def test_a_set_goes_into_memory_where_it_fits_and_needs_no_pictures(augmentation, monkeypatch):
    """A byte too many and it is decoded in every epoch."""
    images, processor = helpers.pictures(5), image_processor((8, 12))
    monkeypatch.setattr(loaders, "MEMORY_BYTES", 5 * 3 * 8 * 12)
    fitting = training_images(images, processor, augmentation)
    assert isinstance(fitting, PictureImages if augmentation is VARIED else MemoryImages)
    monkeypatch.setattr(loaders, "MEMORY_BYTES", 5 * 3 * 8 * 12 - 1)
    streamed = training_images(images, processor, augmentation, workers=2)
    assert isinstance(streamed, PictureImages) and streamed.workers == 2
