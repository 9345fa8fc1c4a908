"""Measuring latency: one declared boundary, a warm-up until times have settled, raw samples of every stage.

The boundary is host frame to host metres: a uint8 frame at camera size in, float32 depth at camera
size out. Inside it each frame passes three stages, timed one by one: preprocess, network (with its
copies to and from a device), postprocess. `network_only` narrows the boundary to the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge import __version__
from mirrordepth_edge.bench.context import Context
from mirrordepth_edge.bench.sensors import Sampler
from mirrordepth_edge.bench.stats import Finding, LatencyStats, findings, stationary_from, summarise
from mirrordepth_edge.config import BenchConfig
from mirrordepth_edge.device import Machine, machine
from mirrordepth_edge.errors import GateError
from mirrordepth_edge.preprocess import Frame, resize_frame
from mirrordepth_edge.runtime import DepthPredictor

RESULT_VERSION = 2
STAGES = ("preprocess", "network", "postprocess")
WARMUP_CHUNK = 20
MOST_WARMUP = 400
"""Frames after which timing starts even where times have not settled; `findings` will say so."""

Stage = Callable[[Any], Any]
"""Takes what the stage before it gave; the first takes the frame's number."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was measured, and where."""

    artefact: str
    artefact_sha256: str
    backend: str
    backend_version: str
    device: str
    """`cpu`, or the GPU's name."""
    precision: str
    boundary: str
    config: BenchConfig
    machine: Machine

    @property
    def computer(self) -> str:
        """The board or the CPU, with its cores: a measurement on fewer of them is another one."""
        return f"{self.machine.jetson or self.machine.cpu}, {self.machine.cores} cores"

    @property
    def timed(self) -> str:
        """The boundary without the frame's size, which `frame` tells."""
        return self.boundary.replace(f"{self.frame} ", "")

    @property
    def frame(self) -> str:
        """The camera frame's size, such as `640x480`."""
        height, width = self.config.frame_hw
        return f"{width}x{height}"


@dataclass(frozen=True, kw_only=True)
class BenchResult(Subject):
    """A measurement with what is needed to repeat it."""

    warmup: int
    """Frames that went before the timed ones."""
    latency: LatencyStats
    stages: dict[str, LatencyStats]
    findings: list[Finding]
    """What speaks against quoting the figures, and what to do about it."""
    context: Context
    """What the machine did meanwhile."""
    harness_us: float
    """What the loop itself costs a frame, in microseconds: the mean of as many frames with stages that do nothing."""
    samples_ms: npt.NDArray[np.float64]
    """Shape `[frames, stages]`."""

    @property
    def source(self) -> str:
        """What messages call it; a stored one is called by its file's name."""
        return "this run"

    @property
    def frames_ms(self) -> npt.NDArray[np.float64]:
        """Whole frames, the sum of their stages; shape `[frames]`."""
        return self.samples_ms.sum(axis=1)  # type: ignore[no-any-return]

    def to_json(self) -> dict[str, Any]:
        """Plain values; samples in milliseconds to the nearest nanosecond."""
        plain = asdict(self) | {"context": self.context.to_json()}
        plain["samples_ms"] = {
            name: [round(float(sample), 6) for sample in samples]
            for name, samples in zip(self.stages, self.samples_ms.T, strict=True)
        }
        return {"schema_version": RESULT_VERSION, "mirrordepth_edge": __version__, **plain}


Stages = Sequence[Stage]
"""What a frame passes, in order."""


def time_in_turn(paths: Sequence[Stages], frames: int) -> list[npt.NDArray[np.float64]]:
    """Send frame numbers 0, 1, … through the stages of each path, each frame through all paths before the next.

    What disturbs one path so disturbs all. A path's last stage must return only when its result is in
    host memory.

    Returns:
        Milliseconds for each path, shape `[frames, stages]`.
    """
    stamps = [np.empty((frames, len(path) + 1), np.int64) for path in paths]
    for index in range(frames):
        for path, own in zip(paths, stamps, strict=True):
            own[index, 0] = perf_counter_ns()
            value: Any = index
            for place, stage in enumerate(path, 1):
                value = stage(value)
                own[index, place] = perf_counter_ns()
    return [np.diff(own) / 1e6 for own in stamps]


