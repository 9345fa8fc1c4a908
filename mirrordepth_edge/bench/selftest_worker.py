"""Test one subject in a process of its own, with `support.worker.serve`.

Events: `stage` (what is being done), `ran_by` (backend, version and device) and `step`, each step when it is done.
"""

from __future__ import annotations

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
from mirrordepth_edge.bench.artefacts import PRESET, ArtefactRequest, cache_folder, find_or_make
from mirrordepth_edge.bench.measure import Candidate, bench, camera_frames, open_candidate, warm_up
from mirrordepth_edge.bench.selftest_result import STEPS, Effort, Figure, Step, StepName, Subject, skip_after
from mirrordepth_edge.bench.stream import stream
from mirrordepth_edge.config import BenchConfig, Precision, QuantiseConfig
from mirrordepth_edge.engines.build import is_verified
from mirrordepth_edge.engines.cache import cached_engine
from mirrordepth_edge.errors import MdeError, MissingError
from mirrordepth_edge.export.parity import FRAMES_DIR, reference_frames
from mirrordepth_edge.export.verify import Runs, Verification, check_verification, verify
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.machine.sampler import TelemetrySampler
from mirrordepth_edge.machine.telemetry import SensorReading, Telemetry
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.support.worker import Emit, serve

CAMERA_HZ: Final = 30.0
MB: Final = 1e6


@dataclass
class Measurements:
    """What a step adds to its outcome."""

    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str) -> None:
        self.figures[name] = Figure(value=float(f"{value:.6g}"), unit=unit)

    def add_runs(self, runs: Runs) -> None:
        self.add("runs", runs.runs, "")
        self.add("runs that differ from the first", runs.differing, "")
        if runs.differing:
            self.add("worst pixel, against the first run", runs.max_relative, "")

    def add_telemetry(self, telemetry: Telemetry) -> None:
        """Add the hottest zone, memory, clock, load and power, and warnings about unstable conditions."""
        zones = telemetry.temperatures if isinstance(telemetry.temperatures, dict) else {}
        hottest = [zone.most for zone in zones.values() if isinstance(zone, SensorReading)]
        if hottest:
            self.add("hottest zone", max(hottest), "°C")
        if isinstance(telemetry.memory_peak, SensorReading):
            self.add("memory", telemetry.memory_peak.most, telemetry.memory_peak.unit)
        supply, power = telemetry.power
        means = {"GPU clock": telemetry.gpu_clock, "GPU": telemetry.gpu, f"power of the {supply}": power}
        for name, reading in means.items():
            if isinstance(reading, SensorReading):
                self.add(name, reading.mean, reading.unit)
        self.notes += telemetry.remarks()


