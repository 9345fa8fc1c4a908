"""Temporal consistency: how much depth changes between consecutive frames of a video for the same points.

Two measures:

- `FlowMeter`, without camera poses: OPW and rTC along optical flow. OPW is the optical-flow-based warping
  metric of FMNet (Wang et al., "Less is More", ACM Multimedia 2022, arXiv 2208.00380) and NVDS (arXiv
  2307.08695). rTC is the share of pixels that agree, counted as delta1 does. Those papers weight pixels by
  the photometric warping error; here a pixel counts if forward and backward flow agree, else not at all.
- `ReprojectionMeter`, with camera poses: depth of each frame reprojected into the frame before.

Computed with NumPy and OpenCV only. No network is involved, so results of two machines compare.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation.metrics import Depth, Mask, means
from mirrordepth_edge.imaging.postprocess import has_depth
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import existing_file

SAME_DEPTH_RATIO = 1.25
"""Two depths agree where max(a/b, b/a) is below this, as in delta1."""
MIN_FRAME_PX = 16
"""DIS optical flow works on patches of 8 pixels at several scales."""

# Forward and backward flow agree where |f + b|^2 < 0.01 (|f|^2 + |b|^2) + 0.5 square pixels
# (Sundaram et al., ECCV 2010).
FLOW_TOLERANCE_SHARE = 0.01
FLOW_TOLERANCE_PX2 = 0.5

POSES_FILE, INTRINSICS_FILE = "poses.txt", "intrinsics.txt"

Pose = npt.NDArray[np.float64]
"""`[4, 4]`, from camera coordinates (x right, y down, z forward, metres) to world coordinates."""
Positions = npt.NDArray[np.float32]
"""`[H, W, 2]`, pixel positions as (x, y)."""
Correspondence = tuple[Depth, Positions, Mask]
"""For each pixel `[H, W]`: expected depth in the frame before, position there, whether it is visible there."""
Measure = Literal["flow", "reprojection"]
View = TypeVar("View", bound=npt.NDArray[Any])


@dataclass(frozen=True, kw_only=True)
class TemporalConsistency:
    """Means over pairs of consecutive frames; each pair counts once, whatever its number of pixels."""

    measure: Measure
    error_m: float
    """Mean |expected depth - depth of the frame before| over corresponding pixels, metres. OPW if along flow."""
    rtc: float
    """Share of those pixels whose two depths agree within `SAME_DEPTH_RATIO`."""
    pairs: int
    """Pairs of frames with at least one corresponding pixel."""
    share_used: float
    """Corresponding pixels as a share of all pixels."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; the error along flow is named `opw_m`."""
        plain = asdict(self)
        error_m = plain.pop("error_m")
        return {"opw_m" if plain.pop("measure") == "flow" else "error_m": error_m, **plain}


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Camera pose of each image, and the camera's intrinsics."""

    poses: tuple[Pose, ...]
    camera: Camera


@dataclass(frozen=True, kw_only=True)
class _PairResult:
    """Comparison of two consecutive frames."""

    error_m: float
    rtc: float
    used: int
    pixels: int


class ConsistencyMeter(ABC, Generic[View]):
    """Accumulates temporal consistency of one or several depth videos of the same scene, frame by frame.

    With several videos, such as prediction and ground truth, correspondences are computed once.
    Depth of 0, NaN or infinity is no depth.
    """

    measure: ClassVar[Measure]

    def __init__(self) -> None:
        self._previous: tuple[View, list[Depth]] | None = None
        self._pairs: list[list[_PairResult]] = []

    def add(self, view: View, *depths_m: Depth) -> None:
        """Add the next frame.

        Args:
            view: what locates it: the image uint8 RGB `[H, W, 3]`, or the camera pose `[4, 4]`.
            depths_m: float32 `[H, W]`, metres, one of each video, always in the same order.

        Raises:
            InputError: sizes differ, or the image is too small for optical flow.
        """
        earlier = [] if self._previous is None else self._previous[1]
        _check_sizes([*depths_m, *earlier])
        if self._previous is None:
            self._pairs = [[] for _ in depths_m]
        else:
            correspondences = self._correspond(self._previous[0], view, depths_m)
            for pairs, correspondence, before_m in zip(self._pairs, correspondences, earlier, strict=True):
                pairs.append(_compare(*correspondence, before_m))
        self._previous = view, [depth_m.copy() for depth_m in depths_m]  # predictors reuse their arrays

    def results(self) -> list[TemporalConsistency | None]:
        """One result per depth video; None if no pixel has a correspondence."""
        return [self._mean(pairs) for pairs in self._pairs]

    @abstractmethod
    def _correspond(self, before: View, view: View, depths_m: Sequence[Depth]) -> list[Correspondence]:
        """Find the pixels of a frame in the frame before, for each depth video."""

    def _mean(self, pairs: list[_PairResult]) -> TemporalConsistency | None:
        used = [pair for pair in pairs if pair.used]
        if not used:
            return None
        return TemporalConsistency(
            measure=self.measure,
            **means(used, "error_m", "rtc"),
            pairs=len(used),
            share_used=sum(pair.used for pair in pairs) / sum(pair.pixels for pair in pairs),
        )


