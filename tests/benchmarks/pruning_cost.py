"""What a step of the search costs against a plain training step, and how fast a pruned model is against a dense one.

    python tests/benchmarks/pruning_cost.py [--out tests/benchmarks/results/pruning_cost.json]

Search: forward, backward and AdamW of a ViT-Small with gates, in turn with a stock ViT-Small; the ratio pair by pair,
medians. Speed: a forward pass of a batch of 32, 197 tokens, of the dense ViT-Small and of networks of half its MACs:
`mixed`, a third of the layers each with attention, 3x3 and 1x1 convolution, `released`, DeiT-B's released proportions,
`attention`, MLPs cut alone.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from training_step import DEVICE, VIT_SMALL, batch_of, optimiser_of, step
from transformers import ViTConfig, ViTForImageClassification

from modeling_lingene import LinGeneViTConfig, LinGeneViTForImageClassification
from modeling_lingene.folders import write_json
from modeling_lingene.measuring.metrics import count_macs, device_name
from modeling_lingene.pruning.costs import costs_of
from modeling_lingene.pruning.search import make_searched, search_phase
from modeling_lingene.pruning.write import folded_network
from modeling_lingene.training.losses import Objective


LIMITS = {"search_step": 1.6, "speed": 1.5}
SHAPE = {key: VIT_SMALL[key] for key in ("hidden_size", "num_attention_heads", "num_labels")}
RELEASED = [1118, 489, 1050, 1345, 1336, 1326, 1431, 1564, 1606, 1702, 1290, 190]  # MLP units of DeiT-B, of 3072
MIXERS = {
    "mixed": ["conv1", "conv3", "attention"] * 4,
    "released": ["conv1"] * 3 + ["conv3"] * 2 + ["attention"] * 7,
    "attention": ["attention"] * 12,
}


def dense_config() -> LinGeneViTConfig:
    units = [VIT_SMALL["intermediate_size"]] * 12
    return LinGeneViTConfig(**SHAPE, mixers=["attention"] * 12, intermediate_sizes=units)


def halved(name: str) -> LinGeneViTConfig:
    """Those mixers, with MLPs such that half of the dense MACs are left."""
    costs, mixers = costs_of(dense_config()), MIXERS[name]
    target = 0.5 * costs.total(["attention"] * 12, [VIT_SMALL["intermediate_size"]] * 12)
    units = (target - costs.total(mixers, [0] * 12)) / costs.layers[0].unit
    shares = [one / sum(RELEASED) for one in RELEASED] if name == "released" else [1 / 12] * 12
    return LinGeneViTConfig(
        **SHAPE, mixers=mixers, intermediate_sizes=[max(8, 8 * int(share * units / 8)) for share in shares]
    )


def searched(batch_size: int, repeats: int) -> dict:
    torch.manual_seed(0)
    network = LinGeneViTForImageClassification(dense_config()).to(DEVICE).train()
    make_searched(network)
    costs, stock = costs_of(network.config), ViTForImageClassification(ViTConfig(**VIT_SMALL)).to(DEVICE).train()
    dense = costs.total(network.config.mixers, network.config.intermediate_sizes)
    phase = search_phase(network, costs, 0.5 * dense, Objective(), 30.0, 1e-3)
    batch, ours, theirs, pairs = batch_of(batch_size), optimiser_of(network), optimiser_of(stock), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            loss = phase.forward(network, batch, None)
        loss.backward()
        ours.step()
        ours.zero_grad()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        middle = time.perf_counter()
        step(stock, theirs, batch)
        pairs.append((middle - start, time.perf_counter() - middle))
    return {"batch_size": batch_size, **told(pairs[1:], "search_seconds", "plain_seconds", invert=False)}


def faster(batch_size: int, repeats: int) -> list[dict]:
    torch.manual_seed(0)
    stock = ViTForImageClassification(ViTConfig(**VIT_SMALL)).to(DEVICE).eval()
    pixels, rows = batch_of(batch_size)["pixel_values"], []
    for name in MIXERS:
        for folded in (False, True):
            model = LinGeneViTForImageClassification(halved(name)).eval()
            model = (folded_network(model) if folded else model).to(DEVICE)
            if folded and "conv1" not in model.config.mixers:
                continue
            pairs = []
            for _ in range(repeats + 1):
                pairs.append((timed(model, pixels), timed(stock, pixels)))
            row = {"mixers": name, "folded": folded, "macs_share": count_macs(model.config) / count_macs(stock.config)}
            rows.append(row | told(pairs[1:], "pruned_seconds", "dense_seconds", invert=True))
    return rows


@torch.inference_mode()
def timed(model: torch.nn.Module, pixels: torch.Tensor) -> float:
    start = time.perf_counter()
    model(pixels)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def told(pairs: list[tuple[float, float]], ours: str, theirs: str, invert: bool) -> dict:
    ratios = sorted(other / one if invert else one / other for one, other in pairs)
    return {
        ours: round(statistics.median(one for one, _ in pairs), 4),
        theirs: round(statistics.median(other for _, other in pairs), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search-batch", type=int, default=16, help="of the training steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="of the forward passes (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="pairs (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args()
    results = {
        "command": "python tests/benchmarks/pruning_cost.py",
        "hardware": device_name(DEVICE),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "limits": LIMITS,
        "search_step": searched(arguments.search_batch, arguments.repeats),
        "speed": faster(arguments.batch_size, arguments.repeats),
    }
    print(json.dumps(results, indent=2))
    if arguments.out:
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
