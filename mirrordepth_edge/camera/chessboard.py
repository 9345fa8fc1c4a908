"""Chessboards: print one, find its corners in images, and select the views that a calibration needs.

Boards parallel to the image do not determine the focal length, and where no board was seen, distortion is extrapolated.
So views are selected for tilt and coverage.
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

from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import atomic_write, require_suffix

Corners = npt.NDArray[np.float32]
"""float32 `[columns * rows, 2]`, pixels (x, y), row by row."""

INCH_M = 0.0254
SEARCH_PX = 960
"""Longer side of the reduced image that is searched for the board; corners are refined at full resolution."""
DIFFERENT_SHARE = 0.04
"""Two views differ if the RMS distance of their corners is at least this share of the image diagonal."""
DIFFERENT_DEG = 10.0
"""Or if the angle between their boards is at least this large."""
STEADY_SHARE = 0.005
"""Maximum motion of the corners since the last frame, over the diagonal: rolling shutters distort moving boards."""
TILTED_DEG = 20.0
MIN_NEW_COVERAGE = 0.02
"""Share of the image that a view must add to be kept for its coverage."""
TARGET_COVERAGE = 0.6
GRID_HW = (48, 64)
PLACES = ("upper", "middle", "lower"), ("left", "middle", "right")

MIN_VIEWS_TO_FIT = 3


@dataclass(frozen=True, kw_only=True)
class Board:
    """A chessboard. Columns and rows count inner corners, where four squares meet.

    Raises:
        OptionError: the board is too small, or the square size is not positive.
    """

    columns: int
    rows: int
    square_m: float
    """Side of a square, metres. It affects reported distances, not focal length and distortion."""

    def __post_init__(self) -> None:
        if min(self.columns, self.rows) < 3 or not (math.isfinite(self.square_m) and self.square_m > 0):
            raise OptionError(
                f"A board of {self} corners with squares of {1e3 * self.square_m:g} mm cannot be used.",
                "A board needs at least 3x3 inner corners and squares larger than 0 mm.",
                "--board 9x6 for a board of 10 by 7 squares",
            )

    @classmethod
    def parse(cls, text: str, square_m: float) -> Board:
        """Parse COLUMNSxROWS inner corners, such as `9x6`.

        Raises:
            OptionError: the text is not in this format.
        """
        match = re.fullmatch(r"(\d{1,3})[xX×](\d{1,3})", text.strip())
        if match is None:
            raise OptionError(
                f"--board {text!r} is not valid.",
                "The format is COLUMNSxROWS, counted in inner corners, where four squares meet.",
                "--board 9x6 for a board of 10 by 7 squares",
            )
        return cls(columns=int(match[1]), rows=int(match[2]), square_m=square_m)

    @property
    def points_m(self) -> npt.NDArray[np.float32]:
        """Inner corners in the board's plane, metres, float32 `[columns * rows, 3]`, row by row."""
        points = np.zeros((self.rows * self.columns, 3), np.float32)
        points[:, :2] = np.indices((self.columns, self.rows)).T.reshape(-1, 2) * self.square_m
        return points

    def image(self, dpi: int) -> Frame:
        """Draw the board with a margin of one square, which corner finders need.

        Returns:
            uint8 RGB `[(rows + 3) * s, (columns + 3) * s, 3]`, with s pixels per square.
        """
        square_px = max(1, round(self.square_m / INCH_M * dpi))
        squares = np.full((self.rows + 3, self.columns + 3), 255, np.uint8)
        row, column = np.indices((self.rows + 1, self.columns + 1))
        squares[1:-1, 1:-1] = (row + column) % 2 * 255
        grey = squares.repeat(square_px, axis=0).repeat(square_px, axis=1)
        return np.repeat(grey[:, :, None], 3, axis=2)

    def save_image(self, path: Path, dpi: int) -> tuple[float, float]:
        """Write the board as a PNG that states its print size.

        Returns:
            Width and height on paper, in millimetres.

        Raises:
            OptionError: the name does not end in .png.
            InputError: the file cannot be written.
        """
        require_suffix(path, (".png",), "a board to print", "--print-board")
        image = self.image(dpi)
        png = cv2.imencode(".png", image[:, :, 0])[1].tobytes()
        # PNG (third edition), 11.3.4.3: pHYs holds pixels per metre, and follows the header of 33 bytes.
        per_metre = round(dpi / INCH_M)
        chunk = b"pHYs" + struct.pack(">IIB", per_metre, per_metre, 1)
        with atomic_write(path) as temporary:
            temporary.write_bytes(
                png[:33] + struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
            )
        height, width = image.shape[:2]
        return 1e3 * width / per_metre, 1e3 * height / per_metre

    def __str__(self) -> str:
        return f"{self.columns}x{self.rows}"


