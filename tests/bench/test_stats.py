"""Statistics against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from mirrordepth_edge.bench.stats import summarise


def test_closed_forms() -> None:
    samples = np.arange(1.0, 102.0)  # 1 … 101 ms: every percentile is a sample
    stats = summarise(np.random.default_rng(0).permutation(samples))
    assert (stats.samples, stats.min_ms, stats.max_ms, stats.mean_ms) == (101, 1.0, 101.0, 51.0)
    assert (stats.p50_ms, stats.p90_ms, stats.p99_ms) == (51.0, 91.0, 100.0)
    assert stats.throughput_hz == pytest.approx(1000 / 51)
    assert stats.variation == pytest.approx(np.sqrt((101**2 - 1) / 12) / 51)


def test_one_sample() -> None:
    stats = summarise(np.array([4.0]))
    assert (stats.p50_ms, stats.p99_ms, stats.variation, stats.throughput_hz) == (4.0, 4.0, 0.0, 250.0)
