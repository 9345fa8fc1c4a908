"""Choose the recording format from the file name."""

from __future__ import annotations

from pathlib import Path

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.live.recording.base import Recording
from mirrordepth_edge.live.recording.mcap import McapRecording
from mirrordepth_edge.live.recording.rerun import RerunRecording
from mirrordepth_edge.live.recording.video import VideoRecording
from mirrordepth_edge.support.files import require_suffix

RECORDINGS = (".mcap", ".mp4", ".rrd")


def recording(
    path: Path,
    *,
    limits_m: tuple[float, float],
    rate_hz: float | None = None,
    live: bool = True,
    camera: Camera | Lens | None = None,
    far_m: float = 0.0,
) -> Recording:
    """Create the recording for a file's suffix; arguments as in `VideoRecording` and `McapRecording`.

    Raises:
        OptionError: the suffix is not .mcap, .mp4 or .rrd.
        MissingError: a package is not installed.
    """
    require_suffix(path, RECORDINGS, "a recording", "--record", "mde live")
    if path.suffix == ".mp4":
        return VideoRecording(path, limits_m, rate_hz=rate_hz, live=live)
    if path.suffix == ".rrd":
        return RerunRecording(path, camera=camera)
    return McapRecording(path, camera=camera, far_m=far_m)
