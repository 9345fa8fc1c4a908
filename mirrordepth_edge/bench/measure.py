"""Latency measurement: a declared timed section, a warm-up until times have settled, raw samples of every stage.

The timed section is from a uint8 frame of camera size to float32 depth of camera size, both in host memory. Its three
stages are timed separately: preprocess, network (with its copies to and from a device) and postprocess. The other
protocols (`BOUNDARIES`) time less of it, for comparison with other tools.
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
from mirrordepth_edge.backends.base import DEVICE_STAGES, Session
from mirrordepth_edge.backends.registry import open_artefact
from mirrordepth_edge.bench.result import BenchResult, StreamMeasurement, ThroughputMeasurement
from mirrordepth_edge.bench.stats import latency_warnings, stationary_from, summarise
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
MAX_WARMUP = 400
"""Frames after which timing starts even if times have not settled; `latency_warnings` then reports it."""
MIN_STREAM_FRAMES = 4
"""Frames at the lowest rate in the search for the highest sustained rate."""
MAX_RATE_HZ = 1000.0
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
"""The device's stages that a protocol counts."""

Stage = Callable[[Any], Any]
"""Takes the result of the previous stage; the first takes the index of the frame."""
Stages = Sequence[Stage]
"""The stages of a frame, in order."""


def time_interleaved(
    paths: Sequence[Stages], frames: int, after: Sequence[Callable[[], object]] = ()
) -> list[npt.NDArray[np.float64]]:
    """Time several paths interleaved: each frame passes all paths before the next frame.

    Args:
        paths: stages of each path. The first stage takes the index of the frame, from 0; the last must return only when
            its result is in host memory.
        after: for each path, a function to call after each of its frames, untimed; may be empty.

    Returns:
        Milliseconds for each path, shape `[frames, stages]`.
    """
    # A disturbance lasts longer than a frame, so interleaving spreads it over all paths.
    stamps = [np.empty((frames, len(path) + 1), np.int64) for path in paths]
    for index in range(frames):
        for number, (path, path_stamps) in enumerate(zip(paths, stamps, strict=True)):
            path_stamps[index, 0] = perf_counter_ns()
            value: Any = index
            for column, stage in enumerate(path, 1):
                value = stage(value)
                path_stamps[index, column] = perf_counter_ns()
            if after:
                after[number]()
    return [np.diff(path_stamps) / 1e6 for path_stamps in stamps]


def warm_up(path: Stages, frames: int | None) -> int:
    """Run `frames` untimed frames, or until times have settled if None; return how many ran."""
    if frames is not None:
        time_interleaved([path], frames)
        return frames
    samples = np.empty(0)
    while len(samples) < MAX_WARMUP:
        samples = np.append(samples, time_interleaved([path], WARMUP_CHUNK)[0].sum(axis=1))
        settled = stationary_from(samples)
        if settled is not None and settled <= len(samples) - WARMUP_CHUNK:
            break
    return len(samples)


def loop_overhead_us(stages: int, frames: int) -> float:
    """Measure the overhead of the loop per frame with empty stages, in microseconds."""
    began = perf_counter_ns()
    time_interleaved([[lambda value: value] * stages], frames)
    return (perf_counter_ns() - began) / 1e3 / frames


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An opened artefact to measure."""

    predictor: DepthPredictor
    name: str
    sha256: str
    reference: Reference | None = None
    """Its expected depth; None if none is stored with it."""

    def about(self, config: BenchConfig) -> dict[str, Any]:
        """Return the fields of a `Subject`."""
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
    """Open a model together with its reference depth.

    Raises:
        InputError, MissingError, OptionError: as `predictor.load`.
    """
    artefact = open_artefact(model, trust=options is not None and options.trust)
    reference = artefact.reference
    predictor = load(artefact, options, batch=batch)
    if reference is not None and reference.depth_m.shape[1:] != predictor.session.inputs[0].size[1:]:
        reference = None  # it is for the opt size, and this session has another
    return Candidate(predictor=predictor, name=artefact.name, sha256=artefact.sha256, reference=reference)


def bench(
    candidates: Sequence[Candidate],
    frames: Sequence[Frame],
    config: BenchConfig,
    on_frame: Callable[[], object] = lambda: None,
) -> list[BenchResult]:
    """Measure the latency of predictors; several are interleaved, frame by frame.

    Args:
        frames: real images, which are repeated cyclically.
        on_frame: called between frames, untimed. If it takes long, it disturbs the next frame.

    Raises:
        GateError: the depth is not finite and positive, or differs from the reference.
        OptionError: the protocol needs a GPU, and a candidate runs on the CPU.
    """
    at_size = camera_frames(frames, config)
    agreements = [check_depth(candidate, at_size) for candidate in candidates]
    for candidate in candidates:
        _require_device(candidate, config.protocol)
    paths = [_path(candidate.predictor, at_size, config) for candidate in candidates]
    warmups = [warm_up(path, config.warmup) for path in paths]
    recorders = [_DeviceRecorder(candidate.predictor.session, on_frame) for candidate in candidates]
    with TelemetrySampler() as sampler:
        host_ms = time_interleaved(paths, config.iterations, recorders)
    telemetry = sampler.telemetry()
    overhead_us = loop_overhead_us(len(paths[0]), config.iterations)
    results = []
    for index, candidate in enumerate(candidates):
        device_ms = recorders[index].samples_ms()
        stages = _stage_samples(config.protocol, host_ms[index], device_ms)
        samples_ms = np.stack(list(stages.values()), axis=1)
        total_ms = samples_ms.sum(axis=1)
        results.append(
            BenchResult(
                **candidate.about(config),
                warmup=warmups[index],
                telemetry=telemetry,
                agreement=agreements[index],
                latency=summarise(total_ms),
                stages={name: summarise(ms) for name, ms in stages.items()},
                device_stages={name: summarise(ms) for name, ms in device_ms.items()},
                findings=latency_warnings(total_ms),
                overhead_us=overhead_us,
                samples_ms=samples_ms,
            )
        )
    return results


class _DeviceRecorder:
    """Records the device's own times after each frame, then calls `on_frame`."""

    def __init__(self, session: Session, on_frame: Callable[[], object]) -> None:
        self._session, self._on_frame = session, on_frame
        self._rows: list[tuple[float, ...]] = []

    def __call__(self) -> None:
        self._rows.append(self._session.device_ms())
        self._on_frame()

    def samples_ms(self) -> dict[str, npt.NDArray[np.float64]]:
        """Milliseconds of each device stage, shape `[frames]`; empty without a device clock."""
        return dict(zip(DEVICE_STAGES, np.array(self._rows).T, strict=False))


