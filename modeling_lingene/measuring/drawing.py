"""What all figures share: colours, a figure without a screen, and a file that is whole or not there.

matplotlib is imported where something is drawn, no backend and no global state is touched.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..writing_lingene import clear_abandoned, partial_name


MARKERS = "osD^vPX*"
INK = "#222222"
CURVES = (("#0072b2", "-", "o"), ("#d55e00", "--", "s"))  # Okabe and Ito's; told apart without colour, too
DPI = 150
LETTER = 0.085  # inches that a letter of 8 to 10 points is wide


def whole_ticks(last: int) -> list[int]:
    """Some of 1 to `last`, evenly spaced, which are epochs: there is no epoch 0, 2.5 or `last` + 1."""
    from matplotlib.ticker import MaxNLocator

    if last <= 10:
        return list(range(1, last + 1))
    return [int(tick) for tick in MaxNLocator(9, integer=True).tick_values(1, last) if 1 <= tick <= last]


def blank_figure() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('matplotlib is needed here: pip install "modeling_lingene[analysis]"') from error
    figure = Figure(figsize=(11, 5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def shades(depths: Sequence[int]) -> dict[int, Any]:
    """A colour per depth, in the order of depth, dark enough to read on white."""
    from matplotlib import colormaps

    scale = colormaps["plasma"]
    return {depth: scale(0.75 - 0.7 * index / max(1, len(depths) - 1)) for index, depth in enumerate(depths)}


def save_figure(figure: Any, path: Path) -> None:
    """Writes a picture beside its place and renames it, so that no half-written one is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(path)
    partial = path.with_name(partial_name(path))
    try:
        figure.savefig(partial, format=path.suffix[1:])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
