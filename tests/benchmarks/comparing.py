"""Rows of a results file against each other, in words.

A comparison of two rows at a size: better or worse where the mean test accuracies of the seeds differ by more than
half a point and the ranges of the seeds do not meet, and where one more seed of either was run, with that too; equal
otherwise. Of one seed, where they differ by more than two points.
"""

import json
import statistics
from pathlib import Path


RESULTS = Path(__file__).parent / "results"
LEAST, LEAST_OF_ONE = 0.005, 0.02  # of accuracy: smaller differences are called equal; of one seed the second


class Table:
    """A results file of `protocol.py`.

    Args:
        results: of the file.
        again: of a file that holds one more seed of the same rows; what does not hold with it is not said.
    """

    def __init__(self, results: dict, again: dict | None = None):
        self.results, self.rows = results, {row["row"]: row for row in results["rows"]}
        self.more = {row["row"]: row["test"] for row in again["rows"]} if again else {}
        self.verdicts: dict[
            tuple[str, str, str], tuple[str, str]
        ] = {}  # all asked for: of the seeds, and with one more

    @classmethod
    def read(cls, name: str) -> "Table":
        files = [RESULTS / f"{name}.json", RESULTS / f"{name}_again.json"]
        return cls(*(json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()))

    def has(self, *rows: str) -> bool:
        return all(row in self.rows for row in rows)

    def labels(self, row: str) -> list[str]:
        return list(self.rows[row]["test"])

    def mean(self, row: str, label: str) -> float:
        return statistics.mean(self.rows[row]["test"][label])

    def average(self, row: str, part: str = "test") -> float:
        """Over all sizes of a row and all seeds."""
        return statistics.mean(value for values in self.rows[row][part].values() for value in values)

    def compare(self, one: str, other: str, label: str) -> tuple[str, float]:
        """`better`, `worse` or `equal`, the first row against the second at a size, and the difference of the means.

        A row that measures one size alone is compared at that.
        """
        before, difference = verdict(*(self._tests(row, label, more=False) for row in (one, other)))
        after, _ = verdict(*(self._tests(row, label, more=True) for row in (one, other)))
        self.verdicts[one, other, label] = before, after
        return before if before == after else "equal", difference

    def _tests(self, row: str, label: str, more: bool) -> list[float]:
        """Of the seeds at a size, or at the only one there is."""
        tests = self.rows[row]["test"]
        label = label if label in tests else next(iter(tests))
        return tests[label] + (self.more.get(row, {}).get(label, []) if more else [])

    def against(self, one: str, other: str) -> str:
        """Over all sizes of a row, such as: better at 3 of 4 by 0.6 to 2.1 points, equal at 1 of 4."""
        return counted([self.compare(one, other, label) for label in self.labels(one)])


def verdict(one: list[float], other: list[float]) -> tuple[str, float]:
    """Accuracies of seeds against others', and the difference of the means."""
    difference = statistics.mean(one) - statistics.mean(other)
    least = LEAST if min(len(one), len(other)) > 1 else LEAST_OF_ONE
    if abs(difference) <= least or max(min(one), min(other)) <= min(max(one), max(other)):
        return "equal", difference
    return "better" if difference > 0 else "worse", difference


def counted(pairs: list[tuple[str, float]]) -> str:
    """Verdicts with their differences, in words."""
    parts = []
    for word in ("better", "equal", "worse"):
        found = [100 * abs(difference) for verdict, difference in pairs if verdict == word]
        if not found:
            continue
        of = " at all" if len(found) == len(pairs) else f" at {len(found)} of {len(pairs)}"
        of = of if len(pairs) > 1 else ""
        spread = f" by {between(found)} points" if word != "equal" else ""
        parts.append(f"{word}{of}{spread}")
    return ", ".join(parts)


def between(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def points(value: float) -> str:
    return f"{100 * value:.1f}"


def with_range(values: list[float]) -> str:
    """Mean, and least and most where they differ: 78.4 (78.2-78.5)."""
    low, high = points(min(values)), points(max(values))
    return points(statistics.mean(values)) + ("" if low == high else f" ({low}-{high})")
