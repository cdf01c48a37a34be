"""What a run's held-out images are asked after an epoch, and when an answer is the best so far."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Metric:
    """A mean over the held-out images, by which `best/` is chosen.

    Args:
        name: in the history.
        count: (model, batch, size) -> (2,): the sum over the batch, and the number of its images.
        larger_is_better: otherwise the smallest value is the best.
        shown: format of the value on the progress bar.
    """

    name: str
    count: Callable[[nn.Module, dict, dict], torch.Tensor]
    larger_is_better: bool = True
    shown: str = "{:.4g}"

    def better(self, value: float, best: float | None) -> bool:
        """Whether it is the best so far; None is before the first."""
        return best is None or (value > best if self.larger_is_better else value < best)


def right_answers(model: nn.Module, batch: dict, size: dict) -> torch.Tensor:
    """Of a classifier: right answers and images, (2,)."""
    logits = model(batch["pixel_values"], **size).logits
    right = (logits.argmax(-1) == batch["labels"]).sum()
    return torch.stack((right, right.new_tensor(len(logits))))


ACCURACY = Metric("accuracy", right_answers, shown="{:.1%}")
