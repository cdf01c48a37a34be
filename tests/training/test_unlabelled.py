"""Laws of runs without labels, from a folder of pictures to a bundle without classifier.

Forty pictures, two folders deep.

    pytest tests/training/test_unlabelled.py
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, ViTModel
from unlabelled_runs import history, larger, recipe, stored, trained

import helpers
from modeling_lingene import LinGeneConfig, LinGeneModel
from modeling_lingene.budget_lingene import TIMING
from modeling_lingene.folders import bundle_weights_id, read_processor
from modeling_lingene.images.batches import batches, image_processor
from modeling_lingene.images.data import split_off
from modeling_lingene.images.loaders import Layout
from modeling_lingene.images.pictures import load_pictures
from modeling_lingene.measuring.evaluation import evaluate_data
from modeling_lingene.readout import read_readout, write_readout
from modeling_lingene.training import recipes
from modeling_lingene.training.asked import asked_of
from modeling_lingene.training.encoders import Encoder
from modeling_lingene.training.loop import TrainingLoop
from modeling_lingene.training.teacher_cache import CachedTeacher, RememberedTeacher


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "plot_history", lambda *_, **__: None)


def test_without_a_rate_a_backbone_learns_at_one_that_suits_it(tmp_path, photos, init, capsys):
    """That of new weights ruins it; the command that the bundle records asks for the rate that was taken."""
    trained(tmp_path, photos, init, learning_rate=-1.0, epochs=1)
    told = capsys.readouterr().err
    assert "learning rate 3e-05" in told and "fitting heads: 100%" in told and "measuring: 100%" in told
    assert max(row["learning_rate"] for row in history(tmp_path)) <= 3e-5
    assert "--learning-rate 3e-05" in json.loads((tmp_path / "bundle" / "training.json").read_text())["command"]


def test_a_folder_of_pictures_and_a_bundle_are_all_that_a_run_needs(tmp_path, photos, init):
    """No label, no split, no teacher: the result is a bundle without classifier, whose sizes load."""
    rows = trained(tmp_path, photos, init, widths=("1/2",))
    bundle = tmp_path / "bundle"
    assert not [key for key in stored(bundle) if key.startswith(("classifier", "heads"))]
    config = LinGeneConfig.from_pretrained(bundle)
    assert config.trained_width_ratios == ["1/2", "1"] and config.trained_depths == [2, 4]
    model = AutoModel.from_pretrained(bundle, depth=2, width_ratio="1/2")
    assert isinstance(model, ViTModel) and model.config.hidden_size == 24
    assert {(row["depth"], row["width_ratio"], row["num_components"]) for row in rows} == {
        (depth, width, count) for depth in (2, 4) for width in ("1/2", "1") for count in (2, 4)
    }
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    stored_rows = [{key: value for key, value in row.items() if key not in TIMING} for row in results["sizes"]]
    assert stored_rows == rows and all(row["split"] == "validation" for row in rows)
    kept = json.loads((bundle / "sizes.json").read_text(encoding="utf-8"))["sizes"]
    assert [row["cosine"] for row in kept] == [row["cosine"] for row in rows]
    assert (bundle / "README.md").is_file() and (tmp_path / "sizes.png").is_file()
    full = next(row for row in rows if (row["depth"], row["width_ratio"], row["num_components"]) == (4, "1", 4))
    assert full["feature_loss"] == pytest.approx(history(tmp_path)[-1]["feature_loss"], abs=1e-6)
    whole = AutoModel.from_pretrained(bundle)
    assert full["params"] == sum(parameter.numel() for parameter in whole.parameters())


def test_what_learns_from_itself_is_measured_by_what_it_was(tmp_path, photos, init):
    """The cosine of every size with the bundle that it began as, on the pictures held out; a budget chooses by it.
    With a teacher that is named where its channels are the bundle's; those that linear heads lead to may mean else."""
    rows = trained(tmp_path / "own", photos, init, widths=("1/2",), epochs=1, learning_rate=1e-9)
    by_size = {(row["depth"], row["width_ratio"], row["num_components"]): row for row in rows}
    row, whole = by_size[4, "1", 4], AutoModel.from_pretrained(init).eval()
    assert row["metric"] == "cosine" and row["cosine"] > 0.9999 and row["patch_cosine"] > 0.9999
    narrow, bundle = by_size[4, "1/2", 4], tmp_path / "own" / "bundle"
    small = AutoModel.from_pretrained(bundle, width_ratio="1/2").eval()
    with pytest.warns(UserWarning, match="1 left out of .*notes.txt"):
        held = split_off(load_pictures(str(photos), "train"), recipes.Recipe(data="").validation_share, 0)[1]
    with torch.no_grad():
        pixels = torch.cat([batch["pixel_values"] for batch in batches(held, read_processor(bundle), 8)])
        found, expected = (model(pixels).last_hidden_state for model in (small, whole))
    lacking = torch.zeros(*found.shape[:2], 24)  # channels
    cosine = torch.cosine_similarity(torch.cat((found, lacking), dim=-1), expected, dim=-1)
    assert narrow["cosine"] == pytest.approx(float(cosine[:, 0].mean()), abs=1e-5)
    assert narrow["patch_cosine"] == pytest.approx(float(cosine[:, 1:].mean()), abs=1e-5)
    chosen = AutoModel.from_pretrained(bundle, max_params=narrow["params"])
    assert chosen.config.hidden_size == 24
    taught = trained(tmp_path / "taught", photos, init, teacher=str(init), epochs=1)
    assert not any("cosine" in row for row in taught) and all("feature_loss" in row for row in taught)
    alike = trained(tmp_path / "alike", photos, init, teacher=str(init), epochs=1, feature_heads="identity")
    assert {row["reference"] for row in alike} == {Path(init).name} and {row["metric"] for row in alike} == {"cosine"}
    kept = json.loads((tmp_path / "alike" / "bundle" / "sizes.json").read_text(encoding="utf-8"))["sizes"]
    assert [row["cosine"] for row in kept] == [row["cosine"] for row in alike]
    uncropped = shutil.copytree(init, tmp_path / "uncropped")  # whose pictures have shapes of their own
    helpers.edit(uncropped / "preprocessor_config.json", lambda said: said.update(size={"shortest_edge": 16}))
    rows = trained(tmp_path / "other", photos, init, teacher=str(uncropped), epochs=1, feature_heads="identity")
    assert not any("cosine" in row for row in rows)
    assert not (tmp_path / "taught" / "bundle" / "sizes.json").exists()


