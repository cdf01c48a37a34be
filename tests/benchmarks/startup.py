"""What importing the package adds to importing transformers' ViT, and `lingene --help` to importing the package.

    python tests/benchmarks/startup.py [--out tests/benchmarks/results/startup.json]

Each in fresh processes, in turn; medians of the differences, seconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from modeling_lingene.measuring.metrics import device_name


IMPORT = """
import time
from transformers import ViTForImageClassification
start = time.perf_counter()
import modeling_lingene
print(time.perf_counter() - start)
"""


def run(*command: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    package, cli = [], []
    for _ in range(arguments.repeats):
        package.append(float(run(sys.executable, "-c", IMPORT)[1]))
        alone, _ = run(sys.executable, "-c", "import modeling_lingene")
        cli.append(run(sys.executable, "-m", "modeling_lingene.cli", "--help")[0] - alone)
    results = {
        "command": "python tests/benchmarks/startup.py",
        "hardware": device_name(),
        "package_over_vit_seconds": {"median": round(statistics.median(package), 3), "limit": 0.3},
        "help_over_package_seconds": {"median": round(statistics.median(cli), 3), "limit": 0.5},
    }
    print(json.dumps(results, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
