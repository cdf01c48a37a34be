"""Teachers without labels: trained encoders whose last tokens a student learns; frozen, with their own preprocessing.

load_encoder("facebook/dinov2-base", ...)     transformers, by name or folder; a bundle too, at full size
load_encoder("timm:vit_base_patch14_dinov2", ...)
bundle_encoder("RUN/bundle", ...)             a bundle behind the student's own preprocessing

Notation: b batch, p patches, t = 1 + p tokens, D channels.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from ..families_lingene import has_stages, tower_config
from ..found import TIMM
from ..measuring.features import POOLER, AutoEncoder, normed_tokens
from ..progress import quiet_loading
from .teachers import Teacher, check_teacher, timm_model, transformers_model


Grid = tuple[int, int]  # patches: rows, columns


@dataclass(frozen=True)
class Preprocessing:
    """How the student's pictures will come, before any is read.

    Args:
        processor: a transformers image processor.
        device: where batches will be.
    """

    processor: Any
    device: torch.device

    @property
    def mean(self) -> torch.Tensor:
        return torch.tensor(self.processor.image_mean, device=self.device).view(1, -1, 1, 1)

    @property
    def std(self) -> torch.Tensor:
        return torch.tensor(self.processor.image_std, device=self.device).view(1, -1, 1, 1)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w), pixels."""
        return self.processor.size["height"], self.processor.size["width"]


class Encoder(Teacher):
    """A batch's final normed tokens of a frozen encoder: (b, t, D), what stands for the image first, its class token
    mostly; registers left out.

    Args:
        model, size, mean, std, images, name: as of a `Teacher`.
        grid: the student's, rows and columns of patches.
        patch: (h, w), pixels, of the student.
        resized: what makes the student's pictures of another size, for messages; empty where nothing does.

    Raises:
        ValueError: no class token and patches, another number of patches than the student's, or tokens that no
            LayerNorm made.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int] | None,
        mean: list[float],
        std: list[float],
        images: Preprocessing,
        name: str,
        patch: tuple[int, int],
        resized: str = "`image_size`",
    ):
        super().__init__(model, size, mean, std, images, name)
        seen, own = size or images.size, patch_of(model)
        stages = hasattr(model, "config") and has_stages(model.config)
        if own is None or stages or getattr(model, "has_class_token", True) is False:
            raise ValueError(f"`teacher` {name} is no ViT with a class token and patches; use one that is.")
        self.interpolated = _interpolated(model, seen)
        grid, wanted = (tuple(a // b for a, b in zip(*pair)) for pair in ((seen, own), (images.size, patch)))
        self.patches = grid[0] * grid[1]
        # Asked before its grid is compared: sizes that fit are told of what gives tokens of its grid only.
        self.shape = self._probed(seen, images) if self.patches else (0, 0)
        if grid != wanted:
            raise ValueError(_unlike(name, grid, seen, own, wanted, images.size, patch, resized))

    def _probed(self, seen: tuple[int, int], images: Preprocessing) -> tuple[int, int]:
        """(t, D) of what it says of a black picture.

        Raises:
            ValueError: it takes none of the size `seen`, (h, w) in pixels, or its tokens are no normed ones.
        """
        black = torch.zeros(1, images.mean.shape[1], *images.size, device=images.device)
        try:
            with _outputs_of_norms(self.model) as normed:
                probe = self({"pixel_values": black})
        except (ValueError, RuntimeError, TypeError, AttributeError, AssertionError) as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"`teacher` {self.name} takes no pictures of {seen[0]}x{seen[1]} pixels: {said}"
            ) from None
        found = probe[:, -self.patches :]
        if not any(torch.equal(one[:, -self.patches :].float(), found) for one in normed if one.dim() == 3):
            raise ValueError(
                f"`teacher` {self.name} norms no tokens but their mean, or none at all, and a student learns normed "
                "ones; use an encoder whose last LayerNorm gives the tokens."
            )
        return tuple(probe.shape[1:])

    @property
    def width(self) -> int:
        """D, channels."""
        return self.shape[1]

    def answer(self, values: torch.Tensor) -> torch.Tensor:
        """(b, 3, h, w) -> tokens (b, t, D)."""
        if hasattr(self.model, "forward_features"):  # of timm
            tokens = self.model.forward_features(values)
        else:
            tokens = normed_tokens(self.model, self.model(pixel_values=values, **self.interpolated))
        if tokens.dim() != 3 or tokens.shape[1] <= self.patches:
            raise ValueError(f"it gives {tuple(tokens.shape)}, no class token and {self.patches} patches.")
        return torch.cat((tokens[:, :1], tokens[:, -self.patches :]), dim=1)


def load_encoder(
    name: str, images: Preprocessing, patch: tuple[int, int], size: int = 0, resized: str = "`image_size`"
) -> Encoder:
    """An encoder by name.

    Args:
        name: `timm:NAME`, or a transformers name or folder (a bundle too, at full size); one that brings no
            preprocessing sees the student's pixels.
        images: the student's.
        patch: (h, w), pixels, of the student.
        size: pixels, height and width, of what it sees; 0 is what its own preprocessing says.
        resized: as of an `Encoder`.

    Raises:
        ValueError: it cannot be loaded, gives no tokens, or another number of patches than the student has.
        ImportError: timm is missing; the message says what to install.
    """
    with quiet_loading():
        if name.startswith(TIMM):
            loaded = timm_model(name, num_classes=0, **({"img_size": size} if size else {}))
        else:
            pixels = None, images.processor.image_mean, images.processor.image_std
            loaded = transformers_model(name, AutoEncoder, unread=POOLER, otherwise=pixels)
    model, own, mean, std = loaded
    return Encoder(model, (size, size) if size else own, mean, std, images, name, patch, resized)


def bundle_encoder(name: str, images: Preprocessing, patch: tuple[int, int]) -> Encoder:
    """A bundle at full size that sees the very pixels of the student: the start of a run as its own teacher.

    Args:
        name: folder or name on the Hub.
        images, patch: the student's.
    """
    with quiet_loading():
        model = AutoModel.from_pretrained(os.path.expanduser(name), dtype=torch.float32)
    return Encoder(model, None, images.processor.image_mean, images.processor.image_std, images, name, patch)


def stated_width(name: str) -> int | None:
    """D, channels, of an encoder by name, as its configuration states them; None where only the model tells.

    Raises:
        ValueError: nothing is there.
    """
    check_teacher(name)
    if name.startswith(TIMM):
        return None
    with suppress(OSError, ValueError):  # told when it is loaded
        return getattr(tower_config(AutoConfig.from_pretrained(os.path.expanduser(name))), "hidden_size", None)
    return None


def patch_of(model: nn.Module) -> tuple[int, int] | None:
    """(h, w) of a model's patches, pixels; None of a model that has none."""
    embedding = getattr(model, "patch_embed", None)  # of timm
    size = getattr(model.config if embedding is None and hasattr(model, "config") else embedding, "patch_size", None)
    return (size, size) if isinstance(size, int) else tuple(size) if size else None


