"""What every part of a network costs, in closed form: multiply-accumulates of one image, or parameters.

SPViT (He et al., arXiv 2111.11802) counts the same products, but leaves out the class token's MLP. Here a
cost is what `count_macs` and `count_parameters` find in the written model, to the last one.

Notation: n patches, t tokens, d channels, h heads, s head size, m MLP units. A Swin's d and n are its stage's;
attention projects t' tokens, those that fill up windows too, each of which attends to w.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..configuration_base_lingene import sides
from ..lingene_pruned import LayerShape, PrunedConfig


KINDS = ("macs", "params")


@dataclass(frozen=True)
class LayerCosts:
    """Of one layer.

    Args:
        mixers: of each, with the LayerNorm before it; ascending.
        unit: of one MLP unit.
    """

    mixers: Mapping[str, int]
    unit: int

    @property
    def increments(self) -> tuple[int, int, int]:
        """What the gates of a layer cost, in their order: each operation on top of the one before it."""
        none, conv1, conv3, attention = self.mixers.values()
        return conv1 - none, conv3 - conv1, attention - conv3


@dataclass(frozen=True)
class Costs:
    """Of one kind, for the shape of one network.

    Args:
        fixed: everything outside the blocks, and what a block has whatever it becomes, all layers together.
        layers: of each.
        class_token: whether answers come from a token that reads others by attention alone.
    """

    fixed: int
    layers: Sequence[LayerCosts]
    class_token: bool

    def total(self, mixers: Sequence[str], units: Sequence[int]) -> int:
        """Of a network with these mixers and numbers of MLP units."""
        parts = zip(self.layers, mixers, units, strict=True)
        return self.fixed + sum(layer.mixers[mixer] + layer.unit * count for layer, mixer, count in parts)


def costs_of(config: PrunedConfig, kind: str = "macs") -> Costs:
    """The costs for a network's shape; its mixers and MLP sizes do not matter, their number does.

    Args:
        config: of any network of that shape.
        kind: macs, of one image, or params.
    """
    outside = OUTSIDE[config.family](config)[KINDS.index(kind)]
    if kind == "macs":
        return Costs(outside, [_macs(shape, config) for shape in config.shapes], config.class_token)
    always = sum(2 * shape.width + shape.width for shape in config.shapes)  # the second LayerNorm, the MLP's last bias
    return Costs(outside + always, [_params(shape, config) for shape in config.shapes], config.class_token)


def _macs(shape: LayerShape, config: PrunedConfig) -> LayerCosts:
    n, d, s = shape.patches, shape.width, config.head_size
    return LayerCosts(
        mixers={
            "none": 0,
            "conv1": n * 2 * d * s,
            "conv3": n * 10 * d * s,
            "attention": shape.projected * (4 * d**2 + 2 * shape.seen * d),
        },
        unit=2 * shape.tokens * d,
    )


def _params(shape: LayerShape, config: PrunedConfig) -> LayerCosts:
    d, s = shape.width, config.head_size
    between = s if config.folded else 2 * s + s * config.qkv_bias  # BatchNorm, and the bias before it
    return LayerCosts(
        mixers={
            "none": 0,
            "conv1": 2 * d + 2 * d * s + between + d,
            "conv3": 2 * d + 10 * d * s + between + d,
            "attention": 2 * d + 4 * d**2 + 3 * d * config.qkv_bias + d + shape.positions * shape.heads,
        },
        unit=2 * d + 1,
    )


def _outside_vit(config: PrunedConfig) -> tuple[int, int]:
    """MACs and parameters of what is no layer: patches, class token, positions, the last norm and the classifier."""
    patches, d, classes = prod(config.patch_grid), config.hidden_size, config.num_labels
    pixels = config.num_channels * prod(sides(config.patch_size))
    embeddings = pixels * d + d + d + (patches + 1) * d
    return patches * pixels * d + d * classes, embeddings + 2 * d + (d + 1) * classes


def _outside_swin(config: PrunedConfig) -> tuple[int, int]:
    """The same of a Swin: normed patches, what joins four of them between stages, the last norm and the classifier."""
    d, last, classes = config.embed_dim, config.hidden_size, config.num_labels
    pixels = config.num_channels * prod(sides(config.patch_size))
    macs = prod(config.stage_grid(1)) * pixels * d + last * classes
    params = pixels * d + d + 2 * d + 2 * last + (last + 1) * classes
    for stage in range(2, len(config.depths) + 1):
        joined = 2 * config.stage_width(stage)  # four times the channels of the stage before
        product = joined * config.stage_width(stage)
        macs, params = macs + prod(config.stage_grid(stage)) * product, params + 2 * joined + product
    return macs, params


OUTSIDE: Mapping[str, Callable[[PrunedConfig], tuple[int, int]]] = {"vit": _outside_vit, "swin": _outside_swin}
