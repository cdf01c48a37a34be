"""Laws of `lingene prune`: from a folder to a smaller one, however often it is stopped.

pytest tests/pruning/test_prune.py
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import pruning_helpers as made
import pytest
import torch
from huggingface_hub import ModelCard
from prune_runs import LABELS, NAMES, SETTINGS, TRAINING, small_vit
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTForImageClassification,
)

import helpers
from hub_server import HubServer
from modeling_lingene import (
    LinGenePrunedSwinForImageClassification,
    LinGeneSwinConfig,
    LinGeneSwinForImageClassification,
)
from modeling_lingene.budget_lingene import TIMING
from modeling_lingene.citations import PAPERS
from modeling_lingene.cli import build_parser, main
from modeling_lingene.images.batches import image_processor
from modeling_lingene.pruning import prune as pruning
from modeling_lingene.pruning import report as reporting
from modeling_lingene.pruning.options import asked_pruning
from modeling_lingene.pruning.prune import prune
from modeling_lingene.training.loop import TrainingLoop
from modeling_lingene.training.losses import Objective
from modeling_lingene.writing_lingene import partial_name
from test_hub_server import in_new_process


pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

RUNS = ("search", "tune", "compare")


@pytest.fixture(scope="module")
def done(tmp_path_factory, vit):
    """Runs to the end, by search."""
    folder = tmp_path_factory.mktemp("done")
    settings = {"none": SETTINGS, "published": replace(SETTINGS, search="published", fold=True, teacher="dense")}
    return {search: (folder / search, prune(vit, folder / search, one, TRAINING)) for search, one in settings.items()}


@pytest.mark.parametrize("search", ["none", "published"])
def test_the_result_and_the_best_state_say_how_they_were_trained(done, vit, search):
    """As a bundle does: the command asks for the same run again, and no path of this machine is in it."""
    folder, results = done[search]
    for name in ("model", "best"):
        facts = json.loads((folder / name / "training.json").read_text())
        (weights,) = (folder / name).glob("model*.safetensors")
        assert facts["weights_id"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert (facts["dataset"], facts["images"], facts["init"]) == ("digits", 1293, vit.name)
        assert facts["epochs"] == (2 if search == "published" else 1) and facts["seconds"] > 0
        assert facts["hardware"] == results["run"]["hardware"] and str(vit.parent) not in json.dumps(facts)
        arguments = vars(build_parser("prune").parse_args(shlex.split(facts["command"])[1:]))
        asked = asked_pruning(arguments, {})
        expected = SETTINGS if search == "none" else replace(SETTINGS, search="published", fold=True, teacher="dense")
        assert asked["settings"] == expected and asked["training"] == TRAINING


@pytest.mark.parametrize("search", ["none", "published"])
def test_the_result_is_a_model_of_the_cost_that_was_asked_for(done, vit, search):
    """Measured, not computed; and every number of the report belongs to the folder that it lies beside."""
    folder, results = done[search]
    dense, chosen, pruned = results["rows"]
    assert (dense["name"], chosen["name"], pruned["name"]) == ("dense", "chosen, not tuned", "pruned")
    quantum = 8 * 2 * 17 * 32 / dense["macs"]
    assert 0.5 - quantum <= results["share"]["macs"] == pruned["macs"] / dense["macs"] <= 0.5
    model = AutoModelForImageClassification.from_pretrained(folder / "model")
    assert model.num_parameters() == pruned["params"] < dense["params"]
    assert [layer["mixer"] for layer in results["layers"]] == model.config.mixers
    assert [layer["units"] for layer in results["layers"]] == model.config.intermediate_sizes
    assert model.config.folded == (search == "published")
    assert model.config.pruned_from == {"model": vit.name, "search": search, "size": {}, "target_macs": 0.5}
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "layers.png").read_bytes()[:4] == b"\x89PNG"
    assert model.config.id2label == NAMES and (folder / "model" / "preprocessor_config.json").is_file()


def test_tuning_trains_every_parameter_of_what_was_chosen(done):
    """From the weights of the search; the best state so far is a model as well."""
    folder, _ = done["none"]
    parts = ("chosen", "model", "best")
    chosen, pruned, best = (AutoModelForImageClassification.from_pretrained(folder / part) for part in parts)
    assert chosen.config.mixers == pruned.config.mixers == best.config.mixers
    for (name, one), other in zip(chosen.named_parameters(), pruned.parameters()):
        assert one.shape == other.shape and not torch.equal(one, other), name
        assert (one - other).abs().max() < 0.1, name
    (epoch,) = json.loads((folder / "tune.json").read_text())["epochs"]
    assert epoch["phase"] == "tuning" and 0 <= epoch["accuracy"] <= 1


STAGES = [
    (pruning, "write_network"),
    pytest.param(reporting, "plot_layers", marks=pytest.mark.slow),
    (pruning, "_tuned"),
    (pruning, "publish"),
]


@pytest.mark.parametrize("module, stage", STAGES)
def test_a_run_that_is_stopped_goes_on_to_the_same_result(tmp_path, monkeypatch, done, vit, module, stage):
    """Nothing half written is taken for whole."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, stage, stop)
        prune(vit, tmp_path / "run", SETTINGS, TRAINING)
    assert not (tmp_path / "run" / "results.json").exists()
    with pytest.raises(ValueError, match="`out` .* is not empty; `resume`"):
        prune(vit, tmp_path / "run", SETTINGS, TRAINING)
    same(prune(vit, tmp_path / "run", SETTINGS, TRAINING, resume=True), done["none"][1])


