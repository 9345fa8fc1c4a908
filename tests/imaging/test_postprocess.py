"""Resizing predicted depth, millimetres and colours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.imaging.postprocess import Postprocessor, colourise, has_depth, resize_depth_to, to_millimetres

LIMITS = (0.5, 10.0)


@pytest.mark.parametrize("size_hw", [(64, 96), (31, 47), (8, 6), (13, 40)])
def test_resizing_agrees_with_scipys_bilinear(size_hw: SizeHW) -> None:
    depth = np.random.default_rng(0).uniform(0.5, 9, (16, 20)).astype(np.float32)
    factors = (size_hw[0] / 16, size_hw[1] / 20)
    expected = ndimage.zoom(depth.astype(np.float64), factors, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resize_depth_to(depth, size_hw), expected, rtol=2e-5)


def test_a_ramp_stays_a_ramp_in_the_same_place() -> None:
    ramp = np.tile(np.arange(10, dtype=np.float32), (4, 1))
    resized = resize_depth_to(ramp, (12, 30))
    centres = ((np.arange(30) + 0.5) / 3 - 0.5).clip(0, 9)
    np.testing.assert_allclose(resized, np.tile(centres, (12, 1)), atol=1e-5)


def test_postprocessor_reuses_its_buffer_while_the_size_stays() -> None:
    postprocess = Postprocessor()
    rng = np.random.default_rng(1)
    first_map, second_map = rng.uniform(1, 5, (2, 1, 8, 8)).astype(np.float32)
    first = postprocess(first_map, (20, 30))
    second = postprocess(second_map, (20, 30))
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(second, resize_depth_to(second_map[0], (20, 30)))
    other_size = postprocess(first_map, (11, 7))
    assert other_size.shape == (11, 7)
    assert np.shares_memory(postprocess(second_map, (11, 7)), other_size)


@pytest.mark.parametrize(
    ("metres", "millimetres"),
    [
        (1.2344, 1234),
        (1.2346, 1235),
        (65.535, 65535),
        (65.6, 65535),
        (1000, 65535),
        (0, 0),
        (-1, 0),
        (np.nan, 0),
        (np.inf, 0),
        (-np.inf, 0),
    ],
)
def test_millimetres(metres: float, millimetres: int) -> None:
    converted = to_millimetres(np.full((2, 3), metres, np.float32))
    assert converted.dtype == np.uint16
    assert (converted == millimetres).all()


def test_a_colour_means_the_same_depth_in_every_frame() -> None:
    alone = colourise(np.full((1, 1), 3, np.float32), LIMITS)
    among = colourise(np.array([[0.6, 3, 9.9, 0, np.nan]], np.float32), LIMITS)
    assert alone.dtype == np.uint8
    assert alone.shape == (1, 1, 3)
    np.testing.assert_array_equal(alone[0, 0], among[0, 1])


def test_near_is_bright_and_far_is_dark() -> None:
    colours = colourise(np.linspace(*LIMITS, 64, dtype=np.float32)[None], LIMITS)[0]
    luminance = colours @ (0.2126, 0.7152, 0.0722)  # ITU-R BT.709, R first
    assert (np.diff(luminance) <= 1).all()
    assert luminance[0] > 200
    assert luminance[-1] < 60
    assert colours[0, 0] > 200 > colours[0, 2], "cividis begins yellow, so channels are RGB, not BGR"


def test_depth_outside_the_limits_has_the_colour_of_the_limit() -> None:
    colours = colourise(np.array([[0.1, 0.5, 10, 80]], np.float32), LIMITS)[0]
    np.testing.assert_array_equal(colours[0], colours[1])
    np.testing.assert_array_equal(colours[2], colours[3])
    assert (colours[1] != colours[2]).any()


@pytest.mark.parametrize("nothing", [0, -1, np.nan, np.inf, -np.inf])
def test_missing_depth_is_grey(nothing: float) -> None:
    assert colourise(np.array([[nothing, 2]], np.float32), LIMITS)[0, 0].tolist() == [128] * 3


def test_pixels_with_depth() -> None:
    np.testing.assert_array_equal(
        has_depth(np.array([0, 1, -1, np.nan, np.inf, -np.inf], np.float32)), [False, True, False, False, False, False]
    )
