"""Laws of the similarity of layers: CKA by its definition, of what stock models give on the same pictures.

pytest tests/analysis/test_similarity.py
"""

import itertools
import json

import numpy
import pytest
import torch
from transformers import AutoModel

import helpers
from modeling_lingene import LinGeneModel
from modeling_lingene.analysis import figures as plots
from modeling_lingene.analysis import similarity
from modeling_lingene.analysis.similarity import analyse_similarity, cka
from modeling_lingene.cli import main
from modeling_lingene.images.batches import image_processor


pytest.importorskip("matplotlib")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def u_statistic(k: numpy.ndarray, other: numpy.ndarray) -> float:
    """Of the Hilbert-Schmidt independence criterion, by its definition: means over tuples of different images."""
    count, three, four = len(k), 0.0, 0.0
    two = numpy.mean([k[i, j] * other[i, j] for i, j in itertools.permutations(range(count), 2)])
    three = numpy.mean([k[i, j] * other[i, q] for i, j, q in itertools.permutations(range(count), 3)])
    four = numpy.mean([k[i, j] * other[q, r] for i, j, q, r in itertools.permutations(range(count), 4)])
    return two + four - 2 * three


def test_the_similarity_is_the_unbiased_estimate_by_its_definition():
    """By loops over all tuples of images."""
    one, other = normal(7, 3), normal(7, 5, seed=1)
    other[:, :3] += one
    grams = [(features @ features.T).numpy() for features in (one, other)]
    both, own, others = (u_statistic(grams[a], grams[b]) for a, b in ((0, 1), (0, 0), (1, 1)))
    assert cka(one, other) == pytest.approx(both / (own * others) ** 0.5, rel=1e-9) and 0.2 < cka(one, other) < 0.99


def test_a_turn_a_scale_and_a_shift_change_nothing_and_strangers_have_nothing_in_common():
    """What layers may do without saying anything else."""
    one, (turn, _) = normal(60, 8), torch.linalg.qr(normal(8, 8, seed=1))
    assert cka(one, 3 * one @ turn + 5) == pytest.approx(1)
    assert cka(one, one[:, :4]) < 0.95
    assert abs(numpy.mean([cka(one, normal(60, 200, seed=seed)) for seed in range(2, 12)])) < 0.03
    assert cka(one, torch.ones(60, 4, dtype=torch.float64)) == 0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """An encoder of six layers with preprocessing; read only."""
    folder = tmp_path_factory.mktemp("similarity") / "bundle"
    config = helpers.tiny_config(image_size=8, patch_size=2, trained_depths=[3, 6])
    helpers.tiny_model(config, model_class=LinGeneModel).save_pretrained(folder)
    image_processor(8).save_pretrained(folder)
    return folder


def test_a_size_is_compared_with_the_full_one_layer_by_layer(bundle, tmp_path, monkeypatch, capsys):
    """As a user would by hand: stock models, their hidden states, the mean of the tokens."""
    seen, means = [], similarity.layer_means
    monkeypatch.setattr(
        similarity, "layer_means", lambda encoder, batches: means(encoder, seen.append(list(batches)) or seen[-1])
    )
    table = analyse_similarity(bundle, tmp_path / "out", "digits", images=40, depth=3)
    assert len(table) == 3 and all(len(row) == 6 for row in table)
    pixel_values = torch.cat([batch["pixel_values"] for batch in seen[0]])
    assert pixel_values.shape == (40, 3, 8, 8) and len(pixel_values.flatten(1).unique(dim=0)) > 35
    small, whole = (AutoModel.from_pretrained(bundle, **size).eval() for size in ({"depth": 3}, {}))
    with torch.no_grad():
        states = [model(pixel_values, output_hidden_states=True).hidden_states[1:] for model in (small, whole)]
    expected = [[cka(*(s.mean(1).double() for s in pair)) for pair in ((a, b) for b in states[1])] for a in states[0]]
    numpy.testing.assert_allclose(table, expected, atol=2e-4)
    found = json.loads((tmp_path / "out" / "similarity.json").read_text())
    assert found["cka"] == table and found["size"] == {"depth": "3"} and found["images"] == 40
    command = ["analyse", "similarity", str(bundle), "--data", "digits", "--out", str(tmp_path / "again"), "--quiet"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert all(f"layer  {n} is most alike to layer  {n} of the reference (1.00)" in told for n in range(1, 7))
    assert (tmp_path / "again" / "similarity.png").read_bytes()[:4] == b"\x89PNG"


def test_the_picture_holds_the_table(tmp_path, monkeypatch):
    """Rows are the model's layers, the first below."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plots.plot_similarity([[1.0, 0.2, 0.1], [0.3, 0.8, 0.4]], tmp_path / "x.png", "small", "whole")
    panel = figures[0].axes[0]
    assert [text.get_text() for text in panel.texts] == ["1.00", "0.20", "0.10", "0.30", "0.80", "0.40"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("Layers of whole", "Layers of small")
    assert not panel.yaxis_inverted()


@pytest.mark.parametrize(
    "options, said",
    [
        (["{bundle}"], "`--data` says on which pictures"),
        (["{plain}", "--data", "digits"], "`--reference` is by default a bundle's, and"),
        (["{plain}", "--data", "digits", "--depth", "2", "--reference", "{bundle}"], "`--depth` chooses a size of a"),
        (["{bundle}", "--data", "digits", "--reference", "{nothing}"], "`--reference` "),
        (["{bundle}", "--data", "{nothing}"], "`--data`"),
        (["{bundle}", "--data", "digits", "--depths", "3"], "`--depths` is of coefficients"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(bundle, tmp_path, capsys, options, said):
    """And nothing is written."""
    AutoModel.from_pretrained(bundle, depth=3).save_pretrained(tmp_path / "plain")
    places = {"bundle": bundle, "plain": tmp_path / "plain", "nothing": tmp_path / "nothing"}
    words = [word.format(**places) for word in options]
    assert main(["analyse", "similarity", *words, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1] and not (tmp_path / "out").exists()
