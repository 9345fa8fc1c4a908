"""The modes of `mde bench`: run a measurement, print it, write it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from mirrordepth_edge.artefact import PLAN_SUFFIXES
from mirrordepth_edge.bench.compare import compare, differences, markdown, parse_gate, read_result
from mirrordepth_edge.bench.in_flight import bench_in_flight
from mirrordepth_edge.bench.measure import Candidate, bench, bench_stream, bench_throughput, open_candidate
from mirrordepth_edge.bench.result import Measurement
from mirrordepth_edge.bench.stats import ratio_interval
from mirrordepth_edge.commands.bench import view
from mirrordepth_edge.commands.parameters import warn
from mirrordepth_edge.commands.terminal import console, errors
from mirrordepth_edge.config import BenchConfig, SessionOptions
from mirrordepth_edge.errors import GateError
from mirrordepth_edge.export.parity import reference_frames
from mirrordepth_edge.report.bench import bench_page
from mirrordepth_edge.report.html import check_name, save_page
from mirrordepth_edge.support.files import atomic_write, ensure_folder, write_json


@contextmanager
def open_candidates(models: Sequence[str], options: SessionOptions) -> Iterator[list[Candidate]]:
    """Open models for measuring, print their notes, and close them at the end."""
    options = replace(options, yields=len(models) > 1)
    with ExitStack() as stack:
        candidates = []
        for model in models:
            candidates.append(open_candidate(model, options))
            stack.enter_context(candidates[-1].predictor)
        # A model that is open several times has its notes printed once.
        for candidate in {candidate.name: candidate for candidate in candidates}.values():
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
    """Time one frame after another, several models interleaved."""
    gates = [parse_gate(text) for text in fail_if]
    check_outputs(json_file, html)
    with open_candidates(models, options) as candidates, view.counting(config.iterations * len(candidates)) as on_frame:
        results = bench(candidates, reference_frames(), config, on_frame)
    first, *others = results
    ratios = [ratio_interval(other.frames_ms, first.frames_ms, paired=True) for other in others]
    for place, result in enumerate(results):
        view.report(result, ratios[place - 1].describe(f"as {first.artefact}") if place else None)
    view.report_context(first, config.iterations * len(results))
    for place, result in enumerate(results):
        write(result, json_file and view.sidecar_name(json_file, place))
    if html is not None:
        save_page(html, bench_page(results, ratios, command=view.command_line()))
        console.print(f"wrote {html}")
    for gate in gates:
        if gate.base is not None and (other := differences(gate.base, first)):
            errors.print(f"warning: {gate.base.source} was measured differently: {'; '.join(other)}")
    if failed := [sentence for gate in gates if (sentence := gate.check(first.latency))]:
        raise GateError(
            f"{first.artefact} failed --fail-if.", "; ".join(failed), "Find what made it slower, or relax the gate."
        )


def stream(
    model: str,
    options: SessionOptions,
    config: BenchConfig,
    rates_hz: Sequence[float],
    seconds: float,
    json_file: Path | None,
) -> None:
    """Stream frames at fixed rates, then find the highest sustainable rate."""
    check_outputs(json_file)
    with open_candidates([model], options) as (candidate,):
        console.print(f"{candidate.name}, {seconds:g} s of frames at each rate")
        result = bench_stream(candidate, reference_frames(), config, rates_hz, seconds, view.report_stream)
    view.report_peak(result)
    write(result, json_file)


def throughput(
    model: str, options: SessionOptions, config: BenchConfig, in_flight: int, seconds: float, json_file: Path | None
) -> None:
    """Keep several frames in flight: in one engine, or in parallel sessions that share the CPU's threads."""
    check_outputs(json_file)
    if model.endswith(PLAN_SUFFIXES):
        with open_candidates([model], replace(options, in_flight=in_flight)) as (candidate,):
            result = bench_in_flight(candidate, reference_frames(), config, in_flight, seconds)
    else:
        if options.threads is None:
            options = replace(options, threads=max(1, (os.cpu_count() or 1) // in_flight))
        with open_candidates([model] * in_flight, options) as candidates:
            result = bench_throughput(candidates, reference_frames(), config, seconds)
    view.report_throughput(result)
    write(result, json_file)


def check_outputs(json_file: Path | None, html: Path | None = None) -> None:
    """Check before the measurement that its results can be written."""
    if html is not None:
        check_name(html, "--report")
    for path in (json_file, html):
        if path is not None:
            ensure_folder(path.parent)


def write(result: Measurement, json_file: Path | None) -> None:
    """Write a measurement as JSON if a file was given."""
    if json_file is not None:
        write_json(json_file, result.to_json())
        console.print(f"wrote {json_file}")


def compare_results(files: Sequence[Path], anyway: bool, markdown_file: Path | None) -> None:
    """Compare results with the first one, print the ratios, and write them as Markdown if a file was given."""
    baseline, *others = [read_result(path) for path in files]
    comparisons = [compare(baseline, other, anyway=anyway) for other in others]
    for comparison in comparisons:
        console.print(f"{comparison.second.source} against {baseline.source}: {comparison.verdict}")
        for difference in comparison.differences:
            console.print(f"  note: {difference}")
    if markdown_file is not None:
        with atomic_write(markdown_file) as temporary:
            temporary.write_text(markdown(comparisons), encoding="utf-8")
        console.print(f"wrote {markdown_file}")
