"""Checkpoints of timm's Vision Transformers: `vit_*`, `deit_*`, `deit3_*`, whatever they were trained by; those with
register tokens become bundles of DINOv2's family with registers, `*_dinov2` of DINOv2's, `*_dinov3*` of DINOv3's.

The named model is built without memory and walked: every module, and every option that is no module, must stand on the
lists here, or is refused by name. What is only of use in training (dropout, stochastic depth) changes nothing.
"""

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..configuration_base_lingene import BundleConfig
from ..extras import require
from ..found import TIMM, check_timm_within_reach
from ..images.batches import image_processor
from . import timm_dinov3, timm_swin, timm_vit
from .sources import Source, check_tensors, read_tensors, shown


PLAIN = {
    "norm_pre": "a norm before the blocks",
    "fc_norm": "average pooling with its own norm",
    "norm": "a final norm after pooling, or none",
    "attn_pool": "attention pooling",
    "patch_embed": "a stem of another kind",
    "patch_embed.backbone": "a hybrid, convolutional stem",
    "blocks.*": "blocks of another kind (parallel, post-norm, relative positions)",
    "blocks.*.attn": "attention of another kind",
    "blocks.*.attn.q_norm": "a norm on queries",
    "blocks.*.attn.k_norm": "a norm on keys",
    "blocks.*.attn.norm": "a norm on attention's output",
    "blocks.*.mlp": "an MLP of another kind",
    "blocks.*.mlp.norm": "a norm within the MLP",
    "head_dist": "a distillation token",
}
ANCHOR = "patch_embed.proj.weight"  # every Vision Transformer of timm has it
PIL_RESAMPLING = {"bilinear": 2, "bicubic": 3}
UNASKED = "the classifier was not asked for"
LEFT_OUT = {"mask_token": "only masked pretraining reads it"}


@dataclass(frozen=True)
class Layout:
    """How one of timm's classes of models is laid out.

    Args:
        kinds: path of a module, numbers as `*` -> the names of the classes that may stand there.
        classifier: path of the linear map to the classes.
        check: refuses options that no module shows: (name, model, whether its head matters).
        config: (model, stages) -> the configuration of a bundle.
        outside, block: the tensors, see `Source`, of (tensors, model, configuration) and (tensors, model).
        shape: (tensors) -> what they say of the network, as arguments of `timm.create_model`; of no such network
            nothing.
        left_out: ends of tensors' names with no place in a bundle -> why that changes nothing.
        today: a tensor's name as it was published -> timm's.
    """

    kinds: Mapping[str, str]
    classifier: str
    check: Callable[[str, nn.Module, bool], None]
    config: Callable[[nn.Module, Sequence[int]], BundleConfig]
    outside: Callable[[Mapping[str, torch.Tensor], nn.Module, BundleConfig], dict[str, torch.Tensor]]
    block: Callable[[Mapping[str, torch.Tensor], nn.Module], Callable[[str, int], torch.Tensor]]
    shape: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    today: Callable[[str], str] = str


def read_timm(
    name: str,
    weights: str | None = None,
    prefix: str | None = None,
    headless: bool = False,
    stages: Sequence[int] = (),
    model_args: Mapping[str, Any] | None = None,
) -> Source:
    """A model by `timm:NAME`, its weights from a file or, without one, where timm finds them.

    Args:
        name: `timm:vit_base_patch16_224`, also `timm:local-dir:FOLDER`.
        weights: safetensors file or state dict saved by torch, in timm's names.
        prefix: of the network's tensors in the file, where it holds several.
        headless: leave a classifier out, whatever it is.
        stages: of a Swin, counted from 1: those whose layers become components; default the deepest.
        model_args: of `timm.create_model`, where the weights are of another shape than the name says: `depth`,
            `embed_dim`, `num_heads`, ..., of a Swin `depths` and its own.

    Raises:
        ValueError: whatever of it a bundle cannot express, by name; weights of another shape.
        ImportError: timm is missing; the message says what to install.
    """
    architecture, given = name.removeprefix(TIMM), dict(model_args or {})
    if given and weights is None:
        raise ValueError(f"`model_args` describes the network of a file: give it with --weights; {name} has its own.")
    if weights is None or ":" in architecture:  # `hf-hub:NAME`, whose shape is there too
        check_timm_within_reach("source", name, require("timm"), "; give a file with --weights" * (weights is None))
    bare = _built(name, architecture, **given)
    layout = check_model(name, bare, head_matters=False)
    if stages and layout.kinds is not timm_swin.SWIN_KINDS:
        raise ValueError(f"`stages` are of a network that has some, and {name} is a Vision Transformer.")
    if weights is None:
        tensors, left_out = _downloaded(name, architecture), {}
    else:
        tensors, left_out = _own_tensors(read_tensors(weights), str(weights), prefix, layout.today)
        _check_shape(name, bare, tensors, str(weights), layout.shape)
    dropped = {key: UNASKED for key in tensors if headless and key.startswith("head.")}
    dropped |= {key: why for key in tensors for end, why in layout.left_out.items() if key.endswith(end)}
    tensors = {key: tensor for key, tensor in tensors.items() if key not in dropped}
    options = {**given, "num_classes": len(tensors.get(f"{layout.classifier}.weight", ()))}
    model = _built(name, architecture, **options)
    if "pos_embed" in tensors:
        options |= _image_size(model, tensors["pos_embed"].shape[1], name)
        model = _built(name, architecture, **options)
    check_model(name, model, head_matters=options["num_classes"] > 0)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    expected = {key: shape for key, shape in expected.items() if not key.endswith(tuple(layout.left_out))}
    unknown = sorted(tensors.keys() - expected.keys())
    if unknown:
        raise ValueError(f"{shown(unknown)} of {weights or name} is not of {architecture}, or cannot be expressed.")
    check_tensors(tensors, expected, str(weights or name))
    config = layout.config(model, stages)
    return Source(
        name=name,
        config=config,
        head=model.num_classes > 0,
        outside=layout.outside(tensors, model, config),
        block=layout.block(tensors, model),
        left_out={**left_out, **dropped},
        reference=partial(_reference, architecture, options, tensors),
        processor=_processor(model),
    )


