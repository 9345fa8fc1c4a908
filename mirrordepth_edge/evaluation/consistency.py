"""Consistency of depth in time, from one frame of a video to the next.

Without camera poses: OPW and rTC along optical flow, as video depth is judged: OPW is the
optical-flow-based warping metric of FMNet (Wang et al., "Less is More", ACM Multimedia 2022, arXiv
2208.00380) and NVDS (arXiv 2307.08695); rTC counts pixels as delta1 does. Where those weigh pixels by
how well the warped picture fits, pixels here are used whole if flow forth and back agree, and not at
all otherwise. With camera poses: depth reprojected from each frame into the one before.

NumPy and OpenCV only; no network, so that figures from two machines compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation.metrics import Depth, Mask
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import existing_file

SAME_DEPTH_RATIO = 1.25
"""Two depths count as the same where max(a/b, b/a) is below this, as in delta1."""
SMALLEST_FRAME_PX = 16
"""DIS, the optical flow, works on patches of 8 pixels at several scales."""

# Forward and backward flow agree where |f + b|^2 < 0.01 (|f|^2 + |b|^2) + 0.5 square pixels
# (Sundaram et al., ECCV 2010).
FLOW_TOLERANCE_SHARE = 0.01
FLOW_TOLERANCE_PX2 = 0.5

POSES_FILE, INTRINSICS_FILE = "poses.txt", "intrinsics.txt"

Pose = npt.NDArray[np.float64]
"""`[4, 4]`, from the camera's coordinates (x right, y down, z forward, metres) to the world's."""


@dataclass(frozen=True, kw_only=True)
class TemporalConsistency:
    """How much depth flickers along optical flow; means over pairs of consecutive frames."""

    opw_m: float
    """mean |d_t - warp(d_{t-1})| over pixels whose flow is consistent, metres."""
    rtc: float
    """Share of those pixels with max(d_t / warp(d_{t-1}), warp(d_{t-1}) / d_t) < 1.25."""
    pairs: int
    """Pairs of frames with at least one such pixel."""
    share_used: float
    """Those pixels as a share of all."""


@dataclass(frozen=True, kw_only=True)
class ReprojectionConsistency:
    """How well depth agrees with a known camera motion; means over pairs of consecutive frames."""

    error_m: float
    """mean |z - d_{t-1}| where z is the depth of frame t's points seen from frame t-1, metres."""
    rtc: float
    """Share of those pixels with max(z / d_{t-1}, d_{t-1} / z) < 1.25."""
    pairs: int
    share_used: float
    """Pixels that the camera saw in both frames, as a share of all."""


@dataclass(frozen=True, kw_only=True)
class Intrinsics:
    """A pinhole camera, in pixels of the pictures as they are stored."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Where the camera was for each picture, and its lens."""

    poses: tuple[Pose, ...]
    intrinsics: Intrinsics


def temporal_consistency(frames: Iterable[Frame], depths_m: Iterable[Depth]) -> TemporalConsistency:
    """OPW and rTC of a depth video.

    Args:
        frames: uint8 RGB `[H, W, 3]`, consecutive; two at a time are in memory.
        depths_m: their depth, float32 `[H, W]`, metres; 0, NaN or infinity where there is none.

    Raises:
        InputError: there are fewer than two frames, they differ in size, or no pixel can be followed.
    """
    meter = FlowMeter()
    for frame, depth_m in zip(frames, depths_m, strict=True):
        meter.add(frame, depth_m)
    (result,) = meter.results() or (None,)
    if result is None:
        raise nothing_followed()
    return result


