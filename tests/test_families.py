"""Laws of the families: a bundle gives what its source gives, in the source's own classes, whatever the image size.

Against stock models of transformers, every parameter changed: LayerScales, mask and register tokens, positions.

    pytest tests/test_families.py
"""

import json
import shutil

import numpy
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification, BitImageProcessor, pipeline
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding

import helpers
from modeling_lingene import LinGeneBackbone, LinGeneConfig, LinGeneForImageClassification, LinGeneModel
from modeling_lingene.configuration_swin_lingene import LinGeneSwinConfig
from modeling_lingene.conversion.convert import convert
from modeling_lingene.families_lingene import FAMILIES, stock_class
from modeling_lingene.folders import describe
from modeling_lingene.hub import render_card
from modeling_lingene.measuring.metrics import count_macs
from modeling_lingene.modeling_swin_lingene import LinGeneSwinForImageClassification
from modeling_lingene.vit_lingene import embed, rotary_turns


SHAPE = dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=4, image_size=42, patch_size=7, num_labels=5)
OWN = {
    "vit": dict(intermediate_size=96),
    "dinov2": dict(mlp_ratio=2, layerscale_value=0.5),
    "dinov2_with_registers": dict(mlp_ratio=2, layerscale_value=0.5, num_register_tokens=3),
    "dinov3_vit": dict(intermediate_size=96, layerscale_value=0.5, num_register_tokens=3),
    "ijepa": dict(intermediate_size=96),
    "clip_vision_model": dict(intermediate_size=96),
    "siglip_vision_model": dict(intermediate_size=96),
}
# The native one; smaller; larger, not square and no multiple of the patch; as many patches in another arrangement.
IMAGE_SIZES = [(42, 42), (28, 28), (52, 66), (63, 28)]
PLAIN = [name for name, row in FAMILIES.items() if not row.stages]
DINOV2 = [name for name in PLAIN if name.startswith("dinov2")]
DINO = [name for name in PLAIN if FAMILIES[name].backbone]  # and mask tokens, stochastic depth, images of any size
CLASSES = {"encoder": (AutoModel, LinGeneModel)}
CLASSES["classifier"] = (AutoModelForImageClassification, LinGeneForImageClassification)
CLASSIFIERS = [name for name in PLAIN if FAMILIES[name].classifier]
KINDS = [(name, kind) for kind in CLASSES for name in (PLAIN if kind == "encoder" else CLASSIFIERS)]
WITH_HEAD = {name: "classifier" if name in CLASSIFIERS else "encoder" for name in PLAIN}


def stock(family: str, kind: str = "encoder", **fields):
    """A stock model with every parameter drawn anew."""
    made = stock_class(family, kind)(
        getattr(transformers, FAMILIES[family].config)(**{**SHAPE, **OWN[family], **fields})
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1) * 0.5)
    return made.eval()


def pixels(size=(42, 42), batch=3):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def asked(family: str, size=None) -> dict:
    """How a stock model of that family is asked for images of another size."""
    return {"interpolate_pos_encoding": True} if not FAMILIES[family].interpolates and size != (42, 42) else {}


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """By family and kind: the stock model and the bundle made of it; read only."""
    folder, made = tmp_path_factory.mktemp("families"), {}

    def give(family: str, kind: str = "encoder"):
        if (family, kind) not in made:
            model, place = stock(family, kind), folder / f"{family}-{kind}"
            convert(str(saved(model, place / "source")), place / "bundle")
            made[family, kind] = (model, place / "bundle")
        return made[family, kind]

    return give


def test_every_family_is_tested():
    """A row that is added without a shape here would be a promise untested."""
    assert [*OWN] == PLAIN


