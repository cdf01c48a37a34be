"""Laws of fitting fewer components than layers: reports that hold, of bundles like any other.

A stock ViT of noise, a flat folder of pictures.

    pytest tests/conversion/fitting/test_fitted_bundles.py
"""

import copy
import json
from contextlib import nullcontext

import numpy
import pytest
import torch
from fits import (
    COUNT,
    DEPTH,
    FITTED,
    LINEAR_PARTS,
    divergence,
    entering,
    in_two,
    layers_of,
    logits,
    maps_of,
    relative,
    stock,
    with_layers,
)
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, ViTForImageClassification, ViTModel

import helpers
from helpers import STOCK_PARTS
from modeling_lingene import kept
from modeling_lingene.conversion.calibrated import Calibration
from modeling_lingene.conversion.calibration import calibration_images, choose_rows
from modeling_lingene.conversion.convert import convert
from modeling_lingene.conversion.fitting import FITS, fold_norms
from modeling_lingene.conversion.report import count_legend, count_table, learning_rate
from modeling_lingene.folders import read_conversion
from modeling_lingene.images.batches import image_processor


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A flat folder of pictures without labels, as one has them."""
    folder = tmp_path_factory.mktemp("photos")
    for index, picture in enumerate(helpers.pictures(COUNT).images):
        picture.save(folder / f"{index:03}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A stock classifier and the folder that it is saved in."""
    model, folder = stock(), tmp_path_factory.mktemp("source") / "vit"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def kept_layers(tmp_path_factory, source, photos):
    """A bundle that loses nothing, with layers chosen for two depths: folder and report."""
    folder = tmp_path_factory.mktemp("exact") / "bundle"
    return folder, convert(str(source[1]), folder, calibrate=str(photos), depths=[4, 2])


