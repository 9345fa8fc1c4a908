"""Latency measurement: timed section, warm-up, refusals, records."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from time import sleep
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mirrordepth_edge.artefact import Reference
from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.bench import measure
from mirrordepth_edge.bench.measure import (
    MAX_WARMUP,
    Candidate,
    bench,
    loop_overhead_us,
    time_interleaved,
    warm_up,
)
from mirrordepth_edge.config import PRESETS, BenchConfig, BenchProtocol
from mirrordepth_edge.errors import GateError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor

MODEL = PRESETS["nano"]
HEIGHT, WIDTH = MODEL.size_hw


class ConstantSession(CheckedSession):
    """Outputs one depth everywhere and records the mean of each input."""

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


def test_paths_are_interleaved_frame_by_frame() -> None:
    calls: list[tuple[str, Any]] = []

    def stage(name: str, seconds: float) -> Any:
        def run(value: Any) -> Any:
            calls.append((name, value))
            sleep(seconds)
            return f"{name}{value}"

        return run

    slow, quick = time_interleaved([[stage("a", 0.002), stage("b", 0.004)], [stage("c", 0.001)]], frames=3)
    assert calls[:6] == [("a", 0), ("b", "a0"), ("c", 0), ("a", 1), ("b", "a1"), ("c", 1)]
    assert (slow.shape, quick.shape) == ((3, 2), (3, 1))
    assert (slow >= [2.0, 4.0]).all()
    assert (quick >= 1.0).all()


def test_a_warm_up_of_a_fixed_length() -> None:
    calls: list[int] = []
    assert warm_up([calls.append], 7) == 7
    assert calls == [*range(7)]


@pytest.mark.parametrize(
    ("times_ms", "frames"),
    [
        # Thirty slow frames first.
        (np.where(np.arange(MAX_WARMUP) < 30, 6.0, 1.0), 60),
        # Times never settle.
        (np.arange(MAX_WARMUP) + 1.0, MAX_WARMUP),
    ],
)
def test_a_warm_up_ends_when_times_have_settled(
    times_ms: npt.NDArray[np.float64], frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given times replace measured ones, because a busy machine may not settle."""
    times = iter(times_ms)
    monkeypatch.setattr(measure, "time_interleaved", lambda _, count: [np.array([[next(times)] for _ in range(count)])])
    assert warm_up([], None) == frames


def test_the_overhead_of_the_loop_is_small() -> None:
    assert min(loop_overhead_us(stages=3, frames=200) for _ in range(10)) < 1000


def test_interleaved_artefacts_are_timed_on_every_frame(frames: list[Frame]) -> None:
    sessions = [ConstantSession(depth_m) for depth_m in (1.0, 2.0)]
    candidates = [
        Candidate(predictor=DepthPredictor(session, MODEL), name=f"{index}", sha256="0" * 64)
        for index, session in enumerate(sessions)
    ]
    results = bench(candidates, frames, BenchConfig(iterations=5, warmup=1, frame_hw=(60, 80)))
    assert [result.artefact for result in results] == ["0", "1"]
    assert [result.latency.samples for result in results] == [5, 5]
    assert sessions[0].means == sessions[1].means


@pytest.mark.parametrize("protocol", ["host", "network"])
def test_frames_repeat_and_the_result_states_what_was_timed(protocol: BenchProtocol, frames: list[Frame]) -> None:
    config = BenchConfig(iterations=7, warmup=2, frame_hw=(60, 80), protocol=protocol)
    network_only = protocol == "network"
    result, session = result_of(2.0, frames, config)
    assert len(session.means) == len(frames) + 2 + 7
    assert len(set(session.means[-3:])) == 3
    assert ("network input" in result.boundary) is network_only
    assert ("80x60" in result.boundary) is not network_only
    stages = ["network"] if network_only else ["preprocess", "network", "postprocess"]
    assert list(result.stages) == stages
    np.testing.assert_allclose(result.latency.mean_ms, sum(stage.mean_ms for stage in result.stages.values()))
    plain = json.loads(json.dumps(result.to_json()))
    for name, samples_ms in zip(stages, result.samples_ms.T, strict=True):
        raw = zlib.decompress(base64.b64decode(plain["samples_ns"][name]))
        np.testing.assert_allclose(np.frombuffer(raw, "<i8"), samples_ms * 1e6, atol=0.5)
    assert result.device_stages == {}
    assert plain["latency"]["samples"] == 7
    assert plain["config"]["frame_hw"] == [60, 80]
    assert plain["machine"]["cores"] >= 1
    assert "own_ms" in plain["telemetry"]


