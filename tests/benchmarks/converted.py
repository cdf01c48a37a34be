"""What is said of conversions and of a real backbone, computed from their results files."""

import json

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


def backbone() -> list[str]:
    """Only what lies further apart than chance: two standard errors of a difference of judged pictures."""
    results = json.loads((RESULTS / "backbone.json").read_text(encoding="utf-8"))
    rows, (trained, _, voters, judged) = backbone_rows(), results["pictures"]
    chance = 2 * (2 * 0.25 / judged) ** 0.5
    first, machines = next(iter(rows.values())), " and ".join(dict.fromkeys(row["hardware"] for row in rows.values()))
    said = [
        f"The source is a trained ViT-S/14 at 126 pixels; up to {trained:,} unlabelled pictures of Imagenette train, "
        f"{voters:,} of these, with labels, vote or fit the probe, {judged:,} others are judged; one seed, so that "
        f"differences under {points(chance)} points of k-NN or probe say nothing. {machines}, torch "
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
    said += fits(rows) + against_layers(rows, chance) + rates(rows) + alone_at_each_width(rows, chance)
    longest = [name for name in rows if name.startswith("elastic, rotated") and name.endswith("4 networks")][-1]
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
        f"`{one}` against `{other}`, the probe at each width: {beside(rows[one], rows[other], chance)}."
        for one, other in BESIDE
        if one in rows and other in rows
    ]


ALONE = {
    "elastic, rotated, 1, tried whole": "alone, {width}, 1, tried whole",
    "elastic, rotated, 12, 4 networks": "alone, {width}, 12, tried whole",
}


def alone_at_each_width(rows: dict[str, dict], chance: float) -> list[str]:
    """A bundle's widths against each trained by itself for as many pictures, rates tried alike."""
    said = []
    for bundle, alone in ALONE.items():
        pairs = []
        for (_, width, _), one in rows.get(bundle, {"sizes": {}})["sizes"].items():
            row = rows.get(alone.format(width=width))
            if row and row["pictures"] == rows[bundle]["pictures"]:
                pairs.append((width, one, *row["sizes"].values()))
        for metric, what in (("probe", "the probe"), ("knn", "k-NN")) if pairs else ():
            told = [
                f"{verdict(one[metric] - other[metric], chance)} at {width} "
                f"({points(one[metric])} and {points(other[metric])})"
                for width, one, other in pairs
            ]
            said.append(f"`{bundle}` against a width trained alone for as many pictures, {what}: {', '.join(told)}.")
    return said


def fits(rows: dict[str, dict]) -> list[str]:
    """What fewer components than layers take."""
    told = [
        f"{row['row']} {row['fit']['seconds']:.0f} s and {row['fit']['peak_gib']:.1f} GiB (the whole process) with "
        f"{row['fit']['threads']} {'thread' if row['fit']['threads'] == 1 else 'threads'}"
        for row in rows.values()
        if "fit" in row
    ]
    return [f"The default fit on 256 pictures of 82 tokens: {'; '.join(told)}."] if told else []


def against_layers(rows: dict[str, dict], chance: float) -> list[str]:
    """Components against as many layers of the source, chosen: equal in what is stored, not in MACs."""
    layers = {depth: one for (depth, *_), one in rows.get("layers", {"sizes": {}})["sizes"].items()}
    fitted = {count: one for row in rows.values() if "fit" in row for (*_, count), one in row["sizes"].items()}
    shared = sorted(layers.keys() & fitted.keys())
    pairs = [(fitted[count]["probe"] - layers[count]["probe"]) for count in shared]
    if not pairs:
        return []
    told = counted([(verdict(difference, chance), difference) for difference in pairs])
    return [
        f"Untrained, {', '.join(map(str, shared))} components against as many layers of the source, chosen on the "
        f"same pictures, the probe: {told}. N components store what N layers do, and compute all twelve."
    ]


def rates(rows: dict[str, dict]) -> list[str]:
    """What each learning rate came to; a row whose lowest was the best says so."""
    said = []
    for name, row in rows.items():
        if "rates" in row:
            losses = {float(rate): loss for rate, loss in row["rates"].items()}
            told = ", ".join(f"{loss:.2f} at {rate:g}" for rate, loss in sorted(losses.items()))
            ends = {min(losses): "lowest", max(losses): "highest"}
            edge = f"; the {ends[row['rate']]} that was tried is the best" if row["rate"] in ends else ""
            whole = name.endswith(("networks", "tried whole"))
            tried = "the shorter training at each rate" if whole else "a try of each rate"
            said.append(f"`{name}`: mean loss of its sizes on the validation part after {tried}, {told}{edge}.")
    return said


BESIDE = (
    ("elastic, rotated, 1", "untrained, rotated"),
    ("elastic, rotated, 1, 4 networks", "untrained, rotated"),
    ("elastic, rotated, 1, 4 networks", "elastic, rotated, 1, tried whole"),
    ("elastic, rotated, 3, 4 networks", "untrained, rotated"),
    ("elastic, rotated, 12, 4 networks", "untrained, rotated"),
    ("elastic, rotated, 12, 4 networks", "elastic, rotated, 3, 4 networks"),
    ("elastic, rotated, 30, 4 networks", "untrained, rotated"),
    ("elastic, rotated, 30, 4 networks", "elastic, rotated, 12, 4 networks"),
    ("elastic, rotated, 1", "elastic, plain, 1"),
    ("elastic, rotated, 1", "elastic, sorted, 1"),
    ("elastic, rotated, 3", "elastic, rotated, 1"),
    ("depths, identity heads", "depths, linear heads"),
    ("healed, 6 components", "6 components"),
    ("healed, 9 components", "9 components"),
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
