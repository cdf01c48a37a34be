"""The models of Swin Transformers: constrained, and how a stock Swin of any size comes out of a bundle.

As `modeling_lingene`, for a network whose stages differ in width: the layers of the decomposed stages are recomposed
from their components (LinDec, Eq. 1, applied to stage 3 there), the others are the bundle's own.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from .configuration_base_lingene import Size
from .configuration_swin_lingene import LinGeneSwinConfig
from .modeling_base_lingene import RecomposingClassifier, RecomposingEncoder, RecomposingModel
from .swin_lingene import embed_patches, merge, shift_of, swin_block
from .vit_lingene import layer_norm


class LinGeneSwinPreTrainedModel(RecomposingModel):
    """What both models share: a Swin Transformer with recomposed layers."""

    config_class = LinGeneSwinConfig
    auto_map = {
        "AutoConfig": "configuration_swin_lingene.LinGeneSwinConfig",
        "AutoModel": "modeling_swin_lingene.LinGeneSwinModel",
        "AutoModelForImageClassification": "modeling_swin_lingene.LinGeneSwinForImageClassification",
    }
    _no_split_modules = ["Embeddings"]

    def _encode(self, pixel_values, size, interpolate, output_hidden_states, output_attentions, masked=None):
        if masked is not None:
            raise ValueError("`bool_masked_pos` needs a mask token, and a Swin's bundle has none; leave it out.")
        weights, config = self._shared(size), self.config
        hidden, grid = embed_patches(self._pixels(pixel_values, weights), weights)
        hidden = nn.functional.dropout(hidden, config.hidden_dropout_prob, self.training)
        states, attentions, depths = [hidden], [], config.stage_depths(size)
        settings = self._settings()
        for stage, depth in enumerate(depths, start=1):
            before = sum(depths[: stage - 1])
            each = [replace(settings, drop_path=self._drop_path(before + n, depths)) for n in range(depth)]
            run = partial(self._run_block, grid, each)
            for after in self._stage(hidden, size, stage, depth, weights, run):
                hidden, probabilities = after
            if stage < len(depths):
                hidden, grid = merge(hidden, weights, f"stage{stage}", grid)
            states.append(hidden)
            attentions.append(probabilities)
        hidden = layer_norm(hidden, weights, "layernorm", config.layer_norm_eps)
        attentions = [probabilities for probabilities in attentions if probabilities is not None]
        kept = ((states, output_hidden_states), (attentions, output_attentions))
        states, attentions = (tuple(values) if wanted else None for values, wanted in kept)
        return hidden, states, attentions

    def _stage(self, hidden, size, stage, depth, weights, run):
        """Hidden states and attention weights after each layer of a stage, recomposed or the bundle's own."""
        if stage in self.config.decomposed_stages:
            yield from self._layers(hidden, size, f"stage{stage}.", run)
            return
        for layer in range(depth):
            prefix = f"stage{stage}.layers.{layer}."
            own = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
            hidden, probabilities = run(layer, hidden, own)
            yield hidden, probabilities

    def _run_block(self, grid, settings, layer, hidden, weights):
        window = self.config.window_size
        return swin_block(hidden, weights, settings[layer], grid, window, shift_of(layer, grid, window))

    def _drop_path(self, layer: int, depths: list[int]) -> float:
        """Stochastic depth grows with the layer, from none to `drop_path_rate`."""
        return self.config.drop_path_rate * layer / max(sum(depths) - 1, 1) if self.training else 0.0

    def _pooled(self, hidden: torch.Tensor, size: Size) -> torch.Tensor:
        return hidden.mean(dim=1)

    def _head_input(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.mean(dim=1)


class LinGeneSwinModel(RecomposingEncoder, LinGeneSwinPreTrainedModel):
    """The encoder without a head; its materialised form is a `SwinModel`."""


class LinGeneSwinForImageClassification(RecomposingClassifier, LinGeneSwinPreTrainedModel):
    """The encoder and a linear classifier on the mean of the tokens; materialises to `SwinForImageClassification`."""


LinGeneSwinConfig.register_for_auto_class()
LinGeneSwinModel.register_for_auto_class("AutoModel")
LinGeneSwinForImageClassification.register_for_auto_class("AutoModelForImageClassification")
