"""Laws of `measuring/judging.py` and `features.py`; references: numpy written out, scikit-learn, transformers."""

import math
import weakref

import numpy
import pytest
import torch
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from modeling_lingene.measuring.features import Kept, class_and_patches, no_pooler, prefix_tokens
from modeling_lingene.measuring.judging import agreement, cosines, knn_accuracy, probe_accuracy


def noisy(count: int, seed: int, classes: int = 4, channels: int = 6, noise: float = 1.5):
    """Features around a centre per class, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, channels, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    return centres[labels] + noise * torch.randn(count, channels, generator=generator), labels


def knn_by_hand(train, train_labels, queries, k=20, temperature=0.07):
    """What each query is called, by loops."""
    called = []
    for query in queries.double().numpy():
        near = []
        for voter, label in zip(train.double().numpy(), train_labels.tolist()):
            cosine = (query @ voter) / math.sqrt(query @ query) / math.sqrt(voter @ voter)
            near.append((cosine, label))
        votes = {}
        for cosine, label in sorted(near, reverse=True)[:k]:
            votes[label] = votes.get(label, 0) + math.exp(cosine / temperature)
        called.append(max(votes, key=votes.get))
    return called


@pytest.mark.parametrize("count", [7, 20, 150])
def test_knn_is_the_weighted_vote_written_out(count):
    """Fewer voters than neighbours, as many, more; weights matter: without them another share comes out."""
    (train, known), (queries, labels) = noisy(count, 1), noisy(90, 2)
    called = knn_by_hand(train, known, queries)
    share = sum(a == b for a, b in zip(called, labels.tolist())) / 90
    assert knn_accuracy(train, known, queries, labels) == pytest.approx(share, abs=1e-12) and 0.2 < share < 1
    if count == 150:
        flat = knn_by_hand(train, known, queries, temperature=1e9)
        assert flat != called and knn_by_hand(train, known, queries, k=3) != called


def test_knn_knows_no_lengths_and_goes_through_queries_in_parts():
    """Features are normalised; more queries than one part holds give the mean over all."""
    (train, known), (queries, labels) = noisy(60, 1), noisy(2500, 3)
    lengths = torch.rand(2500, 1, generator=torch.Generator().manual_seed(0)) * 50 + 0.1
    whole = knn_accuracy(train, known, queries, labels)
    assert whole == knn_accuracy(train * 7, known, queries * lengths, labels)
    parts = [knn_accuracy(train, known, queries[i : i + 500], labels[i : i + 500]) for i in range(0, 2500, 500)]
    assert whole == pytest.approx(sum(parts) / 5)


@pytest.mark.parametrize("judge", [knn_accuracy, probe_accuracy])
def test_separable_classes_are_named_and_unknown_ones_are_not(judge):
    """1 where every class stands apart; a class that nobody voted for cannot be right."""
    (train, known), (queries, labels) = noisy(80, 1, noise=0.01), noisy(40, 2, noise=0.01)
    assert judge(train, known, queries, labels) == 1
    assert judge(train, known, queries, torch.full_like(labels, 7)) == 0


def test_the_probe_is_scikit_learns():
    """On standardised features, in float64, with the settings that the docstring says."""
    linear, pipeline = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.pipeline")
    from sklearn.preprocessing import StandardScaler

    (train, known), (queries, labels) = noisy(200, 1), noisy(300, 2)
    scale = torch.tensor([1.0, 30.0, 0.01, 1.0, 5.0, 1.0])
    probe = pipeline.make_pipeline(StandardScaler(), linear.LogisticRegression(C=1.0, max_iter=1000))
    probe.fit((train * scale).double().numpy(), known.numpy())
    expected = probe.score((queries * scale).double().numpy(), labels.numpy())
    assert probe_accuracy(train * scale, known, queries * scale, labels) == expected and 0.3 < expected < 1


def test_a_probe_of_one_class_is_refused():
    """scikit-learn's own message does not say which part."""
    features, labels = noisy(10, 1)
    with pytest.raises(ValueError, match="`metric` probe needs at least two classes in the train part"):
        probe_accuracy(features, labels * 0, features, labels)


