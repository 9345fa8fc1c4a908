"""Point clouds against closed forms, and PLY files read by an independent parser."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.camera.pointcloud import camera_for, camera_matrix, points_of, save_ply
from mirrordepth_edge.errors import InputError, OptionError

SIZE_HW = (5, 8)
CAMERA = Camera(fx_px=7.0, fy_px=6.0, width_px=8, height_px=5)


def read_ply(path: Path) -> tuple[list[str], list[tuple[float, ...]]]:
    """Header lines and vertices, by the PLY format's own description and one number at a time."""
    data = path.read_bytes()
    end = data.index(b"end_header\n") + len(b"end_header\n")
    header = data[:end].decode("ascii").splitlines()
    assert header[:2] == ["ply", "format binary_little_endian 1.0"]
    kinds = {"float": "f", "uchar": "B"}
    layout = "<" + "".join(kinds[line.split()[1]] for line in header if line.startswith("property"))
    (count,) = (int(line.split()[2]) for line in header if line.startswith("element vertex"))
    assert len(data) - end == count * struct.calcsize(layout)
    return header, list(struct.iter_unpack(layout, data[end:]))


def frame() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)


def test_a_wall_is_a_plane() -> None:
    """z = 2 everywhere; x and y from pixel to pixel differ by z / f; the image centre is on the axis."""
    points = points_of(np.full(SIZE_HW, 2.0, np.float32), CAMERA)
    assert points.dtype == np.float32
    assert points.shape == (*SIZE_HW, 3)
    for v in range(5):
        for u in range(8):
            assert points[v, u] == pytest.approx(((u - 3.5) / 7 * 2, (v - 2.0) / 6 * 2, 2.0), abs=1e-6)


def test_points_project_onto_their_pixels() -> None:
    """Against OpenCV's projection."""
    depth_m = np.random.default_rng(1).uniform(0.3, 9.0, SIZE_HW).astype(np.float32)
    points = points_of(depth_m, CAMERA).reshape(-1, 3).astype(np.float64)
    pixels, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera_matrix(CAMERA), np.zeros(5))
    v, u = np.mgrid[:5, :8]
    np.testing.assert_allclose(pixels[:, 0], np.stack([u.ravel(), v.ravel()], axis=1), atol=1e-4)


def test_step_skips_rows_and_columns() -> None:
    depth_m = np.random.default_rng(2).uniform(1, 2, SIZE_HW).astype(np.float32)
    np.testing.assert_array_equal(points_of(depth_m, CAMERA, step=3), points_of(depth_m, CAMERA)[::3, ::3])


def test_the_camera_matrix() -> None:
    camera = Camera(fx_px=7.0, fy_px=6.0, width_px=8, height_px=5, principal_point_px=(3.0, 2.5))
    np.testing.assert_array_equal(camera_matrix(camera), [[7, 0, 3], [0, 6, 2.5], [0, 0, 1]])
    np.testing.assert_array_equal(camera_matrix(CAMERA), [[7, 0, 3.5], [0, 6, 2], [0, 0, 1]])


def test_the_camera_of_a_point_cloud() -> None:
    given = Camera(fx_px=70, fy_px=60, width_px=80, height_px=50)
    assert camera_for(given, (0.5, 0.5), SIZE_HW) == CAMERA
    assert camera_for(Lens(focal_px=9.0), None, SIZE_HW) == Camera.from_focal(9.0, SIZE_HW)
    assert camera_for(None, (0.875, 1.2), SIZE_HW) == CAMERA
    with pytest.raises(OptionError, match="needs the camera's focal length") as caught:
        camera_for(None, None, SIZE_HW)
    assert "--fov-deg" in caught.value.cure
    with pytest.raises(OptionError, match="calibrated at 80x50"):
        camera_for(given, None, (8, 8))


def test_a_ply_file(tmp_path: Path) -> None:
    image = frame()
    path = tmp_path / "new" / "wall.ply"
    save_ply(path, np.full(SIZE_HW, 2.0, np.float32), image, CAMERA)
    header, vertices = read_ply(path)
    assert [line for line in header if line.startswith("property")] == [
        "property float x",
        "property float y",
        "property float z",
        "property uchar red",
        "property uchar green",
        "property uchar blue",
    ]
    assert "comment metres; x right, y down, z forward (OpenCV)" in header
    assert "comment camera fx 7.000 fy 6.000 px of 8x5" in header
    expected = [((u - 3.5) / 7 * 2, (v - 2.0) / 6 * 2, 2.0, *image[v, u]) for v in range(5) for u in range(8)]
    np.testing.assert_allclose(vertices, expected, atol=1e-6)


def test_pixels_without_depth_give_no_point(tmp_path: Path) -> None:
    depth_m = np.zeros(SIZE_HW, np.float32)
    depth_m[:, :4] = np.nan
    depth_m[2] = np.inf
    depth_m[1, 6] = 3.0
    image = frame()
    save_ply(tmp_path / "one.ply", depth_m, image, CAMERA)
    _, vertices = read_ply(tmp_path / "one.ply")
    assert len(vertices) == 1
    assert vertices[0] == pytest.approx((2.5 / 7 * 3, -1 / 6 * 3, 3.0, *image[1, 6]))


def test_an_unwritable_path_is_reported(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="Cannot write"):
        save_ply(tmp_path / "taken" / "a.ply", np.ones(SIZE_HW, np.float32), frame(), CAMERA)
