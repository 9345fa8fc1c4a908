"""Latency statistics, derived from raw samples.

Frame times are correlated: caches, clocks and heat change slowly. Intervals therefore come from the moving-block
bootstrap (Künsch, The jackknife and the bootstrap for general stationary observations, Annals of Statistics 17, 1989).
It resamples blocks of n^(1/3) neighbours, so that a resample is about as correlated as the samples. Correlation over
much longer distances makes the intervals too narrow. Resampling has a fixed seed: the same samples give the same
figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.machine.jetson import fix_clocks_command

Samples = npt.NDArray[np.float64]

UNSTEADY = 0.1
"""Coefficient of variation above which a result should not be quoted (as in pyperf)."""
NEGLIGIBLE = 0.05
"""Relative difference of medians below which no decision depends on it."""
OUTLIERS = 0.01
"""Share of outliers that is normal: the operating system interrupts now and then."""

_RESAMPLES = 1000
MIN_SAMPLES = 6
"""Fewest samples whose extremes enclose the median with 95 % confidence: 2 * 0.5^6 = 3 %."""
_MIN_QUARTER = 5
"""Fewest samples in a quarter: two groups of five are separated by chance in 2 of 252 cases."""
_BATCH = 5
_MIN_BIMODAL_SAMPLES = 40
"""Fewer samples look like two clusters by chance."""


@dataclass(frozen=True, kw_only=True)
class LatencyStats:
    """Summary of latency samples, in milliseconds."""

    samples: int
    min_ms: float
    mean_ms: float
    p50_ms: float
    p50_interval_ms: tuple[float, float]
    """95 % interval of the median; minimum and maximum for fewer than 6 samples."""
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    """99.9th percentile; close to the maximum for fewer than 1000 samples."""
    max_ms: float
    variation: float
    """Standard deviation over mean; see `UNSTEADY`."""
    throughput_hz: float
    """Frames per second without pauses between frames."""


@dataclass(frozen=True)
class LatencyWarning:
    """Why a measurement is unreliable, and what to type next."""

    kind: Literal["unsteady", "drift", "outliers", "bimodal"]
    what: str
    cure: str


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 1."""
        return self.low > 1.0 or self.high < 1.0

    def describe(self, than: str = "") -> str:
        """Format as `1.31 times as long as a.onnx (95 % interval 1.27 to 1.35)`; `than` is "as a.onnx"."""
        long = f"times as long {than}".rstrip()
        if not math.isfinite(self.high):
            return f"{self.ratio:.2f} {long}, but too few frames to tell"
        # Enough decimals to distinguish the ends of the interval.
        digits = math.ceil(-math.log10(min(max(self.high - self.low, 1e-4), 1e-2)))
        words = f"{self.ratio:.{digits}f} {long} (95 % interval {self.low:.{digits}f} to {self.high:.{digits}f})"
        return words if self.significant else f"no significant difference: {words}"


def summarise(samples_ms: Samples) -> LatencyStats:
    """Compute statistics of samples in measurement order, shape `[n]`, milliseconds, n >= 1."""
    p50, p90, p95, p99, p999 = (float(p) for p in np.percentile(samples_ms, (50, 90, 95, 99, 99.9)))
    mean = float(samples_ms.mean())
    return LatencyStats(
        samples=len(samples_ms),
        min_ms=float(samples_ms.min()),
        mean_ms=mean,
        p50_ms=p50,
        p50_interval_ms=_median_interval(samples_ms),
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=float(samples_ms.max()),
        variation=float(samples_ms.std() / mean),
        throughput_hz=1000.0 / mean,
    )


def latency_warnings(samples_ms: Samples) -> list[LatencyWarning]:
    """List why a measurement is unreliable; empty if no reason was found.

    - unsteady: the standard deviation exceeds `UNSTEADY` of the mean.
    - drift: the medians of the first and the last quarter differ by more than `NEGLIGIBLE` and their
      99 % intervals do not overlap. Needs 20 samples.
    - outliers: more than `OUTLIERS` of the samples lie above the median by five robust standard
      deviations (1.4826 times the median absolute deviation) and by more than `NEGLIGIBLE`.
      Skipped for bimodal samples, whose slower mode would count.
    - bimodal: two clusters, each of 10 % of the samples or more and their means over 10 % apart,
      explain more than 80 % of the variance, and the middle third between their means holds less than
      5 % of the samples. The best split of a normal explains 64 % (2 / pi), of an exponential 65 %,
      of a uniform 75 %, and their middle thirds hold 21 %, 14 % and 17 %. Needs 40 samples.

    Args:
        samples_ms: in measurement order, shape `[n]`, milliseconds, n >= 1.
    """
    warnings = (_unsteady(samples_ms), _drift(samples_ms), _bimodal(samples_ms) or _outliers(samples_ms))
    return [warning for warning in warnings if warning is not None]


