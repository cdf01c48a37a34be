"""A crash at any step of a save leaves no mixture that loads.

pytest tests/test_saving_crashes.py
"""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import helpers
from modeling_lingene import LinGeneConfig, loading_lingene
from modeling_lingene import saving_lingene as saving
from saved import CODE, INDEX, WEIGHTS, files, index_of, load, logits, sha256, write_sizes


class Crash(Exception):
    """What the test throws in the middle of a save."""


STEPS = [
    (saving, "save_file"),
    (saving, "file_sha256"),
    (saving.os, "replace"),
    (saving.os, "rename"),
    (saving.shutil, "copy"),
    (loading_lingene, "custom_object_save"),
    (LinGeneConfig, "save_pretrained"),
    (Path, "write_text"),
    (Path, "unlink"),
]


def save_crashing_at(step: int, save: Callable[[], None], monkeypatch) -> bool:
    """Runs `save` and crashes before its step of that number; whether it came that far."""
    count = 0

    def crashing(function):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == step:
                raise Crash
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, crashing(getattr(owner, name)))
        try:
            save()
        except Crash:
            return True
    return False


def loaded_or_refused(folder: Path) -> torch.Tensor | None:
    try:
        return logits(load(folder, depth=6, local_files_only=True))
    except (ValueError, OSError):
        return None


OTHER = {"same configuration": {}, "another of fewer components": {"num_components": 3, "preset": "paper"}}


@pytest.mark.parametrize("fields", OTHER.values(), ids=OTHER)
def test_a_crash_while_saving_over_a_bundle_leaves_the_old_the_new_or_a_refusal(tmp_path, monkeypatch, fields):
    """A mixture of two trainings would load without a word and be worth nothing; so would one bundle's tokens behind
    what brings back another's.
    """
    old, new = helpers.tiny_model(), helpers.tiny_model(helpers.tiny_config(**fields), seed=1)
    old.save_pretrained(tmp_path / "old")
    old_logits, new_logits, step, outcomes = logits(old, depth=6), logits(new, depth=6), 0, []
    crashed, known = True, {}
    while crashed:
        step += 1
        folder = tmp_path / f"step {step}" / "bundle"
        shutil.copytree(tmp_path / "old", folder)
        write_sizes(folder)
        (folder / "readout.safetensors").write_bytes(b"of the old")
        crashed = save_crashing_at(step, lambda to=folder: new.save_pretrained(to), monkeypatch)
        content = tuple((path.name, sha256(path)) for path in sorted(folder.iterdir()))
        if content not in known:  # most steps leave what an earlier one left
            known[content] = loaded_or_refused(folder)
        found = known[content]
        kinds = {"refused": found is None}
        if found is not None:
            kinds["old"] = torch.allclose(found, old_logits, atol=1e-4)
            kinds["new"] = torch.allclose(found, new_logits, atol=1e-4)
        assert any(kinds.values()), f"step {step} left a mixture"
        outcomes.append(next(kind for kind, fits in kinds.items() if fits))
        turned = (folder / "readout.safetensors").exists()
        assert outcomes[-1] == "refused" or turned == (outcomes[-1] == "old"), f"step {step} left the wrong readout"
        assert [path.name for path in folder.parent.iterdir()] == ["bundle"], f"step {step} left something beside"
        if outcomes[-1] != "old" or step % 8 == 0:  # a second attempt repairs whatever was left
            new.save_pretrained(folder)
            torch.testing.assert_close(loaded_or_refused(folder), new_logits, rtol=0, atol=1e-4)
            assert set(index_of(folder)["weight_map"].values()) == {path.name for path in folder.glob("*.safetensors")}
    assert step > 20 and outcomes[0] == "old" and outcomes[-1] == "new"


@pytest.mark.parametrize("existing", [False, True], ids=["new folder", "empty folder"])
def test_a_crash_while_saving_to_a_new_folder_leaves_nothing_or_the_bundle(tmp_path, monkeypatch, existing):
    """A half-written folder would have to be recognised and cleared by hand."""
    model, step, crashed, complete = helpers.tiny_model(), 0, True, 0
    while crashed:
        step += 1
        folder = tmp_path / f"step {step}" / "bundle"
        (folder if existing else folder.parent).mkdir(parents=True)
        crashed = save_crashing_at(step, lambda to=folder: model.save_pretrained(to), monkeypatch)
        left = files(folder.parent)
        if left:
            complete += 1
            assert left == {f"bundle/{name}" for name in {*WEIGHTS, INDEX, "config.json", *CODE}}
            assert torch.equal(logits(load(folder, constrained=True)), logits(model))
        assert not [path for path in folder.parent.iterdir() if path != folder]
    assert step > 15 and complete <= 2


def test_a_full_disk_leaves_the_old_bundle(tmp_path, monkeypatch):
    """The commonest crash: every write from some moment on fails, and fails as OSError, which is caught in places."""
    old, new = helpers.tiny_model(), helpers.tiny_model(seed=1)
    folder = tmp_path / "bundle"
    old.save_pretrained(folder)
    before = {name: sha256(folder / name) for name in files(folder)}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("save_file", "_write_index"):
        with monkeypatch.context() as patch:
            patch.setattr(saving, name, full)
            with pytest.raises(OSError, match="No space left"):
                new.save_pretrained(folder)
        assert {name: sha256(folder / name) for name in files(folder)} == before
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
