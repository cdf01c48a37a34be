"""What the training tables say, in words that are computed from them.

    python tests/benchmarks/sentences.py          prints them; render_readme.py puts them where they are read

A comparison of two rows at a size: better or worse where the mean test accuracies of the seeds differ by more than
half a point and the ranges of the seeds do not meet; equal otherwise. Of one seed, where they differ by more than two
points.
"""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path


RESULTS = Path(__file__).parent / "results"
LEAST, LEAST_OF_ONE = 0.005, 0.02  # of accuracy: smaller differences are called equal; of one seed the second


class Table:
    """A results file of `protocol.py`.

    Args:
        results: of the file.
        again: of a file that holds one more seed of the same rows; its accuracies are put beside the others.
    """

    def __init__(self, results: dict, again: dict | None = None):
        self.results, self.rows = results, {row["row"]: row for row in results["rows"]}
        self.verdicts: dict[tuple[str, str, str], str] = {}  # all that were asked for
        for row in again["rows"] if again else ():
            tests = self.rows[row["row"]]["test"]
            self.rows[row["row"]] |= {"test": {label: tests[label] + values for label, values in row["test"].items()}}

    @classmethod
    def read(cls, name: str, again: bool = False) -> "Table":
        names = [name, f"{name}_again"] if again else [name]
        return cls(*(json.loads((RESULTS / f"{one}.json").read_text(encoding="utf-8")) for one in names))

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
        verdict, difference = self._compared(one, other, label)
        self.verdicts[one, other, label] = verdict
        return verdict, difference

    def _compared(self, one: str, other: str, label: str) -> tuple[str, float]:
        tests = self.rows[other]["test"]
        a, b = self.rows[one]["test"][label], tests.get(label) or next(iter(tests.values()))
        difference = statistics.mean(a) - statistics.mean(b)
        least = LEAST if min(len(a), len(b)) > 1 else LEAST_OF_ONE
        if abs(difference) <= least or max(min(a), min(b)) <= min(max(a), max(b)):
            return "equal", difference
        return "better" if difference > 0 else "worse", difference

    def against(self, one: str, other: str) -> str:
        """Over all sizes of a row, such as: better at 3 of 4 by 0.6 to 2.1 points, equal at 1 of 4."""
        return counted([self.compare(one, other, label) for label in self.labels(one)])


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


def protocol(table: Table) -> list[str]:
    shown, teacher = table.results["protocol"], table.results["teacher"]
    images, seeds = shown["images"], len(shown["seeds"])
    row = next(iter(table.rows.values()))
    epochs = shown["epochs of the dense network"]
    said = (
        f"{images['set']}: {images['train']:,} images train, {images['validation']:,} choose, {images['test']:,} are "
        f"reported; {seeds} seed{'s' * (seeds > 1)}; the dense network trains for {epochs} epochs. {row['hardware']}, "
        f"torch {row['versions']['torch'].partition('+')[0]}."
    )
    if teacher:
        said += (
            f" The teacher ({points(teacher['test'])} %) takes {100 * teacher['share']:.0f} % of the MACs of the "
            "dense network's training, and its MACs are counted in every row."
        )
    return [said]


WORDS = {"better": "above", "worse": "below", "equal": "equal to"}


def schedules(table: Table | None = None) -> list[str]:
    table = table or Table.read("schedules_fashion")
    said = protocol(table)
    if not table.has("incremental", "elastic, degree weight 1"):
        return said
    elastic, incremental = best_of(table, "elastic"), best_of(table, "incremental")
    said += beside_dense(table, ("simultaneous", incremental, elastic))
    said.append(
        f"At equal cost the single run that is best on the validation part (`{elastic}`) against the best incremental "
        f"one (`{incremental}`), prefix by prefix: {table.against(elastic, incremental)}."
    )
    pairs = [
        ("incremental, outside frozen", "incremental", "Freezing what lies outside the blocks after the first phase"),
        ("incremental, degree weight 1", "incremental", "A degree weight of 1 in incremental training"),
        ("elastic, degree weight 1", "elastic", "A degree weight of 1 in a single run"),
        ("simultaneous, degree weight 1", "simultaneous", "A degree weight of 1 in simultaneous training"),
        ("incremental, paper", "incremental", "The paper's coefficients in incremental training"),
        ("simultaneous, paper", "simultaneous", "The paper's coefficients in simultaneous training"),
        ("elastic, sandwich, degree weight 1", "elastic, degree weight 1", "Two networks a step instead of one"),
    ]
    said += [
        f"{what}, prefix by prefix: {table.against(one, other)}."
        for one, other, what in pairs
        if table.has(one, other)
    ]
    return said


