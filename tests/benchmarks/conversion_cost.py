"""Time and peak memory of a lossless conversion, against reading and writing the same checkpoint the stock way.

    python tests/benchmarks/conversion_cost.py [--out tests/benchmarks/results/conversion_cost.json]
    python tests/benchmarks/conversion_cost.py --calibrated [--out tests/benchmarks/results/calibration_cost.json]

Each conversion and each stock `from_pretrained` with `save_pretrained` in a fresh process, in turn; medians. The time
is that of the call, imports not counted; the memory what the call adds, through /proc/self/clear_refs and VmHWM. With
`--calibrated` instead one fit of 6 of 12 components of a ViT-Base on 256 pictures of noise, 197 tokens each, on a GPU
where there is one.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from loading import status
from modeling_lingene.conversion.convert import convert
from modeling_lingene.folders import write_json
from modeling_lingene.measuring.metrics import device_name


MODELS = {
    "ViT-Base": {},
    "ViT-Large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}
LIMITS = {"seconds": 20, "memory_ratio": 3.0, "relative_logit_error": 1e-5}  # of ViT-Base; the error of both


def make(folder: Path, fields: dict) -> float:
    """A stock ViT with every parameter changed by noise; its file's size, MiB."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(num_labels=1000, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    model.save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size / 2**20


def once(way: str, folder: str) -> dict:
    """One run, in this process, which must be fresh."""
    transformers.logging.disable_progress_bar()
    before, report = status("VmRSS"), {}
    Path("/proc/self/clear_refs").write_text("5")
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        if way == "convert":
            report = convert(folder, Path(out) / "bundle", device="cpu")
        else:
            AutoModelForImageClassification.from_pretrained(folder).save_pretrained(Path(out) / "model")
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "mib": status("VmHWM") - before, "error": report.get("relative_logit_error")}


def measure(fields: dict, repeats: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        size = make(Path(folder), fields)
        runs = {"convert": [], "stock": []}
        for _ in range(repeats):
            for way, found in runs.items():
                command = [sys.executable, __file__, "--once", json.dumps([way, folder])]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))

    def median(way: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[way])

    return {
        "checkpoint_mib": round(size, 1),
        "seconds": round(median("convert", "seconds"), 2),
        "stock_seconds": round(median("stock", "seconds"), 2),
        "peak_mib": round(median("convert", "mib"), 1),
        "memory_ratio": round(median("convert", "mib") / size, 2),
        "relative_logit_error": median("convert", "error"),
    }


def calibrated(device: str) -> dict:
    """The default fit of half as many components as layers: time, and memory of the GPU or of the process."""
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "source", {})
        (Path(folder) / "images").mkdir()
        for number in range(256):
            pixels = torch.randint(0, 256, (14, 14, 3), dtype=torch.uint8, generator=generator).numpy()
            Image.fromarray(pixels).resize((224, 224)).save(Path(folder) / "images" / f"{number}.png")
        asked = {"num_components": 6, "calibrate": f"{folder}/images", "images": 256, "device": device}
        start = time.perf_counter()
        report = convert(f"{folder}/source", Path(folder) / "bundle", **asked)
        seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else status("VmHWM") / 2**10
    last = {key: value for key, value in report["calibration"]["rows"][-1].items() if key != "parts"}
    return {"limit": 1800, "seconds": round(seconds, 1), "peak_gib": round(peak, 2), **last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--calibrated", action="store_true", help="instead a fit on images")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(once(*json.loads(arguments.once))))
        return
    device = "cuda" if arguments.calibrated and torch.cuda.is_available() else "cpu"
    results = {
        "command": "python tests/benchmarks/conversion_cost.py" + " --calibrated" * arguments.calibrated,
        "hardware": device_name(device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "python": platform.python_version(),
    }
    if arguments.calibrated:
        results["ViT-Base, 6 components"] = calibrated(device)
    else:
        results |= {"limits": LIMITS}
        results |= {name: measure(fields, arguments.repeats) for name, fields in MODELS.items()}
    print(json.dumps(results, indent=2))
    if arguments.out:
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
