"""Bundle folders at home: their configuration and state checked, results written complete or not at all."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

from .beside_lingene import file_beside
from .bundle_lingene import SIZES_FILE, Bundle
from .configuration_base_lingene import MOST_LAYERS, MOST_PIXELS, BundleConfig
from .families_lingene import FAMILIES
from .found import check_holds_model, is_known, wrong_kind
from .identity_lingene import file_sha256, settings_of, weights_id_of
from .kinds import KINDS, PRUNED_TYPES
from .reading_lingene import (
    AGAIN,
    FLAG,
    OBJECT,
    TEXT,
    check_fields,
    either,
    integer,
    items,
    map_of,
    number,
    one_of,
    optional,
    read_json,
    shown,
)
from .readout import read_readout, write_readout
from .saving_lingene import CONVERSION_FILE, TRAINING_FILE, indexed_files
from .writing_lingene import CLOSED, FULL, clear_abandoned, partial_name, writing


BUNDLE = "a bundle of shared components"
PLAIN = (*FAMILIES, *PRUNED_TYPES)
PREDICTIONS_FILE = "predictions.json"  # of a released bundle: pictures, and what two of its sizes say of them
SIZE_PICTURES = ("sizes.png", "sizes_heat.png")
# Whichever of these a kind of network has.
DESCRIBED = ("embed_dim", "depths", "num_heads", "window_size", "decomposed_stages")
DESCRIBED += ("hidden_size", "num_attention_heads", "intermediate_size", "image_size", "patch_size", "num_channels")
DESCRIBED += ("num_labels", "basis", "nodes", "start_degree", "depth_map")

DELETE = "delete the file, or convert again"
CONVERSION_FIELDS = {
    **dict.fromkeys(("source", "fit"), TEXT),
    "depth": either(integer(1, MOST_LAYERS), TEXT),
    "num_components": integer(1, MOST_LAYERS),
    "relative_logit_error": number(0, 1e12),
}
CONVERSION_REQUIRED = list(CONVERSION_FIELDS)
CONVERSION_FIELDS |= {"advice": optional(OBJECT), "calibration": optional(OBJECT)}
CONVERSION_FIELDS |= {**dict.fromkeys(("compared", "checked_on"), TEXT), "turned": FLAG}
CALIBRATION_REQUIRED = {"rows": items(OBJECT), "measured_images": integer(1, 1 << 53)}
CALIBRATION_FIELDS = CALIBRATION_REQUIRED | {"left_out": FLAG}
CALIBRATION_ROW = {"agreement": number(0, 1), "divergence": number(-1e12, 1e12)}
CALIBRATION_ROW |= dict.fromkeys(("cosine", "cosine_p5"), number(-1.001, 1.001))
CALIBRATION_ROW |= {"relative_logit_error": number(0, 1e12)}
CALIBRATION_PAIRS = ("agreement", "divergence"), ("cosine", "cosine_p5")  # one of them, but of a regression
_COUNT, _NAMED = integer(1, 1 << 53), optional(TEXT)
# What `training.json` says; a name is null where there is none, or none that anybody else could use.
TRAINING_FIELDS = {
    **dict.fromkeys(("weights_id", "command", "dataset", "hardware"), TEXT),
    **dict.fromkeys(("init", "teacher", "base_model"), _NAMED),
    "objective": one_of("labels", "features"),
    **dict.fromkeys(("images", "epochs", "processes"), _COUNT),
    "seed": integer(-(1 << 63), (1 << 64) - 1),
    "seconds": number(0, 1e12),
    "versions": map_of(TEXT),
}
_PIXELS = integer(1, MOST_PIXELS)
_SIDES = either(either(_PIXELS, items(_PIXELS)), map_of(_PIXELS))
_CHANNELS = either(number(-1e6, 1e6), items(number(-1e6, 1e6)))
PROCESSOR_FIELDS = {
    **dict.fromkeys(("size", "crop_size"), optional(_SIDES)),
    **dict.fromkeys(("image_mean", "image_std"), optional(_CHANNELS)),
    **{f"do_{step}": optional(FLAG) for step in ("resize", "rescale", "normalize", "center_crop", "convert_rgb")},
    "resample": optional(integer(0, 5)),
    "rescale_factor": optional(number(0, 1e6)),
    "image_processor_type": optional(TEXT),
}


def read_config(bundle: str | os.PathLike, **hub) -> BundleConfig:
    """The configuration of a bundle.

    Raises:
        ValueError: the name is a model, but not a bundle; nothing is there; the size it asks for is none of its own.
    """
    if not (os.path.isdir(bundle) and hub.get("subfolder")):
        check_holds_model("bundle", bundle, BUNDLE)
    try:
        path = cached_file(bundle, CONFIG_NAME, **hub)
    except OSError as error:
        raise ValueError(f"`bundle` {bundle} cannot be read: {str(error).splitlines()[0]}") from None
    if path is None:
        raise ValueError(f"`bundle` {bundle} cannot be read: it has no {CONFIG_NAME}.")
    model_type = read_json(path, str(bundle)).get("model_type")
    if not isinstance(model_type, str) or model_type not in KINDS:
        if os.path.isdir(bundle) and is_known(bundle):
            raise wrong_kind("bundle", bundle, BUNDLE)
        raise ValueError(f"`bundle` {bundle} is a {shown(model_type)} model by `{CONFIG_NAME}`, not {BUNDLE}.")
    config = KINDS[model_type].config.from_pretrained(bundle, **hub)
    try:
        config.size()
    except ValueError as error:
        raise ValueError(f"`{CONFIG_NAME}` of {bundle} asks for a size that it cannot have: {error}") from None
    return config


def model_type_of(name: str | os.PathLike, **hub) -> str | None:
    """What kind of model config.json says lies there; None where nothing can be read."""
    with suppress(OSError, ValueError):
        path = cached_file(name, CONFIG_NAME, **hub)
        model_type = None if path is None else read_json(path, str(name)).get("model_type")
        return model_type if isinstance(model_type, str) else None
    return None


def is_plain(name: str | os.PathLike, **hub) -> bool:
    """Whether a model is one that a size of a bundle or a pruning is written as, and no bundle."""
    return model_type_of(name, **hub) in PLAIN


def is_bundle(folder: str | os.PathLike) -> bool:
    """Whether a folder is a bundle's."""
    return os.path.isdir(folder) and model_type_of(folder) in KINDS


