"""An index, a configuration or a keyword that contradicts the weights, and what is not there (DESIGN 6).

Each case goes through both ways in, `AutoModelForImageClassification` and the class, for they hand arguments over
differently; wherever the configuration and the index are enough to know, no file of weights is opened.

    pytest tests/loading/test_refused_configs.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from refusing import INDEX, SHARED, edit, refused
from transformers import AutoModel, PreTrainedModel, ViTConfig

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel, LinGeneSwinConfig


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


# Of what may be overridden: values that are none, or that the network, its family or the rest does not allow.
OVERRIDES = [
    ("vit", {"depth": 4, "depth_rows": {4: [0, 5]}}, "`depth_rows` for depth 4 must be 4 rows"),
    ("vit", {"depth": 2, "depth_rows": {"2": [0, 2, 5]}}, "`depth_rows` for depth 2 must be 2 rows"),
    ("vit", {"depth_rows": {2: [0, 6]}}, "`depth_rows` for depth 2 must be 2 rows below 6"),
    ("vit", {"depth_rows": [0, 1]}, "`depth_rows`"),
    ("vit", {"depth_rows": {2: [0, 5]}, "depth_map": "resample"}, "`depth_rows` are of the depth map 'select'"),
    ("vit", {"depth": 9, "depth_map": "Resample"}, "`depth_map`"),
    ("vit", {"scale_residual": 1}, "`scale_residual`"),
    ("vit", {"hidden_act": "gelo"}, "`hidden_act`"),
    ("vit", {"layer_norm_eps": "1e-6"}, "`layer_norm_eps`"),
    ("vit", {"hidden_dropout_prob": 2}, "`hidden_dropout_prob`"),
    ("vit", {"drop_path_rate": 0.5}, "`drop_path_rate` 0.5 is no setting of the family vit"),
    ("vit", {"apply_layernorm": False}, "`apply_layernorm` False is no setting of the family vit"),
    ("vit", {"image_size": "32"}, "`image_size`"),
    ("vit", {"image_size": 64.0}, "`image_size`"),
    ("vit", {"image_size": 3}, "`image_size` 3x3 is smaller than a patch of 4x4"),
    ("vit", {"image_size": (32, 2)}, "`image_size` 32x2 is smaller than a patch of 4x4"),
    ("dinov2", {"image_size": (32, 72)}, "`image_size` of the family dinov2 must be square"),
    ("clip_vision_model", {"hidden_dropout_prob": 0.5}, "`hidden_dropout_prob` of the family clip_vision_model is"),
]


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Path]:
    """A bundle of each family that a keyword is refused of."""
    root, found = tmp_path_factory.mktemp("families"), {}
    for family in {family for family, *_ in OVERRIDES}:
        found[family] = root / family
        config = helpers.tiny_config(family=family, depth_map="select", layer_norm_eps=1e-5)
        helpers.tiny_model(config, model_class=LinGeneModel).save_pretrained(found[family])
    return found


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("family, keywords, fragment", OVERRIDES, ids=str)
def test_a_keyword_that_nothing_could_follow_is_refused(families, opens, family, keywords, fragment, constrained):
    """Two rows for four layers gave two random ones; others were cut, or left aside, without a word."""
    for loading in (AutoModel.from_pretrained, LinGeneModel.from_pretrained):
        refused(loading, families[family], fragment, constrained=constrained, **keywords)
    assert opens == []


@pytest.mark.parametrize("constrained", [False, True])
def test_rows_are_by_depth_whether_that_is_a_number_or_a_text(families, constrained):
    """JSON has texts for keys, and whoever reads them from there passes them on."""
    states = []
    for rows in ({2: [4, 5]}, {"2": [4, 5]}, {2: [0, 1]}):
        model = AutoModel.from_pretrained(families["vit"], constrained=constrained, depth=2, depth_rows=rows).eval()
        states.append(model(helpers.images()).last_hidden_state)
    assert torch.equal(states[0], states[1]) and not torch.allclose(states[0], states[2], atol=1e-2)


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


@pytest.mark.parametrize("constrained", [False, True])
def test_what_would_take_the_place_of_the_bundles_own_is_refused(load, bundle, model, opens, constrained):
    """Weights that were handed over were left aside without a word, and so was a pooler; another configuration gave a
    TypeError.
    """
    asked = {"constrained": constrained}
    refused(load, bundle, "`state_dict` would take the place", state_dict=model.state_dict(), **asked)
    for loading in (load, AutoModel.from_pretrained):
        refused(loading, bundle, "`add_pooling_layer`", "family vit holds no pooler", add_pooling_layer=True, **asked)
    for other in (ViTConfig(), LinGeneSwinConfig()):
        given = LinGeneForImageClassification.from_pretrained
        refused(given, bundle, "`config` must be of a bundle", type(other).__name__, config=other, **asked)
    assert opens == []
    plain = AutoModel.from_pretrained(bundle, add_pooling_layer=False)
    assert plain.pooler is None
    memory = LinGeneForImageClassification.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert torch.equal(memory.classifier.weight, model.classifier.weight)


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
