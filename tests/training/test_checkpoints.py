"""Laws of checkpoints: complete or absent, the newest whole one found again, a full disk noticed before training.

Nothing is trained: a checkpoint is whatever the caller writes. Resuming with real ones is in test_training.py.

    pytest tests/training/test_checkpoints.py
"""

import errno
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from modeling_lingene.training.checkpoints import PICTURES, Checkpoints, check_identity, contents


IDENTITY = {"epochs": 3, "data": "digits", "totals": [1, 2, 4]}
WEIGHTS, OPTIMIZER, SHARD = "model.safetensors", "optimizer.bin", "shards/0.bin"


def content(name: str, phase: int, step: int) -> bytes:
    """What stands in that file after that step: 300 bytes that no other file has."""
    return f"{name} {phase} {step} ".encode().ljust(300, bytes([64 + step % 64]))


def save(checkpoints: Checkpoints, phase: int, step: int, wait=lambda: None, main: bool = True, **state) -> Path:
    """One checkpoint of three files, one of them in a folder of its own, as sharded optimisers are saved."""

    def write(folder: Path) -> None:
        for name in (WEIGHTS, OPTIMIZER, SHARD):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content(name, phase, step))

    checkpoints.save(phase, step, {"best": None, **state}, write, main, wait)
    return checkpoints.folder / f"{phase:03d}-{step:09d}"


