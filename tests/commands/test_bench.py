"""`mde bench`: what it measures, compares, refuses and gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirrordepth_edge.cli import run_app
from mirrordepth_edge.runtime import NANO_ONNX

pytest.importorskip("onnxruntime", reason="nano runs in ONNX Runtime")

QUICK = ("--device", "cpu", "--iterations", 8, "--warmup", 1, "--frame", "60x80")


def mde(*arguments: object) -> int:
    return run_app([str(argument) for argument in arguments])


def test_two_in_turn_and_compared_again_later(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.json", tmp_path / "a.2.json"
    assert mde("bench", *QUICK, "--engine", "nano", "--vs", "nano.fp16", "--json", first) == 0
    told = capfd.readouterr().out
    assert "times as long as nano.onnx" in told
    assert "of that, p50 ms: preprocess" in told
    assert [json.loads(path.read_text())["artefact"] for path in (first, second)] == ["nano.onnx", "nano.fp16.onnx"]
    assert mde("bench", "compare", first, second, "--markdown", tmp_path / "table.md") == 0
    assert f"{second} against {first}: " in capfd.readouterr().out
    table = (tmp_path / "table.md").read_text()
    assert table.count("nano.fp16.onnx") == 1


def test_results_of_other_frames_are_compared_on_demand_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small, large = tmp_path / "small.json", tmp_path / "large.json"
    assert mde("bench", *QUICK, "--json", small) == 0
    assert mde("bench", *QUICK[:-1], "120x160", "--json", large) == 0
    capfd.readouterr()
    assert mde("bench", "compare", small, large) == 2
    assert "--anyway" in capfd.readouterr().err
    assert mde("bench", "compare", small, large, "--anyway") == 0
    assert "160x120" in capfd.readouterr().out
    assert mde("bench", "compare", small) == 2


def test_a_limit_that_is_missed_ends_with_3(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    assert mde("bench", *QUICK, "--fail-if", "p99>1s", "--json", result) == 0
    capfd.readouterr()
    assert mde("bench", *QUICK, "--fail-if", "p50>0.001ms", "--fail-if", f"p50>1000*{result}") == 3
    told = capfd.readouterr().err
    assert "p50>0.001ms" in told
    assert "1000*" not in told, "that one holds"
    assert mde("bench", *QUICK, "--fail-if", "slow") == 2


def test_a_stream(capfd: pytest.CaptureFixture[str]) -> None:
    quick = ("--device", "cpu", "--warmup", 1, "--frame", "60x80", "--duration", 0.5)
    assert mde("bench", *quick, "--mode", "stream", "--fps", 10) == 0
    told = capfd.readouterr().out
    assert "nano.onnx, 5 frames at 10 a second" in told
    assert "keeps up with" in told


@pytest.mark.parametrize(
    "arguments",
    [("--mode", "fast"), ("--mode", "stream", "--json", "x.json"), ("--mode", "stream", "--vs", "nano.fp16")],
)
def test_options_without_effect_are_refused(arguments: tuple[str, ...]) -> None:
    assert mde("bench", "--engine", NANO_ONNX["fp32"], *arguments) == 2
