"""What pruning has to beat: the size of the same bundle that costs as much, unpruned."""

from itertools import product
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig

from ..configuration_base_lingene import BUNDLE_TYPES, Size
from ..measuring.metrics import count_macs, count_parameters


def nearest_size(bundle: str | Path, asked: dict, kind: str, dense: str | Path, share: float) -> Size | None:
    """The trained size whose cost is nearest to a share of what is pruned.

    Args:
        bundle: folder or name on the Hub; of anything else there are no sizes.
        asked: `from_pretrained`'s keywords for what is pruned; its components are kept.
        kind: `macs` or `params`.
        dense: what is pruned, a stock model by folder.
        share: of its cost, which the result may have.

    Returns:
        None where there is no bundle, or none of its trained sizes costs less than what is pruned.
    """
    config = AutoConfig.from_pretrained(bundle)
    if config.model_type not in BUNDLE_TYPES:
        return None
    count, whole = asked.get("num_components"), cost_of(AutoConfig.from_pretrained(dense), kind)
    sizes = [config.size(*shape, count) for shape in product(config.trained_depths, config.trained_width_ratios)]
    costs = {size: cost_of(config.stock_config(size), kind) for size in sizes}
    smaller = [size for size in sizes if costs[size] < whole]
    return min(smaller, key=lambda size: abs(costs[size] - share * whole), default=None)


def cost_of(config: PretrainedConfig, kind: str) -> int:
    """MACs of one image, or parameters, of a stock classifier."""
    if kind == "macs":
        return count_macs(config)
    with torch.device("meta"):
        return count_parameters(AutoModelForImageClassification.from_config(config))
