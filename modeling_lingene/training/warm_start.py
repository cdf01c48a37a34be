"""Training that goes on from a bundle: its components, its shape, its preprocessing; a new head for other classes."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers.utils import IMAGE_PROCESSOR_NAME, logging

from ..components_lingene import Classifier
from ..configuration_base_lingene import BundleConfig, sides
from ..families_lingene import family_row
from ..folders import processor_or_none, read_config, read_conversion, read_training
from ..images.batches import check_patches, image_processor, made_size, normalisation, size_field
from ..images.classes import names_of, places_of, told
from ..images.data import LabelledImages
from ..kinds import model_class
from ..measuring.grids import trained_depths
from ..modeling_base_lingene import RecomposingModel
from ..progress import quiet_loading
from .decomposition import DecompositionSettings


logger = logging.get_logger(__name__)

# Learning rates at 128 images a step; tests/test_evidence.py ties all but the first to what was measured. Of what has
# learned already, with labels: that of conversions that lost little (conversion/report.py), set by hand; without.
CONVERTED_RATE, UNLABELLED_RATE = 1e-4, 3e-5
# Of new weights, times the channels (of a Swin those of the first stage): Adam's best rate falls as a network gets
# wider (muP, Yang et al. 2022, arXiv 2203.03466). Measured at 16 to 128 channels, and at 32 of a Swin.
NEW_RATES = {"vit": 0.256, "swin": 0.032}


def start_of(name: str, num_components: int = 0, dropout: float = 0.0, head: bool = True) -> RecomposingModel | None:
    """A bundle as a constrained model in float32.

    Args:
        name: folder or name on the Hub; empty for a run that starts from nothing.
        num_components: its first ones; 0 is all.
        dropout: of hidden states.
        head: whether it gets a classifier; one that is stored is left out otherwise.

    Raises:
        ValueError: it is no bundle, or holds fewer components.
    """
    if not name:
        return None
    folder = os.path.expanduser(name)
    asked = {"num_components": num_components or None, "hidden_dropout_prob": dropout}
    try:
        with quiet_loading():
            model, found = model_class(_config_of(name), head).from_pretrained(
                folder, constrained=True, dtype=torch.float32, output_loading_info=True, **asked
            )
    except OSError as error:
        raise ValueError(f"`init` {name} cannot be read: {str(error).splitlines()[0]}") from None
    if any(key.startswith("classifier.") for key in found["missing_keys"]):
        model.classifier = nn.Identity()  # `fit_to` draws one, after the run has been seeded
    return model


def new_rate(channels: int, stages: bool) -> float:
    """The learning rate of new weights.

    Args:
        channels: of the network; of one of stages those of the first.
    """
    return NEW_RATES["swin" if stages else "vit"] / channels


def suited_rate(name: str, labelled: bool) -> float:
    """The learning rate of a training that goes on from a bundle.

    Args:
        name: folder or name on the Hub.
        labelled: whether it learns from labels.
    """
    if not labelled:
        return UNLABELLED_RATE
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():  # on the Hub, and nobody knows how it was made
        return CONVERTED_RATE
    config = _config_of(name)
    trained = read_training(folder, config.weights_id)
    new = trained["init"] is None if trained is not None else read_conversion(folder) is None
    if not new:
        return CONVERTED_RATE
    stages = config.stands_for.stages
    return new_rate(config.embed_dim if stages else config.hidden_size, stages)


def _config_of(name: str) -> BundleConfig:
    try:
        return read_config(os.path.expanduser(name))
    except ValueError as error:
        raise ValueError(str(error).replace("`bundle`", "`init`", 1)) from None


def content_of(name: str) -> str:
    """What tells a bundle from another one of the same name: its weights and whatever its configuration says, fields
    at their defaults apart, so that a run goes on with a later version whose configurations have more of them.

    Raises:
        ValueError: nothing is there, or it is no bundle.
    """
    config = _config_of(name)
    fields, defaults = config.to_dict(), type(config)().to_dict()
    told = {key: value for key, value in fields.items() if key not in defaults or value != defaults[key]}
    told.pop("transformers_version", None)
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def processor_of(name: str, model: RecomposingModel) -> Any:
    """A bundle's image size, mean, standard deviation and interpolation, in the processor that is trained with.

    Where the family takes images of any size, it is the size that its own preprocessing makes. Of one channel it makes
    grey pictures.

    Raises:
        ValueError: other channels than pictures have; preprocessing of other channels, or smaller than a patch.
    """
    size = model.config.image_size
    size = size if isinstance(size, int) else tuple(size)
    own, channels = processor_or_none(os.path.expanduser(name)), model.config.num_channels
    if channels not in (1, 3):
        raise ValueError(f"`init` {name} takes {channels} channels, and pictures have 3, or as grey ones 1.")
    if own is None:
        return image_processor(size, channels)
    if _interpolates(model):
        check_patches(own.to_dict(), sides(model.config.patch_size), f"`init` {name}: its preprocessing")
        size = made_size(own.to_dict()) or size
    made = image_processor(size, channels)
    made.resample = own.resample
    for key, values in zip(("image_mean", "image_std"), normalisation(own.to_dict(), channels)):
        if len(values) != channels:
            raise ValueError(
                f"`init` {name}: `{key}` in its {IMAGE_PROCESSOR_NAME} is of {len(values)} channels, and its patches "
                f"are of {channels}; give one number for each."
            )
        setattr(made, key, values)
    return made


def resized_by(name: str, model: RecomposingModel) -> str:
    """What makes a bundle's pictures of another size, for messages: a field of its preprocessing; empty where its
    positions are for one size alone.
    """
    own = processor_or_none(os.path.expanduser(name))
    return f"`{size_field(own.to_dict())}` in {IMAGE_PROCESSOR_NAME} of `init`" if own and _interpolates(model) else ""


def _interpolates(model: RecomposingModel) -> bool:
    family = family_row(model.config)
    return family is not None and family.interpolates


def fit_to(
    model: RecomposingModel,
    images: LabelledImages,
    settings: DecompositionSettings,
    relabel: bool = False,
) -> None:
    """Make a bundle's model one for these images: their classes, and the sizes that will have been trained.

    The head keeps the rows of classes that it knows by their names, in the order of the images; where it lacks one it
    is new, and a warning says so.

    Args:
        relabel: keep the head as it is, for class i of the images in place of its own, whatever the names are.

    Raises:
        ValueError: `relabel`, and no head of as many classes.
    """
    config, names = model.config, images.class_names
    rows, why = _kept_rows(model, images, relabel)
    old, count = model.classifier, len(names)
    if rows != list(range(getattr(old, "out_features", 0))):
        model.classifier, model.num_labels = Classifier(config, count), count
        with torch.no_grad():
            for name, parameter in model.classifier.named_parameters():
                if rows is not None:
                    parameter.copy_(getattr(old, name)[rows])
                elif parameter.dim() == 2:
                    nn.init.trunc_normal_(parameter, std=config.initializer_range)
                else:
                    nn.init.zeros_(parameter)
    if rows is None and PartialState().is_main_process:
        logger.warning(f"The head is new, for the {count} classes of {images.name} ({told(names)}): {why}")
    config.id2label, config.label2id = dict(enumerate(names)), {name: index for index, name in enumerate(names)}
    fit_sizes(model, settings)


def _kept_rows(model: RecomposingModel, images: LabelledImages, relabel: bool) -> tuple[list[int] | None, str]:
    """Which rows of a model's head the classes of the images are; or None and why it has to be a new one."""
    names, known = images.class_names, getattr(model.classifier, "out_features", 0)
    if relabel and known != len(names):
        raise ValueError(
            f"`relabel` keeps the head of `init` for the classes of {images.name}, which are {len(names)}; it has "
            f"{known}. Leave it out for a new head."
        )
    if not isinstance(model.classifier, nn.Linear):
        return None, "the bundle that `init` names has none."
    own = names_of(model.config.id2label)
    if relabel or not own:
        same = known == len(names)
        return (list(range(known)), "") if same else (None, f"that of `init` has {known}.")
    places = places_of(names, own)
    if places is None:
        return None, (
            f"that of `init` knows others ({told(own)}). Where class i of the images is its output i under another "
            "name, --relabel keeps it."
        )
    return places, ""


def fit_sizes(model: RecomposingModel, settings: DecompositionSettings) -> None:
    """Write the sizes that will have been trained into a model's configuration."""
    config = model.config
    config.trained_depths = trained_depths(config, settings.depths)
    config.trained_components = list(settings.prefixes(config.reference_components))
    config.trained_width_ratios = settings.trained_widths(config.head_unit)
    config.isolated_activation = settings.isolated_activation
