"""Bundles that tests damage, and what must hold of every refusal (DESIGN 6)."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


NAN, INF = float("nan"), float("inf")
INDEX, SHARED = "model.safetensors.index.json", "shared.safetensors"


def edit(path: Path, change: Callable[[dict], None]):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(load: Callable, folder: Path, *fragments: str, **keywords):
    """The ValueError has every fragment, and neither the bundle nor its neighbourhood has changed."""
    before = contents(folder.parent)
    with pytest.raises(ValueError) as caught:
        load(folder, **keywords)
    missing = [fragment for fragment in fragments if fragment not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert contents(folder.parent) == before


def replace_tensor(path: Path, key: str, change: Callable[[torch.Tensor], torch.Tensor]):
    tensors = load_file(path)
    tensors[key] = change(tensors[key]).contiguous()
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
