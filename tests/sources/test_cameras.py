"""Local cameras, with fakes: requested modes, error messages, and damaged frames."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources import cameras, v4l2
from mirrordepth_edge.sources import capture as capture_module
from mirrordepth_edge.sources.cameras import CameraOptions, open_camera
from mirrordepth_edge.sources.capture import CaptureSource
from mirrordepth_edge.sources.open import open_source

GOOD = np.full((4, 6, 3), (1, 2, 3), np.uint8)
MJPG, YUYV = (cv2.VideoWriter.fourcc(*name) for name in ("MJPG", "YUYV"))

SETTINGS = ("FOURCC", "FRAME_WIDTH", "FRAME_HEIGHT", "FPS", "BUFFERSIZE", "AUTO_EXPOSURE", "EXPOSURE")
NAMES = {getattr(cv2, f"CAP_PROP_{name}"): name for name in SETTINGS}


class FakeCapture:
    """A `cv2.VideoCapture` that follows a script: frames, False for a failure, or an error to raise; then failures."""

    def __init__(self, script: Iterable[object] = (), **properties: float) -> None:
        self.script = list(script)
        self.properties = {getattr(cv2, f"CAP_PROP_{name}"): value for name, value in properties.items()}
        self.requested: dict[str, float] = {}
        self.released = False

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, key: int) -> float:
        return self.properties.get(key, 0.0)

    def set(self, key: int, value: float) -> bool:
        self.requested[NAMES[key]] = value
        return True

    def read(self, out: Frame | None = None) -> tuple[bool, object]:
        step = self.script.pop(0) if self.script else False
        if isinstance(step, Exception):
            raise step
        return (True, step) if isinstance(step, np.ndarray) else (False, None)

    def release(self) -> None:
        self.released = True


def source_of(script: Iterable[object]) -> CaptureSource:
    return CaptureSource(FakeCapture(script), "camera 0")  # type: ignore[arg-type]


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /dev, on Linux."""
    monkeypatch.setattr(v4l2, "DEVICES", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def opened(
    devices: Path, monkeypatch: pytest.MonkeyPatch, options: CameraOptions, **properties: float
) -> tuple[Any, FakeCapture]:
    (devices / "video0").touch()
    capture = FakeCapture([GOOD], **properties)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: capture)
    return open_camera(0, options), capture


