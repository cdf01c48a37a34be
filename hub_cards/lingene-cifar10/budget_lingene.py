"""The best measured size within a budget, what it was measured by, and what a latency was measured on."""

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from .configuration_base_lingene import BundleConfig, Size
from .reading_lingene import OBJECT, TEXT, check_fields, either, integer, items, map_of, number, one_of, optional


class Metric(NamedTuple):
    """How the numbers of one metric are spoken of; of every one more is better.

    Args:
        best: the size that has most of it.
        axis: of a figure.
        percent: whether 0..1 is shown as percent.
    """

    best: str
    axis: str
    percent: bool

    def shown(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3f}"

    def spread(self, error: float) -> str:
        """A standard error in the unit of `shown`."""
        return f"{100 * error:.1f} points" if self.percent else f"{error:.3f}"


# A row of `sizes.json` holds one of these or more, each in the field of its name, and says by `metric` which decides
# between sizes; without that field accuracy does. `cosine` is that of what stands for an image, mean over the images.
METRICS = {
    "accuracy": Metric("the most accurate", "Accuracy", True),
    "knn": Metric("the best by k-NN", "k-NN accuracy", True),
    "probe": Metric("the best by linear probe", "Linear probe accuracy", True),
    "cosine": Metric("the best by cosine", "Cosine of image features", False),
}
# Beside `cosine`: its 5th percentile over the images, both for the patch tokens, and whom the tokens agree with.
AGREEMENT = ("cosine", "cosine_p5", "patch_cosine", "patch_cosine_p5")

BUDGETS = {"max_params": "params", "max_macs": "macs", "max_latency_ms": "latency_ms"}  # and the columns they bound
COST_WORDS = {"params": "parameters", "macs": "MACs", "latency_ms": "ms"}

_COUNT, _MILLISECONDS = integer(1, 1 << 31), number(0, 1e12)
ROW_FIELDS = {
    "depth": either(_COUNT, TEXT),
    "num_components": _COUNT,
    "width_ratio": either(TEXT, number(0, 1)),
    **dict.fromkeys(("params", "stored_params", "macs"), number(0, 1e18)),
    **dict.fromkeys(("accuracy", "knn", "probe"), number(0, 1)),
    **dict.fromkeys(AGREEMENT, number(-1, 1)),
    "metric": one_of(*METRICS),
    **dict.fromkeys(("split", "dataset", "pictures_id", "device", "reference", "reference_id"), TEXT),
    "images": _COUNT,
    "standard_errors": map_of(number(0, 2)),
    "latency_ms": optional(_MILLISECONDS),
    "iqr_ms": _MILLISECONDS,
    **dict.fromkeys(("timed", "timed_with"), TEXT),
    "profiles": items(OBJECT),
}
ROW_REQUIRED = "depth width_ratio num_components params stored_params macs split dataset".split()
# Of one timing: median and interquartile range of one image, on what, when its run began (UTC, the same for all sizes
# that were timed in it), and how: torch, precision, what else the machine did.
TIMING = ("device", "latency_ms", "iqr_ms", "timed", "timed_with")
PROFILE_FIELDS = {field: ROW_FIELDS[field] for field in TIMING} | {"latency_ms": _MILLISECONDS}
PROFILE_REQUIRED = ("device", "latency_ms")  # older ones do not say when


