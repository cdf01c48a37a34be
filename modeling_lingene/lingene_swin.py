"""A Swin Transformer of layers that need not be alike: attention, a convolution or nothing, and MLPs of any size.

What `lingene prune` writes of a Swin; see `lingene_pruned`. It is transformers' Swin where every layer has attention.
A convolution sees the whole map of its stage's patches, in search and afterwards alike; windows are attention's. The
file travels with every such model.
"""

from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_base_lingene import sides
from .configuration_swin_lingene import FIELDS as BUNDLE_FIELDS
from .configuration_swin_lingene import SWIN_FIELDS, LinGeneSwinConfig, SwinShape
from .lingene_pruned import (
    PRUNED_FIELDS,
    Attention,
    LayerShape,
    PrunedClassifier,
    PrunedConfig,
    PrunedEncoder,
    PrunedModel,
)
from .swin_lingene import PATCH_NORM_EPS, embed_patches, merge, shift_of, within_windows


SHAPE_FIELDS = tuple(field for field in SWIN_FIELDS if field != "mlp_ratio")


class LinGenePrunedSwinConfig(SwinShape, PrunedConfig):
    """Configuration of a Swin Transformer whose layers need not be alike.

    Args:
        embed_dim, depths, num_heads, window_size, ...: as in `SwinConfig`.
        mixers, intermediate_sizes, folded, pruned_from: see `PrunedConfig`; layers of all stages in their order.

    Raises:
        ValueError: lists that are not of one length, words or sizes that do not exist, stages that contradict them.
    """

    model_type = "lingene_pruned_swin"
    family = "swin"
    class_token = False
    shape_fields = SHAPE_FIELDS
    fields = {**{field: BUNDLE_FIELDS[field] for field in SHAPE_FIELDS}, **PRUNED_FIELDS}

    intermediate_sizes: list[int] | tuple[int, ...] = (384,) * 2 + (768,) * 2 + (1536,) * 6 + (3072,) * 2
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 4
    num_channels: int = 3
    qkv_bias: bool = True

    def check_network(self) -> None:
        self.check_lists()
        if sum(self.depths) != len(self.mixers):
            raise ValueError(f"`depths` {self.depths} are {sum(self.depths)} layers, and `mixers` {len(self.mixers)}.")
        self.check_shape()

    @property
    def shapes(self) -> list[LayerShape]:
        return [
            self._shape(stage, place) for stage, depth in enumerate(self.depths, start=1) for place in range(depth)
        ]

    def _shape(self, stage: int, place: int) -> LayerShape:
        grid, window = self.stage_grid(stage), self.window_size
        patches = prod(grid)
        return LayerShape(
            self.stage_width(stage),
            self.num_heads[stage - 1],
            patches,
            tokens=patches,
            projected=prod(-(-side // window) * window for side in grid),
            seen=window**2,
            positions=(2 * window - 1) ** 2,
            stack=f"stage{stage}.",
            place=place,
        )

    @staticmethod
    def whole_sizes(own: LinGeneSwinConfig) -> list[int]:
        stages = enumerate(own.depths, start=1)
        return [int(own.mlp_ratio * own.stage_width(stage)) for stage, depth in stages for _ in range(depth)]

    def stock_fields(self) -> dict[str, Any] | None:
        ratio = self.intermediate_sizes[0] / self.embed_dim
        alike = [int(ratio * shape.width) for shape in self.shapes] == self.intermediate_sizes
        return {"mlp_ratio": ratio} if alike and set(self.mixers) == {"attention"} else None


class Embeddings(nn.Module):
    """Normed patches."""

    def __init__(self, config: LinGenePrunedSwinConfig):
        super().__init__()
        patch = sides(config.patch_size)
        self.patch_embeddings = nn.Conv2d(config.num_channels, config.embed_dim, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(config.embed_dim, eps=PATCH_NORM_EPS)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        return embed_patches(pixel_values, {f"embeddings.{name}": tensor for name, tensor in self.named_parameters()})


class WindowAttention(Attention):
    """Multi-head self-attention within windows, which every other layer shifts."""

    def __init__(self, shape: LayerShape, bias: bool, window: int):
        super().__init__(shape.width, bias)
        self.window, self.place = window, shape.place
        self.position_bias = nn.Parameter(torch.empty(shape.positions, shape.heads))

    def forward(self, hidden, settings, grid):
        """(b, t, d) -> (b, t, d), and the attention weights (b * windows, h, window^2, window^2) or None."""
        among, shift = partial(self.among, settings=settings), shift_of(self.place, grid, self.window)
        return within_windows(hidden, grid, self.window, shift, self.position_bias, among)


class Downsample(nn.Module):
    """Every four patches become one of twice the channels."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=PATCH_NORM_EPS)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, hidden: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
        weights = {f"stage.downsample.{name}": tensor for name, tensor in self.named_parameters()}
        return merge(hidden, weights, "stage", grid)


class LinGenePrunedSwinPreTrainedModel(PrunedModel):
    """What both models share: a Swin Transformer."""

    config_class = LinGenePrunedSwinConfig
    auto_map = {
        "AutoConfig": "lingene_swin.LinGenePrunedSwinConfig",
        "AutoModel": "lingene_swin.LinGenePrunedSwinModel",
        "AutoModelForImageClassification": "lingene_swin.LinGenePrunedSwinForImageClassification",
    }
    embeddings_class = Embeddings
    _no_split_modules = ["Embeddings", "Layer", "Downsample"]
    every_state = False

    def __init__(self, config: LinGenePrunedSwinConfig):
        super().__init__(config)
        widths = map(config.stage_width, range(1, len(config.depths)))
        self.downsamples = nn.ModuleList(Downsample(width) for width in widths)

    def made_attention(self, shape: LayerShape) -> Attention:
        return WindowAttention(shape, self.config.qkv_bias, self.config.window_size)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, WindowAttention):
            init.zeros_(module.position_bias)

    def embed(self, pixel_values, interpolate=False):
        return self.embeddings(pixel_values)  # of any size: there are no positions to interpolate

    def entered(self, layer, hidden, grid):
        if self.places[layer] or not layer:
            return hidden, grid
        stage = self.places[:layer].count(0)  # how many begin before it
        return self.downsamples[stage - 1](hidden, grid)

    def drop_path(self, layer: int) -> float:
        return self.config.drop_path_rate * layer / max(len(self.layers) - 1, 1)

    def pooled(self, hidden):
        return hidden.mean(dim=1)

    head_input = pooled


class LinGenePrunedSwinModel(PrunedEncoder, LinGenePrunedSwinPreTrainedModel):
    """The encoder without a head."""


class LinGenePrunedSwinForImageClassification(PrunedClassifier, LinGenePrunedSwinPreTrainedModel):
    """The encoder and a linear classifier on the mean of the tokens."""


LinGenePrunedSwinConfig.register_for_auto_class()
LinGenePrunedSwinModel.register_for_auto_class("AutoModel")
LinGenePrunedSwinForImageClassification.register_for_auto_class("AutoModelForImageClassification")
