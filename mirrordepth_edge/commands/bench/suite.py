"""`mde bench --suite`: several cases in turn, as a table."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from mirrordepth_edge.bench.measure import Candidate
from mirrordepth_edge.bench.suite import Row, SuiteResult, load_suite, measure, open_cases, store
from mirrordepth_edge.commands.bench.view import counting, report_context
from mirrordepth_edge.commands.terminal import console, print_table, progress_bar
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.export.parity import reference_frames
from mirrordepth_edge.report.tables import Table
from mirrordepth_edge.support.files import ensure_folder


def run_suite(name_or_path: str, model: str, options: SessionOptions, output: Path | None) -> None:
    """Measure a suite, print a table, and write the results.

    Args:
        name_or_path: Name or file of the suite.
        model: Model of the cases that name none.
        options: Device and CLIP weights.
        output: Folder for the results, as `DEVICE/SUITE-CASE.json`.

    Raises:
        OptionError, InputError: The suite does not exist or is not valid.
        MdeError: None of its cases can be measured here; the reason is that of the first case.
    """
    name, suite = load_suite(name_or_path)
    if output is not None:
        ensure_folder(output)
    frames = reference_frames()
    console.print(f"{suite.title}\n{suite.purpose}")
    with ExitStack() as stack:
        with progress_bar() as bar:
            task = bar.add_task("", total=len(suite.case))
            cases = stack.enter_context(
                open_cases(
                    suite,
                    frames,
                    model=model,
                    options=options,
                    on_stage=lambda ready, stage: bar.update(task, completed=ready, description=stage),
                )
            )
        ready = sum(isinstance(case, Candidate) for case in cases.values())
        with counting(ready * suite.iterations) as on_frame:
            result = measure(name, suite, cases, frames, on_frame)
    _report(result)
    problems = [row.problem for row in result.rows if row.problem is not None]
    if len(problems) == len(result.rows):
        raise problems[0]
    for path in store(result, output) if output is not None else ():
        console.print(f"wrote {path}")


def _report(result: SuiteResult) -> None:
    print_table(suite_table(result))
    if scaling := result.scaling():
        console.print(f"scaling: {scaling}")
    for place, measured in result.measured:
        for finding in measured.findings:
            console.print(f"warning: {place.case}: {finding.what}")
    cures = dict.fromkeys(finding.cure for _, measured in result.measured for finding in measured.findings)
    for cure in cures:
        console.print(f"  next: {cure}")
    for _, measured in result.measured[:1]:  # the cases share one telemetry
        report_context(measured)


def suite_table(result: SuiteResult) -> Table:
    """Return one row per case; notes say why a case was not measured and what to do."""
    first = next((row.case.name for row in result.rows if row.result is not None), "")
    header = ("case", "runs as", "p50 ms (95 %)", "p99 ms", "frames/s", f"x {first}")
    notes = []
    for row in result.rows:
        if row.problem is not None:
            notes.append(f"{row.case.name}: not measured. {row.problem.what} {row.problem.why}")
            notes.append(f"  next: {row.problem.cure}")
    boundaries = dict.fromkeys(measured.boundary for _, measured in result.measured)
    return Table(
        header=header,
        rows=tuple(_cells(row, first) for row in result.rows),
        notes=(*(f"from {boundary}" for boundary in boundaries), *notes),
    )


def _cells(row: Row, first: str) -> tuple[str, ...]:
    if row.result is None:
        return (row.case.name, "not measured", "", "", "", "")
    latency = row.result.latency
    low_ms, high_ms = latency.p50_interval_ms
    ratio = "1" if row.case.name == first else "not interleaved"
    if row.ratio is not None:
        ratio = f"{row.ratio.ratio:.2f} ({row.ratio.low:.2f}–{row.ratio.high:.2f})"
    return (
        row.case.name,
        f"{row.result.precision.upper()} {row.result.backend}",
        f"{_ms(latency.p50_ms)} ({_ms(low_ms)}–{_ms(high_ms)})",
        _ms(latency.p99_ms),
        f"{row.case.batch * latency.throughput_hz:.1f}",
        ratio,
    )


def _ms(value: float) -> str:
    """Format with three significant digits, so that the table fits a terminal."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
