"""`mde import-trtexec`: what it prints and writes, and which options go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from mirrordepth_edge.artefact import NANO_ONNX
from mirrordepth_edge.bench.compare import read_result
from mirrordepth_edge.commands.import_trtexec import import_trtexec
from mirrordepth_edge.errors import InputError, OptionError

LOGS = Path(__file__).parents[1] / "fixtures" / "trtexec"
NANO = str(NANO_ONNX["fp16"])

app = typer.Typer()
app.command()(import_trtexec)


def run(*words: str | Path) -> None:
    app([str(word) for word in words], standalone_mode=False)


def test_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(LOGS / "10.9-unstable.log", "--json", tmp_path / "sub" / "summary.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model.onnx  trtexec of TensorRT 10.9.0 on NVIDIA GeForce RTX 3070"
    assert lines[1].startswith("from network input in pinned host memory")
    assert lines[2].split() == ["ms", "min", "mean", "p50", "p90", "p95", "p99", "max"]
    assert lines[3].split() == ["latency", "110.946", "112.938", "112.567", "114.427", "115.415", "115.703", "115.703"]
    for line, label in zip(lines[4:8], ("host to device", "compute", "device to host", "enqueue (host)"), strict=True):
        assert line.strip().startswith(f"{label} ")
    assert lines[8] == "throughput: 8.7 queries/s, 29 queries in 3.35 s after 2 warm-up queries"
    assert lines[9] == "note: trtexec used no CUDA graph"
    assert lines[10].startswith(
        "warning (trtexec): GPU compute time is unstable, with coefficient of variance = 1.08662%"
    )
    assert "--exportTimes=times.json" in lines[12]
    told = json.loads((tmp_path / "sub" / "summary.json").read_text(encoding="utf-8"))
    assert (told["kind"], told["protocol"], told["compute"]["median_ms"]) == ("trtexec summary", "trtexec-10", 111.208)
    with pytest.raises(InputError, match="is not a benchmark result"):
        read_result(tmp_path / "sub" / "summary.json")


def test_without_copies_the_latency_is_the_compute(capsys: pytest.CaptureFixture[str]) -> None:
    run(LOGS / "11.1-default.log")
    printed = capsys.readouterr().out
    assert "from compute on the GPU, on its clock, without copies" in printed
    assert "host to device" not in printed
    assert "trtexec replayed a CUDA graph" in printed


def test_a_log_without_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    run(LOGS / "10.7-cuda-graph.log")
    printed = capsys.readouterr().out
    assert printed.startswith("an unnamed engine  trtexec of TensorRT 10.7.0 on an unnamed GPU\n")
    assert "the log ends before trtexec reports that it passed" in printed


def test_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, times, path = LOGS / "10.3-copies.log", LOGS / "10.3-copies.times.json", tmp_path / "result.json"
    run(log, "--times", times, "--model", NANO, "--json", path)
    printed = capsys.readouterr().out
    stored = read_result(path)
    assert printed.startswith("nano.fp16.onnx  FP16  trtexec of TensorRT 10.3.0 on made-up GPU\n")
    assert f"p50 of the raw samples: {stored.latency.p50_ms:.3f} ms (" in printed
    assert "depth: not checked" in printed
    assert "note: the log names depth.plan" in printed
    assert "needs raw samples" not in printed
    assert json.loads(path.read_text(encoding="utf-8"))["trtexec"]["command"].startswith("trtexec --loadEngine")


@pytest.mark.parametrize("words", [["--times", "t.json"], ["--model", NANO], ["--here"]])
def test_options_that_go_together(words: list[str]) -> None:
    with pytest.raises(OptionError, match="require each other"):
        run(LOGS / "10.3-copies.log", *words)


def test_a_run_elsewhere_is_not_taken_for_one_here() -> None:
    """No machine has a GPU of that name."""
    log, times = LOGS / "10.3-copies.log", LOGS / "10.3-copies.times.json"
    with pytest.raises(OptionError, match="was not measured here"):
        run(log, "--times", times, "--model", NANO, "--here")


def test_a_run_that_failed_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trtexec failed"):
        run(LOGS / "10.3-failed.log", "--json", tmp_path / "summary.json")
    assert list(tmp_path.iterdir()) == []
