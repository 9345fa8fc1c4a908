"""The table of published measurements, `benchmarks/RESULTS.md`: derived from the stored ones, never written by hand."""

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

Made of `results/*/*.json` by `benchmarks/make_results.py`; do not edit. p50 has its 95 % interval, and a sample of a
batch is the time of all its frames. Cases of a suite that were timed in turn, frame by frame, have a ratio to its first
case, with an interval that holds on a busy machine as well; milliseconds of different tables or days do not compare so.
"""
NOTHING = "\nNothing has been measured yet: `mde bench --suite quick --json benchmarks/results`.\n"
COLUMNS = (
    *("case", "device", "precision", "backend", "artefact", "measured", "version"),
    *("p50 ms", "p99 ms", "frames/s", "ratio"),
)
FIGURES = 4
"""Of the columns, so many at the end are figures."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A stored case of a suite."""

    machine: str
    """The folder that it lies in: one for each machine."""
    result: StoredResult
    place: Place
    version: str
    """Of this package, when it was measured."""
    remarks: tuple[str, ...]
    """What the machine did that makes figures hard to repeat."""

    def in_turn_with(self, other: Published) -> bool:
        """Whether each frame of one was taken right after the same frame of the other."""
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
    """What a suite's result says beside what was measured."""

    suite: Place
    mirrordepth_edge: str
    telemetry: _Telemetry


def read_published(folder: Path) -> list[Published]:
    """Suites' cases in `FOLDER/*/*.json`; other measurements there belong to no suite and are left out.

    Raises:
        InputError: a file is no JSON, or is not valid.
    """
    found = []
    for path in sorted(folder.glob("*/*.json")):
        data = read_json(path, "result", MEASURE_AGAIN)
        if not isinstance(data, dict) or "suite" not in data:
            continue
        about = read_strict(_About, upgraded(data, RENAMED_IN_4, range(3, 4), RESULT_VERSION), str(path), MEASURE_AGAIN)
        found.append(
            Published(
                machine=path.parent.name,
                result=stored_result(data, str(path)),
                place=about.suite,
                version=about.mirrordepth_edge,
                remarks=about.telemetry.remarks,
            )
        )
    return found


def results_page(folder: Path) -> str:
    """Markdown of all that is stored in `folder`: a table for each suite of each machine.

    Raises:
        InputError: as `read_published`.
    """
    published = sorted(
        read_published(folder), key=lambda each: (each.machine, each.place.suite, each.place.number, each.place.case)
    )
    text = HEAD
    for machine, on_machine in groupby(published, lambda each: each.machine):
        cases = list(on_machine)
        computers = dict.fromkeys(each.result.computer for each in cases)
        text += f"\n## {machine}\n\n{'; '.join(computers)}\n"
        for suite, of_suite in groupby(cases, lambda each: each.place.suite):
            text += f"\n### {suite}\n\n" + _suite(list(of_suite))
    return text if published else HEAD + NOTHING


def _suite(cases: Sequence[Published]) -> str:
    """A suite's table, what was timed, and the law where it has one."""
    first, boundaries = cases[0], dict.fromkeys(each.result.boundary for each in cases)
    text = pipe_table(list(COLUMNS), [_row(each, first) for each in cases], figures=FIGURES)
    text += f"\nTimed from {'; '.join(boundaries)}.\n"
    in_turn = [each for each in cases if each.in_turn_with(first) and each.place.count is not None]
    if in_turn:
        text += f"\nLaw: {describe_scaling([(each.place, each.result.samples_ms) for each in in_turn])}.\n"
    against = [f"{each.place.case}: {one.what}" for each in cases for one in latency_warnings(each.result.samples_ms)]
    against += dict.fromkeys(remark for each in cases for remark in each.remarks)
    return text + (
        "\nWhat speaks against quoting these:\n\n" + "".join(f"- {one}\n" for one in against) if against else ""
    )


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
    if not case.in_turn_with(first):
        return "not in turn"
    ratio = ratio_interval(case.result.samples_ms, first.result.samples_ms, paired=True)
    return f"{ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
