"""Evaluation of a model on a data set: depth metrics, boundaries, temporal consistency.

A model is any `DepthPredictor`. Checkpoint, ONNX file and engine are evaluated on the same frames with the
same preprocessing and metrics, so a difference between them is the cost of export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mirrordepth_edge import __version__
from mirrordepth_edge.config import Align, Crop, Strict
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation.consistency import (
    CameraPath,
    ConsistencyMeter,
    FlowMeter,
    ReprojectionMeter,
    TemporalConsistency,
)
from mirrordepth_edge.evaluation.edges import BoundaryErrors, BoundaryF1, boundary_errors, boundary_f1
from mirrordepth_edge.evaluation.metrics import (
    Depth,
    DepthMetrics,
    Mask,
    clamp_depth,
    depth_metrics,
    eigen_crop,
    garg_crop,
    mean_metrics,
    means,
    valid_mask,
)
from mirrordepth_edge.imaging.preprocess import Frame

EVALUATION_VERSION = 2
CROPS: dict[str, Callable[[tuple[int, int]], Mask]] = {"eigen": eigen_crop, "garg": garg_crop}
DEPTH_BINS = 10
"""Number of depth ranges of equal width, from 0 to the far limit, for errors by true depth."""
WIDE_PX = 16
"""Distance of the pixels compared for the wide boundary F1: about the effective resolution of `nano`."""
DENSE_SHARE = 0.5
"""Temporal consistency of true depth is reported if it covers at least this share of the prediction's pixels."""


@dataclass(frozen=True, kw_only=True)
class Protocol(Strict):
    """Evaluation protocol. Results of different protocols are not comparable."""

    limits_m: tuple[float, float]
    """Nearest and farthest true depth that is evaluated, exclusive, metres. Predictions are clamped to it."""
    crop: Crop = "none"
    flip: bool = False
    """Average the prediction with that of the horizontally flipped image."""
    align: Align = "none"
    """`median` scales each prediction to the true median, `lsq` fits scale and shift. Neither is metric depth."""

    def __str__(self) -> str:
        near, far = self.limits_m
        crop = "no crop" if self.crop == "none" else f"{self.crop.capitalize()} crop"
        flip = "flip averaging" if self.flip else "no flip averaging"
        align = {
            "none": "metric, no alignment",
            "median": "NOT METRIC: each image scaled to the true median",
            "lsq": "NOT METRIC: scale and shift of each image fitted to the true depth",
        }[self.align]
        return f"{crop}, {near:g} to {far:g} m, {flip}; {align}"


@dataclass(frozen=True, kw_only=True)
class DepthRange:
    """Errors where the true depth lies in one range; stored as sums, which can be added over images."""

    near_m: float
    far_m: float
    pixels: int
    abs_rel_sum: float
    """Sum of |p - g| / g over the pixels; p prediction, g ground truth."""
    bias_sum: float
    """Sum of (p - g) / g; positive if depth is overestimated."""

    @property
    def abs_rel(self) -> float | None:
        return self.abs_rel_sum / self.pixels if self.pixels else None

    @property
    def bias(self) -> float | None:
        return self.bias_sum / self.pixels if self.pixels else None


@dataclass(frozen=True, kw_only=True)
class PictureResult:
    """Errors on one image."""

    name: str
    valid_pixels: int
    metrics: DepthMetrics
    ranges: tuple[DepthRange, ...]
    """By true depth, nearest first."""
    boundary_f1: BoundaryF1 | None = None
    """Of neighbouring pixels; None if the true depth has no contours."""
    boundary_f1_wide: BoundaryF1 | None = None
    """Of pixels `WIDE_PX` apart, which also measures soft edges; None if the true depth has no contours."""
    boundary: BoundaryErrors | None = None
    """If requested and if the true depth has edges."""


@dataclass(frozen=True, kw_only=True)
class MeanBoundaryF1:
    """Boundary F1; means over the images whose true depth has contours."""

    f1: float
    precision: float
    recall: float
    pictures: int


