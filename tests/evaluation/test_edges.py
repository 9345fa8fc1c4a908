"""Edges against closed forms, SciPy and plain loops: scenes whose edges are known."""

from __future__ import annotations

from dataclasses import astuple
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter, sobel

from mirrordepth_edge.evaluation.edges import (
    BOUNDARY_LIMIT_PX,
    HOLE_MARGIN_PX,
    BoundaryErrors,
    BoundaryF1,
    boundary_errors,
    boundary_f1,
    depth_edges,
)
from mirrordepth_edge.evaluation.metrics import Depth, Mask


def step_edge(column: int, size_hw: tuple[int, int] = (60, 90), near_m: float = 2, far_m: float = 4) -> Depth:
    depth_m = np.full(size_hw, near_m, np.float32)
    depth_m[:, column:] = far_m
    return depth_m


def everywhere(depth_m: Depth) -> npt.NDArray[np.bool_]:
    return np.ones(depth_m.shape, np.bool_)


# iBims-1's errors


def pixels_off(errors: BoundaryErrors | None) -> tuple[float, float]:
    assert errors is not None
    return errors.accuracy_px, errors.completeness_px


def test_a_step_is_one_line_at_its_place() -> None:
    edges = depth_edges(step_edge(40))
    inner = edges[2:-2]  # Canny leaves the outermost rows alone
    assert (inner.sum(axis=1) == 1).all()
    assert set(np.nonzero(inner)[1]) <= {39, 40}
    assert not depth_edges(np.full((30, 30), 3, np.float32)).any()


def test_a_shallow_ramp_is_no_edge_and_the_range_does_not_matter() -> None:
    ramp = np.tile(np.linspace(1, 9, 90, dtype=np.float32), (60, 1))
    assert not depth_edges(ramp).any()
    np.testing.assert_array_equal(depth_edges(step_edge(40)), depth_edges(step_edge(40, near_m=1, far_m=1.001)))


def test_gradients_match_the_published_thresholds() -> None:
    """SciPy's Gaussian and plain Sobel, as the published script filters: a step is an edge from 0.3 on."""
    for height in (0.12, 0.16):
        depth_m = step_edge(40, near_m=0, far_m=height)
        depth_m[:8, :8] = 1  # sets the range
        strongest = sobel(gaussian_filter(depth_m.astype(np.float64), np.sqrt(2)), axis=1)[30].max()
        assert depth_edges(depth_m)[30, 35:45].any() == (strongest > 0.3)


@pytest.mark.parametrize(("height", "linked"), [(0.1, True), (0.05, False)])
def test_a_weak_edge_counts_where_it_goes_on_from_a_strong_one(height: float, linked: bool) -> None:
    depth_m = step_edge(40, (200, 90), near_m=0, far_m=1)
    depth_m[:, 40:] = np.interp(np.arange(200), (0, 180), (1, height))[:, None]
    strongest = sobel(gaussian_filter(depth_m.astype(np.float64), np.sqrt(2)), axis=1)[190].max()
    assert (0.15 < strongest < 0.3) == linked
    assert depth_edges(depth_m)[190, 35:45].any() == linked


@pytest.mark.parametrize("shift", [-4, 0, 1, 7, 9])
def test_an_edge_shifted_by_k_pixels_is_k_pixels_off(shift: int) -> None:
    truth = step_edge(40)
    errors = boundary_errors(step_edge(40 + shift, near_m=1, far_m=9), truth, everywhere(truth))
    assert errors is not None
    assert pixels_off(errors) == (abs(shift), abs(shift))
    assert errors.predicted == errors.true


@pytest.mark.parametrize("prediction", [step_edge(50), step_edge(70), np.full((60, 90), 3, np.float32)])
def test_no_edge_within_ten_pixels_is_ten_pixels_off(prediction: Depth) -> None:
    truth = step_edge(40)
    errors = boundary_errors(prediction, truth, everywhere(truth))
    assert errors is not None
    assert pixels_off(errors) == (BOUNDARY_LIMIT_PX, BOUNDARY_LIMIT_PX)
    assert (errors.predicted == 0) == (np.ptp(prediction) == 0)


