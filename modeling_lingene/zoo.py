"""The released bundles in `hub_cards/`, a folder each: what every one is for, from its own files.

lingene zoo
"""

from importlib import resources
from pathlib import Path

from .budget_lingene import METRICS, metric_of
from .bundle_lingene import Bundle
from .folders import read_config
from .markdown import string, text
from .measuring.tables import aligned_table, bytes_shown, readable


OWNER = "modeling-lingene"  # on the Hub; a repository has the folder's name
COLUMNS = ("bundle", "task", "data", "sizes", "MACs", "download", "best", "smallest")


def home() -> Path:
    """Where the released bundles lie: `hub_cards/` of a checkout, or what a wheel took of it."""
    return Path(str(resources.files("modeling_lingene.hub_cards")))


def released(root: Path | None = None) -> list[dict]:
    """Every released bundle, by name.

    Args:
        root: folder of bundle folders; default `home()`.

    Returns:
        Of each: `name` (of its repository), `folder` (None where a wheel brings no weights), `task`, `classes` (0
        without a classifier), `data`, `metric`, `sizes` (how many were measured), the ranges `macs`, `download`
        (bytes), and `best` and `smallest`: the rows of `sizes.json`.

    Raises:
        ValueError: a file of a folder is damaged.
        OSError: there is no folder.
    """
    root = root or home()
    found = [_facts(path.parent) for path in sorted(root.glob("*/config.json"))]
    if not found:
        raise OSError(f"{root} holds no released bundle; they lie in hub_cards/ of the repository, and under {OWNER}.")
    return found


def _facts(folder: Path) -> dict:
    config = read_config(folder)
    bundle = Bundle(folder, config)
    rows, head = bundle.measured(), bundle.has_head
    whole = all((folder / file).is_file() for file in set(bundle.weight_map.values()))
    facts = {
        "name": f"{OWNER}/{folder.name}",
        "folder": str(folder) if whole else None,
        "task": "image classification" if head else "image features",
        "classes": config.num_labels if head else 0,
        "data": sorted({row["dataset"] for row in rows}),
        "sizes": len(rows),
    }
    if rows:
        metric = metric_of(rows)
        facts["metric"] = metric
        facts["macs"] = [pick(row["macs"] for row in rows) for pick in (min, max)]
        facts["download"] = [bundle.download_bytes(pick(row["num_components"] for row in rows)) for pick in (min, max)]
        facts["best"] = max(rows, key=lambda row: (row[metric], -row["macs"]))
        facts["smallest"] = min(rows, key=lambda row: (row["params"], row["stored_params"]))
    return facts


def zoo_table(bundles: list[dict]) -> str:
    """The bundles as a Markdown table, a row each."""
    lines = [list(COLUMNS)]
    for facts in bundles:
        task = facts["task"] + (f", {facts['classes']} classes" if facts["classes"] else "")
        cells = [text(facts["name"].partition("/")[2]), task, text(", ".join(facts["data"])) or "-"]
        if facts["sizes"]:
            metric = METRICS[facts["metric"]]
            ranges = [" to ".join(map(readable, facts["macs"])), " to ".join(map(bytes_shown, facts["download"]))]
            worth = [metric.shown(facts[name][facts["metric"]]) for name in ("best", "smallest")]
            cells += [str(facts["sizes"]), *ranges, *worth]
        lines.append(cells + ["-"] * (len(COLUMNS) - len(cells)))
    return aligned_table(lines)


def where_to_load(facts: dict) -> str:
    """The call that loads a bundle whole: from its folder, or by name where only its numbers are here."""
    auto_class = "AutoModelForImageClassification" if facts["classes"] else "AutoModel"
    return f"{auto_class}.from_pretrained({string(facts['folder'] or facts['name'])}, trust_remote_code=True)"
