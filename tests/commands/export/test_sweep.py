"""The table of a sweep: what is printed can be picked, and how it was timed is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.artefact import Artefact
from mirrordepth_edge.commands.export import sweep as export_sweep
from mirrordepth_edge.quantise.sweep_result import GroupSensitivity, SweepPoint, SweepResult


def point(number: int, groups: tuple[str, ...], cost: float) -> SweepPoint:
    return SweepPoint(
        number=number,
        int8_groups=groups,
        int8_share=len(groups) / 2,
        abs_rel=0.1,
        loss=0.0,
        delta1=0.9,
        worst=0.2,
        boundary_f1=None,
        cost_ms=10 * cost,
        cost_ratio=cost,
        on_front=True,
    )


def test_only_what_can_be_picked_has_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    result = SweepResult(
        model="nano",
        onnx_sha256="ab" * 32,
        calibration="8 frames",
        method="max",
        frames=4,
        labelled=True,
        data="frames",
        cost="measured",
        baseline=point(2, (), 1.0),
        groups=tuple(GroupSensitivity(group=each, nodes=1, macs=1, sensitivity=0.01) for each in "ab"),
        points=(point(0, ("a", "b"), 0.5), point(1, ("a",), 0.7)),
        seconds=1,
    )
    export_sweep._print(result)
    assert re.findall(r"^(\S+) \* +(\d+%)", capsys.readouterr().out, re.MULTILINE) == [
        ("0", "100%"),
        ("1", "50%"),
        ("-", "0%"),
    ]


def test_each_is_timed_first_as_often_as_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which whoever comes first takes twice as long, neither is slower; and the count is told."""
    turns: list[int] = []

    def in_turn(paths: Sequence[Any], frames: int) -> list[np.ndarray[Any, Any]]:
        turns.append(frames)
        return [np.full((frames, 1), first) for first in (2.0, 1.0)]

    inputs = [SimpleNamespace(name="image")]
    session = SimpleNamespace(inputs=inputs, infer=lambda feeds: None)
    monkeypatch.setattr("mirrordepth_edge.commands.export.sweep.OnnxRuntimeSession", lambda *_: nullcontext(session))
    monkeypatch.setattr("mirrordepth_edge.commands.export.sweep.time_interleaved", in_turn)
    monkeypatch.setattr("onnx.save", lambda model, path: None)
    quantizer: Any = SimpleNamespace(
        folder=tmp_path,
        fp32=Artefact(path=tmp_path / "fp32.onnx", kind="onnx", sidecar=None),
        manifest=None,
        held_out=[None],
        make=lambda nodes: None,
        preprocess=lambda frames: [None],
        manifest_of=lambda nodes: None,
        progress=SimpleNamespace(stage=lambda name, steps: None),
    )
    cost = export_sweep.measure_cost(quantizer)
    assert cost.of(["a"]) == (1.5, 1.5)
    frames = sum(turns[1:])
    assert frames == 60
    assert f"median of {frames} frames" in cost.words
