"""`mde bench`: what it measures, compares, refuses and gates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.artefact import NANO_ONNX, Artefact, Reference, read_reference, reference_path, write_reference
from mirrordepth_edge.backends.base import Arrays, CheckedSession
from mirrordepth_edge.bench import measure
from mirrordepth_edge.bench.result import unpack
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands.bench.command import parse_duration
from mirrordepth_edge.config import PRESETS, SessionOptions
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.manifest import TensorSpec
from mirrordepth_edge.predictor import DepthPredictor

pytest.importorskip("onnxruntime", reason="nano runs in ONNX Runtime")

QUICK = ("--device", "cpu", "--iterations", 8, "--warmup", 1, "--frame", "60x80")


def mde(*arguments: object) -> int:
    return run_app([str(argument) for argument in arguments])


def test_two_in_turn_and_compared_again_later(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.json", tmp_path / "a.2.json"
    assert mde("bench", *QUICK, "--engine", "nano", "--vs", "nano.fp16", "--json", first) == 0
    told = capfd.readouterr().out
    assert "times as long as nano.onnx" in told
    assert "stages, p50 ms: preprocess" in told
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


def test_a_stream(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quick = ("--device", "cpu", "--warmup", 1, "--frame", "60x80", "--duration", 0.5)
    stored = tmp_path / "stream.json"
    assert mde("bench", *quick, "--mode", "stream", "--fps", 10, "--fps", 8, "--json", stored) == 0
    told = capfd.readouterr().out
    assert "10 frames/s: 5 frames, " in told
    assert "8 frames/s: 4 frames, " in told
    assert "sustainable rate: " in told
    data = json.loads(stored.read_text())
    assert [(each["rate_hz"], each["frames"]) for each in data["streams"]] == [(10, 5), (8, 4)]
    assert len(unpack(data["streams"][0]["ages_ns"])) == data["streams"][0]["results"]
    assert mde("bench", "compare", stored, stored) == 1
    assert "not a latency measurement" in capfd.readouterr().err


def test_throughput(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stored = tmp_path / "throughput.json"
    quick = ("--device", "cpu", "--warmup", 1, "--frame", "60x80", "--duration", 0.5)
    assert mde("bench", *quick, "--mode", "throughput", "--in-flight", 3, "--json", stored) == 0
    assert "frames/s with 3 in flight (3 sessions)" in capfd.readouterr().out
    data = json.loads(stored.read_text())
    assert (data["in_flight"], data["arrangement"]) == (3, "3 sessions")
    assert data["rate_hz"] == pytest.approx(len(unpack(data["samples_ns"]["frame"])) / data["seconds"])


class Engine(CheckedSession):
    """2 m everywhere, for each frame that was submitted."""

    backend, device, precision, version = "tensorrt", "Fake GPU", "fp16", "10.3.0"
    waiting = 0

    def __init__(self) -> None:
        kinds: dict[str, Any] = {"range": "", "unit": ""}
        self.inputs = (TensorSpec(name="image", dtype="uint8", shape=(1, 96, 128, 3), layout="NHWC", **kinds),)
        self.outputs = (TensorSpec(name="depth", dtype="float32", shape=(1, 96, 128), layout="NHW", **kinds),)

    def infer(self, feeds: Mapping[str, Any]) -> Arrays:
        raise AssertionError("that is one context only")

    def submit(self, feeds: Mapping[str, Any]) -> None:
        self.check(feeds)
        self.waiting += 1

    def collect(self) -> Arrays:
        assert self.waiting
        self.waiting -= 1
        return {"depth": np.full((1, 96, 128), 2, np.float32)}


def test_an_engine_is_opened_once_for_all_frames_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    opened: list[tuple[Path, SessionOptions]] = []

    def load(artefact: Artefact, options: SessionOptions, batch: int) -> DepthPredictor:
        opened.append((artefact.path, options))
        return DepthPredictor(Engine(), replace(PRESETS["nano"], size_hw=(96, 128)), batch=batch)

    monkeypatch.setattr(measure, "load", load)
    plan, stored = tmp_path / "model.plan", tmp_path / "throughput.json"
    plan.write_bytes(b"a plan")
    asked = ("--mode", "throughput", "--in-flight", 3, "--duration", 0.5, "--frame", "60x80", "--warmup", 2)
    assert mde("bench", "--engine", plan, "--trust", *asked, "--json", stored) == 0
    assert opened == [(plan, SessionOptions(in_flight=3, trust=True))]
    assert "frames/s with 3 in flight (3 in one engine)" in capfd.readouterr().out
    data = json.loads(stored.read_text())
    assert (data["in_flight"], data["arrangement"]) == (3, "3 in one engine")


def test_a_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "card.html"
    assert mde("bench", *QUICK, "--vs", "nano.fp16", "--report", page) == 0
    assert "nano.fp16.onnx" in page.read_text(encoding="utf-8")
    capfd.readouterr()
    assert mde("bench", *QUICK, "--report", tmp_path / "card.txt") == 2


def test_depth_is_compared_with_what_was_stored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert mde("bench", *QUICK, "--protocol", "network") == 0
    told = capfd.readouterr().out
    assert "network input in host memory" in told
    assert "relative to PyTorch's at export, over 3 frames" in told
    copy = tmp_path / "model.onnx"
    for end in ("", ".manifest.json", ".reference.npz"):
        shutil.copyfile(f"{NANO_ONNX['fp32']}{end}", f"{copy}{end}")
    reference = read_reference(copy)
    assert reference is not None
    write_reference(copy, Reference(reference.images, 1.1 * reference.depth_m))
    assert mde("bench", *QUICK, "--engine", copy) == 3
    assert "gives wrong depth" in capfd.readouterr().err
    reference_path(copy).unlink()
    assert mde("bench", *QUICK, "--engine", copy) == 0
    assert "not compared" in capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--mode", "fast"),
        ("--mode", "stream", "--iterations", "5"),
        ("--mode", "stream", "--vs", "nano.fp16"),
        ("--mode", "throughput", "--fps", "30"),
        ("--in-flight", "2"),
        ("--duration", "5"),
        ("--protocol", "fast"),
        ("--protocol", "trtexec-10"),
        ("--protocol", "trtexec-10", "--network-only"),
        ("--suite", "quick", "--frame", "60x80"),
        ("--suite", "quick", "--mode", "stream"),
    ],
)
def test_options_without_effect_are_refused(arguments: tuple[str, ...]) -> None:
    assert mde("bench", "--engine", NANO_ONNX["fp32"], *arguments) == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10.0), ("10", 10.0), (" .5 S", 0.5), ("1500ms", 1.5), ("2min", 120.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "0.4s", "10h", "1,5s", "1e3"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(OptionError, match="not a valid duration") as caught:
        parse_duration(text)
    assert caught.value.cure == "--duration 10s"


def test_a_model_may_be_named_without_an_option(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app(["bench", "nano", "--device", "cpu", "--warmup", "1", "--iterations", "2"]) == 0
    assert "nano.onnx  FP32" in capfd.readouterr().out
    assert run_app(["bench", "absent.plan"]) == 1
    assert "absent.plan" in capfd.readouterr().err
    assert run_app(["bench", "comprae"]) == 2
    assert "compare" in capfd.readouterr().err
