"""Statistics of a live run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HISTORY = 10_000
"""Number of newest samples that percentiles are computed from: five and a half minutes at 30 Hz."""


@dataclass(frozen=True, kw_only=True)
class OutputStats:
    """Statistics of one output. Percentiles are over the last `HISTORY` results, None without any."""

    name: str
    shown: int
    dropped: int
    """Results that a newer one replaced because the output was still busy."""
    age_p50_ms: float | None
    """Time from a frame's arrival until the output had handled it."""
    age_p99_ms: float | None
    problem: str | None
    """Why the output stopped working, if it did."""


@dataclass(frozen=True, kw_only=True)
class LiveStats:
    """Statistics of a live run. Percentiles are over the last `HISTORY` frames, None without frames."""

    frames: int
    """Frames that were predicted."""
    dropped: int
    """Frames that a newer one replaced before they were predicted."""
    faults: int
    """Number of unreadable frames and of reconnections."""
    duration_s: float
    """Time from the start of the loop to its last result."""
    rate_hz: float | None
    """Results per second between the first and the last; None with fewer than two."""
    source_hz: float | None
    """Frames per second as they arrived, dropped ones included; None with fewer than two."""
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    age_p50_ms: float | None
    """Time from a frame's arrival to its depth."""
    age_p99_ms: float | None
    shown_age_p50_ms: float | None
    """Time from a frame's arrival until the first output had handled it; None without an output."""
    shown_age_p99_ms: float | None
    outputs: tuple[OutputStats, ...]
    interrupted: bool
    """Ctrl-C ended the run. The caller raises KeyboardInterrupt again after its own cleanup."""

    def __str__(self) -> str:
        text = f"{self.frames} frames in {self.duration_s:.1f} s, {self.dropped} dropped"
        if self.rate_hz is not None:
            text += f", {self.rate_hz:.1f} Hz"
        if self.frames:
            text += f"; latency p50 {self.latency_p50_ms:.1f} ms, p99 {self.latency_p99_ms:.1f} ms"
            text += f"; age p50 {self.age_p50_ms:.1f} ms, p99 {self.age_p99_ms:.1f} ms"
        if self.shown_age_p50_ms is not None:
            text += f"; shown p50 {self.shown_age_p50_ms:.1f} ms, p99 {self.shown_age_p99_ms:.1f} ms"
        if self.faults:
            text += f"; recovered from {self.faults} fault{'s' if self.faults > 1 else ''}"
        return text


class Recent:
    """The newest samples, in a ring buffer."""

    def __init__(self) -> None:
        self.count = 0
        # Written at once: pages that are only reserved would look like a memory leak for the first minutes.
        self._samples = np.full(HISTORY, np.nan)

    def add(self, sample: float) -> None:
        self._samples[self.count % len(self._samples)] = sample
        self.count += 1

    def percentile(self, percent: float) -> float | None:
        """Return a percentile, linearly interpolated; None without samples."""
        if self.count == 0:
            return None
        return float(np.percentile(self._samples[: self.count], percent))