@dataclass(frozen=True, kw_only=True)
class SpatialConsistency:
    """Depth boundary errors; means over the images whose true depth has edges."""

    accuracy_px: float
    completeness_px: float
    found: float
    """Ratio of pixels on predicted edges to pixels on true edges, over all images."""
    pictures: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Errors on a data set; each image counts once."""

    protocol: Protocol
    pictures: tuple[PictureResult, ...]
    edges: bool = False
    """Whether depth boundary errors were measured."""
    temporal: TemporalConsistency | None = None
    """Of the raw prediction: no crop, no alignment, no clamping."""
    temporal_truth: TemporalConsistency | None = None
    """Of the true depth, if it is dense enough: the error floor of the measure."""

    @property
    def mean(self) -> DepthMetrics:
        return mean_metrics([picture.metrics for picture in self.pictures])

    @property
    def ranges(self) -> tuple[DepthRange, ...]:
        """Errors by true depth over all images; here each pixel counts once."""
        totals = []
        for parts in zip(*(picture.ranges for picture in self.pictures), strict=True):
            sums = {name: sum(getattr(part, name) for part in parts) for name in ("pixels", "abs_rel_sum", "bias_sum")}
            totals.append(replace(parts[0], **sums))
        return tuple(totals)

    @property
    def boundary_f1(self) -> MeanBoundaryF1 | None:
        """None if no true depth has a contour."""
        return _mean_f1([picture.boundary_f1 for picture in self.pictures])

    @property
    def boundary_f1_wide(self) -> MeanBoundaryF1 | None:
        return _mean_f1([picture.boundary_f1_wide for picture in self.pictures])

    @property
    def spatial(self) -> SpatialConsistency | None:
        boundaries = [picture.boundary for picture in self.pictures if picture.boundary is not None]
        if not boundaries:
            return None
        return SpatialConsistency(
            **means(boundaries, "accuracy_px", "completeness_px"),
            found=sum(boundary.predicted for boundary in boundaries) / sum(boundary.true for boundary in boundaries),
            pictures=len(boundaries),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, including the errors of every image."""
        plain = asdict(self)
        for picture in plain["pictures"]:
            del picture["ranges"]  # written once, for all images together
        for name in ("temporal", "temporal_truth"):
            consistency: TemporalConsistency | None = getattr(self, name)
            plain[name] = None if consistency is None else consistency.to_json()
        ranges = [asdict(part) | {"abs_rel": part.abs_rel, "bias": part.bias} for part in self.ranges]
        edges = {name: getattr(self, name) for name in ("boundary_f1", "boundary_f1_wide", "spatial")}
        return {
            "schema_version": EVALUATION_VERSION,
            "mirrordepth_edge": __version__,
            **plain,
            "mean": asdict(self.mean),
            "ranges": ranges,
            **{name: None if result is None else asdict(result) for name, result in edges.items()},
        }


def evaluate(
    predict: Callable[[Frame], Depth],
    samples: Iterable[Sample],
    protocol: Protocol,
    *,
    spatial: bool = False,
    temporal: bool = False,
    camera_path: CameraPath | None = None,
) -> Evaluation:
    """Evaluate a predictor on images with measured depth.

    Args:
        predict: maps uint8 RGB `[H, W, 3]` to float32 metres `[H, W]`, such as a `DepthPredictor`.
        samples: images and depth of the same size.
        protocol: crop, depth limits, flip averaging and alignment.
        spatial: also measure depth boundary errors.
        temporal: also measure temporal consistency; the images must be consecutive frames.
        camera_path: measure temporal consistency by camera motion instead of optical flow; a pose for each sample.

    Raises:
        InputError: there are no samples, an image has no valid depth, the crop does not fit, or frames of a
            video differ in size.
    """
    results = []
    meter: ConsistencyMeter[Any] | None = None
    if temporal:
        meter = FlowMeter() if camera_path is None else ReprojectionMeter(camera_path.camera)
    for index, sample in enumerate(samples):
        depth_m = _predict(predict, sample, protocol)
        if meter is not None:
            truth_m = np.where(valid_mask(sample.depth_m, protocol.limits_m), sample.depth_m, np.float32(0))
            meter.add(sample.frame if camera_path is None else camera_path.poses[index], depth_m, truth_m)
        results.append(_compare(_align(depth_m, sample, protocol), sample, protocol, spatial=spatial))
    mean_metrics([result.metrics for result in results])  # raises if there was no image
    of_prediction, of_truth = (None, None) if meter is None else _temporal_results(meter)
    return Evaluation(
        protocol=protocol, pictures=tuple(results), edges=spatial, temporal=of_prediction, temporal_truth=of_truth
    )


def check_samples(samples: Iterable[Sample], protocol: Protocol) -> None:
    """Check that samples can be evaluated, so that training does not fail after its first epoch.

    Raises:
        InputError: a sample cannot be read or has no valid depth, or the crop does not fit.
    """
    for sample in samples:
        if not _evaluated_pixels(sample, protocol).any():
            raise InputError(
                f"{sample.name} has no valid depth.",
                f"The protocol is: {protocol}.",
                "Remove it, or check the depth scale (--units-per-metre).",
            )


def predict_by_protocol(predict: Callable[[Frame], Depth], sample: Sample, protocol: Protocol) -> tuple[Depth, Mask]:
    """Predict the depth of one image as `evaluate` compares it.

    Returns:
        Depth float32 `[H, W]`, metres, with flip averaging, alignment and clamping by the protocol; and the
        pixels that are evaluated, bool `[H, W]`.
    """
    depth_m = _align(_predict(predict, sample, protocol), sample, protocol)
    return clamp_depth(depth_m, protocol.limits_m), _evaluated_pixels(sample, protocol)


