"""Sweep over mixed precisions: accuracy and run time with more and more layers kept in floating point.

Groups of layers are moved to floating point in order of sensitivity per MAC, so that the points lie near the Pareto
front. Measurements are stored at once, so that an interrupted sweep can continue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from mirrordepth_edge import __version__
from mirrordepth_edge.config import QuantisationScheme, Strict
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.graph.cost import node_costs
from mirrordepth_edge.manifest import Accuracy
from mirrordepth_edge.quantise.pipeline import Fitted, Int8Quantizer
from mirrordepth_edge.quantise.sweep_result import GroupSensitivity, SweepPoint, SweepResult, pareto
from mirrordepth_edge.support.cache import digest, read_checked, write_checked
from mirrordepth_edge.support.schema import read_strict

MAX_POINTS: Final = 11
SCHEME_WORDS: Final[dict[QuantisationScheme, str]] = {
    "gpu": "symmetric int8, the rest FP16",
    "cpu": "asymmetric uint8, the rest FP32",
}


@dataclass(frozen=True)
class Cost:
    """How the run time of a candidate is determined."""

    words: str
    """Description for reports, such as what was timed where."""
    of: Callable[[Sequence[str]], tuple[float, float]]
    """Run time of the candidate whose named nodes are in INT8, and of the FP32 file, both in ms by the same clock."""
    settings: Any = None
    """Other settings that the run time depends on (JSON values), such as the figures of a target."""


@dataclass(frozen=True, kw_only=True)
class _StoredPoint(Strict):
    """Measurements of one point, as stored."""

    accuracy: Accuracy
    cost_ms: float
    fp32_ms: float


def sweep(quantizer: Int8Quantizer, cost: Cost, path: Path) -> SweepResult:
    """Measure the sensitivity of every group, then accuracy and run time of a dozen choices of groups.

    Args:
        quantizer: makes the candidates of one file.
        path: JSON file that stores the measurements.
    """
    store, config = _Store(path, quantizer, cost), quantizer.config
    sensitivity = quantizer.measure_sensitivity(store.sensitivity, store.add_sensitivity)
    of_node = {cost.name: cost.macs for cost in node_costs(quantizer.model)}
    macs = {group: sum(of_node[node] for node in nodes) for group, nodes in quantizer.groups.items()}
    order = sorted(sensitivity, key=lambda group: -sensitivity[group] / max(macs[group], 1))
    fallbacks = [order[:count] for count in point_counts(len(order))]
    measurements = [store.measure(quantizer, cost, fallback) for fallback in fallbacks]
    fp32_ms = float(np.median([measured.fp32_ms for measured in measurements]))
    *points, baseline = pareto(
        _point(number, [group for group in sensitivity if group not in fallback], measured, macs, fp32_ms)
        for number, (fallback, measured) in enumerate(zip(fallbacks, measurements, strict=True))
    )
    return SweepResult(
        model=quantizer.manifest.model.preset,
        onnx_sha256=quantizer.fp32.sha256,
        calibration=f"{quantizer.calibration.name}, {quantizer.statistics.frames} frames",
        method=f"ranges by {config.method}; {SCHEME_WORDS[config.scheme]}",
        frames=measurements[0].accuracy.frames,
        labelled=quantizer.labelled is not None,
        data=measurements[0].accuracy.data,
        cost=cost.words,
        baseline=baseline,
        groups=tuple(
            GroupSensitivity(group=group, nodes=len(quantizer.groups[group]), macs=macs[group], sensitivity=value)
            for group, value in sensitivity.items()
        ),
        points=tuple(points),
        seconds=store.seconds(),
    )


def pick_point(quantizer: Int8Quantizer, cost: Cost, path: Path, result: SweepResult, number: int) -> Fitted:
    """Return a point of a sweep, to be written. The quantizer gets the sensitivities of the sweep.

    Raises:
        OptionError: there is no such point.
    """
    point = next((point for point in result.points if point.number == number), None)
    if point is None:
        first, last = result.points[0].number, result.points[-1].number
        raise OptionError(f"The sweep has no point {number}.", f"Its points are {first} to {last}.", f"--pick {first}")
    quantizer.sensitivity = {group.group: group.sensitivity for group in result.groups}
    fallback = tuple(group.group for group in result.groups if group.group not in point.int8_groups)
    accuracy = _Store(path, quantizer, cost).measure(quantizer, cost, fallback).accuracy
    accuracy = replace(accuracy, limit=quantizer.config.max_loss)
    return Fitted(nodes=quantizer.without(fallback), fp_fallback=fallback, accuracy=accuracy)


def point_counts(groups: int) -> tuple[int, ...]:
    """Return the number of groups in floating point at each point: 0, 1, then at growing distances up to all."""
    counts = {round(groups * (step / (MAX_POINTS - 1)) ** 2) for step in range(MAX_POINTS)}
    return tuple(sorted(counts | {0, 1, groups}))


def _point(
    number: int, int8_groups: list[str], measured: _StoredPoint, macs: dict[str, int], fp32_ms: float
) -> SweepPoint:
    # Only the ratio to FP32, timed in turn, is comparable: the machine may be slow at one point and fast at the next.
    accuracy, ratio = measured.accuracy, measured.cost_ms / measured.fp32_ms
    return SweepPoint(
        number=number,
        int8_groups=tuple(int8_groups),
        int8_share=sum(macs[group] for group in int8_groups) / sum(macs.values()),
        abs_rel=accuracy.figures.abs_rel,
        loss=accuracy.loss,
        delta1=accuracy.figures.delta1,
        worst=accuracy.max_relative,
        boundary_f1=accuracy.figures.boundary_f1,
        cost_ms=ratio * fp32_ms,
        cost_ratio=ratio,
        on_front=False,
    )


class _Store:
    """Measurements of a sweep, in a file that belongs to one set of settings."""

    def __init__(self, path: Path, quantizer: Int8Quantizer, cost: Cost) -> None:
        self.path = path
        self.key = settings_sha256(quantizer, cost)
        self.sensitivity: dict[str, float] = {}
        self.points: dict[str, _StoredPoint] = {}
        self.seconds_before = 0.0
        self.began = perf_counter()
        content = read_checked(path)
        stored = {} if content is None else json.loads(content)
        if stored.get("key") == self.key:  # else it is measured again
            self.points = {
                name: read_strict(_StoredPoint, point, str(path), "") for name, point in stored["points"].items()
            }
            self.sensitivity, self.seconds_before = stored["sensitivity"], stored["seconds"]

    def seconds(self) -> float:
        """Total duration of the sweep in seconds, including earlier runs."""
        return self.seconds_before + perf_counter() - self.began

    def add_sensitivity(self, group: str, sensitivity: float) -> None:
        self.sensitivity[group] = sensitivity
        self._write()

    def measure(self, quantizer: Int8Quantizer, cost: Cost, fallback: Sequence[str]) -> _StoredPoint:
        """Return the measurements of a point; measure it if that was not done before."""
        name = " ".join(sorted(fallback))
        if name not in self.points:
            nodes = quantizer.without(fallback)
            accuracy = quantizer.accuracy(nodes)
            ms, fp32_ms = cost.of(nodes)
            if not nodes and quantizer.config.scheme == "cpu":
                ms = fp32_ms  # this is the FP32 file itself, and a difference would be timing noise
            self.points[name] = _StoredPoint(accuracy=accuracy, cost_ms=ms, fp32_ms=fp32_ms)
            self._write()
        return self.points[name]

    def _write(self) -> None:
        points = {name: asdict(point) for name, point in self.points.items()}
        stored = {"key": self.key, "seconds": self.seconds(), "sensitivity": self.sensitivity, "points": points}
        write_checked(self.path, json.dumps(stored).encode())


def settings_sha256(quantizer: Int8Quantizer, cost: Cost) -> str:
    """Return a hash of everything that a sweep's figures depend on."""
    labelled: Any = quantizer.labelled
    settings = [
        __version__,
        quantizer.fp32.sha256,
        quantizer.calibration.sha256,
        quantizer.config.scheme,
        quantizer.config.method,
        None if labelled is None else [labelled.samples.fingerprint(), str(labelled.protocol), labelled.data],
        cost.words,
        cost.settings,
    ]
    return digest(settings)
