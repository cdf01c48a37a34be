"""Named runs as Python functions and values.

quickstart("out")                                      digits, from images to measured sizes
decompose(RECIPES["digits"], "out")                    any recipe, from images to a measured bundle
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..extras import require
from ..folders import SIZE_PICTURES, held_in, processor_or_none, write_json, write_sizes, write_training
from ..found import TIMM
from ..hub import write_card
from ..images.augmentation import Augmentation, check_augmentation
from ..images.batches import batches, first_height, image_processor, size_field
from ..images.classes import as_the_model_has_them
from ..images.data import WHOLE, LabelledImages, check_labels, load_images, open_parts
from ..images.loaders import training_images
from ..images.streams import open_stream
from ..kinds import model_class
from ..measuring.curves import plot_history
from ..measuring.metrics import device_name
from ..measuring.plots import plot_heat, plot_sizes
from ..measuring.sweep import measure_sizes
from ..measuring.yardsticks import Sets
from ..modeling_base_lingene import RecomposingModel
from ..progress import tell
from .asked import RUN_FILE, check_asked, keep_asked
from .checkpoints import CONTENT, STAGING, check_identity, contents, contents_of_pictures
from .decomposition import DecompositionSettings, phases
from .loop import TrainingLoop
from .losses import Objective
from .named import RECIPES
from .processes import decided_on_main, layout, make_accelerator
from .record import training_facts
from .settings import ModelSettings, Recipe
from .steps import TrainingSettings
from .summary import length_line, network_lines, pictures_line
from .teacher_cache import CACHE, CachedTeacher, check_cache, open_cache
from .teachers import load_teacher
from .unlabelled import UnlabelledStart, feature_rows, labelled_sets, start_without_labels
from .warm_start import content_of, fit_to, new_rate, processor_of, start_of, suited_rate


RESULTS_FILE = "results.json"
OURS = {"checkpoints", "bundle", "best", "log", "history.json", "history.png", "sizes.png", RUN_FILE, STAGING, CACHE}

SETTINGS = (Recipe, ModelSettings, TrainingSettings, DecompositionSettings, Augmentation, Objective)  # by their flags


def quickstart(out: str | Path = "lingene-quickstart", seed: int = 0, epochs: int = 240) -> list[dict]:
    """A small bundle on the digits set of scikit-learn, from nothing to measured sizes and a picture.

    Six layers of six components, trained for every number of them and depths 3, 4 and 6; twelve sizes materialised
    through `from_pretrained` and measured on the 360 held-out images. What came of it, and how long it took, is in
    tests/benchmarks/results/quickstart.json.

    Args:
        out: `bundle/`, `checkpoints/`, `results.json` and `sizes.png` go there; a run that was interrupted goes on,
            a finished one is read back.
        seed: of initialisation, order and augmentation.
        epochs: of the run.

    Returns:
        The rows of `sizes.json`.

    Raises:
        ValueError: the folder holds another run, or files of something else.
    """
    recipe = RECIPES["digits"]
    training = dataclasses.replace(recipe.training, seed=seed, epochs=epochs)
    with one_thread():  # matrices of 64 x 128
        return decompose(
            dataclasses.replace(recipe, training=training),
            out,
            title="One bundle, twelve sizes: handwritten digits",
            name="lingene-digits",
            threads=1,
        )


def decompose(
    recipe: Recipe,
    out: str | Path,
    resume: bool = True,
    title: str | None = None,
    name: str | None = None,
    threads: int | None = None,
) -> list[dict]:
    """Train a bundle, measure every prefix of its components at every trained depth, write card, table and picture.

    On several processes all call it alike; the main one writes. What learns without labels is measured on the pictures
    held out, by the cosine with whom it learns from: the bundle that it began as, or through identity heads a teacher
    that is named. Channels of one that linear heads lead to may mean something else: sizes have their losses alone, or
    what `metric` of the recipe asks for.

    Args:
        recipe: what to run.
        out: folder: `bundle/` (the result; `training.json` in it says how it was trained), `best/` (the best state so
            far, by the validation part), `checkpoints/`, `log/`, `results.json`, `history.json` (a row per epoch),
            `history.png`, `sizes.png`, `run.json` (what was asked for).
        resume: go on with a run that was interrupted, read a finished one back; without it `out` must be new or empty.
        title: of the picture.
        name: in the card's loading example; default the folder's.
        threads: for the latency on a CPU.

    Returns:
        The rows of `sizes.json`, with the objective `features` each with its loss on the validation part; with that
        and no cosine rows that stand in `results.json` alone.

    Raises:
        ValueError: the folder holds another run or something else; whatever of the recipe cannot be met.
        ImportError: matplotlib is missing, or scikit-learn for a probe; the message says what to install.
    """
    out, recipe = Path(out), suited(recipe)
    accelerator = make_accelerator(recipe.training, out)
    identity = _identity(recipe, accelerator)
    finished = decided_on_main(accelerator, lambda: _finished(out, identity, resume))
    if finished is not None:
        return finished if accelerator.is_main_process else []
    require("matplotlib")  # not at the end of hours
    reference = _reference(recipe) if recipe.unlabelled else None
    sets = labelled_sets(recipe, reference) if recipe.metric else None
    start, history, rows = _trained(recipe, out, identity, accelerator, measuring=True)
    if not accelerator.is_main_process:
        return []
    device = accelerator.device
    images = start.source.images.name
    if not recipe.unlabelled:
        sets = Sets(("accuracy",), start.test)
    elif sets is None and reference:
        sets = Sets(("cosine",), start.held_out.images)
    if sets:
        how = {"threads": threads, "device": str(device), "reference": reference}
        how["teacher"] = start.taught if recipe.unlabelled else None
        losses, rows = rows, _measured(out / "bundle", sets, start, _sizes(recipe, start), how)
        rows = [{**loss, **row} for loss, row in zip(losses, rows, strict=True)] if losses else rows
        title = title or f"One bundle on {images}: every size"
        plot_sizes(rows, out / "sizes.png", title)
        for plot, picture in zip((plot_sizes, plot_heat), SIZE_PICTURES):  # of its card
            plot(rows, out / "bundle" / picture, title)
    write_card(out / "bundle", name)
    plot_history(history, out / "history.png", f"Training on {images}")
    run = {"hardware": device_name(device), "torch": torch.__version__, "processes": accelerator.num_processes}
    run["seconds"] = round(sum(row["seconds"] for row in history), 1)
    write_json(out / RESULTS_FILE, {"identity": identity, "run": run, "sizes": rows})
    shutil.rmtree(out / CACHE, ignore_errors=True)  # not before: a run that is stopped while it measures reads it
    return rows


def train(recipe: Recipe, out: str | Path) -> list[dict]:
    """The training of `decompose` alone: `bundle/`, `best/`, `checkpoints/` and `history.json`, nothing measured.

    Args:
        recipe: what to run.
        out: folder of the run; goes on with the one that is there.

    Returns:
        The history, a row per epoch.

    Raises:
        ValueError: the folder holds another run; whatever of the recipe cannot be met.
    """
    out, recipe = Path(out), suited(recipe)
    accelerator = make_accelerator(recipe.training, out)
    identity = _identity(recipe, accelerator)
    decided_on_main(accelerator, lambda: check_asked(out, identity, "lingene decompose", SETTINGS))
    history = _trained(recipe, out, identity, accelerator)[1]
    if accelerator.is_main_process:
        shutil.rmtree(out / CACHE, ignore_errors=True)
    return history


def suited(recipe: Recipe) -> Recipe:
    """The recipe with what suits it where nothing was asked for: a learning rate for its start, as one for new weights
    ruins a trained backbone; as many networks a step as its batches can have."""
    training, model = recipe.training, recipe.model
    if training.learning_rate == -1:
        goes_on = suited_rate(recipe.init, not recipe.unlabelled) if recipe.init else None
        rate = goes_on or new_rate(model.hidden_size, bool(model.stages))
        training = dataclasses.replace(training, learning_rate=rate)
    decomposition = recipe.decomposition.suited(training.batch_size)
    return dataclasses.replace(recipe, training=training, decomposition=decomposition)


def _identity(recipe: Recipe, accelerator: Accelerator) -> dict:
    if recipe.cache_teacher and not (recipe.teacher or (recipe.unlabelled and recipe.init)):
        raise ValueError("`cache_teacher` keeps what a teacher says, and there is none: give `teacher`.")
    networks, batch_size = recipe.decomposition.networks, recipe.training.batch_size
    if networks > batch_size:
        raise ValueError(f"`networks` {networks} share the images of a batch, and `batch_size` is {batch_size}.")
    identity = recipe.identity(accelerator.num_processes) | contents(teacher=recipe.teacher)
    return identity | {f"init{CONTENT}": content_of(recipe.init)} if recipe.init else identity


def _trained(
    recipe: Recipe, out: Path, identity: dict, accelerator: Accelerator, measuring: bool = False
) -> tuple["_Start | UnlabelledStart", list[dict], list[dict]]:
    """What was trained, saved by the main process; its history; measuring without labels, the rows of its sizes."""
    check_augmentation(recipe.augmentation)
    begin = start_without_labels if recipe.unlabelled else _start
    start = begin(recipe, out, identity, accelerator)
    todo = phases(start.model, recipe.decomposition, recipe.objective, warm=bool(recipe.init))

    def save(folder: Path, state: dict) -> None:
        start.save(folder, state)
        seen, machine = start.source, (device_name(accelerator.device), accelerator.num_processes)
        write_training(folder, training_facts(recipe, loop.history, seen.images.name, len(seen), *machine))

    def begun() -> None:
        keep_asked(out, identity, recipe=recipe)
        labelled, source = not recipe.unlabelled, start.source
        tell(pictures_line(source.images, len(source), *start.others(), labelled))
        for line in (*network_lines(start.model.config, labelled, source.processor), length_line(loop, len(todo))):
            tell(line)

    loop = TrainingLoop(
        start.trained,
        start.source,
        recipe.training,
        out,
        identity=identity | start.contents,
        on_best=lambda state: save(out / "best", state),
        on_begin=begun,
        accelerator=accelerator,
        **(start.parts() if recipe.unlabelled else _parts(recipe, start, (out, identity, accelerator))),
    )
    history = loop.fit(todo)
    rows = feature_rows(loop, start, _sizes(recipe, start)) if measuring and recipe.unlabelled else []
    state = loop.full_state()
    accelerator.end_training()
    if accelerator.is_main_process:
        save(out / "bundle", state)
        write_json(out / "history.json", {"epochs": history})
    return start, history, rows


@dataclass(frozen=True)
class _Start:
    """A run before its first step.

    Args:
        model: with its first weights.
        source: of batches for training.
        validation: images by which the best state is chosen; None where none are held out.
        test: images that measure the result.
        contents: of what it trains and chooses by, as part of the run's identity; nothing of a stream.
    """

    model: RecomposingModel
    source: Any
    validation: LabelledImages | None
    test: LabelledImages
    contents: dict[str, str]

    @property
    def trained(self) -> RecomposingModel:
        return self.model

    def others(self) -> tuple[LabelledImages | None, LabelledImages]:
        """The images that are not trained on, for validation and for the end."""
        return self.validation, self.test

    def save(self, folder: Path, state: dict) -> None:
        """A bundle with this state, and its preprocessing."""
        self.model.save_pretrained(folder, state_dict=state)
        self.source.processor.save_pretrained(folder)


def _start(recipe: Recipe, out: Path, identity: dict, accelerator: Accelerator) -> _Start:
    """The images of a run, and a model for them."""
    begun = start_of(recipe.init, recipe.model.num_components, recipe.model.dropout)
    recipe.decomposition.check(
        begun.config if begun else recipe.model.network(**recipe.model.shape(recipe.decomposition))
    )  # before data is read
    source, validation, test = _sources(recipe, accelerator, begun)
    train = source.images
    if WHOLE in (train.split, test.split):
        raise ValueError(
            f"`data` {recipe.data} has no part to measure on; leave `streaming` out, and a fifth is held out."
        )
    check_labels(train, len(train.class_names))
    validation, test = (part and _named_as(train, part, recipe) for part in (validation, test))
    torch.manual_seed(recipe.training.seed)
    if begun is None:
        config = recipe.model.config(train, recipe.decomposition)
        begun = model_class(config, head=True)(config)
    else:
        fit_to(begun, train, recipe.decomposition, recipe.relabel)
    contents = {} if recipe.streaming else contents_of_pictures(train, validation)
    return _Start(begun, source, validation, test, contents)


def _named_as(train: LabelledImages, part: LabelledImages, recipe: Recipe) -> LabelledImages:
    """Another part of a set with the labels of the one for training: files of parquet name their classes each."""
    names = dict(enumerate(train.class_names))
    return as_the_model_has_them(part, names, f"The split {train.split} of `data`", recipe.relabel)


def _sources(recipe: Recipe, accelerator: Accelerator, begun: RecomposingModel | None) -> tuple:
    """The training images as a source of batches, those for validation (or None) and those for the end."""
    device = accelerator.device

    def processor(images: LabelledImages) -> Any:
        if begun is not None:
            return processor_of(recipe.init, begun)
        return image_processor(recipe.model.image_size or first_height(images))

    if recipe.streaming:
        test, validation = load_images(recipe.data, "test"), load_images(recipe.data, "validation")
        validation = None if validation.split == test.split else validation  # one stands in for the other
        opened = open_stream(recipe.data, processor, recipe.augmentation, recipe.epoch_images, device, recipe.workers)
        return opened, validation, test
    train, validation, test = open_parts(recipe.data, recipe.validation_share, recipe.validation_seed)
    layout(accelerator, recipe.training).steps(len(train))
    return training_images(train, processor(train), recipe.augmentation, device, recipe.workers), validation, test


def _parts(recipe: Recipe, start: _Start, run: tuple[Path, dict, Accelerator]) -> dict[str, Any]:
    """Of a `TrainingLoop`: the images that choose the best state, and the teacher.

    Args:
        run: its folder, identity and Accelerator.
    """
    held_out, accelerator = None, run[2]
    if start.validation is not None:
        processor, device = start.source.processor, accelerator.device
        held_out = training_images(start.validation, processor, Augmentation(), device, recipe.workers)
    return {"held_out": held_out, "teacher": _teacher(recipe, start, *run)}


def _teacher(recipe: Recipe, start: _Start, out: Path, identity: dict, accelerator: Accelerator) -> Any:
    """Whom the model learns from beside the labels, if anybody."""
    source = start.source
    if not recipe.teacher:
        return None
    if not recipe.cache_teacher:
        return load_teacher(recipe.teacher, source, recipe.relabel)
    shape = (len(source.images.class_names),)
    check_cache(out, len(source.images), shape, recipe.cache_gb, recipe.augmentation)
    teacher = load_teacher(recipe.teacher, source, recipe.relabel)
    folder = open_cache(out, identity | start.contents, accelerator)
    if accelerator.is_main_process:
        keep_asked(out, identity, recipe=recipe)  # nothing is left to refuse, and asking may take hours
    return CachedTeacher(teacher, source, folder / "train.f32", shape, accelerator, recipe.training.batch_size)


def _sizes(recipe: Recipe, start: "_Start | UnlabelledStart") -> list[tuple]:
    """Every prefix of the components at every trained depth and width."""
    config = start.model.config
    totals = recipe.decomposition.prefixes(config.reference_components)
    return list(product(config.trained_depths, config.trained_width_ratios, totals))


def _measured(
    bundle: Path, sets: Sets, start: "_Start | UnlabelledStart", sizes: list[tuple], how: dict[str, Any]
) -> list[dict]:
    """Measures sizes into the bundle's `sizes.json`; `how` as `measure_sizes` takes it."""
    how = {**how, "reference": how["reference"] if "cosine" in sets.metrics else None}
    held_out = batches(sets.images, start.source.processor, 128)
    rows = measure_sizes(bundle, held_out, sizes, **how, metric=",".join(sets.metrics), train=sets.train)
    write_sizes(bundle, rows)
    return rows


