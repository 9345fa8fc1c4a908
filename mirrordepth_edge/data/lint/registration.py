"""Whether depth lies on the picture it is paired with: do the edges of one fall on the edges of the other?

Objects end where their depth jumps, and there most pictures change too. So the edges of depth, moved
over the edges of its picture, correlate best where the two belong. Over many pictures the chance
agreements cancel, and what is left is one peak: at no shift where pairs are registered, elsewhere
where the cameras were not, and with mirrored depth where that was mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame

Edges = npt.NDArray[np.float32]
DepthMap = npt.NDArray[np.float32]
Verdict = Literal["registered", "unregistered", "nowhere", "unclear"]
"""Edges coincide; they would after a move; they would after none; or there are too few scenes or edges to tell."""

# All pictures are compared at one size, so that a shift is the same share of each.
LONGEST_PX = 320
MAX_SHIFT_PX = 24
"""Largest shift that is tried, either way: 7.5 % of the longest side."""
NEIGHBOURHOOD_PX = 8.0
"""Edges are counted against the mean around them, so that only their places matter, not which half holds more."""
MIN_JUMP, MAX_JUMP = 0.04, 0.24
"""Steps of ln depth over two pixels: a slanted floor has smaller ones, and one large one must not outweigh the rest."""
MIN_EDGE_SHARE = 0.002
"""Share of a picture's pixels; a flat wall says nothing."""
MIN_DEPTH_SHARE = 0.4
"""Share of pixels: between the scan lines of a LiDAR there are no edges to find."""

# A verdict needs enough scenes and one clear peak, and "unregistered" needs most pictures to agree.
MIN_SCENES = 5.0
"""Different ones: in a single scene a fence or a table's legs may fit better elsewhere, in every picture of it."""
CONCLUSIVE_SCENES = 12.0
"""Registered pictures always agree where there are so many; so what agrees nowhere is no pair."""
CLEAR_CORRELATION = 0.03
"""Rooms have 0.1 to 0.3 where they are registered; mixed-up pairs have at best 0.07 over the root of the pictures."""
CLEAR_DEVIATIONS = 6.5
"""Of the peak above what is around it. Mixed-up pairs reach 6, the best of all poses and shifts; rooms have 8 to 30."""
AGREEING_PICTURES = 0.75
REGISTERED_PX = 1
"""Up to here from no shift, the data is as it should be."""
MIN_SHIFT_PX = 2.5
"""0.8 % of the longest side; 5 pixels of 640. Cameras and their drivers differ by less."""
BETTER_SHIFTED, BETTER_POSED = 1.2, 1.5
"""How many times better than the data as it is something else must fit."""


class Pose(NamedTuple):
    """A way in which depth may lie on its picture."""

    name: str
    flip: int | None = None
    """As `cv2.flip` counts: 1 left and right, 0 top and bottom, -1 both."""
    zoom: float = 1.0


POSES = (
    Pose("as it is"),
    Pose("mirrored", flip=1),
    Pose("upside down", flip=0),
    Pose("turned by half", flip=-1),
    *(Pose(f"enlarged {zoom:g} times", zoom=zoom) for zoom in (0.9, 0.95, 1.05, 1.1)),
)


@dataclass(frozen=True, kw_only=True)
class Registration:
    """How the depth of a data set lies on its pictures."""

    verdict: Verdict
    pictures: int
    """Those with enough depth and edges to tell."""
    scenes: float
    """As many different scenes as that would say as much."""
    pose: str
    """What has to be done to depth for the best fit; "as it is" where nothing."""
    shift: tuple[float, float]
    """How far depth then has to move, right and down, as shares of the picture's longest side."""
    correlation: float
    """Of edges at the best fit."""
    correlation_as_is: float

    def shift_px(self, size_hw: SizeHW) -> tuple[int, int]:
        """The shift in pixels of a picture of this size, right and down."""
        return round(self.shift[0] * max(size_hw)), round(self.shift[1] * max(size_hw))


def edge_correlations(frame: Frame, depth_m: DepthMap) -> npt.NDArray[np.float32] | None:
    """Correlation of edges of depth and picture, for every pose and shift.

    Args:
        frame: uint8 RGB `[H, W, 3]`.
        depth_m: float32 `[H, W]`, metres, 0 = no value.

    Returns:
        float32 `[len(POSES), 2 * MAX_SHIFT_PX + 1, 2 * MAX_SHIFT_PX + 1]` in -1..1: at `[pose, MAX_SHIFT_PX + y,
        MAX_SHIFT_PX + x]` with depth moved x right and y down, in pixels of a picture whose longest side
        is `LONGEST_PX`. None where depth has too few edges.
    """
    height, width = depth_m.shape
    scale = LONGEST_PX / max(height, width)
    size_hw = round(height * scale), round(width * scale)
    if min(size_hw) <= 3 * MAX_SHIFT_PX or np.count_nonzero(depth_m) < MIN_DEPTH_SHARE * depth_m.size:
        return None
    edges = depth_edges(_shrunk(depth_m, size_hw))
    if np.count_nonzero(edges) < MIN_EDGE_SHARE * edges.size:
        return None
    of_picture, of_depth = _centred(picture_edges(resize_frame(frame, size_hw))), _centred(edges)
    return np.stack([_correlation(_posed(of_depth, pose), of_picture) for pose in POSES])


