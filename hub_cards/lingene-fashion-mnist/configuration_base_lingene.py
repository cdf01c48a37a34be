"""BundleConfig: what the configuration of every bundle says, whatever kind of network its components are of.

Groups of fields that never share a name: the network at full width, which a kind of network adds; what is stored; what
is asked for (None: all of it). Everything else - coefficients, shapes, the sized network's own configuration - is
derived, never stored.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, prod
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.utils import CONFIG_NAME

from .families_lingene import FAMILIES, STAGE, Family
from .reading_lingene import (
    FLAG,
    OBJECT,
    TEXT,
    Check,
    check_fields,
    either,
    integer,
    is_integer,
    items,
    number,
    one_of,
    optional,
    shown,
)
from .recompose_lingene import (
    BASES,
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
BUNDLE_TYPES = ("lingene", "lingene_swin")  # every `model_type` of a bundle
SIZE_FIELDS = ("depth", "width_ratio", "num_components")
# What the function of a size depends on, beside the weights, in every kind of network; a keyword may override the free
# ones: how weights are used, also at sizes that they were not made for.
FREE_SETTINGS = ("scale_residual", "depth_map", "depth_rows")
STORED_SETTINGS = (
    "reference_depth reference_components basis nodes start_degree degree_weight gain_offset coefficient_matrix "
    "trained_width_ratios isolated_activation"
).split()
MOST_LAYERS, MOST_UNITS, MOST_PIXELS = 1024, 1 << 20, 1 << 16


def is_label_map(value) -> bool:
    named = isinstance(value, dict) and all(isinstance(name, str) for name in value.values())
    return named and all(str(number).isdecimal() for number in value)


def is_reverse_map(value) -> bool:
    return isinstance(value, dict) and all(is_integer(number, 0, MOST_UNITS) for number in value.values())


LAYERS, UNITS, PIXELS = integer(1, MOST_LAYERS), integer(1, MOST_UNITS), integer(1, MOST_PIXELS)
SIDES, SHARE, FACTOR = either(PIXELS, items(PIXELS, 2)), number(0, 1), number(-1e6, 1e6)
RATIO = either(TEXT, number(0, 1))
# What config.json may say of the fields of every bundle; `None` is left to the presets, or is all that is stored.
STORED_FIELDS: dict[str, Check] = {
    **dict.fromkeys(("scale_residual", "isolated_activation", "turned"), FLAG),
    **dict.fromkeys(("reference_depth", "reference_components"), optional(LAYERS)),
    **dict.fromkeys(("depth", "num_components"), optional(LAYERS)),
    "bundle_format": integer(1, 1 << 31),
    "basis": one_of(*BASES),
    "nodes": optional(one_of(*NODES)),
    "start_degree": optional(integer(0, MOST_LAYERS)),
    "degree_weight": number(-100, 100),
    "gain_offset": optional(FACTOR),
    "coefficient_matrix": optional(items(items(number(-1e12, 1e12)))),
    "depth_map": optional(one_of(*DEPTH_MAPS)),
    "depth_rows": optional(OBJECT),
    **dict.fromkeys(("trained_depths", "trained_components"), optional(items(LAYERS))),
    "trained_width_ratios": optional(items(RATIO)),
    "weights_id": optional(TEXT),
    "width_ratio": optional(RATIO),
    "problem_type": optional(TEXT),
    "id2label": optional((is_label_map, "an object that gives each class number a name")),
    "label2id": optional((is_reverse_map, "an object that gives each class name a number")),
}


@dataclass(frozen=True)
class Size:
    """One size of a bundle, resolved and legal: layers, fraction of the width, number of components combined; and
    whether that width is the trailing part, not the leading one.

    Where several stacks of layers are decomposed, `depth` has the layers of each, as in "2-6".
    """

    depth: int | str
    width_ratio: Fraction
    num_components: int
    trailing: bool = False

    def __str__(self) -> str:
        return f"depth {self.depth}, width ratio {self.width_ratio}, {self.num_components} components"


class BundleConfig(PretrainedConfig):
    """Configuration of a bundle of shared components and of the size taken from it.

    A kind of network adds its own fields, and says by the methods at the end what tensors it has and whose they are.
    A *stack* is a run of layers of equal shapes that components stand for: all of a plain ViT's, or one stage.

    Args:
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
        trained_components: numbers of components seen in training, or converted to; None where it is not recorded.
        trained_width_ratios: width ratios seen in training, as fraction strings; default full width only.
        isolated_activation: widths between the smallest trained one and 1 are the trailing channels, heads and units,
            not the leading ones (Scala).
        turned: the channels are in another basis than those of the checkpoint it was made of (`convert --sort`);
            `readout.safetensors` beside it brings tokens back.
        weights_id: identity of the weights this configuration was saved with.
        depth, width_ratio, num_components: the size asked for; None is all that is stored.
        preset: `stable` (default) or `paper`: sets `nodes`, `start_degree`, `gain_offset`, `depth_map` if not given.

    Raises:
        ValueError: fields that contradict each other, or a bundle of a newer format.
    """

    fields: ClassVar[dict[str, Check]]  # what config.json may say of each field
    settings: ClassVar[tuple[str, ...]]  # fields that the function of every size depends on
    later_settings: ClassVar[dict[str, Any]] = {}  # left out of a bundle's identity where they are these, being newer
    free_settings: ClassVar[tuple[str, ...]] = FREE_SETTINGS
    layer_period: ClassVar[int] = 1  # after how many layers of a stack the same kind of layer comes again

    family: str = "vit"

    bundle_format: int = BUNDLE_FORMAT
    reference_depth: int | str | None = None
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
    trained_depths: list[int | str] | None = None
    trained_components: list[int] | None = None
    trained_width_ratios: list[str] | None = None
    isolated_activation: bool = False
    turned: bool = False
    weights_id: str | None = None

    depth: int | str | None = None
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
            self.reference_depth = 12 if self.depth is None else self.read_depth(self.depth)
        if self.reference_components is None:
            given = self.num_components
            stored = self.most_components
            self.reference_components = stored if given is None else check_count("num_components", given)
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

    @property
    def most_components(self) -> int:
        """As many as the deepest stack has layers: then every layer of every stack can be its own."""
        return max(self.stack_depth(self.reference_depth, stack) for stack in self.stacks)

    def _check_stored(self):
        self.reference_depth = self.read_depth(self.reference_depth, "reference_depth")
        check_count("reference_components", self.reference_components)
        for name, allowed in (("basis", BASES), ("nodes", NODES), ("depth_map", DEPTH_MAPS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        check_degree("start_degree", self.start_degree)
        own = {name: check for name, check in self.fields.items() if name not in STORED_FIELDS}
        check_fields({name: getattr(self, name) for name in own}, own, type(self).__name__, remedy="give such a one")
        self._check_network()
        if (self.coefficient_matrix is not None) != (self.basis == "learned"):
            raise ValueError("`coefficient_matrix` belongs to the basis 'learned': give both or neither.")
        for name in ("coefficient_matrix", "depth_rows"):
            if getattr(self, name) is not None and len(self.stacks) > 1:
                raise ValueError(f"`{name}` is for one stack of layers, and this bundle has {len(self.stacks)}.")
        if self.coefficient_matrix is not None:
            self._check_matrix()
        for depth, rows in (self.depth_rows or {}).items():
            if len(rows) != depth or not all(is_integer(row, 0, self.reference_depth - 1) for row in rows):
                raise ValueError(f"`depth_rows` for depth {depth} must be {depth} rows below {self.reference_depth}.")
        legal = self.legal_width_ratios
        trained = [self.read_ratio(ratio, "trained_width_ratios") for ratio in self.trained_width_ratios]
        for ratio in trained:
            if ratio not in legal:
                raise ValueError(f"`trained_width_ratios` {ratio} leaves no whole heads; use of {_listed(legal)}.")
        self.trained_width_ratios = [str(ratio) for ratio in trained]

    def _check_matrix(self):
        matrix = self.coefficient_matrix if isinstance(self.coefficient_matrix, (list, tuple)) else []
        rows = [row for row in matrix if isinstance(row, (list, tuple)) and len(row) == self.reference_components]
        finite = all(isinstance(number, (int, float)) and isfinite(number) for row in rows for number in row)
        if not (finite and len(rows) == len(matrix) == self.reference_depth):
            raise ValueError(
                f"`coefficient_matrix` must be {self.reference_depth} rows of {self.reference_components} numbers."
            )

    @property
    def num_hidden_layers(self) -> int | str:
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
        check_fields(config_dict, cls.fields, f"`{CONFIG_NAME}`")
        # How weights are stored does not say how they are loaded: `dtype` is what the caller asks for, or nothing.
        config_dict = {key: value for key, value in config_dict.items() if key not in ("dtype", "torch_dtype")}
        try:  # without keywords there is nothing to apply, and transformers would print the whole into a log line
            return super().from_dict(config_dict, **kwargs) if kwargs else cls(**config_dict)
        except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:
            # Fields that contradict each other, or transformers' own of the wrong type, in transformers' words.
            raise ValueError(f"`{CONFIG_NAME}`: {' '.join(str(error).split())}") from None

    def size(self, depth=None, width_ratio=None, num_components=None) -> Size:
        """The size asked for, by argument first, then by this config's fields, then all that is stored.

        Raises:
            ValueError: a depth or component count that is no positive integer, more components than stored, a depth
                above `reference_depth` with the depth map `select`, a width that does not leave whole heads.
        """
        depth = self.read_depth(_first(depth, self.depth, self.reference_depth))
        count = check_count("num_components", _first(num_components, self.num_components, self.reference_components))
        if count > self.reference_components:
            raise ValueError(
                f"`num_components` {count} is more than the {self.reference_components} stored; "
                f"use 1 to {self.reference_components}."
            )
        for stack in self.stacks if self.depth_map == "select" else ():
            asked, known = self.stack_depth(depth, stack), self.stack_depth(self.reference_depth, stack)
            if asked > known:
                raise ValueError(
                    f"`depth` {asked} is above `reference_depth` {known}{f' of {stack}' if stack else ''}, and this "
                    f"bundle selects layers: use 1 to {known}. In Python, `from_pretrained` with the depth map that "
                    "resamples makes more."
                )
        given = _first(width_ratio, self.width_ratio, 1)
        ratio = self.read_ratio(given)
        if ratio not in self.legal_width_ratios:
            heads, units = self.indivisible(ratio)
            raise ValueError(
                f"`width_ratio` must leave whole heads and {self.unit_words}: {given} of {heads} heads is "
                f"{float(ratio * heads):g}, of {units} MLP units {float(ratio * units):g}; use one of "
                f"{_listed(self.legal_width_ratios)}."
            )
        return Size(depth, ratio, count, self.isolated_activation and self._between(ratio))

    def read_ratio(self, width_ratio: float | str | Fraction, name: str = "width_ratio") -> Fraction:
        """A width ratio as the fraction that is meant, see `read_width_ratio`."""
        return read_width_ratio(width_ratio, self.head_unit, name=name)

    def _between(self, ratio: Fraction) -> bool:
        """Whether a width lies between the smallest trained one and the full one."""
        return min((Fraction(one) for one in self.trained_width_ratios), default=1) < ratio < 1

    @property
    def legal_width_ratios(self) -> list[Fraction]:
        """Ratios that leave whole heads and whole MLP units, ascending."""
        return legal_width_ratios(self.head_unit, self.indivisible(Fraction(1))[1] // self.unit_step)

    @property
    def known_components(self) -> list[int] | None:
        """The numbers of components that are models, ascending: those trained, and all; None where nobody recorded."""
        trained = self.trained_components
        return None if trained is None else sorted({*trained, self.reference_components})

    def untrained(self, size: Size) -> dict[str, list]:
        """Which of a size's depth and number of components were never trained, by field, with the values that were."""
        depths = sorted({self.reference_depth, *self.trained_depths})
        known = {"depth": depths, "num_components": self.known_components}
        return {field: seen for field, seen in known.items() if seen and getattr(size, field) not in seen}

    def check_trained(self, size: Size):
        """Refuse a width never trained: such a slice is an initialisation, not a model (66 % -> 1.7 %, Scala)."""
        trained = sorted(Fraction(ratio) for ratio in self.trained_width_ratios)
        if size.width_ratio not in trained:
            raise ValueError(
                f"`width_ratio` {size.width_ratio} was never trained in this bundle; use one of {_listed(trained)}, "
                "or pass allow_untrained=True to take the slice as an initialisation for training."
            )

    def coefficients(self, size: Size, name: str = "") -> torch.Tensor:
        """a(l, n) of one size: (depth, components) float64 (LinDec, Eq. 3 and 9).

        Args:
            name: of a block tensor or its stack, where there are several; its layers and components count.
        """
        shape = {"basis": self.basis, "nodes": self.nodes, "start_degree": self.start_degree}
        shape |= {"degree_weight": self.degree_weight, "matrix": self.coefficient_matrix}
        depth, count = self.stack_depth(size.depth, name), self.component_count(size.num_components, name)
        if self.depth_map == "resample":
            return coefficients(depth, count, **shape)
        reference = self.stack_depth(self.reference_depth, name)
        rows = (self.depth_rows or {}).get(depth) or selected_rows(reference, depth, self.layer_period)
        return coefficients(reference, count, rows=rows, **shape)

    def stack_of(self, name: str) -> str:
        """The stack that a block tensor is of."""
        return next(stack for stack in self.stacks if name.startswith(stack))

    def component_count(self, num_components: int, name: str) -> int:
        """How many of some components a stack has: at most one per layer where there are several stacks."""
        if len(self.stacks) == 1:
            return num_components
        return min(num_components, self.stack_depth(self.reference_depth, name))

    def branch_scale(self, name: str, size: Size) -> float:
        """Factor on one block tensor: reference_depth / depth on a branch's output where `scale_residual` asks so."""
        reference, depth = self.stack_depth(self.reference_depth, name), self.stack_depth(size.depth, name)
        output = name.rpartition(".")[0].endswith(RESIDUAL_OUTPUTS)
        return reference / depth if self.scale_residual and depth > reference and output else 1.0

    @property
    def stands_for(self) -> Family:
        """The row of the bundle's family."""
        return FAMILIES[self.family]

    def stored_params(self, size: Size, head: bool = True) -> int:
        """Parameters that have to be downloaded for a size: what is shared, and the slices of its components."""
        shapes = [self.shared_shapes(), self.head_shapes() if head else {}]
        shapes += [self.component_shapes(index) for index in range(size.num_components)]
        return sum(prod(shape) for part in shapes for shape in self.sliced(part, size).values())

    def _label_fields(self) -> dict:
        return {name: getattr(self, name) for name in ("id2label", "label2id", "problem_type")}

    def _with_attention(self, config: PretrainedConfig) -> PretrainedConfig:
        """Another configuration with what is asked of this one's attention."""
        config._attn_implementation = self._attn_implementation
        config._output_attentions = self._output_attentions
        return config

    def sized(self, size: Size) -> "BundleConfig":
        """The configuration of the smaller bundle that a constrained model of this size is.

        Widths are sliced, `reference_components` becomes the count asked for, `depth` the depth asked for;
        `reference_depth` stays, since the coefficients refer to it; trained ratios are divided by the ratio taken.
        """
        config = self._with_attention(type(self)(**{**self.to_dict(), **self._label_fields()}))
        for name, value in self.narrowed(size.width_ratio).items():
            setattr(config, name, value)
        trained = self.trained_width_ratios
        if self.isolated_activation and size.width_ratio < 1:  # narrower widths do not lie in it
            config.isolated_activation, trained = False, [size.width_ratio] if str(size.width_ratio) in trained else []
        ratios = [Fraction(ratio) / size.width_ratio for ratio in trained]
        legal = config.legal_width_ratios
        config.trained_width_ratios = [str(ratio) for ratio in ratios if ratio in legal]
        config.reference_components = size.num_components
        if self.trained_components is not None:
            config.trained_components = [count for count in self.trained_components if count <= size.num_components]
        if config.coefficient_matrix is not None:
            config.coefficient_matrix = [row[: size.num_components] for row in config.coefficient_matrix]
        config.depth, config.width_ratio, config.num_components = size.depth, None, None
        return config

    def sliced(self, shapes: dict[str, tuple[int, ...]], size: Size) -> dict[str, tuple[int, ...]]:
        """The given full-width shapes at the width of a size."""
        return {key: sliced_shape(key, shape, size.width_ratio) for key, shape in shapes.items()}

    # What a kind of network says of itself.

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks of layers that components stand for: what the names of their tensors begin with."""
        return ("",)

    def read_depth(self, depth: Any, name: str = "depth") -> int | str:
        """A depth that is asked for in its one form, or a ValueError that names it."""
        return check_count(name, depth)

    def stack_depth(self, depth: int | str, name: str) -> int:
        """How many layers the stack of a block tensor has at a depth."""
        return depth

    def own_layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of `shared_shapes`, the tensors of layers that no component stands for, and what lies between stages."""
        return {key: shape for key, shape in self.shared_shapes().items() if STAGE.match(key)}

    @property
    def head_size(self) -> int:
        """Channels of an attention head, at every width."""
        raise NotImplementedError

    @property
    def head_unit(self) -> int:
        """The number of heads that a width ratio must leave whole."""
        raise NotImplementedError

    def indivisible(self, ratio: Fraction) -> tuple[int, int]:
        """Heads and MLP units of the layers that a ratio divides worst."""
        raise NotImplementedError

    @property
    def unit_step(self) -> int:
        """A number of MLP units of every width is a multiple of this one."""
        return 1

    @property
    def unit_words(self) -> str:
        return "MLP units" if self.unit_step == 1 else f"MLP units, a multiple of {self.unit_step}"

    def narrowed(self, ratio: Fraction) -> dict[str, Any]:
        """The fields that say the width, at a ratio."""
        raise NotImplementedError

    def component_shapes(self, index: int = 0) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of one component, by its name within the block, at full width."""
        raise NotImplementedError

    def shared_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor outside the blocks and the head, by its key in the bundle, at full width."""
        raise NotImplementedError

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of the classifier, by its key in the bundle, at full width."""
        raise NotImplementedError

    def stock_config(self, size: Size, **fields) -> PretrainedConfig:
        """The family's own configuration of the model that this size materialises to; `fields` are more of its own."""
        raise NotImplementedError

    def _check_network(self):
        """Refuse fields of the network that contradict each other."""
        raise NotImplementedError


def check_count(name: str, value) -> int:
    """`value` as a positive integer, or a ValueError that names it; "six", 6.0 and True are refused."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    return value


def sides(value) -> tuple[int, int]:
    """(height, width) of what may be given as one number."""
    return (value, value) if isinstance(value, int) else tuple(value)


def _first(*values):
    return next((value for value in values if value is not None), None)


def _listed(ratios: list[Fraction]) -> str:
    return ", ".join(map(str, ratios)) or "none"
