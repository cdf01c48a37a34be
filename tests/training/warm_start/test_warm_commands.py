"""Laws of `--init` on the command line: from a folder that holds a bundle, wherever it lies, and beside no shape.

Against the bundle itself and the flags of the model's settings; what is refused is so in one line.

    pytest tests/training/warm_start/test_warm_commands.py
"""

from pathlib import Path

import pytest
import torch
from asking import OTHERS
from warm import MEAN, NOTHING, begun, history, logits, loop_of, recipe, stored

import helpers
from modeling_lingene import LinGeneConfig, cli


pytest.importorskip("matplotlib")


SHAPE_FLAGS = sorted(OTHERS["model"].keys() - {"num_components", "dropout"})


def lingene(capsys: pytest.CaptureFixture, *arguments) -> tuple[int, str, list[str]]:
    """Status, stdout and the lines on stderr of one command."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()


@pytest.mark.parametrize("name", SHAPE_FLAGS)
def test_a_shape_beside_init_is_refused_by_name(tmp_path, capsys, init, name):
    """It would be passed over in silence."""
    flags = [f"--{name.replace('_', '-')}", OTHERS["model"][name][0]]
    code, out, errors = lingene(
        capsys, "decompose", "--init", init, "--data", "digits", *flags, "--out", tmp_path / "out"
    )
    assert (code, out) == (2, "") and not (tmp_path / "out").exists()
    told = f"lingene decompose: `{flags[0]}` is the bundle's that `--init` names; leave one of them out."
    assert errors == [told]


@pytest.mark.parametrize(
    "kind, named", [("absent", "`--init`"), ("empty", "`--init`"), ("plain", "not a bundle of shared components")]
)
def test_what_is_no_bundle_is_refused_in_one_line(tmp_path, capsys, kind, named):
    """Before data is read: a folder that is not there, holds nothing, or a plain model."""
    if kind == "empty":
        (tmp_path / kind).mkdir()
    if kind == "plain":
        helpers.tiny_model().materialise(2).save_pretrained(tmp_path / kind)
        capsys.readouterr()
    line = ["decompose", "--init", tmp_path / kind, "--data", "digits", "--out", tmp_path / "out"]
    code, out, errors = lingene(capsys, *line)
    assert (code, out, len(errors)) == (2, "", 1) and not (tmp_path / "out").exists()
    assert errors[0].startswith("lingene decompose: ") and named in errors[0] and str(tmp_path / kind) in errors[0]


def test_a_bundle_may_lie_below_the_home_folder(tmp_path, monkeypatch):
    """A shell leaves `--init=~/bundle` as it is; weights and preprocessing are both found there."""
    begun(tmp_path / "bundle")
    monkeypatch.setenv("HOME", str(tmp_path))
    loop = loop_of(monkeypatch, recipe(Path("~/bundle")), tmp_path / "caught")
    assert torch.equal(loop.model.layernorm.weight, stored(tmp_path / "bundle")["layernorm.weight"])
    assert list(loop.images.processor.image_mean) == MEAN


def test_the_command_goes_on_from_a_bundle_with_what_else_a_recipe_says(tmp_path, capsys, init):
    """`--recipe` brings a shape of its own, which does not count; its depths do, and flags change its schedule."""
    line = ["decompose", "--recipe", "digits", "--init", init, "--totals", "1,5", "--epochs", 1, "--batch-size", 14]
    line += ["--schedule", "incremental"]
    code, out, _ = lingene(capsys, *line, "--learning-rate", NOTHING, "--out", tmp_path / "out")
    assert code == 0 and str(tmp_path / "out" / "bundle") in out
    config = LinGeneConfig.from_pretrained(tmp_path / "out" / "bundle")
    assert (config.hidden_size, config.reference_components, config.trained_depths) == (48, 5, [3, 4, 6])
    assert [row["phase"] for row in history(tmp_path / "out")] == ["component 1", "components 2-5"]
    assert torch.allclose(logits(tmp_path / "out" / "bundle"), logits(init), atol=1e-5)
