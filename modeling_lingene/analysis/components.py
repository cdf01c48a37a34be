"""What each component of a bundle looks at: Grad-CAM of every component alone, and of the first n together.

    lingene analyse components BUNDLE --data FOLDER --out DIR

Alone, layers are a(l, n) A_n of one component, the tensors outside of the layers shared (LinDec, Eq. 1): the other
components are zeros. Maps are Grad-CAM's (Selvaraju et al., ICCV 2017, arXiv 1610.02391), by the library grad-cam, of
the patch tokens that the last layer's attention reads; of a network of stages these are few, and large.

What is explained is one score for all models, so that maps can be compared: the logit of the class that all components
together predict. Without a classifier it is how far the class token goes along what sets the picture apart: its class
token of all components, less the mean over pictures. The cosine with that token itself would not do: it is at its
maximum for all components, where its gradient is zero.

Notation: b batch, t tokens, d hidden size, h and w pixels of a picture, y and x its patches.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..bundle_lingene import Bundle
from ..configuration_base_lingene import BundleConfig, sides
from ..extras import require
from ..families_lingene import FAMILIES, has_stages
from ..folders import check_empty, complete_or_absent, read_config, read_processor, write_json
from ..images.batches import processed
from ..images.data import picked
from ..images.pictures import load_pictures
from ..kinds import model_class
from ..measuring.features import normed_tokens, prefix_tokens
from ..measuring.metrics import check_device, check_pictures
from ..modeling_base_lingene import RecomposingModel
from ..progress import progress_bar, quiet_loading
from .figures import plot_components


RESULTS_FILE, PICTURES = "components.json", ("components.png", "components.svg")
MOST_IMAGES, AVERAGED = 12, 8  # in one figure; for the mean class token
Score = Callable[[torch.Tensor], torch.Tensor]


def analyse_components(
    bundle: str | Path,
    out: str | Path,
    data: str | None = None,
    *,
    count: int = 2,
    split: str = "test",
    seed: int = 0,
    device: str | None = None,
    **asked: Any,
) -> list[dict]:
    """Maps of what components look at, as numbers and a picture.

    Args:
        bundle: folder or name on the Hub, with its image processor.
        out: new or empty folder for `components.json`, `components.png` and `components.svg`.
        data, split: pictures, as for `load_pictures`.
        count: how many of them, drawn by `seed`.
        device: default the GPU if there is one.
        asked: `from_pretrained`'s keywords for a size; its components are looked at.

    Returns:
        Per picture what is explained, and a row for each component `alone` and for the `first` n: see `_row`.

    Raises:
        ValueError: no pictures, no bundle, no such size, or one picture alone for a bundle without a classifier;
            nothing is written.
        ImportError: grad-cam or matplotlib is missing; the message says what to install.
    """
    check_empty(out)
    if not data:
        raise ValueError("`data` says which pictures are explained: give --data FOLDER or --data digits.")
    if not 1 <= count <= MOST_IMAGES:
        raise ValueError(f"`count` must be from 1 to {MOST_IMAGES} pictures; got {count}.")
    require("matplotlib"), require("pytorch_grad_cam", "grad-cam")
    config, device = read_config(bundle), check_device(device)
    head = Bundle(bundle, config).has_head
    processor, seen = _pictures(bundle, config, data, split, count if head else max(count, AVERAGED), seed)
    with quiet_loading():
        model = model_class(config, head).from_pretrained(bundle, constrained=True, **asked).eval().to(device)
    scores = _class_scores(model, seen) if head else _direction_scores(model, seen)
    seen, scores = seen[:count], scores[:count]
    found, maps = _explained(model, seen, scores)
    size = model.source_size
    said = {"bundle": str(bundle), "size": {"depth": size.depth, "width_ratio": str(size.width_ratio)}}
    said |= {"components": size.num_components, "explained": "class" if head else "direction", "data": data}
    with complete_or_absent(out) as folder:
        write_json(folder / RESULTS_FILE, {**said, "images": found})
        shown = [_shown(pixel_values, processor) for pixel_values in seen]
        for picture in PICTURES:
            plot_components(found, shown, maps, folder / picture, f"What components look at: {Path(bundle).name}")
    return found


def alone(model: RecomposingModel, component: int) -> PreTrainedModel:
    """A stock model whose layers are a(l, n) A_n of one component n, counted from 0, of the model's own size."""
    one = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (p for n, part in enumerate(one.components) if n != component for p in part.parameters()):
            parameter.zero_()
    return one.materialise()


