"""Fill the tables of README.md and of its pages, and this folder's sentences, from the measured files in `results/`.

python tests/benchmarks/render_readme.py
"""

import functools
import json
import re
import textwrap
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from comparing import Table, points, with_range
from converted import backbone_rows, rates, threads
from scales import SCALES, label
from sentences import DEFAULT_ROW, SENTENCES, sizes

from modeling_lingene.measuring.tables import size_table
from modeling_lingene.training.warm_start import NEW_RATES, new_rate


RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[2]


def quickstart_table() -> str:
    return size_table(json.loads((RESULTS / "quickstart.json").read_text())["sizes"])


def quickstart_time() -> str:
    run = json.loads((RESULTS / "quickstart.json").read_text())["run"]
    return f"{run['seconds']:.0f} seconds of training on one core of an {run['hardware'].partition(' (')[0]}"


def loading_table() -> str:
    results = json.loads((RESULTS / "loading.json").read_text())
    lines = ["| size | time | beside a busy process | peak memory |", "|---|---:|---:|---:|"]
    for name, time in results["time"].items():
        busy, peak = (results[table].get(name) for table in ("time_with_one_busy_process", "peak_memory"))
        cells = [f"{cell['ratio']:.2f}x" if cell else "" for cell in (time, busy, peak)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version.partition('+')[0]}" for name, version in results["versions"].items())
    return "\n".join([*lines, "", f"{results['hardware']}, {versions}."])


SHOWN = {
    "dense": "one stock ViT, alone",
    "simultaneous, degree weight 1": "all components at once (`--schedule simultaneous`)",
    "simultaneous": "all at once, coefficients undivided (`--degree-weight 0`)",
    "incremental, paper": "more and more of them, the paper's (`--method lindec`)",
    "incremental": "the same, our coefficients (`--schedule incremental`)",
    "incremental, degree weight 1": "the same, coefficients divided by degree + 1 (`--degree-weight 1`)",
    "incremental, outside frozen": "coefficients undivided, what lies outside frozen (`--freeze-outside`)",
    "elastic, degree weight 1": "one run, every prefix drawn, one network a step (`--networks 1`)",
    "elastic, degree weight 1, 4 networks": "the same, four networks share the images of a step: the default",
}


def decomposition_table() -> str:
    """What a choice between schedules needs."""
    return schedules_table(SHOWN)


STARTS = {
    "matched": "fit of all (`matched`, the default)",
    "aligned": "without matching (`aligned`)",
    "kronecker": "without aligning (`kronecker`)",
    "weighted": "inputs' metric, weighed by gradients (`weighted`)",
    "activations": "inputs' metric (`activations`)",
    "weights": "least squares, no images (`weights`)",
    "layers": "as many layers of the source, chosen",
    "random": "random components",
}


def conversion_table() -> str:
    results = json.loads((RESULTS / "conversion_fashion.json").read_text())
    counts = sorted({row["num_components"] for row in results["rows"]})
    rows = {(row["start"], row["num_components"]): row for row in results["rows"]}
    lines = [f"| start | {' | '.join(f'{count} comp.' for count in counts)} |", "|---|" + "---:|" * len(counts)]
    for start, name in STARTS.items():
        cells = []
        for count in counts:
            found = rows[start, count]["test"]
            shown = [found.get(stage) for stage in ("untrained", "1 epochs")]
            cells.append(" / ".join("-" if value is None else f"{100 * value:.1f}" for value in shown))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def conversion_about() -> str:
    results = json.loads((RESULTS / "conversion_fashion.json").read_text())
    error = max(row["standard_error"] for row in results["rows"])
    return "\n".join(
        textwrap.wrap(
            f"A ViT of {results['depth']} layers trained on Fashion-MNIST "
            f"({points(results['source']['accuracy'])} %), as a bundle: test accuracy untrained, then after one epoch "
            "of training with the source as teacher; one seed, standard error at most "
            f"{points(error)} points, a CPU experiment "
            "(`tests/benchmarks/results/conversion_fashion.json`):",
            119,
        )
    )


