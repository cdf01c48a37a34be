"""Writing a bundle: the layout of DESIGN 4, and what a save over another one keeps and removes.

pytest tests/test_saving.py
"""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import helpers
import modeling_lingene
from modeling_lingene import LinGeneForImageClassification, LinGeneModel, folders
from saved import CODE, INDEX, WEIGHTS, changed, files, index_of, load, logits, sha256, write_sizes


BLOCK = [
    f"{part}.{kind}"
    for part in "norm1 attention.query attention.key attention.value attention.output norm2 mlp.fc1 mlp.fc2".split()
    for kind in ("weight", "bias")
]
OUTSIDE = (
    "embeddings.cls_token embeddings.position_embeddings embeddings.patch_embeddings.weight "
    "embeddings.patch_embeddings.bias layernorm.weight layernorm.bias classifier.weight classifier.bias"
).split()


def test_a_constrained_model_keeps_the_preprocessing_of_the_bundle_it_was_loaded_from(bundle, tmp_path):
    """Fine-tuned and saved, it was a bundle that no image could be given to; a folder's own is left as it is."""
    start = Path(shutil.copytree(bundle, tmp_path / "start"))
    mine = '{"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "mine": 1}\n'
    (start / "preprocessor_config.json").write_text(mine)
    model = LinGeneForImageClassification.from_pretrained(start, constrained=True, depth=3)
    shutil.rmtree(start)
    model.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "preprocessor_config.json").read_text() == mine
    again = LinGeneForImageClassification.from_pretrained(tmp_path / "new", constrained=True)
    (tmp_path / "new" / "preprocessor_config.json").write_text("{}")
    again.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "preprocessor_config.json").read_text() == "{}"
    without = LinGeneForImageClassification.from_pretrained(bundle, constrained=True)
    without.save_pretrained(tmp_path / "bare")
    assert not (tmp_path / "bare" / "preprocessor_config.json").exists()


# -- layout


def test_a_bundle_is_a_file_per_component_a_shared_one_index_configuration_and_code(bundle):
    """Anything else in it would be pushed with it; a pickle would be refused by whoever downloads it."""
    assert files(bundle) == {*WEIGHTS, INDEX, "config.json", *CODE}
    parts = Path(modeling_lingene.__file__).parent
    assert CODE and all((bundle / name).read_bytes() == (parts / name).read_bytes() for name in CODE)


