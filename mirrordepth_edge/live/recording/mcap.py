"""Live depth in an MCAP file, as ROS 2 messages.

ROS's own messages rather than Foxglove's, since both open them: Foxglove and Rerun show sensor_msgs, and `ros2 bag
play` publishes them, while ROS knows no message by the name of foxglove.RawImage. They are binary, so that pictures
need no base64, and their encoding (CDR, OMG's XCDR version 1) is the few lines of `Cdr`.
"""

from __future__ import annotations

import io
import os
import struct
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.camera.pointcloud import camera_matrix
from mirrordepth_edge.errors import InputError, missing_package
from mirrordepth_edge.imaging.postprocess import MILLIMETRES_PER_METRE, to_millimetres
from mirrordepth_edge.live.recording.base import Recording, jpeg
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.support.files import unwritable

if TYPE_CHECKING:
    from mcap.writer import Writer

PHOTO, DEPTH, INFO = "/camera/image/compressed", "/camera/depth", "/camera/camera_info"
FRAME_ID = "camera_optical_frame"
"""x to the right, y down, z forward (ROS REP 103)."""
CHUNK_BYTES = 4 * 2**20
"""What a crash can cost, and what is compressed at once: some seven frames of 640x480."""
MOST_MILLIMETRES_M = np.iinfo(np.uint16).max / MILLIMETRES_PER_METRE

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
"""Each message's fields, and the messages inside it."""
CHUNK, MESSAGE_INDEX, DATA_END = 0x06, 0x07, 0x0F
"""Opcodes of records (MCAP specification) before which a file's data may end."""


class McapRecording(Recording):
    """Photos (JPEG), depth and, where the camera is known, its calibration, each stamped with the time of capture.

    Depth is sensor_msgs/Image in 16UC1, millimetres with 0 for none (ROS REP 118): a quarter of the size of 32FC1
    metres when compressed, and far finer than any depth from one picture. Where depth can be farther than 65.535 m
    it is 32FC1. PNGs would be a little smaller, but viewers decode them to 8 bits.

    Written in place, as NAME.partial.mcap, and renamed when it is closed. What a crash or a power cut leaves under
    that name can be read up to its last seconds, and `mcap recover` gives it back its index.

    Args:
        path: an `.mcap`.
        camera: what the frames come from; without it there is no calibration.
        far_m: the farthest that depth can be.

    Raises:
        MissingError: the package `mcap` is not installed.
    """

    def __init__(self, path: Path, *, camera: Camera | Lens | None = None, far_m: float = 0.0) -> None:
        try:
            import mcap.writer  # noqa: F401 - so that it is missed before anything runs
        except ImportError as error:
            raise missing_package("mcap", "Recording an .mcap", "record") from error
        super().__init__(path)
        self.partial = path.with_suffix(f".partial{path.suffix}")
        """Where it is until it is closed."""
        self._camera = camera
        self._metres = far_m > MOST_MILLIMETRES_M
        self._channels: dict[str, int] = {}
        self._unwritten = 0
        """Frames that are not all on the disk: in the chunk that is being filled."""

    def _open(self) -> None:
        try:
            self._file = SafeFile(self.partial.open("xb", buffering=0))
        except FileExistsError as error:
            raise InputError(
                f"{self.partial} is there already.",
                "It is a recording that was cut off, or one that is running.",
                f"Keep what is in it (mcap recover {self.partial} -o FILE), then remove it.",
            ) from error
        except OSError as error:
            raise unwritable(self.partial, error) from error
        self._writer = started(self._file)

    def _keep(self, result: LiveResult) -> None:
        height, width = size_hw = result.frame.shape[:2]
        seconds, nanoseconds = divmod(result.captured_unix_ns, 10**9)
        header = Cdr().number("i", seconds).number("I", nanoseconds).text(FRAME_ID).written
        photo = Cdr(header).text("jpeg").data(jpeg(result.frame))
        self._add(PHOTO, "sensor_msgs/msg/CompressedImage", photo, result)
        depth = result.depth_m if self._metres else to_millimetres(result.depth_m)
        encoding = "32FC1" if self._metres else "16UC1"
        image = Cdr(header).number("I", height, width).text(encoding).number("B", 0)
        image.number("I", width * depth.itemsize).data(depth.astype(depth.dtype.newbyteorder("<"), copy=False))
        self._add(DEPTH, "sensor_msgs/msg/Image", image, result)
        if self._camera is not None:
            k = camera_matrix(self._camera.at(size_hw))
            info = Cdr(header).number("I", height, width)
            info.text("plumb_bob").number("I", 5).number("d", *[0.0] * 5)  # a pinhole: no distortion
            info.number("d", *k.ravel(), *np.eye(3).ravel(), *np.column_stack([k, np.zeros(3)]).ravel())
            info.number("I", 0, 0, 0, 0, 0, 0).number("B", 0)  # neither binned nor cut
            self._add(INFO, "sensor_msgs/msg/CameraInfo", info, result)
        if self._file.error is not None:
            raise self._file.error
        self._unwritten += 1

    def _add(self, topic: str, message: str, written: Cdr, result: LiveResult) -> None:
        if topic not in self._channels:
            schema = self._writer.register_schema(message, "ros2msg", definition(message).encode())
            self._channels[topic] = self._writer.register_channel(topic, "cdr", schema)
        time_ns = result.captured_unix_ns
        before = self._file.tell()
        self._writer.add_message(self._channels[topic], time_ns, bytes(written.written), time_ns, result.number)
        if self._file.tell() > before and self._file.error is None:
            self.frames, self._unwritten = self.frames + self._unwritten, 0

    def _finish(self) -> None:
        if self._file.error is None and self.frames + self._unwritten:
            self._writer.finish()
            self.frames += self._unwritten if self._file.error is None else 0
        if self._file.close() and self.frames:
            self.partial.replace(self.path)
        else:
            self.partial.unlink()
        if self._file.error is not None:
            raise self._file.error


