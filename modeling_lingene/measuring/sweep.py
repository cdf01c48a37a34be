"""Every size of a bundle, measured: accuracy over a grid, latency on one's own device; `sizes.json`, table, pictures.

    lingene sweep BUNDLE --data DATA                     # the trained sizes
    torchrun --nproc_per_node 4 -m modeling_lingene.cli sweep BUNDLE --data DATA
    lingene profile BUNDLE                               # latencies of this device, for `max_latency_ms`

Images are decoded once for all sizes, divided among the processes; sizes are evaluated in turn, as users load them.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from math import prod
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.utils import logging

from ..budget_lingene import device_name
from ..bundle_lingene import SIZES_FILE, Bundle
from ..configuration_lingene import LinGeneConfig, Size, check_count
from ..folders import SIZE_PICTURES, check_folder, is_plain, read_config, read_processor, write_json
from ..images.data import Batches, LabelledImages, batches, check_labels
from ..progress import progress_bar, quiet_loading
from .grids import check_trained, grid_sizes
from .metrics import (
    check_device,
    count_macs,
    count_parameters,
    count_right,
    height_and_width,
    latency_ms,
)
from .plots import plot_heat, plot_sizes
from .tables import aligned_table


logger = logging.get_logger(__name__)

HELD_BYTES = 1 << 32  # of decoded pixels at a time; a larger set is evaluated part by part
PROGRESS_FILE = "sweep.json"
DTYPES = ("float32", "bfloat16", "float16")


def sweep(
    bundle: str | os.PathLike,
    images: LabelledImages,
    *,
    depths: Sequence[int] = (),
    widths: Sequence[str] = (),
    components: Sequence[int] = (),
    out: str | Path | None = None,
    batch_size: int = 64,
    device: str | None = None,
    allow_untrained: bool = False,
    latency: bool = True,
) -> list[dict]:
    """Measure a grid of sizes. A sweep that was interrupted goes on when it is called again.

    Args:
        bundle: folder, whose `sizes.json` is written; or name on the Hub, with `out`.
        images: held out, with labels that the bundle's classes cover.
        depths, widths, components: the grid; default what was trained, and components doubling up to all.
        out: for `sizes.json`, `sizes.png` and `sizes_heat.png`; default the bundle's folder.
        batch_size: images of one forward pass.
        device: default the GPU if there is one.
        allow_untrained: measure widths that were never trained, too.
        latency: time one image of every size; by one process only.

    Returns:
        Rows of `sizes.json`, those of this sweep; on processes but the main one nothing.

    Raises:
        ValueError: sizes that are not legal or not trained, all of them; weights that `sizes.json` does not belong to;
            labels outside of the classes.
    """
    state = PartialState(cpu=device == "cpu") if "WORLD_SIZE" in os.environ else None
    device = check_device(device) if state is None else str(state.device)
    alone = state is None or state.num_processes == 1
    main = state is None or state.is_main_process
    config, folder = _opened(bundle, out)
    held = Bundle(bundle, config)
    sizes = grid_sizes(config, depths, widths, components)
    if not allow_untrained:
        check_trained(config, sizes)
    if not held.has_head:
        raise ValueError(f"`bundle` {bundle} has no classifier, and so no accuracy.")
    check_count("batch_size", batch_size)
    check_labels(images, config.num_labels)
    if len(images) == 0:
        raise ValueError("`data` must hold at least one image; got none.")
    processor = read_processor(bundle)
    process = (0, 1) if alone else (state.process_index, state.num_processes)
    about = what_is_swept(held.weights_id, images, process[1])
    known = _progress(folder / PROGRESS_FILE, about, main)

    def keep(found: dict) -> None:
        if main:
            write_json(folder / PROGRESS_FILE, {"about": about, "found": found})

    found = measured(
        bundle,
        batches(images, processor, batch_size),
        sizes,
        latency=latency and alone,
        device=device,
        process=process,
        known=known if alone else broadcast_object_list([known])[0],
        keep=keep,
        progress=main,
    )
    if not main:
        return []
    rows = _rows(config, sizes, found, images)
    whole = _merged(held.measured() if folder == Path(bundle) else _rows_in(folder, held.weights_id), rows)
    write_json(folder / SIZES_FILE, {"weights_id": held.weights_id, "sizes": whole})
    (folder / PROGRESS_FILE).unlink()
    title = f"{Path(bundle).resolve().name if os.path.isdir(bundle) else bundle} on {images.name} ({images.split})"
    for plot, name in zip((plot_sizes, plot_heat), SIZE_PICTURES):
        plot(rows, folder / name, title)
    return rows


def measure_sizes(
    bundle: str | os.PathLike,
    held: Batches,
    sizes: Iterable[tuple[int, str | Fraction | int, int]],
    threads: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> list[dict]:
    """Materialise sizes of a bundle as a user would, through `from_pretrained`, and measure each.

    Args:
        bundle: folder or name.
        held: batches of held-out images.
        sizes: (depth, width ratio, components).
        threads: for the latency on a CPU.
        device: default the CPU.

    Returns:
        Rows of `sizes.json`, with latency.
    """
    config = LinGeneConfig.from_pretrained(bundle)
    sizes = [config.size(*size) for size in sizes]
    found = measured(bundle, held, sizes, device=device or "cpu", threads=threads, progress=progress)
    return _rows(config, sizes, found, held.images)


def measured(
    bundle: str | os.PathLike,
    held: Batches,
    sizes: Sequence[Size],
    *,
    latency: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    process: tuple[int, int] = (0, 1),
    known: dict[str, dict] | None = None,
    keep: Callable[[dict], None] = lambda found: None,
    progress: bool = True,
) -> dict[str, dict]:
    """Right answers, images, parameters and latency of every size, by its name.

    Args:
        held: batches of held-out images.
        process: which of how many; each takes its share of the images, and all call this alike.
        known: what an earlier call found before it was interrupted.
        keep: called with everything found so far after every size.
    """
    found = {name: dict(one) for name, one in (known or {}).items()}
    config = LinGeneConfig.from_pretrained(bundle)
    window = max(1, HELD_BYTES // (4 * config.num_channels * prod(height_and_width(config))))
    mine = range(process[0], len(held.images), process[1])
    bar = progress_bar(total=len(sizes) * len(mine), desc="measuring", unit="image", shown=progress)
    with quiet_loading(), bar:
        # As many parts on every process: they meet after each.
        for number, start in enumerate(range(0, math.ceil(len(held.images) / process[1]), window)):
            places, part = mine[start : start + window], None
            for size in sizes:
                one = found.setdefault(str(size), {"right": 0, "images": 0, "parts": 0})
                bar.set_postfix_str(str(size), refresh=False)
                counted, timed = one["parts"] > number, not latency or "latency_ms" in one
                if not (counted and timed):
                    asked = {"depth": size.depth, "width_ratio": str(size.width_ratio)}
                    asked |= {"num_components": size.num_components, "allow_untrained": True}
                    model = AutoModelForImageClassification.from_pretrained(bundle, **asked).to(device)
                if not counted:
                    if part is None:  # decoded once for all sizes
                        part = [{key: value.to(device) for key, value in b.items()} for b in held.some(places)]
                    counts = count_right(model, part)
                    right, images = (counts if process[1] == 1 else reduce(counts, reduction="sum")).tolist()
                    one["right"], one["images"] = one["right"] + right, one["images"] + images
                    one["parts"], one["params"] = number + 1, count_parameters(model)
                if not timed:
                    one["latency_ms"] = round(latency_ms(model, threads=threads)["median"], 4)
                    one["device"] = device_name(device, threads)
                if not (counted and timed):
                    keep(found)
                bar.update(len(places))
    return found


def _rows(config: LinGeneConfig, sizes: Sequence[Size], found: dict, images: LabelledImages) -> list[dict]:
    @functools.cache
    def macs(depth: int, width: Fraction) -> int:  # components do not change them
        return count_macs(config.vit_config(config.size(depth, width)))

    rows = []
    for size in sizes:
        one = found[str(size)]
        row = {
            "depth": size.depth,
            "width_ratio": str(size.width_ratio),
            "num_components": size.num_components,
            "params": one["params"],
            "stored_params": config.stored_params(size),
            "macs": macs(size.depth, size.width_ratio),
            "accuracy": round(one["right"] / one["images"], 6),
            "split": images.split,
            "dataset": images.name,
        }
        rows.append(row | {key: one[key] for key in ("latency_ms", "device") if key in one})
    return rows


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
        image), iqr_ms, images_per_second at batch_size.

    Raises:
        ValueError: sizes that are not legal, all of them; a device or dtype that cannot be used.
    """
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
    rows, timed = [], {}
    with quiet_loading():
        for size in progress_bar(sizes, desc="profiling", unit="size"):
            shape = (size.depth, size.width_ratio)  # components change nothing of a materialised model's speed
            if shape not in timed:
                timed[shape] = _timings(bundle, size, device, threads, dtype, compiled, batch_size)
            named = {"depth": size.depth, "width_ratio": str(size.width_ratio), "num_components": size.num_components}
            rows.append(named | {"device": label} | timed[shape])
    if not known:
        logger.warning(f"{bundle} has no measured sizes to add latencies to, for `max_latency_ms`: sweep it first.")
    elif os.path.isdir(bundle):
        whole = _profiled(known, rows)
        if whole == known:
            logger.warning(f"None of these sizes was measured in {bundle}: nothing is added; sweep them first.")
        write_json(Path(bundle) / SIZES_FILE, {"weights_id": held.weights_id, "sizes": whole})
    if out is not None:
        write_json(Path(out), {"weights_id": held.weights_id, "profiles": rows})
    return rows


