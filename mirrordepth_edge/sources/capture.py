"""Sources that read from a `cv2.VideoCapture`. Frames leave this file as RGB; BGR stays inside."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

import cv2

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.support.urls import hide_credentials

READ_TIMEOUT_S = 5
"""Time without a frame after which a read from a camera or stream fails."""
OPEN_TIMEOUT_MS = 10_000
MAX_BAD_FRAMES = 5
"""Consecutive failed reads after which the source counts as ended or lost."""
QUICK_FAILURE_S = 1.0
"""A read that fails later than this has timed out, and is not repeated."""


class CaptureSource(FrameSource):
    """A camera or stream that OpenCV has opened.

    Args:
        capture: an open capture.
        name: name for the user.
        notes: remarks for the user.
    """

    live = True
    may_return = True
    # The reason and the cure in the error message when no frame arrives: at first, and later.
    never_started = "It opened, but sent no frame."
    lost = "It was unplugged, or another program took it."
    cure = "Close other programs that use it, reconnect it, and retry."

    def __init__(self, capture: cv2.VideoCapture, name: str, notes: Sequence[str] = ()) -> None:
        self.name = name
        rate_hz = capture.get(cv2.CAP_PROP_FPS)
        self.rate_hz = rate_hz if 0 < rate_hz <= 1000 else None
        self.frames = 0
        """Number of frames read so far."""
        self._notes = tuple(notes)
        self._capture = capture
        self._bgr: Frame | None = None
        self._stopped = threading.Event()
        # OpenCV crashes if a capture is released while another thread reads from it.
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

    def read(self, out: Frame | None = None) -> Frame | None:
        if not self._advance(self._decode):
            return None
        return cv2.cvtColor(self._bgr, cv2.COLOR_BGR2RGB, dst=out)  # type: ignore[arg-type, return-value]

    def _advance(self, fetch: Callable[[], bool]) -> bool:
        """Go to the next frame that is not damaged.

        Args:
            fetch: reads one frame; returns False if it fails.

        Returns:
            False at the end, and after `stop`.

        Raises:
            InputError: the source sends nothing more although it should.
        """
        for bad_frames in range(MAX_BAD_FRAMES):
            begin_s = time.perf_counter()
            if self._stopped.is_set():
                return False
            try:
                with self._lock:
                    fetched = fetch()
            except cv2.error:  # the frame cannot be decoded
                fetched = False
            if fetched:
                self.frames += 1
                self.faults += bad_frames
                return True
            if time.perf_counter() - begin_s > QUICK_FAILURE_S:
                break
        self._check_end()
        return False

    def _decode(self) -> bool:
        """Decode the next frame into `_bgr`."""
        ok, bgr = self._capture.read() if self._bgr is None else self._capture.read(self._bgr)
        if not ok or bgr is None or bgr.ndim != 3 or bgr.size == 0:
            return False
        self._bgr = bgr  # type: ignore[assignment]  # a new array if the frame size has changed
        return True

    def _check_end(self) -> None:
        """Raise InputError unless a source without further frames has ended normally."""
        raise InputError(
            f"{self.name} delivers no frames.", self.lost if self.frames else self.never_started, self.cure
        )

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        with self._lock:
            self._capture.release()


class StreamSource(CaptureSource):
    """A network stream, or a file on a server, which has an end."""

    lost = "The stream stopped: the network or the camera is down."
    cure = "Restart mde live when the stream is back; test the URL with ffplay."

    def _check_end(self) -> None:
        is_file = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        if not (self.frames and is_file):
            super()._check_end()


def open_stream(url: str) -> FrameSource:
    """Open a stream by its URL.

    Raises:
        InputError: the host does not answer within ten seconds, or the stream cannot be decoded.
    """
    name = hide_credentials(url)
    read_timeout_ms = READ_TIMEOUT_S * 1000
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, read_timeout_ms]
    capture = open_capture(url, cv2.CAP_ANY, timeouts)
    if capture is None:
        raise InputError(
            f"Cannot open {name}.",
            "The host does not answer, the address or password is wrong, or OpenCV cannot decode the stream.",
            "Try the same address in VLC or ffplay on this machine.",
        )
    return StreamSource(capture, name)


def open_capture(target: int | str, api: int = cv2.CAP_ANY, params: Sequence[int] = ()) -> cv2.VideoCapture | None:
    """Open a `cv2.VideoCapture` without log output from OpenCV and FFmpeg; None if it does not open."""
    # OpenCV 4 has it at the top, OpenCV 5 in utils.logging; 0 is "silent" in both.
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_log_level(0)
    # Each variable is read once, when its part of OpenCV is first used.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(READ_TIMEOUT_S))
    capture = cv2.VideoCapture(target, api, list(params))
    return capture if capture.isOpened() else None
