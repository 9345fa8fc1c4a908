"""Statistics against closed forms, exhaustive searches and simulations whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.bench.stats import Ratio, latency_warnings, ratio_interval, stationary_from, summarise
from mirrordepth_edge.errors import InputError

Samples = npt.NDArray[np.float64]
MEDIAN_MS = 10.0
REPETITIONS = 200


def correlated(random: np.random.Generator, count: int, rho: float) -> Samples:
    """A stationary AR(1) series of unit variance around `MEDIAN_MS`."""
    noise = random.normal(size=count)
    noise[1:] *= np.sqrt(1 - rho**2)
    for index in range(1, count):
        noise[index] += rho * noise[index - 1]
    return MEDIAN_MS + noise


def kinds(samples_ms: Samples) -> list[str]:
    return [finding.kind for finding in latency_warnings(samples_ms)]


def test_closed_forms() -> None:
    samples = np.arange(1.0, 102.0)  # 1 … 101 ms: every whole percentile is a sample
    stats = summarise(np.random.default_rng(0).permutation(samples))
    assert (stats.samples, stats.min_ms, stats.max_ms, stats.mean_ms) == (101, 1.0, 101.0, 51.0)
    assert (stats.p50_ms, stats.p90_ms, stats.p95_ms, stats.p99_ms) == (51.0, 91.0, 96.0, 100.0)
    assert stats.p999_ms == pytest.approx(100.9)
    assert stats.throughput_hz == pytest.approx(1000 / 51)
    assert stats.variation == pytest.approx(np.sqrt((101**2 - 1) / 12) / 51)


def test_one_sample() -> None:
    one = np.array([4.0])
    stats = summarise(one)
    assert (stats.p50_ms, stats.p99_ms, stats.variation, stats.throughput_hz) == (4.0, 4.0, 0.0, 250.0)
    assert stats.p50_interval_ms == (4.0, 4.0)
    assert latency_warnings(one) == []
    assert stationary_from(one) is None


def test_two_samples() -> None:
    two = np.array([6.0, 4.0])
    assert summarise(two).p50_interval_ms == (4.0, 6.0)
    assert kinds(two) == ["unsteady"]
    assert stationary_from(two) is None


@pytest.mark.parametrize("count", [3, 6, 40, 200, 1000])
def test_constant_samples(count: int) -> None:
    constant = np.full(count, 0.1)
    stats = summarise(constant)
    assert stats.p50_interval_ms == (0.1, 0.1)
    assert stats.p999_ms == 0.1
    assert latency_warnings(constant) == []
    assert stationary_from(constant) == (0 if count >= 40 else None)


# A binomial of 200 trials at 95 % stays above 0.90 in 99.9 % of cases; blocks of n^(1/3) cannot hold the
# whole of a correlation, which costs some coverage.
@pytest.mark.parametrize(("count", "rho", "least"), [(60, 0.0, 0.90), (200, 0.0, 0.90), (200, 0.5, 0.86)])
def test_the_interval_covers_the_true_median(count: int, rho: float, least: float) -> None:
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(REPETITIONS):
        low, high = summarise(correlated(random, count, rho)).p50_interval_ms
        covered += low <= MEDIAN_MS <= high
    assert least <= covered / REPETITIONS <= 0.995


def test_correlated_samples_get_a_wider_interval_than_the_same_ones_shuffled() -> None:
    random = np.random.default_rng(1)
    widths = []
    for _ in range(20):
        samples = correlated(random, 300, 0.8)
        pair = [summarise(order).p50_interval_ms for order in (samples, random.permutation(samples))]
        widths.append([high - low for low, high in pair])
    in_order, shuffled = np.mean(widths, axis=0)
    assert in_order > 1.5 * shuffled


def test_many_samples_give_the_asymptotic_interval() -> None:
    count = 10_000  # resampled in parts
    low, high = summarise(np.random.default_rng(2).normal(MEDIAN_MS, 1.0, count)).p50_interval_ms
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(np.pi / 2 / count), rel=0.2)


def test_an_independent_interval_agrees_on_independent_samples() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    samples = np.random.default_rng(3).lognormal(2.0, 0.3, 400)
    lower = int(scipy_stats.binom.ppf(0.025, 400, 0.5))  # the order statistics that enclose the median
    exact = np.sort(samples)[[lower - 1, 400 - lower]]
    low, high = summarise(samples).p50_interval_ms
    assert low <= np.median(samples) <= high
    assert high - low == pytest.approx(exact[1] - exact[0], rel=0.35)


def test_the_same_samples_give_the_same_figures() -> None:
    samples = np.random.default_rng(4).normal(10.0, 2.0, 150)
    other = np.random.default_rng(5).normal(10.0, 2.0, 150)
    assert summarise(samples) == summarise(samples.copy())
    assert ratio_interval(samples, other, paired=False) == ratio_interval(samples, other, paired=False)
    assert latency_warnings(samples) == latency_warnings(samples)


@pytest.mark.parametrize("deviation", [0.5, 0.98, 1.02, 3.0])
def test_unsteady_is_a_tenth_of_the_mean(deviation: float) -> None:
    samples = np.tile([10.0 - deviation, 10.0 + deviation], 15)  # 30: too few to call bimodal
    assert kinds(samples) == (["unsteady"] if deviation > 1.0 else [])


@pytest.mark.parametrize("factor", [1.3, 1 / 1.3, 1.04])
def test_drift_is_noticeable_and_beyond_chance(factor: float) -> None:
    samples = np.random.default_rng(6).normal(10.0, 0.2, 200) * np.linspace(1.0, factor, 200)
    drift = [finding for finding in latency_warnings(samples) if finding.kind == "drift"]
    if factor == 1.04:
        assert drift == []
        return
    first, last = np.median(samples[:50]), np.median(samples[-50:])
    assert f"from {first:.2f} ms" in drift[0].what
    assert f"to {last:.2f} ms" in drift[0].what
    assert ("--warmup" in drift[0].cure) is (factor < 1)
    for command in ("sudo jetson_clocks", "nvidia-smi -lgc", "cpupower frequency-set"):
        assert command in drift[0].cure
    scipy_stats = pytest.importorskip("scipy.stats")
    assert scipy_stats.mannwhitneyu(samples[:50], samples[-50:]).pvalue < 0.01


def test_a_short_warm_up_states_the_required_length() -> None:
    samples = np.random.default_rng(7).normal(10.0, 0.1, 200)
    samples[:60] += 5.0
    drift = next(finding for finding in latency_warnings(samples) if finding.kind == "drift")
    assert "Raise --warmup by 60." in drift.cure


def test_chance_alone_rarely_drifts() -> None:
    random = np.random.default_rng(8)
    alarms = sum("drift" in kinds(correlated(random, 100, 0.3) * 2.0) for _ in range(REPETITIONS))
    assert alarms <= 0.05 * REPETITIONS


def test_outliers_are_counted_by_share() -> None:
    samples = np.random.default_rng(9).normal(10.0, 0.1, 1000)
    samples[::125] = 30.0  # 8 of 1000: ordinary
    assert "outliers" not in kinds(samples)
    samples[::50] = 30.0
    outliers = next(finding for finding in latency_warnings(samples) if finding.kind == "outliers")
    assert "2.4%" in outliers.what  # 20 and 8, less the 4 that are both (multiples of 250)
    samples[samples > 20.0] = 10.4  # beyond every deviation, and harmless
    assert kinds(samples) == []


@pytest.mark.parametrize("share", [0.15, 0.5, 0.85])
@pytest.mark.parametrize("count", [40, 400])
def test_a_clock_that_halves_has_two_speeds(share: float, count: int) -> None:
    random = np.random.default_rng(10)
    fast = random.permutation(count) < share * count
    samples = random.normal(5.0, 0.25, count) * np.where(fast, 1.0, 2.0)
    samples[count // 2] = 200.0  # one hiccup does not hide it
    assert "outliers" not in kinds(samples)
    what = next(finding for finding in latency_warnings(samples) if finding.kind == "bimodal").what
    assert f"{share:.0%} of" in what or f"{share - 1 / count:.0%} of" in what
    assert "about 5.0" in what or "about 4.9" in what


def test_two_speeds_a_hair_apart_are_one() -> None:
    assert kinds(np.tile([10.0, 10.8], 100)) == []


@pytest.mark.parametrize(
    "draw",
    [
        lambda random, count: random.normal(10.0, 2.0, count),
        lambda random, count: random.lognormal(2.0, 0.5, count),
        lambda random, count: 5.0 + random.exponential(2.0, count),
        lambda random, count: random.uniform(5.0, 15.0, count),
        lambda random, count: correlated(random, count, 0.5),
    ],
    ids=["normal", "lognormal", "exponential tail", "uniform", "correlated"],
)
def test_one_speed_is_not_two(draw: Callable[[np.random.Generator, int], Samples]) -> None:
    random = np.random.default_rng(11)
    assert sum("bimodal" in kinds(draw(random, 200)) for _ in range(50)) == 0


def test_stationary_from_is_the_exhaustive_minimum() -> None:
    random = np.random.default_rng(12)
    for decay in (3.0, 10.0, 20.0):
        samples = random.normal(10.0, 0.2, 203) + 8.0 * np.exp(-np.arange(203) / decay)
        batches = [float(np.median(samples[5 * k : 5 * k + 5])) for k in range(40)]
        squared_errors = [float(np.var(batches[d:])) / (40 - d) for d in range(21)]
        expected = 5 * int(np.argmin(squared_errors))
        assert stationary_from(samples) == expected
        assert 8.0 * np.exp(-expected / decay) < 0.5


def test_a_run_that_still_drifts_is_not_stationary() -> None:
    samples = np.random.default_rng(13).normal(10.0, 0.2, 200)
    assert stationary_from(samples + 0.05 * np.arange(200)) is None
    assert stationary_from(np.where(np.arange(200) < 160, samples, samples + 5.0)) is None


def test_one_slow_frame_is_no_warm_up() -> None:
    random = np.random.default_rng(16)
    starts = []
    for _ in range(50):
        samples = random.normal(10.0, 0.2, 100)
        samples[45] = 500.0  # a mean over its batch would put every start at 50
        starts.append(stationary_from(samples))
    assert sum(start is not None and start <= 20 for start in starts) >= 40


@pytest.mark.parametrize("paired", [False, True])
def test_the_ratio_covers_the_truth(paired: bool) -> None:
    random = np.random.default_rng(14)
    covered = 0
    for _ in range(REPETITIONS):
        weather = correlated(random, 120, 0.3) / MEDIAN_MS if paired else 1.0
        a, b = (scale * weather * random.lognormal(0.0, 0.1, 120) for scale in (11.0, 10.0))
        ratio = ratio_interval(a, b, paired)
        assert ratio.low <= ratio.ratio <= ratio.high
        covered += ratio.low <= 1.1 <= ratio.high
    assert 0.89 <= covered / REPETITIONS <= 0.995


def test_pairs_cancel_common_disturbances() -> None:
    random = np.random.default_rng(15)
    weather = correlated(random, 200, 0.5)
    a, b = 1.02 * weather * random.normal(1.0, 0.005, 200), weather * random.normal(1.0, 0.005, 200)
    assert ratio_interval(a, b, paired=True).significant
    assert not ratio_interval(a, b, paired=False).significant


def test_ratio_of_constants_and_of_few() -> None:
    two, one = np.full(50, 2.0), np.full(50, 1.0)
    assert ratio_interval(two, one, paired=False) == Ratio(2.0, 2.0, 2.0)
    assert ratio_interval(two, one, paired=True).significant
    assert not ratio_interval(two, two, paired=True).significant
    for few in (1, 2, 5):
        assert ratio_interval(two[:few], one, paired=False) == Ratio(2.0, 0.0, np.inf)
        assert not ratio_interval(two[:few], one, paired=False).significant


@pytest.mark.parametrize(("low", "high", "significant"), [(0.8, 0.9, True), (0.9, 1.0, False), (1.01, 1.2, True)])
def test_significant_excludes_one(low: float, high: float, significant: bool) -> None:
    assert Ratio((low + high) / 2, low, high).significant is significant


def test_unusable_samples_are_refused() -> None:
    good = np.full(10, 3.0)
    with pytest.raises(InputError, match="paired"):
        ratio_interval(good, good[:9], paired=True)
    for bad in (np.array([]), np.array([1.0, np.nan]), np.array([0.0, 1.0]), np.array([np.inf])):
        with pytest.raises(InputError, match="second"):
            ratio_interval(good, bad, paired=False)
