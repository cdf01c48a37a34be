"""Laws of the commands on a bundle: a size made, measured or sent, the same numbers on the terminal and in files.

pytest tests/commands/test_bundle_commands.py
"""

import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForImageClassification, ViTForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import helpers
from helpers import ROWS, assert_table_shows, files, number, read, table
from modeling_lingene import cli, hub, readme, saving_lingene
from modeling_lingene.images.batches import image_processor, to_tensors
from modeling_lingene.images.data import load_images
from modeling_lingene.measuring.metrics import count_macs


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
    assert facts["pictures"] == "8x8"  # as its preprocessing makes them, whatever its positions are for
    assert facts.pop("sizes") == ROWS
    assert_table_shows(ROWS, table(told.out))
    shown = dict(re.findall(r"^(\w+)  +(.*)$", told.out, re.MULTILINE))
    assert shown.keys() == facts.keys() and len(facts) > 8
    for name in facts.keys() - {"stored_params"}:
        assert shown[name] == str(facts[name]).strip("[]").replace("'", "")
    assert shown["stored_params"] == hub.readable(facts["stored_params"])
    assert shown["hidden_size"] == "48" and read(bundle / "config.json")["weights_id"] == shown["weights_id"]


def test_info_shows_the_rest_of_a_bundle_with_damaged_preprocessing(lingene, digits, tmp_path):
    """It is by this that one looks at what is wrong."""
    bundle = Path(shutil.copytree(digits.bundle, tmp_path / "bundle"))
    (bundle / "preprocessor_config.json").write_text("{")
    told = lingene("info", bundle)
    assert told.code == 0 and "hidden_size" in told.out and "pictures" not in told.out


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
