"""Frames to network input, against a NumPy reference."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mirrordepth_edge.config import CLIP_MEAN, CLIP_STD, PreprocessConfig, SizeHW
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import (
    Frame,
    Preprocessor,
    Resizer,
    check_frame,
    normalise,
    resize_frame,
    sizes_between,
)

CONFIG = PreprocessConfig(size_hw=(32, 48), mean=CLIP_MEAN, std=CLIP_STD)


def test_downscaling_averages_every_pixel() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (128, 144, 3), dtype=np.uint8)
    blocks = frame.astype(np.float64).reshape(32, 4, 48, 3, 3).mean(axis=(1, 3))
    assert np.abs(resize_frame(frame, (32, 48)) - blocks).max() <= 0.5


def area_weights(before: int, after: int) -> np.ndarray:
    """`[after, before]`: which share of output pixel k each input pixel covers; float64."""
    edges = np.arange(after + 1) * before / after
    pixels = np.arange(before)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return covered.clip(0) * after / before


@pytest.mark.parametrize("frame_hw", [(480, 640), (720, 1280), (1080, 1920), (300, 400), (450, 288)])
def test_downscaling_by_any_ratio_is_close_to_the_area_mean(frames: list[Frame], frame_hw: SizeHW) -> None:
    height, width = 224, 288
    for frame in frames:
        large = resize_frame(frame, frame_hw)
        mean = np.einsum(
            "hH,wW,HWc->hwc", area_weights(frame_hw[0], height), area_weights(frame_hw[1], width), large, optimize=True
        )
        difference = np.abs(resize_frame(large, (height, width)) - mean)
        assert difference.mean() < 0.6  # grey levels, of 255
        assert np.percentile(difference, 99) < 6


def test_stripes_finer_than_the_new_pixels_become_their_mean() -> None:
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, ::2] = 200
    shrunk = resize_frame(stripes, (224, 288))
    # Sampling bilinearly, without the mean, would leave stripes from 0 to 200.
    assert np.abs(shrunk.astype(int) - 100).max() <= 15
    assert np.ptp(cv2.resize(stripes, (288, 224), interpolation=cv2.INTER_LINEAR)) > 150


@pytest.mark.parametrize(
    ("frame_hw", "size_hw", "between"),
    [
        ((480, 640), (224, 288), [(448, 576)]),
        ((480, 640), (240, 320), []),  # whole blocks at once
        ((480, 640), (480, 600), []),  # less than half a pixel more: bilinear
        ((1080, 1920), (224, 288), [(540, 960), (448, 864)]),
        ((1536, 2048), (224, 288), [(768, 1024), (672, 1152)]),
        ((240, 320), (480, 640), []),
    ],
)
def test_intermediate_sizes(frame_hw: SizeHW, size_hw: SizeHW, between: list[SizeHW]) -> None:
    assert sizes_between(frame_hw, size_hw) == between


def test_a_resizer_accepts_frames_of_any_size(frames: list[Frame]) -> None:
    resize = Resizer((224, 288))
    for frame_hw in ((480, 640), (720, 1280), (480, 640)):
        frame = resize_frame(frames[0], frame_hw)
        np.testing.assert_array_equal(resize(frame), resize_frame(frame, (224, 288)))


def test_upscaling_is_bilinear_with_centred_pixels() -> None:
    frame = np.tile(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], (4, 1, 3))
    grown = resize_frame(frame, (8, 32))
    # The centre of output column j lies at (j + 0.5) / 2 - 0.5 of the source.
    expected = 10 * ((np.arange(32) + 0.5) / 2 - 0.5).clip(0, 15)
    assert np.abs(grown - expected[None, :, None]).max() <= 0.5


@pytest.mark.parametrize("size_hw", [(16, 16), (200, 300), (200, 16), (16, 300), (97, 131)])
def test_a_flat_frame_stays_flat_at_any_size(size_hw: SizeHW) -> None:
    resized = resize_frame(np.full((97, 131, 3), (10, 120, 250), np.uint8), size_hw)
    assert resized.shape == (*size_hw, 3)
    assert (resized == (10, 120, 250)).all()


def test_normalise_follows_the_formula() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = normalise(frame, CONFIG)
    assert image.shape == (1, 3, 5, 7)
    assert image.dtype == np.float32
    assert image.flags.c_contiguous
    for channel in range(3):
        expected = (frame[..., channel] / 255 - CLIP_MEAN[channel]) / CLIP_STD[channel]
        np.testing.assert_allclose(image[0, channel], expected, atol=1e-6)


def test_preprocessor_reuses_one_buffer(frames: list[Frame]) -> None:
    preprocess = Preprocessor(CONFIG)
    first = preprocess(frames[0])
    assert first.shape == (1, 32, 48, 3)
    assert first.dtype == np.uint8
    kept = first.copy()
    second = preprocess(frames[1])
    assert np.shares_memory(first, second)
    assert not np.array_equal(kept, second)
    np.testing.assert_array_equal(second[0], resize_frame(frames[1], (32, 48)))


def test_float_input_is_the_normalised_uint8_input(frames: list[Frame]) -> None:
    pixels = Preprocessor(CONFIG)(frames[0])[0]
    expected = (pixels.astype(np.float64) / 255 - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(Preprocessor(CONFIG, "float")(frames[0])[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_a_frame_of_the_right_size_is_copied_unchanged() -> None:
    frame = np.random.default_rng(2).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    image = Preprocessor(CONFIG)(frame)
    np.testing.assert_array_equal(image[0], frame)
    assert not np.shares_memory(image, frame)


def test_non_contiguous_frames_are_supported(frames: list[Frame]) -> None:
    mirrored = frames[0][:, ::-1, ::-1]
    expected = Preprocessor(CONFIG)(np.ascontiguousarray(mirrored)).copy()
    np.testing.assert_array_equal(Preprocessor(CONFIG)(mirrored), expected)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=lambda frame: f"{frame.dtype}{list(frame.shape)}",
)
def test_invalid_frames_are_rejected(frame: np.ndarray) -> None:
    with pytest.raises(InputError) as caught:
        check_frame(frame)
    assert str(frame.shape) in caught.value.what
    assert "cvtColor" in caught.value.cure