def bundle_weights_id(folder: str | os.PathLike) -> str:
    """The `weights_id` of a folder's files and settings as they are, recomputed."""
    index = read_json(Path(folder) / SAFE_WEIGHTS_INDEX_NAME, str(folder))
    digests = {file: file_sha256(Path(folder) / file) for file in indexed_files(folder)}
    if index["metadata"].get("settings") is None:  # saved before they were part of it
        return weights_id_of(digests, None)
    return weights_id_of(digests, settings_of(read_config(folder)))


def change_settings(folder: str | os.PathLike, config: BundleConfig) -> None:
    """Give the weights in a folder other settings: config.json, and the index with their identity anew.

    Args:
        folder: a bundle.
        config: its configuration, changed; gets the new `weights_id`.
    """
    path = Path(folder) / SAFE_WEIGHTS_INDEX_NAME
    index, settings = read_json(path, str(folder)), settings_of(config)
    config.weights_id = weights_id_of(index["metadata"]["files"], settings)
    index["metadata"] |= {"settings": settings, "weights_id": config.weights_id}
    config.save_pretrained(folder)
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def download_of(name: str | os.PathLike, **hub) -> Callable[[int], int]:
    """(number of components) -> bytes that are fetched for them, of a bundle; no weights are read."""
    return Bundle(name, read_config(name, **hub), hub).download_bytes


