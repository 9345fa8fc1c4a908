"""The live loop: the newest frame in, a depth map and its age out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from statistics import median

from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live.fan_out import FanOut, Output
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.live.stats import LiveStats, Recent
from mirrordepth_edge.sources.latest import POLL_S, Capture, in_order, newest
from mirrordepth_edge.sources.source import LIVE, FrameSource, SourceState


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
    on_result: Callable[[LiveResult], object] = lambda result: None,
    *,
    outputs: Sequence[Output] = (),
    max_frames: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_state: Callable[[SourceState], object] = lambda state: None,
) -> LiveStats:
    """Predict frame after frame until the source ends or someone says stop.

    A live source is read by its own thread and the newest frame wins; a file is read in order and loses none, and
    waits for the outputs. Each output has its own thread, and gets the newest result whenever it is free.
    Prediction is in the caller's thread, but for outputs that need that one (`outputs.Output`). All threads have
    ended when this returns or raises.

    Args:
        source: an open source, for this run only.
        predictor: uint8 RGB `[H, W, 3]` to float32 `[H, W]` metres, such as a `DepthPredictor`.
        on_result: called with every result in the thread that predicts, which waits for it.
        outputs: where results go, already entered where they are context managers.
        max_frames: stop after this many results, at least 1.
        should_stop: asked in the caller's thread after every result, and every `POLL_S` while a camera keeps us
            waiting. With outputs that need the caller's thread: after each turn of theirs.
        on_state: called in the caller's thread when the source stalls, is lost, or is back.

    Raises:
        Whatever source, predictor, outputs and callbacks raise, but for KeyboardInterrupt, which ends the run and
        is told by `LiveStats.interrupted`.
    """
    state = LIVE

    def go_on() -> bool:
        nonlocal state
        if (now := source.state) != state:
            state = now
            on_state(state)
        fan_out.check()
        return not should_stop()

    interrupted = False
    fan_out = FanOut(outputs, lossless=not source.live)
    loop = _Loop(source, predictor, on_result, fan_out, max_frames)
    try:
        with fan_out:
            if fan_out.main_thread:
                _beside(loop, fan_out, go_on)
            else:
                loop.run(go_on)
        fan_out.check()
    except KeyboardInterrupt:
        interrupted = True
    return loop.stats(interrupted)


def _beside(loop: _Loop, fan_out: FanOut, go_on: Callable[[], bool]) -> None:
    """Predict in a thread, so that this one is free for outputs that need it."""
    stopping = threading.Event()
    failures: list[BaseException] = []

    def predict() -> None:
        try:
            loop.run(lambda: not stopping.is_set())
        except BaseException as error:  # re-raised below, in the caller's thread
            failures.append(error)
        finally:
            fan_out.end()

    thread = threading.Thread(target=predict, name="mde-inference", daemon=True)
    thread.start()
    try:
        while True:
            over = fan_out.ended  # looked at before serving: a last result may come in between
            fan_out.serve(POLL_S)
            if over or not go_on():
                break
    finally:
        stopping.set()
        fan_out.end()
        thread.join()
    if failures:
        raise failures[0]


class _Loop:
    """Frames through the predictor to the outputs, in one thread, and what was measured meanwhile."""

    def __init__(
        self,
        source: FrameSource,
        predictor: Callable[[Frame], DepthMap],
        on_result: Callable[[LiveResult], object],
        fan_out: FanOut,
        max_frames: int | None,
    ) -> None:
        self._source, self._predictor, self._on_result = source, predictor, on_result
        self._fan_out, self._max_frames = fan_out, max_frames
        self._latencies_ms, self._ages_ms = Recent(), Recent()
        self._frames = self._dropped = 0
        self._start_s = self._first_s = self._last_s = time.perf_counter()
        self._first_captured_s = self._last_captured_s = 0.0
        self._first_dropped = 0

    def run(self, go_on: Callable[[], bool]) -> None:
        with closing(newest(self._source) if self._source.live else in_order(self._source)) as captures:
            for capture in captures:
                if capture is not None:
                    self._step(capture)
                if self._frames == self._max_frames or not go_on():
                    break

    def _step(self, capture: Capture) -> None:
        begin_s = time.perf_counter()
        depth_m = self._predictor(capture.frame)
        end_s = time.perf_counter()
        result = LiveResult(
            frame=capture.frame,
            depth_m=depth_m,
            number=self._frames,
            captured_unix_ns=capture.captured_unix_ns,
            latency_ms=(end_s - begin_s) * 1e3,
            age_ms=(end_s - capture.captured_s) * 1e3,
            dropped=capture.dropped,
        )
        self._latencies_ms.add(result.latency_ms)
        self._ages_ms.add(result.age_ms)
        if self._frames == 0:
            self._first_s, self._first_captured_s = end_s, capture.captured_s
            self._first_dropped = capture.dropped
        self._last_s, self._last_captured_s = end_s, capture.captured_s
        self._dropped = capture.dropped
        self._frames += 1
        self._on_result(result)
        self._fan_out.put(result, capture.captured_s)

    def stats(self, interrupted: bool) -> LiveStats:
        outputs = self._fan_out.stats()
        arrived = self._frames - 1 + self._dropped - self._first_dropped
        return LiveStats(
            frames=self._frames,
            dropped=self._dropped,
            faults=self._source.faults,
            duration_s=self._last_s - self._start_s,
            rate_hz=_rate(self._frames - 1, self._last_s - self._first_s),
            source_hz=_rate(arrived, self._last_captured_s - self._first_captured_s),
            latency_p50_ms=self._latencies_ms.percentile(50),
            latency_p99_ms=self._latencies_ms.percentile(99),
            age_p50_ms=self._ages_ms.percentile(50),
            age_p99_ms=self._ages_ms.percentile(99),
            shown_age_p50_ms=outputs[0].age_p50_ms if outputs else None,
            shown_age_p99_ms=outputs[0].age_p99_ms if outputs else None,
            outputs=outputs,
            interrupted=interrupted,
        )


def _rate(intervals: int, seconds: float) -> float | None:
    return intervals / seconds if seconds > 0 else None
