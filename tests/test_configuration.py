"""Laws of LinGeneConfig: what is stored, what is asked for, what is derived, and what wrong input gets."""

import json
import math
from fractions import Fraction

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig, ViTConfig

from helpers import numpy_table, tiny_config
from modeling_lingene import LinGeneConfig, LinGeneForImageClassification, Size
from modeling_lingene.configuration_lingene import VIT_FIELDS


PAPER = {"nodes": "uniform", "start_degree": 1, "gain_offset": 1.0, "depth_map": "resample"}
STABLE = {"nodes": "roots", "start_degree": 0, "gain_offset": 0.0, "depth_map": "select"}
MATRIX = [[0.1 * layer + 0.01 * n for n in range(5)] for layer in range(6)]
EVERY_FIELD = dict(
    basis="learned",
    coefficient_matrix=MATRIX,
    nodes="uniform",
    start_degree=2,
    degree_weight=0.5,
    gain_offset=0.25,
    scale_residual=True,
    depth_map="select",
    depth_rows={3: [0, 2, 5], 4: [0, 1, 3, 5]},
    trained_depths=[3, 4, 6],
    trained_width_ratios=["1/4", "1/2", "1"],
    weights_id="0123",
    width_ratio="1/2",
    image_size=[16, 32],
    patch_size=[4, 8],
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.2,
    layer_norm_eps=1e-6,
    hidden_act="relu",
    initializer_range=0.03,
    qkv_bias=False,
    problem_type="multi_label_classification",
)


def fields_of(config, names):
    return {name: getattr(config, name) for name in names}


@pytest.mark.parametrize("preset, expected", [("paper", PAPER), ("stable", STABLE)])
def test_a_preset_sets_its_fields(preset, expected):
    """The two published settings, by name."""
    config = tiny_config(preset=preset)
    assert fields_of(config, expected) == expected
    assert (config.basis, config.degree_weight) == ("chebyshev", 0.0)


def test_stable_is_the_default():
    """A bundle made without a word about coefficients is the well-conditioned one."""
    assert tiny_config().to_dict() == tiny_config(preset="stable").to_dict()


@pytest.mark.parametrize("preset, expected", [("paper", PAPER), ("stable", STABLE)])
@pytest.mark.parametrize(
    "name, value", [("nodes", "roots"), ("nodes", "uniform"), ("start_degree", 2), ("gain_offset", 0.5)]
)
def test_a_field_set_by_hand_sets_only_itself(preset, expected, name, value):
    """A falsy value given by hand (0, 0.0) must not be taken for one not given, nor drag others along."""
    assert fields_of(tiny_config(preset=preset, **{name: value}), expected) == {**expected, name: value}


@pytest.mark.parametrize("name, value", [("start_degree", 0), ("gain_offset", 0.0), ("depth_map", "select")])
def test_a_falsy_field_overrides_the_preset(name, value):
    """0 is a choice."""
    assert fields_of(tiny_config(preset="paper", **{name: value}), PAPER) == {**PAPER, name: value}


def test_a_new_bundle_takes_its_reference_from_the_size_asked_for():
    """`LinGeneConfig(depth=6, num_components=4)` is a bundle made for six layers with four components."""
    config = LinGeneConfig(depth=6, num_components=4)
    assert (config.reference_depth, config.reference_components, config.trained_depths) == (6, 4, [6])
    assert config.trained_width_ratios == ["1"]
    assert LinGeneConfig(depth=6).reference_components == 6
    assert (LinGeneConfig().reference_depth, LinGeneConfig().reference_components) == (12, 12)


def test_reference_fields_given_stay_as_they_are():
    """What is stored and what is asked for never share a field."""
    config = LinGeneConfig(reference_depth=12, reference_components=8, depth=6, num_components=4)
    assert (config.reference_depth, config.reference_components, config.trained_depths) == (12, 8, [12])
    assert config.size() == Size(6, Fraction(1), 4)


