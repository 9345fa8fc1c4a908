"""Reading pictures and 16-bit depth files."""

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


PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def _decoded(path: Path, flags: int) -> Any:
    """What OpenCV makes of a file; None where it cannot.

    Through memory rather than cv2.imread, whose decoder warnings and non-ASCII paths differ by platform.
    """
    try:
        content = path.read_bytes()
        if content.startswith(JPEG_START) and JPEG_END not in content:
            return None  # OpenCV 4 gives as much of a broken-off JPEG as there is
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except (OSError, cv2.error):
        return None


def read_picture(path: Path) -> Frame:
    """Read a picture as uint8 RGB `[H, W, 3]`, turned upright by its EXIF tag.

    Raises:
        InputError: the file is missing, empty or no picture.
    """
    existing_file(path, "picture")
    picture = _decoded(path, cv2.IMREAD_COLOR)
    if picture is None:
        raise InputError(
            f"{path} is no readable picture.",
            "OpenCV could not decode it: it is damaged or of another kind.",
            f"Pass a picture ({', '.join(suffix[1:] for suffix in PICTURE_SUFFIXES)}) or a video.",
        )
    frame: Frame = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return frame


def read_depth_png(path: Path, units_per_metre: float) -> npt.NDArray[np.float32]:
    """Read a 16-bit depth PNG as metres, float32 `[H, W]`, 0 = no value.

    Raises:
        InputError: the file is missing, no picture, or not 16-bit with one channel.
    """
    existing_file(path, "depth picture")
    raw = _decoded(path, cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
        found = "no picture" if raw is None else f"{raw.dtype} with shape {raw.shape}"
        raise InputError(
            f"{path} is no depth picture.",
            f"Depth is one channel of 16 bits; this is {found}.",
            "Save depth as 16-bit grey PNG, for example in millimetres (--units-per-metre 1000).",
        )
    depth_m: npt.NDArray[np.float32] = raw.astype(np.float32) / np.float32(units_per_metre)
    return depth_m
