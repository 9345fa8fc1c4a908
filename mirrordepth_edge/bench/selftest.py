"""The self-test: does everything work on this machine, and how fast; one file to send back for the support matrix.

Each subject, a model in a precision, is made, built, verified, timed, put behind a camera and run for a while, in a
process of its own (`bench.selftest_worker`): a runtime that crashes, or a GPU context that is lost, ends that subject
and no other.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from threading import Timer
from time import perf_counter
from typing import Any, Final, Literal

from mirrordepth_edge import __version__
from mirrordepth_edge.backends.base import Available
from mirrordepth_edge.backends.registry import backend
from mirrordepth_edge.bench.redact import Anonymiser
from mirrordepth_edge.config import Precision, Strict
from mirrordepth_edge.engines import build
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.machine.device import installed_versions, machine
from mirrordepth_edge.machine.jetson import PowerMode
from mirrordepth_edge.machine.system import read_environment
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.support.files import existing_file
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.support.worker import command_of

VERSION: Final = 1
PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "polygraphy",
    "torch",
    "nvidia-modelopt",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)
RUNTIMES: Final = ("tensorrt", "tensorrt-rtx", "onnxruntime")
"""Backends that the test uses."""
COMMAND: Final = command_of("mirrordepth_edge.bench.selftest_worker")
MOST_S: Final = 3600.0
"""A subject that takes longer hangs; on an Orin Nano three engines of ViT-B/16 would take less."""

StepName = Literal["make", "build", "verify", "bench", "stream", "soak"]
Outcome = Literal["passed", "failed", "skipped"]
MODELS: Final = ("nano", "vitb16")
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8")
STEPS: Final[dict[StepName, str]] = {
    "make": "the ONNX file in this precision: shipped, or made here",
    "build": "an engine for this GPU, whose depth was held to its ONNX file's",
    "verify": "depth is what PyTorch gave at export, and the same each time",
    "bench": "latency, frame in host memory to metres in host memory",
    "stream": "behind a camera that does not wait: how old depth is",
    "soak": "runs without pause, whose depth stays the same",
}


@dataclass(frozen=True, kw_only=True)
class Effort(Strict):
    """How long is measured."""

    iterations: int = 200
    """Timed frames."""
    warmup: int | None = None
    """Frames before those; until times have settled where None."""
    stream_s: float = 10.0
    soak_s: float = 30.0


QUICK = Effort(iterations=60, warmup=20, stream_s=3.0, soak_s=3.0)


@dataclass(frozen=True, kw_only=True)
class Subject(Strict):
    """What is tested."""

    model: Literal["nano", "vitb16"]
    """`nano` as it ships; `vitb16` has random weights."""
    precision: Precision
    no_engine: str | None = None
    """Why the ONNX file itself is run, and no engine."""

    def __str__(self) -> str:
        return f"{self.model} {self.precision.upper()}"


@dataclass(frozen=True, kw_only=True)
class Figure(Strict):
    """One measured value."""

    value: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Step(Strict):
    """What came of one step."""

    name: StepName
    outcome: Outcome
    reason: str | None = None
    """Why it failed or was skipped."""
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SubjectResult(Strict):
    """A subject with its steps, in their order."""

    subject: Subject
    backend: str | None = None
    """What ran it; None where nothing did."""
    backend_version: str | None = None
    device: str | None = None
    steps: tuple[Step, ...]

    def step(self, name: StepName) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)

    def figure(self, name: StepName, figure: str) -> float | None:
        step = self.step(name)
        found = step.figures.get(figure) if step is not None else None
        return None if found is None else found.value

    @property
    def outcome(self) -> Outcome:
        """Failed where a step failed, skipped where none but `make` ran."""
        if any(step.outcome == "failed" for step in self.steps):
            return "failed"
        ran = any(step.outcome == "passed" and step.name != "make" for step in self.steps)
        return "passed" if ran else "skipped"


@dataclass(frozen=True, kw_only=True)
class GpuFacts(Strict):
    """A GPU, as its driver names it."""

    name: str
    compute_capability: str
    memory_mib: int
    cuda: str


@dataclass(frozen=True, kw_only=True)
class Device(Strict):
    """What a row of the support matrix says of a machine; None is unknown."""

    board: str | None
    """A Jetson's."""
    cpu: str
    cores: int
    memory_mib: int | None
    gpus: tuple[GpuFacts, ...]
    system: str
    architecture: str
    python: str
    jetpack: str | None
    l4t: str | None
    driver: str | None
    cuda_toolkit: str | None
    tensorrt_package: str | None
    power_mode: str | None
    clocks: tuple[str, ...]
    governor: str | None
    runtimes: dict[str, str]
    """Versions of `RUNTIMES` that work here."""
    absent: dict[str, str]
    """Why the others do not."""
    packages: dict[str, str]

    @property
    def name(self) -> str:
        """The board, else the GPU, else the CPU."""
        return self.board or (self.gpus[0].name if self.gpus else f"{self.cpu}, {self.cores} cores")

    @property
    def software(self) -> str:
        """Such as `JetPack 6.2, driver 540.4.0, TensorRT 10.3.0`."""
        labels = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX", "onnxruntime": "ONNX Runtime"}
        said = [("JetPack", self.jetpack), ("driver", self.driver)]
        said += [(label, self.runtimes.get(backend)) for backend, label in labels.items()]
        return ", ".join(f"{label} {version}" for label, version in said if version)


