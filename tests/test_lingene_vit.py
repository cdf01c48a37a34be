"""Laws of the pruned model class: a ViT where nothing was pruned, plain modules, its code beside it.

pytest tests/test_lingene_vit.py
"""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from pruning_helpers import dense_config, mixed_config, network
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import helpers
from modeling_lingene import LinGeneViTConfig, LinGeneViTForImageClassification, LinGeneViTModel
from modeling_lingene.images.batches import image_processor


def logits(model, pixels) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixels).logits


def stock_twin(model: LinGeneViTForImageClassification) -> ViTForImageClassification:
    """transformers' own ViT with the same weights, named by hand."""
    config, parts = model.config, {theirs: ours for ours, theirs in helpers.STOCK_PARTS.items()}
    shape = {
        name: getattr(config, name) for name in ("hidden_size", "num_attention_heads", "image_size", "patch_size")
    }
    shape |= {"layer_norm_eps": config.layer_norm_eps, "num_labels": config.num_labels}
    layers = {"num_hidden_layers": config.num_hidden_layers, "intermediate_size": config.intermediate_sizes[0]}
    vit, own, state = ViTForImageClassification(ViTConfig(**shape, **layers)).eval(), model.state_dict(), {}
    for key in vit.state_dict():
        part, _, kind = key.removeprefix("vit.").rpartition(".")
        if part.startswith("layers."):
            _, layer, part = part.split(".", 2)
            part = f"layers.{layer}.{parts[part].replace('attention.', 'mixer.')}"
        state[key] = own[f"{part.replace('.projection', '')}.{kind}"]
    vit.load_state_dict(state)
    return vit


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_with_attention_everywhere_it_is_transformers_vit(implementation):
    """The reference for embeddings, norms, attention, MLP and head."""
    model, pixels = network(dense_config()), helpers.images()
    vit = stock_twin(model)
    for one in (model, vit):
        one.set_attn_implementation(implementation)
    ours = model(pixels, output_hidden_states=True)
    theirs = vit(pixels, output_hidden_states=True)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-5)
    assert len(ours.hidden_states) == 5
    torch.testing.assert_close(ours.hidden_states[2], theirs.hidden_states[2], rtol=1e-5, atol=1e-5)
    larger = helpers.images(height=24)
    torch.testing.assert_close(
        model(larger, interpolate_pos_encoding=True).logits,
        vit(larger, interpolate_pos_encoding=True).logits,
        rtol=1e-5,
        atol=1e-5,
    )


def test_only_layers_that_have_attention_return_some():
    """Their weights are those of transformers' eager attention; a convolution has none."""
    model = network(mixed_config())
    model.set_attn_implementation("eager")
    found = model(helpers.images(), output_attentions=True).attentions
    assert [tuple(one.shape) for one in found] == [(3, 4, 17, 17)] * 2
    torch.testing.assert_close(found[0].sum(-1), torch.ones(3, 4, 17))


@pytest.mark.parametrize("fields", [{}, {"folded": True}, {"qkv_bias": False}, {"image_size": [16, 24]}], ids=str)
def test_saved_and_loaded_it_answers_the_same(tmp_path, fields):
    """Weights and BatchNorm statistics were changed before: nothing that is made anew can pass."""
    model = network(mixed_config(**fields))
    pixels = helpers.images(height=16, width=24 if fields.get("image_size") else 16)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(again, pixels), logits(model, pixels))
    assert {**again.config.to_dict(), "_name_or_path": ""} == model.config.to_dict()
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(encoder, LinGeneViTModel)
    with torch.no_grad():
        hidden = encoder(pixels).last_hidden_state
    torch.testing.assert_close(model.classifier(hidden[:, 0]), logits(model, pixels))


