"""How alike the layers of two models are on the same pictures: a size of a bundle and its full size, or its source.

    lingene analyse similarity BUNDLE --depth 6 --data PICTURES --out DIR

Linear centred kernel alignment (CKA; Kornblith et al., ICML 2019, arXiv 1905.00414) with the unbiased estimate of
Song et al. (JMLR 2012), of the mean of a layer's tokens: 1 where one is the other turned and scaled, near 0 where
they have nothing in common. Widths may differ. Of a network of stages it is these that are compared, as they leave
their last layer.

Notation: n pictures, d and e channels, l and m layers.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from ..configuration_base_lingene import BUNDLE_TYPES
from ..extras import require
from ..folders import check_empty, complete_or_absent, read_processor, write_json
from ..found import check_holds_model
from ..images.batches import batches
from ..images.data import LabelledImages, picked
from ..images.pictures import load_pictures
from ..measuring.features import load_encoder
from ..measuring.metrics import check_device, check_pictures
from ..progress import progress_bar
from .figures import plot_similarity


RESULTS_FILE, PICTURES = "similarity.json", ("similarity.png", "similarity.svg")
LEAST_IMAGES, BATCH = 4, 32  # fewer have no unbiased estimate


def analyse_similarity(
    model: str | Path,
    out: str | Path,
    data: str,
    *,
    reference: str | Path | None = None,
    split: str = "test",
    images: int = 256,
    seed: int = 0,
    device: str | None = None,
    **asked: Any,
) -> list[list[float]]:
    """CKA of every layer, or stage, of a model with every one of a reference, as numbers and a picture.

    Args:
        model: a bundle or another encoder, by folder or name.
        out: new or empty folder for `similarity.json`, `similarity.png` and `similarity.svg`.
        data, split: pictures, as for `load_pictures`.
        reference: an encoder; default the bundle's full size.
        images: how many of the pictures, drawn by `seed`.
        device: default the GPU if there is one.
        asked: `from_pretrained`'s keywords for a size of the bundle.

    Returns:
        (l, m): rows are the model's layers; `similarity.json` says where `rows` or `columns` are stages.

    Raises:
        ValueError: a model, its preprocessing or pictures cannot be read; fewer than four pictures; a size asked of
            what is no bundle, a reference missing for it; nothing is written.
        ImportError: matplotlib is missing; the message says what to install.
    """
    check_empty(out)
    require("matplotlib")
    config, device = _config(model), check_device(device)
    bundle = config.model_type in BUNDLE_TYPES
    if not bundle and (asked or reference is None):
        way = "" if asked else ": give one by --reference"
        what = f"`{next(iter(asked))}` chooses a size of a bundle" if asked else "`reference` is by default a bundle's"
        raise ValueError(f"{what}, and {model} is a {config.model_type} model{way}.")
    other = model if reference is None else reference
    configs = config, _config(other, "reference")
    chosen = _chosen(load_pictures(data, split, others=True), images, seed)
    means = []
    for name, own, size in zip((model, other), configs, (asked, {})):
        try:
            processor = read_processor(name)
        except FileNotFoundError:
            raise ValueError(f"{name} has no preprocessor_config.json; save its image processor beside it.") from None
        check_pictures(own, processor, f"{name}: its preprocessing")
        seen = batches(chosen, processor, BATCH)
        encoder = load_encoder(name, own, **size).to(device)
        means.append(layer_means(encoder, progress_bar(seen, desc="similarity", unit="batch")))
    table = [[round(cka(one, another), 4) for another in means[1]] for one in means[0]]
    with complete_or_absent(out) as folder:
        said = {"model": str(model), "size": {key: str(value) for key, value in asked.items()}, "images": len(chosen)}
        parts = parts_of(configs[0]), parts_of(configs[1])
        said |= {"reference": str(other), "rows": parts[0], "columns": parts[1]}
        write_json(folder / RESULTS_FILE, {**said, "cka": table})
        size = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in asked.items())
        shown = Path(model).name + (f" ({size})" if size else "")
        other = Path(other).name if reference is not None else "its full size"
        for picture in PICTURES:
            plot_similarity(table, folder / picture, shown, other, parts)
    return table


def parts_of(config: PretrainedConfig) -> str:
    """What an encoder gives hidden states of, in a word."""
    return "layers" if getattr(config, "depths", None) is None else "stages"


@torch.no_grad()
def layer_means(encoder: nn.Module, seen: Iterable[dict]) -> list[torch.Tensor]:
    """The mean over tokens of what each layer, or stage, gives, (n, d) float64 on the CPU, by layer."""
    weight, parts = next(encoder.parameters()), []
    for batch in seen:
        pixel_values = batch["pixel_values"].to(weight.device, weight.dtype)
        states = encoder(pixel_values=pixel_values, output_hidden_states=True).hidden_states[1:]
        parts.append([state.mean(1).double().cpu() for state in states])
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def cka(one: torch.Tensor, other: torch.Tensor) -> float:
    """Unbiased linear CKA of (n, d) and (n, e); 0 where one of them does not vary."""
    grams = [features @ features.T for features in (one, other)]
    both, own, others = (_hsic(grams[a], grams[b]) for a, b in ((0, 1), (0, 0), (1, 1)))
    scale = (own.clamp(min=0) * others.clamp(min=0)).sqrt()
    return float(both / scale) if scale > 0 else 0.0


def _hsic(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Song et al., Eq. 5: the unbiased Hilbert-Schmidt independence criterion of two Gram matrices (n, n)."""
    count = len(one)
    one, other = (gram - torch.diag(gram.diagonal()) for gram in (one, other))
    trace = (one * other).sum()
    means = one.sum() * other.sum() / ((count - 1) * (count - 2))
    return (trace + means - 2 * (one.sum(0) @ other.sum(0)) / (count - 2)) / (count * (count - 3))


def _chosen(pictures: LabelledImages, images: int, seed: int) -> LabelledImages:
    if min(images, len(pictures)) < LEAST_IMAGES:
        raise ValueError(f"`images` must be at least {LEAST_IMAGES}; got {min(images, len(pictures))}.")
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))[:images]
    return picked(pictures, order.tolist())


def _config(name: str | Path, what: str = "model") -> PretrainedConfig:
    check_holds_model(what, name, "a bundle or an encoder")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"`{what}` {name} cannot be read: {str(error).splitlines()[0]}") from None
