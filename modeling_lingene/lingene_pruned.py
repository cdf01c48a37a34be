"""Networks whose layers need not be alike: attention, a convolution or nothing, and MLPs of any size.

What `lingene prune` writes (SPViT, He et al., TPAMI 2024, arXiv 2111.11802): plain modules, no masks, no gates. Here
is what the ViT of `lingene_vit` and the Swin of `lingene_swin` share; layers are pre-norm as
in transformers. The file travels with every such model, with those that it imports.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import CONFIG_NAME

from .configuration_base_lingene import MOST_UNITS, STORED_FIELDS, BundleConfig
from .reading_lingene import FLAG, OBJECT, Check, check_fields, integer, items, one_of, optional, shown
from .vit_lingene import BlockSettings, attend, attention_function, branch


MIXERS = ("none", "conv1", "conv3", "attention")  # ascending in what they can express
KERNELS = {"conv1": 1, "conv3": 3}
LABEL_FIELDS = ("problem_type", "id2label", "label2id")
PRUNED_FIELDS: dict[str, Check] = {
    **{field: STORED_FIELDS[field] for field in LABEL_FIELDS},
    "mixers": items(one_of(*MIXERS)),
    "intermediate_sizes": items(integer(1, MOST_UNITS)),
    "folded": FLAG,
    "pruned_from": optional(OBJECT),
}


@dataclass(frozen=True)
class LayerShape:
    """Of one layer, for an image of the configuration's size.

    Args:
        width: channels.
        heads: of its attention.
        patches: that a convolution sees.
        tokens: that the MLP sees; what is no patch comes first.
        projected: tokens that attention projects, those that fill up windows too.
        seen: tokens that each of them attends to.
        positions: rows of its table of relative positions, which has a column per head.
        stack: of layers, as in a bundle's names: "" or "stage1.".
        place: in the stack, from 0.
    """

    width: int
    heads: int
    patches: int
    tokens: int
    projected: int
    seen: int
    positions: int = 0
    stack: str = ""
    place: int = 0


class PrunedConfig(PretrainedConfig):
    """What configurations of all pruned networks say.

    A kind of network adds its shape, and the methods that are without a body here.

    Args:
        mixers: what mixes tokens in each layer: attention; conv3, conv1, a bottleneck of two convolutions, 3x3 or 1x1
            from the channels to the size of a head and 1x1 back; none.
        intermediate_sizes: MLP units of each layer.
        folded: whether the bottlenecks' BatchNorms are folded into their convolutions.
        pruned_from: where the model comes from; says nothing about its function.

    Raises:
        ValueError: lists that are not of one length, words or sizes that do not exist.
    """

    family: ClassVar[str]  # what it is where nothing was pruned
    class_token: ClassVar[bool]  # whether answers come from a token that reads others by attention alone
    shape_fields: ClassVar[tuple[str, ...]]  # fields of its own, which the family's configuration has, too
    fields: ClassVar[dict[str, Check]]  # what config.json may say of each field

    mixers: list[str] | tuple[str, ...] = ("attention",) * 12
    intermediate_sizes: list[int] | tuple[int, ...] = (3072,) * 12
    folded: bool = False
    pruned_from: dict | None = None

    def __post_init__(self, **kwargs):
        lists = {field: getattr(self, field) for field in ("mixers", "intermediate_sizes")}
        check_fields(lists, PRUNED_FIELDS, "the model")
        self.mixers, self.intermediate_sizes = list(self.mixers), list(self.intermediate_sizes)
        if len(self.mixers) != len(self.intermediate_sizes) or not self.mixers:
            raise ValueError(
                f"`mixers` has {len(self.mixers)} layers and `intermediate_sizes` has {len(self.intermediate_sizes)}; "
                "give both one entry per layer."
            )
        layers = kwargs.pop("num_hidden_layers", len(self.mixers))
        if layers != len(self.mixers):
            raise ValueError(f"`num_hidden_layers` {shown(layers)} contradicts the {len(self.mixers)} `mixers`.")
        self.check_network()
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        check_fields(config_dict, cls.fields, f"`{CONFIG_NAME}`")
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"`{CONFIG_NAME}`: {' '.join(str(error).split())}") from None

    @classmethod
    def unpruned(cls, own: BundleConfig) -> "PrunedConfig":
        """Of a whole network, from the configuration of the bundle that it would become."""
        fields = {field: getattr(own, field) for field in (*cls.shape_fields, *LABEL_FIELDS)}
        sizes = cls.whole_sizes(own)
        return cls(**fields, mixers=["attention"] * len(sizes), intermediate_sizes=sizes)

    def changed(self, **fields) -> "PrunedConfig":
        """The same with other values of some fields."""
        return type(self)(**{field: getattr(self, field) for field in self.fields} | fields)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.mixers)

    def check_network(self) -> None:
        """Refuses shapes that cannot be."""
        raise NotImplementedError

    @property
    def shapes(self) -> list[LayerShape]:
        """Of every layer."""
        raise NotImplementedError

    @staticmethod
    def whole_sizes(own: BundleConfig) -> list[int]:
        """MLP units of each layer of a network that is not pruned."""
        raise NotImplementedError

    def stock_fields(self) -> dict[str, Any] | None:
        """What the family's own configuration says of layers that are alike in all; None where they are not."""
        raise NotImplementedError


