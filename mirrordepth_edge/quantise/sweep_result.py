"""Result of a sweep over mixed precisions: accuracy and run time per choice of INT8 layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from mirrordepth_edge.config import Strict

SWEEP_VERSION: Literal[2] = 2
"""Version 2 renamed the keys `multiply_adds` to `macs` and `damage` to `sensitivity`."""


@dataclass(frozen=True, kw_only=True)
class GroupSensitivity(Strict):
    """One group of layers, such as a transformer block, alone in INT8."""

    group: str
    nodes: int
    macs: int
    """MACs of one inference."""
    sensitivity: float
    """Mean |d - d_fp32| / d_fp32 of depth when only this group is in INT8."""


@dataclass(frozen=True, kw_only=True)
class SweepPoint(Strict):
    """One choice of groups in INT8."""

    number: int
    """Number in tables and charts."""
    int8_groups: tuple[str, ...]
    int8_share: float
    """Share of MACs in INT8, 0 to 1."""
    abs_rel: float
    """Mean |d - d*| / d*, where d* is the true depth if there is one, else FP32's."""
    loss: float
    """Relative increase of `abs_rel` over FP32's; `abs_rel` itself if d* is FP32's depth."""
    delta1: float
    """Share of pixels with max(d / d*, d* / d) < 1.25."""
    worst: float
    """Largest |d - d_fp32| / d_fp32 of a pixel."""
    boundary_f1: float | None
    """F1 of depth edges against those of d*; None if d* has none."""
    cost_ms: float
    cost_ratio: float
    """Ratio of `cost_ms` to FP32's."""
    on_front: bool
    """Whether the point is on the Pareto front of accuracy and cost, see `pareto`."""


@dataclass(frozen=True, kw_only=True)
class SweepResult(Strict):
    """A sweep, as stored in JSON."""

    schema_version: Literal[2] = SWEEP_VERSION
    model: str
    onnx_sha256: str
    """Of the FP32 file."""
    calibration: str
    """Description of the calibration set."""
    method: str
    """Description of the calibration method."""
    frames: int
    """Number of frames that accuracy was measured on."""
    labelled: bool
    """Whether they have measured depth; if not, FP32's depth is used instead."""
    data: str
    """Description of the frames."""
    cost: str
    """Description of `cost_ms`: what was timed where, or that it is an estimate."""
    baseline: SweepPoint
    """Nothing in INT8."""
    groups: tuple[GroupSensitivity, ...]
    points: tuple[SweepPoint, ...]
    seconds: float
    """Total duration, including runs that were interrupted."""


def pareto(points: Iterable[SweepPoint]) -> tuple[SweepPoint, ...]:
    """Return the points with `on_front` set for the Pareto front of accuracy and `cost_ratio`.

    A point dominates another if it is at least as good in both and better in one; of equal points all are on the front.
    Higher accuracy than FP32 is chance and counts as no loss. Among points without a loss, FP32 is the best.
    """
    points = tuple(points)
    front: set[tuple[float, tuple[float, bool]]] = set()
    best = (float("inf"), True)
    # In order of rising cost, then of rising inaccuracy, a point is on the front if it is better than all before it.
    for cost_ratio, inaccuracy in sorted((point.cost_ratio, _inaccuracy(point)) for point in points):
        if inaccuracy < best:
            best = inaccuracy
            front.add((cost_ratio, inaccuracy))
    return tuple(replace(point, on_front=(point.cost_ratio, _inaccuracy(point)) in front) for point in points)


def _inaccuracy(point: SweepPoint) -> tuple[float, bool]:
    """Sort key, smaller is better: the loss, and whether depth differs from FP32's at all."""
    return max(point.loss, 0.0), point.worst > 0
