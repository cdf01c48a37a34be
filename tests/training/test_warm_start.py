"""Laws of a warm start: a run begins where the bundle is, in every schedule, and keeps what the bundle says of itself.

Runs whose learning rate does nothing must give the bundle back; what is kept through real training is compared with
numpy's recomposition and with transformers' own processors. Pictures are from memory, latency and plots are left out.

    pytest tests/training/test_warm_start.py
"""

import copy
import dataclasses
import json
from pathlib import Path

import numpy
import pytest
import torch
from asking import OTHERS
from converting import CLASSIFIERS
from converting import source as stock_source
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTForImageClassification, ViTImageProcessorPil

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel, cli
from modeling_lingene.conversion.convert import convert
from modeling_lingene.folders import bundle_weights_id
from modeling_lingene.images import data
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.data import LabelledImages
from modeling_lingene.images.loaders import Layout
from modeling_lingene.measuring import sweep
from modeling_lingene.training import recipes, warm_start
from modeling_lingene.training.decomposition import SCHEDULES, DecompositionSettings, phases
from modeling_lingene.training.loop import TrainingLoop


pytest.importorskip("matplotlib")

MEAN, STD, BICUBIC = [0.2, 0.4, 0.6], [0.3, 0.5, 0.7], 3
NOTHING = 1e-12  # a learning rate that moves no float32 weight of usual size
MATRIX = numpy.random.default_rng(0).normal(size=(6, 5)).tolist()
ROWS = {2: [1, 4], 3: [0, 3, 5]}  # not those that are evenly spaced
FITTED = dict(basis="learned", coefficient_matrix=MATRIX, depth_map="select", depth_rows=ROWS)
SHAPE_FLAGS = sorted(OTHERS["model"].keys() - {"num_components", "dropout"})


def pictures(split: str, labels: list[int] | None = None) -> LabelledImages:
    """Patches of colour, no square and not of the bundle's size, in the seven classes in turn: 28 and 14."""
    from PIL import Image

    generator, count = (
        numpy.random.default_rng(("train", "test", "validation").index(split)),
        28 if split == "train" else 14,
    )
    patches = generator.integers(0, 256, (count, 3, 4, 3), dtype=numpy.uint8)
    names = [f"class {index}" for index in range(7)]
    shown = [Image.fromarray(patch).resize((20, 12)) for patch in patches]
    return LabelledImages(shown, labels or [index % 7 for index in range(count)], names, "made", split)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a run takes a third of a second."""
    monkeypatch.setattr(data, "load_images", lambda _, split: pictures(split))
    monkeypatch.setattr(sweep, "latency_ms", lambda *_, **__: {"median": 1.0, "iqr": 0.1})
    for plot in ("plot_sizes", "plot_heat", "plot_history"):
        monkeypatch.setattr(recipes, plot, lambda *_, **__: None)


def begun(
    folder: Path, model_class=LinGeneForImageClassification, dtype=torch.float32, word: str = "class", **fields
) -> Path:
    """A bundle with classes and preprocessing of its own."""
    labels = {index: f"{word} {index}" for index in range(fields.pop("num_labels", 7))}
    config = helpers.tiny_config(num_labels=len(labels), **fields)
    config.id2label, config.label2id = labels, {label: index for index, label in labels.items()}
    helpers.tiny_model(config, seed=2, model_class=model_class).to(dtype).save_pretrained(folder)
    processor = image_processor(config.image_size if isinstance(config.image_size, int) else tuple(config.image_size))
    processor.image_mean, processor.image_std, processor.resample = MEAN, STD, BICUBIC
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that most runs go on from; read only."""
    torch.set_num_threads(1)
    return begun(tmp_path_factory.mktemp("init") / "bundle")


