"""What models are measured by: which metrics, on which images, against whom; and one model measured by them.

With a classifier that is accuracy. Without one: k-NN and a linear probe, on labelled images in two parts, and
agreement with a reference, on any pictures.
"""

import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging

from ..budget_lingene import METRICS
from ..bundle_lingene import Bundle
from ..configuration_base_lingene import BUNDLE_TYPES
from ..families_lingene import tower_config
from ..folders import processor_or_none
from ..found import check_holds_model, public_name
from ..images.batches import Batches, batches
from ..images.class_folders import WHOLE
from ..images.classes import as_the_model_has_them
from ..images.data import HELD_OUT, LabelledImages, held_out, load_images
from ..images.pictures import load_pictures
from ..readout import Readout, brought_back, is_trailing, known_readout, read_readout
from .features import Kept, Reference, Tokens, class_and_patches, load_encoder
from .judging import agreement, check_patches_compare, cosines, knn_accuracy, mean_error, probe_accuracy, probe_needs
from .metrics import accuracy, check_pictures, patch_count, share_error


logger = logging.get_logger(__name__)

JUDGES = {"knn": knn_accuracy, "probe": probe_accuracy}  # by labelled images in two parts
LABELLED = {"accuracy", *JUDGES}
OWN = "the full size"  # of the bundle itself, as a reference


@dataclass(frozen=True)
class Sets:
    """What is measured and on what.

    Args:
        metrics: by name; the first decides between sizes.
        images: that are measured.
        train: labelled images that k-NN and the probe know.
    """

    metrics: tuple[str, ...]
    images: LabelledImages
    train: LabelledImages | None = None

    def labelled_for(self, id2label: Mapping[int, str], who: str, relabel: bool = False) -> "Sets":
        """The same with labels that are a model's outputs; see `as_the_model_has_them`."""
        parts = (self.images, self.train)
        images, train = (part and as_the_model_has_them(part, id2label, who, relabel) for part in parts)
        return Sets(self.metrics, images, train)


def metric_names(asked: str | None) -> tuple[str, ...]:
    """`knn,cosine` -> ("knn", "cosine"), without repeats; () for None.

    Raises:
        ValueError: a name that is no metric's.
    """
    names = tuple(dict.fromkeys(name.strip() for name in asked.split(","))) if asked is not None else ()
    wrong = [name for name in names if name not in METRICS]
    if wrong:
        raise ValueError(f"`metric` must be one or more of {', '.join(METRICS)}; got {', '.join(map(repr, wrong))}.")
    return names


def open_sets(data: str, split: str, metric: str | None, classifier: bool) -> Sets:
    """The images that a model is measured on, and by which metrics where none is asked for.

    Args:
        data, split: as for `load_images`; for the cosine alone also as for `load_pictures`.
        metric: names, comma-separated; default accuracy for a classifier, and without one k-NN with labels and the
            cosine without.
        classifier: whether the model has one.

    Returns:
        The split, and where k-NN or the probe is measured the train part. Of a set that is not divided a fifth is held
        out by seed and measured, the rest is the train part.

    Raises:
        ValueError: as `load_images` and `load_pictures`; no labels, or no train part, for a metric that needs them.
    """
    names = metric_names(metric) or ("accuracy",) * classifier
    if names and not LABELLED & set(names):
        return Sets(names, load_pictures(data, split))
    if names == ("accuracy",):
        return Sets(names, load_images(data, split))
    images, why = _labelled(data, "train" if split == HELD_OUT else split)
    if images is None and names:
        raise ValueError(f"`metric` {', '.join(names)} needs labels: {why} Without labels: --metric cosine.")
    if images is None:
        images = load_pictures(data, split)  # or its error, where there is nothing at all
        logger.warning(f"{data} has no labels for k-NN: the cosine is measured.")
        return Sets(("cosine",), images)
    names = names or ("knn",)
    if images.split == WHOLE or split == HELD_OUT:
        train, images = held_out(images)
        return Sets(names, images, train)
    try:
        return Sets(names, images, load_images(data, "train"))
    except ValueError as error:
        raise ValueError(f"`metric` {names[0]} needs a train part: {error} Without: --metric cosine.") from None


