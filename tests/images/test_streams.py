"""Laws of streamed training images, against the parquet files that they come from.

pytest tests/images/test_streams.py
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

import helpers
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.batches import first_height, image_processor
from modeling_lingene.images.data import load_images
from modeling_lingene.images.loaders import Layout
from modeling_lingene.images.streams import open_stream


datasets = pytest.importorskip("datasets")
COUNT = 24


@pytest.fixture(scope="module", autouse=True)
def no_sleep():
    """datasets waits ten seconds after every pass through parquet files, for Arrow's threads."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
        yield


def write(folder: Path, shards: int, names: bool = True) -> None:
    """The pictures of helpers.py as parquet, divided into files."""
    made = helpers.pictures(COUNT)
    label = datasets.ClassLabel(names=made.class_names) if names else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    whole = datasets.Dataset.from_dict({"image": made.images, "label": made.labels}, features=features)
    for index in range(shards):
        whole.shard(shards, index).to_parquet(folder / f"train-{index:05d}-of-{shards:05d}.parquet")


@pytest.fixture(scope="module", params=[1, 3])
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    write(folder, request.param)
    return folder


def stream(folder: Path, augmentation: Augmentation | None = None, **options):
    options = {"epoch_images": COUNT, **options}
    return open_stream(str(folder), lambda images: image_processor(16), augmentation or Augmentation(), **options)


def passed(source, layout: Layout, seed: str = "0 0 0", first: int = 0) -> list[torch.Tensor]:
    """Every batch's pixel values of one epoch, by part."""
    return [part["pixel_values"] for parts in source.batches(seed, layout, first) for part in parts]


def identify(pixel_values: torch.Tensor) -> list[int]:
    """Which picture of helpers.py each one is."""
    whole = helpers.source(COUNT)
    (batch,) = whole.in_order(Layout(COUNT))
    return [int((batch["pixel_values"] - one).abs().amax((1, 2, 3)).argmin()) for one in pixel_values]


def test_an_epoch_is_every_image_once_in_another_order_each_time(folder):
    """As for images in memory, and with the labels that belong to them."""
    source = stream(folder)
    orders = []
    for seed in ("0 0 0", "0 0 1"):
        parts = [part for parts in source.batches(seed, Layout(6)) for part in parts]
        found = [index for part in parts for index in identify(part["pixel_values"])]
        labels = [label for part in parts for label in part["labels"].tolist()]
        assert sorted(found) == list(range(COUNT)) and labels == [index % 7 for index in found]
        orders.append(found)
    assert orders[0] != orders[1] and source.num_labels == 7 and len(source) == COUNT


def test_processes_read_different_images_that_together_are_all(folder):
    """Whether their number divides the shards or not."""
    found = []
    for process in range(2):
        layout = Layout(3, accumulation=2, processes=2, process=process)
        found += [index for pixels in passed(stream(folder), layout) for index in identify(pixels)]
    counts = Counter(found)
    assert len(found) == COUNT and max(counts.values()) <= 2  # uneven shards begin again
    if len(list(folder.glob("*.parquet"))) == 1:
        assert max(counts.values()) == 1


@pytest.mark.parametrize("way", ["folder", "glob", "list", "list with a glob"])
@pytest.mark.parametrize("case", [str.lower, str.title])
def test_only_the_files_of_the_training_part_are_read(tmp_path, way, case):
    """However they are named: every other picture would be trained on and then measured. Training pictures are dark,
    those for the test bright, those for validation white."""
    (tmp_path / "set").mkdir()
    files = []
    for name, grey in (("train-0", 10), ("test-0", 250), ("train-1", 10), ("val-0", 255)):
        rows = {"image": [Image.new("RGB", (16, 16), (grey,) * 3)] * 4, "label": [0, 1, 2, 3]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=7)})
        files.append(tmp_path / "set" / f"{case(name)}.parquet")
        datasets.Dataset.from_dict(rows, features=features).to_parquet(files[-1])
    data = {
        "folder": tmp_path / "set",
        "glob": tmp_path / "set" / "*.parquet",
        "list": ",".join(map(str, files)),
        "list with a glob": f"{files[0]}, {tmp_path}/set/*-[1].parquet, {files[1]}",
    }[way]
    source = stream(data, epoch_images=8)
    values = torch.cat(passed(source, Layout(4)))
    assert (values - (2 * 10 / 255 - 1)).abs().max() < 1e-3
    assert (source.images.name, source.images.split) == ("set", "train")
    whole = load_images(str(data), "train")
    assert (whole.name, whole.split, len(whole)) == ("set", "train", 8)


