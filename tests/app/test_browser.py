"""Laws of the page in a real browser: Debian's Chromium without a window, driven by playwright.

apt-get install chromium; pip install "modeling_lingene[app]" playwright
pytest tests/app/test_browser.py -m slow
LINGENE_SCREENSHOTS=FOLDER pytest tests/app/test_browser.py -m slow     # pictures of the page, to look at
"""

import os
import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from modeling_lingene import hub
from modeling_lingene.app import page as pages
from modeling_lingene.app import sizes, views
from modeling_lingene.progress import quiet_loading


pytestmark = pytest.mark.slow
CARDS = Path(hub.__file__).parents[1] / "hub_cards"
BUNDLE, SAMPLES = str(CARDS / "lingene-fashion-mnist"), str(CARDS / "space" / "samples")
CHROMIUM = shutil.which("chromium")
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
WAIT = 20_000  # milliseconds, on a machine that does other things too


@pytest.fixture(scope="module")
def gradio():
    return pytest.importorskip("gradio", reason="needs gradio, of the extra `app`")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    drive = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with drive.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def served(gradio, tmp_path_factory) -> SimpleNamespace:
    """The page of the released bundle and of a copy of it without measured sizes, as `lingene app` shows it."""
    bare = shutil.copytree(BUNDLE, tmp_path_factory.mktemp("app") / "bare")
    (bare / "sizes.json").unlink()
    with socket.socket() as probe:
        probe.bind((pages.HOST, 0))
        port = probe.getsockname()[1]
    page = pages.Page(sizes.read_bundles([BUNDLE, str(bare)]), pages.samples(SAMPLES))
    with quiet_loading():
        blocks = pages.launched(page, pages.HOST, port)
        yield SimpleNamespace(url=f"http://{pages.HOST}:{port}", page=page)
        blocks.close(verbose=False)


@pytest.fixture
def visit(browser, served):
    """Opens the page as a new visitor and waits for its first answer."""
    opened = []

    def open_page(viewport=None):
        context = browser.new_context(viewport=viewport or WIDE)
        opened.append(context)
        page = context.new_page()
        page.outside, page.choosers = [], []
        page.on("request", lambda request: page.outside.append(request.url))
        page.on("filechooser", lambda chooser: page.choosers.append(chooser))  # or it is the browser's own
        page.goto(served.url)
        page.wait_for_selector(".look img", timeout=WAIT)
        page.wait_for_selector("text=depth=", timeout=WAIT)
        return page

    yield open_page
    for context in opened:
        context.close()


def cells(page) -> dict[str, str]:
    """The numbers of the size that is shown."""
    lines = page.locator(".lingene table tr").all_inner_texts()
    return {line.split("\t")[0]: line.split("\t")[1].strip() for line in lines[1:]}


def code(page) -> str:
    return " ".join(page.locator(".cm-content").inner_text().split())


def wait_for_cell(page, name: str, value: str) -> None:
    """Until the first number in a line of the table is this one."""
    script = """([name, value]) => [...document.querySelectorAll('.lingene tr')].some(
        line => line.cells[0].innerText === name && line.cells[1].innerText === value)"""
    page.wait_for_function(script, arg=[name, value], timeout=WAIT)


