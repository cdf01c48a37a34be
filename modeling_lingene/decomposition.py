"""Training a bundle's components (LinDec, section 3): the incremental schedule.

Incremental (ICT): totals such as 1, 2, 4, 6; each phase trains only the new components and the tensors outside the
blocks, the old components are frozen, optimiser and schedule restart. New components start at zero, which keeps the
function; their gradients differ per component, so nothing stays symmetric.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from .modeling_lingene import LinGeneForImageClassification
from .training import Phase


def incremental_phases(
    model: LinGeneForImageClassification, totals: Sequence[int], depths: Sequence[int]
) -> list[Phase]:
    """The phases of incremental training; zeroes the components that come after the first phase.

    Args:
        model: fresh; its first `totals[0]` components keep their random initialisation.
        totals: number of components after each phase, increasing up to all that the model has.
        depths: each step trains one network: the full depth half of the time, otherwise one of these at random.

    Raises:
        ValueError: totals that do not increase to the number of components, or depths the model cannot take.
    """
    stored = model.config.reference_components
    whole = all(isinstance(total, int) and total > 0 for total in totals)
    if not whole or list(totals) != sorted(set(totals)) or stored not in totals[-1:]:
        raise ValueError(f"`totals` must increase and end at the {stored} components, got {list(totals)}.")
    for depth in depths:
        model.config.size(depth=depth)
    with torch.no_grad():
        for component in model.components[totals[0] :]:
            for parameter in component.parameters():
                parameter.zero_()
    return [_phase(model.config.reference_depth, before, total, depths) for before, total in zip([0, *totals], totals)]


def _phase(full: int, before: int, total: int, depths: Sequence[int]) -> Phase:
    new = tuple(f"components.{index}." for index in range(before, total))

    def trainable(name: str) -> bool:
        return name.startswith(new) or not name.startswith("components.")

    def forward(model, pixel_values, labels, generator):
        depth = full
        if depths and torch.rand((), generator=generator) < 0.5:
            depth = depths[int(torch.randint(len(depths), (), generator=generator))]
        logits = model(pixel_values, depth=depth, num_components=total).logits
        return functional.cross_entropy(logits, labels)

    return Phase(
        f"components {before + 1}-{total}" if total > before + 1 else f"component {total}", trainable, forward
    )
