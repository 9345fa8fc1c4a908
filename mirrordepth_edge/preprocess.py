"""Frames to network input, on the CPU; training, export and every backend resize frames here."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import InputKind, PreprocessConfig, SizeHW
from mirrordepth_edge.errors import InputError

Frame = npt.NDArray[np.uint8]


def resize_frame(frame: Frame, size_hw: SizeHW, out: Frame | None = None) -> Frame:
    """Resize a frame by stretching: area-averaged when it shrinks, bilinear when it grows.

    Args:
        frame: uint8 `[H, W, 3]`.
        out: uint8 `[h, w, 3]`, written in place if given.

    Returns:
        uint8 `[h, w, 3]`.
    """
    height, width = size_hw
    if frame.shape[:2] == (height, width):
        if out is None:
            return frame
        np.copyto(out, frame)
        return out
    shrinks = frame.shape[0] >= height and frame.shape[1] >= width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: Any = cv2.resize(frame, (width, height), dst=out, interpolation=interpolation)
    return resized  # type: ignore[no-any-return]


def normalise(image: Frame, config: PreprocessConfig) -> npt.NDArray[np.float32]:
    """Scale to 0..1, subtract mean, divide by std: uint8 RGB `[H, W, 3]` to float32 `[1, 3, H, W]`."""
    mean, std = np.asarray(config.mean, np.float32), np.asarray(config.std, np.float32)
    normalised = (image.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], np.float32)


def check_frame(frame: Frame) -> None:
    """Refuse anything that is not an RGB picture.

    Raises:
        InputError: wrong dtype, rank or channel count, or no pixels.
    """
    if frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8 and frame.size:
        return
    raise InputError(
        f"A frame of shape {frame.shape} and type {frame.dtype} cannot be used.",
        "A frame is uint8 RGB of shape [H, W, 3].",
        "Convert it first, for example with cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).",
    )


class Preprocessor:
    """Frames of any size to the network's input, through one buffer.

    Args:
        config: size, mean and std.
        io: `uint8` gives `[1, H, W, 3]`, as the engines take it; `float` gives normalised
            float32 `[1, 3, H, W]`.
    """

    def __init__(self, config: PreprocessConfig, io: InputKind = "uint8") -> None:
        self.config = config
        self.io = io
        self._buffer = np.empty((1, *config.size_hw, 3), np.uint8)

    def __call__(self, frame: Frame) -> npt.NDArray[Any]:
        """
        Args:
            frame: uint8 RGB `[H, W, 3]`.

        Returns:
            The network input; valid until the next call.
        """
        check_frame(frame)
        resize_frame(frame, self.config.size_hw, out=self._buffer[0])
        return self._buffer if self.io == "uint8" else normalise(self._buffer[0], self.config)
