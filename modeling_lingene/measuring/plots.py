"""Figures of sizes: what every size of a bundle is worth, over what it costs and over its depth and components.

Usage: `plot_sizes(json.loads(Path("bundle/sizes.json").read_text())["sizes"], "sizes.png")`.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..budget_lingene import METRICS, Metric, metric_of, readable, standard_error
from .drawing import INK, LETTER, MARKERS, blank_figure, save_figure, shades
from .grids import depth_key


COSTS = {"macs": "MACs of one image", "stored_params": "Stored parameters, components shared by the layers"}
HEAT_INCHES = 11.5  # across; of wider pictures nothing can be read on a card
MOST_TICKS = 8  # on an axis of half of a picture
SHADES = 10  # standard errors that the colours of a heat map span at least: what is one apart looks alike
LABEL = 20.0  # what a label covers of another one weighs more than anything else it may cover
RING = {
    "color": "#999999",
    "linestyle": "--",
    "linewidth": 1.0,
    "marker": "o",
    "markersize": 11,
    "markerfacecolor": "none",
    "markeredgecolor": INK,
}


def plot_sizes(
    rows: Sequence[dict[str, Any]], path: str | Path, title: str | None = None, metric: str | None = None
) -> None:
    """Draws accuracy, or another metric, against MACs and stored parameters, a point per measured size, as a PNG.

    Colour is depth, the marker is the width; lines join sizes of one depth and width (upright against MACs, which the
    components do not change). Rings and the dashed line mark the sizes that no other beats: none in the panel is at
    least as good for at most the cost and better in one of the two. The number at a ring is its components; where
    rings crowd some have none, and the table has them all. A cost that all sizes share has no panel.

    Args:
        rows: of `sizes.json`, measured on one split of one set.
        path: of the PNG; written atomically, folders are made.
        title: of the figure.
        metric: default the one that the rows name.

    Raises:
        ValueError: no rows, rows measured on different images or against different references, or by another metric.
        ImportError: matplotlib is missing; the message says what to install.
    """
    sets = {(row["dataset"], row["split"]) for row in rows}
    if len(sets) != 1:
        raise ValueError(
            f"`rows` must be sizes measured on one split of one set; got {len(rows)} rows of "
            f"{', '.join(f'{dataset} ({split})' for dataset, split in sorted(sets)) or 'none'}. Choose one set's rows."
        )
    rows, shown, reference = _valued(rows, metric)
    figure = blank_figure()
    colours = shades(sorted({row["depth"] for row in rows}, key=depth_key))
    widths = sorted({Fraction(row["width_ratio"]) for row in rows}, reverse=True)
    markers = {width: MARKERS[index % len(MARKERS)] for index, width in enumerate(widths)}
    costs = [cost for cost in COSTS if len({row[cost] for row in rows}) > 1] or [*COSTS][-1:]
    axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for panel, cost in zip(axes, costs, strict=True):
        _draw_panel(panel, rows, cost, colours, markers)
    dataset, split = sets.pop()
    bars = "; bars: one standard error" if any(row["error"] for row in rows) else ""
    label = f"{shown.axis}{reference} on {dataset} ({split}){', %' if shown.percent else ''}{bars}"
    axes[0].set_ylabel(textwrap.fill(label, 45))
    figure.suptitle(title)
    _legend(figure, colours, markers)
    _label_points(figure, dict(zip(costs, axes)), rows, colours)
    save_figure(figure, Path(path))


def plot_cost(
    rows: Sequence[dict[str, Any]], cost: str, path: str | Path, metric: str | None = None
) -> list[tuple[float, float]]:
    """Draws accuracy, or another metric, against one cost, small enough for a phone, as a PNG or SVG.

    Args:
        rows: of `sizes.json`; signs as in `plot_sizes`.
        cost: one of `COSTS`.
        path: of the picture, its kind by its suffix; written atomically.
        metric: default the one that the rows name.

    Returns:
        Where the point of every row is: right of the left edge and below the upper one, as shares of the picture.

    Raises:
        ValueError: no rows, or rows measured by another metric or against different references.
        ImportError: matplotlib is missing; the message says what to install.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one size; got none.")
    rows, shown, reference = _valued(rows, metric)
    figure = blank_figure()
    figure.set_size_inches(3.9, 3.9)
    colours = shades(sorted({row["depth"] for row in rows}, key=depth_key))
    widths = sorted({Fraction(row["width_ratio"]) for row in rows}, reverse=True)
    markers = {width: MARKERS[index % len(MARKERS)] for index, width in enumerate(widths)}
    panel = figure.subplots()
    _draw_panel(panel, rows, cost, colours, markers)
    panel.set_xlabel(textwrap.fill(panel.get_xlabel(), 38))
    label = f"{shown.axis}{reference}{', %' if shown.percent else ''}"
    panel.set_ylabel(textwrap.fill(label, 40))
    _legend(figure, colours, markers, counted=False, columns=2)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # or it would be another one when it is saved
    pixels = panel.transData.transform([(row[cost], row["value"]) for row in rows])
    places = figure.transFigure.inverted().transform(pixels)
    save_figure(figure, Path(path))
    return [(float(x), float(1 - y)) for x, y in places]


