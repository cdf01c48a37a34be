"""Optional packages, imported where they are needed; who lacks one is told which extra brings it."""

import importlib
from typing import Any


EXTRAS = dict.fromkeys(("matplotlib", "pytorch_grad_cam"), "analysis")
EXTRAS |= dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export")
EXTRAS |= {name: name for name in ("executorch", "openvino")}
EXTRAS |= {"gradio": "app"}


def require(module: str, package: str | None = None) -> Any:
    """Imports an optional package, or says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = EXTRAS.get(module.partition(".")[0], "train")
        raise ImportError(f'{package or module} is needed here: pip install "modeling_lingene[{extra}]"') from error
