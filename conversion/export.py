"""One size of a bundle in the format that a target needs, verified as it is written.

    lingene export BUNDLE --to onnx --depth 6 --out model     # model/model.onnx, dynamic batch
    lingene evaluate model --data DATA                        # what that file is worth, int8 too
    lingene export BUNDLE --to timm --out model               # timm.create_model("local-dir:model", pretrained=True)
    lingene export BUNDLE --to executorch --out model         # model/model.pte for phones, model/preprocessing.json

Every format is a folder that holds its files, the preprocessing and `export.json` with the largest difference of the
logits, measured by loading the folder as its users will. Above the tolerance there is no folder.
"""

import functools
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME, logging

from ..bundle_lingene import READOUT_FILE, Bundle
from ..extras import require
from ..families_lingene import layers_of
from ..folders import (
    check_empty,
    complete_or_absent,
    is_plain,
    keep_processor,
    processor_or_none,
    publish_model,
    read_config,
    write_json,
)
from ..found import EXPORT_FILE, public_name
from ..images.batches import batches, made_size, size_field
from ..images.data import picked
from ..images.pictures import load_pictures
from ..kinds import PRUNED_TYPES, model_class
from ..measuring.encoders import load_model
from ..measuring.features import prefix_tokens
from ..measuring.metrics import count_macs, count_parameters, height_and_width, seen_size
from ..measuring.yardsticks import has_classifier
from ..progress import quiet_loading
from ..readout import is_turned, read_readout, write_readout
from . import devices
from .any_size import any_size, family_of
from .graphs import SMALL, WIDE, Outputs, example_images, of_patches, output_name, random_images, traced
from .onnx_files import make_smaller, say_in_file
from .sources import names_classes
from .to_timm import TIMM_NAMES, check_patches, write_timm


logger = logging.get_logger(__name__)

WEIGHTS = ("float32", "float16", "int8")
# Of the largest logit. int8 has to let small random bundles pass, which round worse than trained ones, and to tell
# sums that are cut off at 16 bits.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "int8": 0.15}
CHECK_PICTURES, CHECK_BATCH = 64, 8  # of a set: how many are compared, and how many at once
ONNX_FILE, PROGRAM_FILE = "model.onnx", "model.pt2"
PREPROCESSING_FILE = "preprocessing.json"
UNTRACED = ("transformers", "timm")  # formats that are no graphs
ONNX_LIMIT = 1.8e9  # bytes of weights in one file