@dataclass(frozen=True, kw_only=True)
class SelfTest(Strict):
    """The whole result."""

    schema_version: Literal[1] = VERSION
    mirrordepth_edge: str
    made: str
    """The day, in UTC."""
    quick: bool
    seconds: float
    effort: Effort
    device: Device
    no_engine: str | None
    """Why no engine can be built on this machine."""
    tested: tuple[SubjectResult, ...]

    @property
    def exit_code(self) -> int:
        """0 passed, 3 a step failed, 4 no engine was run."""
        if any(each.outcome == "failed" for each in self.tested):
            return 3
        ran = any(each.outcome == "passed" and each.subject.no_engine is None for each in self.tested)
        return 0 if ran else 4

    def rows(self) -> list[tuple[str, ...]]:
        """Rows of the support matrix under `ROW_HEADER`, one for each model that ran."""
        return [
            (
                self.device.name,
                self.device.software,
                f"{each.subject} in {each.backend or 'nothing'}",
                _passed(each.steps),
                _cell(each.figure("bench", "p50")),
                _cell(each.figure("stream", "age p50")),
                f"{self.mirrordepth_edge}, {self.made}",
            )
            for each in self.tested
            if each.outcome != "skipped"
        ]


ROW_HEADER = ("device", "software", "model", "passed", "p50 (ms)", "age p50 (ms)", "tested with")
OnStage = Callable[[str], object]
Runner = Callable[[Subject, Effort, OnStage], SubjectResult]


def run_selftest(
    *,
    quick: bool = False,
    soak_s: float | None = None,
    on_stage: Callable[[str], object] = lambda stage: None,
    on_tested: Callable[[SubjectResult], object] = lambda tested: None,
    run: Runner | None = None,
) -> SelfTest:
    """Test this machine; never raises for what fails on it.

    Args:
        quick: `nano` alone, and less of everything.
        soak_s: seconds of runs without pause, for each subject; those of `Effort` where None.
        on_stage: told what is being done.
        on_tested: told of each subject when it is done.
        run: what tests one subject; `in_child` where None.

    Returns:
        The result as it is on this machine: `anonymous` makes of it what may be sent.
    """
    began, effort, no_engine = perf_counter(), QUICK if quick else Effort(), None
    if soak_s is not None:
        effort = replace(effort, soak_s=soak_s)

    def staged(subject: Subject) -> OnStage:
        return lambda stage: on_stage(f"{subject}: {stage}")

    try:
        build.plan_build(build.HERE)
    except MissingError as error:
        no_engine = f"{error.what} {error.why}"
    tested = []
    for model in MODELS:
        for precision in PRECISIONS:
            subject = Subject(model=model, precision=precision, no_engine=no_engine)
            if (why := _left_out(subject, quick)) is not None:
                done = SubjectResult(subject=subject, steps=(Step(name="make", outcome="skipped", reason=why),))
            else:
                done = (run or in_child)(subject, effort, staged(subject))
            tested.append(done)
            on_tested(done)
    return SelfTest(
        mirrordepth_edge=__version__,
        made=f"{datetime.now(timezone.utc):%Y-%m-%d}",
        quick=quick,
        seconds=round(perf_counter() - began, 1),
        effort=effort,
        device=describe_device(),
        no_engine=no_engine,
        tested=tuple(tested),
    )


def _left_out(subject: Subject, quick: bool) -> str | None:
    if subject.model == "nano":
        return None
    if quick:
        return "--quick tests nano alone"
    return "without an engine nano alone is tested" if subject.no_engine else None


