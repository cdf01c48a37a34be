"""Fixtures of all tests; the plain functions behind them are in helpers.py.

torch and what needs it are imported where they are used: the process that hands tests to others waits for this file.
"""

import functools
import gc
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from skips import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401 - hooks


os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other make tiny models a hundred times slower where tests run in parallel."""
    import torch

    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def within_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the Hub there, wherever tests run; what they say where it is not is for test_found.py."""
    from modeling_lingene import found

    monkeypatch.setattr(found, "get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))


@pytest.fixture(scope="session", autouse=True)
def shipped() -> Iterator[dict[tuple[ModuleType, str], float]]:
    """How people get it timed and drawn; here hundreds of sizes are timed once, and drawn small."""
    from modeling_lingene.measuring import drawing, metrics

    quick = {(metrics, "TIMED_SECONDS"): 1e-3, (metrics, "TIMED_PASSES"): 1, (drawing, "DPI"): 40}
    shipped = {place: getattr(*place) for place in quick}
    with pytest.MonkeyPatch.context() as patch:
        for place, value in quick.items():
            patch.setattr(*place, value)
        yield shipped


@pytest.fixture
def as_shipped(shipped: dict[tuple[ModuleType, str], float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed and drawn as people get it."""
    for place, value in shipped.items():
        monkeypatch.setattr(*place, value)


@pytest.fixture(scope="session", autouse=True)
def one_registry() -> Iterator[None]:
    """torch makes the list of all ONNX functions anew for every export, in half a second."""
    if not find_spec("onnxscript"):
        yield
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved bundle of `tiny_model()`; read only, a test that writes copies it."""
    import helpers

    return helpers.bundle(tmp_path_factory.mktemp("session") / "bundle")


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may change, without measured sizes."""
    return Path(shutil.copytree(bundle, tmp_path / "tiny"))


@pytest.fixture
def measured(folder: Path) -> Path:
    """The same with measured sizes, `helpers.ROWS`."""
    import helpers
    from modeling_lingene import folders

    folders.write_sizes(folder, helpers.ROWS)
    return folder


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """Accelerate collects garbage after every phase: 0.3 s for what the imports hold, a thousandth of it without."""
    gc.collect()
    gc.freeze()
