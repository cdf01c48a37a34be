"""Checkpoints of transformers: ViT (DeiT and DINO are stored as such), MSN, the encoders of MAE, DINOv2 with and
without registers, DINOv3, I-JEPA, the pictures' towers of CLIP and SigLIP.

Acceptance is by list: a field, a tensor or a kind of model that does not stand here is refused by name. Names on disk
are the long-standing ones, which transformers keeps writing whatever its modules are called.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PretrainedConfig,
)
from transformers.activations import ACT2FN
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from ..configuration_base_lingene import BundleConfig
from ..configuration_lingene import VIT_FIELDS, LinGeneConfig
from ..configuration_swin_lingene import SWIN_FIELDS, LinGeneSwinConfig
from ..families_lingene import FAMILIES, WHOLE, Family, tower_config
from ..folders import processor_or_none
from ..measuring.features import AutoEncoder
from ..progress import quiet_loading
from ..readout import is_turned
from ..translating_lingene import own_fields, own_name, own_shapes, taken_apart
from .sources import Source, check_tensors, class_outputs, read_tensors, shown


MASKS = "only masked pretraining reads it"
POOLER = "a bundle has no pooler, and classifiers do not use it"
NEUTRAL = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", "_commit_hash", "model_type"}
NEUTRAL |= {"architectures", "num_hidden_layers", "num_labels", "tie_word_embeddings", "_attn_implementation_autoset"}
NEUTRAL |= {"materialised_from"}  # where a size of a bundle came from
BACKBONE = frozenset(
    "mlp_ratio layerscale_value use_mask_token out_features out_indices _out_features _out_indices stage_names".split()
)


@dataclass(frozen=True)
class Kind:
    """What one kind of checkpoint, by its `model_type`, may have.

    Args:
        family: of the bundle that it becomes: whose names its tensors have, too.
        neutral: fields that change nothing of the encoder, or that its shape says already.
        only: fields that must have one value -> that value, and what another would mean.
        left_out: patterns of tensors with no place in a bundle -> why that changes nothing.
        absent: patterns of tensors that may be missing and then are zero -> the field that says whether they are there
            and its default, where one does.
    """

    family: str = "vit"
    neutral: frozenset[str] = frozenset()
    only: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, tuple[str, bool] | None] = field(default_factory=dict)

    @property
    def row(self) -> Family:
        return FAMILIES[self.family]


OTHER_TOWER = "it is of the text tower"
PROJECTION = "it reads the pooled class token, which a bundle gives"
CLIP = dict(
    family="clip_vision_model",
    # Older files name every setting of text generation in the configuration of the pictures' tower.
    neutral=frozenset(
        "projection_dim initializer_factor max_length num_beams num_beam_groups num_return_sequences "
        "repetition_penalty length_penalty temperature top_k top_p typical_p tf_legacy_loss".split()
    ),
    only={"dropout": (0.0, "dropout of hidden states")},
    left_out={
        r"embeddings\.position_ids": "it counts positions",
        r"text_model\..*|text_projection\.weight|logit_scale": OTHER_TOWER,
        r"visual_projection\.weight": PROJECTION,
    },
)
SIGLIP = dict(
    family="siglip_vision_model",
    neutral=CLIP["neutral"],
    only=CLIP["only"] | {"vision_use_head": (True, "a tower without attention pooling")},
    left_out={
        r"embeddings\.position_ids": "it counts positions",
        r"text_model\..*|logit_scale|logit_bias": OTHER_TOWER,
    },
)
KINDS = {
    "vit": Kind(
        neutral=frozenset({"encoder_stride", "pooler_output_size", "pooler_act"}),
        left_out={r"pooler\..*": POOLER, r"embeddings\.mask_token": MASKS, r"decoder\..*": MASKS},
    ),
    "vit_msn": Kind(left_out={r"embeddings\.mask_token": MASKS}),
    "vit_mae": Kind(
        neutral=frozenset({"mask_ratio", "norm_pix_loss"})
        | {f"decoder_{part}" for part in ("num_attention_heads", "hidden_size", "num_hidden_layers")}
        | {"decoder_intermediate_size"},
        left_out={r"decoder\..*": MASKS},
    ),
    "dinov2": Kind(family="dinov2", neutral=BACKBONE, absent={r"embeddings\.mask_token": None}),
    "dinov2_with_registers": Kind(family="dinov2_with_registers", neutral=BACKBONE),
    "dinov3_vit": Kind(
        family="dinov3_vit",
        neutral=BACKBONE | {"query_bias", "key_bias", "value_bias"},
        only={f"{part}_bias": (True, f"no bias ({part})") for part in ("proj", "mlp")},
        absent={
            rf"blocks\.\d+\.attention\.{part}\.bias": (f"{part}_bias", part != "key")
            for part in ("query", "key", "value")
        },
    ),
    "ijepa": Kind(
        family="ijepa",
        neutral=frozenset({"pooler_output_size", "pooler_act"}),
        left_out={r"pooler\..*": POOLER, r"embeddings\.mask_token": MASKS},
    ),
    "clip": Kind(**CLIP),
    "clip_vision_model": Kind(**CLIP),
    "siglip": Kind(**SIGLIP),
    "siglip_vision_model": Kind(**SIGLIP),
    "swin": Kind(
        family="swin",
        neutral=BACKBONE | {"encoder_stride", "hidden_size", "num_layers", "path_norm"},
        only={"use_absolute_embeddings": (False, "positions that are learned for one image size")},
        left_out={
            r".*\.relative_position_index": "it follows from the window size",
            r"embeddings\.mask_token": MASKS,
            r"decoder\..*": MASKS,
        },
    ),
}
REFUSED = {
    "deit": "its distillation token",
    "beit": "relative positions",
    "data2vec-vision": "relative positions",
    "vit_hybrid": "a convolutional stem",
    "swinv2": "scaled cosine attention and continuous relative positions",
}


def read_transformers(name: str, headless: bool = False, stages: Sequence[int] = ()) -> Source:
    """A checkpoint by folder or by name on the Hub.

    Args:
        name: as `from_pretrained` takes it.
        headless: leave a classifier out, whatever it is.
        stages: of a network of stages, counted from 1: those whose layers become components; default the deepest.

    Raises:
        ValueError: whatever of it a bundle cannot express, by name.
        OSError: nothing is there.
    """
    raw, _ = PretrainedConfig.get_config_dict(name)
    kind, foreign = _kind(name, raw), AutoConfig.from_pretrained(name)
    foreign = tower_config(foreign)
    architecture = (raw.get("architectures") or [""])[0]
    if not architecture and any(key.startswith("classifier.") for key in _read(name)):  # not every folder says
        architecture = "ForImageClassification"
    classifies = architecture.endswith("ForImageClassification") and foreign.num_labels > 0
    head = classifies and not headless
    if head and kind.row.classifier is None:
        raise ValueError(
            f"`headless`: {name} is a {architecture}, and a bundle of the family {kind.family} has no classifier; "
            "give --headless, which leaves it out."
        )
    if head and sorted(foreign.id2label) != list(range(foreign.num_labels)):
        raise ValueError(
            f"`id2label` of {name} must number its {foreign.num_labels} classes from 0 on, as its outputs are, and "
            f"numbers {', '.join(map(str, sorted(foreign.id2label)[:10]))}."
        )
    config = _bundle_config(name, foreign, raw, kind, stages)
    tensors, left_out = _named(name, _read(name), kind, config, head)
    outside, blocks = _shapes(config, head)
    expected = {**outside, **blocks}
    absent = [pattern for pattern, said in kind.absent.items() if said is None or not raw.get(*said)]
    for key in expected.keys() - tensors.keys():
        if any(re.fullmatch(pattern, key) for pattern in absent):
            tensors[key] = torch.zeros(expected[key])
    unknown = sorted(tensors.keys() - expected.keys())
    if unknown:
        raise ValueError(f"{shown(unknown)} of {name} cannot be expressed by a bundle, or is not known to this code.")
    check_tensors(tensors, expected, name)

    def block(part: str, layer: int) -> torch.Tensor:
        tensor = tensors[f"blocks.{layer}.{part}"]
        scale = tensors.get(f"blocks.{layer}.{part.rpartition('.')[0]}.scale")
        return tensor if scale is None else scaled(tensor, scale)

    return Source(
        name=str(name),
        config=config,
        head=head,
        outside={key: tensors[key] for key in outside},
        block=block,
        left_out=left_out,
        reference=partial(_reference, name, head),
        processor=processor_or_none(name),
    )


def scaled(tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """LayerScale folded into the projection before it: diag(s) W, and s b. In float64, for one rounding at the end."""
    factor = scale.double()
    return tensor.double() * (factor[:, None] if tensor.dim() == 2 else factor)


def _kind(name: str, raw: dict) -> Kind:
    """The list that this kind of model is held against; refuses fields that are not on it and are not empty."""
    model_type = raw.get("model_type")
    if model_type not in KINDS:
        why = f": {REFUSED[model_type]} cannot be expressed" if model_type in REFUSED else ""
        raise ValueError(
            f"`model_type` {model_type!r} of {name} is not one that converts{why}; known are {', '.join(KINDS)}, and "
            "timm:NAME with --weights FILE."
        )
    if raw.get("auto_map"):
        raise ValueError(f"`auto_map` of {name}: a model with code of its own cannot be converted.")
    kind = KINDS[model_type]
    raw = raw.get("vision_config", {}) if model_type in WHOLE else raw
    for key, (value, meaning) in kind.only.items():
        if raw.get(key, value) != value:
            raise ValueError(f"`{key}` {raw[key]!r} of {name}: {meaning} cannot be expressed by a bundle.")
    fields = SWIN_FIELDS if kind.row.stages else VIT_FIELDS
    known = {*fields, *NEUTRAL, *kind.row.fields, *kind.row.renamed.values(), *kind.neutral, *kind.only}
    known |= vars(PretrainedConfig()).keys()
    unknown = sorted(key for key, value in raw.items() if key not in known and value)
    if unknown:
        raise ValueError(
            f"{shown(unknown)} in config.json of {name} is no field of a {model_type} that this code knows; if it "
            "changes nothing, take it out."
        )
    if raw.get("pruned_heads"):
        raise ValueError(f"`pruned_heads` of {name} cannot be expressed by a bundle.")
    act = raw.get("hidden_act", "gelu")
    if act not in ACT2FN:
        raise ValueError(f"`hidden_act` {act!r} of {name} is not an activation of transformers.")
    return kind


def _shapes(config: BundleConfig, head: bool) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """Of the tensors outside the blocks, and of those in every block, LayerScales included, by the bundle's names."""
    outside = config.shared_shapes() | (config.head_shapes() if head else {})
    block = config.component_shapes() | {f"{part}.scale": (config.hidden_size,) for part in config.stands_for.scales}
    depths = {part: config.stack_depth(config.reference_depth, part) for part in block}
    return outside, {f"blocks.{layer}.{part}": block[part] for part in block for layer in range(depths[part])}


