"""Open a source from the user's specification: a camera, stream, video, folder of images or the test pattern."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.sources import v4l2
from mirrordepth_edge.sources.cameras import DEFAULTS, CameraOptions, open_camera
from mirrordepth_edge.sources.capture import open_stream
from mirrordepth_edge.sources.csi import open_csi
from mirrordepth_edge.sources.files import ImageFolder, open_video
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.sources.synthetic import RATE_HZ, SIZE_HW, SyntheticSource

SYNTHETIC = "synthetic"
CLI_OPTIONS = {"size_hw": "--size", "rate_hz": "--rate", "pixel_format": "--pixel-format", "exposure_ms": "--exposure"}
"""Fields of `CameraOptions` and their names on the command line."""


class Kind(NamedTuple):
    """A kind of source."""

    name: str
    supported: Collection[str]
    """Fields of `CameraOptions` that apply."""
    open: Callable[[], FrameSource]


def open_source(spec: str, options: CameraOptions = DEFAULTS, *, realtime: bool = False) -> FrameSource:
    """Open a source. `reconnect.reconnecting` reopens it when it is lost.

    Args:
        spec: camera index (`0`) or device (`/dev/video0`), CSI camera of a Jetson (`csi`, `csi:1`), URL (`rtsp://…`,
            `http://…`), video file, folder of images, or `synthetic`.
        options: the requested camera mode; size and rate also apply to the test pattern.
        realtime: play a video at its own timestamps, where the newest frame wins, instead of frame after frame.

    Raises:
        InputError: the source is missing or cannot be used.
        MissingError: a package that the source needs is not installed.
        OptionError: an option does not apply to this source.
    """
    kind, path = _kind_of(spec, options, realtime), Path(spec)
    if realtime and kind.name != "a video file":
        why = f"{spec} is a folder, which has no timestamps." if path.is_dir() else f"{spec} always runs in real time."
        raise OptionError("--realtime works only with video files.", why, "Leave --realtime out.")
    given = {field for field in CLI_OPTIONS if getattr(options, field) is not None}
    if unsupported := given.difference(kind.supported):
        names = " and ".join(name for field, name in CLI_OPTIONS.items() if field in unsupported)
        why = "The test pattern has only a size and a rate." if spec == SYNTHETIC else f"The source is {kind.name}."
        raise OptionError(f"{names} applies only to cameras.", why, f"Leave {names} out.")
    return kind.open()


def _kind_of(spec: str, options: CameraOptions, realtime: bool) -> Kind:
    path = Path(spec)
    device = path.resolve()  # /dev/v4l/by-id/… are links to /dev/videoN
    number = re.fullmatch(r"video(\d+)", device.name) if device.parent == v4l2.DEVICES else None
    if spec == SYNTHETIC:
        size_hw, rate_hz = options.size_hw or SIZE_HW, options.rate_hz or RATE_HZ
        return Kind("the test pattern", ("size_hw", "rate_hz"), partial(SyntheticSource, size_hw, rate_hz))
    if csi := re.fullmatch(r"csi(?::(\d+))?", spec):
        return Kind("a CSI camera", CLI_OPTIONS, partial(open_csi, int(csi[1] or 0), options))
    if number or spec.isdecimal():
        return Kind("a camera", CLI_OPTIONS, partial(open_camera, int(number[1] if number else spec), options))
    if "://" in spec:
        return Kind("a stream", (), partial(open_stream, spec))
    if path.is_dir():
        return Kind("a folder", (), partial(ImageFolder, path))
    return Kind("a video file", (), partial(open_video, path, realtime=realtime))
