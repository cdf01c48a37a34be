"""Words from outside made harmless for where they stand in a Markdown page: as text, as code, as a Python string.

Names of classes, datasets and devices are whatever somebody wrote; on a page they may be read, and do nothing else.
"""

import json
import re
from collections.abc import Mapping


# Control characters, those that turn the direction of writing around, and halves of characters that no file can hold.
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What starts markup, an HTML tag, an entity or a formula, or ends a cell; within a word `_` does not. Then what turns
# plain addresses into links: `://`, `www.` and `a@b`.
MARKUP = re.compile(r"[\\`*\[\]<>&#|~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?i:(?<=www))\.|(?<=\S)@(?=\S)")
# HTML's signs are safe then with readers that know no escapes; a backslash at a cell's end would escape what ends it.
ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\\": "&#92;"}


def text(words: object) -> str:
    """Words as plain text on one line, in a paragraph after other words, a heading or the cell of a table."""
    return MARKUP.sub(lambda sign: ENTITIES.get(sign[0], "\\" + sign[0]), _line(words))


def code(words: object) -> str:
    """Words as code within a line, outside of tables; the fence is longer than any in the words."""
    line = _line(words)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def string(words: str) -> str:
    """Words as a Python string on one line, for a block of code: whatever is in them, it ends where they end."""
    return json.dumps(words, ensure_ascii=False) if words.isprintable() else repr(words)


def loading(auto_class: str, name: str, keywords: Mapping[str, object]) -> str:
    """Python that loads a model, one line for what it is and one for its size: a phone shows both.

    Args:
        keywords: of `from_pretrained`, any Python values that print as they are written.
    """
    asked = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
    return (
        f"from transformers import {auto_class}\n\n"
        f"model = {auto_class}.from_pretrained(\n    {string(name)}, trust_remote_code=True,\n    {asked},\n)"
    )


def _line(words: object) -> str:
    return " ".join(UNSEEN.sub(" ", str(words)).split())
