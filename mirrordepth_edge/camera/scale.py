"""Metres from known distances: one factor for a camera and a model, and where it is kept.

A network's metres are off by about the same factor all over a camera's pictures, for lens and scene are not those it
learnt from. Where the distance of a point is known, the factor is: true depth over the network's. Of several points the
median is taken, in logarithms, where twice as far and half as far are equally wrong.

Factors are over the network's own metres. So they hold whatever is said of the lens, and take the place of what follows
from it (`camera.scale_for`).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final, Literal

import numpy as np

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.config import ModelConfig, SizeHW, Strict
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.support.files import existing_file, read_json, sha256_of, write_json
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.support.units import LENGTH, in_metres

STORE_VERSION: Final = 1
EXAMPLE = "--set-scale 320,240=1.85m"
POINT = re.compile(rf"(\d{{1,5}})\s*,\s*(\d{{1,5}})\s*=\s*{LENGTH}")
FARTHEST_M = 1000.0
MOST_FACTOR = 20.0
"""Beyond it, either way, a typing error is likelier than such a camera."""
WINDOW_PX = 5
"""Side of the square of pixels that is read around a point."""
MOST_SPREAD = 0.1
"""Of the depths in it, over their median: more is an edge."""
BY_ID = Path("/dev/v4l/by-id")


@dataclass(frozen=True, kw_only=True)
class KnownPoint:
    """A pixel of the camera's frames whose distance is known."""

    x_px: int
    y_px: int
    distance_m: float
    """From the camera to what is seen there, as a tape measures it."""

    def __str__(self) -> str:
        return f"{self.x_px},{self.y_px}={self.distance_m:g}m"


def parse_known(texts: str | Sequence[str]) -> tuple[KnownPoint, ...]:
    """Points such as `320,240=1.85m`; several are separated by spaces or semicolons.

    Raises:
        OptionError: there is none, or what is there is none.
    """
    text = (texts if isinstance(texts, str) else " ".join(texts)).lower().strip()
    points, rest = [], text
    while found := POINT.match(rest):
        x, y, number, unit = found.groups()
        points.append(KnownPoint(x_px=int(x), y_px=int(y), distance_m=in_metres(number, unit)))
        after = rest[found.end() :]
        rest = after.lstrip(" \t;")
        if rest == after:
            break
    if rest or not points:
        raise OptionError(
            f"{rest or text!r} is no known distance.",
            "It takes a pixel, counted from the upper left, and its distance with a unit (m, cm, mm, ft, in).",
            EXAMPLE,
        )
    for point in points:
        if not 0 < point.distance_m <= FARTHEST_M:
            raise OptionError(f"{point} is no distance.", f"It is more than 0 and at most {FARTHEST_M:g} m.", EXAMPLE)
    return tuple(points)


def depth_near(depth_m: DepthMap, x_px: int, y_px: int) -> float:
    """Depth at a pixel: the median of the valid ones around it.

    Args:
        depth_m: float32 `[H, W]`, metres; 0, negative and not finite are invalid.

    Raises:
        OptionError: the pixel is outside, most around it has no depth, or it is at an edge.
    """
    height, width = depth_m.shape
    if not (0 <= x_px < width and 0 <= y_px < height):
        raise OptionError(
            f"There is no pixel {x_px},{y_px}.",
            f"Frames have {width}x{height} pixels, counted from 0,0 at the upper left.",
            f"Name one between 0,0 and {width - 1},{height - 1}.",
        )
    reach = WINDOW_PX // 2
    window = depth_m[max(0, y_px - reach) : y_px + reach + 1, max(0, x_px - reach) : x_px + reach + 1]
    valid = window[np.isfinite(window) & (window > 0)]
    if 2 * valid.size <= window.size:
        raise OptionError(
            f"There is no depth at {x_px},{y_px}.",
            f"{window.size - valid.size} of the {window.size} pixels around it have none.",
            "Choose a point in the middle of something large and plain.",
        )
    middle_m, nearest_m, farthest_m = float(np.median(valid)), float(valid.min()), float(valid.max())
    if farthest_m - nearest_m > MOST_SPREAD * middle_m:
        raise OptionError(
            f"{x_px},{y_px} is at an edge.",
            f"Within {WINDOW_PX} pixels depth goes from {nearest_m:.2f} to {farthest_m:.2f} m.",
            "Choose a point in the middle of something large and plain, such as a wall.",
        )
    return middle_m


