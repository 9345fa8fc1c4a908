"""The live loop: which frames are shown, what is measured, and that it stops cleanly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import pytest

from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live import loop as pipeline
from mirrordepth_edge.live import stats as stats_module
from mirrordepth_edge.live.loop import Predict, Ticker, run_live
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.live.stats import LiveStats, OutputStats
from mirrordepth_edge.sources.source import LIVE, FrameSource, SourceState
from mirrordepth_edge.sources.synthetic import MIDDLE_M, SWING_M, SyntheticSource

SHAPE = (4, 6, 3)
WAIT_S = 120.0
ENDLESS = 10**9
Wait = Callable[[Callable[[], object]], None]


class NumberedSource(FrameSource):
    """Frames whose pixels are their number, from `before(number)` on, which may wait or raise."""

    name = "numbered"

    def __init__(self, count: int, live: bool, before: Callable[[int], object] = lambda number: None) -> None:
        self.live = live
        self.count = count
        self.before = before
        self.given = 0
        self.asked = 0
        """Frames asked for; all before the last one are with the loop."""
        self.buffers: set[int] = set()
        self.threads: set[threading.Thread] = set()

    def read(self, out: Frame | None = None) -> Frame | None:
        self.threads.add(threading.current_thread())
        self.asked += 1
        if self.given == self.count:
            return None
        self.before(self.given)
        out = np.empty(SHAPE, np.uint8) if out is None else out
        out[:] = self.given % 256
        self.buffers.add(out.ctypes.data)
        self.given += 1
        return out


def depth_of(frame: Frame, time_s: float = 0.0) -> DepthMap:
    return frame[..., 0].astype(np.float32)


def run(source: FrameSource, predict: Predict = depth_of, **options: object) -> list[int]:
    """The numbers of the frames that were shown."""
    shown: list[int] = []

    def show(result: LiveResult) -> None:
        assert (result.frame == result.frame[0, 0, 0]).all(), "a frame was overwritten while in use"
        assert (result.depth_m == result.frame[0, 0, 0]).all()
        shown.append(int(result.frame[0, 0, 0]))

    run_live(source, predict, show, **options)  # type: ignore[arg-type]
    return shown


@pytest.fixture(autouse=True)
def _no_thread_stays_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_a_file_loses_no_frame_and_needs_no_thread() -> None:
    source = NumberedSource(20, live=False)
    assert run(source, lambda frame, time_s: time.sleep(0.002) or depth_of(frame)) == list(range(20))
    assert source.threads == {threading.current_thread()}
    assert len(source.buffers) == 1


class Slow:
    """A predictor that takes as long as its source for this many frames, without a clock."""

    def __init__(self, wait_until: Wait, count: int, frames: int, before: Callable[[int], object] = lambda n: None):
        self.begun = 0
        self.wait_until, self.frames = wait_until, frames
        self.also = before
        self.source = NumberedSource(count, live=True, before=self.before)

    def before(self, number: int) -> None:
        self.wait_until(lambda: number <= self.frames * self.begun)
        self.also(number)

    def __call__(self, frame: Frame, time_s: float) -> DepthMap:
        self.begun += 1
        with_the_loop = min(self.source.count, 1 + self.frames * self.begun)
        self.wait_until(lambda: self.source.asked > with_the_loop)
        return depth_of(frame)


def test_a_live_source_shows_the_newest_frame_and_counts_the_others(wait_until: Wait) -> None:
    slow = Slow(wait_until, 60, frames=6)
    source = slow.source
    results: list[tuple[int, int]] = []

    stats = run_live(source, slow, lambda result: results.append((int(result.frame[0, 0, 0]), result.dropped)))
    numbers = [number for number, _ in results]
    assert numbers == [*range(0, 60, 6), 59], "the newest each time, and the last of a stream that ends"
    assert stats.frames + stats.dropped == 60
    for index, (number, dropped) in enumerate(results):
        assert number == index + dropped
    assert threading.current_thread() not in source.threads


def test_the_time_of_a_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The temporal filter needs the times at which frames were recorded, not those at which a file is read."""
    times_s: list[float] = []

    def record(frame: Frame, time_s: float) -> DepthMap:
        times_s.append(time_s)
        return depth_of(frame)

    film = NumberedSource(3, live=False)
    run_live(film, record)
    film = NumberedSource(3, live=False)
    film.rate_hz = 10.0
    run_live(film, record)
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: 100.0)
    run_live(NumberedSource(1, live=True), record)
    np.testing.assert_allclose(times_s, [0, 1 / 30, 2 / 30, 0, 0.1, 0.2, 100])


