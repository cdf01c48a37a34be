"""What every part of a network costs, in closed form: multiply-accumulates of one image, or parameters.

SPViT (He et al., arXiv 2111.11802) counts the same products, but leaves out the class token's MLP. Here a
cost is what `count_macs` and `count_parameters` find in the written model, to the last one.

Notation: n patches, t = n + 1 tokens, d hidden size, s head size, m MLP units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..lingene_vit import LinGeneViTConfig, sides


KINDS = ("macs", "params")


@dataclass(frozen=True)
class Costs:
    """Of one kind, for the shape of one network.

    Args:
        fixed: everything outside the blocks, and what a block has whatever it becomes, all layers together.
        mixers: of each, with the LayerNorm before it; ascending.
        unit: of one MLP unit.
    """

    fixed: int
    mixers: Mapping[str, int]
    unit: int

    @property
    def increments(self) -> tuple[int, int, int]:
        """What the gates of a layer cost, in their order: each operation on top of the one before it."""
        none, conv1, conv3, attention = self.mixers.values()
        return conv1 - none, conv3 - conv1, attention - conv3

    def total(self, mixers: Sequence[str], units: Sequence[int]) -> int:
        """Of a network with these mixers and numbers of MLP units."""
        return self.fixed + sum(self.mixers[mixer] for mixer in mixers) + self.unit * sum(units)


def costs_of(config: LinGeneViTConfig, kind: str = "macs") -> Costs:
    """The costs for a network's shape; its mixers and MLP sizes do not matter, their number does.

    Args:
        config: of any network of that shape.
        kind: macs, of one image, or params.
    """
    return _macs(config) if kind == "macs" else _params(config)


def _macs(config: LinGeneViTConfig) -> Costs:
    patches, d, s = prod(config.patch_grid), config.hidden_size, config.head_size
    tokens, pixels = patches + 1, config.num_channels * prod(sides(config.patch_size))
    return Costs(
        fixed=patches * pixels * d + d * config.num_labels,
        mixers={
            "none": 0,
            "conv1": patches * 2 * d * s,
            "conv3": patches * 10 * d * s,
            "attention": 4 * tokens * d**2 + 2 * tokens**2 * d,
        },
        unit=2 * tokens * d,
    )


def _params(config: LinGeneViTConfig) -> Costs:
    tokens, d, s = prod(config.patch_grid) + 1, config.hidden_size, config.head_size
    embeddings = config.num_channels * prod(sides(config.patch_size)) * d + d + d + tokens * d
    between = s if config.folded else 2 * s + s * config.qkv_bias  # BatchNorm, and the bias before it
    return Costs(
        fixed=embeddings + 2 * d + (d + 1) * config.num_labels + config.num_hidden_layers * (2 * d + d),
        mixers={
            "none": 0,
            "conv1": 2 * d + 2 * d * s + between + d,
            "conv3": 2 * d + 10 * d * s + between + d,
            "attention": 2 * d + 4 * d**2 + 3 * d * config.qkv_bias + d,
        },
        unit=2 * d + 1,
    )
