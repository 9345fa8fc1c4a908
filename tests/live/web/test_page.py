"""The web page in a real browser: it shows, measures and saves the results of the live loop."""

from __future__ import annotations

import io
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.imaging.postprocess import colourise, to_millimetres
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.live.web import server as web
from mirrordepth_edge.live.web.server import WebView

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("websockets", reason="websockets is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt install chromium)")

HEIGHT, WIDTH = 48, 64
SETUP = {"source": "camera", "model": "nano", "backend": "tensorrt", "device": "cuda", "precision": "fp16"}
LIMITS_M = 0.1, 10.0
TOKEN = "correct-horse-battery"
WAIT_S = 120.0
HOLE = slice(30, 40), slice(20, 30)


def depth_of(number: int) -> npt.NDArray[np.float32]:
    """Return a depth map that differs between frames, with a hole, and a corner beyond 16 bits of millimetres."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    depth_m = (0.5 + 0.06 * x + 0.05 * y + 0.37 * (number % 10)).astype(np.float32)
    depth_m[HOLE] = np.nan
    depth_m[-3:, -3:] = 80
    return depth_m


def millimetres_of(number: int) -> npt.NDArray[np.uint16]:
    return to_millimetres(depth_of(number))


class Feeder:
    """Shows numbered results, as the live loop does."""

    def __init__(self, view: WebView, age_ms: float = 30.0, first: int = 0) -> None:
        self.paused = threading.Event()
        self._stop = threading.Event()

        def feed() -> None:
            number = first
            while not self._stop.wait(0.05):
                if self.paused.is_set():
                    continue
                values = {"frame": np.full((HEIGHT, WIDTH, 3), (180, 90, 30), np.uint8), "depth_m": depth_of(number)}
                captured = time.time_ns() - int(age_ms * 1e6)
                figures = {"latency_ms": 12.5, "age_ms": age_ms, "dropped": 3, "number": number}
                view.show(LiveResult(**values, **figures, captured_unix_ns=captured))
                number += 1

        self._thread = threading.Thread(target=feed)

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Chromium refuses its sandbox to root, as whom containers run tests.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = started.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=1e3 * WAIT_S)
        yield opened
        opened.close()


@contextmanager
def browsing(browser: Any, expected: str = "^$", **options: Any) -> Iterator[Any]:
    """Open a page that must not log errors, except expected ones."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(1e3 * WAIT_S)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert [text for text in errors if not re.search(expected, text)] == []


@pytest.fixture(scope="module")
def view() -> Iterator[WebView]:
    with WebView(SETUP, LIMITS_M, port=0) as opened, Feeder(opened):
        yield opened


@pytest.fixture(scope="module")
def loaded(browser: Any, view: WebView) -> Iterator[Any]:
    with browsing(browser) as opened:
        opened.goto(view.url)
        until_shown(opened)
        yield opened


@pytest.fixture
def page(loaded: Any) -> Any:
    """The page in its initial state, with frames arriving."""
    loaded.set_viewport_size({"width": 1280, "height": 900})
    loaded.check("#view input[value=sides]", force=True)
    loaded.click("#reset")
    if loaded.get_attribute("#freeze", "aria-pressed") == "true":
        loaded.click("#freeze")
    return loaded


def until(page: Any, condition: Callable[[], object]) -> None:
    """Wait for a condition. The page's content security policy forbids playwright's own waiting, which uses eval."""
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, f"timeout; the page shows: {page.inner_text('#now')}"
        page.wait_for_timeout(20)


def number_of(page: Any) -> int:
    number: int = page.evaluate("shown === null ? -1 : shown.header.number")
    return number


def until_shown(page: Any) -> None:
    until(page, lambda: number_of(page) >= 0)


def freeze(page: Any) -> int:
    page.click("#freeze")
    return number_of(page)


def pixels_of(page: Any, canvas: str = "depth") -> npt.NDArray[np.uint8]:
    values = page.evaluate(
        "(id) => { const c = document.getElementById(id);"
        " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }",
        canvas,
    )
    return np.array(values, np.uint8).reshape(HEIGHT, WIDTH, 4)


