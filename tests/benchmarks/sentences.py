"""What the training tables say, in words that are computed from them.

python tests/benchmarks/sentences.py          prints them; render_readme.py puts them where they are read
"""

import json
from collections import Counter
from collections.abc import Iterable

from comparing import LEAST, RESULTS, Table, counted, points, with_range
from converted import backbone, conversion

from modeling_lingene.pruning.settings import PruneSettings


def protocol(table: Table) -> list[str]:
    shown, teacher = table.results["protocol"], table.results["teacher"]
    images, seeds = shown["images"], len(shown["seeds"])
    machines = " and ".join(dict.fromkeys(row["hardware"] for row in table.rows.values()))
    versions = ", ".join(dict.fromkeys(row["versions"]["torch"].partition("+")[0] for row in table.rows.values()))
    epochs = shown["epochs of the dense network"]
    said = (
        f"{images['set']}: {images['train']:,} images train, {images['validation']:,} choose, {images['test']:,} are "
        f"reported; {seeds} seed{'s' * (seeds > 1)}; the dense network trains for {epochs} epochs. {machines}, "
        f"torch {versions}."
    )
    if teacher:
        said += (
            f" The teacher ({points(teacher['test'])} %) takes {100 * teacher['share']:.0f} % of the MACs of the "
            "dense network's training, and its MACs are counted in every row."
        )
    if len(shown["rates"]) == 1:
        said += f" No learning rate was chosen: every row has {shown['rates'][0]:g}."
    return [said]


WORDS = {"better": "above", "worse": "below", "equal": "equal to"}


def schedules(table: Table | None = None) -> list[str]:
    table = table or Table.read("schedules_fashion")
    said = protocol(table)
    if not table.has("incremental", "elastic, degree weight 1"):
        return said
    elastic, incremental = best_of(table, "elastic"), best_of(table, "incremental")
    said += beside_dense(table, (best_of(table, "simultaneous"), incremental, elastic))
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


def swin(table: Table | None = None) -> list[str]:
    """A network of stages, components in the deepest."""
    table = table or Table.read("schedules_swin")
    elastic = best_of(table, "elastic")
    said = [*protocol(table), *beside_dense(table, (elastic,))]
    if not table.has("incremental"):
        return said
    incremental = best_of(table, "incremental")
    return said + [
        *beside_dense(table, (incremental,)),
        f"`{elastic}` against `{incremental}`, prefix by prefix: {table.against(elastic, incremental)}.",
    ]


def best_of(table: Table, schedule: str) -> str:
    """The row of a schedule with the best mean validation accuracy over the prefixes."""
    rows = [name for name in table.rows if name.partition(",")[0] == schedule]
    return max(rows, key=lambda name: table.average(name, "validation"))


DEFAULT_ROW = "one, prefixes, 4 networks"  # of `sizes_*.json`


