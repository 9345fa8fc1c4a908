"""How many frames a second, where several are in work at once and none has to be quick."""

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
    """What got done."""

    seconds: float
    """From the common start to the end of the last frame."""
    frames_ms: npt.NDArray[np.float64]
    """Shape `[frames]`: how long each took, in order of their ends."""

    @property
    def rate_hz(self) -> float:
        """Frames a second."""
        return len(self.frames_ms) / self.seconds


def throughput(steps: Sequence[Callable[[int], object]], seconds: float) -> Throughput:
    """Run steps side by side, a thread each, that take frames from one counter until the time is up.

    Args:
        steps: called with a frame's number; each has buffers of its own and returns only when its result is in
            host memory. Warm them up before. What holds Python's lock does not overlap.
        seconds: how long frames are begun, above 0.

    Raises:
        OptionError: there is nothing to run, or no time for it.
    """
    _require_some(len(steps), seconds)
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
                begun_ns = perf_counter_ns()
                step(number)
                own.append((begun_ns, perf_counter_ns()))
        except BaseException as error:  # raised where the threads were started
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
    finally:  # Ctrl-C too
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    times_ns = np.array(sorted((pair for own in taken for pair in own), key=lambda pair: pair[1]))
    return Throughput(
        seconds=float((times_ns[-1, 1] - start_ns) / 1e9), frames_ms=(times_ns[:, 1] - times_ns[:, 0]) / 1e6
    )


def throughput_of_one(work: Callable[[Iterator[int]], Iterable[object]], seconds: float) -> Throughput:
    """Run, on this thread, work that has several frames going by itself, until the time is up.

    Args:
        work: takes frames' numbers, each when it begins that frame, and gives something for each, in order, when its
            result is in host memory. What was begun, it finishes. Warm it up before.
        seconds: how long frames are begun, above 0.

    Raises:
        OptionError: there is no time.
    """
    _require_some(1, seconds)
    begun_ns: list[int] = []
    ended_ns: list[int] = []
    start_ns = perf_counter_ns()

    def numbers() -> Iterator[int]:
        for number in count():
            now_ns = perf_counter_ns()
            if number and now_ns - start_ns > seconds * 1e9:
                return
            begun_ns.append(now_ns)
            yield number

    for _ in work(numbers()):
        ended_ns.append(perf_counter_ns())
    return Throughput(
        seconds=(ended_ns[-1] - start_ns) / 1e9, frames_ms=(np.array(ended_ns) - np.array(begun_ns)) / 1e6
    )


def _require_some(sessions: int, seconds: float) -> None:
    if not sessions or not seconds > 0:
        raise OptionError(
            f"{sessions} sessions for {seconds:g} s measure nothing.",
            "It needs one session and some time at least.",
            "--in-flight 2 --duration 5",
        )
