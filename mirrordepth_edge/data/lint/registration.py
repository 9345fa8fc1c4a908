"""Registration check: whether depth is aligned with the images it is paired with.

Object boundaries are edges in both depth and image. The cross-correlation of both edge maps therefore peaks at
the shift that aligns them. Averaged over many images, chance matches cancel and one peak remains: at zero shift
for registered pairs, elsewhere for unregistered cameras, and for a flipped depth map if depth was flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.config import SizeHW
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame

Edges = npt.NDArray[np.float32]
DepthMap = npt.NDArray[np.float32]
Verdict = Literal["registered", "unregistered", "nowhere", "unclear"]
"""Aligned; aligned after a shift, flip or zoom; aligned after none of these; or too few scenes or edges to decide."""

# All images are compared at one size, so a shift is the same share of each.
LONGEST_PX = 320
MAX_SHIFT_PX = 24
"""Search range of the shift in each direction: 7.5 % of the longest side."""
NEIGHBOURHOOD_PX = 8.0
"""Sigma of the local mean that is subtracted from edges, so that only their positions matter, not their density."""
MIN_JUMP, MAX_JUMP = 0.04, 0.24
"""Range of ln-depth steps over two pixels: slanted surfaces have smaller ones; larger ones are clipped."""
MIN_EDGE_SHARE = 0.002
"""Minimum share of edge pixels; a flat wall has none."""
MIN_DEPTH_SHARE = 0.4
"""Minimum share of pixels with depth; sparse LiDAR depth has no usable edges."""

# A verdict requires enough scenes and one clear peak; "unregistered" also requires most images to agree.
MIN_SCENES = 5.0
"""Minimum number of different scenes: in a single one, a repeated structure such as a fence may match elsewhere."""
CONCLUSIVE_SCENES = 12.0
"""With this many scenes registered data always has a peak, so no peak means mismatched pairs."""
CLEAR_CORRELATION = 0.03
"""Registered rooms have 0.1 to 0.3; mismatched pairs at most 0.07 / sqrt(images)."""
CLEAR_DEVIATIONS = 6.5
"""Height of the peak above its surroundings in standard deviations. Mismatched pairs reach 6, rooms 8 to 30."""
AGREEING_PICTURES = 0.75
REGISTERED_PX = 1
"""Shifts up to this size count as registered."""
MIN_SHIFT_PX = 2.5
"""0.8 % of the longest side, 5 of 640 pixels. Registration of cameras and drivers is better."""
BETTER_SHIFTED, BETTER_POSED = 1.2, 1.5
"""Factor by which another shift or pose must correlate better than the data as it is."""


POSES = {
    "as it is": (1.0, 1.0),
    "mirrored": (-1.0, 1.0),
    "upside down": (1.0, -1.0),
    "turned by half": (-1.0, -1.0),
    **{f"enlarged {zoom:g} times": (zoom, zoom) for zoom in (0.9, 0.95, 1.05, 1.1)},
}
"""Flips and zooms of depth relative to the image, as factors of x and y about the centre."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Alignment of depth and images of a data set."""

    verdict: Verdict
    pictures: int = 0
    """Number of images with enough depth and edges."""
    scenes: float = 0.0
    """Effective number of independent scenes."""
    pose: str = "as it is"
    """Flip or zoom of depth at the best match; "as it is" for none."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Shift of depth at the best match, right and down, relative to the longest side."""
    correlation: float = 0.0
    """Edge correlation at the best match."""
    correlation_as_is: float = 0.0

    def shift_px(self, size_hw: SizeHW) -> tuple[int, int]:
        """The shift in pixels for images of this size, right and down."""
        return round(self.shift[0] * max(size_hw)), round(self.shift[1] * max(size_hw))


def edge_correlations(frame: Frame, depth_m: DepthMap) -> npt.NDArray[np.float32] | None:
    """Compute the correlation of depth and image edges for every pose and shift.

    Args:
        frame: uint8 RGB `[H, W, 3]`.
        depth_m: float32 `[H, W]`, metres, 0 = no value.

    Returns:
        float32 `[len(POSES), 2 * MAX_SHIFT_PX + 1, 2 * MAX_SHIFT_PX + 1]` in -1..1: at `[pose, MAX_SHIFT_PX + y,
        MAX_SHIFT_PX + x]` with depth shifted x right and y down, in pixels of an image whose longest side
        is `LONGEST_PX`. None if depth has too few edges.
    """
    height, width = depth_m.shape
    scale = LONGEST_PX / max(height, width)
    size_hw = round(height * scale), round(width * scale)
    if min(size_hw) <= 3 * MAX_SHIFT_PX or np.count_nonzero(depth_m) < MIN_DEPTH_SHARE * depth_m.size:
        return None
    edges = depth_edges(_downscale(depth_m, size_hw))
    if np.count_nonzero(edges) < MIN_EDGE_SHARE * edges.size:
        return None
    of_image, of_depth = map(_subtract_local_mean, (image_edges(resize_frame(frame, size_hw)), edges))
    return np.stack([_correlation(_apply_pose(of_depth, *factors), of_image) for factors in POSES.values()])


