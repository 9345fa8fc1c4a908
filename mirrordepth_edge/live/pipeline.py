"""The live loop: the newest frame in, a depth map and its age out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np

from mirrordepth_edge.live.sources import FrameSource
from mirrordepth_edge.postprocess import DepthMap
from mirrordepth_edge.preprocess import Frame

HISTORY = 10_000
"""Samples that the percentiles are taken over, the newest ones: five minutes and a half at 30 Hz."""
POLL_S = 0.1
"""How often a loop that waits for a camera looks whether it should stop."""
LATENCY, AGE = 0, 1


@dataclass(frozen=True, kw_only=True)
class LiveResult:
    """One frame and its depth. Both arrays are reused: copy them to keep them past the callback."""

    frame: Frame
    """uint8 RGB `[H, W, 3]`."""
    depth_m: DepthMap
    """float32 `[H, W]`, metres."""
    latency_ms: float
    """Of the predictor: preprocessing, network, resize back."""
    age_ms: float
    """From the frame's arrival in this process to its depth; exposure and transfer are not seen."""
    dropped: int
    """Frames so far that a newer one replaced before their turn came."""


@dataclass(frozen=True, kw_only=True)
class LiveStats:
    """How a live run went. Percentiles are over the last `HISTORY` frames, None without frames."""

    frames: int
    """Frames that got a depth."""
    dropped: int
    """Frames that a newer one replaced before their turn came."""
    duration_s: float
    """From the start of the loop to its last result."""
    rate_hz: float | None
    """Results per second between the first and the last; None with fewer than two."""
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    age_p50_ms: float | None
    age_p99_ms: float | None
    interrupted: bool
    """Ctrl-C ended the run; the caller passes it on when it has done its own tidying."""

    def __str__(self) -> str:
        text = f"{self.frames} frames in {self.duration_s:.1f} s, {self.dropped} dropped"
        if self.rate_hz is not None:
            text += f", {self.rate_hz:.1f} Hz"
        if self.frames:
            text += f"; latency p50 {self.latency_p50_ms:.1f} ms, p99 {self.latency_p99_ms:.1f} ms"
            text += f"; age p50 {self.age_p50_ms:.1f} ms, p99 {self.age_p99_ms:.1f} ms"
        return text