def reprojection_consistency(
    depths_m: Iterable[Depth], poses: Iterable[Pose], intrinsics: Intrinsics
) -> ReprojectionConsistency:
    """Agreement of a depth video with the camera's known motion.

    Points that something nearer hides in the other frame count as errors: compare with the figure of
    the true depth.

    Args:
        depths_m: float32 `[H, W]`, metres; 0, NaN or infinity where there is none.
        poses: float64 `[4, 4]`, camera to world, one per frame.

    Raises:
        InputError: there are fewer than two frames, they differ in size, or no pixel is seen twice.
    """
    meter = ReprojectionMeter(intrinsics)
    for depth_m, pose in zip(depths_m, poses, strict=True):
        meter.add(pose, depth_m)
    (result,) = meter.results() or (None,)
    if result is None:
        raise nothing_followed()
    return result


class FlowMeter:
    """OPW and rTC of depth videos of the same frames, gathered frame by frame.

    Several at once (a prediction and the truth), so that the flow is computed once. Depth of 0, NaN or
    infinity counts as not there.
    """

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._previous: tuple[npt.NDArray[np.uint8], list[Depth]] | None = None
        self._pairs: list[list[_Pair]] = []

    def add(self, frame: Frame, *depths_m: Depth) -> None:
        """The next frame with its depths, always as many and in the same order.

        Raises:
            InputError: sizes differ, or the frame is too small for optical flow.
        """
        _check_sizes(frame.shape[:2], depths_m, None if self._previous is None else self._previous[0].shape)
        if min(frame.shape[:2]) < SMALLEST_FRAME_PX:
            raise InputError(
                f"Frames of {frame.shape[1]}x{frame.shape[0]} pixels are too small for optical flow.",
                f"It needs {SMALLEST_FRAME_PX} pixels each way.",
                "Leave --temporal out.",
            )
        grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
        if self._previous is not None:
            before, depths_before = self._previous
            positions, consistent = self._follow(grey, before)
            for pairs, depth_m, depth_before in zip(self._pairs, depths_m, depths_before, strict=True):
                pairs.append(_compare(depth_m, depth_before, positions, consistent))
        else:
            self._pairs = [[] for _ in depths_m]
        self._previous = grey, [depth_m.copy() for depth_m in depths_m]  # predictors reuse their arrays

    def results(self) -> list[TemporalConsistency | None]:
        """One for each depth video; None where no pixel could be followed."""
        return [_flow_result(_mean(pairs)) for pairs in self._pairs]

    def _follow(
        self, grey: npt.NDArray[np.uint8], before: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], Mask]:
        """Where each pixel was in the frame before, `[H, W, 2]` as (x, y), and whether that is sure."""
        back = np.asarray(self._dis.calc(grey, before, None), np.float32)  # type: ignore[call-overload]
        forth = np.asarray(self._dis.calc(before, grey, None), np.float32)  # type: ignore[call-overload]
        positions = _grid(grey.shape) + back
        forth_there = np.asarray(cv2.remap(forth, positions, None, cv2.INTER_LINEAR), np.float32)  # type: ignore[call-overload]
        gap = ((back + forth_there) ** 2).sum(axis=-1)
        tolerance = FLOW_TOLERANCE_SHARE * ((back**2).sum(axis=-1) + (forth_there**2).sum(axis=-1))
        return positions, _inside(positions) & (gap < tolerance + FLOW_TOLERANCE_PX2)


class ReprojectionMeter:
    """Agreement of depth videos with the camera's known motion, gathered frame by frame."""

    def __init__(self, intrinsics: Intrinsics) -> None:
        self._intrinsics = intrinsics
        self._previous: tuple[Pose, list[Depth]] | None = None
        self._pairs: list[list[_Pair]] = []

    def add(self, pose: Pose, *depths_m: Depth) -> None:
        """The next pose with its depths, always as many and in the same order.

        Raises:
            InputError: sizes differ.
        """
        _check_sizes(depths_m[0].shape, depths_m, None if self._previous is None else self._previous[1][0].shape)
        if self._previous is not None:
            pose_before, depths_before = self._previous
            motion = np.linalg.inv(pose_before) @ pose
            for pairs, depth_m, depth_before in zip(self._pairs, depths_m, depths_before, strict=True):
                expected_m, positions, seen = _reproject(depth_m, motion, self._intrinsics)
                pairs.append(_compare(expected_m, depth_before, positions, seen))
        else:
            self._pairs = [[] for _ in depths_m]
        self._previous = pose, [depth_m.copy() for depth_m in depths_m]

    def results(self) -> list[ReprojectionConsistency | None]:
        """One for each depth video; None where no pixel was seen twice."""
        return [_reprojection_result(_mean(pairs)) for pairs in self._pairs]


