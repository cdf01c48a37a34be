"""Laws of the loss without labels; reference: stock ViTs recomposed by numpy, LayerNorm and heads written out.

pytest tests/training/test_features.py
"""

from fractions import Fraction

import numpy
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTModel

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, LinGeneModel
from modeling_lingene.images.loaders import Layout
from modeling_lingene.measuring.metrics import count_macs
from modeling_lingene.training.decomposition import DecompositionSettings, phases
from modeling_lingene.training.features import (
    FIT_IMAGES,
    RIDGES,
    FeatureStudent,
    chosen_map,
    feature_metric,
    features_loss,
    fit_heads,
    masked_patches,
)
from modeling_lingene.training.loop import TrainingLoop
from modeling_lingene.training.losses import Objective
from modeling_lingene.training.steps import TrainingSettings
from modeling_lingene.training.validation import ACCURACY, Metric


WIDTH, PATCHES, TEACHER = helpers.TINY["hidden_size"], 16, 20
WIDTHS = ["1/4", "1/2", "3/4", "1"]
FEATURES = Objective(kind="features")
MASKED = Objective(kind="features", mask_share=0.3)
IDENTITY = Objective(kind="features", feature_heads="identity")


def encoder(masks: bool = False, **fields) -> tuple[LinGeneModel, LinGeneForImageClassification]:
    """An encoder, and the classifier with the same weights, for the reference."""
    config = helpers.tiny_config(**{"trained_width_ratios": WIDTHS, **fields})
    classifier = helpers.tiny_model(config)
    made = LinGeneModel(config).eval()
    made.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith("classifier.")})
    if masks:
        made.embeddings.mask_token = nn.Parameter(torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(7)))
    return made, classifier


def student(objective: Objective = FEATURES, teacher_width: int = TEACHER, **fields) -> FeatureStudent:
    """Of noise, its heads too: a gain of 1 and a bias of 0 are what a forgotten one would be."""
    torch.manual_seed(3)
    made = FeatureStudent(encoder(objective.mask_share > 0, **fields)[0], teacher_width, objective).eval()
    with torch.no_grad():
        for parameter in made.heads.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return made


def teacher_tokens(width: int = TEACHER, batch: int = 3, seed: int = 5) -> torch.Tensor:
    return torch.randn(batch, 1 + PATCHES, width, generator=torch.Generator().manual_seed(seed))


def head(made: FeatureStudent, term: str, tokens: numpy.ndarray, kept: slice) -> numpy.ndarray:
    """LayerNorm and linear layer on the channels that are kept, in float64."""
    one = made.heads[term]
    gain, shift, weight, bias = (
        tensor.detach().double().numpy() for tensor in (*one.norm.parameters(), *one.linear.parameters())
    )
    centred = tokens - tokens.mean(-1, keepdims=True)
    normed = centred / numpy.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return (normed * gain[kept] + shift[kept]) @ weight[:, kept].T + bias


def channels(width_ratio: str, trailing: bool = False) -> slice:
    count = int(WIDTH * Fraction(width_ratio))
    return slice(WIDTH - count, WIDTH) if trailing else slice(count)


def reference_tokens(width_ratio: str, depth: int = 6, **size) -> numpy.ndarray:
    """Final normed tokens of a stock ViT whose weights numpy has summed."""
    vit = helpers.reference_vit(encoder()[1], depth, width_ratio, **size).vit
    with torch.no_grad():
        return vit(helpers.images()).last_hidden_state.double().numpy()


def ridge_reference(x: numpy.ndarray, y: numpy.ndarray, halves: numpy.ndarray) -> tuple[numpy.ndarray, float]:
    """Of all rows, with the ridge by which the maps of either half are best on the other; and that ridge."""

    def fitted(x, y, ridge):
        added = numpy.sqrt(ridge * numpy.square(x).sum(0).mean()) * numpy.eye(x.shape[1])
        zeros = numpy.zeros((x.shape[1], y.shape[1]))
        return numpy.linalg.lstsq(numpy.concatenate((x, added)), numpy.concatenate((y, zeros)))[0]

    def error(ridge):
        maps = [fitted(x[halves == one], y[halves == one], ridge) for one in (0, 1)]
        return sum(numpy.square(x[halves != one] @ maps[one] - y[halves != one]).sum() for one in (0, 1))

    best = min(RIDGES, key=error)
    return fitted(x, y, best), best