def _built(name: str, architecture: str, **options) -> nn.Module:
    """The model without memory."""
    timm = require("timm")
    try:
        with torch.device("meta"):
            return timm.create_model(architecture, pretrained=False, **options).eval()
    except Exception as error:  # timm raises RuntimeError, TypeError, AssertionError, and the Hub's errors
        raise ValueError(f"`source` {name} cannot be built: {str(error).splitlines()[0]}") from None


def check_model(name: str, model: nn.Module, head_matters: bool) -> Layout:
    """Holds a timm model against the lists above, or those of another layout.

    Raises:
        ValueError: names the first module or option that a bundle cannot express.
    """
    layout = LAYOUTS.get(type(model).__name__, LAYOUTS[timm_vit.VIT])
    for path, module in model.named_modules():
        place = re.sub(r"(^|\.)(blocks|layers)\.\d+", r"\1\2.*", path)
        kind = type(module).__name__
        if kind not in layout.kinds.get(place, "").split():
            why = f" ({PLAIN[place]})" if place in PLAIN else ""
            named = f"`{path}` of {name}" if path else name
            raise ValueError(f"{named} is {kind}{why}, which a bundle cannot express.")
    if layout.kinds is not timm_swin.SWIN_KINDS:
        _check_margins(name, model.patch_embed)
    layout.check(name, model, head_matters)
    return layout


def _check_margins(name: str, embed: nn.Module) -> None:
    """Refuse where timm pads or takes no images that are no multiple of a patch: transformers cuts their margins."""
    if embed.dynamic_img_pad:
        raise ValueError(f"`dynamic_img_pad` of {name}: images that are padded cannot be expressed by a bundle.")
    if not embed.strict_img_size and any(side % step for side, step in zip(embed.img_size, embed.patch_size)):
        size, patch = ("x".join(map(str, pair)) for pair in (embed.img_size, embed.patch_size))
        raise ValueError(f"`img_size` of {name}: timm takes no images of {size}, no multiple of patches of {patch}.")


def _downloaded(name: str, architecture: str) -> dict[str, torch.Tensor]:
    timm = require("timm")
    try:
        return dict(timm.create_model(architecture, pretrained=True).state_dict())
    except Exception as error:
        raise ValueError(
            f"`source` {name} has no weights within reach ({str(error).splitlines()[0]}); give a file with --weights."
        ) from None


def _own_tensors(
    tensors: Mapping[str, torch.Tensor], name: str, prefix: str | None, today: Callable[[str], str]
) -> tuple[dict, dict[str, str]]:
    """The tensors of one network in timm's names, and what else the file held."""
    prefixes = sorted(key.removesuffix(ANCHOR) for key in tensors if key.endswith(ANCHOR))
    if prefix is not None and prefix not in prefixes:
        raise ValueError(f"`prefix` {prefix!r} leads to no network in {name}; known are {shown(prefixes)}.")
    if prefix is None and len(prefixes) != 1:
        found = f"several networks: {shown(prefixes)}; choose one with --prefix" if prefixes else f"no `{ANCHOR}`"
        raise ValueError(f"`weights` {name} holds {found}.")
    chosen = prefixes[0] if prefix is None else prefix
    own, left_out = {}, {}
    for key, tensor in tensors.items():
        bare = key.removeprefix(chosen)
        if not key.startswith(chosen):
            left_out[key] = f"not of the network {chosen!r}"
        elif bare in LEFT_OUT:
            left_out[key] = LEFT_OUT[bare]
        else:
            own[today(bare)] = tensor
    return own, left_out


