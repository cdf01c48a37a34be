"""What matters first: orders of heads and MLP units, so that slices keep it (ours). Exact.

A width keeps the leading heads and units. With as many components as layers each layer has its own order; with fewer
the layers are sums of the same components, and only one order for all leaves them the same. What a part gives to the
stream counts by what it does to the loss there, E[(W x)^T G (W x)], x what enters the map and G the second moment of
the gradient behind it:

    units  E[h_u^2] w_u^T G w_u, w_u the unit's column of fc2
    heads  tr(W_h^T G W_h C_h), W_h the head's columns of the output projection and C_h the moment of what it gives
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ..modeling_base_lingene import RecomposingModel
from .moments import linear_maps, moments
from .sources import Source, names_classes


# What of a block goes by rows of heads or by units: part -> (kind, dimension).
ORDERED = {
    "attention.query": ("rows", 0),
    "attention.key": ("rows", 0),
    "attention.value": ("rows", 0),
    "attention.output": ("rows", 1),
    "mlp.gate": ("units", 0),
    "mlp.fc1": ("units", 0),
    "mlp.fc2": ("units", 1),
}


def order_layers(
    source: Source, pixel_values: torch.Tensor, device: str, seed: int = 0, progress: Callable = lambda count: None
) -> Source:
    """The same function, every layer's heads and units in its own order, the most important first.

    Args:
        pixel_values: calibration images, (images, channels, h, w).
        seed: of the labels drawn for the gradients.
        progress: called with the number of images done.
    """
    stock = source.stock().to(device).requires_grad_(False)
    heads, units = importances(
        stock, source.names_classes, pixel_values, source.config.num_attention_heads, seed, progress
    )
    size = source.config.hidden_size // source.config.num_attention_heads
    orders = {"rows": _rows(heads, size), "units": units.argsort(1, descending=True)}

    def block(name: str, layer: int) -> torch.Tensor:
        return _in_order(name, source.block(name, layer), {kind: order[layer] for kind, order in orders.items()})

    return replace(source, block=block)


@torch.no_grad()
def sort_width(
    model: RecomposingModel,
    pixel_values: torch.Tensor,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Reorder a constrained model's heads and units in place, in one order for all layers.

    Args:
        model: whose widths were not trained.
        pixel_values, seed, progress: as of `order_layers`.

    Raises:
        ValueError: trained widths, whose slices would no longer be what was trained.
    """
    config = model.config
    if set(config.trained_width_ratios) != {"1"}:
        raise ValueError(
            f"The widths {', '.join(config.trained_width_ratios)} were trained as they are; keep them so."
        )
    stock = model.materialise().eval().requires_grad_(False)
    classes = names_classes(config, model.has_head)
    found = importances(stock, classes, pixel_values, config.num_attention_heads, seed, progress)
    heads, units = (_shares(own) for own in found)
    rows = _rows(heads, config.hidden_size // config.num_attention_heads)[0]
    orders = {"rows": rows, "units": units[0].argsort(descending=True)}
    for name, parameter in model.named_parameters():
        if name.startswith("components."):
            parameter.copy_(_in_order(name.split(".", 2)[2], parameter, orders))


def importances(
    stock: nn.Module,
    classes: bool,
    pixel_values: torch.Tensor,
    heads: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the heads and units of every layer of a stock ViT: (l, h) and (l, m), on the CPU."""
    depth = stock.config.num_hidden_layers
    found, maps = moments(stock, classes, pixel_values, depth, seed=seed, progress=progress), linear_maps(stock, depth)
    by_unit, by_head = [], []
    for layer in range(depth):
        weight, entered, gradient = _around("mlp.fc2", layer, maps, found)
        by_unit.append(entered.diagonal() * (weight * (gradient @ weight)).sum(0))
        weight, entered, gradient = _around("attention.output", layer, maps, found)
        effect = entered * (weight.T @ gradient @ weight)
        by_head.append(effect.unflatten(0, (heads, -1)).unflatten(2, (heads, -1)).sum((1, 3)).diagonal())
    return torch.stack(by_head).cpu(), torch.stack(by_unit).cpu()


def _around(part: str, layer: int, maps: dict, found: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A map's weight (o, i), and the moments of its inputs (i, i) and of the gradients at its outputs (o, o)."""
    inputs, gradients = found[part]
    return maps[part][layer].weight, inputs[layer, :-1, :-1], gradients[layer]


def _shares(importance: torch.Tensor) -> torch.Tensor:
    """(l, n) -> (1, n): every layer's shares of its own sum added up."""
    least = torch.finfo(importance.dtype).tiny
    return (importance / importance.sum(1, keepdim=True).clamp_min(least)).sum(0, keepdim=True)


def _rows(heads: torch.Tensor, size: int) -> torch.Tensor:
    """Importances of heads (l, h) -> the order of their rows, (l, h e)."""
    order = heads.argsort(1, descending=True)
    return (order[:, :, None] * size + torch.arange(size)).flatten(1)


def _in_order(name: str, tensor: torch.Tensor, orders: dict[str, torch.Tensor]) -> torch.Tensor:
    """One block tensor with its rows of heads, or its units, in an order."""
    part, _, kind = name.rpartition(".")
    axis, dim = ORDERED.get(part, (None, 0))
    if axis is None or (kind == "bias" and dim == 1):
        return tensor
    return tensor.index_select(dim, orders[axis].to(tensor.device))