def _stage_samples(
    protocol: BenchProtocol, host_ms: npt.NDArray[np.float64], device_ms: dict[str, npt.NDArray[np.float64]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Milliseconds of each stage that the protocol counts, shape `[frames]`.

    Args:
        host_ms: times of the path's stages on the host's clock, shape `[frames, stages]`.
        device_ms: times of the device's stages on its own clock.
    """
    if protocol in DEVICE_PROTOCOLS:
        return {name: device_ms[name] for name in DEVICE_PROTOCOLS[protocol]}
    return dict(zip(STAGES if protocol == "host" else STAGES[1:2], host_ms.T, strict=True))


def bench_stream(
    candidate: Candidate,
    frames: Sequence[Frame],
    config: BenchConfig,
    rates_hz: Sequence[float],
    seconds: float,
    on_result: Callable[[StreamResult], object] = lambda result: None,
) -> StreamMeasurement:
    """Measure a predictor with a simulated live camera at each rate, then search for the highest sustained rate.

    Raises:
        GateError: as `bench`.
        OptionError: a rate is not positive, or the time is too short for it.
    """
    step, agreement, warmup = _prepare_step(candidate, frames, config)
    streams = []
    with TelemetrySampler() as sampler:
        for rate_hz in rates_hz:
            streams.append(stream(step, rate_hz=rate_hz, seconds=seconds))
            on_result(streams[-1])
        peak = max_sustained_rate(step, seconds=seconds, low_hz=MIN_STREAM_FRAMES / seconds, high_hz=MAX_RATE_HZ)
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
    """Measure the throughput of parallel sessions of one artefact; for an engine, see `in_flight.bench_in_flight`.

    Raises:
        GateError: as `bench`.
        OptionError: there is no candidate, or the time is not positive.
    """
    prepared = [_prepare_step(candidate, frames, config) for candidate in candidates]
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


def _prepare_step(
    candidate: Candidate, frames: Sequence[Frame], config: BenchConfig
) -> tuple[Callable[[int], object], Parity | None, int]:
    """Check and warm up a candidate.

    Returns:
        A function that processes the frame of an index, the agreement with the reference, and the number of warm-up
        frames.
    """
    at_size = camera_frames(frames, config)
    agreement = check_depth(candidate, at_size)

    def step(index: int) -> object:
        return candidate.predictor(at_size[index % len(at_size)])

    return step, agreement, warm_up([step], config.warmup)


def camera_frames(frames: Sequence[Frame], config: BenchConfig) -> list[Frame]:
    """Resize frames to the size of the camera."""
    return [np.ascontiguousarray(resize_frame(frame, config.frame_hw)) for frame in frames]


def check_depth(candidate: Candidate, frames: Sequence[Frame]) -> Parity | None:
    """Compare a candidate's depth with its reference; return None if it has none.

    Raises:
        GateError: the difference is too large, or the depth of `frames` is not finite and positive.
    """
    for frame in frames:
        depth_m = candidate.predictor(frame)
        bad = ~np.isfinite(depth_m) | (depth_m <= 0)
        if bad.any():
            raise GateError(
                f"{candidate.name} outputs depth that is not finite and positive; it was not timed.",
                f"Bad pixels: {int(bad.sum())} of {depth_m.size}.",
                "Export it again; mde export compares its depth with PyTorch's.",
            )
    if candidate.reference is None:
        return None
    session = candidate.predictor.session
    agreement = measure_agreement(session, candidate.reference)
    check_agreement(agreement, session, candidate.name)
    return agreement


def _require_device(candidate: Candidate, protocol: BenchProtocol) -> None:
    """Refuse a GPU protocol for a session whose last frame has no times on a GPU's clock."""
    session = candidate.predictor.session
    if protocol in DEVICE_PROTOCOLS and not session.device_ms():
        raise OptionError(
            f"--protocol {protocol} cannot time {candidate.name}.",
            f"It needs times on a GPU's clock, but {session.backend} runs on {session.device}.",
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
