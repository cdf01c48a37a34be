"""Gates of the search: drawn with a straight-through gradient, ordered, and what they cost on average.

SPViT, He et al., arXiv 2111.11802. A layer has three gates, of the 1x1 convolution, the 3x3 convolution
and attention, each of which opens its operation on top of the one before; every MLP unit has one of its own.
"""

import torch


START = 1.5  # of every gate, before the sigmoid


def drawn(logits: torch.Tensor) -> torch.Tensor:
    """One Bernoulli draw per gate: 0 or 1 exactly, with the gradient of the relaxed draw.

    l = logit(u) + logits, u uniform: the value is 1 where l > 0, which has probability sigmoid(logits); the gradient
    that of sigmoid(l).

    Args:
        logits: of any shape.
    """
    noisy = torch.logit(torch.rand_like(logits), eps=1e-6) + logits
    return straight_through(noisy > 0, torch.sigmoid(noisy))


def decided(logits: torch.Tensor) -> torch.Tensor:
    """Outside training: 1 where a gate is more likely open than not."""
    return (logits > 0).to(logits.dtype)


def straight_through(value: torch.Tensor, relaxed: torch.Tensor) -> torch.Tensor:
    """`value` to the last bit, with the gradient of `relaxed`."""
    return value.to(relaxed.dtype) + (relaxed - relaxed.detach())


def shares(gates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How much of the 1x1 convolution, the 3x3 convolution and attention a layer adds; one of them at most.

    An operation is open where the gates before it are open, too. The gates of the highest open operation and of the
    next one get a gradient; what lies below is out of use.

    Args:
        gates: (3,), 0 or 1.
    """
    conv1, conv3, attention = gates.unbind()
    both, all_open = conv1 * conv3 > 0, conv1 * conv3 * attention > 0
    conv1 = torch.where(both, conv1.detach(), conv1)
    conv3 = torch.where(all_open, conv3.detach(), conv3)
    conv3 = conv1 * conv3
    attention = conv3 * attention
    return conv1 * (1 - conv3) * (1 - attention), conv3 * (1 - attention), attention


def expected(logits: torch.Tensor, ordered: bool = False) -> torch.Tensor:
    """1 for every gate that is more likely open than not, with the gradient of sigmoid(sigmoid(logits) - 1/2).

    Args:
        logits: (..., gates).
        ordered: a gate counts where those before it are open, too.
    """
    probabilities = torch.sigmoid(logits)
    value = (probabilities > 0.5).to(logits.dtype)
    if ordered:
        value = value.cumprod(-1)
    return straight_through(value, torch.sigmoid(probabilities - 0.5))
