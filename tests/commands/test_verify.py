"""`mde verify`, end to end: what it prints and writes, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mirrordepth_edge.artefact import NANO_ONNX, reference_path
from mirrordepth_edge.backends import registry
from mirrordepth_edge.backends.base import Arrays
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.manifest import manifest_path


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_shipped_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["verify", "nano", "--device", "cpu", "--soak", "0.01", "--json", "sub/verify.json"]) == 0
    printed = capsys.readouterr()
    assert "nano on cpu (onnxruntime" in printed.err
    assert "depth against PyTorch in FP32, stored at export" in printed.out
    assert "all bit-identical" in printed.out
    assert "0 NaN, 0 infinite, 0 not above 0 m" in printed.out
    assert "soak, same depth" in printed.out
    assert "temperature" in printed.out or "°C" in printed.out
    assert "nano passed on cpu" in printed.out
    assert "FAIL" not in printed.out
    data = json.loads(Path("sub/verify.json").read_text(encoding="utf-8"))
    assert data["holds"] is True
    assert data["repeats"]["differing"] == 0
    assert data["soak"]["runs"] > 0
    assert data["comparisons"][0]["mean_relative"] < 1e-4
    assert data["machine"]["cores"] >= 1
    assert "temperatures" in data["telemetry"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [(lambda depth, run: depth * 1.1, "depth against"), (lambda depth, run: depth * (1 + run % 2), "not bit-id")],
    ids=["wrong", "unsteady"],
)
def test_wrong_depth_fails(
    wrong: Any, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_session = registry.open_session

    def opened(*arguments: Any) -> Any:
        session, manifest = open_session(*arguments)
        right, run = session.infer, 0

        def infer(feeds: Mapping[str, Any]) -> Arrays:
            nonlocal run
            run += 1
            return {name: wrong(depth, run) for name, depth in right(feeds).items()}

        monkeypatch.setattr(session, "infer", infer, raising=False)
        return session, manifest

    monkeypatch.setattr("mirrordepth_edge.commands.verify.open_session", opened)
    assert run_app(["verify", "nano", "--device", "cpu", "--json", "verify.json"]) == 3
    printed = capsys.readouterr()
    assert "FAIL" in printed.out
    assert "error: nano fails on cpu" in printed.err
    assert told in printed.err
    assert json.loads(Path("verify.json").read_text(encoding="utf-8"))["holds"] is False


def copy_nano(*parts: Path) -> None:
    for part in parts:
        shutil.copy(part, part.name.replace("nano", "model"))


def test_notes_say_what_was_not_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    copy_nano(NANO_ONNX["fp32"], manifest_path(NANO_ONNX["fp32"]))
    assert run_app(["verify", "model.onnx", "--device", "cpu"]) == 1
    err = capsys.readouterr().err
    assert "nothing to compare the depth of model.onnx with" in err
    assert "model.onnx.reference.npz" in err
    copy_nano(reference_path(NANO_ONNX["fp32"]))
    assert run_app(["verify", "model.onnx", "--device", "cpu"]) == 0
    assert "not compared with ONNX Runtime: this is the ONNX file itself" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "what", "cure"),
    [
        (["model.safetensors"], 2, "has no reference to compare with", "mde verify model.onnx"),
        (["missing.onnx"], 1, "There is no model at missing.onnx", "Check the path"),
        (["alone.plan"], 1, "alone.plan has no manifest", "--trust"),
        (["alone.plan", "--trust"], 1, "neither has its ONNX file", "alone.onnx.manifest.json"),
        (["nano", "--trust"], 2, "--trust does not apply", "Leave out --trust"),
        (["nano", "--device", "npu"], 2, "--device 'npu' is unknown", "--device auto"),
    ],
)
def test_what_is_refused(
    arguments: list[str], code: int, what: str, cure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("alone.plan").write_bytes(b"plan")
    assert run_app(["verify", *arguments]) == code
    err = " ".join(capsys.readouterr().err.split())
    assert what in err
    assert cure in err
    assert "Traceback" not in err
