"""Laws of the coefficients' picture: what is drawn and written is what layers are made of.

pytest tests/analysis/test_coefficients.py
"""

import json

import numpy
import pytest

import helpers
from modeling_lingene.analysis import figures as plots
from modeling_lingene.analysis.coefficients import analyse_coefficients
from modeling_lingene.cli import main


pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    config = helpers.tiny_config(trained_depths=[3, 6])
    return helpers.bundle(tmp_path_factory.mktemp("coefficients") / "bundle", config), config


def test_a_command_writes_the_coefficients_of_the_trained_depths(bundle, tmp_path, capsys):
    """By numpy, from the papers' formula; as numbers and as two pictures."""
    folder, config = bundle
    assert main(["analyse", "coefficients", str(folder), "--out", str(tmp_path / "out")]) == 0
    tables = json.loads((tmp_path / "out" / "coefficients.json").read_text())["coefficients"]
    assert list(tables) == ["3", "6"]
    for depth, table in tables.items():
        expected = helpers.numpy_table(config, int(depth), config.reference_components)
        numpy.testing.assert_allclose(table, expected, rtol=1e-9, atol=1e-12)
    assert (tmp_path / "out" / "coefficients.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "out" / "coefficients.svg").read_bytes()
    assert "coefficients.png" in capsys.readouterr().out


def test_a_curve_is_a_component_and_a_panel_is_a_depth(bundle, tmp_path, monkeypatch):
    """Read back from the figure."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    tables = analyse_coefficients(bundle[0], tmp_path / "out", depths=(2, 4))
    for panel, depth in zip(figures[0].axes, (2, 4)):
        curves = panel.lines[:-1]  # the last one is zero
        numpy.testing.assert_allclose(numpy.array([curve.get_ydata() for curve in curves]).T, tables[depth])
        assert all(list(curve.get_xdata()) == list(range(1, depth + 1)) for curve in curves)
        assert [curve.get_label() for curve in curves] == [f"component {n}" for n in range(1, 6)]
        assert panel.get_title() == f"{depth} layers"


@pytest.mark.parametrize(
    "options, said",
    [
        (["coefficients", "{plain}"], "not a bundle"),
        (["coefficients", "{bundle}", "--depths", "0"], "`--depths`"),
        (["trend", "{bundle}", "--depths", "3"], "`--depths` is of coefficients"),
    ],
)
def test_what_has_no_such_coefficients_is_refused_in_one_line(bundle, tmp_path, capsys, options, said):
    """And nothing is written."""
    helpers.tiny_model(bundle[1]).materialise(3).save_pretrained(tmp_path / "plain")
    words = [word.format(plain=tmp_path / "plain", bundle=bundle[0]) for word in options]
    assert main(["analyse", *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
