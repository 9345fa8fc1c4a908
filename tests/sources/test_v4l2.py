"""Cameras asked through ioctl: the structures against the kernel's own header, the answers against a made-up driver."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.sources import v4l2
from mirrordepth_edge.sources.v4l2 import CameraSize, list_cameras

# Names in linux/videodev2.h of the structure, its request, and those fields whose names differ from ours.
STRUCTURES: dict[type[ctypes.Structure], tuple[str, str, int, dict[str, str]]] = {
    v4l2.Capability: ("v4l2_capability", "VIDIOC_QUERYCAP", v4l2.QUERYCAP, {}),
    v4l2.FormatDescription: ("v4l2_fmtdesc", "VIDIOC_ENUM_FMT", v4l2.ENUM_FMT, {}),
    v4l2.FrameSize: ("v4l2_frmsizeenum", "VIDIOC_ENUM_FRAMESIZES", v4l2.ENUM_FRAMESIZES, {"size": "stepwise"}),
    v4l2.FrameInterval: (
        "v4l2_frmivalenum",
        "VIDIOC_ENUM_FRAMEINTERVALS",
        v4l2.ENUM_FRAMEINTERVALS,
        {"interval": "stepwise"},
    ),
    v4l2.RequestBuffers: ("v4l2_requestbuffers", "VIDIOC_REQBUFS", v4l2.REQBUFS, {}),
}


def test_request_codes() -> None:
    # The ABI of x86-64 and aarch64 alike: direction, size of the structure, "V", number.
    assert [hex(number) for _, _, number, _ in STRUCTURES.values()] == [
        "0x80685600",
        "0xc0405602",
        "0xc02c564a",
        "0xc034564b",
        "0xc0145608",
    ]


@pytest.mark.skipif(
    shutil.which("cc") is None or not Path("/usr/include/linux/videodev2.h").is_file(),
    reason="needs a C compiler and the kernel's headers",
)
def test_structures_match_the_kernel_header(tmp_path: Path) -> None:
    lines, ours = [], []
    for structure, (name, request, number, renamed) in STRUCTURES.items():
        lines.append(f'printf("%lx %zu\\n", (unsigned long) {request}, sizeof(struct {name}));')
        ours.append(f"{number:x} {ctypes.sizeof(structure)}")
        for field, *_ in structure._fields_:
            descriptor = getattr(structure, field)
            theirs = renamed.get(field, field)
            if (name, field) == ("v4l2_requestbuffers", "flags"):
                continue  # newer than some headers, in formerly reserved bytes
            lines.append(
                f'printf("%zu %zu\\n", offsetof(struct {name}, {theirs}), sizeof(((struct {name} *) 0)->{theirs}));'
            )
            ours.append(f"{descriptor.offset} {descriptor.size}")
    names = {
        "V4L2_CAP_VIDEO_CAPTURE": v4l2.CAP_VIDEO_CAPTURE,
        "V4L2_CAP_VIDEO_CAPTURE_MPLANE": v4l2.CAP_VIDEO_CAPTURE_MPLANE,
        "V4L2_CAP_DEVICE_CAPS": v4l2.CAP_DEVICE_CAPS,
        "V4L2_BUF_TYPE_VIDEO_CAPTURE": v4l2.BUF_TYPE_VIDEO_CAPTURE,
        "V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE": v4l2.BUF_TYPE_VIDEO_CAPTURE_MPLANE,
        "V4L2_MEMORY_MMAP": v4l2.MEMORY_MMAP,
        "V4L2_FRMSIZE_TYPE_DISCRETE": v4l2.DISCRETE,
        "V4L2_FRMIVAL_TYPE_DISCRETE": v4l2.DISCRETE,
    }
    for name, value in names.items():
        lines.append(f'printf("%lx\\n", (unsigned long) {name});')
        ours.append(f"{value:x}")
    program = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/videodev2.h>\n"
    (tmp_path / "ask.c").write_text(program + "int main(void) {" + "\n".join(lines) + "return 0; }\n")
    subprocess.run(["cc", "-o", "ask", "ask.c"], cwd=tmp_path, check=True, timeout=600)
    theirs_text = subprocess.run([tmp_path / "ask"], capture_output=True, text=True, check=True, timeout=600).stdout
    assert theirs_text.splitlines() == ours


MJPG, YUYV, GREY = (int.from_bytes(name, "little") for name in (b"MJPG", b"YUYV", b"GREY"))


class Driver:
    """A fake kernel driver, with bytes packed by hand from linux/videodev2.h."""

    capabilities, device_caps = 0x84A00001, 0x04200001
    kind = 1

    def __call__(self, descriptor: int, request: int, structure: Any) -> int:
        asked = bytes(structure)
        answer = {
            0x80685600: self.querycap,
            0xC0405602: self.enum_fmt,
            0xC02C564A: self.enum_framesizes,
            0xC034564B: self.enum_frameintervals,
        }[request](asked)
        if answer is None:
            raise OSError(errno.EINVAL, "no more")
        assert len(answer) == len(asked)
        ctypes.memmove(ctypes.addressof(structure), answer, len(answer))
        return 0

    def querycap(self, asked: bytes) -> bytes:
        names = (b"uvcvideo", b"HD Webcam: HD Webcam", b"usb-0000:00:14.0-1")
        return struct.pack("=16s32s32s3I12x", *names, 0x060800, self.capabilities, self.device_caps)

    def enum_fmt(self, asked: bytes) -> bytes | None:
        index, kind = struct.unpack_from("=2I", asked)
        assert kind == self.kind
        formats = ((1, b"Motion-JPEG", MJPG), (0, b"YUYV 4:2:2", YUYV), (0, b"8-bit Greyscale", GREY))
        if index >= len(formats):
            return None
        flags, description, code = formats[index]
        return struct.pack("=3I32s2I12x", index, kind, flags, description, code, 0)

    def enum_framesizes(self, asked: bytes) -> bytes | None:
        index, code = struct.unpack_from("=2I", asked)
        if code == MJPG and index < 2:
            width, height = ((1280, 720), (640, 480))[index]
            return struct.pack("=5I16x8x", index, code, 1, width, height)
        if code == YUYV and index == 0:  # stepwise: from 32x16 by 32x16 to 1920x1088
            return struct.pack("=9I8x", index, code, 3, 32, 1920, 32, 16, 1088, 16)
        return None

    def enum_frameintervals(self, asked: bytes) -> bytes | None:
        index, code, width, height = struct.unpack_from("=4I", asked)
        if code == MJPG and index < 2 and width == 640:
            seconds = ((1, 30), (1001, 30000))[index]
            return struct.pack("=7I16x8x", index, code, width, height, 1, *seconds)
        if code == YUYV and index == 0:  # continuous: from 1/60 s to 1/5 s
            return struct.pack("=11I8x", index, code, width, height, 2, 1, 60, 1, 5, 1, 1)
        return None


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    (tmp_path / "video10").touch()
    (tmp_path / "video2").touch()
    (tmp_path / "video-audio").touch()
    return tmp_path


def test_a_camera_with_all_its_modes(devices: Path) -> None:
    second, tenth = list_cameras(devices, Driver())
    assert (second.device, tenth.device) == (str(devices / "video2"), str(devices / "video10"))
    assert (second.name, second.driver, second.bus, second.problem) == (
        "HD Webcam: HD Webcam",
        "uvcvideo",
        "usb-0000:00:14.0-1",
        None,
    )
    mjpg, yuyv, grey = second.formats
    assert (mjpg.pixel_format, mjpg.description, mjpg.any_size) == ("MJPG", "Motion-JPEG", False)
    assert mjpg.sizes == (
        CameraSize(width_px=1280, height_px=720, rates_hz=()),
        CameraSize(width_px=640, height_px=480, rates_hz=(30.0, 29.97)),
    )
    assert (yuyv.pixel_format, yuyv.any_size) == ("YUYV", True)
    # 800 is no multiple of 32 more than 32, and 600, 1080 none of 16 more than 16.
    sizes = [(size.width_px, size.height_px) for size in yuyv.sizes]
    assert sizes == [(32, 16), (640, 480), (1280, 720), (1280, 960), (1920, 1088)]
    assert {size.rates_hz for size in yuyv.sizes} == {(60.0, 5.0)}
    assert (grey.pixel_format, grey.sizes, grey.any_size) == ("GREY", (), False)
    assert asdict(second)["formats"][0]["sizes"][1]["rates_hz"] == (30.0, 29.97), "plain data"


def test_devices_that_send_no_video_are_left_out(devices: Path) -> None:
    driver = Driver()
    driver.device_caps = 0x04A00000  # the metadata of the same camera
    assert list_cameras(devices, driver) == []
    driver.capabilities = 0x04A00001  # an old driver without device_caps
    assert len(list_cameras(devices, driver)) == 2


def test_a_camera_of_many_planes(devices: Path) -> None:
    driver = Driver()
    driver.device_caps, driver.kind = 0x04201000, 9
    assert len(list_cameras(devices, driver)[0].formats) == 3


def test_a_camera_that_cannot_be_queried_says_why(devices: Path) -> None:
    def lost(*_: object) -> int:
        raise OSError(errno.ENODEV, "No such device")

    cameras = list_cameras(devices, lost)
    assert [(camera.problem, camera.formats) for camera in cameras] == [("No such device", ())] * 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ioctl is Linux's")
def test_regular_files_are_reported_as_problems(devices: Path) -> None:
    assert [camera.problem for camera in list_cameras(devices)] == [os.strerror(errno.ENOTTY)] * 2
    (devices / "video2").unlink()
    (devices / "video2").symlink_to(devices / "gone")
    assert list_cameras(devices)[0].problem == os.strerror(errno.ENOENT)


def test_other_systems_are_rejected(monkeypatch: pytest.MonkeyPatch, devices: Path) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(MissingError, match="only on Linux"):
        list_cameras(devices)


def test_a_driver_that_never_ends_an_enumeration(devices: Path) -> None:
    class Endless(Driver):
        def enum_frameintervals(self, asked: bytes) -> bytes | None:
            index, code, width, height = struct.unpack_from("=4I", asked)
            return struct.pack("=7I16x8x", index, code, width, height, 1, 1, 30)

    (devices / "video10").unlink()
    (camera,) = list_cameras(devices, Endless())
    assert camera.formats[0].sizes[0].rates_hz == (30.0,)


@pytest.mark.parametrize(("refusal", "busy"), [(None, False), (errno.EBUSY, True), (errno.ENOTTY, False)])
def test_a_busy_camera_refuses_buffers(refusal: int | None, busy: bool) -> None:
    asked: list[int] = []

    def driver(descriptor: int, request: int, structure: Any) -> int:
        if request == v4l2.QUERYCAP:
            structure.capabilities = 0x1
            return 0
        asked.append(structure.count)
        if refusal is not None:
            raise OSError(refusal, os.strerror(refusal))
        return 0

    assert v4l2.is_busy(0, driver) is busy
    assert asked == [0], "buffers of an idle camera were allocated"


@pytest.mark.skipif(not list(Path("/dev").glob("video*")), reason="this machine has no camera")
def test_the_cameras_of_this_machine() -> None:
    for camera in list_cameras():
        assert camera.problem or (camera.name and camera.driver)
        for form in camera.formats:
            assert len(form.pixel_format) == 4
