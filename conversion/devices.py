"""Formats of runtimes on devices, each verified by its own runtime on this CPU.

    lingene export BUNDLE --to executorch --depth 4 --out model    # model/model.pte, XNNPACK: Android, iOS, Linux
    lingene export BUNDLE --to openvino --out model                # model/model.xml and model.bin: Intel's processors

`preprocessing.json` beside them says how a picture becomes `pixel_values`, for programs without transformers.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..extras import require
from ..measuring.metrics import seen_size
from .any_size import one_size
from .graphs import Outputs, output_name, random_images, traced


PTE_FILE, XML_FILE, BIN_FILE = "model.pte", "model.xml", "model.bin"
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # PIL's numbers
PRODUCTS = {"mm", "bmm", "addmm", "linear", "convolution"}
CHANNELS = {1: "L", 3: "RGB"}
# Processors with AMX or AVX512_BF16 would compute in bfloat16, which is further from the bundle than its tolerance.
OPENVINO_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}


def executorch(model: PreTrainedModel, folder: Path, size: tuple[int, int], weights: str) -> dict:
    """A .pte for one image at a time, of one size, so that all memory is planned in advance.

    Args:
        size: (height, width) in pixels.

    Raises:
        RuntimeError: XNNPACK did not take the linear maps, which other operators compute many times slower.
    """
    exir = require("executorch.exir", "executorch")
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    runtime = require("executorch.runtime", "executorch").Runtime.get()
    with _plain_attention(model), one_size(model, size):
        program = torch.export.export(Outputs(model).eval(), (random_images(model, 1, size),))
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    program = lowered.to_executorch()
    outside = _operators(program.exported_program().graph)
    left = sorted(PRODUCTS & outside.keys())
    if left:
        raise RuntimeError(f"XNNPACK did not take {', '.join(left)}; nothing was written.")
    (folder / PTE_FILE).write_bytes(program.buffer)
    method = runtime.load_program(folder / PTE_FILE).load_method("forward")

    def loaded(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([method.execute([image.contiguous()])[0].clone() for image in values.split(1)])

    facts = {
        "file": PTE_FILE,
        "output": output_name(model),
        "backend": "XNNPACK",
        "outside_backend": outside,
        "load": "import executorch.runtime; model = executorch.runtime.Runtime.get().load_program("
        f"'FOLDER/{PTE_FILE}').load_method('forward')",
    }
    return {"loaded": loaded, "batch": 1, "facts": facts}


def openvino(model: PreTrainedModel, folder: Path, size: tuple[int, int], weights: str) -> dict:
    """.xml and .bin, of every batch, and where the family interpolates of images of any size; computes in float32.

    Args:
        size: (height, width) in pixels, where it takes one alone.
    """
    library = require("openvino")
    graph = library.convert_model(traced(model, size))
    graph.inputs[0].set_names({"pixel_values"})
    graph.outputs[0].set_names({output_name(model)})
    half = weights == "float16"
    _make_room(model, folder / BIN_FILE, 2 if half else 4)
    library.save_model(graph, folder / XML_FILE, compress_to_fp16=half)
    compiled = library.compile_model(folder / XML_FILE, "CPU", OPENVINO_PRECISION)

    def loaded(values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(compiled({"pixel_values": values.numpy()})[0].copy())

    facts = {
        "file": XML_FILE,
        "output": output_name(model),
        "load": f"import openvino; model = openvino.compile_model('FOLDER/{XML_FILE}', 'CPU', {OPENVINO_PRECISION})",
    }
    return {"loaded": loaded, "batch": None, "facts": facts}


def _make_room(model: PreTrainedModel, path: Path, width: int) -> None:
    """Fill the file of the weights first, `width` bytes for each: where there is no room, OpenVINO says no reason."""
    path.write_bytes(bytes(width * sum(parameter.numel() for parameter in model.parameters())))


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, attention is two products and a softmax, which XNNPACK has; torch's fused one guards against rows that
    are masked as a whole, by operators that it has not.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _operators(graph: torch.fx.Graph) -> dict[str, int]:
    """How often each operator is called by name, of those that compute on tensors and were not delegated."""
    targets = (str(node.target) for node in graph.nodes if node.op == "call_function")
    return dict(Counter(name.split(".")[1] for name in targets if name.startswith("aten.")))


def preprocessing(model: PreTrainedModel, processor: Any, batch: int | None) -> dict:
    """How a picture becomes the input, in the order of the keys, and what the outputs are called.

    The shape of the input is of the pictures that the steps make, where the family takes them.

    Args:
        processor: of transformers; None where the bundle has none, and then nothing is said of pixels.
        batch: how many images the file takes at once; None is any number.

    Returns:
        `resize` (a size in pixels, or the length of the shortest edge, which keeps proportions), `center_crop`,
        `rescale` (a factor), `mean` and `std` per channel: (x * rescale - mean) / std. A step that is left out is
        null.
    """
    channels, (height, width) = model.config.num_channels, seen_size(model.config, processor)
    told: dict[str, Any] = {
        "input": {"name": "pixel_values", "shape": [batch, channels, height, width], "dtype": "float32"},
        "layout": "batch, channels, height, width",
        "channel_order": CHANNELS.get(channels),
    }
    if processor is not None:
        told |= _steps(processor)
    names = model.config.id2label if hasattr(model, "classifier") else {}
    return told | {"output": output_name(model), "class_names": [names[index] for index in sorted(names)]}


def _steps(processor: Any) -> dict[str, Any]:
    def given(step: str, value: Any) -> Any:
        return value if getattr(processor, f"do_{step}", None) else None

    def sides(name: str) -> dict[str, int]:
        return {side: pixels for side, pixels in dict(getattr(processor, name, None) or {}).items() if pixels}

    resize = sides("size")
    if resize:
        resize |= {"interpolation": RESAMPLING[int(processor.resample)]}
    return {
        "resize": given("resize", resize),
        "center_crop": given("center_crop", sides("crop_size")),
        "rescale": given("rescale", processor.rescale_factor),
        "mean": given("normalize", list(processor.image_mean)),
        "std": given("normalize", list(processor.image_std)),
    }
