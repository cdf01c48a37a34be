"""What the constrained models of every kind of network share: components as parameters, and the layers made of them.

A kind of network adds its modules and its forward pass (`modeling_lingene`, `modeling_swin_lingene`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from .components_lingene import Checkpointed, Classifier, Component, Embeddings, SharedWeight, plant
from .configuration_base_lingene import BundleConfig, Size
from .families_lingene import class_name
from .loading_lingene import BundleMixin, record_origin, stock_model
from .recompose_lingene import POSITION_BIAS, is_gain, recompose, slice_tensor
from .vit_lingene import BlockSettings, attention_function


NO_ADAPTERS = (
    "Adapters on a constrained model are refused: on components they would train (sum c A)(sum c B), not what their "
    "name says, and the other modules are read, not called. Put them on `model.materialise()`."
)


class RecomposingModel(BundleMixin, PreTrainedModel):
    """Initialisation, sizes, recomposing, loading and saving of a model whose parameters are components."""

    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    is_causal = False
    has_head = False

    def __init__(self, config: BundleConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.components = nn.ModuleList(Component(config, n) for n in range(config.reference_components))
        plant(self, config.own_layer_shapes(), None)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self._held: tuple[int, dict] | None = None  # how many components are held, and what they give by size
        self.checkpointed = Checkpointed()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Embeddings):
            for name, tensor in module.named_parameters(recurse=False):
                if name == "mask_token":  # registers that begin alike would stay alike
                    init.zeros_(tensor)
                else:
                    init.trunc_normal_(tensor, std=std)
        elif isinstance(module, Classifier) and module.patch_weight is not None:
            init.trunc_normal_(module.patch_weight, std=std)
        elif isinstance(module, SharedWeight):
            # Matrices so that recomposed layers get the usual scale, gains so that they recompose to 1, the rest 0.
            gain, own = is_gain(f"{module.name}.weight"), module.index is None
            if gain:
                init.constant_(
                    module.weight, 1.0 if own else component_gains(self.config, name=module.name)[module.index]
                )
            elif module.name.endswith(POSITION_BIAS):
                init.zeros_(module.weight)
            else:
                scale = 1.0 if own else component_scale(self.config, name=module.name)
                init.trunc_normal_(module.weight, std=std / scale)
            if module.bias is not None:
                init.zeros_(module.bias)

    def recomposed(self, size: Size) -> dict[str, torch.Tensor]:
        """The block weights of one size, by name, each (l, ...), with gradients to the components (LinDec, Eq. 1)."""
        return self._recompose(self._names(), self._components(size), size, self._base(size))

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
                held = replace(size, num_components=count)
                known[key] = self._recompose(self._names(), self._components(held), held, None)
        return known[key]

    def _components(self, size: Size) -> list[dict[str, torch.Tensor]]:
        return [dict(component.named_parameters()) for component in self.components[: size.num_components]]

    def _recompose(self, names: list[str], components: list[dict], size: Size, base: dict | None) -> dict:
        """Some tensors of every layer; `base` holds what the first components give, and they are skipped."""
        tables = {stack: self.config.coefficients(size, stack) for stack in self.config.stacks}
        stack_of = self.config.stack_of
        return {name: self._combined(name, components, tables[stack_of(name)], size, base) for name in names}

    def _combined(
        self, name: str, components: list[dict], table: torch.Tensor, size: Size, base: dict | None
    ) -> torch.Tensor:
        """One tensor of the layers that rows of the coefficients stand for, (l, ...)."""
        first, count = self._held[0] if base is not None else 0, table.shape[1]
        if first >= count:
            return base[name]
        stack = torch.stack([slice_of(name, part[name], size) for part in components[first:count]])
        scaled = table[:, first:] * self.config.branch_scale(name, size)
        weight = recompose(stack, scaled, None if base is None else base[name])
        return weight + self.config.gain_offset if is_gain(name) and base is None else weight

    def _shared(self, size: Size) -> dict[str, torch.Tensor]:
        """The tensors outside the blocks at the width of a size, by key."""
        elsewhere = ("components.", "classifier.")
        named = ((key, tensor) for key, tensor in self.named_parameters() if not key.startswith(elsewhere))
        return {key: slice_of(key, tensor, size) for key, tensor in named}

    def _settings(self) -> BlockSettings:
        config = self.config
        return BlockSettings(
            head_size=config.head_size,
            layer_norm_eps=config.layer_norm_eps,
            activation=self.activation,
            hidden_dropout=config.hidden_dropout_prob if self.training and config.stands_for.inner_dropout else 0.0,
            attention_dropout=config.attention_probs_dropout_prob if self.training else 0.0,
            drop_path=config.drop_path_rate if self.training else 0.0,
            attend=attention_function(config._attn_implementation),
            module=self,
        )

    def _layers(self, hidden: torch.Tensor, size: Size, stack: str, run: Callable) -> Iterator[tuple]:
        """Hidden states and attention weights after each layer of a stack, recomposed.

        Args:
            hidden: (b, t, d).
            stack: what the names of its tensors in a component begin with.
            run: (layer, hidden states, the layer's tensors by their names in a block) -> (hidden states, weights).
        """
        depth, names = self.config.stack_depth(size.depth, stack), self._names(stack)
        if self.training and self.checkpointed.gradient_checkpointing:
            count = self.config.component_count(size.num_components, stack)
            parts = [{name: part[name] for name in names} for part in self._components(size)[:count]]
            table, held = self.config.coefficients(size, stack), self._base(size)
            flat = [tensor for part in parts for tensor in part.values()]
            for layer in range(depth):
                base = None if held is None else {name: held[name][layer : layer + 1] for name in names}

                def recompose_layer(flat, row=table[layer : layer + 1], base=base):
                    parts = [dict(zip(names, flat[i : i + len(names)])) for i in range(0, len(flat), len(names))]
                    rows = {name: self._combined(name, parts, row, size, base) for name in names}
                    return {name.removeprefix(stack): stacked[0] for name, stacked in rows.items()}

                hidden, probabilities = self.checkpointed(hidden, partial(run, layer), recompose_layer, *flat)
                yield hidden, probabilities
        else:
            # One unbind per tensor, not one index per layer: its backward stacks the layers' gradients in one go.
            weights = self._recompose(names, self._components(size), size, self._base(size))
            weights = {name.removeprefix(stack): stacked.unbind() for name, stacked in weights.items()}
            for layer in range(depth):
                hidden, probabilities = run(layer, hidden, {name: rows[layer] for name, rows in weights.items()})
                yield hidden, probabilities

    def _names(self, stack: str = "") -> list[str]:
        """Of the tensors of a component, or of those of a stack."""
        return [name for name in self.config.component_shapes() if name.startswith(stack)]

    @torch.no_grad()
    def materialise(self, depth=None, width_ratio=None, num_components=None) -> PreTrainedModel:
        """A stock model of the bundle's family, of one size with its own weights, from the components as they are now.

        Args:
            depth, width_ratio, num_components: the size; default that of the model's own configuration.

        Returns:
            The family's classifier, or from a `LinGeneModel` its encoder, on the same device, in the same dtype and
            mode. For a ViT these are `ViTForImageClassification` and `ViTModel` without pooler (reload a saved one
            with `add_pooling_layer=False`).

        Raises:
            ValueError: a size that the bundle does not have.
        """
        size = self.config.size(depth, width_ratio, num_components)
        outside = {key: tensor.clone() for key, tensor in self._shared(size).items()}
        if self.has_head:
            outside |= {key: tensor.clone() for key, tensor in self._head(size).items()}
        layers = {name: [row.clone() for row in stacked] for name, stacked in self.recomposed(size).items()}
        model = stock_model(outside, layers, self.config.stock_config(size), self.has_head, dtype=self.dtype)
        record_origin(model, self.name_or_path, size, self.config.turned)
        return model.to(self.device).train(self.training)

    def _head(self, size: Size) -> dict[str, torch.Tensor]:
        named = [(f"classifier.{name}", tensor) for name, tensor in self.classifier.named_parameters()]
        return {key: slice_of(key, tensor, size) for key, tensor in named}

    def _pixels(self, pixel_values: torch.Tensor | None, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        """Images in the dtype of the weights, or an error where there are none or adapters are in the way."""
        if pixel_values is None:
            raise ValueError("`pixel_values` is missing.")
        if hasattr(self, "peft_config"):
            raise ValueError(NO_ADAPTERS)
        return pixel_values.to(weights["embeddings.patch_embeddings.weight"].dtype)

    # What a kind of network adds.

    def _encode(self, pixel_values, size, interpolate, output_hidden_states, output_attentions, masked=None) -> tuple:
        """Images (b, channels, height, width) -> normed hidden states (b, t, d), all hidden states, attentions."""
        raise NotImplementedError

    def _pooled(self, hidden: torch.Tensor, size: Size) -> torch.Tensor:
        """What the family's encoder of this size gives as `pooler_output`, (b, t, d) -> (b, d)."""
        raise NotImplementedError

    def _head_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the family's head reads of the normed tokens (b, t, d): (b, d), or (b, 2 d) with the patches' mean."""
        raise NotImplementedError

    def add_adapter(self, *args, **kwargs):
        raise ValueError(NO_ADAPTERS)


class RecomposingEncoder(RecomposingModel):
    """The encoder without a head; its materialised form is the family's encoder, for a ViT one without pooler."""

    def __init__(self, config: BundleConfig):
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        depth: int | str | None = None,
        width_ratio: float | str | None = None,
        num_components: int | None = None,
        interpolate_pos_encoding: bool | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple:
        """Images through one size of the bundle.

        Args:
            pixel_values: (b, channels, height, width).
            depth, width_ratio, num_components: the size of this call; default the configuration's.
            interpolate_pos_encoding: take images of another size; some families always do.
            bool_masked_pos: (b, patches) bool, for families with a mask token, which stands in for these.

        Returns:
            `last_hidden_state` (b, t, d); `pooler_output` (b, d) where the family has one; `hidden_states` and
            `attentions` (b, h, t, t) on request, of a network of stages one of each stage.
        """
        config = self.config
        size = config.size(depth, width_ratio, num_components)
        hidden, states, attentions = self._encode(
            pixel_values,
            size,
            interpolate_pos_encoding,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.output_attentions if output_attentions is None else output_attentions,
            bool_masked_pos,
        )
        pooled = self._pooled(hidden, size) if config.stands_for.pools else None
        output = BaseModelOutputWithPooling(hidden, pooled, hidden_states=states, attentions=attentions)
        return output if as_dict(config, return_dict) else output.to_tuple()


class RecomposingClassifier(RecomposingModel):
    """The encoder and a linear classifier on the tokens that the family's reads; materialises to the family's."""

    has_head = True

    def __init__(self, config: BundleConfig):
        class_name(config.family, "classifier")  # or an error
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier = Classifier(config) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        depth: int | str | None = None,
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
            `logits` (b, num_labels), `loss` with labels; `hidden_states` and `attentions` as the encoder's.
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
        logits, head = self._head_input(hidden), self._head(size)
        if head:
            halves = [head[key] for key in ("classifier.weight", "classifier.patch_weight") if key in head]
            logits = nn.functional.linear(logits, torch.cat(halves, dim=1), head["classifier.bias"])
        loss = None if labels is None else self.loss_function(labels, logits, config, **kwargs)
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=states, attentions=attentions)
        return output if as_dict(config, return_dict) else output.to_tuple()


