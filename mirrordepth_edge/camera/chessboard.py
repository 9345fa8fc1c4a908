"""A camera's focal length, centre and distortion, from pictures of a chessboard.

The method is Zhang's (A flexible new technique for camera calibration, PAMI 22(11), 2000) as OpenCV has it, with the
radial terms k1 and k2 and the tangential p1 and p2. What decides about its worth is the views: a board that always lies
parallel to the picture says nothing of the focal length, and where no board was, distortion is a guess. So views are
chosen for that, and a calibration says how sure it is.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.errors import GateError, InputError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import atomic_write, require_suffix

Corners = npt.NDArray[np.float32]
"""float32 `[columns * rows, 2]`, pixels (x, y), row by row."""

INCH_M = 0.0254
SEARCH_PX = 960
"""Longer side of the picture in which the board is searched; corners are refined in the picture itself."""
DIFFERENT_SHARE = 0.04
"""Root mean square distance between two views' corners, over the picture's diagonal, from which on they differ."""
DIFFERENT_DEG = 10.0
"""Or the angle between their boards."""
STEADY_SHARE = 0.005
"""How far corners may have moved since the frame before, over the diagonal: rolling shutters bend what moves."""
TILTED_DEG = 20.0
COVER_MORE = 0.02
"""Share of the picture that a view must add to count for it."""
ENOUGH_COVERAGE = 0.6
GRID_HW = (48, 64)
PLACES = ("upper", "middle", "lower"), ("left", "middle", "right")

LEAST_TO_FIT = 3
LEAST_VIEWS = 8
LEAST_COVERAGE = 0.4
MOST_RMS_PX = 1.5
MOST_FOCAL_STD = 0.01
"""Standard deviation of the focal length, over itself; metres err by as much."""
FIT_UNTIL = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 200, 1e-10)
"""OpenCV's own 30 steps end short of the best fit where boards are little tilted."""
K3_ASKED_PX = 0.5
"""Residual from which on a third radial term is tried."""
K3_GAIN = 0.9
"""And what it has to bring the residual down to."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """A chessboard, counted in inner corners, where four squares meet.

    Raises:
        OptionError: there is no such board.
    """

    columns: int
    rows: int
    square_m: float
    """Side of a square. Focal length and distortion do not depend on it, distances do."""

    def __post_init__(self) -> None:
        if min(self.columns, self.rows) < 3 or not (math.isfinite(self.square_m) and self.square_m > 0):
            raise OptionError(
                f"A board of {self} corners with squares of {1e3 * self.square_m:g} mm cannot be used.",
                "It takes at least 3 inner corners each way: squares less one.",
                "--board 9x6 for a board of 10 by 7 squares",
            )

    @classmethod
    def parse(cls, text: str, square_m: float) -> Board:
        """`9x6` inner corners.

        Raises:
            OptionError: it is no board.
        """
        found = re.fullmatch(r"(\d{1,3})[xX×](\d{1,3})", text.strip())
        if found is None:
            raise OptionError(
                f"--board {text!r} is no board.",
                "A board is COLUMNSxROWS, counted in inner corners, where four squares meet.",
                "--board 9x6 for a board of 10 by 7 squares",
            )
        return cls(columns=int(found[1]), rows=int(found[2]), square_m=square_m)

    @property
    def points_m(self) -> npt.NDArray[np.float32]:
        """Inner corners in the board's plane, float32 `[columns * rows, 3]`, row by row."""
        points = np.zeros((self.rows * self.columns, 3), np.float32)
        points[:, :2] = np.indices((self.columns, self.rows)).T.reshape(-1, 2) * self.square_m
        return points

    def picture(self, dpi: int) -> Frame:
        """The board to print or to show, with a margin of one square, which finders need.

        Returns:
            uint8 RGB `[(rows + 3) * s, (columns + 3) * s, 3]`, s pixels a square.
        """
        square_px = max(1, round(self.square_m / INCH_M * dpi))
        squares = np.full((self.rows + 3, self.columns + 3), 255, np.uint8)
        row, column = np.indices((self.rows + 1, self.columns + 1))
        squares[1:-1, 1:-1] = (row + column) % 2 * 255
        grey = squares.repeat(square_px, axis=0).repeat(square_px, axis=1)
        return np.repeat(grey[:, :, None], 3, axis=2)

    def save_picture(self, path: Path, dpi: int) -> tuple[float, float]:
        """Write `picture` as a PNG, whole, that says how large it wants to be printed.

        Returns:
            Width and height on paper, in millimetres.

        Raises:
            OptionError: the name does not end in .png.
            InputError: the file cannot be written.
        """
        require_suffix(path, (".png",), "a board to print", "--print-board")
        picture = self.picture(dpi)
        png = cv2.imencode(".png", picture[:, :, 0])[1].tobytes()
        # PNG (third edition), 11.3.4.3: pHYs holds pixels a metre, and comes after the header of 33 bytes.
        per_metre = round(dpi / INCH_M)
        chunk = b"pHYs" + struct.pack(">IIB", per_metre, per_metre, 1)
        with atomic_write(path) as temporary:
            temporary.write_bytes(
                png[:33] + struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
            )
        height, width = picture.shape[:2]
        return 1e3 * width / per_metre, 1e3 * height / per_metre

    def __str__(self) -> str:
        return f"{self.columns}x{self.rows}"


