"""Laws of `skips.py`: what is skipped is printed, and an unexpected skip fails the run, on one process or several."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


MODULE = """
import pytest

def test_runs():
    pass

def test_skips():
    pytest.skip({reason!r})

def test_lacks():
    pytest.importorskip({package!r})

def test_has_skips_inside(record_property):
    record_property("skipped inside", ["of some kind", "of some kind", "of another"])
"""


@pytest.mark.parametrize(
    "reason, package, status, workers",
    [
        ("needs a GPU", "os", 0, []),
        ("needs a rest", "os", 1, []),
        ("needs a GPU", "no_such_package", 1, []),
        ("needs a GPU", "os", 0, ["-n", "2"]),
        ("needs a rest", "os", 1, ["-n", "2"]),
    ],
)
def test_an_unexpected_skip_is_named_and_fails_the_run(tmp_path, workers, reason, package, status):
    """PEFT and torchao were promised by the README and skipped in silence."""
    (tmp_path / "test_some.py").write_text(MODULE.format(reason=reason, package=package))
    command = [sys.executable, "-m", "pytest", "-p", "skips", "-rs", "-c", os.devnull, "--rootdir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [*command, *workers, str(tmp_path)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert f"test_some.py:8: {reason}" in done.stdout
    assert "skipped 2 inside test_some.py::test_has_skips_inside: of some kind" in done.stdout
    named = [line for line in done.stdout.splitlines() if line.startswith("UNEXPECTED SKIP")]
    assert len(named) == status and all("rest" in line or "no_such_package" in line for line in named)
