"""The modes of `mde bench`: what each takes, runs, tells and writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mirrordepth_edge.commands.bench import view
from mirrordepth_edge.commands.terminal import console, errors

if TYPE_CHECKING:
    from mirrordepth_edge.bench.measure import Candidate
    from mirrordepth_edge.bench.result import Measurement
    from mirrordepth_edge.config import BenchConfig, SessionOptions


@contextmanager
def opened(models: Sequence[str], options: SessionOptions) -> Iterator[list[Candidate]]:
    """Models ready to be measured, closed at the end; the user is told of what is unexpected of them."""
    from mirrordepth_edge.bench.measure import open_candidate
    from mirrordepth_edge.commands.parameters import warn

    options = replace(options, yields=len(models) > 1)
    with ExitStack() as stack:
        candidates = []
        for model in models:
            candidates.append(open_candidate(model, options))
            stack.enter_context(candidates[-1].predictor)
        for candidate in {each.name: each for each in candidates}.values():  # once, where one is open several times
            warn(candidate.predictor)
        yield candidates


def latency(
    models: Sequence[str],
    options: SessionOptions,
    config: BenchConfig,
    fail_if: Sequence[str],
    json_file: Path | None,
    html: Path | None,
) -> None:
    """One frame after another; several models in turn."""
    from mirrordepth_edge.bench.compare import differences, parse_gate
    from mirrordepth_edge.bench.measure import bench
    from mirrordepth_edge.bench.stats import ratio_interval
    from mirrordepth_edge.errors import GateError
    from mirrordepth_edge.export.parity import reference_frames

    gates = [parse_gate(text) for text in fail_if]
    check_outputs(json_file, html)
    with opened(models, options) as candidates, view.counting(config.iterations * len(candidates)) as on_frame:
        results = bench(candidates, reference_frames(), config, on_frame)
    first, *others = results
    ratios = [ratio_interval(other.frames_ms, first.frames_ms, paired=True) for other in others]
    for place, result in enumerate(results):
        view.report(result, ratios[place - 1].describe(f"as {first.artefact}") if place else None)
    view.report_context(first, config.iterations * len(results))
    for place, result in enumerate(results):
        write(result, json_file and view.sidecar_name(json_file, place))
    if html is not None:
        from mirrordepth_edge.report.bench import bench_page
        from mirrordepth_edge.report.html import save_page

        save_page(html, bench_page(results, ratios, command=view.command_line()))
        console.print(f"wrote {html}")
    for gate in gates:
        if gate.base is not None and (other := differences(gate.base, first)):
            errors.print(f"warning: {gate.base.source} was not measured alike: {'; '.join(other)}")
    if failed := [sentence for gate in gates if (sentence := gate.check(first.latency))]:
        raise GateError(
            f"{first.artefact} is not as fast as it must be.", "; ".join(failed), "Find what made it slower."
        )


def stream(
    model: str,
    options: SessionOptions,
    config: BenchConfig,
    rates_hz: Sequence[float],
    seconds: float,
    json_file: Path | None,
) -> None:
    """Frames at fixed rates, then the highest rate that the model keeps up with."""
    from mirrordepth_edge.bench.measure import bench_stream
    from mirrordepth_edge.export.parity import reference_frames

    check_outputs(json_file)
    with opened([model], options) as (candidate,):
        console.print(f"{candidate.name}, {seconds:g} s of frames at each rate")
        result = bench_stream(candidate, reference_frames(), config, rates_hz, seconds, view.report_stream)
    view.report_peak(result)
    write(result, json_file)


def throughput(
    model: str, options: SessionOptions, config: BenchConfig, in_flight: int, seconds: float, json_file: Path | None
) -> None:
    """Several frames in work: in one engine, or in sessions side by side, which share the CPU's threads."""
    from mirrordepth_edge.backends.registry import PLAN_SUFFIXES
    from mirrordepth_edge.bench.in_flight import bench_in_flight
    from mirrordepth_edge.bench.measure import bench_throughput
    from mirrordepth_edge.export.parity import reference_frames

    check_outputs(json_file)
    if model.endswith(PLAN_SUFFIXES):
        with opened([model], replace(options, in_flight=in_flight)) as (candidate,):
            result = bench_in_flight(candidate, reference_frames(), config, in_flight, seconds)
    else:
        if options.threads is None:
            options = replace(options, threads=max(1, (os.cpu_count() or 1) // in_flight))
        with opened([model] * in_flight, options) as candidates:
            result = bench_throughput(candidates, reference_frames(), config, seconds)
    view.report_throughput(result)
    write(result, json_file)


def check_outputs(json_file: Path | None, html: Path | None = None) -> None:
    """Find out before the measurement that its results can be written."""
    from mirrordepth_edge.support.files import ensure_folder

    if html is not None:
        from mirrordepth_edge.report.html import check_name

        check_name(html, "--report")
    for path in (json_file, html):
        if path is not None:
            ensure_folder(path.parent)


def write(result: Measurement, json_file: Path | None) -> None:
    """Store a measurement where that was asked for."""
    from mirrordepth_edge.support.files import write_json

    if json_file is not None:
        write_json(json_file, result.to_json())
        console.print(f"wrote {json_file}")
