"""What a size costs and what it is worth: parameters, multiply-accumulates, accuracy, latency; a row of `sizes.json`.

Everything is measured on the model that a user gets, the stock model of its family with or without a classifier;
nothing is typed in.

Notation: b batch, h height and w width in pixels, t tokens, d hidden size, m MLP width.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForImageClassification, PretrainedConfig

from ..budget_lingene import TIMING, device_name
from ..configuration_base_lingene import BUNDLE_TYPES, Size, sides
from ..families_lingene import FAMILIES, family_row, has_stages, layers_of
from ..images.batches import check_patches, made_size, size_field
from ..progress import progress_bar
from .features import no_pooler


TIMED_SECONDS = 0.5  # how long a model is timed, unless asked otherwise
TIMED_PASSES = 10  # at least


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, frozen ones included, shared ones once, buffers not."""
    return sum(parameter.numel() for parameter in model.parameters())


def seen_size(config: PretrainedConfig, processor: Any = None) -> tuple[int, int]:
    """(height, width) in pixels of the images that a model gets.

    Args:
        config: of the model, or of a bundle. It says how large images are, but for a family that takes any size:
        processor: the model's own preprocessing, which decides there; None where there is none.

    Raises:
        ValueError: what it makes there is smaller than a patch.
    """
    family = family_row(config) or FAMILIES["vit"]
    if not family.interpolates or processor is None:
        return height_and_width(config)
    check_pictures(config, processor, "The preprocessing of the model")
    return made_size(processor.to_dict()) or height_and_width(config)


def check_pictures(config: PretrainedConfig, processor: Any, whose: str) -> None:
    """Refuse a model's own preprocessing where its pictures are smaller than a patch, of a model that has patches.

    Args:
        config: of the model, or of a bundle.
        processor: the preprocessing; None passes.
        whose: as for `check_patches`.

    Raises:
        ValueError: they are.
    """
    patch = getattr(config, "patch_size", None)
    if patch is not None and processor is not None:
        check_patches(processor.to_dict(), sides(patch), whose)


