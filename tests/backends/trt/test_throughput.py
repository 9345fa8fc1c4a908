"""Engines that `mde bench --mode throughput` keeps several frames in flight in, on the fake runtime and its rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mirrordepth_edge.artefact import Reference
from mirrordepth_edge.bench.in_flight import bench_in_flight, infer_in_flight
from mirrordepth_edge.bench.measure import Candidate
from mirrordepth_edge.config import BenchConfig, SessionOptions
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.predictor import DepthPredictor

from .fake_engine import HEIGHT, MANIFEST, WIDTH, Machine, depth_of, frame

FLAVOURS = ("tensorrt", "tensorrt-rtx")


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_each_answer_is_of_its_frame(in_flight: int, zero_copy: bool, machine: Machine) -> None:
    with machine.open(SessionOptions(in_flight=in_flight, zero_copy=zero_copy)) as session:
        feeds = ({"image": frame(number)} for number in range(8))
        depths = [outputs["depth"].copy() for outputs in infer_in_flight(session, feeds, in_flight)]
    np.testing.assert_allclose(depths, [depth_of(frame(number)) for number in range(8)], rtol=1e-6)
    assert not machine.cuda.leaked


@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_engine_keeps_frames_in_work(flavour: str, in_flight: int, machine: Machine, frames: list[Frame]) -> None:
    images = np.concatenate([frame(seed) for seed in range(2)])
    reference = Reference(images, depth_of(images).astype(np.float32))
    opens = machine.open if flavour == "tensorrt" else machine.open_rtx
    with opens(SessionOptions(in_flight=in_flight)) as session:
        predictor = DepthPredictor(session, replace(MANIFEST.model, size_hw=(HEIGHT, WIDTH)))
        candidate = Candidate(predictor=predictor, name="tiny.plan", sha256="0" * 64, reference=reference)
        result = bench_in_flight(candidate, frames, BenchConfig(warmup=4, frame_hw=(8, 12)), in_flight, 0.05)
        np.testing.assert_allclose(session.infer({"image": frame(9)})["depth"], depth_of(frame(9)), rtol=1e-6)
    assert not machine.cuda.leaked
    assert (result.backend, result.device) == (flavour, "Fake GPU")
    assert (result.in_flight, result.arrangement) == (in_flight, f"{in_flight} in one engine")
    assert result.agreement is not None
    assert result.agreement.frames == 2 * in_flight
    assert result.agreement.max_relative < 1e-6
