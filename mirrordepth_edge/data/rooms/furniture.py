"""Procedural furniture: textured surfaces in metres, built from boxes and solids of revolution.

x and y span the floor, z points up. A piece is centred at the origin with its back towards +y. Sizes are those of
real furniture, because metric depth is learnt from them. Geometry only, no renderer.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Texture = npt.NDArray[np.float32]
Colour = tuple[float, float, float]
Pattern = Literal["plain", "planks", "tiles", "stripes", "speckle", "blotches"]

TEXELS_PER_M = 128
MAX_TEXELS = 1024


class Paint(NamedTuple):
    """A procedural texture, generated at the size of its surface."""

    pattern: Pattern
    colour: Colour
    second: Colour
    step_m: float
    """Width of a plank, tile, stripe or blotch."""
    seed: int

    def on(self, width_m: float, height_m: float) -> Texture:
        """Generate the texture for a surface of this size: float32 `[h, w, 3]`, linear, about 0..1."""
        rows, columns = (int(np.clip(round(side * TEXELS_PER_M), 2, MAX_TEXELS)) for side in (height_m, width_m))
        rng = np.random.default_rng(self.seed)
        y = (np.arange(rows, dtype=np.float32) + 0.5)[:, None] * (height_m / rows)
        x = (np.arange(columns, dtype=np.float32) + 0.5)[None] * (width_m / columns)
        shade = 1 + 0.025 * rng.standard_normal((rows, columns), np.float32)
        mix: Texture = np.zeros((1, 1), np.float32)
        if self.pattern == "planks":
            shade += _tones(rng, y, self.step_m) + 0.12 * _noise(rng, shade.shape, rows // 3, columns // 40)
            mix = 0.6 * ((y + self.step_m / 2) % self.step_m < 0.006)
        elif self.pattern == "tiles":
            mix = np.maximum((y % self.step_m) < 0.012, (x % self.step_m) < 0.012)
        elif self.pattern == "stripes":
            mix = 0.5 + _tones(rng, x, self.step_m, 0.5)
            shade *= 1 + _tones(rng, x, self.step_m)
        elif self.pattern == "speckle":
            mix = rng.random((rows, columns), np.float32)
        elif self.pattern == "blotches":
            bumps = round(height_m / self.step_m), round(width_m / self.step_m)
            mix = np.clip(0.5 + 2 * _noise(rng, shade.shape, *bumps), 0, 1)
        first, second = np.asarray(self.colour, np.float32), np.asarray(self.second, np.float32)
        texture: Texture = (first + mix[..., None] * (second - first)) * shade[..., None]
        return texture


class Surface(NamedTuple):
    """A one-sided textured surface; seen from its front, rows run down and columns to the right."""

    points_m: Points
    """Vertex grid `[R, C, 3]`, world coordinates, metres; bilinear in between."""
    paint: Paint
    size_m: tuple[float, float]
    """Width and height of the texture, metres."""
    glow: float = 0.0
    """Emitted light, in units of the average light of the room."""


def _tones(rng: np.random.Generator, along_m: Texture, step_m: float, spread: float = 0.12) -> Texture:
    """Draw a random brightness offset for each step."""
    index = (along_m / step_m).astype(int)
    tones: Texture = rng.uniform(-spread, spread, int(index.max()) + 1).astype(np.float32)[index]
    return tones


def _noise(rng: np.random.Generator, shape: tuple[int, ...], cells_down: int, cells_right: int) -> Texture:
    """Smooth noise in ±0.5 with the given number of cells."""
    coarse = rng.uniform(-0.5, 0.5, (max(2, cells_down), max(2, cells_right))).astype(np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]


def paint(rng: np.random.Generator, *patterns: Pattern, light: tuple[float, float] = (0.1, 0.8)) -> Paint:
    """Draw a random paint with one of `patterns` and a brightness in the range `light`."""
    hue, value = rng.random(), rng.uniform(*light)
    saturation = rng.beta(1.2, 2.2) * (1.1 - value)
    # The second colour is a darker shade of the first, or independent of it.
    tone, darker = (rng.normal(hue, 0.1) % 1, value * rng.uniform(0.3, 0.8)) if rng.random() < 0.6 else rng.random(2)
    colour, second = (colorsys.hsv_to_rgb(h, saturation, v) for h, v in ((hue, value), (tone, darker)))
    step_m = {"planks": 0.12, "tiles": 0.4, "stripes": 0.06, "blotches": 0.25}
    pattern = patterns[rng.integers(len(patterns))] if patterns else "plain"
    step = step_m.get(pattern, 1.0) * float(rng.uniform(0.7, 1.5))
    return Paint(pattern, colour, second, step, seed=int(rng.integers(2**31)))


def wood(rng: np.random.Generator, plank_m: float = 2.0) -> Paint:
    """Draw a wood texture: brown, white or black. Furniture consists of a single plank."""
    hue, value = rng.uniform(0.05, 0.11), rng.uniform(0.08, 0.75)
    colour = colorsys.hsv_to_rgb(hue, rng.choice([0.05, 0.6]) * rng.uniform(0.5, 1), value)
    dark = (colour[0] * 0.5, colour[1] * 0.5, colour[2] * 0.5)
    return Paint("planks", colour, dark, plank_m, seed=int(rng.integers(2**31)))


# --- Solids ---


def quad(middle: Points, right: Points, down: Points, how: Paint, glow: float = 0.0) -> Surface:
    """A flat rectangle. `right` and `down` are vectors from its centre to its edges, seen from the front."""
    corners = np.array([[middle - down - right, middle - down + right], [middle + down - right, middle + down + right]])
    size = 2 * float(np.linalg.norm(right)), 2 * float(np.linalg.norm(down))
    return Surface(corners, how, size, glow)


def box(x: float, y: float, z: float, size: tuple[float, float, float], how: Paint, glow: float = 0.0) -> list[Surface]:
    """An axis-aligned box; x and y of its centre, z of its bottom."""
    half = np.asarray(size) / 2
    middle = np.array([x, y, z + half[2]])
    ex, ey, ez = np.diag(half)
    sides = [(-ey, ex, -ez), (ey, -ex, -ez), (ex, ey, -ez), (-ex, -ey, -ez), (ez, ex, -ey), (-ez, ex, ey)]
    return [quad(middle + out, right, down, how, glow) for out, right, down in sides]


def lathe(x: float, y: float, z: float, profile: list[tuple[float, float]], how: Paint, glow: float = 0.0) -> Surface:
    """A solid of revolution, seen from outside.

    Args:
        x, y, z: centre of its base, metres.
        profile: (radius, height above z), from top to bottom, metres.
        how: its paint.
        glow: emitted light.
    """
    # A radius of exactly 0 has no normal at the pole.
    radius, height = np.array(profile).T[:, :, None]
    radius = np.maximum(radius, 1e-4)
    turn = np.linspace(0, 2 * np.pi, 33)[None]
    ring = np.broadcast_arrays(x + radius * np.cos(turn), y + radius * np.sin(turn), z + height)
    length = float(np.hypot(np.diff(radius[:, 0]), np.diff(height[:, 0])).sum())
    return Surface(np.stack(ring, axis=2), how, (2 * np.pi * float(radius.max()), length), glow)


def ball(x: float, y: float, z: float, radius: float, how: Paint, stretch: float = 1.0) -> Surface:
    """A ball that stands on z, stretched vertically by `stretch`."""
    angles = np.linspace(0, np.pi, 17)
    return lathe(x, y, z, [(radius * np.sin(a), radius * stretch * (1 + np.cos(a))) for a in angles], how)


def can(x: float, y: float, z: float, radius: float, height: float, how: Paint) -> list[Surface]:
    """A cylinder that stands on z."""
    top, side = [(0.0, height), (radius, height)], [(radius, height), (radius, 0.0)]
    return [lathe(x, y, z, profile, how) for profile in (top, side)]


# --- Furniture: centred at the origin, its back towards +y ---


class Piece(NamedTuple):
    surfaces: list[Surface]
    width: float
    depth: float
    height: float


def cabinet(rng: np.random.Generator) -> Piece:
    width, depth, height = rng.uniform(0.4, 1.8), rng.uniform(0.35, 0.6), rng.choice([rng.uniform(0.4, 1), 2.0])
    how = wood(rng)
    surfaces = box(0, 0, 0, (width, depth, height), how)
    doors = max(1, round(width / 0.5))
    for door in range(doors):
        door_width, left = width / doors, -width / 2
        at = left + (door + 0.5) * door_width
        surfaces += box(at, -depth / 2 - 0.008, 0.06, (door_width - 0.015, 0.016, height - 0.09), how)
        handle = paint(rng, light=(0.05, 0.9))
        surfaces += box(at + door_width * 0.38, -depth / 2 - 0.03, height * 0.6, (0.02, 0.03, 0.12), handle)
    if height < 1.2:
        surfaces += small_objects(rng, width, depth, height)
    return Piece(surfaces, width, depth, height)


def shelf(rng: np.random.Generator) -> Piece:
    width, depth, height, rows = rng.uniform(0.5, 1.4), 0.3, rng.uniform(0.8, 2.1), int(rng.integers(2, 6))
    how = wood(rng)
    surfaces = box(0, depth / 2 - 0.01, 0, (width, 0.02, height), how)
    for side in (-1, 1):
        surfaces += box(side * (width / 2 - 0.0125), 0, 0, (0.025, depth, height), how)
    step = (height - 0.03) / rows
    for row in range(rows + 1):
        surfaces += box(0, 0, row * step, (width - 0.05, depth - 0.02, 0.025), how)
        filled = rng.uniform(0.3, 0.94) * (width - 0.06)
        if row < rows and rng.random() < 0.8:
            books = paint(rng, "stripes", "stripes", "plain", light=(0.3, 0.8))
            at = rng.uniform(-1, 1) * (width - 0.06 - filled) / 2
            surfaces += box(at, 0.02, row * step + 0.025, (filled, 0.2, step * rng.uniform(0.5, 0.85)), books)
    return Piece(surfaces, width, depth, height)


def legs(rng: np.random.Generator, width: float, depth: float, height: float, how: Paint) -> list[Surface]:
    thick = rng.uniform(0.03, 0.07)
    corners = [(sx * (width - thick) / 2, sy * (depth - thick) / 2) for sx in (-1, 1) for sy in (-1, 1)]
    return [surface for x, y in corners for surface in box(x, y, 0, (thick, thick, height), how)]


def table(rng: np.random.Generator) -> Piece:
    width, depth = rng.uniform(0.7, 1.9), rng.uniform(0.5, 0.95)
    height = rng.choice([rng.uniform(0.38, 0.5), rng.uniform(0.7, 0.78)], p=[0.3, 0.7])
    how = wood(rng)
    surfaces = legs(rng, width * 0.95, depth * 0.95, height - 0.03, how)
    surfaces += box(0, 0, height - 0.03, (width, depth, 0.03), how)
    return Piece(surfaces + small_objects(rng, width, depth, height), width, depth, height)


def chair(rng: np.random.Generator) -> Piece:
    side, seat, height = rng.uniform(0.38, 0.5), rng.uniform(0.42, 0.48), rng.uniform(0.78, 1.05)
    how, cover = wood(rng), paint(rng, "plain", "speckle", "stripes")
    surfaces = legs(rng, side, side, seat, how) + box(0, 0, seat, (side, side, 0.04), cover)
    for x in (-side / 2 + 0.02, side / 2 - 0.02):
        surfaces += box(x, side / 2 - 0.02, seat + 0.04, (0.03, 0.03, height - seat - 0.04), how)
    back = rng.uniform(0.12, 0.35)
    return Piece(surfaces + box(0, side / 2 - 0.02, height - back, (side, 0.025, back), cover), side, side, height)


def sofa(rng: np.random.Generator) -> Piece:
    seats = int(rng.integers(1, 4))
    width, depth, height = 0.4 + 0.6 * seats, rng.uniform(0.8, 0.95), rng.uniform(0.72, 0.9)
    how = paint(rng, "plain", "speckle", "stripes", light=(0.05, 0.7))
    surfaces = box(0, 0, 0.05, (width, depth, 0.25), how)
    surfaces += box(0, depth / 2 - 0.11, 0.3, (width, 0.22, height - 0.3), how)
    for x in (-width / 2 + 0.1, width / 2 - 0.1):
        surfaces += box(x, -0.02, 0.3, (0.2, depth - 0.05, 0.28), how)
    for seat in range(seats):
        x = (seat - (seats - 1) / 2) * 0.6
        surfaces += box(x, -0.11, 0.3, (0.58, depth - 0.24, 0.14), how)
        if rng.random() < 0.5:
            surfaces += box(x, depth / 2 - 0.3, 0.44, (0.4, 0.12, 0.36), paint(rng, "plain", "stripes", "blotches"))
    return Piece(surfaces, width, depth, height)


def bed(rng: np.random.Generator) -> Piece:
    width, length, height = rng.choice([0.9, 1.4, 1.8]), rng.uniform(1.95, 2.1), rng.uniform(0.4, 0.6)
    surfaces = box(0, 0, 0.08, (width, length, height - 0.28), wood(rng))
    surfaces += box(0, 0, height - 0.2, (width - 0.03, length - 0.03, 0.2), paint(rng, light=(0.5, 0.9)))
    surfaces += box(0, -0.3, height, (width + 0.02, length - 0.6, 0.05), paint(rng, "plain", "stripes", "blotches"))
    surfaces += box(0, length / 2 + 0.02, 0, (width, 0.04, rng.uniform(0.7, 1.1)), wood(rng))
    for x in (0.0,) if width < 1 else (-width / 4, width / 4):
        surfaces += box(x, length / 2 - 0.28, height, (0.6, 0.4, 0.12), paint(rng, light=(0.5, 0.9)))
    return Piece(surfaces, width, length + 0.08, height)


def floor_lamp(rng: np.random.Generator) -> Piece:
    height, radius, how = rng.uniform(1.3, 1.8), rng.uniform(0.13, 0.22), paint(rng, light=(0.03, 0.6))
    surfaces = can(0, 0, 0, 0.14, 0.02, how) + can(0, 0, 0.02, 0.012, height - 0.1, how)
    shade = [(0.0, 0.25), (radius * 0.7, 0.25), (radius, 0.0), (0.0, 0.0)]
    surfaces.append(lathe(0, 0, height - 0.25, shade, paint(rng, light=(0.6, 0.9)), float(rng.choice([0.0, 1.5]))))
    return Piece(surfaces, 2 * radius, 2 * radius, height)


def plant(rng: np.random.Generator) -> Piece:
    pot, height = rng.uniform(0.12, 0.22), rng.uniform(0.4, 1.5)
    rim = pot * 1.6
    surfaces = [lathe(0, 0, 0, [(pot, rim), (pot * 0.75, 0)], paint(rng, "plain", "stripes"))]
    surfaces.append(lathe(0, 0, 0, [(0, rim - 0.03), (pot, rim - 0.03)], paint(rng, light=(0.02, 0.08))))
    green = Paint("speckle", (0.08, 0.3, 0.06), (0.02, 0.1, 0.02), step_m=1, seed=int(rng.integers(2**31)))
    surfaces += can(0, 0, rim - 0.03, 0.015, height - rim, wood(rng))
    for _ in range(int(rng.integers(5, 12))):
        x, y, z = rng.uniform(-0.8, 0.8) * pot, rng.uniform(-0.8, 0.8) * pot, rng.uniform(0.5, 1) * height
        surfaces.append(ball(x, y, max(rim, z - 0.1), rng.uniform(0.07, 0.15), green, rng.uniform(0.6, 1.4)))
    return Piece(surfaces, 1.6 * pot + 0.3, 1.6 * pot + 0.3, height + 0.2)


def clutter(rng: np.random.Generator) -> Piece:
    """A box, a bin, a ball or a stool."""
    size = rng.uniform(0.2, 0.5, 3)
    how = paint(rng, "plain", "plain", "stripes", "blotches")
    kind = rng.integers(4)
    if kind == 0:
        return Piece(box(0, 0, 0, (size[0], size[1], size[2]), how), size[0], size[1], size[2])
    if kind == 1:
        return Piece(can(0, 0, 0, size[0] / 2, size[2], how), size[0], size[0], size[2])
    if kind == 2:
        return Piece([ball(0, 0, 0, size[0] / 3, how)], size[0], size[0], size[0])
    seat = box(0, 0, 0.42, (0.36, 0.36, 0.05), how)
    return Piece(seat + legs(rng, 0.36, 0.36, 0.42, wood(rng)), 0.36, 0.36, 0.47)


def small_objects(rng: np.random.Generator, width: float, depth: float, z: float) -> list[Surface]:
    """Place small objects on a surface of this size at height z, at most one per cell."""
    surfaces: list[Surface] = []
    cells = max(1, int(width / 0.35))
    for cell in range(cells):
        if rng.random() < 0.4:
            continue
        x, y = (cell + 0.5) * width / cells - width / 2, rng.uniform(-0.25, 0.2) * depth
        how, kind = paint(rng, "plain", "plain", "stripes", "blotches"), rng.integers(6)
        if kind == 0:
            surfaces += can(x, y, z, rng.uniform(0.035, 0.06), rng.uniform(0.08, 0.25), how)
        elif kind == 1:
            surfaces += box(x, y, z, (rng.uniform(0.1, 0.25), rng.uniform(0.08, 0.2), rng.uniform(0.03, 0.2)), how)
        elif kind == 2:
            surfaces.append(ball(x, y, z, rng.uniform(0.04, 0.09), how))
        elif kind == 3:  # a vase
            profile = [(0.0, 0.28), (0.03, 0.28), (0.025, 0.22), (0.07, 0.12), (0.075, 0.07), (0.04, 0.0)]
            surfaces.append(lathe(x, y, z, profile, how))
        elif kind == 4:  # a stack of books
            for level in range(int(rng.integers(1, 5))):
                surfaces += box(x, y, z + level * 0.03, (0.22, 0.16, 0.028), paint(rng, light=(0.1, 0.8)))
        elif width / cells > 0.33 and depth > 0.4:  # a screen
            black = paint(rng, light=(0.02, 0.06))
            surfaces += box(x, y + 0.1, z, (0.2, 0.15, 0.015), black) + box(x, y + 0.12, z, (0.04, 0.02, 0.15), black)
            surfaces += box(x, y + 0.1, z + 0.12, (min(0.55, width / cells), 0.03, 0.32), black)
    return surfaces


BY_THE_WALL: tuple[Callable[[np.random.Generator], Piece], ...] = (cabinet, shelf, sofa, bed, table, plant, floor_lamp)
IN_THE_ROOM: tuple[Callable[[np.random.Generator], Piece], ...] = (table, chair, chair, clutter, clutter, plant, sofa)


def rotate_z(points_m: Points, yaw: float) -> Points:
    """Rotate points about the z axis by `yaw` radians, counter-clockwise seen from above."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    rotated: Points = points_m @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    return rotated


def place(surfaces: list[Surface], at_m: Points, yaw: float) -> list[Surface]:
    """Rotate surfaces by `yaw` radians, then translate them by `at_m`."""
    return [surface._replace(points_m=rotate_z(surface.points_m, yaw) + at_m) for surface in surfaces]
