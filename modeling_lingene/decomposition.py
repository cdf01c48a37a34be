"""What is trained of a bundle, and in which order: the schedules of LinDec and the single run.

incremental   totals such as 1, 2, 4, 6: each phase trains only the new components and the tensors outside the
              blocks, the old components are held (LinDec, section 3.2, ICT)
simultaneous  all components at once (SCT)
elastic       one run that keeps every prefix of the components good: each step trains the full network or a random
              number of components (ours, in place of the phases)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from .losses import Objective, divergence
from .modeling_lingene import LinGeneForImageClassification, component_gains, component_scale
from .training import Phase


SCHEDULES = ("incremental", "simultaneous", "elastic")
SAMPLINGS = ("one", "sandwich")
NEW_COMPONENTS = ("zero", "random")


@dataclass(frozen=True)
class DecompositionSettings:
    """Which networks train when.

    Args:
        schedule: incremental, simultaneous or elastic.
        totals: components after each phase of the incremental schedule; also the prefixes that are measured. Empty:
            doubling up to all.
        depths: each step trains one network: the full depth half of the time, otherwise one of these at random.
        sampling: of the elastic schedule: `one` network per step, or `sandwich`, the full one and a random one that
            learns from it.
        full_share: of the steps of sampling `one` that train the full network.
        new_components: where the components of a later phase start: `zero`, which keeps the function, or `random`,
            like those of the first phase (the paper does not say).
        freeze_outside: whether the tensors outside the blocks stop training after the first phase (the paper does
            not say).

    Raises:
        ValueError: an unknown word, totals that do not increase, a share outside [0, 1].
    """

    schedule: str = "elastic"  # better at every prefix, see tests/benchmarks/results/decomposition_fashion.json
    totals: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    sampling: str = "one"
    full_share: float = 0.5
    new_components: str = "zero"
    freeze_outside: bool = False

    def __post_init__(self):
        choices = {"schedule": SCHEDULES, "sampling": SAMPLINGS, "new_components": NEW_COMPONENTS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if not 0 <= self.full_share <= 1:
            raise ValueError(f"`full_share` must be from 0 to 1, got {self.full_share!r}.")
        if not all(map(_is_count, self.depths)):
            raise ValueError(f"`depths` must be numbers of layers, got {list(self.depths)}.")
        if not all(map(_is_count, self.totals)) or list(self.totals) != sorted(set(self.totals)):
            raise ValueError(f"`totals` must be increasing numbers of components, got {list(self.totals)}.")

    def prefixes(self, components: int) -> tuple[int, ...]:
        """The totals, which end at all components.

        Raises:
            ValueError: totals that end elsewhere.
        """
        doubling = (2**power for power in range(components.bit_length()) if 2**power < components)
        totals = self.totals or (*doubling, components)
        if totals[-1] != components:
            raise ValueError(f"`totals` must increase and end at the {components} components, got {list(totals)}.")
        return totals


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def phases(
    model: LinGeneForImageClassification,
    settings: DecompositionSettings,
    objective: Objective | None = None,
    warm: bool = False,
) -> list[Phase]:
    """The phases of a schedule. Incremental training sets the components after its first phase to zero, but for a warm
    start.

    Args:
        model: constrained.
        settings: see there.
        objective: the loss; default cross-entropy, with soft distillation where there is a teacher.
        warm: the model is a bundle to go on from; its components stay.

    Raises:
        ValueError: totals that do not end at the number of components, or depths the model cannot take.
    """
    objective, config = objective or Objective(), model.config
    totals = settings.prefixes(config.reference_components)
    for depth in settings.depths:
        config.size(depth=depth)
    if settings.schedule == "incremental":
        if settings.new_components == "zero" and not warm:
            start_from(model, totals[0])
        return [
            _incremental_phase(config.num_hidden_layers, before, total, settings, objective)
            for before, total in zip((0, *totals), totals)
        ]
    forward = _elastic_forward if settings.schedule == "elastic" else _forward
    return [
        Phase(
            settings.schedule,
            lambda name: True,
            partial(forward, config.num_hidden_layers, config.reference_components, settings, objective),
            size={"num_components": config.reference_components},
            sampled=settings.schedule == "elastic",
        )
    ]


@torch.no_grad()
def start_from(model: LinGeneForImageClassification, count: int) -> None:
    """Rescale the first components, so that they alone give layers of the usual scale, and set the others to zero."""
    config = model.config
    larger, gains = component_scale(config) / component_scale(config, count), component_gains(config, count)
    for index, component in enumerate(model.components[:count]):
        for name, parameter in component.named_parameters():
            if name.startswith("norm") and name.endswith("weight"):
                parameter.fill_(gains[index])
            else:
                parameter.mul_(larger)  # biases are zero
    for component in model.components[count:]:
        for parameter in component.parameters():
            parameter.zero_()


def _incremental_phase(
    full: int, before: int, total: int, settings: DecompositionSettings, objective: Objective
) -> Phase:
    new = tuple(f"components.{index}." for index in range(before, total))
    outside = before == 0 or not settings.freeze_outside

    def trainable(name: str) -> bool:
        return name.startswith(new) or (outside and not name.startswith("components."))

    return Phase(
        f"components {before + 1}-{total}" if total > before + 1 else f"component {total}",
        trainable,
        partial(_forward, full, total, settings, objective),
        size={"num_components": total},
        during=lambda model: model.holding(before),
    )


def _draw_depth(full: int, depths: Sequence[int], generator: torch.Generator) -> int:
    """The full depth half of the time, otherwise one of the list."""
    if depths and torch.rand((), generator=generator) < 0.5:
        return depths[int(torch.randint(len(depths), (), generator=generator))]
    return full


def _forward(
    full: int,
    total: int,
    settings: DecompositionSettings,
    objective: Objective,
    model: Callable,
    batch: dict,
    generator,
) -> torch.Tensor:
    """One network of `total` components."""
    depth = _draw_depth(full, settings.depths, generator)
    logits = model(batch["pixel_values"], depth=depth, num_components=total).logits
    return objective(logits, batch["labels"], batch.get("teacher_logits"))


def _elastic_forward(
    full: int,
    total: int,
    settings: DecompositionSettings,
    objective: Objective,
    model: Callable,
    batch: dict,
    generator,
) -> torch.Tensor:
    """One network of the full or of a random number of components; or both, the small one learning from the full."""
    depth = _draw_depth(full, settings.depths, generator)
    fewer = int(torch.randint(1, max(total, 2), (), generator=generator))
    pixels, labels, taught = batch["pixel_values"], batch["labels"], batch.get("teacher_logits")
    if settings.sampling == "one":
        whole = total == 1 or float(torch.rand((), generator=generator)) < settings.full_share
        count = total if whole else fewer
        return objective(model(pixels, depth=depth, num_components=count).logits, labels, taught)
    largest = model(pixels, depth=depth, num_components=total).logits
    loss = objective(largest, labels, taught)
    if total == 1:
        return loss
    logits = model(pixels, depth=depth, num_components=fewer).logits
    return loss + objective(logits, labels) + divergence(logits, largest, objective.temperature)
