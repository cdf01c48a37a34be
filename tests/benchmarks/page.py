"""How long the page takes to answer a change of size, without the browser and the network: cold and once held.

    python tests/benchmarks/page.py hub_cards/lingene-fashion-mnist [PICTURES]

Every measured size is shown twice, with a picture; the full one is held before, as it is after the first answer.
"""

import statistics
import sys
import time

from modeling_lingene.app.page import Page, samples
from modeling_lingene.app.sizes import read_bundles
from modeling_lingene.budget_lingene import device_name
from modeling_lingene.progress import quiet_loading


def main(name: str, images: str = "hub_cards/space/samples") -> None:
    page = Page(read_bundles([name]), samples(images))
    bundle = page.bundles[name]
    start = time.perf_counter()
    page.show(name, bundle.full.depth, "1", bundle.full.num_components, 0)
    print(f"first answer {time.perf_counter() - start:.2f} s, on {device_name()}")
    for kind in ("cold", "held"):
        seconds = []
        for row in bundle.rows:
            start = time.perf_counter()
            page.show(name, row["depth"], row["width_ratio"], row["num_components"], 0)
            seconds.append(time.perf_counter() - start)
        middle, worst = statistics.median(seconds), max(seconds)
        print(f"{kind}: median {1000 * middle:.0f} ms, worst {1000 * worst:.0f} ms of {len(seconds)} sizes")


if __name__ == "__main__":
    with quiet_loading():
        main(*sys.argv[1:])
