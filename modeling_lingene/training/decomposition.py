"""What is trained of a bundle, and in which order: the schedules of LinDec and the single run.

incremental   totals such as 1, 2, 4, 6: each phase trains only the new components and the tensors outside the
              blocks, the old components are held (LinDec, section 3.2, ICT)
simultaneous  all components at once (SCT)
elastic       one run that keeps every prefix of the components good, and every width and depth asked for: each step
              trains networks of sizes that it draws; see `elastic.py`
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..configuration_base_lingene import BundleConfig
from ..measuring.grids import checked_sizes
from ..modeling_base_lingene import RecomposingModel, component_gains, component_scale
from ..recompose_lingene import is_gain, read_width_ratio
from .elastic import SAMPLINGS, Grid, drawn_networks, network_loss, on_its_part
from .features import features_loss
from .loop import Phase
from .losses import Objective


SCHEDULES = ("incremental", "simultaneous", "elastic")
NEW_COMPONENTS = ("zero", "random")
NETWORKS = 4  # that share a step: tests/benchmarks/results/sizes_fashion.json, tests/test_evidence.py


@dataclass(frozen=True)
class DecompositionSettings:
    """Which networks train when.

    Args:
        schedule: incremental, simultaneous or elastic.
        totals: components after each phase of the incremental schedule; also the prefixes that are measured. Empty:
            doubling up to all, with the sampling `scala` all alone. With all alone, no prefixes are drawn.
        depths: drawn beside the full depth, which half of the steps train, or `full_share` of an elastic run's.
        widths: ratios such as 1/4,1/2,3/4, trained beside the full width; of the elastic schedule.
        sampling: the networks of an elastic step: `one`; `sandwich`, the full, a middle and the smallest one; `scala`,
            one more, as in Scala, whose whole scheme is `--method scala`.
        full_share: how often an elastic step draws the full depth and width (sampling `one`) and all components, each
            by itself; -1 is 0.3 with widths and 0.5 without.
        networks: that share the images of an elastic step, each with a part of its own (sampling `one`): their
            gradients meet before the optimiser, at the MACs of one. -1 is 4, or as many as a batch has images.
        full_first: share of an elastic run that trains the full network alone (Scala: a tenth).
        isolated_activation: widths between the smallest and 1 take the trailing channels, heads and units, not the
            leading ones, so that the smallest has its own (Scala); narrower widths then no longer lie in wider ones.
        new_components: where the components of a later phase start: `zero`, which keeps the function, or `random`,
            like those of the first phase (the paper does not say).
        freeze_outside: whether the tensors outside the blocks stop training after the first phase (the paper does
            not say).

    Raises:
        ValueError: an unknown word, totals that do not increase, a share outside [0, 1].
    """

    schedule: str = "elastic"  # this and the two below: tests/benchmarks/README.md, tests/test_evidence.py
    totals: tuple[int, ...] = ()
    depths: tuple[int | str, ...] = ()
    widths: tuple[str, ...] = ()
    sampling: str = "one"
    full_share: float = -1.0
    networks: int = -1
    full_first: float = 0.0
    isolated_activation: bool = False
    new_components: str = "zero"
    freeze_outside: bool = False

    def __post_init__(self):
        choices = {"schedule": SCHEDULES, "sampling": SAMPLINGS, "new_components": NEW_COMPONENTS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name in ("full_share", "full_first"):
            value = getattr(self, name)
            if not 0 <= value <= 1 and (name, value) != ("full_share", -1):
                raise ValueError(f"`{name}` must be from 0 to 1, got {value!r}.")
        if not _is_count(self.networks) and self.networks != -1:
            raise ValueError(f"`networks` must be an integer of at least 1, got {self.networks!r}.")
        if not all(isinstance(depth, str) or _is_count(depth) for depth in self.depths):
            raise ValueError(f"`depths` must be numbers of layers, got {list(self.depths)}.")
        if not all(map(_is_count, self.totals)) or list(self.totals) != sorted(set(self.totals)):
            raise ValueError(f"`totals` must be increasing numbers of components, got {list(self.totals)}.")

    def check(self, config: BundleConfig) -> None:
        """Refuse what the bundle cannot have, or what contradicts itself; before any work.

        Raises:
            ValueError: depths or widths that are not legal, all of them; totals that do not end at all components.
        """
        if self.widths and self.schedule != "elastic":
            raise ValueError(f"`widths` are trained by the schedule elastic, and `schedule` is {self.schedule}.")
        if self.networks > 1 and not self._share_steps:
            raise ValueError(
                f"`networks` {self.networks} share a step of the schedule elastic with the sampling one, not of "
                f"{self.schedule} with {self.sampling}."
            )
        checked_sizes(config, self.depths, self.widths, self.prefixes(config.reference_components))
        narrower = self.trained_widths(config.head_unit) != ["1"]
        for name in ("sampling", "isolated_activation"):
            if getattr(self, name) in ("scala", True) and not narrower:
                raise ValueError(f"`{name}` {getattr(self, name)} is about widths: give `widths` such as 1/4,1/2,3/4.")

    @property
    def _share_steps(self) -> bool:
        """Whether networks of a step can share its images."""
        return (self.schedule, self.sampling) == ("elastic", "one")

    def suited(self, batch_size: int) -> "DecompositionSettings":
        """With a number of networks a step for batches of so many images, where none was asked for."""
        if self.networks != -1:
            return self
        return replace(self, networks=min(NETWORKS, batch_size) if self._share_steps else 1)

    def prefixes(self, components: int) -> tuple[int, ...]:
        """The totals, which end at all components.

        Raises:
            ValueError: totals that end elsewhere.
        """
        doubling = (2**power for power in range(components.bit_length()) if 2**power < components)
        totals = self.totals or ((components,) if self.sampling == "scala" else (*doubling, components))
        if totals[-1] != components:
            raise ValueError(f"`totals` must increase and end at the {components} components, got {list(totals)}.")
        return totals

    def trained_widths(self, heads: int) -> list[str]:
        """The widths as fractions of these heads, ascending, the full one last."""
        return [str(ratio) for ratio in sorted({read_width_ratio(width, heads) for width in self.widths} | {1})]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def phases(
    model: RecomposingModel,
    settings: DecompositionSettings,
    objective: Objective | None = None,
    warm: bool = False,
) -> list[Phase]:
    """The phases of a schedule. Incremental training sets the components after its first phase to zero, but for a warm
    start.

    Args:
        model: constrained; what trains may be a `FeatureStudent` around it.
        settings: see there.
        objective: the loss; default cross-entropy, with soft distillation where there is a teacher.
        warm: the model is a bundle to go on from; its components stay.

    Raises:
        ValueError: totals that do not end at the number of components, or depths the model cannot take.
    """
    objective, config = objective or Objective(), model.config
    loss = partial(features_loss if objective.kind == "features" else labels_loss, objective)
    settings.check(config)

    def trainable(name: str) -> bool:  # a mask token that no step reads has no gradient to share among processes
        return objective.mask_share > 0 or not name.endswith("embeddings.mask_token")

    totals = settings.prefixes(config.reference_components)
    if settings.schedule == "incremental":
        if settings.new_components == "zero" and not warm:
            start_from(model, totals[0])
        return [
            _incremental_phase(config.num_hidden_layers, before, total, settings, loss, trainable)
            for before, total in zip((0, *totals), totals)
        ]
    size = {"num_components": config.reference_components}
    if settings.schedule == "elastic":
        share = settings.full_share if settings.full_share >= 0 else 0.3 if settings.widths else 0.5
        asked = (settings.sampling, share, settings.full_first, settings.suited(NETWORKS).networks)
        drawn = partial(drawn_networks, grid_of(settings, config), *asked)
        loss = partial(network_loss, objective) if objective.kind == "labels" else loss
        return [Phase("elastic", trainable, on_its_part(loss), size=size, sampled=True, draw=drawn)]
    forward = partial(_forward, config.num_hidden_layers, config.reference_components, settings, loss)
    return [Phase("simultaneous", trainable, forward, size=size)]


def grid_of(settings: DecompositionSettings, config: BundleConfig) -> Grid:
    """What the elastic schedule draws from."""
    widths = {config.size(width_ratio=width).width_ratio for width in settings.widths} - {1}
    full, count = config.num_hidden_layers, config.reference_components
    depths = tuple(depth for depth in map(config.read_depth, settings.depths) if depth != full)
    return Grid(full, depths, tuple(sorted(widths)), count, settings.prefixes(count) != (count,))


@torch.no_grad()
def start_from(model: RecomposingModel, count: int) -> None:
    """Rescale the first components, so that they alone give layers of the usual scale, and set the others to zero."""
    config = model.config
    for index, component in enumerate(model.components[:count]):
        for name, parameter in component.named_parameters():
            if is_gain(name):
                parameter.fill_(component_gains(config, count, name)[index])
            else:  # biases are zero
                parameter.mul_(component_scale(config, name=name) / component_scale(config, count, name))
    for component in model.components[count:]:
        for parameter in component.parameters():
            parameter.zero_()


def _incremental_phase(
    full: int, before: int, total: int, settings: DecompositionSettings, loss: Callable, allowed: Callable
) -> Phase:
    new = tuple(f"components.{index}." for index in range(before, total))
    outside = before == 0 or not settings.freeze_outside

    def trainable(name: str) -> bool:
        name = name.removeprefix("encoder.")  # of a `FeatureStudent`, whose heads are always trained
        rest = outside and not name.startswith("components.") or name.startswith("heads.")
        return allowed(name) and (name.startswith(new) or rest)

    return Phase(
        f"components {before + 1}-{total}" if total > before + 1 else f"component {total}",
        trainable,
        partial(_forward, full, total, settings, loss),
        size={"num_components": total},
        during=lambda model: model.holding(before),
    )


def labels_loss(
    objective: Objective, model: Callable, batch: dict, generator: torch.Generator, **size
) -> torch.Tensor:
    """The loss of a step's only network."""
    logits = model(batch["pixel_values"], **size).logits
    return objective.of_batch(logits, batch)


def _forward(
    full: int,
    total: int,
    settings: DecompositionSettings,
    loss: Callable,
    model: Callable,
    batch: dict,
    generator: torch.Generator,
) -> torch.Tensor:
    """One network of `total` components: the full depth half of the time, otherwise another one of the list."""
    depth, others = full, [depth for depth in settings.depths if depth != full]
    if others and torch.rand((), generator=generator) < 0.5:
        depth = others[int(torch.randint(len(others), (), generator=generator))]
    return loss(model, batch, generator, depth=depth, num_components=total)
