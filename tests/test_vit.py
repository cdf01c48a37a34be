"""Laws of the functional ViT; reference: the modules of transformers' own ViT with the same weights."""

import pytest
import torch
from torch.nn import functional
from transformers import ViTConfig
from transformers.activations import ACT2FN
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTLayer

from helpers import STOCK_PARTS, images
from modeling_lingene.vit_lingene import (
    BlockSettings,
    attention_function,
    block,
    eager_attention,
    embed,
    interpolated_positions,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(module):
    """Every parameter drawn anew, gains around 1: initial gains and biases would leave half of a block untested."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + ("layernorm" in name and name.endswith("weight")))
    return module


def stock_layer(**fields):
    """A stock layer of 24 channels and 3 heads in float64, and its weights under a bundle's names."""
    config = ViTConfig(**{**dict(hidden_size=24, num_attention_heads=3, intermediate_size=40), **fields})
    layer = randomised(ViTLayer(config)).double().eval()
    state = layer.state_dict()
    keys = {f"{ours}.{kind}": f"{stock}.{kind}" for ours, stock in STOCK_PARTS.items() for kind in ("weight", "bias")}
    weights = {ours: state.pop(stock) for ours, stock in keys.items() if stock in state}
    assert not state
    return layer, weights


def settings_for(layer, config):
    return BlockSettings(
        head_size=config.hidden_size // config.num_attention_heads,
        layer_norm_eps=config.layer_norm_eps,
        activation=ACT2FN[config.hidden_act],
        hidden_dropout=config.hidden_dropout_prob if layer.training else 0.0,
        attention_dropout=config.attention_probs_dropout_prob if layer.training else 0.0,
        attend=attention_function(config._attn_implementation),
        module=layer.attention,
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "fields", [{}, {"qkv_bias": False}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1}, {"num_attention_heads": 6}]
)
def test_a_block_is_transformers_layer(fields, attention):
    """The same block carries every size of a bundle: where it differs from stock, materialised models differ too."""
    layer, weights = stock_layer(**fields, attn_implementation=attention)
    hidden = normal(2, 9, 24)
    ours, probabilities = block(hidden, weights, settings_for(layer, layer.attention.config))
    assert (ours - layer(hidden)).abs().max() < 1e-12
    assert (probabilities is None) == (attention == "sdpa")


def test_dropout_falls_where_stock_drops():
    """With the same seed the same activations are dropped: attention weights, and the outputs of both branches."""
    for fields in ({"hidden_dropout_prob": 0.5}, {"attention_probs_dropout_prob": 0.5}):
        layer, weights = stock_layer(**fields, attn_implementation="eager")
        layer.train()
        hidden = normal(2, 9, 24)
        torch.manual_seed(0)
        expected = layer(hidden)
        torch.manual_seed(0)
        ours, _ = block(hidden, weights, settings_for(layer, layer.attention.config))
        assert (ours - expected).abs().max() < 1e-6
        assert (ours - layer.eval()(hidden)).abs().max() > 0.1


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("scaling", [0.35, 1.0])
def test_eager_attention_is_torchs_scaled_dot_product_attention(tokens, scaling):
    """The written-out form, which returns attention weights, gives what the fused kernel gives."""
    query, key, value = (normal(2, 3, tokens, 8, seed=seed) for seed in range(3))
    expected = functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    mixed, weights = eager_attention(torch.nn.Identity(), query, key, value, None, scaling=scaling)
    assert mixed.shape == (2, tokens, 3, 8) and mixed.is_contiguous()
    assert (mixed.transpose(1, 2) - expected).abs().max() < 1e-6
    assert weights.shape == (2, 3, tokens, tokens)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(()).double(), atol=1e-6)
    assert (weights @ value - expected).abs().max() < 1e-6


def test_eager_attention_drops_in_training_only():
    """Evaluation is deterministic whatever probability is configured."""
    query, key, value = (normal(2, 3, 9, 8, seed=seed) for seed in range(3))
    module = torch.nn.Identity().eval()
    _, kept = eager_attention(module, query, key, value, None, dropout=0.5)
    _, dropped = eager_attention(module.train(), query, key, value, None, dropout=0.5)
    assert (kept > 0).all() and 0.3 < (dropped == 0).double().mean() < 0.7


def stock_embeddings(image_size=16):
    """Stock embeddings of 24 channels, and their tensors under a bundle's keys."""
    module = randomised(ViTEmbeddings(ViTConfig(hidden_size=24, image_size=image_size, patch_size=4))).double().eval()
    state = {name.replace("projection.", ""): tensor for name, tensor in module.state_dict().items()}
    return module, {f"embeddings.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (8, 8), (24, 16), (8, 32), (20, 44), (18, 19)])
def test_positions_are_interpolated_as_in_transformers(size):
    """Images of another size, also non-square ones and those with as many patches in another arrangement (8 x 32)."""
    module, weights = stock_embeddings()
    pixels = images(2, *size).double()
    assert (embed(pixels, weights, (16, 16), True) - module(pixels, interpolate_pos_encoding=True)).abs().max() < 1e-12
    target = (size[0] // 4, size[1] // 4)
    tokens = torch.empty(2, 1 + target[0] * target[1], 24)
    expected = module.interpolate_pos_encoding(tokens, *size)
    ours = interpolated_positions(weights["embeddings.position_embeddings"], (4, 4), target)
    assert (ours - expected).abs().max() < 1e-12


def test_positions_of_a_non_square_grid_are_transposed_with_it():
    """transformers assumes a square grid, so here the reference is a symmetry: rows and columns play the same part."""
    positions = normal(1, 1 + 2 * 5, 24)
    ours = interpolated_positions(positions, (2, 5), (3, 7))
    grid = positions[:, 1:].view(1, 2, 5, 24).transpose(1, 2).reshape(1, -1, 24)
    turned = interpolated_positions(torch.cat((positions[:, :1], grid), dim=1), (5, 2), (7, 3))
    back = turned[:, 1:].view(1, 7, 3, 24).transpose(1, 2).reshape(1, -1, 24)
    assert (ours[:, 1:] - back).abs().max() < 1e-12
    assert torch.equal(ours[:, 0], positions[:, 0])
    assert (interpolated_positions(positions, (2, 5), (2, 5)) - positions).abs().max() < 1e-12


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_embeddings_are_transformers(size):
    """Patches row by row, the class token first, positions on all of them."""
    module, weights = stock_embeddings(size)
    pixels = images(2, *size).double()
    assert torch.equal(embed(pixels, weights, size), module(pixels))


def test_images_of_the_wrong_shape_are_refused():
    """Each message names the argument, what was expected and what came."""
    _, weights = stock_embeddings()
    with pytest.raises(ValueError, match="`pixel_values` must have 3 channels, got 1"):
        embed(torch.zeros(1, 1, 16, 16).double(), weights, (16, 16))
    with pytest.raises(
        ValueError, match="`pixel_values` must be images of 16x16, got 16x32.*interpolate_pos_encoding"
    ):
        embed(torch.zeros(1, 3, 16, 32).double(), weights, (16, 16))


def test_an_unknown_attention_is_refused():
    """A misspelt name must not fall back to eager attention."""
    assert attention_function(None) is attention_function("eager") is eager_attention
    assert attention_function("sdpa") is not eager_attention
    with pytest.raises((KeyError, ValueError), match="flashy"):
        attention_function("flashy")
