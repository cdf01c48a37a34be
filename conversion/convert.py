"""A trained ViT into a bundle, without training.

lingene convert google/vit-base-patch16-224 --out bundle
lingene convert timm:deit3_small_patch16_224 --weights FILE --out bundle
"""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from transformers.utils import IMAGE_PROCESSOR_NAME, logging

from ..configuration_base_lingene import BundleConfig, check_count
from ..extras import require
from ..families_lingene import image_token_name
from ..folders import (
    check_empty,
    complete_or_absent,
    write_json,
)
from ..found import TIMM, check_holds_model, public_name, what_is, wrong_kind
from ..hub import write_card
from ..images.batches import check_patches, image_processor
from ..kinds import model_class
from ..measuring.curves import plot_conversion
from ..measuring.metrics import check_device
from ..progress import progress_bar
from ..readout import chained, read_readout, write_readout
from ..saving_lingene import CONVERSION_FILE, CONVERSION_PICTURE
from .calibrated import Calibration
from .calibration import calibration_images, class_outputs_of
from .closed_form import check_condition, closed_form, condition
from .fitting import FITS, ROUNDS
from .from_timm import read_timm
from .from_transformers import read_transformers
from .moments import check_looked_into
from .ordering import order_layers
from .report import TEACHER, advice, logit_error, outputs
from .rotation import check_widths, rotated
from .sources import Source, changed


logger = logging.get_logger(__name__)

LOSSLESS = 1e-4  # relative logit error above which a conversion that should lose nothing has gone wrong
CHECK_IMAGES = 4
TRAINED = "a trained ViT of transformers, of which a bundle can be made"


def open_source(
    name: str | Path,
    weights: str | None = None,
    prefix: str | None = None,
    headless: bool = False,
    stages: Sequence[int] = (),
    model_args: Mapping[str, Any] | None = None,
) -> Source:
    """A checkpoint by `timm:NAME` or by a transformers name or folder.

    Raises:
        ValueError: it is not there, or something of it cannot be expressed by a bundle.
    """
    name = str(name)
    if name.startswith(TIMM):
        return read_timm(name, weights, prefix, headless, stages, model_args)
    if weights is not None or prefix is not None or model_args:
        raise ValueError(f"`weights`, `prefix` and `model_args` belong to timm:NAME; {name} brings its own weights.")
    check_holds_model("source", name, TRAINED)
    if what_is(name)[0] in ("a bundle", "a pruned model"):
        raise wrong_kind("source", name, TRAINED)
    try:
        return read_transformers(name, headless, stages)
    except OSError as error:
        raise ValueError(f"`source` {name} cannot be read: {str(error).splitlines()[0]}") from None


