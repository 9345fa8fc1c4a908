"""Frames from a source to the loop: the newest one, or every one."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from typing import NamedTuple

from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.source import FrameSource

POLL_S = 0.1
"""How often whoever waits looks whether it should stop."""


class Capture(NamedTuple):
    """A frame and when it came."""

    frame: Frame
    captured_s: float
    """`perf_counter` when the frame arrived."""
    captured_unix_ns: int
    """Wall clock (Unix time) of the same moment."""
    dropped: int
    """Frames so far that a newer one replaced."""


class _Slot:
    """One-place hand-over between two threads, in which the newest frame replaces an older one.

    Three buffers circulate: one is being filled, one waits here, one is with the caller.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: Capture | None = None
        self._spare: Frame | None = None
        self._dropped = 0
        self.ended = False
        """The capture thread puts nothing more; what waits can still be taken."""
        self.stopping = False
        """The caller wants nothing more."""

    def put(self, frame: Frame) -> Frame | None:
        """Leave a frame here that has just arrived; returns a buffer for the next one, if there is one to reuse."""
        captured_s, captured_unix_ns = time.perf_counter(), time.time_ns()
        with self._changed:
            if self._waiting is None:
                reusable, self._spare = self._spare, None
            else:
                reusable = self._waiting.frame
                self._dropped += 1
            self._waiting = Capture(frame, captured_s, captured_unix_ns, self._dropped)
            self._changed.notify()
        return reusable

    def take(self, used: Frame | None) -> Capture | None:
        """Give the last frame's buffer back and wait up to `POLL_S` for the newest frame."""
        with self._changed:
            if used is not None:
                self._spare = used
            self._changed.wait_for(lambda: self._waiting is not None or self.ended, POLL_S)
            capture, self._waiting = self._waiting, None
        return capture

    def end(self) -> None:
        with self._changed:
            self.ended = True
            self._changed.notify()


def newest(source: FrameSource) -> Generator[Capture | None, None, None]:
    """Read in a thread and yield the newest frame, or None when there was none for `POLL_S`."""
    slot = _Slot()
    failures: list[BaseException] = []

    def capture_frames() -> None:
        buffer: Frame | None = None
        try:
            while not slot.stopping and (frame := source.read(buffer)) is not None:
                buffer = slot.put(frame)
        except BaseException as error:  # re-raised below, in the caller's thread
            failures.append(error)
        finally:
            slot.end()

    # A daemon, so that a second Ctrl-C gets out even while a stuck camera keeps `read` waiting.
    thread = threading.Thread(target=capture_frames, name="mde-capture", daemon=True)
    thread.start()
    try:
        used: Frame | None = None
        while True:
            over = slot.ended  # looked at before taking: a last frame may come in between
            capture = slot.take(used)
            if capture is None and over:
                break
            used = capture.frame if capture is not None else None
            yield capture
        if failures:
            raise failures[0]
    finally:
        slot.stopping = True
        source.stop()
        thread.join()


def in_order(source: FrameSource) -> Generator[Capture | None, None, None]:
    """Yield every frame, through one buffer."""
    frame: Frame | None = None
    while (frame := source.read(frame)) is not None:
        yield Capture(frame, time.perf_counter(), time.time_ns(), 0)
