"""Stored sweeps, and the Pareto front against its definition."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.quantise.sweep_result import GroupSensitivity, SweepPoint, SweepResult, pareto
from mirrordepth_edge.support.schema import read_strict


def point(number: int, cost: float, abs_rel: float) -> SweepPoint:
    return SweepPoint(
        number=number,
        int8_groups=("a", "b")[:number],
        int8_share=0.25,
        abs_rel=abs_rel,
        loss=abs_rel,
        delta1=0.9,
        worst=0.5,
        boundary_f1=None,
        cost_ms=10 * cost,
        cost_ratio=cost,
        on_front=False,
    )


RESULT = SweepResult(
    model="m.onnx",
    onnx_sha256="ab" * 32,
    calibration="8 frames",
    method="max",
    frames=4,
    labelled=False,
    data="frames",
    cost="measured",
    baseline=point(0, 1.0, 0.0),
    groups=(GroupSensitivity(group="a", nodes=2, macs=1000, sensitivity=0.01),),
    points=(point(1, 0.5, 0.1), replace(point(2, 0.25, 0.2), boundary_f1=0.5)),
    seconds=1,
)


@pytest.mark.parametrize("seed", range(20))
def test_front_has_the_points_that_no_other_dominates(seed: int) -> None:
    """Against all pairs; few distinct values, so that many points are equal in one figure or in both."""
    rng = np.random.default_rng(seed)
    costs, errors = rng.integers(0, 6, (2, 25)) / 8
    points = [point(number, *pair) for number, pair in enumerate(zip(costs.tolist(), errors.tolist(), strict=True))]
    found = pareto(points)
    assert [replace(each, on_front=False) for each in found] == points
    for own in found:
        beaten = any(
            other.cost_ratio <= own.cost_ratio
            and other.abs_rel <= own.abs_rel
            and (other.cost_ratio < own.cost_ratio or other.abs_rel < own.abs_rel)
            for other in found
        )
        assert own.on_front is not beaten
    assert any(point.on_front for point in found)


def test_front_of_no_points_and_of_stale_points() -> None:
    assert pareto([]) == ()
    assert [point.on_front for point in pareto([replace(point(1, 1, 1), on_front=True), point(2, 0.5, 0.5)])] == [
        False,
        True,
    ]


def test_gain_over_fp32_counts_as_no_loss() -> None:
    """FP32 has AbsRel 0.1; of three others, two are better by chance."""
    fp32 = replace(point(9, 1.0, 0.1), loss=0.0, worst=0.0)
    lucky, dearer = replace(point(0, 0.5, 0.098), loss=-0.02), replace(point(1, 0.6, 0.09), loss=-0.1)
    worse = replace(point(2, 0.4, 0.101), loss=0.01)
    assert [point.on_front for point in pareto([lucky, dearer, worse, fp32])] == [True, False, True, True]
    # The same where nothing of it is FP32 any more: then the cheaper one is as good.
    assert [point.on_front for point in pareto([lucky, replace(fp32, worst=0.01)])] == [True, False]


def test_json_of_a_sweep_has_every_field() -> None:
    stored = json.loads(json.dumps(asdict(RESULT)))
    assert stored["schema_version"] == 2
    assert read_strict(SweepResult, stored, "sweep.json", "") == RESULT


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema_version": 3}, "schema_version"),
        ({"extra": 1}, "extra"),
        ({"frames": "4"}, "frames"),
        ({"points": [{"number": 1}]}, "points.0"),
    ],
)
def test_invalid_sweep_is_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(InputError) as raised:
        read_strict(SweepResult, asdict(RESULT) | change, "sweep.json", "")
    assert field in raised.value.why
