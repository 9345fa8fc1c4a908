"""The card of a benchmark: one page with the figures, what speaks against them, and what it takes to repeat them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from mirrordepth_edge import __version__
from mirrordepth_edge.bench.measure import MOST_WARMUP
from mirrordepth_edge.bench.result import BenchResult
from mirrordepth_edge.bench.stats import Ratio
from mirrordepth_edge.bench.stream import MaxSustainedRate, StreamResult
from mirrordepth_edge.machine.device import installed_versions
from mirrordepth_edge.report import charts
from mirrordepth_edge.report.evaluation import PACKAGES
from mirrordepth_edge.report.html import described, render_page
from mirrordepth_edge.report.tables import Table
from mirrordepth_edge.report.telemetry import TelemetryTable, telemetry_table

Named = Mapping[str, BenchResult]

TIMES = ("mean", "min", "p90", "p95", "p99", "p99.9", "max")
PART_COLOURS = {"preprocess": 2, "network": 3, "postprocess": 4, "host to device": 5, "compute": 3, "device to host": 5}
"""Apart from those of the first two results; what has none is grey."""
REMAINDER = "not on the GPU"
"""Of the network's time, what its device does not account for."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A result in a few words."""

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
    """The card as one HTML file, which loads nothing.

    Args:
        results: at least one; the first is what the others, timed in turn with it, are held against.
        ratios: none, or `ratios[k]` of `results[k + 1]` over the first.
        streams: the first result's artefact behind a camera, a stream for each rate.
        peak: the highest rate that it keeps up with.
        made: when, in words; now where empty.
        command: what was typed; left out where empty.
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
            {name: list(enumerate(result.frames_ms.tolist(), 1)) for name, result in named.items()}, "frame", "ms"
        ),
        share_chart=charts.distribution(
            {name: result.frames_ms.tolist() for name, result in named.items()}, "ms", "frames at most so long, %"
        ),
        cures=_cures(named),
        runs=_runs(named),
        checked=[f"{name}: {_checked(result)}" for name, result in named.items()],
        method=list(_method(results)),
        rates=_rates(streams),
        age_chart=_age_chart(streams) if streams else None,
        peak=peak,
        command=command,
        environment=[
            *described(results[0].machine),
            ("mirrordepth-edge", __version__),
            *installed_versions(PACKAGES).items(),
        ],
    )


def _names(results: Sequence[BenchResult]) -> list[str]:
    """Artefacts' names, numbered where they are alike."""
    names = [result.artefact for result in results]
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, 1)]


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
    """Figures down, results across."""
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
            ("timed (frames)", *(f"{latency.samples}" for latency in latencies)),
            ("warm-up (frames)", *(f"{result.warmup}" for result in named.values())),
        ),
        notes=("With fewer than 1000 frames p99.9 is little but the maximum.",) if few else (),
    )


def _stages(named: Named) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Means of the stages by bar, in ms, and where bars of a device's own stages begin: below the network's."""
    rows: dict[str, dict[str, float]] = {}
    starts = {}
    for name, result in named.items():
        stages, own = (
            {stage: stats.mean_ms for stage, stats in each.items()} for each in (result.stages, result.device_stages)
        )
        if len(stages) > 1:
            rows[name] = stages
        if own and own.keys() != stages.keys():
            rest_ms = stages.get("network", 0.0) - sum(own.values())
            label = f"{name}, by the GPU's clock"
            rows[label] = own | ({REMAINDER: rest_ms} if rest_ms > 0 else {})
            starts[label] = stages.get("preprocess", 0.0)
    return rows, starts


def _cures(named: Named) -> list[tuple[list[str], str]]:
    """Findings with the cure that they share; what cures say in long brackets is said once."""
    found: dict[str, list[str]] = {}
    for name, result in named.items():
        for finding in result.findings:
            found.setdefault(finding.cure, []).append(f"{name}: {finding.what}" if len(named) > 1 else finding.what)
    told: set[str] = set()

    def once(brackets: re.Match[str]) -> str:
        known = brackets[0] in told
        told.add(brackets[0])
        return "(as above)" if known else brackets[0]

    return [(against, re.sub(r"\([^()]{40,}\)", once, cure)) for cure, against in found.items()]


def _runs(named: Named) -> list[TelemetryTable]:
    """What the machine did; results that were timed in turn have one context together."""
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


def _checked(result: BenchResult) -> str:
    agreement = result.agreement
    if agreement is None:
        return "depth is finite and above 0 m on every picture; nothing was stored with it to compare it with."
    return (
        f"{agreement.runner}, on {agreement.frames} frames: relative difference of depth {agreement.max_relative:.2g} "
        f"at most, {agreement.mean_relative:.2g} in the mean (limit: {agreement.limit})."
    )


def _method(results: Sequence[BenchResult]) -> Iterator[str]:
    """How it was measured, in sentences."""
    first = results[0]
    yield f"What is timed: {first.boundary}."
    yield "Frames follow one another without pause, and rotate through the reference pictures."
    if len(results) > 1:
        yield (
            "Each frame passes all artefacts, in turn, before the next one, so that what disturbs one disturbs all. "
            "A ratio is that of the medians; its interval resamples the same frames of both."
        )
    how_long = " and ".join(f"{result.warmup}" for result in results)
    rule = "as many as asked for" if first.config.warmup is not None else f"until times settled, at most {MOST_WARMUP}"
    yield f"Warm-up: {how_long} frames that are in no figure ({rule})."
    yield f"The loop itself, with stages that do nothing, costs {first.overhead_us:.2g} µs a frame."
    yield (
        "Intervals of 95 % come from the moving-block bootstrap (Künsch 1989): runs of n^(1/3) neighbouring frames, "
        "resampled 1000 times. Percentiles interpolate linearly. Throughput is 1 over the mean. The coefficient of "
        "variation is the standard deviation over the mean."
    )


def _rates(streams: Sequence[StreamResult]) -> Table:
    """Figures down, rates across."""

    def row(label: str, digits: int, values: Sequence[float | None]) -> tuple[str, ...]:
        return (label, *("too few results" if value is None else f"{value:.{digits}f}" for value in values))

    return Table(
        header=("", *(_at(each) for each in streams)),
        rows=(
            row("offered (frames)", 0, [each.frames for each in streams]),
            row("dropped (frames)", 0, [each.dropped for each in streams]),
            row("missed (%)", 1, [100 * each.deadline_miss_rate for each in streams]),
            row("age of results, p50 (ms)", 2, [each.age_p50_ms for each in streams]),
            row("age of results, p99 (ms)", 2, [each.age_p99_ms for each in streams]),
            row("held age, p50 (ms)", 2, [each.age_of_information_p50_ms for each in streams]),
            row("held age, p99 (ms)", 2, [each.age_of_information_p99_ms for each in streams]),
            row("jitter (ms)", 2, [each.jitter_ms for each in streams]),
        ),
    )


def _at(stream: StreamResult) -> str:
    return f"at {stream.rate_hz:g} frames/s"


def _age_chart(streams: Sequence[StreamResult]) -> charts.Chart:
    ages = {
        _at(each): list(zip((each.results_ms / 1e3).tolist(), each.ages_ms.tolist(), strict=True)) for each in streams
    }
    return charts.scatter(ages, "s", "age of the result, ms")
