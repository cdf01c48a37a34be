"""What came of a pruning: its model as a folder, measured beside the network that it comes from, and told."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..families_lingene import layers_of
from ..folders import complete_or_absent, write_json
from ..images.batches import batches
from ..measuring.metrics import count_parameters, device_name, measure, seen_size
from ..progress import quiet_loading
from ..readout import Readout, write_readout
from .card import PICTURE, write_pruned_card
from .picture import plot_layers
from .prepare import NAMES, RESULTS_FILE, Run
from .record import pruning_facts, write_pruning
from .write import dense_network, folded_network, simplest


def publish(run: Run, model: PreTrainedModel, name: str, readout: Readout | None, facts: dict | None = None) -> None:
    """A model with its preprocessing and, if it is a result, how it was trained; complete or absent.

    Args:
        readout: of what the model was made of, where its channels are turned.
    """
    with complete_or_absent(run.out / name) as staging:
        model.save_pretrained(staging)
        run.processor.save_pretrained(staging)
        write_readout(staging, readout, model)
        if facts is not None:
            write_pruning(staging, facts)


def facts_of(run: Run, accelerator: Accelerator, history: list[dict]) -> dict:
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


def loaded(folder: str | Path) -> PreTrainedModel:
    with quiet_loading():
        return AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)


def report(run: Run, state: dict | None, accelerator: Accelerator) -> dict:
    """The result as a folder, measured beside the network that it comes from."""
    network = loaded(run.out / "chosen").eval()
    if state is not None:
        network.load_state_dict({key: tensor.cpu() for key, tensor in state.items()})
    result = simplest(folded_network(network) if run.settings.fold else network)
    if not (run.out / "model").is_dir():
        publish(run, result, "model", run.readout, facts_of(run, accelerator, []))
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


def _row(run: Run, name: str, folder: str | Path, device: str) -> dict:
    model = loaded(folder)
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
        image_size=seen_size(model.config, run.processor),
    )
    return {"name": name, **row}
