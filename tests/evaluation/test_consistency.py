"""Consistency against closed forms: scenes whose motion and edges are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.data.sample import InMemory, Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation.consistency import (
    ConsistencyMeter,
    FlowMeter,
    ReprojectionMeter,
    TemporalConsistency,
    read_camera_path,
)
from mirrordepth_edge.evaluation.metrics import Depth
from mirrordepth_edge.imaging.preprocess import Frame

SIZE_HW = (96, 128)


def texture(seed: int = 0, size_hw: tuple[int, int] = (160, 200)) -> Frame:
    """Smooth random blobs, which optical flow can follow."""
    noise = np.random.default_rng(seed).uniform(0, 1, (*size_hw, 3))
    smooth = gaussian_filter(noise, (2, 2, 0))
    return np.interp(smooth, (smooth.min(), smooth.max()), (0, 255)).astype(np.uint8)


def window(picture: npt.NDArray[np.generic], x: int, y: int) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(picture[y : y + SIZE_HW[0], x : x + SIZE_HW[1]])


def depth_map(seed: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> Depth:
    return np.random.default_rng(seed).uniform(1, 5, size_hw).astype(np.float32)


def measure(meter: ConsistencyMeter, views: Iterable[npt.NDArray], depths_m: Iterable[Depth]) -> TemporalConsistency:
    for view, depth_m in zip(views, depths_m, strict=True):
        meter.add(view, depth_m)
    (result,) = meter.results()
    assert result is not None
    return result


def along_flow(frames: Iterable[Frame], depths_m: Iterable[Depth]) -> TemporalConsistency:
    return measure(FlowMeter(), frames, depths_m)


def along_path(depths_m: Iterable[Depth], poses: Iterable[npt.NDArray]) -> TemporalConsistency:
    return measure(ReprojectionMeter(CAMERA), poses, depths_m)


# Along optical flow


def test_a_still_scene_is_consistent() -> None:
    frame, depth_m = window(texture(), 0, 0), depth_map()
    result = along_flow([frame] * 3, [depth_m] * 3)
    assert (result.error_m, result.rtc, result.pairs, result.share_used) == (0.0, 1.0, 2, 1.0)


@pytest.mark.parametrize("step", [(3, 0), (0, -2), (5, 4)])
def test_depth_that_moves_with_the_picture_is_consistent(step: tuple[int, int]) -> None:
    """The window slides over one large picture and its depth, so that both move by whole pixels."""
    picture = texture()
    rows, columns = np.mgrid[:160, :200]
    depth_all = (2 + 0.01 * columns + 0.02 * rows).astype(np.float32)
    corners = [(30 + k * step[0], 30 + k * step[1]) for k in range(3)]
    frames = [window(picture, *corner) for corner in corners]
    moving = along_flow(frames, [window(depth_all, *corner) for corner in corners])
    assert moving.error_m < 2e-3
    assert moving.rtc == 1
    # Nearly all that stayed in the frame was followed, and nothing that left it.
    stays = (SIZE_HW[1] - abs(step[0])) * (SIZE_HW[0] - abs(step[1])) / (SIZE_HW[0] * SIZE_HW[1])
    assert 0.85 * stays < moving.share_used <= stays + 0.01
    # Depth that stays where it is while the picture moves is off by its slope along the motion.
    stuck = along_flow(frames, [window(depth_all, *corners[0])] * 3)
    assert stuck.error_m == pytest.approx(abs(0.01 * step[0] + 0.02 * step[1]), rel=0.05)


def test_opw_and_rtc_of_30_percent_flicker() -> None:
    frame, depth_m = window(texture(), 0, 0), depth_map()
    flickering = [depth_m * np.float32(1.3 if k % 2 else 1) for k in range(4)]
    result = along_flow([frame] * 4, flickering)
    assert result.error_m == pytest.approx(0.3 * depth_m.mean(dtype=np.float64), rel=1e-5)
    assert result.rtc == 0


@pytest.mark.parametrize(
    ("first_m", "second_m", "rtc"), [(4, 5, 0), (5, 4, 0), (4, np.nextafter(np.float32(5), np.float32(0)), 1)]
)
def test_a_ratio_of_exactly_1_25_is_not_the_same_depth(first_m: float, second_m: float, rtc: float) -> None:
    frame = window(texture(), 0, 0)
    depths = [np.full(SIZE_HW, value, np.float32) for value in (first_m, second_m)]
    assert along_flow([frame] * 2, depths).rtc == rtc


def test_each_pair_counts_once_and_only_pixels_with_depth_count() -> None:
    frame = window(texture(), 0, 0)
    whole, shifted, holed = (np.full(SIZE_HW, value, np.float32) for value in (2.0, 2.1, 2.3))
    holed[:48] = 0
    holed[48:, :4], holed[48:, 4:8] = np.nan, np.inf
    result = along_flow([frame] * 3, [whole, shifted, holed])
    assert result.error_m == pytest.approx((0.1 + 0.2) / 2, rel=1e-5)
    assert result.share_used == pytest.approx((1 + 48 * 120 / (96 * 128)) / 2, abs=1e-3)


def test_bilinear_samples_leave_holes_out() -> None:
    """A sample between two pixels interpolates; a hole must not be mixed in as 0 m."""
    picture = cv2.resize(texture(), None, fx=2, fy=1, interpolation=cv2.INTER_LINEAR)
    frames = [np.ascontiguousarray(picture[:96, offset : offset + 256 : 2]) for offset in (40, 41)]
    depth_m = np.full(SIZE_HW, 4, np.float32)
    depth_m[:, ::9] = 0
    result = along_flow(frames, [depth_m] * 2)
    assert result.error_m < 1e-5
    assert result.share_used < 7 / 9 + 0.02


def test_a_scene_cut_has_few_correspondences() -> None:
    """Forward and backward flow disagree between different scenes."""
    frames = [window(texture(seed), 0, 0) for seed in (1, 2)]
    assert along_flow(frames, [depth_map()] * 2).share_used < 0.5


def test_reused_depth_arrays_are_copied() -> None:
    """Predictors overwrite the array of one frame with the next."""
    frame, reused = window(texture(), 0, 0), np.empty(SIZE_HW, np.float32)

    def depths() -> Iterator[Depth]:
        for value in (1.0, 2.0):
            reused[:] = value
            yield reused

    assert along_flow(iter([frame] * 2), depths()).error_m == 1


def test_two_depth_videos_share_the_flow() -> None:
    frame, empty = window(texture(), 0, 0), np.zeros(SIZE_HW, np.float32)
    meter = FlowMeter()
    for value in (1.0, 1.5):
        meter.add(frame, np.full(SIZE_HW, value, np.float32), empty)
    first, second = meter.results()
    assert first is not None
    assert first.error_m == 0.5
    assert second is None, "a video without depth has no result"


def test_one_frame_has_no_consistency() -> None:
    for meter, view in ((FlowMeter(), window(texture(), 0, 0)), (ReprojectionMeter(CAMERA), np.eye(4))):
        assert meter.results() == []
        meter.add(view, depth_map())
        assert meter.results() == [None]


def test_sizes_that_do_not_fit_are_refused() -> None:
    meter = FlowMeter()
    meter.add(window(texture(), 0, 0), depth_map())
    with pytest.raises(InputError, match="differ in size"):
        meter.add(texture(), depth_map(size_hw=(160, 200)))
    with pytest.raises(InputError, match="differ in size"):
        FlowMeter().add(texture(), depth_map())
    with pytest.raises(InputError, match="too small"):
        FlowMeter().add(texture(size_hw=(8, 40)), depth_map(size_hw=(8, 40)))


# Along camera poses

CAMERA = Camera(fx_px=110.0, fy_px=105.0, width_px=SIZE_HW[1], height_px=SIZE_HW[0], principal_point_px=(66.0, 45.0))


def pose(turn: tuple[float, float, float] = (0, 0, 0), at: tuple[float, float, float] = (0, 0, 0)) -> npt.NDArray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    matrix[:3, 3] = at
    return matrix


def seen_plane(camera: npt.NDArray, normal: tuple[float, float, float], distance_m: float) -> Depth:
    """Depth of the world's plane `normal . x = distance_m`, by the ray of every pixel."""
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    rays = np.stack(
        [(columns - CAMERA.cx_px) / CAMERA.fx_px, (rows - CAMERA.cy_px) / CAMERA.fy_px, np.ones(SIZE_HW)], axis=-1
    )
    in_world = rays @ camera[:3, :3].T
    return ((distance_m - np.dot(normal, camera[:3, 3])) / (in_world @ normal)).astype(np.float32)


