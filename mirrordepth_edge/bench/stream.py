"""Simulation of a live camera: the age of depth when frames arrive at a fixed rate.

Closed-loop latency (`measure.bench`) is the time of one frame. With a live camera, a frame also waits while the
previous one is processed, and is dropped if a newer one arrives first. Here frames arrive at a fixed rate and the
newest one is taken, as in `live.loop`, but without a thread: arrival times are computed, so that only the step under
test uses the machine, and a simulated clock makes tests exact.
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
"""Ratio of the lowest unsustained to the highest sustained rate at which `max_sustained_rate` stops."""


@dataclass(frozen=True, kw_only=True)
class StreamResult:
    """Results at one camera rate. Percentiles interpolate linearly (NumPy's default)."""

    rate_hz: float
    """Frames per second of the camera."""
    frames: int
    """Frames that arrived: `results + dropped`."""
    results: int
    """Frames that were processed."""
    dropped: int
    """Frames that a newer one replaced before they were processed."""
    deadline_miss_rate: float
    """Share of frames, 0…1, without a result when the next frame arrived; includes dropped ones."""
    age_p50_ms: float
    """Age of a result when it is ready: the time since its frame arrived, including the wait."""
    age_p99_ms: float
    age_of_information_p50_ms: float | None
    """Age of the newest available result, sampled at every frame's arrival: what a controller at the camera's rate acts
    on. One period if no deadline is missed; None if the first result came after the last period."""
    age_of_information_p99_ms: float | None
    jitter_ms: float | None
    """Standard deviation of the interval between results; None for fewer than three results."""
    taken: npt.NDArray[np.int64]
    """Indices of the processed frames, shape `[results]`."""
    ages_ms: npt.NDArray[np.float64]
    """Age of each result, shape `[results]`."""
    results_ms: npt.NDArray[np.float64]
    """Time of each result since the arrival of frame 0, shape `[results]`."""


class Trial(NamedTuple):
    """One rate in the search of `max_sustained_rate`."""

    rate_hz: float
    deadline_miss_rate: float
    """As `StreamResult.deadline_miss_rate`."""


@dataclass(frozen=True, kw_only=True)
class MaxSustainedRate:
    """The highest camera rate that a step sustains."""

    rate_hz: float | None
    """The highest rate that was sustained, to 2 %. None if `low_hz` was not sustained; `high_hz` if that was, so that
    the limit is higher."""
    max_deadline_miss_rate: float
    """Share of deadlines, 0…1, that may be missed at a sustained rate."""
    tried: tuple[Trial, ...]
    """In search order."""


def stream(step: Callable[[int], object], *, rate_hz: float, seconds: float, clock: Clock = REAL_CLOCK) -> StreamResult:
    """Run a step on the frames of a simulated live camera.

    Frame k arrives k / `rate_hz` after the start, to the nearest nanosecond. `seconds` are rounded down to whole
    periods. An idle step takes the newest frame and older ones are dropped; without a new frame it waits. A result is
    ready when `step` returns, and in time if the next frame has not arrived before. A step that is running at the end
    finishes.

    Args:
        step: called with the index of a frame, from 0; must return only when its result is in host memory. Warm it up
            first.
        rate_hz: frames per second, above 0.
        seconds: how long frames arrive, at least two periods.
        clock: the real clock, or a simulated one that `step` advances.

    Raises:
        OptionError: the rate is not positive, or the time is too short for two frames.
    """
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise OptionError(
            f"{rate_hz:g} Hz is not a valid camera rate.",
            "It must be a finite number above 0.",
            "Pass the rate of the camera, such as 30.",
        )
    periods = seconds * rate_hz + 1e-6  # 0.29 s * 100 Hz is slightly below 29 in floating point
    if not (math.isfinite(periods) and periods >= 2):
        raise OptionError(
            f"{seconds:g} s is not a valid duration at {rate_hz:g} Hz.",
            "It must be finite and hold at least two frames.",
            f"Pass {2 / rate_hz:g} s or more.",
        )
    frames = int(periods)
    # The extra arrival is the deadline of the last frame and the end.
    arrivals_ns = np.rint(np.arange(frames + 1) * 1e9 / rate_hz).astype(np.int64)
    taken, results_ns = np.empty(frames, np.int64), np.empty(frames, np.int64)
    due_ns: list[int] = arrivals_ns.tolist()  # Python integers are faster to search one by one
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
    """Search for the highest camera rate that a step sustains, to 2 %.

    Bisects the logarithm of the rate after trying both ends. A step that misses too many deadlines at one rate is
    assumed to miss too many at all higher ones.

    Args:
        step: as for `stream`.
        seconds: length of each trial. With fewer than 1 / `max_deadline_miss_rate` frames, one miss is too many.
        low_hz: lowest rate, above 0.
        high_hz: highest rate, above `low_hz`.
        max_deadline_miss_rate: share of deadlines that may be missed, from 0 to below 1.
        clock: as for `stream`.

    Raises:
        OptionError: the rates or the share are out of range, or the time is too short for two frames at `low_hz`.
    """
    if not 0 < low_hz < high_hz < math.inf:
        raise OptionError(
            f"{low_hz:g} to {high_hz:g} Hz is not a valid range of rates.",
            "The lowest rate must be above 0, the highest finite and above the lowest.",
            "Pass two rates such as 1 and 200.",
        )
    if not 0 <= max_deadline_miss_rate < 1:
        raise OptionError(
            f"{max_deadline_miss_rate:g} is not a valid share of missed deadlines.",
            "It must be at least 0 and below 1.",
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
    information_p50_ms = information_p99_ms = jitter_ms = None
    newest = np.searchsorted(results_ns, arrivals_ns, side="right") - 1  # at each arrival; -1 before the first result
    if (available := newest >= 0).any():
        ages_of_information_ms = (arrivals_ns[available] - arrivals_ns[taken[newest[available]]]) / 1e6
        information_p50_ms, information_p99_ms = (float(p) for p in np.percentile(ages_of_information_ms, (50, 99)))
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
        age_of_information_p50_ms=information_p50_ms,
        age_of_information_p99_ms=information_p99_ms,
        jitter_ms=jitter_ms,
        taken=taken,
        ages_ms=ages_ms,
        results_ms=results_ns / 1e6,
    )
