"""What tells one bundle's function from another's: its weight files, and the settings that make layers out of them.

The index holds both: `files`, a SHA-256 per weight file, and `settings`; `weights_id` is a SHA-256 over the two. So a
changed setting is noticed by every load, without reading a weight, and a changed file by whoever asks for it.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from .configuration_base_lingene import SIZE_FIELDS, BundleConfig
from .reading_lingene import check_fields, shown


WEIGHT_FILE = re.compile(r"(shared|component-\d+)(-[0-9a-f]{8})?\.safetensors")


def file_sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_id_of(digests: Mapping[str, str], settings: Mapping | None) -> str:
    """SHA-256 over the files' SHA-256s, by name of the role (`component-00`), whatever a file is called, and settings.

    Args:
        digests: SHA-256 per weight file.
        settings: `settings_of(config)`; None for bundles saved before the settings were part of it.
    """
    roles = {WEIGHT_FILE.fullmatch(file)[1]: digest for file, digest in digests.items()}
    text = "".join(roles[role] for role in sorted(roles))
    if settings is not None:
        text += json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def settings_of(config: BundleConfig) -> dict:
    """The fields of a configuration that the function of a size depends on, as JSON gives them back."""
    kept = {field: getattr(config, field) for field in config.settings}
    later = {field: getattr(config, field) for field in config.later_settings}
    kept |= {key: value for key, value in later.items() if value != config.later_settings[key]}
    return json.loads(json.dumps(kept))


def check_settings(name: str, stored: BundleConfig, saved: Mapping | None) -> None:
    """Refuse a config.json that says otherwise than the settings its weights were saved with.

    Args:
        name: of the bundle.
        stored: the configuration as config.json has it.
        saved: the settings in the index; None in bundles saved before they stood there.
    """
    own = stored.later_settings | settings_of(stored)
    saved = {**stored.later_settings, **saved} if saved is not None else None
    for field in own if saved is not None else ():
        if field not in saved or saved[field] != own[field]:
            raise ValueError(
                f"`{field}` in config.json of {name} is {shown(own[field])}, and the weights were saved with "
                f"{shown(saved.get(field))}, says {SAFE_WEIGHTS_INDEX_NAME}: they would be another model; restore it."
            )


def check_keywords(name: str, stored: BundleConfig, asked: BundleConfig) -> None:
    """Refuse what a caller asks for where it is none of a configuration's values, or contradicts the weights or the
    rest; what describes no weight may be overridden.

    transformers sets keywords on a configuration that is made already, and nothing would look at them again.

    Args:
        asked: `stored` with the caller's keywords, or a configuration of the caller's own; put into its one form.
    """
    where = f"what is asked of {name}"
    given = {field: getattr(asked, field) for field in asked.fields if field not in SIZE_FIELDS}
    check_fields(given, asked.fields, where, remedy="leave it out, or give such a one")
    asked._fill_reference()
    was, wanted = (config.later_settings | settings_of(config) for config in (stored, asked))
    for field in was:
        if field not in stored.free_settings and was[field] != wanted[field]:
            raise ValueError(
                f"`{field}` {shown(wanted[field])} contradicts the weights of {name}, made with "
                f"{shown(was[field])}: leave it out. Sizes are chosen by `depth`, `width_ratio`, `num_components`."
            )
    asked._check_stored()
    if asked.depth_rows != stored.depth_rows and asked.depth_rows and asked.depth_map != "select":
        raise ValueError(
            f"`depth_rows` are of the depth map 'select', and {name} is asked for by {asked.depth_map!r}: give "
            "depth_map='select' as well, or leave them out."
        )
