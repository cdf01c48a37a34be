"""Laws of the training tables: how rows are compared and chosen, and that the package's defaults follow from them.

pytest tests/test_evidence.py
"""

import dataclasses
import json
import math
import shlex
import sys
from pathlib import Path

import pytest

from modeling_lingene import LinGeneConfig
from modeling_lingene.conversion.convert import check_fit
from modeling_lingene.conversion.fitting import FITS, ROUNDS
from modeling_lingene.conversion.matching import PASSES
from modeling_lingene.conversion.report import HEALING_RATE
from modeling_lingene.pruning.settings import SEARCHES, PruneSettings
from modeling_lingene.training.decomposition import DecompositionSettings
from modeling_lingene.training.named import METHODS, RECIPES
from modeling_lingene.training.recipes import suited
from modeling_lingene.training.steps import TrainingSettings
from modeling_lingene.training.warm_start import UNLABELLED_RATE, new_rate


BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import backbone  # noqa: E402
from comparing import RESULTS, Table, counted, with_range  # noqa: E402
from decomposition import rows as schedule_rows  # noqa: E402
from elastic import COST  # noqa: E402
from elastic import rows as sizes_rows  # noqa: E402
from protocol import MEASURED, NOISE, Protocol, judged, lowest_good  # noqa: E402
from render_readme import NEW_ROWS, ROOT, WANT_LESS, WANT_MORE, narrow_rates  # noqa: E402
from scales import SCALES, SEEDS, Row  # noqa: E402
from sentences import AGAIN, DEFAULT_ROW, stayed  # noqa: E402


TABLES = ("schedules_fashion", "sizes_fashion")
SWIN = "schedules_swin"
FOURTH = tuple(f"{name}_again" for name in AGAIN)


def table(**rows: list[float]) -> Table:
    return Table({"rows": [{"row": name, "test": {"size": values}} for name, values in rows.items()]})


@pytest.mark.parametrize(
    "one, other, verdict",
    [
        ([0.80, 0.81, 0.82], [0.70, 0.71, 0.72], "better"),
        ([0.70, 0.71, 0.72], [0.80, 0.81, 0.82], "worse"),
        ([0.80, 0.81, 0.90], [0.70, 0.71, 0.805], "equal"),  # the ranges meet
        ([0.800, 0.801, 0.802], [0.797, 0.798, 0.799], "equal"),  # less than half a point
        ([0.80, 0.80, 0.80], [0.80, 0.80, 0.80], "equal"),
        ([0.81], [0.795], "equal"),  # of one seed each less than two points say nothing
        ([0.81], [0.785], "better"),
    ],
)
def test_a_row_is_better_only_where_no_seed_of_the_other_reaches_it(one, other, verdict):
    """A single seed differs by more than two points from another at some sizes."""
    found, difference = table(one=one, other=other).compare("one", "other", "size")
    assert found == verdict and difference == pytest.approx(sum(one) / len(one) - sum(other) / len(other))


def test_verdicts_are_counted_and_their_differences_told():
    """`equal` has no size worth telling."""
    pairs = [("better", 0.021), ("better", 0.006), ("equal", 0.004), ("worse", -0.03)]
    assert counted(pairs) == "better at 2 of 4 by 0.6 to 2.1 points, equal at 1 of 4, worse at 1 of 4 by 3.0 points"
    assert counted([("worse", -0.01), ("worse", -0.01)]) == "worse at all by 1.0 points"
    assert counted([("worse", -0.01)]) == "worse by 1.0 points"
    assert with_range([0.784, 0.782, 0.785]) == "78.4 (78.2-78.5)" and with_range([0.5, 0.5]) == "50.0"


def test_what_a_fourth_seed_does_not_bear_out_is_not_said():
    """A range that grows meets another's; a verdict that appears with the fourth seed alone is none either."""
    rows = {"one": [0.80, 0.81, 0.82], "other": [0.70, 0.71, 0.72], "third": [0.5, 0.5, 0.5], "near": [0.795] * 3}
    results = {"rows": [{"row": name, "test": {"size": values}} for name, values in rows.items()]}
    again = {"rows": [{"row": "other", "test": {"size": [0.805]}}, {"row": "near", "test": {"size": [0.7]}}]}
    before, after = Table(results), Table(results, again)
    words = {
        found: [found.compare("one", name, "size")[0] for name in ("other", "third", "near")]
        for found in (before, after)
    }
    assert words == {before: ["better"] * 3, after: ["equal", "better", "better"]}
    assert after.compare("near", "other", "size")[0] == "equal"  # better, and then their ranges meet
    assert stayed(before.verdicts) == "3 of 3 verdicts of three seeds are the same with a fourth"
    assert stayed(after.verdicts) == (
        "2 of 4 verdicts of three seeds are the same with a fourth, 0 turn round; those that are not count as equal "
        "above: `one` against `other` (1), `near` against `other` (1)"
    )


