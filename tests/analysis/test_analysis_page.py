"""The page about the analyses is true: its commands run, and its picture is what one of them draws.

pytest tests/analysis/test_analysis_page.py
"""

import re
import shlex
from pathlib import Path

import pytest

from modeling_lingene.cli import main


pytest.importorskip("pytorch_grad_cam")
Image = pytest.importorskip("PIL.Image")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "modeling_lingene" / "analysis" / "README.md"


@pytest.mark.slow
@pytest.mark.usefixtures("as_shipped")
def test_commands_run_and_the_picture_is_theirs(tmp_path, monkeypatch):
    """As they are pasted, from a checkout; one for every analysis."""
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("hub_cards").symlink_to(ROOT / "hub_cards")
    for line in block.splitlines():
        assert main([*shlex.split(line)[1:], "--quiet"]) == 0
    folders = ["trend", "components", "coefficients", "similarity"]
    for name in folders:
        assert {path.name for path in Path(name).iterdir()} == {f"{name}.{kind}" for kind in ("json", "png", "svg")}
    shown = PAGE.parent / "components.png"
    assert "](components.png)" in text and shown.stat().st_size < 100_000
    assert Image.open(shown).size == Image.open(tmp_path / "components" / "components.png").size
    assert text.count("\n") < 60  # one screen
