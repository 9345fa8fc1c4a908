"""Augmentation on pictures that carry their own coordinates, over depth with a closed form."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mirrordepth_edge.config import SizeHW, TrainConfig
from mirrordepth_edge.data.augment import augment, jitter_colour, resize_depth, zoom
from mirrordepth_edge.preprocess import Frame, resize_frame

STILL = TrainConfig(flip_probability=0, zoom_min=1, jitter=0)
PER_ROW, PER_COLUMN = 0.03, 0.01


def plane_at(rows: NDArray[np.floating], columns: NDArray[np.floating]) -> NDArray[np.float64]:
    """Depth of a tilted plane, in metres."""
    return 1 + PER_ROW * np.asarray(rows, np.float64) + PER_COLUMN * np.asarray(columns, np.float64)


def tilted_plane(height: int = 120, width: int = 160) -> tuple[Frame, NDArray[np.float32]]:
    """A picture whose red is the row and green the column, and its depth."""
    rows, columns = np.mgrid[:height, :width]
    frame = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    return frame, plane_at(rows, columns).astype(np.float32)


@pytest.mark.parametrize("share", [0.5, 0.73, 0.99, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_zoom_keeps_picture_and_depth_together_and_brings_it_nearer(share: float, seed: int) -> None:
    cut, depth_m = zoom(*tilted_plane(), share, np.random.default_rng(seed))
    assert cut.shape[:2] == depth_m.shape == (round(120 * share), round(160 * share))
    np.testing.assert_allclose(depth_m, share * plane_at(cut[..., 0], cut[..., 1]), rtol=1e-6)


def test_zoom_reaches_every_corner() -> None:
    rng = np.random.default_rng(0)
    starts = {tuple(zoom(*tilted_plane(12, 16), 0.75, rng)[0][0, 0, :2].tolist()) for _ in range(400)}
    assert starts == {(row, column) for row in range(4) for column in range(5)}


@pytest.mark.parametrize("size_hw", [(64, 96), (120, 160), (240, 352)])
@pytest.mark.parametrize("seed", range(4))
def test_a_zoomed_and_resized_view_is_still_registered(size_hw: SizeHW, seed: int) -> None:
    config = TrainConfig(flip_probability=0.5, zoom_min=0.6, jitter=0)
    frame, depth_m = augment(*tilted_plane(), size_hw, config, np.random.default_rng(seed))
    share = np.random.default_rng(seed).uniform(0.6, 1.0)  # the first number that is drawn
    assert frame.shape == (*size_hw, 3)
    assert depth_m.shape == size_hw
    assert (frame.dtype, depth_m.dtype) == (np.uint8, np.float32)
    error_m = np.abs(depth_m / share - plane_at(frame[..., 0], frame[..., 1]))
    assert error_m.max() <= 2 * (PER_ROW + PER_COLUMN), "two source pixels: nearest depth, rounded picture"


@pytest.mark.parametrize("size_hw", [(30, 40), (60, 80), (48, 64)])
def test_depth_is_read_at_the_centre_of_the_pictures_pixels(size_hw: SizeHW) -> None:
    frame, depth_m = augment(*tilted_plane(), size_hw, STILL, np.random.default_rng(0))
    shift_m = depth_m - plane_at(frame[..., 0], frame[..., 1])
    # Half a source pixel either way is as near as nearest gets, and the picture is rounded.
    assert abs(shift_m.mean()) <= 0.6 * (PER_ROW + PER_COLUMN)
    assert np.abs(shift_m).max() <= 1.1 * (PER_ROW + PER_COLUMN)


@pytest.mark.parametrize("size_hw", [(48, 64), (200, 300)])
def test_depth_is_never_mixed_with_no_value(size_hw: SizeHW) -> None:
    depth_m = np.random.default_rng(0).choice(np.array([0, 1.5, 9], np.float32), (97, 131))
    assert set(np.unique(resize_depth(depth_m, size_hw))) == {0, 1.5, 9}


def test_flip_mirrors_both_or_neither() -> None:
    frame, depth_m = tilted_plane()
    flips = TrainConfig(flip_probability=0.5, zoom_min=1, jitter=0)
    seen = set()
    for seed in range(20):
        view, view_m = augment(frame, depth_m, (120, 160), flips, np.random.default_rng(seed))
        mirrored = bool(view[0, 0, 1] == 159)
        seen.add(mirrored)
        step = -1 if mirrored else 1
        np.testing.assert_array_equal(view, frame[:, ::step])
        np.testing.assert_array_equal(view_m, depth_m[:, ::step])
        assert view.flags.c_contiguous
        assert view_m.flags.c_contiguous
    assert seen == {True, False}


def test_without_augmentation_only_the_size_changes() -> None:
    frame, depth_m = tilted_plane()
    view, view_m = augment(frame, depth_m, (60, 80), STILL, np.random.default_rng(0))
    np.testing.assert_array_equal(view, resize_frame(frame, (60, 80)))
    np.testing.assert_array_equal(view_m, resize_depth(depth_m, (60, 80)))


def test_jitter_stays_within_its_bounds_and_uses_them() -> None:
    grey = np.full((1, 1, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    seen = np.stack([jitter_colour(grey, 0.1, rng)[0, 0] for _ in range(600)]).astype(float)
    lowest = 255 * (100 / 255) ** 1.1 * 0.9 * 0.9
    highest = 255 * (100 / 255) ** 0.9 * 1.1 * 1.1
    assert seen.min() >= lowest - 0.5
    assert seen.max() <= highest + 0.5
    assert seen.min() < lowest + 0.15 * (highest - lowest)
    assert seen.max() > highest - 0.15 * (highest - lowest)
    gains = seen / seen.mean(axis=1, keepdims=True)
    assert gains.std(axis=0).min() > 0.02, "channels change on their own, too"


def test_jitter_keeps_the_order_of_levels_and_the_original() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))
    kept = ramp.copy()
    for seed in range(20):
        jittered = jitter_colour(ramp, 0.3, np.random.default_rng(seed))
        assert (np.diff(jittered.astype(int), axis=1) >= 0).all()
        assert (jittered[0, 0] == 0).all()
    np.testing.assert_array_equal(ramp, kept)
    np.testing.assert_array_equal(jitter_colour(ramp, 0.0, np.random.default_rng(0)), ramp)
