"""Local cameras: request a mode, and explain why a camera does not open."""

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
"""One is filled while the other is decoded; with a single one the driver would drop every second frame. They do not
add latency, since a thread always waits for the next frame."""
EXPOSURE_MANUAL = 1
"""V4L2_EXPOSURE_MANUAL."""
EXPOSURE_UNIT_MS = 0.1
"""Unit of V4L2_CID_EXPOSURE_ABSOLUTE."""


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """The requested camera mode; None keeps the camera's setting.

    Raises:
        OptionError: a value is invalid for any camera.
    """

    size_hw: SizeHW | None = None
    rate_hz: float | None = None
    pixel_format: str | None = None
    """FOURCC: MJPG fits large frames through USB 2, YUYV needs no decoding."""
    exposure_ms: float | None = None
    """Fixed exposure time; turns automatic exposure off."""

    def __post_init__(self) -> None:
        if self.size_hw is not None and min(self.size_hw) < 1:
            height, width = self.size_hw
            raise OptionError(
                f"{width}x{height} is not a frame size.", "Width and height must be at least 1.", "--size 640x480"
            )
        if self.rate_hz is not None and not 0 < self.rate_hz <= 1000:
            why = "The rate must be above 0 and at most 1000 frames per second."
            raise OptionError(f"{self.rate_hz:g} Hz is not a frame rate.", why, "--rate 30")
        if self.pixel_format is not None and not (len(self.pixel_format) == 4 and self.pixel_format.isascii()):
            why = "It must be a FOURCC of four characters; mde live --list shows the formats of each camera."
            raise OptionError(f"{self.pixel_format!r} is not a pixel format.", why, "--pixel-format MJPG")
        if self.exposure_ms is not None and not 0 < self.exposure_ms <= 10_000:
            why = "The exposure time must be above 0 and at most 10,000 ms; at 30 Hz a frame has 33 ms."
            raise OptionError(f"{self.exposure_ms:g} ms is not an exposure time.", why, "--exposure 10")


DEFAULTS = CameraOptions()


def open_camera(index: int, options: CameraOptions = DEFAULTS) -> FrameSource:
    """Open a camera by its index. `notes` reports where the driver chose another mode than requested.

    Raises:
        InputError: the camera is missing or in use, access is denied, or the device is not a camera.
        OptionError: this system cannot lock the exposure.
    """
    linux = sys.platform.startswith("linux")
    device = v4l2.DEVICES / f"video{index}"
    name = str(device) if linux else f"camera {index}"
    if linux:
        _check_access(device)
    elif options.exposure_ms is not None:
        why = "Other systems do not report the exposure in milliseconds."
        raise OptionError("--exposure works only on Linux.", why, "Leave --exposure out.")
    # Naming V4L2 keeps OpenCV from trying every other kind of camera, and logging errors about them.
    capture = open_capture(index, cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
    if capture is None:
        raise _open_error(device, name)
    _set_mode(capture, options)
    return CaptureSource(capture, name, _mode_notes(capture, name, options))


def _set_mode(capture: cv2.VideoCapture, options: CameraOptions) -> None:
    # The order matters: the sizes depend on the format, and the rates on the size.
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


def _mode_notes(capture: cv2.VideoCapture, name: str, options: CameraOptions) -> tuple[str, ...]:
    """Return one sentence if the camera's mode differs from the requested one."""
    differences: list[tuple[str, str]] = []  # requested, actual
    width, height = round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if options.size_hw is not None and options.size_hw != (height, width):
        differences.append((f"{options.size_hw[1]}x{options.size_hw[0]}", f"{width}x{height}"))
    rate_hz = capture.get(cv2.CAP_PROP_FPS)
    if options.rate_hz is not None and abs(rate_hz - options.rate_hz) > 0.01 * options.rate_hz:
        differences.append((f"{options.rate_hz:g} Hz", f"{rate_hz:.4g} Hz" if rate_hz > 0 else "an unknown rate"))
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    pixel_format = v4l2.fourcc_text(code) if code > 0 else "an unknown format"
    if options.pixel_format is not None and pixel_format != options.pixel_format:
        differences.append((options.pixel_format, pixel_format))
    if options.exposure_ms is not None:
        exposure_ms = capture.get(cv2.CAP_PROP_EXPOSURE) * EXPOSURE_UNIT_MS
        if abs(exposure_ms - options.exposure_ms) > EXPOSURE_UNIT_MS:
            actual = f"{exposure_ms:.4g} ms exposure" if exposure_ms > 0 else "automatic exposure"
            differences.append((f"{options.exposure_ms:g} ms exposure", actual))
    if not differences:
        return ()
    requested, actual_mode = (", ".join(parts) for parts in zip(*differences, strict=True))
    return (f"{name} uses {actual_mode} instead of {requested}.",)


def _check_access(device: Path) -> None:
    if not device.exists():
        devices = [str(path) for path in v4l2.video_devices()]
        raise InputError(
            f"Camera {device} does not exist.",
            f"This machine has {', '.join(devices)}." if devices else f"This machine has no {v4l2.DEVICES}/video*.",
            f"--source {devices[0]}"
            if devices
            else "Connect a camera, pass a video file or URL, or try --source synthetic.",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        group = _group(device)
        join = "sudo usermod -aG {} $USER, then log in again."
        raise InputError(
            f"No permission to use {device}.",
            f"It belongs to the group '{group}', and your user is not a member.",
            # Membership in root's group would give far more rights than a camera needs.
            f"sudo chgrp video {device} && {join.format('video')}" if group == "root" else join.format(group),
        )


def _group(path: Path) -> str:
    from grp import getgrgid  # not available on Windows

    number = path.stat().st_gid
    try:
        return getgrgid(number).gr_name
    except KeyError:  # a group of the host, which a container does not know
        return str(number)


def _open_error(device: Path, name: str) -> MdeError:
    """Find out why OpenCV cannot open a camera."""
    what, other = f"Cannot open {name}.", "Try another camera; mde live --list shows them."
    if not sys.platform.startswith("linux"):
        why = "It does not exist, another program uses it, or this program has no permission."
        return InputError(what, why, "Close the other program, or try --source 1.")
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return _busy(device)
        if error.errno == errno.EPERM:  # although the file mode permits it
            return InputError(what, "This container has no access to it.", f"docker run --device {device} …")
        return InputError(what, f"{error.strerror}.", other)
    try:
        if not v4l2.sends_video(descriptor):
            return InputError(what, "It sends no video: many cameras have a second device for metadata.", other)
        if v4l2.is_busy(descriptor):
            return _busy(device)
    except OSError as error:
        return InputError(what, f"It is not a camera: {error.strerror}.", other)
    finally:
        os.close(descriptor)
    return InputError(what, "OpenCV supports none of its formats.", other)


def _busy(device: Path) -> InputError:
    users = ", ".join(_users(device))
    why = f"Another program uses it: {users}." if users else "Another program uses it."
    return InputError(f"Cannot open {device}.", why, "Close that program and retry.")


def _users(device: Path) -> list[str]:
    """Return the other processes that have a device open, as far as /proc shows them to this user."""
    users = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            process = link.parts[2]
            if int(process) != os.getpid() and link.readlink() == device:
                users.add(f"{Path('/proc', process, 'comm').read_text(encoding='utf-8').strip()} ({process})")
        except OSError:  # another user's process, or one that has ended
            continue
    return sorted(users)
