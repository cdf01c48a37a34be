"""Laws of `images/decoding.py`: a picture means what its numbers say, whatever mode they are stored in.

The reference is one grey gradient, written in every mode; pictures that have no range are refused.
"""

import numpy
import pytest

from modeling_lingene.images.batches import image_processor, to_tensors
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.images.decoding import upright_rgb


Image = pytest.importorskip("PIL.Image")
SHARES = numpy.linspace(0, 1, 48).reshape(6, 8)  # of white
BYTES = (SHARES * 255).round().astype(numpy.uint8)
WORDS = (SHARES * 65535).round().astype(numpy.uint16)
WRITTEN = {
    "8-bit PNG": (BYTES, "png"),
    "16-bit PNG": (WORDS, "png"),
    "16-bit TIFF": (WORDS, "tiff"),
    "16-bit big-endian TIFF": (WORDS.astype(">u2"), "tiff"),
    "16-bit PGM": (WORDS.astype(numpy.int32), "ppm"),
    "float TIFF": (SHARES.astype(numpy.float32), "tiff"),
}
UNKNOWN = {
    "32-bit integer TIFF": (WORDS.astype(numpy.int32), "32-bit integer"),
    "float TIFF beyond 1": (SHARES.astype(numpy.float32) * 255, "from 0 to 1, found 0 to 255"),
    "negative float TIFF": (SHARES.astype(numpy.float32) - 0.5, "from 0 to 1, found -0.5 to 0.5"),
    "float TIFF with nan": (numpy.where(SHARES > 0.5, numpy.nan, SHARES).astype(numpy.float32), "from 0 to 1"),
}


def written(array, path, suffix="tiff"):
    Image.fromarray(array).save(path.with_suffix(f".{suffix}"))
    return Image.open(path.with_suffix(f".{suffix}"))


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_mode_is_scaled_to_its_own_range(tmp_path, kind):
    """16-bit and floating-point pictures loaded almost white and black: mean .984 and 0 where .5 is right."""
    array, suffix = WRITTEN[kind]
    found = upright_rgb(written(array, tmp_path / "picture", suffix))
    assert found.mode == "RGB"
    for channel in range(3):
        assert numpy.abs(numpy.asarray(found)[..., channel].astype(int) - BYTES).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes_are_what_pillow_makes_of_them(mode):
    """They were right; LAB is the one that Pillow converts by a colour profile only."""
    rgb = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=numpy.uint8))
    if mode == "LAB":
        cms = pytest.importorskip("PIL.ImageCms")
        profiles = cms.createProfile("sRGB"), cms.createProfile("LAB")
        picture = cms.profileToProfile(rgb, *profiles, outputMode="LAB")
    else:
        picture = rgb.convert(mode)
    assert numpy.array_equal(upright_rgb(picture), picture.convert("RGB"))


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_has_no_range_is_refused_and_counted_as_unreadable(tmp_path, kind):
    """Guessing one would make every picture of a set wrong in silence."""
    array, why = UNKNOWN[kind]
    picture = written(array, tmp_path / "picture")
    with pytest.raises(ValueError, match=why):
        upright_rgb(picture)
    images = LabelledImages([picture], [0], ["thing"], "made", "test")
    assert images.decoded(0)[0] is None and why in images.decoded(0)[1]
    with pytest.raises(ValueError, match="1 of the 1 images of made .test. do not decode"):
        to_tensors(images, image_processor(4))


def test_a_16_bit_picture_reaches_the_model_as_its_8_bit_twin(tmp_path):
    """Through the whole way into tensors."""
    pictures = [written(array, tmp_path / str(array.dtype), "png") for array in (BYTES, WORDS)]
    pixels, _ = to_tensors(LabelledImages(pictures, [0, 0], ["thing"], "made", "test"), image_processor(6))
    assert (pixels[0] - pixels[1]).abs().max() <= 2 / 255