@dataclass(frozen=True, kw_only=True)
class View:
    """An image in which the board was found."""

    name: str
    corners_px: Corners
    normal: npt.NDArray[np.float64]
    """Normal of the board, float64 `[3]`; approximate, for an assumed field of view of 53 degrees."""

    @property
    def tilt_deg(self) -> float:
        """Angle between the board and the image plane."""
        return math.degrees(math.acos(min(1.0, abs(float(self.normal[2])))))


def find_corners(frame: Frame, board: Board, *, thorough: bool = True) -> Corners | None:
    """Find the board's inner corners with sub-pixel accuracy.

    OpenCV's classic finder runs first: it takes a hundredth of the time of the sector-based one, which finds boards in
    poor light. Both are refined by `cornerSubPix`, which is more accurate than either.

    Args:
        frame: uint8 RGB `[H, W, 3]`.
        thorough: try both finders, which can take seconds if there is no board.

    Returns:
        The corners, or None unless all of them are visible.
    """
    # The search time grows with the number of pixels, so the board is searched in a reduced image.
    grey: Any = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    size, shrink = (board.columns, board.rows), max(1.0, max(grey.shape) / SEARCH_PX)
    small = grey if shrink == 1 else cv2.resize(grey, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE | cv2.CALIB_CB_FAST_CHECK
    found, corners = cv2.findChessboardCorners(small, size, flags=flags)
    if not found and thorough:
        found, corners = cv2.findChessboardCornersSB(small, size, flags=cv2.CALIB_CB_NORMALIZE_IMAGE)
    if not found:
        return None
    # OpenCV 4 returns [N, 1, 2], OpenCV 5 [N, 2]. Coordinates start at the centre of a pixel.
    coarse = (corners.reshape(-1, 1, 2).astype(np.float32) + 0.5) * np.float32(shrink) - np.float32(0.5)
    grid = coarse.reshape(board.rows, board.columns, 2)
    step_px = min(float(np.linalg.norm(np.diff(grid, axis=axis), axis=2).min()) for axis in (0, 1))
    window_px = max(2, min(round(0.4 * step_px), round(5 + 3 * shrink)))  # so that the window holds no other corner
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 40, 1e-3)
    refined: Any = cv2.cornerSubPix(grey, coarse, (window_px, window_px), (-1, -1), criteria)
    return refined.reshape(-1, 2)  # type: ignore[no-any-return]


