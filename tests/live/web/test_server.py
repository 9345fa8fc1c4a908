"""The web view's server: access control, protocol, and slow clients."""

from __future__ import annotations

import base64
import gc
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.imaging.postprocess import colourise, to_millimetres
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.live.web import metrics, packets
from mirrordepth_edge.live.web import server as web
from mirrordepth_edge.live.web.packets import encode_depth
from mirrordepth_edge.live.web.server import WebView

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
client = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")
exceptions = pytest.importorskip("websockets.exceptions")

SHAPE = 24, 32
SETUP = {"source": "camera", "model": "nano", "backend": "onnxruntime", "device": "cpu", "precision": "fp32"}
LIMITS_M = 0.1, 10.0
TOKEN = "correct-horse-battery"
WAIT_S = 120.0


def result(number: int, shape: tuple[int, int] = SHAPE, age_ms: float = 20.0, **fields: Any) -> LiveResult:
    rng = np.random.default_rng(number)
    values = {
        "frame": np.full((*shape, 3), (200, 100, number % 256), np.uint8),
        "depth_m": rng.uniform(0.5, 9, shape).astype(np.float32),
        "latency_ms": 12.5,
        "age_ms": age_ms,
        "dropped": 2 * number,
        "number": number,
        "captured_unix_ns": time.time_ns() - int(age_ms * 1e6),
    }
    return LiveResult(**values | fields)


@pytest.fixture(autouse=True)
def _quiet_and_no_thread_left(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # Threads of the clients, and of the pool in which older starlette releases answer 404, end a little later.
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith(("mde", "asyncio"))}
    gc.collect()  # an unclosed connection would warn now
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]


