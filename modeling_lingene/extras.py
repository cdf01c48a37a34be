"""Optional packages, imported where they are needed; who lacks one is told which extra brings it."""

import importlib
from typing import Any


EXTRAS = dict.fromkeys(("matplotlib", "pytorch_grad_cam"), "analysis")
EXTRAS |= dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export")
EXTRAS |= {name: name for name in ("executorch", "openvino")}
EXTRAS |= {"gradio": "app"}
EXTRAS |= dict.fromkeys(("PIL", "datasets", "scipy", "sklearn", "tensorboard", "timm", "torchvision"), "train")
PACKAGES = {"PIL": "Pillow", "scipy": "scikit-learn", "sklearn": "scikit-learn"}  # that bring a module of another name


def lacking(error: ImportError) -> str | None:
    """Which extra brings the package that an import failed for; None where it is no optional one."""
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return _needed(PACKAGES.get(module, module), EXTRAS[module]) if module in EXTRAS else None


def _needed(package: str, extra: str) -> str:
    return f'{package} is needed here: pip install "modeling_lingene[{extra}]"'


def require(module: str, package: str | None = None) -> Any:
    """Imports an optional package, or says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(_needed(package or module, EXTRAS[module.partition(".")[0]])) from error
