"""A few hundred unlabelled images, and which layers of a bundle to keep, chosen on them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..images.batches import batches, check_one_shape
from ..images.data import picked
from ..images.pictures import load_pictures
from .sources import class_outputs


LEFT_OUT, LEFT_OUT_SHARE = 128, 5  # images that judge a fit and are none of it: at most; of a small set one in five


def calibration_images(
    data: str, processor: Any, count: int, seed: int = 0, judged: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some images of a set, preprocessed; labels are not read.

    Args:
        data: what `load_pictures` takes; its split `train`, or another where it has none.
        count: how many to fit, drawn at random.
        judged: draw others to judge the fit by, LEFT_OUT where the set has so many more; of a smaller one a part of
            those that would be fitted is left out.

    Returns:
        (at most count, channels, h, w), and those that are left out, likewise; perhaps none.

    Raises:
        ValueError: there are none, too many do not decode, or the processor makes several shapes of them.
    """
    try:
        images = load_pictures(data, others=True)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
        left_out = max(len(order) - count, len(order) // LEFT_OUT_SHARE) if judged else 0
        fitted = min(count, len(order) - min(left_out, LEFT_OUT))
        order = order[: fitted + min(left_out, LEFT_OUT)]
        found = [batch["pixel_values"] for batch in batches(picked(images, order), processor, 64)]
        check_one_shape(found)
        return torch.cat(found).tensor_split([fitted])
    except ValueError as error:
        raise ValueError(str(error).replace("`data`", "`calibrate`", 1)) from None


def distance(found: torch.Tensor, expected: torch.Tensor, classes: bool) -> float:
    """KL divergence of class probabilities, mean over images; without classes the relative error.

    Args:
        found, expected: logits, or class tokens.
        classes: whether they are scores of classes, see `names_classes`.
    """
    if not classes:
        return float((found - expected).norm() / expected.norm())
    return float(
        functional.kl_div(found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean")
    )


@torch.no_grad()
def class_outputs_of(
    model: nn.Module,
    pixel_values: torch.Tensor,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
    **size,
) -> torch.Tensor:
    """Logits, or class tokens, of many images, on the CPU; `progress` hears of the images of each batch."""
    device, found = next(model.parameters()).device, []
    for part in pixel_values.split(batch_size):
        found.append(class_outputs(model, part.to(device), **size).cpu())
        progress(len(part))
    return torch.cat(found)


def choose_rows(
    model: nn.Module,
    classes: bool,
    pixel_values: torch.Tensor,
    expected: torch.Tensor,
    depths: Sequence[int],
    progress: Callable[[], None] = lambda: None,
) -> dict[int, list[int]]:
    """Which layers to keep at each depth: those least missed are left out one by one.

    Args:
        model: a constrained model that selects layers; its configuration is used and left as it was.
        classes: as of `distance`.
        pixel_values: (images, channels, h, w).
        expected: the source's logits or class tokens for them.
        depths: below the reference depth.

    Returns:
        {depth: rows}.
    """
    config = model.config
    before, kept, chosen = config.depth_rows, list(range(config.reference_depth)), {}
    try:
        while len(kept) > min(depths):
            depth, candidates = len(kept) - 1, {}
            for left_out in kept:
                rows = [row for row in kept if row != left_out]
                config.depth_rows = {depth: rows}
                found = class_outputs_of(model, pixel_values, depth=depth)
                candidates[distance(found, expected, classes)] = rows
                progress()
            kept = candidates[min(candidates)]
            if depth in depths:
                chosen[depth] = kept
    finally:
        config.depth_rows = before
    return chosen