def stationary_from(samples_ms: Samples) -> int | None:
    """Find the index of the first sample after the warm-up; None if times have not settled.

    MSER-5: of all truncation points in the first half, the one that minimises the standard error of
    what remains (White, An effective truncation heuristic for bias reduction in simulation output,
    Simulation 69, 1997), over batches of five (White, Cobb and Spratt, A comparison of five
    steady-state truncation heuristics for simulation, Winter Simulation Conference, 2000). A batch
    counts by its median instead of its mean, so that one slow frame is not a warm-up. None if the
    remainder drifts as in `latency_warnings`, or for fewer than 40 samples.

    Args:
        samples_ms: in measurement order, shape `[n]`, milliseconds.
    """
    count = len(samples_ms) // _BATCH
    if len(samples_ms) < 8 * _MIN_QUARTER:
        return None
    batches = np.median(samples_ms[: count * _BATCH].reshape(count, _BATCH), axis=1)
    batches -= np.median(batches)  # sums of squares keep their digits near zero
    remaining = np.arange(count, 0, -1)
    sums = batches[::-1].cumsum()[::-1]
    squares = (batches**2)[::-1].cumsum()[::-1]
    errors = (squares - sums**2 / remaining) / remaining**2
    start = int(errors[: count // 2 + 1].argmin()) * _BATCH
    return None if _shift(samples_ms[start:]) is not None else start


def ratio_interval(a_ms: Samples, b_ms: Samples, paired: bool) -> Ratio:
    """Compute the ratio of the medians, `a_ms` over `b_ms`, with a 95 % interval.

    Args:
        a_ms: in measurement order, shape `[n]`, milliseconds, positive.
        b_ms: likewise, shape `[m]`.
        paired: `a_ms[i]` and `b_ms[i]` were measured one right after the other (n = m). The same blocks of both are
            resampled, so that a common disturbance cancels.

    Returns:
        With fewer than 6 samples of either, the interval is 0 to infinity.

    Raises:
        InputError: samples are missing, not positive and finite, or paired and of different length.
    """
    for name, samples in (("first", a_ms), ("second", b_ms)):
        if samples.size == 0 or not (np.isfinite(samples).all() and (samples > 0).all()):
            raise InputError(
                f"The {name} of the two measurements has no usable latency samples.",
                f"{int((np.isfinite(samples) & (samples > 0)).sum())} of {samples.size} samples are positive times.",
                "Measure it again: mde bench --json result.json",
            )
    if paired and len(a_ms) != len(b_ms):
        raise InputError(
            "The two measurements cannot be paired.",
            f"One has {len(a_ms)} samples, the other {len(b_ms)}.",
            "Measure both with the same --iterations, or compare them unpaired.",
        )
    ratio = float(np.median(a_ms) / np.median(b_ms))
    if min(len(a_ms), len(b_ms)) < MIN_SAMPLES:
        return Ratio(ratio, 0.0, float("inf"))
    random = np.random.default_rng(0)
    a_starts = block_starts(len(a_ms), random)
    b_starts = a_starts if paired else block_starts(len(b_ms), random)
    low, high = np.percentile(resampled_medians(a_ms, a_starts) / resampled_medians(b_ms, b_starts), (2.5, 97.5))
    return Ratio(ratio, float(low), float(high))


def _block_length(count: int) -> int:
    return round(math.pow(count, 1 / 3))


def block_starts(count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw the first index of each block, shape `[resamples, blocks]`."""
    length = _block_length(count)
    return random.integers(0, count - length + 1, (_RESAMPLES, -(-count // length)))


def resampled_medians(samples: Samples, starts: npt.NDArray[np.int64]) -> Samples:
    """Compute the medians of the resamples, shape `[resamples]`, in parts of some 30 MB."""
    count = len(samples)
    blocks = np.lib.stride_tricks.sliding_window_view(samples, _block_length(count))
    middle = [(count - 1) // 2, count // 2]
    parts = np.array_split(starts, -(-len(starts) * count // 4_000_000))
    # NumPy sorts with vector instructions but selects without them: sorting is three times as fast as np.median.
    ordered = (np.sort(blocks[part].reshape(len(part), -1)[:, :count], axis=1) for part in parts)
    return np.concatenate([resamples[:, middle].mean(axis=1) for resamples in ordered])


def _median_interval(samples: Samples, confidence: float = 95) -> tuple[float, float]:
    if len(samples) < MIN_SAMPLES:
        return float(samples.min()), float(samples.max())
    starts = block_starts(len(samples), np.random.default_rng(0))
    low, high = np.percentile(resampled_medians(samples, starts), (50 - confidence / 2, 50 + confidence / 2))
    return float(low), float(high)


def _shift(samples: Samples) -> tuple[float, float] | None:
    """Medians of the first and the last quarter if they differ noticeably and significantly."""
    quarter = len(samples) // 4
    if quarter < _MIN_QUARTER:
        return None
    first, last = samples[:quarter], samples[-quarter:]
    before, after = float(np.median(first)), float(np.median(last))
    if abs(after - before) <= NEGLIGIBLE * before:
        return None
    (first_low, first_high), (last_low, last_high) = _median_interval(first, 99), _median_interval(last, 99)
    return (before, after) if first_high < last_low or last_high < first_low else None


def _fix_clocks() -> str:
    return (
        f"Fix the clocks (Jetson: {fix_clocks_command()}; desktop GPU: sudo nvidia-smi -lgc <MHz>, "
        "with a value from nvidia-smi -q -d SUPPORTED_CLOCKS; CPU on Linux: sudo cpupower frequency-set -g performance)"
    )


def _unsteady(samples: Samples) -> LatencyWarning | None:
    variation = samples.std() / samples.mean()
    if variation <= UNSTEADY:
        return None
    what = f"Unsteady: the standard deviation, {samples.std():.2f} ms, is {variation:.0%} of the mean."
    return LatencyWarning("unsteady", what, f"Close other programs. {_fix_clocks()}, or raise --iterations.")


def _drift(samples: Samples) -> LatencyWarning | None:
    shift = _shift(samples)
    if shift is None:
        return None
    before, after = shift
    what = f"Drift: the median went from {before:.2f} ms in the first quarter to {after:.2f} ms in the last"
    if after > before:
        return LatencyWarning(
            "drift", f"{what}, {after / before - 1:.0%} up.", f"Let the machine cool down. {_fix_clocks()}."
        )
    settled = stationary_from(samples)
    more = f"by {settled}" if settled else f"by {len(samples)} or more"
    return LatencyWarning(
        "drift", f"{what}, {1 - after / before:.0%} down.", f"Raise --warmup {more}. {_fix_clocks()}."
    )


def _outliers(samples: Samples) -> LatencyWarning | None:
    median = float(np.median(samples))
    spread = 1.4826 * float(np.median(np.abs(samples - median)))
    limit = median + max(5 * spread, NEGLIGIBLE * median)
    share = float((samples > limit).mean())
    if share <= OUTLIERS:
        return None
    what = f"Outliers: {share:.1%} of the frames took more than {limit:.2f} ms; the median is {median:.2f} ms."
    cure = "Close other programs (see top), then raise --iterations. Quote p99 beside the median."
    return LatencyWarning("outliers", what, cure)


def _bimodal(samples: Samples) -> LatencyWarning | None:
    count = len(samples)
    if count < _MIN_BIMODAL_SAMPLES:
        return None
    # A few extreme frames have most of the variance and would hide the clusters, so they are clipped. Both limits lie
    # inside a cluster if each has a tenth of the samples.
    ordered = np.clip(np.sort(samples), *np.percentile(samples, (5, 95)))
    deviations = ordered - ordered.mean()
    total = float((deviations**2).sum())
    smallest = -(-count // 10)
    sizes = np.arange(smallest, count - smallest + 1)
    between = deviations.cumsum()[sizes - 1] ** 2 * count / (sizes * (count - sizes))
    best = int(between.argmax())
    size = int(sizes[best])
    fast, slow = float(ordered[:size].mean()), float(ordered[size:].mean())
    edges = fast + (slow - fast) * np.array([1, 2]) / 3
    valley = np.diff(ordered.searchsorted(edges))[0] / count
    if between[best] <= 0.8 * total or slow <= 1.1 * fast or valley >= 0.05:
        return None
    what = f"Bimodal: {size / count:.0%} of the frames took about {fast:.2f} ms, the others about {slow:.2f} ms."
    return LatencyWarning("bimodal", what, f"{_fix_clocks()}; close other programs.")
