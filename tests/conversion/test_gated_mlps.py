"""Laws of gated MLPs, those of the largest DINOv2 and of some DINOv3: they come through, narrow, fitted, sorted.

Against stock models of transformers and timm, every parameter changed.

    pytest tests/conversion/test_gated_mlps.py
"""

import json

import numpy
import pytest
import torch
import transformers
from converting import changed, relative
from PIL.Image import Resampling
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import to_tensor
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
)

import helpers
from modeling_lingene import LinGeneBackbone, LinGeneConfig, LinGeneForImageClassification, LinGeneModel
from modeling_lingene.conversion.convert import convert, open_source
from modeling_lingene.conversion.export import export
from modeling_lingene.conversion.moments import linear_maps
from modeling_lingene.conversion.ordering import order_layers
from modeling_lingene.families_lingene import FAMILIES, stock_class
from test_families import IMAGE_SIZES, narrowed, pixels, saved, stock


GATED = {
    "dinov2": {"use_swiglu_ffn": True},
    "dinov2_with_registers": {"use_swiglu_ffn": True},
    "dinov3_vit": {"use_gated_mlp": True, "hidden_act": "silu"},
}
UNITS = {"dinov2": 64, "dinov2_with_registers": 64, "dinov3_vit": 96}  # two thirds of what the ratio says, or as said


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """By family: the stock encoder, the folder of its files, and the bundle made of it; read only."""
    folder, made = tmp_path_factory.mktemp("gated"), {}

    def give(family: str):
        if family not in made:
            model, place = stock(family, **GATED[family]), folder / family
            convert(str(saved(model, place / "source")), place / "bundle")
            made[family] = (model, place / "source", place / "bundle")
        return made[family]

    return give


def test_every_family_that_has_them_is_tested():
    """A row that is added without a shape here would be a promise untested."""
    assert [*GATED] == [name for name, row in FAMILIES.items() if row.gated]


@pytest.mark.parametrize("family", GATED)
@torch.no_grad()
def test_a_bundle_gives_what_its_source_gives(tmp_path, converted, family):
    """All tokens at every image size: materialised, constrained, from that, saved and loaded, by names on disk."""
    model, _, bundle = converted(family)
    plain = AutoModel.from_pretrained(bundle).eval()
    constrained = LinGeneModel.from_pretrained(bundle, constrained=True).eval()
    models = {"materialised": plain, "constrained": constrained, "from constrained": constrained.materialise().eval()}
    models["saved"] = AutoModel.from_pretrained(saved(plain, tmp_path / "plain")).eval()
    models["bundle saved"] = AutoModel.from_pretrained(saved(constrained, tmp_path / "again")).eval()
    models["state"] = helpers.drawn(AutoModel.from_pretrained(bundle))
    models["state"].load_state_dict(load_file(tmp_path / "plain" / "model.safetensors"))
    assert type(plain) is type(model) and constrained.config.intermediate_size == UNITS[family]
    for size in IMAGE_SIZES:
        expected = model(pixels(size)).last_hidden_state
        for name, one in models.items():
            assert relative(one(pixels(size)).last_hidden_state, expected) < 1e-5, (name, size)
    backbone = LinGeneBackbone.from_pretrained(bundle, out_indices=[-1]).eval()
    stock_backbone = stock_class(family, "backbone")
    source = stock_backbone(type(model.config)(**{**model.config.to_dict(), "out_indices": [-1]}))
    source.load_state_dict(model.state_dict())
    assert type(backbone) is stock_backbone
    found, expected = (one(pixels()).feature_maps[0] for one in (backbone, source.eval()))
    assert relative(found, expected) < 1e-5


