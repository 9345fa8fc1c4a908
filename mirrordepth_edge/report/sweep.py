"""The report of a precision sweep: accuracy against cost, and the sensitivity of layer groups to INT8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from mirrordepth_edge.quantise.sweep_result import SweepPoint, SweepResult
from mirrordepth_edge.report import charts
from mirrordepth_edge.report.html import render_page

SMALL_LOSS = 0.01
"""Loss of accuracy (`SweepPoint.loss`) that is acceptable by default."""
MAX_ABS_REL_RATIO = 1.25
"""Ratio to FP32's AbsRel above which configurations are drawn at the top of the chart."""
MAX_DIFFERENCE = 0.1
"""The same limit on AbsRel if FP32's depth is the reference."""

HEADER = (
    "",
    "AbsRel",
    "loss (%)",
    "δ < 1.25",
    "worst pixel (%)",
    "boundary F1",
    "cost (ms)",
    "cost / FP32",
    "INT8 (%)",
)


@dataclass(frozen=True, kw_only=True)
class SensitivityBar:
    """The sensitivity of one group."""

    group: str
    sensitivity: str
    what: str
    width: float
    """Length of the bar, in percent of the longest."""


def sweep_page(result: SweepResult, *, made: str = "", command: str = "") -> str:
    """Render the sweep as a self-contained HTML page.

    Args:
        made: date and time; now if empty.
        command: the command line; omitted if empty.
    """
    return render_page(
        "sweep.html.j2",
        result=result,
        made=made or f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        heads=list(_heads(result)),
        front_chart=_front_chart(result),
        bars=_bars(result),
        header=HEADER,
        rows=[(_row(result, point), point.on_front) for point in (result.baseline, *result.points)],
        groups=[(f"{point.number}", _groups(result, point)) for point in result.points],
        reference=reference_name(result),
        method=list(_method(result)),
        command=command,
    )


def reference_name(result: SweepResult) -> str:
    """Name the depth that is compared with."""
    return "the true depth" if result.labelled else "the depth of FP32"


def best_within(result: SweepResult, loss: float) -> SweepPoint:
    """Return the cheapest configuration with at most this loss; the baseline if there is none."""
    candidates = [point for point in (result.baseline, *result.points) if point.loss <= loss]
    return min(candidates or [result.baseline], key=lambda point: (point.cost_ratio, point.abs_rel))


def _heads(result: SweepResult) -> Iterator[tuple[str, SweepPoint, str, str]]:
    """Select the headline configurations: description, configuration, AbsRel and cost of each."""
    selected = {"no INT8": result.baseline}
    measure = "loss" if result.labelled else "difference"
    for word, point in (
        (f"cheapest with at most {100 * SMALL_LOSS:g} % {measure}", best_within(result, SMALL_LOSS)),
        ("cheapest of all", best_within(result, float("inf"))),
    ):
        if point.number not in {other.number for other in selected.values()}:
            selected[word] = point
    for word, point in selected.items():
        yield word, point, _abs_rel(point), f"{_ms(point.cost_ms)} ms, {point.cost_ratio:.2f} x FP32"


def _front_chart(result: SweepResult) -> charts.Chart:
    top = MAX_ABS_REL_RATIO * result.baseline.abs_rel if result.labelled else MAX_DIFFERENCE

    def dots(on_front: bool) -> list[tuple[str, float, float]]:
        points = (point for point in result.points if point.on_front is on_front)
        return [(f"{point.number}", point.cost_ratio, point.abs_rel) for point in points]

    baseline = (result.baseline.cost_ratio, result.baseline.abs_rel)
    best = [(x, y) for _, x, y in dots(True)] + [baseline] * result.baseline.on_front
    series = {"Pareto front": dots(True), "dominated": dots(False), "no INT8": [("", *baseline)]}
    return charts.front(series, best, "cost relative to FP32", f"AbsRel to {reference_name(result)}", top)


def _bars(result: SweepResult) -> list[SensitivityBar]:
    """Create the bars, most sensitive first."""
    groups = sorted(result.groups, key=lambda group: -group.sensitivity)
    longest = max((group.sensitivity for group in groups), default=0.0) or 1.0
    total = sum(group.macs for group in groups) or 1
    return [
        SensitivityBar(
            group=group.group,
            sensitivity=f"{100 * group.sensitivity:.3g} %",
            what=f"{group.nodes} node{'s' * (group.nodes != 1)}, {group.macs / 1e6:.4g} M multiply-adds "
            f"({100 * group.macs / total:.1f} %)",
            width=100 * group.sensitivity / longest,
        )
        for group in groups
    ]


def _row(result: SweepResult, point: SweepPoint) -> tuple[str, ...]:
    return (
        "no INT8" if point is result.baseline else f"{point.number}",
        _abs_rel(point),
        f"{100 * point.loss:+.2f}" if result.labelled else f"{100 * point.loss:.2f}",
        f"{point.delta1:.4f}",
        f"{100 * point.worst:.1f}",
        "" if point.boundary_f1 is None else f"{point.boundary_f1:.4f}",
        _ms(point.cost_ms),
        f"{point.cost_ratio:.3f}",
        f"{100 * point.int8_share:.1f}",
    )


def _groups(result: SweepResult, point: SweepPoint) -> str:
    """Describe which groups are in INT8."""
    inside = set(point.int8_groups)
    outside = [group.group for group in result.groups if group.group not in inside]
    if not inside:
        return "none"
    if not outside:
        return "all"
    if len(outside) < len(inside):
        return "all but " + ", ".join(outside)
    return ", ".join(point.int8_groups)


def _method(result: SweepResult) -> Iterator[str]:
    """Describe the method in sentences."""
    yield f"Accuracy: on {result.frames} frames ({result.data}), against {reference_name(result)}."
    yield f"Cost: {result.cost}."
    yield f"INT8: {result.method}; ranges of activations from {result.calibration}."
    yield (
        "Sensitivity of a group: the mean of |d - d₃₂| / d₃₂ over all pixels of all frames, where d₃₂ is FP32's depth "
        "and d that of the network with only this group in INT8."
    )
    yield (
        "AbsRel: the mean of |d - d*| / d*, where d* is "
        + ("the true depth. " if result.labelled else "FP32's depth, because there is no true depth; 0 is best. ")
        + "Loss: "
        + ("the relative increase of AbsRel over FP32's." if result.labelled else "AbsRel itself, in percent.")
    )
    yield "δ < 1.25: the share of pixels with max(d / d*, d* / d) below 1.25. Worst pixel: the largest |d - d₃₂| / d₃₂."
    yield (
        "Pareto front: no other configuration is at least as good in both loss and cost and better in one of them. A "
        "higher accuracy than FP32's is chance and counts as no loss."
    )
    yield f"SHA-256 of the FP32 graph: {result.onnx_sha256}. Duration of the sweep: {result.seconds:.0f} s."


def _abs_rel(point: SweepPoint) -> str:
    return f"{point.abs_rel:.4f}"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds >= 10 else f"{milliseconds:.3f}"
