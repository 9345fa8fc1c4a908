"""Metric scale from known distances: one factor for a camera, a frame size and a model, and the file that stores it.

A network's depth is off by about the same factor all over an image, because lens and scene differ from those of the
training data. A point at a known distance gives the factor: true depth / predicted depth. Of several points the median
is used, in logarithms, where twice as far and half as far are equal errors.

Factors apply to the network's own output. So they hold whatever camera is given, and replace the factor that follows
from it (`camera.model.scale_for`).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Final, Literal

import numpy as np
import platformdirs

from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.config import SizeHW, Strict
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.support.files import existing_file, read_json, sha256_of, write_json
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.support.units import LENGTH, in_metres

STORE_VERSION: Final = 1
EXAMPLE = "--set-scale 320,240=1.85m"
POINT = re.compile(rf"(\d{{1,5}})\s*,\s*(\d{{1,5}})\s*=\s*{LENGTH}")
MAX_DISTANCE_M = 1000.0
MAX_FACTOR = 20.0
"""A factor above it, or below its inverse, is more likely a typing error than a real camera."""
WINDOW_PX = 5
"""Side of the square window of pixels around a point."""
MAX_SPREAD = 0.1
"""Range of the depths in the window over their median; above it the point lies on an edge."""
BY_ID = Path("/dev/v4l/by-id")


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
    valid = window[np.isfinite(window) & (window > 0)]
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


@dataclass(frozen=True, kw_only=True)
class ScaleKey(Strict):
    """What a scale applies to."""

    camera: str
    """`camera_identity`."""
    frame_hw: SizeHW
    """A camera's modes are often crops of each other, and each crop needs a scale of its own."""
    checkpoint_sha256: str
    """Of the model's checkpoint, which is the same for its ONNX files and engines."""


@dataclass(frozen=True, kw_only=True)
class StoredScale(Strict):
    key: ScaleKey
    scale: KnownScale


@dataclass(frozen=True, kw_only=True)
class StoredScales(Strict):
    version: Literal[1] = STORE_VERSION
    scales: tuple[StoredScale, ...] = ()


