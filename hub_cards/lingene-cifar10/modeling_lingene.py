"""The models of plain Vision Transformers: constrained, and how a stock model of any size comes out of a bundle.

`from_pretrained` gives a stock model of transformers, of the bundle's family; with `constrained=True` it gives one of
the classes here, whose forward pass recomposes the layers from the components (LinDec, Eq. 1) and may do so at another
size in every call: `model(pixel_values, depth=6, width_ratio="1/2", num_components=4)`.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from .bundle_lingene import FINAL_NORM
from .configuration_base_lingene import Size, sides
from .configuration_lingene import LinGeneConfig
from .loading_lingene import stock_model
from .modeling_base_lingene import RecomposingClassifier, RecomposingEncoder, RecomposingModel
from .vit_lingene import attention_pool, block, embed, layer_norm, rotary_turns


class LinGenePreTrainedModel(RecomposingModel):
    """What both models share: a plain ViT of recomposed layers."""

    config_class = LinGeneConfig
    auto_map = {
        "AutoConfig": "configuration_lingene.LinGeneConfig",
        "AutoModel": "modeling_lingene.LinGeneModel",
        "AutoModelForImageClassification": "modeling_lingene.LinGeneForImageClassification",
        "AutoBackbone": "modeling_lingene.LinGeneBackbone",
    }
    _no_split_modules = ["Embeddings"]
    _supports_flash_attn = True
    _supports_flex_attn = True

    def _encode(self, pixel_values, size, interpolate, output_hidden_states, output_attentions, masked=None):
        weights, config = self._shared(size), self.config
        pixel_values = self._pixels(pixel_values, weights)
        family = config.stands_for
        interpolate = family.interpolates or bool(interpolate)
        eps, how = config.layer_norm_eps, (interpolate, family.antialias, masked)
        hidden = embed(pixel_values, weights, sides(config.image_size), *how, eps)
        hidden = nn.functional.dropout(hidden, config.hidden_dropout_prob, self.training)
        states, attentions, settings = [hidden], [], self._settings()
        if family.rotates:
            settings = replace(settings, turns=self._turns(pixel_values))
        for after, probabilities in self._layers(hidden, size, "", partial(run_block, settings)):
            hidden = after
            if output_hidden_states:
                states.append(hidden)
            if output_attentions and probabilities is not None:
                attentions.append(probabilities)
        if family.norms_tokens:
            hidden = layer_norm(hidden, weights, "layernorm", eps)
        kept = ((states, output_hidden_states), (attentions, output_attentions))
        states, attentions = (tuple(values) if wanted else None for values, wanted in kept)
        return hidden, states, attentions

    def _turns(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `rotary_turns`. In training places are not moved, as stock models move theirs (`pos_embed_rescale` and
        the like): components learn what a teacher says of patches where they are.
        """
        config = self.config
        grid = tuple(side // step for side, step in zip(pixel_values.shape[-2:], sides(config.patch_size)))
        before = config.stands_for.class_token + config.num_register_tokens
        return rotary_turns(grid, before, config.head_size, config.rope_theta, pixel_values)

    def normed(self, hidden: torch.Tensor, size: Size) -> torch.Tensor:
        """Tokens of a size, (b, t, d), as its final LayerNorm leaves them, which some families leave to the reader."""
        if self.config.stands_for.norms_tokens:
            return hidden
        return layer_norm(hidden, self._shared(size), "layernorm", self.config.layer_norm_eps)

    def _pooled(self, hidden: torch.Tensor, size: Size) -> torch.Tensor:
        if self.config.stands_for.attends:
            return attention_pool(hidden, self._shared(size), self._settings())
        return self.normed(hidden[:, 0], size)

    def _head_input(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.config.stands_for.class_token:
            return hidden.mean(dim=1)
        if not self.config.stands_for.reads_patches:
            return hidden[:, 0]
        patches = hidden[:, 1 + self.config.num_register_tokens :]
        return torch.cat((hidden[:, 0], patches.mean(dim=1)), dim=1)


def run_block(settings, layer, hidden, weights):
    """`block` for `RecomposingModel._layers`: every layer is of one kind."""
    return block(hidden, weights, settings)


class LinGeneModel(RecomposingEncoder, LinGenePreTrainedModel):
    """The encoder without a head; its materialised form is the family's encoder, a `ViTModel` without pooler."""


class LinGeneForImageClassification(RecomposingClassifier, LinGenePreTrainedModel):
    """The encoder and a linear classifier on the tokens that the family's reads; materialises to the family's."""


class LinGeneBackbone(LinGenePreTrainedModel):
    """Where `AutoBackbone` leads: `from_pretrained` gives the backbone of the bundle's family, which is no constrained
    model. Feature maps are of the layers that a size has.
    """

    def __init__(self, config: LinGeneConfig):
        raise ValueError("A backbone comes from a bundle's weights: use `from_pretrained`.")

    @classmethod
    def _load_stock(cls, bundle, size, dtype, *model_args, out_features=None, out_indices=None, **kwargs):
        if bundle.config.stands_for.backbone is None:
            raise ValueError(
                f"`family` {bundle.config.family} of {bundle.name} has no backbone in transformers; use AutoModel "
                "with output_hidden_states=True."
            )
        asked = {"out_features": out_features, "out_indices": out_indices}
        asked = {name: list(stages) for name, stages in asked.items() if stages is not None}
        try:
            config = bundle.config.stock_config(size, **asked)
        except ValueError as error:
            if not asked:
                raise
            said = f"`{next(iter(asked))}`: {error}; this size has the stages stem and stage1 to stage{size.depth}."
            raise ValueError(said) from None
        outside, layers = bundle.read(size, False, dtype)
        kwargs["dtype"] = outside[FINAL_NORM].dtype
        return stock_model(outside, layers, config, False, backbone=True, **kwargs)

    @classmethod
    def _load_constrained(cls, bundle, *args, **kwargs):
        raise ValueError("`constrained` is for AutoModel and AutoModelForImageClassification; a backbone is stock.")


LinGeneConfig.register_for_auto_class()
LinGeneModel.register_for_auto_class("AutoModel")
LinGeneForImageClassification.register_for_auto_class("AutoModelForImageClassification")
LinGeneBackbone.register_for_auto_class("AutoBackbone")
