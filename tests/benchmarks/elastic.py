"""One elastic bundle, every depth and width, against the same sizes trained alone: see `protocol.py`.

    python tests/benchmarks/elastic.py --data FOLDER --work DIR [--rows "dense;one"] [--scale fashion]
    python tests/benchmarks/elastic.py --data FOLDER --work DIR --collect FILE.json

`alone` is a stock ViT of one size, for the dense network's epochs; `alone, long` sees as many pictures as the bundle
of the row `one`. The other rows train one bundle; how many epochs that are follows from the cost and from what a step
draws. Measured is every size, through `from_pretrained`.
"""

from protocol import main
from scales import Row, Scale, alone, dense, grid, label


COST = 2.0  # in trainings of the dense network


def rows(scale: Scale) -> dict[str, Row]:
    sizes = [(depth, width) for depth in scale.depths for width in scale.widths]
    full, middle = scale.depths[-1], scale.depths[1]
    long = [(scale.depths[0], scale.widths[0]), (middle, scale.widths[1]), (scale.depths[0], "1"), (full, "1")]
    every, all_components = grid(scale), {"schedule": "elastic", "degree_weight": 0.0, "totals": (scale.model.depth,)}
    widths = {**all_components, "widths": scale.widths[:-1]}
    both = {**widths, "depths": scale.depths[:-1]}
    prefixes = {**both, "totals": scale.totals, "degree_weight": 1.0}
    published = {"sampling": "scala", "full_first": 0.1, "isolated_activation": True, "distillation": "hard"}
    at_full_depth = tuple(label(full, width) for width in scale.widths)
    return {
        "dense": dense(scale),
        **{f"alone, {label(*size)}": alone(scale, *size) for size in sizes if size != (full, "1")},
        "one": Row(every, both, cost=COST),
        **{f"alone, long, {label(*size)}": alone(scale, *size, pictures_of="one") for size in long},
        "one, full share 0.5": Row(every, {**both, "full_share": 0.5}, cost=COST),
        "sandwich": Row(every, {**both, "sampling": "sandwich"}, cost=COST),
        "scala's networks": Row(every, {**both, "sampling": "scala"}, cost=COST),
        "scala as published": Row(every, {**widths, **published}, cost=COST, judged=at_full_depth),
        "scala as published, depths drawn": Row(every, {**both, **published}, cost=COST),
        "one, isolated activation": Row(every, {**both, "isolated_activation": True}, cost=COST),
        "one, prefixes": Row(every, prefixes, cost=COST),
        "one, prefixes, 4 networks": Row(every, {**prefixes, "networks": 4}, cost=COST),
        "one, prefixes, 4 networks, at the dense network's cost": Row(every, {**prefixes, "networks": 4}),
        "one, prefixes, 8 networks": Row(every, {**prefixes, "networks": 8}, cost=COST),
        "not trained for it": Row(every, {**all_components, "schedule": "simultaneous"}, judged=(label(full, "1"),)),
        "one, from a trained bundle": Row(every, both, cost=COST, init="not trained for it"),
    }


if __name__ == "__main__":
    main(rows, "elastic.py", __doc__.splitlines()[0])
