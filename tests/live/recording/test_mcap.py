"""MCAP recordings, read by MCAP's reader and, for the message encoding, unpacked by hand."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.live.recording import mcap as mcap_recording
from mirrordepth_edge.live.recording.mcap import DEPTH, INFO, PHOTO, McapRecording, SafeFile
from mirrordepth_edge.live.result import LiveResult

pytest.importorskip("mcap", reason="recording .mcap needs mcap")
ros2 = pytest.importorskip("mcap_ros2.decoder", reason="reading ROS 2 messages needs mcap-ros2-support")

SIZE_HW = (24, 34)
START_UNIX_NS = 1_700_000_000_123_456_789
PERIOD_NS = 33_333_333
CAMERA = Camera(fx_px=600.5, fy_px=601.25, width_px=340, height_px=240)


def millimetres(number: int, far_m: float = 9.0) -> np.ndarray[Any, Any]:
    """Return the depth of result `number` in whole millimetres."""
    whole = np.random.default_rng([number, 1]).integers(200, int(1000 * far_m), SIZE_HW)
    whole[0, 0] = 0
    return whole


def result(number: int, far_m: float = 9.0) -> LiveResult:
    rng = np.random.default_rng(number)
    depth_m = (millimetres(number, far_m) + rng.uniform(-0.4, 0.4, SIZE_HW)).astype(np.float32) / 1000
    depth_m[0, 0] = 0
    frame = cv2.resize(rng.integers(0, 256, (3, 4, 3), np.uint8), SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC)
    return LiveResult(
        frame=frame,
        depth_m=depth_m,
        number=number,
        captured_unix_ns=START_UNIX_NS + number * PERIOD_NS,
        latency_ms=1.0,
        age_ms=2.0,
        dropped=0,
    )


def record(path: Path, count: int, end: BaseException | None = None, **options: Any) -> McapRecording:
    with McapRecording(path, **options) as output:
        for number in range(count):
            output.show(result(number))
        if end is not None:
            raise end
    return output


def read(path: Path | io.BytesIO) -> dict[str, list[Any]]:
    """Return the schema name, the stored and the decoded message of all messages, by topic."""
    from mcap.reader import make_reader

    topics: dict[str, list[Any]] = {}
    with io.BytesIO(path.read_bytes()) if isinstance(path, Path) else path as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[ros2.DecoderFactory()])
        for schema, channel, message, decoded in reader.iter_decoded_messages():
            assert channel.message_encoding == "cdr"
            assert schema.encoding == "ros2msg"
            topics.setdefault(channel.topic, []).append(
                SimpleNamespace(schema=schema.name, message=message, decoded=decoded)
            )
    return topics


def depths_mm(path: Path) -> list[np.ndarray[Any, Any]]:
    return [np.frombuffer(image.decoded.data, "<u2").reshape(SIZE_HW) for image in read(path)[DEPTH]]


def test_photo_depth_and_camera(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.mcap"
    output = record(path, 3, camera=CAMERA)
    assert output.problem is None
    assert str(output) == f"{path}: 3 frames"
    topics = read(path)
    assert {topic: messages[0].schema for topic, messages in topics.items()} == {
        PHOTO: "sensor_msgs/msg/CompressedImage",
        DEPTH: "sensor_msgs/msg/Image",
        INFO: "sensor_msgs/msg/CameraInfo",
    }
    for messages in topics.values():
        assert len(messages) == 3
        for number, stored in enumerate(messages):
            time_ns = START_UNIX_NS + number * PERIOD_NS
            assert stored.message.log_time == stored.message.publish_time == time_ns
            assert stored.message.sequence == number
            stamp = stored.decoded.header.stamp
            assert stamp.sec * 10**9 + stamp.nanosec == time_ns
            assert stored.decoded.header.frame_id == "camera_optical_frame"


def test_depth_is_exact_to_the_millimetre(tmp_path: Path) -> None:
    record(tmp_path / "out.mcap", 3)
    for number, stored in enumerate(read(tmp_path / "out.mcap")[DEPTH]):
        image = stored.decoded
        assert (image.height, image.width, image.step) == (24, 34, 68)
        assert (image.encoding, image.is_bigendian) == ("16UC1", 0)
        np.testing.assert_array_equal(np.frombuffer(image.data, "<u2").reshape(SIZE_HW), millimetres(number))


def test_depth_beyond_16_bits_of_millimetres_is_in_metres(tmp_path: Path) -> None:
    with McapRecording(tmp_path / "out.mcap", far_m=80.0) as output:
        output.show(result(0, far_m=80.0))
    image = read(tmp_path / "out.mcap")[DEPTH][0].decoded
    assert (image.encoding, image.step) == ("32FC1", 4 * 34)
    np.testing.assert_array_equal(np.frombuffer(image.data, "<f4").reshape(SIZE_HW), result(0, far_m=80.0).depth_m)


def test_the_photo_is_a_jpeg(tmp_path: Path) -> None:
    record(tmp_path / "out.mcap", 1)
    photo = read(tmp_path / "out.mcap")[PHOTO][0].decoded
    assert photo.format == "jpeg"
    decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(photo.data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(decoded.astype(int) - result(0).frame).mean() < 6


def test_the_calibration_is_scaled_to_the_frames(tmp_path: Path) -> None:
    """The frames are a tenth of the calibrated size."""
    record(tmp_path / "out.mcap", 1, camera=CAMERA)
    info = read(tmp_path / "out.mcap")[INFO][0].decoded
    assert (info.height, info.width) == SIZE_HW
    assert info.distortion_model == "plumb_bob"
    assert list(info.d) == [0] * 5
    k = np.array([[60.05, 0, 16.5], [0, 60.125, 11.5], [0, 0, 1]])
    np.testing.assert_allclose(np.reshape(info.k, (3, 3)), k)
    np.testing.assert_array_equal(np.reshape(info.r, (3, 3)), np.eye(3))
    np.testing.assert_allclose(np.reshape(info.p, (3, 4)), np.column_stack([k, np.zeros(3)]))
    assert (info.binning_x, info.binning_y, info.roi.width, info.roi.do_rectify) == (0, 0, 0, False)
    record(tmp_path / "lens.mcap", 1, camera=Lens(focal_px=50.0))
    assert read(tmp_path / "lens.mcap")[INFO][0].decoded.k[0] == 50


def unpack_cdr(data: bytes, *kinds: str) -> list[Any]:
    """Unpack CDR (XCDR1, little-endian) independently of the library that wrote it.

    Args:
        kinds: `struct` formats of numbers, `s` for a string, `b*` for a sequence of bytes.
    """
    assert data[:4] == b"\0\1\0\0"
    data, at, values = data[4:], 0, []
    for kind in kinds:
        number = "I" if kind in ("s", "b*") else kind
        at += -at % struct.calcsize(number[-1])  # each number is aligned to its size
        value = struct.unpack_from(f"<{number}", data, at)
        at += struct.calcsize(f"<{number}")
        if number is kind:
            values.extend(value)
        else:
            content = data[at : at + value[0]]
            at += value[0]
            values.append(content if kind == "b*" else content.decode())
    assert at == len(data), "the message is longer"
    return values


def test_messages_are_encoded_as_the_cdr_specification_says(tmp_path: Path) -> None:
    record(tmp_path / "out.mcap", 2, camera=CAMERA)
    topics = read(tmp_path / "out.mcap")
    header = ["i", "I", "s"]
    for number in range(2):
        photo, image, info = (topics[topic][number].message.data for topic in (PHOTO, DEPTH, INFO))
        seconds, nanoseconds = divmod(START_UNIX_NS + number * PERIOD_NS, 10**9)
        stamp = [seconds, nanoseconds, "camera_optical_frame\0"]
        *values, jpeg = unpack_cdr(photo, *header, "s", "b*")
        assert values == [*stamp, "jpeg\0"]
        assert jpeg.startswith(b"\xff\xd8")
        *values, depth = unpack_cdr(image, *header, "I", "I", "s", "B", "I", "b*")
        assert values == [*stamp, *SIZE_HW, "16UC1\0", 0, 68]
        np.testing.assert_array_equal(np.frombuffer(depth, "<u2").reshape(SIZE_HW), millimetres(number))
        values = unpack_cdr(info, *header, "I", "I", "s", "I", "5d", "9d", "9d", "12d", "6I", "B")
        assert values[:12] == [*stamp, *SIZE_HW, "plumb_bob\0", 5, *[0.0] * 5]
        k = [60.05, 0, 16.5, 0, 60.125, 11.5, 0, 0, 1]
        assert values[12:21] == pytest.approx(k)
        assert values[21:30] == np.eye(3).ravel().tolist()
        assert values[30:42] == pytest.approx([*k[:3], 0, *k[3:6], 0, *k[6:], 0])
        assert values[42:] == [0] * 7


def test_without_a_camera_there_is_no_calibration(tmp_path: Path) -> None:
    record(tmp_path / "out.mcap", 1)
    assert set(read(tmp_path / "out.mcap")) == {PHOTO, DEPTH}


def test_the_file_has_an_index_and_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcap.reader import make_reader

    monkeypatch.setattr(mcap_recording, "CHUNK_BYTES", 5000)
    record(tmp_path / "out.mcap", 9)
    with (tmp_path / "out.mcap").open("rb") as file:
        reader = make_reader(file)
        assert reader.get_header().profile == "ros2"
        summary = reader.get_summary()
    assert summary is not None
    assert summary.statistics is not None
    assert summary.statistics.message_count == 18
    assert summary.statistics.message_start_time == START_UNIX_NS
    assert summary.statistics.message_end_time == START_UNIX_NS + 8 * PERIOD_NS
    assert len(summary.chunk_indexes) > 3
    assert [index.name for index in summary.metadata_indexes] == ["mirrordepth-edge"]


def test_the_file_is_named_partial_until_it_is_closed(tmp_path: Path) -> None:
    with McapRecording(tmp_path / "out.mcap") as output:
        output.show(result(0))
        assert [path.name for path in tmp_path.iterdir()] == ["out.partial.mcap"]
        with pytest.raises(InputError, match="partial") as caught:
            McapRecording(tmp_path / "out.mcap").__enter__()
        assert "mcap recover" in caught.value.cure
    assert [path.name for path in tmp_path.iterdir()] == ["out.mcap"]


def test_an_interrupted_run_keeps_its_recording(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "out.mcap", 5, KeyboardInterrupt())
    assert len(depths_mm(tmp_path / "out.mcap")) == 5


def test_the_file_is_readable_after_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcap.exceptions import EndOfFile
    from mcap.records import Message
    from mcap.stream_reader import StreamReader

    monkeypatch.setattr(mcap_recording, "CHUNK_BYTES", 5000)
    with McapRecording(tmp_path / "out.mcap") as output:
        for number in range(9):
            output.show(result(number))
        content = output.partial.read_bytes()
    messages = []

    def collect() -> None:
        for record in StreamReader(io.BytesIO(content)).records:
            messages.append(record)

    with pytest.raises(EndOfFile):
        collect()
    assert 12 <= len([record for record in messages if isinstance(record, Message)]) <= 18


class SmallDisk(io.FileIO):
    """A file on a disk with limited space, which writes what fits, as the kernel does."""

    def __init__(self, path: Path, free: int) -> None:
        super().__init__(path, "xb")
        self.free = free

    def write(self, data: Any) -> int:
        fits = self.free - self.tell()
        if fits <= 0:
            raise OSError(28, "No space left on device")
        return super().write(bytes(data)[:fits])


def whole_size(tmp_path: Path) -> int:
    record(tmp_path / "whole.mcap", 9, camera=CAMERA)
    return (tmp_path / "whole.mcap").stat().st_size


@pytest.mark.parametrize("part", [0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.999])
def test_a_disk_that_fills_up_suddenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: float) -> None:
    """In a chunk, its index or the summary: complete records stay readable."""
    monkeypatch.setattr(mcap_recording, "CHUNK_BYTES", 5000)
    size = whole_size(tmp_path)
    path = tmp_path / "out.mcap"
    with McapRecording(path, camera=CAMERA) as output:
        output._file._raw.close()
        output.partial.unlink()
        output._file._raw = SmallDisk(output.partial, round(part * size))
        output._file._raw.write((tmp_path / "whole.mcap").read_bytes()[: output._file.tell()])
        problems = []
        for number in range(9):
            output.show(result(number))
            problems.append(output.problem)
    assert output.problem is not None
    assert output.problem.startswith("Recording has stopped: No space left on device.")
    assert len({problem for problem in problems if problem}) <= 1, "the problem must not change"
    assert not output.partial.exists()
    assert path.stat().st_size <= part * size
    kept = depths_mm(path)
    assert len(kept) >= output.frames > 0
    for number, depth_mm in enumerate(kept):
        np.testing.assert_array_equal(depth_mm, millimetres(number))
    assert len(kept) >= part * 9 - 3


def test_a_disk_without_space_for_a_header(tmp_path: Path) -> None:
    with McapRecording(tmp_path / "out.mcap") as output:
        output._file._raw.close()
        output.partial.unlink()
        output._file._raw = SmallDisk(output.partial, 20)
        output.show(result(0))
    assert output.problem == f"Recording has stopped: No space left on device. {output.path}: nothing recorded."
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no such limit")
def test_a_file_size_limit_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real write error: files must not exceed a limit, as on the file systems of memory cards."""
    import resource

    monkeypatch.setattr(mcap_recording, "CHUNK_BYTES", 5000)
    size = whole_size(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with McapRecording(tmp_path / "out.mcap") as output:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
        try:
            for number in range(9):
                output.show(result(number))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert output.problem is not None
    assert "File too large" in output.problem
    assert 2 <= len(depths_mm(tmp_path / "out.mcap")) < 9


def test_records_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = SafeFile(SmallDisk(tmp_path / "f", 10))
    assert file.write(b"\x06" + b"a" * 7) == 8
    assert file.error is None
    assert file.write(b"\x06" + b"b" * 7) == 8
    assert file.error is not None
    assert file.tell() == 16, "the writer must not notice"
    assert not file.close(), "there is no space for the end"


def test_missing_mcap_is_reported_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcap_ros2.writer", None)
    with pytest.raises(MissingError, match="mcap-ros2-support") as caught:
        McapRecording(Path("out.mcap"))
    assert "mirrordepth-edge[record]" in caught.value.cure