def schedules_table(names: dict[str, str] | None = None, results: str = "schedules_fashion") -> str:
    """The rows by these names, or all that are measured, with their learning rates."""
    table = Table.read(results)
    labels = [str(count) for count in SCALES[table.results["protocol"]["scale"]].totals]
    columns = ["training", *([] if names else ["rate"]), "cost", *(f"{label} comp." for label in labels)]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for name, row in table.rows.items():
        if names and name not in names:
            continue
        cells = [with_range(row["test"][label]) if label in row["test"] else "" for label in labels]
        if len(row["test"]) == 1:
            cells[-1] = with_range(*row["test"].values())
        before = [names[name]] if names else [name, f"{row['rate']:g}"]
        lines.append(f"| {' | '.join([*before, format(row['cost'], '.2f'), *cells])} |")
    return "\n".join(lines)


WAYS = {
    "alone": "each size alone, all of them",
    "alone, long": "some alone, for as many pictures as the bundle sees",
    "one, prefixes, 4 networks": "one bundle, the default: four networks share the images of a step",
    "one, prefixes": "the same, one network a step (`--networks 1`)",
    "scala as published, depths drawn": "one bundle, four networks for every image (`--method scala`), depths drawn",
}


def elastic_table() -> str:
    """What a choice between a bundle and networks of their own needs."""
    return sizes_table(WAYS)


def sizes_table(ways: dict[str, str] | None = None, results: str = "sizes_fashion") -> str:
    """The rows by these names, in their order, or all that are measured; what is trained alone, in one line. Means of
    the seeds, and how far these lie apart at most.
    """
    table = Table.read(results)
    scale = SCALES[table.results["protocol"]["scale"]]
    several = len(table.results["protocol"]["seeds"]) > 1
    columns = ["training", "cost", *(["seeds apart"] if several else []), *(f"width {one}" for one in scale.widths)]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    bundles = [name for name in table.rows if name != "dense" and not name.startswith("alone")]
    for row in ways or ("alone", "alone, long", *bundles):
        cells, names, apart = [], set(), []
        for width in scale.widths:
            found = [(_row_of(table, row, label(depth, width)), label(depth, width)) for depth in scale.depths]
            names |= {name for name, _ in found if name}
            seeds = [table.rows[name]["test"][size] for name, size in found if name]
            apart += [max(accuracies) - min(accuracies) for accuracies in seeds]
            cells.append(" / ".join(points(table.mean(name, size)) if name else "-" for name, size in found))
        if names:
            cost = sum(table.rows[name]["cost"] for name in names)
            before = [ways[row] if ways else row, f"{cost:.2f}", *([points(max(apart))] if several else [])]
            lines.append(f"| {' | '.join([*before, *cells])} |")
    return "\n".join(lines)


PRUNED = {
    "published": "`--search published`",
    "none": "`--search none`",
    "random": "`--search random`",
    "smaller": "an unpruned size, from scratch",
}


def pruning_table() -> str:
    """Every way to a share of the MACs: accuracy and cost; the dense network first."""
    table = Table.read("pruning_fashion")
    lines = ["| network | 70 % of the MACs | cost | 50 % of the MACs | cost |", "|---|---:|---:|---:|---:|"]

    def cells(name: str) -> list[str]:
        if not table.has(name):
            return ["", ""]
        (accuracies,), cost = table.rows[name]["test"].values(), table.rows[name]["cost"]
        return [with_range(accuracies), f"{cost:.2f}"]

    for name, what in (("dense", "dense, all its MACs"), ("dense, long", "the same for three times the epochs")):
        lines.append(f"| {what} | {' | '.join(2 * cells(name))} |")
    for way, what in PRUNED.items():
        both = [cell for share in (70, 50) for cell in cells(f"{way}, {share} of 100")]
        lines.append(f"| {what} | {' | '.join(both)} |")
    return "\n".join(lines)