@pytest.mark.parametrize("taught", [False, True], ids=["its own", "a teacher by name"])
def test_a_set_with_labels_measures_what_learned_without_them(tmp_path, classes, init, taught):
    """k-NN and the probe as `lingene evaluate` finds them, on the test part; also where a cosine means nothing."""
    asked = {"teacher": str(init), "metric": "knn,probe"} if taught else {"metric": "knn,cosine"}
    rows = recipes.decompose(recipe(classes, init, epochs=1, widths=("1/2",), **asked), tmp_path)
    assert {row["metric"] for row in rows} == {"knn"} and {row["split"] for row in rows} == {"test"}
    assert all("feature_loss" in row and ("cosine" in row) == (not taught) for row in rows)
    narrow = next(row for row in rows if (row["depth"], row["width_ratio"], row["num_components"]) == (2, "1/2", 4))
    size = {"depth": 2, "width_ratio": "1/2", "num_components": 4}
    found = evaluate_data(tmp_path / "bundle", size, str(classes), "test", "knn,probe", device="cpu")
    assert narrow["knn"] == found["knn"] and narrow["images"] == 16
    if taught:
        assert narrow["probe"] == found["probe"]
    kept = json.loads((tmp_path / "bundle" / "sizes.json").read_text(encoding="utf-8"))["sizes"]
    assert [row["knn"] for row in kept] == [row["knn"] for row in rows]
    assert "k-NN" in (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "sizes.png").is_file()


def test_the_bundle_begins_with_what_it_knows_and_learns_its_sizes_from_it(tmp_path, photos, init):
    """The full size is near the teacher at first, through heads that are fitted to all widths: what learns through
    random heads forgets first. Then sizes that were never trained before come nearer."""
    asked = {"widths": ("1/2",), "depths": (2,)}
    first = trained(tmp_path / "start", photos, init, **asked, epochs=1, learning_rate=1e-9)
    rows = trained(tmp_path / "out", photos, init, **asked, epochs=12, learning_rate=3e-3)
    begun, ended = (
        {(row["depth"], row["width_ratio"], row["num_components"]): row["feature_loss"] for row in one}
        for one in (first, rows)
    )
    assert begun[4, "1", 4] < 0.1 < min(loss for size, loss in begun.items() if size != (4, "1", 4))
    assert sum(ended.values()) < 0.8 * sum(begun.values()) and len(rows) == 8


def test_the_heads_are_kept_with_the_checkpoint(tmp_path, photos, init):
    """So that a run goes on; whoever loads the bundle has no use for them."""
    trained(tmp_path, photos, init)
    folder = sorted((tmp_path / "checkpoints").iterdir())[-1]
    keys = load_file(folder / "model.safetensors").keys()
    assert {"heads.tokens.linear.weight", "heads.class_token.norm.bias"} <= keys
    assert not any("masked" in key for key in keys)


