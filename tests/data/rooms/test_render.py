"""Rendered depth against geometry in closed form, and rooms against rays cast in float64."""

from __future__ import annotations

import json
import math
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mirrordepth_edge.camera.model import Camera
from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.data.rooms import render as rendered
from mirrordepth_edge.data.rooms.furniture import Paint, Surface, box, quad
from mirrordepth_edge.data.rooms.layout import Lamp, Pose, Room, camera_pose, random_room
from mirrordepth_edge.data.rooms.light import Patch, light_surfaces
from mirrordepth_edge.data.rooms.render import NYU_FOV_DEG, RenderedRooms, draw, write_rooms
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import MissingError, OptionError

Float = NDArray[np.float64]
needs_pybullet = pytest.mark.skipif(find_spec("pybullet") is None, reason="rooms are rendered by PyBullet")

SMALL = Camera.from_fov(NYU_FOV_DEG, (96, 128))
LEVEL = camera_pose(np.zeros(3), 0, 0, 0)
"""From the origin along +y, upright."""
TILTED = camera_pose(np.array([0.4, -0.7, 1.5]), 0.5, -0.35, 0.2)
RED, BLUE = np.array([255, 0, 0], np.uint8), np.array([0, 0, 255], np.uint8)


def flat(middle: list[float], right: list[float], down: list[float], colour: NDArray[np.uint8] = RED) -> Patch:
    """A rectangle of one colour; `right` and `down` reach from its middle to its edges."""
    m, r, d = np.array(middle, float), np.array(right, float), np.array(down, float)
    return Patch(np.array([[m - d - r, m - d + r], [m + d - r, m + d + r]]), np.tile(colour, (2, 2, 1)))


def rays(camera: Camera, pose: Pose) -> Float:
    """Where each pixel looks, `[H, W, 3]` in the world, one metre along the optical axis."""
    rows, columns = np.mgrid[: camera.size_hw[0], : camera.size_hw[1]].astype(np.float64)
    focal = camera.size_hw[1] / (2 * math.tan(math.radians(camera.fov_deg) / 2))
    x, y = (columns - (camera.size_hw[1] - 1) / 2) / focal, (rows - (camera.size_hw[0] - 1) / 2) / focal
    right, down, forward = pose.axes.T
    return x[..., None] * right + y[..., None] * down + forward


# --- Depth of known geometry ---


@needs_pybullet
@pytest.mark.parametrize("distance_m", [0.15, 3.0, 30.0])
@pytest.mark.parametrize("size_hw", [(96, 128), (61, 33), (1, 1)])
def test_depth_of_a_wall(distance_m: float, size_hw: SizeHW) -> None:
    wall = flat([0, distance_m, 0], [99, 0, 0], [0, 0, -99])
    frame, depth_m = draw([wall], Camera.from_fov(NYU_FOV_DEG, size_hw), LEVEL)
    assert frame.shape == (*size_hw, 3)
    assert (frame.dtype, depth_m.dtype) == (np.uint8, np.float32)
    # float32 in the depth buffer: its steps grow with the square of the distance.
    np.testing.assert_allclose(depth_m, distance_m, rtol=2e-6 + 2e-6 * distance_m)
    assert (frame == RED).all()


@needs_pybullet
@pytest.mark.parametrize("fov_deg", [30.0, NYU_FOV_DEG, 100.0])
@pytest.mark.parametrize("size_hw", [(96, 128), (75, 49)])
def test_a_floor_under_a_tilted_camera(fov_deg: float, size_hw: SizeHW) -> None:
    camera = Camera.from_fov(fov_deg, size_hw)
    floor = flat([0, 0, 0], [9, 0, 0], [0, -9, 0])
    _, depth_m = draw([floor], camera, TILTED)
    ray = rays(camera, TILTED)
    with np.errstate(divide="ignore"):
        truth_m = -TILTED.position_m[2] / ray[..., 2]
    hit_m = TILTED.position_m + truth_m[..., None] * ray
    outermost = np.abs(hit_m[..., :2]).max(axis=2)
    on_it, off_it = (truth_m > 0) & (outermost < 8.95), (truth_m <= 0) | (outermost > 9.05)
    assert on_it.sum() > 300
    np.testing.assert_allclose(depth_m[on_it], truth_m[on_it], rtol=4e-5)
    assert (depth_m[off_it] == 0).all()
    # Half a pixel's shift either way would be seen: depth changes by more from row to row.
    step = np.abs(np.diff(truth_m, axis=0))[on_it[1:] & on_it[:-1]] / truth_m[1:][on_it[1:] & on_it[:-1]]
    assert np.median(step) / 2 > 10 * 4e-5


