"""What importing the package adds to importing transformers' ViT, and what `lingene --help` costs beside `python`.

    python tests/benchmarks/startup.py [--out tests/benchmarks/results/startup.json]

Each in fresh processes, in turn; medians of the differences, seconds; of the help page in CPU time, which does not
change with the load.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from modeling_lingene.measuring.metrics import device_name


IMPORT = """
import time
from transformers import ViTForImageClassification
start = time.perf_counter()
import modeling_lingene
print(time.perf_counter() - start)
"""


def run(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


def cpu_seconds(*arguments: str) -> float:
    """Of a Python process: its own, and the system's for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    package, cli = [], []
    for _ in range(arguments.repeats):
        package.append(float(run("-c", IMPORT)))
        cli.append(cpu_seconds("-m", "lingene", "--help") - cpu_seconds("-c", "pass"))
    results = {
        "command": "python tests/benchmarks/startup.py",
        "hardware": device_name(),
        "package_over_vit_seconds": {"median": round(statistics.median(package), 3), "limit": 0.3},
        "help_over_python_cpu_seconds": {"median": round(statistics.median(cli), 3), "limit": 0.5},
    }
    print(json.dumps(results, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
