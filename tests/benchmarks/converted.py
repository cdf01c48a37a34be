"""What is said of conversions and of a real backbone, computed from their results files."""

import json

from backbone import ROTATED_RATE, SCALES, rows_of
from comparing import RESULTS, counted, points


def conversion() -> list[str]:
    results = json.loads((RESULTS / "conversion_fashion.json").read_text(encoding="utf-8"))
    rows = {(row["start"], row["num_components"]): row for row in results["rows"]}
    source, counts = results["source"]["accuracy"], sorted({row["num_components"] for row in results["rows"]})
    said = [
        f"A stock ViT of {results['depth']} layers ({points(source)} %), 512 unlabelled images of its training set, "
        "healing with the source as teacher, one seed; differences under 2 points say nothing here. "
        f"{results['images']['train']:,} images train, {results['images']['validation']:,} choose, "
        f"{results['images']['test']:,} are reported. {results['rows'][0]['hardware']}."
    ]
    for count in counts:
        found = rows["matched", count]["test"]
        said.append(
            f"{count} components, the default fit (`matched`): {points(found['untrained'])} untrained, "
            f"{points(found['1 epochs'])} after one epoch."
        )
    for stage, when in (("untrained", "untrained"), ("1 epochs", "after one epoch")):
        behind = {count: _behind(rows, count, stage) for count in counts}
        shown = [f"{', '.join(names) or 'none'} at {count} components" for count, names in behind.items()]
        said.append(f"At least 2 points behind `matched`, {when}: {'; '.join(shown)}.")
    return said


def _behind(rows: dict, count: int, stage: str) -> list[str]:
    """The starts that are at least 2 points behind the default fit."""
    best = rows["matched", count]["test"][stage]
    others = {start: row["test"].get(stage, best) for (start, number), row in rows.items() if number == count}
    return [f"`{start}`" for start, accuracy in others.items() if best - accuracy >= 0.02]


