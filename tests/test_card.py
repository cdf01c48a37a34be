"""Laws of what a card says: which sizes come first, what the Hub reads, what pictures show, what it is not for.

pytest tests/test_card.py
"""

import json
import re

import pytest
from huggingface_hub import ModelCard

import helpers
from helpers import ROWS, edit, examples, files, read, told_by
from modeling_lingene import card, folders, hub
from modeling_lingene.citations import PAPERS


def test_a_card_that_is_rendered_again_keeps_its_name_its_licence_and_its_place(folder):
    """New numbers are no reason to call a bundle by another name, or to lose where it lies in its repository."""
    hub.write_card(folder, "org/name", subfolder="small", license="mit")
    before = (folder / "README.md").read_text()
    assert "subfolder='small'" in before
    folders.write_sizes(folder, ROWS)
    assert hub.refresh_card(folder) == folder / "README.md"
    after = (folder / "README.md").read_text()
    assert after != before and "## Measured sizes" in after
    assert told_by(after) == told_by(hub.render_card(folder, "org/name", subfolder="small", license="mit"))
    hub.write_card(folder)
    plain = (folder / "README.md").read_text()
    assert hub.refresh_card(folder) and (folder / "README.md").read_text() == plain


@pytest.mark.parametrize("page", [None, "", "# Mine\n", "---\ntags: [vision]\n---\n# Mine\n"])
def test_a_page_that_is_not_ours_is_left_alone(folder, page):
    """Whoever wrote a README by hand has not asked for a card."""
    if page is not None:
        (folder / "README.md").write_text(page)
    before = files(folder)
    assert hub.refresh_card(folder) is None and files(folder) == before


FACTS = {"command": "lingene decompose --data set", "dataset": "org/pictures", "hardware": "one CPU", "init": None}
FACTS |= {"teacher": "timm:vit", "base_model": None, "objective": "labels", "images": 1234, "epochs": 3, "seed": 7}
FACTS |= {"processes": 2, "seconds": 3720.0, "versions": {"torch": "2.14"}}


def row(depth: int, width: str, count: int, accuracy: float, macs: int, params: int, stored: int) -> dict:
    size = {"depth": depth, "width_ratio": width, "num_components": count}
    cost = {"macs": macs, "params": params, "stored_params": stored}
    return {**ROWS[2], **size, **cost, "accuracy": accuracy}


def picked(rows: list[dict]) -> list[tuple]:
    return [
        (pick["row"]["depth"], pick["row"]["width_ratio"], pick["row"]["num_components"])
        for pick in card.first_sizes(rows, helpers.tiny_config(), lambda count: 1000 * count)
    ]


def test_the_first_sizes_are_the_best_the_best_at_half_the_cost_and_the_smallest_that_is_nearly_as_good():
    """By hand: half the MACs is less than half, two points are two points, of equals the cheaper one."""
    rows = [
        row(6, "1", 5, 0.90, 100, 50, 40),
        row(5, "1", 5, 0.90, 90, 45, 40),  # as good and cheaper: the best
        row(3, "1", 5, 0.87, 50, 30, 40),  # half, not under half
        row(2, "1", 5, 0.86, 49, 25, 40),  # the best under half
        row(6, "1/2", 5, 0.88, 60, 20, 10),  # two points behind, the smallest
        row(6, "1/2", 4, 0.8799, 40, 5, 5),  # a little more
    ]
    assert picked(rows) == [(5, "1", 5), (6, "1/2", 4), (6, "1/2", 5)]
    assert picked(rows[:5]) == [(5, "1", 5), (2, "1", 5), (6, "1/2", 5)]
    assert picked(rows[:3]) == [(5, "1", 5)]
    (pick,) = card.first_sizes(rows[:1], helpers.tiny_config(), lambda count: 1000 * count)
    assert pick["title"] == "the most accurate, and the smallest within 2 points of the best"


