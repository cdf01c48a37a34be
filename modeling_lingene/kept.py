"""What a conversion kept, in words, by its report alone: how it was fitted, how close it is, whether it is a model.

A bundle is judged by what it says of pictures that its fit did not see, and of enough of them: by the class and the
probabilities where there is a classifier, by the direction of what stands for the image where there is none. The
relative error of logits ranks fits, and does not say how many classes stay. Without pictures, or where outputs name no
classes, it is all there is.
"""

from typing import Any


FIT_WORDS = {
    "exact": "as many components as layers, nothing is lost",
    "weights": "least squares on the weights",
    "activations": "least squares on what the layers give for the calibration images",
    "weighted": "least squares on what the layers give, each weighted by how much the answer depends on it",
    "kronecker": "components and coefficients in turn, by what goes into every layer and what depends on it",
    "aligned": "heads and units of all layers put in one order, then components and coefficients in turn",
    "matched": "layers put in one order and fitted, then corrected for what arrives at each",
}
GOOD = 0.05  # relative error on random images up to which a bundle is a model, not a start
AGREES, DIVERGES = 0.95, 0.05  # share of the images with the source's class; KL, nats
START = "This bundle is a start for training, not a model."
LEAST_IMAGES = 32  # that judge a fit: of so few, a share of 95 % has a standard error of 4 points
ALIKE, LEAST_ALIKE = 0.98, 0.95  # cosine with the source: mean over images, 5th percentile


def last_row(report: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured on calibration images of all components together; None where there were none."""
    rows = (report.get("calibration") or {}).get("rows") or [None]
    return rows[-1]


def is_model(report: dict[str, Any]) -> bool:
    """Whether a converted bundle can be used as it is; otherwise it is a start for training."""
    return not verdict(report)


def verdict(report: dict[str, Any]) -> str:
    """Why a converted bundle cannot be used as it is, as a sentence; empty where it can."""
    if not _is_near(report, last_row(report)):
        return START
    measured = report.get("calibration") or {}
    if report["fit"] == "exact" or "left_out" not in measured:  # older reports do not say which pictures judged
        return ""
    count = measured["measured_images"] if measured["left_out"] else 0
    judged = f"{count or 'no'} pictures that its fit did not see judge it, and it takes {LEAST_IMAGES}"
    return "" if count >= LEAST_IMAGES else f"Whether this bundle is a model is not known: {judged}."


def _is_near(report: dict[str, Any], row: dict[str, Any] | None) -> bool:
    if row is None or not {"agreement", "cosine"} & row.keys():  # no pictures, or outputs that name no classes
        return (report if row is None else row)["relative_logit_error"] <= GOOD
    if "agreement" in row:
        return row["agreement"] >= AGREES and row["divergence"] <= DIVERGES
    return row["cosine"] >= ALIKE and row["cosine_p5"] >= LEAST_ALIKE


def kept(report: dict[str, Any]) -> str:
    """How close the bundle is to what it was made of, in one sentence of numbers."""
    row = last_row(report)
    what = report.get("compared", "class token" if row is not None and "cosine" in row else "logit")
    if row is None:
        on = report.get("checked_on", "random images")
        return f"Relative error of its {what}s on {on}: {report['relative_logit_error']:.2g}."
    measured = report["calibration"]
    whose = "pictures left out of its fit" if measured.get("left_out") else "calibration images"
    on = f"{measured['measured_images']} {whose}"
    if "agreement" in row:
        return (
            f"On {on} it says the source's class for {100 * row['agreement']:.1f} %, with a "
            f"divergence (KL) of {max(row['divergence'], 0):.2g} nats."
        )
    if "cosine" not in row:
        return f"Relative error of its {what}s on {on}: {row['relative_logit_error']:.2g}."
    return (
        f"On {on} its {what} has a cosine of {row['cosine']:.3f} with the source's, "
        f"{row['cosine_p5']:.3f} at the 5th percentile."
    )


def fitted(report: dict[str, Any]) -> str:
    """`matched: layers put in one order ...`."""
    name = report["fit"]
    return f"{name}: {FIT_WORDS[name]}" if name in FIT_WORDS else name
