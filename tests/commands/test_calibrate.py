"""`mde calibrate`, from pictures, videos and cameras to a recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands.terminal import errors
from mirrordepth_edge.imaging.draw import save_png, video_writer
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.quantise.calibration_set import load_calibration
from mirrordepth_edge.sources.source import FrameSource

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def scene(seed: int) -> Frame:
    """Something natural enough: coloured noise, the stronger the coarser."""
    rng = np.random.default_rng(seed)
    picture = np.full((180, 240, 3), rng.uniform(90, 160, 3), np.float32)
    for cells, strength in ((2, 40), (4, 30), (10, 20), (30, 12), (90, 10), (180, 8)):
        coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (240, 180), interpolation=cv2.INTER_CUBIC)
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(errors, "width", 200)
    return tmp_path


@pytest.fixture
def pictures(here: Path) -> Path:
    (here / "pictures" / "deep").mkdir(parents=True)
    for seed in range(6):
        save_png(here / "pictures" / ("deep" if seed % 2 else ".") / f"{seed}.png", scene(seed))
    save_png(here / "pictures" / "noise.png", np.random.default_rng(0).integers(0, 256, (180, 240, 3), np.uint8))
    save_png(here / "pictures" / "black.png", np.zeros((180, 240, 3), np.uint8))
    return here / "pictures"


def test_a_folder_of_pictures(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["calibrate", "--from", "pictures", "--count", "4", "-o", "office"]) == 0
    told = capsys.readouterr()
    assert told.out == (
        "8 frames, 8 candidates; dropped: 1 uniform, 1 noise\n"
        "calib/office.toml: 4 frames; preview: calib/office.jpg; next: mde export --int8 --calib office\n"
    )
    assert "1 dropped as noise" in told.err
    assert "INT8 works better with 128 or more frames" in told.err
    made = load_calibration("office")
    assert made.source == pictures
    assert len(list(made.frames())) == 4
    data = tomllib.loads(Path("calib/office.toml").read_text(encoding="utf-8"))
    assert (data["source"], data["selection"]["model"]) == ("../pictures", "nano")
    first = Path("calib/office.toml").read_bytes()
    assert run_app(["calibrate", "--from", "pictures", "--count", "4", "-o", "calib/office.toml"]) == 0
    assert Path("calib/office.toml").read_bytes() == first
    assert sorted(path.name for path in Path("calib").iterdir()) == ["office.jpg", "office.toml"]
    # The sheet and the recipe lie in the folder that is looked through, and change nothing.
    assert run_app(["calibrate", "--from", ".", "--count", "4", "-o", "calib/office.toml"]) == 0
    assert tomllib.loads(Path("calib/office.toml").read_text(encoding="utf-8"))["selection"]["found"] == 8


def test_fewer_are_looked_at_and_more_are_wanted(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["calibrate", "--from", "pictures", "--count", "40", "--frames", "4", "-o", "few.toml"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("8 frames, 4 candidates; dropped: none\nfew.toml: 4 frames; preview: ")
    assert "only 4 usable frames found (40 requested)" in told.err
    wanted = ["0.png", "4.png", "deep/1.png", "deep/5.png"]  # every second of all eight
    assert [frame.file for frame in load_calibration("few.toml").recipe.frames] == wanted


def test_enough_frames_are_not_remarked_upon(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mirrordepth_edge.commands.calibrate.MIN_RECOMMENDED", 6)
    (pictures / "noise.png").unlink()
    assert run_app(["calibrate", "--from", "pictures", "--count", "6", "-o", "six"]) == 0
    assert "note:" not in capsys.readouterr().err


def test_noise_alone_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "noise").mkdir()
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 256, (100, 100, 3), np.uint8)
        save_png(here / "noise" / f"{seed}.png", noise)
    assert run_app(["calibrate", "--from", "noise", "-o", "noise"]) == 1
    told = capsys.readouterr().err
    assert "No frame of noise can be used" in told
    assert "3 noise; random data is never used instead" in told
    assert not list((here / "calib").iterdir())


def test_a_video(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four scenes of three frames each: one frame of each scene."""
    with video_writer(here / "clip.mp4", 10.0) as append:
        for number in range(12):
            append(scene(number // 3))
    assert run_app(["calibrate", "--from", "clip.mp4", "-o", "clip"]) == 0
    assert "12 frames, 12 candidates; dropped: 8 duplicate" in capsys.readouterr().out
    made = load_calibration("clip")
    assert [frame.number for frame in made.recipe.frames] == [0, 3, 6, 9]
    for seed, frame in enumerate(made.frames()):
        assert np.abs(frame.mean(axis=(0, 1)) - scene(seed).mean(axis=(0, 1))).max() < 5
    assert run_app(["calibrate", "--from", "clip.mp4", "--frames", "2", "-o", "part"]) == 0
    assert [frame.number for frame in load_calibration("part").recipe.frames] == [0, 6]


class Camera(FrameSource):
    """Each scene twice, until it is asked once too often: then the user has had enough."""

    name = "a camera"
    live = True
    most = 99
    closed = False

    def __init__(self) -> None:
        self.given = 0

    def read(self, out: Frame | None = None) -> Frame:
        if self.given == self.most:
            raise KeyboardInterrupt
        self.given += 1
        frame = scene((self.given - 1) // 2)
        if out is None:
            return frame
        out[:] = frame
        return out

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[Camera]:
    opened = Camera()
    monkeypatch.setattr("mirrordepth_edge.commands.calibrate.open_source", lambda spec: opened)
    yield opened
    assert opened.closed


def test_a_cameras_frames_are_kept(camera: Camera, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["calibrate", "--from", "0", "--count", "3", "--frames", "10", "-o", "desk"]) == 0
    assert camera.given == 10
    assert "10 frames, 10 candidates; dropped: 5 duplicate" in capsys.readouterr().out
    made = load_calibration("desk")
    assert made.recipe.source == "desk"
    assert sorted(path.name for path in Path("calib/desk").iterdir()) == [frame.file for frame in made.recipe.frames]
    assert len(list(made.frames())) == 3
    # Its folder is another set's from now on.
    assert run_app(["calibrate", "--from", "0", "--count", "3", "-o", "desk"]) == 1
    assert "calib/desk already exists" in capsys.readouterr().err
    assert len(list(made.frames())) == 3


def test_ctrl_c_ends_the_taking(camera: Camera, capsys: pytest.CaptureFixture[str]) -> None:
    camera.most = 5
    assert run_app(["calibrate", "--from", "0", "-o", "desk"]) == 0
    assert "5 frames, 5 candidates; dropped: 2 duplicate" in capsys.readouterr().out
    assert load_calibration("desk").count == 3


def test_ctrl_c_before_the_first_frame_leaves_nothing(camera: Camera, here: Path) -> None:
    camera.most = 0
    assert run_app(["calibrate", "--from", "0", "-o", "desk"]) == 130
    assert not list((here / "calib").iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--from", "nowhere", "-o", "it"], 1, "There is no video at nowhere"),
        (["--from", "empty", "-o", "it"], 1, "No images found in empty"),
        (["--from", "empty", "-o", "it", "--model", "some.plan"], 2, "some.plan cannot compare frames"),
        (["--from", "empty", "-o", "it", "--model", "some.onnx"], 1, "There is no model at some.onnx"),
        (["--from", "empty", "-o", "it", "--count", "0"], 2, "--count"),
        (["--from", "empty", "-o", "photo"], 2, "photo.jpg would be overwritten"),
        (["--from", "empty", "-o", "photo.jpg/it"], 1, "Cannot write"),
        (["--from", "empty"], 2, "--output"),
    ],
)
def test_what_cannot_be(
    arguments: list[str], code: int, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty").mkdir()
    for folder in (here / "calib", here):
        folder.mkdir(exist_ok=True)
        (folder / "photo.jpg").write_bytes(b"a photograph")
    assert run_app(["calibrate", *arguments]) == code
    assert said in capsys.readouterr().err
    assert (here / "calib" / "photo.jpg").read_bytes() == b"a photograph"
    assert not list(here.rglob("*.toml"))
