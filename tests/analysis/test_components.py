"""Laws of what components look at: maps are Grad-CAM's by its definition, models those of the components' formula.

pytest tests/analysis/test_components.py
"""

import json

import numpy
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

import helpers
from modeling_lingene import LinGeneForImageClassification, LinGeneModel
from modeling_lingene.analysis import components
from modeling_lingene.analysis import figures as plots
from modeling_lingene.analysis.components import alone, analyse_components, attention_map
from modeling_lingene.cli import main
from modeling_lingene.families_lingene import FAMILIES
from modeling_lingene.images.batches import image_processor


pytest.importorskip("matplotlib")
pytest.importorskip("pytorch_grad_cam")

WIDE = {"vit": dict(image_size=[16, 24]), "dinov2": dict(family="dinov2", preset="paper")}
WIDE["dinov2_with_registers"] = dict(family="dinov2_with_registers", num_register_tokens=3)


def save(folder, model_class=LinGeneForImageClassification, **fields):
    """A bundle with preprocessing, every weight changed."""
    config = helpers.tiny_config(depth=3, num_components=3, **fields)
    helpers.tiny_model(config, model_class=model_class).save_pretrained(folder)
    image_processor(config.image_size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A classifier of pictures that are not square; read only."""
    return save(tmp_path_factory.mktemp("components") / "bundle", **WIDE["vit"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Without a classifier, its class token followed by registers; read only."""
    return save(tmp_path_factory.mktemp("components") / "encoder", LinGeneModel, **WIDE["dinov2_with_registers"])


def by_definition(model, pixel_values, place: int, before: int, grid: tuple[int, int]) -> numpy.ndarray:
    """Grad-CAM (Selvaraju et al., Eq. 1 and 2): channels weighted by their mean gradients, ReLU, scaled to 1, resized.

    Args:
        place: of the logit.
        before: tokens that are no patches.
        grid: rows and columns of patches.
    """
    name = "layernorm_before" if model.config.model_type in ("vit", "swin") else "norm1"
    seen, layer = [], [module for path, module in model.named_modules() if path.endswith(name)][-1]
    handle = layer.register_forward_hook(lambda module, taken, given: seen.append(given))
    logit = model.requires_grad_(True)(pixel_values).logits[0, place]
    handle.remove()
    (gradient,) = torch.autograd.grad(logit, seen[0])
    tokens, slopes = (tensor[0, before:].detach().double().numpy() for tensor in (seen[0], gradient))  # (p, d)
    grey = numpy.maximum(tokens @ slopes.mean(0), 0).reshape(grid)
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    resized = torch.from_numpy(grey)[None, None]
    resized = torch.nn.functional.interpolate(resized, pixel_values.shape[2:], mode="bilinear")[0, 0].numpy()
    return (resized - resized.min()) / (resized.max() - resized.min())


@pytest.mark.parametrize("family", WIDE)
def test_a_map_is_grad_cam_by_its_definition(family):
    """By autograd and numpy; neither class token nor registers are patches, and pictures need not be square."""
    model = helpers.tiny_model(helpers.tiny_config(num_components=5, **WIDE[family])).materialise()
    pixel_values = helpers.images(1, 16, 24 if family == "vit" else 20)
    before, grid = 1 + 3 * FAMILIES[family].registers, (4, pixel_values.shape[3] // 4)
    maps = []
    for place in (1, 4):
        found, logits = attention_map(model, pixel_values, lambda logits, place=place: logits[place])
        torch.testing.assert_close(logits, model(pixel_values).logits[0].detach())
        maps.append(found.numpy())
        numpy.testing.assert_allclose(maps[-1], by_definition(model, pixel_values, place, before, grid), atol=1e-4)
    assert maps[0].shape == pixel_values.shape[2:] and numpy.abs(maps[0] - maps[1]).max() > 0.1


@pytest.mark.parametrize("preset", ["stable", "paper"])
def test_alone_a_component_is_its_coefficients_times_itself(preset):
    """By numpy, a(l, n) A_n; gains have their offset, and what lies outside of the layers is shared."""
    model = helpers.tiny_model(helpers.tiny_config(preset=preset))
    table = helpers.numpy_table(model.config, 6, 5)
    stored = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    for component in (0, 3):
        found = alone(model, component).state_dict()
        for layer in range(6):
            for ours, stock in helpers.STOCK_PARTS.items():
                for kind in ("weight", "bias"):
                    offset = model.config.gain_offset * (ours.startswith("norm") and kind == "weight")
                    expected = table[layer, component] * stored[f"components.{component}.{ours}.{kind}"] + offset
                    own = found[f"vit.layers.{layer}.{stock}.{kind}"].numpy()
                    numpy.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)
        numpy.testing.assert_array_equal(found["classifier.weight"].numpy(), stored["classifier.weight"])
        numpy.testing.assert_array_equal(found["vit.embeddings.cls_token"], stored["embeddings.cls_token"])
    assert all(torch.equal(tensor, torch.from_numpy(stored[key])) for key, tensor in model.state_dict().items())


def test_a_command_writes_what_sizes_say_and_where_they_look(bundle, tmp_path, monkeypatch, capsys):
    """The first n are what a user loads with that many components."""
    seen, pictures = [], components._pictures
    monkeypatch.setattr(components, "_pictures", lambda *words: seen.append(pictures(*words)) or seen[-1])
    words = ["analyse", "components", str(bundle), "--data", "digits", "--depth", "2", "--width-ratio", "1/2"]
    assert main([*words, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    told, found = capsys.readouterr().out, json.loads((tmp_path / "out" / "components.json").read_text())
    assert found["size"] == {"depth": 2, "width_ratio": "1/2"} and found["components"] == 3
    size = {"depth": 2, "width_ratio": "1/2"}
    models = [AutoModelForImageClassification.from_pretrained(bundle, **size, num_components=n) for n in (1, 2, 3)]
    assert len(found["images"]) == len(seen[0][1]) == 2
    for picture, pixel_values in zip(found["images"], seen[0][1]):
        shares = [model(pixel_values).logits[0].detach().softmax(0) for model in models]
        wanted = int(shares[-1].argmax())
        assert (
            picture["explained"] == models[0].config.id2label[wanted] and f"explained: {picture['explained']}" in told
        )
        for row, share in zip(picture["first"], shares, strict=True):
            assert row["class"] == models[0].config.id2label[int(share.argmax())]
            assert row["score"] == pytest.approx(float(share.max()), abs=1e-4)
            assert row["explained_score"] == pytest.approx(float(share[wanted]), abs=1e-4)
        assert picture["first"][-1]["correlation"] in (1, None) and len(picture["alone"]) == 3
        assert picture["alone"][0] == picture["first"][0] != picture["alone"][1]
    assert (tmp_path / "out" / "components.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "out" / "components.svg").read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {components.RESULTS_FILE, *components.PICTURES}


def test_without_a_classifier_what_sets_a_picture_apart_is_explained(encoder, tmp_path, monkeypatch):
    """All components together have the class token itself, and still a map; a cosine's gradient would be zero."""
    drawn = []
    monkeypatch.setattr(components, "plot_components", lambda *given: drawn.append(given))
    found = analyse_components(encoder, tmp_path / "out", "digits", count=5)
    assert len(found) == len(drawn[0][1]) == 5 and any(maps["first"][-1].any() for maps in drawn[0][2])
    for picture in found:
        assert picture["explained"] is None and "class" not in picture["first"][0]
        last = picture["first"][-1]
        assert last["score"] == 1 and last["correlation"] in (1, None)
        assert picture["first"][0]["score"] < 1
    model, seen = LinGeneModel.from_pretrained(encoder, constrained=True).eval(), helpers.images(3).split(1)
    tokens = torch.cat([model(pixel_values).last_hidden_state[:, 0] for pixel_values in seen]).detach()
    for score, token in zip(components._direction_scores(model, list(seen)), tokens, strict=True):
        own, apart = token.clone().requires_grad_(), token - tokens.mean(0)
        (slope,) = torch.autograd.grad(score["of"](own), own)
        torch.testing.assert_close(slope, apart / apart.norm(), rtol=1e-4, atol=1e-5)
        cosine = torch.nn.functional.cosine_similarity(own, token, dim=0)
        assert torch.autograd.grad(cosine, own)[0].abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["vit", "encoder"])
def test_pictures_go_where_the_model_is(kind):
    """Without the analysis moving them, every machine with a GPU fails; a device without memory stands in for it."""
    model_class = LinGeneForImageClassification if kind == "vit" else LinGeneModel
    model, seen = helpers.tiny_model(model_class=model_class).materialise().to("meta"), []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["pixel_values"].device), with_kwargs=True)
    output = components._Output(model)(helpers.images())
    assert [str(device) for device in (*seen, output.device)] == ["meta", "meta"]


def test_numbers_of_a_map_are_what_they_are_called():
    """An even one, a single pixel in the middle and one in the corner, none; by hand."""
    even, middle, corner = torch.ones(8, 12), torch.zeros(8, 12), torch.zeros(8, 12)
    middle[4, 6] = corner[0, 0] = 1
    assert components._row(even, middle) == {"centre": 0.25, "entropy": 1, "correlation": None}
    assert components._row(middle, middle) == {"centre": 1, "entropy": 0, "correlation": 1}
    expected = numpy.corrcoef(corner.flatten(), middle.flatten())[0, 1]
    assert components._row(corner, middle) == {"centre": 0, "entropy": 0, "correlation": round(expected, 4)}
    assert set(components._row(torch.zeros(8, 12), middle).values()) == {None}


def test_a_picture_has_a_row_per_component_and_two_columns_per_image(tmp_path, monkeypatch):
    """Read back from the figure; three images are two abreast and one below."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    row = {"class": "a name that is longer than a panel", "score": 0.5, "entropy": 0.5}
    rows = [
        {"explained": f"thing {n}", "alone": [row, row], "first": [row, {**row, "entropy": None}]} for n in range(3)
    ]
    maps = [{"alone": [numpy.random.rand(8, 8)] * 2, "first": [numpy.random.rand(8, 8)] * 2} for _ in range(3)]
    plots.plot_components(rows, [numpy.random.rand(8, 8, 3)] * 3, maps, tmp_path / "x.png", "title")
    panels = numpy.array(figures[0].axes[:24]).reshape(6, 4)
    assert [panels[1, n].get_title().split("\n")[0] for n in range(4)] == ["1 alone", "first 1"] * 2
    assert panels[2, 1].get_title() == "first 2, empty\na name that is... 50 %"
    assert [panels[y, x].texts[0].get_text() for y, x in ((0, 1), (0, 3), (3, 1))] == [
        f"explained:\nthing {n}" for n in range(3)
    ]
    numpy.testing.assert_array_equal(panels[4, 0].images[1].get_array(), maps[2]["alone"][0])
    assert not panels[4, 2].images
    with pytest.raises(ValueError, match="at least one picture"):
        plots.plot_components([], [], [], tmp_path / "x.png")


@pytest.mark.parametrize(
    "words, said",
    [
        (["components", "{bundle}"], "`--data` says which pictures are explained: give --data FOLDER"),
        (["components", "{bundle}", "--data", "{nothing}"], "`--data` must be `digits`, a folder"),
        (["components", "{bundle}", "--data", "{broken}"], "`--data` must be pictures that decode"),
        (["components", "{bundle}", "--data", "digits", "--count", "13"], "`--count` must be from 1 to 12"),
        (["components", "{encoder}", "--data", "{one}"], "`--data` must hold at least two pictures that differ"),
        (["components", "{nothing}", "--data", "digits"], "nothing"),
        (["components", "{bundle}", "--data", "digits", "--num-components", "4"], "`--num-components`"),
        (
            ["components", "{bundle}", "--reference", "{bundle}"],
            "`--reference` is of similarity, and components has no",
        ),
        (["trend", "{bundle}", "--data", "digits"], "`--data` is of components and similarity, and trend has no"),
        (["coefficients", "{bundle}", "--depth", "2"], "`--depth` is of components and similarity"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_one_line(bundle, encoder, tmp_path, capsys, words, said):
    """And nothing is written."""
    places = {"bundle": bundle, "encoder": encoder} | {name: tmp_path / name for name in ("nothing", "broken", "one")}
    for name in ("broken", "one"):
        places[name].mkdir()
    (places["broken"] / "x.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(places["one"] / "x.png")
    words = [word.format(**places) for word in words]
    assert main(["analyse", *words, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1] and not (tmp_path / "out").exists()