def _reference(recipe: Recipe) -> str | None:
    """Whom sizes that learned without labels are compared with; None where their channels are nobody's that can be.

    It sees the pixels that training showed it, which its own preprocessing may have cropped.
    A teacher of timm, or one that sees pictures of another size or shape than its own preprocessing makes, is none.
    """
    if not recipe.teacher:
        return os.path.expanduser(recipe.init)
    if recipe.objective.feature_heads != "identity" or recipe.teacher_size or recipe.teacher.startswith(TIMM):
        return None
    name = os.path.expanduser(recipe.teacher)
    own = processor_or_none(name)  # without any it sees the student's pixels
    said = {} if own is None else own.to_dict()
    return None if "shortest_edge" in (said.get(size_field(said)) or {}) else name


@contextmanager
def one_thread() -> Iterator[None]:
    """With matrices this small, threads only wait for each other, on a busy machine very long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _finished(out: Path, identity: dict, resume: bool) -> list[dict] | None:
    """The rows of a finished run; None where it is yet to run or to go on. Refuses the place of something else."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise ValueError(f"`out` must be a folder, and {out} is a file.")
    found = held_in(out, (*OURS, RESULTS_FILE))
    if found - {RUN_FILE} and not resume:  # which is written before anything else of a run
        raise ValueError(f"`out` {out} is not empty; `resume` goes on with the run in it, or choose another folder.")
    if resume:
        check_asked(out, identity, "lingene decompose", SETTINGS)
    results = out / RESULTS_FILE
    if results.is_file():
        try:
            stored = json.loads(results.read_text(encoding="utf-8"))
            named, rows = stored["identity"], stored["sizes"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"`out` {out} holds a results.json that is not this run's; choose another.") from None
        check_identity(out, named, identity)
        return rows
    begun = found & {"checkpoints", RUN_FILE, STAGING, CACHE}  # a bundle without them is somebody's
    if found and not begun or found - OURS:
        raise ValueError(f"`out` {out} holds other files; choose a new or empty folder.")
    return None
