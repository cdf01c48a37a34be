"""The linear trend of weights over depth, of any model with a stack of equal layers.

    lingene analyse trend google/vit-base-patch16-224 --out trend

What LinDec starts from (Lin et al., NeurIPS 2024, Fig. 2, A.1): per kind of matrix, each layer's is flattened and
normalised, and principal component analysis takes one number per layer; those of all kinds together go through another
one. Queries and keys act by their product alone (Eq. 10), and enter as that.

Notation: l layers, k kinds of matrices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel

from ..extras import require
from ..folders import check_empty, complete_or_absent, write_json
from ..found import check_holds_model
from ..progress import progress_bar, quiet_loading
from .figures import plot_trends


LEAST_LAYERS = 3
FEW_LAYERS = 5  # with fewer, random weights too are called a line now and then
STRONG = {"correlation": 0.9, "explained": 0.5}
QUERY_AND_KEY = (("query", "key"), ("q_proj", "k_proj"), ("q_lin", "k_lin"), ("q", "k"))
FUSED = ("qkv", "Wqkv", "in_proj")
RESULTS_FILE, PICTURES = "trend.json", ("trend.png", "trend.svg")


@dataclass(frozen=True)
class Trend:
    """Of one stack.

    Args:
        values: (l,), each layer's place on the first principal axis; towards larger ones with depth.
        explained: share of the variance of the kinds' numbers that this axis holds, 0 to 1.
        correlation: Pearson's, of the places with depth, 0 to 1.
        kinds: of every kind of matrix alone, its places, share and correlation.
    """

    values: list[float]
    explained: float
    correlation: float
    kinds: dict[str, "Trend"]

    @property
    def strong(self) -> bool:
        return all(getattr(self, name) >= least for name, least in STRONG.items())

    def sentence(self) -> str:
        """What it says, in words."""
        found = f"one axis holds {100 * self.explained:.0f} % of how the layers differ"
        found += f", and their places on it correlate by {self.correlation:.2f} with depth"
        if self.strong:
            few = f", as {len(self.values)} layers now and then do by chance" * (len(self.values) < FEW_LAYERS)
            return f"Weights change along a line with depth: {found}{few}."
        return f"The trend is weak: {found}; layers are not well told from their depth by a line."


def analyse_trend(model: str | Path, out: str | Path) -> dict[str, Trend]:
    """The trend of every stack of a model, as numbers and pictures.

    Args:
        model: of transformers, by folder or name, a bundle too; its encoder without a head is read.
        out: new or empty folder for `trend.json`, `trend.png` and `trend.svg`.

    Returns:
        By the name of the stack in the model.

    Raises:
        ValueError: the model cannot be loaded, or has no stack of at least three equal layers; nothing is written.
        ImportError: scikit-learn or matplotlib is missing; the message says what to install.
    """
    check_empty(out)
    check_holds_model("model", model, "a model of transformers")
    require("sklearn.decomposition", "scikit-learn"), require("matplotlib")
    try:
        with quiet_loading():
            network = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"`model` {model} cannot be loaded: {str(error).splitlines()[0]}") from None
    found = stacks_of(network)
    if not found:
        raise ValueError(f"`model` {model} has no stack of at least {LEAST_LAYERS} equal layers with linear maps.")
    bar = progress_bar(found.items(), desc="trend", unit="stack")
    trends = {name: linear_trend([kinds_of(layer) for layer in layers]) for name, layers in bar}
    with complete_or_absent(out) as folder:
        write_json(
            folder / RESULTS_FILE, {"model": str(model), "stacks": {n: described(t) for n, t in trends.items()}}
        )
        for picture in PICTURES:
            plot_trends(trends, folder / picture, f"Weights over depth: {Path(model).name}")
    return trends


def described(trend: Trend) -> dict:
    """As JSON takes it."""
    row = {"explained": round(trend.explained, 4), "correlation": round(trend.correlation, 4)}
    row["values"] = [float(f"{value:.6g}") for value in trend.values]
    if trend.kinds:
        row |= {"sentence": trend.sentence(), "kinds": {name: described(kind) for name, kind in trend.kinds.items()}}
    return row


def stacks_of(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Lists of at least three layers that have the same linear maps, by name; none inside of another one."""
    found: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(f"{one}.") for one in found):
            continue
        layers = list(module)
        shapes = [{key: weight.shape for key, weight in _weights(layer)} for layer in layers]
        if len(layers) >= LEAST_LAYERS and shapes[0] and all(shape == shapes[0] for shape in shapes):
            found[name] = layers
    return found


def kinds_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    """The matrices of a layer by kind, each as a vector; queries and keys as their product."""
    weights = dict(_weights(layer))
    for name in [name for name in weights if name.rpartition(".")[2] in FUSED]:
        weight, inside = weights.pop(name), name.rpartition(".")[0]
        for part, own in zip(("query", "key", "value"), weight.chunk(3)):
            weights[f"{inside}.{part}".lstrip(".")] = own
    for query, key in QUERY_AND_KEY:
        for name in [name for name in weights if name.rpartition(".")[2] == query]:
            inside = name.removesuffix(query)
            if f"{inside}{key}" in weights:
                weights[f"{inside}{query} x {key}"] = weights.pop(name).T @ weights.pop(f"{inside}{key}")
    return {name: weight.flatten() for name, weight in weights.items()}


def linear_trend(layers: Sequence[dict[str, torch.Tensor]]) -> Trend:
    """The trend of a stack.

    Args:
        layers: of every layer, its matrices as vectors, by kind.
    """
    kinds = {}
    for name in layers[0]:
        rows = torch.stack([layer[name] for layer in layers]).double()
        kinds[name] = _on_first_axis(nn.functional.normalize(rows, dim=1))
    together = torch.tensor([kind.values for kind in kinds.values()], dtype=torch.float64).T
    whole = _on_first_axis(together)
    return Trend(whole.values, whole.explained, whole.correlation, kinds)


def _on_first_axis(rows: torch.Tensor) -> Trend:
    """Principal component analysis of (l, n) to one number per row."""
    decomposition = require("sklearn.decomposition", "scikit-learn")
    fitted = decomposition.PCA(n_components=1, svd_solver="full")
    values = torch.from_numpy(fitted.fit_transform(rows.numpy())[:, 0])
    depth = torch.arange(len(values), dtype=torch.float64)
    if values.std() == 0:  # layers that are all the same
        return Trend(values.tolist(), 0.0, 0.0, {})
    correlation = float(torch.corrcoef(torch.stack((values, depth)))[0, 1])
    values = values if correlation >= 0 else -values
    return Trend(values.tolist(), float(fitted.explained_variance_ratio_[0]), abs(correlation), {})


def _weights(layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of linear maps and convolutions, by the names of these; (o, i)."""
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module.weight.detach().flatten(1)
