"""A ViT or a DINOv2 of timm in the names of a bundle, and back: the arguments that make it, and its tensors."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..configuration_lingene import LinGeneConfig
from .from_transformers import scaled
from .sources import Source
from .timm_swin import PARTS, QKV


VIT = "VisionTransformer"
VIT_KINDS = {
    "": VIT,
    "patch_embed": "PatchEmbed",
    "patch_embed.proj": "Conv2d",
    "patch_embed.norm": "Identity",
    "pos_drop": "Dropout",
    "patch_drop": "Identity PatchDropout",
    "norm_pre": "Identity",
    "blocks": "Sequential",
    "blocks.*": "Block",
    "blocks.*.norm1": "LayerNorm",
    "blocks.*.norm2": "LayerNorm",
    "blocks.*.attn": "Attention",
    "blocks.*.attn.qkv": "Linear",
    "blocks.*.attn.proj": "Linear",
    "blocks.*.attn.q_norm": "Identity",
    "blocks.*.attn.k_norm": "Identity",
    "blocks.*.attn.norm": "Identity",
    "blocks.*.attn.attn_drop": "Dropout",
    "blocks.*.attn.proj_drop": "Dropout",
    "blocks.*.ls1": "Identity LayerScale",
    "blocks.*.ls2": "Identity LayerScale",
    "blocks.*.drop_path1": "Identity DropPath",
    "blocks.*.drop_path2": "Identity DropPath",
    "blocks.*.mlp": "Mlp GluMlp",
    "blocks.*.mlp.fc1": "Linear",
    "blocks.*.mlp.fc2": "Linear",
    "blocks.*.mlp.act": "GELU GELUTanh QuickGELU ReLU SiLU",
    "blocks.*.mlp.norm": "Identity",
    "blocks.*.mlp.drop1": "Dropout",
    "blocks.*.mlp.drop2": "Dropout",
    "norm": "LayerNorm",
    "fc_norm": "Identity",
    "head_drop": "Dropout",
    "head": "Identity Linear",
}
ACTIVATIONS = {
    "GELU": "gelu",
    "GELUTanh": "gelu_pytorch_tanh",
    "QuickGELU": "quick_gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}
GATED_PARTS = ("mlp.gate", "mlp.fc1")
PUBLISHED = {r"\.gamma_([12])$": r".ls\1.gamma", r"\.mlp\.w12\.": ".mlp.fc1.", r"\.mlp\.w3\.": ".mlp.fc2."}
SCALES = {"attention.output": "ls1.gamma", "mlp.fc2": "ls2.gamma"}
OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}


def check_vit(name: str, model: nn.Module, head_matters: bool) -> None:
    """Refuse what no module of a timm ViT shows.

    Raises:
        ValueError: names the first option that a bundle cannot express.
    """
    refused = {
        "class_token": (not model.has_class_token, "a model without a class token"),
        "pos_embed": (model.pos_embed is None, "no learned position embeddings"),
        "global_pool": (
            head_matters and model.global_pool != "token",
            f"{model.global_pool!r} pooling in a classifier",
        ),
    }
    for option, (wrong, what) in refused.items():
        if wrong:
            raise ValueError(f"`{option}` of {name}: {what} cannot be expressed by a bundle.")
    attention = model.blocks[0].attn
    if attention.head_dim * attention.num_heads != model.embed_dim or attention.scale != attention.head_dim**-0.5:
        raise ValueError(f"`attn` of {name}: heads that do not divide the channels cannot be expressed by a bundle.")
    mlp = model.blocks[0].mlp
    if is_gated(mlp) and _family(model) == "vit":
        raise ValueError(f"`mlp` of {name}: a gated MLP, which ViTs of transformers have not, cannot be expressed.")
    if is_gated(mlp) and (mlp.gate_last or type(mlp.act).__name__ != "SiLU"):
        raise ValueError(
            f"`mlp` of {name}: a gated MLP of another kind than DINOv2's cannot be expressed by a bundle."
        )
    if model.blocks[0].attn.proj.bias is None:
        raise ValueError(f"`proj_bias` of {name}: projections without biases cannot be expressed by a bundle.")


def is_gated(mlp: nn.Module) -> bool:
    """Whether an MLP of timm has a gate: one map with its units in GluMlp, a map of its own in SwiGLU."""
    return type(mlp).__name__ in ("GluMlp", "SwiGLU")


def _family(model: nn.Module) -> str:
    """The family whose stock classes give what a timm model gives."""
    if model.num_reg_tokens:
        return "dinov2_with_registers"
    return "dinov2" if "dinov2" in str(model.pretrained_cfg.get("architecture")) else "vit"


def vit_config(model: nn.Module) -> LinGeneConfig:
    """The configuration of a bundle of as many components as layers."""
    block, (height, width) = model.blocks[0], model.patch_embed.img_size
    labels = {"num_labels": model.num_classes} if model.num_classes else {}
    patch_height, patch_width = model.patch_embed.patch_size
    return LinGeneConfig(
        hidden_size=model.embed_dim,
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc2.in_features,
        gated_mlp=is_gated(block.mlp),
        hidden_act=ACTIVATIONS[type(block.mlp.act).__name__],
        layer_norm_eps=block.norm1.eps,
        image_size=height if height == width else [height, width],
        patch_size=patch_height if patch_height == patch_width else [patch_height, patch_width],
        num_channels=model.patch_embed.proj.in_channels,
        qkv_bias=block.attn.qkv.bias is not None,
        family=_family(model),
        num_register_tokens=model.num_reg_tokens,
        depth=len(model.blocks),
        **labels,
    )


def vit_outside(
    tensors: Mapping[str, torch.Tensor], model: nn.Module, config: LinGeneConfig
) -> dict[str, torch.Tensor]:
    """What lies outside the blocks; zero what timm has not: a mask token, what a head would read of the patches."""
    own = {key: tensors[theirs] for key, theirs in OUTSIDE.items()}
    positions = tensors["pos_embed"]
    if model.no_embed_class:  # nothing is added to the class token
        positions = functional.pad(positions, (0, 0, 1, 0))
    if model.num_reg_tokens:
        own["embeddings.register_tokens"] = tensors["reg_token"]
    if model.num_reg_tokens and not model.no_embed_class:  # registers have positions, which bundles add to them
        class_position, registers, patches = positions.tensor_split((1, 1 + model.num_reg_tokens), dim=1)
        own["embeddings.register_tokens"] = own["embeddings.register_tokens"] + registers
        positions = torch.cat((class_position, patches), dim=1)
    own["embeddings.position_embeddings"] = positions
    if model.num_classes:
        own |= {f"classifier.{kind}": tensors[f"head.{kind}"] for kind in ("weight", "bias")}
    shapes = config.shared_shapes() | (config.head_shapes() if model.num_classes else {})
    return own | {key: torch.zeros(shape) for key, shape in shapes.items() if key not in own}


def vit_layer(tensors: Mapping[str, torch.Tensor], size: int, name: str, layer: int) -> torch.Tensor:
    """One block tensor of one layer; q, k, v are thirds of one matrix, a gate and its units halves of one."""
    part, _, kind = name.rpartition(".")
    if part in QKV:
        start = QKV.index(part) * size
        return tensors[f"blocks.{layer}.attn.qkv.{kind}"][start : start + size]
    if part in GATED_PARTS:
        both, units = tensors[f"blocks.{layer}.mlp.fc1.{kind}"], tensors[f"blocks.{layer}.mlp.fc2.weight"].shape[1]
        return both if len(both) == units else both.chunk(2)[GATED_PARTS.index(part)]
    tensor = tensors[f"blocks.{layer}.{PARTS[part]}.{kind}"]
    scale = tensors.get(f"blocks.{layer}.{SCALES[part]}") if part in SCALES else None
    return tensor if scale is None else scaled(tensor, scale)


def today(name: str) -> str:
    """A tensor's name as DeiT III or DINOv2's giants were published -> timm's."""
    for pattern, theirs in PUBLISHED.items():
        name = re.sub(pattern, theirs, name)
    return name