def found(checkpoints: Checkpoints) -> tuple[int, int] | None:
    """Phase and step of the newest, whatever it says about damaged ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = checkpoints.newest()
    return state and (state["phase"], state["step"])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_found_with_its_state_and_its_files_byte_by_byte(tmp_path, recwarn):
    """By another object, as in another process; and nothing lies beside it."""
    history = [{"loss": 0.1 + 0.2, "phase": "häuser"}]
    folder = save(Checkpoints(tmp_path, IDENTITY), 1, 7, history=history, best=0.75)
    state = Checkpoints(tmp_path, IDENTITY).newest()
    assert (state["phase"], state["step"], state["best"], state["history"]) == (1, 7, 0.75, history)
    assert Path(state["folder"]) == folder and names(tmp_path) == ["checkpoints"]
    stored = tree(folder)
    del stored["state.json"]
    assert stored == {name: content(name, 1, 7) for name in (WEIGHTS, OPTIMIZER, SHARD)}
    assert not recwarn.list


def test_a_folder_without_checkpoints_holds_none(tmp_path, recwarn):
    """A new run asks too, before there is a folder."""
    for out in (tmp_path, tmp_path / "new"):
        assert Checkpoints(out, IDENTITY).newest() is None and Checkpoints(out, IDENTITY).complete() == []
    assert list(tmp_path.iterdir()) == [] and not recwarn.list


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept_in_the_order_of_phases_and_steps(tmp_path, keep):
    """Step 2 of phase 1 comes after step 10 of phase 0; names must sort like numbers."""
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep)
    order = [(0, 2), (0, 9), (0, 10), (0, 1000), (1, 2), (1, 11), (10, 1)]
    for count, (phase, step) in enumerate(order, 1):
        save(checkpoints, phase, step)
        kept = [f"{phase:03d}-{step:09d}" for phase, step in order[max(0, count - keep) : count]]
        assert names(checkpoints.folder) == kept == [path.name for path in checkpoints.complete()]
        assert found(checkpoints) == (phase, step)


def test_a_step_that_is_saved_again_replaces_what_was_there(tmp_path):
    """A run that passed over a damaged checkpoint comes to its step again."""
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    folder = save(checkpoints, 0, 3, best=0.1)
    (folder / WEIGHTS).write_bytes(b"damaged")
    (folder / "stray").write_bytes(b"of somebody")
    save(checkpoints, 0, 3, best=0.2)
    assert checkpoints.newest()["best"] == 0.2 and not (folder / "stray").exists()


class Crash(Exception):
    """Not an error that anything may catch."""


@pytest.mark.parametrize(
    "where", ["in a file", "before the others are done", "before state.json", "before the rename"]
)
def test_a_crash_while_saving_leaves_what_was_there_and_no_part_of_the_new_one(tmp_path, monkeypatch, where):
    """Older ones may go only when the new one is in place."""
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    save(checkpoints, 0, 3), save(checkpoints, 0, 6)
    before = tree(checkpoints.folder)

    def crash(*_, **__):
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        if where == "before state.json":
            patched.setattr(Path, "write_text", crash)
        if where == "before the rename":
            patched.setattr(Path, "rename", crash)
        if where == "in a file":
            patched.setattr(Path, "write_bytes", crash)
        save(checkpoints, 0, 9, wait=crash if where == "before the others are done" else lambda: None)
    assert tree(checkpoints.folder) == before
    again = Checkpoints(tmp_path, IDENTITY)
    assert found(again) == (0, 6)
    again.clear_staging()
    save(again, 0, 9)
    assert names(tmp_path) == ["checkpoints"] and names(again.folder) == ["000-000000006", "000-000000009"]


def test_every_process_writes_and_only_the_main_one_touches_names(tmp_path):
    """What the others write while the main one waits is part of the checkpoint, and is checked like the rest."""
    calls = []

    def wait():
        calls.append(names(tmp_path))
        if len(calls) == 1:
            (tmp_path / ".checkpoint.partial" / "random_states_1.pkl").write_bytes(b"of another process")

    checkpoints = Checkpoints(tmp_path, IDENTITY)
    folder = save(checkpoints, 0, 3, wait)
    assert calls == [[".checkpoint.partial"], ["checkpoints"]]
    assert (folder / "random_states_1.pkl").read_bytes() == b"of another process"
    (folder / "random_states_1.pkl").write_bytes(b"of an0ther process")
    assert found(checkpoints) is None
    other = tmp_path / "other"
    save(Checkpoints(other, IDENTITY), 0, 3, lambda: calls.append(names(other)), main=False)
    assert calls[2:] == [[".checkpoint.partial"]] * 2


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path, at: int = 150) -> None:
    stored = bytearray(path.read_bytes())
    stored[at] ^= 1
    path.write_bytes(stored)


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(128, 256)))


def bare(path: Path) -> None:
    path.write_text("{}")


def null(path: Path) -> None:
    path.write_text("null")


DAMAGES = [(damage, name) for name in (WEIGHTS, OPTIMIZER) for damage in (truncated, emptied, flipped, lengthened)]
DAMAGES += [(Path.unlink, name) for name in (WEIGHTS, OPTIMIZER)]
DAMAGES += [(damage, SHARD) for damage in (flipped, Path.unlink)]
DAMAGES += [(damage, "state.json") for damage in (cut, emptied, binary, bare, null, Path.unlink)]


@pytest.mark.parametrize("damage, name", DAMAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_damaged_checkpoint_is_passed_over_and_named_with_its_file(tmp_path, damage, name):
    """A disk that fails must cost one checkpoint, not the run; who is told which file can look for the cause."""
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    save(checkpoints, 0, 3)
    folder = save(checkpoints, 0, 6)
    damage(folder / name)
    with pytest.warns(UserWarning) as told:
        state = checkpoints.newest()
    assert (state["phase"], state["step"], Path(state["folder"]).name) == (0, 3, "000-000000003")
    (message,) = (str(warning.message) for warning in told)
    assert str(folder) in message and Path(name).name in message


@pytest.mark.parametrize("text", ['"step": 6', '"epochs": 3', '"digits"', '"loss": 0.25', '"step"', '"identity"'])
def test_one_wrong_byte_in_the_state_is_damage_and_neither_another_step_nor_another_run(tmp_path, text):
    """A 6 is one bit from a 7; taken for true, the run would skip a step, or be told that it is somebody else's."""
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    save(checkpoints, 0, 3)
    file = save(checkpoints, 0, 6, history=[{"loss": 0.25}]) / "state.json"
    flipped(file, file.read_bytes().index(text.encode()) + len(text.rstrip('"')) - 1)
    with pytest.warns(UserWarning, match=re.escape(str(file.parent))):
        assert checkpoints.newest()["step"] == 3


