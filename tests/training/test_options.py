"""Laws of the flags of training commands: one per setting, described by its docstring, changing nothing else.

pytest tests/training/test_options.py
"""

import argparse
import dataclasses
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import helpers
from modeling_lingene import cli
from modeling_lingene.images.augmentation import AUGMENTATIONS, Augmentation
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.options import GROUPS, add_recipe_options, asked_recipe, described
from modeling_lingene.training.recipes import ABOUT, RECIPES, Recipe


# Every setting, and another value than its default and those of the recipes, as it is typed and as it arrives.
OTHERS: dict[str, dict[str, tuple[str, Any]]] = {
    "model": {
        "hidden_size": ("48", 48),
        "num_attention_heads": ("8", 8),
        "intermediate_size": ("96", 96),
        "image_size": ("40", 40),
        "patch_size": ("5", 5),
        "depth": ("9", 9),
        "stages": ("2,4", (2, 4)),
        "window_size": ("4", 4),
        "num_components": ("3", 3),
        "preset": ("other", "other"),
        "basis": ("taylor", "taylor"),
        "nodes": ("uniform", "uniform"),
        "start_degree": ("2", 2),
        "degree_weight": ("0.5", 0.5),
        "depth_map": ("select", "select"),
        "dropout": ("1e-1", 0.1),
    },
    "decomposition": {
        "schedule": ("simultaneous", "simultaneous"),
        "totals": ("1,3,5", (1, 3, 5)),
        "depths": ("7", (7,)),
        "sampling": ("sandwich", "sandwich"),
        "widths": ("1/4,1/2", ("1/4", "1/2")),
        "full_share": ("1", 1.0),
        "full_first": ("0.1", 0.1),
        "isolated_activation": (True, True),
        "new_components": ("random", "random"),
        "freeze_outside": (True, True),
    },
    "training": {
        "epochs": ("7", 7),
        "batch_size": ("33", 33),
        "accumulation": ("3", 3),
        "learning_rate": ("3e-4", 3e-4),
        "weight_decay": ("0", 0.0),
        "warmup": ("0.25", 0.25),
        "max_grad_norm": ("0.5", 0.5),
        "ema": ("0.99", 0.99),
        "seed": ("-5", -5),
        "precision": ("fp16", "fp16"),
        "device": ("{cpu,auto}", None),
        "compile": (True, True),
        "activation_checkpointing": (True, True),
        "checkpoint_every": ("50", 50),
        "keep_checkpoints": ("4", 4),
        "evaluate_every": ("6", 6),
        "tracker": ("wandb", "wandb"),
    },
    "objective": {
        "distillation": ("hard", "hard"),
        "temperature": ("3", 3.0),
        "label_smoothing": ("0.1", 0.1),
        "kind": ("features", "features"),
        "feature_heads": ("identity", "identity"),
        "mask_share": ("0.3", 0.3),
    },
    "augmentation": {
        "crop_padding": ("3", 3),
        "flip": (True, True),
        "resized_crop": (True, True),
        "rand_augment": ("rand-m5", "rand-m5"),
        "color_jitter": ("0.4", 0.4),
        "erasing": ("0.5", 0.5),
        "mixup": ("0.2", 0.2),
        "cutmix": ("0.7", 0.7),
        "mixing": ("0.5", 0.5),
    },
}
SINGLE = {
    "data": ("faces", "faces"),
    "init": ("bundle", "bundle"),
    "teacher": ("timm:x", "timm:x"),
    "teacher_size": ("196", 196),
    "cache_teacher": (True, True),
    "cache_gb": ("1.5", 1.5),
    "workers": ("0", 0),
    "streaming": (True, True),
    "validation_share": ("0.2", 0.2),
    "validation_seed": ("3", 3),
    "epoch_images": ("600", 600),
    "relabel": (True, True),
}
FIELDS = [(group, name) for group, names in OTHERS.items() for name in names]
FLAGS = {"kind": "objective"}  # of fields that have another name there
# What a field needs beside it, on the command line and of the recipe.
NEEDS = {
    "kind": ("--teacher x", {"teacher": "x"}),
    **dict.fromkeys(
        ("feature_heads", "mask_share", "teacher_size"),
        ("--teacher x --objective features", {"teacher": "x", "objective": Objective(kind="features")}),
    ),
}


def options(line: str) -> argparse.Namespace:
    """The flags of one command line, parsed as `lingene decompose` does."""
    return cli.build_parser("decompose").parse_args(["decompose", "--out", "out", *line.split()])


def asked(line: str) -> Recipe:
    return asked_recipe(options(line))


def actions() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser()
    add_recipe_options(parser)
    return {action.dest: action for action in parser._actions}