@pytest.fixture
def view() -> Iterator[WebView]:
    with WebView(SETUP, LIMITS_M, port=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain() -> Iterator[WebView]:
    """For tests that need no frames."""
    with WebView(SETUP, LIMITS_M, port=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def guarded() -> Iterator[WebView]:
    """Like `plain`, with a token."""
    with WebView(SETUP, LIMITS_M, port=0, token=TOKEN) as opened:
        yield opened


def port_of(view: WebView) -> int:
    port = urlsplit(view.url).port
    assert port is not None
    return port


def get(
    view: WebView, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(view), timeout=WAIT_S)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def watch(view: WebView, query: str = "", **options: Any) -> Any:
    """Open a WebSocket."""
    options = {"compression": None, "max_size": None, "open_timeout": WAIT_S} | options
    return client.connect(f"ws://127.0.0.1:{port_of(view)}/frames{query}", **options)


def frames_of(connection: Any) -> tuple[dict[str, Any], npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Request a packet and decode it as documented."""
    connection.send("next")
    return unpack(connection.recv(WAIT_S))


def unpack(packet: bytes) -> tuple[dict[str, Any], npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    length = int.from_bytes(packet[:4], "little")
    header = json.loads(packet[4 : 4 + length])
    photo, depth = packet[4 + length :][: header["jpeg_bytes"]], packet[4 + length :][header["jpeg_bytes"] :]
    bgr = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
    return header, bgr[..., ::-1], decode_depth(depth, (header["height"], header["width"]))


def decode_depth(data: bytes, shape: tuple[int, int]) -> npt.NDArray[np.uint16]:
    high, low = np.frombuffer(zlib.decompress(data), np.uint8).reshape(2, *shape).astype(np.int64)
    folded = 256 * high + low
    signed = np.where(folded % 2 == 0, folded // 2, -(folded + 1) // 2)
    return (signed.cumsum(axis=0).cumsum(axis=1) % 65536).astype(np.uint16)


def until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "timeout"
        time.sleep(0.005)


class Feeder:
    """Shows a numbered result every `period_s`, as the live loop does."""

    def __init__(self, view: WebView, period_s: float = 0.01, shape: tuple[int, int] = SHAPE) -> None:
        self.number = 0
        self.slowest_s = 0.0
        self._stop = threading.Event()
        base = result(0, shape)

        def feed() -> None:
            while not self._stop.wait(period_s):
                numbered = result(self.number, shape, frame=base.frame, depth_m=base.depth_m)
                begin_s = time.thread_time()
                view.show(numbered)
                self.slowest_s = max(self.slowest_s, time.thread_time() - begin_s)
                self.number += 1

        self._thread = threading.Thread(target=feed)

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


# Protocol


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (37, 53)])
def test_depth_is_encoded_losslessly(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 65536, shape).astype(np.uint16)
    extremes = rng.choice(np.array([0, 1, 32767, 32768, 65535], np.uint16), shape)
    for depth_mm in (anything, extremes, np.zeros(shape, np.uint16), np.full(shape, 65535, np.uint16)):
        np.testing.assert_array_equal(decode_depth(encode_depth(depth_mm), shape), depth_mm)


def test_encoded_depth_is_smaller_than_a_png() -> None:
    y, x = np.mgrid[:240, :320]
    room_m = 3 + np.sin(x / 60) + 0.004 * y + np.random.default_rng(0).normal(0, 0.001, x.shape)
    depth_mm = to_millimetres(room_m.astype(np.float32))
    png = cv2.imencode(".png", depth_mm)[1]
    assert len(encode_depth(depth_mm)) < 0.7 * len(png)


def test_a_packet_contains_photo_depth_and_capture_time(view: WebView) -> None:
    shown = result(7, age_ms=300)
    shown.depth_m[0, :4] = 0, np.nan, np.inf, 70
    with watch(view) as connection:
        hello = json.loads(connection.recv(WAIT_S))
        view.show(shown)
        header, photo, depth_mm = frames_of(connection)
        connection.send("ping")
        now_ms = json.loads(connection.recv(WAIT_S))["now_ms"]
    assert hello["setup"] == SETUP
    assert tuple(hello["limits_m"]) == LIMITS_M
    assert (header["number"], header["dropped"], header["latency_ms"]) == (7, 14, 12.5)
    np.testing.assert_allclose(photo, shown.frame, atol=12)  # a JPEG
    np.testing.assert_array_equal(depth_mm, to_millimetres(shown.depth_m))
    assert depth_mm[0, :4].tolist() == [0, 0, 0, 65535]
    assert 300 <= now_ms - header["captured_ms"] < 300 + 1e3 * WAIT_S


def test_the_colour_table_matches_colourise() -> None:
    near_m, far_m = 0.0, 255.0
    depth_m = np.arange(255.0, 0, -1, dtype=np.float32).reshape(1, -1)  # levels 0 to 254; 0 m would be no depth
    np.testing.assert_array_equal(web.colour_table()[:255], colourise(depth_m, (near_m, far_m))[0])
    assert len(web.colour_table()) == 256


def test_the_newest_frame_is_sent_once(view: WebView) -> None:
    with watch(view) as connection:
        connection.recv(WAIT_S)
        for number in range(5):
            view.show(result(number))
        assert frames_of(connection)[0]["number"] == 4
        connection.send("next")
        with pytest.raises(TimeoutError):
            connection.recv(0.2)
        view.show(result(5))
        assert unpack(connection.recv(WAIT_S))[0]["number"] == 5


def test_requests_in_advance_are_limited(view: WebView) -> None:
    received = []
    with watch(view) as connection:
        connection.recv(WAIT_S)
        for _ in range(10):
            connection.send("next")
        connection.send("ping")
        connection.recv(WAIT_S)  # all requests have arrived
        for number in range(8):
            view.show(result(number))
            with suppress(TimeoutError):
                received.append(connection.recv(0.1 if received else WAIT_S))
    assert 1 <= len(received) <= web.MAX_REQUESTS + 1, "the queued requests and the one in progress"


def test_arrays_may_be_reused_after_show(view: WebView) -> None:
    shown = result(0)
    expected = to_millimetres(shown.depth_m)
    view.show(shown)
    shown.depth_m[:], shown.frame[:] = 1, 0
    with watch(view) as connection:
        connection.recv(WAIT_S)
        _, photo, depth_mm = frames_of(connection)
    np.testing.assert_array_equal(depth_mm, expected)
    assert photo.mean() > 50


def test_a_frame_is_encoded_once_and_only_on_demand(view: WebView, monkeypatch: pytest.MonkeyPatch) -> None:
    real, encoded, threads = packets.encode, [], set()

    def count(result: LiveResult, captured_ms: float) -> packets.Packet:
        encoded.append(result.number)
        threads.add(threading.current_thread())
        return real(result, captured_ms)

    monkeypatch.setattr(packets, "encode", count)
    view.show(result(0))
    with ExitStack() as stack:
        connections = [stack.enter_context(watch(view)) for _ in range(5)]
        for connection in connections:
            connection.recv(WAIT_S)
        view.show(result(1))
        time.sleep(0.1)
        assert encoded == [], "no client has requested a frame"
        assert {frames_of(connection)[0]["number"] for connection in connections} == {1}
        assert encoded == [1]
        connections[0].send("next")
    until(lambda: view._metrics.clients == 0)
    view.show(result(2))
    time.sleep(0.1)
    assert encoded == [1], "all clients are gone, also the one with a request"
    assert threading.current_thread() not in threads


def test_twenty_clients_one_of_which_never_reads(view: WebView) -> None:
    shape = 480, 640  # packets that fill the kernel's send buffer of a client that does not read
    counts = [0] * 19
    stop = threading.Event()

    def read_all(index: int) -> None:
        with watch(view) as connection:
            connection.recv(WAIT_S)
            while not stop.is_set():
                connection.send("next")
                packet = connection.recv(WAIT_S)
                counts[index] += len(packet) > 1000

    with Feeder(view, 0.03, shape) as feeder, socket.create_connection(("127.0.0.1", port_of(view))) as silent:
        silent.sendall(handshake(port_of(view)) + 40 * masked("next"))
        threads = [threading.Thread(target=read_all, args=(index,)) for index in range(19)]
        for thread in threads:
            thread.start()
        until(lambda: min(counts) >= 10)
        assert view._metrics.clients == 20
        with watch(view) as one_more, pytest.raises(exceptions.ConnectionClosed) as closed:
            one_more.recv(WAIT_S)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1013, "20 browsers are already connected")
        for _ in range(3):  # the silent client keeps requesting, which must not pile up
            silent.sendall(40 * masked("next"))
            seen = min(counts)
            until(lambda seen=seen: min(counts) >= seen + 3)
        stop.set()
        for thread in threads:
            thread.join()
        assert feeder.slowest_s < 0.05, "show must only copy"
        until(lambda: view._metrics.clients == 1)
        with watch(view) as another:
            assert "setup" in json.loads(another.recv(WAIT_S))
    assert view.problem is None


def handshake(port: int) -> bytes:
    key = base64.b64encode(bytes(16)).decode()
    lines = ["GET /frames HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: Upgrade", "Upgrade: websocket"]
    return "\r\n".join([*lines, "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", "", ""]).encode()


def masked(word: str) -> bytes:
    """Return a client's text frame (RFC 6455, 5.2) with a mask of zeros."""
    return bytes([0x81, 0x80 | len(word), 0, 0, 0, 0]) + word.encode()


def test_a_slow_client_skips_frames_without_delaying_a_fast_one(view: WebView) -> None:
    with Feeder(view) as feeder, watch(view) as slow, watch(view) as fast:
        slow.recv(WAIT_S)
        fast.recv(WAIT_S)
        first = frames_of(slow)[0]["number"]
        numbers = [frames_of(fast)[0]["number"] for _ in range(20)]
        second = frames_of(slow)[0]["number"]
        assert second >= numbers[-1] > first + 10
        assert second >= feeder.number - 3, "it must get a new frame"
    assert numbers == sorted(set(numbers))
    assert view._metrics.skipped >= second - first - 1


@pytest.mark.parametrize(
    ("message", "code"), [("hello", 1008), ("", 1008), (b"next", 1008), ("x" * 9, 1009), ("next" * 1000, 1009)]
)
def test_an_unknown_message_closes_the_connection(plain: WebView, message: str | bytes, code: int) -> None:
    with watch(plain) as connection:
        connection.recv(WAIT_S)
        connection.send(message)
        with pytest.raises(exceptions.ConnectionClosed) as closed:
            connection.recv(WAIT_S)
    assert closed.value.rcvd.code == code
    until(lambda: plain._metrics.clients == 0)


def test_a_silent_client_is_disconnected(plain: WebView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CLIENT_TIMEOUT_S", 0.1)
    with watch(plain) as connection:
        connection.recv(WAIT_S)
        with pytest.raises(exceptions.ConnectionClosed):
            connection.recv(WAIT_S)
    until(lambda: plain._metrics.clients == 0)


# Access control


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/nothing", "/frames"])
def test_every_path_requires_the_token(guarded: WebView, path: str) -> None:
    for query in ("", "?token=", "?token=wrong", f"?token={TOKEN}x", f"?token={TOKEN[:-1]}", "?token=%FF"):
        status, headers, body = get(guarded, path + query)
        assert status == 401
        assert b"mde live" in body
        assert "set-cookie" not in headers
    for wrong in ("Bearer", "Bearer wrong", TOKEN, f"Basic {TOKEN}"):
        assert get(guarded, path, Authorization=wrong)[0] == 401
    assert get(guarded, path, Cookie=f"other={TOKEN}")[0] == 401
    expected = 404 if path in ("/nothing", "/frames") else 200
    assert get(guarded, path, Authorization=f"Bearer {TOKEN}")[0] == expected
    assert get(guarded, f"{path}?token={TOKEN}")[0] == expected


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(guarded: WebView) -> None:
    status, headers, _ = get(guarded, f"/?token={TOKEN}")
    cookie, *flags = headers["set-cookie"].split("; ")
    assert status == 200
    assert {flag.lower() for flag in flags} == {"httponly", "samesite=strict", "path=/"}
    assert cookie.split("=")[0].endswith(str(port_of(guarded))), "browsers share cookies between ports"
    assert get(guarded, "/", Cookie=cookie)[0] == 200
    with watch(guarded, additional_headers={"Cookie": cookie}) as connection:
        assert "setup" in json.loads(connection.recv(WAIT_S))


def test_the_socket_requires_the_token(guarded: WebView) -> None:
    for options in ({}, {"query": "?token=wrong"}, {"additional_headers": {"Authorization": "Bearer wrong"}}):
        with pytest.raises(exceptions.InvalidStatus) as refused, watch(guarded, **options):
            pass
        assert refused.value.response.status_code == 401
    for options in ({"query": f"?token={TOKEN}"}, {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}}):
        with watch(guarded, **options) as connection:
            assert "setup" in json.loads(connection.recv(WAIT_S))


def test_pages_of_other_origins_get_no_socket(plain: WebView, guarded: WebView) -> None:
    port = port_of(plain)
    for origin in (
        "http://evil.example",
        f"http://127.0.0.1:{port + 1}",
        f"http://localhost:{port}",
        "null",
        "http://[",
    ):
        with pytest.raises(exceptions.InvalidStatus) as refused, watch(plain, origin=origin):
            pass
        assert refused.value.response.status_code == 403
    with watch(plain, origin=f"http://127.0.0.1:{port}") as connection:
        assert "setup" in json.loads(connection.recv(WAIT_S))
    with (
        pytest.raises(exceptions.InvalidStatus) as refused,
        watch(guarded, f"?token={TOKEN}", origin="http://evil.example"),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_on_loopback_the_host_header_must_be_local(plain: WebView) -> None:
    """A site that uses DNS rebinding sends its own name in the Host header."""
    port = port_of(plain)
    for host in (f"127.0.0.1:{port}", "localhost", f"LOCALHOST:{port}", "localhost:9", f"[::1]:{port}"):
        assert get(plain, "/metrics", Host=host)[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost@evil.example", "[", ""):
        status, _, body = get(plain, "/metrics", Host=host)
        assert (status, b"mde_frames" in body) == (421, False)
    headers = {"Host": f"evil.example:{port}"}
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(handshake(port).replace(b"127.0.0.1", headers["Host"].split(":")[0].encode()))
        assert raw.recv(100).startswith(b"HTTP/1.1 421")


def test_other_addresses_get_a_token_and_a_reachable_name() -> None:
    with WebView(SETUP, LIMITS_M, host="0.0.0.0", port=0) as view, WebView(SETUP, LIMITS_M, "0.0.0.0", 0) as other:
        token = view.url.partition("?token=")[2]
        assert len(token) >= 32
        assert token != other.url.partition("?token=")[2]
        assert urlsplit(view.url).hostname != "0.0.0.0"
        assert get(view, "/metrics")[0] == 401
        assert get(view, f"/metrics?token={token}", Host="jetson.local")[0] == 200


def test_loopback_needs_no_token(plain: WebView) -> None:
    assert plain.url == f"http://127.0.0.1:{port_of(plain)}/"
    status, headers, _ = get(plain)
    assert status == 200
    assert "set-cookie" not in headers


# Pages


def test_the_page_is_one_file_with_a_strict_policy(plain: WebView) -> None:
    status, headers, body = get(plain)
    page = body.decode()
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert status == 200
    (script,), (style,) = (
        re.findall(r"<script>(.*?)</script>", page, re.S),
        re.findall(r"<style>(.*?)</style>", page, re.S),
    )
    for directive, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert not re.findall(r"\bsrc=|<link[^>]+stylesheet|@import|url\(|\son\w+=|style=", page)
    assert set(re.findall(r"https?://[^'\"\s]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_every_response_has_security_headers(guarded: WebView) -> None:
    for path in ("/", "/metrics", "/healthz", "/nothing", f"/?token={TOKEN}", f"/nothing?token={TOKEN}"):
        headers = get(guarded, path)[1]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


@pytest.mark.parametrize(
    "path", ["/page/script.js", "/../web.py", "/%2e%2e/web.py", "/..%2f..%2fetc/passwd", "//etc/passwd", "/index.html"]
)
def test_no_other_files_are_served(plain: WebView, path: str) -> None:
    assert get(plain, path)[0] == 404


def test_only_get_is_allowed(plain: WebView) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert get(plain, "/", method)[0] == 405


def test_metrics_are_prometheus_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")
    for index, (zone, text) in enumerate({"cpu-thermal": "48250\n", "off": "", "tj-thermal": "51000\n"}.items()):
        folder = tmp_path / f"sys/class/thermal/thermal_zone{index}"
        folder.mkdir(parents=True)
        (folder / "type").write_text(zone + "\n")
        (folder / "temp").write_text(text)
    monkeypatch.setattr(metrics, "ROOT", tmp_path)
    setup = SETUP | {"source": 'a "video"\\\n.mp4'}
    with WebView(setup, LIMITS_M, port=0) as view, watch(view) as connection:
        for number in range(10):
            view.show(result(number, latency_ms=10 + number, age_ms=30))
        connection.recv(WAIT_S)
        frames_of(connection)
        _, headers, body = get(view, "/metrics")
        connection.send("ping")
        status = json.loads(connection.recv(WAIT_S))
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in parser.text_string_to_metric_families(body.decode())}
    assert all(family.documentation and family.type != "unknown" for family in families.values())
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for name, family in families.items()
        if name != "mde_live_info"
        for sample in family.samples
    }
    assert families["mde_live_info"].samples[0].labels == setup
    assert values[("mde_frames_total",)] == 10
    assert values[("mde_frames_dropped_total",)] == 18
    assert values[("mde_client_frames_total",)] == 1
    assert values[("mde_clients",)] == 1
    assert values[("mde_latency_seconds_count",)] == 10
    assert values[("mde_latency_seconds_sum",)] == pytest.approx(0.145)
    assert values[("mde_latency_seconds", "0.5")] == pytest.approx(0.0145)
    assert values[("mde_age_seconds", "0.99")] == pytest.approx(0.030)
    assert values[("mde_temperature_celsius", "cpu-thermal")] == 48.25
    assert values[("mde_temperature_celsius", "tj-thermal")] == 51
    assert ("mde_temperature_celsius", "off") not in values
    assert status["temperatures"] == {"cpu-thermal": 48.25, "tj-thermal": 51}
    assert (status["frames"], status["dropped"], status["clients"], status["latency_ms"]) == (10, 18, 1, 19)


def test_the_rate_counts_results_that_were_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now_s))
    recorded = metrics.Metrics(SETUP)
    assert recorded.status()["rate_hz"] is None
    for number in range(0, 300, 3):
        now_s = 1000 + number / 30
        recorded.count(result(number))
    assert recorded.status()["rate_hz"] == pytest.approx(30)
    now_s += 60
    assert recorded.status()["rate_hz"] == 0
    assert recorded.status()["silent_s"] == 60


def test_health_fails_without_frames(view: WebView, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now_s))
    view.show(result(0))
    now_s += metrics.STALLED_S
    assert get(view, "/healthz")[0] == 200
    now_s += 1
    status, _, body = get(view, "/healthz")
    assert (status, body) == (503, b"no frame for 6 s\n")
    view.show(result(1))
    assert get(view, "/healthz")[0] == 200


# Start and stop


def test_a_port_in_use(plain: WebView) -> None:
    port = port_of(plain)
    with pytest.raises(InputError, match=f"Port {port} is in use") as caught, WebView(SETUP, LIMITS_M, port=port):
        pass
    assert caught.value.cure == f"--port {port + 1}"


def test_a_port_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(InputError, match="port 80") as caught, WebView(SETUP, LIMITS_M, port=80):
        pass
    assert caught.value.cure == "--port 8000"


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-name.invalid"])
def test_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(InputError, match=re.escape(host)) as caught, WebView(SETUP, LIMITS_M, host, 0):
        pass
    assert "--host" in caught.value.cure


@pytest.mark.parametrize(
    "options", [{"port": 65536}, {"port": -1}, {"token": ""}, {"token": "short"}, {"token": "ä" * 20}]
)
def test_invalid_options(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        WebView(SETUP, LIMITS_M, **options)


@pytest.mark.parametrize("package", ["starlette.applications", "uvicorn", "websockets"])
def test_a_missing_package_is_reported_with_its_cure(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingError, match=package.split(".")[0]) as caught, WebView(SETUP, LIMITS_M, port=0):
        pass
    assert caught.value.cure == "pip install 'mirrordepth-edge[web]'"


def test_importing_it_imports_no_server() -> None:
    code = "import sys, mirrordepth_edge.live.web\nsys.exit(bool({'starlette', 'uvicorn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=600, check=False).returncode == 0


def test_the_port_is_free_after_stopping_even_with_connected_clients() -> None:
    with ExitStack() as clients:
        with WebView(SETUP, LIMITS_M, port=0) as view, Feeder(view, 0.002, (480, 640)):
            port = port_of(view)
            silent = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            silent.sendall(handshake(port))
            for asked in range(1, 60):  # enough packets to fill all buffers in between
                silent.sendall(masked("next"))
                time.sleep(0.005)
                assert view._metrics.sent <= asked
            idle = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            reading = clients.enter_context(watch(view))
            reading.recv(WAIT_S)
            idle.sendall(b"GET / HTTP/1.1\r\n")
            begin_s = time.monotonic()
        assert time.monotonic() - begin_s < WAIT_S
        with pytest.raises(exceptions.ConnectionClosed):
            reading.recv(WAIT_S)
        with WebView(SETUP, LIMITS_M, port=port) as again:
            assert get(again)[0] == 200


def test_a_failure_is_reported_and_the_loop_continues(view: WebView, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(result: object, captured_ms: float) -> None:
        raise ValueError("no JPEG here")

    monkeypatch.setattr(packets, "encode", fail)
    assert view.problem is None
    with watch(view) as connection:
        connection.recv(WAIT_S)
        connection.send("next")
        view.show(result(0))
        until(lambda: view.problem is not None)
        view.show(result(1))
    assert "no JPEG here" in str(view.problem)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_prints_nothing() -> None:
    code = """
import time
from mirrordepth_edge.live.web.server import WebView
try:
    with WebView({}, (0.1, 10.0), port=0) as view:
        print(view.url, flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    print("interrupted")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = urlsplit(process.stdout.readline()).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(handshake(port))
            assert raw.recv(100).startswith(b"HTTP/1.1 101")
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=WAIT_S)
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