def test_saving_and_loading_changes_nothing(tmp_path):
    """Through JSON keys of `depth_rows` become strings and tuples lists; both must come back."""
    for number, fields in enumerate(({}, EVERY_FIELD, {"preset": "paper", "num_labels": 3})):
        config = tiny_config(**fields)
        config.save_pretrained(tmp_path / str(number))
        loaded = LinGeneConfig.from_pretrained(tmp_path / str(number))
        before, after = config.to_dict(), loaded.to_dict()
        for own in ("_name_or_path", "transformers_version"):
            before.pop(own, None), after.pop(own, None)
        assert before == after
        assert json.loads(config.to_json_string(use_diff=False)) == json.loads(loaded.to_json_string(use_diff=False))
    config = tiny_config(**EVERY_FIELD)
    assert json.loads(config.to_json_string())["depth_rows"] == {"3": [0, 2, 5], "4": [0, 1, 3, 5]}
    again = LinGeneConfig.from_dict(json.loads(config.to_json_string()))
    assert again.depth_rows == EVERY_FIELD["depth_rows"] and again.coefficient_matrix == MATRIX


def test_a_config_made_from_its_own_dict_is_equal():
    """What transformers' tools do to copy a configuration."""
    config = tiny_config(**EVERY_FIELD)
    assert LinGeneConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert LinGeneConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_every_stock_field_can_be_set_and_every_field_is_saved():
    """A field forgotten in `to_dict` would come back as its default, silently."""
    saved = tiny_config(**EVERY_FIELD).to_dict()
    assert {name: saved[name] for name in EVERY_FIELD} == EVERY_FIELD
    assert len(saved["id2label"]) == 7 and saved["model_type"] == "lingene"


def test_auto_config_knows_the_model_type(tmp_path):
    """Importing the package is enough for `AutoConfig`, with sizes as keywords."""
    tiny_config(degree_weight=0.75).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, depth=3, width_ratio=0.5)
    assert type(config) is LinGeneConfig and isinstance(config, PretrainedConfig)
    assert (config.degree_weight, config.reference_depth) == (0.75, 6)
    assert config.size() == Size(3, Fraction(1, 2), 5)


def test_num_hidden_layers_is_another_name_of_depth(tmp_path):
    """Tools of transformers read and set the usual name."""
    assert LinGeneConfig(num_hidden_layers=6).to_dict() == LinGeneConfig(depth=6).to_dict()
    config = tiny_config()
    assert config.num_hidden_layers == 6
    config.num_hidden_layers = 3
    assert (config.depth, config.size().depth) == (3, 3)
    assert LinGeneConfig(reference_depth=8).num_hidden_layers == 8
    tiny_config().save_pretrained(tmp_path)
    loaded = LinGeneConfig.from_pretrained(tmp_path, num_hidden_layers=4)
    assert (loaded.depth, loaded.num_hidden_layers, loaded.reference_depth) == (4, 4, 6)


def test_both_names_of_the_depth_are_refused(tmp_path):
    """transformers takes the last of two aliases silently."""
    with pytest.raises(ValueError, match="`depth` and `num_hidden_layers`"):
        LinGeneConfig(depth=6, num_hidden_layers=6)
    tiny_config().save_pretrained(tmp_path)
    for load in (LinGeneConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match="`depth` and `num_hidden_layers`"):
            load(tmp_path, depth=3, num_hidden_layers=4)


def test_a_bundle_of_a_newer_format_is_refused(tmp_path):
    """An older reader must not guess what a newer layout means."""
    tiny_config().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["bundle_format"] == 1
    (tmp_path / "config.json").write_text(json.dumps({**stored, "bundle_format": 2}))
    with pytest.raises(ValueError, match="`bundle_format` 2 is newer.*upgrade"):
        LinGeneConfig.from_pretrained(tmp_path)


