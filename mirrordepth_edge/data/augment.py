"""Augmentation that keeps picture and depth registered, and metres true."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import SizeHW, TrainConfig
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame

DepthMap = npt.NDArray[np.float32]


def resize_depth(depth_m: DepthMap, size_hw: SizeHW) -> DepthMap:
    """Nearest-neighbour resize: depth is never averaged across an edge or with 'no value'.

    The exact kind reads the middle of each cell, as the picture's resize does; OpenCV's plain one
    reads its first pixel and would shift depth against the picture.
    """
    return cv2.resize(depth_m, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[return-value]


def rotate(frame: Frame, depth_m: DepthMap, degrees: float) -> tuple[Frame, DepthMap]:
    """Turn picture and depth about the picture's centre, counter-clockwise for positive degrees.

    A camera that rolls about its optical axis turns the picture about the principal point and leaves
    every point's depth along that axis as it is; about another centre, the picture is shifted besides.
    So depth moves with its pixels and keeps its values. The picture is interpolated bilinearly, depth
    never; the corners that come from outside show the mirrored border and have no depth (0).
    """
    height, width = depth_m.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(frame, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    turned_m = cv2.warpAffine(depth_m, turn, (width, height), flags=cv2.INTER_NEAREST, borderValue=0)
    return turned, turned_m  # type: ignore[return-value]


def zoom(frame: Frame, depth_m: DepthMap, share: float, rng: np.random.Generator) -> tuple[Frame, DepthMap]:
    """Crop a random window of `share` of each side and scale its depth by `share`.

    Seen at the old size, the crop is a picture through a lens 1/share longer, in which things look
    1/share times larger; for a model of fixed focal length that is the same scene at share times
    the distance.
    """
    height, width = depth_m.shape
    crop_h, crop_w = max(1, round(height * share)), max(1, round(width * share))
    top = int(rng.integers(0, height - crop_h + 1))
    left = int(rng.integers(0, width - crop_w + 1))
    window = slice(top, top + crop_h), slice(left, left + crop_w)
    return frame[window], depth_m[window] * np.float32(share)


def jitter_colour(frame: Frame, amount: float, rng: np.random.Generator) -> Frame:
    """Random gamma, brightness and channel gains in `1 ± amount` (as BTS, arXiv 1907.10326)."""
    gamma, brightness = rng.uniform(1 - amount, 1 + amount, 2)
    gains = rng.uniform(1 - amount, 1 + amount, 3)
    # One look-up table per channel: 256 values instead of a picture's worth of powers.
    levels = (np.arange(256) / 255.0) ** gamma * brightness
    table = (np.clip(levels[:, None] * gains, 0, 1) * 255).round().astype(np.uint8)
    return cv2.LUT(frame, table[None])  # type: ignore[return-value]


def augment(
    frame: Frame, depth_m: DepthMap, size_hw: SizeHW, config: TrainConfig, rng: np.random.Generator
) -> tuple[Frame, DepthMap]:
    """One random view of a sample at network size: turned, cropped, mirrored and recoloured.

    As BTS (arXiv 1907.10326, section 4.2) does, except that a crop fills the network's input, which
    `zoom` accounts for, and that every picture is recoloured instead of every other.

    Args:
        frame: uint8 RGB `[H, W, 3]`.
        depth_m: float32 `[H, W]`, metres, 0 = no value.
        rng: all that is random comes from here.

    Returns:
        uint8 `[h, w, 3]` and float32 `[h, w]`: values of `depth_m` times the zoom, or 0.
    """
    if config.rotate_deg > 0:
        frame, depth_m = rotate(frame, depth_m, float(rng.uniform(-config.rotate_deg, config.rotate_deg)))
    if config.zoom_min < 1.0:
        frame, depth_m = zoom(frame, depth_m, float(rng.uniform(config.zoom_min, 1.0)), rng)
    frame, depth_m = resize_frame(frame, size_hw), resize_depth(depth_m, size_hw)
    if rng.random() < config.flip_probability:
        # A mirrored view in NumPy would be copied pixel by pixel, twenty times as slow.
        frame, depth_m = cv2.flip(frame, 1), cv2.flip(depth_m, 1)  # type: ignore[assignment]
    frame, depth_m = np.ascontiguousarray(frame), np.ascontiguousarray(depth_m)
    if config.jitter > 0:
        frame = jitter_colour(frame, config.jitter, rng)
    return frame, depth_m
