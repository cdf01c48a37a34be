"""Laws of what others wrote in a bundle: a card shows the words, and they do nothing else, wherever they stand.

The cards are read by a Markdown parser, as the Hub reads them.

    pytest tests/test_hub_text.py
"""

import ast
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import helpers
from modeling_lingene import hub
from modeling_lingene.folders import bundle_weights_id, write_training
from modeling_lingene.markdown import code, string, text


NASTY = [
    "a|b",
    "---\nlicense: evil\n---\n",
    "<script>alert(1)</script>",
    "</p><!-- x",
    "{{ 7 * 7 }} {% raw %} {# x",
    "back\\slash \\N \\u12 \\",
    "`tick` ``` two `` one",
    "```\n# heading\n```",
    "[x](javascript:y) ![y](z.png) [a]: b",
    "**bold** _it_ __it__ ~~gone~~ $$x$$",
    "&lt;b&gt; &amp; &#60;",
    "see https://evil.com/x, www.evil.com or me@evil.com",
    'x"); import os; os.system("true',
    "it's\r\n\tso\x00\x1b[0m\u2028# no\x85\u202eback",
    "\ud800 half a character",
    "猫 Größe 👩‍🔬 ناﺮﻧﺞ",
    "# - + 1. > =\n===\n\n    indented",
    "snake_case_name",
]
SEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\s]+")


def words(count: int, seed: int = 0) -> list[str]:
    """Seeded mixtures of the nasty strings' parts, and these themselves."""
    drawn = random.Random(seed)
    parts = re.findall(r"\w+|\s+|.", "".join(NASTY)) + list("|`*_<>[]()\\\n\"'{}&#:/@") * 4
    mixed = ["".join(drawn.choices(parts, k=drawn.randint(1, 12))) for _ in range(count - len(NASTY))]
    return NASTY + mixed


def seen(word: str) -> str:
    """What a reader sees of it: one line, without what has no shape."""
    return SEEN.sub(" ", word).strip()


def reader(linkify: bool = False) -> MarkdownIt:
    """Markdown as on the Hub, with raw HTML, tables and strikethrough."""
    return MarkdownIt("commonmark", {"html": True, "linkify": linkify}).enable(
        ["table", "strikethrough"] + ["linkify"] * linkify
    )


def structure(markdown: str, parser: MarkdownIt) -> list[tuple]:
    """Everything in a page but its words: kinds of blocks and of what is within them, addresses."""
    found = []
    for token in parser.parse(markdown):
        found.append((token.type, token.tag, token.info))
        found += [(child.type, child.tag, str(child.attrs)) for child in token.children or ()]
    return found


def shown(markdown: str, parser: MarkdownIt) -> list[str]:
    """The words of a page, line by line."""
    inline = [token for token in parser.parse(markdown) if token.type == "inline"]
    return ["".join(child.content for child in token.children) for token in inline]


@pytest.mark.parametrize("place", ["so: {}.", "# {}", "|a|b|\n|---|---|\n|{}|c|"])
def test_words_in_a_text_are_words(place):
    """In a paragraph, a heading, a cell of a table: one run of text, which says what was meant."""
    parser, plain = reader(), place.format("words")
    for word in filter(seen, words(600)):
        page = place.format(text(word))
        assert structure(page, parser) == structure(plain, parser), word
        assert shown(page, parser) == [line.replace("words", seen(word)) for line in shown(plain, parser)]


def test_words_as_code_within_a_line_are_code():
    """No fence of theirs ends it."""
    parser = reader()
    for word in words(600):
        (line,) = [token for token in parser.parse(f"from {code(word)}: it") if token.type == "inline"]
        kinds = [child.type for child in line.children]
        assert kinds == (["text", "code_inline", "text"] if seen(word) else ["text"]), word
        assert not seen(word) or line.children[1].content == seen(word)


def test_a_string_in_a_block_of_code_is_that_string():
    """On one line, so that it can end neither the call nor the block."""
    for word in words(600):
        assert ast.literal_eval(string(word)) == word and "\n" not in string(word)
        string(word).encode()
    assert string("org/name") == '"org/name"' and string('a"b') == '"a\\"b"'


def test_ordinary_names_stand_in_the_text_as_they_are():
    """A card is read unrendered, too: in a terminal, in a diff."""
    for name in ("fashion_mnist (test)", "AMD EPYC (1 thread)", "Xeon @ 2.2GHz", "T - shirt / top", "tench, Tinca"):
        assert text(name) == name