SCHEDULES = {  # each with another option that must come back as well
    "one, identity": {"feature_heads": "identity", "widths": ("1/2",)},
    "four share a step": {"networks": 4, "widths": ("1/2",)},
    "sandwich, varied": {"sampling": "sandwich", "widths": ("1/2",), "crop_padding": 2, "flip": True},
    "scala": {"sampling": "scala", "widths": ("1/4", "1/2"), "isolated_activation": True, "full_first": 0.2},
    "incremental, averaged": {"schedule": "incremental", "freeze_outside": True, "ema": 0.5},
    "simultaneous, recomputed": {"schedule": "simultaneous", "activation_checkpointing": True},
    "one, masked": {"mask_share": 0.3, "networks": 1, "widths": ("1/2",)},
    "simultaneous, masked, DINOv3": {"schedule": "simultaneous", "mask_share": 0.3, "activation_checkpointing": True},
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_and_sampling_resumes_bit_by_bit(tmp_path, monkeypatch, photos, init, kind):
    """Stopped in the first epoch and in the second one: heads, their optimiser and the draws all come back. Patches
    are masked in a family that has a token for them, which is learned."""
    if "mask_share" in SCHEDULES[kind]:
        family = {"family": "dinov3_vit", "num_register_tokens": 2} if "DINOv3" in kind else {"family": "dinov2"}
        config = helpers.tiny_config(**family, depth=4, num_components=4)
        init = tmp_path / "dino"
        helpers.tiny_model(config, model_class=LinGeneModel).save_pretrained(init)
        image_processor(16).save_pretrained(init)
    whole = trained(tmp_path / "whole", photos, init, **SCHEDULES[kind])
    take, steps = TrainingLoop._step, []

    def step(loop, run, parts):
        steps.append(None)
        if len(steps) in (2, 6):
            raise KeyboardInterrupt
        return take(loop, run, parts)

    monkeypatch.setattr(TrainingLoop, "_step", step)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parted", photos, init, checkpoint_every=1, **SCHEDULES[kind])
    parted = trained(tmp_path / "parted", photos, init, checkpoint_every=1, **SCHEDULES[kind])
    assert parted == whole and history(tmp_path / "parted") == history(tmp_path / "whole")
    ids = [bundle_weights_id(tmp_path / name / "bundle") for name in ("whole", "parted")]
    assert ids[0] == ids[1] != bundle_weights_id(init)
    if "mask_share" in SCHEDULES[kind]:
        tokens = [stored(one)["embeddings.mask_token"] for one in (init, tmp_path / "whole" / "bundle")]
        assert not torch.equal(*tokens)


def test_a_run_from_nothing_learns_from_a_teacher_by_name(tmp_path, photos, init):
    """Another width, another patch size: the heads lead into it."""
    model = recipes.ModelSettings(24, 2, intermediate_size=24, patch_size=4, depth=3)
    asked = dataclasses.replace(recipe(photos, teacher=str(init), totals=(3,), depths=()), model=model)
    with pytest.warns(UserWarning, match="notes.txt"):
        rows = recipes.decompose(asked, tmp_path)
    assert [row["depth"] for row in rows] == [3] and rows[0]["feature_loss"] > 0
    assert LinGeneConfig.from_pretrained(tmp_path / "bundle").num_labels == 2  # transformers' own: nothing is labelled


@torch.no_grad()
def test_a_new_bundle_that_learns_turned_channels_one_by_one_has_what_brings_them_back(tmp_path, photos):
    """Its cosine is of the source's channels, of both: as of both it stands in the files, by numpy."""
    config = helpers.tiny_config(layer_norm_eps=1e-5)
    helpers.tiny_model(config, model_class=LinGeneModel, noise=0.3).save_pretrained(tmp_path / "turned")
    image_processor(16).save_pretrained(tmp_path / "turned")
    generator = torch.Generator().manual_seed(2)
    readout = torch.randn(48, 48, generator=generator) / 7, torch.randn(48, generator=generator)
    write_readout(tmp_path / "turned", readout)
    model = recipes.ModelSettings(48, 4, intermediate_size=48, patch_size=4, depth=2, image_size=16)
    asked = recipe(
        photos, teacher=str(tmp_path / "turned"), feature_heads="identity", totals=(2,), depths=(), epochs=1
    )
    with pytest.warns(UserWarning, match="notes.txt"), torch.enable_grad():
        (row,) = recipes.decompose(dataclasses.replace(asked, model=model), tmp_path / "run")
    for folder in ("bundle", "best"):
        kept = read_readout(tmp_path / "run" / folder)
        assert all(map(torch.equal, kept, readout))
    with pytest.warns(UserWarning, match="notes.txt"):
        held = split_off(load_pictures(str(photos), "train"), recipes.Recipe(data="").validation_share, 0)[1]
    bundle, tokens = tmp_path / "run" / "bundle", []
    pixels = torch.cat([batch["pixel_values"] for batch in batches(held, read_processor(bundle), 8)])
    for name in (bundle, tmp_path / "turned"):
        own = AutoModel.from_pretrained(name).eval()(pixels).last_hidden_state[:, 0].numpy()
        tokens.append(own @ readout[0].numpy().T + readout[1].numpy())
    cosine = (
        (tokens[0] * tokens[1]).sum(1) / numpy.linalg.norm(tokens[0], axis=1) / numpy.linalg.norm(tokens[1], axis=1)
    )
    assert row["cosine"] == pytest.approx(cosine.mean(), abs=1e-5)


def test_a_teacher_without_preprocessing_sees_the_pixels_of_the_student(tmp_path, photos, init, caplog):
    """A masked autoencoder often brings none, and `convert` advises to learn from it. Here it is the start itself."""
    bare = shutil.copytree(init, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    given = {"teacher": str(bare), "feature_heads": "identity", "epochs": 1, "learning_rate": 1e-9}
    rows = trained(tmp_path / "run", photos, init, **given)
    row = next(row for row in rows if (row["depth"], row["num_components"]) == (4, 4))
    assert "bare brings no preprocessing: it sees pictures as the student" in caplog.text
    assert row["cosine"] > 0.9999 and row["feature_loss"] < 1e-6


def test_a_bundle_without_classifier_goes_on(tmp_path, photos, init):
    """What a run gives is what the next one starts from, of fewer components too; the teacher is all of it."""
    trained(tmp_path / "first", photos, init)
    asked = {}

    def fit(loop, phases):
        asked["teacher"] = loop.teacher
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TrainingLoop, "fit", fit)
        trained(tmp_path / "second", photos, tmp_path / "first" / "bundle", num_components=2, totals=(2,))
    whole = AutoModel.from_pretrained(tmp_path / "first" / "bundle").eval()
    with torch.no_grad():
        expected = whole(helpers.images()).last_hidden_state
    torch.testing.assert_close(asked["teacher"]({"pixel_values": helpers.images()}), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("named", [False, True])
def test_a_bundle_of_one_channel_learns_from_itself_or_from_a_teacher_of_colours(tmp_path, photos, named):
    """Grey pictures, which such a teacher sees as three channels alike."""
    config = helpers.tiny_config(depth=4, num_components=4, num_channels=1)
    init = helpers.bundle(tmp_path / "init", config)
    image_processor(16, 1).save_pretrained(init)
    asked = {"teacher": larger(tmp_path), "teacher_size": 20} if named else {}
    rows = trained(tmp_path / "out", photos, init, epochs=1, **asked)
    assert all(row["feature_loss"] > 0 for row in rows)
    assert list(read_processor(tmp_path / "out" / "bundle").image_mean) == [0.5]


def test_cached_tokens_teach_what_the_teacher_does(tmp_path, photos, init):
    """The same weights but for rounding, and nothing is left of the cache when the run is done."""
    plain = trained(tmp_path / "plain", photos, init)
    cached = trained(tmp_path / "cached", photos, init, cache_teacher=True)
    for one, other in zip(plain, cached):
        assert one["feature_loss"] == pytest.approx(other["feature_loss"], rel=1e-4)
    assert not (tmp_path / "cached" / "teacher").exists()


class Counted:
    def __init__(self):
        self.asked = 0

    def __call__(self, batch):
        self.asked += len(batch["index"])
        return batch["pixel_values"][:, :, :5, 0].clone()


def test_the_cache_gives_every_picture_its_own_tokens_and_asks_once(tmp_path):
    """In any order; a file that is complete is read again, by a run that goes on."""
    accelerator = recipes.make_accelerator(recipes.TrainingSettings(device="cpu"))
    source, teacher = helpers.source(14), Counted()
    for _ in range(2):
        cache = CachedTeacher(teacher, source, tmp_path / "train.f32", (3, 5), accelerator, 4)
        for (batch,) in source.batches("seed", Layout(4)):
            assert torch.equal(cache(batch), batch["pixel_values"][:, :, :5, 0])
    assert teacher.asked == 14 and (tmp_path / "train.f32").stat().st_size == 14 * 15 * 4


def test_a_teacher_that_was_interrupted_is_asked_for_what_is_missing(tmp_path):
    """What it said before is kept: of a large set that is hours."""
    accelerator = recipes.make_accelerator(recipes.TrainingSettings(device="cpu"))
    source, teacher, path = helpers.source(14), Counted(), tmp_path / "train.f32"

    def stopping(batch):
        if teacher.asked == 8:
            raise KeyboardInterrupt
        return teacher(batch)

    with pytest.raises(KeyboardInterrupt):
        CachedTeacher(stopping, source, path, (3, 5), accelerator, 4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["train.asked", "train.partial"]
    cache = CachedTeacher(teacher, source, path, (3, 5), accelerator, 4)
    assert teacher.asked == 14 and [file.name for file in tmp_path.iterdir()] == ["train.f32"]
    for batch in source.in_order(Layout(4)):
        assert torch.equal(cache(batch), batch["pixel_values"][:, :, :5, 0])


def test_a_teacher_is_asked_once_of_pictures_that_stay_as_far_as_memory_goes():
    """Every size and every epoch is judged on the pictures held out, and a teacher's pass is dearer than a narrow
    size's."""
    source = helpers.source(14)
    for room, asked in ((14 * 60, 14), (8 * 60, 14 + 2 * 6), (0, 3 * 14)):  # bytes of three channels of five pixels
        teacher = Counted()
        remembered = RememberedTeacher(teacher, room)
        for _ in range(3):
            for batch in source.in_order(Layout(4)):
                assert torch.equal(remembered(batch), batch["pixel_values"][:, :, :5, 0])
        assert teacher.asked == asked


def test_the_sizes_of_a_run_share_what_its_teacher_said_of_the_pictures_held_out(tmp_path, monkeypatch, photos, init):
    """Four sizes at the end and three epochs ask as often as one."""
    asked = []
    answer = Encoder.answer
    monkeypatch.setattr(Encoder, "answer", lambda self, values: asked.append(len(values)) or answer(self, values))
    trained(tmp_path, photos, init, epochs=3)
    black, pictures, held = 1, 36, 4
    heads, epochs = pictures, 3 * pictures
    assert len(history(tmp_path)) == 3 and sum(asked) == black + heads + epochs + held + held  # losses, then cosines


def test_a_run_that_was_stopped_while_it_cached_goes_on_and_another_is_refused(tmp_path, monkeypatch, photos, init):
    """Its folder holds no checkpoint yet; tokens of another teacher must not be taken for its own."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TrainingLoop, "fit", stop)
        trained(tmp_path, photos, init, cache_teacher=True)
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == [
        "cache.json",
        "held_out.f32",
        "train.f32",
    ]
    assert asked_of(tmp_path, recipe=recipes.Recipe)["recipe"].cache_teacher  # by which `--resume` goes on
    with pytest.raises(ValueError, match="`out` .* another run, differing in learning_rate"):
        recipes.decompose(recipe(photos, init, cache_teacher=True, learning_rate=0.5), tmp_path)
    kept = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match="`out` .* another run, differing in learning_rate"):
        recipes.train(recipe(photos, init, cache_teacher=True, learning_rate=0.5), tmp_path)
    assert (tmp_path / "run.json").read_bytes() == kept
    assert trained(tmp_path, photos, init, cache_teacher=True)


@pytest.mark.filterwarnings("ignore:1 left out of")
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("change", ["replaced", "gone", "more"])
def test_a_run_does_not_go_on_with_other_pictures(tmp_path, monkeypatch, photos, init, cached, change):
    """What the teacher said of the earlier ones was learned for them, by their places, without a word."""
    folder = shutil.copytree(photos, tmp_path / "photos")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TrainingLoop, "fit" if cached else "full_state", stop)
        recipes.train(recipe(folder, init, cache_teacher=cached), tmp_path / "out")
    picture = folder / "12.png"
    if change == "gone":
        picture.unlink()
    else:
        helpers.pictures(1, seed=5).images[0].save(picture if change == "replaced" else folder / "more.png")
    before = helpers.files(tmp_path / "out")
    with pytest.raises(ValueError, match="`out` .* another run, differing in pictures_content"):
        recipes.train(recipe(folder, init, cache_teacher=cached), tmp_path / "out")
    assert helpers.files(tmp_path / "out") == before
    shutil.rmtree(folder), shutil.copytree(photos, folder)
    assert recipes.train(recipe(folder, init, cache_teacher=cached), tmp_path / "out")
