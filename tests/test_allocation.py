"""In steady state a frame allocates nothing: buffers are allocated once and reused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.camera.model import Lens
from mirrordepth_edge.config import PRESETS, SessionOptions
from mirrordepth_edge.imaging.temporal_filter import TemporalFilterConfig
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor, load

HEIGHT, WIDTH = PRESETS["nano"].size_hw
FEW_KIB = 16
"""Python's own small objects. A 640x480 frame has 900 KiB, its depth map 1200 KiB."""


class Instant(CheckedSession):
    """A network that takes no time, so that the test can run a thousand frames."""

    backend, device, precision, version = "instant", "cpu", "fp32", "1.0"
    inputs = (TensorSpec(name="image", dtype="uint8", shape=(1, HEIGHT, WIDTH, 3), layout="NHWC", range="", unit=""),)
    outputs = (TensorSpec(name="depth", dtype="float32", shape=(1, HEIGHT, WIDTH), layout="NHW", range="", unit=""),)

    def __init__(self) -> None:
        self.depth = np.ones((1, HEIGHT, WIDTH), np.float32)

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        self.check(feeds)
        return {"depth": self.depth}


def peak_kib(step: Callable[[], object], frames: int) -> float:
    """Peak memory over this many frames, relative to the memory before."""
    for _ in range(5):
        step()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(frames):
            step()
        return (tracemalloc.get_traced_memory()[1] - before) / 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("temporal_filter", [None, TemporalFilterConfig()], ids=["unfiltered", "filtered"])
@pytest.mark.parametrize("camera", [None, Lens(fov_deg=70)])
@pytest.mark.parametrize("frame_hw", [(480, 640), (1080, 1920)])
def test_nothing_is_allocated_around_the_network(
    frame_hw: tuple[int, int], camera: Lens | None, temporal_filter: TemporalFilterConfig | None
) -> None:
    frame = np.zeros((*frame_hw, 3), np.uint8)
    model = replace(PRESETS["nano"], focal=(0.9, 1.2))
    frames = 1000 if frame_hw == (480, 640) and temporal_filter is None else 100
    allowed_kib = (
        FEW_KIB if temporal_filter is None else model.size_hw[0] * model.size_hw[1] / 1024
    )  # a quarter of a map
    with DepthPredictor(Instant(), model, camera=camera, temporal_filter=temporal_filter) as predictor:
        assert peak_kib(lambda: predictor(frame), frames) < allowed_kib


def test_nothing_is_allocated_by_the_session() -> None:
    pytest.importorskip("onnxruntime", reason="nano runs in ONNX Runtime")
    frame = np.zeros((480, 640, 3), np.uint8)
    with load("nano", SessionOptions(device="cpu")) as predictor:
        assert peak_kib(lambda: predictor(frame), 50) < FEW_KIB


def test_an_allocation_is_detected() -> None:
    assert peak_kib(lambda: np.zeros((480, 640, 3), np.uint8), 3) > 800