def screenshot(page, name: str) -> None:
    folder = os.environ.get("LINGENE_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "phone"])
def test_the_page_fits_its_window_and_every_picture_has_words(visit, viewport):
    """At the width of a phone, too; nothing is fetched from anywhere else."""
    page = visit(viewport)
    screenshot(page, f"page_{viewport['width']}")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.locator("img").count() >= 8 + 3 + 2
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator(".samples button").count() == 8
    for button in page.locator(".samples button").all():
        assert button.bounding_box()["height"] >= 44
    assert [url for url in page.outside if not url.startswith(("http://127.0.0.1", "data:", "blob:"))] == []
    page.get_by_role("tab", name="By budget").click()
    page.get_by_role("button", name=re.compile("best measured")).wait_for(timeout=WAIT)
    screenshot(page, f"budget_{viewport['width']}")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_moving_the_size_changes_numbers_mark_and_code(visit, served):
    """Of the page; that they are right is tested without it."""
    page = visit()
    before = page.locator(".mark").first.get_attribute("style")
    page.get_by_label("range slider for Depth: number of layers").fill("6")
    wait_for_cell(page, "Layers", "6")
    page.get_by_role("radio", name="1/2").check()
    wait_for_cell(page, "Width", "1/2")
    bundle = served.page.bundles[BUNDLE]
    size = bundle.config.size(6, "1/2", 6)
    expected = bundle.code(size)
    page.wait_for_function("text => document.querySelector('.cm-content').innerText.includes(text)", arg="depth=6")
    assert code(page) == " ".join(expected.split())
    assert cells(page)["Accuracy"] == bundle.value(size)
    assert page.locator(".mark").first.get_attribute("style") != before


def test_the_keyboard_alone_suffices(visit):
    """Tab reaches everything; arrows, space and enter do it: size, width, budget, sample, file, code."""
    page = visit()

    def tab_to(script: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"(e => {script})(document.activeElement)"):
                shown = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert shown != "none", f"{script}: where the focus is cannot be seen"
                return
        raise AssertionError(f"Tab does not reach {script}")

    tab_to("e.type === 'range' && e.ariaLabel.includes('Depth')")
    page.keyboard.press("ArrowLeft")
    wait_for_cell(page, "Layers", "3")
    tab_to("e.type === 'radio' && e.value === '1/2'")
    page.keyboard.press("Space")
    wait_for_cell(page, "Width", "1/2")
    tab_to("e.ariaLabel === 'Click to upload or drop files'")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1000)
    assert len(page.choosers) == 1
    tab_to("e.ariaLabel && e.ariaLabel.startsWith('Thumbnail 3')")
    page.keyboard.press("Enter")
    page.locator(".look h3", has_text="this size: Dress").wait_for(timeout=WAIT)
    tab_to("e.ariaLabel === 'Copy' || e.title === 'Copy'")
    tab_to("e.role === 'tab' && e.innerText.includes('budget')")
    page.keyboard.press("Enter")
    tab_to("e.type === 'range' && e.ariaLabel.includes('percent')")
    page.keyboard.press("Home")
    tab_to("e.tagName === 'BUTTON' && e.innerText.includes('best measured')")
    page.keyboard.press("Enter")
    page.get_by_text("max_macs").first.wait_for(timeout=WAIT)
    wait_for_cell(page, "Width", "1/4")
    screenshot(page, "keyboard")


def test_a_picture_that_is_dropped_is_shown_and_a_bad_one_gets_a_sentence(visit, served, tmp_path):
    """The file goes through the browser, the upload and the decoder."""
    from PIL import Image

    page = visit()
    with Image.open(Path(SAMPLES) / "trouser.png") as picture:
        picture.resize((300, 300)).convert("RGB").save(tmp_path / "mine.jpg")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "mine.jpg")
    page.locator(".look h3", has_text="this size: Trouser").wait_for(timeout=WAIT)
    page.get_by_role("button", name=re.compile("clear|remove", re.I)).first.click()
    page.get_by_text("Drop a picture, or pick a sample").wait_for(timeout=WAIT)
    (tmp_path / "words.png").write_text("no picture")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "words.png")
    page.get_by_text("This file is no picture").wait_for(timeout=WAIT)
    assert cells(page)["Layers"] == str(served.page.bundles[BUNDLE].first.depth)
    screenshot(page, "bad_picture")


def test_a_bundle_without_measured_sizes_works_and_says_what_is_missing(visit):
    """Chosen on the page, beside one that has them."""
    page = visit(NARROW)
    page.get_by_role("radio", name="bare").check()
    page.get_by_text("this bundle has none").first.wait_for(timeout=WAIT)
    assert "lingene sweep" in page.locator(".lingene code").first.inner_text() and page.locator(".mark").count() == 0
    wait_for_cell(page, "Layers", "6")
    page.get_by_role("tab", name="By budget").click()
    page.get_by_role("button", name=re.compile("best measured")).click()
    page.get_by_text(views.MEASURE).first.wait_for(timeout=WAIT)
    screenshot(page, "bare_390")
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_two_visitors_do_not_disturb_each_other(visit):
    """What one chooses and drops, the other does not see."""
    one, other = visit(), visit()
    one.get_by_label("range slider for Depth: number of layers").fill("2")
    other.get_by_label("range slider for Depth: number of layers").fill("5")
    one.locator(".samples button").nth(7).click()
    wait_for_cell(one, "Layers", "2")
    wait_for_cell(other, "Layers", "5")
    one.locator(".look h3", has_text="all that is stored: Trouser").wait_for(timeout=WAIT)
    assert "Ankle boot" in other.locator(".look h3").last.inner_text()
    assert "depth=2" in code(one) and "depth=5" in code(other)
