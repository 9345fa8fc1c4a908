"""`mde selftest`: the report it writes, what it prints, how it exits, and that it contains no personal data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mirrordepth_edge.bench import selftest as module
from mirrordepth_edge.bench.selftest_result import Effort, Figure, SelfTest, Step, Subject, SubjectResult
from mirrordepth_edge.commands.selftest import selftest
from mirrordepth_edge.engines import build
from mirrordepth_edge.engines.build import BuildPlan
from mirrordepth_edge.support.schema import read_strict

PLAN = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=True, version="10.3.0")


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(selftest)
    done = CliRunner().invoke(app, [*arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> dict[str, SubjectResult]:
    """In place of a child: each model passes, unless there is another result for its precision."""
    others: dict[str, SubjectResult] = {}

    def child(subject: Subject, effort: Effort, on_stage: object) -> SubjectResult:
        bench = Step(name="bench", outcome="passed", figures={"p50": Figure(value=3.456, unit="ms")})
        passed = SubjectResult(
            subject=subject,
            backend="tensorrt",
            backend_version="10.3.0",
            device="Orin",
            steps=(Step(name="make", outcome="passed"), bench),
        )
        return others.get(subject.precision, passed)

    monkeypatch.setattr(module, "run_in_child", child)
    return others


def read_result(path: Path) -> SelfTest:
    return read_strict(SelfTest, json.loads(path.read_text(encoding="utf-8")), str(path), "")


def failing(reason: str) -> SubjectResult:
    steps = (Step(name="make", outcome="passed"), Step(name="build", outcome="failed", reason=reason))
    return SubjectResult(subject=Subject(model="nano", precision="int8"), steps=steps)


def test_a_machine_that_passes(
    tested: dict[str, SubjectResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "plan_build", lambda target: PLAN)
    code, output = run("--report", str(tmp_path / "out"))
    assert code == 0, output
    result = read_result(tmp_path / "out" / "selftest.json")
    assert [str(subject_result.subject) for subject_result in result.tested][3:] == [
        "vitb16 FP32",
        "vitb16 FP16",
        "vitb16 INT8",
    ]
    assert (tmp_path / "out" / "selftest.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "nano FP16: passed, tensorrt 10.3.0 on Orin, p50 3.46 ms" in output
    assert "selftest.html" in output
    assert "nothing has been sent" in output


def test_a_failure_is_printed_and_exits_with_3(
    tested: dict[str, SubjectResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "plan_build", lambda target: PLAN)
    tested["int8"] = failing("The parser refused it.")
    code, output = run("--quick", "--report", str(tmp_path))
    assert code == 3
    assert "nano INT8: failed; build: The parser refused it." in output
    assert "nano FP16: passed" in output
    assert read_result(tmp_path / "selftest.json").exit_code == 3


def test_without_a_gpu_it_says_so_and_exits_with_4(
    tested: dict[str, SubjectResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "nvidia_gpus", lambda: ())
    code, output = run("--quick", "--soak", "10", "--report", str(tmp_path))
    assert code == 4
    assert "no NVIDIA GPU" in output
    result = read_result(tmp_path / "selftest.json")
    assert result.quick
    assert result.effort.soak_s == 600
    assert "mde selftest --report DIR --quick --soak 10" in (tmp_path / "selftest.html").read_text(encoding="utf-8")


def test_neither_file_has_personal_data(
    tested: dict[str, SubjectResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "peggysue"
    secrets = ["peggysue", "trudy99", "victor-pc", "203.0.113.77", "0424321987654", str(tmp_path)]
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    for variable, secret in (("USER", "trudy99"), ("SSH_CONNECTION", "203.0.113.77 50000 203.0.113.77 22")):
        monkeypatch.setenv(variable, secret)
    monkeypatch.setattr("platform.node", lambda: "victor-pc")
    monkeypatch.setattr(build, "nvidia_gpus", lambda: ())
    reason = f"trudy99@victor-pc cannot write {home}/.cache/a.plan, serial number 0424321987654, from 203.0.113.77"
    tested["int8"] = failing(reason)
    run("--quick", "--report", str(home / "out"))
    for name in ("selftest.json", "selftest.html"):
        text = (home / "out" / name).read_text(encoding="utf-8")
        assert [secret for secret in secrets if secret in text] == []
        assert "a.plan" in text, "what is left still says what went wrong"
    assert json.loads((home / "out" / "selftest.json").read_text(encoding="utf-8"))["tested"]


def test_an_unwritable_folder_is_refused_first(tested: dict[str, SubjectResult], tmp_path: Path) -> None:
    from mirrordepth_edge.errors import InputError

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        selftest(report=tmp_path / "file" / "out")
