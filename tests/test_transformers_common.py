"""transformers' own common model tests pass on the constrained models and on a pruned one.

pytest tests/test_transformers_common.py
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import transformers

from skips import INSIDE


TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def source() -> Path:
    """transformers' source distribution at the installed version, unpacked, fetched where it is not there yet."""
    if given := os.environ.get("LINGENE_TRANSFORMERS_SOURCE"):
        return Path(given)
    version = transformers.__version__
    cache = Path(tempfile.gettempdir()) / f"transformers-{version}-source"
    unpacked = cache / f"transformers-{version}"
    if not (unpacked / "tests").is_dir():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--quiet", "--dest"]
        try:
            subprocess.run(
                [*command, str(cache), f"transformers=={version}"], check=True, capture_output=True, timeout=300
            )
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"transformers' source distribution cannot be had: {error}")
        with tarfile.open(cache / f"transformers-{version}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
    return unpacked


@pytest.mark.parametrize(
    "kind, least",
    [
        ("LinGeneCommonTest", 100),
        pytest.param("PrunedCommonTest", 90, marks=pytest.mark.slow),
        pytest.param("PrunedSwinCommonTest", 90, marks=pytest.mark.slow),
    ],
)
def test_transformers_own_common_tests_pass(source, record_property, kind, least):
    """What people expect of any of its models: saving, initialisation, gradients, exporting, attention back ends."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-m",
        "",
        "-W",
        "ignore",
    ]
    environment = {**os.environ, "LINGENE_TRANSFORMERS_SOURCE": str(source), "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [*command, f"{TESTS / 'transformers_common.py'}::{kind}"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=TESTS,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least
    skipped = re.findall(r"^SKIPPED \[(\d+)\] .*?\.py:\d+: (.*)$", done.stdout, flags=re.MULTILINE)
    record_property(INSIDE, [reason for count, reason in skipped for _ in range(int(count))])
