"""Frames from cameras, streams, videos and a test pattern. OpenCV's BGR stays inside this module."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Literal

import cv2
import numpy as np

from mirrordepth_edge.data.sample import PICTURE_SUFFIXES
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.files import existing_file
from mirrordepth_edge.preprocess import Frame

SYNTHETIC = "synthetic"
SYNTHETIC_SIZE_HW = (480, 640)
SYNTHETIC_RATE_HZ = 30.0
SYNTHETIC_STEP_PX = 4
"""How far the pattern moves to the left from one frame to the next."""
DEVICES = Path("/dev")
STREAM_TIMEOUT_MS = 10_000
TERMINAL_TEXT = cv2.VideoWriter.fourcc(*"ansi")


class FrameSource(ABC):
    """Where frames come from; a context manager."""

    name: str
    """What the user sees, without credentials."""
    live: bool
    """True where frames appear at their own rate (camera, stream), False where they wait (file)."""
    rate_hz: float | None = None
    """Frames per second as the source declares it; None where it does not."""
    length: int | None = None
    """Frames in a video file as its header declares it, which may be off; None where unknown."""

    @abstractmethod
    def read(self, out: Frame | None = None) -> Frame | None:
        """The next frame.

        Args:
            out: uint8 `[H, W, 3]`, filled and returned if it has the frame's shape.

        Returns:
            uint8 RGB `[H, W, 3]`, which the source does not touch again, or None at the end.

        Raises:
            InputError: nothing can be read, or a camera stopped.
        """

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Give the device or file back."""

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CaptureSource(FrameSource):
    """An opened `cv2.VideoCapture`."""

    def __init__(self, capture: cv2.VideoCapture, name: str, kind: Literal["camera", "stream", "video"]) -> None:
        self.name = name
        self.live = kind != "video"
        rate_hz, length = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate_hz = rate_hz if 0 < rate_hz <= 1000 else None
        self.length = int(length) if length > 0 and not self.live else None
        self._kind = kind
        self._capture = capture
        self._bgr: Frame | None = None
        # OpenCV crashes when a capture is released while another thread reads from it.
        self._lock = threading.Lock()

    def read(self, out: Frame | None = None) -> Frame | None:
        with self._lock:
            ok, bgr = self._capture.read() if self._bgr is None else self._capture.read(self._bgr)
        if ok:
            self._bgr = bgr  # type: ignore[assignment]
            return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=out)  # type: ignore[return-value]
        if self._kind == "camera":
            raise InputError(
                f"{self.name} delivers no frames.",
                "It was unplugged, or another program took it."
                if self._bgr is not None
                else "It opened, then stayed silent.",
                "Close other programs that use it, plug it in again, and retry.",
            )
        if self._bgr is None:
            raise InputError(
                f"{self.name} holds no frame that can be read.",
                "It is damaged, cut short, or coded in a way this OpenCV cannot decode.",
                "Convert it, for example with ffmpeg -i IN -c:v libx264 OUT.mp4.",
            )
        if self._kind == "stream" and not self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
            raise InputError(
                f"{self.name} stopped.",
                "The stream's frames ceased: the network or the camera went away.",
                "Start mde live again once it answers; try the address in ffplay.",
            )
        return None

    def close(self) -> None:
        with self._lock:
            self._capture.release()


class SyntheticSource(FrameSource):
    """A pattern that moves to the left, paced like a camera; frame k is the same in every run."""

    name = "synthetic pattern"
    live = True
    rate_hz = SYNTHETIC_RATE_HZ

    def __init__(self) -> None:
        height, width = SYNTHETIC_SIZE_HW
        y, x = np.mgrid[:height, : 2 * width]
        # Periodic in `width`, so that every frame is a window into this one array.
        phase = 2 * np.pi * x / width
        waves = np.sin(phase), np.cos(3 * phase), np.sin(phase + 2 * np.pi * y / height)
        self._pattern = np.stack([127.5 + 127.5 * wave for wave in waves], axis=-1).astype(np.uint8)
        self._index = 0
        self._due_s = time.perf_counter()

    def read(self, out: Frame | None = None) -> Frame:
        period_s = 1 / SYNTHETIC_RATE_HZ
        now_s = time.perf_counter()
        # As a camera does, lose the frames that nobody fetched in time instead of sending a burst.
        self._due_s = max(self._due_s + period_s, now_s - period_s)
        time.sleep(max(0.0, self._due_s - now_s))
        start = self._index * SYNTHETIC_STEP_PX % SYNTHETIC_SIZE_HW[1]
        self._index += 1
        if out is None or out.shape != (*SYNTHETIC_SIZE_HW, 3):
            out = np.empty((*SYNTHETIC_SIZE_HW, 3), np.uint8)
        np.copyto(out, self._pattern[:, start : start + SYNTHETIC_SIZE_HW[1]])
        return out


