"""The live loop: take the newest frame, predict its depth, and hand both to the outputs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from statistics import median
from typing import NamedTuple

from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live.fan_out import FanOut, Output
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.live.stats import LiveStats, Recent
from mirrordepth_edge.sources.latest import POLL_S, in_order, newest
from mirrordepth_edge.sources.source import LIVE, FrameSource, SourceState

DEFAULT_RATE_HZ = 30.0
"""Frame rate of files that do not state theirs, such as image folders."""

Predict = Callable[[Frame, float], DepthMap]
"""From uint8 RGB `[H, W, 3]` and its capture time in seconds to float32 `[H, W]` metres: a `DepthPredictor`."""


class Prediction(NamedTuple):
    """A result and when it was made, by `perf_counter`."""

    result: LiveResult
    captured_s: float
    """When the frame arrived."""
    done_s: float


def predictions(source: FrameSource, predict: Predict) -> Generator[Prediction | None, None, None]:
    """Predict frame after frame until the source ends.

    A live source is read by its own thread, and the newest frame wins. A file is read in order, and no frame is lost.

    Yields:
        A prediction, whose arrays are reused after the next one is requested; or None if a live source sent no frame
        for `POLL_S`, so that the caller can stop.
    """
    number = 0
    rate_hz = source.rate_hz or DEFAULT_RATE_HZ
    with closing(newest(source) if source.live else in_order(source)) as captures:
        for capture in captures:
            if capture is None:
                yield None
                continue
            # A file is read faster or slower than it was recorded; the temporal filter needs the recorded times.
            time_s = capture.captured_s if source.live else number / rate_hz
            begin_s = time.perf_counter()
            depth_m = predict(capture.frame, time_s)
            done_s = time.perf_counter()
            result = LiveResult(
                frame=capture.frame,
                depth_m=depth_m,
                number=number,
                captured_unix_ns=capture.captured_unix_ns,
                latency_ms=(done_s - begin_s) * 1e3,
                age_ms=(done_s - capture.captured_s) * 1e3,
                dropped=capture.dropped,
            )
            yield Prediction(result, capture.captured_s, done_s)
            number += 1


class Ticker:
    """Summarise the results of each second in one line."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()
        self._latencies_ms: list[float] = []

    def __call__(self, result: LiveResult) -> str | None:
        """Add a result. Once a second, return rate, median latency, newest age and total drops; otherwise None."""
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
    predict: Predict,
    on_result: Callable[[LiveResult], object] = lambda result: None,
    *,
    outputs: Sequence[Output] = (),
    max_frames: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_state: Callable[[SourceState], object] = lambda state: None,
) -> LiveStats:
    """Predict frame after frame until the source ends or a stop is requested.

    A live source is read by its own thread, and the newest frame wins. A file is read in order, loses no frame, and
    waits for the outputs. Each output has its own thread, and gets the newest result when it is free. Prediction runs
    in the caller's thread, unless an output needs that one (`fan_out.Output`). All threads have ended when this returns
    or raises.

    Args:
        source: an open source, for this run only.
        predict: such as a `DepthPredictor`.
        on_result: called with every result in the thread that predicts, which waits for it.
        outputs: where results go; enter them first if they are context managers.
        max_frames: stop after this many results, at least 1.
        should_stop: called in the caller's thread after every result, and every `POLL_S` while no frame arrives. With
            outputs that need the caller's thread: after each of their turns.
        on_state: called in the caller's thread when the source stalls, is lost, or is back.

    Raises:
        Whatever source, predictor, outputs and callbacks raise, except KeyboardInterrupt, which ends the run and sets
        `LiveStats.interrupted`.
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
    loop = _Loop(source, predict, on_result, fan_out, max_frames)
    try:
        with fan_out:
            if fan_out.main_thread:
                _run_in_thread(loop, fan_out, go_on)
            else:
                loop.run(go_on)
        fan_out.check()
    except KeyboardInterrupt:
        interrupted = True
    return loop.stats(interrupted)


def _run_in_thread(loop: _Loop, fan_out: FanOut, go_on: Callable[[], bool]) -> None:
    """Predict in a thread of its own, and serve the outputs that need this one."""
    stopping = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            loop.run(lambda: not stopping.is_set())
        except BaseException as error:  # re-raised below, in the caller's thread
            failures.append(error)
        finally:
            fan_out.end()

    thread = threading.Thread(target=run, name="mde-inference", daemon=True)
    thread.start()
    try:
        while True:
            ended = fan_out.ended  # read before serving: a last result may arrive in between
            fan_out.serve(POLL_S)
            if ended or not go_on():
                break
    finally:
        stopping.set()
        fan_out.end()
        thread.join()
    if failures:
        raise failures[0]


class _Loop:
    """Run predictions in one thread, hand them to the outputs, and measure them."""

    def __init__(
        self,
        source: FrameSource,
        predict: Predict,
        on_result: Callable[[LiveResult], object],
        fan_out: FanOut,
        max_frames: int | None,
    ) -> None:
        self._source, self._predict, self._on_result = source, predict, on_result
        self._fan_out, self._max_frames = fan_out, max_frames
        self._latencies_ms, self._ages_ms = Recent(), Recent()
        self._start_s = time.perf_counter()
        self._frames = self._dropped = self._first_dropped = 0
        self._first_done_s = self._done_s = self._start_s
        self._first_captured_s = self._captured_s = 0.0

    def run(self, go_on: Callable[[], bool]) -> None:
        with closing(predictions(self._source, self._predict)) as steps:
            for step in steps:
                if step is not None:
                    self._add(step)
                if self._frames == self._max_frames or not go_on():
                    break

    def _add(self, step: Prediction) -> None:
        result = step.result
        self._latencies_ms.add(result.latency_ms)
        self._ages_ms.add(result.age_ms)
        if self._frames == 0:
            self._first_done_s, self._first_captured_s = step.done_s, step.captured_s
            self._first_dropped = result.dropped
        self._done_s, self._captured_s, self._dropped = step.done_s, step.captured_s, result.dropped
        self._frames += 1
        self._on_result(result)
        self._fan_out.put(result, step.captured_s)

    def stats(self, interrupted: bool) -> LiveStats:
        outputs = self._fan_out.stats()
        # Intervals between arrivals, dropped frames included, from the first result on.
        arrived = self._frames - 1 + self._dropped - self._first_dropped
        return LiveStats(
            frames=self._frames,
            dropped=self._dropped,
            faults=self._source.faults,
            duration_s=self._done_s - self._start_s,
            rate_hz=_rate(self._frames - 1, self._done_s - self._first_done_s),
            source_hz=_rate(arrived, self._captured_s - self._first_captured_s),
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
