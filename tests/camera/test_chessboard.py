"""Calibration against known cameras: ray-traced images, and corners from the pinhole equations."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.camera import calibration, chessboard
from mirrordepth_edge.camera.calibration import Calibration, calibrate
from mirrordepth_edge.camera.chessboard import Board, ViewPicker, find_corners
from mirrordepth_edge.camera.model import read_camera
from mirrordepth_edge.errors import GateError, InputError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame

Array = npt.NDArray[np.float64]
BOARD = Board(columns=9, rows=6, square_m=0.025)
MIDDLE = np.array([0.1, 0.0625, 0])
WIDTH, HEIGHT = 640, 480
FINE_PX = 32


@dataclass(frozen=True)
class Truth:
    """A camera, given by the equations of its model."""

    fx: float = 600.0
    fy: float = 603.0
    cx: float = 330.0
    cy: float = 235.0
    k: tuple[float, float, float, float, float] = (-0.25, 0.08, 0.001, -0.0008, 0.0)

    def distorted(self, u: Array, v: Array) -> tuple[Array, Array]:
        """Brown's model, as OpenCV's documentation has it."""
        k1, k2, p1, p2, k3 = self.k
        r2 = u * u + v * v
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        return (
            u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u),
            v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v,
        )

    def seen(self, points_m: Array, turn: Array, shift_m: Array) -> Array:
        """Points of the board's frame as pixels `[N, 2]`."""
        x, y, z = (points_m @ turn.T + shift_m).T
        u, v = self.distorted(x / z, y / z)
        return np.stack([self.fx * u + self.cx, self.fy * v + self.cy], axis=1)

    def rays(self) -> tuple[Array, Array]:
        """Slopes of the rays through the pixels' middles: distortion undone by iteration."""
        wanted = np.meshgrid((np.arange(WIDTH) - self.cx) / self.fx, (np.arange(HEIGHT) - self.cy) / self.fy)
        u, v = (slope.copy() for slope in wanted)
        for _ in range(15):
            got = self.distorted(u, v)
            u, v = u + wanted[0] - got[0], v + wanted[1] - got[1]
        return u, v


def drawn(rays: tuple[Array, Array], turn: Array, shift_m: Array) -> Frame:
    """Draw the board on grey by following each pixel's ray to its plane."""
    u, v = rays
    down = np.linalg.inv(np.column_stack([turn[:, 0], turn[:, 1], shift_m]))  # from rays to the plane's coordinates
    x, y, scale = (down[row, 0] * u + down[row, 1] * v + down[row, 2] for row in range(3))
    squares = np.full((BOARD.rows + 3, BOARD.columns + 3), 225, np.uint8)
    squares[1:-1, 1:-1] -= 200 * (np.indices((BOARD.rows + 1, BOARD.columns + 1)).sum(0) % 2 == 0).astype(np.uint8)
    paper = cv2.GaussianBlur(squares.repeat(FINE_PX, 0).repeat(FINE_PX, 1), (0, 0), 0.8)
    at = [((metres / scale / BOARD.square_m + 2) * FINE_PX - 0.5).astype(np.float32) for metres in (x, y)]
    grey = cv2.remap(paper, at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=[110])
    return np.repeat(grey[..., None], 3, axis=2)


