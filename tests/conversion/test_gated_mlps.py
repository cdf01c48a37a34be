"""Laws of gated MLPs, those of the largest DINOv2 and of some DINOv3: they come through, narrow, fitted, sorted.

Against stock models of transformers and timm, every parameter changed.

    pytest tests/conversion/test_gated_mlps.py
"""

import json
from dataclasses import replace
from functools import partial

import numpy
import pytest
import torch
import transformers
from converting import changed, relative
from packaging import version
from PIL.Image import Resampling
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms.functional import to_tensor
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
)

import helpers
from modeling_lingene import LinGeneBackbone, LinGeneConfig, LinGeneForImageClassification, LinGeneModel, cli
from modeling_lingene.conversion.alignment import align
from modeling_lingene.conversion.calibrated import Calibration
from modeling_lingene.conversion.convert import convert, open_source
from modeling_lingene.conversion.export import export
from modeling_lingene.conversion.fitting import fold_norms
from modeling_lingene.conversion.moments import linear_maps
from modeling_lingene.conversion.ordering import order_layers
from modeling_lingene.families_lingene import FAMILIES, stock_class
from modeling_lingene.folders import describe
from modeling_lingene.hub import render_card
from modeling_lingene.measuring.metrics import count_macs
from test_families import IMAGE_SIZES, narrowed, pixels, saved, stock


pytestmark = pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.18"),
    reason="before transformers 5.18 a gate and its units are one map in DINOv2, which calibration refuses",
)
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
    stock_half = narrowed(model, 0.5)
    biases = 4 * 24 if family == "dinov3_vit" else 0  # of keys, which the source has not
    assert plain.num_parameters() == stock_half.num_parameters() + biases
    assert count_macs(plain.config, head=False) == count_macs(stock_half.config, head=False)
    tokens, units = 37 + 3 * FAMILIES[family].registers, UNITS[family]
    layer = 4 * tokens * 48**2 + 2 * tokens**2 * 48 + 3 * tokens * 48 * units
    assert count_macs(model.config, head=False) == 36 * 3 * 49 * 48 + 4 * layer


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


@torch.no_grad()
def test_aligning_undoes_orders_and_signs_of_gated_units(converted):
    """A unit, and what reads it, may change their sign together, but not its gate; moments go along."""
    source = open_source(str(converted("dinov3_vit")[1]))
    calibration = Calibration(source, pixels(batch=4), "cpu", 0)
    stacks = calibration._stacks(fold_norms(calibration.weights))
    generator, own = torch.Generator().manual_seed(0), dict(stacks)
    order = torch.stack([torch.randperm(96, generator=generator) for _ in range(4)])
    signs = torch.randint(0, 2, (4, 96), generator=generator) * 2.0 - 1
    for part, factors in (("mlp.gate", torch.ones(4, 96)), ("mlp.fc1", signs)):
        stack = stacks[part]
        weights = torch.stack([one[places] for one, places in zip(stack.weights, order)]) * factors[:, :, None]
        gradients = torch.stack([one[places][:, places] for one, places in zip(stack.gradients, order)])
        own[part] = replace(stack, weights=weights, gradients=gradients * factors[:, :, None] * factors[:, None])
    stack, last = stacks["mlp.fc2"], torch.full((4, 1), 96)
    columns, factors = torch.cat((order, last), dim=1), torch.cat((signs, torch.ones(4, 1)), dim=1)
    weights = torch.stack([one[:, places] for one, places in zip(stack.weights, columns)]) * factors[:, None]
    inputs = torch.stack([one[places][:, places] for one, places in zip(stack.inputs, columns)])
    own["mlp.fc2"] = replace(stack, weights=weights, inputs=inputs * factors[:, :, None] * factors[:, None])
    targets = {part: stack.weights for part, stack in stacks.items()}
    metrics = {part: stack.metric("aligned") for part, stack in own.items()}
    turned = align(own, targets, metrics, heads=4, rotary=True)
    for part in ("mlp.gate", "mlp.fc1", "mlp.fc2"):
        assert relative(own[part].weights, stacks[part].weights) > 0.5
        for field in ("weights", "inputs", "gradients"):
            assert relative(getattr(turned[part], field), getattr(stacks[part], field)) < 1e-5, (part, field)


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
    """In what its weights were saved with: without its gates it would be another function. To people, too."""
    bundle = converted("dinov2")[2]
    assert describe(bundle)[0]["gated_mlp"] is True
    assert "| hidden size, heads, gated MLP units | 48, 4, 64 |" in render_card(bundle)
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