def _bundle_config(name: str, foreign: PretrainedConfig, raw: dict, kind: Kind, stages: Sequence[int]) -> BundleConfig:
    if stages and not kind.row.stages:
        raise ValueError(f"`stages` are of a network that has some, and {name} is a {foreign.model_type}.")
    fields = own_fields(kind.family, foreign, tuple(SWIN_FIELDS if kind.row.stages else VIT_FIELDS))
    labels = {"id2label": foreign.id2label, "label2id": foreign.label2id, "turned": is_turned(raw)}
    if raw.get("problem_type"):
        labels["problem_type"] = raw["problem_type"]
    if kind.row.stages:
        return LinGeneSwinConfig(**fields, **labels, family=kind.family, decomposed_stages=list(stages) or None)
    return LinGeneConfig(**fields, **labels, family=kind.family, depth=foreign.num_hidden_layers)


def _read(name: str) -> dict[str, torch.Tensor]:
    """All tensors, mapped; safetensors first."""
    for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_NAME + ".index.json", WEIGHTS_NAME, WEIGHTS_NAME + ".index.json"):
        options = {"_raise_exceptions_for_missing_entries": False}
        path = cached_file(name, file, **options)
        if path is None:
            continue
        paths = get_checkpoint_shard_files(name, path)[0] if file.endswith(".json") else [path]
        return {key: tensor for part in paths for key, tensor in read_tensors(part).items()}
    raise ValueError(f"`source` {name} has no {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}.")


