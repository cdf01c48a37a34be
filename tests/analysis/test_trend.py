"""Laws of the linear trend over depth: PCA of normalised layers, by numpy; stacks of all kinds of models are found.

pytest tests/analysis/test_trend.py
"""

import json

import numpy
import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BeitConfig,
    BeitModel,
    BertConfig,
    BertModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    MobileViTConfig,
    MobileViTModel,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

import helpers
from modeling_lingene.analysis import trend
from modeling_lingene.analysis.trend import analyse_trend, kinds_of, linear_trend, stacks_of
from modeling_lingene.cli import main


pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def on_a_line(noise: float, layers: int = 8) -> list[dict[str, torch.Tensor]]:
    """Two kinds of matrices that move along a line with depth, and noise."""
    return [
        {
            kind: 5 * normal(40, seed=seed)
            + layer * normal(40, seed=seed + 10)
            + noise * normal(40, seed=100 * layer + seed)
            for seed, kind in enumerate(("fc1", "fc2"))
        }
        for layer in range(layers)
    ]


def first_axis(rows: numpy.ndarray) -> tuple[numpy.ndarray, float]:
    """Scores and share of variance, from the eigenvectors of the covariance."""
    centred = rows - rows.mean(0)
    values, vectors = numpy.linalg.eigh(centred.T @ centred)
    return centred @ vectors[:, -1], values[-1] / values.sum()


@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_a_trend_is_two_principal_component_analyses(noise):
    """By numpy; and the axis points where depth grows."""
    layers = on_a_line(noise)
    found, scores = linear_trend(layers), []
    for kind in ("fc1", "fc2"):
        rows = numpy.stack([layer[kind].numpy() for layer in layers])
        one, share = first_axis(rows / numpy.linalg.norm(rows, axis=1, keepdims=True))
        numpy.testing.assert_allclose(numpy.abs(found.kinds[kind].values), numpy.abs(one), rtol=1e-6, atol=1e-9)
        assert found.kinds[kind].explained == pytest.approx(share)
        correlation = numpy.corrcoef(one, range(8))[0, 1]
        scores.append(one * numpy.sign(correlation))
        assert found.kinds[kind].correlation == pytest.approx(abs(correlation))
    one, share = first_axis(numpy.stack(scores, axis=1))
    correlation = numpy.corrcoef(one, range(8))[0, 1]
    numpy.testing.assert_allclose(found.values, one * numpy.sign(correlation), rtol=1e-6, atol=1e-9)
    assert (found.explained, found.correlation) == (pytest.approx(share), pytest.approx(abs(correlation)))


def test_a_line_is_called_one_and_noise_is_called_weak():
    """A plain sentence, where a picture alone would be believed."""
    line = linear_trend(on_a_line(0.1))
    assert line.strong and line.correlation > 0.95 and "along a line" in line.sentence()
    noise = linear_trend([{"fc": normal(40, seed=seed), "out": normal(40, seed=seed + 50)} for seed in range(8)])
    assert not noise.strong and "weak" in noise.sentence()
    assert f"{100 * noise.explained:.0f} %" in noise.sentence() and f"{noise.correlation:.2f}" in noise.sentence()
    few = linear_trend(on_a_line(0.1, layers=4))
    assert few.strong and few.sentence().endswith("with depth, as 4 layers now and then do by chance.")
    assert "chance" not in line.sentence()
    same = linear_trend([{"fc": normal(40)}] * 4)
    assert (same.explained, same.correlation) == (0, 0) and not same.strong


class Layer(nn.Module):
    """Attention of 4 channels with fused or separate queries and keys."""

    def __init__(self, fused: bool):
        super().__init__()
        parts = {"qkv": 12} if fused else {"query": 4, "key": 4, "value": 4}
        for name, size in parts.items():
            self.add_module(name, nn.Linear(4, size))
        self.norm = nn.LayerNorm(4)


def test_queries_and_keys_enter_as_their_product():
    """A turn of both at once changes no attention, and no trend (Eq. 10); fused ones are taken apart first."""
    whole, parts = Layer(fused=True), Layer(fused=False)
    weights = whole.qkv.weight.detach().split(4)
    for module, weight in zip((parts.query, parts.key, parts.value), weights):
        module.weight.data = weight.clone()
    found = kinds_of(parts)
    assert set(found) == {"query x key", "value"}
    torch.testing.assert_close(found["query x key"], (weights[0].T @ weights[1]).flatten())
    for name, vector in kinds_of(whole).items():
        torch.testing.assert_close(vector, found[name])
    turn, _ = torch.linalg.qr(torch.randn(4, 4))
    for module in (parts.query, parts.key):
        module.weight.data = turn @ module.weight.data
    torch.testing.assert_close(kinds_of(parts)["query x key"], found["query x key"])