def test_a_fraction_asked_for_prints_as_json(tmp_path):
    """A size read from a Size object may go straight into `from_pretrained`; the configuration is saved as JSON."""
    tiny_config().save_pretrained(tmp_path)
    config = LinGeneConfig.from_pretrained(tmp_path, width_ratio=Fraction(1, 2))
    assert json.loads(config.to_json_string())["width_ratio"] == "1/2" and config.size().width_ratio == Fraction(1, 2)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("depth", {"depth": 0}),
        ("depth", {"depth": "six"}),
        ("depth", {"depth": 6.0}),
        ("depth", {"depth": True}),
        ("num_components", {"num_components": 0}),
        ("num_components", {"num_components": "4"}),
        ("reference_depth", {"reference_depth": -1}),
        ("reference_components", {"reference_components": 2.5}),
        ("basis", {"basis": "hermite"}),
        ("nodes", {"nodes": "equidistant"}),
        ("depth_map", {"depth_map": "nearest"}),
        ("preset", {"preset": "best"}),
        ("start_degree", {"start_degree": -1}),
        ("start_degree", {"start_degree": 0.5}),
        ("hidden_size", {"hidden_size": 50}),
        ("num_attention_heads", {"num_attention_heads": 0}),
        ("coefficient_matrix", {"basis": "learned"}),
        ("coefficient_matrix", {"coefficient_matrix": MATRIX}),
        ("coefficient_matrix", {"basis": "learned", "coefficient_matrix": MATRIX[:5]}),
        ("coefficient_matrix", {"basis": "learned", "coefficient_matrix": [row[:4] for row in MATRIX]}),
        ("coefficient_matrix", {"basis": "learned", "coefficient_matrix": [*MATRIX[:5], MATRIX[5][:4]]}),
        ("coefficient_matrix", {"basis": "learned", "coefficient_matrix": [1.0] * 6}),
        ("coefficient_matrix", {"basis": "learned", "coefficient_matrix": [*MATRIX[:5], [math.nan] * 5]}),
        ("depth_rows", {"depth_rows": {3: [0, 1]}}),
        ("depth_rows", {"depth_rows": {2: [0, 6]}}),
        ("depth_rows", {"depth_rows": {2: [-1, 0]}}),
        ("depth_rows", {"depth_rows": {"two": [0, 1]}}),
        ("trained_width_ratios", {"trained_width_ratios": ["half"]}),
        ("trained_width_ratios", {"trained_width_ratios": ["1/5", "1"]}),
    ],
)
def test_a_wrong_field_is_named(name, fields):
    """Wrong fields are found when the configuration is made, not when weights of the wrong shape are read."""
    with pytest.raises(ValueError, match=f"`{name}`"):
        tiny_config(**fields)


@pytest.mark.parametrize(
    "name, asked",
    [
        ("depth", {"depth": "six"}),
        ("depth", {"depth": 0}),
        ("depth", {"depth": 2.0}),
        ("depth", {"depth": False}),
        ("num_components", {"num_components": 6}),
        ("num_components", {"num_components": -1}),
        ("num_components", {"num_components": "2"}),
        ("width_ratio", {"width_ratio": "half"}),
        ("width_ratio", {"width_ratio": math.nan}),
        ("width_ratio", {"width_ratio": True}),
        ("width_ratio", {"width_ratio": 0}),
        ("width_ratio", {"width_ratio": -0.5}),
        ("width_ratio", {"width_ratio": 2}),
        ("width_ratio", {"width_ratio": "1/3"}),
    ],
)
def test_a_wrong_size_is_named_however_it_is_asked_for(name, asked, tmp_path):
    """By argument, by field or through loading, where transformers checks no types."""
    config = tiny_config()
    with pytest.raises(ValueError, match=f"`{name}`"):
        config.size(**asked)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"`{name}`"):
        LinGeneConfig.from_pretrained(tmp_path, **asked).size()
    for field, value in asked.items():
        setattr(config, field, value)
    with pytest.raises(ValueError, match=f"`{name}`"):
        config.size()


