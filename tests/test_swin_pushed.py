"""A bundle of Swins, and a pruned Swin, pushed by the command and loaded by name where this package is not needed.

pytest -m slow tests/test_swin_pushed.py
"""

import pytest
import torch
from pruning_helpers import network

import helpers
from hub_server import HubServer
from test_hub_server import in_new_process
from test_lingene_swin import mixed_config


pytestmark = pytest.mark.slow


def pushed_back(bundle: str, pruned: str) -> list:
    """Pushes both, and loads each by name."""
    import torch
    from transformers import AutoModelForImageClassification

    from modeling_lingene.cli import main

    assert main(["push", bundle, "org/swin", "--license", "mit", "--quiet"]) == 0
    assert main(["push", pruned, "org/pruned", "--license", "mit", "--quiet"]) == 0
    load, found = AutoModelForImageClassification.from_pretrained, []
    for name, size in (("org/swin", {"depth": 2, "width_ratio": "1/3"}), ("org/pruned", {})):
        model = load(name, trust_remote_code=True, **size).eval()
        side = model.config.image_size
        height, width = side if isinstance(side, list) else (side, side)
        pixels = torch.linspace(-1, 1, 3 * height * width).view(1, 3, height, width)
        found.append([type(model).__name__, model(pixels).logits.tolist()])
    return found


@torch.no_grad()
def test_both_come_back_as_they_were_with_the_code_that_they_need_and_no_other(tmp_path):
    """As a bundle of ViTs does, and a pruned ViT."""
    bundle, pruned = helpers.tiny_swin(), network(mixed_config())
    bundle.save_pretrained(tmp_path / "bundle")
    pruned.save_pretrained(tmp_path / "pruned")
    with HubServer(tmp_path / "hub") as hub:
        found = in_new_process(
            pushed_back,
            hub,
            tmp_path / "home",
            str(tmp_path / "bundle"),
            str(tmp_path / "pruned"),
            NO_PROXY="127.0.0.1",
        )
        files = {name: set(hub.snapshot(name)[1]) for name in ("org/swin", "org/pruned")}
        cards = {name: hub.read(name, "README.md").decode() for name in files}
    (kind, stock), (own, answers) = found
    assert (kind, own) == ("SwinForImageClassification", "LinGenePrunedSwinForImageClassification")
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    expected = bundle(pixels, depth=2, width_ratio="1/3").logits
    torch.testing.assert_close(torch.tensor(stock), expected, rtol=0, atol=1e-5)
    height, width = pruned.config.image_size
    expected = pruned.eval()(torch.linspace(-1, 1, 3 * height * width).view(1, 3, height, width)).logits
    torch.testing.assert_close(torch.tensor(answers), expected, rtol=0, atol=1e-5)
    assert "modeling_swin_lingene.py" in files["org/swin"] and "lingene_swin.py" in files["org/pruned"]
    assert not {"modeling_lingene.py", "lingene_vit.py"} & (files["org/swin"] | files["org/pruned"])
    assert "components of the layers of stage 2" in cards["org/swin"] and "license: mit" in cards["org/pruned"]