def colours_of(number: int, limits_m: tuple[float, float]) -> npt.NDArray[np.uint8]:
    return colourise(millimetres_of(number).astype(np.float32) / 1000, limits_m)


def point_at(page: Any, x: float, y: float, canvas: str = "depth") -> str:
    """Move the mouse to a pixel of the frame, and return the reading."""
    box = page.locator(f"#{canvas}").bounding_box()
    page.mouse.move(box["x"] + (x + 0.5) / WIDTH * box["width"], box["y"] + (y + 0.5) / HEIGHT * box["height"])
    text: str = page.inner_text("#metres")
    return text


def set_range(page: Any, name: str, value: float) -> None:
    page.locator(f"#{name}").fill(str(value))


def download(page: Any, button: str) -> tuple[str, bytes]:
    with page.expect_download() as info:
        page.click(button)
    return info.value.suggested_filename, Path(info.value.path()).read_bytes()


def test_depth_is_drawn_in_its_colours(page: Any) -> None:
    first = freeze(page)
    before = pixels_of(page)
    np.testing.assert_array_equal(before[..., :3], colours_of(first, LIMITS_M))
    assert (before[..., 3] == 255).all()
    page.click("#freeze")
    until(page, lambda: number_of(page) > first + 3)
    second = freeze(page)
    assert second > first
    np.testing.assert_array_equal(pixels_of(page)[..., :3], colours_of(second, LIMITS_M))
    np.testing.assert_allclose(
        pixels_of(page, "photo")[..., :3], np.broadcast_to((180, 90, 30), (HEIGHT, WIDTH, 3)), atol=6
    )


def test_it_shows_the_configuration_and_figures(page: Any) -> None:
    until(page, lambda: page.inner_text("#state") == "Live")
    assert page.inner_text("#setup") == "nano · tensorrt fp16 cuda · camera"
    until(page, lambda: "ms old" in page.inner_text("#figures"))
    assert "latency 13 ms · 3 dropped" in page.inner_text("#figures")
    until(page, lambda: "drawn here" in page.inner_text("#rate-now"))
    assert "Hz" in page.inner_text("#rate-now")
    until(page, lambda: page.inner_text("#temperature-now") not in ("", "–"))


def test_near_and_far_change_colours_but_not_distances(page: Any) -> None:
    number = freeze(page)
    metres = point_at(page, 10, 5)
    set_range(page, "far", 4)
    set_range(page, "near", 1.5)
    np.testing.assert_array_equal(pixels_of(page)[..., :3], colours_of(number, (1.5, 4.0)))
    ticks = page.locator("#ticks span").all_inner_texts()
    assert (ticks[0], ticks[-1]) == ("1.5 m", "4 m")
    assert point_at(page, 10, 5) == metres
    set_range(page, "near", 6)
    assert page.evaluate("limits.near < limits.far")
    page.click("#reset")
    np.testing.assert_array_equal(pixels_of(page)[..., :3], colours_of(number, LIMITS_M))