def predict_flipped(predict: Callable[[Frame], Depth], frame: Frame) -> Depth:
    """Average the depth of an image with that of its horizontal flip, flipped back."""
    depth_m = predict(frame).copy()  # predictors reuse their arrays
    mirrored = predict(np.ascontiguousarray(frame[:, ::-1]))[:, ::-1]
    return (depth_m + mirrored) / np.float32(2)


def align(depth_m: Depth, truth_m: Depth, valid: Mask, how: Align) -> Depth:
    """Align a prediction with the truth on valid pixels: `median` by scale, `lsq` by scale and shift.

    Predicted NaN and infinity are ignored and kept. Without a finite prediction nothing is changed.
    """
    finite = valid & np.isfinite(depth_m)
    if how == "none" or not finite.any():
        return depth_m
    p, g = depth_m[finite].astype(np.float64), truth_m[finite].astype(np.float64)
    if how == "median":
        median = np.median(p)
        return depth_m * np.float32(np.median(g) / median) if median > 0 else depth_m
    variance = p.var()
    scale = np.mean((p - p.mean()) * (g - g.mean())) / variance if variance > 0 else 0.0
    shift = g.mean() - scale * p.mean()
    return (depth_m * np.float32(scale) + np.float32(shift)).astype(np.float32)


def _temporal_results(meter: ConsistencyMeter[Any]) -> tuple[TemporalConsistency, TemporalConsistency | None]:
    """Temporal consistency of the prediction, and of the true depth if it is dense enough."""
    of_prediction, of_truth = meter.results() or (None, None)
    if of_prediction is None:
        raise InputError(
            "Temporal consistency cannot be measured.",
            "There are fewer than two frames with depth, or no pixel of one is found in the next.",
            "Pass consecutive frames of one video, in order.",
        )
    if of_truth is not None and of_truth.share_used < DENSE_SHARE * of_prediction.share_used:
        of_truth = None
    return of_prediction, of_truth


def _predict(predict: Callable[[Frame], Depth], sample: Sample, protocol: Protocol) -> Depth:
    return predict_flipped(predict, sample.frame) if protocol.flip else predict(sample.frame)


def _align(depth_m: Depth, sample: Sample, protocol: Protocol) -> Depth:
    return align(depth_m, sample.depth_m, _evaluated_pixels(sample, protocol), protocol.align)


def _compare(depth_m: Depth, sample: Sample, protocol: Protocol, *, spatial: bool) -> PictureResult:
    crop, valid = _crop(sample, protocol), _evaluated_pixels(sample, protocol)
    metrics = depth_metrics(depth_m, sample.depth_m, limits_m=protocol.limits_m, crop=crop)
    clamped_m = clamp_depth(depth_m, protocol.limits_m)
    window = (slice(None), slice(None)) if crop is None else _bounding_box(crop)
    cropped = clamped_m[window], sample.depth_m[window], valid[window]
    return PictureResult(
        name=sample.name,
        valid_pixels=int(valid.sum()),
        metrics=metrics,
        ranges=_ranges(clamped_m[valid], sample.depth_m[valid], protocol.limits_m[1]),
        boundary_f1=boundary_f1(*cropped),
        boundary_f1_wide=boundary_f1(*cropped, apart_px=WIDE_PX),
        boundary=boundary_errors(*cropped) if spatial else None,
    )


def _mean_f1(per_picture: list[BoundaryF1 | None]) -> MeanBoundaryF1 | None:
    scores = [score for score in per_picture if score is not None]
    return MeanBoundaryF1(**means(scores, "f1", "precision", "recall"), pictures=len(scores)) if scores else None


def _crop(sample: Sample, protocol: Protocol) -> Mask | None:
    height, width = sample.depth_m.shape
    return None if protocol.crop == "none" else CROPS[protocol.crop]((height, width))


def _evaluated_pixels(sample: Sample, protocol: Protocol) -> Mask:
    """Pixels that are evaluated: with valid depth, inside the crop."""
    valid, crop = valid_mask(sample.depth_m, protocol.limits_m), _crop(sample, protocol)
    return valid if crop is None else valid & crop


def _bounding_box(mask: Mask) -> tuple[slice, slice]:
    """Bounding box of a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _ranges(depth_m: Depth, truth_m: Depth, far_m: float) -> tuple[DepthRange, ...]:
    """Sum relative errors by true depth; both arguments are `[N]`, metres."""
    edges = np.linspace(0, far_m, DEPTH_BINS + 1)
    index = np.digitize(truth_m, edges[1:-1])
    relative = (depth_m.astype(np.float64) - truth_m) / truth_m.astype(np.float64)
    sums = (np.bincount(index, weights, minlength=DEPTH_BINS) for weights in (None, np.abs(relative), relative))
    columns = (values.tolist() for values in (edges[:-1], edges[1:], *sums))
    return tuple(
        DepthRange(near_m=near_m, far_m=far_m, pixels=pixels, abs_rel_sum=abs_rel, bias_sum=bias)
        for near_m, far_m, pixels, abs_rel, bias in zip(*columns, strict=True)
    )
