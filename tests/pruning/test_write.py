"""Laws of what is written: the same function as the search decided, folded or not, stock where it can be.

pytest tests/pruning/test_write.py
"""

import pruning_helpers as made
import pytest
import torch
from transformers import SwinConfig, SwinForImageClassification, ViTForImageClassification

import helpers
from modeling_lingene.conversion.from_transformers import read_transformers
from modeling_lingene.lingene_swin import LinGenePrunedSwinForImageClassification
from modeling_lingene.lingene_vit import LinGeneViTForImageClassification
from modeling_lingene.pruning.choose import Choice
from modeling_lingene.pruning.search import make_searched, take_search
from modeling_lingene.pruning.write import dense_network, folded_network, simplest, write_network


MIXERS = ("conv3", "attention", "conv1", "none")
UNITS = {
    "vit": (tuple(range(0, 96, 3)), (5, 90, 95), tuple(range(96)), (0, 1, 2, 3, 4, 5, 6, 50)),
    "swin": (tuple(range(0, 48, 3)), (5, 40, 45), tuple(range(96)), (0, 1, 2, 3, 4, 5, 6, 50)),
}


def logits(model, dtype=torch.float64) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(made.pixels(model.config).to(dtype)).logits


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("family", made.FAMILIES)
def test_the_written_network_is_the_one_that_the_gates_decide(family, dtype, tolerance):
    """Whole networks, every mixer, MLPs of four sizes: what is tuned and measured is what was found."""
    network, kept = made.network(made.dense(family), dtype=dtype), UNITS[family]
    make_searched(network, temperature=1.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer, mixer, units in zip(network.layers, MIXERS, kept, strict=True):
            layer.mixer.mixing.normal_()
            made.shake(layer.mixer.norms)
            opened = ["none", "conv1", "conv3", "attention"].index(mixer)
            layer.mixer.gates.copy_(torch.tensor([1.0 if gate < opened else -1.0 for gate in range(3)]))
            layer.mlp.gates.fill_(-1.0)
            layer.mlp.gates[list(units)] = 1.0
    decided = logits(network, dtype)
    _, bottlenecks = take_search(network)
    written = write_network(network, Choice(MIXERS, kept, 0), bottlenecks)
    assert written.config.mixers == list(MIXERS)
    assert written.config.intermediate_sizes == list(map(len, kept))
    difference = (logits(written, dtype) - decided).abs().max()
    assert difference < tolerance * decided.abs().max()
    folded = folded_network(written)
    assert not [module for module in folded.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert (logits(folded, dtype) - decided).abs().max() < tolerance * decided.abs().max()
    assert folded_network(folded) is folded


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", made.FAMILIES)
def test_folding_works_with_and_without_biases(family, bias):
    """A BatchNorm brings a bias of its own."""
    config = made.mixed_config(qkv_bias=bias) if family == "vit" else made.swin_config(qkv_bias=bias, mixers=MIXERS)
    network = made.network(config, dtype=torch.float64)
    folded = folded_network(network)
    assert (logits(folded) - logits(network)).abs().max() < 1e-12 * logits(network).abs().max()
    assert folded.config.folded and not network.config.folded


def test_a_network_read_from_a_stock_model_answers_as_it_does(tmp_path):
    """Through the converter's lists, which refuse what is no ViT; and back as a stock model where nothing is left of
    the search.
    """
    vit = helpers.reference_vit(helpers.tiny_model(), 3)
    vit.save_pretrained(tmp_path)
    network = dense_network(read_transformers(str(tmp_path)))
    torch.testing.assert_close(logits(network, torch.float32), logits(vit, torch.float32), rtol=1e-5, atol=1e-5)
    units = tuple(range(0, 96, 2))
    chosen = Choice(("attention",) * 3, (units,) * 3, 0)
    written = write_network(network, chosen, [{}] * 3)
    stock = simplest(written)
    assert type(stock) is ViTForImageClassification and stock.config.intermediate_size == 48
    torch.testing.assert_close(logits(stock, torch.float32), logits(written, torch.float32), rtol=1e-5, atol=1e-5)
    stock.save_pretrained(tmp_path / "stock")
    again = dense_network(read_transformers(str(tmp_path / "stock")))
    torch.testing.assert_close(logits(again, torch.float32), logits(written, torch.float32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_network_read_from_a_stock_swin_answers_as_it_does(tmp_path, bias):
    """Three stages, whose maps windows, and joins of four patches, do not divide; MLPs of half of the units everywhere
    are a stock Swin again.
    """
    shape = dict(image_size=[18, 20], patch_size=1, embed_dim=24, depths=[2, 1, 2], num_heads=[3, 6, 12])
    config = SwinConfig(**shape, window_size=4, mlp_ratio=2.0, num_labels=7, qkv_bias=bias, drop_path_rate=0.2)
    swin = SwinForImageClassification(config).eval()
    made.shake(swin)
    swin.save_pretrained(tmp_path)
    network = dense_network(read_transformers(str(tmp_path)))
    assert network.config.intermediate_sizes == [48, 48, 96, 192, 192] and network.config.drop_path_rate == 0.2
    torch.testing.assert_close(logits(network, torch.float32), logits(swin, torch.float32), rtol=1e-5, atol=1e-5)
    half = tuple(tuple(range(0, size, 2)) for size in network.config.intermediate_sizes)
    written = write_network(network, Choice(("attention",) * 5, half, 0), [{}] * 5)
    stock = simplest(written)
    assert type(stock) is SwinForImageClassification and stock.config.mlp_ratio == 1.0
    torch.testing.assert_close(logits(stock, torch.float32), logits(written, torch.float32), rtol=1e-5, atol=1e-5)
    stock.save_pretrained(tmp_path / "stock")
    again = dense_network(read_transformers(str(tmp_path / "stock")))
    torch.testing.assert_close(logits(again, torch.float32), logits(written, torch.float32), rtol=1e-5, atol=1e-5)


def test_what_is_not_alike_in_every_layer_stays_a_class_of_its_own():
    """A stock ViT has one size for all MLPs, a Swin one multiple of the channels, and attention everywhere."""
    for fields in ({"intermediate_sizes": [96, 96, 88]}, {"mixers": ["attention", "none", "attention"]}):
        network = made.network(made.dense_config(3, **fields))
        assert simplest(network) is network and type(network) is LinGeneViTForImageClassification
    for fields in ({"intermediate_sizes": [48, 48, 96, 88]}, {"mixers": MIXERS}, {"intermediate_sizes": [48] * 4}):
        network = made.network(made.swin_config(**fields))
        assert simplest(network) is network and type(network) is LinGenePrunedSwinForImageClassification
