"""CSI cameras without a Jetson: the pipeline text, and reading it through fakes of OpenCV and PyGObject."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources import csi
from mirrordepth_edge.sources.cameras import CameraOptions
from mirrordepth_edge.sources.csi import GstSource, csi_pipeline, open_csi
from mirrordepth_edge.sources.open import open_source

WITH, WITHOUT = "    GStreamer:                   YES (1.20.3)\n", "    GStreamer:                   NO\n"


def test_the_default_pipeline() -> None:
    assert csi_pipeline(0, CameraOptions(), "appsink") == (
        "nvarguscamerasrc sensor-id=0 ! "
        "video/x-raw(memory:NVMM),width=1280,height=720,format=NV12,framerate=30/1 ! "
        "nvvidconv ! video/x-raw,format=BGRx ! appsink drop=true max-buffers=1 sync=false"
    )


def test_size_rate_and_exposure_are_in_the_pipeline() -> None:
    options = CameraOptions(size_hw=(1080, 1920), rate_hz=59.94, exposure_ms=8.5)
    text = csi_pipeline(1, options, "appsink")
    assert 'sensor-id=1 exposuretimerange="8500000 8500000" !' in text  # nanoseconds
    assert "width=1920,height=1080,format=NV12,framerate=59940/1000 !" in text
    with pytest.raises(OptionError, match="does not apply to CSI cameras"):
        csi_pipeline(0, CameraOptions(pixel_format="MJPG"), "appsink")


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """OpenCV built with GStreamer."""
    fake = SimpleNamespace(opens=True, calls=[])
    fake.isOpened = lambda: fake.opens
    fake.get = lambda key: 30.0 if key == cv2.CAP_PROP_FPS else 0.0
    fake.read = lambda *_: (True, np.full((4, 6, 3), (1, 2, 3), np.uint8))
    fake.release = lambda: None
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: WITH)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *arguments: fake.calls.append(arguments) or fake)
    return fake


def test_through_opencv(capture: SimpleNamespace) -> None:
    with open_source("csi:1") as source:
        assert (source.name, source.live, source.may_return, source.rate_hz) == ("CSI camera 1", True, True, 30.0)
        frame = source.read()
    assert frame is not None
    assert frame[0, 0].tolist() == [3, 2, 1]
    ((pipeline, api, _),) = capture.calls
    assert api == cv2.CAP_GSTREAMER
    assert pipeline == csi_pipeline(1, CameraOptions(), "videoconvert ! video/x-raw,format=BGR ! appsink")
    capture.opens = False
    with pytest.raises(InputError, match="does not start") as caught:
        open_source("csi:1")
    assert "nvargus-daemon" in caught.value.cure
    assert "sensor-id=1" in caught.value.cure


def install(monkeypatch: pytest.MonkeyPatch, modules: dict[str, Any]) -> None:
    """Fake an OpenCV without GStreamer, and importable modules."""

    def import_module(name: str) -> Any:
        if name not in modules:
            raise ModuleNotFoundError(f"No module named '{name}'")
        return modules[name]

    monkeypatch.setattr(cv2, "getBuildInformation", lambda: WITHOUT)
    monkeypatch.setattr(csi.importlib, "import_module", import_module)


def without_gst(*_: str) -> None:
    raise ValueError("Namespace Gst not available")


@pytest.mark.parametrize("modules", [{}, {"gi": SimpleNamespace(require_version=without_gst)}])
def test_without_gstreamer_the_error_names_both_cures(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, modules)
    with pytest.raises(MissingError, match="needs GStreamer") as caught:
        open_csi()
    assert "python3-gi" in caught.value.cure
    assert "pip uninstall opencv-python" in caught.value.cure


class FakeGst:
    """The used part of GStreamer's module, with a camera that sends `frames` and then nothing."""

    SECOND = 1_000_000_000
    State = SimpleNamespace(PLAYING="playing", NULL="null")
    StateChangeReturn = SimpleNamespace(FAILURE="failure", SUCCESS="success", ASYNC="async")
    MapFlags = SimpleNamespace(READ="read")

    def __init__(self, frames: list[Frame], change: str = "async") -> None:
        self.frames, self.change = frames, change
        self.launched = ""
        self.states: list[str] = []
        self.waits_ns: list[int] = []
        self.mapped = 0

    def init(self, arguments: None) -> None: ...

    def parse_launch(self, text: str) -> Any:
        self.launched = text
        return self

    def set_state(self, state: str) -> str:
        self.states.append(state)
        return self.change

    def get_by_name(self, name: str) -> Any:
        assert name == "sink"
        return SimpleNamespace(emit=self.emit)

    def emit(self, signal: str, timeout_ns: int) -> Any:
        assert signal == "try-pull-sample"
        self.waits_ns.append(timeout_ns)
        if not self.frames:
            return None
        pixels = self.frames.pop(0)
        values = {"width": pixels.shape[1], "height": pixels.shape[0]}

        def unmap(info: object) -> None:
            self.mapped -= 1

        def mapping(flags: str) -> tuple[bool, Any]:
            self.mapped += 1
            return True, SimpleNamespace(data=pixels.tobytes())

        buffer = SimpleNamespace(map=mapping, unmap=unmap)
        caps = SimpleNamespace(get_structure=lambda index: SimpleNamespace(get_value=values.__getitem__))
        return SimpleNamespace(get_caps=lambda: caps, get_buffer=lambda: buffer)


def test_through_pygobject(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = np.full((4, 6, 4), (1, 2, 3, 0), np.uint8), np.full((8, 10, 4), (4, 5, 6, 0), np.uint8)
    gst = FakeGst([small, small, large])
    versions: list[tuple[str, str]] = []
    gi = SimpleNamespace(require_version=lambda *names: versions.append(names))
    install(monkeypatch, {"gi": gi, "gi.repository.Gst": gst})
    out = np.empty((4, 6, 3), np.uint8)
    with open_source("csi") as source:
        assert source.live
        assert source.read(out) is out
        assert out[0, 0].tolist() == [3, 2, 1]
        assert source.read() is not out
        frame = source.read(out)
        assert frame is not None
        assert frame.shape == (8, 10, 3)
        with pytest.raises(InputError, match="delivers no frames"):
            source.read()
    assert versions == [("Gst", "1.0")]
    assert gst.launched == csi_pipeline(0, CameraOptions(), "appsink name=sink")
    assert gst.states == ["playing", "null"]
    assert gst.waits_ns == [5_000_000_000] * 4
    assert gst.mapped == 0


def failing(text: str) -> Callable[[str], Any]:
    def parse_launch(_: str) -> Any:
        raise RuntimeError(text)

    return parse_launch


def test_a_pipeline_that_does_not_start() -> None:
    gst = FakeGst([], change="failure")
    with pytest.raises(InputError, match="does not start"):
        GstSource(gst, "pipeline", "CSI camera 0", "cure")
    assert gst.states == ["playing", "null"], "the camera was not released"
    gst.parse_launch = failing('no element "nvarguscamerasrc"')  # type: ignore[method-assign]
    with pytest.raises(InputError, match="does not start") as caught:
        GstSource(gst, "pipeline", "CSI camera 0", "cure")
    assert "nvarguscamerasrc" in caught.value.why
