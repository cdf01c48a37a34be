"""Laws of the analyses of bundles of Swins, of which components stand for the layers of one stage, or of two.

pytest tests/analysis/test_stages.py
"""

import json

import numpy
import pytest
import torch
from test_components import by_definition
from transformers import AutoModel, AutoModelForImageClassification

import helpers
from modeling_lingene import LinGeneSwinModel
from modeling_lingene.analysis import figures as plots
from modeling_lingene.analysis import similarity
from modeling_lingene.analysis.coefficients import analyse_coefficients
from modeling_lingene.analysis.components import analyse_components, attention_map
from modeling_lingene.analysis.similarity import analyse_similarity, cka
from modeling_lingene.cli import main
from modeling_lingene.images.batches import image_processor


pytest.importorskip("matplotlib")

KINDS = {"one": [2], "two": [2, 3]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Bundles of three stages, of four layers or of four and two from components, with preprocessing; read only."""
    found = {kind: tmp_path_factory.mktemp("stages") / kind for kind in KINDS}
    for kind, stages in KINDS.items():
        helpers.tiny_swin(decomposed_stages=stages).save_pretrained(found[kind])
        image_processor(16).save_pretrained(found[kind])
    encoder = LinGeneSwinModel(helpers.tiny_swin().config)
    found["encoder"] = tmp_path_factory.mktemp("stages") / "encoder"
    helpers.drawn(encoder).save_pretrained(found["encoder"])
    image_processor(16).save_pretrained(found["encoder"])
    return found


@pytest.mark.parametrize("kind, depths", [("one", "2,4"), ("two", "2-1,4-2")])
def test_coefficients_have_a_panel_for_every_depth_and_stage(folders, tmp_path, monkeypatch, kind, depths):
    """By numpy, from the papers' formula; the text "4-2 stage2" is no number to count to."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    words = ["analyse", "coefficients", str(folders[kind]), "--depths", depths, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    tables = json.loads((tmp_path / "out" / "coefficients.json").read_text())["coefficients"]
    shapes = {"2": (2, 3), "4": (4, 3)}
    if kind == "two":  # at most one component for a layer of the stage
        shapes = {"2-1 stage2": (2, 3), "2-1 stage3": (1, 2), "4-2 stage2": (4, 3), "4-2 stage3": (2, 2)}
    assert list(tables) == list(shapes)
    for panel, (name, (layers, count)) in zip(figures[0].axes, shapes.items()):
        whole = 2 if "stage3" in name else 4  # whose first layers are selected
        expected = numpy.polynomial.chebyshev.chebvander(helpers.numpy_nodes(whole, "roots"), count - 1)[:layers]
        numpy.testing.assert_allclose(tables[name], expected, atol=1e-12)
        numpy.testing.assert_allclose([curve.get_ydata() for curve in panel.lines[:-1]], numpy.transpose(expected))
        assert all(list(curve.get_xdata()) == list(range(1, layers + 1)) for curve in panel.lines[:-1])
        assert panel.get_title() == (f"{name} layers" if kind == "one" else name)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [f"component {n}" for n in (1, 2, 3)]


def test_the_pictures_of_coefficients_are_drawn(folders, tmp_path):
    """Of the trained depth."""
    assert list(analyse_coefficients(folders["two"], tmp_path / "out")) == ["4-2 stage2", "4-2 stage3"]
    assert (tmp_path / "out" / "coefficients.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("size, grid", [((16, 16), (2, 2)), ((32, 24), (4, 3)), ((20, 16), (3, 2))])
def test_a_map_is_of_the_patches_of_the_last_stage(size, grid):
    """By autograd and numpy, of more and of odd patches, too: there are fewer than pixels divided by a patch."""
    pytest.importorskip("pytorch_grad_cam")
    model, pixel_values = helpers.tiny_swin().materialise(), helpers.images(1, *size)
    maps = [attention_map(model, pixel_values, lambda logits, n=n: logits[n])[0] for n in range(5)]
    spoken = [place for place, found in enumerate(maps) if found.any()]
    assert spoken and all(found.shape == size for found in maps)
    for place in spoken:
        expected = by_definition(model, pixel_values, place, 0, grid)
        numpy.testing.assert_allclose(maps[place].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["one", "two", "encoder"])
def test_components_of_a_swin_are_explained(folders, tmp_path, kind):
    """Of a classifier the first n say what a user loads with so many; of an encoder all of them are the whole."""
    pytest.importorskip("pytorch_grad_cam"), pytest.importorskip("sklearn")
    found = analyse_components(folders[kind], tmp_path / "out", "digits", device="cpu")
    assert len(found) == 2 and (tmp_path / "out" / "components.png").is_file()
    for picture in found:
        assert len(picture["alone"]) == len(picture["first"]) == 3
        assert picture["first"][-1]["score"] == 1 if kind == "encoder" else picture["explained"].startswith("LABEL_")


@pytest.mark.parametrize("kind, depth", [("one", 2), ("two", "2-1")])
def test_the_similarity_of_swins_is_of_their_stages(folders, tmp_path, monkeypatch, capsys, kind, depth):
    """In text, numbers and picture; by hand, of what stock models give."""
    pytest.importorskip("sklearn")
    seen, means, figures = [], similarity.layer_means, []
    monkeypatch.setattr(
        similarity, "layer_means", lambda encoder, batches: means(encoder, seen.append(list(batches)) or seen[-1])
    )
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    words = ["analyse", "similarity", str(folders[kind]), "--data", "digits", "--depth", str(depth), "--quiet"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "similarity.json").read_text())
    assert (told["rows"], told["columns"]) == ("stages", "stages") and numpy.shape(told["cka"]) == (3, 3)
    printed, panel = capsys.readouterr().out, figures[0].axes[0]
    assert "stage  1 is most alike to stage  1 of the reference (1.00)" in printed and "layer" not in printed
    assert panel.get_ylabel().startswith("Stages of ") and panel.get_xlabel() == "Stages of its full size"
    assert figures[0].get_suptitle() == "How alike stages are"
    pixel_values, states = torch.cat([batch["pixel_values"] for batch in seen[0]]), []
    for size in ({"depth": depth}, {}):
        with torch.no_grad():
            model = AutoModel.from_pretrained(folders[kind], **size).eval()
            states.append(model(pixel_values, output_hidden_states=True).hidden_states[1:])
    expected = [[cka(a.mean(1).double(), b.mean(1).double()) for b in states[1]] for a in states[0]]
    numpy.testing.assert_allclose(told["cka"], expected, atol=2e-4)


def test_a_swin_beside_a_vit_is_stages_beside_layers(folders, tmp_path, monkeypatch):
    """Each by its own word."""
    pytest.importorskip("sklearn")
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    helpers.tiny_model().save_pretrained(tmp_path / "vit")
    image_processor(16).save_pretrained(tmp_path / "vit")
    table = analyse_similarity(folders["one"], tmp_path / "out", "digits", reference=tmp_path / "vit", images=8)
    assert numpy.shape(table) == (3, 6)
    told, panel = json.loads((tmp_path / "out" / "similarity.json").read_text()), figures[0].axes[0]
    assert (told["rows"], told["columns"]) == ("stages", "layers")
    assert (panel.get_xlabel(), figures[0].get_suptitle()) == ("Layers of vit", "How alike stages and layers are")


def test_a_swins_stock_model_answers(folders):
    """What the tests above rest on."""
    assert AutoModelForImageClassification.from_pretrained(folders["two"], depth="2-1").config.depths == [2, 2, 1]