def in_child(
    subject: Subject,
    effort: Effort,
    on_stage: OnStage,
    *,
    command: Sequence[str] = COMMAND,
    most_s: float = MOST_S,
) -> SubjectResult:
    """Test a subject in a process of its own, whose death is a result as well."""
    steps: list[Step] = []
    ran_by: dict[str, str] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8"
        )
        timer = Timer(most_s, process.kill)
        timer.start()
        began = perf_counter()
        try:
            assert process.stdin is not None, "it is a pipe"
            assert process.stdout is not None, "it is a pipe"
            process.stdin.write(json.dumps({"subject": asdict(subject), "effort": asdict(effort)}))
            process.stdin.close()
            for line in process.stdout:
                message: dict[str, Any] = json.loads(line)
                if "stage" in message:
                    on_stage(message["stage"])
                elif "ran_by" in message:
                    ran_by = message["ran_by"]
                else:
                    steps.append(read_strict(Step, message["step"], "the self-test's process", ""))
            code = process.wait()
        except (BrokenPipeError, ValueError):  # it died before it read, or while it wrote
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        said.seek(0)
        last_words = " ".join(line.strip() for line in said.readlines()[-3:])
    if code != 0:
        late = perf_counter() - began >= most_s
        steps = _ended(steps, f"it took longer than {most_s:g} s" if late else _death(code, last_words))
    return SubjectResult(subject=subject, steps=tuple(steps), **ran_by)


def _ended(steps: list[Step], why: str) -> list[Step]:
    """The step that was in work failed, and the rest did not come to pass."""
    left = list(STEPS)[len(steps) :]
    failed = [Step(name=name, outcome="failed", reason=why) for name in left[:1]]
    return [*steps, *failed, *skipped_after(left[0], left[1:])] if left else steps


def skipped_after(name: StepName, left: Sequence[StepName]) -> list[Step]:
    """Steps that need one that did not pass."""
    return [Step(name=each, outcome="skipped", reason=f"{name} did not pass") for each in left]


def _death(code: int, last_words: str) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    memory = "; memory may have run out" if code == -9 else ""
    return f"its process {how}{memory}. {last_words}".strip()


def describe_device() -> Device:
    """This machine, without its name, its users, its addresses or its serial numbers."""
    here, environment, probes = machine(), read_environment(), {name: backend(name).probe() for name in RUNTIMES}
    mode = environment.power_mode
    return Device(
        board=here.jetson,
        cpu=here.cpu,
        cores=here.cores,
        memory_mib=None if isinstance(environment.memory, Unavailable) else environment.memory.total_mib,
        gpus=tuple(
            GpuFacts(name=gpu.name, compute_capability=gpu.compute_capability, memory_mib=gpu.memory_mib, cuda=gpu.cuda)
            for gpu in here.gpus
        ),
        system=_system(),
        architecture=here.architecture,
        python=here.python,
        jetpack=_known(environment.jetpack),
        l4t=here.l4t,
        driver=_known(environment.driver),
        cuda_toolkit=_known(environment.cuda_toolkit),
        tensorrt_package=_known(environment.tensorrt_package),
        power_mode=mode.name if isinstance(mode, PowerMode) else None,
        clocks=tuple(
            f"{clock.name} {clock.low_mhz:.0f} to {clock.high_mhz:.0f} MHz{', locked' if clock.locked else ''}"
            for clock in environment.clocks
        ),
        governor=_known(environment.governor),
        runtimes={name: probe.version for name, probe in probes.items() if isinstance(probe, Available)},
        absent={name: probe.reason for name, probe in probes.items() if not isinstance(probe, Available)},
        packages=installed_versions(PACKAGES),
    )


def _system() -> str:
    """Such as `Linux 5.15.148`: what follows a kernel's numbers may be a name that someone gave it."""
    numbers = re.match(r"[\d.]*", platform.release())
    return f"{platform.system()} {numbers[0] if numbers else ''}".strip()


def _known(value: str | Unavailable) -> str | None:
    return value if isinstance(value, str) else None


VERSIONS = frozenset({"backend_version", "packages", "runtimes", "tensorrt_package"})
FIXED = frozenset({"model", "precision", "name", "outcome", "unit", "mirrordepth_edge", "made"})
"""Keys whose values are this package's own words, or the CUDA driver's for a GPU."""


def anonymous(result: SelfTest, anonymiser: Anonymiser | None = None) -> SelfTest:
    """What of a result may be sent to others; see `bench.anonymous`."""
    clean = (anonymiser or Anonymiser.here()).value(asdict(result), VERSIONS, FIXED)
    return read_strict(SelfTest, clean, "the self-test", "Please report it.")


def read_selftest(path: Path) -> SelfTest:
    """A `selftest.json` that somebody sent.

    Raises:
        InputError: it is none, or of another version.
    """
    existing_file(path, "self-test")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        data = None
    return read_strict(SelfTest, data, str(path), "Make it again: mde selftest --report FOLDER")


def _passed(steps: Sequence[Step]) -> str:
    """Such as `make, build, verify failed`."""
    ran = (step for step in steps if step.outcome != "skipped")
    return ", ".join(step.name if step.outcome == "passed" else f"{step.name} failed" for step in ran)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