@pytest.mark.parametrize("width", [1280, 700])
def test_the_distance_under_the_cursor_is_exact(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    depth_mm = millimetres_of(freeze(page))
    for x, y in ((0, 0), (63, 0), (0, 47), (17, 29), (45, 11)):
        for canvas in ("photo", "depth", "mixed"):
            assert point_at(page, x, y, canvas) == f"{depth_mm[y, x] / 1000:.3f} m at ({x}, {y})"
    assert point_at(page, 25, 35) == "no depth at (25, 35)"
    assert point_at(page, 63, 47) == "farther than 65.5 m at (63, 47)"


def test_the_distance_follows_the_frames(page: Any) -> None:
    seen = {point_at(page, 10, 10)}
    until(page, lambda: seen.add(page.inner_text("#metres")) or len(seen) > 2)
    possible = {f"{millimetres_of(number)[10, 10] / 1000:.3f} m at (10, 10)" for number in range(10)}
    assert seen <= possible


def test_the_keyboard_moves_the_measured_point(page: Any) -> None:
    depth_mm = millimetres_of(freeze(page))
    page.locator(".image").nth(1).focus()
    page.keyboard.press("Escape")
    assert page.inner_text("#metres") == "Point at an image to measure a distance."
    assert page.locator(".marker:visible").count() == 0
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
    x, y = WIDTH // 2 - 11, HEIGHT // 2
    assert page.inner_text("#metres") == f"{depth_mm[y, x] / 1000:.3f} m at ({x}, {y})"
    assert page.inner_text("#announcement") == page.inner_text("#metres")
    for _ in range(9):
        page.keyboard.press("Shift+ArrowRight")
    assert page.inner_text("#metres").endswith(f"({WIDTH - 1}, {y})")


def test_the_frame_that_is_shown_is_saved(page: Any) -> None:
    number = freeze(page)
    page.wait_for_timeout(300)  # the loop continues
    assert number_of(page) == number
    depth_mm = millimetres_of(number)
    name, png = download(page, "#save-png")
    assert name == f"mde-{number:06d}.depth.png"
    read = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, depth_mm)
    name, npy = download(page, "#save-npy")
    assert name == f"mde-{number:06d}.depth.npy"
    metres = np.load(io.BytesIO(npy))
    assert metres.dtype == np.float32
    np.testing.assert_array_equal(metres, depth_mm.astype(np.float32) / np.float32(1000))
    inside = np.isfinite(depth_of(number)) & (depth_of(number) < 65)
    np.testing.assert_allclose(metres[inside], depth_of(number)[inside], atol=0.000501)
    name, jpeg = download(page, "#save-jpg")
    assert name == f"mde-{number:06d}.jpg"
    photo = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_allclose(photo, np.broadcast_to((180, 90, 30), photo.shape), atol=6)


