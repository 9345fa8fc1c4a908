"""The law of latency against closed forms, SciPy's solver, and noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.bench.scaling import MIN_SIZES, ScalingModel, fit, units_of
from mirrordepth_edge.config import PRESETS
from mirrordepth_edge.errors import InputError, OptionError

SIZES = (20, 35, 63, 108, 192, 484)
Floats = npt.NDArray[np.float64]


def times_ms(fixed_ms: float, linear_ms: float, quadratic_ms: float) -> Floats:
    n = np.array(SIZES, np.float64)
    return fixed_ms + linear_ms * n + quadratic_ms * n**2


def parts_of(law: ScalingModel) -> tuple[float, float, float]:
    return law.fixed_ms.value, law.linear_ms.value, law.quadratic_ms.value


def measured(medians_ms: Floats, frames: int, noise: float, seed: int, common: float = 0.0) -> list[Floats]:
    """Frames that scatter by `noise`, and by `common` for all sizes alike."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(1, common, frames)
    return [median_ms * shared * rng.normal(1, noise, frames) for median_ms in medians_ms]


@pytest.mark.parametrize(
    "parts",
    [(0.8, 0.0123, 1.9e-5), (0, 0.0123, 1.9e-5), (0.8, 0, 1.9e-5), (0.8, 0.0123, 0), (0, 0, 1e-5), (3, 0, 0)],
)
def test_what_follows_the_law_is_found(parts: tuple[float, float, float]) -> None:
    law = fit(SIZES, [np.full(20, each) for each in times_ms(*parts)])
    assert parts_of(law) == pytest.approx(parts, rel=1e-9, abs=1e-12)
    assert law.misfit < 1e-9
    assert law.at(1000) == pytest.approx(parts[0] + 1000 * parts[1] + 1e6 * parts[2])
    share = parts[2] * SIZES[-1] ** 2 / times_ms(*parts)[-1]
    found = law.quadratic_share
    assert (found.value, found.low, found.high) == pytest.approx((share, share, share), abs=1e-9)
    assert law.is_quadratic is (parts[2] > 0)


def test_the_order_of_the_sizes_does_not_matter() -> None:
    samples = measured(times_ms(0.8, 0.0123, 1.9e-5), 50, 0.02, seed=0)
    assert fit(SIZES[::-1], samples[::-1]) == fit(SIZES, samples)


@pytest.mark.parametrize("seed", range(20))
def test_the_parts_are_those_of_scipy(seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="the oracle is SciPy")
    rng = np.random.default_rng(seed)
    # Noise so strong that parts become zero in most of the seeds.
    medians_ms = times_ms(*rng.uniform(0, (2, 0.02, 2e-5))) * rng.uniform(0.6, 1.4, len(SIZES))
    n = np.array(SIZES, np.float64)
    scale = np.array([1, n[-1], n[-1] ** 2])
    design = np.stack([np.ones_like(n), n, n**2], axis=1) / scale
    solution, _ = optimize.nnls(design / medians_ms[:, None], np.ones(len(n)))
    law = fit(SIZES, [np.full(6, each) for each in medians_ms])
    assert np.array(parts_of(law)) * scale == pytest.approx(solution, rel=1e-7, abs=1e-12)
    assert law.misfit == pytest.approx(np.abs(design @ solution / medians_ms - 1).max())


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    parts, runs = (0.8, 0.0123, 1.9e-5), 60
    held = np.zeros(4)
    for seed in range(runs):
        law = fit(SIZES, measured(times_ms(*parts), 60, 0.05, seed))
        truths = (*parts, parts[2] * SIZES[-1] ** 2 / times_ms(*parts)[-1])
        estimates = (law.fixed_ms, law.linear_ms, law.quadratic_ms, law.quadratic_share)
        held += [each.low <= truth <= each.high for each, truth in zip(estimates, truths, strict=True)]
    # Of 60 intervals of 95 %, fewer than 51 hold the truth in 1 of 1000 cases (binomial); the bootstrap's are a little
    # too narrow.
    assert (held >= 49).all(), held


