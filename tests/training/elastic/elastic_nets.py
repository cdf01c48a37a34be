"""Sizes cut and summed by hand, and short runs: what the tests of elastic training share.

References: stock ViTs whose weights are summed, and cut by whole heads, here.
"""

import json
from fractions import Fraction
from pathlib import Path

import torch
from torch.func import functional_call
from transformers import ViTConfig, ViTForImageClassification

import helpers
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification
from modeling_lingene.training.decomposition import DecompositionSettings


DEPTH, DEPTHS, COMPONENTS = 6, (3, 4), 5


QUARTERS = ("1/4", "1/2", "3/4")


# What each dimension of a bundle's tensor counts; None is not cut, biases have the first one.
AXES = {
    "embeddings.cls_token": (None, None, "channels"),
    "embeddings.position_embeddings": (None, None, "channels"),
    "embeddings.patch_embeddings": ("channels",),
    "layernorm": ("channels",),
    "norm1": ("channels",),
    "norm2": ("channels",),
    "attention.query": ("heads", "channels"),
    "attention.key": ("heads", "channels"),
    "attention.value": ("heads", "channels"),
    "attention.output": ("channels", "heads"),
    "mlp.fc1": ("units", "channels"),
    "mlp.fc2": ("channels", "units"),
    "classifier": (None, "channels"),
}


def elastic(**fields) -> DecompositionSettings:
    """One network a step, if nothing else is asked for."""
    return DecompositionSettings("elastic", **{"networks": 1, **fields})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


# The reference: one network of a bundle.


def kept_places(config: LinGeneConfig, ratio: Fraction, trailing: bool) -> dict[str, list[int]]:
    """The channels, the rows of whole heads and the MLP units of a width: the first of each, or the last."""

    def some(count: int) -> list[int]:
        kept = count * ratio
        assert kept.denominator == 1
        return list(range(count))[-int(kept) :] if trailing else list(range(count))[: int(kept)]

    rows = torch.arange(config.hidden_size).view(config.num_attention_heads, -1)
    heads = rows[some(config.num_attention_heads)].flatten().tolist()
    return {"channels": some(config.hidden_size), "heads": heads, "units": some(config.intermediate_size)}


def written_out(
    parameters: dict[str, torch.Tensor],
    config: LinGeneConfig,
    pixel_values: torch.Tensor,
    depth: int = DEPTH,
    num_components: int = COMPONENTS,
    width_ratio: str = "1",
    trailing: bool = False,
) -> torch.Tensor:
    """Logits of one network in float64: layers summed from the bundle's parameters (LinDec, Eq. 1), cut, and put into
    a stock ViT; differentiable in the parameters.
    """
    ratio = Fraction(width_ratio)
    places = kept_places(config, ratio, trailing)
    shape = {"hidden_size": "channels", "intermediate_size": "units"}
    fields = {name: len(places[axis]) for name, axis in shape.items()}
    fields |= {"num_attention_heads": int(config.num_attention_heads * ratio), "num_hidden_layers": depth}
    same = "image_size patch_size layer_norm_eps num_labels".split()
    with torch.device("meta"):  # its own weights are not used
        vit = ViTForImageClassification(ViTConfig(**fields, **{name: getattr(config, name) for name in same})).eval()
    table = torch.from_numpy(helpers.numpy_table(config, depth, num_components))
    own = {stock: part for part, stock in helpers.STOCK_PARTS.items()}
    tensors = {}
    for key in vit.state_dict():
        part, _, kind = key.removeprefix("vit.").replace(".projection", "").rpartition(".")
        if part.startswith("layers."):
            _, layer, part = part.split(".", 2)
            part = own[part]
            parts = [parameters[f"components.{n}.{part}.{kind}"].double() for n in range(num_components)]
            tensor = torch.einsum("n,n...->...", table[int(layer)], torch.stack(parts))
            if part.startswith("norm") and kind == "weight":
                tensor = tensor + config.gain_offset
        else:
            tensor = parameters[f"{part}.{kind}"].double()
        for dim, axis in enumerate(AXES.get(part) or AXES[f"{part}.{kind}"]):
            if axis and dim < tensor.dim():
                tensor = tensor.index_select(dim, torch.tensor(places[axis]))
        tensors[key] = tensor
    return functional_call(vit, tensors, (pixel_values.double(),)).logits


def isolated(config: LinGeneConfig, ratio: str) -> bool:
    """Whether a width of the isolated activation is the trailing one, by the definition."""
    smallest = min(map(Fraction, config.trained_width_ratios))
    return config.isolated_activation and smallest < Fraction(ratio) < 1


# Isolated activation, in every way from components to logits.


ISOLATED = {"trained_width_ratios": ["1/4", "1/2", "3/4", "1"], "isolated_activation": True}


def constrained(folder: Path, **keywords) -> LinGeneForImageClassification:
    return LinGeneForImageClassification.from_pretrained(folder, constrained=True, **keywords).eval()