def read_camera_path(folder: Path, names: Sequence[str]) -> CameraPath | None:
    """The camera's path beside a data set's `rgb` folder, if one is there.

    `poses.txt` has a line `NAME tx ty tz qx qy qz qw` for each picture: TUM RGB-D's trajectories, whose
    pictures are named by their time stamps. NAME is the picture's without its suffix; position in
    metres and orientation as a unit quaternion, camera to world. `intrinsics.txt` is `fx fy cx cy` in
    pixels. In both, `#` begins a comment.

    Returns:
        Poses in the order of `names`; None without a `poses.txt`.

    Raises:
        InputError: a line cannot be read, or a picture has no pose.
    """
    poses_file, intrinsics_file = folder / POSES_FILE, folder / INTRINSICS_FILE
    if not poses_file.is_file():
        return None
    existing_file(intrinsics_file, "camera's intrinsics")
    found = {fields[0]: _pose(poses_file, fields) for fields in _fields(poses_file)}
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"{poses_file} has no pose for {len(missing)} pictures, such as {missing[0]}.",
            "A line is NAME tx ty tz qx qy qz qw, with the picture's name without its suffix.",
            "Add the lines, or move the file away to follow optical flow instead.",
        )
    lines = _fields(intrinsics_file)
    if [len(fields) for fields in lines] != [4]:
        raise _bad_line(intrinsics_file, "It is one line: fx fy cx cy, in pixels.")
    fx, fy, cx, cy = _numbers(intrinsics_file, lines[0])
    if not (fx > 0 and fy > 0):
        raise _bad_line(intrinsics_file, "Focal lengths are positive.")
    poses = tuple(found[name] for name in names)
    return CameraPath(poses=poses, intrinsics=Intrinsics(fx=fx, fy=fy, cx=cx, cy=cy))


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """One pair of frames."""

    error_m: float
    rtc: float
    used: int
    pixels: int


@dataclass(frozen=True, kw_only=True)
class _Mean:
    """Many pairs."""

    error_m: float
    rtc: float
    pairs: int
    share: float


def _compare(expected_m: Depth, before_m: Depth, positions: npt.NDArray[np.float32], followed: Mask) -> _Pair:
    """Depth as it should have been in the frame before with what it was, at `positions` in it."""
    there = _has_depth(before_m)
    sampled: npt.NDArray[np.float32] = np.asarray(_sampled(np.where(there, before_m, np.float32(0)), positions))
    # Bilinear samples that touch a hole are mixed with its 0.
    whole = _sampled(there.astype(np.float32), positions) > 1 - 1e-4
    used = followed & whole & _has_depth(expected_m)
    if not used.any():
        return _Pair(error_m=0.0, rtc=0.0, used=0, pixels=used.size)
    a, b = expected_m[used].astype(np.float64), sampled[used].astype(np.float64)
    same = np.maximum(a / b, b / a) < SAME_DEPTH_RATIO
    error_m = float(np.abs(a - b).mean())
    return _Pair(error_m=error_m, rtc=float(same.mean()), used=int(used.sum()), pixels=used.size)


def _mean(pairs: list[_Pair]) -> _Mean | None:
    """Each pair of frames counts once, whatever its pixels."""
    seen = [pair for pair in pairs if pair.used]
    if not seen:
        return None
    return _Mean(
        error_m=float(np.mean([pair.error_m for pair in seen])),
        rtc=float(np.mean([pair.rtc for pair in seen])),
        pairs=len(seen),
        share=sum(pair.used for pair in pairs) / sum(pair.pixels for pair in pairs),
    )


