"""A Swin bundle through training, measuring and the card: what a plain ViT's goes through, by the same code.

pytest tests/training/test_swin_training.py
"""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageClassification, SwinForImageClassification

import helpers
from modeling_lingene import LinGeneSwinForImageClassification, cli
from modeling_lingene.bundle_lingene import Bundle
from modeling_lingene.folders import read_config
from modeling_lingene.measuring import plots
from modeling_lingene.measuring.grids import checked_sizes
from modeling_lingene.measuring.metrics import count_macs, count_parameters
from modeling_lingene.measuring.tables import readable
from modeling_lingene.modeling_base_lingene import component_scale
from modeling_lingene.training.decomposition import DecompositionSettings, start_from
from modeling_lingene.training.settings import ModelSettings
from modeling_lingene.training.steps import TrainingSettings, decayed_groups
from modeling_lingene.training.summary import network_lines
from modeling_lingene.training.warm_start import fit_sizes


NETWORK = "--stages 2,3,2 --window-size 2 --patch-size 1 --hidden-size 6 --num-attention-heads 3"
TRAINING = "--schedule elastic --depths 2 --widths 1/3 --totals 1,3 --epochs 1 --batch-size 512 --device cpu --quiet"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One epoch over the digits, by the command line."""
    out = tmp_path_factory.mktemp("swin") / "run"
    assert cli.main(["decompose", "--data", "digits", "--out", str(out), *NETWORK.split(), *TRAINING.split()]) == 0
    return SimpleNamespace(out=out, bundle=out / "bundle", config=read_config(out / "bundle"))


def test_every_trained_size_is_measured_as_the_stock_swin_that_it_is(run):
    """Depths of the decomposed stage, widths and prefixes; MACs and parameters of the materialised network."""
    rows = Bundle(run.bundle, run.config).measured()
    sizes = {(row["depth"], row["width_ratio"], row["num_components"]) for row in rows}
    assert sizes == {(depth, width, count) for depth in (2, 3) for width in ("1/3", "1") for count in (1, 3)}
    for row in rows:
        asked = {key: row[key] for key in ("depth", "width_ratio", "num_components")}
        model = AutoModelForImageClassification.from_pretrained(run.bundle, **asked)
        assert type(model) is SwinForImageClassification
        assert model.config.depths == [2, row["depth"], 2]
        assert row["params"] == count_parameters(model) and row["macs"] == count_macs(model.config)
        assert row["stored_params"] == run.config.stored_params(run.config.size(**asked))


def test_the_run_goes_on_and_its_bundle_is_a_start(run, tmp_path, capsys):
    """`--resume` reads it back; another run begins with its weights, at other widths."""
    assert cli.main(["decompose", "--resume", str(run.out)]) == 0
    asked = f"--init {run.bundle} --schedule elastic --widths 2/3 --epochs 1 --batch-size 512 --device cpu --quiet"
    assert cli.main(["decompose", "--data", "digits", "--out", str(tmp_path / "on"), *asked.split()]) == 0
    config = read_config(tmp_path / "on" / "bundle")
    assert config.trained_width_ratios == ["2/3", "1"] and config.depths == [2, 3, 2]


def test_the_commands_that_take_a_bundle_take_this_one(run, tmp_path, capsys):
    """Information, a size as a folder, a measured size, a profile, coefficients, the card."""
    bundle = str(run.bundle)
    lines = [
        f"info {bundle}",
        f"materialise {bundle} --depth 2 --out {tmp_path / 'plain'}",
        f"evaluate {bundle} --depth 2 --num-components 1 --data digits --device cpu",
        f"sweep {bundle} --data digits --depths 3 --widths 1 --components 3 --quiet --out {tmp_path / 's'}",
        f"analyse coefficients {bundle} --out {tmp_path / 'coefficients'}",
        f"card {bundle}",
        f"verify {bundle}",
    ]
    for line in lines:
        assert cli.main(line.split()) == 0, (line, capsys.readouterr().err)
    said = capsys.readouterr().out
    assert "SwinForImageClassification of 2-2-2 layers" in said and "decomposed_stages" in said
    card = (run.bundle / "README.md").read_text()
    assert "SwinForImageClassification" in card and "depth=" in card
    table = json.loads((tmp_path / "coefficients" / "coefficients.json").read_text())["coefficients"]
    assert {key: (len(rows), len(rows[0])) for key, rows in table.items()} == {"2": (2, 3), "3": (3, 3)}


def test_without_labels_is_refused_before_any_work(run, tmp_path, capsys):
    """There is no class token to compare."""
    line = f"decompose --data digits --objective features --init {run.bundle} --out {tmp_path / 'out'} --quiet"
    assert cli.main(line.split()) == 2
    assert "a network of stages has none; train it with labels" in capsys.readouterr().err
    assert not (tmp_path / "out" / "bundle").exists()


@torch.no_grad()
def test_a_first_phase_begins_with_layers_of_the_usual_scale_in_every_stage():
    """Stages of other depths have other coefficients; a component that is alone there has to be larger."""
    model = LinGeneSwinForImageClassification(helpers.tiny_swin(decomposed_stages=[2, 3]).config)
    config = model.config
    usual = {
        name: model.recomposed(config.size())[name].std()
        for name in ("stage2.mlp.fc1.weight", "stage3.mlp.fc1.weight")
    }
    start_from(model, 1)
    first = model.recomposed(config.size(num_components=1))
    for name, scale in usual.items():
        assert abs(float(first[name].std() / scale) - 1) < 0.1
        assert component_scale(config, 1, name) > 0
    assert torch.allclose(first["stage3.norm1.weight"], torch.ones(2, 48))
    assert not any(p.any() for p in model.components[1].parameters())


def test_tables_of_positions_are_not_decayed():
    """As the Swin's authors train them; nor are gains, of merged patches too."""
    model = helpers.tiny_swin().train()
    groups = decayed_groups(model, TrainingSettings(weight_decay=0.1))
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    free = {name for name, p in model.named_parameters() if id(p) not in decayed}
    assert {name for name, p in model.named_parameters() if "position_bias" in name or "norm" in name} <= free
    assert "stage1.downsample.reduction.weight" not in free and "components.0.stage2.mlp.fc1.weight" not in free


