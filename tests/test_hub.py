"""Laws of cards, measured sizes and pushing: what is shown was measured, what is pushed is whole and loads again.

The round trip runs in a process that knows only the Hub on this machine; all pushes in it share the imports.

    pytest tests/test_hub.py
"""

import ast
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTForImageClassification

import helpers
from hub_server import USER, HubServer
from modeling_lingene import LinGeneModel, Size, bundle_lingene, folders, hub, loading_lingene, readme
from modeling_lingene.budget_lingene import device_name
from modeling_lingene.folders import bundle_weights_id
from modeling_lingene.images.data import image_processor
from modeling_lingene.measuring import tables
from test_hub_server import in_new_process


CONFIG, INDEX = "config.json", "model.safetensors.index.json"
ROWS = [
    {
        "depth": depth,
        "width_ratio": width,
        "num_components": count,
        "params": 123_456 * depth,
        "stored_params": 70_707 * count,
        "macs": 2_345_678 * depth,
        "accuracy": accuracy,
        "split": "validation",
        "dataset": "org/set",
    }
    for depth, width, count, accuracy in [
        (6, "1", 5, 0.9876),
        (3, "1", 2, 0.51234),
        (4, "1/2", 3, 0.76549),
        (1, "1", 5, 0.9),
    ]
]
for timed in ROWS[:2]:
    timed |= {"latency_ms": 1.2345 * timed["depth"], "device": device_name()}


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, without measured sizes."""
    return Path(shutil.copytree(bundle, tmp_path / "tiny"))


@pytest.fixture
def measured(folder: Path) -> Path:
    folders.write_sizes(folder, ROWS)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path: Path, change) -> None:
    """Changes a JSON file in place."""
    content = read(path)
    change(content)
    path.write_text(json.dumps(content))


def table(text: str) -> list[dict[str, str]]:
    """The first table with a column `depth` in a Markdown text, one dict per row."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    start = next(number for number, line in enumerate(lines) if line[0] == "depth")
    rows = [line for line in lines[start + 2 :] if len(line) == len(lines[start])]
    return [dict(zip(lines[start], row)) for row in rows]


def number(cell: str) -> float:
    """`1.23 M` -> 1230000; `81.2 ± 1.3 %` -> 0.812."""
    value, _, unit = re.sub(r" ± [\d.]+", "", cell).partition(" ")
    return float(value) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "%": 0.01, "ms": 1}[unit]


def assert_table_shows(rows: list[dict], shown: list[dict[str, str]]) -> None:
    """Every row, the most accurate first, each number to three digits or the decimals of its unit."""
    assert len(shown) == len(rows)
    for row, cells in zip(sorted(rows, key=lambda row: -row["accuracy"]), shown):
        assert cells["depth"] == str(row["depth"]) and cells["components"] == str(row["num_components"])
        assert cells["width"] == row["width_ratio"]
        assert cells["accuracy"].endswith(" %") and abs(number(cells["accuracy"]) - row["accuracy"]) <= 0.00051
        for column, field in (("parameters", "params"), ("MACs", "macs")):
            assert number(cells[column]) == pytest.approx(row[field], rel=5.1e-3)
        if "latency_ms" in row:
            assert number(cells["latency"]) == pytest.approx(row["latency_ms"], abs=0.0051)
        else:
            assert cells["latency"] == "-"


def told_by(page: str) -> tuple[dict, str]:
    """What a card's header says, in whatever order, and its text without the marks around it."""
    card = ModelCard(page)
    return card.data.to_dict(), re.sub(r"<!-- /?lingene card.*? -->\n?", "", card.text).strip()


def examples(card: str) -> list[tuple[str, ast.Call]]:
    """The Python blocks of a card, and the one call of `from_pretrained` in each."""
    found = []
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
        (call,) = [call for call in calls if call.func.attr == "from_pretrained"]
        found.append((block, call))
    return found


def example(card: str) -> tuple[str, ast.Call]:
    """The first of them."""
    return examples(card)[0]


def run_examples(card: str, repo_id: str, folder: Path) -> list[ViTForImageClassification]:
    """What the card's blocks give, each alone, where its repository is a folder on this machine."""
    models = []
    for block, call in examples(card):
        assert call.args[0].value == repo_id
        names: dict[str, Any] = {}
        exec(block.replace(f'"{repo_id}"', repr(str(folder))), names)
        models.append(names["model"])
    return models


