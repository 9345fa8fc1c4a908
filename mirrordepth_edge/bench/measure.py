"""Measuring latency: one declared boundary, a warm-up until times have settled, raw samples of every stage.

The boundary is host frame to host metres: a uint8 frame at camera size in, float32 depth at camera
size out. Inside it each frame passes three stages, timed one by one: preprocess, network (with its
copies to and from a device), postprocess. Other protocols (`BOUNDARIES`) narrow it, to compare with other tools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.artefact import Artefact, Reference
from mirrordepth_edge.backends.base import DEVICE_STAGES
from mirrordepth_edge.backends.registry import open_artefact
from mirrordepth_edge.bench.result import BenchResult, StreamMeasurement, ThroughputMeasurement
from mirrordepth_edge.bench.stats import findings, stationary_from, summarise
from mirrordepth_edge.bench.stream import StreamResult, max_sustained_rate, stream
from mirrordepth_edge.bench.throughput import throughput
from mirrordepth_edge.config import BenchConfig, BenchProtocol, SessionOptions
from mirrordepth_edge.errors import GateError, OptionError
from mirrordepth_edge.export.parity import check_agreement, measure_agreement
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame
from mirrordepth_edge.machine.device import machine
from mirrordepth_edge.machine.sampler import TelemetrySampler
from mirrordepth_edge.manifest import Parity
from mirrordepth_edge.predictor import DepthPredictor, load

STAGES = ("preprocess", "network", "postprocess")
WARMUP_CHUNK = 20
MOST_WARMUP = 400
"""Frames after which timing starts even where times have not settled; `findings` will say so."""
FEWEST_IN_STREAM = 4
"""Frames at the lowest rate that is tried when the highest sustainable one is looked for."""
HIGHEST_HZ = 1000.0
BOUNDARIES: dict[BenchProtocol, str] = {
    "host": "{frame} uint8 frame in host memory to {frame} metres in host memory",
    "network": "network input in host memory to network output in host memory",
    "trtexec-10": "network input in pinned host memory to network output there, on the GPU's clock, "
    "which is trtexec's latency up to TensorRT 10",
    "trtexec-11": "compute on the GPU, on its clock, without copies, as trtexec measures since TensorRT 11",
}
DEVICE_PROTOCOLS: dict[BenchProtocol, tuple[str, ...]] = {
    "trtexec-10": DEVICE_STAGES,
    "trtexec-11": DEVICE_STAGES[1:2],
}
"""Which of the device's stages count."""

Stage = Callable[[Any], Any]
"""Takes what the stage before it gave; the first takes the frame's number."""
Stages = Sequence[Stage]
"""What a frame passes, in order."""


def time_in_turn(
    paths: Sequence[Stages], frames: int, after: Sequence[Callable[[], object]] = ()
) -> list[npt.NDArray[np.float64]]:
    """Send frame numbers 0, 1, … through the stages of each path, each frame through all paths before the next.

    What disturbs one path so disturbs all. A path's last stage must return only when its result is in
    host memory.

    Args:
        after: for each path, what to call after each of its frames, untimed; none where empty.

    Returns:
        Milliseconds for each path, shape `[frames, stages]`.
    """
    stamps = [np.empty((frames, len(path) + 1), np.int64) for path in paths]
    for index in range(frames):
        for number, (path, own) in enumerate(zip(paths, stamps, strict=True)):
            own[index, 0] = perf_counter_ns()
            value: Any = index
            for place, stage in enumerate(path, 1):
                value = stage(value)
                own[index, place] = perf_counter_ns()
            if after:
                after[number]()
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


def loop_overhead_us(stages: int, frames: int) -> float:
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
    reference: Reference | None = None
    """What its depth has to be; None where that was not stored with it."""

    def about(self, config: BenchConfig) -> dict[str, Any]:
        """The fields of a `Subject`."""
        session = self.predictor.session
        height, width = config.frame_hw
        return {
            "artefact": self.name,
            "artefact_sha256": self.sha256,
            "backend": session.backend,
            "backend_version": session.version,
            "device": session.device,
            "precision": session.precision,
            "boundary": BOUNDARIES[config.protocol].format(frame=f"{width}x{height}"),
            "config": config,
            "machine": machine(),
        }