def test_a_width_through_a_head_is_refused_with_the_legal_ones():
    """The example of the house style: what is wrong, and what to use instead."""
    config = tiny_config(hidden_size=72, num_attention_heads=6)
    with pytest.raises(ValueError, match="`width_ratio` .*0.25 of 6 heads is 1.5.* 1/6, 1/3, 1/2, 2/3, 5/6, 1"):
        config.size(width_ratio=0.25)
    assert config.size(width_ratio=0.3333333) == config.size(width_ratio="2/6") == Size(6, Fraction(1, 3), 5)


def test_mlp_units_limit_the_legal_ratios():
    """Whole heads are not enough: 3/4 of 90 MLP units is no whole number."""
    config = tiny_config(intermediate_size=90)
    assert config.legal_width_ratios == [Fraction(1, 2), Fraction(1)]
    with pytest.raises(ValueError, match="`width_ratio` .*67.5"):
        config.size(width_ratio="3/4")


def test_the_argument_goes_before_the_field_and_the_field_before_what_is_stored():
    """The order in which a size is read."""
    config = tiny_config(reference_depth=6, reference_components=5, depth=3, width_ratio=0.5, num_components=2)
    assert config.size() == Size(3, Fraction(1, 2), 2)
    assert config.size(4, "1/4", 5) == Size(4, Fraction(1, 4), 5)
    assert config.size(num_components=1) == Size(3, Fraction(1, 2), 1)
    assert LinGeneConfig(reference_depth=6, reference_components=5).size() == Size(6, Fraction(1), 5)


def test_a_smaller_depth_keeps_the_number_of_components():
    """Truncating components together with depth costs accuracy; it is never done unasked."""
    assert tiny_config().size(depth=2) == Size(2, Fraction(1), 5)


def test_an_untrained_width_is_refused_with_the_trained_ones():
    """A slice never trained collapses (66 % -> 1.7 %, Scala)."""
    config = tiny_config()
    for trained in (1, 0.5):
        config.check_trained(config.size(width_ratio=trained))
    with pytest.raises(ValueError, match="`width_ratio` 1/4 was never trained.* 1/2, 1, .*allow_untrained"):
        config.check_trained(config.size(width_ratio="1/4"))


def test_a_trained_ratio_is_the_fraction_that_is_meant():
    """A ratio given as a float is accepted when the bundle is made, so it must be found when a size is asked for."""
    config = tiny_config(hidden_size=72, num_attention_heads=6, trained_width_ratios=[0.3333333, "4/6", 1])
    for ratio in ("1/3", "2/3", 1):
        config.check_trained(config.size(width_ratio=ratio))
    assert config.sized(config.size(width_ratio="2/3")).trained_width_ratios == ["1/2", "1"]


def test_select_takes_rows_of_the_reference_coefficients():
    """Stored rows where there are some, else the first of each group; resampling gives others."""
    config = tiny_config(depth_map="select", depth_rows={3: [0, 4, 5]})
    for depth, rows in [(3, [0, 4, 5]), (4, [0, 1, 3, 4]), (6, [0, 1, 2, 3, 4, 5])]:
        table = config.coefficients(config.size(depth))
        assert torch.equal(table, tiny_config().coefficients(tiny_config().size(6))[rows])
        assert torch.allclose(table, torch.from_numpy(numpy_table(config, depth, 5)), rtol=0, atol=1e-12)
    resampling = tiny_config(depth_map="resample")
    resampled = resampling.coefficients(resampling.size(4))
    assert not torch.allclose(config.coefficients(config.size(4)), resampled, atol=0.1)
    with pytest.raises(ValueError, match="`depth` 7 is above `reference_depth` 6"):
        config.size(7)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"preset": "paper"},
        {"basis": "legendre", "degree_weight": 1.0},
        {"basis": "taylor", "nodes": "uniform"},
        {"basis": "fourier", "start_degree": 1},
        {"basis": "learned", "coefficient_matrix": MATRIX},
    ],
)
def test_the_coefficients_of_a_config_are_those_of_its_fields(fields):
    """Each field must reach the formula."""
    config = tiny_config(**fields, depth_map="resample")
    for depth, count in [(6, 5), (3, 2), (9, 4)]:
        ours = config.coefficients(config.size(depth, num_components=count))
        assert torch.allclose(ours, torch.from_numpy(numpy_table(config, depth, count)), rtol=0, atol=1e-12)