@torch.no_grad()
def test_a_constrained_gate_is_the_law_in_numpy(converted):
    """(silu(G x + g) * (W x + w)) V^T + v, of float64 and no code of anybody's."""
    model, _, bundle = converted("dinov3_vit")
    constrained = LinGeneModel.from_pretrained(bundle, constrained=True).eval()
    weights = {
        name: tensor[0].double().numpy() for name, tensor in constrained.recomposed(constrained.config.size()).items()
    }
    layer, values = model.model.layer[0], numpy.random.default_rng(0).normal(size=(5, 48))
    gate, units = (values @ weights[f"mlp.{part}.weight"].T + weights[f"mlp.{part}.bias"] for part in ("gate", "fc1"))
    expected = (gate / (1 + numpy.exp(-gate)) * units) @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"]
    scale = layer.layer_scale2.lambda1.double().numpy()  # folded into the map before it
    found = layer.mlp(torch.tensor(values).float()).double().numpy() * scale
    numpy.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_component_as_in_the_stock_model(converted):
    """By the gradient of the input, which passes through all of a model."""
    model, _, bundle = converted("dinov2")
    constrained = LinGeneModel.from_pretrained(bundle, constrained=True).eval()
    found = []
    for one in (model, constrained):
        values = pixels().requires_grad_()
        one(values).last_hidden_state[:, 0].square().sum().backward()
        found.append(values.grad)
    assert relative(found[1], found[0]) < 1e-4
    assert all(parameter.grad.any() for name, parameter in constrained.named_parameters() if "mlp." in name)


@pytest.mark.parametrize("family", GATED)
@torch.no_grad()
def test_a_width_is_the_leading_part_of_gates_and_units_alike(converted, family):
    """Where the family's files have both as one matrix, of each half; parameters and MACs are those of stock."""
    model, _, bundle = converted(family)
    expected = narrowed(model, 0.5)(pixels()).last_hidden_state
    size = {"width_ratio": "1/2", "allow_untrained": True}
    plain = AutoModel.from_pretrained(bundle, **size).eval()
    narrow = LinGeneModel.from_pretrained(bundle, constrained=True, **size).eval()
    whole = LinGeneModel.from_pretrained(bundle, constrained=True).eval()
    assert relative(plain(pixels()).last_hidden_state, expected) < 1e-5
    assert relative(narrow(pixels()).last_hidden_state, expected) < 1e-5
    assert relative(whole(pixels(), width_ratio="1/2").last_hidden_state, expected) < 1e-5
    assert narrow.config.intermediate_size == UNITS[family] // 2
    config = whole.config
    assert config.stored_params(config.size(), head=False) == sum(one.numel() for one in whole.parameters())
    half = config.stock_config(config.size(width_ratio="1/2"))
    assert sum(one.numel() for one in AutoModel.from_config(half).parameters()) == plain.num_parameters()


@torch.no_grad()
def test_a_classifier_comes_through_with_its_head(tmp_path):
    """The head of DINOv2 reads the patches as well."""
    model = stock("dinov2", "classifier", **GATED["dinov2"])
    convert(str(saved(model, tmp_path / "source")), tmp_path / "bundle")
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "bundle").eval()
    own = LinGeneForImageClassification.from_pretrained(tmp_path / "bundle", constrained=True).eval()
    assert type(plain) is Dinov2ForImageClassification
    for one in (plain, own):
        assert relative(one(pixels()).logits, model(pixels()).logits) < 1e-5


@pytest.mark.parametrize("family", GATED)
@torch.no_grad()
def test_sorted_for_widths_it_is_the_same_at_full_width(tmp_path, converted, photos, family):
    """Channels turned, and every layer's heads and units in an order of their own: gates go with their units."""
    model, source, _ = converted(family)
    values = pixels(batch=8)
    ordered = order_layers(open_source(str(source)), values, "cpu").stock()
    assert relative(ordered(values).last_hidden_state, model(values).last_hidden_state) < 1e-5
    maps, own = linear_maps(ordered, 4), linear_maps(model, 4)
    assert not torch.equal(maps["mlp.gate"][0].weight, own["mlp.gate"][0].weight)
    rows = [maps[part][0].weight for part in ("mlp.gate", "mlp.fc1")]
    order = torch.cdist(rows[0], own["mlp.gate"][0].weight).argmin(1)
    torch.testing.assert_close(rows[1], own["mlp.fc1"][0].weight[order])
    report = convert(str(source), tmp_path / "sorted", calibrate=photos, sort=True, widths=["1/2"], images=24)
    assert report["relative_logit_error"] < 1e-5


