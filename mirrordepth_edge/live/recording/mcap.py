"""Record live depth to an MCAP file, as ROS 2 messages.

The messages are ROS's sensor_msgs rather than Foxglove's schemas: Foxglove and Rerun display both, but `ros2 bag play`
can publish only ROS's own.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirrordepth_edge import __version__
from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.camera.pointcloud import camera_matrix
from mirrordepth_edge.errors import InputError, missing_package
from mirrordepth_edge.imaging.jpeg import encode_jpeg
from mirrordepth_edge.imaging.postprocess import MILLIMETRES_PER_METRE, to_millimetres
from mirrordepth_edge.live.recording.base import JPEG_QUALITY, Recording
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.support.files import unwritable

if TYPE_CHECKING:
    from mcap.records import Schema

PHOTO, DEPTH, INFO = "/camera/image/compressed", "/camera/depth", "/camera/camera_info"
FRAME_ID = "camera_optical_frame"
"""x to the right, y down, z forward (ROS REP 103)."""
CHUNK_BYTES = 4 * 2**20
"""Unit of compression, and the data that a crash can lose: about seven frames of 640x480."""
MAX_MILLIMETRES_M = np.iinfo(np.uint16).max / MILLIMETRES_PER_METRE

HEADER = ("std_msgs/Header", "builtin_interfaces/Time stamp\nstring frame_id")
TIME = ("builtin_interfaces/Time", "int32 sec\nuint32 nanosec")
REGION = (
    "sensor_msgs/RegionOfInterest",
    "uint32 x_offset\nuint32 y_offset\nuint32 height\nuint32 width\nbool do_rectify",
)
MESSAGES = {
    "sensor_msgs/msg/CompressedImage": ("std_msgs/Header header\nstring format\nuint8[] data", (HEADER, TIME)),
    "sensor_msgs/msg/Image": (
        "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\n"
        "uint8[] data",
        (HEADER, TIME),
    ),
    "sensor_msgs/msg/CameraInfo": (
        "std_msgs/Header header\nuint32 height\nuint32 width\nstring distortion_model\nfloat64[] d\nfloat64[9] k\n"
        "float64[9] r\nfloat64[12] p\nuint32 binning_x\nuint32 binning_y\nsensor_msgs/RegionOfInterest roi",
        (HEADER, TIME, REGION),
    ),
}
"""The fields of each message type, and the message types that it contains."""
CHUNK, MESSAGE_INDEX, DATA_END = 0x06, 0x07, 0x0F
"""Opcodes of MCAP records before which the data section may be ended."""


class McapRecording(Recording):
    """JPEG photos, depth and, if the camera is known, its calibration, all with the capture time.

    Depth is a sensor_msgs/Image in 16UC1: millimetres, 0 for no depth (ROS REP 118). Compressed, it takes a quarter of
    32FC1 metres. If depth can exceed 65.535 m it is 32FC1. PNG would be slightly smaller, but viewers reduce it to 8
    bits.

    The file is written in place as NAME.partial.mcap and renamed when it is closed. After a crash or power failure the
    partial file is readable up to the last seconds; `mcap recover` rebuilds its index.

    Args:
        path: the `.mcap` file.
        camera: the camera of the frames; without it no calibration is recorded.
        far_m: the largest possible depth.

    Raises:
        MissingError: the package `mcap-ros2-support` is not installed.
    """

    def __init__(self, path: Path, *, camera: Camera | Lens | None = None, far_m: float = 0.0) -> None:
        try:
            import mcap_ros2.writer  # noqa: F401 - to fail before anything runs
        except ImportError as error:
            raise missing_package("mcap-ros2-support", "Recording an .mcap", "record") from error
        super().__init__(path)
        self.partial = path.with_suffix(f".partial{path.suffix}")
        """The file until it is closed."""
        self._camera = camera
        self._in_metres = far_m > MAX_MILLIMETRES_M
        self._schemas: dict[str, Schema] = {}
        self._buffered = 0
        """Frames that are not completely on disk, but in the current chunk."""

    def _open(self) -> None:
        from mcap_ros2.writer import Writer

        try:
            self._file = SafeFile(self.partial.open("xb", buffering=0))
        except FileExistsError as error:
            raise InputError(
                f"{self.partial} already exists.",
                "It is an interrupted recording, or one that is still running.",
                f"Save its content (mcap recover {self.partial} -o FILE), then delete it.",
            ) from error
        except OSError as error:
            raise unwritable(self.partial, error) from error
        self._writer = Writer(self._file, chunk_size=CHUNK_BYTES)
        self._writer.add_metadata("mirrordepth-edge", {"version": __version__})

    def _write(self, result: LiveResult) -> None:
        height, width = result.frame.shape[:2]
        photo = {"format": "jpeg", "data": encode_jpeg(result.frame, JPEG_QUALITY)}
        self._add(PHOTO, "sensor_msgs/msg/CompressedImage", photo, result)
        depth = result.depth_m if self._in_metres else to_millimetres(result.depth_m)
        image = {
            "height": height,
            "width": width,
            "encoding": "32FC1" if self._in_metres else "16UC1",
            "is_bigendian": 0,
            "step": width * depth.itemsize,
            "data": depth.astype(depth.dtype.newbyteorder("<"), copy=False).tobytes(),
        }
        self._add(DEPTH, "sensor_msgs/msg/Image", image, result)
        if self._camera is not None:
            k = camera_matrix(self._camera.at((height, width)))
            # A pinhole without distortion; the fields that are left out, binning and region of interest, are 0.
            info = {
                "height": height,
                "width": width,
                "distortion_model": "plumb_bob",
                "d": [0.0] * 5,
                "k": k.ravel().tolist(),
                "r": np.eye(3).ravel().tolist(),
                "p": np.column_stack([k, np.zeros(3)]).ravel().tolist(),
            }
            self._add(INFO, "sensor_msgs/msg/CameraInfo", info, result)
        if self._file.error is not None:
            raise self._file.error
        self._buffered += 1

    def _add(self, topic: str, message_type: str, fields: Mapping[str, Any], result: LiveResult) -> None:
        if message_type not in self._schemas:
            self._schemas[message_type] = self._writer.register_msgdef(message_type, definition(message_type))
        time_ns = result.captured_unix_ns
        seconds, nanoseconds = divmod(time_ns, 10**9)
        message = {"header": {"stamp": {"sec": seconds, "nanosec": nanoseconds}, "frame_id": FRAME_ID}, **fields}
        size = self._file.tell()
        self._writer.write_message(topic, self._schemas[message_type], message, time_ns, sequence=result.number)
        if self._file.tell() > size and self._file.error is None:  # a chunk was completed
            self.frames, self._buffered = self.frames + self._buffered, 0

    def _finish(self) -> None:
        if self._file.error is None and self.frames + self._buffered:
            self._writer.finish()
            self.frames += self._buffered if self._file.error is None else 0
        if self._file.close() and self.frames:
            self.partial.replace(self.path)
        else:
            self.partial.unlink()
        if self._file.error is not None:
            raise self._file.error


def definition(message_type: str) -> str:
    """Return the definition of a message type and the types that it contains, in MCAP's ros2msg format."""
    fields, contained = MESSAGES[message_type]
    parts = [fields, *(f"MSG: {name}\n{lines}" for name, lines in contained)]
    return f"\n{'=' * 80}\n".join(parts)


