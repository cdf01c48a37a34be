"""What wrong input gets from `lingene prune`: its name, before any work, and nothing left behind.

pytest tests/pruning/test_prune_refused.py
"""

import shutil
from dataclasses import replace

import pytest
from prune_runs import SETTINGS, TRAINING, small_vit
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
)

import helpers
from modeling_lingene import LinGeneModel, LinGeneSwinModel
from modeling_lingene.cli import main
from modeling_lingene.images.batches import image_processor
from modeling_lingene.pruning.prune import prune
from modeling_lingene.training.losses import Objective


pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"target_macs": 0.0}, "`target_macs` or `target_params` says how much is to be left"),
        ({"target_params": 0.5}, "`target_macs` or `target_params` says how much is to be left"),
        ({"target_macs": 1.5}, "`target_macs` must be from 0 to 1, got 1.5"),
        ({"target_macs": float("nan")}, "`target_macs` must be from 0 to 1, got nan"),
        ({"target_macs": -0.5}, "`target_macs` must be from 0 to 1, got -0.5"),
        ({"search": "evolution"}, "`search` must be one of none, published, random, got 'evolution'"),
        ({"mixing_temperature": -1.0}, "`mixing_temperature` must be from 0 to 1e"),
        ({"calibration_images": 0}, "`calibration_images` must be an integer of at least 1"),
        ({"validation_share": 1.0}, "`validation_share` must be from 0 to below 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
    """By name, when they are made."""
    with pytest.raises(ValueError, match=said):
        replace(SETTINGS, **changes)


def test_an_objective_without_labels_is_refused_and_none_of_its_flags_is_there(tmp_path, vit, capsys):
    """They were taken, and the network learned from labels all the same."""
    with pytest.raises(ValueError, match="`objective` features learns without labels, and a pruning learns from"):
        prune(vit, tmp_path / "out", SETTINGS, TRAINING, objective=Objective(kind="features"))
    assert not (tmp_path / "out").exists()
    for flag in ("--objective", "--feature-heads", "--mask-share"):
        with pytest.raises(SystemExit):
            main(["prune", str(vit), "--target-macs", "0.5", "--data", "digits", "--out", "out", flag, "labels"])
        assert f"`{flag} labels` is none of its options" in capsys.readouterr().err


@pytest.mark.parametrize(
    "case, said",
    [
        ("all", "`target_macs` 1 of the dense network's cost cannot be met: give a share below 1, and from 0.2"),
        ("too little", "`target_macs` 0.01 of the dense network's cost cannot be met: give a share below 1, and from"),
        ("size", "`depth` chooses a size of a bundle, and .* is a vit model"),
        ("nothing", "`model` must be a ViT or a bundle.* there is no folder"),
        ("swin", "`use_absolute_embeddings` True of .*: positions that are learned for one image size"),
        ("registers", "`model` .* is a dinov2_with_registers model; those that can be pruned: vit, swin"),
        ("headless", "`model` .* has no classifier; fine-tune it"),
        ("headless bundle", "`model` .* has no classifier; fine-tune it"),
        ("headless Swin", "`model` .* has no classifier; fine-tune it"),
        ("DINOv3 bundle", "`model` .* is a dinov3_vit model; those that can be pruned: vit, swin"),
        (
            "classes",
            "`model` .* has no class 7, 8, 9 of digits; it knows 0, 1, 2, 3, .*7 in all.*Train it on these",
        ),
        ("others", "`model` .* has no class 0, .* of digits; it knows letter 0, .*give --relabel"),
        ("heads", "`model` has so few heads"),
        ("data", "`data` must be"),
        ("teacher", "`teacher` .* has 7 classes, and digits has 10; fine-tune it on this set first"),
        ("full", "`out` .* must be a new or empty folder"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_any_work(tmp_path, vit, case, said):
    """And leaves nothing behind."""
    from transformers import (
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersForImageClassification,
        ViTModel,
    )

    model, settings, size, out = tmp_path / "model", SETTINGS, {}, tmp_path / "out"
    if case == "swin":
        shape = dict(image_size=8, patch_size=2, embed_dim=8, depths=[1], num_heads=[1], window_size=2)
        SwinForImageClassification(SwinConfig(**shape, use_absolute_embeddings=True)).save_pretrained(model)
    elif case == "registers":
        config = Dinov2WithRegistersConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        Dinov2WithRegistersForImageClassification(config).save_pretrained(model)
    elif case == "headless":
        ViTModel(ViTConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1)).save_pretrained(model)
    elif case == "headless bundle":
        save_headless(helpers.tiny_model(helpers.tiny_config(num_labels=10), model_class=LinGeneModel), model)
    elif case == "DINOv3 bundle":
        config = helpers.tiny_config(family="dinov3_vit", num_register_tokens=1)
        save_headless(helpers.tiny_model(config, model_class=LinGeneModel), model)
    elif case == "headless Swin":
        config = helpers.tiny_swin(num_labels=10).config
        save_headless(helpers.tiny_model(config, model_class=LinGeneSwinModel), model)
    elif case == "classes":
        small_vit(model, id2label={n: str(n) for n in range(7)}, label2id={str(n): n for n in range(7)})
    elif case == "others":
        letters = {n: f"letter {n}" for n in range(10)}
        small_vit(model, id2label=letters, label2id={name: n for n, name in letters.items()})
    elif case == "heads":
        small_vit(model, num_attention_heads=1)
    elif case != "nothing":
        shutil.copytree(vit, model)
    if case in ("all", "too little"):
        settings = replace(SETTINGS, target_macs=1.0 if case == "all" else 0.01)
    elif case == "size":
        size = {"depth": 2}
    elif case == "teacher":
        small_vit(tmp_path / "teacher", id2label={n: str(n) for n in range(7)}, label2id={str(n): n for n in range(7)})
        settings = replace(SETTINGS, teacher=str(tmp_path / "teacher"))
    elif case == "data":
        settings = replace(SETTINGS, data="no/such/place")
    elif case == "full":
        out = model
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=said):
        prune(model, out, settings, TRAINING, size=size)
    assert sorted(tmp_path.rglob("*")) == before


def save_headless(model, folder):
    model.save_pretrained(folder)
    image_processor(16).save_pretrained(folder)


def test_what_an_interrupted_run_left_is_there_after_a_refusal(tmp_path, vit):
    """Only what the refused call itself has written goes."""
    out = tmp_path / "out"
    shutil.copytree(vit, out / "dense")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="`data`"):
        prune(vit, out, replace(SETTINGS, data="no/such/place"), TRAINING, resume=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_line_says_what_is_missing(capsys, vit, tmp_path):
    """One line, status 2."""
    assert main(["prune", str(vit), "--target-macs", "0.5", "--out", str(tmp_path / "out")]) == 2
    assert "`--data` says what to train and measure on" in capsys.readouterr().err
