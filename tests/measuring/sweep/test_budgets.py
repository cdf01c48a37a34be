"""Laws of latency budgets: the latencies of one device count, this one or one that is named, and nobody else's."""

import re
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from sweeping import GPU, HERE, OLD, OTHER, SIZES, STORED, TIMES, messages, size_of, timed_rows
from transformers import AutoModelForImageClassification

import helpers
from helpers import edit, table
from modeling_lingene import LinGeneForImageClassification, folders
from modeling_lingene.budget_lingene import choose_size, readable
from modeling_lingene.measuring import profiling
from modeling_lingene.measuring.tables import size_table


@pytest.fixture(params=["auto", "class"])
def loader(request):
    """The two ways in: they hand keywords over differently."""
    ways = {"auto": AutoModelForImageClassification, "class": LinGeneForImageClassification}
    return ways[request.param].from_pretrained


@pytest.mark.parametrize(
    "device, limit",
    [(None, 1e9), (None, 9), (None, 8.9), (None, 6.9), (None, 3), (OTHER, 1), (OTHER, 0.4), (GPU, 0.9), (GPU, 50)],
)
def test_a_latency_budget_takes_the_latencies_of_one_device(loader, timed, caplog, device, limit):
    """This one's unless another is named, of rows and profiles alike; one line says which size, why and whose time."""
    keywords = {"max_latency_ms": limit} | ({"latency_device": device} if device else {})
    within = [size for size, milliseconds in TIMES[device or HERE].items() if milliseconds <= limit]
    loaded = loader(timed, **keywords)
    best = min(within, key=SIZES.index)
    assert (loaded.source_size.depth, str(loaded.source_size.width_ratio)) == best[:2]
    assert (loaded.config.num_hidden_layers, loaded.config.hidden_size) == (best[0], 48 * Fraction(best[1]))
    (told,) = messages(caplog, "the most accurate")
    assert told == (
        f"{timed}: depth {best[0]}, width ratio {best[1]}, {best[2]} components: the most accurate "
        f"({90 - 10 * SIZES.index(best)}.0 %) of {len(within)} measured sizes within `max_latency_ms` "
        f"{readable(limit)}, with {TIMES[device or HERE][best]:g} ms on {device or HERE} (when is not recorded)."
    )


def stamped(row: dict, device: str, moment: str, latency: float) -> dict:
    return {"device": device, "latency_ms": latency, "iqr_ms": 0.1, "timed": f"2026-01-{moment} 00:00:00 UTC"}


def test_one_run_on_a_device_decides_at_a_time_and_what_was_timed_earlier_does_not(loader, folder, caplog):
    """Of another moment and load a slow size looks fast: the first run was taken beside no other work."""
    rows = timed_rows([])
    for place, row in enumerate(rows):
        row |= stamped(row, HERE, "02", 1 + place)
        row["profiles"] = [stamped(row, OTHER, "09", 0.1)]
    for row in rows[:3]:
        row["profiles"].append(stamped(row, HERE, "05", 20.0 - 5 * rows.index(row)))
    folders.write_sizes(folder, rows)
    loaded = loader(folder, max_latency_ms=16)
    best = min((size_of(row) for row in rows[1:3]), key=SIZES.index)
    assert (loaded.source_size.depth, str(loaded.source_size.width_ratio)) == best[:2]
    (told,) = messages(caplog, "the most accurate")
    assert f"of 2 measured sizes within `max_latency_ms` 16, with 10 ms on {HERE} (2026-01-05 " in told
    assert told.endswith("; 3 sizes were timed earlier and do not count).")
    latencies = {line["depth"] + line["width"]: line["latency"] for line in table(size_table(rows))}
    assert sum(cell.endswith(" (older)") for cell in latencies.values()) == 3
    assert {row["latency"] for row in table(size_table(rows)) if "older" not in row["latency"]} == {
        "20.00 ms",
        "15.00 ms",
        "10.00 ms",
    }


def sure(row: dict, images: int) -> dict:
    error = (row["accuracy"] * (1 - row["accuracy"]) / images) ** 0.5
    return row | {"images": images, "standard_errors": {"accuracy": round(error, 6)}}