# Of the ten steps of the search, and of the ten of the tuning.
@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 14])
def test_a_run_that_is_stopped_in_training_goes_on_bit_by_bit(tmp_path, monkeypatch, done, vit, step):
    """The loop's own checkpoints, of both trainings."""
    settings = replace(SETTINGS, search="published", fold=True, teacher="dense")
    count, whole = [0], TrainingLoop._step

    def stopping(*arguments):
        count[0] += 1
        if count[0] == step:
            raise KeyboardInterrupt
        return whole(*arguments)

    training = replace(TRAINING, checkpoint_every=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingLoop, "_step", stopping)
        prune(vit, tmp_path / "run", settings, training)
    assert list((tmp_path / "run").glob("*/checkpoints/*"))
    same(prune(vit, tmp_path / "run", settings, training, resume=True), done["published"][1])


def test_a_run_that_was_killed_while_it_wrote_its_dense_network_begins_again(tmp_path, monkeypatch, vit):
    """Or what it was asked for, behind that: nothing else is there yet."""
    (tmp_path / partial_name(tmp_path / "dense")).mkdir()
    (tmp_path / partial_name(tmp_path / "run.json")).write_text("cut sh")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pruning, "prepared", stop)
    for _ in ("without one", "with one"):
        with pytest.raises(KeyboardInterrupt):
            prune(vit, tmp_path, SETTINGS, TRAINING, resume=True)
        (tmp_path / "dense").mkdir(exist_ok=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="`out` .* must be a new or empty folder"):
        prune(vit, tmp_path, SETTINGS, TRAINING, resume=True)


def test_whoever_teaches_is_heard_in_search_and_tuning(tmp_path, monkeypatch, vit):
    """By the objective, in every step of both; the same run without a teacher minimises something else."""
    heard, steps, whole, step = [], [0], Objective.__call__, TrainingLoop._step

    def listening(objective, logits, labels, teacher_logits=None):
        heard.append(teacher_logits)
        return whole(objective, logits, labels, teacher_logits)

    def stopping(*arguments):
        steps[0] += 1
        if steps[0] == 13:  # the third of the tuning
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(Objective, "__call__", listening)
    monkeypatch.setattr(TrainingLoop, "_step", stopping)
    for teacher in ("dense", ""):
        heard.clear()
        steps[0] = 0
        with pytest.raises(KeyboardInterrupt):
            prune(vit, tmp_path / f"by {teacher}", replace(SETTINGS, search="published", teacher=teacher), TRAINING)
        assert len(heard) == 12 and all((logits is not None) == bool(teacher) for logits in heard)


def same(found: dict, expected: dict) -> None:
    """But for the time that images took, and when that was."""
    assert found["layers"] == expected["layers"]
    timing = dict.fromkeys(TIMING)
    for one, other in zip(found["rows"], expected["rows"]):
        assert {**one, **timing} == {**other, **timing}


def test_a_finished_run_is_read_back_and_another_is_refused(done, vit):
    """In the same folder."""
    folder, results = done["none"]
    assert prune(vit, folder, SETTINGS, TRAINING, resume=True) == results
    with pytest.raises(ValueError, match=r"differing in target_macs \(0.5 there, 0.6 asked\)"):
        prune(vit, folder, replace(SETTINGS, target_macs=0.6), TRAINING, resume=True)


