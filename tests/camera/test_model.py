"""Cameras: closed forms, crops, and calibration files as OpenCV and ROS write them."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mirrordepth_edge.camera.model import Camera, Lens, camera_at, camera_of, read_camera, scale_for
from mirrordepth_edge.config import PRESETS, ModelConfig
from mirrordepth_edge.data.rooms import render as rendered
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.support.schema import read_strict

KINECT = Camera(fx_px=518.9, fy_px=519.5, width_px=640, height_px=480)
MATRIX = np.array([[617.3, 0, 324.98], [0, 618.1, 231.5], [0, 0, 1]])
READ = Camera(fx_px=617.3, fy_px=618.1, width_px=640, height_px=480)

# As ROS 1's camera calibrator writes it, and as PyYAML dumps the same.
ROS = """# image_width: 1
image_width: 640
image_height: 480
camera_name: narrow_stereo/left
camera_matrix:
  rows: 3
  cols: 3
  data: [617.3,   0. , 324.98,
           0. , 618.1, 231.5 ,
           0. ,   0. ,   1.  ]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.1, 0.2, 0.0, 0.0, 0.0]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1, 0, 0, 0, 1, 0, 0, 0, 1]
"""
ROS_BLOCK = """camera_matrix:
  cols: 3
  data:
  - 617.3
  - 0.0
  - 324.98
  - 0.0
  - 6.181e+02
  - 231.5
  - 0.0
  - 0.0
  - 1.0
  rows: 3
