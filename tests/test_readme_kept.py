"""Laws of what people write into a README.md: no command loses it, here or on the Hub, and each says what it kept.

pytest tests/test_readme_kept.py
"""

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import helpers
from helpers import ROWS
from hub_server import HubServer
from modeling_lingene import folders, hub, readme
from test_hub_server import in_new_process


LIMITS = "## Limits\n\nNot for mushrooms.\n"
OWN = "---\nlicense: cc-by-4.0\ntags: [fungi]\n# asked the museum\nco2: 3\n---\n\n# My flowers\n\nBy hand.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = helpers.bundle(tmp_path / "tiny")
    folders.write_sizes(folder, ROWS)
    return folder


@pytest.fixture
def said(monkeypatch) -> list[str]:
    words: list[str] = []
    monkeypatch.setattr(readme.logger, "warning", words.append)
    return words


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def edit(folder: Path, *pairs: tuple[str, str]) -> None:
    text = text_of(folder)
    for old, new in pairs:
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "README.md").write_text(text, encoding="utf-8")


def test_what_stands_around_the_marks_stays_and_what_is_between_is_rendered_anew(folder, said):
    """Limits and provenance are written by hand; numbers are not."""
    hub.write_card(folder)
    assert said == [] and text_of(folder).count("lingene card") == 2
    edit(folder, ("<!-- lingene card:", "Grown in Delft.\n\n<!-- lingene card:"))
    (folder / "README.md").write_text(text_of(folder) + "\n" + LIMITS, encoding="utf-8")
    rows = [{**row, "accuracy": row["accuracy"] / 2} for row in ROWS]
    folders.write_sizes(folder, rows)
    hub.write_card(folder)
    page = readme.read_page(folder)
    assert (page.before.strip(), page.after.strip()) == ("Grown in Delft.", LIMITS.strip())
    assert page.card() == hub.render_card(folder) + "\n" and "49.4 %" in page.generated
    assert len(said) == 1 and said[0].endswith("kept 3 lines outside of the marks.")
    before = text_of(folder)
    hub.write_card(folder)
    assert text_of(folder) == before  # and nothing grows


def test_fields_of_the_header_that_a_person_set_changed_or_took_out_stay_so(folder, said):
    """A licence is no guess of ours; results that we measured follow the measurements."""
    hub.write_card(folder)
    edit(folder, ("pipeline_tag: image-classification\n", "pipeline_tag: other\nlicense: mit\n"))
    text = re.sub(r"^metrics:\n- accuracy\n", "", text_of(folder), flags=re.MULTILINE)
    (folder / "README.md").write_text(text.replace("- elastic\n", "- elastic\n- fungi\n"), encoding="utf-8")
    folders.write_sizes(folder, [{**row, "accuracy": 0.25} for row in ROWS])
    hub.write_card(folder)
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.pipeline_tag, data.metrics) == ("mit", "other", None)
    assert data.tags == ["lingene", "vision", "elastic", "fungi"]
    assert {result.metric_value for result in data.eval_results} == {0.25}
    assert "kept pipeline_tag, license, tags of the header; left out metrics of the header" in said[0]
    hub.write_card(folder, license="apache-2.0")
    assert ModelCard.load(folder / "README.md").data.license == "apache-2.0"


def test_a_readme_without_marks_is_kept_whole_and_the_card_comes_after_it(folder, said):
    """Whatever it is, a program did not write it."""
    (folder / "README.md").write_text(OWN, encoding="utf-8")
    hub.write_card(folder)
    text, page = text_of(folder), readme.read_page(folder)
    head, _, body = OWN.partition("---\n\n")
    assert text.startswith(head) and page.before.strip() == body.strip() and page.after.strip() == ""
    assert "library_name: transformers" in text and ModelCard(text).data.tags == ["fungi"]
    assert said[0].endswith("it had no marks, the card comes after it.") and "kept 2 lines" in said[0]
    hub.write_card(folder)
    assert text_of(folder) == text


def test_what_was_written_between_the_marks_is_put_aside(folder, said):
    """It is written anew there; nobody is to lose it to that."""
    for number, name in enumerate(("README.old.md", "README.old1.md")):
        hub.write_card(folder)
        edit(folder, ("## Citation\n", f"## Citation {number}\n"))
        edited = text_of(folder)
        hub.write_card(folder)
        assert (folder / name).read_text(encoding="utf-8") == edited and name in said[-1]
        assert readme.read_page(folder).card() == hub.render_card(folder) + "\n"
    (folder / "README.md").write_bytes(text_of(folder).replace("\n", "  \r\n").encode())  # as some editors save
    said.clear()
    hub.write_card(folder)
    assert said == [] and not (folder / "README.old2.md").exists()


