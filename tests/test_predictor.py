"""The predictor: scale for other cameras, known scales, and the temporal filter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from mirrordepth_edge import predictor as runtime
from mirrordepth_edge.backends.base import CheckedSession
from mirrordepth_edge.camera.model import Camera, Lens, scale_for
from mirrordepth_edge.config import PRESETS
from mirrordepth_edge.data.choose import NYU_CAMERA
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.export.parity import FRAMES_DIR
from mirrordepth_edge.imaging.images import read_image
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.imaging.temporal_filter import TemporalFilterConfig
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor, load

MODEL = replace(PRESETS["nano"], focal=NYU_CAMERA.focal)
SIZE_HW = MODEL.size_hw
SQUARE_M = 0.5


class SizeSession(CheckedSession):
    """A network that knows how large a white square of half a metre looks through the training camera.

    A square of side a at distance z covers a fx / (z W) of the width and a fy / (z H) of the height.
    """

    backend, device, precision, version = "fake", "cpu", "fp32", "1.0"
    inputs = (TensorSpec(name="image", dtype="uint8", shape=(1, *SIZE_HW, 3), layout="NHWC", range="", unit=""),)
    outputs = (TensorSpec(name="depth", dtype="float32", shape=(1, *SIZE_HW), layout="NHW", range="", unit="metres"),)

    def __init__(self) -> None:
        self.results = {"depth": np.empty((1, *SIZE_HW), np.float32)}
        self.closed = False

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.check(feeds)
        covered = feeds["image"].mean() / 255
        assert MODEL.focal is not None
        self.results["depth"].fill(SQUARE_M * math.sqrt(math.prod(MODEL.focal) / covered))
        return self.results

    def close(self) -> None:
        self.closed = True


def photograph(camera: Camera, distance_m: float) -> Frame:
    """Draw the square facing the camera, with anti-aliased edges."""
    shares = []
    for focal_px, side_px in ((camera.fy_px, camera.height_px), (camera.fx_px, camera.width_px)):
        half_px, edges_px = focal_px * SQUARE_M / 2 / distance_m, np.arange(side_px + 1) - side_px / 2
        shares.append(np.diff(edges_px.clip(-half_px, half_px)))
    grey = (np.outer(*shares) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


CAMERAS = {
    "the training camera": NYU_CAMERA,
    "a long lens": Camera.from_focal(1100, (480, 640)),
    "a wide lens": Camera.from_fov(100, (480, 640)),
    "half the pixels": Camera.from_fov(40, (240, 320)),
    "a wide image": Camera.from_fov(78, (720, 1280)),
    "a tall image": Camera.from_fov(40, (1280, 720)),
    "pixels that are not square": Camera(fx_px=900, fy_px=450, width_px=640, height_px=480),
}


@pytest.mark.parametrize("distance_m", [1.5, 4.0])
@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
def test_metres_do_not_depend_on_the_lens(camera: Camera, distance_m: float) -> None:
    frame = photograph(camera, distance_m)
    with DepthPredictor(SizeSession(), MODEL, camera=camera) as predictor:
        for _ in range(3):  # never scaled twice
            np.testing.assert_allclose(predictor(frame), distance_m, rtol=0.01)
        assert predictor(frame).shape == frame.shape[:2]


def test_without_a_camera_depth_is_the_training_cameras() -> None:
    frame = photograph(CAMERAS["a long lens"], 3.0)
    depth_m = DepthPredictor(SizeSession(), MODEL)(frame)
    np.testing.assert_allclose(depth_m, 3.0 * math.sqrt(518.857901 * 519.469611) / 1100, rtol=0.01)


@pytest.mark.parametrize("size_hw", [(480, 640), SIZE_HW])
def test_depth_is_scaled_outside_of_the_sessions_array(size_hw: tuple[int, int]) -> None:
    """A session may return the same array unchanged."""
    frame = np.full((*size_hw, 3), 40, np.uint8)
    session = SizeSession()
    predictor = DepthPredictor(session, MODEL, camera=Lens(fov_deg=40))
    scale = predictor.scale(size_hw)
    plain_m = DepthPredictor(session, MODEL)(frame).copy()
    scaled_m = predictor(frame)
    assert scaled_m.dtype == np.float32
    np.testing.assert_allclose(scaled_m, plain_m * scale, rtol=1e-6)
    np.testing.assert_allclose(session.results["depth"], plain_m.flat[0], rtol=1e-6)
    assert predictor(frame) is scaled_m, "the same array at each call"


def test_a_focal_length_is_in_pixels_of_the_frame() -> None:
    seen: list[tuple[str, float]] = []

    def on_camera(camera: Camera, scale: float) -> None:
        seen.append((str(camera), round(scale, 2)))

    predictor = DepthPredictor(SizeSession(), MODEL, camera=Lens(focal_px=1100), on_camera=on_camera)
    for size_hw in ((480, 640), (960, 1280), (480, 640)):
        camera = Camera.from_focal(1100, size_hw)
        np.testing.assert_allclose(predictor(photograph(camera, 2.0)), 2.0, rtol=0.01)
    assert seen == [("fx 1100.0 px of 640 (32° wide)", 2.12), ("fx 1100.0 px of 1280 (60° wide)", 1.06)]


def test_a_calibration_needs_frames_of_its_aspect_ratio() -> None:
    camera = Camera.from_focal(1100, (480, 640))
    predictor = DepthPredictor(SizeSession(), MODEL, camera=camera)
    half = cv2.resize(photograph(camera, 2.0), (320, 240), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(predictor(half), 2.0, rtol=0.01)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="640x360"):
        predictor(photograph(camera, 2.0)[60:420])


def test_a_model_without_a_training_camera_cannot_be_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = replace(MODEL, focal=None)
    assert DepthPredictor(SizeSession(), unknown).scale((480, 640)) == 1
    with pytest.raises(OptionError, match="which camera it was trained with") as caught:
        DepthPredictor(SizeSession(), unknown, camera=Lens(fov_deg=70))
    assert "recipe" in caught.value.cure
    session = SizeSession()
    monkeypatch.setattr(runtime, "open_session", lambda path, options: (session, None))
    info = SimpleNamespace(checkpoint_info=SimpleNamespace(model=unknown))
    monkeypatch.setattr(runtime, "open_artefact", lambda model, trust: info)
    with pytest.raises(OptionError):
        load("any.safetensors", camera=Lens(fov_deg=70))
    assert session.closed


def test_a_known_scale_replaces_the_cameras_factor() -> None:
    """It is looked up once per frame size; where it is unknown, the camera's factor applies."""
    sizes: list[tuple[int, int]] = []

    def known_scale(size_hw: tuple[int, int]) -> float | None:
        sizes.append(size_hw)
        return 3.0 if size_hw == (480, 640) else None

    lens = Lens(fov_deg=40)
    predictor = DepthPredictor(SizeSession(), MODEL, camera=lens, known_scale=known_scale)
    frame = np.full((480, 640, 3), 40, np.uint8)
    plain_m = DepthPredictor(SizeSession(), MODEL)(frame).copy()
    for _ in range(2):
        np.testing.assert_allclose(predictor(frame), 3 * plain_m, rtol=1e-6)
    assert predictor.scale((240, 320)) == pytest.approx(scale_for(NYU_CAMERA.focal, lens.at((240, 320))))
    assert sizes == [(480, 640), (240, 320)]