def backbone_rows() -> dict[str, dict]:
    """By name; their sizes by (layers, width, components)."""
    rows = json.loads((RESULTS / "backbone.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        row["sizes"] = {(one["depth"], one["width_ratio"], one["num_components"]): one for one in row["sizes"]}
    return {row["row"]: row for row in rows}


def chance(one: dict, other: dict) -> float:
    """Two standard errors of a difference of two rows' accuracies, at the most: what is nearer is called equal."""
    return 2 * (0.25 / one["judged"] + 0.25 / other["judged"]) ** 0.5


def backbone() -> list[str]:
    """Only what lies further apart than chance."""
    results = json.loads((RESULTS / "backbone.json").read_text(encoding="utf-8"))
    rows = backbone_rows()
    first, machines = next(iter(rows.values())), " and ".join(dict.fromkeys(row["hardware"] for row in rows.values()))
    said = [
        f"The source is a trained ViT-S/14 at 126 pixels; {results['trained']:,} unlabelled pictures of Imagenette "
        f"train, a twentieth of them to choose by, and {results['voters']:,} of these, with labels, vote or fit the "
        f"probe. One seed. {machines}, torch {first['versions']['torch'].partition('+')[0]}.",
        *judging(rows),
    ]
    if owed := [f"`{name}`" for name in rows_of(SCALES[results["scale"]]) if name not in rows]:
        said.append(f"Still to be run: {', '.join(owed)}.")
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
    said += fits(rows) + against_layers(rows) + rates(rows) + alone_at_each_width(rows)
    longest = [name for name in rows if name.startswith("elastic, rotated")][-1]
    row = rows[longest]
    trained, before = row["sizes"], rotated
    said.append(
        f"The longest training (`{longest}`): {row['pictures']:,} pictures, each of them seen by one of the four, in "
        f"{row['seconds'] / 60:.0f} minutes on {row['hardware']}, other work of the machine included."
    )
    told = [
        f"{trained[size]['cosine']:.2f} after {before[size]['cosine']:.2f} at {size[1]}"
        for size in trained
        if "cosine" in trained[size]
    ]
    if told:
        said.append(
            "The cosine of the class token with the source, channels that a width lacks counting as zero, trained "
            f"(`{longest}`) after untrained: {', '.join(told)} of the width."
        )
    return said + [
        f"`{one}` against `{other}`, the probe at each size: {beside(rows[one], rows[other])}."
        for one, other in BESIDE
        if one in rows and other in rows
    ]


ALONE = {
    "elastic, rotated, 1": "alone, {width}, 1",
    "elastic, rotated, 12": "alone, {width}, 12",
    "elastic, rotated, 30": "alone, {width}, 30",
}


def judging(rows: dict[str, dict]) -> list[str]:
    """By how many pictures each row was judged, and in which precision it was trained and judged."""
    kinds: dict[tuple[int, str], list[str]] = {}
    for name, row in rows.items():
        kinds.setdefault((row["judged"], row["precision"]), []).append(name)
    most = max(kinds, key=lambda kind: len(kinds[kind]))
    said = []
    for kind, names in kinds.items():
        of = "all others" if kind == most and len(kinds) > 1 else ", ".join(f"`{name}`" for name in names)
        of = "all" if len(kinds) == 1 else of
        alike = {"judged": kind[0]}
        said.append(
            f"{kind[0]:,} pictures of the test part judge, in {'bfloat16' if kind[1] == 'bf16' else 'float32'} as in "
            f"training, {of}: differences under {points(chance(alike, alike))} points of k-NN or probe say nothing."
        )
    if cached := [f"`{name}`" for name, row in rows.items() if row.get("cached")]:
        said.append(
            f"The source was asked once of every picture, in float32, and its answers kept: {', '.join(cached)}."
        )
    return said


def alone_at_each_width(rows: dict[str, dict]) -> list[str]:
    """A bundle's widths against each trained by itself for as many pictures, rates tried alike."""
    said = []
    for bundle, alone in ALONE.items():
        pairs = []
        for (_, width, _), one in rows.get(bundle, {"sizes": {}})["sizes"].items():
            row = rows.get(alone.format(width=width))
            if row and row["pictures"] == rows[bundle]["pictures"]:
                pairs.append((width, one, *row["sizes"].values(), chance(row, rows[bundle])))
        for metric, what in (("probe", "the probe"), ("knn", "k-NN")) if pairs else ():
            told = [
                f"{verdict(one[metric] - other[metric], bound)} at {width} "
                f"({points(one[metric])} and {points(other[metric])})"
                for width, one, other, bound in pairs
            ]
            said.append(f"`{bundle}` against a width trained alone for as many pictures, {what}: {', '.join(told)}.")
    return said


def fits(rows: dict[str, dict]) -> list[str]:
    """What fewer components than layers take."""
    told = [
        f"{row['row']} {row['fit']['seconds']:.0f} s and {row['fit']['peak_gib']:.1f} GiB (the whole process) with "
        f"{threads(row['fit'])}"
        for row in rows.values()
        if "fit" in row
    ]
    return [f"The default fit on 256 pictures of 82 tokens: {'; '.join(told)}."] if told else []


def threads(fit: dict) -> str:
    return "1 thread" if fit["threads"] == 1 else f"{fit['threads']} threads"


def against_layers(rows: dict[str, dict]) -> list[str]:
    """Components against as many layers of the source, chosen: equal in what is stored, not in MACs."""
    if "layers" not in rows:
        return []
    layers = {depth: one for (depth, *_), one in rows["layers"]["sizes"].items()}
    fitted = {count: (one, row) for row in rows.values() if "fit" in row for (*_, count), one in row["sizes"].items()}
    shared = sorted(layers.keys() & fitted.keys())
    told = []
    for count in shared:
        one, row = fitted[count]
        difference = one["probe"] - layers[count]["probe"]
        told.append((verdict(difference, chance(row, rows["layers"])), difference))
    if not told:
        return []
    return [
        f"Untrained, {', '.join(map(str, shared))} components against as many layers of the source, chosen on the "
        f"same pictures, the probe: {counted(told)}. N components store what N layers do, and compute all twelve."
    ]


def rates(rows: dict[str, dict]) -> list[str]:
    """What each learning rate came to, of rows that chose theirs: longer ones have it from the shortest."""
    said = []
    for name, row in rows.items():
        if "rates" in row and name.split(", ")[2:] in ([], ["1"]):
            told = ", ".join(f"{loss:.2f} at {rate}" for rate, loss in sorted(row["rates"].items(), key=by_rate))
            note = f" ({row['note']})" if "note" in row else ""
            said.append(f"`{name}`: mean loss of its sizes on the validation part, {told}{note}.")
    return said


def by_rate(found: tuple[str, float]) -> float:
    return float(found[0])


BESIDE = (
    *((f"elastic, rotated, {epochs}", "untrained, rotated") for epochs in (1, 3, 12, 30)),
    ("elastic, rotated, 12", "elastic, rotated, 3"),
    ("elastic, rotated, 30", "elastic, rotated, 12"),
    *(
        (f"elastic, rotated, {epochs}", f"elastic, {start}, {epochs}{rate}")
        for epochs in (1, 3)
        for start in ("sorted", "plain")
        for rate in ("", f", {ROTATED_RATE}")
    ),
    ("depths, identity heads", "depths, linear heads"),
    *((f"healed, {count} components", f"{count} components") for count in (3, 4, 6, 9)),
)


def verdict(difference: float, bound: float) -> str:
    return "equal" if abs(difference) < bound else "better" if difference > 0 else "worse"


def beside(one: dict, other: dict) -> str:
    """The sizes that two rows share, by their probes, in words."""
    pairs = []
    for size in one["sizes"].keys() & other["sizes"].keys():
        difference = one["sizes"][size]["probe"] - other["sizes"][size]["probe"]
        pairs.append((verdict(difference, chance(one, other)), difference))
    return counted(pairs)
