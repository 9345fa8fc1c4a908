"""What a sweep over precisions found: what INT8 costs in accuracy, group of layers by group, and what it saves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from mirrordepth_edge.config import Strict
from mirrordepth_edge.support.files import read_json, write_json
from mirrordepth_edge.support.schema import read_strict, upgraded

SWEEP_VERSION: Literal[2] = 2
RENAMED_IN_2 = {"multiply_adds": "macs", "damage": "sensitivity"}
"""New keys of a sweep by those of schema version 1."""
SWEEP_AGAIN = "Sweep again with this version."


@dataclass(frozen=True, kw_only=True)
class GroupSensitivity(Strict):
    """One group of layers, such as a transformer block, alone in INT8."""

    group: str
    nodes: int
    macs: int
    """Of one inference."""
    sensitivity: float
    """Mean |d - d_fp32| / d_fp32 of depth when only this group is in INT8."""


@dataclass(frozen=True, kw_only=True)
class SweepPoint(Strict):
    """One choice of groups in INT8."""

    number: int
    """By which tables and pictures call it."""
    int8_groups: tuple[str, ...]
    int8_share: float
    """Of the multiply-adds, 0 to 1."""
    abs_rel: float
    """Mean |d - d*| / d*, where d* is the true depth if there is one, else FP32's."""
    loss: float
    """By which `abs_rel` is worse than FP32's, as a share of it; `abs_rel` itself where d* is FP32's."""
    delta1: float
    """Share of pixels with max(d / d*, d* / d) < 1.25."""
    worst: float
    """Largest |d - d_fp32| / d_fp32 of a pixel."""
    boundary_f1: float | None
    """Of depth edges against those of d*; None where there are none."""
    cost_ms: float
    cost_ratio: float
    """To FP32's `cost_ms`."""
    on_front: bool
    """No other point is at least as good in accuracy and cost and better in one of them: `pareto`."""


@dataclass(frozen=True, kw_only=True)
class SweepResult(Strict):
    """A sweep, as it is stored (JSON)."""

    schema_version: Literal[2] = SWEEP_VERSION
    model: str
    onnx_sha256: str
    """Of the FP32 graph."""
    calibration: str
    """The calibration set, in words."""
    method: str
    """How ranges were taken from it, in words."""
    frames: int
    """That accuracy was measured on."""
    labelled: bool
    """Whether they have true depth; else FP32's depth stands for it."""
    data: str
    """Where they are from, in words."""
    cost: str
    """What `cost_ms` is, in words, such as what was timed where, or that it is an estimate."""
    baseline: SweepPoint
    """Nothing in INT8."""
    groups: tuple[GroupSensitivity, ...]
    points: tuple[SweepPoint, ...]
    seconds: float
    """That the sweep took, before and after interruptions."""


def pareto(points: Iterable[SweepPoint]) -> tuple[SweepPoint, ...]:
    """The same points, in their order, with `on_front` set: those whose accuracy and `cost_ratio` no other beats.

    A point beats another if it is at least as good in both and better in one; so of equal points all are on the front.
    To be more accurate than FP32 is chance: it counts as no loss, and among those without a loss FP32 is the best.
    """
    points = tuple(points)
    front: set[tuple[float, tuple[float, bool]]] = set()
    best = (float("inf"), True)
    # From cheap to dear, and from good to bad at one cost: on the front is what is better than all that came before.
    for cost_ratio, inaccuracy in sorted((point.cost_ratio, _inaccuracy(point)) for point in points):
        if inaccuracy < best:
            best = inaccuracy
            front.add((cost_ratio, inaccuracy))
    return tuple(replace(point, on_front=(point.cost_ratio, _inaccuracy(point)) in front) for point in points)


def _inaccuracy(point: SweepPoint) -> tuple[float, bool]:
    """The less, the better: the loss, and whether depth differs from FP32's at all."""
    return max(point.loss, 0.0), point.worst > 0


def save_sweep(path: Path, result: SweepResult) -> None:
    """Write a sweep as JSON, whole."""
    write_json(path, asdict(result))


def load_sweep(path: Path) -> SweepResult:
    """Read what `save_sweep` wrote.

    Raises:
        InputError: there is no such file, it is no JSON, or a field is missing, unknown or of the wrong type.
    """
    data = upgraded(read_json(path, "sweep", SWEEP_AGAIN), RENAMED_IN_2, range(1, 2), SWEEP_VERSION)
    return read_strict(SweepResult, data, str(path), SWEEP_AGAIN)
