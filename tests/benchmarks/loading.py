"""Loading a size of a bundle against stock loading of the same model saved plain, side by side in one run.

    python tests/benchmarks/loading.py [--out tests/benchmarks/results/loading.json]

Time: `from_pretrained` of a size, against stock `from_pretrained` followed by a copy of every parameter (stock only
maps the file), of a ViT-Base with a classifier and of a DINOv2 ViT-Small/14, an encoder; the two in turn, the ratio
pair by pair, medians; once on a quiet machine, once with one process beside them that keeps a core busy; what
`verify=True` adds; and stock loading of the half width saved plain for itself. Peak memory of the ViT-Base: in a fresh
process each, through /proc/self/clear_refs and VmHWM (ru_maxrss is inherited), against stock loading with every
parameter read once. Warm file cache; the threads that torch has.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel

from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel
from modeling_lingene.measuring.metrics import device_name


SIZES = {
    "12 of 12 components": {},
    "4 of 12 components": {"num_components": 4},
    "half width": {"width_ratio": "1/2"},
    "half width, 4 components": {"width_ratio": "1/2", "num_components": 4},
    "6 of 12 layers": {"depth": 6},
}
ENCODER = {"DINOv2 ViT-S/14, all": {}, "DINOv2 ViT-S/14, 8 of 12 layers": {"depth": 8}}
VERIFIED = {"12 of 12 components, verified": {"verify": True}}
# With one busy process 1.5 times.
LIMITS = {"12 of 12 components": 1.3, "4 of 12 components": 1.1, "half width": 0.6, **dict.fromkeys(ENCODER, 1.3)}
MEMORY_LIMIT = 2.1


def make(folder: Path) -> None:
    """A ViT-Base bundle of random components, and the ViT it gives saved plain, at half width in `half`; in `encoder`,
    a DINOv2 ViT-Small."""
    torch.manual_seed(0)
    config = LinGeneConfig(depth=12, num_components=12, num_labels=1000, trained_width_ratios=["1/2", "1"])
    save(LinGeneForImageClassification(config), folder)
    load(folder, SIZES["half width"]).save_pretrained(folder / "half" / "plain")
    shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    config = LinGeneConfig(family="dinov2", depth=12, num_components=12, image_size=518, patch_size=14, **shape)
    save(LinGeneModel(config), folder / "encoder")


def save(model: PreTrainedModel, folder: Path) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    model.save_pretrained(folder / "bundle")
    model.materialise().save_pretrained(folder / "plain")


def load(folder: Path, kwargs: dict | None):
    auto_class = AutoModel if folder.name == "encoder" else AutoModelForImageClassification
    return auto_class.from_pretrained(folder / ("plain" if kwargs is None else "bundle"), **kwargs or {})


def seconds(folder: Path, kwargs: dict | None) -> float:
    """One load; of the stock model with a copy of every parameter."""
    start = time.perf_counter()
    model = load(folder, kwargs)
    if kwargs is None:
        _copies = [parameter.detach().clone() for parameter in model.parameters()]
    return time.perf_counter() - start


@contextmanager
def one_busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1)
        yield
    finally:
        process.kill()


def times(folder: Path, repeats: int, sizes: dict, allowance: float = 1.0, limits: dict = LIMITS) -> dict:
    results = {}
    for name, kwargs in sizes.items():
        seconds(folder, None), seconds(folder, kwargs)
        pairs = [(seconds(folder, kwargs), seconds(folder, None)) for _ in range(repeats)]
        results[name] = compared(pairs) | {"limit": round(allowance * limits[name], 2) if name in limits else None}
        if name == "half width":
            pairs = [(seconds(folder / "half", None), seconds(folder, None)) for _ in range(repeats)]
            results[f"{name}, saved plain"] = compared(pairs) | {"limit": None}
    return results


def compared(pairs: list[tuple[float, float]]) -> dict:
    """Medians of seconds, and of the ratios pair by pair."""
    ratios = sorted(ours / stock for ours, stock in pairs)
    return {
        "seconds": round(statistics.median(ours for ours, _ in pairs), 4),
        "stock_seconds": round(statistics.median(stock for _, stock in pairs), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def status(field: str) -> float:
    """A field of /proc/self/status, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak(folder: Path, kwargs: dict | None) -> float:
    """MiB that one load adds at its peak, in this process, which must be fresh."""
    transformers.logging.disable_progress_bar()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    model = load(folder, kwargs)
    _read = [float(parameter.detach().sum()) for parameter in model.parameters()]
    return status("VmHWM") - before


def peaks(folder: Path, repeats: int) -> dict:
    """Every load `repeats` times, each in a process of its own; medians."""

    def run(kwargs: dict | None) -> float:
        command = [sys.executable, __file__, "--peak", json.dumps([str(folder), kwargs])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    stock = statistics.median(run(None) for _ in range(repeats))
    results = {"stock": {"mib": round(stock, 1)}}
    for name, kwargs in SIZES.items():
        mib = statistics.median(run(kwargs) for _ in range(repeats))
        results[name] = {"mib": round(mib, 1), "ratio": round(mib / stock, 3), "limit": MEMORY_LIMIT}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31, help="timed pairs (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        folder, kwargs = json.loads(arguments.peak)
        print(peak(Path(folder), kwargs))
        return
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        encoder = Path(folder) / "encoder"
        quiet = times(Path(folder), arguments.repeats, SIZES | VERIFIED)
        quiet |= times(encoder, arguments.repeats, ENCODER)
        with one_busy_process():
            busy = times(Path(folder), arguments.repeats, SIZES, allowance=1.5)
            busy |= times(encoder, arguments.repeats, ENCODER, allowance=1.5)
        results = {
            "command": "python tests/benchmarks/loading.py",
            "hardware": device_name(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "python": platform.python_version(),
            "time": quiet,
            "time_with_one_busy_process": busy,
            "peak_memory": peaks(Path(folder), 3),
        }
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
