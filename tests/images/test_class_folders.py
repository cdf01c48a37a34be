"""Laws of `images/class_folders.py`: nothing that lies in a folder of images vanishes without a word."""

import os
import warnings
from pathlib import Path

import pytest

from modeling_lingene.images.batches import image_processor, to_tensors
from modeling_lingene.images.class_folders import SPLIT_ALIASES
from modeling_lingene.images.data import LabelledImages, load_images


Image = pytest.importorskip("PIL.Image")


def put(path: Path, grey: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(path)


def loaded(folder: Path, split: str = "test") -> tuple[LabelledImages, list[str]]:
    """The set and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = load_images(str(folder), split)
    return images, [str(one.message) for one in caught]


def classes(images: LabelledImages) -> dict[str, int]:
    """How many images each class has, of those that have any."""
    return {name: images.labels.count(i) for i, name in enumerate(images.class_names) if i in images.labels}


def test_images_deeper_than_their_class_belong_to_it(tmp_path):
    """They were left out in silence, and a class with them."""
    put(tmp_path / "cat" / "1.png"), put(tmp_path / "cat" / "indoors" / "night" / "2.png")
    put(tmp_path / "dog" / "outdoors" / "1.png")
    images, warned = loaded(tmp_path)
    assert classes(images) == {"cat": 2, "dog": 1} and warned == []


@pytest.mark.parametrize("name", [".net", "c::d", "$HOME", "a*b?[c]", "~", "with space", "ü", "train"])
def test_a_class_may_be_called_anything(tmp_path, name):
    """A name with :: was taken apart, one with $ expanded; one with a dot in front vanished."""
    put(tmp_path / "train" / name / "1.png", 10), put(tmp_path / "test" / name / "2.png", 20)
    put(tmp_path / "test" / "other" / "3.png", 30)
    images, warned = loaded(tmp_path)
    assert classes(images) == {name: 1, "other": 1} and warned == []
    pixels, labels = to_tensors(images, image_processor(4))
    grey = {images.class_names[label]: round(float(pixel.mean() + 1) * 127.5) for pixel, label in zip(pixels, labels)}
    assert grey == {name: 20, "other": 30}


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    """A class folder that is a link ended in an error about an instruction."""
    put(tmp_path / "elsewhere" / "1.png"), put(tmp_path / "set" / "test" / "cat" / "1.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "test" / "dog")
    os.symlink(tmp_path / "set" / "test", tmp_path / "set" / "test" / "cat" / "again")
    os.symlink(tmp_path / "elsewhere" / "1.png", tmp_path / "set" / "test" / "cat" / "2.png")
    images, _ = loaded(tmp_path / "set")
    assert images.class_names == ["cat", "dog"] and images.labels.count(1) == 1
    assert str(tmp_path / "set" / "test" / "cat" / "2.png") in images.images.paths


@pytest.mark.parametrize("alias", [alias for alias in SPLIT_ALIASES if alias != "train"])
def test_a_split_may_have_any_of_its_names_in_any_case(tmp_path, alias):
    """`valid/`, `dev/`, `eval/` and `holdout/` were told that there is only `train`, while `VAL/` worked."""
    for name in (alias, alias.upper()):
        folder = tmp_path / name / "set"
        put(folder / "train" / "cat" / "1.png")
        put(folder / name / "cat" / "2.png")
        images, warned = loaded(folder, SPLIT_ALIASES[alias])
        assert images.split == SPLIT_ALIASES[alias] and warned == []
        assert any(Path(path).parts[-3] == name for path in images.images.paths)


def test_two_folders_for_one_split_are_an_error(tmp_path):
    """One of them would win in silence."""
    for name in ("train", "val", "dev"):
        put(tmp_path / name / "cat" / "1.png")
    with pytest.raises(ValueError, match="dev, val, all of them the validation split"):
        load_images(str(tmp_path))


def test_what_is_left_out_is_counted_and_named(tmp_path):
    """A zip beside the images became a class named '', loose images and strange folders vanished."""
    put(tmp_path / "train" / "cat" / "1.png"), put(tmp_path / "test" / "cat" / "1.png")
    put(tmp_path / "test" / "loose.png"), put(tmp_path / "hold" / "cat" / "1.png")
    put(tmp_path / "test" / ".ipynb_checkpoints" / "1.png")
    (tmp_path / "test" / "archive.zip").write_bytes(b"PK")
    (tmp_path / "test" / "cat" / "notes.txt").write_text("mine")
    (tmp_path / "test" / "empty").mkdir()
    images, warned = loaded(tmp_path)
    assert classes(images) == {"cat": 1}
    expected = {
        f"1 left out of {tmp_path}: hold/ (is no split: splits are called {', '.join(SPLIT_ALIASES)}).",
        f"2 left out of {tmp_path / 'test'}: .ipynb_checkpoints/, cat/notes.txt (is no image).",
        f"2 left out of {tmp_path / 'test'}: archive.zip, loose.png (lies outside of any class folder).",
        f"1 left out of {tmp_path / 'test'}: empty/ (holds no image and is no class here).",
    }
    assert set(warned) == expected


def test_a_long_list_of_what_is_left_out_is_cut(tmp_path):
    """The number says how many; a few names say what they are."""
    put(tmp_path / "cat" / "1.png")
    for number in range(9):
        (tmp_path / "cat" / f"{number}.txt").write_text("")
    _, warned = loaded(tmp_path)
    shown = ", ".join(f"cat/{number}.txt" for number in range(5))
    assert warned == [f"9 left out of {tmp_path}: {shown}, ... (is no image)."]


def test_a_split_that_is_not_there_is_answered_with_the_names_that_are_accepted(tmp_path):
    """Whoever keeps held-out images in a folder of another name has to learn which names count."""
    put(tmp_path / "train" / "cat" / "1.png"), put(tmp_path / "keep" / "cat" / "1.png")
    with pytest.warns(UserWarning, match="keep/"), pytest.raises(ValueError, match="one of train.*holdout.*eval"):
        load_images(str(tmp_path))
