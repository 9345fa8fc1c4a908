"""List the cameras of a Linux machine and their modes, through Video4Linux2 ioctls.

Structures and constants follow linux/videodev2.h. All fields are bytes or 32 bits wide, so the structures are the same
on x86-64 and aarch64.
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
"""Like `fcntl.ioctl`: file descriptor, request, structure to read and write in place; raises OSError."""

Struct = TypeVar("Struct", bound=ctypes.Structure)

CAP_VIDEO_CAPTURE, CAP_VIDEO_CAPTURE_MPLANE, CAP_DEVICE_CAPS = 0x1, 0x1000, 0x80000000
BUF_TYPE_VIDEO_CAPTURE, BUF_TYPE_VIDEO_CAPTURE_MPLANE = 1, 9
MEMORY_MMAP = 1
DISCRETE = 1
"""In both V4L2_FRMSIZE_TYPE and V4L2_FRMIVAL_TYPE; 2 is continuous and 3 stepwise."""
COMMON_SIZES = ((640, 480), (800, 600), (1280, 720), (1280, 960), (1920, 1080), (2560, 1440), (3840, 2160))
MAX_ENTRIES = 1024
"""Limit for enumerations, in case a driver never ends one."""


def _u32(*names: str) -> list[tuple[str, type[c_uint32]]]:
    return [(name, c_uint32) for name in names]


class Capability(ctypes.Structure):
    """v4l2_capability"""

    _fields_ = (
        ("driver", c_char * 16),
        ("card", c_char * 32),
        ("bus_info", c_char * 32),
        *_u32("version", "capabilities", "device_caps"),
        ("reserved", c_uint32 * 3),
    )


class FormatDescription(ctypes.Structure):
    """v4l2_fmtdesc"""

    _fields_ = (
        *_u32("index", "type", "flags"),
        ("description", c_char * 32),
        *_u32("pixelformat", "mbus_code"),
        ("reserved", c_uint32 * 3),
    )


class FrameSize(ctypes.Structure):
    """v4l2_frmsizeenum; `size` is width and height, or min, max and step of the width, then of the height."""

    _fields_ = (*_u32("index", "pixel_format", "type"), ("size", c_uint32 * 6), ("reserved", c_uint32 * 2))


class FrameInterval(ctypes.Structure):
    """v4l2_frmivalenum; `interval` is a fraction of seconds, or the min, max and step fractions."""

    _fields_ = (
        *_u32("index", "pixel_format", "width", "height", "type"),
        ("interval", c_uint32 * 6),
        ("reserved", c_uint32 * 2),
    )


class RequestBuffers(ctypes.Structure):
    """v4l2_requestbuffers"""

    _fields_ = (*_u32("count", "type", "memory", "capabilities"), ("flags", c_uint8), ("reserved", c_uint8 * 3))


def request(number: int, structure: type[ctypes.Structure], *, write: bool = True) -> int:
    """Return the ioctl request code: _IOR or _IOWR of type 'V' (asm-generic/ioctl.h)."""
    direction = 3 if write else 2
    return direction << 30 | ctypes.sizeof(structure) << 16 | ord("V") << 8 | number


QUERYCAP = request(0, Capability, write=False)
ENUM_FMT = request(2, FormatDescription)
REQBUFS = request(8, RequestBuffers)
ENUM_FRAMESIZES = request(74, FrameSize)
ENUM_FRAMEINTERVALS = request(75, FrameInterval)


@dataclass(frozen=True, kw_only=True)
class CameraSize:
    """A frame size that a camera supports, with its frame rates."""

    width_px: int
    height_px: int
    rates_hz: tuple[float, ...]
    """Highest first; empty if the driver does not report them."""


@dataclass(frozen=True, kw_only=True)
class CameraFormat:
    """A pixel format that a camera supports."""

    pixel_format: str
    """FOURCC, such as "MJPG" or "YUYV"."""
    description: str
    sizes: tuple[CameraSize, ...]
    any_size: bool
    """True if the driver reports a range; `sizes` then has its ends and common sizes in between."""


@dataclass(frozen=True, kw_only=True)
class CameraInfo:
    """A camera of this machine."""

    device: str
    name: str
    """Name from the driver; empty if it could not be queried."""
    driver: str
    bus: str
    """Physical port; unlike the device number, it does not change."""
    formats: tuple[CameraFormat, ...]
    problem: str | None
    """Why the camera could not be queried; None if it could."""
    denied: bool = False
    """This user lacks the permission to open it."""


def list_cameras(folder: Path | None = None, ioctl: Ioctl | None = None) -> list[CameraInfo]:
    """List the cameras of this machine by device number. Devices that send no video are left out.

    Raises:
        MissingError: the system is not Linux.
    """
    cameras = (_query(path, ioctl or _ioctl()) for path in video_devices(folder))
    return [camera for camera in cameras if camera is not None]


def video_devices(folder: Path | None = None) -> list[Path]:
    """Return `/dev/video0` and so on, sorted by number."""
    devices = (path for path in (folder or DEVICES).glob("video*") if re.fullmatch(r"video\d+", path.name))
    return sorted(devices, key=lambda path: int(path.name.removeprefix("video")))


def sends_video(descriptor: int, ioctl: Ioctl | None = None) -> bool:
    """Whether an open device sends video, unlike a camera's metadata device or an encoder.

    Raises:
        OSError: it is not a Video4Linux2 device.
    """
    return _capture_type(_call(ioctl or _ioctl(), descriptor, QUERYCAP, Capability())) is not None


def is_busy(descriptor: int, ioctl: Ioctl | None = None) -> bool:
    """Whether another program streams from an open device; the driver then refuses to allocate buffers."""
    ioctl = ioctl or _ioctl()
    try:
        kind = _capture_type(_call(ioctl, descriptor, QUERYCAP, Capability()))
        if kind is not None:  # a request for 0 buffers, which changes nothing on an idle device
            _call(ioctl, descriptor, REQBUFS, RequestBuffers(count=0, type=kind, memory=MEMORY_MMAP))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _query(path: Path, ioctl: Ioctl) -> CameraInfo | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        return _unreadable(path, error)
    try:
        capability = _call(ioctl, descriptor, QUERYCAP, Capability())
        kind = _capture_type(capability)
        if kind is None:
            return None
        return CameraInfo(
            device=str(path),
            name=_text(capability.card),
            driver=_text(capability.driver),
            bus=_text(capability.bus_info),
            formats=tuple(_formats(ioctl, descriptor, kind)),
            problem=None,
        )
    except OSError as error:
        return _unreadable(path, error)
    finally:
        os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> CameraInfo:
    problem, denied = error.strerror or str(error), error.errno == errno.EACCES
    return CameraInfo(device=str(path), name="", driver="", bus="", formats=(), problem=problem, denied=denied)


def _capture_type(capability: Capability) -> int | None:
    """Return the v4l2_buf_type for video capture; None if the device sends no video."""
    # `capabilities` is the union over all devices of a camera, such as a webcam's video and metadata devices.
    flags = capability.device_caps if capability.capabilities & CAP_DEVICE_CAPS else capability.capabilities
    if flags & CAP_VIDEO_CAPTURE:
        return BUF_TYPE_VIDEO_CAPTURE
    return BUF_TYPE_VIDEO_CAPTURE_MPLANE if flags & CAP_VIDEO_CAPTURE_MPLANE else None


def _formats(ioctl: Ioctl, descriptor: int, kind: int) -> Iterator[CameraFormat]:
    for entry in _enumerate(ioctl, descriptor, ENUM_FMT, lambda index: FormatDescription(index=index, type=kind)):
        sizes, any_size = _sizes(ioctl, descriptor, entry.pixelformat)
        yield CameraFormat(
            pixel_format=fourcc_text(entry.pixelformat),
            description=_text(entry.description),
            sizes=tuple(
                CameraSize(width_px=w, height_px=h, rates_hz=_rates(ioctl, descriptor, entry.pixelformat, w, h))
                for w, h in sizes
            ),
            any_size=any_size,
        )


def _sizes(ioctl: Ioctl, descriptor: int, pixel_format: int) -> tuple[list[tuple[int, int]], bool]:
    """Return widths and heights, and whether sizes in between are possible."""
    sizes = []
    for entry in _enumerate(
        ioctl, descriptor, ENUM_FRAMESIZES, lambda index: FrameSize(index=index, pixel_format=pixel_format)
    ):
        if entry.type != DISCRETE:
            min_w, max_w, step_w, min_h, max_h, step_h = entry.size
            common = [
                (w, h)
                for w, h in COMMON_SIZES
                if min_w <= w <= max_w and min_h <= h <= max_h
                if (w - min_w) % max(1, step_w) == 0 and (h - min_h) % max(1, step_h) == 0
            ]
            return sorted({(min_w, min_h), *common, (max_w, max_h)}), True
        sizes.append((entry.size[0], entry.size[1]))
    return sizes, False


def _rates(ioctl: Ioctl, descriptor: int, pixel_format: int, width: int, height: int) -> tuple[float, ...]:
    rates_hz = set()
    mode = {"pixel_format": pixel_format, "width": width, "height": height}
    for entry in _enumerate(ioctl, descriptor, ENUM_FRAMEINTERVALS, lambda index: FrameInterval(index=index, **mode)):
        numerators, denominators = entry.interval[0::2], entry.interval[1::2]
        fractions = list(zip(numerators, denominators, strict=True))[: 1 if entry.type == DISCRETE else 2]
        rates_hz |= {round(d / n, 3) for n, d in fractions if n}
        if entry.type != DISCRETE:
            break
    return tuple(sorted(rates_hz, reverse=True))


def _enumerate(ioctl: Ioctl, descriptor: int, number: int, entry: Callable[[int], Struct]) -> Iterator[Struct]:
    """Yield what a driver lists, until it has no more (EINVAL) or does not support the request (ENOTTY)."""
    for index in range(MAX_ENTRIES):
        try:
            yield _call(ioctl, descriptor, number, entry(index))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise
            return


def _call(ioctl: Ioctl, descriptor: int, number: int, structure: Struct) -> Struct:
    ioctl(descriptor, number, structure)
    return structure


def fourcc_text(code: int) -> str:
    """Return the four characters of a pixel format, lowest byte first (v4l2_fourcc). Bit 31 is the byte order."""
    return "".join(chr(code >> shift & 0xFF) for shift in (0, 8, 16)) + chr(code >> 24 & 0x7F)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace").strip()


def _ioctl() -> Ioctl:
    if not sys.platform.startswith("linux"):
        raise MissingError("Cameras can be listed only on Linux.", "The list comes from Video4Linux2.", "--source 0")
    from fcntl import ioctl

    return ioctl