def judge_registration(correlations: Sequence[npt.NDArray[np.float32]]) -> Registration:
    """Decide from the correlations of all images whether a data set is registered.

    Args:
        correlations: results of `edge_correlations` that are not None.
    """
    if not correlations:
        return Registration(verdict="unclear")
    stack = np.stack(correlations)
    mean = stack.mean(axis=0)
    pose, row, column = (int(index) for index in np.unravel_index(mean.argmax(), mean.shape))
    near = slice(MAX_SHIFT_PX - REGISTERED_PX, MAX_SHIFT_PX + REGISTERED_PX + 1)
    as_is = stack[:, 0, near, near].max(axis=(1, 2))
    best, best_as_is = float(mean[pose, row, column]), float(mean[0, near, near].max())
    down, right = row - MAX_SHIFT_PX, column - MAX_SHIFT_PX
    moved = pose != 0 or np.hypot(right, down) >= MIN_SHIFT_PX
    agreeing = float((stack[:, pose, row, column] > as_is).mean())
    better = best > best_as_is * (BETTER_POSED if pose else BETTER_SHIFTED)
    clear = best >= CLEAR_CORRELATION and _peak_deviations(mean[pose], row, column) >= CLEAR_DEVIATIONS
    scenes = _effective_scenes(stack)
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
        pose=list(POSES)[pose],
        shift=(right / LONGEST_PX, down / LONGEST_PX),
        correlation=best,
        correlation_as_is=best_as_is,
    )


def image_edges(frame: Frame) -> Edges:
    """Square root of the image gradient's magnitude, `[H, W]`; the root keeps strong edges from dominating."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    right, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    strength: Edges = np.sqrt(np.hypot(right, down))
    return strength


def depth_edges(depth_m: DepthMap) -> Edges:
    """Depth discontinuity at each pixel, `[H, W]`: the larger horizontal or vertical step of ln depth, clipped."""
    valid = depth_m > 0
    log_depth = np.log(np.where(valid, depth_m, np.float32(1)))
    jumps = np.zeros_like(depth_m)
    for axis in (0, 1):
        rolled = [np.roll(array, by, axis) for by in (1, -1) for array in (log_depth, valid)]
        step = np.abs(rolled[0] - rolled[2]) * (rolled[1] & rolled[3])
        np.maximum(jumps, step, out=jumps)
    jumps[[0, -1], :] = jumps[:, [0, -1]] = 0  # np.roll compares opposite sides there
    cut: Edges = np.clip(jumps - np.float32(MIN_JUMP), 0, MAX_JUMP - MIN_JUMP)
    return cut


def _downscale(depth_m: DepthMap, size_hw: SizeHW) -> DepthMap:
    """Downscale depth by averaging measured pixels; 0 where few were measured."""
    size_wh = size_hw[1], size_hw[0]
    measured = cv2.resize((depth_m > 0).astype(np.float32), size_wh, interpolation=cv2.INTER_AREA)
    total = cv2.resize(depth_m, size_wh, interpolation=cv2.INTER_AREA)
    mean: DepthMap = np.where(measured > 0.05, total / np.maximum(measured, np.float32(1e-6)), np.float32(0))
    return mean


def _subtract_local_mean(edges: Edges) -> Edges:
    return edges - cv2.GaussianBlur(edges, (0, 0), NEIGHBOURHOOD_PX)


def _apply_pose(edges: Edges, factor_x: float, factor_y: float) -> Edges:
    height, width = edges.shape
    left, top = (1 - factor_x) * (width - 1) / 2, (1 - factor_y) * (height - 1) / 2
    about_centre = np.array([[factor_x, 0, left], [0, factor_y, top]])
    return cv2.warpAffine(edges, about_centre, (width, height))  # type: ignore[return-value]


def _correlation(of_depth: Edges, of_image: Edges) -> Edges:
    """Normalised cross-correlation for every shift. The border of depth is excluded: it would leave the image."""
    inner = slice(MAX_SHIFT_PX, -MAX_SHIFT_PX), slice(MAX_SHIFT_PX, -MAX_SHIFT_PX)
    template = np.ascontiguousarray(of_depth[inner])
    template -= template.mean()
    products = cv2.matchTemplate(of_image, template, cv2.TM_CCORR)
    norm = float(np.linalg.norm(template) * np.linalg.norm(of_image[inner]))
    return np.asarray(products / max(norm, 1e-12), np.float32)


def _peak_deviations(surface: Edges, row: int, column: int) -> float:
    """Height of a peak above its surroundings, in standard deviations."""
    rows, columns = np.mgrid[: surface.shape[0], : surface.shape[1]]
    around = surface[np.hypot(rows - row, columns - column) > 5]
    return float((surface[row, column] - around.mean()) / max(float(around.std()), 1e-12))


def _effective_scenes(correlations: npt.NDArray[np.float32]) -> float:
    """Estimate the effective number of independent scenes.

    Chance correlations of n independent scenes have 1/n of their variance in the mean; images of one scene share
    theirs. The variance is measured on the three flips, at most one of which can be a true match, hence the
    median. Row and column means are removed first: a horizon matches its own mirror image.
    """
    flips = correlations[:, 1:4]
    centred = flips - flips.mean(axis=2, keepdims=True) - flips.mean(axis=3, keepdims=True)
    of_mean = centred.mean(axis=0).var(axis=(1, 2))
    scenes = np.median(centred.var(axis=(2, 3)).mean(axis=0) / np.maximum(of_mean, 1e-12))
    return min(float(scenes), float(len(correlations)))
