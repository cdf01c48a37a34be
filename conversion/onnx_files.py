"""ONNX files once they are written: what they say of themselves and of their builder, and smaller weights."""

import json
from pathlib import Path

import numpy

from ..extras import require


# Without VNNI, AVX2 and AVX-512 add two products of unsigned activations and signed weights in 16 bits, and what does
# not fit is cut off (onnxruntime's "Data type selection"). 2 x 255 x 64 fits: such weights give the same everywhere.
WEIGHT_LIMIT = 64


def say_in_file(path: Path, told: dict) -> None:
    """Leave out of an ONNX file what the exporter says of the builder's machine and code, and say how to use it.

    Every node comes with the lines of Python that it was traced from, their folders and user names. In their place
    stand `class_names` and `preprocessing`, as JSON, where runtimes show them.

    Args:
        told: as `devices.preprocessing` gives it.
    """
    onnx = require("onnx")
    held = onnx.load(path, load_external_data=False)
    graph = held.graph
    for part in (held, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    steps = {name: value for name, value in told.items() if name != "class_names"}
    named = {"class_names": told["class_names"], "preprocessing": steps}
    onnx.helper.set_model_props(held, {name: json.dumps(value) for name, value in named.items()})
    onnx.save(held, path)


def make_smaller(path: Path, weights: str) -> None:
    """An ONNX file's weights in float16 (inputs and outputs stay float32), or those of its linear maps in int8.

    int8 is per channel and of 7 bits, and the convolution on pixels stays float32: with all 8 bits, and with integer
    convolutions, which not every onnxruntime has, the answers would depend on where the file is used.

    Raises:
        RuntimeError: integer weights whose products not every processor can add.
    """
    onnx = require("onnx")
    whole = onnx.load(path)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # a large model's float32 weights, loaded by now
    if weights == "float16":
        half = require("onnxruntime.transformers.float16", "onnxruntime")
        onnx.save(half.convert_float_to_float16(whole, keep_io_types=True), path)
    else:
        quantization = require("onnxruntime.quantization", "onnxruntime")
        del whole.graph.value_info[:]  # of the exporter; onnx infers others, and refuses to choose
        kind = {"weight_type": quantization.QuantType.QInt8, "reduce_range": True, "per_channel": True}
        quantization.quantize_dynamic(whole, path, op_types_to_quantize=["MatMul"], **kind)
        _check_products(path)


def _check_products(path: Path) -> None:
    """Whether an ONNX file's integer products are the same on every processor; a run shows only those of this one."""
    onnx = require("onnx")
    for tensor in onnx.load(path).graph.initializer:
        if tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
            largest = numpy.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max()
            if largest > WEIGHT_LIMIT:
                raise RuntimeError(
                    f"The integer weights {tensor.name} go up to {largest}, and above {WEIGHT_LIMIT} the answers "
                    "depend on the processor; nothing was written."
                )
