"""Pictures that the tests of conversion share."""

import pytest

import helpers


COUNT = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A flat folder of pictures without labels."""
    folder = tmp_path_factory.mktemp("photos")
    for index, picture in enumerate(helpers.pictures(COUNT).images):
        picture.save(folder / f"{index:03}.png")
    return folder