def open_candidate(model: str | Path | Artefact, options: SessionOptions | None = None, batch: int = 1) -> Candidate:
    """Open a model, with what its depth has to be.

    Raises:
        InputError, MissingError, OptionError: as `runtime.load`.
    """
    artefact = open_artefact(model, trust=options is not None and options.trust)
    reference = artefact.reference
    predictor = load(artefact, options, batch=batch)
    if reference is not None and reference.depth_m.shape[1:] != predictor.session.inputs[0].size[1:]:
        reference = None  # it is of the usual size, and this session of another
    return Candidate(predictor=predictor, name=artefact.name, sha256=artefact.sha256, reference=reference)


def bench(
    candidates: Sequence[Candidate],
    frames: Sequence[Frame],
    config: BenchConfig,
    on_frame: Callable[[], object] = lambda: None,
) -> list[BenchResult]:
    """Measure predictors on real frames, which rotate; several are timed in turn, frame by frame.

    Args:
        on_frame: called between frames, untimed; what it does at length disturbs the next one.

    Raises:
        GateError: the depth is not finite and positive, or not what it has to be; a fast wrong engine is not reported.
        OptionError: the protocol is a GPU's, and a candidate runs on the CPU.
    """
    at_size = camera_frames(frames, config)
    agreements = [check_depth(candidate, at_size) for candidate in candidates]
    for candidate in candidates:
        _require_device(candidate, config.protocol)
    paths = [_path(candidate.predictor, at_size, config) for candidate in candidates]
    warmups = [warm_up(path, config.warmup) for path in paths]
    on_device: list[list[tuple[float, ...]]] = [[] for _ in candidates]

    def reader(candidate: Candidate, own: list[tuple[float, ...]]) -> Callable[[], None]:
        def read() -> None:
            own.append(candidate.predictor.session.device_ms())
            on_frame()

        return read

    with TelemetrySampler() as sampler:
        after = [reader(candidate, own) for candidate, own in zip(candidates, on_device, strict=True)]
        measured = time_in_turn(paths, config.iterations, after)
    telemetry = sampler.telemetry()
    overhead_us = loop_overhead_us(len(paths[0]), config.iterations)
    results = []
    for place, candidate in enumerate(candidates):
        device_ms = dict(zip(DEVICE_STAGES, np.array(on_device[place]).T, strict=False))
        stages = dict(zip(STAGES if config.protocol == "host" else STAGES[1:2], measured[place].T, strict=True))
        if config.protocol in DEVICE_PROTOCOLS:
            stages = {name: device_ms[name] for name in DEVICE_PROTOCOLS[config.protocol]}
        samples_ms = np.stack(list(stages.values()), axis=1)
        total_ms = samples_ms.sum(axis=1)
        results.append(
            BenchResult(
                **candidate.about(config),
                warmup=warmups[place],
                telemetry=telemetry,
                agreement=agreements[place],
                latency=summarise(total_ms),
                stages={name: summarise(own) for name, own in stages.items()},
                device_stages={name: summarise(own) for name, own in device_ms.items()},
                findings=findings(total_ms),
                overhead_us=overhead_us,
                samples_ms=samples_ms,
            )
        )
    return results


def bench_stream(
    candidate: Candidate,
    frames: Sequence[Frame],
    config: BenchConfig,
    rates_hz: Sequence[float],
    seconds: float,
    on_result: Callable[[StreamResult], object] = lambda result: None,
) -> StreamMeasurement:
    """A predictor behind a camera that does not wait: at each rate for `seconds`, then up to the rate it keeps up with.

    Raises:
        GateError: as `bench`.
        OptionError: a rate is not positive, or the time too short for it.
    """
    step, agreement, warmup = _step(candidate, frames, config)
    streams = []
    with TelemetrySampler() as sampler:
        for rate_hz in rates_hz:
            streams.append(stream(step, rate_hz=rate_hz, seconds=seconds))
            on_result(streams[-1])
        peak = max_sustained_rate(step, seconds=seconds, low_hz=FEWEST_IN_STREAM / seconds, high_hz=HIGHEST_HZ)
    return StreamMeasurement(
        **candidate.about(config),
        warmup=warmup,
        telemetry=sampler.telemetry(),
        agreement=agreement,
        streams=streams,
        peak=peak,
    )


