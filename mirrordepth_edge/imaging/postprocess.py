"""Resize predicted depth to the frame, and convert it to millimetres and colours."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import SizeHW

DepthMap = npt.NDArray[np.float32]
MILLIMETRES_PER_METRE = 1000.0


def resize_depth_to(depth_m: DepthMap, size_hw: SizeHW, out: DepthMap | None = None) -> DepthMap:
    """Resize a depth map bilinearly, as evaluation protocols do: `[h, w]` to `[H, W]`."""
    resized: Any = cv2.resize(depth_m, (size_hw[1], size_hw[0]), dst=out, interpolation=cv2.INTER_LINEAR)
    return resized  # type: ignore[no-any-return]


class Postprocessor:
    """Resize predicted depth to the frame's size, in a buffer that is reused while the size stays."""

    def __init__(self) -> None:
        self._buffer: DepthMap | None = None

    def __call__(self, depth_m: DepthMap, size_hw: SizeHW) -> DepthMap:
        """
        Args:
            depth_m: float32 `[1, h, w]`, metres.
            size_hw: the frame's size.

        Returns:
            float32 `[H, W]`, metres; valid until the next call.
        """
        if self._buffer is None or self._buffer.shape != tuple(size_hw):
            self._buffer = np.empty(size_hw, np.float32)
        return resize_depth_to(depth_m[0], size_hw, out=self._buffer)


def has_depth(depth_m: DepthMap) -> npt.NDArray[np.bool_]:
    """Return which pixels have a depth: finite and greater than 0. Same shape as the input."""
    return np.isfinite(depth_m) & (depth_m > 0)


def to_millimetres(depth_m: DepthMap) -> npt.NDArray[np.uint16]:
    """Convert metres to 16-bit millimetres, as ROS and most tools expect; 0 for no depth, at most 65.535 m."""
    # Casting NaN or infinity to an integer is undefined.
    millimetres = np.nan_to_num(depth_m * MILLIMETRES_PER_METRE, nan=0.0, posinf=0.0, neginf=0.0)
    in_range: npt.NDArray[np.float32] = np.clip(millimetres.round(), 0, np.iinfo(np.uint16).max)
    return in_range.astype(np.uint16)


def colourise(depth_m: DepthMap, limits_m: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Colour depth, near bright and far dark, with cividis, which colour-blind people can read.

    The scale is fixed by `limits_m`, not by the frame, so that a colour means the same distance in every frame. Pixels
    without depth (0, NaN, infinite) are grey.

    Returns:
        uint8 RGB `[H, W, 3]`.
    """
    near, far = limits_m
    nearness = (far - np.nan_to_num(depth_m, nan=far, posinf=far, neginf=far)) / (far - near)
    levels = (nearness.clip(0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_CIVIDIS), cv2.COLOR_BGR2RGB)
    colours[~has_depth(depth_m)] = 128
    return colours  # type: ignore[return-value]
