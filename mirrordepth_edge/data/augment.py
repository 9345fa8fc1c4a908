"""Data augmentation that keeps image and depth registered and depth metric."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import SizeHW, TrainConfig
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame

DepthMap = npt.NDArray[np.float32]


def resize_depth(depth_m: DepthMap, size_hw: SizeHW) -> DepthMap:
    """Resize depth by nearest neighbour, which never averages across an edge or with 0 (no value).

    Args:
        depth_m: float32 `[H, W]`, metres.
        size_hw: height and width of the result.
    """
    # INTER_NEAREST_EXACT samples pixel centres, as the resize of the image does. INTER_NEAREST samples the first
    # pixel of each cell, which shifts depth against the image.
    return cv2.resize(depth_m, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[return-value]


def rotate(frame: Frame, depth_m: DepthMap, degrees: float) -> tuple[Frame, DepthMap]:
    """Rotate image and depth about the image centre, counter-clockwise for positive degrees.

    This is a camera roll about the optical axis, which does not change depth along that axis. The image is
    interpolated bilinearly, depth by nearest neighbour. Corners from outside show the mirrored border and have
    no depth (0).
    """
    height, width = depth_m.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(frame, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    turned_m = cv2.warpAffine(depth_m, turn, (width, height), flags=cv2.INTER_NEAREST, borderValue=0)
    return turned, turned_m  # type: ignore[return-value]


def zoom(frame: Frame, depth_m: DepthMap, share: float, rng: np.random.Generator) -> tuple[Frame, DepthMap]:
    """Crop a random window and scale its depth accordingly.

    Resized to the original size, the crop equals an image with a focal length 1/share times longer. For a model
    that assumes a fixed focal length, it shows the scene at `share` times the distance.

    Args:
        frame: uint8 RGB `[H, W, 3]`.
        depth_m: float32 `[H, W]`, metres.
        share: size of the window relative to each side.
        rng: draws the position of the window.
    """
    height, width = depth_m.shape
    crop_h, crop_w = max(1, round(height * share)), max(1, round(width * share))
    top = int(rng.integers(0, height - crop_h + 1))
    left = int(rng.integers(0, width - crop_w + 1))
    window = slice(top, top + crop_h), slice(left, left + crop_w)
    return frame[window], depth_m[window] * np.float32(share)


def jitter_colour(frame: Frame, amount: float, rng: np.random.Generator) -> Frame:
    """Apply random gamma, brightness and channel gains in `1 ± amount`, as BTS (arXiv 1907.10326) does."""
    gamma, brightness = rng.uniform(1 - amount, 1 + amount, 2)
    gains = rng.uniform(1 - amount, 1 + amount, 3)
    # A look-up table per channel: 256 powers instead of one per pixel.
    levels = (np.arange(256) / 255.0) ** gamma * brightness
    table = (np.clip(levels[:, None] * gains, 0, 1) * 255).round().astype(np.uint8)
    return cv2.LUT(frame, table[None])  # type: ignore[return-value]


def augment(
    frame: Frame, depth_m: DepthMap, size_hw: SizeHW, config: TrainConfig, rng: np.random.Generator
) -> tuple[Frame, DepthMap]:
    """Draw a random view of a sample at network size: rotation, crop, flip, colour jitter.

    As in BTS (arXiv 1907.10326, section 4.2), except that crops are resized to the network size (see `zoom`) and
    that every image is jittered instead of every second one.

    Args:
        frame: uint8 RGB `[H, W, 3]`.
        depth_m: float32 `[H, W]`, metres, 0 = no value.
        size_hw: height and width of the result.
        config: strength of each augmentation.
        rng: source of all randomness.

    Returns:
        Image uint8 `[h, w, 3]`, and depth float32 `[h, w]`, metres, 0 = no value.
    """
    if config.rotate_deg > 0:
        frame, depth_m = rotate(frame, depth_m, float(rng.uniform(-config.rotate_deg, config.rotate_deg)))
    if config.zoom_min < 1.0:
        frame, depth_m = zoom(frame, depth_m, float(rng.uniform(config.zoom_min, 1.0)), rng)
    frame, depth_m = resize_frame(frame, size_hw), resize_depth(depth_m, size_hw)
    if rng.random() < config.flip_probability:
        # NumPy would copy a flipped view pixel by pixel, 20 times slower.
        frame, depth_m = cv2.flip(frame, 1), cv2.flip(depth_m, 1)  # type: ignore[assignment]
    frame, depth_m = np.ascontiguousarray(frame), np.ascontiguousarray(depth_m)
    if config.jitter > 0:
        frame = jitter_colour(frame, config.jitter, rng)
    return frame, depth_m