def test_what_slows_all_sizes_alike_does_not_blur_the_shape() -> None:
    medians_ms = times_ms(0.8, 0.0123, 1.9e-5)
    alike, each_alone = (fit(SIZES, measured(medians_ms, 60, *noise)) for noise in ((0.002, 1, 0.2), (0.2, 1, 0.0)))
    narrow, wide = (law.quadratic_share.high - law.quadratic_share.low for law in (alike, each_alone))
    assert narrow < wide / 10


def test_a_quadratic_part_that_noise_made_is_none() -> None:
    """In any linear measurement the least squares may bend a little; chance alone must not be told as attention."""
    told = 0
    for seed in range(20):
        law = fit(SIZES, measured(times_ms(0.8, 0.0123, 0), 60, 0.05, seed))
        told += law.is_quadratic
        if not law.is_quadratic:
            assert "a quadratic part cannot be told from zero (less than " in law.describe()
    assert told <= 2


def test_a_describe_scaling() -> None:
    law = fit(SIZES, [np.full(20, each) for each in times_ms(0.8, 0.0123, 1.9e-6)])
    share = 1.9e-6 * 484**2 / (0.8 + 0.0123 * 484 + 1.9e-6 * 484**2)
    assert law.describe() == (
        "0.8 ms (0.8 to 0.8) + 12.3 us (12.3 to 12.3) a token + 1.9 ns (1.9 to 1.9) a token²: "
        f"at 484 tokens the quadratic part is {share:.0%} ({share:.0%} to {share:.0%}); the law is off by up to 0.0%"
    )
    batches = fit((1, 2, 4, 8), [np.full(20, 1500.0 * n) for n in (1, 2, 4, 8)], "frame")
    assert batches.describe().startswith("1500 ms (1500 to 1500) a frame: a quadratic part cannot be told from zero")


def test_sizes_that_follow_no_law_are_told() -> None:
    law = fit(SIZES, [np.full(20, each) for each in (1.0, 1.0, 9.0, 9.0, 9.0, 9.0)])
    assert law.misfit > 0.1
    assert "which these sizes do not follow: it is off by up to" in law.describe()
    assert "quadratic" not in law.describe()


@pytest.mark.parametrize("off", [(1, 1.06, 0.94, 1.06, 0.94, 1), (1, 1.05, 1, 0.95, 1, 1)])
def test_sizes_that_are_off_alone_make_no_quadratic_part(off: tuple[float, ...]) -> None:
    """However few frames it takes to see that they are off: a bend through them explains nothing."""
    law = fit(SIZES, [np.full(20, each) for each in times_ms(0.8, 0.0123, 0) * off])
    assert law.quadratic_share.low > 0.05
    assert max(law.misfit, law.linear_misfit) < 0.1
    assert not law.is_quadratic
    assert "cannot be told from zero" in law.describe()


def test_few_frames_tell_no_parts_apart() -> None:
    law = fit(SIZES, [np.full(5, each) for each in times_ms(0.8, 0.0123, 1.9e-5)])
    assert not law.is_quadratic
    assert "too few frames to tell the parts apart" in law.describe()
    assert " to " not in law.describe().split(":")[0]


@pytest.mark.parametrize("sizes", [(), (1,), (1, 2, 4), (1, 1, 2, 2, 4)])
def test_too_few_sizes_make_no_law(sizes: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=f"no law of {len(set(sizes))} sizes") as caught:
        fit(sizes, [np.ones(10)] * len(sizes))
    assert str(MIN_SIZES) in caught.value.why


@pytest.mark.parametrize(
    "spoiled", [np.ones(9), np.ones(0), np.full(10, np.nan), np.full(10, 0.0), np.full(10, -1.0), np.full(10, np.inf)]
)
def test_measurements_that_make_no_law(spoiled: Floats) -> None:
    with pytest.raises(InputError, match="make no law"):
        fit((1, 2, 4, 8), [np.ones(10), np.ones(10), spoiled, np.ones(10)])
    if not spoiled.size:
        with pytest.raises(InputError, match="make no law"):
            fit((1, 2, 4, 8), [spoiled] * 4)


def test_what_is_counted() -> None:
    assert units_of(PRESETS["vitb16"]) == (22 * 22 + 1, "token")
    assert units_of(replace(PRESETS["vitb16"], size_hw=(64, 96))) == (4 * 6 + 1, "token")
    assert units_of(PRESETS["nano"]) == (7 * 9, "32-pixel cell")
