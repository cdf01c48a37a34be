"""What a sampled size of an elastic step costs against its MACs, and a sweep against its forward passes.

    python tests/benchmarks/elastic_cost.py [--batch-size 16] [--out tests/benchmarks/results/elastic_cost.json]

Sampled sizes: forward and backward of one network of a constrained ViT-Small, in turn with a stock ViT of that very
size; the ratio pair by pair, medians; and the operations that torch counts in its forward pass, over those that its
MACs say. Without labels: the teacher, a stock ViT-Small, and such a network with its heads, forward and backward, in
turn with the teacher and the stock ViT of that size alone. Shared: steps whose networks share the images, against as
many steps of one of these networks each, in turn; their MACs are the same. Sweep: a whole `sweep` without latencies on
images in memory, files, pictures and MACs included, against the forward passes alone of the same models, loaded
before, on the same tensors; in turn, medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from training_step import DEVICE, VIT_SMALL, batch_of
from transformers import AutoModelForImageClassification, ViTForImageClassification, ViTModel

from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel
from modeling_lingene.folders import write_json
from modeling_lingene.images.batches import batches, image_processor
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.measuring.metrics import count_macs, count_right, device_name
from modeling_lingene.measuring.sweep import sweep
from modeling_lingene.progress import quiet_loading
from modeling_lingene.training.decomposition import NETWORKS, DecompositionSettings, phases
from modeling_lingene.training.features import FeatureStudent, features_loss
from modeling_lingene.training.losses import Objective


SIZES = ((12, "1"), (6, "1"), (12, "1/2"), (6, "1/2"), (12, "1/3"))
LIMITS = {"sampled_size": 1.15, "without_labels": 1.15, "sweep": 1.15}


def backward(model, batch: dict, **size) -> float:
    start = time.perf_counter()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
        logits = model(batch["pixel_values"], **size).logits
    functional.cross_entropy(logits.float(), batch["labels"]).backward()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    model.zero_grad()
    return seconds


def sampled(batch_size: int, repeats: int) -> list[dict]:
    torch.manual_seed(0)
    config = LinGeneConfig(depth=12, num_components=12, **VIT_SMALL)
    model, batch, rows = LinGeneForImageClassification(config).to(DEVICE).train(), batch_of(batch_size), []
    for depth, width in SIZES:
        asked, shape = {"depth": depth, "width_ratio": width}, config.stock_config(config.size(depth, width))
        alone, pairs = ViTForImageClassification(shape).to(DEVICE).train(), []
        for _ in range(repeats + 1):
            pairs.append((backward(model, batch, **asked), backward(alone, batch)))
        ratios = [ours / stock for ours, stock in pairs[1:]]
        model.set_attn_implementation("eager")  # plain products, which the counter knows
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(batch["pixel_values"], **asked)
        model.set_attn_implementation("sdpa")
        row = {**asked, "macs": count_macs(shape), "seconds": round(statistics.median(p[0] for p in pairs[1:]), 4)}
        row["ratio_to_stock"] = round(statistics.median(ratios), 3)
        row["counted_over_macs"] = round(counter.get_total_flops() / 2 / batch_size / row["macs"], 4)
        rows.append(row)
    return rows


def without_labels(batch_size: int, repeats: int) -> list[dict]:
    torch.manual_seed(0)
    config, objective = LinGeneConfig(depth=12, num_components=12, **VIT_SMALL), Objective(kind="features")
    model, batch, rows = LinGeneModel(config).to(DEVICE), batch_of(batch_size), []
    student = FeatureStudent(model, config.hidden_size, objective).to(DEVICE).train()
    teacher = ViTModel(config.stock_config(config.size()), add_pooling_layer=False).to(DEVICE).eval()

    def step(train, **size) -> float:
        start = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            with torch.no_grad():
                batch["teacher"] = teacher(batch["pixel_values"]).last_hidden_state
            loss = train(**size)
        loss.backward()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        student.zero_grad()
        return seconds

    def ours(**size) -> torch.Tensor:
        return features_loss(objective, student, batch, torch.Generator(), **size)

    for depth, width in SIZES:
        asked, shape = {"depth": depth, "width_ratio": width}, config.stock_config(config.size(depth, width))
        alone = ViTModel(shape, add_pooling_layer=False).to(DEVICE).train()

        def stock() -> torch.Tensor:
            return alone(batch["pixel_values"]).last_hidden_state.float().square().mean()  # noqa: B023 - called here

        pairs = []
        for _ in range(repeats + 1):
            pairs.append((step(ours, **asked), step(stock)))
            alone.zero_grad()
        ratios = sorted(one / other for one, other in pairs[1:])
        row = {**asked, "seconds": round(statistics.median(pair[0] for pair in pairs[1:]), 4)}
        row["ratio_to_stock_and_teacher"] = round(statistics.median(ratios), 3)
        rows.append(row | {"ratio_min_max": [round(ratios[0], 3), round(ratios[-1], 3)]})
    return rows


def shared(batch_size: int, repeats: int) -> dict:
    torch.manual_seed(0)
    config = LinGeneConfig(depth=12, num_components=12, **VIT_SMALL)
    model, batch = LinGeneForImageClassification(config).to(DEVICE).train(), batch_of(batch_size)
    (phase,) = phases(model, DecompositionSettings("elastic", totals=(12,)))
    sizes = [{"depth": depth, "width_ratio": width} for depth, width in SIZES[:NETWORKS]]

    def step(networks: list[dict]) -> None:
        for network in networks:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
                loss = phase.forward(model, dict(batch), torch.Generator(), **network)
            loss.backward()

    def timed(steps: list[list[dict]]) -> float:
        start = time.perf_counter()
        for networks in steps:
            step(networks)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        model.zero_grad()
        return seconds

    together = [size | {"part": (place, NETWORKS)} for place, size in enumerate(sizes)]
    pairs = [(timed([together] * NETWORKS), timed([[size] for size in sizes])) for _ in range(repeats + 1)][1:]
    ratios = sorted(one / other for one, other in pairs)
    return {
        "networks": NETWORKS,
        "images": batch_size,
        "seconds_of_a_step": round(statistics.median(pair[0] for pair in pairs) / NETWORKS, 4),
        "ratio_to_one_network_a_step": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def swept(images: int, repeats: int) -> dict:
    generator, shape = torch.Generator().manual_seed(0), {**VIT_SMALL, "image_size": 64, "patch_size": 8}
    pixels = torch.randint(0, 256, (images, 64, 64, 3), dtype=torch.uint8, generator=generator).numpy()
    held = LabelledImages([Image.fromarray(one) for one in pixels], [0] * images, ["x"] * 100, "noise", "test")
    processor = image_processor(64)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = LinGeneConfig(depth=12, num_components=12, trained_width_ratios=["1/3", "1/2", "2/3", "1"], **shape)
        LinGeneForImageClassification(config).save_pretrained(folder)
        processor.save_pretrained(folder)
        grid = {"depths": (6, 12), "components": (6, 12)}
        sizes = [(d, w, k) for d in (6, 12) for w in config.trained_width_ratios for k in (6, 12)]
        held_batches, pairs = [], []
        with quiet_loading():
            models = [
                AutoModelForImageClassification.from_pretrained(folder, depth=d, width_ratio=w, num_components=k)
                for d, w, k in sizes
            ]
        held_batches = [{key: value.to(DEVICE) for key, value in b.items()} for b in batches(held, processor, 64)]
        for _ in range(repeats):
            start = time.perf_counter()
            sweep(folder, held, latency=False, device=DEVICE.type, **grid)
            whole = time.perf_counter() - start
            start = time.perf_counter()
            for model in models:
                count_right(model.to(DEVICE), held_batches).tolist()
            pairs.append((whole, time.perf_counter() - start))
    ratios = sorted(one / other for one, other in pairs)
    return {
        "images": images,
        "sizes": len(sizes),
        "seconds": round(statistics.median(pair[0] for pair in pairs), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=16, help="of the sampled sizes (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="pairs (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="of the sweep (default: %(default)s)")
    parser.add_argument(
        "--part", choices=("sampled", "without_labels", "shared", "sweep"), help="one alone (default: all)"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args()
    asked = f"--batch-size {arguments.batch_size} --repeats {arguments.repeats} --images {arguments.images}"
    results = {
        "command": f"python tests/benchmarks/elastic_cost.py {asked}",
        "hardware": device_name(DEVICE),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "limits": LIMITS,
    }
    parts = {
        "sampled": lambda: sampled(arguments.batch_size, arguments.repeats),
        "without_labels": lambda: without_labels(arguments.batch_size, arguments.repeats),
        "shared": lambda: shared(4 * arguments.batch_size, arguments.repeats),
        "sweep": lambda: swept(arguments.images, max(3, arguments.repeats // 2)),
    }
    results |= {name: measure() for name, measure in parts.items() if arguments.part in (None, name)}
    print(json.dumps(results, indent=2))
    if arguments.out:
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