def test_every_first_size_has_its_line_of_code_and_the_full_table_is_folded_below(folder):
    """A table of fifty rows is no answer to which one to take; allowed where it was never trained."""
    folders.write_sizes(folder, [*ROWS, {**ROWS[3], "width_ratio": "1/4", "macs": 1, "params": 1, "accuracy": 0.98}])
    page = hub.render_card(folder, "org/name", subfolder="few")
    calls = [{word.arg: word.value.value for word in call.keywords} for _, call in examples(page)]
    trusted = {"trust_remote_code": True, "subfolder": "few"}
    assert calls == [
        {**trusted, "depth": 6, "num_components": 5},
        {**trusted, "depth": 1, "width_ratio": "1/4", "num_components": 5, "allow_untrained": True},
    ]
    folded = re.search(r"<details>\n<summary>All 5 measured sizes</summary>\n\n(.*?)\n\n</details>", page, re.DOTALL)
    assert len(folded[1].splitlines()) == 7 and page.index("```python") < folded.start()


def test_the_results_in_the_header_are_those_of_the_first_sizes(folder):
    """As `model-index`, which huggingface_hub's own class reads back; each under its own name, with its size."""
    folders.write_sizes(folder, ROWS)
    folders.write_training(folder, FACTS)
    data = ModelCard(hub.render_card(folder, "org/name", license="apache-2.0")).data
    assert (data.license, data.metrics, data.base_model) == ("apache-2.0", ["accuracy"], None)
    assert data.datasets == ["org/pictures", "org/set"] and data.model_name == "org/name"
    found = {result.metric_name: result for result in data.eval_results}
    assert len(found) == len(data.eval_results) == 2
    best = found["Accuracy, the most accurate, and the smallest within 2 points of the best"]
    assert (best.task_type, best.dataset_type, best.dataset_split) == ("image-classification", "org/set", "validation")
    assert (best.metric_type, best.metric_value) == ("accuracy", 0.9876)
    assert best.metric_args == {"depth": 6, "width_ratio": "1", "num_components": 5}
    edit(folder / "training.json", lambda facts: facts.update(base_model="org/base"))
    assert ModelCard(hub.render_card(folder)).data.base_model == "org/base"


@pytest.mark.parametrize(
    "source, base", [("google/vit", "google/vit"), ("timm:vit", None), ("vit", None), ("a/b/c", None)]
)
def test_a_converted_bundle_names_its_source_as_base_where_the_hub_has_it(folder, source, base):
    """The Hub draws the tree of models from it, and refuses a card with a name that it cannot have."""
    report = {"source": source, "fit": "exact", "depth": 6, "num_components": 5, "relative_logit_error": 0.0}
    (folder / "conversion.json").write_text(json.dumps(report))
    assert ModelCard(hub.render_card(folder)).data.base_model == base


def test_how_a_bundle_was_trained_is_told_from_its_record_and_otherwise_not(folder):
    """Hardware, time, data, seed, versions: what somebody needs who repeats it; nothing of it is guessed."""
    assert "How it was trained" not in hub.render_card(folder)
    folders.write_training(folder, FACTS)
    page = hub.render_card(folder)
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", page, re.MULTILINE))
    assert rows["data"] == "org/pictures, 1,234 pictures with labels, 3 epochs" and rows["teacher"] == "timm:vit"
    assert (rows["hardware"], rows["time in training steps"], rows["seed"]) == ("2 x one CPU", "62 min", "7")
    assert rows["versions"] == "torch 2.14" and "started from" not in rows and f"`{FACTS['command']}`" in page


def test_a_record_of_other_weights_is_refused_and_goes_when_others_are_saved(folder):
    """A copied file, or one left by the bundle before, would tell of a training that this one never had."""
    folders.write_training(folder, FACTS)
    edit(folder / "training.json", lambda facts: facts.update(weights_id="0" * 64))
    with pytest.raises(ValueError, match=r"`weights_id` in `training\.json`.*other weights; delete the file"):
        hub.render_card(folder)
    folders.write_training(folder, FACTS)
    helpers.tiny_model(seed=1).save_pretrained(folder)
    assert not (folder / "training.json").exists()
    folders.write_training(folder, FACTS)
    edit(folder / "training.json", lambda facts: facts.pop("seed"))
    with pytest.raises(ValueError, match="`seed` is missing from `training.json`"):
        hub.render_card(folder)


