"""LinGeneConfig: what a bundle holds, and the size that is asked of it.

Three groups of fields that never share a name: the ViT at full width, what is stored, what is asked for (None: all of
it). Everything else - coefficients, shapes, the sized ViT's own configuration - is derived here, never stored.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, prod

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import CONFIG_NAME

from .families_lingene import FAMILIES, FAMILY_FIELDS, Family, stock_config
from .reading_lingene import (
    FLAG,
    OBJECT,
    TEXT,
    check_fields,
    either,
    integer,
    is_integer,
    is_number,
    items,
    number,
    one_of,
    optional,
    shown,
)
from .recompose_lingene import (
    BASES,
    BLOCK_LINEARS,
    BLOCK_NORMS,
    DEPTH_MAPS,
    NODES,
    PRESETS,
    RESIDUAL_OUTPUTS,
    check_degree,
    coefficients,
    legal_width_ratios,
    read_width_ratio,
    selected_rows,
    sliced_shape,
)


BUNDLE_FORMAT = 1
SIZE_FIELDS = ("depth", "width_ratio", "num_components")
VIT_FIELDS = (
    "hidden_size num_attention_heads intermediate_size hidden_act hidden_dropout_prob attention_probs_dropout_prob "
    "initializer_range layer_norm_eps image_size patch_size num_channels qkv_bias"
).split()

# What the function of a size depends on, beside the weights; a keyword may override the free ones: how weights are
# used, also at sizes that they were not made for.
FREE_SETTINGS = "hidden_act layer_norm_eps image_size scale_residual depth_map depth_rows".split()
SETTINGS = (
    "hidden_size num_attention_heads intermediate_size num_channels patch_size qkv_bias reference_depth "
    "reference_components basis nodes start_degree degree_weight gain_offset coefficient_matrix "
    "trained_width_ratios isolated_activation"
).split() + FREE_SETTINGS
# Settings that a bundle's identity holds only where they are not these, since bundles were saved before they existed.
LATER_SETTINGS = {"family": "vit", "num_register_tokens": 0}
MOST_LAYERS, MOST_UNITS, MOST_PIXELS = 1024, 1 << 20, 1 << 16


def is_label_map(value) -> bool:
    named = isinstance(value, dict) and all(isinstance(name, str) for name in value.values())
    return named and all(str(number).isdecimal() for number in value)


def is_reverse_map(value) -> bool:
    return isinstance(value, dict) and all(is_integer(number, 0, MOST_UNITS) for number in value.values())


_LAYERS, _UNITS, _PIXELS = integer(1, MOST_LAYERS), integer(1, MOST_UNITS), integer(1, MOST_PIXELS)
_SIDES, _SHARE, _FACTOR = either(_PIXELS, items(_PIXELS, 2)), number(0, 1), number(-1e6, 1e6)
_RATIO = either(TEXT, number(0, 1))
# What config.json may say of each field; `None` is left to the presets, or is all that is stored.
FIELDS = {
    **dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size", "num_channels"), _UNITS),
    "hidden_act": one_of(*ACT2FN),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"), _SHARE),
    "initializer_range": number(0, 1e3),
    "family": one_of(*FAMILIES),
    "num_register_tokens": integer(0, MOST_LAYERS),
    "drop_path_rate": (lambda value: is_number(value, 0, 1) and value < 1, "a number from 0 to below 1"),
    **dict.fromkeys(("apply_layernorm", "reshape_hidden_states"), FLAG),
    **dict.fromkeys(("image_size", "patch_size"), _SIDES),
    **dict.fromkeys(("qkv_bias", "scale_residual", "isolated_activation"), FLAG),
    **dict.fromkeys(("reference_depth", "reference_components"), optional(_LAYERS)),
    **dict.fromkeys(("depth", "num_components"), optional(_LAYERS)),
    "bundle_format": integer(1, 1 << 31),
    "basis": one_of(*BASES),
    "nodes": optional(one_of(*NODES)),
    "start_degree": optional(integer(0, MOST_LAYERS)),
    "degree_weight": number(-100, 100),
    "gain_offset": optional(_FACTOR),
    "coefficient_matrix": optional(items(items(number(-1e12, 1e12)))),
    "depth_map": optional(one_of(*DEPTH_MAPS)),
    "depth_rows": optional(OBJECT),
    "trained_depths": optional(items(_LAYERS)),
    "trained_width_ratios": optional(items(_RATIO)),
    "weights_id": optional(TEXT),
    "width_ratio": optional(_RATIO),
    "problem_type": optional(TEXT),
    "id2label": optional((is_label_map, "an object that gives each class number a name")),
    "label2id": optional((is_reverse_map, "an object that gives each class name a number")),
}


@dataclass(frozen=True)
class Size:
    """One size of a bundle, resolved and legal: layers, fraction of the width, number of components combined; and
    whether that width is the trailing part, not the leading one.
    """

    depth: int
    width_ratio: Fraction
    num_components: int
    trailing: bool = False

    def __str__(self) -> str:
        return f"depth {self.depth}, width ratio {self.width_ratio}, {self.num_components} components"


class LinGeneConfig(PretrainedConfig):
    """Configuration of a bundle of shared components and of the size taken from it.

    Args:
        hidden_size, num_attention_heads, intermediate_size, image_size, ...: the ViT at full width, as in `ViTConfig`.
        family: whose models this bundle gives and behaves as, see `families_lingene`.
        num_register_tokens, drop_path_rate, apply_layernorm, reshape_hidden_states: as in the configuration of a
            family that has them.
        bundle_format: version of the layout on disk; a newer one is refused.
        reference_depth: number of layers the components were made for; a new config takes it from `depth`.
        reference_components: number of components stored; a new config takes it from `num_components`.
        basis, nodes, start_degree, degree_weight: the coefficients, see `coefficients`.
        gain_offset: LayerNorm gain = gain_offset + sum_n a(l, n) A_n.
        scale_residual: with more layers than `reference_depth`, multiply each branch's output by reference / depth.
        coefficient_matrix: nested list (reference_depth, reference_components), basis `learned` only.
        depth_map: `resample` recomputes the coefficients at the new depth, `select` keeps rows of the reference ones.
        depth_rows: `{depth: rows}` chosen on data, for `select`.
        trained_depths: depths seen in training; default the reference depth.
        trained_width_ratios: width ratios seen in training, as fraction strings; default full width only.
        isolated_activation: widths between the smallest trained one and 1 are the trailing channels, heads and units,
            not the leading ones (Scala).
        weights_id: identity of the weights this configuration was saved with.
        depth, width_ratio, num_components: the size asked for; None is all that is stored.
        preset: `stable` (default) or `paper`: sets `nodes`, `start_degree`, `gain_offset`, `depth_map` if not given.

    Raises:
        ValueError: fields that contradict each other, or a bundle of a newer format.
    """

    model_type = "lingene"

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

    family: str = "vit"
    num_register_tokens: int = 0
    drop_path_rate: float = 0.0
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True

    bundle_format: int = BUNDLE_FORMAT
    reference_depth: int | None = None
    reference_components: int | None = None
    basis: str = "chebyshev"
    nodes: str | None = None
    start_degree: int | None = None
    degree_weight: float = 0.0
    gain_offset: float | None = None
    scale_residual: bool = False
    coefficient_matrix: list[list[float]] | None = None
    depth_map: str | None = None
    depth_rows: dict[int, list[int]] | None = None
    trained_depths: list[int] | None = None
    trained_width_ratios: list[str] | None = None
    isolated_activation: bool = False
    weights_id: str | None = None

    depth: int | None = None
    width_ratio: float | str | None = None
    num_components: int | None = None

    def __post_init__(self, preset: str = "stable", **kwargs):
        if self.depth is not None and "num_hidden_layers" in kwargs:
            raise ValueError("`depth` and `num_hidden_layers` name the same thing; give one of them.")
        self.depth = kwargs.pop("num_hidden_layers", self.depth)
        if not isinstance(self.bundle_format, int) or self.bundle_format > BUNDLE_FORMAT:
            raise ValueError(
                f"`bundle_format` {self.bundle_format} is newer than the format {BUNDLE_FORMAT} this code reads; "
                "upgrade modeling_lingene, or load the code that came with the bundle (trust_remote_code=True)."
            )
        if preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}.")
        for name, value in PRESETS[preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self._fill_reference()
        self._check_stored()
        super().__post_init__(**kwargs)

    def _fill_reference(self):
        if self.reference_depth is None:
            self.reference_depth = 12 if self.depth is None else check_count("depth", self.depth)
        if self.reference_components is None:
            given = self.num_components
            self.reference_components = self.reference_depth if given is None else check_count("num_components", given)
        if self.trained_depths is None:
            self.trained_depths = [self.reference_depth]
        if self.trained_width_ratios is None:
            self.trained_width_ratios = ["1"]
        if isinstance(self.width_ratio, Fraction):
            self.width_ratio = str(self.width_ratio)  # a configuration must print as JSON
        if self.depth_rows is not None:
            listed = isinstance(self.depth_rows, dict) and all(
                str(depth).isdigit() and isinstance(rows, (list, tuple)) for depth, rows in self.depth_rows.items()
            )
            if not listed:
                raise ValueError(f"`depth_rows` must be {{depth: rows}}, got {shown(self.depth_rows)}.")
            self.depth_rows = {int(depth): list(rows) for depth, rows in self.depth_rows.items()}

    def _check_stored(self):
        check_count("reference_depth", self.reference_depth)
        check_count("reference_components", self.reference_components)
        for name, allowed in (("basis", BASES), ("nodes", NODES), ("depth_map", DEPTH_MAPS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        check_degree("start_degree", self.start_degree)
        check_count("num_attention_heads", self.num_attention_heads)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` {self.hidden_size} is not a multiple of `num_attention_heads` "
                f"{self.num_attention_heads}."
            )
        self._check_family()
        if (self.coefficient_matrix is not None) != (self.basis == "learned"):
            raise ValueError("`coefficient_matrix` belongs to the basis 'learned': give both or neither.")
        if self.coefficient_matrix is not None:
            self._check_matrix()
        for depth, rows in (self.depth_rows or {}).items():
            if len(rows) != depth or not all(is_integer(row, 0, self.reference_depth - 1) for row in rows):
                raise ValueError(f"`depth_rows` for depth {depth} must be {depth} rows below {self.reference_depth}.")
        legal, heads = self.legal_width_ratios, self.num_attention_heads
        trained = [read_width_ratio(ratio, heads, name="trained_width_ratios") for ratio in self.trained_width_ratios]
        for ratio in trained:
            if ratio not in legal:
                raise ValueError(f"`trained_width_ratios` {ratio} leaves no whole heads; use of {_listed(legal)}.")
        self.trained_width_ratios = [str(ratio) for ratio in trained]

    def _check_family(self):
        if self.family not in FAMILIES:
            raise ValueError(f"`family` must be one of {', '.join(FAMILIES)}, got {self.family!r}.")
        family = self.stands_for
        for name, none in FAMILY_FIELDS.items():
            if name not in family.fields and getattr(self, name) != none:
                raise ValueError(f"`{name}` {getattr(self, name)!r} is no setting of the family {self.family}.")
        if family.registers and self.num_register_tokens < 1:
            raise ValueError(
                f"`num_register_tokens` of the family {self.family} must be at least 1, got "
                f"{self.num_register_tokens!r}; dinov2 is the family without register tokens."
            )
        if family.mlp_ratio and self.intermediate_size % self.hidden_size:
            raise ValueError(
                f"`intermediate_size` of the family {self.family} must be a whole multiple of `hidden_size`: "
                f"{self.intermediate_size} of {self.hidden_size} cannot be expressed; family vit takes any."
            )
        for name in ("image_size", "patch_size") if family.interpolates else ():
            height, width = _pair(getattr(self, name))
            if height != width:
                raise ValueError(
                    f"`{name}` of the family {self.family} must be square, since it interpolates a square of "
                    f"positions; got {height}x{width}. Its images may have any shape."
                )

    def _check_matrix(self):
        matrix = self.coefficient_matrix if isinstance(self.coefficient_matrix, (list, tuple)) else []
        rows = [row for row in matrix if isinstance(row, (list, tuple)) and len(row) == self.reference_components]
        finite = all(isinstance(number, (int, float)) and isfinite(number) for row in rows for number in row)
        if not (finite and len(rows) == len(matrix) == self.reference_depth):
            raise ValueError(
                f"`coefficient_matrix` must be {self.reference_depth} rows of {self.reference_components} numbers."
            )

    @property
    def num_hidden_layers(self) -> int:
        """The number of layers asked for, under the usual name; setting it sets `depth`."""
        return self.reference_depth if self.depth is None else self.depth

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int):
        self.depth = value

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        if kwargs.get("depth") is not None and kwargs.get("num_hidden_layers") is not None:
            raise ValueError("`depth` and `num_hidden_layers` name the same thing; give one of them.")
        # None leaves what is stored, as everywhere; transformers would write it into the configuration.
        kwargs = {key: value for key, value in kwargs.items() if key not in SIZE_FIELDS or value is not None}
        if isinstance(kwargs.get("width_ratio"), Fraction):
            kwargs["width_ratio"] = str(kwargs["width_ratio"])
        check_fields(config_dict, FIELDS, f"`{CONFIG_NAME}`")
        # How weights are stored does not say how they are loaded: `dtype` is what the caller asks for, or nothing.
        config_dict = {key: value for key, value in config_dict.items() if key not in ("dtype", "torch_dtype")}
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:
            # Fields that contradict each other, or transformers' own of the wrong type, in transformers' words.
            raise ValueError(f"`{CONFIG_NAME}`: {' '.join(str(error).split())}") from None

    def size(self, depth=None, width_ratio=None, num_components=None) -> Size:
        """The size asked for, by argument first, then by this config's fields, then all that is stored.

        Raises:
            ValueError: a depth or component count that is no positive integer, more components than stored, a depth
                above `reference_depth` with the depth map `select`, a width that does not leave whole heads.
        """
        depth = check_count("depth", _first(depth, self.depth, self.reference_depth))
        count = check_count("num_components", _first(num_components, self.num_components, self.reference_components))
        if count > self.reference_components:
            raise ValueError(
                f"`num_components` {count} is more than the {self.reference_components} stored; "
                f"use 1 to {self.reference_components}."
            )
        if self.depth_map == "select" and depth > self.reference_depth:
            raise ValueError(
                f"`depth` {depth} is above `reference_depth` {self.reference_depth}, and this bundle selects layers "
                f"(`depth_map` 'select'); use 1 to {self.reference_depth}, or resample with depth_map='resample'."
            )
        given = _first(width_ratio, self.width_ratio, 1)
        ratio = read_width_ratio(given, self.num_attention_heads)
        if ratio not in self.legal_width_ratios:
            raise ValueError(
                f"`width_ratio` must leave whole heads and MLP units: {given} of {self.num_attention_heads} heads is "
                f"{float(ratio * self.num_attention_heads):g}, of {self.intermediate_size} MLP units "
                f"{float(ratio * self.intermediate_size):g}; use one of {_listed(self.legal_width_ratios)}."
            )
        return Size(depth, ratio, count, self.isolated_activation and self._between(ratio))

    def _between(self, ratio: Fraction) -> bool:
        """Whether a width lies between the smallest trained one and the full one."""
        return min((Fraction(one) for one in self.trained_width_ratios), default=1) < ratio < 1

    @property
    def legal_width_ratios(self) -> list[Fraction]:
        """Ratios that leave whole heads and whole MLP units, ascending."""
        return legal_width_ratios(self.num_attention_heads, self.intermediate_size)

    def check_trained(self, size: Size):
        """Refuse a width never trained: such a slice is an initialisation, not a model (66 % -> 1.7 %, Scala)."""
        trained = sorted(Fraction(ratio) for ratio in self.trained_width_ratios)
        if size.width_ratio not in trained:
            raise ValueError(
                f"`width_ratio` {size.width_ratio} was never trained in this bundle; use one of {_listed(trained)}, "
                "or pass allow_untrained=True to take the slice as an initialisation for training."
            )

    def coefficients(self, size: Size) -> torch.Tensor:
        """a(l, n) of one size: (depth, num_components) float64 (LinDec, Eq. 3 and 9)."""
        shape = {"basis": self.basis, "nodes": self.nodes, "start_degree": self.start_degree}
        shape |= {"degree_weight": self.degree_weight, "matrix": self.coefficient_matrix}
        if self.depth_map == "resample":
            return coefficients(size.depth, size.num_components, **shape)
        rows = (self.depth_rows or {}).get(size.depth) or selected_rows(self.reference_depth, size.depth)
        return coefficients(self.reference_depth, size.num_components, rows=rows, **shape)

    def branch_scale(self, name: str, size: Size) -> float:
        """Factor on one block tensor: reference_depth / depth on a branch's output where `scale_residual` asks so."""
        grown = self.scale_residual and size.depth > self.reference_depth
        return self.reference_depth / size.depth if grown and name.rpartition(".")[0] in RESIDUAL_OUTPUTS else 1.0

    @property
    def stands_for(self) -> Family:
        """The row of the bundle's family."""
        return FAMILIES[self.family]

    def stored_params(self, size: Size, head: bool = True) -> int:
        """Parameters that have to be downloaded for a size: what is shared, and the slices of its components."""
        shared = self.sliced(self.shared_shapes(), size).values()
        component = self.sliced(self.component_shapes(), size).values()
        classifier = self.sliced(self.head_shapes(), size).values() if head else ()
        return sum(map(prod, (*shared, *classifier))) + size.num_components * sum(map(prod, component))

    def component_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of one component, by its name within the block, at full width."""
        d, m = self.hidden_size, self.intermediate_size
        out_in = {"mlp.fc1": (m, d), "mlp.fc2": (d, m)}
        shapes = {}
        for name in BLOCK_LINEARS:
            shapes[f"{name}.weight"] = out_in.get(name, (d, d))
            if self.qkv_bias or name.startswith("mlp") or name == "attention.output":
                shapes[f"{name}.bias"] = shapes[f"{name}.weight"][:1]
        for name in BLOCK_NORMS:
            shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
        return shapes

    def shared_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor outside the blocks and the head, by its key in the bundle, at full width."""
        d, family = self.hidden_size, self.stands_for
        shapes = {"embeddings.cls_token": (1, 1, d)}
        if family.mask_token:
            shapes["embeddings.mask_token"] = (1, 1, d)
        if family.registers:
            shapes["embeddings.register_tokens"] = (1, self.num_register_tokens, d)
        return shapes | {
            "embeddings.position_embeddings": (1, prod(self.patch_grid) + 1, d),
            "embeddings.patch_embeddings.weight": (d, self.num_channels, *_pair(self.patch_size)),
            "embeddings.patch_embeddings.bias": (d,),
            "layernorm.weight": (d,),
            "layernorm.bias": (d,),
        }

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of the classifier, by its key in the bundle, at full width."""
        shapes = {"classifier.weight": (self.num_labels, self.hidden_size), "classifier.bias": (self.num_labels,)}
        if self.stands_for.reads_patches:
            shapes["classifier.patch_weight"] = shapes["classifier.weight"]
        return shapes

    @property
    def patch_grid(self) -> tuple[int, int]:
        """How many patches an image has, down and across."""
        sizes, steps = _pair(self.image_size), _pair(self.patch_size)
        return sizes[0] // steps[0], sizes[1] // steps[1]

    def vit_config(self, size: Size, **fields) -> PretrainedConfig:
        """The family's own configuration of the model that this size materialises to; `fields` are more of its own."""
        fields |= {name: getattr(self, name) for name in (*VIT_FIELDS, *self.stands_for.fields)}
        for name in ("hidden_size", "num_attention_heads", "intermediate_size"):
            fields[name] = int(fields[name] * size.width_ratio)
        for name in ("initializer_range", "layer_norm_eps"):  # JSON may say 1, and stock configurations want 1.0
            fields[name] = float(fields[name])
        config = stock_config(self.family, {**fields, "num_hidden_layers": size.depth, **self._label_fields()})
        config._attn_implementation = self._attn_implementation
        config._output_attentions = self._output_attentions
        config.output_hidden_states, config.return_dict = self.output_hidden_states, self.return_dict
        return config

    def _label_fields(self) -> dict:
        return {name: getattr(self, name) for name in ("id2label", "label2id", "problem_type")}

    def sized(self, size: Size) -> "LinGeneConfig":
        """The configuration of the smaller bundle that a constrained model of this size is.

        Widths are sliced, `reference_components` becomes the count asked for, `depth` the depth asked for;
        `reference_depth` stays, since the coefficients refer to it; trained ratios are divided by the ratio taken.
        """
        config = type(self)(**{**self.to_dict(), **self._label_fields()})
        config._attn_implementation = self._attn_implementation
        config._output_attentions = self._output_attentions
        for name in ("hidden_size", "num_attention_heads", "intermediate_size"):
            setattr(config, name, int(getattr(self, name) * size.width_ratio))
        trained = self.trained_width_ratios
        if self.isolated_activation and size.width_ratio < 1:  # narrower widths do not lie in it
            config.isolated_activation, trained = False, [size.width_ratio] if str(size.width_ratio) in trained else []
        ratios = [Fraction(ratio) / size.width_ratio for ratio in trained]
        legal = config.legal_width_ratios
        config.trained_width_ratios = [str(ratio) for ratio in ratios if ratio in legal]
        config.reference_components = size.num_components
        if config.coefficient_matrix is not None:
            config.coefficient_matrix = [row[: size.num_components] for row in config.coefficient_matrix]
        config.depth, config.width_ratio, config.num_components = size.depth, None, None
        return config

    def sliced(self, shapes: dict[str, tuple[int, ...]], size: Size) -> dict[str, tuple[int, ...]]:
        """The given full-width shapes at the width of a size."""
        return {key: sliced_shape(key, shape, size.width_ratio) for key, shape in shapes.items()}


def check_count(name: str, value) -> int:
    """`value` as a positive integer, or a ValueError that names it; "six", 6.0 and True are refused."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    return value


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _first(*values):
    return next((value for value in values if value is not None), None)


def _listed(ratios: list[Fraction]) -> str:
    return ", ".join(map(str, ratios)) or "none"
