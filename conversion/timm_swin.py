"""timm's Swin Transformers in the names of a bundle, and back.

timm merges patches at the beginning of a stage, a bundle (as transformers) at the end of the one before; queries, keys
and values are one matrix there; masks and indices of windows are buffers that follow from the configuration.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..configuration_swin_lingene import LinGeneSwinConfig
from ..swin_lingene import shift_of
from .sources import Source


SWIN = "SwinTransformer"
SWIN_KINDS = {
    "": SWIN,
    "patch_embed": "PatchEmbed",
    "patch_embed.proj": "Conv2d",
    "patch_embed.norm": "LayerNorm",
    "layers": "Sequential",
    "layers.*": "SwinTransformerStage",
    "layers.*.downsample": "Identity PatchMerging",
    "layers.*.downsample.norm": "LayerNorm",
    "layers.*.downsample.reduction": "Linear",
    "layers.*.blocks": "Sequential",
    "layers.*.blocks.*": "SwinTransformerBlock",
    "layers.*.blocks.*.norm1": "LayerNorm",
    "layers.*.blocks.*.norm2": "LayerNorm",
    "layers.*.blocks.*.attn": "WindowAttention",
    "layers.*.blocks.*.attn.qkv": "Linear",
    "layers.*.blocks.*.attn.proj": "Linear",
    "layers.*.blocks.*.attn.attn_drop": "Dropout",
    "layers.*.blocks.*.attn.proj_drop": "Dropout",
    "layers.*.blocks.*.attn.softmax": "Softmax",
    "layers.*.blocks.*.drop_path1": "Identity DropPath",
    "layers.*.blocks.*.drop_path2": "Identity DropPath",
    "layers.*.blocks.*.mlp": "Mlp",
    "layers.*.blocks.*.mlp.fc1": "Linear",
    "layers.*.blocks.*.mlp.fc2": "Linear",
    "layers.*.blocks.*.mlp.act": "GELU GELUTanh QuickGELU ReLU SiLU",
    "layers.*.blocks.*.mlp.norm": "Identity",
    "layers.*.blocks.*.mlp.drop1": "Dropout",
    "layers.*.blocks.*.mlp.drop2": "Dropout",
    "norm": "LayerNorm",
    "head": "ClassifierHead",
    "head.global_pool": "SelectAdaptivePool2d",
    "head.global_pool.pool": "FastAdaptiveAvgPool Identity",
    "head.global_pool.flatten": "Flatten Identity",
    "head.drop": "Dropout",
    "head.fc": "Identity Linear",
    "head.flatten": "Flatten Identity",
}
SWIN_LEFT_OUT = {
    "relative_position_index": "it follows from the window size",
    "attn_mask": "it follows from the shift",
}
PARTS = {
    "norm1": "norm1",
    "attention.output": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
QKV = ("attention.query", "attention.key", "attention.value")
TABLE = "attn.relative_position_bias_table"
BIAS = {"attention.position_bias.weight": TABLE}
OUTSIDE = {
    "embeddings.patch_embeddings": "patch_embed.proj",
    "embeddings.norm": "patch_embed.norm",
    "layernorm": "norm",
    "classifier": "head.fc",
}


def check_swin(name: str, model: nn.Module, head_matters: bool) -> None:
    """Refuse what no module of a timm Swin shows.

    Raises:
        ValueError: names the first option that a bundle cannot express.
    """
    blocks = [block for stage in model.layers for block in stage.blocks]
    windows = {tuple(block.attn.window_size) for block in blocks}
    grid = model.patch_embed.grid_size
    smallest = min(side >> (len(model.layers) - 1) for side in grid)
    wrong = (
        (
            "window_size",
            len({side for window in windows for side in window}) != 1,
            "windows that differ from stage to stage, or are not square,",
        ),
        ("img_size", smallest < max(max(window) for window in windows), "stages smaller than a window"),
        ("patch_size", len(set(model.patch_embed.patch_size)) != 1, "patches that are not square"),
        (
            "head_dim",
            any(block.attn.qkv.out_features != 3 * block.dim for block in blocks),
            "heads of a size of their own",
        ),
        ("global_pool", head_matters and model.global_pool != "avg", f"{model.global_pool!r} pooling in a classifier"),
        (
            "mlp_ratio",
            len({block.mlp.fc1.out_features / block.dim for block in blocks}) != 1,
            "MLPs of several ratios",
        ),
    )
    for option, refused, what in wrong:
        if refused:
            raise ValueError(f"`{option}` of {name}: {what} cannot be expressed by a bundle.")
    for stage, layers in enumerate(model.layers, start=1):
        _check_shifts(name, stage, layers.blocks, grid)
        grid = tuple(-(-side // 2) for side in grid)


def _check_shifts(name: str, stage: int, blocks: Sequence[nn.Module], grid: tuple[int, int]) -> None:
    """Refuse a stage whose windows timm shifts otherwise than a bundle and transformers do.

    timm decides for either side by itself whether there is anything to shift, and shifts a grid before it is padded to
    whole windows, not after.

    Args:
        stage: from 1.
        blocks: its layers.
        grid: its patches, down and across.
    """
    for layer, block in enumerate(blocks):
        window = block.attn.window_size[0]
        shift = shift_of(layer, grid, window)
        if tuple(block.shift_size) != (shift, shift) or (shift and any(side % window for side in grid)):
            raise ValueError(
                f"`img_size` of {name}: windows of {window}x{window} that are shifted over the {grid[0]}x{grid[1]} "
                f"patches of stage {stage} cannot be expressed by a bundle: they must divide both sides, and be "
                "smaller than either or as large as both."
            )


def swin_config(model: nn.Module, activations: Mapping[str, str], stages: Sequence[int]) -> LinGeneSwinConfig:
    """The configuration of a bundle with as many components as the deepest of its decomposed stages has layers."""
    block, (height, width) = model.layers[0].blocks[0], model.patch_embed.img_size
    return LinGeneSwinConfig(
        embed_dim=model.embed_dim,
        depths=[len(stage.blocks) for stage in model.layers],
        num_heads=[stage.blocks[0].attn.num_heads for stage in model.layers],
        window_size=block.attn.window_size[0],
        mlp_ratio=block.mlp.fc1.out_features / block.dim,
        hidden_act=activations[type(block.mlp.act).__name__],
        layer_norm_eps=block.norm1.eps,
        image_size=height if height == width else [height, width],
        patch_size=model.patch_embed.patch_size[0],
        num_channels=model.patch_embed.proj.in_channels,
        qkv_bias=block.attn.qkv.bias is not None,
        decomposed_stages=list(stages) or None,
        **({"num_labels": model.num_classes} if model.num_classes else {}),
    )


def swin_outside(
    tensors: Mapping[str, torch.Tensor], config: LinGeneSwinConfig, head: bool
) -> dict[str, torch.Tensor]:
    """What lies outside the decomposed layers, by the bundle's names."""
    own = {}
    for key, shape in (config.shared_shapes() | (config.head_shapes() if head else {})).items():
        stage, _, inner = key.partition(".layers.")
        if inner:
            layer, _, name = inner.partition(".")
            own[key] = swin_layer(tensors, f"{stage}.{name}", int(layer))
        else:
            own[key] = tensors[timm_name(key)].view(shape)
    return own


