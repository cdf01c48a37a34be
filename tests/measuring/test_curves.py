"""Laws of `modeling_lingene.measuring.curves`: epochs and components, readable and as they were measured."""

import pytest


pytest.importorskip("matplotlib")

from modeling_lingene.measuring import curves  # noqa: E402


@pytest.fixture
def figure(monkeypatch):
    """The last figure, kept instead of written."""
    kept = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: kept.append(figure))
    return kept


@pytest.mark.parametrize("epochs", [1, 2, 8, 10, 11, 37, 300])
def test_a_history_has_ticks_at_its_epochs_and_nowhere_else(figure, tmp_path, epochs):
    """There is no epoch 0, none after the last, and none and a half."""
    curves.plot_history([{"phase": "a", "loss": 1 / (i + 1)} for i in range(epochs)], tmp_path / "x.png")
    (panel,) = figure[0].axes
    ticks = list(panel.get_xticks())
    assert set(ticks) <= set(range(1, epochs + 1)) and len(ticks) <= 10
    assert len(ticks) == epochs or len(ticks) >= 4
    low, high = panel.get_xlim()
    assert 0 < low < 1 and epochs < high < epochs + 1


@pytest.mark.parametrize("second", ["agreement", "cosine"])
def test_curves_of_a_conversion_are_told_apart_by_colour_and_by_marker(figure, tmp_path, second):
    """Two black lines are one."""
    made = {"activation_residual": 0.5, "relative_logit_error": 0.25, "agreement": 0.5}
    made = made if second == "agreement" else {**made, "cosine": 0.9, "cosine_p5": 0.8}
    curves.plot_conversion([{"num_components": n, **made} for n in range(1, 5)], tmp_path / "x.png", "logit")
    for panel in figure[0].axes:
        for style in ("get_color", "get_marker", "get_linestyle"):
            shown = [getattr(line, style)() for line in panel.lines]
            assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("least, top", [(0.902, 0.992), (0.992, 1.0), (0.1, 0.2)])
def test_agreement_has_the_room_that_it_needs_and_no_point_on_the_edge(figure, tmp_path, least, top):
    """From 0 to 99.2 on, 90 and 99 were a flat line along the upper edge, which cut the last marker."""
    made = {"activation_residual": 0.5, "relative_logit_error": 0.0}
    shown = [{"num_components": n, **made, "agreement": value} for n, value in enumerate((least, top), start=1)]
    curves.plot_conversion(shown, tmp_path / "x.png", "logit")
    low, high = figure[0].axes[1].get_ylim()
    assert low < 100 * least and 100 < high and (100 - low) <= max(1.2 * 100 * (1 - least), 6)
    assert figure[0].axes[0].get_ylim()[0] == 0 and figure[0].axes[0].get_ylim()[1] > 0.5


@pytest.mark.parametrize("phases, epochs, panels", [(2, 1, 2), (3, 3, 2), (12, 3, 2), (12, 1, 1), (24, 2, 2)])
def test_names_of_phases_do_not_run_into_each_other(figure, tmp_path, phases, epochs, panels):
    """Of twelve phases nothing could be read above the picture."""
    told = {"accuracy": 0.5} if panels == 2 else {}
    names = [f"components {2 * n + 1}-{2 * n + 2}" for n in range(phases)]
    history = [{"phase": name, "loss": 1.0, **told} for name in names for _ in range(epochs)]
    curves.plot_history(history, tmp_path / "x.png")
    figure[0].draw_without_rendering()
    for panel in figure[0].axes:
        boxes = sorted((text.get_window_extent() for text in panel.texts), key=lambda box: box.x0)
        assert all(before.x1 < after.x0 for before, after in zip(boxes, boxes[1:]))
        assert panel.texts[0].get_text() == names[0] and len(boxes) >= min(phases, 4)


def test_a_history_is_drawn_with_its_phases_and_only_the_accuracies_that_were_measured(tmp_path):
    """Read back from the figure: what is on the canvas is what was given."""
    rows = [{"phase": f"phase {i // 3}", "epoch": i % 3 + 1, "loss": 2.0 - 0.2 * i} for i in range(6)]
    rows[2]["accuracy"], rows[5]["accuracy"] = 0.25, 0.75
    figures = []
    with pytest.MonkeyPatch.context() as patched:
        original = curves.save_figure
        patched.setattr(curves, "save_figure", lambda figure, path: figures.append(figure) or original(figure, path))
        curves.plot_history(rows, tmp_path / "history.png", "title")
    loss, accuracy = figures[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[i + 1, row["loss"]] for i, row in enumerate(rows)]
    assert accuracy.lines[0].get_xydata().tolist() == [[3, 25.0], [6, 75.0]]
    assert [line.get_xdata()[0] for line in loss.lines[1:]] == [3.5]
    assert [text.get_text() for text in loss.texts] == ["phase 0", "phase 1"]
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="`history`"):
        curves.plot_history([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
