"""Augmentation on pictures that carry their own coordinates, over depth with a closed form."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mirrordepth_edge.config import SizeHW, TrainConfig
from mirrordepth_edge.data.augment import augment, jitter_colour, resize_depth, rotate, zoom
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame

STILL = TrainConfig(flip_probability=0, rotate_deg=0, zoom_min=1, jitter=0)
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
def test_zoom_keeps_depth_registered_and_scales_it(share: float, seed: int) -> None:
    cut, depth_m = zoom(*tilted_plane(), share, np.random.default_rng(seed))
    assert cut.shape[:2] == depth_m.shape == (round(120 * share), round(160 * share))
    np.testing.assert_allclose(depth_m, share * plane_at(cut[..., 0], cut[..., 1]), rtol=1e-6)


def test_zoom_reaches_every_corner() -> None:
    rng = np.random.default_rng(0)
    starts = {tuple(zoom(*tilted_plane(12, 16), 0.75, rng)[0][0, 0, :2].tolist()) for _ in range(400)}
    assert starts == {(row, column) for row in range(4) for column in range(5)}


@pytest.mark.parametrize("size_hw", [(64, 96), (120, 160), (240, 352)])
@pytest.mark.parametrize("seed", range(4))
def test_zoomed_and_resized_view_is_registered(size_hw: SizeHW, seed: int) -> None:
    config = TrainConfig(flip_probability=0.5, rotate_deg=0, zoom_min=0.6, jitter=0)
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
    flips = TrainConfig(flip_probability=0.5, rotate_deg=0, zoom_min=1, jitter=0)
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


def test_jitter_covers_its_range() -> None:
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


def test_jitter_is_monotonic_and_does_not_change_its_input() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))
    kept = ramp.copy()
    for seed in range(20):
        jittered = jitter_colour(ramp, 0.3, np.random.default_rng(seed))
        assert (np.diff(jittered.astype(int), axis=1) >= 0).all()
        assert (jittered[0, 0] == 0).all()
    np.testing.assert_array_equal(ramp, kept)
    np.testing.assert_array_equal(jitter_colour(ramp, 0.0, np.random.default_rng(0)), ramp)


# --- A slanted wall, whose inverse depth is affine in pixels: 1/z = (n . K^-1 [u, v, 1]) / d. ---

NEAR_PER_M, FAR_PER_M = 0.9, 0.3
"""Range of inverse depth that the colours span, in 1/m."""
LEVELS = 255


class Wall:
    """A plane seen by a camera; its inverse depth written into the picture's red and, reversed, green."""

    def __init__(self, height: int, width: int, slope: tuple[float, float] = (0.4, -0.5)) -> None:
        """slope: share of the range that inverse depth rises over the whole height and width."""
        self.height, self.width = height, width
        self.middle = ((height - 1) / 2, (width - 1) / 2)
        self.per_row = slope[0] * (NEAR_PER_M - FAR_PER_M) / height
        self.per_column = slope[1] * (NEAR_PER_M - FAR_PER_M) / width
        rows, columns = np.mgrid[:height, :width].astype(np.float64)
        inverse = self.inverse_at(rows, columns)
        level = np.round(LEVELS * (inverse - FAR_PER_M) / (NEAR_PER_M - FAR_PER_M))
        self.frame = np.stack([level, LEVELS - level, np.full_like(level, 128)], axis=2).astype(np.uint8)
        self.depth_m = (1 / inverse).astype(np.float32)

    def inverse_at(self, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Closed form, 1/m, also between and outside the pixels."""
        centre = (NEAR_PER_M + FAR_PER_M) / 2
        return centre + self.per_row * (rows - self.middle[0]) + self.per_column * (columns - self.middle[1])

    @property
    def pixel(self) -> float:
        """Change of inverse depth over one pixel down and one to the right, 1/m."""
        return abs(self.per_row) + abs(self.per_column)


LEVEL_STEP = (NEAR_PER_M - FAR_PER_M) / LEVELS
"""Inverse depth of one step of colour, 1/m."""


def decoded(frame: Frame) -> NDArray[np.float64]:
    """Inverse depth encoded in the colours, 1/m."""
    red, green = frame[..., 0].astype(np.float64), frame[..., 1].astype(np.float64)
    return FAR_PER_M + LEVEL_STEP * (red + LEVELS - green) / 2


def away_from_holes(depth_m: NDArray[np.float32], pixels: int) -> NDArray[np.bool_]:
    """Pixels with depth that are farther than `pixels` from a filled border."""
    known = np.pad((depth_m > 0).astype(np.uint8), pixels)
    eroded = cv2.erode(known, np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8))
    return eroded[pixels:-pixels, pixels:-pixels] > 0


@pytest.mark.parametrize("source_hw", [(120, 160), (97, 211)])
@pytest.mark.parametrize("size_hw", [(64, 96), (120, 160), (97, 61), (31, 150), (240, 352)])
@pytest.mark.parametrize("zoom_min", [1.0, 0.55])
@pytest.mark.parametrize("seed", range(3))
def test_colours_and_depth_agree_after_any_augmentation(
    source_hw: SizeHW, size_hw: SizeHW, zoom_min: float, seed: int
) -> None:
    wall = Wall(*source_hw)
    config = TrainConfig(flip_probability=0.5, rotate_deg=6, zoom_min=zoom_min, jitter=0)
    frame, depth_m = augment(wall.frame, wall.depth_m, size_hw, config, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    rng.uniform(-6, 6)
    share = rng.uniform(zoom_min, 1.0) if zoom_min < 1 else 1.0
    certain = away_from_holes(depth_m, 3)
    assert certain.mean() > 0.6
    difference = (decoded(frame) - share / np.where(certain, depth_m, 1))[certain]
    # Depth is nearest: half a pixel in the turn and half in the resize, each along both axes.
    assert np.abs(difference).max() <= 1.05 * wall.pixel + 1.5 * LEVEL_STEP
    # No shift between the two: even sizes halved exactly read a pixel half a pixel off the middle.
    assert abs(difference.mean()) <= 0.5 * wall.pixel + 0.25 * LEVEL_STEP


@pytest.mark.parametrize("shrink", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_no_shift_at_all_where_the_middle_is_a_pixel(shrink: int, seed: int) -> None:
    wall = Wall(120, 165)
    config = TrainConfig(flip_probability=0.5, rotate_deg=4, zoom_min=1, jitter=0)
    size_hw = 120 // shrink, 165 // shrink
    frame, depth_m = augment(wall.frame, wall.depth_m, size_hw, config, np.random.default_rng(seed))
    certain = away_from_holes(depth_m, 2)
    difference = (decoded(frame) - 1 / np.where(certain, depth_m, 1))[certain]
    assert abs(difference.mean()) <= 0.1 * wall.pixel + 0.05 * LEVEL_STEP


@pytest.mark.parametrize("degrees", [-2.5, -0.4, 1.0, 2.5, 20.0])
def test_a_turned_wall_is_the_wall_of_the_closed_form(degrees: float) -> None:
    wall = Wall(121, 161)
    frame, depth_m = rotate(wall.frame, wall.depth_m, degrees)
    rows, columns = np.mgrid[:121, :161].astype(np.float64)
    # Counter-clockwise on the screen, where rows run down: the source of each pixel, by the inverse turn.
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    down, right = rows - wall.middle[0], columns - wall.middle[1]
    source_right, source_down = cos * right - sin * down, sin * right + cos * down
    source = source_down + wall.middle[0], source_right + wall.middle[1]
    inside = (abs(source_down) < wall.middle[0]) & (abs(source_right) < wall.middle[1])
    outside = (abs(source_down) > wall.middle[0] + 0.6) | (abs(source_right) > wall.middle[1] + 0.6)
    truth = wall.inverse_at(*source)
    assert (depth_m[inside] > 0).all()
    assert (depth_m[outside] == 0).all()
    assert outside.sum() > 100 or abs(degrees) < 1
    assert np.abs(1 / depth_m[inside] - truth[inside]).max() <= 0.55 * wall.pixel
    # OpenCV 4 interpolates between 32nds of a pixel.
    assert np.abs(decoded(frame)[inside] - truth[inside]).max() <= 1.1 * LEVEL_STEP + wall.pixel / 32
    assert abs((1 / depth_m[inside] - truth[inside]).mean()) <= 0.02 * wall.pixel


def test_a_positive_turn_is_counter_clockwise() -> None:
    frame, depth_m = np.zeros((61, 61, 3), np.uint8), np.ones((61, 61), np.float32)
    frame[28:33, 50:] = 255  # a bar to the right of the middle
    turned, _ = rotate(frame, depth_m, 45)
    assert turned[14, 46].tolist() == [255, 255, 255]  # ends up above and to the right
    assert turned[46, 46].tolist() == [0, 0, 0]


@pytest.mark.parametrize("degrees", [-30.0, 2.5, 90.0])
def test_camera_roll_keeps_depth_at_the_centre(degrees: float) -> None:
    wall = Wall(99, 133)
    frame, depth_m = rotate(wall.frame, wall.depth_m, degrees)
    assert depth_m[49, 66] == wall.depth_m[49, 66]
    np.testing.assert_array_equal(frame[49, 66], wall.frame[49, 66])


@pytest.mark.parametrize("shape", [(40, 64), (64, 40)])
def test_quarter_turn_equals_rot90(shape: tuple[int, int]) -> None:
    """90 degrees about the middle is NumPy's rot90 where the turned picture overlaps the old frame."""
    wall = Wall(*shape)
    frame, depth_m = rotate(wall.frame, wall.depth_m, 90)
    side, gap = min(shape), abs(shape[0] - shape[1]) // 2
    square = np.s_[gap : gap + side, :] if shape[0] > shape[1] else np.s_[:, gap : gap + side]
    np.testing.assert_array_equal(depth_m[square], np.rot90(wall.depth_m[square]))
    np.testing.assert_array_equal(frame[square], np.rot90(wall.frame[square]))
    assert (np.delete(depth_m, np.s_[gap : gap + side], axis=int(shape[0] < shape[1])) == 0).all()


def test_rotated_corners_show_the_mirrored_border() -> None:
    wall = Wall(120, 160)
    frame, depth_m = rotate(wall.frame, wall.depth_m, 10)
    assert (depth_m[:4, :4] == 0).all()
    assert (frame[..., 2] == 128).all(), "no black corners"


@pytest.mark.parametrize("seed", range(8))
def test_only_depths_that_were_measured_occur(seed: int) -> None:
    """Random depth with holes: any averaging, with 0 or with a neighbour, would make new values."""
    rng = np.random.default_rng(99)
    depth_m = rng.choice(np.array([0, 1.5, 2.25, 9], np.float32), (97, 131))
    frame = rng.integers(0, 256, (97, 131, 3), np.uint8)
    config = TrainConfig(flip_probability=0.5, rotate_deg=5, zoom_min=0.5, jitter=0.2)
    _, view_m = augment(frame, depth_m, (60, 52), config, np.random.default_rng(seed))
    again = np.random.default_rng(seed)
    again.uniform(-5, 5)
    share = np.float32(again.uniform(0.5, 1))
    assert set(np.unique(view_m)) == {value * share for value in np.unique(depth_m)}


def test_the_same_generator_gives_the_same_view() -> None:
    wall = Wall(60, 80)
    before = wall.frame.copy(), wall.depth_m.copy()
    config = TrainConfig(zoom_min=0.6, jitter=0.2)

    def view(*seed: int) -> tuple[Frame, NDArray[np.float32]]:
        return augment(wall.frame, wall.depth_m, (48, 64), config, np.random.default_rng(seed))

    for first, second in zip(view(3, 1, 4), view(3, 1, 4), strict=True):
        np.testing.assert_array_equal(first, second)
    assert len({view(3, 1, index)[0].tobytes() for index in range(10)}) == 10
    np.testing.assert_array_equal(wall.frame, before[0])
    np.testing.assert_array_equal(wall.depth_m, before[1])


def test_rotation_covers_its_range() -> None:
    """The rotation angle, recovered from the direction in which inverse depth rises."""
    wall = Wall(81, 81, slope=(0.0, 0.8))
    config = TrainConfig(flip_probability=0, rotate_deg=8, zoom_min=1, jitter=0)
    turns = []
    for seed in range(60):
        _, depth_m = augment(wall.frame, wall.depth_m, (81, 81), config, np.random.default_rng(seed))
        inverse = 1 / depth_m[10:71, 10:71].astype(np.float64)
        offset = np.arange(61) - 30  # the least-squares plane through a square: its two slopes
        down, right = (inverse * offset[:, None]).sum(), (inverse * offset).sum()
        turns.append(-np.rad2deg(np.arctan2(down, right)))
    assert -8.1 < min(turns) < -6.5
    assert 6.5 < max(turns) < 8.1


@pytest.mark.parametrize("source_hw", [(1, 1), (1, 9), (7, 1), (2, 3)])
@pytest.mark.parametrize("size_hw", [(1, 1), (5, 4), (32, 1)])
def test_the_smallest_pictures_survive(source_hw: SizeHW, size_hw: SizeHW) -> None:
    frame, depth_m = np.full((*source_hw, 3), 77, np.uint8), np.full(source_hw, 2, np.float32)
    config = TrainConfig(rotate_deg=45, zoom_min=0.01, jitter=0.1)
    for seed in range(10):
        view, view_m = augment(frame, depth_m, size_hw, config, np.random.default_rng(seed))
        assert view.shape == (*size_hw, 3)
        assert view_m.shape == size_hw
        assert view_m.max() <= 2
