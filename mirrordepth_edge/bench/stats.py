"""Latency statistics, all derived from raw samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class LatencyStats:
    """Summary of latency samples, in milliseconds."""

    samples: int
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    variation: float
    """Standard deviation over mean; above 0.1 the machine was not steady."""
    throughput_hz: float
    """Frames a second if frames follow one another without pause."""


def summarise(samples_ms: npt.NDArray[np.float64]) -> LatencyStats:
    """Statistics of samples, shape `[n]`, milliseconds, n >= 1."""
    p50, p90, p99 = np.percentile(samples_ms, (50, 90, 99))
    mean = float(samples_ms.mean())
    return LatencyStats(
        samples=len(samples_ms),
        min_ms=float(samples_ms.min()),
        mean_ms=mean,
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        max_ms=float(samples_ms.max()),
        variation=float(samples_ms.std() / mean),
        throughput_hz=1000.0 / mean,
    )
