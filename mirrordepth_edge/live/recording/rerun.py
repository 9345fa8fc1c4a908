"""Live depth for the Rerun viewer: photo, depth, and the points in space where the camera is known."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.camera.pointcloud import camera_matrix, has_depth, points_of
from mirrordepth_edge.errors import MissingError, missing_package
from mirrordepth_edge.live.recording.base import Recording, jpeg
from mirrordepth_edge.live.result import LiveResult

APPLICATION = "mirrordepth-edge"
VIEWER_MEMORY = "25%"
"""Of the machine's memory; then the viewer forgets the oldest frames. Its own default, 75 %, starves a robot."""
MOST_POINTS = 20_000
"""A cloud of every pixel costs more than the network that made it."""


def has_screen() -> bool:
    """Whether a window can open; without one the viewer dies unseen, and what it is sent waits for it."""
    return not sys.platform.startswith("linux") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


class _Log:
    """What is logged of a result, whatever takes it.

    `camera` is a pinhole with `camera/photo` and `camera/depth` in its picture, depth in metres, and `points` are
    the pixels in space. Where the camera is not known, photo and depth are flat pictures and there are no points.
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
            step = int(np.ceil(np.sqrt(height * width / MOST_POINTS)))
            there = has_depth(result.depth_m[::step, ::step])
            points = points_of(result.depth_m, camera, step=step)[there]
            log("points", rerun.Points3D(points, colors=result.frame[::step, ::step][there]))
        log("camera/photo", rerun.EncodedImage(contents=jpeg(result.frame), media_type="image/jpeg"))
        log("camera/depth", rerun.DepthImage(result.depth_m, meter=1.0))

    def close(self) -> None:
        self.stream.disconnect()  # sends or writes what it has; gives up on a viewer after seconds, as flush does not


class RerunRecording(Recording):
    """An `.rrd` file, which `rerun FILE` shows.

    Args:
        path: the file.
        camera: what the frames come from; without it there are no points.

    Raises:
        MissingError: the package `rerun-sdk` is not installed.
    """

    def __init__(self, path: Path, *, camera: Camera | Lens | None = None) -> None:
        super().__init__(path)
        self._log = _Log(camera)

    def _open(self) -> None:
        self._log.stream.save(self.path)

    def _keep(self, result: LiveResult) -> None:
        self._log.add(result)
        self.frames += 1

    def _finish(self) -> None:
        self._log.close()
        if not self.frames:
            self.path.unlink(missing_ok=True)


class RerunViewer:
    """An output that opens the Rerun viewer and shows results there. The viewer stays open when the run ends.

    Args:
        camera: what the frames come from; without it there are no points.

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
            MissingError: the viewer does not start, or there is no screen.
        """
        if not has_screen():
            why = "Neither DISPLAY nor WAYLAND_DISPLAY is set, and its viewer is a window."
            raise MissingError(
                "Rerun cannot show anything here.", why, "--record out.rrd, and on a desktop: rerun out.rrd"
            )
        try:
            self._log.stream.spawn(memory_limit=VIEWER_MEMORY, hide_welcome_screen=True)
        except (OSError, RuntimeError) as error:
            why = f"{error}; it is {Path(sys.prefix) / 'bin' / 'rerun'} where rerun-sdk was installed with pip."
            raise MissingError("The Rerun viewer does not start.", why, "--record out.rrd") from error
        return self

    def show(self, result: LiveResult) -> None:
        self._log.add(result)

    def __exit__(self, *_: object) -> None:
        self._log.close()