def test_files_that_are_of_no_split_or_not_there_are_refused(tmp_path):
    """As `load_images` refuses them."""
    write(tmp_path, 2)
    (tmp_path / "train-00001-of-00002.parquet").rename(tmp_path / "more.parquet")
    with pytest.raises(ValueError, match="`data` must be files that all start with a split's name"):
        stream(tmp_path / "*.parquet")
    with pytest.raises(ValueError, match=r"no file matches '.*nothing\*.parquet'"):
        stream(tmp_path / "nothing*.parquet")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_with_the_same_batches(folder, workers):
    """Bit by bit, augmentation included."""
    varied = Augmentation(crop_padding=2, flip=True)
    whole = passed(stream(folder, varied, workers=workers), Layout(4))
    rest = passed(stream(folder, varied, workers=workers), Layout(4), first=2)
    assert len(whole) == 6 and all(torch.equal(one, other) for one, other in zip(whole[2:], rest, strict=True))


def test_an_epoch_may_be_longer_than_the_set(folder):
    """For sets that do not say how many images they have; the next pass has another order."""
    found = [i for pixels in passed(stream(folder, epoch_images=2 * COUNT), Layout(8)) for i in identify(pixels)]
    assert Counter(found) == {index: 2 for index in range(COUNT)} and found[:COUNT] != found[COUNT:]


def test_pictures_that_do_not_decode_are_counted_and_refused_above_a_share(tmp_path):
    """Not skipped in silence."""
    features = datasets.Features(
        {
            "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.ClassLabel(2),
        }
    )
    rows = {"image": [{"bytes": b"no picture", "path": None}] * 8, "label": [0, 1] * 4}
    broken = datasets.Dataset.from_dict(rows, features=features)
    good = helpers.pictures(1).images[0]
    good.save(tmp_path / "good.png")
    rows["image"][0] = {"bytes": (tmp_path / "good.png").read_bytes(), "path": None}
    broken = datasets.Dataset.from_dict(rows, features=features).cast_column("image", datasets.Image(decode=False))
    broken.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train-0.parquet")
    source = stream(tmp_path, epoch_images=8)
    with pytest.raises(ValueError, match="`data` must be images that decode"):
        passed(source, Layout(8))


def rows_of(*contents: bytes) -> "datasets.Dataset":
    """Pictures by their encoded bytes, all of the first class of two."""
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(2)})
    rows = {"image": [{"bytes": content, "path": None} for content in contents], "label": [0] * len(contents)}
    return datasets.Dataset.from_dict(rows, features=features)


def test_the_first_pictures_need_not_decode(tmp_path):
    """One that does says how large they are; where none of the first hundred does, it is no set of pictures."""
    helpers.pictures(1, size=24).images[0].save(tmp_path / "good.png")
    good, bad = (tmp_path / "good.png").read_bytes(), b"no picture"
    for name, contents in (("begins", [bad] * 3 + [good] * 5), ("never", [bad] * 120)):
        (tmp_path / name).mkdir()
        rows_of(*contents).to_parquet(tmp_path / name / "train-0.parquet")
    made = []
    open_stream(str(tmp_path / "begins"), lambda images: made.append(images) or image_processor(16), Augmentation(), 8)
    assert first_height(made[0]) == 24
    with pytest.raises(ValueError, match="`data` must be images that decode; none of the first 100 of .*never does"):
        stream(tmp_path / "never")


@pytest.mark.parametrize("workers, label", [(0, -1), (0, None), (1, None)])  # a worker's end takes five seconds
def test_a_picture_without_a_label_ends_the_run(tmp_path, workers, label):
    """Cross-entropy would leave some such labels out in silence; on a GPU others end the process without a word."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=7)})
    rows = {"image": helpers.pictures(8).images, "label": [0, 1, 2, 3, 4, label, 5, 6]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match="labels from 0 to 6; a picture of the stream has"):
        passed(stream(tmp_path, epoch_images=8, workers=workers), Layout(8))


def test_a_stream_without_class_names_or_length_or_file_is_refused(tmp_path):
    """Before training, with what to do."""
    write(tmp_path, 1, names=False)
    with pytest.raises(ValueError, match="no class names in its label column"):
        stream(tmp_path)
    (tmp_path / "named").mkdir()
    write(tmp_path / "named", 1)
    with pytest.raises(ValueError, match="`epoch_images` is needed"):
        stream(tmp_path / "named", epoch_images=0)
    with pytest.raises(ValueError, match="`data` .*cannot be streamed"):
        stream(tmp_path / "absent")