def test_where_all_are_damaged_there_is_none_and_each_is_named(tmp_path):
    """The run then starts anew, and its log says why."""
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=3)
    folders = [save(checkpoints, phase, step) for phase, step in ((0, 3), (0, 6), (1, 3))]
    for folder, name in zip(folders, (WEIGHTS, "state.json", OPTIMIZER)):
        truncated(folder / name)
    with pytest.warns(UserWarning) as told:
        assert checkpoints.newest() is None
    assert [str(folder) in str(warning.message) for folder, warning in zip(folders[::-1], told)] == [True] * 3


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_saved_last_is_found_although_damaged_ones_of_later_steps_lie_there(tmp_path, keep):
    """A run that starts anew after damage must not drop its own new checkpoints as the oldest."""
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep)
    for step in (6, 9)[-keep:]:
        truncated(save(checkpoints, 0, step) / WEIGHTS)
    assert found(checkpoints) is None
    for step in (1, 2, 3):
        save(checkpoints, 0, step)
        assert found(Checkpoints(tmp_path, IDENTITY, keep)) == (0, step)


@pytest.mark.parametrize(
    "asked, told",
    [
        ({**IDENTITY, "epochs": 5}, ["epochs", "3", "5"]),
        ({**IDENTITY, "data": "cifar10"}, ["data", "'digits'", "'cifar10'"]),
        ({**IDENTITY, "totals": [1, 4]}, ["totals", "[1, 2, 4]", "[1, 4]"]),
        ({**IDENTITY, "teacher": "timm:x"}, ["teacher", "None", "'timm:x'"]),
        ({"epochs": 3, "totals": [1, 2, 4]}, ["data", "'digits'", "None"]),
        ({**IDENTITY, "epochs": 5, "data": "cifar10"}, ["data", "'digits'", "'cifar10'", "epochs", "3", "5"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_run_is_refused_with_every_differing_field_and_both_values(tmp_path, asked, told):
    """Only then can one see whether the flag or the folder was wrong; the folder stays as it is."""
    save(Checkpoints(tmp_path, IDENTITY), 0, 3)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"`out` {tmp_path}")) as error:
        Checkpoints(tmp_path, asked).newest()
    message = str(error.value).replace(str(tmp_path), "")
    assert re.search(".*".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in told), message)
    assert not any(re.search(rf"\b{name}\b", message) for name in (asked | IDENTITY).keys() - set(told))
    assert tree(tmp_path) == before
    with pytest.raises(ValueError, match=told[0]):
        check_identity(tmp_path, IDENTITY, asked)
    check_identity(tmp_path, IDENTITY, dict(IDENTITY))
    check_identity(tmp_path, IDENTITY, {**IDENTITY, PICTURES: "kept since"})


def test_an_identity_is_compared_as_json_gives_it_back(tmp_path):
    """Tuples come back as lists and integer keys as strings; neither is another run, nor is another order of keys."""
    save(Checkpoints(tmp_path, {"totals": (1, 2), "rows": {3: (0, 1)}}), 0, 3)
    assert found(Checkpoints(tmp_path, {"rows": {3: (0, 1)}, "totals": (1, 2)})) == (0, 3)


@pytest.mark.parametrize(
    "name",
    [".hidden", "notes", "best", "000-00001 (copy)", "000-000003", "0000-0000003", "000-0000009.old", "x000-0000009"],
)
def test_other_names_are_no_checkpoints_and_stay(tmp_path, recwarn, name):
    """Notebooks and file browsers put folders everywhere; a copy that somebody made is theirs."""
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=1)
    folder = save(checkpoints, 0, 3)
    shutil.copytree(folder, checkpoints.folder / name)
    (checkpoints.folder / "file").write_text("theirs")
    before = tree(checkpoints.folder / name)
    for step in (6, 9):
        save(checkpoints, 0, step)
        assert [path.name for path in checkpoints.complete()] == [f"000-00000000{step}"]
        assert found(checkpoints) == (0, step)
    assert names(checkpoints.folder) == sorted(["000-000000009", "file", name])
    assert tree(checkpoints.folder / name) == before and not recwarn.list


