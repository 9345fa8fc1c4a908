"""`mde build` as typed: what its options become, what it says, and what Ctrl-C leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirrordepth_edge.artefact import NANO_ONNX, Artefact
from mirrordepth_edge.cli import run_app
from mirrordepth_edge.commands import build as build_command
from mirrordepth_edge.commands.parameters import parse_range
from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines.build import BuildPlan
from mirrordepth_edge.engines.worker import BuildProgress
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.machine.device import Gpu
from mirrordepth_edge.manifest import EngineInfo, Manifest, write_artefact


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is handed on, in place of building."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(build_command, "build_and_report", lambda *arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ([], BuildConfig()),
        (["--workspace", "1.5"], BuildConfig(workspace_gib=1.5)),
        (["--optimisation-level", "0"], BuildConfig(optimisation_level=0)),
        (["--no-timing-cache"], BuildConfig(timing_cache=False)),
        (["--verbosity", "layer-names"], BuildConfig(verbosity="layer-names")),
        (["--dynamic", "96x128,224x288, 448X576"], BuildConfig(dynamic=parse_range("96x128,224x288,448x576"))),
        (["--hardware-compat", "ampere+"], BuildConfig(hardware_compat="ampere+")),
        (["--version-compat"], BuildConfig(version_compat=True)),
        (["--weights", "stripped"], BuildConfig(weights="stripped")),
    ],
)
def test_options_become_the_builders(
    options: list[str], config: BuildConfig, typed: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    assert run_app(["build", "nano", "-o", str(tmp_path / "x.plan"), *options]) == 0
    assert typed == [(NANO_ONNX["fp32"], tmp_path / "x.plan", None, config)]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--workspace", "0"], "amount of memory"),
        (["--workspace", "-1"], "amount of memory"),
        (["--workspace", "nan"], "amount of memory"),
        (["--optimisation-level", "6"], "--optimisation-level"),
        (["--verbosity", "loud"], "detailed"),
        (["--hardware-compat", "turing"], "ampere+"),
        (["--weights", "thin"], "stripped"),
        (["--dynamic", "224x288"], "not a range of sizes"),
        (["--dynamic", "224x288,96x128,448x576"], "not a range of sizes"),
        (["--dynamic", "a,b,c"], "HEIGHTxWIDTH"),
    ],
)
def test_values_that_make_no_sense(
    options: list[str], word: str, typed: list[tuple[Any, ...]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["build", "nano", *options]) == 2
    assert word in capfd.readouterr().err
    assert not typed


def test_ranges_of_sizes() -> None:
    assert tuple(parse_range("32x64,32x64,32x64")) == ((1, 32, 64),) * 3
    assert tuple(parse_range("1x32x64, 4X64x64,8×64x96")) == ((1, 32, 64), (4, 64, 64), (8, 64, 96))
    for text in (
        "32x64,64x32,96x96",
        "2x32x64,1x32x64,4x32x64",
        "32x64,32x64",
        "32x64,32x64,32x64,32x64",
        "0x1,1x1,1x1",
    ):
        with pytest.raises(OptionError, match="not a range"):
            parse_range(text)


@pytest.mark.parametrize(
    ("text", "opened"),
    [("32x64,32x64,32x64", ""), ("32x64,32x64,64x64", "H"), ("1x32x64,1x32x64,2x32x96", "NW")],
)
def test_a_range_says_what_it_opens_and_how_it_is_typed(text: str, opened: str) -> None:
    sizes = parse_range(text)
    assert sizes.dynamic_axes == opened
    assert str(sizes) == text
    assert sizes.has(sizes.opt)
    assert not sizes.has((3, 32, 64))


ORIN = BuildPlan(flavour="tensorrt", compute_capabilities=("8.7",), runs_here=True, version="10.3.0")


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An Orin on JetPack 6 whose builder is done at once."""

    def built(model: Artefact, output: Path, plan: BuildPlan, config: BuildConfig | None, on_progress: Any) -> Manifest:
        on_progress(BuildProgress(phase="Timing graph nodes", fraction=0.5))
        engine = EngineInfo(
            flavour="tensorrt",
            version=plan.version,
            compute_capabilities=plan.compute_capabilities,
            build_seconds=61.2,
            peak_memory_mb=1234.4,
            options=config,
        )
        source = model.manifest
        runner = "onnxruntime 1.24.4 CPU" if config else "tensorrt 10.3.0 on Orin against its FP32 ONNX"
        manifest = replace(
            source, kind="plan", engine=engine, parity=replace(source.parity, runner=runner, backend=runner.split()[0])
        )
        write_artefact(output, b"plan", manifest)
        return manifest

    monkeypatch.setattr(build_command, "plan_build", lambda target: ORIN)
    monkeypatch.setattr(build_command, "build_engine", built)
    return monkeypatch


def test_a_known_problem_is_told_before_building(
    orin: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build_command.build_and_report(NANO_ONNX["fp32"], tmp_path / "x.plan", None)
    out, err = capfd.readouterr()
    assert "known problem (wrong, reported): TensorRT 10.3" in err
    assert "https://github.com/" in err
    assert "built in 61.2 s, 1234 MB peak memory" in out
    assert "parity: tensorrt 10.3.0 on Orin" in out
    assert "worst pixel" in out


def test_no_problem_no_word(orin: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    orin.setattr(build_command, "problems_of", lambda plan, precision: ())
    build_command.build_and_report(NANO_ONNX["fp32"], tmp_path / "x.plan", None)
    assert capfd.readouterr().err == ""


def gpu(capability: str) -> Gpu:
    return Gpu(name="GPU", compute_capability=capability, memory_mib=8192, integrated=False, cuda="12.6")


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        ((), "this machine has no GPU of that kind"),
        ((gpu("12.0"),), "this machine has no GPU of that kind"),
        ((gpu("12.0"), gpu("8.9")), "it is for a GPU other than the first one, which is the one that runs engines"),
    ],
)
def test_an_engine_that_was_not_run_says_why(
    gpus: tuple[Gpu, ...],
    reason: str,
    orin: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plan = replace(ORIN, compute_capabilities=("8.6", "8.9"), runs_here=False)
    orin.setattr(build_command, "plan_build", lambda target: plan)
    orin.setattr(build_command, "nvidia_gpus", lambda: gpus)
    build_command.build_and_report(NANO_ONNX["fp32"], tmp_path / "x.plan", None, BuildConfig())
    out = " ".join(capfd.readouterr().out.split())
    assert f"note: the engine was not run: {reason}" in out
