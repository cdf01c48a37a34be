"""Laws of `lingene quickstart` and `lingene decompose`: a table, code to paste, a run that can be stopped.

pytest tests/commands/test_training_commands.py
"""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from helpers import ROWS, assert_table_shows, table
from modeling_lingene import hub
from modeling_lingene.measuring import sweep
from modeling_lingene.training import recipes


def pasted(code: str) -> tuple[int, str, int]:
    """The size that the last line of some indented code loads."""
    code, names = textwrap.dedent(code), {}
    exec(code, names)
    size = eval(ast.unparse(ast.parse(code).body[-1]), names).source_size
    return size.depth, str(size.width_ratio), size.num_components


def test_quickstart_shows_its_table_and_code_that_loads_the_best_size(lingene, digits, monkeypatch, tmp_path):
    """What is printed is meant to be pasted."""
    calls = []
    monkeypatch.setattr(recipes, "quickstart", lambda *inputs: calls.append(inputs) or ROWS)
    shutil.copytree(digits.bundle, tmp_path / "run" / "bundle")
    told = lingene("quickstart", "--out", tmp_path / "run", "--seed", 3, "--epochs", 2)
    assert (told.code, told.errors, calls) == (0, [], [(tmp_path / "run", 3, 2)])
    assert_table_shows(ROWS, table(told.out))
    assert pasted(told.out.partition("Load a size:\n\n")[2]) == (6, "1", 5)
    for name in ("bundle", "sizes.png", "results.json"):
        assert str(tmp_path / "run" / name) in told.out


@pytest.mark.parametrize("width", ["1", "1/2"])
def test_decompose_ends_with_code_that_loads_its_best_size_and_commands_that_go_on(
    lingene, digits, monkeypatch, tmp_path, width
):
    """What is printed is meant to be pasted, also where a folder's name has spaces."""
    best = max(ROWS, key=lambda row: row["accuracy"])
    rows = [{**row, "width_ratio": width} if row is best else row for row in ROWS]
    monkeypatch.setattr(recipes, "decompose", lambda *_, **__: rows)
    out = tmp_path / "my run"
    shutil.copytree(digits.bundle, out / "bundle")
    told = lingene("decompose", "--data", "digits", "--out", out)
    assert (told.code, told.errors) == (0, [])
    assert_table_shows(rows, table(told.out))
    code, commands = told.out.partition("Load a size:\n\n")[2].split("\n\nMeasure other sizes, push:\n\n")
    assert pasted(code) == (6, width, 5)
    calls = []
    monkeypatch.setattr(sweep, "sweep", lambda bundle, images, **_: calls.append((bundle, images.name, images.split)))
    monkeypatch.setattr(hub, "push", lambda bundle, repo, **_: calls.append((bundle, repo)))
    for line in commands.splitlines():
        program, *words = shlex.split(line)
        assert program == "lingene" and lingene(*words).code == 0
    assert calls == [(str(out / "bundle"), "digits", "test"), (out / "bundle", "USER/NAME")]


def test_decompose_without_labels_ends_with_the_losses_of_its_sizes(lingene, monkeypatch, tmp_path):
    """There is no accuracy, and nothing that a sweep could measure by labels; the smallest loss comes first."""
    rows = [{key: value for key, value in row.items() if key != "accuracy"} for row in ROWS]
    rows = [{**row, "feature_loss": 0.5 - 0.1 * number} for number, row in enumerate(rows)]
    monkeypatch.setattr(recipes, "decompose", lambda *_, **__: rows)
    told = lingene("decompose", "--data", "faces", "--init", "x", "--objective", "features", "--out", tmp_path / "out")
    assert (told.code, told.errors) == (0, [])
    shown = [float(line.split("|")[4]) for line in told.out.splitlines()[3:] if line.startswith("|")]
    assert shown == pytest.approx(sorted(row["feature_loss"] for row in rows))
    bundle = tmp_path / "out" / "bundle"
    assert f"lingene sweep {bundle}" in told.out and f"lingene push {bundle}" in told.out


def test_a_process_that_is_not_the_main_one_reports_nothing(lingene, monkeypatch, tmp_path):
    """It has no rows; the main one has said everything."""
    monkeypatch.setattr(recipes, "decompose", lambda *_, **__: [])
    told = lingene("decompose", "--data", "digits", "--out", tmp_path / "out")
    assert (told.code, told.out, told.errors) == (0, "", [])


def process(*arguments: str, folder: Path, **options) -> subprocess.Popen:
    """The command line in a new process, with one thread: a step takes milliseconds."""
    command = [sys.executable, "-m", "modeling_lingene.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes, **options)


def stop(running: subprocess.Popen, signum: int, when: Path) -> str:
    """Sends a signal as soon as a path is there, and returns what the process then said on stderr."""
    patience = time.monotonic() + 120
    while not list(when.parent.glob(when.name)) and running.poll() is None and time.monotonic() < patience:
        time.sleep(0.01)
    running.send_signal(signum)
    return running.communicate(timeout=60)[1]


@pytest.mark.slow
def test_a_quickstart_that_is_killed_and_then_asked_to_stop_goes_on_to_the_end(tmp_path):
    """Killed it loses an epoch; asked, by a batch system, no step: there are 10 in each of 12 epochs."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    (tmp_path / "away").mkdir()
    command, checkpoints = ("quickstart", "--epochs", "12", "--out", "../out"), tmp_path / "out" / "checkpoints"
    killed = process(*command, folder=tmp_path / "away")
    stop(killed, signal.SIGKILL, checkpoints / "000-000000010")
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "out" / "results.json").exists()
    interrupted = process(*command, folder=tmp_path / "away")
    said = stop(interrupted, signal.SIGTERM, checkpoints / "000-000000030")
    assert interrupted.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "lingene quickstart: interrupted. Run the same command again to go on."
    assert first_bar(said) >= 10
    step = int(max(path.name for path in checkpoints.iterdir()).split("-")[1])
    finishing = process(*command, folder=tmp_path / "away")
    out, said = finishing.communicate(timeout=120)
    assert finishing.returncode == 0 and first_bar(said) == step >= 30
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["sizes"]
    assert_table_shows(rows, table(out))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "best",
        "bundle",
        "checkpoints",
        "history.json",
        "history.png",
        "results.json",
        "run.json",
        "sizes.png",
    }


def first_bar(said: str) -> int:
    """With how many of the 120 steps the progress bar of training began."""
    return int(re.search(r"training:.*?(\d+)/120 ", said)[1])
