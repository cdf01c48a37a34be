"""Writing a bundle so that a crash leaves the old one or the new one, never a mixture that loads.

A new folder is filled beside its place and renamed into it. In a folder that holds files already, weights arrive under
names that no current index mentions, configuration and code follow, and the index, which decides what is read, comes
last; files of the old bundle go after that.
"""

import glob
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from .bundle_lingene import READOUT_FILE, SHARED_FILE, SIZES_FILE, component_file
from .identity_lingene import WEIGHT_FILE, file_sha256, weights_id_of
from .reading_lingene import read_json
from .writing_lingene import clear_abandoned, partial_name, writing


logger = logging.get_logger(__name__)

TRAINING_FILE = "training.json"  # how the weights were trained; as sizes.json, of these weights alone
CONVERSION_FILE, CONVERSION_PICTURE = "conversion.json", "conversion.png"  # of the conversion that they are from
ABOUT_WEIGHTS = (READOUT_FILE, CONVERSION_FILE, CONVERSION_PICTURE)  # true of some weights, which they do not name
# `WEIGHT_FILE` in the words of fnmatch, whose * is also of the files in folders.
WEIGHT_PATTERNS = [
    f"{name}{mark}.safetensors"
    for name in ("shared", *(f"component-{'[0-9]' * digits}" for digits in (2, 3, 4)))
    for mark in ("", f"-{'[0-9a-f]' * 8}")
]


def file_of(key: str) -> str:
    """The file that holds a tensor: one per component, one for the rest."""
    return component_file(int(key.split(".")[1])) if key.startswith("components.") else SHARED_FILE


def write_bundle(
    folder: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    settings: dict,
    write_rest: Callable[[Path, str], None],
) -> str:
    """Write the weights, their index and whatever `write_rest` adds, atomically.

    Args:
        folder: new, empty, or one to update; its own sub-folders and other files are left alone.
        tensors: the state dict of a constrained model.
        settings: `settings_of` its configuration.
        write_rest: called with a staging folder and the `weights_id`; writes config.json and code into it.

    Returns:
        The `weights_id`, see `weights_id_of`.
    """
    folder = Path(folder)
    with writing(folder):
        clear_abandoned(folder)
        new = not folder.exists() or not any(folder.iterdir())
        where = folder.parent if new else folder  # beside a new folder, within one to update: it may be a mount point
        where.mkdir(parents=True, exist_ok=True)
        staging = where / partial_name(folder)
        staging.mkdir()
        try:
            weights_id, weights = _stage(staging, folder, tensors, settings, write_rest)
            if not (new and _renamed(staging, folder)):
                _publish(staging, folder, weights, same=_weights_id_in(folder) == weights_id)
                _remove_stale(folder, weights, weights_id)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return weights_id


def _stage(
    staging: Path, folder: Path, tensors: Mapping[str, torch.Tensor], settings: dict, write_rest: Callable
) -> tuple:
    """Every file of the bundle, under its final name; the `weights_id` and the names of the weight files."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        groups.setdefault(file_of(key), {})[key] = tensor.detach().contiguous()
    digests = {}
    for file, group in sorted(groups.items()):
        save_file(group, staging / file, metadata={"format": "pt"})
        digests[file] = file_sha256(staging / file)
    weights_id = weights_id_of(digests, settings)
    write_rest(staging, weights_id)
    names = _fresh_names(folder, digests)
    for file, name in names.items():
        shutil.copymode(staging / CONFIG_NAME, staging / file)  # safetensors writes for the owner alone
        os.rename(staging / file, staging / name)
    identity = {"weights_id": weights_id, "settings": settings}
    identity["files"] = {name: digests[file] for file, name in names.items()}
    _write_index(staging, tensors, names, identity)
    return weights_id, set(names.values())


def indexed_files(folder: str | os.PathLike) -> set[str]:
    """The weight files that the index of a folder names."""
    return set(read_json(Path(folder) / SAFE_WEIGHTS_INDEX_NAME, str(folder))["weight_map"].values())


def _fresh_names(folder: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """Final name per file: that of a file of equal content, else the plain one, else, if it is taken, a marked one."""
    names = {}
    for file, digest in digests.items():
        marked = file.replace(".safetensors", f"-{digest[:8]}.safetensors")
        there = {name: file_sha256(folder / name) for name in (file, marked) if (folder / name).exists()}
        equal = [name for name, other in there.items() if other == digest]
        names[file] = equal[0] if equal else (marked if file in there else file)
    return names


def _write_index(staging: Path, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str], identity: dict):
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    metadata = {"total_size": total, **identity}
    weight_map = {key: names[file_of(key)] for key in tensors}
    text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2) + "\n"
    (staging / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")


def _renamed(staging: Path, folder: Path) -> bool:
    """Rename the staged folder into place; not possible onto a mount point, nor onto any folder on some systems."""
    if folder.exists() and folder.samefile(os.getcwd()):
        return False  # the caller would be left in a folder that is gone
    try:
        os.replace(staging, folder)
    except OSError:
        return False
    return True


def _weights_id_in(folder: Path) -> str | None:
    """The `weights_id` of the bundle that lies in a folder; None where there is none that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return read_json(folder / SAFE_WEIGHTS_INDEX_NAME, str(folder))["metadata"]["weights_id"]
    return None


