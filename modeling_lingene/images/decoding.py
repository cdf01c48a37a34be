"""A picture of any mode as upright 8-bit RGB, rightly scaled, or the reason why it cannot be.

Pillow's own conversion clips what has more than eight bits: 16-bit pictures come out almost white, floats black.
"""

from typing import Any

import numpy


SIXTEEN_BITS = ("PNG", "PPM")  # formats that fill mode I with 16-bit numbers


def upright_rgb(picture: Any) -> Any:
    """A PIL image in mode RGB, turned as its EXIF data says (as transformers' pipelines do).

    16-bit numbers are scaled by 257; floating-point ones, from 0 to 1, by 255. Alpha is dropped, of an animation the
    first picture is taken.

    Raises:
        ValueError: 32-bit numbers that have no range, or floating-point ones outside of 0 to 1.
    """
    from PIL import Image, ImageOps

    kind, picture = picture.format, ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in SIXTEEN_BITS):
        picture = Image.fromarray((numpy.asarray(picture) / 257).round().astype(numpy.uint8))
    elif picture.mode == "F":
        values = numpy.asarray(picture)
        if not (values.min() >= 0 and values.max() <= 1):  # of nan neither holds
            raise ValueError(f"floating-point pixels must be from 0 to 1, found {values.min():g} to {values.max():g}")
        picture = Image.fromarray((values * 255).round().astype(numpy.uint8))
    elif picture.mode == "I":
        raise ValueError("32-bit integer pixels have no known range; save 8 or 16 bits")
    return picture.convert("RGB")