def test_an_invented_edge_costs_completeness_only() -> None:
    truth, prediction = step_edge(30), step_edge(30)
    prediction[:, 60:] = 6  # a second step, 30 pixels away from any true one
    errors = boundary_errors(prediction, truth, everywhere(truth))
    assert errors is not None
    assert errors.accuracy_px == 0
    assert errors.completeness_px == pytest.approx(10 / 3), "a third of all edge pixels is 10 off"


def test_true_depth_without_edges_has_no_result() -> None:
    flat = np.full((60, 90), 3, np.float32)
    assert boundary_errors(step_edge(40), flat, everywhere(flat)) is None
    assert boundary_errors(step_edge(40), flat, ~everywhere(flat)) is None


@pytest.mark.parametrize("hole_m", [0, 60, np.nan, np.inf])
def test_edges_near_holes_are_ignored(hole_m: float) -> None:
    truth = step_edge(40)
    valid = everywhere(truth)
    valid[:, 20:24] = False
    broken = np.where(valid, truth, np.float32(hole_m))
    # The hole makes no edge of its own, and the true edge is far enough from it.
    assert pixels_off(boundary_errors(truth, broken, valid)) == (0, 0)
    # An edge predicted in it or near it costs nothing.
    prediction = truth.copy()
    prediction[:, :25] = 1
    assert pixels_off(boundary_errors(prediction, broken, valid)) == (0, 0)
    # With the hole beside the true edge nothing is left to compare.
    valid[:, 24 : 40 - HOLE_MARGIN_PX + 2] = False
    assert boundary_errors(truth, np.where(valid, truth, np.float32(hole_m)), valid) is None


