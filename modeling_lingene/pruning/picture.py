"""A picture of what every layer of a pruned network became."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..measuring.drawing import INK, blank_figure, save_figure


# Colour (Okabe and Ito's, apart for all kinds of sight), that of the words on it, name, what it does.
LAYER_PARTS = {
    "attention": ("#0072b2", "white", "attention", "tokens read each other"),
    "conv3": ("#e69f00", INK, "3x3 convolution", "every patch reads its neighbours"),
    "conv1": ("#f0e442", INK, "1x1 convolution", "every patch by itself"),
    "none": ("white", INK, "nothing", "tokens are not mixed"),
}


def plot_layers(layers: Sequence[dict[str, Any]], path: str | Path, title: str | None = None) -> None:
    """Draws what every layer of a pruned network became, as a PNG: a row per layer, the input below.

    Args:
        layers: each with `mixer`, one of `LAYER_PARTS`, `units`, of its MLP, and `of`, as many as it had.
        path: of the PNG; written atomically.
        title: of the figure.

    Raises:
        ValueError: no layers.
        ImportError: matplotlib is missing; the message says what to install.
    """
    if not layers:
        raise ValueError("`layers` must hold at least one layer; got none.")
    figure = blank_figure()
    figure.set_size_inches(9, 2.2 + 0.36 * len(layers))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2))
    places, most = range(1, len(layers) + 1), max(layer["of"] for layer in layers)
    for place, layer in zip(places, layers):
        colour, ink, name, _ = LAYER_PARTS[layer["mixer"]]
        left.barh(place, 1, height=0.82, color=colour, edgecolor="#999999", linewidth=0.8)
        left.text(0.5, place, name, ha="center", va="center", color=ink, fontsize=9)
        right.barh(place, layer["of"], height=0.82, color="white", edgecolor="#999999", linewidth=0.8)
        right.barh(place, layer["units"], height=0.82, color="#777777")
        right.text(1.02 * most, place, f"{layer['units']} of {layer['of']}", va="center", fontsize=9, color=INK)
    left.set_xlim(0, 1)
    left.set_xticks([])
    left.set_yticks(places)
    left.set_ylabel("Layer (1 is next to the image)")
    left.set_title("How tokens are mixed", fontsize=10)
    right.set_xlim(0, 1.25 * most)
    right.set_xticks([])
    right.set_title("MLP units: kept (grey) of all", fontsize=10)
    for panel in (left, right):
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    shown = [part for name, part in LAYER_PARTS.items() if any(layer["mixer"] == name for layer in layers)]
    figure.supxlabel("; ".join(f"{name}: {said}" for _, _, name, said in shown), fontsize=8.5)
    figure.suptitle(title)
    save_figure(figure, Path(path))
