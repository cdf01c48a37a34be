"""What bad input gets when a bundle is loaded (DESIGN 6): a ValueError that names the argument and the way out.

Each case goes through both ways in, `AutoModelForImageClassification` and the class, for they hand arguments over
differently; wherever the configuration and the index are enough to know, no file of weights is opened.

    pytest tests/test_loading_errors.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, PreTrainedModel

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, bundle_lingene


NAN, INF = float("nan"), float("inf")
INDEX, SHARED = "model.safetensors.index.json", "shared.safetensors"


@pytest.fixture(params=["auto", "class"])
def load(request) -> Callable:
    return {
        "auto": AutoModelForImageClassification.from_pretrained,
        "class": LinGeneForImageClassification.from_pretrained,
    }[request.param]


@pytest.fixture
def opens(monkeypatch) -> list[str]:
    """Names of the files of weights that were opened."""
    names = []

    def watched(path, framework):
        names.append(Path(path).name)
        return bundle_lingene_safe_open(path, framework=framework)

    bundle_lingene_safe_open = bundle_lingene.safe_open
    monkeypatch.setattr(bundle_lingene, "safe_open", watched)
    return names


@pytest.fixture
def folder(bundle, tmp_path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


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


# -- damaged files of weights


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_last_byte(path: Path):
    path.write_bytes(path.read_bytes()[:-1])


BROKEN = {
    "truncated": truncate,
    "a byte short": cut_last_byte,
    "garbage": lambda path: path.write_bytes(b"\x93" * 4000),
    "a page of HTML": lambda path: path.write_bytes(b"<html>404</html>" * 100),
    "empty": lambda path: path.write_bytes(b""),
    "a header only": lambda path: path.write_bytes(path.read_bytes()[:8]),
    "other tensors": lambda path: save_file({"other": torch.ones(1)}, path),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("file", [SHARED, "component-03.safetensors"])
@pytest.mark.parametrize("constrained", [False, True])
def test_a_damaged_file_is_refused_by_name(load, folder, damage, file, constrained):
    """Interrupted downloads and full disks leave such files; a random layer would be the worst answer."""
    damage(folder / file)
    refused(load, folder, file, "damaged", "again", constrained=constrained)


def replace_tensor(path: Path, key: str, change: Callable[[torch.Tensor], torch.Tensor]):
    tensors = load_file(path)
    tensors[key] = change(tensors[key]).contiguous()
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


SHAPES = {
    "narrower": ("components.2.mlp.fc1.weight", lambda tensor: tensor[:, :47]),
    "transposed": ("components.2.mlp.fc2.weight", lambda tensor: tensor.T),
    "another dimension": ("components.2.norm1.weight", lambda tensor: tensor[None]),
    "wider": ("components.2.attention.query.bias", lambda tensor: torch.cat((tensor, tensor))),
    "shared": ("embeddings.position_embeddings", lambda tensor: tensor[:, :16]),
    "shared, wider": ("layernorm.weight", lambda tensor: torch.cat((tensor, tensor))),
}


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("keywords", [{}, {"width_ratio": "1/2"}, {"constrained": True}], ids=str)
def test_a_tensor_of_another_shape_than_the_configuration_says_is_refused(load, folder, case, keywords):
    """A slice of a larger tensor would fit, and be the wrong one."""
    key, change = case
    file = "component-02.safetensors" if key.startswith("components") else SHARED
    stored = load_file(folder / file)[key]
    replace_tensor(folder / file, key, change)
    refused(load, folder, f"`{key}`", str(tuple(change(stored).shape)), str(tuple(stored.shape)), **keywords)


def poison(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    """The preset in which odd degrees, components 0 and 2, have the coefficient 0 in the first layer."""
    return helpers.bundle(tmp_path_factory.mktemp("paper") / "bundle", helpers.tiny_config(preset="paper"))


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize(
    "key",
    [
        "components.0.attention.query.weight",
        "components.2.norm1.weight",
        "components.4.mlp.fc2.bias",
        "embeddings.cls_token",
        "layernorm.bias",
        "classifier.weight",
        "classifier.bias",
    ],
)
@pytest.mark.parametrize("keywords", [{}, {"depth": 3, "width_ratio": "1/2"}, {"constrained": True}], ids=str)
def test_weights_that_are_not_finite_are_refused(load, paper, tmp_path, value, key, keywords):
    """A diverged training saves them; the first sign would be an accuracy of chance."""
    folder = Path(shutil.copytree(paper, tmp_path / "bundle"))
    component = key.split(".")[1]
    file = f"component-0{component}.safetensors" if key.startswith("components") else SHARED
    replace_tensor(folder / file, key, poison(value))
    name = key.removeprefix(f"components.{component}.")
    refused(load, folder, name, "not finite", **keywords)


def test_a_component_with_coefficient_zero_in_the_first_layer_is_the_case_tested_above(paper):
    """Otherwise a check of the first layer alone could not miss anything."""
    config = LinGeneForImageClassification.config_class.from_pretrained(paper)
    table = config.coefficients(config.size())
    assert table[0, 0] == table[0, 2] == 0 and table[1, 0] != 0


def test_a_bfloat16_bundle_with_nan_is_refused(load, tmp_path):
    """The check adds up in float32 whatever is stored."""
    helpers.tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "bundle")
    replace_tensor(tmp_path / "bundle" / "component-00.safetensors", "components.0.norm2.bias", poison(NAN))
    refused(load, tmp_path / "bundle", "norm2.bias", "not finite")


# -- index and configuration


def remap(key: str, file) -> Callable[[dict], None]:
    return lambda index: index["weight_map"].update({key: file})


def forget(key: str) -> Callable[[dict], None]:
    return lambda index: index["weight_map"].pop(key)


QUERY = "components.1.attention.query.weight"
INDEX_EDITS = {
    "lacks a component's tensor": (forget(QUERY), f"`{QUERY}`"),
    "lacks a shared tensor": (forget("layernorm.bias"), "`layernorm.bias`"),
    "lacks half of the head": (forget("classifier.bias"), "`classifier.bias`"),
    "points to the parent folder": (remap(QUERY, "../elsewhere.safetensors"), f"`{QUERY}`", "../elsewhere"),
    "points to an absolute path": (remap(QUERY, "/elsewhere.safetensors"), f"`{QUERY}`", "/elsewhere"),
    "points to a subfolder": (remap(QUERY, "sub/component.safetensors"), f"`{QUERY}`", "sub/"),
    "points to the folder above": (remap(QUERY, ".."), f"`{QUERY}`", "'..'"),
    "points to the folder itself": (remap(QUERY, ""), f"`{QUERY}`"),
    "points to a number": (remap(QUERY, 5), INDEX),
    "has no map": (lambda index: index.pop("weight_map"), f"`{INDEX}`", "again"),
    "has an empty map": (lambda index: index.update(weight_map=None), f"`{INDEX}`", "again"),
    "has a list for a map": (lambda index: index.update(weight_map=[QUERY]), f"`{INDEX}`", "again"),
    "has no metadata": (lambda index: index.pop("metadata"), f"`{INDEX}`", "again"),
    "is of another save": (lambda index: index["metadata"].update(weights_id="0" * 64), "`weights_id`", "config.json"),
    "has no weights_id": (lambda index: index["metadata"].pop("weights_id"), "`weights_id`", "config.json"),
}


@pytest.mark.parametrize("case", INDEX_EDITS.values(), ids=INDEX_EDITS)
@pytest.mark.parametrize("constrained", [False, True])
def test_an_index_that_contradicts_the_bundle_is_refused(load, folder, opens, case, constrained):
    """A key left out must not become a random weight; a path must not lead out of the folder."""
    change, *fragments = case
    shutil.copy(folder / "component-01.safetensors", folder.parent / "elsewhere.safetensors")
    edit(folder / INDEX, change)
    refused(load, folder, *fragments, constrained=constrained)
    assert opens == []


DAMAGED_INDEX = {"not JSON": b'{"weight_map": {', "empty": b"", "not text": b"\xff\xfe\x00", "a list": b"[]"}


@pytest.mark.parametrize("content", DAMAGED_INDEX.values(), ids=DAMAGED_INDEX)
def test_a_damaged_index_is_refused_by_name(load, folder, opens, content):
    """What an interrupted copy leaves."""
    (folder / INDEX).write_bytes(content)
    refused(load, folder, f"`{INDEX}`", "damaged", "again")
    assert opens == []


CONFIG_CASES = [
    ({"basis": "hermite"}, "`basis`", "chebyshev", "'hermite'"),
    ({"nodes": "equal"}, "`nodes`", "roots", "uniform", "'equal'"),
    ({"depth_map": "nearest"}, "`depth_map`", "resample", "select", "'nearest'"),
    ({"preset": "fast"}, "`preset`", "paper", "stable", "'fast'"),
    ({"bundle_format": 2}, "`bundle_format`", "2", "upgrade"),
    ({"bundle_format": "new"}, "`bundle_format`", "new"),
    ({"weights_id": "0" * 64}, "`weights_id`", "config.json", INDEX, "save"),
    ({"basis": "learned"}, "`coefficient_matrix`", "learned"),
    ({"reference_components": 0}, "`reference_components`", "an integer from 1 to 1024"),
    ({"reference_depth": "six"}, "`reference_depth`", "an integer from 1 to 1024", "'six'"),
    ({"depth_rows": {"3": [0, 1, 6]}}, "`depth_rows`", "6"),
    ({"depth_rows": {"3": [0, 1]}}, "`depth_rows`", "3"),
    ({"num_attention_heads": 5}, "`hidden_size`", "`num_attention_heads`"),
    ({"reference_components": 7, "num_components": None}, "`reference_components`", "saved with 5"),
    # Fewer than the index names: loading part of what was trained would be a silent truncation.
    ({"reference_components": 4, "num_components": None}, "`reference_components`", "saved with 5"),
    ({"qkv_bias": False}, "`qkv_bias`", "saved with True"),
]


@pytest.mark.parametrize("case", CONFIG_CASES, ids=lambda case: str(case[0]))
def test_a_configuration_that_contradicts_itself_or_the_index_is_refused(load, folder, opens, case):
    """Before weights are opened: the configuration and the index say enough."""
    fields, *fragments = case
    edit(folder / "config.json", lambda config: config.update(fields))
    refused(load, folder, *fragments)
    assert opens == []


# -- what is not there


@pytest.mark.parametrize("file", [INDEX, SHARED, "component-02.safetensors"])
@pytest.mark.parametrize("constrained", [False, True])
def test_a_missing_file_raises_what_transformers_raises(load, folder, opens, file, constrained):
    """Programs that catch OSError for a model that is not there must catch this too."""
    (folder / file).unlink()
    with pytest.raises(OSError, match=file):
        load(folder, constrained=constrained)
    assert opens == []


@pytest.mark.parametrize("constrained", [False, True])
def test_a_missing_configuration_is_not_replaced_by_defaults(load, folder, opens, constrained):
    """transformers' configuration classes give their defaults for a folder without config.json."""
    (folder / "config.json").unlink()
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        load(folder, constrained=constrained)
    assert opens == []