def _labelled(data: str, split: str) -> tuple[LabelledImages | None, str]:
    """The labelled images, or None and why there are none; one class, a folder beside pictures perhaps, is no label.

    Of what is left out it warns only where there are labels: elsewhere it may be pictures.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            images = load_images(data, split)
        except ValueError as error:
            return None, str(error)
    if len(images.class_names) < 2:
        return None, f"{images.name} ({split}) has one class, {images.class_names[0]}."
    for one in told:
        warnings.warn(one.message, stacklevel=2)
    return images, ""


def check_sets(sets: Sets, name: str | os.PathLike, classifier: bool) -> None:
    """Refuse metrics that a model, or the images, do not have.

    Raises:
        ValueError: accuracy without a classifier; k-NN or a probe without labels, or without a train part; a probe
            with one class in it.
        ImportError: scikit-learn is missing for a probe; the message says what to install.
    """
    images, train = sets.images, sets.train
    if len(images) == 0:
        raise ValueError("`data` must hold at least one image; got none.")
    if "accuracy" in sets.metrics and not classifier:
        raise ValueError(
            f"`metric` accuracy needs a classifier, and {name} has no classifier; use knn, probe, cosine."
        )
    for metric in (metric for metric in sets.metrics if metric in JUDGES):
        if len(images.class_names) < 2:
            raise ValueError(f"`metric` {metric} needs labels, and {images.name} has none; use cosine.")
        if train is None or len(train) == 0:
            raise ValueError(f"`metric` {metric} needs `train`, labelled images that it knows; use cosine without.")
        if train.class_names != images.class_names:
            raise ValueError(f"`train` must have the classes of {images.name} ({images.split}), in the same order.")
        if (train.name, train.split) == (images.name, images.split):
            raise ValueError(
                f"`split` {images.split} is what `metric` {metric} knows: every image would find itself; measure "
                "another one."
            )
        if metric == "probe":
            probe_needs(train.labels)


def check_reference(reference: str | None, metrics: Sequence[str]) -> None:
    """Refuse a reference with which nothing is compared."""
    if reference is not None and "cosine" not in metrics:
        raise ValueError(f"`reference` is whom the cosine compares with; `metric` is {', '.join(metrics)}.")


def default_metrics(metric: str | None, classifier: bool, train: LabelledImages | None) -> tuple[str, ...]:
    """The metrics asked for; else accuracy for a classifier, k-NN where there is a train part, or the cosine."""
    return metric_names(metric) or (("accuracy",) if classifier else ("cosine",) if train is None else ("knn",))


class Yardstick:
    """Measures models by some metrics, on the same images.

    Args:
        metrics: by name; the first decides.
        images: batches of those that are measured; kept, decoded, where they fit in memory.
        train: batches of those that k-NN and the probe know, likewise.
        reference: `images` with the tokens that the cosine compares with.
        readout: brings the tokens of what is measured into the channels of the reference.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        images: Batches,
        train: Batches | None,
        reference: Reference | None = None,
        readout: Readout | None = None,
    ):
        self.metrics, self.reference, self.readout = tuple(metrics), reference, readout
        train = train if JUDGES.keys() & set(metrics) else None
        self.passes = len(images.images) + (0 if train is None else len(train.images))  # images of one model
        self.images, self.train = (
            Kept(images if reference is None else reference),
            None if train is None else Kept(train),
        )

    @torch.inference_mode()
    def measure(self, model: nn.Module, update: Callable[[int], object] = lambda count: None) -> dict:
        """Fields of a row: `metric` where it is not accuracy, and what each of the metrics asked for brings.

        Args:
            model: an encoder or a classifier in evaluation mode, where it is to run.
            update: called with the number of images after every batch.

        Raises:
            ValueError: a reference whose tokens do not compare; too many images that do not decode.
        """
        first, fields, errors = self.metrics[0], {}, {}
        queries, agreed = self._features(model, self.images, update)
        count = len(queries[1])
        known = () if self.train is None else self._features(model, self.train, update)[0]
        for metric in self.metrics:
            if metric in JUDGES:
                fields[metric] = round(JUDGES[metric](*known, *queries), 6)
            elif metric == "cosine":
                fields |= agreement(agreed) | {"reference": self.reference.name}
                fields |= {"reference_id": self.reference.id} if self.reference.id else {}
                errors[metric] = mean_error(agreed[:, 0])
            else:
                fields[metric] = round(accuracy(model, self.images)[0], 6)
            errors.setdefault(metric, share_error(fields[metric], count))
        fields |= {"images": count, "standard_errors": errors}
        return ({} if first == "accuracy" else {"metric": first}) | fields

    def _features(
        self, model: nn.Module, images: Kept, update: Callable
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor | None]:
        """Class tokens (n, d) and labels (n,) where the model is; cosines (n, 2) where there is a reference."""
        found, labels, agreed, trailing = [], [], [], is_trailing(model)
        for batch in images:
            own = class_and_patches(model, batch["pixel_values"])
            found.append(own[0]), labels.append(batch["labels"].to(own[0].device))
            if "expected_class" in batch:
                expected = (batch[key].to(own[0].device) for key in ("expected_class", "expected_patches"))
                back = brought_back(own, self.readout, trailing)
                agreed.append(cosines(back, tuple(expected), trailing).cpu())
            update(len(batch["labels"]))
        return (torch.cat(found), torch.cat(labels)), torch.cat(agreed) if agreed else None


