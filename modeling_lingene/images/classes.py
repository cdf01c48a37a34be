"""Whether a model's classes are those of a set, by their names; and in whose order.

Names are compared without case, spaces and signs (`T-shirt/top` is `T - shirt / top`). A model that was saved without
names (transformers calls its classes LABEL_0, LABEL_1, ...) says nothing, and is taken at its number of classes.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from .data import LabelledImages, check_labels


UNNAMED = re.compile(r"LABEL_\d+")
SHOWN = 4


def names_of(id2label: Mapping[int, str]) -> list[str]:
    """The names of a model's classes in the order of its outputs; none where nobody gave any."""
    names = [str(id2label[index]) for index in sorted(id2label, key=int)]
    return [] if all(UNNAMED.fullmatch(name) for name in names) else names


def places_of(names: Sequence[str], own: Sequence[str]) -> list[int] | None:
    """Which output of a model each class of a set is; None where the names say that the classes are others.

    Args:
        names: of the set's classes.
        own: of the model's, in the order of its outputs; not empty.
    """
    wanted, known = [plain(name) for name in names], [plain(name) for name in own]
    if wanted == known:
        return list(range(len(names)))
    if len(set(wanted)) < len(wanted) or len(set(known)) < len(known):  # names that several classes have tell nothing
        return None
    places = {name: index for index, name in enumerate(known)}
    return [places[name] for name in wanted] if places.keys() >= set(wanted) else None


def plain(name: str) -> str:
    """A name as it is compared: without case, spaces and signs, unless it is made of these."""
    return "".join(sign for sign in name.casefold() if sign.isalnum()) or name


def told(names: Sequence[str]) -> str:
    """Some names, and how many there are."""
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def as_the_model_has_them(
    images: LabelledImages, id2label: Mapping[int, str], who: str, relabel: bool = False
) -> LabelledImages:
    """Images whose labels are a model's outputs: the set's classes found by name among the model's.

    Args:
        images: labelled by the set's own classes.
        id2label: the model's.
        who: is told, such as "`model` NAME".
        relabel: take class i of the set for output i, whatever the names are.

    Returns:
        The images, themselves where nothing has to change; a set that has its classes in another order, or lacks some,
        with other labels and the model's names.

    Raises:
        ValueError: the set has classes that the model has not; a label that is no output of the model.
    """
    own = names_of(id2label)
    if relabel or not own:
        check_labels(images, len(id2label))
        return images
    places = places_of(images.class_names, own)
    if places is None:
        known = {plain(name) for name in own}
        missing = [name for name in images.class_names if plain(name) not in known] or images.class_names
        raise ValueError(
            f"{who} has no class {told(missing)} of {images.name}; it knows {told(own)}. Train it on these images "
            "first; or, where class i of the set is output i of the model under another name, give --relabel."
        )
    if places == list(range(len(own))):
        check_labels(images, len(own))
        return images
    return dataclasses.replace(images, labels=[places[label] for label in images.labels], class_names=own)