def recipe(init: Path, schedule: str = "simultaneous", **changes) -> recipes.Recipe:
    """One epoch of three steps; keywords are the fields of any setting."""
    groups = {
        "training": recipes.TrainingSettings(epochs=1, batch_size=8, device="cpu", learning_rate=1e-2),
        "decomposition": DecompositionSettings(schedule),
        "model": recipes.ModelSettings(),
        "augmentation": recipes.Augmentation(),
    }
    for name, settings in groups.items():
        own = {field.name for field in dataclasses.fields(settings)} & changes.keys()
        groups[name] = dataclasses.replace(settings, **{field: changes.pop(field) for field in own})
    return recipes.Recipe(data="made", init=str(init), **groups, **changes)


def trained(out: Path, init: Path, schedule: str = "simultaneous", **changes) -> Path:
    """The bundle that a run gives."""
    recipes.decompose(recipe(init, schedule, **changes), out)
    return out / "bundle"


def stored(bundle: Path) -> dict[str, torch.Tensor]:
    """All tensors of a bundle's files."""
    return {key: tensor for file in bundle.glob("*.safetensors") for key, tensor in load_file(file).items()}


def stock(bundle: Path, **size) -> ViTForImageClassification:
    return AutoModelForImageClassification.from_pretrained(bundle, **size).eval()


@torch.no_grad()
def logits(bundle: Path, **size) -> torch.Tensor:
    """Of three images, by the stock model of a size."""
    model = stock(bundle, **size)
    side = model.config.image_size
    return model(helpers.images(3, *([side] if isinstance(side, int) else side))).logits


@torch.no_grad()
def answers(bundle: Path, split: str, **size) -> list[int]:
    """The classes that a bundle's size gives for the pictures, preprocessed by transformers as the folder says."""
    processor = ViTImageProcessorPil.from_pretrained(bundle)
    values = processor([picture.convert("RGB") for picture in pictures(split).images], return_tensors="pt")
    return stock(bundle, **size)(**values).logits.argmax(-1).tolist()


def history(out: Path) -> list[dict]:
    """A row per epoch, without what a clock says."""
    rows = json.loads((out / "history.json").read_text(encoding="utf-8"))["epochs"]
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def test_a_run_that_changes_nothing_gives_the_bundle_back_in_every_schedule(tmp_path, monkeypatch, init):
    """No component is zeroed, rescaled or drawn anew, also by the phases of the incremental schedule.

    The pictures' labels are the bundle's own answers, so that the first evaluation is right about all of them.
    """
    labels = {split: answers(init, split) for split in ("train", "validation", "test")}
    assert len(set(labels["test"])) > 2  # or any start would be right
    monkeypatch.setattr(data, "load_images", lambda _, split: pictures(split, labels[split]))
    for schedule in SCHEDULES:
        out = tmp_path / schedule
        result = trained(out, init, schedule, learning_rate=NOTHING, totals=(2, 5), depths=(3,))
        before, after = stored(init), stored(result)
        assert before.keys() == after.keys()
        for key in before:
            assert torch.allclose(before[key], after[key], rtol=0, atol=1e-8), (schedule, key)
        for size in ({}, {"num_components": 2}, {"depth": 3, "num_components": 4}):
            assert torch.allclose(logits(result, **size), logits(init, **size), atol=1e-5)
        rows = json.loads((out / "results.json").read_text(encoding="utf-8"))["sizes"]
        right = {(row["depth"], row["num_components"]): row["accuracy"] for row in rows}
        assert right.keys() == {(3, 2), (3, 5), (6, 2), (6, 5)} and right[6, 5] == history(out)[-1]["accuracy"] == 1
        assert right[6, 2] < 1


