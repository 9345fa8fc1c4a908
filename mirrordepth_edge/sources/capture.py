"""Sources behind a `cv2.VideoCapture`. OpenCV's BGR stays inside."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence

import cv2

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.source import FrameSource

READ_TIMEOUT_S = 5
"""How long a camera or a stream may be silent until reading from it fails."""
OPEN_TIMEOUT_MS = 10_000
BAD_FRAMES = 5
"""So many reads in a row that fail are no accident: the source has ended or is lost."""
AT_ONCE_S = 1.0
"""A read that fails later than this waited for a frame in vain: no use to wait as long again."""


class CaptureSource(FrameSource):
    """A camera or a stream that OpenCV has opened.

    Args:
        name: what the user sees.
        notes: what is to be told of it.
    """

    live = True
    may_return = True
    silent = "It opened, then stayed silent."
    lost = "It was unplugged, or another program took it."
    cure = "Close other programs that use it, plug it in again, and retry."

    def __init__(self, capture: cv2.VideoCapture, name: str, notes: Sequence[str] = ()) -> None:
        self.name = name
        rate_hz = capture.get(cv2.CAP_PROP_FPS)
        self.rate_hz = rate_hz if 0 < rate_hz <= 1000 else None
        self.frames = 0
        """Read so far."""
        self._notes = tuple(notes)
        self._capture = capture
        self._bgr: Frame | None = None
        self._stopped = threading.Event()
        # OpenCV crashes when a capture is released while another thread reads from it.
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    def read(self, out: Frame | None = None) -> Frame | None:
        for bad in range(BAD_FRAMES):
            begin_s = time.perf_counter()
            if self._stopped.is_set():
                return None
            if self._fetch():
                self.frames += 1
                self.faults += bad
                return cv2.cvtColor(self._bgr, cv2.COLOR_BGR2RGB, dst=out)  # type: ignore[arg-type, return-value]
            if time.perf_counter() - begin_s > AT_ONCE_S:
                break
        return self._ended()

    def _fetch(self) -> bool:
        """Decode the next frame into `_bgr`; False where there is none, or it is broken."""
        with self._lock:
            try:
                ok, bgr = self._capture.read() if self._bgr is None else self._capture.read(self._bgr)
            except cv2.error:  # a frame that cannot be decoded
                return False
        if not ok or bgr is None or bgr.ndim != 3 or bgr.size == 0:
            return False
        self._bgr = bgr  # type: ignore[assignment]  # another one where the size has changed
        return True

    def _ended(self) -> Frame | None:
        """What `read` gives when nothing more can be read."""
        raise InputError(f"{self.name} delivers no frames.", self.lost if self.frames else self.silent, self.cure)

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        with self._lock:
            self._capture.release()


class StreamSource(CaptureSource):
    """A stream from the network, or a file there, which ends."""

    lost = "The stream's frames ceased: the network or the camera went away."
    cure = "Start mde live again once it answers; try the address in ffplay."

    def _ended(self) -> Frame | None:
        if self.frames and self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
            return None
        return super()._ended()


def open_stream(url: str) -> FrameSource:
    """Open a stream by its URL.

    Raises:
        InputError: the host does not answer within ten seconds, or what it sends cannot be decoded.
    """
    name = re.sub(r"//[^/@]*@", "//", url)
    read_timeout_ms = READ_TIMEOUT_S * 1000
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, read_timeout_ms]
    capture = open_capture(url, cv2.CAP_ANY, limits)
    if capture is None:
        raise InputError(
            f"{name} does not open.",
            "The host does not answer, the address or password is wrong, or OpenCV cannot decode the stream.",
            "Try the same address in VLC or ffplay on this machine.",
        )
    return StreamSource(capture, name)


def open_capture(target: int | str, api: int = cv2.CAP_ANY, params: Sequence[int] = ()) -> cv2.VideoCapture | None:
    """Open without OpenCV and FFmpeg writing to the terminal; None where it does not open."""
    # OpenCV 4 has it at the top, OpenCV 5 in utils.logging; 0 is "silent" in both.
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_log_level(0)
    # Each is read once, when its part of OpenCV is first used.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(READ_TIMEOUT_S))
    capture = cv2.VideoCapture(target, api, list(params))
    return capture if capture.isOpened() else None
