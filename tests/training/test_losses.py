"""Laws of the losses; reference: numpy in float64, from the definitions.

pytest tests/training/test_losses.py
"""

import numpy
import pytest
import torch

from modeling_lingene.training.losses import Objective, divergence


BATCH, CLASSES = 6, 5


def made_logits(seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = made_logits(0), made_logits(1)
INDICES = torch.tensor([0, 4, 2, 2, 1, 3])
SHARES = torch.softmax(made_logits(2), -1)
LABELS = {"indices": INDICES, "mixed": SHARES}


def log_softmax(logits: torch.Tensor) -> numpy.ndarray:
    exact = logits.detach().double().numpy()
    return exact - numpy.log(numpy.exp(exact).sum(-1, keepdims=True))


def shares(labels: torch.Tensor, smoothing: float = 0.0) -> numpy.ndarray:
    """The distribution (b, c) that labels stand for: smoothing moves that much of it evenly to all classes."""
    exact = numpy.eye(CLASSES)[labels.numpy()] if labels.dim() == 1 else labels.double().numpy()
    return (1 - smoothing) * exact + smoothing / CLASSES


def cross_entropy(logits: torch.Tensor, target: numpy.ndarray) -> float:
    return -(target * log_softmax(logits)).sum(-1).mean()


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """KL(teacher || student), the mean over the batch, times the squared temperature."""
    log_student, log_teacher = log_softmax(student / temperature), log_softmax(teacher / temperature)
    return (numpy.exp(log_teacher) * (log_teacher - log_student)).sum() / len(student) * temperature**2


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_without_a_teacher_it_is_the_cross_entropy(labels, smoothing):
    """Class indices or the shares of mixed images, smoothed or not: one definition."""
    loss = Objective(label_smoothing=smoothing)(STUDENT, labels)
    assert loss.shape == () and loss.item() == pytest.approx(cross_entropy(STUDENT, shares(labels, smoothing)))


def test_one_hot_shares_are_the_indices():
    """A batch that happened not to be mixed must not weigh otherwise than one where mixing is off."""
    objective = Objective(label_smoothing=0.1)
    one_hot = torch.eye(CLASSES)[INDICES]
    torch.testing.assert_close(objective(STUDENT, one_hot, TEACHER), objective(STUDENT, INDICES, TEACHER))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_soft_distillation_adds_the_divergence_from_the_teacher(labels, temperature, smoothing):
    """Direction, batch mean and squared temperature: each has been got wrong somewhere, and still trains."""
    expected = cross_entropy(STUDENT, shares(labels, smoothing)) + kl(STUDENT, TEACHER, temperature)
    loss = Objective("soft", temperature, smoothing)(STUDENT, labels, TEACHER)
    assert loss.item() == pytest.approx(expected)
    assert kl(STUDENT, TEACHER, temperature) != pytest.approx(kl(TEACHER, STUDENT, temperature), rel=0.05)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_hard_distillation_is_the_mean_of_two_cross_entropies(labels, smoothing):
    """With the label, smoothed, and with the teacher's class, which is not (DeiT, Eq. 3)."""
    answers = numpy.eye(CLASSES)[TEACHER.numpy().argmax(-1)]
    expected = (cross_entropy(STUDENT, shares(labels, smoothing)) + cross_entropy(STUDENT, answers)) / 2
    assert Objective("hard", label_smoothing=smoothing)(STUDENT, labels, TEACHER).item() == pytest.approx(expected)


def test_hard_distillation_sees_the_teachers_answers_alone():
    """Neither its confidence nor a temperature."""
    objective, sure = Objective("hard", temperature=4.0), 10 * TEACHER
    assert torch.equal(objective(STUDENT, INDICES, sure), Objective("hard")(STUDENT, INDICES, TEACHER))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_zero_at_the_teachers_distribution_alone(temperature):
    """Logits are defined up to a constant per image."""
    moved = STUDENT + torch.arange(BATCH)[:, None]
    assert divergence(moved, STUDENT, temperature).item() == pytest.approx(0, abs=1e-5)
    assert divergence(TEACHER, STUDENT, temperature).item() == pytest.approx(kl(TEACHER, STUDENT, temperature))
    assert divergence(TEACHER, STUDENT, temperature) > 0.1


def test_the_default_temperature_is_one():
    """The temperature is not in the paper: its loss has none."""
    assert torch.equal(divergence(STUDENT, TEACHER), divergence(STUDENT, TEACHER, 1.0))
    assert torch.equal(Objective()(STUDENT, INDICES, TEACHER), Objective("soft", 1.0, 0.0)(STUDENT, INDICES, TEACHER))


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_student_alone_gets_a_gradient(kind):
    """The closed form; where the largest size teaches a smaller one, the teacher must not learn to please it."""
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    temperature = 2.0
    Objective(kind, temperature)(student, INDICES, teacher).backward()
    assert teacher.grad is None
    answer = numpy.exp(log_softmax(STUDENT))
    expected = answer - shares(INDICES)
    if kind == "hard":
        expected = (expected + answer - numpy.eye(CLASSES)[TEACHER.numpy().argmax(-1)]) / 2
    else:
        cooled, taught = (numpy.exp(log_softmax(logits / temperature)) for logits in (STUDENT, TEACHER))
        expected = expected + temperature * (cooled - taught)
    numpy.testing.assert_allclose(student.grad.numpy(), expected / BATCH, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_in_half_precision_are_computed_with_in_single(dtype, kind):
    """Under autocast they come so; a sum of exponentials in eight bits is off by percents."""
    student, teacher, objective = STUDENT.to(dtype), TEACHER.to(dtype), Objective(kind, 2.0, 0.1)
    for labels in (INDICES, SHARES):
        loss = objective(student, labels, teacher)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, objective(student.float(), labels, teacher.float()))


def test_large_logits_in_half_precision_give_a_finite_loss():
    """40,000 over a temperature of one half is infinite in float16."""
    student, teacher = (40000 * torch.eye(CLASSES).roll(turn, 0).half() for turn in (0, 1))
    loss = Objective("soft", 0.5)(student, torch.arange(CLASSES), teacher)
    assert loss.item() == pytest.approx(0.25 * 80000)


@pytest.mark.parametrize(
    "field, value",
    [
        ("distillation", "medium"),
        ("distillation", ""),
        ("distillation", None),
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.0),
        ("label_smoothing", float("nan")),
    ],
)
def test_what_cannot_be_met_is_refused_by_name(field, value):
    """Before a model is built; the value that came is in the message."""
    with pytest.raises(ValueError, match=f"`{field}`.*{value!r}"):
        Objective(**{field: value})