def beside_dense(table: Table, names: Iterable[str]) -> list[str]:
    """Bundles with all their components and with one."""
    (dense,), said = table.rows["dense"]["test"].values(), []
    for name in names:
        first, *_, last = table.labels(name)
        tests, word = table.rows[name]["test"], WORDS[table.compare(name, "dense", last)[0]]
        said.append(
            f"`{name}`: {with_range(tests[last])} with all components, {word} the dense network "
            f"({with_range(dense)}), and {with_range(tests[first])} with one."
        )
    return said


def swin() -> list[str]:
    """A network of stages, components in the deepest."""
    table = Table.read("schedules_swin")
    elastic, incremental = best_of(table, "elastic"), best_of(table, "incremental")
    return [
        *protocol(table),
        *beside_dense(table, (incremental, elastic)),
        f"`{elastic}` against `{incremental}`, prefix by prefix: {table.against(elastic, incremental)}.",
    ]


def best_of(table: Table, schedule: str) -> str:
    """The row of a schedule with the best mean validation accuracy over the prefixes."""
    rows = [name for name in table.rows if name.partition(",")[0] == schedule]
    return max(rows, key=lambda name: table.average(name, "validation"))


def sizes(table: Table | None = None, bundle: str = "one") -> list[str]:
    """A bundle against its sizes alone, and the samplings."""
    table = table or Table.read("sizes_fashion")
    said = protocol(table)
    if not table.has(bundle, "dense"):
        return said
    one, sizes = table.rows[bundle], table.labels(bundle)
    twins = {label: "dense" if label in table.labels("dense") else f"alone, {label}" for label in sizes}
    twins = {label: name for label, name in twins.items() if table.has(name)}  # rows are added as they are run
    long = {label: f"alone, long, {label}" for label in sizes if table.has(f"alone, long, {label}")}

    def beside(name: str, others: dict[str, str]) -> str:
        return counted([table.compare(name, other, label) for label, other in others.items()])

    what = {"one": ": one network a step, of all components", "one, prefixes": ", the default"}[bundle]
    together, seen = sum(table.rows[name]["cost"] for name in twins.values()), table.rows["dense"]["pictures"]
    of = "the" if len(twins) == len(sizes) else f"of the {len(sizes)} sizes"
    said += [
        f"The bundle (`{bundle}`{what}) costs {one['cost']:.2f} trainings of the largest "
        f"network and sees {one['pictures'] / seen:.1f} times the pictures of each size alone; {of} {len(twins)} "
        f"trained alone cost {together:.2f} together.",
        f"Against these, trained for the largest one's epochs, the bundle is {beside(bundle, twins)}.",
    ]
    if long:
        cost = sum(table.rows[name]["cost"] for name in long.values())
        numbers = [
            f"{label}: {with_range(one['test'][label])} against {with_range(table.rows[name]['test'][label])}"
            for label, name in long.items()
        ]
        said.append(
            f"Against sizes alone that see as many pictures as the bundle ({len(long)} of them, {cost:.2f} trainings "
            f"of the largest), the bundle is {beside(bundle, long)}. {'; '.join(numbers)}."
        )
    if table.has(CHEAP):
        said.append(f"At the cost of the largest network alone the bundle is {beside(CHEAP, twins)}.")
    others = sorted(
        (name for name in table.rows if name in SAMPLINGS), key=lambda name: -table.average(name, "validation")
    )
    if others == [bundle]:
        return said
    ranked = [
        f"`{name}` {points(table.average(name, 'validation'))} at a cost of {table.rows[name]['cost']:.2f}"
        for name in others
    ]
    said.append(f"Mean over the sizes on the validation part: {', '.join(ranked)}.")
    said += [
        f"`{name}` against `{bundle}`, size by size: {table.against(name, bundle)}."
        for name in others
        if name != bundle
    ]
    return said