@needs_pybullet
def test_depth_of_a_ball() -> None:
    radius_m, middle_m = 0.6, np.array([0.2, 2.0, 0.9])
    polar, turn = np.linspace(0, np.pi, 181)[:, None], np.linspace(0, 2 * np.pi, 361)[None]
    directions = np.broadcast_arrays(np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar))
    ball = Patch(middle_m + radius_m * np.stack(directions, axis=2), np.full((2, 2, 3), 200, np.uint8))
    pose = camera_pose(np.array([0.4, -0.7, 1.5]), 0.05, -0.2, 0.3)
    _, depth_m = draw([ball], SMALL, pose)
    ray, towards = rays(SMALL, pose), middle_m - pose.position_m
    # |t ray - towards| = radius, the nearer root.
    a, b = (ray**2).sum(axis=2), ray @ towards
    inside = b**2 - a * (towards @ towards - radius_m**2)
    truth_m = (b - np.sqrt(np.maximum(inside, 0))) / a
    missed_m = np.sqrt(np.maximum(towards @ towards - b**2 / a, 0))
    core, off = missed_m < 0.97 * radius_m, missed_m > 1.001 * radius_m
    assert core.sum() > 1000
    np.testing.assert_allclose(depth_m[core], truth_m[core], atol=1e-3)  # a ball of flat pieces
    assert np.abs(depth_m[core] - truth_m[core]).mean() < 2e-4
    assert (depth_m[off] == 0).all()


@needs_pybullet
def test_nearer_surfaces_hide_farther_ones_and_backs_are_invisible() -> None:
    near, far = flat([0, 2, 0], [9, 0, 0], [0, 0, -9]), flat([0, 4, 0], [9, 0, 0], [0, 0, -9], BLUE)
    back = flat([0, 1, 0], [-9, 0, 0], [0, 0, -9])
    for order in ([near, far, back], [back, far, near]):
        frame, depth_m = draw(order, SMALL, LEVEL)
        np.testing.assert_allclose(depth_m, 2, rtol=1e-5)
        assert (frame == RED).all()
    assert (draw([back], SMALL, LEVEL)[1] == 0).all()


# --- Picture and depth lie on one another ---


@needs_pybullet
def test_edges_of_picture_and_depth_coincide() -> None:
    """A red board before a blue wall: where it is red it is near, and both end where geometry says."""
    board, wall = flat([0.31, 2, 0.17], [0.4, 0, 0], [0, 0, -0.3]), flat([0, 4, 0], [9, 0, 0], [0, 0, -9], BLUE)
    pose = camera_pose(np.zeros(3), 0, 0, 0.3)
    frame, depth_m = draw([wall, board], SMALL, pose)
    np.testing.assert_array_equal(frame[..., 0] == 255, depth_m < 3)
    np.testing.assert_array_equal(frame[..., 2] == 255, depth_m > 3)
    at = 2 * rays(SMALL, pose)  # both axes level: forward is y
    beyond = np.maximum(np.abs(at[..., 0] - 0.31) - 0.4, np.abs(at[..., 2] - 0.17) - 0.3)
    assert (depth_m[beyond < -0.001] < 3).all()
    assert (depth_m[beyond > 0.001] > 3).all()


@needs_pybullet
def test_textures_are_upright_and_in_place() -> None:
    """Every texel has its own colour; each pixel must show the one its ray meets."""
    rows, columns = np.mgrid[:40, :60]
    picture = np.stack([rows * 6, columns * 4, np.full_like(rows, 9)], axis=2).astype(np.uint8)
    hung = Patch(flat([0, 2, 0], [0.9, 0, 0], [0, 0, -0.6]).points_m, picture)
    other = Patch(flat([0, 5, 0], [9, 0, 0], [0, 0, -9]).points_m, np.full((77, 31, 3), 255, np.uint8))
    frame, depth_m = draw([other, hung], SMALL, LEVEL)
    at = 2 * rays(SMALL, LEVEL)
    # From the middle of the first texel to the middle of the last, over the whole surface.
    column, row = 0.5 + 59 * (at[..., 0] + 0.9) / 1.8, 0.5 + 39 * (0.6 - at[..., 2]) / 1.2
    shown = (depth_m > 0) & (depth_m < 3)
    assert shown.sum() > 3000
    assert np.abs(frame[shown][:, 0] / 6 - (row[shown] - 0.5)).max() <= 0.51
    assert np.abs(frame[shown][:, 1] / 4 - (column[shown] - 0.5)).max() <= 0.51