@pytest.mark.parametrize("images, chosen", [(None, 1), (855, 2), (100, 4), (10**6, 1)])
def test_a_budget_takes_the_cheapest_size_that_one_standard_error_does_not_tell_from_the_best(images, chosen):
    """Of 855 pictures 54 % are known to 1.7 points: to choose by 0.1 is to choose by chance, and pay for it."""
    rows = [
        OLD[0] | {"depth": depth, "accuracy": accuracy, "macs": macs}
        for depth, accuracy, macs in [(6, 0.56, 100), (1, 0.541, 50), (2, 0.53, 40), (3, 0.5, 10), (4, 0.495, 9)]
    ]
    rows = rows if images is None else [sure(row, images) for row in rows]
    size, why = choose_size(rows, helpers.tiny_config(**STORED), {"max_macs": 60})
    assert size.depth == chosen
    if images in (855, 100):
        near, error = {855: (2, "1.7"), 100: (4, "5.0")}[images]
        assert f"the cheapest ({100 * rows[chosen]['accuracy']:.1f} %) of {near} that one standard error " in why
        assert f"({error} points, {images} pictures) does not tell from the most accurate (54.1 %) of 4 " in why
    else:
        assert "the most accurate (54.1 %) of 4 measured sizes within `max_macs` 60" in why


NAN, INF = float("nan"), float("inf")