@pytest.mark.parametrize("isolated", [False, True])
def test_heads_begin_as_least_squares_of_every_width_at_once(isolated):
    """By numpy, on what the encoder gives, normed, with the ridge that is best for pictures left out; the class token
    weighs as much as all patches in its own head. The pictures are no more than are needed."""
    widths = {"1/4": channels("1/4"), "1/2": channels("1/2", trailing=isolated), "1": channels("1")}
    fields = {"trained_width_ratios": list(widths), "isolated_activation": isolated}
    made, taken = student(MASKED, **fields), []
    for one in made.heads.values():
        one.norm.reset_parameters()

    class Source:
        def __len__(self):
            return 1000

        def batches(self, seed, layout):
            for number in range(20):
                taken.append(helpers.images(layout.batch_size, seed=number))
                yield [{"pixel_values": taken[-1]}]

    mix = torch.randn(WIDTH, TEACHER, generator=torch.Generator().manual_seed(1))

    def teacher(batch):
        tokens = made.encoder(batch["pixel_values"]).last_hidden_state
        return (tokens.tanh() @ mix + 0.5)[:, -1 - PATCHES :]

    fit_heads(made, Source(), teacher, seed=0)
    assert sum(map(len, taken)) == FIT_IMAGES
    batch, rows = {"pixel_values": torch.cat(taken)}, []
    with torch.no_grad():
        wanted = teacher(batch).double().numpy()
        for width, at in widths.items():
            tokens = made.encoder(batch["pixel_values"], width_ratio=width).last_hidden_state.double().numpy()
            centred = tokens - tokens.mean(-1, keepdims=True)
            rows.append(numpy.zeros((*tokens.shape[:2], WIDTH + 1)))
            rows[-1][..., at] = centred / numpy.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
            rows[-1][..., -1] = 1
    normed, wanted = numpy.concatenate(rows).reshape(-1, WIDTH + 1), numpy.concatenate([wanted] * len(widths))
    for term, one in made.heads.items():
        weight = numpy.ones(wanted.shape[:2])
        weight[:, 0] = PATCHES if term == "class_token" else 1
        weight = numpy.sqrt(weight.reshape(-1, 1))
        halves = numpy.arange(FIT_IMAGES) // len(taken[0]) % 2  # one batch after the other
        halves = numpy.tile(halves.repeat(1 + PATCHES), len(widths))
        found, _ = ridge_reference(weight * normed, weight * wanted.reshape(-1, TEACHER), halves)
        given = torch.cat((one.linear.weight, one.linear.bias[:, None]), dim=1).detach().double().numpy().T
        assert numpy.linalg.norm(given - found) < 1e-5 * numpy.linalg.norm(found)


@pytest.mark.parametrize("rows, noise, expected", [(30, 1.0, 1e-2), (400, 1e-3, 1e-6), (30, 30.0, 1.0)])
def test_a_heads_ridge_is_the_one_that_is_best_for_what_was_left_out(rows, noise, expected):
    """Few pictures ask for much of it; a fit that follows them ruins what learns behind it."""
    draw = numpy.random.default_rng(0)
    x, true = draw.normal(size=(2, rows, 20)), draw.normal(size=(20, 5))
    y = x @ true + noise * draw.normal(size=(2, rows, 5))
    halves = [[torch.tensor(x[one].T @ x[one]), torch.tensor(x[one].T @ y[one])] for one in (0, 1)]
    found, best = ridge_reference(x.reshape(-1, 20), y.reshape(-1, 5), numpy.arange(2).repeat(rows))
    assert best == pytest.approx(expected) and numpy.allclose(chosen_map(halves).numpy(), found, atol=1e-6)