def patch_count(config: PretrainedConfig, processor: Any) -> int | None:
    """How many patches an encoder gives of an image; None where its configuration and preprocessing do not say: of
    networks of stages, of families that are not ours, of pictures of various shapes.

    Args:
        config: of the model, or of a bundle.
        processor: the preprocessing.
    """
    family, said = family_row(config), processor.to_dict()
    size = made_size(said)
    if family is None or family.stages or size is None or "shortest_edge" in said[size_field(said)]:
        return None
    return prod(pixels // patch for pixels, patch in zip(size, sides(config.patch_size)))


def count_macs(config: PretrainedConfig, head: bool = True, image_size: tuple[int, int] | None = None) -> int:
    """The multiply-accumulates of one image through the stock model of this config.

    Counts every matrix product, those of attention, the patch embedding and the head included, with torch's FLOP
    counter on a model without memory. With p x p patches of C channels, P of them, t = P + 1 tokens, l layers:
    P C p^2 d + l (4 t d^2 + 2 t^2 d + 2 t d m) + d classes. ViT-Base/16 at 224 pixels: 17.56 G. Register tokens count
    among the t, a head that reads the mean of the patches has 2 d classes, and gated MLPs have 3 t d m.

    Args:
        config: of the model; its attention implementation does not matter.
        head: with the classifier; without it also without a pooler.
        image_size: (height, width) of the image, see `seen_size`; None: what the config says.

    Returns:
        MACs of one image: floating point operations / 2.
    """
    return _macs(type(config), config.to_json_string(), head, image_size or height_and_width(config))


@lru_cache(maxsize=1024)
def _macs(config_class: type[PretrainedConfig], fields: str, head: bool, image_size: tuple[int, int]) -> int:
    """Counted once for a shape: a sweep, its table, its card and the summary before a run all ask."""
    # Eager attention is plain matrix products, which the counter knows on every device and in every version.
    config = config_class.from_dict(json.loads(fields))
    with torch.device("meta"):
        auto_class, without = (AutoModelForImageClassification, {}) if head else (AutoModel, no_pooler(config))
        model = auto_class.from_config(config, attn_implementation="eager", **without).eval()
        pixel_values = torch.empty(1, config.num_channels, *image_size, dtype=model.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixel_values)
    macs, odd = divmod(int(counter.get_total_flops()), 2)
    assert odd == 0, "matrix products have an even number of operations"
    return macs


def accuracy(
    model: nn.Module, batches: Iterable[dict[str, torch.Tensor]], device: str | None = None, progress: bool = False
) -> tuple[float, int]:
    """Top-1 accuracy, counted in integers.

    Args:
        model: gives `.logits` (b, classes) for `pixel_values`; in its own dtype, bfloat16 too. Modules are put into
            evaluation mode and afterwards back into the mode each was in.
        batches: dicts with pixel_values (b, 3, h, w) and labels (b,).
        device: where to run; the model is moved there and stays there. None: where the model is.
        progress: whether to show a bar; ask for it on the main process only.

    Returns:
        The fraction of right answers, in 0..1, and the number of images.

    Raises:
        ValueError: no images.
    """
    if device is not None:
        model.to(device)
    right, total = count_right(model, batches, progress).tolist()
    if total == 0:
        raise ValueError("`batches` must hold at least one image; got none.")
    return right / total, total


def count_right(model: nn.Module, batches: Iterable[dict[str, torch.Tensor]], progress: bool = False) -> torch.Tensor:
    """The number of right answers and of images, (2,) int64, where the model is; see `accuracy`."""
    weight = _floating_parameter(model)
    counts = torch.zeros(2, dtype=torch.int64, device=weight.device)
    with _evaluating(model), torch.inference_mode():
        for batch in progress_bar(batches, desc="accuracy", unit="batch", shown=progress):
            logits = model(pixel_values=batch["pixel_values"].to(weight.device, weight.dtype)).logits
            # Summed on the device: reading the number after every batch would make the host wait for it.
            counts[0] += (logits.argmax(-1) == batch["labels"].to(weight.device)).sum()
            counts[1] += len(batch["labels"])
    return counts


def latency_ms(
    model: nn.Module,
    pixel_values: torch.Tensor | None = None,
    min_run_time: float | None = None,
    threads: int | None = None,
    batch_size: int = 1,
    image_size: tuple[int, int] | None = None,
) -> dict[str, float | int]:
    """The time of one forward pass, where the model is.

    Measured with `torch.utils.benchmark`, which synchronises the GPU around every measurement.

    Args:
        model: as for `accuracy`.
        pixel_values: (b, C, h, w); None: `batch_size` images of `image_size`, or of the size that the model's config
            says.
        min_run_time: seconds to measure for, after the warm-up, default `TIMED_SECONDS`; longer where
            `TIMED_PASSES` passes take longer.
        threads: on the CPU; None: as many as torch uses.

    Returns:
        `median` and `iqr` (interquartile range), milliseconds per pass; `batch_size`; `threads`.
    """
    weight = _floating_parameter(model)
    if pixel_values is None:
        pixel_values = torch.zeros(
            batch_size, model.config.num_channels, *image_size or height_and_width(model.config)
        )
    threads = threads or torch.get_num_threads()
    timer = Timer(
        "model(pixel_values=pixel_values)",
        globals={"model": model, "pixel_values": pixel_values.to(weight.device, weight.dtype)},
        num_threads=threads,
    )
    with _evaluating(model), torch.inference_mode():
        warm_up = timer.timeit(3)
        seconds = TIMED_SECONDS if min_run_time is None else min_run_time
        measured = timer.blocked_autorange(min_run_time=max(seconds, TIMED_PASSES * warm_up.median))
    return {
        "median": 1000 * measured.median,
        "iqr": 1000 * measured.iqr,
        "batch_size": len(pixel_values),
        "threads": threads,
    }


def timing_run(dtype: str = "float32") -> dict[str, str]:
    """What tells the timings of one run from those of another: when it begins, in what, beside what other work."""
    load = f", load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    return {
        "timed": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "timed_with": f"torch {torch.__version__}, {dtype}{load}",
    }


def timing(found: dict, device: str, run: dict[str, str]) -> dict[str, float | str]:
    """One timing as the fields of a row.

    Args:
        found: as `latency_ms` gives it.
        device: by its name.
        run: of the `timing_run` that it is one of.
    """
    return {"latency_ms": round(found["median"], 4), "iqr_ms": round(found["iqr"], 4), "device": device, **run}