@needs_pybullet
def test_atlas_textures_do_not_mix() -> None:
    """Forty boards with a colour each, in pictures of many sizes, in one row."""
    colours = [np.array([6 * n, 255 - 6 * n, 17 * n % 256], np.uint8) for n in range(40)]
    boards = []
    for n, colour in enumerate(colours):
        board = flat([-0.975 + 0.05 * n, 2, 0], [0.025, 0, 0], [0, 0, -2], colour)
        boards.append(board._replace(texture=np.tile(colour, (2 + 37 * n % 900, 2 + 53 * n % 700, 1))))
    frame, _ = draw(boards, Camera.from_fov(NYU_FOV_DEG, (9, 400)), LEVEL)
    across = 2 * rays(Camera.from_fov(NYU_FOV_DEG, (9, 400)), LEVEL)[4, :, 0]
    cell = (across + 1) / 0.05
    for column in np.flatnonzero((np.abs(across) < 1) & (np.abs(cell - np.round(cell)) > 0.05)):
        assert frame[4, column].tolist() == colours[int(cell[column])].tolist()


def test_nyus_camera() -> None:
    camera = Camera.from_fov(NYU_FOV_DEG, (480, 640))
    assert camera.fx_px == pytest.approx(518.857901)
    assert (camera.cx_px, camera.cy_px) == (319.5, 239.5)
    assert Camera.from_fov(NYU_FOV_DEG, (240, 320)).fx_px == pytest.approx(518.857901 / 2)


# --- Light ---

WHITE = Paint(pattern="plain", colour=(0.5, 0.5, 0.5), second=(0.5, 0.5, 0.5), step_m=1, seed=0)


def floor_in_light(lamp_m: list[float]) -> Room:
    floor = quad(np.zeros(3), np.array([3.0, 0, 0]), np.array([0, -3.0, 0]), WHITE)
    return Room([floor], [Lamp(np.array([lamp_m]), (1, 1, 1))], LEVEL, 0.7)


def linear(patch: Patch) -> Float:
    """Light of a patch as read back from its picture, smoothed over its grain."""
    light = (patch.texture.astype(np.float64) / 255).mean(axis=2) ** 2
    return cv2.blur(light, (31, 31))


def test_light_falls_off_with_distance_and_angle() -> None:
    """A lamp h above the floor: E(r) = h / (r² + h²)^1.5, by Lambert and the inverse square."""
    height_m = 3.0  # so high that the softening of very near lamps (0.1 m²) is below 2 %
    light = linear(
        light_surfaces(floor_in_light([0, 0, height_m]), lambda starts, ends: np.zeros(len(starts), bool))[0]
    )
    x = np.linspace(-3, 3, light.shape[1])
    along = light[light.shape[0] // 2]
    expected = height_m / (x**2 + height_m**2) ** 1.5
    slope, offset = np.polyfit(expected, along, 1)  # what comes from everywhere is the same all over
    inner = np.abs(x) < 2.7
    np.testing.assert_allclose(slope * expected[inner] + offset, along[inner], atol=0.02 * along.max())
    assert slope > 0
    assert along.max() > 1.5 * along[inner].min()


@needs_pybullet
def test_a_board_throws_the_shadow_of_geometry() -> None:
    """Half-way between lamp and floor, a board's shadow is twice its size."""
    room = floor_in_light([0, 0, 2.0])
    board = box(0.5, 0, 1.0, (1.0, 1.0, 0.01), WHITE)
    # Seen from above, from under the board: the floor alone is in the picture.
    room = room._replace(surfaces=room.surfaces + board, pose=camera_pose(np.array([0.0, 0, 0.95]), 0, -np.pi / 2, 0))
    frame, depth_m = rendered.render(room, Camera.from_fov(140, (120, 160)))
    at = room.pose.position_m + depth_m[..., None] * rays(Camera.from_fov(140, (120, 160)), room.pose)
    floor = depth_m > 0
    # The board spans 0..1 in x and -0.5..0.5 in y, so its shadow 0..2 and -1..1.
    margin = np.minimum(np.minimum(at[..., 0], 2 - at[..., 0]), 1 - np.abs(at[..., 1]))
    level = frame.mean(axis=2)
    shadow, open_ = level[floor & (margin > 0.3)], level[floor & (margin < -0.3) & (np.abs(at).max(axis=2) < 1.4)]
    assert min(shadow.size, open_.size) > 300
    assert shadow.max() < open_.min()


# --- Rooms ---


@pytest.fixture(scope="module")
def rooms() -> RenderedRooms:
    return RenderedRooms(count=3, seed=3, size_hw=(72, 96))


@pytest.fixture(scope="module")
def samples(rooms: RenderedRooms) -> list[Sample]:
    return list(rooms)


def nearest_m(surfaces: list[Surface], origin: Float, ray: Float) -> float:
    """Smallest t > 0 at which origin + t ray meets a triangle, either side (Möller and Trumbore, 1997)."""
    corners = []
    for surface in surfaces:
        grid = surface.points_m
        a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:]
        corners += [np.stack(three, axis=2).reshape(-1, 3, 3) for three in ((a, c, d), (a, d, b))]
    first, second, third = np.concatenate(corners).transpose(1, 0, 2)
    e1, e2 = second - first, third - first
    p = np.cross(ray, e2)
    determinant = (e1 * p).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t0 = origin - first
        u = (t0 * p).sum(axis=1) / determinant
        q = np.cross(t0, e1)
        v, t = (q @ ray) / determinant, (e2 * q).sum(axis=1) / determinant
    met = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
    return float(t[met].min())