class SafeFile:
    """A file for an MCAP writer that remains readable after a write error: each record is written whole or not at all.

    Errors are not raised, since they would leave the writer in the middle of a chunk. After the first one, kept in
    `error`, further data is discarded.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self.error: OSError | None = None
        self._raw = raw
        self._size = 0
        self._record_starts: deque[int] = deque(maxlen=4)

    def write(self, data: bytes) -> int:
        if data and self.error is None:
            if data[0] in (CHUNK, MESSAGE_INDEX, DATA_END):
                self._record_starts.append(self._size)
            try:
                self._write(data)
            except OSError as error:
                self.error = error
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def close(self) -> bool:
        """Close the file; after an error, end it first where it is still intact.

        Returns:
            False if no part of it is readable.
        """
        try:
            readable = self.error is None or self._end_early()
            if readable:
                os.fsync(self._raw.fileno())
        finally:
            self._raw.close()
        return readable

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._raw.write(rest) :]

    def _end_early(self) -> bool:
        """Truncate the file after its last whole record, or an earlier one if there is no space, and end it there."""
        from mcap.data_stream import RecordBuilder
        from mcap.records import DataEnd, Footer
        from mcap.writer import MCAP0_MAGIC

        end = RecordBuilder()
        DataEnd(0).write(end)
        Footer(summary_start=0, summary_offset_start=0, summary_crc=0).write(end)
        data = end.end() + MCAP0_MAGIC
        while self._record_starts:
            start = self._record_starts.pop()
            self._raw.truncate(start)
            self._raw.seek(start)
            try:
                self._write(data)
            except OSError:
                continue
            return True
        return False
