"""The result of a self-test, as `selftest.json` holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Final, Literal

from mirrordepth_edge.bench.redact import Anonymiser
from mirrordepth_edge.config import Precision, Strict
from mirrordepth_edge.support.schema import read_strict

StepName = Literal["make", "build", "verify", "bench", "stream", "soak"]
Outcome = Literal["passed", "failed", "skipped"]
STEPS: Final[dict[StepName, str]] = {
    "make": "Get the ONNX file in this precision: shipped, or exported here.",
    "build": "Build an engine for this GPU and compare its depth with the ONNX file's.",
    "verify": "Compare depth with PyTorch's at export, and from run to run.",
    "bench": "Measure latency, from a frame in host memory to depth in host memory.",
    "stream": "Simulate a live camera: the age of the depth, and missed deadlines.",
    "soak": "Run without pause and check that depth does not change.",
}
LABELS: Final = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX", "onnxruntime": "ONNX Runtime"}


@dataclass(frozen=True, kw_only=True)
class Effort(Strict):
    """How long is measured."""

    iterations: int = 200
    """Timed frames."""
    warmup: int | None = None
    """Frames before those; until latencies are stable where None."""
    stream_s: float = 10.0
    soak_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Subject(Strict):
    """A model in a precision."""

    model: Literal["nano", "vitb16"]
    """`nano` as it ships; `vitb16` with random weights."""
    precision: Precision
    no_engine: str | None = None
    """Why the ONNX file is run instead of an engine."""

    def __str__(self) -> str:
        return f"{self.model} {self.precision.upper()}"


@dataclass(frozen=True, kw_only=True)
class Figure(Strict):
    """One measured value."""

    value: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Step(Strict):
    """The outcome of one step."""

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
    """What ran it; None if nothing did."""
    backend_version: str | None = None
    device: str | None = None
    steps: tuple[Step, ...]

    def step(self, name: StepName) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)

    def figure(self, name: StepName, figure: str) -> float | None:
        step = self.step(name)
        return step.figures[figure].value if step is not None and figure in step.figures else None

    @property
    def outcome(self) -> Outcome:
        """Failed if a step failed, skipped if no step but `make` passed."""
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
    """A machine, as the support matrix describes it. None is unknown."""

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
    """Versions of the backends that work here."""
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
        versions = [("JetPack", self.jetpack), ("driver", self.driver)]
        versions += [(label, self.runtimes.get(backend)) for backend, label in LABELS.items()]
        return ", ".join(f"{label} {version}" for label, version in versions if version)


@dataclass(frozen=True, kw_only=True)
class SelfTest(Strict):
    """The whole result."""

    schema_version: Literal[1] = 1
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
        """0 if all passed, 3 if a step failed, 4 if no engine was run."""
        outcomes = {result.outcome for result in self.tested}
        if "failed" in outcomes:
            return 3
        ran = any(result.outcome == "passed" and result.subject.no_engine is None for result in self.tested)
        return 0 if ran else 4


def skip_after(name: StepName) -> list[Step]:
    """The steps after one that did not pass, skipped: each needs those before it."""
    names = list(STEPS)
    later = names[names.index(name) + 1 :]
    return [Step(name=step, outcome="skipped", reason=f"{name} did not pass") for step in later]


VERSION_KEYS: Final = frozenset({"backend_version", "packages", "runtimes", "tensorrt_package"})
FIXED_KEYS: Final = frozenset({"model", "precision", "name", "outcome", "unit", "mirrordepth_edge", "made"})
"""Keys whose values are words of this package, or a GPU's name as CUDA reports it."""


def anonymise(result: SelfTest, anonymiser: Anonymiser | None = None) -> SelfTest:
    """Remove personal data from a result that is to be shared.

    Args:
        anonymiser: this machine's where None.
    """
    clean = (anonymiser or Anonymiser.here()).value(asdict(result), VERSION_KEYS, FIXED_KEYS)
    return read_strict(SelfTest, clean, "the self-test", "Please report it.")
