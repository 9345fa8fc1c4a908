"""`mde live`: what it shows, prints and writes, and how it ends."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mirrordepth_edge.backends.base import CheckedSession
from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands.live import command, outputs
from mirrordepth_edge.commands.live.command import live
from mirrordepth_edge.config import PRESETS, SessionOptions
from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.imaging import draw
from mirrordepth_edge.imaging.postprocess import colourise
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.imaging.temporal_filter import TemporalFilter
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor
from mirrordepth_edge.sources.open import SyntheticSource

SIZE_HW = PRESETS["nano"].size_hw
DEPTH_M = 2.5


class FlatSession(CheckedSession):
    """A network that predicts a wall at 2.5 m, until it fails."""

    backend, device, precision, version = "fake", "cpu", "fp32", "1.0"
    inputs = (TensorSpec(name="image", dtype="uint8", shape=(1, *SIZE_HW, 3), layout="NHWC", range="", unit=""),)
    outputs = (TensorSpec(name="depth", dtype="float32", shape=(1, *SIZE_HW), layout="NHW", range="", unit="metres"),)

    def __init__(self, fail_at: int | None, error: BaseException) -> None:
        self.fail_at, self.error = fail_at, error
        self.frames = 0
        self.closed = False

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.check(feeds)
        if self.frames == self.fail_at:
            raise self.error
        self.frames += 1
        return {"depth": np.full((1, *SIZE_HW), DEPTH_M, np.float32)}

    def close(self) -> None:
        self.closed = True


class Loader:
    """Stands in for `predictor.load` and records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, SessionOptions]] = []
        self.fail_at: int | None = None
        self.error: BaseException = KeyboardInterrupt()

    def __call__(
        self, model: str, options: SessionOptions, camera: Camera | Lens | None = None, **more: Any
    ) -> DepthPredictor:
        self.calls.append((model, options))
        self.session = FlatSession(self.fail_at, self.error)
        return DepthPredictor(self.session, replace(PRESETS["nano"], focal=(0.5, 2 / 3)), camera=camera, **more)


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr(command, "load", loader)
    return loader


@pytest.fixture(autouse=True)
def _without_display(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))  # where scales are stored
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


