"""Laws of a card and its table: every number in them was measured, and their code runs and gives a size that was.

pytest tests/test_rendered_cards.py
"""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import ViTForImageClassification

import helpers
from helpers import ROWS, assert_table_shows, edit, example, files, number, read, run_examples, table
from hub_server import USER
from modeling_lingene import LinGeneModel, bundle_lingene, folders, hub, loading_lingene
from modeling_lingene.budget_lingene import device_name
from modeling_lingene.measuring import tables


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


@pytest.mark.parametrize(
    "model, said",
    [
        (
            "vit",
            ["5 shared linear components of the encoder layers,", "| hidden size, heads, MLP units | 48, 4, 96 |"],
        ),
        (
            "swin",
            [
                "3 shared linear components of the layers of stage 2,",
                "| layers of stage 2 (`depth`) | made for 4; trained at 4 |",
                "| layers of their own | stage 1: 2, stage 3: 2 |",
                "| channels of the stages | 12, 24, 48 |",
                "| heads of the stages | 3, 6, 12 |",
            ],
        ),
    ],
)
def test_a_card_says_what_its_kind_of_network_is_like(tmp_path, model, said):
    """A Swin has no one number of heads: the cells of its card were empty."""
    made = {"vit": lambda: helpers.tiny_model(helpers.tiny_config()), "swin": helpers.tiny_swin}[model]()
    made.save_pretrained(tmp_path)
    card = hub.render_card(tmp_path)
    assert all(line in card for line in said), card
    assert ", ," not in card and "|  |" not in card.replace("| | |", "")
