"""What the live loop costs over the bare engine, and how old its depth is: python benchmarks/live_loop.py

The camera is the synthetic pattern, paced. The bare engine gets frames at the same rate without a thread or a
hand-over (`bench.stream`); the loop is `run_live` with one output beside it, as `mde live` runs it. Both take turns,
so that what else the machine does meets both. Two figures are held against a goal:

- overhead, at most 5 %, median over the rounds: where the engine keeps up with the camera, how much older the median
  depth is in the loop; where it does not, how many more results a second the bare engine gives.
- age at its 99th percentile over all rounds, at most one period of the camera and 1.5 times the engine's median time.

CPU time per result is told beside them, since what else runs changes it least; the loop's holds all its threads, and
the drawing of the pattern.

Engines are models by name or file, and stand-ins that wait: `10ms` is an engine of 10 ms that leaves the CPU alone,
as a GPU does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.bench.stream import stream
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.live.loop import run_live
from mirrordepth_edge.live.result import LiveResult
from mirrordepth_edge.predictor import load
from mirrordepth_edge.sources.synthetic import SIZE_HW, SyntheticSource

MOST_OVERHEAD = 0.05
KEEPS_UP = 0.9
"""Share of a period that an engine may take to be called quick enough for it."""
Engine = Callable[[Frame], DepthMap]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One turn of the bare engine and one of the loop."""

    rate_hz: float
    """Of the camera."""
    engine_ms: list[float]
    """How long the bare engine took for each frame."""
    bare_hz: float
    loop_hz: float
    bare_ages_ms: list[float]
    loop_ages_ms: list[float]
    engine_cpu_ms: float
    """Per result, of all threads."""
    loop_cpu_ms: float

    @property
    def overhead(self) -> float:
        if median(self.engine_ms) < KEEPS_UP / self.rate_hz * 1e3:
            return median(self.loop_ages_ms) / median(self.bare_ages_ms) - 1
        return self.bare_hz / self.loop_hz - 1


class Nothing:
    """An output that takes every result and does nothing with it."""

    def show(self, result: LiveResult) -> None: ...


def stand_in(milliseconds: float) -> Engine:
    """An engine that waits, and gives one depth always."""
    depth_m = np.ones(SIZE_HW, np.float32)

    def engine(frame: Frame) -> DepthMap:
        time.sleep(milliseconds / 1e3)
        return depth_m

    return engine


def one_round(engine: Engine, rate_hz: float, seconds: float) -> Round:
    """Both in turn."""
    pattern = SyntheticSource(rate_hz=1000)
    frames = [pattern.read() for _ in range(8)]
    took_ms: list[float] = []
    cpu_ms: list[float] = []

    def step(number: int) -> None:
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        engine(frames[number % len(frames)])
        took_ms.append((time.perf_counter() - begin_s) * 1e3)
        cpu_ms.append((time.process_time() - begin_cpu_s) * 1e3)

    bare = stream(step, rate_hz=rate_hz, seconds=seconds)
    ages_ms: list[float] = []
    with SyntheticSource(rate_hz=rate_hz) as source:
        until_s, begin_cpu_s = time.perf_counter() + seconds, time.process_time()
        loop = run_live(
            source,
            lambda frame, time_s: engine(frame),
            lambda result: ages_ms.append(result.age_ms),
            outputs=[Nothing()],
            should_stop=lambda: time.perf_counter() > until_s,
        )
        end_cpu_s = time.process_time()
    if loop.rate_hz is None or bare.results < 2:
        raise SystemExit(f"{seconds:g} s are too short for two results at {rate_hz:g} Hz.")
    return Round(
        rate_hz=rate_hz,
        engine_ms=took_ms,
        bare_hz=float((bare.results - 1) / (bare.results_ms[-1] - bare.results_ms[0]) * 1e3),
        loop_hz=loop.rate_hz,
        bare_ages_ms=bare.ages_ms.tolist(),
        loop_ages_ms=ages_ms,
        engine_cpu_ms=sum(cpu_ms) / len(cpu_ms),
        loop_cpu_ms=(end_cpu_s - begin_cpu_s) * 1e3 / loop.frames,
    )


def row(name: str, rounds: list[Round]) -> str:
    """A line of the table: medians over the rounds, percentiles over all their frames, and whether goals are met."""

    def all_of(field: str) -> npt.NDArray[np.float64]:
        return np.concatenate([getattr(one, field) for one in rounds])

    engine_ms, bare_ms, loop_ms = (all_of(field) for field in ("engine_ms", "bare_ages_ms", "loop_ages_ms"))
    bare_hz, loop_hz, engine_cpu_ms, loop_cpu_ms = (
        median(getattr(one, field) for one in rounds)
        for field in ("bare_hz", "loop_hz", "engine_cpu_ms", "loop_cpu_ms")
    )
    overhead = median(one.overhead for one in rounds)
    low, high = np.percentile([one.overhead for one in rounds], (25, 75))
    limit_ms = 1e3 / rounds[0].rate_hz + 1.5 * np.median(engine_ms)
    bare_p99_ms, loop_p99_ms = (np.percentile(ages_ms, 99) for ages_ms in (bare_ms, loop_ms))
    return (
        f"| {name} | {rounds[0].rate_hz:g} | {np.median(engine_ms):.1f} | {bare_hz:.1f} / {loop_hz:.1f} "
        f"| {np.median(bare_ms):.1f} / {np.median(loop_ms):.1f} "
        f"| {overhead:+.1%} ({low:+.1%} … {high:+.1%}) | {'yes' if overhead <= MOST_OVERHEAD else 'NO'} "
        f"| {bare_p99_ms:.1f} / {loop_p99_ms:.1f} | {limit_ms:.1f} | {'yes' if loop_p99_ms <= limit_ms else 'NO'} "
        f"| {engine_cpu_ms:.1f} / {loop_cpu_ms:.1f} |"
    )


HEAD = (
    "| engine | camera, Hz | engine p50, ms | results/s bare / loop | age p50 bare / loop, ms "
    "| overhead (half of the rounds) | met | age p99 bare / loop, ms | goal, ms | met | CPU engine / loop, ms |\n"
    + "|---" * 11
    + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["nano", "10ms"], help="model, file, or such as 10ms")
    parser.add_argument("--rates", nargs="+", type=float, default=[15, 30, 60], help="of the camera, Hz")
    parser.add_argument("--seconds", type=float, default=4, help="of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(HEAD)
    for name in options.engines:
        with ExitStack() as stack:
            waits = name.removesuffix("ms")
            is_stand_in = waits != name and waits.replace(".", "", 1).isdecimal()
            engine = stand_in(float(waits)) if is_stand_in else stack.enter_context(load(name))
            for _ in range(10):  # buffers, kernels, clocks
                engine(np.zeros((*SIZE_HW, 3), np.uint8))
            for rate_hz in options.rates:
                rounds = [one_round(engine, rate_hz, options.seconds) for _ in range(options.rounds)]
                print(row(name, rounds), flush=True)


if __name__ == "__main__":
    main()
