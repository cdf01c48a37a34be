"""Laws of commands that fail: a status, one line that names what is wrong, no file; of a closed pipe not a word.

pytest tests/commands/test_command_errors.py
"""

import contextlib
import errno
import importlib
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from helpers import ROWS, files, read
from modeling_lingene import cli, folders
from modeling_lingene.images.batches import image_processor
from modeling_lingene.training import recipes


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
    "card of nothing": ("card /absent/bundle", "`BUNDLE`"),
    "push nothing": ("push /absent/bundle org/name", "`BUNDLE`"),
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
    """One line, whatever argparse would print before it."""
    told = lingene(*line.split())
    assert told.code == 2 and told.out == "" and named in told.errors[-1]


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


@pytest.mark.parametrize("error", [ValueError, OSError, ImportError])
def test_an_error_is_one_line_also_where_its_message_has_many(lingene, monkeypatch, error):
    """transformers' messages have paragraphs."""

    def describe(*_, **__):
        raise error("`bundle` is\n\n   not what\tit was")

    monkeypatch.setattr(folders, "describe", describe)
    told = lingene("info", "anything")
    assert (told.code, told.out, told.errors) == (2, "", ["lingene info: `BUNDLE` is not what it was"])


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("PIL", 'Pillow is needed here: pip install "modeling_lingene[train]"'),
        ("matplotlib", 'matplotlib is needed here: pip install "modeling_lingene[analysis]"'),
        ("no_such_module", "import of no_such_module halted"),
    ],
)
def test_a_package_that_is_not_installed_is_told_with_the_extra_that_brings_it(lingene, monkeypatch, module, line):
    """Also where a module of ours imports it: after a plain install a training said "No module named PIL"."""

    def describe(*_, **__):
        monkeypatch.setitem(sys.modules, module, None)
        importlib.import_module(module)

    monkeypatch.setattr(folders, "describe", describe)
    told = lingene("info", "anything")
    assert told.code == 2 and told.errors[0].startswith(f"lingene info: {line}")


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


# A help shorter than what a stream holds back fails when it is flushed, a longer one while argparse prints it.
@pytest.mark.parametrize("line", ["info B", "info P", "--help", "zoo --help", "decompose --help"])
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