class Cdr:
    """A message in the encoding of ROS 2: little-endian, each number at a multiple of its size after the first four
    bytes, which say so."""

    def __init__(self, begun: bytes | bytearray = b"\0\1\0\0") -> None:
        self.written = bytearray(begun)

    def number(self, kind: str, *values: float) -> Cdr:
        """Numbers of a kind of `struct`'s: one field, several, or an array of fixed length."""
        self.written += bytes(-(len(self.written) - 4) % struct.calcsize(f"<{kind}"))
        self.written += struct.pack(f"<{len(values)}{kind}", *values)
        return self

    def text(self, value: str) -> Cdr:
        return self.data(value.encode() + b"\0")

    def data(self, value: bytes | np.ndarray[Any, Any]) -> Cdr:
        """Bytes after their number; of an array all its bytes, row after row."""
        data = memoryview(value).cast("B") if isinstance(value, bytes) else np.ascontiguousarray(value).view(np.uint8)
        self.number("I", data.nbytes)
        self.written += data.tobytes()
        return self


def definition(message: str) -> str:
    """A message's definition with those inside it, in the form that MCAP calls ros2msg."""
    fields, inside = MESSAGES[message]
    parts = [fields, *(f"MSG: {name}\n{lines}" for name, lines in inside)]
    return f"\n{'=' * 80}\n".join(parts)


def started(file: Any) -> Writer:
    """A writer that has begun its file."""
    from mcap.writer import Writer

    from mirrordepth_edge import __version__

    writer = Writer(file, chunk_size=CHUNK_BYTES)
    writer.start(profile="ros2", library=f"mirrordepth-edge {__version__}")
    return writer


class SafeFile:
    """A file for an MCAP writer that stays readable whatever fails: a record is written whole or not at all.

    The writer must not hear of a failure, which would leave it in the middle of a chunk. From then on the file
    takes what it is given and throws it away; `error` tells.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self.error: OSError | None = None
        self._raw = raw
        self._size = 0
        self._ends: deque[int] = deque(maxlen=4)

    def write(self, data: bytes) -> int:
        if data and self.error is None:
            if data[0] in (CHUNK, MESSAGE_INDEX, DATA_END):
                self._ends.append(self._size)
            try:
                self._write(data)
            except OSError as error:
                self.error = error
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def close(self) -> bool:
        """Close it, with an end put in place of what failed; False where nothing can be read of it."""
        try:
            readable = self.error is None or self._cut_off()
            if readable:
                os.fsync(self._raw.fileno())
        finally:
            self._raw.close()
        return readable

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._raw.write(rest) :]

    def _cut_off(self) -> bool:
        """End the file after its last whole record, or an earlier one where there is no room even for that."""
        from mcap.data_stream import RecordBuilder
        from mcap.records import DataEnd, Footer
        from mcap.writer import MCAP0_MAGIC

        end = RecordBuilder()
        DataEnd(0).write(end)
        Footer(summary_start=0, summary_offset_start=0, summary_crc=0).write(end)
        data = end.end() + MCAP0_MAGIC
        while self._ends:
            self._raw.truncate(last := self._ends.pop())
            self._raw.seek(last)
            try:
                self._write(data)
            except OSError:
                continue
            return True
        return False
