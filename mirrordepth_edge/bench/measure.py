"""Measuring latency: one declared boundary, a warm-up, raw samples.

The boundary is host frame to host metres: a uint8 frame at camera size in, float32 depth at camera
size out, preprocessing, copies and the resize back included. `network_only` narrows it to the
session's `infer`, host input to host output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge import __version__
from mirrordepth_edge.bench.stats import LatencyStats, summarise
from mirrordepth_edge.config import BenchConfig
from mirrordepth_edge.device import Machine, machine
from mirrordepth_edge.errors import GateError
from mirrordepth_edge.preprocess import Frame, Preprocessor, resize_frame
from mirrordepth_edge.runtime import DepthPredictor

RESULT_VERSION = 1
UNSTEADY = 0.1
"""Coefficient of variation above which a result is not worth quoting (as pyperf)."""


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A measurement with what is needed to repeat it."""

    artefact: str
    artefact_sha256: str
    backend: str
    backend_version: str
    device: str
    precision: str
    boundary: str
    config: BenchConfig
    machine: Machine
    latency: LatencyStats
    samples_ms: npt.NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Plain values; samples in milliseconds to the nearest nanosecond."""
        samples = [round(float(sample), 6) for sample in self.samples_ms]
        plain = asdict(self) | {"samples_ms": samples}
        return {"schema_version": RESULT_VERSION, "mirrordepth_edge": __version__, **plain}


def time_calls(step: Callable[[int], object], iterations: int, warmup: int) -> npt.NDArray[np.float64]:
    """Time `step(i)` `iterations` times after `warmup` calls; milliseconds, shape `[iterations]`.

    `step` must return only when its result is in host memory.
    """
    for index in range(warmup):
        step(index)
    stamps = np.empty(iterations + 1, np.int64)
    stamps[0] = perf_counter_ns()
    for index in range(iterations):
        step(index)
        stamps[index + 1] = perf_counter_ns()
    return np.diff(stamps) / 1e6


def bench(
    predictor: DepthPredictor, frames: Sequence[Frame], config: BenchConfig, *, artefact: str, artefact_sha256: str
) -> BenchResult:
    """Measure a predictor on real frames, which rotate.

    Raises:
        GateError: the depth is not finite and positive; a fast wrong engine is not reported.
    """
    at_size = [np.ascontiguousarray(resize_frame(frame, config.frame_hw)) for frame in frames]
    for frame in at_size:
        depth_m = predictor(frame)
        if not (np.isfinite(depth_m).all() and (depth_m > 0).all()):
            raise GateError(
                f"{artefact} gives depth that is not finite and positive; it was not timed.",
                f"Bad pixels: {int((~np.isfinite(depth_m) | (depth_m <= 0)).sum())} of {depth_m.size}.",
                "Export it again; mde export checks its depth against PyTorch's.",
            )
    session = predictor.session
    if config.network_only:
        spec = session.inputs[0]
        prepare = Preprocessor(predictor.model.preprocess, "uint8" if spec.dtype == "uint8" else "float")
        feeds = [{spec.name: prepare(frame).copy()} for frame in at_size]
        samples = time_calls(lambda i: session.infer(feeds[i % len(feeds)]), config.iterations, config.warmup)
        boundary = "network input in host memory to network output in host memory"
    else:
        samples = time_calls(lambda i: predictor(at_size[i % len(at_size)]), config.iterations, config.warmup)
        height, width = config.frame_hw
        boundary = f"{width}x{height} uint8 frame in host memory to {width}x{height} metres in host memory"
    return BenchResult(
        artefact=artefact,
        artefact_sha256=artefact_sha256,
        backend=session.backend,
        backend_version=session.version,
        device=session.device,
        precision=session.precision,
        boundary=boundary,
        config=config,
        machine=machine(),
        latency=summarise(samples),
        samples_ms=samples,
    )
