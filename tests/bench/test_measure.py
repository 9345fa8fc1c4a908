"""The harness: what it times, what it refuses, what it records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from time import sleep
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.bench.measure import (
    MOST_WARMUP,
    Candidate,
    bench,
    harness_cost_us,
    time_in_turn,
    warm_up,
)
from mirrordepth_edge.config import PRESETS, BenchConfig
from mirrordepth_edge.errors import GateError
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.preprocess import Frame
from mirrordepth_edge.runtime import DepthPredictor

MODEL = PRESETS["nano"]
HEIGHT, WIDTH = MODEL.size_hw


class ConstantSession(CheckedSession):
    """Gives one depth everywhere and remembers what it was asked."""

    backend, device, precision, version = "constant", "cpu", "fp32", "1.0"
    inputs = (TensorSpec(name="image", dtype="uint8", shape=(1, HEIGHT, WIDTH, 3), layout="NHWC", range="", unit=""),)
    outputs = (TensorSpec(name="depth", dtype="float32", shape=(1, HEIGHT, WIDTH), layout="NHW", range="", unit=""),)

    def __init__(self, depth_m: float) -> None:
        self.depth = np.full((1, HEIGHT, WIDTH), depth_m, np.float32)
        self.means: list[float] = []

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        self.check(feeds)
        self.means.append(float(feeds["image"].mean()))
        return {"depth": self.depth}


def result_of(depth_m: float, frames: list[Frame], config: BenchConfig) -> tuple[Any, ConstantSession]:
    session = ConstantSession(depth_m)
    candidate = Candidate(predictor=DepthPredictor(session, MODEL), name="constant", sha256="0" * 64)
    (result,) = bench([candidate], frames, config)
    return result, session


def test_every_frame_passes_every_stage_of_every_path_before_the_next() -> None:
    calls: list[tuple[str, Any]] = []

    def stage(name: str, seconds: float) -> Any:
        def run(value: Any) -> Any:
            calls.append((name, value))
            sleep(seconds)
            return f"{name}{value}"

        return run

    slow, quick = time_in_turn([[stage("a", 0.002), stage("b", 0.004)], [stage("c", 0.001)]], frames=3)
    assert calls[:6] == [("a", 0), ("b", "a0"), ("c", 0), ("a", 1), ("b", "a1"), ("c", 1)]
    assert (slow.shape, quick.shape) == ((3, 2), (3, 1))
    assert (slow >= [2.0, 4.0]).all()
    assert (quick >= 1.0).all()


def test_a_warm_up_of_so_many_frames() -> None:
    calls: list[int] = []
    assert warm_up([calls.append], 7) == 7
    assert calls == [*range(7)]


def test_a_warm_up_ends_when_times_have_settled() -> None:
    """Thirty slow frames are left behind; what never settles is given up."""
    seen = 0

    def settling(_: int) -> None:
        nonlocal seen
        seen += 1
        sleep(0.006 if seen <= 30 else 0.001)

    assert 40 <= warm_up([settling], None) < MOST_WARMUP
    seen = 0

    def ever_slower(_: int) -> None:
        nonlocal seen
        seen += 1
        sleep(1e-5 * seen)

    assert warm_up([ever_slower], None) == MOST_WARMUP


def test_the_loop_itself_costs_next_to_nothing() -> None:
    assert 0 < harness_cost_us(stages=3, frames=2000) < 1000


def test_artefacts_in_turn_are_each_timed_on_every_frame(frames: list[Frame]) -> None:
    sessions = [ConstantSession(depth_m) for depth_m in (1.0, 2.0)]
    candidates = [
        Candidate(predictor=DepthPredictor(session, MODEL), name=f"{place}", sha256="0" * 64)
        for place, session in enumerate(sessions)
    ]
    results = bench(candidates, frames, BenchConfig(iterations=5, warmup=1, frame_hw=(60, 80)))
    assert [result.artefact for result in results] == ["0", "1"]
    assert [result.latency.samples for result in results] == [5, 5]
    assert sessions[0].means == sessions[1].means


@pytest.mark.parametrize("network_only", [False, True])
def test_frames_rotate_and_the_result_says_what_was_timed(network_only: bool, frames: list[Frame]) -> None:
    config = BenchConfig(iterations=7, warmup=2, frame_hw=(60, 80), network_only=network_only)
    result, session = result_of(2.0, frames, config)
    assert len(session.means) == len(frames) + 2 + 7
    assert len(set(session.means[-3:])) == 3
    assert ("network input" in result.boundary) is network_only
    assert ("80x60" in result.boundary) is not network_only
    stages = ["network"] if network_only else ["preprocess", "network", "postprocess"]
    assert list(result.stages) == stages
    np.testing.assert_allclose(result.latency.mean_ms, sum(own.mean_ms for own in result.stages.values()))
    plain = json.loads(json.dumps(result.to_json()))
    assert [len(plain["samples_ms"][name]) for name in stages] == [7] * len(stages)
    assert plain["latency"]["samples"] == 7
    assert plain["config"]["frame_hw"] == [60, 80]
    assert plain["machine"]["cores"] >= 1
    assert "own_ms" in plain["context"]


@pytest.mark.parametrize("depth_m", [np.nan, np.inf, 0.0, -1.0])
def test_a_fast_wrong_engine_is_not_reported(depth_m: float, frames: list[Frame]) -> None:
    with pytest.raises(GateError, match="not timed"):
        result_of(depth_m, frames, BenchConfig(iterations=3, warmup=0))