def test_it_loads_where_this_package_is_not_installed(tmp_path):
    """By both Auto classes, from the code beside its weights, and what is saved there loads again."""
    model = network(mixed_config())
    model.save_pretrained(tmp_path / "model")
    program = """
import json, sys, torch
sys.modules["modeling_lingene"] = None
from transformers import AutoModel, AutoModelForImageClassification
folder = sys.argv[1]
pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
model = AutoModelForImageClassification.from_pretrained(f"{folder}/model", trust_remote_code=True).eval()
model.save_pretrained(f"{folder}/again")
again = AutoModelForImageClassification.from_pretrained(f"{folder}/again", trust_remote_code=True).eval()
encoder = AutoModel.from_pretrained(f"{folder}/again", trust_remote_code=True).eval()
hidden = again.classifier(encoder(pixels).last_hidden_state[:, 0])
print(json.dumps([values.tolist() for values in (model(pixels).logits, again(pixels).logits, hidden)]))
"""
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONSAFEPATH": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    expected = logits(model, torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16))
    torch.testing.assert_close(found, expected.expand(3, 1, 7), rtol=0, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    """Every parameter of every kind of layer; BatchNorm in training sees the same batch twice."""
    model = network(mixed_config()).train()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable()
    for one in (model, other):
        one(helpers.images(), labels=helpers.labels()).loss.backward()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters()):
        assert mine.grad is not None and mine.grad.any() or name.endswith("key.bias"), name
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_it_is_exported_and_compiled():
    """One program for every size of a batch; no graph breaks."""
    model, pixels = network(mixed_config()), helpers.images(5)
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (), {"pixel_values": helpers.images()}, dynamic_shapes={"pixel_values": {0: batch}}
    )
    with torch.no_grad():
        torch.testing.assert_close(program.module()(pixel_values=pixels).logits, logits(model, pixels))
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(pixels).logits, logits(model, pixels))


def test_transformers_trainer_trains_and_saves_it(tmp_path):
    """Its best checkpoint comes back by the raw names of the state dict."""
    model = network(mixed_config())
    data = [
        {"pixel_values": image, "labels": int(label)} for image, label in zip(helpers.images(8), helpers.labels(8))
    ]
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        report_to=[],
        use_cpu=True,
        learning_rate=1e-3,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    best = AutoModelForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    torch.testing.assert_close(logits(trainer.model, helpers.images()), logits(best, helpers.images()))


def test_a_pushed_model_takes_its_code_along(tmp_path):
    """config.json names both classes whichever was saved."""
    LinGeneViTModel(mixed_config()).save_pretrained(tmp_path)
    image_processor(16).save_pretrained(tmp_path)
    code = {path.name for path in tmp_path.glob("*.py")}
    named = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(named) == {"AutoConfig", "AutoModel", "AutoModelForImageClassification"}
    assert {f"{name.split('.')[0]}.py" for name in named.values()} <= code
    assert code == set(helpers.code_of("lingene_vit")) and "loading_lingene.py" not in code  # which is a bundle's


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"mixers": ["attention"]}, "`mixers` has 1 layers and `intermediate_sizes` has 5"),
        ({"mixers": [], "intermediate_sizes": []}, "`mixers` has 0 layers"),
        (
            {"mixers": ["attention", "conv5", "none", "conv1", "none"]},
            "`mixers` in the model must be a list, each one of",
        ),
        ({"mixers": "attention"}, "`mixers` in the model must be a list"),
        (
            {"intermediate_sizes": [96, 0, 8, 8, 8]},
            "`intermediate_sizes` in the model must be a list, each an integer",
        ),
        ({"num_hidden_layers": 4}, "`num_hidden_layers` 4 contradicts the 5 `mixers`"),
        ({"num_attention_heads": 5}, "`hidden_size` 48 is not a multiple of `num_attention_heads` 5"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, said):
    """By field, before a weight is made."""
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        mixed_config(**fields)


@pytest.mark.parametrize("field, value", [("mixers", [1]), ("folded", "yes"), ("hidden_size", -1), ("pruned_from", 3)])
def test_a_damaged_configuration_file_is_named_by_field(tmp_path, field, value):
    """As that of a bundle."""
    mixed_config().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(ValueError, match=f"`{field}` in `config.json` must be"):
        AutoConfig.from_pretrained(tmp_path)


def test_the_default_configuration_is_vit_base():
    """What transformers' own tools make of a class without arguments."""
    config = LinGeneViTConfig()
    with torch.device("meta"):
        count = LinGeneViTModel(config).num_parameters()
        stock = AutoModel.from_config(ViTConfig(), add_pooling_layer=False).num_parameters()
    assert count == stock
