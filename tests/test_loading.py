"""One size out of a bundle: the right numbers, in a stock model, with all that stock loading offers.

The reference is the constrained model that was saved; its own arithmetic is tested elsewhere.

    pytest tests/test_loading.py
"""

import json
import logging
import re
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel, bundle_lingene
from modeling_lingene.budget_lingene import device_name


SIZES = [(6, "1", 5), (4, "1/2", 3), (1, "1", 1), (5, 0.5, 5), (2, 1, 2), (3, "1/2", 1)]
VARIANTS = {
    "paper": {"preset": "paper"},
    "resample": {"depth_map": "resample"},
    "select": {"depth_map": "select", "depth_rows": {"4": [0, 2, 3, 5]}},
    "legendre": {"basis": "legendre", "degree_weight": 0.5},
    "fourier, grown with scaled branches": {
        "basis": "fourier",
        "scale_residual": True,
        "reference_depth": 3,
        "depth_map": "resample",
    },
    "learned": {"basis": "learned", "coefficient_matrix": torch.linspace(-1, 1, 30).view(6, 5).sin().tolist()},
    "no q, k, v biases": {"qkv_bias": False},
    "labels": {"num_labels": 3, "id2label": {0: "cat", 1: "dog", 2: "bee"}},
}
LOADERS = {
    "auto": AutoModelForImageClassification.from_pretrained,
    "class": LinGeneForImageClassification.from_pretrained,
}


@pytest.fixture(scope="module")
def model() -> LinGeneForImageClassification:
    """What the session's bundle was saved from."""
    return helpers.tiny_model()


@pytest.fixture(params=LOADERS)
def load(request):
    """The two ways in: they hand the size over differently."""
    return LOADERS[request.param]


def logits(model, **size) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(helpers.images().to(model.dtype), **size).logits


def asked(depth, width_ratio, num_components) -> dict:
    return {"depth": depth, "width_ratio": width_ratio, "num_components": num_components}


def headless(model: LinGeneForImageClassification) -> LinGeneModel:
    """The same weights without the classifier."""
    twin = LinGeneModel(model.config).eval()
    twin.load_state_dict({key: value for key, value in model.state_dict().items() if "classifier" not in key})
    return twin


