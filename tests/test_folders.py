"""Laws of a bundle's folder and a model's: written whole, told by its weights' identity, refused where it is damaged.

pytest tests/test_folders.py
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTForImageClassification

import helpers
from helpers import ROWS, edit, files, flip_a_bit, read
from modeling_lingene import bundle_lingene, folders, hub
from modeling_lingene.folders import bundle_weights_id
from modeling_lingene.images.batches import image_processor


CONFIG, INDEX = "config.json", "model.safetensors.index.json"


def test_sizes_are_written_with_the_identity_of_the_weights_beside_them(folder):
    """Loading compares the two, so that numbers of other weights are never used to choose a size."""
    folders.write_sizes(folder, ROWS)
    assert read(folder / "sizes.json") == {"weights_id": by_hand(folder), "sizes": ROWS}
    assert AutoModelForImageClassification.from_pretrained(folder, max_macs=8e6).config.num_hidden_layers == 1


def test_a_file_is_written_whole_or_not_at_all(measured, monkeypatch):
    """A crash between writing and renaming leaves the old one and nothing beside it."""
    before = files(measured)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    for write in (lambda: folders.write_sizes(measured, []), lambda: hub.write_card(measured)):
        with pytest.raises(KeyboardInterrupt):
            write()
        assert files(measured) == before


def by_hand(folder: Path) -> str:
    """`weights_id` by its documentation: SHA-256 over the files' SHA-256s, shared ones last, and the settings."""
    mapped = set(read(folder / INDEX)["weight_map"].values())
    components = sorted(file for file in mapped if file.startswith("component-"))
    (shared,) = mapped - set(components)
    digests = [hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in [*components, shared]]
    settings = json.dumps(read(folder / INDEX)["metadata"]["settings"], sort_keys=True)
    return hashlib.sha256("".join([*digests, settings]).encode()).hexdigest()


def test_the_identity_of_weights_is_a_hash_of_hashes_whatever_the_files_are_called(folder):
    """Any program can recompute it; a bundle saved over another has marked file names and the same identity."""
    first = bundle_weights_id(folder)
    assert first == by_hand(folder) == read(folder / INDEX)["metadata"]["weights_id"]
    other = helpers.tiny_model(seed=1)
    other.save_pretrained(folder)
    assert any("-" in file.removeprefix("component-") for file in read(folder / INDEX)["weight_map"].values())
    assert bundle_weights_id(folder) == by_hand(folder) != first
    assert bundle_weights_id(helpers.bundle(folder.parent / "plain", seed=1)) == bundle_weights_id(folder)