def test_no_verdict_turns_round_with_a_fourth_seed():
    """Of all that the sentences compare."""
    for name, sentences in AGAIN.items():
        table = Table.read(name)
        sentences(table)
        assert table.more.keys() == table.rows.keys() and table.verdicts
        assert all(before == after or "equal" in (before, after) for before, after in table.verdicts.values())


def test_a_learning_rate_is_the_lowest_that_is_as_good_as_the_best():
    """The highest of equal ones was as good with one seed and three points worse with another."""
    assert lowest_good({0.002: 0.70, 0.004: 0.752, 0.008: 0.756, 0.016: 0.74}) == 0.004
    assert lowest_good({0.002: 0.70, 0.004: 0.75, 0.008: 0.756}) == 0.008
    row = Row(measured={"a": {}, "b": {}}, judged=("b",))
    assert judged(row, {"a": 0.1, "b": 0.9}) == 0.9
    assert judged(Row(measured={"a": {}, "b": {}}), {"a": 0.1, "b": 0.9}) == pytest.approx(0.5)


@pytest.mark.parametrize("best, tried", [(5e-4, (1e-3, 2e-3, 5e-4, 2.5e-4)), (4e-3, (1e-3, 2e-3, 4e-3, 8e-3))])
def test_rates_are_tried_until_the_best_has_neighbours(best, tried):
    """Past either end of the list, by factors of two."""
    asked = []

    class Known(Protocol):
        def __init__(self):
            self.scale, self.known = dataclasses.replace(SCALES["cifar"], rates=(1e-3, 2e-3)), {}
            self.rows = {"row": Row(measured={"a": {}})}

        def run(self, name, seed, rate):
            asked.append(rate)
            return {"validation": {"a": 0.9 - abs(math.log2(rate / best)) / 10}}

    assert Known().choose("row") == best and asked == list(tried)


@pytest.mark.parametrize("name", [*TABLES, SWIN, "sizes_cifar", "pruning_fashion", "tuning"])
def test_every_row_has_all_seeds_a_chosen_rate_with_neighbours_its_cost_and_its_command(name):
    """What a reader needs to believe a number, and to repeat it."""
    results = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))
    seeds = (0,) if name == "sizes_cifar" else SEEDS  # which says so wherever its numbers stand
    assert results["protocol"]["seeds"] == list(seeds) and results["rows"]
    images = results["protocol"]["images"]
    for row in results["rows"]:
        tried = {float(rate): accuracy for rate, accuracy in row["rates"].items()}
        assert row["rate"] == lowest_good(tried) and min(tried) < row["rate"] < max(tried), row["row"]
        for part in ("validation", "test"):
            assert all(len(values) == len(seeds) for values in row[part].values())
        assert row["pictures"] == row["epochs"] * images["train"] and row["cost"] > 0
        assert row["hardware"]


@pytest.mark.parametrize("name", [*TABLES, SWIN, "sizes_cifar", "pruning_fashion", "tuning", "backbone", *FOURTH])
def test_the_command_of_a_row_is_one_that_a_shell_takes(name):
    """Names of rows have apostrophes and commas."""
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert results["rows"]
    for row in results["rows"]:
        *command, option, name = shlex.split(row["command"])
        flags = ["--precision", "bf16"] if row.get("precision", "no") == "bf16" else []
        flags += ["--cache-teacher"] if row.get("cached") else []
        assert command == shlex.split(results["command"]) + flags and (option, name) == ("--rows", row["row"])


def test_rows_of_one_table_cost_what_they_say():
    """In trainings of the dense network, its teacher counted: what is compared costs the same, to 3 %, or to half an
    epoch where that is more, for epochs are whole ones."""
    shared, grid, swin = (Table.read(name) for name in (*TABLES, SWIN))
    assert all(abs(row["cost"] - 1) < 0.03 for table in (shared, swin) for row in table.rows.values())
    bundles = [row for name, row in grid.rows.items() if not name.startswith(("alone", "dense", "not trained"))]
    for row in bundles:
        half = 0.5 * row["cost"] / row["epochs"]
        assert "dense network" in row["row"] or abs(row["cost"] - COST) <= max(0.03 * COST, half + 1e-3), row["row"]


