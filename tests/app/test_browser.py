"""The page as a person uses it, in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tokenizers_vq as tvq
from tests.app.conftest import SIDE, Folders, Page
from tokenizers_vq.app import codes

SLOW = 120_000
"""milliseconds: a machine may be busy"""


@pytest.fixture(scope="module")
def page(served: Page, browser: Any) -> Iterator[Any]:
    """The page, opened once; at the end no request of the browser's or of the process has left the machine."""
    context = browser.new_context(viewport={"width": 1200, "height": 1000})
    context.set_default_timeout(SLOW)
    opened = context.new_page()
    asked: list[str] = []
    broken: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: broken.append(str(error)))
    opened.goto(served.address)
    yield opened
    outside = [url for url in asked if not url.startswith((served.address, "data:", "blob:"))]
    context.close()
    assert len(asked) > 20 and outside == []
    assert broken == []
    assert "LEFT THE MACHINE" not in served.errors.read_text()
    assert "Traceback" not in served.errors.read_text()


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def source(page: Any, selector: str) -> str:
    return page.locator(selector).first.get_attribute("src")


def test_a_picture_is_taken_apart_and_a_code_found(page: Any, picture: Path, folders: Folders) -> None:
    assert not page.locator("#look-gallery").is_visible()
    page.set_input_files("#look-picture input[type=file]", picture)
    page.wait_for_selector("#look-gallery img")
    page.wait_for_selector("#code-where img")
    captions = page.locator("#look-gallery .caption-label").all_inner_texts()
    assert captions[0] == "The original" and captions[1].startswith("tok: ")
    assert [text.split()[0] for text in captions[2:]] == ["JPEG", "WebP", "AVIF"]
    page.wait_for_selector("#look-slider img")
    assert page.locator("#look-slider img").count() == 2
    told, before = page.locator("#code-caption").inner_text(), source(page, "#code-where img")
    assert "among 16 places" in told
    corner = codes.code_map(*read_codes(folders, picture), 0).codes[-1, -1]
    box = page.locator("#code-map img").bounding_box()
    page.locator("#code-map img").click(position={"x": box["width"] - 5, "y": box["height"] - 5})
    page.wait_for_selector(f"#code-caption:has-text('Code {corner} stands')")
    if f"Code {corner} stands" not in told:
        page.wait_for_function("before => document.querySelector('#code-where img').src !== before", arg=before)


def read_codes(folders: Folders, picture: Path) -> tuple[Any, Any]:
    """The codes that the page must show, and their layout."""
    tokenizer = tvq.load(folders.tokenizer)
    return tokenizer.encode(tvq.images.read(picture, size=SIDE)), tokenizer.code_layout()


def test_the_slider_shows_what_is_clicked(page: Any) -> None:
    before = page.locator("#look-slider img").last.get_attribute("src")
    page.locator("#look-gallery button.thumbnail-lg, #look-gallery .thumbnail-item").nth(2).click()
    page.wait_for_function(
        "before => [...document.querySelectorAll('#look-slider img')].at(-1).getAttribute('src') !== before", arg=before
    )
    assert page.locator("#look-right input").input_value().startswith("JPEG")


def test_a_wrong_picture_is_one_line(page: Any, huge: Path, tmp_path: Path) -> None:
    page.locator("#look-picture button[aria-label='Remove Image']").click()
    page.set_input_files("#look-picture input[type=file]", huge)
    page.wait_for_selector("text=this picture is too large")
    (tmp_path / "text.png").write_text("no picture")
    page.locator("#look-picture button[aria-label='Remove Image']").click()
    page.set_input_files("#look-picture input[type=file]", tmp_path / "text.png")
    page.wait_for_selector("text=no picture that can be read")


def test_pictures_are_drawn(page: Any) -> None:
    tab(page, "Draw")
    page.locator("#sample-draw").click()
    page.wait_for_selector("#samples img")
    assert page.locator("#samples img").count() == 4


def test_what_is_painted_is_filled_in(page: Any, picture: Path) -> None:
    tab(page, "Fill in")
    page.locator("#fill-draw").click()
    page.wait_for_selector("text=give a picture first")
    page.set_input_files("#fill-picture input[type=file]", picture)
    page.wait_for_selector("#fill-editor canvas")
    canvas = page.locator("#fill-editor canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)  # the editor fits the picture into its canvas
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    for step in range(1, 7):
        page.mouse.move(x - 30 + 10 * step, y)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.locator("#fill-draw").click()
    page.wait_for_selector("#filled img")
    assert page.locator("#filled img").count() == 4


def test_it_fits_a_narrow_screen(page: Any) -> None:
    page.set_viewport_size({"width": 400, "height": 900})
    for name in ("Take apart", "Draw", "Fill in"):
        tab(page, name)
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