def test_the_scale_of_a_running_predictor_can_be_set() -> None:
    predictor = DepthPredictor(SizeSession(), MODEL, known_scale=lambda size_hw: 3.0)
    frame = np.full((480, 640, 3), 40, np.uint8)
    before_m = predictor(frame).copy()
    predictor.set_scale((480, 640), 1.5)
    assert predictor.scale((480, 640)) == 1.5
    np.testing.assert_allclose(predictor(frame), before_m / 2, rtol=1e-6)
    assert predictor.scale((240, 320)) == 3, "other frame sizes keep theirs"


def test_the_temporal_filter_uses_the_frames_times() -> None:
    """The network's depth rises by 1 % after the first frame; the filter lets it pass with its time constant."""
    dark, frame = (np.full((*SIZE_HW, 3), level, np.uint8) for level in (100, 102))
    config = TemporalFilterConfig()
    plain = DepthPredictor(SizeSession(), MODEL)
    before_m, after_m = float(plain(frame)[0, 0]), float(plain(dark)[0, 0])
    for elapsed_s in (0.05, 0.2):
        predictor = DepthPredictor(SizeSession(), MODEL, temporal_filter=config)
        assert predictor(frame, 7.0)[0, 0] == pytest.approx(before_m, rel=1e-6)
        left = math.log(after_m / predictor(dark, 7.0 + elapsed_s)[0, 0]) / math.log(after_m / before_m)
        assert left == pytest.approx(math.exp(-elapsed_s / config.scale_s), rel=0.03)
        predictor.reset()
        assert predictor(dark, 8.0)[0, 0] == pytest.approx(after_m, rel=1e-6), "a new video starts unfiltered"


def crop_depths(predictor: DepthPredictor, frame: Frame, share: float) -> tuple[DepthMap, DepthMap, DepthMap]:
    """Depth of an image's centre: from the whole image, and from the crop without and with its camera.

    The whole image is taken as the training camera's; the effect of a crop does not depend on that.
    """
    height, width = frame.shape[:2]
    assert MODEL.focal is not None
    whole = Camera.from_focal(MODEL.focal[0] * width, (height, width), fy_px=MODEL.focal[1] * height)
    size_h, size_w = round(height * share), round(width * share)
    top, left = (height - size_h) // 2, (width - size_w) // 2
    window = slice(top, top + size_h), slice(left, left + size_w)
    crop = np.ascontiguousarray(frame[window])
    scaled = DepthPredictor(predictor.session, MODEL, camera=whole.cropped((size_h, size_w)))
    return predictor(frame)[window].copy(), predictor(crop).copy(), scaled(crop)


def test_crops_of_a_photograph_agree_with_it_as_longer_lenses() -> None:
    """`nano` on an indoor scene; its training data has none of the others' subjects."""
    pytest.importorskip("onnxruntime", reason="nano runs in ONNX Runtime")
    frame = read_image(FRAMES_DIR / "coffee.jpg")
    without, with_camera = [], []
    with load("nano") as predictor:
        for share in (0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6):
            whole_m, plain_m, scaled_m = crop_depths(predictor, frame, share)
            without.append(np.median(np.abs(plain_m - whole_m) / whole_m))
            with_camera.append(np.median(np.abs(scaled_m - whole_m) / whole_m))
    assert np.mean(with_camera) < 0.9 * np.mean(without)
