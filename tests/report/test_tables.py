"""Tables of an evaluation: every figure under its own model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.evaluation.baselines import baselines_of
from mirrordepth_edge.evaluation.consistency import TemporalConsistency
from mirrordepth_edge.evaluation.edges import BoundaryErrors
from mirrordepth_edge.evaluation.evaluate import Evaluation, Protocol, evaluate
from mirrordepth_edge.report.tables import (
    METRICS,
    TRUE_DEPTH,
    baselines_table,
    consistency_table,
    results_table,
    short_names,
)

PROTOCOL = Protocol(limits_m=(1e-3, 10.0), crop="eigen")


def result(factor: float) -> Evaluation:
    depth_m = np.tile(np.linspace(1, 4, 20, dtype=np.float32), (3, 1))
    one = Sample("one", np.zeros((3, 20, 3), np.uint8), depth_m)
    return evaluate(lambda _: depth_m * np.float32(factor), [one], Protocol(limits_m=(1e-3, 10.0)))


FLOW = TemporalConsistency(measure="flow", error_m=0.25, rtc=0.75, pairs=7, share_used=0.5)


def test_metrics_are_under_their_models() -> None:
    table = results_table({"a.onnx": result(1.1), "b.onnx": result(1.5)})
    assert table.header == ("metric", "a.onnx", "b.onnx")
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == list(METRICS.values())
    assert rows["AbsRel"] == ("0.1000", "0.5000")
    assert rows["delta < 1.25"] == ("1.0000", "0.0000")
    assert table.notes == ()


def test_boundary_f1_is_shown_where_there_is_something_to_compare() -> None:
    """Off by a factor it is perfect; on a single picture it is known, or not, on that one."""
    rows = {row[0]: row[1:] for row in results_table({"a": result(1.1), "b": result(1)}).rows}
    assert rows["boundary F1"] == rows["boundary F1, 16 px"] == ("1.0000", "1.0000")
    known = result(1)
    flat = replace(known.pictures[0], boundary_f1=None)
    table = results_table({"a": replace(known, pictures=(flat,)), "b": replace(known, pictures=(flat,))})
    assert {row[0]: row[1:] for row in table.rows}["boundary F1"] == ("", "")
    assert table.notes == ("boundary F1: on the 0 of 1 images whose true depth has such discontinuities",)
    both = results_table({"a": replace(known, pictures=(flat, known.pictures[0]))})
    assert {row[0]: row[1] for row in both.rows}["boundary F1"] == "1.0000"
    assert "on the 1 of 2 images" in both.notes[0]


def test_consistency_in_time_with_that_of_the_true_depth() -> None:
    flat = replace(FLOW, error_m=0.0, rtc=1.0)
    table = results_table({"a": replace(result(1), temporal=FLOW, temporal_truth=flat), "b": result(1)})
    assert table.header == ("metric", "a", "b", TRUE_DEPTH)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["OPW (m)"] == ("0.2500", "", "0.0000")
    assert rows["rTC"] == ("0.7500", "", "1.0000")
    assert rows["AbsRel"] == ("0.0000", "0.0000", "")
    assert {len(row) for row in table.rows} == {4}
    assert table.notes == ("temporal: 7 pairs of frames, 50% of pixels tracked by optical flow; not aligned",)


def test_a_sparse_true_depth_is_not_measured() -> None:
    table = consistency_table({"a": replace(result(1), temporal=FLOW)})
    assert table.header == ("", "a")
    assert "too many holes" in table.notes[-1]


def test_by_poses_it_is_another_figure() -> None:
    by_pose = TemporalConsistency(measure="reprojection", error_m=0.5, rtc=0.9, pairs=2, share_used=1.0)
    table = consistency_table({"a": replace(result(1), temporal=by_pose, temporal_truth=by_pose)})
    assert table.rows == (("reprojection (m)", "0.5000", "0.5000"), ("rTC", "0.9000", "0.9000"))
    assert "reprojected" in table.notes[0]


def test_edges() -> None:
    plain = result(1)
    errors = BoundaryErrors(accuracy_px=2.5, completeness_px=7, predicted=30, true=40)
    found = replace(plain, edges=True, pictures=(replace(plain.pictures[0], boundary=errors),))
    table = consistency_table({"a": found})
    assert [row[1] for row in table.rows] == ["2.50", "7.00", "0.75"]
    assert "on 1 image whose" in table.notes[0]
    nothing = consistency_table({"a": replace(plain, edges=True)})
    assert nothing.rows == ()
    assert "the true depth has none" in nothing.notes[0]
    assert consistency_table({"a": plain}).notes == ()


def test_baselines_have_sources_and_notes() -> None:
    table = baselines_table("nyu", PROTOCOL)
    assert table.header == ("published", "AbsRel", "RMSE (m)", "delta < 1.25", "source")
    assert [row[-1] for row in table.rows] == [each.source for each in baselines_of("nyu")]
    rows = {row[0]: row for row in table.rows}
    assert rows["SPACE-CLIP"][1:4] == ("0.104", "0.385", "0.896")
    assert rows["CLIP2Depth *"][1:4] == ("0.100", "", "")
    assert [note.split(":")[0] for note in table.notes] == ["CLIP2Depth", "METER-XXS"]


@pytest.mark.parametrize("change", [{"align": "median"}, {"crop": "none"}, {"limits_m": (1e-3, 5.0)}])
def test_a_different_protocol_is_stated_first(change: dict[str, object]) -> None:
    notes = baselines_table("nyu", replace(PROTOCOL, **change)).notes  # type: ignore[arg-type]
    assert notes[0].startswith("DO NOT COMPARE")


def test_names_are_short_while_they_differ() -> None:
    assert list(short_names({"runs/a.onnx": 0, "runs/b.onnx": 0}).values()) == ["a.onnx", "b.onnx"]
    assert list(short_names({"x/a.onnx": 0, "y/a.onnx": 0}).values()) == ["x/a.onnx", "y/a.onnx"]


def test_tables_fit_a_terminal_of_80_columns() -> None:
    widths = [max(map(len, column)) for column in zip(*baselines_table("nyu", PROTOCOL).rows, strict=True)]
    headed = [
        max(width, len(name)) for width, name in zip(widths, baselines_table("nyu", PROTOCOL).header, strict=True)
    ]
    assert sum(headed) + 2 * (len(headed) - 1) <= 80
