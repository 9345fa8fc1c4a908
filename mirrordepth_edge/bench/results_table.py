"""The table of published measurements, `benchmarks/RESULTS.md`, generated from the stored results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mirrordepth_edge.bench.compare import MEASURE_AGAIN, StoredResult, pipe_table, stored_result
from mirrordepth_edge.bench.result import RENAMED_IN_4, RESULT_VERSION
from mirrordepth_edge.bench.stats import latency_warnings, ratio_interval
from mirrordepth_edge.bench.suite import Place, describe_scaling
from mirrordepth_edge.support.files import read_json
from mirrordepth_edge.support.schema import read_strict, upgraded

HEAD = """# Measured results

Generated from `results/*/*.json` by `benchmarks/make_results.py`; do not edit. p50 is given with its 95 % interval. A
sample of a batch is the time of all its frames. The ratio is to the first case of the suite, measured interleaved with
it, frame by frame; its interval is valid on a busy machine too. Do not compare milliseconds between tables or days.
"""
NOTHING = "\nNo measurements yet. Run `mde bench --suite quick --json benchmarks/results`.\n"
COLUMNS = (
    *("case", "device", "precision", "backend", "artefact", "measured", "version"),
    *("p50 ms", "p99 ms", "frames/s", "ratio"),
)
FIGURES = 4
"""How many of the last columns are numbers."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A stored case of a suite."""

    machine: str
    """The name of the machine's folder."""
    result: StoredResult
    place: Place
    version: str
    """Version of this package that measured it."""
    remarks: tuple[str, ...]
    """Reasons from the telemetry why the result is hard to reproduce."""

    def interleaved_with(self, other: Published) -> bool:
        """Whether both were timed in the same run, frame by frame."""
        mine, theirs = self.result, other.result
        return (self.place.measured, mine.config, len(mine.samples_ms)) == (
            other.place.measured,
            theirs.config,
            len(theirs.samples_ms),
        )


@dataclass(frozen=True, kw_only=True)
class _Telemetry:
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _About:
    """The fields of a suite's result besides the measurement."""

    suite: Place
    mirrordepth_edge: str
    telemetry: _Telemetry


def read_published(folder: Path) -> list[Published]:
    """Read the cases of suites in `FOLDER/*/*.json`. Measurements outside a suite are skipped.

    Raises:
        InputError: a file is not valid JSON or not a valid result.
    """
    published = []
    for path in sorted(folder.glob("*/*.json")):
        data = read_json(path, "result", MEASURE_AGAIN)
        if not isinstance(data, dict) or "suite" not in data:
            continue
        about = read_strict(_About, upgraded(data, RENAMED_IN_4, range(3, 4), RESULT_VERSION), str(path), MEASURE_AGAIN)
        published.append(
            Published(
                machine=path.parent.name,
                result=stored_result(data, str(path)),
                place=about.suite,
                version=about.mirrordepth_edge,
                remarks=about.telemetry.remarks,
            )
        )
    return published


def results_page(folder: Path) -> str:
    """Format all results in `folder` as Markdown: a table per machine and suite.

    Raises:
        InputError: as `read_published`.
    """
    published = sorted(
        read_published(folder), key=lambda case: (case.machine, case.place.suite, case.place.number, case.place.case)
    )
    text = HEAD
    for machine, on_machine in groupby(published, lambda case: case.machine):
        cases = list(on_machine)
        computers = dict.fromkeys(case.result.computer for case in cases)
        text += f"\n## {machine}\n\n{'; '.join(computers)}\n"
        for suite, of_suite in groupby(cases, lambda case: case.place.suite):
            text += f"\n### {suite}\n\n" + _suite(list(of_suite))
    return text if published else HEAD + NOTHING


def _suite(cases: Sequence[Published]) -> str:
    """Format the table of a suite, its timed section, scaling model and warnings."""
    first, boundaries = cases[0], dict.fromkeys(case.result.boundary for case in cases)
    text = pipe_table(list(COLUMNS), [_row(case, first) for case in cases], figures=FIGURES)
    text += f"\nTimed section: {'; '.join(boundaries)}.\n"
    interleaved = [case for case in cases if case.interleaved_with(first) and case.place.count is not None]
    if interleaved:
        text += f"\nScaling: {describe_scaling([(case.place, case.result.samples_ms) for case in interleaved])}.\n"
    warnings = [
        f"{case.place.case}: {warning.what}" for case in cases for warning in latency_warnings(case.result.samples_ms)
    ]
    warnings += dict.fromkeys(remark for case in cases for remark in case.remarks)
    return text + ("\nWarnings:\n\n" + "".join(f"- {warning}\n" for warning in warnings) if warnings else "")


def _row(case: Published, first: Published) -> list[str]:
    result, latency = case.result, case.result.latency
    low_ms, high_ms = latency.p50_interval_ms
    return [
        case.place.case,
        result.device,
        result.precision.upper(),
        f"{result.backend} {result.backend_version}",
        f"{result.artefact} {result.artefact_sha256[:8]}",
        case.place.measured[:10],
        case.version,
        f"{latency.p50_ms:.2f} ({low_ms:.2f} to {high_ms:.2f})",
        f"{latency.p99_ms:.2f}",
        f"{case.place.batch * latency.throughput_hz:.1f}",
        _ratio(case, first),
    ]


def _ratio(case: Published, first: Published) -> str:
    if case is first:
        return "1"
    if not case.interleaved_with(first):
        return "separate run"
    ratio = ratio_interval(case.result.samples_ms, first.result.samples_ms, paired=True)
    return f"{ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