class Screen:
    """OpenCV's windows, without a display."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[Frame] = []
        self.key = -1
        self.titles: list[str] = []
        self.mouse: Any = None
        self.visible = 1.0
        self.destroyed = False
        monkeypatch.setenv("DISPLAY", ":977")
        for name, stand_in in {
            "namedWindow": lambda *_: None,
            "resizeWindow": lambda *_: None,
            "setWindowTitle": lambda title, text: self.titles.append(text),
            "setMouseCallback": lambda title, callback: setattr(self, "mouse", callback),
            "imshow": lambda title, image: self.shown.append(image.copy()),
            "waitKey": lambda delay_ms: self.key if len(self.shown) >= 3 else -1,
            "getWindowProperty": lambda *_: self.visible if len(self.shown) >= 3 else 1.0,
            "destroyAllWindows": lambda: setattr(self, "destroyed", True),
        }.items():
            monkeypatch.setattr(cv2, name, stand_in)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(monkeypatch)


def test_without_a_window(loader: Loader, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    statistics = tmp_path / "new" / "live.json"
    live(source="synthetic", no_window=True, frames=4, json_file=statistics)
    out, err = capfd.readouterr()
    assert out.startswith("4 frames in ")
    assert "latency p50" in out
    assert len(out.splitlines()) == 1
    assert "synthetic pattern: nano on cpu (fake 1.0, fp32)" in err
    assert "DISPLAY" not in err
    assert loader.calls == [("nano", SessionOptions())]
    assert loader.session.frames == 4
    assert loader.session.closed
    written = json.loads(statistics.read_text())
    assert (written["source"], written["backend"], written["frames"]) == ("synthetic pattern", "fake", 4)
    assert written["interrupted"] is False
    assert 0 < written["latency_p50_ms"] <= written["latency_p99_ms"]
    assert [path.name for path in statistics.parent.iterdir()] == ["live.json"]


def test_model_and_device_are_passed_on(loader: Loader) -> None:
    live(source="synthetic", model="big.plan", device="cuda", no_window=True, frames=1)
    assert loader.calls == [("big.plan", SessionOptions(device="cuda"))]


def test_a_missing_display_is_reported_once(loader: Loader, capfd: pytest.CaptureFixture[str]) -> None:
    live(source="synthetic", frames=1)
    out, err = capfd.readouterr()
    assert [line for line in err.splitlines() if "without a window" in line] == [
        "Neither DISPLAY nor WAYLAND_DISPLAY is set; running without a window. Use --web for a browser."
    ]
    assert out.startswith("1 frames")


def test_the_window_shows_photo_depth_and_scale(loader: Loader, screen: Screen) -> None:
    live(source="synthetic", near=1.0, far=5.0, frames=2)
    sheet = screen.shown[0][..., ::-1]  # windows take BGR
    gap = 12
    bar = draw.scale_bar(480, (1.0, 5.0))
    assert sheet.shape == (480, 640 + gap + 640 + gap + bar.shape[1], 3)
    pattern = SyntheticSource()  # a busy machine may drop its first frames
    assert any(np.array_equal(sheet[:, :640], pattern.read()) for _ in range(30))
    wall = colourise(np.full((480, 640), DEPTH_M, np.float32), (1.0, 5.0))
    assert np.array_equal(sheet[:, 640 + gap : 1280 + gap], wall)
    assert np.array_equal(sheet[:, -bar.shape[1] :], bar)
    assert screen.destroyed


def test_another_camera_is_reported_once_and_scales_the_depth(
    loader: Loader, screen: Screen, capfd: pytest.CaptureFixture[str]
) -> None:
    live(source="synthetic", focal_px=640.0, near=1.0, far=9.0, frames=3)  # 640x480, twice as long a lens
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("camera:")]
    assert lines == ["camera: fx 640.0 px of 640 (53° wide); depth scaled by 2"]
    wall = colourise(np.full((480, 640), 2 * DEPTH_M, np.float32), (1.0, 9.0))
    assert 1 <= len(screen.shown) <= 3  # a busy window leaves frames out
    for sheet in screen.shown:
        assert np.array_equal(sheet[:, 652:1292, ::-1], wall)


@pytest.mark.parametrize("key", [ord("q"), 27])
def test_a_key_quits(key: int, loader: Loader, screen: Screen) -> None:
    screen.key = key
    live(source="synthetic", frames=30)
    assert len(screen.shown) == 3
    assert screen.destroyed


def test_closing_the_window_quits(loader: Loader, screen: Screen) -> None:
    screen.visible = 0.0
    live(source="synthetic", frames=30)
    assert len(screen.shown) == 3


def test_an_opencv_without_windows(loader: Loader, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_implemented(*_: object) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "namedWindow", not_implemented)
    with pytest.raises(MissingError, match="cannot open a window"):
        live(source="synthetic", frames=1)


def test_ctrl_c_prints_and_writes_the_statistics(
    loader: Loader, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loader.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        live(source="synthetic", no_window=True, json_file=tmp_path / "live.json")
    assert capfd.readouterr().out.startswith("2 frames in")
    written = json.loads((tmp_path / "live.json").read_text())
    assert (written["frames"], written["interrupted"]) == (2, True)
    assert loader.session.closed
    assert "mde-capture" not in {thread.name for thread in threading.enumerate()}


def test_a_failure_writes_no_statistics(loader: Loader, tmp_path: Path) -> None:
    loader.fail_at, loader.error = 2, InputError("engine lost", "why", "cure")
    with pytest.raises(InputError, match="engine lost"):
        live(source="synthetic", no_window=True, json_file=tmp_path / "live.json")
    assert loader.session.closed
    assert not list(tmp_path.iterdir())


def test_invalid_options_are_rejected(loader: Loader, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"absent\.mp4"):
        live(source=str(tmp_path / "absent.mp4"), no_window=True)
    with pytest.raises(OptionError, match="--near"):
        live(source="synthetic", no_window=True, frames=1, near=6.0, far=2.0)
    with pytest.raises(OptionError, match="cannot be combined"):
        live(source="synthetic", no_window=True, frames=1, fov_deg=70.0, calibration=tmp_path / "camera.yaml")
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="Cannot write"):
        live(source="synthetic", no_window=True, frames=1, json_file=tmp_path / "taken" / "live.json")
    assert run_app(["live", "--source", "synthetic", "--no-window", "--frames", "1", "--device", "tpu"]) == 2
    assert "--device 'tpu' is unknown" in capfd.readouterr().err


def test_a_click_and_a_distance_set_the_scale(
    loader: Loader, screen: Screen, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A click on the depth image, right of the photo and the gap, sets the wall from 2.5 m to 5 m."""
    keys = [*"5m", chr(13)]

    def wait_key(delay_ms: int) -> int:
        if len(screen.shown) == 2 and screen.mouse is not None:
            screen.mouse(cv2.EVENT_LBUTTONDOWN, 640 + 12 + 320, 240, 0, None)
        return ord(keys.pop(0)) if len(screen.shown) >= 3 and keys else -1

    monkeypatch.setattr(cv2, "waitKey", wait_key)
    live(source="synthetic", near=1.0, far=9.0, frames=20)
    assert any("distance at 320,240" in title for title in screen.titles)
    assert "scale: " in capfd.readouterr().err
    wall = colourise(np.full((480, 640), 2 * DEPTH_M, np.float32), (1.0, 9.0))
    assert np.array_equal(screen.shown[-1][:, 652:1292, ::-1], wall)
    live(source="synthetic", near=1.0, far=9.0, frames=2)
    assert "stored for synthetic" in capfd.readouterr().err
    assert np.array_equal(screen.shown[-1][:, 652:1292, ::-1], wall)
    live(source="synthetic", near=1.0, far=9.0, frames=2, no_scale=True)
    assert not np.array_equal(screen.shown[-1][:, 652:1292, ::-1], wall)


