"""A trained ViT as the converter sees it: tensors by the bundle's names, whatever library they were trained in."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PretrainedConfig

from ..configuration_base_lingene import BundleConfig
from ..families_lingene import image_token
from ..loading_lingene import stock_model
from ..readout import Readout


@dataclass(frozen=True)
class Source:
    """One checkpoint, read but not yet converted.

    Args:
        name: for messages.
        config: of a bundle with as many components as layers, basis not yet chosen.
        head: whether it has a classifier.
        outside: the tensors outside the blocks, keys as in a bundle.
        block: (block tensor such as `attention.query.weight`, layer from 0) -> that tensor, LayerScale folded in.
        left_out: names of tensors that a bundle has no place for -> why that changes nothing.
        reference: builds the model in its own library; (b, channels, h, w) -> logits (b, classes), or without a head
            the normed class token (b, d).
        processor: a transformers image processor, or None where the checkpoint brings none.
        readout: where channels were turned: matrix (d, d) and bias (d,) that make of a normed token what the
            checkpoint gives.
        turned_before: the same of the checkpoint's own channels, where they are not those of what it was made of.
    """

    name: str
    config: BundleConfig
    head: bool
    outside: Mapping[str, torch.Tensor]
    block: Callable[[str, int], torch.Tensor]
    left_out: Mapping[str, str]
    reference: Callable[[], Callable[[torch.Tensor], torch.Tensor]]
    processor: Any = None
    readout: Readout | None = None
    turned_before: Readout | None = None

    @property
    def depth(self) -> int | str:
        """Layers of the stack that components stand for, or of each as in "2-6"."""
        return self.config.reference_depth

    @property
    def names_classes(self) -> bool:
        """See `names_classes`."""
        return names_classes(self.config, self.head)

    def layers(self, name: str) -> list[torch.Tensor]:
        """One block tensor of every layer."""
        return [self.block(name, layer) for layer in range(self.config.stack_depth(self.depth, name))]

    def stock(self) -> nn.Module:
        """The same function as a stock model of its family in float32, for what has to look inside."""
        layers = {name: self.layers(name) for name in self.config.component_shapes()}
        return stock_model(
            dict(self.outside), layers, self.config.stock_config(self.config.size()), self.head, dtype=torch.float32
        ).eval()


NO_CLASSES = ("regression", "multi_label_classification")


def names_classes(config: PretrainedConfig, head: bool) -> bool:
    """Whether a model's answers are scores of classes, whose probabilities tell how near two of them are: there is a
    classifier, not of a single output, whose probability is always 1, and neither for regression nor for several
    labels at once, whose probabilities are each their own.

    Args:
        config: of a bundle, or a family's own.
    """
    return head and config.num_labels > 1 and config.problem_type not in NO_CLASSES


def changed(config: BundleConfig, **fields) -> BundleConfig:
    """The same configuration with other fields."""
    kept = config.to_dict() | {"id2label": config.id2label, "label2id": config.label2id}
    return type(config)(**{**kept, **fields})


def class_outputs(model: nn.Module, pixel_values: torch.Tensor, **size) -> torch.Tensor:
    """Logits of a transformers model, or without a classifier its `image_token`, float32."""
    output = model(pixel_values=pixel_values, **size)
    return (output.logits if hasattr(output, "logits") else image_token(model.config, output)).float()


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a file, mapped rather than copied: safetensors, or a state dict that torch saved.

    Dictionaries within dictionaries become names with dots; what is no tensor (epochs, options) is dropped.

    Raises:
        ValueError: it is not there, damaged, or holds more than tensors and plain values.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"`weights` {path} must be a file with a state dict: safetensors, or saved by torch.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(_flattened(torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path)), ""))
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"`weights` {path} cannot be read: {str(error).splitlines()[0]}") from None
    except Exception as error:  # pickle's own, which has no base class but Exception
        raise ValueError(
            f"`weights` {path} holds more than tensors ({type(error).__name__}), and reading it would run its code; "
            "save its state dict alone."
        ) from None


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"  # only these can be mapped


def _flattened(value: Any, prefix: str):
    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flattened(part, f"{prefix}.{key}" if prefix else str(key))


def check_tensors(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Every tensor is there, of the shape expected, and finite.

    Raises:
        ValueError: names what is missing or wrong.
    """
    missing = sorted(shapes.keys() - tensors.keys())
    if missing:
        raise ValueError(f"{name} lacks {shown(missing)}; it is not a whole checkpoint.")
    for key, shape in shapes.items():
        if tuple(tensors[key].shape) != tuple(shape):
            raise ValueError(
                f"`{key}` of {name} has shape {tuple(tensors[key].shape)}, and its configuration says {tuple(shape)}."
            )
        if not torch.isfinite(tensors[key].sum(dtype=torch.float64)):
            raise ValueError(f"`{key}` of {name} holds values that are not finite.")


def shown(names: list[str], count: int = 5) -> str:
    """A few names and how many more."""
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(f"`{name}`" for name in names[:count]) + rest
