"""A few steps of a tiny bundle, for tests of several processes: `train_tiny.py '[{"processes": 2, ...}, ...]'`.

Takes groups, as {processes, out, cases} in JSON; a case is a run, {out, schedule, batch_size, accumulation, mixup,
stop_at, fsdp, features, family, held_out}. An import takes longer than all runs: it is done once, and the
processes of a group are forks that find themselves where torchrun would have started them. Every process says how each
run ended, and after how many steps; the main one writes OUT/weights.safetensors.
"""

import gc
import json
import multiprocessing.connection
import os
import signal
import socket
import sys
from pathlib import Path

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

import helpers
from modeling_lingene import LinGeneForImageClassification, LinGeneModel
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.training.decomposition import DecompositionSettings, phases
from modeling_lingene.training.features import FeatureStudent, feature_metric
from modeling_lingene.training.loop import Interrupted, TrainingLoop
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.processes import make_accelerator
from modeling_lingene.training.steps import TrainingSettings


def without_labels(encoder: LinGeneModel, settings: DecompositionSettings) -> tuple:
    """A student with masked patches, its phases, and a teacher of noise."""
    encoder.embeddings.mask_token = torch.nn.Parameter(torch.zeros(1, 1, encoder.config.hidden_size))
    objective = Objective(kind="features", mask_share=0.3)
    student = FeatureStudent(encoder, encoder.config.hidden_size, objective)
    todo = phases(encoder, settings, objective)
    made = helpers.tiny_model(helpers.tiny_config(), seed=1, model_class=LinGeneModel).materialise()

    def teacher(batch: dict) -> torch.Tensor:
        with torch.no_grad():
            return made(batch["pixel_values"]).last_hidden_state

    return student, todo, {"teacher": teacher, "metric": feature_metric(teacher)}


def main(
    out: str,
    schedule: str = "incremental",
    batch_size: int = 8,
    accumulation: int = 1,
    mixup: float = 0.0,
    stop_at: int | None = None,
    dropout: float = 0.0,
    ema: float = 0.0,
    fsdp: bool = False,
    features: bool = False,
    family: str = "vit",
    held_out: int = 10,
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config, parts = helpers.tiny_config(num_components=4, hidden_dropout_prob=dropout, family=family), {}
    decomposition = DecompositionSettings(schedule, totals=(1, 4))
    if features:
        model, todo, parts = without_labels(LinGeneModel(config), decomposition)
    else:
        model = LinGeneForImageClassification(config)
        todo = phases(model, decomposition)
    settings = TrainingSettings(
        epochs=2, batch_size=batch_size, accumulation=accumulation, learning_rate=1e-2, device="cpu", ema=ema
    )
    varied = Augmentation(crop_padding=2, flip=True, mixup=mixup)
    accelerator = make_accelerator(settings, out)
    if fsdp:  # Accelerate reads its environment variables for GPUs only
        for state in (PartialState(), accelerator.state):
            state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="NO_WRAP")
    loop = TrainingLoop(
        model,
        helpers.source(26, varied),
        settings,
        Path(out),
        held_out=helpers.source(held_out, seed=1),
        on_best=lambda state: (Path(out) / "best.txt").write_text(f"{os.environ.get('RANK', 0)} {len(state)}"),
        accelerator=accelerator,
        **parts,
    )
    take, steps = loop._step, []

    def step(run, parts):
        steps.append(None)
        if len(steps) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(run, parts)

    loop._step = step
    try:
        history = loop.fit(todo)
    except Interrupted:
        return say(out, "stopped", len(steps))
    state = {name.removeprefix("encoder."): tensor for name, tensor in loop.full_state().items()}
    if loop.is_main:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, Path(out) / "weights.safetensors")
        (Path(out) / "history.json").write_text(json.dumps(history))
        say(out, "done", len(steps))


def say(out: str, end: str, steps: int) -> None:
    """A line that another process cannot tear."""
    os.write(1, f"{end} {Path(out).name} {steps}\n".encode())


def one_of(processes: int, rank: int, port: int, cases: list[dict], out: str) -> None:
    """A process as torchrun makes it, but for the imports, which are done; it writes to OUT.stdout and OUT.stderr."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {name: str(value) for name, value in place.items()}
    for case in cases:
        AcceleratorState._reset_state()  # which another run made; the group of processes stays
        main(**case)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(processes: int, cases: list[dict], out: str) -> bool:
    """Runs, one after the other, in new processes together; whether all ended well. One that fails ends the others."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    group = [fork.Process(target=one_of, args=(processes, rank, port, cases, out)) for rank in range(processes)]
    for process in group:
        process.start()
    running = {process.sentinel: process for process in group}
    while running:  # each is waited for until it is taken out: a wait for nobody would never end
        for sentinel in multiprocessing.connection.wait(list(running)):
            process = running.pop(sentinel)
            process.join()
            if process.exitcode:
                for other in group:
                    other.kill()
    return not any(process.exitcode for process in group)


if __name__ == "__main__":
    gc.freeze()  # Accelerate collects garbage after every phase: what the imports hold is looked through once a phase
    sys.exit(0 if all([start(**group) for group in json.loads(sys.argv[1])]) else 1)
