"""Standard depth metrics, as BTS, AdaBins and ZoeDepth compute them.

Each metric is computed per image over valid pixels; the result of a data set is the mean over its images.
Symbols: p prediction, g ground truth, both in metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import InputError

Depth = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
FloatArray = TypeVar("FloatArray", bound=npt.NDArray[np.floating[Any]])


@dataclass(frozen=True, kw_only=True)
class DepthMetrics:
    """Errors of one depth map, or their means over many."""

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
    """Pixels whose true depth lies strictly inside the limits; false for NaN."""
    mask: Mask = (truth_m > limits_m[0]) & (truth_m < limits_m[1])
    return mask


def eigen_crop(shape_hw: tuple[int, int]) -> Mask:
    """Eigen crop for NYU Depth v2 (Eigen et al. 2014): rows 45:471, columns 41:601 of 480x640.

    Raises:
        InputError: the image is not 480x640.
    """
    if shape_hw != (480, 640):
        raise InputError(
            f"The Eigen crop is defined for 480x640 pixels, not {shape_hw[0]}x{shape_hw[1]}.",
            "It removes the border that registration left empty in NYU Depth v2.",
            "Use --crop none for other images.",
        )
    mask = np.zeros(shape_hw, np.bool_)
    mask[45:471, 41:601] = True
    return mask


def garg_crop(shape_hw: tuple[int, int]) -> Mask:
    """Garg crop for KITTI (Garg et al. 2016), relative to the image size: the band that LiDAR covers.

    BTS, AdaBins and ZoeDepth apply it after the KB crop, so the shares refer to 352x1216.
    """
    height, width = shape_hw
    mask = np.zeros(shape_hw, np.bool_)
    rows = slice(int(0.40810811 * height), int(0.99189189 * height))
    mask[rows, int(0.03594771 * width) : int(0.96405229 * width)] = True
    return mask


def depth_metrics(
    prediction_m: Depth, truth_m: Depth, *, limits_m: tuple[float, float], crop: Mask | None = None
) -> DepthMetrics:
    """Compute the metrics of one depth map.

    Predictions outside the limits are clamped; infinity becomes the far limit, NaN the near limit.

    Args:
        prediction_m, truth_m: `[H, W]`, metres.
        limits_m: nearest and farthest depth that is evaluated, exclusive for the truth.
        crop: bool `[H, W]`, pixels that are evaluated.

    Raises:
        InputError: the shapes differ or no pixel is valid.
    """
    if prediction_m.shape != truth_m.shape:
        raise InputError(
            f"Prediction {prediction_m.shape} and ground truth {truth_m.shape} differ in size.",
            "Depth metrics compare pixel by pixel.",
            "Resize the prediction bilinearly to the size of the ground truth.",
        )
    near, far = limits_m
    mask = valid_mask(truth_m, limits_m)
    if crop is not None:
        mask &= crop
    if not mask.any():
        raise InputError(
            "No pixel has a measured depth.",
            f"No true depth lies between {near} and {far} m.",
            "Check the depth scale.",
        )
    # float32 loses digits in sums over hundreds of thousands of pixels.
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
        # Rounding can make the variance slightly negative.
        silog=float(100.0 * np.sqrt(max(np.mean(e**2) - np.mean(e) ** 2, 0.0))),
        delta1=float(np.mean(ratio < 1.25)),
        delta2=float(np.mean(ratio < 1.25**2)),
        delta3=float(np.mean(ratio < 1.25**3)),
    )


def clamp_depth(prediction_m: FloatArray, limits_m: tuple[float, float]) -> FloatArray:
    """Clamp a prediction to the limits; infinity becomes the far limit, NaN the near limit."""
    # NaN is not left out: a model could then improve its result by refusing hard pixels.
    near, far = limits_m
    inside: FloatArray = np.nan_to_num(prediction_m, nan=near, posinf=far, neginf=near).clip(near, far)
    return inside


def mean_metrics(per_image: list[DepthMetrics]) -> DepthMetrics:
    """Average metrics over images, each image counting once.

    Raises:
        InputError: there are no images.
    """
    if not per_image:
        raise InputError("There is nothing to average.", "No image was evaluated.", "Check the data set's folder.")
    return DepthMetrics(**means(per_image, *(field.name for field in fields(DepthMetrics))))


def means(results: Sequence[Any], *names: str) -> dict[str, float]:
    """Average attributes over results, each result counting once."""
    return {name: float(np.mean([getattr(result, name) for result in results])) for name in names}
