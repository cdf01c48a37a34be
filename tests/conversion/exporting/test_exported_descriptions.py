"""Laws of export and conversion: preprocessing, names and cards come along, and commands say what they did.

pytest tests/conversion/exporting/test_exported_descriptions.py
"""

import dataclasses
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from converting import MLP, relative
from converting import source as stock_source
from exports import FORMATS, FULL, LABELS, LEAST, MEAN, SHAPE, SMALL, STD, lingene, made, needed, picture
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import helpers
from helpers import example, files, read, run_examples
from modeling_lingene import cli, kept
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.export import export
from modeling_lingene.training.options import asked_recipe


@pytest.mark.parametrize("to", FORMATS)
def test_preprocessing_comes_along_in_every_format(origin, written, to):
    """Pixels of another mean are other images; as transformers reads it from the folder."""
    own = ViTImageProcessorPil.from_pretrained(origin.folder)(picture(), return_tensors="pt")["pixel_values"]
    kept = ViTImageProcessorPil.from_pretrained(written(origin, to, size=SMALL))(picture(), return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.equal(kept, own) and list(origin.processor.image_mean) == MEAN
    assert AutoImageProcessor.from_pretrained(written(origin, to, size=SMALL)).image_std == pytest.approx(STD)


@pytest.mark.parametrize(
    "to", [pytest.param(to, marks=[pytest.mark.slow] * (to in ("onnx", "program"))) for to in FORMATS]
)
def test_a_bundle_without_preprocessing_exports_none(origin, tmp_path, to):
    """Nothing is invented; the model is the same."""
    needed(to)
    shutil.copytree(origin.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("preprocessor_config.json"))
    export(tmp_path / "bundle", tmp_path / "out", to, **LEAST)
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()


@pytest.mark.parametrize("image_size", [16, [16, 24]])
def test_timm_transforms_pictures_as_the_bundle_does(tmp_path, image_size):
    """Size without a crop, mean, standard deviation and interpolation, in timm's own words; up to a grey level."""
    timm = pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    patch = 4 if image_size == 16 else [4, 8]
    origin = made(tmp_path / "bundle", image_size=image_size, patch_size=patch, layer_norm_eps=1e-6)
    export(origin.folder, tmp_path / "out", "timm", **LEAST)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    said = timm.data.resolve_model_data_config(model)
    height, width = (16, 16) if image_size == 16 else image_size
    assert tuple(said["input_size"]) == (3, height, width) and list(said["mean"]) == MEAN
    found = timm.data.create_transform(**said, is_training=False)(picture())
    expected = ViTImageProcessorPil.from_pretrained(origin.folder)(picture(), return_tensors="pt")["pixel_values"][0]
    assert (found - expected).abs().max() < 1.01 / 255 / min(STD)


def squashed(pixels: int) -> dict:
    return {"size": {"height": pixels, "width": pixels}, "do_center_crop": False}


def cropped(edge: int, height: int, width: int) -> dict:
    """As DINOv2's pictures are prepared: proportions stay, and the middle is cut out."""
    crop = {"height": height, "width": width}
    return {"size": {"shortest_edge": edge}, "crop_size": crop, "do_center_crop": True}


@pytest.mark.parametrize(
    "asked",
    [
        cropped(16, 16, 16),
        cropped(20, 16, 16),
        cropped(37, 16, 16),
        squashed(20) | {"crop_size": {"height": 16, "width": 16}, "do_center_crop": True},
        cropped(20, 16, 16) | {"do_normalize": False, "resample": 2},
        squashed(16) | {"do_normalize": False, "resample": 1},
        squashed(16) | {"rescale_factor": 1 / 127.5},
    ],
    ids=str,
)
def test_timm_transforms_pictures_as_the_preprocessing_says(tmp_path, asked):
    """Of a picture that is no square; up to a grey level, as resizing rounds it."""
    timm = pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    origin = made(tmp_path / "bundle", layer_norm_eps=1e-6, **SHAPE)
    processor = BitImageProcessorPil(image_mean=MEAN, image_std=STD, **asked)
    processor.save_pretrained(origin.folder)
    export(origin.folder, tmp_path / "out", "timm", **LEAST)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    level = processor.rescale_factor / (min(STD) if processor.do_normalize else 1)
    for shown in (picture(), picture().rotate(90, expand=True)):
        found, expected = transform(shown), processor(shown, return_tensors="pt")["pixel_values"][0]
        assert found.shape == (3, 16, 16) and (found - expected).abs().max() < 1.01 * level


@pytest.mark.parametrize("registers", [True, False])
def test_timm_is_told_another_size_where_its_model_takes_it(tmp_path, caplog, registers):
    """DINOv2's positions are for larger pictures than it is given; without registers timm's model has one size."""
    timm = pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    shape = dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=2, image_size=56, patch_size=14)
    kinds = (Dinov2WithRegistersModel, Dinov2WithRegistersConfig) if registers else (Dinov2Model, Dinov2Config)
    model, folder = stock_source(tmp_path, kinds[0], kinds[1](**shape))
    processor = BitImageProcessorPil(image_mean=MEAN, image_std=STD, **cropped(32, 28, 28))
    processor.save_pretrained(folder)
    convert(str(folder), tmp_path / "bundle")
    export(tmp_path / "bundle", tmp_path / "out", "timm")
    told = [message for message in caplog.messages if "timm's words" in message]
    if not registers:
        assert len(told) == 1 and "28x28, and timm's model takes 56x56 alone" in told[0]
        return
    built = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(built), is_training=False)
    expected = processor(picture(), return_tensors="pt")["pixel_values"]
    found = transform(picture())[None]
    assert told == [] and (found - expected).abs().max() < 1.01 / 255 / min(STD)
    with torch.no_grad():
        assert relative(built.forward_features(found), model(found).last_hidden_state) < 1e-5