def test_walking_towards_a_wall_with_exact_poses_has_no_error() -> None:
    path = [pose(at=(0, 0, step)) for step in (0, 0.4, 1.0)]
    depths = [np.full(SIZE_HW, 5 - step, np.float32) for step in (0, 0.4, 1.0)]
    result = along_path(depths, path)
    assert result.error_m == pytest.approx(0, abs=1e-6)
    assert (result.rtc, result.pairs) == (1, 2)
    # Walking forwards, all that is seen was seen before.
    assert result.share_used == 1
    # With the truth forgotten, the wall comes along: every point is off by the step.
    stuck = along_path([depths[0]] * 3, path)
    assert stuck.error_m == pytest.approx((0.4 + 0.6) / 2, rel=1e-5)


def test_a_still_camera_uses_every_pixel_to_the_border() -> None:
    depth_m = depth_map()
    somewhere = pose((0.3, -0.2, 0.1), (1, 2, 3))
    result = along_path([depth_m] * 2, [somewhere] * 2)
    assert result.error_m < 1e-3, "what positions in float32 leave"
    assert result.share_used > 0.95


@pytest.mark.parametrize("turn", [(0, 0.05, 0), (0.04, -0.03, 0.1)])
def test_a_turning_camera_before_a_slanted_wall(turn: tuple[float, float, float]) -> None:
    """Distinguishes camera-to-world from world-to-camera, rows from columns and fx from fy."""
    path = [pose(), pose(turn, (0.2, -0.1, 0.3))]
    depths = [seen_plane(camera, (0.2, 0.1, 0.97), 4.0) for camera in path]
    right = along_path(depths, path)
    assert right.error_m < 1e-3, "bilinear sampling of a plane's depth is nearly exact"
    assert right.rtc == 1
    wrong = along_path(depths, [np.linalg.inv(camera) for camera in path])
    assert wrong.error_m > 0.05