def choose_size(
    rows: Sequence[dict], config: BundleConfig, budget: dict[str, float], latency_device: str | None = None
) -> tuple[Size, str]:
    """The cheapest measured size that cannot be told from the best one within a budget, by the metric of the rows.

    The best one is measured to a standard error; of the sizes within it that one has the fewest MACs, then parameters,
    then parameters to download. Latencies count of one run on one device, the latest: others were taken at other
    moments, beside other work.

    Args:
        rows: of `sizes.json`.
        budget: any of `max_params`, `max_macs` (one image), `max_latency_ms`.
        latency_device: whose latencies count, by its name in `sizes.json`; default this machine's GPU or processor.

    Returns:
        The size, and why, in one line.

    Raises:
        ValueError: a budget that is no positive number, nothing measured, or nothing that fits; rows that were
            measured by different metrics; a latency budget without latencies of this device.
    """
    for name, limit in budget.items():
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0:
            raise ValueError(f"`{name}` must be a positive number, got {limit!r}.")
    columns = {name: BUDGETS[name] for name in budget}
    asked = " and ".join(f"`{name}` {readable(limit)}" for name, limit in budget.items())
    if not rows:
        raise ValueError(
            f"{asked} needs measured sizes in `sizes.json`, and this bundle has none: run `lingene sweep BUNDLE "
            "--data DATA`, or give `depth`, `width_ratio`, `num_components` yourself."
        )
    by, where = metric_of(rows), ""
    if "max_latency_ms" in budget:
        rows, where = _timed(rows, asked, latency_device)
    within = [row for row in rows if all(row[column] <= budget[name] for name, column in columns.items())]
    if not within:
        smallest = min(rows, key=lambda row: [row[column] for column in columns.values()])
        numbers = _told_costs(smallest, columns)
        raise ValueError(
            f"{asked}: no measured size in `sizes.json` fits; the smallest is {row_size(smallest, config)} with "
            f"{numbers}."
        )
    best, close = nearly_best(within, by)
    chosen, metric = close[0], METRICS[by]
    numbers = _told_costs(chosen, columns)
    size, of = row_size(chosen, config), f"of {len(within)} measured sizes within {asked}"
    told = f"{metric.best} ({metric.shown(best[by])}) {of}"
    error = standard_error(best, by)
    if error is not None and len(close) > 1:
        told = (
            f"the cheapest ({metric.shown(chosen[by])}) of {len(close)} that one standard error "
            f"({metric.spread(error)}, {best['images']} pictures) does not tell from {told}"
        )
    return size, f"{size}: {told}, with {numbers}{where}."


def nearly_best(rows: Sequence[dict], metric: str) -> tuple[dict, list[dict]]:
    """The best of measured sizes, and those within one standard error of it, the cheapest first.

    Args:
        rows: of `sizes.json`, at least one; where they do not say their standard error, equals alone are near.
        metric: that all of them hold.
    """
    best = max(rows, key=lambda row: (row[metric], [-cost for cost in _costs(row)]))
    least = best[metric] - (standard_error(best, metric) or 0)
    return best, sorted((row for row in rows if row[metric] >= least), key=lambda row: (_costs(row), -row[metric]))


def standard_error(row: dict, metric: str) -> float | None:
    """Of what a row says by a metric; None where its number of pictures was not recorded."""
    return row.get("standard_errors", {}).get(metric)


def _costs(row: dict) -> tuple[float, ...]:
    return row["macs"], row["params"], row["stored_params"]


def _told_costs(row: dict, columns: dict[str, str]) -> str:
    """`3.6 M MACs and 2.5 ms`."""
    return " and ".join(f"{readable(row[column])} {COST_WORDS[column]}" for column in columns.values())


def readable(count: float) -> str:
    """1234567 -> `1.23 M`: three digits and a unit."""
    for unit in ("", " k", " M", " G"):
        rounded = float(f"{count:.3g}")
        if rounded < 1000:
            return f"{rounded:g}{unit}"
        count /= 1000
    return f"{count:.3g} T"


def metric_of(rows: Sequence[dict], asked: str | None = None) -> str:
    """The metric that decides between measured sizes.

    Args:
        rows: of `sizes.json`.
        asked: by name; default the one that the rows name, and accuracy where they name none.

    Raises:
        ValueError: an unknown metric, one that some row does not hold, or rows that name different ones.
    """
    named = sorted({row.get("metric", "accuracy") for row in rows})
    if asked is None and len(named) > 1:
        raise ValueError(
            f"Sizes measured by {' and '.join(named)} do not compare: measure all of them by one, with `lingene sweep "
            "BUNDLE --data DATA --metric NAME`."
        )
    metric = asked or "".join(named) or "accuracy"
    if metric not in METRICS:
        raise ValueError(f"`metric` must be one of {', '.join(METRICS)}; got {metric!r}.")
    lacking = sum(metric not in row for row in rows)
    if lacking:
        held = ", ".join(name for name in METRICS if all(name in row for row in rows))
        raise ValueError(
            f"`metric` {metric} is missing from {lacking} of {len(rows)} measured sizes"
            f"{'; all of them hold ' * bool(held)}{held}: measure it with `lingene sweep BUNDLE --data "
            f"DATA --metric {metric}`."
        )
    return metric


