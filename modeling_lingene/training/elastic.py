"""Which networks a step of the elastic schedule trains: sizes drawn over depth, width and components.

one       one network for an image; its depth, width and number of components are each the full one or a random
          smaller one (ours). Several networks so drawn share the images of a step, each with a part of its own
sandwich  the full network, one of a random width between, one of the smallest, each at a random depth (ours); without
          widths the full network and one of fewer components
scala     the full network, one width of the upper half of the grid, one of the lower half, the smallest (Scala, Zhang
          et al., NeurIPS 2024, arXiv 2412.04786, stable sampling); with depths, each smaller one at a random depth

In the last two the full width counts among those between where depths are drawn, or it would only see the full one;
every network learns from the labels and from the next larger one of the step (Scala, progressive
knowledge transfer), the largest from the labels and the teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from .losses import FIRST, Objective, divergence


SAMPLINGS = ("one", "sandwich", "scala")


@dataclass(frozen=True)
class Grid:
    """What a step may draw.

    Args:
        depth: the full one.
        depths: drawn beside it.
        widths: ratios below 1, ascending.
        components: all of them.
        prefixes: whether fewer are drawn too.
    """

    depth: int
    depths: tuple[int, ...]
    widths: tuple[Fraction, ...]
    components: int
    prefixes: bool

    @property
    def full(self) -> dict:
        return _network(self.depth, Fraction(1), self.components)

    @property
    def fewer(self) -> range:
        """Numbers of components below all."""
        return range(1, self.components if self.prefixes else 1)


def drawn_networks(
    grid: Grid,
    sampling: str,
    full_share: float,
    full_first: float,
    networks: int,
    generator: torch.Generator,
    done: float,
) -> list[dict]:
    """The networks of one step as keywords of the model's forward, largest first.

    Args:
        full_share: probability of the full depth, of the full width, of all components, each by itself.
        full_first: share of the run in which the full network trains alone (Scala: 10 of 100 epochs).
        networks: of the sampling `one`; of several each names its `part` of the batch, (place, networks).
        done: share of the run that is over.
    """
    if done < full_first:
        return [grid.full]

    def pick(full, smaller: Sequence):
        if len(smaller) == 0 or float(torch.rand((), generator=generator)) < full_share:
            return full
        return _choice(smaller, generator)

    if sampling == "one":
        drawn = []
        for _ in range(networks):
            depth, width = pick(grid.depth, grid.depths), pick(Fraction(1), grid.widths)
            drawn.append(_network(depth, width, pick(grid.components, grid.fewer)))
        return drawn if networks == 1 else [one | {"part": (place, networks)} for place, one in enumerate(drawn)]
    if not grid.widths:
        depth = _choice((grid.depth, *grid.depths), generator)
        fewer = _choice(grid.fewer, generator) if grid.fewer else grid.components
        return _without_twins([grid.full, _network(depth, Fraction(1), fewer)])
    smallest, between = grid.widths[0], grid.widths[1:]
    middle = (smallest + 1) / 2
    if grid.depths:
        between = (*between, Fraction(1))
    halves = [[w for w in between if w >= middle], [w for w in between if w < middle]]
    drawn = [_choice(half, generator) for half in (halves if sampling == "scala" else [between]) if half]
    networks = [grid.full]
    for width in (*drawn, smallest):
        depth = _choice((grid.depth, *grid.depths), generator)
        networks.append(_network(depth, width, pick(grid.components, grid.fewer)))
    return _without_twins(networks)


def network_loss(
    objective: Objective, model: Callable, batch: dict, generator: torch.Generator, **size
) -> torch.Tensor:
    """The loss of one network of a step. It leaves its logits in the batch, for the next smaller one to learn from."""
    logits = model(batch["pixel_values"], **size).logits
    larger, batch["larger_logits"] = batch.get("larger_logits"), logits.detach()
    if larger is None:
        return objective.of_batch(logits, batch)
    return objective(logits, batch["labels"]) + divergence(logits, larger, objective.temperature)


def on_its_part(loss: Callable) -> Callable:
    """The loss of a step, or a network's share of it: of every so many images one, where it names its `part`. They are
    counted through the whole step, however its images are divided.
    """

    def of_part(
        model: Callable, batch: dict, generator: torch.Generator, part: tuple[int, int] | None = None, **size
    ) -> torch.Tensor:
        if part is None:
            return loss(model, batch, generator, **size)
        place, networks = part
        images = {key: values for key, values in batch.items() if key != FIRST}
        own = {key: values[(place - batch.get(FIRST, 0)) % networks :: networks] for key, values in images.items()}
        share = len(own["pixel_values"]) / len(batch["pixel_values"])
        if share == 0:  # some of a batch do not decode; other processes wait for its gradients, and no mean is of none
            own = {key: values[:1] for key, values in images.items()}
        return share * loss(model, own, generator, **size)

    return of_part


def _network(depth: int, width: Fraction, count: int) -> dict:
    size = {"depth": depth, "num_components": count}
    return size if width == 1 else {**size, "width_ratio": str(width)}


def _without_twins(networks: list[dict]) -> list[dict]:
    """The full network once, even if it was drawn again."""
    return [network for place, network in enumerate(networks) if place == 0 or network != networks[0]]


def _choice(values: Sequence, generator: torch.Generator):
    return values[int(torch.randint(len(values), (), generator=generator))]
