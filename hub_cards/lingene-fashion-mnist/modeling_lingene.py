"""The models: constrained (components are the parameters), and how a stock ViT of any size comes out of a bundle.

`from_pretrained` gives a plain transformers ViT; with `constrained=True` it gives one of the classes here, whose
forward pass recomposes the layers from the components (LinDec, Eq. 1) and may do so at another size in every call:
`model(pixel_values, depth=6, width_ratio="1/2", num_components=4)`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from .components_lingene import CheckpointedBlock, Component, Embeddings, SharedWeight
from .configuration_lingene import LinGeneConfig, Size
from .loading_lingene import BundleMixin, record_origin, stock_vit
from .recompose_lingene import recompose, slice_tensor
from .vit_lingene import BlockSettings, attention_function, block, embed, layer_norm


NO_ADAPTERS = (
    "Adapters on a constrained model are refused: on components they would train (sum c A)(sum c B), not what their "
    "name says, and the other modules are read, not called. Put them on `model.materialise()`."
)


class LinGenePreTrainedModel(BundleMixin, PreTrainedModel):
    """What both models share: initialisation, sizes, the recomposing encoder, loading, saving."""

    config_class = LinGeneConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Embeddings"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    is_causal = False
    has_head = False

    def __init__(self, config: LinGeneConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.components = nn.ModuleList(Component(config, n) for n in range(config.reference_components))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self._held: tuple[int, dict] | None = None  # how many components are held, and what they give by size
        self.checkpointed = CheckpointedBlock()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Embeddings):
            init.trunc_normal_(module.position_embeddings, std=std)
            init.trunc_normal_(module.cls_token, std=std)
        elif isinstance(module, SharedWeight):
            # Matrices so that recomposed layers get the usual scale, gains so that they recompose to 1, biases 0.
            if module.weight.dim() == 1:
                init.constant_(module.weight, component_gains(self.config)[module.index])
            else:
                init.trunc_normal_(module.weight, std=std / component_scale(self.config))
            if module.bias is not None:
                init.zeros_(module.bias)

    def recomposed(self, size: Size) -> dict[str, torch.Tensor]:
        """The block weights of one size, by name, each (l, ...), with gradients to the components (LinDec, Eq. 1)."""
        return self._recompose(self._components(size), self.config.coefficients(size), size, self._base(size))

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Inside, the first `count` components are taken as fixed: recomposed once per size, without gradients.

        For phases that train later components only (incremental training, LinDec section 3.2).
        """
        self._held = (count, {}) if count else None
        try:
            yield
        finally:
            self._held = None

    def _base(self, size: Size) -> dict[str, torch.Tensor] | None:
        """What the held components give for a size, (l, ...) by name; None where not all of them are in it."""
        if self._held is None or size.num_components < self._held[0]:
            return None
        return self._held_weights(size)

    @torch.compiler.disable  # changes a dictionary
    def _held_weights(self, size: Size) -> dict[str, torch.Tensor]:
        count, known = self._held
        key = (size.depth, size.width_ratio)
        if key not in known:
            with torch.no_grad():
                table = self.config.coefficients(size)[:, :count]
                known[key] = self._recompose(self._components(size)[:count], table, size, None)
        return known[key]

    def _components(self, size: Size) -> list[dict[str, torch.Tensor]]:
        return [dict(component.named_parameters()) for component in self.components[: size.num_components]]

    def _recompose(
        self, components: list[dict], table: torch.Tensor, size: Size, base: dict | None
    ) -> dict[str, torch.Tensor]:
        """`base` holds what the first components give; they are skipped."""
        first = self._held[0] if base is not None else 0
        if first == len(components):
            return base
        weights = {}
        for name in components[0]:
            stack = torch.stack([slice_of(name, part[name], size) for part in components[first:]])
            scaled = table[:, first:] * self.config.branch_scale(name, size)
            weights[name] = recompose(stack, scaled, None if base is None else base[name])
            if name.startswith("norm") and name.endswith("weight") and base is None:
                weights[name] = weights[name] + self.config.gain_offset
        return weights

    def _shared(self, size: Size) -> dict[str, torch.Tensor]:
        """The tensors outside the blocks at the width of a size, by key."""
        named = [(f"embeddings.{name}", tensor) for name, tensor in self.embeddings.named_parameters()]
        named += [(f"layernorm.{name}", tensor) for name, tensor in self.layernorm.named_parameters()]
        return {key: slice_of(key, tensor, size) for key, tensor in named}

    def _settings(self) -> BlockSettings:
        dropout, attention_dropout = self.config.hidden_dropout_prob, self.config.attention_probs_dropout_prob
        return BlockSettings(
            head_size=self.config.hidden_size // self.config.num_attention_heads,
            layer_norm_eps=self.config.layer_norm_eps,
            activation=self.activation,
            hidden_dropout=dropout if self.training else 0.0,
            attention_dropout=attention_dropout if self.training else 0.0,
            attend=attention_function(self.config._attn_implementation),
            module=self,
        )

    def _blocks(self, hidden: torch.Tensor, size: Size) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Hidden states and attention weights after each block."""
        settings = self._settings()
        if self.training and self.checkpointed.gradient_checkpointing:
            components, table, held = self._components(size), self.config.coefficients(size), self._base(size)
            names, flat = list(components[0]), [tensor for part in components for tensor in part.values()]
            for layer in range(size.depth):
                base = None if held is None else {name: rows[layer : layer + 1] for name, rows in held.items()}

                def recompose_layer(flat, row=table[layer : layer + 1], base=base):
                    parts = [dict(zip(names, flat[i : i + len(names)])) for i in range(0, len(flat), len(names))]
                    return {name: stacked[0] for name, stacked in self._recompose(parts, row, size, base).items()}

                hidden, probabilities = self.checkpointed(hidden, recompose_layer, settings, *flat)
                yield hidden, probabilities
        else:
            # One unbind per tensor, not one index per layer: its backward stacks the layers' gradients in one go.
            weights = {name: stacked.unbind() for name, stacked in self.recomposed(size).items()}
            for layer in range(size.depth):
                hidden, probabilities = block(hidden, {name: rows[layer] for name, rows in weights.items()}, settings)
                yield hidden, probabilities

    def _encode(
        self, pixel_values, size, interpolate_pos_encoding, output_hidden_states, output_attentions, masked=None
    ):
        """Images (b, channels, height, width) -> normed hidden states (b, t, d), all hidden states, attentions."""
        if pixel_values is None:
            raise ValueError("`pixel_values` is missing.")
        if hasattr(self, "peft_config"):
            raise ValueError(NO_ADAPTERS)
        weights = self._shared(size)
        pixel_values = pixel_values.to(weights["embeddings.patch_embeddings.weight"].dtype)
        image_size = self.config.image_size
        image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        hidden = embed(pixel_values, weights, image_size, bool(interpolate_pos_encoding), masked)
        hidden = nn.functional.dropout(hidden, self.config.hidden_dropout_prob, self.training)
        states, attentions = [hidden], []
        for after, probabilities in self._blocks(hidden, size):
            hidden = after
            if output_hidden_states:
                states.append(hidden)
            if output_attentions and probabilities is not None:
                attentions.append(probabilities)
        hidden = layer_norm(hidden, weights, "layernorm", self.config.layer_norm_eps)
        kept = ((states, output_hidden_states), (attentions, output_attentions))
        states, attentions = (tuple(values) if wanted else None for values, wanted in kept)
        return hidden, states, attentions

    @torch.no_grad()
    def materialise(self, depth=None, width_ratio=None, num_components=None) -> ViTForImageClassification | ViTModel:
        """A stock ViT of one size with its own weights, from the components as they are now.

        Args:
            depth, width_ratio, num_components: the size; default that of the model's own configuration.

        Returns:
            `ViTForImageClassification`, or `ViTModel` without pooler from a `LinGeneModel` (reload a saved one with
            `add_pooling_layer=False`), on the same device, in the same dtype and mode.

        Raises:
            ValueError: a size that the bundle does not have.
        """
        size = self.config.size(depth, width_ratio, num_components)
        outside = {key: tensor.clone() for key, tensor in self._shared(size).items()}
        if self.has_head:
            outside |= {key: tensor.clone() for key, tensor in self._head(size).items()}
        layers = {name: [row.clone() for row in stacked] for name, stacked in self.recomposed(size).items()}
        vit = stock_vit(outside, layers, self.config.vit_config(size), self.has_head, dtype=self.dtype)
        record_origin(vit, self.name_or_path, size)
        return vit.to(self.device).train(self.training)

    def _head(self, size: Size) -> dict[str, torch.Tensor]:
        named = [(f"classifier.{name}", tensor) for name, tensor in self.classifier.named_parameters()]
        return {key: slice_of(key, tensor, size) for key, tensor in named}

    def add_adapter(self, *args, **kwargs):
        raise ValueError(NO_ADAPTERS)


class LinGeneModel(LinGenePreTrainedModel):
    """The encoder without a head; its materialised form is a `ViTModel` without pooler."""

    def __init__(self, config: LinGeneConfig):
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        depth: int | None = None,
        width_ratio: float | str | None = None,
        num_components: int | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple:
        """Images through one size of the bundle.

        Args:
            pixel_values: (b, channels, height, width).
            depth, width_ratio, num_components: the size of this call; default the configuration's.
            bool_masked_pos: (b, patches); the mask token takes the place of these patches, where the family has one.

        Returns:
            `last_hidden_state` (b, t, d); `hidden_states` and `attentions` (b, h, t, t) on request.
        """
        config = self.config
        hidden, states, attentions = self._encode(
            pixel_values,
            config.size(depth, width_ratio, num_components),
            interpolate_pos_encoding,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.output_attentions if output_attentions is None else output_attentions,
            bool_masked_pos,
        )
        output = BaseModelOutputWithPooling(last_hidden_state=hidden, hidden_states=states, attentions=attentions)
        return output if _as_dict(config, return_dict) else output.to_tuple()


class LinGeneForImageClassification(LinGenePreTrainedModel):
    """The encoder and a linear classifier on the class token; its materialised form is `ViTForImageClassification`."""

    has_head = True

    def __init__(self, config: LinGeneConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        depth: int | None = None,
        width_ratio: float | str | None = None,
        num_components: int | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutput | tuple:
        """Images through one size of the bundle and the head.

        Args:
            pixel_values: (b, channels, height, width).
            labels: (b,) class indices; the loss is transformers' for image classification.
            depth, width_ratio, num_components: the size of this call; default the configuration's.

        Returns:
            `logits` (b, num_labels), `loss` with labels; `hidden_states` and `attentions` (b, h, t, t) on request.
        """
        config = self.config
        size = config.size(depth, width_ratio, num_components)
        hidden, states, attentions = self._encode(
            pixel_values,
            size,
            interpolate_pos_encoding,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.output_attentions if output_attentions is None else output_attentions,
        )
        logits = hidden[:, 0]
        if config.num_labels > 0:
            head = self._head(size)
            logits = nn.functional.linear(logits, head["classifier.weight"], head["classifier.bias"])
        loss = None if labels is None else self.loss_function(labels, logits, config, **kwargs)
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=states, attentions=attentions)
        return output if _as_dict(config, return_dict) else output.to_tuple()


def slice_of(key: str, tensor: torch.Tensor, size: Size) -> torch.Tensor:
    """A tensor at the width of a size, as a view."""
    return slice_tensor(key, tensor, size.width_ratio, size.trailing)


def reference_coefficients(config: LinGeneConfig, count: int | None = None) -> torch.Tensor:
    """a(l, n) of the first `count` components, default all, at the depth they were made for."""
    return config.coefficients(config.size(config.reference_depth, 1, count or config.reference_components))


def component_scale(config: LinGeneConfig, count: int | None = None) -> float:
    """sqrt(mean_l sum_n a(l, n)^2): how much larger than a component a layer of `count` random ones is."""
    return float(reference_coefficients(config, count).square().sum(dim=1).mean().sqrt())


def component_gains(config: LinGeneConfig, count: int | None = None) -> list[float]:
    """The LayerNorm gain of each of `count` components with which every layer's recomposes to 1, or nearest to it.

    The constant component carries it where there is one, and `gain_offset` where it is 1.
    """
    table = reference_coefficients(config, count)
    target = torch.full((len(table), 1), 1.0 - config.gain_offset, dtype=table.dtype, device=table.device)
    return [round(gain, 12) for gain in torch.linalg.lstsq(table, target, driver="gelsd").solution.flatten().tolist()]


def _as_dict(config: LinGeneConfig, return_dict: bool | None) -> bool:
    return config.return_dict if return_dict is None else return_dict


LinGeneConfig.register_for_auto_class()
LinGeneModel.register_for_auto_class("AutoModel")
LinGeneForImageClassification.register_for_auto_class("AutoModelForImageClassification")
