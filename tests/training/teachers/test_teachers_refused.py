"""Teachers of other classes, damaged or not there are refused by name before anything is trained.

Classes are found by their names; where names say nothing, the order stands.

    pytest tests/training/teachers/test_teachers_refused.py
"""

import json
from pathlib import Path

import pytest
import torch
from teacher_models import CLASSES, IMAGES, answers, by_hand, saved, tiny_timm, vit
from transformers import ViTModel

from modeling_lingene.training.teachers import load_teacher


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_another_number_of_classes_is_refused_with_both(tmp_path, kind):
    """The most usual mistake: a teacher of ImageNet for another set."""
    if kind == "timm":
        name, _ = tiny_timm(tmp_path / "teacher", 16, num_classes=10)
    else:
        name = saved(tmp_path / "teacher", vit(num_labels=10))
    with pytest.raises(ValueError, match=r"`teacher` .* 10 classes.* made has 7"):
        load_teacher(name, IMAGES)


def named(folder: Path, classes: list[str]) -> str:
    return saved(folder, vit(id2label=dict(enumerate(classes)), label2id={name: i for i, name in enumerate(classes)}))


def test_a_teachers_logits_are_those_of_the_images_classes_found_by_name(tmp_path):
    """By its own order they would stand for other classes, and nothing would show it; capitals make no other class."""
    classes = [f"class {index}" for index in range(CLASSES)]
    orders = ([*classes[1:], classes[0]], [name.upper() for name in reversed(classes)], ["more", *classes])
    for number, order in enumerate(orders):
        plain = [name.lower() for name in order]
        name = saved(
            tmp_path / str(number),
            vit(
                num_labels=len(order),
                id2label=dict(enumerate(order)),
                label2id={one: i for i, one in enumerate(order)},
            ),
        )
        expected = by_hand(name, IMAGES.images)[:, [plain.index(one) for one in classes]]
        assert torch.allclose(answers(load_teacher(name, IMAGES), IMAGES), expected, atol=1e-5)


def test_a_teacher_of_other_classes_is_refused_unless_relabelled(tmp_path):
    """As many outputs are no sign that they mean the same."""
    name = named(tmp_path / "teacher", [f"thing {index}" for index in range(CLASSES)])
    with pytest.raises(ValueError, match=r"`teacher` .* knows other classes \(thing 0.*made has \(class 0.*--relabel"):
        load_teacher(name, IMAGES)
    got = answers(load_teacher(name, IMAGES, relabel=True), IMAGES)
    assert torch.allclose(got, by_hand(name, IMAGES.images), atol=1e-5)


@pytest.mark.parametrize(
    "classes", [[f"Class {index}" for index in range(CLASSES)], [f"LABEL_{index}" for index in range(CLASSES)]]
)
def test_the_same_order_and_names_that_say_nothing_are_accepted(tmp_path, classes):
    """transformers' own names of nameless classes are no other order."""
    name = named(tmp_path / "teacher", classes)
    assert torch.allclose(answers(load_teacher(name, IMAGES), IMAGES), by_hand(name, IMAGES.images), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["/absent/teacher", "./absent", "", "timm:no_such_model", "timm:", "timm:local-dir:/absent/teacher"]
)
def test_a_teacher_that_is_not_there_is_refused_by_name(name):
    """One line, before anything is trained."""
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="`teacher`") as error:
        load_teacher(name, IMAGES)
    assert name in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "error", [AssertionError(), RuntimeError(""), OSError("no route\nto host"), ValueError("bad")]
)
def test_what_timm_raises_is_one_line_also_where_it_says_nothing(monkeypatch, error):
    """A bare `assert` has no message."""
    timm = pytest.importorskip("timm")

    def create_model(*_, **__):
        raise error

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ValueError, match="`teacher` timm:any cannot be loaded") as told:
        load_teacher("timm:any", IMAGES)
    assert len(str(told.value).splitlines()) == 1


def damage(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    if how == "weights of another shape":
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    if how == "cut config":
        (folder / "config.json").write_text("{")
    if how == "no weights":
        weights.unlink()
    if how == "no processor":
        (folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize(
    "how", ["cut weights", "weights of another shape", "cut config", "no weights", "no processor"]
)
def test_a_damaged_teacher_is_refused_by_name(tmp_path, how):
    """A download that was cut off, or a folder with half of what it needs, must not end in a traceback."""
    name = saved(tmp_path / "teacher")
    damage(Path(name), how)
    with pytest.raises(ValueError, match="`teacher`"):
        load_teacher(name, IMAGES)


def test_a_model_without_a_trained_head_is_no_teacher(tmp_path):
    """transformers gives a backbone a head of random numbers, and only prints so."""
    name = saved(tmp_path / "teacher", vit(model_class=ViTModel))
    with pytest.raises(ValueError, match="`teacher`"):
        load_teacher(name, IMAGES)