def depth_along_axis(point: KnownPoint, camera: Camera | None) -> float:
    """The depth of a point at that distance: z = d / sqrt(1 + (x / fx)^2 + (y / fy)^2) from the picture's middle.

    Args:
        camera: whose frames they are. Where None, the distance itself, which is right in the middle only.
    """
    if camera is None:
        return point.distance_m
    x = (point.x_px - (camera.width_px - 1) / 2) / camera.fx_px
    y = (point.y_px - (camera.height_px - 1) / 2) / camera.fy_px
    return point.distance_m / math.sqrt(1 + x * x + y * y)


def camera_at(told: Camera | Lens | None, model: ModelConfig, size_hw: SizeHW) -> Camera | None:
    """Whose frames of this size are: the camera as told, else the one that the model was trained with, if it says so.

    Raises:
        OptionError: the camera told has no frames of this shape.
    """
    if told is not None:
        return told.at(size_hw)
    if model.focal is None:
        return None
    (across, down), (height, width) = model.focal, size_hw
    return Camera(fx_px=across * width, fy_px=down * height, width_px=width, height_px=height)


@dataclass(frozen=True, kw_only=True)
class Reading(Strict):
    """A depth that is known, and the network's at the same place."""

    true_m: float
    network_m: float
    """Before any factor."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(each) and each > 0 for each in (self.true_m, self.network_m)):
            raise ValueError("depths are numbers above 0")

    @property
    def log_ratio(self) -> float:
        return math.log(self.true_m / self.network_m)


@dataclass(frozen=True, kw_only=True)
class KnownScale(Strict):
    """What a network's metres are multiplied by, as known distances say."""

    readings: tuple[Reading, ...]

    def __post_init__(self) -> None:
        if not self.readings or not 1 / MOST_FACTOR <= self.factor <= MOST_FACTOR:
            raise ValueError(f"a scale is between 1/{MOST_FACTOR:g} and {MOST_FACTOR:g}")

    @property
    def factor(self) -> float:
        """exp of the median of ln(true / network): one distance that was mistyped among three does no harm."""
        return math.exp(median(reading.log_ratio for reading in self.readings))

    @property
    def residual_percent(self) -> float | None:
        """How far the points are from agreeing: the standard deviation of their log ratios about the factor's.

        Not a robust one, so that it tells of a mistyped distance. None with one point, which agrees with itself.
        """
        if len(self.readings) < 2:
            return None
        middle = math.log(self.factor)
        squares = sum((reading.log_ratio - middle) ** 2 for reading in self.readings)
        return 100 * math.expm1(math.sqrt(squares / (len(self.readings) - 1)))

    def __str__(self) -> str:
        if self.residual_percent is None:
            return f"metres times {self.factor:.3g} (1 known distance; a second one tells how far to trust it)"
        return f"metres times {self.factor:.3g} ({len(self.readings)} known distances, ±{self.residual_percent:.1f} %)"


def scale_of(readings: Sequence[Reading]) -> KnownScale:
    """The scale that these readings say.

    Raises:
        OptionError: it is so large or so small that something is wrong.
    """
    try:
        return KnownScale(readings=tuple(readings))
    except ValueError as error:
        pairs = ", ".join(f"{each.true_m:.3g} m where the network sees {each.network_m:.3g} m" for each in readings)
        raise OptionError(
            "These distances make no scale.",
            f"{pairs}: {error}.",
            f"Check number and unit, and that the pixel shows what was measured: {EXAMPLE}",
        ) from error


@dataclass(frozen=True, kw_only=True)
class ScaleKey(Strict):
    """What a scale holds for."""

    camera: str
    """`camera_identity`."""
    frame_hw: SizeHW
    """A camera's modes often are crops of one another, each a lens of its own."""
    checkpoint_sha256: str
    """Of the model's checkpoint, which its ONNX files and plans share."""


@dataclass(frozen=True, kw_only=True)
class StoredScale(Strict):
    key: ScaleKey
    scale: KnownScale


@dataclass(frozen=True, kw_only=True)
class StoredScales(Strict):
    version: Literal[1] = STORE_VERSION
    scales: tuple[StoredScale, ...] = ()


