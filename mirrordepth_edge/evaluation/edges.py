"""Depth boundary metrics: position and sharpness of edges.

- Position: depth boundary errors of iBims-1 (Koch et al., ECCV Workshops 2018, arXiv 1805.01328), in pixels.
  Edges too soft for Canny are not detected.
- Sharpness: boundary F1 of Depth Pro (Bochkovskii et al., ICLR 2025, arXiv 2410.02073), without an edge detector.

Computed with NumPy and OpenCV only. No network is involved, so results of two machines compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from mirrordepth_edge.evaluation.metrics import Depth, Mask

# iBims-1's evaluation script: depth scaled to 0..1, Canny with a Gaussian of sqrt(2) pixels and these
# thresholds on the magnitude of the plain Sobel gradient (whose weights sum to 8 per unit slope).
EDGE_SIGMA_PX = math.sqrt(2)
EDGE_LOW, EDGE_HIGH = 0.15, 0.3
BOUNDARY_LIMIT_PX = 10.0
"""Distances are clipped here; a predicted edge farther from any true edge does not count for accuracy."""
HOLE_MARGIN_PX = 5
"""Edges closer than this to a pixel without true depth are ignored: the filter reaches into the hole."""

CONTOUR_RATIOS = np.linspace(1.05, 1.25, 10)
"""Depth ratios of neighbouring pixels above which Depth Pro counts an occluding contour."""


@dataclass(frozen=True, kw_only=True)
class BoundaryErrors:
    """Distances between predicted and true depth edges, in pixels, at most 10."""

    accuracy_px: float
    """Mean distance from predicted edges to the nearest true edge, over predicted edges within 10 pixels of one."""
    completeness_px: float
    """Mean distance, clipped at 10 pixels, from predicted to true edges and from true to predicted edges."""
    predicted: int
    """Number of pixels on predicted edges; low if depth is blurred."""
    true: int
    """Number of pixels on true edges, at least one."""


@dataclass(frozen=True, kw_only=True)
class BoundaryF1:
    """Agreement of predicted and true depth discontinuities, 0 to 1, higher is better.

    Means over `CONTOUR_RATIOS`, weighted by the ratio.
    """

    f1: float
    """Mean of 2 P R / (P + R) at each ratio, not computed from the mean precision and recall."""
    precision: float
    """Share of predicted contours that are true contours."""
    recall: float
    """Share of true contours that are predicted."""
    predicted: int
    """Number of predicted contours at the lowest ratio; low if depth is blurred."""
    true: int
    """Number of true contours at the lowest ratio, at least one."""


def boundary_errors(prediction_m: Depth, truth_m: Depth, valid: Mask) -> BoundaryErrors | None:
    """Compute the depth boundary errors of one image, as iBims-1 defines them.

    iBims-1 has hand-annotated true edges; here both are detected by Canny. Holes in the true depth are filled
    from the nearest pixel first, and edges within `HOLE_MARGIN_PX` of a hole are ignored. Little remains if
    the sensor leaves holes at every edge.

    Args:
        prediction_m: float32 `[H, W]`, metres, finite.
        truth_m: float32 `[H, W]`, metres.
        valid: bool `[H, W]`, pixels with true depth.

    Returns:
        None if the true depth has no edge. Both errors are 10 if no predicted edge is near a true one.
    """
    if not valid.any():
        return None
    evaluated = np.ones(valid.shape, np.bool_)
    if not valid.all():
        evaluated = _distance(~valid) > HOLE_MARGIN_PX
        truth_m = _fill_holes(truth_m, valid)
    true_edges = depth_edges(truth_m, valid) & evaluated
    if not true_edges.any():
        return None
    edges = depth_edges(prediction_m, valid) & evaluated
    to_true = _distance(true_edges)
    near = edges & (to_true < BOUNDARY_LIMIT_PX)
    accuracy_px = completeness_px = BOUNDARY_LIMIT_PX
    if near.any():
        both_ways = np.concatenate([to_true[edges], _distance(edges)[true_edges]])
        accuracy_px = float(to_true[near].mean(dtype=np.float64))
        completeness_px = float(both_ways.clip(max=BOUNDARY_LIMIT_PX).mean(dtype=np.float64))
    return BoundaryErrors(
        accuracy_px=accuracy_px, completeness_px=completeness_px, predicted=int(edges.sum()), true=int(true_edges.sum())
    )


def depth_edges(depth_m: Depth, valid: Mask | None = None) -> Mask:
    """Detect depth edges: Canny on depth scaled to 0..1 by its own range, as in iBims-1's script.

    Args:
        depth_m: float32 `[H, W]`, metres, finite.
        valid: pixels whose depth defines the range; None for all.

    Returns:
        bool `[H, W]`, edges one pixel wide.
    """
    low, high = float(depth_m[valid].min()), float(depth_m[valid].max())
    if not high > low:
        return np.zeros(depth_m.shape, np.bool_)
    scaled = ((depth_m - low) / (high - low)).clip(0, 1)
    side = 2 * math.ceil(4 * EDGE_SIGMA_PX) + 1
    smooth = cv2.GaussianBlur(scaled, (side, side), EDGE_SIGMA_PX, borderType=cv2.BORDER_REPLICATE)
    # OpenCV's Canny takes gradients as 16-bit integers; a step of 0..1 has a gradient of at most 4.
    units = 4000
    dx, dy = (
        np.rint(units * np.asarray(cv2.Sobel(smooth, cv2.CV_32F, *order, borderType=cv2.BORDER_REPLICATE)))
        for order in ((1, 0), (0, 1))
    )
    edges = cv2.Canny(dx.astype(np.int16), dy.astype(np.int16), EDGE_LOW * units, EDGE_HIGH * units, L2gradient=True)
    return np.asarray(edges) > 0


def boundary_f1(prediction_m: Depth, truth_m: Depth, valid: Mask, *, apart_px: int = 1) -> BoundaryF1 | None:
    """Compute the scale-invariant boundary F1 of one image, as Depth Pro defines it.

    There is an occluding contour between two horizontally or vertically neighbouring pixels if the ratio of
    their depths exceeds a threshold. Contours are split by direction: the farther pixel is right, left, below or
    above. At each threshold, precision and recall are means over the four directions, as in the released code
    (the paper sums over all pairs). Thresholds are weighted by their value, also as in the code (the paper gives
    no numbers). The code counts 0 for a direction or threshold without contours in either map. Here it is left
    out, so a perfect prediction always scores 1. Otherwise results equal those of the code.

    Args:
        prediction_m: float32 `[H, W]`, metres, finite and positive.
        truth_m: float32 `[H, W]`, metres, positive where valid.
        valid: bool `[H, W]`, pixels with true depth. A pair counts if both pixels are valid.
        apart_px: distance of the compared pixels; 1 in Depth Pro. A larger distance also covers soft edges, and
            steep surfaces: results are not comparable with published ones.

    Returns:
        None if the true depth has no contour.
    """
    # Both maps get the holes of the truth: a ratio with NaN exceeds no threshold.
    holed: list[Depth] = [np.where(valid, depth_m, np.float32(np.nan)) for depth_m in (prediction_m, truth_m)]
    right, left = np.s_[:, apart_px:], np.s_[:, :-apart_px]
    below, above = np.s_[apart_px:], np.s_[:-apart_px]
    directions = ((right, left), (left, right), (below, above), (above, below))
    both, predicted, true = np.stack(
        [_contours(*(depth_m[far] / depth_m[near] for depth_m in holed)) for far, near in directions], axis=1
    )
    if not true.any():
        return None
    there = np.count_nonzero(predicted + true, axis=0)
    precision, recall = ((both / count.clip(min=1)).sum(axis=0) / there.clip(min=1) for count in (predicted, true))
    f1 = 2 * precision * recall / np.where(both.any(axis=0), precision + recall, 1)
    mean_f1, mean_precision, mean_recall = np.average(
        [f1, precision, recall], axis=1, weights=CONTOUR_RATIOS * (there > 0)
    )
    return BoundaryF1(
        f1=float(mean_f1),
        precision=float(mean_precision),
        recall=float(mean_recall),
        predicted=int(predicted[:, 0].sum()),
        true=int(true[:, 0].sum()),
    )


def _contours(predicted_ratio: Depth, true_ratio: Depth) -> npt.NDArray[np.int64]:
    """Count contours of one direction at each of `CONTOUR_RATIOS`, `[3, 10]`: in both maps, predicted, true."""
    lowest = float(CONTOUR_RATIOS[0])
    some = (predicted_ratio > lowest) | (true_ratio > lowest)
    predicted, true = (np.searchsorted(CONTOUR_RATIOS, ratio[some]) for ratio in (predicted_ratio, true_ratio))
    exceeded = (np.minimum(predicted, true), predicted, true)
    count = len(CONTOUR_RATIOS)
    return np.stack([np.bincount(ranks, minlength=count + 1)[:0:-1].cumsum()[::-1] for ranks in exceeded])


def _distance(to: Mask) -> npt.NDArray[np.float32]:
    """Euclidean distance from every pixel to the nearest pixel of `to`, in pixels."""
    return np.asarray(cv2.distanceTransform((~to).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def _fill_holes(depth_m: Depth, valid: Mask) -> Depth:
    """Fill holes with the depth of the (approximately) nearest valid pixel."""
    _, labels = cv2.distanceTransformWithLabels(
        (~valid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(np.max(labels)) + 1, np.float32)
    of_label[labels[valid]] = depth_m[valid]
    filled: Depth = of_label[labels]
    return filled
