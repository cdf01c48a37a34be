"""Every size of a bundle, measured: what each is worth and costs, over a grid; `sizes.json`, table, pictures.

    lingene sweep BUNDLE --data DATA                     # the trained sizes; without a classifier by k-NN
    lingene sweep BUNDLE --data FOLDER --metric cosine   # any pictures: agreement with the full size
    torchrun --nproc_per_node 4 -m modeling_lingene.cli sweep BUNDLE --data DATA

Images are decoded once for all sizes; sizes are evaluated in turn, as users load them. For accuracy alone the images
are divided among the processes, for other metrics, which need all of them at once, the sizes are.
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
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from transformers.utils import logging

from ..budget_lingene import TIMING, metric_of
from ..bundle_lingene import SIZES_FILE, Bundle
from ..configuration_base_lingene import BundleConfig, Size, check_count
from ..extras import require
from ..folders import SIZE_PICTURES, check_folder, check_writable, read_config, read_processor, write_json
from ..found import public_name
from ..images.batches import Batches, batches
from ..images.contents import pictures_id
from ..images.data import HELD_OUT, WHOLE, LabelledImages
from ..progress import progress_bar, quiet_loading
from .encoders import load_size, measured_by
from .features import Tokens
from .grids import check_trained, grid_sizes
from .merging import merged, rows_in
from .metrics import (
    Timings,
    accuracy_fields,
    check_device,
    check_pictures,
    count_macs,
    count_parameters,
    count_right,
    height_and_width,
    seen_size,
)
from .plots import plot_heat, plot_sizes
from .yardsticks import Sets, check_reference, check_sets, default_metrics, open_sets, yardstick


logger = logging.get_logger(__name__)

HELD_BYTES = 1 << 32  # of decoded pixels at a time; a larger set is evaluated part by part
PROGRESS_FILE = "sweep.json"


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
    metric: str | None = None,
    train: LabelledImages | None = None,
    reference: str | None = None,
    asked: dict[str, Any] | None = None,
    relabel: bool = False,
) -> list[dict]:
    """Measure a grid of sizes. A sweep that was interrupted goes on when it is called again.

    Args:
        bundle: folder, whose `sizes.json` is written; or name on the Hub, with `out`.
        images: held out; for accuracy with classes that the bundle has, in any order.
        depths, widths, components: the grid; default what was trained, and components doubling up to all.
        out: for `sizes.json`, `sizes.png` and `sizes_heat.png`; default the bundle's folder.
        batch_size: images of one forward pass.
        device: default the GPU if there is one.
        allow_untrained: measure widths that were never trained, too.
        latency: time one image of every depth and width; by one process only.
        metric, train, reference, relabel: as for `evaluate_model`; of several metrics the first decides between sizes.
        asked: what to keep for `asked_of` until the sweep has ended.

    Returns:
        Rows of `sizes.json`, those of this sweep; on processes but the main one nothing.

    Raises:
        ValueError: sizes that are not legal or not trained, all of them; weights that `sizes.json` does not belong to;
            images of other classes; a metric that the bundle or the images do not have.
        ImportError: matplotlib is missing, or scikit-learn for a probe; the message says what to install.
    """
    require("matplotlib")  # not when all sizes are measured
    state = PartialState(cpu=device == "cpu") if "WORLD_SIZE" in os.environ else None
    device = check_device(device) if state is None else str(state.device)
    alone = state is None or state.num_processes == 1
    main = state is None or state.is_main_process
    config, folder = _opened(bundle, out)
    held = Bundle(bundle, config)
    sizes = grid_sizes(config, depths, widths, components)
    if not allow_untrained:
        check_trained(config, sizes)
    check_count("batch_size", batch_size)
    sets = Sets(default_metrics(metric, held.has_head, train), images, train)
    check_sets(sets, bundle, held.has_head)
    check_reference(reference, sets.metrics)
    if "accuracy" in sets.metrics:
        sets = sets.labelled_for(config.id2label, f"`bundle` {bundle}", relabel)
    way = _Way(bundle, held.has_head, sets, read_processor(bundle), batch_size, reference, device)
    _check_unseen(held.measured(), images)
    process = (0, 1) if alone else (state.process_index, state.num_processes)
    about = way.about(held.weights_id, process[1])
    known = _progress(folder / PROGRESS_FILE, about, way.valid, main)

    def keep(found: dict) -> None:
        if main:
            write_json(folder / PROGRESS_FILE, {"about": about, "found": found} | ({"asked": asked} if asked else {}))

    if asked:
        keep(known)
    found = way.measured(
        sizes,
        latency=latency and alone,
        process=process,
        known=known if alone else broadcast_object_list([known])[0],
        keep=keep,
        progress=main,
    )
    if not main:
        return []
    rows = _rows(config, sizes, found, images, held.has_head, way.image_size, about["pictures"])
    before = held.measured() if folder == Path(bundle) else rows_in(folder, held.weights_id)
    whole = merged(before, rows)
    write_json(folder / SIZES_FILE, {"weights_id": held.weights_id, "sizes": whole})
    (folder / PROGRESS_FILE).unlink()
    title = f"{public_name(bundle)} on {images.name} ({images.split})"
    for plot, name in zip((plot_sizes, plot_heat), SIZE_PICTURES):
        plot(whole, folder / name, title)  # as the file and the card that shows them: one set, one metric
    return rows


def sweep_data(
    bundle: str | os.PathLike, data: str, split: str, *, metric: str | None = None, out: Path | None = None, **options
) -> list[dict]:
    """`sweep` on the set that `data` names, by the metric that its labels and the bundle allow."""
    config, _ = _opened(bundle, out)
    sets = open_sets(data, split, metric, Bundle(bundle, config).has_head)
    where = os.path.abspath(bundle) if os.path.isdir(bundle) else str(bundle)
    asked = {"bundle": where, "data": data, "split": split, "metric": metric, **options}
    return sweep(bundle, sets.images, metric=",".join(sets.metrics), train=sets.train, out=out, asked=asked, **options)


def asked_of(folder: Path) -> dict[str, Any]:
    """What the sweep that was interrupted in a folder was asked for, as keywords of `sweep_data`.

    Raises:
        ValueError: there is none.
    """
    try:
        asked = dict(json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))["asked"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"`resume` {folder} holds no sweep that was interrupted ({PROGRESS_FILE}); name the bundle and --data."
        ) from None
    return {**asked, "out": folder}


class _Way:
    """How a sweep measures: accuracy alone part by part of the images, anything else size by size on all of them.

    Args:
        as for `yardstick`, which is made for the second way.
    """

    def __init__(
        self,
        bundle: str | os.PathLike,
        head: bool,
        sets: Sets,
        processor: Any,
        batch_size: int,
        reference: str | None,
        device: str,
        teacher: Tokens | None = None,
    ):
        self.bundle, self.head, self.sets, self.device, self.stick = bundle, head, sets, device, None
        config = read_config(bundle)
        check_pictures(config, processor, f"`bundle` {bundle}: its preprocessing")
        self.image_size = seen_size(config, processor)
        if sets.metrics == ("accuracy",):
            if reference is not None:
                raise ValueError("`reference` is whom the cosine compares with; `metric` is accuracy.")
            self.batches = batches(sets.images, processor, batch_size)
        else:
            asking = (sets, processor, batch_size, reference, device, config, teacher)
            self.stick = yardstick(bundle, config.hidden_size, *asking)

    def measured(self, sizes: Sequence[Size], **options) -> dict[str, dict]:
        """What is found of every size, by its name."""
        options["image_size"] = self.image_size
        if self.stick is None:
            return measured(self.bundle, self.batches, sizes, device=self.device, **options)
        return measured_by(self.stick, self.bundle, sizes, head=self.head, device=self.device, **options)

    def about(self, weights_id: str, processes: int = 1) -> dict:
        """What must be the same for a sweep to go on."""
        about = what_is_swept(weights_id, self.sets.images, processes)
        if self.stick is None:
            return about
        train, other = self.sets.train, self.stick.reference
        about |= {"metrics": list(self.sets.metrics), "train": None, "reference": None}
        if train is not None:
            about["train"] = what_is_swept(weights_id, train)
        if other is not None:
            about["reference"] = [other.name, other.id]
        return about

    def valid(self, one: dict) -> bool:
        """Whether what an earlier sweep says of a size can be gone on with."""
        if self.stick is None:
            return (
                all(isinstance(one[key], int) for key in ("right", "images", "parts", "params")) and one["parts"] > 0
            )
        return isinstance(one["params"], int) and metric_of([one["measures"]]) == self.sets.metrics[0]


def measure_sizes(
    bundle: str | os.PathLike,
    held: Batches,
    sizes: Iterable[tuple[int, str | Fraction | int, int]],
    threads: int | None = None,
    device: str | None = None,
    progress: bool = True,
    *,
    metric: str | None = None,
    train: LabelledImages | None = None,
    reference: str | None = None,
    teacher: Tokens | None = None,
) -> list[dict]:
    """Materialise sizes of a bundle as a user would, through `from_pretrained`, and measure each.

    Args:
        bundle: folder or name.
        held: batches of held-out images.
        sizes: (depth, width ratio, components).
        threads: for the latency on a CPU.
        device: default the CPU.
        metric, train, reference: as for `evaluate_model`.
        teacher: as for `yardstick`.

    Returns:
        Rows of `sizes.json`, with latency.
    """
    config = read_config(bundle)
    sizes, head = [config.size(*size) for size in sizes], Bundle(bundle, config).has_head
    sets = Sets(default_metrics(metric, head, train), held.images, train)
    check_sets(sets, bundle, head)
    way = _Way(bundle, head, sets, held.processor, held.batch_size, reference, device or "cpu", teacher)
    found = way.measured(sizes, threads=threads, progress=progress)
    return _rows(config, sizes, found, held.images, head, way.image_size, pictures_id(held.images))


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
    image_size: tuple[int, int] | None = None,
) -> dict[str, dict]:
    """Right answers, images, parameters and latency of every size, by its name.

    Args:
        held: batches of held-out images.
        process: which of how many; each takes its share of the images, and all call this alike.
        known: what an earlier call found before it was interrupted.
        keep: called with everything found so far after every size.
        image_size: of the image that is timed, as for `latency_ms`.
    """
    found = {name: dict(one) for name, one in (known or {}).items()}
    timings = Timings(found, sizes, device, threads, image_size)
    config = read_config(bundle)
    window = max(1, HELD_BYTES // (4 * config.num_channels * prod(image_size or height_and_width(config))))
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
                model = None
                if not counted or not (timed or size in timings):
                    model = load_size(bundle, size, head=True).to(device)
                if not counted:
                    if part is None:  # decoded once for all sizes
                        part = [{key: value.to(device) for key, value in b.items()} for b in held.some(places)]
                    counts = count_right(model, part)
                    right, images = (counts if process[1] == 1 else reduce(counts, reduction="sum")).tolist()
                    one["right"], one["images"] = one["right"] + right, one["images"] + images
                    one["parts"], one["params"] = number + 1, count_parameters(model)
                if not timed:
                    one |= timings.of(size, model)
                if not (counted and timed):
                    keep(found)
                bar.update(len(places))
    return found


def _rows(
    config: BundleConfig,
    sizes: Sequence[Size],
    found: dict,
    images: LabelledImages,
    head: bool,
    image_size: tuple[int, int],
    pictures: str,
) -> list[dict]:
    @functools.cache
    def macs(depth: int, width: Fraction) -> int:  # components do not change them
        return count_macs(config.stock_config(config.size(depth, width)), head, image_size)

    rows = []
    for size in sizes:
        one = found[str(size)]
        row = {
            "depth": size.depth,
            "width_ratio": str(size.width_ratio),
            "num_components": size.num_components,
            "params": one["params"],
            "stored_params": config.stored_params(size, head),
            "macs": macs(size.depth, size.width_ratio),
            **(one.get("measures") or accuracy_fields(one["right"] / one["images"], one["images"])),
            "split": images.split,
            "dataset": images.name,
            "pictures_id": pictures,
        }
        rows.append(row | {key: one[key] for key in TIMING if key in one})
    return rows


def _check_unseen(rows: Sequence[dict], images: LabelledImages) -> None:
    """Refuse a set as a whole of which, by the sizes that were measured, the bundle was trained on all but a part."""
    if images.split == WHOLE and any((row["dataset"], row["split"]) == (images.name, HELD_OUT) for row in rows):
        raise ValueError(
            f"`split`: the sizes of this bundle were measured on a part of {images.name}, for it was trained on the "
            f"others; give `split` {HELD_OUT}."
        )


def _opened(bundle: str | os.PathLike, out: str | Path | None) -> tuple[BundleConfig, Path]:
    """A bundle's configuration, after a check of its weights where they lie here, and where results go."""
    if out is not None:
        check_writable(out)
    if os.path.isdir(bundle):
        return check_folder(bundle), Path(out or bundle)
    config = read_config(bundle)
    if out is None:
        raise ValueError(f"`out` says where results go: {bundle} is a name on the Hub, not a folder.")
    return config, Path(out)


def what_is_swept(weights_id: str, images: LabelledImages, processes: int = 1) -> dict:
    """What must be the same for a sweep to go on: weights, images - told by their labels and by some of the pictures -
    and how they are divided.
    """
    labelled = json.dumps([images.name, images.split, images.class_names, images.labels])
    told = {"images": hashlib.sha256(labelled.encode()).hexdigest(), "pictures": pictures_id(images)}
    return {"weights_id": weights_id, **told, "processes": processes, "held": HELD_BYTES}


def _progress(path: Path, about: dict, valid: Callable[[dict], bool], main: bool) -> dict[str, dict]:
    """What an interrupted sweep of the same weights and images by the same metrics, divided alike, has found.

    Latencies in it keep their own moment: they are of an earlier run.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        found = stored["found"] if stored["about"] == about else {}
        if not all(valid(one) for one in found.values()):
            return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if found and main:
        logger.warning(f"Going on with the sweep in {path}: {len(found)} sizes were begun.")
    return found