@pytest.mark.parametrize("spec", ["0", "{}/video0"])
def test_no_camera_at_all(spec: str, devices: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        open_source(spec.format(devices))
    assert "no" in caught.value.why
    assert "synthetic" in caught.value.cure


def test_the_error_lists_other_cameras_by_number(devices: Path) -> None:
    for number in (10, 2):
        (devices / f"video{number}").touch()
    with pytest.raises(InputError, match="does not exist") as caught:
        open_source("0")
    assert f"{devices / 'video2'}, {devices / 'video10'}" in caught.value.why
    assert caught.value.cure == f"--source {devices / 'video2'}"


@pytest.mark.parametrize(
    ("group", "cure"),
    [
        ("plugdev", "sudo usermod -aG plugdev $USER, then log in again."),
        ("root", "sudo chgrp video {} && sudo usermod -aG video $USER, then log in again."),
        (None, "sudo usermod -aG {} $USER, then log in again."),
    ],
)
def test_a_camera_without_permission(
    group: str | None, cure: str, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import grp

    def name_of(number: int) -> Any:
        if group is None:
            raise KeyError(number)
        return type("Group", (), {"gr_name": group})

    device = devices / "video0"
    device.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(grp, "getgrgid", name_of)
    with pytest.raises(InputError, match="No permission to use") as caught:
        open_source("0")
    assert f"group '{group or device.stat().st_gid}'" in caught.value.why
    assert caught.value.cure == cure.format(device if group else device.stat().st_gid)


class Driver:
    """A fake driver: of a camera or not, in use or not."""

    def __init__(self, *, video: bool = True, buffer_error: int = 0) -> None:
        self.video, self.buffer_error = video, buffer_error

    def __call__(self, descriptor: int, request: int, structure: Any) -> int:
        if request == v4l2.QUERYCAP:
            structure.capabilities = 0x1 if self.video else 0x00800000
        elif request == v4l2.REQBUFS and self.buffer_error:
            raise OSError(self.buffer_error, os.strerror(self.buffer_error))
        return 0


@pytest.mark.parametrize(
    ("driver", "word"),
    [
        (Driver(video=False), "metadata"),
        (Driver(buffer_error=errno.EBUSY), "Another program uses it"),
        (Driver(buffer_error=errno.EINVAL), "none of its formats"),
        (None, "It is not a camera"),  # a regular file answers ENOTTY
    ],
)
def test_why_a_camera_does_not_open(
    driver: Driver | None, word: str, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (devices / "video977").touch()  # a number that no machine has, so that OpenCV fails
    if driver is not None:
        monkeypatch.setattr(v4l2, "_ioctl", lambda: driver)
    with pytest.raises(InputError, match="Cannot open") as caught:
        open_source("977")
    assert word in caught.value.why


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.EBUSY, "Another program uses it"), (errno.EPERM, "container"), (errno.ENODEV, os.strerror(errno.ENODEV))],
)
def test_why_a_device_file_does_not_open(
    number: int, word: str, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    (devices / "video977").touch()
    monkeypatch.setattr(cameras.os, "open", refuse)
    with pytest.raises(InputError, match="Cannot open") as caught:
        open_source("977")
    assert word in caught.value.why


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_the_error_names_the_program_that_uses_a_camera(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = devices / "video977"
    device.touch()
    monkeypatch.setattr(v4l2, "_ioctl", lambda: Driver(buffer_error=errno.EBUSY))
    with device.open("w") as handle, subprocess.Popen(["sleep", "600"], stdout=handle) as user:
        try:
            with pytest.raises(InputError, match="Cannot open") as caught:
                open_source("977")
        finally:
            user.terminate()
    assert caught.value.why == f"Another program uses it: sleep ({user.pid})."


def test_a_camera_opens_by_index_device_and_link(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (devices / "video3").touch()
    (devices / "by-id").symlink_to(devices / "video3")
    targets: list[tuple[object, ...]] = []

    def fake_capture(*arguments: object) -> FakeCapture:
        targets.append(arguments[:2])
        return FakeCapture([GOOD])

    monkeypatch.setattr(cv2, "VideoCapture", fake_capture)
    for spec in ("3", str(devices / "video3"), str(devices / "by-id")):
        with open_source(spec) as source:
            assert source.live
            assert source.may_return
            assert source.length is None
            assert source.rate_hz is None
            assert source.notes == ()
    assert targets == [(3, cv2.CAP_V4L2)] * 3


def test_the_mode_is_set_in_the_order_that_drivers_need(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = CameraOptions(size_hw=(720, 1280), rate_hz=60.0, pixel_format="MJPG", exposure_ms=12.5)
    given = {"FRAME_WIDTH": 1280, "FRAME_HEIGHT": 720, "FPS": 60.0, "FOURCC": MJPG, "EXPOSURE": 125.0}
    source, capture = opened(devices, monkeypatch, options, **given)
    assert list(capture.requested.items()) == [
        ("FOURCC", MJPG),
        ("FRAME_WIDTH", 1280),
        ("FRAME_HEIGHT", 720),
        ("FPS", 60.0),
        ("BUFFERSIZE", 2),
        ("AUTO_EXPOSURE", 1),  # manual
        ("EXPOSURE", 125),  # in units of 0.1 ms
    ]
    assert source.notes == ()
    assert source.rate_hz == 60


def test_a_note_reports_a_mode_that_differs_from_the_requested_one(
    devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CameraOptions(size_hw=(720, 1280), rate_hz=60.0, pixel_format="MJPG", exposure_ms=12.5)
    given = {"FRAME_WIDTH": 640, "FRAME_HEIGHT": 480, "FPS": 30.0, "FOURCC": YUYV}
    source, _ = opened(devices, monkeypatch, options, **given)
    assert source.notes == (
        f"{devices}/video0 uses 640x480, 30 Hz, YUYV, automatic exposure "
        "instead of 1280x720, 60 Hz, MJPG, 12.5 ms exposure.",
    )
    given = {"FRAME_WIDTH": 1280, "FRAME_HEIGHT": 720, "FPS": 0.0, "FOURCC": -1.0, "EXPOSURE": 100.0}
    source, _ = opened(devices, monkeypatch, options, **given)
    assert source.notes == (
        f"{devices}/video0 uses an unknown rate, an unknown format, 10 ms exposure "
        "instead of 60 Hz, MJPG, 12.5 ms exposure.",
    )


def test_without_options_only_the_buffers_are_set(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, capture = opened(devices, monkeypatch, CameraOptions(), FRAME_WIDTH=640, FRAME_HEIGHT=480, FPS=30.0)
    assert list(capture.requested) == ["BUFFERSIZE"]
    assert source.notes == ()


@pytest.mark.parametrize(
    "wrong", [{"size_hw": (0, 640)}, {"rate_hz": 0.0}, {"pixel_format": "MJPEG"}, {"exposure_ms": -1.0}]
)
def test_invalid_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        CameraOptions(**wrong)
    assert caught.value.cure.startswith("--")


def test_exposure_works_only_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OptionError, match="only on Linux"):
        open_camera(0, CameraOptions(exposure_ms=5.0))


def test_damaged_frames_are_skipped_and_counted() -> None:
    grey, empty = np.zeros((4, 6), np.uint8), np.zeros((0, 0, 3), np.uint8)
    source = source_of([GOOD, False, cv2.error("corrupt JPEG"), GOOD, grey, empty, False, GOOD])
    for faults in (0, 2, 5):
        frame = source.read()
        assert frame is not None
        assert np.array_equal(frame, GOOD[..., ::-1])  # OpenCV's BGR has become RGB
        assert source.faults == faults
    with pytest.raises(InputError, match="delivers no frames") as caught:
        source.read()
    assert "unplugged" in caught.value.why
    assert source.faults == 5, "failures at the end are not faults"


def test_a_timeout_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "QUICK_FAILURE_S", 0.01)
    waited: list[float] = []

    class Silent(FakeCapture):
        def read(self, out: Frame | None = None) -> tuple[bool, object]:
            waited.append(time.perf_counter())
            time.sleep(0.02)
            return False, None

    with pytest.raises(InputError, match="delivers no frames") as caught:
        CaptureSource(Silent(), "camera 0").read()  # type: ignore[arg-type]
    assert "sent no frame" in caught.value.why
    assert len(waited) == 1


def test_the_resolution_changes_in_mid_stream() -> None:
    larger = np.full((8, 10, 3), 7, np.uint8)
    source = source_of([GOOD, larger, GOOD])
    buffer = np.empty(GOOD.shape, np.uint8)
    shapes = []
    for _ in range(3):
        frame = source.read(buffer)
        assert frame is not None
        assert (frame is buffer) == (frame.shape == GOOD.shape)
        shapes.append(frame.shape)
    assert shapes == [(4, 6, 3), (8, 10, 3), (4, 6, 3)]


def test_a_stopped_camera_returns_none_and_is_released() -> None:
    capture = FakeCapture([GOOD, GOOD])
    with CaptureSource(capture, "camera 0") as source:  # type: ignore[arg-type]
        assert source.read() is not None
        source.stop()
        assert source.read() is None
    assert capture.released
