"""What an encoder says of pictures: its class token and its patch tokens, normed, as the stock model gives them.

Notation: b batch, t tokens, p patches, d hidden size, n pictures.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PretrainedConfig

from ..families_lingene import WHOLE, family_row, image_token, stock_class
from ..progress import quiet_loading
from ..readout import Readout, brought_back


Tokens = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # (b, C, h, w) -> (b, d), (b, p, d)
POOLER = "pooler."  # tensors that no measure reads, of families that have them
KEPT_BYTES = 1 << 31  # of pixels, and of a reference's tokens with them


def prefix_tokens(config: PretrainedConfig) -> int:
    """How many tokens stand before those of the patches: a class token, and registers where a family has them."""
    family = family_row(config)
    class_token = family is None or family.class_token
    return class_token + (getattr(config, "num_register_tokens", None) or 0)


def class_and_patches(model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands for each image (b, d), its class token mostly, and patch tokens (b, p, d); normed, float32, where
    the model is.

    Args:
        model: a transformers encoder, or a classifier, of which the encoder is asked; in its own dtype.
        pixel_values: (b, 3, h, w).
    """
    is_encoder = isinstance(model, MODEL_MAPPING.get(type(model.config), ()))
    encoder = model if is_encoder else model.base_model  # of an encoder it may be a part, as with DINOv3
    weight = next(parameter for parameter in encoder.parameters() if parameter.is_floating_point())
    tokens = normed_tokens(encoder, encoder(pixel_values=pixel_values.to(weight.device, weight.dtype))).float()
    return tokens[:, 0], tokens[:, prefix_tokens(encoder.config) or 1 :]


def normed_tokens(encoder: nn.Module, output: Any) -> torch.Tensor:
    """What stands for the image, and the tokens behind it, as the final LayerNorm leaves them: (b, t, d).

    Some families' classes give tokens before it. Where there is no class token, what they pool comes first, or else
    the mean.

    Args:
        encoder: of transformers, of any kind, or of components.
        output: what it gave.
    """
    family, tokens = family_row(encoder.config), output.last_hidden_state
    if (places := getattr(output, "ids_restore", None)) is not None:  # of a masked autoencoder, which shuffles patches
        patches = tokens[:, 1:].take_along_dim(places[:, :, None], 1)
        tokens = torch.cat((tokens[:, :1], patches), dim=1)
    if family is None:
        return tokens
    if not family.norms_tokens and hasattr(encoder, "normed"):  # of components
        return encoder.normed(tokens, encoder.config.size())
    if not family.norms_tokens:
        return getattr(encoder, family.outside["layernorm.weight"].removesuffix(".weight"))(tokens)
    return tokens if family.class_token else torch.cat((image_token(encoder.config, output)[:, None], tokens), dim=1)


def no_pooler(config: PretrainedConfig) -> dict[str, bool]:
    """The keyword that leaves out a pooler, which no measure reads, for families that take one."""
    model_class = MODEL_MAPPING.get(type(config), None)
    named = inspect.signature(model_class).parameters if inspect.isclass(model_class) else ()
    return {"add_pooling_layer": False} if "add_pooling_layer" in named else {}


class AutoEncoder:
    """Loads as `AutoModel` does, of a model of two towers that of pictures."""

    @staticmethod
    def from_pretrained(name: str | Path, **asked) -> Any:
        where = {key: asked[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in asked}
        kind = WHOLE.get(AutoConfig.from_pretrained(name, **where).model_type)
        found = (stock_class(kind, "encoder") if kind else AutoModel).from_pretrained(name, **asked)
        model = found[0] if isinstance(found, tuple) else found  # with what loading told
        if hasattr(model.config, "mask_ratio"):  # a masked autoencoder's is of its training alone
            model.config.mask_ratio = 0.0
        return found


def load_encoder(name: str | Path, config: PretrainedConfig, **asked) -> nn.Module:
    """An encoder by folder or name, in evaluation mode; of a bundle a size, of two towers that of pictures.

    Raises:
        ValueError: it cannot be loaded, or lacks a tensor.
    """
    asked |= no_pooler(config)
    try:
        with quiet_loading():
            model, told = AutoEncoder.from_pretrained(name, output_loading_info=True, **asked)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{name} cannot be loaded as an encoder: {str(error).splitlines()[0]}") from None
    check_trained(str(name), told, POOLER)
    return model.eval()


def check_trained(said: str, told: dict[str, Any], unread: str = "") -> None:
    """Refuse a model whose files lack tensors: transformers puts random numbers in their place.

    Args:
        said: the model, in the message.
        told: what `from_pretrained(output_loading_info=True)` says of it.
        unread: how the tensors begin that nothing reads, and that may be new.

    Raises:
        ValueError: names the tensors.
    """
    untrained = sorted(key for key in told["missing_keys"] if not (unread and key.startswith(unread)))
    if untrained:
        raise ValueError(f"{said} has no trained {', '.join(untrained)}: give a model whose files hold them.")


class Kept:
    """What can be iterated over again and again, kept in memory after the first pass where it fits.

    Args:
        source: gives dicts of tensors; asked anew for every pass where they do not fit.
        room: bytes.
    """

    def __init__(self, source: Iterable, room: int = KEPT_BYTES):
        self.source, self.room, self.kept = source, room, None

    def __iter__(self) -> Iterator:
        if self.kept is not None:
            yield from self.kept
            return
        kept, left = [], self.room
        for item in self.source:
            left -= sum(tensor.nbytes for tensor in item.values())
            kept.append(item) if left >= 0 else kept.clear()
            yield item
        if left >= 0:
            self.kept = kept


class Reference:
    """Batches of images together with what another encoder says of them.

    Args:
        ask: (pixel_values) -> that encoder's class tokens (b, d) and patch tokens (b, p, d).
        batches: dicts with pixel_values (b, 3, h, w) and labels (b,).
        seen: the same images as the other encoder wants them; default the same pixels.
        name: of the encoder, for rows, tables and messages.
        readout: of it, if its channels were turned and it is compared with what has other ones.
        model: the encoder, where it was loaded for this.
    """

    def __init__(
        self,
        ask: Tokens,
        batches: Iterable[dict],
        seen: Iterable[dict] | None,
        name: str,
        readout: Readout | None = None,
        model: nn.Module | None = None,
    ):
        self.ask, self.batches, self.seen, self.name = ask, batches, seen, name
        self.readout, self.model = readout, model

    @functools.cached_property
    def id(self) -> str | None:
        """What tells the encoder from another of the same name; None where it was not loaded for this."""
        if self.model is None:
            return None
        sums = [f"{one.detach().cpu().double().abs().sum():.9g}" for one in self.model.parameters()]  # by any threads
        return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The batches with `expected_class` (b, d) and `expected_patches` (b, p, d) on the CPU."""
        pairs = ((b, b) for b in self.batches) if self.seen is None else zip(self.batches, self.seen, strict=True)
        for batch, seen in pairs:
            with torch.inference_mode():
                tokens, patches = brought_back(self.ask(seen["pixel_values"]), self.readout)
            yield {**batch, "expected_class": tokens.cpu(), "expected_patches": patches.cpu()}
