"""Sizes and budgets that cannot be had: a ValueError that names the argument and the way out (DESIGN 6).

Each case goes through both ways in, `AutoModelForImageClassification` and the class, for they hand arguments over
differently; wherever the configuration and the index are enough to know, no file of weights is opened.

    pytest tests/loading/test_refused_sizes.py
"""

import json
import shutil
from pathlib import Path

import pytest
from refusing import INDEX, INF, NAN, edit, refused

import helpers


# -- sizes


COUNT = "an integer of at least 1"
SEEN = {"stored_params": 9, "split": "test", "dataset": "made"}  # what a row of sizes.json says beside the size
LEGAL = "1/4, 1/2, 3/4, 1"
SIZE_CASES = [
    ({"depth": 0}, "`depth`", COUNT, "got 0"),
    ({"depth": -1}, "`depth`", COUNT, "got -1"),
    ({"depth": 2.5}, "`depth`", COUNT, "got 2.5"),
    ({"depth": 6.0}, "`depth`", COUNT, "got 6.0"),
    ({"depth": "six"}, "`depth`", COUNT, "got 'six'"),
    ({"depth": True}, "`depth`", COUNT, "got True"),
    ({"num_hidden_layers": 0}, "`depth`", COUNT, "got 0"),
    ({"num_hidden_layers": "six"}, "`depth`", COUNT, "got 'six'"),
    ({"depth": 4, "num_hidden_layers": 4}, "`depth`", "`num_hidden_layers`", "one of them"),
    ({"depth": 4, "num_hidden_layers": 3}, "`depth`", "`num_hidden_layers`", "one of them"),
    ({"width_ratio": 0.3}, "`width_ratio`", "whole heads", LEGAL),
    ({"width_ratio": "1/3"}, "`width_ratio`", "whole heads", "1/3", LEGAL),
    ({"width_ratio": 0}, "`width_ratio`", LEGAL),
    ({"width_ratio": -1}, "`width_ratio`", LEGAL),
    ({"width_ratio": 1.5}, "`width_ratio`", LEGAL),
    ({"width_ratio": "a"}, "`width_ratio`", "fraction", "'a'"),
    ({"width_ratio": "1/0"}, "`width_ratio`", "fraction", "'1/0'"),
    ({"width_ratio": NAN}, "`width_ratio`", "number", "nan"),
    ({"width_ratio": INF}, "`width_ratio`", "number", "inf"),
    ({"width_ratio": True}, "`width_ratio`", "number", "True"),
    ({"width_ratio": [0.5]}, "`width_ratio`", "number", "[0.5]"),
    ({"width_ratio": 0.25}, "`width_ratio`", "1/4", "never trained", "1/2, 1", "allow_untrained=True"),
    ({"width_ratio": "3/4"}, "`width_ratio`", "3/4", "never trained", "1/2, 1", "allow_untrained=True"),
    ({"num_components": 0}, "`num_components`", COUNT, "got 0"),
    ({"num_components": 6}, "`num_components`", "6", "5 stored", "1 to 5"),
    ({"num_components": "4"}, "`num_components`", COUNT, "got '4'"),
    ({"num_components": 2.0}, "`num_components`", COUNT, "got 2.0"),
]


@pytest.mark.parametrize("case", SIZE_CASES, ids=lambda case: str(case[0]))
@pytest.mark.parametrize("constrained", [False, True])
def test_a_size_that_is_none_is_refused_before_weights_are_opened(load, bundle, opens, case, constrained):
    """Nothing is rounded, cut to fit or guessed: the user would measure another model than was asked for."""
    keywords, *fragments = case
    refused(load, bundle, *fragments, constrained=constrained, **keywords)
    assert opens == []


@pytest.mark.parametrize("constrained", [False, True])
def test_a_width_never_trained_is_accepted_on_request(load, bundle, constrained):
    """As an initialisation such a slice is worth something; the legal widths stay the only ones."""
    loaded = load(bundle, width_ratio="3/4", allow_untrained=True, constrained=constrained)
    assert loaded.config.hidden_size == 36
    refused(load, bundle, "`width_ratio`", LEGAL, width_ratio=0.3, allow_untrained=True, constrained=constrained)


def test_a_depth_above_the_reference_is_refused_where_layers_are_selected(load, tmp_path, opens):
    """There is no seventh of six layers to keep."""
    folder = helpers.bundle(tmp_path / "bundle", helpers.tiny_config(depth_map="select"))
    refused(load, folder, "`depth`", "7", "`reference_depth` 6", "1 to 6", depth=7)
    assert opens == []
    assert load(folder, depth=6).config.num_hidden_layers == 6


def test_a_keyword_that_nobody_knows_is_not_swallowed(bundle, load):
    """As stock loading: a setting that is of no effect would be thought to have one."""
    with pytest.raises(TypeError, match="unheard_of"):
        load(bundle, unheard_of=0.5)


# -- budgets