def test_a_card_says_what_its_bundle_is_not_for(folder):
    """Out of its own facts: untrained widths and depths, other data, sizes and forms that nobody measured."""
    page = hub.render_card(folder)
    assert "Widths 1/4, 3/4 were never trained" in page and "knows 7 classes" in page
    assert "No size was measured" in page and "int8" not in page and "16x16 pixels" in page
    assert "components were never" not in page and "components other than" not in page and "1 to 5 |" in page
    for trained, said, row in (
        ([5], "Fewer than 5 components were never trained: they are a start for training, no models.", "5"),
        ([1, 2, 5], "Numbers of components other than 1, 2, 5 were never trained.", "1, 2, 5"),
    ):
        edit(folder / "config.json", lambda config, now=trained: config.update(trained_components=now))
        page = hub.render_card(folder)
        assert f"* {said}\n" in page and f"1 to 5; trained at {row} |" in page
    folders.write_sizes(folder, ROWS)
    folders.write_training(folder, FACTS)
    page = hub.render_card(folder)
    assert "No size was measured" not in page and "other than those of org/set was not measured" in page
    assert "int8" in page and "trained on 1,234 pictures of org/pictures, no others." in page
    edit(folder / "training.json", lambda facts: facts.update(init="org/base"))
    assert "no others but those of the bundle that it started from" in hub.render_card(folder)


def test_only_the_papers_whose_methods_are_in_a_bundle_are_cited(tmp_path):
    """Widths are Scala's, training without labels is Proteus's."""
    for widths, objective, expected in [
        (["1"], None, {"lindec"}),
        (["1/2", "1"], "labels", {"lindec", "scala"}),
        (["1"], "features", {"lindec", "proteus"}),
    ]:
        config = helpers.tiny_config(trained_width_ratios=widths)
        folder = helpers.bundle(tmp_path / f"{len(widths)}{objective}", config)
        if objective:
            folders.write_training(folder, {**FACTS, "objective": objective})
        page = hub.render_card(folder)
        assert {name for name, paper in PAPERS.items() if paper in page} == expected


def test_pictures_say_in_numbers_what_they_show(folder):
    """For whoever does not see them; and no picture that is not there."""
    folders.write_sizes(folder, ROWS)
    assert "![" not in hub.render_card(folder)
    for picture in folders.SIZE_PICTURES:
        (folder / picture).write_bytes(b"png")
    alts = dict(re.findall(r"!\[(.+?)\]\((.+?)\)", hub.render_card(folder)))
    assert list(alts.values()) == ["sizes.png", "sizes_heat.png"]
    low, heat = alts
    assert "4 sizes" in low and "from 51.2 % at 7.04 M MACs" in low and "to 98.8 % at 14.1 M MACs" in low
    assert heat.endswith("1/2: 76.5 % to 76.5 %; 1: 51.2 % to 98.8 %")


def test_a_licence_stays_as_the_card_has_it_until_another_is_asked_for(folder):
    """Rendered anew for every push, the card must not lose what its owner decided."""
    hub.write_card(folder, license="cc-by-4.0")
    hub.write_card(folder)
    assert ModelCard.load(folder / "README.md").data.license == "cc-by-4.0"
    hub.write_card(folder, license="mit")
    assert ModelCard.load(folder / "README.md").data.license == "mit"
    for wrong in ("Do what: you want", "", "a\nb"):
        with pytest.raises(ValueError, match="`license` must be a name such as apache-2.0"):
            hub.write_card(folder, license=wrong)
    (folder / "README.md").write_text("---\nlicense: [a]\n---\n")
    with pytest.raises(ValueError, match=r"`license` in `README\.md`"):
        hub.write_card(folder)
    (folder / "README.md").write_text("---\n{: x: [\n---\n")
    with pytest.raises(ValueError, match=r"header of `README\.md`.*damaged"):
        hub.write_card(folder)
    assert read(folder / "config.json")
