"""Fine-tuning with transformers' Trainer: checkpoints, the best one, resuming, for stock and constrained models alike.

pytest tests/training/test_trainer.py
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTForImageClassification

import helpers
from modeling_lingene import LinGeneForImageClassification


pytest.importorskip("accelerate")
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402


INDEX = "model.safetensors.index.json"


def samples(count: int, seed: int) -> list[dict]:
    """Noisy images of one colour; which of the seven that are not black is the class."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n in range(count):
        image, label = torch.randn(3, 16, 16, generator=generator) * 0.3, n % 7
        for channel in range(3):
            image[channel] += (label + 1) >> channel & 1
        found.append({"pixel_values": image, "labels": label})
    return found


TRAIN, TEST = samples(112, seed=0), samples(28, seed=1)


def arguments(folder: Path, **changes) -> TrainingArguments:
    settings = dict(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=28,
        learning_rate=5e-3,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="earliness",
        greater_is_better=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    return TrainingArguments(**settings | changes)


def earliness():
    """A metric by which the first evaluation is the best."""
    calls = 0

    def compute_metrics(predictions) -> dict:
        nonlocal calls
        calls += 1
        accuracy = (predictions.predictions.argmax(-1) == predictions.label_ids).mean()
        return {"earliness": 1 / calls, "accuracy": float(accuracy)}

    return compute_metrics


class LastWeights(TrainerCallback):
    """What the model was after the last step, before the best one is loaded back."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}


def tuned(model, folder: Path, resume: str | None = None, **changes) -> SimpleNamespace:
    last = LastWeights()
    trainer = Trainer(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=TRAIN,
        eval_dataset=TEST,
        compute_metrics=earliness(),
        callbacks=[last],
    )
    trainer.train(resume_from_checkpoint=resume)
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return SimpleNamespace(trainer=trainer, model=trainer.model, folder=folder, checkpoints=checkpoints, last=last)


def fresh(bundle: Path, kind: str):
    """A model of half the width to tune, of either kind."""
    size = {"depth": 4, "width_ratio": "1/2", "num_components": 3}
    return AutoModelForImageClassification.from_pretrained(bundle, constrained=kind == "constrained", **size)


@pytest.fixture(scope="module")
def one_thread_for_all():
    """Sums of another order would tell a resumed run from a whole one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["materialised", "constrained"])
def run(request, one_thread_for_all, bundle, tmp_path_factory) -> SimpleNamespace:
    """Two epochs, of which the first counts as the better."""
    start = fresh(bundle, request.param)
    before = {key: tensor.clone() for key, tensor in start.state_dict().items()}
    result = tuned(start, tmp_path_factory.mktemp(request.param) / "run")
    return SimpleNamespace(kind=request.param, before=before, **vars(result))


def reloaded(run: SimpleNamespace, folder: Path):
    return AutoModelForImageClassification.from_pretrained(
        folder, **({"constrained": True} if run.kind == "constrained" else {})
    )


def same(one: dict, other: dict) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(helpers.images()).logits


def test_training_learns(run):
    """The set can be learned; a model that the Trainer cannot move would pass the other tests."""
    losses = [row["loss"] for row in run.trainer.state.log_history if "loss" in row]
    accuracies = [row["eval_accuracy"] for row in run.trainer.state.log_history if "eval_accuracy" in row]
    assert len(losses) == 28 and len(accuracies) == 2
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert accuracies[-1] > 0.6
    after = run.last.weights
    assert all(not torch.equal(after[key], tensor) for key, tensor in run.before.items() if tensor.abs().sum() > 0)


def test_checkpoints_hold_the_weights_of_their_epoch_and_the_first_is_the_best(run):
    """What `from_pretrained` gives of a checkpoint is what was trained, bit by bit."""
    assert [path.name for path in run.checkpoints] == ["checkpoint-14", "checkpoint-28"]
    assert Path(run.trainer.state.best_model_checkpoint).name == "checkpoint-14"
    assert same(run.last.weights, reloaded(run, run.checkpoints[1]).state_dict())
    assert not same(run.last.weights, reloaded(run, run.checkpoints[0]).state_dict())