distortion_model: plumb_bob
image_height: 480
image_width: 640
"""


@pytest.mark.parametrize(("fov_deg", "focal_px"), [(90, 320), (60, 320 * math.sqrt(3)), (120, 320 / math.sqrt(3))])
def test_field_of_view_and_focal_length_are_converted(fov_deg: float, focal_px: float) -> None:
    camera = Camera.from_fov(fov_deg, (480, 640))
    assert camera.fx_px == camera.fy_px == pytest.approx(focal_px)
    assert Camera.from_focal(focal_px, (480, 640)).fov_deg == pytest.approx(fov_deg)


def test_field_of_view_agrees_with_opencv() -> None:
    fov_deg = cv2.calibrationMatrixValues(MATRIX, (640, 480), 1.0, 1.0)[0]
    # OpenCV adds the angles on both sides of the principal point, which is off the centre here.
    assert READ.fov_deg == pytest.approx(fov_deg, abs=0.02)
    assert str(READ) == f"fx 617.3 px of 640 ({fov_deg:.0f}° wide)"


@pytest.mark.parametrize("share", [1.0, 0.8, 0.5, 0.1])
def test_a_crop_is_a_longer_lens(share: float) -> None:
    crop = KINECT.cropped((round(480 * share), round(640 * share)))
    assert scale_for(KINECT.focal, crop) == pytest.approx(1 / share)
    assert crop.fx_px == KINECT.fx_px


def test_scale_for_another_lens_and_another_resolution() -> None:
    lens = Camera(fx_px=2 * 518.9, fy_px=2 * 519.5, width_px=640, height_px=480)
    assert scale_for(KINECT.focal, lens) == pytest.approx(2)
    assert scale_for(lens.focal, KINECT) == pytest.approx(0.5)
    half = Camera(fx_px=518.9 / 2, fy_px=519.5 / 2, width_px=320, height_px=240)
    assert scale_for(KINECT.focal, half) == pytest.approx(1), "a smaller image of the same view"
    stretched = Camera(fx_px=4 * 518.9, fy_px=519.5, width_px=640, height_px=480)
    assert scale_for(KINECT.focal, stretched) == pytest.approx(2), "the geometric mean of 4 and 1"


def test_another_resolution_with_the_same_aspect_ratio() -> None:
    half = KINECT.at((240, 320))
    assert (half.fx_px, half.fy_px, half.width_px, half.height_px) == (518.9 / 2, 519.5 / 2, 320, 240)
    assert half.focal == pytest.approx(KINECT.focal)
    wide = Camera.from_fov(70, (720, 1280))
    assert wide.at((480, 848)).fov_deg == pytest.approx(70), "16:9, rounded"


@pytest.mark.parametrize("size_hw", [(360, 640), (640, 480), (480, 480)])
def test_another_aspect_ratio_is_rejected(size_hw: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match="calibrated at 640x480") as caught:
        KINECT.at(size_hw)
    assert "--focal-px" in caught.value.cure


def test_the_camera_of_a_frame_size() -> None:
    given = Camera.from_focal(500, (240, 320))
    assert camera_at(given, (0.75, 1.25), (480, 640)) == Camera.from_focal(1000, (480, 640))
    assert camera_at(Lens(fov_deg=90), None, (100, 200)) == Camera.from_fov(90, (100, 200))
    assert camera_at(None, (0.75, 1.25), (100, 200)) == Camera.from_focal(150, (100, 200), fy_px=125)
    assert camera_at(None, None, (100, 200)) is None


def test_the_principal_point() -> None:
    assert (KINECT.cx_px, KINECT.cy_px) == (319.5, 239.5), "the centre of the image by default"
    assert KINECT.size_hw == (480, 640)
    camera = Camera(fx_px=500, fy_px=500, width_px=640, height_px=480, principal_point_px=(319.5, 200))
    assert (camera.cx_px, camera.cy_px) == (319.5, 200)
    half = camera.at((240, 320))
    assert (half.cx_px, half.cy_px) == (159.5, 99.75), "pixels (2i, 2i + 1) are merged to pixel i"
    assert camera.cropped((100, 100)).principal_point_px is None


def test_a_lens_becomes_a_camera_with_the_frame_size() -> None:
    assert Lens(fov_deg=90).at((100, 200)) == Camera.from_fov(90, (100, 200))
    assert Lens(fov_deg=90).at((300, 400)).fx_px == pytest.approx(200)
    assert Lens(focal_px=600).at((300, 400)) == Camera(fx_px=600, fy_px=600, width_px=400, height_px=300)
    assert [str(Lens(focal_px=617.25)), str(Lens(fov_deg=70.5))] == ["fx 617.2 px", "70.5° wide"]


@pytest.mark.parametrize("fov_deg", [0.0, -5.0, 180.0, 400.0, math.nan])
def test_invalid_fields_of_view_are_rejected(fov_deg: float) -> None:
    for make in (lambda: Camera.from_fov(fov_deg, (480, 640)), lambda: Lens(fov_deg=fov_deg)):
        with pytest.raises(OptionError, match="not a valid field of view"):
            make()


@pytest.mark.parametrize("focal_px", [0.0, -600.0, math.inf, math.nan])
def test_invalid_focal_lengths_are_rejected(focal_px: float) -> None:
    makes = (
        lambda: Camera.from_focal(focal_px, (480, 640)),
        lambda: Camera.from_focal(600, (480, 640), fy_px=focal_px),
        lambda: Lens(focal_px=focal_px),
    )
    for make in makes:
        with pytest.raises(OptionError, match="not a valid focal length"):
            make()


def test_other_invalid_cameras_are_rejected() -> None:
    with pytest.raises(OptionError, match="640x0"):
        Camera.from_focal(600, (0, 640))
    for both in ({}, {"focal_px": 600.0, "fov_deg": 70.0}):
        with pytest.raises(OptionError, match="either a focal length or a field of view"):
            Lens(**both)


@pytest.mark.parametrize("suffix", ["yml", "xml", "json"])
@pytest.mark.parametrize(
    "names",
    [("camera_matrix", "image_width", "image_height"), ("Camera_Matrix", "image_Width", "image_Height")],
    ids=["now", "2.4"],
)
def test_opencv_calibrations_are_read(suffix: str, names: tuple[str, str, str], tmp_path: Path) -> None:
    path = tmp_path / f"camera.{suffix}"
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    file.write("calibration_time", "Sun 22 Nov 2026")
    file.write("distortion_coefficients", np.array([[0.1, -0.2, 0, 0, 0.3]]))
    file.write(names[0], MATRIX)
    file.write("rectification_matrix", np.eye(3))
    file.write(names[1], 640)
    file.write(names[2], 480)
    file.release()
    assert read_camera(path) == READ


@pytest.mark.parametrize("text", [ROS, ROS_BLOCK], ids=["flow", "block"])
def test_ros_calibrations_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    assert read_camera(path) == READ


def test_the_camera_of_rendered_rooms_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendered, "require_pybullet", lambda: None)  # no room is drawn
    list(rendered.write_rooms(rendered.RenderedRooms(count=0, size_hw=(240, 320), fov_deg=90), tmp_path))
    camera = read_camera(tmp_path / "camera.json")
    assert (camera.width_px, camera.height_px) == (320, 240)
    assert camera.fx_px == camera.fy_px == pytest.approx(160)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("hello", "camera_matrix of 3x3 and no image_width"),
        ("image_width: 640\nimage_height: 480\n", "no camera_matrix"),
        (ROS.replace("image_height", "image_hight"), "no image_width and image_height"),
        (ROS.replace("617.3,", ""), "no camera_matrix"),
        # The values of another matrix must not be used.
        (ROS.split("  rows", 1)[0] + ROS[ROS.index("rectification_matrix") :], "no camera_matrix"),
        (ROS.replace("617.3", "0").replace("618.1", "0"), "0 px"),
        (ROS.replace("617.3", "-617.3"), "-617.3 px"),
        (ROS.replace("image_width: 640", "image_width: 0"), "0x480"),
        ('{"width": 640, "height": 480, "fx": null, "fy": 5}', "no camera_matrix"),
    ],
)
def test_calibrations_without_a_valid_camera_are_rejected(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="holds no camera") as caught:
        read_camera(path)
    assert word in caught.value.why
    assert str(path) in caught.value.what


def test_unreadable_calibrations_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    with pytest.raises(InputError, match="no calibration at"):
        read_camera(path)
    path.touch()
    with pytest.raises(InputError, match="0 bytes"):
        read_camera(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="holds no camera"):
        read_camera(path)


def test_camera_options_describe_one_camera(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(ROS)
    assert camera_of(None, None, None) is None
    assert camera_of(600.0, None, None) == Lens(focal_px=600)
    assert camera_of(None, 70.0, None) == Lens(fov_deg=70)
    assert camera_of(None, None, path) == READ
    for options in ((600.0, 70.0, None), (600.0, None, path), (None, 70.0, path), (0.0, 0.0, path)):
        with pytest.raises(OptionError, match="cannot be combined"):
            camera_of(*options)
    with pytest.raises(OptionError, match="0 px"):
        camera_of(0.0, None, None)


def described(**changes: Any) -> ModelConfig:
    """Parse a model description."""
    model = {key: value for key, value in asdict(PRESETS["nano"]).items() if key != "focal"}
    return read_strict(ModelConfig, {**model, **changes}, "model.json", "cure")


def test_models_without_a_training_camera_are_read() -> None:
    assert described().focal is None
    assert described(focal=None).focal is None
    assert described(focal=[0.81, 1]).focal == (0.81, 1.0)


@pytest.mark.parametrize("focal", [[518.9, 519.5], [0, 1], [-0.8, 1], [0.8], "0.8"])
def test_invalid_training_cameras_are_rejected(focal: Any) -> None:
    with pytest.raises(InputError, match=r"model\.json is not valid") as caught:
        described(focal=focal)
    assert "focal" in caught.value.why
