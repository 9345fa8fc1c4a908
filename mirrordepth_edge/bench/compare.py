"""Comparison of stored results: ratios with their uncertainty, regression gates, tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.bench.result import RENAMED_IN_4, RESULT_VERSION, BenchResult, Subject, unpack
from mirrordepth_edge.bench.stats import LatencyStats, Ratio, ratio_interval, summarise
from mirrordepth_edge.config import BenchProtocol, SizeHW
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.support.files import read_json
from mirrordepth_edge.support.schema import read_strict, upgraded

MEASURE_AGAIN = "Measure again with this version: mde bench MODEL --json FILE.json"

LATENCIES = ("min", "mean", "p50", "p90", "p95", "p99", "max")
MS_PER_UNIT = {"us": 1e-3, "ms": 1.0, "s": 1e3}
GATE_CURE = '--fail-if "p99>33ms", --fail-if "throughput<30" or --fail-if "p50>1.05*base.json"'


@dataclass(frozen=True, kw_only=True)
class StoredResult(Subject):
    """A measurement read from `BenchResult.to_json`; unknown keys of the file are ignored."""

    source: str
    """Name of the file, for messages."""
    latency: LatencyStats
    """Computed from the samples."""
    samples_ms: npt.NDArray[np.float64]
    """Sum of the stages of each frame, in milliseconds; shape `[frames]`."""


@dataclass(frozen=True, kw_only=True)
class _Config:
    """Required keys of the configuration; `BenchConfig` would fill in defaults for missing ones."""

    iterations: int
    frame_hw: SizeHW
    protocol: BenchProtocol


@dataclass(frozen=True, kw_only=True)
class _Required:
    config: _Config
    samples_ns: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ratio of the latencies of two results."""

    first: StoredResult
    second: StoredResult
    ratio: Ratio
    """Median of the second over median of the first, with its 95 % bootstrap interval."""
    differences: tuple[str, ...]
    """Differences besides the artefact, which also affect the ratio."""

    @property
    def verdict(self) -> str:
        """The ratio as text, such as `1.31 times as long (95 % interval 1.27 to 1.35)`."""
        return self.ratio.describe()


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A condition that fails the run if it is true."""

    condition: str
    """As the user wrote it."""
    metric: str
    """One of `LATENCIES`, or `throughput`."""
    operator: str
    limit: float
    """Milliseconds, or frames per second for `throughput`."""
    base: StoredResult | None = None
    """The result from which the limit was computed."""

    def check(self, latency: LatencyStats) -> str | None:
        """Return None if the gate passes, else a sentence with the excess."""
        value = metric_of(latency, self.metric)
        failed = {
            ">": value > self.limit,
            ">=": value >= self.limit,
            "<": value < self.limit,
            "<=": value <= self.limit,
        }[self.operator]
        if not failed:
            return None
        unit = "frames/s" if self.metric == "throughput" else "ms"
        excess = abs(value - self.limit)
        side = "over" if self.operator.startswith(">") else "under"
        by = f"{excess:.3g} {unit} ({excess / self.limit:.2%}) {side}" if excess else "exactly at"
        origin = f" (from {self.base.source})" if self.base else ""
        return (
            f"{self.metric} is {value:.6g} {unit}, {by} the limit of {self.limit:.6g} {unit}{origin}: {self.condition}"
        )


def read_result(path: Path) -> StoredResult:
    """Read a file of `mde bench --json`.

    Raises:
        InputError: the file is missing, not valid JSON, or refused by `stored_result`.
    """
    return stored_result(read_json(path, "result", MEASURE_AGAIN), str(path))


def stored_result(data: Any, source: str) -> StoredResult:
    """Validate the plain values of `BenchResult.to_json`.

    Args:
        source: name of the file, for messages.

    Raises:
        InputError: the schema version differs, a field is missing or of the wrong type, or a sample is not a positive
            number.
    """
    if isinstance(data, dict) and ("streams" in data or "in_flight" in data):
        raise InputError(
            f"{source} is not a latency measurement.",
            "Results of --mode stream and --mode throughput cannot be compared.",
            "Measure with --mode latency.",
        )
    data = upgraded(data, RENAMED_IN_4, range(3, 4), RESULT_VERSION)
    version = data.get("schema_version") if isinstance(data, dict) else None
    # Other JSON files of this package have schema versions too; only benchmark results have samples.
    if version is None or ("samples_ns" not in data and "samples_ms" not in data):
        raise InputError(
            f"{source} is not a benchmark result.", "It has no schema_version or no samples.", MEASURE_AGAIN
        )
    if version != RESULT_VERSION:
        raise InputError(
            f"{source} was written by another version of mde bench.",
            f"Its schema_version is {version!r}; this version reads {RESULT_VERSION}.",
            MEASURE_AGAIN,
        )
    subject = read_strict(Subject, data, source, MEASURE_AGAIN)
    samples_ms = _unpack_frames(read_strict(_Required, data, source, MEASURE_AGAIN).samples_ns, source)
    return StoredResult(**vars(subject), source=source, latency=summarise(samples_ms), samples_ms=samples_ms)


def _unpack_frames(packed: dict[str, str], source: str) -> npt.NDArray[np.float64]:
    try:
        stages = {name: unpack(text) for name, text in packed.items()}
    except ValueError as error:
        raise InputError(f"{source} is not valid.", f"samples_ns: {error}.", MEASURE_AGAIN) from error
    lengths = {name: len(samples) for name, samples in stages.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "none"
        why = f"samples_ns needs at least one sample, and the same number for every stage; it has: {counts}."
        raise InputError(f"{source} is not valid.", why, MEASURE_AGAIN)
    for name, samples in stages.items():
        if (samples <= 0).any():
            why = f"samples_ns.{name} has non-positive times."
            raise InputError(f"{source} is not valid.", why, MEASURE_AGAIN)
    frames: npt.NDArray[np.float64] = np.array(list(stages.values())).sum(axis=0)
    return frames


def compare(first: StoredResult, second: StoredResult, *, anyway: bool = False) -> Comparison:
    """Compute the ratio of the median latencies of two results, second over first.

    The interval covers the scatter of the frames, not changes of the machine between the two measurements.

    Args:
        anyway: compare even if more than the artefact differs.

    Raises:
        OptionError: device, machine, boundary or frame size differ, and not `anyway`.
    """
    different = differences(first, second)
    if different and not anyway:
        raise OptionError(
            f"{first.source} and {second.source} were measured under different conditions.",
            f"They differ in {'; '.join(different)}.",
            "Measure both under the same conditions, or pass --anyway to compare them.",
        )
    ratio = ratio_interval(second.samples_ms, first.samples_ms, paired=False)
    return Comparison(first=first, second=second, ratio=ratio, differences=different)


def differences(first: StoredResult | BenchResult, second: StoredResult | BenchResult) -> tuple[str, ...]:
    """List the differences besides artefact, backend and precision; empty if there are none."""
    sides = {
        "device": (first.device, second.device),
        "machine": (first.computer, second.computer),
        "boundary": (first.timed, second.timed),
    }
    # The camera's frame size does not affect the time of the network alone.
    if "host" in (first.config.protocol, second.config.protocol):
        sides["frame size"] = (first.frame, second.frame)
    return tuple(
        f"{what}: {one} ({first.source}) and {other} ({second.source})"
        for what, (one, other) in sides.items()
        if one != other
    )


def metric_of(latency: LatencyStats, metric: str) -> float:
    """Look up a statistic by its name in a gate: milliseconds, or frames per second for `throughput`."""
    field = "throughput_hz" if metric == "throughput" else f"{metric}_ms"
    return float(getattr(latency, field))


def parse_gate(text: str) -> Gate:
    """Parse a failure condition: `METRIC OPERATOR LIMIT`.

    METRIC is one of `LATENCIES` or `throughput` (frames per second). OPERATOR is one of > >= < <=. LIMIT is a number
    with a unit (us, ms, s; throughput: none or /s), or `FILE.json` or `FACTOR*FILE.json` for the same metric of a
    stored result, which is read here.

    Raises:
        OptionError: `text` does not have this form.
        InputError: the stored result cannot be read.
    """
    parts = re.fullmatch(r"\s*([^\s<>=]+)\s*(>=|<=|>|<)\s*([^\s<>=].*?)\s*", text, re.DOTALL)
    if parts is None:
        raise _invalid_gate(text, "Expected a metric, one of > >= < <=, and a limit.")
    metric, operator, right = parts.groups()
    if metric != "throughput" and metric not in LATENCIES:
        raise _invalid_gate(text, f"{metric!r} is not a metric; choose from {', '.join(LATENCIES)} and throughput.")
    if right.endswith(".json"):
        factor, star, name = right.partition("*")
        times = _number(text, factor) if star else 1.0
        base = read_result(Path(name.strip() if star else right))
        limit = times * metric_of(base.latency, metric)
        return Gate(condition=text, metric=metric, operator=operator, limit=limit, base=base)
    return Gate(condition=text, metric=metric, operator=operator, limit=_limit(text, metric, right))


def _limit(text: str, metric: str, right: str) -> float:
    unit = right.lstrip("0123456789. ")
    number = right.removesuffix(unit)
    if metric == "throughput":
        if unit not in ("", "/s"):
            raise _invalid_gate(text, f"{right!r} is not a number of frames per second, without a unit or with /s.")
        return _number(text, number)
    if unit not in MS_PER_UNIT:
        raise _invalid_gate(text, f"{right!r} is not a number with one of the units {', '.join(MS_PER_UNIT)}.")
    return _number(text, number) * MS_PER_UNIT[unit]


def _number(text: str, number: str) -> float:
    # float() also accepts inf, nan, underscores and signs.
    if re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*", number, re.ASCII) is None or float(number) == 0:
        raise _invalid_gate(text, f"{number!r} is not a positive number.")
    return float(number)


def _invalid_gate(text: str, why: str) -> OptionError:
    return OptionError(f"{text!r} is not a valid --fail-if condition.", why, GATE_CURE)


def markdown(rows: Sequence[StoredResult] | Sequence[Comparison]) -> str:
    """Format results as a GitHub table; comparisons as a table of their results and one of their ratios.

    Text is escaped. The string ends in a newline.
    """
    comparisons = [row for row in rows if isinstance(row, Comparison)]
    results = _distinct_results(rows)
    numbers = {id(result): number for number, result in enumerate(results, 1)}
    text = pipe_table(
        ["#", "artefact", "backend", "device", "precision", "p50 ms", "p90 ms", "p99 ms", "frames/s"],
        [_cells(number, result) for number, result in enumerate(results, 1)],
        figures=4,
    )
    if comparisons:
        text += "\n" + pipe_table(
            ["rows", "p50"],
            [[f"{numbers[id(row.second)]} against {numbers[id(row.first)]}", row.verdict] for row in comparisons],
        )
    # Results that were compared with --anyway must be recognisable.
    notes = dict.fromkeys(difference for row in comparisons for difference in row.differences)
    text += "\nMeasured under different conditions:\n\n" if notes else ""
    return text + "".join(f"- {_cell(note)}\n" for note in notes)


def _distinct_results(rows: Sequence[StoredResult] | Sequence[Comparison]) -> list[StoredResult]:
    results: list[StoredResult] = []
    for row in rows:
        for result in (row.first, row.second) if isinstance(row, Comparison) else (row,):
            if not any(result is known for known in results):
                results.append(result)
    return results


def _cells(number: int, result: StoredResult) -> list[str]:
    latency = result.latency
    times = (f"{value:.2f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms))
    device = result.computer if result.device == "cpu" else result.device
    backend = f"{result.backend} {result.backend_version}"
    precision = result.precision.upper()
    return [str(number), result.artefact, backend, device, precision, *times, f"{latency.throughput_hz:.1f}"]


def pipe_table(head: list[str], rows: list[list[str]], figures: int = 0) -> str:
    """Format a GitHub table whose last `figures` columns are right-aligned."""
    rule = ["---"] * (len(head) - figures) + ["---:"] * figures
    lines = [head, rule, *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """Escape text for one cell of a Markdown table."""
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", " ".join(text.split()))
