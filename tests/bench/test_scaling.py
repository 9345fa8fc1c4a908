"""The scaling model against closed forms, SciPy's solver, and noise."""

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


def parts_of(model: ScalingModel) -> tuple[float, float, float]:
    return model.fixed_ms.value, model.linear_ms.value, model.quadratic_ms.value


def measured(medians_ms: Floats, frames: int, noise: float, seed: int, common: float = 0.0) -> list[Floats]:
    """Frames that scatter by `noise`, and by `common` for all sizes alike."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(1, common, frames)
    return [median_ms * shared * rng.normal(1, noise, frames) for median_ms in medians_ms]


@pytest.mark.parametrize(
    "parts",
    [(0.8, 0.0123, 1.9e-5), (0, 0.0123, 1.9e-5), (0.8, 0, 1.9e-5), (0.8, 0.0123, 0), (0, 0, 1e-5), (3, 0, 0)],
)
def test_exact_parts_are_recovered(parts: tuple[float, float, float]) -> None:
    model = fit(SIZES, [np.full(20, ms) for ms in times_ms(*parts)])
    assert parts_of(model) == pytest.approx(parts, rel=1e-9, abs=1e-12)
    assert model.misfit < 1e-9
    assert model.at(1000) == pytest.approx(parts[0] + 1000 * parts[1] + 1e6 * parts[2])
    share = parts[2] * SIZES[-1] ** 2 / times_ms(*parts)[-1]
    found = model.quadratic_share
    assert (found.value, found.low, found.high) == pytest.approx((share, share, share), abs=1e-9)
    assert model.is_quadratic is (parts[2] > 0)


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
    model = fit(SIZES, [np.full(6, ms) for ms in medians_ms])
    assert np.array(parts_of(model)) * scale == pytest.approx(solution, rel=1e-7, abs=1e-12)
    assert model.misfit == pytest.approx(np.abs(design @ solution / medians_ms - 1).max())


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    parts, runs = (0.8, 0.0123, 1.9e-5), 60
    held = np.zeros(4)
    for seed in range(runs):
        model = fit(SIZES, measured(times_ms(*parts), 60, 0.05, seed))
        truths = (*parts, parts[2] * SIZES[-1] ** 2 / times_ms(*parts)[-1])
        estimates = (model.fixed_ms, model.linear_ms, model.quadratic_ms, model.quadratic_share)
        held += [each.low <= truth <= each.high for each, truth in zip(estimates, truths, strict=True)]
    # Of 60 intervals of 95 %, fewer than 51 hold the truth in 1 of 1000 cases (binomial); the bootstrap's are a little
    # too narrow.
    assert (held >= 49).all(), held


def test_common_disturbances_do_not_widen_the_interval() -> None:
    medians_ms = times_ms(0.8, 0.0123, 1.9e-5)
    alike, independent = (fit(SIZES, measured(medians_ms, 60, *noise)) for noise in ((0.002, 1, 0.2), (0.2, 1, 0.0)))
    narrow, wide = (model.quadratic_share.high - model.quadratic_share.low for model in (alike, independent))
    assert narrow < wide / 10


def test_noise_makes_no_quadratic_part() -> None:
    """Least squares may bend a little on noisy linear data; that must not be reported as attention."""
    quadratic = 0
    for seed in range(20):
        model = fit(SIZES, measured(times_ms(0.8, 0.0123, 0), 60, 0.05, seed))
        quadratic += model.is_quadratic
        if not model.is_quadratic:
            assert "no significant quadratic part (less than " in model.describe()
    assert quadratic <= 2


def test_describe() -> None:
    model = fit(SIZES, [np.full(20, ms) for ms in times_ms(0.8, 0.0123, 1.9e-6)])
    share = 1.9e-6 * 484**2 / (0.8 + 0.0123 * 484 + 1.9e-6 * 484**2)
    assert model.describe() == (
        "0.8 ms (0.8 to 0.8) + 12.3 us (12.3 to 12.3) per token + 1.9 ns (1.9 to 1.9) per token²: "
        f"at 484 tokens the quadratic part is {share:.0%} ({share:.0%} to {share:.0%}); largest deviation 0.0%"
    )
    batches = fit((1, 2, 4, 8), [np.full(20, 1500.0 * n) for n in (1, 2, 4, 8)], "frame")
    assert batches.describe().startswith("1500 ms (1500 to 1500) per frame: no significant quadratic part")


def test_large_misfit_is_reported() -> None:
    model = fit(SIZES, [np.full(20, ms) for ms in (1.0, 1.0, 9.0, 9.0, 9.0, 9.0)])
    assert model.misfit > 0.1
    assert "but the measurements deviate from it by up to" in model.describe()
    assert "quadratic" not in model.describe()


@pytest.mark.parametrize("off", [(1, 1.06, 0.94, 1.06, 0.94, 1), (1, 1.05, 1, 0.95, 1, 1)])
def test_outlying_sizes_make_no_quadratic_part(off: tuple[float, ...]) -> None:
    """A curve through sizes that deviate from the line explains nothing, even if the deviation is significant."""
    model = fit(SIZES, [np.full(20, ms) for ms in times_ms(0.8, 0.0123, 0) * off])
    assert model.quadratic_share.low > 0.05
    assert max(model.misfit, model.linear_misfit) < 0.1
    assert not model.is_quadratic
    assert "no significant quadratic part" in model.describe()


def test_too_few_frames_to_separate_the_parts() -> None:
    model = fit(SIZES, [np.full(5, ms) for ms in times_ms(0.8, 0.0123, 1.9e-5)])
    assert not model.is_quadratic
    assert "too few frames to separate the parts" in model.describe()
    assert " to " not in model.describe().split(":")[0]


@pytest.mark.parametrize("sizes", [(), (1,), (1, 2, 4), (1, 1, 2, 2, 4)])
def test_too_few_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=f"cannot be fitted to {len(set(sizes))} sizes") as caught:
        fit(sizes, [np.ones(10)] * len(sizes))
    assert str(MIN_SIZES) in caught.value.why


@pytest.mark.parametrize(
    "spoiled", [np.ones(9), np.ones(0), np.full(10, np.nan), np.full(10, 0.0), np.full(10, -1.0), np.full(10, np.inf)]
)
def test_unusable_samples_are_refused(spoiled: Floats) -> None:
    with pytest.raises(InputError, match="cannot be fitted to these measurements"):
        fit((1, 2, 4, 8), [np.ones(10), np.ones(10), spoiled, np.ones(10)])
    if not spoiled.size:
        with pytest.raises(InputError, match="cannot be fitted to these measurements"):
            fit((1, 2, 4, 8), [spoiled] * 4)


def test_units_of_a_model() -> None:
    assert units_of(PRESETS["vitb16"]) == (22 * 22 + 1, "token")
    assert units_of(replace(PRESETS["vitb16"], size_hw=(64, 96))) == (4 * 6 + 1, "token")
    assert units_of(PRESETS["nano"]) == (7 * 9, "32-pixel cell")