def export(
    bundle: str | os.PathLike,
    out: str | Path,
    to: str = "transformers",
    *,
    weights: str = "float32",
    tolerance: float | None = None,
    data: str | None = None,
    **size,
) -> dict:
    """Write one size of a bundle in a format, verified.

    Args:
        bundle: folder or name on the Hub; a plain ViT or a pruned model, too, which has no sizes.
        out: new or empty folder.
        to: transformers, timm, onnx, program (a `torch.export` program), executorch, openvino.
        weights: float32; for onnx also float16 and int8, for openvino float16.
        tolerance: largest difference of logits that is accepted, as a share of the largest logit; default by weights.
        data: pictures that it is compared on too, as for `load_pictures`; random images, on which it is compared
            always, are unlike any that it will see.
        size: `from_pretrained`'s keywords: depth, width_ratio, num_components, allow_untrained, max_params, max_macs,
            max_latency_ms, revision.

    Returns:
        What `export.json` holds.

    Raises:
        ValueError: an unknown format, weights it cannot have, a size the bundle does not have.
        ImportError: the format's library is missing; the message says what to install.
        RuntimeError: the exported model's logits are not the bundle's; nothing was written.
    """
    check_empty(out)
    _check_words(to, weights, tolerance)
    for package in FORMATS[to].packages:
        require(package)
    hub = {"revision": size["revision"]} if size.get("revision") else {}
    model = _plain(bundle, size) if is_plain(bundle, **hub) else _sized(bundle, size, hub)
    if to == "timm" and model.config.model_type not in TIMM_NAMES:
        raise ValueError(
            f"`to` timm: {bundle} is a {model.config.model_type}, which is not written for timm; export to another "
            "format."
        )
    head = hasattr(model, "classifier")
    processor = processor_or_none(bundle, **hub)
    pixels, any_shape = _takes(to, model, seen_size(model.config, processor))
    if to == "timm":
        check_patches(bundle, model, pixels)
    if to not in UNTRACED:
        _check_made(bundle, processor, pixels)
    pictures, told = (None, "random images")
    if data is not None:
        pictures, told = _pictures(bundle, processor, data, None if any_shape else pixels)
    limit = TOLERANCES[weights] if tolerance is None else tolerance
    tokens = not head or to in UNTRACED  # of a classifier's graph come logits alone
    readout = read_readout(bundle, **hub) if tokens else None
    if not head and readout is None and is_turned(model.config.to_dict()):
        logger.warning(
            f"{bundle} lacks {READOUT_FILE}: what is exported gives tokens in channels that nothing brings back into "
            "its source's. `lingene materialise` keeps that file."
        )
    with complete_or_absent(out) as folder:
        found = FORMATS[to].write(model, bundle, folder, hub, pixels, weights)
        write_readout(folder, readout, model)
        report = {"bundle": public_name(bundle), "format": to, "weights": weights, "size": _described(model)}
        report |= {"params": count_parameters(model), "macs": count_macs(model.config, head, pixels)}
        report["id2label"] = {str(index): name for index, name in model.config.id2label.items()} if head else {}
        report |= {"family": model.config.model_type, **found.get("facts", {})}
        report |= _differences(model, found["loaded"], limit, any_shape, pictures, pixels)
        report |= {"checked_on": told, "compared": "logits" if head else "tokens"}
        if not report["relative_difference"] <= limit:
            raise RuntimeError(
                f"The exported {report['compared']} differ from the bundle's by up to "
                f"{report['largest_difference']:.3g}, {report['relative_difference']:.2g} of the largest one, and the "
                f"tolerance is {limit:g}; nothing was written."
            )
        write_json(folder / EXPORT_FILE, report)
    return report


def _sized(bundle: str | os.PathLike, size: dict, hub: dict) -> PreTrainedModel:
    """One size of a bundle."""
    config = read_config(bundle, **hub)
    head = Bundle(bundle, config, hub).has_head
    with quiet_loading():
        return model_class(config, head).from_pretrained(bundle, dtype=torch.float32, **size).eval()


def _plain(name: str | os.PathLike, asked: dict) -> PreTrainedModel:
    """A model that is no bundle, as it is: a classifier or an encoder.

    Raises:
        ValueError: a size is asked of it, or its files lack a tensor.
    """
    sizes = sorted(asked.keys() - {"revision"})
    if sizes:
        raise ValueError(f"`{sizes[0]}` chooses a size of a bundle, and {name} is a model by itself; leave it out.")
    config = AutoConfig.from_pretrained(name, **asked)
    return load_model(name, config, has_classifier(name, config), dtype=torch.float32, **asked)


def _check_words(to: str, weights: str, tolerance: float | None) -> None:
    if to not in FORMATS:
        raise ValueError(f"`to` must be one of {', '.join(FORMATS)}, got {to!r}.")
    if weights not in WEIGHTS:
        raise ValueError(f"`weights` must be one of {', '.join(WEIGHTS)}, got {weights!r}.")
    if weights not in FORMATS[to].weights:
        able = ", ".join(name for name, row in FORMATS.items() if weights in row.weights)
        raise ValueError(f"`weights` {weights} is for {able}; {to} files hold {' or '.join(FORMATS[to].weights)}.")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"`tolerance` must be a positive number, got {tolerance!r}.")


def _described(model: PreTrainedModel) -> dict[str, Any]:
    size = getattr(model, "source_size", None)
    if size is None:
        return {"depth": layers_of(model.config)}
    return {"depth": size.depth, "width_ratio": str(size.width_ratio), "num_components": size.num_components}