@pytest.mark.parametrize("depth_m", [np.nan, np.inf, 0.0, -1.0])
def test_a_fast_wrong_engine_is_not_reported(depth_m: float, frames: list[Frame]) -> None:
    with pytest.raises(GateError, match="not timed"):
        result_of(depth_m, frames, BenchConfig(iterations=3, warmup=0))


def test_a_frame_callback_is_not_timed(frames: list[Frame], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    now_ns = 10**9

    def clock() -> int:
        nonlocal now_ns
        now_ns += 1000
        return now_ns

    def slow() -> None:
        nonlocal now_ns
        calls.append(1)
        now_ns += 10_000_000

    monkeypatch.setattr(measure, "perf_counter_ns", clock)

    candidate = Candidate(predictor=DepthPredictor(ConstantSession(2.0), MODEL), name="constant", sha256="0" * 64)
    config = BenchConfig(iterations=5, warmup=0, protocol="network")
    (result,) = bench([candidate], frames, config, slow)
    assert len(calls) == 5
    assert result.latency.p50_ms < 5


class OnAGpu(ConstantSession):
    """Its GPU's clock says 1, 2 and 3 ms for the first frame, ten times as much for the second, and so on."""

    device = "Fake GPU"

    def device_ms(self) -> tuple[float, ...]:
        return tuple(stage * 10.0 ** (len(self.means) - 1 - self.before) for stage in (1.0, 2.0, 3.0))

    before = 0


@pytest.mark.parametrize(
    ("protocol", "stages", "sums"),
    [
        ("trtexec-10", ["host to device", "compute", "device to host"], [6, 60, 600]),
        ("trtexec-11", ["compute"], [2, 20, 200]),
    ],
)
def test_trtexecs_protocols_count_by_the_gpus_clock(
    protocol: BenchProtocol, stages: list[str], sums: list[float], frames: list[Frame]
) -> None:
    session = OnAGpu(2.0)
    session.before = len(frames)  # the frames of the depth check
    candidate = Candidate(predictor=DepthPredictor(session, MODEL), name="a.plan", sha256="0" * 64)
    (result,) = bench([candidate], frames, BenchConfig(iterations=3, warmup=0, protocol=protocol))
    assert list(result.stages) == stages
    np.testing.assert_allclose(result.frames_ms, sums)
    assert [stats.max_ms for stats in result.device_stages.values()] == [100, 200, 300]
    assert "trtexec" in result.boundary


def test_trtexecs_protocols_need_a_gpus_clock(frames: list[Frame]) -> None:
    with pytest.raises(OptionError, match="cannot time constant"):
        result_of(2.0, frames, BenchConfig(iterations=3, warmup=0, protocol="trtexec-10"))


def test_depth_is_checked_against_the_reference(frames: list[Frame]) -> None:
    """Depth of 2 m everywhere, against a reference of 2.002 m (0.1 %) and one of 2.2 m (9 %)."""
    images = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    for stored_m, agrees in ((2.002, True), (2.2, False)):
        reference = Reference(images, np.full((2, HEIGHT, WIDTH), stored_m, np.float32))
        predictor = DepthPredictor(ConstantSession(2.0), MODEL)
        candidate = Candidate(predictor=predictor, name="a.onnx", sha256="0" * 64, reference=reference)
        config = BenchConfig(iterations=3, warmup=0)
        if agrees:
            agreement = bench([candidate], frames, config)[0].agreement
            assert agreement is not None
            assert agreement.frames == 2
            assert agreement.mean_relative == pytest.approx(0.002 / 2.002, rel=1e-3)
        else:
            with pytest.raises(GateError, match="wrong depth"):
                bench([candidate], frames, config)
