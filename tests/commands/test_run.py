"""`mde run`: which files it writes, that they hold the same metres, and what it refuses."""

from __future__ import annotations

import struct
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
from mirrordepth_edge.commands.run import command
from mirrordepth_edge.commands.run.command import run
from mirrordepth_edge.config import PRESETS, SessionOptions
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.postprocess import colourise
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor

SIZE_HW = PRESETS["nano"].size_hw
FRAME_HW = (48, 64)


class BrightnessSession(CheckedSession):
    """A network for which red is depth: 0 to 255 is 0 to 5.1 m."""

    backend, device, precision, version = "fake", "cpu", "fp32", "1.0"
    inputs = (TensorSpec(name="image", dtype="uint8", shape=(1, *SIZE_HW, 3), layout="NHWC", range="", unit=""),)
    outputs = (TensorSpec(name="depth", dtype="float32", shape=(1, *SIZE_HW), layout="NHW", range="", unit="metres"),)

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.check(feeds)
        return {"depth": (feeds["image"][..., 0] * 0.02).astype(np.float32)}


@pytest.fixture(autouse=True)
def loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, SessionOptions]]:
    """Every opening of a model; tests run in an empty folder."""
    calls: list[tuple[str, SessionOptions]] = []

    def load(model: str, options: SessionOptions, camera: Camera | Lens | None = None, **more: Any) -> DepthPredictor:
        calls.append((model, options))
        focal = None if model == "silent.onnx" else (1.0, 1.0)
        return DepthPredictor(BrightnessSession(), replace(PRESETS["nano"], focal=focal), camera=camera, **more)

    monkeypatch.setattr(command, "load", load)
    monkeypatch.chdir(tmp_path)
    return calls


def picture(path: Path, red: int = 100) -> Path:
    """Left half of one red, right half 50 more, which is one metre more."""
    bgr = np.zeros((*FRAME_HW, 3), np.uint8)
    bgr[..., 2] = red
    bgr[:, FRAME_HW[1] // 2 :, 2] += 50
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), bgr)
    return path


def video(path: Path, frames: int = 3, rate_hz: float = 12.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate_hz, FRAME_HW[::-1])
    for index in range(frames):
        bgr = np.zeros((*FRAME_HW, 3), np.uint8)
        bgr[..., 2] = 50 + 50 * index
        writer.write(bgr)
    writer.release()
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_picture_in_all_formats(capfd: pytest.CaptureFixture[str]) -> None:
    run([picture(Path("hall.png"))], output=Path("out"), near=1.0, far=4.0)
    assert files(Path("out")) == {"hall.depth.png", "hall.depth.npy", "hall.colour.png"}
    depth_m = np.load("out/hall.depth.npy")
    assert depth_m.dtype == np.float32
    assert depth_m.shape == FRAME_HW
    np.testing.assert_allclose(depth_m[:, [0, -1]], [[2.0, 3.0]] * FRAME_HW[0], rtol=1e-6)
    millimetres = cv2.imread("out/hall.depth.png", cv2.IMREAD_UNCHANGED)
    assert millimetres.dtype == np.uint16
    np.testing.assert_allclose(millimetres, depth_m * 1000, atol=0.51)
    colours = cv2.cvtColor(cv2.imread("out/hall.colour.png"), cv2.COLOR_BGR2RGB)
    assert np.array_equal(colours, colourise(depth_m, (1.0, 4.0)))
    out = capfd.readouterr().out.splitlines()
    assert len(out) == 1
    assert out[0].startswith("hall.png: median 2.")
    assert "nearest 2.00 m, farthest 3.00 m" in out[0]
    assert out[0].endswith(f"-> {Path('out/hall')}.*")


