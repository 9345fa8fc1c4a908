"""Evaluation against closed forms: predictors with known errors."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation.consistency import CameraPath
from mirrordepth_edge.evaluation.evaluate import (
    DEPTH_BINS,
    Align,
    MeanBoundaryF1,
    Protocol,
    align,
    evaluate,
    predict_by_protocol,
)
from mirrordepth_edge.evaluation.metrics import Depth, garg_crop
from mirrordepth_edge.imaging.preprocess import Frame

PROTOCOL = Protocol(limits_m=(1e-3, 10.0))


def sample(seed: int, shape: tuple[int, int] = (48, 64)) -> Sample:
    """A picture whose red channel is its depth in decimetres, left to right unlike right to left."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(5, 95, (*shape, 3), dtype=np.uint8)
    return Sample(str(seed), frame, frame[..., 0].astype(np.float32) / 10)


def right(frame: Frame) -> Depth:
    return frame[..., 0].astype(np.float32) / 10


def test_a_perfect_predictor() -> None:
    mean = evaluate(right, [sample(0), sample(1)], PROTOCOL).mean
    assert (mean.abs_rel, mean.rmse, mean.delta1) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.3])
def test_wrong_scale_is_removed_by_alignment_only(factor: float) -> None:
    def scaled(frame: Frame) -> Depth:
        return right(frame) * np.float32(factor)

    far = replace(PROTOCOL, limits_m=(1e-3, 20.0))
    assert evaluate(scaled, [sample(0)], far).mean.abs_rel == pytest.approx(abs(factor - 1), rel=1e-5)
    for how in ("median", "lsq"):
        aligned = evaluate(scaled, [sample(0)], replace(far, align=how)).mean  # type: ignore[arg-type]
        assert aligned.abs_rel == pytest.approx(0, abs=1e-5)


def test_a_shift_is_only_removed_by_least_squares() -> None:
    def shifted(frame: Frame) -> Depth:
        return 0.5 * right(frame) + np.float32(1)

    assert evaluate(shifted, [sample(0)], replace(PROTOCOL, align="median")).mean.abs_rel > 0.1
    assert evaluate(shifted, [sample(0)], replace(PROTOCOL, align="lsq")).mean.abs_rel < 1e-5


def test_flip_averaging_uses_both_and_mirrors_back() -> None:
    seen: list[Frame] = []

    def remembers(frame: Frame) -> Depth:
        seen.append(frame.copy())
        return right(frame)

    one = sample(0)
    assert evaluate(remembers, [one], replace(PROTOCOL, flip=True)).mean.abs_rel < 1e-6
    np.testing.assert_array_equal(seen[0], one.frame)
    np.testing.assert_array_equal(seen[1], one.frame[:, ::-1])


def test_each_picture_counts_once() -> None:
    """A picture with few valid pixels weighs as much as a full one."""
    full, sparse = sample(0), sample(1)
    sparse.depth_m[2:] = 0

    def wrong_on_sparse(frame: Frame) -> Depth:
        return right(frame) * np.float32(1.2 if np.array_equal(frame, sparse.frame) else 1.0)

    result = evaluate(wrong_on_sparse, [full, sparse], replace(PROTOCOL, limits_m=(1e-3, 20.0)))
    assert result.mean.abs_rel == pytest.approx(0.1, rel=1e-5)
    assert [picture.valid_pixels for picture in result.pictures] == [48 * 64, 2 * 64]


def test_nothing_to_evaluate() -> None:
    with pytest.raises(InputError, match="nothing to average"):
        evaluate(right, [], PROTOCOL)


