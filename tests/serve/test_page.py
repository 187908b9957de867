"""The page in a real headless Chromium: a photo is dropped, its boxes are seen, refusals are told."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cvpeft.runtime.draw import colour
from tests.serve.client import WHITE, encoded, photo

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium, or name its program in CHROMIUM", allow_module_level=True)
api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra `dev`")

api.expect.set_options(timeout=30_000)  # the machine may be busy with other tests

ALONE = [
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
DROP = """([name, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name));
    for (const kind of ["dragenter", "dragover", "drop"])
        document.getElementById("stage").dispatchEvent(
            new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""
PIXEL = """([x, y]) => {
    const canvas = document.getElementById("photo");
    return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data.slice(0, 3)];
}"""


@pytest.fixture(scope="module")
def tab() -> Iterator[api.Page]:
    """A window of one browser for all tests: it takes seconds to start."""
    sandbox = os.name != "posix" or os.geteuid() != 0  # Chromium refuses to sandbox what root starts
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ALONE, chromium_sandbox=sandbox)
        yield browser.new_page()
        browser.close()


@pytest.fixture
def page(tab: api.Page, port: int) -> Iterator[api.Page]:
    """The page, freshly loaded; whatever it asks of others, and every error that it meets, fails the test."""
    faults: list[str] = []
    asked: list[str] = []
    listeners = {
        "pageerror": lambda error: faults.append(str(error)),
        "console": lambda line: faults.append(line.text) if line.type == "error" else None,
        "request": lambda request: asked.append(request.url),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    tab.set_viewport_size({"width": 1200, "height": 720})
    tab.goto(f"http://127.0.0.1:{port}/")
    yield tab
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert [line for line in faults if "the server responded with a status of 4" not in line] == []
    assert [url for url in asked if not url.startswith(f"http://127.0.0.1:{port}/")] == []


def drop(page: api.Page, content: bytes, name: str = "street.jpg") -> None:
    page.evaluate(DROP, [name, base64.b64encode(content).decode()])


def found(page: api.Page) -> list[str]:
    return [" ".join(text.split()) for text in page.locator("#found li").all_inner_texts()]


def told(page: api.Page, text: str) -> None:
    api.expect(page.locator("#told")).to_have_text(text)


def move(page: api.Page, score: float) -> None:
    page.locator("#score").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", score
    )


def test_it_says_which_model_it_is(page: api.Page) -> None:
    api.expect(page.locator("#run")).to_have_text("city_a")
    api.expect(page.locator("#model")).to_have_text("2 classes: good, 井盖")
    api.expect(page.locator("#limits")).to_have_text("JPEG, PNG, WebP or BMP, up to 1 MB and 2 megapixels")
    api.expect(page.locator("#controls")).to_be_hidden()


def test_a_dropped_photo_shows_its_boxes(page: api.Page) -> None:
    drop(page, photo(768, 576))
    told(page, "2 found. 1 with a lower score is hidden; move the slider to see.")
    assert found(page) == ["good 0.90", "井盖 0.30"]
    assert page.locator("#photo").evaluate("canvas => [canvas.width, canvas.height]") == [768, 576]
    # (10, 30, 50, 60) of 128 x 96: its lower side in the colour of class 1; within it the photo
    assert near(page.evaluate(PIXEL, [150, 360]), colour(1))
    assert near(page.evaluate(PIXEL, [384, 300]), colour(2))
    assert page.evaluate(PIXEL, [180, 300]) == list(WHITE)


def near(pixel: list[int], ink: tuple[int, int, int]) -> bool:
    return all(abs(one - other) <= 3 for one, other in zip(pixel, ink, strict=True))


def test_the_slider_hides_and_shows_without_asking_again(page: api.Page) -> None:
    drop(page, photo())
    told(page, "2 found. 1 with a lower score is hidden; move the slider to see.")
    asked: list[str] = []
    page.once("request", lambda request: asked.append(request.url))
    move(page, 0.25)
    told(page, "3 found.")
    api.expect(page.locator("#value")).to_have_text("0.25 and above")
    move(page, 0.9)  # a score that is just the threshold counts, as it does for the service
    told(page, "1 found. 2 with a lower score are hidden; move the slider to see.")
    move(page, 0.95)
    told(page, "Nothing found at this score. 3 with a lower score are hidden; move the slider to see.")
    assert found(page) == []
    page.locator("#own").click()
    assert found(page) == ["good 0.90", "井盖 0.30"]
    assert asked == []


