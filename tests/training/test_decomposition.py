"""Laws of the incremental schedule (LinDec, section 3): what trains when, from where it starts, at which depths.

References: the ViT that numpy recomposes (helpers.py), and counting.

    pytest tests/training/test_decomposition.py
"""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

import helpers
from modeling_lingene import LinGeneForImageClassification, modeling_base_lingene
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.decomposition import phases as phases_of
from modeling_lingene.training.loop import Phase, TrainingLoop
from modeling_lingene.training.steps import TrainingSettings


TOTALS, DEPTHS = (1, 2, 5), (3, 4)
SETTINGS = TrainingSettings(epochs=1, batch_size=4, learning_rate=1e-2, warmup=0.0, weight_decay=0.5, device="cpu")
IMAGES = helpers.source(12)
BATCH = {"pixel_values": helpers.images(12), "labels": helpers.labels(12)}
# Softmax does not see what is added to all scores of a query: the gradient of a key's bias is rounding, or nothing.
KEY_BIASES = {f"components.{n}.attention.key.bias" for n in range(TOTALS[-1])}
CONFIGS = [{}, {"nodes": "uniform", "start_degree": 1, "gain_offset": 1.0, "depth_map": "resample"}]


def fresh(**fields) -> LinGeneForImageClassification:
    """A new bundle as training gets it, in evaluation mode."""
    torch.manual_seed(0)
    return LinGeneForImageClassification(helpers.tiny_config(**fields)).eval()


def incremental_phases(model, totals, depths=()) -> list[Phase]:
    return phases_of(model, DecompositionSettings("incremental", tuple(totals), tuple(depths)))


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train(model, phase: Phase) -> None:
    TrainingLoop(model, IMAGES, SETTINGS).fit([phase])
    model.eval()


def component_of(name: str) -> int | None:
    return int(name.split(".")[1]) if name.startswith("components.") else None


def names_of(total: int) -> list[str]:
    """Names of the parameters of a bundle of that many components."""
    parts = [f"{part}.{kind}" for part in helpers.STOCK_PARTS for kind in ("weight", "bias")]
    shared = ["cls_token", "position_embeddings", "patch_embeddings.weight", "patch_embeddings.bias"]
    shared = [f"embeddings.{part}" for part in shared] + ["layernorm.weight", "layernorm.bias"]
    shared += ["classifier.weight", "classifier.bias"]
    return [f"components.{n}.{part}" for n in range(total) for part in parts] + shared


@pytest.mark.parametrize("totals", [(1, 2, 5), (5,), (2, 5), (1, 2, 3, 4, 5), (1, 10, 11, 12)])
def test_a_phase_trains_its_new_components_and_what_is_outside_the_blocks(totals):
    """By name: `components.1.` must not stand for `components.10.`; old components stay as they are."""
    model = fresh(num_components=totals[-1])
    names = names_of(totals[-1])
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    phases = incremental_phases(model, totals, DEPTHS)
    assert len(phases) == len(totals)
    for phase, before, total in zip(phases, (0, *totals), totals):
        expected = [name for name in names if component_of(name) is None or before <= component_of(name) < total]
        assert [name for name in names if phase.trainable(name)] == expected


@pytest.mark.parametrize("fields", CONFIGS, ids=["stable", "paper"])
def test_later_phases_leave_old_components_bitwise_and_change_the_new_and_the_shared(fields):
    """Decay, momentum or a stray gradient would move them, and with them the smaller networks that are done."""
    model = fresh(**fields)
    for phase, start, total in zip(incremental_phases(model, TOTALS, DEPTHS), (0, *TOTALS), TOTALS):
        before = weights(model)
        train(model, phase)
        changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
        new = {name for name in before if component_of(name) is None or start <= component_of(name) < total}
        assert changed <= new <= changed | KEY_BIASES


@pytest.mark.parametrize("fields", CONFIGS, ids=["stable", "paper"])
@pytest.mark.parametrize("depth", [6, 3])
def test_the_function_is_unchanged_where_a_phase_starts(fields, depth):
    """New components start at zero, in every tensor, gains and biases too: nothing that was learned is disturbed."""
    model = fresh(**fields)
    phases, pixels = incremental_phases(model, TOTALS, DEPTHS), helpers.images(4)
    for phase, before, total in zip(phases[:-1], TOTALS, TOTALS[1:]):
        train(model, phase)
        with torch.no_grad():
            old = model(pixels, depth=depth, num_components=before).logits
            new = model(pixels, depth=depth, num_components=total).logits
        assert torch.equal(old, new) and old.std() > 0
    assert all(not parameter.any() for n in (2, 3, 4) for parameter in model.components[n].parameters())