@pytest.mark.parametrize(
    "asked, said",
    [
        (cropped(20, 16, 12), "square crop"),
        ({"size": {"shortest_edge": 16}, "do_center_crop": False}, "not cropped"),
        (cropped(19, 16, 16), "a pixel further"),
        (cropped(12, 16, 16), "of both sides"),
        ({"do_resize": False}, "`do_resize` is off"),
        (squashed(16) | {"do_pad": True}, "no word for do_pad"),
    ],
    ids=str,
)
def test_what_timm_has_no_words_for_is_left_out_and_told(tmp_path, caplog, asked, said):
    """Words of other steps would make other pixels, and nobody would see it."""
    needed("timm")
    origin = made(tmp_path / "bundle", layer_norm_eps=1e-6, **SHAPE)
    BitImageProcessorPil(image_mean=MEAN, image_std=STD, **asked).save_pretrained(origin.folder)
    export(origin.folder, tmp_path / "out", "timm", **LEAST)
    (told,) = [record.getMessage() for record in caplog.records if "timm's words" in record.getMessage()]
    assert said in told and str(origin.folder) in told and "preprocessor_config.json" in told
    kept = read(tmp_path / "out" / "config.json")["pretrained_cfg"]
    assert not {"mean", "std", "crop_pct", "crop_mode", "interpolation"} & kept.keys()


@pytest.mark.parametrize(
    "to",
    [
        "transformers",
        "timm",
        "onnx",
        "program",
    ],
)
def test_names_of_classes_come_along_in_every_format(origin, written, to):
    """A class index is no answer."""
    folder = written(origin, to, size=SMALL)
    told = read(folder / ("config.json" if to == "transformers" else "export.json")).get("id2label")
    assert told == {str(index): label for index, label in LABELS.items()}


@pytest.mark.parametrize(
    "to",
    [
        "onnx",
        "program",
    ],
)
def test_without_a_classifier_no_classes_are_named(headless, written, to):
    """Tokens have none."""
    assert not read(written(headless, to, size=SMALL) / "export.json").get("id2label")