@pytest.mark.parametrize("damage", [("<!-- /lingene card -->", ""), ("# tiny\n", "<!-- lingene card: -->\n# tiny\n")])
def test_marks_that_are_no_pair_are_refused_and_nothing_is_written(folder, damage):
    """What is whose cannot be told."""
    hub.write_card(folder)
    edit(folder, damage)
    before = text_of(folder)
    with pytest.raises(ValueError, match=r"`README.md` of .*tiny must have the marks .*once each; repair them"):
        hub.write_card(folder)
    assert text_of(folder) == before


def page(text: str, base: str | None = None) -> readme.Page:
    return readme.Page({}, text, "card\n", "", {"kept": base and readme.text_hash(base)})


@pytest.mark.parametrize(
    "here, there, base, chosen",
    [
        ("a", "a", None, "a"),
        ("", "b", None, "b"),
        ("a", "", None, "a"),
        ("a", "b", "b", "a"),
        ("a", "b", "a", "b"),
        ("", "b", "b", ""),
        ("a", "", "a", ""),
        ("a", "b", None, None),
        ("a", "b", "c", None),
    ],
)
def test_of_two_readmes_the_one_that_was_written_in_since_is_kept(here, there, base, chosen):
    """As three-way merges do; what was written in both is for a person to put together."""
    if chosen is None:
        with pytest.raises(ValueError, match="`README.md` was changed by hand both in folder and in org/name"):
            readme.agreed(page(here, base), page(there), ("folder", "org/name"))
    else:
        assert readme.agreed(page(here, base), page(there), ("folder", "org/name")).written() == chosen


def pushes(bundle: str, own: str) -> dict[str, Any]:
    """Pushes a bundle over a README that is there, and again after its page was edited there, here and in both."""
    from pathlib import Path

    from huggingface_hub import HfApi

    from modeling_lingene import LinGeneForImageClassification, hub

    api, here, found = HfApi(), Path(bundle) / "README.md", {}
    hub.check_loads = hub.verify = lambda *_: None

    def there(text: str | None = None) -> str:
        if text is not None:
            api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="org/kept")
        return Path(api.hf_hub_download("org/kept", "README.md")).read_text()

    api.create_repo("org/kept")
    there(own)
    hub.push(bundle, "org/kept")
    found["first"], found["here"] = there(), here.read_text()
    there(there() + "\nWritten there.\n")
    hub.push(bundle, "org/kept", license="mit")
    found["second"], found["back"] = there(), here.read_text()
    here.write_text(here.read_text() + "\nWritten here.\n")
    hub.push(bundle, "org/kept")
    found["third"] = there()
    LinGeneForImageClassification.from_pretrained(bundle, constrained=True).push_to_hub("org/kept")
    found["model"] = there()
    there(there() + "\nOnce more there.\n")
    here.write_text(here.read_text() + "\nOnce more here.\n")
    try:
        hub.push(bundle, "org/kept")
    except ValueError as error:
        found["both"] = str(error)
    found["unchanged"] = there()
    return found


def test_a_push_keeps_what_people_wrote_on_the_hub_and_here(folder, tmp_path):
    """A page on the Hub has an editor; a push from the machine of the training knows nothing of what was typed."""
    with HubServer(tmp_path / "hub") as server:
        told = in_new_process(pushes, server, tmp_path / "home", str(folder), OWN)
    assert told["first"] == told["here"] and "By hand." in told["first"] and "co2: 3" in told["first"]
    assert ModelCard(told["first"]).data.license == "cc-by-4.0" and '"org/kept"' in told["first"]
    assert told["second"] == told["back"] and told["second"].count("Written there.") == 1
    assert ModelCard(told["second"]).data.license == "mit"
    assert "Written here." in told["third"] and "Written there." in told["third"]
    for text in ("By hand.", "Written here.", "Written there.", "co2: 3", "license: mit"):
        assert told["model"].count(text) == 1
    assert "was changed by hand both in" in told["both"]
    assert "Once more there." in told["unchanged"] and "Once more here." not in told["unchanged"]
