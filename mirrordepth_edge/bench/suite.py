"""Suites: the cases of one question, timed in turn, frame by frame, so that their ratios hold on a busy machine.

A suite is a recipe in `benchmarks/suites`. A case that cannot be measured here is told with the reason, and the rest
is measured all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from mirrordepth_edge.bench.artefacts import Wanted, cache_folder, find_or_make
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
"""Where recipes of suites are, in the checkout and in the wheel."""

LawOf = Literal["size", "batch"]
Opened = dict[str, Candidate | MdeError]
"""Cases by name: what is measured, or why it cannot be."""


@dataclass(frozen=True, kw_only=True)
class Case(Strict):
    """One artefact and how it runs; None is what the model, or the command line, says anyway."""

    name: str
    """Small letters, digits, dots and hyphens: it becomes part of a file's name."""
    model: str | None = None
    """A file, `nano`, `nano.fp16`, or `preset:NAME` for random weights; what --engine says where None."""
    precision: Precision | None = None
    size: SizeHW | None = None
    """Height and width of the network's input, in pixels."""
    batch: int = 1
    """Frames of one inference."""
    backend: str | None = None
    bf16: bool = False
    threads: int | None = None
    frame: SizeHW = (480, 640)
    """Height and width of the camera frame, in pixels."""

    def __post_init__(self) -> None:
        if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.name) is None:
            raise ValueError("a case's name has small letters, digits, dots and hyphens")
        if min(self.batch, self.threads or 1, *(self.size or (1, 1)), *self.frame) < 1:
            raise ValueError("batch, threads, size and frame are at least 1")


@dataclass(frozen=True, kw_only=True)
class Suite(Strict):
    """What is measured together, and why."""

    title: str
    purpose: str
    case: tuple[Case, ...]
    """At least one; the others' times are told as multiples of the first's."""
    iterations: int = 200
    """Timed frames of each case."""
    warmup: int | None = None
    """Frames before that; until times have settled where None."""
    protocol: BenchProtocol = "host"
    law: LawOf | None = None
    """What cases differ in, of which a law of latency is fitted."""

    def __post_init__(self) -> None:
        names = [case.name for case in self.case]
        if not names or len(set(names)) != len(names):
            raise ValueError("a suite has at least one [[case]], and each its own name")
        if self.iterations < 1 or (self.warmup or 0) < 0:
            raise ValueError("iterations are at least 1, warmup at least 0")
        if self.law is not None and len({case.frame for case in self.case}) > 1:
            raise ValueError("a law is of cases that are timed in turn, with frames of one size")
        if self.protocol == "host" and any(case.batch > 1 for case in self.case):
            raise ValueError('a camera gives one frame at a time: batch needs protocol = "network"')


@dataclass(frozen=True, kw_only=True)
class Place(Strict):
    """Which case of which suite a stored result is; what turns files into tables again."""

    suite: str
    case: str
    number: int
    """The case's place in the suite, from 0."""
    measured: str
    """When the suite was run, in UTC, ISO 8601: results that share it and the frame's size were timed in turn."""
    batch: int
    """Frames of one inference; a sample is the time of all of them."""
    count: int | None
    """How many units are computed for a sample, where a law is fitted."""
    unit: str | None
    """What they are, such as `token`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a case: a result, or the reason why there is none."""

    case: Case
    result: BenchResult | None = None
    place: Place | None = None
    """Where there is a result."""
    problem: MdeError | None = None
    ratio: Ratio | None = None
    """To the first result; None for itself, and where the two were not timed in turn."""


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """All rows of a suite, in its order."""

    name: str
    suite: Suite
    rows: tuple[Row, ...]

    @property
    def measured(self) -> list[tuple[Place, BenchResult]]:
        """The rows that have results."""
        return [(row.place, row.result) for row in self.rows if row.result is not None and row.place is not None]

    def law(self) -> str | None:
        """How latency grows, in a sentence, or why that cannot be told; None where the suite has no law."""
        if self.suite.law is None:
            return None
        return describe_scaling([(place, result.frames_ms) for place, result in self.measured])


def load_suite(name_or_path: str) -> tuple[str, Suite]:
    """A suite's name and what it measures, by name or by the path of a `.toml` file.

    Raises:
        OptionError: there is no such suite.
        InputError: the file is no TOML or does not fit.
    """
    path = Path(name_or_path)
    return path.stem if path.suffix == ".toml" else name_or_path, load_recipe(FOLDER, name_or_path, Suite)


