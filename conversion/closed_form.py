"""Components from the layers of a trained ViT, without training: A = a^+ W per tensor, in float64 (ours).

With as many components as layers on Chebyshev roots nothing is lost; with fewer this is least squares on the weights,
a start for training and no more (`fitting.py` does better where there are images).
"""

from collections.abc import Iterator

import torch

from ..configuration_base_lingene import BundleConfig, Size
from ..recompose_lingene import is_gain
from .sources import Source


# Rounding of float32 components comes back enlarged by the condition number: 1e-7 becomes 1e-5 of the weights.
CONDITION_LIMIT = 100.0
BLOCK_ELEMENTS = 1 << 17  # of one layer's tensor at once, so that no stack of a tensor is ever whole in float64


def condition(table: torch.Tensor) -> float:
    """Largest over smallest singular value of the coefficients, (l, n)."""
    values = torch.linalg.svdvals(table)
    return float(values[0] / values[-1]) if values[-1] > 0 else float("inf")


def check_condition(config: BundleConfig) -> None:
    """Whether a bundle's coefficients can be solved for components.

    Raises:
        ValueError: they cannot be solved for components in float32.
    """
    size = config.size()
    for stack in config.stacks:
        table = config.coefficients(size, stack)
        norms = table.norm(dim=0)  # scaling a component loses nothing, but for one that is zero up to rounding
        number = condition(table / torch.where(norms > 1e-8 * norms.max(), norms, 1.0))
        if not number <= CONDITION_LIMIT:
            layers, count = table.shape
            raise ValueError(
                f"`basis` {config.basis} with nodes {config.nodes} and start degree {config.start_degree} has "
                f"condition number {number:.3g} at {count} components of {layers} layers (at most "
                f"{CONDITION_LIMIT:g} can be solved for); take the preset stable, or fewer components."
            )


def solve(layers: list[torch.Tensor], table: torch.Tensor, dtype: torch.dtype, offset: float = 0.0):
    """The components of one block tensor: least squares, exact where n = l.

    Args:
        layers: l tensors of one shape.
        table: (l, n) float64, coefficients.
        dtype: of the components.
        offset: taken from every layer first, the `gain_offset` of LayerNorm gains.

    Returns:
        n tensors of that shape.
    """
    inverse = torch.linalg.pinv(table)  # (n, l)
    shape, count = layers[0].shape, layers[0].numel()
    components = [torch.empty(count, dtype=dtype) for _ in range(inverse.shape[0])]
    flat = [layer.reshape(-1) for layer in layers]
    for start in range(0, count, BLOCK_ELEMENTS):
        part = slice(start, start + BLOCK_ELEMENTS)
        stacked = torch.stack([layer[part].double() for layer in flat]) - offset
        for component, values in zip(components, inverse @ stacked):
            component[part] = values
    return [component.view(shape) for component in components]


def closed_form(source: Source, config: BundleConfig, dtype: torch.dtype) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Every block tensor's components, one tensor at a time.

    Args:
        config: of the bundle to be.
    """
    size = Size(config.reference_depth, config.size().width_ratio, config.reference_components)
    for name in config.component_shapes():
        offset = config.gain_offset if is_gain(name) else 0.0
        yield name, solve(source.layers(name), config.coefficients(size, name), dtype, offset)