def test_garg_crop_is_the_published_window() -> None:
    mask = garg_crop((352, 1216))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert (rows[0], rows[-1] + 1) == (int(0.40810811 * 352), int(0.99189189 * 352)) == (143, 349)
    assert (columns[0], columns[-1] + 1) == (int(0.03594771 * 1216), int(0.96405229 * 1216)) == (43, 1172)
    assert mask.sum() == (349 - 143) * (1172 - 43)


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        (PROTOCOL, "no crop, 0.001 to 10 m, no flip averaging; metric"),
        (replace(PROTOCOL, crop="eigen", flip=True), "Eigen crop, 0.001 to 10 m, flip averaging; metric"),
        (replace(PROTOCOL, align="median"), "NOT METRIC"),
    ],
)
def test_a_protocol_says_what_it_does(protocol: Protocol, words: str) -> None:
    assert words in str(protocol)


# By true depth


def test_errors_by_true_depth_add_up_to_the_errors() -> None:
    """Weighted by pixels, the ranges add up to AbsRel over all pixels."""
    rng = np.random.default_rng(0)
    pictures = [sample(seed) for seed in range(3)]
    pictures[1].depth_m[5:] = 0
    noise = {one.name: rng.lognormal(0, 0.4, one.depth_m.shape).astype(np.float32) for one in pictures}
    by_frame = {one.frame.tobytes(): noise[one.name] for one in pictures}

    def noisy(frame: Frame) -> Depth:
        depth_m = right(frame) * by_frame[frame.tobytes()]
        depth_m[0, :4] = np.nan, np.inf, -np.inf, 0  # clamped, in every range as in every metric
        return depth_m

    result = evaluate(noisy, pictures, PROTOCOL)
    assert len(result.ranges) == DEPTH_BINS
    for picture, one in zip(result.pictures, pictures, strict=True):
        assert sum(part.pixels for part in picture.ranges) == picture.valid_pixels == (one.depth_m > 0).sum()
        total = sum(part.abs_rel_sum for part in picture.ranges)
        assert total / picture.valid_pixels == pytest.approx(picture.metrics.abs_rel, rel=1e-6)

    def clamped(depth_m: Depth) -> Depth:
        return np.nan_to_num(depth_m, nan=1e-3, posinf=10, neginf=1e-3).clip(1e-3, 10)

    truth = np.concatenate([one.depth_m[one.depth_m > 0] for one in pictures]).astype(np.float64)
    predicted = np.concatenate([clamped(noisy(one.frame))[one.depth_m > 0] for one in pictures])
    for part in result.ranges:
        inside = (truth >= part.near_m) & (truth < part.far_m)
        relative = (predicted[inside] - truth[inside]) / truth[inside]
        assert part.pixels == inside.sum()
        assert part.abs_rel == pytest.approx(np.abs(relative).mean(), rel=1e-6)
        assert part.bias == pytest.approx(relative.mean(), rel=1e-5)


def test_ranges_share_their_borders_and_reach_to_the_far_limit() -> None:
    depth_m = np.array([[0.5, 1.0, 1.99, 2.0, 9.99, 0.0]], np.float32)
    one = Sample("borders", np.zeros((1, 6, 3), np.uint8), depth_m)
    ranges = evaluate(lambda _: depth_m * np.float32(1.5), [one], replace(PROTOCOL, limits_m=(1e-3, 20.0))).ranges
    assert [(part.near_m, part.far_m) for part in ranges] == [(2.0 * k, 2.0 * k + 2) for k in range(10)]
    assert [part.pixels for part in ranges] == [3, 1, 0, 0, 1, 0, 0, 0, 0, 0]
    assert ranges[0].bias == pytest.approx(0.5)
    assert (ranges[2].abs_rel, ranges[2].bias) == (None, None)


# Alignment


@pytest.mark.parametrize("how", ["median", "lsq"])
def test_alignment_leaves_out_what_is_not_finite(how: Align) -> None:
    truth_m = np.linspace(1, 9, 40, dtype=np.float32).reshape(5, 8)
    depth_m = truth_m * np.float32(0.5)
    depth_m[0, :3] = np.nan, np.inf, -np.inf
    fitted = align(depth_m, truth_m, np.ones_like(truth_m, np.bool_), how)
    np.testing.assert_allclose(fitted[1:], truth_m[1:], rtol=0.1)
    assert np.isnan(fitted[0, 0])
    nothing = np.full_like(truth_m, np.nan)
    np.testing.assert_array_equal(align(nothing, truth_m, truth_m > 0, how), nothing)


