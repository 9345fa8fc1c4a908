"""Trying one precision after another: what each group of layers costs in depth, and what giving it back costs in time.

Groups go back to floating point in the order of the harm they do for each multiply-add they save, so that the points
lie near the best there are. Whatever was measured is stored at once; an interrupted sweep goes on where it was.
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
from mirrordepth_edge.config import QuantiseConfig, Strict
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.graph.cost import node_costs
from mirrordepth_edge.manifest import Accuracy
from mirrordepth_edge.quantise.pipeline import Fitted, Int8Quantizer
from mirrordepth_edge.quantise.sweep_result import GroupSensitivity, SweepPoint, SweepResult, pareto
from mirrordepth_edge.support.cache import digest, read_checked, write_checked
from mirrordepth_edge.support.schema import read_strict

MOST_POINTS: Final = 11


@dataclass(frozen=True)
class Cost:
    """What running a candidate costs."""

    words: str
    """What is told, such as what was timed where."""
    of: Callable[[Sequence[str]], tuple[float, float]]
    """Milliseconds of the candidate whose named nodes multiply in INT8, and of the FP32 file's, by the same clock."""
    settings: Any = None
    """What else it follows from, as JSON has it, such as the figures of a target."""


@dataclass(frozen=True, kw_only=True)
class _Tried(Strict):
    """What is stored of a point."""

    accuracy: Accuracy
    cost_ms: float
    fp32_ms: float


def sweep(workshop: Int8Quantizer, cost: Cost, store: Path) -> SweepResult:
    """Measure every group, then a dozen choices of them.

    Args:
        workshop: candidates of one file.
        store: JSON file that keeps what was measured.
    """
    kept = _Store(store, workshop, cost)
    sensitivity = workshop.measured_sensitivity(kept.sensitivity, kept.add_sensitivity)
    work = _macs(workshop)
    order = sorted(sensitivity, key=lambda group: -sensitivity[group] / max(work[group], 1))
    backs = [order[:count] for count in point_counts(len(order))]
    tried = [kept.tried(workshop, cost, back) for back in backs]
    fp32_ms = float(np.median([each.fp32_ms for each in tried]))
    *points, baseline = pareto(
        _point(number, [group for group in sensitivity if group not in back], each, work, fp32_ms)
        for number, (back, each) in enumerate(zip(backs, tried, strict=True))
    )
    return SweepResult(
        model=workshop.manifest.model.preset,
        onnx_sha256=workshop.manifest.artefact_sha256,
        calibration=f"{workshop.calibration.name}, {workshop.statistics.frames} frames",
        method=_method_in_words(workshop.config),
        frames=tried[0].accuracy.frames,
        labelled=workshop.labelled is not None,
        data=tried[0].accuracy.data,
        cost=cost.words,
        baseline=baseline,
        groups=tuple(
            GroupSensitivity(group=group, nodes=len(workshop.groups[group]), macs=work[group], sensitivity=each)
            for group, each in sensitivity.items()
        ),
        points=tuple(points),
        seconds=kept.seconds(),
    )


def _method_in_words(config: QuantiseConfig) -> str:
    kind = "symmetric int8, the rest FP16" if config.scheme == "gpu" else "asymmetric uint8, the rest FP32"
    return f"ranges by {config.method}; {kind}"


def picked(workshop: Int8Quantizer, cost: Cost, store: Path, result: SweepResult, number: int) -> Fitted:
    """A point of a sweep, to be written. The workshop takes the groups' damage from the sweep.

    Raises:
        OptionError: there is no such point.
    """
    point = next((each for each in result.points if each.number == number), None)
    if point is None:
        numbers = f"{result.points[0].number} to {result.points[-1].number}"
        raise OptionError(f"The sweep has no point {number}.", f"Its points are {numbers}.", f"--pick {numbers[0]}")
    workshop.sensitivity = {each.group: each.sensitivity for each in result.groups}
    back = tuple(each.group for each in result.groups if each.group not in point.int8_groups)
    accuracy = _Store(store, workshop, cost).tried(workshop, cost, back).accuracy
    limit = workshop.config.max_loss
    return Fitted(nodes=workshop.without(back), fp_fallback=back, accuracy=replace(accuracy, limit=limit), trail=())


def point_counts(groups: int) -> tuple[int, ...]:
    """How many groups to give back at each point: all counts where they are few, else ever wider apart; 0 and all."""
    wanted = {round(groups * (step / (MOST_POINTS - 1)) ** 2) for step in range(MOST_POINTS)}
    return tuple(sorted(wanted | {0, 1, groups}))


def _macs(workshop: Int8Quantizer) -> dict[str, int]:
    of_node = {cost.name: cost.macs for cost in node_costs(workshop.model)}
    return {group: sum(of_node[node] for node in nodes) for group, nodes in workshop.groups.items()}


def _point(number: int, groups: list[str], tried: _Tried, work: dict[str, int], fp32_ms: float) -> SweepPoint:
    """Milliseconds are told by the ratio, since a machine may be slow at one point and fast at the next."""
    accuracy, ratio = tried.accuracy, tried.cost_ms / tried.fp32_ms
    return SweepPoint(
        number=number,
        int8_groups=tuple(groups),
        int8_share=sum(work[group] for group in groups) / sum(work.values()),
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
    """What a sweep has measured so far, in a file that belongs to these settings alone."""

    def __init__(self, path: Path, workshop: Int8Quantizer, cost: Cost) -> None:
        self.path = path
        self.key = settings_sha256(workshop, cost)
        self.sensitivity: dict[str, float] = {}
        self.points: dict[str, _Tried] = {}
        self.seconds_before = 0.0
        self.began = perf_counter()
        content = read_checked(path)
        stored = {} if content is None else json.loads(content)
        if stored.get("key") == self.key:  # else it is measured again
            self.points = {name: read_strict(_Tried, point, str(path), "") for name, point in stored["points"].items()}
            self.sensitivity, self.seconds_before = stored["sensitivity"], stored["seconds"]

    def seconds(self) -> float:
        """That measuring has taken so far, with what was stored before."""
        return self.seconds_before + perf_counter() - self.began

    def add_sensitivity(self, group: str, sensitivity: float) -> None:
        self.sensitivity[group] = sensitivity
        self._write()

    def tried(self, workshop: Int8Quantizer, cost: Cost, back: Sequence[str]) -> _Tried:
        """A point, measured now if it was not before."""
        name = " ".join(sorted(back))
        if name not in self.points:
            nodes = workshop.without(back)
            accuracy = workshop.accuracy(nodes)
            ms, fp32_ms = cost.of(nodes)
            if not nodes and workshop.config.scheme == "cpu":
                ms = fp32_ms  # the FP32 file itself: a difference would be the clock's
            self.points[name] = _Tried(accuracy=accuracy, cost_ms=ms, fp32_ms=fp32_ms)
            self._write()
        return self.points[name]

    def _write(self) -> None:
        points = {name: asdict(each) for name, each in self.points.items()}
        stored = {"key": self.key, "seconds": self.seconds(), "sensitivity": self.sensitivity, "points": points}
        write_checked(self.path, json.dumps(stored).encode())


def settings_sha256(workshop: Int8Quantizer, cost: Cost) -> str:
    """Of everything that a sweep's figures depend on."""
    judged: Any = workshop.labelled
    settings = [
        __version__,
        workshop.manifest.artefact_sha256,
        workshop.calibration.sha256,
        workshop.config.scheme,
        workshop.config.method,
        None if judged is None else [judged.samples.fingerprint(), str(judged.protocol), judged.data],
        cost.words,
        cost.settings,
    ]
    return digest(settings)
