"""What a run says before its first step: pictures, network, cost, length. A slip shows here, not after a night."""

from fractions import Fraction
from typing import Any

from ..configuration_base_lingene import BundleConfig
from ..images.data import LabelledImages
from ..measuring.grids import depth_key
from ..measuring.metrics import count_macs, seen_size
from ..measuring.tables import readable
from .loop import TrainingLoop


def pictures_line(
    train: LabelledImages,
    count: int,
    validation: LabelledImages | None,
    test: LabelledImages | None,
    labelled: bool = True,
) -> str:
    """The sets, with the numbers of images and of classes.

    Args:
        count: of the training images; a stream holds fewer.
        validation, test: None where there is none.
        labelled: whether classes are learnt.
    """
    names = train.class_names
    few = ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
    told = [f"{count} images{f' of {len(names)} classes ({few})' if labelled else ''} to train on"]
    told += [f"{len(validation)} held out to choose the best by"] if validation is not None else []
    told += [f"{len(test)} to measure on at the end"] if test is not None else []
    return f"pictures  {train.name}: {', '.join(told)}"


def network_lines(config: BundleConfig, head: bool, processor: Any) -> list[str]:
    """The network at full size, and the sizes that are trained with it, with what they cost."""
    seen, full = seen_size(config, processor), config.size()
    depth, width = min(config.trained_depths, key=depth_key), min(config.trained_width_ratios, key=Fraction)
    smallest = config.size(depth, width, 1)
    least, most = (readable(count_macs(config.stock_config(size), head, seen)) for size in (smallest, full))
    shape = f"{full.depth} layers from {full.num_components} components, {config.hidden_size} channels"
    shape += f", {config.hidden_size // config.head_size} heads, images of {' x '.join(map(str, seen))} pixels"
    depths, widths = (", ".join(map(str, some)) for some in (config.trained_depths, config.trained_width_ratios))
    return [
        f"network   {shape}: {readable(config.stored_params(full, head))} parameters stored, {most} MACs an image",
        f"sizes     depths {depths}, widths {widths}: {f'{least} to {most}' if least != most else most} MACs",
    ]


def length_line(loop: TrainingLoop, phases: int) -> str:
    """Phases, epochs, steps, learning rate."""
    steps = phases * loop.settings.epochs * loop.steps_per_epoch
    counted = f"{phases} phases of {loop.settings.epochs} epochs" if phases > 1 else f"{loop.settings.epochs} epochs"
    return f"training  {counted}, {steps} steps of {loop.layout.images} images, learning rate {loop.settings.rate:g}"
