"""Laws of the values of training commands: what a flag, a method or an augmentation changes, and nothing else.

Against recipes that are put together in Python, setting by setting; methods as their papers say.

    pytest tests/training/options/test_option_values.py
"""

import dataclasses
from pathlib import Path

import pytest
from asking import FIELDS, FLAGS, OTHERS, SINGLE, asked

from modeling_lingene import cli
from modeling_lingene.images.augmentation import AUGMENTATIONS, Augmentation
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.named import RECIPES
from modeling_lingene.training.options import asked_recipe
from modeling_lingene.training.recipes import Recipe


# What a field needs beside it, on the command line and of the recipe.
NEEDS = {
    "kind": ("--teacher x", {"teacher": "x"}),
    **dict.fromkeys(
        ("feature_heads", "mask_share", "metric", "teacher_size"),
        ("--teacher x --objective features", {"teacher": "x", "objective": Objective(kind="features")}),
    ),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_by_name_alone_is_that_recipe(recipe):
    """No default of a flag may stand over what the recipe says."""
    assert asked(f"--recipe {recipe}") == RECIPES[recipe]
    assert asked(f"--recipe {recipe} --resume") == RECIPES[recipe]


def test_data_alone_is_a_recipe_of_defaults():
    """The same that Python gives."""
    assert asked("--data faces") == Recipe("faces")


@pytest.mark.parametrize("base", [*RECIPES, None])
@pytest.mark.parametrize("group, name", [*FIELDS, *((None, name) for name in SINGLE)])
def test_a_flag_changes_its_setting_and_nothing_else(base, group, name):
    """From every recipe and from none; the value arrives with the type of the field."""
    typed, value = OTHERS[group][name] if group else SINGLE[name]
    before = RECIPES[base] if base else Recipe("digits")
    if name == "device":
        typed = value = "auto" if before.training.device == "cpu" else "cpu"
    flag = "--" + FLAGS.get(name, name).replace("_", "-")
    needed, changes = NEEDS.get(name, ("", {}))
    before = dataclasses.replace(before, **changes)
    given = f"{needed} {flag}" if typed is True else f"{needed} {flag} {typed}"
    settings = f"--recipe {base} {given}" if base else ("" if name == "data" else "--data digits ") + given
    got = asked(settings)
    if group:
        expected = dataclasses.replace(before, **{group: dataclasses.replace(getattr(before, group), **{name: value})})
    else:
        expected = dataclasses.replace(before, **{name: value})
    assert got == expected
    arrived = getattr(getattr(got, group) if group else got, name)
    assert type(arrived) is type(value) and (typed is True or got != before)


def test_no_turns_a_boolean_of_a_recipe_off():
    """The paper's images are flipped and cropped; a flag that can only turn on could not undo it."""
    paper = RECIPES["paper_imagenet"]
    assert paper.augmentation.flip and paper.augmentation.resized_crop
    got = asked("--recipe paper_imagenet --no-flip")
    assert got == dataclasses.replace(paper, augmentation=dataclasses.replace(paper.augmentation, flip=False))
    assert asked("--data faces --no-compile --no-cache-teacher") == Recipe("faces")
    assert asked("--data faces --flip --no-flip") == Recipe("faces")


def test_an_empty_word_and_a_zero_are_values_too():
    """They are false in Python, and must not pass for `not given`."""
    paper = RECIPES["paper_imagenet"]
    parser = cli.build_parser("decompose")
    line = ["decompose", "--out", "out", "--recipe", "paper_imagenet", "--teacher", "", "--rand-augment", ""]
    got = asked_recipe(parser.parse_args([*line, "--erasing", "0", "--workers", "0"]))
    augmentation = dataclasses.replace(paper.augmentation, rand_augment="", erasing=0.0)
    assert got == dataclasses.replace(paper, teacher="", workers=0, augmentation=augmentation)


def test_empty_lists_take_back_what_a_recipe_chooses():
    """Or nobody could train a recipe at its full depth alone."""
    recipe = asked("--recipe fashion_mnist --depths= --totals=")
    assert RECIPES["fashion_mnist"].decomposition.depths
    assert recipe.decomposition.depths == () and recipe.decomposition.totals == ()


def test_a_method_is_what_its_paper_says_whatever_the_recipe_had_and_flags_change_parts():
    """LinDec, section 3.2: incremental, Eq. 3, CE + KL; Scala: a tenth full only, hard labels, isolated activation."""
    paper = asked("--recipe fashion_mnist_sizes --method scala")
    assert paper.decomposition == DecompositionSettings(
        "elastic",
        depths=(3, 4),
        widths=("1/4", "1/2", "3/4"),
        sampling="scala",
        full_first=0.1,
        isolated_activation=True,
    )
    assert paper.objective == Objective("hard")
    others = {"decomposition": None, "objective": Objective()}
    assert dataclasses.replace(paper, **others) == dataclasses.replace(RECIPES["fashion_mnist_sizes"], **others)
    assert paper.decomposition.prefixes(6) == (6,)
    components = asked("--data faces --widths 1/3,2/3 --method scala").decomposition.prefixes(12)
    assert components == (12,)  # Scala knows no prefixes
    assert asked("--data faces --widths 1/3 --method scala --totals 4,12").decomposition.prefixes(12) == (4, 12)
    linear = asked("--recipe fashion_mnist --method lindec --distillation soft")
    assert (linear.decomposition.schedule, linear.model.preset, linear.objective) == (
        "incremental",
        "paper",
        Objective(),
    )
    changed = asked("--data faces --method scala --distillation soft --no-isolated-activation")
    assert changed.objective == Objective("soft") and not changed.decomposition.isolated_activation


@pytest.mark.parametrize(
    "line, weight",
    [
        ("", 1.0),
        ("--schedule elastic --widths 1/3", 1.0),
        ("--totals 12", 0.0),
        ("--schedule incremental", 0.0),
        ("--schedule simultaneous", 1.0),
        ("--schedule simultaneous --totals 12", 0.0),
        ("--method lindec", 0.0),
        ("--method scala --widths 1/3", 0.0),
        ("--degree-weight 0", 0.0),
        ("--schedule incremental --degree-weight 1", 1.0),
    ],
)
def test_the_degree_weight_is_the_schedules_unless_it_is_given(line, weight):
    """It helps prefixes of single runs, and costs incremental ones, as tests/test_evidence.py derives."""
    recipe = asked(f"--data faces {line}")
    assert recipe.model.shape(recipe.decomposition)["degree_weight"] == weight


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("base", ["--recipe digits", "--recipe paper_imagenet", "--data faces"])
def test_augment_replaces_all_parts_and_single_flags_change_it(base, name):
    """`none` means none, whatever the recipe had; the flags win wherever they stand on the line."""
    before, named = asked(base), Augmentation(**AUGMENTATIONS[name])
    assert asked(f"{base} --augment {name}") == dataclasses.replace(before, augmentation=named)
    changed = dataclasses.replace(named, crop_padding=2, flip=False, mixup=0.3)
    for line in (
        "--augment {} --crop-padding 2 --no-flip --mixup 0.3",
        "--mixup 0.3 --no-flip --augment {} --crop-p 2",
    ):
        assert asked(f"{base} {line.format(name)}").augmentation == changed


def test_the_order_of_the_flags_makes_no_difference_and_groups_do_not_mix():
    """All at once, as in a script."""
    words = ["--recipe digits", "--depth 4", "--depths 2,4", "--totals 1,6", "--epochs 2", "--temperature 4"]
    words += ["--data faces", "--flip"]
    got, again = asked(" ".join(words)), asked(" ".join(reversed(words)))
    digits = RECIPES["digits"]
    assert got == again
    assert got == dataclasses.replace(
        digits,
        data="faces",
        model=dataclasses.replace(digits.model, depth=4),
        decomposition=dataclasses.replace(digits.decomposition, depths=(2, 4), totals=(1, 6)),
        training=dataclasses.replace(digits.training, epochs=2),
        objective=dataclasses.replace(digits.objective, temperature=4.0),
        augmentation=dataclasses.replace(digits.augmentation, flip=True),
    )


def test_asking_leaves_the_recipes_as_they_are():
    """They are shared by every caller of this process."""
    before = repr(RECIPES), repr(AUGMENTATIONS)
    asked("--recipe digits --epochs 2 --augment mixed --mixup 0.1 --totals 1,6")
    assert (repr(RECIPES), repr(AUGMENTATIONS)) == before


@pytest.mark.parametrize("resume", [False, True])
def test_the_command_passes_recipe_folder_and_resuming_on(monkeypatch, capsys, resume):
    """Without `--resume` a folder that is in use must be refused, so it may never be assumed."""
    calls = []
    monkeypatch.setattr(recipes, "decompose", lambda *inputs, **named: calls.append((inputs, named)) or [])
    line = ["decompose", "--out", "runs/one", "--recipe", "digits", "--seed", "3", *(["--resume"] if resume else [])]
    assert cli.main(line) == 0
    digits = RECIPES["digits"]
    expected = dataclasses.replace(digits, training=dataclasses.replace(digits.training, seed=3))
    assert calls == [((expected, Path("runs/one")), {"resume": resume})]
    assert capsys.readouterr().err == ""
