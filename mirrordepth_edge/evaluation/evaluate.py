"""Metric depth errors of any artefact on a data set, by the field's protocol.

The artefact is a `DepthPredictor`, whatever runs it: the same frames, preprocessing and metrics for
a checkpoint, an ONNX file and an engine, so that the difference is what export cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mirrordepth_edge import __version__
from mirrordepth_edge.config import Crop, Strict
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation.consistency import (
    CameraPath,
    FlowMeter,
    ReprojectionConsistency,
    ReprojectionMeter,
    TemporalConsistency,
    nothing_followed,
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
    valid_mask,
)
from mirrordepth_edge.imaging.preprocess import Frame

EVALUATION_VERSION = 2
CROPS: dict[str, Callable[[tuple[int, int]], Mask]] = {"eigen": eigen_crop, "garg": garg_crop}
DEPTH_BINS = 10
"""Into how many ranges of the same width, from 0 to the far limit, errors are sorted by true depth."""
WIDE_PX = 16
"""How far apart pixels are whose depth is compared for the wide boundary F1: about what one answer of `nano` covers."""
DENSE_SHARE = 0.5
"""True depth serves as a reference in time where it can be judged on this share of the prediction's pixels."""

Align = Literal["none", "median", "lsq"]
Temporal = TemporalConsistency | ReprojectionConsistency


@dataclass(frozen=True, kw_only=True)
class Protocol(Strict):
    """How depth is compared; results of different protocols do not compare."""

    limits_m: tuple[float, float]
    """Nearest and farthest true depth that counts, exclusive, in metres; predictions are clamped to it."""
    crop: Crop = "none"
    flip: bool = False
    """Average the prediction with that of the mirrored picture."""
    align: Align = "none"
    """`median` scales each prediction to the truth's median, `lsq` fits scale and shift; neither is metric depth."""

    def __str__(self) -> str:
        near, far = self.limits_m
        crop = "no crop" if self.crop == "none" else f"{self.crop.capitalize()} crop"
        flip = "flip averaging" if self.flip else "no flip averaging"
        align = {
            "none": "metric, no alignment",
            "median": "NOT METRIC: each picture scaled to the true median",
            "lsq": "NOT METRIC: scale and shift of each picture fitted to the truth",
        }[self.align]
        return f"{crop}, {near:g} to {far:g} m, {flip}; {align}"


@dataclass(frozen=True, kw_only=True)
class DepthRange:
    """Errors where the true depth is in one range; sums, so that pictures add up."""

    near_m: float
    far_m: float
    pixels: int
    abs_rel_sum: float
    """Sum of |g - p| / g over the pixels."""
    bias_sum: float
    """Sum of (p - g) / g: above zero where things are seen too far away."""

    @property
    def abs_rel(self) -> float | None:
        return self.abs_rel_sum / self.pixels if self.pixels else None

    @property
    def bias(self) -> float | None:
        return self.bias_sum / self.pixels if self.pixels else None


@dataclass(frozen=True, kw_only=True)
class PictureResult:
    """Errors on one picture."""

    name: str
    valid_pixels: int
    metrics: DepthMetrics
    ranges: tuple[DepthRange, ...]
    """By true depth, near to far."""
    boundary_f1: BoundaryF1 | None = None
    """Of neighbouring pixels, where the true depth has contours."""
    boundary_f1_wide: BoundaryF1 | None = None
    """Of pixels `WIDE_PX` apart, on the same terms: what is left to tell where depth is soft."""
    boundary: BoundaryErrors | None = None
    """Where asked for and where the true depth has edges."""


@dataclass(frozen=True, kw_only=True)
class MeanBoundaryF1:
    """Boundary F1, means over the pictures whose true depth has contours."""

    f1: float
    precision: float
    recall: float
    pictures: int