class ViewPicker:
    """Select views of a board that add information to a calibration.

    Args:
        wanted: number of views that is enough, if they cover the image and a third of them is tilted.
        moving: frames come from a camera or a video. They are plentiful, so the board must be held still, and views
            that add nothing are skipped. Of an image folder, every view that differs is kept.
    """

    def __init__(self, board: Board, wanted: int = 15, *, moving: bool = False) -> None:
        self.board = board
        self.wanted = max(wanted, MIN_VIEWS_TO_FIT)
        self.moving = moving
        self.size_hw: SizeHW | None = None
        self.views: list[View] = []
        self.seen = 0
        """Number of frames in which the board was found."""
        self._covered = np.zeros(GRID_HW, np.uint8)
        self._before: Corners | None = None

    def look(self, name: str, frame: Frame) -> bool:
        """Search a frame for the board. Return whether the view is kept.

        Args:
            frame: uint8 RGB `[H, W, 3]`.

        Raises:
            InputError: the frame's size differs from that of earlier frames.
        """
        size_hw = (frame.shape[0], frame.shape[1])
        if self.size_hw is not None and size_hw != self.size_hw:
            raise InputError(
                f"{name} is {size_hw[1]}x{size_hw[0]}, but earlier images are {self.size_hw[1]}x{self.size_hw[0]}.",
                "A calibration is for one camera and one resolution.",
                "Use images of one size only, none of them rotated.",
            )
        self.size_hw = size_hw
        corners = find_corners(frame, self.board, thorough=not self.moving)
        # Also without a board: motion is measured between consecutive frames only.
        before, self._before = self._before, corners
        if corners is None:
            return False
        self.seen += 1
        if self.moving and (before is None or distance(corners, before) > STEADY_SHARE * math.hypot(*size_hw)):
            return False
        view = View(name=name, corners_px=corners, normal=_normal(corners, self.board, size_hw))
        if not self._differs(view) or not self._is_useful(view):
            return False
        self.views.append(view)
        self._covered |= self._cover(view)
        return True

    @property
    def coverage(self) -> float:
        """Share of the image covered by the board's corners in any view."""
        return float(self._covered.mean())

    @property
    def hint(self) -> str | None:
        """What the user should do next with the board; None if there are enough views."""
        if not self.views:
            return "show the whole board" if not self.seen else "hold the board still"
        if self._missing_tilts > 0:
            return "tilt the board more"
        if self.coverage < TARGET_COVERAGE:
            return f"show the board in the {self._least_covered()}"
        return "show the board elsewhere" if len(self.views) < self.wanted else None

    @property
    def _missing_tilts(self) -> int:
        return math.ceil(self.wanted / 3) - sum(view.tilt_deg >= TILTED_DEG for view in self.views)

    def _differs(self, view: View) -> bool:
        assert self.size_hw is not None
        min_px, max_cos = DIFFERENT_SHARE * math.hypot(*self.size_hw), math.cos(math.radians(DIFFERENT_DEG))
        return all(
            distance(view.corners_px, other.corners_px) > min_px or abs(view.normal @ other.normal) < max_cos
            for other in self.views
        )

    def _is_useful(self, view: View) -> bool:
        """Reserve a third of the views for tilted boards; keep more than wanted only for new parts of the image."""
        if not self.moving or len(self.views) < self.wanted - max(0, self._missing_tilts):
            return True
        if self._missing_tilts > 0 and view.tilt_deg >= TILTED_DEG:
            return True
        added = float((self._cover(view) & ~self._covered & 1).mean())
        return self.coverage < TARGET_COVERAGE and added >= MIN_NEW_COVERAGE

    def _cover(self, view: View) -> npt.NDArray[np.uint8]:
        """Return a mask of the corners' hull, uint8 `GRID_HW`, 1 inside."""
        assert self.size_hw is not None
        (height, width), (rows, columns) = self.size_hw, GRID_HW
        hull: Any = cv2.convexHull(view.corners_px * np.array([columns / width, rows / height], np.float32))
        mask: Any = cv2.fillConvexPoly(np.zeros(GRID_HW, np.uint8), hull.round().astype(np.int32), [1])
        return mask  # type: ignore[no-any-return]

    def _least_covered(self) -> str:
        """Return the name of the least covered ninth of the image."""
        rows, columns = GRID_HW
        thirds = self._covered.reshape(3, rows // 3, columns)
        shares = [[float(part.mean()) for part in np.array_split(third, 3, axis=1)] for third in thirds]
        row, column = divmod(int(np.argmin(shares)), 3)
        return " ".join(dict.fromkeys((PLACES[0][row], PLACES[1][column])))


def distance(corners_px: Corners, other_px: Corners) -> float:
    """Return the RMS distance of two views' corners in pixels; a board rotated by 180 degrees is the same board."""
    forth, back = (float(np.square(corners_px - other).sum(1).mean()) for other in (other_px, other_px[::-1]))
    return math.sqrt(min(forth, back))


def _normal(corners_px: Corners, board: Board, size_hw: SizeHW) -> npt.NDArray[np.float64]:
    """Return the board's normal for a field of view of 53 degrees; other lenses give slightly wrong tilts."""
    height, width = size_hw
    focal_px = float(max(size_hw))
    matrix = np.array([[focal_px, 0, (width - 1) / 2], [0, focal_px, (height - 1) / 2], [0, 0, 1]])
    points, corners = board.points_m[:, None].astype(np.float64), corners_px[:, None].astype(np.float64)
    rotation: Any = cv2.solvePnP(points, corners, matrix, np.zeros(4), flags=cv2.SOLVEPNP_IPPE)[1]
    normal: npt.NDArray[np.float64] = cv2.Rodrigues(rotation)[0][:, 2]
    return normal
