"""Throughput of one engine with several frames in flight.

One thread suffices: while the GPU processes a frame, the host finishes the previous one and prepares the next. The
engine is in memory once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, takewhile
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.artefact import Reference
from mirrordepth_edge.backends.base import Arrays, CheckedSession, Session
from mirrordepth_edge.bench.measure import Candidate, camera_frames, check_depth, warm_up
from mirrordepth_edge.bench.result import ThroughputMeasurement
from mirrordepth_edge.bench.stats import summarise
from mirrordepth_edge.bench.throughput import throughput_of_generator
from mirrordepth_edge.config import BenchConfig
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.machine.sampler import TelemetrySampler
from mirrordepth_edge.manifest import Parity
from mirrordepth_edge.predictor import DepthPredictor

Feeds = Mapping[str, npt.NDArray[Any]]


@runtime_checkable
class Queue(Protocol):
    """The methods of a session that keeps several frames in flight, such as `backends.engine.EngineSession`."""

    def submit(self, feeds: Feeds) -> None:
        """Start a frame; `feeds` are read before this returns."""

    def collect(self) -> Arrays:
        """Wait for the oldest frame. The outputs are valid until its slot is submitted to again."""


def infer_in_flight(session: Queue, feeds: Iterable[Feeds], max_in_flight: int) -> Iterator[Arrays]:
    """Run a session on `feeds`, with up to `max_in_flight` of them in flight.

    `feeds` are produced and outputs are consumed while the session works on up to `max_in_flight` - 1 other frames. If
    the iteration ends early, frames stay in flight and the session can only be closed.

    Yields:
        Outputs in order, each valid until the next is requested.
    """
    in_flight = 0
    for frame_feeds in feeds:
        session.submit(frame_feeds)
        in_flight += 1
        if in_flight == max_in_flight:
            yield session.collect()
            in_flight -= 1
    for _ in range(in_flight):
        yield session.collect()


class ConcurrentSession(CheckedSession):
    """Answers from each context in turn, while all other contexts work on another image.

    Args:
        session: keeps several frames in flight; the caller closes it.
        contexts: how many frames it keeps in flight.
    """

    def __init__(self, session: Session, contexts: int) -> None:
        self.backend, self.version, self.device = session.backend, session.version, session.device
        self.precision, self.inputs, self.outputs = session.precision, session.inputs, session.outputs
        self._queue, self._contexts, self._next = _require_queue(session), contexts, 0

    def infer(self, feeds: Feeds) -> Arrays:
        other = {name: np.ascontiguousarray(np.flip(array)) for name, array in feeds.items()}
        for context in range(self._contexts):
            self._queue.submit(feeds if context == self._next else other)
        outputs = [self._queue.collect() for _ in range(self._contexts)][self._next]
        self._next = (self._next + 1) % self._contexts
        return outputs


def bench_in_flight(
    candidate: Candidate, frames: Sequence[Frame], config: BenchConfig, in_flight: int, seconds: float
) -> ThroughputMeasurement:
    """Measure the throughput of one session that was opened for `in_flight` frames.

    Raises:
        GateError: as `bench`; every context is checked while the others are busy.
        OptionError: the session keeps only one frame in flight, or the time is not positive.
    """
    predictor = candidate.predictor
    session = _require_queue(predictor.session)
    at_size = camera_frames(frames, config)
    agreement = _check_contexts(candidate, at_size, in_flight)

    def work(numbers: Iterable[int]) -> Iterator[DepthMap]:
        feeds = (predictor.prepare(at_size[number % len(at_size)]) for number in numbers)
        return (predictor.finish(outputs, config.frame_hw) for outputs in infer_in_flight(session, feeds, in_flight))

    warm = False
    results = work(takewhile(lambda number: not warm, count()))
    warmup = warm_up([lambda index: next(results)], config.warmup)
    warm = True
    warmup += sum(1 for _ in results)  # the frames in flight
    with TelemetrySampler() as sampler:
        result = throughput_of_generator(work, seconds)
    return ThroughputMeasurement(
        **candidate.about(config),
        warmup=warmup,
        telemetry=sampler.telemetry(),
        agreement=agreement,
        in_flight=in_flight,
        arrangement=f"{in_flight} in one engine",
        seconds=result.seconds,
        latency=summarise(result.frames_ms),
        rate_hz=result.rate_hz,
        samples_ms=result.frames_ms,
    )


def _check_contexts(candidate: Candidate, frames: Sequence[Frame], in_flight: int) -> Parity | None:
    """Run `check_depth` on every context; `infer` alone would use only one."""
    predictor, reference = candidate.predictor, candidate.reference
    if reference is not None:
        reference = Reference(*(np.repeat(array, in_flight, axis=0) for array in (reference.images, reference.depth_m)))
    concurrent = DepthPredictor(ConcurrentSession(predictor.session, in_flight), predictor.model)
    checked = replace(candidate, predictor=concurrent, reference=reference)
    return check_depth(checked, [frame for frame in frames for _ in range(in_flight)])


def _require_queue(session: Session) -> Queue:
    if not isinstance(session, Queue):
        raise OptionError(
            f"{session.backend} cannot keep several frames in flight in one session.",
            "Only TensorRT engines can.",
            "Use several sessions: mirrordepth_edge.bench.measure.bench_throughput",
        )
    return session