def convert(
    name: str | Path,
    out: str | Path,
    *,
    weights: str | None = None,
    prefix: str | None = None,
    headless: bool = False,
    stages: Sequence[int] = (),
    model_args: Mapping[str, Any] | None = None,
    num_components: int | None = None,
    calibrate: str | Path | None = None,
    images: int = 512,
    fit: str | None = None,
    rounds: int | None = None,
    depths: Sequence[int] = (),
    sort: bool = False,
    widths: Sequence[str | float] = (),
    device: str | None = None,
    seed: int = 0,
    **basis,
) -> dict:
    """A bundle from a trained ViT.

    Args:
        name: `timm:NAME`, or a transformers name or folder.
        out: new or empty folder for the bundle, its card and `conversion.json`, the report.
        weights, prefix, headless, stages, model_args: see `read_timm` and `read_transformers`.
        num_components: default as many as layers, which loses nothing; of several stages as many as the deepest has.
        calibrate, images: unlabelled images, a folder of them or what `load_images` takes; and how many of them to
            fit. 128 others judge a fit; of a set without so many, what is left of it, or a fifth.
        fit: with fewer components than layers: one of FITS; default the last with images, without them the first.
        rounds: of coefficients and components in turn, for the fits that learn both; default ROUNDS of `fitting`.
        depths: layers to choose on the images, for each of these depths; written to `depth_rows`.
        sort: turn the channels so that the leading ones keep most of what passes on the images, and put the heads and
            MLP units that matter most first (of every layer by itself where there are as many components as layers),
            so that narrower widths are a better start for training. Exact at full width; tokens, though not logits,
            are then in another basis, and `readout.safetensors` brings them back.
        widths: at which `sort` has to be good; default every legal one.
        device: for the calibration; default the GPU if there is one.
        seed: of the choice of images and of the labels drawn.
        basis: fields of `LinGeneConfig`: preset, basis, nodes, start_degree, degree_weight, depth_map.

    Returns:
        The report.

    Raises:
        ValueError: whatever cannot be met or expressed; nothing is written.
        RuntimeError: the bundle does not give the source's logits although it should; nothing is written.
    """
    check_empty(out)
    name, device = str(name), check_device(device)
    source = open_source(name, weights, prefix, headless, stages, model_args)
    if weights is None:
        source = replace(source, turned_before=read_readout(name))
    config = bundle_config(source, num_components, basis)
    fit = check_asked(config, fit, calibrate, depths, (images, 1 if rounds is None else rounds), sort)
    ratios = check_widths(config, widths, sort)
    pixel_values, left_out = choose_images(source, calibrate, images, seed, judged=fit != "exact")
    answers = ask(source, pixel_values)
    if fit != "exact":  # which is compared when it is written
        check_expressed(source, name, answers)
    if sort:
        source = in_order(source, pixel_values, ratios, fit, device, seed)
        config = changed(config, qkv_bias=True, turned=True)
    calibration = None if pixel_values is None else Calibration(source, pixel_values, device, seed, left_out)
    config, components = solve_all(source, config, fit, rounds or ROUNDS.get(fit, 1), calibration)
    with complete_or_absent(out) as folder:
        write(source, config, components, folder)
        if sort and fit != "exact":
            calibration.sort(folder, config)
        report = describe(name, source, config, fit) | compare(folder, name, source, fit, answers)
        if calibration is not None:
            report["calibration"] = calibration.measured(folder, config, depths)
        publish(folder, report, name, name if weights is None else TEACHER, Path(out))
    return report


def check_asked(
    config: BundleConfig,
    fit: str | None,
    calibrate: str | None,
    depths: Sequence[int],
    counts: tuple[int, int],
    sort: bool,
) -> str:
    """The fit by name, as `check_fit` gives it, once nothing is left to refuse; a warning where there are better ones.

    Raises:
        ValueError: as `check_fit`; sorting without images; coefficients that cannot be solved for components.
    """
    if config.stands_for.stages and (calibrate is not None or sort or depths or fit not in (None, "weights")):
        word = "sort" if sort else "depths" if depths else "calibrate" if calibrate is not None else "fit"
        raise ValueError(
            f"`{word}` is for networks whose layers are all of one width, and this one has stages: its components are "
            "solved for from the weights alone, which loses nothing with as many as layers."
        )
    fit = check_fit(config, fit, calibrate, depths, counts)
    if sort and not config.stands_for.turns:
        raise ValueError(
            f"`sort` turns the stream, and a {config.family} has a norm before its blocks, or a layer that pools its "
            "tokens, which would see another: leave it out."
        )
    if sort and calibrate is None:
        raise ValueError("`sort` needs images to calibrate on: give --calibrate DATA.")
    if calibrate is not None:
        check_looked_into(config)
    check_condition(config)
    if calibrate is None and fit != "exact" and not config.stands_for.stages:
        logger.warning(
            "Least squares on weights knows no images; a few hundred, with --calibrate DATA, make a better fit."
        )
    return fit


def choose_images(source: Source, calibrate: str | Path | None, images: int, seed: int, judged: bool) -> tuple:
    """Calibration images as the source takes them, (images, channels, h, w), and those left out to judge the fit; None
    twice without any."""
    if calibrate is None:
        return None, None
    require("matplotlib"), require("scipy", "scikit-learn")  # not at the end of an hour
    processor = source.processor or image_processor(source.config.image_size, source.config.num_channels)
    found = calibration_images(str(calibrate), processor, images, seed, judged)
    check_calibration(source, tuple(found[0].shape[-2:]))
    return found


