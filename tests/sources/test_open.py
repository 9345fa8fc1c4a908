"""Which specification opens which source, streams, and error messages."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.sources import capture
from mirrordepth_edge.sources import open as sources
from mirrordepth_edge.sources.cameras import CameraOptions
from mirrordepth_edge.sources.files import ImageFolder
from mirrordepth_edge.sources.open import open_source
from mirrordepth_edge.sources.synthetic import SyntheticSource


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), np.zeros((4, 6, 3), np.uint8))
    return path


def test_which_specification_opens_which_source(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    for name in ("open_camera", "open_csi", "open_stream", "open_video"):

        def note(*arguments: Any, _name: str = name, **options: Any) -> None:
            calls.append((_name, *arguments, *options.items()))

        monkeypatch.setattr(sources, name, note)
    options = CameraOptions(rate_hz=60.0)
    for spec in ("1", "/dev/video12", "csi", "csi:2"):
        open_source(spec, options)
    open_source("rtsp://camera/stream")
    open_source("clip.mp4", realtime=True)
    open_source("csi.mp4")
    open_source("video1")
    assert calls == [
        ("open_camera", 1, options),
        ("open_camera", 12, options),
        ("open_csi", 0, options),
        ("open_csi", 2, options),
        ("open_stream", "rtsp://camera/stream"),
        ("open_video", Path("clip.mp4"), ("realtime", True)),
        ("open_video", Path("csi.mp4"), ("realtime", False)),
        ("open_video", Path("video1"), ("realtime", False)),
    ]
    assert isinstance(open_source(str(image.parent)), ImageFolder)
    pattern = open_source("synthetic", CameraOptions(size_hw=(24, 32), rate_hz=60.0))
    assert isinstance(pattern, SyntheticSource)
    assert pattern.rate_hz == 60
    assert pattern.depth_m(0).shape == (24, 32)


@pytest.mark.parametrize("spec", ["rtsp://camera/stream", "clip.mp4", "{}"])
def test_only_cameras_have_modes(spec: str, image: Path) -> None:
    with pytest.raises(OptionError, match="--size applies only to cameras"):
        open_source(spec.format(image.parent), CameraOptions(size_hw=(480, 640)))
    with pytest.raises(OptionError, match="--exposure applies only to cameras") as caught:
        open_source("synthetic", CameraOptions(size_hw=(48, 64), exposure_ms=5.0))
    assert caught.value.cure == "Leave --exposure out."


@pytest.mark.parametrize("spec", ["0", "csi", "rtsp://camera/stream", "{}", "synthetic"])
def test_only_videos_play_in_real_time(spec: str, image: Path) -> None:
    with pytest.raises(OptionError, match="--realtime works only with video files"):
        open_source(spec.format(image.parent), realtime=True)


def test_opencv_and_ffmpeg_log_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video\n" * 100)
    (tmp_path / "video977").touch()
    # Port 9 of this machine refuses at once. A process of its own: FFmpeg reads its log level only once.
    code = f"""
from pathlib import Path
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.sources import v4l2
from mirrordepth_edge.sources.open import open_source
v4l2.DEVICES = Path({str(tmp_path)!r})
for spec in ("notes.mp4", "977", "http://127.0.0.1:9/stream"):
    try:
        open_source(spec)
    except InputError:
        continue
    raise SystemExit(f"{{spec}} opened")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_error_about_a_stream_hides_its_password() -> None:
    with pytest.raises(InputError, match="Cannot open") as caught:
        open_source("http://user:secret@127.0.0.1:9/stream")  # port 9 on this machine: refused immediately
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in caught.value.what


def test_a_host_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "OPEN_TIMEOUT_MS", 300)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start_s = time.perf_counter()
        with pytest.raises(InputError, match="Cannot open"):
            open_source(f"rtsp://127.0.0.1:{silent.getsockname()[1]}/stream")
        assert 0.2 < time.perf_counter() - start_s < 25, "OpenCV's own limit is 30 s"


JPEG = cv2.imencode(".jpg", np.full((48, 64, 3), (200, 100, 50), np.uint8))[1].tobytes()


class MotionJpeg(BaseHTTPRequestHandler):
    """A network camera that sends some images and then closes the connection, or sends nothing more."""

    images = 12
    goes_silent = False
    over = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for _ in range(self.images):
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(JPEG)}\r\n\r\n"
            self.wfile.write(head.encode() + JPEG + b"\r\n")
        if self.goes_silent:
            self.over.wait(120)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def network_camera() -> Iterator[str]:
    MotionJpeg.over.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), MotionJpeg) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/stream.mjpg"
        MotionJpeg.over.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("goes_silent", [False, True])
def test_a_stream_that_stops(goes_silent: bool, network_camera: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MotionJpeg, "goes_silent", goes_silent)
    monkeypatch.setattr(capture, "READ_TIMEOUT_S", 2)
    monkeypatch.setattr(capture, "QUICK_FAILURE_S", 0.5)
    with open_source(network_camera) as source:
        assert source.live
        assert source.may_return
        assert source.length is None
        frames: list[object] = []
        start_s = time.perf_counter()
        with pytest.raises(InputError, match="delivers no frames") as caught:
            frames.extend(source.read() for _ in range(1000))
        assert time.perf_counter() - start_s < 100, "it waited until the camera hung up"
    assert "stopped" in caught.value.why
    assert len(frames) >= 8, "what had arrived was lost"
    assert frames[0] is not None
    np.testing.assert_allclose(frames[0][10, 10], (50, 100, 200), atol=4)  # RGB


def test_a_file_on_a_server_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Served:
        def isOpened(self) -> bool:  # noqa: N802
            return True

        def get(self, key: int) -> float:
            return {cv2.CAP_PROP_FRAME_COUNT: 1.0}.get(key, 0.0)

        def read(self, out: object = None) -> tuple[bool, object]:
            return (True, np.zeros((4, 6, 3), np.uint8)) if out is None else (False, None)

        def release(self) -> None: ...

    monkeypatch.setattr(cv2, "VideoCapture", lambda *arguments: Served())
    with open_source("http://127.0.0.1/clip.mp4") as source:
        assert source.read() is not None
        assert source.read() is None
