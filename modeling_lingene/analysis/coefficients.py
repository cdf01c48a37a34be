"""The coefficients of a bundle over depth: how much of every component each layer holds.

    lingene analyse coefficients BUNDLE --out DIR

W_l = sum_n a(l, n) A_n (LinDec, Eq. 3 and 9); no weights are read.

Notation: l layers, n components.
"""

from collections.abc import Sequence
from pathlib import Path

from ..extras import require
from ..folders import check_empty, complete_or_absent, read_config, write_json
from ..measuring.grids import checked_sizes
from .figures import plot_coefficients


RESULTS_FILE, PICTURES = "coefficients.json", ("coefficients.png", "coefficients.svg")


def analyse_coefficients(
    bundle: str | Path, out: str | Path, depths: Sequence[int | str] = ()
) -> dict[int | str, list]:
    """Numbers and a picture of the coefficients.

    Args:
        bundle: folder or name on the Hub.
        out: new or empty folder for `coefficients.json`, `coefficients.png` and `coefficients.svg`.
        depths: numbers of layers, or of those of each stage as in "2-6"; default those that were trained.

    Returns:
        a(l, n) by number of layers: a list of l lists of n. Where components stand for several stages it is a table
        for each, by depth and stage as in "2-6 stage2".

    Raises:
        ValueError: it is no bundle, or has no network of such a depth; nothing is written.
        ImportError: matplotlib is missing; the message says what to install.
    """
    check_empty(out)
    require("matplotlib")
    config = read_config(bundle)
    checked_sizes(config, depths, [], [])
    sizes = [config.size(depth) for depth in depths or config.trained_depths]
    stacks = config.stacks if len(config.stacks) > 1 else ("",)
    tables = {
        f"{size.depth} {stack}".strip(" .") if stack else size.depth: config.coefficients(size, stack).tolist()
        for size in sizes
        for stack in stacks
    }
    with complete_or_absent(out) as folder:
        write_json(folder / RESULTS_FILE, {"bundle": str(bundle), "coefficients": tables})
        for picture in PICTURES:
            plot_coefficients(tables, folder / picture, f"Components over depth: {Path(bundle).name}")
    return tables
