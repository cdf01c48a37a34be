"""Laws of the training loop: rates, groups, order, averages and history are what the settings say.

Of one linear layer mostly, for the loop does not care what it trains.

    pytest tests/training/loop/test_loop_steps.py
"""

import dataclasses
import importlib.util
from types import SimpleNamespace

import numpy
import pytest
import torch
from looping import EPOCHS, IMAGES, STEPS, cross_entropy, linear, phases, same, settings, weights
from torch import nn
from torch.nn import functional

import helpers
from modeling_lingene.images.loaders import Layout
from modeling_lingene.training import loop as loop_of
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.decomposition import phases as phases_of
from modeling_lingene.training.loop import Phase, TrainingLoop
from modeling_lingene.training.steps import TrainingSettings, decayed_groups, warmup_cosine


@pytest.mark.parametrize("steps, warmup", [(40, 0.1), (40, 0.25), (7, 0.1), (1, 0.1), (12, 0.0), (12, 1.0)])
def test_the_learning_rate_rises_linearly_and_falls_along_half_a_cosine(steps, warmup):
    """Against numpy: a ramp joined to a sampled half wave."""
    rising = max(1, int(numpy.rint(warmup * steps)))
    ramp = numpy.linspace(0, 1, rising + 1)[1:]
    wave = 0.5 + 0.5 * numpy.cos(numpy.linspace(0, numpy.pi, max(1, steps - rising) + 1))
    expected = numpy.concatenate([ramp, wave])[: steps + 1]
    got = [warmup_cosine(step, steps, warmup) for step in range(len(expected))]
    numpy.testing.assert_allclose(got, expected, atol=1e-12)


def test_every_step_of_a_phase_takes_the_next_learning_rate_and_the_next_phase_starts_again(monkeypatch):
    """The schedule spans the phase, not the epoch."""
    rates, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *inputs: rates.append([group["lr"] for group in self.param_groups]) or step(self, *inputs),
    )
    TrainingLoop(linear(), IMAGES, settings(warmup=0.2)).fit(phases(count=2))
    expected = [[1e-2 * warmup_cosine(index, EPOCHS * STEPS, 0.2)] * 2 for index in range(EPOCHS * STEPS)]
    numpy.testing.assert_allclose(rates, expected * 2, atol=1e-15)


def test_weight_decay_falls_on_matrices_alone():
    """Gains pulled to zero would silence layers; tokens, positions and biases are no maps. All parameters, by name."""
    model = helpers.tiny_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = decayed_groups(model, settings(weight_decay=0.3))
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    linears = ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.fc1", "mlp.fc2")
    matrices = {f"components.{n}.{part}.weight" for n in range(5) for part in linears}
    matrices |= {"embeddings.patch_embeddings.weight", "classifier.weight"}
    assert {names[id(parameter)] for parameter in decayed["params"]} == matrices
    assert {names[id(parameter)] for parameter in others["params"]} == set(names.values()) - matrices
    assert {"embeddings.cls_token", "embeddings.position_embeddings", "layernorm.weight", "layernorm.bias"} <= (
        set(names.values()) - matrices
    )


def test_parameters_named_by_a_phase_have_their_own_rate_and_no_decay():
    """Gates are no weights: at a rate of almost nothing they stay where they are, whatever the rest does."""
    model, before = linear(), linear()
    *_, own = decayed_groups(model, settings(weight_decay=0.3), {"weight": 0.5})
    assert own["params"] == [model[1].weight] and (own["weight_decay"], own["peak"]) == (0.0, 0.5)
    still = dataclasses.replace(phases()[0], rates={"weight": 1e-12})
    TrainingLoop(model, IMAGES, settings(weight_decay=0.3)).fit([still])
    torch.testing.assert_close(model[1].weight, before[1].weight, rtol=0, atol=1e-9)
    assert (model[1].bias - before[1].bias).abs().max() > 1e-3


def test_frozen_parameters_are_in_no_group():
    """Decay moves a parameter without a gradient too."""
    model = helpers.tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("components.3.", "layernorm.")))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [names[id(parameter)] for group in decayed_groups(model, settings()) for parameter in group["params"]]
    assert sorted(grouped) == sorted(n for n in names.values() if n.startswith(("components.3.", "layernorm.")))


def test_a_phase_trains_what_it_chooses_and_nothing_else():
    """What an earlier phase has trained is frozen in the next, and what it froze is thawed."""
    model = linear()
    before = weights(model)
    TrainingLoop(model, IMAGES, settings(weight_decay=0.5)).fit(
        [Phase("bias", lambda name: name.endswith("bias"), cross_entropy)]
    )
    middle = weights(model)
    assert torch.equal(middle["1.weight"], before["1.weight"]) and not torch.equal(middle["1.bias"], before["1.bias"])
    TrainingLoop(model, IMAGES, settings(weight_decay=0.5)).fit(
        [Phase("weight", lambda name: name.endswith("weight"), cross_entropy)]
    )
    after = weights(model)
    assert torch.equal(after["1.bias"], middle["1.bias"]) and not torch.equal(after["1.weight"], middle["1.weight"])


