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
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from ..extras import require
from ..folders import read_config, write_json
from ..images.augmentation import Augmentation, check_augmentation
from ..images.loaders import Layout, training_images
from ..kinds import model_class
from ..lingene_pruned import PrunedClassifier
from ..progress import quiet_loading, tell
from ..readout import read_readout
from ..training.asked import keep_asked
from ..training.checkpoints import contents
from ..training.loop import Phase, TrainingLoop
from ..training.losses import Objective
from ..training.processes import decided_on_main, make_accelerator
from ..training.steps import TrainingSettings
from ..training.summary import length_line
from .choose import Worths, choose
from .costs import Costs
from .importance import importance
from .prepare import Run, dense_folder, finished_results, prepared, smaller_size, target_of, tell_what, traceless
from .record import TRAINING
from .report import facts_of, loaded, publish, report
from .search import make_searched, search_phase, take_search
from .settings import DENSE, PruneSettings
from .write import Bottlenecks, dense_network, write_network


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
        training: of search and tuning; default 30 epochs, and where it has no learning rate 5e-4.
        objective, augmentation: of both; an objective with labels.
        size: `from_pretrained`'s keywords for a size of a bundle.
        resume: go on with a run that was interrupted, read a finished one back; without it `out` must be new or empty.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: whatever of it cannot be met; the folder holds another run or something else.
        ImportError: matplotlib is missing; the message says what to install.
    """
    out, training = Path(out), training or TRAINING
    if training.learning_rate == -1:
        training = replace(training, learning_rate=TRAINING.learning_rate)
    objective, augmentation = objective or Objective(), augmentation or Augmentation()
    if objective.kind != "labels":
        raise ValueError(f"`objective` {objective.kind} learns without labels, and a pruning learns from labels.")
    accelerator = make_accelerator(training, out)
    asked = {**asdict(settings), **asdict(objective), **asdict(augmentation), "size": size or {}}
    asked |= {**training.identity(accelerator.num_processes), "model": str(model)}
    teacher = "" if settings.teacher == DENSE else settings.teacher
    identity = json.loads(json.dumps(asked, default=str)) | contents(model=model, teacher=teacher)
    finished = decided_on_main(accelerator, lambda: finished_results(out, identity, resume))
    if finished is not None:
        return finished
    require("matplotlib")  # not at the end of hours
    check_augmentation(augmentation)
    of_run = {"training": training, "objective": objective, "augmentation": augmentation, "identity": identity}
    with traceless(out, accelerator.is_main_process):
        dense = decided_on_main(accelerator, lambda: dense_folder(model, size or {}, out))
        of_run["smaller"] = smaller_size(model, size or {}, settings, dense)
        run = prepared(out, settings, dense, **of_run)
    if accelerator.is_main_process:
        groups = {"settings": settings, "training": training, "objective": objective, "augmentation": augmentation}
        keep_asked(out, identity, model=str(model), **groups, size=size or {})
        tell_what(run)
    if not (out / "chosen").is_dir():
        _choose(run, accelerator)
    accelerator.wait_for_everyone()
    state = _tuned(run, accelerator) if settings.tune else None
    if run.smaller is not None and not (out / "unpruned").is_dir():
        _compare(run, model, accelerator)
    accelerator.end_training()  # of all of them: it dissolves the group of processes
    return report(run, state, accelerator) if accelerator.is_main_process else {}


def _choose(run: Run, accelerator: Accelerator) -> None:
    """The search, and what it chose as a folder."""
    network, settings = dense_network(run.source), run.settings
    costs, target = target_of(settings, network)
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
    run: Run, network: PrunedClassifier, costs: Costs, accelerator: Accelerator
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
    run: Run,
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
    if run.source.config.turned:
        origin["turned"] = True
    written.config.pruned_from = origin
    publish(run, written, "chosen", run.readout)


def _fit(run: Run, network: torch.nn.Module, phase: Phase, name: str, training: TrainingSettings, on_best=None):
    """One training in the loop; its state on every process."""
    accelerator = make_accelerator(training, run.out / name)
    workers, device = run.settings.workers, accelerator.device
    images = training_images(run.train, run.processor, run.augmentation, device, workers)
    held_out = None
    if run.validation is not None:
        held_out = training_images(run.validation, run.processor, Augmentation(), device, workers)
    loop = TrainingLoop(
        network,
        images,
        training,
        run.out / name,
        identity=run.identity,
        held_out=held_out,
        teacher=run.teacher and run.teacher(images),
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


def _forward(run: Run, model: Callable, batch: dict, generator: torch.Generator) -> torch.Tensor:
    return run.objective.of_batch(model(batch["pixel_values"]).logits, batch)


def _compare(run: Run, bundle: str | Path, accelerator: Accelerator) -> None:
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
        publish(run, network.cpu().eval(), "unpruned", read_readout(bundle))


def _tuned(run: Run, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """What was chosen, trained; its state."""
    network = loaded(run.out / "chosen")

    def keep(state: dict, history: list[dict]) -> None:
        best = type(network)(network.config)
        best.load_state_dict({key: tensor.cpu() for key, tensor in state.items()})
        shutil.rmtree(run.out / "best", ignore_errors=True)
        publish(run, best, "best", run.readout, facts_of(run, accelerator, history))

    torch.manual_seed(run.training.seed)
    phase = Phase("tuning", lambda name: True, partial(_forward, run))
    return _fit(run, network.train(), phase, "tune", run.training, keep)
