"""A pruning before its first step: what is asked is checked, the network and the images are found, nothing is kept."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..bundle_lingene import Bundle
from ..configuration_base_lingene import BUNDLE_TYPES, Size
from ..conversion.from_transformers import read_transformers
from ..conversion.sources import Source, changed
from ..folders import check_empty, check_writable, held_in, processor_or_none, publish_model
from ..found import check_holds_model
from ..images.augmentation import Augmentation
from ..images.classes import as_the_model_has_them, names_of
from ..images.data import LabelledImages, open_parts
from ..kinds import model_class
from ..lingene_pruned import PrunedClassifier
from ..measuring.metrics import height_and_width, seen_size
from ..measuring.tables import readable
from ..progress import quiet_loading, tell
from ..readout import Readout, read_readout
from ..training.asked import RUN_FILE, check_asked
from ..training.losses import Objective
from ..training.steps import TrainingSettings
from ..training.summary import pictures_line
from ..training.teachers import Normalised, Teacher, open_teacher
from ..training.warm_start import processor_of
from .choose import check_target
from .compare import nearest_size
from .costs import Costs, costs_of
from .settings import DENSE, PruneSettings
from .write import HEADLESS, check_pruned, dense_network


NAMES = {"macs": "MACs", "params": "parameters"}
RESULTS_FILE = "results.json"
SETTINGS = (PruneSettings, TrainingSettings, Objective, Augmentation)  # by their flags


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pruning before its first step: what all of its stages share."""

    out: Path
    settings: PruneSettings
    training: TrainingSettings
    objective: Objective
    augmentation: Augmentation
    identity: dict
    dense: str
    smaller: Size | None
    source: Source
    processor: Any
    readout: Readout | None  # of the network that is pruned
    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages
    teacher: Callable[[Normalised], Teacher] | None


def finished_results(out: Path, identity: dict, resume: bool) -> dict | None:
    """The results of a finished run; None where it is yet to run or to go on. Refuses the place of something else."""
    if not (out / RUN_FILE).is_file():
        # All that an interrupted run may have left before its RUN_FILE is `dense`, whole or on its way.
        begun = resume and out.is_dir() and held_in(out, ("dense", RUN_FILE)) <= {"dense"}
        if begun and not (out / "dense").is_file():
            check_writable(out)
        else:
            check_empty(out)
        return None
    if not resume:
        raise ValueError(f"`out` {out} is not empty; `resume` goes on with the run in it, or choose another folder.")
    check_asked(out, identity, "lingene prune", SETTINGS)
    results = out / RESULTS_FILE
    try:
        return json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None
    except ValueError:
        raise ValueError(f"`out` {out} holds files that are not of a pruning; choose another folder.") from None


@contextmanager
def traceless(out: Path, main: bool) -> Iterator[None]:
    """What is refused before a run began leaves its folder as it was."""
    dense = out / "dense"
    there, held = out.exists(), dense.exists()
    try:
        yield
    except ValueError:
        if main and not held:
            shutil.rmtree(dense, ignore_errors=True)
            if not there and out.is_dir():
                out.rmdir()
        raise


def dense_folder(model: str | Path, size: dict, out: Path) -> str:
    """What is pruned, as a stock model: the one named, or the size of a bundle, written out.

    Raises:
        ValueError: no model, no such size, or a bundle without a classifier or of a family that is not pruned.
    """
    check_holds_model("model", model, "a ViT or a bundle")
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"`model` {model} cannot be read: {str(error).splitlines()[0]}") from None
    if config.model_type not in BUNDLE_TYPES:
        if size:
            raise ValueError(
                f"`{next(iter(size))}` chooses a size of a bundle, and {model} is a {config.model_type} model."
            )
        return str(model)
    check_pruned(str(model), config.family)
    if not Bundle(model, config).has_head:  # loaded as a classifier it would get a random one
        raise ValueError(HEADLESS.format(model))
    if not (out / "dense").is_dir():
        with quiet_loading():
            materialised = model_class(config, True).from_pretrained(model, **size)
        publish_model(materialised, model, out / "dense")
    return str(out / "dense")


def smaller_size(model: str | Path, size: dict, settings: PruneSettings, dense: str) -> Size | None:
    """The unpruned size that is trained beside the result, if any is."""
    if not (settings.tune and settings.compare):
        return None
    return nearest_size(model, size, settings.kind, dense, settings.target)


def prepared(out: Path, settings: PruneSettings, dense: str, **of_run) -> Run:
    """Everything checked, and images found, before any work."""
    try:
        source = read_transformers(dense)
    except ValueError as error:
        raise ValueError(str(error).replace("`source`", "`model`")) from None
    seen = seen_size(source.config, processor_or_none(dense))
    if seen != height_and_width(source.config):  # costs are counted at the size of its images
        size = seen[0] if seen[0] == seen[1] else list(seen)
        source = replace(source, config=changed(source.config, image_size=size))
    network = dense_network(source)
    target_of(settings, network)
    train, validation, test = (
        part and _classes_of(source, part, settings.relabel, of_run["identity"]["model"])
        for part in open_parts(settings.data, settings.validation_share, settings.validation_seed)
    )
    processor = processor_of(dense, network)
    name = dense if settings.teacher == DENSE else settings.teacher
    teacher = open_teacher(name, train, settings.relabel) if name else None
    images = {"train": train, "validation": validation, "test": test}
    found = {"source": source, "processor": processor, "readout": read_readout(dense), "teacher": teacher, **images}
    return Run(out=out, settings=settings, dense=dense, **found, **of_run)


def _classes_of(source: Source, images: LabelledImages, relabel: bool, name: str) -> LabelledImages:
    """Images with the classes of what is pruned, in its order."""
    names = source.config.id2label
    if names_of(names) and not relabel:
        return as_the_model_has_them(images, names, f"`model` {name}")
    if len(names) != len(images.class_names):
        raise ValueError(
            f"`data` {images.name} has {len(images.class_names)} classes, and `model` {name} has "
            f"{len(names)}; fine-tune it on these images first."
        )
    return as_the_model_has_them(images, names, f"`model` {name}", relabel)


def target_of(settings: PruneSettings, network: PrunedClassifier) -> tuple[Costs, float]:
    """Costs of the kind that is asked about, and what the result may cost."""
    costs, sizes = costs_of(network.config, settings.kind), network.config.intermediate_sizes
    target = settings.target * costs.total(network.config.mixers, sizes)
    try:
        check_target(costs, sizes, target)
    except ValueError as error:
        raise ValueError(str(error).replace("`target`", f"`target_{settings.kind}`")) from None
    return costs, target


def tell_what(run: Run) -> None:
    """Pictures, network and target, before the first step."""
    kind, network = NAMES[run.settings.kind], dense_network(run.source)
    costs, target = target_of(run.settings, network)
    whole = readable(costs.total(network.config.mixers, network.config.intermediate_sizes))
    tell(pictures_line(run.train, len(run.train), run.validation, run.test))
    tell(f"network   {run.source.depth} layers, {whole} {kind}; to be left {readable(target)}")