def check_calibration(source: Source, size: tuple[int, int]) -> None:
    """Refuse images, (height, width), that the source does not take as its preprocessing makes them."""
    own, patch = (
        (one, one) if isinstance(one, int) else tuple(one)
        for one in (source.config.image_size, source.config.patch_size)
    )
    if not source.config.stands_for.interpolates and size != own:
        raise ValueError(
            f"`calibrate`: the preprocessing of {source.name} makes images of {size[0]}x{size[1]}, and its positions "
            f"are for {own[0]}x{own[1]}; a {source.config.family} takes no others: set `size` in its "
            f"{IMAGE_PROCESSOR_NAME} to that."
        )
    made = {"size": {"height": size[0], "width": size[1]}}
    check_patches(made, patch, f"`calibrate`: the preprocessing of {source.name}")


def in_order(
    source: Source, pixel_values: torch.Tensor, widths: Sequence[Fraction], fit: str, device: str, seed: int
) -> Source:
    """The same function with channels turned for the widths; and, where layers are kept as they are, each layer's
    heads and units in its own order.
    """
    source = rotated(source, pixel_values, widths, device)
    if fit != "exact":
        return source
    with progress_bar(total=len(pixel_values), desc="sorting", unit="image") as bar:
        return order_layers(source, pixel_values, device, seed, bar.update)


def ask(source: Source, pixel_values: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, str]:
    """A few images, the source's answers to them, and what they are: calibration images, or random ones where there
    are none of the size that the source was trained for.
    """
    images, told = check_images(source), "random images"
    if pixel_values is not None and pixel_values.shape[1:] == images.shape[1:]:
        images, told = pixel_values[:CHECK_IMAGES], "calibration images"
    expected = source.reference()(images)
    gc.collect()  # the reference model, before another one is loaded
    return images, expected, told


def check_expressed(source: Source, name: str, answers: tuple[torch.Tensor, torch.Tensor, str]) -> None:
    """Refuse a source that is another function than its layers are in a bundle, where the errors of a fit would hide
    it.

    Args:
        answers: as `ask` gives them.

    Raises:
        RuntimeError: too far for what loses nothing.
    """
    images, expected, _ = answers
    check_lossless(source, name, logit_error(class_outputs_of(source.stock(), images), expected))
    gc.collect()  # the model, before another one is loaded


def check_lossless(source: Source, name: str, found: Mapping[str, float]) -> None:
    """Refuse what differs although nothing should be lost.

    Args:
        found: of `logit_error`.
    """
    if not found["relative_logit_error"] <= LOSSLESS:
        raise RuntimeError(
            f"The bundle's {_compared(source)}s differ from those of {name} by {found['relative_logit_error']:.2g}, "
            f"where nothing should be lost; nothing was written."
        )


def solve_all(
    source: Source, config: BundleConfig, fit: str, rounds: int, calibration: Calibration | None
) -> tuple[BundleConfig, Iterable]:
    """The configuration that the fit needs, and its components, one tensor at a time."""
    if fit not in ("exact", "weights"):
        return calibration.fitted(config, fit, rounds)
    solved = closed_form(source, config, torch.float32)
    return config, progress_bar(solved, desc="solving", total=len(config.component_shapes()), unit="tensor")


def describe(name: str, source: Source, config: BundleConfig, fit: str) -> dict:
    """What was converted, how, and what of it was left out."""
    return {
        "source": public_name(name),
        "depth": source.depth,
        "num_components": config.reference_components,
        "fit": fit,
        "condition": max(condition(config.coefficients(config.size(), stack)) for stack in config.stacks),
        "compared": _compared(source),
        "turned": source.readout is not None,  # against the checkpoint
        "left_out": dict(source.left_out),
    }


def _compared(source: Source) -> str:
    """What of two models is compared, in words."""
    return "logit" if source.head else image_token_name(source.config)


def compare(
    folder: Path, name: str, source: Source, fit: str, answers: tuple[torch.Tensor, torch.Tensor, str]
) -> dict[str, Any]:
    """How far the bundle that was written is from the source on a few images, as `ask` gives them.

    Raises:
        RuntimeError: too far for a fit that loses nothing.
    """
    gc.collect()  # the model's tensors, before another one is loaded
    images, expected, told = answers
    answered = outputs(folder, source.head, images)
    if source.readout is not None and not source.head:
        matrix, bias = source.readout
        answered = (answered.double() @ matrix.T + bias).float()
    found = logit_error(answered, expected)
    if fit == "exact":
        check_lossless(source, name, found)
    return {**found, "checked_on": told}