def test_least_squares_agree_with_numpys() -> None:
    rng = np.random.default_rng(0)
    truth_m = rng.uniform(1, 9, (20, 30)).astype(np.float32)
    depth_m = (0.3 * truth_m + rng.normal(2, 0.2, truth_m.shape)).astype(np.float32)
    valid = rng.random(truth_m.shape) < 0.5
    scale, shift = np.polyfit(depth_m[valid].astype(np.float64), truth_m[valid].astype(np.float64), 1)
    np.testing.assert_allclose(align(depth_m, truth_m, valid, "lsq"), scale * depth_m + shift, rtol=1e-5)
    flat = align(np.full_like(truth_m, 3), truth_m, valid, "lsq")
    np.testing.assert_allclose(flat, truth_m[valid].mean(dtype=np.float64), rtol=1e-5)


def test_depth_as_it_is_compared() -> None:
    """Example images show depth with the protocol's alignment and clamping, and the evaluated pixels."""
    truth_m = np.full((480, 640), 4, np.float32)
    truth_m[:, 300:] = 8
    truth_m[100:110] = 0
    one = Sample("halves", np.zeros((480, 640, 3), np.uint8), truth_m)
    protocol = Protocol(limits_m=(1e-3, 6.0), crop="eigen", align="median")
    depth_m, counted = predict_by_protocol(lambda _: truth_m / 2 + np.float32(1), one, protocol)
    inside = np.zeros_like(counted)
    inside[45:471, 41:601] = True
    np.testing.assert_array_equal(counted, inside & (truth_m == 4))
    assert np.unique(depth_m).tolist() == pytest.approx([4 / 3, 4, 20 / 3 if 20 / 3 < 6 else 6])


# Consistency


