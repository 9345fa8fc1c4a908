"""Random furnished rooms with lamps and a camera pose. Geometry only, no renderer.

World coordinates: x and y span the floor with the origin at the centre of the room, z points up, floor at z = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mirrordepth_edge.data.rooms.furniture import (
    BY_THE_WALL,
    IN_THE_ROOM,
    Colour,
    Paint,
    Points,
    Surface,
    ball,
    box,
    paint,
    place,
    quad,
    rotate_z,
    wood,
)


class Lamp(NamedTuple):
    """An area light, represented by points that share its power."""

    points_m: Points
    """`[N, 3]`."""
    power: Colour
    """Irradiance of a facing surface at 1 m; red, green, blue."""


class Pose(NamedTuple):
    """Position and orientation of the camera."""

    position_m: Points
    """`[3]`."""
    axes: Points
    """`[3, 3]`: columns are the camera's right, down and forward directions in world coordinates."""


class Room(NamedTuple):
    """A scene and the camera pose it is seen from."""

    surfaces: list[Surface]
    lamps: list[Lamp]
    pose: Pose
    exposure: float


class Footprint(NamedTuple):
    """Axis-aligned rectangle on the floor: centre, half extents and height of the furniture on it, metres."""

    x: float
    y: float
    half_x: float
    half_y: float
    height: float

    def overlaps(self, other: Footprint, gap: float) -> bool:
        apart_x, apart_y = abs(self.x - other.x), abs(self.y - other.y)
        return apart_x < self.half_x + other.half_x + gap and apart_y < self.half_y + other.half_y + gap


def walls(width: float, depth: float) -> list[tuple[float, float, float]]:
    """Length, distance from the centre of the room and yaw (+y faces the wall) of each wall."""
    along_x, along_y = (width, depth / 2), (depth, width / 2)
    return [(*along_x, 0.0), (*along_y, -np.pi / 2), (*along_x, np.pi), (*along_y, np.pi / 2)]


def room_shell(rng: np.random.Generator, width: float, depth: float, height: float) -> tuple[list[Surface], list[Lamp]]:
    """Floor, ceiling and four walls with doors, windows and paintings, and the daylight of the windows."""
    floor = paint(rng, "tiles", "speckle", "plain", light=(0.15, 0.6))
    if rng.random() < 0.5:
        floor = wood(rng, plank_m=rng.uniform(0.08, 0.22))
    wall = paint(rng, "plain", "plain", "plain", "stripes", light=(0.35, 0.85))
    accent = paint(rng, "plain", "tiles", "blotches", "stripes", light=(0.1, 0.8)) if rng.random() < 0.3 else wall
    ceiling, skirting = paint(rng, light=(0.65, 0.9)), paint(rng, light=(0.1, 0.85))
    ex, ey, ez = np.diag([width / 2, depth / 2, height / 2])
    surfaces, lamps = [quad(0 * ez, ex, -ey, floor), quad(2 * ez, ex, ey, ceiling)], []
    for side, (length, away, yaw) in enumerate(walls(width, depth)):
        hung, daylight = hangings(rng, length - 0.3, height)
        hung.append(quad(ez, np.array([length / 2, 0, 0]), -ez, wall if side else accent))
        hung += box(0, -0.008, 0, (length, 0.016, 0.08), skirting)
        wall_m = rotate_z(np.array([0, away, 0]), yaw)
        surfaces += place(hung, wall_m, yaw)
        lamps += [lamp._replace(points_m=rotate_z(lamp.points_m, yaw) + wall_m) for lamp in daylight]
    return surfaces, lamps


def hangings(rng: np.random.Generator, length: float, height: float) -> tuple[list[Surface], list[Lamp]]:
    """Doors, windows and paintings on a wall at y = 0 seen from -y, and the light of the windows."""
    surfaces: list[Surface] = []
    lamps: list[Lamp] = []
    cells = max(1, int(length / 1.3))
    for cell in range(cells):
        x, kind = (cell + 0.5) * length / cells - length / 2, rng.random()
        if kind < 0.15:
            surfaces += box(x, -0.02, 0, (0.96, 0.04, 2.08), paint(rng, light=(0.3, 0.85)))
            surfaces += box(x, -0.03, 0, (0.84, 0.04, 2.01), wood(rng))
            surfaces += box(x + 0.35, -0.07, 1.0, (0.12, 0.03, 0.02), paint(rng, light=(0.3, 0.8)))
        elif kind < 0.4:
            wide, sill = rng.uniform(0.6, 1.2), rng.uniform(0.7, 1.0)
            high, panes = min(rng.uniform(0.8, 1.4), height - sill - 0.15), int(rng.integers(1, 3))
            surfaces += box(x, -0.015, sill, (wide + 0.12, 0.03, high + 0.12), paint(rng, light=(0.6, 0.9)))
            for pane in range(panes):
                at, pane_width = x + ((pane + 0.5) / panes - 0.5) * wide, wide / panes - 0.04
                surfaces += box(at, -0.0325, sill + 0.06, (pane_width, 0.005, high), sky(rng), glow=0.5)
            spread = np.array([[x + a * wide, -0.3, sill + b * high] for a, b in ((-0.3, 0.3), (0.3, 0.7), (0, 0.5))])
            lamps.append(Lamp(spread, (0.7, 0.85, 1.0)))
        elif kind < 0.75:
            wide, high = rng.uniform(0.25, 1.0), rng.uniform(0.25, 0.9)
            z = rng.uniform(1.1, max(1.2, height - high - 0.3))
            surfaces += box(x, -0.0125, z, (wide, 0.025, high), paint(rng, light=(0.02, 0.7)))
            art = paint(rng, "blotches", "stripes", "plain", light=(0.2, 0.9))
            surfaces += box(x, -0.0265, z + 0.03, (wide - 0.06, 0.003, high - 0.06), art)
    return surfaces, lamps