def test_live_buffers_are_reused_and_never_overwritten_in_use(wait_until: Wait) -> None:
    slow = Slow(wait_until, 250, frames=5)
    shown = run(slow.source, slow)
    assert len(shown) == 51
    assert len(slow.source.buffers) <= 3


def test_age_counts_from_capture_and_latency_from_inference(wait_until: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: now_s)
    predicting = threading.Event()
    results: list[LiveResult] = []

    def slow(frame: Frame, time_s: float) -> DepthMap:
        nonlocal now_s
        predicting.set()
        wait_until(lambda: source.asked == 3)
        now_s += 0.05
        return depth_of(frame)

    def show(result: LiveResult) -> None:
        nonlocal now_s
        results.append(result)
        now_s += 0.04

    # Frame 1 arrives while frame 0 is being predicted, and grows old until that was shown.
    source = NumberedSource(2, live=True, before=lambda number: number == 0 or predicting.wait(WAIT_S))
    run_live(source, slow, show)
    first, second = results
    assert (first.latency_ms, first.age_ms) == pytest.approx((50, 50))
    assert (second.latency_ms, second.age_ms) == pytest.approx((50, 140))


@pytest.mark.parametrize("live", [True, False])
def test_it_stops_after_enough_frames(live: bool) -> None:
    source = NumberedSource(ENDLESS, live=live, before=lambda number: time.sleep(0.001))
    assert len(run(source, max_frames=5)) == 5


@pytest.mark.parametrize("live", [True, False])
def test_it_stops_when_should_stop_returns_true(live: bool) -> None:
    answers = iter([False, False, True])
    source = NumberedSource(ENDLESS, live=live, before=lambda number: time.sleep(0.001))
    shown = run(source, should_stop=lambda: next(answers))
    assert len(shown) <= 3


def test_it_stops_while_a_camera_sends_nothing() -> None:
    release = threading.Event()
    stops: list[bool] = []

    def should_stop() -> bool:
        release.set()  # the thread cannot be interrupted, and would not end
        return True

    source = NumberedSource(1, live=True, before=lambda number: stops.append(release.wait(WAIT_S)))
    assert run(source, should_stop=should_stop) == []
    assert stops == [True], "should_stop was not called"


@pytest.mark.parametrize("live", [True, False])
def test_a_failing_source_is_raised_in_the_callers_thread(live: bool) -> None:
    def fail_at_three(number: int) -> None:
        time.sleep(0.01)
        if number == 3:
            raise OSError("unplugged")

    source = NumberedSource(10, live=live, before=fail_at_three)
    shown: list[int] = []
    with pytest.raises(OSError, match="unplugged"):
        run_live(source, depth_of, lambda result: shown.append(int(result.frame[0, 0, 0])))
    assert shown[-1] == 2, "what was captured before is shown first"


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("where", ["predict", "on_result", "should_stop"])
def test_failures_of_callbacks_are_raised(where: str, live: bool) -> None:
    def fail(*_: object) -> DepthMap:
        raise ValueError(where)

    callbacks = {"predict": depth_of, "on_result": lambda result: None, "should_stop": lambda: False} | {where: fail}
    with pytest.raises(ValueError, match=where):
        run_live(NumberedSource(9, live=live, before=lambda number: time.sleep(0.001)), **callbacks)


@pytest.mark.parametrize("live", [True, False])
def test_ctrl_c_ends_the_run_and_keeps_the_statistics(live: bool) -> None:
    calls: list[Frame] = []

    def interrupted(frame: Frame, time_s: float) -> DepthMap:
        calls.append(frame)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return depth_of(frame)

    source = NumberedSource(ENDLESS, live=live, before=lambda number: time.sleep(0.001))
    stats = run_live(source, interrupted, lambda result: None)
    assert stats.interrupted
    assert stats.frames == 3
    assert stats.latency_p50_ms is not None