def _takes(to: str, model: PreTrainedModel, seen: tuple[int, int]) -> tuple[tuple[int, int], bool]:
    """(height, width) in pixels of the images that a file in a format takes, and whether it takes others, too.

    Args:
        seen: of the images that the model gets, as `seen_size` gives it.
    """
    family = family_of(model)
    resized_alike = family.antialias or family.rotates  # timm resizes tables of positions by averages always
    if to == "timm" and family.traces_any_size and not resized_alike:
        return height_and_width(model.config), False
    return seen, family.traces_any_size and to != "executorch"


def _check_made(bundle: str | os.PathLike, processor: Any, size: tuple[int, int]) -> None:
    """Refuse preprocessing that makes images of another size than the one that a graph takes."""
    said = {} if processor is None else processor.to_dict()
    made = made_size(said)
    if made not in (None, size):
        raise ValueError(
            f"`bundle` {bundle}: its preprocessing makes images of {made[0]}x{made[1]}, and its model takes "
            f"{size[0]}x{size[1]} alone; set `{size_field(said)}` in its {IMAGE_PROCESSOR_NAME} to that."
        )


def _pictures(
    bundle: str | os.PathLike, processor: Any, data: str, size: tuple[int, int] | None
) -> tuple[list[torch.Tensor], str]:
    """Batches of some pictures as the bundle's preprocessing makes them, and what they are.

    Args:
        size: (height, width) in pixels that they have to have; None is any.
    """
    names = load_pictures(data, "test", others=True)
    if processor is None:
        raise ValueError(f"`data` needs the preprocessing of {bundle}, and beside it is no {IMAGE_PROCESSOR_NAME}.")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:CHECK_PICTURES].tolist()
    found = [batch["pixel_values"].float() for batch in batches(picked(names, order), processor, CHECK_BATCH)]
    made = tuple(found[0].shape[-2:])
    if size not in (None, made):
        raise ValueError(f"`data`: the preprocessing of {bundle} makes images of {made}, and the model takes {size}.")
    return found, f"random images, {len(order)} of {names.name} ({names.split})"


@torch.no_grad()
def _differences(
    model: PreTrainedModel,
    loaded: Callable[[torch.Tensor], torch.Tensor],
    limit: float,
    any_shape: bool,
    pictures: list[torch.Tensor] | None = None,
    size: tuple[int, int] | None = None,
) -> dict:
    """The largest difference over batches of one and of three random images, also of other sizes, if it takes any; and
    over pictures, of which with a classifier of classes the share that keeps its class.

    Args:
        size: (height, width) in pixels of the first; default what the model's configuration says.
    """
    size = size or height_and_width(model.config)
    shapes = [(1, size), (3, size), *((2, of_patches(model, each)) for each in (SMALL, WIDE) if any_shape)]
    differences, sizes, same = [], [], []
    for values in (*(random_images(model, *shape) for shape in shapes), *(pictures or ())):
        expected, found = Outputs(model)(values), loaded(values)
        differences.append((found - expected).abs().max())
        sizes.append(expected.abs().max())
        same.append((found.argmax(-1) == expected.argmax(-1)).double())
    agreement = {"agreement": float(torch.cat(same[len(shapes) :]).mean())} if pictures else {}
    agreement = agreement if names_classes(model.config, hasattr(model, "classifier")) else {}
    largest, scale = float(torch.stack(differences).max()), float(torch.stack(sizes).max())  # of nan it is nan
    relative = largest / scale if scale else largest  # a head of zeros
    return {"largest_difference": largest, "relative_difference": relative, "tolerance": limit, **agreement}


def _transformers(
    model: PreTrainedModel, bundle: str | os.PathLike, folder: Path, hub: dict, size: tuple[int, int], weights: str
) -> dict:
    folder.rmdir()
    publish_model(model, bundle, folder, **hub)
    family = family_of(model)
    options = {} if hasattr(model, "classifier") else dict(family.options)
    with quiet_loading():
        again = type(model).from_pretrained(folder, dtype=torch.float32, **options).eval()
    auto = "AutoModelForImageClassification" if hasattr(model, "classifier") else type(model).__name__
    trusted = {"trust_remote_code": True} if model.config.model_type in PRUNED_TYPES else {}
    asked = "".join(f", {word}={value!r}" for word, value in {**options, **trusted}.items())
    facts = {"load": f"import transformers; model = transformers.{auto}.from_pretrained('FOLDER'{asked})"}
    return {"loaded": Outputs(again), "facts": facts}


