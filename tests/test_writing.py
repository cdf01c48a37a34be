"""Laws of writing: a killed save's remains go with the next one, and what a write failed of is told plainly.

Processes are forked, not started: one import of torch costs more than all these tests.

    pytest tests/test_writing.py
"""

import errno
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

import helpers
from modeling_lingene import folders, writing_lingene
from modeling_lingene import saving_lingene as saving
from modeling_lingene.cli import main
from modeling_lingene.measuring.drawing import save_figure
from modeling_lingene.writing_lingene import clear_abandoned, partial_name, writing


MODEL = helpers.tiny_model()


def save_bundle(place: Path, pause: Callable[[], None]) -> None:
    def slow(*arguments, _save=saving.save_file, **keywords):
        pause()
        _save(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "save_file", slow)
        MODEL.save_pretrained(place)


def save_folder(place: Path, pause: Callable[[], None]) -> None:
    with folders.complete_or_absent(place) as staging:
        (staging / "half").write_text("")
        pause()


def save_bundle_in_a_folder(place: Path, pause: Callable[[], None]) -> None:
    with folders.complete_or_absent(place) as staging:
        save_bundle(staging, pause)


def save_file(place: Path, pause: Callable[[], None]) -> None:
    def slow(*arguments, _replace=os.replace):
        pause()
        _replace(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", slow)
        folders.write_text(place, "{}")


def save_picture(place: Path, pause: Callable[[], None]) -> None:
    def savefig(path: Path, format: str) -> None:
        path.write_bytes(b"")
        pause()

    save_figure(SimpleNamespace(savefig=savefig), place)


SAVERS = [save_bundle, save_folder, save_bundle_in_a_folder, save_file, save_picture]
CASES = [(save, False) for save in SAVERS] + [(save, True) for save in SAVERS]
IDS = [f"{save.__name__}{' over' * over}" for save, over in CASES]


def forked(run: Callable[[], None]) -> int:
    """The number of a new process that runs this and ends."""
    process = os.fork()
    if process == 0:
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
    return process


def dead_process() -> int:
    process = forked(lambda: None)
    os.waitpid(process, 0)
    return process


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def partials(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.partial")}


def prepared(save: Callable, over: bool, place: Path) -> None:
    """Something at the place to save over, as the saver takes it."""
    if over and save in (save_bundle, save_file, save_picture):
        save(place, lambda: None)
    elif over:
        place.mkdir()


@pytest.mark.parametrize("save, over", CASES, ids=IDS)
def test_the_next_save_removes_what_a_killed_one_left(tmp_path, save, over):
    """Two hundred kills left 171 hidden folders, each of the size of a bundle, and nobody looks for them."""
    place = tmp_path / "place.d"
    prepared(save, over, place)
    for _ in range(2):
        _, status = os.waitpid(forked(lambda: save(place, kill_myself)), 0)
        assert os.WTERMSIG(status) == signal.SIGKILL and partials(tmp_path)
        assert len({name.lstrip(".").split(".partial")[0] for name in partials(tmp_path)}) == 1  # of one process
    save(place, lambda: None)
    assert not partials(tmp_path) and place.exists()


@pytest.mark.parametrize("save, over", CASES, ids=IDS)
def test_a_save_that_is_on_its_way_is_left_alone(tmp_path, save, over):
    """Two processes may save to one place, by mistake or in turn; neither may pull the other's ground away."""
    place = tmp_path / "place.d"
    prepared(save, over, place)
    (told, tell), (waits, go_on) = os.pipe(), os.pipe()

    def pause():
        if partials(tmp_path) - seen:
            os.write(tell, b".")
            os.read(waits, 1)

    seen: set[str] = set()
    process = forked(lambda: save(place, pause))
    os.close(tell)
    os.read(told, 1)
    seen |= partials(tmp_path)
    try:
        assert seen
        save(place, lambda: None)
        assert partials(tmp_path) == seen
        os.write(go_on, b"." * 100)
    except BaseException:
        os.kill(process, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert not partials(tmp_path) and place.exists()


def aged(path: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))


def left_by(place: Path, host: str | None, process: int, days: float, file_days: float | None = None) -> Path:
    """What a saver of that host and process has left beside a place, that many days ago."""
    with pytest.MonkeyPatch.context() as patch:
        if host is not None:
            patch.setattr(writing_lingene, "_host", lambda: host)
        patch.setattr(os, "getpid", lambda: process)
        left = place.parent / partial_name(place)
    left.mkdir()
    if file_days is not None:
        (left / "file").write_text("")
        aged(left / "file", file_days)
    aged(left, days)
    return left


def test_only_what_is_surely_abandoned_is_removed(tmp_path):
    """On a shared file system another host's process number says nothing here, so its work is given a day."""
    place, dead, other = tmp_path / "bundle", dead_process(), "0123abcd"
    kept = [
        left_by(place, None, os.getpid(), 9, 9),  # another thread's, however slow
        left_by(place, None, os.getppid(), 9, 9),
        left_by(place, other, dead, 0.9),
        left_by(place, other, os.getpid(), 9, 0.9),
        left_by(tmp_path / "bundle2", None, dead, 9),
        left_by(tmp_path / "a.bundle", None, dead, 9),
        tmp_path / ".bundle.partial",
        tmp_path / "bundle.mine.partial",
    ]
    for path in kept[-2:]:
        path.write_text("theirs")
        aged(path, 9)
    removed = [left_by(place, None, dead, 0, 0), left_by(place, other, os.getpid(), 1.1, 1.1)]
    clear_abandoned(place)
    assert all(path.exists() for path in kept) and not any(path.exists() for path in removed)


def test_a_place_that_a_killed_save_touched_is_still_an_empty_one(tmp_path):
    """Its remains lie within a folder that was there before, hidden; nobody could tell what is in the way."""
    (tmp_path / "out").mkdir()
    os.waitpid(forked(lambda: save_folder(tmp_path / "out", kill_myself)), 0)
    assert partials(tmp_path / "out")
    folders.check_empty(tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_a_place_that_was_asked_whether_it_can_be_written_to_is_still_an_empty_one(tmp_path):
    """Also where the process was killed between the question and the answer."""

    def asked_and_killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "unlink", lambda *_, **__: kill_myself())
            folders.check_writable(tmp_path)

    os.waitpid(forked(asked_and_killed), 0)
    assert list(tmp_path.iterdir())
    folders.check_empty(tmp_path)
    assert not list(tmp_path.iterdir())


# -- what keeps a write from succeeding


def error_with_limit(limit: int, run: Callable[[], None]) -> dict:
    """The error of a function in a process that may write no file larger than that many bytes."""
    told, tell = os.pipe()

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            run()
        except Exception as error:
            found = {"kind": type(error).__name__, "errno": getattr(error, "errno", None), "text": str(error)}
            os.write(tell, json.dumps(found).encode())

    process = forked(limited)
    os.close(tell)
    with os.fdopen(told) as answer:
        found = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    return json.loads(found)


def publish(out: Path) -> None:
    folders.publish_model(MODEL.materialise(2), out.parent, out)


WRITERS = {
    "bundle": (MODEL.save_pretrained, 20_000),
    "plain model": (publish, 20_000),
    "configuration": (MODEL.save_pretrained, 400),
    "text": (lambda out: folders.write_text(out, "x" * 1000), 400),
}


@pytest.mark.parametrize("write, limit", WRITERS.values(), ids=WRITERS)
def test_a_file_that_cannot_grow_is_an_oserror_that_names_the_place_and_a_way_out(tmp_path, write, limit):
    """safetensors has an exception of its own, and the system's names no file; nothing is left of the attempt."""
    found = error_with_limit(limit, lambda: write(tmp_path / "out"))
    assert (found["kind"], found["errno"]) == ("OSError", errno.EFBIG)
    assert f"{tmp_path / 'out'} cannot be written: {os.strerror(errno.EFBIG)}; raise the limit" in found["text"]
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_cannot_be_replaced_stays(tmp_path):
    """The same over an old one."""
    folder = helpers.bundle(tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = helpers.tiny_model(seed=1)
    assert error_with_limit(20_000, lambda: other.save_pretrained(folder))["errno"] == errno.EFBIG
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("number, way", [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space")])
def test_a_full_disk_says_what_to_do(tmp_path, number, way):
    """Whoever met it: Python, safetensors or torch; a number that is told stays with the error."""
    place = tmp_path / "out"
    errors = [OSError(number, os.strerror(number))]
    errors += [SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")]
    for error in errors:
        with pytest.raises(OSError, match=f"{place} cannot be written: {os.strerror(number)}; {way}") as told:
            with writing(place):
                raise error
        assert told.value.errno == number and told.value.__cause__ is error


def test_torchs_own_writer_is_understood(tmp_path):
    """Its RuntimeError has no number."""
    error = RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0")
    with pytest.raises(OSError, match=f"{tmp_path} cannot be written"), writing(tmp_path):
        raise error


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
@pytest.mark.parametrize("name", ["out", ".out.0.1.2.partial", "out/component-00.safetensors", "."])
def test_a_closed_folder_is_named_with_a_way_out(tmp_path, name, number):
    """Also where the system names the hidden file that was to become it."""
    with pytest.raises(OSError, match=f"{tmp_path / 'out'} cannot be written: .*; change its permissions") as told:
        with writing(tmp_path / "out"):
            raise OSError(number, os.strerror(number), str(tmp_path / name))
    assert told.value.errno == number


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/somewhere/source.safetensors"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "source"),
        SafetensorError("Error while deserializing header: header too small"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("`out`"),
        ConnectionError("no network"),
    ],
    ids=repr,
)
def test_other_errors_pass_as_they_are(tmp_path, error):
    """A source that cannot be read is no folder that cannot be written."""
    with pytest.raises(type(error)) as told, writing(tmp_path / "out"):
        raise error
    assert told.value is error


def test_a_torch_file_that_cannot_be_finished_is_understood(tmp_path):
    """As it comes from torch of today: training states are written by it."""
    found = error_with_limit(400, lambda: save_state(tmp_path / "out"))
    assert found["kind"] == "OSError" and "cannot be written" in found["text"]


def save_state(place: Path) -> None:
    with writing(place):
        torch.save({"a": torch.zeros(10_000)}, place)


# -- before long work


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["", "new", "deep/new"])
def test_a_place_that_takes_no_file_is_refused_with_the_reason(tmp_path, monkeypatch, name, number):
    """Permissions do not stop root, so the file system's answer is played. Nothing is made on the way."""
    asked = []

    def refused(path, *_, **__):
        asked.append(path.parent)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(ValueError, match=f"`out` {tmp_path / name} cannot be written to: {os.strerror(number)}; "):
        folders.check_empty(tmp_path / name)
    assert asked == [tmp_path] and not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "new", "deep/new"])
def test_looking_whether_a_place_can_be_written_to_leaves_nothing(tmp_path, name):
    """Not even the folder: whatever is refused afterwards must not have made it."""
    folders.check_empty(tmp_path / name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [["convert", "absent/source"], ["export", "absent/source", "--to", "timm"], ["materialise", "absent/source"]],
    ids=lambda words: words[0],
)
def test_commands_look_whether_their_result_can_be_written_before_they_begin(tmp_path, capsys, command):
    """In one line; a conversion's hour must not end with it, nor a download precede it."""
    (tmp_path / "file").write_text("theirs")
    assert main([*command, "--out", str(tmp_path / "file" / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # after what libraries say of themselves when they are imported
    assert said.startswith(f"lingene {command[0]}: `--out` {tmp_path / 'file' / 'out'} cannot be written to: ")
    assert (tmp_path / "file").read_text() == "theirs"