def test_statistics_match_the_results() -> None:
    results: list[LiveResult] = []
    stats = run_live(NumberedSource(40, live=False, before=lambda number: time.sleep(0.002)), depth_of, results.append)
    latency_ms, age_ms = ([getattr(result, name) for result in results] for name in ("latency_ms", "age_ms"))
    assert stats.frames == 40
    assert stats.dropped == 0
    assert not stats.interrupted
    assert stats.latency_p50_ms == pytest.approx(np.percentile(latency_ms, 50))
    assert stats.latency_p99_ms == pytest.approx(np.percentile(latency_ms, 99))
    assert stats.age_p50_ms == pytest.approx(np.percentile(age_ms, 50))
    assert stats.age_p99_ms == pytest.approx(np.percentile(age_ms, 99))
    assert stats.rate_hz is not None
    assert stats.source_hz is not None
    assert stats.duration_s >= 40 * 0.002
    assert stats.rate_hz < 1 / 0.002
    # One frame more than intervals, and the wait for the first frame is no interval.
    assert stats.rate_hz >= 39 / stats.duration_s


def test_only_the_newest_samples_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: now_s)
    monkeypatch.setattr(stats_module, "HISTORY", 8)
    results: list[LiveResult] = []

    def slow_at_first(frame: Frame, time_s: float) -> DepthMap:
        nonlocal now_s
        now_s += 0.01 if len(results) < 5 else 0.001
        return depth_of(frame)

    stats = run_live(NumberedSource(20, live=False), slow_at_first, results.append)
    newest_ms = [result.latency_ms for result in results[-8:]]
    assert stats.frames == 20
    assert stats.latency_p99_ms == pytest.approx(np.percentile(newest_ms, 99))
    assert stats.latency_p99_ms < results[0].latency_ms


def test_statistics_without_frames() -> None:
    stats = run_live(NumberedSource(0, live=True), depth_of, lambda result: None)
    assert stats.frames == 0
    assert stats.rate_hz is stats.latency_p50_ms is stats.age_p99_ms is None
    assert str(stats) == "0 frames in 0.0 s, 0 dropped"


def statistics(**changes: object) -> LiveStats:
    figures: dict[str, object] = {
        "frames": 300,
        "dropped": 2,
        "faults": 0,
        "duration_s": 10.04,
        "rate_hz": 29.96,
        "source_hz": 30.0,
        "latency_p50_ms": 12.34,
        "latency_p99_ms": 20.0,
        "age_p50_ms": 15.0,
        "age_p99_ms": 31.25,
        "shown_age_p50_ms": None,
        "shown_age_p99_ms": None,
        "outputs": (),
        "interrupted": False,
    }
    return LiveStats(**{**figures, **changes})  # type: ignore[arg-type]


def test_the_summary_line() -> None:
    begin = "300 frames in 10.0 s, 2 dropped, 30.0 Hz; latency p50 12.3 ms, p99 20.0 ms; age p50 15.0 ms, p99 31.2 ms"
    assert str(statistics()) == begin
    shown = statistics(shown_age_p50_ms=18.0, shown_age_p99_ms=40.04, faults=1)
    assert str(shown) == f"{begin}; shown p50 18.0 ms, p99 40.0 ms; recovered from 1 fault"


def test_statistics_become_json() -> None:
    output = OutputStats(name="window", shown=3, dropped=0, age_p50_ms=1.0, age_p99_ms=2.0, problem=None)
    written = json.loads(json.dumps(asdict(statistics(outputs=(output,)))))
    assert written["outputs"][0]["name"] == "window"


def test_the_ticker_returns_a_line_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: now_s)
    ticker = Ticker()
    lines = []
    for index in range(25):
        now_s = 100 + 0.1 * (index + 1) + 1e-6
        result = LiveResult(
            frame=np.empty(SHAPE, np.uint8),
            depth_m=np.empty(SHAPE[:2], np.float32),
            number=index,
            captured_unix_ns=0,
            latency_ms=float(index),
            age_ms=50.0,
            dropped=index // 5,
        )
        lines.append(ticker(result))
    spoken = {index: line for index, line in enumerate(lines) if line is not None}
    assert spoken == {
        9: "10.0 Hz  latency 4.5 ms  age 50.0 ms  dropped 1",
        19: "10.0 Hz  latency 14.5 ms  age 50.0 ms  dropped 3",
    }


