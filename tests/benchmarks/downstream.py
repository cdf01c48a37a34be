"""Sizes of an elastic bundle tuned on other images, against the same sizes from scratch: see `protocol.py`.

    python tests/benchmarks/downstream.py --data FOLDER --bundle BUNDLE --work DIR [--rows NAMES]
    python tests/benchmarks/downstream.py --data FOLDER --bundle BUNDLE --work DIR --collect FILE.json

Starts: `scratch`, a stock ViT of that size; `free`, the size that `from_pretrained` gives; `constrained`, its
components, which `constrained=True` gives. What was tuned is saved and loaded again before it is measured. The bundle
is that of the row `one, prefixes, 4 networks` of `elastic.py` with the first seed.
"""

from protocol import main
from scales import Row, Scale, alone, dense, label


def rows(scale: Scale) -> dict[str, Row]:
    sizes = list(zip(scale.depths[::-1], ("1", "1/2", "1/4")))
    tuned = {
        f"{start}, {label(*size)}": Row({label(*size): {}}, size=size, start=start)
        for size in sizes
        for start in ("free", "constrained")
    }
    return {"dense": dense(scale), **{f"scratch, {label(*size)}": alone(scale, *size) for size in sizes[1:]}, **tuned}


if __name__ == "__main__":
    main(rows, "downstream.py", __doc__.splitlines()[0], scale="tuning")
