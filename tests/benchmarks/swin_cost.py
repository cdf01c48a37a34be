"""Swin bundles beside stock Swins in one run: loading a Swin-Base, a training step of a Swin-T.

    python tests/benchmarks/swin_cost.py [--out tests/benchmarks/results/swin_cost.json]

Loading: `from_pretrained` of a size against stock `from_pretrained` followed by a copy of every parameter (stock only
maps the file), the two in turn, the ratio pair by pair, medians. Step: forward, backward and AdamW of the constrained
model (six components of stage 3) and of the stock one, the same way. Warm file cache; the threads that torch has.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch.nn import functional
from transformers import SwinForImageClassification

from loading import save, times
from modeling_lingene import LinGeneSwinConfig, LinGeneSwinForImageClassification
from modeling_lingene.measuring.metrics import device_name


BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "num_labels": 1000}
SIZES = {"18 of 18 components": {}, "6 of 18 components": {"num_components": 6}}
SIZES |= {"half width": {"width_ratio": "1/2"}, "8 of 18 layers of stage 3": {"depth": 8}}
LOADING_LIMITS = dict.fromkeys(SIZES, 1.3)
STEP_LIMIT = 1.10
KINDS = ("constrained", "stock")


def step_times(batch_size: int, repeats: int) -> dict:
    """A constrained step against a stock one."""
    torch.manual_seed(0)
    config = LinGeneSwinConfig(num_labels=100)
    made = (LinGeneSwinForImageClassification(config), SwinForImageClassification(config.stock_config(config.size())))
    models = dict(zip(KINDS, (model.train() for model in made)))
    optimisers = {kind: torch.optim.AdamW(model.parameters(), 1e-4, fused=True) for kind, model in models.items()}
    pixel_values, labels = torch.randn(batch_size, 3, 224, 224), torch.randint(100, (batch_size,))
    pairs = []
    for number in range(repeats + 2):
        taken = {}
        for kind in KINDS:
            start = time.perf_counter()
            functional.cross_entropy(models[kind](pixel_values).logits, labels).backward()
            optimisers[kind].step()
            optimisers[kind].zero_grad()
            taken[kind] = time.perf_counter() - start
        if number >= 2:  # warm
            pairs.append(taken)
    ratios = sorted(pair["constrained"] / pair["stock"] for pair in pairs)
    return {
        **{f"{kind}_seconds": round(statistics.median(pair[kind] for pair in pairs), 4) for kind in KINDS},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(ratios[0], 3), round(ratios[-1], 3)],
        "limit": STEP_LIMIT,
        "batch_size": batch_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="timed pairs (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="of a step (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = LinGeneSwinConfig(**BASE, trained_width_ratios=["1/2", "1"])
        save(LinGeneSwinForImageClassification(config), Path(folder))
        loading = times(Path(folder), arguments.repeats, SIZES, limits=LOADING_LIMITS)
    results = {
        "command": f"python tests/benchmarks/swin_cost.py --repeats {arguments.repeats} "
        f"--batch-size {arguments.batch_size}",
        "hardware": device_name(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "python": platform.python_version(),
        "loading": loading,
        "step": step_times(arguments.batch_size, arguments.repeats),
    }
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