class ScaleStore:
    """Scales of cameras, in a JSON file of the user's.

    Args:
        path: the file, which need not exist; the user's own where None.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            import platformdirs

            path = Path(platformdirs.user_config_dir("mirrordepth-edge")) / "scales.json"
        self.path = path

    def get(self, key: ScaleKey) -> KnownScale | None:
        """The scale kept for it.

        Raises:
            InputError: the file is not as this version writes it.
        """
        return next((stored.scale for stored in self._read().scales if stored.key == key), None)

    def cameras(self) -> set[str]:
        """Those that any scale is kept for, with whatever model.

        Raises:
            InputError: the file is not as this version writes it.
        """
        return {stored.key.camera for stored in self._read().scales}

    def put(self, key: ScaleKey, scale: KnownScale) -> None:
        """Keep a scale in the place of an earlier one.

        Raises:
            InputError: the file is not as this version writes it, or cannot be written.
        """
        stored = self._read()
        others = tuple(each for each in stored.scales if each.key != key)
        write_json(self.path, asdict(replace(stored, scales=(*others, StoredScale(key=key, scale=scale)))))

    def forget(self, camera: str, checkpoint_sha256: str) -> int:
        """Remove the scales of a camera and a model, whatever the frames' size; how many there were.

        Raises:
            InputError: the file is not as this version writes it, or cannot be written.
        """
        stored = self._read()
        others = tuple(
            each
            for each in stored.scales
            if (each.key.camera, each.key.checkpoint_sha256) != (camera, checkpoint_sha256)
        )
        if others != stored.scales:
            write_json(self.path, asdict(replace(stored, scales=others)))
        return len(stored.scales) - len(others)

    def _read(self) -> StoredScales:
        if not self.path.exists():
            return StoredScales()
        cure = f"Delete {self.path}, which forgets all scales, or go on without: --no-scale"
        return read_strict(StoredScales, read_json(self.path, "file of scales", cure), str(self.path), cure)


class ScaleSetter:
    """Sets the scale of a running camera, point by point, and keeps it.

    Args:
        apply: given the factor for frames of this size, to multiply the network's metres by from now on.
        camera: whose frames they are, at their size (`camera_at`).
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
        """Take known points in; a point that is refused leaves everything as it was.

        Args:
            depths_m: what the predictor says of one scene, float32 `[H, W]` each, at least one; of several, as
                networks flicker, the median counts.
            factor: what the network's metres were multiplied by in them.

        Returns:
            The scale from these points and those before, which is applied and kept.

        Raises:
            OptionError: a point cannot be used, or the distances make no scale.
            InputError: the store cannot be read or written; nothing is applied.
        """
        shown_m = [[depth_near(depth_m, point.x_px, point.y_px) for point in points] for depth_m in depths_m]
        readings = self._readings
        for point, values_m in zip(points, zip(*shown_m, strict=True), strict=True):
            true_m = depth_along_axis(point, self.camera)
            readings += (Reading(true_m=true_m, network_m=median(values_m) / factor),)
        scale = scale_of(readings)
        self.store.put(self.key, scale)
        self._readings = readings
        self._apply(scale.factor)
        return scale


class PointAndType:
    """A click on a pixel, then its distance on the keyboard: the state of a window in which one does that."""

    KEYS = frozenset("0123456789. mcftin")
    ENTER, BACK, ESCAPE = (10, 13), (8, 127), 27

    def __init__(self) -> None:
        self._at_px: tuple[int, int] | None = None
        self._typed = ""

    @property
    def prompt(self) -> str | None:
        """What to show; None where nothing is being typed, and keys mean what they always do."""
        if self._at_px is None:
            return None
        return f"distance at {self._at_px[0]},{self._at_px[1]}, such as 1.85m: {self._typed}_"

    def click(self, x_px: int, y_px: int) -> None:
        """Begin anew, at this pixel of the camera's frame."""
        self._at_px, self._typed = (x_px, y_px), ""

    def key(self, code: int) -> KnownPoint | None:
        """Take a key in (its character's code); the point, where Enter completes it.

        Raises:
            OptionError: what was typed is no distance; the pixel is kept, the text is not.
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
        elif 0 <= code < 128 and chr(code).lower() in self.KEYS:
            self._typed += chr(code).lower()
        return None


def camera_identity(source: str) -> str:
    """A name for the camera behind `--source` that is the same next time, without credentials.

    A camera's number is where it is plugged in. Where udev names the device itself, by maker and serial number, that
    name is taken.
    """
    if "://" in source:
        return re.sub(r"//[^/@]*@", "//", source)
    path = Path(f"/dev/video{source}" if source.isdecimal() and sys.platform.startswith("linux") else source)
    device = path.resolve()
    named = sorted(link.name for link in BY_ID.glob("*") if link.resolve() == device)
    if named:
        return named[0]
    return str(device) if path.exists() else str(path)


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of the checkpoint that a model file was made from, or is.

    Raises:
        InputError: the file or its manifest cannot be used.
    """
    if path.suffix == ".safetensors":
        return sha256_of(existing_file(path, "checkpoint"))
    return read_manifest(path, verify=False).checkpoint_sha256
