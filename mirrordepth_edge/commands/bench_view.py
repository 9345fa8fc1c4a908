"""What `mde bench` tells on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirrordepth_edge.bench.measure import BenchResult
    from mirrordepth_edge.config import BenchConfig
    from mirrordepth_edge.runtime import DepthPredictor

FEWEST_FRAMES = 4
"""At the lowest rate that is tried when the highest sustainable one is looked for."""
HIGHEST_HZ = 1000.0


def report(result: BenchResult, against: BenchResult | None = None) -> None:
    """A result in a few lines; its ratio to one that was timed in turn with it."""
    from mirrordepth_edge.bench.stats import ratio_interval
    from mirrordepth_edge.commands.terminal import console

    latency = result.latency
    on = result.device if result.device != "cpu" else result.computer
    console.print(f"{result.artefact}  {result.precision.upper()}  {result.backend} {result.backend_version} on {on}")
    console.print(f"from {result.boundary}")
    low_ms, high_ms = latency.p50_interval_ms
    console.print(
        f"latency ms: p50 {latency.p50_ms:.2f} ({low_ms:.2f} to {high_ms:.2f})  p90 {latency.p90_ms:.2f}  "
        f"p95 {latency.p95_ms:.2f}  p99 {latency.p99_ms:.2f}  min {latency.min_ms:.2f}  max {latency.max_ms:.2f}  "
        f"mean {latency.mean_ms:.2f}"
    )
    if len(result.stages) > 1:
        parts = "  ".join(f"{name} {own.p50_ms:.2f}" for name, own in result.stages.items())
        console.print(f"of that, p50 ms: {parts}")
    console.print(
        f"throughput: {latency.throughput_hz:.1f} frames/s over {latency.samples} frames, one after another, after "
        f"{result.warmup} to warm up; the harness itself takes {result.harness_us:.1f} us a frame"
    )
    if against is not None:
        ratio = ratio_interval(result.frames_ms, against.frames_ms, paired=True)
        console.print(ratio.in_words(f"as {against.artefact}"))
    for finding in result.findings:
        console.print(f"warning: {finding.what} {finding.cure}")
    if against is None:
        for remark in result.context.remarks():
            console.print(f"note: {remark}")


def report_stream(predictor: DepthPredictor, name: str, config: BenchConfig, fps: float, seconds: float) -> None:
    """Frames at a fixed rate, then the highest rate that the artefact keeps up with."""
    from mirrordepth_edge.bench.measure import camera_frames, warm_up
    from mirrordepth_edge.bench.stream import peak_rate, stream
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.deploy.parity import reference_frames

    frames = camera_frames(reference_frames(), config)

    def step(index: int) -> object:
        return predictor(frames[index % len(frames)])

    with errors.status("warming up"):
        warm_up([step], config.warmup)
    with errors.status(f"streaming at {fps:g} frames/s"):
        result = stream(step, rate_hz=fps, seconds=seconds)
    console.print(
        f"{name}, {result.frames} frames at {fps:g} a second: {result.results} results, {result.dropped} dropped"
    )
    jitter = "" if result.jitter_ms is None else f"; jitter {result.jitter_ms:.2f} ms"
    console.print(
        f"missed (no result before the next frame): {result.missed:.1%}; age of results ms: "
        f"p50 {result.age_p50_ms:.2f}  p99 {result.age_p99_ms:.2f}{jitter}"
    )
    with errors.status("looking for the highest rate"):
        lowest_hz = FEWEST_FRAMES / seconds
        peak = peak_rate(step, seconds=seconds, low_hz=lowest_hz, high_hz=HIGHEST_HZ)
    keeps_up = f"less than {lowest_hz:g}" if peak.rate_hz is None else f"{peak.rate_hz:.1f}"
    console.print(f"keeps up with {keeps_up} frames/s (at most {peak.most_missed:.0%} missed)")


def sidecar_name(path: Path, place: int) -> Path:
    """`path` for the first result, `NAME.2.json` for the second, and so on."""
    return path if not place else path.with_suffix(f".{place + 1}{path.suffix}")
