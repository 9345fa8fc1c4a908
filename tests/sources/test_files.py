"""Videos and folders of images: order, timing, damage."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources import files as playback
from mirrordepth_edge.sources.files import ImageFolder, VideoSource, open_video, video_frames, video_length
from mirrordepth_edge.sources.source import FrameSource

HEIGHT, WIDTH, FRAMES, RATE_HZ = 48, 64, 40, 20.0


def level(index: int) -> int:
    return 20 + 5 * index


def write_video(path: Path, codec: str = "MJPG", frames: int = FRAMES) -> Path:
    """Write frames that grow brighter, red on the left and blue on the right, with noise for some size."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), RATE_HZ, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for index in range(frames):
        bgr = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        bgr[:, : WIDTH // 2, 2] = bgr[:, WIDTH // 2 :, 0] = level(index)
        writer.write(bgr + rng.integers(0, 9, bgr.shape, np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.avi")


def read_all(source: FrameSource) -> list[Frame]:
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    return frames


def indices_of(frames: list[Frame]) -> list[float]:
    """Recover the frame numbers from the brightness of the left halves."""
    return [(float(frame[:, : WIDTH // 2 - 8, 0].mean()) - 4 - 20) / 5 for frame in frames]


def test_a_video_is_read_in_order_as_rgb(video: Path) -> None:
    with open_video(video) as source:
        assert not source.live
        assert not source.may_return
        assert (source.rate_hz, source.length) == (RATE_HZ, FRAMES)
        frames = read_all(source)
        assert source.read() is None
        assert source.notes == ()
        assert source.faults == 0
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    assert frames[0].dtype == np.uint8
    np.testing.assert_allclose(indices_of(frames), np.arange(FRAMES), atol=0.6)
    # JPEG rounds, and blurs colours where the halves meet.
    np.testing.assert_allclose(frames[9][:, :20].mean((0, 1)), (level(9) + 4, 4, 4), atol=4)
    np.testing.assert_allclose(frames[9][:, -20:].mean((0, 1)), (4, 4, level(9) + 4), atol=4)


def test_a_buffer_of_the_right_shape_is_filled(video: Path) -> None:
    fits, other = np.empty((HEIGHT, WIDTH, 3), np.uint8), np.zeros((3, 3, 3), np.uint8)
    with open_video(video) as source:
        assert source.read(fits) is fits
        first = fits.copy()
        second = source.read(other)
    assert second is not None
    assert second.shape == (HEIGHT, WIDTH, 3)
    assert not other.any()
    assert np.array_equal(fits, first), "a returned frame changed afterwards"


@pytest.mark.parametrize("name", ["clip.avi", "clip.mkv"])
def test_a_truncated_video_plays_up_to_the_damage(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with open_video(path) as source:
        frames = read_all(source)
        (note,) = source.notes
    assert 0.4 * FRAMES < len(frames) < 0.7 * FRAMES
    # The last one may be half a frame.
    np.testing.assert_allclose(indices_of(frames)[:-1], np.arange(len(frames) - 1), atol=0.6)
    assert note == f"{path} is damaged: only {len(frames)} of {FRAMES} frames can be read."


def damage_frame(path: Path, number: int) -> Path:
    """Overwrite one frame of an MJPEG AVI."""
    content = bytearray(path.read_bytes())
    chunk = content.index(b"movi")
    for _ in range(number + 1):  # a chunk is its name, its size (32 bits) and a JPEG
        chunk = content.index(b"00dc", chunk + 4)
    size = int.from_bytes(content[chunk + 4 : chunk + 8], "little")
    content[chunk + 8 : chunk + 8 + size] = b"\xff" * size
    path.write_bytes(content)
    return path


def test_a_damaged_frame_in_the_middle_is_skipped(tmp_path: Path) -> None:
    path = damage_frame(write_video(tmp_path / "clip.avi"), 10)
    with open_video(path) as source:
        frames = read_all(source)
        assert source.faults == FRAMES - len(frames)
    assert len(frames) >= FRAMES - 1
    np.testing.assert_allclose(indices_of(frames)[-20:], np.arange(FRAMES - 20, FRAMES), atol=0.6)


def test_a_video_that_was_not_read_to_its_end_is_not_reported_as_damaged(video: Path) -> None:
    with open_video(video) as source:
        assert source.read() is not None
        assert source.notes == ()


def test_frames_by_number_are_those_that_read_returns(video: Path, tmp_path: Path) -> None:
    with open_video(video) as source:
        frames = read_all(source)
    chosen = dict(video_frames(video, {0, 7, 8, FRAMES - 1, FRAMES, 10**6}))
    assert list(chosen) == [0, 7, 8, FRAMES - 1]
    for number, frame in chosen.items():
        np.testing.assert_array_equal(frame, frames[number])
    assert video_length(video) == FRAMES
    assert list(video_frames(video, ())) == []


def test_a_rotated_video_is_upright_for_reading_and_choosing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "phone.mp4", codec="mp4v", frames=6)
    content = path.read_bytes()
    # The display matrix of the track header (ISO/IEC 14496-12, 8.3.2) in 16.16 and 2.30 fixed point.
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    quarter_turn = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    matrix = content.index(identity, content.index(b"tkhd"))
    path.write_bytes(content[:matrix] + quarter_turn + content[matrix + len(identity) :])
    with open_video(path) as source:
        frames = read_all(source)
    assert [frame.shape for frame in frames] == [(WIDTH, HEIGHT, 3)] * 6
    assert frames[0][:20, :, 0].mean() > frames[0][-20:, :, 0].mean(), "red, on the left before, must be at the top"
    ((_, frame),) = video_frames(path, {4})
    np.testing.assert_array_equal(frame, frames[4])


def test_damage_counts_the_same_for_reading_skipping_and_choosing(tmp_path: Path) -> None:
    path = damage_frame(write_video(tmp_path / "clip.avi"), 10)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 8 // 10])
    with open_video(path) as source:
        frames = read_all(source)
    assert 0.6 * FRAMES < len(frames) < 0.9 * FRAMES
    assert video_length(path) == len(frames)
    chosen = list(video_frames(path, range(FRAMES)))
    assert [number for number, _ in chosen] == list(range(len(frames)))
    for (_, frame), same in zip(chosen, frames, strict=True):
        np.testing.assert_array_equal(frame, same)
    *_, (number, last) = video_frames(path, {3, len(frames) - 2})
    assert number == len(frames) - 2
    np.testing.assert_array_equal(last, frames[-2])


class TimedCapture:
    """A fake capture whose frames have these timestamps, in milliseconds."""

    def __init__(self, times_ms: list[float], rate_hz: float = 0.0) -> None:
        self.times_ms, self.rate_hz = times_ms, rate_hz
        self.count = 0

    def get(self, key: int) -> float:
        return {cv2.CAP_PROP_POS_MSEC: self.times_ms[max(0, self.count - 1)], cv2.CAP_PROP_FPS: self.rate_hz}.get(
            key, 0
        )

    def read(self, out: object = None) -> tuple[bool, object]:
        if self.count == len(self.times_ms):
            return False, None
        self.count += 1
        return True, np.zeros((4, 6, 3), np.uint8)

    def release(self) -> None: ...


def dues_ms(
    capture: TimedCapture, monkeypatch: pytest.MonkeyPatch, step_s: Callable[[], float] = lambda: 0.0
) -> list[float]:
    """Return when each frame is returned, relative to the first; decoding takes `step_s` on a simulated clock."""
    now_s = [100.0]

    class Clocked:
        def is_set(self) -> bool:
            return False

        def wait(self, timeout_s: float) -> bool:
            now_s[0] += timeout_s
            return False

    original = capture.read

    def read(out: object = None) -> tuple[bool, object]:
        now_s[0] += step_s() if capture.count < len(capture.times_ms) else 0
        return original(out)

    monkeypatch.setattr(capture, "read", read)
    monkeypatch.setattr(playback.time, "perf_counter", lambda: now_s[0])
    source = VideoSource(capture, "clip", realtime=True)  # type: ignore[arg-type]
    source._stopped = Clocked()  # type: ignore[assignment]
    times = []
    while source.read() is not None:
        times.append(now_s[0])
    return [round((t - times[0]) * 1e3, 6) for t in times]


def test_real_time_follows_the_timestamps(monkeypatch: pytest.MonkeyPatch) -> None:
    times_ms = [0.0, 40.0, 50.0, 300.0, 310.0]
    assert dues_ms(TimedCapture(times_ms), monkeypatch) == times_ms


def test_decoding_time_does_not_delay_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    times_ms = [20.0, 60.0, 100.0]
    assert dues_ms(TimedCapture(times_ms), monkeypatch, lambda: 0.015) == [0.0, 40.0, 80.0]


def test_a_video_without_timestamps_uses_its_frame_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dues_ms(TimedCapture([0.0, 0.0, 0.0], rate_hz=10.0), monkeypatch) == [0.0, 100.0, 200.0]


def test_a_video_that_is_very_late_does_not_catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # Frame 3 came 1.1 s late; the frames after it keep their distance to it.
    stalls_s = iter([0.0, 0.0, 0.0, 1.22, 0.0, 0.0])
    assert dues_ms(TimedCapture([40.0 * k for k in range(6)]), monkeypatch, lambda: next(stalls_s)) == [
        0.0,
        40.0,
        80.0,
        1300.0,
        1340.0,
        1380.0,
    ]


def test_a_video_that_is_a_little_late_catches_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stalls_s = iter([0.0, 0.0, 0.1, 0.0, 0.0, 0.0])
    dues = dues_ms(TimedCapture([40.0 * k for k in range(6)]), monkeypatch, lambda: next(stalls_s))
    assert dues == [0.0, 40.0, 140.0, 140.0, 160.0, 200.0]


def test_a_real_video_in_real_time(tmp_path: Path) -> None:
    with open_video(write_video(tmp_path / "clip.avi", frames=7), realtime=True) as source:
        assert source.live
        start_s = time.perf_counter()
        frames = read_all(source)
        elapsed_s = time.perf_counter() - start_s
    assert len(frames) == 7
    assert elapsed_s > 0.95 * 6 / RATE_HZ


def test_stop_ends_a_long_wait() -> None:
    source = VideoSource(TimedCapture([0.0, 600_000.0]), "clip", realtime=True)  # type: ignore[arg-type]
    assert source.read() is not None
    timer = threading.Timer(0.05, source.stop)
    timer.start()
    start_s = time.perf_counter()
    source.read()
    assert time.perf_counter() - start_s < 120
    timer.join()
    assert source.read() is None


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("absent.mp4", None, "No such file"),
        ("empty.mp4", b"", "0 bytes"),
        ("notes.mp4", b"no video\n" * 100, "could not open"),
        ("notes.txt", b"FFmpeg would draw this\n" * 100, "could not open"),
        ("cut.mp4", b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom", "could not open"),
        ("photo.jpg", b"\xff\xd8\xff", "one frame"),
    ],
)
def test_a_file_that_is_not_a_video(name: str, content: bytes | None, word: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=word) as caught:
        open_video(path)
    assert name in caught.value.what
    assert caught.value.cure


def test_a_folder_and_a_file_named_like_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not a file"):
        open_video(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("0").write_bytes(b"no video")
    with pytest.raises(InputError, match="0 cannot be read as a video"):
        open_video(Path("0"))


def test_a_video_without_a_readable_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = TimedCapture([0.0])
    capture.count = 1
    with pytest.raises(InputError, match="no readable frame"):
        VideoSource(capture, "clip.mp4").read()  # type: ignore[arg-type]


def save(path: Path, red: int) -> None:
    image = np.zeros((10 + red, 12, 3), np.uint8)
    image[..., 2] = red
    assert cv2.imwrite(str(path), image)


def test_images_are_sorted_by_name(tmp_path: Path) -> None:
    for order, name in enumerate(("b.png", "a10.png", "a2.bmp", "Z.png")):
        save(tmp_path / name, 10 * order)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "c").mkdir()
    with ImageFolder(tmp_path) as source:
        assert (source.live, source.length) == (False, 4)
        frames = read_all(source)
        assert source.read() is None
    assert [int(frame[0, 0, 0]) for frame in frames] == [30, 10, 20, 0]
    assert [frame.shape[0] for frame in frames] == [40, 20, 30, 10], "images keep their sizes"
    assert source.notes == ()


def test_an_unreadable_image_is_skipped_and_reported(tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        save(tmp_path / name, 50)
    (tmp_path / "b.png").write_bytes(b"not an image")
    (tmp_path / "d.jpg").write_bytes(b"")
    with ImageFolder(tmp_path) as source:
        assert len(read_all(source)) == 2
        assert source.faults == 2
        assert source.notes == ("2 of 4 images cannot be read, such as b.png.",)


def test_a_folder_without_a_readable_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No images found in"):
        ImageFolder(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"not an image")
    with ImageFolder(tmp_path) as source, pytest.raises(InputError, match="cannot be read as an image"):
        source.read()
