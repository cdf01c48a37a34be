"""A Vision Transformer of layers that need not be alike: attention, a convolution or nothing, and MLPs of any size.

What `lingene prune` writes (SPViT, He et al., TPAMI 2024, arXiv 2111.11802): plain modules, no masks, no gates. Layers
are pre-norm as in `transformers.ViTModel`, which this is where every layer has attention. A convolution sees the patch
tokens only and adds nothing to the class token. The file travels with every such model, with those that it imports.
"""

from math import prod

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import CONFIG_NAME

from .configuration_base_lingene import MOST_UNITS
from .configuration_lingene import FIELDS as BUNDLE_FIELDS
from .configuration_lingene import VIT_FIELDS
from .reading_lingene import FLAG, OBJECT, check_fields, integer, items, one_of, optional, shown
from .vit_lingene import BlockSettings, attend, attention_function, embed


MIXERS = ("none", "conv1", "conv3", "attention")  # ascending in what they can express
KERNELS = {"conv1": 1, "conv3": 3}
SHAPE_FIELDS = tuple(field for field in VIT_FIELDS if field != "intermediate_size")
FIELDS = {
    **{field: BUNDLE_FIELDS[field] for field in (*SHAPE_FIELDS, "problem_type", "id2label", "label2id")},
    "mixers": items(one_of(*MIXERS)),
    "intermediate_sizes": items(integer(1, MOST_UNITS)),
    "folded": FLAG,
    "pruned_from": optional(OBJECT),
}
AUTO_MAP = {
    "AutoConfig": "lingene_vit.LinGeneViTConfig",
    "AutoModel": "lingene_vit.LinGeneViTModel",
    "AutoModelForImageClassification": "lingene_vit.LinGeneViTForImageClassification",
}


