"""Metric scale from known distances: the factor between a network's depth and metres.

A network's depth is off by about the same factor all over an image, because lens and scene differ from those of the
training data. A point at a known distance gives the factor: true depth / predicted depth. Of several points the median
is used, in logarithms, where twice as far and half as far are equal errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.config import Strict
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap, has_depth
from mirrordepth_edge.support.units import LENGTH, in_metres

EXAMPLE = "--set-scale 320,240=1.85m"
POINT = re.compile(rf"(\d{{1,5}})\s*,\s*(\d{{1,5}})\s*=\s*{LENGTH}")
MAX_DISTANCE_M = 1000.0
MAX_FACTOR = 20.0
"""A factor above it, or below its inverse, is more likely a typing error than a real camera."""
WINDOW_PX = 5
"""Side of the square window of pixels around a point."""
MAX_SPREAD = 0.1
"""Range of the depths in the window over their median; above it the point lies on an edge."""


@dataclass(frozen=True, kw_only=True)
class KnownPoint:
    """A pixel whose distance from the camera is known."""

    x_px: int
    y_px: int
    distance_m: float
    """Straight-line distance from the camera, as a tape measures it."""

    def __str__(self) -> str:
        return f"{self.x_px},{self.y_px}={self.distance_m:g}m"


def parse_known(texts: str | Sequence[str]) -> tuple[KnownPoint, ...]:
    """Parse points such as `320,240=1.85m`, separated by spaces or semicolons.

    Raises:
        OptionError: there is no point, or the text is not valid.
    """
    text = (texts if isinstance(texts, str) else " ".join(texts)).lower().strip()
    points, rest = [], text
    while match := POINT.match(rest):
        x, y, number, unit = match.groups()
        points.append(KnownPoint(x_px=int(x), y_px=int(y), distance_m=in_metres(number, unit)))
        after = rest[match.end() :]
        rest = after.lstrip(" \t;")
        # Two points without a separator are rejected, not guessed.
        if rest == after:
            break
    if rest or not points:
        raise OptionError(
            f"{rest or text!r} is not a known distance.",
            "The format is X,Y=D: a pixel, counted from the upper left, and a distance with unit (m, cm, mm, ft, in).",
            EXAMPLE,
        )
    for point in points:
        if not 0 < point.distance_m <= MAX_DISTANCE_M:
            why = f"It must be greater than 0 and at most {MAX_DISTANCE_M:g} m."
            raise OptionError(f"The distance in {point} is out of range.", why, EXAMPLE)
    return tuple(points)


def depth_near(depth_m: DepthMap, x_px: int, y_px: int) -> float:
    """Return the depth at a pixel: the median of the valid depths in a window around it.

    Args:
        depth_m: float32 `[H, W]`, metres; values that are 0, negative or not finite are invalid.

    Raises:
        OptionError: the pixel is outside the frame, most of the window has no depth, or it lies on an edge.
    """
    height, width = depth_m.shape
    if not (0 <= x_px < width and 0 <= y_px < height):
        raise OptionError(
            f"Pixel {x_px},{y_px} is outside the frame.",
            f"Frames are {width}x{height}; 0,0 is the upper left pixel.",
            f"Choose a pixel between 0,0 and {width - 1},{height - 1}.",
        )
    reach = WINDOW_PX // 2
    window = depth_m[max(0, y_px - reach) : y_px + reach + 1, max(0, x_px - reach) : x_px + reach + 1]
    valid = window[has_depth(window)]
    if 2 * valid.size <= window.size:
        raise OptionError(
            f"There is no depth at {x_px},{y_px}.",
            f"{window.size - valid.size} of the {window.size} pixels around it have no depth.",
            "Choose a point in the middle of a large, flat surface.",
        )
    median_m, min_m, max_m = float(np.median(valid)), float(valid.min()), float(valid.max())
    if max_m - min_m > MAX_SPREAD * median_m:
        raise OptionError(
            f"Pixel {x_px},{y_px} lies on an edge.",
            f"Within {WINDOW_PX} pixels the depth ranges from {min_m:.2f} to {max_m:.2f} m.",
            "Choose a point in the middle of a large, flat surface, such as a wall.",
        )
    return median_m


def depth_along_axis(point: KnownPoint, camera: Camera | None) -> float:
    """Convert a point's distance to depth: z = d / sqrt(1 + ((u - cx) / fx)^2 + ((v - cy) / fy)^2).

    Args:
        camera: the camera at this frame size. If None, the distance is returned, which is exact at the image centre.
    """
    if camera is None:
        return point.distance_m
    x = (point.x_px - camera.cx_px) / camera.fx_px
    y = (point.y_px - camera.cy_px) / camera.fy_px
    return point.distance_m / math.sqrt(1 + x * x + y * y)


@dataclass(frozen=True, kw_only=True)
class Reading(Strict):
    """A known depth, and the network's depth at the same pixel."""

    true_m: float
    network_m: float
    """Without any factor."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(depth_m) and depth_m > 0 for depth_m in (self.true_m, self.network_m)):
            raise ValueError("depths must be finite and greater than 0")

    @property
    def log_ratio(self) -> float:
        return math.log(self.true_m / self.network_m)


@dataclass(frozen=True, kw_only=True)
class KnownScale(Strict):
    """The scale factor that follows from known distances."""

    readings: tuple[Reading, ...]

    def __post_init__(self) -> None:
        if not self.readings or not 1 / MAX_FACTOR <= self.factor <= MAX_FACTOR:
            raise ValueError(f"a scale must be between 1/{MAX_FACTOR:g} and {MAX_FACTOR:g}")

    @property
    def factor(self) -> float:
        """exp of the median of ln(true / network). With three points, one wrong distance does no harm."""
        return math.exp(median(reading.log_ratio for reading in self.readings))

    @property
    def residual_percent(self) -> float | None:
        """Disagreement of the points: the standard deviation of their log ratios about the factor's, in percent.

        Not a robust estimate, so that a wrong distance shows. None with a single point.
        """
        if len(self.readings) < 2:
            return None
        log_factor = math.log(self.factor)
        squares = sum((reading.log_ratio - log_factor) ** 2 for reading in self.readings)
        return 100 * math.expm1(math.sqrt(squares / (len(self.readings) - 1)))

    def __str__(self) -> str:
        if self.residual_percent is None:
            return f"metres times {self.factor:.3g} (1 known distance; add a second to check it)"
        return f"metres times {self.factor:.3g} ({len(self.readings)} known distances, ±{self.residual_percent:.1f} %)"


def scale_of(readings: Sequence[Reading]) -> KnownScale:
    """Return the scale that follows from these readings.

    Raises:
        OptionError: the factor is implausibly large or small.
    """
    try:
        return KnownScale(readings=tuple(readings))
    except ValueError as error:
        pairs = ", ".join(f"{r.true_m:.3g} m where the network predicts {r.network_m:.3g} m" for r in readings)
        raise OptionError(
            "These distances give no plausible scale.",
            f"{pairs}: {error}.",
            f"Check the number, the unit, and that the pixel shows what was measured: {EXAMPLE}",
        ) from error


class PointAndType:
    """State of a window in which the user clicks a pixel and types its distance."""

    KEYS = frozenset("0123456789. mcftin")
    ENTER, BACK, ESCAPE = (10, 13), (8, 127), 27

    def __init__(self) -> None:
        self._at_px: tuple[int, int] | None = None
        self._typed = ""

    @property
    def prompt(self) -> str | None:
        """Text to show; None if no distance is being typed and keys have their usual meaning."""
        if self._at_px is None:
            return None
        return f"distance at {self._at_px[0]},{self._at_px[1]}, such as 1.85m: {self._typed}_"

    def click(self, x_px: int, y_px: int) -> None:
        """Start a new point at this pixel of the frame."""
        self._at_px, self._typed = (x_px, y_px), ""

    def key(self, code: int) -> KnownPoint | None:
        """Handle a key (its character code). Return the point when Enter completes it.

        Raises:
            OptionError: the text is not a distance; the pixel is kept, the text is cleared.
        """
        if self._at_px is None:
            return None
        if code == self.ESCAPE:
            self._at_px = None
        elif code in self.BACK:
            self._typed = self._typed[:-1]
        elif code in self.ENTER:
            typed, self._typed = self._typed, ""
            (point,) = parse_known(f"{self._at_px[0]},{self._at_px[1]}={typed}")
            self._at_px = None
            return point
        # Other keys are ignored, so that they do not act on the window while the user types.
        elif 0 <= code < 128 and chr(code).lower() in self.KEYS:
            self._typed += chr(code).lower()
        return None
