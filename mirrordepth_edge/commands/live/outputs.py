"""Where `mde live` sends results besides its view, and its list of cameras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirrordepth_edge.commands.live.options import OutputOptions, ViewOptions
from mirrordepth_edge.commands.terminal import console
from mirrordepth_edge.live.recording.choose import recording
from mirrordepth_edge.live.recording.rerun import RerunViewer
from mirrordepth_edge.live.recording.video import SavedFrames
from mirrordepth_edge.live.shared_memory import SharedDepth
from mirrordepth_edge.live.web.server import WebView
from mirrordepth_edge.predictor import DepthPredictor
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.sources.v4l2 import list_cameras


def open_outputs(
    view: ViewOptions,
    options: OutputOptions,
    setup: Mapping[str, str],
    limits_m: tuple[float, float],
    source: FrameSource,
    predictor: DepthPredictor,
) -> list[Any]:
    """Return the web server, recordings, viewer and shared memory that were asked for, to be entered."""
    outputs: list[Any] = []
    if view.web:
        outputs.append(WebView(setup, limits_m, view.host, view.port))
    if options.record:
        outputs += [
            recording(
                path,
                limits_m=limits_m,
                rate_hz=source.rate_hz,
                live=source.live,
                camera=predictor.camera,
                far_m=predictor.model.depth_limits_m[1],
            )
            for path in options.record
        ]
    if options.save_every is not None:
        outputs.append(SavedFrames(options.saved, options.save_every))
    if options.rerun:
        outputs.append(RerunViewer(camera=predictor.camera))
    if options.shm is not None:
        outputs.append(SharedDepth(options.shm))
    return outputs


def show_cameras() -> None:
    """Print the cameras of this machine and their formats."""
    cameras = list_cameras()
    if not cameras:
        console.print("no camera: no /dev/videoN delivers images. mde live --source synthetic works without a camera.")
    for camera in cameras:
        console.print(f"{camera.device}  {camera.name or 'unknown'}  {camera.driver} {camera.bus}".rstrip())
        if camera.problem is not None:
            console.print(f"  {camera.problem}")
        for form in camera.formats:
            sizes = (
                f"{size.width_px}x{size.height_px}"
                + (f" at {', '.join(f'{rate:g}' for rate in size.rates_hz)} Hz" if size.rates_hz else "")
                for size in form.sizes
            )
            console.print(f"  {form.pixel_format} ({form.description}): {'; '.join(sizes)}")