def _onnx(
    model: PreTrainedModel, bundle: str | os.PathLike, folder: Path, hub: dict, size: tuple[int, int], weights: str
) -> dict:
    runtime = require("onnxruntime")
    path = folder / ONNX_FILE
    name = output_name(model)
    example, dynamic = example_images(model, size)
    with any_size(model):
        torch.onnx.export(
            Outputs(model).eval(),
            (example,),
            str(path),
            input_names=["pixel_values"],
            output_names=[name],
            dynamic_shapes={"pixel_values": dynamic},
            dynamo=True,
            external_data=4 * sum(parameter.numel() for parameter in model.parameters()) > ONNX_LIMIT,
            verbose=False,
        )
    if weights != "float32":
        make_smaller(path, weights)
    processor = keep_processor(bundle, folder, hub)
    say_in_file(path, devices.preprocessing(model, processor, None))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def loaded(values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"pixel_values": values.numpy().astype(numpy.float32)})[0])

    facts = {"file": ONNX_FILE, "output": name, "prefix_tokens": prefix_tokens(model.config) or 1}
    facts["load"] = f"import onnxruntime; model = onnxruntime.InferenceSession('FOLDER/{ONNX_FILE}')"
    return {"loaded": loaded, "facts": facts}


def _program(
    model: PreTrainedModel, bundle: str | os.PathLike, folder: Path, hub: dict, size: tuple[int, int], weights: str
) -> dict:
    program = traced(model, size)
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # lines of this machine's files
    content = io.BytesIO()  # where a disk is full, torch's own writer of files ends the process
    torch.export.save(program, content)
    (folder / PROGRAM_FILE).write_bytes(content.getbuffer())
    keep_processor(bundle, folder, hub)
    facts = {
        "file": PROGRAM_FILE,
        "load": f"import torch; model = torch.export.load('FOLDER/{PROGRAM_FILE}').module()",
    }
    loaded = torch.export.load(folder / PROGRAM_FILE).module()
    return {"loaded": loaded, "facts": facts}


def _device(
    write: Callable,
    model: PreTrainedModel,
    bundle: str | os.PathLike,
    folder: Path,
    hub: dict,
    size: tuple[int, int],
    weights: str,
) -> dict:
    """A format of `devices.py`; where it runs there is no transformers, so its preprocessing is told in full."""
    found = write(model, folder, size, weights)
    processor = keep_processor(bundle, folder, hub)
    write_json(folder / PREPROCESSING_FILE, devices.preprocessing(model, processor, found["batch"]))
    return found


def load_code(report: dict, folder: str | Path) -> str:
    """Python, whole by itself, that loads an export from its folder as `model`."""
    return report["load"].replace("FOLDER", str(folder).replace("\\", "\\\\").replace("'", "\\'"))


@dataclass(frozen=True)
class Format:
    """One row.

    Args:
        write: (model, bundle, folder, hub, size, weights) -> the files' own loader as images -> logits (`loaded`), and
            what `export.json` says beside (`facts`): `load` is code that makes `model` of FOLDER. `size` is (height,
            width) of the images that the files take, or may take.
        packages: that it needs.
        weights: types that it stores.
    """

    write: Callable[..., dict]
    packages: tuple[str, ...] = ()
    weights: tuple[str, ...] = ("float32",)


FORMATS = {
    "transformers": Format(_transformers),
    "timm": Format(write_timm, ("timm",)),
    "onnx": Format(_onnx, ("onnx", "onnxscript", "onnxruntime"), WEIGHTS),
    "program": Format(_program),
    "executorch": Format(functools.partial(_device, devices.executorch), ("executorch",)),
    "openvino": Format(functools.partial(_device, devices.openvino), ("openvino",), ("float32", "float16")),
}