def sizes(table: Table | None = None, bundle: str = DEFAULT_ROW) -> list[str]:
    """The default bundle against its sizes alone, and against the other samplings."""
    table = table or Table.read("sizes_fashion")
    said = protocol(table)
    one, sizes, largest = table.rows[bundle], table.labels(bundle), table.labels("dense") if table.has("dense") else []
    twins = {label: "dense" if label in largest else f"alone, {label}" for label in sizes}
    twins = {label: name for label, name in twins.items() if table.has(name)}  # rows are added as they are run
    long = {label: f"alone, long, {label}" for label in sizes if table.has(f"alone, long, {label}")}

    def beside(name: str, others: dict[str, str]) -> str:
        return counted([table.compare(name, other, label) for label, other in others.items()])

    costs = f"The bundle (`{bundle}`, the default) costs {one['cost']:.2f} trainings of the largest network"
    if len(twins) > 1 and largest:
        together, seen = sum(table.rows[name]["cost"] for name in twins.values()), table.rows["dense"]["pictures"]
        of = "the" if len(twins) == len(sizes) else f"of the {len(sizes)} sizes"
        said += [
            f"{costs} and sees {one['pictures'] / seen:.1f} times the pictures of each size alone; {of} {len(twins)} "
            f"trained alone cost {together:.2f} together.",
            f"Against these, trained for the largest one's epochs, the bundle is {beside(bundle, twins)}.",
        ]
    else:
        said.append(f"{costs}.")
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
    if table.has(cheap := f"{bundle}, at the dense network's cost"):
        said.append(f"At the cost of the largest network alone the bundle is {beside(cheap, twins)}.")
    others = sorted(
        (name for name in table.rows if name in SAMPLINGS), key=lambda name: -table.average(name, "validation")
    )
    ranked = [
        f"`{name}` {points(table.average(name, 'validation'))} at a cost of {table.rows[name]['cost']:.2f}"
        for name in others
    ]
    if len(ranked) > 1:
        said.append(f"Mean over the sizes on the validation part: {', '.join(ranked)}.")
    pairs = [(name, bundle) for name in others if name != bundle] + list(PAIRS)
    said += [
        f"`{name}` against `{other}`, size by size: {table.against(name, other)}."
        for name, other in pairs
        if table.has(name, other)
    ]
    return said


SAMPLINGS = (
    "one",
    "one, full share 0.5",
    "sandwich",
    "scala's networks",
    "scala as published",
    "scala as published, depths drawn",
    "one, isolated activation",
    "one, prefixes",
    "one, prefixes, 4 networks",
    "one, prefixes, 8 networks",
    "one, from a trained bundle",
)
# Rows that differ in one thing alone.
PAIRS = (
    ("one, prefixes", "one"),
    ("one, from a trained bundle", "one"),
    ("one, full share 0.5", "one"),
    ("one, isolated activation", "one"),
)


def fourth_seed() -> list[str]:
    """Whether what three seeds say holds with one more."""
    said = []
    for name, sentences in AGAIN.items():
        table = Table.read(name)
        sentences(table)
        said.append(f"`{name}.json`: {stayed(table.verdicts)}.")
    return said


def cifar() -> list[str]:
    """A bundle in colour."""
    return sizes(Table.read("sizes_cifar"))


def stayed(verdicts: dict[tuple[str, str, str], tuple[str, str]]) -> str:
    """How many verdicts are the same with one more seed, and of which rows some are not."""
    changed = {key: pair for key, pair in verdicts.items() if pair[0] != pair[1]}
    said = f"{len(verdicts) - len(changed)} of {len(verdicts)} verdicts of three seeds are the same with a fourth"
    if not changed:
        return said
    turned = [pair for pair in changed.values() if "equal" not in pair]
    rows = Counter((one, other) for one, other, _ in changed)
    told = [f"`{one}` against `{other}` ({count})" for (one, other), count in rows.items()]
    return f"{said}, {len(turned)} turn round; those that are not count as equal above: {', '.join(told)}"


THAN = {"better": "better than", "worse": "worse than", "equal": "equal to"}


DEFAULT = PruneSettings(target_macs=0.5).search