def publish(folder: Path, report: dict, name: str, teacher: str, out: Path) -> None:
    """The report with its advice, its figure where images were measured, and the card, into the folder.

    All of them are pushed with the bundle, and call folders by their names alone.
    """
    if "calibration" in report:
        rows = report["calibration"]["rows"]
        plot_conversion(rows, folder / CONVERSION_PICTURE, report["compared"], f"{Path(name).name} as a bundle")
    report["advice"] = advice(report, public_name(teacher), out.resolve().name)
    write_json(folder / CONVERSION_FILE, report)
    write_card(folder, title=out.resolve().name)


def check_fit(
    config: BundleConfig, fit: str | None, calibrate: str | None, depths: Sequence[int], counts: tuple[int, int]
) -> str:
    """The fit by name; `exact` where there are as many components as layers.

    Raises:
        ValueError: an unknown fit, one without its images, depths that cannot be chosen.
    """
    if fit is not None and fit not in FITS:
        raise ValueError(f"`fit` must be one of {', '.join(FITS)}, got {fit!r}.")
    for word, count in zip(("images", "rounds"), counts):
        check_count(word, count)
    if calibrate is None and (depths or fit not in (None, "weights")):
        raise ValueError(f"`{'depths' if depths else 'fit'}` needs images to calibrate on: give --calibrate DATA.")
    for depth in depths:
        if check_count("depths", depth) >= config.reference_depth:
            raise ValueError(f"`depths` must be from 1 to below the {config.reference_depth} layers, got {depth!r}.")
    if depths and config.depth_map != "select":
        raise ValueError("`depths` chooses layers to select, and the depth map is 'resample'; leave one of them out.")
    if config.reference_components == config.most_components:
        if fit not in (None, "weights"):
            raise ValueError(f"`fit` {fit!r} is for fewer components than layers; with as many nothing is lost.")
        return "exact"
    return fit or (FITS[-1] if calibrate else FITS[0])


def bundle_config(source: Source, num_components: int | None, basis: dict) -> BundleConfig:
    """The source's configuration with the components and the basis asked for."""
    kept = source.config.to_dict() | {"id2label": source.config.id2label, "label2id": source.config.label2id}
    for field in ("nodes", "start_degree", "gain_offset", "depth_map", "reference_components", "depth"):
        kept.pop(field)
    given, most = {key: value for key, value in basis.items() if value is not None}, source.config.most_components
    count = most if num_components is None else num_components
    if check_count("num_components", count) > most:
        raise ValueError(f"`num_components` must be from 1 to the {most} layers, got {count!r}.")
    stored = {"reference_components": count, "trained_components": [count]}
    stored["turned"] = source.config.turned or source.turned_before is not None
    return type(source.config)(**{**kept, **given, **stored})


def check_images(source: Source) -> torch.Tensor:
    """A few random images, (b, channels, h, w), the same for every conversion of this shape."""
    size = source.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(CHECK_IMAGES, source.config.num_channels, height, width, generator=generator)


def write(
    source: Source, config: BundleConfig, components: Iterable[tuple[str, list[torch.Tensor]]], folder: Path
) -> None:
    """The bundle itself, with its preprocessing."""
    with torch.device("meta"):
        model = model_class(config, source.head)(config)
    state = {key: tensor.float() for key, tensor in source.outside.items()}
    for name, parts in components:
        state |= {f"components.{n}.{name}": part for n, part in enumerate(parts)}
    model.load_state_dict(state, strict=True, assign=True)
    model.save_pretrained(folder)
    processor = source.processor
    if processor is None:
        logger.warning(
            "The source has no preprocessing: its pictures are taken to have mean and deviation 0.5. Where they have "
            "others, give it its preprocessor_config.json, and convert again."
        )
        processor = image_processor(config.image_size, config.num_channels)
    processor.save_pretrained(folder)
    write_readout(folder, chained(source.readout, source.turned_before))