def pixels(folder):
    """The pictures by Pillow and numpy alone, -1 to 1; (images, 3, 16, 16)."""
    arrays = [numpy.asarray(Image.open(path), dtype=numpy.float32) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(numpy.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


def written(folder):
    return json.loads((folder / "config.json").read_text())


def test_calibration_images_are_a_seeded_choice_of_the_folder(photos):
    """Pixels as users preprocess them, none twice, no more than there are; labels are not needed but may be there."""
    processor, everything = image_processor(16), pixels(photos)
    found, none = calibration_images(str(photos), processor, 7, seed=1)
    assert found.shape == (7, 3, 16, 16)
    farthest = (found[:, None] - everything).abs().flatten(2).amax(2)
    assert farthest.min(1).values.max() < 1e-5 and len(set(farthest.argmin(1).tolist())) == 7
    assert torch.equal(calibration_images(str(photos), processor, 7, seed=1)[0], found) and not len(none)
    assert not torch.equal(calibration_images(str(photos), processor, 7, seed=2)[0], found)
    assert len(calibration_images(str(photos), processor, 1000)[0]) == COUNT
    assert calibration_images("digits", processor, 5)[0].shape == (5, 3, 16, 16)


@pytest.mark.parametrize("count, fitted, left_out", [(7, 7, COUNT - 7), (34, FITTED, 8), (1000, FITTED, 8)])
def test_pictures_that_judge_a_fit_are_none_of_it(photos, count, fitted, left_out):
    """Those beyond the ones asked for, 128 at most; where there are few, a fifth of all."""
    processor, everything = image_processor(16), pixels(photos)
    found = calibration_images(str(photos), processor, count, judged=True)
    assert [len(part) for part in found] == [fitted, left_out]
    for part, expected in zip(found, in_two(everything, fitted)):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-5)
    assert [len(part) for part in calibration_images("digits", processor, 5, judged=True)] == [5, 128]


def test_one_picture_fits_and_does_not_judge(tmp_path, source):
    """It gave a cosine of 0.996 to a bundle that had 0.68 on others: nothing is said to be a model by it."""
    helpers.pictures(1).images[0].save(tmp_path / "one.png")
    report = convert(
        str(source[1]), tmp_path / "bundle", num_components=5, calibrate=str(tmp_path), fit="weighted", rounds=1
    )
    measured = report["calibration"]
    assert (measured["images"], measured["measured_images"], measured["left_out"]) == (1, 1, False)
    assert report["advice"] is not None and read_conversion(tmp_path / "bundle") is not None


def test_one_broken_image_in_a_hundred_is_left_out(tmp_path):
    """And said; two are too many."""
    for index, picture in enumerate(helpers.pictures(119).images):
        picture.save(tmp_path / f"{index:03}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="broken|1 of the 120"):
        assert len(calibration_images(str(tmp_path), image_processor(16), 1000)[0]) == 119
    (tmp_path / "broken too.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="2 of the 121 images"):
        calibration_images(str(tmp_path), image_processor(16), 1000)


@pytest.mark.parametrize("fit", ["weights", "kronecker"])
def test_the_report_is_what_a_user_measures(tmp_path, source, photos, fit):
    """Every row recomputed from the loaded models: outcomes by transformers, residuals of layers by numpy."""
    model, folder = source
    given = {"num_components": 3, "calibrate": str(photos), "fit": fit, "rounds": 3}
    report = convert(str(folder), tmp_path / "bundle", images=8, **given)
    calibration, (fitted, values) = report["calibration"], in_two(pixels(photos), 8)
    assert (calibration["images"], calibration["measured_images"]) == (8, COUNT - 8)
    assert calibration["left_out"] is True and f"On {COUNT - 8} pictures left out of its fit" in kept.kept(report)
    assert [row["num_components"] for row in calibration["rows"]] == [1, 2, 3]
    expected = logits(AutoModelForImageClassification.from_pretrained(folder).eval(), values)
    assert len(expected.argmax(-1).unique()) > 1
    whole = model if fit == "weights" else with_layers(model, fold_norms(layers_of(model)))
    inputs, maps = entering(whole, fitted), maps_of(whole)
    for row in calibration["rows"]:
        small = AutoModelForImageClassification.from_pretrained(
            tmp_path / "bundle", num_components=row["num_components"]
        )
        found, made = logits(small.eval(), values), maps_of(small)
        assert type(small) is ViTForImageClassification
        assert row["relative_logit_error"] == pytest.approx(relative(found, expected), rel=1e-3)
        assert row["divergence"] == pytest.approx(divergence(found, expected), rel=1e-3, abs=1e-6)
        agreement = (found.argmax(-1) == expected.argmax(-1)).double().mean().item()
        assert row["agreement"] == pytest.approx(agreement, abs=1.01 / COUNT)
        squares = {}
        for part in LINEAR_PARTS:
            off = [maps[part][layer] - made[part][layer] for layer in range(DEPTH)]
            squares[part] = numpy.array(
                [
                    [sum(((x @ w.T) ** 2).sum() for x, w in zip(inputs[part], ws)) for ws in (off, maps[part])],
                    [sum((w**2).sum() for w in ws) for ws in (off, maps[part])],
                ]
            )
            ratios = numpy.sqrt(squares[part][:, 0] / squares[part][:, 1])
            shown = [row["parts"][part][kind] for kind in ("activations", "weights")]
            numpy.testing.assert_allclose(shown, ratios, rtol=1e-3)
        total = sum(squares.values())
        ratios = numpy.sqrt(total[:, 0] / total[:, 1])
        numpy.testing.assert_allclose([row["activation_residual"], row["weight_residual"]], ratios, rtol=1e-3)
    assert report["fit"] == fit and report["num_components"] == 3 and report["depth"] == DEPTH
    assert json.loads((tmp_path / "bundle" / "conversion.json").read_text()) == report


def test_a_fitted_bundle_is_a_bundle_like_any_other(tmp_path, source, photos):
    """Learned coefficients, gains of 1, the last fit by default: written, drawn, and the same from every side."""
    model, folder = source
    report = convert(str(folder), tmp_path / "bundle", num_components=2, calibrate=str(photos), rounds=3)
    rows, config = report["calibration"]["rows"], written(tmp_path / "bundle")
    assert report["fit"] == FITS[-1] and [row["num_components"] for row in rows] == [1, 2]
    assert config["basis"] == "learned" and config["gain_offset"] == 1.0 and config["degree_weight"] == 0.0
    matrix = numpy.array(config["coefficient_matrix"])
    assert matrix.shape == (DEPTH, 2)
    numpy.testing.assert_allclose(matrix.T @ matrix, numpy.eye(2), atol=1e-5)
    assert report["condition"] == pytest.approx(1.0, abs=1e-4)
    values = in_two(pixels(photos))[1]
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
    for layer in small.vit.layers:
        for part in ("norm1", "norm2"):
            norm = layer.get_submodule(STOCK_PARTS[part])
            assert (norm.weight == 1).all() and (norm.bias == 0).all()
    found, expected = logits(small, values), logits(model, values)
    assert rows[-1]["relative_logit_error"] == pytest.approx(relative(found, expected), rel=1e-3)
    agreement = (found.argmax(-1) == expected.argmax(-1)).double().mean().item()
    assert rows[-1]["agreement"] == pytest.approx(agreement, abs=1.01 / COUNT)
    constrained = helpers.LinGeneForImageClassification.from_pretrained(tmp_path / "bundle", constrained=True).eval()
    assert relative(logits(constrained, values), found) < 1e-5
    with Image.open(tmp_path / "bundle" / "conversion.png") as figure:
        assert figure.format == "PNG" and min(figure.size) > 100


def test_matched_is_nearer_to_the_source_than_aligned(tmp_path, source, photos):
    """On images that it was not done on, as the bundle on disk gives its answers."""
    found = {}
    for fit in ("aligned", "matched"):
        given = {"num_components": 3, "calibrate": str(photos), "fit": fit, "rounds": 3}
        found[fit] = convert(str(source[1]), tmp_path / fit, **given)["calibration"]["rows"][-1]
    assert found["matched"]["divergence"] < 0.9 * found["aligned"]["divergence"]


@pytest.mark.parametrize("fails", [False, True])
def test_products_are_onednns_while_a_fit_runs_and_then_as_they_were(tmp_path, monkeypatch, source, photos, fails):
    """In float32, on processors too that have units for less. What a caller's other models compute with is none of a
    conversion's business, also after it was stopped."""
    backends, seen = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul), []
    before, whole = [backend.fp32_precision for backend in backends], Calibration._fit
    left, right = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)) for seed in range(2))

    def fit(*arguments):
        seen.append([backend.fp32_precision for backend in backends])
        assert relative((left @ right).double(), left.double() @ right.double()) < 1e-6
        if fails:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(Calibration, "_fit", fit)
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        convert(str(source[1]), tmp_path / "bundle", num_components=3, calibrate=str(photos), rounds=1)
    assert seen == [["tf32", before[1]]] and [backend.fp32_precision for backend in backends] == before


