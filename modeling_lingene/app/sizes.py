"""Bundles as the page shows them: their sizes, what a size costs and is worth, the code that loads it.

Everything here is read only, or a `Cache`: whoever looks at the page shares it, and nobody sees another's pictures.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from ..budget_lingene import (
    BUDGETS,
    METRICS,
    choose_size,
    device_name,
    device_names,
    latest_run,
    metric_of,
    row_size,
    standard_error,
)
from ..bundle_lingene import Bundle
from ..card import keywords
from ..configuration_base_lingene import BundleConfig, Size
from ..folders import check_folder, processor_or_none, read_config
from ..markdown import loading
from ..measuring.encoders import load_size
from ..measuring.grids import depth_key
from ..measuring.metrics import check_device, count_macs, count_parameters, latency_ms, seen_size
from .cache import Cache


MODEL_BYTES = 2 << 30  # of all models that are held at once
TIMED_SECONDS = 0.1  # for the latency of a size; at least ten passes


@dataclass(frozen=True)
class ShownBundle:
    """One bundle.

    Args:
        name: a folder, or a name on the Hub.
        rows: its measured sizes, none where it was not measured.
        processor: of its pictures, None where the bundle has none.
        head: whether it has a classifier.
        fetched: number of components -> bytes that are downloaded for them.
    """

    name: str
    config: BundleConfig
    rows: Sequence[dict]
    processor: Any
    head: bool
    fetched: Callable[[int], int]

    @classmethod
    def read(cls, name: str) -> "ShownBundle":
        """Raises ValueError where there is no bundle, or a damaged one; weights of the Hub are not fetched yet."""
        config = check_folder(name) if Path(name).is_dir() else read_config(name)
        held = Bundle(name, config)
        return cls(name, config, held.measured(), processor_or_none(name), held.has_head, held.download_bytes)

    @property
    def title(self) -> str:
        """For people: a folder's own name, or the name on the Hub."""
        return Path(self.name).resolve().name if Path(self.name).is_dir() else self.name

    @property
    def widths(self) -> list[str]:
        """Width ratios to choose from, ascending: those that are models, not initialisations."""
        known = {Fraction(one) for one in self.config.trained_width_ratios}
        known |= {Fraction(row["width_ratio"]) for row in self.rows}
        return [str(one) for one in self.config.legal_width_ratios if one in known]

    @property
    def full(self) -> Size:
        """All that is stored."""
        return self.config.size()

    @property
    def joined_depths(self) -> list[str]:
        """Of several decomposed stages the depths that are stored, trained or measured, as in "2-6"; none of one stack
        of layers."""
        known = {self.full.depth, *self.config.trained_depths, *(row["depth"] for row in self.rows)}
        return sorted((depth for depth in known if isinstance(depth, str)), key=depth_key)

    @property
    def first(self) -> Size:
        """What is shown at first: the best measured size within half of the full one's MACs, else the full one."""
        try:
            return self.within("max_macs", 0.5)[0]
        except ValueError:
            return self.full

    def row(self, size: Size) -> dict | None:
        """The measurement of a size."""
        return next((row for row in self.rows if row_size(row, self.config) == size), None)

    def within(self, budget: str, share: float) -> tuple[Size, str]:
        """The best measured size within a share of what the most costly measured one costs, and why.

        Args:
            budget: one of `BUDGETS`.
            share: above 0, at most 1.

        Raises:
            ValueError: as `choose_size`.
        """
        column = BUDGETS[budget]
        known = [row[column] for row in self.rows if column != "latency_ms"]
        if column == "latency_ms":
            runs = (list(filter(None, latest_run(self.rows, name))) for name in device_names())
            known = [one["latency_ms"] for one in next(filter(None, runs), ())]
        return choose_size(self.rows, self.config, {budget: share * max(known, default=1.0)})

    def metric(self) -> str:
        """The metric that decides between its measured sizes."""
        return metric_of(self.rows)

    def value(self, size: Size) -> str | None:
        """What a size was measured to be worth, for people; None where it was not measured."""
        row = self.row(size)
        if row is None:
            return None
        by, error = METRICS[self.metric()], standard_error(row, self.metric())
        return by.shown(row[self.metric()]) + (f" (± {by.spread(error)})" if error is not None else "")

    def code(self, size: Size) -> str:
        """Python that loads a size, as the card writes it."""
        auto_class = "AutoModelForImageClassification" if self.head else "AutoModel"
        asked = {"depth": size.depth, "width_ratio": str(size.width_ratio), "num_components": size.num_components}
        return loading(auto_class, self.name, keywords(asked, self.config))


@dataclass(frozen=True)
class Materialised:
    """One size in memory.

    Args:
        model: as `from_pretrained` gives it, in evaluation mode.
        explained: the same parameters in a model that gives its attention.
        params, macs: with the head, of one image.
        latency_ms: of one image, here, median.
        device: what the latency was measured on, for people.
    """

    model: nn.Module
    explained: nn.Module
    params: int
    macs: int
    latency_ms: float
    device: str

    @property
    def bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())


class Sizes:
    """Sizes of some bundles, materialised when they are asked for, held while there is room.

    Args:
        bundles: by name.
        device: default the GPU if there is one.
        bound: bytes of all models together.
    """

    def __init__(self, bundles: dict[str, ShownBundle], device: str | None = None, bound: float = MODEL_BYTES):
        self.bundles, self.device = bundles, check_device(device)
        self._models = Cache(self._materialise, lambda held: held.bytes, bound)
        self._costs: dict[tuple, tuple[int, float]] = {}  # by bundle, depth and width: components change neither
        self._timing = threading.Lock()  # two at once would measure each other

    def __call__(self, bundle: ShownBundle, size: Size) -> Materialised:
        """Raises OSError where a file cannot be fetched, ValueError where one is damaged."""
        return self._models((bundle.name, size))

    def _materialise(self, key: tuple[str, Size]) -> Materialised:
        bundle, size = self.bundles[key[0]], key[1]
        model = load_size(bundle.name, size, bundle.head).to(self.device).eval()
        macs, latency = self._measured(bundle, size, model)
        costs = (count_parameters(model), macs, latency, device_name(self.device))
        return Materialised(model, explaining(model), *costs)

    def _measured(self, bundle: ShownBundle, size: Size, model: nn.Module) -> tuple[int, float]:
        """MACs and milliseconds of one image."""
        shape = (bundle.name, size.depth, size.width_ratio)
        with self._timing:
            if shape not in self._costs:
                seen = seen_size(model.config, bundle.processor)
                timed = latency_ms(model, min_run_time=TIMED_SECONDS, image_size=seen)
                self._costs[shape] = count_macs(model.config, bundle.head, seen), timed["median"]
            return self._costs[shape]


def explaining(model: nn.Module) -> nn.Module:
    """The model with the same parameters, not copies of them, whose attention is computed where it can be seen.

    Faster attention never forms the weights; the model itself stays as fast, and is never changed while in use.
    """
    shared = {id(one): one for one in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.set_attn_implementation("eager")
    return twin


def read_bundles(names: Sequence[str]) -> dict[str, ShownBundle]:
    """Bundles by name, in the order given.

    Raises:
        ValueError: one that cannot be read.
    """
    return {name: ShownBundle.read(name) for name in names}
