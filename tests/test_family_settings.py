"""Laws of what a family takes: settings of its configuration, classes, images; the rest is refused by name.

Against stock models, every parameter drawn anew.

    pytest tests/test_family_settings.py
"""

from itertools import combinations

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from modeling_lingene import LinGeneConfig, LinGeneModel
from modeling_lingene.conversion.convert import convert
from test_families import CLASSIFIERS, DINO, PLAIN, far, pixels, saved, stock


OWN = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96, "depth": 2}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"family": "swin"}, "`family` in LinGeneConfig must be one of 'vit', 'dinov2'"),
        ({"hidden_act": "sine"}, "`hidden_act` in LinGeneConfig must be one of .* got 'sine'"),
        ({"family": "vit", "drop_path_rate": 0.1}, "`drop_path_rate` 0.1 is no setting of the family vit"),
        ({"family": "dinov2", "num_register_tokens": 4}, "`num_register_tokens` 4 is no setting of the family dinov2"),
        ({"family": "dinov2_with_registers"}, "`num_register_tokens`.*at least 1"),
        ({"family": "dinov3_vit", "rope_theta": 0.5}, "`rope_theta` in LinGeneConfig must be a number from 1 .*0.5"),
        ({"family": "dinov3_vit", "pos_embed_rescale": 0.5}, "`pos_embed_rescale` in LinGeneConfig must be .*0.5"),
        ({"family": "dinov3_vit", "num_register_tokens": 4, "num_attention_heads": 8}, "heads of a multiple of 4.*48"),
        ({"family": "dinov3_vit", "num_register_tokens": 4, "qkv_bias": False}, "`qkv_bias`.*dinov3_vit is True"),
        ({"family": "dinov2", "rope_theta": 10.0}, "`rope_theta` 10.0 is no setting of the family dinov2"),
        ({"family": "dinov2", "pos_embed_rescale": 2.0}, "`pos_embed_rescale` 2.0 is no setting"),
        ({"family": "dinov2", "intermediate_size": 100}, "`intermediate_size`.*whole multiple.*100 of 48"),
        ({"family": "dinov2", "image_size": [28, 42]}, "`image_size`.*square.*28x42"),
        ({"family": "dinov2", "patch_size": (7, 14)}, "`patch_size`.*square.*7x14"),
    ],
)
def test_what_a_family_cannot_be_is_refused(fields, named):
    """By name, where the configuration is made: not by a stock class after weights were read."""
    with pytest.raises(ValueError, match=named):
        LinGeneConfig(**{**OWN, **fields})


@pytest.mark.parametrize("family", ["dinov2_with_registers", "dinov3_vit"])
def test_registers_of_new_weights_are_not_one_another(family):
    """They have no positions: those that begin alike get the same gradients for ever."""
    tokens = LinGeneModel(LinGeneConfig(**OWN, num_register_tokens=3, family=family)).embeddings.register_tokens[0]
    assert min((one - other).abs().max() for one, other in combinations(tokens, 2)) > 1e-3


@torch.no_grad()
def test_whole_numbers_are_as_good_as_others_for_rotary_positions(tmp_path):
    """Stock configurations want fractions, and JSON says 100."""
    config = LinGeneConfig(
        **OWN, num_register_tokens=3, family="dinov3_vit", rope_theta=50, image_size=42, patch_size=7
    )
    LinGeneModel(config).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, pos_embed_rescale=2)
    assert (model.config.rope_theta, model.config.pos_embed_rescale) == (50.0, 2.0)
    same = LinGeneModel.from_pretrained(tmp_path, constrained=True).eval()
    assert far(same(pixels()).last_hidden_state, model.eval()(pixels()).last_hidden_state) < 1e-5


@torch.no_grad()
def test_a_dinov3_may_be_without_registers(tmp_path):
    """As its configuration in transformers is where nothing is said."""
    model = stock("dinov3_vit", num_register_tokens=0)
    convert(str(saved(model, tmp_path / "source")), tmp_path / "bundle")
    kept = LinGeneModel.from_pretrained(tmp_path / "bundle", constrained=True, num_components=4).eval()
    kept.save_pretrained(tmp_path / "again")
    for found in (kept, AutoModel.from_pretrained(tmp_path / "again").eval()):
        assert far(found(pixels((28, 35))).last_hidden_state, model(pixels((28, 35))).last_hidden_state) < 1e-5


@pytest.mark.parametrize("family", [name for name in PLAIN if name not in CLASSIFIERS])
@pytest.mark.parametrize("options", [{}, {"constrained": True}])
def test_a_classifier_that_a_family_has_not_is_refused_before_weights_are_read(tmp_path, caplog, family, options):
    """And without the word that a new head has to be trained."""
    convert(str(saved(stock(family, num_hidden_layers=1), tmp_path / "source")), tmp_path / "bundle")
    for file in (tmp_path / "bundle").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=f"`family` {family} has no classifier.*AutoModel"):
        AutoModelForImageClassification.from_pretrained(tmp_path / "bundle", **options)
    assert "new and has to be trained" not in caplog.text


@pytest.mark.parametrize("family", DINO)
def test_images_smaller_than_a_patch_are_refused(tmp_path, family):
    """torch's words for it are about kernels."""
    convert(str(saved(stock(family, num_hidden_layers=1), tmp_path / "source")), tmp_path / "bundle")
    model = LinGeneModel.from_pretrained(tmp_path / "bundle", constrained=True)
    with pytest.raises(ValueError, match="`pixel_values`.*at least one patch, 7x7, got 6x42"):
        model(pixels((6, 42)))
