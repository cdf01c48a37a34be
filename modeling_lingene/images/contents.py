"""What tells the pictures of a set from others of the same name, without reading all of them."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .data import LabelledImages


def sampled(images: LabelledImages, places: Iterable[int]) -> Iterator[bytes]:
    """The pictures at some places as their files have them; where they lie in none of their own, decoded."""
    for index in sorted(places):
        path = images.images.path(index) if hasattr(images.images, "path") else None
        if path and os.path.dirname(path) and os.path.isfile(path):  # a name alone is that within an archive
            yield Path(path).read_bytes()
        else:
            picture, _ = images.decoded(index)
            yield picture.tobytes() if picture is not None else b"unreadable"


def pictures_id(images: LabelledImages) -> str:
    """Of a set: how many pictures, and four of them; not how they are labelled, nor what the set is called."""
    count = len(images)
    told = hashlib.sha256(str(count).encode())
    for one in sampled(images, {0, count // 3, count // 2, count - 1}):
        told.update(one)
    return told.hexdigest()[:16]