CHEAP = "one, at the dense network's cost"
SAMPLINGS = (
    "one",
    "one, full share 0.5",
    "sandwich",
    "scala's networks",
    "scala as published",
    "scala as published, depths drawn",
    "one, isolated activation",
    "one, prefixes",
    "one, from a trained bundle",
)


def fourth_seed() -> list[str]:
    """Whether what is said of three seeds holds with one more."""
    said = []
    for name, sentences in (("schedules_fashion", schedules), ("sizes_fashion", sizes)):
        if (RESULTS / f"{name}_again.json").is_file():
            three, four = Table.read(name), Table.read(name, again=True)
            sentences(three), sentences(four)
            said.append(f"`{name}.json`: {stayed(three.verdicts, four.verdicts)}.")
    return said or ["Still to be run."]


def cifar() -> list[str]:
    """A bundle in colour, of the default training."""
    return sizes(Table.read("sizes_cifar"), bundle="one, prefixes")


def stayed(before: dict[tuple[str, str, str], str], after: dict[tuple[str, str, str], str]) -> str:
    """How many verdicts are the same, and which are not."""
    changed = [key for key in before if after[key] != before[key]]
    told = [f"`{key[0]}` against `{key[1]}`, {key[2]}, from {before[key]} to {after[key]}" for key in changed]
    turned = [key for key in changed if "equal" not in (before[key], after[key])]
    said = f"{len(before) - len(changed)} of {len(before)} verdicts are the same with a fourth seed"
    return f"{said}, {len(turned)} turned round; changed: {'; '.join(told)}" if told else said


THAN = {"better": "better than", "worse": "worse than", "equal": "equal to"}


def pruning() -> list[str]:
    """Networks pruned by the published search against all else that they could be."""
    table, long = Table.read("pruning_fashion"), "dense, long"
    said = [
        *protocol(table),
        "Pruned networks were trained as dense ones first: `dense` saw a third of their pictures.",
    ]
    for share in (70, 50):
        found, *others = (f"{way}, {share} of 100" for way in ("published", "none", "random", "smaller"))
        if table.has(found):
            others = [name for name in ("dense", long, *others) if table.has(name)]
            beside = [than(table, found, name) for name in others]
            said.append(f"At {share} % of the MACs {costing(table, found)} is {'; '.join(beside)}.")
    half, unpruned = "published, 50 of 100", "smaller, 50 of 100"
    said += gates_tried(table, half)
    if table.has(half, unpruned, long):
        (label,) = table.labels(half)
        dense, longer, above = (table.compare(half, name, label) for name in ("dense", long, unpruned))
        near = ["met" if difference >= -LEAST else "not met" for _, difference in (dense, longer)]
        said.append(
            "Aims at half of the MACs: within half a point of the dense network, "
            f"{near[0]} against the one that was pruned, {near[1]} against the one that saw as many pictures; above "
            f"the unpruned size of equal MACs, {'met' if above[0] == 'better' else 'not met'}."
        )
    return said


def gates_tried(table: Table, published: str) -> list[str]:
    """Learning rates of the gates beside the published one, of single runs."""
    tried = table.results.get("tried", {})
    if not (tried and table.has(published)):
        return []
    told = [
        f"{points(accuracy)} at `{name.partition(',')[0]}` against {points(table.rows[published]['rates'][rate])}"
        for name, accuracies in tried.items()
        for rate, accuracy in accuracies.items()
    ]
    return [f"Higher learning rates of the gates, one run each, on the validation part: {', '.join(told)}."]


def costing(table: Table, row: str) -> str:
    """A row that measures one network: `name` (83.1 (82.9-83.4), cost 2.98)."""
    (accuracies,) = table.rows[row]["test"].values()
    return f"`{row}` ({with_range(accuracies)}, cost {table.rows[row]['cost']:.2f})"


def than(table: Table, one: str, other: str) -> str:
    """Two rows that measure one network each: better than `name` (...) by 1.2 points."""
    (label,) = table.labels(one)
    word, difference = table.compare(one, other, label)
    by = "" if word == "equal" else f" by {points(abs(difference))} points"
    return f"{THAN[word]} {costing(table, other)}{by}"