@pytest.mark.parametrize("width_ratio", WIDTHS)
@pytest.mark.parametrize("depth, count", [(6, 5), (3, 5), (6, 2)])
def test_the_loss_is_what_the_paper_writes(width_ratio, depth, count):
    """Class token and all tokens, each through a head of its own, the mean over channels and tokens, summed."""
    made, teacher, kept = student(), teacher_tokens(), channels(width_ratio)
    size = {"depth": depth, "width_ratio": width_ratio, "num_components": count}
    tokens = reference_tokens(width_ratio, depth, num_components=count)
    wanted = teacher.double().numpy()
    one = ((head(made, "class_token", tokens[:, 0], kept) - wanted[:, 0]) ** 2).mean(-1)
    every = ((head(made, "tokens", tokens, kept) - wanted) ** 2).mean((1, 2))
    with torch.no_grad():
        got = made(helpers.images(), teacher, **size)
    numpy.testing.assert_allclose(got.numpy(), one + every, rtol=1e-4)
    batch = {"pixel_values": helpers.images(), "teacher": teacher}
    mean = features_loss(FEATURES, made, batch, torch.Generator(), **size)
    assert mean.item() == pytest.approx((one + every).mean(), rel=1e-4)


def test_masked_patches_are_compared_where_they_were_masked():
    """The second pass against transformers' own masking, its tokens against the teacher's of the unmasked image."""
    made, teacher = student(MASKED), teacher_tokens()
    masked = masked_patches(11, torch.arange(3), PATCHES, 0.3)
    stock = helpers.reference_vit(encoder()[1], 6).vit
    masking = ViTModel(stock.config, add_pooling_layer=False, use_mask_token=True).eval()
    token = {"embeddings.mask_token": made.encoder.embeddings.mask_token.detach()}
    masking.load_state_dict(stock.state_dict() | token)
    with torch.no_grad():
        seen = masking(helpers.images(), bool_masked_pos=masked).last_hidden_state[:, 1:].double().numpy()
        got = made(helpers.images(), teacher, masked) - made(helpers.images(), teacher)
    projected, wanted = head(made, "masked", seen, slice(WIDTH)), teacher[:, 1:].double().numpy()
    expected = [((p[m] - w[m]) ** 2).mean() for p, w, m in zip(projected, wanted, masked.numpy())]
    numpy.testing.assert_allclose(got.numpy(), expected, rtol=1e-3)


def test_masks_are_as_large_as_asked_and_an_images_own():
    """Whatever else is in its batch; another seed draws others."""
    masked = masked_patches(1, torch.tensor([4, 9, 2]), PATCHES, 0.3)
    assert masked.dtype == torch.bool and masked.sum(1).tolist() == [5, 5, 5]
    assert torch.equal(masked_patches(1, torch.tensor([2, 4]), PATCHES, 0.3), masked[[2, 0]])
    assert not torch.equal(masked[0], masked[1])
    assert not torch.equal(masked_patches(2, torch.tensor([4, 9, 2]), PATCHES, 0.3), masked)
    assert masked_patches(1, torch.tensor([0]), PATCHES, 0.001).sum() == 1


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("width_ratio", WIDTHS)
def test_identity_heads_compare_the_channels_that_a_width_keeps(width_ratio, isolated):
    """Nothing between student and teacher: the leading channels, or with isolated activation the trailing ones."""
    made, teacher = student(IDENTITY, WIDTH, isolated_activation=isolated), teacher_tokens(WIDTH)
    assert not list(made.heads.parameters())
    with torch.no_grad():
        got = made(helpers.images(), teacher, width_ratio=width_ratio)
        tokens = made.encoder(helpers.images(), width_ratio=width_ratio).last_hidden_state.double().numpy()
    wanted = teacher.double().numpy()[..., channels(width_ratio, isolated and width_ratio in ("1/2", "3/4"))]
    expected = ((tokens[:, 0] - wanted[:, 0]) ** 2).mean(-1) + ((tokens - wanted) ** 2).mean((1, 2))
    numpy.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)


