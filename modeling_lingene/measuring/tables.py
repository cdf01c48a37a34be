"""Numbers for people: tables in Markdown, which terminals, cards and the README show alike."""

from collections.abc import Callable, Sequence

from ..budget_lingene import METRICS, latest_run, metric_of, readable, standard_error, told_when


# A metric's columns: the heading, and the fields that stand in them, the second in brackets.
COLUMNS = {
    "accuracy": {"accuracy": ("accuracy",)},
    "knn": {"k-NN": ("knn",)},
    "probe": {"probe": ("probe",)},
    "cosine": {"cosine": ("cosine", "cosine_p5"), "patch cosine": ("patch_cosine", "patch_cosine_p5")},
}
# What the columns say, for `on`, the images, `reference`, and `token`, what stands for an image.
EXPLAINED = {
    "accuracy": "Accuracy on {on}.",
    "knn": "`k-NN` on {on}: the 20 images of the train part whose {token}s are nearest vote for the class.",
    "probe": "`probe` on {on}: a logistic regression on the {token}s of the train part says the class.",
    "cosine": "`cosine` on {on}: how far the {token}, and the patch tokens, agree with those of {reference}; mean "
    "over the images, in brackets the 5th percentile.",
}


def size_table(rows: list[dict], metric: str | None = None, fetched: Callable[[int], int] | None = None) -> str:
    """Measured sizes as a Markdown table, the best first; `-` where a number was not measured.

    Args:
        rows: of `sizes.json`.
        metric: that decides, its columns come first; default the one that the rows name.
        fetched: number of components -> bytes, as `Bundle.download_bytes`; without it there is no such column.

    Raises:
        ValueError: as `metric_of`.
    """
    metric = metric_of(rows, metric)
    measures = {heading: fields for name in metrics_in(rows, metric) for heading, fields in COLUMNS[name].items()}
    latencies = latency_cells(rows)
    timed = any(latencies)
    lines = [["depth", "width", "components", *measures, "parameters", "MACs"]]
    lines[0] += ["download"] * (fetched is not None) + ["latency"] * timed
    for row, latency in sorted(
        zip(rows, latencies), key=lambda pair: (-pair[0][metric], pair[0]["macs"], pair[0]["stored_params"])
    ):
        cells = [row["depth"], row["width_ratio"], row["num_components"] or "-"]
        cells += [_shown(row, fields) for fields in measures.values()]
        cells += [readable(row["params"]), readable(row["macs"])]
        cells += [bytes_shown(fetched(row["num_components"]))] if fetched is not None else []
        cells += [latency or "-"] * timed
        lines.append([str(cell) for cell in cells])
    return aligned_table(lines)


def shown_run(rows: Sequence[dict]) -> tuple[str | None, list[dict | None]]:
    """Whose latencies a table shows: those of the latest run on the device of the latest measurement.

    Returns:
        The device, None where nothing was timed, and the timing of every row in that run.
    """
    timed = [row for row in rows if row.get("latency_ms") is not None]
    if not timed:
        return None, [None] * len(rows)
    device = max(timed, key=lambda row: row.get("timed", "")).get("device", "an unnamed device")
    return device, latest_run(rows, device)


def latency_cells(rows: Sequence[dict]) -> list[str]:
    """The latency of every row for a table; one of another run or device is marked, one that is not there is empty."""
    device, run = shown_run(rows)
    cells = []
    for row, one in zip(rows, run):
        mark = " (older)" if row.get("device", "an unnamed device") == device else " (another device)"
        own = f"{row['latency_ms']:.2f} ms{mark}" if row.get("latency_ms") is not None else ""
        cells.append(own if one is None else f"{one['latency_ms']:.2f} ms")
    return cells


def told_timing(rows: Sequence[dict]) -> str:
    """What the latencies of a table are of, for people; empty where there are none."""
    device, run = shown_run(rows)
    return f"{device} ({told_when(next(filter(None, run)))})" if device else ""


def told_error(rows: Sequence[dict]) -> str:
    """What stands behind a table's ±, for people; empty where the numbers of pictures were not recorded."""
    counts = sorted({row["images"] for row in rows if row.get("standard_errors")})
    if not counts:
        return ""
    return f"± one standard error ({' or '.join(map(str, counts))} pictures): what is closer cannot be told apart"


def metrics_in(rows: Sequence[dict], first: str) -> list[str]:
    """What any of the rows was measured by, one that is named first."""
    return [first, *(name for name in METRICS if name != first and any(name in row for row in rows))]


def _shown(row: dict, fields: Sequence[str]) -> str:
    """`81.2 ± 1.3 %`, or `0.913 ± 0.002 (0.842)`."""
    metric = METRICS.get(fields[0], METRICS["cosine"])
    values = [metric.shown(row[field]) for field in fields if field in row]
    error = standard_error(row, fields[0])
    if values and error is not None:
        number, _, unit = values[0].partition(" ")
        values[0] = f"{number} ± {metric.spread(error).split()[0]} {unit}".rstrip()
    return f"{values[0]} ({values[1]})" if len(values) > 1 else "".join(values) or "-"


def aligned_table(lines: list[list[str]]) -> str:
    """A Markdown table, right-aligned; the first line is the heading."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    drawn = ["| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([drawn[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *drawn[1:]])


def bytes_shown(count: float) -> str:
    """1234567 -> `1.23 MB`; 512 -> `512 B`."""
    shown = readable(count)
    return f"{shown}B" if " " in shown else f"{shown} B"