def slice_of(key: str, tensor: torch.Tensor, size: Size) -> torch.Tensor:
    """A tensor at the width of a size, as a view."""
    return slice_tensor(key, tensor, size.width_ratio, size.trailing)


def reference_coefficients(config: BundleConfig, count: int | None = None, name: str = "") -> torch.Tensor:
    """a(l, n) of the first `count` components, default all, at the depth they were made for.

    Args:
        name: of a block tensor, where there are several stacks of layers.
    """
    size = config.size(config.reference_depth, 1, count or config.reference_components)
    return config.coefficients(size, name)


def component_scale(config: BundleConfig, count: int | None = None, name: str = "") -> float:
    """sqrt(mean_l sum_n a(l, n)^2): how much larger than a component a layer of `count` random ones is."""
    return float(reference_coefficients(config, count, name).square().sum(dim=1).mean().sqrt())


def component_gains(config: BundleConfig, count: int | None = None, name: str = "") -> list[float]:
    """The LayerNorm gain of each of `count` components with which every layer's recomposes to 1, or nearest to it.

    The constant component carries it where there is one, and `gain_offset` where it is 1.
    """
    table = reference_coefficients(config, count, name)
    target = torch.full((len(table), 1), 1.0 - config.gain_offset, dtype=table.dtype, device=table.device)
    return [round(gain, 12) for gain in torch.linalg.lstsq(table, target, driver="gelsd").solution.flatten().tolist()]


def as_dict(config: BundleConfig, return_dict: bool | None) -> bool:
    return config.return_dict if return_dict is None else return_dict
