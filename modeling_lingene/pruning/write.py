"""Networks written out: a trained one as one whose layers may change, what was chosen of it, BatchNorms folded.

No masks, no gates: modules of the size that they have. Where every layer kept its attention and MLPs are of one size
(in a Swin: one multiple of their stage's channels) the result is a stock model of its family.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from ..conversion.sources import Source
from ..kinds import PRUNED
from ..lingene_pruned import LABEL_FIELDS, Bottleneck, PrunedClassifier, PrunedConfig
from ..loading_lingene import stock_model
from ..recompose_lingene import POSITION_BIAS
from ..translating_lingene import own_shapes, stock_config
from .choose import Choice


HEADLESS = "`model` {} has no classifier; fine-tune it on images with labels first."
Bottlenecks = Sequence[Mapping[str, Bottleneck]]  # per layer, by mixer


def check_pruned(name: str, family: str) -> None:
    """Refuse a model of a family that is not pruned."""
    if family not in PRUNED:
        raise ValueError(f"`model` {name} is a {family} model; those that can be pruned: {', '.join(PRUNED)}.")


def dense_network(source: Source) -> PrunedClassifier:
    """A trained network with its own weights, in float32, as what pruning starts from.

    Raises:
        ValueError: it has no classifier, or is of a family that is not pruned.
    """
    own = source.config
    check_pruned(source.name, own.family)
    if not source.head:
        raise ValueError(HEADLESS.format(source.name))
    kind, tensors = PRUNED[own.family], dict(source.outside)
    for name in own.component_shapes():
        stack = next(stack for stack in own.stacks if name.startswith(stack))
        inner = name.removeprefix(stack)
        tensors |= {f"{stack}layers.{place}.{inner}": tensor for place, tensor in enumerate(source.layers(name))}
    network = kind.classifier(kind.config.unpruned(own))
    names, expected = bundle_names(network), network.state_dict()
    network.load_state_dict({key: tensors[names[key]].float().view_as(expected[key]) for key in expected})
    return network.eval()


def bundle_names(network: PrunedClassifier) -> dict[str, str]:
    """The names of an unpruned network's tensors, and those that a bundle has for them; layers all its own there."""
    shapes, names = network.config.shapes, {}
    for key in network.state_dict():
        part, _, inner = key.partition(".")
        index, _, name = inner.partition(".")
        if part == "layers":
            name = name.replace("mixer.", "attention.", 1)
            name = f"{POSITION_BIAS}.weight" if name == POSITION_BIAS else name
            names[key] = f"{shapes[int(index)].stack}layers.{shapes[int(index)].place}.{name}"
        else:
            names[key] = f"stage{int(index) + 1}.downsample.{name}" if part == "downsamples" else key
    return names


@torch.no_grad()
def write_network(dense: PrunedClassifier, choice: Choice, bottlenecks: Bottlenecks) -> PrunedClassifier:
    """What was chosen of a network, as one of its own.

    Args:
        dense: not changed.
        choice: mixers and units.
        bottlenecks: for the layers that become convolutions.
    """
    config = dense.config.changed(mixers=choice.mixers, intermediate_sizes=choice.sizes)
    written = type(dense)(config).to(dense.dtype).eval()
    for name, module in dense.named_children():
        if name != "layers":
            getattr(written, name).load_state_dict(module.state_dict())
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
def folded_network(network: PrunedClassifier) -> PrunedClassifier:
    """The same function in evaluation mode, with every BatchNorm folded into the convolution before it."""
    if network.config.folded:
        return network
    result = type(network)(network.config.changed(folded=True))
    state = network.state_dict()
    for index, layer in enumerate(network.layers):
        if isinstance(layer.mixer, Bottleneck):
            fused = nn.utils.fuse_conv_bn_eval(layer.mixer.reduce.eval(), layer.mixer.norm.eval())
            prefix = f"layers.{index}.mixer."
            state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{prefix}norm.")}
            state |= {f"{prefix}reduce.weight": fused.weight, f"{prefix}reduce.bias": fused.bias}
    result.to(network.dtype).load_state_dict(state)
    return result.eval()


def simplest(network: PrunedClassifier) -> PreTrainedModel:
    """The network, as a stock model of its family where it is one."""
    config: PrunedConfig = network.config
    alike = config.stock_fields()
    if alike is None:
        return network
    names = bundle_names(network)
    tensors = own_shapes(config.family, {names[key]: tensor for key, tensor in network.state_dict().items()})
    fields = {field: getattr(config, field) for field in (*config.shape_fields, *LABEL_FIELDS)}
    stock = stock_config(config.family, fields | alike)
    stock.materialised_from = config.pruned_from  # the field that says the same of other stock models
    return stock_model(tensors, {}, stock, True, dtype=network.dtype)
