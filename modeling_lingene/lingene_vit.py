"""A Vision Transformer of layers that need not be alike: attention, a convolution or nothing, and MLPs of any size.

What `lingene prune` writes of a ViT; see `lingene_pruned`. It is transformers' ViT where every layer has attention. A
convolution sees the patch tokens only and adds nothing to the class token. The file travels with every such model.
"""

from math import prod
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_base_lingene import sides
from .configuration_lingene import FIELDS as BUNDLE_FIELDS
from .configuration_lingene import VIT_FIELDS, LinGeneConfig
from .lingene_pruned import PRUNED_FIELDS, LayerShape, PrunedClassifier, PrunedConfig, PrunedEncoder, PrunedModel
from .vit_lingene import embed


SHAPE_FIELDS = tuple(field for field in VIT_FIELDS if field != "intermediate_size")


class LinGeneViTConfig(PrunedConfig):
    """Configuration of a Vision Transformer whose layers need not be alike.

    Args:
        hidden_size, num_attention_heads, image_size, ...: as in `ViTConfig`.
        mixers, intermediate_sizes, folded, pruned_from: see `PrunedConfig`.

    Raises:
        ValueError: lists that are not of one length, words or sizes that do not exist.
    """

    model_type = "lingene_vit"
    family = "vit"
    class_token = True
    shape_fields = SHAPE_FIELDS
    fields = {**{field: BUNDLE_FIELDS[field] for field in SHAPE_FIELDS}, **PRUNED_FIELDS}

    hidden_size: int = 768
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True

    def check_network(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` {self.hidden_size} is not a multiple of `num_attention_heads` "
                f"{self.num_attention_heads}."
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def patch_grid(self) -> tuple[int, int]:
        """How many patches an image has, down and across."""
        height, width = (size // step for size, step in zip(sides(self.image_size), sides(self.patch_size)))
        return height, width

    @property
    def shapes(self) -> list[LayerShape]:
        patches, shape = prod(self.patch_grid), (self.hidden_size, self.num_attention_heads)
        tokens = patches + 1
        return [
            LayerShape(*shape, patches, tokens, projected=tokens, seen=tokens, place=layer)
            for layer in range(len(self.mixers))
        ]

    @staticmethod
    def whole_sizes(own: LinGeneConfig) -> list[int]:
        return [own.intermediate_size] * own.reference_depth

    def stock_fields(self) -> dict[str, Any] | None:
        if set(self.mixers) != {"attention"} or len(set(self.intermediate_sizes)) != 1:
            return None
        return {"num_hidden_layers": len(self.mixers), "intermediate_size": self.intermediate_sizes[0]}


class Embeddings(nn.Module):
    """Patches, class token and positions."""

    def __init__(self, config: LinGeneViTConfig):
        super().__init__()
        size, patch = config.hidden_size, sides(config.patch_size)
        self.image_size = sides(config.image_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, size))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + prod(config.patch_grid), size))
        self.patch_embeddings = nn.Conv2d(config.num_channels, size, kernel_size=patch, stride=patch)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> torch.Tensor:
        weights = {f"embeddings.{name}": tensor for name, tensor in self.named_parameters()}
        return embed(pixel_values, weights, self.image_size, interpolate_pos_encoding)


class LinGeneViTPreTrainedModel(PrunedModel):
    """What both models share: a Vision Transformer."""

    config_class = LinGeneViTConfig
    auto_map = {
        "AutoConfig": "lingene_vit.LinGeneViTConfig",
        "AutoModel": "lingene_vit.LinGeneViTModel",
        "AutoModelForImageClassification": "lingene_vit.LinGeneViTForImageClassification",
    }
    embeddings_class = Embeddings
    _supports_flash_attn = True
    _supports_flex_attn = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Embeddings):
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)

    def embed(self, pixel_values, interpolate=False):
        steps = sides(self.config.patch_size)
        grid = tuple(size // step for size, step in zip(pixel_values.shape[-2:], steps))
        return self.embeddings(pixel_values, interpolate), grid

    def head_input(self, hidden):
        return hidden[:, 0]


class LinGeneViTModel(PrunedEncoder, LinGeneViTPreTrainedModel):
    """The encoder without a head."""


class LinGeneViTForImageClassification(PrunedClassifier, LinGeneViTPreTrainedModel):
    """The encoder and a linear classifier on the class token."""


LinGeneViTConfig.register_for_auto_class()
LinGeneViTModel.register_for_auto_class("AutoModel")
LinGeneViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
