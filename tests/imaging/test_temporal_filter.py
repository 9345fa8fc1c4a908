"""The temporal filter against closed forms, and on scenes with known depth."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.evaluation.edges import boundary_f1
from mirrordepth_edge.evaluation.metrics import Depth
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.imaging.temporal_filter import MIN_SAMPLES, SAMPLE_STEP_PX, TemporalFilter, TemporalFilterConfig

SIZE_HW = (160, 208)  # large enough that flow is computed at half of it
REGION = np.s_[40:100, 60:140]  # 18 % of the image: the median is that of the rest
CONFIG = TemporalFilterConfig()


def texture(seed: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> Frame:
    """Smooth random blobs, which optical flow can follow."""
    noise = np.random.default_rng(seed).normal(0, 1, (*size_hw, 3))
    smooth = gaussian_filter(noise, (2, 2, 0))
    return (128 + 45 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)


def depth_map(seed: int = 0) -> Depth:
    """A wavy wall, 2 to 4 m."""
    waves = gaussian_filter(np.random.default_rng(seed).normal(0, 1, SIZE_HW), 12)
    return np.interp(waves, (waves.min(), waves.max()), (2, 4)).astype(np.float32)


def run(frames: Sequence[Frame], depths_m: Sequence[Depth], hz: float = 30.0) -> list[Depth]:
    temporal_filter = TemporalFilter()
    return [
        temporal_filter(frame, depth_m, index / hz).copy()
        for index, (frame, depth_m) in enumerate(zip(frames, depths_m, strict=True))
    ]


def log_ratio(depth_m: Depth, other_m: Depth) -> npt.NDArray[np.float64]:
    return np.log(depth_m.astype(np.float64)) - np.log(other_m.astype(np.float64))


# What passes unchanged, and noise


def test_constant_depth_passes_unchanged() -> None:
    frame, depth_m = texture(), depth_map()
    for result in run([frame] * 5, [depth_m] * 5):
        np.testing.assert_allclose(result, depth_m, rtol=1e-6)


@pytest.mark.parametrize("hz", [12.5, 60.0])
def test_white_noise_is_reduced_as_by_a_first_order_filter(hz: float) -> None:
    """Variance (1 - k) / (1 + k) with k = exp(-period / time constant), and no bias."""
    rng, sigma, truth_m = np.random.default_rng(1), 0.004, depth_map()
    count = round(1.6 * hz)  # eight time constants: e^-8 of the first frame is left
    noisy = [(truth_m * np.exp(rng.normal(0, sigma, SIZE_HW))).astype(np.float32) for _ in range(count)]
    left = log_ratio(run([texture()] * count, noisy, hz)[-1], truth_m)
    k = math.exp(-1 / hz / CONFIG.pixel_s)
    assert left.std() / sigma == pytest.approx(math.sqrt((1 - k) / (1 + k)), rel=0.03)
    assert abs(left.mean()) < 5 * sigma / math.sqrt(left.size)


@pytest.mark.parametrize("hz", [12.5, 60.0])
def test_scale_flicker_is_reduced_as_by_a_first_order_filter(hz: float) -> None:
    rng, sigma, truth_m = np.random.default_rng(2), 0.01, depth_map()
    scales = rng.normal(0, sigma, 400)
    results = run([texture()] * 400, [(truth_m * np.exp(scale)).astype(np.float32) for scale in scales], hz)
    left = np.array([log_ratio(result, truth_m).mean() for result in results])
    k, expected = math.exp(-1 / hz / CONFIG.scale_s), [scales[0]]
    for scale in scales[1:]:
        change = scale - expected[-1]
        expected.append(scale - k * (1 - (change / CONFIG.flicker) ** 2) ** 2 * change)
    np.testing.assert_allclose(left, expected, atol=1e-5)
    assert left[50:].std() / sigma == pytest.approx(math.sqrt((1 - k) / (1 + k)), rel=0.2), "estimated from few frames"


def test_missing_depth_passes_and_does_not_spread() -> None:
    depth_m = depth_map()
    holed = depth_m.copy()
    holed[40:60, 50:70], holed[40:60, 80:100], holed[100:120, 50:70], holed[0, 0] = 0, np.nan, np.inf, -1
    with np.errstate(all="raise"):
        whole, first, second, filled = run([texture()] * 4, [depth_m, holed, holed, depth_m])
    np.testing.assert_allclose(whole, depth_m, rtol=1e-6)
    for result in (first, second):
        np.testing.assert_allclose(result, holed, rtol=1e-6)
    np.testing.assert_allclose(filled, depth_m, rtol=1e-6)
    np.testing.assert_array_equal(TemporalFilter()(texture(), np.zeros(SIZE_HW, np.float32), 0.0), 0)


# Steps and cuts


def step_response(log_step: float, where: object, times_s: Sequence[float]) -> npt.NDArray[np.float64]:
    """The remaining share of a step in depth, at times after the last frame before it."""
    temporal_filter, frame, before_m = TemporalFilter(), texture(), depth_map()
    after_m = before_m.copy()
    after_m[where] *= np.float32(math.exp(log_step))  # type: ignore[index]
    temporal_filter(frame, before_m, 0.0)
    remaining = [log_ratio(temporal_filter(frame, after_m, time_s), after_m)[REGION].mean() for time_s in times_s]
    return np.array(remaining) / -log_step


STEPS = [("pixels", REGION, CONFIG.pixel_s), ("scale", np.s_[:], CONFIG.scale_s)]


@pytest.mark.parametrize(("where", "constant_s"), [step[1:] for step in STEPS], ids=[step[0] for step in STEPS])
@pytest.mark.parametrize("sign", [1, -1])
def test_small_steps_decay_with_the_time_constant_at_any_rate(where: object, constant_s: float, sign: int) -> None:
    for times_s in (np.arange(1, 13) / 60, np.arange(1, 7) / 30, [0.01, 0.09, 0.1, 0.19, 0.2]):
        left = step_response(sign * 0.005, where, [float(time_s) for time_s in times_s])
        np.testing.assert_allclose(left, np.exp(-np.asarray(times_s) / constant_s), rtol=0.03)


@pytest.mark.parametrize(("where", "constant_s"), [step[1:] for step in STEPS], ids=[step[0] for step in STEPS])
def test_larger_steps_decay_faster_by_the_weight(where: object, constant_s: float) -> None:
    """Against the scalar recursion in float64: of the rest x, a share (1 - (x / limit)^2)^2 is kept."""
    times_s, k = np.arange(1, 31) / 30, math.exp(-1 / 30 / constant_s)
    slower: npt.NDArray[np.float64] = np.full(30, 1.0)
    for log_step in (0.02, 0.05, 0.08, 0.12, 0.16, 0.19):
        left, x = step_response(log_step, where, times_s.tolist()), log_step
        for share in left:
            x *= k * (1 - (x / CONFIG.flicker) ** 2) ** 2
            assert share == pytest.approx(x / log_step, abs=0.005)
        assert (left <= slower + 1e-4).all()
        assert left[times_s > math.log(10) * constant_s][0] < 0.1, "90 % has passed after 2.3 time constants"
        slower = left


@pytest.mark.parametrize("log_step", [0.21, -0.21, 0.7, -0.7])
@pytest.mark.parametrize("where", [REGION, np.s_[:]], ids=["pixels", "scale"])
def test_large_steps_pass_at_once(log_step: float, where: object) -> None:
    assert abs(step_response(log_step, where, [1 / 30])[0]) < 1e-5


def test_a_cut_passes_at_once() -> None:
    """A depth change of 3 % would be flicker, but the image shows another scene."""
    depth_m = depth_map()
    after_m = (depth_m * np.float32(1.03)).astype(np.float32)
    *_, same = run([texture(0)] * 3, [depth_m, depth_m, after_m])
    assert log_ratio(same, after_m).mean() == pytest.approx(-math.exp(-1 / 30 / CONFIG.scale_s) * 0.03, rel=0.1)
    *_, cut = run([texture(0), texture(0), texture(1)], [depth_m, depth_m, after_m])
    np.testing.assert_array_equal(cut, after_m)


def test_another_size_a_reset_and_time_going_back_start_a_new_video() -> None:
    frame, depth_m = texture(), depth_map()
    after_m = depth_m * np.float32(1.05)
    other_m = after_m[:64, :80].copy()
    temporal_filter = TemporalFilter()
    for time_s in (1.0, 0.5, 0.5):
        temporal_filter(frame, depth_m, 0.4)
        temporal_filter(frame, depth_m, 0.5)
        smoothed = temporal_filter(frame, after_m, time_s)
        assert np.array_equal(smoothed, after_m) == (time_s <= 0.5)
        temporal_filter.reset()
        np.testing.assert_array_equal(temporal_filter(frame, depth_m, 9.0), depth_m)
        np.testing.assert_array_equal(temporal_filter(frame, other_m, 9.1), other_m)
        np.testing.assert_array_equal(temporal_filter(frame, after_m, 9.2), after_m)


# Motion


def moving_scene(
    count: int, pan_px: float = 1.0, foreground_px: float = 5.0, near_m: float = 1.5
) -> Iterator[tuple[Frame, Depth]]:
    """A textured slanted wall that pans, and before it a textured rectangle that crosses, with exact depth."""
    rng, rows = np.random.default_rng(3), np.arange(SIZE_HW[0])[:, None]
    wall, card = texture(4, (SIZE_HW[0] + 8, 4 * SIZE_HW[1])), texture(5, (70, 60))
    for index in range(count):
        shift = np.array([[1, 0, 250 + pan_px * index], [0, 1, 4]], np.float64)
        frame = cv2.warpAffine(wall, shift, SIZE_HW[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        depth_m = np.broadcast_to(4 - 0.01 * rows, SIZE_HW).copy()
        x = 10 + int(foreground_px * index) % (SIZE_HW[1] - 80)
        frame[50:120, x : x + 60], depth_m[50:120, x : x + 60] = card, near_m
        grainy = frame + rng.normal(0, 2, frame.shape)
        yield grainy.clip(0, 255).astype(np.uint8), depth_m.astype(np.float32)


def flickering(depth_m: Depth, rng: np.random.Generator) -> Depth:
    """Add what a network adds: a random scale and smooth random errors in each frame."""
    errors = cv2.resize(rng.normal(0, 1, (5, 7)), SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC)
    return (depth_m * np.exp(0.02 * rng.normal() + 0.02 * errors / errors.std())).astype(np.float32)


@pytest.mark.parametrize(("pan_px", "foreground_px"), [(0, 0), (0.4, 5), (1, 5), (-5, 9), (0, 15)])
def test_flicker_is_reduced_and_edges_stay_sharp_in_motion(pan_px: float, foreground_px: float) -> None:
    scene, rng = list(moving_scene(30, pan_px, foreground_px)), np.random.default_rng(6)
    raw = [flickering(truth_m, rng) for _, truth_m in scene]
    smooth = run([frame for frame, _ in scene], raw)
    valid = np.ones(SIZE_HW, np.bool_)
    relative_errors, edges = [], []
    for (_, truth_m), raw_m, smooth_m in list(zip(scene, raw, smooth, strict=True))[10:]:
        off = [abs(depth_m - truth_m) / truth_m for depth_m in (raw_m, smooth_m)]
        relative_errors.append([error.mean() for error in off])
        assert off[1].max() < 0.2, "no ghost of the rectangle, which is more than 40 % nearer than the wall"
        boundary = boundary_f1(smooth_m, truth_m, valid)
        assert boundary is not None
        edges.append(boundary.f1)
    of_raw, of_smooth = np.mean(relative_errors, axis=0)
    assert of_smooth < 0.65 * of_raw
    assert np.mean(edges) > 0.995


def test_flow_preserves_the_gain_in_a_pan() -> None:
    """The gain on a static scene is the upper bound."""
    gains = []
    for pan_px in (0, 6):
        scene, rng = list(moving_scene(24, pan_px, 0)), np.random.default_rng(7)
        depths = [flickering(truth_m, rng) for _, truth_m in scene]
        smooth = run([frame for frame, _ in scene], depths)
        off = [
            np.mean([abs(log_ratio(depth_m, truth_m)).mean() for depth_m, (_, truth_m) in pairs[10:]])
            for pairs in (list(zip(maps_m, scene, strict=True)) for maps_m in (depths, smooth))
        ]
        gains.append(off[0] / off[1])
    still, panned = gains
    assert panned > 1 + 0.5 * (still - 1)


@pytest.mark.parametrize(("approach", "lag"), [(0.1, 0.01), (0.33, 0.03)])
def test_approaching_a_wall_lags_by_less_than_rate_times_time_constant(approach: float, lag: float) -> None:
    """A first-order filter lags behind a ramp by its rate times its time constant."""
    wall, depths, frames = texture(8), [], []
    middle = (SIZE_HW[1] / 2, SIZE_HW[0] / 2)
    for index in range(40):
        zoom = cv2.getRotationMatrix2D(middle, 0, math.exp(approach * index / 30))
        frames.append(cv2.warpAffine(wall, zoom, SIZE_HW[::-1], borderMode=cv2.BORDER_REFLECT))
        depths.append(np.full(SIZE_HW, 4 * math.exp(-approach * index / 30), np.float32))
    behind = log_ratio(run(frames, depths)[-1], depths[-1])
    assert 0 < np.median(behind) < approach * CONFIG.scale_s
    assert behind.max() < lag + 0.005


# Cost and input


def test_the_result_is_reused_and_no_image_sized_array_is_allocated() -> None:
    scene = list(moving_scene(8))
    before = [(frame.copy(), depth_m.copy()) for frame, depth_m in scene]
    temporal_filter = TemporalFilter()
    first = temporal_filter(*scene[0], 0.0)
    for index, (frame, depth_m) in enumerate(scene[1:4], start=1):
        assert temporal_filter(frame, depth_m, index / 30) is first
    tracemalloc.start()
    try:
        for index, (frame, depth_m) in enumerate(scene[4:], start=4):
            temporal_filter(frame, depth_m, index / 30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < first.size, "bytes: a quarter of a depth map"
    for given, copies in zip(scene, before, strict=True):
        for array, copy in zip(given, copies, strict=True):
            np.testing.assert_array_equal(array, copy, "inputs must not be modified")


def test_frames_may_be_larger_than_the_depth() -> None:
    scene, rng = list(moving_scene(20)), np.random.default_rng(9)
    depths = [flickering(truth_m, rng) for _, truth_m in scene]
    small = run([frame for frame, _ in scene], depths)
    large = run([cv2.resize(frame, (640, 480), interpolation=cv2.INTER_CUBIC) for frame, _ in scene], depths)
    difference = abs(log_ratio(small[-1], large[-1]))
    assert difference.mean() < 0.1 * abs(log_ratio(depths[-1], small[-1])).mean()


@pytest.mark.parametrize("size_hw", [(8, 10), (10, 160), (17, 33), (224, 288), (90, 400), (700, 40)])
def test_depth_of_any_size(size_hw: tuple[int, int]) -> None:
    frame, depth_m = texture(), np.full(size_hw, 2, np.float32)
    temporal_filter = TemporalFilter()
    temporal_filter(frame, depth_m, 0.0)
    result = temporal_filter(frame, depth_m * np.float32(1.02), 0.1)
    assert result.shape == size_hw
    # With too few pixels for a median, each pixel is filtered by itself.
    few = -(-size_hw[0] // SAMPLE_STEP_PX) * -(-size_hw[1] // SAMPLE_STEP_PX) < MIN_SAMPLES
    share = math.exp(-0.1 / (CONFIG.pixel_s if few else CONFIG.scale_s))
    np.testing.assert_allclose(result, 2 * 1.02 ** (1 - share), rtol=1e-3)


def test_invalid_input_is_rejected() -> None:
    with pytest.raises(InputError, match="uint8 RGB"):
        TemporalFilter()(texture()[..., 0], depth_map(), 0.0)
    for wrong in ({"pixel_s": 0.0}, {"scale_s": -1.0}, {"flicker": math.nan}, {"misfit_levels": math.inf}):
        with pytest.raises(OptionError, match="greater than 0"):
            TemporalFilterConfig(**wrong)