def test_a_run_goes_on_with_the_model_and_the_teacher_that_it_began_with(tmp_path):
    """Not with others that lie in their places by now."""
    asked = replace(SETTINGS, calibration_images=8, tune=False, teacher=str(small_vit(tmp_path / "teacher", seed=2)))
    prune(small_vit(tmp_path / "vit"), tmp_path / "run", asked, TRAINING)
    small_vit(tmp_path / "vit", seed=1)
    with pytest.raises(ValueError, match=r"differing in model_content \(\S+ there, \S+ asked\);"):
        prune(tmp_path / "vit", tmp_path / "run", asked, TRAINING, resume=True)
    small_vit(tmp_path / "vit"), small_vit(tmp_path / "teacher", seed=3)
    with pytest.raises(ValueError, match=r"differing in teacher_content \(\S+ there, \S+ asked\);"):
        prune(tmp_path / "vit", tmp_path / "run", asked, TRAINING, resume=True)


def test_a_size_of_a_bundle_is_pruned_to_a_share_of_its_parameters(tmp_path, capsys):
    """By the command; the size is written out first, and the result knows where it comes from."""
    config = helpers.tiny_config(image_size=8, patch_size=2, num_labels=10, **LABELS)
    helpers.bundle(tmp_path / "bundle", config)
    image_processor(8).save_pretrained(tmp_path / "bundle")
    command = ["prune", str(tmp_path / "bundle"), "--depth", "3", "--width-ratio", "1", "--data", "digits", "--quiet"]
    command += ["--target-params", "0.6", "--search", "none", "--no-tune", "--calibration-images", "16"]
    assert main([*command, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert "| pruned |" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0.57 <= results["share"]["params"] <= 0.6 and len(results["layers"]) == 3
    dense = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "dense")
    assert type(dense) is ViTForImageClassification and dense.config.num_hidden_layers == 3
    assert results["rows"][0]["params"] == dense.num_parameters()


SWIN = dict(image_size=8, patch_size=1, embed_dim=24, depths=[2, 4], num_heads=[3, 6], window_size=4, mlp_ratio=2.0)


def small_swin(folder):
    """Two and four layers, 64 and 16 tokens, ten classes, weights changed; with its preprocessing."""
    torch.manual_seed(0)
    model = SwinForImageClassification(SwinConfig(**SWIN, **LABELS))
    made.shake(model)
    model.save_pretrained(folder)
    image_processor(8).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("search", ["none", pytest.param("published", marks=pytest.mark.slow)])
def test_a_swin_is_pruned_to_a_share_of_its_cost(tmp_path, search):
    """Within one step of MLP sizes of the target; the folder is of its own class, and commands take it."""
    folder = small_swin(tmp_path / "swin")
    results = prune(folder, tmp_path / "out", replace(SETTINGS, search=search, fold=search == "published"), TRAINING)
    dense, _, pruned = results["rows"]
    assert dense["depth"] == pruned["depth"] == "2-4"
    quantum = 8 * 2 * 64 * 24 / dense["macs"]
    assert 0.5 - quantum <= results["share"]["macs"] == pruned["macs"] / dense["macs"] <= 0.5
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "model")
    assert type(model) is LinGenePrunedSwinForImageClassification
    assert model.num_parameters() == pruned["params"] < dense["params"]
    assert [layer["of"] for layer in results["layers"]] == [48] * 2 + [96] * 4
    assert [layer["units"] for layer in results["layers"]] == model.config.intermediate_sizes
    assert [layer["mixer"] for layer in results["layers"]] == model.config.mixers != ["attention"] * 6
    assert model.config.folded == (search == "published")
    assert "A Swin Transformer pruned to" in (tmp_path / "out" / "model" / "README.md").read_text()
    if search == "none":
        return
    name, row = str(tmp_path / "out" / "model"), tmp_path / "row.json"
    assert main(["evaluate", name, "--data", "digits", "--out", str(row), "--quiet"]) == 0
    assert json.loads(row.read_text())["accuracy"] == pruned["accuracy"]
    assert main(["profile", name, "--out", str(tmp_path / "p.json"), "--batch-size", "2", "--quiet"]) == 0
    assert main(["export", name, "--to", "program", "--out", str(tmp_path / "program"), "--quiet"]) == 0


