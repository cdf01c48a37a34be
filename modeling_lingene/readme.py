"""README.md beside a model: a generated part between two marks, written anew each time; all else is somebody's.

What a person wrote outside of the marks stays where it is, and so do fields of the header that a person set, changed
or took out: the first mark remembers what was generated. A README without marks is kept whole, and the generated part
comes after it. On a push the README of the repository has its say too, see `agreed`.
"""

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import logging

from .folders import write_text


logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
OLD_FILE = "README.old{}.md"  # what was changed between the marks, before it is written anew
MARKS = re.compile(
    r"^<!-- lingene card: [^\n]*?(\{[^\n]*\}) -->[ \t]*\n(.*?)^<!-- /lingene card -->[ \t]*$", re.DOTALL | re.MULTILINE
)
ANY_MARK = re.compile(r"^<!-- /?lingene card\b", re.MULTILINE)
SAID = "made by a program, anew each time; write outside of these marks"
KEY = re.compile(r"""([\w.-]+|"[^"]+"|'[^']+') *:""")


@dataclass(frozen=True)
class Page:
    """A README in parts.

    Args:
        header: the lines of every field of the YAML header, by its key, and those of remarks, by `#` and a number.
        before, after: what stands around the generated part; all of it is `before` where there is none.
        generated: between the marks, without them; None where there are none.
        facts: what the first mark says: `header`, a hash of each generated field; `text`, of the generated part;
            `kept`, of what people had written when it was last pushed.
    """

    header: dict[str, str]
    before: str
    generated: str | None = None
    after: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def theirs(self) -> dict[str, str]:
        """The fields of the header that a program did not write, or wrote otherwise, and remarks."""
        known = self.facts.get("header", {})
        return {
            key: lines for key, lines in self.header.items() if key[0] == "#" or known.get(key) != value_hash(lines)
        }

    @property
    def removed(self) -> set[str]:
        """Fields of the header that were generated and that somebody has taken out."""
        return self.facts.get("header", {}).keys() - self.header.keys()

    @property
    def edited(self) -> bool:
        """Whether somebody has written between the marks."""
        return self.generated is not None and self.facts.get("text") != text_hash(self.generated)

    def card(self, **fields: str | None) -> str:
        """What a program wrote, as it was rendered, with other values of some fields of the header."""
        ours = {key: lines for key, lines in self.header.items() if key not in self.theirs}
        ours |= {key: f"{key}: {value}\n" for key, value in fields.items() if value}
        return f"---\n{''.join(ours.values())}---\n\n{self.generated or ''}"

    def written(self) -> str:
        """All that people wrote; empty where a program wrote everything."""
        gone = "".join(f"without {key}\n" for key in sorted(self.removed))
        return "".join(self.theirs.values()) + gone + "\n".join(filter(None, map(_trimmed, (self.before, self.after))))


def parsed(text: str, where: str) -> Page:
    """A README taken apart.

    Args:
        where: it is, for messages.

    Raises:
        ValueError: a header that is no YAML, or marks that are not one pair.
    """
    text = text.replace("\r\n", "\n")
    head = re.match(r"---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", text, re.DOTALL | re.MULTILINE)
    header, body = (_fields(head[1], where), text[head.end() :]) if head else ({}, text)
    found = MARKS.search(body)
    if len(ANY_MARK.findall(body)) != (2 if found else 0):
        raise ValueError(
            f"`{CARD_FILE}` of {where} must have the marks of its generated part, `<!-- lingene card: ... -->` and "
            "`<!-- /lingene card -->`, once each; repair them, or delete both with what is between."
        )
    if not found:
        return Page(header, body)
    try:
        facts = json.loads(found[1])
    except ValueError:
        facts = {}  # then everything counts as a person's
    return Page(header, body[: found.start()], found[2], body[found.end() :], facts)