@needs_pybullet
def test_depth_of_a_room_equals_ray_casting(rooms: RenderedRooms, samples: list[Sample]) -> None:
    """Against all triangles of the room, from either side: nothing is left out, and no body is open."""
    rng = np.random.default_rng(0)
    for index, sample in enumerate(samples):
        room = random_room(np.random.default_rng((3, index)))
        ray = rays(rooms.camera, room.pose)
        pixels = rng.integers(0, (72, 96), (25, 2))
        truth_m = np.array([nearest_m(room.surfaces, room.pose.position_m, ray[row, column]) for row, column in pixels])
        np.testing.assert_allclose(sample.depth_m[tuple(pixels.T)], truth_m, rtol=1e-4)


@needs_pybullet
def test_rooms_have_plausible_statistics(samples: list[Sample]) -> None:
    for sample in samples:
        assert sample.frame.shape == (72, 96, 3)
        assert (sample.frame.dtype, sample.depth_m.dtype) == (np.uint8, np.float32)
        assert sample.frame.flags.c_contiguous
        assert sample.depth_m.min() > 0.1, "closed all around: there is depth everywhere"
        assert 1.5 < sample.depth_m.max() < 11, "6.5 m by 7 m by 3.1 m at most"
        assert 40 < sample.frame.mean() < 230
        assert sample.frame.std() > 8
    assert len({sample.frame.tobytes() for sample in samples}) == len(samples)


def test_rooms_are_inside_their_walls_and_furniture_stands_on_the_floor() -> None:
    for seed in range(20):
        room = random_room(np.random.default_rng(seed))
        points_m = np.concatenate([surface.points_m.reshape(-1, 3) for surface in room.surfaces])
        floor_m = room.surfaces[0].points_m.reshape(-1, 3)
        assert (points_m[:, :2] >= floor_m[:, :2].min(axis=0) - 0.05).all()
        assert (points_m[:, :2] <= floor_m[:, :2].max(axis=0) + 0.05).all()
        assert points_m[:, 2].min() == pytest.approx(0, abs=1e-9)
        assert 2.35 <= points_m[:, 2].max() <= 3.1
        assert (np.abs(room.pose.position_m[:2]) < floor_m[:, :2].max(axis=0) - 0.3).all()
        np.testing.assert_allclose(room.pose.axes.T @ room.pose.axes, np.eye(3), atol=1e-12)
        assert np.linalg.det(room.pose.axes) == pytest.approx(1)
        assert room.pose.axes[2, 1] < -0.8, "the camera's down points to the floor"


@needs_pybullet
def test_a_sample_depends_on_seed_and_index_alone(rooms: RenderedRooms, samples: list[Sample]) -> None:
    np.random.default_rng().random(3)
    travelled: RenderedRooms = pickle.loads(pickle.dumps(rooms))
    again = travelled[2]
    assert again.name == samples[2].name == rooms.name(2) == "room-3-000002"
    np.testing.assert_array_equal(again.frame, samples[2].frame)
    np.testing.assert_array_equal(again.depth_m, samples[2].depth_m)


def test_rooms_as_a_data_set(rooms: RenderedRooms) -> None:
    assert len(rooms) == 3
    assert rooms.files() == []
    assert rooms.name(-1) == rooms.name(2)
    with pytest.raises(IndexError):
        rooms[3]
    variants = [{"seed": 4}, {"count": 5}, {"size_hw": (72, 95)}, {"fov_deg": 60.0}]
    marks = {
        RenderedRooms(**{"count": 3, "seed": 3, "size_hw": (72, 96), **change}).fingerprint() for change in variants
    }
    assert len(marks | {rooms.fingerprint()}) == 5