def test_a_swin_is_pruned_and_told_at_the_size_of_its_pictures(tmp_path):
    """Its preprocessing makes larger ones than its configuration says: costs were of neither, or of the other."""
    small_swin(tmp_path / "swin")
    image_processor(16).save_pretrained(tmp_path / "swin")
    settings = replace(SETTINGS, calibration_images=16, tune=False)
    dense, pruned = prune(tmp_path / "swin", tmp_path / "out", settings, TRAINING)["rows"]
    for row, folder in ((dense, tmp_path / "swin"), (pruned, tmp_path / "out" / "model")):
        model = AutoModelForImageClassification.from_pretrained(folder, attn_implementation="eager").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 16, 16))
        assert row["macs"] == counter.get_total_flops() // 2
        assert main(["evaluate", str(folder), "--data", "digits", "--out", str(tmp_path / "row"), "--quiet"]) == 0
        told = json.loads((tmp_path / "row").read_text())
        assert (told["macs"], told["accuracy"]) == (row["macs"], row["accuracy"])
    quantum = 8 * 2 * 256 * 24 / dense["macs"]
    assert 0.5 - quantum <= pruned["macs"] / dense["macs"] <= 0.5


@pytest.mark.slow
def test_a_pruned_swin_runs_in_onnxruntime(tmp_path):
    """Shifted windows and their masks, convolutions over the whole map, at any batch size."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    config = made.swin_config(mixers=["conv3", "attention", "conv1", "attention"])
    made.network(config).save_pretrained(tmp_path / "model")
    asked = ["--to", "onnx", "--out", str(tmp_path / "onnx"), "--quiet"]
    assert main(["export", str(tmp_path / "model"), *asked]) == 0


def test_a_size_of_a_swin_bundle_is_pruned(tmp_path):
    """Its decomposed stage with fewer layers; written out as a stock Swin, and where it comes from is kept."""
    torch.manual_seed(0)
    config = LinGeneSwinConfig(**SWIN, decomposed_stages=[2], **LABELS, trained_depths=[2, 4])
    bundle = LinGeneSwinForImageClassification(config)
    made.shake(bundle)
    bundle.save_pretrained(tmp_path / "bundle")
    image_processor(8).save_pretrained(tmp_path / "bundle")
    settings = replace(SETTINGS, target_macs=0.0, target_params=0.6, calibration_images=16, tune=False)
    results = prune(tmp_path / "bundle", tmp_path / "out", settings, TRAINING, size={"depth": 2})
    assert 0.57 <= results["share"]["params"] <= 0.6 and len(results["layers"]) == 4
    dense = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "dense")
    assert type(dense) is SwinForImageClassification and list(dense.config.depths) == [2, 2]
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "model")
    assert model.config.depths == [2, 2] and model.config.pruned_from["size"] == {"depth": 2}


@pytest.mark.slow
def test_the_bundles_own_size_of_that_cost_is_trained_alike_and_measured_beside_the_result(tmp_path):
    """Five sizes are smaller; the one nearest to half of the MACs has three layers. It sees as many pictures."""
    config = helpers.tiny_config(
        image_size=8,
        patch_size=2,
        num_labels=10,
        trained_depths=[2, 3, 6],
        trained_width_ratios=["1/2", "1"],
        **LABELS,
    )
    helpers.bundle(tmp_path / "bundle", config)
    image_processor(8).save_pretrained(tmp_path / "bundle")
    settings = replace(SETTINGS, search="published", search_epochs=1, calibration_images=16, teacher="dense")
    results = prune(tmp_path / "bundle", tmp_path / "out", settings, TRAINING, size={"num_components": 2})
    names = [row["name"] for row in results["rows"]]
    assert names == ["dense", "unpruned size, 3 layers, width 1", "chosen, not tuned", "pruned"]
    start, end = (
        AutoModelForImageClassification.from_pretrained(folder, **size).state_dict()
        for folder, size in (
            (tmp_path / "bundle", {"depth": 3, "num_components": 2}),
            (tmp_path / "out" / "unpruned", {}),
        )
    )
    assert start.keys() == end.keys() and not any(torch.equal(start[name], end[name]) for name in start)
    dense, unpruned = results["rows"][:2]
    assert unpruned["depth"] == 3 and 0.45 < unpruned["macs"] / dense["macs"] < 0.55
    epochs = {name: len(json.loads((tmp_path / "out" / f"{name}.json").read_text())["epochs"]) for name in RUNS}
    assert epochs == {"search": 1, "tune": 1, "compare": 2}
    assert results["share"]["macs"] <= 0.5


def test_a_pruned_model_is_evaluated_profiled_and_exported(tmp_path, done, capsys):
    """As a size of a bundle is."""
    model, pruned = str(done["none"][0] / "model"), done["none"][1]["rows"][2]
    assert main(["evaluate", model, "--data", "digits", "--out", str(tmp_path / "row.json"), "--quiet"]) == 0
    row = json.loads((tmp_path / "row.json").read_text())
    assert {key: row[key] for key in ("accuracy", "macs", "params")} == {
        key: pruned[key] for key in ("accuracy", "macs", "params")
    }
    assert main(["profile", model, "--out", str(tmp_path / "p.json"), "--batch-size", "2", "--quiet"]) == 0
    assert json.loads((tmp_path / "p.json").read_text())["profiles"][0]["latency_ms"] > 0
    assert main(["profile", model, "--depths", "3", "--quiet"]) == 2
    for to in ("transformers", "program"):
        assert main(["export", model, "--to", to, "--out", str(tmp_path / to), "--quiet"]) == 0
        report = json.loads((tmp_path / to / "export.json").read_text())
        assert report["relative_difference"] < 1e-4 and report["size"] == {"depth": 3}
    assert main(["export", model, "--to", "timm", "--out", str(tmp_path / "timm"), "--quiet"]) == 2
    assert main(["export", model, "--to", "program", "--depth", "2", "--out", str(tmp_path / "x"), "--quiet"]) == 2
    assert "`--depth` chooses a size of a bundle" in capsys.readouterr().err


def test_a_pruned_model_runs_in_onnxruntime(tmp_path, done):
    """Convolutions, padding and attention, at any batch size."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    for search, (folder, _) in done.items():
        assert main(["export", str(folder / "model"), "--to", "onnx", "--out", str(tmp_path / search), "--quiet"]) == 0


