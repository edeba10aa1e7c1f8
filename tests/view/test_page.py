"""The page of ``tnet view`` in a real browser: what people see, click, draw and save."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.helpers import awaken, three_levels

from tnet.models import TNet
from tnet.scenes.pyramid import write_pyramid
from tnet.view.app import create_app

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed; `make browser` installs one"
    ),
]

HOSTILE = "<img src=x onerror=alert(1)>.png"
HEIGHT, WIDTH = 1100, 1500
MARK = (300, 500, 700, 1100)  # of the red rectangle in slide.tif
expect.set_options(timeout=15_000)  # machines may be busy
Box = tuple[float, float, float, float]  # y0, x0, y1, x1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pyramid with a red rectangle, an image with a hostile name, a damaged one, and a sound one."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "images").mkdir()
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    pixels[MARK[0] : MARK[2], MARK[1] : MARK[3]] = (255, 0, 0)
    Image.fromarray(pixels).save(folder / "slide.png")
    write_pyramid(folder / "slide.png", folder / "images" / "slide.tif")
    noise = np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / HOSTILE)
    (folder / "images" / "damaged.png").write_bytes((folder / "images" / HOSTILE).read_bytes()[:2000])
    Image.fromarray(noise).save(folder / "images" / "zebra.png")
    (folder / "truth.csv").write_text("path,label\nslide.tif,bee\nzebra.png,<b>cat</b>\n", encoding="utf-8")
    predicted = "path,label,probability\nslide.tif,owl,0.9\nzebra.png,<b>cat</b>,0.5\n"
    (folder / "predictions.csv").write_text(predicted, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A running server."""
    torch.manual_seed(0)
    classes = ("<b>cat</b>", "bee", "owl", "fox", "elk")
    model = awaken(TNet(three_levels(in_channels=3, class_names=classes))).eval()
    app = create_app(
        model, folder / "images", name="tiny", truth=folder / "truth.csv", labels=folder / "labels.csv",
        predictions=folder / "predictions.csv"
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """An empty tab; at the end, nothing went wrong in it but what the server refused."""
    page = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme="light", accept_downloads=True)
    page.set_default_timeout(15_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    yield page
    page.close()
    refused = ("status of 422", "failed to load")
    assert not [text for text in problems if not any(words in text for words in refused)]


def show(page: Page, address: str, path: str = "slide.tif", **settings: Any) -> None:
    """Open an image and wait for the answer."""
    page.goto(f"{address}?drawer=canvas#{urlencode({'path': path, 'looks': 2} | settings)}")
    page.wait_for_selector(".card")


def boxes(page: Page) -> list[Box]:
    """The overlay's boxes in pixels of the image, in the order of looking."""
    texts = page.locator("[data-box]").evaluate_all("nodes => nodes.map(node => node.dataset.box)")
    return [tuple(map(float, text.split(","))) for text in texts]  # type: ignore[misc]


def on_screen(page: Page) -> list[Box]:
    """Where the overlay's boxes are drawn, in pixels of the stage."""
    found = page.locator("[data-box]").evaluate_all(
        """nodes => nodes.map(node => {
            const box = node.getBoundingClientRect(), frame = document.getElementById("stage").getBoundingClientRect();
            return [box.top - frame.top, box.left - frame.left, box.bottom - frame.top, box.right - frame.left];
        })"""
    )
    return [tuple(box) for box in found]


def wait_until(page: Page, is_met: Callable[[], bool]) -> None:
    """Wait for tiles or an animation."""
    for _ in range(100):
        if is_met():
            return
        page.wait_for_timeout(100)
    assert is_met()


def red_rectangle(page: Page) -> tuple[int, ...]:
    """Where the red rectangle is on the canvas under the overlay, zeros before it is drawn."""
    url = page.evaluate("document.querySelector('#stage canvas').toDataURL()")
    with Image.open(io.BytesIO(b64decode(url.partition(",")[2]))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    ys, xs = np.nonzero((pixels[..., 0] > 190) & (pixels[..., 1] < 64))
    return (int(ys.min()), int(xs.min()), int(ys.max()) + 1, int(xs.max()) + 1) if len(ys) else (0, 0, 0, 0)


@pytest.mark.parametrize(("x", "y", "zoom"), [(750, 550, 0.4), (800, 500, 1), (600, 400, 6)])
def test_boxes_are_where_the_image_is(page: Page, address: str, x: int, y: int, zoom: float) -> None:
    show(page, address, x=x, y=y, zoom=zoom)
    expect(page.locator("[data-box]")).to_have_count(6)
    height, width = page.evaluate(
        "[document.getElementById('stage').clientHeight, document.getElementById('stage').clientWidth]"
    )

    def to_screen(box: Box) -> list[float]:
        return [(value - middle) * zoom + side / 2 for value, middle, side in
                zip(box, (y, x, y, x), (height, width, height, width), strict=True)]  # fmt: skip

    for box, drawn in zip(boxes(page), on_screen(page), strict=True):
        assert drawn == pytest.approx(to_screen(box), abs=0.5)
    sides = (height, width, height, width)
    seen = [min(max(value, 0), side) for value, side in zip(to_screen(MARK), sides, strict=True)]
    wait_until(page, lambda: red_rectangle(page) == pytest.approx(seen, abs=1))


def test_looks_follow_the_slider(page: Page, address: str) -> None:
    show(page, address)
    assert page.locator(".card").count() == 7  # two looks, with two more inside each, and the whole
    first = boxes(page)
    page.locator("#stage").click(position={"x": 5, "y": 300})  # the image has the focus, and keys still work
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-box]")).to_have_count(9)
    assert boxes(page)[:6] == first
    assert page.locator(".chart .line-0 circle").count() == 10
    page.locator("#looks").fill("0")
    expect(page.locator("[data-box]")).to_have_count(0)
    assert "without looks" in page.locator("#answer").inner_text()
    page.select_option("#chooser", "search:path")
    page.locator("#looks").fill("5")
    expect(page.locator("[data-box]")).to_have_count(5)
    total = sum(float(text.rstrip(" %")) for text in page.locator(".bars .number").all_inner_texts())
    assert total == pytest.approx(100, abs=0.3)


def test_strip_boxes_and_heat_are_linked(page: Page, address: str) -> None:
    show(page, address)
    page.hover(".card[data-row='1']")
    hot = page.locator(".boxes .hot[data-box]")
    expect(hot).to_have_attribute("data-row", "1")
    page.keyboard.press("h")
    assert page.locator(".heat [data-row='1']").get_attribute("opacity") == "1"
    assert page.locator(".heat [data-row='0']").get_attribute("opacity") == "0.15"
    y0, x0, y1, x1 = on_screen(page)[2]  # inside look 1, hence smaller
    frame = page.locator("#stage").bounding_box()
    assert frame is not None
    page.mouse.move(frame["x"] + (x0 + x1) / 2, frame["y"] + (y0 + y1) / 2)
    row = hot.get_attribute("data-row")
    assert row is not None and int(row) > 1
    expect(page.locator(f".card[data-row='{row}']")).to_have_class(re.compile("hot"))
    assert f"look {row}" in page.locator("#place").inner_text()

    page.click(".card[data-row='1']")

    def is_close() -> bool:
        top, left, bottom, right = on_screen(page)[0]
        is_inside = top >= 0 and left >= 0 and bottom <= frame["height"] and right <= frame["width"]
        return is_inside and max((bottom - top) / frame["height"], (right - left) / frame["width"]) > 0.5

    wait_until(page, is_close)


def test_look_here(page: Page, address: str) -> None:
    show(page, address, mode="search", score="path", x=750, y=550, zoom=0.4)
    frame = page.locator("#stage").bounding_box()
    assert frame is not None
    left, top = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.keyboard.press("l")
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + 20, top + 30)
    page.mouse.move(left + 80, top + 40)
    page.mouse.up()
    asked = page.locator("[data-asked]")
    expect(asked).to_have_count(1)
    assert boxes(page)[-1] == pytest.approx((550, 750, 650, 950), abs=2)
    assert "yours" in page.locator(".card").last.inner_text()
    assert page.locator("#ask").get_attribute("aria-pressed") == "false"
    page.keyboard.press("l")
    page.keyboard.press("Enter")
    expect(asked).to_have_count(2)
    page.keyboard.press("l")
    page.mouse.click(left - 200, top)
    expect(asked).to_have_count(3)
    page.wait_for_timeout(600)
    assert "zoom=0.4" in page.url
    page.keyboard.press("ArrowLeft")
    expect(asked).to_have_count(0)  # they came after two looks


