"""The report of a benchmark: one page with the results, warnings, and the information to reproduce them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from mirrordepth_edge import __version__
from mirrordepth_edge.bench.measure import MAX_WARMUP
from mirrordepth_edge.bench.result import BenchResult
from mirrordepth_edge.bench.stats import Ratio
from mirrordepth_edge.bench.stream import MaxSustainedRate, StreamResult
from mirrordepth_edge.machine.device import installed_versions
from mirrordepth_edge.report import charts
from mirrordepth_edge.report.evaluation import PACKAGES
from mirrordepth_edge.report.html import describe_machine, render_page
from mirrordepth_edge.report.tables import Table
from mirrordepth_edge.report.telemetry import TelemetryTable, telemetry_table

Named = Mapping[str, BenchResult]

TIMES = ("mean", "min", "p90", "p95", "p99", "p99.9", "max")
PART_COLOURS = {"preprocess": 2, "network": 3, "postprocess": 4, "host to device": 5, "compute": 3, "device to host": 5}
"""Colours of stages, different from those of the first two results; other parts are grey."""
REMAINDER = "not on the GPU"
"""The network's time that the device's stages do not cover."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The headline of a result."""

    p50: str
    more: str
    what: str
    where: str


def bench_page(
    results: Sequence[BenchResult],
    ratios: Sequence[Ratio] = (),
    *,
    streams: Sequence[StreamResult] = (),
    peak: MaxSustainedRate | None = None,
    made: str = "",
    command: str = "",
) -> str:
    """Render the report as a self-contained HTML page.

    Args:
        results: at least one; the first is the reference of the comparison.
        ratios: empty, or `ratios[k]` is of `results[k + 1]` over the first.
        streams: the first artefact with a simulated live camera, one stream per rate.
        peak: the highest sustained rate.
        made: date and time; now if empty.
        command: the command line; omitted if empty.
    """
    named = dict(zip(_names(results), results, strict=True))
    first, *others = named
    digits = 2 if min(result.latency.p50_ms for result in results) >= 10 else 3
    parts, starts = _stages(named)
    return render_page(
        "bench.html.j2",
        named=named,
        made=made or f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        heads=[_head(name, result, digits) for name, result in named.items()],
        ratios=[(name, ratio.describe(f"as {first}")) for name, ratio in zip(others, ratios, strict=bool(ratios))],
        figures=_figures(named, digits),
        bars=charts.bars(parts, starts) if parts else (),
        part_colours=PART_COLOURS,
        digits=digits,
        frame_chart=charts.scatter(
            {name: list(enumerate(result.frames_ms.tolist(), 1)) for name, result in named.items()},
            "frame",
            "latency, ms",
        ),
        share_chart=charts.distribution(
            {name: result.frames_ms.tolist() for name, result in named.items()}, "latency, ms", "share of frames, %"
        ),
        warnings=_warnings(named),
        runs=_runs(named),
        checks=[f"{name}: {_describe_check(result)}" for name, result in named.items()],
        method=list(_method(results)),
        rates=_rates(streams),
        age_chart=_age_chart(streams) if streams else None,
        peak=peak,
        command=command,
        environment=[
            *describe_machine(results[0].machine),
            ("mirrordepth-edge", __version__),
            *installed_versions(PACKAGES).items(),
        ],
    )


def _names(results: Sequence[BenchResult]) -> list[str]:
    """Names of the artefacts; equal names are numbered."""
    names = [result.artefact for result in results]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def _head(name: str, result: BenchResult, digits: int) -> Head:
    low_ms, high_ms = result.latency.p50_interval_ms
    return Head(
        p50=f"{result.latency.p50_ms:.{digits}f} ms",
        more=f"median of {result.latency.samples} frames, 95 % interval {low_ms:.{digits}f} to {high_ms:.{digits}f} ms",
        what=f"{name}, {result.precision.upper()}",
        where=f"{result.backend} {result.backend_version} on "
        + (result.computer if result.device == "cpu" else result.device),
    )


def _figures(named: Named, digits: int) -> Table:
    """A row per statistic, a column per result."""
    latencies = [result.latency for result in named.values()]

    def times(field: str) -> list[str]:
        return [f"{getattr(latency, field):.{digits}f}" for latency in latencies]

    intervals = [" to ".join(f"{end:.{digits}f}" for end in latency.p50_interval_ms) for latency in latencies]
    few = any(latency.samples < 1000 for latency in latencies)
    return Table(
        header=("", *named),
        rows=(
            ("p50 (ms)", *times("p50_ms")),
            ("95 % interval of p50 (ms)", *intervals),
            *((f"{name} (ms)", *times(f"{name.replace('.', '')}_ms")) for name in TIMES),
            ("throughput (frames/s)", *(f"{latency.throughput_hz:.1f}" for latency in latencies)),
            ("coefficient of variation (%)", *(f"{100 * latency.variation:.1f}" for latency in latencies)),
            ("timed frames", *(f"{latency.samples}" for latency in latencies)),
            ("warm-up frames", *(f"{result.warmup}" for result in named.values())),
        ),
        notes=("With fewer than 1000 frames, p99.9 is close to the maximum.",) if few else (),
    )


