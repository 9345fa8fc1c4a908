"""How well the edges of a depth map are placed, and how sharp they are.

Placed: the depth boundary errors of iBims-1 (Koch et al., ECCV Workshops 2018, arXiv 1805.01328), in pixels. An edge
that is too soft for Canny is not there for them.

Sharp: the boundary F1 of Depth Pro (Bochkovskii et al., ICLR 2025, arXiv 2410.02073), which has no edge detector.

NumPy and OpenCV only; no network, so that figures from two machines compare.
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
"""Distances between edges are cut here; a predicted edge farther from any true one is none of them."""
HOLE_MARGIN_PX = 5
"""Edges nearer than this to a pixel without true depth are not judged: the filter reaches into the hole."""

CONTOUR_RATIOS = np.linspace(1.05, 1.25, 10)
"""How many times farther than its neighbour a pixel must be for a contour between them, as Depth Pro judges it."""


@dataclass(frozen=True, kw_only=True)
class BoundaryErrors:
    """How far a depth map's edges are from the true ones, in pixels; 10 at most."""

    accuracy_px: float
    """Mean distance from predicted edges to the nearest true one, over predicted edges within 10 pixels of one."""
    completeness_px: float
    """Mean distance, cut at 10 pixels, from predicted edges to true ones and from true edges to predicted ones."""
    predicted: int
    """Pixels on predicted edges; few where depth is too soft to have any."""
    true: int
    """Pixels on true edges, at least one."""


@dataclass(frozen=True, kw_only=True)
class BoundaryF1:
    """How well the steps of a depth map agree with the true ones; 0 to 1, more is better.

    Means over `CONTOUR_RATIOS`, each weighing as much as its ratio.
    """

    f1: float
    """Of 2 P R / (P + R) at each ratio: not that of the two means below."""
    precision: float
    """Share of predicted contours that are true."""
    recall: float
    """Share of true contours that are predicted."""
    predicted: int
    """Predicted contours at the lowest ratio; few where depth is too soft to have any."""
    true: int
    """True contours at the lowest ratio, at least one."""


def boundary_errors(prediction_m: Depth, truth_m: Depth, valid: Mask) -> BoundaryErrors | None:
    """Depth boundary errors of one picture, as iBims-1 defines them.

    iBims-1 has true edges drawn by hand; here they are found in the true depth as the predicted ones
    are in the prediction. Holes in the truth are filled for that from the nearest pixel, and nothing
    within `HOLE_MARGIN_PX` of one is judged: where a sensor leaves holes at every edge, little is left.

    Args:
        prediction_m: float32 `[H, W]`, metres, finite.
        truth_m: the same shape.
        valid: pixels with true depth.

    Returns:
        None where the true depth has no edge. Both errors are 10 where no predicted edge is near one.
    """
    if not valid.any():
        return None
    judged = np.ones(valid.shape, np.bool_)
    if not valid.all():
        judged = _distance(~valid) > HOLE_MARGIN_PX
        truth_m = _filled(truth_m, valid)
    true_edges = depth_edges(truth_m, valid) & judged
    if not true_edges.any():
        return None
    edges = depth_edges(prediction_m, valid) & judged
    to_true = _distance(true_edges)
    near = edges & (to_true < BOUNDARY_LIMIT_PX)
    accuracy_px = completeness_px = BOUNDARY_LIMIT_PX
    if near.any():
        both_ways = np.concatenate([to_true[edges], _distance(edges)[true_edges]])
        accuracy_px = float(to_true[near].mean(dtype=np.float64))
        completeness_px = float(both_ways.clip(max=BOUNDARY_LIMIT_PX).mean(dtype=np.float64))
    return BoundaryErrors(
        accuracy_px=accuracy_px,
        completeness_px=completeness_px,
        predicted=int(edges.sum()),
        true=int(true_edges.sum()),
    )


