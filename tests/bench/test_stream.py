"""Streams on a simulated clock against closed forms and a millisecond-by-millisecond simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter_ns, thread_time_ns

import numpy as np
import pytest

from mirrordepth_edge.bench.stream import StreamResult, max_sustained_rate, stream
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.support.clock import REAL_CLOCK, SPIN_NS

PERIOD_MS = 1000 / 30
NEAREST_NS = 1e-6
"""Arrivals are whole nanoseconds, so two of them are this many milliseconds off at most."""


class SimulatedClock:
    """Time passes only where a step or a sleep says so."""

    def __init__(self) -> None:
        self.time_ns = 987_654_321_012_345

    def now_ns(self) -> int:
        return self.time_ns

    def sleep_until_ns(self, due_ns: int) -> None:
        assert due_ns > self.time_ns, "slept for a frame that was already there"
        self.time_ns = due_ns

    def spend(self, duration_ms: Callable[[int], float]) -> Callable[[int], None]:
        """A step that takes so long for each frame."""

        def step(frame: int) -> None:
            self.time_ns += round(duration_ms(frame) * 1e6)

        return step


class LateClock(SimulatedClock):
    """A machine that wakes sleepers late."""

    def __init__(self, late_ms: int) -> None:
        super().__init__()
        self.late_ns = late_ms * 1_000_000

    def sleep_until_ns(self, due_ns: int) -> None:
        super().sleep_until_ns(due_ns + self.late_ns)


def streamed(duration_ms: Callable[[int], float], *, rate_hz: float, seconds: float) -> StreamResult:
    clock = SimulatedClock()
    return stream(clock.spend(duration_ms), rate_hz=rate_hz, seconds=seconds, clock=clock)


def near(*values: float) -> object:
    return pytest.approx(values, abs=2 * NEAREST_NS)


def test_a_quick_step_misses_nothing() -> None:
    result = streamed(lambda _: 20, rate_hz=30, seconds=2)
    assert (result.rate_hz, result.frames, result.results, result.dropped, result.deadline_miss_rate) == (
        30,
        60,
        60,
        0,
        0,
    )
    assert result.taken.tolist() == list(range(60))
    assert result.ages_ms.dtype == np.float64
    assert set(result.ages_ms) == {20.0}
    assert (result.age_p50_ms, result.age_p99_ms) == (20, 20)
    assert (result.jitter_ms, result.age_of_information_p50_ms, result.age_of_information_p99_ms) == near(
        0, PERIOD_MS, PERIOD_MS
    )
    assert result.results_ms == pytest.approx(20 + PERIOD_MS * np.arange(60), abs=NEAREST_NS)


def test_one_and_a_half_periods_drop_every_third_frame() -> None:
    # Results at 50, 100, 150 ms … Every second one ends as a frame arrives, and that frame is taken at once.
    result = streamed(lambda _: 50, rate_hz=30, seconds=2)
    assert (result.frames, result.results, result.dropped, result.deadline_miss_rate) == (60, 40, 20, 1)
    assert result.taken.tolist() == [frame for frame in range(60) if frame % 3 != 2]
    assert result.results_ms.tolist() == [50.0 * n for n in range(1, 41)]
    assert result.ages_ms == pytest.approx([50, 2 * PERIOD_MS] * 20, abs=NEAREST_NS)
    assert result.jitter_ms == 0
    assert (result.age_p50_ms, result.age_p99_ms) == near((50 + 2 * PERIOD_MS) / 2, 2 * PERIOD_MS)
    # At arrivals 2, 3, 4 … the newest result is of frame 0, 1, 1, 3, 4, 4, …: two, two and three periods old.
    assert (result.age_of_information_p50_ms, result.age_of_information_p99_ms) == near(2 * PERIOD_MS, 3 * PERIOD_MS)


def test_a_slow_frame_delays_the_next_one_but_drops_none() -> None:
    # Odd frames take 40 ms and end 6.7 ms after the next has come; that one is done 10 ms later.
    result = streamed(lambda frame: 40 if frame % 2 else 10, rate_hz=30, seconds=2)
    late_ms = 50 - PERIOD_MS
    assert (result.frames, result.dropped, result.deadline_miss_rate) == (60, 0, 0.5)
    assert result.ages_ms == pytest.approx([10, 40] + [late_ms, 40] * 29, abs=NEAREST_NS)
    between_ms = [PERIOD_MS + 30, *[10, 2 * PERIOD_MS - 10] * 29]
    assert result.jitter_ms == pytest.approx(np.std(between_ms), abs=NEAREST_NS)
    assert (result.age_p50_ms, result.age_p99_ms) == near((40 + late_ms) / 2, 40)
    # At the arrivals after slow frames the newest result is of the frame before them.
    assert (result.age_of_information_p50_ms, result.age_of_information_p99_ms) == near(1.5 * PERIOD_MS, 2 * PERIOD_MS)


def test_a_result_at_the_deadline_is_in_time_and_one_after_it_is_not() -> None:
    assert streamed(lambda _: 20, rate_hz=50, seconds=1).deadline_miss_rate == 0
    late = streamed(lambda _: 20.000001, rate_hz=50, seconds=1)
    assert (late.deadline_miss_rate, late.dropped) == (1, 0)


@pytest.mark.parametrize("slowest_ms", [15, 25, 45, 130])
def test_as_a_camera_with_one_slot(slowest_ms: int) -> None:
    period_ms, frames = 20, 500
    durations_ms = np.random.default_rng(slowest_ms).integers(1, slowest_ms + 1, frames).tolist()
    slot: int | None = None
    free_ms = 0
    done_ms: dict[int, int] = {}
    for now_ms in range(frames * period_ms):
        if now_ms % period_ms == 0:
            slot = now_ms // period_ms
        if slot is not None and now_ms >= free_ms:
            done_ms[slot] = free_ms = now_ms + durations_ms[slot]
            slot = None
    held_ms = []
    for now_ms in range(0, (frames + 1) * period_ms, period_ms):
        finished = [frame for frame, done in done_ms.items() if done <= now_ms]
        if finished:
            held_ms.append(now_ms - max(finished) * period_ms)
    ages_ms = [done - frame * period_ms for frame, done in done_ms.items()]
    in_time = sum(done <= (frame + 1) * period_ms for frame, done in done_ms.items())

    result = streamed(lambda frame: durations_ms[frame], rate_hz=1000 / period_ms, seconds=frames * period_ms / 1000)
    assert result.taken.tolist() == list(done_ms)
    assert result.results_ms.tolist() == list(done_ms.values())
    assert result.ages_ms.tolist() == ages_ms
    assert (result.frames, result.results, result.dropped) == (frames, len(done_ms), frames - len(done_ms))
    assert result.deadline_miss_rate == pytest.approx(1 - in_time / frames)
    assert result.jitter_ms == pytest.approx(np.std(np.diff(list(done_ms.values()))))
    assert (result.age_p50_ms, result.age_p99_ms) == pytest.approx(tuple(np.percentile(ages_ms, (50, 99))))
    assert (result.age_of_information_p50_ms, result.age_of_information_p99_ms) == pytest.approx(
        tuple(np.percentile(held_ms, (50, 99)))
    )


def test_waking_late_counts_as_age() -> None:
    clock = LateClock(late_ms=5)
    result = stream(clock.spend(lambda _: 4), rate_hz=50, seconds=0.1, clock=clock)
    assert result.ages_ms.tolist() == [4, 9, 9, 9, 9]  # nothing was slept for the first
    clock = LateClock(late_ms=30)  # by then the frame that was waited for has been replaced
    assert stream(clock.spend(lambda _: 4), rate_hz=50, seconds=0.1, clock=clock).taken.tolist() == [0, 2, 4]


def test_a_step_that_outlasts_the_stream_finishes() -> None:
    result = streamed(lambda _: 1000, rate_hz=50, seconds=0.1)
    assert (result.frames, result.results, result.dropped, result.deadline_miss_rate) == (5, 1, 4, 1)
    assert (result.age_p50_ms, result.age_of_information_p50_ms, result.age_of_information_p99_ms) == (1000, None, None)
    assert result.jitter_ms is None


@pytest.mark.parametrize(
    ("rate_hz", "seconds", "frames"),
    [(100, 0.29, 29), (30, 2 / 30, 2), (30, 0.12, 3), (29.97, 10, 299)],
)
def test_whole_periods_are_counted(rate_hz: float, seconds: float, frames: int) -> None:
    assert streamed(lambda _: 1, rate_hz=rate_hz, seconds=seconds).frames == frames


@pytest.mark.parametrize("rate_hz", [0, -30, math.nan, math.inf])
def test_an_invalid_rate_is_refused(rate_hz: float) -> None:
    with pytest.raises(OptionError, match="not a valid camera rate"):
        streamed(lambda _: 1, rate_hz=rate_hz, seconds=1)


@pytest.mark.parametrize("seconds", [0, -1, 0.06, math.nan, math.inf])
def test_an_invalid_duration_is_refused(seconds: float) -> None:
    with pytest.raises(OptionError, match="not a valid duration at") as raised:
        streamed(lambda _: 1, rate_hz=30, seconds=seconds)
    assert "0.0666667 s" in raised.value.cure


@pytest.mark.parametrize("step_ms", [3.7, 10, 28.5, 240])
def test_the_peak_of_a_steady_step_is_its_inverse(step_ms: float) -> None:
    clock = SimulatedClock()
    peak = max_sustained_rate(clock.spend(lambda _: step_ms), seconds=2, low_hz=1, high_hz=1000, clock=clock)
    assert peak.rate_hz is not None
    assert 1000 / step_ms / 1.02 <= peak.rate_hz <= 1000 / step_ms
    assert [trial.rate_hz for trial in peak.tried[:2]] == [1, 1000]
    # Halving the logarithm of 1000 until it is below that of 1.02 takes nine trials.
    assert len(peak.tried) == 2 + math.ceil(math.log2(math.log(1000) / math.log(1.02)))
    for trial in peak.tried:
        assert trial.deadline_miss_rate == (0 if trial.rate_hz <= 1000 / step_ms else 1)


def test_a_few_may_be_missed() -> None:
    # One step in 200 takes 30 ms, the others 5 ms. The slow frame is late above 1 / 30 ms. From 1 / 17.5 ms on
    # the next is late or dropped as well; the third is late once 30 + 5 ms exceed three periods: 1.5 % are too many.
    clock = SimulatedClock()
    step = clock.spend(lambda frame: 30 if frame % 200 == 100 else 5)
    strict = max_sustained_rate(step, seconds=60, low_hz=10, high_hz=120, max_deadline_miss_rate=0, clock=clock)
    assert strict.rate_hz is not None
    assert 1000 / 30 / 1.02 <= strict.rate_hz <= 1000 / 30
    lenient = max_sustained_rate(step, seconds=60, low_hz=10, high_hz=120, max_deadline_miss_rate=0.012, clock=clock)
    assert lenient.rate_hz is not None
    assert 3000 / 35 / 1.02 <= lenient.rate_hz <= 3000 / 35


def test_the_ends_of_the_search() -> None:
    clock = SimulatedClock()
    above = max_sustained_rate(clock.spend(lambda _: 1), seconds=1, low_hz=10, high_hz=100, clock=clock)
    assert (above.rate_hz, above.tried) == (100, ((10, 0), (100, 0)))
    below = max_sustained_rate(
        clock.spend(lambda _: 200), seconds=1, low_hz=10, high_hz=100, max_deadline_miss_rate=0.5, clock=clock
    )
    assert (below.rate_hz, below.max_deadline_miss_rate, below.tried) == (None, 0.5, ((10, 1),))


@pytest.mark.parametrize(("low_hz", "high_hz"), [(0, 10), (-1, 10), (10, 10), (20, 10), (1, math.inf), (math.nan, 10)])
def test_rates_between_which_nothing_lies(low_hz: float, high_hz: float) -> None:
    with pytest.raises(OptionError, match="not a valid range of rates"):
        max_sustained_rate(lambda _: None, seconds=1, low_hz=low_hz, high_hz=high_hz)


@pytest.mark.parametrize("max_deadline_miss_rate", [-0.1, 1, math.nan])
def test_an_invalid_share_is_refused(max_deadline_miss_rate: float) -> None:
    with pytest.raises(OptionError, match="share"):
        max_sustained_rate(
            lambda _: None, seconds=1, low_hz=1, high_hz=10, max_deadline_miss_rate=max_deadline_miss_rate
        )


def test_a_search_too_short_for_its_lowest_rate_runs_nothing() -> None:
    calls: list[int] = []
    with pytest.raises(OptionError, match="not a valid duration at"):
        max_sustained_rate(calls.append, seconds=1, low_hz=1, high_hz=10)
    assert not calls


def test_the_real_clock_never_wakes_early_and_mostly_sleeps() -> None:
    busy_ns = thread_time_ns()
    for _ in range(5):
        due_ns = perf_counter_ns() + 20_000_000
        REAL_CLOCK.sleep_until_ns(due_ns)
        assert REAL_CLOCK.now_ns() >= due_ns
    assert thread_time_ns() - busy_ns < 5 * 20_000_000 / 2
    REAL_CLOCK.sleep_until_ns(perf_counter_ns() - SPIN_NS)  # a moment that is over is no error


def test_on_the_real_clock() -> None:
    result = stream(lambda _: None, rate_hz=100, seconds=0.2)
    assert (result.frames, result.results + result.dropped) == (20, 20)
    assert (result.ages_ms >= 0).all()
    assert (result.results_ms >= 10 * result.taken).all()
    assert (np.diff(result.taken) > 0).all()
