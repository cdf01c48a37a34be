"""One size out of a bundle: the right numbers, in a stock model, with all that stock loading offers.

pytest tests/loading/test_loaded_vits.py
"""

import json
import re
import shutil
from collections import Counter
from fractions import Fraction

import numpy
import pytest
import torch
import yaml
from loads import SMALLER, VARIANTS, asked, headless, logits, row, write_sizes
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
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, bundle_lingene


SIZES = [(6, "1", 5), (4, "1/2", 3), (1, "1", 1), (5, 0.5, 5), (2, 1, 2), (3, "1/2", 1)]


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
    from modeling_lingene.images.batches import image_processor

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
