"""Networks that are pruned, each made once; read only."""

import pytest
from prune_runs import small_vit


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    return small_vit(tmp_path_factory.mktemp("vit"))