@dataclass
class SubjectTest:
    """The steps of one subject. Each needs those before it."""

    subject: Subject
    effort: Effort
    folder: Path
    """For temporary files."""
    emit: Emit
    stack: ExitStack
    onnx: Artefact = field(init=False)
    artefact: Artefact = field(init=False)
    """The file that is run: the engine, or the ONNX file itself."""
    candidate: Candidate = field(init=False)
    frames: list[Frame] = field(init=False)

    def stage(self, text: str) -> None:
        self.emit("stage", text)

    def make(self, measured: Measurements) -> None:
        precision = self.subject.precision
        self.artefact = self.onnx = self._quantise() if precision == "int8" else self._export(precision)
        measured.add("size", self.onnx.path.stat().st_size / MB, "MB")
        manifest = self.onnx.manifest
        quantisation = manifest.quantisation
        if quantisation is not None and quantisation.accuracy is not None:
            measured.add("AbsRel against FP32's depth", quantisation.accuracy.figures.abs_rel, "")
            measured.notes.append(
                "INT8 for the self-test only: calibrated with the package's "
                f"{quantisation.calibration_frames} reference images"
            )
        if not manifest.trained:
            measured.notes.append(
                f"{self.subject.model} has random weights: its speed is realistic, its depth is meaningless"
            )

    def _export(self, precision: Precision) -> Artefact:
        model = self.subject.model if self.subject.model == "nano" else PRESET + self.subject.model
        return find_or_make(ArtefactRequest(model=model, precision=precision), cache_folder(), on_stage=self.stage)

    def _quantise(self) -> Artefact:
        from mirrordepth_edge.quantise.pipeline import Int8Quantizer, ProgressCallback
        from mirrordepth_edge.quantise.write_calibration_set import pictures_as_set

        fp32 = self._export("fp32")
        quantizer = Int8Quantizer(
            fp32=fp32,
            calibration=pictures_as_set(FRAMES_DIR, f"selftest-only-{self.subject.model}"),
            # Calibrated with so few images the model may fail the accuracy check; its speed is measured all the same.
            config=QuantiseConfig(scheme="cpu" if self.subject.no_engine else "gpu", force=True),
            folder=self.folder,
            progress=ProgressCallback(stage=lambda name, steps: self.stage(name)),
        )
        output = self.folder / f"{self.subject.model}.int8.onnx"
        quantizer.write(output, quantizer.fit(), fp32.sha256)
        return Artefact.open(output)

    def build(self, measured: Measurements) -> None:
        cached = cached_engine(self.onnx, on_stage=self.stage)
        self.artefact, manifest = cached.artefact, cached.artefact.manifest
        assert manifest.engine is not None, "a plan has an engine"
        measured.add("size", self.artefact.path.stat().st_size / MB, "MB")
        measured.add("build", manifest.engine.build_seconds, "s")
        if manifest.engine.peak_memory_mb is not None:
            measured.add("main memory at most", manifest.engine.peak_memory_mb, "MB")
        if is_verified(manifest):
            measured.add("mean relative, against its ONNX file", manifest.parity.mean_relative, "")
        if not cached.built:
            measured.notes.append(f"from the engine cache: {cached.why}")

    def verify(self, measured: Measurements) -> None:
        self.candidate = open_candidate(self.artefact)
        self.stack.callback(self.candidate.predictor.close)
        session = self.candidate.predictor.session
        self.emit("ran_by", {"backend": session.backend, "backend_version": session.version, "device": session.device})
        self.frames = camera_frames(reference_frames(), self._config())
        verification = self._verify(measured, 0.0)
        for comparison in verification.comparisons:
            measured.add(f"mean relative, against {comparison.against}", comparison.mean_relative, "")
            measured.add(f"worst pixel, against {comparison.against}", comparison.max_relative, "")
        measured.add_runs(verification.repeats)

    def bench(self, measured: Measurements) -> None:
        (result,) = bench([self.candidate], self.frames, self._config())
        latency = result.latency
        measured.add("p50", latency.p50_ms, "ms")
        measured.add("p50, low end of its 95 % interval", latency.p50_interval_ms[0], "ms")
        measured.add("p50, high end of its 95 % interval", latency.p50_interval_ms[1], "ms")
        measured.add("p99", latency.p99_ms, "ms")
        measured.add("throughput", latency.throughput_hz, "frames/s")
        for name, stage in (result.stages | result.device_stages).items():
            measured.add(f"{name}, p50", stage.p50_ms, "ms")
        joules = result.telemetry.joules_per_frame(latency.samples)
        if isinstance(joules, float):
            measured.add("energy", joules, "J a frame")
        measured.notes += [finding.what for finding in result.findings]
        measured.add_telemetry(result.telemetry)

    def stream(self, measured: Measurements) -> None:
        def step(index: int) -> object:
            return self.candidate.predictor(self.frames[index % len(self.frames)])

        warm_up([step], 10)
        with TelemetrySampler() as sampler:
            result = stream(step, rate_hz=CAMERA_HZ, seconds=self.effort.stream_s)
        measured.add("camera", CAMERA_HZ, "frames/s")
        measured.add("age p50", result.age_p50_ms, "ms")
        measured.add("age p99", result.age_p99_ms, "ms")
        measured.add("deadline_miss_rate", 100 * result.deadline_miss_rate, "%")
        measured.add_telemetry(sampler.telemetry())

    def soak(self, measured: Measurements) -> None:
        soak = self._verify(measured, self.effort.soak_s).soak
        assert soak is not None, "its duration is above 0"
        measured.add_runs(soak)
        measured.add("duration", soak.seconds, "s")
        if soak.slowed:
            measured.notes.append(f"latency increased from {soak.first_ms:.3g} to {soak.last_ms:.3g} ms")

    def _verify(self, measured: Measurements, soak_s: float) -> Verification:
        session = self.candidate.predictor.session
        with TelemetrySampler() as sampler:
            verification = verify(session, self.artefact, self.artefact.manifest, soak_s=soak_s)
        check_verification(verification, self.artefact.name)
        measured.notes += verification.notes
        if soak_s:
            measured.add_telemetry(sampler.telemetry())
        return verification

    def _config(self) -> BenchConfig:
        return BenchConfig(iterations=self.effort.iterations, warmup=self.effort.warmup)


def run_steps(test: SubjectTest) -> Iterator[Step]:
    """Run each step in turn. After one that did not pass, the others are skipped."""
    for name in STEPS:
        if name == "build" and test.subject.no_engine is not None:
            yield Step(name=name, outcome="skipped", reason=test.subject.no_engine)
            continue
        step = run_step(name, getattr(test, name), test.stage)
        yield step
        if step.outcome != "passed":
            yield from skip_after(name)
            return


def run_step(name: StepName, work: Callable[[Measurements], None], stage: Callable[[str], None]) -> Step:
    """Run one step. An exception that it raises becomes its outcome."""
    stage(name)
    started, measured = perf_counter(), Measurements()
    step = Step(name=name, outcome="passed")
    try:
        work(measured)
    except MdeError as error:
        # What this machine lacks is no failure of the package.
        outcome: Any = "skipped" if isinstance(error, MissingError) else "failed"
        step = replace(step, outcome=outcome, reason=f"{error.what} {error.why}")
    except Exception as error:  # a bug here or in a library, which the report must show
        step = replace(step, outcome="failed", reason=f"{type(error).__name__}: {error} ({_where(error)})")
    # JSON has no NaN and no infinity.
    figures = {key: figure for key, figure in measured.figures.items() if np.isfinite(figure.value)}
    seconds = round(perf_counter() - started, 2)
    return replace(step, figures=figures, notes=tuple(dict.fromkeys(measured.notes)), seconds=seconds)


def _where(error: Exception) -> str:
    """The innermost lines of a traceback, with file names only."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))


def handle(request: dict[str, Any], emit: Emit) -> None:
    """Test the requested subject.

    Args:
        request: `subject` and `effort`.
    """
    subject = read_strict(Subject, request["subject"], "the request", "")
    effort = read_strict(Effort, request["effort"], "the request", "")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        test = SubjectTest(subject=subject, effort=effort, folder=Path(folder), emit=emit, stack=stack)
        for step in run_steps(test):
            emit("step", asdict(step))


def main() -> None:
    """Serve one request."""
    serve(handle)


if __name__ == "__main__":
    main()
