"""A trained ViT into a bundle, without training.

lingene convert google/vit-base-patch16-224 --out bundle
lingene convert timm:deit3_small_patch16_224 --weights FILE --out bundle
"""

import gc
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from ..configuration_lingene import LinGeneConfig
from ..data import image_processor
from ..hub import check_empty, complete_or_absent, write_card, write_json
from ..metrics import quiet_loading
from ..modeling_lingene import LinGeneForImageClassification, LinGeneModel
from .closed_form import check_condition, closed_form
from .from_timm import PREFIX, read_timm
from .from_transformers import read_transformers
from .sources import Source, class_outputs


REPORT_FILE = "conversion.json"
LOSSLESS = 1e-4  # relative logit error above which a conversion that should lose nothing has gone wrong
CHECK_IMAGES = 4


def open_source(name: str, weights: str | None = None, prefix: str | None = None, headless: bool = False) -> Source:
    """A checkpoint by `timm:NAME` or by a transformers name or folder.

    Raises:
        ValueError: it is not there, or something of it cannot be expressed by a bundle.
    """
    if name.startswith(PREFIX):
        return read_timm(name, weights, prefix, headless)
    if weights is not None or prefix is not None:
        raise ValueError(f"`weights` and `prefix` belong to timm:NAME; {name} brings its own weights.")
    try:
        return read_transformers(name, headless)
    except OSError as error:
        raise ValueError(f"`source` {name} cannot be read: {str(error).splitlines()[0]}") from None


def convert(
    name: str,
    out: str | Path,
    *,
    weights: str | None = None,
    prefix: str | None = None,
    headless: bool = False,
    num_components: int | None = None,
    **basis,
) -> dict:
    """A bundle from a trained ViT.

    Args:
        name: `timm:NAME`, or a transformers name or folder.
        out: new or empty folder for the bundle, its card and `conversion.json`, the report.
        weights, prefix, headless: see `read_timm` and `read_transformers`.
        num_components: default as many as layers, which loses nothing.
        basis: fields of `LinGeneConfig`: preset, basis, nodes, start_degree, degree_weight, depth_map.

    Returns:
        The report.

    Raises:
        ValueError: whatever cannot be met or expressed; nothing is written.
        RuntimeError: the bundle does not give the source's logits although it should; nothing is written.
    """
    check_empty(out)
    source = open_source(name, weights, prefix, headless)
    config = bundle_config(source, num_components, basis)
    condition = check_condition(config)
    pixel_values = check_images(source)
    expected = source.reference()(pixel_values)
    gc.collect()
    components = tqdm(
        closed_form(source, config, torch.float32), "solving", len(config.component_shapes()), unit="tensor"
    )
    with complete_or_absent(out) as folder:
        write(source, config, components, folder)
        gc.collect()  # the model's tensors, before another one is loaded
        report = {
            "source": source.name,
            "depth": source.depth,
            "num_components": config.reference_components,
            "fit": "exact" if config.reference_components == source.depth else "least squares",
            "condition": condition,
            **logit_error(folder, source.head, pixel_values, expected),
            "left_out": dict(source.left_out),
        }
        if report["fit"] == "exact" and not report["relative_logit_error"] <= LOSSLESS:
            raise RuntimeError(
                f"The bundle's logits differ from those of {name} by {report['relative_logit_error']:.2g}, where "
                f"nothing should be lost; nothing was written."
            )
        write_json(folder / REPORT_FILE, report)
        write_card(folder, Path(out).resolve().name)
    return report


def bundle_config(source: Source, num_components: int | None, basis: dict) -> LinGeneConfig:
    """The source's configuration with the components and the basis asked for."""
    kept = source.config.to_dict() | {"id2label": source.config.id2label, "label2id": source.config.label2id}
    for field in ("nodes", "start_degree", "gain_offset", "depth_map", "reference_components", "depth"):
        kept.pop(field)
    given = {key: value for key, value in basis.items() if value is not None}
    count = source.depth if num_components is None else num_components
    if not isinstance(count, int) or not 1 <= count <= source.depth:
        raise ValueError(f"`num_components` must be from 1 to the {source.depth} layers, got {count!r}.")
    return LinGeneConfig(**{**kept, **given}, reference_components=count)


def check_images(source: Source) -> torch.Tensor:
    """A few random images, (b, channels, h, w), the same for every conversion of this shape."""
    size = source.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(CHECK_IMAGES, source.config.num_channels, height, width, generator=generator)


def write(
    source: Source, config: LinGeneConfig, components: Iterable[tuple[str, list[torch.Tensor]]], folder: Path
) -> None:
    """The bundle itself, with its preprocessing."""
    model_class = LinGeneForImageClassification if source.head else LinGeneModel
    with torch.device("meta"):
        model = model_class(config)
    state = {key: tensor.float() for key, tensor in source.outside.items()}
    for name, parts in components:
        state |= {f"components.{n}.{name}": part for n, part in enumerate(parts)}
    model.load_state_dict(state, strict=True, assign=True)
    model.save_pretrained(folder)
    processor = source.processor
    if processor is None:
        processor = image_processor(config.image_size)
    processor.save_pretrained(folder)


def logit_error(folder: Path, head: bool, pixel_values: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """How far a bundle's logits are from the expected ones: relative (Frobenius norms) and at most."""
    difference = outputs(folder, head, pixel_values) - expected
    relative = float(difference.norm() / expected.norm())
    return {"relative_logit_error": relative, "largest_logit_error": float(difference.abs().max())}


@torch.no_grad()
def outputs(folder: Path, head: bool, pixel_values: torch.Tensor, **size) -> torch.Tensor:
    """Logits, or class tokens, of a bundle as a user loads it."""
    model_class = LinGeneForImageClassification if head else LinGeneModel
    with quiet_loading():
        model: nn.Module = model_class.from_pretrained(folder, **size)
    return class_outputs(model.eval(), pixel_values)