def test_a_student_that_is_its_teacher_has_no_loss_with_identity_heads():
    """What a run from a bundle with the bundle as teacher starts from, at full size."""
    made = student(IDENTITY, WIDTH)
    with torch.no_grad():
        teacher = made.encoder.materialise()(helpers.images()).last_hidden_state
        assert made(helpers.images(), teacher).max() < 1e-10
        assert made(helpers.images(), teacher, depth=3).min() > 1e-3


@pytest.mark.parametrize("objective", [FEATURES, MASKED, IDENTITY], ids=["linear", "masked", "identity"])
@pytest.mark.parametrize("width_ratio", ["1/2", "1"])
def test_gradients_reach_every_component_and_every_head(objective, width_ratio):
    """And, in a narrow network, the channels that it keeps of each tensor, no other."""
    made = student(objective, WIDTH)
    batch = {"pixel_values": helpers.images(), "teacher": teacher_tokens(WIDTH), "index": torch.arange(3)}
    features_loss(objective, made, batch, torch.Generator(), width_ratio=width_ratio).backward()
    for name, parameter in made.named_parameters():
        if not name.endswith("key.bias"):  # softmax does not see it
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name
    for one in made.heads.values():
        used = one.linear.weight.grad.abs().sum(0) > 0
        assert used[channels(width_ratio)].all() and used.sum().item() == WIDTH * Fraction(width_ratio)


@pytest.mark.parametrize("objective", [FEATURES, MASKED, IDENTITY], ids=["linear", "masked", "identity"])
def test_the_teacher_gets_no_gradient_from_the_loss(objective):
    """Of a teacher that could learn, too; a graph through it would double the memory of a step."""
    teacher = teacher_tokens(WIDTH).requires_grad_()
    batch = {"pixel_values": helpers.images(), "teacher": teacher, "index": torch.arange(3)}
    features_loss(objective, student(objective, WIDTH), batch, torch.Generator()).backward()
    assert teacher.grad is None


def test_what_goes_into_a_bundle_is_the_encoder_alone():
    """Under the names of a bundle; the heads stay in the checkpoint."""
    made = student()
    kept = made.bundle_state(made.state_dict())
    assert kept.keys() == made.encoder.state_dict().keys() and any(n.startswith("heads.") for n in made.state_dict())


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"kind": "feature"}, "`objective` must be one of labels, features"),
        ({"kind": "features", "feature_heads": "none"}, "`feature_heads` must be one of linear, identity"),
        ({"kind": "features", "mask_share": 1.0}, "`mask_share` must be from 0 to below 1"),
        ({"kind": "features", "label_smoothing": 0.1}, "`label_smoothing` has no part in `objective` features"),
        ({"mask_share": 0.2}, "`mask_share` has no part in `objective` labels"),
        ({"feature_heads": "identity"}, "`feature_heads` has no part in `objective` labels"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, word):
    """A setting that would be ignored is a mistake of whoever gave it."""
    with pytest.raises(ValueError, match=word):
        Objective(**fields)


def test_what_student_and_teacher_cannot_have_is_refused():
    """Before a picture is read."""
    with pytest.raises(ValueError, match="`feature_heads` identity needs one width.* 20 channels, the student 48"):
        FeatureStudent(encoder()[0], TEACHER, IDENTITY)
    with pytest.raises(ValueError, match="`mask_share` .* this bundle's family has none"):
        FeatureStudent(encoder()[0], TEACHER, MASKED)
    with pytest.raises(ValueError, match="`bool_masked_pos` needs a mask token"):
        encoder()[0](helpers.images(), bool_masked_pos=torch.ones(3, PATCHES, dtype=torch.bool))


@pytest.mark.parametrize("schedule", ["incremental", "simultaneous", "elastic"])
def test_every_schedule_trains_the_heads_and_a_mask_token_where_patches_are_masked(schedule):
    """In every phase: the heads are no part of what incremental training freezes."""
    settings = DecompositionSettings(schedule, totals=(1, 5), freeze_outside=schedule == "incremental")
    for objective in (FEATURES, MASKED):
        names = [name for name, _ in student(MASKED).named_parameters()]
        for place, phase in enumerate(phases(encoder()[0], settings, objective)):
            trained = {name for name in names if phase.trainable(name)}
            assert {name for name in names if name.startswith("heads.")} <= trained
            outside = place == 0 or schedule != "incremental"
            assert ("encoder.layernorm.weight" in trained) == outside
            masks = objective.mask_share > 0 and outside
            assert ("encoder.embeddings.mask_token" in trained) == masks
            assert any(name.startswith("encoder.components.4.") for name in trained) == (
                place == 1 or schedule != "incremental"
            )


