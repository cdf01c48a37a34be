"""How training images are varied: the parts of the DeiT recipe, each optional.

Parts that act on whole batches (crop by padding, flip, erasing, mixing) run where the batch is, on the GPU too. Parts
that need one picture at a time (random resized crop, RandAugment, colour jitter) are timm's and run in the loader's
worker processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps

from ..extras import require


@dataclass(frozen=True)
class Augmentation:
    """Which parts are on; all off by default.

    Args:
        crop_padding: pixels; each image is moved by up to so many in both directions, black moving in.
        flip: left to right, half of the images.
        resized_crop: a random part of the picture (scale 0.08 to 1), resized to the model's size.
        rand_augment: timm's specification, such as `rand-m9-mstd0.5-inc1`; empty for none.
        color_jitter: strength; 0 for none.
        erasing: probability that a rectangle of an image is replaced by noise.
        mixup, cutmix: alpha of the Beta distribution; 0 for none; with both, one of them at random per batch.
        mixing: probability that a batch is mixed, where one of them is on.

    Raises:
        ValueError: a number outside of its range.
    """

    crop_padding: int = 0
    flip: bool = False
    resized_crop: bool = False
    rand_augment: str = ""
    color_jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixing: float = 1.0

    def __post_init__(self):
        if isinstance(self.crop_padding, bool) or not isinstance(self.crop_padding, int) or self.crop_padding < 0:
            raise ValueError(f"`crop_padding` must be an integer of at least 0, got {self.crop_padding!r}.")
        for name, high in (("color_jitter", 10), ("erasing", 1), ("mixup", 10), ("cutmix", 10), ("mixing", 1)):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"`{name}` must be from 0 to {high}, got {getattr(self, name)!r}.")

    @property
    def one_by_one(self) -> bool:
        """Whether a part needs single pictures, decoded anew in every epoch."""
        return self.resized_crop or bool(self.rand_augment) or self.color_jitter > 0

    @property
    def mixes(self) -> bool:
        return self.mixing > 0 and (self.mixup > 0 or self.cutmix > 0)

    @property
    def varies(self) -> bool:
        """Whether an image is ever another than itself, so that a teacher has to see every batch anew."""
        return self.one_by_one or self.mixes or self.flip or self.crop_padding > 0 or self.erasing > 0

    def on_batch(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Crop by padding and flip: (b, c, h, w) -> (b, c, h, w), of uint8 or float with black at 0."""
        if self.crop_padding:
            pixels = shift(pixels, self.crop_padding, generator)
        if self.flip:
            chosen = torch.rand(len(pixels), generator=generator) < 0.5
            pixels = torch.where(chosen.to(pixels.device)[:, None, None, None], pixels.flip(-1), pixels)
        return pixels


def check_augmentation(augmentation: Augmentation) -> None:
    """Refuse what timm does not know, before any work.

    Raises:
        ValueError: a `rand_augment` that is none of its specifications.
        ImportError: timm is missing for a part that is on; the message says what to install.
    """
    if augmentation.one_by_one:
        picture_transform(augmentation, (8, 8))


