"""Networks written out: a trained ViT as one whose layers may change, what was chosen of it, BatchNorms folded.

No masks, no gates: modules of the size that they have. Where every layer kept its attention and MLPs are of one size
the result is a stock ViT.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, ViTConfig

from ..conversion.sources import Source, shown
from ..lingene_vit import (
    FIELDS,
    SHAPE_FIELDS,
    Bottleneck,
    LinGeneViTConfig,
    LinGeneViTForImageClassification,
)
from ..loading_lingene import stock_model
from ..recompose_lingene import BLOCK_LINEARS, BLOCK_NORMS
from .choose import Choice


Bottlenecks = Sequence[Mapping[str, Bottleneck]]  # per layer, by mixer


def dense_network(source: Source) -> LinGeneViTForImageClassification:
    """A trained ViT with its own weights, in float32, as the network that pruning starts from.

    Raises:
        ValueError: it has no classifier, or parts that a ViT has not.
    """
    if not source.head:
        raise ValueError(f"`model` {source.name} has no classifier; fine-tune it on images with labels first.")
    own, depth = source.config, source.depth
    config = LinGeneViTConfig(
        **{field: getattr(own, field) for field in (*SHAPE_FIELDS, "id2label", "label2id", "problem_type")},
        mixers=["attention"] * depth,
        intermediate_sizes=[own.intermediate_size] * depth,
    )
    network, state = LinGeneViTForImageClassification(config), dict(source.outside)
    for name in own.component_shapes():
        state |= {f"layers.{layer}.{_ours(name)}": tensor for layer, tensor in enumerate(source.layers(name))}
    foreign = sorted(state.keys() ^ network.state_dict().keys())
    if foreign:
        raise ValueError(f"`model` {source.name} is no plain ViT, whose parts alone are pruned: {shown(foreign)}.")
    network.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    return network.eval()


def changed(config: LinGeneViTConfig, **fields) -> LinGeneViTConfig:
    """A configuration with other values of some fields."""
    return LinGeneViTConfig(**{field: getattr(config, field) for field in FIELDS} | fields)


def _ours(name: str) -> str:
    """A bundle's name of a block tensor as it is here."""
    return name.replace("attention.", "mixer.", 1)


@torch.no_grad()
def write_network(
    dense: LinGeneViTForImageClassification, choice: Choice, bottlenecks: Bottlenecks
) -> LinGeneViTForImageClassification:
    """What was chosen of a network, as one of its own.

    Args:
        dense: not changed.
        choice: mixers and units.
        bottlenecks: for the layers that become convolutions.
    """
    config = changed(dense.config, mixers=choice.mixers, intermediate_sizes=choice.sizes)
    written = LinGeneViTForImageClassification(config).to(dense.dtype).eval()
    for name in ("embeddings", "layernorm", "classifier"):
        getattr(written, name).load_state_dict(getattr(dense, name).state_dict())
    for index, (layer, old) in enumerate(zip(written.layers, dense.layers)):
        mixer, kept = choice.mixers[index], torch.tensor(choice.units[index])
        if layer.mixer is not None:
            new = old.mixer if mixer == "attention" else bottlenecks[index][mixer]
            layer.mixer.load_state_dict(new.state_dict())
            layer.norm1.load_state_dict(old.norm1.state_dict())
        layer.norm2.load_state_dict(old.norm2.state_dict())
        for part, tensor in (("weight", old.mlp.fc1.weight[kept]), ("bias", old.mlp.fc1.bias[kept])):
            getattr(layer.mlp.fc1, part).copy_(tensor)
        layer.mlp.fc2.weight.copy_(old.mlp.fc2.weight[:, kept])
        layer.mlp.fc2.bias.copy_(old.mlp.fc2.bias)
    return written


@torch.no_grad()
def folded_network(network: LinGeneViTForImageClassification) -> LinGeneViTForImageClassification:
    """The same function in evaluation mode, with every BatchNorm folded into the convolution before it."""
    if network.config.folded:
        return network
    result = LinGeneViTForImageClassification(changed(network.config, folded=True))
    state = network.state_dict()
    for index, layer in enumerate(network.layers):
        if isinstance(layer.mixer, Bottleneck):
            fused = nn.utils.fuse_conv_bn_eval(layer.mixer.reduce.eval(), layer.mixer.norm.eval())
            prefix = f"layers.{index}.mixer."
            state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{prefix}norm.")}
            state |= {f"{prefix}reduce.weight": fused.weight, f"{prefix}reduce.bias": fused.bias}
    result.to(network.dtype).load_state_dict(state)
    return result.eval()


def simplest(network: LinGeneViTForImageClassification) -> PreTrainedModel:
    """The network, as a stock ViT where it is one."""
    config = network.config
    if set(config.mixers) != {"attention"} or len(set(config.intermediate_sizes)) != 1:
        return network
    state = network.state_dict()
    layers = {}
    for part in (*BLOCK_LINEARS, *BLOCK_NORMS):
        for name in (f"{part}.weight", f"{part}.bias"):
            keys = [f"layers.{layer}.{_ours(name)}" for layer in range(config.num_hidden_layers)]
            if keys[0] in state:
                layers[name] = [state[key] for key in keys]
    outside = {key: tensor for key, tensor in state.items() if not key.startswith("layers.")}
    fields = {field: getattr(config, field) for field in (*SHAPE_FIELDS, "id2label", "label2id", "problem_type")}
    sizes = {"num_hidden_layers": config.num_hidden_layers, "intermediate_size": config.intermediate_sizes[0]}
    stock = ViTConfig(**fields, **sizes)
    stock.materialised_from = config.pruned_from  # the field that says the same of other stock models
    return stock_model(outside, layers, stock, True, dtype=network.dtype)