def test_wipe_and_overlay(page: Any) -> None:
    number = freeze(page)
    colours, photo = colours_of(number, LIMITS_M).astype(int), pixels_of(page, "photo")[..., :3].astype(int)
    page.check("#view input[value=wipe]", force=True)
    assert not page.is_visible("#photo")
    set_range(page, "mix", 25)
    mixed = pixels_of(page, "mixed")[..., :3]
    np.testing.assert_array_equal(mixed[:, : WIDTH // 4 - 1], photo[:, : WIDTH // 4 - 1])
    np.testing.assert_array_equal(mixed[:, WIDTH // 4 + 1 :], colours[:, WIDTH // 4 + 1 :])
    page.check("#view input[value=overlay]", force=True)
    for share in (0, 50, 100):
        set_range(page, "mix", share)
        mixed = pixels_of(page, "mixed")[..., :3]
        np.testing.assert_allclose(mixed, photo + share / 100 * (colours - photo), atol=2)


def test_the_age_is_from_capture_to_drawing(browser: Any) -> None:
    start_s = time.monotonic()
    with WebView(SETUP, LIMITS_M, port=0) as view, Feeder(view, age_ms=700), browsing(browser) as page:
        page.goto(view.url)
        until(page, lambda: page.evaluate("medianAge") is not None)
        drawn_ms, text = page.evaluate("[medianAge, document.getElementById('age-now').textContent]")
        uncertainty_ms = page.evaluate("clock().roundTrip / 2")
        # However busy the machine is, no frame waited longer for the browser than this test has run.
        elapsed_ms = 1e3 * (time.monotonic() - start_s)
    assert 700 - uncertainty_ms - 1 <= drawn_ms < 700 + elapsed_ms + uncertainty_ms
    assert text.startswith(f"{drawn_ms:.0f} ± ")


def test_the_token_opens_the_page_and_is_removed_from_the_address(browser: Any) -> None:
    with (
        WebView(SETUP, LIMITS_M, port=0, token=TOKEN) as view,
        Feeder(view),
        browsing(browser, "status of 401") as page,
    ):
        plain = view.url.partition("?")[0]
        assert page.goto(plain).status == 401
        assert "mde live" in page.inner_text("body")
        page.goto(view.url)
        until_shown(page)
        assert page.url == plain
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["value"]) == (True, "Strict", TOKEN)
        assert TOKEN not in page.evaluate("document.cookie")
        page.reload()
        until_shown(page)


def test_it_reconnects_when_the_server_is_back(browser: Any) -> None:
    with browsing(browser, "ERR_CONNECTION_REFUSED|WebSocket") as page:
        with WebView(SETUP, LIMITS_M, port=0) as view, Feeder(view):
            url = view.url
            page.goto(url)
            until_shown(page)
        until(page, lambda: page.inner_text("#state") == "The device does not answer")
        until(page, lambda: "reconnecting in" in page.inner_text("#figures"))
        until(page, lambda: page.is_visible("#retry"))
        assert number_of(page) >= 0, "the last frame stays, dimmed"
        assert float(page.evaluate("getComputedStyle(canvases.depth).opacity")) < 0.6
        port = urlsplit(url).port
        with WebView(SETUP | {"model": "other"}, (0.5, 5.0), port=port) as view, Feeder(view, first=1000):
            until(page, lambda: number_of(page) >= 1000 and page.inner_text("#state") == "Live")
            assert "other" in page.inner_text("#setup")
            assert not page.is_visible("#retry")
            page.goto("about:blank")


def test_a_changed_token_is_reported(browser: Any) -> None:
    with browsing(browser, "ERR_CONNECTION_REFUSED|WebSocket|status of 401") as page:
        with WebView(SETUP, LIMITS_M, port=0, token=TOKEN) as view, Feeder(view):
            page.goto(view.url)
            until_shown(page)
            port = urlsplit(view.url).port
        with WebView(SETUP, LIMITS_M, port=port, token=TOKEN[::-1]):
            until(page, lambda: "Open the address that mde live printed" in page.inner_text("#state"))


def test_a_stalled_stream_is_reported(browser: Any) -> None:
    with WebView(SETUP, LIMITS_M, port=0) as view, Feeder(view) as feeder, browsing(browser) as page:
        page.goto(view.url)
        until_shown(page)
        feeder.paused.set()
        until(page, lambda: page.inner_text("#state") == "Stalled")
        assert re.match(r"no new frame for ([2-9]|\d\d+) s", page.inner_text("#figures"))
        feeder.paused.clear()
        until(page, lambda: page.inner_text("#state") == "Live")


def test_too_many_browsers_are_reported(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_CLIENTS", 0)
    with WebView(SETUP, LIMITS_M, port=0) as view, browsing(browser) as page:
        page.goto(view.url)
        until(page, lambda: "browsers are already connected" in page.inner_text("#state"))
        until(page, lambda: page.is_visible("#retry"))
        monkeypatch.setattr(web, "MAX_CLIENTS", 2)
        # Not `page.click`, which waits for a button that is hidden while the page tries by itself.
        page.evaluate("document.getElementById('retry').click()")
        until(page, lambda: page.inner_text("#state") == "Waiting for a frame")


def test_a_phone_by_touch(browser: Any, view: WebView) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with browsing(browser, **phone) as page:
        page.goto(view.url)
        until_shown(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        depth_mm = millimetres_of(freeze(page))
        page.evaluate("scrollTo(0, 0)")
        box = page.locator("#mixed").bounding_box()
        assert box["y"] + box["height"] < 740, "the image must be visible without scrolling"
        page.touchscreen.tap(box["x"] + 10.5 / WIDTH * box["width"], box["y"] + 40.5 / HEIGHT * box["height"])
        assert page.inner_text("#metres") == f"{depth_mm[40, 10] / 1000:.3f} m at (10, 40)"


def test_light_and_dark(browser: Any, view: WebView) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        with browsing(browser, color_scheme=scheme) as page:
            page.goto(view.url)
            style = "getComputedStyle(document.body)"
            colours = page.evaluate(f"[{style}.backgroundColor, {style}.color]")
            brightness[scheme] = [sum(map(int, colour[4:-1].split(","))) for colour in colours]
    assert brightness["light"][0] > 700 > 150 > brightness["light"][1]
    assert brightness["dark"][0] < 150 < 600 < brightness["dark"][1]


def test_every_control_has_a_name_and_can_be_reached(page: Any) -> None:
    controls = page.locator("button:visible, input:visible, .image:visible")
    names = controls.evaluate_all(
        "all => all.map(e => e.ariaLabel || e.textContent.trim() || (e.labels?.[0]?.textContent ?? '').trim())"
    )
    assert len(names) >= 12
    assert all(names)
    reached = set()
    page.locator("body").focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"near", "far", "mix", "reset", "freeze", "save-png", "save-npy", "save-jpg", "image"} <= reached
