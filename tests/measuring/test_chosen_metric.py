"""Laws of rows with other metrics than accuracy: one decides, and budgets, tables, figures and cards take that one."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModel

import helpers
from helpers import edit, read, table
from modeling_lingene import LinGeneModel, folders, hub
from modeling_lingene.budget_lingene import METRICS, choose_size, metric_of
from modeling_lingene.bundle_lingene import Bundle
from modeling_lingene.images.batches import image_processor
from modeling_lingene.measuring import plots
from modeling_lingene.measuring.tables import size_table


STORED = {"depth": None, "num_components": None, "reference_depth": 6, "reference_components": 5}
COSINE = {"cosine": 0.9, "cosine_p5": 0.7, "patch_cosine": 0.8, "patch_cosine_p5": 0.6, "reference": "the [full] size"}


def row(depth: int, metric: str | None, **values) -> dict:
    said = {} if metric is None else {"metric": metric}
    costs = {"params": 100 * depth, "stored_params": 50, "macs": 10 * depth}
    size = {"depth": depth, "width_ratio": "1", "num_components": 5}
    return {**size, **costs, **said, **values, "split": "test", "dataset": "made"}


def both(metric: str) -> list[dict]:
    """The deeper has the better k-NN, the less deep the better cosine and the better probe."""
    first = row(6, metric, knn=0.75, probe=0.625, **COSINE)
    return [first, row(3, metric, knn=0.5, probe=0.875, **{**COSINE, "cosine": 0.95})]


@pytest.fixture
def encoder(tmp_path) -> Path:
    folder = tmp_path / "bundle"
    helpers.tiny_model(helpers.tiny_config(**STORED), model_class=LinGeneModel).save_pretrained(folder)
    image_processor(16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "metric, depth, said",
    [("knn", 6, "the best by k-NN (75.0 %)"), ("probe", 3, "the best by linear probe (87.5 %)")]
    + [("cosine", 3, "the best by cosine (0.950)")],
)
def test_a_budget_takes_the_best_by_the_metric_that_decides_and_says_which(encoder, metric, depth, said, caplog):
    """Of several metrics in a row one decides; the user reads by which."""
    folders.write_sizes(encoder, both(metric))
    model = AutoModel.from_pretrained(encoder, max_macs=100)
    assert model.config.num_hidden_layers == depth
    assert any(f"{said} of 2 measured sizes within `max_macs` 100" in record.getMessage() for record in caplog.records)
    assert AutoModel.from_pretrained(encoder, max_macs=30).config.num_hidden_layers == 3


def test_rows_without_a_metric_are_by_accuracy():
    """Files that were written before there was another."""
    rows = [row(3, None, accuracy=0.5, knn=0.9), row(6, None, accuracy=0.75, knn=0.1)]
    size, why = choose_size(rows, helpers.tiny_config(**STORED), {"max_macs": 100})
    assert size.depth == 6 and "the most accurate (75.0 %)" in why
    assert metric_of(rows) == "accuracy" == metric_of([])


def test_sizes_by_different_metrics_are_refused(encoder):
    """0.9 of a cosine is not better than 0.8 of an accuracy."""
    rows = [row(3, None, accuracy=0.5), row(6, "cosine", **COSINE)]
    folders.write_sizes(encoder, rows)
    with pytest.raises(ValueError, match="Sizes measured by accuracy and cosine do not compare.*lingene sweep"):
        AutoModel.from_pretrained(encoder, max_macs=100)
    for shown in (size_table, lambda rows: plots.plot_sizes(rows, encoder / "x.png")):
        with pytest.raises(ValueError, match="do not compare"):
            shown(rows)
    assert not (encoder / "x.png").exists()


@pytest.mark.parametrize("draw", [plots.plot_sizes, plots.plot_heat, size_table], ids=lambda one: one.__name__)
def test_a_metric_that_the_rows_do_not_hold_is_refused(draw, tmp_path):
    """With those that they hold, and how to measure it."""
    rows, where = [both("knn")[0], row(3, "knn", knn=0.5)], [] if draw is size_table else [tmp_path / "x.png"]
    for metric, count in (("accuracy", "2 of 2"), ("probe", "1 of 2"), ("cosine", "1 of 2")):
        with pytest.raises(ValueError, match=f"`metric` {metric} is missing from {count} .* hold knn: .*--metric"):
            draw(rows, *where, metric=metric)
    with pytest.raises(ValueError, match="`metric` must be one of accuracy, knn, probe, cosine; got 'luck'"):
        draw(rows, *where, metric="luck")


DAMAGES = {
    "no metric at all": ({"metric": None}, "`metric`"),
    "an unknown one": ({"metric": "luck"}, "`metric`.*'accuracy', 'knn', 'probe', 'cosine'"),
    "a list": ({"metric": ["knn"]}, "`metric`"),
    "another than is held": ({"metric": "accuracy"}, "`accuracy` is missing from row 1"),
    "more than all": ({"knn": 1.5}, "`knn`.*from 0 to 1"),
    "no number": ({"patch_cosine": "high"}, "`patch_cosine`.*from -1 to 1"),
    "no name": ({"reference": 3}, "`reference`.*a text"),
}


@pytest.mark.parametrize("case", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_metric_is_refused_by_name(encoder, case):
    """The file is written by a program and edited by hand."""
    damage, said = case
    rows = both("knn")
    folders.write_sizes(encoder, [rows[0], rows[1] | damage])
    with pytest.raises(ValueError, match=said):
        Bundle(encoder, folders.read_config(encoder)).measured()


def test_a_table_has_a_column_for_every_measure_and_is_sorted_by_the_one_that_decides():
    """Its columns come first; what was not measured is a dash."""
    rows = [*both("cosine"), row(1, "cosine", cosine=0.925, cosine_p5=-0.5)]
    shown = table(size_table(rows))
    measures = ["cosine", "patch cosine", "k-NN", "probe"]
    assert list(shown[0]) == ["depth", "width", "components", *measures, "parameters", "MACs"]
    assert [line["cosine"] for line in shown] == ["0.950 (0.700)", "0.925 (-0.500)", "0.900 (0.700)"]
    assert [line["patch cosine"] for line in shown] == ["0.800 (0.600)", "-", "0.800 (0.600)"]
    assert [line["k-NN"] for line in shown] == ["50.0 %", "-", "75.0 %"]
    assert [line["depth"] for line in table(size_table(both("cosine"), metric="knn"))] == ["6", "3"]


@pytest.mark.parametrize("metric", ["knn", "probe", "cosine"])
def test_figures_draw_the_metric_that_decides(monkeypatch, tmp_path, metric):
    """On its own scale, under its own name; agreement says whom with."""
    figures, rows = [], both(metric)
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plots.plot_sizes(rows, tmp_path / "x.png"), plots.plot_heat(rows, tmp_path / "x.png")
    sizes, heat = figures
    scale = 1 if metric == "cosine" else 100
    drawn = [
        tuple(point) for line in sizes.axes[0].lines if line.get_linestyle() == "-" for point in line.get_xydata()
    ]
    assert sorted(drawn) == sorted((one["macs"], scale * one[metric]) for one in rows)
    label = " ".join(sizes.axes[0].get_ylabel().split())
    assert label.startswith(METRICS[metric].axis) and ("%" in label) == (scale == 100)
    assert ("the [full] size" in label) == (metric == "cosine")
    numbers = sorted(float(text.get_text()) for text in heat.axes[0].texts)
    assert numbers == pytest.approx(sorted(scale * one[metric] for one in rows), abs=5e-4 * scale)
    assert heat.axes[-1].get_ylabel().startswith(METRICS[metric].axis)


def test_sizes_compared_with_different_references_are_not_drawn_together(tmp_path):
    """Agreement with another model is another number."""
    rows = [one | {"reference": str(place)} for place, one in enumerate(both("cosine"))]
    with pytest.raises(ValueError, match="one reference; got 0 and 1"):
        plots.plot_sizes(rows, tmp_path / "x.png")


@pytest.mark.parametrize("metric, depth", [("knn", 6), ("cosine", 6)])
def test_a_card_shows_what_an_encoder_was_measured_by(encoder, metric, depth):
    """The table, what its columns mean, whom it was compared with - as words - and how a budget chooses."""
    rows = both(metric) if metric == "knn" else [{**one, "cosine": 0.5 + one["depth"] / 20} for one in both(metric)]
    folders.write_sizes(encoder, rows)
    card = hub.render_card(encoder)
    assert table(card) == table(size_table(rows, fetched=folders.download_of(encoder)))
    assert f"does not tell from {METRICS[metric].best} there" in " ".join(card.split())
    assert "agree with those of the \\[full\\] size" in card and "`k-NN` on made (test)" in card
    assert "Accuracy" not in card and f"depth={depth}" in card
    data = ModelCard(card).data
    assert data.metrics[0] == metric and "accuracy" not in data.metrics
    best, value = max(rows, key=lambda one: one[metric]), METRICS[metric].axis
    found = data.eval_results[0]
    assert (found.metric_type, found.metric_value, found.task_type) == (
        metric,
        best[metric],
        "image-feature-extraction",
    )
    assert found.metric_name.startswith(value)
    edit(encoder / "sizes.json", lambda sizes: sizes["sizes"].append(row(2, None, accuracy=0.5)))
    with pytest.raises(ValueError, match="do not compare"):
        hub.render_card(encoder)
    assert len(read(encoder / "sizes.json")["sizes"]) == 3
