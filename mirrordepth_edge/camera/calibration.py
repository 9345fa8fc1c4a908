"""Calibrate a camera's focal length, principal point and distortion from views of a chessboard.

This is Zhang's method (A flexible new technique for camera calibration, PAMI 22(11), 2000) as implemented in OpenCV,
with the radial terms k1 and k2 and the tangential terms p1 and p2. The result depends on the views, so a calibration
reports its uncertainty.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.camera.chessboard import MIN_VIEWS_TO_FIT, Board, View, ViewPicker
from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.camera.pointcloud import camera_matrix
from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.errors import GateError
from mirrordepth_edge.support.files import atomic_write

MIN_VIEWS = 8
MIN_COVERAGE = 0.4
MAX_RMS_PX = 1.5
MAX_FOCAL_STD = 0.01
"""Relative standard deviation of the focal length; depth has the same relative error."""
FIT_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 200, 1e-10)
"""OpenCV's default of 30 iterations stops before convergence if boards are tilted only slightly."""
K3_MIN_RMS_PX = 0.5
"""RMS error above which a third radial term is tried."""
K3_MAX_RATIO = 0.9
"""The third term is kept if it reduces the RMS error to at most this share."""


@dataclass(frozen=True, kw_only=True)
class ViewFit:
    """How well a view fits the calibration."""

    name: str
    rms_px: float
    tilt_deg: float
    distance_m: float
    """From the camera to the board's first corner."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A calibrated camera."""

    camera: Camera
    distortion: tuple[float, float, float, float, float]
    """k1, k2, p1, p2, k3 of the plumb-bob model; k3 is 0 unless it reduces the error clearly."""
    focal_std_px: tuple[float, float]
    """Standard deviations of fx and fy for random corner errors; infinite if the views do not determine them."""
    rms_px: float
    """RMS reprojection error over all views."""
    views: tuple[ViewFit, ...]
    coverage: float
    """Share of the image covered by the board's corners."""

    @property
    def warnings(self) -> list[str]:
        """Reasons not to use this calibration; empty if it is good enough."""
        worst = max(self.views, key=lambda view: view.rms_px)
        uncertainty = max(
            std / focal for std, focal in zip(self.focal_std_px, (self.camera.fx_px, self.camera.fy_px), strict=True)
        )
        failures = {
            f"only {len(self.views)} different views; at least {MIN_VIEWS} are needed": len(self.views) < MIN_VIEWS,
            f"the reprojection error is {self.rms_px:.2f} px RMS; at most {MAX_RMS_PX:g} px is accepted "
            f"({worst.name}: {worst.rms_px:.2f} px)": self.rms_px > MAX_RMS_PX,
            f"the board covered {100 * self.coverage:.0f} % of the image; "
            f"at least {100 * MIN_COVERAGE:.0f} % is needed": self.coverage < MIN_COVERAGE,
            f"the focal length is uncertain by {100 * uncertainty:.1f} %; "
            "tilt the board by 20 to 45 degrees": uncertainty > MAX_FOCAL_STD,
        }
        return [text for text, failed in failures.items() if failed]

    @property
    def lines(self) -> list[str]:
        """The calibration as text, line by line."""
        camera, (std_x_px, std_y_px) = self.camera, self.focal_std_px
        down_deg = math.degrees(2 * math.atan(camera.height_px / 2 / camera.fy_px))
        return [
            *(
                f"{view.name}: {view.rms_px:.2f} px, tilted {view.tilt_deg:.0f}°, {view.distance_m:.2f} m away"
                for view in self.views
            ),
            f"views       {len(self.views)} different, {camera.width_px}x{camera.height_px} pixels",
            f"error       {self.rms_px:.3f} px RMS",
            f"coverage    {100 * self.coverage:.0f} % of the image",
            f"focal       fx {camera.fx_px:.2f} ± {std_x_px:.2f} px, fy {camera.fy_px:.2f} ± {std_y_px:.2f} px",
            f"view angle  {camera.fov_deg:.1f}° horizontal, {down_deg:.1f}° vertical",
            f"centre      cx {camera.cx_px:.2f} px, cy {camera.cy_px:.2f} px",
            "distortion  k1 {:.4f}, k2 {:.4f}, p1 {:.5f}, p2 {:.5f}, k3 {:.4f}".format(*self.distortion),
        ]

    def save(self, path: Path) -> None:
        """Write ROS's camera_info YAML, which `camera.model.read_camera` reads."""
        camera, matrix = self.camera, camera_matrix(self.camera)
        name = re.sub(r"\W", "_", path.stem, flags=re.ASCII)
        lines = [
            f"# {len(self.views)} views of a chessboard, {self.rms_px:.3f} px RMS, "
            f"{100 * self.coverage:.0f} % of the image covered",
            f"image_width: {camera.width_px}",
            f"image_height: {camera.height_px}",
            f'camera_name: "{name}"',
            *_yaml_matrix("camera_matrix", matrix),
            "distortion_model: plumb_bob",
            *_yaml_matrix("distortion_coefficients", np.array([self.distortion])),
            *_yaml_matrix("rectification_matrix", np.eye(3)),
            *_yaml_matrix("projection_matrix", np.column_stack([matrix, np.zeros(3)])),
        ]
        with atomic_write(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def calibrate(picker: ViewPicker) -> Calibration:
    """Fit a camera to a picker's views.

    Raises:
        GateError: there are too few views, or the fit failed.
    """
    views, board = picker.views, picker.board
    if len(views) < MIN_VIEWS_TO_FIT or picker.size_hw is None:
        raise GateError(
            f"Too few different views of the board: {len(views)}.",
            f"It was found in {picker.seen} frames; {MIN_VIEWS} views from different positions and angles are needed.",
            "Show the board near and far, in every corner of the image, and tilted by 20 to 45 degrees.",
        )
    fit = _fit(views, board, picker.size_hw, cv2.CALIB_FIX_K3)
    # k3 is fitted only if needed: with little distortion it fits noise, and extrapolates badly.
    if fit[0] > K3_MIN_RMS_PX and (third := _fit(views, board, picker.size_hw, 0))[0] < K3_MAX_RATIO * fit[0]:
        fit = third
    rms_px, matrix, distortion, rotations, translations = fit
    k1, k2, p1, p2, k3 = (float(value) for value in np.ravel(distortion)[:5])
    errors_px, focal_std_px = _uncertainty(views, board, matrix, (k1, k2, p1, p2, k3), rotations, translations)
    tilts_deg = (math.degrees(math.acos(min(1.0, abs(cv2.Rodrigues(rotation)[0][2, 2])))) for rotation in rotations)
    height, width = picker.size_hw
    return Calibration(
        camera=Camera(
            fx_px=float(matrix[0, 0]),
            fy_px=float(matrix[1, 1]),
            width_px=width,
            height_px=height,
            principal_point_px=(float(matrix[0, 2]), float(matrix[1, 2])),
        ),
        distortion=(k1, k2, p1, p2, k3),
        focal_std_px=focal_std_px,
        rms_px=float(rms_px),
        views=tuple(
            ViewFit(name=view.name, rms_px=error_px, tilt_deg=tilt_deg, distance_m=float(np.linalg.norm(translation)))
            for view, error_px, tilt_deg, translation in zip(views, errors_px, tilts_deg, translations, strict=True)
        ),
        coverage=picker.coverage,
    )


def _fit(views: list[View], board: Board, size_hw: SizeHW, flags: int) -> Any:
    """Run OpenCV's fit: RMS in pixels, camera matrix, distortion, and each view's rotation and translation.

    Raises:
        GateError: the fit failed.
    """
    try:
        fit: Any = cv2.calibrateCamera(
            [board.points_m] * len(views),
            [view.corners_px for view in views],
            (size_hw[1], size_hw[0]),
            np.zeros((3, 3)),
            np.zeros(5),
            flags=flags,
            criteria=FIT_CRITERIA,
        )
        if np.isfinite(fit[0]) and np.isfinite(fit[1]).all() and min(fit[1][0, 0], fit[1][1, 1]) > 0:
            return fit
        reason = "The best fit is not a valid camera."
    except cv2.error as error:
        reason = f"OpenCV: {error.err}"
    raise GateError(
        f"No camera fits these {len(views)} views.",
        reason,
        "Check --board, which counts inner corners, and show the board tilted by 20 to 45 degrees.",
    )


def _uncertainty(
    views: list[View], board: Board, matrix: Any, distortion: tuple[float, ...], rotations: Any, translations: Any
) -> tuple[list[float], tuple[float, float]]:
    """Return each view's RMS error in pixels, and the standard deviations of fx and fy.

    With the fit's Jacobian J, residuals r, n corner coordinates and p parameters: covariance = r'r / (n - p) inv(J'J).
    OpenCV returns the same, except if the views do not determine the focal length, the case that matters most: its
    pseudo-inverse treats that direction as certain, and reports a tenth of a pixel for a board that was never tilted.
    """
    intrinsics = 8 + (distortion[4] != 0)  # fx, fy, cx, cy, k1, k2, p1, p2 and perhaps k3
    coordinates = 2 * len(board.points_m)
    jacobian = np.zeros((coordinates * len(views), intrinsics + 6 * len(views)))
    residuals_px = np.zeros((len(views), coordinates))
    for index, (view, rotation, translation) in enumerate(zip(views, rotations, translations, strict=True)):
        points = board.points_m.astype(np.float64)
        projected, derivatives = cv2.projectPoints(points, rotation, translation, matrix, np.array(distortion))
        residuals_px[index] = np.ravel(projected) - np.ravel(view.corners_px)
        rows = slice(index * coordinates, (index + 1) * coordinates)
        jacobian[rows, :intrinsics] = derivatives[:, 6 : 6 + intrinsics]
        jacobian[rows, intrinsics + 6 * index :][:, :6] = derivatives[:, :6]
    errors_px = [math.sqrt(2 * float(np.square(residual_px).mean())) for residual_px in residuals_px]
    # Columns differ by orders of magnitude; with unit norm, inverting is numerically safe.
    norms = np.linalg.norm(jacobian, axis=0)
    try:
        unscaled = np.linalg.inv((jacobian / norms).T @ (jacobian / norms))
    except np.linalg.LinAlgError:
        return errors_px, (math.inf, math.inf)
    variance = float(np.square(residuals_px).sum()) / (jacobian.shape[0] - jacobian.shape[1])
    std_x_px, std_y_px = (
        math.sqrt(variance * unscaled[axis, axis]) / float(norms[axis]) if unscaled[axis, axis] > 0 else math.inf
        for axis in (0, 1)
    )
    return errors_px, (std_x_px, std_y_px)


def _yaml_matrix(name: str, matrix: npt.NDArray[np.float64]) -> list[str]:
    rows, columns = matrix.shape
    return [f"{name}:", f"  rows: {rows}", f"  cols: {columns}", f"  data: {matrix.ravel().tolist()}"]