BILINEAR = 2  # as image processors of ViTs resize
AUGMENTATIONS = {
    "none": {},
    "shift": {"crop_padding": 1},
    "light": {"crop_padding": 4, "flip": True},
    "mixed": {"crop_padding": 4, "flip": True, "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0},
    # DeiT, arXiv 2012.12877, Table 9; LinDec's recipe names the same parts.
    "deit": {
        "resized_crop": True,
        "flip": True,
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "color_jitter": 0.3,
        "erasing": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}


def shift(pixels: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to `padding` pixels in both directions, zeros moving in; (b, c, h, w) -> (b, c, h, w)."""
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    height, width = pixels.shape[-2:]
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (b, c, 2p + 1, 2p + 1, h, w), a view
    down, right = torch.randint(2 * padding + 1, (2, len(pixels)), generator=generator).to(pixels.device)
    return windows[torch.arange(len(pixels), device=pixels.device), :, down, right]


def mixer(augmentation: Augmentation, num_labels: int) -> Callable | None:
    """(pixel_values (b, c, h, w), labels (b,)) -> mixed ones with labels (b, num_labels), by torchvision; or None.

    Draws from the global random state. Unmixed batches get one-hot labels too, so that all have one shape.
    """
    if not augmentation.mixes:
        return None
    v2 = require("torchvision.transforms.v2", "torchvision")
    alphas = ((v2.MixUp, augmentation.mixup), (v2.CutMix, augmentation.cutmix))
    kinds = [kind(alpha=alpha, num_classes=num_labels) for kind, alpha in alphas if alpha > 0]
    mix = v2.RandomChoice(kinds)

    def mixed(pixel_values: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(labels) > 1 and float(torch.rand(())) < augmentation.mixing:
            return mix(pixel_values, labels)
        return pixel_values, torch.nn.functional.one_hot(labels, num_labels).to(pixel_values.dtype)

    return mixed


def eraser(augmentation: Augmentation, device: str | torch.device) -> Callable | None:
    """Random erasing by timm, image by image on a normalised batch; or None. Draws from the global random state."""
    if augmentation.erasing == 0:
        return None
    return require("timm.data.random_erasing", "timm").RandomErasing(
        augmentation.erasing, mode="pixel", device=str(device)
    )


def picture_transform(
    augmentation: Augmentation, size: tuple[int, int], grey: bool = False
) -> Callable[[Any], torch.Tensor]:
    """PIL image -> (3, h, w) uint8, or (1, h, w) where it is to be grey, with the parts that need one picture at a
    time, by timm.

    Draws from the global random states of Python, numpy and torch.

    Raises:
        ValueError: a `rand_augment` that timm does not know.
    """
    height, width = size
    make = require("timm.data.transforms_factory", "timm").transforms_imagenet_train
    try:
        vary = make(
            size,
            scale=(0.08, 1.0) if augmentation.resized_crop else (1.0, 1.0),
            ratio=(3 / 4, 4 / 3) if augmentation.resized_crop else (width / height, width / height),
            hflip=0.0,  # on the batch, like crop by padding and erasing
            color_jitter=augmentation.color_jitter or None,
            force_color_jitter=True,  # beside RandAugment too
            auto_augment=augmentation.rand_augment or None,
            interpolation="bicubic",
            re_prob=0.0,
            normalize=False,
        )
    except (AssertionError, KeyError, ValueError) as error:  # of its reading of a specification
        raise ValueError(
            f"`rand_augment` must be a specification of timm, such as rand-m9-mstd0.5-inc1; got "
            f"{augmentation.rand_augment!r}: {error}."
        ) from None
    _keep_a_bit(vary)
    return _PictureTransform(vary, None if augmentation.resized_crop else (width, height), grey)


def _keep_a_bit(part: Any) -> None:
    """At its greatest magnitude timm posterises to no bits, which Pillow refuses from 13 on: to one in every part."""
    if str(getattr(part, "name", "")).startswith("Posterize"):
        part.aug_fn = _posterised
    inner = [getattr(part, where, None) for where in ("transforms", "ops", "policy")]
    for one in part if isinstance(part, (list, tuple)) else [found for found in inner if found is not None]:
        _keep_a_bit(one)


def _posterised(picture: Image.Image, bits: int, **_) -> Image.Image:
    return picture if bits >= 8 else ImageOps.posterize(picture, max(bits, 1))


@dataclass(frozen=True)
class _PictureTransform:
    """A class and no closure: it is pickled where worker processes are not forked."""

    vary: Callable
    resized: tuple[int, int] | None
    grey: bool

    def __call__(self, picture: Any) -> torch.Tensor:
        if self.grey:  # of three channels alike: some parts colour what they move in
            picture = picture.convert("L").convert("RGB")
        pixels = self.vary(picture.resize(self.resized, BILINEAR) if self.resized else picture)
        return pixels.float().mean(0, keepdim=True).round().to(pixels.dtype) if self.grey else pixels