def test_a_scale_is_set_by_an_option(loader: Loader, capfd: pytest.CaptureFixture[str]) -> None:
    live(source="synthetic", no_window=True, frames=2, set_scale=["320,240=5m"])
    assert "stored for synthetic" in capfd.readouterr().err
    live(source="synthetic", no_window=True, frames=1, forget_scale=True)
    assert "deleted for synthetic" in capfd.readouterr().err


def test_results_go_to_all_outputs(
    loader: Loader, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mcap", reason="mcap is not installed")
    pytest.importorskip("starlette", reason="starlette is not installed")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    statistics, saved = tmp_path / "live.json", tmp_path / "saved"
    live(
        source="synthetic",
        web=True,
        port=0,
        record=[tmp_path / "out.mcap", tmp_path / "out.mp4"],
        save_every=60.0,
        saved=saved,
        shm="mde-test-live",
        frames=6,
        json_file=statistics,
    )
    out, _ = capfd.readouterr()
    assert "open http://127.0.0.1:" in out
    assert "out.mcap: " in out
    assert (tmp_path / "out.mcap").stat().st_size > 0
    assert (tmp_path / "out.mp4").stat().st_size > 0
    assert sorted(path.suffix for path in saved.iterdir()) == [".jpg", ".npy", ".png"]
    written = json.loads(statistics.read_text())
    assert [output["problem"] for output in written["outputs"]] == [None] * 6
    with pytest.raises(OptionError, match="wrong suffix for a recording"):
        live(source="synthetic", no_window=True, frames=1, record=[tmp_path / "out.avi"])


def test_cameras_are_listed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mirrordepth_edge.sources import v4l2

    size = v4l2.CameraSize(width_px=640, height_px=480, rates_hz=(30.0, 15.0))
    form = v4l2.CameraFormat(pixel_format="MJPG", description="Motion-JPEG", sizes=(size,), any_size=False)
    camera = v4l2.CameraInfo(
        device="/dev/video0", name="Webcam", driver="uvcvideo", bus="usb-1", formats=(form,), problem=None
    )
    monkeypatch.setattr(outputs, "list_cameras", lambda: [camera])
    live(list_cameras=True)
    out = capfd.readouterr().out
    assert "/dev/video0  Webcam  uvcvideo usb-1" in out
    assert "MJPG (Motion-JPEG): 640x480 at 30, 15 Hz" in out
    monkeypatch.setattr(outputs, "list_cameras", lambda: [])
    live(list_cameras=True)
    assert "no camera" in capfd.readouterr().out


def test_depth_is_filtered_unless_turned_off(loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    monkeypatch.setattr(
        TemporalFilter, "__call__", lambda self, frame, depth_m, time_s: calls.append(time_s) or depth_m
    )
    live(source="synthetic", no_window=True, frames=3)
    assert len(calls) == 3
    live(source="synthetic", no_window=True, frames=3, no_stabilise=True)
    assert len(calls) == 3
    for place in range(3):
        cv2.imwrite(str(tmp_path / f"{place}.png"), np.zeros((48, 64, 3), np.uint8))
    calls.clear()
    live(source=str(tmp_path), no_window=True)
    np.testing.assert_allclose(calls, [0, 1 / 30, 2 / 30])  # as recorded, not as read
