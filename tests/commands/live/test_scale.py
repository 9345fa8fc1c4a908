"""The scale of `mde live`'s camera: measured, told, kept, applied and forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.camera.scale import ScaleStore, parse_known
from mirrordepth_edge.commands.live import scale as live_scale
from mirrordepth_edge.commands.live.scale import LiveScale, use_scale
from mirrordepth_edge.config import PRESETS, SizeHW
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.open import SyntheticSource, open_source

SIZE_HW = (480, 640)


class Predictor:
    """Sees a wall at 2 m, which its lens makes 2.5 m."""

    def __init__(self) -> None:
        self.model = PRESETS["nano"]
        self.camera: Camera | Lens | None = None
        self.scales: dict[SizeHW, float] = {}
        self.known_scale: Callable[[SizeHW], float | None] = lambda size_hw: None
        self.frames = 0

    def __call__(self, frame: Frame) -> DepthMap:
        self.frames += 1
        return np.full(frame.shape[:2], 2 * self.scale((frame.shape[0], frame.shape[1])), np.float32)

    def scale(self, size_hw: SizeHW) -> float:
        return self.scales.setdefault(size_hw, self.known_scale(size_hw) or 1.25)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScaleStore:
    """The user's own, in a folder of its own."""
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_config_dir", lambda name: str(tmp_path / name))
    return ScaleStore()


def scale_of(predictor: Predictor, source: str = "synthetic") -> LiveScale:
    opens = partial(SyntheticSource, rate_hz=500) if source == "synthetic" else partial(open_source, source)
    return LiveScale(predictor, source, "nano", opens)


def test_set_once_and_kept(store: ScaleStore, capsys: pytest.CaptureFixture[str]) -> None:
    predictor = Predictor()
    use_scale(scale_of(predictor), ["320,240=3m", "100,100=3.3m"], False, False)
    told = " ".join(capsys.readouterr().err.split())
    assert "scale: metres times 1.57 (2 known distances, ±7.0 %), kept for synthetic at 640x480" in told
    assert str(store.path) in told
    assert "lens is not known" in told
    assert predictor.scales[SIZE_HW] == pytest.approx(1.5 * 1.1**0.5)
    assert predictor.frames == live_scale.FRAMES

    later = Predictor()
    use_scale(scale_of(later), None, False, False)
    assert later.frames == 0, "nothing is opened for it"
    assert "scale" not in capsys.readouterr().err, "until a frame tells its size"
    assert later.scale(SIZE_HW) == predictor.scales[SIZE_HW]
    assert "metres times 1.57 (2 known distances, ±7.0 %), kept for synthetic" in capsys.readouterr().err
    assert later.scale((240, 320)) == 1.25, "frames of another size are another camera's"


def test_left_aside_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    use_scale(scale_of(Predictor()), ["320,240=3m"], False, False)
    assert "1 known distance;" in capsys.readouterr().err
    aside = Predictor()
    use_scale(scale_of(aside), None, True, False)
    assert aside.scale(SIZE_HW) == 1.25
    other = Predictor()
    use_scale(scale_of(other, "other.mp4"), None, False, True)
    assert "scale: none was kept for other.mp4" in capsys.readouterr().err
    after = Predictor()
    use_scale(scale_of(after), None, False, True)
    assert "scale: forgotten for synthetic" in capsys.readouterr().err
    assert after.scale(SIZE_HW) == 1.25


def test_a_lens_that_is_known_tells_depth_from_distance(capsys: pytest.CaptureFixture[str]) -> None:
    predictor = Predictor()
    predictor.camera = Lens(fov_deg=90)
    use_scale(scale_of(predictor), ["637,240=3m"], False, False)
    assert predictor.scales[SIZE_HW] == pytest.approx(1.5 / 2**0.5, rel=0.01)
    assert "lens is not known" not in capsys.readouterr().err
    trained = Predictor()
    trained.model = replace(trained.model, focal=(0.5, 2 / 3))
    use_scale(scale_of(trained), ["637,240=3m"], False, False)
    assert trained.scales[SIZE_HW] == pytest.approx(1.5 / 2**0.5, rel=0.01)


def test_in_a_video_the_first_picture_counts(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    predictor = Predictor()
    use_scale(scale_of(predictor, str(path)), ["32,24=3m"], False, False)
    assert predictor.frames == 1
    assert predictor.scales == {(48, 64): pytest.approx(1.5)}


def test_what_is_refused_is_refused_before_the_loop(store: ScaleStore) -> None:
    with pytest.raises(OptionError, match="exclude one another"):
        use_scale(scale_of(Predictor()), ["320,240=3m"], True, False)
    with pytest.raises(OptionError, match="is no known distance"):
        use_scale(scale_of(Predictor()), ["here=3m"], False, False)
    with pytest.raises(OptionError, match="There is no pixel 640,240"):
        use_scale(scale_of(Predictor()), ["640,240=3m"], False, False)
    with pytest.raises(InputError):
        use_scale(scale_of(Predictor(), "absent.mp4"), ["320,240=3m"], False, False)
    assert not store.path.exists()


def test_a_window_sets_it_while_it_runs(store: ScaleStore) -> None:
    predictor = Predictor()
    scale = scale_of(predictor)
    frame = np.zeros((*SIZE_HW, 3), np.uint8)
    setter = scale.setter(SIZE_HW)
    setter.add(parse_known("10,10=3m"), [predictor(frame)], predictor.scale(SIZE_HW))
    assert predictor(frame)[0, 0] == pytest.approx(3)
    setter.add(parse_known("20,20=6m"), [predictor(frame)], predictor.scale(SIZE_HW))
    assert predictor(frame)[0, 0] == pytest.approx(3 * 2**0.5), "between 3 m and 6 m, as both say"
    again = Predictor()
    scale_of(again).use_kept()
    assert again.scale(SIZE_HW) == pytest.approx(predictor.scales[SIZE_HW])


def test_a_model_is_not_hashed_for_nothing() -> None:
    predictor = Predictor()
    use_scale(LiveScale(predictor, "synthetic", "absent.plan", SyntheticSource), None, False, False)
    assert predictor.scale(SIZE_HW) == 1.25