@pytest.mark.parametrize("constrained", [False, True])
def test_a_folder_that_is_not_there_raises_what_transformers_raises(load, tmp_path, constrained):
    """And is not created."""
    with pytest.raises(OSError, match="absent"):
        load(str(tmp_path / "absent"), constrained=constrained, local_files_only=True)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "keyword, meant",
    [("widthratio", "width_ratio"), ("num_component", "num_components"), ("max_mac", "max_macs"), ("Depth", "depth")],
)
def test_a_misspelt_keyword_is_answered_with_the_one_that_was_meant(load, bundle, keyword, meant):
    """transformers names the stock class and no way out, after everything was read."""
    refused(load, bundle, f"`{keyword}`", f"`{meant}`", **{keyword: 1})


CONTRADICTIONS = {"num_attention_heads": 2, "degree_weight": 0.5, "gain_offset": 1.0, "basis": "legendre"}
CONTRADICTIONS |= {"start_degree": 1, "nodes": "uniform", "hidden_size": 96, "patch_size": 2, "qkv_bias": False}
CONTRADICTIONS |= {"reference_depth": 5, "reference_components": 4, "isolated_activation": True}


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("keyword", CONTRADICTIONS)
def test_a_keyword_that_contradicts_the_weights_is_refused(load, bundle, keyword, constrained):
    """Two heads out of the weights of four loaded, and gave another model."""
    value = CONTRADICTIONS[keyword]
    refused(load, bundle, f"`{keyword}`", "contradicts", constrained=constrained, **{keyword: value})