def test_nothing_found_is_a_sentence(page: api.Page) -> None:
    drop(page, photo(colour=(0, 0, 0)))
    told(page, "Nothing found: the model sees none of its classes here.")
    api.expect(page.locator("#photo")).to_be_visible()


def test_a_turned_photo_is_shown_upright_under_its_boxes(page: api.Page) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the red left edge of the file is the top of the photo
    stored = Image.new("RGB", (576, 768), WHITE)
    stored.paste((255, 0, 0), (0, 0, 60, 768))
    drop(page, encoded(stored, exif=exif, quality=95))
    told(page, "2 found. 1 with a lower score is hidden; move the slider to see.")
    assert page.locator("#photo").evaluate("canvas => [canvas.width, canvas.height]") == [768, 576]
    assert near(page.evaluate(PIXEL, [200, 20]), (254, 0, 0))
    assert near(page.evaluate(PIXEL, [20, 500]), WHITE)
    assert near(page.evaluate(PIXEL, [150, 360]), colour(1))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "E-FORMAT image - the file is of an unknown kind"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 99, "HEIC photo (iPhone)"),
        (photo(2000, 1100), "E-PIXELS image - the image has 2000x1100 pixels"),
        (b"\xff" * 2_000_000, "E-BYTES the upload is larger than the limit of 1 MB"),
        (b"", "the image file is empty"),
    ],
)
def test_a_refusal_is_the_sentence_of_the_service(page: api.Page, content: bytes, words: str) -> None:
    drop(page, photo())
    api.expect(page.locator("#photo")).to_be_visible()
    drop(page, content)
    api.expect(page.locator("#told.refused")).to_contain_text(words)
    api.expect(page.locator("#photo")).to_be_hidden()
    assert found(page) == []
    drop(page, photo())
    api.expect(page.locator("#photo")).to_be_visible()
    assert page.locator("#told.refused").count() == 0


def test_a_photo_can_be_chosen_too_and_the_same_one_again(page: api.Page, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(kind="PNG"))
    for _ in range(2):
        with page.expect_response("**/detect*") as response:
            page.locator("#file").set_input_files(tmp_path / "a.png")
        assert response.value.status == 200
    api.expect(page.locator("#found li")).to_have_count(2)


def test_the_last_of_several_photos_counts(page: api.Page) -> None:
    for width in (300, 400, 500):
        drop(page, photo(width, 200))
    api.expect(page.locator("#photo")).to_have_js_property("width", 500)
    page.wait_for_timeout(200)
    assert page.locator("#photo").evaluate("canvas => canvas.width") == 500


def test_it_fits_a_telephone(page: api.Page) -> None:
    page.set_viewport_size({"width": 375, "height": 700})
    drop(page, photo())
    api.expect(page.locator("#found li")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_it_speaks_the_language_of_the_browser(tab: api.Page, port: int) -> None:
    context = tab.context.browser.new_context(locale="zh-CN", viewport={"width": 375, "height": 700})
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{port}/")
    api.expect(page.locator("#model")).to_have_text("2 个类别：good、井盖")
    api.expect(page.locator("#choose")).to_have_text("选择照片")
    drop(page, photo(768, 576))
    told(page, "检测到 2 个。另有 1 个置信度较低，已隐藏；拖动滑块即可查看。")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    context.close()


def test_the_switch_changes_the_language_of_all_words_and_is_kept(page: api.Page) -> None:
    drop(page, photo(768, 576))
    told(page, "2 found. 1 with a lower score is hidden; move the slider to see.")
    page.locator("#language").click()
    told(page, "检测到 2 个。另有 1 个置信度较低，已隐藏；拖动滑块即可查看。")
    api.expect(page.locator("#value")).to_have_text("模型自带的阈值")
    page.reload()
    api.expect(page.locator("#model")).to_have_text("2 个类别：good、井盖")
    page.locator("#language").click()
    api.expect(page.locator("#model")).to_have_text("2 classes: good, 井盖")


def test_both_languages_say_the_same_things(page: api.Page) -> None:
    kinds = "Object.values(WORDS).map(words => Object.entries(words).map(([key, word]) => `${key} ${typeof word}`))"
    english, chinese = page.evaluate(kinds)
    assert english == chinese