def _check_shape(
    name: str, model: nn.Module, tensors: Mapping[str, torch.Tensor], weights: str, shape: Callable
) -> None:
    """Refuse weights of a network of another depth, width or patch than the name's; says what to ask for.

    Args:
        shape: of the layout: (tensors) -> arguments of `timm.create_model`.
    """
    if tensors[ANCHOR].dim() != 4:  # no network of any shape, as will be told
        return
    found, known = ({**shape(one), **_patches(one[ANCHOR])} for one in (tensors, model.state_dict()))
    if found.keys() != known.keys():
        return
    others = [key for key, value in found.items() if value != known[key]]
    if others:
        told = ", ".join(f"{key} {found[key]} in place of {known[key]}" for key in others)
        args = shlex.quote(",".join(f"{key}={found[key]}".replace(" ", "") for key in others))
        unsaid = "img_size" if "num_heads" in found else "num_heads" if "embed_dim" in others else ""  # by any tensor
        more = f", with {unsaid} where that differs too" if unsaid else ""
        raise ValueError(
            f"`weights` {weights} is of another shape than {name} ({told}): say so with --model-args {args}{more}."
        )


def _patches(anchor: torch.Tensor) -> dict[str, int]:
    width, channels, height, _ = anchor.shape
    return {"embed_dim": width, "in_chans": channels, "patch_size": height}


def _image_size(model: nn.Module, positions: int, name: str) -> dict[str, tuple[int, int]]:
    """The image size that the positions are for, where it is not the one that the name stands for."""
    count = positions - (0 if model.no_embed_class else model.num_prefix_tokens)
    if count == model.patch_embed.num_patches:
        return {}
    side = math.isqrt(max(count, 0))
    if side * side != count:
        raise ValueError(f"`pos_embed` of {name} holds {count} positions of patches, which are no square.")
    height, width = model.patch_embed.patch_size
    return {"img_size": (side * height, side * width)}


def _reference(
    architecture: str, options: dict, tensors: Mapping[str, torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model in timm's own class."""
    timm = require("timm")
    model = timm.create_model(architecture, pretrained=False, **options).eval()
    load_all(model, tensors)
    return partial(_outputs, model)


def load_all(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load every parameter; the buffers of windows follow from a model's own arguments."""
    buffers = {name for name, _ in model.named_buffers()}
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in buffers}
    model.load_state_dict({**kept, **tensors}, strict=True)


@torch.no_grad()
def _outputs(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    features = model.forward_features(pixel_values)
    if model.num_classes:
        return model.forward_head(features).float()
    return (features.mean(dim=(1, 2)) if features.dim() == 4 else features[:, 0]).float()


def _processor(model: nn.Module) -> Any:
    """Size, mean, standard deviation, interpolation of the name; a ViT's processor knows no crop."""
    said = model.pretrained_cfg
    processor = image_processor(tuple(model.patch_embed.img_size), model.patch_embed.proj.in_channels)
    if len(processor.image_mean) == len(said["mean"]):  # timm names three also for one channel
        processor.image_mean, processor.image_std = list(said["mean"]), list(said["std"])
    processor.resample = PIL_RESAMPLING.get(said.get("interpolation"), PIL_RESAMPLING["bicubic"])
    return processor


LAYOUTS = {
    timm_vit.VIT: Layout(
        kinds=timm_vit.VIT_KINDS,
        classifier="head",
        check=timm_vit.check_vit,
        config=lambda model, stages: timm_vit.vit_config(model),
        outside=timm_vit.vit_outside,
        block=lambda tensors, model: partial(timm_vit.vit_layer, tensors, model.embed_dim),
        shape=timm_vit.vit_shape,
        today=timm_vit.today,
    ),
    timm_dinov3.EVA: Layout(
        kinds=timm_dinov3.EVA_KINDS,
        classifier="head",
        check=timm_dinov3.check_dinov3,
        config=lambda model, stages: timm_dinov3.dinov3_config(model),
        outside=lambda tensors, model, config: timm_dinov3.dinov3_outside(tensors, config),
        block=lambda tensors, model: partial(timm_dinov3.dinov3_layer, tensors, model.embed_dim),
        shape=lambda tensors: timm_vit.vit_shape(tensors) | timm_dinov3.dinov3_biases(tensors),
    ),
    timm_swin.SWIN: Layout(
        kinds=timm_swin.SWIN_KINDS,
        classifier="head.fc",
        check=timm_swin.check_swin,
        config=lambda model, stages: timm_swin.swin_config(model, timm_vit.ACTIVATIONS, stages),
        outside=lambda tensors, model, config: timm_swin.swin_outside(tensors, config, model.num_classes > 0),
        block=lambda tensors, model: partial(timm_swin.swin_layer, tensors),
        shape=timm_swin.swin_shape,
        left_out=timm_swin.SWIN_LEFT_OUT,
    ),
}
