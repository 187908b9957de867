"""The page in a real headless Chromium: it asks nobody for anything, and fits a telephone in the dark."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cvpeft.data.check.page import page
from tests.data.check.test_check import FAULTS, edit, put, run, sound

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    splits = sound(folder)
    for name in ("truncated", "stacked", "box outside"):
        FAULTS[name][0](folder)
    put(folder / "val/3.png", 102)  # a copy of val/2.png
    edit(folder, lambda c: c["categories"].append({"id": 4, "name": "<script>alert(1)</script>"}))
    (folder / "page.html").write_text(page(run(splits), "a test"), "utf-8")
    return folder / "page.html"


def test_it_is_one_file_that_names_no_other(html: Path) -> None:
    text = html.read_text("utf-8")
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert text.count('src="') == text.count('src="data:image/')


def test_it_is_seen(html: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, or name its program in CHROMIUM")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra `dev`")
    sandbox = os.name != "posix" or os.geteuid() != 0  # Chromium refuses to sandbox what root starts
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu"], chromium_sandbox=sandbox)
        tab = browser.new_page(viewport={"width": 375, "height": 700}, color_scheme="dark")
        faults: list[str] = []
        tab.on("console", lambda line: faults.append(line.text))
        tab.on(
            "request", lambda request: faults.append(request.url) if request.url[:5] not in ("file:", "data:") else None
        )
        tab.goto(html.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") == 375
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(14, 17, 20)"
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert tab.locator("figure img").count() >= 1
        assert "1 E-BOX" in tab.inner_text("body")
        browser.close()
    assert faults == []
