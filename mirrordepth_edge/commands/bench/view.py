"""Terminal output of `mde bench`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mirrordepth_edge.bench.result import BenchResult, Measurement, StreamMeasurement, ThroughputMeasurement
from mirrordepth_edge.bench.stats import LatencyStats
from mirrordepth_edge.bench.stream import StreamResult
from mirrordepth_edge.commands.terminal import console, errors

REDRAW_S = 0.5


@contextmanager
def counting(frames: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar; the yielded function counts a frame."""
    # Redrawn between frames and at most twice a second: a refresh thread would disturb the timing.
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, console=errors, transient=True, auto_refresh=False)
    task, done, drawn_s = progress.add_task("", total=frames), 0, monotonic()

    def on_frame() -> None:
        nonlocal done, drawn_s
        done += 1
        if monotonic() - drawn_s > REDRAW_S:
            progress.update(task, completed=done, refresh=True)
            drawn_s = monotonic()

    with progress:
        yield on_frame


def report(result: BenchResult, ratio: str | None = None) -> None:
    """Print a latency result, and its ratio to the interleaved baseline."""
    _head(result)
    console.print(f"from {result.boundary}")
    console.print(f"latency ms: {_figures(result.latency)}")
    for title, stages in (("stages", result.stages), ("on the GPU", result.device_stages)):
        if len(stages) > 1:
            console.print(f"{title}, p50 ms: {'  '.join(f'{name} {own.p50_ms:.2f}' for name, own in stages.items())}")
    console.print(
        f"throughput: {result.latency.throughput_hz:.1f} frames/s over {result.latency.samples} sequential "
        f"frames; {result.warmup} for warm-up; harness overhead {result.overhead_us:.1f} us per frame"
    )
    _agreement(result)
    if ratio is not None:
        console.print(ratio)
    for finding in result.findings:
        console.print(f"warning: {finding.what}")
    for cure in dict.fromkeys(finding.cure for finding in result.findings):
        console.print(f"  next: {cure}")


def report_throughput(result: ThroughputMeasurement) -> None:
    """Print throughput with several frames in flight."""
    _head(result)
    console.print(
        f"throughput: {result.rate_hz:.1f} frames/s with {result.in_flight} in flight "
        f"({result.arrangement}), over {len(result.samples_ms)} frames in {result.seconds:.1f} s; {result.boundary}"
    )
    console.print(f"latency ms: {_figures(result.latency)}")
    _agreement(result)
    report_context(result, len(result.samples_ms))


def report_stream(result: StreamResult) -> None:
    """Print the result of one rate of a stream."""
    jitter = "" if result.jitter_ms is None else f"; jitter {result.jitter_ms:.2f} ms"
    console.print(
        f"{result.rate_hz:g} frames/s: {result.frames} frames, {result.results} results, {result.dropped} dropped; "
        f"missed (no result before the next frame): {result.deadline_miss_rate:.1%}; age of results ms: "
        f"p50 {result.age_p50_ms:.2f}  p99 {result.age_p99_ms:.2f}{jitter}"
    )


def report_peak(result: StreamMeasurement) -> None:
    """Print the highest sustainable rate and the machine's telemetry."""
    peak = result.peak
    sustained = f"less than {peak.tried[0].rate_hz:g}" if peak.rate_hz is None else f"{peak.rate_hz:.1f}"
    console.print(f"sustainable rate: {sustained} frames/s (at most {peak.max_deadline_miss_rate:.0%} missed)")
    _agreement(result)
    report_context(result)


def report_context(result: Measurement, frames: int | None = None) -> None:
    """Print energy per frame if `frames` were timed, and telemetry that makes the figures hard to reproduce."""
    joules = None if frames is None else result.telemetry.joules_per_frame(frames)
    if isinstance(joules, float):
        console.print(f"energy: {joules:.3f} J per frame, including idle power ({result.telemetry.power[0]})")
    for remark in result.telemetry.remarks():
        console.print(f"note: {remark}")


def sidecar_name(path: Path, place: int) -> Path:
    """Return `path` for the first result, `NAME.2.json` for the second, and so on."""
    return path if not place else path.with_suffix(f".{place + 1}{path.suffix}")


def command_line() -> str:
    """Return the command as typed, for a report."""
    return shlex.join(["mde", *sys.argv[1:]])


def _head(result: Measurement) -> None:
    on = result.device if result.device != "cpu" else result.computer
    console.print(f"{result.artefact}  {result.precision.upper()}  {result.backend} {result.backend_version} on {on}")


def _figures(latency: LatencyStats) -> str:
    low_ms, high_ms = latency.p50_interval_ms
    return (
        f"p50 {latency.p50_ms:.2f} ({low_ms:.2f} to {high_ms:.2f})  p90 {latency.p90_ms:.2f}  "
        f"p95 {latency.p95_ms:.2f}  p99 {latency.p99_ms:.2f}  p99.9 {latency.p999_ms:.2f}  "
        f"min {latency.min_ms:.2f}  max {latency.max_ms:.2f}  "
        f"mean {latency.mean_ms:.2f}  variation {latency.variation:.0%}"
    )


def _agreement(result: Measurement) -> None:
    if result.agreement is None:
        console.print("depth: finite and positive; not compared: this file has no stored reference")
        return
    agreement = result.agreement
    console.print(
        f"depth: worst pixel {agreement.max_relative:.1e}, mean {agreement.mean_relative:.1e} relative to PyTorch's at "
        f"export, over {agreement.frames} frames (limit: {agreement.limit})"
    )