def tuning() -> list[str]:
    table = Table.read("tuning")
    tuned = {start: [name for name in table.rows if name.startswith(start)] for start in ("free", "constrained")}

    def beside(names: list[str], other: str) -> str:
        pairs = []
        for name in names:
            (size,) = table.labels(name)
            twin = f"{other}, {size}" if table.has(f"{other}, {size}") else "dense"
            pairs.append(table.compare(name, twin, size))
        return counted(pairs)

    return [
        *protocol(table),
        f"Tuned freely against scratch: {beside(tuned['free'], 'scratch')}.",
        f"Tuned with the constraint against scratch: {beside(tuned['constrained'], 'scratch')}.",
        f"With the constraint against without: {beside(tuned['constrained'], 'free')}.",
    ]


def conversion() -> list[str]:
    results = json.loads((RESULTS / "conversion_fashion.json").read_text(encoding="utf-8"))
    rows = {(row["start"], row["num_components"]): row for row in results["rows"]}
    source, counts = results["source"]["accuracy"], sorted({row["num_components"] for row in results["rows"]})
    said = [
        f"A stock ViT of {results['depth']} layers ({points(source)} %), 512 unlabelled images of its training set, "
        "healing with the source as teacher, one seed; differences under 2 points say nothing here. "
        f"{results['rows'][0]['hardware']}."
    ]
    for count in counts:
        row = rows["matched", count]
        said.append(
            f"{count} components, the default fit (`matched`): {points(row['untrained'])} untrained, "
            f"{points(row['1 epochs'])} after one epoch, {points(row['3 epochs'])} after three."
        )
    for stage, when in (("untrained", "untrained"), ("3 epochs", "after three epochs")):
        behind = {count: _behind(rows, count, stage) for count in counts}
        shown = [f"{', '.join(names) or 'none'} at {count} components" for count, names in behind.items()]
        said.append(f"At least 2 points behind `matched`, {when}: {'; '.join(shown)}.")
    return said


def _behind(rows: dict, count: int, stage: str) -> list[str]:
    """The starts that are at least 2 points behind the default fit."""
    others = [row for (start, number), row in rows.items() if number == count and start != "matched" and row[stage]]
    return [f"`{row['start']}`" for row in others if rows["matched", count][stage] - row[stage] >= 0.02]