def test_training_from_the_bundle_changes_its_tensors_and_the_folder_it_came_from_is_left_alone(tmp_path, init):
    """What the test above finds unchanged can change; the bundle on disk is mapped, not owned."""
    before = stored(init)
    weights_id = bundle_weights_id(init)
    after = stored(trained(tmp_path / "out", init))
    assert bundle_weights_id(init) == weights_id
    assert all(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_phases_of_a_warm_start_leave_every_tensor_where_it_is(schedule):
    """From nothing the incremental schedule rescales the first components and sets the later ones to zero."""
    model = helpers.tiny_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    phases(model, DecompositionSettings(schedule, totals=(2, 5)), warm=True)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    phases(model, DecompositionSettings(schedule, totals=(2, 5)))
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == (
        {name for name in before if name.startswith("components.")} if schedule == "incremental" else set()
    )


def test_each_phase_of_an_incremental_warm_start_trains_its_own_components(tmp_path, init):
    """The first phase leaves the later components as the bundle has them; they are not held at nothing."""
    run = trained(tmp_path / "out", init, "incremental", totals=(2, 5), keep_checkpoints=5)
    (first,) = (run.parent / "checkpoints").glob("000-*")
    between, before, after = load_file(first / "model.safetensors"), stored(init), stored(run)
    for key in (key for key in before if key.startswith("components.")):
        early = int(key.split(".")[1]) < 2
        assert torch.equal(between[key], before[key]) is not early, key
        assert torch.equal(after[key], between[key]) is early, key


def test_fewer_components_are_the_first_ones(tmp_path, init):
    """The prefix as `from_pretrained` gives it; the result holds no file of the others."""
    result = trained(tmp_path / "out", init, num_components=2, learning_rate=NOTHING)
    assert sorted(path.name for path in result.glob("component-*")) == [f"component-0{n}.safetensors" for n in (0, 1)]
    before, after = stored(init), stored(result)
    assert after.keys() == {
        key for key in before if not key.startswith(("components.2", "components.3", "components.4"))
    }
    assert all(torch.allclose(after[key], before[key], rtol=0, atol=1e-8) for key in after)
    assert torch.allclose(logits(result), logits(init, num_components=2), atol=1e-5)
    assert LinGeneConfig.from_pretrained(result).reference_components == 2


def test_more_components_than_the_bundle_holds_are_refused(tmp_path, init):
    """Before a picture is read; nothing is written."""
    with pytest.raises(ValueError, match="`num_components` 9 is more than the 5 stored"):
        recipes.decompose(recipe(init, num_components=9), tmp_path / "out")
    with pytest.raises(ValueError, match=r"`totals` must increase and end at the 5 components, got \[1, 6\]"):
        recipes.decompose(recipe(init, totals=(1, 6)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["the same", "no names", "relabelled"])
def test_the_same_classes_keep_the_head_and_other_names_do_where_that_is_meant(tmp_path, case):
    """The head was trained; a bundle without names says nothing against the pictures' ones."""
    word = {"the same": "CLASS", "no names": "LABEL", "relabelled": "thing"}[case]
    init = begun(tmp_path / "init", word=word)
    if case == "no names":
        said = json.loads((init / "config.json").read_text())
        said |= {"id2label": {str(n): f"LABEL_{n}" for n in range(7)}}
        said["label2id"] = {name: int(n) for n, name in said["id2label"].items()}
        (init / "config.json").write_text(json.dumps(said))
    result = trained(tmp_path / "out", init, learning_rate=NOTHING, relabel=case == "relabelled")
    assert torch.allclose(stored(result)["classifier.weight"], stored(init)["classifier.weight"], rtol=0, atol=1e-8)
    for folder in (result, tmp_path / "out" / "best"):
        config = stock(folder).config
        assert config.id2label == {index: f"class {index}" for index in range(7)}
        assert config.label2id == {f"class {index}": index for index in range(7)}


def test_a_head_that_knows_the_classes_in_another_order_among_others_keeps_their_rows(tmp_path):
    """By place the row of a rose would begin as that of a tulip."""
    init = begun(tmp_path / "init", num_labels=9)
    config = LinGeneConfig.from_pretrained(init)
    names = [f"class {index}" for index in (8, 3, 0, 6, 1, 7, 2, 5, 4)]
    fields = json.loads((init / "config.json").read_text())
    fields |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    (init / "config.json").write_text(json.dumps(fields))
    result = trained(tmp_path / "out", init, learning_rate=NOTHING)
    rows = [names.index(f"class {index}") for index in range(7)]
    for key in ("classifier.weight", "classifier.bias"):
        assert torch.allclose(stored(result)[key], stored(init)[key][rows], rtol=0, atol=1e-8)
    assert config.num_labels == 9 and stock(result).config.id2label == {n: f"class {n}" for n in range(7)}


def test_a_head_of_another_number_of_classes_cannot_be_relabelled(tmp_path):
    """Which rows would be meant is not said."""
    with pytest.raises(ValueError, match="`relabel` keeps the head of `init` .* which are 7; it has 5"):
        trained(tmp_path / "out", begun(tmp_path / "init", num_labels=5), relabel=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 5},
        {"num_labels": 9, "word": "thing"},
        {"word": "thing"},
        {"model_class": LinGeneModel, "num_labels": 5},
        {"model_class": LinGeneModel},
    ],
    ids=["fewer", "more", "as many others", "headless of other classes", "headless"],
)
def test_other_classes_or_no_head_give_a_new_one_and_a_word_about_it(tmp_path, monkeypatch, fields):
    """Of the usual scale, with biases of nothing; all else is the bundle's."""
    said = []
    monkeypatch.setattr(warm_start.logger, "warning", said.append)
    init = begun(tmp_path / "init", **fields)
    result = trained(tmp_path / "out", init, learning_rate=NOTHING)
    before, after = stored(init), stored(result)
    head, bias = after.pop("classifier.weight"), after.pop("classifier.bias")
    assert head.shape == (7, 48) and bias.abs().max() < 1e-8
    assert head.std() == pytest.approx(0.02, rel=0.2) and head.abs().max() < 2  # trunc_normal_ of initializer_range
    if "classifier.weight" in before:
        old = before["classifier.weight"][:7]
        assert (head[: len(old)] - old).abs().mean() > 0.05  # the old one has the noise of `tiny_model`
    assert all(torch.allclose(tensor, before[key], rtol=0, atol=1e-8) for key, tensor in after.items())
    assert stock(result).config.num_labels == 7
    assert len(said) == 1 and said[0].startswith("The head is new, for the 7 classes of made (class 0, ")