def bench_throughput(
    candidates: Sequence[Candidate], frames: Sequence[Frame], config: BenchConfig, seconds: float
) -> ThroughputMeasurement:
    """Sessions of one artefact side by side, each on its own frame; for an engine see `in_flight.bench_in_flight`.

    Raises:
        GateError: as `bench`.
        OptionError: there is no candidate, or no time.
    """
    prepared = [_step(candidate, frames, config) for candidate in candidates]
    with TelemetrySampler() as sampler:
        result = throughput([step for step, _, _ in prepared], seconds)
    _, agreement, warmup = prepared[0]
    return ThroughputMeasurement(
        **candidates[0].about(config),
        warmup=warmup,
        telemetry=sampler.telemetry(),
        agreement=agreement,
        in_flight=len(candidates),
        arrangement=f"{len(candidates)} session{'s' if len(candidates) > 1 else ''}",
        seconds=result.seconds,
        latency=summarise(result.frames_ms),
        rate_hz=result.rate_hz,
        samples_ms=result.frames_ms,
    )


def _step(
    candidate: Candidate, frames: Sequence[Frame], config: BenchConfig
) -> tuple[Callable[[int], object], Parity | None, int]:
    """A whole frame of a candidate that was checked and is warm; the check's figures, and the frames of the warm-up."""
    at_size = camera_frames(frames, config)
    agreement = check_depth(candidate, at_size)

    def step(index: int) -> object:
        return candidate.predictor(at_size[index % len(at_size)])

    return step, agreement, warm_up([step], config.warmup)


def camera_frames(frames: Sequence[Frame], config: BenchConfig) -> list[Frame]:
    """Frames as the camera would give them."""
    return [np.ascontiguousarray(resize_frame(frame, config.frame_hw)) for frame in frames]


def check_depth(candidate: Candidate, frames: Sequence[Frame]) -> Parity | None:
    """How far a candidate's depth is from what it has to be, where that is known.

    Raises:
        GateError: it is too far, or the depth of `frames` is not finite and positive.
    """
    for frame in frames:
        depth_m = candidate.predictor(frame)
        bad = ~np.isfinite(depth_m) | (depth_m <= 0)
        if bad.any():
            raise GateError(
                f"{candidate.name} gives depth that is not finite and positive; it was not timed.",
                f"Bad pixels: {int(bad.sum())} of {depth_m.size}.",
                "Export it again; mde export checks its depth against PyTorch's.",
            )
    if candidate.reference is None:
        return None
    session = candidate.predictor.session
    agreement = measure_agreement(session, candidate.reference)
    check_agreement(agreement, session, candidate.name)
    return agreement


def _require_device(candidate: Candidate, protocol: BenchProtocol) -> None:
    """Refuse a GPU's protocol for what has run, just now, without a GPU's clock."""
    session = candidate.predictor.session
    if protocol in DEVICE_PROTOCOLS and not session.device_ms():
        raise OptionError(
            f"--protocol {protocol} cannot time {candidate.name}.",
            f"It counts what a GPU's own clock says, and this runs on {session.device} in {session.backend}.",
            "Use --protocol host or network, or bench an engine.",
        )


def _path(predictor: DepthPredictor, frames: Sequence[Frame], config: BenchConfig) -> Stages:
    session = predictor.session
    if config.protocol != "host":
        feeds = [{name: array.copy() for name, array in predictor.prepare(frame).items()} for frame in frames]
        return [lambda index: session.infer(feeds[index % len(feeds)])]
    return [
        lambda index: predictor.prepare(frames[index % len(frames)]),
        session.infer,
        lambda outputs: predictor.finish(outputs, config.frame_hw),
    ]
