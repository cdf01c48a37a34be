"""Fill the tables of README.md, and the sentences of this folder's README.md, from the measured files in `results/`.

python tests/benchmarks/render_readme.py
"""

import functools
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

from sentences import SENTENCES, Table, best_of, points, with_range

from modeling_lingene.measuring.tables import size_table


RESULTS = Path(__file__).parent / "results"
README, NOTES_FILE = Path(__file__).parents[2] / "README.md", Path(__file__).parent / "README.md"


def quickstart_table() -> str:
    return size_table(json.loads((RESULTS / "quickstart.json").read_text())["sizes"])


def loading_table() -> str:
    results = json.loads((RESULTS / "loading.json").read_text())
    lines = ["| size | time | beside a busy process | peak memory |", "|---|---:|---:|---:|"]
    for name, time in results["time"].items():
        busy, peak = (results[table].get(name) for table in ("time_with_one_busy_process", "peak_memory"))
        cells = [f"{cell['ratio']:.2f}x" if cell else "" for cell in (time, busy, peak)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version.partition('+')[0]}" for name, version in results["versions"].items())
    return "\n".join([*lines, "", f"{results['hardware']}, {versions}."])


def decomposition_table() -> str:
    table = Table.read("decomposition_fashion")
    labels = table.labels("simultaneous")
    best = best_of(table, "incremental")
    shown = {
        "dense": "dense, no components",
        "simultaneous": "simultaneous",
        "incremental, paper": "incremental, as published",
        best: f"incremental, the best ({best.partition(', ')[2] or 'stable coefficients'})",
        "elastic, degree weight 1": "elastic, the default",
    }
    lines = [f"| training | cost | {' | '.join(f'{label} comp.' for label in labels)} |"]
    lines.append("|---|---:|" + "---:|" * len(labels))
    for name, text in shown.items():
        row = table.rows[name]
        cells = [with_range(row["test"][label]) if label in row["test"] else "" for label in labels]
        if name == "dense":
            cells[-1] = with_range(*row["test"].values())
        lines.append(f"| {text} | {row['cost']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


STARTS = {
    "matched": "fit of all (`matched`, the default)",
    "aligned": "without matching (`aligned`)",
    "kronecker": "without aligning (`kronecker`)",
    "weighted": "inputs' metric, weighed by gradients (`weighted`)",
    "activations": "inputs' metric (`activations`)",
    "weights": "least squares, no images (`weights`)",
    "layers": "as many layers of the source, chosen",
    "random": "random components",
}


def conversion_table() -> str:
    results = json.loads((RESULTS / "conversion_fashion.json").read_text())
    counts = sorted({row["num_components"] for row in results["rows"]})
    rows = {(row["start"], row["num_components"]): row for row in results["rows"]}
    lines = [f"| start | {' | '.join(f'{count} comp.' for count in counts)} |", "|---|" + "---:|" * len(counts)]
    for start, name in STARTS.items():
        cells = []
        for count in counts:
            row = rows[start, count]
            shown = [row[key] for key in ("untrained", "1 epochs", "3 epochs")]
            cells.append(" / ".join("-" if value is None else f"{100 * value:.1f}" for value in shown))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def conversion_source() -> str:
    return f"{100 * json.loads((RESULTS / 'conversion_fashion.json').read_text())['source']['accuracy']:.1f}"


ELASTIC = {
    "alone": "each size alone",
    "alone, long": "alone, as many pictures as the bundle",
    "one": "one network a step, the default",
    "scala as published, depths drawn": "Scala's scheme, depths drawn",
    "scala as published": "Scala's scheme, depth fixed",
    "not trained for it": "a bundle not trained for it",
}


def elastic_table() -> str:
    table = Table.read("elastic_fashion")
    sizes = table.labels("one")
    depths, widths = (list(dict.fromkeys(label.split(", ")[place] for label in sizes)) for place in (0, 1))
    lines = [f"| training | cost | {' | '.join(widths)} |", "|---|---:|" + "---:|" * len(widths)]
    for row, shown in ELASTIC.items():
        found = {f"{depth}, {width}": _row_of(table, row, f"{depth}, {width}") for depth in depths for width in widths}
        names = {name for name in found.values() if name}
        if not names:
            continue
        cells = []
        for width in widths:
            means = [(name, f"{depth}, {width}") for depth in depths if (name := found[f"{depth}, {width}"])]
            cells.append(" / ".join(points(table.mean(name, label)) for name, label in means))
        cost = sum(table.rows[name]["cost"] for name in names)
        lines.append(f"| {shown} | {cost:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _row_of(table: Table, row: str, label: str) -> str:
    """The row that measured a size; empty where none did."""
    if table.has(row):
        return row
    name = "dense" if row == "alone" and label in table.labels("dense") else f"{row}, {label}"
    return name if table.has(name) else ""


def bullets(sentences: Callable[[], list[str]]) -> str:
    return "\n".join(textwrap.fill(said, 118, initial_indent="* ", subsequent_indent="  ") for said in sentences())


TABLES = {"quickstart": quickstart_table, "decomposition": decomposition_table, "loading": loading_table}
TABLES |= {"conversion": conversion_table, "elastic": elastic_table}
NUMBERS = {"source": conversion_source}
NOTES = {name: functools.partial(bullets, sentences) for name, sentences in SENTENCES.items()}


def render(text: str, tables: dict = TABLES, numbers: dict = NUMBERS) -> str:
    """A text with every table between its markers made anew."""
    for name, table in tables.items():
        block = f"<!-- {name} -->\n{table()}\n<!-- /{name} -->"
        text, count = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise ValueError(f"The text must have the markers of {name} once, has them {count} times.")
    for name, number in numbers.items():
        block = f"<!-- {name} -->{number()}<!-- /{name} -->"
        text, count = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, text)  # noqa: B023
        if count != 1:
            raise ValueError(f"The text must have the markers of {name} once, has them {count} times.")
    return text


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
    NOTES_FILE.write_text(render(NOTES_FILE.read_text(encoding="utf-8"), NOTES, {}), encoding="utf-8")
