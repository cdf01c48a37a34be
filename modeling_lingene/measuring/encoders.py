"""Sizes of a bundle measured by a yardstick, one after the other; an interruption loses the one that it falls into."""

import math
import os
from collections.abc import Callable, Sequence

from accelerate.utils import gather_object
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification, PretrainedConfig

from ..configuration_base_lingene import Size
from ..families_lingene import tower_config
from ..progress import progress_bar, quiet_loading
from .features import check_trained, load_encoder
from .metrics import Timings, count_parameters
from .yardsticks import Yardstick


def load_size(bundle: str | os.PathLike, size: Size, head: bool, **keywords) -> nn.Module:
    """One size as a user loads it: a stock classifier, or, of a bundle without one, a stock encoder."""
    asked = {"depth": size.depth, "width_ratio": str(size.width_ratio), "num_components": size.num_components}
    auto_class = AutoModelForImageClassification if head else AutoModel
    return auto_class.from_pretrained(bundle, **asked, allow_untrained=True, **keywords)


def load_model(name: str | os.PathLike, config: PretrainedConfig, head: bool, **asked) -> nn.Module:
    """What a folder or name holds, whole and in evaluation mode: a classifier, or an encoder where it has no head.

    Args:
        config: of it.
        head: whether it has a classifier, as `has_classifier` says.
        asked: `from_pretrained`'s keywords.

    Raises:
        ValueError: it lacks a tensor, or cannot be loaded as an encoder.
    """
    if not head:
        return load_encoder(name, tower_config(config), **asked)
    with quiet_loading():
        model, told = AutoModelForImageClassification.from_pretrained(name, output_loading_info=True, **asked)
    check_trained(str(name), told)
    return model.eval()


def measured_by(
    stick: Yardstick,
    bundle: str | os.PathLike,
    sizes: Sequence[Size],
    *,
    head: bool,
    latency: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    process: tuple[int, int] = (0, 1),
    known: dict[str, dict] | None = None,
    keep: Callable[[dict], None] = lambda found: None,
    progress: bool = True,
    image_size: tuple[int, int] | None = None,
) -> dict[str, dict]:
    """Measures, parameters and latency of every size, by its name.

    Args:
        head: whether the bundle has a classifier.
        process: which of how many; each takes its share of the sizes, and all call this alike.
        known, keep, others: as for `sweep.measured`.
    """

    def measure(size: Size) -> dict:
        bar.set_postfix_str(str(size), refresh=False)
        model, one = load_size(bundle, size, head).to(device).eval(), dict(found.get(str(size), {}))
        if "measures" not in one:
            one |= {"params": count_parameters(model), "measures": stick.measure(model, bar.update)}
        if latency:
            one |= timings.of(size, model)
        return one

    found = {name: dict(one) for name, one in (known or {}).items()}
    timings = Timings(found, sizes, device, threads, image_size)
    wanted = {"measures", "latency_ms"} if latency else {"measures"}
    missing = [size for size in sizes if not wanted <= found.get(str(size), {}).keys()]
    index, count = process
    bar = progress_bar(
        total=math.ceil(len(missing) / count) * stick.passes, desc="measuring", unit="image", shown=progress
    )
    with quiet_loading(), bar:
        for start in range(0, len(missing), count):
            own = {str(size): measure(size) for size in missing[start : start + count][index : index + 1]}
            for part in [own] if count == 1 else gather_object([own]):
                found |= part
            keep(found)
    return found
