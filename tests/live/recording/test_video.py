"""Video recordings and saved frames: content, timing, and full disks."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.postprocess import colourise
from mirrordepth_edge.live.recording import video
from mirrordepth_edge.live.recording.base import Recording
from mirrordepth_edge.live.recording.choose import recording
from mirrordepth_edge.live.recording.video import SavedFrames, VideoRecording
from mirrordepth_edge.live.result import LiveResult

SIZE_HW = (48, 64)
LIMITS_M = (1.0, 5.0)
START_UNIX_NS = 1_700_000_000_123_456_789
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _encoding_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a busy machine may count as too slow for its video."""
    monkeypatch.setattr(video, "time", SimpleNamespace(perf_counter=lambda: 0.0))


def result(
    number: int, after_s: float = 0.0, grey: int | None = None, size_hw: tuple[int, int] = SIZE_HW
) -> LiveResult:
    """The photo is a uniform grey of 8 times its number; depth grows from left to right, and with the number."""
    grey = 8 * number if grey is None else grey
    depth_m = np.tile(np.linspace(1, 4, size_hw[1], dtype=np.float32) + np.float32(number / 100), (size_hw[0], 1))
    return LiveResult(
        frame=np.full((*size_hw, 3), grey, np.uint8),
        depth_m=depth_m,
        number=number,
        captured_unix_ns=START_UNIX_NS + round(after_s * 1e9),
        latency_ms=1.0,
        age_ms=2.0,
        dropped=0,
    )


def read_video(path: Path) -> tuple[list[npt.NDArray[Any]], float]:
    """Return RGB frames and the frame rate."""
    capture = cv2.VideoCapture(str(path))
    rate_hz, frames = capture.get(cv2.CAP_PROP_FPS), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return frames, rate_hz


def greys(path: Path) -> list[int]:
    """Recover the result numbers in a video from the grey of the photos."""
    return [round(float(frame[:, :50].mean()) / 8) for frame in read_video(path)[0]]


def record_all(output: Recording, results: list[LiveResult], end: BaseException | None = None) -> Recording:
    with output:
        for one_result in results:
            output.show(one_result)
        if end is not None:
            raise end
    return output


def test_a_video_shows_photo_and_depth_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.mp4"
    output = record_all(VideoRecording(path, LIMITS_M, rate_hz=10), [result(n, n / 10, grey=100) for n in range(5)])
    assert output.problem is None
    assert str(output) == f"{path}: 5 frames"
    frames, rate_hz = read_video(path)
    assert len(frames) == 5
    assert rate_hz == 10
    assert frames[0].shape[0] == 48
    assert frames[0].shape[1] > 2 * 64 + 12
    assert abs(frames[0][:, :60].mean() - 100) < 6
    colours = colourise(result(0).depth_m, LIMITS_M).astype(int)
    assert np.abs(frames[0][:, 64 + 12 : 64 + 12 + 64] - colours).mean() < 10
    assert [p.name for p in path.parent.iterdir()] == ["out.mp4"]


STEADY_S = [0, 0.1, 0.2, 0.3, 0.4]
"""The rate is measured from the first five results: 10 Hz."""


@pytest.mark.parametrize(
    ("after_s", "shown"),
    [
        ([0.5, 0.6, 0.7, 0.8], [5, 6, 7, 8]),
        ([0.55, 0.57, 0.74, 0.84], [5, 6, 7, 8]),  # jitter of less than one frame
        ([0.5, 0.8, 0.9], [5, 5, 5, 6, 7]),  # two frames are missing: the last one is repeated
        ([0.41, 0.42, 0.6], [5, 7]),  # faster than the video: one is left out
        ([0.5, 60.0, 60.1], [5, *[5] * 5, 6, 7]),  # a long gap is cut to half a second
        ([0.5, -3600, -3599.9], [5, 6, 7]),  # the clock was set back
    ],
)
def test_a_video_plays_in_real_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_s: list[float], shown: list[int]
) -> None:
    monkeypatch.setattr(video, "MAX_STILL_S", 0.5)
    path = tmp_path / "out.mp4"
    results = [result(n, s) for n, s in enumerate([*STEADY_S, *after_s])]
    output = record_all(VideoRecording(path, LIMITS_M, rate_hz=30), results)
    assert read_video(path)[1] == 10
    assert greys(path) == [0, 1, 2, 3, 4, *shown]
    assert output.frames == 5 + len(set(shown))