@pytest.mark.parametrize("fields", CONFIGS, ids=["stable", "paper"])
def test_the_first_components_start_at_the_scale_of_a_dense_network_and_the_others_at_zero(fields):
    """Alone they must give layers of the usual scale; all at zero would never train."""
    model = fresh(**fields)
    before, std = weights(model), model.config.initializer_range
    incremental_phases(model, (2, 5), DEPTHS)
    for name, value in weights(model).items():
        if component_of(name) is None:
            assert torch.equal(value, before[name]), name
        elif component_of(name) >= 2:
            assert before[name].any() or "weight" not in name or "norm" in name
            assert not value.any(), name
    layers = model.recomposed(model.config.size(num_components=2))
    scales = layers["mlp.fc1.weight"].square().mean((1, 2)).sqrt()
    assert scales.square().mean().sqrt().item() == pytest.approx(std, rel=0.05)
    assert torch.allclose(layers["norm1.weight"], torch.ones(6, 48), atol=1e-6)
    first = before["components.0.mlp.fc1.weight"]
    now = model.components[0].mlp.fc1.weight
    assert torch.allclose(now / first, (now / first)[0, 0].expand_as(first), rtol=1e-4)


def test_new_components_of_one_phase_leave_zero_in_different_directions():
    """They start equal; were their gradients equal too, they would stay one component under several names."""
    model = fresh()
    *_, last = incremental_phases(model, TOTALS, DEPTHS)
    train(model, last)
    for part in ("attention.value.weight", "mlp.fc1.weight", "norm1.weight"):
        new = [model.get_parameter(f"components.{n}.{part}").detach().flatten() for n in (2, 3, 4)]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert functional.cosine_similarity(new[one], new[other], dim=0) < 0.99
        assert all(value.any() for value in new)


@pytest.mark.parametrize("totals", [(0, 5), (0,), (-1, 5), (5, 2), (2, 2, 5), (1, 2), (1, 6), (1, 2.0, 5)])
def test_totals_that_do_not_increase_to_the_number_of_components_are_refused(totals):
    """Before anything is zeroed: the message says where they have to end and what came."""
    model = fresh()
    before = weights(model)
    with pytest.raises(ValueError, match=r"`totals` must (increase and end at the 5|be increasing)") as caught:
        incremental_phases(model, totals, DEPTHS)
    assert str(list(totals)) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("depth", [0, -1, 7, 3.0, "3", True])
def test_a_depth_that_the_bundle_cannot_take_is_refused(depth):
    """Before the first step, not in the one that draws it; nothing is zeroed."""
    model = fresh()
    with pytest.raises(ValueError, match="`depths?`"):
        incremental_phases(model, TOTALS, (3, depth))
    assert model.components[4].mlp.fc1.weight.any()


def test_a_bundle_that_resamples_may_train_deeper_networks():
    """The limit is the depth map's, not the schedule's."""
    (phase,) = incremental_phases(fresh(depth_map="resample"), (5,), (9,))
    assert drawn(phase, 400).keys() == {6, 9}


def drawn(phase: Phase, steps: int) -> Counter:
    """How often each depth was trained in so many steps."""
    sizes = []

    def model(pixel_values, depth, num_components):
        sizes.append(depth)
        return SimpleNamespace(logits=torch.zeros(len(pixel_values), 7))

    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        phase.forward(model, {name: value[:1] for name, value in BATCH.items()}, generator)
    return Counter(sizes)


@pytest.mark.parametrize("depths", [(3, 4), (1, 2, 4, 5), (3, 4, 6), ()])
def test_half_of_the_steps_train_the_full_depth_and_the_others_share_the_list(depths):
    """Within five standard deviations of 4,000 draws; a depth outside of the list is never trained."""
    steps = 4000
    for phase in incremental_phases(fresh(), TOTALS, depths):
        counts = drawn(phase, steps)
        others = [depth for depth in depths if depth != 6]  # the full one is not drawn among them, too
        shares = {6: 0.5 if others else 1.0} | {depth: 0.5 / len(others) for depth in others}
        assert counts.keys() == shares.keys()
        for depth, share in shares.items():
            assert abs(counts[depth] - share * steps) <= 5 * (steps * share * (1 - share)) ** 0.5, (depth, counts)