def _named(
    name: str, tensors: Mapping[str, torch.Tensor], kind: Kind, config: BundleConfig, head: bool
) -> tuple[dict, dict[str, str]]:
    """Tensors by the bundle's names, blocks as `blocks.{l}.{part}`; and those left out, with the reason."""
    row, found, left_out = kind.row, {}, {}
    for key, tensor in taken_apart(kind.family, tensors).items():
        bare = key.removeprefix(row.prefix)
        reason = next((why for pattern, why in kind.left_out.items() if re.fullmatch(pattern, bare)), None)
        if bare.startswith("classifier.") and not head:
            reason = "the classifier was not asked for"
        if reason is not None:
            left_out[key] = reason
            continue
        own = own_name(kind.family, bare, config.stacks)
        if own in found:
            raise ValueError(f"`{key}` of {name} stands there twice, with and without `{row.prefix}`.")
        found[own] = tensor
    return own_shapes(kind.family, found), left_out


def _reference(name: str, head: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model in transformers' own class."""
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    config = AutoConfig.from_pretrained(name)
    with quiet_loading():
        if head:
            model = AutoModelForImageClassification.from_pretrained(name, config=config, **options)
        else:
            model = AutoEncoder.from_pretrained(name, config=tower_config(config), **options)
    return partial(_outputs, model.eval())


@torch.no_grad()
def _outputs(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    return class_outputs(model, pixel_values)
