"""What a step minimises: cross-entropy, and what a teacher adds to it.

Notation: b batch, c classes.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional


KINDS = ("soft", "hard")


@dataclass(frozen=True)
class Objective:
    """The loss of one network, given labels and, for distillation, a teacher's logits.

    Args:
        distillation: with a teacher: `soft`, CE + KL(teacher || student), weights 1:1 (LinDec, section 3.2; the
            temperature is not in the paper), or `hard`, the mean of the cross-entropies with the label and with the
            teacher's class (DeiT, arXiv 2012.12877, Eq. 3, on one head).
        temperature: of `soft`; the KL is multiplied by its square.
        label_smoothing: of the cross-entropy with the labels.

    Raises:
        ValueError: an unknown kind, a temperature that is not positive, a smoothing outside [0, 1).
    """

    distillation: str = "soft"
    temperature: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        if self.distillation not in KINDS:
            raise ValueError(f"`distillation` must be one of {', '.join(KINDS)}, got {self.distillation!r}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"`temperature` must be a positive number, got {self.temperature!r}.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be from 0 to below 1, got {self.label_smoothing!r}.")

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss, averaged over the batch.

        Args:
            logits: (b, c).
            labels: (b,) class indices, or (b, c) shares of mixed images.
            teacher_logits: (b, c); None is no distillation.
        """
        logits = logits.float()  # under autocast they come in half precision
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if teacher_logits is None:
            return loss
        if self.distillation == "hard":
            return 0.5 * (loss + functional.cross_entropy(logits, teacher_logits.argmax(-1)))
        return loss + divergence(logits, teacher_logits, self.temperature)


def divergence(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher || student), averaged over the batch, times the squared temperature; no gradient to the teacher.

    Args:
        logits, teacher_logits: (b, c).
    """
    student = functional.log_softmax(logits.float() / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