def test_residual_branches_are_scaled_in_deeper_models_only():
    """With `scale_residual`, the outputs of both branches (weight and bias) get L / L' where L' > L, nothing else."""
    config, plain = (tiny_config(scale_residual=scale, depth_map="resample") for scale in (True, False))
    outputs = {f"{part}.{kind}" for part in ("attention.output", "mlp.fc2") for kind in ("weight", "bias")}
    for name in config.component_shapes():
        assert config.branch_scale(name, config.size(9)) == (6 / 9 if name in outputs else 1.0)
        assert config.branch_scale(name, config.size(6)) == config.branch_scale(name, config.size(3)) == 1.0
        assert plain.branch_scale(name, plain.size(9)) == 1.0


@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False}, {"image_size": [8, 20], "patch_size": [4, 5]}])
def test_stored_parameters_are_those_of_the_smaller_bundle(fields):
    """What has to be downloaded for a size: the parameters of the constrained model of that size, at any depth."""
    config = tiny_config(**fields)
    for size in (config.size(), config.size(3, "1/2", 2), config.size(2, "1/4", 1)):
        small = LinGeneForImageClassification(config.sized(size))
        assert config.stored_params(size) == sum(parameter.numel() for parameter in small.parameters())
        headless = sum(p.numel() for name, p in small.named_parameters() if not name.startswith("classifier."))
        assert config.stored_params(size, head=False) == headless


def test_sized_is_the_configuration_of_the_smaller_bundle():
    """A constrained model of a size saves as a bundle of that size, in which the same coefficients hold."""
    config = tiny_config(trained_width_ratios=["1/4", "3/4", "1"], degree_weight=0.5, width_ratio="1/2")
    size = config.size(depth=3, num_components=2)
    small = config.sized(size)
    assert (small.hidden_size, small.num_attention_heads, small.intermediate_size) == (24, 2, 48)
    assert (small.reference_depth, small.reference_components) == (6, 2)
    assert (small.depth, small.width_ratio, small.num_components) == (3, None, None)
    assert small.trained_width_ratios == ["1/2"]  # 1/4, 3/4 and 1 divided by 1/2, and those above 1 dropped
    assert small.size() == Size(3, Fraction(1), 2)
    assert torch.equal(small.coefficients(small.size()), config.coefficients(size))
    changed = {"hidden_size", "num_attention_heads", "intermediate_size", "reference_components", "depth"}
    changed |= {"width_ratio", "num_components", "trained_width_ratios"}
    kept = {name: value for name, value in config.to_dict().items() if name not in changed}
    assert kept == {name: value for name, value in small.to_dict().items() if name not in changed}
    assert config.hidden_size == 48 and config.trained_width_ratios == ["1/4", "3/4", "1"]


def test_sized_at_an_untrained_width_has_no_trained_ratio():
    """An initialisation must not pass for a trained model after it was saved."""
    small = tiny_config().sized(tiny_config().size(width_ratio="3/4"))
    assert small.trained_width_ratios == ["2/3"]
    with pytest.raises(ValueError, match="`width_ratio` 1 was never trained"):
        small.check_trained(small.size())
    assert tiny_config().sized(tiny_config().size(width_ratio="1/4")).trained_width_ratios == []