def test_agrees_with_scipys_distances() -> None:
    """The published formulas on random scenes, distances by SciPy."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        truth, prediction = (np.full((80, 100), 5, np.float32) for _ in range(2))
        for scene in (truth, prediction):
            for _ in range(4):
                top, left = rng.integers(0, 60), rng.integers(0, 80)
                scene[top : top + 20, left : left + 20] = rng.uniform(1, 4)
        ours = boundary_errors(prediction, truth, everywhere(truth))
        assert ours is not None

        true, predicted = depth_edges(truth), depth_edges(prediction)
        to_true, to_predicted = distance_transform_edt(~true), distance_transform_edt(~predicted)
        assert ours.accuracy_px == pytest.approx(to_true[predicted & (to_true < 10)].mean(), abs=1e-5)
        total = np.minimum(to_true, 10)[predicted].sum() + np.minimum(to_predicted, 10)[true].sum()
        assert ours.completeness_px == pytest.approx(total / (predicted.sum() + true.sum()), abs=1e-5)


def test_errors_grow_with_blur() -> None:
    """Soft edges, as a coarse decoder makes them, are detected late or not at all."""
    truth = np.full((80, 100), 5, np.float32)
    truth[20:60, 30:70] = 2
    errors = [boundary_errors(gaussian_filter(truth, sigma), truth, everywhere(truth)) for sigma in (0.0, 3.0, 12.0)]
    completeness = [error.completeness_px for error in errors if error is not None]
    assert completeness[0] == 0
    assert all(sharp < soft for sharp, soft in pairwise(completeness))


# Depth Pro's boundary F1

RATIOS = [1.05 + 0.2 * k / 9 for k in range(10)]


def score(prediction: Depth | list[list[float]], truth: Depth | list[list[float]], apart_px: int = 1) -> BoundaryF1:
    """Boundary F1 where every pixel has depth and the truth has a contour."""
    prediction, truth = np.asarray(prediction, np.float32), np.asarray(truth, np.float32)
    scores = boundary_f1(prediction, truth, everywhere(truth), apart_px=apart_px)
    assert scores is not None
    return scores


def boxes(seed: int = 0, size_hw: tuple[int, int] = (160, 200)) -> Depth:
    """Boxes at 2 to 6 m before a wall at 8 m."""
    rng = np.random.default_rng(seed)
    depth_m = np.full(size_hw, 8, np.float32)
    for _ in range(8):
        top, left = rng.integers(0, size_hw[0] - 40), rng.integers(0, size_hw[1] - 40)
        depth_m[top : top + rng.integers(20, 40), left : left + rng.integers(20, 40)] = rng.uniform(2, 6)
    return depth_m


def by_loops(
    prediction: Depth, truth: Depth, valid: Mask, apart_px: int, *, leave_empty_out: bool = True
) -> tuple[float, float, float]:
    """F1, precision and recall from sets of pairs, pixel by pixel; else with 0 for what is empty, as published."""
    height, width = truth.shape
    rows = []
    for ratio in RATIOS:
        precisions, recalls = [], []
        for down, across in ((0, apart_px), (0, -apart_px), (apart_px, 0), (-apart_px, 0)):
            predicted, true = set(), set()
            for row in range(height):
                for column in range(width):
                    far = row + down, column + across
                    if not (0 <= far[0] < height and 0 <= far[1] < width and valid[row, column] and valid[far]):
                        continue
                    if float(prediction[far]) / float(prediction[row, column]) > ratio:
                        predicted.add((row, column))
                    if float(truth[far]) / float(truth[row, column]) > ratio:
                        true.add((row, column))
            if leave_empty_out and not predicted | true:
                continue
            precisions.append(len(predicted & true) / max(len(predicted), 1))
            recalls.append(len(predicted & true) / max(len(true), 1))
        if precisions:
            precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
            rows.append((ratio, f1, precision, recall))
    weight = sum(row[0] for row in rows)
    f1, precision, recall = (sum(row[0] * row[k] for row in rows) / weight for k in (1, 2, 3))
    return f1, precision, recall


def test_by_hand() -> None:
    """Farther on the right: 2 true contours, of which the prediction has 1, and another. Farther above: 1, missed."""
    truth = [[1.0, 2, 2], [1, 1, 2]]
    prediction = [[1.0, 2, 2], [1, 2, 2]]
    assert astuple(score(prediction, truth)) == pytest.approx((1 / 4, 1 / 4, 1 / 4, 2, 3))


def test_ratios_are_weighted_by_their_value() -> None:
    """A step of 10 % is above 3 of the ten ratios, one of 20 % above 7; at the other 3 there is nothing to compare."""
    scores = score([[1, 1.2]], [[1, 1.1]])
    first_3, first_7 = 3 * 1.05 + 3 * 0.2 / 9, 7 * 1.05 + 21 * 0.2 / 9
    assert (scores.f1, scores.precision, scores.recall) == pytest.approx([first_3 / first_7] * 3)


def test_f1_is_taken_at_each_ratio_and_then_averaged() -> None:
    """All contours match at 7 ratios. At the other 3, one of two to the right and the one to the left."""
    scores = score([[1, 1.2, 9, 1]], [[1, 1.3, 9, 1]])
    top = sum(RATIOS[7:]) / sum(RATIOS)
    assert scores.precision == pytest.approx(1 - top + top * (1 + 1) / 2)
    assert scores.recall == pytest.approx(1 - top + top * (1 / 2 + 1) / 2)
    assert scores.f1 == pytest.approx(1 - top + top * 2 * 0.75 / 1.75)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("apart_px", [1, 3])
def test_agrees_with_plain_loops(seed: int, apart_px: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.exp(0.06 * rng.normal(size=(11, 14))).astype(np.float32)
    prediction = (truth * np.exp(0.02 * rng.normal(size=truth.shape))).astype(np.float32)
    valid = rng.random(truth.shape) < 0.8
    ours = boundary_f1(prediction, np.where(valid, truth, np.float32(0)), valid, apart_px=apart_px)
    assert ours is not None
    assert 0.2 < ours.f1 < 0.95, "neither trivial"
    expected = by_loops(prediction, truth, valid, apart_px)
    assert (ours.f1, ours.precision, ours.recall) == pytest.approx(expected, rel=1e-9)


def test_f1_equals_the_published_code_if_every_direction_occurs() -> None:
    """Without contours in a direction, the published code gives a perfect prediction less than 1."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 2, (20, 24)).astype(np.float32)
    prediction = (truth * rng.uniform(0.8, 1.2, truth.shape)).astype(np.float32)
    published = by_loops(prediction, truth, everywhere(truth), 1, leave_empty_out=False)
    ours = score(prediction, truth)
    assert (ours.f1, ours.precision, ours.recall) == pytest.approx(published, rel=1e-9)
    step = step_edge(5, (4, 9))
    assert by_loops(step, step, everywhere(step), 1, leave_empty_out=False)[0] == pytest.approx(0.25)
    assert score(step, step).f1 == 1