def judge_registration(correlations: Sequence[npt.NDArray[np.float32]]) -> Registration:
    """What the pictures say together.

    Args:
        correlations: of `edge_correlations`, one for each picture that had any.
    """
    if not correlations:
        return Registration(
            verdict="unclear", pictures=0, scenes=0, pose="as it is", shift=(0, 0), correlation=0, correlation_as_is=0
        )
    each = np.stack(correlations)
    mean = each.mean(axis=0)
    pose, row, column = (int(index) for index in np.unravel_index(mean.argmax(), mean.shape))
    near = slice(MAX_SHIFT_PX - REGISTERED_PX, MAX_SHIFT_PX + REGISTERED_PX + 1)
    as_is = each[:, 0, near, near].max(axis=(1, 2))
    best, best_as_is = float(mean[pose, row, column]), float(mean[0, near, near].max())
    down, right = row - MAX_SHIFT_PX, column - MAX_SHIFT_PX
    moved = pose != 0 or np.hypot(right, down) >= MIN_SHIFT_PX
    agreeing = float((each[:, pose, row, column] > as_is).mean())
    better = best > best_as_is * (BETTER_POSED if pose else BETTER_SHIFTED)
    clear = best >= CLEAR_CORRELATION and _deviations(mean[pose], row, column) >= CLEAR_DEVIATIONS
    scenes = _independent(each)
    verdict: Verdict = "unclear"
    if scenes >= CONCLUSIVE_SCENES and best < CLEAR_CORRELATION:
        verdict = "nowhere"
    elif clear and scenes >= MIN_SCENES:
        if not moved:
            verdict = "registered"
        elif better and agreeing >= AGREEING_PICTURES:
            verdict = "unregistered"
    return Registration(
        verdict=verdict,
        pictures=len(correlations),
        scenes=scenes,
        pose=POSES[pose].name,
        shift=(right / LONGEST_PX, down / LONGEST_PX),
        correlation=best,
        correlation_as_is=best_as_is,
    )


def picture_edges(frame: Frame) -> Edges:
    """How much a picture changes at each pixel, `[H, W]`; roots, so that strong edges do not count for all."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    right, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    strength: Edges = np.sqrt(np.hypot(right, down))
    return strength


def depth_edges(depth_m: DepthMap) -> Edges:
    """How far depth jumps at each pixel, `[H, W]`: the larger step of ln depth, right or down, cut to the jumps."""
    valid = depth_m > 0
    log_depth = np.log(np.where(valid, depth_m, np.float32(1)))
    jumps = np.zeros_like(depth_m)
    for axis in (0, 1):
        rolled = [np.roll(array, by, axis) for by in (1, -1) for array in (log_depth, valid)]
        step = np.abs(rolled[0] - rolled[2]) * (rolled[1] & rolled[3])
        np.maximum(jumps, step, out=jumps)
    jumps[[0, -1], :] = jumps[:, [0, -1]] = 0  # there np.roll compares opposite sides
    cut: Edges = np.clip(jumps - np.float32(MIN_JUMP), 0, MAX_JUMP - MIN_JUMP)
    return cut


def _shrunk(depth_m: DepthMap, size_hw: SizeHW) -> DepthMap:
    """Each pixel the mean of what was measured in it, 0 where that is little."""
    size_wh = size_hw[1], size_hw[0]
    measured = cv2.resize((depth_m > 0).astype(np.float32), size_wh, interpolation=cv2.INTER_AREA)
    total = cv2.resize(depth_m, size_wh, interpolation=cv2.INTER_AREA)
    mean: DepthMap = np.where(measured > 0.05, total / np.maximum(measured, np.float32(1e-6)), np.float32(0))
    return mean


def _centred(edges: Edges) -> Edges:
    return edges - cv2.GaussianBlur(edges, (0, 0), NEIGHBOURHOOD_PX)


def _posed(edges: Edges, pose: Pose) -> Edges:
    if pose.flip is not None:
        return cv2.flip(edges, pose.flip)  # type: ignore[return-value]
    if pose.zoom == 1.0:
        return edges
    height, width = edges.shape
    about_centre = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0.0, pose.zoom)
    return cv2.warpAffine(edges, about_centre, (width, height))  # type: ignore[return-value]


def _correlation(of_depth: Edges, of_picture: Edges) -> Edges:
    """For every shift. The rim of depth is left out: it would leave the picture, and frames of pictures lie there."""
    inner = slice(MAX_SHIFT_PX, -MAX_SHIFT_PX), slice(MAX_SHIFT_PX, -MAX_SHIFT_PX)
    template = np.ascontiguousarray(of_depth[inner])
    template -= template.mean()
    products = cv2.matchTemplate(of_picture, template, cv2.TM_CCORR)
    norm = float(np.linalg.norm(template) * np.linalg.norm(of_picture[inner]))
    return np.asarray(products / max(norm, 1e-12), np.float32)


def _deviations(surface: Edges, row: int, column: int) -> float:
    """How many standard deviations a peak stands above what is around it."""
    rows, columns = np.mgrid[: surface.shape[0], : surface.shape[1]]
    around = surface[np.hypot(rows - row, columns - column) > 5]
    return float((surface[row, column] - around.mean()) / max(float(around.std()), 1e-12))


def _independent(each: npt.NDArray[np.float32]) -> float:
    """How many pictures' worth of chance agreements there are.

    Chance agreements of n different scenes have an n-th of their variance in the mean; pictures of
    one scene agree by chance at the same shifts. Taken from the three flips, of which at most one
    holds more than chance (hence the median), without the means of rows and columns: a horizon is
    still one when mirrored.
    """
    flips = each[:, 1:4]
    centred = flips - flips.mean(axis=2, keepdims=True) - flips.mean(axis=3, keepdims=True)
    of_mean = centred.mean(axis=0).var(axis=(1, 2))
    scenes = np.median(centred.var(axis=(2, 3)).mean(axis=0) / np.maximum(of_mean, 1e-12))
    return min(float(scenes), float(len(each)))