def titles() -> dict[str, str]:
    """{flag's name: title of the group it stands in}."""
    parser = argparse.ArgumentParser()
    add_recipe_options(parser)
    return {action.dest: group.title for group in parser._action_groups for action in group._group_actions}


def texts(settings: type) -> dict[str, str]:
    """The same as `described`, read line by line: what is indented once more goes on."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(settings.__doc__).partition("\nArgs:\n")[2].splitlines():
        if not line.strip():
            break
        if line[:4] == "    " and line[4] != " ":
            head, text = line[4:].split(": ", 1)
            names = head.split(", ")
        else:
            text = line.strip()
        found |= {name: f"{found.get(name, '')} {text}".strip() for name in names}
    return found


def test_the_groups_are_the_settings_of_a_recipe():
    """A setting that no flag reaches could only be changed in Python."""
    assert {field.name: field.type for field in dataclasses.fields(Recipe) if field.name in GROUPS} == GROUPS
    assert {field.name for field in dataclasses.fields(Recipe)} == GROUPS.keys() | SINGLE.keys()
    for group, settings in GROUPS.items():
        assert {field.name for field in dataclasses.fields(settings)} == OTHERS[group].keys()


def test_no_two_settings_have_one_name():
    """They share one command line, and one flat identity."""
    others = ["recipe", "method", "out", "resume", "augment", "command", "quiet"]
    names = [*SINGLE, *(name for _, name in FIELDS), *others]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("settings", [*GROUPS.values(), Recipe], ids=lambda settings: settings.__name__)
def test_every_field_has_a_text_of_its_own(settings):
    """Read a second time line by line; a field without one would break the command, a run of two would mislead."""
    told = described(settings)
    expected = {field.name for field in dataclasses.fields(settings) if field.name not in GROUPS}
    assert told.keys() == expected and told == texts(settings)
    for text in told.values():
        assert text == " ".join(text.split()) and text.endswith(".")


@pytest.mark.parametrize("settings", [*GROUPS.values(), Recipe], ids=lambda settings: settings.__name__)
def test_the_texts_are_the_same_where_python_strips_the_docstring(settings):
    """From 3.13 on the compiler removes the indentation that a docstring's lines share."""
    stripped = type(settings.__name__, (), {"__doc__": inspect.cleandoc(settings.__doc__)})
    assert described(stripped) == texts(settings)


@pytest.mark.parametrize("group, name", [*FIELDS, *((None, name) for name in SINGLE if name != "data")])
def test_every_setting_has_its_flag_with_its_text_and_default_in_its_group(group, name):
    """The field's name with dashes; what the docstring says is what `--help` says."""
    settings, action = GROUPS.get(group, Recipe), actions()[name]
    flag, default = (
        FLAGS.get(name, name).replace("_", "-"),
        {field.name: field.default for field in dataclasses.fields(settings)}[name],
    )
    assert action.option_strings == [f"--{flag}", *([f"--no-{flag}"] if isinstance(default, bool) else [])]
    shown = ",".join(str(part) for part in default) if isinstance(default, tuple) else str(default)
    suffix = f" (default: {shown})" if shown else ""
    assert action.help.replace("%%", "%") == texts(settings)[name] + suffix
    assert action.default is None and not action.required
    assert titles()[name] == (group or "options")


def test_a_few_texts_word_by_word():
    """Of one line, of several, of two fields at once, and the last before `Raises`."""
    told = {name: action.help for name, action in actions().items()}
    assert told["patch_size"] == "pixels. (default: 4)"
    assert told["totals"] == (
        "components after each phase of the incremental schedule; also the prefixes that are measured. Empty: "
        "doubling up to all, with the sampling `scala` all alone. With all alone, no prefixes are drawn."
    )
    assert told["mixup"] == told["cutmix"] and told["mixup"].startswith("alpha of the Beta distribution; 0 for none")
    assert told["label_smoothing"] == "of the cross-entropy with the labels. (default: 0.0)"


