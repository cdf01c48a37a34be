"""A processor's steps in timm's words, by which timm's own transforms make the same pixels of a picture.

timm resizes, crops the middle and normalises. Its size before the crop is that of the crop divided by `crop_pct`,
rounded down (`timm.data.transforms_factory.transforms_imagenet_eval`). Where a margin of the crop is half a pixel,
transformers rounds it down and timm to the even pixel; of a picture's longer edge that depends on the picture.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import IMAGE_PROCESSOR_NAME, logging

from ..folders import write_json
from ..images.batches import normalisation
from .devices import RESAMPLING


logger = logging.get_logger(__name__)

STEPS = {f"do_{step}" for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
WORDS = ("crop_pct", "crop_mode", "interpolation", "mean", "std")


def say_preprocessing(model: nn.Module, processor: Any, name: str | os.PathLike) -> None:
    """Write into a model of timm what timm's own transforms have to know of pictures; nothing where they would make
    other pixels, with a warning.

    Args:
        model: whose `pretrained_cfg` is changed.
        processor: of transformers; None where there is none.
        name: of what is exported, for the warning.
    """
    said = {"input_size": (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)}
    said |= {"num_classes": model.num_classes, "hf_hub_id": None, "url": "", "tag": None, "license": None}
    for word in WORDS:  # of the model of timm that it is built as
        model.pretrained_cfg.pop(word, None)
    if processor is not None:
        try:
            words = timm_words(processor)
            _check_size(model, words["input_size"][1:])
            said |= words
        except ValueError as error:
            logger.warning(
                f"The preprocessing of {name} is not told in timm's words, whose transforms would make other pixels: "
                f"{error}. Use {IMAGE_PROCESSOR_NAME} beside the model."
            )
    model.pretrained_cfg.update(said)


def _check_size(model: nn.Module, made: tuple[int, int]) -> None:
    """Whether a model takes pictures of this (height, width); timm's transforms make those of its own size."""
    own = tuple(model.patch_embed.img_size)
    if model.patch_embed.strict_img_size and made != own:
        raise ValueError(f"pictures become {made[0]}x{made[1]}, and timm's model takes {own[0]}x{own[1]} alone")


def leave_out_unsaid(model: nn.Module, config: Path) -> None:
    """Take out of a `config.json` of timm what its model does not say of pictures: timm writes ImageNet's words there.

    Args:
        model: that was saved.
        config: the file.
    """
    held = json.loads(config.read_text(encoding="utf-8"))
    for word in WORDS:
        if word not in model.pretrained_cfg:
            held["pretrained_cfg"].pop(word, None)
    write_json(config, held)


def timm_words(processor: Any) -> dict[str, Any]:
    """What a `pretrained_cfg` says of pictures.

    Args:
        processor: of transformers.

    Returns:
        `input_size` (channels, height, width) and WORDS.

    Raises:
        ValueError: what timm has no word for.
    """
    said = processor.to_dict()
    unknown = sorted(key for key, value in said.items() if key.startswith("do_") and value and key not in STEPS)
    unknown += ["rescale_offset"] * bool(said.get("rescale_offset"))
    if unknown:
        raise ValueError(f"timm has no word for {', '.join(unknown)}")
    size, crop, mode = _sizes(said)
    mean, std = normalisation(said)
    return {
        "input_size": (len(mean), *crop),
        "crop_pct": _crop_share(crop, size),
        "crop_mode": mode,
        "interpolation": RESAMPLING[int(said["resample"])],
        "mean": tuple(mean),
        "std": tuple(std),
    }


def _sizes(said: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int], str]:
    """(height, width) before the crop and after it, and whether proportions are kept (`center`) or not (`squash`)."""
    size, crop = (
        {side: pixels for side, pixels in (said.get(name) or {}).items() if pixels} for name in ("size", "crop_size")
    )
    cropped = (crop["height"], crop["width"]) if said.get("do_center_crop") else None
    if not said.get("do_resize"):
        raise ValueError("timm always resizes, and `do_resize` is off")
    if size.keys() == {"height", "width"}:
        whole = size["height"], size["width"]
        return whole, cropped or whole, "squash"
    if size.keys() != {"shortest_edge"} or cropped is None or cropped[0] != cropped[1]:
        raise ValueError(
            f"timm keeps proportions by the shortest edge and for a square crop, and `size` is {size}, "
            f"{f'cropped to {cropped[0]}x{cropped[1]}' if cropped else 'not cropped'}"
        )
    return (size["shortest_edge"],) * 2, cropped, "center"


def _crop_share(crop: tuple[int, int], size: tuple[int, int]) -> float:
    """The `crop_pct` by which timm resizes to exactly this size before the crop."""
    margins = [whole - side for side, whole in zip(crop, size)]
    if any(round(margin / 2) != margin // 2 for margin in margins):
        raise ValueError(f"timm would crop {crop} of {size} a pixel further down or to the right")
    for share in (crop[0] / size[0], crop[0] / (size[0] + 0.5)):  # the first, rounded, may give a pixel less
        if share <= 1 and all(math.floor(side / share) == whole for side, whole in zip(crop, size)):
            return share
    raise ValueError(f"timm crops the same share of both sides, and {crop} is none of {size}")