@pytest.mark.parametrize("to", FORMATS)
@torch.no_grad()
def test_the_command_says_what_it_wrote_how_far_it_is_and_how_to_load_it(origin6, tmp_path, capsys, to):
    """The line is meant to be pasted."""
    needed(to)
    out = tmp_path / "deep" / "out"
    size = ["--depth", 1, "--width-ratio", "1/2", "--num-components", 2]
    code, printed, _ = lingene(capsys, "export", origin6.folder, "--to", to, *size, "--out", out)
    report = read(out / "export.json")
    head, differences, *rest = printed.splitlines()
    assert (code, head) == (0, f"{out}: {to}, float32, depth 1, width_ratio 1/2, num_components 2")
    assert differences.startswith(f"largest difference of logits {report['largest_difference']:.2g},")
    assert differences.endswith("(tolerance 0.0001), on random images")
    (line,), names, values = rest, {}, helpers.images()
    exec(line.removeprefix("load it  "), names)
    model, expected = names["model"], helpers.reference_vit(origin6.model, 1, "1/2", 2)(values).logits
    if to == "onnx":
        found = torch.from_numpy(model.run(None, {"pixel_values": values.numpy()})[0])
    else:
        found = (model if to == "program" else model.eval())(values)
    assert relative(getattr(found, "logits", found), expected) < 1e-5


def test_the_command_fails_with_status_1_where_the_file_is_not_the_model(origin, tmp_path, capsys):
    """Nothing was wrong with what was asked; a script must stop all the same."""
    needed("onnx")
    asked = ["--to", "onnx", "--tolerance", "1e-12", "--depth", 1, "--num-components", 1, "--out", tmp_path / "out"]
    code, printed, errors = lingene(capsys, "export", origin.folder, *asked)
    assert (code, printed) == (1, "") and errors[-1].startswith("lingene export: The exported logits differ")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained ViT of seven classes, as transformers saves it; read only."""
    return stock_source(
        tmp_path_factory.mktemp("stock"), ViTForImageClassification, ViTConfig(**MLP, id2label=LABELS)
    )[1]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a classifier, and with a pooler that no bundle has a place for."""
    return stock_source(tmp_path_factory.mktemp("encoder"), ViTModel, ViTConfig(**MLP))[1]


def test_convert_says_what_was_kept_and_what_was_left_out(stock, encoder, tmp_path, capsys):
    """Without loss there is nothing to advise."""
    for source, left_out, what in ((stock, 0, "logit"), (encoder, 2, "class token")):
        out = tmp_path / source.parent.name
        code, printed, errors = lingene(capsys, "convert", source, "--out", out)
        report = read(out / "conversion.json")
        assert (code, errors, report["advice"]) == (0, [], None)
        assert "6 components of 6 layers; exact: as many components as layers, nothing is lost\n" in printed
        assert f"Relative error of its {what}s on random images: {report['relative_logit_error']:.2g}.\n" in printed
        assert "condition" not in printed
        assert f"bundle   {out}\nnumbers  {out / 'conversion.json'}\n" in printed
        assert ("left out: 2 tensors" in printed) is (left_out == 2) and len(report["left_out"]) == left_out
        assert "lingene decompose" not in printed


def test_a_converted_bundles_card_has_the_name_of_its_folder_whatever_that_is(stock, tmp_path):
    """It need be no repository's name; an hour of calibration must not end with that."""
    out = tmp_path / 'my bundle, 1st "try"'
    convert(str(stock), out)
    card = (out / "README.md").read_text()
    assert example(card)[1].args[0].value == out.name and f"# {out.name}\n" in card


def test_convert_advises_to_train_what_is_no_model_yet(stock, tmp_path, capsys):
    """Half of the components by least squares on the weights; the command is meant to be pasted, DATA filled in.

    In the file, which is pushed, folders go by their names.
    """
    source, out = tmp_path / "my model", tmp_path / "my bundle"
    shutil.copytree(stock, source)
    code, printed, _ = lingene(capsys, "convert", source, "--num-components", 3, "--out", out)
    report = read(out / "conversion.json")
    assert code == 0 and "3 components of 6 layers; weights: least squares on the weights\n" in printed
    assert report["relative_logit_error"] > 0.05 and report["advice"]["statement"] in printed
    (line,) = [line.strip() for line in printed.splitlines() if "lingene decompose" in line]
    stored, recipe = (
        asked_recipe(cli.build_parser("decompose").parse_args(shlex.split(command)[1:]))
        for command in (report["advice"]["command"], line)
    )
    assert (recipe.init, recipe.teacher, recipe.data) == (str(out), str(source), "DATA")
    assert (stored.init, stored.teacher, report["source"]) == ("my bundle", "my model", "my model")
    assert dataclasses.replace(stored, init=recipe.init, teacher=recipe.teacher) == recipe
    assert str(tmp_path) not in (out / "conversion.json").read_text() + (out / "README.md").read_text()
    assert recipe.training.learning_rate == report["advice"]["learning_rate"]
    assert (recipe.decomposition.schedule, recipe.model.num_components) == ("simultaneous", 0)