def test_a_new_head_is_learned(tmp_path):
    """A head that gets no gradient would stay at chance whatever the encoder does."""
    init = begun(tmp_path / "init", num_labels=5)
    result = trained(tmp_path / "out", init)
    still = trained(tmp_path / "still", init, learning_rate=NOTHING)
    for key in ("classifier.weight", "classifier.bias"):
        assert (stored(result)[key] - stored(still)[key]).abs().max() > 1e-3


def test_the_new_head_of_a_headless_bundle_comes_from_the_seed(tmp_path):
    """Its configuration has as many classes as the pictures: what was drawn before the run must not matter."""
    init = begun(tmp_path / "init", model_class=LinGeneModel)
    ids = []
    for drawn in range(2):
        torch.manual_seed(drawn)
        ids.append(bundle_weights_id(trained(tmp_path / f"out {drawn}", init)))
    assert ids[0] == ids[1]


def test_the_new_head_of_other_classes_comes_from_the_seed(tmp_path):
    """One seed, one run."""
    init = begun(tmp_path / "init", num_labels=5)
    ids = []
    for drawn, seed in enumerate((0, 0, 1)):
        torch.manual_seed(drawn)
        ids.append(bundle_weights_id(trained(tmp_path / f"out {drawn}", init, seed=seed)))
    assert ids[0] == ids[1] != ids[2]


class Caught(Exception):
    """Carries the loop out of a run that was to begin."""