def test_reprojection_agrees_with_scipy_pixel_by_pixel() -> None:
    """A second implementation: points in the world by SciPy's rotations, sampled by map_coordinates."""
    smooth = [gaussian_filter(depth_map(seed, SIZE_HW), 6) + np.float32(seed) for seed in (1, 2)]
    turns, places = ((0.02, -0.03, 0.05), (-0.04, 0.01, 0.0)), ((0.1, 0.2, -0.1), (0.0, 0.1, 0.2))
    path = [pose(turn, place) for turn, place in zip(turns, places, strict=True)]
    ours = along_path(smooth, path)

    rows, columns = (part.ravel() for part in np.mgrid[: SIZE_HW[0], : SIZE_HW[1]])
    z = smooth[1].ravel().astype(np.float64)
    points = np.stack(
        [(columns - CAMERA.cx_px) / CAMERA.fx_px * z, (rows - CAMERA.cy_px) / CAMERA.fy_px * z, z], axis=-1
    )
    before, now = (Rotation.from_rotvec(turn) for turn in turns)
    there = before.inv().apply(now.apply(points) + places[1] - np.array(places[0]))
    u, v = (
        CAMERA.fx_px * there[:, 0] / there[:, 2] + CAMERA.cx_px,
        CAMERA.fy_px * there[:, 1] / there[:, 2] + CAMERA.cy_px,
    )
    inside = (u >= 0) & (u <= SIZE_HW[1] - 1) & (v >= 0) & (v <= SIZE_HW[0] - 1)
    sampled = map_coordinates(smooth[0].astype(np.float64), [v[inside], u[inside]], order=1)
    assert ours.share_used == pytest.approx(inside.mean(), abs=1e-3)
    assert ours.error_m == pytest.approx(np.abs(there[inside, 2] - sampled).mean(), rel=1e-3)