def test_exports(page: Page, address: str) -> None:
    show(page, address, mode="search", score="path", looks=3)
    page.click("#export summary")
    saved = {}
    for form in ("json", "geojson", "labelstudio"):
        with page.expect_download() as download:
            page.click(f"[data-format='{form}']")
        saved[form] = json.loads(download.value.path().read_text(encoding="utf-8"))
    shown = sorted(map(list, boxes(page)))
    assert sorted(region["box_l0_yxyx"] for region in saved["json"]["regions"]) == shown
    assert saved["geojson"]["type"] == "FeatureCollection" and len(saved["geojson"]["features"]) >= 3
    results = saved["labelstudio"][0]["predictions"][0]["result"]
    places = [result["value"] for result in results]
    corners = sorted([max(0, y0), max(0, x0)] for y0, x0, *_ in shown)  # without padding
    assert sorted([place["y"] * HEIGHT / 100, place["x"] * WIDTH / 100] for place in places) == [
        pytest.approx(corner, abs=0.01) for corner in corners
    ]
    with page.expect_download() as download:
        page.click("#png")
    assert download.value.suggested_filename == "slide.tif.view.png"
    with Image.open(download.value.path()) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(10**6) or []}
        frame = page.locator("#stage").bounding_box()
        assert frame is not None and image.width == round(frame["width"]) and image.height > frame["height"]
        assert {(255, 157, 30), (23, 195, 178)} & colors  # the boxes' colours