def loop_of(monkeypatch: pytest.MonkeyPatch, asked: recipes.Recipe, out: Path) -> TrainingLoop:
    """What a recipe would train, before the first step."""

    def fit(loop, _):
        raise Caught(loop)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "fit", fit)
        with pytest.raises(Caught) as caught:
            recipes.decompose(asked, out)
    return caught.value.args[0]


@pytest.mark.parametrize("image_size", [16, [16, 24]])
def test_the_bundles_preprocessing_is_what_is_trained_with_and_what_is_saved(tmp_path, monkeypatch, image_size):
    """Size, mean, standard deviation and interpolation, of pictures of another shape; against transformers' own."""
    init = begun(tmp_path / "init", image_size=image_size, patch_size=[4, 8] if image_size != 16 else 4)
    own = ViTImageProcessorPil.from_pretrained(init)
    loop = loop_of(monkeypatch, recipe(init), tmp_path / "caught")
    for source, split in ((loop.images, "train"), (loop.held_out, "validation")):
        (batch,) = source.in_order(Layout(28))
        expected = own([picture.convert("RGB") for picture in pictures(split).images], return_tensors="pt")
        assert torch.allclose(batch["pixel_values"], expected["pixel_values"], atol=1e-5)
    bundle = trained(tmp_path / "out", init)
    for folder in (bundle, tmp_path / "out" / "best"):
        saved = ViTImageProcessorPil.from_pretrained(folder)
        for field in ("size", "image_mean", "image_std", "resample", "rescale_factor"):
            assert getattr(saved, field) == getattr(own, field), field
    assert (list(saved.image_mean), saved.resample) == (MEAN, BICUBIC)
    config, side = LinGeneConfig.from_pretrained(bundle), image_size if isinstance(image_size, list) else [16, 16]
    assert config.image_size == image_size and [saved.size["height"], saved.size["width"]] == side


