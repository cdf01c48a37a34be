"""What a folder or a name is, for messages: whoever gives the wrong one is told what it is and where it goes."""

import json
import os
import re
from pathlib import Path
from types import ModuleType

from huggingface_hub import constants, get_session, hf_hub_url
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import CONFIG_NAME

from .configuration_base_lingene import BUNDLE_TYPES
from .kinds import PRUNED_TYPES


EXPORT_FILE = "export.json"  # of an exported size: what its files are, and how they were verified
WORD = re.compile(r"[A-Za-z][\w-]{0,60}", re.ASCII)
TIMM, TIMM_HUB = "timm:", ("hf-hub", "hf_hub")  # before names of timm, and before those of repositories within
TIMM_LOCAL = "local-dir:"  # before a folder of timm
THERE_IS_NONE = "not there"
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
        return ("a file" if folder.exists() else THERE_IS_NONE), ""
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
    if said == THERE_IS_NONE:
        return ValueError(f"`{argument}` must be {wanted}, and there is no folder {name}.")
    way = known if way is None else way
    return ValueError(f"`{argument}` {name} is {said}, not {wanted}{': ' * bool(way)}{way}.")


def check_holds_model(argument: str, name: str | os.PathLike, wanted: str) -> None:
    """Refuse a folder that is here and holds no model, a file, and a path where nothing is; arguments as for
    `wrong_kind`.
    """
    folder = Path(os.path.expanduser(name))
    if folder.is_file() or (folder.is_dir() and not (folder / CONFIG_NAME).is_file()):
        raise wrong_kind(argument, name, wanted)
    if is_path(name) and not folder.exists():
        raise ValueError(f"`{argument}` must be {wanted}, by folder or name on the Hub; there is no folder {name}.")


def is_path(name: str | os.PathLike) -> bool:
    """Whether a name can be no repository's, only a place here."""
    return os.path.isabs(name) or str(name).count("/") > 1 or str(name)[:1] in (".", "~")


def public_name(name: str | os.PathLike) -> str | None:
    """A model by the name that others know it by: on the Hub, of timm, or its folder's; None where none is meant.

    For whatever is stored or pushed, in which no path of this machine may stand.
    """
    text = str(name)
    before, local, folder = text.partition(TIMM_LOCAL)
    if local and before == TIMM:
        return f"{before}{local}{Path(os.path.expanduser(folder)).resolve().name}"
    path = os.path.expanduser(text)
    return (Path(path).resolve().name if is_path(text) or os.path.exists(path) else text) or None


def check_within_reach(argument: str, name: str) -> None:
    """Refuse a name that is no folder here where the Hub cannot be asked, at once: by itself every file of it would
    be tried six times over half a minute.

    Raises:
        ValueError: says that there is no such folder, and what the connection says.
    """
    if not name or ":" in name or is_path(name) or os.path.exists(name):
        return
    why = out_of_reach(name)
    if why:
        raise ValueError(
            f"`{argument}` {name}: there is no such folder here, and the Hub cannot be asked for a model of that "
            f"name: {why}."
        )


def check_timm_within_reach(argument: str, name: str, timm: ModuleType, way: str = "") -> None:
    """`check_within_reach` of `timm:NAME`, whose files would be tried as often.

    Args:
        timm: the library, which knows where its models lie.
        way: out, from its comma or semicolon on.
    """
    source, _, place = name.removeprefix(TIMM).rpartition(":")
    known = None if source else timm.get_pretrained_cfg(place, allow_unregistered=True)
    repository = place.partition("@")[0] if source in TIMM_HUB else getattr(known, "hf_hub_id", None)
    why = out_of_reach(repository) if repository else ""
    if why:
        raise ValueError(f"`{argument}` {name} lies on the Hub as {repository}, which cannot be asked: {why}{way}.")


def out_of_reach(repository: str, kind: str = "model", cache: str | os.PathLike | None = None) -> str:
    """What the connection says where the Hub cannot be asked for what is not in the cache; else nothing.

    Args:
        repository: its name.
        kind: model or dataset.
        cache: another folder that may hold it.
    """
    if constants.HF_HUB_OFFLINE:
        return ""
    try:
        get_session().head(hf_hub_url(repository, "README.md", repo_type=kind), timeout=SECONDS)
    except Exception as error:  # of the HTTP library of the day
        cached = os.path.join(constants.HF_HUB_CACHE, f"{kind}s--{repository.replace('/', '--')}")
        return "" if any(map(os.path.isdir, (cached, cache or cached))) else str(error) or type(error).__name__
    return ""