def test_the_table_of_a_card_is_sizes_json(measured):
    """Typed numbers rot; these change when the bundle is measured again."""
    assert_table_shows(read(measured / "sizes.json")["sizes"], table(hub.render_card(measured)))
    edit(measured / "sizes.json", lambda sizes: sizes["sizes"][1].update(accuracy=0.125))
    assert table(hub.render_card(measured))[-1]["accuracy"] == "12.5 %"


def test_a_card_says_on_what_was_measured(measured):
    """An accuracy without its data, and a latency without its machine, are no numbers."""
    card = hub.render_card(measured)
    assert "org/set (validation)" in card and device_name() in card


def test_a_card_without_measured_sizes_has_no_table_and_no_budget(folder):
    """`max_params=` needs measured sizes: a card must not offer what is refused."""
    card = hub.render_card(folder)
    assert "| accuracy" not in card and "Accuracy" not in card and "max_params" not in card
    assert "{{" not in card and "{%" not in card


@pytest.mark.parametrize("with_sizes", [True, False])
def test_the_metadata_of_a_card_is_what_the_hub_reads(folder, with_sizes):
    """The Hub's button, widget and filters come from it."""
    if with_sizes:
        folders.write_sizes(folder, ROWS)
    data = ModelCard(hub.render_card(folder, "org/name")).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")
    assert data.model_name == "org/name" and "lingene" in data.tags
    assert data.datasets == (["org/set"] if with_sizes else None)


@pytest.mark.parametrize(
    "fields, rows",
    [
        ({}, None),
        ({}, ROWS),
        ({}, [ROWS[0], ROWS[2]]),  # the smaller one is narrower too
        ({}, [ROWS[3]]),
        ({"trained_width_ratios": ["1/2"]}, None),
        ({"trained_width_ratios": []}, None),
        ({"depth": 1, "num_components": 1}, None),
        ({"preset": "paper"}, None),
    ],
    ids=[
        "no sizes",
        "sizes",
        "narrow size",
        "one size",
        "trained narrow only",
        "nothing trained",
        "one layer",
        "paper",
    ],
)
def test_the_example_of_a_card_runs_and_gives_a_size_that_was_measured_if_any_was(tmp_path, fields, rows):
    """It is the first thing that anybody copies."""
    folder = helpers.bundle(tmp_path / "tiny", helpers.tiny_config(**fields))
    if rows:
        folders.write_sizes(folder, rows)
    for model in run_examples(hub.render_card(folder, "org/name"), "org/name", folder):
        assert type(model) is ViTForImageClassification
        size = (model.config.num_hidden_layers, str(model.source_size.width_ratio), model.source_size.num_components)
        if rows:
            assert size in [(row["depth"], row["width_ratio"], row["num_components"]) for row in rows]


def test_the_example_names_the_folder_where_no_repository_is_known(folder, monkeypatch):
    """Also for `.`, whose name is empty."""
    assert example(hub.render_card(folder))[1].args[0].value == "tiny"
    monkeypatch.chdir(folder)
    assert example(hub.render_card("."))[1].args[0].value == "tiny"


def test_a_card_says_what_the_bundle_holds(folder):
    """From the configuration alone; parameters counted here from the files."""
    card, total = hub.render_card(folder), 0
    for file in folder.glob("*.safetensors"):
        with bundle_lingene.safe_open(file, framework="pt") as tensors:
            total += sum(tensors.get_tensor(key).numel() for key in tensors.keys())
    facts = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, re.MULTILINE))
    assert number(facts["stored parameters"]) == pytest.approx(total, rel=5.1e-3)
    assert facts["hidden size, heads, MLP units"] == "48, 4, 96"
    assert facts["width (`width_ratio`)"] == "trained at 1/2, 1; legal: 1/4, 1/2, 3/4, 1"
    assert facts["components (`num_components`)"] == "1 to 5" and "made for 6" in facts["layers (`depth`)"]


@pytest.mark.parametrize("count, shown", [(3, "kind 0, kind 1, kind 2."), (60, "kind 49, ... (60 in all).")])
def test_class_names_are_listed_in_order_and_not_by_the_thousand(tmp_path, count, shown):
    """Twenty-one thousand names would bury the card; `10` comes after `9`."""
    config = helpers.tiny_config(num_labels=count, id2label={n: f"kind {n}" for n in range(count)})
    (line,) = [
        line for line in hub.render_card(helpers.bundle(tmp_path, config)).splitlines() if line.startswith("Classes:")
    ]
    assert line.endswith(shown) and line.startswith("Classes: kind 0, kind 1, kind 2")