def merged(there: Page | None, card: str, asked: Collection[str] = (), pushed: bool = False) -> str:
    """A card in the place of the one before, with all that people wrote around it.

    Args:
        there: the README so far.
        card: rendered, with a header.
        asked: fields of the header that were asked for by name, whatever stands there.
        pushed: whether this is what goes to the Hub: the mark remembers it.
    """
    new, old = parsed(card, "the card"), there or Page({}, "")
    theirs = {key: lines for key, lines in old.theirs.items() if key not in asked}
    removed = old.removed - set(asked)
    ours = {key: lines for key, lines in new.header.items() if key not in theirs.keys() | removed}
    header = {key: theirs.get(key) or ours.get(key, "") for key in [*old.header, *ours]}
    known = {key: value_hash(lines) for key, lines in ours.items() if key != "license"}  # a person's, always
    known |= {key: old.facts["header"][key] for key in removed}
    text = new.before.strip("\n") + "\n"
    around = (old.before, old.after) if old.generated is not None else (f"{_trimmed(old.before)}\n\n", "\n")
    facts = {"header": known, "text": text_hash(text), "kept": old.facts.get("kept")}
    if pushed:
        facts["kept"] = text_hash(Page(header, around[0], after=around[1], facts={"header": known}).written())
    marks = f"<!-- lingene card: {SAID} {json.dumps(facts)} -->\n{text}<!-- /lingene card -->"
    marks = marks if text.strip() else ""  # a page of somebody's own, to which there is nothing to add
    page = f"---\n{''.join(header.values())}---\n\n{around[0].lstrip(chr(10))}{marks}{around[1]}"
    return page if page.endswith("\n") else page + "\n"


def agreed(here: Page | None, there: Page | None, names: tuple[str, str]) -> Page | None:
    """Whose words are kept where a folder and a repository have a README each: those written since they were the same.

    Args:
        names: of the two.

    Raises:
        ValueError: people wrote in both since.
    """
    if here is None or there is None:
        return here or there
    own, other, base = here.written(), there.written(), here.facts.get("kept")
    if own == other or base == text_hash(other):
        return here
    if base == text_hash(own) or not own:
        return there
    if not other and base is None:
        return here
    raise ValueError(
        f"`{CARD_FILE}` was changed by hand both in {names[0]} and in {names[1]}: put what is to stay of both into "
        "one of them, and copy its header, and its text outside of the marks, to the other."
    )


def read_page(folder: Path) -> Page | None:
    """The README of a folder; None where there is none.

    Raises:
        ValueError: it is no text, or `parsed` refuses it.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        return None
    try:
        return parsed(path.read_text(encoding="utf-8"), str(folder))
    except UnicodeDecodeError:
        raise ValueError(f"`{CARD_FILE}` of {folder} is no text in UTF-8; save it as such, or delete it.") from None


def write_readme(
    folder: Path, card: str, there: Page | None, asked: Collection[str] = (), pushed: bool = False
) -> None:
    """`merged` into a folder, and a word about all that was kept.

    Args:
        there: whose words are kept: the folder's own page, or what `agreed` says.
    """
    own = read_page(folder)
    if own is not None and own.edited:
        path = next(path for n in range(1 << 20) if not (path := folder / OLD_FILE.format(n or "")).exists())
        write_text(path, (folder / CARD_FILE).read_text(encoding="utf-8"))
        logger.warning(
            f"{CARD_FILE} of {folder} was changed between its marks, where it is written anew: {path} has it."
        )
    write_text(folder / CARD_FILE, merged(there, card, asked, pushed))
    if there is not None and there.written():
        logger.warning(f"{CARD_FILE} of {folder}: {_kept(there, asked)}")


def _kept(page: Page, asked: Collection[str]) -> str:
    """What was kept of a README, for people."""
    fields = [key for key in page.theirs if key[0] != "#" and key not in asked]
    lines = sum(bool(line.strip()) for part in (page.before, page.after) for line in part.splitlines())
    told = [f"kept {lines} lines outside of the marks"] * bool(lines)
    told += [f"kept {', '.join(fields)} of the header"] * bool(fields)
    told += [f"left out {', '.join(sorted(page.removed))} of the header, as there"] * bool(page.removed)
    end = "; it had no marks, the card comes after it" if page.generated is None and lines else ""
    return f"{'; '.join(told) or 'kept remarks in the header'}{end}."


def _fields(text: str, where: str) -> dict[str, str]:
    """The lines of a YAML header by the key of the field that they belong to."""
    try:
        held = yaml.safe_load(text) or {}
        if not isinstance(held, dict):
            raise ValueError("no fields with names")
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"The header of `{CARD_FILE}` of {where} is damaged ({said}); repair or delete it.") from None
    fields: dict[str, str] = {}
    last = "#"
    for number, line in enumerate(text.splitlines(keepends=True)):
        found = KEY.match(line)
        if found:
            last = found[1].strip("'\"")
        elif line.startswith("#"):
            last = f"# {number}"
        fields[last] = fields.get(last, "") + line
    return fields


def value_hash(lines: str) -> str:
    """What tells a field of the header from another, however it is written."""
    return text_hash(json.dumps(yaml.safe_load(lines), sort_keys=True, default=str))


def text_hash(text: str) -> str:
    """What tells a text from another, whatever spaces an editor has left at the ends of its lines."""
    return hashlib.sha256(_trimmed(text).encode()).hexdigest()[:12]


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