def poses(count: int, seed: int = 2, tilt_deg: float = 40) -> Iterator[tuple[Array, Array]]:
    """Rotations and translations of boards all over the image, tilted by up to `tilt_deg` in any direction."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        about, tilt = rng.uniform(0, 2 * np.pi), np.radians(tilt_deg) * math.sqrt(rng.uniform())
        roll = cv2.Rodrigues(np.array([0, 0, rng.uniform(-0.3, 0.3)]))[0]
        turn = cv2.Rodrigues(tilt * np.array([np.cos(about), np.sin(about), 0]))[0] @ roll
        z = rng.uniform(0.35, 0.6)
        across, down = ((index % 3) - 1) / 3, ((index // 3 % 3) - 1) / 3
        middle = np.array([0.7 * across * z * WIDTH / 600, 0.7 * down * z * HEIGHT / 600, z])
        yield turn, middle - turn @ MIDDLE


def picked(
    truth: Truth,
    views: Iterator[tuple[Array, Array]],
    monkeypatch: pytest.MonkeyPatch,
    noise_px: float = 0.0,
    noises: dict[int, float] | None = None,
    moving: bool = False,
) -> ViewPicker:
    """A picker that was shown corners as the formulas have them, with random errors."""
    rng = np.random.default_rng(1)
    picker = ViewPicker(BOARD, moving=moving)
    for index, (turn, shift_m) in enumerate(views):
        corners = truth.seen(BOARD.points_m.astype(np.float64), turn, shift_m)
        corners += rng.normal(0, (noises or {}).get(index, noise_px) or 1e-9, corners.shape)
        show(picker, corners, monkeypatch, str(index))
    return picker


def show(
    picker: ViewPicker, corners: Array | None, monkeypatch: pytest.MonkeyPatch, name: str = "a", times: int = 1
) -> bool:
    result = None if corners is None else corners.astype(np.float32)
    monkeypatch.setattr(chessboard, "find_corners", lambda frame, board, thorough: result)
    kept = [picker.look(name, np.zeros((HEIGHT, WIDTH, 3), np.uint8)) for _ in range(times)]
    return any(kept)


@pytest.fixture(scope="module")
def from_images() -> tuple[Truth, ViewPicker, Calibration]:
    truth = Truth()
    rays, picker = truth.rays(), ViewPicker(BOARD)
    for index, (turn, shift_m) in enumerate(poses(13)):
        picker.look(f"{index}.png", drawn(rays, turn, shift_m))
    return truth, picker, calibrate(picker)


def test_a_camera_is_recovered_from_images(from_images: tuple[Truth, ViewPicker, Calibration]) -> None:
    truth, picker, result = from_images
    assert picker.seen >= 12
    assert len(result.views) == len(picker.views) >= 10
    assert result.camera.fx_px == pytest.approx(truth.fx, rel=0.003)
    assert result.camera.fy_px == pytest.approx(truth.fy, rel=0.003)
    assert (result.camera.width_px, result.camera.height_px) == (WIDTH, HEIGHT)
    assert result.camera.fov_deg == pytest.approx(math.degrees(2 * math.atan(320 / 600)), abs=0.2)
    np.testing.assert_allclose((result.camera.cx_px, result.camera.cy_px), (truth.cx, truth.cy), atol=1.5)
    # Coefficients compensate for each other; what counts is where pixels are mapped.
    u, v = np.meshgrid(np.linspace(-0.4, 0.4, 9), np.linspace(-0.3, 0.3, 9))
    wanted, got = truth.distorted(u, v), replace(truth, k=result.distortion).distorted(u, v)
    assert 600 * np.hypot(wanted[0] - got[0], wanted[1] - got[1]).max() < 1.0
    assert result.rms_px < 0.15
    assert result.warnings == []
    assert result.distortion[4] == 0, "k3 is not needed"
    tilts = [math.degrees(math.acos(abs(turn[2, 2]))) for turn, _ in poses(13)]
    for view in result.views:
        assert view.tilt_deg == pytest.approx(tilts[int(view.name.split(".")[0])], abs=1)
        assert view.rms_px < 0.3
        assert 0.3 < view.distance_m < 0.75


def test_corners_are_found_where_they_are() -> None:
    truth, (turn, shift_m) = Truth(), next(poses(1))
    frame = drawn(truth.rays(), turn, shift_m)
    corners = find_corners(frame, BOARD)
    assert corners is not None
    assert (corners.shape, corners.dtype) == ((54, 2), np.float32)
    wanted = truth.seen(BOARD.points_m.astype(np.float64), turn, shift_m)
    assert chessboard.distance(corners, wanted.astype(np.float32)) < 0.1
    quick = find_corners(frame, BOARD, thorough=False)
    assert quick is not None
    assert chessboard.distance(corners, quick) == 0


def test_large_images_are_searched_reduced_and_refined_at_full_size() -> None:
    board = Board(columns=7, rows=5, square_m=0.0254)
    corners = find_corners(board.image(300), board)
    assert corners is not None
    # A margin and the first square; corners lie between pixels.
    x, y = np.meshgrid(600 + 300 * np.arange(7) - 0.5, 600 + 300 * np.arange(5) - 0.5)
    wanted = np.stack([x, y], -1).reshape(-1, 2).astype(np.float32)
    assert chessboard.distance(corners, wanted) < 0.05, "of 3000 pixels"


def test_the_second_finder_is_used_if_the_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, (turn, shift_m) = Truth(), next(poses(1))
    frame = drawn(truth.rays(), turn, shift_m)
    monkeypatch.setattr(cv2, "findChessboardCorners", lambda *_, **__: (False, None))
    corners = find_corners(frame, BOARD)
    assert corners is not None
    wanted = truth.seen(BOARD.points_m.astype(np.float64), turn, shift_m)
    assert chessboard.distance(corners, wanted.astype(np.float32)) < 0.1
    assert find_corners(frame, BOARD, thorough=False) is None


def test_without_a_board_there_are_no_corners() -> None:
    turn, shift_m = next(poses(1))
    frame = drawn(Truth().rays(), turn, shift_m)
    assert find_corners(np.full((120, 160, 3), 90, np.uint8), BOARD) is None
    assert find_corners(cv2.GaussianBlur(frame, (0, 0), 30), BOARD) is None
    assert find_corners(frame, replace(BOARD, columns=11)) is None, "another board"


def test_the_residual_matches_the_corner_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """sqrt(2) sigma, corrected for the 8 camera parameters and 6 parameters of each view."""
    sigma_px, views = 0.3, 18
    result = calibrate(picked(Truth(), poses(views), monkeypatch, sigma_px))
    assert len(result.views) == views
    free = 1 - (8 + 6 * views) / (2 * 54 * views)
    assert result.rms_px == pytest.approx(math.sqrt(2 * free) * sigma_px, rel=0.06)
    assert np.sqrt(np.mean([view.rms_px**2 for view in result.views])) == pytest.approx(result.rms_px, rel=1e-6)


def test_exact_corners_give_the_exact_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    result = calibrate(picked(Truth(), poses(12), monkeypatch))
    truth = Truth()
    # Corners are float32: about 3e-5 px.
    assert result.camera.fx_px == pytest.approx(truth.fx, rel=1e-5)
    assert result.camera.fy_px == pytest.approx(truth.fy, rel=1e-5)
    np.testing.assert_allclose((result.camera.cx_px, result.camera.cy_px), (truth.cx, truth.cy), atol=0.01)
    np.testing.assert_allclose(result.distortion, truth.k, atol=1e-3)


def test_the_focal_length_deviation_agrees_with_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tilted boards, OpenCV's own estimate is correct."""
    picker = picked(Truth(), poses(9), monkeypatch, 0.3)
    deviations = cv2.calibrateCameraExtended(
        [BOARD.points_m] * 9,
        [view.corners_px for view in picker.views],
        (WIDTH, HEIGHT),
        np.zeros((3, 3)),
        np.zeros(5),
        flags=cv2.CALIB_FIX_K3,
    )[5]
    assert calibrate(picker).focal_std_px == pytest.approx(tuple(deviations.ravel()[:2]), rel=0.01)