def test_points_behind_the_camera_are_not_seen() -> None:
    meter = ReprojectionMeter(CAMERA)
    for camera in (pose(), pose((0, np.pi, 0))):
        meter.add(camera, np.full(SIZE_HW, 2, np.float32))
    assert meter.results() == [None]


def write_path(folder: Path, poses: str, intrinsics: str | None = "110 105 66 45\n") -> Path:
    (folder / "poses.txt").write_text(poses, encoding="utf-8")
    if intrinsics is not None:
        (folder / "intrinsics.txt").write_text(intrinsics, encoding="utf-8")
    return folder


def named(*names: str) -> InMemory:
    return InMemory(samples=[Sample(name, window(texture(), 0, 0), depth_map()) for name in names])


def test_poses_are_read_by_name_as_tum_writes_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    turns = Rotation.random(2, rng=rng)
    places = rng.normal(size=(2, 3))
    lines = [
        " ".join(map(repr, [float(name), *place.tolist(), *turn.as_quat().tolist()]))
        for name, place, turn in zip(("2.5", "1.5"), places, turns, strict=True)
    ]
    folder = write_path(
        tmp_path, "# timestamp tx ty tz qx qy qz qw\n" + "\n".join(lines) + "\n\n9 0 0 0 0 0 0 1 # more\n"
    )
    path = read_camera_path(folder, named("1.5", "2.5"))
    assert path is not None
    assert path.camera == CAMERA
    for pose, turn, place in zip(path.poses, reversed(turns), reversed(places), strict=True):
        np.testing.assert_allclose(pose[:3, :3], turn.as_matrix(), atol=1e-12)
        np.testing.assert_allclose(pose[:, 3], [*place, 1])


def test_without_poses_there_is_no_path(tmp_path: Path) -> None:
    assert read_camera_path(tmp_path, named("1")) is None


@pytest.mark.parametrize(
    ("poses", "intrinsics", "why"),
    [
        ("1 0 0 0 0 0 0 1", None, "no camera's intrinsics"),
        ("2 0 0 0 0 0 0 1", "1 1 0 0", "no pose for 1 images, such as 1"),
        ("1 0 0 0 0 0 1", "1 1 0 0", "cannot be read"),
        ("1 0 0 0 0 0 0 1 5", "1 1 0 0", "cannot be read"),
        ("1 0 0 x 0 0 0 1", "1 1 0 0", "cannot be read"),
        ("1 0 0 nan 0 0 0 1", "1 1 0 0", "cannot be read"),
        ("1 0 0 0 0 0 0 2", "1 1 0 0", "cannot be read"),
        ("1 0 0 0 0 0 0 1", "1 1 0", "cannot be read"),
        ("1 0 0 0 0 0 0 1", "1 0 0 0", "cannot be read"),
        ("1 0 0 0 0 0 0 1", "1 1 0 0\n1 1 0 0", "cannot be read"),
    ],
)
def test_poses_that_cannot_be_used_are_refused(tmp_path: Path, poses: str, intrinsics: str | None, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_camera_path(write_path(tmp_path, poses, intrinsics), named("1"))
