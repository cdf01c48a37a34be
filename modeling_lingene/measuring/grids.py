"""Grids of sizes: every legal combination of the depths, widths and numbers of components that are asked for."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

from ..configuration_base_lingene import BundleConfig, Size


def depth_key(depth: int | str) -> tuple[int, ...]:
    """What depths are ordered by: layers in all, then those of each stage. As text "2-10" would be less than "2-6"."""
    stages = tuple(map(int, str(depth).split("-")))
    return sum(stages), *stages


def least_size(config: BundleConfig) -> Size:
    """One layer of every stack, from one component, at the least width: the least that reads every kind of tensor."""
    depth = 1 if len(config.stacks) == 1 else "-".join("1" * len(config.stacks))
    return config.size(depth, min(config.legal_width_ratios), 1)


def trained_depths(config: BundleConfig, others: Iterable[int | str]) -> list[int | str]:
    """A bundle's full depth and the others that are trained, each once in the one form that it has, ascending.

    Raises:
        ValueError: a depth that the bundle cannot have.
    """
    read = {config.read_depth(depth, "depths") for depth in others}
    return sorted({config.num_hidden_layers, *read}, key=depth_key)


def checked_sizes(
    config: BundleConfig, depths: Iterable[int], widths: Iterable[str | Fraction | int], counts: Iterable[int]
) -> list[Size]:
    """Every size of a grid, largest first.

    Raises:
        ValueError: depths, widths or counts that the bundle cannot have, all of them listed.
    """
    depths, widths, counts = list(depths), list(widths), list(counts)
    wrong = []
    grid = {"depth": ("depths", depths), "width_ratio": ("widths", widths), "num_components": ("components", counts)}
    for name, (several, values) in grid.items():
        for value in values:
            try:
                config.size(**{name: value})
            except ValueError as error:
                wrong.append(str(error).replace(f"`{name}`", f"`{several}`", 1))
    if wrong:
        raise ValueError(" ".join(wrong))
    sizes = {config.size(depth, width, count) for depth in depths for width in widths for count in counts}
    order = {size: (depth_key(size.depth), size.width_ratio, size.num_components) for size in sizes}
    return sorted(sizes, key=order.get, reverse=True)


def grid_sizes(
    config: BundleConfig, depths: Sequence[int], widths: Sequence[str], components: Sequence[int]
) -> list[Size]:
    """Every size of a grid, which is that of the sizes trained where nothing else is asked for."""
    count = config.reference_components
    doubling = [2**power for power in range(count.bit_length()) if 2**power < count]
    if not (widths or config.trained_width_ratios):
        raise ValueError("`widths` must be given: no width of this bundle was trained as it is.")
    return checked_sizes(
        config,
        depths or config.trained_depths,
        widths or config.trained_width_ratios,
        components or config.known_components or [*doubling, count],
    )


def check_trained(config: BundleConfig, sizes: Sequence[Size]) -> None:
    trained = [Fraction(ratio) for ratio in config.trained_width_ratios]
    wrong = sorted({size.width_ratio for size in sizes} - set(trained))
    if wrong:
        raise ValueError(
            f"`widths` {', '.join(map(str, wrong))} were never trained in this bundle; use some of "
            f"{', '.join(map(str, trained))}, or give `allow_untrained`."
        )