def write_sizes(folder: Path, rows: list[dict]):
    weights_id = json.loads((folder / "config.json").read_text())["weights_id"]
    (folder / "sizes.json").write_text(json.dumps({"weights_id": weights_id, "sizes": rows}))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_loaded_vit_is_stock_and_computes_what_the_constrained_model_does(bundle, model, load, size):
    """The promise of the package, over depths below and above the reference, widths and component counts."""
    vit = load(bundle, **asked(*size))
    ratio = Fraction(size[1])
    assert type(vit) is ViTForImageClassification
    assert vit.config.num_hidden_layers == size[0]
    assert (vit.config.hidden_size, vit.config.num_attention_heads) == (48 * ratio, 4 * ratio)
    torch.testing.assert_close(logits(vit), logits(model, **asked(*size)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_a_vit_loaded_by_automodel_has_no_pooler_and_the_same_hidden_states(bundle, model, size):
    """A pooler would be random: no bundle has one. A bundle with a head serves AutoModel as well."""
    vit = AutoModel.from_pretrained(bundle, **asked(*size))
    assert type(vit) is ViTModel and vit.pooler is None
    with torch.no_grad():
        found = vit(helpers.images()).last_hidden_state
        expected = headless(model)(helpers.images(), **asked(*size)).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_coefficients_loads_as_it_was_computed(tmp_path, fields):
    """Loading recomposes from files, the constrained model from parameters: two codes for one formula."""
    config = helpers.tiny_config(**fields)
    source = helpers.tiny_model(config)
    source.save_pretrained(tmp_path / "bundle")
    deeper = [{"depth": 9}] if config.depth_map == "resample" else []
    for size in [{}, {"depth": 4, "width_ratio": "1/2", "num_components": 3}, {"depth": 3}, *deeper]:
        vit = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle", **size)
        torch.testing.assert_close(logits(vit), logits(source, **size), rtol=0, atol=1e-4)
        assert vit.config.id2label == config.id2label


@pytest.mark.parametrize("elements", [1, 100, 48 * 5])
def test_the_block_size_of_recomposing_does_not_matter(bundle, model, monkeypatch, elements):
    """Tiny tensors fit one block; large ones go through several, the last of them smaller."""
    monkeypatch.setattr(bundle_lingene, "BLOCK_ELEMENTS", elements)
    vit = AutoModelForImageClassification.from_pretrained(bundle, **asked(4, "1/2", 3))
    torch.testing.assert_close(logits(vit), logits(model, **asked(4, "1/2", 3)), rtol=0, atol=1e-4)


def test_what_is_saved_from_a_loaded_vit_is_a_stock_checkpoint(bundle, tmp_path):
    """It must load for people who have never heard of bundles."""
    vit = AutoModelForImageClassification.from_pretrained(bundle, **asked(4, "1/2", 3))
    vit.save_pretrained(tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    assert config["model_type"] == "vit" and "auto_map" not in config
    assert {path.name for path in (tmp_path / "vit").iterdir()} == {"config.json", "model.safetensors"}
    fresh = ViTForImageClassification(vit.config)
    fresh.save_pretrained(tmp_path / "fresh")
    assert set(load_file(tmp_path / "vit" / "model.safetensors")) == set(
        load_file(tmp_path / "fresh" / "model.safetensors")
    )
    for loader in (ViTForImageClassification, AutoModelForImageClassification):
        assert torch.equal(logits(loader.from_pretrained(tmp_path / "vit")), logits(vit))


def test_each_layer_owns_its_memory(bundle):
    """Layers that shared storage would train together and could not be saved."""
    vit = AutoModelForImageClassification.from_pretrained(bundle, num_components=1)
    pointers = Counter(parameter.untyped_storage().data_ptr() for parameter in vit.parameters())
    assert max(pointers.values()) == 1


@pytest.mark.parametrize("constrained", [False, True])
def test_training_a_loaded_model_does_not_touch_the_files(bundle, model, constrained):
    """Files are mapped into memory while they are read."""
    loaded = LinGeneForImageClassification.from_pretrained(bundle, constrained=constrained)
    before = logits(loaded)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1.0)
    assert not torch.allclose(logits(loaded), before)
    again = LinGeneForImageClassification.from_pretrained(bundle, constrained=constrained)
    assert torch.equal(logits(again), before)


# -- what stock loading takes


@pytest.fixture(scope="module")
def bf16_bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bf16") / "bundle"
    helpers.tiny_model().to(torch.bfloat16).save_pretrained(folder)
    return folder


def recomposed_by_numpy(folder: Path, name: str) -> numpy.ndarray:
    """sum_n T_n(x_l) A_n of the six layers in float64, by numpy's Chebyshev polynomials: (6, ...)."""
    nodes = -numpy.cos(numpy.pi * (2 * numpy.arange(1, 7) - 1) / 12)
    table = numpy.polynomial.chebyshev.chebvander(nodes, 4)
    parts = []
    for n in range(5):
        with safe_open(folder / f"component-{n:02d}.safetensors", "pt") as file:
            parts.append(file.get_tensor(f"components.{n}.{name}").double().numpy())
    return numpy.einsum("ln,n...->l...", table, numpy.stack(parts))


NAMES = {
    "attention.query.weight": "attention.attention.query.weight",
    "mlp.fc1.weight": "intermediate.dense.weight",
    "mlp.fc2.bias": "output.dense.bias",
    "norm2.weight": "layernorm_after.weight",
}


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16", "float64"])
def test_weights_are_combined_wide_and_rounded_once(bundle, bf16_bundle, load, tmp_path, stored, wanted):
    """A sum or a coefficient rounded to bfloat16 on the way is wrong in the third digit of every weight."""
    folder = {"float32": bundle, "bfloat16": bf16_bundle}[stored]
    dtype = getattr(torch, wanted)
    vit = load(folder, dtype=dtype)
    assert {parameter.dtype for parameter in vit.parameters()} == {dtype}
    vit.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for name, stock in NAMES.items():
        expected = torch.tensor(recomposed_by_numpy(folder, name))
        found = torch.stack([saved[f"vit.encoder.layer.{layer}.{stock}"] for layer in range(6)]).double()
        rounding = max(torch.finfo(dtype).eps / 2, 1e-6)
        torch.testing.assert_close(found, expected, rtol=1.01 * rounding, atol=1e-6)


@pytest.mark.parametrize("keywords", [{"dtype": "auto"}, {"torch_dtype": "auto"}], ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_dtype_auto_is_the_dtype_stored(bundle, bf16_bundle, load, keywords, constrained):
    """What transformers does by default; here it is asked for."""
    for folder, dtype in ((bundle, torch.float32), (bf16_bundle, torch.bfloat16)):
        loaded = load(folder, constrained=constrained, **keywords)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert loaded.config.dtype == dtype


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_weights_are_in_full_precision_unless_asked_otherwise(load, tmp_path, stored, constrained):
    """Half-size files are for the download: what is trained in float16 is soon not a number."""
    helpers.tiny_model().to(stored).save_pretrained(tmp_path / "bundle")
    for keywords in ({}, {"dtype": None}):
        loaded = load(tmp_path / "bundle", constrained=constrained, **keywords)
        full = torch.float64 if stored == torch.float64 else torch.float32
        assert {parameter.dtype for parameter in loaded.parameters()} == {full} and loaded.config.dtype == full
    asked = load(tmp_path / "bundle", constrained=constrained, dtype=torch.float16)  # also where it is what is stored
    assert {parameter.dtype for parameter in asked.parameters()} == {torch.float16}


def test_a_half_size_bundle_is_used_as_any_model(load, tmp_path):
    """A head put in by hand and dynamic quantisation failed on mixed dtypes."""
    helpers.tiny_model().half().save_pretrained(tmp_path / "bundle")
    vit = load(tmp_path / "bundle", depth=3)
    vit.classifier = torch.nn.Linear(vit.config.hidden_size, 4)
    assert vit(helpers.images()).logits.shape == (3, 4)
    plain = load(tmp_path / "bundle", depth=3)
    quantised = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, dtype=torch.qint8)
    expected = plain(helpers.images()).logits
    assert (quantised(helpers.images()).logits - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize("dtype", ["float17", "int8", torch.int32, 16])
def test_what_is_no_dtype_is_refused(bundle, dtype):
    """By our class; Auto classes read it into the configuration before."""
    with pytest.raises(ValueError, match="`dtype` must be a floating dtype"):
        LinGeneForImageClassification.from_pretrained(bundle, dtype=dtype)


@pytest.mark.parametrize("keywords", [{"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_dtype_is_taken_as_a_name_and_under_its_old_name(bundle, load, keywords, constrained):
    """Both are common in code that exists."""
    loaded = load(bundle, constrained=constrained, **keywords)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_device_map_loads_the_same_weights(bundle, model, device_map, constrained):
    """Accelerate's dispatch sees weights in memory where it expects files."""
    pytest.importorskip("accelerate")
    size = {"depth": 6, "width_ratio": "1/2", "num_components": 4}
    loaded = AutoModelForImageClassification.from_pretrained(
        bundle, constrained=constrained, device_map=device_map, **size
    )
    with torch.no_grad():
        found = loaded.eval()(helpers.images().to(loaded.device)).logits.cpu()
    torch.testing.assert_close(found, logits(model, **size), rtol=0, atol=1e-4)


@pytest.mark.parametrize("constrained", [False, True])
def test_attn_implementation_and_output_attentions_are_passed_on(bundle, load, constrained):
    """Attention weights exist in the eager implementation only."""
    sdpa = load(bundle, depth=3, constrained=constrained, attn_implementation="sdpa")
    assert sdpa.config._attn_implementation == "sdpa"
    eager = load(bundle, depth=3, constrained=constrained, attn_implementation="eager", output_attentions=True)
    assert eager.config._attn_implementation == "eager"
    attentions = eager.eval()(helpers.images()).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(3, 4, 17, 17)] * 3
    torch.testing.assert_close(logits(eager), logits(sdpa), rtol=0, atol=1e-4)


@pytest.mark.parametrize("constrained", [False, True])
def test_num_labels_needs_ignore_mismatched_sizes_and_then_replaces_only_the_head(bundle, model, load, constrained):
    """As in stock loading: a head that does not fit is an error until it is said that it may be new."""
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(bundle, num_labels=3, constrained=constrained)
    loaded, info = load(
        bundle,
        num_labels=3,
        constrained=constrained,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        depth=4,
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert len(loaded.config.id2label) == 3 and logits(loaded).shape == (3, 3)
    with torch.no_grad():
        found = loaded.eval()(helpers.images(), output_hidden_states=True).hidden_states[-1]
        expected = model(helpers.images(), depth=4, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("constrained", [False, True])
def test_id2label_given_at_loading_is_the_models(bundle, load, constrained):
    """Class names travel in the configuration, through every size."""
    names = {n: f"class {n}" for n in range(7)}
    loaded = load(bundle, constrained=constrained, id2label=names, label2id={v: k for k, v in names.items()})
    assert loaded.config.id2label == names
    assert loaded.config.label2id["class 3"] == 3


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_loading_info_names_no_missing_unexpected_or_mismatched_key(bundle, load, constrained, size):
    """Components that were not asked for are not unexpected, they are not wanted."""
    _, info = load(bundle, constrained=constrained, output_loading_info=True, **asked(*size))
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))


def test_quantised_loading_keeps_the_logits_nearly(bundle, model):
    """int8 weights from torchao: the weights are in memory, not in a file, when they are quantised."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    quantised = AutoModelForImageClassification.from_pretrained(
        bundle, depth=4, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), dtype=torch.float32
    )
    kinds = {type(module.weight) for name, module in quantised.named_modules() if name.endswith("q_proj")}
    assert kinds and torch.nn.Parameter not in kinds
    expected = logits(model, depth=4)
    error = (logits(quantised) - expected).norm() / expected.norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize("constrained", [False, True])
def test_subfolder_and_local_files_only_find_the_same_files(bundle, model, load, tmp_path, constrained):
    """A repository may hold several bundles; sizes.json, too, is the subfolder's."""
    shutil.copytree(bundle, tmp_path / "repo" / "inner")
    write_sizes(tmp_path / "repo" / "inner", [row(2, "1", 5, 900, 90, 0.5)])
    keywords = {"subfolder": "inner", "local_files_only": True, "constrained": constrained}
    loaded = load(tmp_path / "repo", depth=2, **keywords)
    torch.testing.assert_close(logits(loaded), logits(model, depth=2), rtol=0, atol=1e-4)


SMALLER = {"depth": 3, "width_ratio": "1/2", "num_components": 2}


def test_a_whole_constrained_model_bears_the_bundles_name(bundle, load):
    """It is what lies there: its name finds it again, and model cards may give it as their base."""
    loaded = load(str(bundle), constrained=True)
    assert loaded.name_or_path == loaded.config.name_or_path == str(bundle)


@pytest.mark.parametrize("size", [{}, SMALLER], ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_a_sizes_name_loads_nothing_and_shows_the_size(bundle, load, constrained, size):
    """Whoever reloads by name gets a sentence, not the full size, and not random layers out of a stock class."""
    loaded = load(str(bundle), constrained=constrained, **size)
    if constrained and not size:
        return
    asked = str(loaded.source_size)
    assert asked in loaded.name_or_path and loaded.config.name_or_path == ""
    for again in (AutoModelForImageClassification, ViTForImageClassification):
        with pytest.raises(OSError, match=re.escape(asked)):
            again.from_pretrained(loaded.name_or_path)


def test_a_materialised_models_origin_is_saved_with_it(bundle, load, tmp_path):
    """In config.json, for people; a private path is not part of it."""
    load(str(bundle), **SMALLER).save_pretrained(tmp_path)
    expected = {"bundle": bundle.name, "commit": None, **SMALLER}
    expected["weights_id"] = json.loads((bundle / "config.json").read_text())["weights_id"]
    assert json.loads((tmp_path / "config.json").read_text())["materialised_from"] == expected
    assert str(bundle.parent) not in (tmp_path / "config.json").read_text()
    again = ViTForImageClassification.from_pretrained(tmp_path)
    assert again.config.materialised_from == expected and again.name_or_path == str(tmp_path)


@pytest.mark.parametrize("size", [{}, SMALLER], ids=str)
def test_an_adapter_finds_its_base_or_fails(bundle, load, tmp_path, size):
    """It was put on a base of random layers: PEFT asks the class of the base for the name of the base."""
    peft = pytest.importorskip("peft")
    base = load(bundle, **size)
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(OSError, match=re.escape(str(base.source_size))):
        peft.AutoPeftModel.from_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(bundle, **size), tmp_path / "adapter")
    with torch.no_grad():
        expected, found = adapted.eval()(helpers.images()).logits, again.eval()(helpers.images()).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - load(bundle, **size).eval()(helpers.images()).logits).abs().max() > 1e-3
    base_of_card = yaml.safe_load((tmp_path / "adapter" / "README.md").read_text().split("---")[1])["base_model"]
    assert base_of_card == ""


def test_a_trainers_card_names_no_other_weights(bundle, load, tmp_path):
    """The Hub refuses a base that is no repository, and the bundle's own name is that of other weights."""
    trainer = Trainer(load(bundle, **SMALLER), TrainingArguments(tmp_path, report_to="none", use_cpu=True))
    trainer.create_model_card()
    assert "base_model" not in (tmp_path / "README.md").read_text()


def test_a_configuration_that_was_handed_in_stays_as_it_was(bundle, load):
    """One configuration object is used to load several sizes."""
    config = LinGeneConfig.from_pretrained(bundle)
    before = config.to_dict()
    three, six = load(bundle, config=config, depth=3, width_ratio="1/2"), load(bundle, config=config)
    assert config.to_dict() == before
    assert (three.config.num_hidden_layers, six.config.num_hidden_layers) == (3, 6)
    assert (three.config.hidden_size, six.config.hidden_size) == (24, 48)


def test_num_hidden_layers_is_another_word_for_depth(bundle, load):
    """What ViT users type."""
    assert load(bundle, num_hidden_layers=4).config.num_hidden_layers == 4


def test_device_map_meta_gives_an_empty_model_of_that_size(bundle):
    """To plan where a model goes before any weight is placed."""
    vit = AutoModelForImageClassification.from_pretrained(bundle, depth=3, width_ratio="1/2", device_map="meta")
    assert {parameter.device.type for parameter in vit.parameters()} == {"meta"}
    assert (vit.config.num_hidden_layers, vit.config.hidden_size) == (3, 24)


def test_a_pipeline_takes_the_folder_and_a_size(bundle, model, tmp_path):
    """The shortest way from a bundle to a class name; depth goes through `model_kwargs`."""
    image_module = pytest.importorskip("PIL.Image")
    from modeling_lingene.images.data import image_processor

    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    image_processor(16).save_pretrained(folder)
    classify = pipeline("image-classification", model=str(folder), model_kwargs={"depth": 4})
    assert type(classify.model) is ViTForImageClassification and classify.model.config.num_hidden_layers == 4
    pixels = numpy.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=numpy.uint8)
    found = {row["label"]: row["score"] for row in classify(image_module.fromarray(pixels), top_k=7)}
    tensor = torch.tensor(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = model(tensor, depth=4).logits.softmax(-1)[0]
    for n in range(7):
        assert found[f"LABEL_{n}"] == pytest.approx(expected[n].item(), abs=1e-4)


# -- constrained


def test_constrained_loading_slices_the_components_and_keeps_no_others(bundle, model, load):
    """Components are the parameters: those beyond the size asked for must not be trained or saved."""
    small = load(bundle, constrained=True, **asked(4, "1/2", 3))
    assert type(small) is LinGeneForImageClassification
    assert len(small.components) == 3
    state, big = small.state_dict(), model.state_dict()
    for key, shape in {
        "components.2.attention.query.weight": (24, 24),
        "components.2.mlp.fc1.weight": (48, 24),
        "components.0.norm1.bias": (24,),
        "embeddings.position_embeddings": (1, 17, 24),
        "embeddings.patch_embeddings.weight": (24, 3, 4, 4),
        "classifier.weight": (7, 24),
        "classifier.bias": (7,),
    }.items():
        assert tuple(state[key].shape) == shape
        assert torch.equal(state[key], big[key][tuple(slice(length) for length in shape)])
    torch.testing.assert_close(logits(small), logits(model, **asked(4, "1/2", 3)), rtol=0, atol=1e-4)


def test_a_constrained_model_saves_as_a_smaller_bundle(bundle, load, tmp_path):
    """DESIGN 4: sliced fields, fewer components, reference depth kept, ratios above 1 dropped, nothing measured."""
    folder = tmp_path / "measured"
    shutil.copytree(bundle, folder)
    write_sizes(folder, [])
    small = load(folder, constrained=True, **asked(4, "1/2", 3))
    small.save_pretrained(tmp_path / "small")
    config = LinGeneConfig.from_pretrained(tmp_path / "small")
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (24, 2, 48)
    assert (config.reference_components, config.reference_depth, config.depth) == (3, 6, 4)
    assert config.trained_width_ratios == ["1"]
    assert config.num_components is None and config.width_ratio is None
    assert not (tmp_path / "small" / "sizes.json").exists()
    assert not (tmp_path / "small" / "component-03.safetensors").exists()
    for constrained in (False, True):
        again = load(tmp_path / "small", constrained=constrained)
        torch.testing.assert_close(logits(again), logits(small), rtol=0, atol=1e-4)


@pytest.mark.parametrize("fields", [{}, *list(VARIANTS.values())[:6]], ids=["default", *list(VARIANTS)[:6]])
def test_sizes_of_a_smaller_bundle_are_sizes_of_the_big_one(tmp_path, fields):
    """Half of the half is the quarter; fewer components of fewer are the first ones."""
    helpers.bundle(tmp_path / "big", helpers.tiny_config(trained_width_ratios=["1/4", "1/2", "1"], **fields))
    load = AutoModelForImageClassification.from_pretrained
    load(tmp_path / "big", constrained=True, **asked(4, "1/2", 3)).save_pretrained(tmp_path / "small")
    assert LinGeneConfig.from_pretrained(tmp_path / "small").trained_width_ratios == ["1/2", "1"]
    for inner, outer in (
        ({}, asked(4, "1/2", 3)),
        (asked(3, "1/2", 2), asked(3, "1/4", 2)),
        (asked(6, 1, 3), asked(6, "1/2", 3)),
    ):
        found, expected = logits(load(tmp_path / "small", **inner)), logits(load(tmp_path / "big", **outer))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_none_leaves_the_size_that_is_stored(bundle, load, tmp_path):
    """Programs hand on options nobody has set as None; both ways in must take that the same way."""
    load(bundle, constrained=True, depth=4).save_pretrained(tmp_path / "small")
    assert load(tmp_path / "small").config.num_hidden_layers == 4
    assert load(tmp_path / "small", **asked(None, None, None)).config.num_hidden_layers == 4


def test_a_headless_bundle_loads_as_automodel_and_with_a_new_head(model, tmp_path, caplog):
    """LinGeneModel saves no classifier; asking for one must say that it is new."""
    twin = headless(model)
    twin.save_pretrained(tmp_path / "headless")
    size = asked(4, "1/2", 3)
    with torch.no_grad():
        expected = twin(helpers.images(), **size).last_hidden_state
        vit = AutoModel.from_pretrained(tmp_path / "headless", **size)
        torch.testing.assert_close(vit(helpers.images()).last_hidden_state, expected, rtol=0, atol=1e-4)
    assert type(vit) is ViTModel and vit.pooler is None
    same = LinGeneModel.from_pretrained(tmp_path / "headless", constrained=True)
    assert type(same) is LinGeneModel and set(same.state_dict()) == set(twin.state_dict())
    caplog.clear()
    with_head = AutoModelForImageClassification.from_pretrained(tmp_path / "headless", **size)
    assert "classifier" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(with_head.vit(helpers.images()).last_hidden_state, expected, rtol=0, atol=1e-4)


# -- only what is needed is read


class WatchedSlice:
    def __init__(self, inner, key: str, log: dict):
        self.inner, self.key, self.log = inner, key, log

    def get_shape(self):
        return self.inner.get_shape()

    def __getitem__(self, index):
        part = self.inner[index]
        self.log[self.key] += part.numel()
        return part


@pytest.fixture
def reads(monkeypatch) -> dict[str, Counter]:
    """Files opened, and numbers read of each key; anything but slices cannot be read through it."""
    logs = {"files": Counter(), "keys": Counter()}

    class WatchedFile:
        def __init__(self, path, framework):
            self.inner = safe_open(path, framework=framework)
            logs["files"][Path(path).name] += 1

        def __enter__(self):
            self.inner.__enter__()
            return self

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

        def get_slice(self, key):
            return WatchedSlice(self.inner.get_slice(key), key, logs["keys"])

    monkeypatch.setattr(bundle_lingene, "safe_open", WatchedFile)
    return logs


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("size", [(4, "1/2", 3), (6, 1, 2), (2, "1/2", 5)], ids=str)
def test_only_the_asked_components_and_only_slices_of_the_width_are_read(bundle, model, reads, constrained, size):
    """A quarter of a large bundle must cost a quarter of the reading, whatever the depth."""
    LinGeneForImageClassification.from_pretrained(bundle, constrained=constrained, **asked(*size))
    assert set(reads["files"]) == {"shared.safetensors", *(f"component-{n:02d}.safetensors" for n in range(size[2]))}
    small = LinGeneForImageClassification(helpers.tiny_config().sized(helpers.tiny_config().size(*size)))
    assert reads["keys"] == {key: tensor.numel() for key, tensor in small.state_dict().items()}


def test_files_that_a_size_does_not_need_may_be_missing_or_broken(bundle, model, tmp_path):
    """The proof by absence: no code can read what is not there."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    (folder / "component-03.safetensors").unlink()
    (folder / "component-04.safetensors").write_bytes(b"not a file of weights")
    for constrained in (False, True):
        loaded = LinGeneForImageClassification.from_pretrained(folder, num_components=3, constrained=constrained)
        torch.testing.assert_close(logits(loaded), logits(model, num_components=3), rtol=0, atol=1e-4)


def test_automodel_does_not_read_the_head(bundle, reads):
    """It has none to give it to."""
    AutoModel.from_pretrained(bundle, num_components=1)
    assert not [key for key in reads["keys"] if key.startswith("classifier")]


# -- depths never measured, budgets


@pytest.mark.parametrize("constrained", [False, True])
def test_only_a_depth_neither_trained_nor_measured_warns_and_once(load, tmp_path, caplog, constrained):
    """A depth nobody has tried may be worthless; a warning at every load would not be read."""
    folder = helpers.bundle(tmp_path / "bundle", helpers.tiny_config(trained_depths=[3, 4], depth_map="resample"))
    write_sizes(folder, [row(5, "1", 5, 900, 90, 0.5)])
    for depth, warnings in ((6, 0), (3, 0), (4, 0), (5, 0), (2, 1), (12, 1)):
        caplog.clear()
        load(folder, depth=depth, constrained=constrained)
        records = [record for record in caplog.records if "measure" in record.getMessage()]
        assert len(records) == warnings, f"depth {depth}"
        assert all(record.levelno == logging.WARNING and str(depth) in record.getMessage() for record in records)


def row(depth, width_ratio, num_components, params, macs, accuracy, latency_ms=None) -> dict:
    measured = {
        "params": params,
        "stored_params": params,
        "macs": macs,
        "accuracy": accuracy,
        "split": "test",
        "dataset": "none",
    }
    timed = {"latency_ms": latency_ms, "device": device_name()} if latency_ms else {}
    return asked(depth, width_ratio, num_components) | measured | timed


ROWS = [
    row(6, "1", 4, 2000, 2000, 0.99),
    row(6, "1", 5, 1000, 1000, 0.9, 9.0),
    row(4, "1", 4, 650, 700, 0.8, 7.0),
    row(3, "1", 5, 700, 600, 0.8, 8.0),
    row(5, "1/2", 5, 300, 650, 0.7, 5.0),
    row(3, "1/2", 2, 200, 100, 0.4, 1.0),
]
BUDGETS = [
    ({"max_params": 1e9}, (6, "1", 4)),
    ({"max_params": 1000}, (6, "1", 5)),
    ({"max_params": 999}, (3, "1", 5)),  # of two equally accurate ones the one with fewer MACs, though more parameters
    ({"max_params": 649}, (5, "1/2", 5)),
    ({"max_macs": 650}, (3, "1", 5)),
    ({"max_macs": 100}, (3, "1/2", 2)),
    ({"max_latency_ms": 1000}, (6, "1", 5)),  # the most accurate one was never timed
    ({"max_latency_ms": 7.5}, (4, "1", 4)),
    ({"max_params": 690, "max_macs": 690}, (5, "1/2", 5)),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """The tiny bundle with sizes measured, its configuration without a size asked for."""
    stored = {"depth": None, "num_components": None, "reference_depth": 6, "reference_components": 5}
    folder = helpers.bundle(tmp_path_factory.mktemp("measured") / "bundle", helpers.tiny_config(**stored))
    write_sizes(folder, ROWS[::-1])
    return folder


@pytest.mark.parametrize("budget, size", BUDGETS, ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_a_budget_takes_the_most_accurate_measured_size_within_it(
    measured, model, load, caplog, budget, size, constrained
):
    """Also on the boundary; of equals the one with fewest MACs; one line says which, and why."""
    loaded = load(measured, constrained=constrained, **budget)
    assert loaded.config.num_hidden_layers == size[0]
    assert loaded.config.hidden_size == 48 * Fraction(size[1])
    torch.testing.assert_close(logits(loaded), logits(model, **asked(*size)), rtol=0, atol=1e-4)
    (said,) = [record.getMessage() for record in caplog.records if "measured" in record.getMessage()]
    (chosen,) = [row for row in ROWS if size == (row["depth"], row["width_ratio"], row["num_components"])]
    assert f"depth {size[0]}, width ratio {size[1]}, {size[2]} components" in said and "\n" not in said
    assert all(f"`{name}`" in said for name in budget) and f"{100 * chosen['accuracy']:.1f} %" in said


def test_a_budget_works_where_the_stored_configuration_names_a_size(bundle, load, tmp_path):
    """`LinGeneConfig(depth=6, num_components=5)`, and every smaller bundle, stores a size that nobody asked for."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    write_sizes(folder, ROWS)
    assert LinGeneConfig.from_pretrained(folder).depth == 6
    assert load(folder, max_params=300).config.num_hidden_layers == 5
    load(bundle, constrained=True, depth=4).save_pretrained(tmp_path / "small")
    write_sizes(tmp_path / "small", ROWS)
    assert load(tmp_path / "small", max_params=300).config.num_hidden_layers == 5


@pytest.mark.parametrize("size", [(24, 24), (16, 28), (8, 8)], ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_another_image_size_interpolates_the_positions(bundle, load, constrained, size):
    """Asking for it contradicted the stored positions' shape; the reference is transformers' own interpolation."""
    pixels = helpers.images(height=size[0], width=size[1])
    loaded = load(bundle, image_size=size, constrained=constrained, **SMALLER)
    expected = load(bundle, **SMALLER).eval()(pixels, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(loaded.eval()(pixels).logits, expected, rtol=0, atol=1e-5)
    assert tuple(loaded.config.image_size) == size


def test_a_constrained_model_of_another_image_size_saves_as_a_bundle_of_it(bundle, tmp_path):
    """Its positions have been interpolated: what is saved says so."""
    model = LinGeneForImageClassification.from_pretrained(bundle, image_size=24, constrained=True)
    model.save_pretrained(tmp_path / "bundle")
    pixels = helpers.images(height=24)
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle")
    torch.testing.assert_close(again.eval()(pixels).logits, model.eval()(pixels).logits, rtol=0, atol=1e-5)


def test_a_budget_is_of_the_image_size_that_was_measured(measured, load):
    """MACs and accuracy in sizes.json hold for no other."""
    with pytest.raises(ValueError, match="do not give `image_size` as well"):
        load(measured, max_macs=1e12, image_size=24)
