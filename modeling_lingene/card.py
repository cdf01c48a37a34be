"""What a bundle's card says, out of the bundle's files alone: first sizes, what pictures show, limits, metadata.

Sentences come out as Markdown, words of others in them as `markdown.text`.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .budget_lingene import METRICS, metric_of, standard_error
from .configuration_base_lingene import BundleConfig
from .folders import SIZE_PICTURES
from .kept import kept
from .markdown import text
from .measuring.metrics import seen_size
from .measuring.tables import bytes_shown, readable
from .progress import duration
from .readme import CARD_FILE
from .readout import TURNED
from .saving_lingene import CONVERSION_PICTURE


LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")  # as the Hub names them
POINTS = 0.02  # that the smallest size may lose
SIZE = ("depth", "width_ratio", "num_components")


def first_sizes(rows: Sequence[dict], config: BundleConfig, fetched: Callable[[int], int]) -> list[dict[str, Any]]:
    """The sizes that most people want first: the best, the best under half the MACs of the largest, the smallest that
    loses at most two points; each once.

    Args:
        rows: of `sizes.json`, at least one.
        fetched: number of components -> bytes, as `Bundle.download_bytes`.

    Returns:
        Of each its `row`, `title`, `numbers` in one line, and the `keywords` that load it.
    """
    metric = metric_of(rows)
    return [
        {
            "row": row,
            "title": title,
            "numbers": _numbers(row, metric, fetched(row["num_components"])),
            "keywords": keywords({field: row[field] for field in SIZE}, config),
        }
        for row, title in _wanted_first(rows)
    ]


def _wanted_first(rows: Sequence[dict]) -> list[tuple[dict, str]]:
    """Those rows, and what each is."""
    name = metric_of(rows)
    metric, found = METRICS[name], {}
    best = max(rows, key=lambda row: _worth(row, name))
    chosen = [(metric.best, best)]
    lean = [row for row in rows if 2 * row["macs"] < max(row["macs"] for row in rows)]
    if lean:
        chosen.append(
            (f"{metric.best} under half the MACs of the largest", max(lean, key=lambda row: _worth(row, name)))
        )
    good = [row for row in rows if row[name] >= best[name] - POINTS - 1e-9]
    within = f"{100 * POINTS:g} points" if metric.percent else f"{POINTS:g}"
    smallest = min(good, key=lambda row: (row["params"], row["macs"], row["stored_params"]))
    chosen.append((f"the smallest within {within} of the best", smallest))
    for title, row in chosen:
        found.setdefault(tuple(row[field] for field in SIZE), (row, []))[1].append(title)
    return [(row, ", and ".join(titles)) for row, titles in found.values()]


def _worth(row: dict, metric: str) -> tuple:
    return row[metric], -row["macs"], -row["stored_params"]


def _small(words: str) -> str:
    return words[0].lower() + words[1:]


def _numbers(row: dict, metric: str, fetched: int) -> str:
    size = f"depth {row['depth']}, width {row['width_ratio']}, components {row['num_components']}"
    error = standard_error(row, metric)
    value = METRICS[metric].shown(row[metric]) + (f" (± {METRICS[metric].spread(error)})" if error is not None else "")
    told = [f"{_small(METRICS[metric].axis)} {value}", f"{readable(row['macs'])} MACs"]
    told.append(f"{readable(row['params'])} parameters, {bytes_shown(fetched)} to download")
    return f"{size}: {', '.join(told)}"


def keywords(size: dict[str, Any], config: BundleConfig) -> dict[str, Any]:
    """What `from_pretrained` takes for a size; a width that was never trained has to be allowed."""
    given = {name: value for name, value in size.items() if (name, value) != ("width_ratio", "1")}
    untrained = size.get("width_ratio", "1") not in config.trained_width_ratios
    return given | ({"allow_untrained": True} if untrained else {})


def layers_of(config: BundleConfig) -> str:
    """Which layers the components stand for."""
    stages = getattr(config, "decomposed_stages", None)  # of a network of stages
    if stages is None:
        return "the encoder layers"
    return f"the layers of stage{'s' if len(stages) > 1 else ''} {' and '.join(map(str, stages))}"


def shape_of(config: BundleConfig) -> dict[str, str]:
    """What a network is like at full width: a few facts, and their numbers."""
    if not hasattr(config, "decomposed_stages"):
        shape = config.hidden_size, config.num_attention_heads, config.intermediate_size
        units = "gated MLP units" if config.gated_mlp else "MLP units"
        return {f"hidden size, heads, {units}": ", ".join(map(str, shape))}
    stages = range(1, len(config.depths) + 1)
    own = [f"stage {n}: {config.depths[n - 1]}" for n in stages if n not in config.decomposed_stages]
    return {
        "layers of their own": ", ".join(own) or "none",
        "channels of the stages": ", ".join(str(config.stage_width(n)) for n in stages),
        "heads of the stages": ", ".join(map(str, config.num_heads)),
        "MLP units, window": f"{config.mlp_ratio:g} times the channels, {config.window_size} patches",
    }


def images_of(config: BundleConfig, processor: Any) -> dict[str, str]:
    """How large the images are that a bundle gets, all costs being of these, and what other ones it takes.

    Args:
        processor: its preprocessing; None where it has none.
    """
    seen, stored = _sides(seen_size(config, processor)), _sides(config.image_size)
    others = f" by its preprocessing, others are taken; positions are stored for {stored}"
    return {"seen": seen, "images": f"{seen} pixels{others if config.stands_for.interpolates else ''}"}


def pictures(folder: Path, rows: Sequence[dict], converted: dict | None) -> list[tuple[str, str]]:
    """The figures in a bundle's folder: what each shows, in numbers, and its file."""
    told = {}
    if converted:
        told[CONVERSION_PICTURE] = (
            f"How far 1 to {converted['num_components']} components are from the converted model. {kept(converted)}"
        )
    if rows:
        told |= dict(zip(SIZE_PICTURES, _size_figures(rows)))
    return [(shown, file) for file, shown in told.items() if (folder / file).is_file()]