@dataclass(frozen=True, kw_only=True)
class View:
    """A picture in which the board was found."""

    name: str
    corners_px: Corners
    normal: npt.NDArray[np.float64]
    """Of the board, float64 `[3]`, roughly: as a lens of 53 degrees would see it."""

    @property
    def tilt_deg(self) -> float:
        """Between the board and the picture's plane."""
        return math.degrees(math.acos(min(1.0, abs(float(self.normal[2])))))


def find_corners(frame: Frame, board: Board, *, thorough: bool = True) -> Corners | None:
    """The board's inner corners to a fraction of a pixel, None where not all of them are seen.

    OpenCV's older finder goes first: it takes a hundredth of the sector-based one's time, which finds boards in bad
    light that the older one misses. Both are followed by `cornerSubPix`, which is more exact than either.

    Args:
        frame: uint8 RGB `[H, W, 3]`.
        thorough: search with both, which takes up to seconds where there is no board.
    """
    grey: Any = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    size, shrink = (board.columns, board.rows), max(1.0, max(grey.shape) / SEARCH_PX)
    small = grey if shrink == 1 else cv2.resize(grey, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE | cv2.CALIB_CB_FAST_CHECK
    found, corners = cv2.findChessboardCorners(small, size, flags=flags)
    if not found and thorough:
        found, corners = cv2.findChessboardCornersSB(small, size, flags=cv2.CALIB_CB_NORMALIZE_IMAGE)
    if not found:
        return None
    # OpenCV 4 gives [N, 1, 2], OpenCV 5 [N, 2]. Pixels are counted from their middles.
    coarse = (corners.reshape(-1, 1, 2).astype(np.float32) + 0.5) * np.float32(shrink) - np.float32(0.5)
    grid = coarse.reshape(board.rows, board.columns, 2)
    step_px = min(float(np.linalg.norm(np.diff(grid, axis=axis), axis=2).min()) for axis in (0, 1))
    window_px = max(2, min(round(0.4 * step_px), round(5 + 3 * shrink)))  # no other corner in sight
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 40, 1e-3)
    exact: Any = cv2.cornerSubPix(grey, coarse, (window_px, window_px), (-1, -1), criteria)
    return exact.reshape(-1, 2)  # type: ignore[no-any-return]


