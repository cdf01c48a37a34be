"""`lingene prune`: a trained ViT or Swin, or a size of a bundle, to a share of its cost; searched, tuned, measured.

    prune("vit", "out", PruneSettings(data="cifar10", target_macs=0.5))

SPViT, He et al., TPAMI 2024, arXiv 2111.11802. In a ViT at least one layer keeps its attention, through which the
class token reads the patches. A Swin has no such token, its answer is the mean of all: any of its layers may become
anything. Its convolutions see the whole map of a stage, not a window, in the search and in what is written alike; the
released code differs between the two.

OUT/dense is what is pruned, where it comes out of a bundle; OUT/search and OUT/tune hold the checkpoints of the two
runs; OUT/chosen the network between them; OUT/model the result. With a bundle OUT/unpruned is its own size of that
cost, trained alike (OUT/compare): what the result has to beat.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from ..configuration_base_lingene import BUNDLE_TYPES, Size
from ..conversion.from_transformers import read_transformers
from ..conversion.sources import Source
from ..families_lingene import layers_of
from ..folders import check_empty, complete_or_absent, publish_model, read_config, write_json
from ..found import check_holds_model
from ..images.augmentation import Augmentation
from ..images.batches import batches
from ..images.classes import as_the_model_has_them, names_of
from ..images.data import LabelledImages, open_parts
from ..images.loaders import Layout, training_images
from ..kinds import model_class
from ..lingene_pruned import PrunedClassifier
from ..measuring.metrics import count_parameters, device_name, measure
from ..measuring.tables import readable
from ..progress import quiet_loading, tell
from ..training.asked import RUN_FILE, check_asked, keep_asked
from ..training.checkpoints import contents
from ..training.loop import Phase, TrainingLoop, TrainingSettings, decided_on_main, make_accelerator
from ..training.losses import Objective
from ..training.summary import length_line, pictures_line
from ..training.teachers import check_teacher, load_teacher
from ..training.warm_start import processor_of
from .card import PICTURE, write_pruned_card
from .choose import Worths, check_target, choose
from .compare import nearest_size
from .costs import Costs, costs_of
from .importance import importance
from .picture import plot_layers
from .record import TRAINING, pruning_facts, write_pruning
from .search import make_searched, search_phase, take_search
from .write import Bottlenecks, dense_network, folded_network, simplest, write_network


SEARCHES = ("published", "none", "random")
DENSE = "dense"  # as a teacher
NAMES = {"macs": "MACs", "params": "parameters"}
RESULTS_FILE = "results.json"
RANGES = {"target_macs": 1, "target_params": 1, "cost_weight": 1e6, "gate_learning_rate": 1e3}
RANGES |= {"mixing_temperature": 1e6}


@dataclass(frozen=True)
class PruneSettings:
    """What is asked for, and how it is found.

    Args:
        data: as for `load_images`; searched and tuned on its split `train`, measured on `test`, or a fifth held out.
        target_macs: share of the dense network's MACs that the result may have, such as 0.5.
        target_params: or of its parameters.
        search: `published`, gates trained with the weights (SPViT), about one and a half times the cost of a training
            of `search_epochs`; `none`, from the worth of every part by some images, as much as a few steps on each of
            them; `random`, a control.
        search_epochs: of the search; 0 is as many as of the tuning.
        cost_weight: of the squared difference from the target, in shares of the dense cost; in the paper 25 to 63.
        gate_learning_rate: peak, of the gates.
        mixing_temperature: alpha of the shares that heads have in a convolution; 0 is the published one, 0.01 for a
            ViT and 100 for a Swin.
        calibration_images: of the search `none`.
        teacher: whom search and tuning learn from beside the labels: `dense`, the network itself; another classifier,
            by name; or empty for none.
        tune: train what was chosen.
        compare: with a bundle, train its unpruned size of that cost for as many epochs as search and tuning together,
            and measure it beside the result; takes about as long as both.
        fold: fold BatchNorm into convolutions at the end.
        workers: processes that decode, where the images are not kept in memory.
        validation_share: part of the training images that is held out, where the set has no part of its own.
        validation_seed: draws that part.
        relabel: take class i of the images for output i, of the network and of the teacher, whatever their names are.

    Raises:
        ValueError: none or both of the targets, a number out of its range, an unknown word.
    """

    data: str = ""
    target_macs: float = 0.0
    target_params: float = 0.0
    search: str = "published"
    search_epochs: int = 0
    cost_weight: float = 30.0
    gate_learning_rate: float = 1e-3
    mixing_temperature: float = 0.0
    calibration_images: int = 256
    teacher: str = DENSE
    tune: bool = True
    compare: bool = True
    fold: bool = False
    workers: int = 4
    validation_share: float = 0.1
    validation_seed: int = 0
    relabel: bool = False

    def __post_init__(self):
        for name, high in RANGES.items():
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"`{name}` must be from 0 to {high:g}, got {getattr(self, name)!r}.")
        if (self.target_macs > 0) == (self.target_params > 0):
            raise ValueError("`target_macs` or `target_params` says how much is to be left, such as 0.5: give one.")
        for name, low in (("search_epochs", 0), ("calibration_images", 1), ("workers", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"`{name}` must be an integer of at least {low}, got {getattr(self, name)!r}.")
        if self.search not in SEARCHES:
            raise ValueError(f"`search` must be one of {', '.join(SEARCHES)}, got {self.search!r}.")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"`validation_share` must be from 0 to below 1, got {self.validation_share!r}.")

    @property
    def kind(self) -> str:
        return "macs" if self.target_macs else "params"

    @property
    def target(self) -> float:
        return self.target_macs or self.target_params


SETTINGS = (PruneSettings, TrainingSettings, Objective, Augmentation)  # by their flags


@dataclass(frozen=True, kw_only=True)
class _Run:
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
    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages


def prune(
    model: str | Path,
    out: str | Path,
    settings: PruneSettings,
    training: TrainingSettings | None = None,
    *,
    objective: Objective | None = None,
    augmentation: Augmentation | None = None,
    size: dict | None = None,
    resume: bool = False,
) -> dict:
    """Prune a network to a share of its cost, and measure what came of it.

    On several processes all call it alike; the main one writes.

    Args:
        model: a ViT or Swin with a classifier for the classes of the data, or a bundle; by folder or name on the Hub.
        out: folder: `model/` (the result), `best/` (the best state of the tuning so far), `results.json`,
            `layers.png`, and the states to go on from.
        settings: target and search.
        training: of search and tuning; default 30 epochs at 5e-4.
        objective, augmentation: of both.
        size: `from_pretrained`'s keywords for a size of a bundle.
        resume: go on with a run that was interrupted, read a finished one back; without it `out` must be new or empty.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: whatever of it cannot be met; the folder holds another run or something else.
    """
    out, training = Path(out), training or TRAINING
    objective, augmentation = objective or Objective(), augmentation or Augmentation()
    accelerator = make_accelerator(training, out)
    asked = {**asdict(settings), **asdict(objective), **asdict(augmentation), "size": size or {}}
    asked |= {**training.identity(accelerator.num_processes), "model": str(model)}
    teacher = "" if settings.teacher == DENSE else settings.teacher
    identity = json.loads(json.dumps(asked, default=str)) | contents(model=model, teacher=teacher)
    finished = decided_on_main(accelerator, lambda: _finished(out, identity, resume))
    if finished is not None:
        return finished
    of_run = {"training": training, "objective": objective, "augmentation": augmentation, "identity": identity}
    with _traceless(out, accelerator.is_main_process):
        dense = decided_on_main(accelerator, lambda: _dense_folder(model, size or {}, out))
        of_run["smaller"] = _smaller(model, size or {}, settings, dense)
        run = _prepared(out, settings, dense, **of_run)
    if accelerator.is_main_process:
        groups = {"settings": settings, "training": training, "objective": objective, "augmentation": augmentation}
        keep_asked(out, identity, model=str(model), **groups, size=size or {})
        _tell(run)
    if not (out / "chosen").is_dir():
        _choose(run, accelerator)
    accelerator.wait_for_everyone()
    state = _tuned(run, accelerator) if settings.tune else None
    if run.smaller is not None and not (out / "unpruned").is_dir():
        _compare(run, model, accelerator)
    accelerator.end_training()  # of all of them: it dissolves the group of processes
    return _reported(run, state, accelerator) if accelerator.is_main_process else {}


def _finished(out: Path, identity: dict, resume: bool) -> dict | None:
    """The results of a finished run; None where it is yet to run or to go on. Refuses the place of something else."""
    if not (out / RUN_FILE).is_file():
        dense = out / "dense"  # all that an interrupted run may have left before its RUN_FILE
        if not (resume and dense.is_dir() and set(out.iterdir()) == {dense}):
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
def _traceless(out: Path, main: bool) -> Iterator[None]:
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


def _dense_folder(model: str | Path, size: dict, out: Path) -> str:
    """What is pruned, as a stock model: the one named, or the size of a bundle, written out."""
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
    if not (out / "dense").is_dir():
        with quiet_loading():
            materialised = model_class(config, True).from_pretrained(model, **size)
        publish_model(materialised, model, out / "dense")
    return str(out / "dense")


def _smaller(model: str | Path, size: dict, settings: PruneSettings, dense: str) -> Size | None:
    """The unpruned size that is trained beside the result, if any is."""
    if not (settings.tune and settings.compare):
        return None
    return nearest_size(model, size, settings.kind, dense, settings.target)


def _prepared(out: Path, settings: PruneSettings, dense: str, **of_run) -> _Run:
    """Everything checked, and images found, before any work."""
    if settings.teacher not in ("", DENSE):
        check_teacher(settings.teacher)
    try:
        source = read_transformers(dense)
    except ValueError as error:
        raise ValueError(str(error).replace("`source`", "`model`")) from None
    network = dense_network(source)
    _target(settings, network)
    train, validation, test = (
        part and _classes_of(source, part, settings.relabel, of_run["identity"]["model"])
        for part in open_parts(settings.data, settings.validation_share, settings.validation_seed)
    )
    processor = processor_of(dense, network)
    images = {"train": train, "validation": validation, "test": test}
    return _Run(out=out, settings=settings, dense=dense, source=source, processor=processor, **images, **of_run)


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


def _target(settings: PruneSettings, network: PrunedClassifier) -> tuple[Costs, float]:
    """Costs of the kind that is asked about, and what the result may cost."""
    costs, sizes = costs_of(network.config, settings.kind), network.config.intermediate_sizes
    target = settings.target * costs.total(network.config.mixers, sizes)
    try:
        check_target(costs, sizes, target)
    except ValueError as error:
        raise ValueError(str(error).replace("`target`", f"`target_{settings.kind}`")) from None
    return costs, target


def _tell(run: _Run) -> None:
    """Pictures, network and target, before the first step."""
    kind, network = NAMES[run.settings.kind], dense_network(run.source)
    costs, target = _target(run.settings, network)
    whole = readable(costs.total(network.config.mixers, network.config.intermediate_sizes))
    tell(pictures_line(run.train, len(run.train), run.validation, run.test))
    tell(f"network   {run.source.depth} layers, {whole} {kind}; to be left {readable(target)}")


def _choose(run: _Run, accelerator: Accelerator) -> None:
    """The search, and what it chose as a folder."""
    network, settings = dense_network(run.source), run.settings
    costs, target = _target(settings, network)
    if settings.search == "published":
        make_searched(network, settings.mixing_temperature)
        epochs = settings.search_epochs or run.training.epochs
        phase = search_phase(network, costs, target, run.objective, settings.cost_weight, settings.gate_learning_rate)
        _fit(run, network, phase, "search", replace(run.training, epochs=epochs, evaluate_every=0))
        if not accelerator.is_main_process:
            return
        worths, bottlenecks = take_search(network.cpu().eval())
    else:
        if not accelerator.is_main_process:
            return
        worths, bottlenecks = _untrained(run, network, costs, accelerator)
    _publish_chosen(run, network, worths, bottlenecks, costs, target)


def _untrained(
    run: _Run, network: PrunedClassifier, costs: Costs, accelerator: Accelerator
) -> tuple[Worths, Bottlenecks]:
    """Worths from some images; or at random, with the same bottlenecks."""
    network.to(accelerator.device)
    count, seed = min(run.settings.calibration_images, len(run.train)), run.training.seed
    source = training_images(run.train, run.processor, Augmentation(), accelerator.device, run.settings.workers)
    size = min(64, count)
    seen, needed = [], count
    for (batch,) in source.batches(f"{seed} calibration", Layout(size)):
        seen.append(batch["pixel_values"][:needed])
        needed -= len(seen[-1])
        if needed == 0:
            break
    worths, bottlenecks = importance(network, seen, costs, seed)
    if run.settings.search == "random":
        generator = torch.Generator().manual_seed(seed)
        units = [torch.rand(len(units), generator=generator) for units in worths.units]
        worths = Worths(torch.rand(worths.mixers.shape, generator=generator), units)
    for one in (one for both in bottlenecks for one in both.values()):
        one.cpu()
    network.cpu()
    return worths, bottlenecks


def _publish_chosen(
    run: _Run,
    network: PrunedClassifier,
    worths: Worths,
    bottlenecks: Bottlenecks,
    costs: Costs,
    target: float,
) -> None:
    chosen = choose(worths, costs, target)
    written = write_network(network, chosen, bottlenecks)
    origin = {"model": Path(run.identity["model"]).name, "search": run.settings.search}
    origin |= {"size": run.identity["size"], f"target_{run.settings.kind}": run.settings.target}
    written.config.pruned_from = origin
    _publish(run, written, "chosen")


def _publish(run: _Run, model: PreTrainedModel, name: str, facts: dict | None = None) -> None:
    """A model with its preprocessing and, if it is a result, how it was trained; complete or absent."""
    with complete_or_absent(run.out / name) as staging:
        model.save_pretrained(staging)
        run.processor.save_pretrained(staging)
        if facts is not None:
            write_pruning(staging, facts)


def _facts(run: _Run, accelerator: Accelerator, history: list[dict]) -> dict:
    """How the result was trained.

    Args:
        history: of the training that is not yet among the files.
    """
    files = [run.out / f"{name}.json" for name in ("search", "tune")]
    stored = [
        row for file in files if file.is_file() for row in json.loads(file.read_text(encoding="utf-8"))["epochs"]
    ]
    machine = (device_name(accelerator.device), accelerator.num_processes)
    how = (run.settings, run.training, (run.objective, run.augmentation), stored + history)
    return pruning_facts(run.identity["model"], *how, run.train.name, len(run.train), machine)


def _fit(run: _Run, network: torch.nn.Module, phase: Phase, name: str, training: TrainingSettings, on_best=None):
    """One training in the loop; its state on every process."""
    accelerator = make_accelerator(training, run.out / name)
    workers, device = run.settings.workers, accelerator.device
    images = training_images(run.train, run.processor, run.augmentation, device, workers)
    held_out = None
    if run.validation is not None:
        held_out = training_images(run.validation, run.processor, Augmentation(), device, workers)
    teacher = run.dense if run.settings.teacher == DENSE else run.settings.teacher
    loop = TrainingLoop(
        network,
        images,
        training,
        run.out / name,
        identity=run.identity,
        held_out=held_out,
        teacher=load_teacher(teacher, images, run.settings.relabel) if teacher else None,
        on_best=on_best and (lambda state: on_best(state, loop.history)),
        on_begin=lambda: tell(f"{length_line(loop, 1)} ({phase.name})"),
        accelerator=accelerator,
    )
    history = loop.fit([phase])
    state = loop.full_state()
    for tracker in accelerator.trackers:
        tracker.finish()
    if accelerator.is_main_process:
        write_json(run.out / f"{name}.json", {"epochs": history})
    return state


def _forward(run: _Run, model: Callable, batch: dict, generator: torch.Generator) -> torch.Tensor:
    return run.objective.of_batch(model(batch["pixel_values"]).logits, batch)


def _compare(run: _Run, bundle: str | Path, accelerator: Accelerator) -> None:
    """The unpruned size, trained as long as search and tuning, as a folder."""
    asked = {"depth": run.smaller.depth, "width_ratio": str(run.smaller.width_ratio)}
    with quiet_loading():
        network = model_class(read_config(bundle), True).from_pretrained(
            bundle, **asked, num_components=run.smaller.num_components, dtype=torch.float32
        )
    epochs = run.training.epochs
    if run.settings.search == "published":
        epochs += run.settings.search_epochs or epochs
    torch.manual_seed(run.training.seed)
    phase = Phase("unpruned size", lambda name: True, partial(_forward, run))
    state = _fit(run, network.train(), phase, "compare", replace(run.training, epochs=epochs))
    if accelerator.is_main_process:
        network.load_state_dict({key: tensor.cpu() for key, tensor in state.items()})
        _publish(run, network.cpu().eval(), "unpruned")


def _tuned(run: _Run, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """What was chosen, trained; its state."""
    network = _load(run.out / "chosen")

    def keep(state: dict, history: list[dict]) -> None:
        best = type(network)(network.config)
        best.load_state_dict({key: tensor.cpu() for key, tensor in state.items()})
        shutil.rmtree(run.out / "best", ignore_errors=True)
        _publish(run, best, "best", _facts(run, accelerator, history))

    torch.manual_seed(run.training.seed)
    phase = Phase("tuning", lambda name: True, partial(_forward, run))
    return _fit(run, network.train(), phase, "tune", run.training, keep)


def _load(folder: str | Path) -> PreTrainedModel:
    with quiet_loading():
        return AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)


def _reported(run: _Run, state: dict | None, accelerator: Accelerator) -> dict:
    """The result as a folder, measured beside the network that it comes from."""
    network = _load(run.out / "chosen").eval()
    if state is not None:
        network.load_state_dict({key: tensor.cpu() for key, tensor in state.items()})
    result = simplest(folded_network(network) if run.settings.fold else network)
    if not (run.out / "model").is_dir():
        _publish(run, result, "model", _facts(run, accelerator, []))
    device = str(accelerator.device)
    named = {"dense": run.dense, "chosen, not tuned": run.out / "chosen", "pruned": run.out / "model"}
    if not run.settings.tune:
        del named["chosen, not tuned"]
    if run.smaller is not None:
        shape = f"{run.smaller.depth} layers, width {run.smaller.width_ratio}"
        named = {"dense": run.dense, f"unpruned size, {shape}": run.out / "unpruned"} | named
    rows = [_row(run, name, folder, device) for name, folder in named.items()]
    dense, config = dense_network(run.source).config, network.config
    layers = [
        {"mixer": mixer, "units": units, "of": whole}
        for mixer, units, whole in zip(config.mixers, config.intermediate_sizes, dense.intermediate_sizes)
    ]
    results = {
        "identity": run.identity,
        "run": {"hardware": device_name(device), "torch": torch.__version__, "processes": accelerator.num_processes},
        "share": {kind: rows[-1][kind] / rows[0][kind] for kind in ("macs", "params")},
        "rows": rows,
        "layers": layers,
    }
    title = f"Pruned to {100 * run.settings.target:g} % of its {NAMES[run.settings.kind]}"
    plot_layers(layers, run.out / PICTURE, title)
    write_pruned_card(run.out / "model", results, run.out / PICTURE, result.config)
    write_json(run.out / RESULTS_FILE, results)
    return results


def _row(run: _Run, name: str, folder: str | Path, device: str) -> dict:
    model = _load(folder)
    row = measure(
        model,
        batches(run.test, run.processor, 128),
        depth=layers_of(model.config),
        width_ratio=1,
        num_components=None,
        split=run.test.split,
        dataset=run.test.name,
        stored_params=count_parameters(model),
        latency=True,
        device=device,
        progress=True,
    )
    return {"name": name, **row}
