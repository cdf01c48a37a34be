"""A constrained training step against the dense step of the same ViT-Small, side by side in one run.

    python tests/benchmarks/training_step.py [--batch-size 32] [--out tests/benchmarks/results/training_step.json]

Time: forward, backward and AdamW, the two in turn, the ratio pair by pair, medians. Peak memory: on a GPU what torch
allocated, on a CPU the resident peak of a fresh process each (/proc/self/clear_refs, VmHWM). Incremental: what a phase
that trains 1 of 12 components holds for optimiser and gradients, the layers' gradients included, counted in bytes.
Input: the loop's steps on images in memory with crop, flip, mixing, against the same steps on one batch that is there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification

from modeling_lingene import LinGeneConfig, LinGeneForImageClassification
from modeling_lingene.images.augmentation import Augmentation
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import load_images
from modeling_lingene.images.loaders import Layout, MemoryImages
from modeling_lingene.measuring.metrics import device_name
from modeling_lingene.training.decomposition import DecompositionSettings, phases


VIT_SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 100}
KINDS = ("constrained", "dense")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LIMITS = {"time": 1.05 if DEVICE.type == "cuda" else 1.10, "peak_memory": 1.05, "incremental_memory": 0.6}


def make(kind: str):
    torch.manual_seed(0)
    if kind == "dense":
        return ViTForImageClassification(ViTConfig(**VIT_SMALL)).to(DEVICE).train()
    return LinGeneForImageClassification(LinGeneConfig(depth=12, num_components=12, **VIT_SMALL)).to(DEVICE).train()


def optimiser_of(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)


def step(model, optimiser, batch: dict) -> None:
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
        logits = model(batch["pixel_values"]).logits
    functional.cross_entropy(logits.float(), batch["labels"]).backward()
    optimiser.step()
    optimiser.zero_grad()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def batch_of(size: int, pixels: int = 224) -> dict:
    labels = torch.randint(100, (size,), device=DEVICE)
    return {"pixel_values": torch.randn(size, 3, pixels, pixels, device=DEVICE), "labels": labels}


def times(batch_size: int, repeats: int) -> dict:
    models = {kind: make(kind) for kind in KINDS}
    optimisers = {kind: optimiser_of(model) for kind, model in models.items()}
    batch, pairs = batch_of(batch_size), []
    for number in range(repeats + 2):
        taken = {}
        for kind in KINDS:
            start = time.perf_counter()
            step(models[kind], optimisers[kind], batch)
            taken[kind] = time.perf_counter() - start
        if number >= 2:  # warm
            pairs.append(taken)
    ratios = sorted(pair["constrained"] / pair["dense"] for pair in pairs)
    return {
        **{f"{kind}_seconds": round(statistics.median(pair[kind] for pair in pairs), 4) for kind in KINDS},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(ratios[0], 3), round(ratios[-1], 3)],
        "limit": LIMITS["time"],
    }


def resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak(kind: str, batch_size: int) -> float:
    """MiB at the peak of two steps, over what the imports take, in this process, which must be fresh."""
    before = resident("VmRSS")
    model, batch = make(kind), batch_of(batch_size)
    optimiser = optimiser_of(model)
    if DEVICE.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        step(model, optimiser, batch)
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else resident("VmHWM") - before


def peaks(batch_size: int) -> dict:
    def run(kind: str) -> float:
        command = [sys.executable, __file__, "--peak", kind, "--batch-size", str(batch_size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    mib = {kind: statistics.median(run(kind) for _ in range(3)) for kind in KINDS}
    ratio = round(mib["constrained"] / mib["dense"], 3)
    return {**{f"{kind}_mib": round(value, 1) for kind, value in mib.items()}, "ratio": ratio, "limit": 1.05}


def incremental_memory(batch_size: int) -> dict:
    """Bytes of optimiser state and gradients after a step: the dense model's, and those of a late phase."""
    held = {}
    for kind in KINDS:
        model = make(kind)
        layers = 0
        if kind == "constrained":
            *_, last = phases(model, DecompositionSettings("incremental", totals=(11, 12)))
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(last.trainable(name))
            layers = sum(t.numel() * t.element_size() for t in model.recomposed(model.config.size()).values())
        optimiser = optimiser_of(model)
        logits = model(batch_of(min(batch_size, 4))["pixel_values"]).logits
        logits.sum().backward()
        optimiser.step()
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in model.parameters() if p.grad is not None)
        states = [tensor for state in optimiser.state.values() for tensor in state.values()]
        held[kind] = gradients + sum(t.numel() * t.element_size() for t in states) + layers
    ratio = round(held["constrained"] / held["dense"], 3)
    return {**{f"{kind}_mib": round(value / 2**20, 1) for kind, value in held.items()}, "ratio": ratio, "limit": 0.6}


def input_pipeline(repeats: int) -> dict:
    """Steps of a small ViT on the digits set resized to 32 pixels: batches made in the loop, against one that is."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=32, patch_size=4, num_labels=10
    )
    model = ViTForImageClassification(config).to(DEVICE).train()
    optimiser = optimiser_of(model)
    varied = Augmentation(crop_padding=4, flip=True, mixup=0.8, cutmix=1.0)
    source = MemoryImages(load_images("digits", "train"), image_processor(32), varied, DEVICE)
    layout = Layout(128)
    ratios = []
    for number in range(repeats + 1):
        whole = time.perf_counter()
        for (batch,) in source.batches(f"epoch {number}", layout):
            step(model, optimiser, batch)
        whole, alone = time.perf_counter() - whole, time.perf_counter()
        for _ in range(source.steps(layout)):
            step(model, optimiser, batch)
        ratios.append(whole / (time.perf_counter() - alone))
    ratios = sorted(ratios[1:])
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(r, 3) for r in ratios[:: len(ratios) - 1]],
        "limit": 1.1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64 if DEVICE.type == "cuda" else 32)
    parser.add_argument("--repeats", type=int, default=50 if DEVICE.type == "cuda" else 9)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.peak, arguments.batch_size))
        return
    results = {
        "command": f"python tests/benchmarks/training_step.py --batch-size {arguments.batch_size}",
        "hardware": device_name(DEVICE),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "time": times(arguments.batch_size, arguments.repeats),
        "peak_memory": peaks(arguments.batch_size),
        "incremental_memory": incremental_memory(arguments.batch_size),
        "input_pipeline": input_pipeline(5),
    }
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