def test_a_third_radial_term_is_used_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    strong = Truth(fx=300, fy=300, cx=322, cy=238, k=(-0.35, 0.25, 0.0, 0.0, -0.09))
    near = [(turn, np.array([shift[0] * 1.7, shift[1] * 1.7, shift[2] * 0.75])) for turn, shift in poses(10)]
    result = calibrate(picked(strong, iter(near), monkeypatch, 0.02))
    plain = calibration._fit(  # what k1 and k2 alone can do
        picked(strong, iter(near), monkeypatch, 0.02).views, BOARD, (HEIGHT, WIDTH), cv2.CALIB_FIX_K3
    )
    assert plain[0] > calibration.K3_MIN_RMS_PX
    assert result.rms_px == pytest.approx(math.sqrt(2) * 0.02, rel=0.2)
    assert result.distortion[4] == pytest.approx(-0.09, rel=0.1)


def test_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    few = calibrate(picked(Truth(), poses(5), monkeypatch, 0.1))
    assert any("only 5 different views; at least 8 are needed" in text for text in few.warnings)

    flat = calibrate(picked(Truth(), poses(9, tilt_deg=1), monkeypatch, 0.3))
    assert [text for text in flat.warnings if "focal length is uncertain by" in text], flat.focal_std_px

    blurred = calibrate(picked(Truth(), poses(18), monkeypatch, 0.2, {4: 9.0}))
    (warning,) = (text for text in blurred.warnings if "reprojection error is" in text)
    assert "(4: " in warning, "the worst view is named"

    corner = [(turn, shift_m * [1, 1, 0] + [0.0, 0.0, 1.4]) for turn, shift_m in poses(18)]
    cornered = calibrate(picked(Truth(), iter(corner), monkeypatch))
    (warning,) = (text for text in cornered.warnings if "of the image" in text)
    assert "at least 40 % is needed" in warning