def test_a_video(capfd: pytest.CaptureFixture[str]) -> None:
    run([video(Path("clip.avi"))], output=Path("out"))
    frames = {str(Path("clip") / f"00000{index}.depth.{kind}") for index in range(3) for kind in ("png", "npy")}
    assert files(Path("out")) == frames | {"clip.colour.mp4"}
    for index in range(3):
        np.testing.assert_allclose(np.load(f"out/clip/00000{index}.depth.npy"), 1.0 + index, atol=0.15)
    capture = cv2.VideoCapture("out/clip.colour.mp4")
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert capture.get(cv2.CAP_PROP_FPS) == 12
    near_bgr, middle_bgr, far_bgr = (capture.read()[1].mean((0, 1)) for _ in range(3))
    capture.release()
    assert near_bgr.sum() > middle_bgr.sum() > far_bgr.sum()
    assert near_bgr[2] > near_bgr[0], "near is yellow: more red than blue"
    assert capfd.readouterr().out.startswith("clip.avi: 3 frames -> ")


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        ("png", {"hall.depth.png", "clip/000000.depth.png"}),
        ("npy", {"hall.depth.npy", "clip/000000.depth.npy"}),
        ("colour", {"hall.colour.png", "clip.colour.mp4"}),
        ("npy, png", {"hall.depth.png", "clip/000000.depth.png", "hall.depth.npy", "clip/000000.depth.npy"}),
    ],
)
def test_only_what_was_asked_for(formats: str, expected: set[str]) -> None:
    run([picture(Path("hall.png")), video(Path("clip.avi"), 1)], output=Path("out"), formats=formats)
    assert {name.replace("\\", "/") for name in files(Path("out"))} == expected


def test_a_folder_gives_its_pictures_but_not_earlier_results() -> None:
    for name in ("b.png", "a.JPG", "c.bmp"):
        picture(Path("in") / name)
    Path("in/notes.txt").write_text("no picture")
    for _ in range(2):
        run([Path("in")], output=Path("in"), formats="png,colour")
    results = {f"{stem}.{kind}.png" for stem in "abc" for kind in ("depth", "colour")}
    assert files(Path("in")) == {"b.png", "a.JPG", "c.bmp", "notes.txt"} | results


def test_pictures_of_several_sizes_and_model_and_device(loads: list[tuple[str, SessionOptions]]) -> None:
    large = Path("large.png")
    cv2.imwrite(str(large), np.full((300, 500, 3), 50, np.uint8))
    run([picture(Path("small.png")), large], output=Path("out"), model="big.onnx", device="cpu", formats="npy")
    assert np.load("out/small.depth.npy").shape == FRAME_HW
    assert np.load("out/large.depth.npy").shape == (300, 500)
    assert loads == [("big.onnx", SessionOptions(device="cpu"))]


def test_another_camera(capfd: pytest.CaptureFixture[str]) -> None:
    """Frames of 64x48 at focal lengths of 128 and 120 pixels: 2 and 2.5 times those of the training camera."""
    Path("camera.yaml").write_text(
        "image_width: 640\nimage_height: 480\ncamera_matrix:\n  data: [1280, 0, 0, 0, 1200, 0, 0, 0, 1]\n"
    )
    pictures = [picture(Path("hall.png")), picture(Path("hall2.png"), 50)]
    run(pictures, output=Path("out"), formats="npy", calibration=Path("camera.yaml"))
    times = (2 * 2.5) ** 0.5
    np.testing.assert_allclose(np.load("out/hall.depth.npy")[:, [0, -1]], [[2 * times, 3 * times]] * 48, rtol=1e-6)
    np.testing.assert_allclose(np.load("out/hall2.depth.npy")[:, [0, -1]], [[times, 2 * times]] * 48, rtol=1e-6)
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("camera:")]
    assert told == ["camera: fx 128.0 px of 64 (28° wide); depth scaled by 2.24"]
    run(pictures, output=Path("out"), formats="npy", focal_px=32.0)  # 0.5 of the width, 0.667 of the height
    np.testing.assert_allclose(np.load("out/hall.depth.npy")[0, 0], 2 * (0.5 / 0.75) ** 0.5 * 0.5**0.5, rtol=1e-6)
    assert "camera: fx 32.0 px of 64 (90° wide); depth scaled by 0.577" in capfd.readouterr().err
    by_focal = np.load("out/hall.depth.npy")
    run(pictures, output=Path("out"), formats="npy", fov_deg=90.0)
    np.testing.assert_allclose(np.load("out/hall.depth.npy"), by_focal, rtol=1e-6)


def test_cameras_that_make_no_sense(loads: list[tuple[str, SessionOptions]]) -> None:
    hall = [picture(Path("hall.png"))]
    for options, word in (
        ({"focal_px": 600.0, "fov_deg": 70.0}, "cannot be combined"),
        ({"fov_deg": 190.0}, "--fov-deg|190"),
        ({"focal_px": -1.0}, "-1 px"),
    ):
        with pytest.raises(OptionError, match=word):
            run(hall, output=Path("out"), **options)
    with pytest.raises(InputError, match=r"absent\.yaml"):
        run(hall, output=Path("out"), calibration=Path("absent.yaml"))
    assert not loads
    with pytest.raises(OptionError, match="which camera it was trained with"):
        run(hall, output=Path("out"), model="silent.onnx", fov_deg=70.0)
    assert not Path("out").exists()