def test_the_best_checkpoint_is_loaded_at_the_end(run):
    """The Trainer reloads with strict=False: with keys that differ nothing loads, and only a warning says so."""
    assert same(run.model.state_dict(), reloaded(run, run.checkpoints[0]).state_dict())


def test_save_model_and_reload_give_the_same_logits(run, tmp_path):
    """Also into a folder where an earlier training was saved."""
    kept = {key: tensor.clone() for key, tensor in run.model.state_dict().items()}
    for shift in (1.0, 2.0):
        with torch.no_grad():
            run.model.classifier.bias.add_(shift)
        run.trainer.save_model(str(tmp_path / "saved"))
        assert torch.equal(logits(reloaded(run, tmp_path / "saved")), logits(run.model))
    run.model.load_state_dict(kept)


def test_a_checkpoint_holds_what_its_kind_promises(run):
    """Constrained: a bundle, from which any size loads. Materialised: a stock model, no custom code."""
    for checkpoint in run.checkpoints:
        names = {path.name for path in checkpoint.iterdir()}
        config = json.loads((checkpoint / "config.json").read_text())
        if run.kind == "constrained":
            assert {"shared.safetensors", INDEX, *(f"component-{n:02d}.safetensors" for n in range(3))} <= names
            assert "model.safetensors" not in names and config["model_type"] == "lingene"
            smaller = AutoModelForImageClassification.from_pretrained(checkpoint, depth=2, num_components=2)
            assert type(smaller) is ViTForImageClassification and smaller.config.num_hidden_layers == 2
            expected = reloaded(run, checkpoint).eval()
            with torch.no_grad():
                expected = expected(helpers.images(), depth=2, num_components=2).logits
            torch.testing.assert_close(logits(smaller), expected, rtol=0, atol=1e-4)
        else:
            assert config["model_type"] == "vit" and "auto_map" not in config
            assert not [name for name in names if name.endswith(".py") or name.startswith("component")]
            assert "vit.encoder.layer.3.output.dense.bias" in load_file(checkpoint / "model.safetensors")
            assert type(reloaded(run, checkpoint)) is ViTForImageClassification


def test_resuming_from_a_checkpoint_ends_where_the_whole_run_ended(run, bundle, tmp_path):
    """From the first epoch's checkpoint, in a model of other weights: all that counts must be in the checkpoint."""
    start = fresh(bundle, run.kind)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(0.5)
    resumed = tuned(start, tmp_path / "run", resume=str(run.checkpoints[0]), load_best_model_at_end=False)
    assert resumed.trainer.state.global_step == 28
    for key, tensor in run.last.weights.items():
        torch.testing.assert_close(resumed.model.state_dict()[key], tensor, rtol=0, atol=1e-5)


def test_save_total_limit_and_a_second_run_into_the_same_folder_leave_loadable_checkpoints(run, bundle, tmp_path):
    """The Trainer deletes and overwrites checkpoint folders of the same names."""
    settings = {"save_total_limit": 1, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    settings |= {"eval_strategy": "no", "load_best_model_at_end": False}
    for seed in range(2):
        result = tuned(fresh(bundle, run.kind), tmp_path / "run", **settings, seed=seed, data_seed=seed)
        assert [path.name for path in result.checkpoints] == ["checkpoint-3"]
        assert same(reloaded(run, result.checkpoints[0]).state_dict(), result.last.weights)


def test_only_the_components_asked_for_are_trained(bundle, tmp_path):
    """Freezing is transformers' own `requires_grad`; a constrained checkpoint keeps the frozen ones bit by bit."""
    model = LinGeneForImageClassification.from_pretrained(bundle, constrained=True)
    for component in model.components[:4]:
        component.requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    settings = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    result = tuned(model, tmp_path / "run", **settings)
    result.trainer.save_model(str(tmp_path / "saved"))
    for n in range(5):
        stored = load_file(tmp_path / "saved" / f"component-{n:02d}.safetensors")
        assert same(stored, {key: before[key] for key in stored}) == (n < 4)