def test_push_to_hub_of_a_model_puts_a_card_with_its_full_name_beside_it(monkeypatch):
    """Its folder is a temporary one, and its name may be a bare one; the example in the card must name neither."""
    pushed = {}
    monkeypatch.setattr(loading_lingene, "ensure_repo", lambda repo_id, *_: f"{USER}/{repo_id}")
    monkeypatch.setattr(loading_lingene, "push_bundle", lambda folder, *_, **__: pushed.update(files(Path(folder))))
    monkeypatch.setattr(hub, "page_on_the_hub", lambda *_: None)
    helpers.tiny_model().push_to_hub("mine")
    card = pushed["README.md"].decode()
    assert example(card)[1].args[0].value == ModelCard(card).data.model_name == f"{USER}/mine"


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


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "no config": (lambda f: (f / CONFIG).unlink(), rf"`bundle`.*{CONFIG}"),
    "no index": (lambda f: (f / INDEX).unlink(), rf"`bundle`.*{INDEX}"),
    "no folder": (lambda f: shutil.rmtree(f), "`bundle`.*is not there, not the folder of a bundle"),
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


@pytest.mark.parametrize(
    "count, text",
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1 k"),
        (1234, "1.23 k"),
        (205_322, "205 k"),
        (999_999, "1 M"),
        (85_800_000, "85.8 M"),
        (17.56e9, "17.6 G"),
        (3.2e12, "3.2 T"),
    ],
)
def test_counts_are_shown_with_three_digits_and_a_unit(count, text):
    """999,999 is not `1e+03 k`."""
    assert hub.readable(count) == text


@pytest.mark.parametrize("count, text", [(512, "512 B"), (424_468, "424 kB"), (1.5e9, "1.5 GB")])
def test_bytes_are_shown_as_such(count, text):
    """A download is a number of bytes, whatever the numbers that are in it."""
    assert tables.bytes_shown(count) == text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("head", [True, False])
def test_a_download_is_told_in_the_bytes_of_the_files_that_are_fetched(tmp_path, dtype, head):
    """Half precision is half of it; files come whole, so that the width changes nothing. By the files' tensors."""
    model = helpers.tiny_model()
    model = model if head else LinGeneModel(model.config)
    folder = tmp_path / "bundle"
    model.to(dtype).save_pretrained(folder)
    folders.write_sizes(folder, [{**row, "width_ratio": width} for row, width in zip(ROWS, ("1", "1/2", "1", "1"))])
    fetched = folders.download_of(folder)
    for row in ROWS:
        names = ["shared.safetensors", *(f"component-{n:02d}.safetensors" for n in range(row["num_components"]))]
        tensors = [tensor for name in names for tensor in load_file(folder / name).values()]
        assert fetched(row["num_components"]) == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    shown = {cells["components"]: cells["download"] for cells in table(hub.size_table(ROWS, fetched=fetched))}
    assert shown == {str(row["num_components"]): tables.bytes_shown(fetched(row["num_components"])) for row in ROWS}
    card = hub.render_card(folder)
    assert {cells["components"]: cells["download"] for cells in table(card)} == shown
    best = max(ROWS, key=lambda row: row["accuracy"])
    assert f"{shown[str(best['num_components'])]} to download" in card


def test_a_table_leaves_out_latency_where_none_was_measured_and_marks_gaps():
    """A plain model has no number of components; of equals the cheaper one comes first."""
    plain = {**ROWS[2], "num_components": None, "accuracy": 0.9}
    shown = table(hub.size_table([plain, ROWS[3]]))
    assert [row["depth"] for row in shown] == ["1", "4"] and shown[1]["components"] == "-"
    assert "latency" not in shown[0]
    assert_table_shows(ROWS, table(hub.size_table(ROWS)))
    assert len({len(line) for line in hub.size_table(ROWS).splitlines()}) == 1  # aligned, for the terminal


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


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        ("[1.0, -2.0]", "[1.0, -2.0]", None),
        ("[1.0, -2.0]", "[1.0, -2.000001]", None),
        ("[1.0, -2.0]", "[1.0, -2.5]", r"org/name was pushed, but its logits differ .* 0\.5"),
        ("[1.0, -2.0]", "[1.0, NaN]", "org/name was pushed, but its logits differ"),
        (None, "[1.0]", "folder does not load.*KeyError: 'lingene'"),
        ("[1.0]", None, "org/name does not load.*KeyError: 'lingene'"),
    ],
)
def test_verifying_compares_what_a_clean_process_prints(monkeypatch, ours, theirs, message):
    """The round trip below shows that the process is clean; here, that a difference is not overlooked."""

    def run(command, **_):
        printed = list(itertools.takewhile(bool, (ours, theirs)))
        out = "".join(f"a line of somebody's\n{line}\n" for line in printed)
        return subprocess.CompletedProcess(command, len(printed) < 2, out, stderr="Traceback\nKeyError: 'lingene'")

    monkeypatch.setattr(hub.subprocess, "run", run)
    if message is None:
        hub.verify("folder", "org/name", {"revision": "main"}, Size(1, 1, 1))
    else:
        with pytest.raises(RuntimeError, match=f"(?s){message}"):
            hub.verify("folder", "org/name", {"revision": "main"}, Size(1, 1, 1))