def _profiled_alone(model: str | os.PathLike, label: str, how: tuple, out: str | Path | None) -> list[dict]:
    """The one row of a model that is no bundle."""
    with quiet_loading():
        depth, timings = AutoConfig.from_pretrained(model).num_hidden_layers, _timings(model, None, *how)
    rows = [{"depth": depth, "width_ratio": "1", "num_components": None, "device": label, **timings}]
    if out is not None:
        write_json(Path(out), {"model": str(model), "profiles": rows})
    return rows


def _timings(
    bundle: str | os.PathLike,
    size: Size | None,
    device: str,
    threads: int | None,
    dtype: str,
    compiled: bool,
    batch: int,
) -> dict[str, float]:
    asked = {}
    if size is not None:
        asked = {"depth": size.depth, "width_ratio": str(size.width_ratio), "num_components": size.num_components}
        asked["allow_untrained"] = True
    model = AutoModelForImageClassification.from_pretrained(bundle, **asked, dtype=getattr(torch, dtype))
    model = model.to(device).eval()
    called = torch.compile(model) if compiled else model
    one = latency_ms(called, threads=threads)
    many = latency_ms(called, threads=threads, batch_size=batch)
    return {
        "latency_ms": round(one["median"], 4),
        "iqr_ms": round(one["iqr"], 4),
        "images_per_second": round(1000 * batch / many["median"], 1),
        "batch_size": batch,
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


def _opened(bundle: str | os.PathLike, out: str | Path | None) -> tuple[LinGeneConfig, Path]:
    """A bundle's configuration, after a check of its weights where they lie here, and where results go."""
    if os.path.isdir(bundle):
        return check_folder(bundle), Path(out or bundle)
    config = read_config(bundle)
    if out is None:
        raise ValueError(f"`out` says where results go: {bundle} is a name on the Hub, not a folder.")
    return config, Path(out)


def what_is_swept(weights_id: str, images: LabelledImages, processes: int = 1) -> dict:
    """What must be the same for a sweep to go on: weights, images - told by their labels and by four of the pictures -
    and how they are divided.
    """
    told = hashlib.sha256(json.dumps([images.name, images.split, images.class_names, images.labels]).encode())
    for index in sorted({0, len(images) // 3, len(images) // 2, len(images) - 1}):
        picture, _ = images.decoded(index)
        told.update(picture.tobytes() if picture is not None else b"unreadable")
    return {"weights_id": weights_id, "images": told.hexdigest(), "processes": processes, "held": HELD_BYTES}


def _rows_in(folder: Path, weights_id: str) -> list[dict]:
    """The rows that an earlier sweep of the same weights has left in a folder of results."""
    try:
        stored = json.loads((folder / SIZES_FILE).read_text(encoding="utf-8"))
        return stored["sizes"] if stored["weights_id"] == weights_id else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _progress(path: Path, about: dict, main: bool) -> dict[str, dict]:
    """What an interrupted sweep of the same weights and images, divided alike, has found."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        found = stored["found"] if stored["about"] == about else {}
        for one in found.values():
            if not all(isinstance(one[key], int) for key in ("right", "images", "parts")) or one["parts"] < 1:
                return {}
            one["params"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if found and main:
        logger.warning(f"Going on with the sweep in {path}: {len(found)} sizes were begun.")
    return found


def _merged(before: Sequence[dict], rows: Sequence[dict]) -> list[dict]:
    """Rows of other sizes on the same images stay, and profiles; rows on other images would not compare."""
    sizes = ("depth", "width_ratio", "num_components")
    old = {tuple(row[key] for key in sizes): row for row in before}
    same = {name: row for name, row in old.items() if all(row.get(k) == rows[0][k] for k in ("dataset", "split"))}
    if len(same) < len(old):
        logger.warning(f"{len(old) - len(same)} sizes that were measured on other images are replaced.")
    for row in rows:
        name = tuple(row[key] for key in sizes)
        # Those of this device are older than the latency in the row.
        profiles = [one for one in old.get(name, {}).get("profiles", ()) if one["device"] != row.get("device")]
        same[name] = {**row, "profiles": profiles} if profiles else row
    return list(same.values())
