"""Figures: titles, scale bars, images side by side, and image and video files.

OpenCV only. Images are RGB, and are converted to OpenCV's BGR only when a file is encoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import MissingError, OptionError
from mirrordepth_edge.imaging.postprocess import colourise
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import atomic_write

INK = (32, 32, 32)
GAP_PX = 12
"""Gap between images side by side."""
PAPER = 255
GREY = 128
FONT = cv2.FONT_HERSHEY_SIMPLEX
NEAREST_M = 0.1
"""Default lower end of a colour scale; closer objects are out of focus or hidden by the lens."""
# Sizes for images up to 480 pixels high; they scale with taller ones.
FONT_SCALE = 0.45
TITLE_SCALE = 0.6
TITLE_STRIP_PX = 28
BAR_WIDTH_PX = 18
TICK_PX = 5
TICK_SPACING_PX = 48


def colour_limits(
    near_m: float | None, far_m: float | None, depth_limits_m: tuple[float, float]
) -> tuple[float, float]:
    """Return the ends of the colour scale in metres: the given ones, else the model's range from `NEAREST_M`.

    Raises:
        OptionError: the ends are negative or in the wrong order.
    """
    near = max(depth_limits_m[0], NEAREST_M) if near_m is None else near_m
    far = depth_limits_m[1] if far_m is None else far_m
    if not 0 <= near < far:
        raise OptionError(
            f"The colour scale cannot run from {near:g} m to {far:g} m.",
            "--near must be at least 0 and less than --far.",
            f"--near {NEAREST_M:g} --far {max(depth_limits_m[1], 1):g}",
        )
    return near, far


def scale_bar(height_px: int, limits_m: tuple[float, float]) -> Frame:
    """Draw the colour scale of `colourise`, labelled in metres, near at the bottom.

    Returns:
        uint8 RGB `[height_px, W, 3]`.
    """
    return bar(height_px, limits_m, lambda depth_m: colourise(depth_m, limits_m), lambda value: f"{value:g} m")


def error_bar(height_px: int, limit: float = 0.5) -> Frame:
    """Draw the colour scale of `error_colours`, labelled in percent, 0 at the bottom.

    Returns:
        uint8 RGB `[height_px, W, 3]`.
    """
    return bar(height_px, (0.0, limit), lambda error: error_colours(error, limit), lambda value: f"{100 * value:g} %")


def error_colours(relative_error: npt.NDArray[np.float32], limit: float = 0.5) -> Frame:
    """Colour relative errors from dark (0) to bright (`limit` and above).

    Args:
        relative_error: `|p - y| / y`, float32 `[H, W]`; NaN marks pixels without ground truth.

    Returns:
        uint8 RGB `[H, W, 3]`, grey for NaN.
    """
    levels = (np.nan_to_num(relative_error / limit, nan=0.0, posinf=1.0).clip(0, 1) * 255).astype(np.uint8)
    colours: Any = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    colours[np.isnan(relative_error)] = GREY
    return colours  # type: ignore[no-any-return]


def titled(image: Frame, title: str) -> Frame:
    """Return the image below a white strip with a title, whose font shrinks to fit.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        title: ASCII; OpenCV's fonts have no other characters.

    Returns:
        uint8 RGB `[H + strip, W, 3]`; the strip has the same height for images of the same height.
    """
    height, width = image.shape[:2]
    strip_px = round(TITLE_STRIP_PX * _growth(height))
    scale = TITLE_SCALE * _growth(height)
    # A margin of 2 % at each side.
    scale *= min(1.0, 0.96 * width / max(text_size(title, scale)[0], 1))
    text_width, text_height = text_size(title, scale)
    canvas = np.full((strip_px + height, width, 3), PAPER, np.uint8)
    canvas[strip_px:] = image
    put_text(canvas, title, ((width - text_width) // 2, (strip_px + text_height) // 2), scale)
    return canvas


def side_by_side(images: Sequence[Frame], gap: int = GAP_PX, out: Frame | None = None) -> Frame:
    """Place images from left to right on white, aligned at the bottom.

    Args:
        images: uint8 RGB `[H, W, 3]` each, of any sizes.
        gap: pixels between two images.
        out: result of an earlier call with the same sizes, which is overwritten and returned.

    Returns:
        uint8 RGB `[max H, sum of W + gaps, 3]`.
    """
    height = max(image.shape[0] for image in images)
    width = sum(image.shape[1] for image in images) + gap * (len(images) - 1)
    if out is None or out.shape != (height, width, 3):
        out = np.full((height, width, 3), PAPER, np.uint8)
    left = 0
    for image in images:
        out[height - image.shape[0] :, left : left + image.shape[1]] = image
        left += image.shape[1] + gap
    return out


def stacked(images: Sequence[Frame], gap: int = GAP_PX) -> Frame:
    """Place images from top to bottom on white, aligned at the left.

    Returns:
        uint8 RGB `[sum of H + gaps, max W, 3]`.
    """
    width = max(image.shape[1] for image in images)
    height = sum(image.shape[0] for image in images) + gap * (len(images) - 1)
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    top = 0
    for image in images:
        canvas[top : top + image.shape[0], : image.shape[1]] = image
        top += image.shape[0] + gap
    return canvas


def save_png(path: Path, image: Frame | npt.NDArray[np.uint16], *, durable: bool = True) -> None:
    """Write a PNG atomically: uint8 RGB `[H, W, 3]`, or one channel `[H, W]` of uint8 or uint16."""
    ordered = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    encoded = cv2.imencode(".png", ordered)[1]
    with atomic_write(path, durable=durable) as temporary:
        temporary.write_bytes(encoded.tobytes())


def save_npy(path: Path, array: npt.NDArray[Any], *, durable: bool = True) -> None:
    """Write a NumPy file atomically."""
    with atomic_write(path, durable=durable) as temporary:
        np.save(temporary, array)


@contextmanager
def video_writer(path: Path, rate_hz: float) -> Iterator[Callable[[Frame], None]]:
    """Write an MP4 atomically; yields a function that appends a frame, uint8 RGB `[H, W, 3]`.

    Raises:
        MissingError: this OpenCV cannot encode video.
    """
    codec = cv2.VideoWriter.fourcc(*"mp4v")  # supported by every OpenCV wheel
    video = cv2.VideoWriter()

    with atomic_write(path) as temporary:

        def append(frame: Frame) -> None:
            size = frame.shape[1], frame.shape[0]
            if not video.isOpened() and not video.open(str(temporary), codec, rate_hz, size):
                why = "It was built without FFmpeg or another encoder."
                raise MissingError("This OpenCV cannot write MP4 videos.", why, "pip install opencv-python")
            video.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

        try:
            yield append
        finally:
            video.release()


def bar(
    height_px: int,
    limits: tuple[float, float],
    colours: Callable[[npt.NDArray[np.float32]], Frame],
    label: Callable[[float], str],
) -> Frame:
    """Draw a colour scale of any quantity, the low end at the bottom.

    Args:
        limits: values at the bottom and at the top.
        colours: maps values, float32 `[H, 1]`, to uint8 RGB `[H, 1, 3]`.
        label: formats a value.
    """
    low, high = limits
    growth = _growth(height_px)
    scale, bar_px, tick_px = FONT_SCALE * growth, round(BAR_WIDTH_PX * growth), round(TICK_PX * growth)
    ticks = round_ticks(low, high, max(1, int(height_px / (TICK_SPACING_PX * growth))))
    labels = [label(value) for value in ticks]
    sizes = [text_size(text, scale) for text in labels]
    label_left = bar_px + 2 * tick_px
    width = label_left + max((size[0] for size in sizes), default=0) + tick_px
    canvas = np.full((height_px, width, 3), PAPER, np.uint8)
    canvas[:, :bar_px] = colours(np.linspace(high, low, height_px, dtype=np.float32)[:, None])
    for value, text, (_, text_height) in zip(ticks, labels, sizes, strict=True):
        row = round((high - value) / (high - low) * (height_px - 1))
        canvas[row, bar_px : bar_px + tick_px] = INK
        # Labels at the ends move inwards, so that they are not cut off.
        baseline = min(max(row + text_height // 2, text_height + 1), height_px - 2)
        put_text(canvas, text, (label_left, baseline), scale)
    return canvas


def round_ticks(low: float, high: float, max_intervals: int) -> list[float]:
    """Return at most `max_intervals + 1` ticks from low to high, at steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max_intervals
    power = 10.0 ** math.floor(math.log10(rough))
    # The tolerance keeps rounding errors from choosing the next larger step.
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 9) for index in range(first, last + 1)]


def _growth(height_px: int) -> float:
    return max(1.0, height_px / 480)


def text_size(text: str, scale: float) -> tuple[int, int]:
    """Return width and height in pixels, without descenders."""
    (width, height), _ = cv2.getTextSize(text, FONT, scale, _thickness(scale))
    return width, height


def _thickness(scale: float) -> int:
    return max(1, round(1.5 * scale))


def put_text(canvas: Frame, text: str, left_baseline: tuple[int, int], scale: float) -> None:
    """Draw ASCII text on an image in place, from the left end of its baseline (x, y)."""
    cv2.putText(canvas, text, left_baseline, FONT, scale, INK, _thickness(scale), cv2.LINE_AA)
