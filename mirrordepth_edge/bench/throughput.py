"""Throughput with several frames in flight."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter_ns

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Frames that were processed in a period."""

    seconds: float
    """From the start to the end of the last frame."""
    frames_ms: npt.NDArray[np.float64]
    """Latency of each frame in order of completion, shape `[frames]`."""

    @property
    def rate_hz(self) -> float:
        """Frames per second."""
        return len(self.frames_ms) / self.seconds


def throughput(steps: Sequence[Callable[[int], object]], seconds: float) -> Throughput:
    """Run steps in parallel, one thread each, which take frames from a shared counter.

    Args:
        steps: called with the index of a frame; each has its own buffers and returns only when its result is in host
            memory. Warm them up first. Code that holds the GIL does not overlap.
        seconds: how long frames are started, above 0.

    Raises:
        OptionError: there are no steps, or the time is not positive.
    """
    _require_work(len(steps), seconds)
    taken: list[list[tuple[int, int]]] = [[] for _ in steps]
    failed: list[BaseException] = []
    numbers, lock = count(), threading.Lock()
    ready = threading.Barrier(len(steps) + 1)
    stop = threading.Event()

    def work(step: Callable[[int], object], own: list[tuple[int, int]]) -> None:
        ready.wait()
        try:
            # One frame is the least, also where a busy machine wakes this thread after the time is up.
            while not stop.is_set() or not (own or failed):
                with lock:
                    number = next(numbers)
                started_ns = perf_counter_ns()
                step(number)
                own.append((started_ns, perf_counter_ns()))
        except BaseException as error:  # raised again in the calling thread
            failed.append(error)
            stop.set()

    threads = [
        threading.Thread(target=work, args=pair, name="mde-throughput", daemon=True)
        for pair in zip(steps, taken, strict=True)
    ]
    for thread in threads:
        thread.start()
    ready.wait()
    start_ns = perf_counter_ns()
    try:
        stop.wait(seconds)
    finally:  # also on Ctrl-C
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    times_ns = np.array(sorted((pair for own in taken for pair in own), key=lambda pair: pair[1]))
    return Throughput(
        seconds=float((times_ns[-1, 1] - start_ns) / 1e9), frames_ms=(times_ns[:, 1] - times_ns[:, 0]) / 1e6
    )


def throughput_of_generator(work: Callable[[Iterator[int]], Iterable[object]], seconds: float) -> Throughput:
    """Run a generator that keeps several frames in flight by itself, on this thread.

    Args:
        work: takes the index of a frame when it starts that frame, and yields once per frame, in order, when the
            result is in host memory. It finishes all frames that it has started. Warm it up first.
        seconds: how long frames are started, above 0.

    Raises:
        OptionError: the time is not positive.
    """
    _require_work(1, seconds)
    started_ns: list[int] = []
    ended_ns: list[int] = []
    start_ns = perf_counter_ns()

    def numbers() -> Iterator[int]:
        for number in count():
            now_ns = perf_counter_ns()
            if number and now_ns - start_ns > seconds * 1e9:
                return
            started_ns.append(now_ns)
            yield number

    for _ in work(numbers()):
        ended_ns.append(perf_counter_ns())
    return Throughput(
        seconds=(ended_ns[-1] - start_ns) / 1e9, frames_ms=(np.array(ended_ns) - np.array(started_ns)) / 1e6
    )


def _require_work(sessions: int, seconds: float) -> None:
    if not sessions or not seconds > 0:
        raise OptionError(
            f"Throughput cannot be measured with {sessions} sessions for {seconds:g} s.",
            "It needs at least one session and a positive duration.",
            "--in-flight 2 --duration 5",
        )
