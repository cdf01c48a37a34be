"""Configurations and tensors between a bundle and its family's files, as the rows of `families_lingene` say.

stock_config, own_fields                 fields of a configuration
stock_weights, stock_name                from a bundle into the family's files
own_name, own_shapes                     and back
put_together, taken_apart                tensors that those files have as one
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from .families_lingene import BIAS_TABLE, FAMILIES, STAGE


OWN_LAYER = re.compile(r"layers\.(?P<layer>\d+)\.(?P<inner>.+)")  # of a stage that no component stands for
SIDES = ("image_size", "patch_size")  # which families of square images have as one number


def stock_config(family: str, fields: Mapping[str, Any]) -> PretrainedConfig:
    """A family's own configuration from fields of `LinGeneConfig` and of every configuration of transformers."""
    row = FAMILIES[family]
    fields = {row.renamed.get(name, name): value for name, value in fields.items() if name not in row.lacks}
    if row.square and not row.interpolates:  # which takes lists as well
        for name in SIDES:
            height, width = (fields[name],) * 2 if isinstance(fields[name], int) else fields[name]
            if height != width:
                raise ValueError(f"`{name}` of the family {family} must be square; got {height}x{width}.")
            fields[name] = height
    if row.mlp_ratio:
        units, size = fields.pop("intermediate_size"), fields["hidden_size"]
        fields["mlp_ratio"] = (3 * units // 2 if fields.get(row.renamed["gated_mlp"]) else units) // size
    return getattr(transformers, row.config)(**fields, **row.fixed)


def own_fields(family: str, config: PretrainedConfig, names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of `LinGeneConfig` that a family's own configuration says, of those named and of the family's."""
    row = FAMILIES[family]
    theirs = {name: row.renamed.get(name, name) for name in (*names, *row.fields)}
    found = {name: getattr(config, other) for name, other in theirs.items() if hasattr(config, other)} | row.lacks
    if row.mlp_ratio:
        units = int(config.hidden_size * config.mlp_ratio)
        found["intermediate_size"] = (int(units * 2 / 3) + 7) // 8 * 8 if found["gated_mlp"] else units
    if row.gate_act and found["gated_mlp"]:
        found["hidden_act"] = row.gate_act
    return found


def stock_weights(family: str, outside: Mapping, layers: Mapping[str, list], head: bool) -> dict:
    """A bundle's tensors of one size under the names of the family's files.

    Args:
        outside: the tensors outside the blocks, by key of the bundle.
        layers: per block tensor the list of its layers' weights.
        head: of the model with a head.
    """
    row, weights = FAMILIES[family], {}
    prefix, gated = row.prefix if head else "", "mlp.gate.weight" in layers
    for key, tensor in outside.items():
        if key.startswith("classifier."):
            weights[key] = tensor
        else:
            tensor = tensor.reshape(tensor.shape[row.flat.get(key, 0) :])
            weights[prefix + stock_name(family, key)] = tensor.flatten(-2) if ".downsample." in key else tensor
    if "classifier.patch_weight" in weights:
        halves = (weights["classifier.weight"], weights.pop("classifier.patch_weight"))
        weights["classifier.weight"] = torch.cat(halves, dim=1)
    for name, parts in row.joined.items():
        weights[prefix + name] = torch.cat([weights.pop(prefix + part) for part in parts])
    for name, rows in layers.items():
        part, _, kind = name.rpartition(".")
        for layer, tensor in enumerate(rows):
            weights[prefix + stock_name(family, name, layer, gated)] = tensor
            if part in row.scales and kind == "bias":
                where = row.blocks.format(layer=layer)
                weights[f"{prefix}{where}{row.scales[part]}"] = tensor.new_ones(tensor.shape)
    return put_together(family, weights) if gated else weights


def put_together(family: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parts of gated MLPs as a family's files have them, one above the other."""
    made = dict(weights)
    for whole, parts in FAMILIES[family].stacked.items():
        for first in [key for key in weights if f".{parts[0]}." in key]:
            own = [first.replace(parts[0], part) for part in parts]
            made[first.replace(parts[0], whole)] = torch.cat([made.pop(key) for key in own])
    return made


def taken_apart(family: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Back from `put_together`; what is there in parts already stays."""
    made = dict(weights)
    for whole, parts in FAMILIES[family].stacked.items():
        for key in [key for key in weights if f".{whole}." in key]:
            made |= zip([key.replace(whole, part) for part in parts], made.pop(key).chunk(len(parts)))
    return made


def stock_name(family: str, key: str, layer: int | None = None, gated: bool = False) -> str:
    """The name in a family's files of a tensor of a bundle, but for the classifier and what a head's model prefixes.

    Args:
        key: in the bundle; of a block tensor its name in a component.
        layer: of a block tensor, from 0.
        gated: whether MLPs are.
    """
    row = FAMILIES[family]
    if key in row.outside:
        return row.outside[key]
    found = STAGE.fullmatch(key)
    stage, inner = (int(found["stage"]) - 1, found["inner"]) if found else (None, key)
    own = OWN_LAYER.fullmatch(inner)
    if own:
        layer, inner = int(own["layer"]), own["inner"]
    if layer is None:
        inner = inner.replace("patch_embeddings.", "patch_embeddings.projection.")
        return f"encoder.layers.{stage}.{inner}" if found else inner
    part, _, kind = inner.rpartition(".")
    parts = {**row.parts, **row.gated} if gated else row.parts
    place = row.blocks.format(stage=stage, layer=layer) + parts[part]
    return place if place.endswith(BIAS_TABLE) else f"{place}.{kind}"


def own_name(family: str, name: str, stacks: tuple[str, ...]) -> str:
    """Back from `stock_name`: the key of a tensor in a bundle, or `blocks.{layer}.` and its name in a component.

    Args:
        name: in the family's files, without the prefix of a model with a head. One that is not known stays.
        stacks: of the bundle's configuration.
    """
    row = FAMILIES[family]
    outside = {disk: own for own, disk in row.outside.items()}
    if name in outside:
        return outside[name]
    parts = {disk: own for own, disk in (*row.parts.items(), *row.gated.items())}
    parts |= {disk: f"{own}.scale" for own, disk in row.scales.items()}
    places = re.escape(row.blocks).replace(r"\{layer\}", r"(?P<layer>\d+)").replace(r"\{stage\}", r"(?P<stage>\d+)")
    found = re.fullmatch(f"{places}(?P<inner>.+)", name)
    if found:
        stage = f"stage{int(found['stage']) + 1}." if row.stages else ""
        inner, kind = found["inner"], ""
        if inner not in parts:  # LayerScale has no weight and bias
            inner, _, kind = inner.rpartition(".")
        elif inner.endswith(BIAS_TABLE):
            kind = "weight"
        if inner not in parts:
            return name
        own = f"{parts[inner]}.{kind}".rstrip(".")
        return f"blocks.{found['layer']}.{stage}{own}" if stage in stacks else f"{stage}layers.{found['layer']}.{own}"
    between = re.fullmatch(r"encoder\.layers\.(\d+)\.(downsample\..+)", name) if row.stages else None
    if between:
        return f"stage{int(between[1]) + 1}.{between[2]}"
    return name.replace("embeddings.patch_embeddings.projection.", "embeddings.patch_embeddings.")


def own_shapes(family: str, outside: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors outside the blocks, by the bundle's keys, with the shapes that a bundle gives them: back from
    `stock_weights`. What is not of the expected kind is left for whoever checks shapes.
    """
    own = {
        # Four patches that are merged have channels each.
        key: tensor.unflatten(-1, (4, -1)) if ".downsample." in key and tensor.shape[-1] % 4 == 0 else tensor
        for key, tensor in outside.items()
    }
    for key, count in FAMILIES[family].flat.items():
        if key in own and own[key].dim() == 3 - count:
            own[key] = own[key].reshape(*count * (1,), *own[key].shape)
    for name, parts in FAMILIES[family].joined.items():
        if name in own:
            own |= zip(parts, own.pop(name).chunk(len(parts)))
    weight = own.get("classifier.weight")
    if FAMILIES[family].reads_patches and weight is not None and weight.shape[-1] % 2 == 0:
        own["classifier.weight"], own["classifier.patch_weight"] = weight.chunk(2, dim=-1)
    return own
