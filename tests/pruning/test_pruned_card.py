"""Laws of a pruned model's card and push: it says what its layers became, and sends what it consists of.

pytest tests/pruning/test_pruned_card.py
"""

import json
import shlex
from dataclasses import replace

import pruning_helpers as made
import pytest
from prune_runs import SETTINGS, TRAINING
from transformers import AutoConfig

import helpers
from hub_server import HubServer
from modeling_lingene.cli import build_parser
from modeling_lingene.images.batches import image_processor
from modeling_lingene.pruning.card import became
from modeling_lingene.pruning.options import asked_pruning
from modeling_lingene.pruning.prune import prune
from modeling_lingene.pruning.record import pruning_facts, write_pruning
from modeling_lingene.pruning.write import simplest
from modeling_lingene.training.steps import TrainingSettings
from test_hub_server import in_new_process


def pushed(littered: str, stock: str, trained: str) -> list:
    """Pushes by the command; what is verified, and how, is tested elsewhere."""
    from transformers import AutoModelForImageClassification

    from modeling_lingene.cli import main
    from modeling_lingene.pruning import card

    card.check_loads = card.verify_loads = lambda *_: None
    names = {"org/littered": littered, "org/stock": stock, "org/trained": trained}
    codes = [main(["push", folder, name, "--quiet"]) for name, folder in names.items()]
    return [codes, type(AutoModelForImageClassification.from_pretrained("org/stock")).__name__]


def of(mixers: str, units: list[int]) -> list[dict]:
    return [{"mixer": mixer, "units": count, "of": 96} for mixer, count in zip(mixers.split(), units, strict=True)]


@pytest.mark.parametrize(
    "layers, said",
    [
        (of("attention attention", [96, 96]), "every layer has kept its attention, and no MLP has lost a unit"),
        (of("attention attention", [8, 96]), "every layer has kept its attention, and 104 of 192 MLP units are left"),
        (
            of("conv1 attention conv3", [96] * 3),
            "attention has become a small convolution in 2 of 3 layers, and no MLP has lost a unit",
        ),
        (
            of("none attention none", [40, 96, 96]),
            "attention has become nothing in 2 of 3 layers, and 232 of 288 MLP units are left",
        ),
        (
            of("conv3 none attention attention", [1] * 4),
            "attention has become a small convolution in 1 and nothing in 1 of 4 layers, "
            "and 4 of 384 MLP units are left",
        ),
    ],
)
def test_the_card_says_what_the_layers_became(layers, said):
    """At a mild target no attention is lost, and it said that some was."""
    assert became(layers) == said


def test_a_mildly_pruned_models_card_claims_no_convolution(tmp_path, vit):
    """Against the configuration of the model that it is of."""
    settings = replace(SETTINGS, target_macs=0.95, calibration_images=16, tune=False)
    prune(vit, tmp_path / "out", settings, TRAINING)
    config = AutoConfig.from_pretrained(tmp_path / "out" / "model")
    assert set(config.mixers) == {"attention"} and sum(config.intermediate_sizes) < 192
    card = " ".join((tmp_path / "out" / "model" / "README.md").read_text().split())
    left = f"{sum(config.intermediate_sizes)} of 192 MLP units are left (SPViT, "
    assert f"every layer has kept its attention, and {left}" in card and "convolution" not in card


def test_a_push_sends_what_a_pruned_model_consists_of(tmp_path):
    """A star in a pattern of the Hub's library is also of a slash: whatever ended in .py went along.

    Where all layers are alike that is a stock model; another stock model is no result of a pruning, and refused.
    """
    stock, trained = tmp_path / "stock", tmp_path / "trained"
    for place, command in ((stock, "lingene prune vit --out RUN"), (trained, "lingene decompose --out RUN")):
        simplest(made.network(made.dense_config(units=40))).save_pretrained(place)
        write_pruning(place, {"command": command})
    folder = tmp_path / "littered"
    made.network(made.mixed_config()).save_pretrained(folder, max_shard_size="100KB")
    image_processor(16).save_pretrained(folder)
    own = set(helpers.files(folder))
    for name in (
        "notes/private.py",
        "model_old/old.safetensors.bak",
        "model-old.safetensors",
        "keys.py",
        "a/layers.png",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    with HubServer(tmp_path / "hub") as hub:
        given = [str(place) for place in (folder, stock, trained)]
        assert in_new_process(pushed, hub, tmp_path / "home", *given) == [[0, 0, 2], "ViTForImageClassification"]
        sent, plain = (set(hub.snapshot(name)[1]) for name in ("org/littered", "org/stock"))
        assert "org/trained" not in hub.repos
    assert sent == own | {".gitattributes", "README.md"}
    assert plain == {".gitattributes", "README.md", "config.json", "model.safetensors", "training.json"}
    assert {"lingene_vit.py", "vit_lingene.py", "model.safetensors.index.json"} <= sent


@pytest.mark.parametrize("epochs", [30, 60])
def test_the_recorded_command_tells_what_the_command_would_not_take_by_itself(epochs):
    """Its defaults are 30 epochs at 5e-4, and not those of a training from nothing."""
    training = TrainingSettings(epochs=epochs, learning_rate=5e-4)
    facts = pruning_facts("org/vit", SETTINGS, training, (), [{"seconds": 1.0}], "digits", 5, ("a machine", 1))
    assert ("--epochs 60" in facts["command"]) == (epochs == 60) and "--learning-rate" not in facts["command"]
    arguments = vars(build_parser("prune").parse_args(shlex.split(facts["command"])[1:]))
    assert asked_pruning(arguments, {})["training"] == training and facts["base_model"] == "org/vit"


def test_a_pruning_that_is_given_no_learning_rate_has_its_own(tmp_path, vit):
    """Of all trainings, -1 is none: a loop's own rate is no trained network's."""
    asked = replace(SETTINGS, calibration_images=8, tune=False)
    prune(vit, tmp_path / "run", asked, TrainingSettings(epochs=1, device="cpu"))
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["asked"]["training"]["learning_rate"] == kept["identity"]["learning_rate"] == 5e-4
