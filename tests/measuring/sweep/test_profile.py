"""Laws of profiles: an entry for every size, in its row, in place of that of the same device."""

import itertools
from pathlib import Path

import pytest
import torch
from sweeping import HERE, MEASURED, PROFILES, RUN, load, made_up_time, messages, options, size_of, weights_id
from transformers import AutoModelForImageClassification

from helpers import edit, files, read
from lingene import telling
from lingene.main import options_of
from modeling_lingene import folders
from modeling_lingene.budget_lingene import device_name
from modeling_lingene.measuring import profiling


def made_up_profile(folder: Path, row: dict, batch: int = 64, dtype: torch.dtype = torch.float32) -> dict:
    """What a profile of that size has to say, from a model that is loaded here."""
    model = load(folder, *size_of(row), dtype=dtype)
    one, many = made_up_time(model), made_up_time(model, batch_size=batch)
    return {
        "device": HERE,
        "latency_ms": round(one["median"], 4),
        "iqr_ms": round(one["iqr"], 4),
        **RUN,
        "images_per_second": round(batch / many["median"] * 1000, 1),
        "batch_size": batch,
    }


def test_a_profile_is_of_every_measured_size_and_joins_its_row(measured, tmp_path, work):
    """The file keeps its rows; each shape is timed once, for components change nothing of a loaded model."""
    rows = profiling.profile(measured, batch_size=8, out=tmp_path / "deep" / "profile.json")
    assert work.loads == [(6, "1", 5), (3, "1/2", 5)]
    profiles = [made_up_profile(measured, row, batch=8) for row in MEASURED]
    names = ("depth", "width_ratio", "num_components")
    assert rows == [dict(zip(names, size_of(row))) | profile for row, profile in zip(MEASURED, profiles)]
    assert read(measured / "sizes.json") == {
        "weights_id": weights_id(measured),
        "sizes": [row | {"profiles": [profile]} for row, profile in zip(MEASURED, profiles)],
    }
    assert read(tmp_path / "deep" / "profile.json") == {"weights_id": weights_id(measured), "profiles": rows}


def test_a_profile_replaces_that_of_the_same_device_and_keeps_those_of_others(measured):
    """By its label; sizes that were not asked for keep all of theirs."""
    stale = PROFILES[0] | {"device": HERE, "latency_ms": 99.0}
    folders.write_sizes(measured, [row | {"profiles": [stale, *PROFILES]} for row in MEASURED])
    profiling.profile(measured, depths=(3,))
    first, second, third = read(measured / "sizes.json")["sizes"]
    assert first == MEASURED[0] | {"profiles": [stale, *PROFILES]} and second["profiles"] == first["profiles"]
    fresh = made_up_profile(measured, MEASURED[2])
    assert sorted(third.pop("profiles"), key=str) == sorted([fresh, *PROFILES], key=str)
    assert third == MEASURED[2]


@pytest.mark.parametrize(
    "asked, label, dtype",
    [
        ({}, HERE, torch.float32),
        ({"dtype": "bfloat16"}, f"{HERE}, bfloat16", torch.bfloat16),
        ({"compiled": True}, f"{HERE}, compiled", torch.float32),
        ({"dtype": "float16", "compiled": True}, f"{HERE}, float16, compiled", torch.float16),
        ({"threads": 3, "device": "cpu"}, device_name("cpu", 3), torch.float32),
    ],
    ids=str,
)
def test_the_label_of_a_profile_says_how_the_model_ran(measured, monkeypatch, asked, label, dtype):
    """Latencies of another dtype, compiled, or on more threads are not those of the usual model."""
    compiled, timed = [], []

    def timing(model, threads=None, **keywords):
        timed.append((model, threads))
        return made_up_time(model, **keywords)

    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    monkeypatch.setattr(profiling, "latency_ms", timing)
    rows = profiling.profile(measured, **asked)
    assert {row["device"] for row in rows} == {label}
    assert {next(model.parameters()).dtype for model, _ in timed} == {dtype}
    assert {threads for _, threads in timed} == {asked.get("threads")}
    assert len(compiled) == 2 * asked.get("compiled", False) and not any(model.training for model, _ in timed)
    assert rows[0]["latency_ms"] == made_up_profile(measured, MEASURED[0], dtype=dtype)["latency_ms"]
    profiling.profile(measured)
    labels = [profile["device"] for profile in read(measured / "sizes.json")["sizes"][0]["profiles"]]
    assert sorted(labels) == sorted({label, HERE})


def test_without_measured_sizes_a_profile_warns_and_leaves_the_bundle_alone(folder, source, tmp_path, caplog):
    """A latency needs an accuracy beside it to be chosen by; the numbers are the caller's all the same."""
    rows = profiling.profile(folder, out=tmp_path / "profile.json")
    assert [size_of(row) for row in rows] == list(itertools.product((6, 3), ("1", "1/2"), (5, 4, 2, 1)))
    assert read(tmp_path / "profile.json")["profiles"] == rows
    (told,) = messages(caplog, "no measured sizes")
    assert str(folder) in told and "sweep" in told
    assert files(folder) == files(source)


WRONG_PROFILES = {
    "a dtype": ({"dtype": "int8"}, ["`dtype`", "float32, bfloat16, float16", "'int8'"]),
    "no batch": ({"batch_size": 0}, ["`batch_size`", "at least 1", "got 0"]),
    "no threads": ({"threads": 0}, ["`threads`", "at least 1", "got 0"]),
    "negative threads": ({"threads": -1}, ["`threads`", "at least 1", "got -1"]),
    "no such device": ({"device": "abacus"}, ["`device`", "abacus"]),
    "sizes": (
        {"depths": (0, 3), "widths": ("1/3", "1/2"), "components": (6, 7)},
        ["`depths` must", "got 0", "`widths` must", "1/3 of 4 heads", "`components` 6", "`components` 7"],
    ),
}


@pytest.mark.parametrize("case", WRONG_PROFILES.values(), ids=WRONG_PROFILES)
def test_a_profile_that_cannot_be_taken_is_refused_before_a_model_is_loaded(measured, tmp_path, lingene, work, case):
    """All that is wrong in one line, and no file."""
    asked, fragments = case
    before = files(tmp_path)
    with pytest.raises(ValueError) as caught:
        profiling.profile(measured, out=tmp_path / "out.json", **asked)
    told = lingene("profile", measured, "--out", tmp_path / "out.json", *options(asked))
    said = telling.in_flags(str(caught.value), telling.flags_of(options_of("profile")))
    assert told.code == 2 and told.errors == [f"lingene profile: {said}"]
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert work.loads == [] and files(tmp_path) == before


def test_a_profile_leaves_sizes_json_tied_to_its_weights(measured):
    """A configuration without `weights_id` loads, and is swept: the index names the weights."""
    edit(measured / "config.json", lambda config: config.pop("weights_id"))
    profiling.profile(measured)
    assert AutoModelForImageClassification.from_pretrained(measured, max_macs=10).config.num_hidden_layers == 6