def open_source(spec: str) -> FrameSource:
    """Open what the user named.

    Args:
        spec: a camera's index (`0`) or device (`/dev/video0`), a URL (`rtsp://…`, `http://…`),
            a video file, or `synthetic`.

    Raises:
        InputError: it is missing or cannot be used.
    """
    if spec == SYNTHETIC:
        return SyntheticSource()
    if spec.isdecimal():
        return _open_camera(int(spec))
    if "://" in spec:
        return _open_stream(spec)
    path = Path(spec)
    device = path.resolve()  # /dev/v4l/by-id/… are links to /dev/videoN
    if device.parent == DEVICES and (match := re.fullmatch(r"video(\d+)", device.name)):
        return _open_camera(int(match[1]))
    return open_video(path)


def open_video(path: Path) -> FrameSource:
    """Open a video file.

    Raises:
        InputError: it is missing, empty or no video.
    """
    existing_file(path, "video")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise InputError(f"{path} is a picture, not a video.", "It has one frame.", f"mde run {path}")
    capture = _capture(str(path))
    # FFmpeg would render a text file as pictures of a terminal.
    if capture is None or capture.get(cv2.CAP_PROP_FOURCC) == TERMINAL_TEXT:
        raise InputError(
            f"{path} is no readable video.",
            "OpenCV could not open it: it is damaged, cut short or of another kind.",
            "Pass a video (mp4, avi, mkv, mov, webm); ffprobe FILE tells what it holds.",
        )
    return CaptureSource(capture, str(path), "video")


def _open_camera(index: int) -> FrameSource:
    linux = sys.platform.startswith("linux")
    device = DEVICES / f"video{index}"
    name = str(device) if linux else f"camera {index}"
    if linux and not device.exists():
        there = sorted(str(path) for path in DEVICES.glob("video*"))
        raise InputError(
            f"There is no camera {device}.",
            f"This machine has {', '.join(there)}." if there else f"This machine has no {DEVICES}/video* at all.",
            f"--source {there[0]}"
            if there
            else "Plug a camera in, pass a video file or URL, or try --source synthetic.",
        )
    if linux and not os.access(device, os.R_OK | os.W_OK):
        raise InputError(
            f"You may not use {device}.",
            "It belongs to the group 'video', and your user is not in it.",
            "sudo usermod -aG video $USER, then log in again.",
        )
    # Asking for V4L2 by name keeps OpenCV from trying, and blaming, every other kind of camera.
    capture = _capture(index, cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
    if capture is None:
        raise InputError(
            f"{name} does not open.",
            "Another program uses it, or it carries no pictures: many cameras have a second, metadata device.",
            "Close the other program, or try the next number, such as --source 1.",
        )
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the driver's queue would only add age
    return CaptureSource(capture, name, "camera")


def _open_stream(url: str) -> FrameSource:
    name = re.sub(r"//[^/@]*@", "//", url)
    limits = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        STREAM_TIMEOUT_MS,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        STREAM_TIMEOUT_MS,
    ]
    capture = _capture(url, cv2.CAP_ANY, limits)
    if capture is None:
        raise InputError(
            f"{name} does not open.",
            "The host does not answer, the address or password is wrong, or OpenCV cannot decode the stream.",
            "Try the same address in VLC or ffplay on this machine.",
        )
    return CaptureSource(capture, name, "stream")


def _capture(target: int | str, api: int = cv2.CAP_ANY, params: list[int] | None = None) -> cv2.VideoCapture | None:
    """Open without OpenCV and FFmpeg writing to the terminal; None where it does not open."""
    # OpenCV 4 has it at the top, OpenCV 5 in utils.logging; 0 is "silent" in both.
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_log_level(0)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; read when FFmpeg is first used
    capture = cv2.VideoCapture(target, api, params or [])
    return capture if capture.isOpened() else None