def check_row(row: dict, config: BundleConfig, where: str, remedy: str) -> None:
    """Refuse a row of `sizes.json` that lacks a field, has one of another kind, or is about a size that cannot be."""
    check_fields(row, ROW_FIELDS, where, required=ROW_REQUIRED, remedy=remedy)
    check_fields(row, {}, where, required=(row.get("metric", "accuracy"),), remedy=remedy)
    check_fields(row, {}, where, required=("images",) if "standard_errors" in row else (), remedy=remedy)
    for profile in row.get("profiles", ()):
        check_fields(profile, PROFILE_FIELDS, f"a profile in {where}", required=PROFILE_REQUIRED, remedy=remedy)
    try:
        row_size(row, config)
    except ValueError as error:
        raise ValueError(f"{where}: {error} Otherwise {remedy}.") from None


def row_size(row: dict, config: BundleConfig) -> Size:
    """The size that a row of `sizes.json` is about."""
    return config.size(row["depth"], row["width_ratio"], row["num_components"])


def timings(row: dict) -> Iterator[dict]:
    """Every timing that a row has, of its measurement and of profiles since: the fields of `TIMING` that are known."""
    if row.get("latency_ms") is not None:
        yield {"device": "an unnamed device"} | {key: row[key] for key in TIMING if key in row}
    yield from row.get("profiles", ())


def latest_run(rows: Sequence[dict], device: str) -> list[dict | None]:
    """The timing of every row in the latest run on a device; None of rows that were not timed in it.

    Timings that do not say when are the oldest, and cannot be told apart: of a row the last one counts.
    """
    runs: dict[str, dict[int, dict]] = {}
    for index, row in enumerate(rows):
        for timing in timings(row):
            if timing["device"] == device:
                runs.setdefault(timing.get("timed", ""), {})[index] = timing
    run = runs[max(runs)] if runs else {}
    return [run.get(index) for index in range(len(rows))]


def told_when(timing: dict) -> str:
    """When a timing was taken, in what, for people."""
    if "timed" not in timing:
        return "when is not recorded"
    return ", ".join(f"{timing[key]}" for key in ("timed", "timed_with") if key in timing)


def _timed(rows: Sequence[dict], asked: str, device: str | None) -> tuple[list[dict], str]:
    """The rows with their latency in the latest run on the device that is meant; which run, for people."""
    here = device_names() if device is None else [device]
    for name in here:
        found = latest_run(rows, name)
        timed = [{**row, "latency_ms": one["latency_ms"]} for row, one in zip(rows, found) if one is not None]
        if timed:
            others = sum(any(one["device"] == name for one in timings(row)) for row in rows) - len(timed)
            older = f"; {others} sizes were timed earlier and do not count" if others else ""
            return timed, f" on {name} ({told_when(next(filter(None, found)))}{older})"
    others = sorted({one["device"] for row in rows for one in timings(row)})
    known = f"were measured on {', '.join(others)}" if others else "were never measured"
    named = ", or name the device that counts: latency_device=NAME" if others else ""
    raise ValueError(
        f"{asked} needs latencies of {' or '.join(here)}, and those in `sizes.json` {known}: run `lingene profile "
        f"BUNDLE` here{named}."
    )


def device_names() -> list[str]:
    """What this machine's latencies are named after, the fastest first: its GPU, its processor with these threads."""
    names = [device_name("cuda")] if torch.cuda.is_available() else []
    return [*names, device_name("cpu")]


def device_name(device: str | torch.device = "cpu", threads: int | None = None) -> str:
    """What a latency was measured on, for people: the processor and the threads (default torch's), or the GPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} of {platform.machine()}"
    threads = threads or torch.get_num_threads()
    return f"{_processor_name()} ({threads} thread{'s' * (threads != 1)})"


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"
