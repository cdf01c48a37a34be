"""`lingene analyse`: a model explained by its weights."""

import json
from pathlib import Path

from .asked import SIZE_FLAGS, given


ANALYSIS_FLAGS = dict.fromkeys((*SIZE_FLAGS, "data"), ("components", "similarity"))
ANALYSIS_FLAGS |= {"count": ("components",), "depths": ("coefficients",), "reference": ("similarity",)}


def analyse(what: str, model: str, out: Path, **asked) -> None:
    asked = {name: value for name, value in given(asked).items() if value != ()}
    for name in asked:
        if what not in ANALYSIS_FLAGS[name]:
            raise ValueError(f"`{name}` is of {' and '.join(ANALYSIS_FLAGS[name])}, and {what} has no such choice.")
    if what == "components":
        from ..analysis.components import PICTURES, RESULTS_FILE, analyse_components

        _print_components(analyse_components(model, out, **asked))
    elif what == "coefficients":
        from ..analysis.coefficients import PICTURES, RESULTS_FILE, analyse_coefficients

        analyse_coefficients(model, out, **asked)
    elif what == "similarity":
        from ..analysis.similarity import PICTURES, RESULTS_FILE, analyse_similarity

        if "data" not in asked:
            raise ValueError("`data` says on which pictures layers are compared: give --data.")
        table = analyse_similarity(model, out, **asked)
        found = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))
        _print_similarity(table, found["rows"].removesuffix("s"), found["columns"].removesuffix("s"))
    else:
        from ..analysis.trend import PICTURES, RESULTS_FILE, analyse_trend

        _print_trends(analyse_trend(model, out))
    print(f"\nplot     {out / PICTURES[0]}\nnumbers  {out / RESULTS_FILE}")


def _print_similarity(table: list[list[float]], own: str, others: str) -> None:
    """To which layer, or stage, of the reference each is most alike."""
    for layer, values in enumerate(table, start=1):
        best = max(range(len(values)), key=values.__getitem__)
        print(f"{own} {layer:>2} is most alike to {others} {best + 1:>2} of the reference ({values[best]:.2f})")


def _print_components(found: list[dict]) -> None:
    """A table per picture: what each component, and the first n, say of it."""
    from ..measuring.tables import aligned_table

    for place, picture in enumerate(found, start=1):
        lines = [["components", "says", "score", "centre", "entropy", "like all"]]
        for way, name in (("alone", "{} alone"), ("first", "first {}")):
            for n, row in enumerate(picture[way], start=1):
                cells = [row.get("class", "cosine"), f"{round(row['score'], 2) + 0.0:.2f}"]
                cells += [
                    "-" if row[key] is None else f"{row[key]:.2f}" for key in ("centre", "entropy", "correlation")
                ]
                lines.append([name.format(n), *cells])
        print(f"\npicture {place}, explained: {picture['explained'] or 'what sets it apart'}")
        print(aligned_table(lines))


def _print_trends(trends: dict) -> None:
    """A table of the stacks, and what each says."""
    from ..measuring.tables import aligned_table

    lines = [["stack", "layers", "axis holds", "correlation"]]
    for name, trend in trends.items():
        cells = [str(len(trend.values)), f"{100 * trend.explained:.0f} %", f"{trend.correlation:.2f}"]
        lines.append([name, *cells])
    print(f"\n{aligned_table(lines)}\n")
    for name, trend in trends.items():
        print(f"{name}: {trend.sentence()}")
