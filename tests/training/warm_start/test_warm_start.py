"""Laws of a warm start: a run begins where the bundle is, in every schedule, and with the components that are asked.

Runs whose learning rate does nothing must give the bundle back, tensor by tensor; a teacher's answers are those of the
stock model.

    pytest tests/training/warm_start/test_warm_start.py
"""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from converting import CLASSIFIERS
from converting import source as stock_source
from safetensors.torch import load_file
from transformers import ViTImageProcessorPil
from warm import MEAN, NOTHING, STD, history, logits, loop_of, pictures, recipe, stock, stored, trained

import helpers
from modeling_lingene import LinGeneConfig
from modeling_lingene.conversion.convert import convert
from modeling_lingene.folders import bundle_weights_id, write_training
from modeling_lingene.images import data
from modeling_lingene.images.batches import image_processor
from modeling_lingene.images.loaders import Layout
from modeling_lingene.training import recipes
from modeling_lingene.training.decomposition import SCHEDULES, DecompositionSettings, phases
from modeling_lingene.training.record import training_facts


pytest.importorskip("matplotlib")


@torch.no_grad()
def answers(bundle: Path, split: str, **size) -> list[int]:
    """The classes that a bundle's size gives for the pictures, preprocessed by transformers as the folder says."""
    processor = ViTImageProcessorPil.from_pretrained(bundle)
    values = processor([picture.convert("RGB") for picture in pictures(split).images], return_tensors="pt")
    return stock(bundle, **size)(**values).logits.argmax(-1).tolist()


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


@pytest.mark.parametrize(
    "files, rate",
    [
        ((), 0.256 / 48),
        (("conversion.json",), 1e-4),
        (("training.json, of new weights",), 0.256 / 48),
        (("training.json, of the converted",), 1e-4),
    ],
    ids=str,
)
def test_what_was_converted_is_not_trained_at_the_rate_of_new_weights(tmp_path, monkeypatch, init, files, rate):
    """It would forget what it knows within an epoch, at the default; a rate that is asked for is taken as it is."""
    start = Path(shutil.copytree(init, tmp_path / "start"))
    report = {"source": "org/vit", "fit": "exact", "depth": 6, "num_components": 5, "relative_logit_error": 0.0}
    facts = training_facts(recipe(init), [{"seconds": 1.0}], "set", 5, "a machine", 1)
    for file in files:
        if file == "conversion.json":
            (start / file).write_text(json.dumps(report))
        else:
            write_training(start, facts | {"init": None if "new" in file else "converted"})
    loop = loop_of(monkeypatch, recipe(start, learning_rate=-1.0), tmp_path / "out")
    assert loop.settings.rate == rate == loop.checkpoints.identity["learning_rate"]
    assert loop_of(monkeypatch, recipe(start, learning_rate=0.5), tmp_path / "other").settings.rate == 0.5