@pytest.mark.parametrize("family", ["dinov2", "dinov3_vit"])
@torch.no_grad()
def test_fits_with_fewer_components_come_nearer_than_least_squares(tmp_path, converted, photos, family):
    """Gates are fitted as every other linear map is, aligned with their units, matched to what arrives."""
    model, source, _ = converted(family)
    pictures = [one.resize((42, 42), Resampling.BILINEAR) for one in helpers.pictures(60, seed=5).images]
    values = torch.stack([to_tensor(one) for one in pictures]) * 2 - 1  # by mean and deviation 0.5, as the fit's
    far = {}
    for fit in ("weights", "aligned", "matched"):
        convert(str(source), tmp_path / fit, num_components=3, calibrate=photos, fit=fit, images=32)
        found = AutoModel.from_pretrained(tmp_path / fit).eval()(values).pooler_output
        far[fit] = relative(found, model(values).pooler_output)
    assert far["matched"] < far["aligned"] < far["weights"]


def test_a_bundle_says_that_it_is_gated_and_older_ones_do_not(converted):
    """In what its weights were saved with: without its gates it would be another function."""
    gated, plain = (
        json.loads((bundle / "model.safetensors.index.json").read_text())["metadata"]["settings"]
        for bundle in (converted("dinov2")[2], helpers.bundle(converted("dinov2")[2].parent / "plain"))
    )
    assert gated["gated_mlp"] is True and "gated_mlp" not in plain
    with pytest.raises(ValueError, match="`gated_mlp` False contradicts the weights"):
        AutoModel.from_pretrained(converted("dinov2")[2], gated_mlp=False)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"family": "vit"}, "`gated_mlp` True is no setting of the family vit"),
        ({"hidden_act": "gelu"}, "`hidden_act` of gated MLPs of the family dinov2 is silu, got 'gelu'"),
        ({"intermediate_size": 96}, None),
        ({"intermediate_size": 72}, "two thirds of a whole multiple of `hidden_size`, and a multiple of 8: 72 of 48"),
        ({"hidden_size": 12, "intermediate_size": 8}, None),
        ({"hidden_size": 36, "intermediate_size": 48}, None),
        ({"hidden_size": 60, "intermediate_size": 40}, None),
        ({"hidden_size": 60, "intermediate_size": 120}, None),
        ({"hidden_size": 60, "intermediate_size": 100}, "multiple of 8: 100 of 60"),
    ],
)
def test_what_the_familys_configuration_cannot_say_is_refused(fields, named):
    """Stock DINOv2 rounds two thirds of a multiple up to eights; what it builds is what the bundle has."""
    own = helpers.tiny_config(
        **{"family": "dinov2", "gated_mlp": True, "hidden_act": "silu", "intermediate_size": 64, "num_labels": 2}
    )
    kept = {field: getattr(own, field) for field in ("hidden_size", "intermediate_size", "hidden_act", "family")}
    given = {
        **kept,
        "num_attention_heads": 4,
        "gated_mlp": True,
        "image_size": 16,
        "patch_size": 4,
        "depth": 2,
        **fields,
    }
    if named is not None:
        with pytest.raises(ValueError, match=named):
            LinGeneConfig(**given)
        return
    config = LinGeneConfig(**given)
    for ratio in config.legal_width_ratios:
        made = transformers.Dinov2Model(config.stock_config(config.size(width_ratio=ratio)))
        gate = linear_maps(made, 2)["mlp.gate"][0]
        assert gate.out_features == config.intermediate_size * ratio


def test_widths_whose_units_are_no_eights_are_refused(converted):
    """Quarters of 48 units are 12, which stock DINOv2 would make 16."""
    config = LinGeneConfig(
        hidden_size=72, num_attention_heads=4, intermediate_size=48, family="dinov2", gated_mlp=True, hidden_act="silu"
    )
    assert [str(ratio) for ratio in config.legal_width_ratios] == ["1/2", "1"]
    with pytest.raises(ValueError, match="whole heads and MLP units, a multiple of 8: 1/4 of 4 heads is 1, of 48"):
        config.size(width_ratio="1/4")