PUBLISHED = {  # and the parameters that transformers has besides: a mask token, a position, biases of q, k, v
    "vit_giant_patch14_dinov2": 1536,
    "vit_giant_patch14_reg4_dinov2": 2 * 1536,
    "vit_small_plus_patch16_dinov3": 384 + 12 * 3 * 384,
    "vit_huge_plus_patch16_dinov3": 1280 + 32 * 3 * 1280,
    "vit_7b_patch16_dinov3": 4096 + 40 * 3 * 4096,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_are_expressed(name):
    """Without memory: their units, and the widths that they have."""
    pytest.importorskip("timm")
    from modeling_lingene.conversion.from_timm import LAYOUTS, _built, check_model

    model = _built(f"timm:{name}", name, num_classes=0)
    check_model(name, model, head_matters=False)
    config = LAYOUTS[type(model).__name__].config(model, ())
    with torch.device("meta"):
        made = AutoModel.from_config(config.stock_config(config.size()))
    own, theirs = (sum(one.numel() for one in each.parameters()) for each in (made, model))
    assert own - theirs == PUBLISHED[name]
    assert config.gated_mlp and "1/2" in map(str, config.legal_width_ratios)


@torch.no_grad()
def test_the_giants_come_in_by_the_names_that_they_were_published_with(tmp_path):
    """DINOv2's own code names the two maps of a gated MLP by numbers."""
    timm = pytest.importorskip("timm")
    name = "vit_giant_patch14_dinov2"
    model = changed(timm.create_model(name, num_classes=0, **TIMM[name]))
    renamed = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    state = {}
    for key, tensor in model.state_dict().items():
        for theirs, published in renamed.items():
            key = key.replace(theirs, published)
        state[key] = tensor
    save_file(state, tmp_path / "weights.safetensors")
    given = {"weights": str(tmp_path / "weights.safetensors"), "model_args": TIMM[name]}
    convert(f"timm:{name}", tmp_path / "bundle", **given)
    back = AutoModel.from_pretrained(tmp_path / "bundle").eval()
    assert any("w12" in key for key in state)
    assert relative(back(pixels()).last_hidden_state, model.forward_features(pixels())) < 1e-5


@pytest.mark.parametrize(
    ("name", "gate", "named"),
    [
        ("vit_tiny_patch16_224", {"act_layer": nn.SiLU, "gate_last": False}, "which ViTs of transformers have not"),
        ("vit_small_patch14_dinov2", {"act_layer": nn.GELU, "gate_last": False}, "of another kind than DINOv2's"),
        ("vit_small_patch14_dinov2", {"act_layer": nn.SiLU, "gate_last": True}, "of another kind than DINOv2's"),
    ],
)
def test_gates_of_another_kind_are_refused(name, gate, named):
    """Of a plain ViT, whose stock class has none; of another activation; before what they gate or behind it."""
    timm = pytest.importorskip("timm")
    from modeling_lingene.conversion.from_timm import check_model

    layer = partial(timm.layers.GluMlp, gate_last=gate["gate_last"])
    model = timm.create_model(name, depth=1, mlp_layer=layer, act_layer=gate["act_layer"])
    with pytest.raises(ValueError, match=f"`mlp` of it: a gated MLP.*{named}"):
        check_model("it", model, head_matters=False)


@pytest.mark.parametrize("to", ["onnx", "program"])
def test_gated_sizes_are_exported(tmp_path, converted, to):
    """Compared with what the format's own runtime answers, by the export itself; a few layers, narrow."""
    report = export(converted("dinov2")[2], tmp_path / "out", to, depth=3, width_ratio="1/2", allow_untrained=True)
    assert report["relative_difference"] < 1e-5


def test_a_gated_encoder_is_trained_on_at_two_widths(tmp_path, converted, photos):
    """By the command, without labels, its own source the teacher: what people do with the plus of DINOv3."""
    line = ["decompose", "--init", str(converted("dinov3_vit")[2]), "--data", str(photos), "--objective", "features"]
    line += ["--schedule", "elastic", "--widths", "1/2,1", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
    assert cli.main([*line, "--quiet", "--out", str(tmp_path / "run")]) == 0
    trained, before = (
        LinGeneModel.from_pretrained(bundle, constrained=True)
        for bundle in (tmp_path / "run" / "bundle", converted("dinov3_vit")[2])
    )
    moved = {name for name, one in trained.named_parameters() if not torch.equal(one, before.get_parameter(name))}
    assert trained.config.gated_mlp and {name for name in moved if "mlp.gate" in name}
    assert set(trained.config.trained_width_ratios) == {"1/2", "1"}