def _stages(named: Named) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Mean times of the stages by bar, in ms, and the start of the bars of device stages: below the network's bar."""
    rows: dict[str, dict[str, float]] = {}
    starts = {}
    for name, result in named.items():
        host, device = (
            {stage: stats.mean_ms for stage, stats in times.items()} for times in (result.stages, result.device_stages)
        )
        if len(host) > 1:
            rows[name] = host
        if device and device.keys() != host.keys():
            rest_ms = host.get("network", 0.0) - sum(device.values())
            label = f"{name}, on the GPU's clock"
            rows[label] = device | ({REMAINDER: rest_ms} if rest_ms > 0 else {})
            starts[label] = host.get("preprocess", 0.0)
    return rows, starts


def _warnings(named: Named) -> list[tuple[list[str], str]]:
    """Group warnings by their cure; long text in parentheses is not repeated."""
    groups: dict[str, list[str]] = {}
    for name, result in named.items():
        for warning in result.findings:
            groups.setdefault(warning.cure, []).append(f"{name}: {warning.what}" if len(named) > 1 else warning.what)
    seen: set[str] = set()

    def shorten_repeated(parentheses: re.Match[str]) -> str:
        known = parentheses[0] in seen
        seen.add(parentheses[0])
        return "(as above)" if known else parentheses[0]

    return [(warnings, re.sub(r"\([^()]{40,}\)", shorten_repeated, cure)) for cure, warnings in groups.items()]


def _runs(named: Named) -> list[TelemetryTable]:
    """One table per measurement; interleaved results share their telemetry."""
    sharing: dict[int, list[str]] = {}
    for name, result in named.items():
        sharing.setdefault(id(result.telemetry), []).append(name)
    return [
        telemetry_table(
            named[names[0]].telemetry,
            of=", ".join(names),
            frames=sum(named[name].latency.samples for name in names),
            artefacts=len(names),
        )
        for names in sharing.values()
    ]


def _describe_check(result: BenchResult) -> str:
    agreement = result.agreement
    if agreement is None:
        return "depth is finite and above 0 m on every image; no reference depth is stored with it."
    return (
        f"{agreement.runner}, on {agreement.frames} frames: relative difference of depth: maximum "
        f"{agreement.max_relative:.2g}, mean {agreement.mean_relative:.2g} (limit: {agreement.limit})."
    )


def _method(results: Sequence[BenchResult]) -> Iterator[str]:
    """Describe the method in sentences."""
    first = results[0]
    yield f"Timed section: {first.boundary}."
    yield "Closed loop: the next frame starts when the previous one ends. The reference images are repeated cyclically."
    if len(results) > 1:
        yield (
            "The artefacts are interleaved, frame by frame, so that a disturbance affects all of them. A ratio is that "
            "of the medians; its interval resamples the same frames of both."
        )
    counts = " and ".join(f"{result.warmup}" for result in results)
    rule = "as requested" if first.config.warmup is not None else f"until times settled, at most {MAX_WARMUP}"
    yield f"Warm-up: {counts} untimed frames ({rule})."
    yield f"Overhead of the loop: {first.overhead_us:.2g} µs per frame, measured with empty stages."
    yield (
        "Intervals of 95 % come from the moving-block bootstrap (Künsch 1989): blocks of n^(1/3) neighbouring frames, "
        "resampled 1000 times. Percentiles interpolate linearly. Throughput is 1 over the mean. The coefficient of "
        "variation is the standard deviation over the mean."
    )


def _rates(streams: Sequence[StreamResult]) -> Table:
    """A row per statistic, a column per rate."""

    def row(label: str, digits: int, values: Sequence[float | None]) -> tuple[str, ...]:
        return (label, *("too few results" if value is None else f"{value:.{digits}f}" for value in values))

    return Table(
        header=("", *(_rate_label(stream) for stream in streams)),
        rows=(
            row("frames", 0, [stream.frames for stream in streams]),
            row("dropped frames", 0, [stream.dropped for stream in streams]),
            row("deadlines missed (%)", 1, [100 * stream.deadline_miss_rate for stream in streams]),
            row("age of results, p50 (ms)", 2, [stream.age_p50_ms for stream in streams]),
            row("age of results, p99 (ms)", 2, [stream.age_p99_ms for stream in streams]),
            row("age of information, p50 (ms)", 2, [stream.age_of_information_p50_ms for stream in streams]),
            row("age of information, p99 (ms)", 2, [stream.age_of_information_p99_ms for stream in streams]),
            row("jitter (ms)", 2, [stream.jitter_ms for stream in streams]),
        ),
    )


def _rate_label(stream: StreamResult) -> str:
    return f"at {stream.rate_hz:g} frames/s"


def _age_chart(streams: Sequence[StreamResult]) -> charts.Chart:
    ages = {
        _rate_label(stream): list(zip((stream.results_ms / 1e3).tolist(), stream.ages_ms.tolist(), strict=True))
        for stream in streams
    }
    return charts.scatter(ages, "time, s", "age of the result, ms")
