"""Time per image and size of the file of every target in conversion/DEVICES.md, beside eager torch.

    python tests/benchmarks/devices.py [--out tests/benchmarks/results/devices.json]
    python tests/benchmarks/devices.py --render

The page's own lines, on a random ViT of 3 layers, 192 channels and 224 x 224 pixels; one core, one thread, one image,
the target and eager torch in turn, medians, the ratio pair by pair. Targets whose library is missing keep the numbers
that the file has; `--render` writes the page's table from it.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification

from modeling_lingene.measuring.metrics import device_name
from modeling_lingene.measuring.tables import bytes_shown


PAGE = Path(__file__).parents[2] / "conversion" / "DEVICES.md"
RESULTS = Path(__file__).parent / "results" / "devices.json"
# Name in the page -> what is imported, whose version counts, the flag of `lingene export`.
TARGETS = {
    "ExecuTorch": ("executorch", "executorch", "executorch"),
    "OpenVINO": ("openvino", "openvino", "openvino"),
    "ONNX Runtime": ("onnxruntime", "onnxruntime", "onnx"),
    "AOTInductor": ("torch", "torch", None),
    "LiteRT": ("litert_torch", "litert-torch", None),
    "Core ML": ("coremltools", "coremltools", None),
}
NETWORK = dict(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_hidden_layers=3, num_labels=1000)


def lines() -> tuple[str, dict[str, str]]:
    """What all targets begin with, and the lines of each."""
    first, *rest = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return first, dict(zip(TARGETS, rest, strict=True))


def missing(target: str) -> str | None:
    """The package that a target lacks here."""
    module, package = TARGETS[target][:2]
    return None if importlib.util.find_spec(module) else package


def milliseconds(run, images: torch.Tensor) -> float:
    start = time.perf_counter()
    run(images)
    return 1000 * (time.perf_counter() - start)


def timed(run, eager, images: torch.Tensor, repeats: int) -> dict:
    for thread in os.listdir("/proc/self/task"):  # onnxruntime gives its own the cores that it likes
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread), os.sched_getaffinity(0))
    for _ in range(5):
        run(images), eager(images)
    pairs = [(milliseconds(run, images), milliseconds(eager, images)) for _ in range(repeats)]
    ratios = sorted(ours / torchs for ours, torchs in pairs)
    return {
        "ms": round(statistics.median(ours for ours, _ in pairs), 2),
        "eager_ms": round(statistics.median(torchs for _, torchs in pairs), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_quartiles": [round(ratios[len(ratios) // 4], 2), round(ratios[3 * len(ratios) // 4], 2)],
    }


@torch.no_grad()
def measure(target: str, repeats: int) -> dict:
    """One target, in the current folder, in which `size` lies."""
    begin, of_target = lines()
    names: dict = {}
    start = time.perf_counter()
    exec(begin, names)
    exec(of_target[target], names)
    row: dict = {"version": importlib.metadata.version(TARGETS[target][1])}
    row["written_s"] = round(time.perf_counter() - start)
    written = (path for path in Path().rglob("*") if path.is_file() and path.parts[0] != "size")
    row["bytes"] = sum(path.stat().st_size for path in written)
    if "run" in names:
        found, expected = torch.as_tensor(names["run"](names["images"])), names["model"](names["images"])
        row["relative_difference"] = float(f"{float((found - expected).abs().max() / expected.abs().max()):.1g}")
        stock = ViTForImageClassification.from_pretrained("size").eval()  # with torch's fused attention
        row |= timed(names["run"], stock, names["images"], repeats)
    return row


def table(results: dict) -> str:
    rows = ["| target | version | time / eager torch | file | `lingene export` |", "|---|---|---:|---:|---|"]
    for target, row in results["targets"].items():
        flag, ratio = TARGETS[target][2], "not run"
        if "ratio" in row:
            ratio = f"{row['ratio']:.2f} ({' - '.join(f'{value:.2f}' for value in row['ratio_quartiles'])})"
        cells = [target, row["version"].partition("+")[0], ratio, bytes_shown(row["bytes"])]
        rows.append(f"| {' | '.join([*cells, f'`--to {flag}`' if flag else ''])} |")
    return "\n".join([*rows, "", results["network"]])


def render(page: str, results: dict) -> str:
    mark = re.compile(r"(<!-- devices -->\n).*?(<!-- /devices -->)", flags=re.DOTALL)
    return mark.sub(lambda found: f"{found[1]}{table(results)}\n{found[2]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--only", choices=TARGETS, nargs="+", default=[*TARGETS])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--render", action="store_true", help="write the page's table from the results")
    arguments = parser.parse_args()
    if arguments.render:
        PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text())), encoding="utf-8")
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out = arguments.out
    known = json.loads(out.read_text())["targets"] if out and out.is_file() else {}
    model = ViTForImageClassification(ViTConfig(**NETWORK))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for target in arguments.only:
        if missing(target):
            print(f"{target}: {missing(target)} is missing here")
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            model.save_pretrained("size")
            known[target] = measure(target, arguments.repeats)
        print(target, known[target], flush=True)
    network = (
        f"One image of 224 x 224 pixels through 3 layers of 192 channels ({parameters / 1e6:.1f} M parameters, "
        f"random), float32, one core of a shared {device_name()}, torch {torch.__version__.partition('+')[0]}; "
        f"median of {arguments.repeats} pairs, in brackets the quartiles."
    )
    results = {"command": "python tests/benchmarks/devices.py", "network": network}
    results["targets"] = {target: known[target] for target in TARGETS if target in known}
    print(json.dumps(results, indent=2))
    if out:
        out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
