"""Scales from known distances: closed forms, rejected input, and the store."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mirrordepth_edge.artefact import NANO_CHECKPOINT, NANO_ONNX
from mirrordepth_edge.camera import scale_store
from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.camera.scale import (
    KnownPoint,
    KnownScale,
    PointAndType,
    Reading,
    depth_along_axis,
    depth_near,
    parse_known,
    scale_of,
)
from mirrordepth_edge.camera.scale_store import (
    ScaleKey,
    ScaleSetter,
    ScaleStore,
    camera_identity,
    checkpoint_sha256,
)
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.support.files import sha256_of
from mirrordepth_edge.support.units import parse_length

KEY = ScaleKey(camera="usb-C920-index0", frame_hw=(480, 640), checkpoint_sha256="ab" * 32)


def readings(*ratios: float) -> list[Reading]:
    return [Reading(true_m=2 * ratio, network_m=2.0) for ratio in ratios]


@pytest.mark.parametrize(
    ("text", "length_m"),
    [
        ("1.85m", 1.85),
        ("185 cm", 1.85),
        ("1850mm", 1.85),
        (".5 m", 0.5),
        ("2.M", 2),
        ("6ft", 1.8288),
        (" 10 in ", 0.254),
    ],
)
def test_lengths(text: str, length_m: float) -> None:
    assert parse_length(text, "--square", "25mm") == pytest.approx(length_m)


@pytest.mark.parametrize("text", ["", "m", "1.85", "1,85m", "-1m", "0mm", "1.8.5m", "1e3m", "1m2", "1 yd", "nan m"])
def test_invalid_lengths_are_rejected(text: str) -> None:
    with pytest.raises(OptionError, match="is not a length") as caught:
        parse_length(text, "--square", "25mm")
    assert caught.value.cure == "--square 25mm"


def test_known_points() -> None:
    first, second = KnownPoint(x_px=320, y_px=240, distance_m=1.85), KnownPoint(x_px=0, y_px=7, distance_m=3)
    assert parse_known("320,240=1.85m") == (first,)
    for together in ("320,240=1.85m 0,7=3m", "320, 240 = 185cm;0,7=3.0 m ; ", ["320,240=1.85m", " 0,7=300cm"]):
        points = parse_known(together)
        assert [(point.x_px, point.y_px) for point in points] == [(320, 240), (0, 7)]
        assert [point.distance_m for point in points] == pytest.approx([1.85, 3])
    assert str(second) == "0,7=3m"


INCOMPLETE = ["", " ", "1.85m", "320=1.85m", "320,240", "320,240=", "320,240=1.85", "320,240=1.85m and so on"]
WRONG = ["-3,240=1m", "3.5,240=1m", "320,240=1m1,1=2m", "320,240=1,85m", "x,y=1m", "1,1=-1m", "1,1=0m", "1,1=5000m"]


@pytest.mark.parametrize("text", [*INCOMPLETE, *WRONG])
def test_invalid_points_are_rejected(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_known(text)
    assert "--set-scale 320,240=1.85m" in caught.value.cure


def test_depth_near_a_pixel_is_the_median_around_it() -> None:
    depth_m = np.full((20, 30), 9.0, np.float32)
    depth_m[8:13, 3:8] = 2 + np.linspace(-0.05, 0.05, 25).reshape(5, 5)
    assert depth_near(depth_m, 5, 10) == pytest.approx(2.0)
    depth_m[8, 3:8] = 0, np.nan, np.inf, -1, 0
    assert depth_near(depth_m, 5, 10) == pytest.approx(2 + 0.05 * (5 / 24)), "of the 20 that are left, 5 to 24"
    assert depth_near(depth_m, 29, 19) == 9, "in the corner, of 9"


def test_pixels_without_a_usable_depth_are_rejected() -> None:
    depth_m = np.full((20, 30), 2.0, np.float32)
    depth_m[:, 10:] = 2.21
    for x, y in ((30, 3), (3, 20), (-1, 3)):
        with pytest.raises(OptionError, match=f"Pixel {x},{y} is outside the frame") as caught:
            depth_near(depth_m, x, y)
        assert "29,19" in caught.value.cure
    with pytest.raises(OptionError, match="8,5 lies on an edge") as caught:
        depth_near(depth_m, 8, 5)
    assert "2.00 to 2.21 m" in caught.value.why
    assert depth_near(depth_m, 7, 5) == 2
    depth_m[:, 10:] = 2.19
    assert depth_near(depth_m, 8, 5) == 2, "less than a tenth"
    depth_m[:] = np.nan
    depth_m[4:6] = 2
    with pytest.raises(OptionError, match="There is no depth at 5,5") as caught:
        depth_near(depth_m, 5, 5)
    assert "15 of the 25" in caught.value.why


def test_a_distance_is_converted_to_depth() -> None:
    """A wall 3 m ahead: through a lens of 90 degrees, its edge is sqrt(2) times as far."""
    camera = Camera.from_fov(90, (481, 641))
    z_m = 3.0
    for x, y in ((320, 240), (0, 240), (320, 0), (640, 480)):
        place = np.array([(x - 320) / 320.5, (y - 240) / 320.5, 1]) * z_m
        point = KnownPoint(x_px=x, y_px=y, distance_m=float(np.linalg.norm(place)))
        assert depth_along_axis(point, camera) == pytest.approx(z_m)
    edge = KnownPoint(x_px=0, y_px=240, distance_m=math.sqrt(2))
    assert depth_along_axis(edge, camera) == pytest.approx(1, rel=0.002)
    assert depth_along_axis(edge, None) == math.sqrt(2)


def test_the_principal_point_of_the_camera_is_used() -> None:
    camera = Camera(fx_px=100, fy_px=100, width_px=200, height_px=100, principal_point_px=(0, 0))
    point = KnownPoint(x_px=0, y_px=100, distance_m=math.sqrt(2))
    assert depth_along_axis(point, camera) == pytest.approx(1)


def test_the_factor_is_the_median_ratio() -> None:
    assert scale_of(readings(1.3)).factor == pytest.approx(1.3)
    assert scale_of(readings(1.2, 1.3)).factor == pytest.approx(math.sqrt(1.2 * 1.3)), "the geometric mean of two"
    assert scale_of(readings(1.2, 1.3, 12.0)).factor == pytest.approx(1.3), "one distance is wrong"
    assert scale_of(readings(2.0, 0.5)).factor == pytest.approx(1), "in logarithms, twice and half are equal errors"


def test_the_residual_measures_how_well_points_agree() -> None:
    alone = scale_of(readings(1.3))
    assert alone.residual_percent is None
    assert str(alone) == "metres times 1.3 (1 known distance; add a second to check it)"
    assert scale_of(readings(1.3, 1.3, 1.3)).residual_percent == pytest.approx(0, abs=1e-9)
    # ln 1.2 and ln 1.3 are 0.0800 apart: their standard deviation is that over sqrt(2).
    two = scale_of(readings(1.2, 1.3))
    assert two.residual_percent == pytest.approx(100 * (math.exp(math.log(1.3 / 1.2) / math.sqrt(2)) - 1))
    assert str(two) == "metres times 1.25 (2 known distances, ±5.8 %)"
    wrong = scale_of(readings(1.3, 1.3, 13.0)).residual_percent
    assert wrong == pytest.approx(100 * (math.exp(math.log(10) / math.sqrt(2)) - 1)), "shows the wrong one"


@pytest.mark.parametrize("ratio", [21.0, 1 / 21, 100.0])
def test_implausible_scales_are_rejected(ratio: float) -> None:
    with pytest.raises(OptionError, match="give no plausible scale") as caught:
        scale_of(readings(ratio))
    assert "2 m" in caught.value.why
    assert scale_of(readings(19.9)).factor == pytest.approx(19.9)
    with pytest.raises(OptionError, match="give no plausible scale"):
        scale_of([])


def test_scales_are_stored_by_key(tmp_path: Path) -> None:
    path = tmp_path / "config" / "scales.json"
    store, scale, other = ScaleStore(path), scale_of(readings(1.2, 1.3)), scale_of(readings(0.7))
    assert store.get(KEY) is None
    store.put(KEY, scale)
    keys = [
        ScaleKey(camera="other", frame_hw=KEY.frame_hw, checkpoint_sha256=KEY.checkpoint_sha256),
        ScaleKey(camera=KEY.camera, frame_hw=(720, 1280), checkpoint_sha256=KEY.checkpoint_sha256),
        ScaleKey(camera=KEY.camera, frame_hw=KEY.frame_hw, checkpoint_sha256="cd" * 32),
    ]
    assert [store.get(key) for key in keys] == [None] * 3
    for key in keys:
        store.put(key, other)
    assert ScaleStore(path).get(KEY) == scale, "another process reads the same"
    store.put(KEY, other)
    assert [store.get(key) for key in (KEY, *keys)] == [other] * 4
    assert list(path.parent.iterdir()) == [path]
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["version"] == 1
    assert len(data["scales"]) == 4
    assert store.cameras() == {KEY.camera, "other"}

    assert store.forget(KEY.camera, KEY.checkpoint_sha256) == 2, "in frames of both sizes"
    assert [store.get(key) for key in (KEY, *keys)] == [None, other, None, other]
    assert store.forget(KEY.camera, KEY.checkpoint_sha256) == 0


def test_deleting_nothing_writes_nothing(tmp_path: Path) -> None:
    store = ScaleStore(tmp_path / "scales.json")
    assert store.forget("camera", "ab") == 0
    assert store.cameras() == set()
    assert list(tmp_path.iterdir()) == []


def test_the_default_store_is_in_the_users_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_config_dir", lambda name: str(tmp_path / name))
    assert ScaleStore().path == tmp_path / "mirrordepth-edge" / "scales.json"


READING = '{"true_m": 2.0, "network_m": 1.0}'
STORED = (
    '{"version": 1, "scales": [{"key": {"camera": "c", "frame_hw": [480, 640], "checkpoint_sha256": "ab"},'
    f' "scale": {{"readings": [{READING}]}}}}]}}'
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "0 bytes"),
        ("{", "line 1"),
        ("[]", "object"),
        (STORED.replace('"version": 1', '"version": 2'), "version"),
        (STORED.replace("480, 640", "480"), "frame_hw"),
        (STORED.replace('"c"', "7"), "camera"),
        (STORED.replace('"camera"', '"kamera"'), "camera"),
        (STORED.replace(READING, ""), "scale must be between"),
        (STORED.replace("2.0", "90.0"), "scale must be between"),
        (STORED.replace("2.0", "-2.0"), "greater than 0"),
        (STORED.replace("2.0", '"2.0"'), "true_m"),
    ],
)
def test_a_damaged_store_is_reported_and_left_alone(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    path.write_text(text, encoding="utf-8")
    for use in (
        lambda: ScaleStore(path).get(KEY),
        lambda: ScaleStore(path).put(KEY, scale_of(readings(1.3))),
        lambda: ScaleStore(path).forget("c", "ab"),
        lambda: ScaleStore(path).cameras(),
    ):
        with pytest.raises(InputError) as caught:
            use()
        assert word in caught.value.why
        assert str(path) in caught.value.what
    assert path.read_text(encoding="utf-8") == text, "nothing was lost"


def test_a_valid_store_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    path.write_text(STORED, encoding="utf-8")
    key = ScaleKey(camera="c", frame_hw=(480, 640), checkpoint_sha256="ab")
    assert ScaleStore(path).get(key) == KnownScale(readings=(Reading(true_m=2, network_m=1),))


class Room:
    """A wall at 3 m that a flickering network predicts at 2 m, times the applied factor."""

    def __init__(self) -> None:
        self.factor = 1.25

    def apply(self, factor: float) -> None:
        self.factor = factor

    def shown(self, *flicker: float) -> list[DepthMap]:
        return [np.full((480, 640), 2 * self.factor * noise, np.float32) for noise in flicker or (1.0,)]


def test_points_are_added_one_after_the_other(tmp_path: Path) -> None:
    room, store = Room(), ScaleStore(tmp_path / "scales.json")
    setter = ScaleSetter(store, KEY, room.apply)
    scale = setter.add(parse_known("320,240=3m"), room.shown(0.9, 1.0, 1.3), room.factor)
    assert (scale.factor, scale.residual_percent) == (pytest.approx(1.5), None)
    assert room.factor == scale.factor, "relative to the network's depth, not to the scaled one"
    assert room.shown()[0][0, 0] == pytest.approx(3)
    scale = setter.add(parse_known("100,100=3.3m 500,400=3m"), room.shown(), room.factor)
    assert [reading.network_m for reading in scale.readings] == pytest.approx([2, 2, 2])
    assert [reading.true_m for reading in scale.readings] == pytest.approx([3, 3.3, 3])
    assert room.factor == pytest.approx(1.5)
    assert store.get(KEY) == scale


def test_points_are_converted_to_depth(tmp_path: Path) -> None:
    room, camera = Room(), Camera.from_fov(90, (480, 640))
    setter = ScaleSetter(ScaleStore(tmp_path / "scales.json"), KEY, room.apply, camera)
    point = KnownPoint(x_px=637, y_px=240, distance_m=3 * math.sqrt(2))
    assert setter.add([point], room.shown(), room.factor).factor == pytest.approx(1.5, rel=0.005)


def test_a_rejected_point_changes_nothing(tmp_path: Path) -> None:
    room, store = Room(), ScaleStore(tmp_path / "scales.json")
    setter = ScaleSetter(store, KEY, room.apply)
    scale = setter.add(parse_known("320,240=3m"), room.shown(), room.factor)
    edge = room.shown()
    edge[0][:, 100:] *= 2
    for text in ("99,50=3m", "700,50=3m", "10,10=900m 11,11=900m 12,12=900m"):
        with pytest.raises(OptionError):
            setter.add(parse_known(text), edge, room.factor)
    assert (store.get(KEY), room.factor) == (scale, scale.factor)
    assert len(setter.add(parse_known("10,10=3m"), room.shown(), room.factor).readings) == 2

    store.path.write_text("{")
    with pytest.raises(InputError):
        setter.add(parse_known("10,10=6m"), room.shown(), room.factor)
    assert room.factor == pytest.approx(1.5), "a scale that cannot be stored is not applied"


def type_keys(keys: PointAndType, text: str) -> KnownPoint | None:
    points = [point for code in text.encode() if (point := keys.key(code)) is not None]
    return points[-1] if points else None


def test_point_and_type() -> None:
    keys = PointAndType()
    assert keys.prompt is None
    assert type_keys(keys, "1.5m\r") is None, "no pixel was clicked"
    keys.click(320, 240)
    assert keys.prompt is not None
    assert "320,240" in keys.prompt
    assert type_keys(keys, "q1.9\x0885 M") is None
    assert keys.prompt.endswith(": 1.85 m_"), "keys that no length contains are ignored"
    assert keys.key(255) is None
    assert keys.key(-1) is None
    assert keys.key(13) == KnownPoint(x_px=320, y_px=240, distance_m=1.85)
    assert keys.prompt is None

    keys.click(1, 2)
    with pytest.raises(OptionError, match="is not a known distance"):
        type_keys(keys, "1.85\r")
    assert keys.prompt is not None
    assert keys.prompt.endswith(": _")
    keys.click(3, 4)
    assert type_keys(keys, "2m\n") == KnownPoint(x_px=3, y_px=4, distance_m=2)
    keys.click(3, 4)
    assert type_keys(keys, "2\x1b") is None
    assert keys.prompt is None


def test_a_camera_is_identified_by_its_serial_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, other, by_id = tmp_path / "video0", tmp_path / "video1", tmp_path / "by-id"
    device.touch()
    other.touch()
    by_id.mkdir()
    monkeypatch.setattr(scale_store, "BY_ID", by_id)
    assert camera_identity(str(device)) == str(device)
    (by_id / "usb-C920_0A1B-video-index0").symlink_to(device)
    assert camera_identity(str(device)) == "usb-C920_0A1B-video-index0"
    assert camera_identity(str(by_id / "usb-C920_0A1B-video-index0")) == "usb-C920_0A1B-video-index0"
    assert camera_identity(str(other)) == str(other)
    monkeypatch.chdir(tmp_path)
    assert camera_identity("video1") == str(other), "relative paths are resolved"


def test_other_sources_are_identified_by_their_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scale_store, "BY_ID", tmp_path)
    assert camera_identity("rtsp://user:secret@10.0.0.7/live") == "rtsp://10.0.0.7/live"
    assert camera_identity("synthetic") == "synthetic"
    monkeypatch.setattr(scale_store.sys, "platform", "linux")
    assert camera_identity("977") == "/dev/video977"
    monkeypatch.setattr(scale_store.sys, "platform", "win32")
    assert camera_identity("977") == "977"


def test_files_from_one_checkpoint_share_its_hash(tmp_path: Path) -> None:
    digest = sha256_of(NANO_CHECKPOINT)
    assert {checkpoint_sha256(path) for path in (NANO_CHECKPOINT, *NANO_ONNX.values())} == {digest}
    with pytest.raises(InputError, match="There is no"):
        checkpoint_sha256(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="There is no checkpoint"):
        checkpoint_sha256(tmp_path / "absent.safetensors")
