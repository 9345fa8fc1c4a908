"""Measure the overhead of the live loop over the bare engine, and the age of its depth.

    python benchmarks/live_loop.py

The camera is the synthetic pattern at a fixed rate. The bare engine gets frames at the same rate without threads
(`bench.stream`). The loop is `run_live` with one output, as in `mde live`. Rounds of both alternate, so that other load
affects both. Two values have a goal:

- overhead, at most 5 %, median over the rounds. If the engine sustains the camera rate: increase of the median age of
  depth in the loop. Otherwise: increase of the results per second of the bare engine over the loop.
- p99 of the age over all rounds, at most one camera period plus 1.5 times the engine's median time.

CPU time per result is reported too, because other load affects it least. For the loop, it includes all threads and the
drawing of the pattern.

Engines are models by name or file, or simulated: `10ms` is an engine that sleeps for 10 ms, as if a GPU did the work.
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

MAX_OVERHEAD = 0.05
MAX_PERIOD_SHARE = 0.9
"""Engine time, as a share of the camera period, up to which the engine sustains the camera rate."""
Engine = Callable[[Frame], DepthMap]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One run of the bare engine and one of the loop."""

    rate_hz: float
    """Of the camera."""
    engine_ms: list[float]
    """Times of the bare engine per frame."""
    bare_hz: float
    loop_hz: float
    bare_ages_ms: list[float]
    loop_ages_ms: list[float]
    engine_cpu_ms: float
    """Per result, of all threads."""
    loop_cpu_ms: float

    @property
    def overhead(self) -> float:
        if median(self.engine_ms) < MAX_PERIOD_SHARE / self.rate_hz * 1e3:
            return median(self.loop_ages_ms) / median(self.bare_ages_ms) - 1
        return self.bare_hz / self.loop_hz - 1


class NullOutput:
    """An output that ignores every result."""

    def show(self, result: LiveResult) -> None: ...


def simulated_engine(milliseconds: float) -> Engine:
    """Create an engine that sleeps and returns constant depth."""
    depth_m = np.ones(SIZE_HW, np.float32)

    def engine(frame: Frame) -> DepthMap:
        time.sleep(milliseconds / 1e3)
        return depth_m

    return engine


def run_round(engine: Engine, rate_hz: float, seconds: float) -> Round:
    """Run the bare engine, then the loop."""
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
            outputs=[NullOutput()],
            should_stop=lambda: time.perf_counter() > until_s,
        )
        end_cpu_s = time.process_time()
    if loop.rate_hz is None or bare.results < 2:
        raise SystemExit(f"Fewer than two results in {seconds:g} s at {rate_hz:g} Hz. Raise --seconds.")
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
    """Format a line of the table: medians over the rounds, percentiles over all frames, and whether goals are met."""

    def concatenate(field: str) -> npt.NDArray[np.float64]:
        return np.concatenate([getattr(one, field) for one in rounds])

    engine_ms, bare_ms, loop_ms = (concatenate(field) for field in ("engine_ms", "bare_ages_ms", "loop_ages_ms"))
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
        f"| {overhead:+.1%} ({low:+.1%} … {high:+.1%}) | {'yes' if overhead <= MAX_OVERHEAD else 'NO'} "
        f"| {bare_p99_ms:.1f} / {loop_p99_ms:.1f} | {limit_ms:.1f} | {'yes' if loop_p99_ms <= limit_ms else 'NO'} "
        f"| {engine_cpu_ms:.1f} / {loop_cpu_ms:.1f} |"
    )


HEAD = (
    "| engine | camera, Hz | engine p50, ms | results/s bare / loop | age p50 bare / loop, ms "
    "| overhead (quartiles) | met | age p99 bare / loop, ms | goal, ms | met | CPU engine / loop, ms |\n"
    + "|---" * 11
    + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engines", nargs="+", default=["nano", "10ms"], help="model, file, or a duration such as 10ms"
    )
    parser.add_argument("--rates", nargs="+", type=float, default=[15, 30, 60], help="camera rates (Hz)")
    parser.add_argument("--seconds", type=float, default=4, help="duration of each run")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(HEAD)
    for name in options.engines:
        with ExitStack() as stack:
            duration = name.removesuffix("ms")
            simulated = duration != name and duration.replace(".", "", 1).isdecimal()
            engine = simulated_engine(float(duration)) if simulated else stack.enter_context(load(name))
            for _ in range(10):  # warm-up
                engine(np.zeros((*SIZE_HW, 3), np.uint8))
            for rate_hz in options.rates:
                rounds = [run_round(engine, rate_hz, options.seconds) for _ in range(options.rounds)]
                print(row(name, rounds), flush=True)


if __name__ == "__main__":
    main()
