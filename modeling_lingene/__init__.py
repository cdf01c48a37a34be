"""One bundle of shared components; from it a Vision Transformer of the depth, width and budget you ask for.

Importing this package registers the bundle's classes with transformers' Auto classes, so that
`AutoModelForImageClassification.from_pretrained(bundle, depth=6)` works without `trust_remote_code`.
"""

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

from .configuration_base_lingene import Size
from .configuration_lingene import LinGeneConfig
from .configuration_swin_lingene import LinGeneSwinConfig
from .lingene_swin import LinGenePrunedSwinConfig, LinGenePrunedSwinForImageClassification, LinGenePrunedSwinModel
from .lingene_vit import LinGeneViTConfig, LinGeneViTForImageClassification, LinGeneViTModel
from .modeling_base_lingene import RecomposingModel
from .modeling_lingene import LinGeneBackbone, LinGeneForImageClassification, LinGeneModel, LinGenePreTrainedModel
from .modeling_swin_lingene import LinGeneSwinForImageClassification, LinGeneSwinModel
from .recompose_lingene import coefficients, recompose


__version__ = "0.1.0"
__all__ = [
    "LinGeneBackbone",
    "LinGeneConfig",
    "LinGeneForImageClassification",
    "LinGeneModel",
    "LinGenePreTrainedModel",
    "LinGenePrunedSwinConfig",
    "LinGenePrunedSwinForImageClassification",
    "LinGenePrunedSwinModel",
    "LinGeneSwinConfig",
    "LinGeneSwinForImageClassification",
    "LinGeneSwinModel",
    "LinGeneViTConfig",
    "LinGeneViTForImageClassification",
    "LinGeneViTModel",
    "Size",
    "coefficients",
    "recompose",
]

for _config, _model, _classifier in (
    (LinGeneConfig, LinGeneModel, LinGeneForImageClassification),
    (LinGeneSwinConfig, LinGeneSwinModel, LinGeneSwinForImageClassification),
    (LinGeneViTConfig, LinGeneViTModel, LinGeneViTForImageClassification),
    (LinGenePrunedSwinConfig, LinGenePrunedSwinModel, LinGenePrunedSwinForImageClassification),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForImageClassification.register(_config, _classifier, exist_ok=True)
AutoBackbone.register(LinGeneConfig, LinGeneBackbone, exist_ok=True)


def _write_card(folder, repo_id: str, revision: str | None, token: bool | str | None) -> None:
    """`push_to_hub` of a constrained model puts our card beside it; hub.py is imported only then."""
    from .hub import write_pushed_card

    write_pushed_card(folder, repo_id, revision=revision, token=token)


RecomposingModel.write_card = staticmethod(_write_card)
