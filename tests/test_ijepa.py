"""Laws of I-JEPA as a bundle: a ViT without a class token, for whose images the mean of the tokens stands.

What every family promises is in test_families.py; here is what follows where there is nothing but patches.

    pytest tests/test_ijepa.py
"""

import numpy
import onnxruntime
import pytest
import torch
from matplotlib.text import Text
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, BitImageProcessor, IJepaConfig, IJepaModel

import helpers
from modeling_lingene import LinGeneModel
from modeling_lingene.cli import main
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from modeling_lingene.measuring import curves, plots
from modeling_lingene.measuring.drawing import save_figure
from modeling_lingene.measuring.features import class_and_patches
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.features import tokens_of
from modeling_lingene.training.losses import Objective


SHAPE = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4)
SHAPE |= dict(image_size=16, patch_size=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model with every parameter drawn anew, and its folder with preprocessing; read only."""
    folder = tmp_path_factory.mktemp("ijepa")
    model = helpers.drawn(IJepaModel(IJepaConfig(**SHAPE)))
    model.save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, picture in enumerate(helpers.pictures(24).images):
        picture.save(folder / f"{number}.png")
    return folder


@torch.no_grad()
def test_the_mean_of_the_tokens_stands_for_the_image(source, tmp_path):
    """For neighbours and probes, for what a student learns from, and in an exported file."""
    model, folder = source
    convert(str(folder), tmp_path / "bundle")
    values = helpers.images(3)
    tokens = model(values).last_hidden_state.numpy()
    found = class_and_patches(AutoModel.from_pretrained(tmp_path / "bundle").eval(), values)
    constrained = LinGeneModel.from_pretrained(tmp_path / "bundle", constrained=True).eval()
    given = tokens_of(constrained, values, constrained.config.size(), 16)
    report = export(tmp_path / "bundle", tmp_path / "onnx", to="onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    (exported,) = map(torch.from_numpy, session.run(["tokens"], {"pixel_values": values.numpy()}))
    assert report["relative_difference"] <= report["tolerance"]
    for image, patches in (found, *((one[:, 0], one[:, 1:]) for one in (given, exported))):
        assert numpy.allclose(image, tokens.mean(1), atol=1e-4) and numpy.allclose(patches, tokens, atol=1e-4)


def test_it_is_turned_for_widths_and_learns_its_sizes(source, photos, tmp_path):
    """`--sort` is exact at full width through its readout; then without labels, and with labels, which it can have."""
    model, folder = source
    convert(str(folder), tmp_path / "bundle", calibrate=str(photos), sort=True, widths=("1/2",))
    readout = load_file(tmp_path / "bundle" / "readout.safetensors")
    values = helpers.images(3)
    with torch.no_grad():
        found = AutoModel.from_pretrained(tmp_path / "bundle").eval()(values).last_hidden_state
        expected = model(values).last_hidden_state
    back = found @ readout["weight"].T + readout["bias"]
    assert float((back - expected).norm() / expected.norm()) < 1e-4
    recipe = recipes.Recipe(
        data=str(photos),
        init=str(tmp_path / "bundle"),
        training=recipes.TrainingSettings(epochs=1, batch_size=8, device="cpu", learning_rate=1e-9),
        decomposition=DecompositionSettings(totals=(4,), depths=(2,), widths=("1/2",)),
        objective=Objective(kind="features"),
        workers=0,
    )
    rows = {(row["depth"], row["width_ratio"]): row for row in recipes.decompose(recipe, tmp_path / "run")}
    assert rows[4, "1"]["cosine"] > 0.9999 and rows[4, "1"]["patch_cosine"] > 0.9999
    small = AutoModel.from_pretrained(tmp_path / "run" / "bundle", depth=2, width_ratio="1/2")
    assert type(small) is IJepaModel and small.config.hidden_size == 24
    with_head = AutoModelForImageClassification.from_pretrained(
        tmp_path / "run" / "bundle", constrained=True, num_labels=3
    )
    assert with_head(values).logits.shape == (3, 3)


def test_words_and_pictures_know_no_class_token(source, photos, tmp_path, monkeypatch, capsys):
    """Of a conversion that is fitted, of measured sizes, and of the card."""
    folder, bundle, drawn = source[1], tmp_path / "bundle", []

    def kept(figure, path):
        drawn.extend(text.get_text().lower() for text in figure.findobj(Text))
        save_figure(figure, path)

    for module in (curves, plots):
        monkeypatch.setattr(module, "save_figure", kept)
    for split in ("train", "test"):
        for number, picture in enumerate(helpers.pictures(24).images):
            place = tmp_path / "labelled" / split / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{number}.png")
    fitted = ["--calibrate", str(photos), "--num-components", "2", "--rounds", "1", "--out", str(bundle)]
    assert main(["convert", str(folder), *fitted]) == 0
    measured = ["--data", str(tmp_path / "labelled"), "--metric", "cosine,knn", "--reference", str(folder)]
    assert main(["sweep", str(bundle), *measured]) == 0
    card = (bundle / "README.md").read_text()
    said = capsys.readouterr().out + card
    assert "mean tokens: relative error of the mean tokens" in said and "its mean token has a cosine of" in said
    assert "whose mean tokens are nearest" in card and "how far the mean token, and the patch tokens, agree" in card
    assert "class token" not in said.lower() and drawn and not any("class token" in text for text in drawn)