def pushed_back(folder: str) -> list:
    """Pushes by the command, and loads by name."""
    import torch
    from transformers import AutoModelForImageClassification

    from modeling_lingene.cli import main

    assert main(["push", folder, "org/pruned", "--license", "mit", "--quiet"]) == 0
    model = AutoModelForImageClassification.from_pretrained("org/pruned", trust_remote_code=True).eval()
    return model(torch.linspace(-1, 1, 192).view(1, 3, 8, 8)).logits.tolist()


@pytest.mark.slow
def test_a_pruned_model_is_pushed_with_its_code_and_card_and_nothing_else(tmp_path, done):
    """And comes back as it was; the card's numbers are the measured ones."""
    folder, results = done["none"]
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    model = AutoModelForImageClassification.from_pretrained(folder / "model").eval()
    with HubServer(tmp_path / "hub") as hub, torch.no_grad():
        found = in_new_process(pushed_back, hub, tmp_path / "home", str(tmp_path / "model"))
        expected = model(torch.linspace(-1, 1, 192).view(1, 3, 8, 8)).logits
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)
        files = set(hub.snapshot("org/pruned")[1])
        card = hub.read("org/pruned", "README.md").decode()
    others = {"config.json", "model.safetensors", "preprocessor_config.json", "training.json", "README.md"}
    others |= {"layers.png"}
    assert files - {".gitattributes"} == set(helpers.code_of("lingene_vit")) | others
    assert f"{100 * results['rows'][2]['accuracy']:.1f} %" in card and "trust_remote_code=True" in card
    data, row = ModelCard(card).data, results["rows"][-1]
    assert (data.pipeline_tag, data.license, data.base_model) == ("image-classification", "mit", None)
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [
        ("accuracy", row["accuracy"])
    ]
    assert PAPERS["spvit"] in card and PAPERS["lindec"] not in card
    assert re.search(rf"!\[What the {len(results['layers'])} layers became: \d", card)


@pytest.mark.slow
def test_two_processes_prune_to_what_one_finds(tmp_path, vit):
    """Search, tuning and the reports are one's; half a batch on each is the same step, up to rounding."""
    found = {}
    for processes, size in ((1, 128), (2, 64)):
        out = tmp_path / str(processes)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += ["-m", "modeling_lingene.cli", "prune", str(vit), "--out", str(out), "--data", "digits"]
        command += ["--target-macs", "0.5", "--search", "published", "--epochs", "1", "--device", "cpu"]
        command += ["--batch-size", str(size)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count(" pruned |") == 1
        found[processes] = json.loads((out / "results.json").read_text())
    assert found[2]["run"]["processes"] == 2
    searches = [json.loads((tmp_path / name / "search.json").read_text())["epochs"] for name in "12"]
    for one, other in zip(*searches, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert found[1]["share"]["macs"] == pytest.approx(found[2]["share"]["macs"], abs=0.01)
