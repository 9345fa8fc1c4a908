"""The self-test: subjects, failures, the worker process, and the removal of personal data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrordepth_edge.artefact import Artefact
from mirrordepth_edge.bench import selftest, selftest_worker
from mirrordepth_edge.bench.redact import Anonymiser
from mirrordepth_edge.bench.selftest import describe_device, run_in_child, run_selftest
from mirrordepth_edge.bench.selftest_result import (
    STEPS,
    Effort,
    Figure,
    GpuFacts,
    SelfTest,
    Step,
    StepName,
    Subject,
    SubjectResult,
    anonymise,
)
from mirrordepth_edge.bench.selftest_worker import Measurements, SubjectTest, run_step, run_steps
from mirrordepth_edge.engines import build
from mirrordepth_edge.engines.build import BuildPlan
from mirrordepth_edge.errors import GateError, MissingError
from mirrordepth_edge.machine.device import Gpu
from mirrordepth_edge.support import worker
from mirrordepth_edge.support.files import write_json
from mirrordepth_edge.support.schema import read_strict

PLAN = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=True, version="10.3.0")
NANO = Subject(model="nano", precision="fp32", no_engine="there is no GPU")
SHORT = Effort(iterations=3, warmup=1, stream_s=0.2, soak_s=0.05)


def passed(subject: Subject, *_: object) -> SubjectResult:
    bench = Step(name="bench", outcome="passed", figures={"p50": Figure(value=12.34, unit="ms")})
    stream = Step(name="stream", outcome="passed", figures={"age p50": Figure(value=34.56, unit="ms")})
    steps = (Step(name="make", outcome="passed"), bench, stream)
    return SubjectResult(subject=subject, backend="tensorrt", backend_version="10.3.0", device="Orin", steps=steps)


def failed(subject: Subject, *_: object) -> SubjectResult:
    return SubjectResult(subject=subject, steps=(Step(name="make", outcome="failed", reason="no"),))


def selftest_with(run: Callable[..., SubjectResult], **options: Any) -> SelfTest:
    """Run the self-test with `run` instead of a worker process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selftest, "run_in_child", run)
        return run_selftest(**options)


def read_result(path: Path) -> SelfTest:
    return read_strict(SelfTest, json.loads(path.read_text(encoding="utf-8")), str(path), "")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "plan_build", lambda target: PLAN)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "nvidia_gpus", lambda: ())


@pytest.mark.usefixtures("gpu")
def test_with_a_gpu_both_models_are_tested_in_every_precision() -> None:
    asked: list[Subject] = []
    reported: list[SubjectResult] = []

    def run(subject: Subject, effort: Effort, on_stage: Callable[[str], object]) -> SubjectResult:
        asked.append(subject)
        assert effort == Effort()
        return passed(subject)

    result = selftest_with(run, on_tested=reported.append)
    models = [(subject.model, subject.precision, subject.no_engine) for subject in asked]
    assert models == [
        (model, precision, None) for model in ("nano", "vitb16") for precision in ("fp32", "fp16", "int8")
    ]
    assert reported == list(result.tested)
    assert (result.exit_code, result.no_engine) == (0, None)


@pytest.mark.usefixtures("gpu")
def test_quick_tests_only_nano() -> None:
    efforts: list[Effort] = []

    def run(subject: Subject, effort: Effort, on_stage: Callable[[str], object]) -> SubjectResult:
        efforts.append(effort)
        return passed(subject)

    result = selftest_with(run, quick=True)
    assert len(efforts) == 3
    assert efforts[0].iterations < Effort().iterations
    assert [tested.outcome for tested in result.tested] == ["passed"] * 3 + ["skipped"] * 3
    assert "--quick" in (result.tested[-1].steps[0].reason or "")
    assert result.exit_code == 0


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_onnx_files_are_tested_and_it_exits_with_4() -> None:
    result = selftest_with(passed)
    assert "no NVIDIA GPU" in (result.no_engine or "")
    assert [tested.outcome for tested in result.tested] == ["passed"] * 3 + ["skipped"] * 3
    assert result.exit_code == 4


