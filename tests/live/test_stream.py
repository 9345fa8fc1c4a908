"""`stream`: which frames it yields, that it filters and scales, and that it releases the camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import platformdirs
import pytest

import mirrordepth_edge
from mirrordepth_edge import predictor as runtime
from mirrordepth_edge.artefact import model_path
from mirrordepth_edge.backends.base import CheckedSession
from mirrordepth_edge.camera.model import Lens
from mirrordepth_edge.camera.scale import KnownScale, Reading
from mirrordepth_edge.camera.scale_store import CameraScales
from mirrordepth_edge.config import PRESETS, SessionOptions
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live import stream as stream_module
from mirrordepth_edge.live.stream import DepthStream, stream
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.sources.cameras import CameraOptions
from mirrordepth_edge.sources.source import FrameSource

SHAPE = (4, 6, 3)
SIZE_HW = PRESETS["nano"].size_hw
MANIFEST = {"model": replace(PRESETS["nano"], focal=(0.9, 1.2)), "trained": True}


class Numbered(FrameSource):
    """Frames whose pixels are their number, one every few milliseconds if live."""

    name = "numbered"

    def __init__(self, count: int, live: bool = True, fail_at: int | None = None) -> None:
        self.count, self.live, self.fail_at = count, live, fail_at
        self.given = 0
        self.closed = 0

    def read(self, out: Frame | None = None) -> Frame | None:
        assert not self.closed, "read after close"
        if self.given == self.fail_at:
            raise InputError("numbered delivers no frames.", "It was unplugged.", "Plug it in.")
        if self.given == self.count:
            return None
        if self.live:
            time.sleep(0.002)
        out = np.empty(SHAPE, np.uint8) if out is None else out
        out[:] = self.given
        self.given += 1
        return out

    def close(self) -> None:
        self.closed += 1


class Predictor:
    """Depth is red."""

    def __init__(self) -> None:
        self.closed = 0

    def __call__(self, frame: Frame, time_s: float) -> Any:
        return frame[..., 0].astype(np.float32)

    def close(self) -> None:
        self.closed += 1

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def opened(count: int, **options: Any) -> DepthStream:
    return DepthStream(Numbered(count, **options), Predictor())  # type: ignore[arg-type]


def is_closed(source: FrameSource, predictor: Any) -> bool:
    return bool(source.closed and predictor.closed)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _no_thread_stays_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_a_slow_loop_gets_newer_frames_and_not_older_ones(wait_until: Callable[[Callable[[], object]], None]) -> None:
    before_ns = time.time_ns()
    seen = []
    frames = opened(60)
    source: Any = frames.source
    for frame in frames:
        enough = min(60, int(frame.frame[0, 0, 0]) + 5)
        wait_until(lambda enough=enough: source.given >= enough)
        assert (frame.frame == frame.frame[0, 0, 0]).all(), "a frame was overwritten while in use"
        np.testing.assert_array_equal(frame.depth_m, frame.frame[..., 0])
        assert before_ns <= frame.captured_unix_ns <= time.time_ns()
        assert frame.age_ms >= frame.latency_ms >= 0
        seen.append((frame.number, int(frame.frame[0, 0, 0]), frame.dropped))
    assert [number for number, _, _ in seen] == list(range(len(seen)))
    assert len(seen) < 30
    assert seen[-1][1] == 59, "the last frame of a stream that ends is seen"
    assert all(grey == number + dropped for number, grey, dropped in seen)


def test_a_file_loses_no_frame() -> None:
    numbers = []
    for frame in opened(20, live=False):
        time.sleep(0.001)
        numbers.append(int(frame.frame[0, 0, 0]))
    assert numbers == list(range(20))


@pytest.mark.parametrize("live", [True, False])
def test_leaving_the_loop_releases_the_camera(live: bool) -> None:
    frames = opened(10**6, live=live)
    source, predictor = frames.source, frames.predictor
    with frames:
        for frame in frames:
            if frame.number == 3:
                break
        assert not is_closed(source, predictor), "it can be taken up again"
        assert next(frames).number == 4
    assert is_closed(source, predictor)
    with pytest.raises(StopIteration):
        next(frames)


def test_a_garbage_collected_stream_releases_the_camera() -> None:
    """Without `with` and without a variable, it is collected when the loop ends."""
    kept: list[Any] = []

    def open_and_keep() -> DepthStream:
        frames = opened(10**6)
        kept.extend([frames.source, frames.predictor])
        return frames

    for frame in open_and_keep():
        if frame.number == 2:
            break
    assert is_closed(*kept)


def test_an_error_in_the_loop_releases_the_camera() -> None:
    frames = opened(10**6)
    with pytest.raises(ZeroDivisionError), frames:
        next(frames).number / 0
    assert is_closed(frames.source, frames.predictor)


def test_an_unused_stream_can_be_closed() -> None:
    frames = opened(5)
    frames.close()
    assert is_closed(frames.source, frames.predictor)


@pytest.mark.parametrize("live", [True, False])
def test_a_lost_camera_raises_in_the_loop(live: bool) -> None:
    frames = opened(10, live=live, fail_at=4)
    numbers = []
    with pytest.raises(InputError, match="no frames"):
        numbers.extend(frame.number for frame in frames)
    assert is_closed(frames.source, frames.predictor)


def test_options_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    camera, options, capture = Lens(fov_deg=70), SessionOptions(device="cpu"), CameraOptions(rate_hz=15)
    monkeypatch.setattr(stream_module, "load", lambda *given, **more: calls.append(given) or Predictor())
    monkeypatch.setattr(stream_module, "open_source", lambda *given: calls.append(given) or Numbered(1))
    with stream("2", model="big.onnx", camera=camera, options=options, capture=capture) as frames:
        assert [frame.number for frame in frames] == [0]
    assert calls == [("big.onnx", options, camera), ("2", capture)]


class Flickering(CheckedSession):
    """A network whose depth jumps between 2.00 m and 2.04 m."""

    backend, device, precision, version = "fake", "cpu", "fp32", "1.0"
    inputs = (TensorSpec(name="image", dtype="uint8", shape=(1, *SIZE_HW, 3), layout="NHWC", range="", unit=""),)
    outputs = (TensorSpec(name="depth", dtype="float32", shape=(1, *SIZE_HW), layout="NHW", range="", unit="metres"),)

    def __init__(self) -> None:
        self.frames = 0

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.frames += 1
        return {"depth": np.full((1, *SIZE_HW), (2.04, 2.0)[self.frames % 2], np.float32)}

    def close(self) -> None:
        pass


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 6 equal images, a network that flickers, and a stored scale of 1.5 for both."""
    monkeypatch.setattr(platformdirs, "user_config_dir", lambda name: str(tmp_path / "config" / name))
    monkeypatch.setattr(runtime, "open_session", lambda path, options: (Flickering(), SimpleNamespace(**MANIFEST)))
    folder = tmp_path / "film"
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    for number in range(6):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    scales = CameraScales(str(folder), model_path("nano"))
    scales.store.put(scales.key(SIZE_HW), KnownScale(readings=(Reading(true_m=3, network_m=2),)))
    return folder