def plot_heat(
    rows: Sequence[dict[str, Any]], path: str | Path, title: str | None = None, metric: str | None = None
) -> None:
    """Draws the accuracy, or another metric, of every depth and number of components, a panel per width, as a PNG;
    gaps stay white.

    Args:
        rows: of `sizes.json`, measured on one split of one set.
        path: of the PNG; written atomically, folders are made.
        title: of the figure.
        metric: default the one that the rows name.

    Raises:
        ValueError: no rows, or rows measured by another metric or against different references.
        ImportError: matplotlib is missing; the message says what to install.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one size; got none.")
    widths = sorted({Fraction(row["width_ratio"]) for row in rows})
    depths = sorted({row["depth"] for row in rows}, key=depth_key)
    counts = sorted({row["num_components"] for row in rows})
    rows, shown, reference = _valued(rows, metric)
    low, high = (pick(row["value"] for row in rows) for pick in (min, max))
    error = max(row["error"] for row in rows if row["value"] == high)
    low, near = min(low, high - SHADES * error), high - error
    figure = blank_figure()
    panels = _heat_panels(figure, len(widths), len(counts), len(depths))
    for panel, width in zip(panels, widths, strict=True):
        own = {(row["depth"], row["num_components"]): row["value"] for row in rows if _at(row, width)}
        table = [[own.get((depth, count), math.nan) for count in counts] for depth in depths]
        drawn = panel.imshow(
            table, cmap="viridis", vmin=low, vmax=max(high, low + 1e-6), origin="lower", aspect="auto"
        )
        for y, values in enumerate(table):
            for x, value in enumerate(values):
                if not math.isnan(value):
                    dark = value < (low + high) / 2
                    text = f"{value:.1f}" if shown.percent else f"{value:.3f}"
                    colour = "white" if dark else INK
                    weight = "bold" if error and value >= near else "normal"
                    panel.text(x, y, text, ha="center", va="center", color=colour, fontsize=9.5, fontweight=weight)
        panel.set_xticks(range(len(counts)), counts)
        panel.set_yticks(range(len(depths)), depths)
        panel.set_title(f"width {width}", fontsize=11)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    figure.supxlabel("Components", fontsize=10)
    figure.supylabel("Layers", fontsize=10)
    label = f"{shown.axis}{reference}{', %' if shown.percent else ''}"
    told = f"{error:.1f} points" if shown.percent else f"{error:.2g}"
    label += f"\nbold: within one standard error ({told}) of the best" if error else ""
    lines = [textwrap.fill(line, int(figure.get_figheight() / LETTER)) for line in label.splitlines()]
    figure.colorbar(drawn, ax=panels, label="\n".join(lines))
    figure.suptitle(title)
    save_figure(figure, Path(path))


def _heat_panels(figure: Any, panels: int, counts: int, depths: int) -> list[Any]:
    """Panels side by side, in as many rows as keep the picture narrow enough to be read."""
    across, up = 0.4 + 0.7 * counts, 0.5 + 0.55 * depths
    lines = math.ceil(panels / max(1, int((HEAT_INCHES - 1.5) / across)))
    columns = math.ceil(panels / lines)
    figure.set_size_inches(max(4.5, 1.5 + columns * across), max(3.0, 1.3 + lines * up))
    made = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    for empty in made[panels:]:
        empty.remove()
    return list(made[:panels])


def _valued(rows: Sequence[dict[str, Any]], metric: str | None) -> tuple[list[dict[str, Any]], Metric, str]:
    """The rows with what is drawn of them as `value` and its standard error as `error`, the metric, and, of an
    agreement, whom with.
    """
    name = metric_of(rows, metric)
    references = sorted({row.get("reference", "") for row in rows}) if name == "cosine" else [""]
    if len(references) > 1:
        raise ValueError(f"`rows` must be compared with one reference; got {' and '.join(references)}.")
    scale = 100 if METRICS[name].percent else 1
    drawn = [{**row, "value": scale * row[name], "error": scale * (standard_error(row, name) or 0)} for row in rows]
    return drawn, METRICS[name], f" with {references[0]}" if references[0] else ""


def _at(row: dict[str, Any], width: Fraction) -> bool:
    return Fraction(row["width_ratio"]) == width


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Which points no other point beats: at most the cost and at least the value, and better in one of them."""
    points = list(zip(costs, values, strict=True))
    return [not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points) for cost, value in points]


