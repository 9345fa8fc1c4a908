"""Point clouds from depth maps, and PLY files.

Coordinates are metres from the camera in the convention of OpenCV and of ROS's optical frames: x right, y down, z
forward. Depth is z, the distance along the optical axis, as in depth cameras and NYU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.camera.model import Camera, Lens, camera_at
from mirrordepth_edge.config import NormalisedFocal, SizeHW
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap, has_depth
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import atomic_write

PLY_VERTEX = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])
PLY_TYPES = {"<f4": "float", "|u1": "uchar"}


def camera_for(camera: Camera | Lens | None, trained: NormalisedFocal | None, size_hw: SizeHW) -> Camera:
    """Return the camera for frames of this size, as `camera_at`, which must be known.

    Raises:
        OptionError: neither camera is known, or the frames' aspect ratio is not the camera's.
    """
    known = camera_at(camera, trained, size_hw)
    if known is None:
        raise OptionError(
            "A point cloud needs the camera's focal length.",
            "None was given, and the model does not record its training camera.",
            "Describe the camera: --fov-deg D, --focal-px F or --calibration FILE",
        )
    return known


def camera_matrix(camera: Camera) -> npt.NDArray[np.float64]:
    """Return K, float64 `[3, 3]`: (u, v, 1) ~ K (x, y, z), metres to pixels; (0, 0) is the first pixel's centre."""
    return np.array([[camera.fx_px, 0, camera.cx_px], [0, camera.fy_px, camera.cy_px], [0, 0, 1]], np.float64)


def points_of(depth_m: DepthMap, camera: Camera, *, step: int = 1) -> npt.NDArray[np.float32]:
    """Return the 3-D point of each pixel: x = (u - cx) z / fx, y = (v - cy) z / fy.

    Args:
        depth_m: float32 `[H, W]`, metres.
        camera: the camera at this frame size.
        step: use every `step`-th row and column.

    Returns:
        float32 `[ceil(H / step), ceil(W / step), 3]`, metres; not finite where depth is not.
    """
    height, width = depth_m.shape
    z = depth_m[::step, ::step]
    columns = (np.arange(0, width, step) - camera.cx_px) / camera.fx_px
    rows = (np.arange(0, height, step) - camera.cy_px) / camera.fy_px
    points = np.empty((*z.shape, 3), np.float32)
    with np.errstate(invalid="ignore"):  # 0 times infinity, on the optical axis
        np.multiply(z, columns.astype(np.float32), out=points[..., 0])
        np.multiply(z, rows.astype(np.float32)[:, None], out=points[..., 1])
    points[..., 2] = z
    return points


def save_ply(path: Path, depth_m: DepthMap, frame: Frame, camera: Camera) -> None:
    """Write a coloured point cloud as binary little-endian PLY. The file is replaced atomically.

    Args:
        depth_m: float32 `[H, W]`, metres; pixels without depth give no point.
        frame: uint8 RGB `[H, W, 3]`.
        camera: the camera at this frame size.

    Raises:
        InputError: the file cannot be written.
    """
    valid = has_depth(depth_m)
    vertices = np.empty(np.count_nonzero(valid), PLY_VERTEX)
    vertices["x"], vertices["y"], vertices["z"] = points_of(depth_m, camera)[valid].T
    vertices["red"], vertices["green"], vertices["blue"] = frame[valid].T
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres; x right, y down, z forward (OpenCV)",
        f"comment camera fx {camera.fx_px:.3f} fy {camera.fy_px:.3f} px of {camera.width_px}x{camera.height_px}",
        f"element vertex {len(vertices)}",
        *(f"property {PLY_TYPES[PLY_VERTEX[name].str]} {name}" for name in PLY_VERTEX.names or ()),
        "end_header",
    ]
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*header, ""]).encode("ascii"))
        file.write(vertices.tobytes())