@pytest.mark.parametrize("depths", [(2, "2-1"), ("3-1",)], ids=str)
def test_depths_of_several_stages_are_read_or_refused(depths):
    """One number is not enough where two stages are decomposed."""
    config, settings = (
        helpers.tiny_swin(decomposed_stages=[2, 3]).config,
        DecompositionSettings("elastic", depths=depths),
    )
    if 2 in depths:
        with pytest.raises(ValueError, match="`depths` must be the layers of each of the stages 2, 3"):
            settings.check(config)
    else:
        settings.check(config)


@pytest.mark.parametrize("depths", [("2-2-3-2", 4), ("2-2-3-2", "4"), (4, 3, "2-2-3-2")], ids=str)
def test_the_depths_of_a_new_network_are_written_in_one_form(depths):
    """With the layers of every stage, as transformers tells them, or with those of the decomposed one alone."""
    settings = DecompositionSettings("elastic", depths=depths)
    model = ModelSettings(stages=(2, 2, 6, 2), window_size=1, patch_size=1, hidden_size=12)
    assert model.config(helpers.pictures(2), settings).trained_depths == [3, 4, 6]


def test_depths_of_several_stages_are_ordered_by_their_layers():
    """Ten layers are more than six, though "2-10" is less than "2-6" as text."""
    config = helpers.tiny_swin(depths=[1, 2, 10], decomposed_stages=[2, 3]).config
    fit_sizes(SimpleNamespace(config=config), DecompositionSettings("elastic", depths=("1-10", "2-6")))
    assert config.trained_depths == ["2-6", "1-10", "2-10"]
    sizes = checked_sizes(config, config.trained_depths, ["1"], [1])
    assert [size.depth for size in sizes] == ["2-10", "1-10", "2-6"]
    costs = [readable(count_macs(config.stock_config(size), True)) for size in (sizes[-1], sizes[0])]
    config.trained_width_ratios = ["1"]
    assert network_lines(config, True, None)[1].endswith(f": {costs[0]} to {costs[1]} MACs")
    rows = [{"depth": size.depth, "width_ratio": "1", "num_components": 1} for size in sizes]
    assert [depth for depth, _ in plots._series(rows)] == ["2-6", "1-10", "2-10"]