def warm_up(path: Stages, frames: int | None) -> int:
    """Run frames untimed: as many as told, or until times have settled; how many it took."""
    if frames is not None:
        time_in_turn([path], frames)
        return frames
    samples = np.empty(0)
    while len(samples) < MOST_WARMUP:
        samples = np.append(samples, time_in_turn([path], WARMUP_CHUNK)[0].sum(axis=1))
        settled = stationary_from(samples)
        if settled is not None and settled <= len(samples) - WARMUP_CHUNK:
            break
    return len(samples)


def harness_cost_us(stages: int, frames: int) -> float:
    """What the loop costs a frame when its stages do nothing, in microseconds."""
    began = perf_counter_ns()
    time_in_turn([[lambda value: value] * stages], frames)
    return (perf_counter_ns() - began) / 1e3 / frames


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is measured."""

    predictor: DepthPredictor
    name: str
    sha256: str


def bench(candidates: Sequence[Candidate], frames: Sequence[Frame], config: BenchConfig) -> list[BenchResult]:
    """Measure predictors on real frames, which rotate; several are timed in turn, frame by frame.

    Raises:
        GateError: the depth is not finite and positive; a fast wrong engine is not reported.
    """
    at_size = camera_frames(frames, config)
    for candidate in candidates:
        _check_depth(candidate, at_size)
    paths = [_path(candidate.predictor, at_size, config) for candidate in candidates]
    warmups = [warm_up(path, config.warmup) for path in paths]
    with Sampler() as sampler:
        measured = time_in_turn(paths, config.iterations)
    context, about = sampler.context(), machine()
    height, width = config.frame_hw
    boundary = f"{width}x{height} uint8 frame in host memory to {width}x{height} metres in host memory"
    if config.network_only:
        boundary = "network input in host memory to network output in host memory"
    names = STAGES[1:2] if config.network_only else STAGES
    harness_us = harness_cost_us(len(names), config.iterations)
    results = []
    for candidate, warmup, samples_ms in zip(candidates, warmups, measured, strict=True):
        session, total_ms = candidate.predictor.session, samples_ms.sum(axis=1)
        results.append(
            BenchResult(
                artefact=candidate.name,
                artefact_sha256=candidate.sha256,
                backend=session.backend,
                backend_version=session.version,
                device=session.device,
                precision=session.precision,
                boundary=boundary,
                config=config,
                machine=about,
                warmup=warmup,
                latency=summarise(total_ms),
                stages={name: summarise(own) for name, own in zip(names, samples_ms.T, strict=True)},
                findings=findings(total_ms),
                context=context,
                harness_us=harness_us,
                samples_ms=samples_ms,
            )
        )
    return results


def camera_frames(frames: Sequence[Frame], config: BenchConfig) -> list[Frame]:
    """Frames as the camera would give them."""
    return [np.ascontiguousarray(resize_frame(frame, config.frame_hw)) for frame in frames]


def _check_depth(candidate: Candidate, frames: Sequence[Frame]) -> None:
    for frame in frames:
        depth_m = candidate.predictor(frame)
        bad = ~np.isfinite(depth_m) | (depth_m <= 0)
        if bad.any():
            raise GateError(
                f"{candidate.name} gives depth that is not finite and positive; it was not timed.",
                f"Bad pixels: {int(bad.sum())} of {depth_m.size}.",
                "Export it again; mde export checks its depth against PyTorch's.",
            )


def _path(predictor: DepthPredictor, frames: Sequence[Frame], config: BenchConfig) -> Stages:
    session = predictor.session
    if config.network_only:
        feeds = [{name: array.copy() for name, array in predictor.prepare(frame).items()} for frame in frames]
        return [lambda index: session.infer(feeds[index % len(feeds)])]
    return [
        lambda index: predictor.prepare(frames[index % len(frames)]),
        session.infer,
        lambda outputs: predictor.finish(outputs, config.frame_hw),
    ]