SMALL = dict(hidden_size=16, num_attention_heads=2, intermediate_size=32, num_hidden_layers=4)
SEEN = dict(image_size=16, patch_size=8)
OF_TIMM = dict(embed_dim=16, depth=4, num_heads=2, img_size=32)
MODELS = {
    "vit, dino": (ViTModel, ViTConfig(**SMALL, **SEEN), {"layers": 4}),
    "deit": (DeiTModel, DeiTConfig(**SMALL, **SEEN), {"layers": 4}),
    "mae": (ViTMAEModel, ViTMAEConfig(**SMALL, **SEEN), {"layers": 4}),
    "beit": (BeitModel, BeitConfig(**SMALL, **SEEN, vocab_size=20), {"layers": 4}),
    "timm, moco": (
        TimmWrapperModel,
        TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=OF_TIMM, do_pooling=False),
        {"timm_model.blocks": 4},
    ),
    "roberta": (RobertaModel, RobertaConfig(**SMALL, vocab_size=20), {"encoder.layer": 4}),
    "bert": (BertModel, BertConfig(**SMALL, vocab_size=20), {"encoder.layer": 4}),
    "dinov2": (Dinov2Model, Dinov2Config(**SMALL, image_size=28, patch_size=14), {"encoder.layer": 4}),
    "swin": (
        SwinModel,
        SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[2, 3, 4], num_heads=[1, 2, 2], window_size=2),
        {"encoder.layers.1.blocks": 3, "encoder.layers.2.blocks": 4},
    ),
    "mobilevit": (
        MobileViTModel,
        MobileViTConfig(image_size=32, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32]),
        {"encoder.layer.3.transformer.layer": 4, "encoder.layer.4.transformer.layer": 3},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_stacks_of_equal_layers_are_found_and_queries_have_their_keys(name, tmp_path, monkeypatch):
    """From a folder, per stage where a model has stages; attention is read as such, of timm's fused maps too."""
    model_class, config, expected = MODELS[name]
    if model_class is TimmWrapperModel:
        pytest.importorskip("timm")
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path / "model")
    drawn = []
    monkeypatch.setattr(trend, "plot_trends", lambda trends, *where: drawn.append(trends))
    trends = analyse_trend(tmp_path / "model", tmp_path / "out")
    assert {stack: len(one.values) for stack, one in trends.items()} == expected and drawn == [trends, trends]
    for stack, layers in stacks_of(model).items():
        kinds = kinds_of(layers[0])
        assert trends[stack].values == linear_trend([kinds_of(layer) for layer in layers]).values
        assert sum(" x " in kind for kind in kinds) == 1 and not any(
            "query" in kind for kind in kinds if " x " not in kind
        )


def test_a_command_writes_numbers_and_pictures(tmp_path, capsys):
    """Of a bundle, too: what it materialises to is what it says."""
    helpers.bundle(tmp_path / "bundle", helpers.tiny_config())
    assert main(["analyse", "trend", str(tmp_path / "bundle"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    told = capsys.readouterr().out
    (row,) = (stacks := json.loads((tmp_path / "out" / "trend.json").read_text())["stacks"]).values()
    expected = linear_trend(
        [kinds_of(layer) for layer in stacks_of(AutoModel.from_pretrained(tmp_path / "bundle"))[next(iter(stacks))]]
    )
    assert row["correlation"] == pytest.approx(expected.correlation, abs=1e-4) and len(row["values"]) == 6
    assert row["sentence"] == expected.sentence() and row["sentence"] in told
    assert (tmp_path / "out" / "trend.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "out" / "trend.svg").read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {trend.RESULTS_FILE, *trend.PICTURES}


def test_a_picture_shows_the_numbers(monkeypatch, tmp_path):
    """The points on it are the places of the layers; a weak trend is called weak."""
    from modeling_lingene.analysis import figures as plots

    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    trends = {"line": linear_trend(on_a_line(0.1)), "noise": linear_trend(on_a_line(30.0))}
    plots.plot_trends(trends, tmp_path / "x.png")
    for panel, (name, one) in zip(figures[0].axes, trends.items()):
        line, layers = panel.lines
        assert list(layers.get_xdata()) == list(range(1, 9)) and list(layers.get_ydata()) == one.values
        numpy.testing.assert_allclose(
            line.get_ydata(), numpy.polyval(numpy.polyfit(range(8), one.values, 1), range(8))
        )
        assert name in panel.get_title() and ("weak" in panel.get_title()) == (not one.strong)
    with pytest.raises(ValueError, match="at least one stack"):
        plots.plot_trends({}, tmp_path / "x.png")


@pytest.mark.parametrize("case", ["nothing", "no stack", "full"])
def test_what_has_no_trend_is_refused_and_nothing_is_written(tmp_path, case):
    """In one sentence, before any work."""
    model, out = tmp_path / "model", tmp_path / "out"
    if case == "no stack":
        ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])).save_pretrained(model)
    elif case == "full":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    said = {
        "nothing": "`model` must be a model .* there is no folder",
        "no stack": "no stack of at least 3 equal",
        "full": "`out`",
    }
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=said[case]):
        analyse_trend(model, out)
    assert sorted(tmp_path.rglob("*")) == before
