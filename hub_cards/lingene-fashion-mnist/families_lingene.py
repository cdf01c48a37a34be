"""The families that a bundle may stand for, one row each: what sets a family apart from a plain Vision Transformer.

All of them share the loading of `loading_lingene`, and those whose layers are all alike the block of `vit_lingene`. A
bundle records its family and materialises into that family's own classes of transformers; a new family is a row here,
as long as its blocks are pre-norm attention and MLP, gated or not, and a row of `from_transformers`, which says what
of its checkpoints may be left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """One row.

    Args:
        config, encoder, classifier, backbone: its classes in transformers; the last two are None where there is none
            of this configuration.
        prefix: of the encoder's tensors in a model with a head.
        parts: part of a block in a bundle -> its name in the family's files, below `blocks`.
        gated: the same of a gated MLP's parts, where they are others.
        stacked: part of a block in the family's files -> those of `gated` that it is made of, one above the other.
        outside: tensor outside the blocks -> its name in the family's files, where it is not the bundle's.
        flat: such a tensor -> how many of its first dimensions, each 1, those files leave out.
        joined: tensor of the family's files -> those outside the blocks that it is made of, one above the other.
        blocks: where layer `{layer}` lies in the family's files, in stage `{stage}` where there are any, from 0.
        stages: whether it is a network of stages of several widths, not one stack of layers.
        scales: part -> the LayerScale on its output; folded into the part by conversion, ones in what materialises.
        fields: of `LinGeneConfig`, beyond those of every family, that its configuration has under the same name.
        renamed: field of `LinGeneConfig` -> its name in the family's configuration, where it is another.
        lacks: field of `LinGeneConfig` that it has not -> what it is as if it were.
        fixed: field of its configuration -> the only value of it that a bundle expresses.
        mlp_ratio: whether its configuration has MLP units as a whole multiple of the hidden size; gated MLPs have two
            thirds of it, and go by eights.
        gate_act: the only activation of gated MLPs, whatever its configuration says; None where that decides.
        options: keywords that its encoder is loaded with.
        interpolates: whether it takes images of any size, its positions following by themselves.
        square: whether its positions are a square of them.
        antialias: whether fewer positions are averages of more.
        inner_dropout: whether `hidden_dropout_prob` acts within blocks as well as on embeddings.
        pools: whether its encoder gives a `pooler_output` that stands for the image: the normed class token, or
        attends: of tokens without a class token, what a learned token sees of them by attention.
        class_token: whether there is one; without, and without attention, the mean of the tokens stands for the image.
        patch_bias: whether patches have a bias.
        norms_embeddings: whether a LayerNorm stands before the blocks.
        norms_tokens: whether its tokens are given normed; else only the class token in `pooler_output` is.
        mask_token: whether a token may stand in for patches that are masked.
        registers: whether there are tokens without positions between the class token and the patches.
        rotates: whether positions turn the queries and keys of patches, in place of a table that is added to them.
        reads_patches: whether its head reads the mean of the patch tokens beside the class token.
    """

    config: str
    encoder: str
    classifier: str | None
    backbone: str | None
    prefix: str
    parts: Mapping[str, str]
    gated: Mapping[str, str] = field(default_factory=dict)
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    flat: Mapping[str, int] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    blocks: str = "encoder.layer.{layer}."
    stages: bool = False
    scales: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[str, Any] = field(default_factory=dict)
    mlp_ratio: bool = False
    gate_act: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    interpolates: bool = False
    square: bool = False
    antialias: bool = False
    inner_dropout: bool = True
    pools: bool = False
    attends: bool = False
    class_token: bool = True
    patch_bias: bool = True
    norms_embeddings: bool = False
    norms_tokens: bool = True
    mask_token: bool = False
    registers: bool = False
    rotates: bool = False
    reads_patches: bool = False

    @property
    def turns(self) -> bool:
        """Whether the channels of its stream may be turned: nothing but LayerNorms that are folded away reads them one
        by one."""
        return not (self.stages or self.norms_embeddings or self.attends)

    @property
    def traces_any_size(self) -> bool:
        """Whether one exported graph takes images of every size; windows are laid out for one."""
        return self.interpolates and not self.stages


# The names that checkpoints have always had: transformers maps them to its modules' names of the day and back.
ATTENTION = {
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.output": "attention.output.dense",
}
VIT = {
    **ATTENTION,
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
QKV = ("query", "key", "value")
KINDS = ("weight", "bias")
LAYER_SCALES = {"attention.output": "layer_scale1.lambda1", "mlp.fc2": "layer_scale2.lambda1"}
BIASES = ("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias")  # settings of their own, all of them there
TOWER = dict(  # of pictures, beside one of text; no classifier, whose configuration would be of both
    classifier=None,
    backbone=None,
    prefix="vision_model.",
    parts={
        **{f"attention.{part}": f"self_attn.{part[0]}_proj" for part in QKV},
        "attention.output": "self_attn.out_proj",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    blocks="encoder.layers.{layer}.",
    renamed={"attention_probs_dropout_prob": "attention_dropout"},
    lacks={"hidden_dropout_prob": 0.0, "qkv_bias": True},
    square=True,
    pools=True,
)
DINOV2 = dict(
    parts={**ATTENTION, "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
    gated={"mlp.gate": "mlp.gate_proj", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.weights_out"},
    stacked={"mlp.weights_in": ("mlp.gate_proj", "mlp.up_proj")},
    scales=LAYER_SCALES,
    fixed={"layerscale_value": 1.0},
    renamed={"gated_mlp": "use_swiglu_ffn"},
    flat={"embeddings.mask_token": 1},
    mlp_ratio=True,
    gate_act="silu",
    interpolates=True,
    square=True,
    inner_dropout=False,
    pools=True,
    mask_token=True,
    reads_patches=True,
)
BIAS_TABLE = "relative_position_bias_table"  # a parameter by itself, no module's weight
BACKBONE_FIELDS = ("drop_path_rate", "apply_layernorm", "reshape_hidden_states")
DINO_FIELDS = (*BACKBONE_FIELDS, "gated_mlp")
ROTARY_FIELDS = ("rope_theta", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
FAMILIES = {
    "vit": Family(
        config="ViTConfig",
        encoder="ViTModel",
        classifier="ViTForImageClassification",
        backbone=None,
        prefix="vit.",
        parts=VIT,
        options={"add_pooling_layer": False},
    ),
    "dinov2": Family(
        config="Dinov2Config",
        encoder="Dinov2Model",
        classifier="Dinov2ForImageClassification",
        backbone="Dinov2Backbone",
        prefix="dinov2.",
        fields=DINO_FIELDS,
        **DINOV2,
    ),
    "dinov2_with_registers": Family(
        config="Dinov2WithRegistersConfig",
        encoder="Dinov2WithRegistersModel",
        classifier="Dinov2WithRegistersForImageClassification",
        backbone="Dinov2WithRegistersBackbone",
        prefix="dinov2_with_registers.",
        fields=(*DINO_FIELDS, "num_register_tokens"),
        antialias=True,
        registers=True,
        **DINOV2,
    ),
    "dinov3_vit": Family(
        config="DINOv3ViTConfig",
        encoder="DINOv3ViTModel",
        classifier=None,
        backbone="DINOv3ViTBackbone",
        prefix="",
        parts={
            **{f"attention.{part}": f"attention.{part[0]}_proj" for part in (*QKV, "output")},
            "norm1": "norm1",
            "norm2": "norm2",
            "mlp.fc1": "mlp.up_proj",
            "mlp.fc2": "mlp.down_proj",
        },
        gated={"mlp.gate": "mlp.gate_proj"},
        outside={
            **{f"embeddings.patch_embeddings.{kind}": f"embeddings.patch_embeddings.{kind}" for kind in KINDS},
            **{f"layernorm.{kind}": f"norm.{kind}" for kind in KINDS},
        },
        blocks="layer.{layer}.",
        scales=LAYER_SCALES,
        fields=(*DINO_FIELDS, "num_register_tokens", *ROTARY_FIELDS),
        fixed={"layerscale_value": 1.0, **dict.fromkeys(BIASES, True)},
        renamed={"attention_probs_dropout_prob": "attention_dropout", "gated_mlp": "use_gated_mlp"},
        lacks={"hidden_dropout_prob": 0.0, "qkv_bias": True},
        interpolates=True,
        inner_dropout=False,
        pools=True,
        mask_token=True,
        registers=True,
        rotates=True,
    ),
    "ijepa": Family(
        config="IJepaConfig",
        encoder="IJepaModel",
        classifier="IJepaForImageClassification",
        backbone=None,
        prefix="ijepa.",
        parts=VIT,
        square=True,
        class_token=False,
    ),
    "clip_vision_model": Family(
        config="CLIPVisionConfig",
        encoder="CLIPVisionModel",
        outside={
            "embeddings.cls_token": "embeddings.class_embedding",
            "embeddings.position_embeddings": "embeddings.position_embedding.weight",
            "embeddings.patch_embeddings.weight": "embeddings.patch_embedding.weight",
            **{f"embeddings.norm.{kind}": f"pre_layrnorm.{kind}" for kind in KINDS},  # as it is spelt
            **{f"layernorm.{kind}": f"post_layernorm.{kind}" for kind in KINDS},
        },
        flat={"embeddings.cls_token": 2, "embeddings.position_embeddings": 1},
        **TOWER,
        patch_bias=False,
        norms_embeddings=True,
        norms_tokens=False,
    ),
    "siglip_vision_model": Family(
        config="SiglipVisionConfig",
        encoder="SiglipVisionModel",
        outside={
            "embeddings.position_embeddings": "embeddings.position_embedding.weight",
            "embeddings.probe": "head.probe",
            **{
                f"{own}.{kind}": f"{theirs}.{kind}"
                for own, theirs in (
                    ("embeddings.patch_embeddings", "embeddings.patch_embedding"),
                    ("layernorm", "post_layernorm"),
                    ("pooler.attention.output", "head.attention.out_proj"),
                    ("pooler.norm", "head.layernorm"),
                    ("pooler.mlp.fc1", "head.mlp.fc1"),
                    ("pooler.mlp.fc2", "head.mlp.fc2"),
                )
                for kind in KINDS
            },
        },
        flat={"embeddings.position_embeddings": 1},
        joined={
            f"head.attention.in_proj_{kind}": tuple(f"pooler.attention.{part}.{kind}" for part in QKV)
            for kind in KINDS
        },
        fixed={"vision_use_head": True},
        **TOWER,
        attends=True,
        class_token=False,
    ),
    "swin": Family(
        config="SwinConfig",
        encoder="SwinModel",
        classifier="SwinForImageClassification",
        backbone=None,
        prefix="swin.",
        parts={
            **{f"attention.{part}": f"attention.self.{part}" for part in ("query", "key", "value")},
            "attention.position_bias": f"attention.self.{BIAS_TABLE}",
            "attention.output": "attention.output.dense",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
        blocks="encoder.layers.{stage}.blocks.{layer}.",
        stages=True,
        fixed={"use_absolute_embeddings": False},
        interpolates=True,
        pools=True,
        class_token=False,
    ),
}
# Stages are counted from 1, as transformers' backbones name them; a stage that no component stands for has own layers.
STAGE = re.compile(r"stage(?P<stage>\d+)\.(?P<inner>.+)")
# Fields of `LinGeneConfig` that not every family has, and what they are where it has not.
FAMILY_FIELDS = {"drop_path_rate": 0.0, "apply_layernorm": True, "reshape_hidden_states": True}
FAMILY_FIELDS |= {"gated_mlp": False, "num_register_tokens": 0, "rope_theta": 100.0} | dict.fromkeys(ROTARY_FIELDS[1:])
WHOLE = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # of two towers -> that of pictures


def tower_config(config: PretrainedConfig) -> PretrainedConfig:
    """Of the pictures' tower, where a model of transformers has another of text; else the same."""
    return config.vision_config if config.model_type in WHOLE else config


