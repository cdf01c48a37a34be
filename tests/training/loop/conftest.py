"""Runs that went through, which interrupted ones must equal."""

import pytest
import torch
from looping import train_bundle


@pytest.fixture(scope="module")
def whole_bundle() -> tuple[dict[str, torch.Tensor], int]:
    torch.set_num_threads(1)
    return train_bundle(None)
