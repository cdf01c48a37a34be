"""Of what a command line gave, the part that was asked for."""

import os
from pathlib import Path


SIZE_FLAGS = ("depth", "width_ratio", "num_components", "allow_untrained")
SIZE_FLAGS += ("max_params", "max_macs", "max_latency_ms", "latency_device")


def given(options: dict) -> dict:
    """Those that were given."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def on_the_hub(name: str, revision: str | None) -> dict[str, str]:
    """Where on the Hub a name is looked up, as keywords."""
    if revision is not None and os.path.isdir(name):
        raise ValueError(f"`revision` is of a name on the Hub, and {name} is a folder here: leave it out.")
    return given({"revision": revision})


def run_folder(out: Path | None, resume: Path | bool) -> Path:
    """Where a run is, or goes."""
    if isinstance(resume, Path):
        if out not in (None, resume):
            raise ValueError(f"`resume` {resume} and `out` {out} are two folders; leave out --out.")
        return resume
    if out is None:
        raise ValueError(
            "`out` says where the run goes: give --out; or --resume with the folder of one to go on with."
        )
    return out


def is_short(resume: Path | bool, named: str | None) -> bool:
    """Whether the settings of a run that goes on are those in its folder: only its folder was named.

    Args:
        named: what a whole command names, such as the data.
    """
    return bool(resume) and not named
