"""Fixtures of all tests; the plain functions behind them are in helpers.py."""

from pathlib import Path

import pytest
import torch

import helpers


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other make tiny models a hundred times slower where tests run in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved bundle of `tiny_model()`; read only, a test that writes copies it."""
    return helpers.bundle(tmp_path_factory.mktemp("session") / "bundle")
