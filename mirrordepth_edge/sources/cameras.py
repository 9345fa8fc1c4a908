"""Cameras that the system knows by number: asking for a mode, and saying why one does not open."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2

from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.errors import InputError, MdeError, OptionError
from mirrordepth_edge.sources import v4l2
from mirrordepth_edge.sources.capture import CaptureSource, open_capture
from mirrordepth_edge.sources.source import FrameSource

BUFFERS = 2
"""One is being filled while the other is decoded; with one alone the driver would drop every second frame. They
do not add age, since a thread waits for them."""
EXPOSURE_MANUAL = 1
"""V4L2_EXPOSURE_MANUAL."""
EXPOSURE_UNIT_MS = 0.1
"""Of V4L2_CID_EXPOSURE_ABSOLUTE."""


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """What a camera is asked for; None leaves it as it is.

    Raises:
        OptionError: no camera could do that.
    """

    size_hw: SizeHW | None = None
    rate_hz: float | None = None
    pixel_format: str | None = None
    """FOURCC: MJPG brings large pictures through a USB 2 cable, YUYV costs no decoding."""
    exposure_ms: float | None = None
    """Locks the exposure to this time."""

    def __post_init__(self) -> None:
        if self.size_hw is not None and min(self.size_hw) < 1:
            height, width = self.size_hw
            raise OptionError(f"A picture of {width}x{height} pixels is none.", "Both sides count.", "--size 640x480")
        if self.rate_hz is not None and not 0 < self.rate_hz <= 1000:
            raise OptionError(f"No camera runs at {self.rate_hz:g} Hz.", "The rate is in frames a second.", "--rate 30")
        if self.pixel_format is not None and not (len(self.pixel_format) == 4 and self.pixel_format.isascii()):
            why = "Formats are known by four characters (FOURCC); mde live --list shows those of each camera."
            raise OptionError(f"There is no pixel format {self.pixel_format!r}.", why, "--pixel-format MJPG")
        if self.exposure_ms is not None and not 0 < self.exposure_ms <= 10_000:
            why = "It is a time in milliseconds; at 30 Hz there are 33 of them in a frame."
            raise OptionError(f"An exposure of {self.exposure_ms:g} ms is none.", why, "--exposure 10")


DEFAULTS = CameraOptions()


def open_camera(index: int, options: CameraOptions = DEFAULTS) -> FrameSource:
    """Open a camera by its number. What the driver gave instead of what was asked for is in `notes`.

    Raises:
        InputError: it is missing, in use, forbidden, or no camera.
        OptionError: exposure cannot be locked on this system.
    """
    linux = sys.platform.startswith("linux")
    device = v4l2.DEVICES / f"video{index}"
    name = str(device) if linux else f"camera {index}"
    if linux:
        _check_access(device)
    elif options.exposure_ms is not None:
        why = "Other systems do not tell exposure in milliseconds."
        raise OptionError("Exposure can be locked on Linux only.", why, "Leave --exposure out.")
    # Asking for V4L2 by name keeps OpenCV from trying, and blaming, every other kind of camera.
    capture = open_capture(index, cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
    if capture is None:
        raise _why_closed(device, name)
    _ask_for(capture, options)
    return CaptureSource(capture, name, _differences(capture, name, options))


def _ask_for(capture: cv2.VideoCapture, options: CameraOptions) -> None:
    # The format first: it decides which sizes there are, and they which rates.
    if options.pixel_format is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*options.pixel_format))
    if options.size_hw is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.size_hw[1])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.size_hw[0])
    if options.rate_hz is not None:
        capture.set(cv2.CAP_PROP_FPS, options.rate_hz)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, BUFFERS)
    if options.exposure_ms is not None:
        capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, EXPOSURE_MANUAL)
        capture.set(cv2.CAP_PROP_EXPOSURE, round(options.exposure_ms / EXPOSURE_UNIT_MS))


def _differences(capture: cv2.VideoCapture, name: str, options: CameraOptions) -> tuple[str, ...]:
    """A sentence, if the camera gives anything else than it was asked for."""
    asked: list[str] = []
    given: list[str] = []
    width, height = round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if options.size_hw is not None and options.size_hw != (height, width):
        asked.append(f"{options.size_hw[1]}x{options.size_hw[0]}")
        given.append(f"{width}x{height}")
    rate_hz = capture.get(cv2.CAP_PROP_FPS)
    if options.rate_hz is not None and abs(rate_hz - options.rate_hz) > 0.01 * options.rate_hz:
        asked.append(f"{options.rate_hz:g} Hz")
        given.append(f"{rate_hz:.4g} Hz" if rate_hz > 0 else "a rate it does not tell")
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    pixel_format = v4l2.fourcc_text(code) if code > 0 else "a format it does not tell"
    if options.pixel_format is not None and pixel_format != options.pixel_format:
        asked.append(options.pixel_format)
        given.append(pixel_format)
    exposure_ms = capture.get(cv2.CAP_PROP_EXPOSURE) * EXPOSURE_UNIT_MS if options.exposure_ms is not None else 0.0
    if options.exposure_ms is not None and abs(exposure_ms - options.exposure_ms) > EXPOSURE_UNIT_MS:
        asked.append(f"an exposure of {options.exposure_ms:g} ms")
        given.append(f"one of {exposure_ms:.4g} ms" if exposure_ms > 0 else "an automatic one")
    return (f"{name} was asked for {', '.join(asked)} and gives {', '.join(given)}.",) if asked else ()


def _check_access(device: Path) -> None:
    if not device.exists():
        there = [str(path) for path in v4l2.video_devices()]
        raise InputError(
            f"There is no camera {device}.",
            f"This machine has {', '.join(there)}." if there else f"This machine has no {v4l2.DEVICES}/video* at all.",
            f"--source {there[0]}"
            if there
            else "Plug a camera in, pass a video file or URL, or try --source synthetic.",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        group = _group(device)
        join = "sudo usermod -aG {} $USER, then log in again."
        raise InputError(
            f"You may not use {device}.",
            f"It belongs to the group '{group}', and your user is not in it.",
            # To make somebody a member of root's group for a camera would be too much.
            f"sudo chgrp video {device} && {join.format('video')}" if group == "root" else join.format(group),
        )


def _group(path: Path) -> str:
    from grp import getgrgid  # not there on Windows

    number = path.stat().st_gid
    try:
        return getgrgid(number).gr_name
    except KeyError:  # of the machine outside a container
        return str(number)


def _why_closed(device: Path, name: str) -> MdeError:
    what, other = f"{name} does not open.", "Try another one; mde live --list shows them."
    if not sys.platform.startswith("linux"):
        why = "There is none, another program uses it, or this program may not."
        return InputError(what, why, "Close the other program, or try --source 1.")
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return _busy(device)
        if error.errno == errno.EPERM:  # though the file's owner would let us
            return InputError(what, "This container was not given it.", f"docker run --device {device} …")
        return InputError(what, f"{error.strerror}.", other)
    try:
        if not v4l2.sends_pictures(descriptor):
            return InputError(what, "It sends no pictures: many cameras have a second device for metadata.", other)
        if v4l2.is_busy(descriptor):
            return _busy(device)
    except OSError as error:
        return InputError(what, f"It is no camera: {error.strerror}.", other)
    finally:
        os.close(descriptor)
    return InputError(what, "OpenCV cannot use it in any of its formats.", other)


def _busy(device: Path) -> InputError:
    users = ", ".join(_users(device))
    why = f"Another program uses it: {users}." if users else "Another program uses it."
    return InputError(f"{device} does not open.", why, "Close that program and retry.")


def _users(device: Path) -> list[str]:
    """Other programs that have a device open, as far as we may see them."""
    users = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            process = link.parts[2]
            if int(process) != os.getpid() and link.readlink() == device:
                users.add(f"{Path('/proc', process, 'comm').read_text(encoding='utf-8').strip()} ({process})")
        except OSError:  # somebody else's, or gone
            continue
    return sorted(users)