def test_keys_are_the_state_dicts_and_each_component_has_a_file_of_its_own(bundle):
    """What other readers of bundles rely on: names, and which file to fetch."""
    found = {}
    for name in WEIGHTS:
        with safe_open(bundle / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {key: name for key in file.keys()}
    expected = {f"components.{n}.{name}": f"component-{n:02d}.safetensors" for n in range(5) for name in BLOCK}
    expected |= dict.fromkeys(OUTSIDE, "shared.safetensors")
    assert found == expected == index_of(bundle)["weight_map"]
    assert set(found) == set(helpers.tiny_model().state_dict())


def test_weights_id_is_the_hash_of_the_files_hashes_and_the_settings(bundle):
    """`push` and `sweep` recompute it; any other program must be able to, from what lies there alone."""
    metadata = index_of(bundle)["metadata"]
    assert metadata["files"] == {name: sha256(bundle / name) for name in WEIGHTS}
    text = "".join(sha256(bundle / name) for name in sorted(WEIGHTS))
    text += json.dumps(metadata["settings"], sort_keys=True)
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert metadata["weights_id"] == expected == folders.bundle_weights_id(bundle)
    assert json.loads((bundle / "config.json").read_text())["weights_id"] == expected


def test_the_configuration_names_the_classes_for_every_auto_class(bundle):
    """Without `AutoModel` in it, the encoder alone could not be loaded from the Hub."""
    config = json.loads((bundle / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoBackbone": "modeling_lingene.LinGeneBackbone",
        "AutoConfig": "configuration_lingene.LinGeneConfig",
        "AutoModel": "modeling_lingene.LinGeneModel",
        "AutoModelForImageClassification": "modeling_lingene.LinGeneForImageClassification",
    }
    assert config["model_type"] == "lingene" and config["architectures"] == ["LinGeneForImageClassification"]
    assert config["bundle_format"] == 1 and config["dtype"] == "float32"


def test_a_headless_bundle_has_no_classifier(tmp_path):
    """Not even a random one."""
    helpers.tiny_model(model_class=LinGeneModel).save_pretrained(tmp_path / "bundle")
    assert set(load_file(tmp_path / "bundle" / "shared.safetensors")) == set(OUTSIDE[:-2])
    assert set(index_of(tmp_path / "bundle")["weight_map"]) == set(helpers.tiny_model().state_dict()) - {*OUTSIDE[-2:]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_reload_bit_for_bit_in_the_dtype_they_were_saved_in(tmp_path, dtype):
    """A bundle is an archive: nothing may be rounded on the way to it and back."""
    model = helpers.tiny_model().to(dtype)
    model.save_pretrained(tmp_path / "bundle")
    assert {tensor.dtype for name in WEIGHTS for tensor in load_file(tmp_path / "bundle" / name).values()} == {dtype}
    again = load(tmp_path / "bundle", constrained=True, dtype="auto")
    assert again.config.dtype == dtype
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


# -- arguments


def test_the_state_dict_that_is_handed_in_is_what_is_saved(tmp_path):
    """The Trainer gathers a sharded model's weights and hands them over."""
    model, other = helpers.tiny_model(), helpers.tiny_model(seed=1)
    model.save_pretrained(tmp_path / "bundle", state_dict=other.state_dict())
    assert torch.equal(logits(load(tmp_path / "bundle", constrained=True)), logits(other))


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    """All processes of a distributed run call it."""
    helpers.tiny_model().save_pretrained(tmp_path / "bundle", is_main_process=False)
    assert list(tmp_path.iterdir()) == []


def test_a_path_to_a_file_is_refused(tmp_path):
    """transformers logs an error and returns: the weights would be lost."""
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(ValueError, match="`save_directory` must be a folder"):
        helpers.tiny_model().save_pretrained(tmp_path / "bundle")
    assert files(tmp_path) == {"bundle"} and (tmp_path / "bundle").read_text() == "mine"


@pytest.mark.parametrize("mark", ["_hf_peft_config_loaded", "hf_quantizer"])
def test_adapters_and_quantised_weights_are_refused(tmp_path, mark):
    """Components with something on top are no components."""
    model = helpers.tiny_model()
    setattr(model, mark, True)
    with pytest.raises(ValueError, match="no bundle"):
        model.save_pretrained(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_stock_arguments_are_taken_and_files_still_follow_the_components(tmp_path):
    """Programs pass them to every model."""
    helpers.tiny_model().save_pretrained(tmp_path / "bundle", max_shard_size="1KB", safe_serialization=True)
    assert files(tmp_path / "bundle") == {*WEIGHTS, INDEX, "config.json", *CODE}


@pytest.mark.parametrize("name", ["out", "out/", "deep/down/out", ".", "./out/.."])
@pytest.mark.parametrize("existing", [False, True])
def test_any_way_to_write_the_folder_will_do(tmp_path, monkeypatch, name, existing):
    """Beside `.` there is no sibling to fill and rename; nothing may be left where the staging was."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    if existing or ".." in name:
        (work / "out").mkdir()
        Path(name).mkdir(parents=True, exist_ok=True)
        (Path(name) / "notes.txt").write_text("mine")
    model = helpers.tiny_model()
    model.save_pretrained(name)
    assert torch.equal(logits(load(name, constrained=True)), logits(model))
    assert not list(tmp_path.rglob("*.partial")) and [path.name for path in tmp_path.iterdir()] == ["work"]


# -- over a folder that has files


def test_saving_over_a_bundle_keeps_other_files_and_removes_the_stale_ones(tmp_path):
    """A smaller bundle must not offer components of the larger one, nor be shadowed by a file of the Trainer's."""
    folder = helpers.bundle(tmp_path / "bundle")
    write_sizes(folder)
    (folder / "notes").mkdir()
    others = ["README.md", "preprocessor_config.json", "training_args.bin", "notes/component-09.safetensors", "app.py"]
    for name in others:
        (folder / name).write_text(name)
    (folder / "model.safetensors").write_bytes((folder / "shared.safetensors").read_bytes())
    model = helpers.tiny_model(helpers.tiny_config(num_components=3), seed=1)
    model.save_pretrained(folder)
    weights = {name for name in files(folder) if name.endswith(".safetensors") and "/" not in name}
    assert weights == set(index_of(folder)["weight_map"].values()) and len(weights) == 4
    assert files(folder) == {*weights, INDEX, "config.json", *CODE, *others}
    assert all((folder / name).read_text() == name for name in others)
    assert torch.equal(logits(load(folder, constrained=True)), logits(model))
    assert folders.bundle_weights_id(folder) == index_of(folder)["metadata"]["weights_id"]


def test_what_is_true_of_other_weights_alone_is_removed(tmp_path):
    """A bundle's channels that were turned are no other bundle's, and it was not converted from that one's source;
    saved again as it is, both are still true.
    """
    folder = tmp_path / "bundle"
    turned = helpers.tiny_model(model_class=LinGeneModel)
    turned.save_pretrained(folder)
    about = {"readout.safetensors": b"turned", "conversion.json": b"{}", "conversion.png": b"picture"}
    for name, content in about.items():
        (folder / name).write_bytes(content)
    turned.save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in about} == about
    loaded = LinGeneModel.from_pretrained(folder, constrained=True)
    changed(loaded).save_pretrained(folder)  # trained on: in the same channels, but no conversion any more
    assert files(folder) & about.keys() == {"readout.safetensors"}
    for name, content in about.items():
        (folder / name).write_bytes(content)
    helpers.tiny_model(seed=1, model_class=LinGeneModel).save_pretrained(folder)
    assert not files(folder) & about.keys()
    (folder / "readout.safetensors").write_bytes(b"turned")
    (folder / INDEX).write_text("damaged")
    helpers.tiny_model(seed=1, model_class=LinGeneModel).save_pretrained(folder)
    assert not files(folder) & about.keys()


def test_unchanged_components_keep_their_file(tmp_path):
    """A bundle in which one component was tuned uploads one file."""
    model = helpers.tiny_model()
    folder = tmp_path / "bundle"
    model.save_pretrained(folder)
    for part in ("components.2", "components.4"):
        before = {file: sha256(folder / file) for file in set(index_of(folder)["weight_map"].values())}
        changed(model, part).save_pretrained(folder)
        after = {file: sha256(folder / file) for file in set(index_of(folder)["weight_map"].values())}
        assert len(after.items() - before.items()) == 1
        assert torch.equal(logits(load(folder, constrained=True)), logits(model))


def test_saving_the_same_weights_again_changes_no_file_of_weights_and_keeps_the_sizes(tmp_path):
    """New class names, say: what was measured is still true, whatever saves came before."""
    model = helpers.tiny_model()
    folder = tmp_path / "bundle"
    model.save_pretrained(folder)
    for _ in range(2):
        write_sizes(folder)
        before = {file: sha256(folder / file) for file in files(folder) if "safetensors" in file or "sizes" in file}
        model.config.id2label = {n: f"class {n}" for n in range(7)}
        model.save_pretrained(folder)
        after = {file: sha256(folder / file) for file in files(folder) if "safetensors" in file or "sizes" in file}
        assert after == before
        assert load(folder).config.id2label[3] == "class 3"
        changed(model).save_pretrained(folder)


@pytest.mark.parametrize("part", ["", "components.4", "classifier"])
def test_sizes_measured_on_other_weights_are_removed(tmp_path, part):
    """Loading refuses a bundle whose sizes.json is of other weights."""
    folder = helpers.bundle(tmp_path / "bundle")
    write_sizes(folder)
    changed(helpers.tiny_model(), part).save_pretrained(folder)
    assert not (folder / "sizes.json").exists()
    load(folder, depth=2)


def test_a_bundle_that_gains_a_component_writes_one_file_and_drops_the_sizes(tmp_path):
    """Incremental training: the first components are frozen and stay what they are."""
    large = helpers.tiny_model()
    folder = tmp_path / "bundle"
    small = LinGeneForImageClassification(helpers.tiny_config(num_components=4))
    small.load_state_dict({key: tensor for key, tensor in large.state_dict().items() if "components.4" not in key})
    small.save_pretrained(folder)
    write_sizes(folder)
    before = {name: sha256(folder / name) for name in WEIGHTS[:-1]}
    large.save_pretrained(folder)
    assert {name: sha256(folder / name) for name in WEIGHTS[:-1]} == before
    assert torch.equal(logits(load(folder, constrained=True)), logits(large))
    assert not (folder / "sizes.json").exists()
    load(folder, depth=2)


@pytest.mark.parametrize("keywords", [{}, {"width_ratio": "1/2"}, {"num_components": 3, "depth": 4}], ids=str)
def test_a_loaded_bundle_can_be_saved_over_itself(tmp_path, keywords):
    """Its parameters are still mapped from the very files that are replaced."""
    folder = helpers.bundle(tmp_path / "bundle")
    model = load(folder, constrained=True, **keywords)
    with torch.no_grad():
        model.layernorm.weight.mul_(1.5)
    expected = logits(model)
    model.save_pretrained(folder)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(load(folder, constrained=True)), expected)
    assert folders.bundle_weights_id(folder) == index_of(folder)["metadata"]["weights_id"]


def test_a_folder_on_another_file_system_can_be_saved_to(tmp_path, monkeypatch):
    """A mounted volume or a link to one: nothing can be renamed into it from beside it."""
    folder = tmp_path / "volume"
    folder.mkdir()
    rename = os.rename

    def device(path) -> bool:
        return Path(path) != folder and folder in Path(path).parents

    def guarded(source, target):
        if device(source) != device(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source), None, str(target))
        if Path(target) == folder:
            raise OSError(errno.EBUSY, "Device or resource busy", str(target))
        rename(source, target)

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, guarded)
    for seed in range(2):  # empty, then over a bundle
        model = helpers.tiny_model(seed=seed)
        model.save_pretrained(folder)
        assert torch.equal(logits(load(folder, constrained=True)), logits(model))
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_weight_files_may_be_read_by_whoever_may_read_the_configuration(tmp_path):
    """safetensors writes for the owner alone, whatever the umask: a shared folder would not load."""
    before = os.umask(0o022)
    try:
        folder = helpers.bundle(tmp_path / "bundle")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert set(modes.values()) == {0o644}, modes