def _flow_result(mean: _Mean | None) -> TemporalConsistency | None:
    if mean is None:
        return None
    return TemporalConsistency(opw_m=mean.error_m, rtc=mean.rtc, pairs=mean.pairs, share_used=mean.share)


def _reprojection_result(mean: _Mean | None) -> ReprojectionConsistency | None:
    if mean is None:
        return None
    return ReprojectionConsistency(error_m=mean.error_m, rtc=mean.rtc, pairs=mean.pairs, share_used=mean.share)


def _reproject(depth_m: Depth, motion: Pose, camera: Intrinsics) -> tuple[Depth, npt.NDArray[np.float32], Mask]:
    """A frame's pixels seen by a camera that stands elsewhere.

    Returns:
        Their depth there, their positions `[H, W, 2]` there as (x, y), and whether they are in sight.
    """
    height, width = depth_m.shape
    there = _has_depth(depth_m)
    z = np.where(there, depth_m, 1.0).astype(np.float64)
    x = (np.arange(width) - camera.cx) / camera.fx * z
    y = (np.arange(height)[:, None] - camera.cy) / camera.fy * z
    x, y, z = (row[0] * x + row[1] * y + row[2] * z + row[3] for row in motion[:3])
    there &= z > 0
    z = np.where(there, z, 1.0)
    positions = np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], axis=-1).astype(np.float32)
    there &= _inside(positions)
    positions[~there] = 0
    return z.astype(np.float32), positions, there


def _sampled(values: npt.NDArray[np.float32], positions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.remap(values, positions, None, cv2.INTER_LINEAR), np.float32)  # type: ignore[call-overload]


def _has_depth(depth_m: Depth) -> Mask:
    there: Mask = np.isfinite(depth_m) & (depth_m > 0)
    return there


def _grid(shape_hw: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Every pixel's own position, `[H, W, 2]` as (x, y)."""
    rows, columns = np.mgrid[: shape_hw[0], : shape_hw[1]].astype(np.float32)
    return np.stack([columns, rows], axis=-1)


def _inside(positions: npt.NDArray[np.float32]) -> Mask:
    height, width = positions.shape[:2]
    x, y = positions[..., 0], positions[..., 1]
    inside: Mask = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside


def _check_sizes(shape_hw: tuple[int, ...], depths_m: tuple[Depth, ...], before_hw: tuple[int, ...] | None) -> None:
    shapes = {tuple(shape_hw), *(depth_m.shape for depth_m in depths_m)}
    if before_hw is not None:
        shapes.add(tuple(before_hw))
    if len(shapes) > 1:
        raise InputError(
            f"Frames or depth of a video differ in size: {' and '.join(map(str, sorted(shapes)))}.",
            "What moved between two frames can only be followed in pictures of one size.",
            "Leave --temporal out, or pass consecutive frames of one video.",
        )


def nothing_followed() -> InputError:
    """The one wording for frames that do not follow one another."""
    return InputError(
        "Consistency in time cannot be told.",
        "There are fewer than two frames with depth, or nothing in one can be found in the next.",
        "Pass consecutive frames of one video, in order.",
    )


def _fields(path: Path) -> list[list[str]]:
    lines = (line.split("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines())
    return [fields for fields in lines if fields]


def _pose(path: Path, fields: list[str]) -> Pose:
    if len(fields) != 8:
        raise _bad_line(path, f"A line is NAME tx ty tz qx qy qz qw; this is {' '.join(fields)!r}.")
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
        raise _bad_line(path, f"{' '.join(fields)!r} are not all numbers.") from error
    if not all(map(math.isfinite, numbers)):
        raise _bad_line(path, f"{' '.join(fields)!r} are not all finite.")
    return numbers


def _bad_line(path: Path, why: str) -> InputError:
    return InputError(f"{path} cannot be read.", why, "Correct it, or move poses.txt away to follow optical flow.")