@pytest.mark.usefixtures("gpu")
def test_a_failure_does_not_stop_the_others_and_exits_with_3() -> None:
    result = selftest_with(lambda *request: (failed if request[0].precision == "fp32" else passed)(*request))
    assert [tested.outcome for tested in result.tested] == ["failed", "passed", "passed"] * 2
    assert result.exit_code == 3


@pytest.mark.usefixtures("gpu")
def test_it_exits_with_4_if_no_engine_ran() -> None:
    def skipped(subject: Subject, *_: object) -> SubjectResult:
        steps = (Step(name="make", outcome="passed"), Step(name="build", outcome="skipped", reason="no cuda-python"))
        return SubjectResult(subject=subject, steps=steps)

    assert selftest_with(skipped).exit_code == 4


def test_a_device_is_named_by_its_board_then_its_gpu_then_its_cpu() -> None:
    device = replace(describe_device(), board=None, gpus=(), cpu="a CPU", cores=2)
    assert device.name == "a CPU, 2 cores"
    card = GpuFacts(name="RTX 4090", compute_capability="8.9", memory_mib=24564, cuda="12.8")
    assert replace(device, gpus=(card,)).name == "RTX 4090"
    assert replace(device, gpus=(card,), board="a board").name == "a board"


# One subject in its process.


def child(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


SAYS = (
    "import json, sys; r = json.loads(sys.stdin.readline()); say = lambda **what: print(json.dumps(what), flush=True); "
)
MADE = "say(step={'name': 'make', 'outcome': 'passed'}); "


def test_events_of_the_child_make_the_result() -> None:
    stages: list[str] = []
    program = SAYS + (
        "say(stage='hello ' + r['subject']['model']); "
        "say(ran_by={'backend': 'b', 'backend_version': '1', 'device': 'd'});"
        + MADE
        + "print('a library warns', file=sys.stderr)"
    )
    result = run_in_child(NANO, SHORT, stages.append, command=child(program))
    assert stages == ["hello nano"]
    assert (result.backend, result.backend_version, result.device) == ("b", "1", "d")
    assert result.steps == (Step(name="make", outcome="passed"),)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("import os; print('CUDA error 700', file=sys.stderr, flush=True); os.abort()", ("signal 6", "CUDA error 700")),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ("signal 9", "memory may have run out")),
        ("raise SystemExit(7)", ("exited with status 7",)),
        ("print('no JSON'); raise SystemExit(1)", ("exited with status 1",)),
        ("say(stage='stuck'); import time; time.sleep(600)", ("longer than",)),
    ],
)
def test_if_the_child_dies_its_current_step_failed(
    ending: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Callable[[], None]] = []

    class WhenStuck:
        """A timer that expires when the child reports that it is stuck."""

        def __init__(self, seconds: float, end: Callable[[], None]) -> None:
            ends.append(end)

        def start(self) -> None: ...

        def cancel(self) -> None: ...

    seconds = 600.0
    if "stuck" in ending:
        monkeypatch.setattr(worker, "Timer", WhenStuck)
        seconds = 1e-3
    result = run_in_child(NANO, SHORT, lambda stage: ends[0](), command=child(SAYS + MADE + ending), timeout_s=seconds)
    assert [(step.name, step.outcome) for step in result.steps] == [
        ("make", "passed"),
        ("build", "failed"),
        *((name, "skipped") for name in ("verify", "bench", "stream", "soak")),
    ]
    assert all(word in (result.steps[1].reason or "") for word in words)
    assert result.steps[2].reason == "build did not pass"


def test_if_the_child_does_not_start_the_first_step_failed() -> None:
    result = run_in_child(NANO, SHORT, lambda stage: None, command=child("raise SystemExit(3)"))
    assert [step.outcome for step in result.steps] == ["failed"] + ["skipped"] * 5