@pytest.mark.parametrize(
    "line, named",
    [
        ("convert /absent/model --out O", "`SOURCE`"),
        ("convert B --out O", "is a bundle, not"),
        ("convert S --out S", "`--out`"),
        ("convert S --out O --num-components 7", "`--num-components`"),
        ("convert S --out O --num-components 3 --fit best", "`--fit`"),
        ("convert S --out O --fit kronecker", "`--fit`"),
        ("convert S --out O --depths 3", "`--depths`"),
        ("convert S --out O --weights W", "`--weights`"),
        ("convert S --out O --basis fourier", "condition number"),
        ("convert S --out O --device abacus", "`--device`"),
    ],
)
def test_wrong_input_of_convert_is_one_line_that_names_it(origin, stock, tmp_path, capsys, line, named):
    """Status 2, and no folder."""
    places = {"B": origin.folder, "S": stock, "O": tmp_path / "out"}
    before = files(stock)
    code, printed, errors = lingene(capsys, *(places.get(word, word) for word in line.split()))
    assert (code, printed, len(errors)) == (2, "", 1)
    assert errors[0].startswith("lingene convert: ") and named in errors[0]
    assert list(tmp_path.iterdir()) == [] and files(stock) == before


@pytest.mark.parametrize("headed, count", [(True, None), (True, 3), (False, None)])
def test_the_card_of_a_converted_bundle_names_its_source_and_its_error(stock, encoder, tmp_path, headed, count):
    """Whoever finds it on the Hub must know what it is; the code in it runs, and gives no random head."""
    source = stock if headed else encoder
    report = convert(str(source), tmp_path / "bundle", num_components=count)
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    text = " ".join(card.split())
    assert f"Converted from `source`: {count or 6} components of 6 layers ({kept.fitted(report)})" in text
    assert f"{kept.kept(report)}" in text
    assert (report["advice"] is not None) == ("is a start for training, not a model" in text) == (count == 3)
    call = example(card)[1]
    assert call.func.value.id == ("AutoModelForImageClassification" if headed else "AutoModel")
    assert call.args[0].value == "bundle" and ("Classes: thing 0" in text) is headed
    (model,) = run_examples(card, "bundle", tmp_path / "bundle")
    assert type(model) is (ViTForImageClassification if headed else ViTModel)


def test_timm_takes_mlps_of_any_width(tmp_path):
    """timm is told a ratio; int(56 * (61 / 56)) is 60."""
    needed("timm")
    fields = {"hidden_size": 56, "intermediate_size": 61, "trained_width_ratios": ["1"]}
    helpers.bundle(tmp_path / "bundle", helpers.tiny_config(**fields, layer_norm_eps=1e-6))
    export(tmp_path / "bundle", tmp_path / "out", "timm", **LEAST)
    assert load_file(tmp_path / "out" / "model.safetensors")["blocks.0.mlp.fc1.weight"].shape == (61, 56)


def test_an_export_is_no_bundle_and_a_bundle_made_of_it_is(origin, written, tmp_path):
    """Files of transformers go round: a size of a bundle, plain, is a source of a bundle again."""
    folder = written(origin, "transformers")
    with pytest.raises(ValueError, match="`depth` chooses a size of a bundle"):
        export(folder, tmp_path / "out", depth=1)
    convert(str(folder), tmp_path / "again")
    values = helpers.images()
    with torch.no_grad():
        expected = helpers.reference_vit(origin.model, *FULL.values())(values).logits
        found = AutoModelForImageClassification.from_pretrained(tmp_path / "again").eval()(values).logits
    assert relative(found, expected) < 1e-5