class ViewPicker:
    """Chooses views of a board that tell a calibration something new.

    Args:
        wanted: views that are enough, if they cover the picture and a third of them is tilted.
        moving: frames come from a camera or a video: there are plenty, so views must hold still, and those that bring
            nothing new are passed over. Pictures were chosen by someone: all of them count that differ.
    """

    def __init__(self, board: Board, wanted: int = 15, *, moving: bool = False) -> None:
        self.board = board
        self.wanted = max(wanted, LEAST_TO_FIT)
        self.moving = moving
        self.size_hw: SizeHW | None = None
        self.views: list[View] = []
        self.seen = 0
        """Frames with the board so far."""
        self._covered = np.zeros(GRID_HW, np.uint8)
        self._before: Corners | None = None

    def look(self, name: str, frame: Frame) -> bool:
        """Search the board in a frame; True if the view is kept.

        Args:
            frame: uint8 RGB `[H, W, 3]`.

        Raises:
            InputError: the frame is not as large as those before.
        """
        size_hw = (frame.shape[0], frame.shape[1])
        if self.size_hw is not None and size_hw != self.size_hw:
            raise InputError(
                f"{name} has {size_hw[1]}x{size_hw[0]} pixels, those before {self.size_hw[1]}x{self.size_hw[0]}.",
                "A calibration is of one camera in one mode.",
                "Keep pictures of one size only, none of them turned.",
            )
        self.size_hw = size_hw
        corners = find_corners(frame, self.board, thorough=not self.moving)
        before, self._before = self._before, corners
        if corners is None:
            return False
        self.seen += 1
        if self.moving and (before is None or distance(corners, before) > STEADY_SHARE * math.hypot(*size_hw)):
            return False
        view = View(name=name, corners_px=corners, normal=_normal(corners, self.board, size_hw))
        if not self._differs(view) or not self._helps(view):
            return False
        self.views.append(view)
        self._covered |= self._cover(view)
        return True

    @property
    def coverage(self) -> float:
        """Share of the picture that lay within the board's corners in any view."""
        return float(self._covered.mean())

    @property
    def wish(self) -> str | None:
        """What whoever holds the board should do next; None when the views are enough."""
        if not self.views:
            return "show the whole board" if not self.seen else "hold the board still"
        if self._tilts_missing > 0:
            return "tilt the board more"
        if self.coverage < ENOUGH_COVERAGE:
            return f"show the board in the {self._emptiest()}"
        return "show the board elsewhere" if len(self.views) < self.wanted else None

    @property
    def _tilts_missing(self) -> int:
        return math.ceil(self.wanted / 3) - sum(view.tilt_deg >= TILTED_DEG for view in self.views)

    def _differs(self, view: View) -> bool:
        assert self.size_hw is not None
        least_px, most_cos = DIFFERENT_SHARE * math.hypot(*self.size_hw), math.cos(math.radians(DIFFERENT_DEG))
        return all(
            distance(view.corners_px, other.corners_px) > least_px or abs(view.normal @ other.normal) < most_cos
            for other in self.views
        )

    def _helps(self, view: View) -> bool:
        """Whether there is room for it: places are kept for tilted views, and made for new parts of the picture."""
        if not self.moving or len(self.views) < self.wanted - max(0, self._tilts_missing):
            return True
        if self._tilts_missing > 0 and view.tilt_deg >= TILTED_DEG:
            return True
        more = float((self._cover(view) & ~self._covered & 1).mean())
        return self.coverage < ENOUGH_COVERAGE and more >= COVER_MORE

    def _cover(self, view: View) -> npt.NDArray[np.uint8]:
        """1 within the corners' hull, uint8 `GRID_HW`."""
        assert self.size_hw is not None
        (height, width), (rows, columns) = self.size_hw, GRID_HW
        hull: Any = cv2.convexHull(view.corners_px * np.array([columns / width, rows / height], np.float32))
        mask: Any = cv2.fillConvexPoly(np.zeros(GRID_HW, np.uint8), hull.round().astype(np.int32), [1])
        return mask  # type: ignore[no-any-return]

    def _emptiest(self) -> str:
        """The ninth of the picture of which least was seen, in words."""
        rows, columns = GRID_HW
        thirds = self._covered.reshape(3, rows // 3, columns)
        shares = [[float(part.mean()) for part in np.array_split(third, 3, axis=1)] for third in thirds]
        row, column = divmod(int(np.argmin(shares)), 3)
        return " ".join(dict.fromkeys((PLACES[0][row], PLACES[1][column])))


@dataclass(frozen=True, kw_only=True)
class ViewFit:
    """How a view fits into its calibration."""

    name: str
    rms_px: float
    tilt_deg: float
    distance_m: float
    """From the camera to the board's first corner."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A camera as its pictures of a board tell it."""

    camera: Camera
    centre_px: tuple[float, float]
    """Principal point (cx, cy), counted from the middle of the first pixel."""
    distortion: tuple[float, float, float, float, float]
    """k1, k2, p1, p2, k3 of the plumb-bob model; k3 is 0 unless the residual asked for it."""
    focal_std_px: tuple[float, float]
    """Standard deviations of fx and fy, as far as corners err at random; infinite where views do not tell them."""
    rms_px: float
    """Root mean square distance of corners from where the calibration puts them, over all views."""
    views: tuple[ViewFit, ...]
    coverage: float
    """Share of the picture that lay within the board's corners."""

    @property
    def doubts(self) -> list[str]:
        """What speaks against it, in words; nothing, if it may be used."""
        worst = max(self.views, key=lambda view: view.rms_px)
        uncertainty = max(
            std / focal for std, focal in zip(self.focal_std_px, (self.camera.fx_px, self.camera.fy_px), strict=True)
        )
        return [
            text
            for doubtful, text in (
                (len(self.views) < LEAST_VIEWS, f"views that differ: {len(self.views)}, and it takes {LEAST_VIEWS}"),
                (
                    self.rms_px > MOST_RMS_PX,
                    f"corners lie {self.rms_px:.2f} px from where they should, and {MOST_RMS_PX:g} is the most "
                    f"({worst.name}: {worst.rms_px:.2f} px)",
                ),
                (
                    self.coverage < LEAST_COVERAGE,
                    f"the board was seen in {100 * self.coverage:.0f} % of the picture, and "
                    f"{100 * LEAST_COVERAGE:.0f} % is the least",
                ),
                (
                    uncertainty > MOST_FOCAL_STD,
                    f"the focal length is known to {100 * uncertainty:.1f} % only; tilt the board by 20 to 45 degrees",
                ),
            )
            if doubtful
        ]

    @property
    def lines(self) -> list[str]:
        """All of it in words."""
        camera, (std_x_px, std_y_px) = self.camera, self.focal_std_px
        down_deg = math.degrees(2 * math.atan(camera.height_px / 2 / camera.fy_px))
        return [
            *(
                f"{view.name}: {view.rms_px:.2f} px, tilted {view.tilt_deg:.0f}°, {view.distance_m:.2f} m away"
                for view in self.views
            ),
            f"views       {len(self.views)} that differ, of {camera.width_px}x{camera.height_px} pixels",
            f"residual    {self.rms_px:.3f} px RMS",
            f"coverage    {100 * self.coverage:.0f} % of the picture",
            f"focal       fx {camera.fx_px:.2f} ± {std_x_px:.2f} px, fy {camera.fy_px:.2f} ± {std_y_px:.2f} px",
            f"sees        {camera.fov_deg:.1f}° across, {down_deg:.1f}° down",
            "centre      cx {:.2f} px, cy {:.2f} px".format(*self.centre_px),
            "distortion  k1 {:.4f}, k2 {:.4f}, p1 {:.5f}, p2 {:.5f}, k3 {:.4f}".format(*self.distortion),
        ]

    def save(self, path: Path) -> None:
        """Write ROS's camera_info YAML, which `camera.read_camera` reads, whole."""
        (cx, cy), camera = self.centre_px, self.camera
        matrix = (camera.fx_px, 0.0, cx, 0.0, camera.fy_px, cy, 0.0, 0.0, 1.0)
        projection = (camera.fx_px, 0.0, cx, 0.0, 0.0, camera.fy_px, cy, 0.0, 0.0, 0.0, 1.0, 0.0)
        name = re.sub(r"\W", "_", path.stem, flags=re.ASCII)
        lines = [
            f"# {len(self.views)} views of a chessboard, {self.rms_px:.3f} px RMS, "
            f"{100 * self.coverage:.0f} % of the picture covered",
            f"image_width: {camera.width_px}",
            f"image_height: {camera.height_px}",
            f'camera_name: "{name}"',
            *_yaml_matrix("camera_matrix", 3, 3, matrix),
            "distortion_model: plumb_bob",
            *_yaml_matrix("distortion_coefficients", 1, 5, self.distortion),
            *_yaml_matrix("rectification_matrix", 3, 3, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)),
            *_yaml_matrix("projection_matrix", 3, 4, projection),
        ]
        with atomic_write(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def calibrate(picker: ViewPicker) -> Calibration:
    """The camera that fits a picker's views best.

    Raises:
        GateError: there are too few views for any, or none fits.
    """
    views, board = picker.views, picker.board
    if len(views) < LEAST_TO_FIT or picker.size_hw is None:
        raise GateError(
            f"Views of the board that differ: {len(views)}, too few.",
            f"Frames that showed it: {picker.seen}. It takes {LEAST_VIEWS} from different places and angles.",
            "Show the board near and far, in every corner of the picture, and tilted by 20 to 45 degrees.",
        )
    fit = _fit(views, board, picker.size_hw, cv2.CALIB_FIX_K3)
    if fit[0] > K3_ASKED_PX and (third := _fit(views, board, picker.size_hw, 0))[0] < K3_GAIN * fit[0]:
        fit = third
    rms_px, matrix, distortion, turns, shifts = fit
    k1, k2, p1, p2, k3 = (float(value) for value in np.ravel(distortion)[:5])
    errors_px, focal_std_px = _certainty(views, board, matrix, (k1, k2, p1, p2, k3), turns, shifts)
    tilts_deg = (math.degrees(math.acos(min(1.0, abs(cv2.Rodrigues(turn)[0][2, 2])))) for turn in turns)
    height, width = picker.size_hw
    return Calibration(
        camera=Camera(fx_px=float(matrix[0, 0]), fy_px=float(matrix[1, 1]), width_px=width, height_px=height),
        centre_px=(float(matrix[0, 2]), float(matrix[1, 2])),
        distortion=(k1, k2, p1, p2, k3),
        focal_std_px=focal_std_px,
        rms_px=float(rms_px),
        views=tuple(
            ViewFit(name=view.name, rms_px=error_px, tilt_deg=tilt_deg, distance_m=float(np.linalg.norm(shift)))
            for view, error_px, tilt_deg, shift in zip(views, errors_px, tilts_deg, shifts, strict=True)
        ),
        coverage=picker.coverage,
    )


def distance(corners_px: Corners, other_px: Corners) -> float:
    """Root mean square distance of two views' corners, in pixels; a board turned half round is the same board."""
    forth, back = (float(np.square(corners_px - each).sum(1).mean()) for each in (other_px, other_px[::-1]))
    return math.sqrt(min(forth, back))


def _fit(views: list[View], board: Board, size_hw: SizeHW, flags: int) -> Any:
    """OpenCV's fit: RMS in pixels, matrix, distortion, and each view's turn and shift.

    Raises:
        GateError: it found none.
    """
    try:
        fit: Any = cv2.calibrateCamera(
            [board.points_m] * len(views),
            [view.corners_px for view in views],
            (size_hw[1], size_hw[0]),
            np.zeros((3, 3)),
            np.zeros(5),
            flags=flags,
            criteria=FIT_UNTIL,
        )
        if np.isfinite(fit[0]) and np.isfinite(fit[1]).all() and min(fit[1][0, 0], fit[1][1, 1]) > 0:
            return fit
        reason = "The best fit is no camera."
    except cv2.error as error:
        reason = f"OpenCV: {error.err}"
    raise GateError(
        f"No camera fits these {len(views)} views.",
        reason,
        "Check --board, which counts inner corners, and show the board tilted by 20 to 45 degrees.",
    )


def _certainty(
    views: list[View], board: Board, matrix: Any, distortion: tuple[float, ...], turns: Any, shifts: Any
) -> tuple[list[float], tuple[float, float]]:
    """Each view's RMS error in pixels, and the standard deviations of fx and fy.

    From the fit's Jacobian J, with n corners' coordinates and p parameters: covariance = r'r / (n - p) inv(J'J). OpenCV
    gives the same, except where views leave the focal length open, which matters most: its pseudo-inverse takes that
    direction for a certain one, and a board that was never tilted for a focal length known to a tenth of a pixel.
    """
    intrinsics = 8 + (distortion[4] != 0)  # fx, fy, cx, cy, k1, k2, p1, p2 and perhaps k3
    coordinates = 2 * len(board.points_m)
    jacobian = np.zeros((coordinates * len(views), intrinsics + 6 * len(views)))
    residuals_px = np.zeros((len(views), coordinates))
    for index, (view, turn, shift) in enumerate(zip(views, turns, shifts, strict=True)):
        points = board.points_m.astype(np.float64)
        projected, slopes = cv2.projectPoints(points, turn, shift, matrix, np.array(distortion))
        residuals_px[index] = np.ravel(projected) - np.ravel(view.corners_px)
        rows = slice(index * coordinates, (index + 1) * coordinates)
        jacobian[rows, :intrinsics] = slopes[:, 6 : 6 + intrinsics]
        jacobian[rows, intrinsics + 6 * index :][:, :6] = slopes[:, :6]
    errors_px = [math.sqrt(2 * float(np.square(own).mean())) for own in residuals_px]
    sizes = np.linalg.norm(jacobian, axis=0)
    try:
        unscaled = np.linalg.inv((jacobian / sizes).T @ (jacobian / sizes))
    except np.linalg.LinAlgError:
        return errors_px, (math.inf, math.inf)
    variance = float(np.square(residuals_px).sum()) / (jacobian.shape[0] - jacobian.shape[1])
    std_x_px, std_y_px = (
        math.sqrt(variance * unscaled[axis, axis]) / float(sizes[axis]) if unscaled[axis, axis] > 0 else math.inf
        for axis in (0, 1)
    )
    return errors_px, (std_x_px, std_y_px)


def _normal(corners_px: Corners, board: Board, size_hw: SizeHW) -> npt.NDArray[np.float64]:
    """The board's normal through a lens of 53 degrees; tilts through other lenses come out a little off."""
    height, width = size_hw
    focal_px = float(max(size_hw))
    matrix = np.array([[focal_px, 0, (width - 1) / 2], [0, focal_px, (height - 1) / 2], [0, 0, 1]])
    points, corners = board.points_m[:, None].astype(np.float64), corners_px[:, None].astype(np.float64)
    turn: Any = cv2.solvePnP(points, corners, matrix, np.zeros(4), flags=cv2.SOLVEPNP_IPPE)[1]
    normal: npt.NDArray[np.float64] = cv2.Rodrigues(turn)[0][:, 2]
    return normal


def _yaml_matrix(name: str, rows: int, columns: int, values: tuple[float, ...]) -> list[str]:
    return [f"{name}:", f"  rows: {rows}", f"  cols: {columns}", f"  data: [{', '.join(map(repr, values))}]"]
