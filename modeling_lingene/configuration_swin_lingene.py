"""LinGeneSwinConfig: a bundle of Swin Transformers, whose stages differ in width.

Components stand for the layers of the stages that have many of them (LinDec decomposes stage 3); the layers of the
others are stored one by one. Stages are counted from 1.
"""

from collections.abc import Iterable
from fractions import Fraction
from math import gcd
from typing import Any

from transformers import PretrainedConfig
from transformers.activations import ACT2FN

from .configuration_base_lingene import (
    FREE_SETTINGS,
    LAYERS,
    MOST_LAYERS,
    SHARE,
    SIDES,
    STORED_FIELDS,
    STORED_SETTINGS,
    UNITS,
    BundleConfig,
    Size,
    check_count,
    sides,
)
from .families_lingene import STAGE
from .reading_lingene import FLAG, TEXT, either, integer, is_number, items, number, one_of, optional
from .recompose_lingene import POSITION_BIAS, block_shapes
from .translating_lingene import stock_config


SWIN_FIELDS = (
    "embed_dim depths num_heads window_size mlp_ratio hidden_act hidden_dropout_prob attention_probs_dropout_prob "
    "drop_path_rate initializer_range layer_norm_eps image_size patch_size num_channels qkv_bias"
).split()
DEPTH = either(integer(1, MOST_LAYERS), either(TEXT, items(LAYERS)))  # of one stage, or of several
FIELDS = {
    **dict.fromkeys(("embed_dim", "window_size", "num_channels"), UNITS),
    **dict.fromkeys(("depths", "decomposed_stages"), items(LAYERS)),
    "num_heads": items(UNITS),
    "mlp_ratio": number(0, 1e3),
    "hidden_act": one_of(*ACT2FN),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"), SHARE),
    "initializer_range": number(0, 1e3),
    "family": one_of("swin"),
    "drop_path_rate": (lambda value: is_number(value, 0, 1) and value < 1, "a number from 0 to below 1"),
    **dict.fromkeys(("image_size", "patch_size"), SIDES),
    "qkv_bias": FLAG,
    **STORED_FIELDS,
    **dict.fromkeys(("depth", "reference_depth"), optional(DEPTH)),
    "trained_depths": optional(items(DEPTH)),
}
FREE = ("hidden_act", "layer_norm_eps", "image_size", *FREE_SETTINGS)


