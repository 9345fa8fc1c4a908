"""Cameras: closed forms, crops, and calibrations as the tools themselves write them."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mirrordepth_edge.camera.model import Camera, Lens, camera_of, read_camera, scale_for
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
def test_field_of_view_is_focal_length(fov_deg: float, focal_px: float) -> None:
    camera = Camera.from_fov(fov_deg, (480, 640))
    assert camera.fx_px == camera.fy_px == pytest.approx(focal_px)
    assert Camera.from_focal(focal_px, (480, 640)).fov_deg == pytest.approx(fov_deg)


def test_field_of_view_is_opencvs() -> None:
    fov_deg = cv2.calibrationMatrixValues(MATRIX, (640, 480), 1.0, 1.0)[0]
    # OpenCV adds the angles on both sides of the principal point, here beside the middle.
    assert READ.fov_deg == pytest.approx(fov_deg, abs=0.02)
    assert str(READ) == f"fx 617.3 px of 640 ({fov_deg:.0f}° wide)"


@pytest.mark.parametrize("share", [1.0, 0.8, 0.5, 0.1])
def test_a_crop_is_a_longer_lens(share: float) -> None:
    crop = KINECT.cropped((round(480 * share), round(640 * share)))
    assert scale_for(KINECT.focal, crop) == pytest.approx(1 / share)
    assert crop.fx_px == KINECT.fx_px


def test_another_lens_and_another_sensor() -> None:
    lens = Camera(fx_px=2 * 518.9, fy_px=2 * 519.5, width_px=640, height_px=480)
    assert scale_for(KINECT.focal, lens) == pytest.approx(2)
    assert scale_for(lens.focal, KINECT) == pytest.approx(0.5)
    half = Camera(fx_px=518.9 / 2, fy_px=519.5 / 2, width_px=320, height_px=240)
    assert scale_for(KINECT.focal, half) == pytest.approx(1), "a smaller picture of the same view"
    stretched = Camera(fx_px=4 * 518.9, fy_px=519.5, width_px=640, height_px=480)
    assert scale_for(KINECT.focal, stretched) == pytest.approx(2), "the geometric mean of 4 and 1"


def test_frames_of_another_size_but_the_same_shape() -> None:
    half = KINECT.at((240, 320))
    assert (half.fx_px, half.fy_px, half.width_px, half.height_px) == (518.9 / 2, 519.5 / 2, 320, 240)
    assert half.focal == pytest.approx(KINECT.focal)
    wide = Camera.from_fov(70, (720, 1280))
    assert wide.at((480, 848)).fov_deg == pytest.approx(70), "16:9 as cameras round it"


@pytest.mark.parametrize("size_hw", [(360, 640), (640, 480), (480, 480)])
def test_frames_of_another_shape_are_another_cameras(size_hw: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match="calibrated at 640x480") as caught:
        KINECT.at(size_hw)
    assert "--focal-px" in caught.value.cure


def test_a_lens_waits_for_its_frames() -> None:
    assert Lens(fov_deg=90).at((100, 200)) == Camera.from_fov(90, (100, 200))
    assert Lens(fov_deg=90).at((300, 400)).fx_px == pytest.approx(200)
    assert Lens(focal_px=600).at((300, 400)) == Camera(fx_px=600, fy_px=600, width_px=400, height_px=300)
    assert [str(Lens(focal_px=617.25)), str(Lens(fov_deg=70.5))] == ["fx 617.2 px", "70.5° wide"]


@pytest.mark.parametrize("fov_deg", [0.0, -5.0, 180.0, 400.0, math.nan])
def test_fields_of_view_that_cannot_be(fov_deg: float) -> None:
    for make in (lambda: Camera.from_fov(fov_deg, (480, 640)), lambda: Lens(fov_deg=fov_deg)):
        with pytest.raises(OptionError, match="no field of view"):
            make()


@pytest.mark.parametrize("focal_px", [0.0, -600.0, math.inf, math.nan])
def test_focal_lengths_that_cannot_be(focal_px: float) -> None:
    makes = (
        lambda: Camera.from_focal(focal_px, (480, 640)),
        lambda: Camera.from_focal(600, (480, 640), fy_px=focal_px),
        lambda: Lens(focal_px=focal_px),
    )
    for make in makes:
        with pytest.raises(OptionError, match="no focal length"):
            make()


def test_other_cameras_that_cannot_be() -> None:
    with pytest.raises(OptionError, match="640x0"):
        Camera.from_focal(600, (0, 640))
    for both in ({}, {"focal_px": 600.0, "fov_deg": 70.0}):
        with pytest.raises(OptionError, match="focal length or by its field of view"):
            Lens(**both)


@pytest.mark.parametrize("suffix", ["yml", "xml", "json"])
@pytest.mark.parametrize(
    "names",
    [("camera_matrix", "image_width", "image_height"), ("Camera_Matrix", "image_Width", "image_Height")],
    ids=["now", "2.4"],
)
def test_what_opencv_writes(suffix: str, names: tuple[str, str, str], tmp_path: Path) -> None:
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
def test_what_ros_writes(text: str, tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    assert read_camera(path) == READ


def test_what_rendering_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendered, "require_pybullet", lambda: None)  # no room is drawn
    list(rendered.written(rendered.RenderedRooms(count=0, size_hw=(240, 320), fov_deg=90), tmp_path))
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
        # Another matrix's values are not the camera's.
        (ROS.split("  rows", 1)[0] + ROS[ROS.index("rectification_matrix") :], "no camera_matrix"),
        (ROS.replace("617.3", "0").replace("618.1", "0"), "0 px"),
        (ROS.replace("617.3", "-617.3"), "-617.3 px"),
        (ROS.replace("image_width: 640", "image_width: 0"), "0x480"),
        ('{"width": 640, "height": 480, "fx": null, "fy": 5}', "no camera_matrix"),
    ],
)
def test_calibrations_without_a_camera(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="holds no camera") as caught:
        read_camera(path)
    assert word in caught.value.why
    assert str(path) in caught.value.what


def test_calibrations_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    with pytest.raises(InputError, match="no calibration at"):
        read_camera(path)
    path.touch()
    with pytest.raises(InputError, match="0 bytes"):
        read_camera(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="holds no camera"):
        read_camera(path)


def test_a_command_line_describes_one_camera(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(ROS)
    assert camera_of(None, None, None) is None
    assert camera_of(600.0, None, None) == Lens(focal_px=600)
    assert camera_of(None, 70.0, None) == Lens(fov_deg=70)
    assert camera_of(None, None, path) == READ
    for told in ((600.0, 70.0, None), (600.0, None, path), (None, 70.0, path), (0.0, 0.0, path)):
        with pytest.raises(OptionError, match="exclude one another"):
            camera_of(*told)
    with pytest.raises(OptionError, match="0 px"):
        camera_of(0.0, None, None)


def described(**changes: Any) -> ModelConfig:
    """A model as a file describes it."""
    model = {key: value for key, value in asdict(PRESETS["nano"]).items() if key != "focal"}
    return read_strict(ModelConfig, {**model, **changes}, "model.json", "cure")


def test_models_of_before_say_no_camera() -> None:
    assert described().focal is None
    assert described(focal=None).focal is None
    assert described(focal=[0.81, 1]).focal == (0.81, 1.0)


@pytest.mark.parametrize("focal", [[518.9, 519.5], [0, 1], [-0.8, 1], [0.8], "0.8"])
def test_a_models_camera_is_shares_of_the_picture(focal: Any) -> None:
    with pytest.raises(InputError, match=r"model\.json is not valid") as caught:
        described(focal=focal)
    assert "focal" in caught.value.why
