"""What a size says of a picture, and where it looks: classes, and the attention of the class token.

Notation: h, w picture in pixels; g, k patches down and across; t tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy
import torch

from ..images.batches import processed
from ..images.decoding import upright_rgb
from .sizes import Materialised


SHOWN_PIXELS = 224  # the longer side of a picture on the page, at least
# Dark to light, in steps that all kinds of sight tell apart: five colours of viridis.
SCALE = numpy.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=float)


@dataclass(frozen=True)
class Answer:
    """What one size says of one picture.

    Args:
        classes: (name, probability), the most probable first; none from a bundle without classifier.
        attention: (g, k), of the last layer's class token to the patches, mean over heads, its largest value 1; None
            where the model gives none.
    """

    classes: list[tuple[str, float]]
    attention: numpy.ndarray | None


def opened(path: str) -> Any:
    """A picture of whatever file as upright RGB.

    Raises:
        ValueError: it is none that can be read; a sentence for who dropped it.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return upright_rgb(picture)
    except Image.DecompressionBombError:
        raise ValueError("This picture is too large: make it smaller, and drop it again.") from None
    except FileNotFoundError:
        raise ValueError("This picture is no longer here: drop it again.") from None
    except Image.UnidentifiedImageError:
        raise ValueError("This file is no picture that can be read here: drop a PNG, JPEG or WebP.") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        said = " ".join(str(error).split())
        raise ValueError(f"This picture cannot be read ({said}): save it anew as PNG or JPEG.") from None


def prepared(processor: Any, picture: Any) -> torch.Tensor:
    """(1, c, h, w), as the model gets it."""
    return processed(processor, [picture])


def answer(size: Materialised, pixel_values: torch.Tensor, most: int = 3) -> Answer:
    """What a size says of a picture.

    Args:
        pixel_values: (1, c, h, w).
        most: classes to name.
    """
    weight = next(size.explained.parameters())
    with torch.inference_mode():
        output = size.explained(pixel_values=pixel_values.to(weight.device, weight.dtype), output_attentions=True)
    logits, names = getattr(output, "logits", None), size.model.config.id2label
    classes = []
    if logits is not None:
        shares = logits[0].float().softmax(-1).cpu()
        classes = [
            (str(names[index]), float(shares[index])) for index in shares.argsort(descending=True)[:most].tolist()
        ]
    return Answer(classes, class_attention(output, size.model.config, tuple(pixel_values.shape[-2:])))


def class_attention(output: Any, config: Any, image_size: tuple[int, int]) -> numpy.ndarray | None:
    """(g, k) out of a model's output, see `Answer`; None where it gives no attention, or not one patch each.

    Args:
        config: of the model: its patches, and its tokens without positions.
        image_size: (h, w).
    """
    layers = getattr(output, "attentions", None)
    if not layers or layers[-1] is None:
        return None
    patch = config.patch_size
    down, across = (patch, patch) if isinstance(patch, int) else patch
    grid = image_size[0] // down, image_size[1] // across
    row = layers[-1][0, :, 0].float().mean(0).cpu().numpy()  # (t,)
    patches = row[1 + getattr(config, "num_register_tokens", 0) :]
    if patches.size != grid[0] * grid[1]:
        return None
    return (patches / max(patches.max(), 1e-12)).reshape(grid)


def seen(pixel_values: torch.Tensor, processor: Any) -> numpy.ndarray:
    """The picture as the model gets it, (h, w, 3) uint8: resized, cropped, without the scaling of its numbers."""
    values = pixel_values[0].float().permute(1, 2, 0).numpy()
    if getattr(processor, "do_normalize", True):
        values = values * numpy.array(processor.image_std) + numpy.array(processor.image_mean)
    values = numpy.clip(255 * values, 0, 255).round().astype(numpy.uint8)
    return numpy.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def overlay(picture: numpy.ndarray, attention: numpy.ndarray) -> numpy.ndarray:
    """The attention in colour over the picture in grey, (h, w, 3) uint8.

    Args:
        picture: (h, w, 3) uint8.
        attention: (g, k) from 0 to 1.
    """
    places = attention * (len(SCALE) - 1)
    colours = numpy.stack([numpy.interp(places, range(len(SCALE)), channel) for channel in SCALE.T], axis=-1)
    rows, columns = (numpy.arange(size) * cells // size for size, cells in zip(picture.shape, attention.shape))
    grey = picture.mean(axis=2, keepdims=True)
    return (0.35 * grey + 0.65 * colours[rows][:, columns]).round().astype(numpy.uint8)


def enlarged(picture: numpy.ndarray) -> Any:
    """A small picture with its pixels as squares, as PIL image."""
    from PIL import Image

    factor = max(1, round(SHOWN_PIXELS / max(picture.shape[:2])))
    return Image.fromarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))