class Attention(nn.Module):
    """Multi-head self-attention of all tokens."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, settings: BlockSettings, grid: tuple[int, int]):
        """(b, t, d) -> (b, t, d), and the attention weights (b, h, t, t) or None."""
        return self.among(hidden, settings)

    def among(self, hidden: torch.Tensor, settings: BlockSettings, bias: torch.Tensor | None = None):
        """Attention of some tokens to each other; `bias` as for `attend`."""
        mixed, probabilities = attend(self.query(hidden), self.key(hidden), self.value(hidden), settings, bias)
        return self.output(mixed), probabilities


class Bottleneck(nn.Module):
    """Convolution to the size of a head, BatchNorm, ReLU, 1x1 convolution back, on the patch tokens (SPViT).

    On the whole map of patches, whatever windows attention has.
    """

    def __init__(self, width: int, narrow: int, kernel: int, bias: bool, folded: bool = False):
        super().__init__()
        self.reduce = nn.Conv2d(width, narrow, kernel, padding=kernel // 2, bias=bias or folded)
        self.norm = nn.Identity() if folded else nn.BatchNorm2d(narrow)
        self.expand = nn.Conv2d(narrow, width, 1)

    def forward(self, hidden: torch.Tensor, settings: BlockSettings, grid: tuple[int, int]):
        """(b, t, d) -> (b, t, d), zero for a token that is no patch; None."""
        narrow = functional.relu(self.norm(self.reduce(on_grid(hidden, grid))))
        return off_grid(self.expand(narrow), hidden), None


def on_grid(hidden: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Patches of (b, t, d), the last height * width tokens, as (b, d, height, width)."""
    return hidden[:, hidden.shape[1] - prod(grid) :].transpose(1, 2).unflatten(2, grid)


def off_grid(patches: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """(b, d, height, width) -> as many tokens as `hidden` (b, t, d), zero for those before the patches."""
    tokens = patches.flatten(2).transpose(1, 2)
    return functional.pad(tokens, (0, 0, hidden.shape[1] - tokens.shape[1], 0))


class MLP(nn.Module):
    """Two linear maps with an activation between."""

    def __init__(self, width: int, units: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, units), nn.Linear(units, width)

    def forward(self, hidden: torch.Tensor, settings: BlockSettings) -> torch.Tensor:
        return self.fc2(settings.activation(self.fc1(hidden)))


class Layer(GradientCheckpointingLayer):
    """One pre-norm block; without a mixer the MLP alone."""

    def __init__(self, mixer: nn.Module | None, width: int, units: int, eps: float):
        super().__init__()
        self.norm1 = None if mixer is None else nn.LayerNorm(width, eps=eps)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, units)

    def forward(self, hidden: torch.Tensor, settings: BlockSettings, grid: tuple[int, int]):
        """(b, t, d) -> (b, t, d), and the attention weights (b, h, t, t) where there are any, else None."""
        probabilities = None
        if self.mixer is not None:
            mixed, probabilities = self.mixer(self.norm1(hidden), settings, grid)
            hidden = hidden + branch(mixed, settings)
        return hidden + branch(self.mlp(self.norm2(hidden), settings), settings), probabilities