def pushes(big: str, small: str, damaged: str, littered: str, out: str, verifying: str) -> dict[str, Any]:
    """Pushes a bundle and verifies it; a smaller one over it, others to a branch, into subfolders and under a bare
    name; between two requests of its own a damaged folder; then one while the Hub fails, and again; one with more in
    it than a bundle. Reads from the Hub what needs no weights.
    """
    import contextlib
    import io
    import logging
    import os
    import urllib.request
    from pathlib import Path

    from huggingface_hub import HfApi

    from modeling_lingene import hub
    from modeling_lingene.cli import main

    def lingene(*arguments):
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main(list(arguments))
        return {"code": code, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()}

    def knock(word):
        asked = f"{os.environ['HF_ENDPOINT']}/api/whoami-v2?{word}"
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked)

    home = os.environ["HF_HOME"]
    os.environ["HF_HOME"] = verifying  # of new processes; this one has read it, and its cache stays empty
    found = {"urls": [hub.push(big, "org/bundle", private=True)]}
    os.environ["HF_HOME"] = home
    found["card"] = (Path(big) / "README.md").read_text()
    HfApi().upload_file(path_or_fileobj=b"kept", path_in_repo="notes.md", repo_id="org/bundle")
    found["verified"] = []  # seconds each; the first push was
    hub.verify_loads = lambda auto_class, *places: found["verified"].append([auto_class, *places])
    found["several"] = hub.push(small, "org/several", subfolder="few")
    hub.push(big, "org/several", subfolder="many")
    found["urls"].append(hub.push(small, "org/bundle"))
    found["urls"].append(hub.push(big, "org/bundle", revision="wide"))
    found["urls"].append(hub.push(big, "solo"))

    knock("before")
    found["damaged"] = lingene("push", damaged, "org/damaged")
    knock("after")
    found["failed"] = lingene("push", small, "org/failing")
    found["again"] = lingene("push", small, "org/failing", "--private")
    said = io.StringIO()
    logging.getLogger("modeling_lingene.saving_lingene").addHandler(logging.StreamHandler(said))
    found["littered"] = lingene("push", littered, "org/littered") | {"said": said.getvalue()}
    knock("reading")
    found["info"] = lingene("info", "org/bundle", "--revision", "wide")
    size = ["--depth", "2", "--width-ratio", "1/2", "--num-components", "2"]
    found["materialise"] = lingene("materialise", "org/bundle", "--revision", "wide", *size, "--out", out)
    return found


