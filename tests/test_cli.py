"""Laws of `lingene ...`: statuses, errors of one line, the same numbers on the terminal and in files, resuming.

Commands run in this process, as a new one costs seconds of imports; what is about processes has its own.

    pytest tests/test_cli.py
"""

import argparse
import ast
import contextlib
import errno
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from transformers import AutoModelForImageClassification, ViTForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import helpers
import modeling_lingene
from helpers import ROWS, assert_table_shows, files, number, read, table
from lingene import telling
from lingene.options import named
from modeling_lingene import cli, folders, hub, progress, readme, saving_lingene
from modeling_lingene.images.data import image_processor, load_images, to_tensors
from modeling_lingene.measuring import sweep
from modeling_lingene.measuring.metrics import count_macs
from modeling_lingene.training import recipes


COMMANDS = {"quickstart", "decompose", "convert", "export", "materialise", "evaluate", "sweep", "profile", "verify"}
COMMANDS |= {"info", "card", "push", "prune", "analyse", "zoo", "app", "recipes"}
BAR = re.compile(r"\d%\|.*\|")  # of tqdm
LONG = {  # the commands whose work takes a while
    "quickstart": "",
    "decompose": "--data digits --out out",
    "convert": "source --out out",
    "export": "bundle --to onnx --out out",
    "evaluate": "model --data digits",
    "sweep": "bundle --data digits",
    "profile": "bundle",
    "analyse": "trend model --out out",
    "prune": "model --target-macs 0.5 --data digits --out out",
    "push": "bundle org/name",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A bundle for digits with preprocessing and measured sizes, and a size of it as a plain model; read only."""
    folder = tmp_path_factory.mktemp("digits")
    config = helpers.tiny_config(num_labels=10, image_size=8)
    bundle = helpers.bundle(folder / "bundle", config)
    image_processor(8).save_pretrained(bundle)
    folders.write_sizes(bundle, ROWS)
    plain = folder / "plain"
    helpers.tiny_model(config).materialise(3).save_pretrained(plain)
    image_processor(8).save_pretrained(plain)
    return SimpleNamespace(bundle=bundle, plain=plain, model=helpers.tiny_model(config))


@pytest.fixture
def lingene(capfd: pytest.CaptureFixture):
    """Runs a command; gives its status, and the lines of both outputs that are not a progress bar's."""

    def run(*arguments: Any) -> SimpleNamespace:
        capfd.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        captured = capfd.readouterr()
        errors = [line for line in re.split(r"[\r\n]+", captured.err) if line.strip() and not BAR.search(line)]
        return SimpleNamespace(code=code, out=captured.out, errors=errors)

    return run


def test_help_lists_every_command_and_each_explains_its_options(lingene):
    """What is not listed is not found; what is listed must be there."""
    listed = lingene("--help")
    assert listed.code == 0
    assert set(re.findall(r"^    (\w+)(?: .*)?$", listed.out, re.MULTILINE)) == COMMANDS
    for command in COMMANDS:
        told = lingene(command, "--help")
        assert told.code == 0 and told.out.startswith(f"usage: lingene {command}")
        bare = re.findall(r"^  (?:-\S+|[A-Z]+)(?: [A-Z_]+)?$", told.out, re.MULTILINE)
        assert [line for line in bare if not re.search(rf"{re.escape(line)}\n {{10}}", told.out)] == []


def test_version_is_that_of_the_package(lingene):
    """What a report of a fault begins with."""
    told = lingene("--version")
    assert (told.code, told.out) == (0, f"modeling_lingene {modeling_lingene.__version__}\n")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_takes_what_its_options_give(command):
    """They arrive as keywords; one that nobody takes would end in a traceback."""
    parser = argparse.ArgumentParser()
    for add in cli.COMMANDS[command].options:
        add(parser)
    names = {action.dest for action in parser._actions} - {"help", "quiet"}
    inspect.signature(named(cli.COMMANDS[command].run)).bind(**dict.fromkeys(names))
    assert ("--quiet" in parser.format_help()) == (command in LONG)


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("command", LONG)
def test_quiet_turns_the_bars_of_every_long_command_off(monkeypatch, command, quiet):
    """While it runs and no longer; the command itself is not asked to know."""
    seen = []
    module, _, name = cli.COMMANDS[command].run.partition(":")
    monkeypatch.setattr(f"{module}.{name}", lambda **_: seen.append(progress.WANTED.get()))
    assert cli.main([command, *LONG[command].split(), *["--quiet"] * quiet]) == 0
    assert seen == [not quiet] and progress.WANTED.get()


def test_a_quiet_command_prints_its_result_and_nothing_else(digits, capfd):
    """Into a file it would be the bar's lines."""
    pytest.importorskip("sklearn")
    for quiet in (True, False):
        capfd.readouterr()
        assert cli.main(["evaluate", str(digits.plain), "--data", "digits", *["--quiet"] * quiet]) == 0
        printed = capfd.readouterr()
        assert len(table(printed.out)) == 1 and bool(BAR.search(printed.err)) != quiet
        assert "\r" not in printed.err and (printed.err == "") == quiet


@pytest.mark.parametrize("option", ["depth", "num-components", "width-ratio", "allow-untrained", "revision"])
def test_the_options_of_a_size_are_the_same_words_everywhere(lingene, option):
    """The field's name with dashes, as in `from_pretrained`."""
    assert f"--{option}" in lingene("materialise", "--help").out


# Command, and what its one line on stderr must name. B is the bundle, P the plain model, O a new folder, S a bundle of
# seven classes, N a plain model without preprocessing.
WRONG = {
    "depth 0": ("materialise B --depth 0 --out O", "`--depth`"),
    "depth negative": ("materialise B --depth -1 --out O", "`--depth`"),
    "depth too large": ("materialise B --depth 7 --out O", "`--depth`"),
    "too many components": ("materialise B --num-components 6 --out O", "`--num-components`"),
    "no component": ("materialise B --num-components 0 --out O", "`--num-components`"),
    "a width of no heads": ("materialise B --width-ratio 1/3 --out O", "`--width-ratio`"),
    "a width of 0": ("materialise B --width-ratio 0 --out O", "`--width-ratio`"),
    "a width in words": ("materialise B --width-ratio half --out O", "`--width-ratio`"),
    "a width never trained": ("materialise B --width-ratio 1/4 --out O", "`--width-ratio`"),
    "nothing fits": ("materialise B --max-params 5 --out O", "`--max-params`"),
    "a budget of 0": ("materialise B --max-params 0 --out O", "`--max-params`"),
    "a budget and a size": ("materialise B --max-macs 1e9 --depth 3 --out O", "`--max-macs`"),
    "materialise a plain model": ("materialise P --out O", "`BUNDLE`"),
    "materialise nothing": ("materialise /absent/bundle --out O", "`BUNDLE`"),
    "materialise into a file": ("materialise B --out B/config.json", "`--out`"),
    "materialise over something": ("materialise B --out P", "`--out`"),
    "evaluate depth 0": ("evaluate B --depth 0 --data digits --out O", "`--depth`"),
    "evaluate nothing": ("evaluate /absent/model --data digits --out O", "`MODEL`"),
    "evaluate on nothing": ("evaluate B --data /absent/images --out O", "`--data`"),
    "evaluate on no such split": ("evaluate B --data digits --split third --out O", "`--split`"),
    "evaluate in batches of 0": ("evaluate B --data digits --batch-size 0 --out O", "`--batch-size`"),
    "evaluate a size of a plain model": ("evaluate P --depth 2 --data digits --out O", "`--depth`"),
    "evaluate with too few classes": ("evaluate S --data digits --out O", "`num_labels`"),
    "evaluate without preprocessing": ("evaluate N --data digits --out O", "preprocessor_config.json"),
    "evaluate on no such device": ("evaluate B --data digits --device abacus --out O", "`--device`"),
    "info on nothing": ("info /absent/bundle --out O", "`BUNDLE`"),
    "info on a plain model": ("info P --out O", "`BUNDLE`"),
    "card of nothing": ("card /absent/bundle", "`BUNDLE`"),
    "card of a plain model": ("card P", "`BUNDLE`"),
    "push nothing": ("push /absent/bundle org/name", "`BUNDLE`"),
    "push a plain model": ("push P org/name", "`BUNDLE`"),
    "no epochs": ("quickstart --epochs 0 --out O", "`--epochs`"),
    "quickstart over something": ("quickstart --out P", "`--out`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gives_status_2_one_line_that_names_it_and_no_file(lingene, digits, bundle, tmp_path, case):
    """A traceback tells a user nothing, and a file that is there looks like a result."""
    line, named = WRONG[case]
    small, out = Path(shutil.copytree(bundle, tmp_path / "small")), tmp_path / "out"
    bare = Path(shutil.copytree(digits.plain, tmp_path / "bare"))
    (bare / "preprocessor_config.json").unlink()
    image_processor(16).save_pretrained(small)
    places = {"B": digits.bundle, "P": digits.plain, "S": small, "N": bare, "O": out}
    arguments = [re.sub(r"^[BPSNO](?=/|$)", lambda m: str(places[m[0]]), word) for word in line.split()]
    before = [files(folder) for folder in (tmp_path, digits.bundle, digits.plain)]
    told = lingene(*arguments)
    assert told.code == 2
    assert len(told.errors) == 1 and told.errors[0].startswith(f"lingene {arguments[0]}: ")
    assert named in told.errors[0]
    assert [files(folder) for folder in (tmp_path, digits.bundle, digits.plain)] == before


@pytest.mark.parametrize(
    "line, named",
    [
        ("", "COMMAND"),
        ("fly", "fly"),
        ("materialise", "BUNDLE"),
        ("materialise B", "--out"),
        ("materialise B --out O --depth six", "--depth"),
        ("materialise B --out O --deep 6", "--deep"),
        ("evaluate P", "--data"),
        ("quickstart --epochs 1.5", "--epochs"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_gives_status_2_and_names_the_option(lingene, line, named):
    """argparse prints its usage first; the last line says what is wrong."""
    told = lingene(*line.split())
    assert told.code == 2 and told.out == "" and named in told.errors[-1]


@pytest.mark.parametrize("error", [ValueError, OSError, ImportError])
def test_an_error_is_one_line_also_where_its_message_has_many(lingene, monkeypatch, error):
    """transformers' messages have paragraphs."""

    def describe(*_, **__):
        raise error("`bundle` is\n\n   not what\tit was")

    monkeypatch.setattr(folders, "describe", describe)
    told = lingene("info", "anything")
    assert (told.code, told.out, told.errors) == (2, "", ["lingene info: `BUNDLE` is not what it was"])


# What the system says, and the line: B is the bundle's folder, O the file that the command writes.
SYSTEM_ERRORS = {
    "denied": (PermissionError(errno.EACCES, "Permission denied", "a/file"), "a/file: Permission denied"),
    "not there": (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "a: No such file or directory"),
    "two files": (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), "a -> b: Cross-device link"),
    "a path": (IsADirectoryError(errno.EISDIR, "Is a directory", Path("a")), "a: Is a directory"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), "out.json: No space left on device"),
    "a connection": (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refused"),
    "safetensors": (SafetensorError("Error while serializing: no space"), "Error while serializing: no space"),
}


@pytest.mark.parametrize("case", SYSTEM_ERRORS)
def test_what_the_system_refuses_is_one_line_that_begins_with_the_file(lingene, monkeypatch, case):
    """`[Errno 13]` helps nobody; a full disk does not say which file, but the command knows where it writes."""
    error, line = SYSTEM_ERRORS[case]

    def describe(*_, **__):
        raise error

    monkeypatch.setattr(folders, "describe", describe)
    told = lingene("info", "anything", "--out", "out.json")
    assert (told.code, told.out, told.errors) == (2, "", [f"lingene info: {line}"])


def test_a_full_disk_without_out_is_told_with_the_bundle(lingene, monkeypatch):
    """A sweep writes into the folder that it measures."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "check_folder", full)
    assert lingene("card", "a/bundle").errors == ["lingene card: a/bundle: No space left on device"]


def test_a_result_that_cannot_be_written_is_told_with_its_place(lingene, digits, tmp_path):
    """For real: a file stands where its folder should be."""
    (tmp_path / "file").write_text("mine")
    told = lingene("info", digits.bundle, "--out", tmp_path / "file" / "info.json")
    assert told.code == 2 and len(told.errors) == 1
    expected = f"lingene info: {tmp_path / 'file' / 'info.json'} cannot be written: "
    assert told.errors[0].startswith(expected) and "Errno" not in told.errors[0]


@pytest.fixture
def unread(monkeypatch):
    """Replaces streams by pipes that nobody reads."""
    opened = []

    def replace(*names: str) -> list:
        for name in names:
            reading, writing = os.pipe()
            os.close(reading)
            opened.append(os.fdopen(writing, "w"))
            monkeypatch.setattr(sys, name, opened[-1])
        return opened

    yield replace
    for stream in opened:
        with contextlib.suppress(BrokenPipeError):
            stream.close()


@pytest.mark.parametrize("line", ["info B", "info P", "--help", *(f"{name} --help" for name in sorted(COMMANDS))])
def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word(digits, unread, capfd, line):
    """`lingene info B 2>&1 | head -1`, as every program on a system; what is still to be printed fails no more."""
    places = {"B": str(digits.bundle), "P": str(digits.plain)}
    streams = unread("stdout", "stderr")
    try:
        assert cli.main([places.get(word, word) for word in line.split()]) == 141
    except SystemExit as stop:  # of a long help, whose failure to be written argparse does not tell
        assert stop.code == 0 and "--help" in line
    for stream in streams:
        with contextlib.suppress(BrokenPipeError):
            print("more", file=stream, flush=True)
    assert capfd.readouterr() == ("", "")


def test_what_a_command_writes_is_written_also_where_nobody_reads_its_table(digits, unread, tmp_path):
    """`lingene evaluate ... --out row.json | head -1` is to have its row."""
    pytest.importorskip("sklearn")
    places = {"B": str(digits.bundle), "P": str(digits.plain)}
    for name, line in {"info": "info B", "zoo": "zoo", "evaluate": "evaluate P --data digits"}.items():
        unread("stdout")
        assert cli.main([*(places.get(word, word) for word in line.split()), "--out", str(tmp_path / name)]) == 141
        assert read(tmp_path / name)


def test_a_pipe_that_broke_elsewhere_is_told(lingene, monkeypatch):
    """Of a process that decodes pictures, say: that is a failure, and no reader's doing."""

    def describe(*_, **__):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(folders, "describe", describe)
    told = lingene("info", "anything")
    assert (told.code, told.errors) == (2, ["lingene info: Broken pipe"])


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_messages_and_help_name_what_can_be_typed(command):
    """`resume` or latency_device=NAME is Python's; the command line has --resume and --latency-device NAME."""
    parser = argparse.ArgumentParser(add_help=False)
    for add in cli.COMMANDS[command].options:
        add(parser)
    flags = telling.flags_of(parser)
    for action in parser._actions:
        typed = telling.in_flags(f"give `{action.dest}`, such as {action.dest}=1/2.", flags)
        if action.option_strings:
            assert typed == f"give `{action.option_strings[0]}`, such as {action.option_strings[0]} 1/2."
        else:
            assert typed.startswith(f"give `{action.metavar or action.dest}`")
    own = cli.build_parser(command)._subparsers._group_actions[0].choices[command]
    words = set(re.findall(r"`(\w+)`", " ".join(str(action.help) for action in own._actions)))
    assert words & {action.dest for action in own._actions if action.option_strings} == set()


def test_a_budget_that_needs_this_machines_latencies_names_the_flag(lingene, digits, tmp_path):
    """`latency_device=NAME` cannot be typed on a command line."""
    rows = [{**row, "latency_ms": 1.0, "device": "an abacus"} for row in ROWS]
    bundle = Path(shutil.copytree(digits.bundle, tmp_path / "bundle"))
    folders.write_sizes(bundle, [{k: v for k, v in row.items() if k != "profiles"} for row in rows])
    told = lingene("materialise", bundle, "--max-latency-ms", 5, "--out", tmp_path / "out")
    assert told.code == 2 and "name the device that counts: --latency-device NAME" in told.errors[0]
    assert "`--max-latency-ms`" in told.errors[0]
    told = lingene("materialise", bundle, "--width-ratio", "1/4", "--out", tmp_path / "out")
    assert told.code == 2 and "or pass --allow-untrained to take" in told.errors[0]


def test_what_is_no_argument_of_a_command_stays_as_it_was():
    """Fields of files, paths and code have `=` and backticks too."""
    flags = {"depth": "--depth", "out": "--out", "bundle": "BUNDLE", "allow_untrained": "--allow-untrained"}
    for text in ("`weights_id` differs", "in a/depth=6/x", "--model-args depth=6", "bundle=x", "n=3 `config.json`"):
        assert telling.in_flags(text, flags) == text
    assert telling.in_flags("allow_untrained=True, `bundle`.", flags) == "--allow-untrained, `BUNDLE`."


def test_a_bug_of_ours_is_not_passed_off_as_wrong_input(monkeypatch):
    """Its traceback is what we need to be sent."""

    def describe(*_, **__):
        raise AssertionError("a bug")

    monkeypatch.setattr(folders, "describe", describe)
    with pytest.raises(AssertionError):
        cli.main(["info", "anything"])


@pytest.mark.parametrize(
    "line, owner, name, message",
    [
        ("info anything", folders, "describe", "Nothing was changed."),
        ("quickstart --out anything", recipes, "quickstart", "Run the same command again to go on."),
    ],
)
def test_an_interrupted_command_gives_status_130_and_says_how_to_go_on(
    lingene, monkeypatch, line, owner, name, message
):
    """130 is what a shell expects of a program that was stopped with Ctrl-C."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    told = lingene(*line.split())
    assert told.code == 130 and told.errors == [f"lingene {line.split()[0]}: interrupted. {message}"]


@pytest.mark.parametrize(
    "options, size",
    [
        ("", (6, "1", 5)),
        ("--depth 2", (2, "1", 5)),
        ("--depth 4 --width-ratio 1/2 --num-components 3", (4, "1/2", 3)),
        ("--width-ratio 0.25 --num-components 1 --allow-untrained", (6, "1/4", 1)),
        ("--max-macs 5e6", (1, "1", 5)),
        ("--max-latency-ms 4", (3, "1", 2)),
        ("--max-params 500000", (1, "1", 5)),
    ],
)
def test_a_materialised_model_is_stock_and_the_size_that_was_asked_for(lingene, digits, tmp_path, options, size):
    """Against the ViT that numpy recomposes; the folder has the preprocessing, and no code."""
    out = tmp_path / "deep" / "vit"
    told = lingene("materialise", digits.bundle, *options.split(), "--out", out)
    assert (told.code, told.errors) == (0, [])
    assert set(files(out)) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert read(out / "config.json")["model_type"] == "vit" and "auto_map" not in read(out / "config.json")
    model, auto = ViTForImageClassification.from_pretrained(out), AutoModelForImageClassification.from_pretrained(out)
    pixels = helpers.images(height=8)
    with torch.no_grad():
        expected = helpers.reference_vit(digits.model, *size)(pixels).logits
        assert torch.allclose(model(pixels).logits, expected, atol=1e-5)
        assert torch.equal(model(pixels).logits, auto(pixels).logits)
    assert AutoImageProcessor.from_pretrained(out).size == {"height": 8, "width": 8}
    params, macs = re.fullmatch(
        rf"{re.escape(str(out))}: {type(model).__name__} of {size[0]} layers, (.*) parameters, (.*) MACs\n", told.out
    ).groups()
    assert number(params) == pytest.approx(model.num_parameters(), rel=5.1e-3)
    assert number(macs) == pytest.approx(count_macs(model.config), rel=5.1e-3)


def test_a_model_without_preprocessing_and_an_empty_folder_are_fine(lingene, bundle, tmp_path, monkeypatch):
    """A bundle saved from memory has none; `.` is an empty folder too."""
    monkeypatch.chdir(tmp_path)
    assert lingene("materialise", bundle, "--depth", 1, "--out", ".").code == 0
    assert set(files(tmp_path)) == {"config.json", "model.safetensors"}


def test_a_crash_while_materialising_leaves_nothing(lingene, digits, tmp_path, monkeypatch):
    """A full disk, for example: status 2, and neither a part of the model nor a hidden folder."""

    def copyfile(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    told = lingene("materialise", digits.bundle, "--out", tmp_path / "vit")
    assert told.code == 2 and told.errors == ["lingene materialise: No space left on device"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind, options, size",
    [
        ("bundle", "--depth 2 --num-components 3", (2, "1", 3)),
        ("bundle", "--width-ratio 1/2 --batch-size 7", (6, "1/2", 5)),
        ("bundle", "--max-macs 5e6 --split train", (1, "1", 5)),
        ("plain", "", (3, "1", None)),
    ],
)
def test_evaluate_prints_and_writes_the_same_measured_numbers(lingene, digits, tmp_path, kind, options, size):
    """Accuracy is counted here a second time, on the ViT that numpy recomposes."""
    pytest.importorskip("sklearn")
    out = tmp_path / "made" / "row.json"
    told = lingene("evaluate", getattr(digits, kind), "--data", "digits", *options.split(), "--out", out)
    assert (told.code, told.errors) == (0, [])
    row, (shown,) = read(out), table(told.out)
    assert (row["depth"], row["width_ratio"], row["num_components"]) == size
    split = "train" if "train" in options else "test"
    assert (row["dataset"], row["split"]) == ("digits", split) and f"digits ({split})" in told.out
    assert row["device"] in told.out
    assert_table_shows([{**row, "num_components": row["num_components"] or "-"}], [shown])
    reference = helpers.reference_vit(digits.model, size[0], size[1], size[2])
    pixel_values, labels = to_tensors(load_images("digits", split), image_processor(8))
    with torch.no_grad():
        right = (reference(pixel_values).logits.argmax(-1) == labels).sum().item()
    assert abs(row["accuracy"] * len(labels) - right) < 1.01  # one tie between two classes may round another way
    assert row["params"] == reference.num_parameters() and row["macs"] == count_macs(reference.config)


def test_info_shows_and_writes_what_the_bundle_holds_without_its_weights(lingene, digits, tmp_path):
    """The weights are deleted: they cannot have been read."""
    bundle = Path(shutil.copytree(digits.bundle, tmp_path / "bundle"))
    for file in bundle.glob("*.safetensors"):
        file.unlink()
    told = lingene("info", bundle, "--out", tmp_path / "info.json")
    assert (told.code, told.errors) == (0, [])
    facts = read(tmp_path / "info.json")
    assert facts.pop("sizes") == ROWS
    assert_table_shows(ROWS, table(told.out))
    shown = dict(re.findall(r"^(\w+)  +(.*)$", told.out, re.MULTILINE))
    assert shown.keys() == facts.keys() and len(facts) > 8
    for name in facts.keys() - {"stored_params"}:
        assert shown[name] == str(facts[name]).strip("[]").replace("'", "")
    assert shown["stored_params"] == hub.readable(facts["stored_params"])
    assert shown["hidden_size"] == "48" and read(bundle / "config.json")["weights_id"] == shown["weights_id"]


def test_info_says_so_where_nothing_was_measured(lingene, bundle):
    """An empty table would look like a failure."""
    told = lingene("info", bundle)
    assert told.code == 0 and "no measured sizes" in told.out and "|" not in told.out


@pytest.mark.parametrize("options, name", [([], "mine"), (["--repo", "org/name"], "org/name")])
def test_card_renders_into_the_folder(lingene, digits, tmp_path, options, name):
    """The same card that a push writes, to be read before."""
    bundle = Path(shutil.copytree(digits.bundle, tmp_path / "mine"))
    told = lingene("card", bundle, *options)
    assert (told.code, told.out.strip()) == (0, str(bundle / "README.md"))
    card = (bundle / "README.md").read_text()
    assert (
        f'from_pretrained(\n    "{name}", ' in card
        and readme.parsed(card, "").card() == hub.render_card(bundle, name) + "\n"
    )
    assert_table_shows(ROWS, table(card))


@pytest.mark.parametrize(
    "options, passed",
    [
        ([], {"private": None, "revision": None, "subfolder": None, "license": None}),
        (
            ["--private", "--revision", "wide", "--subfolder", "small", "--license", "mit"],
            {"private": True, "revision": "wide", "subfolder": "small", "license": "mit"},
        ),
    ],
)
def test_push_passes_its_options_on_and_prints_the_commit(lingene, monkeypatch, options, passed):
    """Without `--private` an existing repository must stay as it is."""
    calls = []
    monkeypatch.setattr(hub, "push", lambda *inputs, **named: calls.append((inputs, named)) or "http://hub/commit/1")
    told = lingene("push", "folder", "org/name", *options)
    assert calls == [((Path("folder"), "org/name"), passed)]
    assert told.code == 0 and told.out.startswith("http://hub/commit/1")


def test_a_push_that_does_not_load_back_is_one_line_and_no_success(lingene, monkeypatch):
    """It is on the Hub already: the line must say what differs, and the status must stop a script."""

    def push(*_, **__):
        raise RuntimeError("org/name was pushed, but its logits differ\nfrom folder's by up to 0.5.")

    monkeypatch.setattr(hub, "push", push)
    told = lingene("push", "folder", "org/name")
    assert told.code not in (0, None)
    assert told.errors == ["lingene push: org/name was pushed, but its logits differ from folder's by up to 0.5."]


def test_a_hub_that_cannot_be_reached_is_one_line_and_no_success(lingene, digits, tmp_path, monkeypatch):
    """Without network, huggingface_hub raises its HTTP client's own errors, which are not OSErrors."""
    bundle = shutil.copytree(digits.bundle, tmp_path / "bundle")
    nowhere = HfApi(endpoint="http://127.0.0.1:1", token="hf_anything")
    monkeypatch.setattr(saving_lingene, "HfApi", lambda **_: nowhere)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    told = lingene("push", bundle, "org/name")
    assert told.code not in (0, None) and told.out == ""
    assert len(told.errors) == 1 and told.errors[0].startswith("lingene push: ")


def pasted(code: str) -> tuple[int, str, int]:
    """The size that the last line of some indented code loads."""
    code, names = textwrap.dedent(code), {}
    exec(code, names)
    size = eval(ast.unparse(ast.parse(code).body[-1]), names).source_size
    return size.depth, str(size.width_ratio), size.num_components


def test_quickstart_shows_its_table_and_code_that_loads_the_best_size(lingene, digits, monkeypatch, tmp_path):
    """What is printed is meant to be pasted."""
    calls = []
    monkeypatch.setattr(recipes, "quickstart", lambda *inputs: calls.append(inputs) or ROWS)
    shutil.copytree(digits.bundle, tmp_path / "run" / "bundle")
    told = lingene("quickstart", "--out", tmp_path / "run", "--seed", 3, "--epochs", 2)
    assert (told.code, told.errors, calls) == (0, [], [(tmp_path / "run", 3, 2)])
    assert_table_shows(ROWS, table(told.out))
    assert pasted(told.out.partition("Load a size:\n\n")[2]) == (6, "1", 5)
    for name in ("bundle", "sizes.png", "results.json"):
        assert str(tmp_path / "run" / name) in told.out


@pytest.mark.parametrize("width", ["1", "1/2"])
def test_decompose_ends_with_code_that_loads_its_best_size_and_commands_that_go_on(
    lingene, digits, monkeypatch, tmp_path, width
):
    """What is printed is meant to be pasted, also where a folder's name has spaces."""
    best = max(ROWS, key=lambda row: row["accuracy"])
    rows = [{**row, "width_ratio": width} if row is best else row for row in ROWS]
    monkeypatch.setattr(recipes, "decompose", lambda *_, **__: rows)
    out = tmp_path / "my run"
    shutil.copytree(digits.bundle, out / "bundle")
    told = lingene("decompose", "--data", "digits", "--out", out)
    assert (told.code, told.errors) == (0, [])
    assert_table_shows(rows, table(told.out))
    code, commands = told.out.partition("Load a size:\n\n")[2].split("\n\nMeasure other sizes, push:\n\n")
    assert pasted(code) == (6, width, 5)
    calls = []
    monkeypatch.setattr(sweep, "sweep", lambda bundle, images, **_: calls.append((bundle, images.name, images.split)))
    monkeypatch.setattr(hub, "push", lambda bundle, repo, **_: calls.append((bundle, repo)))
    for line in commands.splitlines():
        program, *words = shlex.split(line)
        assert program == "lingene" and lingene(*words).code == 0
    assert calls == [(str(out / "bundle"), "digits", "test"), (out / "bundle", "USER/NAME")]


def test_decompose_without_labels_ends_with_the_losses_of_its_sizes(lingene, monkeypatch, tmp_path):
    """There is no accuracy, and nothing that a sweep could measure by labels; the smallest loss comes first."""
    rows = [{key: value for key, value in row.items() if key != "accuracy"} for row in ROWS]
    rows = [{**row, "feature_loss": 0.5 - 0.1 * number} for number, row in enumerate(rows)]
    monkeypatch.setattr(recipes, "decompose", lambda *_, **__: rows)
    told = lingene("decompose", "--data", "faces", "--init", "x", "--objective", "features", "--out", tmp_path / "out")
    assert (told.code, told.errors) == (0, [])
    shown = [float(line.split("|")[4]) for line in told.out.splitlines()[3:] if line.startswith("|")]
    assert shown == pytest.approx(sorted(row["feature_loss"] for row in rows))
    bundle = tmp_path / "out" / "bundle"
    assert f"lingene sweep {bundle}" in told.out and f"lingene push {bundle}" in told.out


def test_a_process_that_is_not_the_main_one_reports_nothing(lingene, monkeypatch, tmp_path):
    """It has no rows; the main one has said everything."""
    monkeypatch.setattr(recipes, "decompose", lambda *_, **__: [])
    told = lingene("decompose", "--data", "digits", "--out", tmp_path / "out")
    assert (told.code, told.out, told.errors) == (0, "", [])


def process(*arguments: str, folder: Path, **options) -> subprocess.Popen:
    """The command line in a new process, with one thread: a step takes milliseconds."""
    command = [sys.executable, "-m", "modeling_lingene.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes, **options)


def stop(running: subprocess.Popen, signum: int, when: Path) -> str:
    """Sends a signal as soon as a path is there, and returns what the process then said on stderr."""
    patience = time.monotonic() + 120
    while not list(when.parent.glob(when.name)) and running.poll() is None and time.monotonic() < patience:
        time.sleep(0.01)
    running.send_signal(signum)
    return running.communicate(timeout=60)[1]


@pytest.mark.slow
def test_a_quickstart_that_is_killed_and_then_asked_to_stop_goes_on_to_the_end(tmp_path):
    """Killed it loses an epoch; asked, by a batch system, no step: there are 10 in each of 3 epochs of 4 phases."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    (tmp_path / "away").mkdir()
    command, checkpoints = ("quickstart", "--epochs", "3", "--out", "../out"), tmp_path / "out" / "checkpoints"
    killed = process(*command, folder=tmp_path / "away")
    stop(killed, signal.SIGKILL, checkpoints / "000-000000010")
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "out" / "results.json").exists()
    interrupted = process(*command, folder=tmp_path / "away")
    said = stop(interrupted, signal.SIGTERM, checkpoints / "001-000000010")
    assert interrupted.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "lingene quickstart: interrupted. Run the same command again to go on."
    assert first_bar(said) >= 10
    phase, step = map(int, max(path.name for path in checkpoints.iterdir()).split("-"))
    finishing = process(*command, folder=tmp_path / "away")
    out, said = finishing.communicate(timeout=120)
    assert finishing.returncode == 0 and first_bar(said) == 30 * phase + step >= 40
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["sizes"]
    assert_table_shows(rows, table(out))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "best",
        "bundle",
        "checkpoints",
        "history.json",
        "history.png",
        "results.json",
        "run.json",
        "sizes.png",
    }


def first_bar(said: str) -> int:
    """With how many of the 120 steps the progress bar of training began."""
    return int(re.search(r"training:.*?(\d+)/120 ", said)[1])


# What is said before a command is known, or is known to be wrong.
LIGHT = ["--help", "--version", "fly", "", "info", "info a --deep", "sweep --help", "export B --to onnx --depth six"]
HEAVY = ("torch", "transformers", "modeling_lingene", "numpy")


@pytest.mark.parametrize("line", LIGHT)
def test_help_a_version_and_a_typo_import_nothing_heavy(line):
    """They took eight seconds of CPU, three times `import torch`."""
    code = (
        f"import sys\nfor name in {HEAVY}: sys.modules[name] = None\n"
        "from lingene.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, timeout=60)
    assert done.returncode == (0 if line.startswith("--") or line.endswith("--help") else 2), done.stderr
    assert "Traceback" not in done.stderr and done.stdout + done.stderr


def test_lingene_is_one_program_by_its_three_names():
    """The script that is installed, and two modules, since torchrun takes a module."""
    (script,) = entry_points(group="console_scripts", name="lingene")
    assert script.load() is cli.main
    told = [
        subprocess.run([sys.executable, "-m", module, "zoo", "--help"], capture_output=True, text=True, check=True)
        for module in ("lingene", "modeling_lingene.cli")
    ]
    assert told[0].stdout == told[1].stdout and told[0].stdout.startswith("usage: lingene zoo")


def test_verify_lists_every_weight_file_and_refuses_a_changed_one(bundle, tmp_path, capsys):
    """Exit 2 and the file's name: what arrived is not what was sent."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    assert cli.main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    assert [line.split()[0] for line in lines[: len(weights)]] == weights
    assert f"{len(weights)} files" in lines[-1]
    data = bytearray((folder / weights[1]).read_bytes())
    data[-40] ^= 1
    (folder / weights[1]).write_bytes(data)
    assert cli.main(["verify", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"`{weights[1]}`" in error and "changed or damaged" in error