def subject_test(subject: Subject, tmp_path: Path, events: list[Any] | None = None) -> SubjectTest:
    def emit(kind: str, value: Any) -> None:
        if events is not None:
            events.append((kind, value))

    return SubjectTest(subject=subject, effort=SHORT, folder=tmp_path, emit=emit, stack=ExitStack())


@pytest.mark.parametrize(
    ("error", "outcome", "words"),
    [
        (MissingError("No PyTorch.", "It is not installed.", "pip"), "skipped", "No PyTorch. It is not installed."),
        (GateError("Wrong depth.", "By 3 %.", "Build it again."), "failed", "Wrong depth. By 3 %."),
        (ZeroDivisionError("of ours"), "failed", "ZeroDivisionError: of ours (test_selftest.py"),
    ],
)
def test_an_exception_is_the_outcome_of_its_step(error: Exception, outcome: str, words: str) -> None:
    def work(measured: Measurements) -> None:
        measured.add("so far", 1.0, "s")
        raise error

    step = run_step("bench", work, lambda stage: None)
    assert step.outcome == outcome
    assert words in (step.reason or "")
    assert step.figures == {"so far": Figure(value=1.0, unit="s")}, "figures measured before the error are kept"


def test_figures_that_are_not_finite_are_left_out() -> None:
    def work(measured: Measurements) -> None:
        measured.add("bad", float("nan"), "ms")
        measured.add("worse", float("inf"), "ms")

    step = run_step("bench", work, lambda stage: None)
    assert step.figures == {}
    json.dumps(asdict(step), allow_nan=False)


def test_the_steps_after_a_failed_one_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[StepName] = []

    def working(name: StepName) -> Callable[[SubjectTest, Measurements], None]:
        def work(test: SubjectTest, measured: Measurements) -> None:
            done.append(name)
            if name == "build":
                raise MissingError("No CUDA.", "", "")

        return work

    for name in STEPS:
        monkeypatch.setattr(SubjectTest, name, working(name))
    steps = list(run_steps(subject_test(replace(NANO, no_engine=None), tmp_path)))
    assert done == ["make", "build"]
    assert [step.outcome for step in steps] == ["passed"] + ["skipped"] * 5
    assert {step.reason for step in steps[2:]} == {"build did not pass"}
    done.clear()
    assert [step.outcome for step in run_steps(subject_test(NANO, tmp_path))] == ["passed", "skipped", *["passed"] * 4]


def test_all_steps_of_an_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrordepth_edge.export.verify.REPEATS", 1)
    events: list[Any] = []
    with subject_test(NANO, tmp_path, events).stack:
        steps = {step.name: step for step in run_steps(subject_test(NANO, tmp_path, events))}
    assert {name: step.outcome for name, step in steps.items()} == dict.fromkeys(STEPS, "passed") | {"build": "skipped"}
    assert steps["build"].reason == "there is no GPU"
    (ran_by,) = (value for kind, value in events if kind == "ran_by")
    assert (ran_by["backend"], ran_by["device"]) == ("onnxruntime", "cpu")
    mean = [figure.value for name, figure in steps["verify"].figures.items() if name.startswith("mean relative")]
    assert 0 <= mean[0] < 1e-4
    bench = steps["bench"].figures
    assert bench["p50"].unit == "ms"
    assert bench["throughput"].value > 0
    assert steps["stream"].figures["age p50"].value > 0
    assert steps["soak"].figures["runs that differ from the first"].value == 0


def test_int8_is_calibrated_with_the_reference_images_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache"))
    bench = subject_test(replace(NANO, precision="int8"), tmp_path)
    step = run_step("make", bench.make, lambda stage: None)
    assert step.outcome == "passed", step.reason
    quantisation = bench.onnx.manifest.quantisation
    assert quantisation is not None
    assert (quantisation.scheme, quantisation.calibration_frames) == ("cpu", 3)
    assert quantisation.calibration == "selftest-only-nano"
    assert any("for the self-test only" in note for note in step.notes)