def points(path: Path) -> np.ndarray[Any, Any]:
    """x, y, z, red, green, blue of each point of a PLY file."""
    data = path.read_bytes()
    end = data.index(b"end_header\n") + len(b"end_header\n")
    return np.array(list(struct.iter_unpack("<3f3B", data[end:])))


def test_points_in_space() -> None:
    """2 and 3 m away, through a camera as wide as the picture; it was trained with one as wide as the picture, too."""
    run([picture(Path("hall.png"))], output=Path("out"), formats="png", ply=True)
    assert files(Path("out")) == {"hall.depth.png", "hall.ply"}
    cloud = points(Path("out/hall.ply")).reshape(*FRAME_HW, 6)
    assert cloud[5, 0] == pytest.approx(((0 - 31.5) / 64 * 2, (5 - 23.5) / 48 * 2, 2, 100, 0, 0), rel=1e-5)
    assert cloud[40, 63] == pytest.approx(((63 - 31.5) / 64 * 3, (40 - 23.5) / 48 * 3, 3, 150, 0, 0), rel=1e-5)
    run([Path("hall.png")], output=Path("out2"), formats="npy", ply=True, focal_px=32.0)
    far_m = float(np.load("out2/hall.depth.npy")[40, 63])
    cloud = points(Path("out2/hall.ply")).reshape(*FRAME_HW, 6)
    assert cloud[40, 63, :3] == pytest.approx((31.5 / 32 * far_m, 16.5 / 32 * far_m, far_m), rel=1e-5)


def test_points_that_cannot_be(loads: list[tuple[str, SessionOptions]]) -> None:
    with pytest.raises(OptionError, match=r"--ply does not fit clip\.avi"):
        run([picture(Path("hall.png")), video(Path("clip.avi"))], output=Path("out"), ply=True)
    assert not loads
    with pytest.raises(OptionError, match="needs the camera's focal length"):
        run([Path("hall.png")], output=Path("out"), model="silent.onnx", ply=True)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("names", "clash"),
    [(["a/x.png", "b/x.png"], "x.png"), (["x.png", "x.jpg"], "x.jpg"), (["x.png", "X.bmp"], "X.bmp")],
)
def test_results_that_would_overwrite_each_other(
    names: list[str], clash: str, loads: list[tuple[str, SessionOptions]]
) -> None:
    with pytest.raises(InputError, match="overwrite") as caught:
        run([picture(Path(name)) for name in names], output=Path("out"))
    assert clash in caught.value.what
    assert not loads
    assert not Path("out").exists()


def test_a_missing_file_is_said_before_anything_is_opened(loads: list[tuple[str, SessionOptions]]) -> None:
    good = picture(Path("good.png"))
    with pytest.raises(InputError, match=r"absent\.png"):
        run([good, Path("absent.png")], output=Path("out"))
    Path("empty.mp4").touch()
    with pytest.raises(InputError, match="0 bytes"):
        run([good, Path("empty.mp4")], output=Path("out"))
    Path("bare").mkdir()
    with pytest.raises(InputError, match="bare contains no images"):
        run([good, Path("bare")], output=Path("out"))
    assert not loads
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["bad.png", "bad.mp4", "bad.txt"])
def test_a_bad_file_leaves_what_was_done_and_nothing_half_done(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path(name).write_text("neither picture nor video\n" * 50)
    with pytest.raises(InputError, match=name):
        run([picture(Path("good.png")), Path(name)], output=Path("out"), formats="png,colour")
    assert files(Path("out")) == {"good.depth.png", "good.colour.png"}
    assert "good.png: median" in capfd.readouterr().out


def test_brackets_in_names_are_printed_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    run([picture(Path("[bold]hall.png"))], output=Path("out"), formats="png")
    assert "[bold]hall.png: median" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"formats": "png,exr"}, "'exr'"),
        ({"formats": ""}, "--formats '' is unknown"),
        ({"near": 5.0, "far": 1.0}, "--near"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], word: str) -> None:
    with pytest.raises(OptionError, match=word):
        run([picture(Path("hall.png"))], output=Path("out"), **options)
    assert not Path("out").exists()


def test_unknown_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["run", "hall.png", "-o", "out", "--device", "tpu"]) == 2
    assert "--device 'tpu' is unknown" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_folder_that_cannot_be_written() -> None:
    Path("taken").touch()
    with pytest.raises(InputError, match="Cannot write"):
        run([picture(Path("hall.png"))], output=Path("taken"))
