"""Laws of `images/data.py`; references: scikit-learn, numpy, transformers' loading of the saved processor."""

import io
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil, pipeline

from modeling_lingene.images.batches import batches, image_processor, to_tensors
from modeling_lingene.images.data import LabelledImages, check_labels, held_out, load_images, picked, split_off
from modeling_lingene.images.pictures import load_pictures


DATA = Path(os.environ.get("LINGENE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """datasets, writing its Arrow copies below the test's own folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return datasets


def picture(value, mode="RGB", size=(6, 5)):
    return Image.new("RGB", size, (value, 255 - value, 7)).convert(mode)


def class_folder(folder, names, first=0, count=2):
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture(10 * (first + index) + number).save(folder / name / f"{number}.png")
    return folder


def parquet(path, values, labels, class_names=None, columns=("image", "label")):
    """Writes encoded images the way the Hub does; `class_names` None leaves plain integers."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    buffers = []
    for value in values:
        buffer = io.BytesIO()
        if value is None:
            buffer.write(b"no image")
        else:
            picture(value).save(buffer, "PNG")
        buffers.append({"bytes": buffer.getvalue(), "path": f"{value}.png"})
    feature = Value("int64") if class_names is None else ClassLabel(names=class_names)
    features = Features({columns[0]: ImageFeature(decode=False), columns[1]: feature})
    Dataset.from_dict({columns[0]: buffers, columns[1]: labels}, features=features).to_parquet(str(path))
    return str(path)


def in_memory(pictures, labels=None):
    labels = labels or [0] * len(pictures)
    return LabelledImages(pictures, labels, [str(i) for i in range(max(labels) + 1)], "made up", "test")


def test_digits_are_scikit_learns_and_its_stratified_split():
    """The quickstart's numbers are reproducible only if the split and the grey values never change."""
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.model_selection import train_test_split

    x, y = datasets.load_digits(return_X_y=True)
    expected = train_test_split(x, y, test_size=360, stratify=y, random_state=0)
    for split, values, labels in (("train", expected[0], expected[2]), ("test", expected[1], expected[3])):
        digits = load_images("digits", split)
        assert (digits.name, digits.split, digits.class_names) == ("digits", split, list("0123456789"))
        assert digits.labels == labels.tolist()
        assert {image.mode for image in digits.images} == {"RGB"} and digits.images[0].size == (8, 8)
        pixels = np.stack([np.asarray(image) for image in digits.images])
        grey = np.round(values.reshape(-1, 8, 8, 1) * 255 / 16)
        np.testing.assert_array_equal(pixels, np.broadcast_to(grey, pixels.shape))
    assert len(load_images("digits", "train")) == 1437 and len(load_images("digits", "test")) == 360


def test_validation_stands_in_for_test_and_says_so():
    """A result must name the split that was really used."""
    assert load_images("digits", "validation").split == "test"


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_part_is_split_off_with_every_class_in_it_and_nothing_in_both(share, seed):
    """What chooses must not have been learned from, and a rare class must not vanish from either side by chance."""
    counts = {0: 40, 1: 400, 2: 20, 3: 4}
    labels = [label for label, count in counts.items() for _ in range(count)]
    images = in_memory(list(range(len(labels))), labels)  # an image is its place in the set
    rest, part = split_off(images, share, seed)
    seen = [rest.images[i] for i in range(len(rest))], [part.images[i] for i in range(len(part))]
    assert sorted(seen[0] + seen[1]) == list(range(len(labels)))
    for places, chosen in zip(seen, (rest, part)):
        assert places == sorted(places) and chosen.labels == [labels[place] for place in places]
        assert (chosen.class_names, chosen.name) == (images.class_names, images.name)
    assert len(part) == round(share * len(labels)) and (rest.split, part.split) == ("test", "validation")
    for label, count in counts.items():
        assert abs(part.labels.count(label) - share * count) < 1
    assert [*split_off(images, share, seed)[1].images] == seen[1] != [*split_off(images, share, seed + 2)[1].images]


def test_what_is_split_off_still_says_where_a_picture_came_from(tmp_path):
    """A picture that does not decode is named by its file, on both sides."""
    folder = class_folder(tmp_path / "set", ["a", "b"], count=4)
    for path in (folder / "a").iterdir():
        path.write_bytes(b"no image")
    for side in split_off(load_images(str(folder)), 0.5):
        assert side.decoded(0)[1].startswith(str(folder / "a"))
        assert side.decoded(len(side) - 1)[0].size == (6, 5)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, 0.01, float("nan")])
def test_a_share_that_leaves_one_side_empty_is_refused(share):
    with pytest.raises(ValueError, match="`validation_share` must be above 0 and below 1 and hold out at least one"):
        split_off(in_memory([picture(value) for value in range(10)]), share)


