"""LinGeneConfig: a bundle of plain Vision Transformers, whose layers are all of one shape."""

from fractions import Fraction
from math import prod

from transformers import PretrainedConfig
from transformers.activations import ACT2FN

from .configuration_base_lingene import (
    FREE_SETTINGS,
    MOST_LAYERS,
    SHARE,
    SIDES,
    STORED_FIELDS,
    STORED_SETTINGS,
    UNITS,
    BundleConfig,
    Size,
    sides,
)
from .families_lingene import FAMILIES, FAMILY_FIELDS, ROTARY_FIELDS
from .reading_lingene import FLAG, integer, is_number, number, one_of, optional
from .recompose_lingene import block_shapes
from .translating_lingene import stock_config


VIT_FIELDS = (
    "hidden_size num_attention_heads intermediate_size hidden_act hidden_dropout_prob attention_probs_dropout_prob "
    "initializer_range layer_norm_eps image_size patch_size num_channels qkv_bias"
).split()
PLAIN_FAMILIES = [name for name, row in FAMILIES.items() if not row.stages]
WIDTH_FIELDS = ("hidden_size", "num_attention_heads", "intermediate_size")
FIELDS = {
    **dict.fromkeys((*WIDTH_FIELDS, "num_channels"), UNITS),
    "hidden_act": one_of(*ACT2FN),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"), SHARE),
    "initializer_range": number(0, 1e3),
    "family": one_of(*PLAIN_FAMILIES),
    "gated_mlp": FLAG,
    "num_register_tokens": integer(0, MOST_LAYERS),
    "drop_path_rate": (lambda value: is_number(value, 0, 1) and value < 1, "a number from 0 to below 1"),
    **dict.fromkeys(("apply_layernorm", "reshape_hidden_states"), FLAG),
    "rope_theta": number(1, 1e9),
    "pos_embed_shift": optional(number(0, 1e3)),
    **dict.fromkeys(("pos_embed_jitter", "pos_embed_rescale"), optional(number(1, 1e3))),
    **dict.fromkeys(("image_size", "patch_size"), SIDES),
    "qkv_bias": FLAG,
    **STORED_FIELDS,
}
FREE = ("hidden_act", "layer_norm_eps", "image_size", *FREE_SETTINGS)