@pytest.mark.parametrize("index", range(len(TOTALS)))
def test_the_loss_is_the_cross_entropy_of_the_network_of_that_many_components(index):
    """Against the ViT that numpy recomposes; components after `total` have no gradient, all before it have one."""
    model, total = helpers.tiny_model(), TOTALS[index]
    added = weights(model)
    phase = incremental_phases(model, TOTALS, ())[index]
    model.load_state_dict(added)  # so that what must not be used is not zero
    loss = phase.forward(model, BATCH, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = helpers.reference_vit(model, 6, num_components=total)(BATCH["pixel_values"]).logits
    assert torch.allclose(loss, functional.cross_entropy(logits, BATCH["labels"]), atol=1e-4)
    loss.backward()
    for n, component in enumerate(model.components):
        for name, parameter in component.named_parameters():
            used = parameter.grad is not None and bool(parameter.grad.any())
            assert used == (n < total) or f"components.{n}.{name}" in KEY_BIASES and n < total, f"{n}: {name}"


def test_the_depths_are_drawn_from_the_generator_that_is_given():
    """Resuming is bitwise equal only if nothing comes from the global random state."""
    (phase,) = incremental_phases(fresh(), (5,), (1, 2, 3, 4, 5))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert drawn(phase, 50) == drawn(phase, 50)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fields", CONFIGS, ids=["stable", "paper"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "activation checkpointing"])
def test_held_components_give_the_same_function_and_gradients_and_are_recomposed_once(
    fields, checkpointing, monkeypatch
):
    """Incremental training spends no time, and keeps no gradient, for what is frozen; nor does it change anything."""
    model, plain = helpers.tiny_model(helpers.tiny_config(**fields)), helpers.tiny_model(helpers.tiny_config(**fields))
    for one in (model, plain):
        one.train()
        for name, parameter in one.named_parameters():
            parameter.requires_grad_(not name.startswith(("components.0.", "components.1.", "components.2.")))
        if checkpointing:
            one.gradient_checkpointing_enable()
    stacked, original = [], modeling_base_lingene.recompose
    monkeypatch.setattr(
        modeling_base_lingene, "recompose", lambda parts, *rest: stacked.append(len(parts)) or original(parts, *rest)
    )
    losses = []
    with model.holding(3):
        for _ in range(3):
            stacked.clear()
            losses.append(functional.cross_entropy(model(BATCH["pixel_values"]).logits, BATCH["labels"]))
            losses[-1].backward()
            held = set(stacked)
    assert held == {2}  # the two that train; in the first call also the three that are held
    for _ in range(3):
        loss = functional.cross_entropy(plain(BATCH["pixel_values"]).logits, BATCH["labels"])
        loss.backward()
    assert torch.allclose(torch.stack(losses), loss.expand(3), atol=1e-5)
    for (name, one), other in zip(model.named_parameters(), plain.parameters()):
        if one.requires_grad:
            assert torch.allclose(one.grad, other.grad, atol=1e-4 * float(other.grad.abs().max()) + 1e-6), name
        else:
            assert one.grad is None, name


def test_holding_ends_with_its_block_and_fewer_components_than_held_are_recomposed_as_ever():
    """A prefix that is measured in between must not get the held ones, nor anything stale afterwards."""
    model, pixels = helpers.tiny_model(), helpers.images(4)
    with torch.no_grad():
        expected = [model(pixels, num_components=k, depth=d).logits for k in (1, 3, 5) for d in (3, 6)]
        with model.holding(3):
            inside = [model(pixels, num_components=k, depth=d).logits for k in (1, 3, 5) for d in (3, 6)]
        model.components[0].mlp.fc1.weight.add_(1.0)
        after = model(pixels).logits
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(inside, expected))
    assert not torch.allclose(after, expected[-1], atol=1e-3)


@pytest.mark.parametrize("schedule", ["simultaneous", "elastic"])
def test_one_phase_trains_everything_from_where_the_model_is(schedule):
    """Nothing is zeroed: a bundle may be trained further."""
    model = helpers.tiny_model()
    before = weights(model)
    (phase,) = phases_of(model, DecompositionSettings(schedule, full_share=1.0))
    assert same_weights(model, before) and phase.size == {"num_components": 5}
    TrainingLoop(model, IMAGES, SETTINGS).fit([phase])
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed | KEY_BIASES == set(before) | KEY_BIASES


def same_weights(model, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_what_is_outside_the_blocks_may_stop_after_the_first_phase():
    """The paper does not say; the smaller networks that are done then stay as they were."""
    model = fresh()
    todo = phases_of(model, DecompositionSettings("incremental", totals=TOTALS, freeze_outside=True))
    for index, phase in enumerate(todo):
        assert phase.trainable("embeddings.cls_token") is (index == 0)
        before = weights(model)
        train(model, phase)
        if index:
            assert all(
                torch.equal(value, before[name])
                for name, value in weights(model).items()
                if component_of(name) is None
            )


def test_new_components_may_start_at_random():
    """An option, because the paper does not say that they start at zero."""
    model = fresh()
    before = weights(model)
    phases_of(model, DecompositionSettings("incremental", totals=TOTALS, new_components="random"))
    assert same_weights(model, before)


@pytest.mark.parametrize("components, expected", [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_without_totals_components_double_up_to_all(components, expected):
    """The paper's 1, 2, 4, 8, 12."""
    assert DecompositionSettings().prefixes(components) == expected


@pytest.mark.parametrize(
    "changes",
    [{"schedule": "incrementel"}, {"sampling": "two"}, {"new_components": "ones"}, {"full_share": 1.5}],
    ids=lambda changes: str(*changes),
)
def test_settings_that_cannot_be_met_are_refused_by_name(changes):
    """With the words there are."""
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=rf"`{name}` must be .*{value}"):
        DecompositionSettings(**changes)


def test_what_is_held_is_held_for_each_width():
    """A step that draws two widths would get the layers of the first one for both."""
    model, pixels = helpers.tiny_model(), helpers.images()
    sizes = [{"width_ratio": width, "depth": 4} for width in ("1", "1/2", "1")]
    with torch.no_grad():
        expected = [model(pixels, **size).logits for size in sizes]
        with model.holding(3):
            for size, logits in zip(sizes, expected):
                torch.testing.assert_close(model(pixels, **size).logits, logits, rtol=0, atol=1e-4)
