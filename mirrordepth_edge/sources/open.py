"""Frames from what the user named: cameras, streams, videos, folders of pictures and a test pattern."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.sources import v4l2
from mirrordepth_edge.sources.cameras import DEFAULTS, CameraOptions, open_camera
from mirrordepth_edge.sources.capture import CaptureSource, open_stream
from mirrordepth_edge.sources.csi import open_csi
from mirrordepth_edge.sources.files import PictureFolder, VideoSource, open_video
from mirrordepth_edge.sources.source import FrameSource, SourceState
from mirrordepth_edge.sources.synthetic import RATE_HZ, SIZE_HW, SyntheticSource

__all__ = [
    "CameraOptions",
    "CaptureSource",
    "FrameSource",
    "PictureFolder",
    "SourceState",
    "SyntheticSource",
    "VideoSource",
    "open_source",
    "open_video",
]

SYNTHETIC = "synthetic"


def open_source(spec: str, options: CameraOptions = DEFAULTS, *, realtime: bool = False) -> FrameSource:
    """Open what the user named. `reconnect.reconnecting` keeps it open.

    Args:
        spec: a camera's index (`0`) or device (`/dev/video0`), a Jetson's CSI camera (`csi`, `csi:1`), a URL
            (`rtsp://…`, `http://…`), a video file, a folder of pictures, or `synthetic`.
        options: what a camera is asked for; size and rate also for the pattern.
        realtime: give a video's frames at their own times, the newest one wins, instead of one after the other.

    Raises:
        InputError: it is missing or cannot be used.
        MissingError: it needs a package that is not here.
        OptionError: it has no such option.
    """
    path = Path(spec)
    device = path.resolve()  # /dev/v4l/by-id/… are links to /dev/videoN
    number = re.fullmatch(r"video(\d+)", device.name) if device.parent == v4l2.DEVICES else None
    csi = re.fullmatch(r"csi(?::(\d+))?", spec)
    what, video = f"Source {spec}", False
    source: Callable[[], FrameSource]
    if spec == SYNTHETIC:
        source = partial(SyntheticSource, options.size_hw or SIZE_HW, options.rate_hz or RATE_HZ)
        refused = replace(options, size_hw=None, rate_hz=None)
    elif csi:
        source, refused = partial(open_csi, int(csi[1] or 0), options), DEFAULTS
    elif number or spec.isdecimal():
        source, refused = partial(open_camera, int(number[1] if number else spec), options), DEFAULTS
    elif "://" in spec:
        source, refused, what = partial(open_stream, spec), options, "A stream"
    elif path.is_dir():
        source, refused = partial(PictureFolder, path), options
    else:
        source, refused, video = partial(open_video, path, realtime=realtime), options, True
    if realtime and not video:
        why = "Cameras and streams have no other pace, and pictures have no times."
        raise OptionError(f"{what} cannot be given in real time.", why, "Leave --realtime out.")
    if refused != DEFAULTS:
        why = "What it is like was settled where it was made; cameras can be asked."
        raise OptionError(f"{what} cannot be asked for another mode.", why, "Leave the camera's options out.")
    return source()
