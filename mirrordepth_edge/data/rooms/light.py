"""Baked lighting: light is computed once per surface and multiplied into its texture.

TinyRenderer supports only a single distant light, so surfaces are given to it with their light baked in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.data.rooms.furniture import Points
from mirrordepth_edge.data.rooms.layout import Lamp, Room
from mirrordepth_edge.imaging.preprocess import Frame

Blocked = Callable[[Points, Points], npt.NDArray[np.bool_]]
"""Function that tells whether the line between two points is blocked; `[N, 3]` each, to bool `[N]`."""

LIGHT_STEP_M = 0.22
"""Spacing of light samples on a surface; interpolated in between."""
CORNER_M = 0.7
"""Range of ambient occlusion."""
AMBIENT = 0.55
"""Share of ambient light in the average light of a room."""


class Patch(NamedTuple):
    """A one-sided surface with its final texture; seen from its front, rows run down and columns to the right."""

    points_m: Points
    """Vertex grid `[R, C, 3]`, world coordinates, metres; bilinear in between."""
    texture: Frame
    """Texture, uint8 RGB `[h, w, 3]`, drawn without further lighting."""


def light_surfaces(room: Room, blocked: Blocked) -> list[Patch]:
    """Bake the light of a room into its surfaces: paint times light, exposed and gamma-encoded.

    Direct light falls off with the square of the distance and the cosine of the angle of incidence (Lambert), with
    shadows. Ambient light is reduced by ambient occlusion. The exposure normalises the average light of a room, as
    a camera does.

    Args:
        room: surfaces, lamps and exposure.
        blocked: visibility test between points.

    Returns:
        One patch per surface, in order.
    """
    places = [_places(surface.points_m) for surface in room.surfaces]
    points, areas_m2 = (np.concatenate([place[k].reshape(-1, 3) for place in places]) for k in (0, 1))
    area_m2 = np.linalg.norm(areas_m2, axis=1)
    normals = areas_m2 / area_m2[:, None]
    starts = points + 0.01 * normals
    light = np.zeros_like(points)
    for lamp in room.lamps:
        light += _light_of(lamp, starts, normals, blocked)
    light *= (1 - AMBIENT) / max(np.average(light.mean(axis=1), weights=area_m2), 1e-6)
    light += AMBIENT * _openness(starts, normals, blocked)[:, None]
    ends = np.cumsum([points.size // 3 for points, _ in places])
    patches = []
    for surface, (at, _), part in zip(room.surfaces, places, np.split(light, ends[:-1]), strict=True):
        painted = surface.paint.on(*surface.size_m)
        cells = part.reshape(at.shape).astype(np.float32)
        smooth = cv2.resize(cells, painted.shape[1::-1], interpolation=cv2.INTER_LINEAR) + np.float32(surface.glow)
        shown = np.clip(painted * smooth * np.float32(room.exposure), 0, 1)
        # Gamma 2 is close to that of a camera, and fast.
        patches.append(Patch(surface.points_m, (255 * np.sqrt(shown) + 0.5).astype(np.uint8)))
    return patches


def _places(grid: Points) -> tuple[Points, Points]:
    """Centres of the cells in which light is computed, and their normals times area, `[r, c, 3]` each."""
    lengths = (np.linalg.norm(np.diff(grid, axis=axis), axis=2).sum(axis=axis).max() for axis in (0, 1))
    # A round surface needs several cells however small: its light varies with the normal.
    least = [size // 2 for size in grid.shape[:2]]
    cells = [int(np.clip(math.ceil(length / LIGHT_STEP_M), n, 40)) for length, n in zip(lengths, least, strict=True)]
    at = [(np.arange(n) + 0.5) / n * (size - 1) for n, size in zip(cells, grid.shape[:2], strict=True)]
    row, column = (np.minimum(where.astype(int), size - 2) for where, size in zip(at, grid.shape[:2], strict=True))
    s, t = (at[0] - row)[:, None, None], (at[1] - column)[None, :, None]
    a, b = grid[row][:, column], grid[row][:, column + 1]
    c, d = grid[row + 1][:, column], grid[row + 1][:, column + 1]
    points = (1 - s) * ((1 - t) * a + t * b) + s * ((1 - t) * c + t * d)
    down, right = (1 - t) * (c - a) + t * (d - b), (1 - s) * (b - a) + s * (d - c)
    share = math.prod((size - 1) / n for n, size in zip(cells, grid.shape[:2], strict=True))
    return points, share * np.cross(down, right)


def _light_of(lamp: Lamp, starts: Points, normals: Points, blocked: Blocked) -> Points:
    """Direct light of a lamp on surface points, `[N, 3]`: red, green, blue."""
    light = np.zeros(len(starts))
    for point in lamp.points_m:
        ray = point - starts
        square = (ray**2).sum(axis=1)
        cosine = (ray * normals).sum(axis=1) / np.sqrt(square)
        facing = np.flatnonzero(cosine > 0)
        free = facing[~blocked(starts[facing], np.broadcast_to(point, (len(facing), 3)))]
        light[free] += cosine[free] / (square[free] + 0.1) / len(lamp.points_m)
    coloured: Points = light[:, None] * np.asarray(lamp.power)
    return coloured


def _openness(starts: Points, normals: Points, blocked: Blocked) -> Points:
    """Ambient occlusion: cosine-weighted share of unblocked directions, `[N]`."""
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    rays = normals[:, None] + 0.95 * axes  # points on a sphere that touches the surface give cosine-weighted directions
    rays /= np.linalg.norm(rays, axis=2, keepdims=True)
    hits = blocked(np.repeat(starts, len(axes), axis=0), (starts[:, None] + CORNER_M * rays).reshape(-1, 3))
    open_: Points = 1 - 0.8 * hits.reshape(-1, len(axes)).mean(axis=1)
    return open_
