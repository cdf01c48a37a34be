"""An exported ONNX folder measured on pictures, in onnxruntime on the processor: what int8 costs, and what it saves.

lingene export BUNDLE --to onnx --weights int8 --out model
lingene evaluate model --data DATA
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..budget_lingene import device_name
from ..extras import require
from ..folders import read_processor
from ..found import EXPORT_FILE
from ..images.batches import batches, made_size
from ..images.data import LabelledImages
from ..progress import progress_bar
from ..reading_lingene import OBJECT, TEXT, check_fields, integer, map_of, number, one_of, read_json
from .metrics import accuracy_fields, count_right, latency_ms, timing, timing_run
from .yardsticks import Sets, check_reference, check_sets, default_metrics, yardstick


AGAIN = "export it again"
_COUNT = integer(1, 1 << 53)
FIELDS = {
    "format": TEXT,
    **dict.fromkeys(("weights", "file"), TEXT),
    "output": one_of("logits", "last_hidden_state", "tokens"),
    "size": OBJECT,
    "params": _COUNT,
    "macs": number(0, 1e18),
    "prefix_tokens": integer(1, 1 << 20),
    "id2label": map_of(TEXT),
}


class OnnxModel(nn.Module):
    """An ONNX file that is called, and answers, as a model of transformers.

    Args:
        file: with the input `pixel_values`, (b, C, h, w) float32.
        output: logits, last_hidden_state, or tokens where those of the stock model are not normed or not all.
        prefix_tokens: before those of the patches.
    """

    def __init__(self, file: Path, output: str, prefix_tokens: int = 1):
        super().__init__()
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.output, self.config = output, SimpleNamespace(num_register_tokens=prefix_tokens - 1)
        self.place = nn.Parameter(torch.zeros(()))  # where it is, and in what it is asked: on the CPU, in float32

    @property
    def base_model(self) -> "OnnxModel":
        """Itself: a file of an encoder has no head to leave out."""
        return self

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        (found,) = self.session.run([self.output], {"pixel_values": pixel_values.numpy()})
        name = "logits" if self.output == "logits" else "last_hidden_state"
        return SimpleNamespace(**{name: torch.from_numpy(found)})


def exported_format(name: str | Path) -> str | None:
    """The format of an exported folder; None where there is none.

    Raises:
        ValueError: its `export.json` is damaged.
    """
    path = Path(name) / EXPORT_FILE
    if not path.is_file():
        return None
    told = read_json(path, str(name), AGAIN)
    check_fields(told, {"format": TEXT}, f"`{EXPORT_FILE}` of {name}", ("format",), AGAIN)
    return told["format"]


def exported_head(folder: str | Path) -> bool:
    """Whether an ONNX folder has a classifier."""
    return _told(Path(folder))["output"] == "logits"


def _told(folder: Path) -> dict:
    """What `export.json` says."""
    told = read_json(folder / EXPORT_FILE, str(folder), AGAIN)
    check_fields(told, FIELDS, f"`{EXPORT_FILE}` of {folder}", FIELDS, AGAIN)
    return told


def evaluate_exported(
    folder: str | Path,
    images: LabelledImages,
    batch_size: int = 64,
    device: str | None = None,
    *,
    metric: str | None = None,
    train: LabelledImages | None = None,
    reference: str | None = None,
    relabel: bool = False,
) -> dict:
    """One row, as `evaluate_model` gives it, for an ONNX folder, with its own preprocessing and weights as stored.

    Args:
        as for `evaluate_model`; the device is the processor.

    Raises:
        ValueError: as `evaluate_model`; the folder is damaged, or of before its costs stood in it.
        ImportError: onnxruntime is missing; the message says what to install.
    """
    folder = Path(folder)
    told = _told(folder)
    if device not in (None, "cpu"):
        raise ValueError(f"`device` {device}: ONNX folders are measured on the processor; leave it out.")
    head = told["output"] == "logits"
    sets = Sets(default_metrics(metric, head, train), images, train)
    check_sets(sets, folder, head)
    needing_tokens = [name for name in sets.metrics if name != "accuracy"]
    if head and needing_tokens:
        raise ValueError(
            f"`metric` {needing_tokens[0]} compares tokens, and {folder} is an exported classifier, which gives "
            "logits alone: use accuracy, or measure the bundle that it was exported from."
        )
    check_reference(reference, sets.metrics)
    if "accuracy" in sets.metrics:
        sets = sets.labelled_for(told["id2label"], f"`model` {folder}", relabel)
    try:
        processor = read_processor(folder)
    except FileNotFoundError:
        raise ValueError(f"`model` {folder} has no preprocessor_config.json; {AGAIN} with it in the bundle.") from None
    model = OnnxModel(folder / told["file"], told["output"], told["prefix_tokens"]).eval()
    _check_size(folder, model, processor)
    return {
        "depth": told["size"]["depth"],
        "width_ratio": told["size"].get("width_ratio", "1"),
        "num_components": told["size"].get("num_components"),
        "params": told["params"],
        "stored_params": told["params"],
        "macs": told["macs"],
        "file_bytes": sum(path.stat().st_size for path in folder.glob(f"{told['file']}*")),
        "weights": told["weights"],
        **_measures(folder, model, sets, processor, batch_size, reference),
        "split": images.split,
        "dataset": images.name,
        **_timing(model, sets.images, processor, told["weights"]),
    }


def _check_size(folder: Path, model: OnnxModel, processor: Any) -> None:
    """Refuse preprocessing that makes images of another size than a file takes."""
    taken, made = model.session.get_inputs()[0].shape[2:], made_size(processor.to_dict())
    if made is not None and all(isinstance(side, int) for side in taken) and tuple(taken) != made:  # free ones: names
        raise ValueError(
            f"`model` {folder} takes images of {taken[0]}x{taken[1]}, and its preprocessing makes "
            f"{made[0]}x{made[1]}; {AGAIN}."
        )


def _measures(
    folder: Path, model: OnnxModel, sets: Sets, processor: Any, batch_size: int, reference: str | None
) -> dict:
    if sets.metrics == ("accuracy",):
        right, images = count_right(model, batches(sets.images, processor, batch_size), progress=True).tolist()
        return accuracy_fields(right / images, images)
    width = model.session.get_outputs()[0].shape[-1]
    stick = yardstick(folder, width, sets, processor, batch_size, reference)
    with progress_bar(total=stick.passes, desc="measuring", unit="image") as bar:
        return stick.measure(model, bar.update)


def _timing(model: OnnxModel, images: LabelledImages, processor: Any, weights: str) -> dict:
    """Of one image, as the preprocessing makes it."""
    runtime, run = require("onnxruntime"), timing_run(weights)
    one = next(iter(batches(images, processor, 1).some(range(len(images)))))["pixel_values"]
    run["timed_with"] = f"onnxruntime {runtime.__version__}, {run['timed_with'].partition(', ')[2]}"
    return timing(latency_ms(model, one), f"{device_name()}, ONNX {weights}", run)