def readable_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round numbers between two positive limits for a logarithmic axis, with labels as in tables, such as `500 k`.

    Takes 1, 2, 5 times powers of ten, more digits where that gives fewer than three ticks, the powers alone where it
    gives too many.
    """
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
        if len(ticks) >= (3 if digits != (1,) else MOST_TICKS / 2):
            break
    else:
        ticks = [
            float(tick)
            for tick in MaxNLocator(4, steps=[1, 2, 4, 5, 10]).tick_values(low, high)
            if low <= tick <= high
        ]
    return ticks, [readable(tick) for tick in ticks]


def _draw_panel(panel: Any, rows: Sequence[dict], cost: str, colours: dict, markers: dict) -> None:
    for (depth, width), series in _series(rows).items():
        costs, values = [row[cost] for row in series], [row["value"] for row in series]
        style = {"color": colours[depth], "marker": markers[width], "markersize": 6, "markeredgecolor": "white"}
        panel.plot(costs, values, linewidth=1.3, zorder=3, **style)
        errors = [row["error"] for row in series]
        if any(errors):
            panel.errorbar(costs, values, yerr=errors, fmt="none", ecolor=colours[depth], alpha=0.45, zorder=2)
    unbeaten = pareto([row[cost] for row in rows], [row["value"] for row in rows])
    front = sorted((row[cost], row["value"]) for row, keep in zip(rows, unbeaten, strict=True) if keep)
    panel.plot(*zip(*front, strict=True), zorder=2, **RING)
    panel.set_xscale("log")
    low, high = min(row[cost] for row in rows), max(row[cost] for row in rows)
    margin = max((high / low) ** 0.08, 1.1)  # room for labels beside the outermost points
    low, high = low / margin, high * margin
    panel.set_xlim(low, high)
    ticks, labels = readable_ticks(low, high)
    panel.set_xticks(ticks, labels)
    panel.minorticks_off()
    panel.margins(y=0.08)
    panel.set_xlabel(f"{COSTS[cost]} (log scale)")
    panel.grid(color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _series(rows: Iterable[dict]) -> dict[tuple[int, Fraction], list[dict]]:
    """Rows by (depth, width), each list in the order of components."""
    series: dict[tuple[int, Fraction], list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["num_components"]):
        series.setdefault((row["depth"], Fraction(row["width_ratio"])), []).append(row)
    return dict(sorted(series.items(), key=lambda item: (depth_key(item[0][0]), item[0][1])))


def _legend(figure: Any, colours: dict, markers: dict, counted: bool = True, columns: int = 7) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=colour, linewidth=3, label=f"{depth} layer{'s' * (depth != 1)}")
        for depth, colour in colours.items()
    ]
    if len(markers) > 1:
        entries += [
            Line2D([], [], color="#777777", marker=marker, linestyle="none", label=f"width {width}")
            for width, marker in markers.items()
        ]
    entries.append(Line2D([], [], label="beaten by no other size", **RING))
    if counted:
        said = "components of ringed sizes"
        entries.append(Line2D([], [], marker="$4$", color=INK, linestyle="none", label=said))
    columns = min(len(entries), columns)
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, columnspacing=1.4)


def _label_points(figure: Any, axes: dict[str, Any], rows: Sequence[dict], colours: dict) -> None:
    """Writes the number of components beside every ring that leaves it room; for the layout as it is then.

    Args:
        axes: panels by their cost.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for cost, panel in axes.items():
        places = {
            key: [tuple(panel.transData.transform((row[cost], row["value"]))) for row in series]
            for key, series in _series(rows).items()
        }
        taken = [(x, y, 11.0, 11.0, 10.0) for points in places.values() for x, y in points]
        for points in places.values():
            taken += [(x, y, 2.0, 2.0, 1.0) for x, y in _along(points)]
        for row, (x, y) in _ringed(rows, cost, places):
            text = str(row["num_components"])
            box = (7.0 * len(text) + 2, 11.0)
            x, y = _best_place(x, y, *box, taken, panel.bbox)
            if not any(weight == LABEL and _meet((x, y, *box), other) for *other, weight in taken):
                taken.append((x, y, *box, LABEL))
                _write(panel, text, x, y, colours[row["depth"]])


