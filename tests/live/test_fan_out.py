"""Outputs of the live loop: slow, failing, in the caller's thread, and their memory."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live import fan_out as fan_out_module
from mirrordepth_edge.live.fan_out import FanOut
from mirrordepth_edge.live.loop import run_live
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.sources.source import FrameSource

SHAPE = (4, 6, 3)
WAIT_S = 120.0
ENDLESS = 10**9
Wait = Callable[[Callable[[], object]], None]


@pytest.fixture(autouse=True)
def _no_thread_stays_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Numbered(FrameSource):
    """Frames whose pixels are their number, `period_s` apart, from `before(number)` on."""

    name = "numbered"

    def __init__(
        self,
        count: int,
        *,
        live: bool,
        period_s: float = 0.0,
        shape: tuple[int, ...] = SHAPE,
        before: Callable[[int], object] = lambda number: None,
    ) -> None:
        self.live, self.count, self.period_s, self.shape, self.before = live, count, period_s, shape, before
        self.given = 0

    def read(self, out: Frame | None = None) -> Frame | None:
        if self.given == self.count:
            return None
        time.sleep(self.period_s)
        self.before(self.given)
        if out is None or out.shape != self.shape:
            out = np.empty(self.shape, np.uint8)
        out[:] = self.given % 256
        self.given += 1
        return out


class Predictor:
    """Depth is the frame's number, in one reused buffer, as with a `DepthPredictor`."""

    def __init__(self) -> None:
        self.depth_m: DepthMap = np.empty(SHAPE[:2], np.float32)
        self.threads: set[str] = set()

    def __call__(self, frame: Frame, time_s: float) -> DepthMap:
        self.threads.add(threading.current_thread().name)
        if self.depth_m.shape != frame.shape[:2]:
            self.depth_m = np.empty(frame.shape[:2], np.float32)
        self.depth_m[:] = frame[0, 0, 0]
        return self.depth_m


class Watcher:
    """Records results, and checks that nothing overwrites them meanwhile."""

    def __init__(self, seconds: float = 0.0, at: Callable[[int], object] = lambda number: None) -> None:
        self.seconds, self.at = seconds, at
        self.numbers: list[int] = []
        self.buffers: set[tuple[int, int]] = set()
        self.threads: set[str] = set()

    def show(self, result: LiveResult) -> None:
        self.threads.add(threading.current_thread().name)
        self.buffers.add((result.frame.ctypes.data, result.depth_m.ctypes.data))
        number = int(result.frame[0, 0, 0])
        self.numbers.append(number)
        time.sleep(self.seconds)
        self.at(number)
        assert (result.frame == number).all(), "a frame was overwritten while it was shown"
        assert (result.depth_m == number).all()


class Window(Watcher):
    main_thread = True
    name = "window"


def test_a_slow_output_slows_neither_the_loop_nor_other_outputs(wait_until: Wait) -> None:
    quick = Watcher()
    slow = Watcher(at=lambda number: wait_until(lambda: quick.numbers[-1:] >= [min(number + 20, 99)]))
    source = Numbered(100, live=True, period_s=0.004, before=lambda n: wait_until(lambda: len(quick.numbers) == n))
    stats = run_live(source, Predictor(), outputs=[slow, quick])
    assert (stats.frames, stats.dropped) == (100, 0), "the loop waited for the slow output"
    assert quick.numbers == [*range(100)], "the other output waited for the slow one"
    assert len(slow.numbers) <= 7
    for output, figures in zip((slow, quick), stats.outputs, strict=True):
        assert output.numbers == sorted(set(output.numbers))
        assert output.numbers[-1] == 99, "the last result is shown"
        assert figures.name == "Watcher"
        assert figures.shown == len(output.numbers)
        assert figures.shown + figures.dropped == stats.frames
        assert figures.problem is None
        assert output.threads == {"mde-output-Watcher"}
    first = stats.outputs[0]
    assert (stats.shown_age_p50_ms, stats.shown_age_p99_ms) == (first.age_p50_ms, first.age_p99_ms)
    assert first.age_p50_ms is not None
    assert first.age_p50_ms > 50, "19 periods of 4 ms pass while it shows"
    assert "; shown p50 " in str(stats)


def test_copies_are_reused(wait_until: Wait) -> None:
    watchers = [Watcher(seconds=0.001), Watcher(seconds=0.003), Watcher()]
    numbers = watchers[2].numbers
    source = Numbered(250, live=True, period_s=0.0005, before=lambda n: wait_until(lambda: len(numbers) == n))
    run_live(source, Predictor(), outputs=watchers)
    assert len(numbers) == 250
    buffers = set.union(*(watcher.buffers for watcher in watchers))
    assert len(buffers) <= 2 * len(watchers) + 1
    assert sum(len(watcher.numbers) for watcher in watchers) > 3 * len(buffers)


def test_no_memory_is_allocated_per_frame() -> None:
    """Once all buffers exist, no array is allocated."""
    shape = (240, 320, 3)
    frame_bytes = 240 * 320 * 3
    peaks: list[int] = []

    class Slow:
        def show(self, result: LiveResult) -> None:
            time.sleep(0.001)

    def measure(result: LiveResult) -> None:
        if result.number == 40:
            tracemalloc.start()
        elif result.number == 120:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    # One output that the loop waits for: from the third frame on there are two copies.
    run_live(Numbered(130, live=False, shape=shape), Predictor(), measure, outputs=[Slow()])
    assert peaks[0] < frame_bytes, "a frame-sized array was allocated"


