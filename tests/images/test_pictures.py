"""Laws of `images/pictures.py`: any folder of pictures is a set, labels or none, and nothing vanishes in silence."""

import os
import warnings
from pathlib import Path

import numpy
import pytest

from modeling_lingene.images.data import LabelledImages, load_images
from modeling_lingene.images.pictures import load_pictures


Image = pytest.importorskip("PIL.Image")


def put(path: Path, grey: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(path)


def loaded(folder: Path, split: str = "train") -> tuple[LabelledImages, list[str]]:
    """The set and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = load_pictures(str(folder), split)
    return images, [str(one.message) for one in caught]


def greys(images: LabelledImages) -> list[int]:
    return sorted(int(numpy.asarray(picture)[0, 0, 0]) for picture in images.images)


def test_pictures_in_a_folder_and_deeper_are_one_set(tmp_path):
    """Camera folders: some pictures above, some by year; no class and no part of them is meant."""
    put(tmp_path / "a.png", 1), put(tmp_path / "2020" / "b.JPEG", 2), put(tmp_path / "2021" / "may" / "c.bmp", 3)
    images, warned = loaded(tmp_path)
    assert greys(images) == [1, 2, 3] and warned == []
    assert (images.labels, images.class_names) == ([0, 0, 0], ["image"])
    assert (images.name, images.split) == (tmp_path.name, "whole")
    assert loaded(tmp_path, "test")[0].split == "whole"


@pytest.mark.parametrize("inside", ["", "cat/", "cat/deeper/"])
def test_of_a_divided_folder_one_split_is_opened(tmp_path, inside):
    """With classes below it or none; a mixture of both parts would be measured on what was trained on."""
    put(tmp_path / "train" / f"{inside}1.png", 1), put(tmp_path / "holdout" / f"{inside}2.png", 2)
    found = {split: loaded(tmp_path, split)[0] for split in ("train", "test")}
    assert [greys(images) for images in found.values()] == [[1], [2]]
    assert [images.split for images in found.values()] == ["train", "test"]
    with pytest.raises(ValueError, match="has no 'elsewhere' part"):
        load_pictures(str(tmp_path), "elsewhere")


def test_what_is_no_picture_is_counted_and_named(tmp_path):
    """Beside the pictures, deeper, in folders of the system, and beside the splits."""
    put(tmp_path / "train" / "1.png"), put(tmp_path / "test" / "__MACOSX" / "2.png"), put(tmp_path / "loose.png")
    put(tmp_path / "test" / "deep" / "3.png")
    (tmp_path / "test" / "deep" / "notes.txt").write_text("no picture")
    (tmp_path / "test" / "film.mp4").write_bytes(b"no picture")
    images, warned = loaded(tmp_path, "test")
    assert len(images) == 1 and len(warned) == 2
    assert "1 left out of" in warned[0] and "loose.png (lies outside of any split)" in warned[0]
    assert "3 left out of" in warned[1] and "is no image" in warned[1]
    assert [
        name for name in ("__MACOSX/", "film.mp4", os.path.join("deep", "notes.txt")) if name not in warned[1]
    ] == []


def test_a_labelled_set_gives_its_pictures(tmp_path):
    """The same ones, in the same order, without the classes."""
    pytest.importorskip("sklearn")
    ours, theirs = load_pictures("digits", "test"), load_images("digits", "test")
    assert (ours.images, ours.name, ours.split) == (theirs.images, theirs.name, theirs.split)
    assert set(ours.labels) == {0} and ours.class_names == ["image"]


@pytest.mark.parametrize("columns", [["image"], ["image", "label"]], ids=str)
def test_files_need_no_column_of_labels(tmp_path, columns):
    """Nor are labels that no classifier could learn an obstacle."""
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (4, 4), (grey,) * 3) for grey in (10, 20, 30)]
    content = {"image": pictures, "label": [-1, 0, 7]}
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    dataset = datasets.Dataset.from_dict(
        {name: content[name] for name in columns}, datasets.Features({name: features[name] for name in columns})
    )
    dataset.to_parquet(tmp_path / "train-0.parquet")
    for data in (tmp_path, tmp_path / "train-0.parquet"):
        images = load_pictures(str(data))
        assert greys(images) == [10, 20, 30] and (images.labels, images.class_names) == ([0, 0, 0], ["image"])
    with pytest.raises(ValueError, match="label"):
        load_images(str(tmp_path), "train")


@pytest.mark.parametrize("content", [None, "notes.txt", "train/notes.txt"])
def test_a_folder_without_pictures_is_refused(tmp_path, content):
    """Before anything is trained or measured on nothing."""
    if content:
        (tmp_path / content).parent.mkdir(exist_ok=True)
        (tmp_path / content).write_text("no picture")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="`data` must be a folder with pictures"):
        warnings.simplefilter("ignore")
        load_pictures(str(tmp_path))


def test_a_place_that_is_not_there_is_refused():
    """In the words of labelled sets."""
    with pytest.raises(ValueError, match="`data` must be .* no file or folder"):
        load_pictures("./nowhere/at/all")