def _ringed(rows: Sequence[dict], cost: str, places: dict) -> list[tuple[dict, tuple[float, float]]]:
    """The sizes that no other beats, the best first, and where they are; of equal points one."""
    unbeaten = pareto([row[cost] for row in rows], [row["value"] for row in rows])
    kept = {id(row) for row, keep in zip(rows, unbeaten, strict=True) if keep}
    found = {}
    for key, series in _series(rows).items():
        for row, place in zip(series, places[key], strict=True):
            if id(row) in kept:
                found.setdefault(place, (row, place))
    return sorted(found.values(), key=lambda one: -one[0]["value"])


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes (centre x, centre y, half width, half height) share a point."""
    return abs(one[0] - other[0]) < one[2] + other[2] and abs(one[1] - other[1]) < one[3] + other[3]


def _along(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points every few pixels along the line through `points`."""
    places = []
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / 5))
        places += [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(1, steps)]
    return places


def _best_place(
    x: float, y: float, half_width: float, half_height: float, taken: Sequence[tuple], inside: Any
) -> tuple[float, float]:
    """The centre of a label for the point (x, y), in pixels, that covers least of `taken` and stays near and inside.

    Args:
        taken: boxes (centre x, centre y, half width, half height, weight).
        inside: matplotlib's box of the panel.
    """

    def cost(candidate: tuple[float, float]) -> float:
        a, b = candidate
        box = (a, b, half_width, half_height)
        covered = sum(weight for *other, weight in taken if _meet(box, other))
        outside = not (inside.x0 < a - half_width and a + half_width < inside.x1 and inside.y0 < b - half_height)
        return covered + 20 * outside + 0.05 * math.hypot(a - x, b - y)

    directions = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 0.8), (1, -0.8), (-1, 0.8), (-1, -0.8))
    return min(
        (
            (x + horizontal * (half_width + gap), y + vertical * (half_height + gap))
            for gap in (13, 17, 23)
            for horizontal, vertical in directions
        ),
        key=cost,
    )


def _write(panel: Any, text: str, x: float, y: float, colour: Any) -> None:
    from matplotlib.patheffects import withStroke

    panel.annotate(
        text,
        (x, y),
        xycoords="figure pixels",
        ha="center",
        va="center",
        fontsize=9.5,
        color=colour,
        fontweight="bold",
        zorder=5,
        annotation_clip=False,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )
