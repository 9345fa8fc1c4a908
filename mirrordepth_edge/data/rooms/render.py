"""Rendering of indoor scenes with exact depth by PyBullet's software rasteriser: no GPU, no download.

`layout` generates a room, `light` bakes its light; this file rasterises it and reads image and depth.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.data.augment import DepthMap
from mirrordepth_edge.data.choose import NYU_CAMERA
from mirrordepth_edge.data.rooms.furniture import Points
from mirrordepth_edge.data.rooms.layout import Pose, Room, random_room
from mirrordepth_edge.data.rooms.light import Patch, light_surfaces
from mirrordepth_edge.data.sample import DepthDataset, Sample
from mirrordepth_edge.errors import MissingError, OptionError, missing_package
from mirrordepth_edge.imaging.draw import save_png
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import atomic_write

NYU_FOV_DEG = NYU_CAMERA.fov_deg
"""Horizontal field of view of NYU Depth v2's Kinect, degrees."""
NEAR_M, FAR_M = 0.1, 50.0
UNITS_PER_METRE = 1000
GENERATION = 1
"""Version of the generator; increased if the same seed gives other images."""

HAS_WHEEL = sys.version_info < (3, 12) and sys.platform == "linux" and platform.machine() == "x86_64"


def draw(patches: Sequence[Patch], camera: Camera, pose: Pose) -> tuple[Frame, DepthMap]:
    """Draw surfaces without further lighting.

    The depth buffer d in 0..1 is converted to metres along the optical axis by the inverse of OpenGL's perspective
    projection, z = far near / (far - (far - near) d).

    Args:
        patches: the surfaces.
        camera: intrinsics and size of the image.
        pose: of the camera.

    Returns:
        Image uint8 RGB `[H, W, 3]`, and depth float32 `[H, W]`, metres, 0 where no surface is hit.

    Raises:
        MissingError: PyBullet is not installed.
    """
    with _world() as bullet:
        return _rasterise(bullet, patches, camera, pose)


def render(room: Room, camera: Camera) -> tuple[Frame, DepthMap]:
    """Draw a room with its lighting; returns and raises as `draw`."""
    with _world() as bullet:
        mesh, _ = _mesh([surface.points_m for surface in room.surfaces])
        shape = bullet.createCollisionShape(bullet.GEOM_MESH, **mesh, flags=bullet.GEOM_FORCE_CONCAVE_TRIMESH)
        bullet.createMultiBody(0, shape)

        def blocked(starts_m: Points, ends_m: Points) -> npt.NDArray[np.bool_]:
            batch = bullet.MAX_RAY_INTERSECTION_BATCH_SIZE - 1
            hits: list[bool] = []
            for first in range(0, len(starts_m), batch):
                rays = starts_m[first : first + batch].tolist(), ends_m[first : first + batch].tolist()
                hits += [hit[0] >= 0 for hit in bullet.rayTestBatch(*rays, numThreads=1)]
            return np.array(hits, bool)

        seen = [surface for surface in room.surfaces if _may_be_seen(surface.points_m, camera, room.pose)]
        return _rasterise(bullet, light_surfaces(room._replace(surfaces=seen), blocked), camera, room.pose)


@dataclass(frozen=True, kw_only=True)
class RenderedRooms(DepthDataset):
    """Rooms rendered on access; sample i depends only on the seed and i."""

    count: int
    seed: int = 0
    size_hw: SizeHW = (480, 640)
    fov_deg: float = NYU_FOV_DEG

    @property
    def camera(self) -> Camera:
        return Camera.from_fov(self.fov_deg, self.size_hw)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """
        Raises:
            MissingError: PyBullet is not installed.
        """
        position = range(self.count)[index]
        frame, depth_m = render(random_room(np.random.default_rng((self.seed, position))), self.camera)
        return Sample(self.name(position), frame, depth_m)

    def name(self, index: int) -> str:
        return f"room-{self.seed}-{range(self.count)[index]:06d}"

    def files(self) -> list[Path]:
        return []

    def fingerprint(self) -> str:
        described = f"{GENERATION} {self.count} {self.seed} {self.size_hw} {self.fov_deg!r}"
        return hashlib.sha256(described.encode()).hexdigest()


def write_rooms(rooms: RenderedRooms, root: Path) -> Iterator[bool]:
    """Render the rooms that are missing in `root`: rgb/NAME.png, depth/NAME.png in millimetres, camera.json.

    The folder can be read by `data.folder`. `camera.json` describes the camera of all images. Rooms of several
    seeds may share a folder.

    Args:
        rooms: the rooms.
        root: folder to fill.

    Yields:
        For each room in order, after it is complete: True if it was rendered now, False if it existed.

    Raises:
        OptionError: `root` holds other images, or images of another camera.
        InputError: `root` cannot be written.
        MissingError: PyBullet is not installed.
    """
    require_pybullet()
    path, camera = root / "camera.json", rooms.camera
    (height, width), cx, cy, focal = camera.size_hw, camera.cx_px, camera.cy_px, camera.fx_px
    intrinsics = {"width": width, "height": height, "fx": focal, "fy": focal, "cx": cx, "cy": cy}
    text = json.dumps(intrinsics | {"units_per_metre": UNITS_PER_METRE, "generation": GENERATION}, indent=2) + "\n"
    if (path.read_text(encoding="utf-8") if path.is_file() else "") != text:
        if path.exists() or (root / "rgb").exists():
            raise OptionError(
                f"{root} holds images of another origin or camera.",
                f"{path} differs in size, field of view or generation." if path.exists() else f"It has no {path.name}.",
                "Name another folder, or use the same --size and --fov-deg.",
            )
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for index in range(len(rooms)):
        image, depth = (root / kind / f"{rooms.name(index)}.png" for kind in ("rgb", "depth"))
        missing = not (image.is_file() and depth.is_file())
        if missing:
            sample = rooms[index]
            # Depth first: readers of the folder refuse an image without depth.
            save_png(depth, np.round(sample.depth_m * UNITS_PER_METRE).astype(np.uint16))
            save_png(image, sample.frame)
        yield missing


def require_pybullet() -> ModuleType:
    """Import PyBullet without its banner.

    Raises:
        MissingError: it is not installed.
    """
    try:
        with _silent_stderr():  # it prints its build date
            import pybullet
    except ImportError as error:
        if not HAS_WHEEL:  # the extra 'render' is empty on this platform
            raise MissingError(
                "Rendering rooms needs PyBullet, which is not installed.",
                "Its wheels exist only for Python 3.10 and 3.11 on Linux x86-64.",
                "Render there and copy the folder, or compile it: pip install pybullet",
            ) from error
        raise missing_package("PyBullet", "Rendering rooms", "render") from error
    return pybullet  # type: ignore[no-any-return]


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what compiled code writes to stderr."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _world() -> Iterator[Any]:
    """PyBullet's functions, bound to a world that exists inside the block."""
    bullet = require_pybullet()
    server = bullet.connect(bullet.DIRECT)

    class World:  # pybullet_utils' BulletClient does the same, but prints to stdout
        def __getattr__(self, name: str) -> Any:
            value = getattr(bullet, name)
            return partial(value, physicsClientId=server) if callable(value) else value

    try:
        yield World()
    finally:
        bullet.disconnect(physicsClientId=server)


def _may_be_seen(grid: Points, camera: Camera, pose: Pose) -> bool:
    """Whether a surface may be visible: not entirely outside the view frustum, not flat and seen from behind."""
    if grid.shape[:2] == (2, 2):
        normal = np.cross(grid[1, 0] - grid[0, 0], grid[0, 1] - grid[0, 0])
        if normal @ (pose.position_m - grid[0, 0]) <= 0:
            return False
    right, down, forward = ((grid.reshape(-1, 3) - pose.position_m) @ pose.axes).T
    widest, highest = (side / 2 / camera.fx_px * forward for side in camera.size_hw[::-1])
    outside = (forward < NEAR_M, right > widest, -right > widest, down > highest, -down > highest)
    return not any(side.all() for side in outside)