def test_image_folder_counts_classes_over_all_splits(tmp_path, no_cache):
    """A split that lacks a class must not renumber the others."""
    class_folder(tmp_path / "set" / "train", ["ant", "bee", "cat"])
    class_folder(tmp_path / "set" / "val", ["ant", "cat"], first=5)
    test = load_images(str(tmp_path / "set"), "test")
    assert (test.name, test.split, test.class_names) == ("set", "validation", ["ant", "bee", "cat"])
    assert test.labels == [0, 0, 2, 2]
    assert [image.getpixel((0, 0)) for image in test.images] == [(v, 255 - v, 7) for v in (50, 51, 60, 61)]
    assert load_images(str(tmp_path / "set"), "train").labels == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("divided", [False, True])
def test_what_is_held_out_is_a_fifth_of_every_class_and_the_same_wherever_it_is_asked_for(tmp_path, no_cache, divided):
    """Training leaves it out and measuring takes it, each by itself; pictures without labels likewise."""
    class_folder(tmp_path / "set" / ("train" if divided else ""), ["ant", "bee", "cat"], count=10)
    data = str(tmp_path / "set")
    part, again, pictures = (
        load_images(data, "held-out"),
        load_images(data, "held-out"),
        load_pictures(data, "held-out"),
    )
    paths = [[images.images.path(place) for place in range(len(images))] for images in (part, again)]
    assert part.split == again.split == pictures.split == "held-out" and paths[0] == paths[1]
    assert part.labels == [0, 0, 1, 1, 2, 2] and len(pictures) == 6
    rest, held = held_out(load_images(data, "train"))
    assert held.labels == part.labels and rest.split == "train" and len(rest) == 24
    assert not {rest.images.path(place) for place in range(24)} & set(paths[0])
    with pytest.raises(ValueError, match="`data` set has no test part and 2 images, too few"):
        held_out(picked(rest, [0, 1]))


def test_a_set_without_the_part_that_is_taken_by_default_says_what_it_has_and_what_to_give(tmp_path, no_cache):
    """Nobody asked for `test` who left the split out."""
    class_folder(tmp_path / "set" / "train", ["ant", "bee"])
    for load in (load_images, load_pictures):
        with pytest.raises(ValueError, match="has no 'test' part, only train: give `split` train, or held-out"):
            load(str(tmp_path / "set"), "test")
    assert len(load_pictures(str(tmp_path / "set"), "test", others=True)) == 4


def test_image_folder_without_splits_is_the_whole_for_any_split(tmp_path, no_cache):
    """`whole` keeps a training set from passing for a test set; a class may be called `train`."""
    class_folder(tmp_path / "vehicles [2]", ["bus", "train"])
    for split in ("train", "test"):
        whole = load_images(str(tmp_path / "vehicles [2]"), split)
        assert (whole.split, whole.class_names, whole.labels) == ("whole", ["bus", "train"], [0, 0, 1, 1])


def test_parquet_files_belong_to_the_split_they_are_named_after(tmp_path, no_cache):
    """The Hub's layout: a list, a glob and the folder mean the same set."""
    (tmp_path / "set").mkdir()
    first = parquet(tmp_path / "set" / "train-0.parquet", [1, 2], [0, 1], ["a", "b"])
    second = parquet(tmp_path / "set" / "train-1.parquet", [3], [1], ["a", "b"])
    test = parquet(tmp_path / "set" / "test-0.parquet", [4], [0], ["a", "b"])
    for data in (f"{first}, {second},{test}", str(tmp_path / "set" / "*.parquet"), str(tmp_path / "set")):
        train = load_images(data, "train")
        assert (train.name, train.split, train.labels, train.class_names) == ("set", "train", [0, 1, 1], ["a", "b"])
        assert [image.getpixel((0, 0))[0] for image in train.images] == [1, 2, 3]
        assert load_images(data, "test").labels == [0]
    with pytest.raises(ValueError, match=r"has no 'test' part, only train: give `split` train, or held-out"):
        load_images(f"{first},{second}", "test")


def test_the_name_of_a_parquet_file_says_its_split_in_any_case(tmp_path, no_cache):
    """As a folder's does: what was written as a test part would be trained on, and measured on."""
    for name, value in (("Train-0", 1), ("Test-0", 2), ("VAL.0", 3)):
        parquet(tmp_path / f"{name}.parquet", [value], [0], ["a", "b"])
    for split, value in (("train", 1), ("test", 2), ("validation", 3)):
        images = load_images(str(tmp_path), split)
        assert images.split == split and [one.getpixel((0, 0))[0] for one in images.images] == [value]