class LinGeneConfig(BundleConfig):
    """Configuration of a bundle of plain Vision Transformers and of the size taken from it.

    Args:
        hidden_size, num_attention_heads, intermediate_size, image_size, ...: the ViT at full width, as in `ViTConfig`.
        family: whose models this bundle gives and behaves as, see `families_lingene`.
        gated_mlp: whether a gate, a linear map of its own, decides how much of every MLP unit passes: in the largest
            DINOv2, and some DINOv3.
        num_register_tokens, drop_path_rate, apply_layernorm, reshape_hidden_states, rope_theta, pos_embed_shift,
            pos_embed_jitter, pos_embed_rescale: as in the configuration of a family that has them.
        bundle_format, ..., depth, width_ratio, num_components, preset: see `BundleConfig`.

    Raises:
        ValueError: fields that contradict each other, or a bundle of a newer format.
    """

    model_type = "lingene"
    fields = FIELDS
    settings = (*WIDTH_FIELDS, "num_channels", "patch_size", "qkv_bias", *STORED_SETTINGS, *FREE)
    later_settings = {"family": "vit", "gated_mlp": False, "num_register_tokens": 0, "rope_theta": 100.0}
    free_settings = FREE

    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True

    gated_mlp: bool = False
    num_register_tokens: int = 0
    drop_path_rate: float = 0.0
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    rope_theta: float = 100.0
    pos_embed_shift: float | None = None
    pos_embed_jitter: float | None = None
    pos_embed_rescale: float | None = None

    def _check_network(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` {self.hidden_size} is not a multiple of `num_attention_heads` "
                f"{self.num_attention_heads}."
            )
        family = self.stands_for
        for name, only in family.lacks.items():
            if getattr(self, name) != only:
                raise ValueError(f"`{name}` of the family {self.family} is {only}, got {getattr(self, name)!r}.")
        for name, none in FAMILY_FIELDS.items():
            if name not in family.fields and getattr(self, name) != none:
                raise ValueError(f"`{name}` {getattr(self, name)!r} is no setting of the family {self.family}.")
        if family.registers and not family.rotates and self.num_register_tokens < 1:
            raise ValueError(
                f"`num_register_tokens` of the family {self.family} must be at least 1, got "
                f"{self.num_register_tokens!r}; dinov2 is a family without register tokens."
            )
        if family.rotates and self.head_size % 4:
            raise ValueError(
                f"`num_attention_heads` of the family {self.family} must leave heads of a multiple of 4 channels, "
                f"turned by height and width in pairs; {self.hidden_size} by {self.num_attention_heads} does not."
            )
        self._check_units()
        for name in ("image_size", "patch_size") if family.square else ():
            height, width = sides(getattr(self, name))
            if height != width:
                raise ValueError(
                    f"`{name}` of the family {self.family} must be square; got {height}x{width}: a square of "
                    "positions is interpolated. Its images may have any shape."
                )
        if min(self.patch_grid) < 1:
            image, patch = ("x".join(map(str, sides(size))) for size in (self.image_size, self.patch_size))
            raise ValueError(f"`image_size` {image} is smaller than a patch of {patch}; use at least that.")

    def _check_units(self):
        """Whether the family's own configuration can say what its MLPs are, and how many units they have."""
        family, size, units = self.stands_for, self.hidden_size, self.intermediate_size
        if self.gated_mlp and family.gate_act and self.hidden_act != family.gate_act:
            raise ValueError(
                f"`hidden_act` of gated MLPs of the family {self.family} is {family.gate_act}, got "
                f"{self.hidden_act!r}."
            )
        if not family.mlp_ratio:
            return
        if self.gated_mlp and (3 * units % (2 * size) or units % 8):
            raise ValueError(
                f"`intermediate_size` of gated MLPs of the family {self.family} must be two thirds of a whole "
                f"multiple of `hidden_size`, and a multiple of 8: {units} of {size} cannot be expressed."
            )
        if not self.gated_mlp and units % size:
            raise ValueError(
                f"`intermediate_size` of the family {self.family} must be a whole multiple of `hidden_size`: "
                f"{units} of {size} cannot be expressed; family vit takes any."
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def head_unit(self) -> int:
        return self.num_attention_heads

    def indivisible(self, ratio: Fraction) -> tuple[int, int]:
        return self.num_attention_heads, self.intermediate_size

    @property
    def unit_step(self) -> int:
        return 8 if self.gated_mlp and self.stands_for.mlp_ratio else 1

    def narrowed(self, ratio: Fraction) -> dict[str, int]:
        return {name: int(getattr(self, name) * ratio) for name in WIDTH_FIELDS}

    def component_shapes(self, index: int = 0) -> dict[str, tuple[int, ...]]:
        return block_shapes(self.hidden_size, self.intermediate_size, self.qkv_bias, self.gated_mlp)

    def shared_shapes(self) -> dict[str, tuple[int, ...]]:
        d, family = self.hidden_size, self.stands_for
        shapes = {"embeddings.cls_token": (1, 1, d)} if family.class_token else {}
        if family.mask_token:
            shapes["embeddings.mask_token"] = (1, 1, d)
        if family.registers:
            shapes["embeddings.register_tokens"] = (1, self.num_register_tokens, d)
        if not family.rotates:
            shapes["embeddings.position_embeddings"] = (1, prod(self.patch_grid) + family.class_token, d)
        shapes["embeddings.patch_embeddings.weight"] = (d, self.num_channels, *sides(self.patch_size))
        if family.patch_bias:
            shapes["embeddings.patch_embeddings.bias"] = (d,)
        if family.norms_embeddings:
            shapes |= {"embeddings.norm.weight": (d,), "embeddings.norm.bias": (d,)}
        if family.attends:
            shapes["embeddings.probe"] = (1, 1, d)
        return shapes | {"layernorm.weight": (d,), "layernorm.bias": (d,)} | self.own_layer_shapes()

    def own_layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the layer that pools by attention, where there is one."""
        if not self.stands_for.attends:
            return {}
        shapes = block_shapes(self.hidden_size, self.intermediate_size, True)
        names = {name: name.replace("norm2", "norm") for name in shapes if not name.startswith("norm1")}
        return {f"pooler.{names[name]}": shapes[name] for name in names}

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {"classifier.weight": (self.num_labels, self.hidden_size), "classifier.bias": (self.num_labels,)}
        if self.stands_for.reads_patches:
            shapes["classifier.patch_weight"] = shapes["classifier.weight"]
        return shapes

    @property
    def patch_grid(self) -> tuple[int, int]:
        """How many patches an image has, down and across."""
        sizes, steps = sides(self.image_size), sides(self.patch_size)
        return sizes[0] // steps[0], sizes[1] // steps[1]

    def stock_config(self, size: Size, **fields) -> PretrainedConfig:
        fields |= {name: getattr(self, name) for name in (*VIT_FIELDS, *self.stands_for.fields)}
        fields |= self.narrowed(size.width_ratio)
        for name in ("initializer_range", "layer_norm_eps", *ROTARY_FIELDS):
            if fields.get(name) is not None:  # JSON may say 1, and stock configurations want 1.0
                fields[name] = float(fields[name])
        config = stock_config(self.family, {**fields, "num_hidden_layers": size.depth, **self._label_fields()})
        config.output_hidden_states, config.return_dict = self.output_hidden_states, self.return_dict
        return self._with_attention(config)
