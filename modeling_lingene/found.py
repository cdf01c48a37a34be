"""What a folder or a name is, for messages: whoever gives the wrong one is told what it is and where it goes."""

import json
import os
import re
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_url
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import CONFIG_NAME

from .configuration_base_lingene import BUNDLE_TYPES
from .kinds import PRUNED_TYPES


EXPORT_FILE = "export.json"  # of an exported size: what its files are, and how they were verified
WORD = re.compile(r"[A-Za-z][\w-]{0,60}", re.ASCII)
SECONDS = 10.0  # for the Hub to answer whether it is there at all
# By what lies in a folder without a model: a file -> what that folder is, and the way out.
HOLDERS = {
    f"bundle/{CONFIG_NAME}": ("the folder of a training run", "its bundle is {0}/bundle"),
    f"model/{CONFIG_NAME}": ("the folder of a pruning", "its model is {0}/model"),
    EXPORT_FILE: ("an export for another program", "give the bundle or model that it was made of"),
}
BUNDLE_WAY = "`lingene decompose --init {0}` trains it on, `lingene materialise {0}` writes one size as a plain model"
PRUNED_WAY = "`lingene evaluate`, `profile`, `export` and `push` take it as it is"
PLAIN_WAY = "`lingene convert {0} --out BUNDLE` makes a bundle of it"


def what_is(name: str | os.PathLike) -> tuple[str, str]:
    """What lies in a folder, in a few words, and what can be done with it ("" where nothing can)."""
    folder = Path(name)
    if not folder.is_dir():
        return ("a file" if folder.exists() else "not there"), ""
    kind = _model_type(folder / CONFIG_NAME)
    if kind in BUNDLE_TYPES:
        return "a bundle", BUNDLE_WAY.format(name)
    if kind in PRUNED_TYPES:
        return "a pruned model", PRUNED_WAY
    if kind is not None and not (folder / EXPORT_FILE).is_file():
        return f"a plain {kind} model", PLAIN_WAY.format(name)
    for file, (said, way) in HOLDERS.items():
        if (folder / file).is_file():
            return said, way.format(name)
    return f"a folder without a {CONFIG_NAME}" if any(folder.iterdir()) else "an empty folder", ""


def _model_type(config: Path) -> str | None:
    """What it names, if that is a word: a damaged file may name anything."""
    try:
        found = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) and WORD.fullmatch(found) else None


def is_known(folder: str | os.PathLike) -> bool:
    """Whether transformers knows the kind of model that config.json names."""
    return _model_type(Path(folder) / CONFIG_NAME) in (*CONFIG_MAPPING_NAMES, *PRUNED_TYPES)


def wrong_kind(argument: str, name: str | os.PathLike, wanted: str, way: str | None = None) -> ValueError:
    """The error for a folder of another kind.

    Args:
        argument: that it was given as.
        wanted: what it should be, such as `a bundle of shared components`.
        way: out; default what can be done with such a folder.
    """
    said, known = what_is(name)
    way = known if way is None else way
    return ValueError(f"`{argument}` {name} is {said}, not {wanted}{': ' * bool(way)}{way}.")


def check_holds_model(argument: str, name: str | os.PathLike, wanted: str) -> None:
    """Refuse a folder that is here and holds no model; arguments as for `wrong_kind`."""
    folder = Path(os.path.expanduser(name))
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        raise wrong_kind(argument, name, wanted)


def check_within_reach(argument: str, name: str) -> None:
    """Refuse a name that is no folder here where the Hub cannot be asked, at once: by itself every file of it would
    be tried six times over half a minute.

    Raises:
        ValueError: says that there is no such folder, and what the connection says.
    """
    if os.path.exists(os.path.expanduser(name)) or constants.HF_HUB_OFFLINE or not _on_the_hub(name):
        return
    try:
        get_session().head(hf_hub_url(name, CONFIG_NAME), timeout=SECONDS)
    except Exception as error:  # of the HTTP library of the day
        cached = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
        if not cached.is_dir():
            raise ValueError(
                f"`{argument}` {name}: there is no such folder here, and the Hub cannot be asked for a model of that "
                f"name: {str(error) or type(error).__name__}."
            ) from None


def _on_the_hub(name: str) -> bool:
    """Whether it could be a repository's name at all."""
    return bool(name) and name.count("/") <= 1 and ":" not in name and not os.path.isabs(name) and name[0] not in ".~"
