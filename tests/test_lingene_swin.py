"""Laws of the pruned Swin's class: a Swin where nothing was pruned, plain modules, its code beside it.

pytest tests/test_lingene_swin.py
"""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from pruning_helpers import network, pixels, swin_config
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, SwinConfig, SwinForImageClassification

import helpers
from modeling_lingene import LinGenePrunedSwinConfig, LinGenePrunedSwinModel


MIXED = dict(mixers=["conv3", "attention", "none", "conv1"], intermediate_sizes=[48, 8, 40, 17])


def mixed_config(**fields) -> LinGenePrunedSwinConfig:
    """All four mixers, MLPs of four sizes."""
    return swin_config(**{**MIXED, **fields})


def logits(model, images) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images).logits


def stock_twin(model) -> SwinForImageClassification:
    """transformers' own Swin with the same weights, named by hand."""
    config, own = model.config, model.state_dict()
    shape = {name: getattr(config, name) for name in ("image_size", "patch_size", "embed_dim", "depths", "num_heads")}
    shape |= {"layer_norm_eps": config.layer_norm_eps, "num_labels": config.num_labels, "window_size": 4}
    swin, state = SwinForImageClassification(SwinConfig(**shape, mlp_ratio=2.0)).eval(), {}
    parts = {theirs: ours for ours, theirs in helpers.STOCK_PARTS.items()}
    for key in swin.state_dict():
        name = key.removeprefix("swin.").removeprefix("encoder.")
        words = name.split(".")
        if "blocks" in words:
            flat = 2 * int(words[1]) + int(words[3])
            part, kind = ".".join(words[4:-1]), words[-1]
            if kind == "relative_position_bias_table":
                state[key] = own[f"layers.{flat}.mixer.position_bias"]
                continue
            state[key] = own[f"layers.{flat}.{parts[part].replace('attention.', 'mixer.')}.{kind}"]
        elif "downsample" in words:
            state[key] = own[f"downsamples.{words[1]}.{'.'.join(words[3:])}"]
        else:
            state[key] = own[name.replace("projection.", "")]
    swin.load_state_dict(state)
    return swin


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_with_attention_everywhere_it_is_transformers_swin(implementation):
    """The reference for patches, windows, shifts, joins of four patches, MLP and head; images of any size."""
    model = network(swin_config())
    swin = stock_twin(model)
    for one in (model, swin):
        one.set_attn_implementation(implementation)
    for images in (pixels(model.config), helpers.images(height=31, width=26)):
        ours, theirs = (one(images, output_hidden_states=True) for one in (model, swin))
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-5)
        assert len(ours.hidden_states) == len(theirs.hidden_states) == 3
        for mine, other in zip(ours.hidden_states, theirs.hidden_states):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_a_layer_is_left_out_in_training_as_often_as_its_rate_says():
    """Stochastic depth grows with the layer, from none to `drop_path_rate`, and is off in evaluation."""
    model = network(swin_config(drop_path_rate=0.6))
    assert [model.train().settings(layer).drop_path for layer in range(4)] == pytest.approx([0, 0.2, 0.4, 0.6])
    images = pixels(model.config)
    assert not torch.equal(model(images).logits, model(images).logits)
    assert model.eval().settings(3).drop_path == 0 and torch.equal(model(images).logits, model(images).logits)


def test_only_layers_that_have_attention_return_some():
    """Per window of the padded map, 3 x 4 of them; a convolution has none."""
    model = network(mixed_config())
    model.set_attn_implementation("eager")
    found = model(pixels(model.config), output_attentions=True).attentions
    assert [tuple(one.shape) for one in found] == [(3 * 12, 3, 16, 16)]
    torch.testing.assert_close(found[0].sum(-1), torch.ones(36, 3, 16))


