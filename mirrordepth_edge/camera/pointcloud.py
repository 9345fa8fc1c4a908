"""Depth and a camera as points in space, and PLY files of them.

Axes are those of OpenCV and of ROS's optical frames: x to the right, y down, z forward, from the camera, in
metres. Depth is z, the distance along the optical axis, as depth cameras and NYU give it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.config import NormalisedFocal, SizeHW
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import atomic_write

PLY_VERTEX = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")],
)
PLY_TYPES = {"<f4": "float", "|u1": "uchar"}


def camera_for(camera: Camera | Lens | None, trained: NormalisedFocal | None, size_hw: SizeHW) -> Camera:
    """The camera that frames of this size are seen through.

    Args:
        camera: as the user describes it; None where it is the one that the model was trained with.
        trained: fx/W and fy/H of that one (`ModelConfig.focal`).

    Raises:
        OptionError: neither is known, or the camera has no frames of this shape.
    """
    if camera is not None:
        return camera.at(size_hw)
    if trained is None:
        raise OptionError(
            "Points in space need the camera.",
            "The model does not say with which camera it was trained, and no other one is given.",
            "Say which: --fov-deg D, --focal-px F or --calibration FILE",
        )
    height, width = size_hw
    return Camera(fx_px=trained[0] * width, fy_px=trained[1] * height, width_px=width, height_px=height)


def camera_matrix(camera: Camera) -> npt.NDArray[np.float64]:
    """K, `[3, 3]`: (u, v, 1) ~ K (x, y, z), pixels from metres.

    (0, 0) is the middle of the first pixel. The principal point, which `Camera` does not know, is taken to be
    the middle of the picture: cx = (W - 1) / 2, cy = (H - 1) / 2.
    """
    cx_px, cy_px = (camera.width_px - 1) / 2, (camera.height_px - 1) / 2
    return np.array([[camera.fx_px, 0, cx_px], [0, camera.fy_px, cy_px], [0, 0, 1]], np.float64)


def points_of(depth_m: DepthMap, camera: Camera, *, step: int = 1) -> npt.NDArray[np.float32]:
    """The point that each pixel sees: x = (u - cx) z / fx, y = (v - cy) z / fy.

    Args:
        depth_m: float32 `[H, W]`, metres.
        camera: of frames of this size.
        step: take every so many rows and columns.

    Returns:
        float32 `[ceil(H / step), ceil(W / step), 3]`, metres; not finite where depth is not.
    """
    height, width = depth_m.shape
    (fx, _, cx), (_, fy, cy), _ = camera_matrix(camera)
    z = depth_m[::step, ::step]
    points = np.empty((*z.shape, 3), np.float32)
    with np.errstate(invalid="ignore"):  # 0 times infinity, on the optical axis
        np.multiply(z, ((np.arange(0, width, step) - cx) / fx).astype(np.float32), out=points[..., 0])
        np.multiply(z, ((np.arange(0, height, step) - cy) / fy).astype(np.float32)[:, None], out=points[..., 1])
    points[..., 2] = z
    return points


def has_depth(depth_m: DepthMap) -> npt.NDArray[np.bool_]:
    """Where there is something: neither 0 nor NaN nor infinite. Shape as given."""
    return np.isfinite(depth_m) & (depth_m > 0)


def save_ply(path: Path, depth_m: DepthMap, frame: Frame, camera: Camera) -> None:
    """Write the points of a picture with their colours, whole: binary little-endian PLY.

    Args:
        depth_m: float32 `[H, W]`, metres; pixels without depth give no point.
        frame: uint8 RGB `[H, W, 3]`.
        camera: of frames of this size.

    Raises:
        InputError: the file cannot be written.
    """
    there = has_depth(depth_m)
    vertices = np.empty(np.count_nonzero(there), PLY_VERTEX)
    vertices["x"], vertices["y"], vertices["z"] = points_of(depth_m, camera)[there].T
    vertices["red"], vertices["green"], vertices["blue"] = frame[there].T
    fields = {name: PLY_TYPES[PLY_VERTEX[name].str] for name in PLY_VERTEX.names or ()}
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres; x right, y down, z forward (OpenCV)",
        f"comment seen through fx {camera.fx_px:.3f} fy {camera.fy_px:.3f} px of {camera.width_px}x{camera.height_px}",
        f"element vertex {len(vertices)}",
        *(f"property {kind} {name}" for name, kind in fields.items()),
        "end_header",
    ]
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*header, ""]).encode("ascii"))
        file.write(vertices.tobytes())
