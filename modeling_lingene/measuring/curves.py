"""Figures of one thing after another: the epochs of a training, the components of a converted bundle."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .drawing import CURVES, INK, LETTER, blank_figure, save_figure, whole_ticks


FULL = {"agreement": 100, "cosine": 1}  # what a perfect conversion has


def plot_history(history: Sequence[dict[str, Any]], path: str | Path, title: str | None = None) -> None:
    """Draws the loss of every epoch and what was measured on held-out images, accuracy or loss, as a PNG.

    Args:
        history: a row per epoch, as `TrainingLoop.fit` returns it; a vertical line where a phase begins.
        path: of the PNG; written atomically.
        title: of the figure.

    Raises:
        ValueError: no rows.
        ImportError: matplotlib is missing; the message says what to install.
    """
    if not history:
        raise ValueError("`history` must hold at least one epoch; got none.")
    figure = blank_figure()
    epochs = range(1, len(history) + 1)
    curves = {"Training loss": [row["loss"] for row in history]}
    if any("accuracy" in row for row in history):
        curves["Accuracy on held-out images, %"] = [100 * row.get("accuracy", math.nan) for row in history]
    if any("feature_loss" in row for row in history):
        curves["Loss on held-out images"] = [row.get("feature_loss", math.nan) for row in history]
    starts = [index for index, row in enumerate(history) if index == 0 or row["phase"] != history[index - 1]["phase"]]
    for panel, (label, values) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if not math.isnan(value)]
        panel.plot(
            *zip(*known, strict=True), color=INK, linewidth=1.5, marker="o", markersize=3 if len(known) < 50 else 0
        )
        panel.set_xlim(0.5, len(history) + 0.5)
        panel.set_xticks(whole_ticks(len(history)))
        for start in starts[1:]:
            panel.axvline(start + 0.5, color="#999999", linestyle=":", linewidth=1.0)
        if len(starts) > 1:
            room = figure.get_figwidth() / len(curves) / len(history)
            for start, name in _told_phases(starts, [history[start]["phase"] for start in starts], room):
                panel.annotate(name, (start + 0.6, 1.01), xycoords=("data", "axes fraction"), fontsize=8)
        panel.set_xlabel("Epoch")
        panel.set_ylabel(label)
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    save_figure(figure, Path(path))


def _told_phases(starts: Sequence[int], names: Sequence[str], room: float) -> list[tuple[int, str]]:
    """Where phases begin, with their names, which do not run into each other: shortened to their last word, and left
    out, where they are many.

    Args:
        room: inches of one epoch.
    """
    least = min(after - before for before, after in zip(starts, starts[1:])) * room
    if max(map(len, names)) * LETTER > least:
        names = [names[0], *(name.split()[-1] for name in names[1:])]
    told, end = [], 0.0
    for start, name in zip(starts, names, strict=True):
        if start * room >= end:
            told.append((start, name))
            end = start * room + (len(name) + 1) * LETTER
    return told


def plot_conversion(rows: Sequence[dict[str, Any]], path: str | Path, compared: str, title: str | None = None) -> None:
    """Draws what a converted bundle gives with its first k components, for every k, as a PNG.

    Args:
        rows: of a conversion's report: num_components, activation_residual, relative_logit_error and, for a
            classifier, agreement, or without one cosine and cosine_p5.
        path: of the PNG; written atomically.
        compared: what of bundle and source was compared, as the report says: "logit", "class token" ...
        title: of the figure.

    Raises:
        ValueError: no rows.
        ImportError: matplotlib is missing; the message says what to install.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one number of components; got none.")
    figure = blank_figure()
    panels = [
        {
            "activation_residual": "Outputs of the layers, on the pictures of the fit",
            "relative_logit_error": f"{compared.capitalize()}s",
        }
    ]
    labels = ["Relative error"]
    if "agreement" in rows[0]:
        panels.append({"agreement": "Agreement"})
        labels.append("Images of the same class as the source's, %")
    if "cosine" in rows[0]:
        panels.append({"cosine": "Mean over images", "cosine_p5": "5th percentile"})
        labels.append(f"Cosine of the {compared} with the source's")
    counts = [row["num_components"] for row in rows]
    for panel, curves, label in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, labels, strict=True):
        for (key, name), (colour, line, marker) in zip(curves.items(), CURVES):
            scale, style = 100 if key == "agreement" else 1, {"color": colour, "linestyle": line, "marker": marker}
            panel.plot(counts, [scale * row[key] for row in rows], label=name, **style)
        panel.set_xlabel("Components")
        panel.set_xticks(counts if len(counts) <= 12 else whole_ticks(counts[-1]))
        panel.set_ylabel(label)
        panel.set_ylim(
            *_limits([value for one in panel.lines for value in one.get_ydata()], FULL.get(next(iter(curves))))
        )
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            panel.legend(frameon=False)
    figure.suptitle(title)
    save_figure(figure, Path(path))


def _limits(values: Sequence[float], full: float | None) -> tuple[float, float]:
    """Of an upright axis: from nothing to above the largest error; or the part below a perfect value that is used, so
    that the last point does not lie on the edge and steps of a point can be seen.
    """
    if full is None:
        return 0.0, 1.08 * max(values) or 1.0
    used = max(full - min(values), 0.05 * full)
    return full - 1.1 * used, full + 0.06 * used