class ScaleStore:
    """Stored scales, in a JSON file.

    Args:
        path: the file, which need not exist; `scales.json` in the user's configuration folder if None.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = Path(platformdirs.user_config_dir("mirrordepth-edge")) / "scales.json" if path is None else path

    def get(self, key: ScaleKey) -> KnownScale | None:
        """Return the scale stored for this key, if any.

        Raises:
            InputError: the file is not valid.
        """
        return next((stored.scale for stored in self._read().scales if stored.key == key), None)

    def cameras(self) -> set[str]:
        """Return the cameras that have a stored scale, for any model.

        Raises:
            InputError: the file is not valid.
        """
        return {stored.key.camera for stored in self._read().scales}

    def put(self, key: ScaleKey, scale: KnownScale) -> None:
        """Store a scale; it replaces an earlier one for this key.

        Raises:
            InputError: the file is not valid or cannot be written.
        """
        stored = self._read()
        others = tuple(entry for entry in stored.scales if entry.key != key)
        write_json(self.path, asdict(replace(stored, scales=(*others, StoredScale(key=key, scale=scale)))))

    def forget(self, camera: str, checkpoint_sha256: str) -> int:
        """Remove the scales of a camera and a model for all frame sizes. Return how many there were.

        Raises:
            InputError: the file is not valid or cannot be written.
        """
        stored, owner = self._read(), (camera, checkpoint_sha256)
        others = tuple(entry for entry in stored.scales if (entry.key.camera, entry.key.checkpoint_sha256) != owner)
        if others != stored.scales:
            write_json(self.path, asdict(replace(stored, scales=others)))
        return len(stored.scales) - len(others)

    def _read(self) -> StoredScales:
        if not self.path.exists():
            return StoredScales()
        cure = f"Delete {self.path}, or ignore it with --no-scale (Python: stored_scale=False)."
        return read_strict(StoredScales, read_json(self.path, "scale file", cure), str(self.path), cure)


class CameraScales:
    """Stored scales of one source and one model.

    Args:
        source: as `mde live --source` takes it.
        model: the model file.
        store: where scales are stored; the user's own store if None.
    """

    def __init__(self, source: str, model: Path, store: ScaleStore | None = None) -> None:
        self.camera = camera_identity(source)
        self.store = ScaleStore() if store is None else store
        self._model = model

    def get(self, size_hw: SizeHW) -> KnownScale | None:
        """Return the scale stored for frames of this size, if any.

        Raises:
            InputError: the scale file or the model's manifest is not valid.
        """
        # Most sources have no stored scale. Look for the source first: the key needs a hash of the model.
        return self.store.get(self.key(size_hw)) if self.camera in self.store.cameras() else None

    def factor(self, size_hw: SizeHW) -> float | None:
        """Return the factor stored for frames of this size, if any: a `known_scale` for `DepthPredictor`."""
        scale = self.get(size_hw)
        return None if scale is None else scale.factor

    def key(self, size_hw: SizeHW) -> ScaleKey:
        return ScaleKey(camera=self.camera, frame_hw=size_hw, checkpoint_sha256=self._checkpoint)

    def forget(self) -> int:
        """Remove the scales for all frame sizes. Return how many there were."""
        return self.store.forget(self.camera, self._checkpoint)

    @cached_property
    def _checkpoint(self) -> str:
        return checkpoint_sha256(self._model)


class ScaleSetter:
    """Set the scale of a running camera, point by point, and store it.

    Args:
        apply: called with the factor to multiply the network's depth by from now on.
        camera: the camera at this frame size (`camera.model.camera_at`), if known.
    """

    def __init__(
        self, store: ScaleStore, key: ScaleKey, apply: Callable[[float], object], camera: Camera | None = None
    ) -> None:
        self.store = store
        self.key = key
        self._apply = apply
        self.camera = camera
        self._readings: tuple[Reading, ...] = ()

    def add(self, points: Sequence[KnownPoint], depths_m: Iterable[DepthMap], factor: float) -> KnownScale:
        """Add known points. If one of them is rejected, nothing changes.

        Args:
            depths_m: predicted depth of one scene, float32 `[H, W]` each, at least one map. Of several the median is
                used, because predictions flicker.
            factor: what the network's depth was multiplied by in `depths_m`.

        Returns:
            The scale from these points and earlier ones, now applied and stored.

        Raises:
            OptionError: a point cannot be used, or the distances give no plausible scale.
            InputError: the store cannot be read or written; the scale is not applied.
        """
        shown_m = [[depth_near(depth_m, point.x_px, point.y_px) for point in points] for depth_m in depths_m]
        readings = self._readings
        for point, values_m in zip(points, zip(*shown_m, strict=True), strict=True):
            true_m = depth_along_axis(point, self.camera)
            # Readings hold the network's own depth, so undo the factor that was applied.
            readings += (Reading(true_m=true_m, network_m=median(values_m) / factor),)
        scale = scale_of(readings)
        # Store first: a scale that cannot be stored must not be applied.
        self.store.put(self.key, scale)
        self._readings = readings
        self._apply(scale.factor)
        return scale


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


def camera_identity(source: str) -> str:
    """Return a stable name, without credentials, for the camera behind `--source`.

    A camera's number depends on where it is plugged in. If udev names the device by maker and serial number, that name
    is used instead.
    """
    if "://" in source:
        return re.sub(r"//[^/@]*@", "//", source)
    path = Path(f"/dev/video{source}" if source.isdecimal() and sys.platform.startswith("linux") else source)
    device = path.resolve()
    names = sorted(link.name for link in BY_ID.glob("*") if link.resolve() == device)
    if names:
        return names[0]
    return str(device) if path.exists() else str(path)


def checkpoint_sha256(path: Path) -> str:
    """Return the SHA-256 of the checkpoint that a model file is, or was exported from.

    Raises:
        InputError: the file or its manifest cannot be used.
    """
    if path.suffix == ".safetensors":
        return sha256_of(existing_file(path, "checkpoint"))
    return read_manifest(path, verify=False).checkpoint_sha256
