"""One model measured: a size of a bundle, or a plain ViT, with a classifier or without."""

from pathlib import Path

from torch import nn
from transformers import AutoConfig, PretrainedConfig

from ..configuration_base_lingene import BUNDLE_TYPES
from ..families_lingene import layers_of, tower_config
from ..folders import read_processor
from ..found import check_holds_model
from ..images.batches import batches
from ..images.contents import pictures_id
from ..images.data import LabelledImages
from ..progress import progress_bar
from .encoders import load_model
from .exported import evaluate_exported, exported_format, exported_head
from .metrics import check_device, check_pictures, count_parameters, measure, seen_size
from .yardsticks import (
    Sets,
    Yardstick,
    check_reference,
    check_sets,
    default_metrics,
    has_classifier,
    open_sets,
    yardstick,
)


def evaluate_data(name: str | Path, asked: dict, data: str, split: str, metric: str | None = None, **options) -> dict:
    """`evaluate_model` on the set that `data` names, by the metric that its labels and the model allow; of an exported
    ONNX folder `evaluate_exported`.
    """
    format = exported_format(name)
    if format == "onnx":
        if asked:
            raise ValueError(f"`{next(iter(asked))}` chooses a size of a bundle, and {name} is an exported one.")
        sets = open_sets(data, split, metric, exported_head(name))
        return evaluate_exported(name, sets.images, metric=",".join(sets.metrics), train=sets.train, **options)
    if format not in (None, "transformers"):
        raise ValueError(f"`model` {name} is exported to {format}; export to onnx or transformers to measure it here.")
    sets = open_sets(data, split, metric, has_classifier(name, _read_config(name)))
    return evaluate_model(name, asked, sets.images, metric=",".join(sets.metrics), train=sets.train, **options)


def evaluate_model(
    name: str | Path,
    asked: dict,
    images: LabelledImages,
    batch_size: int = 64,
    device: str | None = None,
    *,
    metric: str | None = None,
    train: LabelledImages | None = None,
    reference: str | None = None,
    relabel: bool = False,
) -> dict:
    """One row, as in `sizes.json`, for a size of a bundle or for a plain ViT.

    Args:
        name: folder or name on the Hub; its own preprocessing is used.
        asked: `from_pretrained`'s size or budget keywords; for a bundle only.
        images: for accuracy with classes that the model has, in any order.
        device: default the GPU if there is one.
        metric: names, comma-separated; default accuracy for a classifier, and else k-NN with `train`, or the cosine.
        train: labelled images that k-NN and the probe know.
        reference: whom the cosine compares with; default a bundle's full size.
        relabel: for accuracy, take class i of the images for output i, whatever the names are.

    Raises:
        ValueError: a size asked of a plain model, images of other classes, no preprocessing beside it; a metric
            that the model or the images do not have.
    """
    config = _read_config(name)
    device, head = check_device(device), has_classifier(name, config)
    config, is_bundle = tower_config(config), config.model_type in BUNDLE_TYPES
    if asked and not is_bundle:
        raise ValueError(
            f"`{next(iter(asked))}` chooses a size of a bundle, and {name} is a {config.model_type} model."
        )
    sets = Sets(default_metrics(metric, head, train), images, train)
    check_sets(sets, name, head)
    if "accuracy" in sets.metrics:
        sets = sets.labelled_for(config.id2label, f"`model` {name}", relabel)
    try:
        processor = read_processor(name)
    except FileNotFoundError:
        raise ValueError(
            f"`model` {name} has no preprocessor_config.json; save its image processor beside it."
        ) from None
    check_pictures(config, processor, f"`model` {name}: its preprocessing")
    check_reference(reference, sets.metrics)
    stick, asking = None, (sets, processor, batch_size, reference, device, config)
    if sets.metrics != ("accuracy",):
        stick = yardstick(name, config.hidden_size, *asking)
    model = load_model(name, config, head, **asked)
    size = model.source_size if is_bundle else None
    row = measure(
        model,
        batches(sets.images, processor, batch_size),
        depth=layers_of(model.config),
        width_ratio=size.width_ratio if size else 1,
        num_components=size.num_components if size else None,
        stored_params=config.stored_params(size, head) if size else count_parameters(model),
        split=images.split,
        dataset=images.name,
        latency=True,
        device=device,
        progress=True,
        head=head,
        image_size=seen_size(model.config, processor),
        measures=None if stick is None else _measures(stick, model.to(device).eval()),
    )
    return row | {"pictures_id": pictures_id(images)}


def _measures(stick: Yardstick, model: nn.Module) -> dict:
    with progress_bar(total=stick.passes, desc="measuring", unit="image") as bar:
        return stick.measure(model, bar.update)


def _read_config(name: str | Path) -> PretrainedConfig:
    check_holds_model("model", name, "a bundle or a plain ViT")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"`model` {name} cannot be read: {str(error).splitlines()[0]}") from None
