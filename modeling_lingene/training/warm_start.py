"""Training that goes on from a bundle: its components, its shape, its preprocessing; a new head for other classes."""

import hashlib
import json
import os
from typing import Any

import torch
from torch import nn

from ..components_lingene import Classifier
from ..configuration_base_lingene import BundleConfig
from ..families_lingene import FAMILIES
from ..folders import processor_or_none, read_config
from ..images.data import LabelledImages, image_processor, made_size
from ..kinds import model_class
from ..modeling_base_lingene import RecomposingModel
from ..progress import quiet_loading
from .decomposition import DecompositionSettings


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


def _config_of(name: str) -> BundleConfig:
    try:
        return read_config(os.path.expanduser(name))
    except ValueError as error:
        raise ValueError(str(error).replace("`bundle`", "`init`", 1)) from None


def content_of(name: str) -> str:
    """What tells a bundle from another one of the same name: its weights and whatever its configuration says.

    Raises:
        ValueError: nothing is there, or it is no bundle.
    """
    fields = _config_of(name).to_dict()
    fields.pop("transformers_version", None)
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


def processor_of(name: str, model: RecomposingModel) -> Any:
    """A bundle's image size, mean, standard deviation and interpolation, in the processor that is trained with.

    Where the family takes images of any size, it is the size that its own preprocessing makes.
    """
    size = model.config.image_size
    size = size if isinstance(size, int) else tuple(size)
    own = processor_or_none(os.path.expanduser(name))
    if own is None:
        return image_processor(size)
    if getattr(model.config, "stands_for", FAMILIES["vit"]).interpolates:  # a plain model's is a ViT's
        size = made_size(own.to_dict()) or size
    made = image_processor(size)
    made.image_mean, made.image_std, made.resample = own.image_mean, own.image_std, own.resample
    return made


def fit_to(model: RecomposingModel, images: LabelledImages, settings: DecompositionSettings) -> None:
    """Make a bundle's model one for these images: their classes, with a new head if there are more or fewer, and the
    sizes that will have been trained.
    """
    config, names = model.config, images.class_names
    if not isinstance(model.classifier, nn.Linear) or model.classifier.out_features != len(names):
        model.classifier = Classifier(config, len(names))
        for parameter in model.classifier.parameters():
            if parameter.dim() == 2:
                nn.init.trunc_normal_(parameter, std=config.initializer_range)
        nn.init.zeros_(model.classifier.bias)
        model.num_labels = len(names)
    config.id2label, config.label2id = dict(enumerate(names)), {name: index for index, name in enumerate(names)}
    fit_sizes(model, settings)


def fit_sizes(model: RecomposingModel, settings: DecompositionSettings) -> None:
    """Write the sizes that will have been trained into a model's configuration."""
    config = model.config
    config.trained_depths = sorted({config.num_hidden_layers, *map(config.read_depth, settings.depths)})
    config.trained_width_ratios = settings.trained_widths(config.head_unit)
    config.isolated_activation = settings.isolated_activation