@dataclass(frozen=True, kw_only=True)
class SpatialConsistency:
    """Depth boundary errors, means over the pictures whose true depth has edges."""

    accuracy_px: float
    completeness_px: float
    found: float
    """Pixels on predicted edges for each one on a true edge, over all pictures."""
    pictures: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Errors on a data set; each picture counts once."""

    protocol: Protocol
    pictures: tuple[PictureResult, ...]
    edges: bool = False
    """Whether depth edges were compared."""
    temporal: Temporal | None = None
    """Of the prediction as it comes, all of it: no crop, no alignment, no clamping."""
    temporal_truth: Temporal | None = None
    """The same of the true depth, where it is dense enough: what is left is the measure's own error."""

    @property
    def mean(self) -> DepthMetrics:
        return mean_metrics([picture.metrics for picture in self.pictures])

    @property
    def ranges(self) -> tuple[DepthRange, ...]:
        """Errors by true depth over all pictures; here each pixel counts once."""
        return tuple(
            DepthRange(
                near_m=parts[0].near_m,
                far_m=parts[0].far_m,
                pixels=sum(part.pixels for part in parts),
                abs_rel_sum=sum(part.abs_rel_sum for part in parts),
                bias_sum=sum(part.bias_sum for part in parts),
            )
            for parts in zip(*(picture.ranges for picture in self.pictures), strict=True)
        )

    @property
    def boundary_f1(self) -> MeanBoundaryF1 | None:
        """None where no true depth has a contour."""
        return _mean_f1([picture.boundary_f1 for picture in self.pictures])

    @property
    def boundary_f1_wide(self) -> MeanBoundaryF1 | None:
        return _mean_f1([picture.boundary_f1_wide for picture in self.pictures])

    @property
    def spatial(self) -> SpatialConsistency | None:
        found = [picture.boundary for picture in self.pictures if picture.boundary is not None]
        if not found:
            return None
        return SpatialConsistency(
            accuracy_px=float(np.mean([each.accuracy_px for each in found])),
            completeness_px=float(np.mean([each.completeness_px for each in found])),
            found=sum(each.predicted for each in found) / sum(each.true for each in found),
            pictures=len(found),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, every picture's errors included."""
        plain = asdict(self)
        for picture in plain["pictures"]:
            del picture["ranges"]  # below, for all pictures together
        ranges = [asdict(each) | {"abs_rel": each.abs_rel, "bias": each.bias} for each in self.ranges]
        edges = {name: getattr(self, name) for name in ("boundary_f1", "boundary_f1_wide", "spatial")}
        return {
            "schema_version": EVALUATION_VERSION,
            "mirrordepth_edge": __version__,
            **plain,
            "mean": asdict(self.mean),
            "ranges": ranges,
            **{name: None if each is None else asdict(each) for name, each in edges.items()},
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
    """Evaluate a predictor on pictures with measured depth.

    Args:
        predict: uint8 RGB `[H, W, 3]` to float32 metres `[H, W]`, such as a `DepthPredictor`.
        samples: pictures and depth of the same size.
        spatial: measure depth boundary errors as well.
        temporal: measure consistency in time as well; the pictures are consecutive frames.
        camera_path: measure that by the camera's motion, not by optical flow.

    Raises:
        InputError: there are none, a picture has no valid depth, a crop does not fit, or the pictures
            are not of one size where they must be.
    """
    results = []
    meter = _Meter(camera_path) if temporal else None
    for sample in samples:
        depth_m = _predicted(predict, sample, protocol)
        if meter is not None:
            meter.add(sample, depth_m, protocol.limits_m)
        results.append(_compare(_aligned(depth_m, sample, protocol), sample, protocol, spatial=spatial))
    mean_metrics([result.metrics for result in results])  # says so if there was no picture
    of_prediction, of_truth = (None, None) if meter is None else meter.results()
    return Evaluation(
        protocol=protocol,
        pictures=tuple(results),
        edges=spatial,
        temporal=of_prediction,
        temporal_truth=of_truth,
    )


def check_samples(samples: Iterable[Sample], protocol: Protocol) -> None:
    """Raise what `evaluate` would raise, before hours of training end in it.

    Raises:
        InputError: a sample cannot be read or has no depth that counts, or a crop does not fit.
    """
    for sample in samples:
        if not _counted(sample, protocol).any():
            raise InputError(
                f"{sample.name} has no depth that counts.",
                f"The protocol is: {protocol}.",
                "Take it away, or check the depth scale (--units-per-metre).",
            )


def predict_by_protocol(predict: Callable[[Frame], Depth], sample: Sample, protocol: Protocol) -> tuple[Depth, Mask]:
    """Depth of one picture as `evaluate` compares it, and the pixels that count.

    Returns:
        float32 `[H, W]` metres, with flip averaging, alignment and clamping as the protocol has them; bool `[H, W]`.
    """
    depth_m = _aligned(_predicted(predict, sample, protocol), sample, protocol)
    return clamp_depth(depth_m, protocol.limits_m), _counted(sample, protocol)


def predict_flipped(predict: Callable[[Frame], Depth], frame: Frame) -> Depth:
    """Mean of the depth of a picture and of its mirror image, mirrored back."""
    depth_m = predict(frame).copy()  # a predictor reuses its array
    mirrored = predict(np.ascontiguousarray(frame[:, ::-1]))[:, ::-1]
    return (depth_m + mirrored) / np.float32(2)


def align(depth_m: Depth, truth_m: Depth, valid: Mask, how: Align) -> Depth:
    """Fit a prediction to the truth on valid pixels: `median` by scale, `lsq` by scale and shift.

    Predicted NaN and infinity stay as they are and take no part; without a finite prediction nothing is fitted.
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


class _Meter:
    """Consistency in time of the prediction and of the true depth, on the same frames."""

    def __init__(self, camera_path: CameraPath | None) -> None:
        self._flow = FlowMeter() if camera_path is None else None
        self._motion = None if camera_path is None else ReprojectionMeter(camera_path.intrinsics)
        self._poses = iter(() if camera_path is None else camera_path.poses)

    def add(self, sample: Sample, depth_m: Depth, limits_m: tuple[float, float]) -> None:
        truth_m = np.where(valid_mask(sample.depth_m, limits_m), sample.depth_m, np.float32(0))
        if self._flow is not None:
            self._flow.add(sample.frame, depth_m, truth_m)
        if self._motion is not None:
            pose = next(self._poses, None)
            if pose is None:
                raise InputError(
                    f"There is no pose for {sample.name}.",
                    "The camera's path has fewer poses than there are pictures.",
                    "Give a pose for each picture.",
                )
            self._motion.add(pose, depth_m, truth_m)

    def results(self) -> tuple[Temporal, Temporal | None]:
        meter = self._flow or self._motion
        assert meter is not None
        of_prediction, of_truth = meter.results()
        if of_prediction is None:
            raise nothing_followed()
        if of_truth is not None and of_truth.share_used < DENSE_SHARE * of_prediction.share_used:
            of_truth = None
        return of_prediction, of_truth


def _predicted(predict: Callable[[Frame], Depth], sample: Sample, protocol: Protocol) -> Depth:
    return predict_flipped(predict, sample.frame) if protocol.flip else predict(sample.frame)


def _aligned(depth_m: Depth, sample: Sample, protocol: Protocol) -> Depth:
    if protocol.align == "none":
        return depth_m
    return align(depth_m, sample.depth_m, _counted(sample, protocol), protocol.align)


def _compare(depth_m: Depth, sample: Sample, protocol: Protocol, *, spatial: bool) -> PictureResult:
    crop, valid = _crop(sample, protocol), _counted(sample, protocol)
    metrics = depth_metrics(depth_m, sample.depth_m, limits_m=protocol.limits_m, crop=crop)
    clamped_m = clamp_depth(depth_m, protocol.limits_m)
    window = (slice(None), slice(None)) if crop is None else _window(crop)
    of_edges = clamped_m[window], sample.depth_m[window], valid[window]
    return PictureResult(
        name=sample.name,
        valid_pixels=int(valid.sum()),
        metrics=metrics,
        ranges=_ranges(clamped_m[valid], sample.depth_m[valid], protocol.limits_m[1]),
        boundary_f1=boundary_f1(*of_edges),
        boundary_f1_wide=boundary_f1(*of_edges, apart_px=WIDE_PX),
        boundary=boundary_errors(*of_edges) if spatial else None,
    )


def _mean_f1(per_picture: list[BoundaryF1 | None]) -> MeanBoundaryF1 | None:
    found = [each for each in per_picture if each is not None]
    if not found:
        return None
    return MeanBoundaryF1(
        f1=float(np.mean([each.f1 for each in found])),
        precision=float(np.mean([each.precision for each in found])),
        recall=float(np.mean([each.recall for each in found])),
        pictures=len(found),
    )


def _crop(sample: Sample, protocol: Protocol) -> Mask | None:
    height, width = sample.depth_m.shape
    return CROPS[protocol.crop]((height, width)) if protocol.crop != "none" else None


def _counted(sample: Sample, protocol: Protocol) -> Mask:
    """Pixels that count: with valid depth, inside the crop."""
    valid, crop = valid_mask(sample.depth_m, protocol.limits_m), _crop(sample, protocol)
    return valid if crop is None else valid & crop


def _window(mask: Mask) -> tuple[slice, slice]:
    """The rectangle round a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _ranges(depth_m: Depth, truth_m: Depth, far_m: float) -> tuple[DepthRange, ...]:
    """Sums of relative errors by true depth; both `[N]`, metres."""
    edges = np.linspace(0, far_m, DEPTH_BINS + 1)
    index = np.digitize(truth_m, edges[1:-1])
    relative = (depth_m.astype(np.float64) - truth_m) / truth_m.astype(np.float64)
    pixels, bias, abs_rel = (
        np.bincount(index, weights, minlength=DEPTH_BINS) for weights in (None, relative, np.abs(relative))
    )
    return tuple(
        DepthRange(
            near_m=float(edges[k]),
            far_m=float(edges[k + 1]),
            pixels=int(pixels[k]),
            abs_rel_sum=float(abs_rel[k]),
            bias_sum=float(bias[k]),
        )
        for k in range(DEPTH_BINS)
    )
