"""What `mde live` shows results on and hands them to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirrordepth_edge.commands.live.view import StatusLine
from mirrordepth_edge.commands.live.window import Window
from mirrordepth_edge.commands.terminal import console, errors

if TYPE_CHECKING:
    from mirrordepth_edge.commands.live.scale import LiveScale
    from mirrordepth_edge.predictor import DepthPredictor
    from mirrordepth_edge.sources.open import FrameSource

Limits = tuple[float, float]
UNKNOWN_HZ = 30.0
"""Where a file does not say its rate, and for pictures of a folder."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Outputs beside the view."""

    web: tuple[str, int] | None = None
    """Host and port."""
    record: tuple[Path, ...] = ()
    saved: tuple[Path, float] | None = None
    """A folder, and the seconds from one frame to the next."""
    rerun: bool = False
    shm: str | None = None


def view_of(
    *, web: bool, no_window: bool, limits_m: Limits, scale: LiveScale, predictor: DepthPredictor
) -> Window | StatusLine:
    """A window where one can be and is wanted, else a line on the terminal."""
    has_display = not sys.platform.startswith("linux") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if web or no_window:
        return StatusLine()
    if not has_display:
        errors.print("Neither DISPLAY nor WAYLAND_DISPLAY is set: going on without a window; --web shows it elsewhere.")
        return StatusLine()
    return Window(limits_m, scale, predictor)


def outputs_of(
    wanted: Wanted, setup: Mapping[str, str], limits_m: Limits, source: FrameSource, predictor: DepthPredictor
) -> list[Any]:
    """Outputs, to be entered: a server, recordings, a viewer, shared memory."""
    outputs: list[Any] = []
    camera, far_m = predictor.camera, predictor.model.depth_limits_m[1]
    if wanted.web is not None:
        from mirrordepth_edge.live.web.server import WebView

        outputs.append(WebView(setup, limits_m, *wanted.web))
    for path in wanted.record:
        from mirrordepth_edge.live.recording.choose import recording

        live, rate_hz = source.live, source.rate_hz
        outputs.append(recording(path, limits_m=limits_m, rate_hz=rate_hz, live=live, camera=camera, far_m=far_m))
    if wanted.saved is not None:
        from mirrordepth_edge.live.recording.video import SavedFrames

        outputs.append(SavedFrames(*wanted.saved))
    if wanted.rerun:
        from mirrordepth_edge.live.recording.rerun import RerunViewer

        outputs.append(RerunViewer(camera=camera))
    if wanted.shm is not None:
        from mirrordepth_edge.live.shared_memory import SharedDepth

        outputs.append(SharedDepth(wanted.shm))
    return outputs


def told(outputs: Iterable[Any]) -> Iterator[str]:
    """What came of recordings, a line each."""
    from mirrordepth_edge.live.recording.base import Recording

    return (str(output) for output in outputs if isinstance(output, Recording))


def show_cameras() -> None:
    """The cameras of this machine and what they can send."""
    from mirrordepth_edge.sources.v4l2 import list_cameras

    cameras = list_cameras()
    if not cameras:
        console.print("no camera: there is no /dev/videoN that sends pictures; mde live --source synthetic needs none")
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
