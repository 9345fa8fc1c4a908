"""Videos and folders of pictures: order, pace, damage."""

from __future__ import annotations

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
from mirrordepth_edge.sources.files import PictureFolder, VideoSource, open_video
from mirrordepth_edge.sources.source import FrameSource

HEIGHT, WIDTH, FRAMES, RATE_HZ = 48, 64, 40, 20.0


def level(index: int) -> int:
    return 20 + 5 * index


def written(path: Path, codec: str = "MJPG", frames: int = FRAMES) -> Path:
    """Frames that grow brighter, red on the left and blue on the right, with noise so that each has some size."""
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
    return written(tmp_path_factory.mktemp("video") / "clip.avi")


def all_of(source: FrameSource) -> list[Frame]:
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    return frames


def indices_of(frames: list[Frame]) -> list[float]:
    """Which frames these are, by the brightness of their left halves."""
    return [(float(frame[:, : WIDTH // 2 - 8, 0].mean()) - 4 - 20) / 5 for frame in frames]


def test_a_video_is_read_in_order_as_rgb(video: Path) -> None:
    with open_video(video) as source:
        assert not source.live
        assert not source.may_return
        assert (source.rate_hz, source.length) == (RATE_HZ, FRAMES)
        frames = all_of(source)
        assert source.read() is None
        assert source.notes == ()
        assert source.faults == 0
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    assert frames[0].dtype == np.uint8
    np.testing.assert_allclose(indices_of(frames), np.arange(FRAMES), atol=0.6)
    # JPEG rounds, and blurs colours where the halves meet.
    np.testing.assert_allclose(frames[9][:, :20].mean((0, 1)), (level(9) + 4, 4, 4), atol=4)
    np.testing.assert_allclose(frames[9][:, -20:].mean((0, 1)), (4, 4, level(9) + 4), atol=4)


def test_a_frame_fills_the_buffer_that_fits(video: Path) -> None:
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
def test_a_broken_tail_keeps_what_it_could(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with open_video(path) as source:
        frames = all_of(source)
        (note,) = source.notes
    assert 0.4 * FRAMES < len(frames) < 0.7 * FRAMES
    # The last one may be half a frame.
    np.testing.assert_allclose(indices_of(frames)[:-1], np.arange(len(frames) - 1), atol=0.6)
    assert note == f"{path} declares {FRAMES} frames and has {len(frames)} that can be read: it is damaged."


def test_damage_in_the_middle_is_gone_over(tmp_path: Path) -> None:
    path = written(tmp_path / "clip.avi")
    content = bytearray(path.read_bytes())
    chunk = content.index(b"movi")
    for _ in range(11):  # a chunk is its name, its size (32 bits) and a JPEG
        chunk = content.index(b"00dc", chunk + 4)
    size = int.from_bytes(content[chunk + 4 : chunk + 8], "little")
    content[chunk + 8 : chunk + 8 + size] = b"\xff" * size
    path.write_bytes(content)
    with open_video(path) as source:
        frames = all_of(source)
        assert source.faults == FRAMES - len(frames)
    assert len(frames) >= FRAMES - 1
    np.testing.assert_allclose(indices_of(frames)[-20:], np.arange(FRAMES - 20, FRAMES), atol=0.6)


def test_a_video_that_is_not_at_its_end_is_not_called_damaged(video: Path) -> None:
    with open_video(video) as source:
        assert source.read() is not None
        assert source.notes == ()


class TimedCapture:
    """Frames at given times, in milliseconds."""

    def __init__(self, times_ms: list[float], rate_hz: float = 0.0) -> None:
        self.times_ms, self.rate_hz = times_ms, rate_hz
        self.given = 0

    def get(self, key: int) -> float:
        return {cv2.CAP_PROP_POS_MSEC: self.times_ms[max(0, self.given - 1)], cv2.CAP_PROP_FPS: self.rate_hz}.get(
            key, 0
        )

    def read(self, out: object = None) -> tuple[bool, object]:
        if self.given == len(self.times_ms):
            return False, None
        self.given += 1
        return True, np.zeros((4, 6, 3), np.uint8)

    def release(self) -> None: ...


def dues_ms(
    capture: TimedCapture, monkeypatch: pytest.MonkeyPatch, step_s: Callable[[], float] = lambda: 0.0
) -> list[float]:
    """When each frame was given, since the first; reading takes `step_s` of a simulated clock."""
    now_s = [100.0]

    class Clocked:
        def is_set(self) -> bool:
            return False

        def wait(self, timeout_s: float) -> bool:
            now_s[0] += timeout_s
            return False

    original = capture.read

    def read(out: object = None) -> tuple[bool, object]:
        now_s[0] += step_s() if capture.given < len(capture.times_ms) else 0
        return original(out)

    monkeypatch.setattr(capture, "read", read)
    monkeypatch.setattr(playback.time, "perf_counter", lambda: now_s[0])
    source = VideoSource(capture, "clip", realtime=True)  # type: ignore[arg-type]
    source._stopped = Clocked()  # type: ignore[assignment]
    times = []
    while source.read() is not None:
        times.append(now_s[0])
    return [round((t - times[0]) * 1e3, 6) for t in times]


def test_real_time_follows_the_videos_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    times_ms = [0.0, 40.0, 50.0, 300.0, 310.0]
    assert dues_ms(TimedCapture(times_ms), monkeypatch) == times_ms


def test_decoding_does_not_add_to_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    times_ms = [20.0, 60.0, 100.0]
    assert dues_ms(TimedCapture(times_ms), monkeypatch, lambda: 0.015) == [0.0, 40.0, 80.0]


def test_a_video_without_times_goes_by_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dues_ms(TimedCapture([0.0, 0.0, 0.0], rate_hz=10.0), monkeypatch) == [0.0, 100.0, 200.0]


def test_a_video_that_fell_behind_does_not_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    # Frame 3 came 1.1 s late; those after it keep their distance to it instead of following at once.
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
    with open_video(written(tmp_path / "clip.avi", frames=7), realtime=True) as source:
        assert source.live
        start_s = time.perf_counter()
        frames = all_of(source)
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
def test_what_is_no_video(name: str, content: bytes | None, word: str, tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match="0 is no readable video"):
        open_video(Path("0"))


def test_a_video_without_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = TimedCapture([0.0])
    capture.given = 1
    with pytest.raises(InputError, match="no frame that can be read"):
        VideoSource(capture, "clip.mp4").read()  # type: ignore[arg-type]


def save(path: Path, red: int) -> None:
    picture = np.zeros((10 + red, 12, 3), np.uint8)
    picture[..., 2] = red
    assert cv2.imwrite(str(path), picture)


def test_pictures_in_order_of_their_names(tmp_path: Path) -> None:
    for order, name in enumerate(("b.png", "a10.png", "a2.bmp", "Z.png")):
        save(tmp_path / name, 10 * order)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "c").mkdir()
    with PictureFolder(tmp_path) as source:
        assert (source.live, source.length) == (False, 4)
        frames = all_of(source)
        assert source.read() is None
    assert [int(frame[0, 0, 0]) for frame in frames] == [30, 10, 20, 0]
    assert [frame.shape[0] for frame in frames] == [40, 20, 30, 10], "each of its own size"
    assert source.notes == ()


def test_a_bad_picture_is_passed_over_and_told(tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        save(tmp_path / name, 50)
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "d.jpg").write_bytes(b"")
    with PictureFolder(tmp_path) as source:
        assert len(all_of(source)) == 2
        assert source.faults == 2
        assert source.notes == ("2 of 4 pictures cannot be read, such as b.png.",)


def test_a_folder_of_bad_pictures_or_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures in"):
        PictureFolder(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with PictureFolder(tmp_path) as source, pytest.raises(InputError, match="cannot be read as an image"):
        source.read()