def sky(rng: np.random.Generator) -> Paint:
    return Paint("blotches", (0.55, 0.7, 0.95), (0.7, 0.72, 0.7), step_m=0.5, seed=int(rng.integers(2**31)))


def place_furniture(rng: np.random.Generator, width: float, depth: float) -> tuple[list[Surface], list[Footprint]]:
    """Place furniture along the walls and in the room without overlaps."""
    surfaces: list[Surface] = []
    taken: list[Footprint] = []
    wall_frames = walls(width, depth)
    makers = [(make, True) for make in rng.choice(np.array(BY_THE_WALL), rng.integers(5, 12))]
    makers += [(make, False) for make in rng.choice(np.array(IN_THE_ROOM), rng.integers(3, 9))]
    for make, by_wall in makers:
        piece = make(rng)
        # A piece that has no place after a few tries is left out.
        for _ in range(8):
            side = int(rng.integers(4))
            length, away, yaw = wall_frames[side]
            half_x, half_y = piece.width / 2, piece.depth / 2
            if not by_wall:  # enclosing circle, because the piece is rotated at random
                half_x = half_y = float(np.hypot(half_x, half_y))
            # Keep clear of doors and objects on the wall.
            free_x, free_y = length / 2 - half_x - 0.1, away - half_y - 0.1
            if min(free_x, free_y) < 0:
                continue
            x, y, _ = rotate_z(
                np.array([rng.uniform(-1, 1) * free_x, free_y * (1 if by_wall else rng.random()), 0]), yaw
            )
            half_x, half_y = (half_x, half_y) if side % 2 == 0 else (half_y, half_x)
            footprint = Footprint(x, y, half_x, half_y, piece.height)
            if not any(footprint.overlaps(other, 0.05) for other in taken):
                taken.append(footprint)
                turn = yaw if by_wall else rng.uniform(0, 2 * np.pi)
                surfaces += place(piece.surfaces, np.array([x, y, 0]), turn)
                break
    return surfaces, taken


def camera_pose(position_m: Points, yaw: float, pitch: float, roll: float) -> Pose:
    """Pose from angles in radians: `yaw` counter-clockwise from +y, `pitch` upwards, `roll` clockwise."""
    forward = np.array([-np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), np.sin(pitch)])
    level = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    right = np.cos(roll) * level + np.sin(roll) * np.cross(forward, level)
    return Pose(np.asarray(position_m, np.float64), np.stack([right, np.cross(forward, right), forward], axis=1))


def viewpoint(rng: np.random.Generator, width: float, depth: float, taken: list[Footprint]) -> Pose:
    """Draw the view of a standing or sitting person from a free place in the room."""
    max_m = np.array([width / 2 - 0.4, depth / 2 - 0.4, 1.7])
    # In a crowded room the last try is used, even if it is not free.
    for _ in range(100):
        eye_m = rng.uniform([-max_m[0], -max_m[1], 0.9], max_m)
        to_x, to_y = rng.uniform(-0.35, 0.35, 2) * (width, depth) - eye_m[:2]
        person = Footprint(eye_m[0], eye_m[1], 0.4, 0.4, 0.0)
        free = not any(person.overlaps(piece, 0.0) and piece.height > eye_m[2] - 0.4 for piece in taken)
        if free and np.hypot(to_x, to_y) > 1.2:
            break
    yaw = np.arctan2(-to_x, to_y) + rng.normal(0, 0.25)
    return camera_pose(eye_m, yaw, np.deg2rad(rng.uniform(-28, 2)), np.deg2rad(rng.normal(0, 1.5)))


def random_room(rng: np.random.Generator) -> Room:
    """Draw a room of 9 to 45 m² with furniture, lamps and a camera pose."""
    width, depth, height = rng.uniform(3.0, 6.5), rng.uniform(3.0, 7.0), rng.uniform(2.35, 3.1)
    surfaces, lamps = room_shell(rng, width, depth, height)
    x, y = rng.uniform(-0.2, 0.2, 2) * (width, depth)
    surfaces.append(ball(x, y, height - 0.2, 0.1, paint(rng, light=(0.8, 0.9)))._replace(glow=3.0))
    bulbs, warmth = np.array([[0.15, 0, -0.15], [-0.15, 0.1, -0.15], [0, -0.15, -0.13]]), rng.uniform(0.6, 1.0)
    lamps.append(Lamp(bulbs + np.array([x, y, height - 0.2]), (3.0, 1.2 + 1.8 * warmth, 3.0 * warmth)))
    furniture, taken = place_furniture(rng, width, depth)
    return Room(surfaces + furniture, lamps, viewpoint(rng, width, depth, taken), float(rng.uniform(0.35, 1.0)))