@pytest.mark.parametrize(
    "said, size",
    [
        ({"size": {"height": 24, "width": 16}}, (24, 16)),
        ({"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True}, (16, 16)),
    ],
)
def test_a_family_that_takes_any_size_trains_on_the_pictures_that_its_preprocessing_makes(
    tmp_path, monkeypatch, said, size
):
    """A DINOv2 holds positions for 518 pixels and is used at 224: at 518 a step would cost five times as much."""
    init = begun(tmp_path / "init", family="dinov2", image_size=32, intermediate_size=48)
    path = init / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    loop = loop_of(monkeypatch, recipe(init), tmp_path / "caught")
    (batch,) = loop.images.in_order(Layout(28))
    assert tuple(batch["pixel_values"].shape[-2:]) == size
    assert dict(loop.images.processor.size) == {"height": size[0], "width": size[1]}
    assert list(loop.images.processor.image_mean) == MEAN


def test_a_bundle_without_preprocessing_takes_the_usual_one_at_its_own_size(tmp_path, monkeypatch, bundle):
    """Saved from memory it has none; the size is not that of the pictures."""
    loop = loop_of(monkeypatch, recipe(bundle), tmp_path / "caught")
    processor = loop.images.processor
    assert dict(processor.size) == {"height": 16, "width": 16} and list(processor.image_mean) == [0.5] * 3
    assert torch.equal(loop.model.classifier.weight, helpers.tiny_model().classifier.weight)


def test_learned_coefficients_and_chosen_layers_survive_training_and_saving(tmp_path):
    """Recomposed by numpy from the trained components and the table of the start: any other gives other logits."""
    init = begun(tmp_path / "init", **FITTED)
    result = trained(tmp_path / "out", init, "elastic", depths=(2, 3), learning_rate=1e-3)
    config = LinGeneConfig.from_pretrained(result)
    assert (config.basis, config.depth_map) == ("learned", "select")
    assert config.coefficient_matrix == MATRIX and config.depth_rows == ROWS
    model = LinGeneForImageClassification.from_pretrained(result, constrained=True).eval()
    for depth, count in ((6, 5), (3, 5), (2, 4), (4, 2)):
        reference, size = helpers.reference_vit(model, depth, "1", count), {"depth": depth, "num_components": count}
        with torch.no_grad():
            expected = reference(helpers.images()).logits
        assert torch.allclose(logits(result, **size), expected, atol=1e-4)
        assert (logits(init, **size) - expected).abs().max() > 1e-3  # it was trained


def test_learned_coefficients_are_cut_with_the_components(tmp_path):
    """Columns of the matrix are components."""
    init = begun(tmp_path / "init", **FITTED)
    result = trained(tmp_path / "out", init, num_components=3, learning_rate=NOTHING)
    assert LinGeneConfig.from_pretrained(result).coefficient_matrix == [row[:3] for row in MATRIX]
    assert torch.allclose(logits(result, depth=3), logits(init, depth=3, num_components=3), atol=1e-5)


def test_the_sizes_that_were_trained_are_written_down(tmp_path, init):
    """A warm start trains the full width alone: what the bundle said of narrower ones no longer holds."""
    before = LinGeneConfig.from_pretrained(init)
    assert before.trained_width_ratios == ["1/2", "1"] and before.trained_depths == [6]
    after = LinGeneConfig.from_pretrained(trained(tmp_path / "out", init, depths=(4, 2)))
    assert after.trained_width_ratios == ["1"] and after.trained_depths == [2, 4, 6]
    with pytest.raises(ValueError, match="`width_ratio` 1/2 was never trained"):
        stock(tmp_path / "out" / "bundle", width_ratio="1/2")


def test_a_bundle_of_fewer_layers_is_trained_at_the_depth_that_is_written_down(tmp_path, monkeypatch, init):
    """Saved from a constrained model of three layers of six: three are evaluated, measured and said to be trained."""
    LinGeneForImageClassification.from_pretrained(init, constrained=True, depth=3).save_pretrained(tmp_path / "three")
    forward, depths = LinGeneForImageClassification.forward, set()

    def watched(model, *inputs, depth=None, **named):
        depths.add(depth or model.config.num_hidden_layers)
        return forward(model, *inputs, depth=depth, **named)

    monkeypatch.setattr(LinGeneForImageClassification, "forward", watched)
    result = trained(tmp_path / "out", tmp_path / "three")
    assert sorted(depths) == LinGeneConfig.from_pretrained(result).trained_depths


@pytest.mark.parametrize(
    "schedule, fields, stop",
    [
        ("simultaneous", FITTED, 4),
        ("elastic", {"num_labels": 5}, 5),
        ("incremental", {}, 3),
        ("incremental", {}, 10),
    ],
)
def test_a_stopped_run_ends_bitwise_as_one_that_went_through(tmp_path, monkeypatch, schedule, fields, stop):
    """A start that is loaded, cut, given a head or rescaled once more on resuming would show in some bit."""
    init = begun(tmp_path / "init", **fields)
    moved = {"crop_padding": 1, "epochs": 2, "totals": (2, 5), "depths": (3,), "dropout": 0.1}
    whole = trained(tmp_path / "whole", init, schedule, **moved)
    step, steps = TrainingLoop._step, []

    def stopping(*inputs):
        if len(steps) == stop:
            raise KeyboardInterrupt
        steps.append(stop)
        return step(*inputs)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped", init, schedule, **moved)
    assert not (tmp_path / "stopped" / "bundle").exists()
    torch.manual_seed(99)  # as in another process
    stopped = trained(tmp_path / "stopped", init, schedule, **moved)
    assert bundle_weights_id(stopped) == bundle_weights_id(whole) != bundle_weights_id(init)
    assert history(stopped.parent) == history(whole.parent)
    assert LinGeneConfig.from_pretrained(stopped).to_dict() == LinGeneConfig.from_pretrained(whole).to_dict()


def test_a_finished_run_from_another_bundle_is_not_read_back(tmp_path, init):
    """The same settings from another start are another run."""
    trained(tmp_path / "out", init)
    other = begun(tmp_path / "other")
    with pytest.raises(ValueError, match=r"`out` .*another run, differing in init"):
        trained(tmp_path / "out", other)


def test_a_run_does_not_go_on_with_another_teacher_of_the_same_name(tmp_path, init):
    """Half of what was learned came from the one that is gone."""
    teacher = begun(tmp_path / "teacher")
    trained(tmp_path / "out", init, teacher=str(teacher))
    assert trained(tmp_path / "out", init, teacher=str(teacher)).is_dir()
    LinGeneForImageClassification.from_pretrained(teacher, constrained=True, num_components=2).save_pretrained(teacher)
    with pytest.raises(ValueError, match=r"another run, differing in teacher_content \(\S+ there, \S+ asked\);"):
        trained(tmp_path / "out", init, teacher=str(teacher))


def test_a_run_does_not_go_on_from_another_bundle_of_the_same_name(tmp_path, monkeypatch):
    """Converted anew with other coefficients: the checkpoint's components belong to the old ones."""
    init = begun(tmp_path / "init", **FITTED)
    trained(tmp_path / "out", init)
    for result in ("results.json", "bundle/config.json"):
        (tmp_path / "out" / result).unlink()
    other = numpy.random.default_rng(1).normal(size=(6, 5)).tolist()
    begun(tmp_path / "init", **{**FITTED, "coefficient_matrix": other})
    with pytest.raises(ValueError, match="another run"):
        trained(tmp_path / "out", init)


def test_a_bundle_in_half_precision_goes_on_in_single(tmp_path):
    """Steps of training are lost in bfloat16's eight bits."""
    init = begun(tmp_path / "init", dtype=torch.bfloat16)
    result = trained(tmp_path / "out", init, learning_rate=NOTHING)
    for key, tensor in stored(result).items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, stored(init)[key].float(), rtol=0, atol=1e-8)


def test_a_bundle_may_lie_below_the_home_folder(tmp_path, monkeypatch):
    """A shell leaves `--init=~/bundle` as it is; weights and preprocessing are both found there."""
    begun(tmp_path / "bundle")
    monkeypatch.setenv("HOME", str(tmp_path))
    loop = loop_of(monkeypatch, recipe(Path("~/bundle")), tmp_path / "caught")
    assert torch.equal(loop.model.layernorm.weight, stored(tmp_path / "bundle")["layernorm.weight"])
    assert list(loop.images.processor.image_mean) == MEAN


def test_dropout_is_the_runs(tmp_path, monkeypatch, init):
    """The only setting of the model, with the number of components, that a warm start takes."""
    loop = loop_of(monkeypatch, recipe(init, dropout=0.25, hidden_size=96, depth=2), tmp_path / "caught")
    assert loop.model.config.hidden_dropout_prob == 0.25
    assert (loop.model.config.hidden_size, loop.model.config.num_hidden_layers) == (48, 6)


def lingene(capsys: pytest.CaptureFixture, *arguments) -> tuple[int, str, list[str]]:
    """Status, stdout and the lines on stderr of one command."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()


@pytest.mark.parametrize("name", SHAPE_FLAGS)
def test_a_shape_beside_init_is_refused_by_name(tmp_path, capsys, init, name):
    """It would be passed over in silence."""
    flags = [f"--{name.replace('_', '-')}", OTHERS["model"][name][0]]
    code, out, errors = lingene(
        capsys, "decompose", "--init", init, "--data", "digits", *flags, "--out", tmp_path / "out"
    )
    assert (code, out) == (2, "") and not (tmp_path / "out").exists()
    told = f"lingene decompose: `{flags[0]}` is the bundle's that `--init` names; leave one of them out."
    assert errors == [told]


@pytest.mark.parametrize(
    "kind, named", [("absent", "`--init`"), ("empty", "`--init`"), ("plain", "not a bundle of shared components")]
)
def test_what_is_no_bundle_is_refused_in_one_line(tmp_path, capsys, kind, named):
    """Before data is read: a folder that is not there, holds nothing, or a plain model."""
    if kind == "empty":
        (tmp_path / kind).mkdir()
    if kind == "plain":
        helpers.tiny_model().materialise(2).save_pretrained(tmp_path / kind)
        capsys.readouterr()
    line = ["decompose", "--init", tmp_path / kind, "--data", "digits", "--out", tmp_path / "out"]
    code, out, errors = lingene(capsys, *line)
    assert (code, out, len(errors)) == (2, "", 1) and not (tmp_path / "out").exists()
    assert errors[0].startswith("lingene decompose: ") and named in errors[0] and str(tmp_path / kind) in errors[0]


def test_the_command_goes_on_from_a_bundle_with_what_else_a_recipe_says(tmp_path, capsys, init):
    """`--recipe` brings a shape of its own, which does not count; its schedule does."""
    line = ["decompose", "--recipe", "digits", "--init", init, "--totals", "1,5", "--epochs", 1, "--batch-size", 14]
    code, out, _ = lingene(capsys, *line, "--learning-rate", NOTHING, "--out", tmp_path / "out")
    assert code == 0 and str(tmp_path / "out" / "bundle") in out
    config = LinGeneConfig.from_pretrained(tmp_path / "out" / "bundle")
    assert (config.hidden_size, config.reference_components, config.trained_depths) == (48, 5, [3, 4, 6])
    assert [row["phase"] for row in history(tmp_path / "out")] == ["component 1", "components 2-5"]
    assert torch.allclose(logits(tmp_path / "out" / "bundle"), logits(init), atol=1e-5)


def test_the_model_that_was_converted_teaches(tmp_path, monkeypatch):
    """As the converter advises; the teacher sees the pictures through its own preprocessing, and is followed."""
    torch.manual_seed(0)
    model_class, config = CLASSIFIERS["vit"]
    config = copy.deepcopy(config)
    config.id2label = {index: f"class {index}" for index in range(7)}
    config.label2id = {f"class {index}": index for index in range(7)}
    model, teacher = stock_source(tmp_path, model_class, config)
    processors = {"teacher": image_processor(16), "student": image_processor(16)}
    processors["teacher"].image_mean, processors["teacher"].image_std = MEAN, STD
    convert(str(teacher), tmp_path / "bundle", num_components=3)
    for processor, folder in zip(processors.values(), (teacher, tmp_path / "bundle")):
        processor.save_pretrained(folder)
    shown = [picture.convert("RGB") for picture in pictures("train").images]
    values = {name: processor(shown, return_tensors="pt") for name, processor in processors.items()}
    with torch.no_grad():
        expected = model(**values["teacher"]).logits
    assert expected.std() > 0.1
    asked = {"teacher": str(teacher), "epochs": 8}
    for cached in (False, True):
        loop = loop_of(
            monkeypatch, recipe(tmp_path / "bundle", cache_teacher=cached, **asked), tmp_path / f"caught {cached}"
        )
        (batch,) = loop.images.in_order(Layout(28))
        assert torch.allclose(batch["pixel_values"], values["student"]["pixel_values"], atol=1e-5)
        assert torch.allclose(loop.teacher(batch), expected, atol=1e-4)
    distances = []
    for name, teaching in (("taught", asked), ("alone", {"epochs": 8})):
        result = trained(tmp_path / name, tmp_path / "bundle", **teaching)
        with torch.no_grad():
            found = stock(result)(**values["student"]).logits
        distances.append((found.softmax(-1) - expected.softmax(-1)).norm())
    assert distances[0] < 0.75 * distances[1]