def flicker_m(depths_m: list[float]) -> float:
    """The largest change from one frame to the next."""
    return float(np.abs(np.diff(depths_m)).max())


def middles_m(film: Path, **options: Any) -> list[float]:
    with stream(str(film), **options) as frames:
        return [float(frame.depth_m[30, 40]) for frame in frames]


def test_depth_is_filtered_and_scaled_as_in_mde_live(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    depths_m = middles_m(film)
    assert depths_m[0] == pytest.approx(1.5 * 2.0)
    assert flicker_m(depths_m) < 0.5 * 1.5 * 0.04, "flicker is reduced"
    assert min(depths_m) >= 3
    assert middles_m(film, camera=Lens(fov_deg=70)) == depths_m, "a stored scale takes precedence"
    assert capsys.readouterr() == ("", ""), "a library does not print"


def test_filter_and_stored_scale_can_be_turned_off(film: Path) -> None:
    assert middles_m(film, temporal_filter=False) == pytest.approx([3, 3.06] * 3)
    assert middles_m(film, temporal_filter=False, stored_scale=False) == pytest.approx([2, 2.04] * 3)
    assert flicker_m(middles_m(film, stored_scale=False)) < 0.5 * 0.04


def test_an_unavailable_source_closes_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor()
    monkeypatch.setattr(stream_module, "load", lambda *given, **more: predictor)
    with pytest.raises(InputError, match=r"absent\.mp4"):
        mirrordepth_edge.stream("absent.mp4")
    assert predictor.closed


def test_stream_is_exported_by_the_package() -> None:
    assert mirrordepth_edge.stream is stream
    assert "stream" in mirrordepth_edge.__all__