def test_too_few_views_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, 2):
        with pytest.raises(GateError, match=f"Too few different views of the board: {count}"):
            calibrate(picked(Truth(), poses(count), monkeypatch))


def test_a_failed_fit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    picker = picked(Truth(), poses(4), monkeypatch)
    nothing = np.full((54, 2), np.nan, np.float32)
    picker.views = [replace(view, corners_px=nothing) for view in picker.views]
    with pytest.raises(GateError, match="No camera fits these 4 views"):
        calibrate(picker)


def flat_board(left: float, top: float, width: float = 160) -> Array:
    """Corners of a board parallel to the image."""
    return np.stack(np.meshgrid(left + np.linspace(0, width, 9), top + np.linspace(0, width * 5 / 8, 6)), -1).reshape(
        -1, 2
    )


def test_different_views_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    picker = ViewPicker(BOARD)
    assert picker.hint == "show the whole board"
    assert not show(picker, None, monkeypatch)
    assert show(picker, flat_board(100, 100), monkeypatch)
    # 4 % of the diagonal of 800 pixels are 32.
    assert not show(picker, flat_board(100, 100)[::-1], monkeypatch), "rotated by 180 degrees"
    assert not show(picker, flat_board(130, 100), monkeypatch)
    assert show(picker, flat_board(134, 100), monkeypatch)
    turn, at = cv2.Rodrigues(np.array([0, np.radians(25), 0]))[0], np.array([0, 0, 0.6])
    facing, tilted = (
        Truth().seen(BOARD.points_m.astype(np.float64), rotation, at - rotation @ MIDDLE)
        for rotation in (np.eye(3), turn)
    )
    assert chessboard.distance(facing.astype(np.float32), tilted.astype(np.float32)) < 32
    assert show(picker, facing, monkeypatch)
    assert show(picker, tilted, monkeypatch), "tilted in the same place"
    assert picker.seen == 6
    assert picker.views[-1].tilt_deg == pytest.approx(25, abs=3)


def test_a_moving_board_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    picker = ViewPicker(BOARD, moving=True)
    assert not show(picker, flat_board(100, 100), monkeypatch), "there is no earlier frame"
    assert picker.hint == "hold the board still"
    assert not show(picker, flat_board(105, 100), monkeypatch), "5 px from frame to frame"
    assert show(picker, flat_board(108, 100), monkeypatch)
    assert not show(picker, None, monkeypatch)
    assert not show(picker, flat_board(300, 100), monkeypatch)
    assert show(picker, flat_board(300, 100), monkeypatch)


def test_hints_ask_for_missing_views(monkeypatch: pytest.MonkeyPatch) -> None:
    picker = ViewPicker(BOARD, wanted=9, moving=True)
    for left in range(6):
        show(picker, flat_board(20 + 40 * left, 20), monkeypatch, times=2)
    assert len(picker.views) == 6
    assert picker.hint == "tilt the board more"
    assert not show(picker, flat_board(40, 50), monkeypatch, times=2), "three views are reserved for tilted boards"
    turn = cv2.Rodrigues(np.array([np.radians(35), 0, 0]))[0]
    for x in (-0.2, -0.1, 0.0):
        tilted = Truth().seen(BOARD.points_m.astype(np.float64), turn, np.array([x, -0.2, 0.7]) - turn @ MIDDLE)
        assert show(picker, tilted, monkeypatch, times=2)
    assert picker.hint == "show the board in the upper right", "the first uncovered ninth"
    assert show(picker, flat_board(20, 200, 400), monkeypatch, times=2), "more than nine, to cover the image"
    assert not show(picker, flat_board(60, 200, 380), monkeypatch, times=2), "nothing new"
    assert show(picker, flat_board(300, 200, 330), monkeypatch, times=2)
    assert picker.hint is None


def test_coverage_is_the_share_inside_the_corners(monkeypatch: pytest.MonkeyPatch) -> None:
    picker = ViewPicker(BOARD)
    show(picker, flat_board(0, 0, 320), monkeypatch)
    assert picker.coverage == pytest.approx(320 * 200 / (640 * 480), abs=0.02)
    show(picker, flat_board(320, 240, 319), monkeypatch)
    assert picker.coverage == pytest.approx(2 * 320 * 200 / (640 * 480), abs=0.03)


