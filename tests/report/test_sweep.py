"""The page of a precision sweep: it holds every number, and its picture is of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from mirrordepth_edge import __version__
from mirrordepth_edge.quantise.sweep_result import GroupSensitivity, SweepPoint, SweepResult, pareto
from mirrordepth_edge.report.sweep import best_within, sweep_page

pytest.importorskip("jinja2", reason="jinja2 is not installed")

GROUPS = ("tower/a", "tower/b", "decoder", "head")
NASTY = "<script>&'\""


def point(number: int, groups: tuple[str, ...], cost: float, abs_rel: float) -> SweepPoint:
    return SweepPoint(
        number=number,
        int8_groups=groups,
        int8_share=0.2371 * len(groups),
        abs_rel=abs_rel,
        loss=abs_rel / 0.1123 - 1,
        delta1=0.91234 - abs_rel / 10,
        worst=2.1 * abs_rel,
        boundary_f1=None if number == 2 else 0.3 - abs_rel,
        cost_ms=12.3456 * cost,
        cost_ratio=cost,
        on_front=False,
    )


def sweep(labelled: bool = True, **changes: object) -> SweepResult:
    baseline, *points = pareto(
        [
            point(0, (), 1.0, 0.1123),
            point(1, GROUPS[:1], 0.871, 0.1127),
            point(2, GROUPS[:3], 0.532, 0.1291),
            point(3, GROUPS, 0.4444, 0.31),
            point(4, GROUPS[1:3], 0.9, 0.1278),
        ]
    )
    result = SweepResult(
        model="nano.onnx",
        onnx_sha256="cd" * 32,
        calibration="64 pictures of a kitchen",
        method="entropy",
        frames=37,
        labelled=labelled,
        data="a test set",
        cost="roofline estimate, not a measurement",
        baseline=baseline,
        groups=tuple(
            GroupSensitivity(group=group, nodes=k + 1, macs=1_000_000 * (k + 1), sensitivity=0.001 * (k**2 - 3 * k + 3))
            for k, group in enumerate(GROUPS)
        ),
        points=tuple(points),
        seconds=123.4,
    )
    return replace(result, **changes)  # type: ignore[arg-type]


def table_of(page: str) -> list[tuple[bool, list[str]]]:
    """Rows of the only table: whether it is bold, and its cells."""
    (table,) = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
    rows = re.findall(r"<tr(.*?)>(.*?)</tr>", table, re.DOTALL)
    return [("own" in kind, re.findall(r"<td>(.*?)</td>", row)) for kind, row in rows]


def test_the_page_loads_nothing_and_is_well_formed(page_of: type, loads_nothing: Callable[[str], bool]) -> None:
    for result in (sweep(), sweep(labelled=False), sweep(groups=(), points=())):
        page = sweep_page(result)
        page_of(page)
        assert loads_nothing(page)


def test_the_table_holds_every_figure() -> None:
    result = sweep()
    rows = table_of(sweep_page(result))
    assert len(rows) == 5
    for (bold, cells), point in zip(rows, (result.baseline, *result.points), strict=True):
        assert bold is point.on_front
        assert cells == [
            f"{point.number}" if point.number else "no INT8",
            f"{point.abs_rel:.4f}",
            f"{100 * point.loss:+.2f}",
            f"{point.delta1:.4f}",
            f"{100 * point.worst:.1f}",
            "" if point.boundary_f1 is None else f"{point.boundary_f1:.4f}",
            f"{point.cost_ms:.2f}" if point.cost_ms >= 10 else f"{point.cost_ms:.3f}",
            f"{point.cost_ratio:.3f}",
            f"{100 * point.int8_share:.1f}",
        ]
    assert [bold for bold, _ in rows] == [True, True, True, True, False]


def test_texts_of_the_page(page_of: type) -> None:
    text = page_of(sweep_page(sweep(), made="today", command="mde sweep nano.onnx")).text
    for words in (
        "Precision sweep: nano.onnx",
        "4 configurations of INT8 layers, on 37 frames against the true depth.",
        f"Made today by mirrordepth-edge {__version__}",
        "Cost: roofline estimate, not a measurement.",
        "on 37 frames (a test set), against the true depth",
        "INT8: entropy; ranges of activations from 64 pictures of a kitchen.",
        "cd" * 32,
        "Duration of the sweep: 123 s",
        "higher accuracy than FP32's is chance and counts as no loss",
        "loss (%)",
        "cost (ms)",
        "mde sweep nano.onnx",
    ):
        assert words in text, words
    assert "FP32's depth, because there is no true depth" not in text
    unlabelled = page_of(sweep_page(sweep(labelled=False))).text
    assert "against the depth of FP32" in unlabelled
    assert "FP32's depth, because there is no true depth" in unlabelled
    assert "true depth" not in unlabelled.replace("there is no true depth", "")
    assert "Reproduce" not in unlabelled


def test_groups_are_listed_briefly(page_of: type) -> None:
    text = page_of(sweep_page(sweep())).text
    listed = text[text.index("INT8 layers of each configuration") :]
    assert "1 tower/a 2 all but head 3 all 4 tower/b, decoder Method" in listed


def test_the_most_sensitive_group_is_first(page_of: type) -> None:
    """Sensitivities 0.3, 0.1, 0.1 and 0.3 %: equal ones keep their order."""
    page = sweep_page(sweep())
    assert re.findall(r'aria-label="sensitivity of (.*?)"', page) == ["tower/a", "head", "tower/b", "decoder"]
    widths = [float(width) for width in re.findall(r'class="s1" style="width: ([\d.]+)%"', page)]
    assert widths == pytest.approx([100, 100, 100 / 3, 100 / 3], abs=1e-3)
    text = page_of(page).text
    assert "tower/a: 0.3 % 1 node, 1 M multiply-adds (10.0 %)" in text
    assert "head: 0.3 % 4 nodes, 4 M multiply-adds (40.0 %)" in text
    unharmed = sweep(groups=(GroupSensitivity(group="a", nodes=1, macs=0, sensitivity=0.0),))
    assert "width: 0.000%" in sweep_page(unharmed)


def test_the_chart_has_a_dot_for_every_configuration(page_of: type) -> None:
    drawn = {path["class"]: path["d"] for path in page_of(sweep_page(sweep())).all("path")}
    assert drawn["dots s0"].count("M") == 2
    assert drawn["beyond s0"].count("M") == 1  # 0.31 is more than 1.25 times 0.1123
    assert drawn["dots s1"].count("M") == 1
    assert drawn["dots s2"].count("M") == 1
    assert "at the top: 1 of 5, up to 0.31" in sweep_page(sweep())
    numbers = set(re.findall(r'text-anchor="\w+">(\d)</text>', sweep_page(sweep())))
    assert {"1", "2", "3", "4"} <= numbers


def test_the_cheapest_within_a_loss() -> None:
    result = sweep()
    assert best_within(result, 0.01).number == 1
    assert best_within(result, 0.2).number == 2
    assert best_within(result, float("inf")).number == 3
    assert best_within(result, 0.0) is result.baseline
    assert best_within(result, -1.0) is result.baseline


def test_headline_configurations(page_of: type) -> None:
    text = page_of(sweep_page(sweep())).text
    assert "0.1123 AbsRel, no INT8 12.35 ms, 1.00 x FP32 baseline" in text
    assert "0.1127 AbsRel, cheapest with at most 1 % loss 10.75 ms, 0.87 x FP32 configuration 1, 24 %" in text
    assert "0.3100 AbsRel, cheapest of all 5.486 ms, 0.44 x FP32 configuration 3, 95 %" in text
    alone = page_of(sweep_page(sweep(points=()))).text
    assert "cheapest" not in alone


def test_text_from_outside_is_escaped(page_of: type) -> None:
    changes = {name: f"{NASTY}{place}" for place, name in enumerate(("model", "calibration", "method", "data", "cost"))}
    page = sweep_page(replace(sweep(), **changes), command=f"{NASTY}5")  # type: ignore[arg-type]
    text = page_of(page).text
    assert "<script" not in page
    assert all(f"{NASTY}{place}" in text for place in range(6))