def vit_shape(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """What its tensors say of a ViT's shape, in timm's words; nothing where they are of none."""
    blocks = {int(found[1]) for key in tensors if (found := re.match(r"blocks\.(\d+)\.", key))}
    return {"depth": len(blocks)} if blocks else {}


def vit_arguments(source: Source) -> dict[str, Any]:
    """Of `timm.create_model`.

    Raises:
        ValueError: an activation that timm has not.
    """
    config, activations = source.config, {own: name for name, own in ACTIVATIONS.items()}
    names = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu", "SiLU": "silu"}
    if config.hidden_act not in activations:
        raise ValueError(f"`hidden_act` {config.hidden_act} is no activation that timm has; export to another format.")
    family, arguments = config.stands_for, {}
    if family.interpolates:  # timm, unlike stock DINOv2, takes averages always
        arguments["dynamic_img_size"] = family.antialias
    if family.registers:
        arguments |= {"reg_tokens": config.num_register_tokens, "no_embed_class": True}
    return arguments | {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "num_classes": config.num_labels if source.head else 0,
        "embed_dim": config.hidden_size,
        "depth": source.depth,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": 2 * mlp_ratio(config) if config.gated_mlp else mlp_ratio(config),
        "qkv_bias": config.qkv_bias,
        "act_layer": names[activations[config.hidden_act]],
    }


def mlp_ratio(config: LinGeneConfig) -> float:
    """Such that timm, which rounds the product with the channels down, has as many MLP units."""
    ratio = config.intermediate_size / config.hidden_size
    exact = int(config.hidden_size * ratio) == config.intermediate_size
    return ratio if exact else math.nextafter(ratio, math.inf)


def vit_state(source: Source) -> dict[str, torch.Tensor]:
    """A source's tensors in timm's names, queries, keys and values in one matrix.

    Raises:
        ValueError: a head that timm has not.
    """
    if source.head and source.outside.get("classifier.patch_weight", torch.zeros(1)).any():
        raise ValueError(
            f"`classifier` of family {source.config.family} reads the mean of the patches beside the class token, "
            "which no head of timm does; export to another format."
        )
    state = {theirs: source.outside[own] for own, theirs in OUTSIDE.items()}
    state["pos_embed"] = source.outside["embeddings.position_embeddings"]
    if source.config.stands_for.registers:  # timm's class token has no position where there are registers
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
        state["reg_token"] = source.outside["embeddings.register_tokens"]
    kinds = {name.rpartition(".")[::2] for name in source.config.component_shapes()}
    for layer in range(source.depth):
        for part, theirs in PARTS.items():
            for kind in ("weight", "bias"):
                state[f"blocks.{layer}.{theirs}.{kind}"] = source.block(f"{part}.{kind}", layer)
        for kind in ("weight", "bias"):
            if (QKV[0], kind) in kinds:
                parts = [source.block(f"{part}.{kind}", layer) for part in QKV]
                state[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
            if source.config.gated_mlp:
                parts = [source.block(f"{part}.{kind}", layer) for part in GATED_PARTS]
                state[f"blocks.{layer}.mlp.fc1.{kind}"] = torch.cat(parts)
        for part in source.config.stands_for.scales:
            state[f"blocks.{layer}.{SCALES[part]}"] = torch.ones(source.config.hidden_size)
    if source.head:
        state |= {f"head.{kind}": source.outside[f"classifier.{kind}"] for kind in ("weight", "bias")}
    return {key: tensor.clone() for key, tensor in state.items()}