def test_the_engine_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(flavour="tensorrt", build_seconds=12.5, peak_memory_mb=800.0)
    plan = tmp_path / "e.plan"
    plan.write_bytes(b"0" * 2_000_000)
    parity = SimpleNamespace(mean_relative=1e-3, backend="tensorrt")
    artefact = SimpleNamespace(path=plan, manifest=SimpleNamespace(engine=engine, parity=parity))
    cached = SimpleNamespace(artefact=artefact, built=False, why="built yesterday")
    monkeypatch.setattr(selftest_worker, "cached_engine", lambda onnx, on_stage: cached)
    bench = subject_test(replace(NANO, no_engine=None), tmp_path)
    bench.onnx = Artefact.open("nano")
    step = run_step("build", bench.build, lambda stage: None)
    assert bench.artefact.path == plan
    assert {name: figure.value for name, figure in step.figures.items()} == {
        "size": 2.0,
        "build": 12.5,
        "main memory at most": 800.0,
        "mean relative, against its ONNX file": 1e-3,
    }
    assert step.notes == ("from the engine cache: built yesterday",)
    parity.backend = "onnxruntime"
    assert "mean relative, against its ONNX file" not in run_step("build", bench.build, lambda stage: None).figures


# Personal data.

SECRETS = (
    "mallory",
    "mallory-laptop",
    "/home/mallory",
    "10.20.30.40",
    "0424321987654",
    "52:54:00:12:34:56",
    "projectx",
)


@pytest.mark.usefixtures("gpu")
def test_personal_data_is_removed(tmp_path: Path) -> None:
    planted = " ".join(SECRETS) + " /home/mallory/projectx/a.onnx"

    def run(subject: Subject, *_: object) -> SubjectResult:
        step = Step(name="make", outcome="failed", reason=planted, notes=(planted,))
        return SubjectResult(
            subject=replace(subject, no_engine=planted), device=planted, backend_version=planted, steps=(step,)
        )

    result = selftest_with(run)
    device = replace(
        result.device, absent={"tensorrt": planted}, governor=planted, clocks=(planted,), runtimes={"torch": planted}
    )
    result = replace(result, device=device, no_engine=planted)
    assert all(secret in json.dumps(asdict(result)) for secret in SECRETS)
    names = ["mallory", "mallory-laptop", "0424321987654", "projectx"]
    sent = anonymise(result, Anonymiser.of(names, ["/home/mallory"]))
    write_json(tmp_path / "selftest.json", asdict(sent))
    text = (tmp_path / "selftest.json").read_text(encoding="utf-8")
    assert [secret for secret in SECRETS if secret in text] == []
    assert read_result(tmp_path / "selftest.json") == sent
    assert [tested.subject.model for tested in sent.tested] == [tested.subject.model for tested in result.tested]


@pytest.mark.parametrize("name", ["make", "bench", "passed", "fp16", "nano"])
def test_a_user_name_that_is_a_word_of_the_report(name: str) -> None:
    result = selftest_with(passed, quick=True)
    sent = anonymise(result, Anonymiser.of([name], []))
    assert [step.name for step in sent.tested[0].steps] == ["make", "bench", "stream"]
    assert sent.exit_code == result.exit_code


def test_a_custom_kernel_name_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest.platform, "release", lambda: "5.15.148-mallory-rt")
    monkeypatch.setattr(selftest.platform, "system", lambda: "Linux")
    assert describe_device().system == "Linux 5.15.148"


def test_gpus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    orin = Gpu(name="Orin", compute_capability="8.7", memory_mib=7620, integrated=True, cuda="12.6")
    monkeypatch.setattr("mirrordepth_edge.machine.device.nvidia_gpus", lambda: (orin,))
    assert describe_device().gpus == (GpuFacts(name="Orin", compute_capability="8.7", memory_mib=7620, cuda="12.6"),)


def test_a_result_can_be_read_again(tmp_path: Path) -> None:
    result: SelfTest = selftest_with(passed, quick=True)
    write_json(tmp_path / "a.json", asdict(result))
    assert read_result(tmp_path / "a.json") == result
