"""Latencies of a bundle's sizes on one's own device, for `max_latency_ms`.

lingene profile BUNDLE
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging

from ..budget_lingene import device_name, latest_run
from ..bundle_lingene import SIZES_FILE, Bundle
from ..configuration_base_lingene import check_count
from ..families_lingene import layers_of
from ..folders import check_file, check_folder, is_plain, processor_or_none, read_config, write_json
from ..progress import progress_bar, quiet_loading
from .encoders import load_model, load_size
from .grids import grid_sizes
from .metrics import check_device, latency_ms, seen_size, timing, timing_run
from .tables import aligned_table
from .yardsticks import has_classifier


logger = logging.get_logger(__name__)

DTYPES = ("float32", "bfloat16", "float16")


def profile(
    bundle: str | os.PathLike,
    *,
    depths: Sequence[int] = (),
    widths: Sequence[str] = (),
    components: Sequence[int] = (),
    device: str | None = None,
    threads: int | None = None,
    dtype: str = "float32",
    compiled: bool = False,
    batch_size: int = 64,
    out: str | Path | None = None,
) -> list[dict]:
    """Latency of one image and throughput of sizes on this device; adds them to the measured sizes of a folder.

    Args:
        bundle: folder or name on the Hub; a plain ViT or a pruned model, too, which has no grid.
        depths, widths, components: the grid; default the measured sizes, or, without any, those that `sweep` takes.
        device: default the GPU if there is one.
        threads: of the CPU; default as many as torch uses.
        dtype: float32, bfloat16 or float16.
        compiled: by torch.compile.
        batch_size: for the throughput.
        out: JSON file for the rows.

    Returns:
        Rows: the size, device (with dtype and `compiled` where they are not the usual ones), latency_ms (median of one
        image), iqr_ms, timed and timed_with (of this run), images_per_second at batch_size.

    Raises:
        ValueError: sizes that are not legal, all of them; a device or dtype that cannot be used.
    """
    check_file(out, late=True)
    device = check_device(device)
    check_count("batch_size", batch_size)
    if threads is not None:
        check_count("threads", threads)
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    asked = depths or widths or components
    label = ", ".join([device_name(device, threads), *[dtype] * (dtype != "float32"), *["compiled"] * compiled])
    if is_plain(bundle) and not asked:
        return _profiled_alone(bundle, label, (device, threads, dtype, compiled, batch_size), out)
    config = check_folder(bundle) if os.path.isdir(bundle) else read_config(bundle)
    held = Bundle(bundle, config)
    known = held.measured()
    if known and not asked:
        sizes = [config.size(row["depth"], row["width_ratio"], row["num_components"]) for row in known]
    else:
        sizes = grid_sizes(config, depths, widths, components)
    rows, timed, run = [], {}, timing_run(dtype)
    with quiet_loading():
        for size in progress_bar(sizes, desc="profiling", unit="size"):
            shape = (size.depth, size.width_ratio)  # components change nothing of a materialised model's speed
            if shape not in timed:
                model = load_size(bundle, size, held.has_head, dtype=getattr(torch, dtype))
                timed[shape] = _timings(bundle, model, (device, threads, compiled, batch_size), label, run)
            named = {"depth": size.depth, "width_ratio": str(size.width_ratio), "num_components": size.num_components}
            rows.append(named | timed[shape])
    if not known:
        logger.warning(f"{bundle} has no measured sizes to add latencies to: sweep it first.")
    elif os.path.isdir(bundle):
        whole = _profiled(known, rows)
        if whole == known:
            logger.warning(f"None of these sizes was measured in {bundle}: nothing is added; sweep them first.")
        older = sum(one is None for one in latest_run(whole, label)) if whole != known else 0
        if older:
            logger.warning(
                f"{older} of {len(whole)} measured sizes were not timed in this run: a budget in milliseconds chooses "
                "among the others, until one profile times all."
            )
        write_json(Path(bundle) / SIZES_FILE, {"weights_id": held.weights_id, "sizes": whole})
    if out is not None:
        write_json(Path(out), {"weights_id": held.weights_id, "profiles": rows})
    return rows


def _profiled_alone(name: str | os.PathLike, label: str, how: tuple, out: str | Path | None) -> list[dict]:
    """The one row of a model that is no bundle."""
    device, threads, dtype, compiled, batch_size = how
    config = AutoConfig.from_pretrained(name)
    model = load_model(name, config, has_classifier(name, config), dtype=getattr(torch, dtype))
    with quiet_loading():
        timings = _timings(name, model, (device, threads, compiled, batch_size), label, timing_run(dtype))
    depth = layers_of(model.config)
    rows = [{"depth": depth, "width_ratio": "1", "num_components": None, **timings}]
    if out is not None:
        write_json(Path(out), {"model": str(name), "profiles": rows})
    return rows


def _timings(name: str | os.PathLike, model: nn.Module, how: tuple, label: str, run: dict[str, str]) -> dict:
    """Of a model with images as the preprocessing beside it, if there is any, makes them."""
    device, threads, compiled, batch_size = how
    seen = seen_size(model.config, processor_or_none(name))
    model = model.to(device).eval()
    called = torch.compile(model) if compiled else model
    one = latency_ms(called, threads=threads, image_size=seen)
    many = latency_ms(called, threads=threads, batch_size=batch_size, image_size=seen)
    return {
        **timing(one, label, run),
        "images_per_second": round(1000 * batch_size / many["median"], 1),
        "batch_size": batch_size,
    }


def profile_table(rows: Sequence[dict]) -> str:
    """Profiles as a Markdown table, the fastest first; sizes that differ in components alone are as fast."""
    lines = [["depth", "width", "latency", "spread (IQR)", "images/s"]]
    seen = {(row["depth"], row["width_ratio"]): row for row in rows}
    for row in sorted(seen.values(), key=lambda row: row["latency_ms"]):
        times = [f"{row['latency_ms']:.3g} ms", f"{row['iqr_ms']:.2g} ms", f"{row['images_per_second']:.4g}"]
        lines.append([str(row["depth"]), row["width_ratio"], *times])
    return aligned_table(lines)


def _profiled(known: Sequence[dict], profiles: Sequence[dict]) -> list[dict]:
    """Measured sizes with these profiles in place of those of the same device."""
    sizes = ("depth", "width_ratio", "num_components")
    found = {tuple(row[key] for key in sizes): row for row in profiles}
    rows = []
    for row in known:
        new = found.get(tuple(row[key] for key in sizes))
        if new is not None:
            kept = [profile for profile in row.get("profiles", ()) if profile["device"] != new["device"]]
            added = {key: value for key, value in new.items() if key not in sizes}
            row = {**row, "profiles": [*kept, added]}
        rows.append(row)
    return rows