def test_results_have_numbers_and_times(wait_until: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 10**18

    def two_ms_later(number: int) -> None:
        nonlocal now_ns
        now_ns += 2_000_000

    monkeypatch.setattr(pipeline.time, "time_ns", lambda: now_ns)
    results: list[LiveResult] = []
    slow = Slow(wait_until, 30, frames=3, before=two_ms_later)
    run_live(slow.source, slow, results.append)
    assert [result.number for result in results] == list(range(11))
    arrived = [*range(0, 30, 3), 29]
    assert [result.captured_unix_ns for result in results] == [10**18 + 2_000_000 * (n + 1) for n in arrived]


def test_the_rate_of_the_source_includes_dropped_frames(wait_until: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0

    def four_ms_later(number: int) -> None:
        nonlocal now_s
        now_s += 0.004

    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: now_s)
    slow = Slow(wait_until, 60, frames=6, before=four_ms_later)
    stats = run_live(slow.source, slow)
    assert stats.source_hz == pytest.approx(1 / 0.004)
    # The eleventh, of the last frame, is there as soon as the tenth, which took four frames' time.
    assert stats.rate_hz == pytest.approx(10 / (8 * 6 * 0.004 + 5 * 0.004))


def test_states_are_reported_once_and_in_the_callers_thread() -> None:
    stalled = SourceState("stalled", "numbered sends nothing.")
    release = threading.Event()

    class Stalling(NumberedSource):
        @property
        def state(self) -> SourceState:
            return stalled if self.given == 1 and not release.is_set() else LIVE

    def before(number: int) -> None:
        if number == 1:
            release.wait(WAIT_S)

    states: list[tuple[SourceState, threading.Thread]] = []

    def on_state(state: SourceState) -> None:
        states.append((state, threading.current_thread()))
        if state == stalled:
            timer.start()

    timer = threading.Timer(0.25, release.set)  # a few looks later
    run_live(Stalling(60, live=True, before=lambda n: (before(n), time.sleep(0.002))), depth_of, on_state=on_state)
    timer.join()
    assert states == [(stalled, threading.current_thread()), (LIVE, threading.current_thread())]


def test_a_waiting_source_is_stopped() -> None:
    class Patient(NumberedSource):
        def __init__(self) -> None:
            super().__init__(
                2, live=True, before=lambda number: number == 1 and stops.append(self.stopped.wait(WAIT_S))
            )
            self.stopped = threading.Event()

        def stop(self) -> None:
            self.stopped.set()

    stops: list[bool] = []
    run_live(Patient(), depth_of, max_frames=1)
    assert stops in ([], [True]), "stop was not called"


def test_depth_belongs_to_the_frame_it_is_shown_with(wait_until: Wait) -> None:
    """A source with known depth, a predictor that reads depth from its blue channel, and an output."""

    class Counted(SyntheticSource):
        reads = 0

        def read(self, out: Frame | None = None) -> Frame:
            self.reads += 1
            return super().read(out)

    source = Counted((48, 64), rate_hz=200.0)
    worst_m: list[float] = []
    seen = 0

    def see(frame: Frame, time_s: float) -> DepthMap:
        nonlocal seen
        enough = source.reads + 3
        wait_until(lambda: source.reads >= enough)  # slower than the source
        wait_until(lambda: len(worst_m) == seen)  # and than the output, which is given them all
        seen += 1
        return (MIDDLE_M - SWING_M + 2 * SWING_M / 255 * (frame[..., 2] + np.float32(0.5))).astype(np.float32)

    class Check:
        def show(self, result: LiveResult) -> None:
            exact_m = source.depth_m(result.number + result.dropped)
            worst_m.append(float(np.abs(result.depth_m - exact_m).max()))
            assert result.frame.flags.c_contiguous

    stats = run_live(source, see, outputs=[Check()], max_frames=40)
    assert stats.dropped >= 39
    assert len(worst_m) == 40
    assert max(worst_m) < 1.01 * SWING_M / 255  # half a level of blue
    one_step_m = np.abs(source.depth_m(0) - source.depth_m(1)).max()
    assert one_step_m > 10 * SWING_M / 255, "the depth of a neighbouring frame would differ"
