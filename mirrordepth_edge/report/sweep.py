"""The page of a precision sweep: what INT8 gains, what it gives up, and which layers are to blame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from mirrordepth_edge.quantise.sweep_result import SweepPoint, SweepResult
from mirrordepth_edge.report import charts
from mirrordepth_edge.report.html import render_page

SMALL_LOSS = 0.01
"""Of accuracy, as `SweepPoint.loss` has it: what a choice for everyday use may lose."""
TOO_BAD = 1.25
"""Times FP32's AbsRel; choices that are worse are drawn at the top of the picture."""
TOO_DIFFERENT = 0.1
"""The same where FP32's depth stands for the true one."""

HEADER = ("", "AbsRel", "loss (%)", "δ < 1.25", "worst pixel (%)", "boundary F1", "cost (ms)", "of FP32's", "INT8 (%)")


@dataclass(frozen=True, kw_only=True)
class DamageBar:
    """One group's damage, and how long its bar is, in percent of the longest."""

    group: str
    sensitivity: str
    what: str
    width: float


def sweep_page(result: SweepResult, *, made: str = "", command: str = "") -> str:
    """The sweep as one HTML file, which loads nothing.

    Args:
        made: when, in words; now where empty.
        command: what was typed; left out where empty.
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
        against=against(result),
        method=list(_method(result)),
        command=command,
    )


def against(result: SweepResult) -> str:
    """What depth is compared with."""
    return "the true depth" if result.labelled else "the depth of FP32"


def best_within(result: SweepResult, loss: float) -> SweepPoint:
    """The cheapest choice that loses at most so much accuracy; the baseline where none does."""
    fit = [point for point in (result.baseline, *result.points) if point.loss <= loss]
    return min(fit or [result.baseline], key=lambda point: (point.cost_ratio, point.abs_rel))


def _heads(result: SweepResult) -> Iterator[tuple[str, SweepPoint, str, str]]:
    """The choices that matter most: in a word, the choice, its AbsRel and its cost."""
    chosen = {"nothing in INT8": result.baseline}
    does = "loses" if result.labelled else "differs by"
    for word, point in (
        (f"the cheapest that {does} at most {100 * SMALL_LOSS:g} %", best_within(result, SMALL_LOSS)),
        ("the cheapest of all", best_within(result, float("inf"))),
    ):
        if point.number not in {each.number for each in chosen.values()}:
            chosen[word] = point
    for word, point in chosen.items():
        yield word, point, _abs_rel(point), f"{_ms(point.cost_ms)} ms, {point.cost_ratio:.2f} of FP32's"


def _front_chart(result: SweepResult) -> charts.Chart:
    top = TOO_BAD * result.baseline.abs_rel if result.labelled else TOO_DIFFERENT

    def dots(on_front: bool) -> list[tuple[str, float, float]]:
        points = (point for point in result.points if point.on_front is on_front)
        return [(f"{point.number}", point.cost_ratio, point.abs_rel) for point in points]

    baseline = (result.baseline.cost_ratio, result.baseline.abs_rel)
    best = [(x, y) for _, x, y in dots(True)] + [baseline] * result.baseline.on_front
    series = {"on the front": dots(True), "another choice is better": dots(False), "no INT8": [("", *baseline)]}
    return charts.front(series, best, "cost, as a share of FP32's", f"AbsRel to {against(result)}", top)


def _bars(result: SweepResult) -> list[DamageBar]:
    """The most damaging first."""
    groups = sorted(result.groups, key=lambda each: -each.sensitivity)
    longest = max((each.sensitivity for each in groups), default=0.0) or 1.0
    total = sum(each.macs for each in groups) or 1
    return [
        DamageBar(
            group=each.group,
            sensitivity=f"{100 * each.sensitivity:.3g} %",
            what=f"{each.nodes} node{'s' * (each.nodes != 1)}, {each.macs / 1e6:.4g} M multiply-adds "
            f"({100 * each.macs / total:.1f} %)",
            width=100 * each.sensitivity / longest,
        )
        for each in groups
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
    """Which groups are in INT8, as briefly as it can be told."""
    inside = set(point.int8_groups)
    outside = [each.group for each in result.groups if each.group not in inside]
    if not inside:
        return "none"
    if not outside:
        return "all"
    if len(outside) < len(inside):
        return "all but " + ", ".join(outside)
    return ", ".join(point.int8_groups)


def _method(result: SweepResult) -> Iterator[str]:
    """How it was found out, in sentences."""
    yield f"Accuracy: on {result.frames} frames ({result.data}), against {against(result)}."
    yield f"Cost: {result.cost}."
    yield f"INT8: {result.method}; ranges of activations from {result.calibration}."
    yield (
        "Damage of a group: the mean of |d - d₃₂| / d₃₂ over all pixels of all frames, where d₃₂ is FP32's depth and d "
        "that of the network with this group alone in INT8."
    )
    yield (
        "AbsRel: the mean of |d - d*| / d*, where d* is "
        + ("the true depth. " if result.labelled else "FP32's depth, for there is no true one: 0 is best. ")
        + "Loss: "
        + ("by how much AbsRel is above FP32's, as a share of it." if result.labelled else "AbsRel itself, in percent.")
    )
    yield "δ < 1.25: the share of pixels with max(d / d*, d* / d) below 1.25. Worst pixel: the largest |d - d₃₂| / d₃₂."
    yield (
        "On the front (Pareto): no other choice is as good in both loss and cost, and better in one of them; to be "
        "more accurate than FP32 is chance and counts as no loss."
    )
    yield f"FP32's graph has the SHA-256 {result.onnx_sha256}. The sweep took {result.seconds:.0f} s."


def _abs_rel(point: SweepPoint) -> str:
    return f"{point.abs_rel:.4f}"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds >= 10 else f"{milliseconds:.3f}"
