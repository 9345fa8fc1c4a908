"""Read images and 16-bit depth files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import existing_file

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def _decode(path: Path, flags: int) -> Any:
    """Decode a file with OpenCV; None if that fails.

    Not cv2.imread, whose decoder warnings and handling of non-ASCII paths differ by platform.
    """
    try:
        content = path.read_bytes()
        if content.startswith(JPEG_START) and JPEG_END not in content:
            return None  # OpenCV 4 decodes a truncated JPEG without an error
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except (OSError, cv2.error):
        return None


def read_image(path: Path) -> Frame:
    """Read an image as uint8 RGB `[H, W, 3]`, rotated as its EXIF tag says.

    Raises:
        InputError: the file is missing, empty or not an image.
    """
    existing_file(path, "image")
    bgr = _decode(path, cv2.IMREAD_COLOR)
    if bgr is None:
        raise InputError(
            f"{path} cannot be read as an image.",
            "It is damaged, or not in a format that OpenCV can decode.",
            f"Pass an image ({', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}) or a video.",
        )
    frame: Frame = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return frame


def read_depth_png(path: Path, units_per_metre: float) -> npt.NDArray[np.float32]:
    """Read a 16-bit depth PNG as metres, float32 `[H, W]`, 0 where there is no depth.

    Raises:
        InputError: the file is missing, not an image, or not 16-bit with one channel.
    """
    existing_file(path, "depth image")
    raw = _decode(path, cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
        actual = "not an image" if raw is None else f"{raw.dtype} with shape {raw.shape}"
        raise InputError(
            f"{path} is not a depth image.",
            f"A depth image has one channel of 16 bits; this is {actual}.",
            "Save depth as 16-bit greyscale PNG, for example in millimetres (--units-per-metre 1000).",
        )
    depth_m: npt.NDArray[np.float32] = raw.astype(np.float32) / np.float32(units_per_metre)
    return depth_m