def family_row(config: PretrainedConfig) -> Family | None:
    """The row of a bundle's configuration, of a family's own or of a pruned network's; None of any other model."""
    return FAMILIES.get(getattr(config, "family", getattr(config, "model_type", None)))


def image_token(config: PretrainedConfig, output: Any) -> torch.Tensor:
    """What stands for the image in the output of an encoder, (b, d): what its family pools, such as the normed class
    token, or else the class token, or without one the mean of the tokens.
    """
    row, tokens = family_row(config), output.last_hidden_state
    if row is not None and row.pools and output.pooler_output is not None:
        return output.pooler_output
    return tokens[:, 0] if row is None or row.class_token else tokens.mean(dim=1)


def image_token_name(config: PretrainedConfig) -> str:
    """The same in words."""
    row = family_row(config)
    if row is None or row.class_token:
        return "class token"
    return "pooled token" if row.pools else "mean token"


def has_stages(config: PretrainedConfig) -> bool:
    """Whether a network is one of stages, none of whose tokens stands for the image.

    Args:
        config: of a bundle, or a family's own.
    """
    row = family_row(config)
    return row is not None and row.stages


def layers_of(config: PretrainedConfig) -> int | str:
    """The number of layers of a family's own model, as it is told: of a network of stages "2-2-6-2"."""
    depths = getattr(config, "depths", None)
    return "-".join(map(str, depths)) if depths is not None else config.num_hidden_layers


def stock_class(family: str, kind: str) -> type[PreTrainedModel]:
    """A family's `encoder`, `classifier` or `backbone` in transformers; loaded when it is asked for. Errors as for
    `class_name`.
    """
    return getattr(transformers, class_name(family, kind))


def class_name(family: str, kind: str) -> str:
    """The name of a family's `encoder`, `classifier` or `backbone` in transformers.

    Raises:
        ValueError: there is none.
    """
    name = getattr(FAMILIES[family], kind)
    if name is None:
        raise ValueError(
            f"`family` {family} has no {kind} of one configuration in transformers: load it with AutoModel, train it "
            "with --objective features."
        )
    return name
