"""timm's DINOv3 in the names of a bundle, and back.

It is of timm's class Eva, which is many other networks too: taken are those that are a `DINOv3ViTModel` of
transformers. Queries, keys and values are one matrix there, and keys have no biases.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..configuration_lingene import LinGeneConfig
from .from_transformers import scaled
from .sources import Source
from .timm_swin import PARTS, QKV
from .timm_vit import ACTIVATIONS, OUTSIDE, VIT_KINDS, is_gated


EVA = "Eva"
EVA_KINDS = {path: kinds for path, kinds in VIT_KINDS.items() if not path.startswith("blocks.*.ls")} | {
    "": EVA,
    "patch_drop": "PatchDropoutWithIndices",
    "rope": "RotaryEmbeddingDinoV3",
    "blocks": "ModuleList",
    "blocks.*": "EvaBlock",
    "blocks.*.attn": "EvaAttention",
    "blocks.*.mlp": "Mlp SwiGLU",
    "blocks.*.mlp.fc1_g": "Linear",
    "blocks.*.mlp.fc1_x": "Linear",
}
REGISTERS = "reg_token"  # where there are any
BIASES = {"attention.query.bias": "attn.q_bias", "attention.value.bias": "attn.v_bias"}
GATED_PARTS = {"mlp.gate": "mlp.fc1_g", "mlp.fc1": "mlp.fc1_x"}
SCALES = {"attention.output": "gamma_1", "mlp.fc2": "gamma_2"}
# Of the rotary embedding, and what another value would mean.
ROTARY = {
    "rotate_half": (True, "pairs of neighbouring channels"),
    "normalize_coords": ("separate", "places in shares of one side"),
    "grid_offset": (0.0, "an offset of places"),
    "grid_indexing": ("ij", "width before height"),
    "min_period": (None, "periods between two bounds"),
    "max_period": (None, "periods between two bounds"),
}


def check_dinov3(name: str, model: nn.Module, head_matters: bool) -> None:
    """Refuse what no module of a timm DINOv3 shows.

    Raises:
        ValueError: names the first option that a bundle cannot express.
    """
    attention = model.blocks[0].attn
    wrong = {
        "use_rot_pos_emb": (model.rope is None, "no rotary positions"),
        "use_abs_pos_emb": (model.pos_embed is not None, "positions that are added beside rotary ones"),
        "class_token": (model.cls_token is None, "a model without a class token"),
        "attn_head_dim": (
            attention.head_dim * attention.num_heads != model.embed_dim,
            "heads that do not divide the channels",
        ),
        "num_classes": (
            head_matters,
            "a classifier, which the family has not (leave it out: --headless),",
        ),
    }
    for option, (said, meaning) in ROTARY.items():
        wrong[f"rope.{option}"] = (getattr(model.rope, option, said) != said, meaning)
    for option, (found, meaning) in wrong.items():
        if found:
            raise ValueError(f"`{option}` of {name}: {meaning} cannot be expressed by a bundle.")


def dinov3_config(model: nn.Module) -> LinGeneConfig:
    """The configuration of a bundle of as many components as layers."""
    block, (height, width), rope = model.blocks[0], model.patch_embed.img_size, model.rope
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
        family="dinov3_vit",
        num_register_tokens=0 if model.reg_token is None else model.reg_token.shape[1],
        rope_theta=rope.temperature,
        pos_embed_shift=rope.shift_coords,
        pos_embed_jitter=rope.jitter_coords,
        pos_embed_rescale=rope.rescale_coords,
        depth=len(model.blocks),
    )


def dinov3_biases(tensors: Mapping[str, torch.Tensor]) -> dict[str, bool]:
    """Whether queries and values have biases, as an argument of `timm.create_model`; names of both kinds are known."""
    return {"qkv_bias": any(key.endswith(BIASES["attention.query.bias"]) for key in tensors)}


def dinov3_outside(tensors: Mapping[str, torch.Tensor], config: LinGeneConfig) -> dict[str, torch.Tensor]:
    """The tensors outside the blocks; timm has no mask token."""
    own = {key: tensors[theirs] for key, theirs in OUTSIDE.items()}
    registers = tensors[REGISTERS] if config.num_register_tokens else torch.zeros(1, 0, config.hidden_size)
    own |= {"embeddings.register_tokens": registers, "embeddings.mask_token": torch.zeros(1, 1, config.hidden_size)}
    return own


def dinov3_layer(tensors: Mapping[str, torch.Tensor], size: int, name: str, layer: int) -> torch.Tensor:
    """One block tensor of one layer; biases that timm has not are zero.

    Args:
        size: channels.
    """
    part, _, kind = name.rpartition(".")
    place = f"blocks.{layer}"
    if part in QKV and kind == "weight":
        start = QKV.index(part) * size
        return tensors[f"{place}.attn.qkv.weight"][start : start + size]
    if part in QKV:
        found = tensors.get(f"{place}.{BIASES[name]}") if name in BIASES else None
        return torch.zeros(size) if found is None else found
    theirs = GATED_PARTS[part] if f"{place}.mlp.fc1_g.weight" in tensors and part in GATED_PARTS else PARTS[part]
    tensor, scale = tensors[f"{place}.{theirs}.{kind}"], tensors.get(f"{place}.{SCALES.get(part)}")
    return tensor if scale is None else scaled(tensor, scale)


def dinov3_arguments(source: Source, mlp_ratio: float) -> dict[str, Any]:
    """What `timm.create_model` needs to build the network.

    Raises:
        ValueError: another activation than timm's.
    """
    config = source.config
    if config.hidden_act != ("silu" if config.gated_mlp else "gelu"):
        raise ValueError(f"`hidden_act` {config.hidden_act} is not that of timm's DINOv3; export to another format.")
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "num_classes": 0,
        "embed_dim": config.hidden_size,
        "depth": source.depth,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": mlp_ratio,
        "num_reg_tokens": config.num_register_tokens,
        "rope_temperature": config.rope_theta,
        **({"swiglu_align_to": 1} if config.gated_mlp else {}),
        **{f"rope_{move}_coords": getattr(config, f"pos_embed_{move}") for move in ("shift", "jitter", "rescale")},
    }


def dinov3_state(source: Source) -> dict[str, torch.Tensor]:
    """A source's tensors in timm's names.

    Raises:
        ValueError: biases of keys, which timm has not.
    """
    state = {theirs: source.outside[own] for own, theirs in OUTSIDE.items()}
    if source.config.num_register_tokens:
        state[REGISTERS] = source.outside["embeddings.register_tokens"]
    for layer in range(source.depth):
        place = f"blocks.{layer}"
        if source.block("attention.key.bias", layer).any():
            raise ValueError(
                "`to` timm: the keys of this bundle have biases, as of every sorted or fitted one, and timm's DINOv3 "
                "has none; export to another format."
            )
        for part, theirs in {**PARTS, **(GATED_PARTS if source.config.gated_mlp else {})}.items():
            for kind in ("weight", "bias"):
                state[f"{place}.{theirs}.{kind}"] = source.block(f"{part}.{kind}", layer)
        state[f"{place}.attn.qkv.weight"] = torch.cat([source.block(f"{part}.weight", layer) for part in QKV])
        state |= {f"{place}.{theirs}": source.block(own, layer) for own, theirs in BIASES.items()}
        state |= {f"{place}.{scale}": torch.ones(source.config.hidden_size) for scale in SCALES.values()}
    return {key: tensor.clone() for key, tensor in state.items()}