class LinGeneViTConfig(PretrainedConfig):
    """Configuration of a Vision Transformer whose layers need not be alike.

    Args:
        hidden_size, num_attention_heads, image_size, ...: as in `ViTConfig`.
        mixers: what mixes tokens in each layer: attention; conv3, conv1, a bottleneck of two convolutions, 3x3 or 1x1
            from the channels to the size of a head and 1x1 back; none.
        intermediate_sizes: MLP units of each layer.
        folded: whether the bottlenecks' BatchNorms are folded into their convolutions.
        pruned_from: where the model comes from; says nothing about its function.

    Raises:
        ValueError: lists that are not of one length, words or sizes that do not exist.
    """

    model_type = "lingene_vit"

    hidden_size: int = 768
    num_attention_heads: int = 12
    mixers: list[str] | tuple[str, ...] = ("attention",) * 12
    intermediate_sizes: list[int] | tuple[int, ...] = (3072,) * 12
    folded: bool = False
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pruned_from: dict | None = None

    def __post_init__(self, **kwargs):
        check_fields({field: getattr(self, field) for field in ("mixers", "intermediate_sizes")}, FIELDS, "the model")
        self.mixers, self.intermediate_sizes = list(self.mixers), list(self.intermediate_sizes)
        if len(self.mixers) != len(self.intermediate_sizes) or not self.mixers:
            raise ValueError(
                f"`mixers` has {len(self.mixers)} layers and `intermediate_sizes` has {len(self.intermediate_sizes)}; "
                "give both one entry per layer."
            )
        layers = kwargs.pop("num_hidden_layers", len(self.mixers))
        if layers != len(self.mixers):
            raise ValueError(f"`num_hidden_layers` {shown(layers)} contradicts the {len(self.mixers)} `mixers`.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` {self.hidden_size} is not a multiple of `num_attention_heads` "
                f"{self.num_attention_heads}."
            )
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        check_fields(config_dict, FIELDS, f"`{CONFIG_NAME}`")
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"`{CONFIG_NAME}`: {' '.join(str(error).split())}") from None

    @property
    def num_hidden_layers(self) -> int:
        return len(self.mixers)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def patch_grid(self) -> tuple[int, int]:
        """How many patches an image has, down and across."""
        height, width = (size // step for size, step in zip(sides(self.image_size), sides(self.patch_size)))
        return height, width


def sides(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else tuple(size)


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


class Attention(nn.Module):
    """Multi-head self-attention of all tokens."""

    def __init__(self, config: LinGeneViTConfig):
        super().__init__()
        size = config.hidden_size
        self.query, self.key, self.value = (nn.Linear(size, size, bias=config.qkv_bias) for _ in range(3))
        self.output = nn.Linear(size, size)

    def forward(self, hidden: torch.Tensor, settings: BlockSettings, grid: tuple[int, int]):
        """(b, t, d) -> (b, t, d), and the attention weights (b, h, t, t) or None."""
        mixed, probabilities = attend(self.query(hidden), self.key(hidden), self.value(hidden), settings)
        return self.output(mixed), probabilities


class Bottleneck(nn.Module):
    """Convolution to the size of a head, BatchNorm, ReLU, 1x1 convolution back, on the patch tokens (SPViT)."""

    def __init__(self, config: LinGeneViTConfig, kernel: int):
        super().__init__()
        size, narrow, bias = config.hidden_size, config.head_size, config.qkv_bias or config.folded
        self.reduce = nn.Conv2d(size, narrow, kernel, padding=kernel // 2, bias=bias)
        self.norm = nn.Identity() if config.folded else nn.BatchNorm2d(narrow)
        self.expand = nn.Conv2d(narrow, size, 1)

    def forward(self, hidden: torch.Tensor, settings: BlockSettings, grid: tuple[int, int]):
        """(b, t, d) -> (b, t, d), zero for the class token; None."""
        narrow = functional.relu(self.norm(self.reduce(on_grid(hidden, grid))))
        return off_grid(self.expand(narrow)), None


def on_grid(hidden: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Patch tokens of (b, 1 + height * width, d) as (b, d, height, width)."""
    return hidden[:, 1:].transpose(1, 2).unflatten(2, grid)


def off_grid(patches: torch.Tensor) -> torch.Tensor:
    """(b, d, height, width) -> (b, 1 + height * width, d), zero for the class token."""
    return functional.pad(patches.flatten(2).transpose(1, 2), (0, 0, 1, 0))


class MLP(nn.Module):
    """Two linear maps with an activation between."""

    def __init__(self, config: LinGeneViTConfig, units: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(config.hidden_size, units), nn.Linear(units, config.hidden_size)

    def forward(self, hidden: torch.Tensor, settings: BlockSettings) -> torch.Tensor:
        return self.fc2(settings.activation(self.fc1(hidden)))


class Layer(GradientCheckpointingLayer):
    """One pre-norm block; without a mixer the MLP alone."""

    def __init__(self, config: LinGeneViTConfig, mixer: str, units: int):
        super().__init__()
        self.norm1 = self.mixer = None
        if mixer != "none":
            self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.mixer = Bottleneck(config, KERNELS[mixer]) if mixer in KERNELS else Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config, units)

    def forward(self, hidden: torch.Tensor, settings: BlockSettings, grid: tuple[int, int]):
        """(b, t, d) -> (b, t, d), and the attention weights (b, h, t, t) where there are any, else None."""
        probabilities = None
        if self.mixer is not None:
            mixed, probabilities = self.mixer(self.norm1(hidden), settings, grid)
            hidden = hidden + functional.dropout(mixed, settings.hidden_dropout)
        added = self.mlp(self.norm2(hidden), settings)
        return hidden + functional.dropout(added, settings.hidden_dropout), probabilities


class LinGeneViTPreTrainedModel(PreTrainedModel):
    """What both models share: initialisation, the encoder, saving with code."""

    config_class = LinGeneViTConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Embeddings", "Layer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    is_causal = False

    def __init__(self, config: LinGeneViTConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        parts = zip(config.mixers, config.intermediate_sizes)
        self.layers = nn.ModuleList(Layer(config, mixer, units) for mixer, units in parts)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers looks for the call of its interface in this file, and it is in another one

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Embeddings):
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, with the code of both classes named in config.json."""
        self.config.auto_map = dict(AUTO_MAP)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def settings(self) -> BlockSettings:
        """What layers need beside their weights, for the mode that the model is in."""
        dropout, attention_dropout = self.config.hidden_dropout_prob, self.config.attention_probs_dropout_prob
        return BlockSettings(
            head_size=self.config.head_size,
            layer_norm_eps=self.config.layer_norm_eps,
            activation=self.activation,
            hidden_dropout=dropout if self.training else 0.0,
            attention_dropout=attention_dropout if self.training else 0.0,
            attend=attention_function(self.config._attn_implementation),
            module=self,
        )

    def _encode(self, pixel_values, interpolate_pos_encoding, output_hidden_states, output_attentions):
        """Images (b, channels, height, width) -> normed hidden states (b, t, d), all hidden states, attentions."""
        if pixel_values is None:
            raise ValueError("`pixel_values` is missing.")
        config, settings, states, attentions = self.config, self.settings(), [], []
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.weight.dtype)
        hidden = self.embeddings(pixel_values, bool(interpolate_pos_encoding))
        hidden = functional.dropout(hidden, config.hidden_dropout_prob, self.training)
        grid = tuple(size // step for size, step in zip(pixel_values.shape[-2:], sides(config.patch_size)))
        for layer in self.layers:
            states.append(hidden)
            hidden, probabilities = layer(hidden, settings, grid)
            if probabilities is not None:
                attentions.append(probabilities)
        states.append(hidden)
        hidden = self.layernorm(hidden)
        wanted = [config.output_hidden_states if output_hidden_states is None else output_hidden_states]
        wanted.append(config.output_attentions if output_attentions is None else output_attentions)
        return hidden, *(tuple(kept) if asked else None for kept, asked in zip((states, attentions), wanted))


class LinGeneViTModel(LinGeneViTPreTrainedModel):
    """The encoder without a head."""

    _keys_to_ignore_on_load_unexpected = [r"classifier\."]

    def __init__(self, config: LinGeneViTConfig):
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple:
        """Images (b, channels, height, width) -> `last_hidden_state` (b, t, d).

        On request `hidden_states`, and `attentions` (b, h, t, t) of the layers that have attention.
        """
        hidden, states, attentions = self._encode(
            pixel_values, interpolate_pos_encoding, output_hidden_states, output_attentions
        )
        output = BaseModelOutputWithPooling(last_hidden_state=hidden, hidden_states=states, attentions=attentions)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class LinGeneViTForImageClassification(LinGeneViTPreTrainedModel):
    """The encoder and a linear classifier on the class token."""

    def __init__(self, config: LinGeneViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutput | tuple:
        """Images (b, channels, height, width) -> `logits` (b, num_labels); `loss` with labels (b,)."""
        hidden, states, attentions = self._encode(
            pixel_values, interpolate_pos_encoding, output_hidden_states, output_attentions
        )
        logits = self.classifier(hidden[:, 0])
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=states, attentions=attentions)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


LinGeneViTConfig.register_for_auto_class()
LinGeneViTModel.register_for_auto_class("AutoModel")
LinGeneViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