DAMAGES = {
    "no config": (lambda f: (f / CONFIG).unlink(), rf"`bundle`.*{CONFIG}"),
    "no index": (lambda f: (f / INDEX).unlink(), rf"`bundle`.*{INDEX}"),
    "no folder": (lambda f: shutil.rmtree(f), "`bundle` must be the folder of a bundle, and there is no folder"),
    "no component": (
        lambda f: (f / "component-03.safetensors").unlink(),
        r"`bundle`.*lacks component-03\.safetensors",
    ),
    "no shared file": (lambda f: (f / "shared.safetensors").unlink(), r"`bundle`.*lacks shared\.safetensors"),
    "a bit flipped": (lambda f: flip_a_bit(f / "component-02.safetensors"), "`weights_id`.*save the bundle again"),
    "files exchanged": (
        lambda f: os.replace(f / "component-02.safetensors", f / "component-01.safetensors"),
        r"lacks component-02\.safetensors",
    ),
    "config of another save": (lambda f: edit(f / CONFIG, lambda c: c.update(weights_id="0" * 64)), "`weights_id`"),
    "config that is cut short": (lambda f: (f / CONFIG).write_text('{"model_type": "lin'), "`config.json`.*damaged"),
    "config that contradicts itself": (lambda f: edit(f / CONFIG, lambda c: c.update(basis="sine")), "`basis`"),
    "index cut short": (lambda f: (f / INDEX).write_text('{"metadata": {'), f"`{INDEX}`.*damaged"),
    "a tensor missing in the index": (
        lambda f: edit(f / INDEX, lambda i: i["weight_map"].pop("components.2.norm1.weight")),
        r"`components\.2\.norm1\.weight`.*missing",
    ),
    "an index that points elsewhere": (
        lambda f: [
            shutil.copy(f / "shared.safetensors", f.parent),
            edit(f / INDEX, lambda i: i["weight_map"].update({"layernorm.bias": "../shared.safetensors"})),
        ],
        r"`layernorm\.bias`.*beside it",
    ),
    "sizes of other weights": (
        lambda f: (f / "sizes.json").write_text(json.dumps({"weights_id": "0" * 64, "sizes": ROWS})),
        r"`sizes\.json`.*`weights_id`",
    ),
    "sizes cut short": (lambda f: (f / "sizes.json").write_text('{"weights_id": "0'), r"`sizes\.json`.*damaged"),
    "a plain model": (
        lambda f: [
            AutoModelForImageClassification.from_pretrained(f).save_pretrained(
                f.parent / "vit", max_shard_size="50KB"
            ),
            shutil.rmtree(f),
            os.replace(f.parent / "vit", f),
        ],
        "`bundle`.*is a plain vit model, not a bundle",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_before_anything_is_sent_or_written(folder, monkeypatch, damage):
    """Once pushed, it would fail on the machines of others; each message says what is wrong."""
    hurt, message = DAMAGES[damage]
    assert folders.check_folder(folder).reference_components == 5
    hurt(folder)
    before = files(folder)

    def push_bundle(*_, **__):
        raise AssertionError("sent")

    monkeypatch.setattr(hub, "push_bundle", push_bundle)
    for check in (folders.check_folder, lambda damaged: hub.push(damaged, "org/name")):
        with pytest.raises(ValueError, match=message):
            check(folder)
    assert files(folder) == before


def test_a_bundle_is_described_without_opening_or_having_its_weights(measured, monkeypatch):
    """`info` on a bundle of gigabytes answers at once."""
    files_of = [load_file(file) for file in measured.glob("*.safetensors")]
    stored = sum(tensor.numel() for tensors in files_of for tensor in tensors.values())
    for file in measured.glob("*.safetensors"):
        file.unlink()

    def safe_open(*_, **__):
        raise AssertionError("weights were opened")

    monkeypatch.setattr(bundle_lingene, "safe_open", safe_open)
    facts, rows = folders.describe(measured)
    assert rows == ROWS and facts["weights_id"] == read(measured / CONFIG)["weights_id"]
    assert (facts["hidden_size"], facts["num_attention_heads"], facts["num_labels"]) == (48, 4, 7)
    assert facts["legal_width_ratios"] == ["1/4", "1/2", "3/4", "1"] and facts["num_components"] == 5
    assert facts["stored_params"] == stored and json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("name", ["absent/folder/deep", "./absent", "/absent/folder"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    """A misspelt folder must say so, not that some repository is private."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"`bundle`.*no folder {name.removeprefix('./')}|no folder {name}"):
        folders.describe(name)


def test_a_published_model_is_stock_and_has_the_preprocessing_of_its_bundle(folder, tmp_path):
    """What is in the folder is all that anybody needs, without this package; also into an empty folder."""
    image_processor(16).save_pretrained(folder)
    model = helpers.tiny_model().materialise(2, "1/2", 3)
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new" / "vit", tmp_path / "empty"):
        folders.publish_model(model, folder, out)
        assert sorted(path.name for path in out.iterdir()) == [CONFIG, "model.safetensors", "preprocessor_config.json"]
        assert files(out)["preprocessor_config.json"] == files(folder)["preprocessor_config.json"]
        again = ViTForImageClassification.from_pretrained(out)
        assert torch.equal(again(helpers.images()).logits, model(helpers.images()).logits)
    (folder / "preprocessor_config.json").unlink()
    folders.publish_model(model, folder, tmp_path / "without")
    assert not (tmp_path / "without" / "preprocessor_config.json").exists()


@pytest.mark.parametrize("owner, name", [(shutil, "copyfile"), (os, "replace"), (ViTForImageClassification, None)])
def test_a_crash_while_publishing_a_model_leaves_nothing(folder, tmp_path, monkeypatch, owner, name):
    """Neither half a model under the name that was asked for nor a hidden folder beside it."""
    image_processor(16).save_pretrained(folder)
    model, home = helpers.tiny_model().materialise(2), tmp_path / "home"
    home.mkdir()

    def crash(*arguments, **_):
        if owner is ViTForImageClassification:
            arguments[1].mkdir(exist_ok=True)
            (arguments[1] / CONFIG).write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name or "save_pretrained", crash)
    with pytest.raises(KeyboardInterrupt):
        folders.publish_model(model, folder, home / "vit")
    assert list(home.iterdir()) == []