@contextmanager
def _outputs_of_norms(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What the normalisations of a model give while it is asked within the context, one after the other."""
    given: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, asked, output: given.append(output))
        for module in model.modules()
        if "Norm" in type(module).__name__
    ]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def _interpolated(model: nn.Module, seen: tuple[int, int]) -> dict[str, bool]:
    """The keyword with which a model of transformers takes pictures of another size than its own."""
    own = getattr(getattr(model, "config", None), "image_size", None)
    own = (own, own) if isinstance(own, int) else own and tuple(own)
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if takes and own != seen else {}


def _unlike(name: str, grid: Grid, seen: Grid, own: Grid, wanted: Grid, size: Grid, patch: Grid, resized: str) -> str:
    """What is said of two grids; pairs of rows and columns, of patches and pixels."""
    fits = [tuple(a * b for a, b in zip(*pair)) for pair in ((grid, patch), (wanted, own))]
    shown = [f"{rows}x{columns}" for rows, columns in (grid, seen, wanted, size, *fits)]
    ways = []
    if resized and 0 not in grid:
        ways.append(f"the student sees {shown[4]} pixels ({resized})")
    if fits[1][0] == fits[1][1]:
        ways.append(f"the teacher {'sees ' * (not ways)}{shown[5]} (`teacher_size` {fits[1][0]})")
    way = f"They fit where {', or '.join(ways)}." if ways else "Use a teacher of the student's grid."
    return (
        f"`teacher` {name} has {shown[0]} patches of its {shown[1]} pixels, and the student {shown[2]} of {shown[3]}: "
        f"there must be as many. {way}"
    )
