"""Pictures to learn from without labels, and a bundle that learns."""

from pathlib import Path

import pytest

import helpers
from modeling_lingene.images.batches import image_processor


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures, some of them deeper, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "a" / "b").mkdir(parents=True)
    for number, picture in enumerate(helpers.pictures(40).images):
        picture.save(folder / ("a/b" if number % 3 else "") / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a classifier, which the run leaves behind; read only."""
    folder = helpers.bundle(tmp_path_factory.mktemp("init") / "bundle", helpers.tiny_config(depth=4, num_components=4))
    image_processor(16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures to train on and sixteen others, of two classes that a picture's brightness tells apart."""
    folder = tmp_path_factory.mktemp("classes")
    for part, count in (("train", 40), ("test", 16)):
        for number, picture in enumerate(helpers.pictures(count, seed=count).images):
            name = folder / part / ("dark", "light")[number % 2]
            name.mkdir(parents=True, exist_ok=True)
            picture.point(lambda value, add=96 * (number % 2): value // 2 + add).save(name / f"{number}.png")
    return folder
