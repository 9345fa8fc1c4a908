"""Tests one subject in a process of its own: `python -m mirrordepth_edge.bench.selftest_worker`.

The request is JSON on the standard input (`subject`, `effort`). On the standard output come lines of JSON, each with
one key: `stage` (what is being done), `ran_by` (backend, version and device) and `step`, each step when it is done.
Whatever libraries print goes to the standard error stream.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from mirrordepth_edge.artefact import Artefact
from mirrordepth_edge.bench.artefacts import PRESET, Wanted, cache_folder, find_or_make
from mirrordepth_edge.bench.measure import Candidate, bench, camera_frames, open_candidate, warm_up
from mirrordepth_edge.bench.selftest import STEPS, Effort, Figure, Step, StepName, Subject, skipped_after
from mirrordepth_edge.bench.stream import stream
from mirrordepth_edge.config import BenchConfig, Precision, QuantiseConfig
from mirrordepth_edge.engines.cache import cached_engine
from mirrordepth_edge.errors import MdeError, MissingError
from mirrordepth_edge.export.parity import FRAMES_DIR, reference_frames
from mirrordepth_edge.export.verify import Runs, Verification, check_verification, verify
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.machine.sampler import TelemetrySampler
from mirrordepth_edge.machine.telemetry import Reading, Telemetry
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.support.schema import read_strict

Say = Callable[[str, Any], None]
CAMERA_HZ: Final = 30.0
MB: Final = 1e6


class SkippedError(Exception):
    """A step that there is no need for."""


@dataclass
class Found:
    """What a step gives beside having passed."""

    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str) -> None:
        self.figures[name] = Figure(value=float(f"{value:.6g}"), unit=unit)


@dataclass
class Bench:
    """The steps of one subject; each needs those before it."""

    subject: Subject
    effort: Effort
    folder: Path
    """For what is only needed meanwhile."""
    say: Say
    stack: ExitStack
    onnx: Path = field(init=False)
    path: Path = field(init=False)
    """What is run."""
    artefact: Artefact = field(init=False)
    candidate: Candidate = field(init=False)
    frames: list[Frame] = field(init=False)

    def stage(self, text: str) -> None:
        self.say("stage", text)

    def make(self, found: Found) -> None:
        name, precision = self.subject.model, self.subject.precision
        self.path = self.onnx = self._int8() if precision == "int8" else self._exported(precision)
        found.add("size", self.onnx.stat().st_size / MB, "MB")
        manifest = read_manifest(self.onnx, verify=False)
        if manifest.quantisation is not None and (accuracy := manifest.quantisation.accuracy) is not None:
            found.add("AbsRel against FP32's depth", accuracy.figures.abs_rel, "")
            found.notes.append(
                f"INT8 for the self-test only: its ranges come from the package's {self._calibrated()} pictures"
            )
        if not manifest.trained:
            found.notes.append(f"{name} has random weights: its speed is that of the real one, its depth means nothing")

    def _calibrated(self) -> int:
        quantisation = read_manifest(self.onnx, verify=False).quantisation
        return quantisation.calibration_frames if quantisation is not None else 0

    def _exported(self, precision: Precision) -> Path:
        model = self.subject.model if self.subject.model == "nano" else PRESET + self.subject.model
        return find_or_make(Wanted(model=model, precision=precision), cache_folder(), on_stage=self.stage).path

    def _int8(self) -> Path:
        from mirrordepth_edge.quantise.pipeline import Int8Quantizer, ProgressCallback
        from mirrordepth_edge.quantise.write_calibration_set import pictures_as_set

        fp32 = Artefact.open(self._exported("fp32"))
        quantizer = Int8Quantizer(
            fp32=fp32,
            calibration=pictures_as_set(FRAMES_DIR, f"selftest-only-{self.subject.model}"),
            config=QuantiseConfig(scheme="cpu" if self.subject.no_engine else "gpu", force=True),
            folder=self.folder,
            progress=ProgressCallback(stage=lambda name, steps: self.stage(name)),
        )
        output = self.folder / f"{self.subject.model}.int8.onnx"
        quantizer.write(output, quantizer.fit(), fp32.sha256)
        return output

    def build(self, found: Found) -> None:
        if self.subject.no_engine is not None:
            raise SkippedError(self.subject.no_engine)
        cached = cached_engine(self.onnx, on_stage=self.stage)
        self.path = cached.path
        manifest = read_manifest(cached.path, verify=False)
        assert manifest.engine is not None, "a plan has an engine"
        found.add("size", cached.path.stat().st_size / MB, "MB")
        found.add("build", manifest.engine.build_seconds, "s")
        if manifest.engine.peak_memory_mb is not None:
            found.add("main memory at most", manifest.engine.peak_memory_mb, "MB")
        if manifest.parity.backend == manifest.engine.flavour:  # else it was not run, and has its ONNX file's
            found.add("mean relative, against its ONNX file", manifest.parity.mean_relative, "")
        if not cached.built:
            found.notes.append(f"not built now: {cached.why}")

    def verify(self, found: Found) -> None:
        self.artefact = Artefact.open(self.path)
        self.candidate = open_candidate(self.artefact)
        self.stack.callback(self.candidate.predictor.close)
        session = self.candidate.predictor.session
        self.say("ran_by", {"backend": session.backend, "backend_version": session.version, "device": session.device})
        self.frames = camera_frames(reference_frames(), self._config())
        verified = self._verified(found, 0.0)
        for each in verified.comparisons:
            found.add(f"mean relative, against {each.against}", each.mean_relative, "")
            found.add(f"worst pixel, against {each.against}", each.max_relative, "")
        _add_runs(found, verified.repeats)

    def bench(self, found: Found) -> None:
        (result,) = bench([self.candidate], self.frames, self._config())
        latency = result.latency
        found.add("p50", latency.p50_ms, "ms")
        found.add("p50, low end of its 95 % interval", latency.p50_interval_ms[0], "ms")
        found.add("p50, high end of its 95 % interval", latency.p50_interval_ms[1], "ms")
        found.add("p99", latency.p99_ms, "ms")
        found.add("throughput", latency.throughput_hz, "frames/s")
        for name, stage in (result.stages | result.device_stages).items():
            found.add(f"{name}, p50", stage.p50_ms, "ms")
        joules = result.telemetry.joules_per_frame(latency.samples)
        if isinstance(joules, float):
            found.add("energy", joules, "J a frame")
        found.notes += [finding.what for finding in result.findings]
        _add_telemetry(found, result.telemetry)

    def stream(self, found: Found) -> None:
        def step(index: int) -> object:
            return self.candidate.predictor(self.frames[index % len(self.frames)])

        warm_up([step], 10)
        with TelemetrySampler() as sampler:
            result = stream(step, rate_hz=CAMERA_HZ, seconds=self.effort.stream_s)
        found.add("camera", CAMERA_HZ, "frames/s")
        found.add("age p50", result.age_p50_ms, "ms")
        found.add("age p99", result.age_p99_ms, "ms")
        found.add("deadline_miss_rate", 100 * result.deadline_miss_rate, "%")
        _add_telemetry(found, sampler.telemetry())

    def soak(self, found: Found) -> None:
        soaked = self._verified(found, self.effort.soak_s).soak
        assert soaked is not None, "it was asked for"
        _add_runs(found, soaked)
        found.add("duration", soaked.seconds, "s")
        if soaked.slowed:
            found.notes.append(f"it became slower: {soaked.first_ms:.3g} ms at first, {soaked.last_ms:.3g} ms at last")

    def _verified(self, found: Found, soak_s: float) -> Verification:
        session = self.candidate.predictor.session
        with TelemetrySampler() as sampler:
            verified = verify(session, self.artefact, self.artefact.manifest, soak_s=soak_s)
        check_verification(verified, self.path.name)
        found.notes += verified.notes
        if soak_s:
            _add_telemetry(found, sampler.telemetry())
        return verified

    def _config(self) -> BenchConfig:
        return BenchConfig(iterations=self.effort.iterations, warmup=self.effort.warmup)


def _add_runs(found: Found, runs: Runs) -> None:
    found.add("runs", runs.runs, "")
    found.add("runs that differ from the first", runs.differing, "")
    if runs.differing:
        found.add("worst pixel, against the first run", runs.max_relative, "")


def _add_telemetry(found: Found, telemetry: Telemetry) -> None:
    """The hottest zone, memory, the GPU's clock, and what makes figures hard to repeat."""
    zones = telemetry.temperatures if isinstance(telemetry.temperatures, dict) else {}
    hottest = [zone.most for zone in zones.values() if isinstance(zone, Reading)]
    if hottest:
        found.add("hottest zone", max(hottest), "°C")
    for name, said in {"memory": telemetry.memory_peak, "GPU clock": telemetry.gpu_clock, "GPU": telemetry.gpu}.items():
        if isinstance(said, Reading):
            found.add(name, said.most if name == "memory" else said.mean, said.unit)
    name, power = telemetry.power
    if isinstance(power, Reading):
        found.add(f"power of the {name}", power.mean, power.unit)
    found.notes += telemetry.remarks()