def read_conversion(folder: Path) -> dict | None:
    """The report of the conversion that a bundle comes from; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    if not (folder / CONVERSION_FILE).is_file():
        return None
    report, where = read_json(folder / CONVERSION_FILE, str(folder), DELETE), f"`{CONVERSION_FILE}` of {folder}"
    check_fields(report, CONVERSION_FIELDS, where, required=CONVERSION_REQUIRED, remedy=DELETE)
    if report.get("calibration"):
        measured, inside = report["calibration"], f"`calibration` in {where}"
        check_fields(measured, CALIBRATION_FIELDS, inside, required=CALIBRATION_REQUIRED, remedy=DELETE)
        for row in measured["rows"]:
            named = next((pair for pair in CALIBRATION_PAIRS if pair[0] in row), ("relative_logit_error",))
            check_fields(row, CALIBRATION_ROW, f"a row of {inside}", required=named, remedy=DELETE)
    return report


def read_training(folder: Path, weights_id: str) -> dict | None:
    """How a bundle's weights were trained; None where that is not recorded.

    Raises:
        ValueError: the file is damaged, or speaks of other weights.
    """
    if not (folder / TRAINING_FILE).is_file():
        return None
    where, remedy = f"`{TRAINING_FILE}` of {folder}", "delete the file"
    facts = read_json(folder / TRAINING_FILE, str(folder), remedy)
    check_fields(facts, TRAINING_FIELDS, where, required=TRAINING_FIELDS, remedy=remedy)
    if facts["weights_id"] != weights_id:
        raise ValueError(f"`weights_id` in {where} is that of other weights; {remedy}.")
    return facts


def write_training(folder: str | os.PathLike, facts: dict) -> None:
    """`training.json` of a bundle folder, tied to its weights."""
    write_json(Path(folder) / TRAINING_FILE, {**facts, "weights_id": bundle_weights_id(folder)})


def read_processor(name: str | os.PathLike, **hub) -> Any:
    """The image processor beside a model.

    Args:
        name: folder or name on the Hub.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its file is damaged, or nobody can say whether there is one.
    """
    path = file_beside(name, IMAGE_PROCESSOR_NAME, **hub)
    if path is not None:
        check_fields(read_json(path, str(name)), PROCESSOR_FIELDS, f"`{IMAGE_PROCESSOR_NAME}` of {name}")
    else:  # newer files have it beside that of texts
        path = file_beside(name, PROCESSOR_NAME, **hub)
        if path is None or not read_json(path, str(name)).get("image_processor"):
            raise FileNotFoundError(f"{name} has no {IMAGE_PROCESSOR_NAME}.")
    try:
        return AutoImageProcessor.from_pretrained(name, **hub)
    except (OSError, ValueError, AttributeError, IndexError, KeyError, TypeError, RecursionError) as error:
        where = f"`{IMAGE_PROCESSOR_NAME}` and `{CONFIG_NAME}` of {name}"
        raise ValueError(f"{where} give no image processor: {' '.join(str(error).split())}; {AGAIN}.") from None


def processor_or_none(name: str | os.PathLike, **hub) -> Any:
    """`read_processor`, and None where there is none."""
    with suppress(FileNotFoundError):
        return read_processor(name, **hub)
    return None


def keep_processor(bundle: str | os.PathLike, folder: Path, hub: dict) -> Any:
    """A bundle's preprocessing, written into a folder as well; None where it has none."""
    processor = processor_or_none(bundle, **hub)
    if processor is not None:
        processor.save_pretrained(folder)
    return processor


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that no half-written one is ever seen."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(path)
        partial = path.with_name(partial_name(path))
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_sizes(folder: str | os.PathLike, rows: list[dict]) -> None:
    """`sizes.json` of a bundle folder, tied to its weights."""
    write_json(Path(folder) / SIZES_FILE, {"weights_id": bundle_weights_id(folder), "sizes": rows})