@pytest.mark.parametrize("fit", ["activations", "weighted"])
def test_fits_with_given_coefficients_keep_the_basis(tmp_path, photos, fit):
    """Also of a source without biases of queries, which folding brings in."""
    stock(qkv_bias=False).save_pretrained(tmp_path / "source")
    report = convert(str(tmp_path / "source"), tmp_path / "bundle", num_components=4, calibrate=str(photos), fit=fit)
    config = written(tmp_path / "bundle")
    assert config["basis"] == "chebyshev" and config["coefficient_matrix"] is None
    assert config["gain_offset"] == 1.0 and config["qkv_bias"] is True
    small = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
    values = in_two(pixels(photos))[1]
    error = relative(logits(small, values), logits(stock(qkv_bias=False), values))
    assert report["calibration"]["rows"][-1]["relative_logit_error"] == pytest.approx(error, rel=1e-3)


def test_the_same_seed_gives_the_same_bundle(tmp_path, source, photos):
    """Images, labels drawn and solvers: nothing else is random; another seed is another bundle."""
    seeds = {"one": 0, "two": 0, "other": 1}
    for name, seed in seeds.items():
        given = {"num_components": 2, "calibrate": str(photos), "images": 20, "fit": "aligned", "rounds": 2}
        convert(str(source[1]), tmp_path / name, seed=seed, **given)
    files = {name: (tmp_path / name / "component-00.safetensors").read_bytes() for name in seeds}
    assert files["one"] == files["two"] != files["other"]


