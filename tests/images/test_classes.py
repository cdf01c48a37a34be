"""Laws of classes by name: a set's label is the model's output of that name, or the two do not compare.

pytest tests/images/test_classes.py
"""

import pytest

from modeling_lingene.images.classes import as_the_model_has_them, names_of, places_of
from modeling_lingene.images.data import LabelledImages


FLOWERS = ["daisy", "rose", "tulip"]


def images(names: list[str], labels: list[int]) -> LabelledImages:
    return LabelledImages([None] * len(labels), labels, names, "set", "test")


@pytest.mark.parametrize(
    "names, own, places",
    [
        (FLOWERS, FLOWERS, [0, 1, 2]),
        (["rose", "daisy", "tulip"], FLOWERS, [1, 0, 2]),
        (["tulip"], FLOWERS, [2]),
        (["Rose", "DAISY", "tu-lip "], FLOWERS, [1, 0, 2]),
        (["T-shirt/top"], ["Bag", "T - shirt / top"], [1]),
        (["crane", "crane", "maillot"], ["crane", "crane", "maillot"], [0, 1, 2]),  # as ImageNet has them
        (["crane", "maillot"], ["crane", "crane", "maillot"], None),
        (["crane", "crane"], ["crane", "maillot"], None),
        (["rose", "lily"], FLOWERS, None),
        (["0", "1"], ["zero", "one"], None),
        (["+", "-"], ["-", "+"], [1, 0]),  # nothing but signs: compared as they are
    ],
)
def test_classes_are_found_by_name_or_not_at_all(names, own, places):
    """Another order and fewer classes are found, others and names that stand twice are not."""
    assert places_of(names, own) == places


def test_only_transformers_own_numbering_is_no_name():
    """Digits are called 0 to 9; a bundle of them must not pass for one of ten clothes."""
    assert names_of({0: "LABEL_0", 1: "LABEL_1"}) == []
    assert names_of({1: "1", 0: "0"}) == ["0", "1"] and names_of({"1": "b", "0": "LABEL_0"}) == ["LABEL_0", "b"]


def test_labels_become_the_models_outputs():
    """The images of a class stay its images; what needs no change is the very set."""
    same = images(FLOWERS, [0, 1, 2, 2])
    own = dict(enumerate(FLOWERS))
    assert as_the_model_has_them(same, own, "`model` m") is same
    turned = as_the_model_has_them(images(["tulip", "rose"], [0, 1, 1]), own, "`model` m")
    assert (turned.labels, turned.class_names) == ([2, 1, 1], FLOWERS)
    nameless = {index: f"LABEL_{index}" for index in range(4)}
    assert as_the_model_has_them(same, nameless, "`model` m") is same


def test_other_classes_are_refused_with_both_names_and_the_way_out():
    """Or one gets the accuracy of chance, and a table that says so."""
    other = images(["coat", "bag", "boot"], [0, 1, 2])
    with pytest.raises(
        ValueError, match=r"`model` m has no class coat, bag, boot of set; it knows daisy.*give --relabel"
    ):
        as_the_model_has_them(other, dict(enumerate(FLOWERS)), "`model` m")
    assert as_the_model_has_them(other, dict(enumerate(FLOWERS)), "`model` m", relabel=True) is other
    with pytest.raises(ValueError, match="`model` m has no class lily of set; it knows daisy, rose, tulip"):
        as_the_model_has_them(images(["rose", "lily"], [0]), dict(enumerate(FLOWERS)), "`model` m")
    with pytest.raises(ValueError, match="`num_labels`"):
        as_the_model_has_them(images([*FLOWERS, "lily"], [3]), dict(enumerate(FLOWERS)), "`model` m", relabel=True)
