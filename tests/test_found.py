"""Laws of `modeling_lingene.found`: whoever gives a command the wrong folder is told what it is and where it goes.

pytest tests/test_found.py
"""

import itertools
import json
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

import helpers
from helpers import files
from modeling_lingene import LinGeneViTConfig, cli
from modeling_lingene import found as module
from modeling_lingene.images.batches import image_processor


# What a folder is called in the line, and what of the way out must stand in it.
SAID = {
    "bundle": ("is a bundle", "lingene decompose --init"),
    "plain": ("is a plain vit model", "lingene convert"),
    "pruned": ("is a pruned model", "`profile`"),
    "run": ("is the folder of a training run", "run/bundle"),
    "pruning": ("is the folder of a pruning", "pruning/model"),
    "export": ("is an export for another program", "that it was made of"),
    "pictures": ("is a folder without a config.json", ""),
    "empty": ("is an empty folder", ""),
}
# F is the folder, B a bundle, O a new one; beside each command, the folders that it takes.
COMMANDS = {
    "info F": {"bundle"},
    "verify F": {"bundle"},
    "card F": {"bundle"},
    "push F org/name": {"bundle", "pruned"},
    "materialise F --out O": {"bundle"},
    "export F --to onnx --out O": {"bundle", "plain", "pruned"},
    "sweep F --data digits": {"bundle"},
    "profile F": {"bundle", "plain", "pruned"},
    "evaluate F --data digits": {"bundle", "plain", "pruned", "export"},
    "evaluate B --data digits --metric cosine --reference F": {"bundle", "plain", "pruned"},
    "evaluate B --data F": {"pictures"},
    "convert F --out O": {"plain"},
    "decompose --init F --data digits --out O": {"bundle"},
    "prune F --data digits --target-macs 0.5 --out O": {"bundle", "plain", "pruned"},
    "analyse trend F --out O": {"bundle", "plain", "pruned"},
    "analyse components F --data digits --out O": {"bundle"},
    "analyse coefficients F --out O": {"bundle"},
    "analyse similarity F --data digits --out O": {"bundle", "plain", "pruned"},
    "app F": {"bundle"},
}
WRONG = [(line, kind) for (line, takes), kind in itertools.product(COMMANDS.items(), SAID) if kind not in takes]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of every kind; read only."""
    root = tmp_path_factory.mktemp("found")
    config = helpers.tiny_config(num_labels=10, image_size=8)
    found = {kind: root / kind for kind in SAID}
    helpers.bundle(found["bundle"], config)
    helpers.tiny_model(config).materialise(2).save_pretrained(found["plain"])
    for kind in ("bundle", "plain"):
        image_processor(8).save_pretrained(found[kind])
    found["pruned"].mkdir()
    (found["pruned"] / "config.json").write_text(json.dumps({"model_type": LinGeneViTConfig.model_type}))
    shutil.copytree(found["bundle"], found["run"] / "bundle")
    shutil.copytree(found["pruned"], found["pruning"] / "model")
    for kind in ("export", "pictures", "empty"):
        found[kind].mkdir()
    (found["export"] / "export.json").write_text(json.dumps({"format": "onnx"}))
    for name in ("ant", "bee"):
        (found["pictures"] / name).mkdir()
        Image.new("RGB", (9, 9)).save(found["pictures"] / name / "1.png")
    return found


@pytest.mark.parametrize("line, kind", WRONG)
def test_every_command_says_what_the_folder_is_that_it_does_not_take(folders, tmp_path, capsys, line, kind):
    """And what takes it; before anything is written, downloaded or measured."""
    if line.startswith("app"):
        pytest.importorskip("gradio", reason="needs gradio, of the extra app")
    pytest.importorskip("sklearn"), pytest.importorskip("onnxruntime")
    places = {"F": str(folders[kind]), "B": str(folders["bundle"]), "O": str(tmp_path / "out")}
    before = files(folders[kind])
    assert cli.main([places.get(word, word) for word in line.split()]) == 2
    (told,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lingene ")]
    said, way = SAID[kind]
    if "--data F" in line:  # of pictures there is no way out of a model
        assert ("found no image" in told) or said in told
    else:
        assert f"{folders[kind]} {said}" in told and way in told
    assert not (tmp_path / "out").exists() and files(folders[kind]) == before


def test_a_misspelt_folder_is_told_at_once_and_as_what_it_is(tmp_path, capsys, monkeypatch):
    """Six attempts at every file took half a minute, and not a word said that there is no such folder."""
    asked = []

    class Nowhere:
        def head(self, url, **_):
            asked.append(url)
            raise ConnectionError("Name or service not known")

    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "get_session", Nowhere)
    lines = ["convert vit_nope", "info vit_nope", "evaluate vit_nope --data digits", "export vit_nope --to onnx"]
    lines += ["profile vit_nope", "materialise vit_nope", "analyse trend vit_nope", "prune vit_nope --data digits"]
    lines += ["decompose --init vit_nope --data digits", "sweep vit_nope --data digits", "verify vit_nope"]
    for line in lines:
        out = [] if line.split()[0] in ("verify",) else ["--out", str(tmp_path / "out")]
        start, before = time.monotonic(), len(asked)
        assert cli.main([*line.split(), *out]) == 2
        assert time.monotonic() - start < 10 and len(asked) == before + 1
        (told,) = capsys.readouterr().err.splitlines()
        assert " vit_nope: there is no such folder here, and the Hub cannot be asked" in told
        assert "Name or service not known" in told and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["timm:vit_tiny", "./nope", "/nope", "a/b/c", "~/nope", ""])
def test_what_can_be_no_name_on_the_hub_is_not_asked_for(monkeypatch, name):
    """Paths, and names of other libraries."""
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "get_session", lambda: pytest.fail("the Hub was asked"))
    module.check_within_reach("model", name)


def test_a_public_name_holds_no_folder_of_this_machine(tmp_path, monkeypatch):
    """What is stored or pushed says it: a folder's own name, or that of the Hub or of timm."""
    (tmp_path / "runs" / "my vit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "my vit")
    there = tmp_path / "runs" / "my vit"
    for name in (there, f"{there}/", ".", "./", "../my vit", "/absent/my vit", "~/absent/my vit", "./my vit"):
        assert module.public_name(name) == "my vit", name
        assert module.public_name(f"timm:local-dir:{name}") == "timm:local-dir:my vit", name
    for name in ("google/vit-base", "gpt2", "timm:regnety_160", "timm:hf-hub:timm/vit_base", "dense"):
        assert module.public_name(name) == name
    assert module.public_name("") is None
