"""Figures of analyses, each one panel wide: to be read at a phone's width, too."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..measuring.drawing import INK, MARKERS, blank_figure, save_figure, shades


def plot_trends(trends: Mapping[str, Any], path: str | Path, title: str | None = None) -> None:
    """Draws where the layers of stacks lie on their first principal axis, over depth, as a PNG or SVG.

    Args:
        trends: by the name of the stack, a `Trend` of `analysis.trend`.
        path: of the picture, its kind by its suffix; written atomically.
        title: of the figure.

    Raises:
        ValueError: no stacks.
        ImportError: matplotlib is missing; the message says what to install.
    """
    if not trends:
        raise ValueError("`trends` must hold at least one stack; got none.")
    figure = blank_figure()
    figure.set_size_inches(5.2, 0.8 + 3.2 * len(trends))  # one below the other: to be read at a phone's width, too
    panels = figure.subplots(len(trends), squeeze=False).flatten()
    for panel, (name, trend) in zip(panels, trends.items()):
        depth = range(1, len(trend.values) + 1)
        panel.plot(depth, _fitted_line(trend.values), color="#999999", linewidth=1.2, zorder=2, label="straight line")
        panel.plot(depth, trend.values, "o-", color="#0072B2", markersize=5, linewidth=1.2, zorder=3, label="layers")
        said = f"{'' if trend.strong else 'weak: '}axis holds {100 * trend.explained:.0f} %"
        _over_layers(panel, f"{name}\n{said}, correlation with depth {trend.correlation:.2f}")
        panel.set_ylabel("Place on the first axis")
    panels[0].legend(frameon=False, fontsize=8.5)
    figure.suptitle(title)
    save_figure(figure, Path(path))


def plot_coefficients(
    tables: Mapping[int | str, Sequence[Sequence[float]]], path: str | Path, title: str | None = None
) -> None:
    """Draws how much of every component the layers hold, a panel per depth, as a PNG or SVG.

    Args:
        tables: a(l, n) by number of layers, or by what is said of them: l rows of n numbers.
        path: of the picture, its kind by its suffix; written atomically.
        title: of the figure.

    Raises:
        ValueError: no tables.
        ImportError: matplotlib is missing; the message says what to install.
    """
    if not tables:
        raise ValueError("`tables` must hold at least one depth; got none.")
    figure = blank_figure()
    count = max(len(table[0]) for table in tables.values())
    figure.set_size_inches(5.2, 0.8 + 2.8 * len(tables) + 0.2 * math.ceil(count / 3))
    panels = figure.subplots(len(tables), squeeze=False, sharey=True).flatten()
    colours = shades(range(count))
    for panel, (depth, table) in zip(panels, tables.items()):
        for component, values in enumerate(zip(*table, strict=True)):
            marker = MARKERS[component % len(MARKERS)]
            style = {"color": colours[component], "marker": marker, "markersize": 4.5, "linewidth": 1.2}
            panel.plot(range(1, len(values) + 1), values, label=f"component {component + 1}", **style)
        panel.axhline(0, color="#999999", linewidth=0.8, zorder=1)
        _over_layers(panel, f"{depth} layers" if isinstance(depth, int) else depth)
        panel.set_ylabel("Coefficient")
    handles, labels = max((panel.get_legend_handles_labels() for panel in panels), key=lambda both: len(both[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title)
    save_figure(figure, Path(path))


def plot_similarity(
    table: Sequence[Sequence[float]],
    path: str | Path,
    model: str,
    reference: str,
    parts: tuple[str, str] = ("layers", "layers"),
) -> None:
    """Draws how alike the layers of two models are, as a PNG or SVG.

    Args:
        table: (l, m) CKA; rows are the layers of the model.
        path: of the picture, its kind by its suffix; written atomically.
        model, reference: their names.
        parts: what rows and columns are: layers, or stages.

    Raises:
        ValueError: no layers.
        ImportError: matplotlib is missing; the message says what to install.
    """
    if not table:
        raise ValueError("`table` must hold at least one layer; got none.")
    figure = blank_figure()
    rows, columns = len(table), len(table[0])
    height = 1.8 + 0.42 * max(rows, 4)
    figure.set_size_inches(2.4 + 0.42 * max(columns, 4), height)
    panel = figure.subplots()
    drawn = panel.imshow(table, cmap="viridis", vmin=0, vmax=1, origin="lower", aspect="auto")
    for y, values in enumerate(table):
        for x, value in enumerate(values):
            colour = "white" if value < 0.5 else INK
            panel.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8.5)
    panel.set_xticks(range(columns), range(1, columns + 1))
    panel.set_yticks(range(rows), range(1, rows + 1))
    own, others = (part.capitalize() for part in parts)
    panel.set_xlabel(f"{others} of {reference}")
    panel.set_ylabel(textwrap.fill(f"{own} of {model}", round(7 * height)))
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=panel, label="Similarity (linear CKA)")
    figure.suptitle(f"How alike {' and '.join(dict.fromkeys(parts))} are", fontsize=11)
    save_figure(figure, Path(path))


def plot_components(
    rows: Sequence[dict], pictures: Sequence, maps: Sequence[dict], path: str | Path, title: str | None = None
) -> None:
    """Draws what components look at, two pictures abreast: a row per component, alone and with those before it.

    Args:
        rows: by picture, of `analysis.components`: `explained`, and `alone` and `first`, a dict per component.
        pictures: (h, w, 3) from 0 to 1.
        maps: by picture `alone` and `first`, (h, w) from 0 to 1 per component.
        path: of the picture, its kind by its suffix; written atomically.
        title: of the figure.

    Raises:
        ValueError: no pictures.
        ImportError: matplotlib is missing; the message says what to install.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one picture; got none.")
    figure = blank_figure()
    abreast, count = min(2, len(rows)), len(rows[0]["alone"])
    lines = math.ceil(len(rows) / abreast)
    figure.set_size_inches(0.4 + 2.9 * abreast, 1.3 + 1.6 * lines * (count + 1))
    panels = figure.subplots(lines * (count + 1), 2 * abreast, squeeze=False)
    for panel in panels.flatten():
        panel.set_axis_off()
    for place, (row, picture, own) in enumerate(zip(rows, pictures, maps, strict=True)):
        top, left = (count + 1) * (place // abreast), 2 * (place % abreast)
        panels[top, left].imshow(picture)
        said = "what sets it apart" if row["explained"] is None else row["explained"]
        panels[top, left + 1].text(0, 0.5, "explained:\n" + _short(said, 3), va="center", fontsize=10, color=INK)
        for n in range(count):
            for column, way in enumerate(("alone", "first")):
                drawn = _draw_map(panels[top + 1 + n, left + column], picture, own[way][n])
                panels[top + 1 + n, left + column].set_title(
                    _map_title(n + 1, way, row[way][n]), fontsize=9.5, color=INK
                )
    bar = figure.colorbar(drawn, ax=panels, location="bottom", shrink=0.6, aspect=30, pad=0.01)
    bar.set_ticks([0, 1], labels=["speaks least for it", "most"])
    figure.suptitle(title and textwrap.fill(title, 28 * abreast), fontsize=11)
    save_figure(figure, Path(path))


def _draw_map(panel: Any, picture: Any, drawn: Any) -> Any:
    """A map over its picture in grey."""
    panel.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=1)
    return panel.imshow(drawn, cmap="viridis", vmin=0, vmax=1, alpha=0.6)


def _map_title(count: int, way: str, row: Mapping[str, Any]) -> str:
    which = f"{count} alone" if way == "alone" else f"first {count}"
    which += ", empty" * (row["entropy"] is None)
    said = (
        f"{_short(row['class'], 1)} {100 * row['score']:.0f} %"
        if "class" in row
        else f"cosine {round(row['score'], 2) + 0.0:.2f}"
    )
    return f"{which}\n{said}"


def _short(text: str, lines: int) -> str:
    """In lines of at most 16 letters, cut where there are more."""
    found = textwrap.wrap(text, 16)
    return "\n".join(found[:lines]) + ("..." if len(found) > lines else "")


def _over_layers(panel: Any, title: str) -> None:
    """A panel whose horizontal axis counts layers."""
    panel.set_title(title, fontsize=9.5, color=INK)
    panel.set_xlabel("Layer (1 is next to the input)")
    panel.locator_params(axis="x", integer=True)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _fitted_line(values: Sequence[float]) -> list[float]:
    """Least squares over 0, 1, 2, ..."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    slope = sum((place - middle) * value for place, value in enumerate(values))
    slope /= sum((place - middle) ** 2 for place in range(count))
    return [mean + slope * (place - middle) for place in range(count)]
