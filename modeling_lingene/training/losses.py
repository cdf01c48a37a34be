"""What a step minimises: cross-entropy, and what a teacher adds to it; or, without labels, see `features.py`.

Notation: b batch, c classes.
"""

from dataclasses import dataclass, field

import torch
from torch.nn import functional


TEACHER = "teacher"  # in a batch of the loop: what the teacher says of it
FIRST = "first"  # place of a batch's first image in the whole step, in the batch
CHOICES = {"kind": ("labels", "features"), "distillation": ("soft", "hard"), "feature_heads": ("linear", "identity")}


@dataclass(frozen=True)
class Objective:
    """The loss of one network: from labels and, for distillation, a teacher's logits; or from its tokens alone.

    Args:
        distillation: with a teacher: `soft`, CE + KL(teacher || student), weights 1:1 (LinDec, section 3.2; the
            temperature is not in the paper), or `hard`, the mean of the cross-entropies with the label and with the
            teacher's class (DeiT, arXiv 2012.12877, Eq. 3, on one head).
        temperature: of `soft`; the KL is multiplied by its square.
        label_smoothing: of the cross-entropy with the labels.
        kind: `labels`, or `features`: pictures without labels, mean squared errors with the teacher's tokens (Proteus,
            arXiv 2407.10366); the teacher is any encoder, default the bundle that `init` names.
        feature_heads: what leads from the student's channels into the teacher's: `linear`, a LayerNorm and a linear
            layer per term, fitted to the start where training goes on from a bundle, or `identity`, nothing, for
            equal widths.
        mask_share: of the patches, masked in a second pass of the student, which learns what the teacher sees there;
            0 is no second pass.

    Raises:
        ValueError: an unknown word, a temperature that is not positive, a share or smoothing outside [0, 1), a setting
            of the other kind.
    """

    distillation: str = "soft"
    temperature: float = 1.0
    label_smoothing: float = 0.0
    kind: str = field(default="labels", metadata={"flag": "objective"})
    feature_heads: str = "linear"
    mask_share: float = 0.0

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                shown = "objective" if name == "kind" else name
                raise ValueError(f"`{shown}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"`temperature` must be a positive number, got {self.temperature!r}.")
        for name in ("label_smoothing", "mask_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be from 0 to below 1, got {getattr(self, name)!r}.")
        strangers = {"labels": {"feature_heads": "linear", "mask_share": 0}, "features": {"label_smoothing": 0}}
        for name, unset in strangers[self.kind].items():
            if getattr(self, name) != unset:
                raise ValueError(f"`{name}` has no part in `objective` {self.kind}; leave one of them out.")

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss of the kind `labels`, averaged over the batch.

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

    def of_batch(self, logits: torch.Tensor, batch: dict) -> torch.Tensor:
        """The same for logits (b, c) of a batch of the loop, whose teacher, if there is one, is asked already."""
        return self(logits, batch["labels"], batch.get(TEACHER))


def divergence(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher || student), averaged over the batch, times the squared temperature; no gradient to the teacher.

    Args:
        logits, teacher_logits: (b, c).
    """
    student = functional.log_softmax(logits.float() / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