@pytest.mark.parametrize("columns", [("img", "label"), ("image", "labels"), ("img", "fine_label")])
def test_plain_columns_are_found_under_their_usual_names(tmp_path, no_cache, columns):
    """Many sets on the Hub call them `img` or `fine_label`, and have integers without names."""
    images = load_images(parquet(tmp_path / "some.parquet", [1, 2], [2, 0], columns=columns))
    assert (images.split, images.labels, images.class_names) == ("whole", [2, 0], ["0", "1", "2"])


def test_hub_names_go_to_datasets_with_a_split_that_exists(tmp_path, no_cache, monkeypatch):
    """The split is chosen from the names on the Hub, before anything is downloaded in bulk."""
    file = parquet(tmp_path / "x.parquet", [1, 2], [0, 1], ["a", "b"])
    load = no_cache.load_dataset
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return load("parquet", data_files={split: file}, split=split)

    monkeypatch.setattr(no_cache, "get_dataset_split_names", lambda name: ["train", "validation"])
    monkeypatch.setattr(no_cache, "load_dataset", load_dataset)
    images = load_images("owner/name", "test")
    assert asked == [("owner/name", "validation")]
    assert (images.name, images.split, images.labels) == ("owner/name", "validation", [0, 1])
    with pytest.raises(ValueError, match="has no 'extra' part, only train, validation"):
        load_images("owner/name", "extra")


def test_unknown_hub_names_are_an_error_that_says_what_data_may_be(no_cache, monkeypatch):
    """A mistyped folder without a slash looks like a name on the Hub; the message must help with both."""

    def missing(name):
        raise no_cache.exceptions.DatasetNotFoundError("doesn't exist")

    monkeypatch.setattr(no_cache, "get_dataset_split_names", missing)
    with pytest.raises(
        ValueError, match="`data` must be `digits`, a folder .* no file or folder 'nosuch' .* doesn't exist"
    ):
        load_images("nosuch")


@pytest.mark.parametrize(
    "data", ["./nosuch", "/nosuch/folder", "a/b/c", "nosuch.parquet", "a.parquet,b.parquet", "no*", "x.parquet," * 999]
)
def test_missing_paths_never_reach_the_network(data, tmp_path, monkeypatch):
    """A typo must not wait for the Hub."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^`data` must be"):
        load_images(data)


def test_wrong_sets_are_refused_with_a_way_out(tmp_path, no_cache):
    """Empty folders, images outside class folders, other files, missing or wrong labels, damaged files."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    picture(1).save(tmp_path / "flat" / "1.png")
    (tmp_path / "text.txt").write_text("no images")
    parquet(tmp_path / "negative.parquet", [1, 2], [0, -1])
    parquet(tmp_path / "column.parquet", [1], [0], columns=("image", "kind"))
    whole = Path(parquet(tmp_path / "whole.parquet", [1], [0])).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    for name, message in {
        "empty": "one subfolder of images per class",
        "flat": "one subfolder of images per class",
        "text.txt": "is not a parquet file",
        "negative.parquet": "integer labels from 0; 1 of the 2 labels .* the first is -1",
        "column.parquet": "a column of labels called label or labels or fine_label; .* has image, kind",
        "cut.parquet": "readable parquet files",
    }.items():
        with pytest.raises(ValueError, match=f"`data` must .*{message}"):
            load_images(str(tmp_path / name))