def test_stock_units_are_read_as_transformers_rounds_them(tmp_path):
    """Of a network whose units are no two thirds of its ratio: it cannot be said again, and is refused by name."""
    config = Dinov2Config(
        hidden_size=40, num_attention_heads=4, num_hidden_layers=2, mlp_ratio=4, use_swiglu_ffn=True, image_size=28
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="`intermediate_size` of gated MLPs .* 112 of 40 cannot be expressed"):
        convert(str(tmp_path / "source"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 4, "img_size": 42, "patch_size": 7}
TIMM = {
    "vit_giant_patch14_dinov2": {**SMALL, "mlp_ratio": 64 * 2 / 48},
    "vit_giant_patch14_reg4_dinov2": {**SMALL, "mlp_ratio": 64 * 2 / 48},
    "vit_small_plus_patch16_dinov3": {**SMALL, "mlp_ratio": 2},
    "vit_huge_plus_patch16_dinov3_qkvb": {**SMALL, "mlp_ratio": 2},
}


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timms_gated_models_come_in_and_go_out(tmp_path, name):
    """Gates and units are one matrix there, or two; the giants of DINOv2 and the plus of DINOv3."""
    timm = pytest.importorskip("timm")
    model = changed(timm.create_model(name, num_classes=0, **TIMM[name]))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    convert(f"timm:{name}", tmp_path / "bundle", weights=str(tmp_path / "weights.safetensors"), model_args=TIMM[name])
    back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    expected = model.forward_features(pixels())
    assert relative(back(pixels()).last_hidden_state, expected) < 1e-5
    report = export(tmp_path / "bundle", tmp_path / "out", "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert relative(again.forward_features(pixels()), expected) < 1e-5, report
    narrow = export(tmp_path / "bundle", tmp_path / "narrow", "timm", width_ratio="1/2", allow_untrained=True)
    small = AutoModel.from_pretrained(tmp_path / "bundle", width_ratio="1/2", allow_untrained=True).eval()
    again = timm.create_model(f"local-dir:{tmp_path / 'narrow'}", pretrained=True).eval()
    assert relative(again.forward_features(pixels()), small(pixels()).last_hidden_state) < 1e-5, narrow


@pytest.mark.parametrize(
    "name", ["vit_giant_patch14_dinov2", "vit_giant_patch14_reg4_dinov2", "vit_huge_plus_patch16_dinov3"]
)
def test_published_shapes_are_expressed(name):
    """The largest ones, without memory: their units, and the widths that they have."""
    pytest.importorskip("timm")
    from modeling_lingene.conversion.from_timm import LAYOUTS, _built, check_model

    model = _built(f"timm:{name}", name, num_classes=0)
    check_model(name, model, head_matters=False)
    config = LAYOUTS[type(model).__name__].config(model, ())
    with torch.device("meta"):
        made = AutoModel.from_config(config.stock_config(config.size()))
    assert sum(one.numel() for one in made.parameters()) >= sum(one.numel() for one in model.parameters())
    assert config.gated_mlp and "1/2" in map(str, config.legal_width_ratios)


@pytest.mark.parametrize(
    ("name", "options"), [("vit_tiny_patch16_224", {}), ("vit_small_patch14_dinov2", {"act_layer": "gelu"})]
)
def test_gates_of_another_kind_are_refused(name, options):
    """Of a plain ViT, whose stock class has none; of another activation."""
    timm = pytest.importorskip("timm")
    from modeling_lingene.conversion.from_timm import check_model

    model = timm.create_model(name, depth=1, mlp_layer=timm.layers.GluMlp, **options)
    with pytest.raises(ValueError, match="`mlp` of it: a gated MLP of another kind"):
        check_model("it", model, head_matters=False)