def swin_layer(tensors: Mapping[str, torch.Tensor], name: str, layer: int) -> torch.Tensor:
    """One tensor of one layer, by its name in a component; q, k, v are thirds of one matrix."""
    stage, _, inner = name.partition(".")
    place, (part, _, kind) = f"layers.{_from_zero(stage)}.blocks.{layer}", inner.rpartition(".")
    if inner in BIAS:
        return tensors[f"{place}.{BIAS[inner]}"]
    if part in QKV:
        return tensors[f"{place}.attn.qkv.{kind}"].chunk(3)[QKV.index(part)]
    return tensors[f"{place}.{PARTS[part]}.{kind}"]


def timm_name(key: str) -> str:
    """The name in timm of what lies outside the layers."""
    place, _, kind = key.rpartition(".")
    if place in OUTSIDE:
        return f"{OUTSIDE[place]}.{kind}"
    stage, _, inner = key.partition(".")
    return f"layers.{_from_zero(stage) + 1}.{inner}"


def _from_zero(stage: str) -> int:
    """`stage3` -> 2."""
    return int(stage.removeprefix("stage")) - 1


def swin_shape(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What its tensors say of a Swin's shape, in timm's words; nothing where they are of none."""
    tables = {}
    for key, tensor in tensors.items():
        found = re.fullmatch(rf"layers\.(\d+)\.blocks\.(\d+)\.{re.escape(TABLE)}", key)
        if found and tensor.dim() == 2:
            tables[int(found[1]), int(found[2])] = tuple(tensor.shape)  # ((2 window - 1)^2, heads)
    if not tables:
        return {}
    stages = range(1 + max(stage for stage, _ in tables))
    heads = {stage: count for (stage, _), (_, count) in tables.items()}
    rows = max(count for count, _ in tables.values())
    return {
        "depths": [sum(stage == own for stage, _ in tables) for own in stages],
        "num_heads": [heads.get(stage) for stage in stages],
        "window_size": (math.isqrt(rows) + 1) // 2,
    }


def swin_state(source: Source) -> dict[str, torch.Tensor]:
    """A source's tensors in timm's names."""
    config, state = source.config, {}
    for key, tensor in source.outside.items():
        if ".layers." not in key:
            state[timm_name(key)] = tensor.flatten(-2) if ".downsample." in key else tensor
    for stage in range(1, len(config.depths) + 1):
        own = config.block_shapes(stage)
        for layer in range(config.depths[stage - 1]):
            place = f"layers.{stage - 1}.blocks.{layer}"
            if stage in config.decomposed_stages:
                found = {name: source.block(f"stage{stage}.{name}", layer) for name in own}
            else:
                found = {name: source.outside[f"stage{stage}.layers.{layer}.{name}"] for name in own}
            for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
                state[f"{place}.attn.qkv.{kind}"] = torch.cat([found.pop(f"{part}.{kind}") for part in QKV])
            for name, tensor in found.items():
                part, _, kind = name.rpartition(".")
                state[f"{place}.{BIAS[name]}" if name in BIAS else f"{place}.{PARTS[part]}.{kind}"] = tensor
    return {key: tensor.clone() for key, tensor in state.items()}


def swin_arguments(source: Source, size: tuple[int, int]) -> dict[str, Any]:
    """What `timm.create_model` needs to build the network.

    Args:
        size: (height, width) in pixels of the images that it takes: nothing that is stored depends on it.

    Raises:
        ValueError: another activation than the one that timm's Swins have.
    """
    config = source.config
    if config.hidden_act != "gelu":
        raise ValueError(f"`hidden_act` {config.hidden_act} is none of timm's Swins; export to another format.")
    return {
        "img_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "num_classes": config.num_labels if source.head else 0,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
    }
