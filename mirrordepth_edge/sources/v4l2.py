"""The cameras of a Linux machine and what they can do, asked of the kernel (Video4Linux2) through ctypes.

Structures, numbers and their meaning: linux/videodev2.h. All fields are 32 bits wide or bytes, so that the
structures are the same on x86-64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from ctypes import c_char, c_uint8, c_uint32
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mirrordepth_edge.errors import MissingError

DEVICES = Path("/dev")
Ioctl = Callable[[int, int, Any], int]
"""As `fcntl.ioctl`: an open file, a request, a structure that is read and written in place; raises OSError."""

Filled = TypeVar("Filled", bound=ctypes.Structure)

CAP_VIDEO_CAPTURE, CAP_VIDEO_CAPTURE_MPLANE, CAP_DEVICE_CAPS = 0x1, 0x1000, 0x80000000
BUF_TYPE_VIDEO_CAPTURE, BUF_TYPE_VIDEO_CAPTURE_MPLANE = 1, 9
MEMORY_MMAP = 1
DISCRETE = 1
"""Of V4L2_FRMSIZE_TYPE and V4L2_FRMIVAL_TYPE alike; 2 is continuous and 3 stepwise."""
COMMON_SIZES = ((640, 480), (800, 600), (1280, 720), (1280, 960), (1920, 1080), (2560, 1440), (3840, 2160))
MOST = 1024
"""No driver lists more; one that never ends is not asked for ever."""


class Capability(ctypes.Structure):
    """v4l2_capability"""

    _fields_ = (
        ("driver", c_char * 16),
        ("card", c_char * 32),
        ("bus_info", c_char * 32),
        ("version", c_uint32),
        ("capabilities", c_uint32),
        ("device_caps", c_uint32),
        ("reserved", c_uint32 * 3),
    )


class FormatDescription(ctypes.Structure):
    """v4l2_fmtdesc"""

    _fields_ = (
        ("index", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("description", c_char * 32),
        ("pixelformat", c_uint32),
        ("mbus_code", c_uint32),
        ("reserved", c_uint32 * 3),
    )


class FrameSize(ctypes.Structure):
    """v4l2_frmsizeenum; `size` is width and height, or the least, most and step of the width, then of the height."""

    _fields_ = (
        ("index", c_uint32),
        ("pixel_format", c_uint32),
        ("type", c_uint32),
        ("size", c_uint32 * 6),
        ("reserved", c_uint32 * 2),
    )


class FrameInterval(ctypes.Structure):
    """v4l2_frmivalenum; `interval` is seconds as a fraction, or the shortest, the longest and the step."""

    _fields_ = (
        ("index", c_uint32),
        ("pixel_format", c_uint32),
        ("width", c_uint32),
        ("height", c_uint32),
        ("type", c_uint32),
        ("interval", c_uint32 * 6),
        ("reserved", c_uint32 * 2),
    )


class RequestBuffers(ctypes.Structure):
    """v4l2_requestbuffers"""

    _fields_ = (
        ("count", c_uint32),
        ("type", c_uint32),
        ("memory", c_uint32),
        ("capabilities", c_uint32),
        ("flags", c_uint8),
        ("reserved", c_uint8 * 3),
    )


def request(number: int, structure: type[ctypes.Structure], *, write: bool = True) -> int:
    """_IOR or _IOWR of 'V' (asm-generic/ioctl.h): direction, size of the structure, type, number."""
    direction = 3 if write else 2
    return direction << 30 | ctypes.sizeof(structure) << 16 | ord("V") << 8 | number


QUERYCAP = request(0, Capability, write=False)
ENUM_FMT = request(2, FormatDescription)
REQBUFS = request(8, RequestBuffers)
ENUM_FRAMESIZES = request(74, FrameSize)
ENUM_FRAMEINTERVALS = request(75, FrameInterval)


@dataclass(frozen=True, kw_only=True)
class CameraSize:
    """One size that a camera can send, and how often."""

    width_px: int
    height_px: int
    rates_hz: tuple[float, ...]
    """The highest first; empty where the driver does not say."""


@dataclass(frozen=True, kw_only=True)
class CameraFormat:
    """One way in which a camera can send pixels."""

    pixel_format: str
    """FOURCC, such as "MJPG" or "YUYV"."""
    description: str
    sizes: tuple[CameraSize, ...]
    any_size: bool
    """The driver gives a range; `sizes` are its ends and common ones in between."""


@dataclass(frozen=True, kw_only=True)
class CameraInfo:
    """A camera that this machine has."""

    device: str
    name: str
    """As the driver calls it; empty where it could not be asked."""
    driver: str
    bus: str
    """Where it is plugged in: stays when the numbers of devices change."""
    formats: tuple[CameraFormat, ...]
    problem: str | None
    """Why it could not be asked."""
    denied: bool = False
    """This user lacks the permission to open it."""


def list_cameras(folder: Path | None = None, ioctl: Ioctl | None = None) -> list[CameraInfo]:
    """The cameras of this machine, in order of their numbers. Devices that send no pictures are left out.

    Raises:
        MissingError: this is not Linux.
    """
    found = (_ask(path, ioctl or _ioctl()) for path in video_devices(folder))
    return [camera for camera in found if camera is not None]


def video_devices(folder: Path | None = None) -> list[Path]:
    """`/dev/video0` and so on, in order of their numbers."""
    devices = (path for path in (folder or DEVICES).glob("video*") if re.fullmatch(r"video\d+", path.name))
    return sorted(devices, key=lambda path: int(path.name.removeprefix("video")))


def sends_pictures(descriptor: int, ioctl: Ioctl | None = None) -> bool:
    """Whether an open device is a camera, not a camera's metadata or an encoder.

    Raises:
        OSError: it is no Video4Linux2 device.
    """
    return _capture_type(_filled(ioctl or _ioctl(), descriptor, QUERYCAP, Capability())) is not None


def is_busy(descriptor: int, ioctl: Ioctl | None = None) -> bool:
    """Whether another program streams from an open device: the driver does not give its buffers to us then."""
    ioctl = ioctl or _ioctl()
    try:
        kind = _capture_type(_filled(ioctl, descriptor, QUERYCAP, Capability()))
        if kind is not None:  # none are asked for, so that an idle device stays as it is
            _filled(ioctl, descriptor, REQBUFS, RequestBuffers(count=0, type=kind, memory=MEMORY_MMAP))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _ask(path: Path, ioctl: Ioctl) -> CameraInfo | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        return _unknown(path, error)
    try:
        about = _filled(ioctl, descriptor, QUERYCAP, Capability())
        kind = _capture_type(about)
        if kind is None:
            return None
        return CameraInfo(
            device=str(path),
            name=_text(about.card),
            driver=_text(about.driver),
            bus=_text(about.bus_info),
            formats=tuple(_formats(ioctl, descriptor, kind)),
            problem=None,
        )
    except OSError as error:
        return _unknown(path, error)
    finally:
        os.close(descriptor)


def _unknown(path: Path, error: OSError) -> CameraInfo:
    problem, denied = error.strerror or str(error), error.errno == errno.EACCES
    return CameraInfo(device=str(path), name="", driver="", bus="", formats=(), problem=problem, denied=denied)


def _capture_type(about: Capability) -> int | None:
    """The v4l2_buf_type of its pictures; None where it sends none."""
    # `capabilities` are those of all devices of a camera together, such as a webcam's pictures and metadata.
    flags = about.device_caps if about.capabilities & CAP_DEVICE_CAPS else about.capabilities
    if flags & CAP_VIDEO_CAPTURE:
        return BUF_TYPE_VIDEO_CAPTURE
    return BUF_TYPE_VIDEO_CAPTURE_MPLANE if flags & CAP_VIDEO_CAPTURE_MPLANE else None


def _formats(ioctl: Ioctl, descriptor: int, kind: int) -> Iterator[CameraFormat]:
    for found in _listed(ioctl, descriptor, ENUM_FMT, lambda index: FormatDescription(index=index, type=kind)):
        sizes, any_size = _sizes(ioctl, descriptor, found.pixelformat)
        yield CameraFormat(
            pixel_format=fourcc_text(found.pixelformat),
            description=_text(found.description),
            sizes=tuple(
                CameraSize(width_px=w, height_px=h, rates_hz=_rates(ioctl, descriptor, found.pixelformat, w, h))
                for w, h in sizes
            ),
            any_size=any_size,
        )


def _sizes(ioctl: Ioctl, descriptor: int, pixel_format: int) -> tuple[list[tuple[int, int]], bool]:
    """Widths and heights, and whether others between them are possible."""
    sizes = []
    for found in _listed(
        ioctl, descriptor, ENUM_FRAMESIZES, lambda index: FrameSize(index=index, pixel_format=pixel_format)
    ):
        if found.type != DISCRETE:
            low_w, high_w, step_w, low_h, high_h, step_h = found.size
            common = [
                (w, h)
                for w, h in COMMON_SIZES
                if low_w <= w <= high_w and low_h <= h <= high_h
                if (w - low_w) % max(1, step_w) == 0 and (h - low_h) % max(1, step_h) == 0
            ]
            return sorted({(low_w, low_h), *common, (high_w, high_h)}), True
        sizes.append((found.size[0], found.size[1]))
    return sizes, False


def _rates(ioctl: Ioctl, descriptor: int, pixel_format: int, width: int, height: int) -> tuple[float, ...]:
    rates_hz = set()
    asked = {"pixel_format": pixel_format, "width": width, "height": height}
    for found in _listed(ioctl, descriptor, ENUM_FRAMEINTERVALS, lambda index: FrameInterval(index=index, **asked)):
        seconds, per = found.interval[0::2], found.interval[1::2]
        fractions = list(zip(seconds, per, strict=True))[: 1 if found.type == DISCRETE else 2]
        rates_hz |= {round(d / n, 3) for n, d in fractions if n}
        if found.type != DISCRETE:
            break
    return tuple(sorted(rates_hz, reverse=True))


def _listed(ioctl: Ioctl, descriptor: int, number: int, asked: Callable[[int], Filled]) -> Iterator[Filled]:
    """What a driver lists, until it has no more (EINVAL), or does not list such things at all (ENOTTY)."""
    for index in range(MOST):
        try:
            yield _filled(ioctl, descriptor, number, asked(index))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise
            return


def _filled(ioctl: Ioctl, descriptor: int, number: int, structure: Filled) -> Filled:
    ioctl(descriptor, number, structure)
    return structure


def fourcc_text(code: int) -> str:
    """A pixel format's four characters, the first one lowest (v4l2_fourcc); bit 31 only tells the byte order."""
    return "".join(chr(code >> shift & 0xFF) for shift in (0, 8, 16)) + chr(code >> 24 & 0x7F)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace").strip()


def _ioctl() -> Ioctl:
    if not sys.platform.startswith("linux"):
        raise MissingError(
            "Cameras can be listed on Linux only.", "Their formats are asked of Video4Linux2.", "--source 0"
        )
    from fcntl import ioctl

    return ioctl
