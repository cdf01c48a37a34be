"""A ViT, or DINOv2, in timm's words: the arguments that make it, and its tensors."""

import math
from typing import Any

import torch

from ..configuration_lingene import LinGeneConfig
from .from_timm import ACTIVATIONS, OUTSIDE, SCALES
from .sources import Source
from .timm_swin import PARTS, QKV


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
        "mlp_ratio": mlp_ratio(config),
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
        for part in source.config.stands_for.scales:
            state[f"blocks.{layer}.{SCALES[part]}"] = torch.ones(source.config.hidden_size)
    if source.head:
        state |= {f"head.{kind}": source.outside[f"classifier.{kind}"] for kind in ("weight", "bias")}
    return {key: tensor.clone() for key, tensor in state.items()}