@pytest.mark.parametrize("apart_px", [1, 16])
def test_f1_falls_with_blur(apart_px: int) -> None:
    truth = boxes()
    blurred = [truth, *(gaussian_filter(truth, sigma) for sigma in (1, 2, 4, 8))]
    scores = [score(depth_m, truth, apart_px).f1 for depth_m in blurred]
    assert scores[0] == pytest.approx(1, abs=1e-12)
    assert all(sharp > soft for sharp, soft in pairwise(scores))


def test_larger_distance_measures_soft_edges() -> None:
    truth = boxes()
    soft, softer = (gaussian_filter(truth, sigma) for sigma in (8, 12))
    assert score(soft, truth).f1 < 0.02
    assert score(soft, truth, 16).f1 > score(softer, truth, 16).f1 + 0.1 > 0.2


@pytest.mark.parametrize("factor", [1.7, 0.01, 60])
def test_scale_does_not_matter(factor: float) -> None:
    truth = boxes()
    soft = gaussian_filter(truth, 1.5)
    assert score(soft * np.float32(factor), truth) == score(soft, truth)
    assert score(soft, truth * np.float32(factor)) == score(soft, truth)


@pytest.mark.parametrize("shift", [1, 5])
def test_a_shifted_edge_is_missed_unless_pixels_are_farther_apart(shift: int) -> None:
    """A step lies between 16 pairs of each row that are 16 apart; shifted, it has all but so many in common."""
    truth, shifted = step_edge(40), step_edge(40 + shift)
    missed, near = score(shifted, truth), score(shifted, truth, 16)
    assert (missed.f1, missed.predicted, missed.true) == (0, 60, 60)
    assert (near.f1, near.predicted, near.true) == (pytest.approx(1 - shift / 16), 16 * 60, 16 * 60)


def test_inverted_edge_does_not_match() -> None:
    assert score(step_edge(40, near_m=4, far_m=2), step_edge(40)).f1 == 0


def test_invented_edges_cost_precision_and_missed_ones_recall() -> None:
    truth = step_edge(40)
    both = truth.copy()
    both[:, 60:] = 8
    invented, missed = score(both, truth), score(truth, both)
    assert (invented.precision, invented.recall) == pytest.approx((0.5, 1))
    assert (missed.precision, missed.recall) == pytest.approx((1, 0.5))
    across = truth.copy()
    across[30:] *= 3  # of a kind that the truth has none of
    assert score(across, truth).precision == pytest.approx(0.5)


def test_a_ratio_must_be_exceeded() -> None:
    """Depth of 4 m and 5 m is no contour at the last ratio, 1.25; 5.001 m is."""
    assert score([[4, 5.001]], [[4, 5]]).f1 == pytest.approx(1 - 1.25 / sum(RATIOS))


def test_depth_without_edges_finds_none() -> None:
    scores = score(np.full((60, 90), 3, np.float32), step_edge(40))
    assert astuple(scores) == (0, 0, 0, 0, 60)


@pytest.mark.parametrize("hole_m", [0, 60, np.nan, np.inf])
def test_pairs_with_a_hole_do_not_count(hole_m: float) -> None:
    truth = step_edge(40)
    valid = everywhere(truth)
    valid[:20, 38:42], valid[50, 10] = False, False
    broken, prediction = np.where(valid, truth, np.float32(hole_m)), truth.copy()
    prediction[:20, 40], prediction[50, 10] = 9, 1  # errors that nobody can know of
    scores = boundary_f1(prediction, broken, valid)
    assert scores is not None
    assert astuple(scores) == pytest.approx((1, 1, 1, 40, 40))


def test_truth_without_contours_has_no_result() -> None:
    flat = np.full((60, 90), 3, np.float32)
    assert boundary_f1(step_edge(40), flat, everywhere(flat)) is None
    slope = np.tile(1.04 ** np.arange(90, dtype=np.float32), (60, 1))
    assert boundary_f1(step_edge(40), slope, everywhere(slope)) is None, "4 % a pixel"
    assert boundary_f1(step_edge(40), slope, everywhere(slope), apart_px=2) is not None
    assert boundary_f1(step_edge(40), step_edge(40), ~everywhere(flat)) is None
    assert boundary_f1(step_edge(40), step_edge(40), everywhere(flat), apart_px=90) is None, "wider than the picture"