def disk_with(free: int, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Makes every disk have so much free; the list of folders that were asked for fills."""
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=free))
    return asked


# Two kept, the one that is being written and the bundle: four times one checkpoint, less what is there already.
@pytest.mark.parametrize("keep, there, times", [(2, 0, 4), (2, 1, 3), (2, 2, 2), (1, 0, 3), (1, 1, 2), (5, 0, 7)])
def test_a_disk_must_hold_what_is_kept_the_next_one_and_the_bundle(tmp_path, monkeypatch, keep, there, times):
    """A run that is resumed has part of it on the disk already; one byte less is refused, with both numbers."""
    checkpoints, needed = Checkpoints(tmp_path, IDENTITY, keep), 10**9
    for step in range(there):
        save(checkpoints, 0, step)
    asked = disk_with(times * needed, monkeypatch)
    checkpoints.check_room(needed)
    assert asked == [tmp_path]
    disk_with(times * needed - 1, monkeypatch)
    with pytest.raises(ValueError, match=re.escape(f"`out` {tmp_path} ")) as error:
        checkpoints.check_room(needed)
    assert f"take {times} GB" in str(error.value) and f"has {times} GB free" in str(error.value)
    assert f"{keep} checkpoints" in str(error.value)


def test_looking_for_room_leaves_nothing_behind(tmp_path, monkeypatch):
    """In a new folder, which is made, and beside other files; refused or not."""
    (tmp_path / "notes").write_text("theirs")
    Checkpoints(tmp_path, IDENTITY).check_room(1)
    Checkpoints(tmp_path / "a" / "b", IDENTITY).check_room(1)
    disk_with(0, monkeypatch)
    with pytest.raises(ValueError):
        Checkpoints(tmp_path, IDENTITY).check_room(1)
    assert tree(tmp_path) == {"notes": b"theirs"}
    assert names(tmp_path) == ["a", "notes"] and list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_a_file_in_the_way_of_the_folder_is_refused_and_left_alone(tmp_path, below):
    """Found before training, not at the first checkpoint."""
    (tmp_path / "file").write_text("theirs")
    out = tmp_path / "file" / below
    with pytest.raises(ValueError, match=re.escape(f"`out` {out} cannot be written to")):
        Checkpoints(out, IDENTITY).check_room(1)
    assert tree(tmp_path) == {"file": b"theirs"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_takes_no_file_is_refused_with_the_reason(tmp_path, monkeypatch, number):
    """Permissions do not stop root, so the file system's answer is played."""

    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="`out`") as error:
        patched.setattr(Path, "write_bytes", refused)
        Checkpoints(tmp_path, IDENTITY).check_room(1)
    assert str(tmp_path) in str(error.value) and os.strerror(number) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_clearing_takes_what_a_killed_run_left_and_nothing_else(tmp_path):
    """Its half file must not become part of the next checkpoint; where there is none, nothing happens."""
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.clear_staging()
    save(checkpoints, 0, 3)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "config.json").write_text("{}")
    before = tree(tmp_path)
    (tmp_path / ".checkpoint.partial" / "deep").mkdir(parents=True)
    (tmp_path / ".checkpoint.partial" / "deep" / "half").write_bytes(b"\x10\0")
    checkpoints.clear_staging()
    assert tree(tmp_path) == before and names(tmp_path) == ["bundle", "checkpoints"]
    assert set(json.loads((save(checkpoints, 0, 6) / "state.json").read_text())["files"]) >= {WEIGHTS, OPTIMIZER}


def test_damaged_checkpoints_of_later_steps_are_removed_by_the_next_save(tmp_path):
    """They belong to a past that did not happen; each would be named as damaged at every start."""
    checkpoints = Checkpoints(tmp_path, IDENTITY, 2)
    for step in (6, 9):
        truncated(save(checkpoints, 0, step) / WEIGHTS)
    kept = save(checkpoints, 0, 1)
    assert names(checkpoints.folder) == [kept.name]


def test_the_content_of_a_folder_is_what_a_model_does(tmp_path):
    """Its weights, shape and preprocessing, not what is written about it; a name on the Hub has none."""
    for name in ("config.json", "preprocessor_config.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_text(name)
    before = contents(teacher=tmp_path, other="", another="org/name")
    assert set(before) == {"teacher_content"}
    (tmp_path / "README.md").write_text("other")
    assert contents(teacher=str(tmp_path)) == before
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (tmp_path / name).write_text("other")
        assert contents(teacher=tmp_path) != before
        (tmp_path / name).write_text(name)
        assert contents(teacher=tmp_path) == before
