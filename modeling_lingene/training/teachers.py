"""Teachers: trained classifiers whose answers a bundle learns from; frozen, with their own preprocessing.

load_teacher("google/vit-base-patch16-224", ...)     transformers, by name or folder
load_teacher("timm:regnety_160", ...)                timm, by name, or timm:local-dir:FOLDER
"""

import os
from collections.abc import Callable
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional
from transformers import AutoModelForImageClassification
from transformers.utils import logging

from ..extras import require
from ..folders import processor_or_none, read_processor
from ..found import TIMM, check_holds_model, check_timm_within_reach, check_within_reach
from ..images.batches import made_size, normalisation
from ..images.classes import names_of, places_of, told
from ..images.data import LabelledImages
from ..images.loaders import MemoryImages, PictureImages
from ..measuring.features import check_trained


logger = logging.get_logger(__name__)


class Normalised(Protocol):
    """What a teacher has to know of the batches that it will see: where they are, and their normalisation."""

    device: torch.device
    mean: torch.Tensor
    std: torch.Tensor


class Teacher:
    """A batch's logits of a frozen model, which sees what the student sees, mixed images included.

    Args:
        model: (b, 3, h, w) -> logits (b, classes), or an output with `.logits`.
        size: (h, w) the model wants, pixels; None takes any.
        mean, std: of its normalisation.
        images: the source of the batches, for theirs.
        name: for messages.
        outputs: which of its logits stands for each of the images' classes; None where that is their order.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int] | None,
        mean: list[float],
        std: list[float],
        images: Normalised,
        name: str,
        outputs: list[int] | None = None,
    ):
        self.outputs = outputs
        self.model, self.size, self.name = model.to(images.device).eval().requires_grad_(False), size, name
        mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (mean, std))
        self.scale, self.shift = images.std / std, (images.mean - mean) / std

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Its answer, without gradients."""
        with torch.inference_mode():
            values = batch["pixel_values"] * self.scale + self.shift
            if self.size is not None and tuple(values.shape[-2:]) != self.size:
                values = functional.interpolate(values, self.size, mode="bicubic", antialias=True)
            answer = self.answer(values)
        return answer.float().clone()  # autograd takes no tensor of inference mode

    def answer(self, values: torch.Tensor) -> torch.Tensor:
        """(b, 3, h, w) -> logits (b, classes)."""
        logits = self.model(values)
        logits = getattr(logits, "logits", logits)
        return logits if self.outputs is None else logits[:, self.outputs]


def load_teacher(name: str, images: MemoryImages | PictureImages, relabel: bool = False) -> Teacher:
    """A classifier by name, for the training images; see `open_teacher`."""
    return open_teacher(name, images.images, relabel)(images)


def open_teacher(name: str, images: LabelledImages, relabel: bool = False) -> Callable[[Normalised], Teacher]:
    """A classifier by name, before anything is known of the batches that it will see.

    Args:
        name: `timm:NAME`, or a transformers name or folder (a bundle too).
        images: their classes are found among its own by name.
        relabel: take class i of the images for its output i, whatever the names are.

    Returns:
        From the source of the batches the teacher.

    Raises:
        ValueError: it cannot be loaded, or has other classes.
        ImportError: timm is missing; the message says what to install.
    """
    if name.startswith(TIMM):
        model, *preprocessing = timm_model(name)
        classes, named = model.num_classes, list(model.pretrained_cfg.get("label_names") or ())
    else:
        model, *preprocessing = transformers_model(name, AutoModelForImageClassification)
        classes, named = model.config.num_labels, names_of(model.config.id2label)
    outputs = _outputs(name, images, classes, [] if relabel else named)
    return lambda source: Teacher(model, *preprocessing, source, name, outputs)


def _outputs(name: str, images: LabelledImages, classes: int, named: list[str]) -> list[int] | None:
    """Which of a teacher's outputs stands for each class of the images; None where it is their order."""
    wanted, of = images.class_names, images.name
    places = places_of(wanted, named) if named else None
    if places is None and classes != len(wanted):
        raise ValueError(
            f"`teacher` {name} has {classes} classes, and {of} has {len(wanted)}; fine-tune it on this set "
            "first, or use another."
        )
    if places is None and named:
        raise ValueError(
            f"`teacher` {name} knows other classes ({told(named)}) than {of} has ({told(wanted)}): fine-tune it on "
            "this set first, or use another; or, where class i of the set is its output i under another name, give "
            "--relabel."
        )
    return None if places == list(range(classes)) else places


def check_teacher(name: str) -> None:
    """Refuse a teacher that is not there, before any work.

    Raises:
        ValueError: no folder, one without a model, or a name while the Hub is out of reach.
        ImportError: timm is missing; the message says what to install.
    """
    if name.startswith(TIMM):
        check_timm_within_reach("teacher", name, require("timm"))
    else:
        check_holds_model("teacher", name, "a trained model")
        check_within_reach("teacher", name)


def timm_model(name: str, **changes) -> tuple:
    """A trained model of timm and its preprocessing: (h, w), mean, standard deviation.

    Args:
        name: `timm:NAME`.
        changes: of its arguments.

    Raises:
        ValueError: it cannot be loaded.
    """
    check_teacher(name)
    timm = require("timm")
    try:
        model = timm.create_model(name.removeprefix(TIMM), pretrained=True, **changes)
    except (RuntimeError, OSError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"`teacher` {name} cannot be loaded: {_first_line(error)}") from None
    data: dict[str, Any] = timm.data.resolve_model_data_config(model)
    return model, tuple(data["input_size"][1:]), list(data["mean"]), list(data["std"])


def transformers_model(name: str, auto_class: type, unread: str = "", otherwise: tuple | None = None) -> tuple:
    """A trained model of transformers, or a bundle at full size, and its preprocessing: (h, w), mean, deviation.

    Args:
        name: on the Hub, or folder.
        auto_class: loads it.
        unread: how tensors begin that are not needed, and may be new.
        otherwise: the preprocessing of one that brings none, with a warning; without it, it is refused.

    Raises:
        ValueError: it cannot be loaded, or a tensor that is needed was never trained; no preprocessing.
    """
    path = os.path.expanduser(name)
    check_teacher(name)
    try:
        model, told = auto_class.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        processor = read_processor(path) if otherwise is None else processor_or_none(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"`teacher` {name} cannot be loaded: {_first_line(error)}") from None
    check_trained(f"`teacher` {name}", told, unread)
    if processor is None:
        logger.warning(f"`teacher` {name} brings no preprocessing: it sees pictures as the student's makes them.")
        return model, *otherwise
    return model, *_preprocessing(name, processor.to_dict())


def _preprocessing(name: str, said: dict) -> tuple:
    """(h, w), mean and standard deviation on pixels of 0..1, of an image processor's fields."""
    if said.get("do_flip_channel_order") or said.get("rescale_offset"):
        raise ValueError(
            f"`teacher` {name} flips channels or shifts pixels; only resize, rescale, normalise are known."
        )
    return made_size(said), *normalisation(said)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
