"""The kinds of network that a bundle may be of, and those that pruning writes, and their classes: one row each."""

from typing import NamedTuple

from .configuration_base_lingene import BundleConfig
from .configuration_lingene import LinGeneConfig
from .configuration_swin_lingene import LinGeneSwinConfig
from .lingene_pruned import PrunedConfig, PrunedModel
from .lingene_swin import LinGenePrunedSwinConfig, LinGenePrunedSwinForImageClassification, LinGenePrunedSwinModel
from .lingene_vit import LinGeneViTConfig, LinGeneViTForImageClassification, LinGeneViTModel
from .modeling_base_lingene import RecomposingModel
from .modeling_lingene import LinGeneForImageClassification, LinGeneModel
from .modeling_swin_lingene import LinGeneSwinForImageClassification, LinGeneSwinModel


class Kind(NamedTuple):
    """Its configuration, and its constrained models without and with a head."""

    config: type[BundleConfig]
    encoder: type[RecomposingModel]
    classifier: type[RecomposingModel]


class PrunedKind(NamedTuple):
    """Its configuration, and its models without and with a head."""

    config: type[PrunedConfig]
    encoder: type[PrunedModel]
    classifier: type[PrunedModel]


KINDS = {
    kind.config.model_type: kind
    for kind in (
        Kind(LinGeneConfig, LinGeneModel, LinGeneForImageClassification),
        Kind(LinGeneSwinConfig, LinGeneSwinModel, LinGeneSwinForImageClassification),
    )
}
# By the family that it is of where nothing is pruned; the other families are not pruned.
PRUNED = {
    kind.config.family: kind
    for kind in (
        PrunedKind(LinGeneViTConfig, LinGeneViTModel, LinGeneViTForImageClassification),
        PrunedKind(LinGenePrunedSwinConfig, LinGenePrunedSwinModel, LinGenePrunedSwinForImageClassification),
    )
}
PRUNED_TYPES = tuple(kind.config.model_type for kind in PRUNED.values())


def model_class(config: BundleConfig, head: bool) -> type[RecomposingModel]:
    """The class that loads a bundle of this configuration, with or without a head."""
    kind = KINDS[config.model_type]
    return kind.classifier if head else kind.encoder