def _publish(staging: Path, folder: Path, weights: set[str], same: bool):
    """Move the staged files into place: code, then weights, then config.json, and the index, which decides, last.

    What is true of the old weights alone goes, or is replaced, between these two: where one of them is of the old
    bundle and the other of the new, nothing loads.

    Args:
        same: whether the old weights are the new ones.
    """
    folder.mkdir(exist_ok=True)
    within = staging if staging.parent == folder else folder / staging.name
    order = {SAFE_WEIGHTS_INDEX_NAME: 4, **dict.fromkeys(ABOUT_WEIGHTS, 3), CONFIG_NAME: 2}
    try:
        if within != staging:
            shutil.copytree(staging, within)
        staged = {path.name for path in within.iterdir()}
        for file in sorted(within.iterdir(), key=lambda path: order.get(path.name, 1 if path.name in weights else 0)):
            if file.name == SAFE_WEIGHTS_INDEX_NAME and not same:
                for old in set(ABOUT_WEIGHTS) - staged:
                    (folder / old).unlink(missing_ok=True)
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(within, ignore_errors=True)


def _remove_stale(folder: Path, weights: set[str], weights_id: str):
    """Drop what belonged to another bundle; a model.safetensors would be read before the index, by the Trainer too."""
    stale = [path for path in folder.iterdir() if WEIGHT_FILE.fullmatch(path.name) and path.name not in weights]
    for path in [*stale, folder / SAFE_WEIGHTS_NAME]:
        path.unlink(missing_ok=True)
    for file in (folder / SIZES_FILE, folder / TRAINING_FILE):
        if file.exists() and weights_id not in file.read_text(encoding="utf-8", errors="replace"):
            file.unlink()


def ensure_repo(repo_id: str, private: bool | None = None, token: bool | str | None = None) -> str:
    """Create the repository where it is missing; its full name, with the namespace."""
    return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


def bundle_files(folder: Path, also: Iterable[str] = ()) -> set[str]:
    """Names of the files that a bundle folder consists of, and of those in `also` that it has."""
    names = {CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, IMAGE_PROCESSOR_NAME, "README.md", "LICENSE", *also}
    names |= {SIZES_FILE, TRAINING_FILE, READOUT_FILE}
    names |= indexed_files(folder) | {path.name for path in folder.glob("*_lingene.py")}
    return {name for name in names if (folder / name).is_file()}


def push_bundle(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    also: Iterable[str] = (),
    subfolder: str | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    **commit,
):
    """Upload a bundle in one commit; component files the repository has beyond it are deleted in the same.

    Only what a bundle consists of is sent: what else lies in the folder, training states or keys, is named and stays.

    Args:
        folder: a bundle, complete.
        repo_id: as `ensure_repo` gives it.
        also: names of other files to send where they are there.
        subfolder: of the repository, for one of several bundles in it. The code goes to its root, in a commit before,
            since that is where transformers looks for it.
        revision: branch to push to, created where it is missing.
        create_pr: open a pull request in place of a commit.
        commit: `commit_message`, `commit_description`.

    Returns:
        huggingface_hub's `CommitInfo`.
    """
    folder, api = Path(folder), HfApi(token=token)
    files = bundle_files(folder, also)
    _tell_left_out(sorted(path for path in folder.iterdir() if path.name not in files), repo_id)
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    where = {"repo_id": repo_id, "folder_path": folder, "revision": revision}
    if subfolder:
        if create_pr:
            raise ValueError("`create_pr` is one commit, and a bundle in a `subfolder` takes two; push without it.")
        code = {file for file in files if file.endswith("_lingene.py")}
        api.upload_folder(**where, allow_patterns=sorted(map(glob.escape, code)), commit_message="Code of the bundles")
        files -= code
    return api.upload_folder(
        **where,
        path_in_repo=subfolder,
        create_pr=create_pr,
        delete_patterns=[
            *WEIGHT_PATTERNS,
            SAFE_WEIGHTS_NAME,
            SIZES_FILE,
            TRAINING_FILE,
            *ABOUT_WEIGHTS,
        ],
        allow_patterns=sorted(map(glob.escape, files)),
        **commit,
    )


def _tell_left_out(paths: list[Path], repo_id: str) -> None:
    if paths:
        names = [f"{path.name}{'/' * path.is_dir()}" for path in paths]
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        logger.warning(f"Not sent to {repo_id}, for no part of a bundle: {', '.join(names[:10])}{more}.")
