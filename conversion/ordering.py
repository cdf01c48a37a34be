"""What matters first: one order of channels, heads and MLP units for all layers, so that slices start better (ours).

A width keeps the leading channels, heads and units. Any order of them is the same full model, as long as every layer
has the same one, because the layers are sums of the same components. So

    units     by what their outputs do to the loss, E[h_u^2] w_u^T G w_u, w_u the unit's column of fc2 and G the second
              moment of the gradient there, each layer's shares added up
    heads     by what is lost without them in any layer: the distance of the answers
    channels  by their variance in what the LayerNorms see
"""

from collections.abc import Callable

import torch
from torch import nn

from ..modeling_lingene import LinGenePreTrainedModel
from .calibration import class_outputs_of, distance
from .moments import linear_maps, moments


@torch.no_grad()
def sort_width(
    model: LinGenePreTrainedModel,
    pixel_values: torch.Tensor,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Reorder a constrained model's channels, heads and units in place, the most important first. Exact.

    Args:
        model: whose widths were not trained.
        pixel_values: calibration images.
        seed: of the labels drawn for the gradients.
        progress: called once per head, and twice more.

    Raises:
        ValueError: trained widths, whose slices would no longer be what was trained.
    """
    config = model.config
    if set(config.trained_width_ratios) != {"1"}:
        raise ValueError(
            f"The widths {', '.join(config.trained_width_ratios)} were trained as they are; keep them so."
        )
    stock = model.materialise().eval().requires_grad_(False)
    maps, head_size = linear_maps(stock, config.num_hidden_layers), config.hidden_size // config.num_attention_heads
    found = moments(stock, model.has_head, pixel_values, config.num_hidden_layers, seed=seed)
    units = _unit_shares(maps["mlp.fc2"], *found["mlp.fc2"]).argsort(descending=True)
    progress()
    channels = _channel_variance(stock, pixel_values).argsort(descending=True)
    progress()
    expected = class_outputs_of(stock, pixel_values)
    lost = []
    for head in range(config.num_attention_heads):
        columns = slice(head * head_size, (head + 1) * head_size)
        kept = [one.weight[:, columns].clone() for one in maps["attention.output"]]
        for one in maps["attention.output"]:
            one.weight[:, columns] = 0
        lost.append(distance(class_outputs_of(stock, pixel_values), expected, model.has_head))
        for one, weight in zip(maps["attention.output"], kept):
            one.weight[:, columns] = weight
        progress()
    heads = torch.tensor(lost).argsort(descending=True)
    rows = (heads[:, None] * head_size + torch.arange(head_size)).flatten()
    orders = {"channels": channels, "rows": rows, "units": units}
    for name, parameter in model.named_parameters():
        for dim, kind in axes(name).items():
            parameter.copy_(parameter.index_select(dim, orders[kind].to(parameter.device)))


def axes(name: str) -> dict[int, str]:
    """What the dimensions of a bundle's tensor are that shrink with the width: channels, rows of heads, units."""
    *_, part, kind = name.split(".")
    if name.startswith("embeddings."):
        return {0: "channels"} if "patch_embeddings" in name else {2: "channels"}
    if name.startswith("classifier."):
        return {} if kind == "bias" else {1: "channels"}
    if part in ("query", "key", "value", "fc1"):
        out = "units" if part == "fc1" else "rows"
        return {0: out, 1: "channels"} if kind == "weight" else {0: out}
    if part in ("output", "fc2") and kind == "weight":
        return {0: "channels", 1: "units" if part == "fc2" else "rows"}
    return {0: "channels"}


def _unit_shares(maps: list[nn.Linear], inputs: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """(units,), every layer's shares of its own sum added up."""
    total = 0.0
    for one, entered, gradient in zip(maps, inputs, gradients):
        weight = one.weight.float()
        effect = entered.diagonal()[:-1] * (weight * (gradient @ weight)).sum(0)
        total = total + effect / effect.sum().clamp_min(torch.finfo(effect.dtype).tiny)
    return total


def _channel_variance(stock: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """(channels,), of the centred states that enter the LayerNorms, each LayerNorm's shares added up."""
    norms = [module for module in stock.modules() if isinstance(module, nn.LayerNorm)]
    sums = [0.0] * len(norms)

    def remember(place: int) -> Callable:
        def hook(module: nn.LayerNorm, inputs: tuple, output: torch.Tensor) -> None:
            state = inputs[0].float()
            sums[place] = sums[place] + (state - state.mean(-1, keepdim=True)).square().flatten(0, -2).sum(0)

        return hook

    hooks = [norm.register_forward_hook(remember(place)) for place, norm in enumerate(norms)]
    try:
        class_outputs_of(stock, pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(one / one.sum() for one in sums)
