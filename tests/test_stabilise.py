"""Steadied depth against closed forms: what is smoothed, by how much and how soon, and what passes as it is."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.preprocess import Frame
from mirrordepth_edge.stabilise import StabiliseConfig, Stabiliser

HEIGHT, WIDTH = 96, 128
RNG = np.random.default_rng(0)
Depth = npt.NDArray[np.float32]


def texture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Frame:
    """A picture with something to follow everywhere."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return ((soft - soft.mean()) / soft.std() * 45 + 128).clip(0, 255).astype(np.uint8)


FRAME = texture(1)


def flat(depth_m: float) -> Depth:
    return np.full((HEIGHT, WIDTH), depth_m, np.float32)


@pytest.mark.parametrize("rate_hz", [10.0, 30.0])
def test_a_still_scene_is_a_first_order_filter_of_its_log_depth(rate_hz: float) -> None:
    """Small noise of one factor: y[t] = a y[t-1] + (1 - a) x[t], a = exp(-1 / (rate tau)), in seconds, not frames."""
    config = StabiliseConfig(scale_s=0.3)
    stabiliser = Stabiliser(config)
    keep = math.exp(-1 / (rate_hz * config.scale_s))
    expected = None
    for k, log_d in enumerate(np.log(3.0) + RNG.normal(0, 0.004, 40)):
        out = stabiliser(FRAME, flat(math.exp(log_d)), k / rate_hz)
        expected = log_d if expected is None else keep * expected + (1 - keep) * log_d
        np.testing.assert_allclose(np.log(out), expected, atol=2e-4)


def test_noise_shrinks_as_theory_has_it_and_without_bias() -> None:
    """Of independent noise a first-order filter leaves (1 - a) / (1 + a) of the variance."""
    config = StabiliseConfig()
    stabiliser = Stabiliser(config)
    keep = math.exp(-1 / (30 * config.scale_s))
    noise = RNG.normal(0, 0.005, 600)
    logs = [math.log(float(stabiliser(FRAME, flat(math.exp(x)), k / 30)[40, 60])) for k, x in enumerate(noise)]
    left = np.var(logs[30:]) / np.var(noise[30:])
    assert left == pytest.approx((1 - keep) / (1 + keep), rel=0.25)
    assert abs(np.mean(logs[30:]) - np.mean(noise[30:])) < 3e-4


def test_what_does_not_change_comes_out_as_it_is() -> None:
    stabiliser = Stabiliser()
    depth_m = RNG.uniform(0.5, 9.5, (HEIGHT, WIDTH)).astype(np.float32)
    for k in range(5):
        np.testing.assert_allclose(stabiliser(FRAME, depth_m, k / 30), depth_m, rtol=1e-5)


def test_flicker_of_single_pixels_is_smoothed_too() -> None:
    stabiliser = Stabiliser()
    raw, steady = [], []
    for k in range(60):
        coarse = RNG.normal(0, 0.02, (6, 8)).astype(np.float32)
        depth_m = 3 * np.exp(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)).astype(np.float32)
        raw.append(depth_m)
        steady.append(stabiliser(FRAME, depth_m, k / 30).copy())
    assert np.std(steady[10:], axis=0).mean() < 0.6 * np.std(raw[10:], axis=0).mean()


def test_a_step_that_is_real_passes_at_once() -> None:
    """A part of the picture steps from 3 m to 2 m, more than any flicker: no ghost of it is left."""
    stabiliser = Stabiliser()
    near = flat(3.0)
    near[30:70, 40:90] = 2.0
    for k in range(10):
        stabiliser(FRAME, flat(3.0), k / 30)
    np.testing.assert_allclose(stabiliser(FRAME, near, 10 / 30), near, rtol=0.02)


def test_a_cut_resets() -> None:
    stabiliser = Stabiliser()
    for k in range(10):
        stabiliser(FRAME, flat(3.0), k / 30)
    np.testing.assert_array_equal(stabiliser(texture(2), flat(3.1), 10 / 30), flat(3.1))


def test_smoothing_follows_what_moves() -> None:
    """A panning camera before a wall with a far part: depth moves with the picture, and edges stay where they are."""
    wide, wide_m = texture(3, HEIGHT, 2 * WIDTH), np.full((HEIGHT, 2 * WIDTH), 2.0, np.float32)
    wide_m[:, WIDTH : WIDTH + 40] = 4.0
    stabiliser, errors = Stabiliser(), []
    for k in range(30):
        window = np.s_[:, 2 * k : 2 * k + WIDTH]
        true_m = wide_m[window]
        predicted = (true_m * np.exp(RNG.normal(0, 0.01))).astype(np.float32)
        steady = stabiliser(np.ascontiguousarray(wide[window]), predicted, k / 30)
        errors.append((np.abs(predicted / true_m - 1).mean(), np.abs(steady / true_m - 1).mean()))
    raw, steady_error = np.mean(errors[5:], axis=0)
    assert steady_error < 0.8 * raw


def test_pixels_without_depth_stay_so_and_leave_nothing_behind() -> None:
    stabiliser = Stabiliser()
    holes = flat(3.0)
    holes[10, 10], holes[20, 20], holes[30, 30] = 0.0, np.nan, np.inf
    for k in range(3):
        out = stabiliser(FRAME, holes, k / 30)
        assert out[10, 10] == 0
        assert np.isnan(out[20, 20])
        assert np.isinf(out[30, 30])
    out = stabiliser(FRAME, flat(3.0), 3 / 30)
    np.testing.assert_allclose(out, 3.0, rtol=1e-5)


def test_another_size_reset_and_time_that_stands_still_begin_anew() -> None:
    stabiliser = Stabiliser()
    stabiliser(FRAME, flat(3.0), 0.0)
    np.testing.assert_array_equal(stabiliser(FRAME, flat(3.05), 0.0), flat(3.05))
    assert not np.array_equal(stabiliser(FRAME, flat(3.0), 0.1), flat(3.0))
    stabiliser.reset()
    np.testing.assert_array_equal(stabiliser(FRAME, flat(3.1), 0.2), flat(3.1))
    small = np.full((48, 64), 3.2, np.float32)
    np.testing.assert_array_equal(stabiliser(FRAME, small, 0.3), small)


def test_one_array_is_used_again_and_the_input_is_left_alone() -> None:
    stabiliser, depth_m = Stabiliser(), flat(3.0)
    first = stabiliser(FRAME, depth_m, 0.0)
    assert stabiliser(FRAME, flat(3.1), 0.1) is first
    np.testing.assert_array_equal(depth_m, flat(3.0))


def test_what_cannot_be_used_is_refused() -> None:
    for wrong in ({"pixel_s": 0.0}, {"scale_s": -1.0}, {"flicker": math.inf}, {"misfit_levels": math.nan}):
        with pytest.raises(OptionError):
            StabiliseConfig(**wrong)
    with pytest.raises(InputError):
        Stabiliser()(FRAME[..., 0], flat(1.0), 0.0)  # type: ignore[arg-type]
