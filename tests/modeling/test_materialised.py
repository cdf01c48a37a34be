"""Laws of a materialised model: a stock ViT with weights of its own, which saves, trains and takes adapters as such.

pytest tests/modeling/test_materialised.py
"""

import pytest
import torch
from modeling_helpers import distance
from transformers import ViTForImageClassification, ViTModel

from helpers import images, labels, tiny_config, tiny_model
from modeling_lingene import LinGeneForImageClassification, LinGeneModel


@pytest.mark.parametrize("size", [{}, {"depth": 2, "width_ratio": "1/2", "num_components": 3}])
def test_a_materialised_model_has_weights_of_its_own(size):
    """It takes the weights as they are in memory, and afterwards neither model sees what happens to the other."""
    model, pixels = tiny_model(), images()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        before = model(pixels, **size).logits
        vit = model.materialise(**size)
        assert distance(vit(pixels).logits, before) < 1e-5
        for parameter in vit.parameters():
            parameter.add_(1.0)
        assert torch.equal(model(pixels, **size).logits, before)
        changed = vit(pixels).logits
        for parameter in model.parameters():
            parameter.add_(1.0)
        assert torch.equal(vit(pixels).logits, changed)
    tensors = vit.state_dict().values()
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() for tensor in tensors)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in vit.parameters())


@pytest.mark.parametrize("size", [{}, {"depth": 2, "width_ratio": "1/2", "num_components": 3}])
def test_a_materialised_model_saves_as_a_plain_vit(size, tmp_path):
    """What comes out is stock: it needs no code of ours to load, and no two of its tensors share memory."""
    vit = tiny_model().materialise(**size)
    vit.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert "lingene" not in (tmp_path / "config.json").read_text().lower()
    again = ViTForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.eval()(images()).logits, vit(images()).logits)


def test_a_materialised_model_keeps_mode_labels_and_settings():
    """A ViT taken out in the middle of training goes on as its bundle was."""
    names = {number: f"class {number}" for number in range(7)}
    model = tiny_model(tiny_config(id2label=names, attn_implementation="eager", hidden_dropout_prob=0.1))
    model.name_or_path = "org/bundle"
    assert not model.materialise().training
    vit = model.train().materialise(depth=2)
    assert vit.training and all(module.training for module in vit.modules())
    assert vit.config.id2label == names and vit.config.hidden_dropout_prob == 0.1
    assert vit.config._attn_implementation == "eager"
    assert vit.name_or_path == "org/bundle (depth 2, width ratio 1, 5 components)" and vit.config.name_or_path == ""


@pytest.mark.parametrize("size", [{}, {"depth": 3, "width_ratio": "1/2", "num_components": 2}])
def test_the_headless_model_is_a_stock_vit_without_pooler(size):
    """The twin for features; its hidden states are those under the classifier of the other class."""
    model, pixels = tiny_model(model_class=LinGeneModel), images()
    vit = model.materialise(**size)
    assert type(vit) is ViTModel and vit.pooler is None
    with torch.no_grad():
        ours, stock = model(pixels, **size), vit(pixels)
        assert ours.last_hidden_state.shape == (3, 17, 24 if size else 48)
        assert distance(ours.last_hidden_state, stock.last_hidden_state) < 1e-5 and ours.pooler_output is None
        classifying = LinGeneForImageClassification(model.config).eval()
        missing = classifying.load_state_dict(model.state_dict(), strict=False)
        assert missing.missing_keys == ["classifier.weight", "classifier.bias"] and not missing.unexpected_keys
        expected = ours.last_hidden_state[:, 0] @ classifying.classifier.weight[:, : ours[0].shape[-1]].T
        assert distance(classifying(pixels, **size).logits, expected) < 1e-5


@pytest.mark.parametrize(
    "wanted",
    [
        {"target_modules": ["query", "value"]},
        {"target_modules": ["mlp.fc1"]},
        {"target_parameters": ["query.weight"]},
        {"target_modules": ["classifier"]},
        {"target_modules": ["patch_embeddings"]},
        {"target_modules": "all-linear"},
    ],
)
def test_adapters_on_a_constrained_model_are_refused_with_the_way_out(wanted):
    """An adapter on components trains (sum c A)(sum c B), not what its name says: refused before or in the first call.

    The modules of a bundle are read, never called, so that adapters on the others would be without effect.
    """
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"materialise\(\)"):
        peft.get_peft_model(tiny_model(), peft.LoraConfig(**wanted))(images())


def test_adding_an_adapter_is_refused_with_the_way_out():
    """transformers' own way to adapters."""
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"materialise\(\)"):
        tiny_model().add_adapter(peft.LoraConfig(target_modules=["query", "value"]))


def test_lora_trains_on_a_materialised_model():
    """The way out works: only adapters train, and merging them gives a plain ViT that computes the same."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    vit = tiny_model().materialise(depth=2, width_ratio="1/2")
    frozen = vit.state_dict()["vit.layers.0.attention.q_proj.weight"].clone()
    model = peft.get_peft_model(vit, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2 and all("lora_" in name for name in trained)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(pixel_values=images(), labels=labels()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    with torch.no_grad():
        expected = model(pixel_values=images()).logits
        merged = model.merge_and_unload()
        assert type(merged) is ViTForImageClassification and distance(merged(images()).logits, expected) < 1e-5
    assert distance(merged.state_dict()["vit.layers.0.attention.q_proj.weight"], frozen) > 1e-3