def test_the_defaults_are_the_best_on_the_validation_part_or_equal_to_it():
    """Within the noise of the choice; of equal ones the simpler is the default."""
    tables = [Table.read(name) for name in TABLES]
    defaults = DecompositionSettings()
    assert (defaults.schedule, defaults.sampling) == ("elastic", "one") and not defaults.isolated_activation
    assert defaults.prefixes(6) == SCALES["fashion"].totals == (1, 2, 4, 6)  # drawn: the rows `one, prefixes`
    assert defaults.suited(128).networks == 4
    mean = {name: table.average(name, "validation") for table in tables for name in table.rows}
    alternatives = {
        "one": (
            *("one, full share 0.5", "sandwich", "one, isolated activation"),
            *("scala's networks", "scala as published", "scala as published, depths drawn"),
        ),
        "one, prefixes": ("one",),
        "one, prefixes, 4 networks": ("one, prefixes", "one, prefixes, 8 networks"),
        "elastic, degree weight 1": ("elastic", "incremental", "incremental, outside frozen"),
        "simultaneous, degree weight 1": ("simultaneous",),
        "elastic, degree weight 1, 4 networks": ("elastic, degree weight 1",),
        "incremental": ("incremental, degree weight 1", "incremental, outside frozen", "incremental, paper"),
    }
    for default, others in alternatives.items():
        for name in others:
            assert mean[default] >= mean[name] - NOISE, (default, name)


def test_the_default_fit_is_the_best_on_the_validation_part_or_equal_to_it():
    """At every number of components, untrained and healed: to two points, as of one seed. It ran as it does today."""
    results = json.loads((RESULTS / "conversion_fashion.json").read_text())
    assert results["fit"] == {"rounds": ROUNDS["matched"], "passes": PASSES}
    default = check_fit(LinGeneConfig(depth=2, num_components=1), None, "images", (), (1, 1))
    found = {(row["num_components"], row["start"]): row["validation"] for row in results["rows"]}
    for count in {count for count, _ in found}:
        assert {start for number, start in found if number == count} >= {*FITS, "random", "layers"}
        for stage in found[count, default]:
            best = max(found[count, start][stage] for start in FITS)
            assert found[count, default][stage] >= best - 0.02, (count, stage)


def test_the_default_search_is_the_best_on_the_validation_part_or_equal_to_it():
    """At every share that both were measured at; a random choice is a control, and no default."""
    found = Table.read("pruning_fashion")
    default = PruneSettings(target_macs=0.5).search
    compared = [share for share in ("70 of 100", "50 of 100") if found.has(f"published, {share}", f"none, {share}")]
    assert compared
    for share in compared:
        mean = {search: found.average(f"{search}, {share}", "validation") for search in SEARCHES if search != "random"}
        assert mean[default] >= max(mean.values()) - NOISE, share


def test_what_a_run_was_worth_does_not_lie_where_the_run_keeps_its_own():
    """A run that was stopped looked like one that was done: both were called run.json."""
    from modeling_lingene.training.recipes import OURS

    assert MEASURED not in OURS


def test_a_size_alone_is_better_than_the_bundle_in_colour_as_its_card_says():
    """For as many pictures; every one that was trained so."""
    found, bundle = Table.read("sizes_cifar"), "one, prefixes, 4 networks"
    alone = [name for name in found.rows if name.startswith("alone, long")]
    card = (ROOT / "hub_cards" / "lingene-cifar10" / "README.md").read_text(encoding="utf-8")
    assert len(alone) == 4 and "Each of the four sizes that were trained alone for as many pictures is better" in card
    assert all(found.compare(name, bundle, *found.labels(name))[0] == "better" for name in alone)


def test_the_scales_of_the_tables_are_those_of_the_recipes():
    """A recipe that is shown with a number is the network that was measured."""
    measured, recipe = SCALES["fashion"].model, RECIPES["fashion_mnist_sizes"].model
    shape = ("hidden_size", "num_attention_heads", "intermediate_size", "patch_size", "depth")
    assert [getattr(measured, name) for name in shape] == [getattr(recipe, name) for name in shape]


@pytest.mark.parametrize("results, channels, stages, names", [(*key, names) for key, names in NEW_ROWS.items()])
def test_new_weights_learn_by_default_at_a_rate_that_is_as_good_as_the_best(results, channels, stages, names):
    """To two points of the validation part, which is what one seed can tell; of the networks that were measured."""
    rows, rate = Table.read(results).rows, new_rate(channels, stages)
    for name in names:
        tried = {float(rate): accuracy for rate, accuracy in rows[name]["rates"].items()}
        if (results, name) in WANT_MORE:
            assert max(tried, key=tried.get) == 2 * rate, name
        elif (results, name) in WANT_LESS:
            assert max(tried, key=tried.get) <= rate / 2, name
        else:
            assert tried[rate] >= max(tried.values()) - 0.02, name
        shape = SCALES[Table.read(results).results["protocol"]["scale"]].model
        assert (shape.hidden_size, bool(shape.stages)) == (channels, stages)