@pytest.mark.parametrize("channels", [8, 5])
def test_cosines_are_those_by_hand(channels):
    """Of the class token, and the mean over the patches; the channels that a narrow size lacks are zeros."""
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(3, 8, generator=generator), torch.randn(3, 4, 8, generator=generator)
    found = torch.randn(3, channels, generator=generator), torch.randn(3, 4, channels, generator=generator)
    for image, (of_class, of_patches) in enumerate(cosines(found, expected).tolist()):

        def cosine(one, other):
            a, b = one.double().numpy(), other.double().numpy()
            a = numpy.concatenate([a, numpy.zeros(8 - channels)])
            return a @ b / numpy.linalg.norm(a) / numpy.linalg.norm(b)

        assert of_class == pytest.approx(cosine(found[0][image], expected[0][image]), abs=1e-6)
        patches = [cosine(found[1][image, p], expected[1][image, p]) for p in range(4)]
        assert of_patches == pytest.approx(numpy.mean(patches), abs=1e-6)


def test_tokens_of_another_grid_are_refused():
    """Patch 3 of 9 is not where patch 3 of 16 is."""
    with pytest.raises(ValueError, match="`reference` must have as many patches.* gives 16 .* the model 9.*knn"):
        cosines((torch.ones(1, 4), torch.ones(1, 9, 4)), (torch.ones(1, 4), torch.ones(1, 16, 4)))


def test_agreement_is_means_and_numpys_percentiles():
    """Over images; more than 1 by rounding is 1."""
    values = torch.rand(101, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    low = numpy.percentile(values.numpy(), 5, axis=0)
    assert agreement(values) == pytest.approx(
        {
            "cosine": values[:, 0].mean().item(),
            "cosine_p5": low[0],
            "patch_cosine": values[:, 1].mean().item(),
            "patch_cosine_p5": low[1],
        },
        abs=1e-6,
    )
    assert set(agreement(torch.full((5, 2), 1 + 1e-6)).values()) == {1.0}


SHAPE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=4)


@pytest.mark.parametrize(
    "model_class, config_class",
    [
        (Dinov2WithRegistersModel, Dinov2WithRegistersConfig),
        (DINOv3ViTModel, DINOv3ViTConfig),
        (type("Own", (DINOv3ViTModel,), {}), DINOv3ViTConfig),
    ],
)
def test_registers_are_no_patches(model_class, config_class):
    """They stand between the class token and the patches; a family without them has none in its configuration. What
    transformers calls the base of a DINOv3 is a part of it, which takes no pictures."""
    torch.manual_seed(0)
    model = model_class(config_class(**SHAPE, num_register_tokens=3)).eval()
    assert prefix_tokens(model.config) == 4 and prefix_tokens(ViTConfig()) == 1
    with torch.no_grad():
        pixels = torch.randn(2, 3, 16, 16)
        tokens, patches = class_and_patches(model, pixels)
        hidden = model(pixels).last_hidden_state
    assert torch.equal(tokens, hidden[:, 0]) and torch.equal(patches, hidden[:, -16:]) and patches.shape[1] == 16


def test_a_classifier_is_asked_for_its_encoders_tokens_in_its_own_dtype():
    """Normed ones, of which it reads the first."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**SHAPE, intermediate_size=32, num_labels=5)).eval().bfloat16()
    with torch.no_grad():
        tokens, patches = class_and_patches(model, pixels := torch.randn(2, 3, 16, 16))
        assert torch.equal(model.classifier(tokens.bfloat16()), model(pixels.bfloat16()).logits)
    assert tokens.dtype == patches.dtype == torch.float32 and patches.shape == (2, 16, 24)


def test_a_pooler_is_left_out_where_there_may_be_one():
    """Nobody reads it, and a checkpoint without one would get a random one."""
    assert no_pooler(ViTConfig()) == {"add_pooling_layer": False}
    assert no_pooler(Dinov2WithRegistersConfig()) == {}
    assert ViTModel(ViTConfig(**SHAPE), **no_pooler(ViTConfig())).pooler is None


@pytest.mark.parametrize("room, passes", [(96, 1), (95, 3), (32, 3), (0, 3)])
def test_what_fits_is_kept_and_what_does_not_is_made_again(room, passes):
    """To the same content in the same order; of what does not fit nothing stays in memory."""
    made = []

    class Source:
        def __iter__(self):
            for number in range(3):
                tensor = torch.full((8,), float(number))  # 32 bytes
                made.append(weakref.ref(tensor))
                yield {"pixel_values": tensor}
                del tensor

    kept = Kept(Source(), room)
    for _ in range(3):
        assert [batch["pixel_values"][0].item() for batch in kept] == [0, 1, 2]
    assert len(made) == 3 * passes and (kept.kept is None) == (passes > 1)
    iterator = iter(Kept(Source(), room))
    made.clear()
    for _ in range(3):
        next(iterator)
    assert sum(one() is not None for one in made) == (3 if passes == 1 else 1)  # the last one is at the consumer
