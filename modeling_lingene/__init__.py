"""One bundle of shared components; from it a Vision Transformer of the depth, width and budget you ask for.

Importing this package registers the bundle's classes with transformers' Auto classes, so that
`AutoModelForImageClassification.from_pretrained(bundle, depth=6)` works without `trust_remote_code`.
"""

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

from .configuration_lingene import LinGeneConfig, Size
from .modeling_lingene import LinGeneBackbone, LinGeneForImageClassification, LinGeneModel, LinGenePreTrainedModel
from .recompose_lingene import coefficients, recompose


__version__ = "0.1.0"
__all__ = [
    "LinGeneBackbone",
    "LinGeneConfig",
    "LinGeneForImageClassification",
    "LinGeneModel",
    "LinGenePreTrainedModel",
    "Size",
    "coefficients",
    "recompose",
]

AutoConfig.register(LinGeneConfig.model_type, LinGeneConfig, exist_ok=True)
AutoModel.register(LinGeneConfig, LinGeneModel, exist_ok=True)
AutoModelForImageClassification.register(LinGeneConfig, LinGeneForImageClassification, exist_ok=True)
AutoBackbone.register(LinGeneConfig, LinGeneBackbone, exist_ok=True)


def _write_card(folder, repo_id: str) -> None:
    """`push_to_hub` of a constrained model puts our card beside it; hub.py is imported only then."""
    from .hub import write_card

    write_card(folder, repo_id)


LinGenePreTrainedModel.write_card = staticmethod(_write_card)