def test_images_of_another_size_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    picker = ViewPicker(BOARD)
    show(picker, None, monkeypatch)
    with pytest.raises(InputError, match=r"turned\.jpg is 480x640, but earlier images are 640x480"):
        picker.look("turned.jpg", np.zeros((640, 480, 3), np.uint8))


def test_a_saved_calibration_can_be_read(from_images: tuple[Truth, ViewPicker, Calibration], tmp_path: Path) -> None:
    result, path = from_images[2], tmp_path / "my camera.yaml"
    result.save(path)
    assert read_camera(path) == replace(result.camera, principal_point_px=None)
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_calibration_is_ros_yaml(from_images: tuple[Truth, ViewPicker, Calibration], tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    result, path = from_images[2], tmp_path / "my-camera.yaml"
    result.save(path)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (data["image_width"], data["image_height"], data["camera_name"]) == (WIDTH, HEIGHT, "my_camera")
    shapes = {"camera_matrix": (3, 3), "distortion_coefficients": (1, 5)}
    shapes |= {"rectification_matrix": (3, 3), "projection_matrix": (3, 4)}
    matrices = {}
    for name, shape in shapes.items():
        assert (data[name]["rows"], data[name]["cols"]) == shape
        matrices[name] = np.reshape(data[name]["data"], shape)
    camera = result.camera
    cx, cy = camera.cx_px, camera.cy_px
    assert matrices["camera_matrix"].tolist() == [[camera.fx_px, 0, cx], [0, camera.fy_px, cy], [0, 0, 1]]
    assert matrices["projection_matrix"][:, :3].tolist() == matrices["camera_matrix"].tolist()
    assert matrices["distortion_coefficients"].ravel().tolist() == list(result.distortion)
    assert data["distortion_model"] == "plumb_bob"


def test_the_printed_lines(from_images: tuple[Truth, ViewPicker, Calibration]) -> None:
    result = from_images[2]
    text = "\n".join(result.lines)
    down_deg = cv2.calibrationMatrixValues(
        np.array([[result.camera.fx_px, 0, 319.5], [0, result.camera.fy_px, 239.5], [0, 0, 1]]), (640, 480), 1.0, 1.0
    )[1]
    assert f"{result.camera.fov_deg:.1f}° horizontal, {down_deg:.1f}° vertical" in text
    assert f"fx {result.camera.fx_px:.2f} ± {result.focal_std_px[0]:.2f} px" in text
    assert text.count(" px, tilted ") == len(result.views)


def test_a_printed_board_is_found(tmp_path: Path) -> None:
    board = Board(columns=7, rows=5, square_m=0.0254)
    path = tmp_path / "board.png"
    width_mm, height_mm = board.save_image(path, 50)
    assert (width_mm, height_mm) == pytest.approx((10 * 25.4, 8 * 25.4), rel=1e-3)
    content = path.read_bytes()
    at = content.index(b"pHYs")
    across, down, unit = struct.unpack(">IIB", content[at + 4 : at + 13])
    assert (across, down, unit) == (1969, 1969, 1), "50 dots an inch are 1968.5 a metre"
    assert struct.unpack(">I", content[at + 13 : at + 17]) == (zlib.crc32(content[at : at + 13]),)
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert np.array_equal(image, board.image(50))
    assert find_corners(image, board) is not None
    with pytest.raises(OptionError, match="wrong suffix for a board to print"):
        board.save_image(tmp_path / "board.pdf", 50)


@pytest.mark.parametrize("text", ["", "9", "9x", "x6", "9x6x2", "9 by 6", "-9x6", "9.5x6", "2x6", "9x2"])
def test_invalid_boards_are_rejected(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Board.parse(text, 0.02)
    assert "--board 9x6" in caught.value.cure


def test_boards_are_counted_in_corners() -> None:
    assert Board.parse(" 9X6 ", 0.025) == BOARD
    assert str(BOARD) == "9x6"
    assert BOARD.points_m[[0, 1, 8, 9, 53]] == pytest.approx(
        np.array([[0, 0, 0], [0.025, 0, 0], [0.2, 0, 0], [0, 0.025, 0], [0.2, 0.125, 0]])
    )
    for square_m in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(OptionError, match="cannot be used"):
            replace(BOARD, square_m=square_m)
