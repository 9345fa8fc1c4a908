"""Metrics against a second implementation and closed forms."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict

import numpy as np
import pytest

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation.metrics import (
    Depth,
    Mask,
    depth_metrics,
    eigen_crop,
    garg_crop,
    mean_metrics,
    valid_mask,
)

NYU, KITTI = (1e-3, 10.0), (1e-3, 80.0)


def second_implementation(
    prediction: Depth, truth: Depth, near: float, far: float, crop: Mask | None = None
) -> dict[str, float]:
    """Pixel by pixel in plain Python, with none of the library's code."""
    pairs = []
    inside = [True] * truth.size if crop is None else crop.ravel().tolist()
    for p, g, counts in zip(prediction.ravel().tolist(), truth.ravel().tolist(), inside, strict=True):
        if counts and near < g < far:
            pairs.append((near if math.isnan(p) else min(max(p, near), far), g))
    logs = [math.log(p / g) for p, g in pairs]
    mean = statistics.fmean
    return {
        "abs_rel": mean(abs(p - g) / g for p, g in pairs),
        "sq_rel": mean((p - g) ** 2 / g for p, g in pairs),
        "rmse": math.dist(*zip(*pairs, strict=True)) / math.sqrt(len(pairs)),
        "rmse_log": math.hypot(*logs) / math.sqrt(len(logs)),
        "log10": mean(abs(math.log10(p / g)) for p, g in pairs),
        "silog": 100 * statistics.pstdev(logs),
        **{f"delta{k}": mean(p / g < 1.25**k and g / p < 1.25**k for p, g in pairs) for k in (1, 2, 3)},
    }


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_second_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-1, 12, (23, 31)).astype(np.float32)
    prediction = (truth * rng.lognormal(0, 0.4, truth.shape)).astype(np.float32)
    prediction.flat[:5] = np.nan, np.inf, -np.inf, -3, 0
    truth.flat[:7] = 2, 2, 2, 2, 2, np.nan, np.inf
    ours = asdict(depth_metrics(prediction, truth, limits_m=NYU))
    assert ours == pytest.approx(second_implementation(prediction, truth, *NYU), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_it_in_a_crop_and_to_80_metres(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-5, 100, (36, 120)).astype(np.float32)
    truth[rng.random(truth.shape) < 0.8] = 0  # LiDAR measures few pixels
    prediction = (truth * rng.lognormal(0.1, 0.5, truth.shape)).astype(np.float32)
    crop = garg_crop((36, 120))
    ours = asdict(depth_metrics(prediction, truth, limits_m=KITTI, crop=crop))
    assert ours == pytest.approx(second_implementation(prediction, truth, *KITTI, crop), rel=1e-9)


def test_a_single_pixel_is_a_picture() -> None:
    prediction, truth = np.full((1, 1), 2.5, np.float32), np.full((1, 1), 2, np.float32)
    ours = asdict(depth_metrics(prediction, truth, limits_m=NYU))
    assert ours == pytest.approx(second_implementation(prediction, truth, *NYU), abs=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_a_useless_prediction_has_finite_errors(value: float) -> None:
    truth = np.linspace(1, 9, 20, dtype=np.float32).reshape(4, 5)
    prediction = np.full_like(truth, value)
    ours = asdict(depth_metrics(prediction, truth, limits_m=NYU))
    assert all(math.isfinite(figure) for figure in ours.values())
    assert ours == pytest.approx(second_implementation(prediction, truth, *NYU), rel=1e-9, abs=1e-9)


def test_predictions_outside_the_evaluated_pixels_are_ignored() -> None:
    truth = np.array([[2, 0, 3, np.nan, 4, 10, 1e-3]], np.float32)
    prediction = truth + np.float32(0.5)
    counts = valid_mask(truth, NYU)
    assert counts.tolist() == [[True, False, True, False, True, False, False]]
    worse = np.where(counts, prediction, np.float32(np.nan))
    assert depth_metrics(worse, truth, limits_m=NYU) == depth_metrics(prediction, truth, limits_m=NYU)


def test_neither_input_is_changed() -> None:
    truth, prediction = np.full((2, 3), 2, np.float32), np.full((2, 3), 20, np.float32)
    prediction[0, 0], truth[0, 0] = np.nan, 0
    before = prediction.copy(), truth.copy()
    depth_metrics(prediction, truth, limits_m=NYU, crop=np.ones((2, 3), np.bool_))
    np.testing.assert_array_equal(prediction, before[0])
    np.testing.assert_array_equal(truth, before[1])


def test_sums_do_not_lose_small_errors_in_many_pixels() -> None:
    """A float32 sum over a million pixels would be off in the fifth digit."""
    truth = np.full((1000, 1000), 3, np.float32)
    prediction = np.nextafter(truth, np.float32(9))
    step = float(prediction[0, 0]) - 3.0
    ours = depth_metrics(prediction, truth, limits_m=NYU)
    assert ours.abs_rel == pytest.approx(step / 3, rel=1e-9)
    assert ours.rmse == pytest.approx(step, rel=1e-9)


def test_log_metrics_are_symmetric_in_the_factor() -> None:
    truth = np.full((1, 4), 2, np.float32)
    near, far = (depth_metrics(truth * np.float32(factor), truth, limits_m=NYU) for factor in (0.5, 2))
    for metric in ("rmse_log", "log10", "delta1", "delta3"):
        assert getattr(near, metric) == pytest.approx(getattr(far, metric))
    assert near.abs_rel == pytest.approx(0.5)
    assert far.abs_rel == pytest.approx(1)


def test_closed_form_of_a_constant_factor() -> None:
    truth = np.linspace(1, 4, 12, dtype=np.float32).reshape(3, 4)
    metrics = depth_metrics(truth * 2, truth, limits_m=NYU)
    assert metrics.abs_rel == pytest.approx(1)
    assert metrics.sq_rel == pytest.approx(truth.mean())
    assert metrics.rmse_log == pytest.approx(math.log(2))
    assert metrics.log10 == pytest.approx(math.log10(2))
    assert metrics.silog == pytest.approx(0, abs=1e-4), "a global scale costs no SILog"
    assert (metrics.delta1, metrics.delta2, metrics.delta3) == (0, 0, 0), "2 > 1.25^3"


def test_perfect_prediction_has_no_error() -> None:
    truth = np.full((2, 2), 3, np.float32)
    metrics = depth_metrics(truth, truth, limits_m=NYU)
    assert asdict(metrics) == dict.fromkeys(asdict(metrics), 0.0) | {"delta1": 1, "delta2": 1, "delta3": 1}


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("too_far", [True, False])
def test_a_ratio_of_exactly_1_25_to_a_power_does_not_count(power: int, too_far: bool) -> None:
    """5/4, 25/16 and 125/64 are exact in binary; one float below, the ratio counts."""
    high, low = np.float32(5**power), np.float32(4**power)
    for top, within in ((high, power + 1), (np.nextafter(high, low), power)):
        truth, prediction = (low, top) if too_far else (top, low)
        metrics = depth_metrics(
            np.full((1, 3), prediction, np.float32), np.full((1, 3), truth, np.float32), limits_m=(1e-3, 1000.0)
        )
        deltas = (metrics.delta1, metrics.delta2, metrics.delta3)
        assert deltas == tuple(float(k >= within) for k in (1, 2, 3))


def test_limits_are_exclusive_and_nan_is_no_depth() -> None:
    inside = [np.nextafter(np.float32(0.5), np.float32(1)), 2, np.nextafter(np.float32(8), np.float32(1))]
    outside = [0.5, 8, np.nan, 0, -1, np.inf, -np.inf]
    truth = np.array([inside + outside], np.float32)
    assert valid_mask(truth, (0.5, 8.0)).tolist() == [[True] * 3 + [False] * 7]


@pytest.mark.parametrize(
    ("prediction", "counted_as"), [(np.nan, 1), (np.inf, 9), (-np.inf, 1), (0, 1), (-5, 1), (20, 9), (1, 1), (9, 9)]
)
def test_impossible_predictions_are_clamped(prediction: float, counted_as: float) -> None:
    truth = np.full((1, 1), 3, np.float32)
    metrics = depth_metrics(np.full((1, 1), prediction, np.float32), truth, limits_m=(1.0, 9.0))
    assert metrics.rmse == pytest.approx(abs(counted_as - 3))


def test_no_valid_pixel_and_other_shape_are_refused() -> None:
    with pytest.raises(InputError, match="No pixel has a measured depth"):
        depth_metrics(np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32), limits_m=NYU)
    with pytest.raises(InputError, match="differ in size"):
        depth_metrics(np.ones((2, 2), np.float32), np.ones((2, 3), np.float32), limits_m=NYU)


def test_eigen_crop_is_the_published_window() -> None:
    crop = eigen_crop((480, 640))
    rows, columns = np.nonzero(crop)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    assert crop.sum() == (471 - 45) * (601 - 41)
    with pytest.raises(InputError, match="480x640"):
        eigen_crop((640, 480))


def test_only_the_crop_counts() -> None:
    truth, prediction = np.full((480, 640), 2, np.float32), np.full((480, 640), 9, np.float32)
    prediction[45:471, 41:601] = 2
    assert depth_metrics(prediction, truth, limits_m=NYU, crop=eigen_crop((480, 640))).abs_rel == 0
    assert depth_metrics(prediction, truth, limits_m=NYU).abs_rel > 0


def test_a_crop_without_depth_is_refused() -> None:
    truth = np.full((2, 2), 3, np.float32)
    truth[0] = 0
    crop = np.array([[True, True], [False, False]])
    with pytest.raises(InputError, match="No pixel has a measured depth"):
        depth_metrics(truth, truth, limits_m=NYU, crop=crop)


def test_mean_counts_images_not_pixels() -> None:
    good, bad = np.full((10, 10), 2, np.float32), np.full((1, 1), 2, np.float32)
    rows = [depth_metrics(good, good, limits_m=NYU), depth_metrics(bad * 2, bad, limits_m=NYU)]
    assert mean_metrics(rows).abs_rel == pytest.approx(0.5)
