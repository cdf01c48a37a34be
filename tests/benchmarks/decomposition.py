"""Schedules, presets, degree weights against a dense ViT, every row at the dense network's cost: see `protocol.py`.

    python tests/benchmarks/decomposition.py --data FOLDER --work DIR [--rows "dense;incremental"] [--scale fashion]
    python tests/benchmarks/decomposition.py --data FOLDER --work DIR --collect FILE.json

Measured is every prefix of the components, at the trained depth.
"""

from protocol import main
from scales import Row, Scale, dense, prefixes


def rows(scale: Scale) -> dict[str, Row]:
    every, full = prefixes(scale), str(scale.totals[-1])

    def bundle(*judged: str, **settings) -> Row:
        return Row(every, {"degree_weight": 0.0, **settings}, judged=judged)

    return {
        "dense": dense(scale),
        "simultaneous": bundle(full, schedule="simultaneous"),
        "simultaneous, degree weight 1": bundle(full, schedule="simultaneous", degree_weight=1.0),
        "incremental, paper": bundle(schedule="incremental", preset="paper"),
        "incremental": bundle(schedule="incremental"),
        "incremental, degree weight 1": bundle(schedule="incremental", degree_weight=1.0),
        "incremental, outside frozen": bundle(schedule="incremental", freeze_outside=True),
        "elastic": bundle(schedule="elastic"),
        "elastic, degree weight 1": bundle(schedule="elastic", degree_weight=1.0),
        "elastic, degree weight 1, 4 networks": bundle(schedule="elastic", degree_weight=1.0, networks=4),
    }


if __name__ == "__main__":
    main(rows, "decomposition.py", __doc__.splitlines()[0])
