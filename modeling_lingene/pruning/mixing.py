"""A bottleneck of two convolutions out of the weights of attention: the heads' value and output projections, mixed.

SPViT, He et al., arXiv 2111.11802: each of the nine positions of a 3x3 kernel takes its own mean over the
heads; the 1x1 convolution is its centre. Everything is linear in the weights. Positions go row by row.

Notation: h heads, s head size, d hidden size, p position.
"""

import copy

import torch
from torch import nn

from ..lingene_pruned import KERNELS, Attention, Bottleneck


POSITIONS, CENTRE = 9, 4


def mixed_kernel(
    attention: Attention, mixing: torch.Tensor, kernel: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """The convolution down to a head's size and the matrix back up.

    V'_p = sum_j P[j, p] V_j, and alike for biases and output projections, of which the sum over p is taken.

    Args:
        attention: value and output projections.
        mixing: P (h, 9), every column a mean over the heads.
        kernel: 3 or 1.

    Returns:
        Kernel (s, d, kernel, kernel), its bias (s,) or None, expansion (d, s).
    """
    positions = slice(0, POSITIONS) if kernel == 3 else slice(CENTRE, CENTRE + 1)
    shares, value, output = mixing[:, positions], attention.value, attention.output
    heads, d = len(mixing), value.weight.shape[1]
    down = torch.einsum("jp,jsd->sdp", shares, value.weight.view(heads, -1, d))
    up = torch.einsum("j,djs->ds", shares.sum(1), output.weight.view(d, heads, -1))
    bias = None if value.bias is None else torch.einsum("j,js->s", shares.sum(1), value.bias.view(heads, -1))
    return down.unflatten(2, (kernel, kernel)), bias, up


@torch.no_grad()
def written_bottleneck(attention: Attention, mixing: torch.Tensor, norm: nn.BatchNorm2d, mixer: str) -> Bottleneck:
    """The convolution as a module of its own, equal to the one of the search in evaluation mode; mixed in float64.

    Args:
        mixing: P (h, 9).
        norm: BatchNorm after the first convolution.
        mixer: conv1 or conv3.
    """
    kernel, weight = KERNELS[mixer], attention.value.weight
    down, bias, up = mixed_kernel(copy.deepcopy(attention).double(), mixing.double(), kernel)
    module = Bottleneck(up.shape[0], up.shape[1], kernel, bias is not None).to(weight)
    module.reduce.weight.copy_(down)
    if bias is not None:
        module.reduce.bias.copy_(bias)
    module.norm.load_state_dict(norm.state_dict())
    module.expand.weight.copy_(up[:, :, None, None])
    module.expand.bias.copy_(attention.output.bias)
    return module