def _size_figures(rows: Sequence[dict]) -> tuple[str, str]:
    name = metric_of(rows)
    metric = METRICS[name]
    low, high = (pick(rows, key=lambda row: _worth(row, name)) for pick in (min, max))
    ends = [
        f"{metric.shown(row[name])} at {readable(row['macs'])} MACs and {readable(row['stored_params'])} parameters"
        for row in (low, high)
    ]
    panels = []
    for width in sorted({Fraction(row["width_ratio"]) for row in rows}):
        values = [row[name] for row in rows if Fraction(row["width_ratio"]) == width]
        panels.append(f"{width}: {metric.shown(min(values))} to {metric.shown(max(values))}")
    return (
        f"{metric.axis} of {len(rows)} sizes against MACs and stored parameters, from {ends[0]} to {ends[1]}",
        f"{metric.axis} of every depth and number of components at each width: {'; '.join(panels)}",
    )


def results(rows: Sequence[dict], config: BundleConfig, task: str) -> list[EvalResult]:
    """The first sizes as the Hub's `model-index`, by the metric that decides, under its own name.

    The newer `.eval_results/` takes benchmarks that are registered on the Hub, by their ids; a set that is measured
    here is none.
    """
    name = metric_of(rows) if rows else None
    return [
        EvalResult(
            task_type=task,
            dataset_type=row["dataset"],
            dataset_name=row["dataset"],
            dataset_split=row["split"],
            metric_type=name,
            metric_name=f"{METRICS[name].axis}, {title}",
            metric_value=row[name],
            metric_args={field: row[field] for field in (*SIZE, "reference") if field in row},
        )
        for row, title in (_wanted_first(rows) if rows else ())
    ]


def names_on_the_hub(*names: str | None) -> list[str]:
    """Those of some names that can be a repository's with its owner, each once; the Hub refuses a card with others."""
    found = []
    for name in names:
        if name and "/" in name and name not in found:
            try:
                validate_repo_id(name)
            except HFValidationError:
                continue
            found.append(name)
    return found