def test_help_prints_the_groups_and_every_flag(capsys):
    """A percent sign in a docstring must not break it either: argparse formats what it prints."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["decompose", "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and printed.startswith("usage: lingene decompose --data DATA --out DIR")
    headings = re.findall(r"^(\w+):$", printed, re.MULTILINE)
    assert headings == ["options", "model", "decomposition", "training", "objective", "augmentation"]
    sections = dict(zip(headings, re.split(r"^\w+:$", printed, flags=re.MULTILINE)[1:]))
    for group, name in FIELDS:
        flag = FLAGS.get(name, name).replace("_", "-")
        assert re.search(rf"^  --{flag}[ ,\n]", sections[group], re.MULTILINE)
    for name in ("recipe", "data", "out", "resume", "augment", "teacher", "cache-teacher", "workers"):
        assert re.search(rf"^  --{name}[ ,\n]", sections["options"], re.MULTILINE)
    assert all(name in printed for name in (*RECIPES, *AUGMENTATIONS))


@dataclasses.dataclass(frozen=True)
class Shares:
    """Something.

    Args:
        share: 50 % (100%) of all, %(prog)s.
    """

    share: float = 0.5


def test_a_percent_sign_in_a_text_is_printed_as_it_is(monkeypatch, capsys):
    """`50 %` in a docstring is a conversion to argparse's formatting."""
    monkeypatch.setitem(GROUPS, "objective", Shares)
    with pytest.raises(SystemExit):
        cli.main(["decompose", "--help"])
    assert "50 % (100%) of all, %(prog)s. (default: 0.5)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_after_a_recipe_shows_its_values_and_help_alone_the_defaults(capsys, recipe):
    """What a flag changes is seen before it is changed; the page said 192 channels where the recipe has 64."""
    pages = []
    for line in (["--recipe", recipe], []):
        with pytest.raises(SystemExit):
            cli.main(["decompose", *line, "--help"])
        pages.append("".join(capsys.readouterr().out.split()))  # lines break at hyphens, too
    for settings in (RECIPES[recipe], *(getattr(RECIPES[recipe], group) for group in GROUPS)):
        for name, value in vars(settings).items():
            if name not in ("data", *GROUPS) and value not in ("", ()):
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                text = f"{described(type(settings))[name]} ({recipe}: {shown})"
                assert "".join(text.split()) in pages[0], name
    assert f"({recipe}:" not in pages[1] and "tostage.(default:192)" in pages[1]


def test_recipes_are_listed_with_what_they_train_and_each_as_a_command_that_is_it(capsys):
    """The command is parsed again: it must be the recipe, setting by setting."""
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"\| +fashion_mnist_sizes \|.* 1/4, 1/2, 3/4, 1 \|", listed)
    assert re.search(r"\| +digits \| +digits \| +6 \| +64 \| +4 \| incremental \| +1, 2, 4, 6 \|", listed)
    assert ABOUT.keys() == RECIPES.keys() and all(f"{name}: {about}" in listed for name, about in ABOUT.items())
    for name, recipe in RECIPES.items():
        assert cli.main(["recipes", name]) == 0
        told = capsys.readouterr().out
        words = shlex.split(told.splitlines()[-1])
        assert ABOUT[name] in told and asked_recipe(cli.build_parser("decompose").parse_args(words[1:])) == recipe
    assert cli.main(["recipes", "gruel"]) == 2
    assert "digits" in capsys.readouterr().err


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


def test_a_method_is_what_its_paper_says_whatever_the_recipe_had_and_flags_change_parts():
    """LinDec, section 3.2: incremental, Eq. 3, CE + KL; Scala: a tenth full only, hard labels, isolated activation."""
    paper = asked("--recipe fashion_mnist_sizes --method scala")
    assert paper.decomposition == DecompositionSettings(
        "elastic",
        totals=(6,),
        depths=(3, 4),
        widths=("1/4", "1/2", "3/4"),
        sampling="scala",
        full_first=0.1,
        isolated_activation=True,
    )
    assert paper.objective == Objective("hard")
    others = {"decomposition": None, "objective": Objective()}
    assert dataclasses.replace(paper, **others) == dataclasses.replace(RECIPES["fashion_mnist_sizes"], **others)
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
        ("--schedule simultaneous", 0.0),
        ("--method lindec", 0.0),
        ("--method scala --widths 1/3", 0.0),
        ("--degree-weight 0", 0.0),
        ("--schedule incremental --degree-weight 1", 1.0),
    ],
)
def test_the_degree_weight_is_the_schedules_unless_it_is_given(line, weight):
    """It helps prefixes that are drawn, and nothing else (tests/benchmarks/results/schedules_fashion.json)."""
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


@pytest.mark.parametrize("line", ["", "--resume", "--epochs 3", "--teacher x"])
def test_neither_recipe_nor_data_is_refused_and_says_what_to_give(line, tmp_path, monkeypatch, capsys):
    """In one line, status 2, and no folder is made."""
    with pytest.raises(ValueError, match="`data`.*--data.*--recipe"):
        asked(line)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["decompose", "--out", "out", *line.split()]) == 2
    printed, named = capsys.readouterr(), "resume" if "resume" in line else "data"
    assert printed.out == "" and re.fullmatch(rf"lingene decompose: `--{named}` [^\n]*\n", printed.err)
    assert list(tmp_path.iterdir()) == []


