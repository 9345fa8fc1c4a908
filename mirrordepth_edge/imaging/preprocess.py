"""Convert frames to network input on the CPU; training, export and every backend resize frames here."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import InputKind, PreprocessConfig, SizeHW
from mirrordepth_edge.errors import InputError

Frame = npt.NDArray[np.uint8]


class Resizer:
    """Resize frames to one size, ignoring their aspect ratio, with buffers that are reused while the size stays.

    Downscaling averages over areas, so that fine texture does not alias. OpenCV's `INTER_AREA` is slow unless the ratio
    is an integer. So a frame is halved while it is at least four times too large, then resized bilinearly to the
    nearest integer multiple of the target size, then averaged over whole blocks.

    Args:
        size_hw: target size.
    """

    def __init__(self, size_hw: SizeHW) -> None:
        self.size_hw = size_hw
        self._frame_hw: SizeHW | None = None
        self._between: list[Frame] = []

    def __call__(self, frame: Frame, out: Frame | None = None) -> Frame:
        """
        Args:
            frame: uint8 `[H, W, 3]`.
            out: uint8 `[h, w, 3]`, overwritten if given.

        Returns:
            uint8 `[h, w, 3]`: `out`, or the frame itself if it already has the target size, or a new array.
        """
        if frame.shape[:2] == self.size_hw:
            if out is None:
                return frame
            np.copyto(out, frame)
            return out
        if self._frame_hw != frame.shape[:2]:
            self._between = [np.empty((*hw, 3), np.uint8) for hw in sizes_between(frame.shape[:2], self.size_hw)]
            self._frame_hw = (frame.shape[0], frame.shape[1])
        for buffer in self._between:
            frame = _stretch(frame, (buffer.shape[0], buffer.shape[1]), buffer)
        return _stretch(frame, self.size_hw, out)


def resize_frame(frame: Frame, size_hw: SizeHW, out: Frame | None = None) -> Frame:
    """Resize one frame, as `Resizer` does."""
    return Resizer(size_hw)(frame, out)


def sizes_between(frame_hw: SizeHW, size_hw: SizeHW) -> list[SizeHW]:
    """Return the intermediate sizes between a frame and `size_hw`, without both ends."""
    (rows, columns), (height, width), sizes = frame_hw, size_hw, []
    # Exact halves are fast; they leave at least twice the target size for the averaging below.
    while rows >= 4 * height and columns >= 4 * width and rows % 2 == columns % 2 == 0:
        rows, columns = rows // 2, columns // 2
        sizes.append((rows, columns))
    multiple = (max(1, round(rows / height)) * height, max(1, round(columns / width)) * width)
    if multiple not in ((rows, columns), size_hw):
        sizes.append(multiple)
    return sizes


def _stretch(frame: Frame, size_hw: SizeHW, out: Frame | None) -> Frame:
    """Average over blocks of pixels if the ratio is an integer, else resize bilinearly."""
    (rows, columns), (height, width) = frame.shape[:2], size_hw
    blocks = rows % height == columns % width == 0
    interpolation = cv2.INTER_AREA if blocks else cv2.INTER_LINEAR
    resized: Any = cv2.resize(frame, (width, height), dst=out, interpolation=interpolation)
    return resized  # type: ignore[no-any-return]


def normalise(image: Frame, config: PreprocessConfig) -> npt.NDArray[np.float32]:
    """Scale to 0..1, subtract the mean and divide by std: uint8 RGB `[H, W, 3]` to float32 `[1, 3, H, W]`."""
    mean, std = np.asarray(config.mean, np.float32), np.asarray(config.std, np.float32)
    normalised = (image.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], np.float32)


def check_frame(frame: Frame) -> None:
    """Check that a frame is an RGB image.

    Raises:
        InputError: wrong dtype, rank or channel count, or no pixels.
    """
    if frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8 and frame.size:
        return
    raise InputError(
        f"A frame of shape {frame.shape} and type {frame.dtype} cannot be used.",
        "A frame must be uint8 RGB of shape [H, W, 3].",
        "Convert it first, for example with cv2.cvtColor(image, cv2.COLOR_BGR2RGB).",
    )


class Preprocessor:
    """Convert frames of any size to the network's input, in one reused buffer.

    Args:
        config: size, mean and std.
        io: `uint8` returns `[1, H, W, 3]`, as engines take it; `float` returns normalised float32 `[1, 3, H, W]`.
    """

    def __init__(self, config: PreprocessConfig, io: InputKind = "uint8") -> None:
        self.config = config
        self.io = io
        self._resize = Resizer(config.size_hw)
        self._buffer = np.empty((1, *config.size_hw, 3), np.uint8)

    @property
    def image(self) -> Frame:
        """The last frame at the network's size, uint8 RGB `[h, w, 3]`; valid until the next call."""
        image: Frame = self._buffer[0]
        return image

    def __call__(self, frame: Frame) -> npt.NDArray[Any]:
        """
        Args:
            frame: uint8 RGB `[H, W, 3]`.

        Returns:
            The network input; valid until the next call.
        """
        check_frame(frame)
        self._resize(frame, out=self._buffer[0])
        return self._buffer if self.io == "uint8" else normalise(self._buffer[0], self.config)
