"""Pictures for people: titles, scale bars, pictures side by side, and their files.

OpenCV only; RGB throughout, and turned to OpenCV's BGR only where a file is encoded.
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
"""Between pictures side by side."""
PAPER = 255
GREY = 128
FONT = cv2.FONT_HERSHEY_SIMPLEX
NEAREST_M = 0.1
"""Where a colour scale starts unless told otherwise; nothing that a camera sees is nearer."""
# Sizes for a picture of up to 480 lines; all of them grow with taller ones.
FONT_SCALE = 0.45
TITLE_SCALE = 0.6
TITLE_STRIP_PX = 28
BAR_WIDTH_PX = 18
TICK_PX = 5
TICK_SPACING_PX = 48


def colour_limits(
    near_m: float | None, far_m: float | None, depth_limits_m: tuple[float, float]
) -> tuple[float, float]:
    """The ends of a colour scale, in metres: as asked, else the model's own, from `NEAREST_M` up.

    Raises:
        OptionError: the ends are in the wrong order, or negative.
    """
    near = max(depth_limits_m[0], NEAREST_M) if near_m is None else near_m
    far = depth_limits_m[1] if far_m is None else far_m
    if not 0 <= near < far:
        raise OptionError(
            f"Colours cannot run from {near:g} m to {far:g} m.",
            "It takes 0 <= --near < --far.",
            f"--near {NEAREST_M:g} --far {max(depth_limits_m[1], 1):g}",
        )
    return near, far


def scale_bar(height_px: int, limits_m: tuple[float, float]) -> Frame:
    """The colours of `colourise` with their distances: near at the bottom, far at the top.

    Returns:
        uint8 RGB `[height_px, W, 3]`.
    """
    return bar(height_px, limits_m, lambda depth_m: colourise(depth_m, limits_m), lambda value: f"{value:g} m")


def error_bar(height_px: int, limit: float = 0.5) -> Frame:
    """The colours of `error_colours` with their relative errors in percent: none at the bottom.

    Returns:
        uint8 RGB `[height_px, W, 3]`.
    """
    return bar(height_px, (0.0, limit), lambda error: error_colours(error, limit), lambda value: f"{100 * value:g} %")


def error_colours(relative_error: npt.NDArray[np.float32], limit: float = 0.5) -> Frame:
    """Relative error as colour, from dark (none) to bright (`limit` and beyond).

    Args:
        relative_error: `|p - y| / y`, float32 `[H, W]`; NaN where there is no ground truth.

    Returns:
        uint8 RGB `[H, W, 3]`, grey where NaN.
    """
    levels = (np.nan_to_num(relative_error / limit, nan=0.0, posinf=1.0).clip(0, 1) * 255).astype(np.uint8)
    colours: Any = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    colours[np.isnan(relative_error)] = GREY
    return colours  # type: ignore[no-any-return]


def titled(picture: Frame, title: str) -> Frame:
    """The picture under a white strip with its title, which is made smaller where it would not fit.

    Args:
        picture: uint8 RGB `[H, W, 3]`.
        title: ASCII, all that OpenCV's fonts can draw.

    Returns:
        uint8 RGB `[H + strip, W, 3]`; the strip is the same for pictures of the same height.
    """
    height, width = picture.shape[:2]
    strip_px = round(TITLE_STRIP_PX * _growth(height))
    scale = TITLE_SCALE * _growth(height)
    scale *= min(1.0, 0.96 * width / max(text_size(title, scale)[0], 1))
    text_width, text_height = text_size(title, scale)
    canvas = np.full((strip_px + height, width, 3), PAPER, np.uint8)
    canvas[strip_px:] = picture
    put_text(canvas, title, ((width - text_width) // 2, (strip_px + text_height) // 2), scale)
    return canvas


def side_by_side(pictures: Sequence[Frame], gap: int = GAP_PX, out: Frame | None = None) -> Frame:
    """Pictures from left to right on white, their lower edges in line.

    Args:
        pictures: uint8 RGB `[H, W, 3]` each, of any sizes.
        gap: pixels between two pictures.
        out: a result of an earlier call with the same sizes, which is filled again and returned.

    Returns:
        uint8 RGB `[max H, sum of W + gaps, 3]`.
    """
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    if out is None or out.shape != (height, width, 3):
        out = np.full((height, width, 3), PAPER, np.uint8)
    left = 0
    for picture in pictures:
        out[height - picture.shape[0] :, left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return out


def stacked(pictures: Sequence[Frame], gap: int = GAP_PX) -> Frame:
    """Pictures from top to bottom on white, their left edges in line.

    Returns:
        uint8 RGB `[sum of H + gaps, max W, 3]`.
    """
    width = max(picture.shape[1] for picture in pictures)
    height = sum(picture.shape[0] for picture in pictures) + gap * (len(pictures) - 1)
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    top = 0
    for picture in pictures:
        canvas[top : top + picture.shape[0], : picture.shape[1]] = picture
        top += picture.shape[0] + gap
    return canvas


def save_png(path: Path, picture: Frame | npt.NDArray[np.uint16], *, durable: bool = True) -> None:
    """Write a PNG, whole: uint8 RGB `[H, W, 3]`, or one channel `[H, W]` of uint8 or uint16."""
    ordered = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    encoded = cv2.imencode(".png", ordered)[1]
    with atomic_write(path, durable=durable) as temporary:
        temporary.write_bytes(encoded.tobytes())


def save_npy(path: Path, array: npt.NDArray[Any], *, durable: bool = True) -> None:
    """Write a NumPy file, whole."""
    with atomic_write(path, durable=durable) as temporary:
        np.save(temporary, array)


@contextmanager
def saved_video(path: Path, rate_hz: float) -> Iterator[Callable[[Frame], None]]:
    """Yield a function that appends uint8 RGB `[H, W, 3]` to an MP4, written whole.

    Raises:
        MissingError: this OpenCV cannot encode video.
    """
    codec = cv2.VideoWriter.fourcc(*"mp4v")  # the one that every OpenCV wheel brings
    video = cv2.VideoWriter()

    with atomic_write(path) as temporary:

        def append(picture: Frame) -> None:
            size = picture.shape[1], picture.shape[0]
            if not video.isOpened() and not video.open(str(temporary), codec, rate_hz, size):
                why = "It was built without FFmpeg or another encoder."
                raise MissingError("This OpenCV cannot write MP4 videos.", why, "pip install opencv-python")
            video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

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
    """A scale of any quantity, its low end at the bottom.

    Args:
        limits: values at the bottom and at the top.
        colours: from values, float32 `[H, 1]`, to uint8 RGB `[H, 1, 3]`.
        label: a value in words.
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
        # Labels at the ends move inwards, so that they stay whole.
        baseline = min(max(row + text_height // 2, text_height + 1), height_px - 2)
        put_text(canvas, text, (label_left, baseline), scale)
    return canvas


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most + 1` round values (1, 2 or 5 times a power of ten apart) from low to high."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 9) for index in range(first, last + 1)]


def _growth(height_px: int) -> float:
    return max(1.0, height_px / 480)


def text_size(text: str, scale: float) -> tuple[int, int]:
    """Width and height in pixels, without what hangs below the baseline."""
    (width, height), _ = cv2.getTextSize(text, FONT, scale, _thickness(scale))
    return width, height


def _thickness(scale: float) -> int:
    return max(1, round(1.5 * scale))


def put_text(canvas: Frame, text: str, left_baseline: tuple[int, int], scale: float) -> None:
    """Write ASCII on a picture, in place, from the left end of its baseline (x, y)."""
    cv2.putText(canvas, text, left_baseline, FONT, scale, INK, _thickness(scale), cv2.LINE_AA)