def test_hostile_names_and_damaged_files(page: Page, address: str) -> None:
    show(page, address)
    names = page.locator(".item .name").all_inner_texts()
    assert HOSTILE in names and page.locator("#list img").count() == len(names) == 4
    assert "<b>cat</b>" in page.locator("#answer").inner_text() and page.locator("#answer b b").count() == 0
    page.locator(".item", has_text="damaged").click()
    expect(page.locator("#message")).to_contain_text("damaged.png")
    assert page.locator("[data-box]").count() == 0 and page.locator(".card").count() == 0
    page.keyboard.press("ArrowDown")
    expect(page.locator(".item[aria-current]")).to_have_attribute("data-path", "slide.tif")
    page.wait_for_selector(".card")
    assert page.locator("#message").is_hidden()
    page.fill("#search", "onerror")
    expect(page.locator(".item")).to_have_count(1)
    page.click(".item")
    expect(page.locator("#title")).to_have_text(HOSTILE)
    page.wait_for_selector(".card")


def test_filters(page: Page, address: str) -> None:
    show(page, address)
    items = page.locator(".item")
    expect(items).to_have_count(4)
    assert "✗ owl 90.0 %" in items.filter(has_text="slide").inner_text()
    page.select_option("#filter", "wrong")
    expect(items).to_have_count(1)
    expect(items).to_have_attribute("data-path", "slide.tif")
    page.select_option("#filter", "unsure")
    expect(items).to_have_attribute("data-path", "zebra.png")
    page.select_option("#filter", "all")
    expect(items).to_have_count(4)
    page.select_option("#label-filter", "bee")
    expect(items).to_have_count(1)
    expect(items).to_have_attribute("data-path", "slide.tif")
    expect(page.locator("#count")).to_have_text("1 image")


def test_link_and_label(page: Page, address: str, folder: Path) -> None:
    show(page, address, mode="search", score="density", looks=4, x=700, y=500, zoom=2)
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("[data-box]")).to_have_count(4)
    assert page.input_value("#chooser") == "search:density" and "zoom=2" in page.url
    expect(page.locator("#answer")).to_contain_text(re.compile("as labelled|labelled bee"))
    page.fill("#label-value", "owl")
    page.click("#label button")
    expect(page.locator("#label-state")).to_have_text("saved")
    assert "slide.tif,owl," in (folder / "labels.csv").read_text(encoding="utf-8")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_link_with_places_and_a_rule(page: Page, address: str) -> None:
    settings = {"mode": "search", "score": "density", "stop": "max_ms", "limit": 60000}
    show(page, address, looks=3, asked="1.550.750.650.950_x_2.1.1.1", **settings)
    expect(page.locator("[data-box]")).to_have_count(4)
    assert boxes(page)[1] == pytest.approx((550, 750, 650, 950), abs=2)  # after one look, as in the link
    assert page.input_value("#stop") == "max_ms" and page.input_value("#stop-value") == "60000"
    page.keyboard.press("l")
    page.locator("#stage").press("Enter")
    expect(page.locator("[data-asked]")).to_have_count(2)
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-box]")).to_have_count(6)
    link, shown = page.url, boxes(page)
    assert "asked=1.550.750.650.950_3." in link and "stop=max_ms" in link and "limit=60000" in link
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("[data-box]")).to_have_count(6)
    assert boxes(page) == shown and page.url == link
    page.goto(link.replace("stop=max_ms", "stop=never").replace("asked=", "other="))
    expect(page.locator("[data-box]")).to_have_count(4)
    assert page.input_value("#stop") == "" and page.locator("[data-asked]").count() == 0


def test_everything_is_reachable(page: Page, address: str) -> None:
    show(page, address)
    for width, height in ((1280, 720), (1024, 768), (768, 1024)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for name in ("#search", "#looks", "#run", "#chooser", "#ask", "#heat", "#export summary", "#theme", ".verdict"):
            box = page.locator(name).bounding_box()
            assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width, name
            assert box["y"] >= 0 and box["y"] + box["height"] <= height, name
