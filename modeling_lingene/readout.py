"""The tokens of a bundle whose channels were turned (`convert --sort`), in those of its source."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig

from .beside_lingene import NobodyKnows, file_beside
from .bundle_lingene import READOUT_FILE
from .configuration_base_lingene import BUNDLE_TYPES
from .found import TIMM, TIMM_LOCAL
from .recompose_lingene import channels_kept


ORIGINS = ("materialised_from", "pruned_from")  # where the configuration of a model says what it was made of
TURNED = (  # of cards
    "Its tokens are in other channels than those of the checkpoint that it was made of: `tokens @ weight.T + bias` "
    f"brings them back, of `{READOUT_FILE}` where it lies here."
)
Readout = tuple[torch.Tensor, torch.Tensor]  # weight (d, k) and bias (d,); k is d but for a narrow size


def read_readout(name: str | os.PathLike, **hub) -> Readout | None:
    """What makes of a bundle's tokens those of the source that it was converted from, where its channels were turned.

    Args:
        name: folder or name on the Hub; a size that was saved plain has it too, as has a folder of timm, by
            `timm:local-dir:FOLDER`.
        hub: what `cached_file` takes: revision, token, ...

    Returns:
        None where the channels are the source's own.

    Raises:
        ValueError: the file is damaged, or nobody can say whether there is one.
    """
    name = str(name)
    if name.startswith(TIMM):
        name = name.removeprefix(TIMM + TIMM_LOCAL)
        if name.startswith(TIMM):  # a network of timm's own
            return None
    try:
        path = file_beside(name, READOUT_FILE, **hub)
    except NobodyKnows:
        if _may_be_turned(name, hub):
            raise
        return None
    if path is None:
        return None
    try:
        held = load_file(path)
        weight, bias = held["weight"], held["bias"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"`{READOUT_FILE}` of {name} is damaged ({error}); convert again.") from None
    if weight.ndim != 2 or weight.shape[0] != len(bias) or weight.shape[1] > len(bias):
        raise ValueError(f"`{READOUT_FILE}` of {name} has a weight of {tuple(weight.shape)}; convert again.")
    return weight, bias


def _may_be_turned(name: str | os.PathLike, hub: dict) -> bool:
    """Whether a model is a bundle, or was made of one, by its configuration; others have channels of their own."""
    config = _config_dict(name, hub)
    return config is None or config.get("model_type") in BUNDLE_TYPES or any(field in config for field in ORIGINS)


def _config_dict(name: str | os.PathLike, hub: dict) -> dict | None:
    with suppress(OSError, ValueError):
        return PretrainedConfig.get_config_dict(name, **hub)[0]
    return None


def is_turned(config: Mapping[str, Any]) -> bool:
    """Whether a configuration, as config.json has it, says that channels were turned: of a bundle, of a size of one
    that a stock class saved, or of what was pruned."""
    origins = [config.get(name) for name in ORIGINS]
    return bool(
        config.get("turned") or any(isinstance(origin, Mapping) and origin.get("turned") for origin in origins)
    )


def known_readout(name: str | os.PathLike) -> Readout | None:
    """`read_readout` for whoever compares channel by channel.

    Raises:
        ValueError: as there; the channels were turned, and what brings them back is missing.
    """
    readout = read_readout(name)
    if readout is None and is_turned(_config_dict(name, {}) or {}):
        raise ValueError(
            f"{name} has channels that were turned (`convert --sort`), and lacks `{READOUT_FILE}`, which brings them "
            "back: they compare with nobody's. Write it again with `lingene materialise` or `convert`, which keep "
            "that file; at full width a copy of the file of the bundle that it is of does."
        )
    return readout


def write_readout(folder: str | os.PathLike, readout: Readout | None, model: nn.Module | None = None) -> None:
    """`readout.safetensors` of a folder; nothing where there is none.

    Args:
        model: the size in it; default one of full width.
    """
    if readout is not None:
        weight, bias = (tensor.float() for tensor in readout)
        width = getattr(getattr(model, "config", None), "hidden_size", weight.shape[1])
        weight = weight[:, channels_kept(weight.shape[1], width, is_trailing(model))]
        save_file({"weight": weight.contiguous(), "bias": bias.contiguous()}, Path(folder) / READOUT_FILE)


def is_trailing(model: nn.Module | None) -> bool:
    """Whether a model is a size that holds the trailing channels of its bundle, not the leading ones."""
    return getattr(getattr(model, "source_size", None), "trailing", False)


def chained(*readouts: Readout | None) -> Readout | None:
    """What brings tokens back through several turns, the latest first; None where there is none."""
    whole = None
    for readout in readouts:
        if readout is None or whole is None:
            whole = readout or whole
            continue
        (weight, bias), (later, shift) = ((part.double() for part in one) for one in (readout, whole))
        whole = weight @ later, weight @ shift + bias
    return whole


def brought_back(
    tokens: tuple[torch.Tensor, torch.Tensor], readout: Readout | None, trailing: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and patch tokens (..., k) in the source's channels (..., d); what a narrow size lacks counts as zero.

    Args:
        trailing: whether a narrow size holds the trailing channels.
    """
    if readout is None:
        return tokens
    weight, bias = (tensor.to(tokens[0]) for tensor in readout)
    kept = [weight[:, channels_kept(weight.shape[1], part.shape[-1], trailing)] for part in tokens]
    return tuple(part @ own.T + bias for part, own in zip(tokens, kept))