@pytest.mark.parametrize("fields", [{}, {"folded": True}, {"qkv_bias": False}], ids=str)
def test_saved_and_loaded_it_answers_the_same(tmp_path, fields):
    """Weights and BatchNorm statistics were changed before: nothing that is made anew can pass."""
    model = network(mixed_config(**fields))
    images = pixels(model.config)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(again, images), logits(model, images))
    assert {**again.config.to_dict(), "_name_or_path": ""} == model.config.to_dict()
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(encoder, LinGenePrunedSwinModel)
    with torch.no_grad():
        found = encoder(images)
    torch.testing.assert_close(model.classifier(found.last_hidden_state.mean(1)), logits(model, images))
    torch.testing.assert_close(model.classifier(found.pooler_output), logits(model, images))


@pytest.mark.slow  # a new process; a ViT is loaded in one at every run
def test_it_loads_where_this_package_is_not_installed(tmp_path):
    """By both Auto classes, from the code beside its weights; a Swin's takes along what it needs and no more."""
    model = network(mixed_config())
    model.save_pretrained(tmp_path / "model")
    code = set(helpers.code_of("lingene_swin"))
    assert {path.name for path in (tmp_path / "model").glob("*.py")} == code and "loading_lingene.py" not in code
    program = """
import json, sys, torch
sys.modules["modeling_lingene"] = None
from transformers import AutoModel, AutoModelForImageClassification
folder = sys.argv[1]
pixels = torch.linspace(-1, 1, 3 * 24 * 28).view(1, 3, 24, 28)
model = AutoModelForImageClassification.from_pretrained(f"{folder}/model", trust_remote_code=True).eval()
model.save_pretrained(f"{folder}/again")
again = AutoModelForImageClassification.from_pretrained(f"{folder}/again", trust_remote_code=True).eval()
encoder = AutoModel.from_pretrained(f"{folder}/again", trust_remote_code=True).eval()
hidden = again.classifier(encoder(pixels).pooler_output)
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
    expected = logits(model, torch.linspace(-1, 1, 3 * 24 * 28).view(1, 3, 24, 28))
    torch.testing.assert_close(found, expected.expand(3, 1, 7), rtol=0, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    """Every parameter of every kind of layer; BatchNorm in training sees the same batch twice."""
    model = network(mixed_config()).train()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable()
    for one in (model, other):
        one(pixels(model.config), labels=helpers.labels()).loss.backward()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters()):
        assert mine.grad is not None and mine.grad.any() or name.endswith("key.bias"), name
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_it_is_exported():
    """One program for every size of a batch."""
    model = network(mixed_config())
    images = pixels(model.config, 5)
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    example = {"pixel_values": pixels(model.config)}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(pixel_values=images).logits, logits(model, images))


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"mixers": ["attention"]}, "`mixers` has 1 layers and `intermediate_sizes` has 4"),
        ({"depths": [2, 3]}, "`depths` [2, 3] are 5 layers, and `mixers` 4"),
        ({"depths": [4]}, "`num_heads` must be 1 numbers, one a stage as in `depths`, got [3, 6]"),
        ({"num_heads": [3, 5]}, "`num_heads` 5 of stage 2 do not divide its 48 channels"),
        ({"num_heads": [3, 3]}, "`num_heads` [3, 3] must double with the channels"),
        ({"window_size": 7}, "`image_size` [24, 28] leaves the last of 2 stages 6 patches on a side, fewer than"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, said):
    """By field, before a weight is made."""
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        swin_config(**fields)


@pytest.mark.parametrize(
    "field, value", [("mixers", [1]), ("depths", "2-2"), ("num_heads", [0, 0]), ("embed_dim", -1)]
)
def test_a_damaged_configuration_file_is_named_by_field(tmp_path, field, value):
    """As that of a bundle."""
    mixed_config().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(ValueError, match=f"`{field}` in `config.json` must be"):
        AutoConfig.from_pretrained(tmp_path)


def test_the_default_configuration_is_swin_tiny():
    """What transformers' own tools make of a class without arguments."""
    with torch.device("meta"):
        count = LinGenePrunedSwinModel(LinGenePrunedSwinConfig()).num_parameters()
        stock = AutoModel.from_config(SwinConfig()).num_parameters()
    assert count == stock
