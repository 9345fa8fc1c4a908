"""`--target here`: the engine of an ONNX file, built once, and what is refused before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mirrordepth_edge.artefact import NANO_ONNX, Artefact
from mirrordepth_edge.commands import target as target_module
from mirrordepth_edge.commands.target import resolve
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.engines import build
from mirrordepth_edge.engines.build import BuildPlan
from mirrordepth_edge.engines.cache import Cached
from mirrordepth_edge.errors import MissingError, OptionError


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A machine that builds engines, with TensorRT 10.3 on an Orin; what they were asked for."""
    asked: list[Path] = []
    plan = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=True, version="10.3.0")
    engine = Artefact(path=Path("cache/e.plan"), kind="plan", sidecar=None)

    def cached(onnx: Artefact, *, plan: BuildPlan, on_stage: Callable[[str], None]) -> Cached:
        asked.append(onnx.path)
        on_stage("building")
        return Cached(artefact=engine, built=len(asked) == 1, why="TensorRT 10.1 → 10.3.0")

    monkeypatch.setattr(target_module, "plan_build", lambda target: plan)
    monkeypatch.setattr(target_module, "cached_engine", cached)
    return asked


def test_without_a_target_the_file_itself_is_run(board: list[Path]) -> None:
    assert resolve("nano.fp16", None) == "nano.fp16"
    assert board == []


def test_the_engine_is_run_and_what_happened_is_told(board: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert Path(resolve("nano.fp16", "here")) == Path("cache/e.plan")
    assert board == [NANO_ONNX["fp16"]]
    said = capsys.readouterr()
    assert said.out == "", "what a verb prints can be piped"
    assert "nano.fp16: engine built and cached (TensorRT 10.1 → 10.3.0)" in said.err
    resolve("nano.fp16", "here")
    assert "engine from the cache" in capsys.readouterr().err


def test_known_problems_of_the_builder_are_told(board: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    plan = target_module.plan_build("here")
    expected = build.problems_of(plan, "fp16")
    resolve("nano.fp16", "here")
    said = capsys.readouterr().err
    assert all(problem.what in said for problem in expected)
    assert ("known problem" in said) == bool(expected)


@pytest.mark.parametrize(
    ("model", "target", "options", "words"),
    [
        ("nano", "orin-nano", SessionOptions(), "mde build --target orin-nano"),
        ("a.plan", "here", SessionOptions(), "Leave --target out"),
        ("a.safetensors", "here", SessionOptions(), "give an .onnx file"),
        ("nano", "here", SessionOptions(device="cpu"), "--device cpu"),
        ("nano", "here", SessionOptions(backend="openvino"), "--backend"),
        ("nano", "here", SessionOptions(bf16=True), "--bf16"),
        ("nano", "here", SessionOptions(threads=2), "--threads"),
        ("nano", "here", SessionOptions(trust=True), "--trust"),
    ],
)
def test_what_makes_no_sense_is_refused_before_building(
    model: str, target: str, options: SessionOptions, words: str, board: list[Path]
) -> None:
    with pytest.raises(OptionError) as caught:
        resolve(model, target, options)
    assert words in str(caught.value)
    assert board == []


def test_without_a_gpu_the_user_is_told_where_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "nvidia_gpus", lambda: ())
    with pytest.raises(MissingError, match="no NVIDIA GPU") as caught:
        resolve("nano.fp16", "here")
    assert "mde build" in caught.value.cure
