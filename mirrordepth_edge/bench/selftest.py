"""The self-test: check that everything works on this machine, and how fast it is.

Each subject, a model in a precision, is tested in a process of its own (`bench.selftest_worker`): a runtime that
crashes, or a GPU context that is lost, ends that subject and no other.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import product
from time import perf_counter
from typing import Any, Final, Literal

from mirrordepth_edge import __version__
from mirrordepth_edge.backends.base import Available
from mirrordepth_edge.backends.registry import backend
from mirrordepth_edge.bench.selftest_result import (
    LABELS,
    STEPS,
    Device,
    Effort,
    GpuFacts,
    SelfTest,
    Step,
    Subject,
    SubjectResult,
    skip_after,
)
from mirrordepth_edge.config import Precision
from mirrordepth_edge.engines import build
from mirrordepth_edge.errors import MissingError
from mirrordepth_edge.machine.device import installed_versions, machine
from mirrordepth_edge.machine.jetson import PowerMode
from mirrordepth_edge.machine.system import read_environment
from mirrordepth_edge.machine.unavailable import Unavailable
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.support.worker import WorkerExit, call_worker, command_of

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
COMMAND: Final = command_of("mirrordepth_edge.bench.selftest_worker")
TIMEOUT_S: Final = 3600.0
"""A subject that takes longer hangs; three engines of ViT-B/16 on an Orin Nano would take less."""
MODELS: Final[tuple[Literal["nano", "vitb16"], ...]] = ("nano", "vitb16")
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8")
QUICK: Final = Effort(iterations=60, warmup=20, stream_s=3.0, soak_s=3.0)
KILLED: Final = -9  # SIGKILL, which Windows lacks
MAX_LINES: Final = 3

OnStage = Callable[[str], object]


def run_selftest(
    *,
    quick: bool = False,
    soak_s: float | None = None,
    on_stage: OnStage = lambda stage: None,
    on_tested: Callable[[SubjectResult], object] = lambda tested: None,
) -> SelfTest:
    """Test this machine. What fails on it is part of the result.

    Args:
        quick: only `nano`, with fewer frames and seconds.
        soak_s: seconds of the soak test of each subject; those of `Effort` where None.
        on_stage: called with a description of what is being done.
        on_tested: called with each subject's result.

    Returns:
        The result with this machine's names and paths; `anonymise` removes them.
    """
    started, effort = perf_counter(), QUICK if quick else Effort()
    if soak_s is not None:
        effort = replace(effort, soak_s=soak_s)
    no_engine = _why_no_engine()

    vitb16_skipped = (
        "--quick tests only nano" if quick else "only nano is tested without an engine" if no_engine else None
    )

    def run_one(subject: Subject) -> SubjectResult:
        if subject.model == "vitb16" and vitb16_skipped:
            return SubjectResult(subject=subject, steps=(Step(name="make", outcome="skipped", reason=vitb16_skipped),))
        return run_in_child(subject, effort, lambda stage: on_stage(f"{subject}: {stage}"))

    results = []
    for model, precision in product(MODELS, PRECISIONS):
        results.append(run_one(Subject(model=model, precision=precision, no_engine=no_engine)))
        on_tested(results[-1])
    return SelfTest(
        mirrordepth_edge=__version__,
        made=f"{datetime.now(timezone.utc):%Y-%m-%d}",
        quick=quick,
        seconds=round(perf_counter() - started, 1),
        effort=effort,
        device=describe_device(),
        no_engine=no_engine,
        tested=tuple(results),
    )


def _why_no_engine() -> str | None:
    try:
        build.plan_build(build.HERE)
    except MissingError as error:
        return f"{error.what} {error.why}"
    return None


def run_in_child(
    subject: Subject,
    effort: Effort,
    on_stage: OnStage,
    *,
    command: Sequence[str] = COMMAND,
    timeout_s: float = TIMEOUT_S,
) -> SubjectResult:
    """Test a subject in a process of its own. If that dies, the step that ran failed."""
    steps: list[Step] = []
    ran_by: dict[str, str] = {}

    def on_event(kind: str, value: Any) -> None:
        if kind == "stage":
            on_stage(value)
        elif kind == "ran_by":
            ran_by.update(value)
        elif kind == "step":
            steps.append(read_strict(Step, value, "the self-test's process", ""))

    request = {"subject": asdict(subject), "effort": asdict(effort)}
    end = call_worker(command, request, on_event, timeout_s=timeout_s)
    if end.status != 0 and len(steps) < len(STEPS):
        # A step is reported when it is done, so the one after the last reported step was running.
        running = list(STEPS)[len(steps)]
        reason = f"it took longer than {timeout_s:g} s" if end.timed_out else _describe_exit(end)
        steps += [Step(name=running, outcome="failed", reason=reason), *skip_after(running)]
    return SubjectResult(subject=subject, steps=tuple(steps), **ran_by)


def _describe_exit(end: WorkerExit) -> str:
    how = f"was killed by signal {-end.status}" if end.status < 0 else f"exited with status {end.status}"
    memory = "; memory may have run out" if end.status == KILLED else ""
    return f"its process {how}{memory}. {' '.join(end.log[-MAX_LINES:])}".strip()


def describe_device() -> Device:
    """This machine, without its name, users, addresses and serial numbers."""
    here, environment = machine(), read_environment()
    probes = {name: backend(name).probe() for name in LABELS}
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
    """Such as `Linux 5.15.148`. The rest of a kernel's release may be a name that someone gave it."""
    numbers = re.match(r"[\d.]*", platform.release())
    return f"{platform.system()} {numbers[0] if numbers else ''}".strip()


def _known(value: str | Unavailable) -> str | None:
    return value if isinstance(value, str) else None
