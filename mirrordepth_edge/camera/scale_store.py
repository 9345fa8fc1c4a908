"""Stored scales: one factor for a camera, a frame size and a model, and the file that holds them.

Factors apply to the network's own output. So they hold whatever camera is given, and replace the factor that follows
from it (`camera.model.scale_for`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Final, Literal

import platformdirs

from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.camera.scale import KnownPoint, KnownScale, Reading, depth_along_axis, depth_near, scale_of
from mirrordepth_edge.config import SizeHW, Strict
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.support.files import existing_file, read_json, sha256_of, write_json
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.support.urls import hide_credentials

STORE_VERSION: Final = 1
BY_ID = Path("/dev/v4l/by-id")


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
    """

    def __init__(self, source: str, model: Path) -> None:
        self.camera = camera_identity(source)
        self.store = ScaleStore()
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


def camera_identity(source: str) -> str:
    """Return a stable name, without credentials, for the camera behind `--source`.

    A camera's number depends on where it is plugged in. If udev names the device by maker and serial number, that name
    is used instead.
    """
    if "://" in source:
        return hide_credentials(source)
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