def yardstick(
    name: str | os.PathLike,
    hidden_size: int,
    sets: Sets,
    processor: Any,
    batch_size: int = 64,
    reference: str | None = None,
    device: str = "cpu",
    config: PretrainedConfig | None = None,
    teacher: Tokens | None = None,
) -> Yardstick:
    """The yardstick for the sizes of a bundle, or for a plain model.

    Args:
        name: of it; a bundle's full size is the reference where no other is named.
        hidden_size: its full width.
        sets: what is measured, as `check_sets` lets it pass.
        processor: its own.
        reference: a transformers encoder by folder or name, with its own preprocessing where it has some.
        config: of `name`; without one, as of an exported file, patches are counted at the first batch alone.
        teacher: the reference in memory, of as many channels and patches, which is to see the very pixels that the
            sizes see: with its own preprocessing it would say something else than what they learned from it.

    Raises:
        ValueError: no reference for the cosine, or one without its use; one that cannot be read, has another width or,
            by its configuration, other patches, or one of both with turned channels that nothing brings back; these
            before its weights are loaded.
    """
    images = batches(sets.images, processor, batch_size)
    train = None if sets.train is None else batches(sets.train, processor, batch_size)
    check_reference(reference, sets.metrics)
    if "cosine" not in sets.metrics:
        return Yardstick(sets.metrics, images, train)
    chosen = name if reference is None else reference
    known = None if teacher is not None else _reference_config(name, reference)
    # What began as the reference has its channels, whatever they are: a bundle's full size, and who taught it.
    read = known_readout if reference is not None and teacher is None else read_readout
    readouts = [read(one) for one in (chosen, name)]
    if teacher is not None:
        asked = Reference(teacher, images, None, public_name(chosen), readouts[0])
        return Yardstick(sets.metrics, images, train, asked, readouts[1])
    seen, told = None, OWN
    if reference is not None:
        told = public_name(reference)
        own = processor_or_none(reference)  # without preprocessing of its own it sees the same pixels
        seen = None if own is None else Batches(sets.images, own, batch_size, warned=True)
        check_pictures(known, own, f"`reference` {reference}: its preprocessing")
        patches = config and patch_count(config, processor), patch_count(known, own or processor)
        if None not in patches:
            check_patches_compare(*patches)
    theirs, ours = (
        width if readout is None else len(readout[1])
        for width, readout in zip((known.hidden_size, hidden_size), readouts)
    )
    if theirs != ours:
        raise ValueError(
            f"`reference` {reference} has {theirs} channels, and {name} {ours}: their tokens do not compare; use a "
            "reference of that width, or --metric knn."
        )
    whole = {"allow_untrained": True} if known.model_type in BUNDLE_TYPES else {}
    model = load_encoder(chosen, known, dtype=torch.float32, **whole).to(device)
    ask = functools.partial(class_and_patches, model)
    return Yardstick(sets.metrics, images, train, Reference(ask, images, seen, told, readouts[0], model), readouts[1])


def _reference_config(name: str | os.PathLike, reference: str | None) -> PretrainedConfig:
    """Of whom the cosine compares with, the tower of pictures where there are two."""
    chosen = name if reference is None else reference
    check_holds_model("reference", chosen, "a bundle or an encoder")
    try:
        config = tower_config(AutoConfig.from_pretrained(chosen))
    except (OSError, ValueError) as error:
        raise ValueError(f"`reference` {chosen} cannot be read: {str(error).splitlines()[0]}") from None
    if reference is None and config.model_type not in BUNDLE_TYPES:
        raise ValueError(f"`reference` is missing: whom the cosine compares {name} with, by folder or name.")
    return config


def has_classifier(name: str | os.PathLike, config: PretrainedConfig) -> bool:
    """Whether a bundle or a plain model, by folder or name, has a classifier; one that does not say counts as one."""
    if config.model_type in BUNDLE_TYPES:
        return Bundle(name, config).has_head
    return not config.architectures or any(kind.endswith("ForImageClassification") for kind in config.architectures)