def test_plain_addresses_become_no_links():
    """GitHub's Markdown, and so the Hub's, makes links of what looks like an address."""
    pytest.importorskip("linkify_it")
    parser = reader(linkify=True)
    kinds = [kind for kind, *_ in structure("so: https://evil.com and me@evil.com", parser)]
    assert kinds.count("link_open") == 2  # the reader is one that does
    for address in ("https://evil.com", "HTTP://evil.com", "mailto:me@evil.com", "ftp://evil.com/a_b"):
        assert structure(f"so: {text(address)}.", parser) == structure("so: words.", parser), address


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A bundle with everything that a card can show: measured sizes, pictures, classes, a conversion, a training."""
    folder = helpers.bundle(tmp_path_factory.mktemp("text") / "bundle")
    for picture in ("sizes.png", "sizes_heat.png", "conversion.png"):
        (folder / picture).write_bytes(b"png")
    return folder


def filled(bundle: Path, folder: Path, word: str) -> Path:
    """A copy of the bundle in which every place that holds words holds these."""
    shutil.copytree(bundle, folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): f"{word}{index}" for index in range(7)}
    config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    row = {"depth": 3, "width_ratio": "1", "num_components": 2, "accuracy": 0.5, "params": 1, "stored_params": 1}
    row |= {"macs": 1, "latency_ms": 1.0, "device": word, "dataset": f"a/{word}", "split": word}
    sizes = {"weights_id": bundle_weights_id(folder), "sizes": [row]}
    (folder / "sizes.json").write_text(json.dumps(sizes))
    report = {"source": word, "fit": word, "num_components": 5, "depth": 6, "relative_logit_error": 0.1}
    report |= {"condition": 2.0, "left_out": {}, "largest_logit_error": 0.2}
    report["advice"] = {"statement": word, "learning_rate": 1e-4, "command": word}
    (folder / "conversion.json").write_text(json.dumps(report))
    facts = dict.fromkeys(("command", "dataset", "hardware", "init", "teacher", "base_model"), word)
    facts |= {"objective": "features", "images": 7, "epochs": 3, "processes": 1, "seed": 0, "seconds": 9.0}
    write_training(folder, facts | {"versions": {word: word}})
    return folder


def python_blocks(body: str, parser: MarkdownIt) -> list[str]:
    return [token.content for token in parser.parse(body) if token.type == "fence" and token.info == "python"]


@pytest.mark.parametrize("number", range(len(NASTY)))
def test_a_bundles_words_change_the_words_of_its_card_and_nothing_else(bundle, tmp_path, number):
    """A class name may be anything, and a card is opened in a browser, its example run: no heading, link or HTML but
    the template's own, one call, and a header that holds what was meant.
    """
    word, parser = NASTY[number], reader()
    card = hub.render_card(filled(bundle, tmp_path / "bundle", word), title=f"of {word}")
    plain = hub.render_card(filled(bundle, tmp_path / "plain", "word"), title="of word")
    body, other = ModelCard(card), ModelCard(plain)
    assert structure(body.text, parser) == structure(other.text, parser)
    said = "\n".join(shown(body.text, parser))
    assert all(seen(f"{word}{index}") in said for index in range(7)) and f"of {seen(word)}" in said
    assert seen(f"a/{word} ({word})") in said and seen(f"Latency: one image on {word}") in said
    assert f"{seen(word)}, 7 pictures without labels, 3 epochs" in said and f"1 x {seen(word)}" in said
    assert all(line in said.splitlines() for line in {seen(word), f"{seen(word)} {seen(word)}"})
    own, others = body.data.to_dict(), other.data.to_dict()
    named = {"datasets": own.get("datasets")}
    (index,), (expected,) = own.pop("model-index"), others.pop("model-index")
    (result,), (plain_result,) = index["results"], expected["results"]
    assert index["name"] == f"of {word}" and result["dataset"] == dict.fromkeys(("name", "type"), f"a/{word}") | {
        "split": word
    }
    assert result["metrics"] == plain_result["metrics"] and own | named == others | named
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in own.get("datasets", ()))  # the Hub refuses others
    (block,) = python_blocks(body.text, parser)
    imported, assigned = ast.parse(block).body
    assert isinstance(imported, ast.ImportFrom) and assigned.value.args[0].value == f"of {word}"
    assert all(isinstance(keyword.value, ast.Constant) for keyword in assigned.value.keywords)
    hub.write_card(tmp_path / "bundle", title=word)
    assert ModelCard((tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")).data.model_name == word


def test_a_folders_own_name_is_words_too(bundle, tmp_path):
    """Without a repository it is the title, whatever characters it has."""
    name = 'x"); import os\n# `a` <b> {{ 7 * 7 }} \\N |'
    folder = filled(bundle, tmp_path / name, "word")
    card, plain = ModelCard(hub.render_card(folder)), ModelCard(hub.render_card(folder, "plain"))
    assert structure(card.text, reader()) == structure(plain.text, reader())
    (block,) = python_blocks(card.text, reader())
    assert ast.parse(block).body[1].value.args[0].value == card.data.model_name == name


@pytest.mark.parametrize(
    "name", ['me/x"); import os; os.system("true', "back\\slash", "a/b/c", "a b", "a--b", "", "x\n"]
)
def test_a_repositorys_name_that_cannot_be_one_is_refused(bundle, tmp_path, monkeypatch, name):
    """Before anything is written or sent; the message shows a right one."""
    folder = filled(bundle, tmp_path / "bundle", "word")
    monkeypatch.setattr(hub, "ensure_repo", None)
    for refused in (hub.render_card, hub.write_card, hub.push):
        with pytest.raises(ValueError, match="`repo_id` must be a name on the Hub such as org/name") as error:
            refused(folder, name)
        assert "\n" not in str(error.value)
    assert not (folder / "README.md").exists()