def attention_map(
    model: PreTrainedModel, pixel_values: torch.Tensor, score: Score
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM of one picture, at the norm before the last layer's attention; later, patches act on no class token.

    Args:
        model: a stock model of one of the families.
        pixel_values: (1, c, h, w).
        score: of what the model gives, (k,) logits or what stands for the image (d,), a scalar.

    Returns:
        (h, w) from 0 to 1, all 0 where no patch speaks for it; and what the model gives.
    """
    grad_cam = require("pytorch_grad_cam", "grad-cam")
    norm = FAMILIES[model.config.model_type].parts["norm1"]
    layer = [module for name, module in model.named_modules() if name.rpartition(".")[2] == norm][-1]
    model.eval().requires_grad_(False)
    layer.requires_grad_(True)
    before, grid = prefix_tokens(model.config), _last_grid(model.config, tuple(pixel_values.shape[2:]))

    def on_grid(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, before:].transpose(1, 2).unflatten(2, grid)  # (b, d, y, x)

    cam = grad_cam.GradCAM(_Output(model), [layer], reshape_transform=on_grid)
    found = torch.from_numpy(cam(pixel_values, [score])[0])
    return found, cam.outputs[0].detach()


def _last_grid(config: PretrainedConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Patches down and across that the last layer sees of images of (height, width) pixels; every stage but the first
    halves them, rounded up.
    """
    if not has_stages(config):
        down, across = (pixels // patch for pixels, patch in zip(size, sides(config.patch_size)))
        return down, across
    halved = 1 << (len(config.depths) - 1)
    down, across = (-(-pixels // (patch * halved)) for pixels, patch in zip(size, sides(config.patch_size)))
    return down, across


class _Output(nn.Module):
    """A stock model that gives a tensor: logits (b, k), or of an encoder what stands for images (b, d)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values=pixel_values.to(self.model.device))
        return output.logits if "logits" in output else normed_tokens(self.model, output)[:, 0]


def _explained(model: RecomposingModel, seen: list, scores: list[dict]) -> tuple[list[dict], list[dict]]:
    """Rows and maps by picture; both have a list for components `alone` and one for the `first` n.

    Returns:
        rows: dicts, beside what is explained;
        maps: arrays (h, w).
    """
    ways = {"alone": lambda n: alone(model, n), "first": lambda n: model.materialise(num_components=n + 1)}
    total = model.config.size().num_components
    rows = [{**score["said"], "alone": [], "first": []} for score in scores]
    maps = [{"alone": [], "first": []} for _ in scores]
    for way, n in progress_bar([(way, n) for way in ways for n in range(total)], desc="components", unit="model"):
        one = ways[way](n)
        for pixel_values, score, row, own in zip(seen, scores, rows, maps, strict=True):
            drawn, given = attention_map(one, pixel_values, score["of"])
            own[way].append(drawn)
            row[way].append(score["answer"](given))
    for row, own in zip(rows, maps):
        for way in ways:
            row[way] = [said | _row(drawn, own["first"][-1]) for said, drawn in zip(row[way], own[way])]
    return rows, [{way: [drawn.numpy() for drawn in own[way]] for way in ways} for own in maps]


def _row(drawn: torch.Tensor, whole: torch.Tensor) -> dict[str, float | None]:
    """Numbers of a map (h, w), None where it is empty.

    Returns:
        centre: share of it in the middle half of the height and of the width, 0.25 of an even one;
        entropy: 0 of a single pixel to 1 of an even one;
        correlation: Pearson's over pixels with the map of all components.
    """
    if not drawn.any():
        return dict.fromkeys(("centre", "entropy", "correlation"))
    shares, (height, width) = drawn.double() / drawn.double().sum(), drawn.shape
    middle = shares[height // 4 : height - height // 4, width // 4 : width - width // 4]
    entropy = float(torch.special.entr(shares).sum() / torch.tensor(float(drawn.numel())).log())
    row = {"centre": round(float(middle.sum()), 4), "entropy": round(entropy, 4), "correlation": None}
    if whole.std() > 0 and drawn.std() > 0:
        both = torch.stack((drawn.flatten(), whole.flatten())).double()
        row["correlation"] = round(float(torch.corrcoef(both)[0, 1]), 4)
    return row


@torch.no_grad()
def _class_scores(model: RecomposingModel, seen: list[torch.Tensor]) -> list[dict]:
    """Per picture the logit of the class that all components predict, and what a row says of logits."""
    scores, output, names = [], _Output(model.materialise().eval()), model.config.id2label
    for pixel_values in seen:
        wanted = int(output(pixel_values)[0].argmax())

        def answer(logits: torch.Tensor, wanted: int = wanted) -> dict:
            shares, best = logits.float().softmax(0), int(logits.argmax())
            row = {"class": names[best], "score": round(float(shares[best]), 4)}
            return {**row, "explained_score": round(float(shares[wanted]), 4)}

        said = {"explained": names[wanted]}
        scores.append({"of": lambda logits, wanted=wanted: logits[wanted], "answer": answer, "said": said})
    return scores


@torch.no_grad()
def _direction_scores(model: RecomposingModel, seen: list[torch.Tensor]) -> list[dict]:
    """Per picture the class token along what sets it apart, and its cosine with that of all components."""
    output, scores = _Output(model.materialise().eval()), []
    tokens = torch.cat([output(pixel_values) for pixel_values in seen])
    apart = tokens - tokens.mean(0)
    if float(apart.norm(dim=1).min()) <= 1e-5 * float(tokens.norm(dim=1).max()):
        raise ValueError(
            "`data` must hold at least two pictures that differ: without a classifier, what sets one apart is read."
        )
    for token, direction in zip(tokens, nn.functional.normalize(apart, dim=1)):

        def answer(own: torch.Tensor, token: torch.Tensor = token) -> dict:
            return {"score": round(float(nn.functional.cosine_similarity(own, token, dim=0)), 4)}

        of = lambda own, direction=direction: own @ direction  # noqa: E731
        scores.append({"of": of, "answer": answer, "said": {"explained": None}})
    return scores


def _pictures(
    bundle: str | Path, config: BundleConfig, data: str, split: str, count: int, seed: int
) -> tuple[Any, list[torch.Tensor]]:
    """The bundle's image processor and pictures as it makes them, each (1, c, h, w)."""
    try:
        processor = read_processor(bundle)
    except FileNotFoundError:
        raise ValueError(f"{bundle} has no preprocessor_config.json; save its image processor beside it.") from None
    check_pictures(config, processor, f"{bundle}: its preprocessing")
    pictures = load_pictures(data, split, others=True)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))[:count]
    chosen, seen = picked(pictures, order.tolist()), []
    for place in range(len(chosen)):
        picture, problem = chosen.decoded(place)
        if picture is None:
            raise ValueError(f"`data` must be pictures that decode: {problem}.")
        seen.append(processed(processor, [picture]))
    return processor, seen


def _shown(pixel_values: torch.Tensor, processor: Any) -> Any:
    """A picture as the model sees it, an array (h, w, 3) from 0 to 1, from (1, c, h, w)."""
    picture = pixel_values[0].float()
    if getattr(processor, "do_normalize", False):
        mean, std = (torch.tensor(getattr(processor, name)).view(-1, 1, 1) for name in ("image_mean", "image_std"))
        picture = picture * std + mean
    return picture.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()
