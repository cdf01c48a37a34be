"""Laws of `--model-args`: a file of another shape than timm's name says is told what it is, and comes in with that.

pytest tests/conversion/test_shapes.py
"""

import re
import shlex

import pytest
import torch
from transformers import AutoModelForImageClassification

import helpers
from modeling_lingene import cli


timm = pytest.importorskip("timm", reason="needs timm")
NAME = "swin_tiny_patch4_window7_224"
SHAPE = {"embed_dim": 12, "depths": [1, 3], "num_heads": [2, 4], "window_size": 4, "patch_size": 2}


@torch.no_grad()
def test_a_swin_of_another_shape_comes_in_with_the_model_args_that_the_error_says(tmp_path, capsys):
    """All of it stands in the tensors but the image size, which the error asks for."""
    from safetensors.torch import save_file

    model = helpers.drawn(timm.create_model(NAME, img_size=32, num_classes=5, **SHAPE))
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "w.safetensors")
    line = ["convert", f"timm:{NAME}", "--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "out")]
    assert cli.main([*line, "--quiet"]) == 2 and not (tmp_path / "out").exists()
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"is of another shape than timm:{NAME}" in said and "embed_dim 12 in place of 96" in said
    assert said.endswith("with img_size where that differs too.")
    (asked,) = shlex.split(re.search(r"--model-args (.*), with img_size", said)[1])
    assert cli.main([*line, "--model-args", f"{asked},img_size=32", "--quiet"]) == 0
    images = helpers.images(2, 32)
    found, expected = (
        AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()(images).logits,
        model(images),
    )
    assert (found - expected).norm() < 1e-4 * expected.norm()
