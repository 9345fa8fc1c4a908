"""How many frames a second one engine gives that takes frames before it has answered earlier ones.

One thread does it all: while the GPU works on one frame, the host finishes the one before and prepares the next. So
neither waits for the other, as long as both keep up, and the engine is in memory once.
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
from mirrordepth_edge.bench.throughput import throughput_of_one
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
    """What a session has besides `infer` that keeps several frames in work, as `backends.engine.EngineSession` does."""

    def submit(self, feeds: Feeds) -> None:
        """Begin a frame; `feeds` are read before this returns."""

    def collect(self) -> Arrays:
        """Wait for the oldest frame; valid until as many later ones were submitted as the session keeps in work."""


def answers(session: Queue, feeds: Iterable[Feeds], most: int) -> Iterator[Arrays]:
    """The outputs of each of `feeds`, in order, with up to `most` in work.

    The next of `feeds` is made, and the outputs are used, while the session works on up to `most` - 1 others. Where
    that ends early, frames stay in work, and the session is of no more use than to be closed.

    Yields:
        Outputs that are valid until the next ones are asked for.
    """
    waiting = 0
    for each in feeds:
        session.submit(each)
        waiting += 1
        if waiting == most:
            yield session.collect()
            waiting -= 1
    for _ in range(waiting):
        yield session.collect()


class ConcurrentSession(CheckedSession):
    """Answers one by one, each by the next context, while all others work on another picture.

    Args:
        session: keeps frames in work; it stays its owner's.
        most: how many.
    """

    def __init__(self, session: Session, most: int) -> None:
        self.backend, self.version, self.device = session.backend, session.version, session.device
        self.precision, self.inputs, self.outputs = session.precision, session.inputs, session.outputs
        self._queue, self._most, self._turn = _require_queue(session), most, 0

    def infer(self, feeds: Feeds) -> Arrays:
        other = {name: np.ascontiguousarray(np.flip(array)) for name, array in feeds.items()}
        crowd = [feeds if place == self._turn else other for place in range(self._most)]
        for each in crowd:
            self._queue.submit(each)
        found = [self._queue.collect() for _ in crowd][self._turn]
        self._turn = (self._turn + 1) % self._most
        return found


def bench_in_flight(
    candidate: Candidate, frames: Sequence[Frame], config: BenchConfig, in_flight: int, seconds: float
) -> ThroughputMeasurement:
    """Frames a second of one session, opened for `in_flight` frames, that has so many in work.

    Raises:
        GateError: as `bench`; every context is looked at, with the others in work.
        OptionError: the session keeps one frame in work only, or there is no time.
    """
    predictor = candidate.predictor
    session = _require_queue(predictor.session)
    at_size = camera_frames(frames, config)
    agreement = _check_contexts(candidate, at_size, in_flight)

    def work(numbers: Iterable[int]) -> Iterator[DepthMap]:
        feeds = (predictor.prepare(at_size[number % len(at_size)]) for number in numbers)
        return (predictor.finish(outputs, config.frame_hw) for outputs in answers(session, feeds, in_flight))

    warm = False
    results = work(takewhile(lambda number: not warm, count()))
    warmup = warm_up([lambda index: next(results)], config.warmup)
    warm = True
    warmup += sum(1 for _ in results)  # those in work
    with TelemetrySampler() as sampler:
        result = throughput_of_one(work, seconds)
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
    """`check_depth` by each context; `infer` runs on one of them alone."""
    predictor, reference = candidate.predictor, candidate.reference
    if reference is not None:
        reference = Reference(*(np.repeat(each, in_flight, axis=0) for each in (reference.images, reference.depth_m)))
    concurrent = DepthPredictor(ConcurrentSession(predictor.session, in_flight), predictor.model)
    checked = replace(candidate, predictor=concurrent, reference=reference)
    return check_depth(checked, [frame for frame in frames for _ in range(in_flight)])


def _require_queue(session: Session) -> Queue:
    if not isinstance(session, Queue):
        raise OptionError(
            f"{session.backend} cannot keep several frames in work in one session.",
            "An engine can.",
            "Open it several times: mirrordepth_edge.bench.measure.bench_throughput",
        )
    return session
