"""The modules that hold a bundle's tensors: embeddings, components, layers of their own; none of them is called,
functions read them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_base_lingene import BundleConfig


class SharedWeight(nn.Module):
    """One matrix, gain or table of a block with its bias; never called, `recompose` reads it.

    Not an `nn.Linear` on purpose: an adapter on a component would train (sum c A)(sum c B), not what its name says, so
    PEFT must refuse it.

    Args:
        name: in a block; of a stage's block with that of the stage.
        shape, bias: of the weight, and of the bias or None.
        index: of its component; None of a layer that no component stands for.
    """

    def __init__(self, name: str, shape: tuple[int, ...], bias: tuple[int, ...] | None, index: int | None):
        super().__init__()
        self.name, self.index = name, index
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(bias)) if bias else None

    def extra_repr(self) -> str:
        shared = "" if self.index is None else ", shared by all layers"
        return f"{tuple(self.weight.shape)}{shared}; for adapters use model.materialise()"


def plant(root: nn.Module, shapes: Mapping[str, tuple[int, ...]], index: int | None) -> None:
    """Give a module a `SharedWeight` for every tensor, at the place that its name says.

    Args:
        shapes: of tensors by name, each ending in `.weight` or `.bias`.
        index: of the component.
    """
    for key, shape in shapes.items():
        name, _, kind = key.rpartition(".")
        if kind != "weight":
            continue
        *path, last = name.split(".")
        parent = root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        parent.add_module(last, SharedWeight(name, shape, shapes.get(f"{name}.bias"), index))


class Component(nn.Module):
    """The whole parameter set of one encoder block (a learngene of LinDec), keys as in the bundle."""

    def __init__(self, config: BundleConfig, index: int):
        super().__init__()
        plant(self, config.component_shapes(index), index)


class Embeddings(nn.Module):
    """Tokens, positions, patch projection and its norm, stored once for all sizes."""

    def __init__(self, config: BundleConfig):
        super().__init__()
        shapes = config.shared_shapes()
        for key, shape in shapes.items():
            place, _, name = key.rpartition(".")
            if place == "embeddings":
                setattr(self, name, nn.Parameter(torch.empty(shape)))
        width, _, *patch = shapes["embeddings.patch_embeddings.weight"]
        bias = "embeddings.patch_embeddings.bias" in shapes
        self.patch_embeddings = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch, bias=bias)
        if "embeddings.norm.weight" in shapes:
            self.norm = nn.LayerNorm(width)


class Classifier(nn.Linear):
    """A linear map of what a family's head reads: the class token and, by `patch_weight`, the mean of the patches.

    Args:
        config: of the bundle.
        num_labels: default the configuration's.
    """

    def __init__(self, config: BundleConfig, num_labels: int | None = None):
        super().__init__(config.hidden_size, config.num_labels if num_labels is None else num_labels)
        # A parameter only where the family has it, so that it is in no other bundle.
        self.patch_weight = nn.Parameter(torch.zeros_like(self.weight)) if config.stands_for.reads_patches else None


class Checkpointed(GradientCheckpointingLayer):
    """One layer for activation checkpointing: recomposes itself inside, so not even the weights are kept.

    The components are explicit arguments: the recomputation in the backward pass sees the same tensors.
    """

    def forward(self, hidden: torch.Tensor, run: Callable, recompose_layer: Callable, *components):
        return run(hidden, recompose_layer(components))