class SwinShape:
    """What follows from `embed_dim`, `depths`, `num_heads`, `window_size`, `image_size` and `patch_size` of a Swin."""

    def check_lists(self):
        """Sets the lists of numbers of the stages; refuses what is none, or is not one number a stage."""
        stages = len(self.depths)
        for name in ("depths", "num_heads"):
            values = [check_count(name, value) for value in getattr(self, name)]
            setattr(self, name, values)
            if not values or len(values) != stages:
                raise ValueError(f"`{name}` must be {stages} numbers, one a stage as in `depths`, got {values}.")

    def check_shape(self):
        """Refuses heads that do not divide the channels or differ in size, and windows larger than the last stage."""
        check_count("window_size", self.window_size)
        for stage, heads in enumerate(self.num_heads, start=1):
            width = self.stage_width(stage)
            if width % heads:
                raise ValueError(f"`num_heads` {heads} of stage {stage} do not divide its {width} channels.")
        if len({self.stage_width(stage) // heads for stage, heads in enumerate(self.num_heads, start=1)}) > 1:
            raise ValueError(f"`num_heads` {self.num_heads} must double with the channels: a width keeps whole heads.")
        if self.smallest_grid < self.window_size:
            raise ValueError(
                f"`image_size` {self.image_size} leaves the last of {len(self.depths)} stages {self.smallest_grid} "
                f"patches on a side, fewer than a window of {self.window_size}: use larger images, smaller patches, a "
                "smaller `window_size` or fewer stages."
            )

    def stage_width(self, stage: int) -> int:
        """Channels of a stage, from 1, at full width."""
        return self.embed_dim << (stage - 1)

    def stage_grid(self, stage: int) -> tuple[int, int]:
        """Patches of a stage, from 1, down and across: every stage halves them, and all is rounded up."""
        step = 1 << (stage - 1)
        height, width = (
            -(-pixels // (side * step)) for pixels, side in zip(sides(self.image_size), sides(self.patch_size))
        )
        return height, width

    @property
    def smallest_grid(self) -> int:
        """Patches on the shorter side of the last stage."""
        return min(self.stage_grid(len(self.depths)))

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage, which the classifier reads."""
        return self.stage_width(len(self.depths))

    @property
    def head_size(self) -> int:
        return self.embed_dim // self.num_heads[0]


class LinGeneSwinConfig(SwinShape, BundleConfig):
    """Configuration of a bundle of Swin Transformers and of the size taken from it.

    A depth is the number of layers of the decomposed stage; where several are decomposed, one number for each, as a
    list or as a text such as "2-6".

    Args:
        embed_dim, depths, num_heads, window_size, mlp_ratio, ...: the Swin at full width, as in `SwinConfig`.
        decomposed_stages: the stages, from 1, whose layers are sums of components; default the one with most layers.
        bundle_format, ..., depth, width_ratio, num_components, preset: see `BundleConfig`.

    Raises:
        ValueError: fields that contradict each other, or a bundle of a newer format.
    """

    model_type = "lingene_swin"
    fields = FIELDS
    settings = (
        *("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "num_channels", "patch_size", "qkv_bias"),
        *("decomposed_stages", "family", *STORED_SETTINGS, *FREE),
    )
    free_settings = FREE
    layer_period = 2  # windows are shifted in every other layer

    family: str = "swin"

    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 4
    num_channels: int = 3
    qkv_bias: bool = True

    decomposed_stages: list[int] | tuple[int, ...] | None = None

    def _fill_reference(self):
        self._check_stages()
        if self.reference_depth is None:
            self.reference_depth = self._joined([self.depths[stage - 1] for stage in self.decomposed_stages])
        super()._fill_reference()
        self.trained_depths = [self.read_depth(depth, "trained_depths") for depth in self.trained_depths]
        self.depth = None if self.depth is None else self.read_depth(self.depth)

    def _check_stages(self):
        self.check_lists()
        stages = len(self.depths)
        if self.decomposed_stages is None:
            self.decomposed_stages = [1 + self.depths.index(max(self.depths))]
        chosen = [check_count("decomposed_stages", stage) for stage in self.decomposed_stages]
        if not chosen or sorted(set(chosen)) != chosen or chosen[-1] > stages:
            raise ValueError(f"`decomposed_stages` must be stages from 1 to {stages}, ascending, got {chosen}.")
        self.decomposed_stages = chosen

    def _check_network(self):
        self.check_shape()
        for width in map(self.stage_width, range(1, 1 + len(self.depths))):
            if self.mlp_ratio * width != int(self.mlp_ratio * width):
                raise ValueError(f"`mlp_ratio` {self.mlp_ratio} of {width} channels leaves no whole MLP units.")
        known = self._joined([self.depths[stage - 1] for stage in self.decomposed_stages])
        if self.reference_depth != known:
            raise ValueError(f"`reference_depth` {self.reference_depth} contradicts `depths` {self.depths}: {known}.")

    @property
    def stacks(self) -> tuple[str, ...]:
        return tuple(f"stage{stage}." for stage in self.decomposed_stages)

    def read_depth(self, depth: Any, name: str = "depth") -> int | str:
        """One number for a single decomposed stage; for several one each, or one for every stage of the network."""
        single, stages = len(self.decomposed_stages) == 1, len(self.depths)
        parts = depth.split("-") if isinstance(depth, str) else depth
        if isinstance(parts, Iterable):
            parts = [int(part) if isinstance(part, str) and part.isdecimal() else part for part in parts]
            if len(parts) == stages and (stages > len(self.decomposed_stages)):
                dense = [stage for stage in range(1, stages + 1) if stage not in self.decomposed_stages]
                for stage in dense:
                    if parts[stage - 1] != self.depths[stage - 1]:
                        raise ValueError(
                            f"`{name}` must leave stage {stage} its {self.depths[stage - 1]} layers, got "
                            f"{parts[stage - 1]!r}: decomposed are {self.decomposed_stages}."
                        )
                parts = [parts[stage - 1] for stage in self.decomposed_stages]
        elif single:
            parts = [depth]
        else:
            parts = []
        if len(parts) != len(self.decomposed_stages):
            each = ", ".join(map(str, self.decomposed_stages))
            raise ValueError(f"`{name}` must be the layers of each of the stages {each}, as in '2-6', got {depth!r}.")
        return self._joined([check_count(name, part) for part in parts])

    @staticmethod
    def _joined(parts: list[int]) -> int | str:
        return parts[0] if len(parts) == 1 else "-".join(map(str, parts))

    def stack_depth(self, depth: int | str, name: str) -> int:
        if isinstance(depth, int):
            return depth
        return int(depth.split("-")[self.decomposed_stages.index(int(STAGE.fullmatch(f"{name}.")["stage"]))])

    def stage_depths(self, size: Size) -> list[int]:
        """How many layers every stage of the network has in a size."""
        depths = list(self.depths)
        for stage in self.decomposed_stages:
            depths[stage - 1] = self.stack_depth(size.depth, f"stage{stage}.")
        return depths

    @property
    def head_unit(self) -> int:
        return gcd(*self.num_heads)

    def indivisible(self, ratio: Fraction) -> tuple[int, int]:
        return self.head_unit, int(self.mlp_ratio * self.embed_dim)

    def narrowed(self, ratio: Fraction) -> dict[str, Any]:
        return {
            "embed_dim": int(self.embed_dim * ratio),
            "num_heads": [int(heads * ratio) for heads in self.num_heads],
        }

    def block_shapes(self, stage: int) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of a block of a stage, by its name within the block."""
        width, positions = self.stage_width(stage), (2 * self.window_size - 1) ** 2
        shapes = block_shapes(width, int(self.mlp_ratio * width), self.qkv_bias)
        return shapes | {f"{POSITION_BIAS}.weight": (positions, self.num_heads[stage - 1])}

    def component_shapes(self, index: int = 0) -> dict[str, tuple[int, ...]]:
        return {
            f"stage{stage}.{name}": shape
            for stage in self.decomposed_stages
            if index < self.component_count(self.reference_components, f"stage{stage}.")
            for name, shape in self.block_shapes(stage).items()
        }

    def shared_shapes(self) -> dict[str, tuple[int, ...]]:
        d, stages = self.embed_dim, len(self.depths)
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.patch_embeddings.weight": (d, self.num_channels, *sides(self.patch_size)),
            "embeddings.patch_embeddings.bias": (d,),
            "embeddings.norm.weight": (d,),
            "embeddings.norm.bias": (d,),
        }
        for stage in range(1, stages + 1):
            if stage not in self.decomposed_stages:
                for layer in range(self.depths[stage - 1]):
                    own = self.block_shapes(stage).items()
                    shapes |= {f"stage{stage}.layers.{layer}.{name}": shape for name, shape in own}
            if stage < stages:
                width = self.stage_width(stage)
                for kind in ("weight", "bias"):
                    shapes[f"stage{stage}.downsample.norm.{kind}"] = (4, width)
                shapes[f"stage{stage}.downsample.reduction.weight"] = (2 * width, 4, width)
        return shapes | {"layernorm.weight": (self.hidden_size,), "layernorm.bias": (self.hidden_size,)}

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"classifier.weight": (self.num_labels, self.hidden_size), "classifier.bias": (self.num_labels,)}

    @property
    def patch_grid(self) -> tuple[int, int]:
        """How many patches an image has, down and across."""
        sizes, steps = sides(self.image_size), sides(self.patch_size)
        return sizes[0] // steps[0], sizes[1] // steps[1]

    def stock_config(self, size: Size, **fields) -> PretrainedConfig:
        fields |= {name: getattr(self, name) for name in SWIN_FIELDS}
        fields |= {**self.narrowed(size.width_ratio), "depths": self.stage_depths(size)}
        for name in ("initializer_range", "layer_norm_eps"):  # JSON may say 1, and stock configurations want 1.0
            fields[name] = float(fields[name])
        config = stock_config(self.family, {**fields, **self._label_fields()})
        config.output_hidden_states, config.return_dict = self.output_hidden_states, self.return_dict
        return self._with_attention(config)
