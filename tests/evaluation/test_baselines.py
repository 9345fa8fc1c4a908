"""Published errors: complete, sorted, and derived as their notes state."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mirrordepth_edge.config import DataKind
from mirrordepth_edge.evaluation.baselines import BASELINES, Baseline, baselines_of, protocol_differences
from mirrordepth_edge.evaluation.evaluate import Protocol

NYU = Protocol(limits_m=(1e-3, 10.0), crop="eigen")
KITTI = Protocol(limits_m=(1e-3, 80.0), crop="garg")


def by_name(kind: DataKind) -> dict[str, Baseline]:
    return {baseline.name: baseline for baseline in baselines_of(kind)}


def test_folders_have_no_baselines() -> None:
    assert baselines_of("folder") == ()
    assert baselines_of("nyu")
    assert baselines_of("kitti")


@pytest.mark.parametrize("kind", BASELINES)
def test_every_value_has_a_source_and_is_plausible(kind: DataKind) -> None:
    baselines = baselines_of(kind)
    assert len(by_name(kind)) == len(baselines)
    assert [baseline.abs_rel for baseline in baselines] == sorted(baseline.abs_rel for baseline in baselines)
    for baseline in baselines:
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}|ICCV Workshops 2023", baseline.source), baseline
        assert 0 < baseline.abs_rel < 1
        assert baseline.delta1 is None or 0 < baseline.delta1 < 1
        assert baseline.rmse is None or 0 < baseline.rmse < 10
        assert bool(baseline.note) == (baseline.origin != "published"), baseline


@pytest.mark.parametrize(("kind", "below"), [("nyu", 0.687), ("kitti", 0.756)])
def test_clip2depths_error_is_derived_as_its_note_says(kind: DataKind, below: float) -> None:
    baselines = by_name(kind)
    derived, auty = baselines["CLIP2Depth"], baselines["Auty et al., 7 linear bins"]
    assert derived.origin == "derived"
    assert f"{100 * below:g} %" in derived.note
    assert f"{auty.abs_rel:.3f}" in derived.note
    assert derived.abs_rel == pytest.approx((1 - below) * auty.abs_rel, abs=5e-4)


def test_measured_baseline_is_marked() -> None:
    measured = [baseline for kind in BASELINES for baseline in baselines_of(kind) if baseline.origin == "measured"]
    assert [baseline.name for baseline in measured] == ["METER-XXS"]
    assert "in-filled" in measured[0].note


def test_standard_protocols_are_comparable() -> None:
    assert protocol_differences("nyu", NYU) == []
    assert protocol_differences("kitti", KITTI) == []
    assert protocol_differences("nyu", replace(NYU, flip=True)) == [], "published figures have it or not"


@pytest.mark.parametrize(
    ("protocol", "why"),
    [
        (replace(NYU, crop="none"), "the crop is none, not eigen"),
        (replace(NYU, limits_m=(1e-3, 80.0)), "the depth cap is 80 m, not 10 m"),
        (replace(NYU, align="median"), "aligned"),
    ],
)
def test_other_protocols_are_not_comparable(protocol: Protocol, why: str) -> None:
    (reason,) = protocol_differences("nyu", protocol)
    assert why in reason


def test_every_difference_is_named() -> None:
    assert len(protocol_differences("kitti", Protocol(limits_m=(1e-3, 10.0), align="lsq"))) == 3