BAD = [
    "epochs 0",
    "batch-size 0",
    "accumulation -1",
    "learning-rate 0",
    "learning-rate nan",
    "learning-rate inf",
    "weight-decay -1",
    "warmup 1.5",
    "max-grad-norm 0",
    "ema 1",
    "precision fp64",
    "device tpu",
    "checkpoint-every -1",
    "keep-checkpoints 0",
    "evaluate-every -1",
    "schedule fast",
    "totals 4,2,1",
    "totals 1,1",
    "totals 0,1",
    "sampling two",
    "full-share 1.1",
    "full-share nan",
    "new-components one",
    "distillation medium",
    "temperature 0",
    "temperature nan",
    "label-smoothing 1",
    "crop-padding -1",
    "color-jitter -0.1",
    "erasing 2",
    "mixup nan",
    "cutmix -1",
    "mixing 1.01",
]
BAD_MODELS = [
    "hidden-size 0",
    "hidden-size -48",
    "num-attention-heads 0",
    "intermediate-size -1",
    "image-size -16",
    "patch-size 0",
    "patch-size -4",
    "depth 0",
    "num-components -1",
    "preset papery",
    "basis cosine",
    "nodes random",
    "start-degree -2",
    "degree-weight nan",
    "depth-map nearest",
    "dropout 1.5",
    "dropout -0.1",
    "dropout nan",
]


def value_of(line: str) -> str:
    """How a message shows it: without the quotes or the brackets of its type."""
    return line.split()[1].replace(",", ", ")


@pytest.mark.parametrize("line", BAD)
@pytest.mark.parametrize("base", ["--recipe digits", "--data faces"])
def test_a_value_that_cannot_be_is_refused_with_the_name_of_its_field(base, line):
    """Before anything is loaded."""
    field = line.split()[0].replace("-", "_")
    with pytest.raises(ValueError, match=rf"`{field}`.*{re.escape(value_of(line).rstrip('.0'))}"):
        asked(f"{base} --{line}")


@pytest.mark.parametrize("line", BAD_MODELS)
def test_a_network_that_cannot_be_is_refused_with_the_name_of_its_field(line):
    """At the latest when the images say the size and the classes; not by the shape of some tensor."""
    field = line.split()[0].replace("-", "_")
    with pytest.raises(ValueError, match=rf"`{field}`"):
        recipe = asked(f"--data faces --{line}")
        recipe.model.config(helpers.pictures(7), recipe.decomposition)


def test_workers_below_zero_are_refused_by_name():
    """The loader would say `num_workers`, hours later or never."""
    with pytest.raises(ValueError, match="`workers`"):
        asked("--data faces --workers -1")


def test_empty_lists_take_back_what_a_recipe_chooses():
    """Or nobody could train a recipe at its full depth alone."""
    recipe = asked("--recipe fashion_mnist --depths= --totals=")
    assert RECIPES["fashion_mnist"].decomposition.depths
    assert recipe.decomposition.depths == () and recipe.decomposition.totals == ()


@pytest.mark.parametrize("flag", ["--totals", "--depths"])
@pytest.mark.parametrize("text", ["1,x", "1.5", "1,,2", "1,", "[1,2]", "1;2", "one"])
def test_a_list_that_is_none_is_an_error_of_the_command_line_that_shows_it(capsys, flag, text):
    """Status 2 from argparse; the last line names the option, what came, and how it should look."""
    with pytest.raises(SystemExit) as stop:
        options(f"--data faces {flag} {text}")
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and flag in last and repr(text) in last and "1,2,4" in last


@pytest.mark.parametrize(
    "line", ["--epochs 1.5", "--warmup x", "--augment all", "--recipe cifar", "--flip yes", "--deptj 3", "--batch 8,9"]
)
def test_a_flag_that_cannot_be_parsed_is_status_2(capsys, line):
    """As everywhere in this command line."""
    with pytest.raises(SystemExit) as stop:
        options(f"--data faces {line}")
    assert stop.value.code == 2
    assert re.search(rf"{line.split()[0][2:]}|yes", capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("line", ["--data faces", "--data faces --resume", "--data faces --resume a --out b"])
def test_the_folder_must_be_named_and_be_one(capsys, line):
    """A run writes gigabytes: not into whatever folder one stands in."""
    assert cli.main(["decompose", *line.split()]) == 2
    assert "`--out`" in capsys.readouterr().err and not Path("a").exists()


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


@pytest.mark.parametrize("line", ["", "--resume"])
def test_an_interrupted_command_says_how_to_go_on(monkeypatch, capsys, line):
    """`--resume` is a flag and that sentence too; one must not overwrite the other."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "decompose", interrupted)
    assert cli.main(["decompose", "--out", "out", "--data", "faces", *line.split()]) == 130
    told = capsys.readouterr().err.strip()
    assert told == "lingene decompose: interrupted. lingene decompose --resume out goes on."
