"""Show live depth in the Rerun viewer, or record it: photo, depth, and a point cloud if the camera is known."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.camera.pointcloud import camera_matrix, points_of
from mirrordepth_edge.errors import MissingError, missing_package
from mirrordepth_edge.imaging.jpeg import encode_jpeg
from mirrordepth_edge.imaging.postprocess import has_depth
from mirrordepth_edge.live.recording.base import JPEG_QUALITY, Recording
from mirrordepth_edge.live.result import LiveResult

APPLICATION = "mirrordepth-edge"
VIEWER_MEMORY = "25%"
"""Share of the machine's memory at which the viewer drops its oldest frames. Its default of 75 % leaves too little for
other programs."""
MAX_POINTS = 20_000
"""Logging a point for every pixel would take longer than inference."""


def has_screen() -> bool:
    """Whether a window can open. Without a screen the viewer exits silently, and the data for it is never sent."""
    return not sys.platform.startswith("linux") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


class _Log:
    """Log results to a Rerun recording stream.

    `camera` is a pinhole camera with the images `camera/photo` and `camera/depth` (metres), and `points` is the point
    cloud. If the camera is unknown, the images are 2D and there is no point cloud.
    """

    def __init__(self, camera: Camera | Lens | None) -> None:
        try:
            import rerun
        except ImportError as error:
            raise missing_package("rerun-sdk", "Logging to Rerun", "rerun") from error
        self._rerun: Any = rerun
        self._camera = camera
        self.stream: Any = rerun.RecordingStream(APPLICATION)

    def add(self, result: LiveResult) -> None:
        log, rerun = self.stream.log, self._rerun
        self.stream.set_time("captured", timestamp=np.datetime64(result.captured_unix_ns, "ns"))
        self.stream.set_time("frame", sequence=result.number)
        height, width = result.frame.shape[:2]
        if self._camera is not None:
            camera = self._camera.at((height, width))
            k = camera_matrix(camera)
            axes = rerun.ViewCoordinates.RDF  # right, down, forward
            log("camera", rerun.Pinhole(image_from_camera=k, resolution=[width, height], camera_xyz=axes))
            step = int(np.ceil(np.sqrt(height * width / MAX_POINTS)))
            valid = has_depth(result.depth_m[::step, ::step])
            points = points_of(result.depth_m, camera, step=step)[valid]
            log("points", rerun.Points3D(points, colors=result.frame[::step, ::step][valid]))
        log(
            "camera/photo",
            rerun.EncodedImage(contents=encode_jpeg(result.frame, JPEG_QUALITY), media_type="image/jpeg"),
        )
        log("camera/depth", rerun.DepthImage(result.depth_m, meter=1.0))

    def close(self) -> None:
        self.stream.disconnect()  # flushes, but unlike flush() gives up on an unresponsive viewer after seconds


class RerunRecording(Recording):
    """An `.rrd` file, which `rerun FILE` opens.

    Args:
        path: the `.rrd` file.
        camera: the camera of the frames; without it there is no point cloud.

    Raises:
        MissingError: the package `rerun-sdk` is not installed.
    """

    def __init__(self, path: Path, *, camera: Camera | Lens | None = None) -> None:
        super().__init__(path)
        self._log = _Log(camera)

    def _open(self) -> None:
        self._log.stream.save(self.path)

    def _write(self, result: LiveResult) -> None:
        self._log.add(result)
        self.frames += 1

    def _finish(self) -> None:
        self._log.close()
        if not self.frames:
            self.path.unlink(missing_ok=True)


class RerunViewer:
    """An output that opens the Rerun viewer and shows results in it. The viewer stays open when the run ends.

    Args:
        camera: the camera of the frames; without it there is no point cloud.

    Raises:
        MissingError: the package `rerun-sdk` is not installed.
    """

    name = "rerun"

    def __init__(self, *, camera: Camera | Lens | None = None) -> None:
        self.problem: str | None = None
        self._log = _Log(camera)

    def __enter__(self) -> RerunViewer:
        """
        Raises:
            MissingError: there is no screen, or the viewer does not start.
        """
        if not has_screen():
            why = "The viewer needs a screen, but neither DISPLAY nor WAYLAND_DISPLAY is set."
            cure = "--record out.rrd, then on a desktop: rerun out.rrd"
            raise MissingError("The Rerun viewer cannot open a window.", why, cure)
        try:
            self._log.stream.spawn(memory_limit=VIEWER_MEMORY, hide_welcome_screen=True)
        except (OSError, RuntimeError) as error:
            why = f"{error}; pip installs it as {Path(sys.prefix) / 'bin' / 'rerun'}."
            raise MissingError("The Rerun viewer does not start.", why, "--record out.rrd") from error
        return self

    def show(self, result: LiveResult) -> None:
        self._log.add(result)

    def __exit__(self, *_: object) -> None:
        self._log.close()