class FlowMeter(ConsistencyMeter[Frame]):
    """OPW and rTC along optical flow; views are images."""

    measure = "flow"

    def __init__(self) -> None:
        super().__init__()
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def add(self, view: Frame, *depths_m: Depth) -> None:
        _check_sizes([view, *depths_m])
        if min(view.shape[:2]) < MIN_FRAME_PX:
            raise InputError(
                f"Frames of {view.shape[1]}x{view.shape[0]} pixels are too small for optical flow.",
                f"It needs at least {MIN_FRAME_PX}x{MIN_FRAME_PX} pixels.",
                "Leave --temporal out.",
            )
        super().add(np.asarray(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), np.uint8), *depths_m)

    def _correspond(self, before: Frame, view: Frame, depths_m: Sequence[Depth]) -> list[Correspondence]:
        backward = np.asarray(self._dis.calc(view, before, None), np.float32)  # type: ignore[call-overload]
        forward = np.asarray(self._dis.calc(before, view, None), np.float32)  # type: ignore[call-overload]
        rows, columns = np.mgrid[: view.shape[0], : view.shape[1]].astype(np.float32)
        positions = np.stack([columns, rows], axis=-1) + backward
        forward_there = _sample(forward, positions)
        gap = ((backward + forward_there) ** 2).sum(axis=-1)
        tolerance = FLOW_TOLERANCE_SHARE * ((backward**2).sum(axis=-1) + (forward_there**2).sum(axis=-1))
        consistent = _inside(positions) & (gap < tolerance + FLOW_TOLERANCE_PX2)
        return [(depth_m, positions, consistent) for depth_m in depths_m]


class ReprojectionMeter(ConsistencyMeter[Pose]):
    """Agreement of depth with known camera motion; views are camera poses.

    A point that is occluded in the frame before counts as an error: compare with the result of the true depth.
    """

    measure = "reprojection"

    def __init__(self, camera: Camera) -> None:
        super().__init__()
        self._camera = camera

    def _correspond(self, before: Pose, view: Pose, depths_m: Sequence[Depth]) -> list[Correspondence]:
        motion = np.linalg.inv(before) @ view
        return [_reproject(depth_m, motion, self._camera) for depth_m in depths_m]


def read_camera_path(folder: Path, dataset: DepthDataset) -> CameraPath | None:
    """Read camera poses and intrinsics that lie beside a data set's `rgb` folder.

    `poses.txt` has a line `NAME tx ty tz qx qy qz qw` per image, as in TUM RGB-D, whose images are named by
    time stamps. NAME is the image name without suffix; position in metres and orientation as a unit
    quaternion, camera to world. `intrinsics.txt` is one line `fx fy cx cy` in pixels. `#` begins a comment.

    Args:
        folder: root of the data set.
        dataset: its images, all of one size.

    Returns:
        Poses in the order of the images; None without a `poses.txt`.

    Raises:
        InputError: a line cannot be read, or an image has no pose.
    """
    poses_file, intrinsics_file = folder / POSES_FILE, folder / INTRINSICS_FILE
    if not poses_file.is_file():
        return None
    existing_file(intrinsics_file, "camera's intrinsics")
    poses = {fields[0]: _pose(poses_file, fields) for fields in _fields(poses_file)}
    names = [dataset.name(index) for index in range(len(dataset))]
    missing = [name for name in names if name not in poses]
    if missing:
        raise InputError(
            f"{poses_file} has no pose for {len(missing)} images, such as {missing[0]}.",
            "Expected a line NAME tx ty tz qx qy qz qw per image; NAME is the file name without suffix.",
            "Add the missing lines, or move the file away to use optical flow.",
        )
    lines = _fields(intrinsics_file)
    if [len(fields) for fields in lines] != [4]:
        raise _bad_line(intrinsics_file, "Expected one line: fx fy cx cy, in pixels.")
    fx, fy, cx, cy = _numbers(intrinsics_file, lines[0])
    if not (fx > 0 and fy > 0):
        raise _bad_line(intrinsics_file, "Focal lengths must be positive.")
    height, width = dataset[0].depth_m.shape
    camera = Camera(fx_px=fx, fy_px=fy, width_px=width, height_px=height, principal_point_px=(cx, cy))
    return CameraPath(poses=tuple(poses[name] for name in names), camera=camera)