CHANGED = CONTRADICTIONS | {"layer_norm_eps": 1e-2, "hidden_act": "relu", "depth_map": "resample"}
CHANGED |= {"depth_rows": {"4": [0, 1, 2, 3]}, "scale_residual": True, "image_size": 20}
CHANGED |= {"trained_width_ratios": ["1/4", "1"], "intermediate_size": 48, "num_channels": 1}


@pytest.mark.parametrize("field", CHANGED)
def test_a_setting_that_the_weights_were_not_saved_with_is_refused(load, bundle, tmp_path, field):
    """config.json with another `degree_weight` loaded, and gave another model; the identity covers both."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, field: CHANGED[field]}))
    refused(load, folder, f"`{field}`", "saved with")


@pytest.mark.parametrize("way", ["by keyword", "in the configuration"])
def test_quantising_components_is_refused_at_load(bundle, opens, way):
    """They are read, not called: one library crashed in the first forward pass, another quantised nothing."""
    from transformers import BitsAndBytesConfig

    asked = BitsAndBytesConfig(load_in_4bit=True)
    config = LinGeneConfig.from_pretrained(bundle)
    config.quantization_config = asked
    keywords = {"quantization_config": asked} if way == "by keyword" else {"config": config}
    with pytest.raises(ValueError, match="`quantization_config` on a constrained model is refused.*materialised"):
        LinGeneForImageClassification.from_pretrained(bundle, constrained=True, **keywords)
    assert opens == []


@pytest.mark.parametrize("places", [{"": 0, "layernorm": 1}, {"": "cpu", "components.4": "disk"}], ids=str)
def test_components_on_several_devices_are_refused(bundle, monkeypatch, places):
    """They are combined in one place; the error would come in the first forward pass."""

    def dispatched(*_, **__):
        return SimpleNamespace(hf_device_map=places)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", dispatched)
    with pytest.raises(ValueError, match="`device_map` puts a constrained model on .*one device"):
        LinGeneForImageClassification.from_pretrained(bundle, constrained=True, device_map="auto")