def run(metric: Metric, values: list[float], tmp_path) -> tuple[list[int], list[dict]]:
    """Epochs after which a loop has called its state the best, and its history, for given values on the held-out."""
    model, best, epochs, steps = nn.Linear(1, 1), [], iter(values), []
    metric = Metric(metric.name, lambda *_: torch.tensor([3 * next(epochs), 3.0]), metric.larger_is_better)
    settings = TrainingSettings(epochs=len(values), batch_size=8, device="cpu")
    loop = TrainingLoop(
        model,
        helpers.source(8),
        settings,
        held_out=helpers.source(3, seed=1),
        metric=metric,
        on_best=lambda state: best.append(len(steps)),
    )

    def forward(model, batch, generator):
        steps.append(None)
        return model(batch["pixel_values"].mean((1, 2, 3))[:, None]).square().mean()

    phase = phases(encoder()[0], DecompositionSettings("simultaneous"))[0]
    history = loop.fit([phase.__class__("one", lambda name: True, forward)])
    assert loop.best == (max if metric.larger_is_better else min)(values)
    return best, history


def test_the_smallest_loss_on_the_held_out_part_is_the_best_and_the_largest_accuracy():
    """One comparison the wrong way, and `best/` is the worst state, or the first."""
    values = [3.0, 4.0, 2.0, 2.0, 1.0, 5.0]
    best, history = run(feature_metric(None), values, None)
    assert best == [1, 3, 5] and [row["feature_loss"] for row in history] == values
    best, history = run(ACCURACY, [0.5, 0.25, 0.75, 0.75], None)
    assert best == [1, 3] and [row["accuracy"] for row in history] == [0.5, 0.25, 0.75, 0.75]


def test_the_metric_is_the_mean_loss_of_the_held_out_pictures():
    """Image by image, whatever the batches are, and of the size that is asked for."""
    made, held = student(), helpers.source(11)
    answer = teacher_tokens(batch=11)
    metric = feature_metric(lambda batch: answer[batch["index"]])
    with torch.no_grad():
        counted = sum(metric.count(made, batch, {"depth": 3}) for batch in held.in_order(Layout(4)))
        (whole,) = held.in_order(Layout(11))
        expected = made(whole["pixel_values"], answer, depth=3)
    assert counted[1] == 11 and counted[0].item() == pytest.approx(expected.sum().item(), rel=1e-5)


@pytest.mark.parametrize("depth, width_ratio", [(12, "1"), (6, "1"), (12, "1/2"), (4, "1/3")])
def test_a_sampled_step_computes_little_more_than_student_and_teacher(depth, width_ratio):
    """Counted: at most 1.15 times the multiply-accumulates of the stock student and of the teacher."""
    shape = dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=224, patch_size=16)
    with torch.device("meta"):
        config = LinGeneConfig(depth=12, num_components=12, **shape)
        config._attn_implementation = "eager"
        model = LinGeneModel(config)
        made = FeatureStudent(model, 384, FEATURES)
        model.set_attn_implementation("eager")
        pixels, tokens = torch.empty(1, 3, 224, 224), torch.empty(1, 197, 384)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made(pixels, tokens, depth=depth, width_ratio=width_ratio)
    macs = count_macs(config.stock_config(config.size(depth, width_ratio)))
    teacher = count_macs(config.stock_config(config.size()))
    one, two = (config.stored_params(config.size(depth, width_ratio, count)) for count in (1, 2))
    recomposing = 12 * depth * (two - one)  # once a step, not once an image: divided among 64 of them
    counted = counter.get_total_flops() / 2 - recomposing * 63 / 64
    assert macs < counted and counted + teacher <= 1.15 * (macs + teacher)