def test_narrow_networks_learn_by_default_at_a_rate_that_is_as_good_as_the_best():
    """The rule in channels, at a quarter and half of the channels that it was set at; to two points likewise."""
    found = narrow_rates()
    assert len({rate for _, rate, _ in found}) == 2
    for name, rate, tried in found:
        assert tried[rate] >= max(tried.values()) - 0.02, name


def test_the_published_schemes_are_those_that_the_rows_ran():
    """`--method` and the benchmarks say the same."""
    method, row = METHODS["scala"], sizes_rows(SCALES["fashion"])["scala as published"]
    asked = {**method["decomposition"], **method["objective"]}
    totals = SCALES["fashion"].model.depth
    assert asked.pop("totals") == () and row.settings["totals"] == (totals,)  # which is what no totals are
    assert {name: row.settings[name] for name in asked} == asked
    method, row = METHODS["lindec"], schedule_rows(SCALES["fashion"])["incremental, paper"]
    asked = {**method["model"], **method["decomposition"]}
    assert {name: row.settings[name] for name in asked} == asked


def test_pictures_seen_are_those_that_the_text_says():
    """As many as the bundle; and a third."""
    sizes, pruned = Table.read("sizes_fashion").rows, Table.read("pruning_fashion").rows
    for name, row in sizes.items():
        if name.startswith("alone, long"):
            assert row["pictures"] == pytest.approx(sizes[DEFAULT_ROW]["pictures"], rel=0.02), name
    assert pruned["dense, long"]["pictures"] == 3 * pruned["dense"]["pictures"]


def test_the_recipe_of_every_size_trains_as_the_row_that_was_best():
    """But for the teacher, and how long."""
    row = sizes_rows(SCALES["fashion"])["one, prefixes, 4 networks"]
    recipe = suited(RECIPES["fashion_mnist_sizes"])
    assert recipe.model.shape(recipe.decomposition)["degree_weight"] == row.settings["degree_weight"]
    for name in row.settings.keys() - {"degree_weight"}:
        assert getattr(recipe.decomposition, name) == row.settings[name], name


def test_every_row_of_the_backbone_learns_at_the_rate_that_was_best_and_it_has_neighbours():
    """Longer trainings have the rate of the shortest; what is at another's rate has that one's."""
    rows = {row["row"]: row for row in json.loads((RESULTS / "backbone.json").read_text())["rows"]}
    trained = [name for name in rows if "rate" in rows[name]]
    assert trained
    for name in trained:
        tried = {float(rate): loss for rate, loss in rows[name]["rates"].items()}
        assert rows[name]["rate"] == min(tried, key=tried.get) and min(tried) < rows[name]["rate"] < max(tried), name
        if name.endswith(backbone.ROTATED_RATE):
            assert rows[name]["rates"] == rows["elastic, rotated, 1"]["rates"]


@pytest.mark.parametrize(
    "rate, lower, higher", [(1e-5, 3e-6, 3e-5), (3e-6, 1e-6, 1e-5), (3e-5, 1e-5, 1e-4), (1e-4, 3e-5, 3e-4)]
)
def test_rates_of_the_backbone_go_on_by_ones_and_threes(rate, lower, higher):
    assert backbone.beside(rate, lower=True) == lower and backbone.beside(rate, lower=False) == higher


def test_rows_that_are_known_are_of_the_same_scale(tmp_path):
    file = tmp_path / "backbone.json"
    file.write_text(json.dumps({"scale": "gpu", "rows": [{"row": "layers"}]}))
    assert backbone.known_rows(file, "gpu") == {"layers": {"row": "layers"}}
    with pytest.raises(ValueError, match="backbone.json is of the scale gpu, not of cpu"):
        backbone.known_rows(file, "cpu")


@pytest.mark.parametrize(
    "row, rate",
    [
        ("elastic, rotated, 1", UNLABELLED_RATE),
        ("depths, identity heads", UNLABELLED_RATE),
        ("healed, 6 components", HEALING_RATE),
        ("healed, 9 components", HEALING_RATE),
    ],
)
def test_a_trained_backbone_learns_at_the_rate_that_was_best(row, rate):
    """As many times higher as a step has more images: the linear rule, to a factor of two."""
    (found,) = [one for one in json.loads((RESULTS / "backbone.json").read_text())["rows"] if one["row"] == row]
    more = TrainingSettings().batch_size / backbone.SCALES["cpu"].training.batch_size
    assert 0.5 <= rate / (more * found["rate"]) <= 2