class Ticker:
    """Results in, once a second a line about that second out."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()
        self._latencies_ms: list[float] = []

    def __call__(self, result: LiveResult) -> str | None:
        """Rate, median latency, the newest age and all drops so far, or None within the second."""
        self._latencies_ms.append(result.latency_ms)
        seconds = time.perf_counter() - self._since_s
        if seconds < 1:
            return None
        rate_hz, latency_ms = len(self._latencies_ms) / seconds, median(self._latencies_ms)
        self._latencies_ms.clear()
        self._since_s += seconds
        return f"{rate_hz:.1f} Hz  latency {latency_ms:.1f} ms  age {result.age_ms:.1f} ms  dropped {result.dropped}"


def run_live(
    source: FrameSource,
    predictor: Callable[[Frame], DepthMap],
    on_result: Callable[[LiveResult], object],
    *,
    max_frames: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LiveStats:
    """Predict frame after frame until the source ends or someone says stop.

    A live source is read by its own thread and the newest frame wins; a file is read in order and
    loses none. Prediction and callbacks run in the caller's thread. The capture thread has ended
    when this returns or raises.

    Args:
        source: an open source.
        predictor: uint8 RGB `[H, W, 3]` to float32 `[H, W]` metres, such as a `DepthPredictor`.
        on_result: called with every result.
        max_frames: stop after this many results, at least 1.
        should_stop: asked after every result, and every `POLL_S` while a camera keeps us waiting.

    Raises:
        Whatever source, predictor and callbacks raise, but for KeyboardInterrupt, which ends the
        run and is told by `LiveStats.interrupted`.
    """
    recorder = _Recorder()
    interrupted = False
    try:
        with closing(_newest(source) if source.live else _in_order(source)) as captures:
            for capture in captures:
                if capture is not None:
                    begin_s = time.perf_counter()
                    depth_m = predictor(capture.frame)
                    end_s = time.perf_counter()
                    result = LiveResult(
                        frame=capture.frame,
                        depth_m=depth_m,
                        latency_ms=(end_s - begin_s) * 1e3,
                        age_ms=(end_s - capture.captured_s) * 1e3,
                        dropped=capture.dropped,
                    )
                    recorder.add(result, end_s)
                    on_result(result)
                if recorder.frames == max_frames or should_stop():
                    break
    except KeyboardInterrupt:
        interrupted = True
    return recorder.stats(interrupted)


class _Capture(NamedTuple):
    frame: Frame
    captured_s: float
    """`perf_counter` when the frame arrived."""
    dropped: int = 0


class _Recorder:
    """Latency and age of the newest frames, in memory that does not grow."""

    def __init__(self) -> None:
        self.frames = 0
        self._dropped = 0
        self._samples_ms = np.zeros((HISTORY, 2))
        self._start_s = self._first_s = self._last_s = time.perf_counter()

    def add(self, result: LiveResult, end_s: float) -> None:
        self._samples_ms[self.frames % HISTORY] = result.latency_ms, result.age_ms
        self._first_s = self._first_s if self.frames else end_s
        self._last_s = end_s
        self._dropped = result.dropped
        self.frames += 1

    def stats(self, interrupted: bool) -> LiveStats:
        between_s = self._last_s - self._first_s
        return LiveStats(
            frames=self.frames,
            dropped=self._dropped,
            duration_s=self._last_s - self._start_s,
            rate_hz=(self.frames - 1) / between_s if between_s > 0 else None,
            latency_p50_ms=self._percentile(LATENCY, 50),
            latency_p99_ms=self._percentile(LATENCY, 99),
            age_p50_ms=self._percentile(AGE, 50),
            age_p99_ms=self._percentile(AGE, 99),
            interrupted=interrupted,
        )

    def _percentile(self, column: int, percent: float) -> float | None:
        if self.frames == 0:
            return None
        return float(np.percentile(self._samples_ms[: min(self.frames, HISTORY), column], percent))


class _Slot:
    """One-place hand-over between two threads, in which the newest frame replaces an older one.

    Three buffers circulate: one is being filled, one waits here, one is with the caller.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: _Capture | None = None
        self._spare: Frame | None = None
        self._dropped = 0
        self.ended = False
        """The capture thread puts nothing more; what waits can still be taken."""
        self.stopping = False
        """The caller wants nothing more."""

    def put(self, frame: Frame, captured_s: float) -> Frame | None:
        """Leave a frame here; returns a buffer for the next one, if there is one to reuse."""
        with self._changed:
            if self._waiting is None:
                reusable, self._spare = self._spare, None
            else:
                reusable = self._waiting.frame
                self._dropped += 1
            self._waiting = _Capture(frame, captured_s, self._dropped)
            self._changed.notify()
        return reusable

    def take(self, used: Frame | None) -> _Capture | None:
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


def _newest(source: FrameSource) -> Generator[_Capture | None, None, None]:
    """Read in a thread and yield the newest frame, or None when there was none for `POLL_S`."""
    slot = _Slot()
    failures: list[BaseException] = []

    def capture_frames() -> None:
        buffer: Frame | None = None
        try:
            while not slot.stopping and (frame := source.read(buffer)) is not None:
                buffer = slot.put(frame, time.perf_counter())
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
        thread.join()


def _in_order(source: FrameSource) -> Generator[_Capture | None, None, None]:
    """Yield every frame, through one buffer."""
    frame: Frame | None = None
    while (frame := source.read(frame)) is not None:
        yield _Capture(frame, time.perf_counter())