@needs_pybullet
def test_no_physics_server_is_left_open(samples: list[Sample]) -> None:
    import pybullet

    draw([flat([0, 2, 0], [1, 0, 0], [0, 0, -1])], SMALL, LEVEL)
    with pytest.raises(Exception, match=r"."):
        draw([Patch(np.zeros((2, 2, 2)), np.zeros((2, 2, 3), np.uint8))], SMALL, LEVEL)  # no points in space
    assert not any(pybullet.getConnectionInfo(physicsClientId=n)["isConnected"] for n in range(16))


@pytest.mark.parametrize(("wheel", "cure"), [(True, "mirrordepth-edge[render]"), (False, "pip install pybullet")])
def test_without_pybullet(monkeypatch: pytest.MonkeyPatch, rooms: RenderedRooms, wheel: bool, cure: str) -> None:
    monkeypatch.setitem(sys.modules, "pybullet", None)
    monkeypatch.setattr(rendered, "HAS_WHEEL", wheel)
    with pytest.raises(MissingError, match="PyBullet") as caught:
        rooms[0]
    assert cure in caught.value.cure


# --- Folders ---

TINY = RenderedRooms(count=3, seed=5, size_hw=(30, 40))


@pytest.fixture
def bare_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms of a floor alone, which are drawn in no time."""

    def bare(rng: np.random.Generator) -> Room:
        return floor_in_light([0, 0, 2])._replace(
            pose=camera_pose(np.array([0, -3, 1.5]), rng.uniform(-0.3, 0.3), -0.4, 0)
        )

    monkeypatch.setattr(rendered, "random_room", bare)


@needs_pybullet
@pytest.mark.usefixtures("bare_rooms")
def test_a_written_folder_reads_back(tmp_path: Path) -> None:
    from mirrordepth_edge.commands.data.command import render

    render(tmp_path, count=2, size="30x40", fov_deg=None, seed=5)
    data = folder_dataset(tmp_path)
    assert [data.name(index) for index in range(len(data))] == ["room-5-000000", "room-5-000001"]
    assert data[0].depth_m.max() > 2
    for read, made in zip(data, TINY, strict=False):
        np.testing.assert_array_equal(read.frame, made.frame)
        np.testing.assert_allclose(read.depth_m, made.depth_m, atol=0.00051)
    camera = json.loads((tmp_path / "camera.json").read_text())
    assert camera["fx"] == camera["fy"] == pytest.approx(518.857901 * 40 / 640)
    assert (camera["cx"], camera["cy"], camera["units_per_metre"]) == (19.5, 14.5, 1000)


@needs_pybullet
@pytest.mark.usefixtures("bare_rooms")
def test_interrupted_writing_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = iter([TINY[0], KeyboardInterrupt(), TINY[1], TINY[2]])

    def next_sample(self: RenderedRooms, index: int) -> Sample:
        picture = next(pictures)
        if isinstance(picture, BaseException):
            raise picture
        assert picture.name == self.name(index)
        return picture

    monkeypatch.setattr(RenderedRooms, "__getitem__", next_sample)
    with pytest.raises(KeyboardInterrupt):
        list(write_rooms(TINY, tmp_path))
    assert len(folder_dataset(tmp_path)) == 1
    (tmp_path / "depth" / "room-5-000001.png").write_bytes(b"of a picture that was never written")
    assert list(write_rooms(TINY, tmp_path)) == [False, True, True]
    assert list(write_rooms(TINY, tmp_path)) == [False, False, False], "nothing is drawn twice"
    assert [sample.depth_m.shape for sample in folder_dataset(tmp_path)] == [(30, 40)] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"rgb", "depth", "camera.json"}


@needs_pybullet
def test_two_cameras_do_not_share_a_folder(tmp_path: Path) -> None:
    none = RenderedRooms(count=0, size_hw=(30, 40))
    assert list(write_rooms(none, tmp_path)) == []
    for other in ({"size_hw": (30, 41)}, {"size_hw": (30, 40), "fov_deg": 50.0}):
        with pytest.raises(OptionError, match="another origin or camera"):
            list(write_rooms(RenderedRooms(count=1, **other), tmp_path))
    assert list(write_rooms(RenderedRooms(count=0, seed=7, size_hw=(30, 40)), tmp_path)) == []


@needs_pybullet
def test_folder_of_other_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rgb").mkdir()
    with pytest.raises(OptionError, match="another origin"):
        list(write_rooms(TINY, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["rgb"]
