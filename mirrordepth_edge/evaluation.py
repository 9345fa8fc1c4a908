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
from mirrordepth_edge.metrics import (
    Depth,
    DepthMetrics,
    Mask,
    depth_metrics,
    eigen_crop,
    garg_crop,
    mean_metrics,
    valid_mask,
)
from mirrordepth_edge.preprocess import Frame

EVALUATION_VERSION = 1
CROPS: dict[str, Callable[[tuple[int, int]], Mask]] = {"eigen": eigen_crop, "garg": garg_crop}

Align = Literal["none", "median", "lsq"]


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
class PictureResult:
    """Errors on one picture."""

    name: str
    valid_pixels: int
    metrics: DepthMetrics


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Errors on a data set; each picture counts once."""

    protocol: Protocol
    pictures: tuple[PictureResult, ...]

    @property
    def mean(self) -> DepthMetrics:
        return mean_metrics([picture.metrics for picture in self.pictures])

    def to_json(self) -> dict[str, Any]:
        """Plain values, every picture's errors included."""
        return {
            "schema_version": EVALUATION_VERSION,
            "mirrordepth_edge": __version__,
            **asdict(self),
            "mean": asdict(self.mean),
        }


def evaluate(predict: Callable[[Frame], Depth], samples: Iterable[Sample], protocol: Protocol) -> Evaluation:
    """Evaluate a predictor on pictures with measured depth.

    Args:
        predict: uint8 RGB `[H, W, 3]` to float32 metres `[H, W]`, such as a `DepthPredictor`.
        samples: pictures and depth of the same size.

    Raises:
        InputError: there are none, a picture has no valid depth, or a crop does not fit.
    """
    results = []
    for sample in samples:
        crop = CROPS[protocol.crop](_size(sample.depth_m)) if protocol.crop != "none" else None
        depth_m = predict_flipped(predict, sample.frame) if protocol.flip else predict(sample.frame)
        valid = valid_mask(sample.depth_m, protocol.limits_m)
        if crop is not None:
            valid &= crop
        if protocol.align != "none" and valid.any():
            depth_m = align(depth_m, sample.depth_m, valid, protocol.align)
        metrics = depth_metrics(depth_m, sample.depth_m, limits_m=protocol.limits_m, crop=crop)
        results.append(PictureResult(name=sample.name, valid_pixels=int(valid.sum()), metrics=metrics))
    mean_metrics([result.metrics for result in results])  # says so if there was no picture
    return Evaluation(protocol=protocol, pictures=tuple(results))


def predict_flipped(predict: Callable[[Frame], Depth], frame: Frame) -> Depth:
    """Mean of the depth of a picture and of its mirror image, mirrored back."""
    depth_m = predict(frame).copy()  # a predictor reuses its array
    mirrored = predict(np.ascontiguousarray(frame[:, ::-1]))[:, ::-1]
    return (depth_m + mirrored) / np.float32(2)


def align(depth_m: Depth, truth_m: Depth, valid: Mask, how: Align) -> Depth:
    """Fit a prediction to the truth on valid pixels: `median` by scale, `lsq` by scale and shift."""
    p, g = depth_m[valid].astype(np.float64), truth_m[valid].astype(np.float64)
    if how == "median":
        return depth_m * np.float32(np.median(g) / np.median(p))
    scale, shift = np.polyfit(p, g, 1)
    return (depth_m * np.float32(scale) + np.float32(shift)).astype(np.float32)


def _size(depth_m: Depth) -> tuple[int, int]:
    return depth_m.shape[0], depth_m.shape[1]