@pytest.mark.parametrize(
    ("interval_s", "rate_hz"), [(0.1, 10), (1 / 60, 30), (1 / 29.97, 30), (0.0, 30), (10.0, 1), (1 / 13.333, 13.3)]
)
def test_the_video_has_the_rate_of_the_results(tmp_path: Path, interval_s: float, rate_hz: float) -> None:
    path = tmp_path / "out.mp4"
    late_s = [0, 0.5, 0.5, 0.6]  # some come later
    record_all(VideoRecording(path, LIMITS_M, rate_hz=30), [result(n, n * interval_s + late_s[n]) for n in range(4)])
    assert read_video(path)[1] == pytest.approx(rate_hz, abs=0.05)


def test_a_machine_that_encodes_too_slowly_does_not_repeat_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now_s = tmp_path / "out.mp4", [0.0]

    def slowly() -> float:
        now_s[0] += 0.2
        return now_s[0]

    monkeypatch.setattr(video, "time", SimpleNamespace(perf_counter=slowly))
    record_all(VideoRecording(path, LIMITS_M), [result(n, s) for n, s in enumerate([*STEADY_S, 0.7, 1.0])])
    assert greys(path) == [0, 1, 2, 3, 4, 5, 6]


def test_frames_of_a_file_follow_each_other_regardless_of_time(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    numbers = [3, 4, 6, 7]  # one is missing
    record_all(VideoRecording(path, LIMITS_M, rate_hz=10, live=False), [result(n, n * 7.0) for n in numbers])
    assert greys(path) == [3, 4, 4, 6, 7]


@pytest.mark.parametrize("live", [True, False])
def test_a_source_without_a_rate_is_recorded_at_30_hz(tmp_path: Path, live: bool) -> None:
    path = tmp_path / "out.mp4"
    record_all(VideoRecording(path, LIMITS_M, live=live), [result(0)])
    assert read_video(path)[1] == 30


@pytest.mark.parametrize("name", ["out.mp4", "out.mcap"])
def test_a_run_without_frames_leaves_no_file(tmp_path: Path, name: str) -> None:
    if name.endswith("mcap"):
        pytest.importorskip("mcap", reason="recording .mcap needs mcap")
    output = record_all(recording(tmp_path / name, limits_m=LIMITS_M), [])
    assert str(output).endswith("nothing recorded")
    assert output.problem is None
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_keeps_its_recording(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        record_all(VideoRecording(path, LIMITS_M), [result(n, n / 30) for n in range(3)], KeyboardInterrupt())
    assert greys(path) == [0, 1, 2]


def fill_disk(monkeypatch: pytest.MonkeyPatch, free: list[int]) -> None:
    """Fake the free bytes of the disk, one value per query; the last one repeats."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free.pop(0) if len(free) > 1 else free[0]))


def test_a_full_disk_ends_only_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.mp4"
    fill_disk(monkeypatch, [2**40, 2**40, 2**40, 2**20])
    with VideoRecording(path, LIMITS_M) as output:
        output.show(result(0))
        output.show(result(1, 1 / 30))
        assert output.problem is None
        for number in range(2, 6):
            output.show(result(number, number / 30))
            assert greys(path) == [0, 1], "the file must be closed immediately"
        assert output.problem == f"Recording has stopped: No space left on device. {path}: 2 frames."
    assert greys(path) == [0, 1]


def test_recording_does_not_start_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, [2**20])
    with pytest.raises(InputError, match="Not enough disk space") as caught:
        VideoRecording(tmp_path / "out.mp4", LIMITS_M).__enter__()
    assert "64 MB" in caught.value.why


@pytest.mark.parametrize("sizes", [[SIZE_HW] * 2 + [(24, 32)] * 2, [SIZE_HW] * 7 + [(24, 32)] * 2])
def test_a_change_of_the_frame_size_ends_the_video(tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    path = tmp_path / "out.mp4"
    output = record_all(
        VideoRecording(path, LIMITS_M), [result(n, n / 10, size_hw=size) for n, size in enumerate(sizes)]
    )
    assert output.problem is not None
    assert "size" in output.problem
    assert greys(path) == list(range(sizes.index((24, 32))))


def test_a_recording_does_not_overwrite_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        VideoRecording(path, LIMITS_M).__enter__()
    assert path.read_text() == "precious"


@pytest.mark.parametrize("output", [VideoRecording(Path("taken/out.mp4"), LIMITS_M), SavedFrames(Path("taken"), 1)])
def test_a_folder_that_cannot_be_written(output: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    with pytest.raises(InputError):
        output.__enter__()


def test_frames_are_saved_at_intervals(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    times_s = [0, 0.4, 0.9, 1.0, 1.1, 2.3, 2.9, 3.0]
    output = record_all(SavedFrames(folder, 1.0), [result(n, s) for n, s in enumerate(times_s)])
    kept = {0: "20231114T221320.123Z", 3: "20231114T221321.123Z", 5: "20231114T221322.423Z", 7: "20231114T221323.123Z"}
    endings = (".jpg", ".depth.png", ".depth.npy")
    assert {p.name for p in folder.iterdir()} == {name + ending for name in kept.values() for ending in endings}
    assert str(output) == f"{folder}: 4 frames"
    for number, name in kept.items():
        depth_m = np.load(folder / f"{name}.depth.npy")
        assert depth_m.dtype == np.float32
        np.testing.assert_array_equal(depth_m, result(number).depth_m)
        millimetres = cv2.imread(str(folder / f"{name}.depth.png"), cv2.IMREAD_UNCHANGED)
        assert millimetres.dtype == np.uint16
        np.testing.assert_array_equal(millimetres, np.rint(depth_m.astype(np.float64) * 1000))
        assert np.abs(cv2.imread(str(folder / f"{name}.jpg")).astype(int) - 8 * number).max() <= 2


def test_a_late_frame_does_not_shift_later_ones(tmp_path: Path) -> None:
    times_s = [0, 1.2, 2.0, 3.0]
    assert record_all(SavedFrames(tmp_path, 1.0), [result(n, s) for n, s in enumerate(times_s)]).frames == 4


def test_one_frame_is_saved_after_a_long_gap_or_a_clock_change(
    tmp_path: Path,
) -> None:
    times_s = [0, 100, 100.5, 101, -3600, -3599.5, -3599]
    assert record_all(SavedFrames(tmp_path, 1.0), [result(n, s) for n, s in enumerate(times_s)]).frames == 5


def test_saved_frames_stop_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, [2**40, 2**40, 2**20])
    output = record_all(SavedFrames(tmp_path, 1.0), [result(n, n) for n in range(4)])
    assert output.frames == 1
    assert output.problem is not None
    assert len(list(tmp_path.iterdir())) == 3


def test_the_suffix_decides_the_format(tmp_path: Path) -> None:
    assert isinstance(recording(tmp_path / "a.mp4", limits_m=LIMITS_M), VideoRecording)
    with pytest.raises(OptionError, match=r"\.avi has the wrong suffix for a recording") as caught:
        recording(tmp_path / "a.avi", limits_m=LIMITS_M)
    assert "--record" in caught.value.cure
    with pytest.raises(OptionError, match="every 0 s"):
        SavedFrames(tmp_path, 0.0)
