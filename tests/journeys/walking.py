"""What the four journeys share: a folder of made-up flowers, and commands as they are typed."""

import math
import random
import shlex
from pathlib import Path

from lingene.main import main


# Petals, and the colours of petals and of the middle.
FLOWERS = {
    "daisy": (9, (240, 240, 235), (230, 190, 40)),
    "poppy": (4, (205, 45, 40), (30, 25, 30)),
    "cornflower": (7, (70, 90, 210), (40, 40, 120)),
    "sunflower": (12, (235, 180, 30), (90, 55, 25)),
}
PIXELS = 32


def flower(name: str, seed: int):
    """A picture: a flower of its kind on a meadow, turned, moved, larger or smaller, of another shade."""
    from PIL import Image, ImageDraw, ImageFilter

    drawn, (petals, outer, inner) = random.Random(f"{name} {seed}"), FLOWERS[name]
    size = 4 * PIXELS
    meadow = tuple(drawn.randint(low, low + 70) for low in (30, 80, 20))
    picture = Image.new("RGB", (size, size), meadow)
    brush, shade = ImageDraw.Draw(picture), drawn.uniform(0.75, 1.1)
    for _ in range(40):
        x, y = drawn.randrange(size), drawn.randrange(size)
        brush.line(
            (x, y, x + drawn.randint(-9, 9), y - 25), fill=tuple(c + drawn.randint(-20, 20) for c in meadow), width=3
        )
    x, y = (size / 2 + drawn.uniform(-0.12, 0.12) * size for _ in "xy")
    reach, turn = drawn.uniform(0.25, 0.4) * size, drawn.uniform(0, math.pi)
    for petal in range(petals):
        angle = turn + 2 * math.pi * petal / petals
        along, across = x + 0.6 * reach * math.cos(angle), y + 0.6 * reach * math.sin(angle)
        half = reach * (0.5 if petals < 6 else 0.28)
        brush.ellipse((along - half, across - half, along + half, across + half), fill=_shaded(outer, shade))
    half = 0.3 * reach
    brush.ellipse((x - half, y - half, x + half, y + half), fill=_shaded(inner, shade))
    return picture.filter(ImageFilter.GaussianBlur(2)).resize((PIXELS, PIXELS))


def _shaded(colour: tuple, shade: float) -> tuple:
    return tuple(min(255, round(part * shade)) for part in colour)


def plant(folder: Path, train: int = 48, test: int = 20) -> Path:
    """FOLDER/train/daisy/0.png, ...: so many pictures of each kind in either part, no two alike."""
    for part, count, first in (("train", train, 0), ("test", test, 10_000)):
        for name in FLOWERS:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                flower(name, first + number).save(folder / part / name / f"{number}.png")
    return folder


def lingene(line: str, status: int = 0) -> None:
    """A command as it is typed; what it says is shown by `pytest -s`, and when the journey fails."""
    print(f"\n$ lingene {line}", flush=True)
    try:
        ended = main(shlex.split(line))
    except SystemExit as stop:
        ended = stop.code
    assert ended == status, f"lingene {line}: status {ended}"
