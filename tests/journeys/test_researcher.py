"""A researcher compares schedules: the same network and pictures, three ways to train, one table, every run repeated.

pytest -m slow -s tests/journeys/test_researcher.py      # about two minutes on one CPU core
"""

import json
import shlex
from pathlib import Path

import pytest
from walking import lingene, plant


pytestmark = pytest.mark.slow
NETWORK = (
    "--data flowers --hidden-size 32 --num-attention-heads 2 --depth 4 --patch-size 8 --device cpu --batch-size 32"
)
# As many epochs in all: a phase of each number of components, or one run.
SCHEDULES = {
    "incremental": "--schedule incremental --totals 2,4 --epochs 3",
    "simultaneous": "--schedule simultaneous --totals 2,4 --epochs 6",
    "elastic": "--schedule elastic --totals 2,4 --epochs 6",
}


def test_a_researcher_compares_schedules(tmp_path, monkeypatch, capfd):
    for package in ("matplotlib", "datasets"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    plant(Path("flowers"), train=24)

    # What is there to begin with.
    lingene("recipes")
    lingene("recipes fashion_mnist")
    assert "--schedule" not in capfd.readouterr().out.splitlines()[-1]  # elastic is the default

    # Each schedule, two seeds; every size of each is measured.
    table = {}
    for name, how in SCHEDULES.items():
        for seed in (0, 1):
            lingene(f"decompose {NETWORK} {how} --depths 2 --seed {seed} --out runs/{name}-{seed} --quiet")
            for row in sizes(f"{name}-{seed}"):
                table.setdefault((row["depth"], row["num_components"]), {}).setdefault(name, []).append(
                    row["accuracy"]
                )
    for size, found in sorted(table.items()):
        print(size, {name: [f"{value:.1%}" for value in values] for name, values in found.items()})
    assert set(table) == {(2, 2), (2, 4), (4, 2), (4, 4)}
    assert all(set(found) == set(SCHEDULES) for found in table.values())
    assert all(len(values) == 2 for found in table.values() for values in found.values())

    # All phases took as many steps, and a run says what it was: its command, pasted, gives the same weights again.
    epochs = {name: len(history(f"{name}-0")) for name in SCHEDULES}
    assert set(epochs.values()) == {6}, epochs
    facts = json.loads(Path("runs/elastic-1/bundle/training.json").read_text())
    words = shlex.split(facts["command"])[1:]
    words[words.index("RUN")] = "runs/again"
    lingene(shlex.join([*words, "--quiet"]))
    again = json.loads(Path("runs/again/bundle/training.json").read_text())
    assert again["weights_id"] == facts["weights_id"] and history("again") == history("elastic-1")

    # Another seed by mistake is refused, with what to type.
    lingene(f"decompose {NETWORK} {SCHEDULES['elastic']} --depths 2 --seed 1 --out runs/elastic-0 --resume", status=2)
    assert "or repeat --seed 0." in capfd.readouterr().err

    # What the components hold.
    lingene("analyse coefficients runs/elastic-0/bundle --out coefficients")
    lingene("analyse similarity runs/elastic-0/bundle --data flowers --out similarity --quiet")
    assert list(Path("coefficients").glob("*.png")) and list(Path("similarity").glob("*.png"))


def sizes(run: str) -> list[dict]:
    return json.loads(Path("runs", run, "results.json").read_text())["sizes"]


def history(run: str) -> list[float]:
    return [row["loss"] for row in json.loads(Path("runs", run, "history.json").read_text())["epochs"]]