def pruning(table: Table | None = None) -> list[str]:
    """Networks pruned by the default search, and by the published one, against all else that they could be."""
    table, long = table or Table.read("pruning_fashion"), "dense, long"
    said = [
        *protocol(table),
        "Pruned networks were trained as dense ones first: `dense` saw a third of their pictures.",
    ]
    for share in (70, 50):
        found, *others = (f"{way}, {share} of 100" for way in (DEFAULT, "published", "random", "smaller"))
        beside = [than(table, found, name) for name in ("dense", long, *others)]
        said.append(f"At {share} % of the MACs {costing(table, found)} is {'; '.join(beside)}.")
        published, *others = others
        beside = [than(table, published, name) for name in (long, *others)]
        said.append(f"{costing(table, published)} is {'; '.join(beside)}.")
    half, unpruned = f"{DEFAULT}, 50 of 100", "smaller, 50 of 100"
    said += gates_tried(table, "published, 50 of 100")
    (label,) = table.labels(half)
    dense, longer, above = (table.compare(half, name, label) for name in ("dense", long, unpruned))
    near = ["met" if difference >= -LEAST else "not met" for _, difference in (dense, longer)]
    said.append(
        f"Aims at half of the MACs, `{half}`: within half a point of the dense network, "
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
    return [
        f"Higher learning rates of the gates, one run each, on the validation part, where less than two points say "
        f"nothing: {', '.join(told)}."
    ]


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


def tuning(table: Table | None = None) -> list[str]:
    table = table or Table.read("tuning")
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


AGAIN = {  # tables of which every row was run with a fourth seed
    "schedules_fashion": schedules,
    "sizes_fashion": sizes,
    "schedules_swin": swin,
    "pruning_fashion": pruning,
    "tuning": tuning,
}


PLAIN = "half width, saved plain"  # what no way of loading can be below


def loading() -> list[str]:
    results = json.loads((RESULTS / "loading.json").read_text(encoding="utf-8"))
    said = []
    for table, where in (("time", "alone"), ("time_with_one_busy_process", "beside one busy process")):
        shown = []
        for name, row in results[table].items():
            if row["limit"]:
                met = "met" if row["ratio"] <= row["limit"] else "not met"
                shown.append(f"{name} {row['ratio']:.2f} (aim {row['limit']:.2f}, {met})")
        own = f"the half width, saved plain for itself, by stock loading {results[table][PLAIN]['ratio']:.2f}"
        said.append(f"Times stock loading, {where}: {', '.join(shown)}; {own}.")
    plain, checked = (results["time"][f"12 of 12 components{end}"]["seconds"] for end in ("", ", verified"))
    said.append(
        f"`verify=True` reads every file once more and hashes it: {checked:.2f} s in place of {plain:.2f} s for 12 of "
        "12 components of a ViT-Base."
    )
    return said


def elastic_cost() -> list[str]:
    """What steps of an elastic training take beside those of stock models, and a sweep beside its forward passes."""
    results = json.loads((RESULTS / "elastic_cost.json").read_text(encoding="utf-8"))
    limits = results["limits"]

    def spread(ratios: list[float], limit: float) -> str:
        met = "met" if max(ratios) <= limit else "not met"
        return f"{min(ratios):.2f} to {max(ratios):.2f} (aim {limit:.2f}, {met})"

    labelled = spread([row["ratio_to_stock"] for row in results["sampled"]], limits["sampled_size"])
    unlabelled = [row["ratio_to_stock_and_teacher"] for row in results["without_labels"]]
    shared, sweep = results["shared"], results["sweep"]
    return [
        f"A sampled size of a ViT-Small, forward and backward, times a stock ViT of that size: {labelled}; without "
        "labels, no patches masked, times the teacher and the stock ViT: "
        f"{spread(unlabelled, limits['without_labels'])}.",
        f"A step of {shared['networks']} networks that share its {shared['images']} images, times steps of one of "
        f"them each: {shared['ratio_to_one_network_a_step']:.2f}.",
        f"A sweep, times its forward passes alone: {sweep['ratio']:.2f} (aim {limits['sweep']:.2f}, "
        f"{'met' if sweep['ratio'] <= limits['sweep'] else 'not met'}). {results['hardware']}.",
    ]


SENTENCES = {"loading": loading, "conversion": conversion, "schedules": schedules, "sizes": sizes}
SENTENCES |= {"backbone": backbone, "swin": swin, "pruning": pruning}
SENTENCES |= {"tuning": tuning, "cifar": cifar, "fourth seed": fourth_seed, "elastic cost": elastic_cost}


if __name__ == "__main__":
    for name, sentences in SENTENCES.items():
        print(name, *(f"* {said}" for said in sentences()), sep="\n")