def test_gradients_are_clipped_to_the_norm_asked_for(monkeypatch):
    """A loss a million times as large must give no larger gradient to the optimiser."""
    norms, step = [], torch.optim.AdamW.step

    def recording(self, *inputs):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return step(self, *inputs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    TrainingLoop(linear(), IMAGES, settings(epochs=1, max_grad_norm=0.25)).fit(
        phases(lambda *inputs: 1e6 * cross_entropy(*inputs))
    )
    assert norms == pytest.approx([0.25] * STEPS, rel=1e-4)


def orders(seed: int) -> tuple[list[list[int]], list[float]]:
    """The images of each epoch of two phases in their order, and what the generator of draws gives in each step."""
    seen = []

    def forward(model, batch, generator):
        seen.append((batch["index"].tolist(), torch.rand((), generator=generator).item()))
        return model(batch["pixel_values"]).square().mean()

    TrainingLoop(linear(), IMAGES, settings(seed=seed)).fit(phases(forward, count=2))
    epochs = [seen[start : start + STEPS] for start in range(0, len(seen), STEPS)]
    return [[index for indices, _ in epoch for index in indices] for epoch in epochs], [x for _, x in seen]


@pytest.mark.parametrize("seed", [0, 1, 123_456_789, 2**31 - 1, -1])
def test_order_and_draws_are_a_function_of_the_seed_and_differ_between_epochs(seed):
    """No image twice in an epoch, in an order of its own; seeds that people use: dates, large ones."""
    (first, draws), (again, same_draws), (other, other_draws) = orders(seed), orders(seed), orders(seed + 1)
    assert first == again and draws == same_draws
    assert all(len(set(order)) == len(order) == STEPS * 4 for order in first)
    assert {index for order in first for index in order} == set(range(14))  # none is left out for good
    assert len({tuple(order) for order in first + other}) == 2 * len(first) == 4 * EPOCHS
    assert len(set(draws + other_draws)) == 2 * len(draws)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"epochs": -3},
        {"epochs": 2.0},
        {"epochs": "3"},
        {"epochs": True},
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"learning_rate": 0.0},
        {"learning_rate": -1e-3},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"max_grad_norm": 0},
        {"weight_decay": -0.1},
        {"warmup": -0.1},
        {"warmup": 1.5},
        {"seed": 0.5},
        {"precision": "fp64"},
        {"device": "tpu"},
    ],
    ids=lambda changes: " ".join(f"{name}={value!r}" for name, value in changes.items()),
)
def test_settings_that_cannot_be_met_are_refused_by_name(changes):
    """Before a model is built and an epoch spent; the value that came is in the message."""
    (name, value), *_ = changes.items()
    with pytest.raises(ValueError, match=rf"`{name}`.*{value}"):
        TrainingSettings(**changes)


def test_an_unknown_setting_is_an_error():
    """A misspelt keyword must not pass for the default."""
    with pytest.raises(TypeError, match="learning_rte"):
        TrainingSettings(learning_rte=1e-3)


def test_a_step_of_more_images_than_there_are_is_refused():
    """An epoch of no step would divide by zero at its end."""
    with pytest.raises(ValueError, match="`batch_size` 15 makes 15 images a step, and there are 14"):
        TrainingLoop(linear(), IMAGES, settings(batch_size=15))


def test_the_average_is_the_result_and_what_is_evaluated(tmp_path):
    """Against the recursion written out: m = d m + (1 - d) w after every step, from the first weights seen."""
    model, seen = linear(), []
    loop = TrainingLoop(model, IMAGES, settings(ema=0.75, epochs=1))
    take = loop._step

    def step(run, parts):
        loss = take(run, parts)
        seen.append(weights(run.model))
        return loss

    loop._step = step
    loop.fit(phases())
    expected = seen[0]
    for later in seen[1:]:
        expected = {name: 0.75 * mean + 0.25 * later[name] for name, mean in expected.items()}
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in weights(model).items())
    assert not same(weights(model), seen[-1])