def check_folder(folder: str | os.PathLike) -> BundleConfig:
    """The configuration of a bundle folder whose weights are the ones that its index and sizes speak of.

    Raises:
        ValueError: no bundle, a file missing, or `weights_id` of index or sizes not that of the files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise wrong_kind("bundle", folder, "the folder of a bundle")
    config = read_config(folder)
    if not (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        raise ValueError(f"`bundle` {folder} lacks {SAFE_WEIGHTS_INDEX_NAME}; save it again.")
    bundle = Bundle(folder, config)
    missing = sorted(file for file in set(bundle.weight_map.values()) if not (folder / file).is_file())
    if missing:
        raise ValueError(f"`bundle` {folder} lacks {', '.join(missing)}; save it again.")
    if bundle_weights_id(folder) != bundle.weights_id:
        raise ValueError(f"`weights_id` of {folder} is not that of its weight files; save the bundle again.")
    bundle.measured()
    return config


def describe(bundle: str | os.PathLike, **hub) -> tuple[dict, list[dict]]:
    """What a bundle holds, as JSON takes it, and the rows of its `sizes.json`; no weights are read or downloaded."""
    config = read_config(bundle, **hub)
    held = Bundle(bundle, config, hub)
    facts = {
        "bundle": str(bundle),
        "weights_id": config.weights_id,
        "family": config.family,
        "depth": config.reference_depth,
        "trained_depths": list(config.trained_depths),
        "num_components": config.reference_components,
        "trained_components": config.trained_components,
        "turned": config.turned,
        "trained_width_ratios": list(config.trained_width_ratios),
        "legal_width_ratios": [str(ratio) for ratio in config.legal_width_ratios],
        "stored_params": config.stored_params(config.size(), held.has_head),
    }
    facts |= {field: getattr(config, field) for field in DESCRIBED if hasattr(config, field)}
    if config.stands_for.gated:  # of other families no MLP is
        facts["gated_mlp"] = config.gated_mlp
    if not held.has_head:  # transformers' two classes of a model that has none
        del facts["num_labels"]
    return facts, held.measured()


@contextmanager
def complete_or_absent(out: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well and is gone when it does not.

    Args:
        out: new or empty.
    """
    out = Path(os.path.abspath(out))
    with writing(out):
        clear_abandoned(out)
        # Beside a new folder, within one that is there: it may be a mount point, or all that may be written to.
        staging = (out if out.exists() else out.parent) / partial_name(out)
        staging.mkdir(parents=True)
        try:
            yield staging
            if out.exists():  # perhaps somebody's working directory: filled, not replaced; config.json last
                for file in sorted(staging.iterdir(), key=lambda path: path.name == CONFIG_NAME):
                    os.replace(file, out / file.name)
            else:
                os.replace(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def check_empty(out: str | os.PathLike) -> None:
    """Refuse a place for a result that holds something, or that cannot be written to; before long work."""
    out = Path(out)
    clear_abandoned(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"`out` {out} must be a new or empty folder.")
    check_writable(out)


def held_in(folder: Path, names: Iterable[str]) -> set[str]:
    """The names of what a folder of results holds, but for what a writer that was killed left there on its way to one
    of these names, or to the folder: the next writer of the same removes that.

    Args:
        folder: that is there.
        names: of what is written into it.
    """
    ways = "|".join(re.escape(name) for name in (*names, Path(os.path.abspath(folder)).name))
    unfinished = re.compile(rf"\.+(?:{ways})\..+\.(?:partial|tmp)")  # tmp: of pictures, once
    return {path.name for path in folder.iterdir() if not unfinished.fullmatch(path.name)}


def check_writable(out: str | os.PathLike) -> None:
    """Refuse a folder for results, there or still to be made, in which no file can be written; leaves nothing.

    Raises:
        ValueError: names `out`, what the system says, and the way out.
    """
    out = Path(out)
    probe = _nearest(out) / partial_name(out)
    try:
        probe.write_bytes(b"\0")
    except OSError as error:
        way = FULL.get(error.errno) or CLOSED.get(error.errno) or "choose another folder"
        raise ValueError(f"`out` {out} cannot be written to: {error.strerror or error}; {way}.") from None
    finally:
        with suppress(OSError):
            probe.unlink()


def check_file(out: str | os.PathLike | None, late: bool = False) -> None:
    """Refuse a place for a file that is a folder; before long work, `late`, also one that cannot be written to.

    Args:
        out: None is nowhere.
    """
    if out is None:
        return
    if Path(out).is_dir():
        raise ValueError(
            f"`out` {out} is a folder, and what is written is one file: give its name, such as {out}.json."
        )
    if late:
        check_writable(Path(out).absolute().parent)


def _nearest(folder: Path) -> Path:
    """The folder, or the one above it that is there."""
    folder = Path(os.path.abspath(folder))
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def publish_model(model: PreTrainedModel, source: str | os.PathLike, out: Path, **hub) -> None:
    """Save a materialised model with its bundle's preprocessing, as a folder that is complete or absent.

    With what brings its tokens back, where the bundle's channels were turned.
    """
    with complete_or_absent(out) as staging:
        model.save_pretrained(staging)
        processor = file_beside(source, IMAGE_PROCESSOR_NAME, **hub)
        if processor is not None:
            shutil.copyfile(processor, staging / IMAGE_PROCESSOR_NAME)
        write_readout(staging, read_readout(source, **hub), model)
