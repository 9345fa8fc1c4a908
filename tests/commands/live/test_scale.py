"""The scale of the camera in `mde live`: measured, printed, stored, applied and deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import platformdirs
import pytest

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.camera.scale import parse_known
from mirrordepth_edge.camera.scale_store import ScaleStore
from mirrordepth_edge.commands.live import scale as live_scale
from mirrordepth_edge.commands.live.options import DepthOptions
from mirrordepth_edge.commands.live.scale import LiveScale
from mirrordepth_edge.config import PRESETS, ModelConfig, SizeHW
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.open import SyntheticSource, open_source

SIZE_HW = (480, 640)
MODEL = PRESETS["nano"]


class Predictor:
    """Predicts a wall at 2 m, which its lens scales to 2.5 m."""

    def __init__(
        self,
        known_scale: Callable[[SizeHW], float | None] = lambda size_hw: None,
        camera: Camera | Lens | None = None,
        model: ModelConfig = MODEL,
    ) -> None:
        self.known_scale, self.camera, self.model = known_scale, camera, model
        self.scales: dict[SizeHW, float] = {}
        self.frames = self.resets = 0

    def __call__(self, frame: Frame) -> DepthMap:
        self.frames += 1
        return np.full(frame.shape[:2], 2 * self.scale((frame.shape[0], frame.shape[1])), np.float32)

    def scale(self, size_hw: SizeHW) -> float:
        return self.scales.setdefault(size_hw, self.known_scale(size_hw) or 1.25)

    def set_scale(self, size_hw: SizeHW, factor: float) -> None:
        self.scales[size_hw] = factor

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScaleStore:
    """The user's store, in an empty folder."""
    monkeypatch.setattr(platformdirs, "user_config_dir", lambda name: str(tmp_path / name))
    return ScaleStore()


def prepared(
    set_scale: list[str] | None = None,
    *,
    source: str = "synthetic",
    model: str = "nano",
    no_scale: bool = False,
    forget_scale: bool = False,
    camera: Camera | Lens | None = None,
    config: ModelConfig = MODEL,
) -> Predictor:
    """The predictor of `mde live` with these options, as the loop gets it."""
    options = DepthOptions(set_scale=set_scale, no_scale=no_scale, forget_scale=forget_scale)
    scale = LiveScale(source, model, options)
    predictor = Predictor(scale.known_scale, camera, config)
    opens = partial(SyntheticSource, rate_hz=500) if source == "synthetic" else partial(open_source, source)
    scale.prepare(predictor, opens)
    return predictor


def test_a_scale_is_set_once_and_stored(store: ScaleStore, capsys: pytest.CaptureFixture[str]) -> None:
    predictor = prepared(["320,240=3m", "100,100=3.3m"])
    printed = " ".join(capsys.readouterr().err.split())
    assert "scale: metres times 1.57 (2 known distances, ±7.0 %), stored for synthetic at 640x480" in printed
    assert str(store.path) in printed
    assert "focal length is unknown" in printed
    assert predictor.scales[SIZE_HW] == pytest.approx(1.5 * 1.1**0.5)
    assert predictor.frames == live_scale.FRAMES
    assert predictor.resets == live_scale.FRAMES + 1, "neither these frames nor the loop's first are filtered"

    later = prepared()
    assert later.frames == 0, "the source is not opened for it"
    assert "scale" not in capsys.readouterr().err, "not before the frame size is known"
    assert later.scale(SIZE_HW) == predictor.scales[SIZE_HW]
    assert "metres times 1.57 (2 known distances, ±7.0 %), stored for synthetic" in capsys.readouterr().err
    assert later.scale((240, 320)) == 1.25, "another frame size has no stored scale"


def test_a_stored_scale_can_be_ignored_and_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    prepared(["320,240=3m"])
    assert "1 known distance;" in capsys.readouterr().err
    assert prepared(no_scale=True).scale(SIZE_HW) == 1.25
    prepared(source="other.mp4", forget_scale=True)
    assert "scale: none was stored for other.mp4" in capsys.readouterr().err
    after = prepared(forget_scale=True)
    assert "scale: deleted for synthetic" in capsys.readouterr().err
    assert after.scale(SIZE_HW) == 1.25


def test_with_a_known_focal_length_distance_is_converted_to_depth(capsys: pytest.CaptureFixture[str]) -> None:
    predictor = prepared(["637,240=3m"], camera=Lens(fov_deg=90))
    assert predictor.scales[SIZE_HW] == pytest.approx(1.5 / 2**0.5, rel=0.01)
    assert "focal length is unknown" not in capsys.readouterr().err
    trained = prepared(["637,240=3m"], config=replace(MODEL, focal=(0.5, 2 / 3)))
    assert trained.scales[SIZE_HW] == pytest.approx(1.5 / 2**0.5, rel=0.01)


def test_a_video_is_measured_on_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    predictor = prepared(["32,24=3m"], source=str(path))
    assert predictor.frames == 1
    assert predictor.scales == {(48, 64): pytest.approx(1.5)}


def test_errors_are_raised_before_the_loop(store: ScaleStore) -> None:
    with pytest.raises(OptionError, match="cannot be combined"):
        prepared(["320,240=3m"], no_scale=True)
    with pytest.raises(OptionError, match="is not a known distance"):
        prepared(["here=3m"])
    with pytest.raises(OptionError, match="Pixel 640,240 is outside the frame"):
        prepared(["640,240=3m"])
    with pytest.raises(InputError):
        prepared(["320,240=3m"], source="absent.mp4")
    assert not store.path.exists()


def test_a_window_sets_the_scale_while_it_runs(store: ScaleStore) -> None:
    predictor = Predictor()
    frame = np.zeros((*SIZE_HW, 3), np.uint8)
    setter = LiveScale("synthetic", "nano", DepthOptions()).setter(predictor, SIZE_HW)
    setter.add(parse_known("10,10=3m"), [predictor(frame)], predictor.scale(SIZE_HW))
    assert predictor(frame)[0, 0] == pytest.approx(3)
    setter.add(parse_known("20,20=6m"), [predictor(frame)], predictor.scale(SIZE_HW))
    assert predictor(frame)[0, 0] == pytest.approx(3 * 2**0.5), "the median of both, in logarithms"
    assert prepared().scale(SIZE_HW) == pytest.approx(predictor.scales[SIZE_HW])


def test_a_model_is_not_hashed_without_need() -> None:
    assert prepared(model="absent.plan").scale(SIZE_HW) == 1.25