def _compare(expected_m: Depth, positions: Positions, visible: Mask, before_m: Depth) -> _PairResult:
    """Compare expected depth with the depth of the frame before, sampled bilinearly at `positions`."""
    valid = has_depth(before_m)
    sampled = _sample(np.where(valid, before_m, np.float32(0)), positions)
    # A bilinear sample that touches a hole is mixed with its 0.
    whole = _sample(valid.astype(np.float32), positions) > 1 - 1e-4
    used = visible & whole & has_depth(expected_m)
    if not used.any():
        return _PairResult(error_m=0.0, rtc=0.0, used=0, pixels=used.size)
    a, b = expected_m[used].astype(np.float64), sampled[used].astype(np.float64)
    same = np.maximum(a / b, b / a) < SAME_DEPTH_RATIO
    error_m = float(np.abs(a - b).mean())
    return _PairResult(error_m=error_m, rtc=float(same.mean()), used=int(used.sum()), pixels=used.size)


def _reproject(depth_m: Depth, motion: Pose, camera: Camera) -> Correspondence:
    """Project the pixels of a frame into another camera.

    Args:
        depth_m: float32 `[H, W]`, metres.
        motion: `[4, 4]`, from the frame's camera coordinates to those of the other camera.
        camera: intrinsics of both cameras.
    """
    height, width = depth_m.shape
    visible = has_depth(depth_m)
    z = np.where(visible, depth_m, 1.0).astype(np.float64)
    x = (np.arange(width) - camera.cx_px) / camera.fx_px * z
    y = (np.arange(height)[:, None] - camera.cy_px) / camera.fy_px * z
    x, y, z = (row[0] * x + row[1] * y + row[2] * z + row[3] for row in motion[:3])
    visible &= z > 0
    z = np.where(visible, z, 1.0)
    u, v = camera.fx_px * x / z + camera.cx_px, camera.fy_px * y / z + camera.cy_px
    positions = np.stack([u, v], axis=-1).astype(np.float32)
    visible &= _inside(positions)
    positions[~visible] = 0
    return z.astype(np.float32), positions, visible


def _sample(values: npt.NDArray[np.float32], positions: Positions) -> npt.NDArray[np.float32]:
    """Sample `[H, W]` or `[H, W, C]` bilinearly."""
    return np.asarray(cv2.remap(values, positions, None, cv2.INTER_LINEAR), np.float32)  # type: ignore[call-overload]


def _inside(positions: Positions) -> Mask:
    height, width = positions.shape[:2]
    x, y = positions[..., 0], positions[..., 1]
    inside: Mask = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside


def _check_sizes(arrays: Sequence[npt.NDArray[Any]]) -> None:
    shapes = {array.shape[:2] for array in arrays}
    if len(shapes) > 1:
        raise InputError(
            f"Frames or depth maps of a video differ in size: {' and '.join(map(str, sorted(shapes)))}.",
            "Temporal consistency compares frames pixel by pixel.",
            "Leave --temporal out, or pass consecutive frames of one video.",
        )


def _fields(path: Path) -> list[list[str]]:
    lines = (line.split("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines())
    return [fields for fields in lines if fields]


def _pose(path: Path, fields: list[str]) -> Pose:
    if len(fields) != 8:
        raise _bad_line(path, f"Expected NAME tx ty tz qx qy qz qw, not {' '.join(fields)!r}.")
    tx, ty, tz, x, y, z, w = _numbers(path, fields[1:])
    norm = math.hypot(x, y, z, w)
    if not abs(norm - 1) < 0.01:
        raise _bad_line(path, f"The quaternion of {fields[0]} has length {norm:.3g}, not 1.")
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), tx],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w), ty],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y), tz],
            [0, 0, 0, 1],
        ]
    )


def _numbers(path: Path, fields: list[str]) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError as error:
        raise _bad_line(path, f"{' '.join(fields)!r} has a field that is not a number.") from error
    if not all(map(math.isfinite, numbers)):
        raise _bad_line(path, f"{' '.join(fields)!r} has a field that is not finite.")
    return numbers


def _bad_line(path: Path, why: str) -> InputError:
    return InputError(f"{path} cannot be read.", why, "Correct it, or move poses.txt away to use optical flow.")