def video(count: int = 3, size_hw: tuple[int, int] = (60, 80)) -> list[Sample]:
    """A still camera: frames and depth are the same each time, with a step edge in the middle."""
    rng = np.random.default_rng(0)
    frame = cv2.GaussianBlur(rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8), (0, 0), 1.5)
    depth_m = np.full(size_hw, 2, np.float32)
    depth_m[:, size_hw[1] // 2 :] = 4
    return [Sample(str(k), frame, depth_m.copy()) for k in range(count)]


class Flicker:
    """The true depth, every second frame by a factor too far."""

    def __init__(self, depth_m: Depth, factor: float) -> None:
        self.depth_m, self.factor, self.calls = depth_m, np.float32(factor), 0

    def __call__(self, frame: Frame) -> Depth:
        self.calls += 1
        return self.depth_m * (self.factor if self.calls % 2 == 0 else np.float32(1))


def test_consistency_is_optional() -> None:
    frames = video()
    result = evaluate(Flicker(frames[0].depth_m, 1.1), frames, PROTOCOL)
    assert (result.temporal, result.temporal_truth, result.spatial, result.edges) == (None, None, None, False)


@pytest.mark.parametrize("how", ["none", "median"])
def test_flicker_is_measured_before_alignment(how: Align) -> None:
    """Flicker is measured before alignment, which would hide it."""
    frames = video()
    protocol = replace(PROTOCOL, align=how)
    result = evaluate(Flicker(frames[0].depth_m, 1.1), frames, protocol, temporal=True)
    assert result.temporal is not None
    assert result.temporal_truth is not None
    assert result.temporal.measure == result.temporal_truth.measure == "flow"
    assert result.temporal.error_m == pytest.approx(0.1 * 3, rel=1e-4)
    assert result.temporal.rtc == 1
    assert (result.temporal_truth.error_m, result.temporal_truth.pairs) == (0, 2)


@pytest.mark.parametrize(("every", "dense"), [(2, True), (1, False)])
def test_sparse_truth_is_no_temporal_reference(every: int, dense: bool) -> None:
    frames = video()
    for one in frames:
        one.depth_m[:, ::2] = 0
        one.depth_m[::3, ::every] = 0  # with every second column, nothing that was not gone already
    result = evaluate(lambda frame: np.full(frame.shape[:2], 2, np.float32), frames, PROTOCOL, temporal=True)
    assert result.temporal is not None
    assert (result.temporal_truth is not None) == dense


def test_depth_beyond_the_limits_is_no_temporal_reference() -> None:
    frames = video()
    near = replace(PROTOCOL, limits_m=(1e-3, 3.0))
    result = evaluate(Flicker(frames[0].depth_m, 1), frames, near, temporal=True)
    assert result.temporal_truth is not None
    assert result.temporal_truth.share_used == pytest.approx(0.5, abs=0.02)


def test_camera_path_replaces_flow() -> None:
    """The camera walks a metre towards a wall whose true depth follows; the predictor does not notice."""
    frames = [Sample(str(k), np.zeros((48, 64, 3), np.uint8), np.full((48, 64), 5 - k, np.float32)) for k in range(2)]
    poses = tuple(np.eye(4) for _ in range(2))
    poses[1][2, 3] = 1
    path = CameraPath(
        poses=poses, camera=Camera(fx_px=60, fy_px=60, width_px=64, height_px=48, principal_point_px=(32, 24))
    )
    result = evaluate(
        lambda frame: np.full(frame.shape[:2], 4, np.float32), frames, PROTOCOL, temporal=True, camera_path=path
    )
    assert result.temporal is not None
    assert result.temporal_truth is not None
    assert result.temporal.measure == result.temporal_truth.measure == "reprojection"
    assert result.temporal.error_m == pytest.approx(1)
    assert result.temporal_truth.error_m == pytest.approx(0, abs=1e-6)


def test_one_image_has_no_temporal_consistency() -> None:
    frames = video(1)
    with pytest.raises(InputError, match="consistency cannot be measured"):
        evaluate(Flicker(frames[0].depth_m, 1), frames, PROTOCOL, temporal=True)


def test_boundary_f1_is_averaged_over_images_with_true_contours() -> None:
    """No neighbouring pixels agree on a step that is 4 pixels off; 12 of 16 pairs at a distance of 16 do."""
    frames = video(4)
    frames[2].depth_m[:] = 3  # flat
    shifted = np.roll(frames[0].depth_m, 4, axis=1)
    shifted[:, :4] = 2
    off = evaluate(lambda _: shifted, frames[:3], PROTOCOL)
    assert off.boundary_f1 == MeanBoundaryF1(f1=0, precision=0, recall=0, pictures=2)
    assert off.boundary_f1_wide is not None
    assert (off.boundary_f1_wide.f1, off.boundary_f1_wide.pictures) == (pytest.approx(0.75), 2)
    assert off.pictures[2].boundary_f1 is None
    # One picture of three perfect: each counts once.
    frames[3].depth_m[:] = shifted
    mixed = evaluate(lambda _: shifted, frames, PROTOCOL).boundary_f1
    assert mixed is not None
    assert (mixed.f1, mixed.pictures) == (pytest.approx(1 / 3), 3)
    assert evaluate(lambda _: shifted, frames[2:3], PROTOCOL).boundary_f1 is None


def test_boundary_f1_is_of_pixels_that_count() -> None:
    """Pairs with a pixel outside the crop, beyond the limits or in a hole do not count; predictions are clamped."""
    truth_m = np.full((480, 640), 2, np.float32)
    truth_m[:, 320:] = 4
    prediction = truth_m.copy()
    truth_m[200:210, 316:324] = 0
    truth_m[300:310] = 12
    prediction[:45] *= 2  # a step between the last row outside the crop and the first inside
    prediction[:, 601:] = 9
    prediction[205, 318], prediction[305, 100] = 1, 1
    one = Sample("crop", np.zeros((480, 640, 3), np.uint8), truth_m)
    protocol = replace(PROTOCOL, crop="eigen")
    (picture,) = evaluate(lambda _: prediction, [one], protocol).pictures
    assert picture.boundary_f1 is not None
    assert picture.boundary_f1.f1 == pytest.approx(1)
    assert picture.boundary_f1.true == (471 - 45) - 10 - 10
    uncropped = evaluate(lambda _: prediction, [one], PROTOCOL).boundary_f1
    assert uncropped is not None
    assert uncropped.precision < 0.7
    # 11.5 m beside 10.5 m is no contour once both are clamped to 10 m.
    prediction[100:200, 400], prediction[100:200, 401:] = 10.5, 11.5
    truth_m[100:200, 400:] = 9.9
    (clamped,) = evaluate(lambda _: prediction, [one], protocol).pictures
    assert clamped.boundary_f1 is not None
    assert clamped.boundary_f1.predicted == clamped.boundary_f1.true


def test_edge_errors_are_averaged_over_images_with_edges() -> None:
    frames = video(3)
    frames[2].depth_m[:] = 3  # flat: no edge to find
    shifted = np.roll(frames[0].depth_m, 4, axis=1)
    shifted[:, :4] = 2
    result = evaluate(lambda _: shifted, frames, PROTOCOL, spatial=True)
    assert result.spatial is not None
    assert (result.spatial.accuracy_px, result.spatial.completeness_px) == (4, 4)
    assert (result.spatial.found, result.spatial.pictures) == (1, 2)
    assert result.pictures[2].boundary is None


def test_edges_count_to_the_border_of_the_crop_and_not_beyond() -> None:
    """The Eigen crop ends before row 471; the cropped border is no hole, near which edges are ignored."""
    truth_m = np.full((480, 640), 2, np.float32)
    truth_m[467:] = 4
    prediction = truth_m.copy()
    prediction[:40] = 9  # above the crop
    truth_m[200:210, 300:310] = 0  # a hole, which the prediction knows nothing of
    one = Sample("crop", np.zeros((480, 640, 3), np.uint8), truth_m)
    result = evaluate(lambda _: prediction, [one], replace(PROTOCOL, crop="eigen"), spatial=True)
    assert result.spatial is not None
    assert (result.spatial.accuracy_px, result.spatial.completeness_px) == (0, 0)
    assert result.spatial.found == 1


def test_json_has_everything_and_its_version() -> None:
    frames = video()
    result = evaluate(Flicker(frames[0].depth_m, 1.1), frames, PROTOCOL, spatial=True, temporal=True)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["schema_version"] == 2
    assert data["protocol"]["limits_m"] == [1e-3, 10.0]
    assert [picture["name"] for picture in data["pictures"]] == ["0", "1", "2"]
    assert data["pictures"][1]["metrics"]["abs_rel"] == pytest.approx(0.1)
    assert data["pictures"][1]["boundary"]["accuracy_px"] == 0
    assert data["mean"]["abs_rel"] == pytest.approx(0.1 / 3)
    assert data["temporal"]["opw_m"] == pytest.approx(0.3, rel=1e-4)
    assert data["temporal_truth"]["opw_m"] == 0
    assert data["spatial"]["pictures"] == 3
    assert data["boundary_f1"] == {"f1": 1, "precision": 1, "recall": 1, "pictures": 3}
    assert data["boundary_f1_wide"]["pictures"] == 3
    assert data["pictures"][1]["boundary_f1"]["true"] == 60
    assert sum(part["pixels"] for part in data["ranges"]) == 3 * 60 * 80
    plain = evaluate(Flicker(frames[0].depth_m, 1), frames, PROTOCOL).to_json()
    assert (plain["spatial"], plain["temporal"]) == (None, None)
    assert plain["boundary_f1"] == data["boundary_f1"], "asked for or not"
