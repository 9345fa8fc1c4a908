"""The harness: what it times, what it refuses, what it records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from time import sleep
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.bench.measure import bench, time_calls
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
    predictor = DepthPredictor(session, MODEL)
    return bench(predictor, frames, config, artefact="constant", artefact_sha256="0" * 64), session


def test_times_every_call_and_leaves_the_warm_up_out() -> None:
    calls: list[int] = []
    samples = time_calls(lambda index: (calls.append(index), sleep(0.002)), iterations=5, warmup=3)
    assert calls == [0, 1, 2, 0, 1, 2, 3, 4]
    assert samples.shape == (5,)
    assert (samples >= 2.0).all()


@pytest.mark.parametrize("network_only", [False, True])
def test_frames_rotate_and_the_result_says_what_was_timed(network_only: bool, frames: list[Frame]) -> None:
    config = BenchConfig(iterations=7, warmup=2, frame_hw=(60, 80), network_only=network_only)
    result, session = result_of(2.0, frames, config)
    assert len(session.means) == len(frames) + 2 + 7
    assert len(set(session.means[-3:])) == 3
    assert ("network input" in result.boundary) is network_only
    assert ("80x60" in result.boundary) is not network_only
    plain = json.loads(json.dumps(result.to_json()))
    assert len(plain["samples_ms"]) == plain["latency"]["samples"] == 7
    assert plain["config"]["frame_hw"] == [60, 80]
    assert plain["machine"]["cores"] >= 1


@pytest.mark.parametrize("depth_m", [np.nan, np.inf, 0.0, -1.0])
def test_a_fast_wrong_engine_is_not_reported(depth_m: float, frames: list[Frame]) -> None:
    with pytest.raises(GateError, match="not timed"):
        result_of(depth_m, frames, BenchConfig(iterations=3, warmup=0))