def depth_edges(depth_m: Depth, valid: Mask | None = None) -> Mask:
    """Edges of a depth map: Canny on depth scaled to 0..1 by its own range, as iBims-1's script does.

    Args:
        depth_m: float32 `[H, W]`, finite.
        valid: pixels whose depth sets the range; all where None.

    Returns:
        bool `[H, W]`, one pixel wide; nowhere in a flat map.
    """
    low, high = float(depth_m[valid].min()), float(depth_m[valid].max())
    if not high > low:
        return np.zeros(depth_m.shape, np.bool_)
    scaled = ((depth_m - low) / (high - low)).clip(0, 1)
    side = 2 * math.ceil(4 * EDGE_SIGMA_PX) + 1
    smooth = cv2.GaussianBlur(scaled, (side, side), EDGE_SIGMA_PX, borderType=cv2.BORDER_REPLICATE)
    # OpenCV's Canny takes gradients as 16-bit integers; a step of 0..1 has 4 at most.
    units = 4000
    dx, dy = (
        np.rint(units * np.asarray(cv2.Sobel(smooth, cv2.CV_32F, *order, borderType=cv2.BORDER_REPLICATE)))
        for order in ((1, 0), (0, 1))
    )
    edges = cv2.Canny(dx.astype(np.int16), dy.astype(np.int16), EDGE_LOW * units, EDGE_HIGH * units, L2gradient=True)
    return np.asarray(edges) > 0


def boundary_f1(prediction_m: Depth, truth_m: Depth, valid: Mask, *, apart_px: int = 1) -> BoundaryF1 | None:
    """Scale-invariant boundary F1 of one picture, as Depth Pro defines it.

    Between two pixels, one beside or below the other, is a contour where the depth of one is more than so many times
    that of the other. Four kinds are told apart: the farther pixel is right, left, below or above. At each ratio,
    precision and recall are means over the kinds (as in the released code; the paper's formula has all pairs in one
    sum), and ratios weigh as much as they are (the code again; the paper has higher ones weigh more, no numbers). The
    code takes 0 for a kind, or a ratio, that neither map has; here it is left out, so that a perfect prediction always
    has 1. Where either map has every kind at every ratio, figures are those of the code.

    Args:
        prediction_m: float32 `[H, W]`, metres, finite and above zero.
        truth_m: the same shape.
        valid: pixels with true depth, which is above zero there; a pair counts where both have it.
        apart_px: compare pixels so far apart. Depth Pro's is 1. Farther apart, soft edges are seen as well, and so are
            surfaces that rise steeply: another measure, not to be compared with published figures.

    Returns:
        None where the true depth has no contour.
    """
    # Both maps get the holes of the truth; a ratio with NaN is above nothing.
    holed: list[Depth] = [np.where(valid, depth_m, np.float32(np.nan)) for depth_m in (prediction_m, truth_m)]
    right, left = np.s_[:, apart_px:], np.s_[:, :-apart_px]
    below, above = np.s_[apart_px:], np.s_[:-apart_px]
    kinds = ((right, left), (left, right), (below, above), (above, below))
    both, predicted, true = np.stack(
        [_contours(*(depth_m[far] / depth_m[near] for depth_m in holed)) for far, near in kinds], axis=1
    )
    if not true.any():
        return None
    there = np.count_nonzero(predicted + true, axis=0)
    precision, recall = ((both / found.clip(min=1)).sum(axis=0) / there.clip(min=1) for found in (predicted, true))
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
    """Contours of one kind at each of `CONTOUR_RATIOS`, `[3, 10]`: in both maps, predicted, true."""
    lowest = float(CONTOUR_RATIOS[0])
    some = (predicted_ratio > lowest) | (true_ratio > lowest)
    predicted, true = (np.searchsorted(CONTOUR_RATIOS, ratio[some]) for ratio in (predicted_ratio, true_ratio))
    exceeded = (np.minimum(predicted, true), predicted, true)
    count = len(CONTOUR_RATIOS)
    return np.stack([np.bincount(each, minlength=count + 1)[:0:-1].cumsum()[::-1] for each in exceeded])


def _distance(to: Mask) -> npt.NDArray[np.float32]:
    """Exact distance from every pixel to the nearest one of `to`, which has some, in pixels."""
    return np.asarray(cv2.distanceTransform((~to).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def _filled(depth_m: Depth, valid: Mask) -> Depth:
    """Holes filled with the depth of the (nearly) nearest pixel that has one."""
    _, labels = cv2.distanceTransformWithLabels(
        (~valid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(np.max(labels)) + 1, np.float32)
    of_label[labels[valid]] = depth_m[valid]
    filled: Depth = of_label[labels]
    return filled
