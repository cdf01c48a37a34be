"""What features are worth without a classifier, tensors in, numbers out: neighbours, a linear probe, agreement.

Notation: n pictures that are asked for, m of the train part, c classes, p patches, d channels.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional

from ..extras import require


NEIGHBOURS, TEMPERATURE = 20, 0.07  # of k-NN, as DINO has them
QUERIES = 1024  # at a time
PROBE = {"C": 1.0, "max_iter": 1000, "tol": 1e-4}  # of scikit-learn's LogisticRegression, L2, lbfgs
LOW = 5  # percent


def knn_accuracy(
    train: torch.Tensor, train_labels: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor
) -> float:
    """The share of pictures that weighted k-NN names right (Caron et al., DINO, ICCV 2021, section 4.1).

    Features are normalised; the 20 nearest by cosine s (all, where there are fewer) vote with exp(s / 0.07).

    Args:
        train: (m, d), any device; the voters.
        train_labels: (m,) int64, from 0.
        queries: (n, d).
        labels: (n,) int64.
    """
    train, queries = functional.normalize(train.float(), dim=1), functional.normalize(queries.float(), dim=1)
    classes, right = int(max(train_labels.max(), labels.max())) + 1, 0
    for asked, expected in zip(queries.split(QUERIES), labels.split(QUERIES)):
        near, places = (asked @ train.T).topk(min(NEIGHBOURS, len(train)), dim=1)
        votes = near.new_zeros(len(asked), classes)
        votes.scatter_add_(1, train_labels[places], (near / TEMPERATURE).exp())
        right += int((votes.argmax(1) == expected).sum())
    return right / len(queries)


def probe_needs(train_labels: Iterable[int]) -> tuple[Any, Any]:
    """scikit-learn's modules of linear models and of scaling; to be asked before features are computed.

    Args:
        train_labels: of the train part.

    Raises:
        ImportError: scikit-learn is missing; the message says what to install.
        ValueError: the train part has one class only.
    """
    modules = require("sklearn.linear_model", "scikit-learn"), require("sklearn.preprocessing", "scikit-learn")
    if len(set(train_labels)) < 2:
        raise ValueError("`metric` probe needs at least two classes in the train part; use cosine.")
    return modules


def probe_accuracy(
    train: torch.Tensor, train_labels: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor
) -> float:
    """The share of pictures that a linear classifier of the features names right.

    scikit-learn's LogisticRegression (L2, C = 1, lbfgs, at most 1,000 iterations, tolerance 1e-4) on features that
    StandardScaler, fitted on the train part, gives mean 0 and variance 1; in float64. The settings are never tuned.

    Args:
        as for `knn_accuracy`.

    Raises:
        as for `probe_needs`.
    """
    linear, scaling = probe_needs(train_labels.tolist())
    scaler = scaling.StandardScaler().fit(train.double().cpu().numpy())
    known, asked = (scaler.transform(features.double().cpu().numpy()) for features in (train, queries))
    probe = linear.LogisticRegression(**PROBE).fit(known, train_labels.cpu().numpy())
    return float((probe.predict(asked) == labels.cpu().numpy()).mean())


def check_patches_compare(found: int, expected: int) -> None:
    """Refuse a reference with other patches.

    Args:
        found: patches that the model gives of an image.
        expected: those that the reference gives.

    Raises:
        ValueError: they are not as many.
    """
    if found != expected:
        raise ValueError(
            f"`reference` must have as many patches as the model: it gives {expected} of an image, "
            f"and the model {found}. Use a reference of the same patch and image size, or --metric knn."
        )


def cosines(
    found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor], trailing: bool = False
) -> torch.Tensor:
    """Of the class token, and of the patch tokens in the mean over an image's patches: (b, 2).

    Args:
        found: class tokens (b, d) and patch tokens (b, p, d).
        expected: the same of the reference, perhaps with more channels: a narrower size of a bundle holds the leading
            ones, and what it lacks counts as zero, so that the cosines of all widths are of the same vectors.
        trailing: whether a narrower size holds the trailing ones.

    Raises:
        ValueError: another number of patches.
    """
    check_patches_compare(found[1].shape[1], expected[1].shape[1])
    lacking = [(e.shape[-1] - f.shape[-1], 0) for f, e in zip(found, expected)]
    whole = [functional.pad(f, pair if trailing else pair[::-1]) for f, pair in zip(found, lacking)]
    both = [functional.cosine_similarity(f, e, dim=-1) for f, e in zip(whole, expected)]
    return torch.stack([both[0], both[1].mean(dim=1)], dim=1)


def agreement(values: torch.Tensor) -> dict[str, float]:
    """`cosines` of all images, (n, 2), as fields of a row: the means over images and the 5th percentiles."""
    names = (("cosine", "cosine_p5"), ("patch_cosine", "patch_cosine_p5"))
    fields = {}
    for pair, column in zip(names, values.unbind(1)):
        fields |= zip(pair, mean_and_low(column))
    return fields


def mean_error(values: torch.Tensor) -> float:
    """The standard error of the mean of numbers, (n,), to 6 digits; of a single one it is not known, and 0."""
    return round(float(values.double().std()) / len(values) ** 0.5, 6) if len(values) > 1 else 0.0


def mean_and_low(values: torch.Tensor) -> tuple[float, float]:
    """The mean of cosines, (n,), and their 5th percentile, to 6 digits."""
    values = values.double().clamp(-1, 1)
    return round(float(values.mean()), 6), round(float(torch.quantile(values, LOW / 100)), 6)