def backbone_rows() -> dict[str, dict]:
    """By name; their sizes by (layers, width, components)."""
    rows = json.loads((RESULTS / "backbone.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        row["sizes"] = {(one["depth"], one["width_ratio"], one["num_components"]): one for one in row["sizes"]}
    return {row["row"]: row for row in rows}


def backbone() -> list[str]:
    """Only what lies further apart than chance: two standard errors of a difference of judged pictures."""
    results = json.loads((RESULTS / "backbone.json").read_text(encoding="utf-8"))
    rows, (trained, _, voters, judged) = backbone_rows(), results["pictures"]
    chance = 2 * (2 * 0.25 / judged) ** 0.5
    first = next(iter(rows.values()))
    said = [
        f"The source is a trained ViT-S/14 at 126 pixels; up to {trained:,} unlabelled pictures of Imagenette train, "
        f"{voters:,} with labels vote or fit the probe, {judged:,} are judged; one seed, so that differences under "
        f"{points(chance)} points of k-NN or probe say nothing. {first['hardware']}, torch "
        f"{first['versions']['torch'].partition('+')[0]}."
    ]
    rotated = rows["untrained, rotated"]["sizes"]
    for other, what in (("sorted", "the earlier `--sort`"), ("plain", "no sorting")):
        if f"untrained, {other}" in rows:
            sizes = rows[f"untrained, {other}"]["sizes"]
            told = [
                f"{rotated[size]['cosine']:.2f} against {sizes[size]['cosine']:.2f} at {size[1]} of the width"
                for size in rotated
                if size[1] != "1"
            ]
            said.append(
                f"Untrained, cosine of the class token with the source, `--sort` against {what}: {', '.join(told)}."
            )
    said += fits(rows) + rates(rows) + alone_at_each_width(rows, chance)
    return said + [
        f"`{one}` against `{other}`, the probe at each width: {beside(rows[one], rows[other], chance)}."
        for one, other in BESIDE
        if one in rows and other in rows
    ]


def alone_at_each_width(rows: dict[str, dict], chance: float) -> list[str]:
    """The bundle's widths against each trained by itself for as many pictures, by the probe."""
    bundle, told = rows["elastic, rotated, 1"], []
    for (_, width, _), one in bundle["sizes"].items():
        row = rows.get(f"alone, {width}, 1")
        if row and row["pictures"] == bundle["pictures"]:
            (other,) = row["sizes"].values()
            word = verdict(one["probe"] - other["probe"], chance)
            told.append(f"{word} at {width} ({points(one['probe'])} and {points(other['probe'])})")
    if not told:
        return []
    return [f"`elastic, rotated, 1` against a width trained alone for as many pictures, the probe: {', '.join(told)}."]


def fits(rows: dict[str, dict]) -> list[str]:
    """What fewer components than layers take."""
    told = [
        f"{row['row']} {row['fit']['seconds']:.0f} s and {row['fit']['peak_gib']:.1f} GiB (the whole process) with "
        f"{row['fit']['threads']} {'thread' if row['fit']['threads'] == 1 else 'threads'}"
        for row in rows.values()
        if "fit" in row
    ]
    return [f"The default fit on 256 pictures of 82 tokens: {'; '.join(told)}."] if told else []


def rates(rows: dict[str, dict]) -> list[str]:
    """What each learning rate came to; a row whose lowest was the best says so."""
    said = []
    for name, row in rows.items():
        if "rates" in row:
            losses = {float(rate): loss for rate, loss in row["rates"].items()}
            told = ", ".join(f"{loss:.2f} at {rate:g}" for rate, loss in sorted(losses.items()))
            edge = "; the lowest that was tried is the best" if row["rate"] == min(losses) else ""
            said.append(
                f"`{name}`: mean loss of its sizes on the validation part after a try of each rate, {told}{edge}."
            )
    return said


BESIDE = (
    ("elastic, rotated, 1", "untrained, rotated"),
    ("elastic, rotated, 1", "elastic, plain, 1"),
    ("elastic, rotated, 1", "elastic, sorted, 1"),
    ("elastic, rotated, 3", "elastic, rotated, 1"),
    ("depths, identity heads", "depths, linear heads"),
)


def verdict(difference: float, chance: float) -> str:
    return "equal" if abs(difference) < chance else "better" if difference > 0 else "worse"


def beside(one: dict, other: dict, chance: float) -> str:
    """The sizes that two rows share, by their probes, in words."""
    pairs = []
    for size in one["sizes"].keys() & other["sizes"].keys():
        difference = one["sizes"][size]["probe"] - other["sizes"][size]["probe"]
        pairs.append((verdict(difference, chance), difference))
    return counted(pairs)


def loading() -> list[str]:
    results = json.loads((RESULTS / "loading.json").read_text(encoding="utf-8"))
    said = []
    for table, where in (("time", "alone"), ("time_with_one_busy_process", "beside one busy process")):
        shown = []
        for name, row in results[table].items():
            if row["limit"]:
                met = "met" if row["ratio"] <= row["limit"] else "not met"
                shown.append(f"{name} {row['ratio']:.2f} (aim {row['limit']:.2f}, {met})")
        said.append(f"Times stock loading, {where}: {', '.join(shown)}.")
    plain, checked = (results["time"][f"12 of 12 components{end}"]["seconds"] for end in ("", ", verified"))
    said.append(
        f"`verify=True` reads every file once more and hashes it: {checked:.2f} s in place of {plain:.2f} s for 12 of "
        "12 components of a ViT-Base."
    )
    return said


SENTENCES = {"loading": loading, "conversion": conversion, "schedules": schedules, "sizes": sizes}
SENTENCES |= {"backbone": backbone, "swin": swin, "pruning": pruning}
SENTENCES |= {"cifar": cifar, "fourth seed": fourth_seed}


if __name__ == "__main__":
    for name, sentences in SENTENCES.items():
        print(name, *(f"* {said}" for said in sentences()), sep="\n")