@pytest.mark.parametrize("family, kind", KINDS)
@torch.no_grad()
def test_a_bundle_gives_what_its_source_gives_at_every_image_size(tmp_path, converted, family, kind):
    """Materialised, constrained, materialised from that, and both saved and loaded again: all tokens, or logits."""
    model, bundle = converted(family, kind)
    auto, own = CLASSES[kind]
    plain, constrained = auto.from_pretrained(bundle), own.from_pretrained(bundle, constrained=True)
    options = FAMILIES[family].options if kind == "encoder" else {}
    models = {"materialised": plain, "constrained": constrained, "from constrained": constrained.materialise()}
    models["saved"] = stock_class(family, kind).from_pretrained(saved(plain, tmp_path / "plain"), **options)
    models["bundle saved"] = auto.from_pretrained(saved(constrained, tmp_path / "again"))
    assert type(plain) is type(models["bundle saved"]) is stock_class(family, kind)
    plain.load_state_dict(load_file(tmp_path / "plain" / "model.safetensors"))  # names on disk, as the Trainer does
    for size in IMAGE_SIZES:
        expected = model(pixels(size), **asked(family, size))
        for name, one in models.items():
            found = one.eval()(pixels(size), **asked(family, size))
            if kind == "classifier":
                assert far(found.logits, expected.logits) < 1e-5, (name, size)
                continue
            assert far(found.last_hidden_state, expected.last_hidden_state) < 1e-5, (name, size)
            assert (found.pooler_output is None) == (family in ("vit", "ijepa"))
            if found.pooler_output is not None:
                assert far(found.pooler_output, expected.pooler_output) < 1e-5, (name, size)