def _mesh(grids: Sequence[Points]) -> tuple[dict[str, Any], int]:
    """Convert surfaces to PyBullet's mesh arguments and their number of vertices.

    Triangles are counter-clockwise seen from the front.
    """
    triangles, first = [], 0
    for grid in grids:
        index = first + np.arange(grid.size // 3).reshape(grid.shape[:2])
        a, b, c, d = (index[r, k].ravel() for r in (np.s_[:-1], np.s_[1:]) for k in (np.s_[:-1], np.s_[1:]))
        triangles.append(np.stack([a, c, d, a, d, b], axis=1).reshape(-1, 3))
        first += index.size
    vertices = np.concatenate([grid.reshape(-1, 3) for grid in grids])
    return {"vertices": vertices.tolist(), "indices": np.concatenate(triangles).ravel().tolist()}, len(vertices)


def _atlas(patches: Sequence[Patch], width: int = 2048) -> tuple[Frame, Points]:
    """Pack all textures into one atlas by shelves, tallest first.

    TinyRenderer takes the nearest texel, so texture coordinates run from the centre of the first texel to the centre
    of the last.

    Returns:
        The atlas, uint8 RGB, and the position of each vertex in it, texels `[V, 2]`.
    """
    corners, top, left, shelf = [(0, 0)] * len(patches), 0, 0, 0
    for index in sorted(range(len(patches)), key=lambda index: -patches[index].texture.shape[0]):
        rows, columns = patches[index].texture.shape[:2]
        if left + columns > width:
            top, left, shelf = top + shelf, 0, 0
        corners[index], left, shelf = (left, top), left + columns, max(shelf, rows)
    sheet, places = np.zeros((top + shelf, width, 3), np.uint8), []
    for (grid, texture), corner in zip(patches, corners, strict=True):
        (rows, columns), (left, top) = texture.shape[:2], corner
        sheet[top : top + rows, left : left + columns] = texture
        down, right = (np.linspace(0.5, side - 0.5, n) for side, n in zip((rows, columns), grid.shape, strict=False))
        places.append(np.stack(np.meshgrid(left + right, top + down), axis=2).reshape(-1, 2))
    return sheet, np.concatenate(places)


def _rasterise(bullet: Any, patches: Sequence[Patch], camera: Camera, pose: Pose) -> tuple[Frame, DepthMap]:
    sheet, texels = _atlas(patches)
    mesh, count = _mesh([patch.points_m for patch in patches])
    uvs, normals = np.array([0, 1]) + texels / sheet.shape[1::-1] * (1, -1), [[0.0, 0.0, 1.0]] * count
    shape = bullet.createVisualShape(
        bullet.GEOM_MESH, **mesh, uvs=uvs.tolist(), normals=normals, rgbaColor=[1, 1, 1, 1]
    )
    body = bullet.createMultiBody(0, -1, shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texture.bmp"
        path.write_bytes(cv2.imencode(".bmp", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
        texture = bullet.loadTexture(str(path))
    bullet.changeVisualShape(body, -1, textureUniqueId=texture)
    height, width = camera.size_hw
    image = bullet.getCameraImage(
        width,
        height,
        _view_matrix(pose),
        _projection_matrix(camera),
        renderer=bullet.ER_TINY_RENDERER,
        shadow=0,
        lightAmbientCoeff=1.0,
        lightDiffuseCoeff=0.0,
        lightSpecularCoeff=0.0,
    )
    frame = np.asarray(image[2], np.uint8).reshape(height, width, 4)[..., :3]
    buffer, bodies = (np.asarray(plane, np.float64).reshape(height, width) for plane in image[3:5])
    depth_m = np.where(bodies >= 0, FAR_M * NEAR_M / (FAR_M - (FAR_M - NEAR_M) * buffer), 0)
    return np.ascontiguousarray(frame), depth_m.astype(np.float32)


def _view_matrix(pose: Pose) -> list[float]:
    """World to OpenGL's eye coordinates (right, up, backward), column-major."""
    eye = pose.axes * (1, -1, -1)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = eye.T, -eye.T @ pose.position_m
    return [float(value) for value in matrix.T.ravel()]


def _projection_matrix(camera: Camera) -> list[float]:
    """OpenGL's perspective projection, column-major, with TinyRenderer's pixel offset.

    TinyRenderer samples column c at x = 2 c / W - 1 and row r at y = 2 (H - 1 - r) / H - 1, a pixel's corner instead
    of its centre (bullet3, examples/TinyRenderer/our_gl.cpp). The offsets place the optical axis at (cx, cy).
    """
    (height, width), cx, cy, focal = camera.size_hw, camera.cx_px, camera.cy_px, camera.fx_px
    matrix = np.zeros((4, 4))
    matrix[0, 0], matrix[0, 2] = 2 * focal / width, 1 - 2 * cx / width
    matrix[1, 1], matrix[1, 2] = 2 * focal / height, 1 - 2 * (height - 1 - cy) / height
    matrix[2, 2], matrix[2, 3] = -(FAR_M + NEAR_M) / (FAR_M - NEAR_M), -2 * FAR_M * NEAR_M / (FAR_M - NEAR_M)
    matrix[3, 2] = -1
    return [float(value) for value in matrix.T.ravel()]