@contextmanager
def opened(
    suite: Suite,
    frames: Sequence[Frame],
    *,
    model: str = "nano",
    options: SessionOptions | None = None,
    cache: Path | None = None,
    on_stage: Callable[[int, str], None] = lambda ready, stage: None,
) -> Iterator[Opened]:
    """Each case's artefact, made where there is none, running and right; or why that cannot be had.

    Args:
        frames: real pictures, for which depth is looked at.
        model: of cases that name none.
        options: device and CLIP weights; the rest is the cases'.
        cache: folder of artefacts that have to be made; the user's cache where None.
        on_stage: told how many cases are done, and what is being done.
    """
    with ExitStack() as stack:
        found: Opened = {}
        for number, case in enumerate(suite.case):

            def tell(stage: str, number: int = number, case: Case = case) -> None:
                on_stage(number, f"{case.name}: {stage}")

            tell("opening")
            try:
                candidate = _candidate(case, model, options or SessionOptions(), cache or cache_folder(), tell)
                stack.enter_context(candidate.predictor)
                check_depth(candidate, camera_frames(frames, _config(suite, case)))
                found[case.name] = candidate
            except MdeError as error:
                found[case.name] = error
        yield found


def measure(
    name: str,
    suite: Suite,
    cases: Opened,
    frames: Sequence[Frame],
    on_frame: Callable[[], object] = lambda: None,
) -> SuiteResult:
    """Time a suite's cases; those that see frames of one size in turn, frame by frame.

    Args:
        name: the suite's.
        cases: as `opened` gives them.
        frames: real pictures, which rotate.
        on_frame: called after each frame of each case.
    """
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    ready = {each: candidate for each, candidate in cases.items() if isinstance(candidate, Candidate)}
    found: dict[str, BenchResult | MdeError] = {
        each: problem for each, problem in cases.items() if isinstance(problem, MdeError)
    }
    for frame_hw in dict.fromkeys(case.frame for case in suite.case if case.name in ready):
        together = [case for case in suite.case if case.name in ready and case.frame == frame_hw]
        names = [case.name for case in together]
        try:
            results = bench([ready[each] for each in names], frames, _config(suite, together[0]), on_frame)
            found |= dict(zip(names, results, strict=True))
        except MdeError as error:
            found |= dict.fromkeys(names, error)
    places = {
        case.name: _place(name, suite, number, began, ready[case.name])
        for number, case in enumerate(suite.case)
        if case.name in ready
    }
    return SuiteResult(name=name, suite=suite, rows=_rows(suite, found, places))


def _config(suite: Suite, case: Case) -> BenchConfig:
    return BenchConfig(iterations=suite.iterations, warmup=suite.warmup, frame_hw=case.frame, protocol=suite.protocol)


def _candidate(case: Case, model: str, options: SessionOptions, cache: Path, tell: Callable[[str], None]) -> Candidate:
    wanted = Wanted(
        model=case.model or model, precision=case.precision, size_hw=case.size, batch=case.batch, backend=case.backend
    )
    artefact = find_or_make(wanted, cache, clip_weights=options.clip_weights, on_stage=tell)
    own = replace(options, threads=case.threads, backend=case.backend, bf16=case.bf16, yields=True)
    return open_candidate(artefact, own, case.batch)


def _place(name: str, suite: Suite, number: int, began: str, candidate: Candidate) -> Place:
    case = suite.case[number]
    count, unit = None, None
    if suite.law is not None:
        count, unit = (case.batch, "frame") if suite.law == "batch" else units_of(candidate.predictor.model)
    return Place(suite=name, case=case.name, number=number, measured=began, batch=case.batch, count=count, unit=unit)


def _rows(suite: Suite, found: dict[str, BenchResult | MdeError], places: dict[str, Place]) -> tuple[Row, ...]:
    rows: list[Row] = []
    first: BenchResult | None = None
    for case in suite.case:
        outcome = found[case.name]
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
    """How latency grows with what is computed, in a sentence, or why that cannot be told.

    Args:
        measured: cases of one suite that were timed in turn, each with its frames' milliseconds, shape `[frames]`.
    """
    counts = [place.count or 0 for place, _ in measured]
    unit = next((place.unit for place, _ in measured if place.unit), "")
    try:
        return fit(counts, [samples_ms for _, samples_ms in measured], unit).describe()
    except MdeError as error:
        return f"{error.what} {error.why}".removesuffix(".")


def store(result: SuiteResult, folder: Path) -> list[Path]:
    """Write the measured cases as `FOLDER/DEVICE/SUITE-CASE.json`, which `bench.compare` reads; returns their paths.

    Raises:
        InputError: a file cannot be written.
    """
    own = folder / device_slug([each for _, each in result.measured])
    paths = []
    for place, each in result.measured:
        paths.append(own / f"{_slug(place.suite)}-{place.case}.json")
        write_json(paths[-1], each.to_json() | {"suite": asdict(place)})
    return paths


def device_slug(results: Sequence[Subject]) -> str:
    """A folder's name for the machine: its board, else the GPU that any of the results ran on, else its CPU."""
    gpus = [result.device for result in results if result.device != "cpu"]
    boards = [result.machine.jetson for result in results if result.machine.jetson]
    return _slug((boards or gpus or [result.computer for result in results] or ["unknown"])[0])


def _slug(text: str) -> str:
    """Such as `intel-xeon-2-cores`."""
    plain = re.sub(r"\((r|tm)\)|@.*?hz|\bcpu\b|\bprocessor\b", " ", text.lower())
    return "-".join(re.findall(r"[a-z0-9.]+", plain))
