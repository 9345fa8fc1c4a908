"""Depth metrics as the field computes them (BTS, AdaBins, ZoeDepth agree where they overlap).

Each metric is per image over valid pixels; a data set's figure is the mean over its images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import InputError

Depth = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
FloatArray = TypeVar("FloatArray", bound=npt.NDArray[np.floating[Any]])


@dataclass(frozen=True, kw_only=True)
class DepthMetrics:
    """Errors of one depth map, or means over many."""

    abs_rel: float
    """mean |g - p| / g; no unit."""
    sq_rel: float
    """mean (g - p)^2 / g, metres."""
    rmse: float
    """sqrt(mean (g - p)^2), metres."""
    rmse_log: float
    """sqrt(mean (ln g - ln p)^2); no unit."""
    log10: float
    """mean |log10 g - log10 p|; no unit."""
    silog: float
    """100 * sqrt(mean e^2 - mean(e)^2), e = ln p - ln g; no unit."""
    delta1: float
    """Share of pixels with max(g/p, p/g) < 1.25."""
    delta2: float
    delta3: float


def valid_mask(truth_m: Depth, limits_m: tuple[float, float]) -> Mask:
    """Pixels with a measured depth strictly inside the limits; a NaN is no depth."""
    mask: Mask = (truth_m > limits_m[0]) & (truth_m < limits_m[1])
    return mask


def eigen_crop(shape_hw: tuple[int, int]) -> Mask:
    """The crop of Eigen et al. on NYU Depth v2: rows 45:471, columns 41:601 of 480x640.

    Raises:
        InputError: the picture is not 480x640.
    """
    if shape_hw != (480, 640):
        raise InputError(
            f"The Eigen crop is defined for 480x640 pixels, not {shape_hw[0]}x{shape_hw[1]}.",
            "It cuts away the border that NYU's registration left empty.",
            "Use no crop for other pictures.",
        )
    mask = np.zeros(shape_hw, np.bool_)
    mask[45:471, 41:601] = True
    return mask


def garg_crop(shape_hw: tuple[int, int]) -> Mask:
    """The crop of Garg et al. on KITTI, as shares of the picture: the band that LiDAR reaches.

    With the KB crop (352x1216) on, BTS, AdaBins and ZoeDepth crop the truth too, so that the shares
    are of 352x1216.
    """
    height, width = shape_hw
    mask = np.zeros(shape_hw, np.bool_)
    mask[
        int(0.40810811 * height) : int(0.99189189 * height),
        int(0.03594771 * width) : int(0.96405229 * width),
    ] = True
    return mask


def depth_metrics(
    prediction_m: Depth, truth_m: Depth, *, limits_m: tuple[float, float], crop: Mask | None = None
) -> DepthMetrics:
    """Compare one depth map with the truth.

    Predictions outside the limits are clamped, infinite ones to the far limit, NaN to the near one.

    Args:
        prediction_m, truth_m: shape `[H, W]`, metres.
        limits_m: nearest and farthest depth that counts, exclusive for the truth.
        crop: pixels that count.

    Raises:
        InputError: the shapes differ or no pixel is valid.
    """
    if prediction_m.shape != truth_m.shape:
        raise InputError(
            f"Prediction {prediction_m.shape} and truth {truth_m.shape} differ in size.",
            "Metrics compare pixel by pixel.",
            "Resize the prediction bilinearly to the truth's size.",
        )
    near, far = limits_m
    mask = valid_mask(truth_m, limits_m)
    if crop is not None:
        mask &= crop
    if not mask.any():
        raise InputError(
            "No pixel has a measured depth.", f"None lies between {near} and {far} m.", "Check the depth scale."
        )
    g = truth_m[mask].astype(np.float64)
    p = clamp_depth(prediction_m[mask].astype(np.float64), limits_m)
    e = np.log(p) - np.log(g)
    ratio = np.maximum(g / p, p / g)
    return DepthMetrics(
        abs_rel=float(np.mean(np.abs(g - p) / g)),
        sq_rel=float(np.mean((g - p) ** 2 / g)),
        rmse=float(np.sqrt(np.mean((g - p) ** 2))),
        rmse_log=float(np.sqrt(np.mean(e**2))),
        log10=float(np.mean(np.abs(np.log10(g) - np.log10(p)))),
        silog=float(100.0 * np.sqrt(max(np.mean(e**2) - np.mean(e) ** 2, 0.0))),
        delta1=float(np.mean(ratio < 1.25)),
        delta2=float(np.mean(ratio < 1.25**2)),
        delta3=float(np.mean(ratio < 1.25**3)),
    )


def clamp_depth(prediction_m: FloatArray, limits_m: tuple[float, float]) -> FloatArray:
    """A prediction inside the limits, as it is compared: infinite is far, NaN is near."""
    near, far = limits_m
    inside: FloatArray = np.nan_to_num(prediction_m, nan=near, posinf=far, neginf=near).clip(near, far)
    return inside


def mean_metrics(per_image: list[DepthMetrics]) -> DepthMetrics:
    """Mean over images, each image counting once.

    Raises:
        InputError: there are none.
    """
    if not per_image:
        raise InputError("There is nothing to average.", "No picture was evaluated.", "Check the data set's folder.")
    rows = [asdict(metrics) for metrics in per_image]
    return DepthMetrics(**{name: float(np.mean([row[name] for row in rows])) for name in rows[0]})