class PrunedModel(PreTrainedModel):
    """What models of all pruned networks share: layers, initialisation, the encoder, saving with code.

    A kind of network gives its embeddings, and the methods that are without a body here.
    """

    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    auto_map: ClassVar[dict[str, str]]
    embeddings_class: ClassVar[type[nn.Module]]
    _no_split_modules = ["Embeddings", "Layer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    is_causal = False
    every_state = True  # `hidden_states` of all layers; or before the first of each stage, as transformers' Swin

    def __init__(self, config: PrunedConfig):
        super().__init__(config)
        self.embeddings = self.embeddings_class(config)
        parts, eps = zip(config.mixers, config.shapes, config.intermediate_sizes), config.layer_norm_eps
        self.layers = nn.ModuleList(
            Layer(self.made_mixer(mixer, shape), shape.width, units, eps) for mixer, shape, units in parts
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=eps)
        self.activation = ACT2FN[config.hidden_act]
        self.places = [shape.place for shape in config.shapes]

    def made_mixer(self, mixer: str, shape: LayerShape) -> nn.Module | None:
        """One of `MIXERS` for a layer; None for none."""
        if mixer == "none":
            return None
        if mixer == "attention":
            return self.made_attention(shape)
        config = self.config
        return Bottleneck(shape.width, config.head_size, KERNELS[mixer], config.qkv_bias, config.folded)

    def made_attention(self, shape: LayerShape) -> Attention:
        return Attention(shape.width, self.config.qkv_bias)

    def embed(self, pixel_values: torch.Tensor, interpolate: bool = False) -> tuple[torch.Tensor, tuple[int, int]]:
        """Images (b, channels, height, width) -> what the first layer gets (b, t, d), and the grid of the patches."""
        raise NotImplementedError

    def entered(self, layer: int, hidden: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
        """What a layer gets of what the one before it gives, (b, t, d) and the grid."""
        return hidden, grid

    def drop_path(self, layer: int) -> float:
        """Probability that a branch of a layer is left out in training."""
        return 0.0

    def pooled(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """`pooler_output` (b, d) of normed tokens, where the family has one."""
        return None

    def head_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the classifier reads of normed tokens, (b, d)."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers looks for the call of its interface in this file, and it is in another one

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, with the code of both classes named in config.json."""
        self.config.auto_map = dict(self.auto_map)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def settings(self, layer: int = 0) -> BlockSettings:
        """What a layer needs beside its weights, for the mode that the model is in."""
        dropout, attention_dropout = self.config.hidden_dropout_prob, self.config.attention_probs_dropout_prob
        return BlockSettings(
            head_size=self.config.head_size,
            layer_norm_eps=self.config.layer_norm_eps,
            activation=self.activation,
            hidden_dropout=dropout if self.training else 0.0,
            attention_dropout=attention_dropout if self.training else 0.0,
            attend=attention_function(self.config._attn_implementation),
            module=self,
            drop_path=self.drop_path(layer) if self.training else 0.0,
        )

    def _encode(self, pixel_values, interpolate_pos_encoding, output_hidden_states, output_attentions):
        """Images (b, channels, height, width) -> normed hidden states (b, t, d), all hidden states, attentions."""
        if pixel_values is None:
            raise ValueError("`pixel_values` is missing.")
        config, states, attentions = self.config, [], []
        pixel_values = pixel_values.to(self.get_input_embeddings().weight.dtype)
        hidden, grid = self.embed(pixel_values, bool(interpolate_pos_encoding))
        hidden = functional.dropout(hidden, config.hidden_dropout_prob, self.training)
        for index, layer in enumerate(self.layers):
            hidden, grid = self.entered(index, hidden, grid)
            if self.every_state or self.places[index] == 0:
                states.append(hidden)
            hidden, probabilities = layer(hidden, self.settings(index), grid)
            if probabilities is not None:
                attentions.append(probabilities)
        states.append(hidden)
        hidden = self.layernorm(hidden)
        wanted = [config.output_hidden_states if output_hidden_states is None else output_hidden_states]
        wanted.append(config.output_attentions if output_attentions is None else output_attentions)
        return hidden, *(tuple(kept) if asked else None for kept, asked in zip((states, attentions), wanted))


class PrunedEncoder(PrunedModel):
    """The encoder without a head."""

    _keys_to_ignore_on_load_unexpected = [r"classifier\."]

    def __init__(self, config: PrunedConfig):
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
        """Images (b, channels, height, width) -> `last_hidden_state` (b, t, d), and `pooler_output` (b, d) of a Swin.

        On request `hidden_states`, and `attentions` (b, h, t, t) of the layers that have attention.
        """
        hidden, states, attentions = self._encode(
            pixel_values, interpolate_pos_encoding, output_hidden_states, output_attentions
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=self.pooled(hidden), hidden_states=states, attentions=attentions
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class PrunedClassifier(PrunedModel):
    """The encoder and a linear classifier."""

    def __init__(self, config: PrunedConfig):
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
        logits = self.classifier(self.head_input(hidden))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=states, attentions=attentions)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()