def test_missing_packages_name_the_extra(monkeypatch):
    """An optional import must end in one line that says what to install."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "modeling_lingene\[train\]"'):
        load_images("digits")


def test_labels_outside_the_classifier_are_refused():
    """Out-of-range labels are an index error on the CPU and a broken context on a GPU; they must not get that far."""
    images = in_memory([picture(1)] * 3, [0, 4, 1])
    check_labels(images, 5)
    with pytest.raises(ValueError, match=r"`num_labels` .* got 4: label 4 is outside 0\.\.3"):
        check_labels(images, 4)


def test_the_processor_normalises_to_minus_one_and_one():
    """Without resizing, the reference is one line of numpy."""
    grid = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    pixel_values = image_processor((5, 6))([Image.fromarray(grid)], return_tensors="pt")["pixel_values"]
    assert pixel_values.dtype == torch.float32
    expected = (grid.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5
    np.testing.assert_allclose(pixel_values.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [0, (8, -1)])
def test_image_sizes_must_be_positive(size):
    """Otherwise the first image fails deep inside Pillow."""
    with pytest.raises(ValueError, match="`image_size` must be a positive"):
        image_processor(size)


def test_a_saved_processor_is_what_transformers_finds_by_itself(tmp_path):
    """A bundle is used through Auto classes and pipelines, with and without torchvision."""
    # By its module: some releases refuse the class at the top level where torchvision is missing.
    from transformers.models.auto import image_processing_auto

    image_processor((12, 16)).save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8))  # grey
    ours = image_processor((12, 16))([image], return_tensors="pt")["pixel_values"]
    same = ViTImageProcessorPil.from_pretrained(tmp_path)([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, same)
    auto = image_processing_auto.AutoImageProcessor.from_pretrained(tmp_path)
    assert (auto([image], return_tensors="pt")["pixel_values"] - ours).abs().max() <= 2 / 255 + 1e-6

    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=(12, 16),
        patch_size=4,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    scores = pipeline("image-classification", model=str(tmp_path))(image)
    assert sum(score["score"] for score in scores) == pytest.approx(1, abs=1e-5)


def test_batches_and_tensors_are_the_same_images_in_order():
    """Two ways for small and large sets; grey, palette and transparent images become RGB in both."""
    modes = ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"]
    images = in_memory([picture(30 * i, mode) for i, mode in enumerate(modes)], list(range(7)))
    processor = image_processor((5, 6))
    pixel_values, labels = to_tensors(images, processor)
    assert pixel_values.shape == (7, 3, 5, 6) and pixel_values.dtype == torch.float32
    assert labels.tolist() == list(range(7)) and labels.dtype == torch.int64
    expected = np.stack([np.asarray(image.convert("RGB")) for image in images.images]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixel_values.numpy(), (expected / 255 - 0.5) / 0.5, atol=1e-6)
    stream = batches(images, processor, batch_size=3)
    assert len(stream) == 3
    for _ in range(2):  # it can be run through again
        parts = list(stream)
        assert [len(part["labels"]) for part in parts] == [3, 3, 1]
        assert torch.equal(torch.cat([part["pixel_values"] for part in parts]), pixel_values)
        assert torch.cat([part["labels"] for part in parts]).tolist() == labels.tolist()
    with pytest.raises(ValueError, match="`batch_size` must be at least 1; got 0"):
        batches(images, processor, 0)


def test_images_are_decoded_only_when_asked_for():
    """A large set must not be decoded to read its first batch."""

    class Counting(list):
        asked = 0

        def __getitem__(self, index):
            Counting.asked += 1
            return super().__getitem__(index)

    images = in_memory(Counting(picture(i) for i in range(50)))
    next(iter(batches(images, image_processor(4), batch_size=2)))
    assert Counting.asked == 2


def test_images_are_turned_upright_as_pipelines_do():
    """Cameras store the rotation beside the pixels."""
    upright = Image.fromarray(np.arange(90, dtype=np.uint8).reshape(5, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    turned = Image.open(buffer)
    processor = image_processor((5, 6))
    assert torch.equal(to_tensors(in_memory([turned]), processor)[0], to_tensors(in_memory([upright]), processor)[0])


def test_few_undecodable_images_are_left_out_with_one_warning_that_names_them(tmp_path, no_cache):
    """One damaged file of a thousand must not end a run, nor shift labels against images."""
    values = [i % 256 for i in range(200)]
    values[7] = None
    file = parquet(tmp_path / "x.parquet", values, list(range(200)))
    stream = batches(load_images(file), image_processor((5, 6)), batch_size=64)
    with pytest.warns(UserWarning, match=r"1 of the 200 images .* do not decode: None\.png .* left out") as caught:
        parts = list(stream)
    assert len(caught) == 1
    labels = torch.cat([part["labels"] for part in parts])
    assert labels.tolist() == [i for i in range(200) if i != 7]
    reds = torch.cat([part["pixel_values"] for part in parts])[:, 0, 0, 0]
    np.testing.assert_allclose(reds.numpy(), (labels % 256).numpy() / 127.5 - 1, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(stream)
    with pytest.warns(UserWarning):
        pixel_values, labels = to_tensors(load_images(file), image_processor((5, 6)))
    assert len(pixel_values) == len(labels) == 199


def test_many_undecodable_images_are_an_error():
    """Above 1 % the accuracy would be that of another set."""
    images = in_memory([picture(1)] * 100 + [object()] * 2)
    with pytest.raises(
        ValueError, match="`data` must be images that decode, all but 1% of them; 2 of the 102 .* image 101"
    ):
        to_tensors(images, image_processor(4))


def test_real_parquet_sets_load_and_decode(no_cache):
    """The layout that the Hub's own sets have."""
    if not (DATA / "flowers5_small").is_dir():
        pytest.skip(f"no {DATA / 'flowers5_small'}; set LINGENE_DATA")
    flowers = load_images(str(DATA / "flowers5_small" / "test-*"))
    assert (len(flowers), flowers.name, flowers.split) == (855, "flowers5_small", "test")
    assert flowers.class_names == ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    check_labels(flowers, 5)
    pixel_values, labels = to_tensors(flowers, image_processor(32))
    assert pixel_values.shape == (855, 3, 32, 32) and labels.tolist() == flowers.labels
    assert pixel_values.abs().max() <= 1 and pixel_values.std() > 0.2
