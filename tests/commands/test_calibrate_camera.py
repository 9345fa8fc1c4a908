"""`mde calibrate-camera`, from pictures, videos and cameras to a file, on boards of a known camera."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.camera.chessboard import Board
from mirrordepth_edge.camera.model import read_camera
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands import calibrate_camera
from mirrordepth_edge.commands.terminal import errors
from mirrordepth_edge.imaging.preprocess import Frame

WIDTH, HEIGHT, FOCAL_PX, CENTRE_PX = 640, 480, 560.0, (331.0, 236.0)
MATRIX = np.array([[FOCAL_PX, 0, CENTRE_PX[0]], [0, FOCAL_PX, CENTRE_PX[1]], [0, 0, 1]])
BOARD = Board(columns=9, rows=6, square_m=0.025)
SQUARE_PX = 30


def board_at(x: float, y: float, z: float, turn_deg: tuple[float, float, float]) -> Frame:
    """The printed board through a lens without distortion: paper, corner by corner, to where it is projected."""
    picture = BOARD.image(round(SQUARE_PX / 0.025 * 0.0254))
    height, width = picture.shape[:2]
    paper = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    on_plane = np.zeros((4, 3))
    on_plane[:, :2] = (paper - (width / 2, height / 2)) / SQUARE_PX * 0.025
    turn = cv2.Rodrigues(np.radians(turn_deg))[0]
    seen = cv2.projectPoints(on_plane, turn, np.array([x, y, z]), MATRIX, np.zeros(4))[0].reshape(4, 2)
    # Pixels are counted from their middles.
    warp = cv2.getPerspectiveTransform((paper - 0.5).astype(np.float32), seen.astype(np.float32))
    drawn = cv2.warpPerspective(picture, warp, (WIDTH, HEIGHT), flags=cv2.INTER_AREA, borderValue=(110, 110, 110))
    return cv2.GaussianBlur(drawn, (0, 0), 0.7)


@pytest.fixture(scope="module")
def boards() -> list[Frame]:
    """All over the picture; two of three tilted, each another way."""
    frames = []
    for index, (column, row) in enumerate(np.ndindex(4, 3)):
        z = 0.48 + 0.04 * (index % 3)
        tilts = (0, 0), (32, 12 * (-1) ** column), (-10, 30 * (-1) ** row)
        x, y = (column - 1.5) * 0.075 * z / 0.5, (row - 1) * 0.07 * z / 0.5
        frames.append(board_at(x, y, z, (*tilts[(index + column) % 3], 4.0 * row)))
    return frames


@pytest.fixture(scope="module")
def folder(boards: list[Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("boards")
    for index, frame in enumerate(boards):
        cv2.imwrite(str(path / f"{index:02d}.png"), frame)
    (path / "notes.txt").write_text("not a picture")
    return path


def check(path: Path) -> None:
    camera = read_camera(path)
    assert (camera.width_px, camera.height_px) == (WIDTH, HEIGHT)
    assert (camera.fx_px, camera.fy_px) == pytest.approx((FOCAL_PX, FOCAL_PX), rel=0.005)


def test_a_folder_of_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "camera.yaml"
    assert run_app(["calibrate-camera", "--source", str(folder), "--square", "25mm", "-o", str(output)]) == 0
    check(output)
    told = capsys.readouterr()
    assert "12 different, 640x480 pixels" in told.out
    assert "59.5° horizontal, 46.4° vertical" in told.out  # 2 atan(320 / 560), 2 atan(240 / 560), give or take 0.1
    assert told.out.endswith(f"{output}: mde live --calibration {output}\n")
    assert "notes.txt" not in told.err
    assert "yellow" not in told.err
    assert [path.name for path in output.parent.iterdir()] == ["camera.yaml"]


def test_a_video_ends_when_it_is_enough(
    boards: list[Frame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "boards.avi", tmp_path / "camera.yml"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (WIDTH, HEIGHT))
    for frame in [each for board in boards for each in (board, board)] + [boards[0]]:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    assert run_app(["calibrate-camera", "--source", str(path), "--views", "10", "-o", str(output)]) == 0
    check(output)
    out = capsys.readouterr().out
    assert "frame 1: " in out, "the second of two equal frames holds still"
    assert "frame 0: " not in out


def test_what_is_not_good_enough_is_not_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, output = tmp_path / "few", tmp_path / "camera.yaml"
    few.mkdir()
    for index in (0, 4, 7, 11):
        shutil.copy(folder / f"{index:02d}.png", few)
    cv2.imwrite(str(few / "empty.png"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    command = ["calibrate-camera", "--source", str(few), "-o", str(output)]
    assert run_app(command) == 3
    told = capsys.readouterr()
    assert "no board found in empty.png" in told.err
    assert "only 4 different views; at least 8 are needed" in told.err
    assert "px RMS" in told.out, "figures come first"
    assert list(tmp_path.iterdir()) == [few]
    assert run_app([*command, "--anyway"]) == 0
    assert "note: only 4 different views; at least 8 are needed" in capsys.readouterr().err
    assert read_camera(output).width_px == WIDTH

    one = ["calibrate-camera", "--source", str(folder / "00.png"), "-o", str(tmp_path / "one.yaml"), "--anyway"]
    assert run_app(one) == 3
    assert "Too few different views of the board: 1" in capsys.readouterr().err


def test_no_board_at_all(boards: list[Frame], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blurred = tmp_path / "blurred"
    blurred.mkdir()
    cv2.imwrite(str(blurred / "a.png"), cv2.GaussianBlur(boards[0], (0, 0), 30))
    output = tmp_path / "camera.yaml"
    assert run_app(["calibrate-camera", "--source", str(blurred), "-o", str(output)]) == 1
    told = capsys.readouterr().err
    assert "No board with 9x6 inner corners was found" in told
    assert "one less than the squares" in told
    assert not output.exists()


def test_a_camera_that_shows_no_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate_camera, "TIMEOUT_S", 0.2)
    assert run_app(["calibrate-camera", "--source", "synthetic", "-o", str(tmp_path / "camera.yaml")]) == 1
    assert "was found in synthetic" in capsys.readouterr().err


def test_a_camera_says_when_a_view_is_kept(
    boards: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mirrordepth_edge.sources import open as sources

    class Camera(sources.FrameSource):
        name, live = "camera", True
        frames = iter([each for board in boards for each in (board, board)])

        def read(self, out: Frame | None = None) -> Frame | None:
            return next(self.frames, None)

    rung: list[int] = []
    asked: list[tuple[str, sources.CameraOptions]] = []
    monkeypatch.setattr(errors, "bell", lambda: rung.append(1))
    monkeypatch.setattr(
        calibrate_camera, "open_source", lambda spec, options: asked.append((spec, options)) or Camera()
    )
    output = tmp_path / "camera.yaml"
    assert run_app(["calibrate-camera", "--views", "10", "--size", "480x640", "-o", str(output)]) == 0
    check(output)
    assert len(rung) >= 10
    assert asked == [("0", sources.CameraOptions(size_hw=(480, 640)))]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--board", "9"], "is not valid"),
        (["--square", "25"], "is not a length"),
        (["--size", "480"], "is not a size"),
        (["-o", "camera.txt"], "wrong suffix for a calibration"),
        (["--print-board", "board.pdf"], "wrong suffix for a board to print"),
    ],
)
def test_what_makes_no_sense(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["calibrate-camera", "--source", "synthetic", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_board_to_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "board.png"
    assert run_app(["calibrate-camera", "--print-board", str(path), "--board", "7x5"]) == 0
    assert "200x160 mm" in capsys.readouterr().out, "10 by 8 squares of 20 mm"
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert picture.shape == (8 * 236, 10 * 236), "20 mm at 300 dots an inch are 236.2"
    middles = picture[118::236, 118::236]
    assert middles[:3, :4].tolist() == [[255] * 4, [255, 0, 255, 0], [255, 255, 0, 255]]
    assert list(tmp_path.iterdir()) == [path]