def narrowed(model, ratio: float):
    """The stock model whose every tensor is the leading part, of a head's two halves each its own."""
    config = type(model.config).from_dict(model.config.to_dict())
    for field in ("hidden_size", "num_attention_heads", "intermediate_size"):
        if hasattr(config, field):
            setattr(config, field, int(getattr(config, field) * ratio))
    small = type(model)(config).eval()
    full, leading = model.state_dict(), {}
    for name, target in small.state_dict().items():
        halves = name == "classifier.weight" and config.model_type in DINOV2
        parts = full[name].chunk(2, dim=-1) if halves else [full[name]]
        shape = (*target.shape[:-1], target.shape[-1] // len(parts)) if target.dim() else ()
        leading[name] = torch.cat([part[tuple(map(slice, shape))] for part in parts], dim=-1)
    small.load_state_dict(leading)
    return small


def answer(output) -> torch.Tensor:
    """Logits, or without a classifier all tokens."""
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


@pytest.mark.parametrize("family", [*CLASSIFIERS, "dinov3_vit"])
@torch.no_grad()
def test_a_width_is_the_leading_part_of_every_tensor_and_of_each_half_of_a_head(converted, family):
    """Mask, register tokens and LayerScales too; all components, so that nothing but the slice differs."""
    model, bundle = converted(family, WITH_HEAD[family])
    auto, own = CLASSES[WITH_HEAD[family]]
    expected = answer(narrowed(model, 0.5)(pixels()))
    size = {"width_ratio": "1/2", "allow_untrained": True}
    plain = auto.from_pretrained(bundle, **size).eval()
    narrow = own.from_pretrained(bundle, constrained=True, **size).eval()
    whole = own.from_pretrained(bundle, constrained=True).eval()
    assert far(answer(plain(pixels())), expected) < 1e-5
    assert far(answer(narrow(pixels())), expected) < 1e-5
    assert far(answer(whole(pixels(), width_ratio="1/2")), expected) < 1e-5
    assert narrow.config.hidden_size == 24 and narrow.config.family == family


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_parameters_and_macs_are_counted_as_they_are(converted, family):
    """What a size downloads: the bundle's own tensors; what it computes: the stock model of that configuration."""
    model, bundle = converted(family, "classifier")
    constrained = LinGeneForImageClassification.from_pretrained(bundle, constrained=True)
    config = constrained.config
    assert config.stored_params(config.size()) == sum(one.numel() for one in constrained.parameters())
    assert count_macs(config.stock_config(config.size())) == count_macs(model.config)


@pytest.mark.parametrize("family", [*PLAIN, "swin"])
def test_gains_outside_the_components_begin_as_ones(family):
    """As in stock models: those of what pools, or of patches that are merged, were drawn around zero, and silenced
    what is behind them."""
    if family == "swin":
        model = LinGeneSwinForImageClassification(LinGeneSwinConfig(**helpers.TINY_SWIN))
    else:
        registers = {"num_register_tokens": 2} if FAMILIES[family].registers else {}
        model = LinGeneModel(helpers.tiny_config(family=family, **registers))
    norms = {name: one for name, one in model.named_parameters() if "norm" in name and name.endswith("weight")}
    outside = {name: one for name, one in norms.items() if not name.startswith("components.")}
    assert outside and all(torch.equal(one, torch.ones_like(one)) for one in outside.values())


@pytest.mark.parametrize("family", DINO)
@torch.no_grad()
def test_masked_patches_are_the_mask_token(converted, family):
    """Training without labels hides patches from the student, as the family does."""
    model, bundle = converted(family)
    masked = torch.rand(3, 36, generator=torch.Generator().manual_seed(2)) < 0.5
    expected = model(pixels(), bool_masked_pos=masked).last_hidden_state
    constrained = LinGeneModel.from_pretrained(bundle, constrained=True).eval()
    for one in (constrained, AutoModel.from_pretrained(bundle).eval()):
        assert far(one(pixels(), bool_masked_pos=masked).last_hidden_state, expected) < 1e-5
    assert far(constrained(pixels()).last_hidden_state, expected) > 1e-2
    with pytest.raises(ValueError, match=r"`bool_masked_pos` must be of shape \(3, 36\)"):
        constrained(pixels(), bool_masked_pos=masked[:, 1:])


def test_a_family_without_a_mask_token_refuses_masked_patches(converted):
    """Silence would train on the whole picture."""
    model = LinGeneModel.from_pretrained(converted("vit")[1], constrained=True)
    with pytest.raises(ValueError, match="`bool_masked_pos` needs a mask token"):
        model(pixels(), bool_masked_pos=torch.ones(3, 36, dtype=torch.bool))


@pytest.mark.parametrize("family", DINO)
def test_branches_are_dropped_per_image_as_in_stock(tmp_path, family):
    """Stochastic depth is the family's: with the same seed the same branches are left out, in training only."""
    still = {"pos_embed_rescale": None} if FAMILIES[family].rotates else {}  # see the next test
    model = stock(family, drop_path_rate=0.4, **still)
    convert(str(saved(model, tmp_path / "source")), tmp_path / "bundle")
    constrained = LinGeneModel.from_pretrained(tmp_path / "bundle", constrained=True)
    plain = AutoModel.from_pretrained(tmp_path / "bundle")
    assert plain.config.drop_path_rate == 0.4
    found = []
    for one in (model, constrained, plain):
        torch.manual_seed(0)
        found.append(one.train()(pixels()).last_hidden_state)
    assert far(found[1], found[0]) < 1e-5 and far(found[2], found[0]) < 1e-5
    assert far(found[0], model.eval()(pixels()).last_hidden_state) > 1e-2


@torch.no_grad()
def test_rotary_positions_are_moved_in_training_by_stock_models_alone(converted):
    """A teacher's tokens are of patches where they are: moved ones would teach components another function."""
    model, bundle = converted("dinov3_vit")
    expected = model(pixels()).last_hidden_state
    constrained, plain = LinGeneModel.from_pretrained(bundle, constrained=True), AutoModel.from_pretrained(bundle)
    assert far(constrained.train()(pixels()).last_hidden_state, expected) < 1e-5
    assert far(plain.train()(pixels()).last_hidden_state, expected) > 1e-2 and plain.config.pos_embed_rescale == 2.0


@pytest.mark.parametrize("family", DINO)
def test_hidden_states_attentions_and_gradients_are_the_stock_ones(converted, family):
    """The constrained forward is a path of its own; with checkpointing its gradients are the same once more."""
    model, bundle = converted(family, WITH_HEAD[family])
    constrained = (
        CLASSES[WITH_HEAD[family]][1]
        .from_pretrained(
            bundle, constrained=True, attn_implementation="eager", output_hidden_states=True, output_attentions=True
        )
        .eval()
    )
    model.config._attn_implementation = "eager"
    expected = model(pixels((28, 35)), output_hidden_states=True, output_attentions=True)
    found = constrained(pixels((28, 35)))
    for states in ("hidden_states", "attentions"):
        pairs = list(zip(found[states], expected[states], strict=True))
        assert len(pairs) > 3 and all(far(*pair) < 1e-5 for pair in pairs), states
    gradients = []
    for checkpointing in (False, True):
        constrained.zero_grad()
        if checkpointing:
            constrained.gradient_checkpointing_enable()
        answer(constrained.train()(pixels()))[:, 0].square().sum().backward()
        gradients.append(
            {name: one.grad.clone() for name, one in constrained.named_parameters() if one.grad is not None}
        )
    unread = {"embeddings.mask_token"}
    assert gradients[0].keys() == gradients[1].keys() == dict(constrained.named_parameters()).keys() - unread
    for name, one in gradients[0].items():
        # Softmax takes no notice of it, unless it turns: zero, but for rounding.
        if name.endswith("attention.key.bias") and not FAMILIES[family].rotates:
            scale = gradients[0][name.replace("key", "query")].norm()
            assert all(found[name].norm() < 1e-5 * scale for found in gradients), name
        else:
            assert far(gradients[1][name], one) < 1e-4, name
    assert all(one.any() for one in gradients[0].values())


@pytest.mark.parametrize("family", DINOV2)
@torch.no_grad()
def test_a_stored_grid_for_another_image_size_gives_the_same_there(converted, family):
    """`image_size` resizes the grid once, at loading, by the family's interpolation."""
    model, bundle = converted(family)
    resized = AutoModel.from_pretrained(bundle, image_size=28).eval()
    assert resized.embeddings.position_embeddings.shape == (1, 17, 48)
    expected = model(pixels((28, 28))).last_hidden_state
    assert far(resized(pixels((28, 28))).last_hidden_state, expected) < 1e-5


@pytest.mark.parametrize("family", DINOV2)
@torch.no_grad()
def test_half_precision_interpolates_in_full(converted, family):
    """Bicubic weights in bfloat16 would shift the positions by more than their rounding."""
    model, bundle = converted(family)
    constrained = LinGeneModel.from_pretrained(bundle, constrained=True, dtype=torch.bfloat16).eval()
    plain = AutoModel.from_pretrained(bundle, dtype=torch.bfloat16).eval()
    values = pixels((28, 35)).bfloat16()
    weights = {f"embeddings.{name}": tensor for name, tensor in constrained.embeddings.named_parameters()}
    found = embed(values, weights, (42, 42), True, FAMILIES[family].antialias)
    assert torch.equal(found, plain.embeddings(values))
    assert far(constrained(values).last_hidden_state.float(), model(pixels((28, 35))).last_hidden_state) < 0.05


@torch.no_grad()
def test_positions_that_turn_are_those_of_the_family_in_every_precision(converted):
    """Angles in bfloat16 would be wrong by more than their rounding; heads, shapes and periods of any kind."""
    model, bundle = converted("dinov3_vit")
    values, like = pixels((28, 35)), torch.zeros(1)
    for theta, size, dtype in ((100.0, (28, 35), torch.float32), (10.0, (7, 63), torch.bfloat16)):
        config = type(model.config)(**{**SHAPE, "rope_theta": theta})
        expected = DINOv3ViTRopePositionEmbedding(config).eval()(pixels(size).to(dtype))
        found = rotary_turns((size[0] // 7, size[1] // 7), 2, 12, theta, like.to(dtype))
        for one, (other, before) in zip(found, zip(expected, (1, 0)), strict=True):
            assert one.dtype == dtype and torch.equal(one[:2], torch.full((2, 12), before, dtype=dtype))
            assert (one[2:].float() - other.float()).abs().max() < (1e-5 if dtype == torch.float32 else 1e-2)
    constrained = LinGeneModel.from_pretrained(bundle, constrained=True, dtype=torch.bfloat16).eval()
    plain = AutoModel.from_pretrained(bundle, dtype=torch.bfloat16).eval()
    expected = model(values).last_hidden_state
    for one in (constrained, plain):
        assert far(one(values.bfloat16()).last_hidden_state.float(), expected) < 0.05


@pytest.mark.parametrize("family", DINO)
@torch.no_grad()
def test_a_backbone_gives_the_feature_maps_of_its_size(converted, family, monkeypatch):
    """`AutoBackbone` of a bundle is the stock backbone; stages are those of the layers that the size has."""
    model, bundle = converted(family)
    backbone = stock_class(family, "backbone")
    whole = LinGeneBackbone.from_pretrained(bundle, out_indices=(1, 3)).eval()
    source = backbone(type(model.config)(**SHAPE, **OWN[family], out_features=["stage1", "stage3"]))
    source.load_state_dict(model.state_dict())
    assert type(whole) is backbone and whole.out_features == ["stage1", "stage3"]
    values = pixels((28, 35))
    for found, expected in zip(whole(values).feature_maps, source.eval()(values).feature_maps, strict=True):
        assert found.shape == (3, 48, 4, 5) and far(found, expected) < 1e-5
    # transformers asks the Hub before it looks at a folder, and takes no path for a name
    monkeypatch.setattr("huggingface_hub.HfApi.repo_exists", lambda *_, **__: True)
    stage = 1 if family == "dinov3_vit" else 2  # which norms the last one in any case
    asked = {"out_features": [f"stage{stage}"], "apply_layernorm": False}
    small = AutoBackbone.from_pretrained(bundle, depth=2, **asked).eval()
    states = AutoModel.from_pretrained(bundle, depth=2).eval()(values, output_hidden_states=True).hidden_states
    patches = states[stage][:, -20:].transpose(1, 2).reshape(3, 48, 4, 5)
    assert type(small) is backbone and far(small(values).feature_maps[0], patches) < 1e-5
    again = backbone.from_pretrained(saved(small, bundle.parent / "backbone"))
    assert far(again.eval()(values).feature_maps[0], patches) < 1e-5


def test_a_backbone_that_cannot_be_is_refused_before_weights_are_read(converted, tmp_path):
    """By the argument's name, with the way out."""
    bundle = shutil.copytree(converted("dinov2")[1], tmp_path / "bundle")
    for weights in bundle.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match="`out_features`.*stages stem and stage1 to stage2"):
        LinGeneBackbone.from_pretrained(bundle, depth=2, out_features=["stage3"])
    with pytest.raises(ValueError, match="`constrained`"):
        LinGeneBackbone.from_pretrained(bundle, constrained=True)
    with pytest.raises(ValueError, match="`family` vit.*no backbone in transformers.*output_hidden_states"):
        LinGeneBackbone.from_pretrained(converted("vit")[1])
    with pytest.raises(ValueError, match="from_pretrained"):
        AutoBackbone.from_config(LinGeneConfig.from_pretrained(bundle))


def test_the_family_belongs_to_a_bundles_identity_and_older_bundles_keep_theirs(converted, tmp_path):
    """Another family is another function of the same weights; a bundle that was saved before families is a ViT."""
    vit, dinov2 = (json.loads((converted(family)[1] / "config.json").read_text()) for family in ("vit", "dinov2"))
    index = "model.safetensors.index.json"
    settings = json.loads((converted("vit")[1] / index).read_text())["metadata"]["settings"]
    assert "family" not in settings and "num_register_tokens" not in settings
    assert json.loads((converted("dinov2")[1] / index).read_text())["metadata"]["settings"]["family"] == "dinov2"
    older = shutil.copytree(converted("vit")[1], tmp_path / "older")
    later = {
        "family",
        "gated_mlp",
        "num_register_tokens",
        "drop_path_rate",
        "apply_layernorm",
        "reshape_hidden_states",
    }
    (older / "config.json").write_text(json.dumps({key: value for key, value in vit.items() if key not in later}))
    model = AutoModel.from_pretrained(older, verify=True)
    assert type(model) is transformers.ViTModel
    changed = shutil.copytree(converted("dinov2")[1], tmp_path / "changed")
    (changed / "config.json").write_text(json.dumps({**dinov2, "family": "vit"}))
    with pytest.raises(ValueError, match="`family` in config.json.*'vit'.*'dinov2'"):
        AutoModel.from_pretrained(changed)
    with pytest.raises(ValueError, match="`family` 'dinov2' contradicts the weights"):
        AutoModel.from_pretrained(older, family="dinov2")


@pytest.mark.parametrize("family, kind", KINDS)
def test_what_describes_a_bundle_names_its_family(converted, family, kind):
    """`lingene info` and the card; the card's class is the one that its example gives."""
    bundle = converted(family, kind)[1]
    told = describe(bundle)[0]
    assert told["family"] == family and ("num_labels" in told) == (kind == "classifier")
    card = render_card(bundle)
    assert f"a stock `{getattr(FAMILIES[family], kind)}`" in card
    assert ("AutoBackbone" in card) == (family in DINO)
    assert ("add_pooling_layer=False" in card) == (family == "vit" and kind == "encoder")


@pytest.mark.parametrize("family", DINO)
@torch.no_grad()
def test_a_pipeline_runs_at_the_processors_image_size(tmp_path, family):
    """The source's own preprocessing is kept, and its size is not that of the stored grid."""
    model = stock(family)
    processor = BitImageProcessor(size={"shortest_edge": 35}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(saved(model, tmp_path / "source"))
    convert(str(tmp_path / "source"), tmp_path / "bundle")
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype="uint8"))
    found = pipeline("image-feature-extraction", str(tmp_path / "bundle"))(picture)
    assert (
        far(torch.tensor(found), torch.tensor(pipeline("image-feature-extraction", str(tmp_path / "source"))(picture)))
        < 1e-5
    )
    assert numpy.array(found).shape == (1, 17 + 3 * FAMILIES[family].registers, 48)