def license_of(folder: Path, asked: str | None) -> str | None:
    """The licence by its name on the Hub: the one asked for, or the one that the folder's card names already.

    Raises:
        ValueError: it can be no licence's name, or the card's header cannot be read.
    """
    where, name = "`license`", asked
    if asked is None and (folder / CARD_FILE).is_file():
        where = f"`license` in `{CARD_FILE}` of {folder}"
        try:
            name = (metadata_load(folder / CARD_FILE) or {}).get("license")
        except Exception as error:  # what the YAML library of the day raises
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"The header of `{CARD_FILE}` of {folder} is damaged ({said}); delete the file."
            ) from None
    if name is not None and not (isinstance(name, str) and LICENSE.fullmatch(name)):
        raise ValueError(f"{where} must be a name such as apache-2.0, mit or other, got {str(name)[:80]!r}.")
    return name


def limits(config: BundleConfig, head: bool, rows: Sequence[dict], trained: dict | None) -> list[str]:
    """What a bundle is not good for, as far as its files say."""
    said = []
    if head:
        said.append(f"It knows {config.num_labels} classes and calls every picture one of them, whatever it shows.")
    else:
        said.append("It has no classifier: it gives features, and what they are used for has to be trained or fitted.")
    if trained:
        before = " but those of the bundle that it started from" if trained["init"] else ""
        said.append(
            f"It was trained on {trained['images']:,} pictures of {text(trained['dataset'])}, no others{before}."
        )
    if rows:
        on = text(", ".join(sorted({row["dataset"] for row in rows})))
        said.append(f"What it is worth on pictures other than those of {on} was not measured.")
    else:
        said.append("No size was measured: `lingene sweep BUNDLE --data DATA` does it, on pictures like yours.")
    if config.turned:
        said.append(TURNED)
    if not config.stands_for.interpolates:
        said.append(f"It takes pictures of {_sides(config.image_size)} pixels: finer detail does not reach it.")
    return said + _untrained(config) + _unmeasured(rows)


def _sides(size: int | Sequence[int]) -> str:
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height}x{width}"


def _untrained(config: BundleConfig) -> list[str]:
    said, legal = [], [str(ratio) for ratio in config.legal_width_ratios]
    widths = [ratio for ratio in legal if ratio not in config.trained_width_ratios]
    if widths:
        said.append(f"Widths {', '.join(widths)} were never trained: they are a start for training, no models.")
    if config.trained_depths and len(config.trained_depths) < config.most_components:
        depths = ", ".join(map(str, config.trained_depths))
        said.append(f"Depths other than {depths} were never trained.")
    most, counts = config.reference_components, config.known_components
    if counts == [most] != [1]:
        said.append(f"Fewer than {most} components were never trained: they are a start for training, no models.")
    elif counts and len(counts) < most:
        said.append(f"Numbers of components other than {', '.join(map(str, counts))} were never trained.")
    return said


def _unmeasured(rows: Sequence[dict]) -> list[str]:
    if not rows:
        return []
    return [
        "Sizes that are not in the table were not measured, and none of them in int8 or another form that it may be "
        "exported to: `lingene evaluate` measures what you ship."
    ]


def made_how(trained: dict | None) -> list[tuple[str, str]]:
    """How the weights were trained, as rows of a table with two columns; none where it is not recorded."""
    if trained is None:
        return []
    labels = "without labels" if trained["objective"] == "features" else "with labels"
    facts = [
        ("data", f"{text(trained['dataset'])}, {trained['images']:,} pictures {labels}, {trained['epochs']} epochs"),
        ("started from", text(trained["init"] or "")),
        ("teacher", text(trained["teacher"] or "")),
        ("hardware", f"{trained['processes']} x {text(trained['hardware'])}"),
        ("time in training steps", duration(trained["seconds"])),
        ("seed", str(trained["seed"])),
        ("versions", ", ".join(f"{text(name)} {text(version)}" for name, version in trained["versions"].items())),
    ]
    return [(name, told) for name, told in facts if told]


def papers(config: BundleConfig, trained: dict | None) -> list[str]:
    """Whose methods a bundle stands on: keys of `citations.PAPERS`."""
    found = {"lindec": True, "scala": config.trained_width_ratios != ["1"]}
    found["proteus"] = bool(trained) and trained["objective"] == "features"
    return [paper for paper, applies in found.items() if applies]