PICTURES = ["LICENSE", "sizes.png", "sizes_heat.png", "conversion.png"]
LITTER = [".env", "stray.safetensors", "optimizer.bin", "own.py", "checkpoints/001/model.safetensors"]
LITTER += ["checkpoints/more_lingene.py", ".small.0123abcd.1.0123abcd.partial/config.json", "notes/README.md"]


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What a process pushes and is told, and what the Hub holds and was asked for."""
    work = tmp_path_factory.mktemp("hub")
    big, small = helpers.bundle(work / "big"), helpers.bundle(work / "small", helpers.tiny_config(num_components=3), 1)
    image_processor(16).save_pretrained(big)
    folders.write_sizes(big, ROWS)
    damaged = Path(shutil.copytree(big, work / "damaged"))
    flip_a_bit(damaged / "component-01.safetensors")
    littered = Path(shutil.copytree(small, work / "littered"))
    for name in PICTURES + LITTER:
        (littered / name).parent.mkdir(parents=True, exist_ok=True)
        (littered / name).write_bytes(name.encode())
    report = {"source": "vit", "depth": 6, "num_components": 3, "fit": "exact", "condition": 2.0, "left_out": {}}
    report |= {"relative_logit_error": 1e-7, "largest_logit_error": 1e-6, "advice": None}
    (littered / "conversion.json").write_text(json.dumps(report))
    with HubServer(work / "server") as server:
        server.fail_next_commit_of = "org/failing"
        given = [str(path) for path in (big, small, damaged, littered, work / "vit", work / "verifying")]
        pushed = in_new_process(pushes, server, work / "home", *given, COLUMNS="200")
        log = list(server.requests)
        server.requests = log[log.index(("GET", "/api/whoami-v2?reading")) :]
        downloads = server.downloads("org/bundle")
        places = {"hub": server, "work": work, "big": big, "small": small, "damaged": damaged}
        return SimpleNamespace(**places, pushed=pushed, log=log, downloads=downloads)


def commit_of(url: str) -> str:
    return url.rpartition("/")[2]


def on_the_hub(trip: SimpleNamespace, repo_id: str, revision: str = "main") -> dict[str, bytes]:
    return {name: trip.hub.read(repo_id, name, revision) for name in trip.hub.snapshot(repo_id, revision)[1]}


def fetches(trip: SimpleNamespace) -> list[str]:
    return [path for method, path in trip.log if method == "GET"]


def test_a_push_is_one_commit_with_every_file_and_our_card(trip):
    """Two commits would leave a time in which a reader gets weights of one and sizes of the other."""
    sha = commit_of(trip.pushed["urls"][0])
    commits = list(trip.hub.repos["org/bundle"].commits)
    assert commits.index(sha) == 1  # after the one that every repository begins with
    pushed = on_the_hub(trip, "org/bundle", sha)
    assert pushed.pop(".gitattributes") and pushed.pop("README.md").decode() == trip.pushed["card"]
    assert pushed == {name: content for name, content in files(trip.big).items() if name != "README.md"}
    assert readme.parsed(trip.pushed["card"], "").card() == hub.render_card(trip.big, "org/bundle") + "\n"
    assert example(trip.pushed["card"])[1].args[0].value == "org/bundle"


def test_a_push_is_verified_by_a_process_without_the_package(trip):
    """It fetched the code, at the very commit, and of the weights one component: nothing came from this machine."""
    sha = commit_of(trip.pushed["urls"][0])
    fetched = {match[1] for path in fetches(trip) if (match := re.match(rf"/org/bundle/resolve/{sha}/([^?]+)", path))}
    code = {path.name for path in trip.big.glob("*_lingene.py")}
    assert len(code) > 5 and code | {CONFIG, INDEX} <= fetched
    weights = {name for name in fetched if name.endswith(".safetensors")}
    assert weights == {"shared.safetensors", "component-00.safetensors"}


def test_bundles_in_subfolders_share_their_code_at_the_root(trip):
    """transformers looks for it there alone: `subfolder=` with trusted code found none. Verified at its place, by the
    keywords that test_remote_code.py loads with."""
    present, code = on_the_hub(trip, "org/several"), {path.name for path in trip.big.glob("*_lingene.py")}
    assert {name for name in present if name.endswith(".py")} == code
    for subfolder, folder in (("few", trip.small), ("many", trip.big)):
        expected = {name for name in files(folder) if name not in code}
        assert {name.partition("/")[2] for name in present if name.startswith(f"{subfolder}/")} == expected
    call = example(present["few/README.md"].decode())[1]
    assert call.args[0].value == "org/several"
    assert {word.arg: word.value.value for word in call.keywords}["subfolder"] == "few"
    size = {"depth": 1, "width_ratio": "1/4", "num_components": 1, "allow_untrained": True}
    place = {"revision": commit_of(trip.pushed["several"]), "subfolder": "few"}
    places = [[str(trip.small), size], ["org/several", size | place]]
    assert trip.pushed["verified"][0] == ["AutoModelForImageClassification", *places]


def test_a_second_push_deletes_what_the_smaller_bundle_lacks_and_keeps_what_is_not_ours(trip):
    """Component 3 of another bundle beside components 0 to 2, or sizes of other weights, would mislead."""
    present = on_the_hub(trip, "org/bundle")
    mine = files(trip.small)
    weights = {name for name in mine if name.endswith(".safetensors")}
    assert len(weights) == 4 and {name for name in present if name.endswith(".safetensors")} == weights
    assert all(present[name] == mine[name] for name in weights | {CONFIG, INDEX})
    assert "sizes.json" not in present and present["notes.md"] == b"kept"
    before = set(on_the_hub(trip, "org/bundle", commit_of(trip.pushed["urls"][0])))
    assert {"component-03.safetensors", "component-04.safetensors", "sizes.json"} <= before


def test_revision_private_and_bare_names_are_honoured(trip):
    """A branch is not main, a private repository is private, and the card under a bare name says whose it is."""
    repo, solo = trip.hub.repos["org/bundle"], trip.hub.repos[f"{USER}/solo"]
    shas = [commit_of(url) for url in trip.pushed["urls"]]
    assert repo.branches == {"main": shas[1], "wide": shas[2]} and solo.branches == {"main": shas[3]}
    assert len(repo.commits) == 5 and len(solo.commits) == 2
    assert (repo.private, solo.private) == (True, False)
    assert "component-04.safetensors" in on_the_hub(trip, "org/bundle", "wide")
    assert example(on_the_hub(trip, f"{USER}/solo")["README.md"].decode())[1].args[0].value == f"{USER}/solo"


def test_the_command_refuses_a_damaged_folder_without_a_request(trip):
    """Of two requests that the test makes before and after, the second follows the first."""
    told = trip.pushed["damaged"]
    assert told["code"] == 2 and told["stdout"] == ""
    assert re.fullmatch(r"lingene push: `weights_id` of .*damaged is not .*\n", told["stderr"])
    before, after = (trip.log.index(("GET", f"/api/whoami-v2?{word}")) for word in ("before", "after"))
    assert after == before + 1 and "org/damaged" not in trip.hub.repos
    assert not (trip.damaged / "README.md").exists()


def test_a_commit_that_fails_is_told_and_can_be_repeated(trip):
    """Status and one line on the way out, nothing changed on the Hub; the same command again succeeds."""
    failed, again = trip.pushed["failed"], trip.pushed["again"]
    assert failed["code"] == 2 and failed["stdout"] == ""
    assert re.fullmatch(r"lingene push: .*500.*", failed["stderr"].splitlines()[-1])  # after bars of the upload
    assert again["code"] == 0 and again["stdout"].startswith(f"{trip.hub.url}/org/failing/commit/")
    assert len(trip.hub.repos["org/failing"].commits) == 2
    assert on_the_hub(trip, "org/failing")[INDEX] == files(trip.small)[INDEX]


def test_a_push_sends_what_a_bundle_consists_of_and_names_the_rest(trip):
    """A folder of work holds training states of gigabytes, and keys: what is public once stays public."""
    told, bundle = trip.pushed["littered"], set(files(trip.small)) - {"README.md"}
    sent = on_the_hub(trip, "org/littered")
    assert set(sent) == {".gitattributes", "README.md", "conversion.json", *PICTURES, *bundle}
    assert all(sent[name] == name.encode() for name in PICTURES) and "from `vit`" in sent["README.md"].decode()
    (line,) = told["said"].splitlines()
    assert told["code"] == 0 and line.startswith("Not sent to org/littered")
    named = line.partition(": ")[2].rstrip(".").split(", ")
    assert named == sorted({re.sub("/.*", "/", name) for name in LITTER})


def test_info_by_name_downloads_no_weights_and_a_size_by_name_only_its_own(trip):
    """Both read the branch that was asked for; the model folder has the preprocessing of the repository."""
    assert [trip.pushed[name]["code"] for name in ("info", "materialise")] == [0, 0]
    assert re.search(r"^num_components +5$", trip.pushed["info"]["stdout"], re.MULTILINE)
    assert_table_shows(ROWS, table(trip.pushed["info"]["stdout"]))
    weights = {name for name in trip.downloads if name.endswith(".safetensors")}
    assert weights == {"shared.safetensors", "component-00.safetensors", "component-01.safetensors"}
    assert trip.downloads.index(INDEX) < min(trip.downloads.index(name) for name in weights)
    model = ViTForImageClassification.from_pretrained(trip.work / "vit").eval()
    with torch.no_grad():
        expected = helpers.reference_vit(helpers.tiny_model(), 2, "1/2", 2)(helpers.images()).logits
        assert torch.allclose(model(helpers.images()).logits, expected, atol=1e-5)
    assert (trip.work / "vit" / "preprocessor_config.json").read_bytes() == files(trip.big)["preprocessor_config.json"]
