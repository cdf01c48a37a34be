"""Bundles that are exported, and their exports, each made once."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from exports import FULL, SHAPE, made, needed

from helpers import read
from modeling_lingene import LinGeneModel
from modeling_lingene.conversion.export import export


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs that were traced, by the hash of what they are of."""
    return tmp_path_factory.mktemp("traced")


@pytest.fixture(scope="module", autouse=True)
def one_trace(traces: Path) -> Iterator[None]:
    """Each model is traced once for all files of it: torch takes seconds, whatever is done with the graph."""
    trace = torch.onnx.export

    def traced(model, inputs, path, **given):
        if given["external_data"]:
            return trace(model, inputs, path, **given)
        state = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
        asked = f"{model.model.config.to_json_string()} {inputs[0].shape} {given}"
        graph = traces / hashlib.sha256(state + asked.encode()).hexdigest()
        if not graph.exists():
            trace(model, inputs, path, **given)
            shutil.copy(path, graph)
        shutil.copy(graph, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", traced)
        yield


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The bundle that most tests export; read only."""
    torch.set_num_threads(1)
    return made(tmp_path_factory.mktemp("origin") / "bundle", **SHAPE)


@pytest.fixture(scope="session")
def origin6(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same with the epsilon that timm's Vision Transformers have."""
    return made(tmp_path_factory.mktemp("origin6") / "bundle", layer_norm_eps=1e-6, **SHAPE)


@pytest.fixture(scope="session")
def headless(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A bundle without a classifier."""
    return made(tmp_path_factory.mktemp("headless") / "bundle", LinGeneModel, **SHAPE)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports once for all tests: (bundle, format, weights, *size) -> folder, read only."""
    parent = tmp_path_factory.mktemp("written")

    @functools.cache
    def write(bundle: Path, to: str, weights: str, *size) -> Path:
        out = parent / str(len(list(parent.iterdir())))
        report = export(bundle, out, to, weights=weights, **dict(size))
        assert read(out / "export.json") == json.loads(json.dumps(report))
        return out

    def asked(origin: SimpleNamespace, to: str, weights: str = "float32", size: dict = FULL) -> Path:
        needed(to)
        return write(origin.folder, to, weights, *size.items())

    return asked