def write_sizes(folder: Path, weights_id: str | None = None):
    """Two measured sizes; of these very weights unless another `weights_id` is given."""
    known = json.loads((folder / INDEX).read_text())["metadata"]["weights_id"]
    sizes = [
        {"depth": 6, "width_ratio": "1", "num_components": 5, "params": 900, "macs": 90, "accuracy": 0.9, **SEEN},
        {"depth": 3, "width_ratio": "1/2", "num_components": 2, "params": 200, "macs": 20, "accuracy": 0.5, **SEEN},
    ]
    (folder / "sizes.json").write_text(json.dumps({"weights_id": weights_id or known, "sizes": sizes}))


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    stored = {"depth": None, "num_components": None, "reference_depth": 6, "reference_components": 5}
    folder = helpers.bundle(tmp_path_factory.mktemp("measured") / "bundle", helpers.tiny_config(**stored))
    write_sizes(folder)
    return folder


SMALLEST = ("depth 3", "width ratio 1/2", "2 components")
BUDGET_CASES = [
    ({"max_params": 199}, "`max_params`", "199", "no measured size in `sizes.json` fits", *SMALLEST, "200"),
    ({"max_macs": 19}, "`max_macs`", "19", "no measured size in `sizes.json` fits", *SMALLEST, "20"),
    (
        {"max_params": 900, "max_macs": 1},
        "`max_params`",
        "`max_macs`",
        "no measured size in `sizes.json` fits",
        *SMALLEST,
    ),
    ({"max_params": -1}, "`max_params`", "positive number", "-1"),
    ({"max_params": 0}, "`max_params`", "positive number", "0"),
    ({"max_params": True}, "`max_params`", "positive number", "True"),
    ({"max_macs": "1e9"}, "`max_macs`", "positive number", "'1e9'"),
    ({"max_latency_ms": NAN}, "`max_latency_ms`", "positive number", "nan"),
    ({"max_latency_ms": 5}, "`max_latency_ms`", "latency_ms", "sizes.json"),
    ({"max_params": 500, "depth": 3}, "`max_params`", "`depth`"),
    ({"max_params": 500, "num_hidden_layers": 3}, "`max_params`", "`depth`"),
    ({"max_macs": 500, "width_ratio": 1}, "`max_macs`", "`width_ratio`"),
    ({"max_params": 500, "num_components": 2}, "`max_params`", "`num_components`"),
]


@pytest.mark.parametrize("case", BUDGET_CASES, ids=lambda case: str(case[0]))
def test_a_budget_that_cannot_be_met_is_refused_before_weights_are_opened(load, measured, opens, case):
    """The nearest size in place of one within the budget would fail where the budget came from."""
    keywords, *fragments = case
    refused(load, measured, *fragments, **keywords)
    assert opens == []


def test_a_budget_without_measured_sizes_is_refused(load, tmp_path, opens):
    """Accuracy is measured, never guessed from the size."""
    stored = {"depth": None, "num_components": None, "reference_depth": 6, "reference_components": 5}
    folder = helpers.bundle(tmp_path / "bundle", helpers.tiny_config(**stored))
    refused(load, folder, "`max_params`", "sizes.json", "`depth`", "measure", max_params=500)
    assert opens == []


@pytest.mark.parametrize("keywords", [{"max_params": 500}, {"depth": 4}], ids=str)
def test_sizes_measured_on_other_weights_are_refused(load, measured, tmp_path, opens, keywords):
    """A stale accuracy would choose a size, or vouch for a depth, that was never measured."""
    folder = Path(shutil.copytree(measured, tmp_path / "bundle"))
    write_sizes(folder, weights_id="0" * 64)
    refused(load, folder, "`sizes.json`", "`weights_id`", "measure", **keywords)
    assert opens == []


ROW = {"depth": 6, "width_ratio": "1", "num_components": 5, "params": 900, "macs": 90, "accuracy": 0.9, **SEEN}
DAMAGED_SIZES = {
    "not JSON": b'{"weights_id": ',
    "not text": b"\xff\xfe\x00",
    "empty": b"",
    "a list": b"[]",
    "no rows": None,
    "rows that are no rows": ["depth"],
    "a row without a depth": [{key: value for key, value in ROW.items() if key != "depth"}],
    "a row without an accuracy": [{key: value for key, value in ROW.items() if key != "accuracy"}],
    "a row with a word for a number": [ROW | {"params": "many"}],
}


@pytest.mark.parametrize("damage", DAMAGED_SIZES.values(), ids=DAMAGED_SIZES)
def test_a_damaged_sizes_file_is_refused_by_name(load, measured, tmp_path, opens, damage):
    """It is written by a program and edited by hand."""
    folder = Path(shutil.copytree(measured, tmp_path / "bundle"))
    if isinstance(damage, bytes):
        (folder / "sizes.json").write_bytes(damage)
    else:
        edit(folder / "sizes.json", lambda sizes: sizes.update(sizes=damage))
    refused(load, folder, "`sizes.json`", "measure", max_params=1000)
    assert opens == []