REFUSED = {
    "nothing fits": (
        {"max_latency_ms": 2},
        [
            "`max_latency_ms` 2: no measured size in `sizes.json` fits",
            "depth 3, width ratio 1/2, 5 components",
            "with 3 ms",
        ],
    ),
    "nothing fits on the other": (
        {"max_latency_ms": 0.01, "latency_device": OTHER},
        ["no measured size in `sizes.json` fits", "depth 2, width ratio 1, 5 components", "with 0.1 ms"],
    ),
    "of two budgets one": (
        {"max_latency_ms": 100, "max_macs": 1},
        ["`max_macs` 1 and `max_latency_ms` 100", "no measured size in `sizes.json` fits", "9 MACs"],
    ),
    "a device unheard of": (
        {"max_latency_ms": 5, "latency_device": "Abacus"},
        ["latencies of Abacus", HERE, OTHER, GPU, "lingene profile"],
    ),
    "a device without a budget": ({"latency_device": OTHER}, ["`latency_device`", "`max_latency_ms`"]),
    "a device with another budget": ({"latency_device": GPU, "max_macs": 9}, ["`latency_device`", "`max_latency_ms`"]),
    "a budget and a depth": ({"max_latency_ms": 5, "depth": 3}, ["`max_latency_ms`", "`depth`"]),
    "a budget and a width": (
        {"max_latency_ms": 5, "latency_device": GPU, "width_ratio": "1/2"},
        ["`max_latency_ms`", "`width_ratio`"],
    ),
    "a budget and components": ({"max_macs": 5, "num_components": 2}, ["`max_macs`", "`num_components`"]),
    **{
        f"{name} {limit!r}": ({name: limit}, [f"`{name}` must be a positive number", repr(limit)])
        for name in ("max_latency_ms", "max_macs", "max_params")
        for limit in (0, -1.5, -INF, NAN, True, False, "5")
    },
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_budget_that_says_nothing_or_cannot_be_met_is_refused(loader, timed, case):
    """Nothing is guessed: a size that is too slow by a little fails where the budget came from."""
    keywords, fragments = case
    with pytest.raises(ValueError) as caught:
        loader(timed, **keywords)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


@pytest.mark.parametrize("devices, known", [((OTHER,), [OTHER]), ((GPU, OTHER), [GPU, OTHER]), ((), [])], ids=str)
def test_latencies_of_other_devices_are_refused_and_it_is_said_what_to_do(loader, folder, devices, known):
    """Milliseconds of a fast machine bound nothing on a slow one."""
    folders.write_sizes(folder, timed_rows(devices))
    with pytest.raises(ValueError) as caught:
        loader(folder, max_latency_ms=1e9)
    told = str(caught.value)
    assert f"latencies of {HERE}" in told and "`lingene profile BUNDLE`" in told and "\n" not in told
    assert ("never measured" in told) == (not known) and ("latency_device=NAME" in told) == bool(known)
    assert f"measured on {', '.join(known)}:" in told if known else OTHER not in told


def test_a_profile_of_this_device_makes_a_latency_budget_work(loader, folder):
    """The way out that the message names."""
    folders.write_sizes(folder, timed_rows([OTHER]))
    times = {size_of(row): row["latency_ms"] for row in profiling.profile(folder)}
    limit = sorted(times.values())[3]
    best = min((size for size, milliseconds in times.items() if milliseconds <= limit), key=SIZES.index)
    loaded = loader(folder, max_latency_ms=limit)
    assert (loaded.source_size.depth, str(loaded.source_size.width_ratio), 5) == best


@pytest.mark.parametrize("keywords", [{"max_latency_ms": 5}, {"max_latency_ms": 5, "latency_device": OTHER}], ids=str)
def test_latencies_measured_on_other_weights_are_refused(loader, timed, tmp_path, keywords):
    """The times might hold; the accuracies beside them do not."""
    folder = Path(shutil.copytree(timed, tmp_path / "bundle"))
    edit(folder / "sizes.json", lambda sizes: sizes.update(weights_id="0" * 64))
    with pytest.raises(ValueError, match=r"`sizes\.json`.*`weights_id` differs"):
        loader(folder, **keywords)


@pytest.mark.parametrize(
    "devices, limit, best, whose",
    [
        (tuple(TIMES), 1.9, (6, "1", 5), GPU),
        (tuple(TIMES), 5, (6, "1", 5), GPU),
        ((HERE, OTHER), 5, (3, "1", 5), HERE),  # the GPU was never measured
    ],
    ids=str,
)
def test_on_a_machine_with_a_gpu_its_latencies_come_first(monkeypatch, devices, limit, best, whose):
    """A model is run where it is fastest, as every command does by default."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: GPU)
    config = helpers.tiny_config(**STORED)
    size, why = choose_size(timed_rows(devices), config, {"max_latency_ms": limit})
    assert size == config.size(*best) and why.endswith(f" on {whose} (when is not recorded).")


def test_on_a_machine_with_a_gpu_both_its_devices_are_named_where_neither_was_measured(monkeypatch):
    """And a device that is named is the only one looked at."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "A slow GPU")
    config = helpers.tiny_config(**STORED)
    with pytest.raises(ValueError, match=re.escape(f"latencies of A slow GPU or {HERE}, and")):
        choose_size(timed_rows([OTHER]), config, {"max_latency_ms": 5})
    assert choose_size(timed_rows(), config, {"max_latency_ms": 0.4}, OTHER)[0] == config.size(2, "1", 5)


@pytest.mark.parametrize(
    "damage",
    [{"profiles": [{}]}, {"profiles": None}, {"profiles": [3]}, {"latency_ms": "fast", "device": HERE}],
    ids=str,
)
def test_damaged_latencies_are_refused_by_name(loader, folder, damage):
    """The file is written by a program and edited by hand; its other columns are checked."""
    folders.write_sizes(folder, [row | damage for row in timed_rows()])
    with pytest.raises(ValueError, match=r"`sizes\.json`.*damaged"):
        loader(folder, max_latency_ms=5)


def test_of_equally_accurate_sizes_the_cheapest_is_chosen():
    """By MACs, then by parameters; whatever order the rows are in."""
    rows = [row | {"accuracy": 0.9} for row in timed_rows()[:4]]
    for place, (macs, params) in enumerate([(20, 100), (10, 300), (10, 200), (30, 50)]):
        rows[place] |= {"macs": macs, "params": params}
    for order in (rows, rows[::-1]):
        size, _ = choose_size(order, helpers.tiny_config(), {"max_params": 1000})
        assert str(size) == str(helpers.tiny_config().size(*size_of(rows[2])))
