"""The picture of the idea in README.md, drawn from the released bundle: its weights, coefficients and measured sizes.

python tests/benchmarks/idea.py
"""

import json
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from safetensors.numpy import load_file

from modeling_lingene import LinGeneConfig
from modeling_lingene.folders import download_of
from modeling_lingene.measuring.tables import bytes_shown


BUNDLE = Path(__file__).parents[2] / "hub_cards" / "lingene-fashion-mnist"
PICTURE = BUNDLE.parent / "idea.svg"
MATRIX = "mlp.fc1.weight"  # of each component, as a picture
SIZES = ((6, "1", 6), (4, "1/2", 4), (3, "1/4", 1))  # depth, width, components
INK, LAYER, PAPER = "#222222", "#4477aa", "#ffffff"


def measured() -> dict[tuple, dict]:
    rows = json.loads((BUNDLE / "sizes.json").read_text())["sizes"]
    return {(row["depth"], row["width_ratio"], row["num_components"]): row for row in rows}


def captions() -> list[str]:
    """What stands under each size."""
    rows, fetched = [measured()[size] for size in SIZES], download_of(BUNDLE)
    return [
        f"depth={depth}\nwidth {width}\n{count} of {SIZES[0][2]} components\n"
        f"{100 * row['accuracy']:.1f} % correct\n{bytes_shown(fetched(count))} to fetch"
        for (depth, width, count), row in zip(SIZES, rows)
    ]


def draw() -> Figure:
    figure = Figure(figsize=(6.4, 6.2), facecolor=PAPER)
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, 1), ylim=(0.03, 0.99))
    page.axis("off")
    page.text(
        0.5, 0.96, "Stored once: components that all layers share", ha="center", va="center", size=14, weight="bold"
    )
    _components(figure, page)
    page.add_patch(FancyArrowPatch((0.5, 0.69), (0.5, 0.635), arrowstyle="-|>", mutation_scale=20, color=INK))
    words = r"layer $l$  =  $a(l,1)\,A_1 + a(l,2)\,A_2 + \ldots$"
    page.text(0.5, 0.60, words, ha="center", va="center", size=14)
    page.text(0.5, 0.53, "Loaded: a plain ViT of the size you ask for", ha="center", size=14, weight="bold")
    for place, (size, caption) in enumerate(zip(SIZES, captions())):
        _network(page, (2 * place + 1) / 6, size, caption)
    return figure


def _components(figure: Figure, page) -> None:
    count = LinGeneConfig.from_pretrained(BUNDLE).reference_components
    for place in range(count):
        weights = load_file(BUNDLE / f"component-{place:02d}.safetensors")
        matrix = next(tensor for name, tensor in weights.items() if name.endswith(MATRIX)).astype(numpy.float32)
        axes = figure.add_axes((0.06 + place * 0.88 / count, 0.762, 0.8 / count, 0.155))
        spread = 2.5 * matrix.std()
        axes.imshow(matrix[:48, :48], cmap="PuOr", vmin=-spread, vmax=spread, interpolation="nearest", aspect="auto")
        axes.set(xticks=[], yticks=[])
        page.text(0.06 + (place * 0.88 + 0.4) / count, 0.73, f"$A_{place + 1}$", ha="center", va="center", size=13)


def _network(page, middle: float, size: tuple, caption: str) -> None:
    """A stack of layers, as wide as the network is."""
    depth, width, _ = size
    across, high = 0.24 * float(Fraction(width)), 0.032
    for layer in range(depth):
        corner = (middle - across / 2, 0.245 + layer * (high + 0.01))
        page.add_patch(Rectangle(corner, across, high, color=LAYER))
    page.text(middle, 0.225, caption, ha="center", va="top", size=12, linespacing=1.25)


def main() -> None:
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "idea", "text.color": INK})
    draw().savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
