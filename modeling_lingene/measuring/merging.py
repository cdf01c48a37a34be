"""Rows of a sweep put beside those that a `sizes.json` holds: only what compares stays."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from ..budget_lingene import AGREEMENT, METRICS, metric_of
from ..bundle_lingene import SIZES_FILE


logger = logging.get_logger(__name__)

COMPARED = (*AGREEMENT, "reference", "reference_id")  # what is said of how a size agrees, and with whom


def rows_in(folder: Path, weights_id: str) -> list[dict]:
    """The rows that an earlier sweep of the same weights has left in a folder of results."""
    try:
        stored = json.loads((folder / SIZES_FILE).read_text(encoding="utf-8"))
        return stored["sizes"] if stored["weights_id"] == weights_id else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def merged(before: Sequence[dict], rows: Sequence[dict]) -> list[dict]:
    """Rows of other sizes on the same images and by the same metric stay, and profiles; others would not compare.

    Of a size that is measured again by another metric on the same images, what it was measured by before stays beside
    the new.
    """
    sizes, metric = ("depth", "width_ratio", "num_components"), metric_of(rows)
    old, whole = {tuple(row[key] for key in sizes): row for row in before}, {}
    same = {name for name, row in old.items() if _on_the_same(row, rows[0])}
    for name in same:
        alike = "cosine" not in rows[0] or _with_the_same(old[name], rows[0])
        if metric in old[name] and (alike or metric != "cosine"):
            left = {"metric"} if alike else {"metric", *COMPARED}
            whole[name] = {key: value for key, value in old[name].items() if key not in left}
            if not alike and "standard_errors" in old[name]:
                errors = old[name]["standard_errors"]
                whole[name]["standard_errors"] = {key: errors[key] for key in errors.keys() - {"cosine"}}
            whole[name] |= {"metric": metric} if metric != "accuracy" else {}
    new = {tuple(row[key] for key in sizes): row for row in rows}
    gone = len(old.keys() - whole.keys() - (same & new.keys()))
    if gone:
        logger.warning(
            f"{gone} sizes that were measured on other images, with another reference, or not by {metric}, are "
            "replaced."
        )
    for name, row in new.items():
        earlier = old.get(name, {})
        if name in same and "cosine" not in row:
            row = row | {key: earlier[key] for key in COMPARED if key in earlier}
        if name in same:
            row = row | {key: earlier[key] for key in METRICS if key in earlier and key not in row}
        errors = {key: value for key, value in earlier.get("standard_errors", {}).items() if key in row}
        if name in same and errors:
            row["standard_errors"] = errors | row.get("standard_errors", {})
        # Those of this device are older than the latency in the row.
        profiles = [one for one in earlier.get("profiles", ()) if one["device"] != row.get("device")]
        whole[name] = {**row, "profiles": profiles} if profiles else row
    return list(whole.values())


def _on_the_same(row: dict, other: dict) -> bool:
    """Whether two rows are of the same images, as far as they tell: folders of one name may hold others."""
    same = all(row.get(key) == other[key] for key in ("dataset", "split"))
    return same and all(row.get(key, other.get(key)) == other.get(key) for key in ("images", "pictures_id"))


def _with_the_same(row: dict, other: dict) -> bool:
    """Whether two rows are compared with the same model, as far as they tell: bundles of one name may be others."""
    known = row.get("reference_id", other.get("reference_id"))
    return row.get("reference") == other["reference"] and known == other.get("reference_id")
