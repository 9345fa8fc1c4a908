"""Suites: cases that are timed interleaved, frame by frame, so that their ratios are valid on a busy machine.

A suite is a recipe in `benchmarks/suites`. A case that cannot be measured on this machine is reported with the reason;
the others are measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from mirrordepth_edge.bench.artefacts import ArtefactRequest, cache_folder, find_or_make
from mirrordepth_edge.bench.measure import Candidate, bench, camera_frames, check_depth, open_candidate
from mirrordepth_edge.bench.result import BenchResult, Subject
from mirrordepth_edge.bench.scaling import fit, units_of
from mirrordepth_edge.bench.stats import Ratio, Samples, ratio_interval
from mirrordepth_edge.config import BenchConfig, BenchProtocol, Precision, SessionOptions, SizeHW, Strict
from mirrordepth_edge.errors import MdeError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.recipes import load_recipe
from mirrordepth_edge.support.files import write_json

FOLDER = "benchmarks/suites"
"""Folder of the recipes, in the repository and in the wheel."""

ScalingVariable = Literal["size", "batch"]
OpenedCases = dict[str, Candidate | MdeError]
"""Cases by name: the opened candidate, or the error."""


@dataclass(frozen=True, kw_only=True)
class Case(Strict):
    """An artefact and how it runs; None keeps the setting of the model or of the command line."""

    name: str
    """Lower-case letters, digits, dots and hyphens, because it is part of a file name."""
    model: str | None = None
    """A file, `nano`, `nano.fp16`, or `preset:NAME` for random weights; the model of --engine if None."""
    precision: Precision | None = None
    size: SizeHW | None = None
    """Height and width of the network's input, in pixels."""
    batch: int = 1
    """Frames per inference."""
    backend: str | None = None
    bf16: bool = False
    threads: int | None = None
    frame: SizeHW = (480, 640)
    """Height and width of the camera frame, in pixels."""

    def __post_init__(self) -> None:
        if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.name) is None:
            raise ValueError("the name of a case must consist of lower-case letters, digits, dots and hyphens")
        if min(self.batch, self.threads or 1, *(self.size or (1, 1)), *self.frame) < 1:
            raise ValueError("batch, threads, size and frame must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Suite(Strict):
    """Cases that are measured together."""

    title: str
    purpose: str
    case: tuple[Case, ...]
    """At least one; the first is the reference of the ratios."""
    iterations: int = 200
    """Timed frames per case."""
    warmup: int | None = None
    """Untimed frames before; until times have settled if None."""
    protocol: BenchProtocol = "host"
    law: ScalingVariable | None = None
    """The setting that differs between cases, for which a scaling model is fitted."""

    def __post_init__(self) -> None:
        names = [case.name for case in self.case]
        if not names or len(set(names)) != len(names):
            raise ValueError("a suite must have at least one [[case]], and case names must be unique")
        if self.iterations < 1 or (self.warmup or 0) < 0:
            raise ValueError("iterations must be at least 1, warmup at least 0")
        if self.law is not None and len({case.frame for case in self.case}) > 1:
            raise ValueError("law needs cases with frames of one size, because only those are interleaved")
        if self.protocol == "host" and any(case.batch > 1 for case in self.case):
            raise ValueError('batch needs protocol = "network", because a camera delivers single frames')


@dataclass(frozen=True, kw_only=True)
class Place(Strict):
    """The suite and case of a stored result, from which tables are made."""

    suite: str
    case: str
    number: int
    """Index of the case in the suite."""
    measured: str
    """Start of the run, UTC, ISO 8601. Results with the same start and frame size were interleaved."""
    batch: int
    """Frames per inference; a sample is the time of all of them."""
    count: int | None
    """Number of units per sample if a scaling model is fitted."""
    unit: str | None
    """Name of the unit, such as `token`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The outcome of a case: a result or an error."""

    case: Case
    result: BenchResult | None = None
    place: Place | None = None
    """None without a result."""
    problem: MdeError | None = None
    ratio: Ratio | None = None
    """Ratio to the first result; None for itself, and if the two were not interleaved."""


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """The rows of a suite, in order of its cases."""

    name: str
    suite: Suite
    rows: tuple[Row, ...]

    @property
    def measured(self) -> list[tuple[Place, BenchResult]]:
        """The rows with results."""
        return [(row.place, row.result) for row in self.rows if row.result is not None and row.place is not None]

    def scaling(self) -> str | None:
        """Describe the scaling model, or why it cannot be fitted; None if the suite does not ask for one."""
        if self.suite.law is None:
            return None
        return describe_scaling([(place, result.frames_ms) for place, result in self.measured])


def load_suite(name_or_path: str) -> tuple[str, Suite]:
    """Load a suite by its name or by the path of a `.toml` file; return its name and content.

    Raises:
        OptionError: there is no such suite.
        InputError: the file is not valid TOML or not a valid suite.
    """
    path = Path(name_or_path)
    return path.stem if path.suffix == ".toml" else name_or_path, load_recipe(FOLDER, name_or_path, Suite)


@contextmanager
def open_cases(
    suite: Suite,
    frames: Sequence[Frame],
    *,
    model: str = "nano",
    options: SessionOptions | None = None,
    cache: Path | None = None,
    on_stage: Callable[[int, str], None] = lambda ready, stage: None,
) -> Iterator[OpenedCases]:
    """Open the artefact of each case, created if necessary, and check its depth.

    Args:
        frames: real images for the depth check.
        model: for cases without a model.
        options: device and CLIP weights; the cases override the rest.
        cache: folder for created artefacts; the user's cache if None.
        on_stage: called with the number of finished cases and the current step.

    Yields:
        The candidate or the error of each case, by name.
    """
    with ExitStack() as stack:
        cases: OpenedCases = {}
        for number, case in enumerate(suite.case):

            def report(stage: str, number: int = number, case: Case = case) -> None:
                on_stage(number, f"{case.name}: {stage}")

            report("opening")
            try:
                candidate = _open_case(case, model, options or SessionOptions(), cache or cache_folder(), report)
                stack.enter_context(candidate.predictor)
                check_depth(candidate, camera_frames(frames, _config(suite, case)))
                cases[case.name] = candidate
            except MdeError as error:
                cases[case.name] = error
        yield cases


def measure(
    name: str,
    suite: Suite,
    cases: OpenedCases,
    frames: Sequence[Frame],
    on_frame: Callable[[], object] = lambda: None,
) -> SuiteResult:
    """Time the cases of a suite; those with the same frame size are interleaved, frame by frame.

    Args:
        name: name of the suite.
        cases: from `open_cases`.
        frames: real images, which are repeated cyclically.
        on_frame: called after each frame of each case.
    """
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    ready = {case_name: candidate for case_name, candidate in cases.items() if isinstance(candidate, Candidate)}
    outcomes: dict[str, BenchResult | MdeError] = {
        case_name: error for case_name, error in cases.items() if isinstance(error, MdeError)
    }
    ready_cases = [case for case in suite.case if case.name in ready]
    for frame_hw in dict.fromkeys(case.frame for case in ready_cases):
        group = [case for case in ready_cases if case.frame == frame_hw]
        names = [case.name for case in group]
        try:
            results = bench([ready[case_name] for case_name in names], frames, _config(suite, group[0]), on_frame)
            outcomes |= dict(zip(names, results, strict=True))
        except MdeError as error:
            outcomes |= dict.fromkeys(names, error)
    places = {
        case.name: _place(name, suite, number, started, ready[case.name])
        for number, case in enumerate(suite.case)
        if case.name in ready
    }
    return SuiteResult(name=name, suite=suite, rows=_rows(suite, outcomes, places))


def _config(suite: Suite, case: Case) -> BenchConfig:
    return BenchConfig(iterations=suite.iterations, warmup=suite.warmup, frame_hw=case.frame, protocol=suite.protocol)


def _open_case(
    case: Case, model: str, options: SessionOptions, cache: Path, report: Callable[[str], None]
) -> Candidate:
    request = ArtefactRequest(
        model=case.model or model, precision=case.precision, size_hw=case.size, batch=case.batch, backend=case.backend
    )
    artefact = find_or_make(request, cache, clip_weights=options.clip_weights, on_stage=report)
    case_options = replace(options, threads=case.threads, backend=case.backend, bf16=case.bf16, yields=True)
    return open_candidate(artefact, case_options, case.batch)


def _place(name: str, suite: Suite, number: int, started: str, candidate: Candidate) -> Place:
    case = suite.case[number]
    count, unit = None, None
    if suite.law is not None:
        count, unit = (case.batch, "frame") if suite.law == "batch" else units_of(candidate.predictor.model)
    return Place(suite=name, case=case.name, number=number, measured=started, batch=case.batch, count=count, unit=unit)


def _rows(suite: Suite, outcomes: dict[str, BenchResult | MdeError], places: dict[str, Place]) -> tuple[Row, ...]:
    rows: list[Row] = []
    first: BenchResult | None = None
    for case in suite.case:
        outcome = outcomes[case.name]
        if isinstance(outcome, MdeError):
            rows.append(Row(case=case, problem=outcome))
            continue
        ratio = None
        if first is not None and outcome.config.frame_hw == first.config.frame_hw:
            ratio = ratio_interval(outcome.frames_ms, first.frames_ms, paired=True)
        first = first or outcome
        rows.append(Row(case=case, result=outcome, place=places[case.name], ratio=ratio))
    return tuple(rows)


def describe_scaling(measured: Sequence[tuple[Place, Samples]]) -> str:
    """Describe the scaling model of interleaved cases, or why it cannot be fitted.

    Args:
        measured: interleaved cases of one suite, each with the milliseconds of its frames, shape `[frames]`.
    """
    counts = [place.count or 0 for place, _ in measured]
    unit = next((place.unit for place, _ in measured if place.unit), "")
    try:
        return fit(counts, [samples_ms for _, samples_ms in measured], unit).describe()
    except MdeError as error:
        return f"{error.what} {error.why}".removesuffix(".")


def store(result: SuiteResult, folder: Path) -> list[Path]:
    """Write the measured cases as `FOLDER/DEVICE/SUITE-CASE.json` for `bench.compare`; return the paths.

    Raises:
        InputError: a file cannot be written.
    """
    machine_folder = folder / device_slug([measured for _, measured in result.measured])
    paths = []
    for place, measured in result.measured:
        paths.append(machine_folder / f"{_slug(place.suite)}-{place.case}.json")
        write_json(paths[-1], measured.to_json() | {"suite": asdict(place)})
    return paths


def device_slug(results: Sequence[Subject]) -> str:
    """Name the folder of a machine by its board, else by its GPU if a result ran on it, else by its CPU."""
    gpus = [result.device for result in results if result.device != "cpu"]
    boards = [result.machine.jetson for result in results if result.machine.jetson]
    return _slug((boards or gpus or [result.computer for result in results] or ["unknown"])[0])


def _slug(text: str) -> str:
    """Convert to a file name such as `intel-xeon-2-cores`."""
    plain = re.sub(r"\((r|tm)\)|@.*?hz|\bcpu\b|\bprocessor\b", " ", text.lower())
    return "-".join(re.findall(r"[a-z0-9.]+", plain))