def test_a_file_waits_for_its_slowest_output() -> None:
    slow, quick = Watcher(seconds=0.003), Watcher()
    stats = run_live(Numbered(40, live=False), Predictor(), outputs=[slow, quick])
    assert slow.numbers == quick.numbers == list(range(40))
    assert [output.dropped for output in stats.outputs] == [0, 0]


@pytest.mark.parametrize("live", [True, False])
def test_a_window_runs_in_the_callers_thread_and_prediction_in_another(live: bool) -> None:
    window, recording, predictor = Window(seconds=0.002), Watcher(), Predictor()
    asked: set[str] = set()

    def should_stop() -> bool:
        asked.add(threading.current_thread().name)
        return False

    source = Numbered(60, live=live, period_s=0.002)
    stats = run_live(source, predictor, outputs=[window, recording], should_stop=should_stop)
    own = threading.current_thread().name
    assert window.threads == asked == {own}
    assert predictor.threads == {"mde-inference"}
    assert recording.threads == {"mde-output-Watcher"}
    assert window.numbers[-1] == recording.numbers[-1] == 59
    assert stats.outputs[0].name == "window"
    if not live:
        assert window.numbers == list(range(60))


def test_a_window_that_is_slow_does_not_slow_prediction(wait_until: Wait) -> None:
    predicted: list[int] = []
    window = Window(at=lambda number: wait_until(lambda: predicted[-1] >= min(number + 20, 99)))
    source = Numbered(100, live=True, before=lambda n: wait_until(lambda: len(predicted) == n))
    stats = run_live(source, Predictor(), lambda result: predicted.append(result.number), outputs=[window])
    assert stats.frames == 100
    assert stats.outputs[0].shown <= 7
    assert stats.outputs[0].shown + stats.outputs[0].dropped == stats.frames


@pytest.mark.parametrize("live", [True, False])
def test_closing_the_window_ends_the_run(live: bool) -> None:
    window = Window()
    source = Numbered(ENDLESS, live=live, period_s=0.001)
    run_live(source, Predictor(), outputs=[window], should_stop=lambda: len(window.numbers) >= 3)
    assert 3 <= len(window.numbers) <= 4


def test_max_frames_ends_a_run_with_a_window() -> None:
    window = Window()
    stats = run_live(Numbered(ENDLESS, live=True, period_s=0.001), Predictor(), outputs=[window], max_frames=5)
    assert stats.frames == 5
    assert window.numbers[-1] >= 4


def test_ctrl_c_in_the_window_keeps_the_statistics() -> None:
    def interrupt(number: int) -> None:
        if number >= 5:
            raise KeyboardInterrupt

    stats = run_live(Numbered(ENDLESS, live=True, period_s=0.001), Predictor(), outputs=[Window(at=interrupt)])
    assert stats.interrupted
    assert stats.frames + stats.dropped >= 5  # the source's count; a busy machine leaves frames out


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("kind", [Watcher, Window])
def test_an_exception_in_an_output_ends_the_run(kind: type[Watcher], live: bool) -> None:
    def fail(number: int) -> None:
        if number >= 3:
            raise ValueError("a bug")

    source, other = Numbered(ENDLESS, live=live, period_s=0.001), Watcher()
    with pytest.raises(ValueError, match="a bug"):
        run_live(source, Predictor(), outputs=[kind(at=fail), other])
    assert other.numbers


def test_an_exception_at_the_last_result_is_raised() -> None:
    def fail(number: int) -> None:
        time.sleep(0.05)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_live(Numbered(1, live=False), Predictor(), outputs=[Watcher(at=fail)])


def test_a_failing_predictor_with_a_window() -> None:
    def fail(frame: Frame, time_s: float) -> DepthMap:
        raise ValueError("engine lost")

    with pytest.raises(ValueError, match="engine lost"):
        run_live(Numbered(5, live=True), fail, outputs=[Window()])


def test_an_output_that_hangs_is_abandoned_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out_module, "STOP_S", 1.0)
    release = threading.Event()
    stuck = Watcher(at=lambda number: release.wait(WAIT_S))
    try:
        stats = run_live(Numbered(20, live=True, period_s=0.001), Predictor(), outputs=[Watcher(), stuck])
        assert stats.outputs[0].problem is None
        assert "abandoned" in str(stats.outputs[1].problem)
    finally:
        release.set()
        for thread in threading.enumerate():
            if thread.name.startswith("mde-output"):
                thread.join(WAIT_S)


def test_the_problem_of_an_output_is_in_the_statistics() -> None:
    class Recording(Watcher):
        name = "recording"
        problem = "The disk is full; the recording ends at 00:03."

    stats = run_live(Numbered(3, live=False), Predictor(), outputs=[Recording()])
    assert stats.outputs[0].problem == Recording.problem


def test_frames_may_change_size() -> None:
    class Changing(Numbered):
        def read(self, out: Frame | None = None) -> Frame | None:
            self.shape = SHAPE if self.given % 4 < 2 else (8, 10, 3)
            return super().read(out)

    watcher = Watcher()
    run_live(Changing(12, live=False), Predictor(), outputs=[watcher])
    assert watcher.numbers == list(range(12))


def test_results_after_the_end_are_ignored() -> None:
    watcher = Watcher()
    result = LiveResult(
        frame=np.zeros(SHAPE, np.uint8),
        depth_m=np.zeros(SHAPE[:2], np.float32),
        number=0,
        captured_unix_ns=0,
        latency_ms=1.0,
        age_ms=1.0,
        dropped=0,
    )
    with FanOut([watcher], lossless=True) as fan_out:
        fan_out.end()
        fan_out.put(result, 0.0)
    assert watcher.numbers == []
