"""What opens, what it yields, and what a user is told where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.live import sources
from mirrordepth_edge.live.sources import CaptureSource, SyntheticSource, open_source, open_video

HEIGHT, WIDTH, FRAMES, RATE_HZ = 48, 64, 6, 12.0


def level(index: int) -> int:
    return 30 + 30 * index


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames, red on the left and blue on the right, brighter from frame to frame."""
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE_HZ, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for index in range(FRAMES):
        bgr = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        bgr[:, : WIDTH // 2, 2] = level(index)
        bgr[:, WIDTH // 2 :, 0] = level(index)
        writer.write(bgr)
    writer.release()
    return path


class FakeCapture:
    """A `cv2.VideoCapture` that yields some frames and then fails."""

    def __init__(self, frames: int) -> None:
        self.left = frames
        self.settings: dict[int, float] = {}

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, key: int) -> float:
        return 0.0

    def set(self, key: int, value: float) -> bool:
        self.settings[key] = value
        return True

    def read(self, out: object = None) -> tuple[bool, object]:
        self.left -= 1
        return (True, np.zeros((4, 6, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None: ...


def test_a_video_is_read_in_order_as_rgb(video: Path) -> None:
    with open_source(str(video)) as source:
        assert not source.live
        assert source.rate_hz == RATE_HZ
        assert source.length == FRAMES
        for index in range(FRAMES):
            frame = source.read()
            assert frame is not None
            assert frame.shape == (HEIGHT, WIDTH, 3)
            assert frame.dtype == np.uint8
            # JPEG rounds, and blurs colours where the halves meet.
            left, right = frame[:, :20].mean((0, 1)), frame[:, -20:].mean((0, 1))
            np.testing.assert_allclose(left, (level(index), 0, 0), atol=6)
            np.testing.assert_allclose(right, (0, 0, level(index)), atol=6)
        assert source.read() is None
        assert source.read() is None


def test_a_frame_fills_the_buffer_that_fits(video: Path) -> None:
    fits, other = np.empty((HEIGHT, WIDTH, 3), np.uint8), np.zeros((3, 3, 3), np.uint8)
    with open_source(str(video)) as source:
        assert source.read(fits) is fits
        first = fits.copy()
        second = source.read(other)
    assert second is not None
    assert second.shape == (HEIGHT, WIDTH, 3)
    assert not other.any()
    assert np.array_equal(fits, first), "a returned frame changed afterwards"


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("absent.mp4", None, "No such file"),
        ("empty.mp4", b"", "0 bytes"),
        ("notes.mp4", b"no video\n" * 100, "could not open"),
        ("notes.txt", b"FFmpeg would draw this\n" * 100, "could not open"),
        ("cut.mp4", b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom", "could not open"),
        ("photo.jpg", b"\xff\xd8\xff", "one frame"),
    ],
)
def test_what_is_no_video(name: str, content: bytes | None, word: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=word) as caught:
        open_source(str(path))
    assert name in caught.value.what
    assert caught.value.cure


def test_opencv_and_ffmpeg_keep_silent(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video\n" * 100)
    (tmp_path / "video977").touch()
    # Port 9 of this machine refuses at once. A process of its own: FFmpeg reads its log level only once.
    code = f"""
from pathlib import Path
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.live import sources
sources.DEVICES = Path({str(tmp_path)!r})
for spec in ("notes.mp4", "977", "http://127.0.0.1:9/stream"):
    try:
        sources.open_source(spec)
    except InputError:
        continue
    raise SystemExit(f"{{spec}} opened")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_folder_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        open_source(str(tmp_path))


def test_a_file_named_like_a_camera_is_a_file_for_open_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("0").write_bytes(b"no video")
    with pytest.raises(InputError, match="0 is no readable video"):
        open_video(Path("0"))


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /dev, on Linux."""
    monkeypatch.setattr(sources, "DEVICES", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


@pytest.mark.parametrize("spec", ["0", "{}/video0"])
def test_no_camera_at_all(spec: str, devices: Path) -> None:
    with pytest.raises(InputError, match="There is no camera") as caught:
        open_source(spec.format(devices))
    assert "no" in caught.value.why
    assert "synthetic" in caught.value.cure


def test_another_camera_is_named(devices: Path) -> None:
    (devices / "video2").touch()
    with pytest.raises(InputError, match="There is no camera") as caught:
        open_source("0")
    assert str(devices / "video2") in caught.value.why
    assert caught.value.cure == f"--source {devices / 'video2'}"


def test_a_camera_without_permission(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (devices / "video0").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="may not use") as caught:
        open_source("0")
    assert "usermod -aG video" in caught.value.cure


def test_a_camera_that_does_not_open(devices: Path) -> None:
    (devices / "video977").touch()  # a number that no machine has, so that OpenCV fails
    with pytest.raises(InputError, match="does not open"):
        open_source("977")


def test_a_camera_is_live_and_keeps_no_queue(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (devices / "video3").touch()
    (devices / "by-id").symlink_to(devices / "video3")
    opened: list[tuple[object, ...]] = []
    capture = FakeCapture(frames=2)

    def fake_capture(*arguments: object) -> FakeCapture:
        opened.append(arguments)
        return capture

    monkeypatch.setattr(cv2, "VideoCapture", fake_capture)
    source = open_source(str(devices / "by-id"))
    assert opened[0][:2] == (3, cv2.CAP_V4L2)
    assert source.live
    assert source.length is None
    assert source.rate_hz is None
    assert capture.settings[cv2.CAP_PROP_BUFFERSIZE] == 1
    assert source.read() is not None
    assert source.read() is not None
    with pytest.raises(InputError, match="delivers no frames") as caught:
        source.read()
    assert "unplugged" in caught.value.why


def test_a_silent_camera_and_an_undecodable_video_are_errors() -> None:
    with pytest.raises(InputError, match="stayed silent"):
        CaptureSource(FakeCapture(0), "camera 0", "camera").read()  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no frame that can be read"):
        CaptureSource(FakeCapture(0), "clip.mp4", "video").read()  # type: ignore[arg-type]


def test_a_stream_that_does_not_answer_keeps_its_password() -> None:
    with pytest.raises(InputError, match="does not open") as caught:
        open_source("http://user:secret@127.0.0.1:9/stream")  # port 9 of this machine: refused at once
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in caught.value.what


def test_a_stream_that_stops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *arguments: FakeCapture(frames=1))
    with open_source("rtsp://127.0.0.1/stream") as source:
        assert source.live
        assert source.read() is not None
        with pytest.raises(InputError, match="stopped"):
            source.read()


def test_the_pattern_moves_and_repeats() -> None:
    with open_source("synthetic") as source, SyntheticSource() as again:
        assert source.live
        frames = [source.read() for _ in range(3)]
        for frame in frames:
            assert frame is not None
            assert frame.shape == (480, 640, 3)
            assert np.array_equal(frame, again.read())
    first, second, _ = frames
    assert first is not None
    step = sources.SYNTHETIC_STEP_PX
    assert np.array_equal(np.roll(first, -step, axis=1), second)  # a step to the left, and seamless
    assert first.std((0, 1)).min() > 40


def test_the_pattern_is_paced() -> None:
    out = np.empty((480, 640, 3), np.uint8)
    with open_source("synthetic") as source:
        source.read(out)
        start_s = time.perf_counter()
        for _ in range(6):
            assert source.read(out) is out
        elapsed_s = time.perf_counter() - start_s
        # Never early; late only as far as this machine is busy.
        assert 0.9 * 6 / 30 <= elapsed_s < 2
        time.sleep(0.3)
        start_s = time.perf_counter()
        for _ in range(5):
            source.read()
        assert time.perf_counter() - start_s > 2.5 / 30, "frames missed were sent in a burst"