def steps_of(bench: Bench) -> Iterator[Step]:
    """Each step in turn; after one that did not pass, those that need it are skipped."""
    left = list(STEPS)
    while left:
        name = left.pop(0)
        step = run_step(name, getattr(bench, name), bench.stage)
        yield step
        if step.outcome != "passed" and not (name == "build" and bench.subject.no_engine):
            yield from skipped_after(name, left)
            return


def run_step(name: StepName, work: Callable[[Found], None], stage: Callable[[str], None]) -> Step:
    """Do one step; whatever it raises is its result."""
    stage(name)
    began, found = perf_counter(), Found()
    step = Step(name=name, outcome="passed")
    try:
        work(found)
    except SkippedError as why:
        step = replace(step, outcome="skipped", reason=str(why))
    except MissingError as error:
        step = replace(step, outcome="skipped", reason=f"{error.what} {error.why}")
    except MdeError as error:
        step = replace(step, outcome="failed", reason=f"{error.what} {error.why}")
    except Exception as error:  # a bug of ours or of a library's, which the report is to tell
        step = replace(step, outcome="failed", reason=f"{type(error).__name__}: {error} ({_where(error)})")
    figures = {key: figure for key, figure in found.figures.items() if np.isfinite(figure.value)}
    seconds = round(perf_counter() - began, 2)
    return replace(step, figures=figures, notes=tuple(dict.fromkeys(found.notes)), seconds=seconds)


def _where(error: Exception) -> str:
    """The innermost lines, by their files' names."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))


def main() -> None:
    """Serve the one request."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(kind: str, value: Any) -> None:
        channel.write(json.dumps({kind: value}) + "\n")
        channel.flush()

    request = json.loads(sys.stdin.read())
    subject = read_strict(Subject, request["subject"], "the request", "")
    effort = read_strict(Effort, request["effort"], "the request", "")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(subject=subject, effort=effort, folder=Path(folder), say=say, stack=stack)
        for step in steps_of(bench):
            say("step", asdict(step))


if __name__ == "__main__":
    main()