def tuning_table() -> str:
    """Every size from every start."""
    table = Table.read("tuning")
    sizes = [size for name in table.rows if name.startswith("free, ") for size in table.labels(name)]
    lines = [f"| start | {' | '.join(sizes)} |", "|---|" + "---:|" * len(sizes)]
    for start in ("scratch", "free", "constrained"):
        rows = [f"{start}, {size}" if table.has(f"{start}, {size}") else "dense" for size in sizes]
        found = [(table.rows[name]["rate"], *table.rows[name]["test"].values()) for name in rows]
        cells = [f"{with_range(accuracies)}, rate {rate:g}" for rate, accuracies in found]
        lines.append(f"| {start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pruning_times() -> str:
    """A step of the search, and what half of the MACs are worth in time."""
    results = json.loads((RESULTS / "pruning_cost.json").read_text(encoding="utf-8"))
    step, speed = results["search_step"]["ratio"], [row["ratio"] for row in results["speed"]]
    said = (
        f"Of a ViT-Small, a step of the search takes {step:.2f} times a plain one, and networks of half its MACs "
        f"answer {min(speed):.1f} to {max(speed):.1f} times as fast as it, by what their layers became (batch 32, 197 "
        f"tokens, {results['hardware']}; `tests/benchmarks/results/pruning_cost.json`)."
    )
    return "\n".join(textwrap.wrap(said, 119))


BACKBONE = {
    "untrained, plain": "converted, untrained",
    "untrained, sorted": "heads and units in order, channels as they are",
    "untrained, rotated": "`--sort`, untrained",
    "elastic, rotated, 12": "trained from there, every width and four depths",
    "elastic, rotated, 30": "the same for longer",
    "alone, 1/2, 12": "one width alone, from there, for as many pictures",
    "alone, 2/3, 12": "likewise",
    "alone, 5/6, 12": "likewise",
}


def backbone_table(names: dict[str, str] | None = None) -> str:
    """Widths of the real ViT, and each width trained alone: k-NN and probe, percent. Rows by these names, or all."""
    rows, widths = backbone_rows(), ("1/2", "2/3", "5/6", "1")
    lines = [f"| start or training | pictures | {' | '.join(f'width {width}' for width in widths)} |"]
    lines.append("|---|---:|" + "---:|" * len(widths))
    for name, row in rows.items():
        if name.startswith(("untrained", "elastic")):
            found = {width: one for (depth, width, _), one in row["sizes"].items() if depth == 12}
        elif name.startswith("alone"):  # a bundle of its own, all of it
            found = {name.split(", ")[1]: one for one in row["sizes"].values()}
        else:
            continue
        if names and name not in names:
            continue
        cells = [_worth(found[width]) if width in found else "" for width in widths]
        lines.append(f"| {names[name] if names else name} | {row.get('pictures', 0):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def components_table() -> str:
    """Components against as many layers, chosen: cosine of the class token, k-NN and probe."""
    rows, counts = backbone_rows(), (3, 4, 6, 8, 9, 10, 12)
    lines = [f"| of twelve | {' | '.join(map(str, counts))} |", "|---|" + "---:|" * len(counts)]
    layers = {depth: one for (depth, *_), one in rows.get("layers", {"sizes": {}})["sizes"].items()}
    fitted = {count: rows.get(f"{count} components", {"sizes": {}})["sizes"] for count in counts}
    components = {count: one for count, sizes in fitted.items() for one in sizes.values()}
    healed = {count: rows.get(f"healed, {count} components", {"sizes": {}})["sizes"] for count in counts}
    after = {count: one for count, sizes in healed.items() for one in sizes.values()}
    depths = {}
    for heads in ("linear", "identity"):
        sizes = rows.get(f"depths, {heads} heads", {"sizes": {}})["sizes"]
        depths[f"layers, trained ({heads} heads)"] = {depth: one for (depth, *_), one in sizes.items()}
    shown = {
        "layers, chosen": layers,
        **depths,
        "components, fitted": components,
        "components, fitted and trained": after,
    }
    for name, found in shown.items():
        if found:
            cells = [_worth(found[count]) if count in found else "" for count in counts]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def worked_trend() -> str:
    """What `lingene analyse trend` says of the real ViT."""
    stacks = json.loads((RESULTS / "trend_vit_small.json").read_text(encoding="utf-8"))["stacks"]
    return bullets(lambda: [stack["sentence"] for stack in stacks.values()])


def feature_rates() -> str:
    """Of an elastic training of the real ViT."""
    shown = "elastic, rotated, 1"
    return bullets(lambda: rates({shown: backbone_rows()[shown]}))


def calibration_times() -> str:
    """Of a ViT-Small and a ViT-Base, six of twelve components."""
    small = backbone_rows()["6 components"]["fit"]
    results = json.loads((RESULTS / "calibration_cost.json").read_text(encoding="utf-8"))
    base = results["ViT-Base, 6 components"]
    text = (
        f"Six of 12 components of a ViT-Small, 256 images of 82 tokens, took {small['seconds'] / 60:.0f} minutes and "
        f"{small['peak_gib']:.1f} GiB on {threads(small)}; of a ViT-Base, 256 of 197 tokens, "
        f"{base['seconds'] / 60:.0f} minutes and {base['peak_gib']:.1f} GiB on {results['hardware']}. A GPU is used "
        "where there is one."
    )
    return "\n".join(textwrap.wrap(text, 119))


NEW_ROWS = {  # of weights that are new: by their channels, and whether they are of a Swin
    ("schedules_fashion", 64, False): (
        *("elastic, degree weight 1, 4 networks", "incremental"),
        *("simultaneous, degree weight 1", "dense"),
    ),
    ("sizes_fashion", 64, False): ("one, prefixes, 4 networks",),
    ("sizes_cifar", 128, False): (
        *("one, prefixes, 4 networks", "dense"),
        *("alone, long, 5 layers, width 1", "alone, long, 9 layers, width 1"),
    ),
    ("schedules_swin", 32, True): ("elastic, degree weight 1", "incremental", "dense"),
}
WANT_MORE = {("schedules_swin", "incremental")}  # twice the default's rate: that follows the default schedule
# At most half of it: one network, whose components no other shares, of nine layers or as wide as the bundle.
WANT_LESS = {("sizes_cifar", name) for name in NEW_ROWS["sizes_cifar", 128, False][1:]}


def new_rates() -> str:
    """What new weights learn at by default, beside the best rate of the rows."""
    said = []
    for (results, channels, stages), names in NEW_ROWS.items():
        rows, default = Table.read(results).rows, new_rate(channels, stages)
        what = f"{'a Swin' if stages else 'a ViT'} of {channels} channels"
        for name in names:
            tried = {float(rate): accuracy for rate, accuracy in rows[name]["rates"].items()}
            best = max(tried, key=tried.get)
            beside = "" if best == default else f", {points(tried[best])} at {best:g}"
            said.append(f"`{name}` ({what}) {points(tried[default])} % at {default:g}{beside}")
    behind = {name: max(tried.values()) - tried[rate] for name, rate, tried in narrow_rates()}
    text = (
        f"Where no learning rate is given, new weights learn at {NEW_RATES['vit']:g} / channels, of a Swin at "
        f"{NEW_RATES['swin']:g} / channels of the first stage. Validation accuracy of the first seed at this rate, "
        f"and at the best: {'; '.join(said)}. Of {len(behind)} ViTs of 16 and 32 channels, trained alone, it is "
        f"{points(min(behind.values()))} to {points(max(behind.values()))} points below the best of the rates that "
        f"were tried. {alone_in_colour()} Wider networks were not measured."
    )
    return "\n".join(textwrap.wrap(text, 119))


def alone_in_colour() -> str:
    """The best rates of networks of cifar10 that share nothing, which are lower ones."""
    found, whole = [], SCALES["cifar"].model.hidden_size
    for name, row in Table.read("sizes_cifar").rows.items():
        if name == "dense" or name.startswith("alone, "):
            width = Fraction(1) if name == "dense" else Fraction(name.rpartition(" ")[2])
            tried = {float(rate): accuracy for rate, accuracy in row["rates"].items()}
            found.append((int(whole * width), max(tried, key=tried.get)))
    times = [rate / new_rate(channels, False) for channels, rate in found]
    told = ", ".join(f"{rate:g} of {channels} channels" for channels, rate in sorted(set(found)))
    return (
        f"{len(found)} ViTs of cifar10, trained alone, were best at {told}: {min(times):.2g} to {max(times):.2g} "
        "times the default, so give a network that shares nothing a lower rate on such pictures."
    )


def narrow_rates() -> list[tuple[str, float, dict[float, float]]]:
    """ViTs narrower than those of `NEW_ROWS`: row, the default rate of its channels, accuracy at every rate tried."""
    found, whole = [], SCALES["fashion"].model.hidden_size
    for name, row in Table.read("sizes_fashion").rows.items():
        tried = {float(rate): accuracy for rate, accuracy in row["rates"].items()}
        if name.startswith("alone, ") and "long" not in name:
            rate = new_rate(int(whole * Fraction(name.rpartition(" ")[2])), False)
            if rate in tried and rate > new_rate(whole, False):
                found.append((name, rate, tried))
    return found


def _worth(row: dict) -> str:
    cosine = f"{row['cosine']:.2f}, " if "cosine" in row else ""
    return f"{cosine}{points(row['knn'])} / {points(row['probe'])}"


def _row_of(table: Table, row: str, size: str) -> str:
    """The row that measured a size; empty where none did."""
    if table.has(row):
        return row
    largest = row == "alone" and table.has("dense") and size in table.labels("dense")
    name = "dense" if largest else f"{row}, {size}"
    return name if table.has(name) else ""


def bullets(sentences: Callable[[], list[str]]) -> str:
    return "\n".join(textwrap.fill(said, 118, initial_indent="* ", subsequent_indent="  ") for said in sentences())


def bundle_or_alone() -> str:
    """What a bundle costs, and what it is worth beside its sizes alone, in the computed sentences."""
    said = [said for said in sizes() if said.startswith(("The bundle (", "Against", "At the cost of"))]
    table, long = Table.read("sizes_fashion"), "alone, long, "
    alone = [(name, name.removeprefix(long)) for name in table.rows if name.startswith(long)]
    if alone and all(table.compare(DEFAULT_ROW, name, size)[0] == "worse" for name, size in alone):
        said.append(
            "A bundle is one file for many sizes, not the best network of each: where one size is all that is needed, "
            "and there is time, train that alone."
        )
    return "\n".join(textwrap.wrap(" ".join(said), 119))


NOTES = {name: functools.partial(bullets, sentences) for name, sentences in SENTENCES.items()}
NOTES |= {"schedules table": schedules_table, "sizes table": sizes_table}
NOTES |= {"pruning table": pruning_table, "tuning table": tuning_table}
NOTES |= {"cifar table": functools.partial(sizes_table, results="sizes_cifar")}
NOTES |= {"swin table": functools.partial(schedules_table, results="schedules_swin")}
NOTES |= {"backbone table": backbone_table, "components table": components_table}
PAGES = {  # what lies between the markers of each page
    "README.md": {
        "quickstart time": quickstart_time,
        "elastic": elastic_table,
        "bundle or alone": bundle_or_alone,
    },
    "hub_cards/README.md": {"loading": loading_table},
    "modeling_lingene/training/README.md": {
        "quickstart": quickstart_table,
        "decomposition": decomposition_table,
        "rates": feature_rates,
        "new rates": new_rates,
    },
    "modeling_lingene/pruning/README.md": {
        "pruning table": pruning_table,
        "pruning": functools.partial(bullets, SENTENCES["pruning"]),
        "times": pruning_times,
    },
    "modeling_lingene/analysis/README.md": {"trend": worked_trend},
    "conversion/README.md": {
        "about": conversion_about,
        "calibration": calibration_times,
        "conversion": conversion_table,
        "backbone table": functools.partial(backbone_table, BACKBONE),
    },
    "tests/benchmarks/README.md": NOTES,
}


def render(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """A text with everything between markers made anew: a number within its line, a table on lines of its own."""
    for name, part in parts.items():
        pieces = re.split(rf"(<!-- {name} -->\n?|\n?<!-- /{name} -->)", text)
        if len(pieces) != 5:  # before, marker, between, marker, after
            raise ValueError(f"The text must have the two markers of {name} once.")
        text = "".join([*pieces[:2], part(), *pieces[3:]])
    return text


if __name__ == "__main__":
    for page, parts in PAGES.items():
        file = ROOT / page
        file.write_text(render(file.read_text(encoding="utf-8"), parts), encoding="utf-8")