class Timings:
    """Latencies of the sizes of a bundle, in one run of measurements. A shape is timed once: sizes that differ in
    components alone are the same network, and noise between them would choose one.

    Args:
        found: what is known of sizes already, by their names; timings of this device are gone on with.
        sizes: of them.
        device, threads, image_size: as for `latency_ms`.
    """

    def __init__(
        self,
        found: dict[str, dict],
        sizes: Sequence[Size],
        device: str,
        threads: int | None,
        image_size: tuple[int, int] | None,
    ):
        self.run, self.device = timing_run(), device_name(device, threads)
        self.how = {"threads": threads, "image_size": image_size}
        self.of_shape = {}
        for size in sizes:
            one = found.get(str(size), {})
            if one.get("device") == self.device:
                self.of_shape[size.depth, size.width_ratio] = {key: one[key] for key in TIMING if key in one}

    def __contains__(self, size: Size) -> bool:
        return (size.depth, size.width_ratio) in self.of_shape

    def of(self, size: Size, model: nn.Module | None = None) -> dict[str, float | str]:
        """The fields of `timing`; `model`, where the device is, is timed if no size of its shape was."""
        if size not in self:
            found = timing(latency_ms(model, **self.how), self.device, self.run)
            self.of_shape[size.depth, size.width_ratio] = found
        return self.of_shape[size.depth, size.width_ratio]


def share_error(share: float, images: int) -> float:
    """The standard error of a share of right answers, sqrt(p (1 - p) / n), to 6 digits."""
    return round((max(0.0, share * (1 - share)) / images) ** 0.5, 6)


def accuracy_fields(share: float, images: int) -> dict:
    """An accuracy as the fields of a row, to 6 digits, with the number of pictures and its standard error."""
    errors = {"accuracy": share_error(share, images)}
    return {"accuracy": round(share, 6), "images": images, "standard_errors": errors}


def measure(
    model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    depth: int,
    width_ratio: str | float | Fraction,
    num_components: int | None,
    split: str,
    dataset: str,
    stored_params: int,
    latency: bool = False,
    threads: int | None = None,
    device: str | None = None,
    progress: bool = False,
    head: bool = True,
    measures: dict[str, float | str] | None = None,
    image_size: tuple[int, int] | None = None,
) -> dict[str, int | float | str]:
    """One row of `sizes.json`.

    Args:
        model: the materialised size, a stock classifier or encoder; or one that was pruned.
        batches: as for `accuracy`.
        depth, width_ratio, num_components: the size that was asked for.
        split, dataset: what `batches` holds.
        stored_params: `config.stored_params(size)` of the bundle: what is downloaded for this size.
        latency: whether to time one image, which adds the fields of `timing`; `threads` as for `latency_ms`.
        device, progress: as for `accuracy`.
        head: whether it has a classifier.
        measures: fields that were measured in place of the accuracy.
        image_size: (height, width) at which MACs are counted and the image is timed, as for `count_macs`.

    Returns:
        depth, width_ratio (a fraction string), num_components, params and macs of the ViT (both with its head, one
        image), stored_params, accuracy (0..1, 6 digits) or the measures, images, standard_errors, split, dataset.

    Raises:
        ValueError: the model is not a stock ViT, or one that was pruned, of that depth, or `batches` is empty.
    """
    config = model.config
    if config.model_type in BUNDLE_TYPES or (not has_stages(config) and config.num_hidden_layers != depth):
        raise ValueError(
            f"`model` must be a stock ViT of depth {depth}; got a {config.model_type} model of depth "
            f"{layers_of(config)}. Materialise the size first."
        )
    row = {
        "depth": depth,
        "width_ratio": str(Fraction(width_ratio).limit_denominator(100)),
        "num_components": num_components,
        "params": count_parameters(model),
        "stored_params": stored_params,
        "macs": count_macs(config, head, image_size),
        **(measures or accuracy_fields(*accuracy(model, batches, device, progress))),
        "split": split,
        "dataset": dataset,
    }
    if latency:
        run, where = timing_run(), device_name(_floating_parameter(model).device, threads)
        row |= timing(latency_ms(model, threads=threads, image_size=image_size), where, run)
    return row


def check_device(device: str | None) -> str:
    """The device asked for, by default the GPU if there is one.

    Raises:
        ValueError: no such kind of device, or none here.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` {device} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def height_and_width(config: PretrainedConfig) -> tuple[int, int]:
    """Of its images, in pixels."""
    size = config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _floating_parameter(model: nn.Module) -> nn.Parameter:
    """A parameter that says where the model is and what it computes in (quantised models also have integer ones)."""
    return next(parameter for parameter in model.parameters() if parameter.is_floating_point())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode that every single module was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
