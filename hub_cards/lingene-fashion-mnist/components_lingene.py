"""The modules that hold a bundle's tensors: embeddings and components; none of them is called, functions read them."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_lingene import LinGeneConfig
from .recompose_lingene import BLOCK_LINEARS, BLOCK_NORMS
from .vit_lingene import BlockSettings, block


class SharedWeight(nn.Module):
    """One matrix or gain of a component with its bias; never called, `recompose` reads it.

    Not an `nn.Linear` on purpose: an adapter on a component would train (sum c A)(sum c B), not what its name says, so
    PEFT must refuse it.
    """

    def __init__(self, shape: tuple[int, ...], bias: bool, index: int):
        super().__init__()
        self.index = index  # of its component
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[:1])) if bias else None

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, shared by all layers; for adapters use model.materialise()"


class Component(nn.Module):
    """The whole parameter set of one encoder block (a learngene of LinDec), keys as in the bundle."""

    def __init__(self, config: LinGeneConfig, index: int):
        super().__init__()
        self.attention, self.mlp = nn.Module(), nn.Module()
        shapes = config.component_shapes()
        for name in (*BLOCK_LINEARS, *BLOCK_NORMS):
            parent, _, child = name.rpartition(".")
            weight = SharedWeight(shapes[f"{name}.weight"], f"{name}.bias" in shapes, index)
            (getattr(self, parent) if parent else self).add_module(child, weight)


class Embeddings(nn.Module):
    """Tokens, positions and patch projection, stored once for all sizes."""

    def __init__(self, config: LinGeneConfig):
        super().__init__()
        shapes = config.shared_shapes()
        for key, shape in shapes.items():
            place, _, name = key.rpartition(".")
            if place == "embeddings":
                setattr(self, name, nn.Parameter(torch.empty(shape)))
        patch = shapes["embeddings.patch_embeddings.weight"][2:]
        self.patch_embeddings = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)


class Classifier(nn.Linear):
    """A linear map of what a family's head reads: the class token and, by `patch_weight`, the mean of the patches.

    Args:
        config: of the bundle.
        num_labels: default the configuration's.
    """

    def __init__(self, config: LinGeneConfig, num_labels: int | None = None):
        super().__init__(config.hidden_size, config.num_labels if num_labels is None else num_labels)
        # A parameter only where the family has it, so that it is in no other bundle.
        self.patch_weight = nn.Parameter(torch.zeros_like(self.weight)) if config.stands_for.reads_patches else None


class CheckpointedBlock(GradientCheckpointingLayer):
    """One block for activation checkpointing: recomposes its layer inside, so not even the weights are kept.

    The components are explicit arguments: the recomputation in the backward pass sees the same tensors.
    """

    def forward(self, hidden: torch.Tensor, recompose_layer: Callable, settings: BlockSettings, *components):
        return block(hidden, recompose_layer(components), settings)
