"""Run outside the checkout, with the wheel installed: everything the package needs is in it."""

import importlib
import subprocess
import tempfile
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification

import modeling_lingene
from modeling_lingene.hub import write_card


def main() -> None:
    installed = Path(modeling_lingene.__file__).resolve()
    assert "site-packages" in installed.parts, f"the package comes from {installed}, not from the wheel"
    importlib.import_module("modeling_lingene.conversion.convert")
    importlib.import_module("modeling_lingene.conversion.export")
    assert "{{ card_data }}" in resources.files("modeling_lingene.hub_cards").joinpath("TEMPLATE.md").read_text()
    config = modeling_lingene.LinGeneConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4, depth=2
    )
    assert resources.files("modeling_lingene").joinpath("py.typed").is_file()  # type checkers read our annotations
    model = modeling_lingene.LinGeneForImageClassification(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        model.save_pretrained(bundle)
        write_card(bundle)
        vit = AutoModelForImageClassification.from_pretrained(bundle, num_components=1)
        pixels = torch.rand(1, 3, 8, 8)
        assert torch.allclose(vit(pixels).logits, model(pixels, num_components=1).logits, atol=1e-5)
        subprocess.run(["lingene", "info", str(bundle)], check=True)
        told = subprocess.run(["lingene", "zoo"], check=True, capture_output=True, text=True).stdout
        assert "lingene-fashion-mnist" in told and '"modeling-lingene/' in told, told  # its numbers; weights by name
        told = subprocess.run(["lingene", "--version"], check=True, capture_output=True, text=True).stdout
        assert told == f"modeling_lingene {version('modeling_lingene')}\n", told
    print("wheel: 1 passed, 0 failed")


if __name__ == "__main__":
    main()