class Classifier(nn.Module):
    """A linear layer with transformers' face, for evaluation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 16 * 16, 7)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.linear(pixel_values.flatten(1)))


def test_the_history_has_a_row_per_epoch_and_the_best_state_is_given_with_its_accuracy():
    """Against counting by hand in the moment that the best is given."""
    model, held_out, given = Classifier(), helpers.source(20, seed=1), []

    def count(state):
        (batch,) = held_out.in_order(Layout(20))
        logits = functional.linear(batch["pixel_values"].flatten(1), state["linear.weight"], state["linear.bias"])
        given.append((logits.argmax(-1) == batch["labels"]).float().mean().item())

    def forward(model, batch, generator):
        return functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])

    loop = TrainingLoop(model, IMAGES, settings(epochs=8), held_out=held_out, on_best=count)
    history = loop.fit(phases(forward, count=2))
    assert [(row["phase"], row["epoch"]) for row in history] == [
        (f"phase {p}", e + 1) for p in (0, 1) for e in range(8)
    ]
    accuracies = [row["accuracy"] for row in history]
    records = [a for i, a in enumerate(accuracies) if a > max(accuracies[:i], default=-1)]
    assert given == pytest.approx(records) and loop.best == max(accuracies)
    assert all(row["images_per_second"] > 0 and row["learning_rate"] >= 0 for row in history)


@pytest.mark.parametrize("slow", [False, True])
def test_an_evaluation_that_takes_long_is_seen_to_go_on(monkeypatch, capsys, slow):
    """Minutes without a word look like a program that hangs; a line for each of many short ones hides the rest."""
    loop = TrainingLoop(Classifier(), IMAGES, settings(), held_out=IMAGES)
    monkeypatch.setattr(loop_of, "SHOWN_SECONDS", 0.0 if slow else 60.0)
    loop.evaluate()
    shown = capsys.readouterr().err
    assert ("evaluating:" in shown and "/14" in shown) if slow else not shown


def test_the_loss_of_the_history_is_the_mean_over_the_steps_of_the_epoch():
    """Not the last one's."""
    losses = []

    def forward(model, batch, generator):
        loss = cross_entropy(model, batch, generator)
        losses.append(loss.item())
        return loss

    history = TrainingLoop(linear(), IMAGES, settings()).fit(phases(forward))
    means = [sum(losses[start : start + STEPS]) / STEPS for start in range(0, len(losses), STEPS)]
    assert [row["loss"] for row in history] == pytest.approx(means)


def test_a_teacher_is_asked_for_every_batch_and_its_logits_reach_the_phase():
    """It sees what the student sees."""
    asked = []

    def teacher(batch):
        asked.append(batch["index"])
        return batch["pixel_values"].mean((1, 2, 3))[:, None].expand(-1, 7)

    def forward(model, batch, generator):
        assert torch.equal(batch["teacher"], teacher(batch))
        return cross_entropy(model, batch, generator)

    TrainingLoop(linear(), IMAGES, settings(epochs=1), teacher=teacher).fit(phases(forward))
    assert len(asked) == 2 * STEPS


@pytest.mark.parametrize(
    "changes", [pytest.param({"compile": True}, marks=pytest.mark.slow), {"activation_checkpointing": True}]
)
def test_options_that_change_the_work_do_not_change_what_is_learned(whole_bundle, changes):
    """Compiled, or with activations recomputed: the same steps up to rounding."""
    torch.manual_seed(0)
    model = helpers.LinGeneForImageClassification(helpers.tiny_config(num_components=4))
    todo = phases_of(model, DecompositionSettings("incremental", totals=(1, 2, 4)))
    images = helpers.source(14)
    TrainingLoop(model, images, settings(epochs=1, **changes)).fit(todo)
    torch.manual_seed(0)
    plain = helpers.LinGeneForImageClassification(helpers.tiny_config(num_components=4))
    TrainingLoop(plain, images, settings(epochs=1)).fit(
        phases_of(plain, DecompositionSettings("incremental", totals=(1, 2, 4)))
    )
    one, other = weights(model), weights(plain)
    names = [name for name in one if not name.endswith("key.bias")]  # its gradient is rounding alone
    apart = sum((one[name] - other[name]).square().sum() for name in names).sqrt()
    assert apart < 1e-3 * sum(one[name].square().sum() for name in names).sqrt()


def test_tensorboard_gets_loss_and_learning_rate(tmp_path):
    """Where people look while a run goes."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    TrainingLoop(linear(), IMAGES, settings(tracker="tensorboard"), tmp_path).fit(phases())
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert {"loss", "learning_rate", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [3, 6, 9]


@pytest.mark.parametrize("name", ["tensorbord", "wandb"])
def test_a_tracker_that_is_unknown_or_not_installed_is_refused_before_training(tmp_path, name):
    """After hours nobody wants to learn that nothing was logged."""
    if name == "wandb" and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(ValueError, match=f"`tracker`.*{name}"):
        TrainingLoop(linear(), IMAGES, settings(tracker=name), tmp_path)


def test_noise_is_a_function_of_the_seed_and_the_step():
    """Dropout drawn from whatever state the process is in could not be resumed bit by bit."""

    def trained(state: int, **changes) -> dict[str, torch.Tensor]:
        model = nn.Sequential(nn.Dropout(0.5), *linear())
        torch.manual_seed(state)
        TrainingLoop(model, IMAGES, settings(epochs=1, **changes)).fit(phases())
        return weights(model)

    assert same(trained(1), trained(2))
    assert not same(trained(1), trained(1, seed=5))
