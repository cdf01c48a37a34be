"""Laws of `modeling_lingene.measuring.plots`: what is drawn is what was measured, readable and whole."""

import os
import sys
from fractions import Fraction

import pytest


pytest.importorskip("matplotlib")

from modeling_lingene.measuring import plots  # noqa: E402
from modeling_lingene.measuring.plots import pareto, plot_sizes, readable_ticks  # noqa: E402


def rows(depths=(3, 4, 6), widths=("1/2", "1"), components=(1, 2, 4, 6)):
    return [
        {
            "depth": depth,
            "width_ratio": width,
            "num_components": count,
            "stored_params": 200_000 + int(440_000 * count * Fraction(width) ** 2),
            "macs": int(30_000_000 * depth * Fraction(width) ** 2),
            "accuracy": 0.6 - 0.3 / depth - 0.2 / count - 0.2 * float(1 - Fraction(width)),
            "split": "test",
            "dataset": "made up",
        }
        for depth in depths
        for width in widths
        for count in components
    ]


@pytest.fixture
def figure(monkeypatch):
    """The figure of the last `plot_sizes`, kept instead of written."""
    kept = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def test_a_png_of_1650_by_750_pixels_appears_whole(tmp_path, as_shipped):
    """Folders are made, an old file is replaced, nothing else is left."""
    path = tmp_path / "new" / "sizes.png"
    for _ in range(2):
        plot_sizes(rows(), path, title="Sizes")
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
        assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1650, 750)
        assert os.listdir(path.parent) == ["sizes.png"]


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    """Written beside its place, then renamed."""
    from matplotlib.figure import Figure

    def cut(self, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    path = tmp_path / "sizes.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", cut)
    with pytest.raises(OSError, match="disk full"):
        plot_sizes(rows(), path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["sizes.png"]


def test_every_size_is_a_point_in_both_panels(figure, tmp_path):
    """In percent, at its cost, joined with the sizes of its depth and width."""
    measured = rows()
    plot_sizes(measured, tmp_path / "x.png")
    for panel, cost in zip(figure[0].axes, ("macs", "stored_params"), strict=True):
        assert panel.get_xscale() == "log"
        lines = [line.get_xydata().tolist() for line in panel.lines if line.get_linestyle() == "-"]
        assert sorted(map(len, lines)) == [4] * 6
        drawn = sorted(tuple(point) for line in lines for point in line)
        assert drawn == sorted((row[cost], 100 * row["accuracy"]) for row in measured)


def test_the_ringed_sizes_are_those_no_other_beats(figure, tmp_path):
    """Against a double loop over the definition, ties included."""
    measured = rows() + [{**rows()[0], "num_components": 9}]
    plot_sizes(measured, tmp_path / "x.png")
    for panel, cost in zip(figure[0].axes, ("macs", "stored_params"), strict=True):
        unbeaten = set()
        for one in measured:
            better = [r for r in measured if r[cost] <= one[cost] and r["accuracy"] >= one["accuracy"]]
            if all(r[cost] == one[cost] and r["accuracy"] == one["accuracy"] for r in better):
                unbeaten.add((one[cost], 100 * one["accuracy"]))
        (ring,) = [line for line in panel.lines if line.get_linestyle() == "--"]
        assert {tuple(point) for point in ring.get_xydata().tolist()} == unbeaten


def test_pareto_keeps_equal_points_and_drops_beaten_ones():
    """By hand: (cost, value)."""
    assert pareto([1, 1, 2, 2, 3], [5, 5, 5, 7, 6]) == [True, True, False, True, False]


@pytest.mark.parametrize("depths, widths", [((3, 4, 6), ("1/2", "1")), (range(3, 13), ("1/4", "1/2", "3/4", "1"))])
def test_labels_give_the_components_of_ringed_sizes_and_do_not_overlap(figure, tmp_path, as_shipped, depths, widths):
    """A label that covers another one is worse than none, and where sizes crowd every size had one."""
    measured = rows(depths=depths, widths=widths, components=(1, 2, 4, 6, 12))
    plot_sizes(measured, tmp_path / "x.png")
    figure[0].draw_without_rendering()
    for panel, cost in zip(figure[0].axes, ("macs", "stored_params"), strict=True):
        ringed = pareto([row[cost] for row in measured], [row["accuracy"] for row in measured])
        counts = sorted(str(row["num_components"]) for row, kept in zip(measured, ringed) if kept)
        shown = sorted(text.get_text() for text in panel.texts)
        assert shown and all(shown.count(count) <= counts.count(count) for count in shown)
        boxes = [text.get_window_extent() for text in panel.texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        edge = panel.get_window_extent()
        assert all(edge.x0 < box.x0 and box.x1 < edge.x1 and edge.y0 < box.y0 for box in boxes)


@pytest.mark.parametrize(
    "asked, costs",
    [
        ({"depths": (6,), "widths": ("1",)}, ["Stored parameters"]),
        ({"components": (4,), "widths": ("1",)}, ["MACs"]),
        ({"depths": (6,), "widths": ("1",), "components": (4,)}, ["Stored parameters"]),
        ({}, ["MACs", "Stored parameters"]),
    ],
)
def test_a_cost_that_all_sizes_share_has_no_panel(figure, tmp_path, asked, costs):
    """All points would stand above each other in an empty one."""
    plot_sizes(rows(**asked), tmp_path / "x.png")
    labels = [panel.get_xlabel() for panel in figure[0].axes]
    assert len(labels) == len(costs) and all(label.startswith(cost) for label, cost in zip(labels, costs))


@pytest.mark.parametrize("widths", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("counts", [1, 4, 7, 12])
def test_a_heat_map_can_be_read_on_a_card(figure, tmp_path, widths, counts):
    """Four widths side by side were five times as wide as high: a card showed them as a thin line."""
    shares = [f"{number}/8" for number in range(8 - widths + 1, 8)] + ["1"]
    plots.plot_heat(rows(depths=(3, 4, 6, 12), widths=shares, components=range(1, counts + 1)), tmp_path / "x.png")
    wide, high = figure[0].get_size_inches()
    assert wide <= plots.HEAT_INCHES and wide / high < 3.2
    panels = [panel for panel in figure[0].axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == [f"width {Fraction(share)}" for share in shares]
    for panel in panels:
        assert len(panel.texts) == 4 * counts
        assert [label.get_text() for label in panel.get_xticklabels()] == [str(n + 1) for n in range(counts)]


@pytest.mark.parametrize("widths", [["1"], ["1/2", "1"], ["1/4", "1/2", "3/4", "1"]])
@pytest.mark.parametrize("depths, counts", [([3], [1]), ([3], [1, 2, 4]), ([3, 4, 6], [1, 2, 4])])
def test_every_word_of_a_heat_map_is_within_the_picture(figure, tmp_path, widths, depths, counts):
    """Of one depth and width the words beside the colours began and ended outside."""
    shown = [{**row, "images": 100, "standard_errors": {"accuracy": 0.02}} for row in rows(depths, widths, counts)]
    plots.plot_heat(shown, tmp_path / "x.png", "a bundle of clothes on clothes (test)")
    figure[0].draw_without_rendering()
    high = figure[0].bbox.height
    label = figure[0].axes[-1].yaxis.label
    box = label.get_window_extent()
    assert "bold: within one" in label.get_text() and box.y0 >= 0 and box.y1 <= high and box.x1 <= figure[0].bbox.width


def test_legend_names_depths_and_only_several_widths(figure, tmp_path):
    """One width needs no markers explained."""
    plot_sizes(rows(), tmp_path / "x.png")
    plot_sizes(rows(depths=(1,), widths=("1",)), tmp_path / "x.png")
    both, one = ([text.get_text() for text in drawn.legends[0].get_texts()] for drawn in figure)
    assert both[:5] == ["3 layers", "4 layers", "6 layers", "width 1", "width 1/2"]
    assert one[0] == "1 layer" and not any("width" in text for text in one)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.15e6, 2.1e6, ["200 k", "500 k", "1 M", "2 M"]),
        (8e6, 1.2e9, ["10 M", "20 M", "50 M", "100 M", "200 M", "500 M", "1 G"]),
        (0.9e6, 2.2e9, ["1 M", "10 M", "100 M", "1 G"]),
        (1.8e6, 2.9e6, ["2 M", "2.4 M", "2.8 M"]),
        (90, 700, ["100", "200", "500"]),
    ],
)
def test_ticks_are_few_round_numbers_told_as_in_tables(low, high, labels):
    """10^6 is no axis for people, 0.001 G is 1 M beside it, and over three decades 1, 2, 5 ran into each other."""
    ticks, texts = readable_ticks(low, high)
    assert texts == labels and len(ticks) == len(labels)
    assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize("one", [rows()[:1], [*rows()[:1], {**rows()[0], "accuracy": 0.0}], rows(components=(12,))])
def test_degenerate_tables_are_drawn_too(one, tmp_path):
    """One size, one cost, accuracy zero."""
    plot_sizes(one, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


def test_rows_of_different_images_are_refused(tmp_path):
    """Accuracies of two sets are no trade-off."""
    with pytest.raises(ValueError, match=r"`rows` must .* 2 rows of made up \(test\), other \(test\)"):
        plot_sizes([rows()[0], {**rows()[1], "dataset": "other"}], tmp_path / "x.png")
    with pytest.raises(ValueError, match="got 0 rows of none"):
        plot_sizes([], tmp_path / "x.png")
    assert not os.listdir(tmp_path)


def test_a_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    """An optional import must end in one line that says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "modeling_lingene\[analysis\]"'):
        plot_sizes(rows(), tmp_path / "x.png")


def test_the_place_of_every_size_is_told_where_its_point_is(tmp_path, as_shipped):
    """A page marks the chosen size there: the pixel has the colour of the size's depth."""
    import matplotlib.image

    measured = [row for row in rows() if row["num_components"] == 4]
    path = tmp_path / "cost.png"
    places = plots.plot_cost(measured, "macs", path)
    picture = matplotlib.image.imread(path)[..., :3]
    colours = plots.shades([3, 4, 6])
    assert len(places) == len(measured) == 6
    for row, (x, y) in zip(measured, places):
        pixel = picture[int(y * picture.shape[0]), int(x * picture.shape[1])]
        assert abs(pixel - colours[row["depth"]][:3]).max() < 0.02
    with pytest.raises(ValueError, match="`rows`"):
        plots.plot_cost([], "macs", path)


def test_what_one_standard_error_apart_is_looks_alike(figure, tmp_path):
    """Three points of 855 pictures spread over all colours made differences of what nobody can tell apart."""
    errors = {"images": 855, "standard_errors": {"accuracy": 0.017}}
    measured = [row | errors | {"accuracy": 0.54 - 0.01 * place} for place, row in enumerate(rows((3,), ("1",)))]
    plot_sizes(measured, tmp_path / "x.png")  # of one depth and width: there is no panel of MACs
    bars = [line for panel in figure[0].axes for line in panel.collections]
    drawn = sorted(float(abs(high[1] - low[1])) for low, high in bars[0].get_segments())
    assert len(bars) == 1 and drawn == pytest.approx([3.4] * 4)
    assert "bars: one standard error" in " ".join(figure[0].axes[0].get_ylabel().split())
    plots.plot_heat(measured, tmp_path / "x.png")
    panel, bar = figure[1].axes
    low, high = panel.images[0].get_clim()
    assert (high, high - low) == (pytest.approx(54), pytest.approx(17))  # ten standard errors
    bold = {float(text.get_text()) for text in panel.texts if text.get_fontweight() == "bold"}
    assert bold == {54.0, 53.0} and "one standard error (1.7 points) of" in " ".join(bar.get_ylabel().split())
    plots.plot_heat(rows((3,), ("1",)), tmp_path / "x.png")
    assert "bold" not in figure[2].axes[1].get_ylabel()
    assert {text.get_fontweight() for text in figure[2].axes[0].texts} == {"normal"}
