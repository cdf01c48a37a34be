"""The most accurate measured size within a budget, and what a latency was measured on."""

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from .configuration_lingene import LinGeneConfig, Size
from .reading_lingene import OBJECT, TEXT, check_fields, either, integer, items, number, optional


BUDGETS = {"max_params": "params", "max_macs": "macs", "max_latency_ms": "latency_ms"}  # and the columns they bound

_COUNT, _MILLISECONDS = integer(1, 1 << 31), number(0, 1e12)
ROW_FIELDS = {
    **dict.fromkeys(("depth", "num_components"), _COUNT),
    "width_ratio": either(TEXT, number(0, 1)),
    **dict.fromkeys(("params", "stored_params", "macs"), number(0, 1e18)),
    "accuracy": number(0, 1),
    **dict.fromkeys(("split", "dataset", "device"), TEXT),
    "latency_ms": optional(_MILLISECONDS),
    "profiles": items(OBJECT),
}
ROW_REQUIRED = "depth width_ratio num_components params stored_params macs accuracy split dataset".split()
PROFILE_FIELDS = {"device": TEXT, "latency_ms": _MILLISECONDS}


def choose_size(
    rows: Sequence[dict], config: LinGeneConfig, budget: dict[str, float], latency_device: str | None = None
) -> tuple[Size, str]:
    """The most accurate measured size within a budget; of equals the one with fewest MACs, then parameters.

    Args:
        rows: of `sizes.json`.
        budget: any of `max_params`, `max_macs` (one image), `max_latency_ms`.
        latency_device: whose latencies count, by its name in `sizes.json`; default this machine's GPU or processor.

    Returns:
        The size, and why, in one line.

    Raises:
        ValueError: a budget that is no positive number, nothing measured, or nothing that fits; a latency budget
            without latencies of this device.
    """
    for name, limit in budget.items():
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0:
            raise ValueError(f"`{name}` must be a positive number, got {limit!r}.")
    columns = {name: BUDGETS[name] for name in budget}
    asked = " and ".join(f"`{name}` {limit:g}" for name, limit in budget.items())
    if not rows:
        raise ValueError(
            f"{asked} needs measured sizes in `sizes.json`, and this bundle has none: run `lingene sweep BUNDLE "
            "--data DATA`, or give `depth`, `width_ratio`, `num_components` yourself."
        )
    if "max_latency_ms" in budget:
        rows = _timed(rows, asked, latency_device)
    within = [row for row in rows if all(row[column] <= budget[name] for name, column in columns.items())]
    if not within:
        smallest = min(rows, key=lambda row: [row[column] for column in columns.values()])
        numbers = ", ".join(f"{column} {smallest[column]:g}" for column in columns.values())
        raise ValueError(
            f"{asked}: no measured size in `sizes.json` fits; the smallest is {row_size(smallest, config)} with "
            f"{numbers}."
        )
    best = max(within, key=lambda row: (row["accuracy"], -row["macs"], -row["params"]))
    numbers = ", ".join(f"{column} {best[column]:g}" for column in columns.values())
    where = f" on {best['device']}" if "max_latency_ms" in budget else ""
    size = row_size(best, config)
    return size, (
        f"{size}: the most accurate ({100 * best['accuracy']:.1f} %) of {len(within)} measured sizes within {asked}, "
        f"with {numbers}{where}."
    )


def check_row(row: dict, config: LinGeneConfig, where: str, remedy: str) -> None:
    """Refuse a row of `sizes.json` that lacks a field, has one of another kind, or is about a size that cannot be."""
    check_fields(row, ROW_FIELDS, where, required=ROW_REQUIRED, remedy=remedy)
    for profile in row.get("profiles", ()):
        check_fields(profile, PROFILE_FIELDS, f"a profile in {where}", required=PROFILE_FIELDS, remedy=remedy)
    try:
        row_size(row, config)
    except ValueError as error:
        raise ValueError(f"{where}: {error} Otherwise {remedy}.") from None


def row_size(row: dict, config: LinGeneConfig) -> Size:
    """The size that a row of `sizes.json` is about."""
    return config.size(row["depth"], row["width_ratio"], row["num_components"])


def latencies(row: dict) -> Iterator[tuple[str, float]]:
    """Every (device, milliseconds of one image) that a row has: of its measurement, and of profiles since."""
    if row.get("latency_ms") is not None:
        yield row.get("device", "an unnamed device"), row["latency_ms"]
    for profile in row.get("profiles", ()):
        yield profile["device"], profile["latency_ms"]


def _timed(rows: Sequence[dict], asked: str, device: str | None) -> list[dict]:
    """The rows with the latency of the device that is meant."""
    here = device_names() if device is None else [device]
    for name in here:
        found = [(row, dict(latencies(row)).get(name)) for row in rows]
        timed = [{**row, "latency_ms": latency, "device": name} for row, latency in found if latency is not None]
        if timed:
            return timed
    others = sorted({name for row in rows for name, _ in latencies(row)})
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