@pytest.mark.parametrize("trained, kept", [(None, None), ([1, 2, 5], [1, 2]), ([5], [])])
def test_sized_keeps_the_numbers_of_components_that_are_left(trained, kept):
    """Not recorded stays not recorded."""
    config = tiny_config(trained_components=trained)
    assert config.sized(config.size(num_components=3)).trained_components == kept
    assert config.trained_components == trained


def test_sized_keeps_labels_and_the_columns_of_a_learned_matrix():
    """The matrix shrinks with the components, or the smaller configuration is refused when it is loaded."""
    names = {number: f"class {number}" for number in range(7)}
    config = tiny_config(**{**EVERY_FIELD, "width_ratio": None}, id2label=names)
    small = config.sized(config.size(depth=4, num_components=2))
    assert small.coefficient_matrix == [row[:2] for row in MATRIX] and config.coefficient_matrix == MATRIX
    assert small.id2label == names and small.depth_rows == EVERY_FIELD["depth_rows"]
    assert LinGeneConfig.from_dict(small.to_dict()).to_dict() == small.to_dict()
    assert torch.equal(small.coefficients(small.size()), config.coefficients(config.size(depth=4, num_components=2)))


@pytest.mark.parametrize("ratio", ["1/4", "1/2", "3/4", "1"])
def test_the_vit_configuration_is_stock_with_the_same_fields(ratio):
    """What a size materialises to: every field that a stock ViT has under the same name, widths times the ratio."""
    labels = {"id2label": {number: f"class {number}" for number in range(7)}}
    labels["label2id"] = {name: number for number, name in labels["id2label"].items()}
    config = tiny_config(**{**EVERY_FIELD, "width_ratio": None}, **labels)
    vit = config.stock_config(config.size(depth=4, width_ratio=ratio, num_components=2))
    widths = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
    expected = {name: EVERY_FIELD[name] for name in VIT_FIELDS if name in EVERY_FIELD}
    expected |= {name: int(width * Fraction(ratio)) for name, width in widths.items()}
    stock = ViTConfig(
        num_hidden_layers=4, num_channels=3, problem_type=EVERY_FIELD["problem_type"], **labels, **expected
    )
    assert type(vit) is ViTConfig and vit.to_dict() == stock.to_dict()


def test_settings_of_a_run_reach_both_configurations():
    """Attention and requested outputs are asked for on the bundle, and hold for what is made from it."""
    config = tiny_config(attn_implementation="eager", output_hidden_states=True, output_attentions=True)
    for made in (config.stock_config(config.size()), config.sized(config.size())):
        assert made._attn_implementation == "eager"
        assert made.output_hidden_states is True and made.output_attentions is True


def test_the_vit_fields_are_those_both_configurations_have():
    """A field that transformers' ViT gains or renames must not be lost on the way."""
    ours, stock = set(LinGeneConfig().to_dict()), set(ViTConfig().to_dict())
    generic = set(PretrainedConfig().to_dict()) | {"model_type", "_name_or_path"}
    assert (ours & stock) - generic == set(VIT_FIELDS)
    assert stock - ours - generic <= {"num_hidden_layers", "encoder_stride", "pooler_act", "pooler_output_size"}


def test_the_vit_defaults_are_those_of_stock():
    """`LinGeneConfig()` is ViT-Base."""
    assert fields_of(LinGeneConfig(), VIT_FIELDS) == fields_of(ViTConfig(), VIT_FIELDS)


def test_a_size_prints_as_one_line():
    """It stands in messages."""
    assert str(Size(6, Fraction(1, 2), 4)) == "depth 6, width ratio 1/2, 4 components"


def test_branches_are_scaled_beyond_the_reference_depth_only():
    """One layer less than the reference is no deeper model: its branches stay as they are."""
    config = tiny_config(scale_residual=True, depth_map="resample")
    for depth, factor in ((5, 1.0), (6, 1.0), (7, 6 / 7)):
        assert config.branch_scale("attention.output.weight", config.size(depth)) == factor