def test_without_a_classifier_a_fit_is_measured_on_the_class_token(tmp_path, photos):
    """No agreement then; the rest as with one, layers chosen for a depth included."""
    model = stock(ViTModel)
    model.save_pretrained(tmp_path / "source")
    given = {"num_components": 3, "calibrate": str(photos), "fit": "aligned", "rounds": 2, "depths": [3]}
    report = convert(str(tmp_path / "source"), tmp_path / "bundle", **given)
    rows, values = report["calibration"]["rows"], in_two(pixels(photos))[1]
    assert all("agreement" not in row and "divergence" not in row for row in rows)
    small = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    tokens = [one(values).last_hidden_state for one in (small, model)]
    found, expected = (one[:, 0] for one in tokens)
    assert rows[-1]["relative_logit_error"] == pytest.approx(relative(found, expected), rel=1e-3)
    cosines = torch.nn.functional.cosine_similarity(found.double(), expected.double(), dim=-1).detach().numpy()
    assert rows[-1]["cosine"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert rows[-1]["cosine_p5"] == pytest.approx(numpy.percentile(cosines, 5), abs=1e-5)
    of_patches = torch.cosine_similarity(*(one[:, 1:].double() for one in tokens), dim=-1).mean(dim=1).detach().numpy()
    assert rows[-1]["patch_cosine"] == pytest.approx(of_patches.mean(), abs=1e-5)
    assert rows[-1]["patch_cosine_p5"] == pytest.approx(numpy.percentile(of_patches, 5), abs=1e-5)
    assert rows[0]["cosine"] < rows[-1]["cosine"] and report["compared"] == "class token"
    drawn = count_table(rows, report["compared"]).splitlines()
    assert len(drawn) == 5 and all(word not in drawn[0] for word in ("agreement", "KL", "logits"))
    said = {part.partition(":")[0] for part in count_legend(rows, report["compared"]).split("; ")}
    assert said == {"layers", "class tokens", "cosine", "of patches"} and report["checked_on"] == "calibration images"
    assert "cosine" in drawn[0] and f"{rows[-1]['cosine']:.3g}" in drawn[-1]
    kept = report["calibration"]["depth_rows"][3]
    assert kept == sorted(set(kept)) and len(kept) == 3
    shallow = AutoModel.from_pretrained(tmp_path / "bundle", depth=3)
    for layer, row in zip(shallow.layers, kept):
        torch.testing.assert_close(layer.mlp.fc1.weight, small.layers[row].mlp.fc1.weight)


def test_as_many_components_as_layers_lose_nothing_on_the_images_either(kept_layers):
    """The last row of a lossless bundle: no error, every class the same, no residual, nothing to advise."""
    folder, report = kept_layers
    rows = report["calibration"]["rows"]
    assert report["fit"] == "exact" and report["advice"] is None
    assert [row["num_components"] for row in rows] == list(range(1, DEPTH + 1))
    last = rows[-1]
    assert last["agreement"] == 1.0 and last["relative_logit_error"] < 1e-4 and abs(last["divergence"]) < 1e-6
    assert last["activation_residual"] < 1e-4 and last["weight_residual"] < 1e-4
    assert rows[0]["activation_residual"] > 0.1
    assert len(count_table(rows, "logit").splitlines()) == DEPTH + 2


def test_layers_kept_are_those_least_missed_one_by_one(source, photos, kept_layers):
    """Against the source itself with layers taken out, every candidate of every step."""
    (model, _), (folder, report), values = source, kept_layers, pixels(photos)
    expected, kept, chosen = logits(model, values), list(range(DEPTH)), {}
    while len(kept) > 2:  # the greedy rule, written out
        candidates = [[row for row in kept if row != left_out] for left_out in kept]
        missed = []
        for rows in candidates:
            small = copy.deepcopy(model)
            small.vit.layers = torch.nn.ModuleList(model.vit.layers[row] for row in rows)
            missed.append(divergence(logits(small, values), expected))
        kept = candidates[int(numpy.argmin(missed))]
        chosen[len(kept)] = kept
        assert min(missed) > 0 and max(missed) > 1.01 * min(missed)
    bundle = helpers.LinGeneForImageClassification.from_pretrained(folder, constrained=True).eval()
    before = dict(bundle.config.depth_rows)
    assert choose_rows(bundle, True, values, expected, [5, 3]) == {depth: chosen[depth] for depth in (5, 3)}
    assert bundle.config.depth_rows == before
    found = report["calibration"]["depth_rows"]
    assert found == {depth: chosen[depth] for depth in (4, 2)}
    assert written(folder)["depth_rows"] == {str(depth): rows for depth, rows in found.items()}


def test_a_smaller_depth_loads_the_layers_chosen(source, kept_layers):
    """Exactly those of the source, in their order; the other depths and the whole as before."""
    (model, _), (folder, report) = source, kept_layers
    chosen = {**report["calibration"]["depth_rows"], 3: [0, 2, 4], DEPTH: range(DEPTH)}
    assert chosen[4] != [0, 1, 3, 4]  # or nothing would be shown
    for depth, rows in chosen.items():
        small = AutoModelForImageClassification.from_pretrained(folder, depth=depth)
        assert len(small.vit.layers) == depth
        for layer, row in zip(small.vit.layers, rows):
            own, theirs = layer.state_dict(), model.vit.layers[row].state_dict()
            for key in theirs:
                torch.testing.assert_close(own[key], theirs[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"fit": "svd"}, "`fit` must be one of"),
        ({"fit": "aligned", "num_components": None}, "`fit` 'aligned' is for fewer components"),
        ({"fit": "aligned", "calibrate": None}, "`fit` needs images.*--calibrate"),
        ({"depths": [3], "calibrate": None}, "`depths` needs images.*--calibrate"),
        ({"depths": [DEPTH]}, "`depths` must be from 1 to below the 6 layers, got 6"),
        ({"depths": [3, 0]}, "`depths`.*got 0"),
        ({"depths": [2.5]}, "`depths`.*got 2.5"),
        ({"depths": [3], "preset": "paper"}, "`depths`.*'resample'"),
        ({"images": 0}, "`images`.*got 0"),
        ({"rounds": 0}, "`rounds`.*got 0"),
        ({"device": "abacus"}, "`device` abacus"),
        ({"calibrate": "EMPTY"}, "`calibrate`"),
        ({"calibrate": "BROKEN"}, "`calibrate`.*1 of the 21 images.*do not decode"),
        ({"calibrate": "ABSENT/NOT/THERE"}, "`calibrate`"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(tmp_path, monkeypatch, source, photos, given, named):
    """Before an hour is spent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    for index, picture in enumerate(helpers.pictures(20).images):
        picture.save(tmp_path / "BROKEN" / f"{index}.png")
    (tmp_path / "BROKEN" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=named):
        convert(str(source[1]), tmp_path / "bundle", **{"num_components": 3, "calibrate": str(photos), **given})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BROKEN", "EMPTY"]


@pytest.mark.parametrize("given", [{"images": 1.5}, {"rounds": 1.5}, {"images": "many"}, {"depths": [True]}])
def test_counts_that_are_no_integers_are_refused(tmp_path, source, photos, given):
    """By name, as `num_components` is."""
    with pytest.raises(ValueError, match=f"`{next(iter(given))}`"):
        convert(str(source[1]), tmp_path / "bundle", **{"num_components": 3, "calibrate": str(photos), **given})


def test_least_squares_without_images_says_that_images_make_a_better_fit(tmp_path, source, caplog):
    """Whoever has images should give them; and a bundle of it advises training."""
    report = convert(str(source[1]), tmp_path / "bundle", num_components=3)
    assert "a better fit" in caplog.text and "--calibrate" in caplog.text
    assert report["fit"] == "weights" and "calibration" not in report
    assert not (tmp_path / "bundle" / "conversion.png").exists()
    assert report["advice"]["learning_rate"] == learning_rate(report["relative_logit_error"])
