"""What a robot feels: how old depth is when frames come from a camera that does not wait.

Latency in a closed loop (`measure.bench`) says how long a frame takes. Behind a camera that is not all:
a frame waits while the one before it is in work, and is lost where a newer one comes first. Here frames
arrive at a fixed rate and the newest one is taken, as `live.pipeline` does, but without a thread: when
frame k arrives is arithmetic, so only the step under test uses the machine, and a simulated clock makes
runs exact.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.support.clock import REAL_CLOCK, Clock

RESOLUTION = 1.02
"""Ratio of too fast to fast enough at which `max_sustained_rate` stops searching."""


@dataclass(frozen=True, kw_only=True)
class StreamResult:
    """How results kept up with a camera. Percentiles interpolate linearly (NumPy's default)."""

    rate_hz: float
    """Frames a second that the camera offered."""
    frames: int
    """Offered; `results + dropped`."""
    results: int
    """Frames that were taken; each gave one result."""
    dropped: int
    """Frames that a newer one replaced before their turn came."""
    deadline_miss_rate: float
    """Share of offered frames, 0…1, that had no result when the next frame arrived; dropped ones are among them."""
    age_p50_ms: float
    """From a frame's arrival to its result, waiting included: the age of a result when it comes."""
    age_p99_ms: float
    age_of_information_p50_ms: float | None
    """Age of the newest result there is, sampled whenever a frame arrives: what a controller that runs at the
    camera's rate acts on. One period if nothing is missed; None if the first result came after the last period."""
    age_of_information_p99_ms: float | None
    jitter_ms: float | None
    """Standard deviation of the time from one result to the next; None with fewer than three results."""
    taken: npt.NDArray[np.int64]
    """Shape `[results]`: which frames were taken, counted from 0."""
    ages_ms: npt.NDArray[np.float64]
    """Shape `[results]`: age of each result."""
    results_ms: npt.NDArray[np.float64]
    """Shape `[results]`: when each result was there, since the arrival of frame 0."""


class Trial(NamedTuple):
    """One rate that `max_sustained_rate` tried."""

    rate_hz: float
    deadline_miss_rate: float
    """As `StreamResult.deadline_miss_rate`."""


@dataclass(frozen=True, kw_only=True)
class MaxSustainedRate:
    """The highest camera rate that a step keeps up with."""

    rate_hz: float | None
    """The highest rate tried that was sustained; None where `low_hz` was not, and `high_hz` where that one was, so
    that the limit lies higher. Otherwise a rate less than 2 % higher was tried and not sustained."""
    max_deadline_miss_rate: float
    """Share of frames, 0…1, that may be missed at a sustained rate."""
    tried: tuple[Trial, ...]
    """In the order of the search."""


def stream(step: Callable[[int], object], *, rate_hz: float, seconds: float, clock: Clock = REAL_CLOCK) -> StreamResult:
    """Run a step behind a camera that does not wait.

    Frame k arrives k / `rate_hz` after the start, to the nearest nanosecond; `seconds` hold a whole number of
    periods, rounded down. Whenever the step is free it gets the newest frame, older ones are dropped, and where
    there is no new one it waits for the next. Its result counts when `step` returns, and is in time if that is no
    later than the next frame's arrival. A step that is in work when the time is up still finishes.

    Args:
        step: called with a frame's number, counted from 0; must return only when its result is in host memory.
            Warm it up before.
        rate_hz: frames a second, above 0.
        seconds: how long frames arrive, at least two periods.
        clock: the real one, or a simulated one that `step` moves.

    Raises:
        OptionError: the rate is not positive, or the time too short for two frames.
    """
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise OptionError(
            f"A camera cannot run at {rate_hz:g} Hz.",
            "Frames arrive at a fixed rate, a finite number above 0.",
            "Pass the camera's rate, such as 30.",
        )
    periods = seconds * rate_hz + 1e-6  # 0.29 s at 100 Hz hold 29 frames, though the product is just below
    if not (math.isfinite(periods) and periods >= 2):
        raise OptionError(
            f"{seconds:g} s at {rate_hz:g} Hz do not make a stream.",
            "It needs at least two frames and has to end.",
            f"Pass {2 / rate_hz:g} s or more.",
        )
    frames = int(periods)
    # One arrival more than frames: the last frame's deadline, and the end.
    arrivals_ns = np.rint(np.arange(frames + 1) * 1e9 / rate_hz).astype(np.int64)
    taken, results_ns = np.empty(frames, np.int64), np.empty(frames, np.int64)
    due_ns: list[int] = arrivals_ns.tolist()  # plain integers are quicker to search and compare, frame after frame
    results = newest = 0
    start_ns = clock.now_ns()
    while newest < frames:
        frame = newest
        step(frame)
        result_ns = clock.now_ns() - start_ns
        taken[results], results_ns[results] = frame, result_ns
        results += 1
        newest = bisect_right(due_ns, result_ns) - 1
        if newest == frame:
            clock.sleep_until_ns(start_ns + due_ns[frame + 1])
            newest = bisect_right(due_ns, clock.now_ns() - start_ns) - 1
    return _summary(rate_hz, arrivals_ns, taken[:results].copy(), results_ns[:results])


def max_sustained_rate(
    step: Callable[[int], object],
    *,
    seconds: float,
    low_hz: float,
    high_hz: float,
    max_deadline_miss_rate: float = 0.01,
    clock: Clock = REAL_CLOCK,
) -> MaxSustainedRate:
    """Search for the highest camera rate that a step keeps up with, to 2 %.

    Both ends are tried first, then the geometric mean of the highest sustained and the lowest unsustained rate.
    The search takes a step that missed too many at one rate to miss too many at all higher ones; `tried` shows it.

    Args:
        step: as for `stream`.
        seconds: length of every trial. With fewer than 1 / `max_deadline_miss_rate` frames, one miss is too many.
        low_hz: where the search begins, above 0.
        high_hz: where it ends, above `low_hz`.
        max_deadline_miss_rate: share of frames, 0…1 without 1, that may be missed.
        clock: as for `stream`.

    Raises:
        OptionError: the rates or the share make no sense, or the time is too short for two frames at `low_hz`.
    """
    if not 0 < low_hz < high_hz < math.inf:
        raise OptionError(
            f"There is nothing to search between {low_hz:g} and {high_hz:g} Hz.",
            "The lowest rate has to be above 0, and the highest, a finite one, above the lowest.",
            "Pass two rates such as 1 and 200.",
        )
    if not 0 <= max_deadline_miss_rate < 1:
        raise OptionError(
            f"A share of {max_deadline_miss_rate:g} cannot be the most that is missed.",
            "It is a share of all frames, from 0 up to but without 1.",
            "Pass a share such as 0.01.",
        )
    tried: list[Trial] = []

    def sustained(rate_hz: float) -> bool:
        deadline_miss_rate = stream(step, rate_hz=rate_hz, seconds=seconds, clock=clock).deadline_miss_rate
        tried.append(Trial(rate_hz, deadline_miss_rate))
        return deadline_miss_rate <= max_deadline_miss_rate

    peak_hz: float | None = None
    if sustained(low_hz):
        peak_hz, beyond_hz = low_hz, high_hz
        if sustained(high_hz):
            peak_hz = high_hz
        while beyond_hz / peak_hz >= RESOLUTION:
            middle_hz = math.sqrt(peak_hz * beyond_hz)
            if sustained(middle_hz):
                peak_hz = middle_hz
            else:
                beyond_hz = middle_hz
    return MaxSustainedRate(rate_hz=peak_hz, max_deadline_miss_rate=max_deadline_miss_rate, tried=tuple(tried))


def _summary(
    rate_hz: float,
    arrivals_ns: npt.NDArray[np.int64],
    taken: npt.NDArray[np.int64],
    results_ns: npt.NDArray[np.int64],
) -> StreamResult:
    frames, results = len(arrivals_ns) - 1, len(taken)
    in_time = int((results_ns <= arrivals_ns[taken + 1]).sum())
    ages_ms = (results_ns - arrivals_ns[taken]) / 1e6
    age_p50_ms, age_p99_ms = np.percentile(ages_ms, (50, 99))
    held_p50_ms = held_p99_ms = jitter_ms = None
    newest = np.searchsorted(results_ns, arrivals_ns, side="right") - 1  # result at each arrival, -1 before the first
    if (held := newest >= 0).any():
        ages_of_information_ms = (arrivals_ns[held] - arrivals_ns[taken[newest[held]]]) / 1e6
        held_p50_ms, held_p99_ms = (float(p) for p in np.percentile(ages_of_information_ms, (50, 99)))
    if results >= 3:
        jitter_ms = float(np.diff(results_ns).std() / 1e6)
    return StreamResult(
        rate_hz=rate_hz,
        frames=frames,
        results=results,
        dropped=frames - results,
        deadline_miss_rate=(frames - in_time) / frames,
        age_p50_ms=float(age_p50_ms),
        age_p99_ms=float(age_p99_ms),
        age_of_information_p50_ms=held_p50_ms,
        age_of_information_p99_ms=held_p99_ms,
        jitter_ms=jitter_ms,
        taken=taken,
        ages_ms=ages_ms,
        results_ms=results_ns / 1e6,
    )
