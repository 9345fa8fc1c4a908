"""Registration check: misaligned depth is detected, aligned depth is not reported."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from mirrordepth_edge.data.lint.registration import (
    MAX_JUMP,
    MAX_SHIFT_PX,
    MIN_JUMP,
    POSES,
    DepthMap,
    Registration,
    depth_edges,
    edge_correlations,
    judge_registration,
)
from mirrordepth_edge.imaging.preprocess import Frame

Pair = tuple[Frame, DepthMap]
SIZE_HW = (240, 320)


def scene(seed: int) -> Pair:
    """Boxes before a wall on a floor, seen from any height; all have a texture, depth has noise and holes."""
    rng = np.random.default_rng(seed)
    height, width = SIZE_HW
    texture = cv2.resize(rng.normal(0, 25, (30, 40, 3)).astype(np.float32), (width, height))
    texture += rng.normal(0, 6, (height, width, 3)).astype(np.float32)
    colour = np.broadcast_to(rng.uniform(60, 200, 3).astype(np.float32), (height, width, 3)).copy()
    wall_m = rng.uniform(3, 6)
    rows = np.arange(height, dtype=np.float32)[:, None]
    depth_m = np.minimum(wall_m, 400 / np.maximum(rows - rng.integers(-20, 140), 1)) * np.ones((1, width), np.float32)
    colour[depth_m[:, 0] < wall_m] *= 0.7
    for distance_m in sorted(rng.uniform(1, 2.8, rng.integers(3, 7)), reverse=True):
        left, top = rng.integers(0, width - 40), rng.integers(0, height - 40)
        box = slice(top, top + rng.integers(40, 110)), slice(left, left + rng.integers(30, 110))
        depth_m[box], colour[box] = distance_m, rng.uniform(20, 235, 3)
    depth_m = (depth_m * rng.normal(1, 0.003, SIZE_HW)).astype(np.float32)
    depth_m[rng.random(SIZE_HW) < 0.1] = 0
    return (colour + texture).clip(0, 255).astype(np.uint8), depth_m


def moved(depth_m: DepthMap, right: int, down: int) -> DepthMap:
    shift = np.float32([[1, 0, right], [0, 1, down]])
    return cv2.warpAffine(depth_m, shift, SIZE_HW[::-1], flags=cv2.INTER_NEAREST)


def shrunk(depth_m: DepthMap) -> DepthMap:
    height, width = SIZE_HW
    zoom = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, 1 / 1.1)
    return cv2.warpAffine(depth_m, zoom, (width, height), flags=cv2.INTER_NEAREST)


def judged(pairs: list[Pair], change: Callable[[DepthMap], DepthMap] = np.copy) -> Registration:
    correlations = [edge_correlations(frame, np.ascontiguousarray(change(depth_m))) for frame, depth_m in pairs]
    return judge_registration([surfaces for surfaces in correlations if surfaces is not None])


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [scene(seed) for seed in range(12)]


@pytest.mark.parametrize("first", range(100, 150, 10))
def test_registered_pairs_are_accepted(first: int) -> None:
    registration = judged([scene(seed) for seed in range(first, first + 10)])
    assert registration.verdict == "registered"
    assert registration.shift_px(SIZE_HW) in {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)}
    assert registration.correlation_as_is > 0.1


@pytest.mark.parametrize(("right", "down"), [(12, 0), (-12, 0), (0, 12), (7, -5), (20, 15)])
def test_a_shift_is_measured(pairs: list[Pair], right: int, down: int) -> None:
    registration = judged(pairs, lambda depth_m: moved(depth_m, right, down))
    assert registration.verdict == "unregistered"
    assert registration.pose == "as it is"
    assert registration.shift_px(SIZE_HW) == pytest.approx((-right, -down), abs=1)
    # On pictures of twice the size the same share of them is twice the pixels.
    assert registration.shift_px((480, 640)) == pytest.approx((-2 * right, -2 * down), abs=2)
    assert registration.correlation > 1.5 * registration.correlation_as_is


@pytest.mark.parametrize("right", [1, 2])
def test_shift_of_one_or_two_pixels_is_accepted(pairs: list[Pair], right: int) -> None:
    assert judged(pairs, lambda depth_m: moved(depth_m, right, 0)).verdict != "unregistered"


@pytest.mark.parametrize(
    ("change", "pose"),
    [
        (np.fliplr, "mirrored"),
        (np.flipud, "upside down"),
        (lambda depth_m: depth_m[::-1, ::-1], "turned by half"),
        (shrunk, "enlarged 1.1 times"),
    ],
)
def test_flip_or_zoom_is_identified(pairs: list[Pair], change: Callable[[DepthMap], DepthMap], pose: str) -> None:
    registration = judged(pairs, change)
    assert (registration.verdict, registration.pose) == ("unregistered", pose)
    assert registration.shift_px(SIZE_HW) == pytest.approx((0, 0), abs=1)


def test_mismatched_pairs_are_detected(pairs: list[Pair]) -> None:
    frames, depths = zip(*(scene(300 + seed) for seed in range(20)), strict=True)
    registration = judged(list(zip(frames, depths[5:] + depths[:5], strict=True)))
    assert registration.verdict == "nowhere"
    assert judged(pairs[:4]).verdict == "unclear", "four pictures are too few to say anything"


def test_repeated_scene_is_undecided(pairs: list[Pair]) -> None:
    """Images of a static camera have the same chance correlations, which are no evidence."""
    frame, depth_m = pairs[0]
    rng = np.random.default_rng(0)
    noisy = [(frame, (depth_m * rng.normal(1, 0.002, SIZE_HW)).astype(np.float32)) for _ in range(8)]
    for right in (0, 12):
        registration = judged(noisy, lambda depth_m, right=right: moved(depth_m, right, 0))
        assert registration.verdict == "unclear"
        assert registration.scenes < 2
    assert judged(pairs).scenes > 6


def test_images_without_verdict(pairs: list[Pair]) -> None:
    frame, depth_m = pairs[0]
    assert edge_correlations(frame, np.full(SIZE_HW, 2, np.float32)) is None, "a wall"
    sparse = np.where(np.random.default_rng(0).random(SIZE_HW) < 0.2, depth_m, 0).astype(np.float32)
    assert edge_correlations(frame, sparse) is None, "a LiDAR"
    assert edge_correlations(frame[:30], depth_m[:30]) is None, "a strip with no room to move"
    registration = judge_registration([])
    assert (registration.verdict, registration.pictures) == ("unclear", 0)


def test_image_without_edges_has_no_correlation(pairs: list[Pair]) -> None:
    surfaces = edge_correlations(np.full((*SIZE_HW, 3), 90, np.uint8), pairs[0][1])
    assert surfaces is not None
    assert surfaces.shape == (len(POSES), 2 * MAX_SHIFT_PX + 1, 2 * MAX_SHIFT_PX + 1)
    assert np.abs(surfaces).max() < 1e-3


def test_correlations_are_those_of_numpy(pairs: list[Pair]) -> None:
    """One picture at its own size, a few shifts, in float64."""
    frame, depth_m = pairs[0]
    full = np.where(depth_m > 0, depth_m, 1.5).astype(np.float32)  # no holes, so that nothing is averaged
    surfaces = edge_correlations(frame, full)
    assert surfaces is not None
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float64)
    strength = np.sqrt(np.hypot(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1)))
    maps = [edges - cv2.GaussianBlur(edges, (0, 0), 8.0) for edges in (strength, depth_edges(full).astype(np.float64))]
    rim = MAX_SHIFT_PX
    template = maps[1][rim:-rim, rim:-rim] - maps[1][rim:-rim, rim:-rim].mean()
    norm = np.linalg.norm(template) * np.linalg.norm(maps[0][rim:-rim, rim:-rim])
    height, width = template.shape
    for right, down in ((0, 0), (5, -3), (-24, 24)):
        window = maps[0][rim + down : rim + down + height, rim + right : rim + right + width]
        expected = (window * template).sum() / norm
        assert surfaces[0, rim + down, rim + right] == pytest.approx(expected, abs=1e-4)


def test_depth_edges_are_jumps_beside_measured_pixels() -> None:
    rows, columns = np.mgrid[:20, :30]
    slant = (2 + 0.005 * columns + 0.005 * rows).astype(np.float32)
    assert not depth_edges(slant).any()
    step = np.where(columns < 15, 1.0, 1.1).astype(np.float32)
    edges = depth_edges(step)
    assert edges[10, 14:16] == pytest.approx([np.log(1.1) - MIN_JUMP] * 2, rel=1e-5)
    assert not edges[:, :14].any()
    assert not edges[:, 16:].any()
    assert depth_edges(step * np.where(columns < 15, 1, 50).astype(np.float32)).max() == pytest.approx(
        MAX_JUMP - MIN_JUMP
    )
    step[:, 15:17] = 0
    assert not depth_edges(step).any(), "across a hole there is no telling"
